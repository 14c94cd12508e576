//! All routers, shared between the one that applies and those that read, like the topics in `catalog.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::router::Router;
use crate::limits::MAX_NOTED_ROUTER_CHANGES;

/// A router instance as readers hold it. What never changes can be seen without its lock.
#[derive(Debug)]
pub struct SharedRouter {
    pub name: Arc<str>,
    pub generation: u64,
    pub source: Arc<str>,
    pub dest: Arc<str>,
    pub is_remote: bool,
    router: RwLock<Router>,
    is_deleted: AtomicBool,
    /// What the router counts for in the digest of the whole state.
    summed_digest: AtomicU64,
    /// What it counts for among the positions of all routers.
    summed_positions: AtomicUsize,
}

impl SharedRouter {
    fn new(router: Router) -> Self {
        SharedRouter {
            name: router.name.clone(),
            generation: router.generation,
            source: router.config.source.as_str().into(),
            dest: router.config.dest.as_str().into(),
            is_remote: !router.config.is_local(),
            router: RwLock::new(router),
            is_deleted: AtomicBool::new(false),
            summed_digest: AtomicU64::new(0),
            summed_positions: AtomicUsize::new(0),
        }
    }

    /// Looks at the router. Hold the guard only to copy something out, never across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Router> {
        self.router.read()
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Router> {
        self.router.write()
    }

    pub fn is_deleted(&self) -> bool {
        self.is_deleted.load(Ordering::Acquire)
    }

    /// What the router has counted for in the digest of the whole state, and what it counts for from now on.
    pub(super) fn summed_digest(&self) -> (u64, u64) {
        let now = if self.is_deleted() { 0 } else { self.read().digest() };
        (self.summed_digest.swap(now, Ordering::Relaxed), now)
    }

    /// The same for the positions of all routers.
    fn summed_positions(&self) -> (usize, usize) {
        let now = if self.is_deleted() { 0 } else { self.read().positions.len() };
        (self.summed_positions.swap(now, Ordering::Relaxed), now)
    }
}

/// Which routers a page of the list is of.
#[derive(Debug, Clone, Copy, Default)]
pub struct RouterQuery<'a> {
    pub prefix: &'a str,
    /// Exactly these, as they were written.
    pub source: Option<&'a str>,
    pub dest: Option<&'a str>,
    /// Only names behind this one.
    pub after: Option<&'a str>,
}

type ByName = BTreeMap<Arc<str>, Arc<SharedRouter>>;

#[derive(Debug, Default)]
struct Index {
    by_name: ByName,
    by_generation: BTreeMap<u64, Arc<SharedRouter>>,
    /// Local routers by the topic that they read.
    by_source: BTreeMap<Arc<str>, ByName>,
    /// Routers by the one topic that they write.
    by_dest: BTreeMap<Arc<str>, ByName>,
}

/// All routers.
#[derive(Debug, Default)]
pub struct Routers {
    index: RwLock<Index>,
    version: AtomicU64,
    /// Which router each of the last versions is about, the last one at the end.
    changed: Mutex<VecDeque<u64>>,
    /// At most [`crate::limits::MAX_POSITIONS`] of mirrors, and one of each other.
    positions: AtomicUsize,
}

impl Routers {
    pub fn get(&self, name: &str) -> Option<Arc<SharedRouter>> {
        self.index.read().by_name.get(name).cloned()
    }

    pub fn of_generation(&self, generation: u64) -> Option<Arc<SharedRouter>> {
        self.index.read().by_generation.get(&generation).cloned()
    }

