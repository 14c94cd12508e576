//! Which topics changed, for those who follow very many of them: mirrors of all topics with a prefix.
//!
//! Such a one cannot be told of by looking at each topic: it must cost what changed, not what there is. So once
//! somebody asks, the member notes every topic that changes under a rising number, each topic once, and whoever was
//! told up to a number goes on from there. Nothing of those who ask is kept. Before the first one asks, and when
//! nobody has for a while, nothing is noted and applying pays nothing; who comes with a number from before that, or
//! from another member, has to look through all topics once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Engine;
use crate::limits::{FORGET_CHANGES_AFTER, MAX_NOTED_CHANGES, MAX_TOLD_CHANGES};
use crate::state::SharedTopic;

/// Up to where somebody knows what changed at one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeCursor {
    /// Which process noted it.
    pub feed: u64,
    pub number: u64,
}

/// A topic that changed, or went away: by its name and epoch, so that nothing of it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedTopic {
    pub name: Arc<str>,
    pub epoch: u64,
}

/// What changed behind a cursor.
pub struct Changed {
    /// Each once. Of a name that was deleted and made again both.
    pub topics: Vec<ChangedTopic>,
    /// Up to where that is all of it.
    pub cursor: ChangeCursor,
}

/// The changes of topics as one member has applied them.
#[derive(Default)]
pub(super) struct Changes {
    is_followed: AtomicBool,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    /// By the number of its last change.
    topics: BTreeMap<u64, ChangedTopic>,
    /// The same by epoch.
    numbers: HashMap<u64, u64>,
    last_number: u64,
    /// Everything is there that changed behind this number.
    complete_from: u64,
    asked: Option<Instant>,
}

impl Changes {
    /// Notes that these topics have changed: what a reader sees of them by now has the change in it.
    pub fn note(&self, topics: &[Arc<SharedTopic>]) {
        if !self.is_followed.load(Ordering::SeqCst) {
            return;
        }
        let mut noted = self.noted.lock();
        if noted.asked.is_none_or(|asked| asked.elapsed() > FORGET_CHANGES_AFTER) {
            self.is_followed.store(false, Ordering::SeqCst);
            let last_number = noted.last_number + 1;
            *noted = Noted { last_number, complete_from: last_number, ..Noted::default() };
            return;
        }
        for topic in topics {
            noted.last_number += 1;
            let number = noted.last_number;
            if let Some(before) = noted.numbers.insert(topic.epoch, number) {
                noted.topics.remove(&before);
            }
            noted.topics.insert(number, ChangedTopic { name: topic.name.clone(), epoch: topic.epoch });
        }
        while noted.topics.len() > MAX_NOTED_CHANGES
            && let Some((number, topic)) = noted.topics.pop_first()
        {
            noted.numbers.remove(&topic.epoch);
            noted.complete_from = number;
        }
    }

    /// From now on changes are noted: who looks at all topics after this, and then at what changed behind this
    /// number, misses nothing.
    fn follow(&self) -> u64 {
        let mut noted = self.noted.lock();
        noted.asked = Some(Instant::now());
        if !self.is_followed.swap(true, Ordering::SeqCst) {
            // Something may have changed unnoted since.
            noted.last_number += 1;
            noted.complete_from = noted.last_number;
        }
        noted.last_number
    }

    /// At most `most` topics with this prefix that changed behind `number`, and up to which number that is all;
    /// `None` if it is not known any more.
    fn behind(&self, number: u64, most: usize, prefix: &str) -> Option<(Vec<ChangedTopic>, u64)> {
        let last_number = self.follow();
        let noted = self.noted.lock();
        if number < noted.complete_from || number > last_number {
            return None;
        }
        let mut topics = Vec::new();
        for (number, topic) in noted.topics.range(number + 1..) {
            if topics.len() >= most {
                return Some((topics, number - 1));
            }
            if topic.name.starts_with(prefix) {
                topics.push(topic.clone());
            }
        }
        Some((topics, noted.last_number))
    }
}

impl Engine {
    /// From now on it is noted which topics change. Whoever looks at all topics after this, and then asks what
    /// changed behind this cursor, misses nothing.
    pub fn follow_changes(&self) -> ChangeCursor {
        ChangeCursor { feed: self.inner.feed, number: self.inner.hub.changes().follow() }
    }

    /// Topics with this prefix that changed behind `cursor`; `None` if this member does not know: all have to be
    /// looked at.
    pub fn changed_behind(&self, cursor: ChangeCursor, prefix: &str) -> Option<Changed> {
        if cursor.feed != self.inner.feed {
            return None;
        }
        let (topics, number) = self.inner.hub.changes().behind(cursor.number, MAX_TOLD_CHANGES, prefix)?;
        Some(Changed { topics, cursor: ChangeCursor { number, ..cursor } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Catalog, Topic, TopicConfig};

    fn topics(names: &[&str]) -> Vec<Arc<SharedTopic>> {
        let catalog = Catalog::default();
        let topic = |(epoch, name): (usize, &&str)| {
            catalog.insert_for_test(Topic::new((*name).into(), epoch as u64 + 1, TopicConfig::default()))
        };
        names.iter().enumerate().map(topic).collect()
    }

    fn behind(changes: &Changes, number: u64) -> Option<(Vec<u64>, u64)> {
        let (topics, number) = changes.behind(number, 3, "a")?;
        Some((topics.iter().map(|topic| topic.epoch).collect(), number))
    }

    #[tokio::test(start_paused = true)]
    async fn what_changed_is_told_once_and_from_where_one_is() {
        let all = topics(&["a1", "a2", "b", "a3", "a4"]);
        let changes = Changes::default();
        changes.note(&all);
        let start = changes.follow();
        assert_eq!(behind(&changes, start), Some((vec![], start)));
        changes.note(&all[..2]);
        changes.note(&all[2..3]);
        changes.note(&all[..1]);
        let (changed, after) = behind(&changes, start).unwrap();
        assert_eq!((changed, behind(&changes, after)), (vec![2, 1], Some((vec![], after))));
        // No more than fit, and the rest behind them.
        changes.note(&all);
        let (changed, rest) = behind(&changes, after).unwrap();
        assert_eq!(changed, [1, 2, 4]);
        assert_eq!(behind(&changes, rest).unwrap().0, [5]);
        assert_eq!(behind(&changes, u64::MAX), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_for_is_forgotten_and_not_taken_for_nothing() {
        let all = topics(&["a1", "a2"]);
        let changes = Changes::default();
        let start = changes.follow();
        changes.note(&all);
        tokio::time::advance(FORGET_CHANGES_AFTER * 2).await;
        changes.note(&all);
        assert!(changes.noted.lock().topics.is_empty());
        changes.note(&all);
        assert_eq!(behind(&changes, start), None);
        let again = changes.follow();
        changes.note(&all[1..]);
        assert_eq!(behind(&changes, again).unwrap().0, [2]);
        // One number per topic, however many changes.
        (0..MAX_NOTED_CHANGES).for_each(|_| changes.note(&all));
        assert_eq!(changes.noted.lock().topics.len(), 2);
    }
}
