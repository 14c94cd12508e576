//! What another cluster brings that means harm: no member does much for it, or keeps much of it.

use std::sync::Arc;

use antiphon::limits::{
    MAX_BEGUN_PER_ROUTER, MAX_GAPS_PER_TOPIC, MAX_ORIGINS_PER_TOPIC, MAX_REPORTED_PER_TOPIC,
};
use antiphon::record::{HeaderEdit, Record};
use antiphon::state::{
    Append, Cluster, Copy, CopyItem, CopyPart, Create, Draft, Envelope, Forwarded, Instance, Limit, Outcome,
    PutRouter, Refusal, Remote, RouterConfig, SharedTopic, Start, TopicConfig, TopicType,
};

use crate::member::Member;

/// A member with a mirror `m` of topic `t` of cluster 9.
struct Mirrored {
    member: Member,
    index: u64,
    generation: u64,
    /// The bytes of some record.
    stored: Vec<u8>,
}

impl Mirrored {
    fn new() -> Self {
        let mut mirrored =
            Mirrored { member: Member::default(), index: 0, generation: 0, stored: Vec::new() };
        mirrored.apply(Draft::open_session());
        mirrored.apply(Draft::set_cluster(&Cluster { id: 7, name: "here".into() }));
        let create = Create::With(TopicConfig::default());
        let append = Append { topic: "z", create, expect_head_seq: None, idempotency_key: None };
        let record = Record { data: "7", ..Record::default() };
        mirrored.apply(Draft::append(&append, std::iter::once(record), 0));
        let entry = mirrored.member.log.values().last().unwrap();
        mirrored.stored = entry.record(0).unwrap().to_vec();
        let remote = Remote { urls: vec!["http://there:4000".into()], token: None, relays: None };
        let config =
            RouterConfig { remote: Some(remote), start: Start::Earliest, ..RouterConfig::local("t", "t") };
        mirrored.apply(Draft::put_router(&PutRouter { name: "m", config, is_start_given: true }));
        mirrored.generation = mirrored.member.state.routers().get("m").unwrap().generation;
        mirrored
    }

    fn apply(&mut self, draft: Draft) -> Outcome {
        self.index += 1;
        let envelope = Envelope { node_id: 1, session: 5, number: self.index, done_below: self.index };
        self.member.apply(self.index, 1_000_000 + self.index, &draft.seal(envelope))
    }

    fn dest(&self) -> Option<Arc<SharedTopic>> {
        self.member.state.catalog().get("t")
    }

    fn restart(&mut self) {
        self.member.restart();
    }

    /// What becomes of these items, behind what came before, up to `to_seq` of the source.
    fn copy(&mut self, instances: Vec<Instance>, items: Vec<CopyItem>, to_seq: u64) -> Forwarded {
        let from_seq = {
            let router = self.member.state.routers().get("m").unwrap();
            let router = router.read();
            router.positions.get("t").map(|position| position.seq)
        };
        let count: u32 = items
            .iter()
            .map(|item| if let CopyItem::Records { count, .. } = item { *count } else { 0 })
            .sum();
        let part = CopyPart {
            source: "t",
            source_epoch: 1,
            source_type: TopicType::Log,
            source_instance: 0,
            dest: "t",
            dest_epoch: self.dest().map(|dest| dest.epoch),
            from_seq,
            start_seq: Some(from_seq.unwrap_or(0)),
            to_seq,
            to_entry: None,
            lost: Vec::new(),
            items,
        };
        let copy = Copy {
            generation: self.generation,
            cluster_id: 9,
            next_epoch: 2,
            instances,
            parts: vec![part],
            gone: Vec::new(),
            held: Vec::new(),
        };
        let stored = self.stored.clone();
        let records = (0..count).map(|_| (&stored[..], HeaderEdit::default()));
        match self.apply(Draft::copy(&copy, records).unwrap()) {
            Outcome::Forwarded(parts) => parts[0],
            other => panic!("{other:?}"),
        }
    }
}

fn there(topic: &str, epoch: u64) -> Instance {
    Instance { cluster_id: 9, cluster: "there".into(), topic: topic.into(), epoch }
}

fn record(instance: u32, seq: u64) -> CopyItem {
    CopyItem::Records { instance, origin_seq: seq, origin_ts_ms: 1, source_seq: seq, count: 1 }
}

fn gap(from_seq: u64, to_seq: u64) -> CopyItem {
    CopyItem::Gap { instance: 0, from_seq, to_seq }
}

