//! openraft's way to its peers.
//!
//! Votes and heartbeats go over the control lane as single requests. Entries go over the bulk lane as a
//! stream: the next AppendEntries is sent while the one before it is still being synced by the follower,
//! so that replication overlaps with the follower's disk.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{SnapshotResponse, StreamAppendResult, TransferLeaderResponse};
use openraft::{OptionalSend, Snapshot};
use tokio::time::{Instant, Sleep};

use super::connection::{CallError, CallStream};
use super::handshake::Lane;
use super::peer::Peer;
use super::peers::Peers;
use super::rpc::{self, Body, Kind};
use super::state_image::StateImage;
use super::transfer::Transfers;
use super::transfer_rpc::{self, InstallRequest};
use super::types::{
    AppendRequest, AppendResponse, CommittedLeader, Member, NodeId, RaftLogId, RaftVoteOf, TransferRequest,
    Types, VoteRequest, VoteResponse,
};
use crate::codec::Malformed;
use crate::limits::APPEND_PIPELINE_DEPTH;

/// Makes openraft's network clients.
pub struct Network {
    pub peers: Arc<Peers>,
    pub transfers: Arc<Transfers>,
}

impl Network {
    fn client(&self, target: NodeId, member: &Member, lane: Lane) -> PeerClient {
        let me = self.peers.me();
        PeerClient {
            peer: self.peers.peer(target, member),
            lane,
            from: me.node_id,
            me: me.member.clone(),
            transfers: self.transfers.clone(),
        }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: NodeId, member: &Member) -> PeerClient {
        self.client(target, member, Lane::Bulk)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, member: &Member) -> PeerClient {
        self.client(target, member, Lane::Control)
    }
}

/// openraft's client of one peer.
pub struct PeerClient {
    peer: Arc<Peer>,
    lane: Lane,
    from: NodeId,
    me: Member,
    transfers: Arc<Transfers>,
}

/// An installation has no deadline of its own: it goes on as long as the member fetches.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

type Failure = RPCError<Types>;

impl PeerClient {
    fn failure(&self, error: CallError) -> Failure {
        match error {
            CallError::Unreachable(_) => RPCError::Unreachable(Unreachable::new(&error)),
            CallError::Lost(_) | CallError::Failed(_) => RPCError::Network(NetworkError::new(&error)),
        }
    }

    /// Has the peer come and get what it lacks of the state up to `last`, or a later one. An error is followed by
    /// another try, of openraft's, with what is the last snapshot by then.
    async fn send_state(
        &self,
        vote: RaftVoteOf,
        last: Option<RaftLogId>,
    ) -> Result<SnapshotResponse<Types>, CallError> {
        let failed = |error: String| CallError::Failed(error);
        let last = last.ok_or_else(|| failed("there is no state to send".into()))?;
        let to = self.peer.node_id;
        if self.transfers.pause(to).await {
            return Err(failed("it did not get to have the last state".into()));
        }
        // Nothing is held for a member that cannot be reached.
        let connection = self.peer.connection(Lane::Bulk).await?;
        // What is sent is the state now, which is that of the snapshot's point or a later one.
        let sending = self.transfers.begin(to).await.map_err(failed)?;
        let (node_id, member) = (self.from, self.me.clone());
        let (transfer, needed_bytes) = (sending.number(), self.transfers.needed_bytes());
        let request = InstallRequest { vote, last, needed_bytes, transfer, node_id, member };
        let reply = tokio::select! {
            biased;
            reply = connection.call(Kind::Install, request.encode(), INSTALL_TIMEOUT) => reply,
            () = sending.stalled() => Err(failed("the member stopped fetching the state".into())),
        };
        let installed = reply.and_then(|reply| {
            transfer_rpc::decode_installed(&reply).map_err(|error| failed(error.to_string()))
        });
        match installed {
            Ok(vote) => {
                sending.finish(last.index());
                Ok(SnapshotResponse::new(vote))
            }
            Err(error) => {
                sending.fail(&error);
                Err(error)
            }
        }
    }

    async fn control<T>(
        &self,
        kind: Kind,
        body: Body,
        option: RPCOption,
        decode: impl FnOnce(&[u8]) -> Result<T, Malformed>,
    ) -> Result<T, Failure> {
        let reply = self.peer.call(Lane::Control, kind, body, option.soft_ttl()).await;
        let reply = reply.map_err(|error| self.failure(error))?;
        decode(&reply).map_err(malformed)
    }
}

fn malformed(error: Malformed) -> Failure {
    RPCError::Network(NetworkError::new(&error))
}

/// However often heartbeats are: a follower says a few times within it that it is receiving something.
const MIN_STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a stream waits for its follower, which neither answers nor receives anything, before it takes it for dead.
/// Heartbeats notice a dead one sooner; this only frees the stream.
fn stream_idle_timeout(option: &RPCOption) -> Duration {
    (option.hard_ttl() * 10).max(MIN_STREAM_IDLE_TIMEOUT)
}

impl RaftNetworkV2<Types> for PeerClient {
    type SnapshotData = StateImage;

