//! The only door to files.
//!
//! Everything below the data directory goes through [`Disk`], so that one set of tests can run the same code
//! against a disk that loses power at any operation. The trait is small on purpose: positioned reads and
//! writes, and the few calls whose *durability* has to be spelled out. There is no seek position, no append
//! mode and no buffered writer, because each of them hides when bytes reach the disk.
//!
//! Three rules hold for every implementation, and nothing more may be relied on:
//! 1. A write is durable after `sync_data` of its file, in whole; before that, any part of it may be.
//! 2. A name (created, renamed, removed) is durable after `sync_dir` of its directory, not before, even if
//!    the file itself was synced.
//! 3. After an error of a sync nothing is known about what was written since the last good one, and a later
//!    sync that succeeds does not change that.
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::verdict::with_second_try;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    Write,
    /// A new file, to read and write; an existing one is an error (`AlreadyExists`).
    Create,
}

/// A place that holds files: the real one, or one in memory.
pub trait Disk: Send + Sync + 'static {
    /// Makes `dir` and its parents. Durable after [`Disk::sync_dir`] of the parent of each new one.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// The names in `dir`, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// The names of the directories in `dir`, sorted.
    fn list_dirs(&self, dir: &Path) -> io::Result<Vec<String>>;
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Replaces `to` atomically if it exists. Both must lie in the same directory.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all that is in it. May be interrupted half way.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Space that can still be written in the file system of `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. All positions are in bytes from its start.
pub trait DiskFile: Send + Sync {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()>;
    fn write_all_at(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()>;
    /// Makes contents and length durable.
    fn sync_data(&self) -> io::Result<()>;
    fn len_bytes(&self) -> io::Result<u64>;
    /// Reserves space up to `len_bytes` and makes the file at least that long; new bytes read as zero.
    fn allocate(&self, len_bytes: u64) -> io::Result<()>;
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;
}

/// The disk of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

struct RealFile(File);

impl Disk for RealDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for item in fs::read_dir(dir)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = item?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => {}
            OpenMode::Write => {
                options.write(true);
            }
            OpenMode::Create => {
                options.write(true).create_new(true);
            }
        }
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn list_dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for item in fs::read_dir(dir)? {
            let item = item?;
            if item.file_type()?.is_dir()
                && let Ok(name) = item.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let figures = rustix::fs::statvfs(dir)?;
        Ok(figures.f_bavail.saturating_mul(figures.f_frsize))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        fs::exists(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // The parent of a bare name is the empty path, which means the working directory.
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir)?.sync_all()
    }
}

impl DiskFile for RealFile {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset_bytes)
    }

    fn write_all_at(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset_bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(&self.0, FallocateFlags::empty(), 0, len_bytes) {
            Ok(()) => Ok(()),
            // Some file systems cannot reserve. A sparse file is as good, but for a full disk being noticed
            // later.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                if self.len_bytes()? < len_bytes {
                    self.0.set_len(len_bytes)
                } else {
                    Ok(())
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.0.set_len(len_bytes)
    }
}

/// Makes `dir` and whatever parents are missing, durable on return.
pub fn create_dir_durably(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let mut missing: Vec<PathBuf> = Vec::new();
    let mut at = dir;
    while !at.as_os_str().is_empty() && !disk.exists(at)? {
        missing.push(at.to_path_buf());
        match at.parent() {
            Some(parent) => at = parent,
            None => break,
        }
    }
    for made in missing.iter().rev() {
        disk.create_dir_all(made)?;
        if let Some(parent) = made.parent() {
            disk.sync_dir(parent)?;
        }
    }
    // The directory may have been made a moment before a crash, and be visible without being durable.
    match dir.parent() {
        Some(parent) if missing.is_empty() => disk.sync_dir(parent),
        _ => Ok(()),
    }
}

/// What a small file holds, at most its first `max_bytes`. A disk that cannot read it is asked a second time.
pub fn read_small_file(disk: &dyn Disk, path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    with_second_try(|| {
        let file = disk.open(path, OpenMode::Read)?;
        let mut bytes = vec![0; file.len_bytes()?.min(max_bytes) as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    })
}

/// Replaces the file `name` in `dir` so that after a crash it holds either all of the old bytes or all of
/// the new ones; durable on return. For small files that are written rarely. One caller at a time per name.
pub fn write_file_atomically(disk: &dyn Disk, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let staged = dir.join(format!("{name}.tmp"));
    if disk.exists(&staged)? {
        // Left by a crash between the two steps below.
        disk.remove(&staged)?;
    }
    let file = disk.open(&staged, OpenMode::Create)?;
    file.write_all_at(bytes, 0)?;
    file.sync_data()?;
    disk.rename(&staged, &dir.join(name))?;
    disk.sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_file_keeps_what_was_written_and_reads_reserved_space_as_zero() {
        let dir = tempfile::tempdir().expect("temp dir");
        let disk = RealDisk;
        let nested = dir.path().join("a/b");
        create_dir_durably(&disk, &nested).expect("create");
        let path = nested.join("file");
        let file = disk.open(&path, OpenMode::Create).expect("create");
        file.allocate(8192).expect("allocate");
        file.write_all_at(b"hello", 4000).expect("write");
        file.sync_data().expect("sync");
        assert_eq!(file.len_bytes().expect("len"), 8192);
        let mut buf = [1u8; 8];
        file.read_exact_at(&mut buf, 3999).expect("read");
        assert_eq!(&buf, b"\0hello\0\0");
        assert!(disk.open(&path, OpenMode::Create).is_err());
        file.set_len(4002).expect("set_len");
        assert!(file.read_exact_at(&mut buf, 3999).is_err());
        assert_eq!(disk.list(&nested).expect("list"), ["file"]);
    }

    #[test]
    fn an_atomic_file_is_replaced_whole_even_after_a_staged_rest() {
        let dir = tempfile::tempdir().expect("temp dir");
        let disk = RealDisk;
        std::fs::write(dir.path().join("id.tmp"), b"left by a crash").expect("write");
        write_file_atomically(&disk, dir.path(), "id", b"one").expect("first");
        write_file_atomically(&disk, dir.path(), "id", b"two").expect("second");
        assert_eq!(std::fs::read(dir.path().join("id")).expect("read"), b"two");
        assert_eq!(disk.list(dir.path()).expect("list"), ["id"]);
    }
}
