//! The connections of clients that are open: so many, and when there are too many, idle ones go first.
//!
//! A connection holds a file handle, and so does the log: without a bound, clients that say nothing would keep the
//! member from writing. Who asks nothing now can connect again at any time, so a new connection takes the place of
//! an idle one. Only where all have something under way a new one is refused.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::write_progress::WriteProgress;

/// How long the place of a connection that was told to end is waited for.
const SHED_TIME: Duration = Duration::from_millis(500);
/// When another idle one is told: the last one may have begun something just then.
const SHED_STEP: Duration = Duration::from_millis(50);

/// What a connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// End at once if nothing is under way: another one needs the place.
    MakeRoom = 1,
    /// Finish what is under way and end.
    Stop = 2,
}

/// One connection, as others see it.
#[derive(Default)]
pub struct Connection {
    pub progress: Arc<WriteProgress>,
    told: AtomicU8,
    waker: AtomicWaker,
}

impl Connection {
    pub fn new(progress: Arc<WriteProgress>) -> Arc<Self> {
        Arc::new(Connection { progress, ..Connection::default() })
    }

    fn tell(&self, told: Told) {
        self.told.fetch_max(told as u8, Ordering::Relaxed);
        self.waker.wake();
    }

    /// Waits until there is something to tell. What was told to make room is forgotten by that.
    pub async fn told(&self) -> Told {
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            match self.told.load(Ordering::Relaxed) {
                0 => Poll::Pending,
                told if told == Told::Stop as u8 => Poll::Ready(Told::Stop),
                told => {
                    let _ = self.told.compare_exchange(told, 0, Ordering::Relaxed, Ordering::Relaxed);
                    Poll::Ready(Told::MakeRoom)
                }
            }
        })
        .await
    }

    /// Whether it could be ended for another one.
    fn can_make_room(&self) -> bool {
        self.told.load(Ordering::Relaxed) == 0 && self.progress.exchange.is_idle()
    }
}

/// All connections that are open.
pub struct Connections {
    max: usize,
    slots: Mutex<Slots>,
    freed: Notify,
    /// Shows how many are open.
    shown: IntGauge,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Option<Arc<Connection>>>,
    free: Vec<usize>,
    /// Where the search for an idle one goes on: those found idle last come last.
    hand: usize,
    is_stopping: bool,
}

impl Slots {
    fn open(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// An idle one, the first after the last that was found.
    fn idle(&mut self) -> Option<Arc<Connection>> {
        let count = self.slots.len();
        for step in 0..count {
            let at = (self.hand + step) % count;
            if let Some(connection) = self.slots[at].as_ref().filter(|connection| connection.can_make_room())
            {
                self.hand = at + 1;
                return Some(connection.clone());
            }
        }
        None
    }
}

impl Connections {
    /// At most `max`, at least one. How many are open is shown by `shown`.
    pub fn new(max: usize, shown: IntGauge) -> Arc<Self> {
        Arc::new(Connections { max: max.max(1), slots: Mutex::default(), freed: Notify::new(), shown })
    }

    /// A place for `connection`, if need be that of an idle one; `None` if all have something under way.
    pub async fn enter(self: &Arc<Self>, connection: &Arc<Connection>) -> Option<ConnectionPlace> {
        let deadline = Instant::now() + SHED_TIME;
        let mut is_any_told = false;
        loop {
            let freed = self.freed.notified();
            if let Some(place) = self.try_enter(connection) {
                return Some(place);
            }
            is_any_told |= self.make_room();
            if !is_any_told || Instant::now() >= deadline {
                return None;
            }
            let _ = timeout(SHED_STEP, freed).await;
        }
    }

    fn try_enter(self: &Arc<Self>, connection: &Arc<Connection>) -> Option<ConnectionPlace> {
        let mut slots = self.slots.lock();
        if slots.open() >= self.max {
            return None;
        }
        let slot = match slots.free.pop() {
            Some(slot) => slot,
            None => {
                slots.slots.push(None);
                slots.slots.len() - 1
            }
        };
        slots.slots[slot] = Some(connection.clone());
        if slots.is_stopping {
            connection.tell(Told::Stop);
        }
        self.shown.inc();
        Some(ConnectionPlace { connections: self.clone(), slot })
    }

    /// Tells an idle connection to end; `false` if there is none.
    pub fn make_room(&self) -> bool {
        let idle = self.slots.lock().idle();
        idle.inspect(|connection| connection.tell(Told::MakeRoom)).is_some()
    }

    /// Tells all connections to end, also those to come.
    pub fn stop(&self) {
        let mut slots = self.slots.lock();
        slots.is_stopping = true;
        slots.slots.iter().flatten().for_each(|connection| connection.tell(Told::Stop));
    }

    /// How many are open.
    #[cfg(test)]
    pub fn open(&self) -> usize {
        self.slots.lock().open()
    }
}

/// The place of one connection; dropping it gives it back.
pub struct ConnectionPlace {
    connections: Arc<Connections>,
    slot: usize,
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let mut slots = self.connections.slots.lock();
        slots.slots[self.slot] = None;
        slots.free.push(self.slot);
        drop(slots);
        self.connections.shown.dec();
        self.connections.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::CLIENT_CONNECTIONS;

    #[tokio::test]
    async fn an_idle_connection_makes_room_and_a_busy_one_does_not() {
        // C-LIMIT-16
        let connections = Connections::new(2, CLIENT_CONNECTIONS.gauge());
        let open: Vec<Arc<Connection>> = (0..4).map(|_| Connection::new(Arc::default())).collect();
        open[0].progress.exchange.begin();
        let first = connections.enter(&open[0]).await.unwrap();
        let second = connections.enter(&open[1]).await.unwrap();
        let told = open[1].clone();
        let ends = tokio::spawn(async move {
            let told = told.told().await;
            drop(second);
            told
        });
        let third = connections.enter(&open[2]).await.expect("takes the place of the idle one");
        assert_eq!(ends.await.unwrap(), Told::MakeRoom);
        open[2].progress.exchange.begin();
        assert!(connections.enter(&open[3]).await.is_none(), "all are busy");
        assert_eq!((connections.open(), connections.shown.get()), (2, 2));
        drop((first, third));
        assert_eq!((connections.open(), connections.shown.get()), (0, 0));
    }

    #[tokio::test]
    async fn all_are_told_to_stop_also_those_to_come() {
        let connections = Connections::new(2, CLIENT_CONNECTIONS.gauge());
        let (early, late) = (Connection::new(Arc::default()), Connection::new(Arc::default()));
        let _early = connections.enter(&early).await.unwrap();
        connections.stop();
        let _late = connections.enter(&late).await.unwrap();
        assert_eq!((early.told().await, late.told().await), (Told::Stop, Told::Stop));
        assert_eq!(early.told().await, Told::Stop);
    }
}
