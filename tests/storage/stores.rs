//! A member that takes over a state has the old store or the new one, whatever happens in between.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use antiphon::storage::*;

use crate::rig::{at_once, entry, small_options};

const DATA_DIR: &str = "/data";
const SEGMENT_BYTES: u64 = 16 << 10;
/// The store that is taken over names these entries.
const TAKEN: [u64; 7] = [3, 4, 5, 90, 300, 301, 70_000];
const LAST: EntryId = EntryId { term: 7, index: 70_010 };
const VOTE: Vote = Vote { term: 8, node_id: 5, committed: true };

fn open(disk: &SimDisk, checkpoints: &Arc<MemoryCheckpoints>) -> std::io::Result<Stores> {
    Stores::open(Arc::new(disk.clone()), Path::new(DATA_DIR), SEGMENT_BYTES, checkpoints.clone())
}

fn open_log(disk: &SimDisk, stores: &Stores) -> (Log, LogWriter) {
    Log::open(Arc::new(disk.clone()), &stores.log_dir(), small_options()).expect("the log opens")
}

/// A disk whose first store holds entries 1 to 9, all durable, and a checkpoint.
fn first_store(checkpoints: &Arc<MemoryCheckpoints>) -> SimDisk {
    let disk = SimDisk::new(3);
    let stores = open(&disk, checkpoints).expect("an empty disk");
    stores.open_checkpoint().unwrap().write(vec![(b"which".to_vec(), Some(b"old".to_vec()))]).unwrap();
    let (log, mut writer) = open_log(&disk, &stores);
    let entries = (1..10).map(|index| entry(1, index, 300)).collect();
    at_once(log.append(entries, Box::new(|done| done.expect("durable")))).expect("appended");
    write_all(&mut writer);
    disk
}

fn write_all(writer: &mut LogWriter) {
    loop {
        let ops = writer.take();
        if ops.is_empty() {
            return;
        }
        writer.step(ops);
    }
}

fn take_over(disk: &SimDisk, checkpoints: &Arc<MemoryCheckpoints>) -> std::io::Result<()> {
    let stores = open(disk, checkpoints)?;
    let mut staged = stores.stage()?;
    if let Some(checkpoint) = &staged.checkpoint {
        checkpoint.write(vec![(b"which".to_vec(), Some(b"new".to_vec()))])?;
    }
    for index in TAKEN {
        staged.log.push(&entry(7, index, 5000))?;
    }
    staged.log.seal()?;
    stores.publish(staged, LAST, Some(VOTE))
}

/// Whether the disk holds the new store; panics unless it holds all of one of them.
fn is_new(disk: &SimDisk, checkpoints: &Arc<MemoryCheckpoints>) -> bool {
    let stores = open(disk, checkpoints).expect("one of the stores");
    let which = stores.open_checkpoint().unwrap().get(b"which").unwrap().expect("a checkpoint");
    let (log, _writer) = open_log(disk, &stores);
    if which == b"new" {
        assert_eq!((log.last_id(), log.purged(), log.vote()), (Some(LAST), Some(LAST), Some(VOTE)));
        for index in TAKEN {
            let expected = entry(7, index, 5000);
            assert_eq!(log.payload(expected.id).expect("a live entry"), expected.payload);
            log.live().add(index, 1);
        }
        assert_eq!(log.committed_entries(&TAKEN, usize::MAX, Duration::MAX).unwrap().len(), TAKEN.len());
        // However slow the disk is, there is an answer.
        assert_eq!(log.committed_entries(&TAKEN, usize::MAX, Duration::ZERO).unwrap().len(), 1);
        log.check_live().expect("every live entry lies in a file");
        true
    } else {
        assert_eq!(log.entries(0..u64::MAX, usize::MAX).unwrap().len(), 9);
        false
    }
}

#[test]
fn a_kill_at_any_point_leaves_the_old_store_or_the_new_one() {
    let mut seen = [0, 0];
    for fail_after in 1.. {
        let checkpoints: Arc<MemoryCheckpoints> = Arc::default();
        let disk = first_store(&checkpoints);
        disk.fail_after(fail_after);
        let is_done = take_over(&disk, &checkpoints).is_ok();
        disk.revive();
        // Both a process that was killed and a machine that lost power; and each start may be killed too.
        for seed in 0..6 {
            let after = if seed == 0 { disk.clone() } else { disk.crash(seed * 1000 + fail_after) };
            let is_new = is_new(&after, &checkpoints);
            assert!(is_new || !is_done, "a store that was published is lost");
            seen[usize::from(is_new)] += 1;
            if is_new || seed > 0 {
                // The checkpoint of the other one is removed: those of this twin outlive a crash.
                break;
            }
        }
        if is_done {
            break;
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "old and new: {seen:?}");
}

#[test]
fn a_store_that_was_taken_over_goes_on_like_any_other() {
    let checkpoints: Arc<MemoryCheckpoints> = Arc::default();
    let disk = first_store(&checkpoints);
    take_over(&disk, &checkpoints).unwrap();
    let stores = open(&disk, &checkpoints).unwrap();
    let (log, mut writer) = open_log(&disk, &stores);
    let entries: Vec<LogEntry> =
        (LAST.index + 1..LAST.index + 60).map(|index| entry(8, index, 900)).collect();
    for entry in &entries {
        at_once(log.append(vec![entry.clone()], Box::new(|done| done.expect("durable")))).unwrap();
        write_all(&mut writer);
    }
    drop((log, writer));
    let (log, _writer) = open_log(&disk, &open(&disk, &checkpoints).unwrap());
    assert_eq!(log.entries(0..u64::MAX, usize::MAX).unwrap(), entries);
    assert_eq!(log.payload(entry(7, 300, 0).id).unwrap(), entry(7, 300, 5000).payload);
    // The old store is gone.
    assert!(!disk.exists(&PathBuf::from(DATA_DIR).join("log")).unwrap());
}

#[test]
fn a_pointer_that_is_damaged_or_lost_is_no_blank_store() {
    let pointer = Path::new(DATA_DIR).join("store");
    for lose in [true, false] {
        let checkpoints: Arc<MemoryCheckpoints> = Arc::default();
        let disk = first_store(&checkpoints);
        take_over(&disk, &checkpoints).unwrap();
        drop(open(&disk, &checkpoints).unwrap());
        if lose { disk.lose(&pointer) } else { disk.flip_bit(&pointer, 0, 1) }.unwrap();
        let error = open(&disk, &checkpoints).err().expect("no store");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    }
}

#[test]
fn a_pointer_that_the_disk_cannot_read_is_damaged_and_a_stranger_s_directory_is_no_store() {
    let checkpoints = Arc::<MemoryCheckpoints>::default();
    let disk = first_store(&checkpoints);
    take_over(&disk, &checkpoints).expect("taken over");
    let pointer = Path::new(DATA_DIR).join("store");
    disk.fail_reads(&pointer, 1).expect("a file");
    open(&disk, &checkpoints).expect("the second try reads it");
    disk.fail_reads(&pointer, u32::MAX).expect("a file");
    let error = open(&disk, &checkpoints).err().expect("it cannot be read");
    assert_eq!(Verdict::of(&error), Verdict::Damage, "{error}");

    let blank = SimDisk::new(1);
    blank.create_dir_all(&Path::new(DATA_DIR).join("log-archive")).expect("create");
    open(&blank, &checkpoints).expect("a blank one, beside what somebody put there");
}
