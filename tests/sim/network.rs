//! The network between members: connections in memory that are slow, stall, break and are cut.
//!
//! Bytes on one connection stay in order and are never changed, as TCP has it; everything else may happen
//! to them. A cut link holds back what is under way, like a network that sends again and again, until it is
//! healed or the connection is reset. Each direction can be cut on its own.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use antiphon::raft::{PeerListener, PeerStream, PeerTransport};
use antiphon::storage::sim_disk::Dice;
use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::seeded::Throw;
use crate::strangers;
use crate::world::MEMBERS;

/// How often a stalled connection looks whether its link is healed.
const STALL_CHECK: Duration = Duration::from_millis(10);
/// Bytes that one direction of a connection holds.
const PIPE_BYTES: usize = 256 << 10;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One direction between two machines.
#[derive(Clone, Copy)]
struct Link {
    is_cut: bool,
    delay_us: (u64, u64),
}

/// The network of one cluster.
pub struct Net(Mutex<State>);

struct State {
    dice: Dice,
    links: [[Link; MEMBERS]; MEMBERS],
    listeners: BTreeMap<usize, mpsc::Sender<SimStream>>,
    /// Machines without power: nothing answers there, not even with a refusal.
    is_dark: [bool; MEMBERS],
    /// Where each machine listens: a port. It changes when the machine moves.
    ports: [u16; MEMBERS],
    pipes: Vec<Weak<Mutex<Pipe>>>,
    has_strangers: bool,
}

