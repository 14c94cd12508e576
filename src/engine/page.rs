//! Reading a page of a topic.
//!
//! Cursor, runs, entries, records: the topic says which log entries hold the records behind a cursor, the
//! log gives their bytes, and the page takes what it may hold. What lies in memory is read on the spot;
//! what does not is fetched by a thread that may wait for the disk, a page's worth at a time. No lock is
//! held while records are read: they never change, and neither does a run.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::Instant;

use super::cold_entries::{Read, is_no_room};
use super::filling::{Filling, MAX_RUNS_AHEAD, Place};
use super::{Consistency, Engine};
use crate::codec::Malformed;
use crate::error::{Code, Error};
use crate::filter::Filter;
use crate::record::{EntryRecords, Record};
use crate::state::{Floors, Instance, Located, Overlay, Run, SealedBlock, SharedTopic, TimePlace, Topic};
use crate::storage::EntryId;
use crate::task;
use crate::telemetry::seldom::Seldom;

/// What a page should hold.
#[derive(Debug, Clone)]
pub struct PageQuery {
    /// Only records with a higher seq.
    pub from_seq: u64,
    /// Instead of `from_seq`: only records from the first one on that is not older, Unix milliseconds.
    pub from_ts_ms: Option<u64>,
    pub limit: usize,
    /// Budget for the records' bytes; the first record is delivered whatever its size.
    pub max_bytes: usize,
    /// Records with one of these `node` labels are passed over.
    pub drop_nodes: Arc<[String]>,
    /// Records that do not pass it are passed over.
    pub filter: Option<Arc<Filter>>,
    /// The topic instance that `from_seq` belongs to.
    pub epoch: Option<u64>,
    pub consistency: Consistency,
    /// How long to wait for something to say, in milliseconds.
    pub wait_ms: u64,
    /// How long to wait for room for what has to be read from the disk.
    pub patience: Duration,
}

impl PageQuery {
    /// About what it keeps in memory while it waits.
    pub fn memory_bytes(&self) -> usize {
        let labels: usize = self.drop_nodes.iter().map(|label| size_of::<String>() + label.len()).sum();
        size_of::<PageQuery>() + labels + self.filter.as_ref().map_or(0, |filter| filter.memory_bytes())
    }

    /// A page from wherever it is started, of what this member has applied.
    pub(super) fn here(limit: usize, max_bytes: usize) -> Self {
        PageQuery {
            from_seq: 0,
            from_ts_ms: None,
            limit,
            max_bytes,
            drop_nodes: Arc::default(),
            filter: None,
            epoch: None,
            consistency: Consistency::Eventual,
            wait_ms: 0,
            patience: Duration::MAX,
        }
    }
}

/// One record of a page.
#[derive(Debug, Clone)]
pub struct PageRecord {
    pub seq: u64,
    pub ts_ms: u64,
    pub entry: EntryRecords,
    pub position: u32,
    /// The log entry that `entry` is.
    pub entry_id: EntryId,
    pub overlay: Overlay,
    /// Of copies: where it was first written.
    pub origin: Option<RecordOrigin>,
}

/// Where a copy was first written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordOrigin {
    pub instance: Arc<Instance>,
    pub seq: u64,
    pub ts_ms: u64,
}

impl PageRecord {
    /// Its bytes as they are stored, which a copy need not show all of.
    pub fn stored(&self) -> &[u8] {
        self.entry.record(self.position).unwrap_or_default()
    }

    /// Its content. An error is damage.
    pub fn content(&self) -> Result<Record<'_>, Malformed> {
        Ok(self.overlay.apply(Record::decode(self.stored())?))
    }
}

/// Records that the reader asked for and cannot have; the range is inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    pub gap_from: u64,
    pub gap_to: u64,
    pub reason: &'static str,
    pub earliest_seq: u64,
    pub head_seq: u64,
    /// Of what was lost at the source of a router: where, and which seqs there.
    pub origin: Option<LostAtSource>,
}

/// Records that were evicted at the source of a router before they could be copied; the range is inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostAtSource {
    pub instance: Arc<Instance>,
    pub gap_from: u64,
    pub gap_to: u64,
}

