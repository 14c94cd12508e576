//! The memory of idempotency keys, per topic.
//!
//! A key lives in the replicated state, beside the append that it guards, because memory kept beside the
//! log can disagree with it: a key could be remembered for a write that was never stored.
//!
//! Any client with a write key fills this memory, on every member at once. So a key is not kept but its
//! digest, 16 bytes under the topic's epoch, and a key costs at most 48 bytes: a record of 32 and its
//! place in the index. How many there are is a quota of the cluster (`state/quota.rs`); a key is never
//! forgotten inside its window to make room. Those whose window is over go with the next keyed append, or
//! by the leader's timer (`state/expiry.rs`), in the order in which they came.
//!
//! Keys have ordinals in that order, and stand in blocks of [`KEYS_PER_BLOCK`], each one checkpoint value.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

use hashbrown::HashTable;
use sha2::{Digest, Sha256};

use crate::codec::Malformed;
use crate::limits::KEY_DUE_STEP_MS;

/// Keys in one block.
const KEYS_PER_BLOCK: u64 = 128;
/// Bytes of one key: digest, time, first seq, count.
const KEY_BYTES: usize = 32;
const DIGEST_BYTES: usize = 16;
/// Bytes of a time, in milliseconds: enough for 8900 years.
const TS_BYTES: usize = 6;
/// An index for so few keys is not worth making smaller.
const MIN_SHRUNK: usize = 256;

/// What stands for a key of one topic instance. Nobody finds two keys with the same one: that takes 2^64
/// trials.
pub type KeyDigest = [u8; DIGEST_BYTES];

/// The digest of `key` in the topic instance of this epoch.
pub fn digest_of(epoch: u64, key: &str) -> KeyDigest {
    let mut hasher = Sha256::new();
    hasher.update(epoch.to_le_bytes());
    hasher.update(key.as_bytes());
    let whole = hasher.finalize();
    std::array::from_fn(|at| whole[at])
}

/// What a repeat of a keyed append is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    pub ts_ms: u64,
    pub first_seq: u64,
    /// Records of the append: at most [`crate::limits::MAX_RECORDS_PER_WRITE`].
    pub count: u64,
}

impl Remembered {
    /// The topic's head right after the append.
    pub fn head_seq(&self) -> u64 {
        self.first_seq + self.count - 1
    }
}

/// A key as it is stored.
type KeyRecord = [u8; KEY_BYTES];

fn to_record(digest: KeyDigest, remembered: Remembered) -> KeyRecord {
    let Remembered { ts_ms, first_seq, count } = remembered;
    debug_assert!(ts_ms < 1 << (8 * TS_BYTES) && count <= u64::from(u16::MAX));
    let mut record = [0; KEY_BYTES];
    record[..16].copy_from_slice(&digest);
    record[16..22].copy_from_slice(&ts_ms.to_le_bytes()[..TS_BYTES]);
    record[22..30].copy_from_slice(&first_seq.to_le_bytes());
    record[30..].copy_from_slice(&(count as u16).to_le_bytes());
    record
}

fn digest_in(record: &KeyRecord) -> &[u8] {
    &record[..DIGEST_BYTES]
}

fn remembered_in(record: &KeyRecord) -> Remembered {
    let number = |at: usize, len: usize| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&record[at..at + len]);
        u64::from_le_bytes(bytes)
    };
    Remembered { ts_ms: number(16, TS_BYTES), first_seq: number(22, 8), count: number(30, 2) }
}

/// Where a digest goes in an index. Seeded per process: digests can be chosen by clients, places in the
/// index cannot. Nothing in the state depends on it.
fn place_of(digest: &[u8]) -> u64 {
    static SEED: OnceLock<RandomState> = OnceLock::new();
    SEED.get_or_init(RandomState::new).hash_one(digest)
}

/// The keys of one topic instance.
#[derive(Debug, Default)]
pub struct Dedupe {
    /// All that is known, by ordinal; the first block may begin with keys that are forgotten.
    blocks: VecDeque<Vec<KeyRecord>>,
    /// Ordinals by digest, their lower half: fewer than 2^32 keys are known at a time.
    index: HashTable<u32>,
    /// Keys ever forgotten: the ordinal of the oldest one that is known.
    floor: u64,
    /// Keys ever remembered: the ordinal of the next one.
    end: u64,
    /// The first block that the checkpoint may hold, by the ordinal of its first key.
    stored_from: u64,
    /// Up to which key the checkpoint holds them.
    stored_end: u64,
}

