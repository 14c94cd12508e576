//! One simulated member: it opens its log and does its chores as one in production (`server/`), but for HTTP, and is
//! ended like a machine.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use antiphon::engine::{Engine, EngineOptions, Hub};
use antiphon::raft::{
    Applied, ApplyObserver, ClusterTime, Identity, IdentityKeeper, Installer, ListedMember, LogTail, Me,
    Member, Node, Parts, PeerLimits, PeerTransport, Peers, found_listed,
};
use antiphon::router::{self, PullBudget};
use antiphon::server::chores::{Chores, PeerPort};
use antiphon::server::damage;
use antiphon::server::opening::{Unopened, open_log};
use antiphon::state::{ClusterLimits, SharedTopic};
use antiphon::storage::sim_disk::Dice;
use antiphon::storage::{
    AtStart, Disk, Log, Mark, MemoryCheckpoints, OpenError, Room, SimDisk, Stores, Verdict,
    lay_rest_of_ballast, release_ballast_if_full,
};
use antiphon::task::{self, Scope};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::network::SimTransport;
use crate::oracle::Oracle;
use crate::seeded::{SimClock, SimRandom, Throw};
use crate::wide::SimRemote;
use crate::world::{MEMBERS, MIN_FREE_BYTES, World};

pub const DATA_DIR: &str = "/data";
pub const SECRET: &[u8] = b"a secret of the simulation";

/// Few, so that mirrors have to share them.
const MIRROR_CONNECTIONS: usize = 2;

/// What outlives a member's process, and the process if there is one.
pub struct Machine {
    pub disk: SimDisk,
    /// Every batch is written at once and as a whole, so what a crash leaves is what is in there.
    pub checkpoints: Arc<MemoryCheckpoints>,
    pub clock: Arc<SimClock>,
    dice: Dice,
    /// Counts the processes, so that a late word of an earlier one is known as such.
    pub life: u32,
    pub running: Option<Running>,
    /// The disk was told to fail: the member may end by itself, or fail to start.
    pub is_harmed: bool,
    /// Something on the disk may not be what was written: reads of it fail, and the member may end and start blank.
    pub is_rotten: bool,
    /// Until then the process may lack files: reads may fail, and so may a start.
    pub lacks_files_until: Option<Instant>,
    /// Its disk is so full that it may end.
    pub is_full_up: bool,
    /// What it had was set aside, and it has not become a voter since.
    had_data: bool,
    /// It lost everything but the file that says who it is.
    pub has_lost_store: bool,
    /// The head of the checkpoint before a newer version wrote it.
    pub was_before: Option<Vec<u8>>,
}

/// A process.
pub struct Running {
    pub scope: Arc<Scope>,
    /// `None` until it has started.
    pub engine: Option<(Engine, Arc<Applied>)>,
    pub node: Option<Arc<Node>>,
}

impl Machine {
    pub fn new(mut dice: Dice, disk_bytes: Option<u64>) -> Self {
        let offset_ms = dice.between(0, 2000) as i64 - 1000;
        let disk = SimDisk::new(dice.roll());
        disk.set_size(disk_bytes);
        Machine {
            disk,
            checkpoints: Arc::default(),
            clock: Arc::new(SimClock::new(offset_ms)),
            dice,
            life: 0,
            running: None,
            is_harmed: false,
            is_rotten: false,
            lacks_files_until: None,
            is_full_up: false,
            had_data: false,
            has_lost_store: false,
            was_before: None,
        }
    }

    /// Whether reads may fail here for what was done to the disk.
    pub fn may_fail_to_read(&self) -> bool {
        self.is_rotten || self.is_harmed || self.lacks_files()
    }

    /// Whether the member may end for this reason.
    fn may_end(&self, reason: &str) -> bool {
        let may_fail_to_start = self.lacks_files() || self.was_before.is_some();
        // What it does once in its life, at its first start, waits for no descriptor.
        let is_unstarted = reason.starts_with(UNSTARTED) || reason.starts_with(UNWRITTEN);
        self.is_harmed || self.is_rotten || self.is_full_up || (may_fail_to_start && is_unstarted)
    }

    pub fn lose_checkpoints(&mut self) {
        self.checkpoints = Arc::default();
    }

    fn lacks_files(&self) -> bool {
        self.lacks_files_until.is_some_and(|until| Instant::now() < until)
    }

    /// Ends the process, if there is one. What it wrote is still there.
    pub fn kill(&mut self) {
        self.had_data &= !self.is_voter();
        if let Some(running) = self.running.take() {
            running.scope.end();
        }
    }

