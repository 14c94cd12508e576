//! What an orderly end leaves beside the log: a note of how far it was confirmed.
//!
//! A frame is spoken for by later frames, and the last group by a witness behind it (see `log_writer`). Both lie
//! side by side: one damaged page may take the group and its witness, and what is left looks like a torn tail. So a
//! log that is closed in order also writes the lsn up to which everything was confirmed into a small file of its
//! own. Whatever is missing below that is damage, and never cut.
//!
//! The note only ever adds certainty: it stays true while the log grows, and one that is missing or cannot be read
//! says nothing.
use std::io;
use std::path::Path;

use super::disk::{Disk, read_small_file, write_file_atomically};
use super::verdict::is_unreadable;

pub(super) const FILE: &str = "closed";
const FILE_BYTES_MAX: u64 = 64;

/// Notes that all frames up to `confirmed_lsn` were synced; durable on return.
pub(super) fn write_note(disk: &dyn Disk, dir: &Path, confirmed_lsn: u64) -> io::Result<()> {
    let text = format!("{confirmed_lsn}");
    let text = format!("{text} {:08x}\n", crc32c::crc32c(text.as_bytes()));
    write_file_atomically(disk, dir, FILE, text.as_bytes())
}

/// The lsn up to which the log was confirmed when it was last closed; 0 if nothing says so.
pub(super) fn read_note(disk: &dyn Disk, dir: &Path) -> io::Result<u64> {
    let path = dir.join(FILE);
    if !disk.exists(&path)? {
        return Ok(0);
    }
    let bytes = match read_small_file(disk, &path, FILE_BYTES_MAX) {
        // As good as damaged.
        Err(error) if is_unreadable(&error) => Vec::new(),
        read => read?,
    };
    let parse = || {
        let (lsn, crc) = std::str::from_utf8(&bytes).ok()?.trim_end().split_once(' ')?;
        let is_right = u32::from_str_radix(crc, 16).ok()? == crc32c::crc32c(lsn.as_bytes());
        lsn.parse().ok().filter(|_| is_right)
    };
    Ok(parse().unwrap_or_else(|| {
        tracing::warn!("{} is damaged and says nothing", path.display());
        0
    }))
}
