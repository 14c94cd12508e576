//! Where the copies in a topic come from, and which records it has taken already.
//!
//! Routes may form any graph, so the same record may reach a topic by many of them, also after its copy was
//! evicted or deleted there. So a topic remembers for every *instance* (one life of a topic in some cluster)
//! which of its seqs it has taken: a bit per record at most, next to nothing where all were taken. A mark
//! "everything up to here" would not do, because filters and other routes leave holes that are still to come.
//!
//! What was lost before it could be copied is a *gap*: it takes up a seq, so that each reader is told in its
//! place, and is remembered too, so that it is told once.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::command::Cluster;
use super::delete::Ranges;
use super::own_seqs::OwnSeqs;
use super::quota::{Foreign, ForeignTotals};
use super::reported::Reported;
use super::seq_set::SeqSet;
use super::topic::TopicKey;
use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::limits::{MAX_GAPS, MAX_GAPS_PER_TOPIC, MAX_KNOWN_TURNS, MAX_REPORTED, MAX_REPORTED_PER_TOPIC};

/// One life of a topic name in one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Instance {
    pub cluster_id: u128,
    /// Name of the cluster, for readers.
    pub cluster: Arc<str>,
    pub topic: Arc<str>,
    pub epoch: u64,
}

impl Instance {
    /// Where records are first written that are written in this topic of `cluster`.
    pub fn of_topic(cluster: &Cluster, topic: Arc<str>, epoch: u64) -> Arc<Self> {
        let name = cluster.name.as_str().into();
        Arc::new(Instance { cluster_id: cluster.id, cluster: name, topic, epoch })
    }

    pub fn put(&self, out: &mut BytesMut) {
        out.put_u128_le(self.cluster_id);
        put_blob(out, self.cluster.as_bytes());
        put_blob(out, self.topic.as_bytes());
        put_varint(out, self.epoch);
    }

    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let cluster_id = reader.u128()?;
        let mut name = || {
            let name = reader.text()?;
            // Stored as one value of a checkpoint, and another cluster says it.
            if name.len() > MAX_NAME_BYTES { Err(Malformed("instance: too long a name")) } else { Ok(name) }
        };
        let (cluster, topic) = (name()?.into(), name()?.into());
        Ok(Instance { cluster_id, cluster, topic, epoch: reader.varint()? })
    }

    /// Names of clusters may change and coincide; what tells instances apart does not.
    pub(super) fn key(&self) -> InstanceKey {
        (self.cluster_id, self.topic.clone(), self.epoch)
    }
}

/// Longest name of a cluster or topic of another cluster, four times what either may be here.
const MAX_NAME_BYTES: usize = 1024;

/// Id of the cluster, name of the topic, epoch.
pub(super) type InstanceKey = (u128, Arc<str>, u64);

/// What was taken from one instance.
#[derive(Debug)]
pub struct Origin {
    pub instance: Arc<Instance>,
    pub taken: SeqSet,
    /// Seqs that were lost before they could be taken, and were reported as gaps.
    pub reported: Reported,
    pub taken_count: u64,
    /// The highest seq taken.
    pub last_seq: u64,
    /// Where its latest gap was told; 0 if none was.
    last_gap_seq: u64,
    is_dirty: bool,
}

impl Origin {
    fn new(instance: Arc<Instance>) -> Self {
        Origin {
            instance,
            taken: SeqSet::default(),
            reported: Reported::default(),
            taken_count: 0,
            last_seq: 0,
            last_gap_seq: 0,
            is_dirty: true,
        }
    }

    /// The first seq from `seq` to `last` that was neither taken nor reported. Passes over whole stretches of what
    /// was, by turns; when there are none left, the seq that it has come to.
    fn next_unknown(&self, mut seq: u64, last: u64, turns: &Turns) -> Option<u64> {
        loop {
            seq = self.taken.next_absent_up_to(seq, last)?;
            let Some(reported) = self.reported.range_of(seq) else { return Some(seq) };
            seq = reported.end().checked_add(1).filter(|seq| *seq <= last)?;
            if !turns.take() {
                return Some(seq);
            }
        }
    }

