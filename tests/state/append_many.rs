//! Appends to several topics: all or nothing, against a naive model; and the bounds of the whole cluster.

use std::collections::BTreeMap;

use antiphon::record::Record;
use antiphon::state::{
    Append, AppendPart, Appended, ClusterLimits, Create, Draft, Limit, Outcome, Refusal, State, TopicConfig,
};
use proptest::prelude::*;

use crate::member::Client;

/// What each record counts for: one byte of data, and the framing.
const RECORD_BYTES: u64 = 1 + 32;

#[derive(Debug, Clone)]
struct Part {
    topic: usize,
    count: u32,
    create: bool,
    expect_right: Option<bool>,
    key: Option<u8>,
}

fn part(topic: usize) -> impl Strategy<Value = Part> {
    let expect = proptest::option::weighted(0.2, proptest::bool::weighted(0.8));
    let key = proptest::option::weighted(0.6, 0u8..4);
    (1u32..5, proptest::bool::weighted(0.8), expect, key)
        .prop_map(move |(count, create, expect_right, key)| Part { topic, count, create, expect_right, key })
}

/// Parts of one command: topics differ.
fn parts() -> impl Strategy<Value = Vec<Part>> {
    proptest::sample::subsequence(vec![0usize, 1, 2, 3], 1..=4)
        .prop_shuffle()
        .prop_flat_map(|topics| topics.into_iter().map(part).collect::<Vec<_>>())
}

impl Client {
    fn heads(&self) -> BTreeMap<String, u64> {
        let topics = self.state.catalog().page("", None, 1000);
        topics.iter().map(|topic| (topic.read().name.to_string(), topic.read().head_seq)).collect()
    }

    fn totals(&self) -> (u64, u64) {
        let totals = self.state.catalog().totals();
        (totals.records(), totals.bytes())
    }
}

fn name(topic: usize) -> String {
    format!("t{topic}")
}

fn draft(parts: &[Part], heads: &BTreeMap<String, u64>) -> Draft {
    let names: Vec<String> = parts.iter().map(|part| name(part.topic)).collect();
    let keys: Vec<Option<String>> = parts.iter().map(|part| part.key.map(|key| key.to_string())).collect();
    let parts: Vec<AppendPart<'_>> = parts
        .iter()
        .enumerate()
        .map(|(at, part)| {
            let head = heads.get(&names[at]).copied().unwrap_or(0);
            AppendPart {
                append: Append {
                    topic: &names[at],
                    create: if part.create { Create::With(TopicConfig::default()) } else { Create::Never },
                    expect_head_seq: part.expect_right.map(|right| if right { head } else { head + 1 }),
                    idempotency_key: keys[at].as_deref(),
                },
                record_count: part.count,
            }
        })
        .collect();
    let count: u32 = parts.iter().map(|part| part.record_count).sum();
    Draft::append_many(&parts, (0..count).map(|_| Record { data: "1", ..Record::default() }), 0)
}

/// What the contract says, in the order in which it says it.
#[derive(Default)]
struct Model {
    heads: BTreeMap<String, u64>,
    keys: BTreeMap<(String, u8), Appended>,
}

impl Model {
    fn append_many(&mut self, parts: &[Part]) -> Outcome {
        let refused = |part: usize, refusal| Outcome::PartRefused { part: part as u64, refusal };
        for (at, part) in parts.iter().enumerate() {
            if !part.create && !self.heads.contains_key(&name(part.topic)) {
                return refused(at, Refusal::TopicNotFound);
            }
        }
        let known: Vec<Option<Appended>> = parts
            .iter()
            .map(|part| part.key.and_then(|key| self.keys.get(&(name(part.topic), key)).copied()))
            .collect();
        if known.iter().all(Option::is_some) {
            let repeats = known.into_iter().flatten();
            return Outcome::AppendedMany(
                repeats.map(|it| Appended { created: false, deduped: true, ..it }).collect(),
            );
        }
        if known.iter().any(Option::is_some) {
            let parts = known.iter().zip(0u64..).filter(|(it, _)| it.is_some()).map(|(_, at)| at);
            return Outcome::KeysConflict { parts: parts.collect() };
        }
        for (at, part) in parts.iter().enumerate() {
            if part.expect_right == Some(false) {
                let head_seq = self.heads.get(&name(part.topic)).copied().unwrap_or(0);
                return refused(at, Refusal::HeadMismatch { head_seq });
            }
        }
        let mut appended = Vec::new();
        for part in parts {
            let created = !self.heads.contains_key(&name(part.topic));
            let head = self.heads.entry(name(part.topic)).or_default();
            let one = Appended {
                first_seq: *head + 1,
                count: u64::from(part.count),
                head_seq: *head + u64::from(part.count),
                created,
                deduped: false,
            };
            *head = one.head_seq;
            if let Some(key) = part.key {
                self.keys.insert((name(part.topic), key), one);
            }
            appended.push(one);
        }
        Outcome::AppendedMany(appended)
    }
}

