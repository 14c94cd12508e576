//! Random histories: every member reaches the same state, also one that restarts from a checkpoint, and
//! the counters are those of a naive model.

use std::collections::{BTreeMap, HashMap};

use antiphon::record::Record;
use antiphon::state::{
    Append, Appended, Changes, Create, Draft, Envelope, Located, Outcome, Refusal, State, TopicConfig,
    TopicType,
};
use antiphon::storage::EntryId;
use bytes::Bytes;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Append {
        topic: usize,
        count: usize,
        create: bool,
        expect_right: Option<bool>,
        key: Option<u8>,
    },
    Put {
        topic: usize,
        queue: bool,
        window_ms: u64,
    },
    Delete {
        topic: usize,
        if_empty: bool,
    },
    /// The last command again, as after a lost leader.
    Repeat,
    /// A checkpoint, from which a second member restarts.
    Restart,
    Wait {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let expect = proptest::option::weighted(0.2, any::<bool>());
    let key = proptest::option::weighted(0.4, 0u8..12);
    prop_oneof![
        8 => (0usize..4, 1usize..40, any::<bool>(), expect, key).prop_map(
            |(topic, count, create, expect_right, key)| Step::Append { topic, count, create, expect_right, key }
        ),
        1 => (0usize..4, any::<bool>(), 0u64..300).prop_map(
            |(topic, queue, window_ms)| Step::Put { topic, queue, window_ms }
        ),
        1 => (0usize..4, any::<bool>()).prop_map(|(topic, if_empty)| Step::Delete { topic, if_empty }),
        2 => Just(Step::Repeat),
        1 => Just(Step::Restart),
        2 => (0u64..200).prop_map(|ms| Step::Wait { ms }),
    ]
}

#[derive(Default)]
struct ModelTopic {
    head: u64,
    window_ms: u64,
    is_queue: bool,
    keys: HashMap<u8, (u64, Appended)>,
}

/// What the contract says, without any thought for speed.
#[derive(Default)]
struct Model {
    topics: BTreeMap<String, ModelTopic>,
    now_ms: u64,
}

