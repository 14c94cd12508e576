//! Clocks and random numbers that follow a seed.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use antiphon::clock::{Clock, Random};
use antiphon::storage::sim_disk::Dice;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Wall clocks read about this at the start, in Unix milliseconds.
const EPOCH_MS: i64 = 1_800_000_000_000;

/// The clocks of one machine: the wall clock is as wrong as the faults make it.
pub struct SimClock {
    start: Instant,
    offset_ms: AtomicI64,
}

impl SimClock {
    pub fn new(offset_ms: i64) -> Self {
        SimClock { start: Instant::now(), offset_ms: AtomicI64::new(offset_ms) }
    }

    pub fn jump_to(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        let elapsed_ms = self.start.elapsed().as_millis() as i64;
        (EPOCH_MS + elapsed_ms + self.offset_ms.load(Ordering::Relaxed)).max(0) as u64
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Random numbers of one member.
pub struct SimRandom(Mutex<Dice>);

impl SimRandom {
    pub fn new(seed: u64) -> Self {
        SimRandom(Mutex::new(Dice::new(seed)))
    }
}

impl Random for SimRandom {
    fn next_u64(&self) -> u64 {
        self.0.lock().roll()
    }
}

/// What the simulation asks of dice.
pub trait Throw {
    /// From `low` to `high`, both included.
    fn between(&mut self, low: u64, high: u64) -> u64;
    /// True `percent` times of a hundred.
    fn chance(&mut self, percent: u64) -> bool;
    /// A time from `low_ms` to `high_ms`.
    fn time_ms(&mut self, low_ms: u64, high_ms: u64) -> Duration;
    /// Dice of their own, which leave these where they are after one roll.
    fn fork(&mut self) -> Dice;
}

impl Throw for Dice {
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn time_ms(&mut self, low_ms: u64, high_ms: u64) -> Duration {
        Duration::from_micros(self.between(low_ms * 1000, high_ms * 1000))
    }

    fn fork(&mut self) -> Dice {
        Dice::new(self.roll())
    }
}
