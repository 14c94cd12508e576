//! What members say to each other, in bytes.
//!
//! Every message is a frame: `length u32 | kind u8 | id u64 | body`, where `length` counts what follows
//! it. A request and its reply share the id. Entries travel as the same bytes that the log keeps; the
//! sender hands them to the socket and the receiver to its log without taking them apart.

use bytes::{BufMut, Bytes, BytesMut};
use openraft::impls::EntryPayload;
use openraft::raft::{StreamAppendError, TransferLeaderError, TransferLeaderResponse};

use super::digest_marks::DigestMark;
use super::install::InstallProgress;
use super::types::{
    AppendRequest, AppendResponse, NodeId, RaftLogId, RaftVoteOf, TransferRequest, Types, VoteRequest,
    VoteResponse, entry_id, raft_entry, raft_log_id, raft_vote, stored_entry, stored_vote,
};
use crate::codec::{Malformed, Reader, put_blob, put_varint, shared_slice};
use crate::state::Outcome;
use crate::storage::{EntryId, EntryKind, LogEntry, Vote};

/// Payloads up to this size are copied on their way out and in, which is cheaper than handling them.
const COPY_BYTES: usize = 4096;

/// Bytes before the body of a frame.
pub const FRAME_HEAD_BYTES: usize = 13;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Vote = 1,
    PreVote = 2,
    /// AppendEntries with a reply of its own: heartbeats.
    Append = 3,
    /// First AppendEntries of a stream; the id names the stream.
    StreamOpen = 4,
    /// Another one of it.
    StreamAppend = 5,
    /// No more of it.
    StreamClose = 6,
    TransferLeader = 7,
    ReadIndex = 8,
    Forward = 9,
    Status = 10,
    /// Asks a member to take over the state of the one that asks.
    Install = 11,
    /// A page of the state that is being taken over.
    TransferState = 12,
    /// Entries that it names.
    TransferEntries = 13,
    /// A member without data asks to be let in.
    Admit = 14,
    /// For whoever handles what this room does not know: see `PeerHandler`.
    Handler = 15,
    /// For the same, of how the links of routers do.
    Links = 16,
    /// Reply to the request with the same id.
    Reply = 128,
    /// Result of the next AppendEntries of the stream with this id.
    StreamReply = 129,
    /// The request with this id could not be served; the body says why, for people.
    Failure = 130,
    /// Part of a large frame came in; the id says nothing. It is sent from time to time for as long as that lasts.
    Receiving = 131,
}

impl Kind {
    pub fn from_u8(kind: u8) -> Option<Kind> {
        Some(match kind {
            1 => Kind::Vote,
            2 => Kind::PreVote,
            3 => Kind::Append,
            4 => Kind::StreamOpen,
            5 => Kind::StreamAppend,
            6 => Kind::StreamClose,
            7 => Kind::TransferLeader,
            8 => Kind::ReadIndex,
            9 => Kind::Forward,
            10 => Kind::Status,
            11 => Kind::Install,
            12 => Kind::TransferState,
            13 => Kind::TransferEntries,
            14 => Kind::Admit,
            15 => Kind::Handler,
            16 => Kind::Links,
            128 => Kind::Reply,
            129 => Kind::StreamReply,
            130 => Kind::Failure,
            131 => Kind::Receiving,
            _ => return None,
        })
    }
}

/// A frame on its way out: small fields in one buffer, payloads beside it, to be written in order.
#[derive(Debug, Default)]
pub struct Body {
    parts: Vec<Bytes>,
    tail: BytesMut,
}

impl Body {
    /// A body of fields only.
    pub fn of(fill: impl FnOnce(&mut BytesMut)) -> Self {
        let mut body = Body::default();
        fill(&mut body.tail);
        body
    }

    /// An empty body with room for payloads that take `payloads_bytes` and some fields before them.
    fn with_room(payloads_bytes: usize) -> Self {
        const FIELDS_BYTES: usize = 64;
        Body { parts: Vec::new(), tail: BytesMut::with_capacity(FIELDS_BYTES + payloads_bytes) }
    }

    /// What a payload and its own fields take in the buffer, at most.
    fn room_for(payload: &[u8]) -> usize {
        const FIELDS_BYTES: usize = 36;
        FIELDS_BYTES + if payload.len() <= COPY_BYTES { payload.len() } else { 0 }
    }

