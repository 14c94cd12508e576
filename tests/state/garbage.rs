//! Deleted topics and evicted records: blocks leave the checkpoint and entries are released, not too early,
//! not never, and not twice, whenever the process ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use antiphon::record::Record;
use antiphon::state::{
    Append, Changes, Cluster, Create, DeleteRecords, Draft, Envelope, Garbage, Key, Listed, NotApplied,
    Outcome, PutRouter, RoutePart, RouterConfig, SealedBlock, Start, State, TopicConfig, TopicKey,
};
use antiphon::storage::{Checkpoint, EntryId, LiveEntries, MemoryCheckpoint};
use proptest::prelude::*;

use crate::member;

#[derive(Debug, Clone)]
enum Step {
    Append {
        topic: usize,
        count: usize,
    },
    /// 0 is no cap.
    Cap {
        topic: usize,
        cap_records: u64,
    },
    Delete {
        topic: usize,
    },
    /// Every so many records between two places, told in parts of the head.
    Remove {
        topic: usize,
        from: f64,
        to: f64,
        every: usize,
    },
    RemoveBelow {
        topic: usize,
        part: f64,
    },
    /// A local router, made if it is not there, copies so much of what it has not.
    Route {
        source: usize,
        dest: usize,
        part: f64,
    },
    /// A checkpoint is cut; it is on disk only later.
    Cut,
    Write,
    Clear,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0usize..3, prop_oneof![1usize..5, 200usize..1200])
            .prop_map(|(topic, count)| Step::Append { topic, count }),
        3 => (0usize..3, prop_oneof![Just(0u64), 1u64..30, 100u64..4000])
            .prop_map(|(topic, cap_records)| Step::Cap { topic, cap_records }),
        2 => (0usize..3).prop_map(|topic| Step::Delete { topic }),
        4 => (0usize..3, 0.0..1.0f64, 0.0..1.1f64, prop_oneof![Just(1usize), 2usize..400])
            .prop_map(|(topic, from, to, every)| Step::Remove { topic, from, to, every }),
        1 => (0usize..3, 0.0..1.1f64).prop_map(|(topic, part)| Step::RemoveBelow { topic, part }),
        5 => (0usize..3, 1usize..3, 0.0..1.4f64)
            .prop_map(|(source, more, part)| Step::Route { source, dest: (source + more) % 3, part }),
        3 => Just(Step::Cut),
        3 => Just(Step::Write),
        2 => Just(Step::Clear),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..60)
}

struct Member {
    state: State,
    live: Arc<LiveEntries>,
    checkpoint: MemoryCheckpoint,
    garbage: Garbage,
    cut: Option<Changes>,
    /// Commands that the checkpoint on disk does not cover: the log.
    log: Vec<(EntryId, bytes::Bytes)>,
    cut_log_len: usize,
    number: u64,
    model: BTreeMap<usize, ModelTopic>,
}

#[derive(Default)]
struct ModelTopic {
    cap_records: u64,
    head: u64,
    /// Seq and entry of each live record.
    records: VecDeque<(u64, u64)>,
    life: u64,
    /// Of what is a copy, by seq: topic, life and seq of the first write.
    origins: BTreeMap<u64, (usize, u64, u64)>,
    taken: BTreeSet<(usize, u64, u64)>,
    /// By source.
    positions: BTreeMap<usize, u64>,
}

impl ModelTopic {
    fn keep_within_cap(&mut self) {
        while self.cap_records > 0 && self.records.len() as u64 > self.cap_records {
            self.records.pop_front();
        }
    }
}

fn apply(
    state: &mut State,
    checkpoint: &MemoryCheckpoint,
    entry: EntryId,
    command: &bytes::Bytes,
) -> Outcome {
    loop {
        match state.apply_command(entry, 1_000_000, command) {
            Ok(applied) => {
                member::check(state, entry.index);
                return applied.outcome;
            }
            Err(NotApplied::Missing(missing)) => {
                for block in missing.blocks {
                    let key = Key::Topic(block.topic.epoch, TopicKey::Runs(block.first_seq)).encode();
                    let bytes = checkpoint.get(&key).expect("get").expect("a block that is needed is there");
                    let stored = SealedBlock { first_seq: block.first_seq, bytes: bytes.into() };
                    state.supply_block(&block.topic, stored);
                }
            }
            Err(NotApplied::Malformed(error)) => panic!("own commands can be read: {error}"),
        }
    }
}

