//! All local routers, in one task: what is due is written by one command for all of them.
//!
//! Each source topic rings when it changes. Whatever has come to all sources by then goes into the next command, so
//! the busier they are the more a command carries, and a fan-out to a hundred topics is one command too.
//! A copy makes its topic ring in turn: so it goes along chains and around cycles until nothing is new.
//!
//! Behind a filter somebody has to read what is due first. That goes on beside all else (`picks.rs`): a router without
//! a filter never waits for one that has one (C-ROUTE-18).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Context;
use super::backoff::Backoff;
use super::picks::Picks;
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
    /// By the slot of the bell; `None` where one has gone.
    sources: Vec<Option<Source>>,
    free_slots: Vec<usize>,
    /// Slots by the epoch of the topic, and by the generation of the router.
    slots: BTreeMap<u64, usize>,
    slots_of_routers: BTreeMap<u64, usize>,
    /// Slots of sources in which something may be due.
    due: BTreeSet<usize>,
    picks: Picks,
    /// The version of the routers' configuration that all this is as of.
    version: Option<u64>,
    turn: u64,
}

/// Runs all local routers while this member leads. Never returns.
pub(super) async fn run(context: Context) {
    let mut versions = context.engine.watch_routers();
    let mut routes = LocalRoutes::new(context);
    loop {
        if Some(*versions.borrow_and_update()) != routes.version {
            routes.look_up();
        }
        routes.note_changes();
        let parts = routes.due_parts();
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
            changed = versions.changed() => if changed.is_err() {
                return;
            },
            () = routes.bell.wait() => {}
            () = routes.picks.some_done() => {}
            () = waiting => {}
        }
    }
}

impl LocalRoutes {
    fn new(context: Context) -> Self {
        LocalRoutes {
            bell: context.engine.bell(),
            context,
            sources: Vec::new(),
            free_slots: Vec::new(),
            slots: BTreeMap::new(),
            slots_of_routers: BTreeMap::new(),
            due: BTreeSet::new(),
            picks: Picks::default(),
            version: None,
            turn: 0,
        }
    }

    /// Finds out which routers there are, or which have changed.
    fn look_up(&mut self) {
        let routers = self.context.engine.routers().clone();
        let (version, changed) = routers.changed_since(self.version);
        match changed {
            Some(generations) => generations.into_iter().for_each(|generation| {
                self.remove(generation);
                routers.of_generation(generation).into_iter().for_each(|router| self.add(router));
            }),
            None => {
                *self = LocalRoutes { turn: self.turn, ..LocalRoutes::new(self.context.clone()) };
                routers.all().into_iter().for_each(|router| self.add(router));
            }
        }
        self.version = Some(version);
    }

    fn remove(&mut self, generation: u64) {
        self.picks.forget(generation);
        let Some(slot) = self.slots_of_routers.remove(&generation) else { return };
        let Some(source) = &mut self.sources[slot] else { return };
        source.routes.retain(|route| route.router.generation != generation);
        if source.routes.is_empty() {
            self.slots.remove(&source.shared.epoch);
            self.sources[slot] = None;
            self.due.remove(&slot);
            self.free_slots.push(slot);
        }
    }

    fn add(&mut self, router: Arc<SharedRouter>) {
        let (config, is_paused) = {
            let router = router.read();
            (router.config.clone(), router.is_paused)
        };
        let topic = self.context.engine.catalog().get(&router.source);
        let Some(shared) = topic.filter(|_| !router.is_remote && !is_paused) else { return };
        let slot = match self.slots.get(&shared.epoch) {
            Some(slot) => *slot,
            None => {
                let slot = self.free_slots.pop().unwrap_or(self.sources.len());
                self.slots.insert(shared.epoch, slot);
                let listener = self.bell.listen(shared.epoch, slot as u32);
                let source = Some(Source { shared, listener, routes: Vec::new() });
                match self.sources.get_mut(slot) {
                    Some(free) => *free = source,
                    None => self.sources.push(source),
                }
                slot
            }
        };
        self.slots_of_routers.insert(router.generation, slot);
        self.due.insert(slot);
        let backoff = Backoff::new((FIRST_PAUSE_MS, MAX_ROUTE_PAUSE_MS));
        if let Some(source) = &mut self.sources[slot] {
            source.routes.push(Route { router, config, backoff, waits_until: None, last_turn: 0 });
        }
    }

    fn note_changes(&mut self) {
        let mut slots = Vec::new();
        self.bell.take_changed(&mut slots);
        for slot in slots {
            if let Some(Some(source)) = self.sources.get(slot as usize) {
                source.listener.rearm();
                self.due.insert(slot as usize);
            }
        }
    }

