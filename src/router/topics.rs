//! What a mirror remembers of single topics of its source: which are to be asked for, which are left alone for a
//! while, and what is left to examine of them. One of which there is nothing of that is not in here.
//!
//! Another cluster names them, and there may be many mirrors: what all of a member remember has a bound, of which
//! one has at most as much as it leaves to others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::agenda::{Agenda, Warm};
use super::backoff::Backoff;
use super::why::Why;
use crate::budget::{Budget, Charge};
use crate::clock::Random;
use crate::engine::LinkState;
use crate::limits::{MAX_TOPIC_NAME_CHARS, MIRROR_PAUSE_MS};

/// What a topic takes in memory beside its name, about.
const TOPIC_BYTES: usize = 352;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// There is nothing new, or it is left alone.
    #[default]
    No,
    /// There is something new, as far as is known.
    New,
    /// It was left alone and is tried again: little is asked of it.
    Retry,
}

#[derive(Default)]
struct Topic {
    due: Due,
    /// Seqs not examined.
    lag: u64,
    left: Option<Box<Left>>,
}

/// A topic that is left alone for a while, and until it goes on.
struct Left {
    until: Instant,
    backoff: Backoff,
    why: Why,
    /// Counted bytes of the record that its destination had no room for; 0 if that is not known.
    needed_bytes: u64,
}

/// What follows from a topic: where else it stands.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Marks {
    due: Due,
    lag: u64,
    /// When it is to be tried again.
    until: Option<Instant>,
    state: Option<LinkState>,
}

impl Topic {
    fn marks(&self) -> Marks {
        Marks {
            due: self.due,
            lag: self.lag,
            until: self.left.as_ref().filter(|_| self.due == Due::No).map(|left| left.until),
            state: self.left.as_ref().map(|left| left.why.state()),
        }
    }

    fn is_idle(&self) -> bool {
        self.due == Due::No && self.lag == 0 && self.left.is_none()
    }
}

/// What became of a name that is to be taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TakenUp {
    Yes,
    /// There is no room before some of those that are due were asked for.
    NotYet,
    /// There is no room, because too many are left alone.
    No,
}

pub(super) struct Topics {
    by_name: BTreeMap<Arc<str>, Topic>,
    due: Agenda,
    retries: Agenda,
    warm: Warm,
    /// When those are to be tried again that are left alone.
    waiting: BTreeSet<(Instant, Arc<str>)>,
    /// Sum of all lags.
    lag: u128,
    /// How many are left alone, by whether they are blocked.
    left: [usize; 2],
    /// Of those that were to be taken up, or were left alone, some were not or are not any more.
    has_dropped: bool,
    /// What all of them count for, and those that are due.
    bytes: usize,
    due_bytes: usize,
    /// So many it may have in any case.
    min_bytes: usize,
    /// For what is beyond that.
    charge: Option<Charge>,
    budget: Arc<Budget>,
}

impl Topics {
    /// With `min_bytes` and a part of `budget`.
    pub fn new(budget: Arc<Budget>, min_bytes: usize) -> Self {
        Topics {
            by_name: BTreeMap::new(),
            due: Agenda::default(),
            retries: Agenda::default(),
            warm: Warm::default(),
            waiting: BTreeSet::new(),
            lag: 0,
            left: [0; 2],
            has_dropped: false,
            bytes: 0,
            due_bytes: 0,
            min_bytes,
            charge: budget.charge(0),
            budget,
        }
    }

    /// Does `change` to a topic, and all that follows from it.
    fn change(&mut self, name: &str, change: impl FnOnce(&mut Topic)) {
        match self.by_name.remove_entry(name) {
            Some((name, topic)) => self.change_from(name, topic, change),
            None => self.change_from(name.into(), Topic::default(), change),
        }
    }

    /// The same to one that is in.
    fn change_known(&mut self, name: &str, change: impl FnOnce(&mut Topic)) {
        if let Some((name, topic)) = self.by_name.remove_entry(name) {
            self.change_from(name, topic, change);
        }
    }

