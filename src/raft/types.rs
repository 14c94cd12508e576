//! Every openraft type that the program uses, under one roof.
//!
//! openraft is generic over everything and changes between its alphas. These aliases fix the parameters
//! once; no other room names openraft.

use std::collections::BTreeSet;
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use openraft::impls::{Entry, EntryPayload, InlineBatch, LogId, OneshotResponder, Vote as RaftVote};
use openraft::vote::RaftLeaderId;
use openraft::{OptionalSend, RaftTypeConfig};

use super::runtime::Runtime;
use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::state::Outcome;
use crate::storage::{EntryId, EntryKind, LogEntry, Vote};

/// Raft id of a member: random, minted with its data directory.
pub type NodeId = u64;

/// A command on its way through Raft: its encoded bytes, and the time that the leader ordered it at.
#[derive(Clone)]
pub struct StampedCommand {
    pub stamp_ms: u64,
    pub bytes: Bytes,
}

impl fmt::Debug for StampedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.bytes.len())
    }
}

impl fmt::Display for StampedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A member as the membership knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// The operator's name for it.
    pub name: String,
    /// `host:port` where it listens for its peers.
    pub peer_address: String,
    /// Where clients reach it.
    pub client_url: String,
}

impl Member {
    /// Its bytes, the same wherever a member is named: in the log, in handshakes and in requests.
    pub fn put(&self, out: &mut BytesMut) {
        for text in [&self.name, &self.peer_address, &self.client_url] {
            put_blob(out, text.as_bytes());
        }
    }

    /// The inverse of [`Member::put`].
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut text = || reader.text().map(str::to_owned);
        Ok(Member { name: text()?, peer_address: text()?, client_url: text()? })
    }
}

/// The parameters of openraft.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types;

type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, NodeId>;
/// Names the leader of a term in entries: the term.
pub type CommittedLeader = <LeaderId as RaftLeaderId>::Committed;
type Payload = EntryPayload<StampedCommand, NodeId, Member>;

impl RaftTypeConfig for Types {
    type D = StampedCommand;
    type R = Outcome;
    type NodeId = NodeId;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = RaftVote<LeaderId>;
    type Payload = Payload;
    type Entry = Entry<CommittedLeader, Payload>;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub type RaftEntry = openraft::alias::EntryOf<Types>;
pub type RaftLogId = openraft::alias::LogIdOf<Types>;
pub type RaftStoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub type RaftMembership = openraft::Membership<NodeId, Member>;
pub type RaftVoteOf = openraft::alias::VoteOf<Types>;
pub type Raft = openraft::Raft<Types, super::machine::Machine>;
pub type AppendRequest = openraft::raft::AppendEntriesRequest<Types>;
pub type AppendResponse = openraft::raft::AppendEntriesResponse<Types>;
pub type VoteRequest = openraft::raft::VoteRequest<Types>;
pub type VoteResponse = openraft::raft::VoteResponse<Types>;
pub type TransferRequest = openraft::raft::TransferLeaderRequest<Types>;

/// openraft's name of an entry.
pub fn raft_log_id(id: EntryId) -> RaftLogId {
    LogId::new_term_index(id.term, id.index)
}

/// The log's name of an entry.
pub fn entry_id(id: &RaftLogId) -> EntryId {
    EntryId { term: **id.committed_leader_id(), index: id.index() }
}

pub fn raft_vote(vote: Vote) -> RaftVoteOf {
    if vote.committed {
        RaftVote::new_committed(vote.term, vote.node_id)
    } else {
        RaftVote::new(vote.term, vote.node_id)
    }
}

pub fn stored_vote(vote: &RaftVoteOf) -> Vote {
    Vote { term: vote.leader_id.term, node_id: vote.leader_id.voted_for, committed: vote.committed }
}

/// The form in which the log keeps an entry.
pub fn stored_entry(entry: RaftEntry) -> LogEntry {
    let id = entry_id(&entry.log_id);
    let (kind, stamp_ms, payload) = match entry.payload {
        EntryPayload::Blank => (EntryKind::Blank, 0, Bytes::new()),
        EntryPayload::Normal(command) => (EntryKind::Command, command.stamp_ms, command.bytes),
        EntryPayload::Membership(membership) => (EntryKind::Membership, 0, encode_membership(&membership)),
    };
    LogEntry { id, kind, stamp_ms, payload }
}

/// The inverse of [`stored_entry`].
pub fn raft_entry(entry: LogEntry) -> Result<RaftEntry, Malformed> {
    let payload = match entry.kind {
        EntryKind::Blank => EntryPayload::Blank,
        EntryKind::Command => {
            EntryPayload::Normal(StampedCommand { stamp_ms: entry.stamp_ms, bytes: entry.payload })
        }
        EntryKind::Membership => EntryPayload::Membership(decode_membership(&entry.payload)?),
    };
    Ok(Entry { log_id: raft_log_id(entry.id), payload })
}

const MEMBERSHIP_VERSION: u8 = 1;

/// The stored form of a membership.
pub fn encode_membership(membership: &RaftMembership) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(MEMBERSHIP_VERSION);
    let configs = membership.get_joint_config();
    put_varint(&mut out, configs.len() as u64);
    for voters in configs {
        put_varint(&mut out, voters.len() as u64);
        voters.iter().for_each(|id| out.put_u64_le(*id));
    }
    let nodes: Vec<_> = membership.nodes().collect();
    put_varint(&mut out, nodes.len() as u64);
    for (id, member) in nodes {
        out.put_u64_le(*id);
        member.put(&mut out);
    }
    out.freeze()
}

/// The inverse of [`encode_membership`].
pub fn decode_membership(bytes: &[u8]) -> Result<RaftMembership, Malformed> {
    let mut reader = Reader::new(bytes, "membership");
    if reader.u8()? != MEMBERSHIP_VERSION {
        return Err(Malformed("membership: written by a newer version"));
    }
    let mut configs = Vec::new();
    for _ in 0..reader.count(1)? {
        let count = reader.count(8)?;
        configs.push((0..count).map(|_| reader.u64()).collect::<Result<BTreeSet<_>, _>>()?);
    }
    let mut nodes = std::collections::BTreeMap::new();
    for _ in 0..reader.count(11)? {
        let id = reader.u64()?;
        nodes.insert(id, Member::read(&mut reader)?);
    }
    reader.finish()?;
    RaftMembership::new(configs, nodes).map_err(|_| Malformed("membership: a voter without an address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_membership_comes_back_as_it_was_stored() {
        let member = |name: &str| Member {
            name: name.into(),
            peer_address: format!("{name}:4100"),
            client_url: format!("http://{name}:4000"),
        };
        let nodes: std::collections::BTreeMap<u64, Member> =
            [(1, member("a")), (u64::MAX, member("b")), (7, member("learner"))].into();
        let voters = vec![BTreeSet::from([1, u64::MAX]), BTreeSet::from([1])];
        let membership = RaftMembership::new(voters, nodes).unwrap();
        assert_eq!(decode_membership(&encode_membership(&membership)).unwrap(), membership);
    }
}
