//! How a read is answered: what was in memory, and where the rest lies.
//!
//! A plan is made under the view's lock and carried out without it, so reading from disk holds up nobody.
use std::sync::Arc;

use super::disk::DiskFile;
use super::entry::{EntryId, LogEntry};
use super::kept::KeptFile;
use super::reader::FileId;

/// Entries of one segment that have to be read from it.
pub(super) struct ColdPiece {
    pub segment_id: u64,
    pub first: EntryId,
    pub first_ordinal: u32,
    pub count: u64,
    /// Where they are in the open segment, which has no table on disk.
    pub open: Option<OpenPiece>,
}

pub(super) struct OpenPiece {
    pub file: Arc<dyn DiskFile>,
    /// Offset and bound of each entry.
    pub extents: Vec<(u64, u64)>,
}

/// How to answer a read: first the cold pieces, then the entries that were in memory.
#[derive(Default)]
pub(super) struct Plan {
    /// The file that may hold the one entry that was asked for, its index, and its term if that matters.
    pub kept: Option<(Arc<KeptFile>, u64, Option<u64>)>,
    pub cold: Vec<ColdPiece>,
    pub hot: Vec<LogEntry>,
}

impl Plan {
    /// The files that it reads, in order.
    pub(super) fn files(&self) -> Vec<FileId> {
        let kept = self.kept.iter().map(|(kept, ..)| FileId::Kept(kept.name));
        kept.chain(self.cold.iter().map(|piece| FileId::Segment(piece.segment_id))).collect()
    }
}
