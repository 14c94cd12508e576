//! What the contract says of local routers, without any thought for speed: one record after the other, sets of seqs.

use std::collections::BTreeSet;

use antiphon::state::{Forwarded, Outcome, Refusal};

use crate::model::{Limits, Model, ModelRecord, ModelTopic};

/// Where a record was first written, and when: topic, epoch, seq, time.
pub type ModelOrigin = (String, u64, u64, u64);

/// Seqs of a topic instance, both included.
pub type ModelGap = (String, u64, u64, u64);

/// What is asked of one router.
#[derive(Debug, Clone)]
pub struct ModelPart {
    pub router: String,
    pub from_seq: u64,
    pub to_seq: u64,
    /// Which seqs; `None` is all.
    pub picked: Option<BTreeSet<u64>>,
}

enum Item {
    Copy(ModelRecord),
    Gap(ModelGap),
}

struct Plan {
    dest: String,
    items: Vec<Item>,
    reached_seq: u64,
    stopped: Option<Refusal>,
}

impl ModelTopic {
    fn is_expired(&self, record: &ModelRecord, now_ms: u64) -> bool {
        self.limits.ttl_ms > 0 && now_ms - record.ts_ms > self.limits.ttl_ms
    }

    fn knows(&self, seq: &(String, u64, u64)) -> bool {
        self.taken.contains(seq) || self.reported.contains(seq)
    }

    /// Whether what was written in `topic` comes home here.
    fn is_home_of(&self, own_name: &str, (topic, epoch): (&str, u64)) -> bool {
        topic == own_name && epoch <= self.epoch
    }

    /// The smallest range that has all that is news of these.
    fn news_of(&self, topic: &str, epoch: u64, seqs: impl Iterator<Item = u64>) -> Option<ModelGap> {
        let mut news = seqs.filter(|seq| !self.knows(&(topic.to_owned(), epoch, *seq)));
        let first = news.next()?;
        Some((topic.to_owned(), epoch, first, news.last().unwrap_or(first)))
    }

    /// The seqs up to `evicted_to` that `dest` may have lost by their eviction here: what was copied here only if
    /// there is something that `dest` did not get from elsewhere.
    fn lost_to(&self, (dest, dest_name): (&ModelTopic, &str), from_seq: u64, evicted_to: u64) -> Vec<u64> {
        let is_home = |seq: &(String, u64, u64)| dest.is_home_of(dest_name, (&seq.0, seq.1));
        let has_all = self.taken.iter().all(|seq| is_home(seq) || dest.taken.contains(seq))
            && self.reported.iter().all(|seq| is_home(seq) || dest.knows(seq));
        (from_seq + 1..=evicted_to).filter(|seq| !has_all || !self.foreign.contains(seq)).collect()
    }
}

impl Model {
    pub fn route(&mut self, parts: &[ModelPart]) -> Outcome {
        let mut dests = BTreeSet::new();
        let plans: Vec<Option<Plan>> = parts.iter().map(|part| self.plan(part, &mut dests)).collect();
        let mut forwarded = Vec::new();
        for (part, plan) in parts.iter().zip(plans) {
            let Some(plan) = plan else {
                forwarded.push(Forwarded { taken: 0, seq: 0, stopped: Some(Refusal::RouterMoved) });
                continue;
            };
            let (taken, seq, stopped) = (self.carry_out(&plan), plan.reached_seq, plan.stopped);
            let router = self.routers.get_mut(&part.router).expect("it was there to plan");
            router.position = seq;
            router.forwarded += taken;
            forwarded.push(Forwarded { taken, seq, stopped });
        }
        Outcome::Forwarded(forwarded)
    }

