//! When and how what is applied gets into the checkpoint.
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{Applied, SavedPoint};
use crate::limits::{LAST_SAVE_TIMEOUT, MAX_CHECKPOINT_PAUSE};
use crate::state::{Changes, Freed};
use crate::storage::{Checkpoint, Room};

/// Topics whose blocks leave memory under one hold of the state.
const SAVED_SLICE: usize = 256;

/// Whether the state may still be saved.
#[derive(Default)]
pub(super) struct Saving {
    /// A checkpoint that failed took changes out of the state: one that is written after it would lack them, and
    /// add up all the same.
    has_lost_changes: bool,
}

impl Applied {
    /// Saves the state as it is now, if it changed since the last time and no other save is under way.
    pub async fn save(self: &Arc<Self>) -> io::Result<()> {
        let Ok(mut saving) = self.saving.try_lock() else { return Ok(()) };
        self.save_now(&mut saving).await
    }

    /// Saves the state as it is now, behind a save that is under way.
    pub async fn save_last(self: &Arc<Self>) -> io::Result<()> {
        let saving = async {
            let mut saving = self.saving.lock().await;
            self.save_now(&mut saving).await
        };
        let saved = tokio::time::timeout(LAST_SAVE_TIMEOUT, saving).await;
        saved.unwrap_or_else(|_| {
            let took = format!("it was not written within {} s", LAST_SAVE_TIMEOUT.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, took))
        })
    }

    async fn save_now(self: &Arc<Self>, saving: &mut Saving) -> io::Result<()> {
        if saving.has_lost_changes {
            return Err(io::Error::other("a checkpoint before this one was not written"));
        }
        let cutting = Instant::now();
        let (point, Changes { values, saved, deleted, freed }) = {
            let mut state = self.state.lock();
            let point = SavedPoint::of(&state);
            if point.applied == self.saved.lock().applied {
                self.checkpoint_clock.saved();
                return Ok(());
            }
            saving.has_lost_changes = true;
            (point, state.take_changes())
        };
        let cutting = cutting.elapsed();
        if let Some(id) = point.applied {
            self.log.wait_synced(id.index).await?;
        }
        self.checkpoint_clock.writing();
        let (this, began) = (self.clone(), Instant::now());
        let Freed { entries, unread, .. } = freed;
        let writing = self.writer.run(move || {
            this.checkpoint.write(values)?;
            // Not earlier: what the checkpoint before this one names must be there after a kill.
            this.log.live().release_all(&entries);
            Ok(())
        });
        writing.await?;
        saving.has_lost_changes = false;
        let cost = cutting + began.elapsed();
        self.save_cost_us.store(cost.as_micros() as u64, Ordering::Relaxed);
        // In slices, so that applying gets its turn.
        saved.chunks(SAVED_SLICE).for_each(|slice| self.state.lock().blocks_saved(slice));
        {
            let mut lost = self.lost.lock();
            lost.topics.extend(deleted);
            lost.blocks.extend(unread);
        }
        *self.saved.lock() = point;
        self.checkpoint_clock.saved();
        Ok(())
    }

    /// Saves the state every `interval`, or less often if that takes long, as long as the member runs. What is not
    /// saved is applied again after a restart, so a disk that has no room at all can wait.
    pub async fn save_periodically(self: Arc<Self>, interval: Duration, room: Arc<Room>) -> io::Result<()> {
        loop {
            let cost = Duration::from_micros(self.save_cost_us.load(Ordering::Relaxed));
            tokio::time::sleep(pause_after(cost, interval)).await;
            if room.has_room_to_save_now().await {
                self.save().await?;
            }
        }
    }
}

/// The pause after a checkpoint of this cost: however many topics change, making checkpoints takes up a tenth of the
/// time at most, and applying waits for no more of them.
fn pause_after(cost: Duration, interval: Duration) -> Duration {
    interval.max((cost * 9).min(MAX_CHECKPOINT_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Rig;
    use super::*;

    #[test]
    fn checkpoints_take_up_a_tenth_of_the_time_and_come_at_last() {
        let (ms, interval) = (Duration::from_millis, Duration::from_millis(250));
        assert_eq!(pause_after(ms(0), interval), interval);
        assert_eq!(pause_after(ms(25), interval), interval);
        assert_eq!(pause_after(ms(200), interval), ms(1800));
        assert_eq!(pause_after(ms(60_000), interval), MAX_CHECKPOINT_PAUSE);
    }

    /// What a checkpoint that failed took out of the state is in no later one.
    #[tokio::test]
    async fn no_checkpoint_follows_one_that_was_not_written() {
        let mut rig = Rig::new();
        let let_go = rig.let_go.take().expect("it holds on");
        rig.apply(1).await;
        let_go.send(Err(io::Error::other("a disk on a bad day"))).expect("it waits");
        assert_eq!(rig.applied.save().await.unwrap_err().to_string(), "a disk on a bad day");
        drop(let_go);
        rig.apply(2).await;
        rig.applied.save().await.expect_err("it would add up, and be wrong");
        rig.applied.save_last().await.expect_err("also at the end");
        assert_eq!(rig.applied.saved_index(), 0);
    }
}
