//! The state as a checkpoint holds it: what changed since the last one, taking it in again, and its digest.
//!
//! A checkpoint is one exact point between two entries. Only what changed is written, so the state keeps count of
//! what is *dirty*; the digest is kept up by the same marks, so neither looks at what has not changed.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::checkpoint_form::Key;
use super::command::Cluster;
use super::quota::ClusterLimits;
use super::retention::Freed;
use super::session::Session;
use super::topic::{Topic, TopicKey};
use super::{SharedTopic, State, put_entry_id, read_entry_id};
use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::digest::Digest;
use crate::storage::Change;

/// In version 3 a router knew neither what its remote may bring nor sealed tokens, no topic had a sum of its seqs, and
/// idempotency keys were kept as text.
const MACHINE_VERSION: u8 = 5;

/// What changed since the last checkpoint, and what may be done once that is on disk.
#[derive(Default)]
pub struct Changes {
    pub values: Vec<Change>,
    /// The seq up to which the blocks of a topic will be on disk.
    pub saved: Vec<(Arc<SharedTopic>, u64)>,
    /// Topics that the checkpoint will no longer have. Their blocks are left to [`Garbage`].
    pub deleted: Vec<Arc<SharedTopic>>,
    /// What retention gave up: entries to release, and blocks that are left to [`Garbage`].
    pub freed: Freed,
}

impl State {
    /// Digest of the whole state: equal on all members that have applied the same entries. Looks only at the
    /// topics that changed since the last checkpoint was cut.
    pub fn digest(&mut self) -> Digest {
        for topic in self.deleted.iter().chain(self.dirty_topics.values()) {
            sum_up(&mut self.topics_digest, topic);
        }
        let mut digest = Digest::default();
        let ClusterLimits { max_topics, max_total_bytes, max_routers, max_idempotency_keys } = self.limits;
        let applied_index = self.applied.map_or(0, |applied| applied.index);
        let limits = [max_topics, max_total_bytes, max_routers, max_idempotency_keys];
        for value in [self.time_ms, self.next_epoch, applied_index].into_iter().chain(limits) {
            digest.add(value);
        }
        if let Some(Cluster { id, name }) = &self.cluster {
            digest.add_bytes(&id.to_le_bytes());
            digest.add_bytes(name.as_bytes());
        }
        digest.add(self.routers.digest());
        for (node_id, session) in &self.sessions {
            digest.add(*node_id);
            session.digest(&mut digest);
        }
        digest.add(self.topics_digest);
        digest
    }

    /// Everything that changed since the last call, as the difference between two checkpoints.
    pub fn take_changes(&mut self) -> Changes {
        let deleted = std::mem::take(&mut self.deleted);
        deleted.iter().for_each(|topic| sum_up(&mut self.topics_digest, topic));
        let head = |topic: &Arc<SharedTopic>| (Key::Topic(topic.epoch, TopicKey::Head).encode(), None);
        let mut changes: Vec<Change> = deleted.iter().map(head).collect();
        for node_id in std::mem::take(&mut self.dirty_sessions) {
            let parts = self.sessions.get(&node_id).map_or(Vec::new(), Session::encode);
            let stored = self.session_parts.insert(node_id, parts.len() as u64).unwrap_or(0);
            for stale in parts.len() as u64..stored {
                changes.push((Key::Session(node_id, stale).encode(), None));
            }
            for (ordinal, part) in parts.into_iter().enumerate() {
                changes.push((Key::Session(node_id, ordinal as u64).encode(), Some(part)));
            }
        }
        let mut saved = Vec::new();
        for (epoch, shared) in std::mem::take(&mut self.dirty_topics) {
            sum_up(&mut self.topics_digest, &shared);
            let mut topic = shared.write();
            topic.take_changes(&mut |key, value| changes.push((Key::Topic(epoch, key).encode(), value)));
            saved.push((shared.clone(), topic.head_seq));
        }
        let mut freed = std::mem::take(&mut self.freed);
        changes.extend(freed.blocks.drain(..).map(|key| (key.encode(), None)));
        self.routers.take_changes(&mut changes);
        changes.push((Key::Machine.encode(), Some(self.encode_machine())));
        Changes { values: changes, saved, deleted, freed }
    }

