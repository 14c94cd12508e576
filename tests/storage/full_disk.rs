//! A disk without room, a process without descriptors, a sector that cannot be read: none of them is a dead disk.

use antiphon::storage::*;

use crate::rig::*;

fn last_frame(disk: &SimDisk) -> (usize, frame::FrameKind) {
    let files = segments(disk);
    let bytes = read_file(disk, files.last().expect("a segment"));
    let (mut at, mut kind) = (SEGMENT_HEADER_BYTES as usize, frame::FrameKind::Table);
    while let Ok(frame) = frame::decode(&bytes[at..]) {
        (at, kind) = (at + frame.total_bytes(), frame.head.kind);
    }
    (files.len(), kind)
}

#[test]
fn a_witness_needs_nothing_of_a_full_disk_wherever_a_segment_ends() {
    // Every length of what is left of a segment, in steps of a frame's alignment.
    for size in (3400..4096).step_by(8) {
        let disk = SimDisk::new(3);
        let mut rig = Rig::new(&disk, &small_options()).expect("open");
        rig.append(&[size]).expect("append");
        rig.run().expect("run");
        let (files, _) = last_frame(&disk);
        disk.set_space(Some(0));
        disk.refuse_opens(u32::MAX);
        rig.writer.bear_witness();
        disk.refuse_opens(0);
        assert_eq!(last_frame(&disk), (files, frame::FrameKind::Witness), "{size}");
        rig.writer.end_in_order();
        disk.set_space(None);
        rig.after_crash(&disk.crash(1)).expect("open").carry_on().expect("it goes on");
    }
}

#[test]
fn a_log_goes_on_in_a_segment_that_was_made_ahead_and_then_in_small_ones() {
    let disk = SimDisk::new(3);
    let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
    let mut rig = Rig::new(&disk, &options).expect("open");
    while segments(&disk).len() == 1 && !disk.exists(&dir().join("0000000000000002.seg.new")).expect("look") {
        rig.append(&[100_000]).expect("append");
        rig.run().expect("run");
    }
    disk.set_space(Some(300 << 10));
    // The rest of this segment, all of the next, and then what 300 KiB can be made of.
    for _ in 0..17 {
        rig.append(&[90_000]).expect("append");
        rig.run().expect("there is room");
    }
    assert!(segments(&disk).len() > 3, "{:?}", segments(&disk));
    let used = read_file(&disk, segments(&disk).last().expect("a segment")).len();
    assert!(used < 1 << 20, "{used}");
    while rig.append(&[90_000]).is_ok() && rig.run().is_ok() {}
    disk.set_space(None);
    let rig = rig.after_crash(&disk.crash(5)).expect("what was confirmed is there");
    assert!(rig.confirmed() > 20, "{}", rig.confirmed());
}

#[test]
fn what_was_made_ahead_is_used_by_the_next_start() {
    let disk = SimDisk::new(3);
    let options = LogOptions { segment_bytes: 64 << 10, ..LogOptions::default() };
    let ahead = dir().join("0000000000000002.seg.new");
    let mut rig = Rig::new(&disk, &options).expect("open");
    rig.append(&[20_000; 2]).expect("append");
    rig.run().expect("run");
    assert!(disk.exists(&ahead).expect("look"));
    for seed in 0..8 {
        let left = disk.crash(seed);
        let past = rig.past();
        let mut next = past.open(&left).expect("open");
        if left.exists(&ahead).expect("look") && read_file(&left, &ahead).len() == 64 << 10 {
            left.set_space(Some(0));
        }
        next.append(&[20_000; 2]).expect("append");
        next.run().expect("a rotation");
        left.set_space(None);
        assert_eq!(segments(&left).len(), 2);
        assert!(!left.exists(&ahead).expect("look"));
        next.after_crash(&left.crash(seed)).expect("open").carry_on().expect("it goes on");
    }
}

