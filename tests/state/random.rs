//! Random histories: every member reaches the same state, also one that restarts from a checkpoint, and
//! what it holds, counts and reports as gone is what a naive model says.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use antiphon::record::Record;
use antiphon::state::{
    Append, Cluster, Create, DeleteRecords, Discard, Draft, Envelope, LateMatch, Listed, Located, Outcome,
    PutRouter, RoutePart, RouterConfig, Run, SharedTopic, Start, TimePlace, TopicConfig, TopicType,
    match_run,
};
use bytes::Bytes;
use proptest::prelude::*;

use crate::member::Member;
use crate::model::{Limits, Model, ModelTopic, record_tag, tag_match, tag_text};
use crate::model_route::{ModelOrigin, ModelPart};
use crate::steps::{Route, RouterStart, Step, step};

impl Member {
    /// What a member lists that has looked at everything up to `seen_seq`, also at what is gone.
    fn look(&self, shared: &SharedTopic, tags: u8, before_seq: Option<u64>, seen_seq: u64) -> Listed {
        let (mut ranges, mut cursor, mut block) = (Vec::new(), shared.read().earliest_seq - 1, None);
        while cursor < seen_seq {
            let located = shared.read().locate(cursor, block.as_ref()).expect("own runs can be read");
            match located {
                Located::AtHead => break,
                Located::BelowEarliest => panic!("nothing moves the floors here"),
                Located::Cold { block_first_seq } => block = Some(self.stored_block(shared, block_first_seq)),
                Located::Runs(runs) => {
                    for run in runs {
                        let last_seq = seen_seq.min(before_seq.map_or(u64::MAX, |seq| seq.saturating_sub(1)));
                        cursor = run.last_seq();
                        if run.first_seq <= last_seq {
                            let run = Run { count: run.count.min(last_seq + 1 - run.first_seq), ..run };
                            match_run(&run, &self.log[&run.entry], &tag_match(tags), &mut ranges)
                                .expect("own records");
                        }
                    }
                }
            }
        }
        let late = Some(LateMatch { seen_seq, tags: tag_match(tags) });
        Listed { epoch: shared.epoch, ranges, late }
    }

    /// The part of the command that is written for `part`.
    fn part(&self, part: &ModelPart) -> RoutePart {
        let generation = self.state.routers().get(&part.router).map_or(u64::MAX, |router| router.generation);
        let picked = part.picked.as_ref().map(|picked| {
            let mut ranges: Vec<RangeInclusive<u64>> = Vec::new();
            for seq in picked {
                match ranges.last_mut() {
                    Some(last) if last.end() + 1 == *seq => *last = *last.start()..=*seq,
                    _ => ranges.push(*seq..=*seq),
                }
            }
            ranges
        });
        RoutePart { generation, from_seq: part.from_seq, to_seq: part.to_seq, picked }
    }

    /// What a topic has of other topics, and what it was told that they lost.
    fn check_origins(&self, name: &str, model: &ModelTopic) -> Result<(), TestCaseError> {
        let shared = self.state.catalog().get(name).expect("the model has it");
        let topic = shared.read();
        let (mut taken, mut reported) = (BTreeSet::new(), BTreeSet::new());
        for origin in topic.origins.all() {
            let of = |seq| (origin.instance.topic.to_string(), origin.instance.epoch, seq);
            let before = taken.len() as u64;
            taken.extend(origin.taken.stretches().flatten().map(of));
            reported.extend(origin.reported.stretches().flatten().map(of));
            prop_assert_eq!(origin.taken_count, taken.len() as u64 - before);
            prop_assert_eq!(origin.last_seq, origin.taken.stretches().last().map_or(0, |last| *last.end()));
        }
        prop_assert_eq!(&taken, &model.taken, "{}", name);
        prop_assert_eq!(&reported, &model.reported, "{}", name);
        let foreign: BTreeSet<u64> = topic.origins.own.foreign().stretches().flatten().collect();
        prop_assert_eq!(&foreign, &model.foreign, "{}", name);
        Ok(())
    }

    /// Every live seq of a topic with its time and origin in order of its runs, from memory and checkpoint.
    fn live(&self, topic: &str) -> Vec<(u64, u64, Option<ModelOrigin>)> {
        let Some(shared) = self.state.catalog().get(topic) else { return Vec::new() };
        let mut cursor = shared.read().earliest_seq - 1;
        let (mut live, mut block) = (Vec::new(), None);
        loop {
            let located = shared.read().locate(cursor, block.as_ref()).expect("own runs can be read");
            match located {
                Located::AtHead => return live,
                Located::BelowEarliest => panic!("nothing moves the floors here"),
                Located::Cold { block_first_seq } => {
                    block = Some(self.stored_block(&shared, block_first_seq));
                }
                Located::Runs(runs) => {
                    for run in runs {
                        assert!(run.first_seq > cursor && run.count > 0);
                        live.extend((run.first_seq..=run.last_seq()).map(|seq| {
                            let origin = run.part(seq, 1).origin.map(|origin| {
                                let topic = shared.read();
                                let instance = topic.origins.instance(origin.number).expect("a known origin");
                                let (name, epoch) = (instance.topic.to_string(), instance.epoch);
                                (name, epoch, origin.first_seq, origin.ts_ms)
                            });
                            (seq, run.ts_ms, origin)
                        }));
                        cursor = run.last_seq();
                    }
                }
            }
        }
    }

