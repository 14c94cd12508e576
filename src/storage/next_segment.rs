//! The file of the next segment, made before it is needed.
//!
//! A rotation is in the middle of a group that clients wait for, and needs a file, its space and a descriptor; on a
//! disk that is nearly full, or in a process that has no descriptor left, each may be refused. So when a segment is
//! half full, the next one is reserved under its unborn name (see `segment`), outside of any group. If that does
//! not work, nothing has happened: the rotation tries by itself, and is content with a small segment if there is no
//! room for a large one.
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::disk::{Disk, DiskFile, OpenMode};
use super::segment::{self, SegmentHeader};
use super::verdict::is_out_of_space;
use crate::limits::SMALL_SEGMENT_BYTES;

#[derive(Default)]
pub(super) struct NextSegment {
    reserved: Option<Reserved>,
    /// The last attempt failed; another one is made when the segment ends here.
    retry_at_bytes: u64,
}

struct Reserved {
    segment_id: u64,
    capacity_bytes: u64,
    file: Arc<dyn DiskFile>,
}

impl NextSegment {
    /// What an earlier process reserved and did not come to use, if it is there.
    pub(super) fn find(disk: &dyn Disk, dir: &Path, segment_id: u64) -> io::Result<Self> {
        let path = dir.join(segment::unborn_name(segment_id));
        if !disk.exists(&path)? {
            return Ok(Self::default());
        }
        let file = disk.open(&path, OpenMode::Write)?;
        let capacity_bytes = file.len_bytes()?;
        Ok(Self { reserved: Some(Reserved { segment_id, capacity_bytes, file }), retry_at_bytes: 0 })
    }

    /// Reserves the segment behind the one that ends at `end_bytes` of `capacity_bytes`, if that is due.
    pub(super) fn prepare(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        segment_id: u64,
        (end_bytes, capacity_bytes): (u64, u64),
        wanted_bytes: u64,
    ) {
        let is_due = end_bytes > capacity_bytes / 2 && end_bytes >= self.retry_at_bytes;
        if self.reserved.is_some() || !is_due {
            return;
        }
        match segment::reserve(disk, dir, segment_id, wanted_bytes) {
            Ok(file) => {
                self.reserved = Some(Reserved { segment_id, capacity_bytes: wanted_bytes, file });
                self.retry_at_bytes = 0;
            }
            Err(error) => {
                tracing::debug!(%error, "the next segment of the log cannot be reserved yet");
                self.retry_at_bytes = end_bytes + capacity_bytes / 16;
            }
        }
    }

    /// Makes the next segment, durable on return: of what was reserved, or anew, of `wanted_bytes` if there is room
    /// and of `needed_bytes` in any case. `header` has everything but the capacity.
    pub(super) fn take(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        mut header: SegmentHeader,
        needed_bytes: u64,
        wanted_bytes: u64,
    ) -> io::Result<(Arc<dyn DiskFile>, SegmentHeader)> {
        self.retry_at_bytes = 0;
        if let Some(reserved) = self.reserved.take()
            && reserved.segment_id == header.segment_id
            && reserved.capacity_bytes >= needed_bytes
        {
            header.capacity_bytes = reserved.capacity_bytes;
            segment::give_birth(disk, dir, reserved.file.as_ref(), &header)?;
            return Ok((reserved.file, header));
        }
        header.capacity_bytes = wanted_bytes;
        let small_bytes = needed_bytes.max(SMALL_SEGMENT_BYTES).next_multiple_of(4096);
        match segment::create(disk, dir, &header) {
            Ok(file) => Ok((file, header)),
            Err(error) if is_out_of_space(&error) && small_bytes < wanted_bytes => {
                tracing::warn!("there is no room for a whole segment of the log: the next one is small");
                header.capacity_bytes = small_bytes;
                Ok((segment::create(disk, dir, &header)?, header))
            }
            Err(error) => Err(error),
        }
    }
}
