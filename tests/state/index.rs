//! The index of the log: whatever became of it, a look finds exactly what matches.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use antiphon::record::{EntryRecords, Record};
use antiphon::state::{
    Append, Changes, Create, DeleteRecords, Draft, Envelope, Garbage, Key, Listed, Look, NotApplied, Outcome,
    Run, SealedBlock, SharedTopic, State, TopicConfig, TopicKey,
};
use antiphon::storage::{
    Checkpoint, Disk, EntryId, EntryKind, Indexer, Log, LogEntry, LogOptions, LogWriter, MemoryCheckpoint,
    Reclaimer, SimDisk,
};
use bytes::Bytes;
use proptest::prelude::*;

use crate::member;
use crate::model::{tag_match, tag_text};

const TOPICS: usize = 3;

fn entry_of(log: &Log, run: &Run) -> io::Result<EntryRecords> {
    Ok(EntryRecords::parse(log.payload(run.entry)?)?)
}

#[derive(Debug, Clone)]
enum Step {
    /// The n-th record has the tag `first_tag + n / same`, of eight; a third of them none.
    Append {
        topic: usize,
        count: usize,
        first_tag: usize,
        same: usize,
    },
    Cap {
        topic: usize,
        cap_records: u64,
    },
    DeleteTopic {
        topic: usize,
    },
    DeleteRecords {
        topic: usize,
        tags: u8,
    },
    Look {
        topic: usize,
        tags: u8,
        before: Option<f64>,
    },
    /// So many steps of the indexer, unless it is idle before.
    Index(usize),
    Checkpoint,
    /// The log is purged behind the checkpoint, and its files are freed.
    Free(usize),
    /// The process ends. `loses`: with the machine.
    Restart {
        loses: bool,
    },
    /// Of one file of the index a bit turns, or its end is lost, or all of it.
    Harm {
        file: usize,
        place: f64,
        how: u8,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let count = prop_oneof![6 => 1usize..4, 2 => 4usize..60, 1 => 100usize..700];
    let append = (0..TOPICS, count, 0usize..8, 1usize..9)
        .prop_map(|(topic, count, first_tag, same)| Step::Append { topic, count, first_tag, same });
    let look = (0..TOPICS, 0u8..8, proptest::option::weighted(0.3, 0.0..1.1f64));
    let step = prop_oneof![
        30 => append,
        2 => (0..TOPICS, prop_oneof![Just(0u64), 1u64..30, 100u64..2000])
            .prop_map(|(topic, cap_records)| Step::Cap { topic, cap_records }),
        1 => (0..TOPICS).prop_map(|topic| Step::DeleteTopic { topic }),
        3 => (0..TOPICS, 0u8..8).prop_map(|(topic, tags)| Step::DeleteRecords { topic, tags }),
        6 => look.prop_map(|(topic, tags, before)| Step::Look { topic, tags, before }),
        8 => prop_oneof![2 => 1usize..4, 1 => Just(200usize)].prop_map(Step::Index),
        3 => Just(Step::Checkpoint),
        3 => (1usize..30).prop_map(Step::Free),
        2 => any::<bool>().prop_map(|loses| Step::Restart { loses }),
        3 => (0usize..20, 0.0..1.0f64, 0u8..3)
            .prop_map(|(file, place, how)| Step::Harm { file, place, how }),
    ];
    proptest::collection::vec(step, 1..150)
}

/// The value of a future that has nothing to wait for.
fn at_once<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("this should not have to wait"),
    }
}

fn dir() -> PathBuf {
    PathBuf::from("/data/log")
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 24 << 10,
        cache_bytes: 4 << 10,
        zero_below_bytes: 700,
        zero_step_bytes: 1 << 10,
        index_bytes: 3 << 10,
        ..LogOptions::default()
    }
}

/// A process.
struct Running {
    log: Log,
    writer: LogWriter,
    state: State,
    garbage: Garbage,
    indexer: Indexer,
    reclaimer: Reclaimer,
}

