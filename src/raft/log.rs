//! The adapter between openraft's log traits and the segmented log.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

use futures_util::{Stream, stream};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::time::{Instant, sleep};

use super::types::{
    RaftEntry, RaftLogId, RaftVoteOf, Types, entry_id, raft_entry, raft_log_id, raft_vote, stored_entry,
    stored_vote,
};
use crate::limits::{MAX_APPEND_BYTES, OUT_OF_FILES_PATIENCE};
use crate::storage::{Log, Verdict};
use crate::task;

/// Between two tries to read the log when something was used up.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// The log as openraft writes it.
pub struct LogStore(pub Log);

/// The log as openraft reads it. Readers share the log and do not disturb its writer.
#[derive(Clone)]
pub struct LogReader(Log);

impl LogReader {
    /// Entries that are still in memory are handed out at once; others are read on a thread that may
    /// wait for the disk.
    async fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<RaftEntry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        let stored = match self.0.cached_entries(start..end, max_bytes) {
            Some(entries) => entries,
            None => {
                let log = self.0.clone();
                while_busy(|| {
                    let log = log.clone();
                    task::blocking(move || log.entries(start..end, max_bytes))
                })
                .await?
            }
        };
        stored.into_iter().map(|entry| Ok(raft_entry(entry)?)).collect()
    }

    /// The same, where openraft takes what it gets for all there is: a hole would be entries that this member
    /// believes to have and never applied.
    async fn read_whole(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<RaftEntry>> {
        let entries = self.read(start, end, max_bytes).await?;
        // Behind its last entry the log has none, and nobody was told otherwise.
        let has_more = self.0.last_id().is_some_and(|last| start <= last.index);
        let is_missing = entries.is_empty() && start < end && has_more;
        let hole = (start..).zip(&entries).find(|(index, entry)| entry.log_id.index() != *index);
        match hole {
            None if !is_missing => Ok(entries),
            hole => {
                let missing = hole.map_or(start, |(index, _)| index);
                let what = format!("the log has no entry {missing}, though it is part of {start}..{end}");
                Err(io::Error::new(io::ErrorKind::NotFound, what))
            }
        }
    }
}

/// Reads again while there is no file descriptor to read with, for a while: that passes, and for openraft any error is
/// the end.
pub(super) async fn while_busy<T, F>(mut read: impl FnMut() -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let deadline = Instant::now() + OUT_OF_FILES_PATIENCE;
    loop {
        match read().await {
            Err(error) if Verdict::of(&error) == Verdict::Busy && Instant::now() < deadline => {
                tracing::debug!("the log cannot be read for the moment: {error}");
                sleep(BUSY_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// The first index of a range, and the one behind its last.
fn ends(range: impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<Types> for LogReader {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        let (start, end) = ends(range);
        self.read(start, end, usize::MAX).await
    }

    /// What openraft applies: after a start it may be the whole log, which is more than memory holds.
    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = Result<RaftEntry, io::Error>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = ends(range);
        let ahead = Vec::new().into_iter();
        let entries =
            stream::try_unfold((self.clone(), start, ahead), move |(reader, next, mut ahead)| async move {
                if ahead.len() == 0 {
                    ahead = reader.read_whole(next, end, MAX_APPEND_BYTES).await?.into_iter();
                }
                Ok(ahead.next().map(|entry: RaftEntry| {
                    let next = entry.log_id.index() + 1;
                    (entry, (reader, next, ahead))
                }))
            });
        Box::pin(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVoteOf>, io::Error> {
        Ok(self.0.vote().map(raft_vote))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        self.read_whole(start, end, MAX_APPEND_BYTES).await
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let last_purged_log_id = self.0.purged().map(raft_log_id);
        let last_log_id = self.0.last_id().map(raft_log_id).or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        LogReader(self.0.clone())
    }

    async fn save_vote(&mut self, vote: &RaftVoteOf) -> Result<(), io::Error> {
        self.0.save_vote(stored_vote(vote)).await
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(stored_entry).collect();
        self.0.append(entries, Box::new(move |result| flushed.io_completed(result))).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<RaftLogId>) -> Result<(), io::Error> {
        self.0.truncate_after(last_log_id.map(|id| id.index())).await
    }

    async fn purge(&mut self, log_id: RaftLogId) -> Result<(), io::Error> {
        self.0.purge(entry_id(&log_id)).await
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use futures_util::TryStreamExt;
    use rustix::io::Errno;

    use super::*;
    use crate::storage::{EntryId, EntryKind, LogEntry, LogOptions, SimDisk};

    #[tokio::test(start_paused = true)]
    async fn a_read_waits_for_a_descriptor_and_for_nothing_else() {
        let began = Instant::now();
        let tries = std::cell::Cell::new(0);
        let fail = |times: u32, errno: Errno| {
            tries.set(tries.get() + 1);
            let outcome = if tries.get() <= times { Err(errno.into()) } else { Ok(tries.get()) };
            std::future::ready(outcome)
        };
        assert_eq!(while_busy(|| fail(3, Errno::MFILE)).await.unwrap(), 4);
        while_busy(|| fail(u32::MAX, Errno::ROFS)).await.expect_err("it is not read");
        assert_eq!((tries.get(), began.elapsed()), (5, 3 * BUSY_PAUSE));
        while_busy(|| fail(u32::MAX, Errno::NFILE)).await.expect_err("not for ever");
        assert!(began.elapsed() >= OUT_OF_FILES_PATIENCE);
    }

    #[tokio::test]
    async fn a_hole_in_what_openraft_asks_for_is_an_error_and_no_end() {
        let disk = Arc::new(SimDisk::new(1));
        let (log, mut writer) = Log::open(disk, Path::new("/log"), LogOptions::default()).unwrap();
        let entry = |index| LogEntry {
            id: EntryId { term: 1, index },
            kind: EntryKind::Blank,
            stamp_ms: 0,
            payload: Bytes::new(),
        };
        log.append((1..=5).map(entry).collect(), Box::new(|done| done.unwrap())).await.unwrap();
        let ops = writer.take();
        writer.step(ops);
        log.purge(EntryId { term: 1, index: 2 }).await.unwrap();
        let mut reader = LogReader(log);
        let indexes = |entries: Vec<RaftEntry>| -> Vec<u64> {
            entries.iter().map(|entry| entry.log_id.index()).collect()
        };
        let whole = reader.entries_stream(3..6).await.try_collect::<Vec<_>>().await;
        assert_eq!(indexes(whole.unwrap()), [3, 4, 5]);
        for range in [1..3, 2..6] {
            let read = reader.entries_stream(range.clone()).await.try_collect::<Vec<_>>().await;
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::NotFound, "{range:?}");
        }
        let behind = reader.entries_stream(4..8).await.try_collect::<Vec<_>>().await;
        assert_eq!(indexes(behind.unwrap()), [4, 5], "the log has no more");
        assert_eq!(indexes(reader.limited_get_log_entries(3, 6).await.unwrap()), [3, 4, 5]);
        assert!(reader.limited_get_log_entries(2, 6).await.is_err());
    }
}
