//! Who the cluster is stands in its state, for what members must agree on: whoever leads and does not find it
//! there writes it, as `limits.rs` does with bounds.

use std::time::Duration;

use super::Engine;
use crate::raft::Leader;
use crate::state::{Cluster, Draft, SharedTopic};

/// Pause before it is looked at again, if it could not be written.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

impl Engine {
    /// Whether a record with this place can have been written in this cluster, as far as is known here. Of topics
    /// that are gone nothing but their epoch is.
    pub fn may_have_written(&self, topic: &str, epoch: u64, seq: u64) -> bool {
        let head_seq = |topic: &SharedTopic| topic.read().head_seq;
        match self.catalog().get(topic).filter(|topic| topic.epoch == epoch) {
            Some(topic) => seq <= head_seq(&topic),
            None => epoch < self.inner.node.applied().next_epoch(),
        }
    }

    /// Has the cluster's identity written. Returns when it is there.
    pub(super) async fn tell_cluster(self) {
        let mut leadership = self.inner.node.leadership();
        while self.inner.node.applied().cluster().is_none() {
            let leads = matches!(leadership.borrow_and_update().leader, Some(Leader::Here));
            let me = self.inner.node.peers().me();
            let id = me.cluster_id();
            if let (true, Some(id)) = (leads, id) {
                let cluster = Cluster { id: id.0, name: me.cluster.clone() };
                if self.propose(Draft::set_cluster(&cluster)).await.is_ok() {
                    continue;
                }
            }
            // Another member may write it, and this one may learn its own id.
            if let Ok(Err(_)) = tokio::time::timeout(RETRY_PAUSE, leadership.changed()).await {
                return;
            }
        }
    }
}
