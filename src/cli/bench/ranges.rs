//! The seqs of one topic that were acked, and whether they can be true.
//!
//! Acks come nearly in order, so ranges are merged as they come: what is kept is the holes, not the
//! history, and a long run needs no more memory than a short one.

use std::collections::BTreeMap;

/// Disjoint ranges of seqs, none of which touches the next.
#[derive(Debug, Default)]
pub struct Ranges {
    /// Last seq by first seq.
    ranges: BTreeMap<u64, u64>,
    records: u64,
}

impl Ranges {
    /// Notes that `first_seq..=last_seq` were acked. What is wrong comes as words.
    pub fn add(&mut self, first_seq: u64, last_seq: u64) -> Result<(), String> {
        if first_seq == 0 || last_seq < first_seq {
            return Err(format!("seqs {first_seq} to {last_seq} were acked, which is no range"));
        }
        let below = self.ranges.range(..=last_seq).next_back().map(|(first, last)| (*first, *last));
        if let Some((first, last)) = below.filter(|(_, last)| *last >= first_seq) {
            return Err(format!(
                "seqs {first_seq} to {last_seq} were acked, though {first} to {last} had been before"
            ));
        }
        self.records += last_seq - first_seq + 1;
        let last = match last_seq.checked_add(1) {
            Some(next) => self.ranges.remove(&next).unwrap_or(last_seq),
            None => last_seq,
        };
        match below.filter(|(_, last)| last + 1 == first_seq) {
            Some((first, _)) => self.ranges.insert(first, last),
            None => self.ranges.insert(first_seq, last),
        };
        Ok(())
    }

    /// Records acked so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Whether a topic that nobody else wrote to may have this head, if `unknown_batches` appends of
    /// `batch` records each were answered in a way that leaves open whether they took effect. What is
    /// wrong comes as words.
    pub fn check(&self, head_seq: u64, unknown_batches: u64, batch: u64) -> Result<(), String> {
        let last_acked = self.ranges.last_key_value().map_or(0, |(_, last)| *last);
        if last_acked > head_seq {
            return Err(format!("seq {last_acked} was acked, but the head is {head_seq}"));
        }
        let mut unacked = 0;
        let mut next = 1;
        for (first, last) in
            self.ranges.iter().map(|(first, last)| (*first, *last)).chain([(head_seq.saturating_add(1), 0)])
        {
            let hole = first - next;
            // A batch is atomic, so a hole is made of whole ones.
            if hole % batch != 0 || (hole > 0 && unknown_batches == 0) {
                return Err(format!("seqs {next} to {} were acked to nobody", first - 1));
            }
            unacked += hole;
            next = last.saturating_add(1);
        }
        if unacked / batch > unknown_batches {
            return Err(format!(
                "the head is {head_seq}: {unacked} records beyond those acked, from {unknown_batches} appends of \
                 unknown outcome"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(acked: &[(u64, u64)]) -> Ranges {
        let mut ranges = Ranges::default();
        acked.iter().for_each(|(first, last)| ranges.add(*first, *last).unwrap());
        ranges
    }

    proptest! {
        #[test]
        fn batches_in_any_order_become_one_range(
            batch in 1u64..20,
            order in Just((0u64..60).collect::<Vec<_>>()).prop_shuffle(),
            repeated in 0usize..60,
        ) {
            let acked: Vec<_> = order.iter().map(|at| (at * batch + 1, (at + 1) * batch)).collect();
            let mut whole = ranges(&acked);
            prop_assert_eq!(whole.ranges.len(), 1);
            prop_assert_eq!(whole.records(), 60 * batch);
            whole.check(60 * batch, 0, batch).unwrap();
            // One more or fewer at the end, any batch twice, any single seq twice, any batch missing.
            prop_assert!(whole.check(60 * batch + 1, 0, batch).is_err());
            prop_assert!(whole.check(60 * batch - 1, 0, batch).is_err());
            let (first, last) = acked[repeated];
            prop_assert!(whole.add(first, last).is_err());
            prop_assert!(whole.add(last, last).is_err());
            prop_assert!(whole.add(first, last + 1000).is_err());
            let others: Vec<_> = acked.iter().copied().filter(|range| *range != (first, last)).collect();
            let holed = ranges(&others);
            prop_assert!(holed.check(60 * batch, 0, batch).is_err());
            holed.check(60 * batch, 1, batch).unwrap();
        }
    }

    #[test]
    fn holes_must_be_explained_by_appends_of_unknown_outcome() {
        let holed = ranges(&[(1, 10), (31, 40)]);
        assert!(holed.check(40, 1, 10).is_err(), "two batches are missing");
        holed.check(40, 2, 10).unwrap();
        holed.check(50, 3, 10).unwrap();
        assert!(holed.check(45, 3, 10).is_err(), "half a batch");
        assert!(holed.check(60, 3, 10).is_err(), "four batches are missing");
        assert!(holed.check(30, 9, 10).is_err(), "an acked seq is above the head");
    }

    #[test]
    fn a_topic_without_acks_has_head_0() {
        Ranges::default().check(0, 0, 1).unwrap();
        Ranges::default().check(5, 1, 5).unwrap();
        assert!(Ranges::default().check(1, 0, 1).is_err());
    }

    #[test]
    fn what_is_no_range_is_refused() {
        assert!(Ranges::default().add(0, 1).is_err());
        assert!(Ranges::default().add(2, 1).is_err());
        ranges(&[(1, u64::MAX)]);
    }
}
