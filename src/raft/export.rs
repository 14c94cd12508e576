//! When a member that is a cluster of its own writes its state a second time.
//!
//! See `storage/export.rs` for why. What it costs is the size of the state, so it is written after ten minutes
//! or a million entries; earlier only when the log could be purged but for it, and has grown by more than the
//! export costs; and again and again while the disk has little room, for which the log is to go. Where there are others, there is no export: they have the state.
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::machine::Applied;
use super::node::Node;
use super::retention::{Exported, LogTail};
use super::upkeep::rest_or_end;
use crate::limits::{EXPORT_ENTRIES, EXPORT_INTERVAL};
use crate::storage::{Disk, Log, Room, Verdict, read_export, remove_export};
use crate::task;

/// Between two looks.
const REST: Duration = Duration::from_millis(200);
/// A delete that takes longer from its first look to its command needs the disk to have room.
const SETTLE_TIME: Duration = Duration::from_secs(30);
const MARK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two exports for whose sake the log may go that fills the disk.
const SHORT_OF_ROOM_INTERVAL: Duration = Duration::from_secs(10);

/// The export of one data directory.
pub struct Export {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// The last entry that it covers; 0 if there is none, or it was not checked yet.
    index: AtomicU64,
    /// What was applied [`SETTLE_TIME`] before it was made.
    settled_index: AtomicU64,
    /// What was applied when, the latest at the end; the first is older than that time, once there is such a one.
    marks: Mutex<VecDeque<(Instant, u64)>>,
}

impl Export {
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            disk,
            dir,
            index: AtomicU64::new(0),
            settled_index: AtomicU64::new(0),
            marks: Mutex::default(),
        })
    }

    /// The last entry that it covers.
    fn index(&self) -> u64 {
        self.index.load(Ordering::Acquire)
    }

    /// Up to where nobody else's state is needed.
    pub(super) fn exported(&self) -> Exported {
        Exported { index: self.index(), settled_index: self.settled_index.load(Ordering::Acquire) }
    }

    /// Notes what is applied now.
    fn mark(&self, applied_index: u64) {
        let now = Instant::now();
        let mut marks = self.marks.lock();
        if marks.back().is_none_or(|(at, _)| now.duration_since(*at) >= MARK_INTERVAL) {
            marks.push_back((now, applied_index));
        }
        while marks.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= SETTLE_TIME) {
            marks.pop_front();
        }
        if applied_index == self.index() {
            // Nothing has come since it was made: as if that was now.
            self.settled_index.store(settled(&marks, now), Ordering::Release);
        }
    }

    /// Reads the export through.
    async fn check(self: &Arc<Self>) -> io::Result<()> {
        let this = self.clone();
        let read = task::blocking(move || read_export(&*this.disk, &this.dir, &mut |_, _| Ok(()))).await;
        match read {
            Ok(last) => self.index.store(last.map_or(0, |last| last.index), Ordering::Release),
            Err(error) if Verdict::of(&error) == Verdict::Busy => return Err(error),
            // Whatever is wrong with it, it is a second copy, and the next one takes its place.
            Err(error) => tracing::warn!("the state that was exported is of no use: {error}"),
        }
        Ok(())
    }

    /// Removes it, as others have the state.
    async fn remove(self: &Arc<Self>) -> io::Result<()> {
        self.index.store(0, Ordering::Release);
        let this = self.clone();
        task::blocking(move || remove_export(&*this.disk, &this.dir)).await
    }

    /// Writes it anew. Gives its length in bytes. `StorageFull` if that is more than `max_bytes`.
    async fn write(self: &Arc<Self>, applied: &Arc<Applied>, max_bytes: u64) -> io::Result<u64> {
        let settled_index = settled(&self.marks.lock(), Instant::now());
        let (this, applied) = (self.clone(), applied.clone());
        let written = task::blocking(move || applied.export(&*this.disk, &this.dir, max_bytes)).await?;
        let (index, len_bytes) = written.unwrap_or_default();
        self.index.store(index, Ordering::Release);
        self.settled_index.store(settled_index, Ordering::Release);
        Ok(len_bytes)
    }
}

/// What was applied a while before `now`; 0 if that is not known.
fn settled(marks: &VecDeque<(Instant, u64)>, now: Instant) -> u64 {
    let first = marks.front().filter(|(at, _)| now.duration_since(*at) >= SETTLE_TIME);
    first.map_or(0, |(_, applied_index)| *applied_index)
}

