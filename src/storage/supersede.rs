//! Which files another one has taken the place of.
//!
//! A file that is written anew from others says by its name which span it covers, and carries a generation above
//! theirs. Until they are removed, both are there, and a start has to tell from the names alone which count.
use std::collections::BTreeMap;

/// What the name of a file says of its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub first: u64,
    pub last: u64,
    pub generation: u32,
}

#[cfg(test)]
impl Span {
    fn supersedes(self, other: Self) -> bool {
        self.generation > other.generation && self.first <= other.first && other.last <= self.last
    }
}

/// For each span, whether another one of a higher generation covers all of it. In `n log n`.
pub(super) fn superseded(spans: &[Span]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..spans.len()).collect();
    // Whatever covers a span begins no later, so it is looked at before.
    order.sort_unstable_by_key(|at| {
        let Span { first, last, generation } = spans[*at];
        (first, std::cmp::Reverse(last), std::cmp::Reverse(generation))
    });
    // The generations of those seen so far by their ends: the farther the end, the lower the generation. What ends
    // earlier at a lower generation can cover nothing that a later one does not.
    let mut front: BTreeMap<u64, u32> = BTreeMap::new();
    let mut is_superseded = vec![false; spans.len()];
    for at in order {
        let Span { last, generation, .. } = spans[at];
        let highest = front.range(last..).next().map(|(_, highest)| *highest);
        is_superseded[at] = highest.is_some_and(|highest| highest > generation);
        if highest.is_some_and(|highest| highest >= generation) {
            continue;
        }
        while let Some((end, lower)) = front.range(..=last).next_back().map(|(end, lower)| (*end, *lower))
            && lower <= generation
        {
            front.remove(&end);
        }
        front.insert(last, generation);
    }
    is_superseded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn later_generations_supersede_what_they_span() {
        let span = |first, last, generation| Span { first, last, generation };
        let spans = [span(3, 3, 0), span(4, 31, 1), span(3, 31, 2), span(2, 4, 0)];
        assert_eq!(superseded(&spans), [true, true, false, false]);
    }

    proptest! {
        #[test]
        fn the_sweep_says_what_looking_at_all_pairs_says(
            spans in proptest::collection::vec((0u64..20, 0u64..8, 0u32..5), 0..30),
        ) {
            let spans: Vec<Span> = spans
                .into_iter()
                .map(|(first, more, generation)| Span { first, last: first + more, generation })
                .collect();
            let by_pairs: Vec<bool> =
                spans.iter().map(|span| spans.iter().any(|other| other.supersedes(*span))).collect();
            prop_assert_eq!(superseded(&spans), by_pairs);
        }
    }
}
