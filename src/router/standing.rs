//! How the topics of one mirror do: which are left alone for a while, and what is left to examine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::status::Told;
use crate::clock::Random;
use crate::engine::LinkState;
use crate::limits::MIRROR_PAUSE_MS;

/// A topic that is left alone for a while.
struct Blocked {
    until: Instant,
    backoff: Backoff,
    state: LinkState,
    told: Told,
}

/// By source topic, of those of which there is something to say.
#[derive(Default)]
pub(super) struct Standing {
    blocked: BTreeMap<String, Blocked>,
    /// Seqs not examined.
    lags: BTreeMap<String, u64>,
}

impl Standing {
    /// Seqs not examined, of all topics.
    pub fn lag(&self) -> u64 {
        // Another cluster says what they are.
        self.lags.values().fold(0, |sum, lag| sum.saturating_add(*lag))
    }

    /// How the topic does that does worst, if any does not go on (C-MIRROR-12).
    pub fn worst(&self) -> Option<(LinkState, Told)> {
        let worst = self.blocked.values().rev().max_by_key(|blocked| blocked.state);
        worst.map(|blocked| (blocked.state, blocked.told.clone()))
    }

    /// Topics that are not to be asked for now.
    pub fn excluded(&self, now: Instant) -> BTreeSet<String> {
        let excluded = self.blocked.iter().filter(|(_, blocked)| blocked.until > now);
        excluded.map(|(topic, _)| topic.clone()).collect()
    }

    /// When the next of those is to be asked for again.
    pub fn next_try(&self, now: Instant) -> Option<Instant> {
        self.blocked.values().map(|blocked| blocked.until).filter(|until| *until > now).min()
    }

    /// Whether a topic that was left alone may be asked for again.
    pub fn has_due(&self, now: Instant) -> bool {
        self.blocked.values().any(|blocked| blocked.until <= now)
    }

    pub fn note_lag(&mut self, source: &str, lag: u64) {
        if lag > 0 {
            self.lags.insert(source.to_owned(), lag);
        } else {
            self.lags.remove(source);
        }
    }

    /// Leaves `source` alone, for longer each time in a row.
    pub fn block(&mut self, source: &str, told: Told, random: &dyn Random) {
        let blocked = self.leave(source, LinkState::Blocked, told);
        blocked.until = Instant::now() + blocked.backoff.pause(random);
    }

    /// Leaves `source` alone for the longest time: what is wrong with it is not here.
    pub fn distrust(&mut self, source: &str, told: Told) {
        self.leave(source, LinkState::Retrying, told).until =
            Instant::now() + Duration::from_millis(MIRROR_PAUSE_MS.1);
    }

    fn leave(&mut self, source: &str, state: LinkState, told: Told) -> &mut Blocked {
        let blocked = self.blocked.entry(source.to_owned()).or_insert_with(|| Blocked {
            until: Instant::now(),
            backoff: Backoff::new(MIRROR_PAUSE_MS),
            state,
            told: told.clone(),
        });
        (blocked.state, blocked.told) = (state, told);
        blocked
    }

    /// `source` goes on.
    pub fn unblock(&mut self, source: &str) {
        self.blocked.remove(source);
    }

    /// `source` is gone.
    pub fn forget(&mut self, source: &str) {
        self.blocked.remove(source);
        self.lags.remove(source);
    }

    pub fn unblock_all(&mut self) {
        self.blocked.clear();
    }

    /// Forgets what was told of topics that were asked for and had nothing to say: they are well, or gone.
    pub fn forget_silent(&mut self, speaking: &BTreeSet<&str>, excluded: &BTreeSet<String>) {
        let is_kept = |topic: &str| excluded.contains(topic) || speaking.contains(topic);
        self.blocked.retain(|topic, _| is_kept(topic));
        // One that had no room in this answer keeps its lag.
        if speaking.is_empty() {
            self.lags.retain(|topic, _| is_kept(topic));
        }
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
        assert_eq!(
            (standing.excluded(now), standing.has_due(now)),
            (BTreeSet::from(["a".to_owned()]), false)
        );
        let later = standing.next_try(now).expect("a time");
        assert_eq!(later - now, Duration::from_millis(MIRROR_PAUSE_MS.0));
        assert!(standing.excluded(later).is_empty() && standing.has_due(later));
        assert_eq!((standing.worst(), standing.next_try(later)), (Some((LinkState::Blocked, told())), None));
        standing.unblock("a");
        assert_eq!(standing.worst(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_says_nothing_when_asked_is_forgotten() {
        let mut standing = Standing::default();
        for topic in ["asked", "excluded", "speaking"] {
            standing.block(topic, told(), &Most);
            standing.note_lag(topic, 5);
        }
        let excluded = BTreeSet::from(["excluded".to_owned()]);
        standing.forget_silent(&BTreeSet::from(["speaking"]), &excluded);
        assert_eq!(standing.blocked.keys().collect::<Vec<_>>(), ["excluded", "speaking"]);
        assert_eq!(standing.lag(), 15);
        standing.forget_silent(&BTreeSet::new(), &excluded);
        assert_eq!((standing.blocked.len(), standing.lag()), (1, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_that_cannot_be_believed_waits_longest_and_alone() {
        // C-MIRROR-18
        let mut standing = Standing::default();
        let damaged =
            Told { seq: Some(7), topic: Some("a".into()), ..Told::new("source_damaged", "no JSON") };
        standing.distrust("a", damaged.clone());
        let now = Instant::now();
        assert_eq!(standing.next_try(now), Some(now + Duration::from_secs(30)));
        assert_eq!(standing.excluded(now), BTreeSet::from(["a".to_owned()]));
        assert_eq!(standing.worst(), Some((LinkState::Retrying, damaged)));
        standing.block("b", told(), &Most);
        assert_eq!(standing.worst(), Some((LinkState::Blocked, told())));
        // Whatever another cluster says its heads are.
        standing.note_lag("a", u64::MAX);
        standing.note_lag("b", 2);
        assert_eq!(standing.lag(), u64::MAX);
    }
}
