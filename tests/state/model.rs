//! What the contract says of topics, without any thought for speed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use antiphon::filter::TagMatch;
use antiphon::limits::RECORD_FRAMING_BYTES;
use antiphon::state::{
    Appended, Discard, Outcome, Reason, RecordsDeleted, Refusal, RouterConfig, Start, TopicConfig, TopicType,
};

use crate::model_route::{ModelGap, ModelOrigin};

/// 0 is no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    pub ttl_ms: u64,
    pub cap_records: u64,
    pub cap_bytes: u64,
    pub rejects: bool,
}

#[derive(Clone)]
pub struct ModelRecord {
    pub seq: u64,
    pub ts_ms: u64,
    pub bytes: u64,
    pub tag: Option<u8>,
    /// Of copies.
    pub origin: Option<ModelOrigin>,
}

#[derive(Default)]
pub struct ModelTopic {
    pub epoch: u64,
    pub head: u64,
    pub window_ms: u64,
    pub limits: Limits,
    pub is_queue: bool,
    pub keys: HashMap<u8, (u64, Appended)>,
    pub live: Vec<ModelRecord>,
    /// What went, and whether it went by age.
    pub gone: Vec<(ModelRecord, bool)>,
    /// What was copied here, ever, and what was reported as lost.
    pub taken: BTreeSet<(String, u64, u64)>,
    pub reported: BTreeSet<(String, u64, u64)>,
    pub gaps: BTreeMap<u64, ModelGap>,
    /// Seqs of copies and gaps.
    pub foreign: BTreeSet<u64>,
}

impl ModelTopic {
    pub fn earliest_seq(&self) -> u64 {
        self.live.first().map_or(self.head + 1, |record| record.seq)
    }

    pub fn bytes(&self) -> u64 {
        self.live.iter().map(|record| record.bytes).sum()
    }

    pub fn lose_oldest(&mut self, by_age: bool) {
        let oldest = self.live.remove(0);
        self.gaps = self.gaps.split_off(&oldest.seq);
        self.gone.push((oldest, by_age));
    }

    /// When its oldest record is to go, or its oldest keys.
    pub fn due_ms(&self) -> Option<u64> {
        let oldest = self.live.first().filter(|_| self.limits.ttl_ms > 0);
        let record_ms = oldest.map(|oldest| oldest.ts_ms + self.limits.ttl_ms + 1);
        let oldest_key_ms = self.keys.values().map(|(ts_ms, _)| *ts_ms).min();
        let keys_ms = oldest_key_ms.map(|ts_ms| (ts_ms + self.window_ms + 1).next_multiple_of(1000));
        record_ms.into_iter().chain(keys_ms).min()
    }

    pub fn is_due(&self, now_ms: u64) -> bool {
        self.due_ms().is_some_and(|due_ms| due_ms <= now_ms)
    }

    pub fn expire(&mut self, now_ms: u64) {
        if self.is_due(now_ms) {
            self.forget_keys(now_ms);
        }
        self.expire_records(now_ms);
    }

    pub fn forget_keys(&mut self, now_ms: u64) {
        self.keys.retain(|_, (ts_ms, _)| now_ms - *ts_ms <= self.window_ms);
    }

    pub fn expire_records(&mut self, now_ms: u64) {
        let ttl_ms = self.limits.ttl_ms;
        while ttl_ms > 0 && self.live.first().is_some_and(|oldest| now_ms - oldest.ts_ms > ttl_ms) {
            self.lose_oldest(true);
        }
    }

    pub fn is_over(&self, more_records: u64, more_bytes: u64) -> bool {
        let Limits { cap_records, cap_bytes, .. } = self.limits;
        (cap_records > 0 && self.live.len() as u64 + more_records > cap_records)
            || (cap_bytes > 0 && self.bytes() + more_bytes > cap_bytes)
    }

    pub fn keep_within_caps(&mut self) {
        // Summing up again for every record would take too long here.
        while !self.limits.rejects && self.is_over(0, 0) {
            let Limits { cap_records, cap_bytes, .. } = self.limits;
            let (mut count, mut bytes) = (self.live.len() as u64, self.bytes());
            while (cap_records > 0 && count > cap_records) || (cap_bytes > 0 && bytes > cap_bytes) {
                (count, bytes) = (count - 1, bytes - self.live[0].bytes);
                self.lose_oldest(false);
            }
        }
    }

