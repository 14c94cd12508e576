//! Routers as clients see them: what the state says, and how their links do.

use std::sync::Arc;

use super::links::{LinkError, LinkState};
use super::{Consistency, Engine};
use crate::error::Error;
use crate::state::{Draft, Outcome, Position, PutRouter, Refusal, RouterConfig, Routers, SharedRouter};

/// One router at one moment.
pub struct RouterView {
    pub name: Arc<str>,
    pub config: Arc<RouterConfig>,
    /// Copies stored.
    pub forwarded_total: u64,
    pub last_forwarded_ts_ms: Option<u64>,
    pub state: LinkState,
    /// Seqs of the source that were not examined yet; 0 of a mirror whose leader is not known.
    pub lag: u64,
    pub last_error: Option<LinkError>,
}

impl Engine {
    /// Every router, as applied here.
    pub fn routers(&self) -> &Arc<Routers> {
        self.inner.node.applied().routers()
    }

    /// Makes or changes a router. Errors: `no_leader`, `commit_unknown`.
    pub async fn put_router(&self, put: &PutRouter<'_>) -> Result<Outcome, Error> {
        let deadline = self.deadline();
        let mut put = put.clone();
        self.seal_token(put.name, &mut put.config);
        loop {
            let (outcome, _) = self.propose(Draft::put_router(&put)).await?;
            if outcome != Outcome::Refused(Refusal::NoCluster) {
                return Ok(outcome);
            }
            // Right after the founding: the leader tells who the cluster is as soon as it leads.
            let mut applied = self.inner.node.applied().watch_index();
            while self.inner.node.applied().cluster().is_none() {
                if !matches!(tokio::time::timeout_at(deadline, applied.changed()).await, Ok(Ok(()))) {
                    return Err(self.no_leader());
                }
            }
        }
    }

    /// Shows routers. An eventual look asks no other member, and then knows only what the state says.
    pub async fn show_routers(
        &self,
        routers: &[Arc<SharedRouter>],
        consistency: Consistency,
    ) -> Vec<RouterView> {
        let generations: Vec<u64> = routers.iter().map(|router| router.generation).collect();
        let statuses = match consistency {
            _ if generations.is_empty() => Vec::new(),
            Consistency::Strong => self.link_statuses(&generations).await,
            Consistency::Eventual => self.inner.links_of(&generations),
        };
        let view = |(shared, status): (&Arc<SharedRouter>, Option<_>)| {
            let (is_paused, config, forwarded_total, last_forwarded_ts_ms, position) = {
                // Not all of it: a mirror may have a position in each of very many topics.
                let router = shared.read();
                let position = router.positions.get(&*shared.source).copied();
                let totals = (router.forwarded_total, router.last_forwarded_ts_ms);
                (router.is_paused, router.config.clone(), totals.0, totals.1, position)
            };
            let (state, link_lag, last_error) = match status {
                Some(super::LinkStatus { state, lag, last_error }) => (state, lag, last_error),
                None => (LinkState::Running, 0, None),
            };
            // A link that is paused a moment later, or goes on, has not told yet.
            let state = match (is_paused, state) {
                (true, _) => LinkState::Paused,
                (false, LinkState::Paused) => LinkState::Running,
                (false, state) => state,
            };
            let lag = if shared.is_remote { link_lag } else { self.local_lag(&shared.source, position) };
            RouterView {
                name: shared.name.clone(),
                config,
                forwarded_total,
                last_forwarded_ts_ms,
                state,
                lag,
                last_error,
            }
        };
        routers.iter().zip(statuses).map(view).collect()
    }

    /// What a local router at `position` has still to examine.
    fn local_lag(&self, source: &str, position: Option<Position>) -> u64 {
        let Some(position) = position else { return 0 };
        let source = self.catalog().get(source);
        let source = source.filter(|source| source.epoch == position.source_epoch);
        source.map_or(0, |source| source.read().head_seq.saturating_sub(position.seq))
    }
}
