//! The one writer of the log.
//!
//! It takes all that waits, encodes it into one buffer, writes that with one call, syncs once, and then
//! confirms everything in log order: *group commit*. While one group is being synced the next one gathers,
//! so the more callers wait, the more of them share a sync; there is no linger and no batch size to tune.
//!
//! It is a **step function**: [`LogWriter::step`] handles one group and returns. In production a thread of its
//! own calls it in a loop (a sync blocks, and must not hold up a runtime thread); in a simulation a task does,
//! so that a whole cluster runs deterministically in one thread.
//!
//! Any error of the disk poisons it for good: after a failed sync nothing is known about what is on the disk,
//! and a retry that succeeds proves nothing. From then on every operation fails, nothing is ever confirmed,
//! and the caller is expected to end the process; recovery at the next start finds out what is true.
//!
//! A frame says how far the log was synced when it was written, so the last group has nobody to speak for it,
//! and damage to it would look like a torn tail. When nothing came for a moment, the writer therefore adds one
//! frame that says nothing else, a *witness*: 48 bytes, not synced, once per quiet period. If a power cut
//! takes it, nothing that was confirmed is gone. A segment keeps room for one, so that it needs nothing of the
//! disk. A log that is closed in order syncs it and leaves a note beside (see `closing`).
//!
//! A segment is changed in an order in which each step proves the one before:
//! 1. the next segment is made, with its name, and synced (its space was reserved long before, see `next_segment`);
//! 2. the rest of the group and the table are written to the old one, which is cut to length and synced;
//! 3. only then does the next one get its first frame.
//!
//! So a sealed segment without a successor has lost it, a segment that is not sealed and has frames behind it
//! is damaged, and only the last two segments can ever be in an unfinished state.
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::closing;
use super::disk::{Disk, DiskFile};
use super::entry::{EntryId, Vote};
use super::frame::{self, FrameHead, FrameKind};
use super::log::{LogOptions, Shared};
use super::next_segment::NextSegment;
use super::queue::{Failure, Op, OpBody};
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use super::stats::Counters;
use super::table::OffsetTable;
use super::view::{Change, OpenSegment};
use crate::telemetry::seldom::Seldom;

/// Silence after which the last group gets its witness.
const QUIET: Duration = Duration::from_millis(100);
/// A sync that takes so long is worth a line.
const SLOW_SYNC: Duration = Duration::from_secs(1);
/// A buffer that grew for an unusually large group is given back above this size.
const BUFFER_KEPT_BYTES: usize = 16 << 20;
/// Room that every segment keeps for the witness of its last group.
const WITNESS_BYTES: u64 = frame::frame_bytes(0) as u64;

/// Where the log ends, and everything that the next frame or segment header has to repeat.
pub(super) struct Position {
    pub file: Arc<dyn DiskFile>,
    pub segment_id: u64,
    pub capacity_bytes: u64,
    /// Where the next frame goes.
    pub end_bytes: u64,
    pub next_lsn: u64,
    pub synced_lsn: u64,
    pub chain: u32,
    pub table: OffsetTable,
    pub vote: Option<Vote>,
    pub last: Option<EntryId>,
    pub purged: Option<EntryId>,
    /// Something behind them calls all frames before this place synced.
    pub is_witnessed: bool,
}

impl Position {
    pub(super) fn open_segment(&self) -> OpenSegment {
        OpenSegment {
            segment_id: self.segment_id,
            file: self.file.clone(),
            table: self.table.clone(),
            end_bytes: self.end_bytes,
        }
    }

    pub(super) fn truncate(&mut self, last: Option<EntryId>) {
        self.last = last;
    }

    pub(super) fn purge(&mut self, upto: EntryId) {
        self.purged = Some(upto);
        if self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = Some(upto);
        }
    }

    /// The header of a segment that begins here.
    pub(super) fn header(&self, segment_id: u64, capacity_bytes: u64) -> SegmentHeader {
        SegmentHeader {
            segment_id,
            capacity_bytes,
            first_lsn: self.next_lsn,
            chain: self.chain,
            vote: self.vote,
            purged: self.purged,
            last: self.last,
            synced_lsn: self.synced_lsn,
        }
    }
}

/// Writes the log. There is one per log; dropping it ends the log, and whatever waits fails.
pub struct LogWriter {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: LogOptions,
    shared: Arc<Shared>,
    at: Position,
    /// Frames that are encoded and not yet handed to the disk; they go to `buffer_offset_bytes`.
    buffer: Vec<u8>,
    buffer_offset_bytes: u64,
    /// Up to here the segment was written over, so that a small write needs no new blocks.
    prepared_bytes: u64,
    /// What this group has done, for the view.
    changes: Vec<Change>,
    poison: Option<Failure>,
    /// Up to which operation the view knows what is written.
    written_ticket: u64,
    /// The last frame of a group that was confirmed; 0 before the first one.
    confirmed_lsn: u64,
    next_segment: NextSegment,
    slow_syncs: Seldom,
}

