//! The checkpoint as of one moment, while it moves on.
//!
//! A member that is sent the state needs all of it as of one point, and sled has no view of the past. Copying
//! the checkpoint would take a long time and twice the space; stopping it would stop what rests on it. So a
//! view costs nothing when it is taken, and from then on every write first notes the value that a key is
//! about to lose, once per key. A page of the view is a page of the checkpoint with those put back. What a
//! view holds in memory is what changed since and was not read yet: a view is read once, in order of key. That is
//! small as a rule, because reading the state through takes seconds, and records are not in it. Where it is not
//! (a slow reader, and a large topic that is deleted meanwhile), the view is given up.
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::checkpoint::{Change, Checkpoint, Visit, page_of};
use crate::limits::MAX_VIEW_BYTES;

/// Keys and their values, in order of key.
pub type Page = Vec<(Vec<u8>, Vec<u8>)>;

/// What a key costs in memory beside its bytes.
const KEY_COST_BYTES: usize = 64;

/// What a view needs beside the checkpoint.
#[derive(Default)]
struct Before {
    /// Values that keys had before they changed; `None`: there was none.
    values: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    bytes: usize,
    /// The last key that was read; what comes before does not matter any more.
    read_upto: Option<Vec<u8>>,
    /// It would have held too much.
    is_given_up: bool,
}

impl Before {
    fn cost_bytes(key: &[u8], value: &Option<Vec<u8>>) -> usize {
        KEY_COST_BYTES + key.len() + value.as_ref().map_or(0, Vec::len)
    }

    /// Notes what `key` has, which is about to change.
    fn note(&mut self, key: &[u8], checkpoint: &dyn Checkpoint) -> io::Result<()> {
        let is_read = self.read_upto.as_ref().is_some_and(|upto| key <= upto.as_slice());
        if self.is_given_up || is_read {
            return Ok(());
        }
        if let Entry::Vacant(vacant) = self.values.entry(key.to_vec()) {
            let value = checkpoint.get(key)?;
            self.bytes += Self::cost_bytes(key, &value);
            vacant.insert(value);
        }
        if self.bytes > MAX_VIEW_BYTES {
            *self = Before { is_given_up: true, ..Before::default() };
        }
        Ok(())
    }

    /// Everything up to `key` was read.
    fn read(&mut self, key: &[u8]) {
        while let Some(first) = self.values.first_entry().filter(|first| first.key().as_slice() <= key) {
            self.bytes -= Self::cost_bytes(first.key(), first.get());
            first.remove();
        }
        self.read_upto = Some(key.to_vec());
    }
}

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
    /// Of the checkpoint then.
    sum: u64,
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
        let before: Arc<Mutex<Before>> = Arc::default();
        let mut views = self.views.lock();
        views.retain(|view| view.strong_count() > 0);
        views.push(Arc::downgrade(&before));
        let sum = self.checkpoint.sum();
        drop(views);
        Frozen { freezer: self.clone(), before, sum }
    }

    /// Whether somebody reads a view: whoever changes much had better wait.
    pub fn is_viewed(&self) -> bool {
        self.views.lock().iter().any(|view| view.strong_count() > 0)
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

    fn sum(&self) -> u64 {
        self.checkpoint.sum()
    }

    fn write(&self, changes: Vec<Change>) -> io::Result<()> {
        let views = self.views.lock();
        for view in views.iter().filter_map(Weak::upgrade) {
            let mut before = view.lock();
            for (key, _) in &changes {
                before.note(key, &*self.checkpoint)?;
            }
        }
        self.checkpoint.write(changes)
    }
}