    /// The gap that a reader at `cursor` is told of: C-GAP-02, C-GAP-03, C-GAP-05.
    pub fn gap(&self, cursor: u64) -> Option<(u64, u64, Reason)> {
        let missed = |by_age: bool| {
            self.gone.iter().any(|(record, went_by_age)| *went_by_age == by_age && record.seq > cursor)
        };
        let reason = match (missed(false), missed(true)) {
            (false, false) => return None,
            (true, true) => Reason::Mixed,
            (true, false) => Reason::Cap,
            (false, true) => Reason::Ttl,
        };
        Some((cursor + 1, self.earliest_seq() - 1, reason))
    }

    /// The cursor for a time: C-DIFF-15; and whether younger records went: C-DIFF-16.
    pub fn place_of_time(&self, ts_ms: u64) -> (u64, bool) {
        let first = self.live.iter().find(|record| record.ts_ms >= ts_ms);
        let is_lost = self.gone.iter().any(|(record, _)| record.ts_ms >= ts_ms);
        (first.map_or(self.head, |record| record.seq - 1), is_lost)
    }
}

/// A local router that nothing runs: it stays where it was made.
pub struct ModelRouter {
    pub creates_dest: bool,
    pub source: String,
    pub dest: String,
    pub allow_cycle: bool,
    pub start: Start,
    pub position: u64,
    pub drops_tag: bool,
    pub forwarded: u64,
    pub is_paused: bool,
}

/// What the contract says, without any thought for speed.
#[derive(Default)]
pub struct Model {
    pub topics: BTreeMap<String, ModelTopic>,
    pub routers: BTreeMap<String, ModelRouter>,
    pub now_ms: u64,
    /// Numbers that were given to topics and routers.
    pub numbers: u64,
}

/// A third of the records have none.
pub fn record_tag(number: usize) -> Option<u8> {
    [None, Some(1), Some(4), None, Some(2), Some(5)][number % 6]
}

/// Tags of a kind share their start: every fourth is of one.
pub fn tag_text(tag: u8) -> String {
    format!("kind-{}/{tag}", tag % 4)
}

/// 0 to 3 are one tag each, above that all tags of a kind.
pub fn tag_match(tags: u8) -> TagMatch {
    if tags < 4 { TagMatch::Eq(tag_text(tags)) } else { TagMatch::Glob(format!("kind-{}/", tags % 4)) }
}

pub fn record_bytes(number: usize) -> u64 {
    1 + number as u64 % 5 + RECORD_FRAMING_BYTES
}

impl Model {
    pub fn append(
        &mut self,
        topic: &str,
        count: u64,
        create: bool,
        expect: Option<u64>,
        key: Option<u8>,
    ) -> Outcome {
        let refused = |refusal| Outcome::Refused(refusal);
        let created = !self.topics.contains_key(topic);
        if created && !create {
            return refused(Refusal::TopicNotFound);
        }
        // A keyed write forgets what is over by the window of that moment, for good.
        if let Some(known) = self.topics.get_mut(topic) {
            known.expire(self.now_ms);
            if key.is_some() {
                known.forget_keys(self.now_ms);
            }
        }
        if let (Some(known), Some(key)) = (self.topics.get(topic), key)
            && let Some((_, appended)) = known.keys.get(&key)
        {
            return Outcome::Appended(Appended { deduped: true, created: false, ..*appended });
        }
        let head_seq = self.topics.get(topic).map_or(0, |topic| topic.head);
        if expect.is_some_and(|expected| expected != head_seq) {
            return refused(Refusal::HeadMismatch { head_seq });
        }
        let bytes: u64 = (0..count as usize).map(record_bytes).sum();
        if let Some(known) = self.topics.get(topic).filter(|known| known.limits.rejects) {
            let Limits { cap_records, cap_bytes, .. } = known.limits;
            let empty = ModelTopic { limits: known.limits, ..ModelTopic::default() };
            if empty.is_over(count, bytes) {
                return refused(Refusal::AboveCaps { cap_records, cap_bytes });
            }
            if known.is_over(count, bytes) {
                let earliest_seq = known.earliest_seq();
                return refused(Refusal::TopicFull { cap_records, cap_bytes, head_seq, earliest_seq });
            }
        }
        let now_ms = self.now_ms;
        let topic = self.topic(topic);
        topic.head += count;
        let first_seq = topic.head - count + 1;
        let records = (0..count as usize).map(|number| ModelRecord {
            seq: first_seq + number as u64,
            ts_ms: now_ms,
            bytes: record_bytes(number),
            tag: record_tag(number),
            origin: None,
        });
        topic.live.extend(records);
        topic.keep_within_caps();
        let appended = Appended { first_seq, count, head_seq: topic.head, created, deduped: false };
        if let Some(key) = key.filter(|_| topic.window_ms > 0) {
            topic.keys.insert(key, (now_ms, appended));
        }
        Outcome::Appended(appended)
    }