    pub(super) fn fields(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Small payloads are copied; large ones are shared.
    fn payload(&mut self, payload: &Bytes) {
        put_varint(&mut self.tail, payload.len() as u64);
        if payload.len() <= COPY_BYTES {
            self.tail.put_slice(payload);
        } else {
            self.parts.push(self.tail.split().freeze());
            self.parts.push(payload.clone());
        }
    }

    pub(super) fn entry(&mut self, entry: &LogEntry) {
        let out = self.fields();
        put_varint(out, entry.id.term);
        put_varint(out, entry.id.index);
        out.put_u8(entry.kind as u8);
        put_varint(out, entry.stamp_ms);
        self.payload(&entry.payload);
    }

    pub fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum::<usize>() + self.tail.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| &part[..]).chain(std::iter::once(&self.tail[..]))
    }
}

pub(super) fn put_id(out: &mut BytesMut, id: Option<&RaftLogId>) {
    match id {
        None => out.put_u8(0),
        Some(id) => {
            let id = entry_id(id);
            out.put_u8(1);
            put_varint(out, id.term);
            put_varint(out, id.index);
        }
    }
}

fn id(reader: &mut Reader<'_>) -> Result<Option<RaftLogId>, Malformed> {
    if !reader.bool()? {
        return Ok(None);
    }
    Ok(Some(raft_log_id(EntryId { term: reader.varint()?, index: reader.varint()? })))
}

pub(super) fn some_id(reader: &mut Reader<'_>) -> Result<RaftLogId, Malformed> {
    id(reader)?.ok_or(reader.malformed())
}

pub(super) fn put_vote(out: &mut BytesMut, vote: &RaftVoteOf) {
    let vote = stored_vote(vote);
    put_varint(out, vote.term);
    out.put_u64_le(vote.node_id);
    out.put_u8(vote.committed as u8);
}

pub(super) fn vote(reader: &mut Reader<'_>) -> Result<RaftVoteOf, Malformed> {
    Ok(raft_vote(Vote { term: reader.varint()?, node_id: reader.u64()?, committed: reader.bool()? }))
}

/// A payload of the message `bytes`. A large one is a part of it. A small one is copied: it stays in the log's
/// cache for long, and would keep all that was received with it in memory.
fn payload(reader: &mut Reader<'_>, bytes: &Bytes) -> Result<Bytes, Malformed> {
    let payload = reader.blob()?;
    Ok(match payload.len() {
        ..=COPY_BYTES => Bytes::copy_from_slice(payload),
        _ => shared_slice(bytes, payload),
    })
}

/// An entry of the message `bytes`.
pub(super) fn entry(reader: &mut Reader<'_>, bytes: &Bytes) -> Result<LogEntry, Malformed> {
    let id = EntryId { term: reader.varint()?, index: reader.varint()? };
    let kind = match reader.u8()? {
        1 => EntryKind::Blank,
        2 => EntryKind::Command,
        3 => EntryKind::Membership,
        _ => return Err(reader.malformed()),
    };
    let stamp_ms = reader.varint()?;
    let payload = payload(reader, bytes)?;
    Ok(LogEntry { id, kind, stamp_ms, payload })
}

pub fn encode_append(request: AppendRequest) -> Body {
    let entries_bytes = request.entries.iter().map(|entry| match &entry.payload {
        EntryPayload::Normal(command) => Body::room_for(&command.bytes),
        _ => Body::room_for(&[]),
    });
    let mut body = Body::with_room(entries_bytes.sum());
    let out = body.fields();
    put_vote(out, &request.vote);
    put_id(out, request.prev_log_id.as_ref());
    put_id(out, request.leader_commit.as_ref());
    put_varint(out, request.entries.len() as u64);
    request.entries.into_iter().for_each(|entry| body.entry(&stored_entry(entry)));
    body
}

pub fn decode_append(bytes: &Bytes) -> Result<AppendRequest, Malformed> {
    let mut reader = Reader::new(bytes, "AppendEntries");
    let vote = vote(&mut reader)?;
    let prev_log_id = id(&mut reader)?;
    let leader_commit = id(&mut reader)?;
    let count = reader.count(5)?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(raft_entry(entry(&mut reader, bytes)?)?);
    }
    reader.finish()?;
    Ok(AppendRequest { vote, prev_log_id, entries, leader_commit })
}

/// Result of one AppendEntries, as a stream of them yields it.
pub type StreamResult = Result<Option<RaftLogId>, StreamAppendError<Types>>;

pub fn encode_stream_result(result: &StreamResult) -> Body {
    Body::of(|out| match result {
        Ok(matching) => {
            out.put_u8(0);
            put_id(out, matching.as_ref());
        }
        Err(StreamAppendError::Conflict(at)) => {
            out.put_u8(1);
            put_id(out, Some(at));
        }
        Err(StreamAppendError::HigherVote(higher)) => {
            out.put_u8(2);
            put_vote(out, higher);
        }
    })
}

/// The last word on a stream out of which a request was not taken, for want of room.
pub fn encode_no_room() -> Body {
    Body::of(|out| out.put_u8(3))
}

