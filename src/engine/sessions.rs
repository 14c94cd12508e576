//! Watch sessions: what a client watches and how far it has got, between its connections.
//!
//! A session lives in the memory of one member, at first that of its maker, whose name is part of its id. So
//! any member that is shown the id knows whom to ask for it: it takes the session over, and the maker
//! remembers where it went. Replicating them would put a write through the log for every reconnect; a client whose
//! session is lost with its member makes a new one, from cursors that it has itself.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use super::hub::BellHandle;
use super::{Engine, StartPlace, View};
use crate::error::{Code, Error};

/// How long a member remembers where a session went, if nobody asks.
const REMEMBER_MOVED: Duration = Duration::from_secs(24 * 3600);
/// Most sessions whose way is remembered.
const MAX_MOVED: usize = 100_000;

/// Places and memory that are given back when a session, or what takes up as much, is dropped.
pub type Hold = Box<dyn Any + Send + Sync>;

/// What binds a session to the key that made it, without telling the key.
pub type Binding = [u8; 32];

/// One topic of a session.
#[derive(Debug)]
pub struct SessionTopic {
    pub name: Arc<str>,
    /// The topic instance that is watched.
    pub epoch: u64,
    /// How. Topics without a filter of their own share one.
    pub view: Arc<View>,
    /// Last cursor that was handed to a connection.
    pub cursor: AtomicU64,
    /// The client is still to be told that its cursor belonged to an earlier instance.
    pub is_recreated: AtomicBool,
}

/// What is watched. Does not change but for the cursors.
#[derive(Debug)]
pub struct Subscription {
    /// `None`: authentication is off.
    pub binding: Option<Binding>,
    pub topics: Vec<SessionTopic>,
    pub heartbeat_ms: u64,
}

/// What a session takes beside its topics and their views, about.
const SESSION_BYTES: usize = 512;

impl Subscription {
    pub fn topics_of(places: &[(StartPlace, Arc<View>)]) -> Vec<SessionTopic> {
        let topics = places.iter().map(|(place, view)| SessionTopic {
            name: place.shared.read().name.clone(),
            epoch: place.shared.epoch,
            view: view.clone(),
            cursor: AtomicU64::new(place.cursor),
            is_recreated: AtomicBool::new(place.is_recreated),
        });
        topics.collect()
    }

    /// What it takes in memory; the same at every member.
    pub fn memory_bytes(&self) -> usize {
        let of_one = |topic: &SessionTopic| size_of::<SessionTopic>() + topic.name.len();
        SESSION_BYTES
            + self.topics.iter().map(of_one).sum::<usize>()
            + View::memory_bytes(self.topics.iter().map(|topic| &topic.view))
    }
}

/// A session at the member that holds it.
pub struct Session {
    pub wid: String,
    pub subscription: Subscription,
    /// A member that has not applied so much does not know the session's topics as they were looked up.
    pub applied_index: u64,
    /// How often it went from one member to another.
    pub moves: u64,
    /// Which stream is the present one; it goes up with every stream that is opened.
    generation: AtomicU64,
    state: Mutex<State>,
    _hold: Hold,
}

struct State {
    stream: Option<BellHandle>,
    idle_since: Instant,
    /// Reclaimed, or gone to another member.
    is_gone: bool,
}

/// The open stream of a session, unless a later one took over. Dropping it closes it.
pub struct OpenStream {
    pub session: Arc<Session>,
    generation: u64,
}

impl OpenStream {
    /// Whether this is still the session's stream (C-WATCH-10).
    pub fn is_current(&self) -> bool {
        self.session.generation.load(Ordering::Acquire) == self.generation
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut state = self.session.state.lock();
        if self.is_current() {
            state.stream = None;
            state.idle_since = Instant::now();
        }
    }
}

impl Session {
    pub fn new(
        wid: String,
        subscription: Subscription,
        (applied_index, moves): (u64, u64),
        hold: Hold,
    ) -> Arc<Self> {
        Arc::new(Session {
            wid,
            subscription,
            applied_index,
            moves,
            generation: AtomicU64::new(0),
            state: Mutex::new(State { stream: None, idle_since: Instant::now(), is_gone: false }),
            _hold: hold,
        })
    }

    /// Opens a stream, which takes the place of an older one; `None` if the session is gone.
    pub fn open(self: &Arc<Self>, bell: BellHandle) -> Option<OpenStream> {
        let mut state = self.state.lock();
        if state.is_gone {
            return None;
        }
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        if let Some(older) = state.stream.replace(bell) {
            older.ring();
        }
        Some(OpenStream { session: self.clone(), generation })
    }

