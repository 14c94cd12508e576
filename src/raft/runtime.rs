//! openraft's runtime: tokio, with random numbers that can be seeded.
//!
//! Election time-outs come from this generator. In a simulation one seed must decide them, so the thread
//! that runs a member may set a seed; in production the operating system provides it.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use openraft::OptionalSend;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_tokio as tokio_rt;
use rand::rngs::{SmallRng, SysRng};
use rand::{SeedableRng, TryRng};

use crate::task;

thread_local! {
    static GENERATOR: RefCell<Option<SmallRng>> = const { RefCell::new(None) };
}

/// Makes this thread's election time-outs a function of `seed`.
pub fn seed_thread(seed: u64) {
    GENERATOR.with(|generator| *generator.borrow_mut() = Some(SmallRng::seed_from_u64(seed)));
}

/// The current thread's generator.
#[derive(Debug)]
pub struct ThreadGenerator;

impl ThreadGenerator {
    fn with<T>(&self, draw: impl FnOnce(&mut SmallRng) -> Result<T, Infallible>) -> Result<T, Infallible> {
        GENERATOR.with(|generator| {
            draw(generator.borrow_mut().get_or_insert_with(|| {
                SmallRng::try_from_rng(&mut SysRng)
                    .unwrap_or_else(|_| SmallRng::seed_from_u64(rand::random()))
            }))
        })
    }
}

impl TryRng for ThreadGenerator {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.with(|generator| generator.try_next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.with(|generator| generator.try_next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.with(|generator| generator.try_fill_bytes(bytes))
    }
}

/// tokio as openraft sees it.
#[derive(Debug)]
pub struct Runtime;

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = tokio_rt::TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = ThreadGenerator;
    type Mpsc = tokio_rt::TokioMpsc;
    type Watch = tokio_rt::TokioWatch;
    type Oneshot = tokio_rt::TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = tokio_rt::TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        task::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        tokio_rt::TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio_rt::TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        ThreadGenerator
    }

    fn new(_threads: usize) -> Self {
        Runtime
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        // Only openraft's own test-suite drives futures through this door.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a tokio runtime can be built").block_on(future)
    }
}
