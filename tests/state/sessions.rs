//! Sessions: whatever copy of a command or of an opening comes late, nothing is applied twice.

use std::collections::BTreeMap;

use antiphon::record::Record;
use antiphon::state::{Append, Create, Draft, Envelope, Outcome, Refusal, State, TopicConfig};
use antiphon::storage::EntryId;
use bytes::Bytes;

#[derive(Default)]
struct Member {
    state: State,
    checkpoint: BTreeMap<Vec<u8>, Vec<u8>>,
    index: u64,
}

impl Member {
    fn apply(&mut self, command: &Bytes) -> Outcome {
        self.index += 1;
        let entry = EntryId { term: 1, index: self.index };
        self.state.apply_command(entry, 1_000, command).expect("own commands can be read").outcome
    }

    fn restart(&mut self) {
        let before = self.state.digest();
        for (key, value) in self.state.take_changes().values {
            match value {
                Some(value) => self.checkpoint.insert(key, value),
                None => self.checkpoint.remove(&key),
            };
        }
        self.state = State::default();
        for (key, value) in &self.checkpoint {
            self.state.restore(key, value).expect("own checkpoint can be read");
        }
        self.state.restored();
        assert_eq!(self.state.digest(), before);
    }
}

fn open(session: u64) -> Bytes {
    Draft::open_session().seal(Envelope { node_id: 1, session, ..Envelope::default() })
}

fn append(session: u64, number: u64) -> Bytes {
    let create = Create::With(TopicConfig::default());
    let append = Append { topic: "t", create, expect_head_seq: None, idempotency_key: None };
    let records = [Record { data: "7", ..Record::default() }];
    let envelope = Envelope { node_id: 1, session, number, done_below: number };
    Draft::append(&append, records.into_iter(), 0).seal(envelope)
}

#[test]
fn a_late_copy_of_an_opening_makes_no_command_apply_twice() {
    for restarts in [false, true] {
        let mut member = Member::default();
        assert_eq!(member.apply(&open(5)), Outcome::SessionOpened);
        let first = member.apply(&append(5, 0));
        if restarts {
            member.restart();
        }
        // The opening stood in a connection until now, before a repeat of the command.
        assert_eq!(member.apply(&open(5)), Outcome::SessionOpened);
        assert_eq!(member.apply(&append(5, 0)), first);
        assert_eq!(member.state.catalog().get("t").expect("it is there").read().head_seq, 1);
    }
}

#[test]
fn a_session_that_was_replaced_neither_comes_back_nor_disturbs_its_successor() {
    let refused = Outcome::Refused(Refusal::SessionUnknown);
    for restarts in [false, true] {
        let mut member = Member::default();
        member.apply(&open(5));
        member.apply(&append(5, 0));
        assert_eq!(member.apply(&open(6)), Outcome::SessionOpened);
        let first = member.apply(&append(6, 0));
        if restarts {
            member.restart();
        }
        assert_eq!(member.apply(&open(5)), refused);
        assert_eq!(member.apply(&append(5, 0)), refused);
        assert_eq!(member.apply(&append(6, 0)), first);
        assert_eq!(member.state.catalog().get("t").expect("it is there").read().head_seq, 2);
    }
}
