//! The adapter between openraft and the replicated state.
//!
//! openraft hands over committed entries in order; the machine applies each to the state, answers
//! whoever proposed it at this member, and tells the engine what changed. It also saves the state: from
//! time to time it takes what changed at one exact point between two entries, waits until the own log is
//! synced up to there (a checkpoint ahead of its log would claim entries that a crash may still take),
//! and writes that as one batch. Applying never waits for a checkpoint.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use openraft::entry::EntryPayload;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, Snapshot, SnapshotMeta};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::checkpoint_clock::CheckpointClock;
use super::digest_marks::{DigestMark, DigestMarks};
use super::log::while_busy;
use super::state_image::{ImageBuilder, StateImage};
use super::types::{
    CommittedLeader, Member, RaftLogId, RaftMembership, RaftStoredMembership, Types, decode_membership,
    encode_membership, entry_id, raft_log_id,
};
use crate::codec::Malformed;
use crate::limits::MAX_APPEND_BYTES;
use crate::record::EntryRecords;
use crate::state::{
    BlockBytes, Catalog, Cluster, ClusterLimits, EvictedBlocks, Garbage, Missing, MissingBlock, NotApplied,
    Outcome, Routers, SealedBlock, SharedTopic, State, StoredMembership, TopicKey,
};
use crate::storage::{Checkpoint, Disk, EntryId, Freezer, Frozen, Log, Pin, Verdict, write_export};
use crate::task::{self, OwnThread};

mod saving;

use saving::Saving;

/// Learns what applied entries changed.
pub trait ApplyObserver: Send + Sync + 'static {
    /// These topics got records, or were deleted, by entries that are now applied.
    fn topics_changed(&self, topics: &[Arc<SharedTopic>]);
}

/// What the machine shares with those who read the state.
pub struct Applied {
    state: Mutex<State>,
    catalog: Arc<Catalog>,
    routers: Arc<Routers>,
    checkpoint: Arc<Freezer>,
    log: Log,
    applied_index: watch::Sender<u64>,
    /// Version of the routers' configuration.
    routers_version: watch::Sender<u64>,
    /// When the first record of any topic expires, in cluster time; `u64::MAX` for never.
    next_due_ms: AtomicU64,
    /// Cluster time as of the last applied entry.
    time_ms: AtomicU64,
    published: Mutex<Published>,
    /// The first epoch that no topic has had.
    next_epoch: AtomicU64,
    saved: Mutex<SavedPoint>,
    /// Held while the state is saved.
    saving: tokio::sync::Mutex<Saving>,
    checkpoint_clock: CheckpointClock,
    /// What the last checkpoint took to be cut and written, in microseconds.
    save_cost_us: AtomicU64,
    /// Writes the checkpoint, which takes much memory for a moment.
    writer: OwnThread,
    digest_marks: DigestMarks,
    /// What the checkpoint on disk has lost since garbage was last cleared.
    lost: Mutex<Lost>,
    /// Held while it is cleared, on a thread that may wait for the disk.
    garbage: Mutex<Garbage>,
}

/// Topics, and blocks below the floors of their topics.
#[derive(Default)]
struct Lost {
    topics: Vec<Arc<SharedTopic>>,
    blocks: Vec<EvictedBlocks>,
}

/// Copies of what changes seldom, for those who must not wait while something is applied.
#[derive(Default)]
struct Published {
    limits: ClusterLimits,
    cluster: Option<Cluster>,
}

/// What the checkpoint on disk is as of.
#[derive(Clone, Default)]
struct SavedPoint {
    applied: Option<EntryId>,
    membership: StoredMembership,
}

impl SavedPoint {
    fn of(state: &State) -> Self {
        SavedPoint { applied: state.applied(), membership: state.membership().clone() }
    }
}

