//! What is in a record never ends a member: bytes that are none are refused by applying, at every member alike,
//! and what stands behind them in the log is applied.

use antiphon::codec::Malformed;
use antiphon::record::{HeaderEdit, Record};
use antiphon::state::{
    Append, Copy, CopyItem, CopyPart, Create, Draft, Envelope, Instance, Outcome, Refusal, State,
    TopicConfig, TopicType,
};
use antiphon::storage::EntryId;
use bytes::Bytes;

/// A copy of one record, as it is proposed.
fn draft(record: &[u8]) -> Result<Draft, Malformed> {
    let cluster = "east".into();
    let instance = Instance { cluster_id: 9, cluster, topic: "t".into(), epoch: 1 };
    let item = CopyItem::Records { instance: 0, origin_seq: 1, origin_ts_ms: 1, source_seq: 1, count: 1 };
    let part = CopyPart {
        source: "t",
        source_epoch: 1,
        source_type: TopicType::Log,
        source_instance: 0,
        dest: "t",
        dest_epoch: None,
        from_seq: None,
        start_seq: Some(0),
        to_seq: 1,
        to_entry: None,
        lost: Vec::new(),
        items: vec![item],
    };
    let copy = Copy {
        generation: 1,
        cluster_id: 9,
        next_epoch: 2,
        instances: vec![instance],
        parts: vec![part],
        gone: Vec::new(),
        held: Vec::new(),
    };
    Draft::copy(&copy, [(record, HeaderEdit::default())].into_iter())
}

fn envelope(number: u64) -> Envelope {
    Envelope { node_id: 1, session: 5, number, done_below: number }
}

/// The bytes of a record `[headers: tag "x"] [no meta] 17`.
const RECORD: &[u8] = &[3, 2, 1, b'x', 0, b'1', b'7'];

fn damaged(number: u64, record: &[u8]) -> Bytes {
    let mut command = draft(RECORD).expect("a record").seal(envelope(number)).to_vec();
    let at = command.windows(RECORD.len()).position(|bytes| bytes == RECORD).expect("the record is there");
    command[at..at + record.len()].copy_from_slice(record);
    command.into()
}

#[test]
fn bytes_that_are_no_record_are_refused_and_the_log_goes_on() {
    // C-MIRROR-18
    let bad: [&[u8]; 5] = [
        // Headers and nothing else, which is what `[0]` comes to.
        &[6, 2, 1, b'x', 200, 1, 0],
        // `meta` ends behind the record.
        &[3, 2, 1, b'x', 9, b'1', b'7'],
        // A tag that is not UTF-8, and one that is longer than the headers.
        &[3, 2, 1, 0xff, 0, b'1', b'7'],
        &[3, 2, 9, b'x', 0, b'1', b'7'],
        // Data that is not UTF-8.
        &[3, 2, 1, b'x', 0, 0xff, b'7'],
    ];
    let mut members = [State::default(), State::default()];
    for member in &mut members {
        let mut number = 0;
        let mut apply = |command: Bytes| {
            number += 1;
            member
                .apply_command(EntryId { term: 1, index: number }, 1000, &command)
                .expect("it is applied")
                .outcome
        };
        assert_eq!(apply(Draft::open_session().seal(envelope(0))), Outcome::SessionOpened);
        for (number, record) in (1..).zip(bad) {
            let command = damaged(number, record);
            assert_eq!(apply(command.clone()), Outcome::Refused(Refusal::BadRecord), "{record:?}");
            assert_eq!(apply(command), Outcome::Refused(Refusal::BadRecord), "a repeat");
        }
        let create = Create::With(TopicConfig::default());
        let append = Append { topic: "t", create, expect_head_seq: None, idempotency_key: None };
        let record = Record { data: "1", ..Record::default() };
        let command = Draft::append(&append, [record].into_iter(), 0).seal(envelope(10));
        assert!(matches!(apply(command), Outcome::Appended(_)));
    }
    let [one, other] = &mut members;
    assert_eq!(one.digest(), other.digest());
}

#[test]
fn a_command_is_not_made_of_bytes_that_are_no_record() {
    for record in [&[0][..], &[], &[1, 0], &[3, 2, 1, 0xff, 0, b'1'], &[0, 0, 0xff]] {
        assert!(draft(record).is_err(), "{record:?}");
    }
}
