//! Members that save their checkpoints at other moments: what they have in memory differs, and nothing else may.

use std::sync::Arc;

use antiphon::record::Record;
use antiphon::state::{
    Append, Cluster, Create, Draft, Envelope, Outcome, PutRouter, RoutePart, RouterConfig, SharedTopic,
    Start, TopicConfig,
};
use bytes::Bytes;

use crate::member::Member;

struct Pair {
    hot: Member,
    cold: Member,
    index: u64,
    now_ms: u64,
}

impl Pair {
    fn seal(&mut self, draft: Draft) -> Bytes {
        self.index += 1;
        self.now_ms += 1;
        draft.seal(Envelope { node_id: 1, session: 5, number: self.index, done_below: self.index })
    }

    fn apply(&mut self, draft: Draft) -> (Outcome, Outcome) {
        let command = self.seal(draft);
        let (index, now) = (self.index, self.now_ms);
        (self.hot.apply(index, now, &command), self.cold.apply(index, now, &command))
    }

    fn append(&mut self, topic: &str, count: usize) -> (Outcome, Outcome) {
        // Of unlike sizes, so that there are many runs and blocks.
        let data: Vec<&str> = (0..count).map(|at| if at % 2 == 0 { "7" } else { "77" }).collect();
        let create = Create::With(TopicConfig::default());
        let append = Append { topic, create, expect_head_seq: None, idempotency_key: None };
        let records = data.iter().map(|data| Record { data, ..Record::default() });
        self.apply(Draft::append(&append, records, 0))
    }

    fn router(&mut self, from: &str, to: &str, start: Start) {
        let config = RouterConfig { start, ..RouterConfig::local(from, to) };
        let name = format!("{from}>{to}");
        self.apply(Draft::put_router(&PutRouter { name: &name, config, is_start_given: true }));
    }

    fn topic(&self, name: &str) -> [Arc<SharedTopic>; 2] {
        [&self.hot, &self.cold].map(|member| member.state.catalog().get(name).unwrap())
    }

    fn route(&mut self, name: &str) {
        loop {
            let shared = self.hot.state.routers().get(name).unwrap();
            let from_seq = shared.read().positions.values().next().unwrap().seq;
            let head_seq = self.topic(&shared.source)[0].read().head_seq;
            if from_seq == head_seq {
                return;
            }
            let to_seq = head_seq.min(from_seq + 8192);
            let part = RoutePart { generation: shared.generation, from_seq, to_seq, picked: None };
            self.apply(Draft::route(&[part]));
        }
    }
}

/// Two members apply the same entries. One of them saves a checkpoint once in between, so that its sealed blocks leave
/// memory (as they do on every member, at moments of its own).
#[test]
fn members_that_saved_at_other_moments_hold_the_same() {
    let mut pair = Pair { hot: Member::default(), cold: Member::default(), index: 0, now_ms: 1_000_000 };
    pair.apply(Draft::open_session());
    pair.apply(Draft::set_cluster(&Cluster { id: 7, name: "here".into() }));
    // x > s > d, x > d, and s > e > d for the one record that was first written in s.
    (0..30).for_each(|_| drop(pair.append("x", 10_000)));
    pair.router("x", "s", Start::Earliest);
    pair.router("x", "d", Start::Earliest);
    pair.route("x>s");
    pair.router("s", "e", Start::Latest);
    pair.router("e", "d", Start::Earliest);
    pair.append("s", 1);
    pair.route("s>e");
    pair.route("e>d");
    (0..4).for_each(|_| drop(pair.append("x", 10_000)));
    pair.route("x>s");
    pair.route("x>d");
    pair.router("s", "d", Start::Earliest);
    assert_eq!(pair.hot.state.digest(), pair.cold.state.digest());
    // The second one writes a checkpoint now.
    pair.cold.save();
    let config = TopicConfig { cap_records: 10, ..TopicConfig::default() };
    pair.apply(Draft::put_topic("s", &config));
    assert_eq!(pair.hot.state.digest(), pair.cold.state.digest());
    pair.route("s>d");
    let heads = pair.topic("d").map(|topic| topic.read().head_seq);
    let appended = pair.append("d", 1);
    assert_eq!(appended.0, appended.1);
    assert_eq!(heads[0], heads[1], "the same entries give the same seqs");
    assert_eq!(pair.hot.state.digest(), pair.cold.state.digest());
}
