//! One peer, and the connections to it.
//!
//! A peer is a Raft id, and not an address: the handshake makes sure of the id. So all addresses under which it may
//! be found are tried at once, and one that has become another's does no harm. A connection is made when it is
//! first needed and made again after it broke, with a short pause between failures so that a member that is down
//! costs little. It is made beside the call that needs it, which may have less time than that takes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::{CallError, Connection};
use super::handshake::Lane;
use super::peers::Peers;
use super::rpc::{Body, Kind};
use super::types::{Member, NodeId};
use crate::task;

/// Pause between two attempts to reach a peer.
const DIAL_PAUSE: Duration = Duration::from_millis(100);

/// What became of an attempt, once that is known.
type Dialed = Option<Result<Arc<Connection>, String>>;

#[derive(Default)]
struct LaneSlot(Mutex<LaneState>);

#[derive(Default)]
struct LaneState {
    connection: Option<Arc<Connection>>,
    dialing: Option<watch::Receiver<Dialed>>,
    last_failure: Option<Instant>,
}

/// One peer and the connections to it.
pub struct Peer {
    this: Weak<Peer>,
    peers: Weak<Peers>,
    pub node_id: NodeId,
    pub name: String,
    /// By the membership, or by who told of the peer.
    address: Mutex<String>,
    lanes: [LaneSlot; Lane::COUNT],
    last_problem: Mutex<Option<String>>,
}

impl Peer {
    pub(super) fn new(peers: &Arc<Peers>, node_id: NodeId, member: &Member) -> Arc<Self> {
        Arc::new_cyclic(|this| Peer {
            this: this.clone(),
            peers: Arc::downgrade(peers),
            node_id,
            name: member.name.clone(),
            address: Mutex::new(member.peer_address.clone()),
            lanes: Default::default(),
            last_problem: Mutex::default(),
        })
    }

    pub(super) fn set_address(&self, address: &str) {
        let mut known = self.address.lock();
        if *known != address {
            address.clone_into(&mut known);
        }
    }

    pub(super) fn address(&self) -> String {
        self.address.lock().clone()
    }

    /// The open connection of a lane, made if need be.
    pub async fn connection(&self, lane: Lane) -> Result<Arc<Connection>, CallError> {
        let mut dialing = {
            let state = &mut *self.lanes[lane as usize].0.lock();
            if let Some(open) = state.connection.as_ref().filter(|connection| connection.is_open()) {
                return Ok(open.clone());
            }
            match &state.dialing {
                Some(dialing) => dialing.clone(),
                None if state.last_failure.is_some_and(|at| at.elapsed() < DIAL_PAUSE) => {
                    return Err(CallError::Unreachable(format!("{} is not reachable", self.name)));
                }
                None => state.dialing.insert(self.start_dialing(lane)).clone(),
            }
        };
        let dialed = dialing.wait_for(Option::is_some).await.ok().and_then(|dialed| dialed.clone());
        match dialed {
            Some(Ok(connection)) => Ok(connection),
            Some(Err(problem)) => Err(CallError::Unreachable(problem)),
            None => Err(CallError::Unreachable("this member is shutting down".into())),
        }
    }

    /// Ends the connection of a lane, if there is one.
    pub(super) fn end_connection(&self, lane: Lane) {
        let connection = self.lanes[lane as usize].0.lock().connection.take();
        if let Some(connection) = connection {
            connection.end();
        }
    }

    fn start_dialing(&self, lane: Lane) -> watch::Receiver<Dialed> {
        let (outcome, dialing) = watch::channel(None);
        // `None` only while this peer is being dropped: then the outcome ends without a word.
        if let Some(this) = self.this.upgrade() {
            task::spawn(async move {
                let dialed = this.dial(lane).await;
                {
                    let state = &mut *this.lanes[lane as usize].0.lock();
                    state.dialing = None;
                    state.last_failure = dialed.is_err().then(Instant::now);
                    state.connection = dialed.as_ref().ok().cloned();
                }
                outcome.send_replace(Some(dialed));
            });
        }
        dialing
    }

    async fn dial(&self, lane: Lane) -> Result<Arc<Connection>, String> {
        let peers = self.peers.upgrade().ok_or("this member is shutting down")?;
        match peers.dial_peer(self, lane).await {
            Ok((address, stream)) => {
                self.report(None, &address);
                Ok(Connection::start(stream))
            }
            Err(problems) => {
                let at = |(address, problem): &(String, String)| format!("{address} ({problem})");
                let problem = problems.iter().map(at).collect::<Vec<_>>().join(" and at ");
                self.report(Some(&problem), "");
                Err(format!("no connection at {problem}"))
            }
        }
    }

    fn report(&self, problem: Option<&str>, address: &str) {
        let mut last = self.last_problem.lock();
        if last.as_deref() == problem {
            return;
        }
        let name = &self.name;
        match problem {
            Some(problem) => tracing::warn!("no connection to member {name} at {problem}"),
            None => tracing::info!("connected to member {name} at {address}"),
        }
        *last = problem.map(str::to_owned);
    }

