//! One connection between members after the handshake: frames in both directions.
//!
//! One task writes, one reads. The writer takes whatever waits and writes it at once, so that many small
//! frames cost one system call; the queue before it is bounded, and whoever finds it full waits. Frames
//! are cut out of the receive buffer without copying: an entry that arrives here is the very memory that
//! goes into the log.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::rpc::{Body, FRAME_HEAD_BYTES, Kind};
use super::transport::PeerStream;
use crate::limits::{MAX_PEER_FRAME_BYTES, PEER_QUEUE_FRAMES};
use crate::task;

/// A frame that came in.
#[derive(Debug)]
pub struct Frame {
    pub kind: Kind,
    pub id: u64,
    pub body: Bytes,
}

/// A frame that goes out.
#[derive(Debug)]
pub struct Outgoing {
    pub kind: Kind,
    pub id: u64,
    pub body: Body,
}

/// The way to send frames on a connection.
pub type FrameSender = mpsc::Sender<Outgoing>;

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// There is no connection and none could be made; nothing was sent.
    Unreachable(String),
    /// The request may have been sent, and no answer came.
    Lost(String),
    /// The other side could not serve the request.
    Failed(String),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::Unreachable(why) | CallError::Lost(why) | CallError::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for CallError {}

enum Waiter {
    Reply(oneshot::Sender<Result<Bytes, String>>),
    Stream(mpsc::Sender<Bytes>),
}

/// The dialing side of a connection: sends requests and matches replies to them.
pub struct Connection {
    sender: FrameSender,
    next_id: AtomicU64,
    /// `None` once the connection is gone. By id, so that the oldest learns of its end first: a hash map
    /// would wake them in an order that no seed decides.
    waiters: Mutex<Option<BTreeMap<u64, Waiter>>>,
}

impl Connection {
    /// Starts the tasks of a connection whose handshake is done.
    pub fn start(stream: Box<dyn PeerStream>) -> Arc<Self> {
        let (read, write) = tokio::io::split(stream);
        let (sender, frames) = mpsc::channel(PEER_QUEUE_FRAMES);
        let connection = Arc::new(Connection {
            sender,
            next_id: AtomicU64::new(1),
            waiters: Mutex::new(Some(BTreeMap::new())),
        });
        let writing = task::spawn(write_frames(write, frames));
        let weak = Arc::downgrade(&connection);
        task::spawn(async move {
            let mut reader = FrameReader::new(read);
            while let Ok(frame) = reader.next().await {
                match weak.upgrade() {
                    Some(connection) => connection.dispatch(frame).await,
                    None => break,
                }
            }
            writing.abort();
            if let Some(connection) = weak.upgrade() {
                // Dropping the waiters tells each that its answer will not come.
                *connection.waiters.lock() = None;
            }
        });
        connection
    }

    pub fn is_open(&self) -> bool {
        self.waiters.lock().is_some()
    }

    async fn dispatch(&self, frame: Frame) {
        let stream = {
            let mut waiters = self.waiters.lock();
            let Some(waiters) = waiters.as_mut() else { return };
            match frame.kind {
                Kind::StreamReply => match waiters.get(&frame.id) {
                    Some(Waiter::Stream(stream)) => stream.clone(),
                    _ => return,
                },
                _ => {
                    let Some(Waiter::Reply(reply)) = waiters.remove(&frame.id) else { return };
                    // Whoever asked may have given up.
                    let _ = reply.send(match frame.kind {
                        Kind::Failure => Err(String::from_utf8_lossy(&frame.body).into_owned()),
                        _ => Ok(frame.body),
                    });
                    return;
                }
            }
        };
        // The channel holds as many replies as there may be requests under way, so this does not wait.
        let _ = stream.send(frame.body).await;
    }

    fn register(&self, waiter: Waiter) -> Result<u64, CallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        match self.waiters.lock().as_mut() {
            Some(waiters) => {
                waiters.insert(id, waiter);
                Ok(id)
            }
            None => Err(CallError::Unreachable("the connection is closed".into())),
        }
    }

    fn forget(&self, id: u64) {
        if let Some(waiters) = self.waiters.lock().as_mut() {
            waiters.remove(&id);
        }
    }

    /// Sends a request and waits for its reply, at most `timeout`.
    pub async fn call(&self, kind: Kind, body: Body, timeout: Duration) -> Result<Bytes, CallError> {
        let (reply, answer) = oneshot::channel();
        let id = self.register(Waiter::Reply(reply))?;
        let exchange = async {
            let frame = Outgoing { kind, id, body };
            if self.sender.send(frame).await.is_err() {
                return Err(CallError::Unreachable("the connection is closed".into()));
            }
            match answer.await {
                Ok(Ok(body)) => Ok(body),
                Ok(Err(reason)) => Err(CallError::Failed(reason)),
                Err(_) => Err(CallError::Lost("the connection broke before the answer came".into())),
            }
        };
        let result = tokio::time::timeout(timeout, exchange).await;
        result.unwrap_or_else(|_| {
            self.forget(id);
            Err(CallError::Lost(format!("no answer within {} ms", timeout.as_millis())))
        })
    }

    /// Opens a stream of requests with up to `depth` replies under way.
    pub fn open_stream(self: &Arc<Self>, depth: usize) -> Result<CallStream, CallError> {
        let (sender, replies) = mpsc::channel(depth + 1);
        let id = self.register(Waiter::Stream(sender))?;
        Ok(CallStream { connection: self.clone(), id, replies, is_opened: false })
    }
}