    /// Which routers have something to examine and need not wait: their last turn, source, and number there.
    fn due_routes(&mut self) -> Vec<(u64, usize, usize)> {
        let now = Instant::now();
        let mut due = Vec::new();
        for slot in std::mem::take(&mut self.due) {
            let Some(source) = &mut self.sources[slot] else { continue };
            let head_seq = source.shared.read().head_seq;
            for (number, route) in source.routes.iter_mut().enumerate() {
                if route.position().is_none_or(|position| position.seq >= head_seq) {
                    route.waits_until = None;
                    continue;
                }
                self.due.insert(slot);
                if route.waits_until.is_none_or(|until| until <= now) {
                    // A time that is past would have this looked at again and again, while it waits for a read.
                    route.waits_until = None;
                    due.push((route.last_turn, slot, number));
                }
            }
        }
        // Who had to stand back comes first: a source that always has something keeps no other from its turn.
        due.sort();
        due
    }

    /// What the next command should do. What has to be read for that, behind a filter, is begun.
    fn due_parts(&mut self) -> Vec<RoutePart> {
        let due = self.due_routes();
        let engine = self.context.engine.clone();
        let (mut parts, mut dests) = (Vec::new(), BTreeSet::new());
        let mut records_left = MAX_ROUTED_RECORDS;
        self.turn += 1;
        for (_, slot, number) in due {
            if parts.len() >= MAX_ROUTE_PARTS || records_left == 0 {
                break;
            }
            let Some(source) = &mut self.sources[slot] else { continue };
            let route = &mut source.routes[number];
            let Some(position) = route.position() else { continue };
            if dests.contains(&route.router.dest) {
                continue;
            }
            let dest = engine.catalog().get(&route.router.dest);
            if dest.is_some_and(|dest| is_full(&dest)) {
                route.last_turn = self.turn;
                route.wait(&self.context, LinkState::Blocked, full());
                continue;
            }
            let generation = route.router.generation;
            let head_seq = source.shared.read().head_seq;
            let most = MAX_ROUTED_RECORDS_PER_ROUTER.min(records_left);
            let (to_seq, picked) = match &route.config.filter {
                None => (head_seq.min(position.seq + most), None),
                Some(filter) => match self.picks.take(generation, position.seq, &route.config) {
                    Some(Ok((to_seq, picked))) => (to_seq, Some(picked)),
                    Some(Err(error)) => {
                        route.last_turn = self.turn;
                        route.wait(&self.context, LinkState::Retrying, told(error));
                        continue;
                    }
                    None => {
                        self.picks.begin(generation, position.seq, &route.config, || {
                            let (engine, shared) = (engine.clone(), source.shared.clone());
                            let filter = filter.clone();
                            async move { engine.pick(&shared, position.seq, &filter).await }
                        });
                        continue;
                    }
                },
            };
            dests.insert(route.router.dest.clone());
            route.last_turn = self.turn;
            records_left = records_left.saturating_sub(to_seq.saturating_sub(position.seq));
            parts.push(RoutePart { generation, from_seq: position.seq, to_seq, picked });
        }
        parts
    }

    async fn carry_out(&mut self, parts: &[RoutePart]) {
        let engine = self.context.engine.clone();
        let proposing = engine.propose(Draft::route(parts));
        tokio::pin!(proposing);
        let proposed = loop {
            tokio::select! {
                biased;
                proposed = &mut proposing => break proposed,
                () = self.picks.some_done() => {}
            }
        };
        let forwarded = match proposed {
            Ok((Outcome::Forwarded(forwarded), _)) => forwarded,
            // Whatever became of it is in the positions.
            other => {
                let told = match other {
                    Err(error) => told(error),
                    Ok(_) => Told::new("no_leader", "the copies were refused"),
                };
                for part in parts {
                    if let Some((route, context)) = self.route(part.generation) {
                        route.wait(context, LinkState::Retrying, told.clone());
                    }
                }
                return;
            }
        };
        for (part, Forwarded { taken, stopped, .. }) in parts.iter().zip(forwarded) {
            let Some((route, context)) = self.route(part.generation) else { continue };
            match stopped {
                None => route.succeeded(context),
                // It was changed meanwhile, which is looked up anew.
                Some(Refusal::RouterMoved) => route.waits_until = Some(Instant::now() + RETRY_PAUSE),
                Some(refusal) => {
                    if taken > 0 {
                        route.backoff.reset();
                    }
                    let told = told(refusal.into_error(&route.router.dest));
                    route.wait(context, LinkState::Blocked, told);
                }
            }
        }
    }

    fn route(&mut self, generation: u64) -> Option<(&mut Route, &Context)> {
        let source = self.sources.get_mut(*self.slots_of_routers.get(&generation)?)?.as_mut()?;
        let route = source.routes.iter_mut().find(|route| route.router.generation == generation)?;
        Some((route, &self.context))
    }

    /// When a router that waits is to be tried again.
    fn next_try(&self) -> Option<Instant> {
        let sources = self.due.iter().filter_map(|slot| self.sources[*slot].as_ref());
        sources.flat_map(|source| &source.routes).filter_map(|route| route.waits_until).min()
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
        status::goes_on(context, self.router.generation);
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
