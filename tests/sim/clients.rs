//! Clients: they write and read at members that come and go, and tell the oracle what they were told.

use std::collections::BTreeMap;
use std::sync::Arc;

use antiphon::engine::{Consistency, PageQuery};
use antiphon::error::{Code, Error};
use antiphon::filter::TagMatch;
use antiphon::limits::COLD_ENTRY_PATIENCE;
use antiphon::record::Record;
use antiphon::state::{Append, AppendPart, Create, Draft, Outcome, Refusal, TopicConfig};
use antiphon::storage::sim_disk::Dice;

use crate::calls::{Told, at, is_excused, propose};
use crate::member::engine_of;
use crate::oracle::{Fate, data, tag};
use crate::reads::{self, filter_of, read_page, walk_query};
use crate::seeded::Throw;
use crate::world::{MEMBERS, World};

/// Topics that are never deleted.
const STEADY: [&str; 3] = ["steady-0", "steady-1", "steady-2"];
/// Topics that come and go.
pub const FLEETING: [&str; 2] = ["fleeting-0", "fleeting-1"];
/// Topics that give up their oldest records, by number and by age.
pub const LOSING: [&str; 2] = ["losing-by-cap", "losing-by-age"];
/// Topics of which records are deleted, by seq and by tag.
pub const PRUNED: [&str; 2] = ["pruned-0", "pruned-1"];
/// Longer than clocks can jump.
const KEY_WINDOW_MS: u64 = 90 * 24 * 3_600_000;
/// Most tries of one append.
const TRIES: u64 = 6;

pub fn topics() -> impl Iterator<Item = &'static str> {
    STEADY.into_iter().chain(FLEETING).chain(LOSING).chain(PRUNED)
}

/// What may become of a topic and its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Steady,
    Fleeting,
    Losing,
    Pruned,
}

pub fn kind(topic: &str) -> Kind {
    let is_in = |group: &[&str]| group.contains(&topic);
    match () {
        () if is_in(&FLEETING) => Kind::Fleeting,
        () if is_in(&LOSING) => Kind::Losing,
        () if is_in(&PRUNED) => Kind::Pruned,
        () => Kind::Steady,
    }
}

/// Runs one client until the history is over.
pub async fn run(world: Arc<World>, number: usize, mut dice: Dice) {
    let mut client = Client { world, number, cursors: BTreeMap::new() };
    let pause_ms = dice.between(2, 150);
    while !client.world.is_over() && !client.world.trace.has_complaints() {
        tokio::time::sleep(dice.time_ms(0, pause_ms)).await;
        let member = dice.below(MEMBERS as u64) as usize;
        match dice.below(100) {
            0..45 => client.append(member, &mut dice).await,
            45..50 => client.append_both(member, &mut dice).await,
            50..80 => client.read(member, &mut dice).await,
            80..83 => client.walk(member, &mut dice).await,
            83..89 => client.configure(member, &mut dice).await,
            89..96 => client.prune(member, &mut dice).await,
            _ => client.delete(member, &mut dice).await,
        }
    }
}

/// The configuration of a topic, with variety in what changes nothing that is checked.
fn config(topic: &str, dice: &mut Dice) -> TopicConfig {
    let is_losing = LOSING.contains(&topic);
    TopicConfig {
        cap_records: if is_losing && topic == LOSING[0] { dice.between(20, 60) } else { 0 },
        ttl_ms: if is_losing && topic == LOSING[1] { dice.between(200, 3000) } else { 0 },
        idempotency_window_ms: KEY_WINDOW_MS,
        max_deliveries: dice.below(5),
        priority: dice.chance(50).then_some(7),
        ..TopicConfig::default()
    }
}

/// One batch as it is sent.
struct Batch<'a> {
    topic: &'a str,
    number: usize,
    count: u32,
    pad_bytes: usize,
    create: Create,
    expect_head_seq: Option<u64>,
    key: Option<String>,
}

