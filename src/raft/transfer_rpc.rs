//! What is said while one member takes over the state of another, in bytes.

use bytes::{BufMut, Bytes};

use super::rpc::{Body, entry, put_id, put_vote, some_id, vote};
use super::types::{Member, NodeId, RaftLogId, RaftVoteOf};
use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::storage::{LogEntry, Page};

/// Asks a member to take over the state.
#[derive(Debug, Clone, PartialEq)]
pub struct InstallRequest {
    pub vote: RaftVoteOf,
    /// What the member will have at least.
    pub last: RaftLogId,
    /// About how many bytes of state and entries that will be.
    pub needed_bytes: u64,
    /// Under which number the state is held ready.
    pub transfer: u64,
    /// By whom.
    pub node_id: NodeId,
    pub member: Member,
}

impl InstallRequest {
    pub fn encode(&self) -> Body {
        Body::of(|out| {
            put_vote(out, &self.vote);
            put_id(out, Some(&self.last));
            put_varint(out, self.needed_bytes);
            out.put_u64_le(self.transfer);
            out.put_u64_le(self.node_id);
            self.member.put(out);
        })
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "request to take over the state");
        let (vote, last) = (vote(&mut reader)?, some_id(&mut reader)?);
        let needed_bytes = reader.varint()?;
        let (transfer, node_id) = (reader.u64()?, reader.u64()?);
        let member = Member::read(&mut reader)?;
        reader.finish()?;
        Ok(InstallRequest { vote, last, needed_bytes, transfer, node_id, member })
    }
}

/// The answer when the member has what it was asked to have: its vote.
pub fn encode_installed(vote: &RaftVoteOf) -> Body {
    Body::of(|out| put_vote(out, vote))
}

pub fn decode_installed(bytes: &[u8]) -> Result<RaftVoteOf, Malformed> {
    let mut reader = Reader::new(bytes, "answer of a member that takes over the state");
    let vote = vote(&mut reader)?;
    reader.finish()?;
    Ok(vote)
}

/// Asks for the keys above `after`.
pub fn encode_state_request(transfer: u64, after: Option<&[u8]>) -> Body {
    Body::of(|out| {
        out.put_u64_le(transfer);
        out.put_u8(after.is_some() as u8);
        put_blob(out, after.unwrap_or_default());
    })
}

pub fn decode_state_request(bytes: &[u8]) -> Result<(u64, Option<Vec<u8>>), Malformed> {
    let mut reader = Reader::new(bytes, "request for state");
    let (transfer, is_some) = (reader.u64()?, reader.bool()?);
    let after = reader.blob()?.to_vec();
    reader.finish()?;
    Ok((transfer, is_some.then_some(after)))
}

/// A page of the state, and the sum of the state, by which the member sees whether all came as it was.
pub fn encode_page(page: &Page, sum: u64) -> Body {
    Body::of(|out| {
        put_varint(out, page.len() as u64);
        for (key, value) in page {
            put_blob(out, key);
            put_blob(out, value);
        }
        out.put_u64_le(sum);
    })
}

pub fn decode_page(bytes: &[u8]) -> Result<(Page, u64), Malformed> {
    let mut reader = Reader::new(bytes, "page of state");
    let count = reader.count(2)?;
    let page: Result<Page, Malformed> =
        (0..count).map(|_| Ok((reader.blob()?.to_vec(), reader.blob()?.to_vec()))).collect();
    let sum = reader.u64()?;
    reader.finish()?;
    Ok((page?, sum))
}

/// Asks for the entries at `indexes`, which rise.
pub fn encode_entries_request(transfer: u64, indexes: &[u64]) -> Body {
    Body::of(|out| {
        out.put_u64_le(transfer);
        put_varint(out, indexes.len() as u64);
        let mut before = 0;
        for index in indexes {
            put_varint(out, index - before);
            before = *index;
        }
    })
}

