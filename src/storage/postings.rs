//! Postings: which records of the log carry a value.
//!
//! A posting names records by their place in the log (index of the entry, position in it), which never changes:
//! not when a file is renamed or rewritten, and not by the number of topics that refer to them. A *key* is a
//! byte for the kind of value and the value, so that one index can serve more than tags.
use std::collections::BTreeMap;
use std::ops::{Bound, RangeInclusive};

use crate::codec::{Malformed, Reader, put_varint};
use crate::filter::TagMatch;
use crate::record::{EntryRecords, Record};

/// The kind of a key whose value is a record's tag.
const KIND_TAG: u8 = 1;
/// What a key in memory costs beside its bytes, and what a posting costs.
const KEY_OVERHEAD_BYTES: usize = 96;
const POSTING_BYTES: usize = size_of::<Posting>();

/// Records of one entry that lie behind each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Posting {
    /// Index of the entry.
    pub index: u64,
    pub first_position: u32,
    pub count: u32,
}

/// The keys that a look asks for: one, or all that begin so.
pub(super) struct Wanted {
    pub start: Vec<u8>,
    is_prefix: bool,
}

impl Wanted {
    pub(super) fn tags(tags: &TagMatch) -> Self {
        let (value, is_prefix) = match tags {
            TagMatch::Eq(tag) => (tag, false),
            TagMatch::Glob(prefix) => (prefix, true),
        };
        Self { start: [&[KIND_TAG], value.as_bytes()].concat(), is_prefix }
    }

    pub(super) fn takes(&self, key: &[u8]) -> bool {
        if self.is_prefix { key.starts_with(&self.start) } else { key == self.start }
    }
}

/// What an index says: in the covered parts of the log, these and no other live records match.
#[derive(Debug, Default)]
pub struct Found {
    /// Ranges of indexes, rising and apart.
    covered: Vec<RangeInclusive<u64>>,
    /// In order of the log.
    postings: Vec<Posting>,
}

impl Found {
    /// `ranges` do not overlap.
    pub(super) fn new(mut ranges: Vec<RangeInclusive<u64>>, mut postings: Vec<Posting>) -> Self {
        postings.sort_unstable();
        ranges.sort_unstable_by_key(|range| *range.start());
        let mut covered: Vec<RangeInclusive<u64>> = Vec::new();
        for range in ranges {
            match covered.last_mut() {
                Some(last) if last.end().checked_add(1) == Some(*range.start()) => {
                    *last = *last.start()..=*range.end();
                }
                _ => covered.push(range),
            }
        }
        Self { covered, postings }
    }

    /// Whether all of `indexes` is covered.
    pub fn covers(&self, indexes: &RangeInclusive<u64>) -> bool {
        let at = self.covered.partition_point(|range| range.end() < indexes.start());
        self.covered
            .get(at)
            .is_some_and(|range| range.start() <= indexes.start() && indexes.end() <= range.end())
    }

    /// The postings of the entries at `indexes`.
    pub fn within(&self, indexes: &RangeInclusive<u64>) -> &[Posting] {
        let from = self.postings.partition_point(|posting| posting.index < *indexes.start());
        let rest = &self.postings[from..];
        &rest[..rest.partition_point(|posting| posting.index <= *indexes.end())]
    }
}

/// Appends postings in order of the log.
pub(super) fn put_postings(out: &mut Vec<u8>, postings: &[Posting]) {
    let mut base_index = 0;
    for posting in postings {
        // Most records are alone in their entry.
        let is_lone = posting.first_position == 0 && posting.count == 1;
        // An index is far below 2^63: it counts the entries of one log.
        put_varint(out, (posting.index - base_index) << 1 | u64::from(is_lone));
        if !is_lone {
            put_varint(out, u64::from(posting.first_position));
            put_varint(out, u64::from(posting.count));
        }
        base_index = posting.index;
    }
}

/// The inverse of [`put_postings`]; adds to `postings`.
pub(super) fn take_postings(bytes: &[u8], postings: &mut Vec<Posting>) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes, "postings");
    let mut index = 0u64;
    while !reader.is_empty() {
        let head = reader.varint()?;
        index = index.checked_add(head >> 1).ok_or(reader.malformed())?;
        let mut number = || u32::try_from(reader.varint()?).map_err(|_| reader.malformed());
        let (first_position, count) = if head & 1 == 1 { (0, 1) } else { (number()?, number()?) };
        postings.push(Posting { index, first_position, count });
    }
    Ok(())
}

/// The postings of the newest entries, in memory.
#[derive(Debug, Default)]
pub(super) struct PostingMap {
    keys: BTreeMap<Box<[u8]>, Vec<Posting>>,
    bytes: usize,
}

impl PostingMap {
    /// What it takes of memory, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the records of the entry at `index`, which is above all before it.
    pub(super) fn add(&mut self, index: u64, entry: &EntryRecords) -> Result<(), Malformed> {
        let mut key = vec![KIND_TAG];
        for position in 0..entry.count() {
            let record = entry.record(position).ok_or(Malformed("entry"))?;
            // A tag that cannot be read is none, for deletes too: the rest of the log is indexed all the same.
            let Ok(Some(tag)) = Record::decode_tag(record) else { continue };
            key.truncate(1);
            key.extend_from_slice(tag.as_bytes());
            let posting = Posting { index, first_position: position, count: 1 };
            let Some(postings) = self.keys.get_mut(key.as_slice()) else {
                self.bytes += key.len() + KEY_OVERHEAD_BYTES + POSTING_BYTES;
                self.keys.insert(key.as_slice().into(), vec![posting]);
                continue;
            };
            match postings.last_mut() {
                Some(last) if last.index == index && last.first_position + last.count == position => {
                    last.count += 1;
                }
                _ => {
                    self.bytes += POSTING_BYTES;
                    postings.push(posting);
                }
            }
        }
        Ok(())
    }

    /// All keys with their postings, rising.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[Posting])> {
        self.keys.iter().map(|(key, postings)| (&key[..], &postings[..]))
    }

    /// The postings of all keys that are wanted.
    pub(super) fn find<'a>(&'a self, wanted: &'a Wanted) -> impl Iterator<Item = &'a [Posting]> {
        let from = (Bound::Included(wanted.start.as_slice()), Bound::Unbounded);
        let from = self.keys.range::<[u8], _>(from);
        from.take_while(|(key, _)| wanted.takes(key)).map(|(_, postings)| &postings[..])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn postings() -> impl Strategy<Value = Vec<Posting>> {
        let one = (0u64..1000, 0u32..3, 1u32..3);
        proptest::collection::vec(one, 0..50).prop_map(|rows| {
            let mut postings: Vec<Posting> = rows
                .into_iter()
                .map(|(index, first_position, count)| Posting { index: index << 40, first_position, count })
                .collect();
            postings.sort_unstable();
            postings
        })
    }

    proptest! {
        #[test]
        fn postings_come_back(postings in postings()) {
            let (mut bytes, mut back) = (Vec::new(), Vec::new());
            put_postings(&mut bytes, &postings);
            take_postings(&bytes, &mut back).unwrap();
            prop_assert_eq!(back, postings);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = take_postings(&bytes, &mut Vec::new());
        }
    }

    #[test]
    fn only_a_range_without_a_hole_is_covered() {
        let found = Found::new(vec![9..=9, 5..=5, 3..=4], Vec::new());
        for (range, is_covered) in
            [(3..=5, true), (4..=4, true), (9..=9, true), (2..=3, false), (5..=6, false), (5..=9, false)]
        {
            assert_eq!(found.covers(&range), is_covered, "{range:?}");
        }
    }
}