/// Each gap takes up a seq, and to find out what of it is unknown every member walks over what is known.
#[test]
fn a_gap_that_is_told_many_times_is_one_gap() {
    let mut mirrored = Mirrored::new();
    // Every second seq is a record, the others are gaps: as a remote says that lost them one by one.
    let pairs = 10_000;
    let items = (0..pairs).flat_map(|at| [record(0, 2 * at + 1), gap(2 * at + 2, 2 * at + 2)]);
    mirrored.copy(vec![there("t", 1)], items.collect(), 2 * pairs);
    let dest = mirrored.dest().unwrap();
    assert_eq!(dest.read().head_seq, 2 * pairs);
    let wide = (0..9000).map(|at| if at % 3 == 1 { gap(5, 9) } else { gap(1, 1 << 59) });
    // Another number of the same instance is no other instance.
    let again = CopyItem::Gap { instance: 1, from_seq: 1, to_seq: 1 << 58 };
    let items = wide.chain([again]).collect();
    mirrored.copy(vec![there("t", 1), there("t", 1)], items, 3 * pairs);
    assert_eq!(dest.read().head_seq, 2 * pairs + 1);
    let (_, gap) = dest.read().origins.next_gap(2 * pairs).unwrap();
    assert_eq!(gap.to_seq, 1 << 59, "all of it is told");
    assert!(gap.from_seq <= 2 * pairs + 1);
}

/// A remote that tells gaps alone moves no floor, so no cap of the topic takes any of them.
#[test]
fn gaps_without_end_are_joined() {
    let mut mirrored = Mirrored::new();
    let (each, mut seq) = (10_000, 0);
    let instances = || vec![there("t", 1), there("u", 1), there("v", 1)];
    while seq as usize <= MAX_GAPS_PER_TOPIC + 2 * each as usize {
        // None touches the next, and three origins take turns.
        let of = |at: u64| {
            let instance = (at % 3) as u32;
            CopyItem::Gap { instance, from_seq: 2 * at, to_seq: 2 * at }
        };
        let items = (seq + 1..=seq + each).map(of).collect();
        seq += each;
        assert_eq!(mirrored.copy(instances(), items, seq).stopped, None);
    }
    let gaps = |mirrored: &Mirrored| -> Vec<_> {
        let dest = mirrored.dest().unwrap();
        let topic = dest.read();
        assert_eq!(topic.head_seq, seq, "each takes up a seq all the same");
        topic.origins.gaps_in(1..=seq).collect()
    };
    let told = gaps(&mirrored);
    assert!(told.len() <= MAX_GAPS_PER_TOPIC && told.len() > MAX_GAPS_PER_TOPIC / 2, "{}", told.len());
    let reported = |mirrored: &Mirrored| -> usize {
        let dest = mirrored.dest().unwrap();
        let topic = dest.read();
        topic.origins.all().iter().map(|origin| origin.reported.stretches().count()).sum()
    };
    assert!(reported(&mirrored) <= MAX_REPORTED_PER_TOPIC);
    // Whoever has read nothing is told of all of it.
    for number in 0..3 {
        let mut of_one: Vec<(u64, u64)> = told
            .iter()
            .filter(|(_, gap)| gap.number == number)
            .map(|(_, gap)| (gap.from_seq, gap.to_seq))
            .collect();
        of_one.sort_unstable();
        let name = mirrored.dest().unwrap().read().origins.instance(number).unwrap().topic.clone();
        let first = ["t", "u", "v"].iter().position(|topic| **topic == *name).unwrap() as u64;
        let mut at = 0;
        for lost in (1..=seq).filter(|lost| lost % 3 == first).map(|lost| 2 * lost) {
            while of_one[at].1 < lost {
                at += 1;
            }
            assert!(of_one[at].0 <= lost, "{lost} of {name}");
        }
    }
    // And it is the same after a restart.
    let digest = mirrored.member.state.digest();
    mirrored.restart();
    assert_eq!((gaps(&mirrored), mirrored.member.state.digest()), (told, digest));
    let reported_before = reported(&mirrored);
    let far = gap(1 << 40, 1 << 40);
    seq += 1;
    mirrored.copy(instances(), vec![far], seq);
    assert!(reported(&mirrored) <= reported_before.max(MAX_REPORTED_PER_TOPIC));
    let foreign = mirrored.member.state.catalog().totals().foreign().clone();
    assert_eq!((foreign.origins(), foreign.reported()), (3, reported(&mirrored)));
    mirrored.apply(Draft::delete_topic("t", false));
    assert_eq!((foreign.origins(), foreign.gaps(), foreign.reported()), (0, 0, 0));
}

