//! What a member does beside serving requests, as long as it runs: the same in production and in simulations.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::{damage, loading};
use crate::raft::{
    Applied, Export, IdentityKeeper, LogTail, Node, PeerLimits, PeerListener, accept_peers, clear_garbage,
    compare_list, export_state, free_space, index_log, keep_membership, purge_log, seek_admission,
    watch_checkpoint,
};
use crate::storage::{Disk, Log, Room};
use crate::task;

/// How often the state is saved.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(250);

/// Something that must go on for the member to go on; one that ends well has done its work.
pub type Chore = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// What the chores are done with.
pub struct Chores {
    pub node: Arc<Node>,
    pub log: Log,
    pub applied: Arc<Applied>,
    pub room: Arc<Room>,
    pub disk: Arc<dyn Disk>,
    pub data_dir: PathBuf,
    /// The state was restored from its export, and not all of the log behind that is applied again.
    pub is_restored: bool,
    /// `None`: all of the log is kept.
    pub tail: Option<LogTail>,
    /// `None`: nobody else is let in.
    pub peers: Option<PeerPort>,
    pub can_be_filled_again: bool,
}

/// Where other members come to.
pub struct PeerPort {
    pub listener: Box<dyn PeerListener>,
    pub keeper: Arc<IdentityKeeper>,
    pub limits: PeerLimits,
    /// Where other members may be asked to let this one in.
    pub others: Vec<String>,
}

impl Chores {
    /// All of them, each with its name.
    pub fn all(self) -> Vec<(&'static str, Chore)> {
        let Chores { node, log, applied, room, disk, data_dir, is_restored, tail, peers, .. } = self;
        let mut all: Vec<(&'static str, Chore)> = vec![
            ("following the cluster", Box::pin(node.clone().follow())),
            ("room", Box::pin(room.clone().watch())),
        ];
        let mut add = |name, chore: Chore| all.push((name, chore));
        if let Some(PeerPort { listener, keeper, limits, others }) = peers {
            add("peers", Box::pin(accept_peers(listener, node.clone(), keeper, limits)));
            add("admission", Box::pin(seek_admission(node.clone(), others)));
            add("membership", Box::pin(keep_membership(node.clone())));
            add("comparing the list of members", Box::pin(compare_list(node.clone())));
        }
        let saving = applied.clone().save_periodically(CHECKPOINT_INTERVAL, room.clone());
        add("checkpoint", Box::pin(saving));
        if let Some(tail) = tail {
            let export = Export::new(disk.clone(), data_dir.clone());
            let exporting = export_state(node.clone(), log.clone(), export.clone(), room.clone(), tail);
            add("exporting the state", Box::pin(exporting));
            add("purging the log", Box::pin(purge_log(node.clone(), export, tail)));
        }
        add("watching the checkpoint", Box::pin(watch_checkpoint(applied.clone(), node.clone())));
        add("clearing the checkpoint", Box::pin(clear_garbage(applied.clone(), room.clone())));
        add("indexing the log", Box::pin(index_log(log.indexer(), applied.clone(), room)));
        let reading = damage::end_if_damaged(log.clone(), node, self.can_be_filled_again);
        add("reading the log", Box::pin(reading));
        add("freeing space", Box::pin(free_space_safely(log, applied, disk, data_dir, is_restored)));
        all
    }
}

/// Frees the log's space, once it is sure what of it is in use.
async fn free_space_safely(
    log: Log,
    applied: Arc<Applied>,
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    is_restored: bool,
) -> io::Result<()> {
    if is_restored {
        let last_index = log.last_id().map_or(0, |id| id.index);
        damage::check_restored(log.clone(), applied.clone(), last_index).await?;
        task::blocking(move || loading::forget_restore(&*disk, &data_dir)).await?;
    }
    free_space(log.reclaimer(), applied).await
}