    fn is_idle_since(&self, ttl: Duration) -> bool {
        let state = self.state.lock();
        state.stream.is_none() && state.idle_since.elapsed() >= ttl
    }

    /// Ends it here, and its stream.
    fn give_up(&self) {
        let mut state = self.state.lock();
        state.is_gone = true;
        self.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(stream) = state.stream.take() {
            stream.ring();
        }
    }

    /// Whether the caller with this binding made it.
    pub fn is_bound_to(&self, binding: Option<&Binding>) -> bool {
        is_same(self.subscription.binding.as_ref(), binding)
    }
}

/// Whether a binding that was `shown` opens what has `own`.
pub(super) fn is_same(own: Option<&Binding>, shown: Option<&Binding>) -> bool {
    match (own, shown) {
        (None, _) => true,
        (Some(own), Some(shown)) => own.ct_eq(shown).into(),
        (Some(_), None) => false,
    }
}

enum Entry {
    Here(Arc<Session>),
    /// With what its key is told by: others must not make this member believe anything.
    Moved {
        to: String,
        binding: Option<Binding>,
        /// With how many moves it came there.
        moves: u64,
        asked: Instant,
    },
}

/// Where a session is, as far as this member knows.
pub(super) enum Whereabouts {
    Here(Arc<Session>),
    At(String, Option<Binding>),
    Unknown,
}

/// The sessions of one member.
pub(super) struct Sessions {
    /// 0: any number.
    max: usize,
    pub ttl: Duration,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    by_wid: HashMap<String, Entry>,
    here: usize,
}

impl Held {
    fn insert(&mut self, session: Arc<Session>) {
        let before = self.by_wid.insert(session.wid.clone(), Entry::Here(session));
        self.here += !matches!(before, Some(Entry::Here(_))) as usize;
    }

    fn remove_where(&mut self, mut is_removed: impl FnMut(&Entry) -> bool) {
        self.by_wid.retain(|_, entry| {
            let is_removed = is_removed(entry);
            self.here -= (is_removed && matches!(entry, Entry::Here(_))) as usize;
            !is_removed
        });
    }
}

impl Sessions {
    pub fn new(max: usize, ttl: Duration) -> Self {
        Sessions { max, ttl, held: Mutex::default() }
    }

    pub fn count(&self) -> usize {
        self.held.lock().here
    }

    /// Takes away what nobody has used for too long.
    pub fn sweep(&self) {
        self.held.lock().remove_where(|entry| match entry {
            Entry::Here(session) => {
                let is_idle = session.is_idle_since(self.ttl);
                if is_idle {
                    session.give_up();
                }
                is_idle
            }
            Entry::Moved { asked, .. } => asked.elapsed() >= REMEMBER_MOVED,
        });
    }

    /// Errors: `throttled` (C-LIMIT-06).
    fn add(&self, session: Arc<Session>) -> Result<(), Error> {
        self.make_room()?;
        let mut held = self.held.lock();
        self.check_room(held.here)?;
        held.insert(session);
        Ok(())
    }

    fn check_room(&self, here: usize) -> Result<(), Error> {
        if self.max > 0 && here >= self.max {
            return Err(Error::over_limit("max_watch_sessions", self.max as u64));
        }
        Ok(())
    }

    /// Errors: `throttled` if no further session may be held here, even without those that nobody uses.
    pub fn make_room(&self) -> Result<(), Error> {
        self.check_room(self.count()).or_else(|_| {
            self.sweep();
            self.check_room(self.count())
        })
    }

    /// Holds a session that was another member's, whether there is room or not: the other one has let it go.
    pub fn adopt(&self, session: Arc<Session>) {
        self.held.lock().insert(session);
    }

    pub fn find(&self, wid: &str) -> Whereabouts {
        match self.held.lock().by_wid.get(wid) {
            // A session that nobody swept yet is gone all the same.
            Some(Entry::Here(session)) if !session.is_idle_since(self.ttl) => {
                Whereabouts::Here(session.clone())
            }
            Some(Entry::Moved { to, binding, .. }) => Whereabouts::At(to.clone(), *binding),
            _ => Whereabouts::Unknown,
        }
    }