    /// The same from `seq` down to `first`.
    fn previous_unknown(&self, mut seq: u64, first: u64, turns: &Turns) -> Option<u64> {
        loop {
            seq = self.taken.previous_absent_down_to(seq, first)?;
            let Some(reported) = self.reported.range_of(seq) else { return Some(seq) };
            seq = reported.start().checked_sub(1).filter(|seq| *seq >= first)?;
            if !turns.take() {
                return Some(seq);
            }
        }
    }

    /// The stretches of seqs that were taken or reported, in order, none touching the next; `None` if either are
    /// more than `max`.
    pub fn known(&self, max: usize) -> Option<Ranges> {
        let mut ranges: Ranges = self.taken.stretches().take(max + 1).collect();
        let taken_count = ranges.len();
        ranges.extend(self.reported.stretches().take(max + 1));
        if taken_count.max(ranges.len() - taken_count) > max {
            return None;
        }
        ranges.sort_unstable_by_key(|range| *range.start());
        ranges.dedup_by(|next, range| {
            let touches = *next.start() <= range.end().saturating_add(1);
            if touches {
                *range = *range.start()..=*range.end().max(next.end());
            }
            touches
        });
        Some(ranges)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = BytesMut::new();
        self.instance.put(&mut out);
        put_varint(&mut out, self.taken_count);
        put_varint(&mut out, self.last_seq);
        out.to_vec()
    }
}

/// What is left of the turns that one look at what is known may take. Another cluster says how many stretches there
/// are, and every member goes through them while it applies: beyond the bound more than what is unknown is told as
/// lost, the same at each of them.
pub struct Turns(Cell<usize>);

impl Default for Turns {
    fn default() -> Self {
        Turns(Cell::new(MAX_KNOWN_TURNS))
    }
}

impl Turns {
    /// `false` if there is none left.
    fn take(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }
}

/// Seqs of an instance that were lost before they could be copied; the range is inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Number of the instance among the topic's origins.
    pub number: u32,
    pub from_seq: u64,
    pub to_seq: u64,
}

/// The origins of one topic.
#[derive(Debug, Default)]
pub struct Origins {
    /// By number; none is ever forgotten. At most [`crate::limits::MAX_ORIGINS_PER_TOPIC`].
    all: Vec<Origin>,
    numbers: BTreeMap<InstanceKey, u32>,
    /// Which seqs of the topic itself were first written there.
    pub own: OwnSeqs,
    /// By the seq that it takes up; at most [`MAX_GAPS_PER_TOPIC`].
    gaps: BTreeMap<u64, Gap>,
    dirty_gaps: BTreeSet<u64>,
    /// Stretches that were reported, of all origins; at most [`MAX_REPORTED_PER_TOPIC`], but for one of each.
    reported_count: usize,
    /// What this counts in too: those of all topics, or its own.
    totals: Arc<ForeignTotals>,
}

impl Origins {
    /// Counts in these from now on.
    pub(super) fn count_in(&mut self, totals: Arc<ForeignTotals>) {
        let all = Foreign { origins: self.all.len(), gaps: self.gaps.len(), reported: self.reported_count };
        self.totals.remove(all);
        totals.add(all);
        self.totals = totals;
    }

    pub fn all(&self) -> &[Origin] {
        &self.all
    }

    pub fn number(&self, instance: &Instance) -> Option<u32> {
        // Without copies, which is what nearly all topics are, nothing is looked up.
        if self.all.is_empty() { None } else { self.numbers.get(&instance.key()).copied() }
    }

    pub fn instance(&self, number: u32) -> Option<&Arc<Instance>> {
        self.all.get(number as usize).map(|origin| &origin.instance)
    }

