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

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use super::{Engine, Inner};
use crate::error::Error;
use crate::limits::{SESSION_SPAN, SESSION_WINDOW};
use crate::raft::{CallError, Leader, Leadership, NodeId, Proposal};
use crate::state::{Draft, Envelope, Outcome, Refusal};
use crate::task;

/// How often it is looked for numbers whose time is over.
const OVERDUE_LOOK_INTERVAL: Duration = Duration::from_millis(500);
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
///
/// A number is given back by whoever has it, once it knows the outcome or gives up. But all commands of the member need
/// the session, and a future may be kept without being polled: so a number whose deadline is over is taken back from
/// whoever has it. No attempt begins after the deadline; one that was begun and comes late is refused where commands are
/// applied, or takes effect once.
pub(super) struct SessionKeeper {
    /// Places for commands; each number under way has one.
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
    /// With their deadlines.
    under_way: BTreeMap<u64, Instant>,
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
        let under_way = BTreeMap::new();
        *self.current.lock() = Some(OpenSession { id, next_number: 0, under_way, is_waited_for: false });
    }

    /// The next number, for whoever has a place and gives that up: the number has it from now on.
    fn next(&self, deadline: Instant) -> NextNumber {
        let mut current = self.current.lock();
        let Some(session) = current.as_mut() else { return NextNumber::NoSession };
        let number = session.next_number;
        let done_below = session.under_way.first_key_value().map_or(number, |(oldest, _)| *oldest);
        if number - done_below >= SESSION_SPAN {
            session.is_waited_for = true;
            return NextNumber::TooFar;
        }
        session.next_number += 1;
        session.under_way.insert(number, deadline);
        NextNumber::Given(Number { session: session.id, number, done_below })
    }

    /// Gives a number back, unless it was taken back before.
    fn done(&self, id: u64, number: u64) {
        let mut current = self.current.lock();
        let Some(session) = current.as_mut().filter(|session| session.id == id) else { return };
        if session.under_way.remove(&number).is_some() {
            self.gave_back(session, 1, number);
        }
    }

    /// Takes back what is overdue.
    fn take_back_overdue(&self, now: Instant) {
        let mut current = self.current.lock();
        let Some(session) = current.as_mut() else { return };
        let (known, oldest) = (session.under_way.len(), session.under_way.first_key_value());
        let Some(oldest) = oldest.map(|(number, _)| *number) else { return };
        session.under_way.retain(|_, deadline| *deadline > now);
        let given_back = known - session.under_way.len();
        if given_back > 0 {
            self.gave_back(session, given_back, oldest);
        }
    }

    /// So many numbers were given back, none of them below `lowest`.
    fn gave_back(&self, session: &mut OpenSession, count: usize, lowest: u64) {
        self.window.add_permits(count);
        let is_oldest = session.under_way.first_key_value().is_none_or(|(oldest, _)| *oldest > lowest);
        if session.is_waited_for && is_oldest {
            session.is_waited_for = false;
            self.moved.notify_waiters();
        }
    }

    /// The session is not known where commands are applied, which `number` was told. If that number had been taken
    /// back, it says nothing of the session.
    fn forget(&self, id: u64, number: u64) {
        let mut current = self.current.lock();
        let is_lost = |session: &OpenSession| session.id == id && session.under_way.contains_key(&number);
        if let Some(lost) = current.take_if(|session| is_lost(session)) {
            self.window.add_permits(lost.under_way.len());
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
        let place = place.map_err(|_| self.no_leader())?.map_err(|_| self.no_leader())?;
        let numbered = self.take_number(deadline).await.map_err(|_| self.no_leader())?;
        place.forget();
        let command = draft.seal(numbered.envelope);
        match self.carry_out(&command, deadline).await {
            Ok((Outcome::Refused(Refusal::SessionUnknown), _)) => {
                self.inner.sessions.forget(numbered.envelope.session, numbered.envelope.number);
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
            match self.inner.sessions.next(deadline) {
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
            // In a task of its own: all wait for it, whether the one that began it is polled or not.
            task::begin(self.clone().open_session(deadline).boxed()).await?;
        }
    }

    /// Opens this member's session, unless one is open.
    async fn open_session(self, deadline: Instant) -> Result<(), Unfinished> {
        let sessions = &self.inner.sessions;
        let opening = tokio::time::timeout_at(deadline, sessions.opening.lock()).await;
        let Ok(mut opening) = opening else { return Err(Unfinished::NeverHandedOver) };
        if sessions.current.lock().is_some() {
            return Ok(());
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
            Ok((Outcome::SessionOpened, _)) => {
                sessions.opened(id);
                Ok(())
            }
            _ => Err(Unfinished::NeverHandedOver),
        }
    }

    /// Takes numbers back whose time is over, as long as the member runs.
    pub(super) async fn take_back_numbers(self) {
        loop {
            tokio::time::sleep(OVERDUE_LOOK_INTERVAL).await;
            self.inner.sessions.take_back_overdue(Instant::now());
        }
    }

    fn node_id(&self) -> NodeId {
        self.inner.node.node_id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    /// Takes a place and a number.
    fn take(keeper: &SessionKeeper, deadline: Instant) -> NextNumber {
        keeper.window.try_acquire().expect("there is a place").forget();
        keeper.next(deadline)
    }

    fn given(session: u64, number: u64, done_below: u64) -> NextNumber {
        NextNumber::Given(Number { session, number, done_below })
    }

    #[tokio::test]
    async fn one_command_that_lasts_bounds_how_many_outcomes_have_to_be_remembered() {
        let keeper = SessionKeeper::default();
        assert_eq!(keeper.next(later(10)), NextNumber::NoSession);
        keeper.opened(7);
        assert_eq!(take(&keeper, later(10)), given(7, 0, 0));
        assert_eq!(take(&keeper, later(10)), given(7, 1, 0));
        for number in 2..SESSION_SPAN {
            assert_eq!(take(&keeper, later(10)), given(7, number, 0));
            keeper.done(7, number);
        }
        // All but the oldest, and one more.
        let moved = keeper.moved.notified();
        assert_eq!(keeper.next(later(10)), NextNumber::TooFar);
        keeper.done(7, 0);
        moved.await;
        assert_eq!(take(&keeper, later(10)), given(7, SESSION_SPAN, 1));
        assert_eq!(keeper.next(later(10)), NextNumber::TooFar);
        let moved = keeper.moved.notified();
        keeper.forget(7, 1);
        moved.await;
        assert_eq!(keeper.next(later(10)), NextNumber::NoSession);
        assert_eq!(keeper.window.available_permits(), SESSION_WINDOW as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_polled_holds_the_session_no_longer_than_its_deadline() {
        let keeper = SessionKeeper::default();
        keeper.opened(7);
        // Commands that nobody looks after any more have all places.
        for number in 0..SESSION_WINDOW {
            let deadline = if number == 0 { later(20) } else { later(10) };
            assert_eq!(take(&keeper, deadline), given(7, number, 0));
        }
        keeper.take_back_overdue(Instant::now());
        assert_eq!(keeper.window.available_permits(), 0);
        tokio::time::advance(Duration::from_secs(10)).await;
        keeper.take_back_overdue(Instant::now());
        assert_eq!(keeper.window.available_permits(), SESSION_WINDOW as usize - 1);
        for number in SESSION_WINDOW..SESSION_SPAN {
            assert_eq!(take(&keeper, later(10)), given(7, number, 0));
            keeper.done(7, number);
        }
        let moved = keeper.moved.notified();
        assert_eq!(keeper.next(later(10)), NextNumber::TooFar);
        tokio::time::advance(Duration::from_secs(10)).await;
        keeper.take_back_overdue(Instant::now());
        moved.await;
        assert_eq!(take(&keeper, later(10)), given(7, SESSION_SPAN, SESSION_SPAN));
        // Whoever had a number that was taken back gives back nothing, and what it is told of it is no news.
        keeper.done(7, 0);
        keeper.forget(7, 0);
        assert_eq!(take(&keeper, later(10)), given(7, SESSION_SPAN + 1, SESSION_SPAN));
        assert_eq!(keeper.window.available_permits(), SESSION_WINDOW as usize - 2);
    }
}
