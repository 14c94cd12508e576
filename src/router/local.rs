//! All local routers, in one task: what is due is written by one command for all of them.
//!
//! Each source topic rings when it changes. Whatever has come to all sources by then goes into the next command, so
//! the busier they are the more a command carries, and a fan-out to a hundred topics is one command too.
//! A copy makes its topic ring in turn: so it goes along chains and around cycles until nothing is new.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Context;
use super::backoff::Backoff;
use super::status::{self, Told};
use crate::engine::{Bell, LinkState, Listener};
use crate::error::Error;
use crate::limits::{MAX_ROUTE_PARTS, MAX_ROUTE_PAUSE_MS, MAX_ROUTED_RECORDS, MAX_ROUTED_RECORDS_PER_ROUTER};
use crate::state::{
    Discard, Draft, Forwarded, Outcome, Position, Refusal, RoutePart, RouterConfig, SharedRouter, SharedTopic,
};

/// Pause of a router that was changed while a command was on its way.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const FIRST_PAUSE_MS: u64 = 50;

/// A topic that is a source, and who reads it.
struct Source {
    shared: Arc<SharedTopic>,
    listener: Listener,
    routes: Vec<Route>,
    /// Something may be due.
    is_due: bool,
}

/// One router, as it runs.
struct Route {
    router: Arc<SharedRouter>,
    config: Arc<RouterConfig>,
    backoff: Backoff,
    /// The last attempt failed; not before this time again.
    waits_until: Option<Instant>,
    /// When it last had its turn, in turns of all routers.
    last_turn: u64,
}

struct LocalRoutes {
    context: Context,
    bell: Bell,
    /// By the slot of the bell.
    sources: Vec<Source>,
    turn: u64,
}

/// Runs all local routers while this member leads. Never returns.
pub(super) async fn run(context: Context) {
    let mut versions = context.engine.watch_routers();
    let bell = context.engine.bell();
    let mut routes = LocalRoutes { context, bell, sources: Vec::new(), turn: 0 };
    let mut is_stale = true;
    loop {
        if is_stale || versions.has_changed().unwrap_or(false) {
            versions.borrow_and_update();
            routes.look_up();
            is_stale = false;
        }
        routes.note_changes();
        let parts = routes.due_parts().await;
        if !parts.is_empty() {
            routes.carry_out(&parts).await;
            continue;
        }
        let next = routes.next_try();
        let waiting = async {
            match next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = versions.changed() => match changed {
                Ok(()) => is_stale = true,
                Err(_) => return,
            },
            () = routes.bell.wait() => {}
            () = waiting => {}
        }
    }
}

impl LocalRoutes {
    /// Finds out which routers there are.
    fn look_up(&mut self) {
        let engine = &self.context.engine;
        let mut by_source: BTreeMap<u64, (Arc<SharedTopic>, Vec<Route>)> = BTreeMap::new();
        for router in engine.routers().all() {
            let (config, is_paused) = {
                let router = router.read();
                (router.config.clone(), router.is_paused)
            };
            let topic = engine.catalog().get(&router.source);
            let Some(topic) = topic.filter(|_| !router.is_remote && !is_paused) else { continue };
            let (_, routes) = by_source.entry(topic.epoch).or_insert_with(|| (topic, Vec::new()));
            let backoff = Backoff::new((FIRST_PAUSE_MS, MAX_ROUTE_PAUSE_MS));
            routes.push(Route { router, config, backoff, waits_until: None, last_turn: 0 });
        }
        let sources = by_source.into_values().zip(0..).map(|((shared, routes), slot)| {
            let listener = self.bell.listen(shared.epoch, slot);
            Source { shared, listener, routes, is_due: true }
        });
        self.sources = sources.collect();
    }

    fn note_changes(&mut self) {
        let mut slots = Vec::new();
        self.bell.take_changed(&mut slots);
        for slot in slots {
            if let Some(source) = self.sources.get_mut(slot as usize) {
                source.listener.rearm();
                source.is_due = true;
            }
        }
    }

