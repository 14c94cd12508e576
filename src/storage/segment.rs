//! One file of the log: its name, its header, its birth.
//!
//! A segment starts with a header in a block of its own (so that writing the first frame cannot tear it) and
//! goes on with frames. The header repeats what the log was at that point: vote, purge point, last entry, and
//! the checksum that the first frame has to continue. So the file before it can go some day without a vote
//! being lost, and a segment that went missing is noticed by both its neighbours.
//!
//! A segment is **born whole**: reserved, given its header and synced under another name, and only then
//! renamed. Without that, a crash could leave a file of the right name that is short or has no header, and
//! no reader could tell it from a file that was damaged. With it the rule is simple: a `.seg` file without a
//! good header is damage.
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::disk::{Disk, DiskFile, OpenMode};
use super::entry::{EntryId, Vote};
use super::verdict::is_out_of_files;
use crate::limits::{OUT_OF_FILES_PATIENCE, SEQ_LIMIT};

/// Raised whenever an older program could misread what a newer one writes.
pub const FORMAT_VERSION: u32 = 1;
/// Where the frames start.
pub const SEGMENT_HEADER_BYTES: u64 = 4096;
/// Offsets in a segment have 32 bits.
const MAX_CAPACITY_BYTES: u64 = 1 << 32;

/// The part of the header block that carries something; this size is the same in all versions, so that an
/// older program can check the checksum before it believes the version.
const ENCODED_BYTES: usize = 128;
const MAGIC: [u8; 8] = *b"ANTPHSEG";
/// The one Raft group of today; the field keeps the door open for more.
const GROUP: u32 = 0;

/// Between two attempts to open a file while there is no descriptor for it.
const OUT_OF_FILES_PAUSE: Duration = Duration::from_millis(20);

const HAS_VOTE: u32 = 1;
const VOTE_COMMITTED: u32 = 2;
const HAS_PURGED: u32 = 4;
const HAS_LAST: u32 = 8;

/// What the log was where a segment begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub segment_id: u64,
    /// Length of the file until it is sealed.
    pub capacity_bytes: u64,
    pub first_lsn: u64,
    /// The crc of the last frame of the segment before; 0 for the first segment of all.
    pub chain: u32,
    pub vote: Option<Vote>,
    pub purged: Option<EntryId>,
    pub last: Option<EntryId>,
    /// Frames up to here were synced when this segment was made.
    pub synced_lsn: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Foreign,
    Damaged,
    Newer(u32),
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; ENCODED_BYTES] {
        let mut flags = 0;
        let mut vote = [0u64; 2];
        let mut ids = [0u64; 4];
        if let Some(given) = self.vote {
            flags |= HAS_VOTE | if given.committed { VOTE_COMMITTED } else { 0 };
            vote = [given.term, given.node_id];
        }
        if let Some(purged) = self.purged {
            flags |= HAS_PURGED;
            ids[..2].copy_from_slice(&[purged.term, purged.index]);
        }
        if let Some(last) = self.last {
            flags |= HAS_LAST;
            ids[2..].copy_from_slice(&[last.term, last.index]);
        }
        let mut out = Vec::with_capacity(ENCODED_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&GROUP.to_le_bytes());
        for word in [self.segment_id, self.capacity_bytes, self.first_lsn] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.chain.to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
        for word in vote.into_iter().chain(ids).chain([self.synced_lsn]) {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let mut bytes = [0; ENCODED_BYTES];
        bytes[..out.len()].copy_from_slice(&out);
        let crc = crc32c::crc32c(&bytes[..ENCODED_BYTES - 4]);
        bytes[ENCODED_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Whether a log can be so: it does not end before what it gave up, and its numbers can be counted on from.
    pub(super) fn is_possible(&self) -> bool {
        let index = |id: Option<EntryId>| id.map(|id| id.index);
        index(self.purged) <= index(self.last)
            && self.segment_id < SEQ_LIMIT
            && (SEGMENT_HEADER_BYTES..=MAX_CAPACITY_BYTES).contains(&self.capacity_bytes)
            && (1..SEQ_LIMIT).contains(&self.first_lsn)
            && index(self.last) < Some(SEQ_LIMIT)
    }

    fn decode(bytes: &[u8; ENCODED_BYTES]) -> Result<Self, HeaderError> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if bytes[..8] != MAGIC {
            // Nothing but zeroes is no other program's file; it is one of ours that lost its first block.
            return Err(if *bytes == [0; ENCODED_BYTES] {
                HeaderError::Damaged
            } else {
                HeaderError::Foreign
            });
        }
        if u32_at(ENCODED_BYTES - 4) != crc32c::crc32c(&bytes[..ENCODED_BYTES - 4]) {
            return Err(HeaderError::Damaged);
        }
        if u32_at(8) > FORMAT_VERSION {
            return Err(HeaderError::Newer(u32_at(8)));
        }
        if u32_at(12) != GROUP {
            return Err(HeaderError::Foreign);
        }
        let flags = u32_at(44);
        let has = |flag: u32| flags & flag != 0;
        let id = |at: usize| EntryId { term: u64_at(at), index: u64_at(at + 8) };
        Ok(Self {
            segment_id: u64_at(16),
            capacity_bytes: u64_at(24),
            first_lsn: u64_at(32),
            chain: u32_at(40),
            vote: has(HAS_VOTE).then(|| Vote {
                term: u64_at(48),
                node_id: u64_at(56),
                committed: has(VOTE_COMMITTED),
            }),
            purged: has(HAS_PURGED).then(|| id(64)),
            last: has(HAS_LAST).then(|| id(80)),
            synced_lsn: u64_at(96),
        })
    }

    /// Reads the header of an open segment. The outer error is the disk's.
    pub(super) fn read(file: &dyn DiskFile) -> io::Result<Result<Self, HeaderError>> {
        if file.len_bytes()? < SEGMENT_HEADER_BYTES {
            return Ok(Err(HeaderError::Damaged));
        }
        let mut bytes = [0; ENCODED_BYTES];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Self::decode(&bytes))
    }
}

