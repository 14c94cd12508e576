//! One history: a cluster or several, their clients and their faults, from the seed to the verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use antiphon::api::{Api, ApiLimits, router};
use antiphon::engine::Consistency;
use antiphon::limits::{MAX_TOPICS_BYTES, MIN_TOPICS_BYTES};
use antiphon::raft::{Timers, seed_thread};
use antiphon::state::BlockBytes;
use antiphon::storage::LogOptions;
use antiphon::storage::sim_disk::Dice;
use axum::body::Body;
use axum::http::Request;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::ServiceExt;

use crate::calls::{self, Told};
use crate::clients;
use crate::faults;
use crate::member::{self, Machine, engine_of};
use crate::memory;
use crate::mirrors;
use crate::network::Net;
use crate::oracle::{Oracle, Tally};
use crate::reads;
use crate::seeded::Throw;
use crate::space;
use crate::trace::{self, Trace};
use crate::watchers;
use crate::wide::Wide;

/// Members of a simulated cluster.
pub const MEMBERS: usize = 3;
/// A disk that others can fill, and what a member keeps free of it. Much more than a history writes.
const DISK_BYTES: u64 = 32 << 20;
pub const MIN_FREE_BYTES: u64 = 8 << 20;
/// Sets dice apart.
const WIDE_SEED: u64 = 0x5157_4D1D_E5C0_77E5;
/// A healed cluster must serve again within this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the seed decides before anything runs.
pub struct Setup {
    pub log_options: LogOptions,
    /// How long the blocks of topics grow: in many histories so little that most of a topic is cold.
    pub block_bytes: BlockBytes,
    /// The size of all disks, if it is bounded.
    pub disk_bytes: Option<u64>,
    /// The one machine whose disk loses bits, and the only one then that may lose its disk: more is more than three
    /// members can bear.
    pub fragile: Option<usize>,
    /// Of so many batches of entries that a member applies one is looked at.
    pub check_every: u64,
    pub timers: Timers,
    pub request_timeout_ms: u64,
    /// Entries that the log keeps: few, so that members need the state of others.
    pub kept_log_entries: u64,
    pub kept_log_bytes: u64,
    pub lag_patience: Duration,
    /// How long a sync takes.
    pub sync_us: (u64, u64),
    clients: usize,
    watchers: usize,
    faults_for: Duration,
    /// Whether the faults wait until the cluster stands.
    is_founded_in_peace: bool,
}

impl Setup {
    fn new(dice: &mut Dice) -> Self {
        let election_timeout_min_ms = dice.between(200, 800);
        let is_small = dice.chance(30);
        Setup {
            block_bytes: BlockBytes::at_most([4096, 512, 128, 40][dice.below(4) as usize]),
            disk_bytes: is_small.then_some(DISK_BYTES),
            fragile: dice.chance(30).then(|| dice.below(MEMBERS as u64) as usize),
            check_every: [1, 8, 32][dice.below(3) as usize],
            // Small enough that a history meets rotations, cold reads and full queues.
            log_options: LogOptions {
                segment_bytes: 16 << (10 + dice.below(5)),
                cache_bytes: 4 << (10 + dice.below(9)),
                queue_bytes: 256 << 10,
                write_bytes: 1 << (12 + dice.below(8)),
                zero_below_bytes: 16 << 10,
                zero_step_bytes: 8 << 10,
                index_bytes: 4 << 10,
            },
            timers: Timers {
                heartbeat_ms: election_timeout_min_ms / 4,
                election_timeout_min_ms,
                election_timeout_max_ms: 2 * election_timeout_min_ms,
            },
            request_timeout_ms: dice.between(1000, 8000),
            kept_log_entries: dice.between(1, 60),
            kept_log_bytes: if dice.chance(50) { 64 << (10 + dice.below(4)) } else { u64::MAX },
            lag_patience: if dice.chance(60) { Duration::ZERO } else { dice.time_ms(0, 3_000) },
            sync_us: if dice.chance(20) { (1000, 30_000) } else { (50, 2000) },
            clients: dice.between(2, 6) as usize,
            watchers: dice.between(0, 4) as usize,
            faults_for: dice.time_ms(5_000, 20_000),
            is_founded_in_peace: dice.chance(75),
        }
    }

