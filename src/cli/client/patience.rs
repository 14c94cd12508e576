//! How long and how often members are asked that give no good answer.

use std::time::Duration;

/// Where nobody listens, the address is wrong, or all is down: waiting for an election helps neither.
const UNREACHED: Duration = Duration::from_secs(3);
/// An attempt that gets less than this would only end with a line about its own shortness.
const SHORTEST_ATTEMPT: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Patience {
    /// At most this long.
    Bounded(Duration),
    /// As long as members are only away. A failure of their own ends it after this time, so that a reader
    /// does not hang at a record that no member can read.
    Endless(Duration),
}

impl Patience {
    /// How long an attempt may take.
    pub fn left(self, elapsed: Duration) -> Duration {
        match self {
            Patience::Bounded(limit) => limit.saturating_sub(elapsed).max(SHORTEST_ATTEMPT),
            Patience::Endless(_) => Duration::MAX,
        }
    }

    /// Whether to try once more `elapsed` after the first attempt.
    pub fn goes_on(self, elapsed: Duration, was_reached: bool, is_internal: bool) -> bool {
        match self {
            Patience::Bounded(limit) if was_reached => elapsed < limit,
            Patience::Bounded(limit) => elapsed < limit.min(UNREACHED),
            Patience::Endless(limit) => !is_internal || elapsed < limit,
        }
    }

    /// The pause behind failure number `failures`: next to none while there are members that were not asked
    /// yet, then twice as long per round. Random, so that not all clients of a member come back at once.
    pub fn pause(self, failures: u32, members: usize) -> Duration {
        let rounds = failures / u32::try_from(members).unwrap_or(u32::MAX).max(1);
        let longest = match rounds {
            0 => Duration::from_millis(20),
            rounds => FIRST_PAUSE.saturating_mul(1 << (rounds - 1).min(10)).min(LONGEST_PAUSE),
        };
        longest.mul_f64(rand::random_range(0.5..1.0))
    }

    /// Whether to say that nobody answers: once, when all have been asked twice.
    pub fn tells(self, failures: u32, members: usize) -> bool {
        matches!(self, Patience::Endless(_)) && u64::from(failures) == 2 * members as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_grow_with_the_rounds_and_are_bounded() {
        let patience = Patience::Bounded(SECOND);
        for (failures, members, longest_ms) in [
            (1, 3, 20),
            (2, 3, 20),
            (3, 3, 100),
            (6, 3, 200),
            (1, 1, 100),
            (2, 1, 200),
            (4_000_000_000, 1, 5000),
        ] {
            let pause = patience.pause(failures, members);
            let longest = Duration::from_millis(longest_ms);
            assert!(pause >= longest / 2 && pause <= longest, "{failures} of {members}: {pause:?}");
        }
    }

    #[test]
    fn only_a_member_that_is_away_is_waited_for_without_end() {
        let bounded = Patience::Bounded(10 * SECOND);
        assert!(bounded.goes_on(9 * SECOND, true, false) && !bounded.goes_on(10 * SECOND, true, false));
        assert!(bounded.goes_on(2 * SECOND, false, false) && !bounded.goes_on(4 * SECOND, false, false));
        let endless = Patience::Endless(10 * SECOND);
        assert!(endless.goes_on(1000 * SECOND, false, false) && !endless.goes_on(11 * SECOND, true, true));
        assert!(endless.tells(6, 3) && !endless.tells(7, 3) && !bounded.tells(6, 3));
    }
}