proptest! {
    #[test]
    fn all_parts_happen_or_none(commands in proptest::collection::vec(parts(), 1..40)) {
        // C-APPEND-01, C-APPEND-03, C-APPEND-06
        let mut client = Client::new(1000);
        let mut model = Model::default();
        for parts in commands {
            let command = draft(&parts, &model.heads);
            prop_assert_eq!(client.apply(command), model.append_many(&parts));
            prop_assert_eq!(&client.heads(), &model.heads);
            let records: u64 = model.heads.values().sum();
            prop_assert_eq!(client.totals(), (records, records * RECORD_BYTES));
        }
    }
}

fn plain(topic: usize, count: u32) -> Part {
    Part { topic, count, create: true, expect_right: None, key: None }
}

fn over(limit: Limit, max: u64) -> Refusal {
    Refusal::OverLimit { limit, max }
}

#[test]
fn the_bounds_of_the_cluster_are_exact_and_spare_what_exists() {
    // C-LIMIT-01, C-LIMIT-04, C-LIMIT-10, C-LIMIT-11, C-LIMIT-12
    let mut client = Client::new(1000);
    let limits =
        ClusterLimits { max_topics: 2, max_total_bytes: 5 * RECORD_BYTES, ..ClusterLimits::default() };
    assert_eq!(client.apply(Draft::set_limits(&limits)), Outcome::LimitsSet);
    let heads = BTreeMap::new();
    let config = TopicConfig::default();
    client.apply(Draft::put_topic("t0", &config));
    let refused = |part, refusal| Outcome::PartRefused { part, refusal };
    // One more topic may be made, not two; nothing is made of a request that is refused.
    let two_new = draft(&[plain(0, 1), plain(1, 1), plain(2, 1)], &heads);
    assert_eq!(client.apply(two_new), refused(1, over(Limit::MaxTopics, 2)));
    assert_eq!(client.heads().len(), 1);
    assert!(matches!(client.apply(draft(&[plain(0, 1), plain(1, 1)], &heads)), Outcome::AppendedMany(_)));
    assert_eq!(client.apply(Draft::put_topic("t2", &config)), Outcome::Refused(over(Limit::MaxTopics, 2)));
    let changed = TopicConfig { ttl_ms: 7, ..config.clone() };
    assert!(matches!(
        client.apply(Draft::put_topic("t0", &changed)),
        Outcome::TopicPut { created: false, .. }
    ));

    let four = draft(&[plain(0, 2), plain(1, 2)], &heads);
    assert_eq!(client.apply(four), refused(0, over(Limit::MaxTotalBytes, 5 * RECORD_BYTES)));
    assert!(
        matches!(client.apply(draft(&[plain(0, 3)], &heads)), Outcome::AppendedMany(_)),
        "up to the bound"
    );
    assert_eq!(client.totals(), (5, 5 * RECORD_BYTES));
    assert!(matches!(client.apply(draft(&[plain(0, 1)], &heads)), Outcome::PartRefused { .. }));
    client.apply(Draft::delete_topic("t1", false));
    assert_eq!(client.totals(), (4, 4 * RECORD_BYTES), "deleting gives bytes and places back");
    assert!(matches!(client.apply(draft(&[plain(3, 1)], &heads)), Outcome::AppendedMany(_)));

    let unlimited =
        ClusterLimits { max_topics: 0, max_total_bytes: 0, max_routers: 0, max_idempotency_keys: 0 };
    client.apply(Draft::set_limits(&unlimited));
    assert!(matches!(client.apply(draft(&[plain(1, 4), plain(2, 4)], &heads)), Outcome::AppendedMany(_)));

    // Bounds and totals are the same after a restart.
    let mut restarted = State::default();
    let mut values: Vec<_> = client.state.take_changes().values;
    values.sort();
    for (key, value) in values.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        restarted.restore(&key, &value).expect("what was saved can be read");
    }
    restarted.restored();
    assert_eq!(restarted.limits(), unlimited);
    assert_eq!(restarted.catalog().totals().bytes(), client.totals().1);
    assert_eq!(restarted.digest(), client.state.digest());
}