    /// Gives a session up to the member `to`.
    pub fn give_to(&self, session: &Session, to: &str) {
        session.give_up();
        self.moved(&session.wid, to, session.subscription.binding, session.moves + 1);
    }

    /// Remembers that the session came to the member `to` with so many moves, unless later ones are known: what is told
    /// may come late.
    pub fn moved(&self, wid: &str, to: &str, binding: Option<Binding>, moves: u64) {
        let mut held = self.held.lock();
        let known_moves = held.by_wid.get(wid).map(|entry| match entry {
            Entry::Here(session) => session.moves,
            Entry::Moved { moves, .. } => *moves,
        });
        if known_moves.is_some_and(|known| known >= moves) {
            return;
        }
        if held.by_wid.len() - held.here >= MAX_MOVED {
            held.remove_where(|entry| matches!(entry, Entry::Moved { .. }));
        }
        let entry = Entry::Moved { to: to.to_owned(), binding, moves, asked: Instant::now() };
        if let Some(Entry::Here(_)) = held.by_wid.insert(wid.to_owned(), entry) {
            held.here -= 1;
        }
    }
}

impl Engine {
    /// An id for a session of this member: at least 128 random bits in characters that are safe in a path.
    pub fn new_wid(&self) -> String {
        let mut wid = format!("wid_{}.", self.member());
        for _ in 0..2 {
            let mut bits = self.inner.random.next_u64();
            for _ in 0..11 {
                const LETTERS: &[u8; 64] =
                    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
                wid.push(char::from(LETTERS[(bits & 63) as usize]));
                bits >>= 6;
            }
        }
        wid
    }

    /// Keeps a session, and `hold` as long as it is there. Errors: `throttled`.
    pub fn add_session(&self, wid: String, subscription: Subscription, hold: Hold) -> Result<(), Error> {
        let applied_index = self.inner.node.applied().index();
        self.inner.watch_sessions.add(Session::new(wid, subscription, (applied_index, 0), hold))
    }

    /// How long a session without a stream is kept.
    pub fn session_ttl(&self) -> Duration {
        self.inner.watch_sessions.ttl
    }

    /// Sessions that this member holds.
    pub fn session_count(&self) -> usize {
        self.inner.watch_sessions.count()
    }

    pub(super) async fn sweep_sessions(self) {
        let interval = (self.session_ttl() / 4).clamp(Duration::from_millis(100), Duration::from_secs(15));
        loop {
            tokio::time::sleep(interval).await;
            self.inner.watch_sessions.sweep();
        }
    }
}

/// 404 for a session that is nowhere to be found.
pub(super) fn unknown_session() -> Error {
    Error::new(Code::NotFound, "there is no such watch session (any more); make a new one")
}

