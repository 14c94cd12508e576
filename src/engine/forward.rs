//! Handing commands to the leader, many at a time.
//!
//! While one frame of commands is on its way, others gather and go together in the next one: under load
//! a frame carries dozens of commands and costs the leader one hand-over to Raft, and on an idle member
//! the first command leaves at once. A few frames may be under way together, so that a slow one does not
//! hold the rest back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::limits::{MAX_APPEND_BYTES, MAX_FORWARD_COMMANDS, SESSION_WINDOW};
use crate::raft::{CallError, Node, Peer, Proposal};
use crate::task;

/// Frames of commands that may be under way at once.
const FRAMES_UNDER_WAY: usize = 4;

type Answer = Result<Proposal, CallError>;

struct Waiting {
    peer: Arc<Peer>,
    command: Bytes,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

/// Gathers commands for the leader.
pub(super) struct Forwarder {
    waiting: mpsc::Sender<Waiting>,
}

impl Forwarder {
    pub fn new(node: Arc<Node>) -> Self {
        let (waiting, queue) = mpsc::channel(SESSION_WINDOW as usize);
        task::spawn(run(node, queue));
        Forwarder { waiting }
    }

    /// Hands `command` to the leader at `peer` and waits for what becomes of it.
    pub async fn forward(&self, peer: &Arc<Peer>, command: Bytes, deadline: Instant) -> Answer {
        let (answer, outcome) = oneshot::channel();
        let waiting = Waiting { peer: peer.clone(), command, deadline, answer };
        if self.waiting.send(waiting).await.is_err() {
            return Err(CallError::Unreachable("this member is shutting down".into()));
        }
        outcome.await.unwrap_or_else(|_| Err(CallError::Lost("this member is shutting down".into())))
    }
}

async fn run(node: Arc<Node>, mut queue: mpsc::Receiver<Waiting>) {
    let under_way = Arc::new(Semaphore::new(FRAMES_UNDER_WAY));
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(waiting) => waiting,
            None => match queue.recv().await {
                Some(waiting) => waiting,
                None => return,
            },
        };
        let Ok(place) = under_way.clone().acquire_owned().await else { return };
        let mut bytes = first.command.len();
        let mut batch = vec![first];
        while batch.len() < MAX_FORWARD_COMMANDS && bytes < MAX_APPEND_BYTES {
            match queue.try_recv() {
                // The leader has changed meanwhile: this one starts another frame.
                Ok(waiting) if waiting.peer.node_id != batch[0].peer.node_id => {
                    next = Some(waiting);
                    break;
                }
                Ok(waiting) => {
                    bytes += waiting.command.len();
                    batch.push(waiting);
                }
                Err(_) => break,
            }
        }
        let node = node.clone();
        task::spawn(async move {
            send(&node, batch).await;
            drop(place);
        });
    }
}

async fn send(node: &Node, batch: Vec<Waiting>) {
    let now = Instant::now();
    let timeout = batch.iter().map(|waiting| waiting.deadline).max().unwrap_or(now) - now;
    let timeout = timeout.max(Duration::from_millis(1));
    let commands: Vec<Bytes> = batch.iter().map(|waiting| waiting.command.clone()).collect();
    let answers = node.propose_at(&batch[0].peer, &commands, timeout).await;
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