/// Requests in order on one connection, with replies in the same order.
pub struct CallStream {
    connection: Arc<Connection>,
    id: u64,
    /// Ends when the connection does.
    pub replies: mpsc::Receiver<Bytes>,
    is_opened: bool,
}

impl CallStream {
    /// Sends the next request.
    pub fn send(&mut self, body: Body) -> Result<(), CallError> {
        let kind = if self.is_opened { Kind::StreamAppend } else { Kind::StreamOpen };
        self.is_opened = true;
        let frame = Outgoing { kind, id: self.id, body };
        let sent = self.connection.sender.try_send(frame);
        sent.map_err(|_| CallError::Unreachable("the connection is closed or does not keep up".into()))
    }
}

impl Drop for CallStream {
    fn drop(&mut self) {
        self.connection.forget(self.id);
        if self.is_opened {
            // If this does not fit the queue, the other side ends the stream with the connection.
            let frame = Outgoing { kind: Kind::StreamClose, id: self.id, body: Body::default() };
            let _ = self.connection.sender.try_send(frame);
        }
    }
}

/// Writes frames until the queue or the connection ends.
pub async fn write_frames(
    mut stream: WriteHalf<Box<dyn PeerStream>>,
    mut frames: mpsc::Receiver<Outgoing>,
) -> io::Result<()> {
    const BUFFER_BYTES: usize = 256 << 10;
    let mut buffer = BytesMut::with_capacity(16 << 10);
    while let Some(mut frame) = frames.recv().await {
        loop {
            buffer.put_u32_le((frame.body.len() + FRAME_HEAD_BYTES - 4) as u32);
            buffer.put_u8(frame.kind as u8);
            buffer.put_u64_le(frame.id);
            for piece in frame.body.pieces() {
                if buffer.len() + piece.len() > BUFFER_BYTES && !buffer.is_empty() {
                    stream.write_all(&buffer).await?;
                    buffer.clear();
                }
                if piece.len() > BUFFER_BYTES {
                    stream.write_all(piece).await?;
                } else {
                    buffer.put_slice(piece);
                }
            }
            match frames.try_recv() {
                Ok(next) => frame = next,
                Err(_) => break,
            }
        }
        stream.write_all(&buffer).await?;
        buffer.clear();
    }
    stream.shutdown().await
}

/// Cuts frames out of what a connection delivers.
pub struct FrameReader {
    stream: ReadHalf<Box<dyn PeerStream>>,
    buffer: BytesMut,
}

impl FrameReader {
    pub fn new(stream: ReadHalf<Box<dyn PeerStream>>) -> Self {
        FrameReader { stream, buffer: BytesMut::new() }
    }

    /// The next frame; an error when the connection ends or what comes is no frame.
    pub async fn next(&mut self) -> io::Result<Frame> {
        // Entries stay in the log's cache as pieces of the block that they were read into. So a block is filled
        // up by many reads before there is another one: with one for each read, a cached entry of 300 bytes
        // would hold on to all of it.
        const BLOCK_BYTES: usize = 256 << 10;
        const LEAST_READ_BYTES: usize = 32 << 10;
        loop {
            if let Some(frame) = self.cut()? {
                return Ok(frame);
            }
            if self.buffer.capacity() - self.buffer.len() < LEAST_READ_BYTES {
                self.buffer.reserve(BLOCK_BYTES);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn cut(&mut self) -> io::Result<Option<Frame>> {
        let Some(head) = self.buffer.first_chunk::<FRAME_HEAD_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if !(FRAME_HEAD_BYTES - 4..=MAX_PEER_FRAME_BYTES).contains(&length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of impossible length"));
        }
        if self.buffer.len() < length + 4 {
            self.buffer.reserve(length + 4 - self.buffer.len());
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(length + 4).freeze();
        frame.advance(4);
        let kind = Kind::from_u8(frame.get_u8());
        let kind = kind.ok_or(io::Error::new(io::ErrorKind::InvalidData, "a frame of unknown kind"))?;
        let id = frame.get_u64_le();
        Ok(Some(Frame { kind, id, body: frame }))
    }
}
