//! A page while it is being filled: which records it takes, and when it is full.
//!
//! A filter of many leaves may walk over much before it lets anything pass. Up to about a millisecond of that is done on
//! the spot; what is more is looked at ahead on threads for it, in turns, and the page is filled with what they found.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::page::{PageRecord, RecordOrigin, damaged};
use crate::codec::Malformed;
use crate::error::Error;
use crate::filter::Filter;
use crate::limits::{MAX_PAGE_EXAMINED, MAX_PAGE_EXAMINED_BYTES, MAX_PAGE_LOOK_TIME};
use crate::record::{EntryRecords, Record};
use crate::state::{Instance, Overlay, Run, SharedTopic, Topic};
use crate::storage::Log;
use crate::task;

/// Work after which a page lets others have the thread, in bytes that are walked over: about a millisecond.
const TURN_WORK_BYTES: usize = 256 << 10;
/// The same of a turn on a thread for such work; a record is looked at as a whole. And runs that one goes through.
const AHEAD_WORK_BYTES: usize = 8 << 20;
pub(super) const MAX_RUNS_AHEAD: usize = 256;
/// Work of looking at a record at all.
const RECORD_WORK_BYTES: usize = 128;

/// A page that is being filled.
pub(super) struct Filling<'a> {
    pub topic: &'a SharedTopic,
    pub instance: Option<(u32, Arc<Instance>)>,
    pub records: Vec<PageRecord>,
    /// Last seq examined.
    pub cursor: u64,
    pub examined: usize,
    pub examined_bytes: usize,
    pub bytes: usize,
    pub limit: usize,
    pub max_bytes: usize,
    pub drop_nodes: &'a Arc<[String]>,
    pub filter: Option<&'a Arc<Filter>>,
    /// How long it waits for room for what it has to read.
    pub patience: Duration,
    /// How often the filter may walk over a record.
    pub walks: usize,
    /// Work since others last had the thread.
    pub turn_work_bytes: usize,
    /// What was looked at ahead: seqs behind the cursor, and whether they pass.
    pub ahead: VecDeque<(u64, bool)>,
    /// When it ends even if nothing was found: it takes turns, and others wait for theirs.
    pub look_until: Option<Instant>,
    /// How often something had been removed when the runs were looked up.
    pub removal_count: u64,
    pub is_full: bool,
}

/// Where a page stands, and as of which removals.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub cursor: u64,
    pub removal_count: u64,
}

impl Place {
    pub fn has_moved(self, topic: &Topic) -> bool {
        topic.earliest_seq > self.cursor + 1 || topic.removal_count != self.removal_count
    }
}

