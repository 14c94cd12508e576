//! A member without its log and network: a state, the checkpoint that it saves, and the entries it has applied.

use std::cell::RefCell;
use std::collections::BTreeMap;

use antiphon::record::EntryRecords;
use antiphon::state::{
    Changes, Draft, Envelope, Key, NotApplied, Outcome, SealedBlock, SharedTopic, State, TopicKey,
};
use antiphon::storage::EntryId;
use bytes::Bytes;

/// With more sealed blocks than these their runs are decoded only after every so many commands.
const ALWAYS_DECODED_BLOCKS: usize = 1;
const DECODED_EVERY: u64 = 32;

/// A client of a state that needs neither checkpoint nor log: each draft is the next command of one session.
pub struct Client {
    pub state: State,
    pub now_ms: u64,
    index: u64,
}

impl Client {
    pub fn new(now_ms: u64) -> Self {
        let mut client = Client { state: State::default(), now_ms, index: 0 };
        client.apply(Draft::open_session());
        client
    }

    pub fn apply(&mut self, draft: Draft) -> Outcome {
        self.index += 1;
        let (index, now_ms) = (self.index, self.now_ms);
        let command = draft.seal(Envelope { node_id: 1, session: 9, number: index, done_below: index });
        let applied = self.state.apply_command(EntryId { term: 1, index }, now_ms, &command);
        check(&self.state, index);
        applied.expect("the command is readable").outcome
    }
}

#[derive(Default)]
pub struct Member {
    pub state: State,
    pub checkpoint: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Records of every entry applied.
    pub log: BTreeMap<EntryId, EntryRecords>,
    /// The floors of each instance when they were last looked at.
    pub floors: RefCell<BTreeMap<u64, (u64, u64)>>,
}

impl Member {
    pub fn apply(&mut self, index: u64, stamp_ms: u64, command: &Bytes) -> Outcome {
        let entry = EntryId { term: 1 + index / 100, index };
        self.log.insert(entry, EntryRecords::parse(command.clone()).expect("own entries can be read"));
        loop {
            match self.state.apply_command(entry, stamp_ms, command) {
                Ok(applied) => {
                    check(&self.state, index);
                    return applied.outcome;
                }
                Err(NotApplied::Missing(missing)) => {
                    assert!(!missing.blocks.is_empty() || !missing.entries.is_empty());
                    for block in missing.blocks {
                        let stored = self.stored_block(&block.topic, block.first_seq);
                        self.state.supply_block(&block.topic, stored);
                    }
                    for entry in missing.entries {
                        self.state.supply_entry(entry, self.log[&entry].clone());
                    }
                }
                Err(NotApplied::Malformed(error)) => panic!("own commands can be read: {error}"),
            }
        }
    }

    pub fn save(&mut self) {
        let Changes { values, saved, .. } = self.state.take_changes();
        for (key, value) in values {
            match value {
                Some(value) => self.checkpoint.insert(key, value),
                None => self.checkpoint.remove(&key),
            };
        }
        self.state.blocks_saved(&saved);
        check(&self.state, 0);
    }

    pub fn restart(&mut self) {
        self.save();
        self.state = State::default();
        for (key, value) in &self.checkpoint {
            self.state.restore(key, value).expect("own checkpoint can be read");
        }
        self.state.restored();
        check(&self.state, 0);
    }

    pub fn stored_block(&self, topic: &SharedTopic, first_seq: u64) -> SealedBlock {
        let key = Key::Topic(topic.epoch, TopicKey::Runs(first_seq));
        SealedBlock { first_seq, bytes: self.checkpoint[&key.encode()].clone().into() }
    }
}

/// What must hold between two commands does.
pub fn check(state: &State, index: u64) {
    let topics = state.catalog().page("", None, usize::MAX);
    let is_runs = |key: &TopicKey| matches!(key, TopicKey::Runs(_));
    let blocks: usize = topics.iter().map(|shared| shared.read().stored_keys().filter(is_runs).count()).sum();
    let decodes =
        blocks - topics.len() <= ALWAYS_DECODED_BLOCKS || index.is_multiple_of(DECODED_EVERY + blocks as u64);
    state.check(decodes).unwrap_or_else(|error| panic!("after entry {index}: {error}"));
}
