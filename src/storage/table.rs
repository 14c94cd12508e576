//! Where the entries of a segment lie.
//!
//! While a segment is written, its table is in memory and grows with it. When the segment is sealed, the
//! table becomes its last frame, so that opening a log of a terabyte reads a few tables instead of every
//! frame, and memory holds nothing per entry for sealed segments. Entries are named by their *ordinal* (the
//! how-manieth entry frame of the segment), because indexes repeat within a segment when a log is truncated.
//!
//! A reader does not load the table either: it reads the few offsets that it needs ([`TableIndex`]) from where
//! they lie. A cache of whole tables was tried first; with ten million entries of 40 bytes, a random read
//! took 781 us, most of it for tables that had just been given up.
//!
//! The payload of the frame: number of spans u32, number of entries u32; per span term u64, first index u64,
//! count u32, and 4 zero bytes; an offset u32 per entry; zeroes to a multiple of 8; and the trailer, which
//! says where the frame begins (u64) and ends in a magic word. A sealed file is cut to end with the trailer.
use std::io;

use super::disk::DiskFile;
use super::entry::EntryId;
use super::frame::{self, FRAME_HEADER_BYTES, FrameKind};

const SPAN_BYTES: usize = 24;
const TRAILER_BYTES: usize = 16;
pub(super) const TRAILER_MAGIC: [u8; 8] = *b"ANTPHEND";

/// A row of entries of one term with consecutive indexes, in the order in which they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub term: u64,
    pub first_index: u64,
    pub count: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OffsetTable {
    spans: Vec<Span>,
    offsets: Vec<u32>,
}

/// The table of a sealed segment, and how its frame ties in with the next segment.
pub(super) struct SealedTable {
    pub table: OffsetTable,
    /// Where the table's own frame begins: the end of the entries.
    pub frame_offset_bytes: u64,
    pub lsn: u64,
    pub crc: u32,
}

/// Where the table of a sealed segment lies: all that is kept of it in memory.
#[derive(Debug)]
pub(super) struct TableIndex {
    offsets_at_bytes: u64,
    entry_count: u32,
    /// Where the table's own frame begins: the end of the entries.
    pub end_bytes: u64,
}

impl OffsetTable {
    pub(super) fn entry_count(&self) -> u32 {
        self.offsets.len() as u32
    }

    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    pub(super) fn push(&mut self, id: EntryId, offset_bytes: u32) {
        match self.spans.last_mut() {
            Some(span) if span.continues_with(id) => span.count += 1,
            _ => self.spans.push(Span { term: id.term, first_index: id.index, count: 1 }),
        }
        self.offsets.push(offset_bytes);
    }

    /// Where the entry `ordinal` begins, and a bound for where it ends: the next entry, or `end_bytes`.
    pub(super) fn extent(&self, ordinal: u32, end_bytes: u64) -> Option<(u64, u64)> {
        let ordinal = ordinal as usize;
        let start = u64::from(*self.offsets.get(ordinal)?);
        let end = self.offsets.get(ordinal + 1).map_or(end_bytes, |next| u64::from(*next));
        Some((start, end.saturating_sub(start)))
    }

    /// Bytes of the frame that would seal the segment as it is.
    pub(super) fn frame_bytes(&self) -> u64 {
        Self::frame_bytes_for(self.spans.len(), self.offsets.len())
    }

    /// Bytes of the frame that would seal the segment after one more entry: room that must stay free.
    pub(super) fn frame_bytes_with_one_more(&self) -> u64 {
        Self::frame_bytes_for(self.spans.len() + 1, self.offsets.len() + 1)
    }

    pub(super) fn frame_bytes_for(spans: usize, entries: usize) -> u64 {
        frame::frame_bytes(8 + spans * SPAN_BYTES + (entries * 4).next_multiple_of(8) + TRAILER_BYTES) as u64
    }

    pub(super) fn encode(&self, frame_offset_bytes: u64) -> Vec<u8> {
        let mut out =
            Vec::with_capacity(Self::frame_bytes_for(self.spans.len(), self.offsets.len()) as usize);
        out.extend_from_slice(&(self.spans.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.offsets.len() as u32).to_le_bytes());
        for span in &self.spans {
            out.extend_from_slice(&span.term.to_le_bytes());
            out.extend_from_slice(&span.first_index.to_le_bytes());
            out.extend_from_slice(&u64::from(span.count).to_le_bytes());
        }
        for offset in &self.offsets {
            out.extend_from_slice(&offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(8), 0);
        out.extend_from_slice(&frame_offset_bytes.to_le_bytes());
        out.extend_from_slice(&TRAILER_MAGIC);
        out
    }

    /// Reads what [`OffsetTable::encode`] made. `None` if it is not consistent in itself.
    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let body = payload.get(..payload.len().checked_sub(TRAILER_BYTES)?)?;
        let (span_count, rest) = take_u32(body)?;
        let (entry_count, rest) = take_u32(rest)?;
        let (span_count, entry_count) = (span_count as usize, entry_count as usize);
        let span_bytes = rest.get(..span_count.checked_mul(SPAN_BYTES)?)?;
        let offset_bytes = rest.get(span_bytes.len()..)?.get(..entry_count.checked_mul(4)?)?;
        let mut spans = Vec::with_capacity(span_count);
        for bytes in span_bytes.chunks_exact(SPAN_BYTES) {
            let (term, bytes) = take_u64(bytes)?;
            let (first_index, bytes) = take_u64(bytes)?;
            let (count, _) = take_u64(bytes)?;
            spans.push(Span { term, first_index, count: u32::try_from(count).ok()? });
        }
        let offsets: Vec<u32> =
            offset_bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let spanned: u64 = spans.iter().map(|span| u64::from(span.count)).sum();
        let is_ascending = offsets.windows(2).all(|pair| pair[0] < pair[1]);
        (spanned == entry_count as u64 && is_ascending).then_some(Self { spans, offsets })
    }