    /// With several clusters the time goes to what is between them.
    /// What all mirrors of a member remember of topics, and each in any case; in half of the histories that is one or two.
    pub fn topics_bytes(&self) -> (usize, usize) {
        if self.request_timeout_ms.is_multiple_of(2) {
            (1200, 400)
        } else {
            (MAX_TOPICS_BYTES, MIN_TOPICS_BYTES)
        }
    }

    fn leave_room_for_others(mut self, dice: &mut Dice) -> Self {
        self.clients = dice.below(3) as usize;
        self.watchers = dice.below(2) as usize;
        self.faults_for = dice.time_ms(4_000, 12_000);
        self
    }
}

/// A cluster in a history, while that goes on.
pub struct World {
    /// Its place among the clusters of the history, and its name.
    pub cluster: usize,
    pub name: String,
    /// What the clusters reach each other by.
    pub wide: Arc<Wide>,
    pub trace: Arc<Trace>,
    pub oracle: Arc<Oracle>,
    pub net: Arc<Net>,
    pub setup: Setup,
    pub machines: [Mutex<Machine>; MEMBERS],
    /// Some disk was full at some time.
    pub has_filled: AtomicBool,
    is_over: AtomicBool,
}

impl World {
    /// Whether clients should stop.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// How a history went.
pub struct Verdict {
    seed: u64,
    clusters: Option<usize>,
    pub complaints: Vec<String>,
    lines: Vec<String>,
    hash: u64,
    pub tally: Tally,
    pub simulated_ms: u64,
    /// The most memory that it took at once.
    pub peak_bytes: u64,
}

impl Verdict {
    pub fn broken(seed: u64, complaint: String) -> Self {
        let (complaints, lines) = (vec![complaint], Vec::new());
        Verdict {
            seed,
            clusters: None,
            complaints,
            lines,
            hash: 0,
            tally: Tally::default(),
            simulated_ms: 0,
            peak_bytes: 0,
        }
    }

