//! All local routers, in one task: what is due is written by one command for all of them.
//!
//! Each source topic rings when it changes. Whatever has come to all sources by then goes into the next command, so
//! the busier they are the more a command carries, and a fan-out to a hundred topics is one command too.
//! A copy makes its topic ring in turn: so it goes along chains and around cycles until nothing is new.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::{Context, status};
use crate::engine::{Bell, LinkState, Listener};
use crate::limits::{MAX_ROUTE_PARTS, MAX_ROUTE_PAUSE_MS, MAX_ROUTED_RECORDS, MAX_ROUTED_RECORDS_PER_ROUTER};
use crate::state::{
    Discard, Draft, Forwarded, Outcome, Refusal, RoutePart, RouterConfig, SharedRouter, SharedTopic,
};

/// Pause after a command that could not be carried out.
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
    /// Its destination took nothing more the last time; not before this time again.
    waits_until: Option<Instant>,
}

struct LocalRoutes {
    context: Context,
    bell: Bell,
    /// By the slot of the bell.
    sources: Vec<Source>,
    /// Which source is looked at first: of several with one destination only one gets into a command.
    turn: usize,
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
            routes.push(Route { router, config, backoff, waits_until: None });
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

    /// What the next command should do.
    async fn due_parts(&mut self) -> Vec<RoutePart> {
        let engine = self.context.engine.clone();
        let now = Instant::now();
        let (mut parts, mut dests) = (Vec::new(), BTreeSet::new());
        let mut records_left = MAX_ROUTED_RECORDS;
        self.turn = (self.turn + 1) % self.sources.len().max(1);
        let (before, from_turn) = self.sources.split_at_mut(self.turn);
        for source in from_turn.iter_mut().chain(before).filter(|source| source.is_due) {
            let head_seq = source.shared.read().head_seq;
            let mut is_done = true;
            for route in &mut source.routes {
                let position = {
                    let router = route.router.read();
                    router.positions.get(&*route.router.source).copied()
                };
                let Some(position) = position.filter(|position| position.seq < head_seq) else { continue };
                is_done = false;
                let is_waiting = route.waits_until.is_some_and(|until| until > now);
                let has_room = parts.len() < MAX_ROUTE_PARTS && records_left > 0;
                if is_waiting || !has_room || !dests.insert(route.router.dest.clone()) {
                    continue;
                }
                let dest = engine.catalog().get(&route.router.dest);
                if dest.is_some_and(|dest| is_full(&dest)) {
                    route.wait(&self.context, LinkState::Blocked, full());
                    continue;
                }
                let most = MAX_ROUTED_RECORDS_PER_ROUTER.min(records_left);
                let (to_seq, picked) = match &route.config.filter {
                    None => (head_seq.min(position.seq + most), None),
                    Some(filter) => match engine.pick(&source.shared, position.seq, filter).await {
                        Ok((to_seq, picked)) => (to_seq, Some(picked)),
                        Err(error) => {
                            let told = (error.code.name().to_owned(), error.message.clone());
                            route.wait(&self.context, LinkState::Retrying, told);
                            continue;
                        }
                    },
                };
                records_left = records_left.saturating_sub(to_seq - position.seq);
                let generation = route.router.generation;
                parts.push(RoutePart { generation, from_seq: position.seq, to_seq, picked });
            }
            source.is_due = !is_done;
        }
        parts
    }

    async fn carry_out(&mut self, parts: &[RoutePart]) {
        let proposed = self.context.engine.propose(Draft::route(parts)).await;
        let Ok((Outcome::Forwarded(forwarded), _)) = proposed else {
            // Whatever became of it is in the positions.
            tokio::time::sleep(RETRY_PAUSE).await;
            return;
        };
        let outcomes: BTreeMap<u64, Forwarded> =
            parts.iter().map(|part| part.generation).zip(forwarded).collect();
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
                    let error = refusal.into_error(&route.router.dest);
                    let told = (error.code.name().to_owned(), error.message);
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
    fn wait(&mut self, context: &Context, state: LinkState, told: (String, String)) {
        self.waits_until = Some(Instant::now() + self.backoff.pause(&*context.random));
        status::set(context, self.router.generation, state, 0, Some(told));
    }

    fn succeeded(&mut self, context: &Context) {
        if self.waits_until.take().is_some() {
            self.backoff.reset();
            status::set(context, self.router.generation, LinkState::Running, 0, None);
        }
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

fn full() -> (String, String) {
    ("topic_full".into(), "the destination is full and refuses what does not fit".into())
}