pub fn decode_entries_request(bytes: &[u8]) -> Result<(u64, Vec<u64>), Malformed> {
    let mut reader = Reader::new(bytes, "request for entries");
    let (transfer, count) = (reader.u64()?, reader.count(1)?);
    let mut index = 0u64;
    let mut indexes = Vec::with_capacity(count);
    for _ in 0..count {
        index = index.checked_add(reader.varint()?).ok_or(reader.malformed())?;
        indexes.push(index);
    }
    reader.finish()?;
    Ok((transfer, indexes))
}

/// Entries, and their checksum: nothing else would notice what the way has changed.
pub fn encode_entries(entries: &[LogEntry]) -> Body {
    let mut body = Body::of(|out| put_varint(out, entries.len() as u64));
    entries.iter().for_each(|entry| body.entry(entry));
    let crc = body.pieces().fold(0, crc32c::crc32c_append);
    body.fields().put_u32_le(crc);
    body
}

pub fn decode_entries(bytes: &Bytes) -> Result<Vec<LogEntry>, Malformed> {
    let (checked, crc) = bytes.split_last_chunk::<4>().ok_or(Malformed("entries"))?;
    if crc32c::crc32c(checked) != u32::from_le_bytes(*crc) {
        return Err(Malformed("entries: they were changed on their way"));
    }
    let mut reader = Reader::new(checked, "entries");
    let count = reader.count(5)?;
    let entries = (0..count).map(|_| entry(&mut reader, bytes)).collect();
    reader.finish()?;
    entries
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::raft::types::{raft_log_id, raft_vote};
    use crate::storage::{EntryId, EntryKind, Vote};

    fn bytes_of(body: Body) -> Bytes {
        body.pieces().flatten().copied().collect::<Vec<u8>>().into()
    }

    #[test]
    fn messages_come_back_as_they_were_sent() {
        let text = |text: &str| text.to_owned();
        let request = InstallRequest {
            vote: raft_vote(Vote { term: 3, node_id: 9, committed: true }),
            last: raft_log_id(EntryId { term: 2, index: 70 }),
            needed_bytes: 1 << 40,
            transfer: 11,
            node_id: 9,
            member: Member { name: text("m1"), peer_address: text("a:1"), client_url: text("http://a") },
        };
        assert_eq!(InstallRequest::decode(&bytes_of(request.encode())), Ok(request.clone()));
        assert_eq!(decode_installed(&bytes_of(encode_installed(&request.vote))), Ok(request.vote));
        for after in [None, Some(&b""[..]), Some(b"key")] {
            let sent = bytes_of(encode_state_request(5, after));
            assert_eq!(decode_state_request(&sent), Ok((5, after.map(<[u8]>::to_vec))));
        }
        let page = vec![(vec![1], vec![2, 3]), (vec![4], vec![])];
        assert_eq!(decode_page(&bytes_of(encode_page(&page, 77))), Ok((page, 77)));
        let sent = bytes_of(encode_entries_request(6, &[0, 1, 900, u64::MAX]));
        assert_eq!(decode_entries_request(&sent), Ok((6, vec![0, 1, 900, u64::MAX])));
        let entries = vec![LogEntry {
            id: EntryId { term: 1, index: 2 },
            kind: EntryKind::Command,
            stamp_ms: 5,
            payload: Bytes::from_static(b"payload"),
        }];
        assert_eq!(decode_entries(&bytes_of(encode_entries(&entries))), Ok(entries.clone()));
        let sent = bytes_of(encode_entries(&entries));
        for at in 0..sent.len() {
            let mut changed = sent.to_vec();
            changed[at] ^= 4;
            assert!(decode_entries(&changed.into()).is_err(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let _ = InstallRequest::decode(&bytes);
            let _ = decode_installed(&bytes);
            let _ = decode_state_request(&bytes);
            let _ = decode_page(&bytes);
            let _ = decode_entries_request(&bytes);
            let _ = decode_entries(&bytes);
        }
    }
}
