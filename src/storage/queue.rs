//! What waits for the writer, and its bounds.
//!
//! The queue is where the asynchronous world ends: callers wait for room without holding up a runtime thread
//! (a semaphore of bytes), and the writer, a plain thread, sleeps on a condition variable, because the
//! hand-over to an idle writer is on the path of every lone append and must be one wake-up and nothing else.
//! A channel would bring its own lock per item and could not say "all that waits, up to 8 MiB".
//!
//! The room of an operation is given back when it is *done*, not when it is taken, so the bound covers what
//! is being written too. Every operation costs at least a fixed amount, which bounds the count as well.
use std::collections::VecDeque;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore};

use super::entry::{EntryId, LogEntry, Vote};
use super::frame;

/// Called once, with the outcome of an operation, from the writer's thread. It must be quick.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Least cost of an operation, and of an entry within it: with 64 MiB, at most 65536 operations wait.
const OP_COST_BYTES: usize = 1024;
const ENTRY_COST_MIN_BYTES: usize = 256;

/// One operation on its way to the writer. Made by the log, opaque to everybody else.
pub struct Op {
    pub(super) ticket: u64,
    pub(super) cost_bytes: u32,
    pub(super) body: OpBody,
}

pub(super) enum OpBody {
    Append {
        entries: Vec<LogEntry>,
        done: Done,
    },
    Vote {
        vote: Vote,
        done: Done,
    },
    /// `last` is what is left.
    Truncate {
        first_removed: u64,
        last: Option<EntryId>,
    },
    Purge {
        upto: EntryId,
    },
}

/// Why nothing more will be done. An `io::Error` cannot be cloned, and everybody has to get this one.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    kind: io::ErrorKind,
    message: String,
}

impl Failure {
    pub(super) fn new(context: &str, error: &io::Error) -> Self {
        Self { kind: error.kind(), message: format!("{context}: {error}") }
    }

    pub(super) fn closed() -> Self {
        Self { kind: io::ErrorKind::BrokenPipe, message: "the log is closed".to_string() }
    }

    pub(super) fn to_error(&self) -> io::Error {
        io::Error::new(self.kind, self.message.clone())
    }
}

pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    /// The same wake-up for a writer that runs as a task.
    wake_task: Notify,
    room: Semaphore,
    room_bytes: usize,
    refusal: OnceLock<Failure>,
}

#[derive(Default)]
pub(super) struct Waiting {
    ops: VecDeque<Op>,
    /// Waiting, or taken and not yet done.
    depth: u64,
    depth_peak: u64,
}

/// Room for one operation; given back when dropped, unless the operation takes it along.
pub(super) struct Room<'a> {
    queue: &'a Queue,
    cost_bytes: u32,
}

impl Queue {
    pub(super) fn new(room_bytes: u32) -> Self {
        Self {
            waiting: Mutex::default(),
            wake: Condvar::new(),
            wake_task: Notify::new(),
            room: Semaphore::new(room_bytes as usize),
            room_bytes: room_bytes as usize,
            refusal: OnceLock::new(),
        }
    }