impl Batch<'_> {
    fn draft(&self) -> Draft {
        let append = Append {
            topic: self.topic,
            create: self.create.clone(),
            expect_head_seq: self.expect_head_seq,
            idempotency_key: self.key.as_deref(),
        };
        let data: Vec<String> =
            (0..self.count).map(|part| data((self.number, part), self.pad_bytes)).collect();
        let tags: Vec<String> = (0..self.count).map(|part| tag((self.number, part))).collect();
        let records =
            data.iter().zip(&tags).map(|(data, tag)| Record { data, tag: Some(tag), ..Record::default() });
        Draft::append(&append, records, self.pad_bytes * data.len())
    }

    /// What an outcome says; complains if no promise allows it.
    fn fate(&self, world: &World, outcome: &Outcome) -> Fate {
        match outcome {
            Outcome::Appended(appended) => {
                let last_seq = appended.first_seq + appended.count - 1;
                let is_fresh = !appended.deduped;
                let is_odd = appended.count != u64::from(self.count)
                    || appended.head_seq < last_seq
                    || (is_fresh && appended.head_seq != last_seq)
                    || (appended.deduped && self.key.is_none())
                    || (is_fresh && self.expect_head_seq.is_some_and(|head| head + 1 != appended.first_seq));
                if is_odd {
                    world.trace.complain(format_args!("append {} came out as {appended:?}", self.number));
                }
                Fate::Acked { first_seq: appended.first_seq }
            }
            Outcome::Refused(refusal) => {
                let is_allowed = match refusal {
                    Refusal::TopicNotFound => self.create == Create::Never,
                    Refusal::HeadMismatch { head_seq } => {
                        self.expect_head_seq.is_some_and(|expected| expected != *head_seq)
                    }
                    _ => false,
                };
                if !is_allowed {
                    world.trace.complain(format_args!("append {} was refused: {refusal:?}", self.number));
                }
                Fate::Refused
            }
            other => {
                world.trace.complain(format_args!("append {} came out as {other:?}", self.number));
                Fate::Unknown
            }
        }
    }
}

/// One record to one topic at one member, once.
pub async fn append_one(world: &World, member: usize, topic: &str) -> Told {
    let number = world.oracle.begin_append(topic, 1);
    let config = TopicConfig { idempotency_window_ms: KEY_WINDOW_MS, ..TopicConfig::default() };
    let create = Create::With(config);
    let batch = Batch { topic, number, count: 1, pad_bytes: 0, create, expect_head_seq: None, key: None };
    let told = propose(world, member, batch.draft()).await;
    let fate = match &told {
        Told::Outcome(outcome) => batch.fate(world, outcome),
        Told::Refused(_) | Told::Down => Fate::Refused,
        Told::Unknown => Fate::Unknown,
    };
    world.oracle.end_append(number, fate, false);
    told
}

struct Client {
    world: Arc<World>,
    number: usize,
    /// Per topic: epoch, seq read last, head seen last.
    cursors: BTreeMap<&'static str, (u64, u64, u64)>,
}

