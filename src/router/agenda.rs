//! Which topics of those that a mirror may ask for are next.
//!
//! Names take turns, so that one that always has something new keeps no other from being asked for.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::limits::MAX_WARM_TOPICS;

#[derive(Default)]
pub(super) struct Agenda {
    names: BTreeSet<Arc<str>>,
    /// The next turn begins behind this one.
    last: Option<Arc<str>>,
}

impl Agenda {
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub fn add(&mut self, topic: &Arc<str>) {
        self.names.insert(topic.clone());
    }

    pub fn remove(&mut self, topic: &str) {
        self.names.remove(topic);
    }

    /// Whose turn it is: at most `most` of them, and `most_bytes` of their names, but one in any case.
    pub fn turn(&self, most: usize, most_bytes: usize) -> Vec<Arc<str>> {
        let last = self.last.as_deref().unwrap_or_default();
        let behind = self.names.range::<str, _>((Bound::Excluded(last), Bound::Unbounded));
        let before = self.names.range::<str, _>((Bound::Unbounded, Bound::Included(last)));
        fitting(behind.chain(before), most, most_bytes)
    }

    /// The turn came as far as `topic`.
    pub fn came_to(&mut self, topic: &Arc<str>) {
        self.last = Some(topic.clone());
    }
}

/// Topics that had something new last; the latest at the end.
#[derive(Default)]
pub(super) struct Warm(VecDeque<Arc<str>>);

impl Warm {
    /// These had something new just now.
    pub fn add(&mut self, topics: &[Arc<str>]) {
        let latest = &topics[topics.len().saturating_sub(MAX_WARM_TOPICS)..];
        let names: BTreeSet<&str> = latest.iter().map(|topic| &**topic).collect();
        self.0.retain(|warm| !names.contains(&**warm));
        self.0.extend(latest.iter().cloned());
        let too_many = self.0.len().saturating_sub(MAX_WARM_TOPICS);
        self.0.drain(..too_many);
    }

    pub fn remove(&mut self, topic: &str) {
        self.0.retain(|warm| **warm != *topic);
    }

    /// Topics in which something new is likely, the latest first.
    pub fn latest(&self, most_bytes: usize) -> Vec<Arc<str>> {
        fitting(self.0.iter().rev(), MAX_WARM_TOPICS, most_bytes)
    }
}

/// What a topic counts for beside its name, for its cursor.
const CURSOR_BYTES: usize = 40;

fn fitting<'a>(topics: impl Iterator<Item = &'a Arc<str>>, most: usize, most_bytes: usize) -> Vec<Arc<str>> {
    let (mut fitting, mut bytes) = (Vec::new(), 0);
    for topic in topics.take(most) {
        bytes += topic.len() + CURSOR_BYTES;
        if bytes > most_bytes && !fitting.is_empty() {
            break;
        }
        fitting.push(topic.clone());
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(topics: &[Arc<str>]) -> Vec<&str> {
        topics.iter().map(|topic| &**topic).collect()
    }

    #[test]
    fn every_topic_has_its_turn_however_busy_the_first_ones_are() {
        // C-MIRROR-11
        let mut agenda = Agenda::default();
        ["a", "b", "c", "d", "e"].map(Arc::from).iter().for_each(|topic| agenda.add(topic));
        let mut turns = Vec::new();
        for _ in 0..5 {
            // All have something new again whenever it is looked, and two have room.
            let turn = agenda.turn(4, 1 << 20);
            turns.extend(turn[..2].to_vec());
            agenda.came_to(&turn[1]);
        }
        assert_eq!(names(&turns).concat(), "abcdeabcde");
        // The one that the turn came to last is gone by then.
        agenda.came_to(&"c".into());
        agenda.remove("c");
        assert_eq!(names(&agenda.turn(9, 1 << 20)), ["d", "e", "a", "b"]);
    }

    #[test]
    fn a_turn_is_bounded_and_never_empty() {
        let mut agenda = Agenda::default();
        let long: Vec<Arc<str>> = (0..2000).map(|number| format!("{number:0>200}").into()).collect();
        long.iter().for_each(|topic| agenda.add(topic));
        assert_eq!(agenda.turn(1024, usize::MAX).len(), 1024);
        assert_eq!(agenda.turn(1024, 2400).len(), 10);
        assert_eq!(names(&agenda.turn(1024, 1)), [&*long[0]]);
        long.iter().for_each(|topic| agenda.remove(topic));
        assert!(agenda.turn(1024, 1).is_empty() && agenda.is_empty());
    }

    #[test]
    fn the_topics_that_were_active_last_are_warm() {
        let topics: Vec<Arc<str>> =
            (0..MAX_WARM_TOPICS + 5).map(|number| format!("{number:04}").into()).collect();
        let mut warm_topics = Warm::default();
        warm_topics.add(&topics);
        assert_eq!(warm_topics.latest(usize::MAX), topics[5..].iter().rev().cloned().collect::<Vec<_>>());
        warm_topics.add(&topics[..2]);
        warm_topics.remove(&topics[0]);
        let warm = warm_topics.latest(usize::MAX);
        assert_eq!(
            (warm.len(), &warm[0], &warm[1]),
            (MAX_WARM_TOPICS - 1, &topics[1], &topics[MAX_WARM_TOPICS + 4])
        );
        assert_eq!(warm_topics.latest(100).len(), 2);
    }
}