/// `None`: there is no room for what was sent.
pub fn decode_stream_result(bytes: &[u8]) -> Result<Option<StreamResult>, Malformed> {
    let mut reader = Reader::new(bytes, "AppendEntries result");
    Ok(Some(match reader.u8()? {
        0 => Ok(id(&mut reader)?),
        1 => Err(StreamAppendError::Conflict(some_id(&mut reader)?)),
        2 => Err(StreamAppendError::HigherVote(vote(&mut reader)?)),
        3 => return Ok(None),
        _ => return Err(reader.malformed()),
    }))
}

pub fn encode_append_response(response: &AppendResponse) -> Body {
    Body::of(|out| match response {
        AppendResponse::Success => out.put_u8(0),
        AppendResponse::PartialSuccess(matching) => {
            out.put_u8(1);
            put_id(out, matching.as_ref());
        }
        AppendResponse::Conflict => out.put_u8(2),
        AppendResponse::HigherVote(higher) => {
            out.put_u8(3);
            put_vote(out, higher);
        }
    })
}

pub fn decode_append_response(bytes: &[u8]) -> Result<AppendResponse, Malformed> {
    let mut reader = Reader::new(bytes, "AppendEntries response");
    Ok(match reader.u8()? {
        0 => AppendResponse::Success,
        1 => AppendResponse::PartialSuccess(id(&mut reader)?),
        2 => AppendResponse::Conflict,
        3 => AppendResponse::HigherVote(vote(&mut reader)?),
        _ => return Err(reader.malformed()),
    })
}

pub fn encode_vote_request(request: &VoteRequest) -> Body {
    Body::of(|out| {
        put_vote(out, &request.vote);
        put_id(out, request.last_log_id.as_ref());
        out.put_u8(request.leadership_transfer as u8);
    })
}

pub fn decode_vote_request(bytes: &[u8]) -> Result<VoteRequest, Malformed> {
    let mut reader = Reader::new(bytes, "vote request");
    let mut request = VoteRequest::new(vote(&mut reader)?, id(&mut reader)?);
    request.leadership_transfer = reader.bool()?;
    Ok(request)
}

pub fn encode_vote_response(response: &VoteResponse) -> Body {
    Body::of(|out| {
        put_vote(out, &response.vote);
        put_id(out, response.last_log_id.as_ref());
        out.put_u8(response.vote_granted as u8);
    })
}

pub fn decode_vote_response(bytes: &[u8]) -> Result<VoteResponse, Malformed> {
    let mut reader = Reader::new(bytes, "vote response");
    let (vote, last_log_id) = (vote(&mut reader)?, id(&mut reader)?);
    Ok(VoteResponse::new(vote, last_log_id, reader.bool()?))
}

pub fn encode_transfer(request: &TransferRequest) -> Body {
    Body::of(|out| {
        put_vote(out, request.from_leader());
        out.put_u64_le(*request.to_node_id());
        put_id(out, request.last_log_id());
    })
}

pub fn decode_transfer(bytes: &[u8]) -> Result<TransferRequest, Malformed> {
    let mut reader = Reader::new(bytes, "leader transfer");
    let (from, to): (_, NodeId) = (vote(&mut reader)?, reader.u64()?);
    Ok(TransferRequest::new(from, to, id(&mut reader)?))
}

pub fn encode_transfer_response(response: &TransferLeaderResponse<Types>) -> Body {
    Body::of(|out| match response {
        Ok(()) => out.put_u8(0),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            out.put_u8(1);
            put_vote(out, expected);
            put_vote(out, actual);
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            out.put_u8(2);
            put_id(out, expected.as_ref());
            put_id(out, actual.as_ref());
        }
    })
}

pub fn decode_transfer_response(bytes: &[u8]) -> Result<TransferLeaderResponse<Types>, Malformed> {
    let mut reader = Reader::new(bytes, "leader transfer response");
    Ok(match reader.u8()? {
        0 => Ok(()),
        1 => {
            Err(TransferLeaderError::VoteChanged { expected: vote(&mut reader)?, actual: vote(&mut reader)? })
        }
        2 => Err(TransferLeaderError::LogNotFlushed { expected: id(&mut reader)?, actual: id(&mut reader)? }),
        _ => return Err(reader.malformed()),
    })
}

/// What became of one command handed to a leader.
#[derive(Debug, Clone, PartialEq)]
pub enum Proposal {
    /// It was applied.
    Done(Outcome),
    /// It was never put into the log: it may be given to another leader.
    NotLeader,
    /// It was put into the log of a leader that then lost its office: it may yet take effect.
    Unknown,
    /// It was refused because there is no room for records, and never put into the log.
    StorageFull,
    /// The leader cannot read it, as it runs another version: it was never put into the log.
    Unreadable,
}