/// What is known of an origin stays for ever, whatever caps take of its records.
#[test]
fn a_topic_has_a_bound_of_origins() {
    let mut mirrored = Mirrored::new();
    let max = MAX_ORIGINS_PER_TOPIC as u64;
    let mut copy = |epochs: &[u64], seqs: std::ops::RangeInclusive<u64>| {
        let instances = epochs.iter().map(|epoch| there("x", *epoch)).collect();
        let to_seq = *seqs.end();
        let items = seqs.zip(0..).map(|(seq, instance)| record(instance, seq)).collect();
        mirrored.copy(instances, items, to_seq)
    };
    let all: Vec<u64> = (1..=max - 2).collect();
    for epochs in all.chunks(8192) {
        let became = copy(epochs, epochs[0]..=epochs[epochs.len() - 1]);
        assert_eq!((became.taken, became.stopped), (epochs.len() as u64, None));
    }
    let refusal = Refusal::OverLimit { limit: Limit::OriginsPerTopic, max };
    // One that is known, two new ones, and one too many; what is behind that waits.
    let became = copy(&[7, max + 1, max + 2, max + 3, 8], max..=max + 4);
    assert_eq!(became, Forwarded { taken: 3, seq: max + 2, stopped: Some(refusal) });
    let became = copy(&[7, 8, max + 1], max + 3..=max + 5);
    assert_eq!((became.taken, became.stopped), (3, None));
    // A gap of one too many.
    let lost = CopyItem::Gap { instance: 1, from_seq: 1, to_seq: 1 };
    let items = vec![record(0, max + 6), lost, record(0, max + 8)];
    let became = mirrored.copy(vec![there("x", 9), there("y", 1)], items, max + 8);
    assert_eq!(became, Forwarded { taken: 1, seq: max + 6, stopped: Some(refusal) });
    assert_eq!(mirrored.dest().unwrap().read().origins.all().len() as u64, max);
}

/// Where a mirror begins in a topic is noted also where it may not make one.
#[test]
fn a_mirror_has_a_bound_of_topics_that_it_may_not_make() {
    let mut mirrored = Mirrored::new();
    let remote = Remote { urls: vec!["http://there:4000".into()], token: None, relays: None };
    let config = RouterConfig { remote: Some(remote), create_dest: false, ..RouterConfig::local("n*", "*") };
    mirrored.apply(Draft::put_router(&PutRouter { name: "many", config, is_start_given: true }));
    let shared = mirrored.member.state.routers().get("many").unwrap();
    let names: Vec<String> = (0..MAX_BEGUN_PER_ROUTER + 2000).map(|number| format!("n{number:06}")).collect();
    let instances: Vec<Instance> = names.iter().map(|name| there(name, 1)).collect();
    let copy = |mirrored: &mut Mirrored, at: std::ops::Range<usize>| {
        let parts = names[at.clone()].iter().zip(0..).map(|(name, source_instance)| CopyPart {
            source: name,
            source_epoch: 1,
            source_type: TopicType::Log,
            source_instance,
            dest: name,
            dest_epoch: None,
            from_seq: shared.read().positions.get(name.as_str()).map(|position| position.seq),
            start_seq: Some(5),
            to_seq: 5,
            to_entry: None,
            lost: Vec::new(),
            items: Vec::new(),
        });
        let copy = Copy {
            generation: shared.generation,
            cluster_id: 9,
            next_epoch: 2,
            instances: instances[at.clone()].to_vec(),
            parts: parts.collect(),
            gone: Vec::new(),
            held: Vec::new(),
        };
        let none = std::iter::empty::<(&[u8], HeaderEdit<'_>)>();
        let Outcome::Forwarded(parts) = mirrored.apply(Draft::copy(&copy, none).unwrap()) else { panic!() };
        assert!(parts.iter().all(|part| part.stopped == Some(Refusal::TopicNotFound)));
    };
    for first in (0..names.len()).step_by(1000) {
        copy(&mut mirrored, first..names.len().min(first + 1000));
    }
    assert_eq!(shared.read().positions.len(), MAX_BEGUN_PER_ROUTER);
    mirrored.restart();
    let shared = mirrored.member.state.routers().get("many").unwrap();
    assert_eq!(shared.read().positions.len(), MAX_BEGUN_PER_ROUTER);
    // `State::check` counts what is left.
    mirrored.apply(Draft::delete_router("many"));
    mirrored.restart();
}
