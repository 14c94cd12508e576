//! One connection between members after the handshake: frames in both directions.
//!
//! One task writes, one reads. The writer takes whatever waits and writes it at once, so that many small
//! frames cost one system call; the queue before it is bounded, and whoever finds it full waits. Frames
//! are cut out of the receive buffer without copying: a large entry that arrives here is the very memory that
//! goes into the log.
//!
//! A connection whose other end is gone without a word looks like one that has nothing to say. TCP notices
//! in the end, which may take minutes. So a connection that was asked something and delivers nothing at all
//! for a while is closed as soon as somebody gives up waiting, and the next one who needs it dials anew.
//!
//! A large frame may take long on a slow link, and that is no silence: whoever receives one says so from time to time.
//! Large frames that nobody waits for any more before they are begun are not sent, so that what is sent again
//! does not stand behind its own copies.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::rpc::{Body, FRAME_HEAD_BYTES, Kind};
use super::transport::PeerStream;
use crate::limits::{MAX_PEER_FRAME_BYTES, PEER_QUEUE_FRAMES};
use crate::task;

/// A connection that was asked something and has delivered nothing since is taken for dead after this time.
const SILENT_AFTER: Duration = Duration::from_secs(3);
/// How often the receiver of a large frame says that it gets on. Well below all times after which silence counts.
const RECEIVING_INTERVAL: Duration = Duration::from_millis(200);
/// Pieces that are larger are not copied into a buffer, and frames that are not sent if nobody waits for them.
const LARGE_BYTES: usize = 256 << 10;
/// Large entries stay in the log's cache as pieces of the block that they were read into, so a block is filled up by
/// many reads before there is another one.
const BLOCK_BYTES: usize = 256 << 10;
/// Less room than this is not read into.
const LEAST_READ_BYTES: usize = 32 << 10;

/// What is known of the other end.
#[derive(Default)]
struct Heard {
    /// When it was first asked something since it was heard last.
    asked_at: Option<Instant>,
    /// When it last said that it is receiving something.
    receiving_at: Option<Instant>,
}

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
    heard: Mutex<Heard>,
    /// The one that reads and the one that writes.
    tasks: OnceLock<[AbortHandle; 2]>,
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
            heard: Mutex::default(),
            tasks: OnceLock::new(),
        });
        let weak = Arc::downgrade(&connection);
        let is_wanted = {
            let weak = weak.clone();
            move |id| weak.upgrade().is_some_and(|connection| connection.is_waited_for(id))
        };
        let writing = task::spawn(write_frames(write, frames, is_wanted)).abort_handle();
        let writer = writing.clone();
        let hears = weak.clone();
        let reading = task::spawn(async move {
            let mut reader = FrameReader::new(read, move || {
                if let Some(connection) = hears.upgrade() {
                    connection.heard.lock().asked_at = None;
                }
            });
            while let Ok(frame) = reader.next().await {
                match weak.upgrade() {
                    Some(connection) => connection.dispatch(frame).await,
                    None => break,
                }
            }
            writer.abort();
            if let Some(connection) = weak.upgrade() {
                connection.end_waiting();
            }
        });
        let _ = connection.tasks.set([reading.abort_handle(), writing]);
        connection
    }

    /// Dropping the waiters tells each that its answer will not come.
    fn end_waiting(&self) {
        *self.waiters.lock() = None;
    }

    fn is_waited_for(&self, id: u64) -> bool {
        self.waiters.lock().as_ref().is_some_and(|waiters| waiters.contains_key(&id))
    }

    fn asks(&self) {
        self.heard.lock().asked_at.get_or_insert_with(Instant::now);
    }

    fn is_silent(&self) -> bool {
        self.heard.lock().asked_at.is_some_and(|at| at.elapsed() >= SILENT_AFTER)
    }

    /// Nobody waits for an answer to `id` any more. If none came, or for none at all, the connection may be dead.
    fn give_up(&self, id: u64) {
        if let Some(waiters) = self.waiters.lock().as_mut() {
            waiters.remove(&id);
        }
        if self.is_silent() {
            self.end();
        }
    }

    /// Closes the connection; whoever waits for an answer learns that none will come.
    pub fn end(&self) {
        self.tasks.get().into_iter().flatten().for_each(AbortHandle::abort);
        self.end_waiting();
    }

    pub fn is_open(&self) -> bool {
        self.waiters.lock().is_some()
    }

    async fn dispatch(&self, frame: Frame) {
        {
            let mut heard = self.heard.lock();
            heard.asked_at = None;
            if frame.kind == Kind::Receiving {
                heard.receiving_at = Some(Instant::now());
                return;
            }
        }
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

    /// Sends a request and waits for its reply, at most `timeout`.
    pub async fn call(&self, kind: Kind, body: Body, timeout: Duration) -> Result<Bytes, CallError> {
        let (reply, answer) = oneshot::channel();
        let id = self.register(Waiter::Reply(reply))?;
        // Also if this call is itself given up.
        let _waiting = Waiting { connection: self, id };
        let exchange = async {
            self.asks();
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
        result
            .unwrap_or_else(|_| Err(CallError::Lost(format!("no answer within {} ms", timeout.as_millis()))))
    }

    /// Opens a stream of requests with up to `depth` replies under way.
    pub fn open_stream(self: &Arc<Self>, depth: usize) -> Result<CallStream, CallError> {
        let (sender, replies) = mpsc::channel(depth + 1);
        let id = self.register(Waiter::Stream(sender))?;
        Ok(CallStream { connection: self.clone(), id, replies, is_opened: false })
    }
}

/// A call that waits for its answer.
struct Waiting<'a> {
    connection: &'a Connection,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.connection.give_up(self.id);
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
    /// When the other end last said that it is receiving something.
    pub fn receiving_at(&self) -> Option<Instant> {
        self.connection.heard.lock().receiving_at
    }

    /// Sends the next request.
    pub fn send(&mut self, body: Body) -> Result<(), CallError> {
        let kind = if self.is_opened { Kind::StreamAppend } else { Kind::StreamOpen };
        self.is_opened = true;
        self.connection.asks();
        let frame = Outgoing { kind, id: self.id, body };
        let sent = self.connection.sender.try_send(frame);
        sent.map_err(|_| CallError::Unreachable("the connection is closed or does not keep up".into()))
    }
}

