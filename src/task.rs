//! Spawning, as a seam.
//!
//! In production a task runs on tokio and what may wait for the disk runs on a thread beside it. In a
//! simulation many members share one thread: every task that a member starts belongs to its [`Scope`],
//! also those that its tasks start, and ending the scope ends them all at once, wherever they are, as a
//! crash does. Work that would block runs in place there, because a simulated disk takes no time.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, mpsc};
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{AbortHandle, JoinHandle};

use crate::limits::MAX_CLIENT_READS;

tokio::task_local! {
    static SCOPE: Arc<Scope>;
}

/// Tasks started while fewer handles are kept do not make the scope look for finished ones.
const SWEEP_ABOVE: usize = 256;

/// Turns of what clients wait for.
static CLIENT_READS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAX_CLIENT_READS)));

/// Turns of what takes a processor for clients: half of them, so that the others are for all else.
static CLIENT_WORK: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, |processors| processors.get());
    Arc::new(Semaphore::new((processors / 2).max(1)))
});

/// The tasks of one simulated member.
#[derive(Default)]
pub struct Scope {
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    running: Vec<AbortHandle>,
    is_ended: bool,
}

impl Scope {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Runs `future` as a task of this scope.
    pub fn spawn<T: Send + 'static>(
        self: &Arc<Self>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let task = tokio::spawn(SCOPE.scope(self.clone(), future));
        let mut tasks = self.tasks.lock();
        if tasks.is_ended {
            task.abort();
        } else {
            if tasks.running.len() > SWEEP_ABOVE {
                tasks.running.retain(|running| !running.is_finished());
            }
            tasks.running.push(task.abort_handle());
        }
        task
    }

    /// Ends every task of the scope, and every one that is started later.
    pub fn end(&self) {
        let mut tasks = self.tasks.lock();
        tasks.is_ended = true;
        tasks.running.drain(..).for_each(|task| task.abort());
    }
}

/// Starts a task, in the scope of the one that starts it.
pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    match SCOPE.try_with(Arc::clone) {
        Ok(scope) => scope.spawn(future),
        Err(_) => tokio::spawn(future),
    }
}

/// Work that gets on whether somebody waits for it or not: a future that may be left alone for a while must hold nothing
/// that others wait for, and this one does not depend on being polled. Goes on also if it is dropped.
pub enum Begun<T> {
    /// It is done, until that was taken.
    Done(Option<T>),
    Task(JoinHandle<T>),
}

impl<T: Send + 'static> Begun<T> {
    /// Ends it, if it has not ended yet.
    pub fn abort(&self) {
        if let Begun::Task(task) = self {
            task.abort();
        }
    }
}

impl<T: Unpin> Future for Begun<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match &mut *self {
            Begun::Done(done) => done.take().map_or(Poll::Pending, Poll::Ready),
            Begun::Task(task) => match ready!(Pin::new(task).poll(cx)) {
                Ok(done) => Poll::Ready(done),
                Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
                // Ended together with everything that runs here.
                Err(_) => Poll::Pending,
            },
        }
    }
}

/// Begins `work`: what is done at once costs no task.
pub fn begin<T: Send + 'static>(mut work: BoxFuture<'static, T>) -> Begun<T> {
    match (&mut work).now_or_never() {
        Some(done) => Begun::Done(Some(done)),
        None => Begun::Task(spawn(work)),
    }
}

/// Runs `work`, which may wait for the disk, away from the runtime's threads.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if SCOPE.try_with(|_| ()).is_ok() {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The same for a client: many of them wait for each other, and for nobody else.
pub async fn blocking_for_client<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if SCOPE.try_with(|_| ()).is_ok() {
        return work();
    }
    let turn = CLIENT_READS.clone().acquire_owned().await.map_err(io::Error::other)?;
    blocking(move || {
        // As long as the thread is taken, also when nobody waits for it any more.
        let _turn = turn;
        work()
    })
    .await
}

type Work = Box<dyn FnOnce() + Send>;

/// A thread of its own for work that may wait for the disk, one piece after another. It is for work that takes much
/// memory for a moment: an allocator keeps what each thread once had, and of the threads that [`blocking`] chooses from
/// every one would come to have it.
pub struct OwnThread {
    name: &'static str,
    works: Mutex<Option<mpsc::Sender<Work>>>,
}

impl OwnThread {
    /// `name` is what the system shows; the thread starts with the first work.
    pub const fn named(name: &'static str) -> Self {
        OwnThread { name, works: Mutex::new(None) }
    }

    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if SCOPE.try_with(|_| ()).is_ok() {
            return work();
        }
        let (done, outcome) = oneshot::channel();
        self.hand_over(Box::new(move || {
            // Whoever asked may be gone.
            let _ = done.send(work());
        }))?;
        outcome.await.map_err(io::Error::other)?
    }

    fn hand_over(&self, work: Work) -> io::Result<()> {
        let mut works = self.works.lock();
        let first = match works.as_ref() {
            Some(sender) => match sender.send(work) {
                Ok(()) => return Ok(()),
                // A panic has ended the thread.
                Err(mpsc::SendError(work)) => work,
            },
            None => work,
        };
        self.start(&mut works, first)
    }

    fn start(&self, works: &mut Option<mpsc::Sender<Work>>, first: Work) -> io::Result<()> {
        let (sender, receiver) = mpsc::channel::<Work>();
        std::thread::Builder::new().name(self.name.to_owned()).spawn(move || {
            first();
            while let Ok(work) = receiver.recv() {
                work();
            }
        })?;
        *works = Some(sender);
        Ok(())
    }
}

