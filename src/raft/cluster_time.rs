//! Cluster time: what the leader stamps commands with.
//!
//! It follows the median of the members' wall clocks, so that one wrong clock, also the leader's, changes
//! nothing as long as a majority is right; and it never stands still or goes back: within a term of office
//! it runs at least as fast as the leader's monotonic clock, from the state's time at its start. (The
//! state in turn never takes a stamp below the one before.)

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::types::NodeId;
use crate::clock::Clock;

/// A peer's clock counts for this long after it was heard.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

struct Reading {
    wall_ms: u64,
    at: Duration,
}

struct Office {
    state_time_ms: u64,
    since: Duration,
}

/// The clocks of the members as this one sees them.
pub struct ClusterTime {
    clock: Arc<dyn Clock>,
    readings: Mutex<BTreeMap<NodeId, Reading>>,
    office: Mutex<Option<Office>>,
}

impl ClusterTime {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        ClusterTime { clock, readings: Mutex::default(), office: Mutex::default() }
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Notes what a peer's wall clock said. The answer is taken to be half of `round_trip` old.
    pub fn heard(&self, node_id: NodeId, wall_ms: u64, round_trip: Duration) {
        let at = self.clock.monotonic().saturating_sub(round_trip / 2);
        self.readings.lock().insert(node_id, Reading { wall_ms, at });
    }

    /// This member leads from now on; the state stands at `state_time_ms`.
    pub fn take_office(&self, state_time_ms: u64) {
        *self.office.lock() = Some(Office { state_time_ms, since: self.clock.monotonic() });
    }

    /// The time to stamp a command with, in Unix milliseconds.
    pub fn stamp_ms(&self) -> u64 {
        let now = self.clock.monotonic();
        let floor_ms =
            self.office.lock().as_ref().map_or(0, |office| {
                office.state_time_ms + now.saturating_sub(office.since).as_millis() as u64
            });
        self.median_ms(now).max(floor_ms)
    }

    fn median_ms(&self, now: Duration) -> u64 {
        let own_ms = self.clock.wall_ms();
        let mut readings = self.readings.lock();
        readings.retain(|_, reading| now.saturating_sub(reading.at) < HEARD_WITHIN);
        if readings.is_empty() {
            return own_ms;
        }
        let elapsed = |reading: &Reading| now.saturating_sub(reading.at).as_millis() as u64;
        let mut times: Vec<u64> =
            readings.values().map(|reading| reading.wall_ms.saturating_add(elapsed(reading))).collect();
        times.push(own_ms);
        times.sort_unstable();
        // Of an even number the lower one: time that comes late expires nothing too early.
        times[(times.len() - 1) / 2]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Default)]
    struct TestClock {
        wall_ms: AtomicU64,
        monotonic_ms: AtomicU64,
    }

    impl Clock for TestClock {
        fn wall_ms(&self) -> u64 {
            self.wall_ms.load(Ordering::Relaxed)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.monotonic_ms.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn one_wrong_clock_changes_nothing_and_time_never_stands_still() {
        let clock = Arc::new(TestClock::default());
        let time = ClusterTime::new(clock.clone());
        clock.wall_ms.store(1_000_000, Ordering::Relaxed);
        time.heard(2, 1_000_010, Duration::ZERO);
        time.heard(3, 1_000_020, Duration::ZERO);
        time.take_office(999_000);
        assert_eq!(time.stamp_ms(), 1_000_010);
        // The leader's own clock jumps a year ahead: the median is that of the others.
        clock.wall_ms.store(32_000_000_000, Ordering::Relaxed);
        assert_eq!(time.stamp_ms(), 1_000_020);
        // Every clock stands still or jumps back: the monotonic clock carries on.
        clock.wall_ms.store(0, Ordering::Relaxed);
        clock.monotonic_ms.store(20_000, Ordering::Relaxed);
        assert_eq!(time.stamp_ms(), 1_019_000);
    }
}
