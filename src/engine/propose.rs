//! Carrying a command out: through whichever member leads, exactly once.
//!
//! A command is sealed with a session and a number (see `state/session.rs`) before it first leaves, so
//! that the same bytes can be sent again and again, here or to another leader, and take effect once.
//! What became of an attempt decides how the request may end:
//!
//! | attempt | then |
//! |---|---|
//! | never put into a log | try the next leader; in the end `no_leader` |
//! | perhaps put into a log | send again under the same number; in the end `commit_unknown` |
//! | outcome | done |

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use super::{Engine, Inner};
use crate::error::Error;
use crate::limits::{SESSION_SPAN, SESSION_WINDOW};
use crate::raft::{CallError, Leader, Leadership, NodeId, Proposal};
use crate::state::{Draft, Envelope, Outcome, Refusal};

/// Pause before a command is tried again where nobody led.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Where the time of a write went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Time until a quorum had the command and its outcome was known, in milliseconds.
    pub replicate_ms: f64,
    /// The part of it spent at another member that leads, if one did.
    pub forward_ms: Option<f64>,
}

/// This member's session: numbers that are under way, and the place for more.
pub(super) struct SessionKeeper {
    window: Semaphore,
    current: Mutex<Option<OpenSession>>,
    /// Held while a session is opened. Its id, until it is known what became of that.
    opening: tokio::sync::Mutex<Option<u64>>,
    /// Wakes whoever waits for a number because the oldest one lasts.
    moved: Notify,
}

impl Default for SessionKeeper {
    fn default() -> Self {
        SessionKeeper {
            window: Semaphore::new(SESSION_WINDOW as usize),
            current: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            moved: Notify::new(),
        }
    }
}

struct OpenSession {
    id: u64,
    next_number: u64,
    under_way: BTreeSet<u64>,
    /// Somebody waits for the oldest one to end.
    is_waited_for: bool,
}

/// A number of a session, and up to where all before it are done.
#[derive(Debug, PartialEq)]
struct Number {
    session: u64,
    number: u64,
    done_below: u64,
}

#[derive(Debug, PartialEq)]
enum NextNumber {
    Given(Number),
    /// The oldest command has been under way for too many others.
    TooFar,
    NoSession,
}

impl SessionKeeper {
    fn opened(&self, id: u64) {
        let under_way = BTreeSet::new();
        *self.current.lock() = Some(OpenSession { id, next_number: 0, under_way, is_waited_for: false });
    }

    fn next(&self) -> NextNumber {
        let mut current = self.current.lock();
        let Some(session) = current.as_mut() else { return NextNumber::NoSession };
        let number = session.next_number;
        let done_below = session.under_way.first().copied().unwrap_or(number);
        if number - done_below >= SESSION_SPAN {
            session.is_waited_for = true;
            return NextNumber::TooFar;
        }
        session.next_number += 1;
        session.under_way.insert(number);
        NextNumber::Given(Number { session: session.id, number, done_below })
    }

    fn done(&self, id: u64, number: u64) {
        let mut current = self.current.lock();
        let Some(session) = current.as_mut().filter(|session| session.id == id) else { return };
        session.under_way.remove(&number);
        if session.is_waited_for && session.under_way.first().is_none_or(|oldest| *oldest > number) {
            session.is_waited_for = false;
            self.moved.notify_waiters();
        }
    }

    fn forget(&self, id: u64) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|session| session.id == id) {
            *current = None;
            self.moved.notify_waiters();
        }
    }
}

/// A number of the session in use; it is done when this is dropped.
struct Numbered {
    inner: Arc<Inner>,
    envelope: Envelope,
}

impl Drop for Numbered {
    fn drop(&mut self) {
        self.inner.sessions.done(self.envelope.session, self.envelope.number);
    }
}

/// What is known of a command whose time is over.
enum Unfinished {
    /// No attempt can have reached a log.
    NeverHandedOver,
    /// One may have.
    Unknown,
    /// None can have: there is no room for records.
    StorageFull,
    /// None can have: the leader cannot read it.
    Unreadable,
}

/// Waits for an attempt at `leader`, but not longer than until another one has taken its place: a leader
/// that was cut off does not answer, and the next one can tell what became of the command.
async fn unless_replaced(
    attempt: impl Future<Output = Result<Proposal, CallError>>,
    leader: &Option<Leader>,
    mut leadership: watch::Receiver<Leadership>,
) -> Result<Proposal, CallError> {
    tokio::select! {
        biased;
        result = attempt => result,
        _ = leadership.wait_for(|now| now.leader.is_some() && !is_same(&now.leader, leader)) => {
            Err(CallError::Lost("another leader took over".into()))
        }
    }
}

fn is_same(one: &Option<Leader>, other: &Option<Leader>) -> bool {
    match (one, other) {
        (Some(Leader::Here), Some(Leader::Here)) | (None, None) => true,
        (Some(Leader::At(one)), Some(Leader::At(other))) => one.node_id == other.node_id,
        _ => false,
    }
}

impl Engine {
    /// Carries `draft` out and returns its outcome, also if that is a refusal. Errors: `no_leader`,
    /// `commit_unknown`.
    pub async fn propose(&self, draft: Draft) -> Result<(Outcome, Timings), Error> {
        let deadline = self.deadline();
        let waiting = self.inner.sessions.window.acquire();
        let place = tokio::time::timeout_at(deadline, waiting).await;
        let _place = place.map_err(|_| self.no_leader())?.map_err(|_| self.no_leader())?;
        let numbered = self.take_number(deadline).await.map_err(|_| self.no_leader())?;
        let command = draft.seal(numbered.envelope);
        match self.carry_out(&command, deadline).await {
            Ok((Outcome::Refused(Refusal::SessionUnknown), _)) => {
                self.inner.sessions.forget(numbered.envelope.session);
                Err(self.commit_unknown())
            }
            Ok(done) => Ok(done),
            Err(Unfinished::NeverHandedOver) => Err(self.no_leader()),
            Err(Unfinished::Unknown) => Err(self.commit_unknown()),
            Err(Unfinished::StorageFull) => Err(self.storage_full()),
            Err(Unfinished::Unreadable) => Err(self.unreadable_at_leader()),
        }
    }

