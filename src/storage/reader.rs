//! Entries that are no longer in memory.
//!
//! A cold read takes the offset table of a sealed segment from a small cache (or from the end of the file),
//! and reads neighbouring frames with one positioned read. Tables and open files are bounded together, by
//! count and by bytes, so that neither a log of many segments nor one of many small entries holds more than
//! a fixed amount of memory and of file descriptors.
//!
//! Every frame is checked again, against its checksum and against the id that was asked for: a sealed segment
//! is not read through when the log is opened, so this is where damage inside it shows. Damaged bytes are
//! never given out; the error is of a kind of its own ([`is_damage`]), because the answer to it is to fetch
//! the entry from a peer, and not to end the process.
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::disk::{Disk, DiskFile, OpenMode};
use super::entry::{EntryId, LogEntry};
use super::frame::{self, FRAME_HEADER_BYTES};
use super::segment;
use super::table::OffsetTable;
use super::view::ColdPiece;

/// Sealed segments whose table and file are kept open.
const SEGMENTS_KEPT_MAX: usize = 32;
/// Frames are read together up to this size. A payload that is kept alive pins the buffer that it came in.
const READ_BYTES: u64 = 256 * 1024;

pub(super) struct Reader {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    kept_limit_bytes: usize,
    /// Most recently used last.
    kept: Mutex<VecDeque<Arc<SealedSegment>>>,
}

struct SealedSegment {
    segment_id: u64,
    file: Arc<dyn DiskFile>,
    table: OffsetTable,
    end_bytes: u64,
}

/// A frame that was confirmed once and is not what it should be.
#[derive(Debug)]
struct DamagedFrame {
    file: PathBuf,
    offset_bytes: u64,
    id: EntryId,
    what: String,
}

impl std::fmt::Display for DamagedFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, offset_bytes, id, what } = self;
        write!(f, "log segment {} is damaged at byte {offset_bytes}, entry {id}: {what}", file.display())
    }
}

impl std::error::Error for DamagedFrame {}

/// Whether an error of a read says that confirmed data is damaged, rather than that the disk refused.
pub fn is_damage(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<DamagedFrame>())
}

