//! Topics of many blocks that only the checkpoint has, with holes where it hurts: whoever looks for something in them
//! gets on with each block that it fetches.

use std::ops::RangeInclusive;

use antiphon::filter::TagMatch;
use antiphon::record::Record;
use antiphon::state::{
    Append, Cluster, Create, DeleteRecords, Draft, Envelope, LateMatch, Listed, Located, Outcome, PutRouter,
    RoutePart, RouterConfig, SealedBlock, Start, TimePlace, TopicConfig, TopicKey,
};

use crate::member::Member;

/// A member with a topic `t` of single records, each tagged with its seq and a millisecond younger than the last.
struct Rig {
    member: Member,
    index: u64,
    now_ms: u64,
    live: Vec<u64>,
}

impl Rig {
    fn new(count: u64) -> Self {
        let mut rig = Rig { member: Member::default(), index: 0, now_ms: 1_000_000, live: Vec::new() };
        rig.apply(Draft::open_session());
        rig.apply(Draft::set_cluster(&Cluster { id: 7, name: "here".into() }));
        for seq in 1..=count {
            rig.append(seq);
        }
        rig
    }

    fn apply(&mut self, draft: Draft) -> Outcome {
        let number = self.index;
        self.index += 1;
        self.now_ms += 1;
        let command = draft.seal(Envelope { node_id: 1, session: 5, number, done_below: number });
        self.member.apply(1 + number, self.now_ms, &command)
    }

    fn append(&mut self, seq: u64) {
        let create = Create::With(TopicConfig::default());
        let append = Append { topic: "t", create, expect_head_seq: None, idempotency_key: None };
        let tag = format!("t{seq}");
        let record = Record { data: "7", tag: Some(&tag), ..Record::default() };
        let outcome = self.apply(Draft::append(&append, [record].into_iter(), 0));
        assert!(matches!(outcome, Outcome::Appended(appended) if appended.head_seq == seq), "{outcome:?}");
        self.live.push(seq);
    }

    fn topic(&self) -> std::sync::Arc<antiphon::state::SharedTopic> {
        self.member.state.catalog().get("t").expect("it was made")
    }

    /// First seqs of the blocks but for the open one.
    fn sealed_blocks(&self) -> Vec<u64> {
        let shared = self.topic();
        let mut blocks: Vec<u64> = shared
            .read()
            .stored_keys()
            .filter_map(|key| if let TopicKey::Runs(first_seq) = key { Some(first_seq) } else { None })
            .collect();
        blocks.pop();
        blocks
    }

    fn remove(&mut self, ranges: Vec<RangeInclusive<u64>>) {
        self.live.retain(|seq| !ranges.iter().any(|range| range.contains(seq)));
        let listed = Some(Listed { epoch: self.topic().epoch, ranges, late: None });
        let outcome =
            self.apply(Draft::delete_records(&DeleteRecords { topic: "t", before_seq: None, listed }));
        let Outcome::RecordsDeleted(deleted) = outcome else { panic!("{outcome:?}") };
        assert_eq!(deleted.count, self.live.len() as u64);
    }

    /// Reads from `cursor` on as a page does, with room for one block that was fetched. Gives the seqs, and how many
    /// blocks were fetched.
    fn read(&self, mut cursor: u64) -> (Vec<u64>, usize) {
        let shared = self.topic();
        let (mut seqs, mut fetched, mut fetches): (Vec<u64>, Option<SealedBlock>, usize) =
            (Vec::new(), None, 0);
        loop {
            let located = shared.read().locate(cursor, fetched.as_ref()).expect("own runs can be read");
            match located {
                Located::AtHead => return (seqs, fetches),
                Located::BelowEarliest => cursor = shared.read().earliest_seq - 1,
                Located::Runs(runs) => {
                    for run in runs {
                        seqs.extend(run.first_seq..=run.last_seq());
                        cursor = run.last_seq();
                    }
                }
                Located::Cold { block_first_seq } => {
                    fetches += 1;
                    assert!(fetches <= 100, "no block that is fetched brings the reader on from {cursor}");
                    fetched = Some(self.member.stored_block(&shared, block_first_seq));
                }
            }
        }
    }

    /// Every place to read from gives what is live above it, with one fetch per block at most.
    fn check_reads(&self) {
        let blocks = self.sealed_blocks();
        let near = |seq: &u64| (seq.saturating_sub(2)..seq + 2).collect::<Vec<_>>();
        for cursor in blocks.iter().flat_map(near).chain([0]) {
            let (seqs, fetches) = self.read(cursor);
            let expected: Vec<u64> = self.live.iter().copied().filter(|seq| *seq > cursor).collect();
            assert_eq!(seqs, expected, "after {cursor}");
            assert!(fetches <= blocks.len(), "{fetches} fetches for {} blocks", blocks.len());
        }
    }

    /// The seq before the first record of this time or later, with one fetch at most.
    fn place_of_time(&self, ts_ms: u64) -> u64 {
        let shared = self.topic();
        let mut fetched = None;
        for _ in 0..2 {
            let place = shared.read().locate_time(ts_ms, fetched.as_ref()).expect("own runs can be read");
            match place {
                TimePlace::AtHead => return shared.read().head_seq,
                TimePlace::After(seq) => return seq,
                TimePlace::Cold { block_first_seq } => {
                    fetched = Some(self.member.stored_block(&shared, block_first_seq));
                }
            }
        }
        panic!("a second block is asked for");
    }
}

