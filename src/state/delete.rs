//! Deletes: records that are removed because somebody asked for it (contract section 12).
//!
//! All members must remove exactly the same records, and applying must neither read the records of a topic nor
//! trust that two members find the same by an index of their own. So the member that is asked *looks* first:
//! it finds what matches up to the head that it has applied, and the command lists the seqs. As records never
//! change, a seq that matched then matches now. What was written between the look and the order is found while
//! applying, from the log entries themselves; the part of the log that is needed for that is bounded, and
//! beyond the bound the answer is to look again, from where the last look ended. What went meanwhile is passed
//! over.
//!
//! What is removed below all that is live only moves the floor, by whole blocks unread. Out of the middle a
//! seq is noted in [`SeqSet`](super::seq_set::SeqSet), and the block that holds it is needed for what the
//! record counts for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::blocks::{Blocks, Summary};
use super::catalog::SharedTopic;
use super::checkpoint_form::Key;
use super::command::{DeleteRecords, LateMatch};
use super::garbage::EvictedBlock;
use super::outcome::{Outcome, RecordsDeleted, Refusal};
use super::retention::Freed;
use super::run::{Run, runs};
use super::topic::{Topic, TopicKey};
use super::{Applied, Missing, MissingBlock, State};
use crate::codec::Malformed;
use crate::filter::TagMatch;
use crate::limits::{MAX_LATE_BYTES, MAX_LATE_RECORDS};
use crate::record::{EntryRecords, Record};
use crate::storage::EntryId;

/// Inclusive ranges of seqs, ascending and apart.
pub type Ranges = Vec<RangeInclusive<u64>>;

/// Number of records removed and the bytes that they counted for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Gone {
    pub count: u64,
    pub bytes: u64,
}

/// Runs of records that were written after a look.
pub(super) enum Late {
    Runs(Vec<Run>),
    /// The block that starts at this seq is not in memory.
    Cold {
        block_first_seq: u64,
    },
    /// They are too many to be looked at while applying.
    TooMany,
}

impl Blocks {
    /// The last seq of the block at `place`, or of what was dropped behind it.
    pub(super) fn last_seq(&self, place: usize, head_seq: u64) -> u64 {
        self.summaries.get(place + 1).map_or(head_seq, |next| next.first_seq - 1)
    }

    /// The parts of `ranges` in each block of which they remove something, by the first seq of the block.
    fn touched(&self, ranges: &[RangeInclusive<u64>], live: RangeInclusive<u64>) -> BTreeMap<u64, Ranges> {
        let mut touched: BTreeMap<u64, Ranges> = BTreeMap::new();
        let (earliest_seq, head_seq) = live.into_inner();
        for range in ranges {
            let (first, last) = ((*range.start()).max(earliest_seq), (*range.end()).min(head_seq));
            if first > last {
                continue;
            }
            let mut place = self.place_of(first);
            while let Some(block) = self.summaries.get(place).filter(|block| block.first_seq <= last) {
                let part = first.max(block.first_seq)..=last.min(self.last_seq(place, head_seq));
                if self.removed.has_absent_in(part.clone()) {
                    touched.entry(block.first_seq).or_default().push(part);
                }
                place += 1;
            }
        }
        touched
    }

