//! What openraft calls a snapshot: the name of a point, and who names the last one.

use std::io;

use openraft::storage::RaftSnapshotBuilder;
use openraft::{Snapshot, SnapshotMeta};

use super::types::{CommittedLeader, Member, Types};

/// What openraft passes around as a snapshot. It names a point; how the state as of that point reaches
/// another member is not openraft's business.
#[derive(Debug, Clone)]
pub struct StateImage;

/// Names the point of the last checkpoint on disk, when it was asked for.
pub struct ImageBuilder {
    pub(super) meta: io::Result<SnapshotMeta<CommittedLeader, u64, Member>>,
}

impl RaftSnapshotBuilder<Types> for ImageBuilder {
    type SnapshotData = StateImage;

    async fn build_snapshot(
        &mut self,
    ) -> Result<Snapshot<CommittedLeader, u64, Member, StateImage>, io::Error> {
        match &self.meta {
            Ok(meta) => Ok(Snapshot { meta: meta.clone(), snapshot: StateImage }),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        }
    }
}
