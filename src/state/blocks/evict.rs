//! Giving up the oldest records: whole blocks unread, and within the first one run by run.

use std::collections::VecDeque;

use super::{Blocks, Extent, Gone, Summary};
use crate::codec::Malformed;
use crate::state::checkpoint_form::Key;
use crate::state::garbage::EvictedBlocks;
use crate::state::retention::Freed;
use crate::state::run::FrontCursor;
use crate::state::topic::TopicKey;
use crate::state::topic_config::{Discard, TopicConfig};

/// Which of the oldest records have to go.
#[derive(Debug, Clone, Copy)]
pub(in crate::state) enum Goal {
    /// Those written before this time.
    Before { ts_ms: u64 },
    /// Those that are too many for the caps; `u64::MAX` is none.
    Within { cap_records: u64, cap_bytes: u64 },
}

impl Goal {
    /// What is expired at `now_ms`: strictly older than the limit (C-RET-01).
    pub fn of_ttl(config: &TopicConfig, now_ms: u64) -> Option<Goal> {
        (config.ttl_ms > 0).then(|| Goal::Before { ts_ms: now_ms.saturating_sub(config.ttl_ms) })
    }

    /// A topic that refuses what is too much gives up nothing for its caps, also not when they get smaller.
    pub fn of_caps(config: &TopicConfig) -> Option<Goal> {
        let has_cap = config.cap_records > 0 || config.cap_bytes > 0;
        (has_cap && config.discard == Discard::Old).then(|| Goal::Within {
            cap_records: cap_or_max(config.cap_records),
            cap_bytes: cap_or_max(config.cap_bytes),
        })
    }

    /// Whether something in `block` has to go, if it is the oldest of a topic with these totals.
    fn touches(&self, block: &Summary, count: u64, bytes: u64) -> bool {
        block.count > 0
            && match self {
                Goal::Before { ts_ms } => block.first_ts_ms < *ts_ms,
                Goal::Within { cap_records, cap_bytes } => count > *cap_records || bytes > *cap_bytes,
            }
    }

    /// Whether all of it surely has to: more than the caps allow is left without it.
    fn takes_whole(&self, block: &Summary, count: u64, bytes: u64) -> bool {
        match self {
            Goal::Before { ts_ms } => block.last_ts_ms < *ts_ms,
            Goal::Within { cap_records, cap_bytes } => {
                count - block.count >= *cap_records || bytes - block.bytes >= *cap_bytes
            }
        }
    }
}

/// A cap as a bound: 0 is none.
pub(in crate::state) fn cap_or_max(cap: u64) -> u64 {
    if cap == 0 { u64::MAX } else { cap }
}

/// The oldest live records, given up; never none.
pub(in crate::state) struct Evicted {
    pub last_seq: u64,
    pub last_ts_ms: u64,
    pub gone: Gone,
}

impl Blocks {
    /// The block that is needed to meet `goal` and is not in memory, in a topic that holds so much.
    pub fn missing_block(&self, goal: Goal, (mut count, mut bytes): (u64, u64)) -> Option<u64> {
        for block in &self.summaries {
            if !goal.touches(block, count, bytes) {
                return None;
            }
            if !goal.takes_whole(block, count, bytes) {
                return self.in_memory(block.first_seq).is_none().then_some(block.first_seq);
            }
            count -= block.count;
            bytes -= block.bytes;
        }
        None
    }

    /// Takes the oldest records until `goal` is met or the part that is in memory alike is done; `None` if it is
    /// met.
    pub fn evict_some(
        &mut self,
        goal: Goal,
        extent: Extent,
        freed: &mut Freed,
    ) -> Result<Option<Evicted>, Malformed> {
        let Some(block) = self.summaries.front().copied() else { return Ok(None) };
        if !goal.touches(&block, extent.count, extent.bytes) {
            return Ok(None);
        }
        match self.in_memory(block.first_seq) {
            Some(_) => self.evict_read(goal, block, extent, freed),
            None => {
                let takes_whole = |block: &Summary, left: Gone| {
                    let (count, bytes) = (left.count, left.bytes);
                    goal.touches(block, count, bytes) && goal.takes_whole(block, count, bytes)
                };
                let evicted = self.give_up_unread(extent, takes_whole, freed);
                Ok(Some(evicted.ok_or(Malformed("topic: a block that retention needs is not in memory"))?))
            }
        }
    }

