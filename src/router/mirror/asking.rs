//! What a mirror asks for: the topics that have something new, and what it wants to know of all others.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Asked, LOOK_INTERVAL, Mirror, TOPICS_PER_LOOK};
use crate::engine::{
    Ask, Beginning, ChangeCursor, ChangedTopic, News, PullCursor, PullQuery, Sources, TopicNews,
};
use crate::limits::{MAX_PULL_WANTED, MAX_PULL_WANTED_BYTES, PULLS_BEFORE_LONGER};
use crate::router::page::dest_of;
use crate::router::topics::TakenUp;
use crate::router::why::Why;
use crate::router::wire::PullRequest;
use crate::state::{ClusterRoom, Position, Refusal, Router};

/// Bytes of names and cursors in one pull: fewer if the remote, or what is before it, takes no request of that size,
/// and more again after a while, because what is before it may be another one by then.
pub(super) struct WantedBytes {
    most: usize,
    /// Pulls that went well since that was changed.
    well: u32,
}

impl Default for WantedBytes {
    fn default() -> Self {
        WantedBytes { most: MAX_PULL_WANTED_BYTES, well: 0 }
    }
}

impl WantedBytes {
    pub fn were_too_many(&mut self) {
        *self = WantedBytes { most: (self.most / 2).max(1), well: 0 };
    }

    pub fn went_well(&mut self) {
        self.well = self.well.saturating_add(1);
        if self.well >= PULLS_BEFORE_LONGER {
            *self = WantedBytes { most: (self.most * 2).min(MAX_PULL_WANTED_BYTES), well: 0 };
        }
    }
}

impl Mirror {
    /// Which topics to ask for, and whether they are some that were left alone and are tried again. Those and all
    /// others take turns.
    pub(super) fn wanted(&self) -> (Vec<Arc<str>>, bool) {
        let source = &self.router.source;
        if self.prefix().is_none() {
            return (vec![source.clone()], self.topics.has_left(source));
        }
        let is_retry = self.topics.has_retries() && (!self.topics.has_due() || !self.was_retry);
        (self.topics.turn(is_retry, MAX_PULL_WANTED, self.wanted_bytes.most), is_retry)
    }

