//! Checkpoints: the state as of one exact point between two entries, on disk.
//!
//! A checkpoint is a map of small values, kept in one sled tree and moved forward by atomic batches: after
//! a crash it is as of one batch or the next, never between. It holds no records (they stay in the log)
//! and no value per record, which is what a key-value store would make slow and large; see `state/run.rs`
//! for the blocks it does hold. Values stay below 7 KiB: sled moves larger ones to files of their own
//! that it never frees.
//!
//! sled checks its own pages, but what it finds damaged it may leave out. So the batch also carries the sum
//! of a digest of every key and value; a checkpoint that does not add up to it when it is loaded is damaged,
//! and never used.
//!
//! Simulations use [`MemoryCheckpoint`], a twin without threads and files under the same rules.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::frozen::Page;
use super::read_through::find_unreadable;
use super::verdict::{Verdict, is_unreadable};
use crate::digest::Digest;

/// One change of the checkpoint: `None` deletes the key.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// Takes in one key and its value.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> io::Result<()>;

/// Where the checkpoint of a member is kept. All calls may block on the disk.
pub trait Checkpoint: Send + Sync + 'static {
    /// Hands every key and value to `each`, in key order. An error of `each` comes back only if everything that is
    /// stored adds up: otherwise it is damaged, whatever `each` made of it.
    fn load(&self, each: Visit<'_>) -> io::Result<()>;
    /// One value.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// Keys above `after` and their values, in key order, until they reach `max_bytes`; at least one if there
    /// is one.
    fn page(&self, after: Option<&[u8]>, max_bytes: usize) -> io::Result<Page>;
    /// Sum of the digests of all keys and values: what tells it from another one.
    fn sum(&self) -> u64;
    /// Moves the checkpoint forward: all changes or none, on disk when this returns. After an error it may be either,
    /// and nothing can be written any more until it is opened again.
    fn write(&self, changes: Vec<Change>) -> io::Result<()>;
}

/// Where checkpoints are kept, each in a directory of its own. All calls may block on the disk.
pub trait Checkpoints: Send + Sync + 'static {
    /// Opens or creates the checkpoint in `dir`.
    fn open(&self, dir: &Path) -> io::Result<Arc<dyn Checkpoint>>;
    /// Removes the checkpoint in `dir`, if there is one; nobody may have it open.
    fn remove(&self, dir: &Path) -> io::Result<()>;
}

/// Checkpoints in sled.
pub struct SledCheckpoints;

impl Checkpoints for SledCheckpoints {
    fn open(&self, dir: &Path) -> io::Result<Arc<dyn Checkpoint>> {
        Ok(Arc::new(SledCheckpoint::open(dir)?))
    }

    fn remove(&self, dir: &Path) -> io::Result<()> {
        if std::fs::exists(dir)? { std::fs::remove_dir_all(dir) } else { Ok(()) }
    }
}

/// Checkpoints in memory, which outlive whoever opens them.
#[derive(Default)]
pub struct MemoryCheckpoints(Mutex<BTreeMap<PathBuf, Arc<MemoryCheckpoint>>>);

impl Checkpoints for MemoryCheckpoints {
    fn open(&self, dir: &Path) -> io::Result<Arc<dyn Checkpoint>> {
        Ok(self.0.lock().entry(dir.to_path_buf()).or_default().clone())
    }

    fn remove(&self, dir: &Path) -> io::Result<()> {
        self.0.lock().remove(dir);
        Ok(())
    }
}

/// The checkpoint in sled.
pub struct SledCheckpoint {
    tree: sled::Tree,
    db: sled::Db,
    dir: PathBuf,
    /// The file that sled keeps everything in.
    file: File,
    /// Held while a batch is written.
    sum: Mutex<Sum>,
}

struct Sum {
    /// Of the digests of all keys and values.
    value: u64,
    /// A batch failed: it may be in the tree, and on the disk or not, and only the next start finds out.
    is_outdated: bool,
}

impl Sum {
    /// An error if nobody knows what the sum is of. It says nothing of what is on the disk.
    fn known(&self) -> io::Result<u64> {
        match self.is_outdated {
            true => Err(Verdict::Refused.error("an earlier batch of the checkpoint could not be written")),
            false => Ok(self.value),
        }
    }
}

/// Memory that sled may use to cache pages.
const CACHE_BYTES: u64 = 32 << 20;
const TREE: &[u8] = b"checkpoint";
/// How long a lock is waited for that this process itself still holds.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Where the sum is kept; no other key is empty.
const SUM_KEY: &[u8] = b"";

/// What one key and its value add to the sum.
fn item_digest(key: &[u8], value: &[u8]) -> u64 {
    let mut digest = Digest::default();
    digest.add_bytes(key);
    digest.add_bytes(value);
    digest.value()
}

