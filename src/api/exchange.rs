//! The request that is under way on a connection, and the end of what its client sends.
//!
//! A client may end its sending side once it has sent a whole request, and still wants its answer (C-CONV-20). hyper
//! takes the end of what comes for the end of the connection, or, told otherwise, looks no more while a request is
//! under way, and then nobody notices that the reader of a stream is gone. So the connection hides the end from hyper
//! until the answer is written ([`super::write_progress`]), and tells it to whom it concerns: a body that is not whole
//! has broken off, a long poll answers, a stream ends.
//!
//! It also keeps what nobody read of a request's body, so that the connection can be ended in order.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::BoxError;
use axum::body::{Body, HttpBody};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use hyper::body::{Frame, Incoming, SizeHint};
use parking_lot::Mutex;

use super::byte_budget::Charge;
use super::write_progress::WriteProgress;
use crate::auth::Place;

/// What all parts of a connection know of the request that is under way. There is one at a time, and one task that
/// works on it; others only look.
#[derive(Default)]
pub struct Exchange {
    /// From a head that was read until all of its answer is written.
    is_under_way: AtomicBool,
    /// The last byte of the answer was handed to hyper.
    is_answered: AtomicBool,
    /// Nothing more comes from the client.
    has_peer_ended: AtomicBool,
    ended: AtomicWaker,
    /// Whether what comes is to be read off before the connection is closed.
    lingers: AtomicBool,
    /// Not HTTP any more.
    is_upgraded: AtomicBool,
    unread: Mutex<Option<Incoming>>,
    /// What answers count for until they are written, and whether there is any.
    held: Mutex<Vec<Held>>,
    holds: AtomicBool,
}

/// What an answer counts for: its bytes, and a place among the requests of its key.
pub type Held = (Charge, Option<Place>);

impl Exchange {
    /// The head of a request was read.
    pub fn begin(&self) {
        self.is_answered.store(false, Ordering::Relaxed);
        self.is_under_way.store(true, Ordering::Relaxed);
    }

    pub fn is_under_way(&self) -> bool {
        self.is_under_way.load(Ordering::Relaxed)
    }

    /// Neither a request nor a socket would be cut off by closing the connection.
    pub fn is_idle(&self) -> bool {
        !self.is_under_way() && !self.is_upgraded.load(Ordering::Relaxed)
    }

    /// Nothing that was handed to hyper waits to be written.
    pub fn flushed(&self) {
        if self.is_answered.load(Ordering::Relaxed) {
            self.is_under_way.store(false, Ordering::Relaxed);
            if self.holds.swap(false, Ordering::Relaxed) {
                self.held.lock().clear();
            }
        }
    }

    /// Keeps what an answer counts for until it is written, or the connection is gone.
    pub fn hold(&self, held: Held) {
        self.held.lock().push(held);
        self.holds.store(true, Ordering::Relaxed);
    }

    /// Nothing more comes from the client.
    pub fn end_peer(&self) {
        self.has_peer_ended.store(true, Ordering::Relaxed);
        self.ended.wake();
    }

    pub fn has_peer_ended(&self) -> bool {
        self.has_peer_ended.load(Ordering::Relaxed)
    }

    /// Waits until nothing more comes from the client.
    pub async fn peer_ended(&self) {
        poll_fn(|cx| self.poll_peer_ended(cx)).await
    }

    fn poll_peer_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.ended.register(cx.waker());
        if self.has_peer_ended() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The connection is closed after this answer, and what still comes is read off.
    pub fn linger(&self) {
        self.lingers.store(true, Ordering::Relaxed);
    }

    pub fn lingers(&self) -> bool {
        self.lingers.load(Ordering::Relaxed)
    }

    /// What comes from now on is not HTTP.
    pub fn upgrade(&self) {
        self.is_upgraded.store(true, Ordering::Relaxed);
    }

    /// What was left unread of the request's body.
    pub fn take_unread(&self) -> Option<Incoming> {
        self.unread.lock().take()
    }
}

/// The body of a request.
pub struct RequestBody {
    /// `Some` until this is dropped.
    body: Option<Incoming>,
    has_ended: bool,
    connection: Arc<WriteProgress>,
}

impl RequestBody {
    pub fn new(body: Incoming, connection: Arc<WriteProgress>) -> Self {
        RequestBody { has_ended: body.is_end_stream(), body: Some(body), connection }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(body) = this.body.as_mut().filter(|_| !this.has_ended) else { return Poll::Ready(None) };
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.has_ended = body.is_end_stream();
                Poll::Ready(Some(Ok(frame)))
            }
            // Nothing can follow an error either.
            Poll::Ready(other) => {
                this.has_ended = true;
                Poll::Ready(other.map(|frame| frame.map_err(Into::into)))
            }
            // All that came before the end has been handed on by then.
            Poll::Pending if this.connection.exchange.poll_peer_ended(cx).is_ready() => {
                this.has_ended = true;
                Poll::Ready(Some(Err("the client ended before the body did".into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.has_ended {
            *self.connection.exchange.unread.lock() = self.body.take();
        }
    }
}

/// The body of an answer.
pub struct AnswerBody {
    body: Body,
    /// Without a known end: it ends with its reader.
    is_stream: bool,
    connection: Arc<WriteProgress>,
}

impl AnswerBody {
    pub fn new(body: Body, connection: Arc<WriteProgress>) -> Self {
        AnswerBody { is_stream: body.size_hint().exact().is_none(), body, connection }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // The connection's own task finds that out, and asks here right after: nobody has to be woken.
        if self.is_stream && self.connection.exchange.has_peer_ended() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// hyper lets go of a body when it has all of it.
impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.connection.exchange.is_answered.store(true, Ordering::Relaxed);
    }
}
