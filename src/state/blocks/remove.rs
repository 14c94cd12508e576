//! Removing records out of the middle, which somebody asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::{Blocks, Extent, Gone, Summary};
use crate::codec::Malformed;
use crate::state::checkpoint_form::Key;
use crate::state::delete::Ranges;
use crate::state::retention::Freed;
use crate::state::run::runs;
use crate::state::topic::TopicKey;

impl Blocks {
    /// The parts of `ranges` in each block of which they remove something, by the first seq of the block.
    pub fn touched(&self, ranges: &[RangeInclusive<u64>], extent: Extent) -> BTreeMap<u64, Ranges> {
        let mut touched: BTreeMap<u64, Ranges> = BTreeMap::new();
        for range in ranges {
            let (first, last) =
                (*range.start().max(&extent.earliest_seq), *range.end().min(&extent.head_seq));
            let mut at = first;
            while let Some(live_seq) = self.removed.next_absent_up_to(at, last) {
                let place = self.place_of(live_seq);
                let end = self.last_seq(place, last).min(last);
                if let Some(block) = self.summaries.get(place) {
                    touched.entry(block.first_seq).or_default().push(first.max(block.first_seq)..=end);
                }
                at = end + 1;
            }
        }
        touched
    }

    /// Removes what `touched` says, of blocks that are in memory. Those of which nothing is left are dropped.
    pub fn remove(
        &mut self,
        touched: &BTreeMap<u64, Ranges>,
        extent: Extent,
        freed: &mut Freed,
    ) -> Result<Gone, Malformed> {
        let mut all = Gone::default();
        for (first_seq, ranges) in touched {
            all += self.remove_in(*first_seq, ranges, extent, freed)?;
        }
        self.drop_emptied(touched.keys(), extent.epoch, freed);
        Ok(all)
    }

    /// Removes `ranges` of the block that starts at `first_seq`, which stays with its summary even if it is empty.
    fn remove_in(
        &mut self,
        first_seq: u64,
        ranges: &[RangeInclusive<u64>],
        extent: Extent,
        freed: &mut Freed,
    ) -> Result<Gone, Malformed> {
        let block =
            self.shared(first_seq).ok_or(Malformed("topic: a block that a delete needs is not in memory"))?;
        let place = self.place_of(first_seq);
        let (first, last) =
            (first_seq.max(extent.earliest_seq), self.last_seq(place, extent.head_seq).min(extent.head_seq));
        let ends = |blocks: &Blocks| {
            (
                blocks.removed.next_absent_up_to(first, last),
                blocks.removed.previous_absent_down_to(last, first),
            )
        };
        let ends_before = ends(self);
        let mut gone = Gone::default();
        let mut ranges = ranges.iter().cloned().peekable();
        let mut iter = runs(first_seq, &block.bytes);
        while ranges.peek().is_some()
            && let Some((run, sizes)) = iter.next_sized()?
        {
            let Some(rest) = run.after(extent.earliest_seq - 1) else { continue };
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
                    gone += Gone { count, bytes: sizes.sum(stretch.start() - run.first_seq, count) };
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
        if place == 0 {
            self.front = None;
        }
        let Some(summary) = self.summaries.get_mut(place) else { return Err(Malformed("topic")) };
        summary.count -= gone.count;
        summary.bytes -= gone.bytes;
        if let (Some(first_live), Some(last_live)) = ends_after
            && ends_before != ends_after
        {
            for run in runs(first_seq, &block.bytes) {
                let run = run?;
                let holds = |seq: u64| run.first_seq <= seq && seq <= run.last_seq();
                if holds(first_live) {
                    summary.first_ts_ms = run.ts_ms;
                }
                if holds(last_live) {
                    summary.last_ts_ms = run.ts_ms;
                }
            }
        }
        Ok(gone)
    }

    /// Drops those of the blocks of which nothing is left, but for the open one.
    fn drop_emptied<'a>(&mut self, touched: impl Iterator<Item = &'a u64>, epoch: u64, freed: &mut Freed) {
        let open_seq = self.open.first_seq();
        let is_empty = |blocks: &Blocks, first_seq: u64| {
            blocks.summaries.get(blocks.place_of(first_seq)).is_some_and(|block| block.count == 0)
        };
        let emptied: BTreeSet<u64> =
            touched.copied().filter(|first_seq| is_empty(self, *first_seq)).collect();
        if emptied.contains(&open_seq)
            && let Some(open) = self.summaries.back_mut()
        {
            *open = Summary::empty(open_seq);
        }
        let goes = |first_seq: u64| first_seq != open_seq && emptied.contains(&first_seq);
        if self.summaries.front().is_some_and(|first| goes(first.first_seq)) {
            self.front = None;
        }
        // All at once: each alone would move the summaries behind it.
        if emptied.iter().any(|first_seq| goes(*first_seq)) {
            self.summaries.retain(|block| !goes(block.first_seq));
        }
        for first_seq in emptied.iter().copied().filter(|first_seq| goes(*first_seq)) {
            self.forget_sealed(first_seq);
            freed.blocks.push(Key::Topic(epoch, TopicKey::Runs(first_seq)));
        }
    }

    /// Gives up the blocks that end below `before_seq`, whole: unread, or from memory.
    pub fn drop_below(
        &mut self,
        before_seq: u64,
        extent: Extent,
        freed: &mut Freed,
    ) -> Result<Gone, Malformed> {
        // The last one that begins there may go on above it.
        let kept = self.summaries.partition_point(|block| block.first_seq <= before_seq).saturating_sub(1);
        let kept_seq = self.summaries.get(kept).map_or(0, |block| block.first_seq);
        let mut all = Gone::default();
        while self.summaries.front().is_some_and(|first| first.first_seq < kept_seq) {
            let left = Extent { count: extent.count - all.count, bytes: extent.bytes - all.bytes, ..extent };
            all += match self.give_up_unread(left, |block, _| block.first_seq < kept_seq, freed) {
                Some(evicted) => evicted.gone,
                None => self.drop_first_read(extent, freed)?,
            };
        }
        Ok(all)
    }

    /// Gives up the first block, which is sealed and in memory.
    fn drop_first_read(&mut self, extent: Extent, freed: &mut Freed) -> Result<Gone, Malformed> {
        let Some(Summary { first_seq, count, bytes, .. }) = self.summaries.pop_front() else {
            return Ok(Gone::default());
        };
        let block = self.shared(first_seq).ok_or(Malformed("topic"))?;
        for index in block.entry_indexes_from(extent.earliest_seq, &self.removed) {
            freed.entries.push(index?);
        }
        freed.blocks.push(Key::Topic(extent.epoch, TopicKey::Runs(first_seq)));
        self.forget_sealed(first_seq);
        self.front = None;
        Ok(Gone { count, bytes })
    }
}
