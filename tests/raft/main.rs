//! openraft's own storage suite, run against the segmented log and the state machine.

use std::path::Path;
use std::sync::Arc;

use antiphon::raft::{Applied, ApplyObserver, LogStore, Machine, Types};
use antiphon::state::SharedTopic;
use antiphon::storage::{Log, LogOptions, MemoryCheckpoint, SimDisk};
use openraft::StorageError;
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
        let applied = Applied::load(log.clone(), Arc::new(MemoryCheckpoint::default()));
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
