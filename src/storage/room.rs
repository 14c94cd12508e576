//! Whether the disk has room for more.
//!
//! A disk that is really full is a bad place to find out: a log that cannot write must stop, and what keeps
//! the key-value store from flushing may keep it from opening. So a reserve is never touched: as soon as
//! less than it is free, the member counts as full and takes no more records, while votes, deletes and
//! checkpoints, which are small and may free space, still go into the reserve. When there is room again,
//! with some to spare so that it does not flap, the member goes on by itself.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::ballast;
use super::disk::Disk;
use crate::limits::{BALLAST_BYTES, CHECKPOINT_ROOM_BYTES};
use crate::task;

/// How often free space is measured. What is written meanwhile comes out of the reserve.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Looks between two tries to lay the ballast: a minute.
const BALLAST_REST_LOOKS: u32 = 240;

/// What must be free above the reserve, at most, before a full member takes records again.
const MAX_SPARE_BYTES: u64 = 64 << 20;

const UNKNOWN: u64 = u64::MAX;

/// Watches the free space of a data directory.
pub struct Room {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    reserve_bytes: u64,
    /// What was free at the last look; `UNKNOWN` before the first.
    free_bytes: AtomicU64,
    is_short: AtomicBool,
    is_full: AtomicBool,
    is_exhausted: AtomicBool,
    has_room_to_save: AtomicBool,
    has_ballast: AtomicBool,
    /// Looks until it is tried again to lay it.
    ballast_rest: AtomicU32,
}

