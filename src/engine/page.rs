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
use crate::limits::MAX_PAGE_EXAMINED;
use crate::record::{EntryRecords, Record};
use crate::state::{Located, Run, SealedBlock, SharedTopic};
use crate::task;

/// What a page should hold.
#[derive(Debug, Clone)]
pub struct PageQuery {
    /// Only records with a higher seq.
    pub from_seq: u64,
    pub limit: usize,
    /// Budget for the records' bytes; the first record is delivered whatever its size.
    pub max_bytes: usize,
    /// Records with one of these `node` labels are passed over.
    pub drop_nodes: Vec<String>,
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

/// The floors of a topic at one moment.
#[derive(Clone, Copy)]
struct Floors {
    head_seq: u64,
    earliest_seq: u64,
}

impl Engine {
    /// Reads one page. Errors: `topic_not_found`, `no_leader`, `invalid_request` for an epoch to come.
    pub async fn page(&self, topic: &str, mut query: PageQuery) -> Result<Page, Error> {
        let deadline = Instant::now() + Duration::from_millis(query.wait_ms);
        self.fence(query.consistency).await?;
        let shared = self.catalog().get(topic).ok_or_else(|| Error::topic_not_found(topic))?;
        let (cursor, tombstone) = match self.place_cursor(&shared, &query)? {
            Cursor::At(cursor, tombstone) => (cursor, tombstone),
            Cursor::Ahead(page) => return Ok(*page),
        };
        query.from_seq = cursor;
        let mut scanned = 0;
        loop {
            let listener = (query.wait_ms > 0).then(|| self.inner.hub.listen(shared.epoch));
            let mut bell = listener.as_ref().map(|listener| Box::pin(listener.notify.notified()));
            if let Some(bell) = bell.as_mut() {
                // Listening first, reading second: what is applied in between is not missed.
                bell.as_mut().enable();
            }
            let mut page = self.read_page(&shared, &query).await?;
            scanned += page.records_scanned;
            page.records_scanned = scanned;
            page.tombstone = tombstone.clone();
            let has_something = !page.records.is_empty() || page.tombstone.is_some() || !page.caught_up;
            let Some(bell) = bell.filter(|_| !has_something && !self.is_draining()) else {
                return Ok(page);
            };
            if tokio::time::timeout_at(deadline, bell).await.is_err() {
                return Ok(page);
            }
            if shared.is_deleted() {
                return Err(Error::topic_not_found(topic));
            }
            // What was passed over in silence need not be looked at again.
            query.from_seq = page.next_from_seq;
        }
    }

    /// Decides where reading starts, contract sections 4.3 and 10.
    fn place_cursor(&self, shared: &SharedTopic, query: &PageQuery) -> Result<Cursor, Error> {
        let floors = floors(shared);
        let recreated = || {
            let Floors { head_seq, earliest_seq } = floors;
            let tombstone =
                Tombstone { gap_from: 1, gap_to: head_seq, reason: "recreated", earliest_seq, head_seq };
            Cursor::At(earliest_seq - 1, Some(tombstone))
        };
        let ahead = || {
            Cursor::Ahead(Box::new(Page {
                epoch: shared.epoch,
                records: Vec::new(),
                next_from_seq: query.from_seq,
                head_seq: floors.head_seq,
                earliest_seq: floors.earliest_seq,
                caught_up: false,
                lag: 0,
                tombstone: None,
                records_scanned: 0,
            }))
        };
        let is_strong = query.consistency == Consistency::Strong;
        Ok(match query.epoch {
            Some(epoch) if epoch < shared.epoch => recreated(),
            Some(epoch) if epoch > shared.epoch && is_strong => {
                return Err(Error::invalid(format!("epoch {epoch} is above the topic's, {}", shared.epoch)));
            }
            Some(epoch) if epoch > shared.epoch => ahead(),
            _ if query.from_seq > floors.head_seq && is_strong => recreated(),
            _ if query.from_seq > floors.head_seq => ahead(),
            // Below the first live record there is nothing to look at.
            _ => Cursor::At(query.from_seq.max(floors.earliest_seq - 1), None),
        })
    }

    async fn read_page(&self, shared: &Arc<SharedTopic>, query: &PageQuery) -> Result<Page, Error> {
        let floors = floors(shared);
        let drop_nodes: &[String] = if shared.read().config.dedupe_node { &query.drop_nodes } else { &[] };
        let mut filling = Filling {
            records: Vec::new(),
            cursor: query.from_seq,
            examined: 0,
            bytes: 0,
            limit: query.limit,
            max_bytes: query.max_bytes,
            drop_nodes,
            is_full: false,
        };
        let mut block: Option<SealedBlock> = None;
        while !filling.is_full && filling.cursor < floors.head_seq {
            let located = shared.read().locate(filling.cursor, block.as_ref());
            match located.map_err(|error| damaged(&error))? {
                Located::AtHead => break,
                Located::Cold { block_first_seq } => {
                    block = Some(self.fetch_block(shared, block_first_seq).await?);
                }
                Located::Runs(mut runs) => {
                    // Records appended after the floors were taken belong to the next page.
                    runs.retain(|run| run.first_seq <= floors.head_seq);
                    self.fill_from(shared, &mut filling, runs).await?;
                }
            }
        }
        let next_from_seq = filling.cursor;
        Ok(Page {
            epoch: shared.epoch,
            records: filling.records,
            next_from_seq,
            head_seq: floors.head_seq,
            earliest_seq: floors.earliest_seq,
            caught_up: next_from_seq == floors.head_seq,
            lag: floors.head_seq - next_from_seq,
            tombstone: None,
            records_scanned: filling.examined as u64,
        })
    }

