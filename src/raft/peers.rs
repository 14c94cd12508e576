//! The peers of this member, and the connections to them.
//!
//! A connection is made when it is first needed and made again after it broke, with a short pause between
//! failures so that a member that is down costs little. What the operator should know (a peer that cannot
//! be reached, or that refuses us) is logged once per change, not per attempt.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::{CallError, Connection};
use super::handshake::{self, Call, HANDSHAKE_TIMEOUT, HandshakeError, Hello, Lane};
use super::identity::{ClusterId, Identity};
use super::rpc::{Body, Kind};
use super::transport::PeerTransport;
use super::types::{Member, NodeId};
use crate::clock::Random;

/// Pause between two attempts to reach a peer.
const DIAL_PAUSE: Duration = Duration::from_millis(100);

/// What this member tells its peers of itself.
pub struct Me {
    pub cluster: String,
    pub node_id: NodeId,
    pub member: Member,
    secret: Vec<u8>,
    changing: RwLock<(Option<ClusterId>, bool)>,
    seen_membership: AtomicU64,
    end: watch::Sender<Option<String>>,
}

impl Me {
    pub fn new(identity: &Identity, member: Member, secret: Vec<u8>, is_initialized: bool) -> Arc<Self> {
        Arc::new(Me {
            cluster: identity.cluster.clone(),
            node_id: identity.node_id,
            member,
            secret,
            changing: RwLock::new((identity.cluster_id, is_initialized)),
            seen_membership: AtomicU64::new(0),
            end: watch::Sender::new(None),
        })
    }

    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.changing.read().0
    }

    pub fn is_initialized(&self) -> bool {
        self.changing.read().1
    }

    pub fn set_cluster_id(&self, cluster_id: ClusterId) {
        self.changing.write().0 = Some(cluster_id);
    }

    pub fn set_initialized(&self) {
        self.changing.write().1 = true;
    }

    /// One more than the index of the newest committed membership that names this Raft id; 0 if none is known.
    pub fn seen_membership(&self) -> u64 {
        self.seen_membership.load(Ordering::Acquire)
    }

    pub fn saw_membership(&self, place: u64) {
        self.seen_membership.fetch_max(place, Ordering::AcqRel);
    }

    /// This member must not go on, for this reason: a sentence for the operator.
    pub fn end(&self, reason: String) {
        self.end.send_if_modified(|end| {
            let is_first = end.is_none();
            end.get_or_insert(reason);
            is_first
        });
    }

    /// The committed membership at `place` names another Raft id in this one's stead.
    pub fn end_replaced(&self, place: u64) {
        if self.seen_membership() == 0 || place <= self.seen_membership() {
            // The other side is behind, or this member is new: no verdict.
            return;
        }
        let (name, cluster) = (&self.member.name, &self.cluster);
        self.end(format!(
            "cluster {cluster} goes on with another data directory for member {name}, which took this one's \
             place: move this one aside and start {name} with that one; the records are there"
        ));
    }

    /// Waits until this member must not go on, and says why.
    pub async fn ended(&self) -> String {
        let mut end = self.end.subscribe();
        let reason = end.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    pub fn hello(&self) -> Hello {
        let (cluster_id, is_initialized) = *self.changing.read();
        Hello {
            cluster: self.cluster.clone(),
            cluster_id,
            node_id: self.node_id,
            member: self.member.clone(),
            is_initialized,
        }
    }

    pub fn secret(&self) -> &[u8] {
        &self.secret
    }
}

/// Everything needed to open connections.
pub struct Peers {
    me: Arc<Me>,
    transport: Arc<dyn PeerTransport>,
    random: Arc<dyn Random>,
    known: Mutex<HashMap<(NodeId, String), Arc<Peer>>>,
}

impl Peers {
    pub fn new(me: Arc<Me>, transport: Arc<dyn PeerTransport>, random: Arc<dyn Random>) -> Arc<Self> {
        Arc::new(Peers { me, transport, random, known: Mutex::default() })
    }

    pub fn me(&self) -> &Arc<Me> {
        &self.me
    }

    pub fn transport(&self) -> &Arc<dyn PeerTransport> {
        &self.transport
    }

    /// The peer with this Raft id at this address.
    pub fn peer(self: &Arc<Self>, node_id: NodeId, member: &Member) -> Arc<Peer> {
        let mut known = self.known.lock();
        let peer = known.entry((node_id, member.peer_address.clone())).or_insert_with(|| {
            Arc::new(Peer {
                peers: Arc::downgrade(self),
                node_id,
                member: member.clone(),
                lanes: Default::default(),
                last_problem: Mutex::default(),
            })
        });
        peer.clone()
    }

