//! Entries that are no longer in memory.
//!
//! A cold read looks the offsets up in the table at the end of a sealed file, without loading the table, and
//! reads neighbouring frames with one positioned read. Only open files are kept, a bounded number, so neither
//! a log of many segments nor one of many small entries holds more than a fixed amount of memory and of file
//! descriptors.
//!
//! Every frame is checked again, against its checksum and against the id that was asked for: a sealed segment
//! is not read through when the log is opened, so this is where damage inside it shows. Damaged bytes are
//! never given out; the error is of a kind of its own ([`is_damage`]), because the answer to it is to fetch
//! the entry from a peer, and not to end the process.
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::disk::{Disk, DiskFile, OpenMode};
use super::entry::{EntryId, LogEntry};
use super::frame::{self, FRAME_ALIGN_BYTES, FRAME_HEADER_BYTES};
use super::kept::{KeptFile, KeptName};
use super::plan::{ColdPiece, Plan};
use super::segment;
use super::table::TableIndex;
use super::verdict::is_unreadable;

/// Files that are kept open.
const FILES_KEPT_MAX: usize = 32;
/// Frames are read together up to this size. A payload that is kept alive pins the buffer that it came in.
const READ_BYTES: u64 = 256 * 1024;
/// Offsets that are read together.
const OFFSETS_MAX: u64 = 1024;

pub(super) struct Reader {
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    /// Most recently used last.
    open: Mutex<VecDeque<Arc<OpenFile>>>,
    /// Counts the files that were removed.
    removals: AtomicU64,
}

/// Names a file that does not change any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileId {
    Segment(u64),
    Kept(KeptName),
}

impl FileId {
    pub(super) fn file_name(self) -> String {
        match self {
            Self::Segment(id) => segment::file_name(id),
            Self::Kept(name) => name.file_name(),
        }
    }
}

pub(super) struct OpenFile {
    id: FileId,
    pub file: Arc<dyn DiskFile>,
    /// Of a segment; a kept file's is in memory.
    table: Option<TableIndex>,
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

/// Whether an error of a read says that a confirmed frame is damaged, or cannot be read by the disk any more.
pub fn is_damage(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<DamagedFrame>())
}

