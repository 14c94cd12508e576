//! What comes in at the peer port, for [`crate::fuzzing`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes};
use hmac::Mac;
use tokio::io::AsyncWriteExt;

use super::admission::{Application, Verdict};
use super::connection::FrameReader;
use super::digest_marks::DigestMark;
use super::handshake::{self, Call, Hello, Lane};
use super::identity::ClusterId;
use super::install::InstallProgress;
use super::rpc::{self, Body, FRAME_HEAD_BYTES, Kind, Proposal, ReadPoint, Status};
use super::transfer_rpc::{self, InstallRequest};
use super::transport::PeerStream;
use super::types::{
    AppendRequest, AppendResponse, Member, RaftMembership, TransferRequest, VoteRequest, VoteResponse,
    decode_membership, encode_membership, raft_entry, raft_log_id, raft_vote,
};
use crate::codec::Malformed;
use crate::state::{Outcome, Refusal};
use crate::storage::{EntryId, EntryKind, LogEntry, Vote};

const SECRET: &[u8] = b"a secret of the cluster";
const DIALERS_NONCE: [u8; 16] = [1; 16];
const ACCEPTORS_NONCE: [u8; 16] = [2; 16];
/// More than either side says in a handshake, so that none has to wait until the other has read.
const PIPE_BYTES: usize = 64 << 10;
const MAX_SCRIPT_BYTES: usize = PIPE_BYTES / 2;

fn at_once<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(future)
}

/// One end of a connection at whose other end all of `script` was said, and nothing more will be.
async fn heard(script: &[u8]) -> (Box<dyn PeerStream>, tokio::io::DuplexStream) {
    let (near, mut far) = tokio::io::duplex(PIPE_BYTES);
    let said = &script[..script.len().min(MAX_SCRIPT_BYTES)];
    far.write_all(said).await.expect("there is room");
    far.shutdown().await.expect("it is open");
    (Box::new(near), far)
}

fn words(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        let part = &part[..part.len().min(MAX_SCRIPT_BYTES / 4)];
        out.put_u16_le(part.len() as u16);
        out.put_slice(part);
    }
    out
}

fn hello(name: &str) -> Hello {
    Hello {
        cluster: "site-a".into(),
        cluster_id: Some(ClusterId(7)),
        node_id: 42,
        member: member(name),
        is_initialized: true,
    }
}

fn member(name: &str) -> Member {
    Member { name: name.into(), peer_address: "a:1".into(), client_url: "http://a".into() }
}

fn call() -> Call {
    Call { hello: hello("m1"), lane: Lane::Bulk, expected_node_id: 9, seen_membership: 5 }
}

fn tag(role: &str, call: &[u8], challenge: &[u8], answer: &[u8]) -> Vec<u8> {
    handshake::mac(SECRET, role, call, challenge, answer).finalize().into_bytes().to_vec()
}

/// A handshake with somebody who says what follows the first byte. By that: raw, or as somebody who knows the secret;
/// to the acceptor, or to the dialer.
pub fn shake_hands(bytes: &[u8]) {
    let Some((way, said)) = bytes.split_first() else { return };
    let call = call();
    at_once(async {
        match way {
            0 | 1 => {
                let first = &said[..said.len().min(MAX_SCRIPT_BYTES / 4)];
                let script = match way {
                    0 => said.to_vec(),
                    _ => words(&[first, &tag("dialer", first, &ACCEPTORS_NONCE, &[])]),
                };
                let (mut stream, _far) = heard(&script).await;
                let me = hello("m2");
                let met = handshake::accept(stream.as_mut(), SECRET, &me, ACCEPTORS_NONCE, |_| Ok(())).await;
                assert!(*way == 1 || met.is_err(), "it is let in without the secret");
            }
            _ => {
                let first = handshake::first_words(&call, &DIALERS_NONCE);
                let challenge = handshake::challenge(&ACCEPTORS_NONCE);
                let said = &said[..said.len().min(MAX_SCRIPT_BYTES / 8)];
                let script = match way {
                    2 => said.to_vec(),
                    _ => {
                        let tag = tag("acceptor", &first, &ACCEPTORS_NONCE, said);
                        words(&[&challenge, &[said, &tag].concat()])
                    }
                };
                let (mut stream, _far) = heard(&script).await;
                let met = handshake::dial(stream.as_mut(), SECRET, &call, DIALERS_NONCE).await;
                assert!(*way != 2 || met.is_err(), "it is believed without the secret");
            }
        }
    });
}

