//! Files that left the chain because the log gave their entries up, and are still there because topics have
//! not.
//!
//! The log proper is a chain: each segment continues the one before, so it can only lose its beginning. Were
//! a segment kept in it until its last record is gone, one topic that stays would keep every segment since.
//! So a segment below the purge point leaves the chain by a new name and becomes a *kept* file: nothing but
//! a bag of frames, each of which proves itself, found by index and only for readers of records. It can be
//! removed when its last live entry is gone, whatever became of its neighbours, and what is left of a
//! mostly dead one, or of several, can be written into a new one.
//!
//! The name says which segments' entries a file holds, and its generation:
//! `<first segment>-<last segment>-<generation>.kept`. Generation 0 is a segment as it was, renamed. A file
//! that spans the segments of another, and more, or the same ones in a higher generation, supersedes it: that one
//! was to be removed when the process died. That is all that recovery has to know about a rewrite.
use std::io;
use std::ops::RangeInclusive;

use super::disk::DiskFile;
use super::packed::{PackedIndex, Row};
use super::runs::Run;
use super::segment::SEGMENT_HEADER_BYTES;
use super::supersede::Span;
use super::table::TableIndex;

pub(super) const SUFFIX: &str = ".kept";
/// Before the frames of a rewritten file.
pub(super) const KEPT_HEADER_BYTES: u64 = 64;
const MAGIC: [u8; 8] = *b"ANTPHKPT";
const FORMAT_VERSION: u32 = 1;

/// Which segments' entries a kept file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct KeptName {
    pub first_segment: u64,
    pub last_segment: u64,
    pub generation: u32,
}

impl KeptName {
    /// The name of a segment that leaves the chain.
    pub(super) fn of_segment(segment_id: u64) -> Self {
        Self { first_segment: segment_id, last_segment: segment_id, generation: 0 }
    }

    pub(super) fn file_name(self) -> String {
        let Self { first_segment, last_segment, generation } = self;
        format!("{first_segment:016x}-{last_segment:016x}-{generation:08x}{SUFFIX}")
    }