    /// Of topics that are tried again leaves those alone anew whose destinations take nothing now: that is known without
    /// asking for anything, and leaves the turns to all others.
    pub(super) async fn leave_closed(&mut self, due: &[Arc<str>]) {
        for some in due.chunks(TOPICS_PER_LOOK) {
            let room = self.cluster_room();
            for topic in some {
                if let Some((refusal, needed_bytes)) = self.closed(&room, topic) {
                    self.leave(topic, Why::Refused(refusal), needed_bytes);
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Why the destination of `topic` takes nothing of what was refused already, and how many bytes that has.
    fn closed(&self, room: &ClusterRoom, topic: &str) -> Option<(Refusal, u64)> {
        let needed_bytes = self.topics.refused_here(topic)?;
        let has_position = self.router.read().positions.contains_key(topic);
        // It is not written down yet where it begins (C-ROUTE-02), and may be by now.
        if !has_position && self.may_note_begun(topic) {
            return None;
        }
        let dest = self.context.engine.catalog().get(dest_of(&self.config, topic));
        let dest = dest.as_ref().map(|dest| dest.read());
        let no_place = room.no_place(dest.as_deref(), self.config.create_dest, has_position);
        let refusal = no_place.or_else(|| room.no_room(dest.as_deref(), needed_bytes))?;
        Some((refusal, needed_bytes))
    }

    /// Whether it may be written down where the mirror begins in `topic`, if that is not yet.
    pub(super) fn may_note_begun(&self, topic: &str) -> bool {
        let in_all = self.context.engine.routers().position_count();
        self.router.read().may_note_begun(topic, in_all)
    }

    /// Takes up topics that have something new, or have gone there.
    pub(super) async fn take_news(&mut self, mut news: News) {
        let topics = match &news {
            News::Nothing | News::Unknown => &[][..],
            News::Changed { topics, .. } => topics,
            News::Listed(listed) => &listed.topics,
        };
        let (mut noted, count) = (0, topics.len());
        for some in topics.chunks(TOPICS_PER_LOOK) {
            let noted_of_some = self.note_news(some);
            noted += noted_of_some;
            if noted_of_some < some.len() {
                break;
            }
            tokio::task::yield_now().await;
        }
        if noted < count {
            news = self.view.cut(news, noted);
        }
        if let News::Listed(listed) = &news {
            let gone = self.view.not_listed(&self.router, listed).await;
            gone.iter().for_each(|topic| self.topics.take_up_or_drop(topic));
        }
        if self.view.take(&news) {
            self.list_again();
        } else if matches!(news, News::Changed { .. }) && !self.topics.has_dropped() {
            self.list_pauses.reset();
        }
    }

    /// Gives how many of them were looked at: before the next one is, what is due must be worked off.
    fn note_news(&mut self, topics: &[TopicNews]) -> usize {
        let (now, shared) = (Instant::now(), self.router.clone());
        let router = shared.read();
        for (at, news) in topics.iter().enumerate() {
            let known = router.positions.get_key_value(&news.topic);
            if self.topics.is_left_alone(&news.topic, now) {
                // The record that there was no room for may be gone, or all of the topic.
                self.topics.forget_needed(&news.topic);
                if self.topics.refused_here(&news.topic).is_some()
                    && known.is_some_and(|(_, position)| position.source_epoch != news.epoch)
                {
                    self.topics.add(&news.topic);
                }
                // Otherwise it has its time.
            } else if let Some(lag) = self.lag(&router, news) {
                // The name as it is kept already costs nothing more.
                let name = known.map_or(&news.topic, |(name, _)| name);
                if self.topics.take_up(name, Some(lag), known.is_some()) == TakenUp::NotYet {
                    return at;
                }
            }
        }
        topics.len()
    }

    /// How many seqs of a topic were not examined yet; `None` if nothing is to be had of it.
    pub(super) fn lag(&self, router: &Router, news: &TopicNews) -> Option<u64> {
        let TopicNews { topic, epoch, head_seq } = news;
        let Some(position) = router.positions.get(topic) else {
            // Of one that was there before this mirror it has to be noted where it begins.
            let is_new = *epoch >= router.first_new_epoch;
            return (*epoch > 0 && (*head_seq > 0 || !is_new)).then_some(*head_seq);
        };
        if position.source_epoch != *epoch {
            return Some(*head_seq);
        }
        let dest = self.context.engine.catalog().get(dest_of(&self.config, topic));
        if !position.goes_on(*epoch, dest.map(|dest| dest.epoch)) {
            return (*head_seq > 0).then_some(*head_seq);
        }
        let ahead_seq = self.ahead_of(topic, position).map_or(0, |ahead| ahead.seq);
        let seq = position.seq.max(ahead_seq);
        (seq != *head_seq).then(|| head_seq.saturating_sub(seq))
    }

    /// Takes up topics whose destinations went away: they get everything anew.
    pub(super) fn note_what_went(&mut self) {
        match self.went_here() {
            None => {
                self.known_here = self.context.engine.follow_changes();
                self.list_again();
            }
            Some((topics, cursor)) => {
                topics.iter().for_each(|topic| self.topics.take_up_or_drop(topic));
                self.known_here = cursor;
            }
        }
    }

    /// Destinations that went away since that was looked at last, and up to where that is all of it; `None` if that
    /// is not known.
    pub(super) fn went_here(&self) -> Option<(Vec<Arc<str>>, ChangeCursor)> {
        let changed = self.context.engine.changed_behind(self.known_here, self.prefix()?)?;
        let is_gone = |topic: &&ChangedTopic| {
            let now = self.context.engine.catalog().get(&topic.name);
            now.is_none_or(|now| now.epoch != topic.epoch)
        };
        let gone: Vec<&ChangedTopic> = changed.topics.iter().filter(is_gone).collect();
        let mut went = Vec::new();
        if !gone.is_empty() {
            let router = self.router.read();
            let is_dest = |topic: &&&ChangedTopic| {
                let position = router.positions.get(&topic.name);
                position.is_some_and(|position| position.dest_epoch == topic.epoch)
            };
            went.extend(gone.iter().filter(is_dest).map(|topic| topic.name.clone()));
        }
        Some((went, changed.cursor))
    }

    /// Returns when a topic is gone for which something was asked, or may have to be.
    pub(super) async fn until_moved(&self, asked: &Asked) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let has_lost = || self.went_here().is_none_or(|(went, _)| !went.is_empty());
            if (self.prefix().is_some() && has_lost())
                || asked.keys().any(|source| self.has_moved(asked, source))
            {
                return;
            }
        }
    }

    /// Whether what was asked of `source` goes on from where a topic was that is gone by now.
    pub(super) fn has_moved(&self, asked: &Asked, source: &str) -> bool {
        let dest = || self.context.engine.catalog().get(dest_of(&self.config, source));
        let asked = asked.get(source).filter(|asked| asked.dest_epoch > 0);
        asked.is_some_and(|asked| dest().is_none_or(|dest| dest.epoch != asked.dest_epoch))
    }

    /// How far `source` was examined beyond its position.
    pub(super) fn ahead_of(&self, source: &str, position: &Position) -> Option<&PullCursor> {
        let (dest_epoch, ahead) = self.ahead.get(source)?;
        let goes_on = (*dest_epoch, ahead.epoch) == (position.dest_epoch, position.source_epoch);
        (goes_on && ahead.seq > position.seq).then_some(ahead)
    }

    pub(super) fn request(
        &self,
        wanted: &[Arc<str>],
        wait: Duration,
        max_bytes: usize,
    ) -> (PullRequest, Asked) {
        let router = self.router.read();
        let mut asked = Asked::new();
        let mut cursor = |source: &Arc<str>| {
            let position = router.positions.get(source)?;
            let dest = self.context.engine.catalog().get(dest_of(&self.config, source));
            let (epoch, seq, entry) = (position.source_epoch, position.seq, position.entry);
            if !position.goes_on(epoch, dest.as_ref().map(|dest| dest.epoch)) {
                // A destination that was made anew gets everything anew.
                return Some(PullCursor { epoch, seq: 0, entry: None });
            }
            asked.insert(source.to_string(), *position);
            Some(self.ahead_of(source, position).copied().unwrap_or(PullCursor { epoch, seq, entry }))
        };
        let wanted = wanted.iter().map(|source| (source.to_string(), cursor(source))).collect();
        // Topics that appear later begin with their first record (C-MIRROR-04).
        let before_epoch = match router.remote_cluster {
            None => u64::MAX,
            Some(_) => router.first_new_epoch,
        };
        let (sources, ask) = match self.prefix() {
            Some(prefix) => {
                // Not for more than can be worked off.
                let asks = self.topics.wants_names() && !self.waits_to_list(Instant::now());
                (Sources::Prefix(prefix.to_owned()), if asks { self.view.ask() } else { Ask::Nothing })
            }
            None => (Sources::One(self.config.source.clone()), Ask::Nothing),
        };
        let query = PullQuery {
            sources,
            wanted,
            ask,
            beginning: Some(Beginning { start: self.config.start, before_epoch }),
            filter: self.config.filter.clone().map(Arc::new),
            puller_id: self.own.id,
            dest: (self.config.dest != "*").then(|| self.config.dest.clone()),
            wait_ms: wait.as_millis() as u64,
            max_bytes,
        };
        (PullRequest { puller: self.own.clone(), query }, asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulls_that_were_too_long_are_longer_again_after_a_while() {
        let mut bytes = WantedBytes::default();
        (0..40).for_each(|_| bytes.were_too_many());
        assert_eq!(bytes.most, 1, "one name is asked for in any case");
        (1..PULLS_BEFORE_LONGER).for_each(|_| bytes.went_well());
        bytes.were_too_many();
        (1..PULLS_BEFORE_LONGER).for_each(|_| bytes.went_well());
        assert_eq!(bytes.most, 1);
        bytes.went_well();
        assert_eq!(bytes.most, 2);
        (0..20 * PULLS_BEFORE_LONGER).for_each(|_| bytes.went_well());
        assert_eq!(bytes.most, MAX_PULL_WANTED_BYTES);
    }
}
