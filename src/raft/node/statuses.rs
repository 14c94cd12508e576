//! What the members say of themselves, asked twice a second, and what follows from it: who is up, whether
//! there is room for records, and what the log is still needed for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::super::handshake::Lane;
use super::super::peer::Peer;
use super::super::retention::{self, Exported, LogTail, Other, Progress, Standing};
use super::super::rpc::{Body, Kind, Status};
use super::super::types::{Member, NodeId};
use super::{Leader, Node};
use crate::storage::Room;
use crate::task;
use crate::telemetry::version::VERSION;

/// How often members tell each other their clocks and progress.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);
/// A member that was not heard for longer is down.
pub const DOWN_AFTER: Duration = Duration::from_secs(3);

/// What a member said last.
pub(super) struct Heard {
    status: Status,
    at: Instant,
    progress: Progress,
}

/// A member as the cluster view shows it.
#[derive(Debug, Clone)]
pub struct MemberStatus {
    pub node_id: NodeId,
    pub member: Member,
    pub is_voter: bool,
    /// `None` if the member has not been heard lately.
    pub status: Option<Status>,
    /// What it said last, however long ago; `None` if this one has not heard it since it started.
    pub last_status: Option<Status>,
}

/// Asks for nothing but a sign of life, so that a dead connection is told from a follower whose disk is slow,
/// and is noticed before it is needed.
async fn ask_bulk_lane(peer: Arc<Peer>) {
    let _ = peer.call(Lane::Bulk, Kind::Status, Body::default(), STATUS_INTERVAL).await;
}

/// What was last told in the log of who is there.
#[derive(Default)]
struct News {
    up: BTreeMap<NodeId, bool>,
    has_quorum: Option<bool>,
    /// When it was told of members that differ.
    differs: BTreeMap<NodeId, Instant>,
}

impl News {
    fn tell(&mut self, node: &Node, members: &[(NodeId, Member, bool)]) {
        self.up.retain(|known, _| members.iter().any(|(node_id, ..)| node_id == known));
        for (node_id, member, _) in members.iter().filter(|(node_id, ..)| *node_id != node.node_id()) {
            let Some(heard_ago) = node.heard_ago(*node_id) else { continue };
            let is_up = heard_ago < DOWN_AFTER;
            match (self.up.insert(*node_id, is_up), is_up) {
                (Some(false) | None, true) => tracing::info!("member {} answers", member.name),
                (Some(true), false) => tracing::info!(
                    "member {} is down: it has not answered for {} s",
                    member.name,
                    DOWN_AFTER.as_secs()
                ),
                _ => {}
            }
        }
        let leads = matches!(node.leadership.borrow().leader, Some(Leader::Here));
        let has_quorum = leads.then(|| node.has_quorum_now());
        match (self.has_quorum, has_quorum) {
            (Some(true) | None, Some(false)) => tracing::warn!(
                "this member leads, and a majority of the voters does not answer it: nothing can be written, or \
                 read with strong consistency, until it does"
            ),
            (Some(false), Some(true)) => tracing::info!("a majority of the voters answers this leader again"),
            _ => {}
        }
        self.has_quorum = has_quorum;
        if leads {
            self.compare_digests(node, members);
        }
    }

    /// Tells of members whose state is not this leader's.
    fn compare_digests(&mut self, node: &Node, members: &[(NodeId, Member, bool)]) {
        const AGAIN_AFTER: Duration = Duration::from_secs(60);
        self.differs.retain(|_, told| told.elapsed() < AGAIN_AFTER);
        for (node_id, member, _) in members {
            let mark = node.statuses.lock().get(node_id).and_then(|heard| heard.status.digest);
            let Some(mark) = mark.filter(|mark| node.applied.digest_marks().differs(*mark)) else { continue };
            if self.differs.contains_key(node_id) {
                continue;
            }
            self.differs.insert(*node_id, Instant::now());
            tracing::error!(
                "THE STATE OF MEMBER {} IS NOT THAT OF THIS LEADER as of entry {}: one of the two is wrong; compare \
                 both with a third member, and let the one that is alone start blank",
                member.name,
                mark.index
            );
        }
    }
}

impl Node {
    /// What this member says of itself.
    pub fn status(&self) -> Status {
        Status {
            wall_ms: self.time.clock().wall_ms(),
            applied_index: self.applied.index(),
            durable_index: self.durable_index(),
            version: VERSION.to_owned(),
            is_storage_full: self.room.is_full(),
            installing: self.installer.progress(),
            install_error: self.installer.last_error().unwrap_or_default(),
            digest: self.applied.digest_marks().newest(),
        }
    }