struct Member {
    disk: SimDisk,
    checkpoint: MemoryCheckpoint,
    saved: u64,
    applied: u64,
    number: u64,
    /// Tags by seq, of each instance.
    tags: BTreeMap<u64, Vec<Option<u8>>>,
    running: Running,
    /// Looks of which the index knew something.
    helped: usize,
}

fn open(disk: &SimDisk, checkpoint: &MemoryCheckpoint) -> Running {
    let (log, writer) = Log::open(Arc::new(disk.clone()), &dir(), options()).expect("open");
    let (indexer, reclaimer) = (log.indexer(), log.reclaimer());
    let mut state = State::new(log.live().clone());
    checkpoint.load(&mut |key, value| Ok(state.restore(key, value)?)).expect("load");
    let garbage = Garbage::of_orphans(state.restored());
    Running { log, writer, state, garbage, indexer, reclaimer }
}

fn block(checkpoint: &MemoryCheckpoint, epoch: u64, first_seq: u64) -> Option<SealedBlock> {
    let bytes = checkpoint.get(&Key::Topic(epoch, TopicKey::Runs(first_seq)).encode()).expect("get")?;
    Some(SealedBlock { first_seq, bytes: bytes.into() })
}

impl Running {
    fn apply(&mut self, checkpoint: &MemoryCheckpoint, id: EntryId, command: &Bytes) -> Outcome {
        loop {
            match self.state.apply_command(id, 1_000_000, command) {
                Ok(applied) => {
                    member::check(&self.state, id.index);
                    return applied.outcome;
                }
                Err(NotApplied::Missing(missing)) => {
                    for needed in missing.blocks {
                        let block = block(checkpoint, needed.topic.epoch, needed.first_seq);
                        self.state
                            .supply_block(&needed.topic, block.expect("a block that is needed is there"));
                    }
                    for id in missing.entries {
                        let records = EntryRecords::parse(self.log.payload(id).expect("read"));
                        self.state.supply_entry(id, records.expect("own entries can be read"));
                    }
                }
                Err(NotApplied::Malformed(error)) => panic!("own commands can be read: {error}"),
            }
        }
    }
}

impl Member {
    fn new(seed: u64) -> Self {
        let (disk, checkpoint) = (SimDisk::new(seed), MemoryCheckpoint::default());
        let running = open(&disk, &checkpoint);
        let tags = BTreeMap::new();
        let mut member = Self { disk, checkpoint, saved: 0, applied: 0, number: 0, tags, running, helped: 0 };
        member.apply(Draft::open_session());
        member
    }

    fn apply(&mut self, draft: Draft) -> Outcome {
        let number = self.number;
        self.number += 1;
        self.applied += 1;
        let command = draft.seal(Envelope { node_id: 1, session: 5, number, done_below: number });
        let id = EntryId { term: 1 + self.applied / 50, index: self.applied };
        let entry = LogEntry { id, kind: EntryKind::Command, stamp_ms: 1_000_000, payload: command.clone() };
        let log = &self.running.log;
        at_once(log.append(vec![entry], Box::new(|outcome| outcome.expect("synced")))).expect("append");
        self.write();
        self.running.apply(&self.checkpoint, id, &command)
    }

    fn write(&mut self) {
        loop {
            let ops = self.running.writer.take();
            if ops.is_empty() {
                return;
            }
            self.running.writer.step(ops);
        }
    }

    fn topic(&self, topic: usize) -> Option<Arc<SharedTopic>> {
        self.running.state.catalog().get(&format!("t{topic}"))
    }