/// Holes at the ends of the blocks, at their beginnings, both, and blocks of which one record is left.
fn holes(blocks: &[u64], head_seq: u64) -> Vec<Vec<RangeInclusive<u64>>> {
    let each = |hole: &dyn Fn(u64, u64) -> Vec<RangeInclusive<u64>>| -> Vec<RangeInclusive<u64>> {
        let ends = blocks.iter().skip(1).map(|first| first - 1);
        blocks.iter().zip(ends).flat_map(|(first, last)| hole(*first, last)).collect()
    };
    vec![
        each(&|_, last| vec![last..=last]),
        each(&|first, _| vec![first..=first]),
        each(&|first, last| vec![first..=first + 9, last - 9..=last]),
        each(&|first, last| vec![first..=first + 199, first + 201..=last]),
        vec![blocks[1] - 1..=blocks[3]],
        vec![blocks[1] - 1..=head_seq],
        vec![2..=head_seq - 1],
    ]
}

#[test]
fn a_read_ends_over_cold_blocks_with_holes_at_their_ends() {
    let cases = {
        let rig = Rig::new(3000);
        holes(&rig.sealed_blocks(), 3000)
    };
    for (case, ranges) in cases.into_iter().enumerate() {
        for restarts in [false, true] {
            let mut rig = Rig::new(3000);
            assert!(rig.sealed_blocks().len() >= 5);
            // Before and after the delete: either way the blocks have left memory.
            rig.member.save();
            rig.remove(ranges.clone());
            rig.check_reads();
            if restarts {
                rig.member.restart();
            } else {
                rig.member.save();
            }
            rig.check_reads();
            for seq in rig.live.iter().copied().filter(|seq| seq % 97 < 2) {
                // Record 1 was the third command.
                assert_eq!(rig.place_of_time(1_000_000 + seq + 2), seq - 1, "case {case}");
            }
        }
    }
}

/// What is copied, deleted by what was written since, and started at a time goes over such blocks too.
#[test]
fn commands_get_on_over_cold_blocks_with_holes_at_their_ends() {
    let mut rig = Rig::new(3000);
    rig.member.save();
    let ranges: Vec<RangeInclusive<u64>> = holes(&rig.sealed_blocks(), 3000).swap_remove(2);
    rig.remove(ranges);
    rig.member.restart();

    let start = Start::Earliest;
    let config = RouterConfig { start, ..RouterConfig::local("t", "u") };
    rig.apply(Draft::put_router(&PutRouter { name: "r", config, is_start_given: true }));
    let router = rig.member.state.routers().get("r").expect("it was made");
    let from_seq = router.read().positions["t"].seq;
    let part = RoutePart { generation: router.generation, from_seq, to_seq: 3000, picked: None };
    let Outcome::Forwarded(forwarded) = rig.apply(Draft::route(&[part])) else { panic!("no copies") };
    assert_eq!((forwarded[0].taken, forwarded[0].seq), (rig.live.len() as u64, 3000));

    let tags = TagMatch::Glob("t1".into());
    let late = Some(LateMatch { seen_seq: 0, tags: tags.clone() });
    let listed = Some(Listed { epoch: rig.topic().epoch, ranges: Vec::new(), late });
    let outcome = rig.apply(Draft::delete_records(&DeleteRecords { topic: "t", before_seq: None, listed }));
    rig.live.retain(|seq| !tags.matches(&format!("t{seq}")));
    let Outcome::RecordsDeleted(deleted) = outcome else { panic!("{outcome:?}") };
    assert_eq!(deleted.count, rig.live.len() as u64);
    rig.member.restart();
    rig.check_reads();

    // A cap that ends in the middle of a block of which both ends are gone.
    let cap_records = 777;
    rig.apply(Draft::put_topic("t", &TopicConfig { cap_records, ..TopicConfig::default() }));
    rig.live.drain(..rig.live.len() - cap_records as usize);
    rig.check_reads();
    rig.member.restart();
    rig.append(3001);
    rig.live.remove(0);
    rig.check_reads();
}

/// A command that turns out to be a repeat leaves nothing in memory of what was fetched for it.
#[test]
fn what_was_fetched_for_a_repeat_does_not_stay() {
    let mut rig = Rig::new(3000);
    let first_seq = rig.sealed_blocks()[2];
    let tags = TagMatch::Eq(format!("t{first_seq}"));
    let late = Some(LateMatch { seen_seq: first_seq - 1, tags });
    let listed = Some(Listed { epoch: rig.topic().epoch, ranges: Vec::new(), late });
    let delete = DeleteRecords { topic: "t", before_seq: None, listed };
    let envelope = Envelope { node_id: 1, session: 5, number: rig.index, done_below: 0 };
    let command = Draft::delete_records(&delete).seal(envelope);
    rig.member.save();
    for index in [5000, 5001] {
        let outcome = rig.member.apply(index, 2_000_000, &command);
        assert!(matches!(&outcome, Outcome::RecordsDeleted(deleted) if deleted.deleted == 1), "{outcome:?}");
        for first_seq in rig.sealed_blocks() {
            assert!(rig.topic().read().block_in_memory(first_seq).is_none(), "block {first_seq} stays");
        }
    }
}
