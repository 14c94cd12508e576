//! This member's part in the cluster: openraft over its log and state, and who leads.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::impls::OneshotResponder;
use openraft::raft::Precondition;
use openraft::{ChangeMembers, Config, Instant as _, RaftMetrics, ReadPolicy, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::admission::Applicants;
use super::cluster_time::ClusterTime;
use super::connection::CallError;
use super::handshake::{Call, Lane};
use super::install::Installer;
use super::log::LogStore;
use super::machine::{Applied, ApplyObserver, Machine};
use super::membership::{place_of, replacement};
use super::network::Network;
use super::peer::Peer;
use super::peer_service::PeerHandler;
use super::peers::Peers;
use super::rpc::{self, Body, Kind, Proposal, ReadPoint};
use super::transfer::Transfers;
use super::types::{
    Member, NodeId, Raft, RaftLogId, RaftStoredMembership, StampedCommand, Types, stored_vote,
};
use crate::clock::Random;
use crate::limits::MAX_PROMOTION_LAG_ENTRIES;
use crate::state::{carries_records, check_command};
use crate::storage::{Log, Room};

mod log_tail;
mod statuses;

pub use log_tail::HeldBack;
pub use statuses::{DOWN_AFTER, MemberStatus};

/// A change of the membership that is not committed by then is left to whoever leads next.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The timers of Raft.
#[derive(Debug, Clone, Copy)]
pub struct Timers {
    pub heartbeat_ms: u64,
    pub election_timeout_min_ms: u64,
    pub election_timeout_max_ms: u64,
}

/// Who leads, as this member knows it.
#[derive(Clone, Default)]
pub struct Leadership {
    pub term: u64,
    pub leader: Option<Leader>,
}

#[derive(Clone)]
pub enum Leader {
    Here,
    At(Arc<Peer>),
}

/// What a member is made of, beside its peers.
pub struct Parts {
    pub log: Log,
    pub applied: Arc<Applied>,
    pub observer: Arc<dyn ApplyObserver>,
    pub time: ClusterTime,
    pub room: Arc<Room>,
    pub installer: Arc<Installer>,
    pub random: Arc<dyn Random>,
}

/// One member of a cluster.
pub struct Node {
    raft: Raft,
    peers: Arc<Peers>,
    applied: Arc<Applied>,
    time: ClusterTime,
    leadership: watch::Sender<Leadership>,
    statuses: Mutex<HashMap<NodeId, statuses::Heard>>,
    /// Since when each other member is known here.
    known_since: Mutex<HashMap<NodeId, Instant>>,
    applicants: Applicants,
    room: Arc<Room>,
    transfers: Arc<Transfers>,
    installer: Arc<Installer>,
    /// What holds the log back, and since when.
    held: Mutex<Option<HeldBack>>,
    /// Whether a majority of the voters has room, as of the last round of statuses.
    quorum_has_room: AtomicBool,
    /// Weak: whoever handles holds this member.
    handler: OnceLock<Weak<dyn PeerHandler>>,
}

/// The settings of openraft.
fn raft_config(cluster: &str, timers: Timers) -> Result<Config, String> {
    let config = Config {
        cluster_name: cluster.to_owned(),
        heartbeat_interval: timers.heartbeat_ms,
        election_timeout_min: timers.election_timeout_min_ms,
        election_timeout_max: timers.election_timeout_max_ms,
        // Payloads are bounded by bytes where entries are read, not by number.
        max_payload_entries: 16_384,
        max_append_entries: Some(16_384),
        replication_lag_threshold: 500_000,
        // When a snapshot exists and what is purged is decided in `upkeep.rs`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        purge_batch_size: 1024,
        // A leader without a quorum falls silent for a while, so that others can elect another.
        quorum_loss_probe_interval: Some((2 * timers.election_timeout_max_ms).max(2000)),
        enable_pre_vote: Some(true),
        // A leader that restarts must be elected again: it may have lost an unsynced tail.
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        backoff: "50ms 100ms 200ms ...500ms".to_owned(),
        ..Config::default()
    };
    config.validate().map_err(|error| format!("the timers do not fit together: {error}"))
}

impl Node {
    /// Starts openraft over the log and the state. Nothing happens on the network before peers call or
    /// the cluster is founded.
    pub async fn start(peers: Arc<Peers>, parts: Parts, timers: Timers) -> Result<Arc<Node>, String> {
        let me = peers.me().clone();
        let config = Arc::new(raft_config(&me.cluster, timers)?);
        let Parts { log, applied, observer, time, room, installer, random } = parts;
        let machine = Machine::new(applied.clone(), observer);
        let transfers = Transfers::new(applied.clone(), random);
        let network = Network { peers: peers.clone(), transfers: transfers.clone() };
        let raft = Raft::new(me.node_id, config, network, LogStore(log), machine)
            .await
            .map_err(|error| format!("cannot start from the stored log and state: {error}"))?;
        if raft.is_initialized().await.map_err(|error| error.to_string())? {
            me.set_initialized();
        }
        let node = Arc::new(Node {
            raft,
            peers,
            applied,
            time,
            leadership: watch::Sender::new(Leadership::default()),
            statuses: Mutex::default(),
            known_since: Mutex::default(),
            applicants: Applicants::default(),
            room,
            transfers,
            installer,
            held: Mutex::default(),
            quorum_has_room: AtomicBool::new(true),
            handler: OnceLock::new(),
        });
        Ok(node)
    }

    pub fn raft(&self) -> &Raft {
        &self.raft
    }

    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    pub fn applied(&self) -> &Arc<Applied> {
        &self.applied
    }

    pub fn node_id(&self) -> NodeId {
        self.peers.me().node_id
    }

    pub fn time(&self) -> &ClusterTime {
        &self.time
    }

    /// Looks at openraft's metrics; the guard must not live across an await.
    fn metrics<T>(&self, look: impl FnOnce(&RaftMetrics<Types>) -> T) -> T {
        look(&self.raft.metrics().borrow_watched())
    }

    /// Follows who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Follows who leads and how the others do, as long as openraft runs. Without it this member learns nothing.
    pub async fn follow(self: Arc<Self>) -> io::Result<()> {
        let statuses = self.clone().follow_statuses();
        tokio::select! {
            () = self.follow_leadership() => Ok(()),
            () = statuses => Ok(()),
        }
    }

    async fn follow_leadership(self: Arc<Self>) {
        // Not `metrics()`, which change with every entry.
        let mut metrics = self.raft.server_metrics();
        let mut last = (0, None);
        let mut last_seats = None;
        loop {
            let (term, leader, member, seats, members) = {
                let metrics = metrics.borrow_and_update();
                let leader = metrics.current_leader;
                let member = leader.and_then(|id| metrics.membership_config.get_node(&id).cloned());
                let (committed, effective) =
                    (&metrics.committed_membership_config, &metrics.membership_config);
                let term = stored_vote(&metrics.vote).term;
                let seats = (*committed.log_id(), *effective.log_id());
                let is_news = last_seats.is_none_or(|(last, _)| last != seats.0);
                (term, leader, member, seats, is_news.then(|| describe(committed)).flatten())
            };
            if last_seats != Some(seats) {
                last_seats = Some(seats);
                self.look_at_own_seat();
            }
            if let Some(members) = members {
                tracing::info!("the cluster is {members}");
            }
            if (term, leader) != last {
                last = (term, leader);
                let leader = match (leader, member) {
                    (Some(id), _) if id == self.node_id() => {
                        self.time.take_office(self.applied.time_ms());
                        Some(Leader::Here)
                    }
                    (Some(id), Some(member)) => Some(Leader::At(self.peers.peer(id, &member))),
                    // The leader is known before the membership that names it has arrived: look again.
                    (Some(_), None) => {
                        last = (0, None);
                        None
                    }
                    (None, _) => None,
                };
                match &leader {
                    Some(Leader::Here) => tracing::info!("this member leads in term {term}"),
                    Some(Leader::At(peer)) => tracing::info!("member {} leads in term {term}", peer.name),
                    None => tracing::info!("nobody is known to lead in term {term}"),
                }
                self.leadership.send_replace(Leadership { term, leader });
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until openraft has stopped for good, and says why.
    pub async fn stopped(&self) -> String {
        // These change with elections, not with every entry; and their sender goes when openraft ends, after
        // it has said why.
        let mut metrics = self.raft.server_metrics();
        loop {
            tokio::select! {
                biased;
                reason = self.peers.me().ended() => return reason,
                changed = metrics.changed() => if changed.is_err() {
                    return self.metrics(|metrics| match &metrics.running_state {
                        Err(fatal) => fatal.to_string(),
                        Ok(()) => "it was stopped".to_owned(),
                    });
                },
            }
        }
    }

    /// Puts a command into the log, if this member leads, and waits for its outcome.
    pub async fn propose_here(&self, command: Bytes) -> Proposal {
        if carries_records(&command) && !self.has_room_for_records() {
            return Proposal::StorageFull;
        }
        let command = StampedCommand { stamp_ms: self.time.stamp_ms(), bytes: command };
        let (responder, outcome) = OneshotResponder::new_pair();
        if self.raft.client_write_ff(command, Some(responder)).await.is_err() {
            return Proposal::Unknown;
        }
        match outcome.await {
            Ok(Ok(response)) => Proposal::Done(response.data),
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => Proposal::NotLeader,
            Ok(Err(_)) | Err(_) => Proposal::Unknown,
        }
    }

    /// The same for many commands of another member at once, in their order. What this version cannot read must
    /// not get into the log, where no member could pass it by.
    pub async fn propose_many_here(&self, mut commands: Vec<Bytes>) -> Vec<Proposal> {
        let has_room = self.has_room_for_records();
        let refusal = |command: &Bytes| match check_command(command) {
            Err(error) => {
                tracing::error!("a member forwards what cannot be read here: {error}");
                Some(Proposal::Unreadable)
            }
            Ok(()) if !has_room && carries_records(command) => Some(Proposal::StorageFull),
            Ok(()) => None,
        };
        let refusals: Vec<Option<Proposal>> = commands.iter().map(refusal).collect();
        if refusals.iter().all(Option::is_none) {
            return self.append_many_here(commands).await;
        }
        let mut places = refusals.iter();
        commands.retain(|_| places.next().is_some_and(Option::is_none));
        let mut others = self.append_many_here(commands).await.into_iter();
        let proposal =
            |refusal: Option<Proposal>| refusal.or_else(|| others.next()).unwrap_or(Proposal::Unknown);
        refusals.into_iter().map(proposal).collect()
    }

    async fn append_many_here(&self, commands: Vec<Bytes>) -> Vec<Proposal> {
        let count = commands.len();
        if count == 0 {
            return Vec::new();
        }
        let stamp_ms = self.time.stamp_ms();
        let stamped = commands.into_iter().map(|bytes| StampedCommand { stamp_ms, bytes });
        let mut proposals = Vec::with_capacity(count);
        if let Ok(mut results) = self.raft.client_write_many(stamped).await {
            while let Some(Ok(result)) = results.next().await {
                proposals.push(match result {
                    Ok(response) => Proposal::Done(response.response),
                    Err(ClientWriteError::ForwardToLeader(_)) => Proposal::NotLeader,
                    Err(_) => Proposal::Unknown,
                });
            }
        }
        proposals.resize(count, Proposal::Unknown);
        proposals
    }

    /// Hands commands to the leader at `peer`.
    pub async fn propose_at(
        &self,
        peer: &Peer,
        commands: &[Bytes],
        timeout: Duration,
    ) -> Result<Vec<Proposal>, CallError> {
        let body = rpc::encode_forward(commands);
        let reply = peer.call(Lane::Bulk, Kind::Forward, body, timeout).await?;
        let proposals = rpc::decode_proposals(&reply).map_err(|error| CallError::Lost(error.to_string()))?;
        if proposals.len() != commands.len() {
            return Err(CallError::Lost("the leader answered another number of commands".into()));
        }
        Ok(proposals)
    }

    /// What a strong read must wait for, confirmed by a quorum now; `None` if this member does not lead.
    pub async fn read_point_here(&self) -> Option<ReadPoint> {
        let linearizer = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await;
        let index = linearizer.ok()?.read_log_id().index();
        Some(ReadPoint { index, time_ms: self.time.stamp_ms() })
    }

    /// The same, asked of the leader at `peer`.
    pub async fn read_point_at(
        &self,
        peer: &Peer,
        timeout: Duration,
    ) -> Result<Option<ReadPoint>, CallError> {
        let reply = peer.call(Lane::Control, Kind::ReadIndex, Body::default(), timeout).await?;
        rpc::decode_read_point(&reply).map_err(|error| CallError::Lost(error.to_string()))
    }

    /// Has `handler` answer what peers ask that this room knows nothing of. The first one stays, as long as it
    /// is held elsewhere.
    pub fn set_handler(&self, handler: &Arc<dyn PeerHandler>) {
        let _ = self.handler.set(Arc::downgrade(handler));
    }

    pub(super) fn handler(&self) -> Option<Arc<dyn PeerHandler>> {
        self.handler.get()?.upgrade()
    }

    /// Asks the handler of another member, by name. Errors are sentences for people.
    pub async fn ask_handler(
        &self,
        member: &str,
        request: &[u8],
        timeout: Duration,
    ) -> Result<Bytes, String> {
        let membership = self.membership();
        let found = membership.iter().find(|(_, other, _)| other.name == member);
        let (node_id, member, _) = found.ok_or("there is no such member")?;
        let body = Body::of(|out| out.extend_from_slice(request));
        let reply = self.peers.peer(*node_id, member).call(Lane::Bulk, Kind::Handler, body, timeout).await;
        reply.map_err(|error| error.to_string())
    }

    /// Asks the leader at `peer` how links do; its handler knows the form. Errors are sentences for people.
    pub async fn ask_links(&self, peer: &Peer, request: &[u8], timeout: Duration) -> Result<Bytes, String> {
        let body = Body::of(|out| out.extend_from_slice(request));
        let reply = peer.call(Lane::Bulk, Kind::Links, body, timeout).await;
        reply.map_err(|error| error.to_string())
    }

    /// What this member holds ready for members that lack its state.
    pub(super) fn transfers(&self) -> &Arc<Transfers> {
        &self.transfers
    }

    /// Takes over the state of a leader.
    pub(super) fn installer(&self) -> &Installer {
        &self.installer
    }

    /// The newest membership that is known here to be committed.
    pub(super) fn committed_membership(&self) -> Arc<RaftStoredMembership> {
        self.metrics(|metrics| metrics.committed_membership_config.clone())
    }

    /// Whether this member votes by a committed membership that nothing is about to change.
    pub fn is_settled_voter(&self) -> bool {
        let committed = self.committed_membership();
        let voters = committed.get_joint_config();
        voters.len() == 1
            && voters[0].contains(&self.node_id())
            && self.metrics(|metrics| metrics.membership_config.log_id() == committed.log_id())
    }

    /// Notes what the membership says of this member: that it is part of a cluster, or not any more.
    fn look_at_own_seat(&self) {
        let me = self.peers.me();
        let committed = self.committed_membership();
        if committed.get_node(&me.node_id).is_some() {
            me.saw_membership(place_of(&committed));
        }
        if self.metrics(|metrics| metrics.membership_config.log_id().is_some()) {
            me.set_initialized();
        }
        if let Some(place) = replacement(&committed, me.node_id, &me.member.name, me.seen_membership()) {
            me.end_replaced(place);
        }
    }

    /// By which membership the place of the one who calls has been given to another, if it has.
    pub(super) fn replacement_of(&self, call: &Call) -> Option<u64> {
        let (node_id, name) = (call.hello.node_id, &call.hello.member.name);
        replacement(&self.committed_membership(), node_id, name, call.seen_membership)
    }

    /// Who asks this member, as the leader, to be let in.
    pub(super) fn applicants(&self) -> &Applicants {
        &self.applicants
    }

    /// Whether a member's log holds nearly all that is committed, as this leader knows it.
    pub(super) fn has_caught_up(&self, node_id: NodeId) -> bool {
        self.metrics(|metrics| {
            let committed = metrics.cluster_committed.max(metrics.local_committed).map_or(0, |id| id.index());
            let matched = metrics.replication.as_ref().and_then(|matched| *matched.get(&node_id)?);
            matched.is_some_and(|id| id.index().saturating_add(MAX_PROMOTION_LAG_ENTRIES) >= committed)
        })
    }

    /// Changes the membership, if the one that the caller decided by is still in force. What goes is gone:
    /// a voter that is removed is no learner afterwards.
    pub(super) async fn change_membership(
        &self,
        change: ChangeMembers<NodeId, Member>,
        based_on: Option<RaftLogId>,
    ) -> Result<(), String> {
        let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: based_on };
        let changing = self.raft.change_membership_if(change, false, [unchanged]);
        match tokio::time::timeout(CHANGE_TIMEOUT, changing).await {
            Ok(changed) => changed.map(|_| ()).map_err(|error| error.to_string()),
            Err(_) => Err("it was not committed in time".to_owned()),
        }
    }

    /// Whether this member, if it leads, leads now: a quorum has answered it lately.
    pub(super) fn has_quorum_now(&self) -> bool {
        let voters = self.membership().iter().filter(|(_, _, is_voter)| *is_voter).count();
        voters <= 1 || self.has_quorum(DOWN_AFTER)
    }

    /// Raft's term and the highest index that this member knows to be committed.
    pub fn term_and_commit(&self) -> (u64, u64) {
        self.metrics(|metrics| {
            let committed = metrics.cluster_committed.max(metrics.local_committed);
            (metrics.current_term, committed.map_or(0, |id| id.index()))
        })
    }

    /// Whether a quorum has answered this leader within `within`.
    pub fn has_quorum(&self, within: Duration) -> bool {
        self.metrics(|metrics| match &metrics.last_quorum_acked {
            Some(acked) => acked.elapsed() < within,
            None => false,
        })
    }

    /// Makes a cluster of these members, whose logs must all be empty. Repeating it is harmless.
    pub async fn found(&self, members: BTreeMap<NodeId, Member>) -> io::Result<()> {
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(_)) => {
                self.peers.me().set_initialized();
                Ok(())
            }
            Err(fatal) => Err(io::Error::other(fatal.to_string())),
        }
    }

    /// Hands leadership to the voter that has applied most, if this member leads, and waits until another
    /// leads, at most `timeout`.
    pub async fn hand_over(&self, timeout: Duration) {
        let mut leadership = self.leadership();
        if !matches!(leadership.borrow_and_update().leader, Some(Leader::Here)) {
            return;
        }
        let heirs = self.member_statuses().into_iter().filter(|other| other.node_id != self.node_id());
        let heir = heirs
            .filter(|other| other.is_voter)
            .filter_map(|other| Some((other.status?.applied_index, other.node_id)))
            .max();
        let Some((_, heir)) = heir else { return };
        if self.raft.trigger().transfer_leader(heir).await.is_err() {
            return;
        }
        let handed_over = leadership.wait_for(|now| matches!(now.leader, Some(Leader::At(_))));
        match tokio::time::timeout(timeout, handed_over).await {
            Ok(_) => tracing::info!("handed leadership over"),
            Err(_) => tracing::warn!("nobody took leadership over in time; the others will elect a leader"),
        }
    }

    /// Stops taking part. What was appended is synced by the log's own end.
    pub async fn shut_down(&self) {
        let _ = self.raft.shutdown().await;
    }
}

/// The members of a membership, for people; `None` before there is any.
fn describe(stored: &RaftStoredMembership) -> Option<String> {
    let voters: Vec<NodeId> = stored.membership().voter_ids().collect();
    let members = stored.nodes().map(|(node_id, member)| {
        let role = if voters.contains(node_id) { "voter" } else { "learner" };
        format!("{} ({role}, {})", member.name, member.peer_address)
    });
    // By name: ids are random.
    let mut members: Vec<String> = members.collect();
    members.sort();
    let members = members.join(", ");
    let index = stored.log_id().as_ref()?.index;
    Some(format!("{members} as of entry {index}"))
}
