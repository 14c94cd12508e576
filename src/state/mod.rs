//! Layer 2: the replicated state.
//!
//! `State::apply` takes one log entry after another and changes the state; it is the only way to change
//! it. Every member applies the same entries, so it must reach the same state from them: no clock, disk,
//! network, randomness, settings, map order or library message may have a say in it. What needs such a
//! thing has it decided by the leader and written into the command. Members compare [`State::digest`].
//!
//! The state is held in memory where it is hot, and saved by checkpoints: [`State::take_changes`] gives
//! what changed since the last one, as keys and values that belong to one exact point between two
//! entries.

mod append;
mod append_many;
mod blocks;
mod catalog;
mod checkpoint;
mod checkpoint_form;
mod command;
mod copy_command;
mod dedupe;
mod delete;
mod expiry;
mod forward;
#[doc(hidden)]
pub mod fuzzing;
mod garbage;
mod intake;
mod local_route;
mod look;
mod origins;
mod outcome;
mod own_seqs;
mod position;
mod prospect;
mod put_router;
mod quota;
mod reported;
mod retention;
mod router;
mod router_book;
mod router_config;
mod routers;
mod run;
mod seq_set;
mod session;
mod token;
mod topic;
mod topic_config;
mod topics;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

pub use blocks::{Located, TimePlace};
pub use catalog::{Catalog, SharedTopic, is_topic_name};
pub use checkpoint::Changes;
pub use checkpoint_form::Key;
pub use command::{
    Append, AppendPart, Cluster, Command, Create, Decoded, DeleteRecords, Draft, Envelope, LateMatch, Listed,
    PutRouter, SealToken, carries_records, check_command,
};
pub use copy_command::{Copy, CopyItem, CopyPart, RoutePart, put_items, read_items};
pub use delete::{Ranges, match_run, push_range};
pub use garbage::{EvictedBlocks, Garbage};
pub use intake::lost_seqs;
pub use look::Look;
pub use origins::{Gap, Instance, Origin, Origins, Turns};
pub use outcome::{Appended, Forwarded, Outcome, RecordsDeleted, Refusal};
pub use own_seqs::{OwnSeqs, SeqSum};
pub use position::{Position, Reached};
pub use prospect::{ClusterRoom, OfferedRecord};
pub use quota::{ClusterLimits, ForeignTotals, Limit, Totals};
pub use reported::Reported;
pub use retention::{Floors, Freed, Reason};
pub use router::{Router, RouterKey};
pub use router_config::{Guarantee, Relays, Remote, RouterConfig, Start};
pub use routers::{RouterQuery, Routers, SharedRouter};
pub use run::{BlockBytes, Overlay, Run, RunOrigin, SealedBlock};
pub use seq_set::{SeqSet, put_ranges, read_ranges, read_ranges_up_to};
pub use token::{TOKEN_PLACEHOLDER, Token};
pub use topic::{Topic, TopicKey};
pub use topic_config::{Compaction, Discard, Durability, TopicConfig, TopicType};

use crate::codec::{Malformed, Reader, put_varint};
use crate::record::{BadRecord, EntryRecords, Record, counted_bytes};
use crate::storage::{EntryId, LiveEntries};
use delete::Supplied;
use expiry::Due;
use router_book::RouterBook;
use session::{Admission, Session};

/// The membership that the log has told last, in the bytes of the room that knows what they mean.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredMembership {
    /// The entry that set it; `None` before the first.
    pub entry: Option<EntryId>,
    pub bytes: Bytes,
}

/// What applying an entry did.
#[derive(Debug)]
pub struct Applied {
    pub outcome: Outcome,
    /// The topic whose head moved or that went away, for whoever waits for it.
    pub touched: Option<Arc<SharedTopic>>,
    /// The others, if there is more than one; an empty vector costs nothing.
    pub also_touched: Vec<Arc<SharedTopic>>,
}

impl Applied {
    /// An outcome that touched no topic.
    fn of(outcome: Outcome) -> Self {
        Applied { outcome, touched: None, also_touched: Vec::new() }
    }

