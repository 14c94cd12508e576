//! A set of seqs: which records of a topic were removed one by one, or which of another one were taken.
//!
//! Runs never change, so what a delete takes out of their middle is noted beside them, and what came by which way
//! is noted too: a bit per seq at most, in chunks of 32,768 seqs, each one value of the checkpoint of 4 KiB at most.
//! An empty set costs nothing, and a stretch without holes next to nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, LazyLock};

use bytes::BufMut;
use roaring::RoaringBitmap;

use crate::codec::{Malformed, Reader, put_varint};
use crate::limits::SEQ_LIMIT;

/// Seqs of one chunk.
pub(super) const CHUNK_SEQS: u64 = 32_768;

/// A chunk of which all is in the set: one for all sets, as most chunks of most sets are like this.
static FULL: LazyLock<Arc<RoaringBitmap>> = LazyLock::new(|| {
    let mut full = RoaringBitmap::new();
    full.insert_range(0..CHUNK_SEQS as u32);
    full.optimize();
    Arc::new(full)
});

const FORM_RANGES: u8 = 0;
const FORM_BITS: u8 = 1;

/// A set of seqs.
#[derive(Debug, Clone, Default)]
pub struct SeqSet {
    /// By number; none is empty. What they hold counts from the start of the chunk.
    /// Copies of the set share them until one of both changes.
    chunks: BTreeMap<u64, Arc<RoaringBitmap>>,
    /// Numbers of chunks that changed since the last checkpoint.
    dirty: BTreeSet<u64>,
}

impl SeqSet {
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The lowest seq.
    pub fn first(&self) -> Option<u64> {
        let (number, chunk) = self.chunks.first_key_value()?;
        Some(number * CHUNK_SEQS + u64::from(chunk.min()?))
    }

    pub fn contains(&self, seq: u64) -> bool {
        let chunk = self.chunks.get(&(seq / CHUNK_SEQS));
        chunk.is_some_and(|chunk| chunk.contains((seq % CHUNK_SEQS) as u32))
    }

    /// The first seq from `seq` on that is not in the set. Walks over all of the stretch that `seq` is in: who knows
    /// how far it matters asks [`SeqSet::next_absent_up_to`].
    pub fn next_absent(&self, seq: u64) -> u64 {
        self.next_absent_up_to(seq, u64::MAX).unwrap_or(u64::MAX)
    }

    /// The first seq from `seq` to `last` that is not in the set. Looks at no chunk behind `last`.
    pub fn next_absent_up_to(&self, seq: u64, last: u64) -> Option<u64> {
        if seq > last {
            return None;
        }
        let mut at = seq;
        let numbers = seq / CHUNK_SEQS..=last / CHUNK_SEQS;
        for (number, chunk) in self.chunks.range(numbers) {
            if *number != at / CHUNK_SEQS {
                break;
            }
            let place = (at % CHUNK_SEQS) as u32;
            let passed = stretch_from(chunk, place);
            at += passed;
            if u64::from(place) + passed < CHUNK_SEQS {
                break;
            }
        }
        (at <= last).then_some(at)
    }

    /// The last seq from `seq` down to `first` that is not in the set. Looks at no chunk before `first`.
    pub fn previous_absent_down_to(&self, seq: u64, first: u64) -> Option<u64> {
        if seq < first {
            return None;
        }
        let mut at = seq;
        let numbers = first / CHUNK_SEQS..=seq / CHUNK_SEQS;
        for (number, chunk) in self.chunks.range(numbers).rev() {
            if *number != at / CHUNK_SEQS {
                break;
            }
            let place = (at % CHUNK_SEQS) as u32;
            let passed = stretch_up_to(chunk, place);
            at = at.checked_sub(passed)?;
            if passed <= u64::from(place) {
                break;
            }
        }
        (at >= first).then_some(at)
    }

    /// The first seq from `seq` on that is in the set.
    pub fn next_present(&self, seq: u64) -> Option<u64> {
        let number = seq / CHUNK_SEQS;
        if let Some(chunk) = self.chunks.get(&number) {
            let mut rest = chunk.iter();
            rest.advance_to((seq % CHUNK_SEQS) as u32);
            if let Some(place) = rest.next() {
                return Some(number * CHUNK_SEQS + u64::from(place));
            }
        }
        let (number, chunk) = self.chunks.range(number + 1..).next()?;
        Some(number * CHUNK_SEQS + u64::from(chunk.min()?))
    }

