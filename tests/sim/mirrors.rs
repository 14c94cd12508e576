//! Several clusters, and mirrors between them: who mirrors what, who writes, what goes wrong on the way, and what
//! must have become of it all in the end.
//!
//! Topics are the nodes of a graph, of which routers are the edges; what is written in one must come to all that can
//! be reached from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use antiphon::engine::{Consistency, PageQuery};
use antiphon::error::Code;
use antiphon::filter::{Filter, TagMatch};
use antiphon::record::Record;
use antiphon::state::{
    Append, Create, Draft, Outcome, PutRouter, Relays, Remote, RouterConfig, Start, TopicConfig,
};
use antiphon::storage::sim_disk::Dice;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::calls::{self, Told};
use crate::copies::Book;
use crate::oracle::{Fate, data, tag};
use crate::reads::query;
use crate::rest::Rest;
use crate::seeded::Throw;
use crate::trace::Trace;
use crate::wide::{Wide, url};
use crate::world::{MEMBERS, World};

pub const TOPICS: [&str; 5] = ["far-steady", "far-local", "far-fleeting", "far-losing", "far-pruned"];
/// Mirrors wait for up to 30 s after failures, and a chain of them as often as it is long.
pub const PATIENCE: Duration = Duration::from_secs(240);
pub const LOOK_INTERVAL: Duration = Duration::from_millis(300);

