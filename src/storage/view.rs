//! What the log is at this moment, in memory.
//!
//! Two views of the log are true at the same time. The *logical* one is what callers see: an append or a
//! truncation shows in it at once, before a byte is written. The *written* one ([`Runs`], the table of the
//! open segment, what is synced) follows when the writer has synced, in the order of the queue. Keeping them
//! apart, instead of letting readers wait for the disk, is what makes an append readable immediately.
//!
//! They meet in one rule: **an entry that is not in the cache is written, and the runs are right about it.**
//! The cache is a contiguous tail of the logical log and gives up an entry only when the writer has passed
//! its *ticket* (a number that rises with every operation; indexes cannot serve, they come back after a
//! truncation). And an index whose truncation is still queued is either gone from the logical log, or has
//! been appended anew and is in the cache.
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::disk::DiskFile;
use super::entry::{EntryId, LogEntry, Vote};
use super::frame::FRAME_HEADER_BYTES;
use super::kept::KeptFile;
use super::kept_set::KeptSet;
use super::log_writer::Position;
use super::plan::{ColdPiece, OpenPiece, Plan};
use super::recovery::Recovered;
use super::runs::{Run, Runs};
use super::table::OffsetTable;

/// What an entry costs in the cache beside its payload.
const CACHED_OVERHEAD_BYTES: usize = 128;
/// Pieces of sealed segments that one read with a budget takes up at most.
const PIECES_MAX: usize = 16;

struct Cached {
    entry: LogEntry,
    ticket: u64,
}

impl Cached {
    fn cost_bytes(&self) -> usize {
        self.entry.payload.len() + CACHED_OVERHEAD_BYTES
    }
}

/// The segment that is being written, as far as it is synced.
pub(super) struct OpenSegment {
    pub segment_id: u64,
    pub file: Arc<dyn DiskFile>,
    pub table: OffsetTable,
    /// Behind the last frame.
    pub end_bytes: u64,
}

/// What the writer has done, in order; told to the view once per group.
pub(super) enum Change {
    Entry {
        id: EntryId,
        offset_bytes: u32,
    },
    Truncated {
        first_removed: u64,
        last: Option<EntryId>,
    },
    Purged {
        upto: EntryId,
    },
    Voted {
        vote: Vote,
    },
    /// `last`: the last entry of the log where the new segment begins; `sealed_bytes`: the one before it.
    Rotated {
        sealed_bytes: u64,
        segment: OpenSegment,
        last: Option<EntryId>,
    },
}

/// A segment of the chain that is not written any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sealed {
    pub segment_id: u64,
    /// The last entry of the log where it ends, whether in it or before it.
    pub last: Option<EntryId>,
    pub len_bytes: u64,
}

/// A truncation that was taken into the view and has to be queued.
pub(super) struct Cut {
    pub ticket: u64,
    pub first_removed: u64,
    /// The last entry that is left.
    pub last: Option<EntryId>,
}

pub(super) struct View {
    cache: VecDeque<Cached>,
    cache_bytes: usize,
    cache_limit_bytes: usize,
    runs: Runs,
    /// The chain but for the open segment, in order.
    sealed: VecDeque<Sealed>,
    /// Files that left the chain, in order of index.
    kept: KeptSet,
    open: OpenSegment,
    vote: Option<Vote>,
    /// The index at which the logical log begins, once it has had an entry or a purge.
    first_index: Option<u64>,
    last: Option<EntryId>,
    purged: Option<EntryId>,
    next_ticket: u64,
    written_ticket: u64,
    /// The end of the written log.
    written_last: Option<EntryId>,
    written_purged: Option<EntryId>,
    /// Truncations on their way to the writer: ticket and first removed index. Bounded by the queue.
    queued_truncations: VecDeque<(u64, u64)>,
}

impl View {
    pub(super) fn new(recovered: Recovered, cache_limit_bytes: usize) -> (Self, Position) {
        let Recovered { runs, sealed, kept, position, next_segment: _ } = recovered;
        let (open, vote) = (position.open_segment(), position.vote);
        let (last, purged) = (position.last, position.purged);
        let view = Self {
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_limit_bytes,
            first_index: purged.map(|purged| purged.index + 1).or(runs.first_index()),
            runs,
            sealed: sealed.into(),
            kept: KeptSet::new(kept),
            open,
            vote,
            last,
            purged,
            next_ticket: 1,
            written_ticket: 0,
            written_last: last,
            written_purged: purged,
            queued_truncations: VecDeque::new(),
        };
        (view, position)
    }

