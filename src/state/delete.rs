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

use super::blocks::Gone;
use super::catalog::SharedTopic;
use super::command::{DeleteRecords, LateMatch};
use super::outcome::{Outcome, RecordsDeleted, Refusal};
use super::retention::Freed;
use super::run::{Run, runs};
use super::topic::Topic;
use super::{Applied, Missing, MissingBlock, State};
use crate::codec::Malformed;
use crate::filter::TagMatch;
use crate::limits::{MAX_DELETE_BLOCKS, MAX_LATE_BYTES, MAX_LATE_RECORDS};
use crate::record::{EntryRecords, Record};
use crate::storage::EntryId;

/// Blocks that applying one delete removes from. Whoever proposes it stays below, and the records that were written
/// since are in few more.
const MAX_APPLIED_DELETE_BLOCKS: usize = 2 * MAX_DELETE_BLOCKS;

/// Inclusive ranges of seqs, ascending and apart.
pub type Ranges = Vec<RangeInclusive<u64>>;

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

impl Topic {
    /// First seqs of the blocks that [`Topic::remove`] needs and that are not in memory; `None` if more are touched than
    /// one command may.
    fn missing_to_remove(&self, ranges: &[RangeInclusive<u64>]) -> Option<Vec<u64>> {
        let touched = self.blocks.touched(ranges, self.extent());
        let is_missing = |first_seq: &u64| self.blocks.in_memory(*first_seq).is_none();
        let is_too_much = touched.len() > MAX_APPLIED_DELETE_BLOCKS;
        (!is_too_much).then(|| touched.into_keys().filter(is_missing).collect())
    }

    /// The same for [`Topic::remove_below`]: blocks that lie below as a whole are given up unread.
    fn missing_to_remove_below(&self, before_seq: u64) -> Option<u64> {
        let at = self.blocks.place_of(before_seq.min(self.head_seq + 1).saturating_sub(1));
        let block = self.blocks.summaries().get(at)?;
        let is_whole = before_seq > self.blocks.last_seq(at, self.head_seq);
        let is_sealed = block.first_seq != self.blocks.open_first_seq();
        let is_needed = !(is_whole && is_sealed) && before_seq > self.earliest_seq;
        (is_needed && self.blocks.in_memory(block.first_seq).is_none()).then_some(block.first_seq)
    }

    /// Removes what is live of `ranges`.
    fn remove(&mut self, ranges: &[RangeInclusive<u64>], freed: &mut Freed) -> Result<Gone, Malformed> {
        let touched = self.blocks.touched(ranges, self.extent());
        let ends = touched.values().flatten().flat_map(|range| [*range.start(), *range.end()]);
        ends.for_each(|seq| self.digest.add(seq));
        let gone = self.blocks.remove(&touched, self.extent(), freed)?;
        self.settle_removed(gone);
        Ok(gone)
    }

    /// Removes what is live below `before_seq`.
    fn remove_below(&mut self, before_seq: u64, freed: &mut Freed) -> Result<Gone, Malformed> {
        let mut all = self.blocks.drop_below(before_seq, self.extent(), freed)?;
        if all.count > 0 {
            let first_seq =
                self.blocks.summaries().front().map_or(self.head_seq + 1, |block| block.first_seq);
            self.earliest_seq = self.blocks.raise_floor(first_seq);
        }
        self.digest.add(before_seq);
        self.origins.forget_gaps_below(before_seq);
        self.forget_own_below_floor();
        self.count -= all.count;
        self.bytes -= all.bytes;
        let rest = self.earliest_seq..=before_seq.saturating_sub(1);
        all += self.remove(std::slice::from_ref(&rest), freed)?;
        Ok(all)
    }