    /// One request and its reply on a lane, at most `timeout` in all.
    pub async fn call(
        &self,
        lane: Lane,
        kind: Kind,
        body: Body,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let start = Instant::now();
        let connected = tokio::time::timeout(timeout, self.connection(lane)).await;
        let connection = connected
            .map_err(|_| CallError::Unreachable(format!("{} is not reachable in time", self.name)))??;
        connection.call(kind, body, timeout.saturating_sub(start.elapsed())).await
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::clock::SystemRandom;
    use crate::raft::connection::{FrameReader, Outgoing, write_frames};
    use crate::raft::handshake::{self, Hello};
    use crate::raft::identity::Identity;
    use crate::raft::peers::Me;
    use crate::raft::transport::{BoxFuture, PeerListener, PeerStream, PeerTransport};

    const SECRET: &[u8] = b"a secret for tests";

    fn member(name: &str, address: &str) -> Member {
        Member { name: name.into(), peer_address: address.into(), client_url: "c".into() }
    }

    /// A network in which member 2 answers at one address, a round trip away, and says that it is at another one.
    struct Far {
        answers_at: &'static str,
        says: &'static str,
        round_trip: Duration,
    }

    impl PeerTransport for Far {
        fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn PeerStream>>> {
            Box::pin(async move {
                tokio::time::sleep(self.round_trip).await;
                if address == "black-hole:1" {
                    std::future::pending::<()>().await;
                }
                if address != self.answers_at {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                let (near, far) = tokio::io::duplex(64 << 10);
                let hello = Hello {
                    cluster: "test".into(),
                    cluster_id: None,
                    node_id: 2,
                    member: member("m2", self.says),
                    is_initialized: true,
                };
                let mut far: Box<dyn PeerStream> = Box::new(far);
                let round_trip = self.round_trip;
                tokio::spawn(async move {
                    // A handshake has two more of them.
                    tokio::time::sleep(2 * round_trip).await;
                    handshake::accept(&mut *far, SECRET, &hello, [3; 16], |_| Ok(())).await.unwrap();
                    let (read, write) = tokio::io::split(far);
                    let (replies, frames) = tokio::sync::mpsc::channel(8);
                    tokio::spawn(write_frames(write, frames, |_| true));
                    let mut reader = FrameReader::new(read, || {});
                    while let Ok(frame) = reader.next().await {
                        let reply = Outgoing { kind: Kind::Reply, id: frame.id, body: Body::default() };
                        replies.send(reply).await.unwrap();
                    }
                });
                Ok(Box::new(near) as Box<dyn PeerStream>)
            })
        }

        fn listen<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn PeerListener>>> {
            Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
        }
    }

    fn peers(transport: Far, listed: &[(&str, &str)]) -> Arc<Peers> {
        let identity = Identity { cluster: "test".into(), member: "m1".into(), node_id: 1, cluster_id: None };
        let me = Me::new(&identity, member("m1", "m1:1"), SECRET.to_vec(), true);
        let listed = listed.iter().map(|(name, at)| ((*name).to_owned(), (*at).to_owned())).collect();
        Peers::new(me, Arc::new(transport), SystemRandom::shared(), listed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_comes_about_also_where_no_call_has_the_time_for_it() {
        let far = Far { answers_at: "m2:1", says: "m2:1", round_trip: Duration::from_millis(200) };
        let peers = peers(far, &[]);
        let peer = peers.peer(2, &member("m2", "m2:1"));
        let call = async || {
            peer.call(Lane::Control, Kind::Status, Body::default(), Duration::from_millis(150)).await
        };
        let mut answered = false;
        for _ in 0..10 {
            answered |= call().await.is_ok();
        }
        assert!(answered, "ten heartbeats of 150 ms, and a handshake of 600 ms");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_is_found_at_any_of_the_addresses_that_may_be_its_own() {
        let far = || Far { answers_at: "new:1", says: "newest:1", round_trip: Duration::from_millis(1) };
        // Where the membership has it nobody answers, or it is a hole; the list of this member has it right.
        for old in ["old:1", "black-hole:1"] {
            let peers = peers(far(), &[("m2", "new:1"), ("m3", "old:1")]);
            let peer = peers.peer(2, &member("m2", old));
            let began = Instant::now();
            assert!(peer.connection(Lane::Control).await.is_ok(), "{old}");
            assert!(began.elapsed() < Duration::from_millis(100), "{old}");
            assert_eq!(peers.told(2).map(|member| member.peer_address), Some("newest:1".to_owned()));
        }
        let peers = peers(far(), &[]);
        let peer = peers.peer(2, &member("m2", "old:1"));
        assert!(peer.connection(Lane::Control).await.is_err());
        // It has called, and said where it is.
        peers.heard_of(2, &member("m2", "new:1"));
        tokio::time::advance(DIAL_PAUSE).await;
        assert!(peer.connection(Lane::Control).await.is_ok());
        // Who is no member any more is forgotten.
        peers.know_only(|node_id| node_id != 2);
        assert_eq!(peers.told(2), None);
    }
}
