//! One topic instance: its configuration, floors, counters, runs and remembered keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::dedupe::{Dedupe, Remembered};
use super::outcome::Appended;
use super::run::{OpenBlock, Run, SealedBlock, runs};
use super::topic_config::TopicConfig;
use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::digest::Digest;
use crate::storage::EntryId;

/// Where the runs behind a cursor are.
pub enum Located {
    /// Nothing above the cursor.
    AtHead,
    /// Runs above the cursor, in order; not necessarily all there are.
    Runs(Vec<Run>),
    /// The block that starts at this seq is not in memory.
    Cold { block_first_seq: u64 },
}

/// One life of a topic name.
#[derive(Debug)]
pub struct Topic {
    pub name: Arc<str>,
    pub epoch: u64,
    pub config: TopicConfig,
    /// Highest seq assigned; 0 if none.
    pub head_seq: u64,
    /// First live seq; `head_seq + 1` if none.
    pub earliest_seq: u64,
    /// 1 above the highest seq that was taken without being asked for.
    pub evict_floor: u64,
    /// Live records and the bytes they count for.
    pub count: u64,
    pub bytes: u64,
    pub last_write_ts_ms: Option<u64>,
    digest: Digest,
    dedupe: Dedupe,
    open: OpenBlock,
    /// First seq of every sealed block.
    sealed_first_seqs: Vec<u64>,
    /// Sealed blocks that no checkpoint holds yet.
    unsaved: BTreeMap<u64, Bytes>,
    is_dirty: bool,
}

impl Topic {
    pub fn new(name: Arc<str>, epoch: u64, config: TopicConfig) -> Self {
        let mut topic = Topic {
            name,
            epoch,
            config,
            head_seq: 0,
            earliest_seq: 1,
            evict_floor: 1,
            count: 0,
            bytes: 0,
            last_write_ts_ms: None,
            digest: Digest::default(),
            dedupe: Dedupe::default(),
            open: OpenBlock::new(1),
            sealed_first_seqs: Vec::new(),
            unsaved: BTreeMap::new(),
            is_dirty: true,
        };
        topic.digest.add(epoch);
        topic.digest_config();
        topic
    }

    fn digest_config(&mut self) {
        let mut bytes = BytesMut::new();
        self.config.encode(&mut bytes);
        self.digest.add_bytes(&bytes);
    }

    /// Takes a new configuration; `false` if it is the one it has.
    pub fn reconfigure(&mut self, config: TopicConfig) -> bool {
        if self.config == config {
            return false;
        }
        self.config = config;
        self.digest_config();
        self.is_dirty = true;
        true
    }

    /// What a write with `key` at `now_ms` repeats, if it does.
    pub fn remembered(&mut self, key: &str, now_ms: u64) -> Option<Remembered> {
        self.dedupe.expire(now_ms, self.config.idempotency_window_ms);
        self.is_dirty = true;
        self.dedupe.get(key).copied()
    }

    /// Appends the records of `entry` from `first_position` on; `sizes_bytes` has what each counts for. Also
    /// says in how many runs they were coded: each holds the entry live.
    pub fn append(
        &mut self,
        entry: EntryId,
        first_position: u32,
        ts_ms: u64,
        sizes_bytes: &[u32],
        idempotency_key: Option<&str>,
    ) -> (Appended, u64) {
        let (first_seq, count) = (self.head_seq + 1, sizes_bytes.len() as u64);
        let bytes: u64 = sizes_bytes.iter().map(|size| *size as u64).sum();
        let (mut done, mut run_count) = (0, 0);
        while done < sizes_bytes.len() {
            let run = Run {
                first_seq: first_seq + done as u64,
                count: count - done as u64,
                ts_ms,
                entry,
                first_position: first_position + done as u32,
            };
            match self.open.push(&run, &sizes_bytes[done..]) {
                0 => self.seal_open_block(run.first_seq),
                taken => (done, run_count) = (done + taken, run_count + 1),
            }
        }
        self.head_seq += count;
        self.count += count;
        self.bytes += bytes;
        self.last_write_ts_ms = Some(ts_ms);
        for value in [first_seq, count, ts_ms, entry.term, entry.index, first_position as u64, bytes] {
            self.digest.add(value);
        }
        if let Some(key) = idempotency_key
            && self.config.idempotency_window_ms > 0
        {
            self.digest.add_bytes(key.as_bytes());
            self.dedupe.insert(key, Remembered { ts_ms, first_seq, count, head_seq: self.head_seq });
        }
        self.is_dirty = true;
        let head_seq = self.head_seq;
        (Appended { first_seq, count, head_seq, created: false, deduped: false }, run_count)
    }

    fn seal_open_block(&mut self, next_seq: u64) {
        let full = std::mem::replace(&mut self.open, OpenBlock::new(next_seq));
        self.sealed_first_seqs.push(full.first_seq());
        self.unsaved.insert(full.first_seq(), Bytes::copy_from_slice(full.bytes()));
    }

