//! Layer 5: routers, which copy topics inside the cluster and mirror topics of others.
//!
//! They run at the leader only, and hold nothing that matters: what a router is and how far it has come is in the
//! replicated state, and what it writes names the position that it goes on from. So a leader that was deposed and
//! does not know it yet changes nothing, and the next one goes on where the last left off.

mod answer;
mod backoff;
mod http;
mod local;
mod mirror;
mod page;
mod remote;
mod source;
mod standing;
mod status;
mod targets;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
    let mut versions = context.engine.watch_routers();
    // A task that was ended may have told something more.
    context.engine.links().retain(|_| false);
    let _local = Running(task::spawn(local::run(context.clone())));
    let mut mirrors: BTreeMap<u64, Running> = BTreeMap::new();
    loop {
        versions.borrow_and_update();
        let routers = context.engine.routers().all();
        let generations: BTreeSet<u64> = routers.iter().map(|router| router.generation).collect();
        context.engine.links().retain(|generation| generations.contains(&generation));
        let wanted: BTreeMap<u64, _> = routers
            .into_iter()
            .filter(|router| router.is_remote)
            .map(|router| (router.generation, router))
            .collect();
        mirrors.retain(|generation, _| wanted.contains_key(generation));
        for (generation, router) in wanted {
            mirrors
                .entry(generation)
                .or_insert_with(|| Running(task::spawn(mirror::run(context.clone(), router))));
        }
        if versions.changed().await.is_err() {
            return;
        }
    }
}
