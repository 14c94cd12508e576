//! A machine over a simulated disk, for the tests of this room.
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use futures_util::stream;
use openraft::storage::RaftStateMachine;
use parking_lot::Mutex;

use super::machine::{Applied, ApplyObserver, Machine};
use super::types::raft_entry;
use crate::state::{BlockBytes, SharedTopic};
use crate::storage::{
    Change, Checkpoint, EntryId, EntryKind, Log, LogEntry, LogOptions, MemoryCheckpoint, Page, SimDisk, Visit,
};

struct Nobody;

impl ApplyObserver for Nobody {
    fn topics_changed(&self, _topics: &[Arc<SharedTopic>]) {}
}

/// A checkpoint whose writes hang until each is let go, or told to fail.
pub struct Hanging {
    inner: MemoryCheckpoint,
    let_go: Mutex<Receiver<std::io::Result<()>>>,
}

impl Checkpoint for Hanging {
    fn load(&self, each: Visit<'_>) -> std::io::Result<()> {
        self.inner.load(each)
    }

    fn get(&self, key: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
        self.inner.get(key)
    }

    fn page(&self, after: Option<&[u8]>, max_bytes: usize) -> std::io::Result<Page> {
        self.inner.page(after, max_bytes)
    }

    fn sum(&self) -> u64 {
        self.inner.sum()
    }

    fn write(&self, changes: Vec<Change>) -> std::io::Result<()> {
        // One that nobody holds on to hangs no more.
        self.let_go.lock().recv().unwrap_or(Ok(()))?;
        self.inner.write(changes)
    }
}

/// A member's state with its log, and the writer's thread.
pub struct Rig {
    pub applied: Arc<Applied>,
    pub machine: Machine,
    /// Lets one write of the checkpoint go, or fail; lets all go, once it is dropped.
    pub let_go: Option<Sender<std::io::Result<()>>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl Rig {
    pub fn new() -> Rig {
        let (log, writer) =
            Log::open(Arc::new(SimDisk::new(1)), Path::new("/log"), LogOptions::default()).expect("opens");
        let writer = writer.run_on_thread().expect("a thread starts");
        let (let_go, receiver) = channel();
        let checkpoint = Hanging { inner: MemoryCheckpoint::default(), let_go: Mutex::new(receiver) };
        let applied = Applied::load(log, Arc::new(checkpoint), BlockBytes::default()).expect("loads");
        let machine = Machine::new(applied.clone(), Arc::new(Nobody));
        Rig { applied, machine, let_go: Some(let_go), writer: Some(writer) }
    }

    /// Brings an entry into the log and applies it.
    pub async fn apply(&mut self, index: u64) {
        let id = EntryId { term: 1, index };
        let entry = LogEntry { id, kind: EntryKind::Blank, stamp_ms: 0, payload: Default::default() };
        self.applied.log().append(vec![entry.clone()], Box::new(|_| ())).await.expect("append");
        self.applied.log().wait_synced(index).await.expect("synced");
        let entry = raft_entry(entry).expect("an entry");
        self.machine.apply(stream::iter([Ok((entry, None))])).await.expect("apply");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.let_go = None;
        self.applied.log().close();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}