impl LogWriter {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        options: LogOptions,
        shared: Arc<Shared>,
        at: Position,
        next_segment: NextSegment,
    ) -> Self {
        let (buffer_offset_bytes, prepared_bytes) = (at.end_bytes, at.end_bytes);
        Self {
            disk,
            dir,
            options,
            shared,
            at,
            buffer: Vec::new(),
            buffer_offset_bytes,
            prepared_bytes,
            changes: Vec::new(),
            poison: None,
            written_ticket: 0,
            confirmed_lsn: 0,
            next_segment,
            slow_syncs: Seldom::new(|line| tracing::warn!("{line}")),
        }
    }

    /// Runs on a thread of its own until the log is closed and all that was queued is done.
    pub fn run_on_thread(mut self) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("antiphon-log".to_string()).spawn(move || {
            loop {
                let patience = (!self.at.is_witnessed).then_some(QUIET);
                match self.shared.queue.wait(self.options.write_bytes, patience) {
                    Some(ops) if ops.is_empty() => self.bear_witness(),
                    Some(ops) => self.step(ops),
                    None => break,
                }
            }
            self.end_in_order();
        })
    }

    /// Runs as a task, blocking it during each step: for simulations, where a disk takes no time.
    pub async fn run_as_task(self) {
        self.run_as_slow_task(|| std::future::ready(())).await;
    }

    /// The same for a disk that does take time: `pause` passes before each step.
    pub async fn run_as_slow_task<P: Future<Output = ()>>(mut self, mut pause: impl FnMut() -> P) {
        loop {
            let waiting = self.shared.queue.wait_as_task(self.options.write_bytes);
            let taken = if self.at.is_witnessed {
                waiting.await
            } else {
                match tokio::time::timeout(QUIET, waiting).await {
                    Ok(taken) => taken,
                    Err(_quiet) => {
                        self.bear_witness();
                        continue;
                    }
                }
            };
            let Some(ops) = taken else { break };
            pause().await;
            self.step(ops);
        }
        self.end_in_order();
    }

    /// What waits now, for [`LogWriter::step`]; empty if nothing does.
    pub fn take(&self) -> Vec<Op> {
        self.shared.queue.take(self.options.write_bytes)
    }

    /// Writes and syncs one group of operations, in order, and calls all their callbacks, in order.
    pub fn step(&mut self, ops: Vec<Op>) {
        let Some(last_ticket) = ops.last().map(|op| op.ticket) else { return };
        let written = match &self.poison {
            Some(_) => Err(()),
            None => self.write_group(&ops).map_err(|error| self.fail(&error)),
        };
        if written.is_ok() {
            self.written_ticket = last_ticket;
            self.publish();
        }
        let cost_bytes = ops.iter().map(|op| u64::from(op.cost_bytes)).sum();
        let count = ops.len() as u64;
        for op in ops {
            let done = match op.body {
                OpBody::Append { done, .. } | OpBody::Vote { done, .. } => done,
                OpBody::Truncate { .. } | OpBody::Purge { .. } => continue,
            };
            done(self.poison.as_ref().map_or(Ok(()), |poison| Err(poison.to_error())));
        }
        self.shared.queue.finish(count, cost_bytes);
        if self.poison.is_none() {
            let (disk, dir, at) = (self.disk.as_ref(), &self.dir, &self.at);
            let filled = (at.end_bytes, at.capacity_bytes);
            self.next_segment.prepare(disk, dir, at.segment_id + 1, filled, self.options.segment_len_bytes());
        }
    }

    fn publish(&mut self) {
        let changes = std::mem::take(&mut self.changes);
        self.shared.view.write().publish(changes, self.at.end_bytes, self.written_ticket);
        self.shared.synced.notify_waiters();
    }

    /// Writes a frame that speaks for the last group. It is not synced: that comes with the next group, or
    /// never, and then nothing is lost.
    pub fn bear_witness(&mut self) {
        if self.at.is_witnessed || self.poison.is_some() {
            return;
        }
        match self.put(FrameKind::Witness, [0; 3], &[]).and_then(|_| self.flush_buffer()) {
            Ok(()) => self.publish(),
            Err(error) => self.fail(&error),
        }
    }

    /// The last that is done to a log that is closed: whatever becomes of its end, the next start knows that it was
    /// confirmed.
    pub fn end_in_order(&mut self) {
        self.bear_witness();
        if self.poison.is_some() || self.confirmed_lsn == 0 {
            return;
        }
        // Everything but the witness is synced already, so an error takes nothing away.
        let noted = self
            .sync(&self.at.file)
            .and_then(|()| closing::write_note(self.disk.as_ref(), &self.dir, self.confirmed_lsn));
        if let Err(error) = noted {
            tracing::warn!("the log in {} is closed without a note of its end: {error}", self.dir.display());
        }
    }

    fn fail(&mut self, error: &io::Error) {
        tracing::error!(%error, dir = %self.dir.display(), "the log cannot be written; nothing will be confirmed any more");
        let poison = Failure::new("the log cannot be written", error);
        self.poison = Some(poison.clone());
        self.shared.queue.refuse(poison.clone());
        let _ = self.shared.ended.set(poison);
        self.shared.synced.notify_waiters();
    }

    fn write_group(&mut self, ops: &[Op]) -> io::Result<()> {
        let first_lsn = self.at.next_lsn;
        let mut entry_count = 0;
        for op in ops {
            match &op.body {
                OpBody::Append { entries, .. } => {
                    for entry in entries {
                        let EntryId { term, index } = entry.id;
                        let numbers = [term, index, entry.stamp_ms];
                        let offset_bytes = self.put(entry.kind.into(), numbers, &entry.payload)?;
                        // Fits: only the first frame of a segment may start a segment of more than 4 GiB.
                        let offset_bytes = u32::try_from(offset_bytes).map_err(io::Error::other)?;
                        self.at.table.push(entry.id, offset_bytes);
                        self.at.last = Some(entry.id);
                        self.changes.push(Change::Entry { id: entry.id, offset_bytes });
                    }
                    entry_count += entries.len() as u64;
                }
                OpBody::Vote { vote, .. } => {
                    self.put(FrameKind::Vote, [vote.term, vote.node_id, u64::from(vote.committed)], &[])?;
                    self.at.vote = Some(*vote);
                    self.changes.push(Change::Voted { vote: *vote });
                }
                OpBody::Truncate { first_removed, last } => {
                    // What is left is in the frame, so that neither writer nor recovery has to look it up.
                    let (term, has_last) = last.map_or((0, 0), |last| (last.term, 1));
                    self.put(FrameKind::Truncate, [term, *first_removed, has_last], &[])?;
                    self.at.truncate(*last);
                    self.changes.push(Change::Truncated { first_removed: *first_removed, last: *last });
                }
                OpBody::Purge { upto } => {
                    self.put(FrameKind::Purge, [upto.term, upto.index, 0], &[])?;
                    self.at.purge(*upto);
                    self.changes.push(Change::Purged { upto: *upto });
                }
            }
        }
        if self.at.next_lsn > first_lsn {
            self.flush_buffer()?;
            self.sync(&self.at.file)?;
            self.at.synced_lsn = self.at.next_lsn - 1;
            self.confirmed_lsn = self.at.synced_lsn;
        }
        let counters = &self.shared.counters;
        Counters::add(&counters.entries, entry_count);
        Counters::add(&counters.frames, self.at.next_lsn - first_lsn);
        Counters::add(&counters.batches, 1);
        Ok(())
    }

    /// Encodes one frame and returns its offset. `numbers` are term, index and stamp.
    fn put(&mut self, kind: FrameKind, numbers: [u64; 3], payload: &[u8]) -> io::Result<u64> {
        let frame_bytes = frame::frame_bytes(payload.len()) as u64;
        let kept_bytes = match kind {
            FrameKind::Witness => self.at.table.frame_bytes(),
            _ => self.at.table.frame_bytes_with_one_more() + WITNESS_BYTES,
        };
        if self.at.end_bytes + frame_bytes + kept_bytes > self.at.capacity_bytes {
            self.rotate(frame_bytes)?;
        }
        let offset_bytes = self.at.end_bytes;
        self.encode(kind, numbers, payload);
        if self.buffer.len() >= self.options.write_bytes {
            self.flush_buffer()?;
        }
        Ok(offset_bytes)
    }

    fn encode(&mut self, kind: FrameKind, [term, index, stamp_ms]: [u64; 3], payload: &[u8]) {
        let head = FrameHead {
            prev_crc: self.at.chain,
            kind,
            synced_lsn: Some(self.at.synced_lsn),
            lsn: self.at.next_lsn,
            term,
            index,
            stamp_ms,
        };
        self.at.chain = frame::encode(&mut self.buffer, &head, payload);
        self.at.is_witnessed = kind == FrameKind::Witness;
        self.at.next_lsn += 1;
        self.at.end_bytes += frame::frame_bytes(payload.len()) as u64;
    }

    /// Seals the segment and goes on in a new one with room for a frame of `frame_bytes`.
    fn rotate(&mut self, frame_bytes: u64) -> io::Result<()> {
        let table_offset_bytes = self.at.end_bytes;
        let payload = self.at.table.encode(table_offset_bytes);
        self.encode(FrameKind::Table, [0; 3], &payload);

        let kept_bytes = OffsetTable::frame_bytes_for(1, 1) + WITNESS_BYTES;
        let needed_bytes = SEGMENT_HEADER_BYTES + frame_bytes + kept_bytes;
        let wanted_bytes = needed_bytes.next_multiple_of(4096).max(self.options.segment_len_bytes());
        let header = self.at.header(self.at.segment_id + 1, wanted_bytes);
        let (next_file, header) =
            self.next_segment.take(self.disk.as_ref(), &self.dir, header, needed_bytes, wanted_bytes)?;
        Counters::add(&self.shared.counters.bytes_written, SEGMENT_HEADER_BYTES);

        self.flush_buffer()?;
        self.at.file.set_len(self.at.end_bytes)?;
        self.sync(&self.at.file)?;

        let sealed_bytes = self.at.end_bytes;
        self.at.synced_lsn = self.at.next_lsn - 1;
        self.at.file = next_file;
        self.at.segment_id = header.segment_id;
        self.at.capacity_bytes = header.capacity_bytes;
        self.at.end_bytes = SEGMENT_HEADER_BYTES;
        self.at.table = OffsetTable::default();
        self.buffer_offset_bytes = SEGMENT_HEADER_BYTES;
        self.prepared_bytes = SEGMENT_HEADER_BYTES;
        self.changes.push(Change::Rotated {
            segment: self.at.open_segment(),
            last: header.last,
            sealed_bytes,
        });
        Counters::add(&self.shared.counters.rotations, 1);
        Ok(())
    }

    fn flush_buffer(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let end_bytes = self.buffer_offset_bytes + self.buffer.len() as u64;
        if self.buffer.len() < self.options.zero_below_bytes && end_bytes > self.prepared_bytes {
            self.prepare_ground(end_bytes)?;
        }
        self.at.file.write_all_at(&self.buffer, self.buffer_offset_bytes)?;
        Counters::add(&self.shared.counters.bytes_written, self.buffer.len() as u64);
        self.buffer_offset_bytes = end_bytes;
        self.prepared_bytes = self.prepared_bytes.max(end_bytes);
        self.buffer.clear();
        if self.buffer.capacity() > BUFFER_KEPT_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Writes zeroes from where the segment was last written over to the next step behind `end_bytes`. The
    /// sync of the group covers them. What lies there is zero or reserved already, so a crash in between
    /// changes nothing.
    fn prepare_ground(&mut self, end_bytes: u64) -> io::Result<()> {
        // Page by page: a larger write makes the kernel keep larger pieces, and each small group written into
        // one later costs as much to sync as the whole piece.
        static ZEROES: [u8; 4096] = [0; 4096];
        let until = end_bytes.next_multiple_of(self.options.zero_step_bytes).min(self.at.capacity_bytes);
        let mut at = self.prepared_bytes;
        while at < until {
            let count = (until - at).min(ZEROES.len() as u64);
            self.at.file.write_all_at(&ZEROES[..count as usize], at)?;
            at += count;
        }
        let zeroed = at.saturating_sub(self.prepared_bytes);
        Counters::add(&self.shared.counters.bytes_written, zeroed);
        Counters::add(&self.shared.counters.zero_bytes_written, zeroed);
        self.prepared_bytes = at.max(self.prepared_bytes);
        Ok(())
    }

    fn sync(&self, file: &Arc<dyn DiskFile>) -> io::Result<()> {
        let start = Instant::now();
        file.sync_data()?;
        let took = start.elapsed();
        self.shared.counters.sync_took(took);
        if took >= SLOW_SYNC {
            let took_ms = took.as_millis();
            self.slow_syncs.tell(format_args!(
                "a sync of the log took {took_ms} ms: the disk is slow, and every write waits"
            ));
        }
        Ok(())
    }
}

impl Drop for LogWriter {
    /// Whoever still waits gets an error; nobody waits for ever.
    fn drop(&mut self) {
        self.shared.queue.refuse(Failure::closed());
        let _ = self.shared.ended.set(Failure::closed());
        let failure = self.poison.clone().unwrap_or_else(Failure::closed);
        self.poison = Some(failure);
        loop {
            let ops = self.take();
            if ops.is_empty() {
                break;
            }
            self.step(ops);
        }
        self.shared.synced.notify_waiters();
    }
}