    /// The same seed must give the same history.
    pub fn compare(&mut self, again: &Verdict) {
        if self.hash != again.hash {
            self.complaints.push("the same seed went another way when it was run again".to_owned());
            let same = self.lines.iter().zip(&again.lines).take_while(|(one, other)| one == other).count();
            self.complaints.push(format!("{:?} and {:?}", self.lines.get(same), again.lines.get(same)));
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} FAILED; its last events:", self.seed)?;
        self.lines.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        self.complaints.iter().try_for_each(|complaint| writeln!(f, "seed {}: {complaint}", self.seed))?;
        write!(f, "replay: cargo sim --from {} --seeds 1 --trace", self.seed)?;
        self.clusters.map_or(Ok(()), |count| write!(f, " --clusters {count}"))
    }
}

/// Runs the history of `seed` on this thread; the seed decides of how many clusters if `clusters` does not.
pub fn run(seed: u64, is_traced: bool, clusters: Option<usize>) -> Verdict {
    seed_thread(seed);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    // Decides in which order those who watch a value are woken.
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let runtime = match builder.build() {
        Ok(runtime) => runtime,
        Err(error) => return Verdict::broken(seed, error.to_string()),
    };
    let (trace, tally, simulated_ms) = runtime.block_on(live(seed, is_traced, clusters));
    drop(runtime);
    let (hash, mut complaints, lines) = trace.end();
    complaints.extend(trace::take_panics());
    Verdict { seed, clusters, complaints, lines, hash, tally, simulated_ms, peak_bytes: 0 }
}

/// Of how many clusters the history of a seed is: mostly one, as there is much to find in one.
fn cluster_count(dice: &mut Dice) -> usize {
    match dice.below(100) {
        0..80 => 1,
        80..92 => 2,
        _ => 3,
    }
}

async fn live(seed: u64, is_traced: bool, clusters: Option<usize>) -> (Trace, Tally, u64) {
    let begin = Instant::now();
    let trace = Trace::new(is_traced);
    // Dice of their own: what happens in a single cluster does not depend on there being others elsewhere.
    let mut wide_dice = Dice::new(seed ^ WIDE_SEED);
    let drawn = cluster_count(&mut wide_dice);
    let count = clusters.unwrap_or(drawn);
    let wide = Wide::new(wide_dice.fork(), count);
    let (mut worlds, mut all_dice) = (Vec::new(), Vec::new());
    for cluster in 0..count {
        let mut dice = if cluster == 0 { Dice::new(seed) } else { wide_dice.fork() };
        let setup = Setup::new(&mut dice);
        let setup = if count > 1 { setup.leave_room_for_others(&mut wide_dice) } else { setup };
        let name = format!("c{}", cluster + 1);
        let trace = Arc::new(trace.of(if count > 1 { &name } else { "" }));
        worlds.push(Arc::new(World {
            cluster,
            name,
            wide: wide.clone(),
            oracle: Arc::new(Oracle::new(trace.clone())),
            net: Net::new(dice.fork(), (100, 2000)),
            machines: std::array::from_fn(|_| Mutex::new(Machine::new(dice.fork(), setup.disk_bytes))),
            has_filled: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            setup,
            trace,
        }));
        all_dice.push(dice);
    }
    wide.connect(&worlds);
    let watching: Vec<_> = worlds.iter().map(|world| tokio::spawn(watch_digests(world.clone()))).collect();
    let mirroring = (count > 1).then(|| mirrors::begin(&worlds, trace.of("all"), &mut wide_dice));
    join_all(worlds.iter().zip(&mut all_dice).map(|(world, dice)| story(world, dice))).await;
    let mut tally = Tally::default();
    if let Some(mirroring) = mirroring {
        tally.mirrored = mirroring.finish().await;
    }
    for world in &worlds {
        if !trace.has_complaints() {
            ready_means_served(world).await;
        }
        if !trace.has_complaints() {
            check_everything(world).await;
        }
    }
    for world in &worlds {
        space::check(world).await;
    }
    if let [world] = &worlds[..] {
        space::check_without_one(world).await;
    }
    watching.iter().for_each(|watching| watching.abort());
    for world in &worlds {
        world.machines.iter().for_each(|machine| machine.lock().kill());
        tally.add(world.oracle.tally());
    }
    (trace, tally, begin.elapsed().as_millis() as u64)
}

/// C-DUR-07: in half of all histories every machine loses power at once in the end, and in most some do before; the
/// disks forget what was not synced, and the oracle knows what was acked.
async fn story(world: &Arc<World>, dice: &mut Dice) {
    for number in 0..MEMBERS {
        member::start(world, number);
        tokio::time::sleep(dice.time_ms(0, 300)).await;
    }
    if world.setup.is_founded_in_peace {
        serve_again(world, "after the start").await;
    }
    let clients: Vec<_> = (0..world.setup.clients)
        .map(|number| tokio::spawn(clients::run(world.clone(), number, dice.fork())))
        .collect();
    let watchers: Vec<_> = (0..world.setup.watchers)
        .map(|number| tokio::spawn(watchers::run(world.clone(), number, dice.fork())))
        .collect();
    faults::rage(world, dice, world.setup.faults_for).await;
    faults::heal(world).await;
    serve_again(world, "after the faults").await;
    world.is_over.store(true, Ordering::Relaxed);
    for client in clients {
        let _ = client.await;
    }
    let mut watching = Vec::new();
    for watcher in watchers {
        watching.extend(watcher.await.ok());
    }
    if dice.chance(50) && !world.trace.has_complaints() {
        world.trace.note("everything loses power");
        faults::black_out(world);
        if dice.chance(50) {
            world.trace.note("everything moves");
            (0..MEMBERS).for_each(|number| world.net.relocate(number));
        }
        tokio::time::sleep(dice.time_ms(0, 2000)).await;
        faults::heal(world).await;
        serve_again(world, "after the black-out").await;
    }
    for watcher in &watching {
        watchers::finish(world, watcher, dice).await;
    }
}

/// Waits until every member serves and votes, and lets each carry out a write.
async fn serve_again(world: &Arc<World>, when: &str) {
    let deadline = Instant::now() + PATIENCE;
    for number in 0..MEMBERS {
        loop {
            if world.trace.has_complaints() {
                return;
            }
            let told = clients::append_one(world, number, "steady-0").await;
            if matches!(told, Told::Outcome(_)) {
                break;
            }
            if Instant::now() >= deadline {
                world.trace.complain(format_args!("m{} does not serve {when}: {told:?}", number + 1));
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // Whoever lost its disk serves as soon as it has the log, and votes a moment later.
    while let Some(number) = (0..MEMBERS).find(|number| !world.machines[*number].lock().is_voter()) {
        if Instant::now() >= deadline {
            world.trace.complain(format_args!("m{} does not vote {when}", number + 1));
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.trace.note(format_args!("all serve {when}"));
}

/// A member that says that it is ready carries out what it is asked for, when nothing goes wrong any more.
async fn ready_means_served(world: &Arc<World>) {
    for number in 0..MEMBERS {
        let deadline = Instant::now() + PATIENCE;
        let said = loop {
            let said = calls::at(world, number, |engine| async move {
                let app = router(Api::new(engine, Arc::default(), ApiLimits::default()));
                let asked = Request::get("/v0/ready").body(Body::empty()).ok()?;
                let answer = app.oneshot(asked).await.ok()?;
                let status = answer.status().as_u16();
                let body = axum::body::to_bytes(answer.into_body(), 1 << 16).await.ok()?;
                Some((status, String::from_utf8_lossy(&body).into_owned()))
            });
            let said = said.await.flatten();
            if matches!(said, Some((200, _))) || Instant::now() >= deadline || world.trace.has_complaints() {
                break said;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let told = clients::append_one(world, number, "steady-0").await;
        if !matches!((&said, &told), (Some((200, _)), Told::Outcome(_))) {
            world.trace.complain(format_args!("m{} says {said:?}, and a write got {told:?}", number + 1));
            return;
        }
    }
}

/// Looks at the digests now and then, and whether all holds that must between two commands, also of members that apply nothing.
async fn watch_digests(world: Arc<World>) {
    loop {
        memory::beat();
        for number in 0..MEMBERS {
            if let Some((_, applied, _)) = engine_of(&world.machines[number]) {
                let (index, digest) = applied.digest();
                world.oracle.digest(number, index, digest);
                world.oracle.state(number, index, applied.check(true));
            }
        }
        tokio::time::sleep(Duration::from_millis(97)).await;
    }
}

/// Reads every topic at every member, and settles the book.
async fn check_everything(world: &Arc<World>) {
    let mut contents: [BTreeMap<String, (u64, u64)>; MEMBERS] = Default::default();
    for (number, contents) in contents.iter_mut().enumerate() {
        for topic in clients::topics() {
            let query = reads::query(0, Consistency::Strong);
            match reads::read_all(world, number, topic, query).await {
                Ok(Some(content)) => {
                    contents.insert(topic.to_owned(), content);
                }
                Ok(None) => {}
                Err(problem) => {
                    world.trace.complain(format_args!("m{} cannot read {topic}: {problem}", number + 1));
                    return;
                }
            }
        }
        if let Some((engine, applied, _)) = engine_of(&world.machines[number]) {
            let (index, digest) = applied.digest();
            world.oracle.digest(number, index, digest);
            world.trace.note(format_args!("m{} ends at {index} with {digest:016x}", number + 1));
            let _ = engine.cluster(Consistency::Eventual).await;
        }
    }
    for (number, other) in contents.iter().enumerate() {
        if *other != contents[0] {
            world.trace.complain(format_args!(
                "m1 and m{} differ in the end: {:?} and {other:?}",
                number + 1,
                contents[0]
            ));
        }
    }
    world.oracle.finish(&contents[0]);
}