    /// Gives up the oldest blocks that are not in memory, for as long as `goes` says so of one and of what the topic
    /// holds by then.
    pub(super) fn give_up_unread(
        &mut self,
        extent: Extent,
        goes: impl Fn(&Summary, Gone) -> bool,
        freed: &mut Freed,
    ) -> Option<Evicted> {
        let mut left = Gone { count: extent.count, bytes: extent.bytes };
        let (mut first_seqs, mut last_ts_ms) = (VecDeque::new(), 0);
        while let Some(block) = self.summaries.front().filter(|block| goes(block, left))
            && self.in_memory(block.first_seq).is_none()
        {
            left = Gone { count: left.count - block.count, bytes: left.bytes - block.bytes };
            last_ts_ms = block.last_ts_ms;
            first_seqs.push_back(block.first_seq);
            self.summaries.pop_front();
        }
        let first_seq = *first_seqs.front()?;
        self.front = None;
        let before_seq = self.summaries.front().map_or(extent.head_seq + 1, |next| next.first_seq);
        freed.unread.push(EvictedBlocks {
            epoch: extent.epoch,
            first_seqs,
            live_from_seq: extent.earliest_seq,
            removed: self.removed.part(first_seq..=before_seq - 1),
        });
        let last_seq = self.removed.previous_absent_down_to(before_seq - 1, extent.earliest_seq)?;
        let gone = Gone { count: extent.count - left.count, bytes: extent.bytes - left.bytes };
        Some(Evicted { last_seq, last_ts_ms, gone })
    }

    /// Takes records of the first block, which is in memory.
    fn evict_read(
        &mut self,
        goal: Goal,
        block: Summary,
        extent: Extent,
        freed: &mut Freed,
    ) -> Result<Option<Evicted>, Malformed> {
        let is_open = block.first_seq == self.open.first_seq();
        let front = self.front.take();
        let runs = self.in_memory(block.first_seq).ok_or(Malformed("topic"))?;
        let mut cursor = match front {
            Some(cursor) => cursor,
            None => FrontCursor::at(block.first_seq, runs, extent.earliest_seq)?,
        };
        let mut evicted = Evicted { last_seq: 0, last_ts_ms: 0, gone: Gone::default() };
        while let Some(run) = cursor.run(runs)? {
            let run_last_seq = run.last_seq();
            let Some(live) = self.removed.absent_in(run.first_seq..=run_last_seq).next() else {
                // The last live record took the entry with it.
                cursor.pass(runs, run.count, 0, run.count)?;
                continue;
            };
            if *live.start() > run.first_seq {
                let dead_count = live.start() - run.first_seq;
                cursor.pass(runs, dead_count, 0, dead_count)?;
                continue;
            }
            let live_count = live.end() - live.start() + 1;
            let (least_count, least_bytes) = match goal {
                Goal::Before { ts_ms } if run.ts_ms < ts_ms => (run.count, 0),
                Goal::Before { .. } => (0, 0),
                Goal::Within { cap_records, cap_bytes } => (
                    (extent.count - evicted.gone.count).saturating_sub(cap_records),
                    (extent.bytes - evicted.gone.bytes).saturating_sub(cap_bytes),
                ),
            };
            if (least_count, least_bytes) == (0, 0) {
                break;
            }
            let passed = cursor.pass(runs, least_count, least_bytes, live_count)?;
            evicted.last_seq = passed.last_seq;
            evicted.last_ts_ms = passed.ts_ms;
            evicted.gone.count += passed.count;
            evicted.gone.bytes += passed.bytes;
            if !self.removed.has_absent_in(passed.last_seq + 1..=run_last_seq) {
                freed.entries.push(run.entry.index);
            }
        }
        let next = cursor.run(runs)?;
        if evicted.gone.count == 0 {
            // A summary that is wrong must not move a floor, least of all back.
            debug_assert!(false, "a block holds nothing of what it counts: {block:?}");
            return Ok(None);
        }
        if next.is_none() && !is_open {
            self.summaries.pop_front();
            self.forget_sealed(block.first_seq);
            freed.blocks.push(Key::Topic(extent.epoch, TopicKey::Runs(block.first_seq)));
        } else {
            self.front = Some(cursor);
            if let Some(summary) = self.summaries.front_mut() {
                summary.count -= evicted.gone.count;
                summary.bytes -= evicted.gone.bytes;
                summary.first_ts_ms = next.map_or(summary.last_ts_ms, |run| run.ts_ms);
            }
        }
        Ok(Some(evicted))
    }
}
