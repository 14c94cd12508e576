//! The handle of the log that everybody holds.
//!
//! One sequence of frames holds everything that Raft asks to be durable: entries, votes, truncations and
//! purges. Separate files for each (a log, a vote file, a purge mark) would be simpler to write and harder to
//! trust: what a crash leaves would depend on the order in which several files were synced. With one
//! sequence, order and durability are one question, and so is the answer.
//!
//! Truncations and purges are logical. They change what the log shows at once, and nothing is erased; space
//! is freed elsewhere, by whole segments.
//!
//! ```text
//!   append, save_vote, truncate_after, purge        entries, payload, cached
//!        | (view changes at once)                        |
//!      queue  -> writer: encode, write, sync ->  view  <-+-> reader (cold segments)
//! ```
//!
//! Calls that change the log wait for room in the queue and nothing else, so the order of calls is the order
//! on disk. Only `save_vote` waits for the disk. A truncation or purge that a crash forgets does no harm: all
//! that came after it is forgotten too, and what it would have hidden was never in anybody's way.
use std::io;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::{Notify, oneshot, watch};

use super::disk::Disk;
use super::entry::{EntryId, LogEntry, Vote};
use super::frame::MAX_PAYLOAD_BYTES;
use super::index::Index;
use super::indexer::Indexer;
use super::live::LiveEntries;
use super::log_writer::LogWriter;
use super::open_error::OpenError;
use super::pin::{Pin, Pins};
use super::plan::Plan;
use super::postings::Found;
use super::queue::{Done, Failure, OpBody, Queue};
use super::reader::{Reader, is_damage};
use super::reclaim::Reclaimer;
use super::recovery;
use super::segment::SEGMENT_HEADER_BYTES;
use super::stats::{Counters, LogStats};
use super::view::View;
use crate::filter::TagMatch;

/// Sizes of the log. The defaults are for production; tests make everything small.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Length of a segment file; a larger frame gets a segment of its own.
    pub segment_bytes: u64,
    /// Recent entries that are kept in memory. Entries that are not yet written are kept in any case.
    pub cache_bytes: usize,
    /// Operations that wait for the writer or are being written.
    pub queue_bytes: u32,
    /// Most that is encoded before it is handed to the disk, but for a single larger frame.
    pub write_bytes: usize,
    /// Groups below this size are written over zeroes that were written before: a synced write of 4 KiB
    /// takes 90 us there, and 134 us over space that is only reserved.
    pub zero_below_bytes: usize,
    /// How much is zeroed at a time.
    pub zero_step_bytes: u64,
    /// What the part of the index that is in memory takes before it is written.
    pub index_bytes: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            cache_bytes: 64 << 20,
            queue_bytes: 64 << 20,
            write_bytes: 8 << 20,
            zero_below_bytes: 64 << 10,
            zero_step_bytes: 1 << 20,
            index_bytes: 4 << 20,
        }
    }
}

impl LogOptions {
    /// Length of a segment file, in whole pages.
    pub(super) fn segment_len_bytes(&self) -> u64 {
        self.segment_bytes.next_multiple_of(4096)
    }

    fn check(&self) -> Result<(), OpenError> {
        let what =
            if self.segment_bytes < 2 * SEGMENT_HEADER_BYTES || self.segment_bytes > u64::from(u32::MAX) {
                "segment_bytes must be between 8 KiB and 4 GiB"
            } else if self.queue_bytes < 64 << 10 {
                "queue_bytes must be at least 64 KiB"
            } else if self.write_bytes == 0 || self.zero_step_bytes == 0 {
                "write_bytes and zero_step_bytes must not be 0"
            } else {
                return Ok(());
            };
        Err(OpenError::Options { what })
    }
}

/// The log. Clones are cheap and equal; when the last one is dropped, the log is closed.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    index: Arc<Index>,
    index_options: IndexOptions,
    _close: Arc<CloseOnDrop>,
}