/// Handshakes that come about.
pub fn handshakes() -> Vec<Vec<u8>> {
    let first = handshake::first_words(&call(), &DIALERS_NONCE);
    let accepting = handshake::accepting_words(&hello("m2"), &ACCEPTORS_NONCE);
    let framed = words(&[&first, &[0; 32]]);
    let refusal = words(&[&[0, b'n', b'o']]);
    let replaced = [&[2u8][..], &[5, 0, 0, 0, 0, 0, 0, 0]].concat();
    let scripts: [(u8, &[u8]); 5] =
        [(0, &framed), (1, &first), (2, &refusal), (3, &accepting), (3, &replaced)];
    scripts.iter().map(|(way, script)| [&[*way][..], script].concat()).collect()
}

fn bytes_of(body: &Body) -> Bytes {
    body.pieces().flatten().copied().collect::<Vec<u8>>().into()
}

/// What `decode` takes comes back from what `encode` makes of it.
fn comes_back<T>(
    bytes: &Bytes,
    decode: impl Fn(&Bytes) -> Result<T, Malformed>,
    encode: impl Fn(&T) -> Body,
) {
    if let Ok(message) = decode(bytes) {
        let sent = bytes_of(&encode(&message));
        let heard = decode(&sent).expect("what is sent is read");
        assert_eq!(bytes_of(&encode(&heard)), sent, "it arrives as something else");
    }
}

/// The body of a frame of a peer, of the form that the first byte says; or frames.
pub fn read_message(bytes: &[u8]) {
    let Some((what, body)) = bytes.split_first() else { return };
    let body = &Bytes::copy_from_slice(body);
    match what {
        0 => at_once(async {
            let (stream, _far) = heard(body).await;
            let mut reader = FrameReader::new(tokio::io::split(stream).0, || {});
            while let Ok(frame) = reader.next().await {
                assert!(frame.body.len() <= body.len());
            }
        }),
        1 => comes_back(body, rpc::decode_append, |request| rpc::encode_append(request.clone())),
        2 => comes_back(
            body,
            |body| rpc::decode_stream_result(body),
            |result| result.as_ref().map_or_else(rpc::encode_no_room, rpc::encode_stream_result),
        ),
        3 => comes_back(body, |body| rpc::decode_append_response(body), rpc::encode_append_response),
        4 => comes_back(body, |body| rpc::decode_vote_request(body), rpc::encode_vote_request),
        5 => comes_back(body, |body| rpc::decode_vote_response(body), rpc::encode_vote_response),
        6 => comes_back(body, |body| rpc::decode_transfer(body), rpc::encode_transfer),
        7 => comes_back(body, |body| rpc::decode_transfer_response(body), rpc::encode_transfer_response),
        8 => comes_back(body, rpc::decode_forward, |commands| rpc::encode_forward(commands)),
        9 => comes_back(body, |body| rpc::decode_proposals(body), |all| rpc::encode_proposals(all)),
        10 => comes_back(body, |body| Status::decode(body), Status::encode),
        11 => comes_back(body, |body| rpc::decode_read_point(body), |point| rpc::encode_read_point(*point)),
        12 => comes_back(body, |body| InstallRequest::decode(body), InstallRequest::encode),
        13 => comes_back(body, |body| transfer_rpc::decode_installed(body), transfer_rpc::encode_installed),
        14 => comes_back(
            body,
            |body| transfer_rpc::decode_state_request(body),
            |(transfer, after)| transfer_rpc::encode_state_request(*transfer, after.as_deref()),
        ),
        15 => comes_back(
            body,
            |body| transfer_rpc::decode_page(body),
            |(page, sum)| transfer_rpc::encode_page(page, *sum),
        ),
        16 => comes_back(
            body,
            |body| transfer_rpc::decode_entries_request(body),
            |(transfer, indexes)| transfer_rpc::encode_entries_request(*transfer, indexes),
        ),
        17 => {
            let summed = [&body[..], &crc32c::crc32c(body).to_le_bytes()].concat();
            comes_back(&summed.into(), transfer_rpc::decode_entries, |entries| {
                transfer_rpc::encode_entries(entries)
            });
        }
        18 => comes_back(body, |body| Application::decode(body), Application::encode),
        19 => comes_back(body, |body| Verdict::decode(body), Verdict::encode),
        _ => comes_back(
            body,
            |body| decode_membership(body),
            |membership| Body::of(|out| out.put_slice(&encode_membership(membership))),
        ),
    }
}