    fn change_from(&mut self, name: Arc<str>, mut topic: Topic, change: impl FnOnce(&mut Topic)) {
        let (before, was_idle) = (topic.marks(), topic.is_idle());
        change(&mut topic);
        let (now, is_idle) = (topic.marks(), topic.is_idle());
        let count = |counts: bool| if counts { cost(&name) } else { 0 };
        self.bytes = self.bytes + count(!is_idle) - count(!was_idle);
        self.due_bytes = self.due_bytes + count(now.due == Due::New) - count(before.due == Due::New);
        if before.due != now.due {
            self.agenda(before.due).into_iter().for_each(|agenda| agenda.remove(&name));
            self.agenda(now.due).into_iter().for_each(|agenda| agenda.add(&name));
        }
        if before.until != now.until {
            if let Some(until) = before.until {
                self.waiting.remove(&(until, name.clone()));
            }
            if let Some(until) = now.until {
                self.waiting.insert((until, name.clone()));
            }
        }
        self.lag = self.lag + u128::from(now.lag) - u128::from(before.lag);
        let is_blocked = |state: LinkState| usize::from(state == LinkState::Blocked);
        before.state.into_iter().for_each(|state| self.left[is_blocked(state)] -= 1);
        now.state.into_iter().for_each(|state| self.left[is_blocked(state)] += 1);
        if !is_idle {
            self.by_name.insert(name, topic);
        }
        // What had to be noted counts later, if there is no room now.
        let beyond_bytes = self.bytes.saturating_sub(self.min_bytes);
        let _ = self.charge.as_mut().is_some_and(|charge| charge.resize(beyond_bytes));
    }

    fn agenda(&mut self, due: Due) -> Option<&mut Agenda> {
        match due {
            Due::No => None,
            Due::New => Some(&mut self.due),
            Due::Retry => Some(&mut self.retries),
        }
    }

    /// Bytes that it may have, as much as it leaves to others.
    fn share_bytes(&self) -> usize {
        let own = self.bytes.saturating_sub(self.min_bytes);
        let free = self.budget.max_bytes().saturating_sub(self.budget.held_bytes());
        self.min_bytes + (own + free) / 2
    }

    /// Whether there is room for one more.
    pub fn has_room(&self) -> bool {
        self.bytes + cost_of(MAX_TOPIC_NAME_CHARS) <= self.share_bytes()
    }

    /// Whether to ask for further names: not for more than can be worked off.
    pub fn wants_names(&self) -> bool {
        self.due_bytes <= self.share_bytes() / 2
    }

    /// There may be something new in `name`, `lag` seqs if that is known. One in which the mirror has a position
    /// `is_known`, and takes the place of one that is left alone.
    pub fn take_up(&mut self, name: &Arc<str>, lag: Option<u64>, is_known: bool) -> TakenUp {
        let is_in = self.by_name.contains_key(name);
        if !is_in && self.bytes + cost(name) > self.share_bytes() {
            let last = self.waiting.last().filter(|_| is_known).map(|(_, last)| last.clone());
            match last {
                _ if !self.wants_names() => return TakenUp::NotYet,
                None if is_known => return TakenUp::NotYet,
                None => {
                    self.has_dropped = true;
                    return TakenUp::No;
                }
                Some(last) => {
                    self.has_dropped = true;
                    self.forget(&last);
                }
            }
        }
        let note = |topic: &mut Topic| {
            topic.due = if topic.due == Due::No { Due::New } else { topic.due };
            topic.lag = lag.unwrap_or(topic.lag);
        };
        match is_in {
            true => self.change_known(name, note),
            // It stays the same name, which somebody else may have too.
            false => self.change_from(name.clone(), Topic::default(), note),
        }
        TakenUp::Yes
    }

    /// The same for one in which the mirror has a position, and that nobody tells again before all are listed.
    pub fn take_up_or_drop(&mut self, name: &Arc<str>) {
        if self.take_up(name, None, true) != TakenUp::Yes {
            self.has_dropped = true;
        }
    }

    /// Whether some were not taken up, or dropped, for want of room.
    pub fn has_dropped(&self) -> bool {
        self.has_dropped
    }

    /// All are listed again.
    pub fn begin_list(&mut self) {
        self.has_dropped = false;
    }

