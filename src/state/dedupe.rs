//! The memory of idempotency keys, per topic.
//!
//! A key lives in the replicated state, beside the append that it guards, because memory kept beside the
//! log can disagree with it: a key could be remembered for a write that was never stored. Keys are
//! forgotten in the order in which they came, once their window in cluster time is over.
//!
//! Like runs, keys are stored in blocks: in order of arrival, each block one checkpoint value that is
//! written while it is open and deleted once all of its keys are forgotten. Each key has an ordinal, so
//! that a restart restores exactly the keys that were still known.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::limits::{MAX_IDEMPOTENCY_KEYS_PER_TOPIC, RUN_BLOCK_BYTES};

/// What a repeat of a keyed append is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    pub ts_ms: u64,
    pub first_seq: u64,
    pub count: u64,
    pub head_seq: u64,
}

/// The keys of one topic instance.
#[derive(Debug, Default)]
pub struct Dedupe {
    by_key: HashMap<Arc<str>, Remembered>,
    /// Keys and their times in order of arrival; the front one has ordinal `forgotten`.
    order: VecDeque<(Arc<str>, u64)>,
    /// Keys ever forgotten.
    forgotten: u64,
    /// First ordinal of each stored block, oldest first; the last one is open.
    blocks: VecDeque<u64>,
    open_bytes: Vec<u8>,
    open_is_dirty: bool,
    sealed: Vec<(u64, Vec<u8>)>,
    dropped: Vec<u64>,
}

impl Dedupe {
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Ordinal of the oldest key that is still known.
    pub fn floor(&self) -> u64 {
        self.forgotten
    }

    /// Forgets every key whose window is over: strictly more than `window_ms` before `now_ms`.
    pub fn expire(&mut self, now_ms: u64, window_ms: u64) {
        while let Some((_, ts_ms)) = self.order.front() {
            let is_over = now_ms.saturating_sub(*ts_ms) > window_ms;
            if !is_over && self.order.len() <= MAX_IDEMPOTENCY_KEYS_PER_TOPIC {
                return;
            }
            self.forget_oldest();
            while self.blocks.len() > 1 && self.blocks[1] <= self.forgotten {
                self.dropped.extend(self.blocks.pop_front());
            }
        }
    }

    fn forget_oldest(&mut self) {
        let Some((key, ts_ms)) = self.order.pop_front() else { return };
        self.forgotten += 1;
        // During a restore the same key may stand again further back: then the newer memory stays.
        if self.by_key.get(&key).is_some_and(|known| known.ts_ms == ts_ms) {
            self.by_key.remove(&key);
        }
    }

    pub fn get(&self, key: &str) -> Option<&Remembered> {
        self.by_key.get(key)
    }

    /// Remembers `key`, which must not be known.
    pub fn insert(&mut self, key: &str, remembered: Remembered) {
        let ordinal = self.forgotten + self.order.len() as u64;
        if self.blocks.is_empty() || self.open_bytes.len() + key.len() + 40 > RUN_BLOCK_BYTES {
            if let Some(first) = self.blocks.back() {
                self.sealed.push((*first, std::mem::take(&mut self.open_bytes)));
            }
            self.blocks.push_back(ordinal);
        }
        put_blob(&mut self.open_bytes, key.as_bytes());
        for number in [remembered.ts_ms, remembered.first_seq, remembered.count, remembered.head_seq] {
            put_varint(&mut self.open_bytes, number);
        }
        self.open_is_dirty = true;
        let key: Arc<str> = key.into();
        self.order.push_back((key.clone(), remembered.ts_ms));
        self.by_key.insert(key, remembered);
    }

    /// Hands every stored block that changed since the last call to `store`, by first ordinal; `None`
    /// deletes it.
    pub fn take_changes(&mut self, mut store: impl FnMut(u64, Option<Vec<u8>>)) {
        for (first, bytes) in self.sealed.drain(..) {
            store(first, Some(bytes));
        }
        for first in self.dropped.drain(..) {
            store(first, None);
        }
        if std::mem::take(&mut self.open_is_dirty)
            && let Some(first) = self.blocks.back()
        {
            store(*first, Some(self.open_bytes.clone()));
        }
    }

    /// First ordinals of all blocks that a checkpoint may hold, also those that it is yet to delete.
    pub fn stored_blocks(&self) -> impl Iterator<Item = u64> {
        self.dropped.iter().chain(&self.blocks).copied()
    }

    /// Takes in one stored block; blocks come in order, after which [`Dedupe::set_floor`] drops the keys
    /// that had been forgotten.
    pub fn restore_block(&mut self, first: u64, bytes: &[u8]) -> Result<(), Malformed> {
        if self.blocks.is_empty() {
            self.forgotten = first;
        }
        let mut reader = Reader::new(bytes, "block of idempotency keys");
        while !reader.is_empty() {
            let key: Arc<str> = reader.text()?.into();
            let remembered = Remembered {
                ts_ms: reader.varint()?,
                first_seq: reader.varint()?,
                count: reader.varint()?,
                head_seq: reader.varint()?,
            };
            self.order.push_back((key.clone(), remembered.ts_ms));
            self.by_key.insert(key, remembered);
        }
        self.blocks.push_back(first);
        self.open_bytes = bytes.to_vec();
        Ok(())
    }

    /// Ends a restore: keys below ordinal `floor` had been forgotten.
    pub fn set_floor(&mut self, floor: u64) {
        if self.blocks.is_empty() {
            self.forgotten = floor;
        }
        while self.forgotten < floor && !self.order.is_empty() {
            self.forget_oldest();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ts_ms: u64) -> Remembered {
        Remembered { ts_ms, first_seq: ts_ms, count: 1, head_seq: ts_ms }
    }

    #[test]
    fn a_key_is_new_again_strictly_after_its_window() {
        let mut dedupe = Dedupe::default();
        dedupe.insert("a", at(1000));
        dedupe.expire(1100, 100);
        assert!(dedupe.get("a").is_some());
        dedupe.expire(1101, 100);
        assert!(dedupe.get("a").is_none());
    }

    #[test]
    fn a_restart_restores_exactly_the_keys_still_known() {
        let mut dedupe = Dedupe::default();
        let mut stored = std::collections::BTreeMap::new();
        for step in 0..2000u64 {
            dedupe.expire(step, 700);
            dedupe.insert(&format!("key-{}", step % 1500), at(step));
            if step % 37 == 0 || step == 1999 {
                dedupe.take_changes(|first, bytes| {
                    match bytes {
                        Some(bytes) => stored.insert(first, bytes),
                        None => stored.remove(&first),
                    };
                });
            }
        }
        let mut restored = Dedupe::default();
        for (first, bytes) in &stored {
            restored.restore_block(*first, bytes).unwrap();
        }
        restored.set_floor(dedupe.floor());
        assert_eq!(restored.floor(), dedupe.floor());
        assert_eq!(restored.len(), dedupe.len());
        assert_eq!(restored.by_key, dedupe.by_key);
        assert_eq!(restored.stored_blocks().collect::<Vec<_>>(), stored.keys().copied().collect::<Vec<_>>());
    }
}
