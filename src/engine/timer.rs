//! What is proposed because its time has come.
//!
//! The leader looks ten times a second whether something is expired in any topic, and has it taken away by one
//! command for all of them: the state knows which is due first, so idle topics cost nothing. A strong read
//! does not wait for that: what is expired by the leader's time when the read is ordered must be gone from
//! the answer (C-RET-02), so the read asks for the same command at once, as many together as are waiting.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Engine, Fence};
use crate::error::Error;
use crate::limits::MAX_TOPICS_PER_EXPIRY;
use crate::raft::Leader;
use crate::state::{Draft, Outcome, SharedTopic};

/// How often the leader looks; well below the second that eventual readers are promised (C-RET-03).
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A read asks again after this long: a command that was under way may have been ordered before it.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Timer {
    /// Rung by reads that found something expired.
    bell: Notify,
}

impl Engine {
    /// Has expired what is due, as long as the member runs.
    pub(super) async fn propose_what_is_due(self) {
        loop {
            let is_asked = tokio::select! {
                biased;
                _ = self.inner.timer.bell.notified() => true,
                _ = tokio::time::sleep(LOOK_INTERVAL) => false,
            };
            if is_asked || self.leads_and_something_is_due() {
                self.expire().await;
            }
        }
    }

    fn leads_and_something_is_due(&self) -> bool {
        let node = &self.inner.node;
        matches!(node.leadership().borrow().leader, Some(Leader::Here))
            && node.applied().next_due_ms() <= node.time().stamp_ms()
    }

    async fn expire(&self) {
        loop {
            match self.propose(Draft::expire()).await {
                Ok((Outcome::Expired { topic_count }, _)) if topic_count >= MAX_TOPICS_PER_EXPIRY as u64 => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!("what is expired could not be taken away yet: {error}");
                    return;
                }
            }
        }
    }

    /// Waits until everything in `topics` that is expired for a read behind `fence` is gone here. Errors:
    /// `no_leader`.
    pub async fn settle(&self, fence: Fence, topics: &[Arc<SharedTopic>]) -> Result<(), Error> {
        let Some(time_ms) = fence.time_ms else { return Ok(()) };
        let is_due = |topic: &Arc<SharedTopic>| {
            !topic.is_deleted() && topic.read().next_due_ms().is_some_and(|due_ms| due_ms <= time_ms)
        };
        if !topics.iter().any(is_due) {
            return Ok(());
        }
        let mut applied = self.inner.node.applied().watch_index();
        loop {
            self.inner.timer.bell.notify_one();
            let until = fence.deadline.min(Instant::now() + ASK_AGAIN_AFTER);
            let settled = applied.wait_for(|_| !topics.iter().any(is_due));
            if matches!(tokio::time::timeout_at(until, settled).await, Ok(Ok(_))) {
                return Ok(());
            }
            if Instant::now() >= fence.deadline {
                return Err(self.no_leader());
            }
        }
    }
}