    /// Whether all of `other` is in the set. Only for sets of which nothing was forgotten.
    pub fn includes(&self, other: &SeqSet) -> bool {
        let includes = |number, part: &Arc<RoaringBitmap>| {
            self.chunks.get(number).is_some_and(|chunk| part.is_subset(chunk))
        };
        other.chunks.iter().all(|(number, part)| includes(number, part))
    }

    /// The stretches of `range` that are not in the set, in order.
    pub fn absent_in(&self, range: RangeInclusive<u64>) -> impl Iterator<Item = RangeInclusive<u64>> {
        let (mut at, last) = range.into_inner();
        std::iter::from_fn(move || {
            let first = self.next_absent_up_to(at, last)?;
            let end = self.next_present(first).map_or(last, |present| last.min(present - 1));
            at = end.saturating_add(1);
            Some(first..=end)
        })
    }

    /// Whether anything of `range` is not in the set.
    pub fn has_absent_in(&self, range: RangeInclusive<u64>) -> bool {
        self.next_absent_up_to(*range.start(), *range.end()).is_some()
    }

    /// The stretches of seqs that are in the set, in order, none touching the next.
    pub fn stretches(&self) -> impl Iterator<Item = RangeInclusive<u64>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = self.next_present(at)?;
            let end = self.next_absent(first) - 1;
            at = end + 1;
            Some(first..=end)
        })
    }

    /// Takes in a range.
    pub fn insert(&mut self, range: RangeInclusive<u64>) {
        let (mut at, last) = range.into_inner();
        while at <= last {
            let number = at / CHUNK_SEQS;
            let start = number * CHUNK_SEQS;
            let end = last.min(start + CHUNK_SEQS - 1);
            let chunk = self.chunks.entry(number).or_default();
            Arc::make_mut(chunk).insert_range((at - start) as u32..=(end - start) as u32);
            if chunk.len() == CHUNK_SEQS {
                *chunk = FULL.clone();
            }
            self.dirty.insert(number);
            at = end + 1;
        }
    }

    /// Forgets what is below `seq`. Of a chunk that reaches above it nothing is forgotten: floors are looked at
    /// first wherever it matters.
    pub fn forget_below(&mut self, seq: u64) {
        while let Some(first) =
            self.chunks.first_entry().filter(|first| (first.key() + 1) * CHUNK_SEQS <= seq)
        {
            self.dirty.insert(*first.key());
            first.remove();
        }
    }

    /// The part of the set that lies in `range`.
    pub fn part(&self, range: RangeInclusive<u64>) -> SeqSet {
        let numbers = range.start() / CHUNK_SEQS..=range.end() / CHUNK_SEQS;
        let chunks = self.chunks.range(numbers).map(|(number, chunk)| (*number, chunk.clone()));
        SeqSet { chunks: chunks.collect(), dirty: BTreeSet::new() }
    }

    /// Numbers of all chunks that a checkpoint may hold.
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        self.chunks.keys().chain(&self.dirty).copied()
    }

    /// Hands every chunk that changed since the last call to `store`; nothing for one that is gone.
    pub fn take_changes(&mut self, mut store: impl FnMut(u64, Option<Vec<u8>>)) {
        for number in std::mem::take(&mut self.dirty) {
            if let Some(chunk) = self.chunks.get_mut(&number).filter(|chunk| !Arc::ptr_eq(chunk, &FULL)) {
                Arc::make_mut(chunk).optimize();
            }
            store(number, self.chunks.get(&number).map(|chunk| encode(chunk)));
        }
    }

    /// Takes in a stored chunk.
    pub fn restore(&mut self, number: u64, bytes: &[u8]) -> Result<(), Malformed> {
        let chunk = decode(bytes)?;
        if chunk.is_empty() || number > u64::MAX / CHUNK_SEQS - 1 {
            return Err(Malformed("set of seqs"));
        }
        let is_full = chunk.len() == CHUNK_SEQS;
        self.chunks.insert(number, if is_full { FULL.clone() } else { Arc::new(chunk) });
        Ok(())
    }
}

