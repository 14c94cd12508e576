//! Paths of routers as people write them.
//!
//! A router's name may hold `>`, as in `orders->audit`. In a URL that is to be written `%3E`, and browsers do; `curl`
//! does not, and hyper refuses such a request before anybody sees it. So the first line of a request for a router is
//! looked at on its way in, and its `>` are escaped: only at the beginning of what comes after a write, where a request
//! begins, and only below `/v0/routers/`.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};

const PATH: &[u8] = b"/v0/routers/";
const METHODS: [&[u8]; 4] = [b"GET ", b"PUT ", b"POST ", b"DELETE "];
/// Bytes that are read at once where a request may begin.
const FIRST_READ_BYTES: usize = 16 << 10;

pub struct RawPathIo<I> {
    io: I,
    /// Nothing was read since the last write: what comes next is the beginning of a request.
    is_at_begin: bool,
    /// Read, but with no room for it yet.
    pending: Bytes,
}

impl<I> RawPathIo<I> {
    pub fn new(io: I) -> Self {
        RawPathIo { io, is_at_begin: true, pending: Bytes::new() }
    }
}

/// What was read, if something in it had to be escaped.
fn escaped(read: &[u8]) -> Option<Bytes> {
    let method = METHODS.into_iter().find(|method| read.starts_with(method))?;
    let target = read[method.len()..].strip_prefix(PATH)?;
    let end = target.iter().position(|byte| byte.is_ascii_whitespace()).unwrap_or(target.len());
    if !target[..end].contains(&b'>') {
        return None;
    }
    let mut fixed = [method, PATH].concat();
    for byte in &target[..end] {
        match byte {
            b'>' => fixed.extend_from_slice(b"%3E"),
            other => fixed.push(*other),
        }
    }
    fixed.extend_from_slice(&target[end..]);
    Some(fixed.into())
}

impl<I: Read + Unpin> Read for RawPathIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.is_at_begin && this.pending.is_empty() {
            let mut first = [MaybeUninit::uninit(); FIRST_READ_BYTES];
            let room = buf.remaining().min(FIRST_READ_BYTES);
            let mut first = ReadBuf::uninit(&mut first[..room]);
            ready!(Pin::new(&mut this.io).poll_read(cx, first.unfilled()))?;
            this.is_at_begin = false;
            match escaped(first.filled()) {
                None => {
                    buf.put_slice(first.filled());
                    return Poll::Ready(Ok(()));
                }
                Some(fixed) => this.pending = fixed,
            }
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
        self.is_at_begin = true;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_at_begin = true;
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
    fn only_the_path_of_a_router_is_escaped() {
        let fixed =
            escaped(b"PUT /v0/routers/a->b->c HTTP/1.1\r\nx: >\r\n\r\n{\">\":1}").expect("is escaped");
        assert_eq!(fixed, &b"PUT /v0/routers/a-%3Eb-%3Ec HTTP/1.1\r\nx: >\r\n\r\n{\">\":1}"[..]);
        for other in [
            &b"PUT /v0/routers/a HTTP/1.1\r\n\r\n>"[..],
            b"GET /v0/topics/a>b HTTP/1.1\r\n\r\n",
            b"{\"data\":\"PUT /v0/routers/a>b\"}",
            b"PUT /v0/rout",
            b"",
        ] {
            assert_eq!(escaped(other), None);
        }
    }
}
