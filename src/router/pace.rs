//! How much a mirror asks for at once while there is more: about what comes within a second.
//!
//! So a link that is slow holds the room for its answer no longer than one that is fast.

use std::time::Duration;

use crate::limits::{LARGE_PULL_TIME, MAX_PULL_BYTES, SMALL_PULL_BYTES};

/// An answer may be so many times as long as the one before.
const MAX_GROWTH: usize = 4;

pub(super) struct Pace {
    bytes: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { bytes: SMALL_PULL_BYTES }
    }
}

impl Pace {
    /// What to ask for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// An answer of `bytes` came to a pull of `asked_bytes` that was not to wait.
    pub fn note(&mut self, asked_bytes: usize, bytes: usize, took: Duration) {
        if bytes < asked_bytes / 2 && took < LARGE_PULL_TIME {
            // There was no more, which says nothing of the link.
            return;
        }
        let bytes_in_time = bytes as u128 * LARGE_PULL_TIME.as_micros() / took.as_micros().max(1);
        let most = (self.bytes * MAX_GROWTH).min(MAX_PULL_BYTES);
        self.bytes = usize::try_from(bytes_in_time).unwrap_or(most).clamp(SMALL_PULL_BYTES, most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_follows_what_comes() {
        let mut pace = Pace::default();
        let pulls = |pace: &mut Pace, bytes_per_s: usize| {
            for _ in 0..8 {
                let took = Duration::from_secs_f64(pace.bytes() as f64 / bytes_per_s as f64);
                pace.note(pace.bytes(), pace.bytes(), took);
            }
            pace.bytes()
        };
        assert_eq!(pulls(&mut pace, 1 << 30), MAX_PULL_BYTES);
        let second = pulls(&mut pace, 1 << 20);
        assert!(second.abs_diff(1 << 20) < 1024, "{second}");
        // Nothing more was there.
        pace.note(second, 100, Duration::from_millis(50));
        assert_eq!(pace.bytes(), second);
        assert_eq!(pulls(&mut pace, 1000), SMALL_PULL_BYTES);
    }
}