/// Runs `work`, which takes more than a moment of a processor, for a client: away from the runtime's threads, which
/// the cluster needs, and not much at once. Whoever has more to do than some milliseconds takes several turns.
pub async fn computing_for_client<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    if SCOPE.try_with(|_| ()).is_ok() {
        tokio::task::yield_now().await;
        return Ok(work());
    }
    // A task of its own: the turns are few, and none may wait until somebody polls who waits for it.
    let working = tokio::spawn(async move {
        let turn = CLIENT_WORK.clone().acquire_owned().await.map_err(io::Error::other)?;
        blocking(move || {
            let _turn = turn;
            Ok(work())
        })
        .await
    });
    let _end = EndOnDrop(working.abort_handle());
    working.await.map_err(io::Error::other)?
}

/// Ends a task that nobody waits for any more.
struct EndOnDrop(AbortHandle);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_of_its_own_does_all_works_in_order_and_outlives_a_panic() {
        let thread = OwnThread::named("test");
        let current = || Ok(std::thread::current().id());
        let (first, second) = (thread.run(current).await.unwrap(), thread.run(current).await.unwrap());
        assert_eq!(first, second);
        assert_ne!(first, std::thread::current().id());
        assert!(thread.run(|| -> io::Result<()> { panic!("as it was told to") }).await.is_err());
        // The thread may be about to end: then its last work is lost, and said to be.
        let mut tried = 0;
        while thread.run(|| Ok(7)).await.ok() != Some(7) {
            tried += 1;
            assert!(tried < 10, "there is no thread again");
        }
    }

    #[tokio::test]
    async fn work_for_clients_is_done_a_little_at_a_time_and_waits_for_nobody_who_looks_away() {
        use futures_util::FutureExt;
        use std::sync::atomic::{AtomicUsize, Ordering};

        let (at_once, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let work = || {
            let (at_once, most) = (at_once.clone(), most.clone());
            computing_for_client(move || {
                most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                at_once.fetch_sub(1, Ordering::SeqCst);
            })
        };
        // These are begun, and not polled again while the others are waited for.
        let mut left_alone: Vec<_> = (0..20).map(|_| Box::pin(work())).collect();
        left_alone.iter_mut().for_each(|one| assert!(one.now_or_never().is_none()));
        for _ in 0..20 {
            work().await.unwrap();
        }
        futures_util::future::join_all(left_alone).await.into_iter().for_each(|done| done.unwrap());
        let processors = std::thread::available_parallelism().map_or(1, |processors| processors.get());
        assert!(most.load(Ordering::SeqCst) <= (processors / 2).max(1));
    }

    #[tokio::test]
    async fn any_number_of_slow_reads_for_clients_leaves_threads_for_the_member() {
        let (release, is_released) = std::sync::mpsc::channel::<()>();
        let is_released = Arc::new(Mutex::new(is_released));
        // More than the runtime has threads.
        let reads: Vec<_> = (0..600)
            .map(|_| {
                let is_released = is_released.clone();
                tokio::spawn(blocking_for_client(move || {
                    let _ = is_released.lock().recv();
                    Ok(())
                }))
            })
            .collect();
        tokio::task::yield_now().await;
        let own = tokio::time::timeout(std::time::Duration::from_secs(10), blocking(|| Ok(7))).await;
        drop(release);
        assert_eq!(own.expect("there is a thread for it").unwrap(), 7);
        for read in reads {
            read.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn what_was_begun_gets_on_without_being_polled_and_ends_when_it_is_to() {
        assert_eq!(begin(async { 7 }.boxed()).await, 7);
        let (place, began) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(0)));
        let work = |mut until: tokio::sync::oneshot::Receiver<()>| {
            let (place, began) = (place.clone(), began.clone());
            async move {
                let _place = place.acquire_owned().await;
                began.add_permits(1);
                let _ = (&mut until).await;
                8
            }
            .boxed()
        };
        let (end, until) = tokio::sync::oneshot::channel();
        let begun = begin(work(until));
        began.acquire().await.unwrap().forget();
        end.send(()).unwrap();
        // It gives its place back though nobody has asked for its end.
        place.acquire().await.unwrap().forget();
        place.add_permits(1);
        assert_eq!(begun.await, 8);
        let (_end, until) = tokio::sync::oneshot::channel();
        let begun = begin(work(until));
        began.acquire().await.unwrap().forget();
        begun.abort();
        let _place = place.acquire().await.unwrap();
    }

    #[tokio::test]
    async fn ending_a_scope_ends_what_its_tasks_have_started() {
        let scope = Scope::new();
        let (started, mut is_started) = tokio::sync::mpsc::channel::<()>(1);
        scope.spawn(async move {
            spawn(async move {
                let _held = started;
                std::future::pending::<()>().await;
            });
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        scope.end();
        // The sender lives in the inner task: the channel closes when that is gone.
        assert_eq!(is_started.recv().await, None);
    }
}
