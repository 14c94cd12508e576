//! How the topics of one mirror do: which are left alone for a while, and what is left to examine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::status::Told;
use crate::clock::Random;
use crate::engine::LinkState;
use crate::limits::{MAX_LEFT_TOPICS, MIRROR_PAUSE_MS};

/// A topic that is left alone for a while.
struct Blocked {
    until: Instant,
    backoff: Backoff,
    state: LinkState,
    told: Told,
    /// Counted bytes of the record that its destination had no room for; 0 if that is not known.
    needed_bytes: u64,
}

/// By source topic, of those of which there is something to say.
#[derive(Default)]
pub(super) struct Standing {
    blocked: BTreeMap<String, Blocked>,
    /// When those are to be asked for again that were not yet.
    waiting: BTreeSet<(Instant, String)>,
    /// Seqs not examined.
    lags: BTreeMap<String, u64>,
    /// Their sum.
    lag: u128,
}

impl Standing {
    /// Seqs not examined, of all topics.
    pub fn lag(&self) -> u64 {
        u64::try_from(self.lag).unwrap_or(u64::MAX)
    }

    /// How the topic does that does worst, if any does not go on (C-MIRROR-12).
    pub fn worst(&self) -> Option<(LinkState, Told)> {
        let worst = self.blocked.values().rev().max_by_key(|blocked| blocked.state);
        worst.map(|blocked| (blocked.state, blocked.told.clone()))
    }

    /// Whether `source` is not to be asked for now.
    pub fn is_blocked(&self, source: &str, now: Instant) -> bool {
        self.blocked.get(source).is_some_and(|blocked| blocked.until > now)
    }

    /// Whether `source` was left alone and does not go on yet.
    pub fn has_left(&self, source: &str) -> bool {
        self.blocked.contains_key(source)
    }

    /// If `source` was left alone because of its destination: the bytes of the record that this had no room for, 0 if
    /// that is not known.
    pub fn refused_here(&self, source: &str) -> Option<u64> {
        let is_here =
            |blocked: &&Blocked| !matches!(&*blocked.told.code, "source_damaged" | "source_diverged");
        self.blocked.get(source).filter(is_here).map(|blocked| blocked.needed_bytes)
    }

    /// The next record of `source`, which was left alone, has so many counted bytes; 0 if that is not known.
    pub fn note_needed(&mut self, source: &str, bytes: u64) {
        if let Some(blocked) = self.blocked.get_mut(source) {
            blocked.needed_bytes = bytes;
        }
    }

    /// Whether so many were left alone that no further ones should be asked for.
    pub fn is_full(&self) -> bool {
        self.blocked.len() >= MAX_LEFT_TOPICS
    }

    /// When the next topic is to be asked for again.
    pub fn next_try(&self) -> Option<Instant> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// Topics that were left alone and may be asked for again; each once.
    pub fn take_due(&mut self, now: Instant) -> Vec<String> {
        let mut due = Vec::new();
        while self.next_try().is_some_and(|until| until <= now)
            && let Some((_, source)) = self.waiting.pop_first()
        {
            due.push(source);
        }
        due
    }

    pub fn note_lag(&mut self, source: &str, lag: u64) {
        let before = match lag {
            0 => self.lags.remove(source),
            _ => self.lags.insert(source.to_owned(), lag),
        };
        self.lag = self.lag + u128::from(lag) - u128::from(before.unwrap_or(0));
    }

    /// Leaves `source` alone, for longer each time in a row.
    pub fn block(&mut self, source: &str, told: Told, random: &dyn Random) {
        self.leave(source, LinkState::Blocked, told, |backoff| backoff.pause(random));
    }

    /// Leaves `source` alone for the longest time: what is wrong with it is not here.
    pub fn distrust(&mut self, source: &str, told: Told) {
        self.leave(source, LinkState::Retrying, told, |_| Duration::from_millis(MIRROR_PAUSE_MS.1));
    }

