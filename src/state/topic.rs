//! One topic instance: its configuration, floors, counters, runs and remembered keys.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::blocks::{Blocks, Extent, Located, TimePlace};
use super::checkpoint_form::Key;
use super::dedupe::{Dedupe, Remembered, digest_of};
use super::origins::{Gap, Instance, Origins};
use super::outcome::Appended;
use super::retention::{Floors, Freed};
use super::run::{BlockBytes, Run, RunOrigin, SealedBlock};
use super::seq_set::SeqSet;
use super::topic_config::TopicConfig;
use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::digest::Digest;
use crate::limits::{MAX_KEYS_FORGOTTEN_PER_APPEND, SEQ_LIMIT};
use crate::storage::EntryId;

const HEAD_VERSION: u8 = 2;

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
    /// What retention has taken.
    pub floors: Floors,
    /// Live records and the bytes they count for.
    pub count: u64,
    pub bytes: u64,
    pub last_write_ts_ms: Option<u64>,
    pub(super) digest: Digest,
    dedupe: Dedupe,
    pub(super) blocks: Blocks,
    /// Where copies come from.
    pub origins: Origins,
    /// How often something was removed one by one since the process began: who looked before is behind.
    pub removal_count: u64,
    is_dirty: bool,
}

impl Topic {
    pub fn new(name: Arc<str>, epoch: u64, config: TopicConfig) -> Self {
        Self::with_blocks(name, epoch, config, BlockBytes::default())
    }

    /// A new topic with blocks of runs of that length.
    pub(super) fn with_blocks(
        name: Arc<str>,
        epoch: u64,
        config: TopicConfig,
        block_bytes: BlockBytes,
    ) -> Self {
        let mut topic = Topic {
            name,
            epoch,
            config,
            head_seq: 0,
            earliest_seq: 1,
            floors: Floors::default(),
            count: 0,
            bytes: 0,
            last_write_ts_ms: None,
            digest: Digest::default(),
            dedupe: Dedupe::default(),
            blocks: Blocks::new(1, block_bytes),
            origins: Origins::default(),
            removal_count: 0,
            is_dirty: true,
        };
        topic.digest.add(epoch);
        topic.digest_config();
        topic
    }

