//! Confirming strong reads.
//!
//! A strong read may be answered once this member has applied everything that any member had acked before
//! the read began. The leader knows that point, and a quorum must confirm that it still leads; a lease
//! would save the round, and would trust clocks. One round serves every read that was waiting when it
//! began. A read never joins a round that began before it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::{Consistency, Engine};
use crate::error::Error;
use crate::raft::{Leader, Node, ReadPoint};
use crate::task;

/// Rounds that may be under way at once.
const ROUNDS_UNDER_WAY: usize = 2;
/// Reads that wait for their round to begin.
const MAX_WAITING: usize = 4096;
/// Pause before another attempt of a round that found no leader.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

struct Waiting {
    deadline: Instant,
    answer: oneshot::Sender<Option<ReadPoint>>,
}

/// Gathers strong reads into rounds.
pub(super) struct ReadIndex {
    waiting: mpsc::Sender<Waiting>,
}

impl ReadIndex {
    pub fn new(node: Arc<Node>) -> Self {
        let (waiting, queue) = mpsc::channel(MAX_WAITING);
        task::spawn(run(node, queue));
        ReadIndex { waiting }
    }

    /// What must be applied here before a read that starts now is answered; `None` if no leader with a
    /// quorum was found in time.
    async fn confirm(&self, deadline: Instant) -> Option<ReadPoint> {
        let (answer, point) = oneshot::channel();
        let confirming = async {
            self.waiting.send(Waiting { deadline, answer }).await.ok()?;
            point.await.ok()?
        };
        // A round may begin late, and ends with the last deadline of those that it serves.
        tokio::time::timeout_at(deadline, confirming).await.ok()?
    }
}

async fn run(node: Arc<Node>, mut queue: mpsc::Receiver<Waiting>) {
    let rounds = Arc::new(Semaphore::new(ROUNDS_UNDER_WAY));
    while let Some(first) = queue.recv().await {
        let Ok(place) = rounds.clone().acquire_owned().await else { return };
        let mut served = vec![first];
        while let Ok(waiting) = queue.try_recv() {
            served.push(waiting);
        }
        // Whoever gave up needs no round.
        served.retain(|waiting| !waiting.answer.is_closed());
        if served.is_empty() {
            continue;
        }
        let node = node.clone();
        task::spawn(async move {
            let deadline = served.iter().map(|waiting| waiting.deadline).max();
            let point = match deadline {
                Some(deadline) => round(&node, deadline).await,
                None => None,
            };
            for waiting in served {
                let _ = waiting.answer.send(point);
            }
            drop(place);
        });
    }
}

/// One confirmation, repeated until a leader gives it or the time is over.
async fn round(node: &Node, deadline: Instant) -> Option<ReadPoint> {
    let mut leadership = node.leadership();
    loop {
        let leader = leadership.borrow_and_update().leader.clone();
        let left = deadline.saturating_duration_since(Instant::now());
        let confirming = async {
            match &leader {
                None => None,
                Some(Leader::Here) => node.read_point_here().await,
                Some(Leader::At(peer)) => node.read_point_at(peer, left).await.ok().flatten(),
            }
        };
        // A round that fails leaves nothing behind, so it may be dropped as soon as the leader changes.
        let point = tokio::select! {
            biased;
            point = confirming => point,
            _ = leadership.changed(), if leader.is_some() => None,
            _ = tokio::time::sleep_until(deadline) => return None,
        };
        if point.is_some() {
            return point;
        }
        if Instant::now() >= deadline {
            return None;
        }
        let pause = tokio::time::timeout_at(deadline.min(Instant::now() + RETRY_PAUSE), leadership.changed());
        let _ = pause.await;
    }
}

/// What a read has passed.
#[derive(Debug, Clone, Copy)]
pub struct Fence {
    /// Cluster time of a strong read.
    pub(super) time_ms: Option<u64>,
    pub(super) deadline: Instant,
}

impl Engine {
    /// Returns once this member may answer a read of this consistency, but for what may be expired: see
    /// [`Engine::settle`]. Errors: `no_leader`.
    pub async fn fence(&self, consistency: Consistency) -> Result<Fence, Error> {
        let deadline = self.deadline();
        if consistency == Consistency::Eventual {
            return Ok(Fence { time_ms: None, deadline });
        }
        let point = self.inner.read_index.confirm(deadline).await.ok_or_else(|| self.no_leader())?;
        if !self.wait_applied(point.index, deadline).await {
            return Err(self.no_leader());
        }
        Ok(Fence { time_ms: Some(point.time_ms), deadline })
    }

    /// Waits until the entry at `index` is applied here; `false` if that took too long.
    pub(super) async fn wait_applied(&self, index: u64, deadline: Instant) -> bool {
        let mut applied = self.inner.node.applied().watch_index();
        if *applied.borrow() >= index {
            return true;
        }
        let reached = applied.wait_for(|applied| *applied >= index);
        matches!(tokio::time::timeout_at(deadline, reached).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_read_waits_for_its_round_no_longer_than_its_deadline() {
        // Rounds that never begin: at first there is a place in the queue, then not even that.
        let (waiting, _queue) = mpsc::channel(1);
        let read_index = ReadIndex { waiting };
        for _ in 0..2 {
            let deadline = Instant::now() + Duration::from_secs(5);
            assert_eq!(read_index.confirm(deadline).await, None);
            assert_eq!(Instant::now(), deadline);
        }
    }
}
