//! Whether what is written of the blocks holds; for tests, after every command.

use std::ops::RangeInclusive;

use super::{Blocks, Extent, Gone, Summary};
use crate::state::run::runs;

impl Blocks {
    /// Says what does not hold of what must (see the module) in a topic of this extent, as far as that is seen without
    /// decoding runs.
    pub fn check(&self, extent: Extent) -> Result<(), String> {
        let Extent { earliest_seq, head_seq, .. } = extent;
        let firsts: Vec<u64> = self.summaries.iter().map(|block| block.first_seq).collect();
        ensure(firsts.is_sorted_by(|one, next| one < next), || format!("blocks begin at {firsts:?}"))?;
        ensure(firsts.last() == Some(&self.open.first_seq()), || {
            format!("the last block is {:?}, the open one {}", firsts.last(), self.open.first_seq())
        })?;
        ensure(self.removed.next_present(head_seq + 1).is_none(), || "removed above the head".into())?;
        ensure(earliest_seq <= head_seq + 1 && !self.removed.contains(earliest_seq), || {
            format!("the earliest seq, {earliest_seq}, was removed or is above the head, {head_seq}")
        })?;
        let mut held = Gone::default();
        for (place, block) in self.summaries.iter().enumerate() {
            let seqs = block.first_seq.max(earliest_seq)..=self.last_seq(place, head_seq);
            let count = self.live_count(seqs);
            let is_open = block.first_seq == self.open.first_seq();
            ensure(count == block.count, || format!("{count} seqs are live: {block:?}"))?;
            ensure(count > 0 || is_open, || format!("an empty block is still there: {block:?}"))?;
            held += Gone { count: block.count, bytes: block.bytes };
        }
        ensure(held == Gone { count: extent.count, bytes: extent.bytes }, || {
            format!("blocks hold {held:?}, the topic {extent:?}")
        })?;
        let below = self.live_count(earliest_seq..=self.summaries[0].first_seq.saturating_sub(1));
        ensure(below == 0, || format!("{below} live records are before the first block"))?;
        for first_seq in self.unsaved.keys().chain(self.fetched.keys()) {
            let is_sealed = *first_seq != self.open.first_seq() && firsts.contains(first_seq);
            ensure(is_sealed, || format!("block {first_seq} is in memory and no sealed block"))?;
        }
        let is_first = |first_seq: &u64| *first_seq == firsts[0] && self.front.is_some();
        let is_needed = |first_seq: &u64| is_first(first_seq) && !self.unsaved.contains_key(first_seq);
        ensure(self.fetched.keys().all(is_needed), || {
            format!("fetched blocks stayed: {:?} of {firsts:?}", self.fetched.keys())
        })
    }

    /// The rest: decodes every block that is in memory.
    pub fn check_runs(&self, extent: Extent) -> Result<(), String> {
        for (place, block) in self.summaries.iter().enumerate() {
            let seqs = block.first_seq.max(extent.earliest_seq)..=self.last_seq(place, extent.head_seq);
            self.check_block(block, seqs).map_err(|error| format!("{error}: {block:?}"))?;
        }
        self.check_front(extent.earliest_seq)
    }

    fn live_count(&self, seqs: RangeInclusive<u64>) -> u64 {
        self.removed.absent_in(seqs).map(|stretch| stretch.end() - stretch.start() + 1).sum()
    }

    /// `seqs` are those of it that may be live.
    fn check_block(&self, block: &Summary, seqs: RangeInclusive<u64>) -> Result<(), String> {
        let Some(bytes) = self.in_memory(block.first_seq) else { return Ok(()) };
        let mut found = Summary::empty(block.first_seq);
        let mut iter = runs(block.first_seq, bytes);
        while let Some((run, sizes)) = iter.next_sized().map_err(|error| error.to_string())? {
            let sizes = sizes.table(run.count).map_err(|error| error.to_string())?;
            let live = run.first_seq.max(*seqs.start())..=run.last_seq().min(*seqs.end());
            for stretch in self.removed.absent_in(live) {
                let count = stretch.end() - stretch.start() + 1;
                found.add(run.ts_ms, count, sizes.sum(stretch.start() - run.first_seq, count));
                found.name_entry(run.entry.index);
            }
        }
        let values = |block: &Summary| (block.count, block.bytes, block.first_ts_ms, block.last_ts_ms);
        let covers = block.first_index <= found.first_index && block.last_index >= found.last_index;
        ensure(block.count == 0 || (values(&found) == values(block) && covers), || {
            format!("runs say {found:?}")
        })
    }

    fn check_front(&self, earliest_seq: u64) -> Result<(), String> {
        let (Some(front), Some(first)) = (&self.front, self.summaries.front()) else { return Ok(()) };
        let first_seq = first.first_seq;
        let Some(bytes) = self.in_memory(first_seq) else {
            return Err(format!("retention stopped in block {first_seq}, which is not in memory"));
        };
        let next = front.clone().run(bytes).map_err(|error| error.to_string())?;
        let end_seq =
            runs(first_seq, bytes).last().and_then(Result::ok).map_or(first_seq, |run| run.last_seq() + 1);
        let at = next.map_or(end_seq, |run| run.first_seq);
        let passed = self.live_count(earliest_seq..=at.saturating_sub(1));
        ensure(passed == 0, || format!("retention stands at {at}, past {passed} live records"))
    }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}
