//! What the state takes in from the log and from a checkpoint, for [`crate::fuzzing`].

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::command::check_command;
use super::{
    Append, AppendPart, Cluster, ClusterLimits, Copy, CopyItem, CopyPart, Create, DeleteRecords, Draft,
    Envelope, Instance, Key, LateMatch, Listed, NotApplied, Outcome, PutRouter, Relays, Remote, RoutePart,
    RouterConfig, SealToken, SealedBlock, Start, State, Token, TopicConfig, TopicKey, TopicType,
};
use crate::codec::Reader;
use crate::filter::{Filter, TagMatch};
use crate::record::{EntryBuilder, EntryRecords, HeaderEdit, Record};
use crate::storage::EntryId;

const NODE_ID: u64 = 7;
const SESSION: u64 = 9;
const ENVELOPE_BYTES: usize = 32;
/// Most rounds in which one command may ask for what it lacks.
const MAX_ROUNDS: usize = 1000;

/// What is done between commands.
const SAVE: u8 = 0;
const RESTART: u8 = 1;
/// With a second byte: so many seconds pass.
const WAIT: u8 = 2;
/// With a length of two bytes, and a command without its envelope.
const APPLY: u8 = 3;

struct Member {
    state: State,
    checkpoint: BTreeMap<Vec<u8>, Vec<u8>>,
    log: BTreeMap<EntryId, EntryRecords>,
    index: u64,
    now_ms: u64,
}

impl Member {
    fn apply(&mut self, command: &[u8], envelope: Envelope) {
        let mut payload = BytesMut::from(command);
        envelope.encode(&mut payload);
        let payload = payload.freeze();
        let entry = EntryId { term: 1, index: self.index };
        // A leader looks at what it is asked to propose; what passes there must be applied by everybody.
        let is_readable = check_command(&payload).is_ok();
        if is_readable && let Ok(records) = EntryRecords::parse(payload.clone()) {
            self.log.insert(entry, records);
        }
        for _ in 0..MAX_ROUNDS {
            match self.state.apply_command(entry, self.now_ms, &payload) {
                Ok(applied) => {
                    assert!(is_readable, "what cannot be read was applied");
                    self.index += 1;
                    let mut told = BytesMut::new();
                    applied.outcome.encode(&mut told);
                    let heard = Outcome::decode(&mut Reader::new(&told, "outcome"));
                    assert_eq!(heard.as_ref(), Ok(&applied.outcome));
                    return self.check();
                }
                Err(NotApplied::Malformed(malformed)) => {
                    assert!(!is_readable, "a command that is taken ends its members: {malformed}");
                    return;
                }
                Err(NotApplied::Missing(missing)) => {
                    for block in missing.blocks {
                        let key = Key::Topic(block.topic.epoch, TopicKey::Runs(block.first_seq)).encode();
                        let bytes = self.checkpoint.get(&key).expect("a block that it lacks was saved");
                        let block_of =
                            SealedBlock { first_seq: block.first_seq, bytes: bytes.clone().into() };
                        self.state.supply_block(&block.topic, block_of);
                    }
                    for id in missing.entries {
                        let records = self.log.get(&id).expect("an entry that it lacks was applied");
                        self.state.supply_entry(id, records.clone());
                    }
                }
            }
        }
        panic!("a command never has what it asks for");
    }

    fn check(&self) {
        self.state.check(true).unwrap_or_else(|what| panic!("{what}"));
    }

    fn save(&mut self) {
        let changes = self.state.take_changes();
        for (key, value) in changes.values {
            match value {
                Some(value) => self.checkpoint.insert(key, value),
                None => self.checkpoint.remove(&key),
            };
        }
        self.state.blocks_saved(&changes.saved);
    }

    fn restart(&mut self) {
        self.save();
        let before = self.state.digest();
        self.state = State::default();
        for (key, value) in &self.checkpoint {
            self.state.restore(key, value).expect("what was saved is read");
        }
        self.state.restored();
        assert_eq!(before.value(), self.state.digest().value(), "a restart changed the state");
        self.check();
    }
}