    pub(super) fn vote(&self) -> Option<Vote> {
        self.vote
    }

    pub(super) fn last(&self) -> Option<EntryId> {
        self.last
    }

    pub(super) fn purged(&self) -> Option<EntryId> {
        self.purged
    }

    pub(super) fn synced_purged(&self) -> Option<EntryId> {
        self.written_purged
    }

    pub(super) fn cache_size(&self) -> (u64, u64) {
        (self.cache.len() as u64, self.cache_bytes as u64)
    }

    /// The last entry of the logical log that is synced. What a queued truncation removes does not count.
    pub(super) fn synced(&self) -> Option<EntryId> {
        let written = self.written_last?;
        match self.queued_truncations.iter().map(|(_, first_removed)| *first_removed).min() {
            Some(first_removed) if first_removed <= written.index => self.id_before(first_removed),
            _ => Some(written),
        }
    }

    /// The index that the next entry must have; `None` if any will do (a log without a past).
    pub(super) fn next_index(&self) -> Option<u64> {
        self.last.map(|last| last.index + 1)
    }

    /// The id of the logical entry at `index`, or of the purge point if that is its index.
    pub(super) fn id_at(&self, index: u64) -> Option<EntryId> {
        if let Some(purged) = self.purged.filter(|purged| index <= purged.index) {
            return (index == purged.index).then_some(purged);
        }
        self.last.filter(|last| index <= last.index)?;
        self.first_index.filter(|first| *first <= index)?;
        match self.cached_at(index) {
            Some(entry) => Some(entry.id),
            None => self.runs.find(index).map(|run| EntryId { term: run.term, index }),
        }
    }

    fn id_before(&self, index: u64) -> Option<EntryId> {
        index.checked_sub(1).and_then(|before| self.id_at(before))
    }

    fn cached_at(&self, index: u64) -> Option<&LogEntry> {
        let position = index.checked_sub(self.cache.front()?.entry.id.index)?;
        self.cache.get(usize::try_from(position).ok()?).map(|cached| &cached.entry)
    }

    pub(super) fn cached(&self, id: EntryId) -> Option<&LogEntry> {
        self.cached_at(id.index).filter(|entry| entry.id == id)
    }