    /// Ends the process and forgets what was not synced.
    pub fn lose_power(&mut self) {
        self.kill();
        let seed = self.dice.roll();
        self.disk = self.disk.crash(seed);
        self.is_harmed = false;
    }

    /// Ends the process and takes its disk away: the next one starts on a blank one.
    pub fn lose_disk(&mut self, disk_bytes: Option<u64>) {
        self.kill();
        let seed = self.dice.roll();
        self.disk = SimDisk::new(seed);
        self.disk.set_size(disk_bytes);
        self.checkpoints = Arc::default();
        (self.is_harmed, self.is_rotten, self.is_full_up) = (false, false, false);
        (self.had_data, self.has_lost_store, self.was_before) = (false, false, None);
    }

    /// What it had is of no use any more: as `storage/aside.rs`, on a disk of its own.
    fn set_aside(&mut self, disk_bytes: Option<u64>) {
        self.lose_disk(disk_bytes);
        self.had_data = true;
    }

    /// Whether the member votes in a membership that it has applied.
    pub fn is_voter(&self) -> bool {
        let node = self.running.as_ref().and_then(|running| running.node.as_ref());
        node.is_some_and(|node| node.is_settled_voter())
    }
}

/// Starts the process of a member, unless it runs.
pub fn start(world: &Arc<World>, number: usize) {
    // As long as all others stand, since a list that is wrong for a blank member too is no fault of ours.
    let others_vote = (0..MEMBERS).all(|other| other == number || world.machines[other].lock().is_voter());
    let mut machine = world.machines[number].lock();
    if machine.running.is_some() {
        return;
    }
    machine.life += 1;
    let life = machine.life;
    if others_vote && machine.life > 1 && machine.dice.chance(20) {
        world.net.relocate(number);
        world.trace.note(format_args!("m{} moves to {}", number + 1, world.net.address(number)));
    }
    let scope = Scope::new();
    machine.running = Some(Running { scope: scope.clone(), engine: None, node: None });
    drop(machine);
    world.net.lighten(number);
    world.trace.note(format_args!("m{} starts, life {life}", number + 1));
    let world = world.clone();
    scope.spawn(async move {
        let ending = live(&world, number, life).await;
        let mut machine = world.machines[number].lock();
        if machine.life != life {
            return;
        }
        let reason = match ending {
            Ending::StartAgain => {
                machine.kill();
                drop(machine);
                world.trace.note(format_args!("m{} starts from the state of another", number + 1));
                return start(&world, number);
            }
            Ending::Damaged(why) => {
                if !machine.is_rotten || machine.was_before.is_some() {
                    let who = number + 1;
                    world.trace.complain(format_args!("m{who} finds damage that nobody did: {why}"));
                }
                machine.set_aside(world.setup.disk_bytes);
                drop(machine);
                world.trace.note(format_args!("m{} starts blank: {why}", number + 1));
                return start(&world, number);
            }
            Ending::Failed(reason) => reason,
        };
        if machine.may_end(&reason) {
            world.trace.note(format_args!("m{} ended: {reason}", number + 1));
        } else {
            world.trace.complain(format_args!("m{} ended by itself: {reason}", number + 1));
        }
        machine.kill();
    });
}

/// Before the line of a member that could not start, and of one that could not note which cluster it is part of.
const UNSTARTED: &str = "cannot start: ";
const UNWRITTEN: &str = "cannot write the identity file";

/// Why a member does not go on.
enum Ending {
    StartAgain,
    /// What it has is damaged, and the others can fill it again.
    Damaged(String),
    Failed(String),
}

/// Why a member could not start, and what that says of its data.
struct Unstarted {
    verdict: Verdict,
    line: String,
}

/// What is not known to be about the data is not.
impl From<String> for Unstarted {
    fn from(line: String) -> Self {
        Unstarted { verdict: Verdict::Refused, line }
    }
}

impl From<std::io::Error> for Unstarted {
    fn from(error: std::io::Error) -> Self {
        Unstarted { verdict: Verdict::of(&error), line: error.to_string() }
    }
}

impl From<Unopened> for Unstarted {
    fn from(unopened: Unopened) -> Self {
        Unstarted { verdict: unopened.verdict, line: unopened.line.to_string() }
    }
}

impl From<OpenError> for Unstarted {
    fn from(error: OpenError) -> Self {
        Unstarted { verdict: error.verdict(), line: error.to_string() }
    }
}

