//! Connections of other members: taken, made sure of, and bounded.
//!
//! The port is open to whoever reaches it, so nothing that a stranger does may cost more than a fixed number of
//! files and of log lines. When too many handshakes are under way, the oldest one of the source that has most of
//! them ends: a member needs milliseconds for its own, and so gets through between any number of strangers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::handshake::{self, Call, HANDSHAKE_TIMEOUT, HandshakeError};
use super::node::Node;
use super::peer_service::serve;
use super::peers::check_same_cluster;
use super::transport::{PeerListener, PeerStream};
use crate::limits::{MAX_PEER_CONNECTIONS, MAX_PEER_HANDSHAKES};
use crate::task;

/// Pause after a connection could not be taken: most often there are no file handles left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Learns that a member of the cluster has called this one by its Raft id.
pub trait CallerCheck: Send + Sync + 'static {
    /// Whether the caller is welcome; an error is a sentence for the operators of both.
    fn check(&self, call: &Call) -> Result<(), String>;
}

/// How many connections are taken from peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// Whose other end was made sure of.
    pub connections: usize,
    /// On which it is not yet known who calls.
    pub handshakes: usize,
}

impl Default for PeerLimits {
    fn default() -> Self {
        PeerLimits { connections: MAX_PEER_CONNECTIONS, handshakes: MAX_PEER_HANDSHAKES }
    }
}

/// Accepts connections until the listener fails.
pub async fn accept_peers(
    mut listener: Box<dyn PeerListener>,
    node: Arc<Node>,
    check: Arc<dyn CallerCheck>,
    limits: PeerLimits,
) -> io::Result<()> {
    let refusals = Arc::new(Refusals::default());
    let handshakes = Handshakes::new(limits.handshakes);
    let places = Arc::new(Semaphore::new(limits.connections));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file handles, say: the next attempt may succeed, and must not spin.
                refusals.tell(format!("cannot accept a connection of a peer: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (handshake, crowded_out) = handshakes.begin(&from);
        let (node, check) = (node.clone(), check.clone());
        let (refusals, places) = (refusals.clone(), places.clone());
        task::spawn(async move {
            let greeted = tokio::select! {
                biased;
                greeted = greet(stream, &node, &*check, places) => greeted,
                _ = crowded_out => Err(HandshakeError::Io(io::Error::other("too many handshakes are under way"))),
            };
            drop(handshake);
            match greeted {
                Ok(greeted) => {
                    serve(greeted.stream, node, greeted.caller).await;
                    drop(greeted.place);
                }
                Err(HandshakeError::Io(error)) => tracing::debug!("no handshake with {from}: {error}"),
                Err(refusal) => refusals.tell(format!("refused a connection from {from}: {refusal}")),
            }
        });
    }
}

/// A caller that was let in.
struct Greeted {
    stream: Box<dyn PeerStream>,
    caller: Call,
    place: OwnedSemaphorePermit,
}

async fn greet(
    mut stream: Box<dyn PeerStream>,
    node: &Node,
    check: &dyn CallerCheck,
    places: Arc<Semaphore>,
) -> Result<Greeted, HandshakeError> {
    let me = node.peers().me();
    let (hello, nonce) = (me.hello(), node.peers().nonce());
    let mut place = None;
    let check = |call: &Call| {
        check_same_cluster(me, &call.hello).map_err(HandshakeError::Refused)?;
        if let Some(place) = node.replacement_of(call) {
            return Err(HandshakeError::Replaced(place));
        }
        if call.expected_node_id != 0 && call.expected_node_id != me.node_id {
            return Err(HandshakeError::Refused(format!(
                "member {} was called by an id that it does not have: its data directory is not the one \
                 that the cluster knows",
                me.member.name
            )));
        }
        check.check(call).map_err(HandshakeError::Refused)?;
        let full = || HandshakeError::Refused("it has too many connections of members".to_owned());
        place = Some(places.try_acquire_owned().map_err(|_| full())?);
        Ok(())
    };
    let accepting = handshake::accept(&mut *stream, me.secret(), &hello, nonce, check);
    let caller = tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting)
        .await
        .unwrap_or_else(|_| Err(HandshakeError::Io(io::ErrorKind::TimedOut.into())))?;
    node.peers().heard_of(caller.hello.node_id, &caller.hello.member);
    let place = place.ok_or(HandshakeError::Io(io::ErrorKind::ConnectionAborted.into()))?;
    Ok(Greeted { stream, caller, place })
}

/// Handshakes under way, by number: the oldest first.
struct Handshakes {
    max: usize,
    under_way: Mutex<(u64, BTreeMap<u64, Handshake>)>,
}