/// One of each.
pub fn messages() -> Vec<Vec<u8>> {
    let id = EntryId { term: 3, index: 300 };
    let vote = raft_vote(Vote { term: 3, node_id: 9, committed: true });
    let log_id = Some(raft_log_id(id));
    let payload = Bytes::from_static(b"payload");
    let entry = LogEntry { id, kind: EntryKind::Command, stamp_ms: 7, payload: payload.clone() };
    let nodes = BTreeMap::from([(1, member("a")), (2, member("b"))]);
    let membership = RaftMembership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([1])], nodes);
    let membership = encode_membership(&membership.expect("all have an address"));
    let of_members = LogEntry { kind: EntryKind::Membership, payload: membership.clone(), ..entry.clone() };
    let entries = [entry.clone(), of_members];
    let raft_entries = entries.iter().map(|entry| raft_entry(entry.clone()).expect("an entry"));
    let append =
        AppendRequest { vote, prev_log_id: log_id, entries: raft_entries.collect(), leader_commit: log_id };
    let progress = InstallProgress { entries: 1, entries_total: 2, bytes: 300 };
    let status = Status {
        wall_ms: 1 << 40,
        version: "0.1.0".into(),
        installing: Some(progress),
        install_error: "no".into(),
        digest: Some(DigestMark { index: 4096, digest: 5 }),
        ..Status::default()
    };
    let refused = Proposal::Done(Outcome::Refused(Refusal::SessionUnknown));
    let done = Proposal::Done(Outcome::SessionOpened);
    let proposals = [done, refused, Proposal::NotLeader, Proposal::Unknown, Proposal::StorageFull];
    let install = InstallRequest {
        vote,
        last: raft_log_id(id),
        needed_bytes: 1 << 40,
        transfer: 11,
        node_id: 9,
        member: member("m1"),
    };
    let application = Application { node_id: 7, member: member("m1"), is_passed_on: true };
    let page = vec![(vec![1], vec![2, 3]), (vec![4], vec![])];
    let summed = bytes_of(&transfer_rpc::encode_entries(&entries));
    let mut status_frame = Vec::new();
    status_frame.put_u32_le(FRAME_HEAD_BYTES as u32 - 4 + 3);
    status_frame.put_u8(Kind::Status as u8);
    status_frame.put_u64_le(5);
    status_frame.put_slice(b"abc");
    let bodies = [
        status_frame.repeat(2).into(),
        bytes_of(&rpc::encode_append(append)),
        bytes_of(&rpc::encode_stream_result(&Ok(log_id))),
        bytes_of(&rpc::encode_append_response(&AppendResponse::HigherVote(vote))),
        bytes_of(&rpc::encode_vote_request(&VoteRequest::new(vote, log_id))),
        bytes_of(&rpc::encode_vote_response(&VoteResponse::new(vote, log_id, true))),
        bytes_of(&rpc::encode_transfer(&TransferRequest::new(vote, 9, log_id))),
        bytes_of(&rpc::encode_transfer_response(&Ok(()))),
        bytes_of(&rpc::encode_forward(&[payload.clone(), payload])),
        bytes_of(&rpc::encode_proposals(&proposals)),
        bytes_of(&status.encode()),
        bytes_of(&rpc::encode_read_point(Some(ReadPoint { index: 3, time_ms: 1 << 40 }))),
        bytes_of(&install.encode()),
        bytes_of(&transfer_rpc::encode_installed(&vote)),
        bytes_of(&transfer_rpc::encode_state_request(5, Some(b"key"))),
        bytes_of(&transfer_rpc::encode_page(&page, 77)),
        bytes_of(&transfer_rpc::encode_entries_request(6, &[0, 1, 900])),
        summed.slice(..summed.len() - 4),
        bytes_of(&application.encode()),
        bytes_of(&Verdict::Alive { peer_address: "here:1".into() }.encode()),
        membership,
    ];
    bodies.iter().zip(0u8..).map(|(body, what)| [&[what][..], body].concat()).collect()
}