/// Sizes of the index.
#[derive(Clone, Copy, Debug)]
pub(super) struct IndexOptions {
    pub index_bytes: usize,
    /// Files are not merged beyond this size, and none covers more of the log when it is first written.
    pub segment_bytes: u64,
}

/// What handle and writer have in common.
pub(super) struct Shared {
    pub view: RwLock<View>,
    pub queue: Queue,
    pub reader: Reader,
    pub counters: Counters,
    pub live: Arc<LiveEntries>,
    pub pins: Pins,
    pub segment_bytes: u64,
    /// Woken whenever the writer has published a group, or has ended.
    pub synced: Notify,
    /// Set when nothing will be synced any more.
    pub ended: OnceLock<Failure>,
    /// The first damage that a read found: one line.
    pub damage: watch::Sender<Option<String>>,
}

impl Shared {
    /// Keeps what a read found, if it is damage, for whoever answers to it.
    pub(super) fn note_damage(&self, error: &io::Error) {
        if is_damage(error) {
            self.damage.send_if_modified(|damage| {
                let is_first = damage.is_none();
                damage.get_or_insert_with(|| error.to_string());
                is_first
            });
        }
    }
}

fn has(view: &View, id: EntryId) -> bool {
    view.purged().is_some_and(|purged| id.index <= purged.index) || view.id_at(id.index) == Some(id)
}

struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.queue.refuse(Failure::closed());
    }
}