/// A topic in a cluster.
pub type Spot = (usize, &'static str);

/// A router that is to be there in the end.
pub struct Planned {
    pub cluster: usize,
    pub name: String,
    pub config: RouterConfig,
    /// From where to where everything goes.
    pub edges: Vec<(Spot, Spot)>,
}

/// What the clusters of a history have with each other.
pub struct Mirroring {
    worlds: Vec<Arc<World>>,
    wide: Arc<Wide>,
    trace: Arc<Trace>,
    book: Arc<Book>,
    routers: Arc<Vec<Planned>>,
    /// The tags of which records were deleted somewhere.
    pruned: Arc<Mutex<BTreeSet<String>>>,
    is_ordered: bool,
    /// No router is deleted and made anew, which would not tell what went meanwhile.
    is_kept: bool,
    running: Vec<JoinHandle<()>>,
}

/// Begins to mirror, to write, to read and to spoil it.
pub fn begin(worlds: &[Arc<World>], trace: Trace, dice: &mut Dice) -> Mirroring {
    let trace = Arc::new(trace);
    let (routers, is_ordered, is_strict) = plan(worlds.len(), dice);
    if is_strict {
        worlds[0].wide.be_strict();
    }
    for router in &routers {
        trace.note(format_args!("c{} shall have {}: {:?}", router.cluster + 1, router.name, router.config));
    }
    let mut mirroring = Mirroring {
        worlds: worlds.to_vec(),
        wide: worlds[0].wide.clone(),
        book: Arc::new(Book::new(trace.of(""))),
        trace,
        routers: Arc::new(routers),
        pruned: Arc::default(),
        is_ordered,
        is_kept: dice.chance(50),
        running: Vec::new(),
    };
    let mut running = vec![tokio::spawn(spoil(worlds.to_vec(), dice.fork()))];
    for world in worlds {
        let operator = Operator {
            world: world.clone(),
            routers: mirroring.routers.clone(),
            pause_ms: dice.between(300, 5000),
            deletes: !mirroring.is_kept,
        };
        running.push(tokio::spawn(operate(operator, dice.fork())));
        for _ in 0..dice.between(1, 3) {
            let user = User {
                world: world.clone(),
                book: mirroring.book.clone(),
                pruned: mirroring.pruned.clone(),
                pause_ms: dice.between(20, 500),
                cursors: BTreeMap::new(),
            };
            running.push(tokio::spawn(user.run(dice.fork())));
        }
    }
    mirroring.running = running;
    mirroring
}

/// From which cluster each mirrors.
fn topology(count: usize, dice: &mut Dice) -> Vec<(usize, usize)> {
    match (count, dice.below(6)) {
        (2, 0) => vec![(0, 1)],
        (2, _) => vec![(0, 1), (1, 0)],
        // A ring, a line there and back, a line, a star around the second, and all with all.
        (_, 0) => vec![(0, 1), (1, 2), (2, 0)],
        (_, 1) => vec![(0, 1), (1, 0), (1, 2), (2, 1)],
        (_, 2) => vec![(0, 1), (1, 2)],
        (_, 3) => vec![(0, 2), (1, 2), (2, 0)],
        _ => vec![(0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0)],
    }
}

/// The routers, whether none of them leaves holes that another one fills later, and whether remotes bring only what
/// somebody has seen.
fn plan(count: usize, dice: &mut Dice) -> (Vec<Planned>, bool, bool) {
    let mut routers = Vec::new();
    let mut is_ordered = true;
    let is_prefix = dice.chance(60);
    // Each remote brings only what somebody has seen and put again.
    let is_strict = dice.chance(25);
    let mirror = |(from, to): (usize, usize), source: &str, dest: &str, dice: &mut Dice| {
        let first = dice.below(MEMBERS as u64) as usize;
        let of =
            (0..dice.between(1, MEMBERS as u64) as usize).map(|more| url(from, (first + more) % MEMBERS));
        // Without a word somebody has to look, and put it again.
        let relays = (!is_strict && !dice.chance(30)).then_some(Relays::All);
        let remote = Some(Remote { urls: of.collect(), token: None, relays });
        let name = format!("{source} of c{} to {dest}", from + 1).replace(' ', "-").replace('*', "any");
        let mut config = RouterConfig { start: Start::Earliest, remote, ..RouterConfig::local(source, dest) };
        config.preserve_node = dice.chance(70);
        Planned { cluster: to, name, config, edges: Vec::new() }
    };
    for (from, to) in topology(count, dice) {
        let same = |topic: &'static str| ((from, topic), (to, topic));
        if is_prefix {
            let edges = TOPICS.map(same).to_vec();
            routers.push(Planned { edges, ..mirror((from, to), "far-*", "*", dice) });
        }
        for topic in TOPICS {
            // Two mirrors of the same are one too many, and must do no harm.
            if !is_prefix || dice.chance(10) {
                routers.push(Planned { edges: vec![same(topic)], ..mirror((from, to), topic, topic, dice) });
            }
        }
        if dice.chance(20) {
            let (source, dest) =
                if dice.chance(50) { (TOPICS[0], TOPICS[1]) } else { (TOPICS[1], TOPICS[0]) };
            let edges = vec![((from, source), (to, dest))];
            routers.push(Planned { edges, ..mirror((from, to), source, dest, dice) });
        }
        if dice.chance(10) {
            is_ordered = false;
            let mut filtered = mirror((from, to), TOPICS[0], TOPICS[1], dice);
            filtered.config.filter = Filter::parse(r#"["tag","Eq","t1"]"#).ok();
            filtered.name += "-some";
            routers.push(filtered);
        }
    }
    for cluster in 0..count {
        for (source, dest) in [(TOPICS[0], TOPICS[1]), (TOPICS[1], TOPICS[0])] {
            if dice.chance(35) {
                let config = RouterConfig {
                    allow_cycle: true,
                    start: Start::Earliest,
                    ..RouterConfig::local(source, dest)
                };
                let edges = vec![((cluster, source), (cluster, dest))];
                routers.push(Planned { cluster, name: format!("here-{source}"), config, edges });
            }
        }
    }
    // What was left out comes when somebody has seen it, and later than what is behind it.
    (routers, is_ordered && !is_strict, is_strict)
}

/// Who runs the routers of a cluster.
struct Operator {
    world: Arc<World>,
    routers: Arc<Vec<Planned>>,
    pause_ms: u64,
    deletes: bool,
}

/// Makes the routers of a cluster and plays with them, until the history is over.
async fn operate(operator: Operator, mut dice: Dice) {
    let Operator { world, routers, pause_ms, deletes } = operator;
    let own: Vec<&Planned> = routers.iter().filter(|router| router.cluster == world.cluster).collect();
    while !world.is_over() && !world.trace.has_complaints() {
        for router in &own {
            let is_there = put(&world, dice.below(MEMBERS as u64) as usize, router).await;
            world.trace.note(format_args!("router {} is there: {is_there}", router.name));
        }
        sleep(dice.time_ms(50, pause_ms)).await;
        if own.is_empty() {
            continue;
        }
        let name = &own[dice.below(own.len() as u64) as usize].name;
        let member = dice.below(MEMBERS as u64) as usize;
        let (what, draft) = match dice.below(10) {
            0..2 if deletes => ("delete", Draft::delete_router(name)),
            2..4 => ("pause", Draft::pause_router(name, true)),
            4..8 => ("resume", Draft::pause_router(name, false)),
            _ => continue,
        };
        let told = calls::propose(&world, member, draft).await;
        world.trace.note(format_args!("{what} router {name}: {told:?}"));
    }
}

pub async fn put(world: &World, member: usize, router: &Planned) -> bool {
    let (name, config) = (router.name.clone(), router.config.clone());
    let told = calls::at(world, member, |engine| async move {
        engine.admit()?;
        engine.put_router(&PutRouter { name: &name, config, is_start_given: true }).await
    });
    match told.await {
        Some(Ok(Outcome::RouterPut { .. })) => true,
        Some(Ok(other)) => {
            world.trace.complain(format_args!("a put of router {} came out as {other:?}", router.name));
            false
        }
        Some(Err(_)) | None => false,
    }
}

/// Cuts the lines between clusters and makes them bad, until the history is over.
async fn spoil(worlds: Vec<Arc<World>>, mut dice: Dice) {
    let wide = worlds[0].wide.clone();
    let pause_ms = dice.between(300, 4000);
    while !worlds.iter().all(|world| world.is_over()) && !worlds[0].trace.has_complaints() {
        sleep(dice.time_ms(50, pause_ms)).await;
        let (one, other) =
            (dice.below(worlds.len() as u64) as usize, dice.below(worlds.len() as u64) as usize);
        match dice.below(13) {
            10.. => wide.set_spoiled(dice.between(1, 50)),
            0..3 => wide.set_cut(one, other, true),
            3..5 => {
                wide.set_cut(one, other, true);
                wide.set_cut(other, one, true);
            }
            5..7 => wide.set_quality(dice.between(1_000, 2_000_000), dice.below(40)),
            _ => wide.mend(),
        }
    }
}

/// Writes, reads and deletes in one cluster.
struct User {
    world: Arc<World>,
    book: Arc<Book>,
    pruned: Arc<Mutex<BTreeSet<String>>>,
    pause_ms: u64,
    /// Epoch and seq.
    cursors: BTreeMap<&'static str, (u64, u64)>,
}

impl User {
    async fn run(mut self, mut dice: Dice) {
        while !self.world.is_over() && !self.world.trace.has_complaints() {
            sleep(dice.time_ms(0, self.pause_ms)).await;
            let member = dice.below(MEMBERS as u64) as usize;
            let topic = TOPICS[dice.below(TOPICS.len() as u64) as usize];
            match dice.below(100) {
                0..55 => self.append(member, topic, &mut dice).await,
                55..90 => self.read(member, topic, &mut dice).await,
                90..93 => self.delete(member).await,
                93..95 => self.prune(member, tag((0, dice.below(4) as u32))).await,
                _ => self.configure(member, &mut dice).await,
            }
        }
    }

    async fn append(&self, member: usize, topic: &'static str, dice: &mut Dice) {
        let count = if dice.chance(8) { dice.between(20, 150) } else { dice.between(1, 4) } as u32;
        let pad_bytes = if dice.chance(10) { dice.between(0, 2000) } else { dice.between(0, 40) } as usize;
        let number = self.book.begin(&self.world.name, topic, count);
        let create = Create::With(TopicConfig::default());
        let append = Append { topic, create, expect_head_seq: None, idempotency_key: None };
        let data: Vec<String> = (0..count).map(|part| data((number, part), pad_bytes)).collect();
        let tags: Vec<String> = (0..count).map(|part| tag((number, part))).collect();
        let records =
            data.iter().zip(&tags).map(|(data, tag)| Record { data, tag: Some(tag), ..Record::default() });
        let draft = Draft::append(&append, records, pad_bytes * data.len());
        let told = calls::propose(&self.world, member, draft).await;
        let fate = match &told {
            Told::Outcome(Outcome::Appended(appended)) => Fate::Acked { first_seq: appended.first_seq },
            Told::Outcome(other) => {
                self.world.trace.complain(format_args!("append {number} to {topic} came out as {other:?}"));
                Fate::Unknown
            }
            Told::Refused(_) | Told::Down => Fate::Refused,
            Told::Unknown => Fate::Unknown,
        };
        self.world
            .trace
            .note(format_args!("m{} append {number} of {count} to {topic}: {fate:?}", member + 1));
        self.book.end(number, fate);
    }

    async fn read(&mut self, member: usize, topic: &'static str, dice: &mut Dice) {
        let (epoch, from_seq) = self.cursors.get(topic).copied().unwrap_or_default();
        let consistency = if dice.chance(50) { Consistency::Strong } else { Consistency::Eventual };
        let mut query = query(from_seq, consistency);
        (query.epoch, query.limit) = ((epoch > 0).then_some(epoch), dice.between(1, 200) as usize);
        match read_page(&self.world, member, topic, query).await {
            Ok(page) => {
                // A member that lags behind may know of an earlier instance only.
                if page.epoch >= epoch {
                    self.book.page(&self.world.name, topic, from_seq, &page);
                    self.cursors.insert(topic, (page.epoch, page.next_from_seq));
                }
            }
            Err(Some(Code::TopicNotFound)) => {
                self.cursors.remove(topic);
            }
            Err(_) => {}
        }
    }

    async fn delete(&self, member: usize) {
        let told = calls::propose(&self.world, member, Draft::delete_topic("far-fleeting", false)).await;
        self.world.trace.note(format_args!("m{} delete far-fleeting: {told:?}", member + 1));
    }

    async fn prune(&self, member: usize, tag: String) {
        self.pruned.lock().insert(tag.clone());
        self.world.trace.note(format_args!("m{} delete {tag} of far-pruned", member + 1));
        let _ = calls::at(&self.world, member, |engine| async move {
            engine.admit()?;
            engine.delete_records("far-pruned", None, Some(TagMatch::Eq(tag))).await
        })
        .await;
    }

    /// Bounds what a cluster keeps of the topic that loses records.
    async fn configure(&self, member: usize, dice: &mut Dice) {
        let mut config = TopicConfig::default();
        match dice.below(3) {
            0 => config.cap_records = dice.between(5, 60),
            1 => config.ttl_ms = dice.between(200, 5000),
            _ => {}
        }
        let told = calls::propose(&self.world, member, Draft::put_topic("far-losing", &config)).await;
        self.world.trace.note(format_args!("m{} put far-losing: {told:?}", member + 1));
    }
}

/// Errors: the code, if the member told one.
pub async fn read_page(
    world: &World,
    member: usize,
    topic: &'static str,
    query: PageQuery,
) -> Result<antiphon::engine::Page, Option<Code>> {
    let read = calls::at(world, member, move |engine| async move {
        engine.admit()?;
        engine.page(topic, query).await
    });
    read.await.ok_or(None)?.map_err(|error| Some(error.code))
}

impl Mirroring {
    /// Lets everything come to rest, and checks it. How many copies there are.
    pub async fn finish(self) -> u64 {
        for running in self.running {
            let _ = running.await;
        }
        let rest = Rest {
            worlds: &self.worlds,
            trace: &self.trace,
            book: &self.book,
            routers: &self.routers,
            pruned: self.pruned.lock().clone(),
            is_kept: self.is_kept,
        };
        self.wide.mend();
        if !rest.has_begun().await || !rest.has_come().await {
            return 0;
        }
        rest.is_quiet().await;
        rest.read_all().await;
        self.book.finish(self.is_ordered)
    }
}