    /// Up to where this member has applied and synced its log: what it can go on from after any crash.
    fn durable_index(&self) -> u64 {
        // Applying does not wait for the own disk.
        let synced_index = self.applied.log().synced_id().map_or(0, |id| id.index);
        self.applied.index().min(synced_index)
    }

    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Whether this member and a majority of the voters have room for records.
    pub(super) fn has_room_for_records(&self) -> bool {
        !self.room.is_full() && self.quorum_has_room.load(Ordering::Acquire)
    }

    fn look_for_room(&self) {
        let voters: Vec<MemberStatus> =
            self.member_statuses().into_iter().filter(|member| member.is_voter).collect();
        let is_full =
            |member: &&MemberStatus| member.status.as_ref().is_some_and(|status| status.is_storage_full);
        let full = voters.iter().filter(is_full).count();
        // Before there are voters nobody is full.
        let has_room = voters.is_empty() || voters.len() - full > voters.len() / 2;
        self.quorum_has_room.store(has_room, Ordering::Release);
    }

    /// A leader without room lets one lead that has.
    async fn make_way_if_full(&self) {
        if !self.room.is_full() || !matches!(self.leadership.borrow().leader, Some(Leader::Here)) {
            return;
        }
        let heir = self.member_statuses().into_iter().find(|member| {
            let has_room = member.status.as_ref().is_some_and(|status| !status.is_storage_full);
            member.is_voter && member.node_id != self.node_id() && has_room
        });
        if let Some(heir) = heir {
            tracing::info!("this member has no room: handing leadership over to {}", heir.member.name);
            // Refused or not: the next round looks again.
            let _ = self.raft.trigger().transfer_leader(heir.node_id).await;
        }
    }

    pub(super) async fn follow_statuses(self: Arc<Self>) {
        let mut news = News::default();
        loop {
            self.look_for_room();
            self.make_way_if_full().await;
            self.look_at_own_seat();
            let members = self.membership();
            self.know_only(&members);
            news.tell(&self, &members);
            for (node_id, member, _) in members {
                if node_id != self.node_id() {
                    let peer = self.peers.peer(node_id, &member);
                    task::spawn(self.clone().ask_status(peer.clone()));
                    task::spawn(ask_bulk_lane(peer));
                }
            }
            tokio::time::sleep(STATUS_INTERVAL).await;
        }
    }

    async fn ask_status(self: Arc<Self>, peer: Arc<Peer>) {
        let asked = Instant::now();
        let reply = peer.call(Lane::Control, Kind::Status, Body::default(), STATUS_INTERVAL).await;
        let Ok(status) = reply.map(|reply| Status::decode(&reply)) else { return };
        let Ok(status) = status else { return };
        self.time.heard(peer.node_id, status.wall_ms, asked.elapsed());
        self.transfers.heard(peer.node_id, status.durable_index);
        let (now, needed_index) = (Instant::now(), self.durable_index());
        let mut statuses = self.statuses.lock();
        let earlier = statuses.get(&peer.node_id).map(|heard| heard.progress);
        let mut progress = earlier.unwrap_or_else(|| Progress::new(now));
        progress.heard(status.durable_index, needed_index, now);
        statuses.insert(peer.node_id, Heard { status, at: now, progress });
    }

    /// The members: Raft id, addresses, whether they vote.
    pub fn membership(&self) -> Vec<(NodeId, Member, bool)> {
        self.metrics(|metrics| {
            let membership = metrics.membership_config.membership();
            let voters: Vec<NodeId> = membership.voter_ids().collect();
            membership
                .nodes()
                .map(|(node_id, member)| (*node_id, member.clone(), voters.contains(node_id)))
                .collect()
        })
    }

    /// The members and what is known of them here.
    pub fn member_statuses(&self) -> Vec<MemberStatus> {
        let statuses = self.statuses.lock();
        let of_member = |(node_id, member, is_voter): (NodeId, Member, bool)| {
            let (status, last_status) = match statuses.get(&node_id) {
                _ if node_id == self.node_id() => (Some(self.status()), Some(self.status())),
                Some(heard) => {
                    let is_up = heard.at.elapsed() < DOWN_AFTER;
                    (is_up.then(|| heard.status.clone()), Some(heard.status.clone()))
                }
                None => (None, None),
            };
            MemberStatus { node_id, member, is_voter, status, last_status }
        };
        self.membership().into_iter().map(of_member).collect()
    }

