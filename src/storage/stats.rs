//! Figures of the log.
//!
//! Plain counters that the writer adds to with relaxed order: they are read by people and metrics, never by
//! the log itself. The time of a sync is taken from the machine's clock even in a simulation, for the same
//! reason: nothing depends on it.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets of sync times, in microseconds; the last bucket has none.
pub const SYNC_BUCKETS_US: [u64; 12] =
    [50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 102_400, u64::MAX];

/// A reading of all figures. Counters run from the opening of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    pub entries: u64,
    /// Entries, votes, truncations, purges and tables.
    pub frames: u64,
    /// Groups that were written and synced together.
    pub batches: u64,
    pub syncs: u64,
    /// All bytes handed to the disk, zeroes and headers included.
    pub bytes_written: u64,
    /// The part of `bytes_written` that only prepared the ground.
    pub zero_bytes_written: u64,
    pub rotations: u64,
    pub cold_reads: u64,
    /// Files of the log that were removed, and their bytes.
    pub files_freed: u64,
    pub bytes_freed: u64,
    /// Bytes of live frames that were copied, so that the dead ones around them could go.
    pub bytes_rewritten: u64,
    /// Rows of kept files that were looked at to learn what of them is live.
    pub rows_counted: u64,
    /// What the segments that have not left the chain are long together.
    pub chain_bytes: u64,
    /// Files below the purge point that live entries keep.
    pub kept_files: u64,
    pub kept_bytes: u64,
    /// Operations that wait or are being written, and the most there have been.
    pub queue_depth: u64,
    pub queue_depth_peak: u64,
    pub queue_bytes: u64,
    pub cached_entries: u64,
    pub cached_bytes: u64,
    /// Time that all syncs took together, in microseconds.
    pub sync_time_us: u64,
    /// Syncs by how long they took, not cumulative; bounds in [`SYNC_BUCKETS_US`].
    pub sync_buckets: [u64; 12],
}

#[derive(Default)]
pub(super) struct Counters {
    pub entries: AtomicU64,
    pub frames: AtomicU64,
    pub batches: AtomicU64,
    pub bytes_written: AtomicU64,
    pub zero_bytes_written: AtomicU64,
    pub rotations: AtomicU64,
    pub cold_reads: AtomicU64,
    pub files_freed: AtomicU64,
    pub bytes_freed: AtomicU64,
    pub bytes_rewritten: AtomicU64,
    pub rows_counted: AtomicU64,
    sync_time_us: AtomicU64,
    sync_buckets: [AtomicU64; 12],
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Relaxed);
    }

    pub(super) fn sync_took(&self, time: Duration) {
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.sync_time_us.fetch_add(time_us, Relaxed);
        let bucket = SYNC_BUCKETS_US.iter().position(|bound| time_us <= *bound);
        self.sync_buckets[bucket.unwrap_or(SYNC_BUCKETS_US.len() - 1)].fetch_add(1, Relaxed);
    }

    /// The counters; what belongs to queue and cache is left for the caller.
    pub(super) fn read(&self) -> LogStats {
        let sync_buckets = std::array::from_fn(|bucket| self.sync_buckets[bucket].load(Relaxed));
        LogStats {
            entries: self.entries.load(Relaxed),
            frames: self.frames.load(Relaxed),
            batches: self.batches.load(Relaxed),
            syncs: sync_buckets.iter().sum(),
            bytes_written: self.bytes_written.load(Relaxed),
            zero_bytes_written: self.zero_bytes_written.load(Relaxed),
            rotations: self.rotations.load(Relaxed),
            cold_reads: self.cold_reads.load(Relaxed),
            files_freed: self.files_freed.load(Relaxed),
            bytes_freed: self.bytes_freed.load(Relaxed),
            bytes_rewritten: self.bytes_rewritten.load(Relaxed),
            rows_counted: self.rows_counted.load(Relaxed),
            sync_time_us: self.sync_time_us.load(Relaxed),
            sync_buckets,
            ..LogStats::default()
        }
    }
}
