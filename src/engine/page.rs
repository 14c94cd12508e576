//! Reading a page of a topic.
//!
//! Cursor, runs, entries, records: the topic says which log entries hold the records behind a cursor, the
//! log gives their bytes, and the page takes what it may hold. What lies in memory is read on the spot;
//! what does not is fetched by a thread that may wait for the disk, a page's worth at a time. No lock is
//! held while records are read: they never change, and neither does a run.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Consistency, Engine};
use crate::error::{Code, Error};
use crate::filter::Filter;
use crate::limits::{MAX_PAGE_EXAMINED, MAX_PAGE_EXAMINED_BYTES};
use crate::record::{EntryRecords, Record};
use crate::state::{Floors, Located, Run, SealedBlock, SharedTopic, TimePlace, Topic};
use crate::storage::EntryId;
use crate::task;

/// Work after which a page lets others have the thread, in bytes that are walked over: about a millisecond.
const TURN_WORK_BYTES: usize = 256 << 10;
/// Work of looking at a record at all.
const RECORD_WORK_BYTES: usize = 128;

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
    pub drop_nodes: Vec<String>,
    /// Records that do not pass it are passed over.
    pub filter: Option<Arc<Filter>>,
    /// The topic instance that `from_seq` belongs to.
    pub epoch: Option<u64>,
    pub consistency: Consistency,
    /// How long to wait for something to say, in milliseconds.
    pub wait_ms: u64,
}

/// One record of a page: `entry.record(position)` has its bytes.
#[derive(Debug, Clone)]
pub struct PageRecord {
    pub seq: u64,
    pub ts_ms: u64,
    pub entry: EntryRecords,
    pub position: u32,
}

/// Records that the reader asked for and cannot have; the range is inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    pub gap_from: u64,
    pub gap_to: u64,
    pub reason: &'static str,
    pub earliest_seq: u64,
    pub head_seq: u64,
}

/// A page and where it stands in its topic.
#[derive(Debug, Clone)]
pub struct Page {
    pub epoch: u64,
    pub records: Vec<PageRecord>,
    /// Seq of the last record examined.
    pub next_from_seq: u64,
    pub head_seq: u64,
    pub earliest_seq: u64,
    pub caught_up: bool,
    pub lag: u64,
    pub tombstone: Option<Tombstone>,
    pub records_scanned: u64,
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
        Tombstone { gap_from, gap_to, reason, earliest_seq: self.earliest_seq, head_seq: self.head_seq }
    }

    /// Right before the first live record, as seen from `cursor` below it (C-GAP-03 to C-GAP-06).
    pub fn after(self, cursor: u64) -> Start {
        let gap = self.floors.gap_after(cursor);
        let tombstone = gap.map(|reason| self.tombstone(cursor + 1, self.earliest_seq - 1, reason.name()));
        Start { standing: self, cursor: cursor.max(self.earliest_seq - 1), tombstone }
    }

    pub fn recreated(self) -> Start {
        let tombstone = Some(self.tombstone(1, self.head_seq, "recreated"));
        Start { standing: self, cursor: self.earliest_seq - 1, tombstone }
    }
}

