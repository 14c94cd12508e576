//! How a connection's answers get away, and what comes on it.
//!
//! hyper asks a streamed body for more as long as its buffer has room, which is hundreds of kilobytes, and asks
//! nothing while it is full; so a body alone can neither keep what waits small nor notice that its client has
//! stopped reading. This wrapper of the connection counts what was written, and tells the body. It also ends a
//! connection on which nothing at all could be written for a long time, whatever is sent there.
//!
//! What is read goes through here in small pieces: hyper's buffer grows to whatever one read fills, and it keeps it.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use tokio::time::{Sleep, sleep, timeout};

use super::exchange::Exchange;
use crate::limits::{MAX_READ_BYTES, SLOW_READER_MS};

/// Bytes of a stream that may wait in the connection before no more are handed to it.
const MAX_WAITING_BYTES: usize = 64 << 10;
/// The connection of a reader that is too slow is cut so much later: it has been told by then, if it began to
/// read again.
const CUT_GRACE: Duration = Duration::from_secs(10);

/// What a streamed body, or a socket, knows of its connection.
pub struct WriteProgress {
    /// A reader that takes nothing for so long is too slow (contract section 17.4).
    slow_after: Duration,
    /// The address of the client, if it is known.
    pub client: Option<IpAddr>,
    /// Bytes handed to the connection and not written yet.
    waiting_bytes: AtomicUsize,
    /// Goes up with every write.
    writes: AtomicU64,
    body: AtomicWaker,
    /// The request that is under way.
    pub exchange: Exchange,
}

impl Default for WriteProgress {
    fn default() -> Self {
        WriteProgress::new(Duration::from_millis(SLOW_READER_MS), None)
    }
}

impl WriteProgress {
    pub fn new(slow_after: Duration, client: Option<IpAddr>) -> Self {
        WriteProgress {
            slow_after,
            client,
            waiting_bytes: AtomicUsize::new(0),
            writes: AtomicU64::new(0),
            body: AtomicWaker::new(),
            exchange: Exchange::default(),
        }
    }

    /// The body hands over `bytes` more.
    pub fn handed(&self, bytes: usize) {
        self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts framing as if it were the body's: the count is right again at every flush.
    fn written(&self, bytes: usize) {
        let waiting = self.waiting_bytes.load(Ordering::Relaxed);
        self.waiting_bytes.store(waiting.saturating_sub(bytes), Ordering::Relaxed);
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.body.wake();
    }

    fn flushed(&self) {
        if self.waiting_bytes.swap(0, Ordering::Relaxed) > 0 {
            self.body.wake();
        }
    }

    fn has_room(&self) -> bool {
        self.waiting_bytes.load(Ordering::Relaxed) < MAX_WAITING_BYTES
    }

    /// Waits until the body may hand over more; `false` if the reader is too slow.
    pub async fn wait_for_room(&self) -> bool {
        while !self.has_room() {
            if !self.moves_or(|| self.has_room()).await {
                return false;
            }
        }
        true
    }

    /// Waits for a write; `false` if the reader is too slow.
    pub async fn moves(&self) -> bool {
        self.moves_or(|| false).await
    }

    async fn moves_or(&self, is_enough: impl Fn() -> bool) -> bool {
        let before = self.writes.load(Ordering::Relaxed);
        let moved = poll_fn(|cx| {
            self.body.register(cx.waker());
            let has_moved = is_enough() || self.writes.load(Ordering::Relaxed) != before;
            if has_moved { Poll::Ready(()) } else { Poll::Pending }
        });
        timeout(self.slow_after, moved).await.is_ok()
    }
}

/// A connection whose writes are counted.
pub struct CountedIo<I> {
    io: I,
    progress: Arc<WriteProgress>,
    /// Set while a write waits.
    cut: Option<Pin<Box<Sleep>>>,
    /// Nothing more can be read.
    has_ended: bool,
}

impl<I> CountedIo<I> {
    pub fn new(io: I, progress: Arc<WriteProgress>) -> Self {
        CountedIo { io, progress, cut: None, has_ended: false }
    }

    fn note(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(bytes)) => {
                self.cut = None;
                self.progress.written(*bytes);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let cut_after = self.progress.slow_after + CUT_GRACE;
                let cut = self.cut.get_or_insert_with(|| Box::pin(sleep(cut_after)));
                if cut.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        written
    }
}

impl<I: Read + Unpin> Read for CountedIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let room = buf.remaining().min(MAX_READ_BYTES);
        if room > 0 && !this.has_ended {
            let mut piece = [MaybeUninit::uninit(); MAX_READ_BYTES];
            let mut piece = ReadBuf::uninit(&mut piece[..room]);
            ready!(Pin::new(&mut this.io).poll_read(cx, piece.unfilled()))?;
            if !piece.filled().is_empty() {
                buf.put_slice(piece.filled());
                return Poll::Ready(Ok(()));
            }
            this.has_ended = true;
            this.progress.exchange.end_peer();
        }
        // Hidden as long as the client may still wait for its answer. hyper reads again after that.
        if this.has_ended && this.progress.exchange.is_under_way() {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }
}

impl<I: Write + Unpin> Write for CountedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper flushes what is below it once it has nothing left itself.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.progress.flushed();
        self.progress.exchange.flushed();
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_too_slow_and_one_that_takes_little_is_not() {
        let progress = Arc::new(WriteProgress::default());
        assert!(progress.wait_for_room().await);
        progress.handed(3 * MAX_WAITING_BYTES);
        let start = Instant::now();
        assert!(!progress.wait_for_room().await);
        assert_eq!(start.elapsed(), Duration::from_millis(SLOW_READER_MS));
        let slow = progress.clone();
        tokio::spawn(async move {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                slow.written(MAX_WAITING_BYTES);
            }
        });
        let start = Instant::now();
        assert!(progress.wait_for_room().await);
        assert_eq!(start.elapsed(), Duration::from_secs(60));
    }

    #[tokio::test]
    async fn a_flush_says_that_all_is_away() {
        let progress = WriteProgress::default();
        progress.handed(2 * MAX_WAITING_BYTES);
        progress.written(1);
        assert!(!progress.has_room());
        progress.flushed();
        assert!(progress.has_room());
    }
}