impl Filling<'_> {
    pub fn place(&self) -> Place {
        Place { cursor: self.cursor, removal_count: self.removal_count }
    }

    /// Takes what `run` has of this page. `false` if there is more to do, after a turn: see [`Filling::take_turn`].
    pub fn take(&mut self, run: &Run, entry: &EntryRecords) -> Result<bool, Error> {
        // What was examined in an earlier turn.
        let examined = (self.cursor + 1).saturating_sub(run.first_seq);
        for offset in examined..run.count {
            if self.is_full {
                return Ok(true);
            }
            let position = run.first_position + offset as u32;
            let bytes = entry.record(position).ok_or_else(|| damaged(&"an entry lacks a record"))?;
            let seq = run.first_seq + offset;
            let known = self.ahead.front().filter(|(ahead, _)| *ahead == seq).map(|(_, passes)| *passes);
            let walks = if known.is_some() { 0 } else { self.walks };
            let work_bytes = RECORD_WORK_BYTES + walks * bytes.len();
            if self.turn_work_bytes + work_bytes > TURN_WORK_BYTES {
                return Ok(false);
            }
            self.turn_work_bytes += work_bytes;
            let passes = match known {
                Some(passes) => passes,
                None => self.sieve().passes(run.overlay, bytes).map_err(|error| damaged(&error))?,
            };
            if passes {
                if !self.records.is_empty() && self.bytes + bytes.len() > self.max_bytes {
                    self.is_full = true;
                    return Ok(true);
                }
                self.bytes += bytes.len();
                let origin = run.origin.and_then(|origin| {
                    let instance = self.instance(origin.number)?;
                    Some(RecordOrigin { instance, seq: origin.first_seq + offset, ts_ms: origin.ts_ms })
                });
                self.records.push(PageRecord {
                    seq,
                    ts_ms: run.ts_ms,
                    entry: entry.clone(),
                    position,
                    entry_id: run.entry,
                    overlay: run.overlay,
                    origin,
                });
            }
            if known.is_some() {
                self.ahead.pop_front();
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

    /// Lets others have their turn, and then looks ahead at some of `runs`, which begin with the one that was not taken to
    /// its end. Those without an entry are looked at as far as they are in memory.
    pub async fn take_turn(
        &mut self,
        log: &Log,
        runs: impl FnOnce() -> Vec<(Run, Option<EntryRecords>)>,
    ) -> Result<(), Error> {
        self.turn_work_bytes = 0;
        let Some(filter) = self.filter.filter(|_| self.ahead.is_empty()) else {
            tokio::task::yield_now().await;
            return Ok(());
        };
        let until = *self.look_until.get_or_insert_with(|| Instant::now() + MAX_PAGE_LOOK_TIME);
        if self.examined > 0 && Instant::now() >= until {
            self.is_full = true;
            return Ok(());
        }
        let (log, runs) = (log.clone(), runs());
        let (filter, drop_nodes) = (filter.clone(), self.drop_nodes.clone());
        let (cursor, wanted, walks) = (self.cursor, self.limit - self.records.len(), self.walks);
        let looking = task::computing_for_client(move || {
            let sieve = Sieve { drop_nodes: &drop_nodes, filter: Some(&filter) };
            sieve.look_ahead(&log, runs, cursor, wanted, walks)
        });
        self.ahead = looking.await.map_err(|error| damaged(&error))?.map_err(|error| damaged(&error))?;
        Ok(())
    }

    fn sieve(&self) -> Sieve<'_> {
        Sieve { drop_nodes: self.drop_nodes, filter: self.filter.map(|filter| &**filter) }
    }

    /// The instance of this number, looked up once for all copies of it in a row.
    fn instance(&mut self, number: u32) -> Option<Arc<Instance>> {
        if self.instance.as_ref().is_none_or(|(known, _)| *known != number) {
            self.instance = self.topic.read().origins.instance(number).map(|it| (number, it.clone()));
        }
        self.instance.as_ref().map(|(_, instance)| instance.clone())
    }
}

/// What decides whether a record is shown.
struct Sieve<'a> {
    drop_nodes: &'a [String],
    filter: Option<&'a Filter>,
}

impl Sieve<'_> {
    /// First `node`, then the filter (C-DIFF-08).
    fn passes(&self, overlay: Overlay, record: &[u8]) -> Result<bool, Malformed> {
        if !self.drop_nodes.is_empty() && !overlay.drops_node {
            let node = Record::decode_node(record)?;
            if node.is_some_and(|node| self.drop_nodes.iter().any(|dropped| dropped == node)) {
                return Ok(false);
            }
        }
        let Some(filter) = self.filter else { return Ok(true) };
        Ok(filter.matches(&overlay.apply(Record::decode(record)?)))
    }

    /// Which records of `runs` behind `cursor` pass: a turn's worth, one at least, and no more than `wanted` that do.
    fn look_ahead(
        &self,
        log: &Log,
        runs: Vec<(Run, Option<EntryRecords>)>,
        cursor: u64,
        wanted: usize,
        walks: usize,
    ) -> Result<VecDeque<(u64, bool)>, Malformed> {
        let (mut ahead, mut work_bytes, mut passed) = (VecDeque::new(), 0, 0);
        for (run, entry) in runs {
            let cached = || log.cached(run.entry).map(|entry| EntryRecords::parse(entry.payload));
            let Some(entry) = entry.map(Ok).or_else(cached).transpose()? else { break };
            let examined = (cursor + 1).saturating_sub(run.first_seq);
            for offset in examined..run.count {
                let position = run.first_position + offset as u32;
                let record = entry.record(position).ok_or(Malformed("an entry lacks a record"))?;
                let passes = self.passes(run.overlay, record)?;
                ahead.push_back((run.first_seq + offset, passes));
                work_bytes += RECORD_WORK_BYTES + walks * record.len();
                passed += usize::from(passes);
                if work_bytes >= AHEAD_WORK_BYTES || passed >= wanted {
                    return Ok(ahead);
                }
            }
        }
        Ok(ahead)
    }
}
