//! Lines of the log that anybody could cause as often as he likes: one now and then, which says how many it stands for.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Time between two such lines.
pub const SELDOM_INTERVAL: Duration = Duration::from_secs(10);

/// How often something happened that is told seldom.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    told: Option<Instant>,
    untold: u64,
}

impl Seldom {
    pub const fn new() -> Self {
        Seldom(Mutex::new(State { told: None, untold: 0 }))
    }

    /// It happened. If it is time for a line: how often it did since the last one, this time included.
    pub fn happened(&self) -> Option<u64> {
        self.happened_at(Instant::now())
    }

    fn happened_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        state.untold += 1;
        if state.told.is_some_and(|told| now.saturating_duration_since(told) < SELDOM_INTERVAL) {
            return None;
        }
        state.told = Some(now);
        Some(std::mem::take(&mut state.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_a_later_one_speaks_for_those_between() {
        let seldom = Seldom::default();
        let start = Instant::now();
        let told = |after_ms: u64| seldom.happened_at(start + Duration::from_millis(after_ms));
        assert_eq!(told(0), Some(1));
        assert_eq!([told(1), told(9_998), told(9_999)], [None, None, None]);
        assert_eq!((told(10_000), told(10_001), told(20_000)), (Some(4), None, Some(2)));
    }
}
