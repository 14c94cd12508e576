//! What another cluster brings that means harm: no member does much for it, or keeps much of it.

use std::sync::Arc;

use antiphon::record::{HeaderEdit, Record};
use antiphon::state::{
    Append, Cluster, Copy, CopyItem, CopyPart, Create, Draft, Envelope, Forwarded, Instance, Outcome,
    PutRouter, Remote, RouterConfig, SharedTopic, Start, TopicConfig, TopicType,
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