    /// A new ticket, for an operation that is about to be queued under the same lock.
    pub(super) fn take_ticket(&mut self) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        ticket
    }

    /// Checks that `entries` follow the log and each other, and takes them in.
    pub(super) fn append(&mut self, entries: &[LogEntry]) -> io::Result<u64> {
        let mut before = self.last;
        for entry in entries {
            let follows = before
                .is_none_or(|before| entry.id.index == before.index + 1 && entry.id.term >= before.term);
            // One below the end of the numbers, so that an exclusive bound can always be written down.
            if !follows || entry.id.index == u64::MAX {
                let before = before.map_or("nothing".to_string(), |before| before.to_string());
                return Err(invalid(format!("entry {} does not follow {before}", entry.id)));
            }
            before = Some(entry.id);
        }
        let ticket = self.take_ticket();
        for entry in entries {
            let cached = Cached { entry: entry.clone(), ticket };
            self.cache_bytes += cached.cost_bytes();
            self.cache.push_back(cached);
        }
        if self.last.is_none() {
            self.first_index = entries.first().map(|entry| entry.id.index);
        }
        self.last = before;
        self.evict();
        Ok(ticket)
    }

    /// Removes `first_removed` and all above it. `None` if nothing is there.
    pub(super) fn truncate(&mut self, first_removed: Option<u64>) -> io::Result<Option<Cut>> {
        let floor = self.purged.map_or(0, |purged| purged.index + 1);
        let first_removed = first_removed.unwrap_or(floor);
        if first_removed < floor {
            return Err(invalid(format!("cannot truncate from {first_removed}: purged below {floor}")));
        }
        if self.last.is_none_or(|last| last.index < first_removed) {
            return Ok(None);
        }
        // With nothing below, only the purge point is left, or no past at all.
        self.last = self.id_before(first_removed).or(self.purged);
        while self.cache.back().is_some_and(|cached| cached.entry.id.index >= first_removed) {
            let removed = self.cache.pop_back();
            self.cache_bytes -= removed.map_or(0, |cached| cached.cost_bytes());
        }
        let ticket = self.take_ticket();
        self.queued_truncations.push_back((ticket, first_removed));
        Ok(Some(Cut { ticket, first_removed, last: self.last }))
    }

    /// Gives up everything up to `upto`. `None` if that is so already.
    pub(super) fn purge(&mut self, upto: EntryId) -> io::Result<Option<u64>> {
        if self.purged.is_some_and(|purged| upto.index <= purged.index) {
            return Ok(None);
        }
        if upto.index >= u64::MAX - 1 {
            return Err(invalid("purge point out of range".to_string()));
        }
        let ends_below = self.last.is_none_or(|last| last.index <= upto.index && last != upto);
        if !ends_below && self.id_at(upto.index).is_some_and(|id| id != upto) {
            // Entries behind it would go on from something that was not there. Truncate first.
            return Err(invalid(format!("the log has another entry in the place of {upto}")));
        }
        if ends_below {
            // The log goes on above a snapshot; what is cached would leave a hole.
            self.last = Some(upto);
            self.cache.clear();
            self.cache_bytes = 0;
        }
        self.first_index = Some(upto.index + 1);
        self.purged = Some(upto);
        Ok(Some(self.take_ticket()))
    }

    /// Takes over what the writer has synced, up to and including the operation `ticket`.
    pub(super) fn publish(&mut self, changes: Vec<Change>, end_bytes: u64, ticket: u64) {
        for change in changes {
            match change {
                Change::Entry { id, offset_bytes } => {
                    self.runs.push(self.open.segment_id, self.open.table.entry_count(), id);
                    self.open.table.push(id, offset_bytes);
                    self.written_last = Some(id);
                }
                Change::Truncated { first_removed, last } => {
                    self.runs.truncate_from(first_removed);
                    self.written_last = last;
                }
                Change::Purged { upto } => {
                    self.written_purged = Some(upto);
                    if self.written_last.is_none_or(|last| last.index <= upto.index) {
                        self.written_last = Some(upto);
                    }
                }
                Change::Voted { vote } => self.vote = Some(vote),
                Change::Rotated { segment, last, sealed_bytes } => {
                    let segment_id = self.open.segment_id;
                    self.sealed.push_back(Sealed { segment_id, last, len_bytes: sealed_bytes });
                    self.open = segment;
                }
            }
        }
        self.open.end_bytes = end_bytes;
        self.written_ticket = ticket;
        while self.queued_truncations.front().is_some_and(|(queued, _)| *queued <= ticket) {
            self.queued_truncations.pop_front();
        }
        self.evict();
    }

    fn evict(&mut self) {
        let is_written = |cached: &Cached| cached.ticket <= self.written_ticket;
        while self.cache_bytes > self.cache_limit_bytes && self.cache.front().is_some_and(is_written) {
            let evicted = self.cache.pop_front();
            self.cache_bytes -= evicted.map_or(0, |cached| cached.cost_bytes());
        }
    }

    /// Where the entries of `range` are. Goes on until `max_bytes` of payload are reached as far as that is
    /// known without reading a table, and holds at least one entry if the log has one in `range`.
    pub(super) fn plan(&self, range: Range<u64>, max_bytes: usize) -> Plan {
        let mut plan = Plan::default();
        let (Some(first), Some(next)) = (self.first_index, self.next_index()) else { return plan };
        let (start, end) = (range.start.max(first), range.end.min(next));
        if start >= end {
            return plan;
        }
        let hot_start = self.cache.front().map_or(next, |cached| cached.entry.id.index).max(start);
        let cold_end = end.min(hot_start);
        let mut room_bytes = max_bytes;
        // What sealed pieces hold is not known here; a reader with a budget needs few of them, and asks again.
        let pieces_max = if max_bytes == usize::MAX { usize::MAX } else { PIECES_MAX };
        for run in self.runs.overlapping(start, cold_end) {
            if plan.cold.len() == pieces_max {
                return plan;
            }
            let index = run.first_index.max(start);
            let count = run.end_index().min(cold_end) - index;
            let ordinal = run.ordinal_of(index);
            plan.cold.push(self.cold_piece(run.segment_id, run.term, index, ordinal, count, &mut room_bytes));
            if room_bytes == 0 {
                return plan;
            }
        }
        for index in hot_start..end {
            let Some(entry) = self.cached_at(index) else { break };
            if entry.payload.len() > room_bytes && !(plan.hot.is_empty() && plan.cold.is_empty()) {
                break;
            }
            room_bytes = room_bytes.saturating_sub(entry.payload.len());
            plan.hot.push(entry.clone());
        }
        plan
    }

    /// Where the entry `id` is, purged or not, as long as its segment is there.
    pub(super) fn plan_one(&self, id: EntryId) -> Plan {
        if let Some(entry) = self.cached(id) {
            return Plan { hot: vec![entry.clone()], ..Plan::default() };
        }
        match self.runs.find(id.index).filter(|run| run.term == id.term) {
            Some(run) => self.plan_in(run, id.index),
            None => {
                let kept = self.kept.find(id.index).map(|kept| (kept, id.index, Some(id.term)));
                Plan { kept, ..Plan::default() }
            }
        }
    }

    /// The same for the committed entry at `index`: there is only one, so its term need not be known.
    pub(super) fn plan_committed(&self, index: u64) -> Plan {
        match (self.cached_at(index), self.runs.find(index)) {
            (Some(entry), _) => Plan { hot: vec![entry.clone()], ..Plan::default() },
            (None, Some(run)) => self.plan_in(run, index),
            (None, None) => {
                Plan { kept: self.kept.find(index).map(|kept| (kept, index, None)), ..Plan::default() }
            }
        }
    }

    fn plan_in(&self, run: &Run, index: u64) -> Plan {
        let piece = self.cold_piece(run.segment_id, run.term, index, run.ordinal_of(index), 1, &mut 0);
        Plan { cold: vec![piece], ..Plan::default() }
    }

    /// The first segment of the chain, unless it is the open one.
    pub(super) fn first_sealed(&self) -> Option<Sealed> {
        self.sealed.front().copied()
    }

    /// What the segments of the chain take up, the open one as far as it is written.
    pub(super) fn chain_bytes(&self) -> u64 {
        self.sealed.iter().map(|sealed| sealed.len_bytes).sum::<u64>() + self.open.end_bytes
    }

    /// The last entry of the segments beyond the last ones that are `kept_bytes` long together, which the open one
    /// always belongs to; 0 if there are none.
    pub(super) fn surplus_index(&self, kept_bytes: u64) -> u64 {
        let mut bytes = self.open.end_bytes;
        let mut latest_first = self.sealed.iter().rev();
        let first_beyond = latest_first.find(|sealed| {
            bytes = bytes.saturating_add(sealed.len_bytes);
            bytes > kept_bytes
        });
        first_beyond.and_then(|sealed| sealed.last).map_or(0, |last| last.index)
    }

    /// The runs of the first segment of the chain.
    pub(super) fn first_sealed_runs(&self) -> Vec<Run> {
        let first = self.sealed.front().map(|sealed| sealed.segment_id);
        self.runs.iter().take_while(|run| Some(run.segment_id) == first).copied().collect()
    }

    /// Takes the first segment out of the chain; what is live in it is from now on in `kept`.
    pub(super) fn leave_chain(&mut self, segment_id: u64, kept: Option<KeptFile>) {
        debug_assert!(self.sealed.front().is_some_and(|first| first.segment_id == segment_id));
        self.sealed.pop_front();
        self.runs.take_leading(segment_id);
        if let Some(kept) = kept {
            self.kept.push(kept);
        }
    }

    pub(super) fn kept(&self) -> &KeptSet {
        &self.kept
    }

    pub(super) fn kept_mut(&mut self) -> &mut KeptSet {
        &mut self.kept
    }

    pub(super) fn open_segment_id(&self) -> u64 {
        self.open.segment_id
    }

    /// Every range of indexes that lies in some file, rising.
    pub(super) fn ranges(&self) -> impl Iterator<Item = std::ops::RangeInclusive<u64>> {
        self.kept.files().iter().map(|kept| kept.indexes()).chain(self.runs.ranges())
    }

    fn cold_piece(
        &self,
        segment_id: u64,
        term: u64,
        index: u64,
        first_ordinal: u32,
        count: u64,
        room_bytes: &mut usize,
    ) -> ColdPiece {
        let first = EntryId { term, index };
        let mut piece = ColdPiece { segment_id, first, first_ordinal, count, open: None };
        if segment_id == self.open.segment_id {
            let mut extents = Vec::new();
            for ordinal in (first_ordinal..).take(count as usize) {
                let Some(extent) = self.open.table.extent(ordinal, self.open.end_bytes) else { break };
                extents.push(extent);
                *room_bytes =
                    room_bytes.saturating_sub((extent.1 as usize).saturating_sub(FRAME_HEADER_BYTES));
                if *room_bytes == 0 {
                    break;
                }
            }
            piece.count = extents.len() as u64;
            piece.open = Some(OpenPiece { file: self.open.file.clone(), extents });
        }
        piece
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