    fn touching(outcome: Outcome, topic: Arc<SharedTopic>) -> Self {
        Applied { outcome, touched: Some(topic), also_touched: Vec::new() }
    }
}

/// A sealed block that is not in memory and must be, see [`State::supply_block`].
#[derive(Debug)]
pub struct MissingBlock {
    pub topic: Arc<SharedTopic>,
    pub first_seq: u64,
}

/// What applying an entry needs. Never empty.
#[derive(Debug, Default)]
pub struct Missing {
    pub blocks: Vec<MissingBlock>,
    /// Log entries, see [`State::supply_entry`].
    pub entries: Vec<EntryId>,
}

impl Missing {
    fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.entries.is_empty()
    }

    fn block(topic: &Arc<SharedTopic>, first_seq: u64) -> Self {
        Missing { blocks: vec![MissingBlock { topic: topic.clone(), first_seq }], ..Missing::default() }
    }
}

/// Why an entry was not applied; nothing has changed.
#[derive(Debug)]
pub enum NotApplied {
    /// It can be once this is supplied.
    Missing(Missing),
    /// Its form, or what is stored here, cannot be read: the member must stop, for others may apply it. What a
    /// record holds is never the reason, see [`Refusal::BadRecord`].
    Malformed(Malformed),
}

impl From<Malformed> for NotApplied {
    fn from(malformed: Malformed) -> Self {
        NotApplied::Malformed(malformed)
    }
}

/// The replicated state of one member.
pub struct State {
    catalog: Arc<Catalog>,
    applied: Option<EntryId>,
    membership: StoredMembership,
    time_ms: u64,
    next_epoch: u64,
    limits: ClusterLimits,
    /// Who the cluster is; `None` until a leader has told.
    cluster: Option<Cluster>,
    routers: RouterBook,
    sessions: BTreeMap<u64, Session>,
    /// Values that the last checkpoint holds per session.
    session_parts: BTreeMap<u64, u64>,
    dirty_sessions: BTreeSet<u64>,
    dirty_topics: BTreeMap<u64, Arc<SharedTopic>>,
    /// Topics whose deletion no checkpoint has seen.
    deleted: Vec<Arc<SharedTopic>>,
    /// Sum of the digests of all topics, but for what [`Self::dirty_topics`] and [`Self::deleted`] have changed.
    topics_digest: u64,
    /// Blocks that a restore found without their topic, or below its floor.
    orphans: Vec<Key>,
    due: Due,
    /// What retention gave up since the last checkpoint.
    freed: Freed,
    /// Which log entries the runs of all topics name. Not part of the state: no outcome depends on it.
    live: Arc<LiveEntries>,
    /// No part of it either.
    block_bytes: BlockBytes,
    sizes_bytes: Vec<u32>,
    /// For the entry that is applied next.
    supplied: Supplied,
    /// Topics that were handed blocks for it.
    supplied_topics: Vec<Arc<SharedTopic>>,
    /// What the delete removes that is applied next; `None` if it has to be looked for again.
    planned: Option<Ranges>,
    /// What routers bring with the command that is applied next.
    planned_copies: Vec<forward::Planned>,
    /// Where the local router starts in its source that is made next.
    planned_start: u64,
}

impl Default for State {
    fn default() -> Self {
        State {
            catalog: Arc::default(),
            applied: None,
            membership: StoredMembership::default(),
            time_ms: 0,
            next_epoch: 1,
            limits: ClusterLimits::default(),
            cluster: None,
            routers: RouterBook::default(),
            sessions: BTreeMap::new(),
            session_parts: BTreeMap::new(),
            dirty_sessions: BTreeSet::new(),
            dirty_topics: BTreeMap::new(),
            deleted: Vec::new(),
            topics_digest: 0,
            orphans: Vec::new(),
            due: Due::default(),
            freed: Freed::default(),
            live: Arc::default(),
            block_bytes: BlockBytes::default(),
            sizes_bytes: Vec::new(),
            supplied: Supplied::default(),
            supplied_topics: Vec::new(),
            planned: None,
            planned_copies: Vec::new(),
            planned_start: 0,
        }
    }
}

