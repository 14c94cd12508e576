//! Waiting until an instant, to within some tens of microseconds.
//!
//! tokio's timers count milliseconds and round up. In open loop the wait would be part of every latency,
//! and half a millisecond is more than an append takes. The kernel's own timer is as fine as the rest.

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// A timer of the kernel.
pub struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    /// Needs a runtime around it.
    pub fn new() -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // What it was deprecated for are types that may lie about their descriptor. An `OwnedFd` cannot, and
        // what is to be used instead is unsafe to call, which this crate does without.
        #[expect(deprecated)]
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Alarm(timer))
    }

    /// Waits until `due`; returns at once if that has passed.
    pub async fn until(&mut self, due: Instant) -> io::Result<()> {
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Ok(());
            }
            let timespec = |seconds: u64, nanoseconds: u32| Timespec {
                tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX),
                tv_nsec: nanoseconds.into(),
            };
            let once = Itimerspec {
                it_interval: timespec(0, 0),
                it_value: timespec(wait.as_secs(), wait.subsec_nanos()),
            };
            // Setting it also takes back an expiry that nobody has read, so there is no need to read it.
            timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
            self.0.readable().await?.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_never_fires_early_and_can_be_set_again() {
        let mut alarm = Alarm::new().unwrap();
        for wait_us in [300, 0, 2000, 50] {
            let due = Instant::now() + Duration::from_micros(wait_us);
            alarm.until(due).await.unwrap();
            assert!(Instant::now() >= due);
        }
    }
}
