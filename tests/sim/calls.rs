//! Calls at members, as clients make them.
//!
//! A call ends with the member's process, or else within a time: whatever goes wrong, nobody waits for ever.

use std::panic::Location;
use std::sync::atomic::Ordering;
use std::time::Duration;

use antiphon::engine::Engine;
use antiphon::error::{Code, Error};
use antiphon::state::{Draft, Outcome};
use tokio::time::timeout;

use crate::member::engine_of;
use crate::world::World;

/// A call makes at most so many requests one after the other, each within the member's time-out.
const REQUESTS: u32 = 3;
/// What a call may take beside: long polls, and pulls that wait for something to say.
const SLACK: Duration = Duration::from_secs(20);

/// What became of a command.
#[derive(Debug)]
pub enum Told {
    Outcome(Outcome),
    /// It had and will have no effect.
    Refused(Error),
    /// Nobody knows.
    Unknown,
    /// The member was not there to be asked.
    Down,
}

/// Runs `call` at a member; it ends with the member's process. `None` if that happens, or if it is down.
#[track_caller]
pub fn at<'a, T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    world: &'a World,
    member: usize,
    call: impl FnOnce(Engine) -> F + 'a,
) -> impl Future<Output = Option<T>> + 'a {
    let place = Location::caller();
    async move {
        let limit = REQUESTS * Duration::from_millis(world.setup.request_timeout_ms) + SLACK;
        match timeout(limit, at_length(world, member, call)).await {
            Ok(answer) => answer,
            Err(_) => {
                let (who, at) = (member + 1, place.line());
                let file = place.file();
                world.trace.complain(format_args!("m{who}: a call of {file}:{at} does not end in {limit:?}"));
                None
            }
        }
    }
}

/// The same for a call that follows something for as long as it likes.
pub async fn at_length<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    world: &World,
    member: usize,
    call: impl FnOnce(Engine) -> F,
) -> Option<T> {
    let (engine, _, scope) = engine_of(&world.machines[member])?;
    // A call that panics is in the verdict with its own words.
    scope.spawn(call(engine)).await.ok()
}

/// Has `draft` carried out by a member, if that is possible.
pub async fn propose(world: &World, member: usize, draft: Draft) -> Told {
    if engine_of(&world.machines[member]).is_none() {
        return Told::Down;
    }
    let proposed = at(world, member, |engine| async move {
        engine.admit()?;
        engine.propose(draft).await
    });
    match proposed.await {
        Some(Ok((outcome, _))) => Told::Outcome(outcome),
        Some(Err(error)) => match error.code {
            Code::NoLeader | Code::NotReady | Code::ShuttingDown => Told::Refused(error),
            Code::StorageFull if world.has_filled.load(Ordering::Relaxed) => Told::Refused(error),
            Code::CommitUnknown => Told::Unknown,
            _ => {
                world.trace.complain(format_args!("a command got {error}"));
                Told::Unknown
            }
        },
        None => Told::Unknown,
    }
}

/// Whether an error of a read or a delete says only that the cluster, or the disk of this member, is not well.
pub fn is_excused(world: &World, member: usize, error: &Error) -> bool {
    match error.code {
        Code::NoLeader | Code::NotReady | Code::ShuttingDown => true,
        Code::StorageFull => world.has_filled.load(Ordering::Relaxed),
        Code::Internal => world.machines[member].lock().may_fail_to_read(),
        _ => false,
    }
}