/// The topic, which is made if it is absent.
fn known(model: &mut BTreeMap<usize, ModelTopic>, topic: usize, number: u64) -> &mut ModelTopic {
    model.entry(topic).or_insert_with(|| ModelTopic { life: number, ..ModelTopic::default() })
}

impl Member {
    fn new() -> Self {
        let live = Arc::<LiveEntries>::default();
        let mut member = Self {
            state: State::new(live.clone()),
            live,
            checkpoint: MemoryCheckpoint::default(),
            garbage: Garbage::default(),
            cut: None,
            log: Vec::new(),
            cut_log_len: 0,
            number: 0,
            model: BTreeMap::new(),
        };
        member.apply(Draft::open_session());
        member.apply(Draft::set_cluster(&Cluster { id: 7, name: "here".into() }));
        member
    }

    fn apply(&mut self, draft: Draft) -> (u64, Outcome) {
        let number = self.number;
        self.number += 1;
        let command = draft.seal(Envelope { node_id: 1, session: 5, number, done_below: number });
        let entry = EntryId { term: 1, index: 10 + number };
        self.log.push((entry, command.clone()));
        (entry.index, apply(&mut self.state, &self.checkpoint, entry, &command))
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Append { topic, count } => {
                let data: Vec<String> = (0..*count).map(|at| "7".repeat(1 + at % 7)).collect();
                let name = format!("t{topic}");
                let create = Create::With(TopicConfig::default());
                let key = format!("key-{}", self.number);
                let append =
                    Append { topic: &name, create, expect_head_seq: None, idempotency_key: Some(&key) };
                let records = data.iter().map(|data| Record { data, ..Record::default() });
                let (index, outcome) = self.apply(Draft::append(&append, records, 0));
                assert!(matches!(outcome, Outcome::Appended(_)));
                let known = known(&mut self.model, *topic, self.number);
                known.records.extend((1..=*count as u64).map(|more| (known.head + more, index)));
                known.head += *count as u64;
                known.keep_within_cap();
            }
            Step::Cap { topic, cap_records } => {
                let config = TopicConfig { cap_records: *cap_records, ..TopicConfig::default() };
                self.apply(Draft::put_topic(&format!("t{topic}"), &config));
                let known = known(&mut self.model, *topic, self.number);
                known.cap_records = *cap_records;
                known.keep_within_cap();
            }
            Step::Delete { topic } => {
                self.apply(Draft::delete_topic(&format!("t{topic}"), false));
                self.model.remove(topic);
                // Its routers go with it.
                self.model.values_mut().for_each(|known| {
                    known.positions.remove(topic);
                });
            }
            Step::Remove { topic, from, to, every } => {
                let Some(known) = self.model.get_mut(topic) else { return };
                let name = format!("t{topic}");
                let place = |part: &f64| (part * known.head as f64) as u64 + 1;
                let ranges = match every {
                    1 if place(from) <= place(to) => vec![place(from)..=place(to)],
                    1 => Vec::new(),
                    _ => (place(from)..=place(to)).step_by(*every).map(|seq| seq..=seq).collect(),
                };
                known.records.retain(|(seq, _)| !ranges.iter().any(|range| range.contains(seq)));
                let epoch = self.state.catalog().get(&name).expect("the model has it").epoch;
                let listed = Some(Listed { epoch, ranges, late: None });
                let delete = DeleteRecords { topic: &name, before_seq: None, listed };
                self.removed(*topic, Draft::delete_records(&delete));
            }
            Step::RemoveBelow { topic, part } => {
                let Some(known) = self.model.get_mut(topic) else { return };
                let name = format!("t{topic}");
                let before_seq = (part * known.head as f64) as u64 + 1;
                known.records.retain(|(seq, _)| *seq >= before_seq);
                let delete = DeleteRecords { topic: &name, before_seq: Some(before_seq), listed: None };
                self.removed(*topic, Draft::delete_records(&delete));
            }
            Step::Route { source, dest, part } => self.route(*source, *dest, *part),
            Step::Cut if self.cut.is_none() => {
                self.cut = Some(self.state.take_changes());
                self.cut_log_len = self.log.len();
            }
            Step::Cut => {}
            Step::Write => {
                let Some(Changes { values, saved, deleted, freed }) = self.cut.take() else { return };
                self.checkpoint.write(values).expect("write");
                self.state.blocks_saved(&saved);
                freed.entries.iter().for_each(|index| self.live.release(*index));
                self.garbage.add(deleted, freed.unread);
                self.log.drain(..self.cut_log_len);
            }
            Step::Clear => {
                if !self.garbage.is_empty() {
                    self.garbage.step(&self.checkpoint, &self.live).expect("clear");
                }
            }
            Step::Restart => {
                self.live.clear();
                self.state = State::new(self.live.clone());
                self.checkpoint
                    .load(&mut |key, value| Ok(self.state.restore(key, value)?))
                    .expect("own checkpoint can be read");
                self.garbage = Garbage::of_orphans(self.state.restored());
                self.cut = None;
                for (entry, command) in &self.log {
                    apply(&mut self.state, &self.checkpoint, *entry, command);
                }
            }
        }
    }

    fn route(&mut self, source: usize, dest: usize, part: f64) {
        let (name, topic) = (format!("{source}>{dest}"), |topic: usize| format!("t{topic}"));
        let (start, allow_cycle) = (Start::Earliest, true);
        let config = RouterConfig { start, allow_cycle, ..RouterConfig::local(topic(source), topic(dest)) };
        self.apply(Draft::put_router(&PutRouter { name: &name, config, is_start_given: true }));
        for topic in [source, dest] {
            known(&mut self.model, topic, self.number);
        }
        let router = self.state.routers().get(&name).expect("it was made");
        let from_seq = router.read().positions[topic(source).as_str()].seq;
        let (from, to) = (&self.model[&source], &self.model[&dest]);
        if let Some(position) = to.positions.get(&source) {
            assert_eq!(from_seq, *position);
        }
        let to_seq = from_seq + (part * (from.head - from_seq) as f64) as u64;
        let part = RoutePart { generation: router.generation, from_seq, to_seq, picked: None };
        let (mut copies, mut due) = (Vec::new(), to.taken.clone());
        for (seq, entry) in from.records.iter().filter(|(seq, _)| *seq > from_seq && *seq <= to_seq) {
            let origin = from.origins.get(seq).copied().unwrap_or((source, from.life, *seq));
            if origin.0 != dest && due.insert(origin) {
                copies.push((origin, *entry));
            }
        }
        let (_, outcome) = self.apply(Draft::route(&[part]));
        let Outcome::Forwarded(forwarded) = outcome else { panic!("{outcome:?}") };
        assert_eq!((forwarded[0].taken, forwarded[0].stopped), (copies.len() as u64, None));
        let shared = self.state.catalog().get(&topic(dest)).expect("it was made");
        let to = self.model.get_mut(&dest).expect("it was made");
        // What was lost takes up a seq of its own where the source has it. Of those that the topic has already given up
        // none is behind a record that is still there.
        let head_seq = shared.read().head_seq;
        let gaps: BTreeSet<u64> =
            shared.read().origins.gaps_in(to.head + 1..=head_seq).map(|(seq, _)| seq).collect();
        let mut seqs = (to.head + 1..=head_seq).rev().filter(|seq| !gaps.contains(seq));
        let mut placed: Vec<_> =
            copies.into_iter().rev().map(|copy| (seqs.next().expect("each has a seq"), copy)).collect();
        placed.reverse();
        for (seq, (origin, entry)) in placed {
            to.records.push_back((seq, entry));
            to.origins.insert(seq, origin);
            to.taken.insert(origin);
        }
        to.head = head_seq;
        to.positions.insert(source, forwarded[0].seq);
        to.keep_within_cap();
    }

    fn removed(&mut self, topic: usize, draft: Draft) {
        let (_, outcome) = self.apply(draft);
        let records = &self.model[&topic].records;
        let Outcome::RecordsDeleted(deleted) = outcome else { panic!("{outcome:?}") };
        assert_eq!(deleted.count, records.len() as u64);
        let earliest_seq = records.front().map_or(self.model[&topic].head + 1, |(seq, _)| *seq);
        assert_eq!(deleted.earliest_seq, earliest_seq);
    }

    /// What topics name is live.
    fn check(&self) {
        for (_, index) in self.model.values().flat_map(|topic| &topic.records) {
            assert!(self.live.contains(*index), "entry {index} was released too early");
        }
    }

    /// What they do not name is not, once everything is cleared, and the checkpoint holds nothing else.
    fn check_at_rest(&mut self) {
        for step in [Step::Write, Step::Cut, Step::Write] {
            self.take(&step);
        }
        while !self.garbage.is_empty() {
            self.take(&Step::Clear);
            self.check();
        }
        let records = self.model.values().flat_map(|topic| &topic.records);
        let named: BTreeSet<u64> = records.map(|(_, index)| *index).collect();
        assert_eq!(self.live.count(), named.len() as u64);
        let (mut heads, mut blocks, mut removed) = (BTreeSet::new(), 0, 0);
        let each = &mut |key: &[u8], _: &[u8]| {
            match Key::decode(key)? {
                Key::Topic(epoch, TopicKey::Head) => assert!(heads.insert(epoch)),
                Key::Topic(epoch, part) => {
                    assert!(heads.contains(&epoch), "{part:?} without a topic");
                    blocks += usize::from(matches!(part, TopicKey::Runs(_)));
                    removed += usize::from(matches!(part, TopicKey::Removed(_)));
                }
                _ => {}
            }
            Ok(())
        };
        self.checkpoint.load(each).expect("load");
        assert_eq!(heads.len(), self.model.len());
        let topics = (0..3).filter_map(|topic| self.state.catalog().get(&format!("t{topic}")));
        let (mut held_blocks, mut held_chunks) = (0, 0);
        for key in topics.flat_map(|shared| shared.read().stored_keys().collect::<Vec<_>>()) {
            held_blocks += usize::from(matches!(key, TopicKey::Runs(_)));
            held_chunks += usize::from(matches!(key, TopicKey::Removed(_)));
        }
        assert_eq!((blocks, removed), (held_blocks, held_chunks), "parts in the checkpoint");
    }
}