    pub(super) fn set_dirty(&mut self) {
        self.is_dirty = true;
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

    /// The append that a write with `key` at `now_ms` repeats, if it does.
    pub fn remembered(&mut self, key: &str, now_ms: u64) -> Option<Remembered> {
        self.forget_keys(now_ms, MAX_KEYS_FORGOTTEN_PER_APPEND);
        self.dedupe.get(&digest_of(self.epoch, key), now_ms, self.config.idempotency_window_ms)
    }

    /// Forgets at most `most` of the keys whose window is over at `now_ms`; says how many.
    pub(super) fn forget_keys(&mut self, now_ms: u64, most: u64) -> u64 {
        let forgotten = self.dedupe.forget_over(now_ms, self.config.idempotency_window_ms, most);
        self.is_dirty |= forgotten > 0;
        forgotten
    }

    /// Idempotency keys that are remembered.
    pub fn key_count(&self) -> u64 {
        self.dedupe.len()
    }

    /// When something in the topic is to be taken away at the latest: its oldest record, or its oldest keys.
    pub fn due_ms(&self) -> Option<u64> {
        let keys_ms = self.dedupe.due_ms(self.config.idempotency_window_ms);
        self.next_due_ms().into_iter().chain(keys_ms).min()
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
        freed: &mut Freed,
    ) -> (Appended, u64) {
        let (first_seq, count) = (self.head_seq + 1, sizes_bytes.len() as u64);
        let run = Run::of_entry(entry, first_position, first_seq, count, ts_ms);
        let run_count = self.push_run(&run, sizes_bytes, freed);
        if let Some(key) = idempotency_key
            && self.config.idempotency_window_ms > 0
        {
            let digest = digest_of(self.epoch, key);
            self.digest.add_bytes(&digest);
            self.dedupe.insert(digest, Remembered { ts_ms, first_seq, count });
        }
        let head_seq = self.head_seq;
        (Appended { first_seq, count, head_seq, created: false, deduped: false }, run_count)
    }

    /// Says in how many runs it was coded.
    fn push_run(&mut self, run: &Run, sizes_bytes: &[u32], freed: &mut Freed) -> u64 {
        let bytes: u64 = sizes_bytes.iter().map(|size| *size as u64).sum();
        let epoch = self.epoch;
        let run_count = self.blocks.push(run, sizes_bytes, |emptied_first_seq| {
            freed.blocks.push(Key::Topic(epoch, TopicKey::Runs(emptied_first_seq)));
        });
        self.head_seq += run.count;
        self.count += run.count;
        self.bytes += bytes;
        self.last_write_ts_ms = Some(run.ts_ms);
        let Run { first_seq, count, ts_ms, entry, first_position, .. } = *run;
        for value in [first_seq, count, ts_ms, entry.term, entry.index, u64::from(first_position), bytes] {
            self.digest.add(value);
        }
        self.is_dirty = true;
        run_count
    }

    /// Appends copies: the records of `run`, but for its seq and its origin, which are `origin_seq` of `instance`
    /// and the following. Also says in how many runs they were coded.
    pub(super) fn append_copies(
        &mut self,
        run: Run,
        (instance, origin_seq, origin_ts_ms): (&Arc<Instance>, u64, u64),
        sizes_bytes: &[u32],
        freed: &mut Freed,
    ) -> u64 {
        let number = self.origin_number(instance);
        let origin = RunOrigin { number, first_seq: origin_seq, ts_ms: origin_ts_ms };
        let run = Run { first_seq: self.head_seq + 1, origin: Some(origin), ..run };
        for value in [u64::from(number), origin_seq, origin_ts_ms, u64::from(run.overlay.bits())] {
            self.digest.add(value);
        }
        self.origins.take(number, origin_seq..=origin_seq + run.count - 1);
        self.origins.own.take_up(run.first_seq..=run.last_seq());
        self.push_run(&run, sizes_bytes, freed)
    }

    /// Takes up a seq with the news that something of `instance` was lost before it could be copied.
    pub(super) fn append_gap(
        &mut self,
        (instance, from_seq, to_seq): (&Arc<Instance>, u64, u64),
        ts_ms: u64,
        entry: EntryId,
        freed: &mut Freed,
    ) {
        let gap = Gap { number: self.origin_number(instance), from_seq, to_seq };
        self.head_seq += 1;
        let (seq, epoch) = (self.head_seq, self.epoch);
        self.blocks.push_nothing(seq, ts_ms, entry, |emptied_first_seq| {
            freed.blocks.push(Key::Topic(epoch, TopicKey::Runs(emptied_first_seq)));
        });
        let Gap { number, from_seq, to_seq } = self.origins.report(seq, gap);
        self.origins.own.take_up(seq..=seq);
        [seq, u64::from(number), from_seq, to_seq].into_iter().for_each(|value| self.digest.add(value));
        self.earliest_seq = self.blocks.raise_floor(self.earliest_seq);
        self.is_dirty = true;
    }

    fn origin_number(&mut self, instance: &Arc<Instance>) -> u32 {
        let known = self.origins.all().len();
        let number = self.origins.number_or_new(instance);
        if number as usize == known {
            self.digest.add_bytes(&instance.cluster_id.to_le_bytes());
            self.digest.add_bytes(instance.topic.as_bytes());
            self.digest.add(instance.epoch);
        }
        number
    }

    /// Finds runs above `cursor`, at most one block of them. `fetched` is a sealed block that the caller
    /// has fetched after an earlier call said that it was missing.
    pub fn locate(&self, cursor: u64, fetched: Option<&SealedBlock>) -> Result<Located, Malformed> {
        if cursor < self.head_seq && cursor + 1 < self.earliest_seq {
            return Ok(Located::BelowEarliest);
        }
        self.blocks.locate(cursor, self.head_seq, fetched)
    }

    /// Finds where the live records begin that are not older than `ts_ms`; see [`Topic::locate`].
    pub fn locate_time(&self, ts_ms: u64, fetched: Option<&SealedBlock>) -> Result<TimePlace, Malformed> {
        self.blocks.place_of_time(ts_ms, fetched)
    }

    pub fn digest(&self, digest: &mut Digest) {
        digest.add_bytes(self.name.as_bytes());
        for value in [
            self.epoch,
            self.digest.value(),
            self.head_seq,
            self.earliest_seq,
            self.floors.cap,
            self.floors.ttl,
            self.floors.evicted_ts_ms,
            self.count,
            self.bytes,
            self.dedupe.floor(),
            self.dedupe.len(),
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
        self.blocks.take_changes(store);
        self.origins.take_changes(store);
        self.dedupe.take_changes(|first, bytes| store(TopicKey::Keys(first), bytes));
    }

    pub(super) fn extent(&self) -> Extent {
        let Topic { epoch, earliest_seq, head_seq, count, bytes, .. } = *self;
        Extent { epoch, earliest_seq, head_seq, count, bytes }
    }

    /// Says what does not hold of what must between two commands. For tests. With `decodes` all runs that are in memory
    /// are looked at too.
    pub fn check(&self, decodes: bool) -> Result<(), String> {
        let extent = self.extent();
        let runs = || if decodes { self.blocks.check_runs(extent) } else { Ok(()) };
        self.blocks.check(extent).and_then(|()| runs()).map_err(|error| format!("{}: {error}", self.name))
    }

    /// Every key under which the checkpoint holds something of this topic.
    pub fn stored_keys(&self) -> impl Iterator<Item = TopicKey> {
        std::iter::once(TopicKey::Head)
            .chain(self.blocks.removed().numbers().map(TopicKey::Removed))
            .chain(self.blocks.summaries().iter().map(|block| TopicKey::Runs(block.first_seq)))
            .chain(self.dedupe.stored_blocks().map(TopicKey::Keys))
            .chain(self.origins.stored_keys())
    }

    /// What was removed one by one above the floor.
    pub fn removed(&self) -> &SeqSet {
        self.blocks.removed()
    }

    /// A block of runs that is in memory.
    pub fn block_in_memory(&self, first_seq: u64) -> Option<SealedBlock> {
        self.blocks.shared(first_seq)
    }

    fn encode_head(&self) -> Vec<u8> {
        let mut out = BytesMut::with_capacity(128 + self.name.len());
        out.put_u8(HEAD_VERSION);
        put_blob(&mut out, self.name.as_bytes());
        self.config.encode(&mut out);
        for value in [
            self.head_seq,
            self.earliest_seq,
            self.floors.cap,
            self.floors.ttl,
            self.floors.evicted_ts_ms,
            self.count,
            self.bytes,
            self.last_write_ts_ms.map_or(0, |ts| ts + 1),
            self.blocks.open_first_seq(),
            self.dedupe.floor(),
        ] {
            put_varint(&mut out, value);
        }
        out.put_u64_le(self.digest.value());
        out.to_vec()
    }

    /// Rebuilds a topic from its stored head; blocks follow through [`Topic::restore_runs`] and
    /// [`Topic::restore_keys`], in order.
    pub fn restore_head(epoch: u64, bytes: &[u8], block_bytes: BlockBytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "topic");
        if reader.u8()? != HEAD_VERSION {
            return Err(Malformed("topic: written by another version"));
        }
        let name: Arc<str> = reader.text()?.into();
        let mut topic = Topic::new(name, epoch, TopicConfig::decode(&mut reader)?);
        topic.head_seq = reader.varint()?;
        topic.earliest_seq = reader.varint()?;
        topic.floors =
            Floors { cap: reader.varint()?, ttl: reader.varint()?, evicted_ts_ms: reader.varint()? };
        topic.count = reader.varint()?;
        topic.bytes = reader.varint()?;
        topic.last_write_ts_ms = reader.varint()?.checked_sub(1);
        topic.blocks = Blocks::new(reader.varint()?, block_bytes);
        let dedupe_floor = reader.varint()?;
        topic.digest = Digest::from_value(reader.u64()?);
        reader.finish()?;
        let next_seq = topic.head_seq.saturating_add(1);
        let is_possible = next_seq < SEQ_LIMIT
            && (1..=next_seq).contains(&topic.earliest_seq)
            && (1..=next_seq).contains(&topic.blocks.open_first_seq())
            && topic.floors.cap.max(topic.floors.ttl) <= next_seq
            && topic.count <= topic.head_seq
            && topic.bytes < SEQ_LIMIT
            && topic.last_write_ts_ms.max(Some(topic.floors.evicted_ts_ms)) < Some(SEQ_LIMIT);
        if !is_possible {
            return Err(Malformed("topic: a head that cannot be"));
        }
        topic.dedupe = Dedupe::restored_at(dedupe_floor);
        topic.is_dirty = false;
        Ok(topic)
    }

    /// `each_live` is told the entry of each run that holds something live; `false` if there is none.
    pub fn restore_runs(
        &mut self,
        first_seq: u64,
        bytes: &[u8],
        each_live: impl FnMut(u64),
    ) -> Result<bool, Malformed> {
        if !(1..=self.head_seq + 1).contains(&first_seq) {
            return Err(Malformed("topic: a block of runs that is not its own"));
        }
        self.blocks.restore(first_seq, bytes, self.earliest_seq, each_live)
    }

    pub fn restore_removed(&mut self, number: u64, bytes: &[u8]) -> Result<(), Malformed> {
        self.blocks.restore_removed(number, bytes)
    }

    pub fn restore_keys(&mut self, first: u64, bytes: &[u8]) -> Result<(), Malformed> {
        self.dedupe.restore_block(first, bytes)
    }
}

/// The stored parts of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicKey {
    Head,
    /// The chunk of this number of what was removed one by one.
    Removed(u64),
    /// The block of runs that starts at this seq.
    Runs(u64),
    /// The block of idempotency keys that starts at this ordinal.
    Keys(u64),
    /// The origin of this number.
    Origin(u32),
    /// The chunk of this number of what was taken from an origin.
    Taken(u32, u64),
    /// The range from this seq on of an origin that was reported as lost.
    Reported(u32, u64),
    /// The chunk of this number of seqs that hold copies and gaps.
    Foreign(u64),
    /// The sum of the seqs that were first written in the topic and are long gone.
    OwnSum,
    /// The gap that takes up this seq.
    Gap(u64),
}
