//! A page while it is being filled: which records it takes, and when it is full.

use std::sync::Arc;

use super::page::{PageRecord, RecordOrigin, damaged};
use crate::error::Error;
use crate::filter::Filter;
use crate::limits::{MAX_PAGE_EXAMINED, MAX_PAGE_EXAMINED_BYTES};
use crate::record::{EntryRecords, Record};
use crate::state::{Instance, Overlay, Run, SharedTopic, Topic};

/// Work after which a page lets others have the thread, in bytes that are walked over: about a millisecond.
const TURN_WORK_BYTES: usize = 256 << 10;
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
    pub drop_nodes: &'a [String],
    pub filter: Option<&'a Filter>,
    /// How often the filter may walk over a record.
    pub walks: usize,
    /// Work since others last had the thread.
    pub turn_work_bytes: usize,
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

    /// Takes what `run` has of this page. A filter may have to look at much before it finds anything, so others
    /// get the thread in between.
    pub async fn take(&mut self, run: &Run, entry: &EntryRecords) -> Result<(), Error> {
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
            if self.passes(run.overlay, bytes)? {
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
    fn passes(&self, overlay: Overlay, record: &[u8]) -> Result<bool, Error> {
        if !self.drop_nodes.is_empty() && !overlay.drops_node {
            let node = Record::decode_node(record).map_err(|error| damaged(&error))?;
            if node.is_some_and(|node| self.drop_nodes.iter().any(|dropped| dropped == node)) {
                return Ok(false);
            }
        }
        let Some(filter) = self.filter else { return Ok(true) };
        let record = Record::decode(record).map_err(|error| damaged(&error))?;
        Ok(filter.matches(&overlay.apply(record)))
    }

    /// The instance of this number, looked up once for all copies of it in a row.
    fn instance(&mut self, number: u32) -> Option<Arc<Instance>> {
        if self.instance.as_ref().is_none_or(|(known, _)| *known != number) {
            self.instance = self.topic.read().origins.instance(number).map(|it| (number, it.clone()));
        }
        self.instance.as_ref().map(|(_, instance)| instance.clone())
    }
}