fn block_of(ordinal: u64) -> u64 {
    ordinal - ordinal % KEYS_PER_BLOCK
}

impl Dedupe {
    /// Keys that are known.
    pub fn len(&self) -> u64 {
        self.end - self.floor
    }

    /// Ordinal of the oldest key that is known.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// When the oldest key is to be forgotten at the latest; `None` without keys. Rounded up, so that the keys
    /// of a second are forgotten together, and a topic that is written all the time is never due.
    pub fn due_ms(&self, window_ms: u64) -> Option<u64> {
        let oldest = self.record(self.floor)?;
        let end_ms = remembered_in(oldest).ts_ms.saturating_add(window_ms).saturating_add(1);
        Some(end_ms.checked_next_multiple_of(KEY_DUE_STEP_MS).unwrap_or(u64::MAX))
    }

    /// Forgets at most `most` of the keys whose window is over: strictly more than `window_ms` before `now_ms`. Says how
    /// many.
    pub fn forget_over(&mut self, now_ms: u64, window_ms: u64, most: u64) -> u64 {
        let floor_before = self.floor;
        while self.floor - floor_before < most
            && let Some(record) = self.record(self.floor)
            && is_over(remembered_in(record).ts_ms, now_ms, window_ms)
        {
            self.forget_oldest();
        }
        let forgotten = self.floor - floor_before;
        self.give_memory_back();
        forgotten
    }

    fn give_memory_back(&mut self) {
        if self.floor == self.end {
            // Ordinals may be left out: so that the block that is left over can go too.
            self.end = self.end.next_multiple_of(KEYS_PER_BLOCK);
            self.floor = self.end;
            self.blocks = VecDeque::new();
            self.index = HashTable::new();
        } else if self.index.len() * 4 < self.index.capacity() && self.index.capacity() > MIN_SHRUNK {
            let (blocks, floor) = (&self.blocks, self.floor);
            let place = |short: &u32| {
                record_at(blocks, floor, ordinal_of(*short, floor))
                    .map_or(0, |record| place_of(digest_in(record)))
            };
            self.index.shrink_to(self.index.len() * 2, place);
        }
    }

    /// The append that had the key of this digest, if its window is not over at `now_ms`.
    pub fn get(&self, digest: &KeyDigest, now_ms: u64, window_ms: u64) -> Option<Remembered> {
        let is_it = |short: &u32| self.is_digest_of(*short, digest);
        let short = self.index.find(place_of(digest), is_it)?;
        let remembered = remembered_in(self.record(ordinal_of(*short, self.floor))?);
        (!is_over(remembered.ts_ms, now_ms, window_ms)).then_some(remembered)
    }

    /// Remembers an append at the end of a lookup that found nothing.
    pub fn insert(&mut self, digest: KeyDigest, remembered: Remembered) {
        self.push(to_record(digest, remembered));
    }

    fn push(&mut self, record: KeyRecord) {
        let ordinal = self.end;
        match self.blocks.back_mut() {
            Some(block) if !ordinal.is_multiple_of(KEYS_PER_BLOCK) => block.push(record),
            _ => self.blocks.push_back(vec![record]),
        }
        self.end += 1;
        let digest = digest_in(&record);
        let (blocks, floor) = (&self.blocks, self.floor);
        let of_short = |short: &u32| record_at(blocks, floor, ordinal_of(*short, floor)).map(digest_in);
        // A key may still be known whose window is over: the newer one counts, and forgetting the older one
        // leaves the newer one alone.
        let entry = self.index.entry(
            place_of(digest),
            |short| of_short(short) == Some(digest),
            |short| of_short(short).map_or(0, place_of),
        );
        match entry {
            hashbrown::hash_table::Entry::Occupied(mut known) => *known.get_mut() = ordinal as u32,
            hashbrown::hash_table::Entry::Vacant(vacant) => drop(vacant.insert(ordinal as u32)),
        }
    }

    fn forget_oldest(&mut self) {
        let ordinal = self.floor;
        let Some(record) = self.record(ordinal).copied() else { return };
        if let Ok(entry) =
            self.index.find_entry(place_of(digest_in(&record)), |short| *short == ordinal as u32)
        {
            entry.remove();
        }
        self.floor += 1;
        if self.floor.is_multiple_of(KEYS_PER_BLOCK) {
            self.blocks.pop_front();
        }
    }

