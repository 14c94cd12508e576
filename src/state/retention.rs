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

use super::blocks::{Goal, cap_or_max};
use super::checkpoint_form::Key;
use super::garbage::EvictedBlocks;
use super::topic::Topic;
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

/// What retention gave up since the last checkpoint, to be freed once that is on disk.
#[derive(Debug, Default)]
pub struct Freed {
    /// Indexes of log entries: one reference of each is gone.
    pub entries: Vec<u64>,
    /// Blocks that hold nothing more; their entries are among `entries`.
    pub(super) blocks: Vec<Key>,
    /// Blocks that were given up unread.
    pub unread: Vec<EvictedBlocks>,
}

impl Topic {
    /// When the oldest record expires: the first millisecond at which it is gone. `None` if it never does.
    pub fn next_due_ms(&self) -> Option<u64> {
        let oldest = self.blocks.summaries().front().filter(|block| block.count > 0)?;
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
        let earliest_seq = self.earliest_seq;
        // How many turns it takes depends on which blocks are in memory, which differs from member to member: what
        // they come to must not.
        while let Some(evicted) = self.blocks.evict_some(goal, self.extent(), freed)? {
            self.count -= evicted.gone.count;
            self.bytes -= evicted.gone.bytes;
            self.earliest_seq = self.blocks.raise_floor(evicted.last_seq + 1);
            let floor = if reason == Reason::Cap { &mut self.floors.cap } else { &mut self.floors.ttl };
            *floor = evicted.last_seq + 1;
            self.floors.evicted_ts_ms = evicted.last_ts_ms;
            self.set_dirty();
        }
        if self.earliest_seq > earliest_seq {
            self.origins.forget_gaps_below(self.floors.evict());
            self.forget_own_below_floor();
        }
        Ok(())
    }

    /// To be called once for whatever has raised the floor: what it forgets decides about gaps that are told later.
    pub(super) fn forget_own_below_floor(&mut self) {
        if let Some(summed_to_seq) = self.origins.own.forget_below(self.earliest_seq) {
            self.digest.add(summed_to_seq);
        }
    }
}

/// Whether a topic of this configuration may hold as much, if it refuses what is too much.
pub(super) fn fits(config: &TopicConfig, count: u64, bytes: u64) -> bool {
    config.discard == Discard::Old
        || (count <= cap_or_max(config.cap_records) && bytes <= cap_or_max(config.cap_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::EntryId;

    /// However many blocks are given up unread at once, it is one thing to note.
    #[test]
    fn whole_blocks_go_unread_and_together() {
        let mut topic = Topic::new("t".into(), 1, TopicConfig::default());
        let (mut freed, sizes) = (Freed::default(), (0..250).collect::<Vec<u32>>());
        for index in 1..400 {
            topic.append(EntryId { term: 1, index }, 0, 1000 + index, &sizes, None, &mut freed);
        }
        let blocks = topic.blocks.summaries().len();
        topic.blocks.saved_up_to(topic.head_seq);
        topic.config.ttl_ms = 1;
        assert_eq!(topic.missing_block(5000, (0, 0), None), None, "no block has to be read");
        topic.expire(5000, &mut freed).expect("nothing is needed");
        assert_eq!((topic.count, topic.bytes, topic.earliest_seq), (0, 0, topic.head_seq + 1));
        assert_eq!(freed.unread.len(), 1);
        assert_eq!(freed.unread[0].first_seqs.len(), blocks - 1);
        assert_eq!((freed.unread[0].first_seqs[0], freed.unread[0].live_from_seq), (1, 1));
        assert_eq!(topic.floors.evict(), topic.head_seq + 1);
        topic.check(true).expect("what must hold does");
    }
}