/// A row of commands, each applied as an entry of the log, with checkpoints, restarts and time in between.
pub fn apply_commands(bytes: &[u8]) {
    let mut member = Member {
        state: State::default(),
        checkpoint: BTreeMap::new(),
        log: BTreeMap::new(),
        index: 1,
        now_ms: 1_000_000,
    };
    let envelope = |number| Envelope { node_id: NODE_ID, session: SESSION, number, done_below: number };
    let opened = without_envelope(Draft::open_session());
    member.apply(&opened, envelope(0));
    let mut reader = Reader::new(bytes, "a row of commands");
    let mut number = 0;
    while let Ok(what) = reader.u8() {
        match what {
            SAVE => member.save(),
            RESTART => member.restart(),
            WAIT => member.now_ms += u64::from(reader.u8().unwrap_or(0)) * 1000,
            _ => {
                let length = usize::from(reader.u16().unwrap_or(0)).min(reader.rest().len());
                number += 1;
                member.apply(reader.bytes(length).unwrap_or_default(), envelope(number));
            }
        }
    }
    member.restart();
}

/// Pairs of a checkpoint, in the order of their keys, as of a state whose sum was right.
pub fn restore(bytes: &[u8]) {
    let mut reader = Reader::new(bytes, "a checkpoint");
    let mut pairs = BTreeMap::new();
    let mut pair = || {
        let key_len = usize::from(reader.u8()?);
        let key = reader.bytes(key_len)?;
        let value_len = usize::from(reader.u16()?).min(reader.rest().len());
        Ok::<_, crate::codec::Malformed>((key, reader.bytes(value_len)?))
    };
    while let Ok((key, value)) = pair() {
        pairs.insert(key, value);
    }
    let mut state = State::default();
    if pairs.into_iter().all(|(key, value)| state.restore(key, value).is_ok()) {
        state.restored();
        state.digest();
        state.take_changes();
    }
}

fn without_envelope(draft: Draft) -> Vec<u8> {
    let sealed = draft.seal(Envelope::default());
    sealed[..sealed.len() - ENVELOPE_BYTES].to_vec()
}

fn row(drafts: Vec<Draft>, between: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for draft in drafts {
        let command = without_envelope(draft);
        out.put_u8(APPLY);
        out.put_u16_le(command.len() as u16);
        out.put_slice(&command);
        out.put_slice(between);
    }
    out
}

fn append<'a>(topic: &'a str, key: Option<&'a str>) -> Append<'a> {
    let create = Create::With(TopicConfig::default());
    Append { topic, create, expect_head_seq: None, idempotency_key: key }
}

fn records(tag: &'static str) -> [Record<'static>; 3] {
    let record = Record { tag: Some(tag), node: Some("n"), data: "{\"n\":1}", ..Record::default() };
    [record, Record { meta: Some("{}"), key: Some("k"), ..record }, Record { tag: None, ..record }]
}

fn stored(record: &Record<'_>) -> Bytes {
    let mut builder = EntryBuilder::new(0, 1, 64);
    builder.push(record);
    let entry = EntryRecords::parse(builder.finish().freeze()).expect("an entry");
    Bytes::copy_from_slice(entry.record(0).expect("a record"))
}

fn local() -> Vec<Draft> {
    let config = TopicConfig { topic_type: TopicType::Queue, priority: Some(-7), ..TopicConfig::default() };
    let router = RouterConfig { start: Start::Earliest, ..RouterConfig::local("a", "b") };
    let put = PutRouter { name: "a->b", config: router, is_start_given: true };
    let part = AppendPart { append: append("a", None), record_count: 1 };
    let queue = AppendPart { append: append("q", Some("key")), record_count: 2 };
    let late = Some(LateMatch { seen_seq: 3, tags: TagMatch::Glob("x".to_owned()) });
    let listed = Some(Listed { epoch: 1, ranges: vec![1..=1, 3..=3], late });
    vec![
        Draft::append(&append("a", Some("first")), records("x").into_iter(), 0),
        Draft::put_topic("q", &config),
        Draft::put_router(&put),
        Draft::append_many(&[part, queue], records("y").into_iter(), 0),
        Draft::route(&[RoutePart { generation: 3, from_seq: 0, to_seq: 4, picked: Some(vec![2..=3]) }]),
        Draft::append(&append("a", Some("first")), records("x").into_iter(), 0),
        Draft::delete_records(&DeleteRecords { topic: "a", before_seq: None, listed }),
        Draft::delete_records(&DeleteRecords { topic: "a", before_seq: Some(4), listed: None }),
        Draft::pause_router("a->b", true),
        Draft::expire(),
        Draft::delete_topic("a", false),
        Draft::delete_router("a->b"),
    ]
}