/// A page and where it stands in its topic.
#[derive(Debug, Clone)]
pub struct Page {
    pub epoch: u64,
    pub records: Vec<PageRecord>,
    /// Sum of what the records take as they are stored.
    pub stored_bytes: usize,
    /// Seq of the last record examined.
    pub next_from_seq: u64,
    pub head_seq: u64,
    pub earliest_seq: u64,
    pub caught_up: bool,
    pub lag: u64,
    pub tombstone: Option<Tombstone>,
    pub records_scanned: u64,
}

impl Page {
    /// Leaves the records behind the first `count` to the next page.
    pub fn shorten(&mut self, count: usize) {
        if count >= self.records.len() {
            return;
        }
        self.records.truncate(count);
        self.stored_bytes = self.records.iter().map(|record| record.stored().len()).sum();
        if let Some(last) = self.records.last() {
            (self.next_from_seq, self.lag) = (last.seq, self.head_seq - last.seq);
            self.caught_up = false;
        }
    }
}

/// Where a topic stood at one moment.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    pub head_seq: u64,
    pub earliest_seq: u64,
    floors: Floors,
}

impl Standing {
    pub fn of(topic: &Topic) -> Self {
        Standing { head_seq: topic.head_seq, earliest_seq: topic.earliest_seq, floors: topic.floors }
    }

    fn tombstone(&self, gap_from: u64, gap_to: u64, reason: &'static str) -> Tombstone {
        let Standing { earliest_seq, head_seq, .. } = *self;
        Tombstone { gap_from, gap_to, reason, earliest_seq, head_seq, origin: None }
    }
}

/// Where reading starts.
pub(super) struct Start {
    pub standing: Standing,
    pub cursor: u64,
    /// Nothing behind this seq belongs to the same page: it is the head, or the next seq is a gap.
    limit_seq: u64,
    pub tombstone: Option<Tombstone>,
}

impl Start {
    /// Right after `cursor`, whatever is there.
    fn at(topic: &Topic, cursor: u64, tombstone: Option<Tombstone>) -> Self {
        let standing = Standing::of(topic);
        let gap = topic.origins.next_gap(cursor);
        let limit_seq = gap.map_or(standing.head_seq, |(seq, _)| seq - 1);
        Start { standing, cursor, limit_seq, tombstone }
    }

    /// Right before the first live record above `cursor` or the first gap (C-GAP-03 to C-GAP-06, C-GAP-08).
    pub fn after(topic: &Topic, cursor: u64) -> Self {
        let standing = Standing::of(topic);
        let live_seq = standing.earliest_seq.max(cursor.saturating_add(1));
        if let Some(reason) = standing.floors.gap_after(cursor) {
            let tombstone = standing.tombstone(cursor + 1, standing.earliest_seq - 1, reason.name());
            return Start::at(topic, live_seq - 1, Some(tombstone));
        }
        let is_next = |seq: u64| !topic.removed().has_absent_in(live_seq..=seq);
        let gap = topic.origins.next_gap(cursor).filter(|(seq, _)| is_next(*seq));
        let Some((seq, gap)) = gap else { return Start::at(topic, live_seq - 1, None) };
        let origin = topic.origins.instance(gap.number).map(|instance| LostAtSource {
            instance: instance.clone(),
            gap_from: gap.from_seq,
            gap_to: gap.to_seq,
        });
        let tombstone = Tombstone { origin, ..standing.tombstone(seq, seq, "source_trim") };
        Start::at(topic, seq, Some(tombstone))
    }

    /// At the beginning of an instance that the reader does not know (C-GAP-10).
    pub fn recreated(topic: &Topic) -> Self {
        let standing = Standing::of(topic);
        let tombstone = standing.tombstone(1, standing.head_seq, "recreated");
        Start::at(topic, standing.earliest_seq - 1, Some(tombstone))
    }
}

/// Why a page could not be read to its end.
enum Stopped {
    /// What comes next was taken away meanwhile: the floors tell where to go on.
    Evicted,
    Failed(Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Stopped::Failed(error)
    }
}

