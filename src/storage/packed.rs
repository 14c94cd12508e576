//! The table of a rewritten file: where each of its entries lies.
//!
//! What is left of a mostly dead segment has holes, in the worst case one behind every entry. A table of
//! spans, of which memory holds every span, would then cost memory per live entry. This one is sorted by
//! index and searched on disk: memory holds one index in 512, the rest is one small read. It holds no terms,
//! because of two entries with one index only one was ever committed, and the frame itself says which.
//!
//! The payload of the frame: first index u64, number of entries u32, 4 zero bytes; per entry its index above
//! the first u32 and its offset u32; and the trailer, which says where the frame begins (u64) and ends in a
//! magic word of its own.
use std::io;

use super::disk::DiskFile;
use super::frame::{self, FRAME_HEADER_BYTES, FrameKind};
use super::table;

pub(super) const TRAILER_MAGIC: [u8; 8] = *b"ANTPHPKT";
const HEAD_BYTES: usize = 16;
const ROW_BYTES: usize = 8;
/// One row in so many is in memory.
const FENCE_ROWS: usize = 512;

/// Where one entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub index: u64,
    /// `None` where only the frame says it.
    pub term: Option<u64>,
    pub offset_bytes: u64,
    /// A bound for the frame: the next one starts there.
    pub len_bytes: u64,
}

/// A table that is being made.
#[derive(Default)]
pub(super) struct PackedTable {
    first_index: u64,
    rows: Vec<(u32, u32)>,
}

impl PackedTable {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds an entry behind the last. Fails above 4 GiB or 4 G indexes, which whoever plans a file avoids.
    pub(super) fn push(&mut self, index: u64, offset_bytes: u64) -> io::Result<()> {
        if self.rows.is_empty() {
            self.first_index = index;
        }
        let above = u32::try_from(index.wrapping_sub(self.first_index)).map_err(io::Error::other)?;
        let offset = u32::try_from(offset_bytes).map_err(io::Error::other)?;
        debug_assert!(self.rows.last().is_none_or(|last| last.0 < above && last.1 < offset));
        self.rows.push((above, offset));
        Ok(())
    }

    pub(super) fn encode(&self, frame_offset_bytes: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.rows.len() * ROW_BYTES + 16);
        out.extend_from_slice(&self.first_index.to_le_bytes());
        out.extend_from_slice(&(self.rows.len() as u64).to_le_bytes());
        for (above, offset) in &self.rows {
            out.extend_from_slice(&above.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
        }
        out.extend_from_slice(&frame_offset_bytes.to_le_bytes());
        out.extend_from_slice(&TRAILER_MAGIC);
        out
    }
}

/// What memory holds of a table on disk.
#[derive(Debug)]
pub(super) struct PackedIndex {
    pub first_index: u64,
    pub last_index: u64,
    pub entry_count: u32,
    /// Where the table's own frame begins: the end of the entries.
    pub end_bytes: u64,
    rows_at_bytes: u64,
    /// The index above the first of every [`FENCE_ROWS`]th row.
    fences: Vec<u32>,
}

impl PackedIndex {
    /// Reads and checks the table at the end of a file. `None` if there is no good one.
    pub(super) fn load(file: &dyn DiskFile) -> io::Result<Option<Self>> {
        let len_bytes = file.len_bytes()?;
        let Some(end_bytes) = table::read_trailer(file, len_bytes, &TRAILER_MAGIC)? else { return Ok(None) };
        let frame_len = len_bytes - end_bytes;
        if frame_len > frame::frame_bytes(frame::MAX_PAYLOAD_BYTES) as u64 {
            return Ok(None);
        }
        let mut bytes = vec![0; frame_len as usize];
        file.read_exact_at(&mut bytes, end_bytes)?;
        let Ok(found) = frame::decode(&bytes) else { return Ok(None) };
        if found.head.kind != FrameKind::Table || found.total_bytes() as u64 != frame_len {
            return Ok(None);
        }
        Ok(Self::parse(found.payload, end_bytes))
    }

    fn parse(payload: &[u8], end_bytes: u64) -> Option<Self> {
        let (first_index, rest) = payload.split_first_chunk::<8>()?;
        let (entry_count, rest) = rest.split_first_chunk::<8>()?;
        let first_index = u64::from_le_bytes(*first_index);
        let entry_count = u32::try_from(u64::from_le_bytes(*entry_count)).ok()?;
        let rows = rest.get(..(entry_count as usize).checked_mul(ROW_BYTES)?)?;
        let rows: Vec<(u32, u32)> = rows.chunks_exact(ROW_BYTES).map(row).collect();
        let is_rising = rows.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1);
        let last = rows.last().filter(|last| is_rising && u64::from(last.1) < end_bytes)?;
        Some(Self {
            first_index,
            last_index: first_index.checked_add(u64::from(last.0))?,
            entry_count,
            end_bytes,
            rows_at_bytes: end_bytes + (FRAME_HEADER_BYTES + HEAD_BYTES) as u64,
            fences: rows.iter().step_by(FENCE_ROWS).map(|row| row.0).collect(),
        })
    }

    /// Up to `max` rows from the row `from` on.
    pub(super) fn rows(&self, file: &dyn DiskFile, from: u64, max: u64) -> io::Result<Vec<Row>> {
        let count = u64::from(self.entry_count).saturating_sub(from).min(max) as usize;
        if count == 0 {
            return Ok(Vec::new());
        }
        let has_next = from + (count as u64) < u64::from(self.entry_count);
        let mut bytes = vec![0; (count + usize::from(has_next)) * ROW_BYTES];
        file.read_exact_at(&mut bytes, self.rows_at_bytes + from * ROW_BYTES as u64)?;
        let rows: Vec<(u32, u32)> = bytes.chunks_exact(ROW_BYTES).map(row).collect();
        let ends = rows[1..].iter().map(|row| u64::from(row.1)).chain([self.end_bytes]);
        let found = rows.iter().zip(ends).take(count).map(|((above, offset), end)| Row {
            index: self.first_index + u64::from(*above),
            term: None,
            offset_bytes: u64::from(*offset),
            // Rows were checked when the file was opened; if they changed, the frame will not be there.
            len_bytes: end.saturating_sub(u64::from(*offset)),
        });
        Ok(found.collect())
    }

    /// The row of the entry at `index`.
    pub(super) fn find(&self, file: &dyn DiskFile, index: u64) -> io::Result<Option<Row>> {
        let Some(above) = index.checked_sub(self.first_index).and_then(|above| u32::try_from(above).ok())
        else {
            return Ok(None);
        };
        let Some(fence) = self.fences.partition_point(|fence| *fence <= above).checked_sub(1) else {
            return Ok(None);
        };
        let rows = self.rows(file, (fence * FENCE_ROWS) as u64, FENCE_ROWS as u64)?;
        Ok(rows.binary_search_by_key(&index, |row| row.index).ok().map(|at| rows[at]))
    }
}

fn row(bytes: &[u8]) -> (u32, u32) {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (word(0), word(4))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = PackedIndex::parse(&bytes, 50);
        }
    }
}
