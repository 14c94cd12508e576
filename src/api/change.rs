//! What a client changes that outlives its records is told in the log, whatever becomes of the client.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::Api;
use super::problem::internal;
use super::reply::Answer;
use crate::auth::Caller;
use crate::error::{Code, Error};
use crate::limits::{MAX_CHANGES_UNDER_WAY, MAX_TAG_DELETES_UNDER_WAY};
use crate::task;
use crate::telemetry::seldom::Seldom;

/// Changes of one kind that have a line each, in the interval of [`Seldom`]. One line stands for those beyond.
const MAX_CHANGES_TOLD: u32 = 50;

/// What the log is told of changes, by kind: many of one do not hide another one.
pub struct ChangeLines {
    pub topics: Seldom,
    pub made_by_appends: Seldom,
    pub topic_deletes: Seldom,
    /// Deletes of records, which some clients do all the time.
    pub record_deletes: Seldom,
    pub routers: Seldom,
    pub router_deletes: Seldom,
    pub pauses: Seldom,
    pub skips: Seldom,
    /// Changes of any kind of which it is not known whether they take effect.
    unknown: Seldom,
}

impl Default for ChangeLines {
    fn default() -> Self {
        let of_lines = |max| Seldom::of_lines(max, |line| tracing::info!("{line}"));
        let many = || of_lines(MAX_CHANGES_TOLD);
        ChangeLines {
            topics: many(),
            made_by_appends: many(),
            topic_deletes: many(),
            record_deletes: of_lines(1),
            routers: many(),
            router_deletes: many(),
            pauses: many(),
            skips: many(),
            unknown: many(),
        }
    }
}

/// Turns of one kind of changes, which go on when their clients are gone. A key has at most a quarter of them.
pub struct Turns {
    all: Semaphore,
    of_key: fn(&Caller) -> Option<Arc<Semaphore>>,
    /// Name of the limit in a refusal, and what it is.
    limit: &'static str,
    max: usize,
    /// Whether a request has no more than its time from when it came; otherwise that is only for how long it waits.
    is_timed: bool,
}

/// Turns of what is one command, which may be waiting for a leader.
pub static CHANGES: Turns = Turns {
    all: Semaphore::const_new(MAX_CHANGES_UNDER_WAY),
    of_key: Caller::changes,
    limit: "max_changes_under_way",
    max: MAX_CHANGES_UNDER_WAY,
    is_timed: true,
};

/// Turns of deletes by tag, which may read for minutes before they are commands: nothing else waits for those.
pub static TAG_DELETES: Turns = Turns {
    all: Semaphore::const_new(MAX_TAG_DELETES_UNDER_WAY),
    of_key: Caller::tag_deletes,
    limit: "max_deletes_by_tag_under_way",
    max: MAX_TAG_DELETES_UNDER_WAY,
    is_timed: false,
};

/// One turn, until it is dropped.
struct Turn {
    _of_key: Option<OwnedSemaphorePermit>,
    _of_all: SemaphorePermit<'static>,
}

/// What a handler waits for. Boxed, so that the future of one that may make a change is no larger than it is without.
type Carried = Pin<Box<dyn Future<Output = Answer> + Send>>;

impl Turns {
    /// Carries out to its end what `change` gives, once it is its turn, also if the client that waits for its answer goes
    /// away: once it is proposed it takes effect all the same, and whoever made it is told in the log.
    pub fn carry_through<F: Future<Output = Answer> + Send + 'static>(
        &'static self,
        api: Api,
        caller: Caller,
        change: impl FnOnce(Api) -> F,
    ) -> Carried {
        let deadline = api.engine.deadline();
        let refusing = api.engine.clone();
        let engine = if self.is_timed { api.engine.until(deadline) } else { api.engine.clone() };
        let change = Box::pin(change(Api { engine, ..api }));
        Box::pin(async move {
            let turn = self.turn(&caller, deadline).await;
            let turn = turn.ok_or_else(|| refusing.out_of_turn(self.limit, self.max))?;
            carry_out(turn, change).await
        })
    }

    /// `None` if there is none until `deadline`. Those of a key wait for each other first, and take no turns of others
    /// meanwhile.
    async fn turn(&'static self, caller: &Caller, deadline: Instant) -> Option<Turn> {
        let waiting = async {
            let _of_key = match (self.of_key)(caller) {
                Some(turns) => Some(turns.acquire_owned().await.ok()?),
                None => None,
            };
            Some(Turn { _of_key, _of_all: self.all.acquire().await.ok()? })
        };
        timeout_at(deadline, waiting).await.ok()?
    }
}