    fn record(&self, ordinal: u64) -> Option<&KeyRecord> {
        record_at(&self.blocks, self.floor, ordinal)
    }

    fn is_digest_of(&self, short: u32, digest: &[u8]) -> bool {
        self.record(ordinal_of(short, self.floor)).is_some_and(|record| digest_in(record) == digest)
    }

    /// Hands every block that changed since the last call to `store`, by first ordinal; `None` deletes it.
    pub fn take_changes(&mut self, mut store: impl FnMut(u64, Option<Vec<u8>>)) {
        let first_known = block_of(self.floor);
        for first in (self.stored_from..first_known.min(self.stored_end)).step_by(KEYS_PER_BLOCK as usize) {
            store(first, None);
        }
        self.stored_from = first_known.max(self.stored_from);
        if self.stored_end < self.end {
            let first_changed = block_of(self.stored_end.max(first_known));
            let unchanged = ((first_changed - first_known) / KEYS_PER_BLOCK) as usize;
            let firsts = (first_changed..).step_by(KEYS_PER_BLOCK as usize);
            for (first, block) in firsts.zip(self.blocks.iter().skip(unchanged)) {
                store(first, Some(block.concat()));
            }
        }
        self.stored_end = self.end;
    }

    /// First ordinals of all blocks that a checkpoint may hold, also those that it is yet to delete.
    pub fn stored_blocks(&self) -> impl Iterator<Item = u64> + use<> {
        (self.stored_from..self.stored_end).step_by(KEYS_PER_BLOCK as usize)
    }

    /// The memory that a stored topic begins with: keys below ordinal `floor` are forgotten. Blocks follow.
    pub fn restored_at(floor: u64) -> Self {
        let first = block_of(floor);
        Dedupe { floor, end: floor, stored_from: first, stored_end: first, ..Dedupe::default() }
    }

    /// Takes in one stored block; they come in order.
    pub fn restore_block(&mut self, first: u64, bytes: &[u8]) -> Result<(), Malformed> {
        const DAMAGED: Malformed = Malformed("block of idempotency keys");
        let (records, []) = bytes.as_chunks::<KEY_BYTES>() else { return Err(DAMAGED) };
        let count = records.len() as u64;
        if first != block_of(self.end) || count > KEYS_PER_BLOCK || first + count <= self.end {
            return Err(DAMAGED);
        }
        let forgotten = (self.end - first) as usize;
        if forgotten > 0 {
            // They keep their places, so that those behind them have theirs.
            self.blocks.push_back(records[..forgotten].to_vec());
        }
        records[forgotten..].iter().for_each(|record| self.push(*record));
        self.stored_end = first + count;
        Ok(())
    }
}

/// Whether the window of a key from `ts_ms` is over.
fn is_over(ts_ms: u64, now_ms: u64, window_ms: u64) -> bool {
    now_ms.saturating_sub(ts_ms) > window_ms
}

/// The record of a key that is known.
fn record_at(blocks: &VecDeque<Vec<KeyRecord>>, floor: u64, ordinal: u64) -> Option<&KeyRecord> {
    let from_first = ordinal.checked_sub(block_of(floor))?;
    blocks.get((from_first / KEYS_PER_BLOCK) as usize)?.get((from_first % KEYS_PER_BLOCK) as usize)
}

