//! What the log holds.
//!
//! These are the log's own types and not the consensus library's: the bytes on disk must not change when a
//! library renames a field, and the log must be testable without an election. They are plain values; the
//! payload is shared (`Bytes`), so that the copy in the cache, the one that goes to a peer and the one that
//! a reader gets are the same memory.
use bytes::Bytes;

/// Names an entry for ever: no two entries of a group share both numbers. Ordered by term, then index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    pub term: u64,
    pub index: u64,
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

/// What an entry means to the layers above; the log only keeps it. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    Blank = 1,
    Command = 2,
    Membership = 3,
}

/// One entry. Cloning is cheap: the payload is shared. A payload that is a slice of a larger buffer keeps
/// that whole buffer alive for as long as the entry is cached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    pub id: EntryId,
    pub kind: EntryKind,
    /// The leader's time of the entry, in milliseconds; the log only keeps it.
    pub stamp_ms: u64,
    pub payload: Bytes,
}

/// Whom this member voted for in which term, and whether that leader is known to have won.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    pub term: u64,
    pub node_id: u64,
    pub committed: bool,
}