    /// Removes `ranges` of the block that starts at `first_seq` and is in memory. Drops it if nothing is left.
    fn remove_in(
        &mut self,
        first_seq: u64,
        ranges: &[RangeInclusive<u64>],
        (epoch, live): (u64, RangeInclusive<u64>),
        freed: &mut Freed,
    ) -> Result<Gone, Malformed> {
        let block =
            self.shared(first_seq).ok_or(Malformed("topic: a block that a delete needs is not in memory"))?;
        let place = self.place_of(first_seq);
        let bounds = first_seq.max(*live.start())..=self.last_seq(place, *live.end());
        let ends = |blocks: &Blocks| {
            (blocks.removed.next_absent(*bounds.start()), blocks.removed.previous_absent(*bounds.end()))
        };
        let ends_before = ends(self);
        let mut gone = Gone::default();
        let mut ranges = ranges.iter().cloned().peekable();
        let mut iter = runs(first_seq, &block.bytes);
        while ranges.peek().is_some()
            && let Some((run, sizes)) = iter.next_sized()?
        {
            let Some(rest) = run.after(live.start() - 1) else { continue };
            let last_seq = rest.last_seq();
            if ranges.peek().is_none_or(|range| *range.start() > last_seq) {
                continue;
            }
            let was_live = self.removed.has_absent_in(rest.first_seq..=last_seq);
            let sizes = sizes.table(run.count)?;
            while let Some(range) = ranges.peek().filter(|range| *range.start() <= last_seq).cloned() {
                let part = (*range.start()).max(rest.first_seq)..=(*range.end()).min(last_seq);
                for stretch in self.removed.absent_in(part.clone()) {
                    let count = stretch.end() - stretch.start() + 1;
                    gone.count += count;
                    gone.bytes += sizes.sum(stretch.start() - run.first_seq, count);
                }
                self.removed.insert(part);
                if *range.end() > last_seq {
                    break;
                }
                ranges.next();
            }
            if was_live && !self.removed.has_absent_in(rest.first_seq..=last_seq) {
                freed.entries.push(run.entry.index);
            }
        }
        let ends_after = ends(self);
        let is_open = first_seq == self.open.first_seq();
        if place == 0 {
            self.front = None;
        }
        let Some(summary) = self.summaries.get_mut(place) else { return Err(Malformed("topic")) };
        summary.count -= gone.count;
        summary.bytes -= gone.bytes;
        if summary.count == 0 && is_open {
            *summary = Summary::empty(first_seq);
        } else if summary.count == 0 {
            self.drop_block(place);
            freed.blocks.push(Key::Topic(epoch, TopicKey::Runs(first_seq)));
        } else if ends_before != ends_after {
            for run in runs(first_seq, &block.bytes) {
                let run = run?;
                let holds = |seq: u64| run.first_seq <= seq && seq <= run.last_seq();
                if holds(ends_after.0) {
                    summary.first_ts_ms = run.ts_ms;
                }
                if holds(ends_after.1) {
                    summary.last_ts_ms = run.ts_ms;
                }
            }
        }
        Ok(gone)
    }

    fn drop_block(&mut self, place: usize) {
        if let Some(summary) = self.summaries.remove(place) {
            self.unsaved.remove(&summary.first_seq);
            self.fetched.remove(&summary.first_seq);
        }
        if place == 0 {
            self.front = None;
        }
    }

    /// Gives up the first block, which is sealed, whole.
    fn drop_first(
        &mut self,
        (epoch, earliest_seq): (u64, u64),
        freed: &mut Freed,
    ) -> Result<Gone, Malformed> {
        let last_seq = self.last_seq(0, u64::MAX);
        let Some(Summary { first_seq, count, bytes, .. }) = self.summaries.front().copied() else {
            return Ok(Gone::default());
        };
        match self.shared(first_seq) {
            Some(block) => {
                for index in block.entry_indexes_from(earliest_seq, &self.removed) {
                    freed.entries.push(index?);
                }
                freed.blocks.push(Key::Topic(epoch, TopicKey::Runs(first_seq)));
            }
            None => freed.unread.push(EvictedBlock {
                epoch,
                first_seq,
                live_from_seq: earliest_seq,
                removed: self.removed.part(first_seq..=last_seq),
            }),
        }
        self.drop_block(0);
        Ok(Gone { count, bytes })
    }
}

impl Topic {
    fn live_seqs(&self) -> RangeInclusive<u64> {
        self.earliest_seq..=self.head_seq
    }

    /// First seqs of the blocks that [`Topic::remove`] needs and that are not in memory.
    pub(super) fn missing_to_remove(&self, ranges: &[RangeInclusive<u64>]) -> Vec<u64> {
        let touched = self.blocks.touched(ranges, self.live_seqs()).into_keys();
        touched.filter(|first_seq| self.blocks.in_memory(*first_seq).is_none()).collect()
    }

    /// The same for [`Topic::remove_below`]: blocks that lie below as a whole are given up unread.
    pub(super) fn missing_to_remove_below(&self, before_seq: u64) -> Option<u64> {
        let at = self.blocks.place_of(before_seq.min(self.head_seq + 1).saturating_sub(1));
        let block = self.blocks.summaries.get(at)?;
        let is_whole = before_seq > self.blocks.last_seq(at, self.head_seq);
        let is_sealed = block.first_seq != self.blocks.open.first_seq();
        let is_needed = !(is_whole && is_sealed) && before_seq > self.earliest_seq;
        (is_needed && self.blocks.in_memory(block.first_seq).is_none()).then_some(block.first_seq)
    }