/// The ordinal whose lower half is `short`, at or above `floor`.
fn ordinal_of(short: u32, floor: u64) -> u64 {
    floor + u64::from(short.wrapping_sub(floor as u32))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn at(ts_ms: u64) -> Remembered {
        Remembered { ts_ms, first_seq: ts_ms + 1, count: 1 + ts_ms % 10_000 }
    }

    fn key(number: u64) -> KeyDigest {
        digest_of(7, &format!("key-{number}"))
    }

    /// What is stored of it, as a checkpoint holds it.
    fn store(dedupe: &mut Dedupe, stored: &mut BTreeMap<u64, Vec<u8>>) {
        dedupe.take_changes(|first, bytes| match bytes {
            Some(bytes) => drop(stored.insert(first, bytes)),
            None => drop(stored.remove(&first)),
        });
    }

    fn restored(floor: u64, stored: &BTreeMap<u64, Vec<u8>>) -> Dedupe {
        let mut dedupe = Dedupe::restored_at(floor);
        for (first, bytes) in stored {
            dedupe.restore_block(*first, bytes).unwrap();
        }
        dedupe
    }

    #[test]
    fn a_key_is_new_again_strictly_after_its_window_forgotten_or_not() {
        let mut dedupe = Dedupe::default();
        dedupe.insert(key(0), at(1000));
        assert_eq!(dedupe.get(&key(0), 1100, 100), Some(at(1000)));
        assert_eq!(dedupe.get(&key(0), 1101, 100), None);
        assert_eq!(dedupe.forget_over(1100, 100, 9), 0);
        assert_eq!(dedupe.forget_over(1101, 100, 9), 1);
        assert_eq!(dedupe.get(&key(0), 1000, 100), None);
    }

    #[test]
    fn a_key_used_again_after_its_window_outlives_its_earlier_use() {
        let mut dedupe = Dedupe::default();
        dedupe.insert(key(0), at(1000));
        dedupe.insert(key(0), at(2000));
        assert_eq!(dedupe.forget_over(2000, 100, 9), 1);
        assert_eq!(dedupe.get(&key(0), 2000, 100), Some(at(2000)));
    }

    #[test]
    fn a_key_costs_at_most_48_bytes_at_any_number_of_keys() {
        let mut dedupe = Dedupe::default();
        for number in 0..200_000 {
            dedupe.insert(key(number), at(number));
            if number < 1000 || !(number + 1).is_power_of_two() && number % 4999 != 0 {
                continue;
            }
            let index_bytes = dedupe.index.allocation_size();
            let blocks_bytes: usize = dedupe.blocks.iter().map(|block| block.capacity() * KEY_BYTES).sum();
            let list_bytes = dedupe.blocks.capacity() * size_of::<Vec<KeyRecord>>();
            let bytes = index_bytes + blocks_bytes + list_bytes;
            assert!(bytes as u64 <= 48 * dedupe.len(), "{bytes} bytes for {} keys", dedupe.len());
        }
        dedupe.forget_over(u64::MAX, 0, u64::MAX);
        assert_eq!((dedupe.len(), dedupe.blocks.capacity(), dedupe.index.allocation_size()), (0, 0, 0));
    }

    #[test]
    fn damaged_blocks_are_refused() {
        let mut stored = BTreeMap::new();
        let mut dedupe = Dedupe::default();
        (0..300).for_each(|number| dedupe.insert(key(number), at(number)));
        store(&mut dedupe, &mut stored);
        assert!(Dedupe::default().restore_block(0, &stored[&0][1..]).is_err());
        assert!(Dedupe::default().restore_block(128, &stored[&128]).is_err());
        assert!(Dedupe::default().restore_block(0, &stored[&0].repeat(2)).is_err());
        assert!(Dedupe::restored_at(128).restore_block(0, &stored[&0]).is_err());
        assert!(Dedupe::default().restore_block(0, &[]).is_err());
    }

    proptest! {
        /// Against a list of keys and times; the restored memory goes on in its place.
        #[test]
        fn a_restart_restores_exactly_the_keys_that_are_known(
            steps in proptest::collection::vec((0u64..400, 0u64..3, 0u64..40, any::<bool>()), 1..1500),
        ) {
            const WINDOW_MS: u64 = 300;
            let (mut dedupe, mut stored, mut now_ms) = (Dedupe::default(), BTreeMap::new(), 0);
            let mut model: BTreeMap<u64, Remembered> = BTreeMap::new();
            for (number, pass_ms, pause, restarts) in steps {
                now_ms += pass_ms + if pause == 0 { 350 } else { 0 };
                dedupe.forget_over(now_ms, WINDOW_MS, 5);
                let known = model.get(&number).filter(|known| now_ms - known.ts_ms <= WINDOW_MS).copied();
                prop_assert_eq!(dedupe.get(&key(number), now_ms, WINDOW_MS), known);
                if known.is_none() {
                    dedupe.insert(key(number), at(now_ms));
                    model.insert(number, at(now_ms));
                }
                if pause == 1 {
                    store(&mut dedupe, &mut stored);
                    prop_assert_eq!(dedupe.stored_blocks().collect::<Vec<_>>(), stored.keys().copied().collect::<Vec<_>>());
                }
                if pause == 1 && restarts {
                    let again = restored(dedupe.floor(), &stored);
                    prop_assert_eq!((again.len(), again.floor()), (dedupe.len(), dedupe.floor()));
                    dedupe = again;
                }
            }
        }
    }
}