    fn look(&mut self, topic: usize, tags: u8, before_seq: Option<u64>) -> Option<(Arc<SharedTopic>, Look)> {
        let shared = self.topic(topic)?;
        let (epoch, head_seq) = (shared.epoch, shared.read().head_seq);
        let last_seq = head_seq.min(before_seq.unwrap_or(u64::MAX).saturating_sub(1));
        let mut look = Look::new(shared.clone(), tag_match(tags), usize::MAX);
        let fetch = |first_seq| Ok(block(&self.checkpoint, epoch, first_seq));
        // Now and then there is no room for an entry.
        let mut asked = 0;
        let log = &self.running.log;
        let mut fetch_entry = |run: &Run| {
            asked += 1;
            if asked % 3 == 0 { Ok(None) } else { entry_of(log, run).map(Some) }
        };
        while !look.step(log, last_seq, fetch, &mut fetch_entry).expect("a look works") {}
        assert!(look.seen_seq >= last_seq);
        let found = self.running.log.find_tags(&tag_match(tags), &(0..=u64::MAX), 4096);
        self.helped += usize::from((0..=self.applied).any(|index| found.covers(&(index..=index))));
        let wanted = |tag: u8| if tags < 4 { tag == tags } else { tag % 4 == tags % 4 };
        let topic = shared.read();
        let expected: Vec<u64> = (topic.earliest_seq..=last_seq)
            .filter(|seq| !topic.removed().contains(*seq))
            .filter(|seq| self.tags[&epoch][*seq as usize - 1].is_some_and(wanted))
            .collect();
        let listed: Vec<u64> = look.ranges.iter().cloned().flatten().collect();
        assert_eq!(listed, expected, "of {head_seq}");
        drop(topic);
        Some((shared, look))
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Append { topic, count, first_tag, same } => {
                let tags: Vec<Option<u8>> = (0..count)
                    .map(|at| (at % 3 != 2 || same > 6).then_some(((first_tag + at / same) % 8) as u8))
                    .collect();
                let texts: Vec<Option<String>> = tags.iter().map(|tag| tag.map(tag_text)).collect();
                let records = texts.iter().map(|tag| Record {
                    tag: tag.as_deref(),
                    data: "1234567890",
                    ..Record::default()
                });
                let name = format!("t{topic}");
                let create = Create::With(TopicConfig::default());
                let append = Append { topic: &name, create, expect_head_seq: None, idempotency_key: None };
                assert!(matches!(self.apply(Draft::append(&append, records, 0)), Outcome::Appended(_)));
                let epoch = self.topic(topic).expect("it was made").epoch;
                self.tags.entry(epoch).or_default().extend(tags);
            }
            Step::Cap { topic, cap_records } => {
                let config = TopicConfig { cap_records, ..TopicConfig::default() };
                self.apply(Draft::put_topic(&format!("t{topic}"), &config));
                let epoch = self.topic(topic).expect("it was made").epoch;
                self.tags.entry(epoch).or_default();
            }
            Step::DeleteTopic { topic } => {
                self.apply(Draft::delete_topic(&format!("t{topic}"), false));
            }
            Step::DeleteRecords { topic, tags } => {
                let Some((shared, look)) = self.look(topic, tags, None) else { return };
                let listed: u64 = look.ranges.iter().map(|range| range.end() - range.start() + 1).sum();
                let list = Listed { epoch: shared.epoch, ranges: look.ranges, late: None };
                let name = format!("t{topic}");
                let delete = DeleteRecords { topic: &name, before_seq: None, listed: Some(list) };
                let outcome = self.apply(Draft::delete_records(&delete));
                assert!(
                    matches!(&outcome, Outcome::RecordsDeleted(done) if done.deleted == listed),
                    "{outcome:?}"
                );
            }
            Step::Look { topic, tags, before } => {
                let head_seq = self.topic(topic).map_or(0, |shared| shared.read().head_seq);
                self.look(topic, tags, before.map(|part| (part * head_seq as f64) as u64));
            }
            Step::Index(count) => {
                for _ in 0..count {
                    if self.running.indexer.step(self.applied).expect("index").is_idle() {
                        break;
                    }
                }
            }
            Step::Checkpoint => {
                let Changes { values, saved, deleted, freed } = self.running.state.take_changes();
                self.checkpoint.write(values).expect("write");
                self.running.state.blocks_saved(&saved);
                let live = self.running.log.live().clone();
                freed.entries.iter().for_each(|index| live.release(*index));
                self.running.garbage.add(deleted, freed.unread);
                while !self.running.garbage.is_empty() {
                    self.running.garbage.step(&self.checkpoint, &live).expect("clear");
                }
                self.saved = self.applied;
            }
            Step::Free(count) => {
                if self.saved > 0 {
                    let upto = EntryId { term: 1 + self.saved / 50, index: self.saved };
                    at_once(self.running.log.purge(upto)).expect("purge");
                    self.write();
                }
                for _ in 0..count {
                    self.running.reclaimer.step(self.saved).expect("free");
                }
            }
            Step::Restart { loses } => {
                if loses {
                    self.disk = self.disk.crash(self.number);
                }
                self.running = open(&self.disk, &self.checkpoint);
                self.replay();
            }
            Step::Harm { file, place, how } => {
                let files = self.files();
                if files.is_empty() {
                    return;
                }
                let path = &files[file % files.len()];
                let len_bytes = self.len_bytes(path);
                let at = (place * len_bytes as f64) as u64;
                let harmed = match how {
                    0 => self.disk.flip_bit(path, at, (file % 8) as u8),
                    1 => self.disk.truncate(path, at),
                    _ => self.disk.lose(path),
                };
                harmed.expect("harm");
            }
        }
    }

    /// Applies what the log has beyond the checkpoint. The indexer may run in between.
    fn replay(&mut self) {
        let entries = self.running.log.entries(self.saved + 1..u64::MAX, usize::MAX).expect("read");
        assert_eq!(self.saved + entries.len() as u64, self.applied);
        for entry in entries {
            if entry.id.index % 5 == 0 {
                self.running.indexer.step(entry.id.index - 1).expect("index");
            }
            self.running.apply(&self.checkpoint, entry.id, &entry.payload);
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let names = self.disk.list(&dir()).expect("list");
        names.iter().filter(|name| name.ends_with(".idx")).map(|name| dir().join(name)).collect()
    }

    fn len_bytes(&self, path: &Path) -> u64 {
        let file = self.disk.open(path, antiphon::storage::OpenMode::Read).expect("open");
        file.len_bytes().expect("len")
    }

    /// All looks, with the index as it is, when it has caught up, and without any.
    fn check(&mut self) {
        let look_all = |member: &mut Self| {
            for (topic, tags) in (0..TOPICS).flat_map(|topic| (0..8).map(move |tags| (topic, tags))) {
                member.take(&Step::Look { topic, tags, before: None });
            }
        };
        look_all(self);
        self.take(&Step::Index(10_000));
        look_all(self);
        let live = self.running.log.live();
        let all = self.running.log.find_tags(&tag_match(0), &(0..=u64::MAX), usize::MAX);
        for index in live.above(None, usize::MAX) {
            assert!(all.covers(&(index..=index)), "entry {index} is not covered at rest");
        }
        self.files().iter().for_each(|path| self.disk.lose(path).expect("lose"));
        self.take(&Step::Restart { loses: false });
        look_all(self);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_look_finds_what_matches_whatever_became_of_the_index(seed: u64, steps in steps()) {
        let mut member = Member::new(seed);
        for step in &steps {
            member.take(step);
        }
        member.check();
    }
}

fn appends(member: &mut Member, count: usize) {
    for at in 0..count {
        member.take(&Step::Append { topic: at % 2, count: 1 + at % 3, first_tag: at, same: 1 });
    }
}

/// C-DEL-12: of a long topic only the blocks are fetched that hold a match, and no record is read.
#[test]
fn a_look_costs_in_the_order_of_the_matches() {
    let mut member = Member::new(1);
    let rare = |member: &mut Member| {
        member.take(&Step::Append { topic: 0, count: 2, first_tag: 3, same: 1 });
    };
    for _ in 0..3 {
        rare(&mut member);
        for _ in 0..5000 {
            member.take(&Step::Append { topic: 0, count: 1, first_tag: 0, same: 1 });
        }
    }
    member.take(&Step::Checkpoint);
    member.take(&Step::Index(100_000));
    let shared = member.topic(0).expect("it is there");
    let (fetched, last_seq) = (std::cell::Cell::new(0), shared.read().head_seq);
    let fetch = |first_seq| {
        fetched.set(fetched.get() + 1);
        Ok(block(&member.checkpoint, shared.epoch, first_seq))
    };
    let reads = member.running.log.stats().cold_reads;
    let mut look = Look::new(shared.clone(), tag_match(3), usize::MAX);
    let mut steps = 0;
    let no_entry = |_: &Run| -> io::Result<Option<EntryRecords>> { panic!("no record is read") };
    while !look.step(&member.running.log, last_seq, fetch, no_entry).expect("look") {
        steps += 1;
    }
    assert_eq!(look.ranges.iter().cloned().flatten().collect::<Vec<_>>(), [1, 5003, 10005]);
    assert_eq!((fetched.get(), steps, member.running.log.stats().cold_reads), (3, 0, reads));

    // No more than one command may touch is found at once.
    let mut look = Look::new(shared.clone(), tag_match(3), 2);
    for (expected, is_full) in [(vec![1, 5003], true), (vec![10005], false)] {
        while !look.step(&member.running.log, last_seq, fetch, no_entry).expect("look") {}
        assert_eq!(look.ranges.iter().cloned().flatten().collect::<Vec<_>>(), expected);
        assert_eq!(look.is_full(), is_full);
        look.forget_ranges();
    }
    assert_eq!(look.seen_seq, last_seq);
}

/// Files are few, and what is dead leaves them.
#[test]
fn the_index_is_merged_and_shrinks_with_what_is_live() {
    let mut member = Member::new(2);
    appends(&mut member, 6000);
    member.take(&Step::Checkpoint);
    member.take(&Step::Index(100_000));
    let bytes = |member: &Member| member.files().iter().map(|path| member.len_bytes(path)).sum::<u64>();
    let (full_bytes, full_files) = (bytes(&member), member.files().len());
    assert!(full_files < 20 && full_bytes > 10_000, "{full_files} files, {full_bytes} bytes");
    member.take(&Step::DeleteTopic { topic: 0 });
    member.take(&Step::Cap { topic: 1, cap_records: 50 });
    member.take(&Step::Checkpoint);
    member.take(&Step::Index(100_000));
    assert!(bytes(&member) < full_bytes / 10, "{} of {full_bytes} bytes are left", bytes(&member));
    member.check();
}

/// Lets the indexer do all that there is to do when so much is applied; `true` if the disk failed.
fn index_upto(member: &mut Member, applied: u64) -> bool {
    loop {
        match member.running.indexer.step(applied) {
            Ok(done) if done.is_idle() => return false,
            Ok(_) => {}
            Err(_) => return true,
        }
    }
}

/// A kill at any operation of the disk leaves an index that is right.
#[test]
fn a_kill_at_any_point_leaves_an_index_that_is_right() {
    let mut points = 0;
    for point in 0.. {
        let mut member = Member::new(3);
        appends(&mut member, 500);
        member.take(&Step::Checkpoint);
        member.disk.fail_after(point);
        let has_failed = (20..=member.applied).step_by(20).any(|applied| index_upto(&mut member, applied));
        member.disk.revive();
        member.take(&Step::Restart { loses: point % 2 == 0 });
        member.check();
        if !has_failed {
            break;
        }
        points += 1;
    }
    assert!(points > 30, "{points} points");
}

/// The property above would say nothing if the index knew nothing.
#[test]
fn the_index_helps() {
    let mut member = Member::new(4);
    appends(&mut member, 300);
    member.take(&Step::Look { topic: 0, tags: 1, before: None });
    assert_eq!(member.helped, 0);
    member.take(&Step::Index(1000));
    member.take(&Step::Look { topic: 0, tags: 1, before: None });
    member.take(&Step::Restart { loses: true });
    member.take(&Step::Look { topic: 0, tags: 1, before: None });
    assert_eq!(member.helped, 2);
    assert!(!member.files().is_empty());
}
