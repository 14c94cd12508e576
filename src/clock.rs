//! Time and randomness, handed in.
//!
//! Nothing below `server.rs` asks the operating system for either: a whole cluster can then run in
//! simulated time from one seed. Timers come from tokio, whose clock a simulation pauses and advances.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Reads the clocks of one machine.
pub trait Clock: Send + Sync + 'static {
    /// Wall clock, Unix milliseconds. It may jump.
    fn wall_ms(&self) -> u64;
    /// Time since some fixed point; never goes back.
    fn monotonic(&self) -> Duration;
}

/// A source of random numbers.
pub trait Random: Send + Sync + 'static {
    fn next_u64(&self) -> u64;
}

/// The machine's clocks.
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(SystemClock { start: Instant::now() })
    }
}

impl Clock for SystemClock {
    fn wall_ms(&self) -> u64 {
        // A clock before 1970 reads as 1970: cluster time then follows the other members.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// The operating system's random numbers, through the thread's generator.
pub struct SystemRandom;

impl SystemRandom {
    pub fn shared() -> Arc<dyn Random> {
        Arc::new(SystemRandom)
    }
}

impl Random for SystemRandom {
    fn next_u64(&self) -> u64 {
        rand::random()
    }
}
