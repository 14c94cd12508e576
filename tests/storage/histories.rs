//! Random histories with random crashes, against the model.
use antiphon::storage::*;
use proptest::prelude::*;

use crate::rig::*;

#[derive(Clone, Debug)]
enum Verb {
    Append(Vec<usize>),
    Vote {
        committed: bool,
    },
    /// So many entries from the end.
    Truncate(u64),
    /// So many entries after the purge point.
    Purge(u64),
    /// Above the end, as after a snapshot.
    PurgeAbove(u64),
    Run,
    /// The disk fails after so many operations.
    Kill(u64),
    Reopen {
        seed: u64,
        has_power: bool,
        second_kill: u64,
    },
}

fn verbs() -> impl Strategy<Value = Vec<Verb>> {
    let size = prop_oneof![6 => 0usize..200, 3 => 200usize..3000, 1 => 8000usize..20_000];
    let verb = prop_oneof![
        10 => proptest::collection::vec(size, 0..6).prop_map(Verb::Append),
        3 => any::<bool>().prop_map(|committed| Verb::Vote { committed }),
        3 => (0u64..12).prop_map(Verb::Truncate),
        2 => (1u64..10).prop_map(Verb::Purge),
        1 => (0u64..5).prop_map(Verb::PurgeAbove),
        8 => Just(Verb::Run),
        2 => (1u64..25).prop_map(Verb::Kill),
        3 => (any::<u64>(), any::<bool>(), 0u64..30)
            .prop_map(|(seed, has_power, second_kill)| Verb::Reopen { seed, has_power, second_kill }),
    ];
    proptest::collection::vec(verb, 1..60)
}

fn play(verbs: &[Verb]) {
    let disk = SimDisk::new(7);
    let mut rig = Rig::new(&disk, &small_options()).expect("open");
    for verb in verbs {
        // What the disk refuses is refused for good until the log is opened again.
        let _ = match verb {
            Verb::Append(sizes) => rig.append(sizes),
            Verb::Vote { committed } => rig.vote(5, *committed),
            Verb::Truncate(back) => match rig.log.last_id() {
                Some(last) => {
                    let floor = rig.log.purged().map(|purged| purged.index);
                    rig.truncate(last.index.checked_sub(*back).max(floor))
                }
                None => Ok(()),
            },
            Verb::Purge(ahead) => {
                let start = rig.log.purged().map_or(0, |purged| purged.index + 1);
                match rig.log.entries(start..start + ahead, usize::MAX).expect("readable").last() {
                    Some(entry) => rig.purge(entry.id),
                    None => Ok(()),
                }
            }
            Verb::PurgeAbove(ahead) => {
                let index = rig.log.last_id().map_or(0, |last| last.index) + ahead;
                rig.purge(EntryId { term: rig.term, index })
            }
            Verb::Run => rig.run(),
            Verb::Kill(count) => {
                rig.disk.fail_after(*count);
                Ok(())
            }
            Verb::Reopen { seed, has_power, second_kill } => {
                let disk = if *has_power { rig.disk.clone() } else { rig.disk.crash(*seed) };
                disk.revive();
                disk.fail_after(*second_kill + 1);
                let past = rig.into_past();
                rig = match past.open(&disk) {
                    Ok(rig) => rig,
                    Err(OpenError::Io { .. }) => {
                        let left = disk.crash(seed.wrapping_add(1));
                        past.open(&left).unwrap_or_else(|error| panic!("second attempt: {error}"))
                    }
                    Err(error) => panic!("{error}"),
                };
                rig.disk.revive();
                Ok(())
            }
        };
        if !matches!(verb, Verb::Reopen { .. }) {
            // The logical log shows everything that was handed over, written or not.
            let model = rig.looks();
            assert_eq!((rig.log.last_id(), rig.log.purged()), (model.last, model.purged));
        }
    }
    let shown = rig.log.entries(0..u64::MAX, usize::MAX).expect("readable");
    assert_eq!(shown, rig.looks().entries);
    let left = rig.disk.crash(99);
    let mut again = rig.after_crash(&left).unwrap_or_else(|error| panic!("at the end: {error}"));
    again.carry_on().expect("a reopened log works");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_with_any_crashes_comes_back_as_a_prefix_that_holds_all_that_was_confirmed(verbs in verbs()) {
        play(&verbs);
    }
}
