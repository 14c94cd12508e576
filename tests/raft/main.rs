//! openraft's own storage suite, run against the segmented log and the state machine, and what it does not ask.

mod forwarded;

use std::path::Path;
use std::sync::Arc;

use antiphon::raft::{Applied, ApplyObserver, LogStore, Machine, Types};
use antiphon::state::{BlockBytes, SharedTopic};
use antiphon::storage::{EntryId, EntryKind, Log, LogEntry, LogOptions, MemoryCheckpoint, SimDisk};
use futures_util::StreamExt;
use openraft::StorageError;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};

struct Nobody;

impl ApplyObserver for Nobody {
    fn topics_changed(&self, _topics: &[Arc<SharedTopic>]) {}
}

/// Joins the log's writer when a case is over.
struct Writer {
    log: Log,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.log.close();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the log's writer ends well");
        }
    }
}

struct Builder;

impl StoreBuilder<Types, LogStore, Machine, Writer> for Builder {
    async fn build(&self) -> Result<(Writer, LogStore, Machine), StorageError<Types>> {
        let disk = Arc::new(SimDisk::new(1));
        let options = LogOptions { segment_bytes: 64 << 10, ..LogOptions::default() };
        let (log, writer) = Log::open(disk, Path::new("/log"), options).expect("a new log opens");
        let thread = writer.run_on_thread().expect("a thread starts");
        let applied =
            Applied::load(log.clone(), Arc::new(MemoryCheckpoint::default()), BlockBytes::default());
        let machine = Machine::new(applied.expect("an empty checkpoint loads"), Arc::new(Nobody));
        let guard = Writer { log: log.clone(), thread: Some(thread) };
        Ok((guard, LogStore(log), machine))
    }
}

#[test]
fn openrafts_storage_suite_passes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Suite::<Types, LogStore, Machine, Builder, Writer>::test_all(Builder)).unwrap();
}

/// What openraft applies is a stream over all that is committed: after a start without a checkpoint, the whole
/// log. It must never be in memory at once.
#[tokio::test]
async fn what_is_applied_is_read_piece_by_piece() {
    const ENTRIES: u64 = 200;
    let options = LogOptions { segment_bytes: 128 << 10, cache_bytes: 1 << 20, ..LogOptions::default() };
    let (log, writer) =
        Log::open(Arc::new(SimDisk::new(1)), Path::new("/log"), options).expect("a new log opens");
    let _writer = Writer { log: log.clone(), thread: Some(writer.run_on_thread().expect("a thread starts")) };
    for index in 1..=ENTRIES {
        let id = EntryId { term: 1, index };
        let payload = vec![index as u8; 100 << 10].into();
        let entry = LogEntry { id, kind: EntryKind::Command, stamp_ms: 0, payload };
        log.append(vec![entry], Box::new(|_| ())).await.expect("append");
    }
    log.wait_synced(ENTRIES).await.expect("synced");

    let mut reader = LogStore(log.clone()).get_log_reader().await;
    let mut entries = reader.entries_stream(1..ENTRIES + 1).await;
    for index in 1..=ENTRIES {
        let entry = entries.next().await.expect("there is one").expect("it is readable");
        assert_eq!(entry.log_id.index(), index);
        // 20 entries are 2 MB, and each lies in a segment of its own. The last of a piece may be read again.
        let ahead = log.stats().cold_reads.saturating_sub(index);
        assert!(ahead <= 40, "{ahead} entries are read ahead of entry {index}");
    }
    assert!(entries.next().await.is_none());
}
