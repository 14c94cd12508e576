//! Mirrored clusters when nothing goes wrong any more: everything must have come to everywhere, and then nobody has
//! anything to do.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use antiphon::engine::{Consistency, Engine, OriginView};
use antiphon::error::Code;
use antiphon::state::{Draft, Outcome};
use tokio::time::{Instant, sleep};

use crate::calls::{self, Told};
use crate::copies::{Book, Kind, Place, kind};
use crate::member::engine_of;
use crate::mirrors::{LOOK_INTERVAL, PATIENCE, Planned, Spot, TOPICS, put, read_page};
use crate::oracle::tag;
use crate::reads::query;
use crate::trace::Trace;
use crate::world::{MEMBERS, World};

/// A time in which clusters that have everything must have nothing to do.
const QUIET: Duration = Duration::from_secs(10);
/// Entries in that time: expiries, and a position now and then.
const MAX_QUIET_ENTRIES: u64 = 40;

/// What one topic has, in the end.
struct Holding {
    place: Place,
    own: Vec<RangeInclusive<u64>>,
    engine: Engine,
    views: Vec<OriginView>,
}

impl Holding {
    /// What it has of what was first written in `other`.
    fn view_of(&self, other: &Holding) -> Option<&OriginView> {
        let (cluster, topic, epoch) = &other.place;
        let is_of_other = |view: &&OriginView| {
            let instance = &view.instance;
            (&*instance.cluster, &*instance.topic, instance.epoch) == (cluster, topic, *epoch)
        };
        self.views.iter().find(is_of_other)
    }
}

/// The clusters when nothing goes wrong any more.
pub struct Rest<'a> {
    pub worlds: &'a [Arc<World>],
    pub trace: &'a Trace,
    pub book: &'a Book,
    pub routers: &'a [Planned],
    pub pruned: BTreeSet<String>,
    pub is_kept: bool,
}

