//! The checkpoint as of one moment, while it moves on.
//!
//! A member that is sent the state needs all of it as of one point, and sled has no view of the past. Copying
//! the checkpoint would take a long time and twice the space; stopping it would stop what rests on it. So a
//! view costs nothing when it is taken, and from then on every write first notes the value that a key is
//! about to lose, once per key. A page of the view is a page of the checkpoint with those put back. What a
//! view holds in memory is what changed since, which is small, because reading the state through takes
//! seconds: records are not in it.
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::checkpoint::{Change, Checkpoint, Visit};

/// Keys and their values, in order of key.
pub type Page = Vec<(Vec<u8>, Vec<u8>)>;

/// Values that keys had before they changed; `None`: there was none.
type Before = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A checkpoint that can be viewed as of one moment.
pub struct Freezer {
    checkpoint: Arc<dyn Checkpoint>,
    /// Held while the checkpoint is written, so that a page shows all of a batch or none.
    views: Mutex<Vec<Weak<Mutex<Before>>>>,
}

/// The view. What it holds is given up when it is dropped.
pub struct Frozen {
    freezer: Arc<Freezer>,
    before: Arc<Mutex<Before>>,
}

impl Freezer {
    pub fn new(checkpoint: Arc<dyn Checkpoint>) -> Arc<Self> {
        Arc::new(Self { checkpoint, views: Mutex::default() })
    }

    /// Reads the checkpoint while nothing is written to it.
    pub fn read_held<T>(&self, read: impl FnOnce(&dyn Checkpoint) -> T) -> T {
        let _no_write = self.views.lock();
        read(&*self.checkpoint)
    }

    /// The checkpoint as it is now.
    pub fn freeze(self: &Arc<Self>) -> Frozen {
        let before = Arc::default();
        let mut views = self.views.lock();
        views.retain(|view| view.strong_count() > 0);
        views.push(Arc::downgrade(&before));
        drop(views);
        Frozen { freezer: self.clone(), before }
    }
}

impl Checkpoint for Freezer {
    fn load(&self, each: Visit<'_>) -> io::Result<()> {
        self.checkpoint.load(each)
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.checkpoint.get(key)
    }

    fn page(&self, after: Option<&[u8]>, max_bytes: usize) -> io::Result<Page> {
        self.checkpoint.page(after, max_bytes)
    }

    fn write(&self, changes: Vec<Change>) -> io::Result<()> {
        let views = self.views.lock();
        for view in views.iter().filter_map(Weak::upgrade) {
            let mut before = view.lock();
            for (key, _) in &changes {
                if !before.contains_key(key) {
                    before.insert(key.clone(), self.checkpoint.get(key)?);
                }
            }
        }
        self.checkpoint.write(changes)
    }
}

impl Frozen {
    /// Keys above `after` with their values then, as many as fit into about `max_bytes`. Empty at the end.
    pub fn page(&self, after: Option<&[u8]>, max_bytes: usize) -> io::Result<Page> {
        let _no_write = self.freezer.views.lock();
        let before = self.before.lock();
        let mut after = after.map(<[u8]>::to_vec);
        loop {
            let now = self.freezer.checkpoint.page(after.as_deref(), max_bytes)?;
            // What changed behind the end of this page is for the next one.
            let upto = now.last().map_or(Bound::Unbounded, |(key, _)| Bound::Included(key.clone()));
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            let mut page: BTreeMap<Vec<u8>, Vec<u8>> = now.into_iter().collect();
            for (key, value) in before.range((from, upto.clone())) {
                match value {
                    Some(value) => page.insert(key.clone(), value.clone()),
                    None => page.remove(key),
                };
            }
            match upto {
                // All of it is newer than the view: that is not the end.
                Bound::Included(last) if page.is_empty() => after = Some(last),
                _ => return Ok(page.into_iter().collect()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::MemoryCheckpoint;

    type Map = BTreeMap<Vec<u8>, Vec<u8>>;

    fn read_on(view: &Frozen, seen: &mut Map, pages: usize, max_bytes: usize) -> bool {
        for _ in 0..pages {
            let after = seen.keys().next_back().cloned();
            let page = view.page(after.as_deref(), max_bytes).unwrap();
            if page.is_empty() {
                return true;
            }
            seen.extend(page);
        }
        false
    }

    proptest! {
        /// Any writes between any pages: the view is what the checkpoint was when it was taken.
        #[test]
        fn a_view_is_as_of_the_moment_it_was_taken(
            rounds in prop::collection::vec(
                (prop::collection::vec((0u8..40, prop::option::of(0u8..250)), 0..12), 0usize..4), 1..12),
            max_bytes in 1usize..40,
        ) {
            let freezer = Freezer::new(Arc::new(MemoryCheckpoint::default()));
            let mut views: Vec<(Frozen, Map, Map)> = Vec::new();
            let mut now = Map::new();
            for (changes, pages) in &rounds {
                let changes: Vec<Change> =
                    changes.iter().map(|(key, value)| (vec![*key], value.map(|value| vec![value; 3]))).collect();
                for (key, value) in &changes {
                    match value {
                        Some(value) => now.insert(key.clone(), value.clone()),
                        None => now.remove(key),
                    };
                }
                freezer.write(changes).unwrap();
                views.push((freezer.freeze(), now.clone(), Map::new()));
                for (view, _, seen) in &mut views {
                    read_on(view, seen, *pages, max_bytes);
                }
            }
            for (view, then, mut seen) in views {
                prop_assert!(read_on(&view, &mut seen, 1000, max_bytes));
                prop_assert_eq!(seen, then);
            }
        }
    }
}
