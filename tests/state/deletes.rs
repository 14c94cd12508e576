//! What a delete does about records that were written between the look and the order.

use std::collections::BTreeMap;

use antiphon::filter::TagMatch;
use antiphon::limits::MAX_LATE_RECORDS;
use antiphon::record::{EntryRecords, Record};
use antiphon::state::{
    Append, Create, DeleteRecords, Draft, Envelope, LateMatch, Listed, NotApplied, Outcome, Ranges,
    RecordsDeleted, Refusal, State, TopicConfig,
};
use antiphon::storage::EntryId;

use crate::member;

const BATCH: u64 = 8000;
/// Four batches are too many to be looked at late, two are not.
const _: () = assert!(4 * BATCH > MAX_LATE_RECORDS && 2 * BATCH < MAX_LATE_RECORDS);

#[derive(Default)]
struct Member {
    state: State,
    log: BTreeMap<EntryId, EntryRecords>,
    number: u64,
    /// Entries that had to be handed in for the last command.
    asked_for: Vec<u64>,
}

impl Member {
    fn new() -> Self {
        let mut member = Member::default();
        member.apply(Draft::open_session());
        member
    }

    fn apply(&mut self, draft: Draft) -> Outcome {
        let number = self.number;
        self.number += 1;
        let command = draft.seal(Envelope { node_id: 1, session: 5, number, done_below: number });
        let id = EntryId { term: 1, index: number };
        self.log.insert(id, EntryRecords::parse(command.clone()).expect("own entries can be read"));
        self.asked_for.clear();
        loop {
            match self.state.apply_command(id, 1_000_000, &command) {
                Ok(applied) => {
                    member::check(&self.state, number);
                    return applied.outcome;
                }
                Err(NotApplied::Missing(missing)) => {
                    assert!(missing.blocks.is_empty(), "nothing has left memory");
                    for id in missing.entries {
                        self.asked_for.push(id.index);
                        self.state.supply_entry(id, self.log[&id].clone());
                    }
                }
                Err(NotApplied::Malformed(error)) => panic!("own commands can be read: {error}"),
            }
        }
    }

    /// Every second record has the tag "even".
    fn append(&mut self) {
        let create = Create::With(TopicConfig::default());
        let append = Append { topic: "t", create, expect_head_seq: None, idempotency_key: None };
        let tags = ["odd", "even"].into_iter().cycle().take(BATCH as usize).collect::<Vec<_>>();
        let records = tags.iter().map(|tag| Record { tag: Some(tag), data: "1", ..Record::default() });
        assert!(matches!(self.apply(Draft::append(&append, records, 0)), Outcome::Appended(_)));
    }

    fn delete(&mut self, epoch_more: u64, ranges: Ranges, seen_seq: Option<u64>) -> Outcome {
        let epoch = self.state.catalog().get("t").expect("it is there").epoch + epoch_more;
        let late = seen_seq.map(|seen_seq| LateMatch { seen_seq, tags: TagMatch::Eq("even".to_owned()) });
        let listed = Some(Listed { epoch, ranges, late });
        self.apply(Draft::delete_records(&DeleteRecords { topic: "t", before_seq: None, listed }))
    }

    fn count(&self) -> u64 {
        self.state.catalog().get("t").expect("it is there").read().count
    }
}

fn deleted(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::RecordsDeleted(RecordsDeleted { deleted, .. }) => deleted,
        other => panic!("{other:?}"),
    }
}

fn evens(upto: u64) -> Ranges {
    (2..=upto).step_by(2).map(|seq| seq..=seq).collect()
}

/// C-DEL-01
#[test]
fn what_was_written_after_the_look_is_found_in_its_own_entries() {
    let mut member = Member::new();
    (0..3).for_each(|_| member.append());
    assert_eq!(deleted(member.delete(0, evens(BATCH), Some(BATCH))), 3 * BATCH / 2);
    assert_eq!(member.asked_for, [2, 3]);
    assert_eq!(member.count(), 3 * BATCH / 2);
    // C-DEL-09
    assert_eq!(deleted(member.delete(0, evens(3 * BATCH), Some(3 * BATCH))), 0);
    assert!(member.asked_for.is_empty());
}

#[test]
fn when_that_was_too_much_it_is_looked_for_again_and_nothing_is_gone() {
    let mut member = Member::new();
    (0..4).for_each(|_| member.append());
    assert_eq!(member.delete(0, Ranges::new(), Some(0)), Outcome::Refused(Refusal::LookAgain));
    assert_eq!((member.count(), member.asked_for.len()), (4 * BATCH, 0));
    assert_eq!(deleted(member.delete(0, evens(2 * BATCH), Some(2 * BATCH))), 2 * BATCH);
}

#[test]
fn a_look_at_an_earlier_instance_removes_nothing() {
    let mut member = Member::new();
    member.append();
    assert_eq!(member.delete(1, evens(BATCH), Some(BATCH)), Outcome::Refused(Refusal::LookAgain));
    assert_eq!(member.count(), BATCH);
}

/// C-DEL-02
#[test]
fn a_list_alone_means_the_list() {
    let mut member = Member::new();
    (0..2).for_each(|_| member.append());
    assert_eq!(deleted(member.delete(0, evens(10), None)), 5);
    assert!(member.asked_for.is_empty());
    assert_eq!(deleted(member.delete(0, vec![1..=11], None)), 6);
    assert_eq!(member.state.catalog().get("t").expect("it is there").read().earliest_seq, 12);
}
