//! A kill at any operation on the disk, and a power loss on top, lose nothing that was confirmed.
use std::io;

use antiphon::storage::*;

use crate::rig::*;

/// A history with everything in it: sizes from nothing to more than a segment, votes, truncations (also back
/// into sealed segments), purges (also above the end), rotations.
fn history(rig: &mut Rig) -> io::Result<()> {
    rig.vote(1, false)?;
    rig.append(&[0])?;
    rig.run()?;
    for size in [10, 1, 700, 48, 1500, 7, 900] {
        rig.append(&[size, 33])?;
        rig.append(&[size / 2])?;
        rig.run()?;
    }
    rig.vote(1, true)?;
    rig.append(&[3000, 3000, 3000, 12])?;
    rig.run()?;
    rig.append(&[20_000])?;
    rig.append(&[5, 6])?;
    rig.run()?;
    let last = rig.log.last_id().expect("has entries").index;
    rig.truncate(Some(last - 5))?;
    rig.vote(2, false)?;
    rig.append(&[40, 41, 42])?;
    rig.run()?;
    rig.truncate(Some(last - 4))?;
    rig.run()?;
    let kept = rig.log.entries(3..4, 0)?;
    rig.purge(kept[0].id)?;
    rig.append(&[100; 30])?;
    rig.run()?;
    let last = rig.log.last_id().expect("has entries");
    rig.purge(EntryId { term: last.term, index: last.index + 10 })?;
    rig.append(&[9, 2500])?;
    rig.run()?;
    rig.truncate(None)?;
    rig.vote(3, false)?;
    rig.append(&[64; 8])?;
    rig.run()
}

#[test]
fn a_kill_at_every_operation_and_a_power_loss_keep_what_was_confirmed() {
    let mut points = 0;
    for kill_at in 1.. {
        let disk = SimDisk::new(kill_at);
        disk.fail_after(kill_at);
        let rig = Rig::new(&disk, &small_options()).map(|mut rig| {
            let outcome = history(&mut rig);
            (rig, outcome)
        });
        let is_complete = matches!(rig, Ok((_, Ok(()))));
        for seed in 0..12 {
            let left = disk.crash(seed);
            let mut again = match &rig {
                Ok((rig, _)) => rig.past().open(&left),
                Err(_) => Rig::new(&left, &small_options()),
            }
            .unwrap_or_else(|error| panic!("killed at {kill_at}, seed {seed}: {error}"));
            again.carry_on().expect("a reopened log works");
            let left = left.crash(seed + 100);
            again
                .after_crash(&left)
                .unwrap_or_else(|error| panic!("killed at {kill_at}, seed {seed}: {error}"));
        }
        // The process alone died: everything that was written is still visible, synced or not.
        disk.revive();
        let again = match rig {
            Ok((rig, _)) => rig.after_crash(&disk),
            Err(_) => Rig::new(&disk, &small_options()),
        };
        let mut again = again.unwrap_or_else(|error| panic!("killed at {kill_at}, no power loss: {error}"));
        // What was merely visible was taken over as confirmed, so it has to be durable by now.
        for seed in 0..4 {
            let left = disk.crash(seed);
            again.past().open(&left).unwrap_or_else(|error| panic!("killed at {kill_at}, later: {error}"));
        }
        again.carry_on().expect("a reopened log works");
        let left = disk.crash(kill_at);
        again.after_crash(&left).unwrap_or_else(|error| panic!("killed at {kill_at}, at last: {error}"));
        points = kill_at;
        if is_complete {
            break;
        }
    }
    assert!(points > 100, "the history should reach the disk often: {points}");
}

#[test]
fn a_kill_at_every_operation_of_reopening_is_survived() {
    let disk = SimDisk::new(1);
    let mut rig = Rig::new(&disk, &small_options()).expect("open");
    for _ in 0..6 {
        rig.append(&[900, 800]).expect("append");
        rig.run().expect("run");
    }
    // Die within a rotation, with a torn group.
    rig.append(&[1000; 7]).expect("append");
    for kill_at in 1..14 {
        // The same past on a copy of the same disk for each point.
        let (left, past) = (disk.crash(kill_at), rig.past());
        let mut twin = past.open(&left).expect("open");
        twin.append(&[1000; 7]).expect("append");
        left.fail_after(kill_at);
        let _ = twin.run();
        let past = twin.into_past();
        for second_kill in 1..20 {
            let left = left.crash(second_kill);
            left.fail_after(second_kill);
            match past.open(&left) {
                Err(OpenError::Io { .. }) => {}
                Err(error) => panic!("killed at {kill_at} and {second_kill}: {error}"),
                Ok(_) => break,
            }
            let left = left.crash(second_kill + 1000);
            let mut again = past.open(&left).expect("the second attempt");
            again.carry_on().expect("a reopened log works");
        }
    }
}