    fn place_of_time(&self, shared: &SharedTopic, ts_ms: u64) -> u64 {
        let mut block = None;
        loop {
            let place = shared.read().locate_time(ts_ms, block.as_ref()).expect("own runs can be read");
            match place {
                TimePlace::AtHead => return shared.read().head_seq,
                TimePlace::After(seq) => return seq.max(shared.read().earliest_seq - 1),
                TimePlace::Cold { block_first_seq } => {
                    block = Some(self.stored_block(shared, block_first_seq));
                }
            }
        }
    }

    /// Counters and floors.
    fn check(&self, model: &Model) -> Result<(), TestCaseError> {
        for (name, topic) in &model.topics {
            let shared = self.state.catalog().get(name).expect("the model has it");
            let held = shared.read();
            let expected = (topic.head, topic.earliest_seq(), topic.live.len() as u64, topic.bytes());
            prop_assert_eq!((held.head_seq, held.earliest_seq, held.count, held.bytes), expected, "{}", name);
            let evict_floor = topic.gone.iter().map(|(record, _)| record.seq + 1).max().unwrap_or(1);
            prop_assert_eq!(held.floors.evict(), evict_floor, "{}", name);
            // C-GAP-01
            let floors = (held.floors.evict(), held.earliest_seq);
            prop_assert!(floors.0 <= floors.1 && floors.1 <= held.head_seq + 1, "{}: {:?}", name, floors);
            let before = self.floors.borrow_mut().insert(held.epoch, floors).unwrap_or_default();
            prop_assert!(before.0 <= floors.0 && before.1 <= floors.1, "{}: {:?}", name, (before, floors));
            let gaps = held.origins.gaps_in(0..=held.head_seq).map(|(seq, gap)| {
                let instance = held.origins.instance(gap.number).expect("gaps name origins");
                (seq, (instance.topic.to_string(), instance.epoch, gap.from_seq, gap.to_seq))
            });
            prop_assert!(gaps.eq(topic.gaps.iter().map(|(seq, gap)| (*seq, gap.clone()))), "{}", name);
            prop_assert_eq!(held.epoch, topic.epoch);
        }
        let routers = self.state.routers();
        prop_assert_eq!(routers.len(), model.routers.len());
        for (shared, (name, router)) in routers.all().iter().zip(&model.routers) {
            let held = shared.read();
            let position = held.positions.get(router.source.as_str()).expect("a local router has its place");
            let (held, expected) = (
                (&*held.name, position.seq, held.is_paused, held.forwarded_total),
                (name.as_str(), router.position, router.is_paused, router.forwarded),
            );
            prop_assert_eq!(held, expected);
        }
        let due = model.topics.values().filter_map(|topic| topic.due_ms());
        prop_assert_eq!(self.state.next_due_ms(), due.min());
        Ok(())
    }

    /// Everything that a reader can see.
    fn check_reads(&self, model: &Model) -> Result<(), TestCaseError> {
        for (name, topic) in &model.topics {
            let live = topic.live.iter().map(|record| (record.seq, record.ts_ms, record.origin.clone()));
            prop_assert_eq!(self.live(name), live.collect::<Vec<_>>(), "{}", name);
            self.check_origins(name, topic)?;
            let shared = self.state.catalog().get(name).expect("the model has it");
            let floors = shared.read().floors;
            for (record, _) in topic.gone.iter().rev().step_by(1 + topic.gone.len() / 20) {
                for cursor in [record.seq - 1, record.seq] {
                    let gap = floors.gap_after(cursor);
                    let gap = gap.map(|reason| (cursor + 1, shared.read().earliest_seq - 1, reason));
                    prop_assert_eq!(gap, topic.gap(cursor), "{} after {}", name, cursor);
                }
            }
            let gone = topic.gone.iter().map(|(record, _)| record);
            let every = 1 + (topic.gone.len() + topic.live.len()) / 20;
            for record in gone.chain(&topic.live).step_by(every) {
                for ts_ms in [record.ts_ms, record.ts_ms + 1] {
                    let place = (
                        self.place_of_time(&shared, ts_ms),
                        floors.gap_after(0).is_some() && floors.evicted_ts_ms >= ts_ms,
                    );
                    prop_assert_eq!(place, topic.place_of_time(ts_ms), "{} at {}", name, ts_ms);
                }
            }
        }
        prop_assert_eq!(self.state.catalog().len(), model.topics.len());
        Ok(())
    }
}