impl State {
    /// An empty state that tells `live` which entries its topics name.
    pub fn new(live: Arc<LiveEntries>) -> Self {
        State { live, ..State::default() }
    }

    /// The same with blocks of runs of that length, from now on.
    pub fn with_blocks(self, block_bytes: BlockBytes) -> Self {
        State { block_bytes, ..self }
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Which log entries its topics name.
    pub fn live(&self) -> &Arc<LiveEntries> {
        &self.live
    }

    /// The last entry applied.
    pub fn applied(&self) -> Option<EntryId> {
        self.applied
    }

    pub fn membership(&self) -> &StoredMembership {
        &self.membership
    }

    /// Cluster time: the greatest time that a leader has stamped an applied command with.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The bounds of the whole cluster that hold now.
    pub fn limits(&self) -> ClusterLimits {
        self.limits
    }

    /// Who the cluster is; `None` until a leader has told.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// Above the epoch of every topic that was ever made.
    pub fn next_epoch(&self) -> u64 {
        self.next_epoch
    }

    pub fn routers(&self) -> &Arc<Routers> {
        &self.routers.shared
    }

    /// When the first record or idempotency key of any topic is to go, in cluster time; `None` if none is.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.due.first_ms()
    }

    /// Applies an entry that carries no command.
    pub fn apply_blank(&mut self, entry: EntryId) {
        self.advance(entry);
    }

    /// Applies a membership. Sessions of members that it does not name end.
    pub fn apply_membership(&mut self, entry: EntryId, bytes: Bytes, node_ids: &BTreeSet<u64>) {
        self.advance(entry);
        self.membership = StoredMembership { entry: Some(entry), bytes };
        let gone: Vec<u64> = self.sessions.keys().filter(|id| !node_ids.contains(id)).copied().collect();
        for node_id in gone {
            self.sessions.remove(&node_id);
            self.dirty_sessions.insert(node_id);
        }
    }

    /// Applies a command that the leader ordered at `stamp_ms`.
    pub fn apply_command(
        &mut self,
        entry: EntryId,
        stamp_ms: u64,
        payload: &Bytes,
    ) -> Result<Applied, NotApplied> {
        let applied = self.try_apply(entry, stamp_ms, payload)?;
        // Also if it was a repeat, or refused, and needed nothing of it after all.
        for topic in std::mem::take(&mut self.supplied_topics) {
            topic.forget_supplied_blocks();
        }
        Ok(applied)
    }

    fn try_apply(&mut self, entry: EntryId, stamp_ms: u64, payload: &Bytes) -> Result<Applied, NotApplied> {
        let decoded = Decoded::parse(payload.clone())?;
        let command = decoded.command()?;
        let now_ms = self.time_ms.max(stamp_ms);
        // Everybody finds the same in the same bytes.
        let refusal = self.measure(&decoded.records, &command).err().map(|_| Refusal::BadRecord);
        let target = match &command {
            _ if refusal.is_some() => None,
            Command::Append(Append { topic, .. })
            | Command::PutTopic { topic, .. }
            | Command::DeleteTopic { topic, .. } => self.catalog.get(topic),
            Command::DeleteRecords(DeleteRecords { topic, .. }) => self.catalog.get(topic),
            Command::PutRouter(put) => self.start_topic(put),
            // Those of an append to several topics, and of copies, are looked up where they are used.
            Command::AppendMany(_)
            | Command::Route(_)
            | Command::Copy(_)
            | Command::Expire
            | Command::SetLimits(_)
            | Command::DeleteRouter { .. }
            | Command::PauseRouter { .. }
            | Command::SkipRecord { .. }
            | Command::SealToken(_)
            | Command::SetCluster(_)
            | Command::OpenSession => None,
        };
        let missing = match refusal {
            None => self.missing(&command, target.as_ref(), now_ms)?,
            Some(_) => Missing::default(),
        };
        if !missing.is_empty() {
            return Err(NotApplied::Missing(missing));
        }
        self.supplied.clear();
        self.advance(entry);
        self.time_ms = now_ms;

        let Envelope { node_id, session, number, .. } = decoded.envelope;
        if command == Command::OpenSession {
            return Ok(Applied::of(self.open_session(node_id, session)));
        }
        let admission = match self.sessions.get_mut(&node_id) {
            Some(session) => session.admit(&decoded.envelope),
            None => Admission::Unknown,
        };
        let applied = match admission {
            Admission::Unknown => {
                return Ok(Applied::of(Outcome::Refused(Refusal::SessionUnknown)));
            }
            Admission::Repeat(outcome) => Applied::of(outcome),
            Admission::New => {
                let applied = match refusal {
                    None => self.execute(entry, &command, target)?,
                    Some(refusal) => Applied::of(refusal.into()),
                };
                if let Some(session) = self.sessions.get_mut(&node_id) {
                    session.remember(number, applied.outcome.clone());
                }
                applied
            }
        };
        self.dirty_sessions.insert(node_id);
        Ok(applied)
    }