    /// The number of `instance`, which is a new one if nothing came from there before.
    pub fn number_or_new(&mut self, instance: &Arc<Instance>) -> u32 {
        if let Some(number) = self.number(instance) {
            return number;
        }
        let number = self.all.len() as u32;
        self.all.push(Origin::new(instance.clone()));
        self.numbers.insert(instance.key(), number);
        self.totals.add(Foreign { origins: 1, ..Foreign::default() });
        number
    }

    /// Whether everything was taken that another topic took, and what was reported as lost there is known too.
    /// `false` also where that takes too many turns.
    pub fn has_all_of(&self, other: &Origin, turns: &Turns) -> bool {
        let number = self.number(&other.instance);
        let taken = number.and_then(|number| self.all.get(number as usize)).map(|own| &own.taken);
        let has_taken = match taken {
            Some(taken) => taken.includes(&other.taken),
            None => other.taken.is_empty(),
        };
        let mut reported = other.reported.stretches();
        has_taken && reported.all(|lost| turns.take() && self.unreported_in(number, lost, turns).is_none())
    }

    /// The stretches of `range` that were not taken yet.
    pub fn untaken_in(&self, number: Option<u32>, range: RangeInclusive<u64>) -> Vec<RangeInclusive<u64>> {
        match number.and_then(|number| self.all.get(number as usize)) {
            Some(origin) if origin.last_seq >= *range.start() => origin.taken.absent_in(range).collect(),
            _ => vec![range],
        }
    }

    /// The smallest range that holds all of `range` that was neither taken nor reported; a larger one where that takes
    /// too many turns.
    pub fn unreported_in(
        &self,
        number: Option<u32>,
        range: RangeInclusive<u64>,
        turns: &Turns,
    ) -> Option<RangeInclusive<u64>> {
        let Some(origin) = number.and_then(|number| self.all.get(number as usize)) else {
            return Some(range);
        };
        let (first, last) = range.into_inner();
        let first = origin.next_unknown(first, last, turns)?;
        let last = origin.previous_unknown(last, first, turns).unwrap_or(first);
        Some(first..=last)
    }

    /// Notes that `range` was taken, none of which had been.
    pub fn take(&mut self, number: u32, range: RangeInclusive<u64>) {
        let Some(origin) = self.all.get_mut(number as usize) else { return };
        origin.taken_count += range.end() - range.start() + 1;
        origin.last_seq = origin.last_seq.max(*range.end());
        origin.taken.insert(range);
        origin.is_dirty = true;
    }

    /// Notes that `gap` is reported at `seq`. Gives what is reported: more where there is no room for another stretch.
    pub fn report(&mut self, seq: u64, mut gap: Gap) -> Gap {
        if let Some(origin) = self.all.get_mut(gap.number as usize) {
            let mut range = gap.from_seq..=gap.to_seq;
            if self.reported_count >= MAX_REPORTED_PER_TOPIC || self.totals.reported() >= MAX_REPORTED {
                range = origin.reported.up_to_neighbour(range);
            }
            (gap.from_seq, gap.to_seq) = (*range.start(), *range.end());
            let before = origin.reported.count();
            origin.reported.insert(range);
            let now = origin.reported.count();
            self.reported_count = self.reported_count + now - before;
            self.totals.remove(Foreign { reported: before, ..Foreign::default() });
            self.totals.add(Foreign { reported: now, ..Foreign::default() });
            origin.is_dirty = true;
        }
        if self.gaps.len() >= MAX_GAPS_PER_TOPIC {
            self.join_gaps(MAX_GAPS_PER_TOPIC / 8);
        }
        if self.totals.gaps() >= MAX_GAPS {
            gap = self.join_latest(gap);
        }
        if let Some(origin) = self.all.get_mut(gap.number as usize) {
            origin.last_gap_seq = seq;
        }
        self.gaps.insert(seq, gap);
        self.totals.add(Foreign { gaps: 1, ..Foreign::default() });
        self.dirty_gaps.insert(seq);
        gap
    }

