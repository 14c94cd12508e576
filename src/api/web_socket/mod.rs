//! A WebSocket as a server has it (RFC 6455): messages in and out, with bounds on their size, their time and what
//! is held for them, signs of life, and an end that both sides know of.
//!
//! Written here and not taken from a library because of what has to hold with thousands of them: an idle socket has
//! no buffers, a message is counted while it comes, and one that never ends is noticed. Nothing is
//! negotiated: no extensions, no subprotocols.

pub(super) mod frame;
mod upgrade;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::limits::{
    MAX_SOCKET_MESSAGE_BYTES, SOCKET_MESSAGE_TIME, SOCKET_PING_INTERVAL, SOCKET_SILENT_AFTER,
};
pub use frame::{AGAINST_POLICY, GOING_AWAY, TRY_AGAIN_LATER, Violation};
use frame::{Decoder, Received};
pub use upgrade::upgrade;

/// What is read at once.
const READ_BYTES: usize = 8 << 10;
/// How long a client may take to close after it was told to, and to take what is sent last.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a client that sent something wrong is listened to, so that it comes to read why.
const LINGER: Duration = Duration::from_secs(5);
/// Messages of a socket count in steps of so many bytes, and the first step is free.
const HELD_STEP_BYTES: usize = 16 << 10;
/// Pings without any answer before a peer can be called silent.
const MIN_UNANSWERED_PINGS: u32 = 2;

/// Bounds of one socket.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub max_message_bytes: usize,
    /// From the first byte of a message to its last.
    pub message_time: Duration,
    pub ping_interval: Duration,
    /// A peer from which nothing has come for so long is gone.
    pub silent_after: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            max_message_bytes: MAX_SOCKET_MESSAGE_BYTES,
            message_time: SOCKET_MESSAGE_TIME,
            ping_interval: SOCKET_PING_INTERVAL,
            silent_after: SOCKET_SILENT_AFTER,
        }
    }
}

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    Text(String),
    Binary,
}

/// Why a socket is over.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// There is nobody left to tell anything.
    Gone,
    /// The client has closed, with this code.
    Closed(Option<u16>),
    /// The client is told why.
    Refused(Violation),
}

/// Is told how many bytes of messages are held now, and says whether they may be.
pub type Admit = Box<dyn FnMut(usize) -> bool + Send>;

pub struct WebSocket<I> {
    io: I,
    bounds: Bounds,
    admit: Admit,
    /// What it was told last.
    admitted_bytes: usize,
    decoder: Decoder,
    /// Has come and was not given out yet.
    whole: VecDeque<Received>,
    /// Of texts that have come whole, until [`WebSocket::release`].
    text_bytes: usize,
    /// What came after `whole` and ends the socket.
    violation: Option<Violation>,
    /// When what is under way must be whole.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Not written yet.
    out: VecDeque<Bytes>,
    /// The answer to the last ping, for when `out` is empty: a client cannot make it grow.
    pong: Option<Bytes>,
    is_flushed: bool,
    ping: Pin<Box<Sleep>>,
    unanswered_pings: u32,
    heard: Instant,
}

impl<I: AsyncRead + AsyncWrite + Unpin> WebSocket<I> {
    /// A socket over a connection on which the handshake is done.
    pub fn new(io: I, bounds: Bounds, admit: Admit) -> Self {
        WebSocket {
            io,
            bounds,
            admit,
            admitted_bytes: 0,
            decoder: Decoder::new(bounds.max_message_bytes),
            whole: VecDeque::new(),
            text_bytes: 0,
            violation: None,
            deadline: None,
            out: VecDeque::new(),
            pong: None,
            is_flushed: true,
            ping: Box::pin(sleep(bounds.ping_interval)),
            unanswered_pings: 0,
            heard: Instant::now(),
        }
    }