    fn open_session(&mut self, node_id: u64, session: u64) -> Outcome {
        let open = self.sessions.entry(node_id).or_insert_with(|| Session::new(session));
        if !open.reopen(session) {
            return Outcome::Refused(Refusal::SessionUnknown);
        }
        self.dirty_sessions.insert(node_id);
        Outcome::SessionOpened
    }

    /// Reads what each record of an entry counts for, before anything is changed. Those of a copy were encoded by
    /// another cluster: what does not decode is not stored, whoever let it in.
    fn measure(&mut self, records: &EntryRecords, command: &Command<'_>) -> Result<(), BadRecord> {
        const BAD: BadRecord = BadRecord("it does not decode");
        self.sizes_bytes.clear();
        let is_foreign = matches!(command, Command::Copy(_));
        for position in 0..records.count() {
            let record = records.record(position).ok_or(BAD)?;
            if is_foreign {
                Record::decode(record).map_err(|_| BAD)?;
            }
            self.sizes_bytes.push(counted_bytes(record).map_err(|_| BAD)? as u32);
        }
        Ok(())
    }

    /// Hands in a sealed block that applying the next entry has asked for.
    pub fn supply_block(&mut self, topic: &Arc<SharedTopic>, block: SealedBlock) {
        topic.write().blocks.supply(block);
        self.supplied_topics.push(topic.clone());
    }

    /// A checkpoint that holds every block of these topics up to these seqs is on disk: they may leave memory.
    pub fn blocks_saved(&mut self, saved: &[(Arc<SharedTopic>, u64)]) {
        for (topic, last_seq) in saved {
            topic.write().blocks.saved_up_to(*last_seq);
        }
    }

    /// Says what does not hold of what must between two commands. For tests; see [`Topic::check`].
    pub fn check(&self, decodes: bool) -> Result<(), String> {
        let (mut held, mut foreign) = ((0, 0), (0, 0, 0));
        for shared in self.catalog.page("", None, usize::MAX) {
            let topic = shared.read();
            topic.check(decodes)?;
            held = (held.0 + topic.count, held.1 + topic.bytes);
            let origins = topic.origins.all();
            foreign.0 += origins.len();
            foreign.1 += topic.origins.gaps_in(0..=u64::MAX).count();
            foreign.2 += origins.iter().map(|origin| origin.reported.count()).sum::<usize>();
        }
        let counted = self.catalog.totals().foreign();
        let counted = (counted.origins(), counted.gaps(), counted.reported());
        if counted != foreign {
            return Err(format!("of others {foreign:?} are known, counted are {counted:?}"));
        }
        let known: usize = self.routers.shared.all().iter().map(|router| router.read().positions.len()).sum();
        let counted = self.routers.shared.position_count();
        if counted != known {
            return Err(format!("routers have {known} positions, counted are {counted}"));
        }
        let totals = (self.catalog.totals().records(), self.catalog.totals().bytes());
        if totals == held {
            Ok(())
        } else {
            Err(format!("all topics hold {held:?}, the totals are {totals:?}"))
        }
    }

