//! What this member does for its peers, once they were let in (`acceptor.rs`).

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{StreamExt, stream};
use openraft::impls::EntryPayload;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::admission::Application;
use super::connection::{Frame, FrameReader, FrameSender, Outgoing, say_receiving, write_frames};
use super::handshake::Call;
use super::membership::consider;
use super::node::Node;
use super::rpc::{self, Body, Kind};
use super::transfer_rpc::{self, InstallRequest};
use super::transport::PeerStream;
use super::types::AppendRequest;
use crate::limits::{APPEND_PIPELINE_DEPTH, PEER_QUEUE_FRAMES};
use crate::state::carries_records;
use crate::storage::Room;
use crate::task;

/// Longest time for which an answer is held back that nobody waits for. Well below the time after which a leader
/// takes a stream for dead.
const HOLD_TIME: Duration = Duration::from_millis(20);

/// How long a leader waits before it sends entries again for which there was no room. Below the time after which it
/// takes a stream for dead.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);

/// Answers what members ask each other that this room knows nothing of.
pub trait PeerHandler: Send + Sync + 'static {
    /// The answer to a request, at once; an error is a sentence for people.
    fn handle(&self, request: &[u8]) -> Result<BytesMut, String>;

    /// The same of a request for how the links of routers do.
    fn links(&self, request: &[u8]) -> Result<BytesMut, String>;
}

/// What comes in on a stream.
enum Incoming {
    Append(AppendRequest),
    /// A request that was not taken.
    NoRoom,
}

/// Serves a caller that was let in, as long as its connection lasts.
pub(super) async fn serve(stream: Box<dyn PeerStream>, node: Arc<Node>, caller: Call) {
    let (read, write) = tokio::io::split(stream);
    let (replies, frames) = mpsc::channel(PEER_QUEUE_FRAMES);
    let writing = task::spawn(write_frames(write, frames, |_| true));
    let mut reader = FrameReader::new(read, say_receiving(replies.clone()));
    // By id: when the connection ends they end in the order in which they were opened, also in a simulation.
    let mut streams: BTreeMap<u64, mpsc::Sender<Incoming>> = BTreeMap::new();
    while let Ok(frame) = reader.next().await {
        match frame.kind {
            Kind::StreamOpen => {
                // Streams whose follower has ended them are forgotten when the next one opens.
                streams.retain(|_, requests| !requests.is_closed());
                let (requests, received) = mpsc::channel(APPEND_PIPELINE_DEPTH + 1);
                task::spawn(run_stream(node.clone(), frame.id, received, replies.clone()));
                streams.insert(frame.id, requests);
                push(&mut streams, &frame, node.room()).await;
            }
            Kind::StreamAppend => push(&mut streams, &frame, node.room()).await,
            Kind::StreamClose => {
                streams.remove(&frame.id);
            }
            // A caller that has been replaced since it called learns of it when it calls again.
            Kind::Status if node.replacement_of(&caller).is_some() => break,
            _ => {
                task::spawn(answer(node.clone(), frame, replies.clone()));
            }
        }
    }
    tracing::debug!("the connection of {} ended", caller.hello.member.name);
    drop((reader, replies));
    writing.abort();
}

async fn push(streams: &mut BTreeMap<u64, mpsc::Sender<Incoming>>, frame: &Frame, room: &Room) {
    // A request that was sent before the sender learned that its stream had ended is dropped here.
    let Some(requests) = streams.get(&frame.id) else { return };
    match rpc::decode_append(&frame.body) {
        // A full follower still takes what its leader let in before it knew, out of the reserve. Without even
        // that the stream ends: the next request continues one that is not here, and for every such conflict the
        // leader would send everything again at once.
        Ok(request) if room.is_exhausted() && brings_records(&request) => {
            let _ = requests.send(Incoming::NoRoom).await;
            streams.remove(&frame.id);
        }
        Ok(request) => {
            let _ = requests.send(Incoming::Append(request)).await;
        }
        Err(error) => {
            tracing::error!("a peer sent entries that cannot be read: {error}");
            streams.remove(&frame.id);
        }
    }
}

fn brings_records(request: &AppendRequest) -> bool {
    request.entries.iter().any(|entry| match &entry.payload {
        EntryPayload::Normal(command) => carries_records(&command.bytes),
        _ => false,
    })
}