    /// Takes away the latest gap of the origin of `gap`, and gives what is to be told for both.
    fn join_latest(&mut self, gap: Gap) -> Gap {
        let Some(seq) = self.all.get(gap.number as usize).map(|origin| origin.last_gap_seq) else {
            return gap;
        };
        let Some(before) = self.gaps.remove(&seq) else { return gap };
        self.totals.remove(Foreign { gaps: 1, ..Foreign::default() });
        self.dirty_gaps.insert(seq);
        Gap { from_seq: gap.from_seq.min(before.from_seq), to_seq: gap.to_seq.max(before.to_seq), ..gap }
    }

    /// Joins pairs of gaps of one origin, the oldest first, until there are so many fewer. A reader is told of both at
    /// the later one: of those that stand before the earlier one, none misses it.
    fn join_gaps(&mut self, fewer: usize) {
        // As there are more gaps than origins, many of them are of one.
        let mut unpaired: BTreeMap<u32, u64> = BTreeMap::new();
        let mut joined = Vec::new();
        for (seq, gap) in &self.gaps {
            match unpaired.remove(&gap.number) {
                None => drop(unpaired.insert(gap.number, *seq)),
                Some(earlier) => joined.push((earlier, *seq)),
            }
            if joined.len() >= fewer {
                break;
            }
        }
        for (earlier, later) in joined {
            let Some(first) = self.gaps.remove(&earlier) else { continue };
            self.totals.remove(Foreign { gaps: 1, ..Foreign::default() });
            if let Some(gap) = self.gaps.get_mut(&later) {
                gap.from_seq = gap.from_seq.min(first.from_seq);
                gap.to_seq = gap.to_seq.max(first.to_seq);
            }
            self.dirty_gaps.extend([earlier, later]);
        }
    }

    /// The first gap above `cursor`.
    pub fn next_gap(&self, cursor: u64) -> Option<(u64, Gap)> {
        if self.gaps.is_empty() {
            return None;
        }
        self.gaps.range(cursor.saturating_add(1)..).next().map(|(seq, gap)| (*seq, *gap))
    }

    /// The gaps in `range`, in order.
    pub fn gaps_in(&self, range: RangeInclusive<u64>) -> impl Iterator<Item = (u64, Gap)> {
        let (first, last) = range.into_inner();
        self.gaps.range(first..).take_while(move |(seq, _)| **seq <= last).map(|(seq, gap)| (*seq, *gap))
    }

    /// Forgets gaps below `seq`: every reader is told of a larger one there, or asked for their removal.
    pub fn forget_gaps_below(&mut self, seq: u64) {
        while let Some(first) = self.gaps.first_entry().filter(|first| *first.key() < seq) {
            self.dirty_gaps.insert(*first.key());
            first.remove();
            self.totals.remove(Foreign { gaps: 1, ..Foreign::default() });
        }
    }

    /// Every key under which a checkpoint may hold something of this.
    pub fn stored_keys(&self) -> impl Iterator<Item = TopicKey> {
        let of_origin = |(number, origin): (usize, &Origin)| {
            let number = number as u32;
            let taken: Vec<u64> = origin.taken.numbers().collect();
            let reported: Vec<u64> = origin.reported.stored().collect();
            std::iter::once(TopicKey::Origin(number))
                .chain(taken.into_iter().map(move |chunk| TopicKey::Taken(number, chunk)))
                .chain(reported.into_iter().map(move |first| TopicKey::Reported(number, first)))
        };
        let gaps = self.gaps.keys().chain(&self.dirty_gaps).map(|seq| TopicKey::Gap(*seq));
        let origins = self.all.iter().enumerate().flat_map(of_origin);
        let (foreign, has_sum) = self.own.stored();
        let sum = has_sum.then_some(TopicKey::OwnSum);
        origins.chain(foreign.map(TopicKey::Foreign)).chain(sum).chain(gaps)
    }