    /// Takes records from `runs` until the page is full or the runs end. Runs whose entries are not in
    /// memory are fetched together.
    async fn fill_from(
        &self,
        shared: &SharedTopic,
        filling: &mut Filling<'_>,
        runs: Vec<Run>,
    ) -> Result<(), Error> {
        let mut runs = runs.as_slice();
        while let Some((run, rest)) = runs.split_first().filter(|_| !filling.is_full) {
            if let Some(entry) = self.inner.log.cached(run.entry) {
                let entry = EntryRecords::parse(entry.payload).map_err(|error| damaged(&error))?;
                filling.take(run, &entry)?;
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
            let fetched = self.fetch_entries(shared, cold, budget_bytes).await?;
            runs = &runs[fetched.len()..];
            for (run, entry) in fetched {
                if filling.is_full {
                    break;
                }
                filling.take(&run, &entry)?;
            }
        }
        Ok(())
    }

    async fn fetch_block(&self, shared: &SharedTopic, first_seq: u64) -> Result<SealedBlock, Error> {
        let (applied, epoch) = (self.inner.node.applied().clone(), shared.epoch);
        let fetched = task::blocking(move || applied.sealed_block(epoch, first_seq)).await;
        fetched
            .map_err(|error| unreadable(shared, &error))?
            .ok_or_else(|| unreadable(shared, &"a block of the index is missing from the checkpoint"))
    }

    async fn fetch_entries(
        &self,
        shared: &SharedTopic,
        runs: Vec<Run>,
        budget_bytes: usize,
    ) -> Result<Vec<(Run, EntryRecords)>, Error> {
        let log = self.inner.log.clone();
        let fetched = task::blocking(move || {
            let (mut fetched, mut bytes) = (Vec::with_capacity(runs.len()), 0);
            for run in runs {
                let payload = log.payload(run.entry)?;
                bytes += payload.len();
                fetched.push((run, EntryRecords::parse(payload)?));
                if bytes > budget_bytes {
                    break;
                }
            }
            Ok(fetched)
        });
        fetched.await.map_err(|error| unreadable(shared, &error))
    }
}

enum Cursor {
    At(u64, Option<Tombstone>),
    /// The cursor is above what this member has applied: it may just lag.
    Ahead(Box<Page>),
}

fn floors(shared: &SharedTopic) -> Floors {
    let topic = shared.read();
    Floors { head_seq: topic.head_seq, earliest_seq: topic.earliest_seq }
}

/// A page that is being filled.
struct Filling<'a> {
    records: Vec<PageRecord>,
    /// Last seq examined.
    cursor: u64,
    examined: usize,
    bytes: usize,
    limit: usize,
    max_bytes: usize,
    drop_nodes: &'a [String],
    is_full: bool,
}

impl Filling<'_> {
    fn take(&mut self, run: &Run, entry: &EntryRecords) -> Result<(), Error> {
        for offset in 0..run.count {
            if self.is_full {
                return Ok(());
            }
            let position = run.first_position + offset as u32;
            let bytes = entry.record(position).ok_or_else(|| damaged(&"an entry lacks a record"))?;
            let seq = run.first_seq + offset;
            if self.passes(bytes)? {
                if !self.records.is_empty() && self.bytes + bytes.len() > self.max_bytes {
                    self.is_full = true;
                    return Ok(());
                }
                self.bytes += bytes.len();
                self.records.push(PageRecord { seq, ts_ms: run.ts_ms, entry: entry.clone(), position });
            }
            self.examined += 1;
            self.cursor = seq;
            // Known with the last record that fits, not with the first that does not: a page that ends
            // where a run ends would go on to fetch the next run, of which it wants nothing, for ever.
            self.is_full = self.records.len() >= self.limit || self.examined >= MAX_PAGE_EXAMINED;
        }
        Ok(())
    }

    fn passes(&self, record: &[u8]) -> Result<bool, Error> {
        if self.drop_nodes.is_empty() {
            return Ok(true);
        }
        let node = Record::decode_node(record).map_err(|error| damaged(&error))?;
        Ok(node.is_none_or(|node| !self.drop_nodes.iter().any(|dropped| dropped == node)))
    }
}

/// A part of `shared` is not there. If the topic was deleted meanwhile, that is how it should be: its space
/// is being freed.
fn unreadable(shared: &SharedTopic, error: &dyn std::fmt::Display) -> Error {
    if shared.is_deleted() { Error::topic_not_found(&shared.read().name) } else { damaged(error) }
}

/// What was read does not have the form that was written. It is reported, never served.
fn damaged(error: &dyn std::fmt::Display) -> Error {
    tracing::error!("a read failed: {error}");
    Error::new(Code::Internal, format!("this member cannot read what it stored: {error}"))
}
