//! The bounds of the whole cluster are the leader's settings (contract section 23).
//!
//! They are read where commands are applied, so they have to be in the log: whoever leads and finds others
//! there writes its own.

use std::time::Duration;

use super::Engine;
use crate::raft::Leader;
use crate::state::{ClusterLimits, Draft};
use crate::task;

/// Pause after they could not be written.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const RECHECK_INTERVAL: Duration = Duration::from_secs(5);

impl Engine {
    /// The cluster's bounds, as applied here.
    pub fn cluster_limits(&self) -> ClusterLimits {
        self.inner.node.applied().limits()
    }

    /// Keeps the cluster's bounds at `limits` while this member leads. Never returns.
    pub(super) async fn keep_limits(self, limits: ClusterLimits) {
        let mut leadership = self.inner.node.leadership();
        loop {
            let leads = matches!(leadership.borrow_and_update().leader, Some(Leader::Here));
            if leads && self.inner.node.applied().limits() != limits {
                // A strong read first: what is applied here may be behind what an earlier leader has set.
                let is_current = self.fence(super::Consistency::Strong).await.is_ok();
                if !is_current
                    || (self.inner.node.applied().limits() != limits
                        && self.propose(Draft::set_limits(&limits)).await.is_err())
                {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                continue;
            }
            // Looked at again now and then: what an earlier leader proposed last may come late.
            if let Ok(Err(_)) = tokio::time::timeout(RECHECK_INTERVAL, leadership.changed()).await {
                return;
            }
        }
    }

    /// Starts [`Engine::keep_limits`].
    pub(super) fn start_keeping_limits(&self) {
        task::spawn(self.clone().keep_limits(self.inner.options.limits));
    }
}
