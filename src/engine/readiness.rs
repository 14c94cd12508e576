//! Whether this member should get requests.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Consistency, Engine};
use crate::error::{Code, Error};
use crate::raft::Leader;

/// What `GET /v0/ready` tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Readiness {
    pub is_ready: bool,
    pub is_draining: bool,
    /// Why it is not ready: `replay`, `catching_up` or `no_leader`.
    pub reason: &'static str,
    /// Share of the known log that is applied here, 0.0 to 1.0.
    pub replay_progress: f64,
    pub leader: Option<String>,
    /// How long ago the checkpoint had everything that is applied. Nothing that is served depends on it.
    pub checkpoint_age_ms: u64,
}

impl Engine {
    /// Waits until this member has once applied all that was committed when it started.
    pub(super) async fn follow_recovery(self) {
        while self.fence(Consistency::Strong).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.inner.has_caught_up.store(true, Ordering::Release);
        tracing::info!("this member has caught up and is ready");
    }

    pub fn readiness(&self) -> Readiness {
        let has_caught_up = self.inner.has_caught_up.load(Ordering::Acquire);
        let leader = self.live_leader_name();
        let (_, commit) = self.inner.node.term_and_commit();
        let applied = self.inner.node.applied().index();
        let replay_progress = match (has_caught_up, commit) {
            (true, _) => 1.0,
            (false, 0) => 0.0,
            (false, commit) => (applied as f64 / commit as f64).min(1.0),
        };
        let reason = match (&leader, has_caught_up) {
            (None, _) => "no_leader",
            (_, false) if replay_progress < 1.0 => "replay",
            _ => "catching_up",
        };
        Readiness {
            is_ready: has_caught_up && leader.is_some() && !self.is_draining(),
            is_draining: self.is_draining(),
            reason,
            replay_progress,
            leader,
            checkpoint_age_ms: self.inner.node.applied().checkpoint_clock().age().as_millis() as u64,
        }
    }

    /// Whether data requests are served at all. Errors: `not_ready`, `shutting_down`.
    pub fn admit(&self) -> Result<(), Error> {
        if self.is_draining() {
            return Err(Error::new(Code::ShuttingDown, "this member is shutting down"));
        }
        if !self.inner.has_caught_up.load(Ordering::Acquire) {
            let readiness = self.readiness();
            return Err(Error::new(Code::NotReady, "this member has not caught up with the cluster yet")
                .with_detail(serde_json::json!({
                    "reason": readiness.reason, "replay_progress": readiness.replay_progress
                })));
        }
        Ok(())
    }

    /// Name of the leader, if it shows signs of life: openraft goes on naming a leader that has died
    /// until another one is elected.
    pub(super) fn live_leader_name(&self) -> Option<String> {
        let node = &self.inner.node;
        match node.leadership().borrow().leader.as_ref()? {
            Leader::Here => {
                let voters = node.membership().iter().filter(|(_, _, is_voter)| *is_voter).count();
                let has_quorum = voters <= 1 || node.has_quorum(self.inner.options.quorum_loss_after);
                has_quorum.then(|| self.member().to_owned())
            }
            Leader::At(peer) => node.was_heard(peer.node_id).then(|| peer.member.name.clone()),
        }
    }
}