#[test]
fn a_rotation_waits_for_a_descriptor() {
    let disk = SimDisk::new(3);
    let mut rig = Rig::new(&disk, &small_options()).expect("open");
    rig.append(&[3000, 10]).expect("append");
    disk.refuse_opens(5);
    rig.append(&[3000]).expect("append");
    rig.run().expect("that passes");
    assert_eq!(rig.confirmed(), 3);
    assert_eq!(segments(&disk).len(), 2);
}

/// A log whose first segment is sealed and out of the cache, and the place of that.
fn cold() -> (SimDisk, Rig, std::path::PathBuf) {
    let disk = SimDisk::new(3);
    let mut rig = Rig::new(&disk, &small_options()).expect("open");
    for _ in 0..8 {
        rig.append(&[1500]).expect("append");
        rig.run().expect("run");
    }
    let first = segments(&disk).remove(0);
    (disk, rig, first)
}

#[test]
fn a_sector_that_cannot_be_read_twice_is_damage_and_once_is_not() {
    let (disk, rig, first) = cold();
    let expected = entry(1, 0, 1500);
    disk.fail_reads(&first, 1).expect("a file");
    assert_eq!(rig.log.payload(expected.id).expect("the second try reads it"), expected.payload);
    assert_eq!(*rig.log.watch_damage().borrow(), None);
    disk.fail_reads(&first, u32::MAX).expect("a file");
    let error = rig.log.payload(expected.id).expect_err("it cannot be read");
    assert!(is_damage(&error), "{error}");
    assert!(rig.log.watch_damage().borrow().is_some());
    assert_eq!(rig.log.payload(entry(1, 7, 1500).id).expect("the rest is well"), entry(1, 7, 1500).payload);
}

#[test]
fn a_sector_that_a_chore_cannot_read_once_is_no_damage() {
    let (disk, mut rig, first) = cold();
    for index in [0, 5] {
        rig.log.live().add(index, 1);
    }
    rig.purge(EntryId { term: 1, index: 6 }).expect("purge");
    rig.run().expect("run");
    let mut reclaimer = rig.log.reclaimer();
    disk.fail_reads(&first, 1).expect("a file");
    for turn in 0..200 {
        reclaimer.step(7).expect("the second try reads it");
        let files = disk.list(&dir()).expect("list");
        disk.fail_reads(&dir().join(&files[turn % files.len()]), 1).expect("a file");
    }
    assert_eq!(*rig.log.watch_damage().borrow(), None);
    assert!(disk.list(&dir()).expect("list").iter().any(|name| name.ends_with(".kept")));
}

#[test]
fn a_kept_file_with_an_unreadable_sector_is_left_alone_and_freeing_goes_on() {
    let (disk, mut rig, _) = cold();
    for index in [0, 5] {
        rig.log.live().add(index, 1);
    }
    rig.purge(EntryId { term: 1, index: 6 }).expect("purge");
    rig.run().expect("run");
    let mut reclaimer = rig.log.reclaimer();
    let kept = |disk: &SimDisk| {
        let names = disk.list(&dir()).expect("list");
        names.into_iter().filter(|name| name.ends_with(".kept")).collect::<Vec<_>>()
    };
    while kept(&disk).is_empty() {
        assert!(!reclaimer.step(7).expect("a step").is_idle(), "something is kept");
    }
    let bad = dir().join(&kept(&disk)[0]);
    disk.fail_reads(&bad, u32::MAX).expect("a file");
    for _ in 0..200 {
        reclaimer.step(7).expect("no step fails");
    }
    assert!(disk.exists(&bad).expect("look"), "it may still be read some day");
    assert!(rig.log.watch_damage().borrow().is_some());
    // When nothing in it is live any more, nobody needs to read it.
    rig.log.live().release(0);
    for _ in 0..200 {
        reclaimer.step(7).expect("no step fails");
    }
    assert!(!disk.exists(&bad).expect("look"));
}