    pub fn len(&self) -> usize {
        self.index.read().by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many positions all routers have.
    pub fn position_count(&self) -> usize {
        self.positions.load(Ordering::Relaxed)
    }

    /// Counts the positions of `router` anew.
    pub(super) fn recount(&self, router: &SharedRouter) {
        let (before, now) = router.summed_positions();
        // They wrap around together.
        self.positions.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn know_positions(&self, elsewhere: usize) {
        self.positions.fetch_add(elsewhere, Ordering::Relaxed);
    }

    /// All of them, in byte order of name.
    pub fn all(&self) -> Vec<Arc<SharedRouter>> {
        self.index.read().by_name.values().cloned().collect()
    }

    /// Up to `count` routers in byte order of name.
    pub fn page(&self, query: RouterQuery<'_>, count: usize) -> Vec<Arc<SharedRouter>> {
        let RouterQuery { prefix, source, dest, after } = query;
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let index = self.index.read();
        let named = index.by_name.range::<str, _>((start, Bound::Unbounded));
        named
            .take_while(|(name, _)| name.starts_with(prefix))
            .map(|(_, router)| router)
            .filter(|router| source.is_none_or(|source| *source == *router.source))
            .filter(|router| dest.is_none_or(|dest| *dest == *router.dest))
            .take(count)
            .cloned()
            .collect()
    }

    /// Rises with every router that is made, changed in its configuration, paused, resumed or deleted; not with
    /// what it forwards.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The version, and the generations of the routers that changed since `version` was the one; `None` if that is
    /// not known any more: all have to be looked at.
    pub fn changed_since(&self, version: Option<u64>) -> (u64, Option<Vec<u64>>) {
        let changed = self.changed.lock();
        let now = self.version();
        let count = version.and_then(|version| now.checked_sub(version)).map(|count| count as usize);
        let known = count.filter(|count| *count <= changed.len());
        (now, known.map(|count| changed.range(changed.len() - count..).copied().collect()))
    }

    /// The router of this generation was made, changed or deleted.
    pub(super) fn configuration_changed(&self, generation: u64) {
        let mut changed = self.changed.lock();
        if changed.len() >= MAX_NOTED_ROUTER_CHANGES {
            changed.pop_front();
        }
        changed.push_back(generation);
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// All may be others.
    pub(super) fn all_changed(&self) {
        let mut changed = self.changed.lock();
        changed.clear();
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Routers that name the topic exactly as local source or dest, in byte order of name (C-TOPIC-09).
    pub(super) fn naming(&self, topic: &str) -> Vec<Arc<SharedRouter>> {
        let index = self.index.read();
        let found = [index.by_source.get(topic), index.by_dest.get(topic)].into_iter().flatten().flatten();
        let by_name: ByName = found.map(|(name, router)| (name.clone(), router.clone())).collect();
        by_name.into_values().collect()
    }

    /// The shortest way along local routers from the topic `from` to `to`, both included; `None` if there is
    /// none.
    pub(super) fn way(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let index = self.index.read();
        // Which topic each one was reached from.
        let mut reached: BTreeMap<Arc<str>, Arc<str>> = BTreeMap::new();
        let mut seen = BTreeSet::from([Arc::<str>::from(from)]);
        let mut next = VecDeque::from([Arc::<str>::from(from)]);
        while let Some(topic) = next.pop_front() {
            if *topic == *to {
                let mut way = vec![topic.to_string()];
                let mut at = &topic;
                while let Some(before) = reached.get(at) {
                    way.push(before.to_string());
                    at = before;
                }
                way.reverse();
                return Some(way);
            }
            for router in index.by_source.get(&topic).into_iter().flat_map(BTreeMap::values) {
                if seen.insert(router.dest.clone()) {
                    reached.insert(router.dest.clone(), topic.clone());
                    next.push_back(router.dest.clone());
                }
            }
        }
        None
    }

    pub(super) fn insert(&self, router: Router) -> Arc<SharedRouter> {
        let shared = Arc::new(SharedRouter::new(router));
        let named = (shared.name.clone(), shared.clone());
        let mut index = self.index.write();
        if !shared.is_remote {
            index.by_source.entry(shared.source.clone()).or_default().extend([named.clone()]);
        }
        if *shared.dest != *"*" {
            index.by_dest.entry(shared.dest.clone()).or_default().extend([named.clone()]);
        }
        index.by_generation.insert(shared.generation, shared.clone());
        index.by_name.extend([named]);
        shared
    }

    pub(super) fn remove(&self, name: &str) -> Option<Arc<SharedRouter>> {
        let mut index = self.index.write();
        let removed = index.by_name.remove(name)?;
        index.by_generation.remove(&removed.generation);
        let Index { by_source, by_dest, .. } = &mut *index;
        for (by_topic, topic) in [(by_source, &removed.source), (by_dest, &removed.dest)] {
            if let Some(found) = by_topic.get_mut(topic) {
                found.remove(name);
                if found.is_empty() {
                    by_topic.remove(topic);
                }
            }
        }
        removed.is_deleted.store(true, Ordering::Release);
        Some(removed)
    }

    pub(super) fn clear(&self) {
        *self.index.write() = Index::default();
        self.positions.store(0, Ordering::Relaxed);
        self.all_changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::RouterConfig;

    #[test]
    fn who_knows_a_version_is_told_what_changed_since() {
        let routers = Routers::default();
        for generation in 1..=3u64 {
            let config = RouterConfig::local("a", "b");
            routers.insert(Router::new(format!("r{generation}").as_str().into(), generation, config));
            routers.configuration_changed(generation);
        }
        assert_eq!(routers.changed_since(None), (3, None));
        assert_eq!(routers.changed_since(Some(0)), (3, Some(vec![1, 2, 3])));
        assert_eq!(routers.changed_since(Some(2)), (3, Some(vec![3])));
        assert_eq!(routers.changed_since(Some(3)), (3, Some(vec![])));
        assert_eq!(routers.changed_since(Some(9)), (3, None));
        (0..MAX_NOTED_ROUTER_CHANGES).for_each(|_| routers.configuration_changed(2));
        assert_eq!(routers.changed_since(Some(2)).1, None);
        assert_eq!(
            routers.changed_since(Some(3)).1.map(|changed| changed.len()),
            Some(MAX_NOTED_ROUTER_CHANGES)
        );
        routers.clear();
        let (version, changed) = routers.changed_since(Some(routers.version() - 1));
        assert_eq!((changed, routers.changed_since(Some(version)).1), (None, Some(vec![])));
    }
}