impl Engine {
    /// Reads one page. Errors: `topic_not_found`, `no_leader`, `throttled`, `invalid_request` for an epoch to come.
    pub async fn page(&self, topic: &str, mut query: PageQuery) -> Result<Page, Error> {
        let deadline = Instant::now() + Duration::from_millis(query.wait_ms);
        let fence = self.fence(query.consistency).await?;
        let shared = self.catalog().get(topic).ok_or_else(|| Error::topic_not_found(topic))?;
        self.settle(fence, std::slice::from_ref(&shared)).await?;
        let mut scanned = 0;
        let waiting = (query.wait_ms > 0).then(|| {
            let bell = self.inner.hub.bell();
            let listener = bell.listen(shared.epoch, 0);
            (bell, listener)
        });
        loop {
            if let Some((bell, listener)) = &waiting {
                bell.forget_changed();
                // Listening first, reading second: what is applied in between is not missed.
                listener.rearm();
            }
            let Some(start) = self.place_cursor(&shared, &query).await? else {
                return Ok(ahead(&shared, &query));
            };
            let Some(mut page) = self.read_page(&shared, &query, start).await? else {
                // Nothing was read yet, and the floors have moved.
                continue;
            };
            scanned += page.records_scanned;
            page.records_scanned = scanned;
            let has_something = !page.records.is_empty() || page.tombstone.is_some() || !page.caught_up;
            let Some((bell, _)) = waiting.as_ref().filter(|_| !has_something && !self.is_closing()) else {
                return Ok(page);
            };
            if tokio::time::timeout_at(deadline, bell.wait()).await.is_err() {
                return Ok(page);
            }
            if shared.is_deleted() {
                return Err(Error::topic_not_found(topic));
            }
            // What was passed over in silence need not be looked at again, and which instance is meant has
            // been decided.
            query.from_seq = page.next_from_seq;
            (query.from_ts_ms, query.epoch) = (None, None);
        }
    }

    /// Decides where reading starts, contract sections 4.3 and 10; `None` if the cursor is above what this
    /// member has applied, which may just lag.
    async fn place_cursor(&self, shared: &SharedTopic, query: &PageQuery) -> Result<Option<Start>, Error> {
        let is_strong = query.consistency == Consistency::Strong;
        if let (None, Some(ts_ms)) = (query.epoch.filter(|epoch| *epoch != shared.epoch), query.from_ts_ms) {
            return Ok(Some(self.place_time(shared, ts_ms).await?));
        }
        let topic = shared.read();
        Ok(match query.epoch {
            Some(epoch) if epoch < shared.epoch => Some(Start::recreated(&topic)),
            Some(epoch) if epoch > shared.epoch && is_strong => {
                return Err(Error::invalid(format!("epoch {epoch} is above the topic's, {}", shared.epoch)));
            }
            Some(epoch) if epoch > shared.epoch => None,
            _ if query.from_seq > topic.head_seq => is_strong.then(|| Start::recreated(&topic)),
            _ => Some(Start::after(&topic, query.from_seq)),
        })
    }

    /// The seq before the first live record that is not older than `ts_ms`; the head if there is none.
    pub(super) async fn seq_before_time(&self, shared: &SharedTopic, ts_ms: u64) -> Result<u64, Error> {
        Ok(self.place_time(shared, ts_ms).await?.cursor)
    }

    /// Right before the first live record that is not older than `ts_ms` (C-DIFF-15, C-DIFF-16).
    async fn place_time(&self, shared: &SharedTopic, ts_ms: u64) -> Result<Start, Error> {
        let mut block: Option<SealedBlock> = None;
        loop {
            let (standing, place, removal_count) = {
                let topic = shared.read();
                (Standing::of(&topic), topic.locate_time(ts_ms, block.as_ref()), topic.removal_count)
            };
            let cursor = match place.map_err(|error| damaged(&error))? {
                TimePlace::AtHead => standing.head_seq,
                TimePlace::After(seq) => seq,
                TimePlace::Cold { block_first_seq } => {
                    let place = Place { cursor: standing.earliest_seq - 1, removal_count };
                    block = match self.fetch_block(shared, block_first_seq, place).await {
                        Ok(block) => Some(block),
                        Err(Stopped::Evicted) => None,
                        Err(Stopped::Failed(error)) => return Err(error),
                    };
                    continue;
                }
            };
            let topic = shared.read();
            // Younger records went than the one that is asked for. From which seq on, nobody knows any more.
            if standing.floors.evicted_ts_ms >= ts_ms && standing.floors.gap_after(0).is_some() {
                return Ok(Start::after(&topic, 0));
            }
            return Ok(Start::at(&topic, cursor.max(topic.earliest_seq - 1), None));
        }
    }

