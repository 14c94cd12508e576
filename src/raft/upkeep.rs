//! What keeps a member's disk as small as its data, and in order: four chores beside the serving of requests.
//!
//! - **Garbage**: blocks that deleted topics left in the checkpoint are cleared away, and their log entries
//!   released.
//! - **Purge**: openraft purges only what a snapshot covers, and a checkpoint on disk is as good as one. So
//!   when it is far enough beyond the last, it is named a snapshot, and the log is given up but for its last
//!   entries and for what holds it back (see `retention`). Every member decides for itself.
//! - **Space**: the log's files are freed in small steps, at a bounded rate.
//! - **Index**: it follows what is applied, a moment behind.
//!
//! None of them is urgent: a step that finds nothing to do is followed by a rest.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::export::Export;
use super::machine::Applied;
use super::node::Node;
use super::retention::{self, LogTail};
use crate::limits::RECLAIM_BYTES_PER_S;
use crate::storage::{Indexer, Reclaimer, Room, Verdict};
use crate::task;

/// Between two looks when there was nothing to do.
const REST: Duration = Duration::from_millis(500);
/// Entries that are indexed together have come within this time.
const INDEX_LAG: Duration = Duration::from_millis(100);
/// After a failure that may pass.
const LONG_REST: Duration = Duration::from_secs(10);

/// Purges the log behind the checkpoint as `retention` decides, as long as the member runs.
pub async fn purge_log(node: Arc<Node>, export: Arc<Export>, tail: LogTail) -> io::Result<()> {
    let mut asked_index = 0;
    loop {
        sleep(REST).await;
        let standing = node.standing(export.exported(), tail);
        if standing.purged_index < asked_index {
            node.end_streams_behind(asked_index);
        }
        let decision = retention::decide(&standing);
        node.note_hold(decision.held);
        if decision.must_end_transfers {
            node.transfers().end_all();
        }
        if let Some(index) = decision.purge_upto {
            node.purge(index).await.map_err(io::Error::other)?;
            asked_index = index;
        }
        if decision.may_name {
            node.name_snapshot().await.map_err(io::Error::other)?;
        }
    }
}

/// Clears away what deleted topics left in the checkpoint, as long as the member runs.
pub async fn clear_garbage(applied: Arc<Applied>, room: Arc<Room>) -> io::Result<()> {
    loop {
        // Clearing frees space in the end, and takes some first.
        if !room.has_room_to_save_now().await {
            sleep(REST).await;
            continue;
        }
        let this = applied.clone();
        match applied.writer().run(move || this.clear_garbage()).await {
            // Also in between: the checkpoint has other things to write.
            Ok(did_something) => sleep(if did_something { REST / 20 } else { REST }).await,
            Err(error) => rest_or_end(error, "what was deleted cannot be cleared away").await?,
        }
    }
}

/// Frees the log's space, as long as the member runs.
pub async fn free_space(mut reclaimer: Reclaimer, applied: Arc<Applied>) -> io::Result<()> {
    loop {
        let saved_index = applied.saved_index();
        let (back, outcome) = task::blocking(move || Ok(step(reclaimer, saved_index))).await?;
        reclaimer = back;
        match outcome {
            Ok(0) => sleep(REST).await,
            Ok(cost_bytes) => {
                sleep(Duration::from_micros(cost_bytes * 1_000_000 / RECLAIM_BYTES_PER_S)).await;
            }
            Err(error) => rest_or_end(error, "space of the log cannot be freed").await?,
        }
    }
}

/// Keeps the index behind what is applied, as long as the member runs.
pub async fn index_log(mut indexer: Indexer, applied: Arc<Applied>, room: Arc<Room>) -> io::Result<()> {
    let mut news = applied.watch_index();
    loop {
        if room.is_exhausted() {
            sleep(LONG_REST).await;
            continue;
        }
        let applied_index = *news.borrow_and_update();
        let stepped = task::blocking(move || {
            let outcome = indexer.step(applied_index);
            Ok((indexer, outcome))
        });
        let (back, outcome) = stepped.await?;
        indexer = back;
        match outcome {
            Ok(done) if done.is_idle() => {
                // Space may have become free without news.
                let _ = timeout(REST, news.changed()).await;
                sleep(INDEX_LAG).await;
            }
            Ok(done) => sleep(Duration::from_micros(done.cost_bytes * 1_000_000 / RECLAIM_BYTES_PER_S)).await,
            // What the index lacks is read by who asks.
            Err(error) => rest_or_end(error, "the index of the log cannot be brought up to date").await?,
        }
    }
}

/// Rests after a failure of a chore that may pass, and says so; any other ends the member.
pub(super) async fn rest_or_end(error: io::Error, what: &str) -> io::Result<()> {
    if !Verdict::of(&error).lets_a_chore_rest() {
        return Err(error);
    }
    tracing::warn!("{what}: {error}");
    sleep(LONG_REST).await;
    Ok(())
}

fn step(mut reclaimer: Reclaimer, saved_index: u64) -> (Reclaimer, io::Result<u64>) {
    let outcome = reclaimer.step(saved_index).map(|done| done.cost_bytes);
    (reclaimer, outcome)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_chore_rests_after_what_may_pass_and_ends_the_member_otherwise() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::DQUOT, Errno::NOSPC] {
            let began = tokio::time::Instant::now();
            rest_or_end(errno.into(), "nothing can be done").await.expect("it may pass");
            assert_eq!(began.elapsed(), LONG_REST, "{errno:?}");
        }
        rest_or_end(Errno::ROFS.into(), "nothing can be done").await.expect_err("it is refused");
    }
}
