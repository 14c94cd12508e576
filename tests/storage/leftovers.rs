//! Files that could not be removed when they had to go.

use std::io;

use antiphon::storage::sim_disk::SimDisk;
use antiphon::storage::*;

use crate::rig::*;

/// A log of five entries to a segment, whose first seven segments may leave the chain.
fn seven_kept() -> (SimDisk, Rig, Reclaimer) {
    let disk = SimDisk::new(1);
    let options = LogOptions { segment_bytes: 64 << 10, ..LogOptions::default() };
    let mut rig = Rig::new(&disk, &options).expect("open");
    for index in 0..45 {
        rig.append(&[11_000]).expect("append");
        rig.run().expect("run");
        rig.log.live().add(index, 1);
    }
    rig.purge(EntryId { term: 1, index: 34 }).expect("purge");
    rig.run().expect("run");
    let reclaimer = rig.log.reclaimer();
    (disk, rig, reclaimer)
}

fn free_all(reclaimer: &mut Reclaimer) -> io::Result<()> {
    while !reclaimer.step(44)?.is_idle() {}
    Ok(())
}

/// Of kept files: first and last segment, and generation.
fn kept_names(disk: &SimDisk) -> Vec<String> {
    let names = disk.list(&dir()).expect("list");
    let kept = names.iter().filter_map(|name| name.strip_suffix(".kept"));
    let short = |name: &str| {
        name.split('-').map(|part| part.trim_start_matches('0').to_owned()).collect::<Vec<_>>().join("-")
    };
    kept.map(short).collect()
}

/// One file of a higher generation between others, all of whose entries have just died.
fn dead_between_others() -> (SimDisk, Rig, Reclaimer, std::path::PathBuf) {
    let (disk, rig, mut reclaimer) = seven_kept();
    for segment in 2..5 {
        (segment * 5 + 1..segment * 5 + 5).for_each(|index| rig.log.live().release(index));
    }
    free_all(&mut reclaimer).expect("free");
    assert_eq!(kept_names(&disk), ["1-1-", "2-2-", "3-5-1", "6-6-", "7-7-"]);
    (2..5).for_each(|segment| rig.log.live().release(segment * 5));
    let dead = dir().join("0000000000000003-0000000000000005-00000001.kept");
    assert!(disk.exists(&dead).expect("look"));
    (disk, rig, reclaimer, dead)
}

/// Lets all entries but one die in the files beside it, so that they are rewritten into one.
fn let_neighbours_die(rig: &Rig) {
    for segment in [1, 5] {
        (segment * 5 + 1..segment * 5 + 5).for_each(|index| rig.log.live().release(index));
    }
}

#[test]
fn a_dead_file_that_could_not_be_removed_goes_before_others_take_its_place() {
    // Also if the disk fails more than once, or only at making it durable.
    type Fail = fn(&SimDisk);
    let fails: [(u32, Fail); 3] = [
        (1, |disk| disk.fail_removals(1)),
        (5, |disk| disk.fail_removals(5)),
        (1, |disk| disk.fail_syncs(1)),
    ];
    for (errors, fail) in fails {
        let (disk, rig, mut reclaimer, dead) = dead_between_others();
        fail(&disk);
        for _ in 0..errors {
            free_all(&mut reclaimer).expect_err("the disk is full");
        }
        let_neighbours_die(&rig);
        free_all(&mut reclaimer).expect("it works again");
        assert!(!disk.exists(&dead).expect("look"));
        assert_eq!(kept_names(&disk), ["1-1-", "2-6-1", "7-7-"]);
        assert_eq!(rig.log.stats().kept_files, 3);
        rig.after_crash(&disk.crash(2)).expect("nothing is damaged");
    }
}

#[test]
fn two_whole_files_with_the_same_segments_are_no_damage() {
    let (disk, rig, mut reclaimer, dead) = dead_between_others();
    let bytes = read_file(&disk, &dead);
    free_all(&mut reclaimer).expect("free");
    let_neighbours_die(&rig);
    free_all(&mut reclaimer).expect("free");
    let file = disk.open(&dead, OpenMode::Create).expect("as if it had never gone");
    file.write_all_at(&bytes, 0).expect("write");
    file.sync_data().expect("sync");
    disk.sync_dir(&dir()).expect("sync");
    assert_eq!(kept_names(&disk), ["1-1-", "2-6-1", "3-5-1", "7-7-"]);
    let left = disk.crash(2);
    let rig = rig.after_crash(&left).expect("the wider one was made without the other");
    assert_eq!(kept_names(&left), ["1-1-", "2-6-1", "7-7-"]);
    for id in [0, 5, 25, 30].map(|index| EntryId { term: 1, index }) {
        assert_eq!(rig.log.payload(id).expect("it is live"), payload(id, 11_000));
    }
}

#[test]
fn a_rewrite_that_was_given_up_leaves_nothing_once_the_disk_works_again() {
    let (disk, rig, mut reclaimer, _) = dead_between_others();
    free_all(&mut reclaimer).expect("free");
    let_neighbours_die(&rig);
    let unborn =
        || disk.list(&dir()).expect("list").into_iter().filter(|name| name.ends_with(".kept.new")).count();
    while unborn() == 0 {
        assert!(!reclaimer.step(44).expect("a step").is_idle(), "two of them are to be rewritten");
    }
    // A cut of the state needs what it was about to replace.
    let pin = rig.log.pin();
    disk.fail_removals(1);
    free_all(&mut reclaimer).expect_err("what was written cannot go");
    assert_eq!(unborn(), 1);
    free_all(&mut reclaimer).expect("free");
    assert_eq!(unborn(), 0);
    drop(pin);
    free_all(&mut reclaimer).expect("free");
    assert_eq!(kept_names(&disk), ["1-1-", "2-6-1", "7-7-"]);
}