struct Handshake {
    /// Where it comes from, without the port.
    source: String,
    /// Dropped to end it.
    _crowd_out: oneshot::Sender<()>,
}

/// Dropping it makes way for another one.
struct HandshakePlace {
    handshakes: Arc<Handshakes>,
    number: u64,
}

impl Drop for HandshakePlace {
    fn drop(&mut self) {
        self.handshakes.under_way.lock().1.remove(&self.number);
    }
}

impl Handshakes {
    fn new(max: usize) -> Arc<Self> {
        Arc::new(Handshakes { max: max.max(1), under_way: Mutex::default() })
    }

    /// One more; the receiver ends when it has to make way for others.
    fn begin(self: &Arc<Self>, from: &str) -> (HandshakePlace, oneshot::Receiver<()>) {
        let source = from.rsplit_once(':').map_or(from, |(host, _)| host).to_owned();
        let (crowd_out, crowded_out) = oneshot::channel();
        let (next, under_way) = &mut *self.under_way.lock();
        if under_way.len() >= self.max {
            let last = crowded_one(under_way);
            last.and_then(|number| under_way.remove(&number));
        }
        *next += 1;
        under_way.insert(*next, Handshake { source, _crowd_out: crowd_out });
        (HandshakePlace { handshakes: self.clone(), number: *next }, crowded_out)
    }
}

/// The oldest one of the source that has most of them.
fn crowded_one(under_way: &BTreeMap<u64, Handshake>) -> Option<u64> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for handshake in under_way.values() {
        *counts.entry(&handshake.source).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    under_way.iter().find(|(_, handshake)| counts[&*handshake.source] == most).map(|(number, _)| *number)
}

/// Tells of refused connections, in a bounded number of lines: whoever is refused tries again many times a
/// second, and a stranger may vary what it is refused for.
#[derive(Default)]
struct Refusals(Mutex<Told>);

#[derive(Default)]
struct Told {
    /// When the last lines were written, and what the last one said.
    at: VecDeque<Instant>,
    last: String,
    /// Not written since.
    muted: u64,
}

impl Refusals {
    fn tell(&self, line: String) {
        if let Some(line) = self.0.lock().line(line) {
            tracing::warn!("{line}");
        }
    }
}

impl Told {
    /// What is to be written now, if anything is.
    fn line(&mut self, line: String) -> Option<String> {
        const WITHIN: Duration = Duration::from_secs(60);
        const MAX_LINES: usize = 5;
        while self.at.front().is_some_and(|at| at.elapsed() >= WITHIN) {
            self.at.pop_front();
        }
        // The port of the caller changes with each attempt.
        let reason = line.split_once(": ").map_or(&*line, |(_, reason)| reason);
        if self.at.len() >= MAX_LINES || !self.at.is_empty() && self.last == reason {
            self.muted += 1;
            return None;
        }
        self.last = reason.to_owned();
        self.at.push_back(Instant::now());
        Some(match std::mem::take(&mut self.muted) {
            0 => line,
            muted => format!("{line} ({muted} more since the last such line)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn refusals_fill_no_disk_however_they_vary() {
        let mut told = Told::default();
        let mut written = Vec::new();
        for number in 0..10_000 {
            tokio::time::advance(Duration::from_millis(6)).await;
            written.extend(told.line(format!("refused a connection from h:{number}: version {number}")));
        }
        assert_eq!(written.len(), 5, "a minute of strangers: {written:?}");
        tokio::time::advance(Duration::from_secs(60)).await;
        let line = told.line("refused a connection from h:1: its secret".into()).expect("a line");
        assert!(line.ends_with("its secret (9995 more since the last such line)"), "{line}");
        assert_eq!(told.line("refused a connection from h:2: its secret".into()), None, "the same again");
    }

    #[test]
    fn a_crowd_of_one_source_makes_way_for_itself_and_not_at_the_cost_of_others() {
        let handshakes = Handshakes::new(4);
        let (_member, mut member_ends) = handshakes.begin("10.0.0.2:7000");
        let mut crowd: Vec<_> = (0..9).map(|port| handshakes.begin(&format!("10.0.0.9:{port}"))).collect();
        let ended =
            |ends: &mut oneshot::Receiver<()>| ends.try_recv() == Err(oneshot::error::TryRecvError::Closed);
        assert!(!ended(&mut member_ends), "the only one of its source");
        let gone: Vec<bool> = crowd.iter_mut().map(|(_, ends)| ended(ends)).collect();
        assert_eq!(gone, [true, true, true, true, true, true, false, false, false]);
        drop(crowd);
        assert_eq!(handshakes.under_way.lock().1.len(), 1);
    }
}
