//! The peers of this member: how it shows itself to them, and where they are.
//!
//! Where a member is, it says itself, in every handshake; the membership has what a leader has last made of that
//! (`membership.rs`); and the operator's list may be newer than either, when a whole cluster moves. Any of them may
//! be wrong, and none is trusted: who answers must be the Raft id that is meant.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::bootstrap::ListedMember;
use super::connection::{CallError, Connection};
use super::handshake::{self, Call, HANDSHAKE_TIMEOUT, HandshakeError, Hello, Lane};
use super::identity::{ClusterId, Identity};
use super::peer::Peer;
use super::rpc::{Body, Kind};
use super::transport::{PeerStream, PeerTransport};
use super::types::{Member, NodeId};
use crate::clock::Random;

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
    listed: Vec<ListedMember>,
    known: Mutex<HashMap<NodeId, Arc<Peer>>>,
    /// What members said of themselves in their last handshake.
    told: Mutex<HashMap<NodeId, Member>>,
}

impl Peers {
    pub fn new(
        me: Arc<Me>,
        transport: Arc<dyn PeerTransport>,
        random: Arc<dyn Random>,
        listed: Vec<ListedMember>,
    ) -> Arc<Self> {
        Arc::new(Peers { me, transport, random, listed, known: Mutex::default(), told: Mutex::default() })
    }

    pub fn me(&self) -> &Arc<Me> {
        &self.me
    }

    pub fn transport(&self) -> &Arc<dyn PeerTransport> {
        &self.transport
    }

    /// The operator's list, which may be empty.
    pub fn listed(&self) -> &[ListedMember] {
        &self.listed
    }

    /// The peer with this Raft id, which was last known as `member`.
    pub fn peer(self: &Arc<Self>, node_id: NodeId, member: &Member) -> Arc<Peer> {
        let mut known = self.known.lock();
        let peer = known.entry(node_id).or_insert_with(|| Peer::new(self, node_id, member));
        peer.set_address(&member.peer_address);
        peer.clone()
    }

    /// Ends the connection of a lane, if there is one. Who needs one makes another.
    pub(super) fn end_connection(&self, node_id: NodeId, lane: Lane) {
        let peer = self.known.lock().get(&node_id).cloned();
        if let Some(peer) = peer {
            peer.end_connection(lane);
        }
    }

    /// Forgets the others.
    pub fn know_only(&self, is_known: impl Fn(NodeId) -> bool) {
        self.known.lock().retain(|node_id, _| is_known(*node_id));
        self.told.lock().retain(|node_id, _| is_known(*node_id));
    }

    /// A member has said of itself, in a handshake, that this is how it is reached.
    pub fn heard_of(&self, node_id: NodeId, member: &Member) {
        let mut told = self.told.lock();
        if told.get(&node_id) != Some(member) {
            told.insert(node_id, member.clone());
        }
    }

    /// What a member last said of itself.
    pub fn told(&self, node_id: NodeId) -> Option<Member> {
        if node_id == self.me.node_id {
            return Some(self.me.member.clone());
        }
        self.told.lock().get(&node_id).cloned()
    }

    /// Where a peer may be, the likeliest place first.
    fn addresses_of(&self, peer: &Peer) -> Vec<String> {
        let told = self.told(peer.node_id).map(|member| member.peer_address);
        let listed = self.listed.iter().filter(|(name, _)| *name == peer.name);
        let all = told.into_iter().chain([peer.address()]).chain(listed.map(|(_, address)| address.clone()));
        let mut addresses: Vec<String> = Vec::new();
        for address in all {
            if !address.is_empty() && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// Connects to a peer at whichever of its addresses answers first. Errors: why not, at each of them.
    pub(super) async fn dial_peer(
        &self,
        peer: &Peer,
        lane: Lane,
    ) -> Result<(String, Box<dyn PeerStream>), Vec<(String, String)>> {
        let dial = |(place, address): (usize, String)| async move {
            let dialed = self.dial(&address, lane, peer.node_id).await;
            (place, address, dialed)
        };
        let mut dialing: FuturesUnordered<_> =
            self.addresses_of(peer).into_iter().enumerate().map(dial).collect();
        let mut problems = Vec::new();
        while let Some((place, address, dialed)) = dialing.next().await {
            match dialed {
                Ok((_, stream)) => return Ok((address, stream)),
                Err(error) => problems.push((place, address, error.to_string())),
            }
        }
        problems.sort();
        Err(problems.into_iter().map(|(_, address, problem)| (address, problem)).collect())
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
    ) -> Result<(Hello, Box<dyn PeerStream>), HandshakeError> {
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
            if expected_node_id != 0 && hello.node_id != expected_node_id {
                return Err(HandshakeError::Refused(format!("{} answers there", hello.member.name)));
            }
            self.heard_of(hello.node_id, &hello.member);
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