    /// Keeps the counts and the floor right after `gone` went.
    fn settle_removed(&mut self, gone: Gone) {
        self.count -= gone.count;
        self.bytes -= gone.bytes;
        self.earliest_seq = self.blocks.raise_floor(self.earliest_seq);
        self.digest.add(gone.count);
        self.removal_count += 1;
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
        for first_seq in self.blocks.live_blocks(from_seq..=last_seq) {
            let Some(block) = self.blocks.in_memory(first_seq) else {
                return Ok(Late::Cold { block_first_seq: first_seq });
            };
            let mut iter = runs(first_seq, block);
            while let Some((run, sizes)) = iter.next_sized()? {
                let Some(rest) = run.after(from_seq - 1).filter(|rest| rest.first_seq <= last_seq) else {
                    continue;
                };
                let rest = Run { count: rest.count.min(last_seq + 1 - rest.first_seq), ..rest };
                if !self.blocks.removed().has_absent_in(rest.first_seq..=rest.last_seq()) {
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
        let Some(missing) = topic.missing_to_remove(&ranges) else { return Ok(Missing::default()) };
        let block = |first_seq| MissingBlock { topic: shared.clone(), first_seq };
        let blocks: Vec<MissingBlock> = missing.into_iter().map(block).collect();
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
        let due_before = topic.due_ms();
        let gone = match (&delete.listed, self.planned.take()) {
            (None, _) => topic.remove_below(delete.before_seq.unwrap_or(0), &mut self.freed)?,
            (Some(_), Some(ranges)) => topic.remove(&ranges, &mut self.freed)?,
            (Some(_), None) => return outcome(Outcome::Refused(Refusal::LookAgain)),
        };
        self.due.update(&shared, due_before, topic.due_ms());
        self.dirty_topics.insert(shared.epoch, shared.clone());
        // Retention may have kept the first block, and starts over in it.
        self.supplied_topics.push(shared.clone());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::TopicConfig;

    /// A topic of so many full blocks, of which nothing was read from anywhere.
    fn topic_of(blocks: usize) -> Topic {
        let mut topic = Topic::new("t".into(), 1, TopicConfig::default());
        let sizes: Vec<u32> = (0..250).map(|number| 20_000 + number).collect();
        let (mut freed, mut index) = (Freed::default(), 0);
        while topic.blocks.summaries().len() <= blocks {
            index += 1;
            topic.append(EntryId { term: 1, index }, 0, 1000 + index, &sizes, None, &mut freed);
        }
        topic
    }

    /// The second record of each block.
    fn one_per_block(topic: &Topic) -> Ranges {
        topic.blocks.summaries().iter().map(|block| block.first_seq + 1..=block.first_seq + 1).collect()
    }

    #[test]
    fn one_command_removes_from_so_many_blocks_and_no_more() {
        let topic = topic_of(MAX_APPLIED_DELETE_BLOCKS);
        let mut ranges = one_per_block(&topic);
        assert_eq!(topic.missing_to_remove(&ranges), None);
        ranges.pop();
        assert_eq!(topic.missing_to_remove(&ranges), Some(Vec::new()));
    }

    #[test]
    fn blocks_that_a_delete_empties_are_dropped_and_the_others_are_not() {
        let mut topic = topic_of(40);
        let firsts: Vec<u64> = topic.blocks.summaries().iter().map(|block| block.first_seq).collect();
        let ranges: Ranges = firsts
            .windows(2)
            .step_by(2)
            .map(|two| two[0]..=two[1] - 1)
            .chain([firsts[39] + 5..=firsts[40]])
            .collect();
        let (mut freed, head_seq) = (Freed::default(), topic.head_seq);
        let gone = topic.remove(&ranges, &mut freed).expect("all is in memory");
        assert_eq!(gone.count, ranges.iter().map(|range| range.end() - range.start() + 1).sum::<u64>());
        let kept: Vec<u64> = topic.blocks.summaries().iter().map(|block| block.first_seq).collect();
        assert_eq!(kept, firsts.iter().copied().skip(1).step_by(2).chain([firsts[40]]).collect::<Vec<_>>());
        topic.check(true).expect("what must hold does");

        let gone = topic.remove_below(u64::MAX, &mut freed).expect("all is in memory");
        assert_eq!((topic.count, topic.bytes, topic.earliest_seq), (0, 0, head_seq + 1));
        assert!(gone.count > 0 && topic.blocks.summaries().len() == 1);
        topic.check(true).expect("what must hold does");
    }
}
