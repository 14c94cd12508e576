//! The end of a connection, and the body of the refusals that hyper writes by itself.
//!
//! What is no HTTP request (a broken request line, a bad header, a head that is too large) never becomes
//! one, so no handler sees it: hyper answers with an empty 400, 414 or 431 and closes. There is no hook
//! for it, but it is easy to know on its way out: it starts a write, and it is the only answer of class 4
//! without a body. This wrapper of the connection puts the contract's error body into it (C-ERR-01).
//!
//! After such a refusal, and after an answer to a request whose body nobody has read, what still comes is read off
//! for a while before the connection is closed (C-CONV-20): closing on bytes that nobody has read makes the kernel
//! reset the connection, and the client would never read why.

use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::StatusCode;
use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use tokio::time::{Sleep, sleep};

use super::connections::ConnectionPlace;
use super::problem::error_body;
use super::request_metrics::RouteMetrics;
use super::write_progress::WriteProgress;
use crate::error::{Code, Error};
use crate::limits::{LINGER_MS, MAX_READ_BYTES};

pub struct RefusalIo<I> {
    io: I,
    connection: Arc<WriteProgress>,
    /// What is left to write of a refusal with its body, in place of `replaced_bytes` of hyper's own.
    refusal: Bytes,
    replaced_bytes: usize,
    /// Bytes that are still read off at the end.
    linger_bytes: usize,
    /// Until when; set once nothing more is written.
    linger_until: Option<Pin<Box<Sleep>>>,
    /// Counts the refusals.
    refused: Arc<RouteMetrics>,
    /// Held as long as the socket is, also where it is none of HTTP any more.
    _place: ConnectionPlace,
}

impl<I> RefusalIo<I> {
    /// Reads at most `linger_bytes` off a connection that ends with an answer.
    pub fn new(
        io: I,
        connection: Arc<WriteProgress>,
        linger_bytes: usize,
        refused: Arc<RouteMetrics>,
        place: ConnectionPlace,
    ) -> Self {
        RefusalIo {
            io,
            connection,
            refusal: Bytes::new(),
            replaced_bytes: 0,
            linger_bytes,
            linger_until: None,
            refused,
            _place: place,
        }
    }
}

/// The answer to send in place of `written`, if that is a refusal of hyper's own.
fn with_body(written: &[u8]) -> Option<Bytes> {
    // The common case costs one comparison.
    if !written.starts_with(b"HTTP/1.") || written.get(9) != Some(&b'4') {
        return None;
    }
    let head = std::str::from_utf8(written).ok()?.strip_suffix("\r\n\r\n")?;
    if !head.lines().any(|line| line.eq_ignore_ascii_case("content-length: 0")) {
        return None;
    }
    let message = match head.get(9..12)? {
        "414" => "the request's URI is too long",
        "431" => "the request's headers are too large or too many",
        _ => "this is no HTTP request that the server understands; in its path, `>` is written `%3E`",
    };
    let body = error_body(&Error::new(Code::InvalidRequest, message));
    let status_line = head.lines().next()?;
    let date = head.lines().find(|line| line.to_ascii_lowercase().starts_with("date:"));
    let date = date.map_or(String::new(), |line| format!("{line}\r\n"));
    let head = format!(
        "{status_line}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n{date}\r\n",
        body.len()
    );
    Some([head.as_bytes(), &body].concat().into())
}

impl<I: Write + Unpin> RefusalIo<I> {
    /// Writes what is left of a refusal; then as many bytes of hyper's count as written as it stands for.
    fn write_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while self.refusal.has_remaining() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.refusal))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.refusal.advance(count),
            }
        }
        Poll::Ready(Ok(std::mem::take(&mut self.replaced_bytes)))
    }

    fn takes_over(&mut self, written: &[u8]) -> bool {
        if self.replaced_bytes > 0 {
            return true;
        }
        let Some(refusal) = with_body(written) else { return false };
        // All of them are of this class, and none was waited for.
        self.refused.answered(StatusCode::BAD_REQUEST, Duration::ZERO);
        self.refusal = refusal;
        self.replaced_bytes = written.len();
        self.connection.exchange.linger();
        true
    }
}

impl<I: Read + Unpin> Read for RefusalIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: Read + Write + Unpin> Write for RefusalIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.takes_over(buf) {
            return self.write_refusal(cx);
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A refusal has no body, so it is one slice.
        if let [head] = bufs
            && self.takes_over(head)
        {
            return self.write_refusal(cx);
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.connection.exchange.lingers() {
            return Pin::new(&mut this.io).poll_shutdown(cx);
        }
        if this.linger_until.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        let until =
            this.linger_until.get_or_insert_with(|| Box::pin(sleep(Duration::from_millis(LINGER_MS))));
        while this.linger_bytes > 0 && until.as_mut().poll(cx).is_pending() {
            let mut piece = [MaybeUninit::uninit(); MAX_READ_BYTES];
            let mut piece = ReadBuf::uninit(&mut piece);
            match ready!(Pin::new(&mut this.io).poll_read(cx, piece.unfilled())) {
                Ok(()) if !piece.filled().is_empty() => {
                    this.linger_bytes = this.linger_bytes.saturating_sub(piece.filled().len());
                }
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_without_a_body_gets_one() {
        let refusal = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: today\r\n\r\n";
        let answer = with_body(refusal).expect("gets a body");
        let answer = std::str::from_utf8(&answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n") && head.ends_with("\r\ndate: today"));
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], "invalid_request");
        for other in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 7\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 07\r\n\r\n{}",
            b"HTTP/1.1 4",
            b"{\"data\":\"HTTP/1.1 400\"}",
            b"",
        ] {
            assert_eq!(with_body(other), None);
        }
    }
}
