//! The blocks of one topic: its runs in order, and what is known of each block without reading it.
//!
//! Of sealed blocks that a checkpoint holds only a summary stays in memory, some 56 bytes per 4 KiB of runs.
//! That is enough to find a seq, a time or a log entry, and to give up whole blocks of old records unread. The block in
//! which retention stopped is kept in memory with a cursor in it, so that a topic at its cap gives up one
//! record per append without looking anything up.
//!
//! # What holds between two commands
//!
//! A seq is *live* if it is from the earliest to the head of the topic and not in `removed`. [`Blocks::check`] looks at
//! all but the last point.
//!
//! 1. `summaries` rise by `first_seq`. The last one is that of the open block, and no other one is.
//! 2. `removed` holds no seq above the head, and not the earliest one: that is live, or right behind the head.
//! 3. Every live seq is in a run of the last block that begins at or before it, and a summary counts exactly the live seqs
//!    from where its block begins to where the next one does. Only the open block may count none: a sealed block
//!    is dropped with its last live record. So whoever wants what is live next needs this one block.
//! 4. The bytes and times of a summary are those of its live records, the first and the last; every entry that a run
//!    with a live record names is between its indexes.
//! 5. `unsaved` and `fetched` hold sealed blocks that have a summary, none of them both. `fetched` holds only the
//!    first block, and that only while `front` is in it.
//! 6. `front` is in the first block, which then is in memory, and nothing before it is live.
//! 7. A sealed block never changes, and one that is not in memory is in the checkpoint on disk.
//!
//! Only applying a command changes any of this, and what is done after a checkpoint under the same lock: what a command
//! was planned with is still so when it is carried out.

mod check;
mod evict;
mod find;
mod remove;

pub(super) use evict::{Goal, cap_or_max};

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::run::{BlockBytes, FrontCursor, OpenBlock, Run, SealedBlock, runs};
use super::seq_set::SeqSet;
use super::topic::TopicKey;
use crate::codec::Malformed;
use crate::storage::EntryId;

/// What is known of a block without reading it. Times, count and bytes are those of its live records.
#[derive(Debug, Clone, Copy)]
pub(super) struct Summary {
    /// Seq at which the block starts; that record may be gone.
    pub first_seq: u64,
    pub first_ts_ms: u64,
    pub last_ts_ms: u64,
    pub count: u64,
    pub bytes: u64,
    /// The lowest and the highest index of an entry that its runs name, live or not; none if the lowest is above.
    pub first_index: u64,
    pub last_index: u64,
}

impl Summary {
    pub fn empty(first_seq: u64) -> Self {
        let (first_index, last_index) = (u64::MAX, 0);
        Summary { first_seq, first_ts_ms: 0, last_ts_ms: 0, count: 0, bytes: 0, first_index, last_index }
    }

    fn name_entry(&mut self, index: u64) {
        self.first_index = self.first_index.min(index);
        self.last_index = self.last_index.max(index);
    }

    fn add(&mut self, ts_ms: u64, count: u64, bytes: u64) {
        if self.count == 0 {
            self.first_ts_ms = ts_ms;
        }
        self.last_ts_ms = ts_ms;
        self.count += count;
        self.bytes += bytes;
    }
}

/// Where a time is in a topic.
pub enum TimePlace {
    /// No live record is that young.
    AtHead,
    /// Right after this seq.
    After(u64),
    /// In the block that starts at this seq, which is not in memory.
    Cold { block_first_seq: u64 },
}

/// Where the runs behind a cursor are.
pub enum Located {
    /// Nothing live above the cursor.
    AtHead,
    /// The record after the cursor is gone: look at the floors again.
    BelowEarliest,
    /// Live parts of runs above the cursor, in order; not necessarily all there are. Never empty.
    Runs(Vec<Run>),
    /// The block that starts at this seq is not in memory.
    Cold { block_first_seq: u64 },
}

/// What a topic holds, as its blocks have to know it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub epoch: u64,
    pub earliest_seq: u64,
    pub head_seq: u64,
    /// Live records, and what they count for.
    pub count: u64,
    pub bytes: u64,
}

/// Number of live records that went, and the bytes that they counted for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Gone {
    pub count: u64,
    pub bytes: u64,
}