    /// Forgets those who are no members any more.
    fn know_only(&self, members: &[(NodeId, Member, bool)]) {
        let is_member = |node_id: &NodeId| members.iter().any(|(member, ..)| member == node_id);
        self.peers.know_only(|node_id| is_member(&node_id));
        self.statuses.lock().retain(|node_id, _| is_member(node_id));
        let mut known_since = self.known_since.lock();
        known_since.retain(|node_id, _| is_member(node_id));
        for (node_id, ..) in members {
            known_since.entry(*node_id).or_insert_with(Instant::now);
        }
    }

    /// How long ago a member answered this one; `None` if it has not since this one started.
    pub(in crate::raft) fn heard_ago(&self, node_id: NodeId) -> Option<Duration> {
        if node_id == self.node_id() {
            return Some(Duration::ZERO);
        }
        self.statuses.lock().get(&node_id).map(|heard| heard.at.elapsed())
    }

    /// How long nothing has been heard of a member, as far as this one can tell.
    pub(in crate::raft) fn silence(&self, node_id: NodeId) -> Duration {
        let known_for = || self.known_since.lock().get(&node_id).map(Instant::elapsed);
        self.heard_ago(node_id).or_else(known_for).unwrap_or_default()
    }

    /// Whether there is little room, and some of the log to give up for it: of one in which nearly all is live
    /// nothing gets free.
    pub(in crate::raft) fn is_short_of_room(&self) -> bool {
        let log = self.applied.log().stats();
        let log_bytes = log.chain_bytes + log.kept_bytes;
        self.room.is_short() && self.transfers.needed_bytes() < log_bytes / 4 * 3
    }

    /// What the log is needed for at this moment, and what there is of it.
    pub(in crate::raft) fn standing(&self, exported: Exported, tail: LogTail) -> Standing {
        let now = Instant::now();
        let members = self.membership();
        let is_member = |node_id| members.iter().any(|(member, ..)| *member == node_id);
        self.transfers.forget(tail.patience, is_member);
        let (named_index, purged_index) = self.snapshot_and_purged();
        let statuses = self.statuses.lock();
        let known_since = self.known_since.lock();
        let others = members.iter().filter(|(node_id, ..)| *node_id != self.node_id());
        let others: Vec<Other> = others
            .map(|(node_id, ..)| {
                let heard = statuses.get(node_id);
                let known_for = || known_since.get(node_id).map_or(Duration::ZERO, Instant::elapsed);
                Other {
                    node_id: *node_id,
                    durable_index: heard.map(|heard| heard.status.durable_index),
                    stuck_for: heard.map_or_else(known_for, |heard| heard.progress.stuck_for(now)),
                }
            })
            .collect();
        let log = self.applied.log().stats();
        let is_short = self.is_short_of_room();
        Standing {
            applied_index: self.applied.index(),
            saved_index: self.applied.saved_index(),
            named_index,
            purged_index,
            tail,
            surplus_index: self.applied.log().surplus_index(if is_short { 0 } else { tail.bytes }),
            export: others.is_empty().then_some(exported),
            others,
            transfers: self.transfers.standing(),
            room: retention::Room {
                chain_bytes: log.chain_bytes,
                kept_bytes: log.kept_bytes,
                is_short,
                is_full: self.room.is_full(),
            },
        }
    }

    /// Whether the other voters that were heard after `since`, and just now, are a majority of all.
    pub fn others_are_majority(&self, since: Instant) -> bool {
        let members = self.membership();
        let voters: Vec<NodeId> =
            members.into_iter().filter(|(.., is_voter)| *is_voter).map(|(node_id, ..)| node_id).collect();
        let statuses = self.statuses.lock();
        let is_fresh = |heard: Instant| heard > since && heard.elapsed() < 2 * STATUS_INTERVAL;
        let is_heard = |node_id: &NodeId| statuses.get(node_id).is_some_and(|heard| is_fresh(heard.at));
        voters.iter().filter(|node_id| is_heard(node_id)).count() > voters.len() / 2
    }

    /// Whether this member votes, by a membership that is applied here.
    pub fn is_voter(&self) -> bool {
        self.metrics(|metrics| {
            let stored = &metrics.membership_config;
            let is_applied = stored.log_id().as_ref() <= metrics.last_applied.as_ref();
            is_applied && stored.membership().voter_ids().any(|voter| voter == self.node_id())
        })
    }

    /// Whether the cluster has no other member.
    pub(in crate::raft) fn is_alone(&self) -> bool {
        self.membership().iter().all(|(node_id, ..)| *node_id == self.node_id())
    }

    /// Whether a member was heard lately.
    pub fn was_heard(&self, node_id: NodeId) -> bool {
        self.statuses.lock().get(&node_id).is_some_and(|heard| heard.at.elapsed() < DOWN_AFTER)
    }
}
