//! Checkpoints: the state as of one exact point between two entries, on disk.
//!
//! A checkpoint is a map of small values, kept in one sled tree and moved forward by atomic batches: after
//! a crash it is as of one batch or the next, never between. It holds no records (they stay in the log)
//! and no value per record, which is what a key-value store would make slow and large; see `state/run.rs`
//! for the blocks it does hold. Values stay below 7 KiB: sled moves larger ones to files of their own
//! that it never frees.
//!
//! Simulations use [`MemoryCheckpoint`], a twin without threads and files under the same rules.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use parking_lot::Mutex;

/// One change of the checkpoint: `None` deletes the key.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// Takes in one key and its value.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> io::Result<()>;

/// Where the checkpoint of a member is kept. All calls may block on the disk.
pub trait Checkpoint: Send + Sync + 'static {
    /// Hands every key and value to `each`, in key order.
    fn load(&self, each: Visit<'_>) -> io::Result<()>;
    /// One value.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// Moves the checkpoint forward: all changes or none, on disk when this returns.
    fn write(&self, changes: Vec<Change>) -> io::Result<()>;
    /// Empties it, on disk when this returns.
    fn clear(&self) -> io::Result<()>;
}

/// The checkpoint in sled.
pub struct SledCheckpoint {
    tree: sled::Tree,
    db: sled::Db,
}

/// Memory that sled may use to cache pages.
const CACHE_BYTES: u64 = 32 << 20;
const TREE: &[u8] = b"checkpoint";

impl SledCheckpoint {
    /// Opens or creates the checkpoint in `dir`.
    pub fn open(dir: &Path) -> io::Result<Self> {
        // Segment size and compression stay at sled's defaults: smaller segments have deadlocked it.
        // It flushes when we say so, not on a timer: a half-written batch is worth nothing to us.
        let db = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .open()
            .map_err(into_io)?;
        let tree = db.open_tree(TREE).map_err(into_io)?;
        Ok(SledCheckpoint { tree, db })
    }
}

impl Checkpoint for SledCheckpoint {
    fn load(&self, each: Visit<'_>) -> io::Result<()> {
        for item in self.tree.iter() {
            let (key, value) = item.map_err(into_io)?;
            each(&key, &value)?;
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.tree.get(key).map_err(into_io)?.map(|value| value.to_vec()))
    }

    fn write(&self, changes: Vec<Change>) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.tree.apply_batch(batch).map_err(into_io)?;
        self.db.flush().map_err(into_io)?;
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        self.tree.clear().map_err(into_io)?;
        self.db.flush().map_err(into_io)?;
        Ok(())
    }
}

fn into_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
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

    fn clear(&self) -> io::Result<()> {
        self.values.lock().clear();
        Ok(())
    }
}
