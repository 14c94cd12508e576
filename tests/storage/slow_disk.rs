//! Freeing space on a disk that takes its time: nobody who reads or writes waits for it.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use antiphon::storage::*;
use parking_lot::Mutex;

use crate::rig::{dir, entry, small_options};

const PATIENCE: Duration = Duration::from_secs(20);

/// Removes and renames segments only when it is told to, and says before that it was asked to.
struct SlowDisk {
    disk: SimDisk,
    asked: SyncSender<()>,
    allowed: Mutex<Receiver<io::Result<()>>>,
}

impl SlowDisk {
    fn wait(&self, path: &Path) -> io::Result<()> {
        if path.extension().is_none_or(|extension| extension != "seg") {
            return Ok(());
        }
        self.asked.send(()).expect("the test listens");
        self.allowed.lock().recv().expect("the test answers")
    }
}

impl Disk for SlowDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn list_dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list_dirs(dir)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(path, mode)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.wait(from)?;
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.wait(path)?;
        self.disk.remove(path)
    }
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.remove_dir_all(dir)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.exists(path)
    }
    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.disk.free_bytes(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
}

/// Entries in some segments, of which all but the last few are purged.
const ENTRIES: u64 = 120;
const PURGED: u64 = 100;

struct World {
    disk: SimDisk,
    log: Log,
    asked: Receiver<()>,
    allowed: SyncSender<io::Result<()>>,
}

impl World {
    async fn new(is_live: bool) -> World {
        let disk = SimDisk::new(1);
        let ((asked, is_asked), (allowed, is_allowed)) = (sync_channel(1), sync_channel(1));
        let slow = SlowDisk { disk: disk.clone(), asked, allowed: Mutex::new(is_allowed) };
        let (log, writer) = Log::open(Arc::new(slow), &dir(), small_options()).expect("open");
        writer.run_on_thread().expect("spawn");
        for index in 0..ENTRIES {
            log.append(vec![entry(1, index, 300)], Box::new(|_| ())).await.expect("append");
            if is_live {
                log.live().add(index, 1);
            }
        }
        log.purge(EntryId { term: 1, index: PURGED }).await.expect("purge");
        log.save_vote(Vote { term: 1, node_id: 1, committed: true })
            .await
            .expect("what came before is synced");
        World { disk, log, asked: is_asked, allowed }
    }

    /// What `read` gives while the disk is busy; panics if it waits for it.
    fn without_the_disk<T: Send + 'static>(&self, look: impl FnOnce(&Log) -> T + Send + 'static) -> T {
        let (log, (done, is_done)) = (self.log.clone(), sync_channel(1));
        std::thread::spawn(move || done.send(look(&log)));
        is_done.recv_timeout(PATIENCE).expect("nobody waits for the disk")
    }

    fn segments(&self) -> Vec<PathBuf> {
        let names = self.disk.list(&dir()).expect("list");
        names.iter().filter(|name| name.ends_with(".seg")).map(|name| dir().join(name)).collect()
    }
}

#[tokio::test]
async fn nobody_waits_while_a_segment_leaves_the_chain_and_what_is_live_in_it_stays_readable() {
    for is_live in [true, false] {
        let world = World::new(is_live).await;
        let first = world.segments()[0].clone();
        let mut reclaimer = world.log.reclaimer();
        let freeing = std::thread::spawn(move || {
            let outcome = reclaimer.step(ENTRIES - 1);
            (reclaimer, outcome)
        });
        world.asked.recv_timeout(PATIENCE).expect("the first segment goes");
        let wanted = entry(1, 0, 300);
        let id = wanted.id;
        let read = move |log: &Log| log.payload(id).map_err(|error| error.kind());
        let expected = if is_live { Ok(wanted.payload) } else { Err(io::ErrorKind::NotFound) };
        assert_eq!(world.without_the_disk(read), expected);
        assert_eq!(world.without_the_disk(Log::last_id).map(|last| last.index), Some(ENTRIES - 1));
        world.log.append(vec![entry(1, ENTRIES, 300)], Box::new(|_| ())).await.expect("append");
        world.log.wait_synced(ENTRIES).await.expect("synced");

        world.allowed.send(Ok(())).expect("the disk waits");
        let (_, outcome) = freeing.join().expect("joined");
        assert!(!outcome.expect("it is done").is_idle());
        assert!(!world.disk.exists(&first).expect("asked"));
        assert_eq!(world.without_the_disk(read), expected);
    }
}

#[tokio::test]
async fn a_segment_that_could_not_go_is_not_overtaken_by_the_next() {
    for is_live in [true, false] {
        let world = World::new(is_live).await;
        let before = world.segments();
        let mut reclaimer = world.log.reclaimer();
        for attempt in 0..3 {
            world
                .allowed
                .send(if attempt < 2 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) })
                .expect("sent");
            assert_eq!(reclaimer.step(ENTRIES - 1).is_err(), attempt < 2);
            world.asked.recv_timeout(PATIENCE).expect("it was tried");
            assert_eq!(world.log.payload(EntryId { term: 1, index: 0 }).is_ok(), is_live);
            assert_eq!(world.segments(), before[usize::from(attempt == 2)..]);
        }
        // What a start makes of it is right at any time.
        let (again, _writer) =
            Log::open(Arc::new(world.disk.clone()), &dir(), small_options()).expect("reopen");
        assert_eq!(again.last_id(), world.log.last_id());
    }
}