impl Reader {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self { disk, dir, open: Mutex::new(VecDeque::new()), removals: AtomicU64::new(0) }
    }

    /// Reads the entries of `piece` until `room_bytes` of payload are used up; always at least the first if
    /// `out` is empty. Returns whether the whole piece was read.
    pub(super) fn read(
        &self,
        piece: &ColdPiece,
        room_bytes: &mut usize,
        out: &mut Vec<LogEntry>,
    ) -> io::Result<bool> {
        let source = FileId::Segment(piece.segment_id);
        if let Some(open) = &piece.open {
            let file = open.file.as_ref();
            return self.read_extents(source, piece.first, file, &open.extents, room_bytes, out);
        }
        let sealed = self.open(source)?;
        let file = sealed.file.as_ref();
        let Some(table) = &sealed.table else {
            return Err(self.damaged(source, file.len_bytes()?, piece.first, "no offset table at the end"));
        };
        let mut done = 0;
        while done < piece.count {
            let id = EntryId { index: piece.first.index + done, ..piece.first };
            let ordinal = u64::from(piece.first_ordinal) + done;
            let count = (piece.count - done).min(OFFSETS_MAX);
            let extents = match u32::try_from(ordinal) {
                Ok(ordinal) => {
                    let extents = table.extents(file, ordinal, count as u32);
                    extents.map_err(|error| self.read_error(source, table.end_bytes, id, error))?
                }
                Err(_) => None,
            };
            let Some(extents) = extents else {
                return Err(self.damaged(source, file.len_bytes()?, id, "bad offset table"));
            };
            // The budget counts payload only, so this reads a little too far, never too little.
            let mut payload_bytes = 0;
            let is_wanted = |(_, bytes): &&(u64, u64)| {
                let fits = payload_bytes <= *room_bytes;
                payload_bytes += (*bytes as usize).saturating_sub(FRAME_HEADER_BYTES + FRAME_ALIGN_BYTES);
                fits
            };
            let wanted = extents.iter().take_while(is_wanted).count();
            let is_whole = self.read_extents(source, id, file, &extents[..wanted], room_bytes, out)?;
            if !is_whole || wanted < extents.len() {
                return Ok(false);
            }
            done += count;
        }
        Ok(true)
    }

    /// The entry at `index` from a kept file, with this term if it is given; `None` if it is not there.
    pub(super) fn read_kept(
        &self,
        kept: &KeptFile,
        index: u64,
        term: Option<u64>,
    ) -> io::Result<Option<LogEntry>> {
        let source = FileId::Kept(kept.name);
        let open = self.open(source)?;
        let file = open.file.as_ref();
        // A rewritten file's table has no terms: what lies there says which entry it is.
        let id = |term: Option<u64>| EntryId { term: term.unwrap_or(0), index };
        let found = kept.find(file, index, term);
        let found = found.map_err(|error| self.read_error(source, kept.len_bytes, id(term), error))?;
        let Some(row) = found else { return Ok(None) };
        let mut buf = vec![0; usize::try_from(row.len_bytes).map_err(io::Error::other)?];
        file.read_exact_at(&mut buf, row.offset_bytes)
            .map_err(|error| self.read_error(source, row.offset_bytes, id(term), error))?;
        let term = term.or(row.term).or_else(|| frame::decode(&buf).ok().map(|frame| frame.head.term));
        let len_bytes = buf.len();
        self.decode(source, &buf.into(), 0, len_bytes, row.offset_bytes, id(term)).map(Some)
    }

    /// How much is read for the one entry that `plan` is about.
    pub(super) fn frame_bytes(&self, plan: &Plan) -> io::Result<Option<u64>> {
        if let Some((kept, index, term)) = &plan.kept {
            let open = self.open(FileId::Kept(kept.name))?;
            return Ok(kept.find(open.file.as_ref(), *index, *term)?.map(|row| row.len_bytes));
        }
        let Some(piece) = plan.cold.first() else { return Ok(None) };
        if let Some(open) = &piece.open {
            return Ok(open.extents.first().map(|(_, bytes)| *bytes));
        }
        let sealed = self.open(FileId::Segment(piece.segment_id))?;
        let Some(table) = &sealed.table else { return Ok(None) };
        let extents = table.extents(sealed.file.as_ref(), piece.first_ordinal, 1)?;
        Ok(extents.and_then(|extents| extents.first().map(|(_, bytes)| *bytes)))
    }

    fn read_extents(
        &self,
        source: FileId,
        first: EntryId,
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
            let read_from = EntryId { index: first.index + next as u64, ..first };
            let mut buf = vec![0; usize::try_from(end - start).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut buf, start)
                .map_err(|error| self.read_error(source, start, read_from, error))?;
            let buf = Bytes::from(buf);
            for (at, bytes) in &extents[next..behind] {
                let id = EntryId { index: first.index + next as u64, ..first };
                let in_buf = (at - start) as usize;
                let entry = self.decode(source, &buf, in_buf, *bytes as usize, *at, id)?;
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
        source: FileId,
        buf: &Bytes,
        in_buf: usize,
        bound_bytes: usize,
        offset_bytes: u64,
        id: EntryId,
    ) -> io::Result<LogEntry> {
        let bytes = &buf[in_buf..in_buf + bound_bytes];
        let frame = frame::decode(bytes)
            .map_err(|error| self.damaged(source, offset_bytes, id, &error.to_string()))?;
        let payload_at = in_buf + FRAME_HEADER_BYTES;
        let payload = buf.slice(payload_at..payload_at + frame.payload.len());
        match frame.to_entry(payload).filter(|entry| entry.id == id) {
            Some(entry) => Ok(entry),
            None => Err(self.damaged(source, offset_bytes, id, "another frame lies there")),
        }
    }

    /// A file that does not change, open. It stays readable for whoever holds it, also when its name goes.
    pub(super) fn open(&self, id: FileId) -> io::Result<Arc<OpenFile>> {
        {
            let mut open = self.open.lock();
            if let Some(position) = open.iter().position(|other| other.id == id)
                && let Some(found) = open.remove(position)
            {
                open.push_back(found.clone());
                return Ok(found);
            }
        }
        let removals = self.removals.load(Ordering::Acquire);
        let nowhere = EntryId { term: 0, index: 0 };
        let file = self.open_by_name(id).map_err(|error| self.read_error(id, 0, nowhere, error))?;
        let table = match id {
            FileId::Segment(_) => {
                let located = TableIndex::locate(file.as_ref());
                located.map_err(|error| self.read_error(id, file.len_bytes().unwrap_or(0), nowhere, error))?
            }
            FileId::Kept(_) => None,
        };
        let found = Arc::new(OpenFile { id, file, table });
        let mut open = self.open.lock();
        // It may have been removed meanwhile; kept open here, it would take its space for as long as nothing else is
        // read.
        if self.removals.load(Ordering::Acquire) != removals {
            return Ok(found);
        }
        // Two readers may have opened it at the same time; one is enough.
        open.retain(|other| other.id != id);
        open.push_back(found.clone());
        if open.len() > FILES_KEPT_MAX {
            open.pop_front();
        }
        Ok(found)
    }

    fn open_by_name(&self, id: FileId) -> io::Result<Arc<dyn DiskFile>> {
        let open = |id: FileId| self.disk.open(&self.dir.join(id.file_name()), OpenMode::Read);
        let is_missing =
            |file: &io::Result<_>| matches!(file, Err(error) if error.kind() == io::ErrorKind::NotFound);
        let file = open(id);
        match id {
            FileId::Kept(name) if name.generation == 0 && is_missing(&file) => {
                // It is about to get that name. If it has lost the other one by now, it has got it.
                let former = open(FileId::Segment(name.first_segment));
                if is_missing(&former) { open(id) } else { former }
            }
            _ => file,
        }
    }

    /// Closes a file that was removed, so that its space is free.
    pub(super) fn forget(&self, id: FileId) {
        let mut open = self.open.lock();
        self.removals.fetch_add(1, Ordering::Release);
        open.retain(|other| other.id != id);
    }

    /// What an error of reading something confirmed means: that the file ends too early, or that the disk cannot
    /// read this place, is as good as damage, as no second look will find what was there.
    pub(super) fn read_error(
        &self,
        source: FileId,
        offset_bytes: u64,
        id: EntryId,
        error: io::Error,
    ) -> io::Error {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            self.damaged(source, offset_bytes, id, "file too short")
        } else if is_unreadable(&error) {
            self.damaged(source, offset_bytes, id, &format!("the disk cannot read it ({error})"))
        } else {
            error
        }
    }

    pub(super) fn damaged(&self, source: FileId, offset_bytes: u64, id: EntryId, what: &str) -> io::Error {
        let file = self.dir.join(source.file_name());
        let what = what.to_string();
        io::Error::new(io::ErrorKind::InvalidData, DamagedFrame { file, offset_bytes, id, what })
    }
}