    /// Waits until an operation with `entries` may be queued. First come, first served. A single operation
    /// that is larger than the queue waits until the queue is empty.
    pub(super) async fn reserve(&self, entries: &[LogEntry]) -> io::Result<Room<'_>> {
        let entry_cost = |entry: &LogEntry| frame::frame_bytes(entry.payload.len()).max(ENTRY_COST_MIN_BYTES);
        let cost_bytes = OP_COST_BYTES + entries.iter().map(entry_cost).sum::<usize>();
        let cost_bytes = cost_bytes.min(self.room_bytes) as u32;
        match self.room.acquire_many(cost_bytes).await {
            Ok(permit) => permit.forget(),
            Err(_closed) => return Err(self.refusal_error()),
        }
        Ok(Room { queue: self, cost_bytes })
    }

    /// Locks the queue to add one operation, so that what the caller does in between cannot be overtaken.
    pub(super) fn lock_open(&self) -> io::Result<MutexGuard<'_, Waiting>> {
        let waiting = self.waiting.lock();
        if self.refusal.get().is_some() { Err(self.refusal_error()) } else { Ok(waiting) }
    }

    pub(super) fn push(
        &self,
        mut waiting: MutexGuard<'_, Waiting>,
        room: Room<'_>,
        ticket: u64,
        body: OpBody,
    ) {
        waiting.ops.push_back(Op { ticket, cost_bytes: room.keep(), body });
        waiting.depth += 1;
        waiting.depth_peak = waiting.depth_peak.max(waiting.depth);
        drop(waiting);
        self.wake.notify_one();
        self.wake_task.notify_one();
    }

    /// Takes what waits, up to about `max_bytes` and at least one operation. Empty if nothing waits.
    pub(super) fn take(&self, max_bytes: usize) -> Vec<Op> {
        Self::take_from(&mut self.waiting.lock(), max_bytes)
    }

    /// Sleeps until something waits and takes it; `None` once nothing waits and nothing more can come. Empty
    /// if nothing came within `patience`.
    pub(super) fn wait(&self, max_bytes: usize, patience: Option<Duration>) -> Option<Vec<Op>> {
        let mut waiting = self.waiting.lock();
        while waiting.ops.is_empty() {
            if self.refusal.get().is_some() {
                return None;
            }
            match patience {
                None => self.wake.wait(&mut waiting),
                Some(patience) if self.wake.wait_for(&mut waiting, patience).timed_out() => break,
                Some(_) => {}
            }
        }
        Some(Self::take_from(&mut waiting, max_bytes))
    }

    /// [`Queue::wait`] for a task.
    pub(super) async fn wait_as_task(&self, max_bytes: usize) -> Option<Vec<Op>> {
        loop {
            // Read before the ops: what was pushed before the refusal must still be seen.
            let is_refusing = self.refusal.get().is_some();
            let ops = self.take(max_bytes);
            if !ops.is_empty() {
                return Some(ops);
            }
            if is_refusing {
                return None;
            }
            self.wake_task.notified().await;
        }
    }

    fn take_from(waiting: &mut Waiting, max_bytes: usize) -> Vec<Op> {
        let mut bytes = 0;
        let mut count = 0;
        for op in &waiting.ops {
            if bytes >= max_bytes {
                break;
            }
            bytes += op.cost_bytes as usize;
            count += 1;
        }
        waiting.ops.drain(..count).collect()
    }

    /// Gives back the room of operations that are done.
    pub(super) fn finish(&self, count: u64, cost_bytes: u64) {
        self.waiting.lock().depth -= count;
        self.room.add_permits(cost_bytes as usize);
    }

    /// Takes no more operations; what waits is still done. The first reason stays.
    pub(super) fn refuse(&self, failure: Failure) {
        {
            // Under the lock, so that a writer about to sleep does not miss it.
            let _waiting = self.waiting.lock();
            let _ = self.refusal.set(failure);
        }
        self.room.close();
        self.wake.notify_all();
        self.wake_task.notify_one();
    }

    fn refusal_error(&self) -> io::Error {
        self.refusal.get().map_or_else(|| Failure::closed().to_error(), Failure::to_error)
    }

    /// Depth, peak depth, bytes.
    pub(super) fn size(&self) -> (u64, u64, u64) {
        let bytes = self.room_bytes.saturating_sub(self.room.available_permits()) as u64;
        let waiting = self.waiting.lock();
        (waiting.depth, waiting.depth_peak, bytes)
    }
}

impl Room<'_> {
    fn keep(self) -> u32 {
        let cost_bytes = self.cost_bytes;
        std::mem::forget(self);
        cost_bytes
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.queue.room.add_permits(self.cost_bytes as usize);
    }
}