impl Model {
    fn append(
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
        if let (Some(known), Some(_)) = (self.topics.get_mut(topic), key) {
            known.keys.retain(|_, (ts, _)| self.now_ms - *ts <= known.window_ms);
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
        let now_ms = self.now_ms;
        let topic = self.topics.entry(topic.to_owned()).or_insert_with(|| ModelTopic {
            window_ms: TopicConfig::default().idempotency_window_ms,
            ..ModelTopic::default()
        });
        topic.head += count;
        let appended = Appended {
            first_seq: topic.head - count + 1,
            count,
            head_seq: topic.head,
            created,
            deduped: false,
        };
        if let Some(key) = key.filter(|_| topic.window_ms > 0) {
            topic.keys.insert(key, (now_ms, appended));
        }
        Outcome::Appended(appended)
    }

    fn put(&mut self, topic: &str, config: &TopicConfig) -> Outcome {
        let created = !self.topics.contains_key(topic);
        let known = self.topics.entry(topic.to_owned()).or_default();
        let requested = config.topic_type;
        let existing = if known.is_queue { TopicType::Queue } else { TopicType::Log };
        if !created && existing != requested {
            return Outcome::Refused(Refusal::TypeDiffers { existing, requested });
        }
        known.is_queue = requested == TopicType::Queue;
        known.window_ms = config.idempotency_window_ms;
        Outcome::TopicPut { created, config: config.clone() }
    }

    fn delete(&mut self, topic: &str, if_empty: bool) -> Outcome {
        match self.topics.get(topic) {
            None => Outcome::TopicDeleted { deleted: false },
            Some(known) if if_empty && known.head > 0 => {
                Outcome::Refused(Refusal::NotEmpty { count: known.head })
            }
            Some(_) => {
                self.topics.remove(topic);
                Outcome::TopicDeleted { deleted: true }
            }
        }
    }
}

/// A member: its state, and the checkpoint that it saves.
#[derive(Default)]
struct Member {
    state: State,
    checkpoint: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Member {
    fn apply(&mut self, index: u64, stamp_ms: u64, command: &Bytes) -> Outcome {
        let entry = EntryId { term: 1 + index / 100, index };
        self.state.apply_command(entry, stamp_ms, command).expect("own commands can be read").outcome
    }

    fn restart(&mut self) {
        let Changes { values, saved, .. } = self.state.take_changes();
        for (key, value) in values {
            match value {
                Some(value) => self.checkpoint.insert(key, value),
                None => self.checkpoint.remove(&key),
            };
        }
        saved.iter().for_each(|(topic, last_seq)| topic.saved_up_to(*last_seq));
        self.state = State::default();
        for (key, value) in &self.checkpoint {
            self.state.restore(key, value).expect("own checkpoint can be read");
        }
        self.state.restored();
    }

    /// Every seq of a topic in order of its runs, from memory and checkpoint.
    fn seqs(&self, topic: &str) -> Vec<u64> {
        let Some(shared) = self.state.catalog().get(topic) else { return Vec::new() };
        let (mut cursor, mut seqs, mut block) = (0, Vec::new(), None);
        loop {
            let located = shared.read().locate(cursor, block.as_ref()).expect("own runs can be read");
            match located {
                Located::AtHead => return seqs,
                Located::Cold { block_first_seq } => {
                    let key = antiphon::state::Key::Topic(
                        shared.epoch,
                        antiphon::state::TopicKey::Runs(block_first_seq),
                    );
                    let bytes = self.checkpoint[&key.encode()].clone().into();
                    block = Some(antiphon::state::SealedBlock { first_seq: block_first_seq, bytes });
                }
                Located::Runs(runs) => {
                    for run in runs {
                        seqs.extend(run.first_seq..=run.last_seq());
                        cursor = run.last_seq();
                    }
                }
            }
        }
    }
}

fn append(topic: &str, count: usize, create: bool, expect: Option<u64>, key: Option<u8>) -> Draft {
    let data: Vec<String> = (0..count).map(|number| "7".repeat(1 + number % 5)).collect();
    let key = key.map(|key| format!("key-{key}"));
    let append = Append {
        topic,
        create: if create { Create::With(TopicConfig::default()) } else { Create::Never },
        expect_head_seq: expect,
        idempotency_key: key.as_deref(),
    };
    Draft::append(&append, data.iter().map(|data| Record { data, ..Record::default() }), 0)
}

fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (mut steady, mut restarting) = (Member::default(), Member::default());
    let mut model = Model { now_ms: 1_000_000, ..Model::default() };
    let mut index = 0;
    let mut number = 0;
    let envelope = |number| Envelope { node_id: 1, session: 5, number, done_below: number };
    let open = Draft::open_session().seal(envelope(0));
    for member in [&mut steady, &mut restarting] {
        member.apply(index, model.now_ms, &open);
    }
    let mut last: Option<(Bytes, Outcome)> = None;
    for step in steps {
        let name = |topic: usize| format!("t{topic}");
        let (draft, expected) = match step {
            Step::Wait { ms } => {
                model.now_ms += ms;
                continue;
            }
            Step::Restart => {
                restarting.restart();
                prop_assert_eq!(steady.state.digest(), restarting.state.digest());
                continue;
            }
            Step::Repeat => {
                let Some((command, expected)) = last.clone() else { continue };
                index += 1;
                prop_assert_eq!(&steady.apply(index, model.now_ms, &command), &expected);
                prop_assert_eq!(&restarting.apply(index, model.now_ms, &command), &expected);
                continue;
            }
            Step::Append { topic, count, create, expect_right, key } => {
                let topic = name(topic);
                let head = model.topics.get(&topic).map_or(0, |topic| topic.head);
                let expect = expect_right.map(|right| if right { head } else { head + 1 });
                (
                    append(&topic, count, create, expect, key),
                    model.append(&topic, count as u64, create, expect, key),
                )
            }
            Step::Put { topic, queue, window_ms } => {
                let topic_type = if queue { TopicType::Queue } else { TopicType::Log };
                let config =
                    TopicConfig { topic_type, idempotency_window_ms: window_ms, ..TopicConfig::default() };
                (Draft::put_topic(&name(topic), &config), model.put(&name(topic), &config))
            }
            Step::Delete { topic, if_empty } => {
                (Draft::delete_topic(&name(topic), if_empty), model.delete(&name(topic), if_empty))
            }
        };
        index += 1;
        number += 1;
        let command = draft.seal(envelope(number));
        prop_assert_eq!(&steady.apply(index, model.now_ms, &command), &expected);
        prop_assert_eq!(&restarting.apply(index, model.now_ms, &command), &expected);
        prop_assert_eq!(steady.state.digest(), restarting.state.digest());
        last = Some((command, expected));
    }
    restarting.restart();
    prop_assert_eq!(steady.state.digest(), restarting.state.digest());
    for (name, topic) in &model.topics {
        let all: Vec<u64> = (1..=topic.head).collect();
        prop_assert_eq!(&steady.seqs(name), &all);
        prop_assert_eq!(&restarting.seqs(name), &all);
    }
    prop_assert_eq!(steady.state.catalog().len(), model.topics.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn members_agree_with_each_other_and_with_a_naive_model(
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        run(steps)?;
    }
}

#[test]
fn a_long_topic_is_found_again_after_a_restart() {
    let steps = (0..6000).map(|at| match at % 1500 {
        1499 => Step::Restart,
        _ => Step::Append { topic: at % 2, count: 1 + at % 3, create: true, expect_right: None, key: None },
    });
    run(steps.collect()).unwrap();
}

/// Found by the property above: a refused write forgets old keys all the same, and a member that restarts
/// right after it must not know them again.
#[test]
fn keys_that_a_refused_write_forgot_stay_forgotten_after_a_restart() {
    let append =
        |expect_right| Step::Append { topic: 0, count: 1, create: false, expect_right, key: Some(0) };
    run(vec![
        Step::Put { topic: 0, queue: false, window_ms: 1 },
        append(None),
        Step::Restart,
        Step::Wait { ms: 2 },
        append(Some(false)),
    ])
    .unwrap();
}