/// Feeds one stream of AppendEntries to openraft and sends the results back, in order.
///
/// A request without entries only says what is committed, and the leader waits for no answer to it: that goes
/// with the next one, or after [`HOLD_TIME`]. A lone append has such a request in its wake, so this saves
/// half of the answers just when each costs both sides a wake-up.
async fn run_stream(node: Arc<Node>, id: u64, received: mpsc::Receiver<Incoming>, replies: FrameSender) {
    // Of the requests under way, in order: whether they are without entries.
    let under_way = Arc::new(Mutex::new(VecDeque::new()));
    let has_no_room = Arc::new(AtomicBool::new(false));
    let shared = (under_way.clone(), has_no_room.clone());
    let requests = stream::unfold((received, shared), |(mut received, shared)| async move {
        match received.recv().await? {
            Incoming::Append(request) => {
                shared.0.lock().push_back(request.entries.is_empty());
                Some((request, (received, shared)))
            }
            Incoming::NoRoom => {
                shared.1.store(true, Ordering::Release);
                None
            }
        }
    });
    let mut results = pin!(node.raft().stream_append(requests));
    let mut held: Option<Outgoing> = None;
    loop {
        let next = match held {
            None => results.next().await,
            Some(_) => tokio::select! {
                biased;
                next = results.next() => next,
                () = tokio::time::sleep(HOLD_TIME) => {
                    if let Some(reply) = held.take() && replies.send(reply).await.is_err() {
                        return;
                    }
                    continue;
                }
            },
        };
        let Some(Ok(result)) = next else { break };
        let reply = Outgoing { kind: Kind::StreamReply, id, body: rpc::encode_stream_result(&result) };
        let can_wait = under_way.lock().pop_front() == Some(true) && result.is_ok() && held.is_none();
        if can_wait {
            held = Some(reply);
            continue;
        }
        for reply in held.take().into_iter().chain([reply]) {
            if replies.send(reply).await.is_err() {
                return;
            }
        }
    }
    if has_no_room.load(Ordering::Acquire) {
        if let Some(reply) = held.take() {
            let _ = replies.send(reply).await;
        }
        // Every heartbeat ends the pause that openraft makes after an error: so this is where it is made.
        tokio::time::sleep(NO_ROOM_PAUSE).await;
        let no_room = Outgoing { kind: Kind::StreamReply, id, body: rpc::encode_no_room() };
        let _ = replies.send(no_room).await;
    }
}

async fn answer(node: Arc<Node>, frame: Frame, replies: FrameSender) {
    let id = frame.id;
    let outgoing = match respond(&node, frame).await {
        Ok(body) => Outgoing { kind: Kind::Reply, id, body },
        Err(reason) => Outgoing {
            kind: Kind::Failure,
            id,
            body: Body::of(|out| out.extend_from_slice(reason.as_bytes())),
        },
    };
    // If the connection is gone, so is whoever asked.
    let _ = replies.send(outgoing).await;
}

async fn respond(node: &Node, frame: Frame) -> Result<Body, String> {
    let body = &frame.body;
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let raft = node.raft();
    match frame.kind {
        Kind::Append => {
            let request = rpc::decode_append(body).map_err(|error| said(&error))?;
            let response = raft.append_entries(request).await.map_err(|error| said(&error))?;
            Ok(rpc::encode_append_response(&response))
        }
        Kind::Vote => {
            let request = rpc::decode_vote_request(body).map_err(|error| said(&error))?;
            let response = raft.vote(request).await.map_err(|error| said(&error))?;
            Ok(rpc::encode_vote_response(&response))
        }
        Kind::PreVote => {
            let request = rpc::decode_vote_request(body).map_err(|error| said(&error))?;
            let response = raft.pre_vote(request).await.map_err(|error| said(&error))?;
            Ok(rpc::encode_vote_response(&response))
        }
        Kind::TransferLeader => {
            let request = rpc::decode_transfer(body).map_err(|error| said(&error))?;
            let response = raft.handle_transfer_leader(request).await.map_err(|error| said(&error))?;
            Ok(rpc::encode_transfer_response(&response))
        }
        Kind::ReadIndex => Ok(rpc::encode_read_point(node.read_point_here().await)),
        Kind::Forward => {
            let commands = rpc::decode_forward(body).map_err(|error| said(&error))?;
            Ok(rpc::encode_proposals(&node.propose_many_here(commands).await))
        }
        Kind::Status => Ok(node.status().encode()),
        Kind::Install => {
            let request = InstallRequest::decode(body).map_err(|error| said(&error))?;
            let vote = node.installer().install(node.peers(), request).await?;
            Ok(transfer_rpc::encode_installed(&vote))
        }
        Kind::TransferState => {
            let (transfer, after) = transfer_rpc::decode_state_request(body).map_err(|error| said(&error))?;
            let (page, sum) = node.transfers().state(transfer, after).await?;
            Ok(transfer_rpc::encode_page(&page, sum))
        }
        Kind::TransferEntries => {
            let (transfer, indexes) =
                transfer_rpc::decode_entries_request(body).map_err(|error| said(&error))?;
            Ok(transfer_rpc::encode_entries(&node.transfers().entries(transfer, indexes).await?))
        }
        Kind::Admit => {
            let application = Application::decode(body).map_err(|error| said(&error))?;
            Ok(consider(node, application).await.encode())
        }
        Kind::Handler => {
            let handler = node.handler().ok_or("this member is starting")?;
            let answer = handler.handle(body)?;
            Ok(Body::of(|out| *out = answer))
        }
        Kind::Links => {
            let handler = node.handler().ok_or("this member is starting")?;
            let answer = handler.links(body)?;
            Ok(Body::of(|out| *out = answer))
        }
        kind => Err(format!("{kind:?} is not a request")),
    }
}
