//! One simulated member: wired as `server.rs` does it, but for HTTP, and ended like a machine.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use antiphon::engine::{Engine, EngineOptions, Hub};
use antiphon::raft::{
    Applied, ApplyObserver, ClusterTime, Export, Identity, IdentityKeeper, Installer, ListedMember, LogTail,
    Me, Member, Node, Parts, PeerLimits, PeerTransport, Peers, accept_peers, clear_garbage, found_listed,
    free_space, index_log, keep_membership, purge_log, seek_admission,
};
use antiphon::router::{self, PullBudget};
use antiphon::state::{ClusterLimits, SharedTopic};
use antiphon::storage::sim_disk::Dice;
use antiphon::storage::{Disk, Log, MemoryCheckpoints, Room, SimDisk, Stores};
use antiphon::task::{self, Scope};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::network::SimTransport;
use crate::oracle::Oracle;
use crate::seeded::{SimClock, SimRandom, Throw};
use crate::wide::SimRemote;
use crate::world::{MEMBERS, World};

pub const DATA_DIR: &str = "/data";
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(250);

/// Few, so that mirrors have to share them.
const MIRROR_CONNECTIONS: usize = 2;

/// What outlives a member's process, and the process if there is one.
pub struct Machine {
    pub disk: SimDisk,
    /// Every batch is written at once and as a whole, so what a crash leaves is what is in there.
    checkpoints: Arc<MemoryCheckpoints>,
    pub clock: Arc<SimClock>,
    dice: Dice,
    /// Counts the processes, so that a late word of an earlier one is known as such.
    pub life: u32,
    pub running: Option<Running>,
    /// The disk was told to fail: the member may end by itself, or fail to start.
    pub is_harmed: bool,
}

/// A process.
pub struct Running {
    pub scope: Arc<Scope>,
    /// `None` until it has started.
    pub engine: Option<(Engine, Arc<Applied>)>,
    node: Option<Arc<Node>>,
}

impl Machine {
    pub fn new(mut dice: Dice) -> Self {
        let offset_ms = dice.between(0, 2000) as i64 - 1000;
        Machine {
            disk: SimDisk::new(dice.roll()),
            checkpoints: Arc::default(),
            clock: Arc::new(SimClock::new(offset_ms)),
            dice,
            life: 0,
            running: None,
            is_harmed: false,
        }
    }

    /// Ends the process, if there is one. What it wrote is still there.
    pub fn kill(&mut self) {
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
    pub fn lose_disk(&mut self) {
        self.kill();
        let seed = self.dice.roll();
        self.disk = SimDisk::new(seed);
        self.checkpoints = Arc::default();
        self.is_harmed = false;
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
            Ending::Failed(reason) => reason,
        };
        if machine.is_harmed {
            world.trace.note(format_args!("m{} ended: {reason}", number + 1));
        } else {
            world.trace.complain(format_args!("m{} ended by itself: {reason}", number + 1));
        }
        machine.kill();
    });
}

/// Why a member does not go on.
enum Ending {
    StartAgain,
    Failed(String),
}

/// Runs a member until it cannot go on, or took over the state of another.
async fn live(world: &Arc<World>, number: usize, life: u32) -> Ending {
    let Wired { node, log, installer, mut failed } = match wire(world, number, life).await {
        Ok(wired) => wired,
        Err(reason) => return Ending::Failed(format!("cannot start: {reason}")),
    };
    tokio::select! {
        biased;
        reason = node.stopped() => Ending::Failed(reason),
        // `None` if all services have ended well, which those that accept and save never do.
        reason = failed.recv() => Ending::Failed(reason.unwrap_or("its services ended".to_owned())),
        () = installer.installed() => {
            node.shut_down().await;
            log.close();
            match installer.adopt() {
                Ok(()) => Ending::StartAgain,
                Err(error) => Ending::Failed(format!("cannot start from the state: {error}")),
            }
        }
    }
}

struct Wired {
    node: Arc<Node>,
    log: Log,
    installer: Arc<Installer>,
    failed: mpsc::Receiver<String>,
}