    /// There may be something new in a topic that was asked for.
    pub fn add(&mut self, name: &Arc<str>) {
        let note = |topic: &mut Topic| topic.due = if topic.due == Due::No { Due::New } else { topic.due };
        match self.by_name.contains_key(name) {
            true => self.change_known(name, note),
            false => self.change_from(name.clone(), Topic::default(), note),
        }
    }

    /// There is more in it.
    pub fn add_again(&mut self, name: &str) {
        self.change(name, |topic| topic.due = Due::New);
    }

    /// There is nothing new in it now.
    pub fn remove(&mut self, name: &str) {
        self.change_known(name, |topic| topic.due = Due::No);
    }

    /// It had nothing to say that it was asked for because it was active.
    pub fn cool(&mut self, name: &str) {
        self.warm.remove(name);
    }

    pub fn warm_up(&mut self, names: &[Arc<str>]) {
        self.warm.add(names);
    }

    pub fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    pub fn has_retries(&self) -> bool {
        !self.retries.is_empty()
    }

    /// Whose turn it is: those that are tried again, or those that are due, or those that were active last.
    pub fn turn(&self, is_retry: bool, most: usize, most_bytes: usize) -> Vec<Arc<str>> {
        match is_retry {
            true => self.retries.turn(most, most_bytes),
            false if self.due.is_empty() => self.warm.latest(most_bytes),
            false => self.due.turn(most, most_bytes),
        }
    }

    /// The turn came as far as `name`.
    pub fn came_to(&mut self, is_retry: bool, name: &Arc<str>) {
        if is_retry { self.retries.came_to(name) } else { self.due.came_to(name) }
    }

    /// Seqs not examined, of all topics.
    pub fn lag(&self) -> u64 {
        u64::try_from(self.lag).unwrap_or(u64::MAX)
    }

    pub fn note_lag(&mut self, name: &str, lag: u64) {
        self.change(name, |topic| topic.lag = lag);
    }

    /// Leaves `name` alone: for longer each time in a row, or for the longest time if what is wrong is not here. Its next
    /// record has so many counted bytes, 0 if that is not known.
    pub fn leave(&mut self, name: &str, why: Why, needed_bytes: u64, random: &dyn Random) {
        let now = Instant::now();
        self.change(name, |topic| {
            let new = || Left { until: now, backoff: Backoff::new(MIRROR_PAUSE_MS), why, needed_bytes };
            let left = topic.left.get_or_insert_with(|| Box::new(new()));
            (left.why, left.needed_bytes) = (why, needed_bytes);
            left.until = now
                + match why.is_of_remote() {
                    true => Duration::from_millis(MIRROR_PAUSE_MS.1),
                    false => left.backoff.pause(random),
                };
            topic.due = Due::No;
        });
        self.cool(name);
    }

    /// It goes on.
    pub fn goes_on(&mut self, name: &str) {
        self.change_known(name, |topic| topic.left = None);
    }

    /// It is gone, or was asked for and had nothing to say.
    pub fn forget(&mut self, name: &str) {
        self.change_known(name, |topic| *topic = Topic::default());
    }

    /// All that are left alone are tried again.
    pub fn try_all(&mut self) {
        let left = self.by_name.iter().filter(|(_, topic)| topic.left.is_some());
        let names: Vec<Arc<str>> = left.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.change_known(&name, |topic| (topic.left, topic.due) = (None, Due::New));
        }
    }

    /// How the topic does that does worst, if any does not go on (C-MIRROR-12).
    pub fn worst(&self) -> Option<(&Arc<str>, Why)> {
        let worst = match self.left {
            [0, 0] => return None,
            [_, 0] => LinkState::Retrying,
            _ => LinkState::Blocked,
        };
        let mut left = self.by_name.iter().filter_map(|(name, topic)| Some((name, topic.left.as_ref()?.why)));
        left.find(|(_, why)| why.state() == worst)
    }

    fn left(&self, name: &str) -> Option<&Left> {
        self.by_name.get(name)?.left.as_deref()
    }

    /// Whether `name` is not to be asked for now.
    pub fn is_left_alone(&self, name: &str, now: Instant) -> bool {
        self.left(name).is_some_and(|left| left.until > now)
    }

    /// Whether `name` was left alone and does not go on yet.
    pub fn has_left(&self, name: &str) -> bool {
        self.left(name).is_some()
    }

    /// If `name` was left alone because of its destination: the bytes of the record that this had no room for, 0 if
    /// that is not known.
    pub fn refused_here(&self, name: &str) -> Option<u64> {
        self.left(name).filter(|left| left.why.is_here()).map(|left| left.needed_bytes)
    }

    /// The record that there was no room for may be gone, or all of the topic.
    pub fn forget_needed(&mut self, name: &str) {
        if let Some(left) = self.by_name.get_mut(name).and_then(|topic| topic.left.as_mut()) {
            left.needed_bytes = 0;
        }
    }

    /// When the next topic is to be tried again.
    pub fn next_try(&self) -> Option<Instant> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// Topics that were left alone and may be tried again now, which they are from then on.
    pub fn take_due(&mut self, now: Instant) -> Vec<Arc<str>> {
        let due: Vec<Arc<str>> = self
            .waiting
            .iter()
            .take_while(|(until, _)| *until <= now)
            .map(|(_, name)| name.clone())
            .collect();
        for name in &due {
            self.change_known(name, |topic| topic.due = Due::Retry);
        }
        due
    }
}

