//! Handing commands to the leader, many at a time.
//!
//! While one frame of commands is on its way, others gather and go together in the next one: under load
//! a frame carries dozens of commands and costs the leader one hand-over to Raft, and on an idle member
//! the first command leaves at once. A few frames may be under way together, so that a slow one does not
//! hold the rest back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::limits::{MAX_APPEND_BYTES, MAX_FORWARD_COMMANDS, SESSION_WINDOW};
use crate::raft::{CallError, Node, NodeId, Peer, Proposal};
use crate::task;

/// Frames of commands that may be under way at once.
const FRAMES_UNDER_WAY: usize = 4;

type Answer = Result<Proposal, CallError>;

struct Waiting {
    command: Bytes,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

/// Gathers commands for the leader. Each member that ever leads has a queue of its own: one that was cut
/// off and does not answer holds up nothing that goes to the next one.
pub(super) struct Forwarder {
    node: Arc<Node>,
    queues: Mutex<HashMap<NodeId, mpsc::Sender<Waiting>>>,
    /// Commands that were handed over so far.
    forwarded: AtomicU64,
}

impl Forwarder {
    pub fn new(node: Arc<Node>) -> Self {
        Forwarder { node, queues: Mutex::default(), forwarded: AtomicU64::new(0) }
    }

    fn queue(&self, peer: &Arc<Peer>) -> mpsc::Sender<Waiting> {
        let mut queues = self.queues.lock();
        let queue = queues.entry(peer.node_id).or_insert_with(|| {
            let (queue, waiting) = mpsc::channel(SESSION_WINDOW as usize);
            task::spawn(run(self.node.clone(), peer.clone(), waiting));
            queue
        });
        queue.clone()
    }

    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// Hands `command` to the leader at `peer` and waits for what becomes of it.
    pub async fn forward(&self, peer: &Arc<Peer>, command: Bytes, deadline: Instant) -> Answer {
        self.forwarded.fetch_add(1, Ordering::Relaxed);
        let (answer, outcome) = oneshot::channel();
        if self.queue(peer).send(Waiting { command, deadline, answer }).await.is_err() {
            return Err(CallError::Unreachable("this member is shutting down".into()));
        }
        outcome.await.unwrap_or_else(|_| Err(CallError::Lost("this member is shutting down".into())))
    }
}

async fn run(node: Arc<Node>, peer: Arc<Peer>, mut queue: mpsc::Receiver<Waiting>) {
    let under_way = Arc::new(Semaphore::new(FRAMES_UNDER_WAY));
    while let Some(first) = queue.recv().await {
        let Ok(place) = under_way.clone().acquire_owned().await else { return };
        let mut bytes = first.command.len();
        let mut batch = vec![first];
        while batch.len() < MAX_FORWARD_COMMANDS && bytes < MAX_APPEND_BYTES {
            let Ok(waiting) = queue.try_recv() else { break };
            bytes += waiting.command.len();
            batch.push(waiting);
        }
        // What nobody waits for any more need not be sent.
        batch.retain(|waiting| !waiting.answer.is_closed());
        if batch.is_empty() {
            continue;
        }
        let (node, peer) = (node.clone(), peer.clone());
        task::spawn(async move {
            send(&node, &peer, batch).await;
            drop(place);
        });
    }
}

async fn send(node: &Node, peer: &Peer, batch: Vec<Waiting>) {
    let now = Instant::now();
    let timeout = batch.iter().map(|waiting| waiting.deadline).max().unwrap_or(now) - now;
    let timeout = timeout.max(Duration::from_millis(1));
    let commands: Vec<Bytes> = batch.iter().map(|waiting| waiting.command.clone()).collect();
    let answers = node.propose_at(peer, &commands, timeout).await;
    // Whoever gave up meanwhile does not take its answer.
    match answers {
        Ok(proposals) => {
            for (waiting, proposal) in batch.into_iter().zip(proposals) {
                let _ = waiting.answer.send(Ok(proposal));
            }
        }
        Err(error) => {
            for waiting in batch {
                let _ = waiting.answer.send(Err(error.clone()));
            }
        }
    }
}
