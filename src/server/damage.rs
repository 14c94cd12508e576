//! What a running member does about data that is damaged or was.
//!
//! A read that finds damage fails, and nothing damaged is served; the rest of what the member has is as good as
//! ever. With enough others it then ends, and leaves a mark, so that it starts blank and is filled again: the
//! next start reads no sealed segment through and would find nothing. But only when the others are a majority
//! without it, because a member with one bad record is worth more to its cluster than none.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::HAND_OVER_TIMEOUT;
use crate::clock::SystemClock;
use crate::raft::{Applied, Node};
use crate::storage::{Disk, Log, Mark, Room, is_set_aside, remove_set_aside};
use crate::task;

const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a member that cannot go on looks for the others: they are asked every half second.
const LOOK_FOR_OTHERS: Duration = Duration::from_secs(5);

/// Ends, with an error, when a read found damage and the others can do without this member.
pub async fn end_if_damaged(log: Log, node: Arc<Node>, can_be_filled_again: bool) -> io::Result<()> {
    let mut damage = log.watch_damage();
    let Ok(found) = damage.wait_for(Option::is_some).await.map(|found| found.clone()) else { return Ok(()) };
    let why = found.unwrap_or_default();
    if !can_be_filled_again {
        tracing::error!(
            "{why}: reads of it fail, and there are not enough other members to repair it: restore a backup"
        );
        return Ok(());
    }
    wait_for_others(&node, None).await;
    node.hand_over(HAND_OVER_TIMEOUT).await;
    Err(io::Error::other(format!("{why}; at its next start this member is filled again by the others")))
}

/// Waits until the others are a majority without this member, by what is heard of them from now on; `false` if
/// that took longer than `limit`.
async fn wait_for_others(node: &Node, limit: Option<Duration>) -> bool {
    let since = Instant::now();
    let mut is_said = false;
    while !node.others_are_majority(since) {
        sleep(LOOK_INTERVAL / 2).await;
        if limit.is_some_and(|limit| since.elapsed() >= limit) {
            return false;
        }
        if since.elapsed() >= LOOK_FOR_OTHERS && !is_said {
            tracing::error!(
                "data are damaged; the others are no majority without this member, so it goes on"
            );
            is_said = true;
        }
    }
    true
}

/// Decides that the next start is a blank one, if this member ends because of damage and the others can do
/// without it.
pub async fn leave_mark(log: &Log, node: &Node, disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    let Some(why) = log.watch_damage().borrow().clone() else { return Ok(()) };
    if !wait_for_others(node, Some(LOOK_FOR_OTHERS)).await {
        return Ok(());
    }
    Mark { unix_ms: SystemClock::shared().wall_ms(), why }.write(disk, data_dir)
}

/// The same for a member that cannot even start: it has nothing to offer to the others.
pub fn leave_mark_at_start(log: &Log, disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    match log.watch_damage().borrow().clone() {
        Some(why) => Mark { unix_ms: SystemClock::shared().wall_ms(), why }.write(disk, data_dir),
        None => Ok(()),
    }
}

/// Removes data that were set aside, once this member is a voter again; earlier if the disk has no room for
/// both and the others have what it had.
pub(super) async fn remove_when_voter(node: Arc<Node>, room: Arc<Room>, data_dir: PathBuf) -> io::Result<()> {
    let started = Instant::now();
    let is_short_of_room = || room.is_full() && node.others_are_majority(started);
    while !node.is_voter() && !is_short_of_room() {
        sleep(LOOK_INTERVAL).await;
    }
    task::blocking(move || {
        if is_set_aside(&data_dir)? {
            remove_set_aside(&data_dir)?;
            tracing::info!("removed the damaged data that were set aside in {}", data_dir.display());
        }
        Ok(())
    })
    .await
}

/// Removes a checkpoint that another one took the place of, once that one covers all that the log had at the start.
pub(super) async fn remove_damaged_checkpoint(
    applied: Arc<Applied>,
    last_index: u64,
    aside: PathBuf,
) -> io::Result<()> {
    if !aside.exists() {
        return Ok(());
    }
    while applied.saved_index() < last_index {
        sleep(LOOK_INTERVAL).await;
    }
    task::blocking(move || {
        std::fs::remove_dir_all(&aside)?;
        tracing::info!("removed the damaged checkpoint in {}", aside.display());
        Ok(())
    })
    .await
}

/// Applies what the log has beyond a state that was restored, up to `last_index`, and looks whether all that is
/// in use then is there. What topics gave up after the export may be gone, and must not be missed.
pub(super) async fn check_restored(log: Log, applied: Arc<Applied>, last_index: u64) -> io::Result<()> {
    let mut index = applied.watch_index();
    if index.wait_for(|index| *index >= last_index).await.is_err() {
        return Ok(());
    }
    // Entries of deleted topics are released once no checkpoint names them any more.
    while applied.saved_index() < last_index {
        applied.save().await?;
        sleep(LOOK_INTERVAL / 10).await;
    }
    loop {
        let this = applied.clone();
        if !applied.writer().run(move || this.clear_garbage()).await? {
            break;
        }
    }
    log.check_live().map_err(io::Error::other)
}
