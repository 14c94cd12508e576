//! Pauses after failures: doubling, and spread out so that those who failed together do not try again together.

use std::time::Duration;

use crate::clock::Random;

#[derive(Debug, Clone)]
pub struct Backoff {
    first_ms: u64,
    longest_ms: u64,
    next_ms: u64,
}

impl Backoff {
    pub fn new((first_ms, longest_ms): (u64, u64)) -> Self {
        Backoff { first_ms, longest_ms, next_ms: first_ms }
    }

    /// The next pause: anything up to what it may be by now.
    pub fn pause(&mut self, random: &dyn Random) -> Duration {
        let most_ms = self.next_ms;
        self.next_ms = (self.next_ms * 2).min(self.longest_ms);
        Duration::from_millis(random.next_u64() % (most_ms + 1))
    }

    /// Begins anew, after a success.
    pub fn reset(&mut self) {
        self.next_ms = self.first_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        // C-MIRROR-11
        struct Most;
        impl Random for Most {
            fn next_u64(&self) -> u64 {
                u64::MAX
            }
        }
        let mut backoff = Backoff::new((100, 30_000));
        let bounds: Vec<u64> = (0..11)
            .map(|_| {
                let bound_ms = backoff.next_ms;
                assert!(backoff.pause(&Most) <= Duration::from_millis(bound_ms));
                bound_ms
            })
            .collect();
        assert_eq!(bounds, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        backoff.reset();
        assert_eq!(backoff.next_ms, 100);
    }
}
