//! After an orderly end nothing that was confirmed is taken for a torn tail, whatever happened to it since.
use std::sync::Arc;

use antiphon::storage::*;

use crate::rig::*;

/// A log that was closed in order behind a group of these sizes.
fn closed(sizes: &[usize]) -> (SimDisk, Looks) {
    let disk = SimDisk::new(7);
    let mut rig = Rig::new(&disk, &small_options()).expect("open");
    rig.vote(9, true).expect("vote");
    rig.append(&[700, 20]).expect("append");
    rig.run().expect("run");
    rig.append(sizes).expect("append");
    rig.run().expect("run");
    let truth = Looks::of(&rig.log);
    rig.writer.end_in_order();
    (disk, truth)
}

fn last_segment(disk: &SimDisk) -> std::path::PathBuf {
    segments(disk).pop().expect("a segment")
}

/// Where each frame of a segment begins and ends, and its kind.
fn frames(segment: &[u8]) -> Vec<(usize, usize, frame::FrameKind)> {
    let (mut at, mut found) = (SEGMENT_HEADER_BYTES as usize, Vec::new());
    while let Ok(frame) = frame::decode(&segment[at..]) {
        found.push((at, at + frame.total_bytes(), frame.head.kind));
        at += frame.total_bytes();
    }
    found
}

fn open(disk: &SimDisk) -> Result<Looks, OpenError> {
    let (log, _writer) = Log::open(Arc::new(disk.clone()), &dir(), small_options())?;
    Ok(Looks::of(&log))
}

#[test]
fn a_damaged_end_is_noticed_also_when_its_witness_went_with_it() {
    for sizes in [&[30][..], &[500, 10, 3], &[1500; 3], &[2000; 6]] {
        let (disk, truth) = closed(sizes);
        let last = last_segment(&disk);
        let bytes = read_file(&disk, &last);
        let frames = frames(&bytes);
        let &[.., (from, to, _), (witness, end, kind)] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!(kind, frame::FrameKind::Witness);
        for seed in 0..10 {
            assert_eq!(open(&disk.crash(seed)).expect("whole"), truth, "a power loss behind the end");
        }
        // A page that was lost on its way to the disk, or after it: all zero, the witness too.
        for start in [from, from / 4096 * 4096, from / 512 * 512] {
            let start = start.max(SEGMENT_HEADER_BYTES as usize);
            let damaged = disk.crash(3);
            let file = damaged.open(&last, OpenMode::Write).expect("open");
            file.write_all_at(&vec![0; end - start], start as u64).expect("zero it");
            assert!(
                matches!(open(&damaged), Err(OpenError::Corrupt { .. })),
                "{sizes:?}: zeroed from {start}"
            );
        }
        for at in (from..to).filter(|at| bytes[*at] != 0).step_by(7) {
            let damaged = disk.crash(3);
            damaged.flip_bit(&last, at as u64, 3).expect("flip");
            damaged.flip_bit(&last, witness as u64 + 17, 1).expect("flip");
            assert!(matches!(open(&damaged), Err(OpenError::Corrupt { .. })), "{sizes:?}: a bit at {at}");
        }
        // The witness alone is nothing that anybody was told of.
        disk.flip_bit(&last, witness as u64 + 17, 1).expect("flip");
        assert_eq!(open(&disk).expect("nothing is lost"), truth);
    }
}

#[test]
fn segments_that_are_all_gone_are_no_blank_log() {
    let (disk, _) = closed(&[30]);
    segments(&disk).iter().for_each(|path| disk.lose(path).expect("lose"));
    assert!(matches!(open(&disk), Err(OpenError::Corrupt { .. })));
}

#[test]
fn a_note_stays_true_while_the_log_grows_and_says_nothing_when_it_is_damaged() {
    let (disk, _) = closed(&[30]);
    let mut rig = Rig::new(&SimDisk::new(1), &small_options()).expect("open");
    rig.append(&[10]).expect("append");
    for (number, kill_at) in (1..40).enumerate() {
        let disk = disk.crash(number as u64);
        let (log, mut writer) = Log::open(Arc::new(disk.clone()), &dir(), small_options()).expect("open");
        let before = log.entries(0..u64::MAX, usize::MAX).expect("read");
        let next = before.last().map_or(0, |last| last.id.index + 1);
        let term = before.last().map_or(1, |last| last.id.term);
        disk.fail_after(kill_at);
        for index in next..next + 8 {
            let _ = at_once(log.append(vec![entry(term, index, 900)], Box::new(|_| ())));
            let ops = writer.take();
            writer.step(ops);
        }
        writer.end_in_order();
        let after = open(&disk.crash(kill_at)).expect("a torn tail is no damage");
        assert!(after.entries.starts_with(&before), "what was confirmed is there");
    }
    disk.flip_bit(&dir().join("closed"), 0, 1).expect("flip");
    open(&disk).expect("the log is whole");
}

#[test]
fn a_frame_of_a_kind_that_is_not_known_is_neither_damage_nor_a_torn_tail() {
    let (disk, truth) = closed(&[30]);
    let last = last_segment(&disk);
    let mut bytes = read_file(&disk, &last);
    let &(at, end, _) = frames(&bytes).last().expect("a frame");
    // As a later version might write it: whole, and of kind 99.
    bytes[at + 12] = 99;
    let crc = crc32c::crc32c(&bytes[at..at + 4]);
    let crc = crc32c::crc32c_append(crc, &bytes[at + 8..end]);
    bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    let newer = disk.crash(1);
    let file = newer.open(&last, OpenMode::Write).expect("open");
    file.write_all_at(&bytes[at..end], at as u64).expect("write");
    let error = open(&newer).expect_err("it is not known");
    assert_eq!(error.verdict(), Verdict::Newer, "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
    assert_eq!(read_file(&newer, &last), bytes, "nothing is changed");
    assert_eq!(open(&disk).expect("open"), truth);
}