impl Room {
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf, reserve_bytes: u64) -> Arc<Self> {
        Arc::new(Room {
            disk,
            dir,
            reserve_bytes,
            free_bytes: AtomicU64::new(UNKNOWN),
            is_short: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            is_exhausted: AtomicBool::new(false),
            has_room_to_save: AtomicBool::new(true),
            has_ballast: AtomicBool::new(false),
            ballast_rest: AtomicU32::new(0),
        })
    }

    /// What was free when it was measured last.
    pub fn free_bytes(&self) -> Option<u64> {
        let free_bytes = self.free_bytes.load(Ordering::Relaxed);
        (free_bytes != UNKNOWN).then_some(free_bytes)
    }

    /// Whether there is so little above the reserve that what is kept for others should go.
    pub fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Acquire)
    }

    /// Whether records must be refused.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Acquire)
    }

    /// Whether even small writes that can wait should wait: most of the reserve is gone.
    pub fn is_exhausted(&self) -> bool {
        self.is_exhausted.load(Ordering::Acquire)
    }

    /// Whether a checkpoint may be written: it goes on when other small writes wait, because what deletes free is
    /// freed only behind one.
    pub fn has_room_to_save(&self) -> bool {
        self.has_room_to_save.load(Ordering::Acquire)
    }

    /// The same as it is now, where that is near: for what cannot be written again when it failed half way.
    pub async fn has_room_to_save_now(self: &Arc<Self>) -> bool {
        if self.is_full() {
            let this = self.clone();
            if let Err(error) = task::blocking(move || this.look()).await {
                tracing::warn!("cannot measure the free space of {}: {error}", self.dir.display());
            }
        }
        self.has_room_to_save()
    }

    /// What is free above the reserve.
    pub fn spare_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.free_bytes(&self.dir)?.saturating_sub(self.reserve_bytes))
    }

    /// What something may take that frees more in the end: what is free above the reserve; where that is nothing, what is
    /// above half of it; and where that is nothing too, what is above the room of a checkpoint, without which nothing
    /// would be freed at all.
    pub async fn bytes_for_chores(self: &Arc<Self>) -> io::Result<u64> {
        let this = self.clone();
        task::blocking(move || {
            let free_bytes = this.disk.free_bytes(&this.dir)?;
            let floors = [this.reserve_bytes, this.reserve_bytes / 2, CHECKPOINT_ROOM_BYTES];
            let floor_bytes = floors.into_iter().find(|floor_bytes| free_bytes > *floor_bytes);
            Ok(free_bytes - floor_bytes.unwrap_or(free_bytes))
        })
        .await
    }

    /// Measures the free space.
    pub fn look(&self) -> io::Result<()> {
        let free_bytes = self.disk.free_bytes(&self.dir)?;
        self.free_bytes.store(free_bytes, Ordering::Relaxed);
        let was_full = self.is_full();
        let spare_bytes = if was_full { MAX_SPARE_BYTES.min(self.reserve_bytes / 4) } else { 0 };
        let enough_bytes = self.reserve_bytes + spare_bytes;
        let is_full = free_bytes < enough_bytes;
        self.is_short.store(free_bytes < self.reserve_bytes.saturating_mul(2), Ordering::Release);
        self.is_full.store(is_full, Ordering::Release);
        self.is_exhausted.store(free_bytes < self.reserve_bytes / 4, Ordering::Release);
        self.has_room_to_save.store(free_bytes >= CHECKPOINT_ROOM_BYTES, Ordering::Release);
        if free_bytes >= self.reserve_bytes.saturating_add(8 * BALLAST_BYTES) {
            self.keep_ballast();
        }
        if is_full && !was_full {
            tracing::error!(
                "only {} MiB are free in {} (--min-free-bytes is {} MiB): writes are refused and reads go on \
                 until there is room",
                free_bytes >> 20,
                self.dir.display(),
                self.reserve_bytes >> 20
            );
        }
        if was_full && !is_full {
            tracing::info!("there is room again in {}: writes are taken", self.dir.display());
        }
        Ok(())
    }

    fn keep_ballast(&self) {
        if self.has_ballast.load(Ordering::Acquire) {
            return;
        }
        let rest = self.ballast_rest.load(Ordering::Acquire);
        if rest > 0 {
            self.ballast_rest.store(rest - 1, Ordering::Release);
            return;
        }
        match ballast::lay(self.disk.as_ref(), &self.dir, BALLAST_BYTES) {
            Ok(()) => self.has_ballast.store(true, Ordering::Release),
            Err(error) => {
                self.ballast_rest.store(BALLAST_REST_LOOKS, Ordering::Release);
                tracing::warn!("no space can be kept for a start on a full disk: {error}");
            }
        }
    }

    /// Measures the free space for as long as the member runs.
    pub async fn watch(self: Arc<Self>) -> io::Result<()> {
        loop {
            let this = self.clone();
            // A disk that cannot be measured is not known to be full.
            if let Err(error) = task::blocking(move || this.look()).await {
                tracing::warn!("cannot measure the free space of {}: {error}", self.dir.display());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim_disk::SimDisk;
    use super::*;

    #[test]
    fn a_full_disk_needs_room_to_spare_before_it_takes_more() {
        let disk = SimDisk::new(1);
        let room = Room::new(Arc::new(disk.clone()), PathBuf::from("/data"), 1000);
        assert_eq!(room.free_bytes(), None);
        for (free_bytes, is_short, is_full, is_exhausted) in [
            (2000, false, false, false),
            (1999, true, false, false),
            (1000, true, false, false),
            (999, true, true, false),
            (1249, true, true, false),
            (249, true, true, true),
            (1250, true, false, false),
            (1000, true, false, false),
        ] {
            disk.set_free_bytes(free_bytes);
            room.look().unwrap();
            let found = (room.is_short(), room.is_full(), room.is_exhausted());
            assert_eq!(found, (is_short, is_full, is_exhausted), "{free_bytes} bytes");
            assert_eq!(room.free_bytes(), Some(free_bytes));
        }
    }

    #[tokio::test]
    async fn where_it_is_near_it_is_measured_once_more() {
        let disk = SimDisk::new(1);
        let reserve_bytes = 4 * CHECKPOINT_ROOM_BYTES;
        let room = Room::new(Arc::new(disk.clone()), PathBuf::from("/data"), reserve_bytes);
        disk.set_free_bytes(CHECKPOINT_ROOM_BYTES);
        room.look().unwrap();
        disk.set_free_bytes(CHECKPOINT_ROOM_BYTES - 1);
        assert!(room.has_room_to_save(), "as of the last look");
        assert!(!room.has_room_to_save_now().await);
        disk.set_free_bytes(CHECKPOINT_ROOM_BYTES);
        assert!(room.has_room_to_save_now().await);
    }

    #[tokio::test]
    async fn chores_take_from_the_reserve_only_where_there_is_nothing_else() {
        let disk = SimDisk::new(1);
        const RESERVE_BYTES: u64 = 10 * CHECKPOINT_ROOM_BYTES;
        let room = Room::new(Arc::new(disk.clone()), PathBuf::from("/data"), RESERVE_BYTES);
        let half = RESERVE_BYTES / 2;
        let last = CHECKPOINT_ROOM_BYTES;
        for (free_bytes, expected) in [
            (RESERVE_BYTES + 4000, 4000),
            (RESERVE_BYTES, half),
            (half + 100, 100),
            (half, half - last),
            (last + 1, 1),
            (last, 0),
            (0, 0),
        ] {
            disk.set_free_bytes(free_bytes);
            assert_eq!(room.bytes_for_chores().await.unwrap(), expected, "{free_bytes} bytes");
        }
    }

    #[test]
    fn a_ballast_that_could_not_be_laid_is_laid_later() {
        let (disk, dir) = (SimDisk::new(1), PathBuf::from("/data"));
        disk.create_dir_all(&dir).unwrap();
        let room = Room::new(Arc::new(disk.clone()), dir.clone(), 1000);
        let is_laid = || disk.exists(&dir.join(ballast::FILE)).unwrap();
        disk.refuse_opens(1);
        (0..=BALLAST_REST_LOOKS).for_each(|_| room.look().unwrap());
        assert!(!is_laid(), "not again at once");
        room.look().unwrap();
        assert!(is_laid());
    }
}
