//! Space that is kept for a start on a full disk.
//!
//! A member whose disk is full serves reads and deletes, out of a reserve (see `room`). But others may fill the disk
//! to its last byte, and a process that dies then has to start again: opening a checkpoint writes a little, a vote may
//! need a segment, and what deletes free is freed only when a checkpoint says so. So a file of zeroes lies beside the
//! data; a start that finds no room removes it first, and it is laid anew when there is room again.
use std::io;
use std::path::Path;

use super::disk::{Disk, OpenMode};
use crate::limits::{BALLAST_BYTES, CHECKPOINT_ROOM_BYTES};

pub(super) const FILE: &str = "ballast";

/// Removes the ballast if the disk has less room than a whole one takes.
pub fn release_ballast_if_full(disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    let path = data_dir.join(FILE);
    if !disk.exists(&path)? {
        return Ok(());
    }
    let free_bytes = disk.free_bytes(data_dir)?;
    if free_bytes < BALLAST_BYTES {
        disk.remove(&path)?;
        tracing::warn!(
            "only {} KiB are free in {}: starting on what was kept for this",
            free_bytes >> 10,
            data_dir.display()
        );
    }
    Ok(())
}

/// Lays what is left of the ballast anew, if a start that was short of room needed it: the next one may come before
/// there is room again. What checkpoints need stays free.
pub fn lay_rest_of_ballast(disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    let free_bytes = disk.free_bytes(data_dir)?;
    let rest_bytes = free_bytes.saturating_sub(2 * CHECKPOINT_ROOM_BYTES);
    if free_bytes > BALLAST_BYTES || rest_bytes < CHECKPOINT_ROOM_BYTES {
        return Ok(());
    }
    lay(disk, data_dir, rest_bytes)
}

/// Lays the ballast if none is there. Nothing depends on its durability.
pub(super) fn lay(disk: &dyn Disk, data_dir: &Path, len_bytes: u64) -> io::Result<()> {
    let path = data_dir.join(FILE);
    if disk.exists(&path)? {
        return Ok(());
    }
    let laid = disk.open(&path, OpenMode::Create).and_then(|file| file.allocate(len_bytes));
    laid.inspect_err(|_| {
        let _ = disk.remove(&path);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::SimDisk;

    #[test]
    fn a_start_without_room_takes_the_ballast_and_lays_what_is_left_of_it() {
        let (disk, dir) = (SimDisk::new(1), Path::new("/data"));
        disk.create_dir_all(dir).unwrap();
        let len_bytes =
            || disk.open(&dir.join(FILE), OpenMode::Read).map(|file| file.len_bytes().unwrap()).ok();
        lay(&disk, dir, BALLAST_BYTES).unwrap();
        for (free_bytes, is_there) in [(BALLAST_BYTES, true), (BALLAST_BYTES - 1, false)] {
            disk.set_free_bytes(free_bytes);
            release_ballast_if_full(&disk, dir).unwrap();
            assert_eq!(len_bytes().is_some(), is_there, "{free_bytes}");
        }
        let left = BALLAST_BYTES - (1 << 20);
        for (free_bytes, len) in [(u64::MAX, None), (CHECKPOINT_ROOM_BYTES, None), (left, Some(11 << 20))] {
            disk.set_free_bytes(free_bytes);
            lay_rest_of_ballast(&disk, dir).unwrap();
            assert_eq!(len_bytes(), len, "{free_bytes}");
        }
    }
}