/// How many places from `place` on are in `chunk` without a hole.
fn stretch_from(chunk: &RoaringBitmap, place: u32) -> u64 {
    if !chunk.contains(place) {
        return 0;
    }
    let mut rest = chunk.iter();
    rest.advance_to(place);
    rest.next_range().map_or(0, |range| u64::from(range.end() - place) + 1)
}

/// How many places up to `place` are in `chunk` without a hole.
fn stretch_up_to(chunk: &RoaringBitmap, place: u32) -> u64 {
    if !chunk.contains(place) {
        return 0;
    }
    let mut rest = chunk.iter();
    rest.advance_back_to(place);
    rest.next_range_back().map_or(0, |range| u64::from(place - range.start()) + 1)
}

/// Ranges as distances, or a bit per seq where that is shorter.
fn encode(chunk: &RoaringBitmap) -> Vec<u8> {
    let mut out = vec![FORM_RANGES];
    let (mut iter, mut previous_end) = (chunk.iter(), 0);
    while let Some(range) = iter.next_range() {
        put_varint(&mut out, u64::from(range.start() - previous_end));
        put_varint(&mut out, u64::from(range.end() - range.start()));
        previous_end = *range.end();
        if out.len() as u64 > CHUNK_SEQS / 8 {
            let mut bits = vec![0; 1 + CHUNK_SEQS as usize / 8];
            bits[0] = FORM_BITS;
            chunk.iter().for_each(|place| bits[1 + place as usize / 8] |= 1 << (place % 8));
            return bits;
        }
    }
    out
}

fn decode(bytes: &[u8]) -> Result<RoaringBitmap, Malformed> {
    let mut reader = Reader::new(bytes, "set of seqs");
    let mut chunk = RoaringBitmap::new();
    match reader.u8()? {
        FORM_RANGES => {
            let mut at = 0u64;
            while !reader.is_empty() {
                let start = at.checked_add(reader.varint()?).ok_or(reader.malformed())?;
                let end = start.checked_add(reader.varint()?).filter(|end| *end < CHUNK_SEQS);
                at = end.ok_or(reader.malformed())?;
                chunk.insert_range(start as u32..=at as u32);
            }
        }
        FORM_BITS => {
            let bits = reader.bytes(CHUNK_SEQS as usize / 8)?;
            reader.finish()?;
            for place in 0..CHUNK_SEQS as u32 {
                if bits[place as usize / 8] & 1 << (place % 8) != 0 {
                    chunk.insert(place);
                }
            }
        }
        _ => return Err(reader.malformed()),
    }
    Ok(chunk)
}

/// Appends ascending ranges, none touching the next, as distances.
pub fn put_ranges(out: &mut impl BufMut, ranges: &[RangeInclusive<u64>]) {
    put_varint(out, ranges.len() as u64);
    let mut previous_end = 0;
    for range in ranges {
        put_varint(out, range.start() - previous_end);
        put_varint(out, range.end() - range.start());
        previous_end = *range.end();
    }
}

/// Reads what [`put_ranges`] wrote.
pub fn read_ranges(reader: &mut Reader<'_>) -> Result<Vec<RangeInclusive<u64>>, Malformed> {
    let count = reader.varint()?;
    let (mut ranges, mut previous_end) = (Vec::new(), 0u64);
    for _ in 0..count {
        let start = previous_end.checked_add(reader.varint()?).ok_or(reader.malformed())?;
        let end = start.checked_add(reader.varint()?).ok_or(reader.malformed())?;
        if start <= previous_end || end == u64::MAX {
            return Err(reader.malformed());
        }
        ranges.push(start..=end);
        previous_end = end;
    }
    Ok(ranges)
}