    async fn carry_out(&self, command: &Bytes, deadline: Instant) -> Result<(Outcome, Timings), Unfinished> {
        let started = Instant::now();
        let mut leadership = self.inner.node.leadership();
        let mut unfinished = Unfinished::NeverHandedOver;
        loop {
            let leader = leadership.borrow_and_update().leader.clone();
            let attempt_started = Instant::now();
            let attempt = async {
                match &leader {
                    None => Ok(Proposal::NotLeader),
                    Some(Leader::Here) => Ok(self.inner.node.propose_here(command.clone()).await),
                    Some(Leader::At(peer)) => {
                        self.inner.forwarder.forward(peer, command.clone(), deadline).await
                    }
                }
            };
            let attempt = unless_replaced(attempt, &leader, self.inner.node.leadership());
            match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Ok(Proposal::Done(outcome))) => {
                    let forward_ms = matches!(leader, Some(Leader::At(_)))
                        .then(|| attempt_started.elapsed().as_secs_f64() * 1e3);
                    let replicate_ms = started.elapsed().as_secs_f64() * 1e3;
                    return Ok((outcome, Timings { replicate_ms, forward_ms }));
                }
                // An earlier attempt may still be in a log: then its fate is what the client is told.
                Ok(Ok(Proposal::StorageFull)) => match unfinished {
                    Unfinished::NeverHandedOver => return Err(Unfinished::StorageFull),
                    _ => return Err(Unfinished::Unknown),
                },
                Ok(Ok(Proposal::Unreadable)) => match unfinished {
                    Unfinished::NeverHandedOver => return Err(Unfinished::Unreadable),
                    _ => return Err(Unfinished::Unknown),
                },
                Ok(Ok(Proposal::NotLeader)) | Ok(Err(CallError::Unreachable(_))) => {}
                Ok(Ok(Proposal::Unknown)) | Ok(Err(CallError::Lost(_) | CallError::Failed(_))) => {
                    unfinished = Unfinished::Unknown;
                }
                Err(_) if leader.is_some() => return Err(Unfinished::Unknown),
                Err(_) => return Err(unfinished),
            }
            // A new leader is worth an attempt at once; otherwise look again after a pause.
            let pause = if leader.is_none() { Duration::from_millis(200) } else { RETRY_PAUSE };
            let until = deadline.min(Instant::now() + pause);
            let _ = tokio::time::timeout_at(until, leadership.changed()).await;
            if Instant::now() >= deadline {
                return Err(unfinished);
            }
        }
    }

    /// The next number of this member's session, which is opened if need be.
    async fn take_number(&self, deadline: Instant) -> Result<Numbered, Unfinished> {
        loop {
            // Listening first, looking second.
            let moved = self.inner.sessions.moved.notified();
            match self.inner.sessions.next() {
                NextNumber::Given(Number { session, number, done_below }) => {
                    let envelope = Envelope { node_id: self.node_id(), session, number, done_below };
                    return Ok(Numbered { inner: self.inner.clone(), envelope });
                }
                NextNumber::TooFar => {
                    let moved = tokio::time::timeout_at(deadline, moved).await;
                    moved.map_err(|_| Unfinished::NeverHandedOver)?;
                    continue;
                }
                NextNumber::NoSession => {}
            }
            let opening = tokio::time::timeout_at(deadline, self.inner.sessions.opening.lock()).await;
            let Ok(mut opening) = opening else { return Err(Unfinished::NeverHandedOver) };
            if self.inner.sessions.current.lock().is_some() {
                continue;
            }
            // An attempt whose end is not known, also one that was broken off here, may take effect at any
            // later time. So it is the same session that is tried again: another one could be replaced by it.
            let id = *opening.get_or_insert_with(|| self.inner.random.next_u64());
            let envelope = Envelope { node_id: self.node_id(), session: id, ..Envelope::default() };
            let opened = self.carry_out(&Draft::open_session().seal(envelope), deadline).await;
            if opened.is_ok() {
                *opening = None;
            }
            match opened {
                Ok((Outcome::SessionOpened, _)) => self.inner.sessions.opened(id),
                _ => return Err(Unfinished::NeverHandedOver),
            }
        }
    }

    fn node_id(&self) -> NodeId {
        self.inner.node.node_id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_command_that_lasts_bounds_how_many_outcomes_have_to_be_remembered() {
        let keeper = SessionKeeper::default();
        assert_eq!(keeper.next(), NextNumber::NoSession);
        keeper.opened(7);
        for number in 0..SESSION_SPAN {
            assert_eq!(keeper.next(), NextNumber::Given(Number { session: 7, number, done_below: 0 }));
        }
        // All but the oldest, and one more.
        (2..SESSION_SPAN).for_each(|number| keeper.done(7, number));
        let moved = keeper.moved.notified();
        assert_eq!(keeper.next(), NextNumber::TooFar);
        keeper.done(7, 0);
        moved.await;
        let given = Number { session: 7, number: SESSION_SPAN, done_below: 1 };
        assert_eq!(keeper.next(), NextNumber::Given(given));
        assert_eq!(keeper.next(), NextNumber::TooFar);
        let moved = keeper.moved.notified();
        keeper.forget(7);
        moved.await;
        assert_eq!(keeper.next(), NextNumber::NoSession);
    }
}