impl Applied {
    /// Loads the state from its checkpoint; its blocks grow up to `block_bytes`.
    pub fn load(log: Log, checkpoint: Arc<dyn Checkpoint>, block_bytes: BlockBytes) -> io::Result<Arc<Self>> {
        let mut state = State::new(log.live().clone()).with_blocks(block_bytes);
        // An earlier attempt to load may have counted something.
        state.reset();
        checkpoint.load(&mut |key, value| take_in(|| state.restore(key, value)))?;
        let orphans = take_in(|| Ok(state.restored()))?;
        let saved = SavedPoint::of(&state);
        let applied = Arc::new(Applied {
            catalog: state.catalog().clone(),
            routers: state.routers().clone(),
            routers_version: watch::Sender::new(state.routers().version()),
            state: Mutex::new(state),
            checkpoint: Freezer::new(checkpoint),
            log,
            applied_index: watch::Sender::new(saved.applied.map_or(0, |id| id.index)),
            next_due_ms: AtomicU64::default(),
            time_ms: AtomicU64::default(),
            published: Mutex::default(),
            next_epoch: AtomicU64::default(),
            saved: Mutex::new(saved),
            saving: tokio::sync::Mutex::default(),
            checkpoint_clock: CheckpointClock::default(),
            save_cost_us: AtomicU64::default(),
            writer: OwnThread::named("checkpoint"),
            digest_marks: DigestMarks::default(),
            lost: Mutex::default(),
            garbage: Mutex::new(Garbage::of_orphans(orphans)),
        });
        applied.publish(&applied.state.lock());
        Ok(applied)
    }

