//! Layer 4: the verbs of the bus, without HTTP. Stub with the agreed interface, until the engine lands.
#![allow(unused_variables, clippy::todo)]

use std::sync::Arc;

use crate::error::Error;
use crate::record::EntryRecords;
use crate::state::{Catalog, Draft, Outcome, SharedTopic};

#[derive(Clone)]
pub struct Engine {
    catalog: Arc<Catalog>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    pub replicate_ms: f64,
    pub forward_ms: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    #[default]
    Strong,
    Eventual,
}

pub struct PageQuery {
    pub from_seq: u64,
    pub limit: usize,
    pub max_bytes: usize,
    pub drop_nodes: Vec<String>,
    pub epoch: Option<u64>,
    pub consistency: Consistency,
    pub wait_ms: u64,
}

pub struct PageRecord {
    pub seq: u64,
    pub ts_ms: u64,
    pub entry: EntryRecords,
    pub position: u32,
}

pub struct Tombstone {
    pub gap_from: u64,
    pub gap_to: u64,
    pub reason: &'static str,
    pub earliest_seq: u64,
    pub head_seq: u64,
}

pub struct Page {
    pub epoch: u64,
    pub records: Vec<PageRecord>,
    pub next_from_seq: u64,
    pub head_seq: u64,
    pub earliest_seq: u64,
    pub caught_up: bool,
    pub lag: u64,
    pub tombstone: Option<Tombstone>,
    pub records_scanned: u64,
}

pub struct MemberView {
    pub id: String,
    pub address: String,
    pub role: &'static str,
    pub state: &'static str,
    pub applied: u64,
    pub lag: u64,
    pub version: String,
}

pub struct ClusterView {
    pub cluster: String,
    pub leader: Option<String>,
    pub term: u64,
    pub commit: u64,
    pub members: Vec<MemberView>,
    pub member: String,
    pub applied: u64,
    pub digest: u64,
}

pub struct Readiness {
    pub is_ready: bool,
    /// `replay`, `catching_up` or `no_leader`.
    pub reason: &'static str,
    pub replay_progress: f64,
    pub leader: Option<String>,
    pub is_draining: bool,
}

impl Engine {
    pub fn member(&self) -> &str {
        todo!()
    }
    pub fn readiness(&self) -> Readiness {
        todo!()
    }
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }
    pub fn admit(&self) -> Result<(), Error> {
        todo!()
    }
    pub async fn propose(&self, draft: Draft) -> Result<(Outcome, Timings), Error> {
        todo!()
    }
    pub async fn fence(&self, consistency: Consistency) -> Result<(), Error> {
        todo!()
    }
    pub async fn page(&self, topic: &str, query: PageQuery) -> Result<Page, Error> {
        todo!()
    }
    pub fn touch(&self, topic: &SharedTopic) {
        todo!()
    }
    pub fn last_read_ts_ms(&self, topic: &SharedTopic) -> Option<u64> {
        todo!()
    }
    pub async fn cluster(&self, consistency: Consistency) -> Result<ClusterView, Error> {
        todo!()
    }
    pub fn uptime_ms(&self) -> u64 {
        todo!()
    }
}