async fn carry_out(turn: Turn, change: Carried) -> Answer {
    let carried = task::spawn(async move {
        let _turn = turn;
        change.await
    });
    match carried.await {
        Ok(answer) => answer,
        // As if it had been carried out here.
        Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
        Err(ended) => Err(internal(ended)),
    }
}

/// Tells the log of a change that `caller` has made, which is of the kind of `lines`.
pub fn tell(lines: &Seldom, caller: &Caller, done: fmt::Arguments<'_>) {
    lines.tell(format_args!("{caller} {done}"));
}

impl ChangeLines {
    /// Tells the log of a change that `caller` has asked for, where `proposed` leaves open whether it takes effect.
    pub fn tell_if_unknown<T>(
        &self,
        caller: &Caller,
        proposed: &Result<T, Error>,
        asked: fmt::Arguments<'_>,
    ) {
        if proposed.as_ref().is_err_and(|error| error.code == Code::CommitUnknown) {
            let what = format_args!("asked to {asked}; whether that comes about is not known");
            tell(&self.unknown, caller, what);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;
    use crate::auth::Keys;
    use crate::limits::{MAX_CHANGES_UNDER_WAY_PER_KEY, MAX_TAG_DELETES_UNDER_WAY_PER_KEY};

    fn turns(all: usize, of_key: fn(&Caller) -> Option<Arc<Semaphore>>) -> &'static Turns {
        let (limit, is_timed) = ("max_changes_under_way", true);
        Box::leak(Box::new(Turns { all: Semaphore::new(all), of_key, limit, max: all, is_timed }))
    }

    async fn any_turn() -> Turn {
        let anyone = Keys::default().authenticate(None).unwrap();
        turns(1, Caller::changes).turn(&anyone, Instant::now()).await.expect("it is the only one")
    }

    #[tokio::test]
    async fn a_change_is_carried_to_its_end_also_if_its_client_goes_away() {
        let (propose, proposed) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel::<()>();
        let change = async move {
            let _ = proposed.await;
            let _ = tell.send(());
            Ok(StatusCode::OK.into_response())
        };
        let change = carry_out(any_turn().await, Box::pin(change));
        assert!(change.now_or_never().is_none(), "and what waited is gone");
        propose.send(()).expect("it waits for this");
        assert_eq!(told.await, Ok(()));
    }

    #[tokio::test]
    async fn an_answer_and_a_panic_come_back_to_who_waits() {
        let answer = carry_out(any_turn().await, Box::pin(async { Err(Error::invalid("x")) })).await;
        assert_eq!(answer.err(), Some(Error::invalid("x")));
        async fn panics() -> Answer {
            panic!("as it was told to")
        }
        let carried = carry_out(any_turn().await, Box::pin(panics()));
        assert!(std::panic::AssertUnwindSafe(carried).catch_unwind().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_has_a_quarter_of_the_turns_and_nobody_waits_longer_than_its_time() {
        // C-CLU-03, C-LIMIT-09
        let keys = Keys::parse("a,b").unwrap();
        let caller = |key| keys.authenticate(Some(key)).unwrap();
        let deadline = || Instant::now() + Duration::from_secs(10);
        for (all, of_key, most) in [
            (MAX_CHANGES_UNDER_WAY, Caller::changes as fn(&Caller) -> _, MAX_CHANGES_UNDER_WAY_PER_KEY),
            (MAX_TAG_DELETES_UNDER_WAY, Caller::tag_deletes, MAX_TAG_DELETES_UNDER_WAY_PER_KEY),
        ] {
            let turns = turns(all, of_key);
            let mut held = Vec::new();
            for _ in 0..most {
                held.push(turns.turn(&caller("a"), Instant::now()).await.expect("it is its quarter"));
            }
            let begun = Instant::now();
            assert!(turns.turn(&caller("a"), deadline()).await.is_none());
            assert_eq!(begun.elapsed().as_secs(), 10);
            let other = turns.turn(&caller("b"), Instant::now()).await;
            assert!(other.is_some(), "those who wait hold no turns of others");
            held.pop();
            assert!(turns.turn(&caller("a"), deadline()).await.is_some());
        }
        // Without keys there is nothing to count by, but there is an end.
        let anyone = Keys::default().authenticate(None).unwrap();
        let turns = turns(2, Caller::changes);
        let held = [turns.turn(&anyone, deadline()).await, turns.turn(&anyone, deadline()).await];
        assert!(held.iter().all(Option::is_some));
        assert!(turns.turn(&anyone, deadline()).await.is_none());
    }
}