    /// Which routers have something to examine and need not wait: their last turn, source, and number there.
    fn due_routes(&mut self) -> Vec<(u64, usize, usize)> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (at, source) in self.sources.iter_mut().enumerate().filter(|(_, source)| source.is_due) {
            let head_seq = source.shared.read().head_seq;
            source.is_due = false;
            for (number, route) in source.routes.iter_mut().enumerate() {
                if route.position().is_none_or(|position| position.seq >= head_seq) {
                    route.waits_until = None;
                    continue;
                }
                source.is_due = true;
                if route.waits_until.is_none_or(|until| until <= now) {
                    due.push((route.last_turn, at, number));
                }
            }
        }
        // Who had to stand back comes first: a source that always has something keeps no other from its turn.
        due.sort();
        due
    }

    /// What the next command should do.
    async fn due_parts(&mut self) -> Vec<RoutePart> {
        let due = self.due_routes();
        let engine = self.context.engine.clone();
        let (mut parts, mut dests) = (Vec::new(), BTreeSet::new());
        let mut records_left = MAX_ROUTED_RECORDS;
        self.turn += 1;
        for (_, at, number) in due {
            if parts.len() >= MAX_ROUTE_PARTS || records_left == 0 {
                break;
            }
            let source = &mut self.sources[at];
            let route = &mut source.routes[number];
            let Some(position) = route.position() else { continue };
            if !dests.insert(route.router.dest.clone()) {
                continue;
            }
            route.last_turn = self.turn;
            let dest = engine.catalog().get(&route.router.dest);
            if dest.is_some_and(|dest| is_full(&dest)) {
                route.wait(&self.context, LinkState::Blocked, full());
                continue;
            }
            let head_seq = source.shared.read().head_seq;
            let most = MAX_ROUTED_RECORDS_PER_ROUTER.min(records_left);
            let (to_seq, picked) = match &route.config.filter {
                None => (head_seq.min(position.seq + most), None),
                Some(filter) => match engine.pick(&source.shared, position.seq, filter).await {
                    Ok((to_seq, picked)) => (to_seq, Some(picked)),
                    Err(error) => {
                        route.wait(&self.context, LinkState::Retrying, told(error));
                        continue;
                    }
                },
            };
            records_left = records_left.saturating_sub(to_seq.saturating_sub(position.seq));
            let generation = route.router.generation;
            parts.push(RoutePart { generation, from_seq: position.seq, to_seq, picked });
        }
        parts
    }

    async fn carry_out(&mut self, parts: &[RoutePart]) {
        let proposed = self.context.engine.propose(Draft::route(parts)).await;
        let generations = parts.iter().map(|part| part.generation);
        let forwarded = match proposed {
            Ok((Outcome::Forwarded(forwarded), _)) => forwarded,
            // Whatever became of it is in the positions.
            other => {
                let told = match other {
                    Err(error) => told(error),
                    Ok(_) => Told::new("no_leader", "the copies were refused"),
                };
                let failed: BTreeSet<u64> = generations.collect();
                for route in self.sources.iter_mut().flat_map(|source| &mut source.routes) {
                    if failed.contains(&route.router.generation) {
                        route.wait(&self.context, LinkState::Retrying, told.clone());
                    }
                }
                return;
            }
        };
        let outcomes: BTreeMap<u64, Forwarded> = generations.zip(forwarded).collect();
        for route in self.sources.iter_mut().flat_map(|source| &mut source.routes) {
            match outcomes.get(&route.router.generation).map(|outcome| (outcome.taken, outcome.stopped)) {
                None => {}
                Some((_, None)) => route.succeeded(&self.context),
                // It was changed meanwhile, which is looked up anew.
                Some((_, Some(Refusal::RouterMoved))) => {
                    route.waits_until = Some(Instant::now() + RETRY_PAUSE);
                }
                Some((taken, Some(refusal))) => {
                    if taken > 0 {
                        route.backoff.reset();
                    }
                    let told = told(refusal.into_error(&route.router.dest));
                    route.wait(&self.context, LinkState::Blocked, told);
                }
            }
        }
    }

    /// When a router that waits is to be tried again.
    fn next_try(&self) -> Option<Instant> {
        let routes = self.sources.iter().filter(|source| source.is_due).flat_map(|source| &source.routes);
        routes.filter_map(|route| route.waits_until).min()
    }
}

impl Route {
    /// How far it has come.
    fn position(&self) -> Option<Position> {
        self.router.read().positions.get(&*self.router.source).copied()
    }

    fn wait(&mut self, context: &Context, state: LinkState, told: Told) {
        self.waits_until = Some(Instant::now() + self.backoff.pause(&*context.random));
        status::set(context, self.router.generation, state, 0, Some(told));
    }

    fn succeeded(&mut self, context: &Context) {
        self.waits_until = None;
        self.backoff.reset();
        // Also what was told before the routers were looked up anew. Without a word it runs.
        context.engine.links().forget(self.router.generation);
    }
}

/// Whether it is sure that nothing more goes in, which saves the command that would find out.
fn is_full(dest: &SharedTopic) -> bool {
    let topic = dest.read();
    let is_reached = |cap: u64, held: u64| cap > 0 && held >= cap;
    topic.config.discard == Discard::Reject
        && (is_reached(topic.config.cap_records, topic.count)
            || is_reached(topic.config.cap_bytes, topic.bytes))
}

fn told(error: Error) -> Told {
    Told::new(error.code.name(), error.message)
}

fn full() -> Told {
    Told::new("topic_full", "the destination is full and refuses what does not fit")
}