impl Reader {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf, kept_limit_bytes: usize) -> Self {
        Self { disk, dir, kept_limit_bytes, kept: Mutex::new(VecDeque::new()) }
    }

    /// Reads the entries of `piece` until `room_bytes` of payload are used up; always at least the first if
    /// `out` is empty. Returns whether the whole piece was read.
    pub(super) fn read(
        &self,
        piece: &ColdPiece,
        room_bytes: &mut usize,
        out: &mut Vec<LogEntry>,
    ) -> io::Result<bool> {
        if let Some(open) = &piece.open {
            return self.read_extents(piece, open.file.as_ref(), &open.extents, room_bytes, out);
        }
        let sealed = self.sealed(piece.segment_id, piece.first)?;
        let mut extents = Vec::new();
        let mut wanted_bytes = 0;
        for ordinal in (piece.first_ordinal..).take(usize::try_from(piece.count).unwrap_or(usize::MAX)) {
            let Some(extent) = sealed.table.extent(ordinal, sealed.end_bytes) else {
                return Err(self.damaged(
                    piece.segment_id,
                    sealed.end_bytes,
                    piece.first,
                    "not in the table",
                ));
            };
            extents.push(extent);
            wanted_bytes += extent.1 as usize;
            // The budget counts payload only, so this reads a little too far, never too little.
            if wanted_bytes.saturating_sub(extents.len() * (FRAME_HEADER_BYTES + 8)) > *room_bytes {
                break;
            }
        }
        let is_whole = extents.len() as u64 == piece.count;
        Ok(self.read_extents(piece, sealed.file.as_ref(), &extents, room_bytes, out)? && is_whole)
    }

    fn read_extents(
        &self,
        piece: &ColdPiece,
        file: &dyn DiskFile,
        extents: &[(u64, u64)],
        room_bytes: &mut usize,
        out: &mut Vec<LogEntry>,
    ) -> io::Result<bool> {
        let mut next = 0;
        while let Some((start, first_bytes)) = extents.get(next).copied() {
            // As many neighbours as fit into one read; one entry always does.
            let mut end = start + first_bytes;
            let mut behind = next + 1;
            while let Some((at, bytes)) = extents.get(behind) {
                if at + bytes - start > READ_BYTES {
                    break;
                }
                end = at + bytes;
                behind += 1;
            }
            let first = EntryId { term: piece.first.term, index: piece.first.index + next as u64 };
            let mut buf = vec![0; usize::try_from(end - start).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut buf, start).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    self.damaged(piece.segment_id, start, first, "file too short")
                }
                _ => error,
            })?;
            let buf = Bytes::from(buf);
            for (at, bytes) in &extents[next..behind] {
                let id = EntryId { term: piece.first.term, index: piece.first.index + next as u64 };
                let in_buf = (at - start) as usize;
                let entry = self.decode(piece.segment_id, &buf, in_buf, *bytes as usize, *at, id)?;
                if entry.payload.len() > *room_bytes && !out.is_empty() {
                    *room_bytes = 0;
                    return Ok(false);
                }
                *room_bytes = room_bytes.saturating_sub(entry.payload.len());
                out.push(entry);
                next += 1;
            }
        }
        Ok(true)
    }

    fn decode(
        &self,
        segment_id: u64,
        buf: &Bytes,
        in_buf: usize,
        bound_bytes: usize,
        offset_bytes: u64,
        id: EntryId,
    ) -> io::Result<LogEntry> {
        let bytes = &buf[in_buf..in_buf + bound_bytes];
        let frame = frame::decode(bytes)
            .map_err(|error| self.damaged(segment_id, offset_bytes, id, &error.to_string()))?;
        let payload_at = in_buf + FRAME_HEADER_BYTES;
        let payload = buf.slice(payload_at..payload_at + frame.payload.len());
        match frame.to_entry(payload).filter(|entry| entry.id == id) {
            Some(entry) => Ok(entry),
            None => Err(self.damaged(segment_id, offset_bytes, id, "another frame lies there")),
        }
    }

    fn sealed(&self, segment_id: u64, id: EntryId) -> io::Result<Arc<SealedSegment>> {
        {
            let mut kept = self.kept.lock();
            if let Some(position) = kept.iter().position(|segment| segment.segment_id == segment_id)
                && let Some(segment) = kept.remove(position)
            {
                kept.push_back(segment.clone());
                return Ok(segment);
            }
        }
        let path = self.dir.join(segment::file_name(segment_id));
        let file = self.disk.open(&path, OpenMode::Read)?;
        let Some(sealed) = OffsetTable::load_sealed(file.as_ref())? else {
            return Err(self.damaged(segment_id, file.len_bytes()?, id, "no offset table at the end"));
        };
        let end_bytes = sealed.frame_offset_bytes;
        let segment = Arc::new(SealedSegment { segment_id, file, table: sealed.table, end_bytes });
        let mut kept = self.kept.lock();
        // Two readers may have loaded it at the same time; one copy is enough.
        kept.retain(|other| other.segment_id != segment_id);
        kept.push_back(segment.clone());
        let mut bytes: usize = kept.iter().map(|segment| segment.table.memory_bytes()).sum();
        while kept.len() > SEGMENTS_KEPT_MAX || (bytes > self.kept_limit_bytes && kept.len() > 1) {
            bytes -= kept.pop_front().map_or(0, |segment| segment.table.memory_bytes());
        }
        Ok(segment)
    }

    fn damaged(&self, segment_id: u64, offset_bytes: u64, id: EntryId, what: &str) -> io::Error {
        let file = self.dir.join(segment::file_name(segment_id));
        let what = what.to_string();
        io::Error::new(io::ErrorKind::InvalidData, DamagedFrame { file, offset_bytes, id, what })
    }
}