    /// The inverse of [`KeptName::file_name`]; `None` for any other file.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut numbers = name.strip_suffix(SUFFIX)?.split('-');
        let mut next = || u64::from_str_radix(numbers.next()?, 16).ok();
        let (first_segment, last_segment) = (next()?, next()?);
        let found = Self { first_segment, last_segment, generation: u32::try_from(next()?).ok()? };
        (found.file_name() == name).then_some(found)
    }

    pub(super) fn span(self) -> Span {
        Span { first: self.first_segment, last: self.last_segment, generation: self.generation }
    }

    /// The header of a rewritten file of this name.
    pub(super) fn header(self) -> [u8; KEPT_HEADER_BYTES as usize] {
        let mut bytes = [0; KEPT_HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_segment.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.last_segment.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// Why a file is not the kept file that its name says.
#[derive(Debug)]
pub(super) enum NotKept {
    Damaged(&'static str),
    Newer { version: u32, known: u32 },
}

/// The name of a file while it is written.
pub(super) fn unborn_name(name: KeptName) -> String {
    format!("{}.new", name.file_name())
}

/// Whether a name is that of a file that was not finished.
pub(super) fn is_unborn(name: &str) -> bool {
    name.strip_suffix(".new").is_some_and(|name| KeptName::parse(name).is_some())
}

/// A kept file, known by its table.
#[derive(Debug)]
pub(super) struct KeptFile {
    pub name: KeptName,
    pub first_index: u64,
    pub last_index: u64,
    pub entry_count: u64,
    pub len_bytes: u64,
    /// All frames, live or not, without header and table.
    pub frames_bytes: u64,
    places: Places,
}

#[derive(Debug)]
enum Places {
    /// A segment as it was; its runs without what a later segment truncated.
    Segment {
        runs: Vec<Run>,
        table: TableIndex,
    },
    Packed(PackedIndex),
}

impl KeptFile {
    /// A former segment. `None` if it holds no entry that was not truncated.
    pub(super) fn of_segment(
        segment_id: u64,
        runs: Vec<Run>,
        table: TableIndex,
        len_bytes: u64,
    ) -> Option<Self> {
        let (first, last) = (runs.first()?, runs.last()?);
        Some(Self {
            name: KeptName::of_segment(segment_id),
            first_index: first.first_index,
            last_index: last.end_index() - 1,
            entry_count: runs.iter().map(|run| run.count).sum(),
            len_bytes,
            frames_bytes: table.end_bytes.saturating_sub(SEGMENT_HEADER_BYTES),
            places: Places::Segment { runs, table },
        })
    }

    /// Opens a rewritten file. An error inside if it is not what its name says.
    pub(super) fn open_packed(name: KeptName, file: &dyn DiskFile) -> io::Result<Result<Self, NotKept>> {
        let len_bytes = file.len_bytes()?;
        let mut header = [0; KEPT_HEADER_BYTES as usize];
        if len_bytes >= KEPT_HEADER_BYTES {
            file.read_exact_at(&mut header, 0)?;
        }
        if header != name.header() {
            let (checked, crc) = header.split_at(60);
            let is_ours = header[..8] == MAGIC && crc32c::crc32c(checked).to_le_bytes() == *crc;
            let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
            return Ok(Err(match is_ours && version > FORMAT_VERSION {
                true => NotKept::Newer { version, known: FORMAT_VERSION },
                false => NotKept::Damaged("bad header of a kept file"),
            }));
        }
        Ok(match PackedIndex::load(file)? {
            Some(index) => Ok(Self {
                name,
                first_index: index.first_index,
                last_index: index.last_index,
                entry_count: u64::from(index.entry_count),
                len_bytes,
                frames_bytes: index.end_bytes.saturating_sub(KEPT_HEADER_BYTES),
                places: Places::Packed(index),
            }),
            None => Err(NotKept::Damaged("no good offset table")),
        })
    }

    pub(super) fn indexes(&self) -> RangeInclusive<u64> {
        self.first_index..=self.last_index
    }

    /// Where the entry at `index` lies, if it is here with that term, or with any if `term` is `None`.
    pub(super) fn find(&self, file: &dyn DiskFile, index: u64, term: Option<u64>) -> io::Result<Option<Row>> {
        let (runs, table) = match &self.places {
            Places::Packed(packed) => return packed.find(file, index),
            Places::Segment { runs, table } => (runs, table),
        };
        let after = runs.partition_point(|run| run.first_index <= index);
        let run = after.checked_sub(1).and_then(|at| runs.get(at));
        let is_asked_for = |run: &&Run| index < run.end_index() && term.is_none_or(|term| term == run.term);
        let Some(run) = run.filter(is_asked_for) else { return Ok(None) };
        let extents = table.extents(file, run.ordinal_of(index), 1)?;
        let extent = extents.and_then(|extents| extents.first().copied());
        Ok(extent.map(|(offset_bytes, len_bytes)| Row {
            index,
            term: Some(run.term),
            offset_bytes,
            len_bytes,
        }))
    }

    /// Up to `max` rows in order of index, after the first `from`. Empty at the end; `Err(InvalidData)` if
    /// the table on disk is no longer the one that was checked.
    pub(super) fn rows(&self, file: &dyn DiskFile, from: u64, max: u64) -> io::Result<Vec<Row>> {
        let (runs, table) = match &self.places {
            Places::Packed(index) => return index.rows(file, from, max),
            Places::Segment { runs, table } => (runs, table),
        };
        let mut before = from;
        for run in runs {
            if before >= run.count {
                before -= run.count;
                continue;
            }
            let (first_index, count) = (run.first_index + before, (run.count - before).min(max));
            let extents = table.extents(file, run.ordinal_of(first_index), count as u32)?;
            let extents = extents.ok_or(io::ErrorKind::InvalidData)?;
            let row = |(index, (offset_bytes, len_bytes))| Row {
                index,
                term: Some(run.term),
                offset_bytes,
                len_bytes,
            };
            return Ok((first_index..).zip(extents).map(row).collect());
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        let name =
            |first_segment, last_segment, generation| KeptName { first_segment, last_segment, generation };
        let merged = name(3, 0x1F, 2);
        assert_eq!(KeptName::parse(&merged.file_name()), Some(merged));
        assert!(is_unborn(&format!("{}.new", merged.file_name())));
        for other in ["", "a.kept", "0000000000000001.seg", "3-1f-2.kept"] {
            assert_eq!(KeptName::parse(other), None, "{other}");
        }
    }
}
