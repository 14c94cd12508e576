//! Which entries of the log still hold something that a topic names.
//!
//! Derived, not replicated: what the topics' runs say, turned around. Applying an append adds its entry,
//! giving a run up for good (after the checkpoint no longer names it) releases it, and a start counts all
//! runs anew. So it needs no durability of its own, and a bug in it cannot make members differ.
//!
//! One *reference* is one coded run. Nearly every entry has exactly one, so a compressed set of indexes holds
//! those, and only entries with more (large batches, copies) stand in a map beside it: ten million live
//! entries cost little more than a megabyte. Indexes suffice, terms do not matter: what is applied is
//! committed, and there is one committed entry per index.
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use parking_lot::Mutex;
use roaring::RoaringTreemap;

/// The live entries of one log, shared by the state, which changes it, and the reclaimer, which asks it.
#[derive(Debug, Default)]
pub struct LiveEntries(Mutex<References>);

#[derive(Debug, Default)]
struct References {
    entries: RoaringTreemap,
    /// References beyond the first.
    further: BTreeMap<u64, u64>,
}

/// Entries released under one hold of the set.
const RELEASED_TOGETHER: usize = 4096;

impl References {
    fn release(&mut self, index: u64) {
        if let Some(further) = self.further.get_mut(&index) {
            *further -= 1;
            if *further == 0 {
                self.further.remove(&index);
            }
            return;
        }
        let was_live = self.entries.remove(index);
        debug_assert!(was_live, "entry {index} was released more often than it was added");
    }
}

impl LiveEntries {
    /// The entry at `index` got `references` more.
    pub fn add(&self, index: u64, references: u64) {
        let mut all = self.0.lock();
        let is_new = references > 0 && all.entries.insert(index);
        let further = references - u64::from(is_new);
        if further > 0 {
            *all.further.entry(index).or_default() += further;
        }
    }

    /// The entry at `index` lost one of its references; no stored run may name it by that one any more.
    pub fn release(&self, index: u64) {
        self.0.lock().release(index);
    }

    /// The same for many; whoever applies meanwhile gets its turn in between.
    pub fn release_all(&self, indexes: &[u64]) {
        for some in indexes.chunks(RELEASED_TOGETHER) {
            let mut all = self.0.lock();
            some.iter().for_each(|index| all.release(*index));
        }
    }

    pub fn contains(&self, index: u64) -> bool {
        self.0.lock().entries.contains(index)
    }

    /// Live entries.
    pub fn count(&self) -> u64 {
        self.0.lock().entries.len()
    }

    /// Live entries with an index in `range`.
    pub fn count_in(&self, range: RangeInclusive<u64>) -> u64 {
        self.0.lock().entries.range_cardinality(range)
    }

    /// Live indexes above `after` (all if `None`), rising, at most `max`.
    pub fn above(&self, after: Option<u64>, max: usize) -> Vec<u64> {
        let all = self.0.lock();
        let mut indexes = all.entries.iter();
        match after.map(|after| after.checked_add(1)) {
            Some(Some(from)) => indexes.advance_to(from),
            Some(None) => return Vec::new(),
            None => {}
        }
        indexes.take(max).collect()
    }

    /// Removes from `items` what is dead, by one look at the set.
    pub(super) fn retain<T>(&self, items: &mut Vec<T>, index_of: impl Fn(&T) -> u64) {
        let all = self.0.lock();
        items.retain(|item| all.entries.contains(index_of(item)));
    }

    /// The lowest live index that is in none of `ranges`, which rise and do not overlap.
    pub(super) fn first_outside(&self, ranges: impl Iterator<Item = RangeInclusive<u64>>) -> Option<u64> {
        let all = self.0.lock();
        let mut start = 0u64;
        for range in ranges {
            if let Some(before) = range.start().checked_sub(1).filter(|before| *before >= start)
                && all.entries.range_cardinality(start..=before) > 0
            {
                let below = start.checked_sub(1).map_or(0, |below| all.entries.rank(below));
                return all.entries.select(below);
            }
            start = start.max(range.end().saturating_add(1));
        }
        let below = start.checked_sub(1).map_or(0, |below| all.entries.rank(below));
        all.entries.select(below)
    }

    /// Forgets everything: the start of a rebuild. Whoever rebuilds holds a pin, so that nothing is freed
    /// meanwhile.
    pub fn clear(&self) {
        *self.0.lock() = References::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_live_until_its_last_reference_goes() {
        let live = LiveEntries::default();
        live.add(7, 1);
        live.add(7, 2);
        live.add(9, 1);
        for left in [true, true, false] {
            live.release(7);
            assert_eq!(live.contains(7), left);
        }
        assert_eq!((live.count(), live.count_in(8..=9)), (1, 1));
    }

    #[test]
    fn a_walk_goes_on_behind_where_it_stopped() {
        let live = LiveEntries::default();
        [3, 4, 10, 1 << 40].into_iter().for_each(|index| live.add(index, 1));
        assert_eq!(live.above(None, 2), [3, 4]);
        assert_eq!(live.above(Some(4), 9), [10, 1 << 40]);
        assert!(live.above(Some(1 << 40), 9).is_empty());
        assert!(live.above(Some(u64::MAX), 9).is_empty());
    }

    #[test]
    fn an_entry_outside_of_all_ranges_is_found() {
        let live = LiveEntries::default();
        [3, 4, 10, 1 << 40].into_iter().for_each(|index| live.add(index, 1));
        let outside = |ranges: &[(u64, u64)]| live.first_outside(ranges.iter().map(|r| r.0..=r.1));
        assert_eq!(outside(&[(0, 4), (9, 1 << 41)]), None);
        assert_eq!(outside(&[(0, 3), (5, 11)]), Some(4));
        assert_eq!(outside(&[(0, 8), (11, 1 << 41)]), Some(10));
        assert_eq!(outside(&[(0, 100)]), Some(1 << 40));
        assert_eq!(outside(&[]), Some(3));
    }

    #[test]
    fn ten_million_entries_cost_few_mebibytes() {
        let mut entries = RoaringTreemap::new();
        // Every second one, the worst case for this kind of set; a fifth of them, for the time it takes.
        (0..2_000_000u64).for_each(|number| {
            entries.insert(number * 2);
        });
        // A container is never larger than 8 KiB, for 65,536 indexes.
        let containers = entries.bitmaps().map(|(_, bitmap)| u64::from(bitmap.statistics().n_containers));
        let bytes = containers.sum::<u64>() * (8 << 10);
        assert!(bytes < 1 << 20, "{bytes} bytes for two million entries");
    }
}
