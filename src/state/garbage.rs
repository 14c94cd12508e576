//! What deleted topics and retention leave behind in the checkpoint.
//!
//! Deleting a topic must not take longer the more it held, so applying it only takes the name away, and the
//! next checkpoint only its head. The blocks stay, as garbage that nothing leads to, and are cleared away
//! in the background, some at a time: a block is read, its key deleted on disk, and only then are its entries
//! released. So it is with the blocks that retention gave up unread. A kill in between leaves blocks without
//! a head, or below its floor, which the next start finds and hands back; their entries are not counted live
//! then, so those have only to be deleted.
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::catalog::SharedTopic;
use super::checkpoint_form::Key;
use super::run::SealedBlock;
use super::seq_set::SeqSet;
use super::topic::TopicKey;
use crate::storage::{Change, Checkpoint, LiveEntries};

/// Blocks that are cleared away together: 1 MiB of runs at most, one write to the checkpoint.
const BLOCKS_PER_STEP: usize = 256;

/// Blocks one after the other of one topic that were given up unread.
#[derive(Debug, Clone)]
pub struct EvictedBlocks {
    pub epoch: u64,
    pub first_seqs: VecDeque<u64>,
    /// Runs that end below this seq have released their entries already.
    pub live_from_seq: u64,
    /// What of them had been removed before.
    pub removed: SeqSet,
}

/// Deleted topics whose blocks the checkpoint still holds.
#[derive(Default)]
pub struct Garbage {
    /// Found at the start.
    orphans: Vec<Key>,
    topics: VecDeque<Arc<SharedTopic>>,
    /// Blocks of topics that were taken up.
    blocks: VecDeque<(Arc<SharedTopic>, TopicKey)>,
    evicted: VecDeque<EvictedBlocks>,
}

impl Garbage {
    pub fn of_orphans(orphans: Vec<Key>) -> Self {
        Self { orphans, ..Self::default() }
    }

    /// Takes in topics that the checkpoint on disk no longer has, and blocks that are below the floors there.
    pub fn add(&mut self, deleted: Vec<Arc<SharedTopic>>, evicted: Vec<EvictedBlocks>) {
        self.topics.extend(deleted);
        self.evicted.extend(evicted);
    }

    pub fn is_empty(&self) -> bool {
        self.orphans.is_empty() && self.topics.is_empty() && self.blocks.is_empty() && self.evicted.is_empty()
    }

    /// Forgets everything, as the checkpoint did.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Clears away some blocks; blocks on the disk. After an error the same ones can be tried again.
    pub fn step(&mut self, checkpoint: &dyn Checkpoint, live: &LiveEntries) -> io::Result<()> {
        while self.blocks.len() < BLOCKS_PER_STEP
            && let Some(shared) = self.topics.pop_front()
        {
            let keys = shared.read().stored_keys().filter(|key| *key != TopicKey::Head).collect::<Vec<_>>();
            self.blocks.extend(keys.into_iter().map(|key| (shared.clone(), key)));
        }
        let mut deletions: Vec<Change> = Vec::new();
        let mut released: Vec<u64> = Vec::new();
        for (shared, part) in self.blocks.iter().take(BLOCKS_PER_STEP) {
            let key = Key::Topic(shared.epoch, *part).encode();
            if let TopicKey::Runs(first_seq) = *part {
                // What is in memory may be newer than what is stored, or was never stored.
                let in_memory = shared.read().block_in_memory(first_seq);
                let block = match in_memory {
                    Some(block) => Some(block),
                    None => checkpoint.get(&key)?.map(|bytes| SealedBlock { first_seq, bytes: bytes.into() }),
                };
                let topic = shared.read();
                let (from_seq, removed) = (topic.earliest_seq, topic.removed());
                for index in block.iter().flat_map(|block| block.entry_indexes_from(from_seq, removed)) {
                    released.push(index?);
                }
            }
            deletions.push((key, None));
        }
        let topic_block_count = deletions.len();
        let blocks = self.evicted.iter().flat_map(|it| it.first_seqs.iter().map(move |first| (it, *first)));
        for (evicted, first_seq) in blocks.take(BLOCKS_PER_STEP - topic_block_count) {
            let key = Key::Topic(evicted.epoch, TopicKey::Runs(first_seq)).encode();
            let stored = checkpoint.get(&key)?;
            let block = stored.map(|bytes| SealedBlock { first_seq, bytes: bytes.into() });
            let EvictedBlocks { live_from_seq, removed, .. } = evicted;
            for index in block.iter().flat_map(|block| block.entry_indexes_from(*live_from_seq, removed)) {
                released.push(index?);
            }
            deletions.push((key, None));
        }
        let block_count = deletions.len();
        let orphan_count = self.orphans.len().min(BLOCKS_PER_STEP - block_count);
        let orphans_left = self.orphans.len() - orphan_count;
        deletions.extend(self.orphans[orphans_left..].iter().map(|key| (key.encode(), None)));
        checkpoint.write(deletions)?;
        self.blocks.drain(..topic_block_count);
        for _ in topic_block_count..block_count {
            let Some(evicted) = self.evicted.front_mut() else { break };
            evicted.first_seqs.pop_front();
            if evicted.first_seqs.is_empty() {
                self.evicted.pop_front();
            }
        }
        self.orphans.truncate(orphans_left);
        live.release_all(&released);
        Ok(())
    }
}