    /// Reads on from `start`; `None` if what comes there has been taken away since.
    pub(super) async fn read_page(
        &self,
        shared: &Arc<SharedTopic>,
        query: &PageQuery,
        start: Start,
    ) -> Result<Option<Page>, Error> {
        let Start { standing, cursor, limit_seq, tombstone } = start;
        let nobody;
        let drop_nodes = if shared.read().config.dedupe_node {
            &query.drop_nodes
        } else {
            nobody = Arc::default();
            &nobody
        };
        let mut filling = Filling {
            topic: shared,
            instance: None,
            records: Vec::new(),
            cursor,
            examined: 0,
            examined_bytes: 0,
            bytes: 0,
            limit: query.limit,
            max_bytes: query.max_bytes,
            drop_nodes,
            filter: query.filter.as_ref(),
            patience: query.patience,
            walks: query.filter.as_ref().map_or(0, |filter| filter.walks()),
            turn_work_bytes: 0,
            ahead: VecDeque::new(),
            look_until: None,
            removal_count: 0,
            is_full: false,
        };
        match self.fill(shared, &mut filling, limit_seq).await {
            Err(Stopped::Evicted) if filling.examined == 0 => return Ok(None),
            // What there was no room for is the next page's.
            Err(Stopped::Failed(error)) if filling.examined > 0 && is_no_room(&error) => {}
            // The next page begins with the gap.
            Ok(()) | Err(Stopped::Evicted) => {}
            Err(Stopped::Failed(error)) => return Err(error),
        }
        let next_from_seq = filling.cursor;
        Ok(Some(Page {
            epoch: shared.epoch,
            records: filling.records,
            stored_bytes: filling.bytes,
            next_from_seq,
            head_seq: standing.head_seq,
            earliest_seq: standing.earliest_seq,
            caught_up: next_from_seq == standing.head_seq,
            lag: standing.head_seq - next_from_seq,
            tombstone,
            records_scanned: filling.examined as u64,
        }))
    }

    async fn fill(
        &self,
        shared: &Arc<SharedTopic>,
        filling: &mut Filling<'_>,
        limit_seq: u64,
    ) -> Result<(), Stopped> {
        let mut block: Option<SealedBlock> = None;
        while !filling.is_full && filling.cursor < limit_seq {
            let located = {
                let topic = shared.read();
                filling.removal_count = topic.removal_count;
                topic.locate(filling.cursor, block.as_ref())
            };
            match located.map_err(|error| damaged(&error))? {
                // Whatever is left was removed.
                Located::AtHead => filling.cursor = limit_seq,
                Located::BelowEarliest => return Err(Stopped::Evicted),
                Located::Cold { block_first_seq } => {
                    let place = filling.place();
                    block = Some(self.fetch_block(shared, block_first_seq, place).await?);
                }
                Located::Runs(mut runs) => {
                    // Records behind a gap, or appended after the standing was taken, belong to the next page.
                    runs.retain(|run| run.first_seq <= limit_seq);
                    if runs.is_empty() {
                        filling.cursor = limit_seq;
                    }
                    self.fill_from(shared, filling, runs).await?;
                }
            }
        }
        Ok(())
    }

