//! Whether the checkpoint gets written.
//!
//! Nothing that is acked depends on it, so one that hangs (a deadlock in the store, a stuck device) is easily not
//! seen until the disk is full: without it nothing is purged, released or freed. So every write has a clock. One
//! that takes too long is said, in the log, in metrics and to whoever asks for readiness; and a member whose cluster
//! can do without it ends after a while, because a start gets on where a thread that hangs does not.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::machine::Applied;
use super::node::Node;
use crate::limits::{CHECKPOINT_STALLED_AFTER, END_STALLED_AFTER};

/// Between two looks.
const REST: Duration = Duration::from_secs(1);

/// When the checkpoint was written.
pub struct CheckpointClock(Mutex<State>);

struct State {
    /// When it was last found to have everything, or made so.
    saved_at: Instant,
    /// Since when a write has been under way.
    writing_since: Option<Instant>,
    /// Others may hold it, for as long as they like.
    is_excused: bool,
}

impl Default for CheckpointClock {
    fn default() -> Self {
        Self(Mutex::new(State { saved_at: Instant::now(), writing_since: None, is_excused: false }))
    }
}

impl CheckpointClock {
    pub(super) fn writing(&self) {
        self.0.lock().writing_since = Some(Instant::now());
    }

    pub(super) fn saved(&self) {
        let mut state = self.0.lock();
        (state.saved_at, state.writing_since) = (Instant::now(), None);
    }

    /// Does `work`, for which writes have to wait.
    pub(super) fn excused<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.lock().is_excused = true;
        let done = work();
        let mut state = self.0.lock();
        state.is_excused = false;
        state.writing_since = state.writing_since.map(|_| Instant::now());
        done
    }

    /// How long ago the checkpoint had everything that was applied.
    pub fn age(&self) -> Duration {
        self.0.lock().saved_at.elapsed()
    }

    /// How long the write that is under way has hung; `None` if it may only be slow.
    pub fn stalled_for(&self) -> Option<Duration> {
        let state = self.0.lock();
        let writing_for = state.writing_since.filter(|_| !state.is_excused)?.elapsed();
        (writing_for >= CHECKPOINT_STALLED_AFTER).then_some(writing_for)
    }
}

/// Says when the checkpoint hangs, and ends then if the others are a majority without this member, as long as it
/// runs.
pub async fn watch_checkpoint(applied: Arc<Applied>, node: Arc<Node>) -> io::Result<()> {
    let mut is_said = false;
    loop {
        sleep(REST).await;
        let Some(stalled_for) = applied.checkpoint_clock().stalled_for() else {
            if std::mem::take(&mut is_said) {
                tracing::info!("the checkpoint is written again");
            }
            continue;
        };
        let line = format!("the checkpoint has not been written for {} s", stalled_for.as_secs());
        if !std::mem::replace(&mut is_said, true) {
            tracing::error!("{line}: until it is, no space of the log is freed");
        }
        if stalled_for >= END_STALLED_AFTER && node.others_are_majority(Instant::now() - 2 * REST) {
            return Err(io::Error::other(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Rig;
    use super::*;

    /// Lets others run, as time stands still while a thread is in a blocking call.
    async fn until(is_so: impl Fn() -> bool) {
        while !is_so() {
            tokio::task::yield_now().await;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[tokio::test]
    async fn a_write_that_hangs_is_noticed_and_one_that_comes_through_is_forgiven() {
        let mut rig = Rig::new();
        rig.apply(1).await;
        tokio::time::pause();
        let applied = rig.applied.clone();
        let saving = tokio::spawn({
            let applied = applied.clone();
            async move { applied.save().await }
        });
        until(|| applied.checkpoint_clock().0.lock().writing_since.is_some()).await;
        tokio::time::advance(CHECKPOINT_STALLED_AFTER - REST).await;
        assert_eq!(applied.checkpoint_clock().stalled_for(), None, "it may only be slow");
        tokio::time::advance(REST).await;
        assert_eq!(applied.checkpoint_clock().stalled_for(), Some(CHECKPOINT_STALLED_AFTER));
        assert!(applied.checkpoint_clock().age() >= CHECKPOINT_STALLED_AFTER);
        assert_eq!(applied.saved_index(), 0);

        // Another does not begin beside it, and a member that ends does not wait for ever.
        applied.save().await.expect("there is one under way");
        let last = tokio::spawn({
            let applied = applied.clone();
            async move { applied.save_last().await }
        });
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(last.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);

        rig.let_go = None;
        tokio::time::resume();
        saving.await.unwrap().expect("saved");
        assert_eq!((applied.saved_index(), applied.checkpoint_clock().stalled_for()), (1, None));
        assert!(applied.checkpoint_clock().age() < CHECKPOINT_STALLED_AFTER);
    }
}
