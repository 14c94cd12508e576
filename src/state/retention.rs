//! Retention: what goes by age and by caps, and how it is told.
//!
//! Live records are always the newest ones, so retention only ever moves a floor upwards: by whole blocks,
//! which nothing has to be read for, and within the oldest block run by run. Both are decided by what the
//! command and the state say: cluster time and counts.
//!
//! Where the floor comes to lie within a block that only the checkpoint has, the block is needed. Applying
//! must not wait for a disk, so [`Topic::missing_block`] is asked first, before anything has changed, and
//! whoever drives the state fetches the block and tries again.
//!
//! Why records went is kept as one floor per reason, one above the last record that went for it. As only
//! the oldest go, a reason has contributed to a gap exactly if its floor is above where the gap begins.

use super::blocks::{Blocks, Summary};
use super::checkpoint_form::Key;
use super::garbage::EvictedBlock;
use super::run::{FrontCursor, SealedBlock};
use super::topic::{Topic, TopicKey};
use super::topic_config::{Discard, TopicConfig};
use crate::codec::Malformed;

/// Why records went that nobody asked to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Cap,
    Ttl,
    /// Both contributed.
    Mixed,
}

impl Reason {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Cap => "cap",
            Reason::Ttl => "ttl",
            Reason::Mixed => "mixed",
        }
    }
}

/// What retention has taken from a topic so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floors {
    /// 1 above the highest seq of a live record that a cap took, and that age took.
    pub cap: u64,
    pub ttl: u64,
    /// Time of the youngest record taken by either; 0 if none.
    pub evicted_ts_ms: u64,
}

impl Default for Floors {
    fn default() -> Self {
        Floors { cap: 1, ttl: 1, evicted_ts_ms: 0 }
    }
}

impl Floors {
    /// 1 above the highest seq that was taken without being asked for.
    pub fn evict(&self) -> u64 {
        self.cap.max(self.ttl)
    }

    /// Why a reader who has read up to `cursor` misses records; `None` if it does not.
    pub fn gap_after(&self, cursor: u64) -> Option<Reason> {
        match (self.cap > cursor.saturating_add(1), self.ttl > cursor.saturating_add(1)) {
            (true, true) => Some(Reason::Mixed),
            (true, false) => Some(Reason::Cap),
            (false, true) => Some(Reason::Ttl),
            (false, false) => None,
        }
    }
}

/// Which of the oldest records have to go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Goal {
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
fn cap_or_max(cap: u64) -> u64 {
    if cap == 0 { u64::MAX } else { cap }
}

/// What retention gave up since the last checkpoint, to be freed once that is on disk.
#[derive(Debug, Default)]
pub struct Freed {
    /// Indexes of log entries: one reference of each is gone.
    pub entries: Vec<u64>,
    /// Blocks that hold nothing more; their entries are among `entries`.
    pub(super) blocks: Vec<Key>,
    /// Blocks that were given up unread.
    pub unread: Vec<EvictedBlock>,
}

/// Live records taken away.
struct Evicted {
    last_seq: u64,
    last_ts_ms: u64,
    count: u64,
    bytes: u64,
}

impl Blocks {
    /// Takes the oldest records until `goal` is met or the part of one block that is in memory is done;
    /// `None` if it is met. `count` and `bytes` are those of the whole topic.
    fn evict_some(
        &mut self,
        goal: Goal,
        (epoch, earliest_seq): (u64, u64),
        (count, bytes): (u64, u64),
        freed: &mut Freed,
    ) -> Result<Option<Evicted>, Malformed> {
        let Some(block) = self.summaries.front().copied() else { return Ok(None) };
        if !goal.touches(&block, count, bytes) {
            return Ok(None);
        }
        let is_open = block.first_seq == self.open.first_seq();
        let runs = match is_open {
            true => Some(self.open.bytes()),
            false => {
                let sealed = self.unsaved.get(&block.first_seq);
                sealed.or_else(|| self.fetched.get(&block.first_seq)).map(|bytes| &bytes[..])
            }
        };
        let Some(runs) = runs else {
            if !goal.takes_whole(&block, count, bytes) {
                return Err(Malformed("topic: a block that retention needs is not in memory"));
            }
            self.summaries.pop_front();
            self.front = None;
            let next_seq = self.summaries.front().map_or(block.first_seq, |next| next.first_seq);
            freed.unread.push(EvictedBlock {
                epoch,
                first_seq: block.first_seq,
                live_from_seq: earliest_seq,
                removed: self.removed.part(block.first_seq..=next_seq - 1),
            });
            return Ok(Some(Evicted {
                last_seq: self.removed.previous_absent(next_seq - 1),
                last_ts_ms: block.last_ts_ms,
                count: block.count,
                bytes: block.bytes,
            }));
        };
        let mut cursor = match self.front.take() {
            Some(cursor) => cursor,
            None => FrontCursor::at(block.first_seq, runs, earliest_seq)?,
        };
        let mut evicted = Evicted { last_seq: 0, last_ts_ms: 0, count: 0, bytes: 0 };
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
                    (count - evicted.count).saturating_sub(cap_records),
                    (bytes - evicted.bytes).saturating_sub(cap_bytes),
                ),
            };
            if (least_count, least_bytes) == (0, 0) {
                break;
            }
            let passed = cursor.pass(runs, least_count, least_bytes, live_count)?;
            evicted.last_seq = passed.last_seq;
            evicted.last_ts_ms = passed.ts_ms;
            evicted.count += passed.count;
            evicted.bytes += passed.bytes;
            if !self.removed.has_absent_in(passed.last_seq + 1..=run_last_seq) {
                freed.entries.push(run.entry.index);
            }
        }
        let next = cursor.run(runs)?;
        if next.is_none() && !is_open {
            self.summaries.pop_front();
            self.unsaved.remove(&block.first_seq);
            self.fetched.remove(&block.first_seq);
            freed.blocks.push(Key::Topic(epoch, TopicKey::Runs(block.first_seq)));
        } else {
            self.front = Some(cursor);
            if let Some(summary) = self.summaries.front_mut() {
                summary.count -= evicted.count;
                summary.bytes -= evicted.bytes;
                summary.first_ts_ms = next.map_or(summary.last_ts_ms, |run| run.ts_ms);
            }
        }
        Ok(Some(evicted))
    }

    /// The block that is needed to meet `goal` and is not in memory.
    fn missing_block(&self, goal: Goal, (mut count, mut bytes): (u64, u64)) -> Option<u64> {
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
}

