//! Load: many connections, each of which has at most one request under way.
//!
//! *Closed loop*: a connection sends its next request once the last one is answered, so the cluster sets the
//! pace, and a stall hides the requests that would have been sent meanwhile. *Open loop*: requests are due
//! at fixed instants whatever the answers do, and latency counts from the instant at which one was due, so
//! a stall shows in all the requests that it held up ("no coordinated omission").
//!
//! Everything runs on one thread, so what connections share is in cells and not behind locks.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use super::alarm::Alarm;
use super::answer::error_code;
use super::http::Connection;
use super::options::Url;
use super::tally::Tally;

/// Wait after a refusal or a broken connection: who is refused must not hammer.
const PAUSE: Duration = Duration::from_millis(20);

/// What one connection does over and over.
pub trait Operation {
    /// The next request.
    fn request(&mut self) -> &[u8];

    /// Checks the body of a success; gives the number of its records. An error ends the run.
    fn accept(&mut self, body: &[u8]) -> anyhow::Result<u64>;

    /// The request came to nothing; `is_unknown` if it may have taken effect all the same.
    fn refuse(&mut self, is_unknown: bool);
}

/// The part of a run that counts. Load starts before it, by the warm-up.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub load_start: Instant,
    pub start: Instant,
    pub end: Instant,
}

/// When one connection's operations are due.
#[derive(Debug, Clone, Copy)]
pub enum Schedule {
    Closed,
    Open { next: Instant, interval: Duration },
}

impl Schedule {
    /// The schedule of connection `number` of `connections`, which together do `rate` operations per second.
    pub fn new(rate: Option<f64>, load_start: Instant, number: usize, connections: usize) -> Self {
        match rate {
            None => Schedule::Closed,
            Some(rate) => Schedule::Open {
                next: load_start + Duration::from_secs_f64(number as f64 / rate),
                interval: Duration::from_secs_f64(connections as f64 / rate),
            },
        }
    }

    /// When the next operation is due.
    fn take(&mut self, now: Instant) -> Instant {
        match self {
            Schedule::Closed => now,
            Schedule::Open { next, interval } => {
                let due = *next;
                *next += *interval;
                due
            }
        }
    }
}

/// One connection at work.
pub struct Worker<O> {
    url: Url,
    /// `None` after it broke.
    connection: Option<Connection>,
    operation: O,
    tally: Rc<RefCell<Tally>>,
}

impl<O: Operation> Worker<O> {
    pub async fn connect(url: &Url, operation: O, tally: Rc<RefCell<Tally>>) -> anyhow::Result<Self> {
        let connection = Connection::open(&url.authority).await;
        let connection = connection.with_context(|| format!("connect to http://{}", url.authority))?;
        Ok(Worker { url: url.clone(), connection: Some(connection), operation, tally })
    }

    /// Works until the window ends.
    pub async fn run(mut self, mut schedule: Schedule, window: Window) -> anyhow::Result<()> {
        let mut alarm = match schedule {
            Schedule::Closed => None,
            Schedule::Open { .. } => Some(Alarm::new().context("make a timer")?),
        };
        loop {
            let due = schedule.take(Instant::now());
            if due >= window.end {
                return Ok(());
            }
            if let Some(alarm) = &mut alarm {
                alarm.until(due).await.context("wait with a timer")?;
                if Instant::now() >= window.end {
                    // Due, but held up until the end by those before it. Leaving such operations out would
                    // make an overloaded cluster look better than it is.
                    self.tally.borrow_mut().unsent(due);
                    continue;
                }
            }
            self.step(due).await?;
        }
    }

    /// One operation, from request to answer.
    async fn step(&mut self, due: Instant) -> anyhow::Result<()> {
        let Some(connection) = &mut self.connection else {
            match Connection::open(&self.url.authority).await {
                Ok(connection) => self.connection = Some(connection),
                Err(_) => {
                    self.tally.borrow_mut().error("connect");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            return Ok(());
        };
        let mut is_refused = false;
        match connection.call(self.operation.request()).await {
            Ok(response) if response.is_success() => {
                let ended = Instant::now();
                let records = self.operation.accept(response.body)?;
                self.tally.borrow_mut().success(due, ended, records);
            }
            Ok(response) => {
                let code = error_code(response.body).unwrap_or("no code");
                self.operation.refuse(code == "commit_unknown" || response.status == 500);
                self.tally.borrow_mut().error(&format!("{} {code}", response.status));
                is_refused = true;
            }
            Err(error) => {
                self.operation.refuse(true);
                self.tally.borrow_mut().error(&format!("broken: {}", error.kind()));
                self.connection = None;
                is_refused = true;
            }
        }
        if self.connection.as_ref().is_some_and(Connection::is_closed) {
            self.connection = None;
        }
        if is_refused {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_loop_spreads_its_rate_over_connections_and_time() {
        let start = Instant::now();
        let mut dues = Vec::new();
        for number in 0..4 {
            let mut schedule = Schedule::new(Some(1000.0), start, number, 4);
            // However late it is asked: what is due does not depend on the answers.
            dues.extend((0..25).map(|_| schedule.take(start + Duration::from_secs(9)) - start));
        }
        dues.sort_unstable();
        let expected: Vec<_> = (0..100).map(Duration::from_millis).collect();
        assert_eq!(dues, expected);
    }

    #[test]
    fn closed_loop_is_due_when_it_is_asked() {
        let now = Instant::now();
        assert_eq!(Schedule::new(None, now, 3, 4).take(now + PAUSE), now + PAUSE);
    }
}