    /// The table at the end of a sealed file. `None` if the file does not end in one: it is not sealed, or
    /// damaged, which the caller has to tell apart.
    pub(super) fn load_sealed(file: &dyn DiskFile) -> io::Result<Option<SealedTable>> {
        let len_bytes = file.len_bytes()?;
        let Some(frame_offset_bytes) = read_trailer(file, len_bytes, &TRAILER_MAGIC)? else {
            return Ok(None);
        };
        let frame_len = len_bytes - frame_offset_bytes;
        if frame_len > frame::frame_bytes(frame::MAX_PAYLOAD_BYTES) as u64 {
            return Ok(None);
        }
        let mut bytes = vec![0; frame_len as usize];
        file.read_exact_at(&mut bytes, frame_offset_bytes)?;
        let Ok(frame) = frame::decode(&bytes) else { return Ok(None) };
        if frame.head.kind != FrameKind::Table || frame.total_bytes() as u64 != frame_len {
            return Ok(None);
        }
        let Some(table) = Self::decode(frame.payload) else { return Ok(None) };
        Ok(Some(SealedTable { table, frame_offset_bytes, lsn: frame.head.lsn, crc: frame.crc }))
    }
}

impl TableIndex {
    /// Reads where the offsets of a sealed file lie. `None` if the file does not end in a table.
    pub(super) fn locate(file: &dyn DiskFile) -> io::Result<Option<Self>> {
        let len_bytes = file.len_bytes()?;
        let Some(end_bytes) = read_trailer(file, len_bytes, &TRAILER_MAGIC)? else { return Ok(None) };
        let payload_at = end_bytes + FRAME_HEADER_BYTES as u64;
        let mut counts = [0; 8];
        if payload_at + counts.len() as u64 > len_bytes {
            return Ok(None);
        }
        file.read_exact_at(&mut counts, payload_at)?;
        let (span_count, entry_count) = (u64::from(u32_at(&counts, 0)), u32_at(&counts, 4));
        let offsets_at_bytes = payload_at + 8 + span_count * SPAN_BYTES as u64;
        let is_inside = offsets_at_bytes + u64::from(entry_count) * 4 <= len_bytes;
        Ok(is_inside.then_some(Self { offsets_at_bytes, entry_count, end_bytes }))
    }

    /// Offset and bound of `count` entries. The checksum of the table is not checked again: a wrong offset
    /// leads to a frame that is not the one that was asked for. `None` if they cannot be offsets at all.
    pub(super) fn extents(
        &self,
        file: &dyn DiskFile,
        first_ordinal: u32,
        count: u32,
    ) -> io::Result<Option<Vec<(u64, u64)>>> {
        let behind = u64::from(first_ordinal) + u64::from(count);
        if behind > u64::from(self.entry_count) {
            return Ok(None);
        }
        let is_last_included = behind == u64::from(self.entry_count);
        let wanted = count as usize + usize::from(!is_last_included);
        let mut bytes = vec![0; wanted * 4];
        file.read_exact_at(&mut bytes, self.offsets_at_bytes + u64::from(first_ordinal) * 4)?;
        let mut offsets: Vec<u64> =
            (0..wanted).map(|position| u64::from(u32_at(&bytes, position * 4))).collect();
        if is_last_included {
            offsets.push(self.end_bytes);
        }
        let is_sound = offsets.windows(2).all(|pair| pair[0] < pair[1] && pair[1] <= self.end_bytes);
        Ok(is_sound.then(|| offsets.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).collect()))
    }
}

/// Where the table's frame begins, as the end of the file says.
pub(super) fn read_trailer(file: &dyn DiskFile, len_bytes: u64, magic: &[u8; 8]) -> io::Result<Option<u64>> {
    let Some(trailer_at) = len_bytes.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(&mut trailer, trailer_at)?;
    let frame_at = take_u64(&trailer).filter(|(frame_at, found)| *found == magic && *frame_at < trailer_at);
    Ok(frame_at.map(|(frame_at, _)| frame_at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Span {
    fn continues_with(&self, id: EntryId) -> bool {
        self.term == id.term
            && self.first_index.checked_add(u64::from(self.count)) == Some(id.index)
            && self.count < u32::MAX
    }
}

fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*word), rest))
}

fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (word, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_table_comes_back_and_takes_the_room_that_was_kept_for_it() {
        let mut table = OffsetTable::default();
        for (term, index) in [(1, 5), (1, 6), (1, 7), (2, 6), (2, 7), (3, 8)] {
            let kept = table.frame_bytes_with_one_more();
            table.push(EntryId { term, index }, 4096 + 64 * table.entry_count());
            let payload = table.encode(8192);
            assert!(frame::frame_bytes(payload.len()) as u64 <= kept);
            assert_eq!(OffsetTable::decode(&payload).as_ref(), Some(&table));
        }
        assert_eq!(table.spans().len(), 3);
        assert_eq!(table.extent(1, 9000), Some((4096 + 64, 64)));
        assert_eq!(table.extent(5, 9000), Some((4096 + 320, 9000 - 4096 - 320)));
        assert_eq!(table.extent(6, 9000), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = OffsetTable::decode(&bytes);
        }
    }
}