/// One direction of a connection.
struct Pipe {
    from: usize,
    to: usize,
    chunks: VecDeque<(Instant, Bytes)>,
    held_bytes: usize,
    last_at: Instant,
    is_ended: bool,
    is_reset: bool,
    /// One end lost power: nothing comes through any more, and nobody says so.
    is_lost: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// What a look into a pipe found.
enum Taken {
    Some,
    /// The next bytes arrive at this time.
    NotYet(Instant),
    Nothing,
}

impl Pipe {
    /// Takes what has arrived by `now`, as much as fits.
    fn take(&mut self, now: Instant, into: &mut ReadBuf<'_>) -> Taken {
        let Some((at, bytes)) = self.chunks.front_mut() else { return Taken::Nothing };
        if *at > now {
            return Taken::NotYet(*at);
        }
        let count = into.remaining().min(bytes.len());
        into.put_slice(&bytes[..count]);
        bytes.advance(count);
        if bytes.is_empty() {
            self.chunks.pop_front();
        }
        self.held_bytes -= count;
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
        Taken::Some
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

/// Whose address this is, or was before that machine moved.
fn number_of(address: &str) -> Option<usize> {
    let (name, _) = address.split_once(':')?;
    (0..MEMBERS).find(|number| name == format!("m{}", number + 1))
}

impl Net {
    pub fn new(dice: Dice, delay_us: (u64, u64)) -> Arc<Self> {
        Arc::new(Net(Mutex::new(State {
            dice,
            links: [[Link { is_cut: false, delay_us }; MEMBERS]; MEMBERS],
            listeners: BTreeMap::new(),
            is_dark: [false; MEMBERS],
            ports: [7000; MEMBERS],
            pipes: Vec::new(),
            has_strangers: false,
        })))
    }

    pub fn set_cut(&self, from: usize, to: usize, is_cut: bool) {
        self.0.lock().links[from][to].is_cut = is_cut;
    }

    pub fn set_delay(&self, from: usize, to: usize, delay_us: (u64, u64)) {
        self.0.lock().links[from][to].delay_us = delay_us;
    }

    /// Breaks every connection between two members.
    pub fn reset(&self, one: usize, other: usize) {
        self.for_each_pipe(|pipe| {
            if (pipe.from, pipe.to) == (one, other) || (pipe.from, pipe.to) == (other, one) {
                pipe.is_reset = true;
                pipe.wake();
            }
        });
    }

    /// The machine loses power: its connections fall silent.
    pub fn darken(&self, number: usize) {
        self.0.lock().is_dark[number] = true;
        self.for_each_pipe(|pipe| pipe.is_lost |= pipe.from == number || pipe.to == number);
    }

    /// The machine is back: whoever still sends to its former self is told.
    pub fn lighten(&self, number: usize) {
        self.0.lock().is_dark[number] = false;
        self.for_each_pipe(|pipe| {
            if pipe.is_lost && (pipe.from == number || pipe.to == number) {
                pipe.is_reset = true;
                pipe.wake();
            }
        });
    }

    /// The end of a connection to a member, for whoever is none.
    pub fn stranger(self: &Arc<Self>, number: usize) -> Option<impl PeerStream + use<>> {
        let listener = self.0.lock().listeners.get(&number).cloned()?;
        let (forth, back) = (self.pipe(number, number), self.pipe(number, number));
        listener.try_send(SimStream::new(self, &forth, &back)).ok()?;
        Some(SimStream::new(self, &back, &forth))
    }

    /// Whether strangers answer where members are down.
    pub fn set_strangers(&self, are_there: bool) {
        self.0.lock().has_strangers = are_there;
    }

    /// A stranger takes a connection, where there are any.
    fn take_stranger(&self, stream: SimStream) -> bool {
        let dice = {
            let state = &mut *self.0.lock();
            let answers = state.has_strangers && state.dice.chance(50);
            answers.then(|| state.dice.fork())
        };
        let answers = dice.is_some();
        if let Some(dice) = dice {
            tokio::spawn(strangers::talk(Box::new(stream), dice));
        }
        answers
    }

    /// Where a member listens, if it runs.
    pub fn address(&self, number: usize) -> String {
        format!("m{}:{}", number + 1, self.0.lock().ports[number])
    }

    /// The next process of this machine listens elsewhere.
    pub fn relocate(&self, number: usize) {
        self.0.lock().ports[number] += 1;
    }

    /// Whether the machine has no power.
    pub fn is_dark(&self, number: usize) -> bool {
        self.0.lock().is_dark[number]
    }

    fn for_each_pipe(&self, mut change: impl FnMut(&mut Pipe)) {
        let pipes: Vec<_> = self.0.lock().pipes.iter().filter_map(Weak::upgrade).collect();
        pipes.iter().for_each(|pipe| change(&mut pipe.lock()));
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.0.lock().links[from][to].is_cut
    }

    fn delay(&self, from: usize, to: usize) -> Duration {
        let state = &mut *self.0.lock();
        let (low_us, high_us) = state.links[from][to].delay_us;
        Duration::from_micros(state.dice.between(low_us, high_us))
    }

    fn pipe(&self, from: usize, to: usize) -> Arc<Mutex<Pipe>> {
        let pipe = Arc::new(Mutex::new(Pipe {
            from,
            to,
            chunks: VecDeque::new(),
            held_bytes: 0,
            last_at: Instant::now(),
            is_ended: false,
            is_reset: false,
            is_lost: false,
            reader: None,
            writer: None,
        }));
        let mut state = self.0.lock();
        state.pipes.retain(|pipe| pipe.strong_count() > 0);
        state.pipes.push(Arc::downgrade(&pipe));
        pipe
    }
}

/// One end of a connection.
struct SimStream {
    net: Arc<Net>,
    incoming: Arc<Mutex<Pipe>>,
    outgoing: Arc<Mutex<Pipe>>,
    timer: Pin<Box<Sleep>>,
}

impl SimStream {
    fn new(net: &Arc<Net>, incoming: &Arc<Mutex<Pipe>>, outgoing: &Arc<Mutex<Pipe>>) -> Self {
        SimStream {
            net: net.clone(),
            incoming: incoming.clone(),
            outgoing: outgoing.clone(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut pipe = this.incoming.lock();
        loop {
            if pipe.is_reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let now = Instant::now();
            let wake_at = if pipe.is_lost {
                None
            } else if this.net.is_cut(pipe.from, pipe.to) {
                Some(now + STALL_CHECK)
            } else {
                match pipe.take(now, into) {
                    Taken::Some => return Poll::Ready(Ok(())),
                    Taken::NotYet(at) => Some(at),
                    Taken::Nothing if pipe.is_ended => return Poll::Ready(Ok(())),
                    Taken::Nothing => None,
                }
            };
            pipe.reader = Some(cx.waker().clone());
            let Some(wake_at) = wake_at else { return Poll::Pending };
            this.timer.as_mut().reset(wake_at);
            if this.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = self.outgoing.lock();
        if pipe.is_reset || pipe.is_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room_bytes = PIPE_BYTES - pipe.held_bytes;
        if room_bytes == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = bytes.len().min(room_bytes);
        let at = pipe.last_at.max(Instant::now() + self.net.delay(pipe.from, pipe.to));
        pipe.last_at = at;
        pipe.held_bytes += count;
        pipe.chunks.push_back((at, Bytes::copy_from_slice(&bytes[..count])));
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.outgoing.lock();
        pipe.is_ended = true;
        pipe.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let mut outgoing = self.outgoing.lock();
        outgoing.is_ended = true;
        outgoing.wake();
        drop(outgoing);
        let mut incoming = self.incoming.lock();
        // Who writes to a machine without power is not told that nobody reads.
        if !incoming.is_lost {
            incoming.is_reset = true;
            incoming.wake();
        }
    }
}

/// The network as one member uses it.
pub struct SimTransport {
    pub net: Arc<Net>,
    pub number: usize,
}

impl PeerTransport for SimTransport {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn PeerStream>>> {
        Box::pin(async move {
            let (net, here) = (&self.net, self.number);
            let there = number_of(address).ok_or(io::Error::other("no such host"))?;
            tokio::time::sleep(net.delay(here, there)).await;
            // A first packet that gets no answer is sent again until the caller gives up.
            while net.is_cut(here, there) || net.is_cut(there, here) || net.0.lock().is_dark[there] {
                tokio::time::sleep(STALL_CHECK).await;
            }
            let listener = net.0.lock().listeners.get(&there).cloned();
            let (forth, back) = (net.pipe(here, there), net.pipe(there, here));
            let mut accepted = Some(SimStream::new(net, &forth, &back));
            let is_there = net.address(there) == address;
            let mut is_taken = false;
            if let Some(listener) = listener.filter(|listener| is_there && !listener.is_closed()) {
                is_taken = accepted.take().is_some_and(|accepted| listener.try_send(accepted).is_ok());
            } else if let Some(accepted) = accepted.take() {
                is_taken = net.take_stranger(accepted);
            }
            tokio::time::sleep(net.delay(there, here)).await;
            if !is_taken {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Ok(Box::new(SimStream::new(net, &back, &forth)) as Box<dyn PeerStream>)
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn PeerListener>>> {
        Box::pin(async move {
            let number = number_of(address).ok_or(io::Error::other("not an address of this host"))?;
            let (sender, accepted) = mpsc::channel(64);
            self.net.0.lock().listeners.insert(number, sender);
            Ok(Box::new(SimListener(accepted)) as Box<dyn PeerListener>)
        })
    }
}

struct SimListener(mpsc::Receiver<SimStream>);

impl PeerListener for SimListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn PeerStream>, String)>> {
        Box::pin(async move {
            match self.0.recv().await {
                Some(stream) => {
                    let from = stream.net.address(stream.incoming.lock().from);
                    Ok((Box::new(stream) as Box<dyn PeerStream>, from))
                }
                None => std::future::pending().await,
            }
        })
    }
}
