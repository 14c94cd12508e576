//! Damage to confirmed data is noticed and never served.
use std::path::PathBuf;

use antiphon::storage::*;

use crate::rig::*;

/// A log of several segments whose last group is one small frame, and the position of that frame: it is the
/// only one of which no other frame says that it was synced.
fn written() -> (SimDisk, Past, Looks, PathBuf, u64) {
    let disk = SimDisk::new(3);
    let mut rig = Rig::new(&disk, &small_options()).expect("open");
    for size in [0, 10, 500, 1800, 30, 900, 2500, 60, 1200, 77, 2000, 5, 640] {
        rig.append(&[size, 20]).expect("append");
        rig.vote(9, false).expect("vote");
        rig.run().expect("run");
    }
    rig.vote(9, true).expect("vote");
    rig.run().expect("run");
    let files = segments(&disk);
    assert!(files.len() >= 3, "several segments");
    let last = files.last().expect("a file").clone();
    let end = read_file(&disk, &last).iter().rposition(|byte| *byte != 0).expect("not empty") as u64;
    let looks = Looks::of(&rig.log);
    // A vote is a header and nothing else, and the flag at its end is set.
    let last_frame = end / 8 * 8 - 40;
    (disk, rig.into_past(), looks, last, last_frame)
}

/// Opens a damaged disk and reads everything. `true` if the damage was noticed; panics if anything but the
/// truth is shown.
fn is_noticed(disk: &SimDisk, truth: &Looks, what: &str) -> bool {
    let disk = std::sync::Arc::new(disk.clone());
    let (log, _writer) = match Log::open(disk, &dir(), small_options()) {
        Ok(opened) => opened,
        Err(OpenError::Io { source, .. }) => panic!("{what}: {source}"),
        Err(error) => {
            assert_eq!(error.to_string().lines().count(), 1);
            return true;
        }
    };
    assert_eq!((log.vote(), log.last_id()), (truth.vote, truth.last), "{what}");
    let mut is_noticed = false;
    for entry in &truth.entries {
        match log.payload(entry.id) {
            Ok(payload) => assert_eq!(payload, entry.payload, "{what}"),
            Err(error) => {
                assert!(is_damage(&error), "{what}: {error}");
                is_noticed = true;
            }
        }
        match log.entries(entry.id.index..entry.id.index + 1, 0) {
            Ok(entries) => assert_eq!(&entries, std::slice::from_ref(entry), "{what}"),
            Err(error) => assert!(is_damage(&error) && is_noticed, "{what}: {error}"),
        }
    }
    is_noticed
}

fn is_in_vote(segment: &[u8], position: usize) -> bool {
    let mut at = SEGMENT_HEADER_BYTES as usize;
    while let Ok(frame) = frame::decode(&segment[at..]) {
        if (at..at + frame.total_bytes()).contains(&position) {
            return frame.head.kind == frame::FrameKind::Vote;
        }
        at += frame.total_bytes();
    }
    false
}

#[test]
fn a_flipped_bit_below_the_synced_lsn_is_noticed_wherever_it_is() {
    let (disk, _, truth, last, last_frame) = written();
    let mut noticed = 0;
    for path in segments(&disk) {
        let bytes = read_file(&disk, &path);
        let step = 13;
        for at in (0..bytes.len() as u64).step_by(step) {
            if (path == last && at >= last_frame) || bytes[at as usize] == 0 {
                continue;
            }
            let damaged = disk.crash(1);
            damaged.flip_bit(&path, at, (at / step as u64) as u8).expect("flip");
            let what = format!("{} at {at}", path.display());
            if is_noticed(&damaged, &truth, &what) {
                noticed += 1;
            } else {
                // What a vote in a sealed segment said is repeated in the header of the next one.
                assert!(path != last && is_in_vote(&bytes, at as usize), "{what}");
            }
        }
    }
    assert!(noticed > 300, "{noticed}");
}

