//! Messages come back as they were written.

use proptest::prelude::*;

use super::*;

fn decode_all(bytes: &Bytes) {
    let _ = decode_append(bytes);
    let _ = decode_stream_result(bytes);
    let _ = decode_append_response(bytes);
    let _ = decode_vote_request(bytes);
    let _ = decode_vote_response(bytes);
    let _ = decode_transfer(bytes);
    let _ = decode_transfer_response(bytes);
    let _ = decode_forward(bytes);
    let _ = decode_proposals(bytes);
    let _ = Status::decode(bytes);
    let _ = decode_read_point(bytes);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        decode_all(&bytes.into());
    }

    #[test]
    fn arbitrary_damage_never_panics(which in 0usize..3, at: prop::sample::Index, byte: u8) {
        let id = EntryId { term: 1, index: 9 };
        let payload = Bytes::from_static(b"payload");
        let stored = LogEntry { id, kind: EntryKind::Command, stamp_ms: 7, payload: payload.clone() };
        let request = AppendRequest {
            vote: raft_vote(Vote { term: 1, node_id: 2, committed: true }),
            prev_log_id: None,
            entries: vec![raft_entry(stored).unwrap()],
            leader_commit: None,
        };
        let message = match which {
            0 => encode_append(request),
            1 => encode_forward(&[payload]),
            _ => encode_read_point(Some(ReadPoint { index: 3, time_ms: 1 << 40 })),
        };
        let mut bytes = message.pieces().collect::<Vec<_>>().concat();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        decode_all(&bytes.into());
    }
}

#[test]
fn small_payloads_leave_the_message_that_they_came_in_and_large_ones_stay_in_it() {
    let commands = [Bytes::from(vec![1; 300]), Bytes::from(vec![2; COPY_BYTES + 1])];
    let message: Bytes = encode_forward(&commands).pieces().collect::<Vec<_>>().concat().into();
    let decoded = decode_forward(&message).unwrap();
    assert_eq!(decoded, commands);
    let within = |part: &Bytes| message.as_ptr_range().contains(&part.as_ptr());
    assert_eq!(decoded.iter().map(within).collect::<Vec<_>>(), [false, true]);

    let id = EntryId { term: 1, index: 9 };
    let entry_of = |payload: &Bytes| {
        raft_entry(LogEntry { id, kind: EntryKind::Command, stamp_ms: 7, payload: payload.clone() }).unwrap()
    };
    let request = AppendRequest {
        vote: raft_vote(Vote { term: 1, node_id: 2, committed: true }),
        prev_log_id: None,
        entries: commands.iter().map(entry_of).collect(),
        leader_commit: None,
    };
    let message: Bytes = encode_append(request).pieces().collect::<Vec<_>>().concat().into();
    let entries = decode_append(&message).unwrap().entries;
    let payloads: Vec<Bytes> = entries.into_iter().map(|entry| stored_entry(entry).payload).collect();
    assert_eq!(payloads, commands);
    let within = |part: &Bytes| message.as_ptr_range().contains(&part.as_ptr());
    assert_eq!(payloads.iter().map(within).collect::<Vec<_>>(), [false, true]);
}
