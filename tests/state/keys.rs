//! The memory of idempotency keys: bounded by a quota of the cluster, and given back when the windows are over.

use antiphon::record::Record;
use antiphon::state::{
    Append, AppendPart, Appended, ClusterLimits, Create, Draft, Limit, Outcome, Refusal, State, TopicConfig,
};

use crate::member::Client;

const WINDOW_MS: u64 = 1000;

fn config() -> TopicConfig {
    TopicConfig { idempotency_window_ms: WINDOW_MS, ..TopicConfig::default() }
}

fn keyed<'a>(topic: &'a str, key: &'a str) -> Append<'a> {
    Append { topic, create: Create::With(config()), expect_head_seq: None, idempotency_key: Some(key) }
}

fn record() -> Record<'static> {
    Record { data: "1", ..Record::default() }
}

fn client(max_idempotency_keys: u64) -> Client {
    let mut client = Client::new(10_000);
    client.apply(Draft::set_limits(&ClusterLimits { max_idempotency_keys, ..ClusterLimits::default() }));
    client
}

impl Client {
    fn append(&mut self, topic: &str, key: &str) -> Outcome {
        self.apply(Draft::append(&keyed(topic, key), [record()].into_iter(), 0))
    }

    fn append_many(&mut self, parts: &[(&str, &str)]) -> Outcome {
        let parts: Vec<AppendPart<'_>> = parts
            .iter()
            .map(|(topic, key)| AppendPart { append: keyed(topic, key), record_count: 1 })
            .collect();
        let records: Vec<Record<'_>> = parts.iter().map(|_| record()).collect();
        self.apply(Draft::append_many(&parts, records.into_iter(), 0))
    }

    fn keys(&self) -> u64 {
        self.state.catalog().totals().keys()
    }

    /// What the leader's timer does once something is due.
    fn expire_at(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        while self.state.next_due_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            assert!(matches!(self.apply(Draft::expire()), Outcome::Expired { topic_count: 1.. }));
        }
    }
}

fn is_appended(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Appended(Appended { deduped: false, .. }))
}

fn over(max: u64) -> Outcome {
    Outcome::Refused(Refusal::OverLimit { limit: Limit::MaxIdempotencyKeys, max })
}

/// C-IDEM-10
#[test]
fn keys_of_a_topic_that_is_not_written_any_more_are_forgotten_by_the_timer() {
    let mut client = client(0);
    for number in 0..70_000 {
        assert!(is_appended(&client.append("idle", &number.to_string())));
    }
    client.now_ms += 1;
    assert!(is_appended(&client.append("later", "k")));
    assert_eq!(client.keys(), 70_001);
    let last_moment_ms = 10_000 + WINDOW_MS;
    client.expire_at(last_moment_ms);
    assert_eq!(client.keys(), 70_001, "no window is over yet");
    client.expire_at(last_moment_ms + 2000);
    assert_eq!((client.keys(), client.state.next_due_ms()), (0, None));
}

/// C-IDEM-10
#[test]
fn keys_are_a_quota_of_the_cluster_of_which_one_topic_has_a_quarter_and_repeats_pass() {
    let mut client = client(8);
    assert!(is_appended(&client.append("a", "1")));
    assert!(is_appended(&client.append("a", "2")));
    assert_eq!(client.append("a", "3"), over(2), "a quarter of eight");
    assert_eq!(client.state.catalog().get("a").expect("a topic").read().head_seq, 2, "nothing was stored");
    assert!(matches!(client.append("a", "2"), Outcome::Appended(Appended { deduped: true, .. })));
    for topic in ["b", "c", "d"] {
        assert!(is_appended(&client.append(topic, "1")));
        assert!(is_appended(&client.append(topic, "2")));
    }
    assert_eq!(client.append("e", "1"), over(8));
    assert!(client.state.catalog().get("e").is_none(), "no topic is made of it");
    let many = client.append_many(&[("a", "1"), ("b", "2")]);
    assert!(matches!(many, Outcome::AppendedMany(parts) if parts.iter().all(|part| part.deduped)));
    // Windows end, and with them the refusals; a keyed append makes room in its own topic by itself.
    client.now_ms += WINDOW_MS + 1;
    assert!(is_appended(&client.append("a", "3")));
    assert_eq!(client.keys(), 7);
}

/// C-IDEM-10, C-APPEND-03
#[test]
fn an_append_to_several_topics_needs_room_for_the_keys_of_all() {
    let mut client = client(8);
    for topic in ["a", "b", "c"] {
        assert!(is_appended(&client.append(topic, "1")));
        assert!(is_appended(&client.append(topic, "2")));
    }
    let refused = |part, max| Outcome::PartRefused {
        part,
        refusal: Refusal::OverLimit { limit: Limit::MaxIdempotencyKeys, max },
    };
    assert_eq!(client.append_many(&[("d", "1"), ("e", "1"), ("f", "1")]), refused(0, 8));
    assert_eq!(client.append_many(&[("d", "1"), ("a", "3")]), refused(1, 2));
    assert_eq!((client.keys(), client.state.catalog().len()), (6, 3), "nothing was stored");
    assert!(matches!(client.append_many(&[("d", "1"), ("e", "1")]), Outcome::AppendedMany(_)));
    assert_eq!(client.keys(), 8);
}

/// A window of 0 remembers nothing, and deleting a topic gives its keys back.
#[test]
fn keys_that_are_not_remembered_do_not_count() {
    let mut client = client(1);
    let off = TopicConfig { idempotency_window_ms: 0, ..TopicConfig::default() };
    client.apply(Draft::put_topic("off", &off));
    assert!(is_appended(&client.append("off", "1")));
    assert!(is_appended(&client.append("off", "1")));
    assert_eq!(client.keys(), 0);
    assert!(is_appended(&client.append("a", "1")));
    assert_eq!(client.append("b", "1"), over(1));
    client.apply(Draft::delete_topic("a", false));
    assert_eq!(client.keys(), 0);
    assert!(is_appended(&client.append("b", "1")));
}

/// C-IDEM-06
#[test]
fn a_restart_knows_the_same_keys_and_counts_them() {
    let mut client = client(0);
    for number in 0..300 {
        client.now_ms += 5;
        client.append("a", &number.to_string());
    }
    let mut restarted = State::default();
    let mut values = client.state.take_changes().values;
    values.sort();
    for (key, value) in values.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        restarted.restore(&key, &value).expect("what was saved can be read");
    }
    restarted.restored();
    assert_eq!(restarted.digest(), client.state.digest());
    assert_eq!(restarted.catalog().totals().keys(), client.keys());
    assert_eq!(restarted.next_due_ms(), client.state.next_due_ms());
    client.state = restarted;
    assert!(matches!(client.append("a", "299"), Outcome::Appended(Appended { deduped: true, .. })));
    assert!(is_appended(&client.append("a", "0")), "its window was over");
}
