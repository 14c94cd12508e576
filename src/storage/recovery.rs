//! Opening a log: what is there, and is it all?
//!
//! A log that was not closed ends somewhere in the middle of a write. That is normal, and what nobody was
//! told about may go: a *torn tail* is cut. A log that lost something that was confirmed is damaged, and
//! must not start as if nothing had happened: a member that forgets what it told its leader can cost the
//! cluster acknowledged data. The two look alike at the first bad frame. What tells them apart is what lies
//! *behind* it: every frame names the highest lsn that was synced when it was written, so a single later
//! frame that speaks of the bad one as synced is a witness that it was confirmed. The search for a witness
//! tries every position to the end of the file and does not rely on lengths, which may be what is damaged.
//!
//! Only the last segment can have a torn tail. Those before it are sealed, and end in a table which is
//! checked, and whose checksum and lsn the next header has to continue; their frames are checked when they
//! are read. The writer's order of steps (see `log_writer`) leaves one more state: a rotation that was
//! interrupted, with a last segment that has no frame yet behind one that is not sealed. It is undone.
//!
//! After a cut the rest of the segment is zeroed and synced before anything else is written, so a stale frame
//! can never be taken for a new one. Every step here may be interrupted and repeated. Nothing is changed when
//! the answer is [`OpenError::Corrupt`].
//!
//! What this cannot see: damage to the very last group of frames, of which no later frame speaks, looks like
//! a torn tail. That is the price of one sync per group, and it is paid for a moment only: a writer that has
//! nothing to do leaves a frame that speaks of them (see `log_writer`), and one that is closed a note of its end,
//! which no damage to the segment can take along (see `closing`).
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::closing;
use super::disk::{Disk, DiskFile, OpenMode, create_dir_durably};
use super::entry::{EntryId, Vote};
use super::frame::{self, Frame, FrameKind, NoFrame};
use super::kept::{self, KeptFile};
use super::kept_recovery::KeptFiles;
use super::log::LogOptions;
use super::log_writer::Position;
use super::next_segment::NextSegment;
use super::open_error::OpenError;
use super::runs::Runs;
use super::segment::{self, HeaderError, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::table::OffsetTable;
use super::verdict::with_second_try;
use super::view::Sealed;
use crate::limits::SEQ_LIMIT;

pub(super) struct Recovered {
    pub runs: Runs,
    /// The chain but for its last segment.
    pub sealed: Vec<Sealed>,
    /// Files that left the chain, in order.
    pub kept: Vec<KeptFile>,
    pub position: Position,
    pub next_segment: NextSegment,
}

/// One segment file with a good header.
pub(super) struct Found {
    pub path: PathBuf,
    pub file: Arc<dyn DiskFile>,
    pub header: SegmentHeader,
}

/// A segment is read through in pieces of this size, so that a place that cannot be read has an address.
const READ_BYTES: usize = 256 << 10;

const DOES_NOT_CONTINUE: &str = "the next segment does not continue it";

/// How a scan of an unsealed segment ended.
enum End {
    /// With the table: sealed but for its length.
    Sealed { lsn: u64 },
    /// With no further frame. Everything behind the position may be cut.
    Open,
}

pub(super) fn recover(disk: &dyn Disk, dir: &Path, options: &LogOptions) -> Result<Recovered, OpenError> {
    let at_dir = |source| OpenError::Io { file: dir.to_path_buf(), source };
    create_dir_durably(disk, dir).map_err(at_dir)?;
    let names = disk.list(dir).map_err(at_dir)?;
    let mut ids: Vec<u64> = names.iter().filter_map(|name| segment::parse_file_name(name)).collect();
    ids.sort_unstable();
    if let Some(expected) = first_gap(&ids) {
        return Err(corrupt(&dir.join(segment::file_name(expected)), 0, "the file is missing"));
    }
    let mut files = KeptFiles::find(disk, dir, &names, ids.first().copied())?;
    let confirmed_lsn = closing::read_note(disk, dir).map_err(at_dir)?;
    let mut recovered = match ids.first() {
        Some(first) => Recovery::new(disk, dir, *first, confirmed_lsn)?.read(&ids)?,
        None if confirmed_lsn > 0 => {
            return Err(corrupt(&dir.join(segment::file_name(1)), 0, "all segments are missing"));
        }
        None => recovered(first_segment(disk, dir, options)?, Runs::default(), Vec::new()),
    };
    let next_id = recovered.position.segment_id + 1;
    recovered.next_segment = NextSegment::find(disk, dir, next_id).map_err(at_dir)?;
    let next_name = segment::unborn_name(next_id);
    let is_unborn =
        |name: &&String| (segment::is_unborn(name) && **name != next_name) || kept::is_unborn(name);
    recovered.kept = files.open(recovered.runs.first_index())?;
    if !files.superseded.is_empty() {
        // What supersedes them may be visible without its name being durable.
        disk.sync_dir(dir).map_err(at_dir)?;
    }
    for name in names.iter().filter(is_unborn).chain(&files.superseded) {
        // The crash came before the rename; nothing was ever confirmed in it. The writer may need the name.
        let path = dir.join(name);
        if disk.exists(&path).map_err(at_dir)? {
            disk.remove(&path).map_err(at_dir)?;
        }
    }
    // A file may have been visible without its name being durable.
    disk.sync_dir(dir).map_err(at_dir)?;
    Ok(recovered)
}

pub(super) fn open_segment(disk: &dyn Disk, dir: &Path, id: u64) -> Result<Found, OpenError> {
    open_segment_at(disk, dir.join(segment::file_name(id)), id)
}

/// Opens the segment `id` under whatever name it has.
pub(super) fn open_segment_at(disk: &dyn Disk, path: PathBuf, id: u64) -> Result<Found, OpenError> {
    let unread = |error| OpenError::of_read(&path, 0, error);
    let file = with_second_try(|| disk.open(&path, OpenMode::Write)).map_err(unread)?;
    match with_second_try(|| SegmentHeader::read(file.as_ref())).map_err(unread)? {
        Ok(header) if header.segment_id == id && !header.is_possible() => {
            Err(corrupt(&path, 0, "a segment header that cannot be"))
        }
        Ok(header) if header.segment_id == id => Ok(Found { path, file, header }),
        Ok(header) => {
            let what = format!("the header is that of segment {:x}", header.segment_id);
            Err(corrupt(&path, 0, &what))
        }
        Err(HeaderError::Damaged) => Err(corrupt(&path, 0, "bad segment header")),
        Err(HeaderError::Foreign) => Err(OpenError::Foreign { file: path }),
        Err(HeaderError::Newer(version)) => {
            Err(OpenError::NewerFormat { file: path, version, known: segment::FORMAT_VERSION })
        }
    }
}

fn first_segment(disk: &dyn Disk, dir: &Path, options: &LogOptions) -> Result<Position, OpenError> {
    let header = SegmentHeader {
        segment_id: 1,
        capacity_bytes: options.segment_len_bytes(),
        // 1, so that "synced up to 0" can mean that nothing is.
        first_lsn: 1,
        chain: 0,
        vote: None,
        purged: None,
        last: None,
        synced_lsn: 0,
    };
    let path = dir.join(segment::file_name(1));
    let made = segment::create(disk, dir, &header);
    let file = made.map_err(|source| OpenError::Io { file: path.clone(), source })?;
    Ok(start_of(&Found { path, file, header }))
}

/// The position before the first frame of a segment.
fn start_of(segment: &Found) -> Position {
    let header = &segment.header;
    Position {
        file: segment.file.clone(),
        segment_id: header.segment_id,
        capacity_bytes: header.capacity_bytes,
        end_bytes: SEGMENT_HEADER_BYTES,
        next_lsn: header.first_lsn,
        synced_lsn: header.first_lsn.saturating_sub(1),
        chain: header.chain,
        table: OffsetTable::default(),
        vote: header.vote,
        last: header.last,
        purged: header.purged,
        // The segment before is sealed, and its table and this header speak for it.
        is_witnessed: true,
    }
}

fn recovered(position: Position, runs: Runs, sealed: Vec<Sealed>) -> Recovered {
    Recovered { runs, sealed, kept: Vec::new(), position, next_segment: NextSegment::default() }
}

/// The first id that is missing between the ends of a sorted list.
fn first_gap(ids: &[u64]) -> Option<u64> {
    ids.windows(2).find(|pair| pair[0] + 1 != pair[1]).map(|pair| pair[0] + 1)
}

/// What a segment was found to hold.
struct Scanned {
    /// Behind the last good frame.
    position: Position,
    end: End,
    /// The bytes of all frames.
    body: Vec<u8>,
    /// Where the frames begin that no later one calls synced.
    unproven_from_bytes: u64,
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    /// Where the first segment that is still there begins.
    start: SegmentHeader,
    /// Up to here everything is known to have been confirmed.
    confirmed_lsn: u64,
    runs: Runs,
    sealed: Vec<Sealed>,
}

impl<'a> Recovery<'a> {
    fn new(disk: &'a dyn Disk, dir: &'a Path, first: u64, confirmed_lsn: u64) -> Result<Self, OpenError> {
        let start = open_segment(disk, dir, first)?.header;
        Ok(Self { disk, dir, start, confirmed_lsn, runs: Runs::default(), sealed: Vec::new() })
    }

    /// Goes through the segments in order, with two files open at a time.
    fn read(mut self, ids: &[u64]) -> Result<Recovered, OpenError> {
        let (Some(first), Some(last)) = (ids.first(), ids.last()) else {
            return Err(OpenError::Options { what: "no segment to read" });
        };
        let mut segment = open_segment(self.disk, self.dir, *first)?;
        let mut last_body = None;
        for id in &ids[1..] {
            let next = open_segment(self.disk, self.dir, *id)?;
            if id == last {
                last_body = Some(read_body(&next)?);
            }
            if last_body.as_deref().is_some_and(|body| !has_frames(&next, body)) {
                let undone = self.read_interrupted(&segment, &next)?;
                if let Some(position) = undone {
                    return Ok(recovered(position, self.runs, self.sealed));
                }
            } else {
                self.read_sealed(&segment, &next.header)?;
            }
            let (segment_id, len_bytes) = (segment.header.segment_id, segment_len(&segment)?);
            self.sealed.push(Sealed { segment_id, last: next.header.last, len_bytes });
            segment = next;
        }
        let body = last_body.map_or_else(|| read_body(&segment), Ok)?;
        let position = self.read_last(&segment, body)?;
        Ok(recovered(position, self.runs, self.sealed))
    }

    /// Takes a sealed segment by its table.
    fn read_sealed(&mut self, segment: &Found, next: &SegmentHeader) -> Result<(), OpenError> {
        let len_bytes = segment_len(segment)?;
        let loaded = with_second_try(|| OffsetTable::load_sealed(segment.file.as_ref()));
        let Some(sealed) = loaded.map_err(|error| OpenError::of_read(&segment.path, len_bytes, error))?
        else {
            let what = "no good offset table, and there are frames behind it";
            return Err(corrupt(&segment.path, len_bytes, what));
        };
        if next.chain != sealed.crc || next.first_lsn != sealed.lsn + 1 {
            return Err(corrupt(&segment.path, sealed.frame_offset_bytes, DOES_NOT_CONTINUE));
        }
        self.begin_segment(&segment.header);
        self.runs.push_spans(segment.header.segment_id, sealed.table.spans());
        Ok(())
    }

    /// A segment begins: truncations at the end of the one before show in its header.
    fn begin_segment(&mut self, header: &SegmentHeader) {
        self.runs.truncate_from(header.last.map_or(0, |last| last.index.saturating_add(1)));
    }

    /// The last segment has no frame yet, so the one before it may not be synced, whatever it looks like: its
    /// table can be on the disk without the frames before it. Read it through, and finish the rotation
    /// (`None`: go on with the last) or undo it (the end of `segment` is the end of the log).
    fn read_interrupted(&mut self, segment: &Found, last: &Found) -> Result<Option<Position>, OpenError> {
        let Scanned { position, end, body, unproven_from_bytes } = self.scan(segment, read_body(segment)?)?;
        match end {
            End::Sealed { lsn }
                if last.header.chain == position.chain && last.header.first_lsn == lsn + 1 =>
            {
                write_again(segment, &body, unproven_from_bytes, position.end_bytes)?;
                let finished =
                    segment.file.set_len(position.end_bytes).and_then(|()| segment.file.sync_data());
                finished.map_err(|source| io_error(segment, source))?;
                Ok(None)
            }
            End::Sealed { .. } => Err(corrupt(&segment.path, position.end_bytes, DOES_NOT_CONTINUE)),
            End::Open if position.next_lsn <= last.header.synced_lsn => Err(corrupt(
                &segment.path,
                position.end_bytes,
                "the next segment knows of synced frames here",
            )),
            End::Open => {
                // The old end first: while the empty segment is there, this can be done again.
                write_again(segment, &body, unproven_from_bytes, position.end_bytes)?;
                self.cut(segment, &position, &body)?;
                let removed = self.disk.remove(&last.path).and_then(|()| self.disk.sync_dir(self.dir));
                removed.map_err(|source| io_error(last, source))?;
                Ok(Some(position))
            }
        }
    }

    fn read_last(&mut self, last: &Found, body: Vec<u8>) -> Result<Position, OpenError> {
        let len_bytes = segment_len(last)?;
        let Scanned { position, end, body, unproven_from_bytes } = self.scan(last, body)?;
        match end {
            // Its successor was durable before the table was written.
            End::Sealed { .. } => Err(corrupt(
                &self.dir.join(segment::file_name(last.header.segment_id + 1)),
                0,
                "the file is missing: the segment before it is sealed",
            )),
            End::Open if len_bytes < last.header.capacity_bytes => {
                Err(corrupt(&last.path, len_bytes, "the file was cut short"))
            }
            End::Open => {
                write_again(last, &body, unproven_from_bytes, position.end_bytes)?;
                self.cut(last, &position, &body)?;
                Ok(position)
            }
        }
    }

    /// Reads frame by frame. The whole segment is in memory meanwhile: 64 MiB, once, at start.
    fn scan(&mut self, segment: &Found, body: Vec<u8>) -> Result<Scanned, OpenError> {
        self.begin_segment(&segment.header);
        let mut position = start_of(segment);
        // Frames that none behind them has called synced so far: those of the last group or two.
        let mut unproven: VecDeque<(u64, u64)> = VecDeque::new();
        let scanned = |position: Position, end, body, unproven: &VecDeque<(u64, u64)>| {
            let unproven_from_bytes = unproven.front().map_or(position.end_bytes, |(_, offset)| *offset);
            Scanned { position, end, body, unproven_from_bytes }
        };
        loop {
            let in_body = (position.end_bytes - SEGMENT_HEADER_BYTES) as usize;
            let rest = body.get(in_body..).unwrap_or_default();
            let bad = match frame::decode(rest) {
                Ok(frame) if frame.head.lsn != position.next_lsn => "a frame of another place",
                Ok(frame) if frame.head.prev_crc != position.chain => "the chain of checksums is broken",
                Ok(frame) => {
                    unproven.push_back((frame.head.lsn, position.end_bytes));
                    while unproven.front().is_some_and(|(lsn, _)| Some(*lsn) <= frame.head.synced_lsn) {
                        unproven.pop_front();
                    }
                    if !self.take_frame(&mut position, &frame) {
                        return Err(corrupt(
                            &segment.path,
                            position.end_bytes,
                            "an entry does not follow the log",
                        ));
                    }
                    if frame.head.kind == FrameKind::Table {
                        let end = End::Sealed { lsn: frame.head.lsn };
                        return Ok(scanned(position, end, body, &unproven));
                    }
                    continue;
                }
                Err(NoFrame::End) => "zeroes",
                Err(NoFrame::Short) => "a frame that is cut short",
                Err(NoFrame::Implausible) => "an implausible frame header",
                Err(NoFrame::Checksum) => "a wrong checksum",
                // Whole, and ours: to cut it would be to lose what somebody confirmed.
                Err(NoFrame::OtherKind(kind)) => {
                    let (file, version) = (segment.path.clone(), u32::from(kind));
                    return Err(OpenError::NewerFrame { file, offset_bytes: position.end_bytes, version });
                }
            };
            if position.next_lsn <= self.confirmed_lsn {
                let what = format!("{bad}; the log was closed behind it");
                return Err(corrupt(&segment.path, position.end_bytes, &what));
            }
            return match frame::find_witness(rest, position.next_lsn) {
                None => Ok(scanned(position, End::Open, body, &unproven)),
                Some(behind) => {
                    let witness = position.end_bytes + behind as u64;
                    let what = format!("{bad}; a later frame, at byte {witness}, says that it was synced");
                    Err(corrupt(&segment.path, position.end_bytes, &what))
                }
            };
        }
    }

    /// Moves the position behind a frame. `false` if it holds an entry that cannot stand here.
    fn take_frame(&mut self, at: &mut Position, frame: &Frame<'_>) -> bool {
        let (id, head) = (frame.id(), &frame.head);
        match head.kind {
            FrameKind::Blank | FrameKind::Command | FrameKind::Membership => {
                let Ok(offset_bytes) = u32::try_from(at.end_bytes) else { return false };
                let follows =
                    match at.last {
                        Some(last) => last.index.checked_add(1) == Some(id.index),
                        // Behind a truncation of all that a table shows only by what took the place of that.
                        None => at.table.spans().last().is_none_or(|span| {
                            id.index < span.first_index.saturating_add(u64::from(span.count))
                        }),
                    };
                if !follows || id.index >= SEQ_LIMIT / 2 {
                    return false;
                }
                self.runs.push(at.segment_id, at.table.entry_count(), id);
                at.table.push(id, offset_bytes);
                at.last = Some(id);
            }
            FrameKind::Vote => {
                at.vote = Some(Vote { term: head.term, node_id: head.index, committed: head.stamp_ms == 1 });
            }
            FrameKind::Truncate => {
                self.runs.truncate_from(head.index);
                let left = head.index.checked_sub(1).filter(|_| head.stamp_ms == 1);
                let is_there = match left {
                    Some(left) => {
                        let purged = at.purged.map_or(0, |purged| purged.index);
                        at.last.is_some_and(|last| (purged..=last.index).contains(&left))
                    }
                    None => at.purged.is_none() && self.runs.iter().next().is_none(),
                };
                if !is_there {
                    return false;
                }
                at.truncate(left.map(|index| EntryId { term: head.term, index }));
            }
            FrameKind::Purge if id.index >= SEQ_LIMIT / 2 => return false,
            FrameKind::Purge => at.purge(id),
            FrameKind::Table | FrameKind::Witness => {}
        }
        at.is_witnessed = head.kind == FrameKind::Witness;
        at.chain = frame.crc;
        at.next_lsn = head.lsn + 1;
        at.end_bytes += frame.total_bytes() as u64;
        // Synced before the log is handed out.
        at.synced_lsn = head.lsn;
        true
    }

    /// Makes the rest of the segment zero again, in length and content.
    fn cut(&self, segment: &Found, position: &Position, body: &[u8]) -> Result<(), OpenError> {
        self.check_start(position)?;
        const BLOCK_BYTES: usize = 4096;
        let at_file = |source| io_error(segment, source);
        let start = (position.end_bytes - SEGMENT_HEADER_BYTES) as usize;
        let rest = body.get(start..).unwrap_or_default();
        let mut cut_bytes = 0;
        for (number, block) in rest.chunks(BLOCK_BYTES).enumerate() {
            if !frame::is_zero(block) {
                let at = position.end_bytes + (number * BLOCK_BYTES) as u64;
                segment.file.write_all_at(&vec![0; block.len()], at).map_err(at_file)?;
                cut_bytes += block.len();
            }
        }
        if segment_len(segment)? < segment.header.capacity_bytes {
            segment.file.allocate(segment.header.capacity_bytes).map_err(at_file)?;
        }
        segment.file.sync_data().map_err(at_file)?;
        if cut_bytes > 0 {
            let (file, at_bytes, next_lsn) = (segment.path.display(), position.end_bytes, position.next_lsn);
            tracing::info!(%file, at_bytes, next_lsn, cut_bytes, "cut the torn tail of the log: it was never confirmed");
        }
        Ok(())
    }

    /// The segments before the first one were removed, or lost. They may be missing only below the purge
    /// point.
    fn check_start(&self, end: &Position) -> Result<(), OpenError> {
        let is_covered = match (self.start.last, end.purged) {
            (None, _) => true,
            (Some(last), Some(purged)) => last.index <= purged.index,
            (Some(_), None) => false,
        };
        if self.start.first_lsn == 1 || is_covered {
            return Ok(());
        }
        let lost = self.dir.join(segment::file_name(self.start.segment_id.saturating_sub(1)));
        Err(corrupt(&lost, 0, "the file is missing, and its entries are not purged"))
    }
}

/// Writes the frames in `[from_bytes, to_bytes)` once more, before they are synced. That they can be read does
/// not mean that they are on the disk: after a sync that failed, the system may show what it has given up
/// writing, and sync it successfully the next time by doing nothing. What is written anew is synced for real.
fn write_again(segment: &Found, body: &[u8], from_bytes: u64, to_bytes: u64) -> Result<(), OpenError> {
    let in_body = |at_bytes: u64| (at_bytes - SEGMENT_HEADER_BYTES) as usize;
    let frames = body.get(in_body(from_bytes)..in_body(to_bytes)).unwrap_or_default();
    segment.file.write_all_at(frames, from_bytes).map_err(|source| io_error(segment, source))
}

/// Whether a segment has a frame, a damaged first one included.
fn has_frames(segment: &Found, body: &[u8]) -> bool {
    let before = segment.header.first_lsn.saturating_sub(1);
    let has_first = matches!(frame::decode(body), Ok(_) | Err(NoFrame::OtherKind(_)));
    has_first || frame::find_witness(body, before).is_some()
}

/// Everything behind the header of a segment.
fn read_body(segment: &Found) -> Result<Vec<u8>, OpenError> {
    let body_bytes = segment_len(segment)?.saturating_sub(SEGMENT_HEADER_BYTES);
    let too_large = || io_error(segment, io::Error::from(io::ErrorKind::FileTooLarge));
    let mut body = vec![0; usize::try_from(body_bytes).map_err(|_| too_large())?];
    for (number, part) in body.chunks_mut(READ_BYTES).enumerate() {
        let at_bytes = SEGMENT_HEADER_BYTES + (number * READ_BYTES) as u64;
        with_second_try(|| segment.file.read_exact_at(part, at_bytes))
            .map_err(|error| OpenError::of_read(&segment.path, at_bytes, error))?;
    }
    Ok(body)
}

fn segment_len(segment: &Found) -> Result<u64, OpenError> {
    segment.file.len_bytes().map_err(|source| io_error(segment, source))
}

fn io_error(segment: &Found, source: io::Error) -> OpenError {
    OpenError::Io { file: segment.path.clone(), source }
}

pub(super) fn corrupt(file: &Path, offset_bytes: u64, what: &str) -> OpenError {
    OpenError::Corrupt { file: file.to_path_buf(), offset_bytes, what: what.to_string() }
}