/// Keeps the export of a member that is a cluster of its own, as long as the member runs.
pub async fn export_state(
    node: Arc<Node>,
    log: Log,
    export: Arc<Export>,
    room: Arc<Room>,
    tail: LogTail,
) -> io::Result<()> {
    while let Err(error) = export.check().await {
        rest_or_end(error, "the state that was exported cannot be read").await?;
    }
    let logged_bytes = || {
        let stats = log.stats();
        stats.bytes_written - stats.zero_bytes_written
    };
    let mut last = Instant::now();
    let mut last_logged_bytes = logged_bytes();
    let (mut cost_bytes, mut needed_bytes, mut tried) = (0, 0, last);
    loop {
        sleep(REST).await;
        if !node.is_alone() {
            if export.index() > 0
                && let Err(error) = export.remove().await
            {
                rest_or_end(error, "the state that was exported cannot be removed").await?;
            }
            continue;
        }
        export.mark(node.applied().index());
        let entries = node.applied().saved_index().saturating_sub(export.index());
        let is_short = node.is_short_of_room();
        let surplus_index = log.surplus_index(if is_short { 0 } else { tail.bytes });
        let holds_up_purge = (entries > tail.entries || surplus_index > export.exported().settled_index)
            && (logged_bytes() - last_logged_bytes >= 2 * cost_bytes
                || (is_short && last.elapsed() >= SHORT_OF_ROOM_INTERVAL));
        let is_due = entries >= EXPORT_ENTRIES || last.elapsed() >= EXPORT_INTERVAL || holds_up_purge;
        if entries == 0 || !is_due || room.is_exhausted() {
            continue;
        }
        // The old one stays until the new one is whole, and neither may take what is kept for writes.
        let spare_bytes = room.bytes_for_chores().await.unwrap_or(0);
        if spare_bytes < needed_bytes && tried.elapsed() < EXPORT_INTERVAL {
            continue;
        }
        let now_logged_bytes = logged_bytes();
        tried = Instant::now();
        match export.write(node.applied(), spare_bytes).await {
            Ok(bytes) => {
                tracing::debug!(index = export.index(), bytes, "exported the state");
                (last, last_logged_bytes, cost_bytes, needed_bytes) = (tried, now_logged_bytes, bytes, bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                // Not again for the same room.
                needed_bytes = spare_bytes + 1;
                tracing::warn!(
                    "the state cannot be exported, and no space of the log is freed until it is: {error}"
                );
            }
            Err(error) => rest_or_end(error, "the state cannot be exported").await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{EntryId, SimDisk, create_dir_durably, write_export};

    #[tokio::test]
    async fn one_that_cannot_be_read_is_none_and_ends_no_member() {
        let (disk, dir) = (SimDisk::new(1), PathBuf::from("/data"));
        create_dir_durably(&disk, &dir).expect("a directory");
        let last = EntryId { term: 1, index: 7 };
        write_export(&disk, &dir, last, u64::MAX, |each| each(b"key", b"value")).expect("it is written");
        let export = Export::new(Arc::new(disk.clone()), dir.clone());
        export.check().await.expect("it is well");
        assert_eq!(export.index(), 7);
        let export = Export::new(Arc::new(disk.clone()), dir.clone());
        disk.refuse_opens(1);
        export.check().await.expect_err("there may be a descriptor later");
        disk.fail_reads(&dir.join("export"), u32::MAX).expect("a file");
        export.check().await.expect("another one takes its place");
        assert_eq!(export.index(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_settled_was_applied_a_while_before_the_export() {
        let export = Export::new(Arc::new(SimDisk::new(1)), PathBuf::from("/data"));
        let settled_now = || settled(&export.marks.lock(), Instant::now());
        for second in 0..30 {
            assert_eq!(settled_now(), 0);
            export.mark(100 + second);
            tokio::time::advance(MARK_INTERVAL).await;
        }
        assert_eq!(settled_now(), 100);
        tokio::time::advance(MARK_INTERVAL).await;
        export.mark(131);
        assert_eq!((settled_now(), export.exported().settled_index), (101, 0));
        assert!(export.marks.lock().len() <= 32);
        // The export has all that there is: what is under way is not older than that.
        export.index.store(131, Ordering::Release);
        tokio::time::advance(SETTLE_TIME).await;
        export.mark(131);
        assert_eq!(export.exported(), Exported { index: 131, settled_index: 131 });
    }
}