impl Rest<'_> {
    /// Makes sure that all routers are there and run.
    pub async fn has_begun(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        for router in self.routers {
            let world = &self.worlds[router.cluster];
            loop {
                if self.trace.has_complaints() {
                    return false;
                }
                let resume = Draft::pause_router(&router.name, false);
                if put(world, 0, router).await
                    && let Told::Outcome(Outcome::RouterPaused { .. }) =
                        calls::propose(world, 0, resume).await
                {
                    break;
                }
                if Instant::now() >= deadline {
                    self.trace.complain(format_args!("router {} cannot be made", router.name));
                    return false;
                }
                sleep(LOOK_INTERVAL).await;
            }
        }
        self.trace.note("all routers run");
        true
    }

    /// Waits until everything has come to everywhere.
    pub async fn has_come(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.trace.has_complaints() {
                return false;
            }
            let lacking = self.lacking().await;
            let Some(lacking) = lacking else {
                self.trace.note("everything has come to everywhere");
                return true;
            };
            if Instant::now() >= deadline {
                self.trace.complain(lacking);
                self.tell_links().await;
                return false;
            }
            sleep(LOOK_INTERVAL).await;
            self.trust().await;
        }
    }

    /// Has remotes bring what they have shown, as somebody who looks would.
    async fn trust(&self) {
        for router in self.routers {
            if router.config.remote.as_ref().is_some_and(|remote| remote.relays.is_none()) {
                put(&self.worlds[router.cluster], 0, router).await;
            }
        }
    }

    async fn tell_links(&self) {
        for router in self.routers {
            let name = router.name.clone();
            let told = calls::at(&self.worlds[router.cluster], 0, |engine| async move {
                let router = engine.routers().get(&name)?;
                let view =
                    engine.show_routers(std::slice::from_ref(&router), Consistency::Strong).await.pop()?;
                let positions = format!("{:?}", router.read().positions);
                Some(format!("{:?} lag {} {:?} {positions}", view.state, view.lag, view.last_error))
            });
            let told = told.await.flatten();
            self.trace.note(format_args!("c{} {}: {told:?}", router.cluster + 1, router.name));
        }
    }

    /// Every spot from which records come to each.
    fn origins_of(&self) -> BTreeMap<Spot, BTreeSet<Spot>> {
        let mut reached: BTreeMap<Spot, BTreeSet<Spot>> = BTreeMap::new();
        loop {
            let mut has_grown = false;
            for (from, to) in self.routers.iter().flat_map(|router| &router.edges) {
                let mut new = reached.get(from).cloned().unwrap_or_default();
                new.insert(*from);
                let known = reached.entry(*to).or_default();
                let before = known.len();
                known.extend(new);
                has_grown |= known.len() > before;
            }
            if !has_grown {
                return reached;
            }
        }
    }

    /// What has not come yet, in words.
    async fn lacking(&self) -> Option<String> {
        let mut holdings: BTreeMap<Spot, Holding> = BTreeMap::new();
        for (cluster, world) in self.worlds.iter().enumerate() {
            for topic in TOPICS {
                let told = calls::at(world, 0, move |engine| async move {
                    let told = engine.origins(topic, Consistency::Strong).await;
                    told.map(|(epoch, views)| (epoch, views, engine))
                });
                let (epoch, views, engine) = match told.await {
                    Some(Ok(told)) => told,
                    Some(Err(error)) if error.code == Code::TopicNotFound => continue,
                    Some(Err(error)) => return Some(format!("c{} {topic}: {error}", cluster + 1)),
                    None => return Some(format!("c{} is not there", cluster + 1)),
                };
                let place = (world.name.clone(), topic.to_owned(), epoch);
                let shared = engine.catalog().get(topic)?;
                let own = {
                    let topic = shared.read();
                    topic.origins.own.foreign().absent_in(1..=topic.head_seq).collect()
                };
                holdings.insert((cluster, topic), Holding { place, own, engine, views });
            }
        }
        let origins = self.origins_of();
        for (spot, sources) in &origins {
            for source in sources.iter().filter(|source| *source != spot) {
                let Some(from) = holdings.get(source) else { continue };
                let Some(to) = holdings.get(spot) else {
                    return Some(format!("{spot:?} is not there, {source:?} is"));
                };
                let is_on_the_way = |way: &&Spot| {
                    ![source, spot].contains(way) && origins.get(way).is_some_and(|it| it.contains(source))
                };
                let on_the_way: Vec<&Holding> =
                    sources.iter().filter(is_on_the_way).filter_map(|way| holdings.get(way)).collect();
                if let Some(lacking) = self.lacks(to, from, &on_the_way) {
                    return Some(lacking);
                }
            }
        }
        None
    }

    /// What `to` has not of what was first written in `from`, and is not told of. `on_the_way` is what that may come
    /// through.
    fn lacks(&self, to: &Holding, from: &Holding, on_the_way: &[&Holding]) -> Option<String> {
        let topic = &from.place.1;
        let (mine, theirs) = (from.views.first()?, to.view_of(from));
        if matches!(kind(topic), Kind::Steady | Kind::Fleeting) {
            let has_all = theirs.map_or(mine.records == 0, |view| {
                (view.records, view.last_seq, view.digest) == (mine.records, mine.last_seq, mine.digest)
                    && view.lost.is_empty()
            });
            return (!has_all).then(|| format!("{:?} has {theirs:?} of {mine:?}", to.place));
        }
        let shared = to.engine.catalog().get(&to.place.1)?;
        let held = shared.read();
        let number = held.origins.number(&mine.instance);
        let untaken = from.own.iter().flat_map(|range| held.origins.untaken_in(number, range.clone()));
        // What went before a mirror began is not told; nor are those that were made anew.
        let first_taken =
            number.and_then(|number| held.origins.all()[number as usize].taken.stretches().next());
        let first_lost = theirs.and_then(|view| view.lost.first());
        let begins_at = first_taken.iter().chain(first_lost).map(|range| *range.start()).min();
        let is_told = |seq: u64| {
            if !self.is_kept || begins_at.is_none_or(|first| seq < first) {
                return true;
            }
            let has_lost = |at: &Holding, seq: Option<u64>| {
                let lost = to.view_of(at).map_or(&[][..], |view| &view.lost);
                seq.map_or(!lost.is_empty(), |seq| lost.iter().any(|range| range.contains(&seq)))
            };
            // Where it went as a copy, that is told in seqs of there; if nobody has read it there, any is.
            let key = (from.place.clone(), seq);
            has_lost(from, Some(seq))
                || on_the_way.iter().any(|way| has_lost(way, self.book.seq_in(&way.place, &key)))
        };
        let is_pruned = |seq: u64| {
            // One that nobody knows is one that was deleted before anybody saw it.
            self.book.id(&(from.place.clone(), seq)).is_none_or(|id| self.pruned.contains(&tag(id)))
        };
        let lacking = untaken.flatten().find(|seq| match kind(topic) {
            Kind::Losing => !is_told(*seq),
            _ => !is_pruned(*seq),
        })?;
        let lost: Vec<_> = to.views.iter().map(|view| (&view.instance, &view.lost)).collect();
        Some(format!(
            "{:?} lacks seq {lacking} of {:?}, and is not told why: {theirs:?}; of all {lost:?}",
            to.place, from.place
        ))
    }

    /// Clusters that have everything do not go on telling each other.
    pub async fn is_quiet(&self) {
        let indexes = || -> Vec<u64> {
            let applied =
                |world: &Arc<World>| engine_of(&world.machines[0]).map(|(_, applied, _)| applied.index());
            self.worlds.iter().map(|world| applied(world).unwrap_or_default()).collect()
        };
        let before = indexes();
        sleep(QUIET).await;
        let after = indexes();
        if before.iter().zip(&after).any(|(before, after)| after - before > MAX_QUIET_ENTRIES) {
            self.trace.complain(format_args!("no quiet: the logs went from {before:?} to {after:?}"));
        }
    }

    /// Reads every topic at every member from its beginning, and sees to it that nothing is missing.
    pub async fn read_all(&self) {
        let mut holdings: BTreeMap<Spot, (Place, Vec<u64>)> = BTreeMap::new();
        for (cluster, world) in self.worlds.iter().enumerate() {
            for topic in TOPICS {
                for member in 0..MEMBERS {
                    let mut from_seq = 0;
                    let mut own = Vec::new();
                    loop {
                        let page = match read_page(world, member, topic, query(from_seq, Consistency::Strong))
                            .await
                        {
                            Ok(page) => page,
                            Err(Some(Code::TopicNotFound)) => break,
                            Err(code) => {
                                world.trace.complain(format_args!("m{} {topic}: {code:?}", member + 1));
                                return;
                            }
                        };
                        self.book.page(&world.name, topic, from_seq, &page);
                        let first_here = page.records.iter().filter(|record| record.origin.is_none());
                        own.extend(first_here.map(|record| record.seq));
                        from_seq = page.next_from_seq;
                        if page.caught_up {
                            let place = (world.name.clone(), topic.to_owned(), page.epoch);
                            holdings.insert((cluster, topic), (place, own));
                            break;
                        }
                    }
                }
            }
        }
        for (spot, sources) in self.origins_of() {
            let Some((place, _)) = holdings.get(&spot) else { continue };
            let kept =
                sources.iter().filter(|source| matches!(kind(source.1), Kind::Steady | Kind::Fleeting));
            for (from, own) in kept.filter_map(|source| holdings.get(source)) {
                let lacking = own.iter().find(|seq| !self.book.is_seen(place, &(from.clone(), **seq)));
                if let Some(seq) = lacking {
                    self.trace.complain(format_args!("{place:?} does not show seq {seq} of {from:?}"));
                }
            }
        }
    }
}