impl Client {
    fn topic(dice: &mut Dice) -> &'static str {
        let group: &[&str] = match dice.below(100) {
            0..60 => &STEADY,
            60..75 => &FLEETING,
            75..90 => &PRUNED,
            _ => &LOSING,
        };
        group[dice.below(group.len() as u64) as usize]
    }

    /// One record to each of two topics, in one command.
    async fn append_both(&self, member: usize, dice: &mut Dice) {
        let world = &self.world;
        let begun = [STEADY[0], STEADY[1]].map(|topic| (topic, world.oracle.begin_append(topic, 1)));
        let parts = begun.map(|(topic, _)| AppendPart {
            append: Append {
                topic,
                create: Create::With(config(topic, dice)),
                expect_head_seq: None,
                idempotency_key: None,
            },
            record_count: 1,
        });
        let texts = begun.map(|(_, number)| (data((number, 0), 0), tag((number, 0))));
        let records = texts.iter().map(|(data, tag)| Record { data, tag: Some(tag), ..Record::default() });
        let told = propose(world, member, Draft::append_many(&parts, records, 200)).await;
        let fates = match &told {
            Told::Outcome(Outcome::AppendedMany(appended)) if appended.len() == begun.len() => {
                appended.iter().map(|part| Fate::Acked { first_seq: part.first_seq }).collect()
            }
            Told::Outcome(other) => {
                world.trace.complain(format_args!("an append to two topics came out as {other:?}"));
                vec![Fate::Unknown; begun.len()]
            }
            Told::Refused(_) | Told::Down => vec![Fate::Refused; begun.len()],
            Told::Unknown => vec![Fate::Unknown; begun.len()],
        };
        for ((_, number), fate) in begun.into_iter().zip(fates) {
            world.oracle.end_append(number, fate, false);
        }
    }

    async fn append(&mut self, first_member: usize, dice: &mut Dice) {
        let world = self.world.clone();
        let topic = Self::topic(dice);
        let count = if dice.chance(5) { dice.between(20, 150) } else { dice.between(1, 4) } as u32;
        let pad_bytes = if dice.chance(10) { dice.between(0, 6000) } else { dice.between(0, 40) } as usize;
        let number = world.oracle.begin_append(topic, count);
        // A topic that is deleted takes the keys that it remembers with it.
        let has_key = STEADY.contains(&topic) && dice.chance(40);
        let head_seq = self.cursors.get(topic).map(|(_, _, head_seq)| *head_seq);
        let batch = Batch {
            topic,
            number,
            count,
            pad_bytes: if count > 20 { pad_bytes.min(400) } else { pad_bytes },
            create: if dice.chance(10) { Create::Never } else { Create::With(config(topic, dice)) },
            expect_head_seq: head_seq.filter(|_| dice.chance(10)),
            key: has_key.then(|| format!("key {number}")),
        };
        let (mut sum, mut tries, mut member) = (Fate::Refused, 0, first_member);
        loop {
            tries += 1;
            let told = propose(&world, member, batch.draft()).await;
            let is_final = match &told {
                Told::Outcome(outcome) => {
                    let fate = batch.fate(&world, outcome);
                    // A refusal says nothing of a try before it that is still on its way.
                    if !(fate == Fate::Refused && sum == Fate::Unknown) {
                        sum = fate;
                    }
                    true
                }
                Told::Refused(_) | Told::Down => false,
                Told::Unknown => {
                    sum = Fate::Unknown;
                    !has_key
                }
            };
            world.trace.note(format_args!(
                "c{} m{} append {number} of {count} to {topic}: {}",
                self.number,
                member + 1,
                Short(&told)
            ));
            if is_final || tries == TRIES || world.trace.has_complaints() {
                break;
            }
            tokio::time::sleep(dice.time_ms(1, 400)).await;
            member = dice.below(MEMBERS as u64) as usize;
        }
        world.oracle.end_append(number, sum, tries > 1);
    }

    async fn configure(&mut self, member: usize, dice: &mut Dice) {
        let topic = Self::topic(dice);
        let config = config(topic, dice);
        let told = propose(&self.world, member, Draft::put_topic(topic, &config)).await;
        if let Told::Outcome(outcome) = &told {
            let is_right = matches!(outcome, Outcome::TopicPut { config: put, .. } if *put == config);
            if !is_right {
                self.world.trace.complain(format_args!("a put of {config:?} came out as {outcome:?}"));
            }
        }
        self.world.trace.note(format_args!("c{} m{} put {topic}: {}", self.number, member + 1, Short(&told)));
    }

    async fn delete(&mut self, member: usize, dice: &mut Dice) {
        let topic = FLEETING[dice.below(FLEETING.len() as u64) as usize];
        let if_empty = dice.chance(20);
        let number = self.world.oracle.begin_delete(topic);
        let told = propose(&self.world, member, Draft::delete_topic(topic, if_empty)).await;
        let (is_known, is_refused) = match &told {
            Told::Outcome(Outcome::TopicDeleted { deleted, .. }) => (true, !deleted),
            Told::Outcome(Outcome::Refused(Refusal::NotEmpty { .. })) if if_empty => (true, true),
            Told::Outcome(Outcome::Refused(Refusal::TopicNotFound)) => (true, true),
            Told::Outcome(outcome) => {
                self.world.trace.complain(format_args!("a delete came out as {outcome:?}"));
                (true, false)
            }
            Told::Refused(_) | Told::Down => (true, true),
            Told::Unknown => (false, false),
        };
        self.world.oracle.end_delete(number, is_known, is_refused);
        self.world.trace.note(format_args!(
            "c{} m{} delete {topic}: {}",
            self.number,
            member + 1,
            Short(&told)
        ));
    }

    async fn prune(&mut self, member: usize, dice: &mut Dice) {
        let topic = PRUNED[dice.below(PRUNED.len() as u64) as usize];
        let head_seq = self.cursors.get(topic).map_or(0, |(_, _, head_seq)| *head_seq);
        let before_seq = dice.chance(30).then(|| dice.between(0, head_seq + 2));
        let tags = match before_seq {
            Some(_) if dice.chance(50) => None,
            _ => Some(tag((0, dice.below(4) as u32))),
        };
        let number = self.world.oracle.begin_prune(topic, tags.clone(), before_seq);
        let tag_match = tags.clone().map(TagMatch::Eq);
        let told = match engine_of(&self.world.machines[member]) {
            None => None,
            Some(_) => at(&self.world, member, move |engine| async move {
                engine.admit()?;
                engine.delete_records(topic, before_seq, tag_match).await
            })
            .await
            .or_else(|| Some(Err(Error::new(Code::CommitUnknown, "the member is gone")))),
        };
        let told = match told {
            Some(Ok(deleted)) => {
                self.world.oracle.end_prune(number, Some(deleted.head_seq));
                format!("{deleted:?}")
            }
            Some(Err(error)) => {
                let is_known = matches!(error.code, Code::TopicNotFound | Code::CommitUnknown);
                if !is_known && !is_excused(&self.world, member, &error) {
                    self.world.trace.complain(format_args!("a delete of records got {error}"));
                }
                error.code.name().to_owned()
            }
            None => "down".to_owned(),
        };
        self.world.trace.note(format_args!(
            "c{} m{} delete records {tags:?} before {before_seq:?} of {topic}: {told}",
            self.number,
            member + 1
        ));
    }

    /// Reads a topic from its beginning, or from some time on, to its end.
    async fn walk(&mut self, member: usize, dice: &mut Dice) {
        let topic = Self::topic(dice);
        let mut query = walk_query(dice);
        if query.filter.is_none() && !LOSING.contains(&topic) && dice.chance(30) {
            let seen = self.world.oracle.some_time(topic, dice.roll());
            query.from_ts_ms = seen.map(|ts_ms| ts_ms + dice.below(3) - 1);
            let told = read_page(&self.world, member, topic, &query).await;
            let is_told = matches!(told, Some(Ok(_)));
            self.world.trace.note(format_args!(
                "c{} m{} read of {topic} from {:?} ms: {is_told}",
                self.number,
                member + 1,
                query.from_ts_ms
            ));
            return;
        }
        let told = reads::read_all(&self.world, member, topic, query).await;
        self.world.trace.note(format_args!("c{} m{} all of {topic}: {told:?}", self.number, member + 1));
    }

    async fn read(&mut self, member: usize, dice: &mut Dice) {
        let topic = Self::topic(dice);
        let (epoch, from_seq, _) = self.cursors.get(topic).copied().unwrap_or_default();
        let query = PageQuery {
            from_seq,
            from_ts_ms: None,
            limit: dice.between(1, 200) as usize,
            max_bytes: dice.between(1, 64 << 10) as usize,
            drop_nodes: Default::default(),
            filter: dice.chance(20).then(|| filter_of(&tag((0, dice.below(4) as u32)))).flatten(),
            epoch: (epoch > 0).then_some(epoch),
            consistency: if dice.chance(60) { Consistency::Strong } else { Consistency::Eventual },
            wait_ms: if dice.chance(20) { dice.between(1, 2000) } else { 0 },
            patience: COLD_ENTRY_PATIENCE,
        };
        let told = match read_page(&self.world, member, topic, &query).await {
            Some(Ok(page)) => {
                self.world.trace.note(format_args!(
                    "c{} m{} {:?} read of {topic} from {from_seq}: to {} of {}",
                    self.number,
                    member + 1,
                    query.consistency,
                    page.next_from_seq,
                    page.head_seq
                ));
                // Once in a while a reader starts again.
                let cursor = if dice.chance(5) { 0 } else { page.next_from_seq };
                let is_lagging = page.epoch < epoch;
                if !is_lagging {
                    self.cursors.insert(topic, (page.epoch, cursor, page.head_seq));
                }
                return;
            }
            Some(Err(error)) => {
                if error.code == Code::TopicNotFound {
                    self.cursors.remove(topic);
                }
                error.code.name()
            }
            None => "no answer",
        };
        self.world.trace.note(format_args!("c{} m{} read of {topic}: {told}", self.number, member + 1));
    }
}

/// A short form for the trace.
struct Short<'a>(&'a Told);

impl std::fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Told::Outcome(Outcome::Appended(appended)) => {
                let deduped = if appended.deduped { ", deduped" } else { "" };
                write!(f, "seq {}{deduped}", appended.first_seq)
            }
            Told::Outcome(Outcome::TopicPut { created, .. }) => write!(f, "put, created {created}"),
            Told::Outcome(other) => write!(f, "{other:?}"),
            Told::Refused(error) => f.write_str(error.code.name()),
            Told::Unknown => f.write_str("unknown"),
            Told::Down => f.write_str("down"),
        }
    }
}