/// 401 for who did not make the session.
pub(super) fn not_the_maker() -> Error {
    Error::new(Code::Unauthorized, "this watch session was made with another key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::filter::Filter;

    fn session(wid: &str, binding: Option<Binding>) -> Arc<Session> {
        let subscription = Subscription { binding, topics: Vec::new(), heartbeat_ms: 1000 };
        Session::new(wid.into(), subscription, (0, 0), Box::new(()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_reclaimed_only_without_a_stream() {
        // C-WATCH-04, C-WATCH-08
        let sessions = Sessions::new(0, Duration::from_secs(300));
        sessions.add(session("w", None)).unwrap();
        let Whereabouts::Here(found) = sessions.find("w") else { panic!("it is here") };
        let stream = found.open(BellHandle::default()).unwrap();
        tokio::time::advance(Duration::from_secs(1000)).await;
        sessions.sweep();
        assert_eq!(sessions.count(), 1);
        drop(stream);
        tokio::time::advance(Duration::from_secs(299)).await;
        sessions.sweep();
        assert_eq!(sessions.count(), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(matches!(sessions.find("w"), Whereabouts::Unknown));
        sessions.sweep();
        assert_eq!(sessions.count(), 0);
        assert!(found.open(BellHandle::default()).is_none());
    }

    #[tokio::test]
    async fn a_second_stream_takes_the_place_of_the_first() {
        // C-WATCH-10
        let session = session("w", None);
        let first = session.open(BellHandle::default()).unwrap();
        let second = session.open(BellHandle::default()).unwrap();
        assert!(!first.is_current() && second.is_current());
        drop(first);
        assert!(!session.is_idle_since(Duration::ZERO));
        drop(second);
        assert!(session.is_idle_since(Duration::ZERO));
    }

    #[tokio::test]
    async fn there_are_as_many_sessions_as_allowed_and_moved_ones_do_not_count() {
        // C-LIMIT-06, C-LIMIT-12
        let sessions = Sessions::new(2, Duration::from_secs(300));
        let first = session("a", None);
        sessions.add(first.clone()).unwrap();
        sessions.add(session("b", None)).unwrap();
        let error = sessions.add(session("c", None)).unwrap_err();
        assert_eq!(error, Error::over_limit("max_watch_sessions", 2));
        sessions.give_to(&first, "m2");
        assert!(matches!(sessions.find("a"), Whereabouts::At(member, None) if member == "m2"));
        sessions.add(session("c", None)).unwrap();
        assert!(sessions.make_room().is_err(), "nor is one asked for that another member has");
        sessions.adopt(first);
        assert_eq!(sessions.count(), 3);
    }

    #[tokio::test]
    async fn what_is_told_late_does_not_send_a_session_s_way_in_a_circle() {
        // C-WATCH-05: m2 took it from here, m3 from m2, this member from m3, and m2 again.
        let sessions = Sessions::new(2, Duration::from_secs(300));
        let with_moves = |moves| {
            let subscription = Subscription { binding: None, topics: Vec::new(), heartbeat_ms: 1000 };
            Session::new("w".into(), subscription, (0, moves), Box::new(()))
        };
        let is_at = |member: &str| matches!(sessions.find("w"), Whereabouts::At(at, _) if at == member);
        sessions.adopt(with_moves(0));
        sessions.give_to(&with_moves(0), "m2");
        assert!(is_at("m2"));
        let back = with_moves(3);
        sessions.adopt(back.clone());
        // Now m3 says that it has it.
        sessions.moved("w", "m3", None, 2);
        assert!(matches!(sessions.find("w"), Whereabouts::Here(_)));
        sessions.give_to(&back, "m2");
        sessions.moved("w", "m3", None, 2);
        assert!(is_at("m2"));
        sessions.moved("w", "m3", None, 5);
        assert!(is_at("m3") && sessions.count() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_session_holds_is_given_back_with_it() {
        // C-LIMIT-12
        let budget = Budget::new(10);
        let sessions = Sessions::new(0, Duration::from_secs(300));
        let subscription = Subscription { binding: None, topics: Vec::new(), heartbeat_ms: 1000 };
        let hold = Box::new(budget.charge(10).unwrap());
        sessions.add(Session::new("w".into(), subscription, (0, 0), hold)).unwrap();
        let Whereabouts::Here(found) = sessions.find("w") else { panic!("it is here") };
        let stream = found.open(BellHandle::default()).unwrap();
        drop(found);
        sessions.moved("w", "m2", None, 1);
        assert_eq!(budget.held_bytes(), 10, "its stream is still there");
        drop(stream);
        assert_eq!(budget.held_bytes(), 0);
    }

    #[test]
    fn memory_that_topics_share_counts_once() {
        // C-LIMIT-16
        let topic = |view: &Arc<View>| SessionTopic {
            name: "t".into(),
            epoch: 1,
            view: view.clone(),
            cursor: AtomicU64::new(0),
            is_recreated: AtomicBool::new(false),
        };
        let of = |topics| Subscription { binding: None, topics, heartbeat_ms: 1 }.memory_bytes();
        let nodes: Arc<[String]> = vec!["n".repeat(128); 64].into();
        let filter = |json: &str| Some(Arc::new(Filter::parse(json).unwrap()));
        let view = |json: &str| View::new(1, 1, 1, nodes.clone(), filter(json));
        let (one, other) = (view("\"a\""), view("\"b\""));
        let single = of(vec![topic(&one)]);
        assert!(single > 64 * 128, "{single}");
        let twice = of(vec![topic(&one), topic(&one)]);
        assert_eq!(twice - single, size_of::<SessionTopic>() + 1);
        let another = of(vec![topic(&one), topic(&other)]) - twice;
        assert!(another > size_of::<Filter>() && another < 1000, "{another}");
    }

    #[tokio::test]
    async fn only_its_maker_opens_a_session() {
        // C-WATCH-06
        assert!(session("w", None).is_bound_to(None) && session("w", None).is_bound_to(Some(&[1; 32])));
        let bound = session("w", Some([1; 32]));
        assert!(bound.is_bound_to(Some(&[1; 32])));
        assert!(!bound.is_bound_to(Some(&[2; 32])) && !bound.is_bound_to(None));
    }
}