impl Topic {
    /// When the oldest record expires: the first millisecond at which it is gone. `None` if it never does.
    pub fn next_due_ms(&self) -> Option<u64> {
        let oldest = self.blocks.summaries.front().filter(|block| block.count > 0)?;
        let ttl_ms = self.config.ttl_ms;
        (ttl_ms > 0).then(|| oldest.first_ts_ms.saturating_add(ttl_ms).saturating_add(1))
    }

    /// The first seq of a block that must be supplied before a command is applied at `now_ms` that brings
    /// records of this number and size, or this configuration.
    pub fn missing_block(
        &self,
        now_ms: u64,
        (new_count, new_bytes): (u64, u64),
        new_config: Option<&TopicConfig>,
    ) -> Option<u64> {
        let config = new_config.unwrap_or(&self.config);
        let goals = [Goal::of_ttl(&self.config, now_ms), Goal::of_ttl(config, now_ms), Goal::of_caps(config)];
        let totals = (self.count + new_count, self.bytes + new_bytes);
        goals.into_iter().flatten().find_map(|goal| self.blocks.missing_block(goal, totals))
    }

    /// Keeps a block in memory that was missing.
    pub fn supply_block(&mut self, block: SealedBlock) {
        self.blocks.fetched.insert(block.first_seq, block.bytes);
    }

    /// Takes what is expired at `now_ms`.
    pub(super) fn expire(&mut self, now_ms: u64, freed: &mut Freed) -> Result<(), Malformed> {
        match Goal::of_ttl(&self.config, now_ms) {
            Some(goal) => self.evict(goal, Reason::Ttl, freed),
            None => Ok(()),
        }
    }

    /// Takes what is too much for the caps.
    pub(super) fn keep_within_caps(&mut self, freed: &mut Freed) -> Result<(), Malformed> {
        match Goal::of_caps(&self.config) {
            Some(goal) => self.evict(goal, Reason::Cap, freed),
            None => Ok(()),
        }
    }

    fn evict(&mut self, goal: Goal, reason: Reason, freed: &mut Freed) -> Result<(), Malformed> {
        loop {
            let (place, totals) = ((self.epoch, self.earliest_seq), (self.count, self.bytes));
            let Some(evicted) = self.blocks.evict_some(goal, place, totals, freed)? else { return Ok(()) };
            self.count -= evicted.count;
            self.bytes -= evicted.bytes;
            self.earliest_seq = self.blocks.removed.next_absent(evicted.last_seq + 1);
            self.blocks.removed.forget_below(self.earliest_seq);
            let floor = if reason == Reason::Cap { &mut self.floors.cap } else { &mut self.floors.ttl };
            *floor = evicted.last_seq + 1;
            self.floors.evicted_ts_ms = evicted.last_ts_ms;
            self.origins.forget_gaps_below(self.floors.evict());
            self.set_dirty();
        }
    }
}

/// Whether a topic of this configuration may hold as much, if it refuses what is too much.
pub(super) fn fits(config: &TopicConfig, count: u64, bytes: u64) -> bool {
    config.discard == Discard::Old
        || (count <= cap_or_max(config.cap_records) && bytes <= cap_or_max(config.cap_bytes))
}