    /// Takes records from `runs` until the page is full or the runs end. Runs whose entries are not in
    /// memory are fetched together.
    async fn fill_from(
        &self,
        shared: &SharedTopic,
        filling: &mut Filling<'_>,
        runs: Vec<Run>,
    ) -> Result<(), Stopped> {
        let mut runs = runs.as_slice();
        let mut known: Option<(EntryId, EntryRecords)> = None;
        while let Some((run, rest)) = runs.split_first().filter(|_| !filling.is_full) {
            // Parts of one run, where others were removed from between them.
            let in_memory = match known.take().filter(|(id, _)| *id == run.entry) {
                Some((_, entry)) => Some(Ok(entry)),
                None => self.inner.log.cached(run.entry).map(|entry| EntryRecords::parse(entry.payload)),
            };
            if let Some(entry) = in_memory.transpose().map_err(|error| damaged(&error))? {
                while !filling.take(run, &entry)? {
                    let more = rest.iter().take(MAX_RUNS_AHEAD).map(|run| (*run, None));
                    let ahead = || [(*run, Some(entry.clone()))].into_iter().chain(more).collect();
                    filling.take_turn(&self.inner.log, ahead).await?;
                }
                known = Some((run.entry, entry));
                runs = rest;
                continue;
            }
            let wanted = filling.limit - filling.records.len();
            let mut covered = 0;
            let cold: Vec<Run> = runs
                .iter()
                .take_while(|run| {
                    let is_wanted = covered < wanted as u64;
                    covered += run.count;
                    is_wanted
                })
                .copied()
                .collect();
            let budget_bytes = filling.max_bytes - filling.bytes.min(filling.max_bytes);
            let patience = filling.records.is_empty().then_some(filling.patience);
            let fetched = self.fetch_entries(shared, cold, budget_bytes, filling.place(), patience).await?;
            filling.is_full |= fetched.is_empty();
            runs = &runs[fetched.len()..];
            let mut fetched = fetched.as_slice();
            while let Some(((run, entry), rest)) = fetched.split_first().filter(|_| !filling.is_full) {
                while !filling.take(run, entry)? {
                    let ahead =
                        || fetched.iter().take(MAX_RUNS_AHEAD).map(|(run, it)| (*run, Some(it.clone())));
                    filling.take_turn(&self.inner.log, || ahead().collect()).await?;
                }
                fetched = rest;
            }
        }
        Ok(())
    }

    /// `place` is where the page stands.
    async fn fetch_block(
        &self,
        shared: &SharedTopic,
        first_seq: u64,
        place: Place,
    ) -> Result<SealedBlock, Stopped> {
        let (applied, epoch) = (self.inner.node.applied().clone(), shared.epoch);
        let fetched = task::blocking_for_client(move || applied.sealed_block(epoch, first_seq)).await;
        fetched
            .map_err(|error| unreadable(shared, place, &error))?
            .ok_or_else(|| unreadable(shared, place, &"a block of the index is missing from the checkpoint"))
    }

    /// Entries of the first of `runs`; of none if there is no room for one and there is no patience to wait for it.
    async fn fetch_entries(
        &self,
        shared: &SharedTopic,
        runs: Vec<Run>,
        budget_bytes: usize,
        place: Place,
        patience: Option<Duration>,
    ) -> Result<Vec<(Run, EntryRecords)>, Stopped> {
        let runs: Arc<[Run]> = runs.into();
        let mut room = None;
        loop {
            let (reader, runs) = (self.inner.cold_entries.reader(self.inner.log.clone()), runs.clone());
            let reading = task::blocking_for_client(move || reader.read(&runs, budget_bytes, room));
            match reading.await.map_err(|error| unreadable(shared, place, &error))? {
                Read::Entries(entries) => return Ok(entries),
                Read::NoRoom(units) => match patience {
                    Some(patience) => room = Some(self.inner.cold_entries.wait(units, patience).await?),
                    None => return Ok(Vec::new()),
                },
            }
        }
    }
}

/// The answer to a cursor above this member's head (C-EPOCH-05).
fn ahead(shared: &SharedTopic, query: &PageQuery) -> Page {
    let Standing { head_seq, earliest_seq, .. } = Standing::of(&shared.read());
    Page {
        epoch: shared.epoch,
        records: Vec::new(),
        stored_bytes: 0,
        next_from_seq: query.from_seq,
        head_seq,
        earliest_seq,
        caught_up: false,
        lag: 0,
        tombstone: None,
        records_scanned: 0,
    }
}

/// A part of `shared` above `cursor` is not there. If the topic was deleted or the records were taken away
/// meanwhile, that is how it should be: their space is being freed.
fn unreadable(shared: &SharedTopic, place: Place, error: &dyn std::fmt::Display) -> Stopped {
    if shared.is_deleted() {
        Stopped::Failed(Error::topic_not_found(&shared.read().name))
    } else if place.has_moved(&shared.read()) {
        Stopped::Evicted
    } else {
        Stopped::Failed(damaged(error))
    }
}

/// What was read does not have the form that was written. It is reported, never served.
pub(super) fn damaged(error: &dyn std::fmt::Display) -> Error {
    static LINES: LazyLock<Seldom> = LazyLock::new(|| Seldom::new(|line| tracing::error!("{line}")));
    LINES.tell(format_args!("a read failed: {error}"));
    Error::new(Code::Internal, format!("this member cannot read what it stored: {error}"))
}
