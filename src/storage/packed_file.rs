//! A file of entries that is no part of the chain, while it is written.
//!
//! It is made under another name, gets its table at the end, is synced, and only then renamed: a kept file
//! with its name is whole (see `kept`).
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, DiskFile, OpenMode};
use super::frame::{self, FrameHead, FrameKind};
use super::kept::{self, KEPT_HEADER_BYTES, KeptFile, KeptName};
use super::packed::PackedTable;
use super::verdict::{Verdict, with_second_try};

/// Frames are gathered up to this size before they are written.
const WRITE_BYTES: usize = 1 << 20;

pub(super) struct PackedFile {
    pub name: KeptName,
    unborn: PathBuf,
    file: Arc<dyn DiskFile>,
    /// Behind what is written.
    written_bytes: u64,
    waiting: Vec<u8>,
    table: PackedTable,
}

impl PackedFile {
    pub(super) fn begin(disk: &dyn Disk, dir: &Path, name: KeptName) -> io::Result<Self> {
        let unborn = dir.join(kept::unborn_name(name));
        if disk.exists(&unborn)? {
            // Left by an attempt that failed.
            disk.remove(&unborn)?;
        }
        let file = disk.open(&unborn, OpenMode::Create)?;
        file.write_all_at(&name.header(), 0)?;
        let table = PackedTable::default();
        Ok(Self { name, unborn, file, written_bytes: KEPT_HEADER_BYTES, waiting: Vec::new(), table })
    }

    /// Bytes of header and frames so far.
    pub(super) fn len_bytes(&self) -> u64 {
        self.written_bytes + self.waiting.len() as u64
    }

    /// Adds the frame of the entry at `index`, above all before it; `put` appends its bytes.
    pub(super) fn push(&mut self, index: u64, put: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.table.push(index, self.len_bytes())?;
        put(&mut self.waiting);
        if self.waiting.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes what was gathered; not yet durable.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.waiting, self.written_bytes)?;
        self.written_bytes = self.len_bytes();
        self.waiting.clear();
        Ok(())
    }

    /// Gives the file its table and its name, both durable on return. No file if it holds nothing.
    pub(super) fn finish(mut self, disk: &dyn Disk, dir: &Path) -> io::Result<Option<KeptFile>> {
        if self.table.is_empty() {
            self.give_up(disk)?;
            return Ok(None);
        }
        self.flush()?;
        let payload = self.table.encode(self.written_bytes);
        let head = FrameHead {
            prev_crc: 0,
            kind: FrameKind::Table,
            synced_lsn: None,
            lsn: 0,
            term: 0,
            index: 0,
            stamp_ms: 0,
        };
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, &head, &payload);
        self.file.write_all_at(&bytes, self.written_bytes)?;
        self.file.sync_data()?;
        disk.rename(&self.unborn, &dir.join(self.name.file_name()))?;
        disk.sync_dir(dir)?;
        let new = with_second_try(|| KeptFile::open_packed(self.name, self.file.as_ref()))?;
        new.map(Some).map_err(|why| Verdict::Bug.error(format!("a file that was just written: {why:?}")))
    }

    /// Removes what was written.
    fn give_up(self, disk: &dyn Disk) -> io::Result<()> {
        disk.remove(&self.unborn)
    }
}
