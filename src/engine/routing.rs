//! What those who run routers need of the engine (`router/`): which routers there are, what changes in topics, and
//! which records of a source are due.

use std::sync::Arc;

use tokio::sync::watch;

use super::Engine;
use super::hub::Bell;
use super::page::{PageQuery, Start};
use crate::error::Error;
use crate::filter::Filter;
use crate::limits::{MAX_PAGE_BYTES, MAX_ROUTED_RECORDS_PER_ROUTER};
use crate::raft::{Leader, Leadership};
use crate::state::{Cluster, Ranges, SharedTopic, push_range};

impl Leadership {
    /// Whether this member leads.
    pub fn is_here(&self) -> bool {
        matches!(self.leader, Some(Leader::Here))
    }
}

impl Engine {
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.node.leadership()
    }

    /// Follows the version of the routers' configuration.
    pub fn watch_routers(&self) -> watch::Receiver<u64> {
        self.inner.node.applied().watch_routers()
    }

    /// Who this cluster is; `None` until a leader has written it down.
    pub fn own_cluster(&self) -> Option<Cluster> {
        self.inner.node.applied().cluster()
    }

    pub fn bell(&self) -> Bell {
        self.inner.hub.bell()
    }

    /// The seqs of `shared` above `from_seq` that pass `filter`, and up to which one that was looked at: not all
    /// the way to the head, if it is far.
    pub async fn pick(
        &self,
        shared: &Arc<SharedTopic>,
        from_seq: u64,
        filter: &Filter,
    ) -> Result<(u64, Ranges), Error> {
        let limit = MAX_ROUTED_RECORDS_PER_ROUTER as usize;
        let filter = Some(Arc::new(filter.clone()));
        let query = PageQuery { filter, ..PageQuery::here(limit, MAX_PAGE_BYTES) };
        loop {
            let start = Start::after(&shared.read(), from_seq);
            // The floors have moved if there is no page.
            let Some(page) = self.read_page(shared, &query, start).await? else { continue };
            let mut picked: Ranges = Vec::new();
            page.records.iter().for_each(|record| push_range(&mut picked, record.seq..=record.seq));
            return Ok((page.next_from_seq, picked));
        }
    }
}