/// Runs a member until it cannot go on, or took over the state of another.
async fn live(world: &Arc<World>, number: usize, life: u32) -> Ending {
    let disk = world.machines[number].lock().disk.clone();
    // A mark that an earlier process left.
    match Mark::read(&disk, Path::new(DATA_DIR)) {
        Ok(Some(mark)) => return Ending::Damaged(mark.why),
        Ok(None) => {}
        Err(error) => return Ending::Failed(format!("{UNSTARTED}{error}")),
    }
    let Wired { node, log, installer, mut failed } = match wire(world, number, life).await {
        Ok(wired) => {
            let machine = world.machines[number].lock();
            if machine.has_lost_store || machine.was_before.is_some() {
                world.trace.complain(format_args!("m{} starts on what it must not start on", number + 1));
            }
            wired
        }
        Err(Unstarted { verdict, line }) => {
            return match verdict.at_start(true) {
                AtStart::SetAside => Ending::Damaged(line),
                AtStart::End => Ending::Failed(format!("{UNSTARTED}{line}")),
            };
        }
    };
    let reason = tokio::select! {
        biased;
        reason = node.stopped() => reason,
        // `None` if all services have ended well, which those that accept and save never do.
        reason = failed.recv() => reason.unwrap_or("its services ended".to_owned()),
        () = installer.installed() => {
            node.shut_down().await;
            log.close();
            return match installer.adopt() {
                Ok(()) => Ending::StartAgain,
                Err(error) => Ending::Failed(format!("cannot start from the state: {error}")),
            };
        }
    };
    match damage::leave_mark(&log, &node, &disk, Path::new(DATA_DIR)).await {
        Ok(()) => Ending::Failed(reason),
        Err(error) => Ending::Failed(format!("{reason}; and no mark of it can be left: {error}")),
    }
}

struct Wired {
    node: Arc<Node>,
    log: Log,
    installer: Arc<Installer>,
    failed: mpsc::Receiver<String>,
}

async fn wire(world: &Arc<World>, number: usize, life: u32) -> Result<Wired, Unstarted> {
    let (disk, checkpoints, clock, mut dice, had_data) = {
        let mut machine = world.machines[number].lock();
        let dice = machine.dice.fork();
        (machine.disk.clone(), machine.checkpoints.clone(), machine.clock.clone(), dice, machine.had_data)
    };
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let random = Arc::new(SimRandom::new(dice.roll()));
    let transport = Arc::new(SimTransport { net: world.net.clone(), number });
    let name = format!("m{}", number + 1);
    let dir = Path::new(DATA_DIR);

    let own_address = world.net.address(number);
    let listed: Vec<ListedMember> =
        (0..MEMBERS).map(|number| (format!("m{}", number + 1), world.net.address(number))).collect();
    let listener = transport.listen(&own_address).await?;
    release_ballast_if_full(&*disk, dir)?;
    let identity = Identity::open(&*disk, dir, &world.name, &name, &*random)?;
    let room_disk = disk.clone();
    let segment_bytes = world.setup.log_options.segment_bytes;
    let stores = Stores::open(disk.clone(), dir, segment_bytes, checkpoints);
    let stores = Arc::new(stores?);
    let (log, writer) = open_log(&disk, &stores, &identity, world.setup.log_options.clone())?;
    let applied = Applied::load(log.clone(), stores.open_checkpoint()?, world.setup.block_bytes)?;
    if applied.index() > log.last_id().map_or(0, |id| id.index) {
        let line = format!("the checkpoint is at {}, the log ends at {:?}", applied.index(), log.last_id());
        return Err(Unstarted { verdict: Verdict::Damage, line });
    }
    log.check_live()?;
    // Nothing depends on it.
    let _ = lay_rest_of_ballast(&*disk, dir);
    world.trace.note(format_args!("{name} opens at {:?}, applied {}", log.last_id(), applied.index()));
    let sync_us = world.setup.sync_us;
    task::spawn(writer.run_as_slow_task(move || {
        tokio::time::sleep(Duration::from_micros(dice.between(sync_us.0, sync_us.1)))
    }));

    let member =
        Member { name, peer_address: own_address.clone(), client_url: format!("http://{own_address}") };
    let me = Me::new(&identity, member, SECRET.to_vec(), had_data);
    let keeper = IdentityKeeper::new(disk, dir.to_path_buf(), identity, me.clone());
    let peers = Peers::new(me, transport, random.clone(), listed.clone());
    let hub = Arc::new(Hub::default());
    let witness = Arc::new(Witness {
        number,
        hub: hub.clone(),
        applied: applied.clone(),
        oracle: world.oracle.clone(),
        check_every: world.setup.check_every,
        batches: AtomicU64::default(),
    });
    let time = ClusterTime::new(clock);
    let room = Room::new(room_disk.clone(), dir.to_path_buf(), MIN_FREE_BYTES);
    let installer = Installer::new(log.clone(), room.clone(), stores);
    let parts = Parts {
        log: log.clone(),
        applied: applied.clone(),
        observer: witness,
        time,
        room: room.clone(),
        installer: installer.clone(),
        random: random.clone(),
    };
    let node = Node::start(peers, parts, world.setup.timers).await?;

    let (failure, failed) = mpsc::channel(4);
    let peer_port = PeerPort {
        listener,
        keeper: keeper.clone(),
        limits: PeerLimits::default(),
        others: (0..MEMBERS).filter(|other| *other != number).map(|other| listed[other].1.clone()).collect(),
    };
    let tail = LogTail {
        entries: world.setup.kept_log_entries,
        bytes: world.setup.kept_log_bytes,
        patience: world.setup.lag_patience,
    };
    let chores = Chores {
        node: node.clone(),
        log: log.clone(),
        applied: applied.clone(),
        room,
        disk: room_disk,
        data_dir: dir.to_path_buf(),
        is_restored: false,
        tail: Some(tail),
        peers: Some(peer_port),
        can_be_filled_again: true,
    };
    chores.all().into_iter().for_each(|(name, chore)| serve(name, chore, &failure));
    let (founder, founder_random) = (node.clone(), random.clone());
    let list = listed.clone();
    let founding = async move {
        found_listed(&founder, &keeper, &*founder_random, &list).await.map_err(std::io::Error::other)
    };
    serve("founding", founding, &failure);
    task::spawn(follow_leader(world.clone(), number, node.clone()));

    let options = EngineOptions {
        request_timeout: Duration::from_millis(world.setup.request_timeout_ms),
        quorum_loss_after: Duration::from_millis(2 * world.setup.timers.election_timeout_max_ms + 1000),
        limits: ClusterLimits::default(),
        max_watch_sessions: 0,
        watch_session_ttl: Duration::from_secs(300),
        max_streams: 0,
        token_keys: Arc::default(),
    };
    let engine = Engine::new(node.clone(), log.clone(), hub, random.clone(), options);
    let remote = Arc::new(SimRemote { wide: world.wide.clone(), cluster: world.cluster });
    let routing = router::Context {
        engine: engine.clone(),
        remote,
        pulls: PullBudget::with_topics_bytes(MIRROR_CONNECTIONS, world.setup.topics_bytes()),
        random,
    };
    serve("routers", router::run_routers(routing), &failure);
    let mut machine = world.machines[number].lock();
    if machine.life == life
        && let Some(running) = &mut machine.running
    {
        running.engine = Some((engine, applied));
        running.node = Some(node.clone());
    }
    Ok(Wired { node, log, installer, failed })
}