    /// Removes what is live of `ranges`.
    pub(super) fn remove(
        &mut self,
        ranges: &[RangeInclusive<u64>],
        freed: &mut Freed,
    ) -> Result<Gone, Malformed> {
        let mut all = Gone::default();
        for (first_seq, ranges) in self.blocks.touched(ranges, self.live_seqs()) {
            let gone = self.blocks.remove_in(first_seq, &ranges, (self.epoch, self.live_seqs()), freed)?;
            all = Gone { count: all.count + gone.count, bytes: all.bytes + gone.bytes };
            ranges
                .iter()
                .flat_map(|range| [*range.start(), *range.end()])
                .for_each(|seq| self.digest.add(seq));
        }
        self.settle_removed(all);
        Ok(all)
    }

    /// Removes what is live below `before_seq`.
    pub(super) fn remove_below(&mut self, before_seq: u64, freed: &mut Freed) -> Result<Gone, Malformed> {
        let mut all = Gone::default();
        while self.blocks.summaries.len() > 1 && before_seq > self.blocks.last_seq(0, self.head_seq) {
            let next_seq = self.blocks.last_seq(0, self.head_seq) + 1;
            let gone = self.blocks.drop_first((self.epoch, self.earliest_seq), freed)?;
            all = Gone { count: all.count + gone.count, bytes: all.bytes + gone.bytes };
            self.earliest_seq = self.blocks.removed.next_absent(next_seq);
        }
        self.digest.add(before_seq);
        self.origins.forget_gaps_below(before_seq);
        self.count -= all.count;
        self.bytes -= all.bytes;
        let rest = self.earliest_seq..=before_seq.saturating_sub(1);
        let gone = self.remove(std::slice::from_ref(&rest), freed)?;
        Ok(Gone { count: all.count + gone.count, bytes: all.bytes + gone.bytes })
    }

    /// Keeps the counts and the floor right after `gone` went.
    fn settle_removed(&mut self, gone: Gone) {
        self.count -= gone.count;
        self.bytes -= gone.bytes;
        self.earliest_seq = self.blocks.removed.next_absent(self.earliest_seq);
        self.blocks.removed.forget_below(self.earliest_seq);
        self.digest.add(gone.count);
        self.removal_count += 1;
        // Blocks that only this needed.
        self.blocks.forget_fetched();
        self.set_dirty();
    }

    /// The live records above `seen_seq` and below `before_seq`.
    pub(super) fn late(&self, seen_seq: u64, before_seq: u64) -> Result<Late, Malformed> {
        let (mut late, mut count, mut bytes) = (Vec::new(), 0, 0);
        let from_seq = (seen_seq + 1).max(self.earliest_seq);
        let last_seq = self.head_seq.min(before_seq.saturating_sub(1));
        if last_seq < from_seq {
            return Ok(Late::Runs(late));
        }
        if last_seq - from_seq >= MAX_LATE_RECORDS {
            return Ok(Late::TooMany);
        }
        for first_seq in self.blocks.blocks_from(from_seq).take_while(|first_seq| *first_seq <= last_seq) {
            let Some(block) = self.blocks.in_memory(first_seq) else {
                return Ok(Late::Cold { block_first_seq: first_seq });
            };
            let mut iter = runs(first_seq, block);
            while let Some((run, sizes)) = iter.next_sized()? {
                let Some(rest) = run.after(from_seq - 1).filter(|rest| rest.first_seq <= last_seq) else {
                    continue;
                };
                let rest = Run { count: rest.count.min(last_seq + 1 - rest.first_seq), ..rest };
                if !self.blocks.removed.has_absent_in(rest.first_seq..=rest.last_seq()) {
                    continue;
                }
                count += rest.count;
                bytes += sizes.table(run.count)?.sum(0, run.count);
                late.push(rest);
            }
        }
        let is_too_much = count > MAX_LATE_RECORDS || bytes > MAX_LATE_BYTES;
        Ok(if is_too_much { Late::TooMany } else { Late::Runs(late) })
    }
}