impl std::ops::AddAssign for Gone {
    fn add_assign(&mut self, more: Gone) {
        self.count += more.count;
        self.bytes += more.bytes;
    }
}

#[derive(Debug)]
pub(super) struct Blocks {
    /// Oldest first.
    summaries: VecDeque<Summary>,
    open: OpenBlock,
    block_bytes: BlockBytes,
    /// Sealed blocks that no checkpoint holds yet.
    unsaved: BTreeMap<u64, Bytes>,
    /// Sealed blocks that are in memory though a checkpoint holds them: what the command needs that is applied, and
    /// the one that retention stopped in the middle of.
    fetched: BTreeMap<u64, Bytes>,
    /// Where retention stopped in the first block.
    front: Option<FrontCursor>,
    /// What was removed above the floor.
    removed: SeqSet,
}

impl Blocks {
    /// No blocks but an empty open one.
    pub fn new(first_seq: u64, block_bytes: BlockBytes) -> Self {
        Blocks {
            summaries: VecDeque::from([Summary::empty(first_seq)]),
            open: OpenBlock::new(first_seq),
            block_bytes,
            unsaved: BTreeMap::new(),
            fetched: BTreeMap::new(),
            front: None,
            removed: SeqSet::default(),
        }
    }

    /// Appends a run whose records count for `sizes_bytes`; says in how many it was coded. `emptied` is told
    /// the first seq of a block that is complete now and holds nothing live.
    pub fn push(&mut self, run: &Run, sizes_bytes: &[u32], mut emptied: impl FnMut(u64)) -> u64 {
        let (mut done, mut run_count) = (0, 0);
        while done < sizes_bytes.len() {
            let rest = run.part(run.first_seq + done as u64, run.count - done as u64);
            let taken = self.open.push(&rest, &sizes_bytes[done..], self.block_bytes);
            if taken == 0 {
                self.seal(rest.first_seq, &mut emptied);
                continue;
            }
            let bytes = sizes_bytes[done..done + taken].iter().map(|size| u64::from(*size)).sum();
            if let Some(summary) = self.summaries.back_mut() {
                summary.add(run.ts_ms, taken as u64, bytes);
                summary.name_entry(run.entry.index);
            }
            (done, run_count) = (done + taken, run_count + 1);
        }
        run_count
    }

    /// Takes up the seq `seq` without a record. It is among the removed ones from the start, so nothing ever
    /// looks for a record there.
    pub fn push_nothing(&mut self, seq: u64, ts_ms: u64, entry: EntryId, mut emptied: impl FnMut(u64)) {
        self.removed.insert(seq..=seq);
        let run = Run::of_entry(entry, 0, seq, 1, ts_ms);
        if self.open.push(&run, &[0], self.block_bytes) == 0 {
            self.seal(seq, &mut emptied);
            self.open.push(&run, &[0], self.block_bytes);
        }
    }

    fn seal(&mut self, next_seq: u64, emptied: &mut impl FnMut(u64)) {
        let full = std::mem::replace(&mut self.open, OpenBlock::new(next_seq));
        if self.summaries.back().is_some_and(|summary| summary.count == 0) {
            self.summaries.pop_back();
            if self.summaries.is_empty() {
                self.front = None;
            }
            emptied(full.first_seq());
        } else {
            self.unsaved.insert(full.first_seq(), Bytes::copy_from_slice(full.bytes()));
        }
        self.summaries.push_back(Summary::empty(next_seq));
    }

    /// What is known of each block, oldest first; never empty.
    pub fn summaries(&self) -> &VecDeque<Summary> {
        &self.summaries
    }

    /// What was removed one by one above the floor.
    pub fn removed(&self) -> &SeqSet {
        &self.removed
    }

    pub fn open_first_seq(&self) -> u64 {
        self.open.first_seq()
    }

    /// The first seq from `seq` on that was not removed, below which nothing is live any more: what was removed
    /// below is forgotten.
    pub fn raise_floor(&mut self, seq: u64) -> u64 {
        let earliest_seq = self.removed.next_absent(seq);
        self.removed.forget_below(earliest_seq);
        earliest_seq
    }

    fn sealed_in_memory(&self, first_seq: u64) -> Option<&Bytes> {
        self.unsaved.get(&first_seq).or_else(|| self.fetched.get(&first_seq))
    }