    /// The topic, which is made if it is absent.
    fn topic(&mut self, name: &str) -> &mut ModelTopic {
        self.topics.entry(name.to_owned()).or_insert_with(|| {
            self.numbers += 1;
            let window_ms = TopicConfig::default().idempotency_window_ms;
            ModelTopic { epoch: self.numbers, window_ms, ..ModelTopic::default() }
        })
    }

    pub fn expire(&mut self) -> Outcome {
        let topic_count = self.topics.values().filter(|topic| topic.is_due(self.now_ms)).count() as u64;
        self.topics.values_mut().for_each(|topic| topic.expire(self.now_ms));
        Outcome::Expired { topic_count }
    }

    pub fn put(&mut self, topic: &str, config: &TopicConfig) -> Outcome {
        let created = !self.topics.contains_key(topic);
        let now_ms = self.now_ms;
        let known = self.topic(topic);
        let requested = config.topic_type;
        let existing = if known.is_queue { TopicType::Queue } else { TopicType::Log };
        known.expire(now_ms);
        if !created && existing != requested {
            return Outcome::Refused(Refusal::TypeDiffers { existing, requested });
        }
        known.is_queue = requested == TopicType::Queue;
        known.window_ms = config.idempotency_window_ms;
        known.limits = Limits {
            ttl_ms: config.ttl_ms,
            cap_records: config.cap_records,
            cap_bytes: config.cap_bytes,
            rejects: config.discard == Discard::Reject,
        };
        known.expire_records(now_ms);
        known.keep_within_caps();
        Outcome::TopicPut { created, config: config.clone() }
    }

    /// Without `tags` it is all records.
    pub fn delete_records(&mut self, topic: &str, before_seq: Option<u64>, tags: Option<u8>) -> Outcome {
        let Some(known) = self.topics.get_mut(topic) else { return Outcome::Refused(Refusal::TopicNotFound) };
        known.expire(self.now_ms);
        let count_before = known.live.len();
        let goes = |record: &ModelRecord| {
            let by_tag =
                tags.is_none_or(|tags| record.tag.is_some_and(|tag| tag_match(tags).matches(&tag_text(tag))));
            by_tag && before_seq.is_none_or(|before_seq| record.seq < before_seq)
        };
        known.live.retain(|record| !goes(record));
        if tags.is_none() {
            known.gaps = known.gaps.split_off(&before_seq.unwrap_or(0));
        }
        Outcome::RecordsDeleted(RecordsDeleted {
            deleted: (count_before - known.live.len()) as u64,
            earliest_seq: known.earliest_seq(),
            head_seq: known.head,
            count: known.live.len() as u64,
            bytes: known.bytes(),
        })
    }

    pub fn delete(&mut self, topic: &str, if_empty: bool) -> Outcome {
        if let Some(known) = self.topics.get_mut(topic) {
            known.expire(self.now_ms);
        }
        match self.topics.get(topic) {
            None => Outcome::TopicDeleted { deleted: false, routers_removed: Vec::new() },
            Some(known) if if_empty && !known.live.is_empty() => {
                Outcome::Refused(Refusal::NotEmpty { count: known.live.len() as u64 })
            }
            Some(_) => {
                self.topics.remove(topic);
                let goes = |router: &ModelRouter| router.source == topic || router.dest == topic;
                let named = self.routers.iter().filter(|(_, router)| goes(router));
                let routers_removed: Vec<String> = named.map(|(name, _)| name.clone()).collect();
                self.routers.retain(|_, router| !goes(router));
                Outcome::TopicDeleted { deleted: true, routers_removed }
            }
        }
    }

