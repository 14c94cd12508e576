//! What a leader lets into the log.

use std::path::Path;
use std::sync::Arc;

use antiphon::clock::{SystemClock, SystemRandom};
use antiphon::raft::{
    Applied, ClusterTime, Identity, IdentityKeeper, Installer, Me, Member, Node, Parts, Peers, Proposal,
    TcpTransport, Timers, found_alone,
};
use antiphon::state::{BlockBytes, Draft, Envelope, Outcome};
use antiphon::storage::{Disk, Log, LogOptions, MemoryCheckpoints, Room, SimDisk, Stores};
use bytes::{Bytes, BytesMut};

use crate::{Nobody, Writer};

const DIR: &str = "/data";

/// A cluster of one that leads.
async fn leader() -> (Writer, Arc<Node>) {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
    let (dir, random) = (Path::new(DIR), SystemRandom::shared());
    let identity = Identity::open(&*disk, dir, "test", "m1", &*random).expect("a new directory opens");
    let options = LogOptions { segment_bytes: 64 << 10, ..LogOptions::default() };
    let stores =
        Stores::open(disk.clone(), dir, options.segment_bytes, Arc::new(MemoryCheckpoints::default()));
    let stores = Arc::new(stores.expect("a new store opens"));
    let (log, writer) = Log::open(disk.clone(), &stores.log_dir(), options).expect("a new log opens");
    let thread = writer.run_on_thread().expect("a thread starts");
    let guard = Writer { log: log.clone(), thread: Some(thread) };
    let checkpoint = stores.open_checkpoint().expect("a new checkpoint opens");
    let applied =
        Applied::load(log.clone(), checkpoint, BlockBytes::default()).expect("an empty checkpoint loads");
    let member = Member { name: "m1".into(), ..Member::default() };
    let me = Me::new(&identity, member, Vec::new(), false);
    let keeper = IdentityKeeper::new(disk.clone(), dir.to_path_buf(), identity, me.clone());
    let room = Room::new(disk, dir.to_path_buf(), 0);
    let parts = Parts {
        log: log.clone(),
        applied,
        observer: Arc::new(Nobody),
        time: ClusterTime::new(SystemClock::shared()),
        room: room.clone(),
        installer: Installer::new(log, room, stores),
        random: random.clone(),
    };
    let timers = Timers { heartbeat_ms: 50, election_timeout_min_ms: 150, election_timeout_max_ms: 300 };
    let peers = Peers::new(me, TcpTransport::shared(), random.clone(), Vec::new());
    let node = Node::start(peers, parts, timers).await.expect("a node starts");
    tokio::spawn(node.clone().follow());
    found_alone(&node, &keeper, &*random).await.expect("a cluster is founded");
    let mut leadership = node.leadership();
    leadership.wait_for(|now| now.leader.is_some()).await.expect("it leads");
    (guard, node)
}

fn changed(command: &Bytes, at: usize, byte: u8) -> Bytes {
    let mut bytes = BytesMut::from(&command[..]);
    bytes[at] = byte;
    bytes.freeze()
}

/// A newer member may forward kinds that its leader does not know, and a broken one anything. In the log it would
/// end every member that cannot read it, at every start.
#[tokio::test]
async fn a_command_that_the_leader_cannot_read_never_gets_into_the_log() {
    let (_guard, node) = leader().await;
    let envelope = Envelope { node_id: node.node_id(), session: 7, ..Envelope::default() };
    let open = Draft::open_session().seal(envelope);
    let delete = |number| Draft::delete_topic("t", false).seal(Envelope { number, ..envelope });
    // The version of the entry, and the kind of the command.
    let (newer_form, newer_kind) = (changed(&open, 0, 0xfe), changed(&open, 1, 0xfe));
    let cut_short = delete(1).slice(..delete(1).len() - 1);
    let commands = vec![open, newer_form, newer_kind, delete(0), cut_short, Bytes::new()];
    let proposals = node.propose_many_here(commands).await;
    let unreadable = |proposal: &Proposal| *proposal == Proposal::Unreadable;
    let are_unreadable: Vec<bool> = proposals.iter().map(unreadable).collect();
    assert_eq!(are_unreadable, [false, true, true, false, true, true], "{proposals:?}");
    assert_eq!(proposals[0], Proposal::Done(Outcome::SessionOpened));
    assert!(matches!(proposals[3], Proposal::Done(_)));
    assert!(matches!(node.propose_many_here(vec![delete(2)]).await[..], [Proposal::Done(_)]), "it goes on");
    node.shut_down().await;
}
