//! A log that is made of what another member sends.
//!
//! A member that lacks more than its peers' logs still hold gets the state and every entry that it names.
//! None of that continues the log it has, so it becomes a log of its own, in a directory beside: kept files
//! with the entries, and one empty segment that goes on behind the state. Nothing of the old log is touched
//! until the new one is whole (see `stores`); what was begun and not finished is removed at the next start.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, create_dir_durably};
use super::entry::{EntryId, LogEntry, Vote};
use super::frame::{self, FrameHead};
use super::kept::KeptName;
use super::packed_file::PackedFile;
use super::segment::{self, SegmentHeader};

pub struct IncomingLog {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    next_segment: u64,
    open: Option<PackedFile>,
    first_index: u64,
    last_index: Option<u64>,
}

impl IncomingLog {
    /// Begins a log in `dir`, which must be empty or not exist, with files of about `segment_bytes`.
    pub fn begin(disk: Arc<dyn Disk>, dir: &Path, segment_bytes: u64) -> io::Result<Self> {
        create_dir_durably(disk.as_ref(), dir)?;
        Ok(Self {
            disk,
            dir: dir.to_path_buf(),
            segment_bytes,
            next_segment: 1,
            open: None,
            first_index: 0,
            last_index: None,
        })
    }

    /// Adds an entry above all before it.
    pub fn push(&mut self, entry: &LogEntry) -> io::Result<()> {
        let index = entry.id.index;
        if self.last_index.is_some_and(|last| index <= last) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "entries came out of order"));
        }
        // Offsets and indexes relative to the first are 32 bits wide.
        let is_full = self.open.as_ref().is_some_and(|open| {
            open.len_bytes() >= self.segment_bytes || index - self.first_index > u64::from(u32::MAX)
        });
        if is_full {
            self.seal()?;
        }
        if self.open.is_none() {
            let id = self.next_segment;
            let name = KeptName { first_segment: id, last_segment: id, generation: 1 };
            self.open = Some(PackedFile::begin(self.disk.as_ref(), &self.dir, name)?);
            self.first_index = index;
        }
        if let Some(open) = &mut self.open {
            let head = FrameHead {
                prev_crc: 0,
                kind: entry.kind.into(),
                synced_lsn: None,
                lsn: 0,
                term: entry.id.term,
                index,
                stamp_ms: entry.stamp_ms,
            };
            open.push(index, |out| {
                // Frames lie aligned behind a header that is; the buffer starts at one of them.
                frame::encode(out, &head, &entry.payload);
            })?;
        }
        self.last_index = Some(index);
        Ok(())
    }

    /// Makes what came so far durable and closes its file.
    pub fn seal(&mut self) -> io::Result<()> {
        if let Some(open) = self.open.take() {
            open.finish(self.disk.as_ref(), &self.dir)?;
            self.next_segment += 1;
        }
        Ok(())
    }

    /// Ends the log: it goes on behind `last`, under `vote`. All of it is durable on return.
    pub fn finish(mut self, last: EntryId, vote: Option<Vote>) -> io::Result<()> {
        self.seal()?;
        let header = SegmentHeader {
            segment_id: self.next_segment,
            capacity_bytes: self.segment_bytes.next_multiple_of(4096),
            first_lsn: 1,
            chain: 0,
            vote,
            purged: Some(last),
            last: Some(last),
            synced_lsn: 0,
        };
        segment::create(self.disk.as_ref(), &self.dir, &header)?;
        Ok(())
    }
}