async fn wire(world: &Arc<World>, number: usize, life: u32) -> Result<Wired, String> {
    let (disk, checkpoints, clock, mut dice) = {
        let mut machine = world.machines[number].lock();
        (machine.disk.clone(), machine.checkpoints.clone(), machine.clock.clone(), machine.dice.fork())
    };
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let random = Arc::new(SimRandom::new(dice.roll()));
    let transport = Arc::new(SimTransport { net: world.net.clone(), number });
    let name = format!("m{}", number + 1);
    let dir = Path::new(DATA_DIR);

    let own_address = world.net.address(number);
    let listed: Vec<ListedMember> =
        (0..MEMBERS).map(|number| (format!("m{}", number + 1), world.net.address(number))).collect();
    let listener = transport.listen(&own_address).await.map_err(|error| error.to_string())?;
    let identity = Identity::open(&*disk, dir, &world.name, &name, &*random)?;
    let room_disk = disk.clone();
    // A cluster of several writes none.
    let export = Export::new(disk.clone(), dir.to_path_buf());
    let segment_bytes = world.setup.log_options.segment_bytes;
    let stores = Stores::open(disk.clone(), dir, segment_bytes, checkpoints);
    let stores = Arc::new(stores.map_err(|error| error.to_string())?);
    let (log, writer) = Log::open(disk.clone(), &stores.log_dir(), world.setup.log_options.clone())
        .map_err(|error| error.to_string())?;
    let checkpoint = stores.open_checkpoint().map_err(|error| error.to_string())?;
    let applied = Applied::load(log.clone(), checkpoint).map_err(|error| error.to_string())?;
    if applied.index() > log.last_id().map_or(0, |id| id.index) {
        return Err(format!("the checkpoint is at {}, the log ends at {:?}", applied.index(), log.last_id()));
    }
    world.trace.note(format_args!("{name} opens at {:?}, applied {}", log.last_id(), applied.index()));
    let sync_us = world.setup.sync_us;
    task::spawn(writer.run_as_slow_task(move || {
        tokio::time::sleep(Duration::from_micros(dice.between(sync_us.0, sync_us.1)))
    }));

    let member =
        Member { name, peer_address: own_address.clone(), client_url: format!("http://{own_address}") };
    let me = Me::new(&identity, member, b"a secret of the simulation".to_vec(), false);
    let keeper = IdentityKeeper::new(disk, dir.to_path_buf(), identity, me.clone());
    let peers = Peers::new(me, transport, random.clone(), listed.clone());
    let hub = Arc::new(Hub::default());
    let witness = Arc::new(Witness {
        number,
        hub: hub.clone(),
        applied: applied.clone(),
        oracle: world.oracle.clone(),
    });
    let time = ClusterTime::new(clock);
    // Simulated disks are large enough.
    let room = Room::new(room_disk, dir.to_path_buf(), 0);
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
    serve("following the cluster", node.clone().follow(), &failure);
    serve("peers", accept_peers(listener, node.clone(), keeper.clone(), PeerLimits::default()), &failure);
    serve("checkpoint", applied.clone().save_periodically(CHECKPOINT_INTERVAL, room.clone()), &failure);
    serve("indexing the log", index_log(log.indexer(), applied.clone(), room.clone()), &failure);
    let tail = LogTail {
        entries: world.setup.kept_log_entries,
        bytes: world.setup.kept_log_bytes,
        patience: world.setup.lag_patience,
    };
    serve("purging the log", purge_log(node.clone(), export, tail), &failure);
    serve("clearing the checkpoint", clear_garbage(applied.clone(), room.clone()), &failure);
    serve("freeing space", free_space(log.reclaimer(), applied.clone()), &failure);
    let (founder, founder_random) = (node.clone(), random.clone());
    let list = listed.clone();
    let founding = async move {
        found_listed(&founder, &keeper, &*founder_random, &list).await.map_err(std::io::Error::other)
    };
    serve("founding", founding, &failure);
    let others = (0..MEMBERS).filter(|other| *other != number).map(|other| listed[other].1.clone()).collect();
    serve("admission", seek_admission(node.clone(), others), &failure);
    serve("membership", keep_membership(node.clone()), &failure);
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
        pulls: PullBudget::new(MIRROR_CONNECTIONS),
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

/// Compares the state after every batch of entries, and passes the news on.
struct Witness {
    number: usize,
    hub: Arc<Hub>,
    applied: Arc<Applied>,
    oracle: Arc<Oracle>,
}

impl ApplyObserver for Witness {
    fn topics_changed(&self, topics: &[Arc<SharedTopic>]) {
        let (index, digest) = self.applied.digest();
        self.oracle.digest(self.number, index, digest);
        self.oracle.state(self.number, index, self.applied.check(false));
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