impl State {
    /// Plans a delete, and says what it needs beside what retention does. The plan is made before anything has
    /// changed, and is as right afterwards: what expires meanwhile is passed over.
    pub(super) fn missing_to_delete(
        &mut self,
        delete: &DeleteRecords<'_>,
        shared: &Arc<SharedTopic>,
    ) -> Result<Missing, Malformed> {
        self.planned = None;
        let topic = shared.read();
        let Some(listed) = &delete.listed else {
            let first_seq = topic.missing_to_remove_below(delete.before_seq.unwrap_or(0));
            return Ok(first_seq.map_or(Missing::default(), |first_seq| Missing::block(shared, first_seq)));
        };
        if listed.epoch != topic.epoch {
            return Ok(Missing::default());
        }
        let mut ranges = listed.ranges.clone();
        if let Some(LateMatch { seen_seq, tags }) = &listed.late {
            let runs = match topic.late(*seen_seq, delete.before_seq.unwrap_or(u64::MAX))? {
                Late::TooMany => return Ok(Missing::default()),
                Late::Cold { block_first_seq } => return Ok(Missing::block(shared, block_first_seq)),
                Late::Runs(runs) => runs,
            };
            let mut missing: BTreeSet<EntryId> = BTreeSet::new();
            for run in &runs {
                match self.supplied.get(&run.entry) {
                    Some(entry) => match_run(run, entry, tags, &mut ranges)?,
                    None => drop(missing.insert(run.entry)),
                }
            }
            if !missing.is_empty() {
                return Ok(Missing { entries: missing.into_iter().collect(), ..Missing::default() });
            }
        }
        let blocks = topic.missing_to_remove(&ranges).into_iter();
        let blocks = blocks.map(|first_seq| MissingBlock { topic: shared.clone(), first_seq });
        let blocks: Vec<MissingBlock> = blocks.collect();
        self.planned = Some(ranges);
        Ok(Missing { blocks, ..Missing::default() })
    }

    pub(super) fn delete_records(
        &mut self,
        delete: &DeleteRecords<'_>,
        existing: Option<Arc<SharedTopic>>,
    ) -> Result<Applied, Malformed> {
        let outcome = |outcome| Ok(Applied::of(outcome));
        let Some(shared) = existing else { return outcome(Outcome::Refused(Refusal::TopicNotFound)) };
        let mut topic = shared.write();
        let due_before = topic.next_due_ms();
        let gone = match (&delete.listed, self.planned.take()) {
            (None, _) => topic.remove_below(delete.before_seq.unwrap_or(0), &mut self.freed)?,
            (Some(_), Some(ranges)) => topic.remove(&ranges, &mut self.freed)?,
            (Some(_), None) => return outcome(Outcome::Refused(Refusal::LookAgain)),
        };
        self.due.update(&shared, due_before, topic.next_due_ms());
        self.dirty_topics.insert(shared.epoch, shared.clone());
        outcome(Outcome::RecordsDeleted(RecordsDeleted {
            deleted: gone.count,
            earliest_seq: topic.earliest_seq,
            head_seq: topic.head_seq,
            count: topic.count,
            bytes: topic.bytes,
        }))
    }
}

/// Adds those records of `run` to `ranges` whose tag matches. `entry` is the entry that the run names.
pub fn match_run(
    run: &Run,
    entry: &EntryRecords,
    tags: &TagMatch,
    ranges: &mut Ranges,
) -> Result<(), Malformed> {
    if run.overlay.drops_tag {
        return Ok(());
    }
    for offset in 0..run.count {
        let record = entry.record(run.first_position + offset as u32).ok_or(Malformed("entry"))?;
        // One that cannot be read matches nothing. This is applied: it may not fail on what is in a record.
        if matches!(Record::decode_tag(record), Ok(Some(tag)) if tags.matches(tag)) {
            let seq = run.first_seq + offset;
            push_range(ranges, seq..=seq);
        }
    }
    Ok(())
}

/// Adds a range above all that `ranges` hold.
pub fn push_range(ranges: &mut Ranges, range: RangeInclusive<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end() + 1 == *range.start() => *last = *last.start()..=*range.end(),
        _ => ranges.push(range),
    }
}

/// Log entries by id, handed in because applying needs them.
pub(super) type Supplied = BTreeMap<EntryId, EntryRecords>;