    /// Hands everything that changed since the last call to `store`.
    pub fn take_changes(&mut self, store: &mut impl FnMut(TopicKey, Option<Vec<u8>>)) {
        for (number, origin) in self.all.iter_mut().enumerate() {
            if !std::mem::take(&mut origin.is_dirty) {
                continue;
            }
            let number = number as u32;
            store(TopicKey::Origin(number), Some(origin.encode()));
            origin.taken.take_changes(|chunk, bytes| store(TopicKey::Taken(number, chunk), bytes));
            origin.reported.take_changes(|first, bytes| store(TopicKey::Reported(number, first), bytes));
        }
        let sum = self.own.take_changes(|chunk, bytes| store(TopicKey::Foreign(chunk), bytes));
        sum.into_iter().for_each(|sum| store(TopicKey::OwnSum, Some(sum)));
        for seq in std::mem::take(&mut self.dirty_gaps) {
            let value = self.gaps.get(&seq).map(|gap| {
                let mut out = Vec::new();
                [u64::from(gap.number), gap.from_seq, gap.to_seq]
                    .into_iter()
                    .for_each(|value| put_varint(&mut out, value));
                out
            });
            store(TopicKey::Gap(seq), value);
        }
    }

    /// Takes in a stored part; the one that names an instance comes before what was taken from it.
    pub fn restore(&mut self, key: TopicKey, bytes: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(bytes, "origin");
        let unknown = Malformed("origin: of an unknown number");
        match key {
            TopicKey::Origin(number) => {
                let instance = Arc::new(Instance::read(&mut reader)?);
                let (taken_count, last_seq) = (reader.varint()?, reader.varint()?);
                reader.finish()?;
                if self.number_or_new(&instance) != number {
                    return Err(Malformed("origin: stands twice or is missing"));
                }
                let origin = self.all.last_mut().ok_or(unknown)?;
                *origin = Origin { taken_count, last_seq, is_dirty: false, ..Origin::new(instance) };
            }
            TopicKey::Taken(number, chunk) => {
                self.all.get_mut(number as usize).ok_or(unknown)?.taken.restore(chunk, bytes)?;
            }
            TopicKey::Reported(number, first_seq) => {
                self.all.get_mut(number as usize).ok_or(unknown)?.reported.restore(first_seq, bytes)?;
                self.reported_count += 1;
                self.totals.add(Foreign { reported: 1, ..Foreign::default() });
            }
            TopicKey::Foreign(chunk) => self.own.restore_chunk(chunk, bytes)?,
            TopicKey::OwnSum => self.own.restore_summed(bytes)?,
            TopicKey::Gap(seq) => {
                let (number, from_seq, to_seq) = (reader.varint_u32()?, reader.varint()?, reader.varint()?);
                reader.finish()?;
                if let Some(origin) = self.all.get_mut(number as usize) {
                    origin.last_gap_seq = origin.last_gap_seq.max(seq);
                }
                if self.gaps.insert(seq, Gap { number, from_seq, to_seq }).is_none() {
                    self.totals.add(Foreign { gaps: 1, ..Foreign::default() });
                }
            }
            TopicKey::Head | TopicKey::Removed(_) | TopicKey::Runs(_) | TopicKey::Keys(_) => {
                return Err(Malformed("origin: a value of another kind"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn instance() -> Arc<Instance> {
        Arc::new(Instance { cluster_id: 9, cluster: "there".into(), topic: "t".into(), epoch: 1 })
    }

    /// An origin of which these ranges were taken, and these reported.
    fn origins(taken: &[(u64, u64)], reported: &[(u64, u64)]) -> (Origins, std::collections::BTreeSet<u64>) {
        let (mut origins, mut known) = (Origins::default(), std::collections::BTreeSet::new());
        let number = origins.number_or_new(&instance());
        for (first, more) in taken {
            let new: Vec<u64> = (*first..=first + more).filter(|seq| known.insert(*seq)).collect();
            new.into_iter().for_each(|seq| origins.take(number, seq..=seq));
        }
        for (seq, (first, more)) in reported.iter().enumerate() {
            known.extend(*first..=first + more);
            origins.report(seq as u64 + 1, Gap { number, from_seq: *first, to_seq: first + more });
        }
        (origins, known)
    }

    proptest! {
        #[test]
        fn what_is_not_known_is_what_was_neither_taken_nor_reported(
            taken in proptest::collection::vec((1u64..90, 0u64..12), 0..8),
            reported in proptest::collection::vec((1u64..90, 0u64..12), 0..8),
            asked in proptest::collection::vec((1u64..110, 0u64..40), 10),
        ) {
            let (origins, known) = origins(&taken, &reported);
            for (first, more) in asked {
                let unknown: Vec<u64> = (first..=first + more).filter(|seq| !known.contains(seq)).collect();
                let expected = unknown.first().map(|seq| *seq..=unknown[unknown.len() - 1]);
                prop_assert_eq!(origins.unreported_in(Some(0), first..=first + more, &Turns::default()), expected);
            }
            let told = origins.all()[0].known(20).expect("they are few");
            prop_assert!(told.windows(2).all(|two| two[0].end() + 1 < *two[1].start()));
            prop_assert_eq!(told.into_iter().flatten().collect::<Vec<_>>(), known.into_iter().collect::<Vec<_>>());
        }
    }

    /// A route that is made anew offers everything once more, one record at a time: that must not walk through all that
    /// was taken each time.
    #[test]
    fn asking_for_one_seq_of_a_long_history_looks_at_no_more_than_that() {
        let mut origins = Origins::default();
        let number = origins.number_or_new(&instance());
        const TAKEN: u64 = 300_000_000;
        origins.take(number, 1..=TAKEN);
        let started = std::time::Instant::now();
        for seq in 1..=20_000 {
            assert!(origins.untaken_in(Some(number), seq..=seq).is_empty());
        }
        // A walk to the end is 9000 chunks: minutes.
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
        let wide = origins.unreported_in(Some(number), 1..=1 << 60, &Turns::default());
        assert_eq!(wide, Some(TAKEN + 1..=1 << 60));
    }

    /// Another cluster says what was lost, and may say it of every second seq.
    #[test]
    fn what_takes_too_many_turns_is_told_coarsely_and_then_is_one_stretch() {
        let pairs = 2 * MAX_KNOWN_TURNS as u64;
        let mut origins = Origins::default();
        let number = origins.number_or_new(&instance());
        for at in 1..=pairs {
            origins.take(number, 2 * at - 1..=2 * at - 1);
            origins.report(at, Gap { number, from_seq: 2 * at, to_seq: 2 * at });
        }
        // All of it is known, which is not found out.
        let turns = Turns::default();
        let told = origins.unreported_in(Some(number), 1..=2 * pairs, &turns);
        assert_eq!(told, Some(pairs + 3..=2 * pairs - 1));
        assert!(!turns.take(), "no turn is left for another range");
        // What one look finds costs no turn.
        assert_eq!(origins.unreported_in(Some(number), 2..=2, &turns), None);
        let behind = 2 * pairs + 5..=2 * pairs + 9;
        assert_eq!(origins.unreported_in(Some(number), behind.clone(), &turns), Some(behind));
        assert!(!Origins::default().has_all_of(&origins.all()[0], &Turns::default()));
        // It is told once.
        origins.report(pairs + 1, Gap { number, from_seq: pairs + 3, to_seq: 2 * pairs - 1 });
        assert_eq!(origins.unreported_in(Some(number), pairs..=2 * pairs, &Turns::default()), None);
    }

    #[test]
    fn what_is_too_much_to_tell_is_not_told_in_part() {
        let every_second: Vec<(u64, u64)> = (1..=11).map(|at| (2 * at, 0)).collect();
        let (origins, _) = origins(&every_second, &[]);
        assert_eq!(origins.all()[0].known(10), None);
        assert_eq!(origins.all()[0].known(11).map(|told| told.len()), Some(11));
    }
}
