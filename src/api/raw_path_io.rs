//! Paths of routers as people write them.
//!
//! A router's name may hold `>`, as in `orders->audit`. In a URL that is to be written `%3E`, and browsers do; `curl`
//! does not, and hyper refuses such a request before anybody sees it. So the very first line on a connection is looked
//! at on its way in, and the `>` in its target are escaped. Nothing after it ever is: below the parser nobody knows
//! whether bytes are a request or the body of one, and what is changed in a body moves where the next request begins
//! (C-CONV-21).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};

use crate::limits::MAX_HEAD_BYTES;

/// Bytes that are read at once before the first line is whole.
const FIRST_READ_BYTES: usize = 8 << 10;

pub struct RawPathIo<I> {
    io: I,
    /// The first line, as far as it has come; `None` once it is whole.
    first_line: Option<BytesMut>,
    /// Read, but with no room for it yet.
    pending: Bytes,
}

impl<I> RawPathIo<I> {
    pub fn new(io: I) -> Self {
        RawPathIo { io, first_line: Some(BytesMut::new()), pending: Bytes::new() }
    }
}

/// `read`, which begins with the whole first line of a connection, with the `>` in its target escaped.
fn escaped(read: BytesMut) -> Bytes {
    let line_end = read.iter().position(|byte| *byte == b'\n').unwrap_or(read.len());
    let Some(start) = read[..line_end].iter().position(|byte| *byte == b' ').map(|at| at + 1) else {
        return read.freeze();
    };
    let end =
        read[start..line_end].iter().position(u8::is_ascii_whitespace).map_or(line_end, |at| start + at);
    if !read[start..end].contains(&b'>') {
        return read.freeze();
    }
    let mut fixed = BytesMut::with_capacity(read.len() + 2 * (end - start));
    fixed.extend_from_slice(&read[..start]);
    for byte in &read[start..end] {
        match byte {
            b'>' => fixed.extend_from_slice(b"%3E"),
            other => fixed.extend_from_slice(&[*other]),
        }
    }
    fixed.extend_from_slice(&read[end..]);
    fixed.freeze()
}

impl<I: Read + Unpin> RawPathIo<I> {
    /// Reads on until the first line is whole, or too long to be one, or nothing more comes.
    fn poll_first_line(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(line) = &mut self.first_line {
            let mut piece = [MaybeUninit::uninit(); FIRST_READ_BYTES];
            let mut piece = ReadBuf::uninit(&mut piece);
            ready!(Pin::new(&mut self.io).poll_read(cx, piece.unfilled()))?;
            let read = piece.filled();
            line.extend_from_slice(read);
            if read.is_empty() || read.contains(&b'\n') || line.len() >= MAX_HEAD_BYTES {
                self.pending = escaped(std::mem::take(line));
                self.first_line = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: Read + Unpin> Read for RawPathIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.first_line.is_some() {
            ready!(this.poll_first_line(cx))?;
        }
        if this.pending.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let count = buf.remaining().min(this.pending.len());
        buf.put_slice(&this.pending[..count]);
        this.pending.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<I: Write + Unpin> Write for RawPathIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_target_of_the_first_line_is_escaped() {
        // C-CONV-21
        let fixed = escaped(b"PUT /v0/routers/a->b->c?x=> HTTP/1.1\r\nx: > \r\n\r\n{\">\":1}"[..].into());
        assert_eq!(fixed, &b"PUT /v0/routers/a-%3Eb-%3Ec?x=%3E HTTP/1.1\r\nx: > \r\n\r\n{\">\":1}"[..]);
        for other in [
            &b"PUT /v0/routers/a HTTP/1.1\r\n\r\nGET /> "[..],
            b"P>T /v0/routers/a >HTTP/1.1\r\n",
            b"\r\nGET /v0/routers/a>b HTTP/1.1\r\n",
            b"PUT",
            b"",
        ] {
            assert_eq!(escaped(other.into()), other);
        }
        assert_eq!(escaped(b"GET /a>b"[..].into()), &b"GET /a%3Eb"[..]);
    }
}