impl Frozen {
    /// What all pages together must add up to.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Keys above `after` with their values then, until they reach `max_bytes`; at least one. Empty at the end.
    /// What was read once cannot be read again.
    pub fn page(&self, after: Option<&[u8]>, max_bytes: usize) -> io::Result<Page> {
        let _no_write = self.freezer.views.lock();
        let mut before = self.before.lock();
        if before.is_given_up {
            return Err(io::Error::other("too much of the state changed before it was read"));
        }
        if after < before.read_upto.as_deref() {
            return Err(io::Error::other("this part of the state was read already"));
        }
        let mut after = after.map(<[u8]>::to_vec);
        loop {
            let now = self.freezer.checkpoint.page(after.as_deref(), max_bytes)?;
            // What changed behind the end of this page is for the next one.
            let upto = now.last().map_or(Bound::Unbounded, |(key, _)| Bound::Included(key.clone()));
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = now.into_iter().collect();
            for (key, value) in before.values.range((from, upto.clone())) {
                match value {
                    Some(value) => merged.insert(key.clone(), value.clone()),
                    None => merged.remove(key),
                };
            }
            match upto {
                // All of it is newer than the view: that is not the end.
                Bound::Included(last) if merged.is_empty() => after = Some(last),
                _ => {
                    // What was deleted since may be much more than a page.
                    let page = page_of(merged.into_iter().map(Ok), max_bytes)?;
                    if let Some((last, _)) = page.last() {
                        before.read(last);
                    }
                    return Ok(page);
                }
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

    /// A checkpoint with a key for each number below `count`, of 4 KiB, and a view of it.
    fn viewed(count: u32) -> (Arc<Freezer>, Frozen) {
        let freezer = Freezer::new(Arc::new(MemoryCheckpoint::default()));
        freezer
            .write((0..count).map(|key| (key.to_be_bytes().to_vec(), Some(vec![1; 4096]))).collect())
            .unwrap();
        let view = freezer.freeze();
        (freezer, view)
    }

    fn delete(freezer: &Freezer, keys: std::ops::Range<u32>) {
        freezer.write(keys.map(|key| (key.to_be_bytes().to_vec(), None)).collect()).unwrap();
    }

    #[test]
    fn pages_of_what_was_deleted_since_are_no_larger_than_others() {
        let (freezer, view) = viewed(1000);
        delete(&freezer, 0..1000);
        let (mut after, mut seen): (Option<Vec<u8>>, u32) = (None, 0);
        loop {
            let page = view.page(after.as_deref(), 16 << 10).unwrap();
            assert!(page.len() <= 4, "{} values", page.len());
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            seen += page.len() as u32;
        }
        assert_eq!(seen, 1000);
    }

    #[test]
    fn what_was_read_is_not_kept_when_it_changes() {
        let (freezer, view) = viewed(1000);
        let page = view.page(None, 400 << 10).unwrap();
        let read = page.len() as u32;
        delete(&freezer, 0..read);
        assert_eq!(view.before.lock().bytes, 0);
        delete(&freezer, read..read + 10);
        let held_bytes = view.before.lock().bytes;
        assert!((40 << 10..50 << 10).contains(&held_bytes), "{held_bytes}");
        let after = page.last().map(|(key, _)| key.clone());
        view.page(after.as_deref(), 400 << 10).unwrap();
        assert_eq!(view.before.lock().bytes, 0);
    }

    #[test]
    fn a_view_that_would_hold_too_much_is_given_up() {
        let count = (MAX_VIEW_BYTES / 4096) as u32;
        let (freezer, view) = viewed(count);
        delete(&freezer, 0..count / 2);
        assert!(view.page(None, 4096).is_ok());
        delete(&freezer, count / 2..count);
        assert!(view.page(Some(&0u32.to_be_bytes()), 4096).is_err());
        assert_eq!(view.before.lock().bytes, 0);
        // Who asks anew gets the state as it is by then.
        assert!(freezer.freeze().page(None, 4096).unwrap().is_empty());
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
                let copy = MemoryCheckpoint::default();
                copy.write(seen.clone().into_iter().map(|(key, value)| (key, Some(value))).collect()).unwrap();
                prop_assert_eq!(copy.sum(), view.sum());
                prop_assert_eq!(seen, then);
            }
        }
    }
}