pub fn encode_forward(commands: &[Bytes]) -> Body {
    let mut body = Body::with_room(commands.iter().map(|command| Body::room_for(command)).sum());
    put_varint(body.fields(), commands.len() as u64);
    commands.iter().for_each(|command| body.payload(command));
    body
}

pub fn decode_forward(bytes: &Bytes) -> Result<Vec<Bytes>, Malformed> {
    let mut reader = Reader::new(bytes, "forwarded commands");
    let count = reader.count(1)?;
    (0..count).map(|_| payload(&mut reader, bytes)).collect()
}

pub fn encode_proposals(proposals: &[Proposal]) -> Body {
    Body::of(|out| {
        put_varint(out, proposals.len() as u64);
        for proposal in proposals {
            match proposal {
                Proposal::Done(outcome) => {
                    out.put_u8(0);
                    outcome.encode(out);
                }
                Proposal::NotLeader => out.put_u8(1),
                Proposal::Unknown => out.put_u8(2),
                Proposal::StorageFull => out.put_u8(3),
                Proposal::Unreadable => out.put_u8(4),
            }
        }
    })
}

pub fn decode_proposals(bytes: &[u8]) -> Result<Vec<Proposal>, Malformed> {
    let mut reader = Reader::new(bytes, "outcomes of forwarded commands");
    let count = reader.count(1)?;
    (0..count)
        .map(|_| {
            Ok(match reader.u8()? {
                0 => Proposal::Done(Outcome::decode(&mut reader)?),
                1 => Proposal::NotLeader,
                2 => Proposal::Unknown,
                3 => Proposal::StorageFull,
                4 => Proposal::Unreadable,
                _ => return Err(reader.malformed()),
            })
        })
        .collect()
}

/// What a member says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    pub wall_ms: u64,
    pub applied_index: u64,
    /// Up to where it has applied and its log is synced: what it can go on from after any crash.
    pub durable_index: u64,
    pub version: String,
    /// Its disk has no room for records.
    pub is_storage_full: bool,
    /// How far it is with taking over the state of another, if it does.
    pub installing: Option<InstallProgress>,
    /// Why it could not the last time; empty if it could.
    pub install_error: String,
    /// Its newest digest of the state.
    pub digest: Option<DigestMark>,
}

impl Status {
    pub fn encode(&self) -> Body {
        Body::of(|out| {
            put_varint(out, self.wall_ms);
            put_varint(out, self.applied_index);
            put_varint(out, self.durable_index);
            put_blob(out, self.version.as_bytes());
            out.put_u8(self.is_storage_full as u8);
            out.put_u8(self.installing.is_some() as u8);
            if let Some(progress) = &self.installing {
                put_varint(out, progress.entries);
                put_varint(out, progress.entries_total);
                put_varint(out, progress.bytes);
            }
            put_blob(out, self.install_error.as_bytes());
            out.put_u8(self.digest.is_some() as u8);
            if let Some(mark) = &self.digest {
                put_varint(out, mark.index);
                out.put_u64_le(mark.digest);
            }
        })
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "status");
        Ok(Status {
            wall_ms: reader.varint()?,
            applied_index: reader.varint()?,
            durable_index: reader.varint()?,
            version: reader.text()?.to_owned(),
            is_storage_full: reader.bool()?,
            installing: match reader.bool()? {
                false => None,
                true => Some(InstallProgress {
                    entries: reader.varint()?,
                    entries_total: reader.varint()?,
                    bytes: reader.varint()?,
                }),
            },
            install_error: reader.text()?.to_owned(),
            digest: match reader.bool()? {
                false => None,
                true => Some(DigestMark { index: reader.varint()?, digest: reader.u64()? }),
            },
        })
    }
}

/// Where a strong read stands in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadPoint {
    /// What must be applied before the read is answered.
    pub index: u64,
    /// Cluster time at the leader when it was confirmed: what is expired by then is not read.
    pub time_ms: u64,
}

/// Answer to a read-index request: `None` if the asked member does not lead.
pub fn encode_read_point(point: Option<ReadPoint>) -> Body {
    Body::of(|out| match point {
        None => out.put_u8(0),
        Some(ReadPoint { index, time_ms }) => {
            out.put_u8(1);
            put_varint(out, index);
            put_varint(out, time_ms);
        }
    })
}

pub fn decode_read_point(bytes: &[u8]) -> Result<Option<ReadPoint>, Malformed> {
    let mut reader = Reader::new(bytes, "read index");
    if !reader.bool()? {
        return Ok(None);
    }
    Ok(Some(ReadPoint { index: reader.varint()?, time_ms: reader.varint()? }))
}

#[cfg(test)]
mod tests;
