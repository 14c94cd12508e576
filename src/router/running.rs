//! Tasks of routers, and what becomes of one that panics.

use std::io;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::backoff::Backoff;
use crate::clock::Random;
use crate::limits::MIRROR_PAUSE_MS;
use crate::task;

/// A task that ends when this is dropped.
pub(super) struct Running(JoinHandle<()>);

impl Running {
    pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Running(task::spawn(future))
    }

    /// Waits until a task that never ends has ended, and says how.
    pub async fn ended(&mut self) -> io::Error {
        match (&mut self.0).await {
            Ok(()) => io::Error::other("it ended"),
            Err(error) => io::Error::other(error),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs what `start` begins; if that panics, calls `tell` and begins again after a pause. What is in the log about
/// the panic is not for users. Returns when it ends well.
pub(super) async fn run_again_after_panics<F: Future<Output = ()>>(
    random: &dyn Random,
    mut start: impl FnMut() -> F,
    mut tell: impl FnMut(),
) {
    let mut backoff = Backoff::new(MIRROR_PAUSE_MS);
    loop {
        let begun = Instant::now();
        // It takes all that it has with it, but for what is behind locks, which others may leave at any time too.
        if AssertUnwindSafe(start()).catch_unwind().await.is_ok() {
            return;
        }
        if begun.elapsed().as_millis() > u128::from(MIRROR_PAUSE_MS.1) {
            backoff.reset();
        }
        tell();
        tokio::time::sleep(backoff.pause(random)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::clock::SystemRandom;

    #[tokio::test(start_paused = true)]
    async fn what_panics_is_told_and_goes_on_after_a_pause() {
        let (begun, told) = (Cell::new(0), Cell::new(0));
        let start = || async {
            begun.set(begun.get() + 1);
            tokio::task::yield_now().await;
            assert!(begun.get() > 5, "on purpose");
        };
        run_again_after_panics(&SystemRandom, start, || told.set(told.get() + 1)).await;
        assert_eq!((begun.get(), told.get()), (6, 5));
    }

    #[tokio::test]
    async fn a_task_that_is_not_to_end_is_missed() {
        let mut panicking = Running::spawn(async { panic!("on purpose") });
        assert!(panicking.ended().await.to_string().contains("panic"));
        assert_eq!(Running::spawn(async {}).ended().await.to_string(), "it ended");
    }
}
