//! The catalog: every topic by name, shared between the one that applies and the many that read.
//!
//! Commands are applied by one task, in order, so writers never compete. Readers do not stop it either:
//! each topic has a lock of its own, held for the moment in which one entry is applied to it or a reader
//! copies what it needs (floors and a few runs, never records), and the catalog's lock is held only to
//! look a name up, to add one or to remove one.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::quota::{Held, Totals};
use super::topic::Topic;
use crate::digest::Digest;
use crate::limits::MAX_TOPIC_NAME_CHARS;

/// `^[A-Za-z0-9][A-Za-z0-9._:-]{0,254}$`. All allowed characters are one byte long.
pub fn is_topic_name(name: &str) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-');
    let bytes = name.as_bytes();
    bytes.len() <= MAX_TOPIC_NAME_CHARS
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(allowed)
}

/// A topic instance as readers hold it; it outlives its deletion for as long as somebody reads.
#[derive(Debug)]
pub struct SharedTopic {
    pub epoch: u64,
    pub name: Arc<str>,
    topic: RwLock<Topic>,
    is_deleted: AtomicBool,
    /// What the topic counts for in the digest of the whole state.
    summed_digest: AtomicU64,
    totals: Arc<Totals>,
}

/// A topic that may be changed; what it holds then is told to the totals.
pub(super) struct TopicMut<'a> {
    topic: RwLockWriteGuard<'a, Topic>,
    held_before: Held,
    totals: &'a Totals,
}

impl Deref for TopicMut<'_> {
    type Target = Topic;

    fn deref(&self) -> &Topic {
        &self.topic
    }
}

impl DerefMut for TopicMut<'_> {
    fn deref_mut(&mut self) -> &mut Topic {
        &mut self.topic
    }
}

impl Drop for TopicMut<'_> {
    fn drop(&mut self) {
        self.totals.replace(self.held_before, held(&self.topic));
    }
}

fn held(topic: &Topic) -> Held {
    Held { records: topic.count, bytes: topic.bytes, keys: topic.key_count() }
}

impl SharedTopic {
    fn new(mut topic: Topic, totals: Arc<Totals>) -> Self {
        topic.origins.count_in(totals.foreign().clone());
        totals.replace(Held::default(), held(&topic));
        SharedTopic {
            epoch: topic.epoch,
            name: topic.name.clone(),
            topic: RwLock::new(topic),
            is_deleted: AtomicBool::new(false),
            summed_digest: AtomicU64::new(0),
            totals,
        }
    }

    /// What the topic has counted for in the digest of the whole state, and what it counts for from now on.
    pub(super) fn summed_digest(&self) -> (u64, u64) {
        let mut digest = Digest::default();
        if !self.is_deleted() {
            self.read().digest(&mut digest);
        }
        (self.summed_digest.swap(digest.value(), Ordering::Relaxed), digest.value())
    }

    /// Looks at the topic. Hold the guard only to copy something out, never across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Topic> {
        self.topic.read()
    }

    /// Nothing changes a topic but [`State`](super::State), which has one owner at a time: so no reader, checkpoint or
    /// background task comes between planning a command and carrying it out.
    pub(super) fn write(&self) -> TopicMut<'_> {
        let topic = self.topic.write();
        TopicMut { held_before: held(&topic), topic, totals: &self.totals }
    }

    pub fn is_deleted(&self) -> bool {
        self.is_deleted.load(Ordering::Acquire)
    }

    /// Lets go of blocks that only the entry applied last has asked for.
    pub(super) fn forget_supplied_blocks(&self) {
        self.topic.write().blocks.forget_supplied();
    }
}

/// All topics by name.
#[derive(Debug, Default)]
pub struct Catalog {
    topics: RwLock<BTreeMap<Arc<str>, Arc<SharedTopic>>>,
    totals: Arc<Totals>,
}

impl Catalog {
    pub fn get(&self, name: &str) -> Option<Arc<SharedTopic>> {
        self.topics.read().get(name).cloned()
    }

    /// What all topics hold together.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    pub fn len(&self) -> usize {
        self.topics.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.topics.read().is_empty()
    }

    /// Up to `count` topics in byte order of name: those that start with `prefix` and come after `after`.
    pub fn page(&self, prefix: &str, after: Option<&str>, count: usize) -> Vec<Arc<SharedTopic>> {
        use std::ops::Bound;
        let topics = self.topics.read();
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        topics
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(prefix))
            .take(count)
            .map(|(_, topic)| topic.clone())
            .collect()
    }

    /// As applying does it.
    #[cfg(test)]
    pub fn insert_for_test(&self, topic: Topic) -> Arc<SharedTopic> {
        self.insert(topic)
    }

    pub(super) fn insert(&self, topic: Topic) -> Arc<SharedTopic> {
        let name = topic.name.clone();
        let shared = Arc::new(SharedTopic::new(topic, self.totals.clone()));
        self.topics.write().insert(name, shared.clone());
        shared
    }

    pub(super) fn remove(&self, name: &str) -> Option<Arc<SharedTopic>> {
        let removed = self.topics.write().remove(name)?;
        removed.is_deleted.store(true, Ordering::Release);
        let mut topic = removed.topic.write();
        topic.origins.count_in(Arc::default());
        self.totals.replace(held(&topic), Held::default());
        drop(topic);
        Some(removed)
    }

    pub(super) fn clear(&self) {
        self.topics.write().clear();
        self.totals.clear();
    }
}