    /// Lets others know what they must not wait for the state to learn.
    fn publish(&self, state: &State) {
        self.next_due_ms.store(state.next_due_ms().unwrap_or(u64::MAX), Ordering::Release);
        self.time_ms.store(state.time_ms(), Ordering::Release);
        self.next_epoch.store(state.next_epoch(), Ordering::Release);
        let mut published = self.published.lock();
        published.limits = state.limits();
        if published.cluster.as_ref() != state.cluster() {
            published.cluster = state.cluster().cloned();
        }
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    pub fn routers(&self) -> &Arc<Routers> {
        &self.routers
    }

    /// Follows the version of the routers' configuration ([`Routers::version`]), as of entries that are applied.
    pub fn watch_routers(&self) -> watch::Receiver<u64> {
        self.routers_version.subscribe()
    }

    /// Who the cluster is, as of the last applied command; `None` until a leader has told.
    pub fn cluster(&self) -> Option<Cluster> {
        self.published.lock().cluster.clone()
    }

    /// Follows the index of the last applied entry.
    pub fn watch_index(&self) -> watch::Receiver<u64> {
        self.applied_index.subscribe()
    }

    pub fn index(&self) -> u64 {
        *self.applied_index.borrow()
    }

    /// The bounds of the whole cluster, as of the last applied command.
    pub fn limits(&self) -> ClusterLimits {
        self.published.lock().limits
    }

    /// Cluster time as of the last applied command, in Unix milliseconds.
    pub fn time_ms(&self) -> u64 {
        self.time_ms.load(Ordering::Acquire)
    }

    /// When the first record of any topic expires, in cluster time; `u64::MAX` for never.
    pub fn next_due_ms(&self) -> u64 {
        self.next_due_ms.load(Ordering::Acquire)
    }

    /// The first epoch that no topic has had, as of the last applied command or earlier.
    pub fn next_epoch(&self) -> u64 {
        self.next_epoch.load(Ordering::Acquire)
    }

    /// Index of the last applied entry and the digest of the state there.
    pub fn digest(&self) -> (u64, u64) {
        let mut state = self.state.lock();
        (state.applied().map_or(0, |id| id.index), state.digest().value())
    }

    /// Says what does not hold of what must between two commands. For tests; see [`State::check`].
    pub fn check(&self, decodes: bool) -> Result<(), String> {
        self.state.lock().check(decodes)
    }

    /// Digests at the entries at which all members take one.
    pub(super) fn digest_marks(&self) -> &DigestMarks {
        &self.digest_marks
    }

    /// A sealed block of runs from the checkpoint. May block on the disk.
    pub fn sealed_block(&self, epoch: u64, first_seq: u64) -> io::Result<Option<SealedBlock>> {
        let key = crate::state::Key::Topic(epoch, TopicKey::Runs(first_seq)).encode();
        let value = self.checkpoint.get(&key)?;
        Ok(value.map(|bytes| SealedBlock { first_seq, bytes: Bytes::from(bytes) }))
    }

    /// Brings into memory what applying an entry needs.
    async fn fetch(self: Arc<Self>, missing: Arc<Missing>) -> io::Result<()> {
        task::blocking(move || {
            for MissingBlock { topic, first_seq } in &missing.blocks {
                let block = self.sealed_block(topic.epoch, *first_seq)?.ok_or_else(|| {
                    let what = "a block of the index is missing from the checkpoint";
                    io::Error::new(io::ErrorKind::InvalidData, what)
                })?;
                self.state.lock().supply_block(topic, block);
            }
            for id in missing.entries.iter().copied() {
                let entry = match self.log.cached(id) {
                    Some(entry) => entry.payload,
                    None => self.log.payload(id)?,
                };
                let records = EntryRecords::parse(entry)?;
                self.state.lock().supply_entry(id, records);
            }
            Ok(())
        })
        .await
    }

    /// Whether the checkpoint gets written.
    pub fn checkpoint_clock(&self) -> &CheckpointClock {
        &self.checkpoint_clock
    }

    /// Index of the last entry that the checkpoint on disk covers.
    pub fn saved_index(&self) -> u64 {
        self.saved.lock().applied.map_or(0, |id| id.index)
    }

    /// The checkpoint on disk as it is now, at [`Applied::saved_index`] or later, with every entry that it
    /// names, until both are dropped.
    pub fn freeze(&self) -> (Pin, Frozen) {
        // In this order: no entry that a checkpoint on disk names has been released.
        let pin = self.log.pin();
        (pin, self.checkpoint.freeze())
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The thread that changes the checkpoint.
    pub fn writer(&self) -> &OwnThread {
        &self.writer
    }

    /// Clears away some of what deleted topics and retention left in the checkpoint; `false` if nothing is
    /// left. May block on the disk.
    pub fn clear_garbage(&self) -> io::Result<bool> {
        if self.checkpoint.is_viewed() {
            // Everything that goes would have to be kept for the view.
            return Ok(false);
        }
        let mut garbage = self.garbage.lock();
        let Lost { topics, blocks } = std::mem::take(&mut *self.lost.lock());
        garbage.add(topics, blocks);
        if garbage.is_empty() {
            return Ok(false);
        }
        garbage.step(&*self.checkpoint, self.log.live())?;
        Ok(true)
    }

    /// Writes the checkpoint on disk a second time, into a file in `dir`. Gives the index of the last entry
    /// that it covers and the file's length in bytes; `None` if there is no checkpoint yet. `InvalidData` if
    /// the checkpoint is damaged, `StorageFull` if it is longer than `max_bytes`. Saving waits meanwhile, applying does not. Blocks on the disk.
    pub fn export(&self, disk: &dyn Disk, dir: &Path, max_bytes: u64) -> io::Result<Option<(u64, u64)>> {
        let export = |checkpoint: &dyn Checkpoint| {
            let key = crate::state::Key::Machine.encode();
            let Some(value) = checkpoint.get(&key)? else { return Ok(None) };
            // What the checkpoint is as of stands in it. `saved` may be a moment behind.
            let mut head = State::default();
            head.restore(&key, &value)?;
            let Some(applied) = head.applied() else { return Ok(None) };
            let len_bytes = write_export(disk, dir, applied, max_bytes, |each| checkpoint.load(each))?;
            Ok(Some((applied.index, len_bytes)))
        };
        self.checkpoint_clock.excused(|| self.checkpoint.read_held(export))
    }

    fn applied_state(&self) -> io::Result<(Option<RaftLogId>, RaftStoredMembership)> {
        Self::raft_state(&SavedPoint::of(&self.state.lock()))
    }

    /// The same as of the checkpoint on disk; as of now if there has never been one.
    fn saved_state(&self) -> io::Result<(Option<RaftLogId>, RaftStoredMembership)> {
        let saved = self.saved.lock().clone();
        if saved.applied.is_none() { self.applied_state() } else { Self::raft_state(&saved) }
    }

    /// What a snapshot is named that rests on the checkpoint on disk.
    fn saved_meta(&self) -> io::Result<SnapshotMeta<CommittedLeader, u64, Member>> {
        let (last_log_id, last_membership) = self.saved_state()?;
        Ok(SnapshotMeta { last_log_id, last_membership })
    }

    fn raft_state(point: &SavedPoint) -> io::Result<(Option<RaftLogId>, RaftStoredMembership)> {
        let stored = &point.membership;
        let membership = match stored.entry {
            None => RaftStoredMembership::default(),
            Some(entry) => {
                RaftStoredMembership::new(Some(raft_log_id(entry)), decode_membership(&stored.bytes)?)
            }
        };
        Ok((point.applied.map(raft_log_id), membership))
    }
}

/// Takes in a part of a checkpoint. An error of this shows only if the checkpoint adds up, so it says nothing of the
/// disk: it is of a form of another version, or this one has a fault, which would hit every member alike.
fn take_in<T>(part: impl FnOnce() -> Result<T, Malformed>) -> io::Result<T> {
    match catch_unwind(AssertUnwindSafe(part)) {
        Ok(Ok(taken)) => Ok(taken),
        Ok(Err(malformed)) if malformed.is_of_another_version() => {
            Err(Verdict::Newer.error(malformed.to_string()))
        }
        Ok(Err(malformed)) => Err(Verdict::Bug.error(malformed.to_string())),
        Err(_) => Err(Verdict::Bug.error("it is whole, and loading it ended in a panic")),
    }
}

/// Entries applied under one hold of the state: readers of the whole state (digests, checkpoints) get
/// their turn in between. Fewer if they are large.
const APPLY_BATCH: usize = 128;

/// The state machine that openraft drives.
pub struct Machine {
    applied: Arc<Applied>,
    observer: Arc<dyn ApplyObserver>,
    snapshot: Option<SnapshotMeta<CommittedLeader, u64, Member>>,
}

impl Machine {
    pub fn new(applied: Arc<Applied>, observer: Arc<dyn ApplyObserver>) -> Self {
        // The checkpoint that was loaded is a snapshot too; without one openraft would not know what a log
        // that begins late rests on.
        let snapshot = applied.saved_meta().ok().filter(|meta| meta.last_log_id.is_some());
        Machine { applied, observer, snapshot }
    }

    /// Applies a batch. What retention needs and is not in memory is fetched in between, by a thread that may
    /// wait for the disk; nothing is locked meanwhile.
    async fn apply_batch(&mut self, batch: &mut VecDeque<EntryResponder<Types>>) -> io::Result<()> {
        while let Some(missing) = self.apply_some(batch)? {
            let missing = Arc::new(missing);
            while_busy(|| self.applied.clone().fetch(missing.clone())).await?;
        }
        Ok(())
    }

    /// Applies entries until one cannot be without what is not in memory.
    fn apply_some(&mut self, batch: &mut VecDeque<EntryResponder<Types>>) -> io::Result<Option<Missing>> {
        let mut touched: Vec<Arc<SharedTopic>> = Vec::new();
        let mut last_index = None;
        let mut missing = None;
        let mut state = self.applied.state.lock();
        while let Some((entry, _)) = batch.front() {
            let id = entry_id(&entry.log_id);
            let outcome = match &entry.payload {
                EntryPayload::Blank => {
                    state.apply_blank(id);
                    Outcome::Nothing
                }
                EntryPayload::Membership(membership) => {
                    apply_membership(&mut state, id, membership);
                    Outcome::Nothing
                }
                EntryPayload::Normal(command) => {
                    let applied = match state.apply_command(id, command.stamp_ms, &command.bytes) {
                        Ok(applied) => applied,
                        Err(NotApplied::Malformed(malformed)) => return Err(malformed.into()),
                        Err(NotApplied::Missing(needed)) => {
                            missing = Some(needed);
                            break;
                        }
                    };
                    if let Some(topic) = applied.touched
                        && touched.last().is_none_or(|last| !Arc::ptr_eq(last, &topic))
                    {
                        touched.push(topic);
                    }
                    touched.extend(applied.also_touched);
                    applied.outcome
                }
            };
            last_index = Some(id.index);
            if DigestMarks::is_due(id.index) {
                let digest = state.digest().value();
                self.applied.digest_marks.note(DigestMark { index: id.index, digest });
            }
            if let Some((_, Some(responder))) = batch.pop_front() {
                responder.send(outcome);
            }
        }
        self.applied.publish(&state);
        drop(state);
        if let Some(index) = last_index {
            self.applied.applied_index.send_replace(index);
        }
        let version = self.applied.routers.version();
        self.applied.routers_version.send_if_modified(|known| std::mem::replace(known, version) != version);
        if !touched.is_empty() {
            self.observer.topics_changed(&touched);
        }
        Ok(missing)
    }
}

fn apply_membership(state: &mut State, id: EntryId, membership: &RaftMembership) {
    let node_ids: BTreeSet<u64> = membership.nodes().map(|(node_id, _)| *node_id).collect();
    state.apply_membership(id, encode_membership(membership), &node_ids);
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = StateImage;
    type SnapshotBuilder = ImageBuilder;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, RaftStoredMembership), io::Error> {
        self.applied.applied_state()
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let (mut batch, mut batch_bytes) = (VecDeque::new(), 0);
        while let Some(entry) = entries.try_next().await? {
            if let EntryPayload::Normal(command) = &entry.0.payload {
                batch_bytes += command.bytes.len();
            }
            batch.push_back(entry);
            if batch.len() == APPLY_BATCH || batch_bytes >= MAX_APPEND_BYTES {
                self.apply_batch(&mut batch).await?;
                batch_bytes = 0;
            }
        }
        self.apply_batch(&mut batch).await
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        let meta = self.applied.saved_meta();
        self.snapshot = meta.as_ref().ok().cloned();
        ImageBuilder { meta }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<CommittedLeader, u64, Member>,
        _image: StateImage,
    ) -> Result<(), io::Error> {
        // A member takes over the topics of another by making a store of them and starting anew (`install.rs`),
        // so this is only ever a point in an empty log, from openraft's own test suite.
        if !self.applied.catalog.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "openraft was handed a snapshot with topics",
            ));
        }
        let mut state = self.applied.state.lock();
        state.reset();
        *self.applied.lost.lock() = Lost::default();
        self.applied.garbage.lock().clear();
        if let Some(entry) = meta.last_membership.log_id() {
            apply_membership(&mut state, entry_id(entry), meta.last_membership.membership());
        }
        if let Some(last) = &meta.last_log_id {
            state.apply_blank(entry_id(last));
            self.applied.applied_index.send_replace(last.index());
        }
        self.applied.publish(&state);
        drop(state);
        self.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<Snapshot<CommittedLeader, u64, Member, StateImage>>, io::Error> {
        Ok(self.snapshot.clone().map(|meta| Snapshot { meta, snapshot: StateImage }))
    }
}
