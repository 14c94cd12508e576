//! Which seqs of an origin were reported as lost.
//!
//! Unlike what was taken, a gap may be of any length, and another cluster says of which; so these are ranges, of
//! which there are never more than gaps, and not a bit per seq.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use crate::codec::{Malformed, Reader, put_varint};

/// A set of seqs that are few ranges.
#[derive(Debug, Clone, Default)]
pub struct Reported {
    /// The last seq of each range by its first one. None overlaps or touches the next.
    ranges: BTreeMap<u64, u64>,
    /// First seqs of ranges that changed since the last checkpoint.
    dirty: BTreeSet<u64>,
}

impl Reported {
    /// Takes in a range.
    pub fn insert(&mut self, range: RangeInclusive<u64>) {
        let (mut first, mut last) = range.into_inner();
        while let Some((start, end)) = self.range_at(last.saturating_add(1))
            && end.saturating_add(1) >= first
        {
            self.ranges.remove(&start);
            self.dirty.insert(start);
            (first, last) = (first.min(start), last.max(end));
        }
        self.ranges.insert(first, last);
        self.dirty.insert(first);
    }

    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    /// `range` and what lies between it and the range before it, or behind it if there is none: taking that in makes
    /// no further range.
    pub fn up_to_neighbour(&self, range: RangeInclusive<u64>) -> RangeInclusive<u64> {
        let (first, last) = range.into_inner();
        if let Some((_, end)) = self.range_at(first) {
            return first.min(end.saturating_add(1))..=last;
        }
        let next = self.ranges.range(first..).next();
        first..=next.map_or(last, |(start, _)| last.max(start.saturating_sub(1)))
    }

    /// The last range that begins at `seq` or before.
    fn range_at(&self, seq: u64) -> Option<(u64, u64)> {
        self.ranges.range(..=seq).next_back().map(|(start, end)| (*start, *end))
    }

    /// The range of the set that `seq` is in.
    pub fn range_of(&self, seq: u64) -> Option<RangeInclusive<u64>> {
        self.range_at(seq).filter(|(_, end)| *end >= seq).map(|(start, end)| start..=end)
    }

    /// The stretches of seqs that are in the set, in order, none touching the next.
    pub fn stretches(&self) -> impl Iterator<Item = RangeInclusive<u64>> {
        self.ranges.iter().map(|(first, last)| *first..=*last)
    }

    /// First seqs of all ranges that a checkpoint may hold.
    pub fn stored(&self) -> impl Iterator<Item = u64> {
        self.ranges.keys().chain(&self.dirty).copied()
    }

    /// Hands every range that changed since the last call to `store`; nothing for one that is gone.
    pub fn take_changes(&mut self, mut store: impl FnMut(u64, Option<Vec<u8>>)) {
        for first in std::mem::take(&mut self.dirty) {
            let length = self.ranges.get(&first).map(|last| {
                let mut out = Vec::new();
                put_varint(&mut out, last - first);
                out
            });
            store(first, length);
        }
    }

    /// Takes in a stored range.
    pub fn restore(&mut self, first: u64, bytes: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(bytes, "reported seqs");
        let last = first.checked_add(reader.varint()?).ok_or(reader.malformed())?;
        reader.finish()?;
        self.ranges.insert(first, last);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_set_is_a_set_and_comes_back(
            inserted in proptest::collection::vec((1u64..90, 0u64..20), 0..12),
            looked_at in proptest::collection::vec(1u64..110, 20),
            saved_after in 0usize..12,
        ) {
            let (mut reported, mut naive) = (Reported::default(), BTreeSet::new());
            let mut stored = BTreeMap::new();
            let save = |reported: &mut Reported, stored: &mut BTreeMap<u64, Vec<u8>>| {
                reported.take_changes(|first, value| {
                    match value {
                        Some(value) => stored.insert(first, value),
                        None => stored.remove(&first),
                    };
                });
            };
            for (at, (from, more)) in inserted.iter().enumerate() {
                reported.insert(*from..=from + more);
                naive.extend(*from..=from + more);
                if at == saved_after { save(&mut reported, &mut stored); }
            }
            prop_assert!(stored.keys().all(|first| reported.stored().any(|key| key == *first)));
            save(&mut reported, &mut stored);
            let mut restored = Reported::default();
            stored.iter().for_each(|(first, bytes)| restored.restore(*first, bytes).unwrap());
            for set in [&reported, &restored] {
                let ranges: Vec<_> = set.stretches().collect();
                prop_assert!(ranges.windows(2).all(|two| two[0].end() + 1 < *two[1].start()));
                prop_assert_eq!(&ranges.into_iter().flatten().collect::<BTreeSet<u64>>(), &naive);
                for seq in &looked_at {
                    let range = set.range_of(*seq);
                    prop_assert_eq!(range.is_some(), naive.contains(seq));
                    prop_assert!(range.is_none_or(|range| range.contains(seq)));
                }
            }
        }
    }

    #[test]
    fn what_reaches_up_to_its_neighbour_makes_no_further_range() {
        let mut reported = Reported::default();
        assert_eq!(reported.up_to_neighbour(5..=7), 5..=7);
        reported.insert(10..=20);
        for (range, expected) in
            [(5..=7, 5..=9), (30..=31, 21..=31), (15..=25, 15..=25), (5..=12, 5..=12), (5..=30, 5..=30)]
        {
            let more = reported.up_to_neighbour(range.clone());
            assert_eq!(more, expected);
            let mut with = reported.clone();
            with.insert(more);
            assert_eq!(with.count(), 1, "{range:?}");
        }
    }

    #[test]
    fn a_gap_of_any_length_is_one_range() {
        let mut reported = Reported::default();
        reported.insert(5..=u64::MAX - 1);
        reported.insert(1..=3);
        assert_eq!((reported.range_of(3), reported.range_of(4)), (Some(1..=3), None));
        reported.insert(2..=u64::MAX);
        assert_eq!(reported.range_of(u64::MAX), Some(1..=u64::MAX));
        assert_eq!(reported.stretches().count(), 1);
    }
}
