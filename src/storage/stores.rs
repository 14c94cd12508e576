//! Which log and which checkpoint of a data directory are the ones.
//!
//! Log and checkpoint belong together: each says something about the other. A member that takes over the
//! state of its cluster replaces both at once, and a kill in the middle must leave the old pair or the new
//! one. So they are a *store*, stores are numbered, and one small file, replaced atomically, says which
//! counts. The next one is prepared beside it for as long as that takes, and what does not count is removed
//! at the next start.
//!
//! The first store has no number and needs no such file: `log`, `checkpoint`; later ones are `log-1` and so on.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::{Checkpoint, Checkpoints};
use super::disk::{Disk, read_small_file, write_file_atomically};
use super::entry::{EntryId, Vote};
use super::incoming::IncomingLog;
use super::segment;
use super::verdict::{Verdict, is_unreadable};

/// Names the store that counts.
pub(super) const POINTER: &str = "store";
const POINTER_BYTES_MAX: u64 = 64;

/// The stores of one data directory.
pub struct Stores {
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    number: u64,
    segment_bytes: u64,
    checkpoints: Arc<dyn Checkpoints>,
}

/// A store that is prepared and does not count yet.
pub struct StagedStore {
    number: u64,
    pub log: IncomingLog,
    /// Dropped before the store counts: it is opened anew then.
    pub checkpoint: Option<Arc<dyn Checkpoint>>,
}

impl Stores {
    /// Looks up the store that counts and removes what is left of others. New log files get `segment_bytes`.
    /// `InvalidData` if the file that names it is damaged or lost.
    pub fn open(
        disk: Arc<dyn Disk>,
        data_dir: &Path,
        segment_bytes: u64,
        checkpoints: Arc<dyn Checkpoints>,
    ) -> io::Result<Self> {
        let number = read_pointer(disk.as_ref(), data_dir)?;
        let stores = Self { disk, data_dir: data_dir.to_path_buf(), number, segment_bytes, checkpoints };
        if number > 0 && !stores.disk.exists(&stores.log_dir())? {
            return Err(lost(&stores.log_dir()));
        }
        for other in (0..number).chain([number + 1]) {
            stores.remove(other)?;
        }
        Ok(stores)
    }

    pub fn log_dir(&self) -> PathBuf {
        self.dir("log", self.number)
    }

    /// Whether the store that counts has a log, however much of it is there.
    pub fn has_log(&self) -> io::Result<bool> {
        let dir = self.log_dir();
        let names = if self.disk.exists(&dir)? { self.disk.list(&dir)? } else { Vec::new() };
        Ok(names.iter().any(|name| segment::parse_file_name(name).is_some()))
    }

    pub fn checkpoint_dir(&self) -> PathBuf {
        self.dir("checkpoint", self.number)
    }

    /// Opens the checkpoint that counts.
    pub fn open_checkpoint(&self) -> io::Result<Arc<dyn Checkpoint>> {
        self.checkpoints.open(&self.checkpoint_dir())
    }

    /// Begins the next store; what an earlier attempt left is removed.
    pub fn stage(&self) -> io::Result<StagedStore> {
        let number = self.number + 1;
        self.remove(number)?;
        let log = IncomingLog::begin(self.disk.clone(), &self.dir("log", number), self.segment_bytes)?;
        let checkpoint = self.checkpoints.open(&self.dir("checkpoint", number))?;
        Ok(StagedStore { number, log, checkpoint: Some(checkpoint) })
    }

    /// Removes what an attempt at the next store left.
    pub fn discard_staged(&self) -> io::Result<()> {
        self.remove(self.number + 1)
    }

    /// Makes a staged store the one that counts, from the next start on. Its log goes on behind `last`, under
    /// `vote`. Durable on return; a kill before that leaves the old one.
    pub fn publish(&self, staged: StagedStore, last: EntryId, vote: Option<Vote>) -> io::Result<()> {
        let StagedStore { number, log, checkpoint } = staged;
        drop(checkpoint);
        log.finish(last, vote)?;
        let text = format!("{number}");
        let text = format!("{text} {:08x}\n", crc32c::crc32c(text.as_bytes()));
        write_file_atomically(self.disk.as_ref(), &self.data_dir, POINTER, text.as_bytes())
    }

    fn dir(&self, what: &str, number: u64) -> PathBuf {
        match number {
            0 => self.data_dir.join(what),
            _ => self.data_dir.join(format!("{what}-{number}")),
        }
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        self.checkpoints.remove(&self.dir("checkpoint", number))?;
        let log = self.dir("log", number);
        if self.disk.exists(&log)? { self.disk.remove_dir_all(&log) } else { Ok(()) }
    }
}

pub(super) fn read_pointer(disk: &dyn Disk, data_dir: &Path) -> io::Result<u64> {
    let path = data_dir.join(POINTER);
    if !disk.exists(&path)? {
        // Whoever lost the file must not start blank beside the data.
        let first = data_dir.join("log");
        let names = if disk.exists(data_dir)? { disk.list_dirs(data_dir)? } else { Vec::new() };
        let is_later = |name: &String| {
            name.strip_prefix("log-").is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let has_later = names.iter().any(is_later);
        return if has_later && !disk.exists(&first)? { Err(lost(&path)) } else { Ok(0) };
    }
    let bytes = match read_small_file(disk, &path, POINTER_BYTES_MAX) {
        Err(error) if is_unreadable(&error) => {
            return Err(invalid(format!("{} is damaged: the disk cannot read it ({error})", path.display())));
        }
        read => read?,
    };
    let parse = || {
        let (number, crc) = std::str::from_utf8(&bytes).ok()?.trim_end().split_once(' ')?;
        let is_right = u32::from_str_radix(crc, 16).ok()? == crc32c::crc32c(number.as_bytes());
        is_right.then(|| number.to_owned())
    };
    let text = parse().ok_or_else(|| invalid(format!("{} is damaged", path.display())))?;
    let number = text.parse();
    number
        .map_err(|_| Verdict::Newer.error(format!("{} is of a form that is not known here", path.display())))
}

fn lost(path: &Path) -> io::Error {
    invalid(format!("{} is missing", path.display()))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
