//! Whether this member should get requests.

use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

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

/// How long ago this member may last have confirmed a strong read to be ready. It does so each [`CONFIRM_INTERVAL`],
/// so that a lost quorum shows within 5 s (C-OPS-04).
const CONFIRMED_WITHIN: Duration = Duration::from_millis(4500);
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);
const CONFIRM_PAUSE: Duration = Duration::from_millis(50);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A stream that is open for longer than this ends when its member has been out of touch for as long: it would
/// bring nothing, and elsewhere the client may be served.
const OUT_OF_TOUCH_AFTER: Duration = Duration::from_secs(15);

/// When this member last confirmed that it could serve a strong read.
#[derive(Default)]
pub(super) struct Confirmed(Mutex<Option<Instant>>);

impl Confirmed {
    fn note(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    fn is_within(&self, within: Duration) -> bool {
        self.0.lock().is_some_and(|at| at.elapsed() < within)
    }
}

impl Engine {
    /// Confirms strong reads as long as the member runs, as if a client asked for one. The first time is when this
    /// member has once applied all that was committed when it started.
    ///
    /// What is heard of the others is not enough: a member that they do not reach hears all of them.
    pub(super) async fn follow_readiness(self) {
        let confirm = async {
            loop {
                if self.fence(Consistency::Strong).await.is_err() {
                    tokio::time::sleep(CONFIRM_PAUSE).await;
                    continue;
                }
                self.inner.confirmed.note();
                self.inner.has_caught_up.store(true, Ordering::Release);
                tokio::time::sleep(CONFIRM_INTERVAL).await;
            }
        };
        let tell = async {
            let mut was_ready = false;
            let mut woken = Instant::now();
            loop {
                let readiness = self.readiness();
                match (was_ready, readiness.is_ready) {
                    (false, true) => tracing::info!("this member is ready"),
                    (true, false) if !readiness.is_draining => {
                        tracing::warn!("this member is not ready any more: {}", readiness.reason);
                    }
                    _ => {}
                }
                was_ready = readiness.is_ready;
                if woken.elapsed() >= OUT_OF_TOUCH_AFTER / 3
                    && !self.inner.confirmed.is_within(OUT_OF_TOUCH_AFTER)
                {
                    // Streams that wait for records look whether they should end.
                    self.inner.hub.wake_all();
                    woken = Instant::now();
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        tokio::join!(confirm, tell);
    }

    /// Whether a stream that was opened then should end, because this member has been out of touch with the leader
    /// and a quorum for long.
    pub fn is_out_of_touch(&self, opened: Instant) -> bool {
        opened.elapsed() >= OUT_OF_TOUCH_AFTER && !self.inner.confirmed.is_within(OUT_OF_TOUCH_AFTER)
    }

    /// What a stream is told then.
    pub fn out_of_touch(&self) -> Error {
        self.unavailable(Code::NoLeader, "this member is out of touch with the leader; connect to any other")
    }

    pub fn readiness(&self) -> Readiness {
        let has_caught_up = self.inner.has_caught_up.load(Ordering::Acquire);
        let is_confirmed = self.inner.confirmed.is_within(CONFIRMED_WITHIN);
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
            // It hears of a leader that it cannot ask, or that does not reach it.
            (_, true) if applied >= commit => "no_leader",
            _ => "catching_up",
        };
        Readiness {
            is_ready: has_caught_up && is_confirmed && leader.is_some() && !self.is_draining(),
            is_draining: self.is_draining(),
            reason,
            replay_progress,
            leader,
            checkpoint_age_ms: self.inner.node.applied().checkpoint_clock().age().as_millis() as u64,
        }
    }

    /// Whether data requests are served at all. Errors: `not_ready`, `shutting_down`.
    pub fn admit(&self) -> Result<(), Error> {
        if self.is_closing() {
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
            Leader::At(peer) => node.was_heard(peer.node_id).then(|| peer.name.clone()),
        }
    }
}