fn serve(
    name: &'static str,
    service: impl Future<Output = std::io::Result<()>> + Send + 'static,
    failure: &mpsc::Sender<String>,
) {
    let failure = failure.clone();
    task::spawn(async move {
        if let Err(error) = service.await {
            let _ = failure.send(format!("{name}: {error}")).await;
        }
    });
}

async fn follow_leader(world: Arc<World>, number: usize, node: Arc<Node>) {
    let mut leadership = node.leadership();
    while leadership.changed().await.is_ok() {
        let leader = {
            let now = leadership.borrow_and_update();
            (now.term, now.leader.clone())
        };
        if let (term, Some(antiphon::raft::Leader::Here)) = leader {
            world.trace.note(format_args!("m{} leads in term {term}", number + 1));
        }
    }
}

/// Compares the state after every batch of entries, looks at all of it after some, and passes the news on.
struct Witness {
    number: usize,
    hub: Arc<Hub>,
    applied: Arc<Applied>,
    oracle: Arc<Oracle>,
    check_every: u64,
    batches: AtomicU64,
}

impl ApplyObserver for Witness {
    fn topics_changed(&self, topics: &[Arc<SharedTopic>]) {
        let (index, digest) = self.applied.digest();
        self.oracle.digest(self.number, index, digest);
        if self.batches.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.check_every) {
            self.oracle.state(self.number, index, self.applied.check(false));
        }
        self.hub.topics_changed(topics);
    }
}

/// A member's state: `None` while it is down or starting.
pub fn engine_of(machine: &Mutex<Machine>) -> Option<(Engine, Arc<Applied>, Arc<Scope>)> {
    let machine = machine.lock();
    let running = machine.running.as_ref()?;
    let (engine, applied) = running.engine.as_ref()?;
    Some((engine.clone(), applied.clone(), running.scope.clone()))
}
