//! Which of the topics of a mirror of many are asked for next.
//!
//! Names take turns, so that one that always has something new keeps no other from being asked for.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::limits::{MAX_DUE_TOPICS, MAX_WARM_TOPICS};

#[derive(Default)]
pub(super) struct Agenda {
    /// Topics that have something new, as far as is known.
    due: BTreeSet<Arc<str>>,
    /// The next turn begins behind this one.
    last: Option<Arc<str>>,
    /// Those that had something new last; the latest at the end.
    warm: VecDeque<Arc<str>>,
}

impl Agenda {
    pub fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    /// Whether so many are due that nobody should ask for further ones.
    pub fn is_full(&self) -> bool {
        self.due.len() >= MAX_DUE_TOPICS
    }

    /// There may be something new in `topic`.
    pub fn add(&mut self, topic: &str) {
        if !self.due.contains(topic) {
            self.due.insert(topic.into());
        }
    }

    /// There is nothing new in `topic` now.
    pub fn remove(&mut self, topic: &str) {
        self.due.remove(topic);
    }

    /// `topic` is to be left alone.
    pub fn leave_alone(&mut self, topic: &str) {
        self.remove(topic);
        self.warm.retain(|warm| **warm != *topic);
    }

    /// Whose turn it is: at most `most` of those that are due, and `most_bytes` of their names, but one in any case.
    pub fn turn(&self, most: usize, most_bytes: usize) -> Vec<Arc<str>> {
        let last = self.last.as_deref().unwrap_or_default();
        let behind = self.due.range::<str, _>((Bound::Excluded(last), Bound::Unbounded));
        let before = self.due.range::<str, _>((Bound::Unbounded, Bound::Included(last)));
        fitting(behind.chain(before), most, most_bytes)
    }

    /// The turn came as far as `topic`.
    pub fn came_to(&mut self, topic: &Arc<str>) {
        self.last = Some(topic.clone());
    }

    /// These had something new just now.
    pub fn warm_up(&mut self, topics: &[Arc<str>]) {
        let latest = &topics[topics.len().saturating_sub(MAX_WARM_TOPICS)..];
        let names: BTreeSet<&str> = latest.iter().map(|topic| &**topic).collect();
        self.warm.retain(|warm| !names.contains(&**warm));
        self.warm.extend(latest.iter().cloned());
        let too_many = self.warm.len().saturating_sub(MAX_WARM_TOPICS);
        self.warm.drain(..too_many);
    }

    /// Topics in which something new is likely, the latest first.
    pub fn warm(&self, most_bytes: usize) -> Vec<Arc<str>> {
        fitting(self.warm.iter().rev(), MAX_WARM_TOPICS, most_bytes)
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
        ["a", "b", "c", "d", "e"].into_iter().for_each(|topic| agenda.add(topic));
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
        let long: Vec<String> = (0..2000).map(|number| format!("{number:0>200}")).collect();
        long.iter().for_each(|topic| agenda.add(topic));
        assert_eq!(agenda.turn(1024, usize::MAX).len(), 1024);
        assert_eq!(agenda.turn(1024, 2400).len(), 10);
        assert_eq!(names(&agenda.turn(1024, 1)), [&long[0]]);
        long.iter().for_each(|topic| agenda.remove(topic));
        assert!(agenda.turn(1024, 1).is_empty() && agenda.is_empty());
    }

    #[test]
    fn the_topics_that_were_active_last_are_warm() {
        let topics: Vec<Arc<str>> =
            (0..MAX_WARM_TOPICS + 5).map(|number| format!("{number:04}").into()).collect();
        let mut agenda = Agenda::default();
        agenda.warm_up(&topics);
        assert_eq!(agenda.warm(usize::MAX), topics[5..].iter().rev().cloned().collect::<Vec<_>>());
        agenda.warm_up(&topics[..2]);
        agenda.leave_alone(&topics[0]);
        let warm = agenda.warm(usize::MAX);
        assert_eq!(
            (warm.len(), &warm[0], &warm[1]),
            (MAX_WARM_TOPICS - 1, &topics[1], &topics[MAX_WARM_TOPICS + 4])
        );
        assert_eq!(agenda.warm(100).len(), 2);
    }
}