    async fn append_entries(
        &mut self,
        request: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendResponse, Failure> {
        self.control(Kind::Append, rpc::encode_append(request), option, rpc::decode_append_response).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> openraft::base::BoxFuture<'s, Result<AppendResults<'s>, Failure>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        if self.lane == Lane::Control {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            // openraft takes its pause after an error while it makes the first request. Connecting before
            // that would repeat a failure at once, and for ever.
            let Some(first) = input.next().await else {
                return Ok(Box::pin(stream::empty()) as AppendResults<'s>);
            };
            let input = stream::once(std::future::ready(first)).chain(input);
            let connection = self.peer.connection(Lane::Bulk).await.map_err(|error| self.failure(error))?;
            let calls = connection.open_stream(APPEND_PIPELINE_DEPTH).map_err(|error| self.failure(error))?;
            let idle_timeout = stream_idle_timeout(&option);
            let results: AppendResults<'s> = Box::pin(AppendStream {
                client: self,
                input: Some(input),
                calls,
                waiting: None,
                under_way: VecDeque::with_capacity(APPEND_PIPELINE_DEPTH),
                answered_at: None,
                idle_timeout,
                idle: Box::pin(tokio::time::sleep(idle_timeout)),
            });
            Ok(results)
        })
    }

    async fn vote(&mut self, request: VoteRequest, option: RPCOption) -> Result<VoteResponse, Failure> {
        self.control(Kind::Vote, rpc::encode_vote_request(&request), option, rpc::decode_vote_response).await
    }

    async fn pre_vote(&mut self, request: VoteRequest, option: RPCOption) -> Result<VoteResponse, Failure> {
        self.control(Kind::PreVote, rpc::encode_vote_request(&request), option, rpc::decode_vote_response)
            .await
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVoteOf,
        snapshot: Snapshot<CommittedLeader, NodeId, Member, StateImage>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_state(vote, snapshot.meta.last_log_id) => {
                sent.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferRequest,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, Failure> {
        let body = rpc::encode_transfer(&request);
        self.control(Kind::TransferLeader, body, option, rpc::decode_transfer_response).await
    }
}

type AppendResults<'s> = openraft::base::BoxStream<'s, Result<StreamAppendResult<Types>, Failure>>;

/// Ends once every other task that is ready has had its turn.
type Turn = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Sends AppendEntries while fewer than the allowed number are under way, and yields their results.
struct AppendStream<'s, S> {
    client: &'s PeerClient,
    /// `None` once it has ended.
    input: Option<S>,
    calls: CallStream,
    /// A request without entries, and what it waits for.
    waiting: Option<(AppendRequest, Turn)>,
    /// When each unanswered request was sent.
    under_way: VecDeque<Instant>,
    answered_at: Option<Instant>,
    idle_timeout: Duration,
    idle: Pin<Box<Sleep>>,
}

impl<S: Stream<Item = AppendRequest> + Unpin> Stream for AppendStream<'_, S> {
    type Item = Result<StreamAppendResult<Types>, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        match this.calls.replies.poll_recv(cx) {
            Poll::Ready(Some(reply)) => {
                this.under_way.pop_front();
                this.answered_at = Some(Instant::now());
                let result = rpc::decode_stream_result(&reply).map_err(malformed);
                return Poll::Ready(Some(result.and_then(|result| {
                    let no_room = || CallError::Unreachable("it has no room for records".into());
                    result.ok_or_else(|| this.client.failure(no_room()))
                })));
            }
            Poll::Ready(None) => {
                let lost = CallError::Unreachable("the connection broke".into());
                return Poll::Ready(Some(Err(this.client.failure(lost))));
            }
            Poll::Pending => {}
        }
        while this.under_way.len() < APPEND_PIPELINE_DEPTH
            && let Some(input) = this.input.as_mut()
        {
            let request = match this.waiting.as_mut() {
                Some((_, turn)) => match turn.as_mut().poll(cx) {
                    Poll::Ready(()) => this.waiting.take().map(|(request, _)| request),
                    Poll::Pending => break,
                },
                None => match Pin::new(input).poll_next(cx) {
                    // What was committed is news for the clients of this member first: their answers leave
                    // before the followers are told.
                    Poll::Ready(Some(request)) if request.entries.is_empty() => {
                        this.waiting = Some((request, Box::pin(tokio::task::yield_now())));
                        continue;
                    }
                    Poll::Ready(request) => request,
                    Poll::Pending => break,
                },
            };
            let Some(request) = request else {
                this.input = None;
                break;
            };
            if let Err(error) = this.calls.send(rpc::encode_append(request)) {
                return Poll::Ready(Some(Err(this.client.failure(error))));
            }
            this.under_way.push_back(Instant::now());
        }
        let Some(sent_at) = this.under_way.front() else {
            return if this.input.is_none() { Poll::Ready(None) } else { Poll::Pending };
        };
        // The timer is moved only when it fires: while replies flow it costs nothing. A large entry takes its time on a
        // slow link, and what was sent behind one takes that time too: the follower gets on for as long as it answers
        // anything, or receives.
        while this.idle.as_mut().poll(cx).is_ready() {
            let signs = this.answered_at.into_iter().chain(this.calls.receiving_at());
            let deadline = signs.fold(*sent_at, Instant::max) + this.idle_timeout;
            if Instant::now() >= deadline {
                return Poll::Ready(Some(Err(RPCError::Timeout(Timeout {
                    action: RPCTypes::AppendEntries,
                    id: this.client.from,
                    target: this.client.peer.node_id,
                    timeout: this.idle_timeout,
                }))));
            }
            this.idle.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