    /// Finds runs above `cursor`, at most one block of them. `block` is a sealed block that the caller
    /// has fetched after an earlier call said that it was missing.
    pub fn locate(&self, cursor: u64, fetched: Option<&SealedBlock>) -> Result<Located, Malformed> {
        if cursor >= self.head_seq {
            return Ok(Located::AtHead);
        }
        let wanted = cursor + 1;
        let after = |iter: super::run::RunIter<'_>| -> Result<Vec<Run>, Malformed> {
            iter.filter_map(|run| run.map(|run| run.after(cursor)).transpose()).collect()
        };
        if wanted >= self.open.first_seq() {
            return Ok(Located::Runs(after(self.open.runs())?));
        }
        let at = self.sealed_first_seqs.partition_point(|first| *first <= wanted);
        let first = self.sealed_first_seqs[at.saturating_sub(1)];
        if let Some(bytes) = self.unsaved.get(&first) {
            return Ok(Located::Runs(after(runs(first, bytes))?));
        }
        match fetched {
            Some(block) if block.first_seq == first => Ok(Located::Runs(after(runs(first, &block.bytes))?)),
            _ => Ok(Located::Cold { block_first_seq: first }),
        }
    }

    pub fn digest(&self, digest: &mut Digest) {
        digest.add_bytes(self.name.as_bytes());
        for value in [
            self.epoch,
            self.digest.value(),
            self.head_seq,
            self.earliest_seq,
            self.evict_floor,
            self.count,
            self.bytes,
            self.dedupe.floor(),
            self.dedupe.len() as u64,
        ] {
            digest.add(value);
        }
    }

    /// Whether anything changed since [`Topic::take_changes`].
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Hands everything that changed since the last call to `store`.
    pub fn take_changes(&mut self, store: &mut impl FnMut(TopicKey, Option<Vec<u8>>)) {
        self.is_dirty = false;
        store(TopicKey::Head, Some(self.encode_head()));
        for (first_seq, bytes) in &self.unsaved {
            store(TopicKey::Runs(*first_seq), Some(bytes.to_vec()));
        }
        store(TopicKey::Runs(self.open.first_seq()), Some(self.open.bytes().to_vec()));
        self.dedupe.take_changes(|first, bytes| store(TopicKey::Keys(first), bytes));
    }

    /// A checkpoint with every sealed block up to `last_seq` is on disk: they may leave memory.
    pub fn saved_up_to(&mut self, last_seq: u64) {
        let open_first_seq = self.open.first_seq();
        let sealed = &self.sealed_first_seqs;
        self.unsaved.retain(|first, _| {
            let next = sealed.partition_point(|other| other <= first);
            let end = sealed.get(next).copied().unwrap_or(open_first_seq);
            end - 1 > last_seq
        });
    }

    /// Every key under which the checkpoint holds something of this topic.
    pub fn stored_keys(&self) -> impl Iterator<Item = TopicKey> {
        std::iter::once(TopicKey::Head)
            .chain(self.sealed_first_seqs.iter().map(|first| TopicKey::Runs(*first)))
            .chain(std::iter::once(TopicKey::Runs(self.open.first_seq())))
            .chain(self.dedupe.stored_blocks().map(TopicKey::Keys))
    }

    /// A block of runs that is in memory.
    pub fn block_in_memory(&self, first_seq: u64) -> Option<SealedBlock> {
        let bytes = match self.unsaved.get(&first_seq) {
            Some(bytes) => bytes.clone(),
            None if first_seq == self.open.first_seq() => Bytes::copy_from_slice(self.open.bytes()),
            None => return None,
        };
        Some(SealedBlock { first_seq, bytes })
    }

    fn encode_head(&self) -> Vec<u8> {
        let mut out = BytesMut::with_capacity(128 + self.name.len());
        out.put_u8(1);
        put_blob(&mut out, self.name.as_bytes());
        self.config.encode(&mut out);
        for value in [
            self.head_seq,
            self.earliest_seq,
            self.evict_floor,
            self.count,
            self.bytes,
            self.last_write_ts_ms.map_or(0, |ts| ts + 1),
            self.open.first_seq(),
            self.dedupe.floor(),
        ] {
            put_varint(&mut out, value);
        }
        out.put_u64_le(self.digest.value());
        out.to_vec()
    }

    /// Rebuilds a topic from its stored head; blocks follow through [`Topic::restore_runs`] and
    /// [`Topic::restore_keys`], in order.
    pub fn restore_head(epoch: u64, bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "topic");
        if reader.u8()? != 1 {
            return Err(Malformed("topic: written by a newer version"));
        }
        let name: Arc<str> = reader.text()?.into();
        let mut topic = Topic::new(name, epoch, TopicConfig::decode(&mut reader)?);
        topic.head_seq = reader.varint()?;
        topic.earliest_seq = reader.varint()?;
        topic.evict_floor = reader.varint()?;
        topic.count = reader.varint()?;
        topic.bytes = reader.varint()?;
        topic.last_write_ts_ms = reader.varint()?.checked_sub(1);
        topic.open = OpenBlock::new(reader.varint()?);
        let dedupe_floor = reader.varint()?;
        topic.digest = Digest::from_value(reader.u64()?);
        reader.finish()?;
        topic.dedupe.set_floor(dedupe_floor);
        topic.is_dirty = false;
        Ok(topic)
    }

    pub fn restore_runs(&mut self, first_seq: u64, bytes: &[u8]) -> Result<(), Malformed> {
        if first_seq == self.open.first_seq() {
            self.open = OpenBlock::restore(first_seq, bytes)?;
        } else {
            self.sealed_first_seqs.push(first_seq);
        }
        Ok(())
    }

    pub fn restore_keys(&mut self, first: u64, bytes: &[u8]) -> Result<(), Malformed> {
        let floor = self.dedupe.floor();
        self.dedupe.restore_block(first, bytes)?;
        self.dedupe.set_floor(floor);
        Ok(())
    }
}

/// The stored parts of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicKey {
    Head,
    /// The block of runs that starts at this seq.
    Runs(u64),
    /// The block of idempotency keys that starts at this ordinal.
    Keys(u64),
}