fn run(steps: &[Step]) {
    let mut member = Member::new();
    for step in steps {
        member.take(step);
        member.check();
    }
    member.check_at_rest();
    member.take(&Step::Restart);
    member.check();
    member.check_at_rest();
    (0..3).for_each(|topic| member.take(&Step::Delete { topic }));
    member.check_at_rest();
    assert_eq!(member.live.count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn entries_are_live_while_a_topic_names_them_and_no_longer(steps in steps()) {
        run(&steps);
    }
}

/// A gap that is passed on stands behind what the source has before it (C-GAP-08), and the first record is the first
/// one all the same.
#[test]
fn a_gap_that_is_passed_on_keeps_its_place() {
    run(&[
        Step::Route { source: 0, dest: 1, part: 0.0 },
        Step::Cap { topic: 0, cap_records: 1 },
        Step::Append { topic: 0, count: 2 },
        Step::Append { topic: 1, count: 200 },
        Step::Cap { topic: 1, cap_records: 8 },
        Step::Route { source: 0, dest: 1, part: 0.0 },
        Step::Append { topic: 1, count: 3 },
        Step::Route { source: 1, dest: 2, part: 0.7722164126538654 },
        Step::RemoveBelow { topic: 2, part: 0.0 },
    ]);
}

/// A deletion touches nothing that the topic held; clearing goes on where a killed process was.
#[test]
fn a_large_topic_is_cleared_in_parts_over_restarts() {
    let mut member = Member::new();
    for _ in 0..3000 {
        member.take(&Step::Append { topic: 0, count: 1200 });
    }
    member.take(&Step::Append { topic: 1, count: 3 });
    for step in [Step::Cut, Step::Write, Step::Delete { topic: 0 }, Step::Cut, Step::Write] {
        member.take(&step);
    }
    assert_eq!(member.live.count(), 3001, "nothing is released before its block is gone");
    let mut rounds = 0;
    loop {
        rounds += 1;
        member.take(&Step::Clear);
        if member.garbage.is_empty() {
            break;
        }
        member.take(&Step::Restart);
        assert_eq!(member.live.count(), 1, "blocks without a topic hold nothing after a restart");
    }
    assert!(rounds > 3, "{rounds} rounds");
    member.check_at_rest();
}

/// The first block is half gone when the process ends, and goes unread after the restart: what its first half
/// named is not released again.
#[test]
fn a_block_of_which_half_was_gone_is_given_up_unread() {
    let mut member = Member::new();
    for _ in 0..12 {
        member.take(&Step::Append { topic: 0, count: 1200 });
    }
    let save = [Step::Cut, Step::Write];
    save.iter().for_each(|step| member.take(step));
    member.take(&Step::Cap { topic: 0, cap_records: 5000 });
    save.iter().for_each(|step| member.take(step));
    member.take(&Step::Restart);
    member.take(&Step::Cap { topic: 0, cap_records: 10 });
    member.check_at_rest();
}