fn cost_of(name_bytes: usize) -> usize {
    TOPIC_BYTES + name_bytes
}

fn cost(name: &str) -> usize {
    cost_of(name.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{MAX_TOPICS_BYTES, MIN_TOPICS_BYTES};
    use crate::router::answer::Damage;
    use crate::state::Refusal;

    struct Most;
    impl Random for Most {
        fn next_u64(&self) -> u64 {
            MIRROR_PAUSE_MS.0
        }
    }

    const FULL: Why = Why::Refused(Refusal::TopicNotFound);
    const DAMAGED: Why = Why::Damaged(Damage { seq: Some(7), what: "no JSON" });

    fn topics() -> Topics {
        Topics::new(Budget::new(MAX_TOPICS_BYTES), MIN_TOPICS_BYTES)
    }

    fn name(name: &str) -> Arc<str> {
        name.into()
    }

    fn long(number: usize) -> Arc<str> {
        format!("{number:0>250}").into()
    }

    fn worst(topics: &Topics) -> Option<(&str, Why)> {
        topics.worst().map(|(name, why)| (&**name, why))
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_is_left_alone_until_its_time_has_come() {
        // C-MIRROR-12
        let (mut topics, a) = (topics(), name("a"));
        topics.add(&a);
        topics.leave(&a, FULL, 5, &Most);
        let now = Instant::now();
        assert!(topics.is_left_alone("a", now) && topics.take_due(now).is_empty() && !topics.has_due());
        let later = topics.next_try().expect("a time");
        assert_eq!(later - now, Duration::from_millis(MIRROR_PAUSE_MS.0));
        assert!(!topics.is_left_alone("a", later));
        assert_eq!((topics.take_due(later), topics.take_due(later)), (vec![a.clone()], vec![]));
        assert_eq!((worst(&topics), topics.next_try()), (Some(("a", FULL)), None));
        assert_eq!((topics.turn(true, 9, 99), topics.refused_here("a")), (vec![a.clone()], Some(5)));
        // What is new in it meanwhile does not hasten it.
        topics.add(&a);
        assert!(topics.has_retries() && !topics.has_due());
        // Again, and for longer; the time before does not count any more.
        topics.leave(&a, FULL, 0, &Most);
        topics.leave(&a, FULL, 0, &Most);
        assert_eq!((topics.waiting.len(), topics.has_retries()), (1, false));
        topics.try_all();
        assert_eq!((topics.has_due(), topics.next_try(), worst(&topics)), (true, None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_counts_no_more() {
        let (mut topics, [a, b, c]) = (topics(), ["a", "b", "c"].map(name));
        for topic in [&a, &b] {
            topics.leave(topic, FULL, 0, &Most);
            topics.note_lag(topic, u64::MAX - 5);
            topics.note_lag(topic, 5);
        }
        assert_eq!(topics.lag(), 10);
        topics.forget(&a);
        topics.forget(&a);
        assert_eq!((topics.lag(), topics.waiting.len(), worst(&topics)), (5, 1, Some(("b", FULL))));
        topics.note_lag(&b, u64::MAX);
        topics.note_lag(&c, u64::MAX);
        assert_eq!(topics.lag(), u64::MAX);
        [b, c].iter().for_each(|topic| topics.forget(topic));
        assert_eq!((topics.lag(), worst(&topics), topics.next_try(), topics.bytes), (0, None, None, 0));
        assert!(topics.by_name.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_that_cannot_be_believed_waits_longest_and_alone() {
        // C-MIRROR-18
        let mut topics = topics();
        topics.leave(&name("b"), DAMAGED, 0, &Most);
        let now = Instant::now();
        assert_eq!(topics.next_try(), Some(now + Duration::from_secs(30)));
        assert_eq!((worst(&topics), topics.refused_here("b")), (Some(("b", DAMAGED)), None));
        let told = DAMAGED.told("b", "c");
        assert_eq!((told.topic.as_deref(), told.seq, &*told.code), (Some("b"), Some(7), "source_damaged"));
        topics.leave(&name("c"), FULL, 0, &Most);
        topics.leave(&name("a"), DAMAGED, 0, &Most);
        assert_eq!(worst(&topics), Some(("c", FULL)));
        topics.goes_on(&name("c"));
        assert_eq!(worst(&topics), Some(("a", DAMAGED)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_all_mirrors_remember_has_one_bound() {
        // C-MIRROR-18
        let budget = Budget::new(MAX_TOPICS_BYTES);
        let mut mirrors: Vec<Topics> =
            (0..20).map(|_| Topics::new(budget.clone(), MIN_TOPICS_BYTES)).collect();
        for topics in &mut mirrors {
            let names = (0..).map(long);
            // Another cluster names one after the other, and all of them have to be left alone.
            let taken = names.take_while(|name| {
                let is_taken = topics.take_up(name, Some(9), false) == TakenUp::Yes;
                if is_taken {
                    topics.leave(name, DAMAGED, 0, &Most);
                }
                is_taken
            });
            assert!(taken.count() >= MIN_TOPICS_BYTES / cost_of(250));
            assert!(topics.has_dropped() && !topics.has_room());
            assert!(topics.wants_names(), "others may be well");
        }
        let bytes: usize = mirrors.iter().map(|topics| topics.bytes).sum();
        assert!(bytes <= MAX_TOPICS_BYTES + mirrors.len() * MIN_TOPICS_BYTES, "{bytes}");
        // Who comes late has less, and enough to get on.
        let mut late = Topics::new(budget.clone(), MIN_TOPICS_BYTES);
        assert_eq!(late.take_up(&long(1), None, false), TakenUp::Yes);
        // One that is known takes the place of one that is left alone, and what is due is worked off before there are more.
        let (mut last, well) = (mirrors.pop().expect("one of twenty"), name("well"));
        assert_eq!(last.take_up(&long(1 << 40), None, false), TakenUp::No);
        let count = last.by_name.len();
        assert_eq!(last.take_up(&well, None, true), TakenUp::Yes);
        assert_eq!((last.by_name.len(), last.turn(false, 9, 999)), (count, vec![well.clone()]));
        for is_known in [true, false] {
            let mut names = (1..).map(|number| last.take_up(&long(number << 40), None, is_known));
            let taken = names.find(|taken| *taken != TakenUp::Yes);
            assert_eq!((taken, last.wants_names()), (Some(TakenUp::NotYet), false));
        }
        assert!(last.left[0] > 0, "they are not forgotten for more than can be worked off");
        // What is in already goes on whatever there is.
        assert_eq!(last.take_up(&well, Some(7), true), TakenUp::Yes);
        drop(last);
        drop((mirrors, late));
        assert_eq!(budget.held_bytes(), 0);
    }

    /// What a topic counts for is what it takes.
    #[test]
    fn a_topic_is_counted_for_what_it_takes() {
        let of_tree = 2 * (size_of::<(Arc<str>, Topic)>() + size_of::<(Instant, Arc<str>)>());
        let of_agenda = 2 * size_of::<Arc<str>>();
        let allocated = size_of::<Left>() + 2 * 16 + 2 * size_of::<usize>();
        let bytes = of_tree + of_agenda + allocated;
        assert!(bytes <= TOPIC_BYTES, "{bytes}");
    }
}
