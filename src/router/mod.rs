//! Layer 5: routers, which copy topics inside the cluster and mirror topics of others.
//!
//! They run at the leader only, and hold nothing that matters: what a router is and how far it has come is in the
//! replicated state, and what it writes names the position that it goes on from. So a leader that was deposed and
//! does not know it yet changes nothing, and the next one goes on where the last left off.

mod agenda;
mod answer;
mod backoff;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod local;
mod mirror;
mod names;
mod pace;
mod page;
mod picks;
mod pull_budget;
mod remote;
mod running;
mod source;
mod status;
mod targets;
mod topics;
mod trouble;
mod view;
mod why;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use tokio::sync::watch;

pub use answer::{Answered, PullAnswer, Skips};
pub use http::{HttpRemote, PULL_CONTENT_TYPE, PULL_PATH, refused};
pub use pull_budget::{AnswerRoom, PullBudget};
pub use remote::{Answering, Remote, RemoteError};
pub use source::answer_pull;
pub use targets::Targets;
pub use wire::PullRequest;

use crate::clock::Random;
use crate::engine::{Engine, LinkState};
use crate::state::SharedRouter;
use running::{Running, run_again_after_panics};
use status::Told;

/// What every router needs.
#[derive(Clone)]
pub struct Context {
    pub engine: Engine,
    /// How other clusters are reached.
    pub remote: Arc<dyn Remote>,
    /// What all mirrors may hold together.
    pub pulls: Arc<PullBudget>,
    pub random: Arc<dyn Random>,
}

/// A mirror, and who tells it when it is configured anew.
struct RunningMirror {
    _task: Running,
    changes: watch::Sender<u64>,
}

/// Runs all routers whenever this member leads. Returns when this member ends. Errors: the local routers cannot go on.
pub async fn run_routers(context: Context) -> io::Result<()> {
    let mut leadership = context.engine.leadership();
    loop {
        if leadership.wait_for(|now| now.is_here()).await.is_err() {
            return Ok(());
        }
        let term = leadership.borrow().term;
        tokio::select! {
            biased;
            _ = leadership.wait_for(|now| !now.is_here() || now.term != term) => {}
            ended = lead(&context) => return ended,
        }
        context.engine.links().retain(|_| false);
    }
}

/// Keeps one task running per mirror and one for all local routers. Returns when this member ends. Errors: as
/// [`run_routers`].
async fn lead(context: &Context) -> io::Result<()> {
    let (mut versions, mut known_version) = (context.engine.watch_routers(), None);
    // A task that was ended may have told something more.
    context.engine.links().retain(|_| false);
    let mut local = Running::spawn(local::run(context.clone()));
    let mut mirrors: BTreeMap<u64, RunningMirror> = BTreeMap::new();
    let mut most_mirrors = context.pulls.max_turns();
    loop {
        versions.borrow_and_update();
        let all = context.engine.routers();
        let (version, changed) = all.changed_since(known_version);
        known_version = Some(version);
        let changed = match changed {
            Some(generations) => generations,
            None => {
                let routers = all.all();
                let generations: BTreeSet<u64> = routers.iter().map(|router| router.generation).collect();
                context.engine.links().retain(|generation| generations.contains(&generation));
                mirrors.retain(|generation, _| generations.contains(generation));
                generations.into_iter().collect()
            }
        };
        for generation in changed {
            match all.of_generation(generation) {
                None => {
                    mirrors.remove(&generation);
                    context.engine.links().forget(generation);
                }
                Some(router) if router.is_remote => {
                    let start = || {
                        let (changes, changed) = watch::channel(0);
                        let task = Running::spawn(run_mirror(context.clone(), router, changed));
                        RunningMirror { _task: task, changes }
                    };
                    let mirror = mirrors.entry(generation).or_insert_with(start);
                    mirror.changes.send_modify(|count| *count += 1);
                }
                Some(_) => {}
            }
        }
        if mirrors.len() > most_mirrors {
            most_mirrors = 2 * mirrors.len();
            tracing::warn!(
                "{} mirrors share {} connections to other clusters, so each is slower to hear of something new: raise \
                 the limit of open files (ulimit -n, LimitNOFILE)",
                mirrors.len(),
                context.pulls.max_turns()
            );
        }
        tokio::select! {
            biased;
            changed = versions.changed() => if changed.is_err() {
                return Ok(());
            },
            error = local.ended() => {
                return Err(io::Error::new(error.kind(), format!("the local routers: {error}")));
            }
        }
    }
}

/// Runs one mirror. What it is told by another cluster is the one thing here that anybody may have written: if it
/// panics over that, it is that mirror alone which is in trouble.
async fn run_mirror(context: Context, router: Arc<SharedRouter>, changes: watch::Receiver<u64>) {
    let start = || mirror::run(context.clone(), router.clone(), changes.clone());
    let tell = || {
        let message =
            "this member has met with a fault of its own, which its log tells; the mirror begins again";
        let told = Told::new("internal", message);
        let lag = context.engine.links().get(router.generation).map_or(0, |status| status.lag);
        status::set(&context, router.generation, LinkState::Retrying, lag, Some(told));
    };
    run_again_after_panics(&*context.random, start, tell).await;
}
