//! What this member tells openraft of the end of the log that is given up, and what holds that back.

use tokio::time::Instant;

use super::super::handshake::Lane;
use super::super::retention::Hold;
use super::super::types::NodeId;
use super::Node;

/// What holds the log back.
#[derive(Debug, Clone, Copy)]
pub struct HeldBack {
    pub hold: Hold,
    pub since: Instant,
}

impl Node {
    /// Tells openraft that the state as of the last checkpoint on disk can stand for the log up to there.
    pub(in crate::raft) async fn name_snapshot(&self) -> Result<(), String> {
        self.raft.trigger().snapshot().await.map_err(|fatal| fatal.to_string())
    }

    /// The last entry that openraft knows a snapshot of, and the last one that it purged.
    pub(in crate::raft) fn snapshot_and_purged(&self) -> (u64, u64) {
        self.metrics(|metrics| {
            (metrics.snapshot.map_or(0, |id| id.index()), metrics.purged.map_or(0, |id| id.index()))
        })
    }

    /// Gives up the log up to `index`, which a snapshot must cover.
    pub(in crate::raft) async fn purge(&self, index: u64) -> Result<(), String> {
        self.raft.trigger().purge_log(index).await.map_err(|fatal| fatal.to_string())
    }

    /// Ends the sending of entries to members that lack entries up to `index`, which is to be given up: openraft gives up
    /// nothing of what a stream may still want, however slow its follower is. They are sent a state instead.
    pub(in crate::raft) fn end_streams_behind(&self, index: u64) {
        let transfers = self.transfers.standing();
        let lacking: Vec<NodeId> = self.metrics(|metrics| {
            let matched = metrics.replication.iter().flatten();
            let lacking = matched.filter(|(_, matched)| matched.is_none_or(|id| id.index() < index));
            lacking.map(|(node_id, _)| *node_id).collect()
        });
        for node_id in lacking {
            if !transfers.iter().any(|transfer| transfer.to == node_id) {
                self.peers.end_connection(node_id, Lane::Bulk);
            }
        }
    }

    /// What holds the log back since when, if anything does.
    pub fn held_back(&self) -> Option<HeldBack> {
        *self.held.lock()
    }

    /// Notes what a look found.
    pub(in crate::raft) fn note_hold(&self, hold: Option<Hold>) {
        let mut held = self.held.lock();
        let earlier = held.filter(|held| hold.is_some_and(|hold| hold.by == held.hold.by));
        let since = earlier.map_or_else(Instant::now, |held| held.since);
        *held = hold.map(|hold| HeldBack { hold, since });
    }
}