    /// Hands in a log entry that applying the next one has asked for.
    pub fn supply_entry(&mut self, entry: EntryId, records: EntryRecords) {
        self.supplied.insert(entry, records);
    }

    /// What is needed to apply `command`, which is for `target`, at `now_ms`.
    fn missing(
        &mut self,
        command: &Command<'_>,
        target: Option<&Arc<SharedTopic>>,
        now_ms: u64,
    ) -> Result<Missing, Malformed> {
        match command {
            Command::Route(parts) => return self.missing_to_route(parts, now_ms),
            Command::Copy(copy) => return Ok(self.missing_to_copy(copy, now_ms)),
            _ => {}
        }
        let blocks = self.missing_blocks(command, target, now_ms);
        if let (true, Command::DeleteRecords(delete), Some(shared)) = (blocks.is_empty(), command, target) {
            return self.missing_to_delete(delete, shared);
        }
        if let (true, Command::PutRouter(put), Some(shared)) = (blocks.is_empty(), command, target) {
            return self.missing_to_start(put.config.start, shared);
        }
        Ok(Missing { blocks, ..Missing::default() })
    }

    /// Number of the records that the command brings, and what they count for.
    fn new_records(&self) -> (u64, u64) {
        self.records_at(0..self.sizes_bytes.len())
    }

    /// As [`State::new_records`], of those at `positions`.
    fn records_at(&self, positions: Range<usize>) -> (u64, u64) {
        let sizes_bytes = &self.sizes_bytes[positions];
        (sizes_bytes.len() as u64, sizes_bytes.iter().map(|size| u64::from(*size)).sum())
    }

    fn advance(&mut self, entry: EntryId) {
        debug_assert!(self.applied.is_none_or(|applied| applied < entry));
        self.applied = Some(entry);
    }

    fn execute(
        &mut self,
        entry: EntryId,
        command: &Command<'_>,
        target: Option<Arc<SharedTopic>>,
    ) -> Result<Applied, Malformed> {
        if let Some(shared) = &target {
            self.expire_topic(shared)?;
        }
        match command {
            Command::Append(append) => self.append(entry, append, target),
            Command::AppendMany(parts) => self.append_many(entry, parts),
            Command::PutTopic { topic, config } => self.put_topic(topic, config, target),
            Command::DeleteTopic { topic, if_empty } => Ok(self.delete_topic(topic, *if_empty, target)),
            Command::DeleteRecords(delete) => self.delete_records(delete, target),
            Command::Expire => self.expire(),
            Command::Route(_) => self.forward(entry, None),
            Command::Copy(copy) => self.forward(entry, Some(copy)),
            Command::SetLimits(limits) => {
                self.limits = *limits;
                Ok(Applied::of(Outcome::LimitsSet))
            }
            Command::PutRouter(put) => Ok(self.put_router(put, target)),
            Command::DeleteRouter { router } => Ok(self.delete_router(router)),
            Command::PauseRouter { router, pause } => Ok(self.pause_router(router, *pause)),
            Command::SkipRecord { router, source, seq } => Ok(self.skip_record(router, source, *seq)),
            Command::SealToken(seal) => Ok(self.seal_token(seal)),
            Command::SetCluster(cluster) => Ok(self.set_cluster(cluster)),
            Command::OpenSession => unreachable!("handled before the session is looked at"),
        }
    }
}

/// Appends the id of an entry that may be absent.
pub fn put_entry_id(out: &mut BytesMut, id: Option<EntryId>) {
    match id {
        None => out.put_u8(0),
        Some(id) => {
            out.put_u8(1);
            put_varint(out, id.term);
            put_varint(out, id.index);
        }
    }
}

/// Reads what [`put_entry_id`] wrote.
pub fn read_entry_id(reader: &mut Reader<'_>) -> Result<Option<EntryId>, Malformed> {
    if !reader.bool()? {
        return Ok(None);
    }
    Ok(Some(EntryId { term: reader.varint()?, index: reader.varint()? }))
}