#[test]
fn a_flipped_bit_in_the_very_last_group_is_noticed_once_the_writer_was_quiet() {
    let disk = SimDisk::new(5);
    let mut rig = Rig::new(&disk, &small_options()).expect("open");
    rig.append(&[300, 20]).expect("append");
    rig.run().expect("run");
    let path = segments(&disk).pop().expect("a segment");
    let end_of = |disk: &SimDisk| read_file(disk, &path).iter().rposition(|byte| *byte != 0).expect("frames");
    let last_group = SEGMENT_HEADER_BYTES as usize..end_of(&disk);
    let unwitnessed = disk.crash(1);
    unwitnessed.flip_bit(&path, SEGMENT_HEADER_BYTES, 0).expect("flip");
    assert!(Rig::new(&unwitnessed, &small_options()).is_ok(), "until then it looks like a torn tail");

    rig.writer.bear_witness();
    let length = end_of(&disk);
    rig.writer.bear_witness();
    assert_eq!(end_of(&disk), length, "one witness per quiet period");
    let truth = Looks::of(&rig.log);
    drop(rig);
    let written = read_file(&disk, &path);
    for at in last_group.filter(|at| written[*at] != 0).step_by(3) {
        disk.flip_bit(&path, at as u64, 2).expect("flip");
        assert!(is_noticed(&disk, &truth, &format!("at {at}")), "at {at}");
        disk.flip_bit(&path, at as u64, 2).expect("flip back");
    }
    // It was not synced, and nothing depends on it.
    for seed in 0..20 {
        let (log, _writer) =
            Log::open(std::sync::Arc::new(disk.crash(seed)), &dir(), small_options()).expect("open");
        assert_eq!(Looks::of(&log), truth);
    }
}

#[test]
fn a_flipped_bit_among_zeroes_is_noticed_or_changes_nothing() {
    let (disk, _, truth, last, last_frame) = written();
    for path in segments(&disk) {
        let bytes = read_file(&disk, &path);
        for at in (0..bytes.len() as u64).step_by(61) {
            if bytes[at as usize] == 0 && !(path == last && (last_frame..last_frame + 48).contains(&at)) {
                let damaged = disk.crash(1);
                damaged.flip_bit(&path, at, 3).expect("flip");
                is_noticed(&damaged, &truth, &format!("{} at {at}", path.display()));
            }
        }
    }
}

#[test]
fn a_file_that_was_cut_short_is_noticed() {
    let (disk, _, truth, ..) = written();
    for path in segments(&disk) {
        let len = read_file(&disk, &path).len() as u64;
        for len in (0..len).step_by(311).chain([4096, 4096 + 48, len - 1]) {
            let damaged = disk.crash(1);
            damaged.truncate(&path, len).expect("truncate");
            let what = format!("{} cut to {len}", path.display());
            assert!(is_noticed(&damaged, &truth, &what), "{what}");
        }
    }
}

#[test]
fn a_file_that_was_cut_short_behind_an_unfinished_rotation_is_noticed() {
    let mut unfinished = 0;
    for kill_at in 1..20 {
        let disk = SimDisk::new(kill_at);
        let mut rig = Rig::new(&disk, &small_options()).expect("open");
        rig.append(&[1000; 2]).expect("append");
        rig.run().expect("run");
        rig.append(&[1000; 3]).expect("append");
        disk.fail_after(kill_at);
        let _ = rig.run();
        let left = disk.crash(kill_at);
        let [first, second] = &segments(&left)[..] else { continue };
        // Born, and without a frame.
        let has_frames = || frame::decode(&read_file(&left, second)[SEGMENT_HEADER_BYTES as usize..]).is_ok();
        if !second.to_string_lossy().ends_with(".seg") || has_frames() {
            continue;
        }
        unfinished += 1;
        let past = rig.past();
        left.truncate(first, SEGMENT_HEADER_BYTES + 1500).expect("truncate");
        // No frame is left there that could speak for the lost ones, but the next header does.
        match past.open(&left) {
            Err(OpenError::Corrupt { file, .. }) => assert_eq!(&file, first),
            other => panic!("killed at {kill_at}: {:?}", other.err()),
        }
    }
    assert!(unfinished > 2, "{unfinished}");
}