/// Where reading starts.
pub(super) struct Start {
    standing: Standing,
    pub cursor: u64,
    pub tombstone: Option<Tombstone>,
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
    /// Reads one page. Errors: `topic_not_found`, `no_leader`, `invalid_request` for an epoch to come.
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
            let Some((bell, _)) = waiting.as_ref().filter(|_| !has_something && !self.is_draining()) else {
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
        let standing = Standing::of(&shared.read());
        let is_strong = query.consistency == Consistency::Strong;
        Ok(match (query.epoch, query.from_ts_ms) {
            (Some(epoch), _) if epoch < shared.epoch => Some(standing.recreated()),
            (Some(epoch), _) if epoch > shared.epoch && is_strong => {
                return Err(Error::invalid(format!("epoch {epoch} is above the topic's, {}", shared.epoch)));
            }
            (Some(epoch), _) if epoch > shared.epoch => None,
            (_, Some(ts_ms)) => Some(self.place_time(shared, ts_ms).await?),
            _ if query.from_seq > standing.head_seq => is_strong.then(|| standing.recreated()),
            _ => Some(standing.after(query.from_seq)),
        })
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
            // Younger records went than the one that is asked for. From which seq on, nobody knows any more.
            if standing.floors.evicted_ts_ms >= ts_ms && standing.floors.gap_after(0).is_some() {
                return Ok(standing.after(0));
            }
            let cursor = cursor.max(standing.earliest_seq - 1);
            return Ok(Start { standing, cursor, tombstone: None });
        }
    }

    /// Reads on from `start`; `None` if what comes there has been taken away since.
    pub(super) async fn read_page(
        &self,
        shared: &Arc<SharedTopic>,
        query: &PageQuery,
        start: Start,
    ) -> Result<Option<Page>, Error> {
        let Start { standing, cursor, tombstone } = start;
        let drop_nodes: &[String] = if shared.read().config.dedupe_node { &query.drop_nodes } else { &[] };
        let mut filling = Filling {
            records: Vec::new(),
            cursor,
            examined: 0,
            examined_bytes: 0,
            bytes: 0,
            limit: query.limit,
            max_bytes: query.max_bytes,
            drop_nodes,
            filter: query.filter.as_deref(),
            walks: query.filter.as_ref().map_or(0, |filter| filter.walks()),
            turn_work_bytes: 0,
            removal_count: 0,
            is_full: false,
        };
        match self.fill(shared, &mut filling, standing.head_seq).await {
            Err(Stopped::Evicted) if filling.examined == 0 => return Ok(None),
            // The next page begins with the gap.
            Ok(()) | Err(Stopped::Evicted) => {}
            Err(Stopped::Failed(error)) => return Err(error),
        }
        let next_from_seq = filling.cursor;
        Ok(Some(Page {
            epoch: shared.epoch,
            records: filling.records,
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
        head_seq: u64,
    ) -> Result<(), Stopped> {
        let mut block: Option<SealedBlock> = None;
        while !filling.is_full && filling.cursor < head_seq {
            let located = {
                let topic = shared.read();
                filling.removal_count = topic.removal_count;
                topic.locate(filling.cursor, block.as_ref())
            };
            match located.map_err(|error| damaged(&error))? {
                // Whatever is left was removed.
                Located::AtHead => filling.cursor = head_seq,
                Located::BelowEarliest => return Err(Stopped::Evicted),
                Located::Cold { block_first_seq } => {
                    let place = filling.place();
                    block = Some(self.fetch_block(shared, block_first_seq, place).await?);
                }
                Located::Runs(mut runs) => {
                    // Records appended after the standing was taken belong to the next page.
                    runs.retain(|run| run.first_seq <= head_seq);
                    if runs.is_empty() {
                        filling.cursor = head_seq;
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
            if let Some((_, entry)) = known.as_ref().filter(|(id, _)| *id == run.entry) {
                filling.take(run, entry).await?;
                runs = rest;
                continue;
            }
            if let Some(entry) = self.inner.log.cached(run.entry) {
                let entry = EntryRecords::parse(entry.payload).map_err(|error| damaged(&error))?;
                filling.take(run, &entry).await?;
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
            let fetched = self.fetch_entries(shared, cold, budget_bytes, filling.place()).await?;
            runs = &runs[fetched.len()..];
            for (run, entry) in fetched {
                if filling.is_full {
                    break;
                }
                filling.take(&run, &entry).await?;
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
        let fetched = task::blocking(move || applied.sealed_block(epoch, first_seq)).await;
        fetched
            .map_err(|error| unreadable(shared, place, &error))?
            .ok_or_else(|| unreadable(shared, place, &"a block of the index is missing from the checkpoint"))
    }

    async fn fetch_entries(
        &self,
        shared: &SharedTopic,
        runs: Vec<Run>,
        budget_bytes: usize,
        place: Place,
    ) -> Result<Vec<(Run, EntryRecords)>, Stopped> {
        let log = self.inner.log.clone();
        let fetched = task::blocking(move || {
            let (mut fetched, mut bytes) = (Vec::with_capacity(runs.len()), 0);
            for run in runs {
                let known = fetched.last().filter(|(last, _): &&(Run, EntryRecords)| last.entry == run.entry);
                let entry = match known {
                    Some((_, entry)) => entry.clone(),
                    None => {
                        let payload = log.payload(run.entry)?;
                        bytes += payload.len();
                        EntryRecords::parse(payload)?
                    }
                };
                fetched.push((run, entry));
                if bytes > budget_bytes {
                    break;
                }
            }
            Ok(fetched)
        });
        fetched.await.map_err(|error| unreadable(shared, place, &error))
    }
}

/// The answer to a cursor above this member's head (C-EPOCH-05).
fn ahead(shared: &SharedTopic, query: &PageQuery) -> Page {
    let Standing { head_seq, earliest_seq, .. } = Standing::of(&shared.read());
    Page {
        epoch: shared.epoch,
        records: Vec::new(),
        next_from_seq: query.from_seq,
        head_seq,
        earliest_seq,
        caught_up: false,
        lag: 0,
        tombstone: None,
        records_scanned: 0,
    }
}

/// A page that is being filled.
struct Filling<'a> {
    records: Vec<PageRecord>,
    /// Last seq examined.
    cursor: u64,
    examined: usize,
    examined_bytes: usize,
    bytes: usize,
    limit: usize,
    max_bytes: usize,
    drop_nodes: &'a [String],
    filter: Option<&'a Filter>,
    /// How often the filter may walk over a record.
    walks: usize,
    /// Work since others last had the thread.
    turn_work_bytes: usize,
    /// How often something had been removed when the runs were looked up.
    removal_count: u64,
    is_full: bool,
}

/// Where a page stands, and as of which removals.
#[derive(Clone, Copy)]
struct Place {
    cursor: u64,
    removal_count: u64,
}

impl Place {
    fn has_moved(self, topic: &Topic) -> bool {
        topic.earliest_seq > self.cursor + 1 || topic.removal_count != self.removal_count
    }
}

impl Filling<'_> {
    fn place(&self) -> Place {
        Place { cursor: self.cursor, removal_count: self.removal_count }
    }

    /// Takes what `run` has of this page. A filter may have to look at much before it finds anything, so others
    /// get the thread in between.
    async fn take(&mut self, run: &Run, entry: &EntryRecords) -> Result<(), Error> {
        while !self.take_turn(run, entry)? {
            self.turn_work_bytes = 0;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// `false` if there is more to do, after others had their turn.
    fn take_turn(&mut self, run: &Run, entry: &EntryRecords) -> Result<bool, Error> {
        // What was examined in an earlier turn.
        let examined = (self.cursor + 1).saturating_sub(run.first_seq);
        for offset in examined..run.count {
            if self.is_full {
                return Ok(true);
            }
            if self.turn_work_bytes >= TURN_WORK_BYTES {
                return Ok(false);
            }
            let position = run.first_position + offset as u32;
            let bytes = entry.record(position).ok_or_else(|| damaged(&"an entry lacks a record"))?;
            let seq = run.first_seq + offset;
            self.turn_work_bytes += RECORD_WORK_BYTES + self.walks * bytes.len();
            if self.passes(bytes)? {
                if !self.records.is_empty() && self.bytes + bytes.len() > self.max_bytes {
                    self.is_full = true;
                    return Ok(true);
                }
                self.bytes += bytes.len();
                self.records.push(PageRecord { seq, ts_ms: run.ts_ms, entry: entry.clone(), position });
            }
            self.examined += 1;
            self.examined_bytes += bytes.len();
            self.cursor = seq;
            // Known with the last record that fits, not with the first that does not: a page that ends
            // where a run ends would go on to fetch the next run, of which it wants nothing, for ever.
            self.is_full = self.records.len() >= self.limit
                || self.examined >= MAX_PAGE_EXAMINED
                || self.examined_bytes >= MAX_PAGE_EXAMINED_BYTES;
        }
        Ok(true)
    }

    /// First `node`, then the filter (C-DIFF-08).
    fn passes(&self, record: &[u8]) -> Result<bool, Error> {
        if !self.drop_nodes.is_empty() {
            let node = Record::decode_node(record).map_err(|error| damaged(&error))?;
            if node.is_some_and(|node| self.drop_nodes.iter().any(|dropped| dropped == node)) {
                return Ok(false);
            }
        }
        let Some(filter) = self.filter else { return Ok(true) };
        Ok(filter.matches(&Record::decode(record).map_err(|error| damaged(&error))?))
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
    tracing::error!("a read failed: {error}");
    Error::new(Code::Internal, format!("this member cannot read what it stored: {error}"))
}
