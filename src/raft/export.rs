//! When a member that is a cluster of its own writes its state a second time.
//!
//! See `storage/export.rs` for why. What it costs is the size of the state, so it is written after ten minutes
//! or a million entries; earlier only when the log could be purged but for it, and has grown by more than the
//! export costs. Where there are others, there is no export: they have the state.
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::machine::Applied;
use super::node::Node;
use crate::limits::{EXPORT_ENTRIES, EXPORT_INTERVAL};
use crate::storage::{Disk, Log, Room, read_export, remove_export};
use crate::task;

/// Between two looks.
const REST: Duration = Duration::from_millis(200);
/// After a failure that may pass.
const LONG_REST: Duration = Duration::from_secs(10);

/// The export of one data directory.
pub struct Export {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// The last entry that it covers; 0 if there is none, or it was not checked yet.
    index: AtomicU64,
}

impl Export {
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> Arc<Self> {
        Arc::new(Self { disk, dir, index: AtomicU64::new(0) })
    }

    /// The last entry that may be purged where nobody else has the state.
    pub fn index(&self) -> u64 {
        self.index.load(Ordering::Acquire)
    }

    /// Reads the export through.
    async fn check(self: &Arc<Self>) -> io::Result<()> {
        let this = self.clone();
        let read = task::blocking(move || read_export(&*this.disk, &this.dir, &mut |_, _| Ok(()))).await;
        match read {
            Ok(last) => self.index.store(last.map_or(0, |last| last.index), Ordering::Release),
            // The next one takes its place.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => tracing::warn!("{error}"),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Removes it, as others have the state.
    async fn remove(self: &Arc<Self>) -> io::Result<()> {
        self.index.store(0, Ordering::Release);
        let this = self.clone();
        task::blocking(move || remove_export(&*this.disk, &this.dir)).await
    }

    /// Writes it anew. Gives its length in bytes.
    async fn write(self: &Arc<Self>, applied: &Arc<Applied>) -> io::Result<u64> {
        let (this, applied) = (self.clone(), applied.clone());
        let written = task::blocking(move || applied.export(&*this.disk, &this.dir)).await?;
        let (index, len_bytes) = written.unwrap_or_default();
        self.index.store(index, Ordering::Release);
        Ok(len_bytes)
    }
}

/// Keeps the export of a member that is a cluster of its own, as long as the member runs. `kept_entries`: what
/// the log keeps in any case.
pub async fn export_state(
    node: Arc<Node>,
    log: Log,
    export: Arc<Export>,
    room: Arc<Room>,
    kept_entries: u64,
) -> io::Result<()> {
    export.check().await?;
    let logged_bytes = || {
        let stats = log.stats();
        stats.bytes_written - stats.zero_bytes_written
    };
    let mut last = Instant::now();
    let mut last_logged_bytes = logged_bytes();
    let mut cost_bytes = 0;
    loop {
        sleep(REST).await;
        if !node.is_alone() {
            if export.index() > 0 {
                export.remove().await?;
            }
            continue;
        }
        let entries = node.applied().saved_index().saturating_sub(export.index());
        let holds_up_purge = entries > kept_entries && logged_bytes() - last_logged_bytes >= 2 * cost_bytes;
        let is_due = entries >= EXPORT_ENTRIES || last.elapsed() >= EXPORT_INTERVAL || holds_up_purge;
        if entries == 0 || !is_due || room.is_exhausted() {
            continue;
        }
        let now_logged_bytes = logged_bytes();
        match export.write(node.applied()).await {
            Ok(bytes) => {
                tracing::debug!(index = export.index(), bytes, "exported the state");
                (last, last_logged_bytes, cost_bytes) = (Instant::now(), now_logged_bytes, bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::warn!("the state cannot be exported: {error}");
                sleep(LONG_REST).await;
            }
            Err(error) => return Err(error),
        }
    }
}