#[test]
fn a_file_that_went_missing_is_noticed() {
    let (disk, ..) = written();
    for path in segments(&disk) {
        let damaged = disk.crash(1);
        damaged.lose(&path).expect("lose");
        match Log::open(std::sync::Arc::new(damaged), &dir(), small_options()) {
            Err(OpenError::Corrupt { file, .. }) => assert_eq!(file, path),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("{} is missing, and nobody cares", path.display()),
        }
    }
}

#[test]
fn corruption_changes_nothing_on_the_disk() {
    let (disk, _, truth, last, _) = written();
    let before = read_file(&disk, &last);
    disk.flip_bit(&last, 4096 + 20, 1).expect("flip");
    assert!(is_noticed(&disk, &truth, "first frame of the last segment"));
    disk.flip_bit(&last, 4096 + 20, 1).expect("flip back");
    assert_eq!(read_file(&disk, &last), before);
    assert!(!is_noticed(&disk, &truth, "repaired"));
}

#[test]
fn a_newer_format_and_a_foreign_file_are_refused_by_name() {
    let (disk, past, _, last, _) = written();
    let mut header = read_file(&disk, &last)[..128].to_vec();
    header[8..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
    let crc = crc32c::crc32c(&header[..124]);
    header[124..].copy_from_slice(&crc.to_le_bytes());
    let newer = disk.crash(1);
    newer.open(&last, OpenMode::Write).expect("open").write_all_at(&header, 0).expect("write");
    match past.open(&newer) {
        Err(OpenError::NewerFormat { file, version, known }) => {
            assert_eq!((file, version, known), (last.clone(), FORMAT_VERSION + 1, FORMAT_VERSION));
        }
        other => panic!("{:?}", other.err()),
    }
    let foreign = disk.crash(1);
    foreign.open(&last, OpenMode::Write).expect("open").write_all_at(b"SQLite format 3\0", 0).expect("write");
    assert!(matches!(past.open(&foreign), Err(OpenError::Foreign { file }) if file == last));
}

#[test]
fn a_file_of_the_log_that_the_disk_cannot_read_is_damaged_at_the_start_too() {
    let disk = SimDisk::new(3);
    let mut rig = Rig::new(&disk, &small_options()).expect("open");
    for size in [900, 1500, 300, 1100, 2500, 640, 1700, 800, 1000, 1200, 500, 1900] {
        rig.append(&[size, 20]).expect("append");
        rig.run().expect("run");
    }
    (0..16).for_each(|index| rig.log.live().add(index, 1));
    rig.purge(EntryId { term: 1, index: 16 }).expect("purge");
    rig.run().expect("run");
    let mut reclaimer = rig.log.reclaimer();
    while !reclaimer.step(20).expect("free").is_idle() {}
    // Some as they were, and some that were rewritten.
    (0..7).filter(|index| index % 4 != 0).for_each(|index| rig.log.live().release(index));
    while !reclaimer.step(20).expect("free").is_idle() {}
    let files = segments(&disk);
    let count = |end: &str| files.iter().filter(|path| path.to_string_lossy().ends_with(end)).count();
    let as_they_were = count("-00000000.kept");
    assert!(as_they_were > 0 && count(".kept") > as_they_were && count(".seg") > 1, "{files:?}");
    let past = rig.past();
    let mut unreadable = 0;
    for path in &files {
        for after in 0.. {
            let left = disk.crash(1);
            left.fail_reads_after(path, after, 1).expect("a file");
            past.open(&left)
                .unwrap_or_else(|error| panic!("the second try reads {}: {error}", path.display()));
            let left = disk.crash(1);
            left.fail_reads_after(path, after, u32::MAX).expect("a file");
            match Log::open(std::sync::Arc::new(left.clone()), &dir(), small_options()) {
                Ok(_) => break,
                Err(error @ OpenError::Corrupt { .. }) => {
                    assert_eq!(error.verdict(), Verdict::Damage);
                    let line = error.to_string();
                    assert!(line.contains(&path.display().to_string()), "{line}");
                    unreadable += 1;
                }
                Err(error) => panic!("{} after {after} reads: {error}", path.display()),
            }
        }
    }
    assert!(unreadable > 2 * files.len(), "header and table of each: {unreadable}");
}