    /// The bytes of a block, if they are in memory.
    pub fn in_memory(&self, first_seq: u64) -> Option<&[u8]> {
        if first_seq == self.open.first_seq() {
            return Some(self.open.bytes());
        }
        self.sealed_in_memory(first_seq).map(|bytes| &bytes[..])
    }

    /// A block that is in memory, to keep.
    pub fn shared(&self, first_seq: u64) -> Option<SealedBlock> {
        let bytes = match self.sealed_in_memory(first_seq) {
            Some(bytes) => bytes.clone(),
            None => Bytes::copy_from_slice(self.in_memory(first_seq)?),
        };
        Some(SealedBlock { first_seq, bytes })
    }

    /// Keeps a block in memory that was missing.
    pub fn supply(&mut self, block: SealedBlock) {
        if self.in_memory(block.first_seq).is_none() {
            self.fetched.insert(block.first_seq, block.bytes);
        }
    }

    /// Lets go of what was supplied, but for the block in the middle of which retention goes on.
    pub fn forget_supplied(&mut self) {
        let kept = self.front.as_ref().and(self.summaries.front()).map(|summary| summary.first_seq);
        self.fetched.retain(|first_seq, _| Some(*first_seq) == kept);
    }

    /// A sealed block is given up.
    fn forget_sealed(&mut self, first_seq: u64) {
        self.unsaved.remove(&first_seq);
        self.fetched.remove(&first_seq);
    }

    /// Hands every block that changed since the last call to `store`.
    pub fn take_changes(&mut self, store: &mut impl FnMut(TopicKey, Option<Vec<u8>>)) {
        self.removed.take_changes(|number, bytes| store(TopicKey::Removed(number), bytes));
        for (first_seq, bytes) in &self.unsaved {
            store(TopicKey::Runs(*first_seq), Some(bytes.to_vec()));
        }
        store(TopicKey::Runs(self.open.first_seq()), Some(self.open.bytes().to_vec()));
    }

    /// A checkpoint with every sealed block up to `last_seq` is on disk: they may leave memory.
    pub fn saved_up_to(&mut self, last_seq: u64) {
        let needed = self.front.as_ref().and(self.summaries.front()).map(|summary| summary.first_seq);
        let summaries = &self.summaries;
        let fetched = &mut self.fetched;
        self.unsaved.retain(|first, bytes| {
            let next = summaries.partition_point(|other| other.first_seq <= *first);
            let is_unsaved = summaries.get(next).is_none_or(|next| next.first_seq - 1 > last_seq);
            if !is_unsaved && needed == Some(*first) {
                fetched.insert(*first, bytes.clone());
            }
            is_unsaved
        });
    }

    /// Takes in a stored chunk of what was removed; they come before the blocks.
    pub fn restore_removed(&mut self, number: u64, bytes: &[u8]) -> Result<(), Malformed> {
        self.removed.restore(number, bytes)
    }

    /// Takes in a stored block; blocks come in order. Records below `earliest_seq` are gone: each run that
    /// has others is told to `each_live` by its entry's index. `false` if there was nothing live in it.
    pub fn restore(
        &mut self,
        first_seq: u64,
        bytes: &[u8],
        earliest_seq: u64,
        mut each_live: impl FnMut(u64),
    ) -> Result<bool, Malformed> {
        let mut summary = Summary::empty(first_seq);
        let mut iter = runs(first_seq, bytes);
        while let Some((run, sizes)) = iter.next_sized()? {
            let Some(rest) = run.after(earliest_seq - 1) else { continue };
            if !self.removed.has_absent_in(rest.first_seq..=rest.last_seq()) {
                continue;
            }
            each_live(run.entry.index);
            summary.name_entry(run.entry.index);
            let sizes = sizes.table(run.count)?;
            for part in self.removed.absent_in(rest.first_seq..=rest.last_seq()) {
                let count = part.end() - part.start() + 1;
                summary.add(run.ts_ms, count, sizes.sum(part.start() - run.first_seq, count));
            }
        }
        if first_seq == self.open.first_seq() {
            self.open = OpenBlock::restore(first_seq, bytes)?;
            self.summaries.pop_back();
        } else if summary.count == 0 {
            return Ok(false);
        }
        let at = self.summaries.partition_point(|other| other.first_seq < first_seq);
        self.summaries.insert(at, summary);
        Ok(true)
    }
}
