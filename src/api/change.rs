//! What a client changes that outlives its records is told in the log, whatever becomes of the client.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use tokio::sync::Semaphore;

use super::problem::internal;
use super::reply::Answer;
use crate::auth::Caller;
use crate::error::{Code, Error};
use crate::limits::MAX_CHANGES_UNDER_WAY;
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

/// Places for changes, which go on when their clients are gone.
static UNDER_WAY: LazyLock<Arc<Semaphore>> =
    LazyLock::new(|| Arc::new(Semaphore::new(MAX_CHANGES_UNDER_WAY)));

/// Carries `change` out to its end, also if the client that waits for its answer goes away: once it is proposed it takes
/// effect all the same, and whoever made it is told in the log.
///
/// The change is boxed at once, so that the future of a handler that may make one is no larger than it is without.
pub fn carry_through(
    change: impl Future<Output = Answer> + Send + 'static,
) -> impl Future<Output = Answer> + Send {
    carry_boxed(Box::pin(change))
}

async fn carry_boxed(change: Pin<Box<dyn Future<Output = Answer> + Send>>) -> Answer {
    let place = UNDER_WAY.clone().acquire_owned().await.map_err(internal)?;
    let carried = task::spawn(async move {
        let _place = place;
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
    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_change_is_carried_to_its_end_also_if_its_client_goes_away() {
        let (propose, proposed) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel::<()>();
        let change = carry_through(async move {
            let _ = proposed.await;
            let _ = tell.send(());
            Ok(StatusCode::OK.into_response())
        });
        assert!(change.now_or_never().is_none(), "and what waited is gone");
        propose.send(()).expect("it waits for this");
        assert_eq!(told.await, Ok(()));
    }

    #[tokio::test]
    async fn an_answer_and_a_panic_come_back_to_who_waits() {
        let answer = carry_through(async { Err(Error::invalid("x")) }).await;
        assert_eq!(answer.err(), Some(Error::invalid("x")));
        async fn panics() -> Answer {
            panic!("as it was told to")
        }
        assert!(std::panic::AssertUnwindSafe(carry_through(panics())).catch_unwind().await.is_err());
    }
}