    /// The next message. May be dropped before it is done: then nothing is lost. Pings and signs of life are
    /// the business of this, so it has to be waited for most of the time.
    pub async fn recv(&mut self) -> Result<Message, Ending> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, Ending>> {
        loop {
            if let Poll::Ready(Err(_)) = self.poll_flush(cx) {
                return Poll::Ready(Err(Ending::Gone));
            }
            match self.whole.pop_front() {
                Some(Received::Text(text)) => return Poll::Ready(Ok(Message::Text(text))),
                Some(Received::Binary) => return Poll::Ready(Ok(Message::Binary)),
                Some(Received::Ping(payload)) => {
                    self.pong = Some(frame::pong(&payload));
                    continue;
                }
                Some(Received::Pong) => continue,
                Some(Received::Close(code)) => return Poll::Ready(Err(Ending::Closed(code))),
                None => {}
            }
            if let Some(violation) = self.violation {
                return Poll::Ready(Err(Ending::Refused(violation)));
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Ending::Gone)),
                Poll::Ready(Ok(_)) => continue,
                Poll::Pending => {}
            }
            // Only where nothing more has come: what this end has left unread is not the client's delay.
            if let Some(deadline) = &mut self.deadline
                && deadline.as_mut().poll(cx).is_ready()
            {
                let reason = "a message took too long to come";
                return Poll::Ready(Err(Ending::Refused(Violation { code: AGAINST_POLICY, reason })));
            }
            ready!(self.ping.as_mut().poll(cx));
            self.ping.as_mut().reset(Instant::now() + self.bounds.ping_interval);
            let is_silent = self.heard.elapsed() >= self.bounds.silent_after;
            if is_silent && self.unanswered_pings >= MIN_UNANSWERED_PINGS {
                return Poll::Ready(Err(Ending::Gone));
            }
            self.unanswered_pings += 1;
            if self.out.is_empty() {
                self.out.push_back(frame::ping());
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [MaybeUninit::uninit(); READ_BYTES];
        let mut bytes = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut bytes))?;
        let bytes = bytes.filled_mut();
        let length = bytes.len();
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        self.heard = Instant::now();
        self.unanswered_pings = 0;
        let known = self.whole.len();
        self.violation = self.decoder.feed(bytes, &mut self.whole).err();
        let mut has_ended = false;
        for received in self.whole.iter().skip(known) {
            has_ended |= matches!(received, Received::Text(_) | Received::Binary);
            if let Received::Text(text) = received {
                self.text_bytes += text.capacity();
            }
        }
        if has_ended || !self.decoder.is_under_way() {
            self.deadline = None;
        }
        if self.decoder.is_under_way() && self.deadline.is_none() {
            self.deadline = Some(Box::pin(sleep(self.bounds.message_time)));
        }
        if !self.count_held() && self.violation.is_none() {
            let reason = "too many bytes of messages are under way here";
            self.violation = Some(Violation { code: TRY_AGAIN_LATER, reason });
        }
        Poll::Ready(Ok(length))
    }

    /// Whether as much may be held as is.
    fn count_held(&mut self) -> bool {
        let held_bytes = self.decoder.held_bytes() + self.text_bytes;
        let counted =
            if held_bytes <= HELD_STEP_BYTES { 0 } else { held_bytes.next_multiple_of(HELD_STEP_BYTES) };
        if counted == self.admitted_bytes {
            return true;
        }
        let is_admitted = (self.admit)(counted);
        if is_admitted {
            self.admitted_bytes = counted;
        }
        is_admitted
    }

    /// A text of so many bytes of memory is done with.
    pub fn release(&mut self, bytes: usize) {
        self.text_bytes = self.text_bytes.saturating_sub(bytes);
        // Fewer may always be held.
        let _ = self.count_held();
    }

    /// What is under way has its time from now on: it was not listened to for a while.
    pub fn restart_deadline(&mut self) {
        if let Some(deadline) = &mut self.deadline {
            deadline.as_mut().reset(Instant::now() + self.bounds.message_time);
        }
    }

    /// Takes a text to be sent with the next [`WebSocket::flush`].
    pub fn push(&mut self, text: Bytes) {
        frame::put_text(text, &mut self.out);
    }

    /// Writes what there is to write. May be dropped before it is done, and is then gone on with.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.out.is_empty() {
                self.out.extend(self.pong.take());
            }
            let Some(first) = self.out.front_mut() else { break };
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, first))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.is_flushed = false;
            first.advance(written);
            if first.is_empty() {
                self.out.pop_front();
            }
        }
        if !self.is_flushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.is_flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    async fn finish(&mut self, close: Bytes) -> io::Result<()> {
        self.out.push_back(close);
        self.flush().await?;
        self.io.shutdown().await
    }

    /// Ends it as `ending` wants it: a Close is answered by one of the same code, and who did something wrong is told
    /// what.
    pub async fn end(mut self, ending: Ending) {
        match ending {
            Ending::Gone => {}
            Ending::Closed(code) => {
                let _ = timeout(CLOSE_TIMEOUT, self.finish(frame::close(code, ""))).await;
            }
            Ending::Refused(Violation { code, reason }) => {
                let close = frame::close(Some(code), reason);
                if let Ok(Ok(())) = timeout(CLOSE_TIMEOUT, self.finish(close)).await {
                    self.linger().await;
                }
            }
        }
    }

    /// Reads what is still on its way and forgets it: a connection that is closed before is reset, and then the
    /// client may never see what it was told last.
    async fn linger(&mut self) {
        let mut room = vec![0; READ_BYTES];
        let reading = async { while matches!(self.io.read(&mut room).await, Ok(1..)) {} };
        let _ = timeout(LINGER, reading).await;
    }

    /// Ends it from this side, and waits a moment for the other one to know.
    pub async fn close(mut self, code: u16, reason: &str) {
        self.out.push_back(frame::close(Some(code), reason));
        let closing = async {
            if self.flush().await.is_ok() {
                while self.recv().await.is_ok() {}
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }
}

#[cfg(test)]
mod tests;