    fn plan(&self, part: &ModelPart, dests: &mut BTreeSet<String>) -> Option<Plan> {
        let router = self.routers.get(&part.router)?;
        if router.is_paused || router.position != part.from_seq || !dests.insert(router.dest.clone()) {
            return None;
        }
        let (source, dest) = (&self.topics[&router.source], &self.topics[&router.dest]);
        let to_seq = part.to_seq.min(source.head).max(part.from_seq);
        let evict_floor = source.gone.iter().map(|(record, _)| record.seq + 1).max().unwrap_or(1);
        let (mut items, mut evicted_to, mut stopped_at) = (Vec::new(), evict_floor - 1, None);
        let Limits { cap_records, cap_bytes, rejects, .. } = dest.limits;
        let (mut count, mut bytes) = (dest.live.len() as u64, dest.bytes());
        let mut live = source.live.iter().peekable();
        for seq in part.from_seq + 1..=to_seq {
            if let Some((topic, epoch, from, to)) = source.gaps.get(&seq)
                && !dest.is_home_of(&router.dest, (topic, *epoch))
            {
                items.extend(dest.news_of(topic, *epoch, *from..=*to).map(Item::Gap));
            }
            while live.peek().is_some_and(|record| record.seq < seq) {
                live.next();
            }
            let Some(record) = live.peek().filter(|record| record.seq == seq) else { continue };
            if source.is_expired(record, self.now_ms) {
                evicted_to = seq;
                continue;
            }
            if part.picked.as_ref().is_some_and(|picked| !picked.contains(&seq)) {
                continue;
            }
            let own = || (router.source.clone(), source.epoch, seq, record.ts_ms);
            let origin = record.origin.clone().unwrap_or_else(own);
            let (topic, epoch, origin_seq, _) = &origin;
            let is_known = dest.taken.contains(&(topic.clone(), *epoch, *origin_seq));
            if is_known || dest.is_home_of(&router.dest, (topic, *epoch)) {
                continue;
            }
            (count, bytes) = (count + 1, bytes + record.bytes);
            if rejects && ((cap_records > 0 && count > cap_records) || (cap_bytes > 0 && bytes > cap_bytes)) {
                stopped_at = Some(seq - 1);
                break;
            }
            let tag = record.tag.filter(|_| !router.drops_tag);
            let copy = ModelRecord { tag, origin: Some(origin), ..(*record).clone() };
            items.push(Item::Copy(copy));
        }
        if evicted_to > part.from_seq {
            let lost = source.lost_to((dest, &router.dest), part.from_seq, evicted_to);
            let lost = dest.news_of(&router.source, source.epoch, lost.into_iter());
            items.splice(0..0, lost.map(Item::Gap));
        }
        let earliest_seq = dest.earliest_seq();
        let full = Refusal::TopicFull { cap_records, cap_bytes, head_seq: dest.head, earliest_seq };
        Some(Plan {
            dest: router.dest.clone(),
            items,
            reached_seq: stopped_at.unwrap_or(to_seq).max(part.from_seq).max(evicted_to),
            stopped: stopped_at.map(|_| full),
        })
    }

    /// Says how many records were copied.
    fn carry_out(&mut self, plan: &Plan) -> u64 {
        let now_ms = self.now_ms;
        let dest = self.topics.get_mut(&plan.dest).expect("it was there to plan");
        dest.expire(now_ms);
        let mut taken = 0;
        for item in &plan.items {
            dest.head += 1;
            dest.foreign.insert(dest.head);
            match item {
                Item::Gap(gap) => {
                    let (topic, epoch, from, to) = gap;
                    dest.reported.extend((*from..=*to).map(|seq| (topic.clone(), *epoch, seq)));
                    dest.gaps.insert(dest.head, gap.clone());
                }
                Item::Copy(record) => {
                    let (topic, epoch, seq, _) = record.origin.clone().expect("copies have one");
                    assert!(dest.taken.insert((topic, epoch, seq)), "the plan copies something twice");
                    dest.live.push(ModelRecord { seq: dest.head, ts_ms: now_ms, ..record.clone() });
                    taken += 1;
                }
            }
        }
        dest.keep_within_caps();
        taken
    }
}