    /// 16 fresh random bytes.
    pub fn nonce(&self) -> [u8; 16] {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.random.next_u64().to_le_bytes());
        nonce[8..].copy_from_slice(&self.random.next_u64().to_le_bytes());
        nonce
    }

    /// Asks whoever listens at `address` who it is.
    pub async fn ask(&self, address: &str) -> Result<Hello, HandshakeError> {
        self.dial(address, Lane::Control, 0).await.map(|(hello, _)| hello)
    }

    /// One request to whoever listens at `address`, over a connection of its own, at most `timeout` in all.
    pub async fn call_once(
        &self,
        address: &str,
        kind: Kind,
        body: Body,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let calling = async {
            let dialed = self.dial(address, Lane::Control, 0).await;
            let (_, stream) = dialed.map_err(|error| CallError::Unreachable(error.to_string()))?;
            Connection::start(stream).call(kind, body, timeout).await
        };
        let called = tokio::time::timeout(timeout, calling).await;
        called
            .unwrap_or_else(|_| Err(CallError::Lost(format!("no answer within {} ms", timeout.as_millis()))))
    }

    async fn dial(
        &self,
        address: &str,
        lane: Lane,
        expected_node_id: NodeId,
    ) -> Result<(Hello, Box<dyn super::transport::PeerStream>), HandshakeError> {
        let seen_membership = self.me.seen_membership();
        let call = Call { hello: self.me.hello(), lane, expected_node_id, seen_membership };
        let dialing = async {
            let mut stream = self.transport.connect(address).await?;
            let dialed = handshake::dial(&mut *stream, self.me.secret(), &call, self.nonce()).await;
            if let Err(HandshakeError::Replaced(place)) = &dialed {
                self.me.end_replaced(*place);
            }
            let hello = dialed?;
            check_same_cluster(&self.me, &hello).map_err(HandshakeError::Refused)?;
            Ok((hello, stream))
        };
        tokio::time::timeout(HANDSHAKE_TIMEOUT, dialing)
            .await
            .unwrap_or_else(|_| Err(HandshakeError::Io(std::io::ErrorKind::TimedOut.into())))
    }
}

/// Whether `hello` may speak with this member at all; the error is a sentence for the operator.
pub fn check_same_cluster(me: &Me, hello: &Hello) -> Result<(), String> {
    if hello.cluster != me.cluster {
        return Err(format!("it belongs to cluster {:?}, this member to {:?}", hello.cluster, me.cluster));
    }
    match (hello.cluster_id, me.cluster_id()) {
        (Some(theirs), Some(ours)) if theirs != ours => Err(format!(
            "it belongs to another cluster that is also called {:?} ({theirs}, not {ours})",
            me.cluster
        )),
        _ => Ok(()),
    }
}

#[derive(Default)]
struct LaneSlot {
    connection: Mutex<Option<Arc<Connection>>>,
    /// Held while dialing; the time of the last failure.
    dialing: tokio::sync::Mutex<Option<Instant>>,
}

/// One peer and the connections to it.
pub struct Peer {
    peers: std::sync::Weak<Peers>,
    pub node_id: NodeId,
    pub member: Member,
    lanes: [LaneSlot; Lane::COUNT],
    last_problem: Mutex<Option<String>>,
}

impl Peer {
    /// The open connection of a lane, made if need be.
    pub async fn connection(&self, lane: Lane) -> Result<Arc<Connection>, CallError> {
        let slot = &self.lanes[lane as usize];
        if let Some(connection) = slot.connection.lock().as_ref().filter(|connection| connection.is_open()) {
            return Ok(connection.clone());
        }
        let mut last_failure = slot.dialing.lock().await;
        // Somebody else may have dialed while this caller waited for its turn.
        if let Some(connection) = slot.connection.lock().as_ref().filter(|connection| connection.is_open()) {
            return Ok(connection.clone());
        }
        if last_failure.is_some_and(|at| at.elapsed() < DIAL_PAUSE) {
            return Err(CallError::Unreachable(format!("{} is not reachable", self.member.name)));
        }
        let peers = self.peers.upgrade();
        let peers = peers.ok_or(CallError::Unreachable("this member is shutting down".into()))?;
        match peers.dial(&self.member.peer_address, lane, self.node_id).await {
            Ok((_, stream)) => {
                *last_failure = None;
                let connection = Connection::start(stream);
                *slot.connection.lock() = Some(connection.clone());
                self.report(None);
                Ok(connection)
            }
            Err(error) => {
                *last_failure = Some(Instant::now());
                self.report(Some(error.to_string()));
                Err(CallError::Unreachable(error.to_string()))
            }
        }
    }

    fn report(&self, problem: Option<String>) {
        let mut last = self.last_problem.lock();
        if *last == problem {
            return;
        }
        let (name, address) = (&self.member.name, &self.member.peer_address);
        match &problem {
            Some(problem) => tracing::warn!("no connection to member {name} at {address}: {problem}"),
            None => tracing::info!("connected to member {name} at {address}"),
        }
        *last = problem;
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
        let connection = connected.map_err(|_| {
            CallError::Unreachable(format!("{} is not reachable in time", self.member.name))
        })??;
        connection.call(kind, body, timeout.saturating_sub(start.elapsed())).await
    }
}