fn mirror() -> Vec<Draft> {
    let urls = vec!["http://b1:4000".to_owned()];
    let remote = Remote { urls, token: None, relays: Some(Relays::All) };
    let filter = Some(Filter::parse(r#"["tag","Eq","x"]"#).expect("a filter"));
    let config = RouterConfig { remote: Some(remote), filter, ..RouterConfig::local("m*", "*") };
    let instance = |cluster_id, topic: &str| {
        let (cluster, topic) = ("east".into(), topic.into());
        Instance { cluster_id, cluster, topic, epoch: 4 }
    };
    let of = |instance, seq, count| CopyItem::Records {
        instance,
        origin_seq: seq,
        origin_ts_ms: 77,
        source_seq: seq,
        count,
    };
    let part = CopyPart {
        source: "m",
        source_epoch: 4,
        source_type: TopicType::Log,
        source_instance: 0,
        dest: "m",
        dest_epoch: None,
        from_seq: None,
        start_seq: Some(0),
        to_seq: 9,
        to_entry: Some(EntryId { term: 1, index: 8 }),
        lost: vec![1..=1],
        items: vec![of(0, 2, 2), CopyItem::Gap { instance: 1, from_seq: 1, to_seq: 3 }, of(1, 7, 1)],
    };
    let copy = |parts: Vec<CopyPart<'static>>| {
        let instances = vec![instance(5, "m"), instance(6, "m")];
        let (generation, cluster_id, next_epoch) = (1, 5, 9);
        let (gone, held) = (vec!["mx"], vec![("m", 9)]);
        let stored = records("x").map(|record| stored(&record));
        let items = parts.iter().flat_map(|part| &part.items);
        let counts = items.map(|item| match item {
            CopyItem::Records { count, .. } => *count as usize,
            CopyItem::Gap { .. } => 0,
        });
        let count = counts.sum();
        let edit = HeaderEdit { drops_tag: true, default_node: Some("east"), ..HeaderEdit::default() };
        let copied: Vec<_> = stored.iter().take(count).map(|stored| (&stored[..], edit)).collect();
        let copy = Copy { generation, cluster_id, next_epoch, instances, parts, gone, held };
        Draft::copy(&copy, copied.into_iter()).expect("a copy")
    };
    let again = CopyPart { dest_epoch: Some(2), from_seq: Some(9), to_seq: 20, ..part.clone() };
    let none = CopyPart { items: Vec::new(), lost: vec![10..=12], ..again.clone() };
    let limits = ClusterLimits { max_topics: 9, max_total_bytes: 1 << 20, ..ClusterLimits::default() };
    let token = Token::sealed(vec![1; 40]);
    vec![
        Draft::set_cluster(&Cluster { id: 7, name: "west".to_owned() }),
        Draft::set_limits(&limits),
        Draft::put_router(&PutRouter { name: "east", config, is_start_given: false }),
        copy(vec![part]),
        copy(vec![again]),
        copy(vec![none]),
        Draft::skip_record("east", "m", 21),
        Draft::seal_token(&SealToken { generation: 1, config_digest: 5, token }),
        Draft::delete_records(&DeleteRecords { topic: "m", before_seq: Some(2), listed: None }),
        copy(Vec::new()),
    ]
}

/// Rows of commands that are applied.
pub fn rows_of_commands() -> Vec<Vec<u8>> {
    let rows = [&[][..], &[SAVE], &[RESTART, WAIT, 200]];
    rows.iter().flat_map(|between| [row(local(), between), row(mirror(), between)]).collect()
}

/// Checkpoints that are read.
pub fn checkpoints() -> Vec<Vec<u8>> {
    let written = |drafts: Vec<Draft>| {
        let mut state = State::default();
        let opened = std::iter::once(Draft::open_session());
        for (draft, index) in opened.chain(drafts).zip(1u64..) {
            let envelope = Envelope { node_id: NODE_ID, session: SESSION, number: index, done_below: 0 };
            state
                .apply_command(EntryId { term: 1, index }, 1_000_000, &draft.seal(envelope))
                .expect("everything it needs is in memory");
        }
        let mut out = Vec::new();
        for (key, value) in state.take_changes().values {
            let Some(value) = value else { continue };
            out.put_u8(key.len() as u8);
            out.put_slice(&key);
            out.put_u16_le(value.len() as u16);
            out.put_slice(&value);
        }
        out
    };
    let mut local = local();
    local.truncate(6);
    vec![written(local), written(mirror())]
}