    fn leave(
        &mut self,
        source: &str,
        state: LinkState,
        told: Told,
        pause: impl Fn(&mut Backoff) -> Duration,
    ) {
        let now = Instant::now();
        let blocked = self.blocked.entry(source.to_owned()).or_insert_with(|| Blocked {
            until: now,
            backoff: Backoff::new(MIRROR_PAUSE_MS),
            state,
            told: told.clone(),
            needed_bytes: 0,
        });
        self.waiting.remove(&(blocked.until, source.to_owned()));
        (blocked.state, blocked.told) = (state, told);
        blocked.until = now + pause(&mut blocked.backoff);
        self.waiting.insert((blocked.until, source.to_owned()));
    }

    /// `source` goes on.
    pub fn unblock(&mut self, source: &str) {
        if let Some(blocked) = self.blocked.remove(source) {
            self.waiting.remove(&(blocked.until, source.to_owned()));
        }
    }

    /// `source` is gone, or was asked for and had nothing to say.
    pub fn forget(&mut self, source: &str) {
        self.unblock(source);
        self.note_lag(source, 0);
    }

    /// Gives the topics that were left alone.
    pub fn unblock_all(&mut self) -> Vec<String> {
        self.waiting.clear();
        std::mem::take(&mut self.blocked).into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Most;
    impl Random for Most {
        fn next_u64(&self) -> u64 {
            MIRROR_PAUSE_MS.0
        }
    }

    fn told() -> Told {
        Told::new("topic_full", "there is no room")
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_is_left_alone_until_its_time_has_come() {
        // C-MIRROR-12
        let mut standing = Standing::default();
        standing.block("a", told(), &Most);
        let now = Instant::now();
        assert!(standing.is_blocked("a", now) && standing.take_due(now).is_empty());
        let later = standing.next_try().expect("a time");
        assert_eq!(later - now, Duration::from_millis(MIRROR_PAUSE_MS.0));
        assert!(!standing.is_blocked("a", later));
        assert_eq!((standing.take_due(later), standing.take_due(later)), (vec!["a".to_owned()], vec![]));
        assert_eq!((standing.worst(), standing.next_try()), (Some((LinkState::Blocked, told())), None));
        // Again, and for longer; the time before does not count any more.
        standing.block("a", told(), &Most);
        standing.block("a", told(), &Most);
        assert_eq!(standing.waiting.len(), 1);
        assert_eq!((standing.unblock_all(), standing.next_try()), (vec!["a".to_owned()], None));
        assert_eq!(standing.worst(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_counts_no_more() {
        let mut standing = Standing::default();
        for topic in ["a", "b"] {
            standing.block(topic, told(), &Most);
            standing.note_lag(topic, u64::MAX - 5);
            standing.note_lag(topic, 5);
        }
        assert_eq!(standing.lag(), 10);
        standing.forget("a");
        standing.forget("a");
        assert_eq!(
            (standing.lag(), standing.waiting.len(), standing.worst()),
            (5, 1, Some((LinkState::Blocked, told())))
        );
        standing.note_lag("b", u64::MAX);
        standing.note_lag("c", u64::MAX);
        assert_eq!(standing.lag(), u64::MAX);
        ["b", "c"].into_iter().for_each(|topic| standing.forget(topic));
        assert_eq!((standing.lag(), standing.worst(), standing.next_try()), (0, None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_that_cannot_be_believed_waits_longest_and_alone() {
        // C-MIRROR-18
        let mut standing = Standing::default();
        let damaged =
            Told { seq: Some(7), topic: Some("a".into()), ..Told::new("source_damaged", "no JSON") };
        standing.distrust("a", damaged.clone());
        let now = Instant::now();
        assert_eq!(standing.next_try(), Some(now + Duration::from_secs(30)));
        assert!(standing.is_blocked("a", now));
        assert_eq!(standing.worst(), Some((LinkState::Retrying, damaged)));
        standing.block("b", told(), &Most);
        assert_eq!(standing.worst(), Some((LinkState::Blocked, told())));
    }
}
