//! Layer 5: routers, which copy topics inside the cluster and mirror topics of others.
//!
//! They run at the leader only, and hold nothing that matters: what a router is and how far it has come is in the
//! replicated state, and what it writes names the position that it goes on from. So a leader that was deposed and
//! does not know it yet changes nothing, and the next one goes on where the last left off.

mod agenda;
mod answer;
mod backoff;
mod http;
mod local;
mod mirror;
mod names;
mod page;
mod picks;
mod remote;
mod source;
mod standing;
mod status;
mod targets;
mod view;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use answer::{Answered, PullAnswer, Skips};
pub use http::{HttpRemote, PULL_CONTENT_TYPE, PULL_PATH, refused};
pub use remote::{Answering, Remote, RemoteError};
pub use source::answer_pull;
pub use targets::Targets;
pub use wire::PullRequest;

use crate::clock::Random;
use crate::engine::Engine;
use crate::task;

/// What every router needs.
#[derive(Clone)]
pub struct Context {
    pub engine: Engine,
    /// How other clusters are reached.
    pub remote: Arc<dyn Remote>,
    pub random: Arc<dyn Random>,
}

/// A task that ends when this is dropped.
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A mirror, and who tells it when it is configured anew.
struct RunningMirror {
    _task: Running,
    changes: watch::Sender<u64>,
}

/// Runs all routers whenever this member leads. Never returns.
pub async fn run_routers(context: Context) {
    let mut leadership = context.engine.leadership();
    loop {
        if leadership.wait_for(|now| now.is_here()).await.is_err() {
            return;
        }
        let term = leadership.borrow().term;
        tokio::select! {
            biased;
            _ = leadership.wait_for(|now| !now.is_here() || now.term != term) => {}
            () = lead(&context) => {}
        }
        context.engine.links().retain(|_| false);
    }
}

/// Keeps one task running per mirror and one for all local routers. Never returns.
async fn lead(context: &Context) {
    let (mut versions, mut known_version) = (context.engine.watch_routers(), None);
    // A task that was ended may have told something more.
    context.engine.links().retain(|_| false);
    let _local = Running(task::spawn(local::run(context.clone())));
    let mut mirrors: BTreeMap<u64, RunningMirror> = BTreeMap::new();
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
                        let task = task::spawn(mirror::run(context.clone(), router, changed));
                        RunningMirror { _task: Running(task), changes }
                    };
                    let mirror = mirrors.entry(generation).or_insert_with(start);
                    mirror.changes.send_modify(|count| *count += 1);
                }
                Some(_) => {}
            }
        }
        if versions.changed().await.is_err() {
            return;
        }
    }
}