impl Drop for CallStream {
    fn drop(&mut self) {
        self.connection.give_up(self.id);
        if self.is_opened {
            // If this does not fit the queue, the other side ends the stream with the connection.
            let frame = Outgoing { kind: Kind::StreamClose, id: self.id, body: Body::default() };
            let _ = self.connection.sender.try_send(frame);
        }
    }
}

/// Writes frames until the queue or the connection ends, but for large ones whose ids are not `wanted` any more.
pub async fn write_frames(
    mut stream: WriteHalf<Box<dyn PeerStream>>,
    mut frames: mpsc::Receiver<Outgoing>,
    is_wanted: impl Fn(u64) -> bool,
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(16 << 10);
    while let Some(mut frame) = frames.recv().await {
        loop {
            if frame.body.len() <= LARGE_BYTES || is_wanted(frame.id) {
                buffer.put_u32_le((frame.body.len() + FRAME_HEAD_BYTES - 4) as u32);
                buffer.put_u8(frame.kind as u8);
                buffer.put_u64_le(frame.id);
                for piece in frame.body.pieces() {
                    if buffer.len() + piece.len() > LARGE_BYTES && !buffer.is_empty() {
                        stream.write_all(&buffer).await?;
                        buffer.clear();
                    }
                    if piece.len() > LARGE_BYTES {
                        stream.write_all(piece).await?;
                    } else {
                        buffer.put_slice(piece);
                    }
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
pub struct FrameReader<P> {
    stream: ReadHalf<Box<dyn PeerStream>>,
    buffer: BytesMut,
    part_came: P,
}

/// Tells the other end, which waits, that large frames of it are coming in.
pub fn say_receiving(replies: FrameSender) -> impl FnMut() {
    let mut said_at = Instant::now();
    move || {
        if said_at.elapsed() >= RECEIVING_INTERVAL {
            said_at = Instant::now();
            // Where it has no room something else is about to be said.
            let _ = replies.try_send(Outgoing { kind: Kind::Receiving, id: 0, body: Body::default() });
        }
    }
}

impl<P: FnMut()> FrameReader<P> {
    /// `part_came` is called when something came in that does not complete a frame.
    pub fn new(stream: ReadHalf<Box<dyn PeerStream>>, part_came: P) -> Self {
        FrameReader { stream, buffer: BytesMut::new(), part_came }
    }

    /// The next frame; an error when the connection ends or what comes is no frame.
    pub async fn next(&mut self) -> io::Result<Frame> {
        if let Some(frame) = self.cut()? {
            return Ok(frame);
        }
        loop {
            if self.buffer.capacity() - self.buffer.len() < LEAST_READ_BYTES {
                self.buffer.reserve(BLOCK_BYTES);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(frame) = self.cut()? {
                return Ok(frame);
            }
            (self.part_came)();
        }
    }

    fn cut(&mut self) -> io::Result<Option<Frame>> {
        let Some(head) = self.buffer.first_chunk::<FRAME_HEAD_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if !(FRAME_HEAD_BYTES - 4..=MAX_PEER_FRAME_BYTES).contains(&length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of impossible length"));
        }
        let missing_bytes = (length + 4).saturating_sub(self.buffer.len());
        if missing_bytes > 0 {
            // Room is made as bytes come, not as they are announced: twice as much each time.
            let has_room = self.buffer.capacity() - self.buffer.len() >= missing_bytes.min(LEAST_READ_BYTES);
            if !has_room {
                self.buffer.reserve(missing_bytes.min(self.buffer.len().max(BLOCK_BYTES)));
            }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::DuplexStream;

    use super::*;

    /// All that a reader cuts out of `bytes`, which come in pieces, until the connection ends or a frame is bad.
    async fn read_frames(bytes: &[u8], piece_bytes: usize) -> Vec<Frame> {
        let (near, mut far) = tokio::io::duplex(piece_bytes);
        let near: Box<dyn PeerStream> = Box::new(near);
        let mut reader = FrameReader::new(tokio::io::split(near).0, || {});
        let mut frames = Vec::new();
        let reading = async {
            while let Ok(frame) = reader.next().await {
                frames.push(frame);
            }
            drop(reader);
        };
        let writing = async {
            // The reader may give up before the end.
            let _ = far.write_all(bytes).await;
            drop(far);
        };
        tokio::join!(reading, writing);
        frames
    }

    fn at_once<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().expect("runtime").block_on(future)
    }

    proptest! {
        #[test]
        fn frames_come_back_whatever_pieces_they_come_in(
            bodies in proptest::collection::vec((any::<u64>(), proptest::collection::vec(any::<u8>(), 0..300)), 1..8),
            piece_bytes in 1usize..400,
        ) {
            let mut bytes = BytesMut::new();
            for (id, body) in &bodies {
                bytes.put_u32_le((body.len() + FRAME_HEAD_BYTES - 4) as u32);
                bytes.put_u8(Kind::Status as u8);
                bytes.put_u64_le(*id);
                bytes.put_slice(body);
            }
            let frames = at_once(read_frames(&bytes, piece_bytes));
            let read: Vec<_> = frames.iter().map(|frame| (frame.id, frame.body.to_vec())).collect();
            prop_assert_eq!(read, bodies);
        }

        #[test]
        fn arbitrary_bytes_are_no_frames_or_frames_and_never_a_panic(
            bytes in proptest::collection::vec(prop_oneof![4 => 0u8..20, 1 => any::<u8>()], 0..200),
        ) {
            at_once(read_frames(&bytes, 64));
        }
    }

    const PATIENCE: Duration = Duration::from_millis(500);

    fn connect() -> (Arc<Connection>, DuplexStream) {
        let (near, far) = tokio::io::duplex(1 << 20);
        (Connection::start(Box::new(near)), far)
    }

    async fn ask_in_vain(connection: &Connection) {
        let answer = connection.call(Kind::Status, Body::default(), PATIENCE).await;
        assert!(matches!(answer, Err(CallError::Lost(_))), "{answer:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_answers_nothing_is_closed_and_tells_all_who_wait() {
        let (connection, mut far) = connect();
        let start = Instant::now();
        let other = connection.clone();
        let long =
            tokio::spawn(async move { other.call(Kind::Install, Body::default(), PATIENCE * 1000).await });
        while connection.is_open() {
            ask_in_vain(&connection).await;
        }
        let took = start.elapsed();
        assert!((SILENT_AFTER..SILENT_AFTER + 2 * PATIENCE).contains(&took), "{took:?}");
        assert!(matches!(long.await, Ok(Err(CallError::Lost(_)))));
        assert_eq!(start.elapsed(), took);
        // The other end is told, too: what was asked, and the end.
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len() % FRAME_HEAD_BYTES, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_stays_that_was_idle_or_answers_anything() {
        let (idle, _far) = connect();
        tokio::time::sleep(SILENT_AFTER * 10).await;
        ask_in_vain(&idle).await;
        assert!(idle.is_open());

        let (slow, mut far) = connect();
        for _ in 0..20 {
            ask_in_vain(&slow).await;
            // A reply that nobody waits for any more.
            let mut frame = BytesMut::new();
            frame.put_u32_le(FRAME_HEAD_BYTES as u32 - 4);
            frame.put_u8(Kind::Reply as u8);
            frame.put_u64_le(u64::MAX);
            far.write_all(&frame).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(slow.is_open());
    }

    /// A connection over which `bytes_per_s` get to the other end, and that end: it answers what it gets, which `got` counts.
    fn connect_slowly(bytes_per_s: usize) -> (Arc<Connection>, Arc<AtomicU64>) {
        let (near, mut near_end) = tokio::io::duplex(64 << 10);
        let (mut far_end, far) = tokio::io::duplex(64 << 10);
        tokio::spawn(async move {
            let mut piece = vec![0; 16 << 10];
            let mut answers = vec![0; 16 << 10];
            loop {
                tokio::select! {
                    biased;
                    count = far_end.read(&mut answers) => {
                        let Ok(count @ 1..) = count else { return };
                        near_end.write_all(&answers[..count]).await.unwrap();
                    }
                    count = near_end.read(&mut piece) => {
                        let Ok(count @ 1..) = count else { return };
                        tokio::time::sleep(Duration::from_secs_f64(count as f64 / bytes_per_s as f64)).await;
                        far_end.write_all(&piece[..count]).await.unwrap();
                    }
                }
            }
        });
        let got = Arc::new(AtomicU64::new(0));
        let counted = got.clone();
        tokio::spawn(async move {
            let far: Box<dyn PeerStream> = Box::new(far);
            let (read, write) = tokio::io::split(far);
            let (replies, frames) = mpsc::channel(8);
            tokio::spawn(write_frames(write, frames, |_| true));
            let mut reader = FrameReader::new(read, say_receiving(replies.clone()));
            while let Ok(frame) = reader.next().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let reply = Outgoing { kind: Kind::Reply, id: frame.id, body: Body::default() };
                replies.send(reply).await.unwrap();
            }
        });
        (Connection::start(Box::new(near)), got)
    }

    fn large() -> Body {
        Body::of(|out| out.resize(10 << 20, 0))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_stays_on_which_something_large_takes_long_to_arrive() {
        let (connection, _) = connect_slowly(100 << 10);
        let sending = {
            let connection = connection.clone();
            tokio::spawn(async move { connection.call(Kind::Forward, large(), PATIENCE * 1000).await })
        };
        tokio::task::yield_now().await;
        let began = Instant::now();
        while !sending.is_finished() {
            // What stands behind it gives up, and takes nobody with it.
            let _ = connection.call(Kind::Status, Body::default(), PATIENCE).await;
        }
        assert_eq!(sending.await.unwrap(), Ok(Bytes::new()));
        assert!(began.elapsed() > Duration::from_secs(90), "{:?}", began.elapsed());
        assert!(connection.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_any_more_is_not_sent_again_and_again() {
        let (connection, got) = connect_slowly(1 << 20);
        for _ in 0..20 {
            let answer = connection.call(Kind::Forward, large(), PATIENCE).await;
            assert!(matches!(answer, Err(CallError::Lost(_))), "{answer:?}");
        }
        let answer = connection.call(Kind::Forward, large(), PATIENCE * 100).await;
        assert_eq!(answer, Ok(Bytes::new()));
        assert_eq!(got.load(Ordering::Relaxed), 2, "the first, which was begun, and the last");
    }
}