    fn encode_machine(&self) -> Vec<u8> {
        let mut out = BytesMut::new();
        out.put_u8(MACHINE_VERSION);
        put_varint(&mut out, self.time_ms);
        put_varint(&mut out, self.next_epoch);
        self.limits.encode(&mut out);
        out.put_u8(self.cluster.is_some() as u8);
        if let Some(cluster) = &self.cluster {
            cluster.encode(&mut out);
        }
        put_entry_id(&mut out, self.applied);
        put_entry_id(&mut out, self.membership.entry);
        put_blob(&mut out, &self.membership.bytes);
        out.to_vec()
    }

    /// Takes in one value of a checkpoint. Values come in key order.
    pub fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
        match Key::decode(key)? {
            Key::Machine => {
                let mut reader = Reader::new(value, "checkpoint head");
                let version = reader.u8()?;
                if version != MACHINE_VERSION {
                    return Err(Malformed("checkpoint head: written by another version"));
                }
                self.time_ms = reader.varint()?;
                self.next_epoch = reader.varint()?;
                self.limits = ClusterLimits::decode(&mut reader)?;
                self.cluster = if reader.bool()? { Some(Cluster::decode(&mut reader)?) } else { None };
                self.applied = read_entry_id(&mut reader)?;
                self.membership.entry = read_entry_id(&mut reader)?;
                self.membership.bytes = Bytes::copy_from_slice(reader.blob()?);
                reader.finish()
            }
            Key::Session(node_id, ordinal) => {
                let parts = self.session_parts.entry(node_id).or_default();
                if *parts != ordinal {
                    return Err(Malformed("checkpoint: the parts of a session are not all there"));
                }
                *parts += 1;
                self.sessions.entry(node_id).or_default().restore_chunk(ordinal, value)
            }
            Key::Topic(epoch, TopicKey::Head) => {
                let topic = Topic::restore_head(epoch, value, self.block_bytes)?;
                let shared = self.catalog.insert(topic);
                self.dirty_topics.insert(epoch, shared);
                Ok(())
            }
            Key::Router(generation, part) => self.routers.restore(generation, part, value),
            Key::Topic(epoch, part) => {
                // While a checkpoint is read, `dirty_topics` is the index by epoch.
                let Some(shared) = self.dirty_topics.get(&epoch) else {
                    // Its topic is deleted, and the process ended before all blocks were.
                    self.orphans.push(Key::Topic(epoch, part));
                    return Ok(());
                };
                match part {
                    TopicKey::Removed(number) => shared.write().restore_removed(number, value),
                    TopicKey::Runs(first_seq) => {
                        let each_live = |index| self.live.add(index, 1);
                        if !shared.write().restore_runs(first_seq, value, each_live)? {
                            self.orphans.push(Key::Topic(epoch, part));
                        }
                        Ok(())
                    }
                    TopicKey::Keys(first) => shared.write().restore_keys(first, value),
                    TopicKey::Head => Ok(()),
                    TopicKey::Origin(_)
                    | TopicKey::Taken(..)
                    | TopicKey::Reported(..)
                    | TopicKey::Foreign(_)
                    | TopicKey::OwnSum
                    | TopicKey::Gap(_) => shared.write().origins.restore(part, value),
                }
            }
        }
    }

    /// Ends a restore. Gives the keys of blocks whose topic is gone, or all of whose records are: nothing
    /// names them any more.
    pub fn restored(&mut self) -> Vec<Key> {
        for shared in std::mem::take(&mut self.dirty_topics).values() {
            sum_up(&mut self.topics_digest, shared);
            self.due.update(shared, None, shared.read().due_ms());
        }
        self.routers.restored();
        std::mem::take(&mut self.orphans)
    }

    /// Forgets everything: the start of a rebuild.
    pub fn reset(&mut self) {
        self.catalog.clear();
        self.live.clear();
        self.routers.reset();
        let (catalog, live) = (self.catalog.clone(), self.live.clone());
        let routers = std::mem::take(&mut self.routers);
        *self = State { catalog, live, routers, block_bytes: self.block_bytes, ..State::default() };
    }
}

/// Brings the sum of the digests of topics up to date with one of them. Sums do not depend on an order, so what
/// they cost does not depend on how many topics there are.
fn sum_up(sum: &mut u64, topic: &SharedTopic) {
    let (before, now) = topic.summed_digest();
    *sum = sum.wrapping_sub(before).wrapping_add(now);
}