impl Log {
    /// Opens the log in `dir`, or starts one there. Reads the tables of all sealed segments and scans the
    /// last one; blocks for as long as that takes. All that it shows afterwards is durable.
    ///
    /// Nothing is confirmed until somebody runs the [`LogWriter`].
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: LogOptions,
    ) -> Result<(Self, LogWriter), OpenError> {
        options.check()?;
        let mut recovered = recovery::recover(disk.as_ref(), dir, &options)?;
        let next_segment = std::mem::take(&mut recovered.next_segment);
        let (view, position) = View::new(recovered, options.cache_bytes);
        let shared = Arc::new(Shared {
            view: RwLock::new(view),
            queue: Queue::new(options.queue_bytes),
            reader: Reader::new(disk.clone(), dir.to_path_buf()),
            counters: Counters::default(),
            live: Arc::default(),
            pins: Pins::default(),
            segment_bytes: options.segment_bytes,
            synced: Notify::new(),
            ended: OnceLock::new(),
            damage: watch::Sender::new(None),
        });
        let index_options =
            IndexOptions { index_bytes: options.index_bytes, segment_bytes: options.segment_bytes };
        let index = Index::open(disk.clone(), dir, |id| has(&shared.view.read(), id));
        let index = Arc::new(index.map_err(|source| OpenError::Io { file: dir.to_path_buf(), source })?);
        let writer = LogWriter::new(disk, dir.to_path_buf(), options, shared.clone(), position, next_segment);
        let close = Arc::new(CloseOnDrop(shared.clone()));
        Ok((Self { shared, index, index_options, _close: close }, writer))
    }

    /// The last vote that is durable.
    pub fn vote(&self) -> Option<Vote> {
        self.shared.view.read().vote()
    }

    /// The last entry, written or not; the purge point if there is none above it.
    pub fn last_id(&self) -> Option<EntryId> {
        self.shared.view.read().last()
    }

    /// The last entry that was given up; the log begins after it.
    pub fn purged(&self) -> Option<EntryId> {
        self.shared.view.read().purged()
    }

    /// The purge point that a crash cannot take back. Space may be freed up to here, not up to `purged`.
    pub fn synced_purged(&self) -> Option<EntryId> {
        self.shared.view.read().synced_purged()
    }

    /// The last entry of the log that is durable, with all before it.
    pub fn synced_id(&self) -> Option<EntryId> {
        self.shared.view.read().synced()
    }

    /// Waits until the entry at `index` is durable, whichever it is by then. It may not have been appended
    /// yet. An error says that it never will be.
    pub async fn wait_synced(&self, index: u64) -> io::Result<()> {
        loop {
            let mut published = std::pin::pin!(self.shared.synced.notified());
            // Listening first, looking second: what happens in between is not missed.
            published.as_mut().enable();
            if self.synced_id().is_some_and(|synced| synced.index >= index) {
                return Ok(());
            }
            if let Some(failure) = self.shared.ended.get() {
                return Err(failure.to_error());
            }
            published.await;
        }
    }

    /// Takes in `entries`, which must follow the log and each other, and returns when they are readable.
    /// `done` is called, in log order, when they are durable, or with the error that also ends the log. If
    /// this returns an error, nothing was taken in, and `done` has been called with it.
    ///
    /// Waits while the queue is full; dropping the future then takes nothing in.
    pub async fn append(&self, entries: Vec<LogEntry>, done: Done) -> io::Result<()> {
        match self.enqueue_append(entries, done).await {
            Ok(()) => Ok(()),
            Err((error, done)) => {
                done(Err(io::Error::new(error.kind(), error.to_string())));
                Err(error)
            }
        }
    }

    async fn enqueue_append(&self, entries: Vec<LogEntry>, done: Done) -> Result<(), (io::Error, Done)> {
        if entries.iter().any(|entry| entry.payload.len() > MAX_PAYLOAD_BYTES) {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "payload too large for a frame");
            return Err((error, done));
        }
        let queue = &self.shared.queue;
        let room = match queue.reserve(&entries).await {
            Ok(room) => room,
            Err(error) => return Err((error, done)),
        };
        let mut view = self.shared.view.write();
        let waiting = match queue.lock_open() {
            Ok(waiting) => waiting,
            Err(error) => return Err((error, done)),
        };
        match view.append(&entries) {
            Ok(ticket) => {
                queue.push(waiting, room, ticket, OpBody::Append { entries, done });
                Ok(())
            }
            Err(error) => Err((error, done)),
        }
    }

    /// Durable on return, with everything that was called before it.
    pub async fn save_vote(&self, vote: Vote) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        let done: Done = Box::new(move |outcome| {
            // Nobody listens any more if the caller was dropped; the vote is saved all the same.
            let _ = sender.send(outcome);
        });
        let body = OpBody::Vote { vote, done };
        self.enqueue(|view| Ok(Some((view.take_ticket(), body)))).await?;
        receiver.await.unwrap_or_else(|_dropped| Err(Failure::closed().to_error()))
    }

    /// Removes every entry above `last_kept_index` (all of them if `None`), in order with all other calls.
    /// Not below the purge point. Durable at the latest with whatever is next confirmed.
    pub async fn truncate_after(&self, last_kept_index: Option<u64>) -> io::Result<()> {
        let first_removed = last_kept_index.map(|index| index.saturating_add(1));
        self.enqueue(|view| {
            let truncated = view.truncate(first_removed)?;
            Ok(truncated.map(|cut| {
                (cut.ticket, OpBody::Truncate { first_removed: cut.first_removed, last: cut.last })
            }))
        })
        .await
    }

    /// Gives up every entry up to and including `upto`. If that lies above the last entry, the log is empty
    /// afterwards and goes on behind it. Durable at the latest with whatever is next confirmed.
    pub async fn purge(&self, upto: EntryId) -> io::Result<()> {
        self.enqueue(|view| Ok(view.purge(upto)?.map(|ticket| (ticket, OpBody::Purge { upto })))).await
    }

    async fn enqueue(
        &self,
        change: impl FnOnce(&mut View) -> io::Result<Option<(u64, OpBody)>>,
    ) -> io::Result<()> {
        let queue = &self.shared.queue;
        let room = queue.reserve(&[]).await?;
        let mut view = self.shared.view.write();
        let waiting = queue.lock_open()?;
        if let Some((ticket, body)) = change(&mut view)? {
            queue.push(waiting, room, ticket, body);
        }
        Ok(())
    }

    /// Entries of `range` in order, as many as fit into `max_bytes` of payload, but at least one if the log
    /// has any there. A part of the range that the log does not have is left out at either end. Blocks on
    /// the disk where entries have left the cache.
    pub fn entries(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        self.read_planned(|view| view.plan(range.clone(), max_bytes), max_bytes)
    }

    /// The same from memory alone; `None` if a part of it has left the cache. Never blocks.
    pub fn cached_entries(&self, range: Range<u64>, max_bytes: usize) -> Option<Vec<LogEntry>> {
        let plan = self.shared.view.read().plan(range, max_bytes);
        plan.cold.is_empty().then_some(plan.hot)
    }

    /// An entry that is in memory; never blocks.
    pub fn cached(&self, id: EntryId) -> Option<LogEntry> {
        self.shared.view.read().cached(id).cloned()
    }

    /// The payload of an entry, from memory or from disk, also below the purge point for as long as its
    /// segment is there. `NotFound` if the log does not have it; see [`super::is_damage`] for damage.
    pub fn payload(&self, id: EntryId) -> io::Result<Bytes> {
        match self.read_planned(|view| view.plan_one(id), usize::MAX)?.pop() {
            Some(entry) => Ok(entry.payload),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("the log has no entry {id}"))),
        }
    }

    /// About how long the payload of an entry is that has left the cache, without reading it; `None` if it cannot be
    /// told, which reading it then explains. Blocks on the disk.
    pub fn payload_bytes(&self, id: EntryId) -> Option<u64> {
        // Its file may be replaced between the two looks, hardly twice.
        (0..2).find_map(|_| {
            let plan = self.shared.view.read().plan_one(id);
            match plan.hot.first() {
                Some(_) => Some(0),
                None => self.shared.reader.frame_bytes(&plan).ok().flatten(),
            }
        })
    }

    /// Entries at some indexes that are known to be committed, in order, until their payloads reach
    /// `max_bytes` or reading took `max_time`; at least the first. Also below the purge point for as long as a pin or their own life keeps
    /// them. `NotFound` if the log does not have one. Blocks on the disk.
    pub fn committed_entries(
        &self,
        indexes: &[u64],
        max_bytes: usize,
        max_time: Duration,
    ) -> io::Result<Vec<LogEntry>> {
        let began = Instant::now();
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for index in indexes {
            let found = self.read_planned(|view| view.plan_committed(*index), usize::MAX)?.pop();
            let entry = found.ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, format!("the log has no entry at {index}"))
            })?;
            bytes += entry.payload.len();
            entries.push(entry);
            if bytes >= max_bytes || began.elapsed() >= max_time {
                break;
            }
        }
        Ok(entries)
    }

    /// Whether the log has, or had and gave up, the entry `id`. Only what is committed was given up.
    pub fn has(&self, id: EntryId) -> bool {
        has(&self.shared.view.read(), id)
    }

    /// Where in `indexes` live records with a tag that matches lie, as far as that is indexed; nothing is covered
    /// if they are more than `max`. Blocks on the disk.
    pub fn find_tags(&self, tags: &TagMatch, indexes: &RangeInclusive<u64>, max: usize) -> Found {
        self.index.find_tags(tags, indexes, max, &self.shared.live)
    }

    /// Keeps the index behind the log; there must be one at most.
    pub fn indexer(&self) -> Indexer {
        Indexer::new(self.clone(), self.index.clone())
    }

    pub(super) fn index_options(&self) -> IndexOptions {
        self.index_options
    }

    /// Looks places up and reads them. A file that is gone by then was freed, or another took its place in
    /// between: another look tells which. The view changes before a file goes, so a file that is still the
    /// place and not there is missing.
    fn read_planned(&self, look_up: impl Fn(&View) -> Plan, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        let mut plan = look_up(&self.shared.view.read());
        let mut was_damaged = false;
        loop {
            let files = plan.files();
            let error = match self.carry_out(plan, max_bytes) {
                Err(error) if error.kind() == io::ErrorKind::NotFound || is_damage(&error) => error,
                outcome => return outcome,
            };
            plan = look_up(&self.shared.view.read());
            // Damage has consequences: it is looked at twice.
            if is_damage(&error) {
                if was_damaged {
                    self.shared.note_damage(&error);
                    return Err(error);
                }
                was_damaged = true;
            } else if plan.files() == files {
                return Err(error);
            }
        }
    }

    /// The first damage to something confirmed that a read has found, in one line; `None` so far. The read
    /// failed, and nothing damaged was given out.
    pub fn watch_damage(&self) -> watch::Receiver<Option<String>> {
        self.shared.damage.subscribe()
    }

    fn carry_out(&self, plan: Plan, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        if let Some((kept, index, term)) = &plan.kept {
            Counters::add(&self.shared.counters.cold_reads, 1);
            return Ok(self.shared.reader.read_kept(kept, *index, *term)?.into_iter().collect());
        }
        if plan.cold.is_empty() {
            return Ok(plan.hot);
        }
        let mut entries = Vec::new();
        let mut room_bytes = max_bytes;
        for piece in &plan.cold {
            Counters::add(&self.shared.counters.cold_reads, 1);
            let is_whole = self.shared.reader.read(piece, &mut room_bytes, &mut entries)?;
            if !is_whole || room_bytes == 0 {
                return Ok(entries);
            }
        }
        // What was read from disk used up part of the budget that the plan gave to the hot entries.
        for entry in plan.hot {
            if entry.payload.len() > room_bytes {
                break;
            }
            room_bytes -= entry.payload.len();
            entries.push(entry);
        }
        Ok(entries)
    }

    pub fn stats(&self) -> LogStats {
        let (queue_depth, queue_depth_peak, queue_bytes) = self.shared.queue.size();
        let view = self.shared.view.read();
        let (cached_entries, cached_bytes) = view.cache_size();
        let (kept_files, kept_bytes) = view.kept().size();
        let chain_bytes = view.chain_bytes();
        drop(view);
        let counters = self.shared.counters.read();
        LogStats {
            queue_depth,
            queue_depth_peak,
            queue_bytes,
            cached_entries,
            cached_bytes,
            chain_bytes,
            kept_files,
            kept_bytes,
            ..counters
        }
    }

    /// The last entry of the files that the log has beyond its last `kept_bytes`; 0 if it has none.
    pub fn surplus_index(&self, kept_bytes: u64) -> u64 {
        self.shared.view.read().surplus_index(kept_bytes)
    }

    /// Which entries topics still name. Whoever keeps the topics keeps it true, from before the first
    /// [`Reclaimer::step`] on.
    pub fn live(&self) -> &Arc<LiveEntries> {
        &self.shared.live
    }

    /// Frees space; there must be one at most.
    pub fn reclaimer(&self) -> Reclaimer {
        Reclaimer::new(self.shared.clone())
    }

    /// Keeps every file that is there now, and what is in it, until the guard is dropped.
    pub fn pin(&self) -> Pin {
        // The view is held meanwhile: whoever takes a file out of it sees this pin, or is done before it.
        let view = self.shared.view.read();
        Pin::new(&self.shared, view.open_segment_id())
    }

    /// Whether every live entry lies in some file. Asked once at start, when the live entries were counted: a
    /// kept file that is missing shows nowhere else.
    pub fn check_live(&self) -> Result<(), OpenError> {
        let outside = self.shared.live.first_outside(self.shared.view.read().ranges());
        match outside {
            None => Ok(()),
            Some(index) => Err(OpenError::Missing { dir: self.shared.reader.dir.clone(), index }),
        }
    }

    /// Takes no more operations. The writer finishes what is queued, syncs it and ends; reads go on.
    pub fn close(&self) {
        self.shared.queue.refuse(Failure::closed());
    }
}
