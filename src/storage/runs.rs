//! Which entry lies in which segment.
//!
//! The log is a short list of *runs*: entries of one term with consecutive indexes, written one after the
//! other into one segment. A log of ten million entries has some fifty runs, one per segment and change of
//! leader, so this list may be in memory whole, and everything that grows with the number of entries (the
//! offsets) may not. Runs rise in index and do not overlap: a truncation cuts them, so what was truncated
//! cannot be found again under its index.
//!
//! There may be a gap between two runs: after a snapshot the log goes on above it, while older segments are
//! still there.
use super::entry::EntryId;
use super::table::Span;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub segment_id: u64,
    pub term: u64,
    pub first_index: u64,
    pub count: u64,
    /// The place of the first entry among the entry frames of its segment.
    pub first_ordinal: u32,
}

impl Run {
    pub(super) fn end_index(&self) -> u64 {
        self.first_index.saturating_add(self.count)
    }

    pub(super) fn ordinal_of(&self, index: u64) -> u32 {
        self.first_ordinal + (index - self.first_index) as u32
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Runs(Vec<Run>);

impl Runs {
    /// Adds one entry behind the last.
    pub(super) fn push(&mut self, segment_id: u64, ordinal: u32, id: EntryId) {
        debug_assert!(self.0.last().is_none_or(|run| run.end_index() <= id.index), "truncated before");
        match self.0.last_mut() {
            Some(run)
                if run.segment_id == segment_id
                    && run.term == id.term
                    && run.end_index() == id.index
                    && u64::from(run.first_ordinal) + run.count == u64::from(ordinal) =>
            {
                run.count += 1;
            }
            _ => self.0.push(Run {
                segment_id,
                term: id.term,
                first_index: id.index,
                count: 1,
                first_ordinal: ordinal,
            }),
        }
    }

    /// Adds the spans of a sealed segment. A span that starts below the end tells of a truncation.
    pub(super) fn push_spans(&mut self, segment_id: u64, spans: &[Span]) {
        let mut ordinal = 0;
        for span in spans {
            self.truncate_from(span.first_index);
            self.0.push(Run {
                segment_id,
                term: span.term,
                first_index: span.first_index,
                count: u64::from(span.count),
                first_ordinal: ordinal,
            });
            ordinal += span.count;
        }
    }

    /// Forgets `first_removed` and all above it.
    pub(super) fn truncate_from(&mut self, first_removed: u64) {
        while let Some(run) = self.0.last_mut() {
            if run.first_index < first_removed {
                run.count = run.count.min(first_removed - run.first_index);
                return;
            }
            self.0.pop();
        }
    }

    pub(super) fn find(&self, index: u64) -> Option<&Run> {
        let after = self.0.partition_point(|run| run.first_index <= index);
        self.0.get(after.checked_sub(1)?).filter(|run| index < run.end_index())
    }

    /// The runs that hold something of `start..end`, from the one that holds `start` or the next.
    pub(super) fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = &Run> {
        let first =
            if start < end { self.0.partition_point(|run| run.end_index() <= start) } else { self.0.len() };
        self.0[first..].iter().take_while(move |run| run.first_index < end)
    }

    /// Removes the runs of the first segments, up to and including `segment_id`.
    pub(super) fn take_leading(&mut self, segment_id: u64) -> Vec<Run> {
        let count = self.0.partition_point(|run| run.segment_id <= segment_id);
        self.0.drain(..count).collect()
    }

    /// The indexes of each run, rising.
    pub(super) fn ranges(&self) -> impl Iterator<Item = std::ops::RangeInclusive<u64>> {
        self.0.iter().filter(|run| run.count > 0).map(|run| run.first_index..=run.end_index() - 1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Run> {
        self.0.iter()
    }

    pub(super) fn into_vec(self) -> Vec<Run> {
        self.0
    }

    pub(super) fn first_index(&self) -> Option<u64> {
        self.0.first().map(|run| run.first_index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> EntryId {
        EntryId { term, index }
    }

    #[test]
    fn runs_join_what_follows_and_forget_what_is_truncated() {
        let mut runs = Runs::default();
        for index in 0..10 {
            runs.push(1, index as u32, id(1, index));
        }
        runs.push(2, 0, id(1, 10));
        runs.truncate_from(7);
        runs.push(2, 1, id(2, 7));
        runs.push(2, 2, id(2, 8));
        assert_eq!(runs.0.len(), 2);
        assert_eq!(runs.find(6).map(|run| (run.segment_id, run.ordinal_of(6))), Some((1, 6)));
        assert_eq!(runs.find(8).map(|run| (run.term, run.ordinal_of(8))), Some((2, 2)));
        assert_eq!(runs.find(9), None);
        runs.truncate_from(0);
        assert_eq!(runs.first_index(), None);
    }

    #[test]
    fn spans_of_a_table_imply_the_truncations_between_them() {
        let mut runs = Runs::default();
        let span = |term, first_index, count| Span { term, first_index, count };
        runs.push_spans(1, &[span(1, 0, 10), span(2, 4, 3)]);
        runs.push_spans(2, &[span(3, 6, 2)]);
        let found: Vec<_> = (0..9).map(|index| runs.find(index).map(|run| run.term)).collect();
        let expected = [1, 1, 1, 1, 2, 2, 3, 3].map(Some);
        assert_eq!(found[..8], expected);
        assert_eq!(found[8], None);
        assert_eq!(runs.find(5).map(|run| run.ordinal_of(5)), Some(11));
        assert_eq!(runs.overlapping(3, 7).count(), 3);
        assert_eq!(runs.overlapping(5, 5).count(), 0);
    }
}