/// What the leader would have a router do next.
fn due(model: &Model, route: &Route) -> ModelPart {
    let router = format!("{}>{}", route.source, route.dest);
    let Some(known) = model.routers.get(&router) else {
        return ModelPart { router, from_seq: 0, to_seq: 9, picked: None };
    };
    let source = &model.topics[&known.source];
    let from_seq = known.position - u64::from(route.is_late && known.position > 0);
    let to_seq = from_seq + (route.part * (source.head - from_seq) as f64) as u64;
    let picked = route.tags.map(|tags| {
        let has_tag = |tag: &u8| tag_match(tags).matches(&tag_text(*tag));
        let passing = source.live.iter().filter(|record| record.tag.as_ref().is_some_and(has_tag));
        passing.map(|record| record.seq).collect::<BTreeSet<u64>>()
    });
    ModelPart { router, from_seq, to_seq, picked }
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
    let tags: Vec<Option<String>> = (0..count).map(|number| record_tag(number).map(tag_text)).collect();
    let records =
        data.iter().zip(&tags).map(|(data, tag)| Record { data, tag: tag.as_deref(), ..Record::default() });
    Draft::append(&append, records, 0)
}

fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (mut steady, mut restarting) = (Member::default(), Member::default());
    let mut model = Model { now_ms: 1_000_000, ..Model::default() };
    let mut index = 1;
    let mut number = 1;
    let envelope = |number| Envelope { node_id: 1, session: 5, number, done_below: number };
    let open = Draft::open_session().seal(envelope(0));
    let cluster = Draft::set_cluster(&Cluster { id: 7, name: "here".into() }).seal(envelope(1));
    for member in [&mut steady, &mut restarting] {
        member.apply(0, model.now_ms, &open);
        member.apply(1, model.now_ms, &cluster);
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
                restarting.check(&model)?;
                restarting.check_reads(&model)?;
                continue;
            }
            Step::Save => {
                restarting.save();
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
            Step::Put { topic, queue, window_ms, limits } => {
                let config = TopicConfig {
                    topic_type: if queue { TopicType::Queue } else { TopicType::Log },
                    idempotency_window_ms: window_ms,
                    ttl_ms: limits.ttl_ms,
                    cap_records: limits.cap_records,
                    cap_bytes: limits.cap_bytes,
                    discard: if limits.rejects { Discard::Reject } else { Discard::Old },
                    ..TopicConfig::default()
                };
                (Draft::put_topic(&name(topic), &config), model.put(&name(topic), &config))
            }
            Step::DeleteRecords { topic, before, tags, seen } => {
                let topic = name(topic);
                let head = model.topics.get(&topic).map_or(0, |topic| topic.head);
                let part = |part: f64| (part * head as f64) as u64;
                let before_seq =
                    if tags.is_none() { Some(before.map_or(head + 1, part)) } else { before.map(part) };
                let listed = tags.and_then(|tags| {
                    let shared = steady.state.catalog().get(&topic)?;
                    let seen_seq = part(seen).min(head);
                    Some(steady.look(&shared, tags, before_seq, seen_seq))
                });
                if tags.is_some() && listed.is_none() {
                    continue;
                }
                let delete = DeleteRecords { topic: &topic, before_seq, listed };
                (Draft::delete_records(&delete), model.delete_records(&topic, before_seq, tags))
            }
            Step::PutRouter { source, dest, start, create_dest, allow_cycle, preserve_tag } => {
                let head = model.topics.get(&name(source)).map_or(0, |topic| topic.head);
                let config = RouterConfig {
                    create_dest,
                    allow_cycle,
                    preserve_tag,
                    start: match start {
                        None => Start::Latest,
                        Some(RouterStart::Earliest) => Start::Earliest,
                        Some(RouterStart::Seq(part)) => Start::Seq((part * head as f64) as u64),
                        Some(RouterStart::Ts(ago_ms)) => Start::Ts(model.now_ms - ago_ms),
                    },
                    ..RouterConfig::local(name(source), name(dest))
                };
                let (router, is_start_given) = (format!("{source}>{dest}"), start.is_some());
                let expected = model.put_router(&router, &config, is_start_given);
                let put = PutRouter { name: &router, config, is_start_given };
                (Draft::put_router(&put), expected)
            }
            Step::Route { routes } => {
                let parts: Vec<ModelPart> = routes.iter().map(|route| due(&model, route)).collect();
                let drafted: Vec<RoutePart> = parts.iter().map(|part| steady.part(part)).collect();
                (Draft::route(&drafted), model.route(&parts))
            }
            Step::DeleteRouter { source, dest } => {
                let router = format!("{source}>{dest}");
                (Draft::delete_router(&router), model.delete_router(&router))
            }
            Step::PauseRouter { source, dest, pause } => {
                let router = format!("{source}>{dest}");
                (Draft::pause_router(&router, pause), model.pause_router(&router, pause))
            }
            Step::Expire => (Draft::expire(), model.expire()),
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
        steady.check(&model)?;
        last = Some((command, expected));
    }
    restarting.restart();
    prop_assert_eq!(steady.state.digest(), restarting.state.digest());
    for member in [&steady, &restarting] {
        member.check(&model)?;
        member.check_reads(&model)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// C-CLU-10, C-DEL-07, C-GAP-01: over restarts, with clocks of their own, and with floors that only rise.
    #[test]
    fn members_agree_with_each_other_and_with_a_naive_model(
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        run(steps)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    /// Short histories seldom have a topic of several blocks that have left memory.
    #[test]
    fn so_they_do_over_topics_of_many_blocks(
        counts in proptest::collection::vec(800usize..1500, 8..14), steps in proptest::collection::vec(step(), 1..40)
    ) {
        let append = |count| Step::Append { topic: 0, count, create: true, expect_right: None, key: None };
        run(counts.into_iter().map(append).chain([Step::Restart]).chain(steps).collect())?;
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

/// Whole blocks go unread, and the part of one that stays is fetched.
#[test]
fn a_long_topic_loses_its_oldest_part_by_a_smaller_cap_and_by_age() {
    let append = |count| Step::Append { topic: 0, count, create: true, expect_right: None, key: None };
    let put = |limits| Step::Put { topic: 0, queue: false, window_ms: 0, limits };
    let mut steps = vec![put(Limits::default())];
    for _ in 0..4000 {
        steps.extend([append(1), append(2), Step::Wait { ms: 1 }]);
    }
    steps.extend([Step::Restart, put(Limits { cap_records: 9000, ..Limits::default() }), Step::Restart]);
    steps.extend([append(5), Step::Save, append(3), Step::Save, append(1), Step::Restart, append(1)]);
    steps.extend([put(Limits { ttl_ms: 1500, ..Limits::default() }), append(1), Step::Restart]);
    steps.extend([Step::Wait { ms: 700 }, Step::Expire, Step::Restart, append(1), Step::Wait { ms: 5000 }]);
    steps.extend([Step::Expire, Step::Restart, append(2)]);
    run(steps).unwrap();
}

/// Found by the property above: retention stopped in the middle of a block that had to be fetched, which a delete
/// starts over.
#[test]
fn a_block_that_was_fetched_leaves_memory_with_a_delete_that_touches_it() {
    let append = |count| Step::Append { topic: 0, count, create: true, expect_right: None, key: None };
    let mut steps: Vec<Step> = vec![append(1000); 12];
    let limits = Limits { cap_records: 2000, ..Limits::default() };
    steps.extend([Step::Restart, Step::Put { topic: 0, queue: false, window_ms: 0, limits }]);
    // Only of that block and the open one: nothing else has to be fetched.
    steps.push(Step::DeleteRecords { topic: 0, before: None, tags: Some(1), seen: 1.0 });
    run(steps).unwrap();
}

/// Found by the property above: a refused write forgets old keys all the same, and a member that restarts
/// right after it must not know them again.
#[test]
fn keys_that_a_refused_write_forgot_stay_forgotten_after_a_restart() {
    let append =
        |expect_right| Step::Append { topic: 0, count: 1, create: false, expect_right, key: Some(0) };
    run(vec![
        Step::Put { topic: 0, queue: false, window_ms: 1, limits: Limits::default() },
        append(None),
        Step::Restart,
        Step::Wait { ms: 2 },
        append(Some(false)),
    ])
    .unwrap();
}

/// What `start` looks for may lie in a block that only the checkpoint has.
#[test]
fn a_router_starts_at_a_time_long_ago() {
    let mut steps = Vec::new();
    for _ in 0..4000 {
        steps.push(Step::Append { topic: 0, count: 1, create: true, expect_right: None, key: None });
        steps.push(Step::Wait { ms: 1 });
    }
    steps.push(Step::Restart);
    for (dest, ago_ms) in [(1, 3000), (2, 1500), (3, 10)] {
        let start = Some(RouterStart::Ts(ago_ms));
        steps.push(Step::PutRouter {
            source: 0,
            dest,
            start,
            create_dest: true,
            allow_cycle: false,
            preserve_tag: true,
        });
    }
    steps.push(Step::Restart);
    run(steps).unwrap();
}