pub(super) fn file_name(segment_id: u64) -> String {
    format!("{segment_id:016x}.seg")
}

/// The id in a file name; `None` for any other file.
pub(super) fn parse_file_name(name: &str) -> Option<u64> {
    let id = u64::from_str_radix(name.strip_suffix(".seg")?, 16).ok()?;
    // Only the one spelling, so that two names cannot mean the same segment.
    (file_name(id) == name).then_some(id)
}

pub(super) fn is_unborn(name: &str) -> bool {
    name.ends_with(".seg.new")
}

/// The name of a segment that is not born yet.
pub(super) fn unborn_name(segment_id: u64) -> String {
    format!("{}.new", file_name(segment_id))
}

/// Reserves the space of a segment under a name that counts for nothing. What an earlier attempt left goes first,
/// and an error leaves nothing.
pub(super) fn reserve(
    disk: &dyn Disk,
    dir: &Path,
    segment_id: u64,
    capacity_bytes: u64,
) -> io::Result<Arc<dyn DiskFile>> {
    let path = dir.join(unborn_name(segment_id));
    if disk.exists(&path)? {
        disk.remove(&path)?;
    }
    let file = disk.open(&path, OpenMode::Create)?;
    if let Err(error) = file.allocate(capacity_bytes) {
        // A part of it would only take the room of a smaller one.
        let _ = disk.remove(&path);
        return Err(error);
    }
    Ok(file)
}

/// Makes a segment of what was reserved for it; it and its name are durable on return.
pub(super) fn give_birth(
    disk: &dyn Disk,
    dir: &Path,
    file: &dyn DiskFile,
    header: &SegmentHeader,
) -> io::Result<()> {
    let name = file_name(header.segment_id);
    file.write_all_at(&header.encode(), 0)?;
    file.sync_data()?;
    disk.rename(&dir.join(unborn_name(header.segment_id)), &dir.join(name))?;
    while_out_of_files(|| disk.sync_dir(dir))
}

/// Makes a segment; it and its name are durable on return. Three syncs' worth of time.
pub(super) fn create(disk: &dyn Disk, dir: &Path, header: &SegmentHeader) -> io::Result<Arc<dyn DiskFile>> {
    let file = while_out_of_files(|| reserve(disk, dir, header.segment_id, header.capacity_bytes))?;
    give_birth(disk, dir, file.as_ref(), header)?;
    Ok(file)
}

/// Does `open` again while this process or the machine has no file descriptor left, for a while: that passes,
/// and says nothing of the disk.
pub(super) fn while_out_of_files<T>(mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + OUT_OF_FILES_PATIENCE;
    let mut is_said = false;
    loop {
        match open() {
            Err(error) if is_out_of_files(&error) && Instant::now() < deadline => {
                if !is_said {
                    tracing::error!("the log has to wait for a file descriptor: {error}");
                    is_said = true;
                }
                std::thread::sleep(OUT_OF_FILES_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            segment_id: 9,
            capacity_bytes: 1 << 20,
            first_lsn: 77,
            chain: 0xDEAD_BEEF,
            vote: Some(Vote { term: 4, node_id: u64::MAX - 1, committed: true }),
            purged: None,
            last: Some(EntryId { term: 4, index: 1000 }),
            synced_lsn: 70,
        }
    }

    #[test]
    fn a_header_comes_back_and_any_flipped_bit_of_it_is_noticed() {
        let bytes = header().encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header()));
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(SegmentHeader::decode(&damaged).is_err(), "bit {at}");
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut bytes = header().encode();
        bytes[8..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Err(HeaderError::Damaged));
        let crc = crc32c::crc32c(&bytes[..124]);
        bytes[124..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Err(HeaderError::Newer(FORMAT_VERSION + 1)));
    }

    #[test]
    fn only_the_one_spelling_of_a_name_is_a_segment() {
        assert_eq!(parse_file_name(&file_name(0xAB)), Some(0xAB));
        for name in ["00000000000000AB.seg", "ab.seg", "00000000000000ab.seg.new", "identity", ".seg"] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }
}