impl SledCheckpoint {
    /// Opens or creates the checkpoint in `dir`.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let unread = |error| read_error(dir, error);
        let db = open_database(dir).map_err(unread)?;
        let tree = db.open_tree(TREE).map_err(unread)?;
        let file = File::open(dir.join("db"))?;
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        let value = match tree.get(SUM_KEY).map_err(unread)? {
            Some(bytes) => u64::from_le_bytes(bytes[..].try_into().map_err(|_| damaged())?),
            None => 0,
        };
        Ok(SledCheckpoint {
            tree,
            db,
            dir: dir.to_path_buf(),
            file,
            sum: Mutex::new(Sum { value, is_outdated: false }),
        })
    }

    /// Makes a batch and its sum durable.
    fn apply(&self, batch: sled::Batch) -> io::Result<()> {
        self.tree.apply_batch(batch).map_err(into_io)?;
        self.db.flush().map_err(into_io)?;
        // sled's flush starts the writing of pages and does not wait for the device.
        self.file.sync_all()
    }
}

/// Opens sled's database, which holds a lock on its file. The data directory has a lock of its own, so whoever else
/// holds this one is this very process, and is letting go: an earlier database whose threads are ending, or a child
/// that was forked and has not become another program yet.
fn open_database(dir: &Path) -> sled::Result<sled::Db> {
    // Segment size and compression stay at sled's defaults: smaller segments have deadlocked it.
    // It flushes when we say so, not on a timer: a half-written batch is worth nothing to us.
    let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match config.open() {
            Err(sled::Error::Io(error)) if is_locked(&error) && Instant::now() < deadline => {
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
}

/// Whether another process, or an earlier database of this one, has it open. sled tells it in words only.
fn is_locked(error: &io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is damaged: its contents do not add up to its checksum")
}

impl Checkpoint for SledCheckpoint {
    fn load(&self, each: Visit<'_>) -> io::Result<()> {
        let (mut sum, mut failed) = (0u64, None);
        for item in self.tree.range::<&[u8], _>(above(Some(SUM_KEY))) {
            let (key, value) = item.map_err(|error| read_error(&self.dir, error))?;
            sum = sum.wrapping_add(item_digest(&key, &value));
            if failed.is_none() {
                failed = each(&key, &value).err();
            }
        }
        if sum != self.sum.lock().known()? {
            return Err(damaged());
        }
        failed.map_or(Ok(()), Err)
    }

    fn page(&self, after: Option<&[u8]>, max_bytes: usize) -> io::Result<Page> {
        let items = self.tree.range::<&[u8], _>(above(Some(after.unwrap_or(SUM_KEY))));
        page_of(
            items.map(|item| item.map(|(key, value)| (key.to_vec(), value.to_vec())).map_err(into_io)),
            max_bytes,
        )
    }

    fn sum(&self) -> u64 {
        self.sum.lock().value
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.tree.get(key).map_err(|error| read_error(&self.dir, error))?.map(|value| value.to_vec()))
    }

    fn write(&self, changes: Vec<Change>) -> io::Result<()> {
        // The last change of a key is the one that counts.
        let changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = changes.into_iter().collect();
        let mut batch = sled::Batch::default();
        let mut sum = self.sum.lock();
        let mut new_sum = sum.known()?;
        for (key, value) in changes {
            if let Some(old) = self.tree.get(&key).map_err(into_io)? {
                new_sum = new_sum.wrapping_sub(item_digest(&key, &old));
            }
            match value {
                Some(value) => {
                    new_sum = new_sum.wrapping_add(item_digest(&key, &value));
                    batch.insert(key, value);
                }
                None => batch.remove(key),
            }
        }
        batch.insert(SUM_KEY, &new_sum.to_le_bytes());
        sum.is_outdated = true;
        self.apply(batch).map_err(|error| {
            let what = format!("the checkpoint in {} cannot be moved forward: {error}", self.dir.display());
            Verdict::Refused.error(what)
        })?;
        *sum = Sum { value: new_sum, is_outdated: false };
        Ok(())
    }
}

/// The keys above `after`.
fn above(after: Option<&[u8]>) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

/// The first of `items`, until they reach `max_bytes`.
pub(super) fn page_of(
    items: impl Iterator<Item = io::Result<(Vec<u8>, Vec<u8>)>>,
    max_bytes: usize,
) -> io::Result<Page> {
    let (mut page, mut bytes) = (Page::new(), 0);
    for item in items {
        let (key, value) = item?;
        bytes += key.len() + value.len();
        page.push((key, value));
        if bytes >= max_bytes {
            break;
        }
    }
    Ok(page)
}

/// What an error of reading the checkpoint in `dir` means. That a file of it cannot be read is as good as damage of
/// that file; but what sled does when it is asked to read may also fail because of something that it writes.
fn read_error(dir: &Path, error: sled::Error) -> io::Error {
    let error = into_io(error);
    match is_unreadable(&error).then(|| find_unreadable(dir)).flatten() {
        Some(file) => {
            let what = format!("the disk cannot read {}: {error}", file.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        }
        None => error,
    }
}

fn into_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) if is_locked(&error) => Verdict::Busy.error(error.to_string()),
        sled::Error::Io(error) if error.raw_os_error().is_some() => error,
        // What sled says by itself is said of what it read.
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

/// A checkpoint in memory.
#[derive(Default)]
pub struct MemoryCheckpoint {
    values: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Checkpoint for MemoryCheckpoint {
    fn load(&self, each: Visit<'_>) -> io::Result<()> {
        self.values.lock().iter().try_for_each(|(key, value)| each(key, value))
    }

    fn page(&self, after: Option<&[u8]>, max_bytes: usize) -> io::Result<Page> {
        let values = self.values.lock();
        let items = values.range::<[u8], _>(above(after));
        page_of(items.map(|(key, value)| Ok((key.clone(), value.clone()))), max_bytes)
    }

    fn sum(&self) -> u64 {
        let values = self.values.lock();
        values.iter().fold(0, |sum, (key, value)| sum.wrapping_add(item_digest(key, value)))
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.values.lock().get(key).cloned())
    }

    fn write(&self, changes: Vec<Change>) -> io::Result<()> {
        let mut values = self.values.lock();
        for (key, value) in changes {
            match value {
                Some(value) => values.insert(key, value),
                None => values.remove(&key),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: u8, value: Option<u8>) -> Change {
        (vec![key], value.map(|value| vec![value; 100]))
    }

    fn keys(checkpoint: &SledCheckpoint) -> io::Result<Vec<u8>> {
        let mut keys = Vec::new();
        checkpoint.load(&mut |key, _| {
            keys.push(key[0]);
            Ok(())
        })?;
        Ok(keys)
    }

    #[test]
    fn what_was_written_adds_up_when_it_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = SledCheckpoint::open(dir.path()).unwrap();
        checkpoint.write(vec![change(1, Some(1)), change(2, Some(2)), change(1, Some(3))]).unwrap();
        checkpoint.write(vec![change(2, None), change(4, Some(4)), change(5, None)]).unwrap();
        drop(checkpoint);
        let checkpoint = SledCheckpoint::open(dir.path()).unwrap();
        assert_eq!(keys(&checkpoint).unwrap(), [1, 4]);
    }

    #[test]
    fn a_value_that_is_lost_or_changed_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = SledCheckpoint::open(dir.path()).unwrap();
        checkpoint.write(vec![change(1, Some(1)), change(2, Some(2))]).unwrap();
        checkpoint.tree.remove([2]).unwrap();
        assert_eq!(keys(&checkpoint).unwrap_err().kind(), io::ErrorKind::InvalidData);
        checkpoint.tree.insert([2], vec![9]).unwrap();
        assert_eq!(keys(&checkpoint).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_batch_that_failed_ends_the_writing_and_damages_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut checkpoint = SledCheckpoint::open(dir.path()).unwrap();
        checkpoint.write(vec![change(1, Some(1)), change(2, Some(2))]).unwrap();
        // A device that cannot be synced.
        let file = std::mem::replace(&mut checkpoint.file, File::open("/dev/null").unwrap());
        let error = checkpoint.write(vec![change(2, None), change(3, Some(3))]).unwrap_err();
        assert_eq!(Verdict::of(&error), Verdict::Refused, "a chore does not go on after it: {error}");
        checkpoint.file = file;
        let error = checkpoint.write(vec![change(4, Some(4))]).unwrap_err();
        assert_eq!(Verdict::of(&error), Verdict::Refused, "{error}");
        assert_eq!(
            Verdict::of(&keys(&checkpoint).unwrap_err()),
            Verdict::Refused,
            "it is not called damaged"
        );
        drop(checkpoint);
        let checkpoint = SledCheckpoint::open(dir.path()).unwrap();
        let keys = keys(&checkpoint).expect("it adds up");
        assert!(keys == [1, 2] || keys == [1, 3], "one batch or the other: {keys:?}");
    }

    #[test]
    fn an_error_of_the_disk_is_damage_if_a_file_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        // Reading the memory of this process from address 0 is an error of I/O.
        std::os::unix::fs::symlink("/proc/self/mem", dir.path().join("conf")).unwrap();
        let error = || sled::Error::Io(rustix::io::Errno::IO.into());
        assert_eq!(Verdict::of(&read_error(dir.path(), error())), Verdict::Damage);
        std::fs::remove_file(dir.path().join("conf")).unwrap();
        assert_eq!(Verdict::of(&read_error(dir.path(), error())), Verdict::Refused);
    }

    #[test]
    fn what_adds_up_and_cannot_be_taken_in_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = SledCheckpoint::open(dir.path()).unwrap();
        checkpoint.write(vec![change(1, Some(1)), change(2, Some(2))]).unwrap();
        let refuse = || checkpoint.load(&mut |_, _| Err(Verdict::Newer.error("of a later form")));
        assert_eq!(Verdict::of(&refuse().unwrap_err()), Verdict::Newer);
        checkpoint.tree.insert([2], vec![9]).unwrap();
        assert_eq!(Verdict::of(&refuse().unwrap_err()), Verdict::Damage);
    }

    #[test]
    fn a_database_that_stays_locked_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let _held = SledCheckpoint::open(dir.path()).unwrap();
        let error = SledCheckpoint::open(dir.path()).err().expect("it is held");
        assert_eq!(Verdict::of(&error), Verdict::Busy, "{error}");
    }

    /// What a damaged database gives: everything, an error, or a panic of sled's (`None`).
    fn load_damaged(dir: &Path) -> Option<io::Result<Vec<u8>>> {
        std::panic::catch_unwind(|| {
            let checkpoint = SledCheckpoint::open(dir)?;
            let mut all = Vec::new();
            checkpoint.load(&mut |key, value| {
                all.extend_from_slice(key);
                all.extend_from_slice(value);
                Ok(())
            })?;
            Ok(all)
        })
        .ok()
    }

    #[test]
    fn a_flipped_bit_or_a_cut_in_any_file_is_noticed_or_changes_nothing() {
        let source = tempfile::tempdir().unwrap();
        let checkpoint = SledCheckpoint::open(source.path()).unwrap();
        for round in 0..20u32 {
            let key = |number: u32| (number * 7 % 1000).to_be_bytes().to_vec();
            let values =
                (0..50).map(|n| (key(round * 50 + n), Some(vec![n as u8; 200 + (n as usize * 61) % 3000])));
            checkpoint.write(values.collect()).unwrap();
        }
        drop(checkpoint);
        let truth = load_damaged(source.path()).unwrap().unwrap();
        let files: Vec<(std::path::PathBuf, Vec<u8>)> = walk(source.path());
        assert!(files.len() >= 2, "a database and its configuration");
        let (mut same, mut noticed, mut panicked) = (0, 0, 0);
        for (name, bytes) in &files {
            for turn in 0..60usize {
                let damaged = tempfile::tempdir().unwrap();
                for (other, bytes) in &files {
                    let path = damaged.path().join(other);
                    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                    std::fs::write(path, bytes).unwrap();
                }
                let mut changed = bytes.clone();
                let at = turn * 7919 * 13 % bytes.len().max(1);
                if turn % 10 == 9 {
                    changed.truncate(at);
                } else if let Some(byte) = changed.get_mut(at) {
                    *byte ^= 1 << (turn % 8);
                }
                std::fs::write(damaged.path().join(name), changed).unwrap();
                match load_damaged(damaged.path()) {
                    Some(Ok(all)) => {
                        assert!(all == truth, "{name:?} at {at}, turn {turn}: something else was loaded");
                        same += 1;
                    }
                    Some(Err(_)) => noticed += 1,
                    None => panicked += 1,
                }
            }
        }
        println!("{same} loads were not affected, {noticed} failed, {panicked} ended in a panic");
        assert!(noticed > 20, "{noticed}");
    }

    #[test]
    fn a_database_that_is_being_let_go_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let held = SledCheckpoint::open(dir.path()).unwrap();
        held.write(vec![(b"k".to_vec(), Some(b"v".to_vec()))]).unwrap();
        let (opening, is_opening) = std::sync::mpsc::channel();
        let path = dir.path().to_owned();
        let next = std::thread::spawn(move || {
            opening.send(()).unwrap();
            SledCheckpoint::open(&path)
        });
        is_opening.recv().unwrap();
        drop(held);
        let next = next.join().unwrap().unwrap();
        assert_eq!(next.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
    }

    fn walk(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
        let (mut found, mut dirs) = (Vec::new(), vec![dir.to_path_buf()]);
        while let Some(next) = dirs.pop() {
            for item in std::fs::read_dir(next).unwrap() {
                let path = item.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    let bytes = std::fs::read(&path).unwrap();
                    found.push((path.strip_prefix(dir).unwrap().to_path_buf(), bytes));
                }
            }
        }
        found
    }
}
