//! Which files another one has taken the place of.
//!
//! A file that is written anew from others says by its name which span it covers, and carries a generation above
//! theirs. Until they are removed, both are there, and a start has to tell from the names alone which count: the
//! wider one, and of two with one span that of the higher generation. Files that count do not overlap, so whoever
//! made the wider one did not count the other any more, whatever its generation.
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
        let (this, that) = ((self.first, self.last), (other.first, other.last));
        let covers = self.first <= other.first && other.last <= self.last;
        covers && (this != that || self.generation > other.generation)
    }
}

/// For each span, whether another one takes its place. In `n log n`.
pub(super) fn superseded(spans: &[Span]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..spans.len()).collect();
    // Whatever takes the place of a span is looked at before it: it begins earlier, or ends later, or is newer.
    order.sort_unstable_by_key(|at| {
        let Span { first, last, generation } = spans[*at];
        (first, std::cmp::Reverse(last), std::cmp::Reverse(generation))
    });
    let mut farthest: Option<Span> = None;
    let mut is_superseded = vec![false; spans.len()];
    for at in order {
        let span = spans[at];
        match farthest {
            Some(before) if span.last <= before.last => is_superseded[at] = span != before,
            _ => farthest = Some(span),
        }
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
        assert_eq!(superseded(&[span(3, 3, 0), span(3, 3, 1)]), [true, false]);
    }

    #[test]
    fn a_wider_span_supersedes_also_what_has_its_generation_or_a_higher_one() {
        let span = |first, last, generation| Span { first, last, generation };
        assert_eq!(superseded(&[span(2, 6, 1), span(3, 5, 1), span(4, 4, 7)]), [false, true, true]);
        assert_eq!(
            superseded(&[span(2, 6, 1), span(6, 7, 1)]),
            [false, false],
            "neither holds all of the other"
        );
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