    /// Routers are named after what they connect, so they are never pointed elsewhere but by their start.
    pub fn put_router(&mut self, name: &str, config: &RouterConfig, is_start_given: bool) -> Outcome {
        let (source, dest) = (config.source.clone(), config.dest.clone());
        if let Some(known) = self.routers.get(name) {
            if is_start_given && known.start != config.start {
                return Outcome::Refused(Refusal::RepointForbidden);
            }
            let (start, way_back) = (known.start, self.way(&dest, &source));
            if let (true, Some(way_back)) = (known.allow_cycle && !config.allow_cycle, way_back) {
                return Outcome::RouterCycle { cycle: [vec![source], way_back].concat() };
            }
            let mut is_changed = false;
            if let Some(known) = self.routers.get_mut(name) {
                let flags = |it: &ModelRouter| (it.allow_cycle, it.drops_tag, it.creates_dest);
                let before = flags(known);
                known.allow_cycle = config.allow_cycle;
                known.drops_tag = !config.preserve_tag;
                known.creates_dest = config.create_dest;
                is_changed = flags(known) != before;
            }
            return Outcome::RouterPut { created: false, start, has_token: false, is_changed };
        }
        if let Some(known) = self.topics.get_mut(&source) {
            known.expire(self.now_ms);
        }
        if !config.create_dest && !self.topics.contains_key(&dest) {
            return Outcome::Refused(Refusal::TopicNotFound);
        }
        if let Some(way_back) = self.way(&dest, &source).filter(|_| !config.allow_cycle) {
            return Outcome::RouterCycle { cycle: [vec![source], way_back].concat() };
        }
        for topic in [&source, &dest] {
            self.topic(topic);
        }
        self.numbers += 1;
        let topic = &self.topics[&source];
        let position = match config.start {
            Start::Latest => topic.head,
            Start::Earliest => topic.earliest_seq() - 1,
            Start::Seq(seq) => seq.min(topic.head),
            Start::Ts(ts_ms) => topic.place_of_time(ts_ms).0.max(topic.earliest_seq() - 1),
        };
        let start = config.start;
        let allow_cycle = config.allow_cycle;
        let (drops_tag, forwarded, is_paused) = (!config.preserve_tag, 0, false);
        let creates_dest = config.create_dest;
        let router = ModelRouter {
            source,
            dest,
            allow_cycle,
            creates_dest,
            start,
            position,
            drops_tag,
            forwarded,
            is_paused,
        };
        self.routers.insert(name.to_owned(), router);
        Outcome::RouterPut { created: true, start, has_token: false, is_changed: true }
    }

    /// The first way in the order of breadth.
    fn way(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let mut ways = vec![vec![from.to_owned()]];
        let mut seen = vec![from.to_owned()];
        while !ways.is_empty() {
            if let Some(way) = ways.iter().find(|way| way.last().is_some_and(|last| last == to)) {
                return Some(way.clone());
            }
            let mut longer = Vec::new();
            for way in &ways {
                for router in self.routers.values().filter(|router| way.last() == Some(&router.source)) {
                    if !seen.contains(&router.dest) {
                        seen.push(router.dest.clone());
                        longer.push([way.clone(), vec![router.dest.clone()]].concat());
                    }
                }
            }
            ways = longer;
        }
        None
    }

    pub fn delete_router(&mut self, name: &str) -> Outcome {
        Outcome::RouterDeleted { deleted: self.routers.remove(name).is_some() }
    }

    pub fn pause_router(&mut self, name: &str, pause: bool) -> Outcome {
        match self.routers.get_mut(name) {
            None => Outcome::Refused(Refusal::RouterNotFound),
            Some(router) => {
                router.is_paused = pause;
                Outcome::RouterPaused { is_paused: pause }
            }
        }
    }
}