/// The same of at most so many ranges, whose seqs another cluster names: all are below [`SEQ_LIMIT`].
pub fn read_ranges_up_to(
    reader: &mut Reader<'_>,
    max_count: usize,
) -> Result<Vec<RangeInclusive<u64>>, Malformed> {
    let mut ahead = *reader;
    if ahead.varint()? > max_count as u64 {
        return Err(reader.malformed());
    }
    let ranges = read_ranges(reader)?;
    match ranges.last() {
        Some(last) if *last.end() >= SEQ_LIMIT => Err(reader.malformed()),
        _ => Ok(ranges),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stretch_without_holes_costs_next_to_nothing() {
        let mut set = SeqSet::default();
        (0..50).for_each(|part| set.insert(part * 10_000 + 1..=(part + 1) * 10_000));
        let own = set.chunks.values().filter(|chunk| !Arc::ptr_eq(chunk, &FULL)).count();
        assert_eq!((set.chunks.len(), own), (16, 2));
        let mut back = SeqSet::default();
        set.take_changes(|number, bytes| back.restore(number, &bytes.unwrap()).unwrap());
        assert_eq!(back.stretches().collect::<Vec<_>>(), [1..=500_000]);
        assert_eq!(back.chunks.values().filter(|chunk| !Arc::ptr_eq(chunk, &FULL)).count(), 2);
    }

    proptest! {
        #[test]
        fn the_set_is_a_set_and_comes_back(
            inserted in proptest::collection::vec((1u64..70_000, 0u64..9000), 0..12),
            dense in proptest::option::of(0u64..60_000),
            looked_at in proptest::collection::vec(1u64..80_000, 20),
        ) {
            let (mut removed, mut naive) = (SeqSet::default(), BTreeSet::new());
            // Too many ranges for a list of them.
            let scattered = dense.into_iter().flat_map(|from| (from + 1..from + 9000).step_by(2)).map(|seq| seq..=seq);
            for range in inserted.iter().map(|(from, more)| *from..=from + more).chain(scattered) {
                naive.extend(range.clone());
                removed.insert(range);
            }
            let mut stored = BTreeMap::new();
            removed.take_changes(|number, bytes| { stored.insert(number, bytes.unwrap()); });
            let mut restored = SeqSet::default();
            for (number, bytes) in &stored {
                prop_assert!(bytes.len() <= 4097);
                restored.restore(*number, bytes).unwrap();
            }
            for set in [&removed, &restored] {
                prop_assert_eq!(set.stretches().flatten().collect::<BTreeSet<u64>>(), naive.clone());
                for seq in &looked_at {
                    prop_assert_eq!(set.contains(*seq), naive.contains(seq));
                    prop_assert_eq!(set.next_absent(*seq), (*seq..).find(|seq| !naive.contains(seq)).unwrap());
                    let previous = (0..=*seq).rev().find(|seq| !naive.contains(seq));
                    prop_assert_eq!(set.previous_absent_down_to(*seq, 0), previous);
                    let live: Vec<u64> = set.absent_in(*seq..=seq + 999).flatten().collect();
                    let expected: Vec<u64> = (*seq..=seq + 999).filter(|seq| !naive.contains(seq)).collect();
                    prop_assert_eq!(set.has_absent_in(*seq..=seq + 999), !expected.is_empty());
                    prop_assert_eq!(set.next_absent_up_to(*seq, seq + 999), expected.first().copied());
                    prop_assert_eq!(set.previous_absent_down_to(seq + 999, *seq), expected.last().copied());
                    prop_assert_eq!(live, expected);
                }
            }
            let floor = looked_at[0];
            removed.forget_below(floor);
            prop_assert!(naive.range(floor..).all(|seq| removed.contains(*seq)));
            let mut gone = 0;
            removed.take_changes(|_, bytes| gone += u64::from(bytes.is_none()));
            prop_assert_eq!(gone as usize + removed.chunks.len(), stored.len());
        }

        #[test]
        fn ranges_come_back_and_arbitrary_bytes_never_panic(
            steps in proptest::collection::vec((2u64..1 << 40, 0u64..1 << 40), 0..20), bytes: Vec<u8>,
        ) {
            let mut end = 0;
            let ranges: Vec<RangeInclusive<u64>> = steps.iter().map(|(gap, more)| {
                let start = end + gap;
                end = start + more;
                start..=end
            }).collect();
            let mut out = Vec::new();
            put_ranges(&mut out, &ranges);
            prop_assert_eq!(read_ranges(&mut Reader::new(&out, "ranges")).unwrap(), ranges);
            let _ = (decode(&bytes), read_ranges(&mut Reader::new(&bytes, "ranges")));
        }
    }
}
