//! Layer 4: the verbs, without HTTP.
//!
//! Everything that the API offers is a method of [`Engine`] here: carrying a command out through the
//! leader, waiting until a read may be answered, reading a page, waiting for what comes next. The engine
//! knows neither requests nor responses; the edge turns one into the other.

mod changes;
mod cluster_view;
mod cold_entries;
mod delete;
mod figures;
mod filling;
mod follow;
mod forward;
mod frame_room;
#[doc(hidden)]
pub mod fuzzing;
mod hub;
mod identity;
mod lane;
mod limits;
mod links;
mod origins;
mod page;
mod priority;
mod propose;
mod pull;
mod pull_news;
mod read_index;
mod readiness;
mod recency;
mod routers;
mod routing;
mod session_transfer;
mod sessions;
mod streams;
mod timer;
mod tokens;
mod watcher;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

pub use changes::{ChangeCursor, Changed, ChangedTopic};
pub use cluster_view::{ClusterView, HeldView, LogView, MemberView};
pub use figures::{Figures, RouterFigures, TopicFigures};
pub use follow::{EncodeFrame, StartAt, StartPlace, Step};
pub use frame_room::FrameRoom;
pub use hub::{Bell, BellHandle, Hub, Listener};
pub use lane::{Frame, View};
pub use links::{LinkError, LinkState, LinkStatus, Links};
pub use origins::OriginView;
pub use page::{LostAtSource, Page, PageQuery, PageRecord, RecordOrigin, Tombstone};
pub use propose::Timings;
pub use pull::{
    Beginning, Lost, PullCursor, PullQuery, PullReply, Pulled, PulledItem, PulledPage, PulledTopic, Sources,
};
pub use pull_news::{Ask, Listed, News, TopicNews};
pub use read_index::Fence;
pub use readiness::Readiness;
pub use routers::RouterView;
pub use sessions::{Binding, Hold, OpenStream, Session, SessionTopic, Subscription};
pub use streams::StreamPlace;
pub use tokens::{SecretMissing, TokenKeys};
pub use watcher::{Next, Watcher};

use crate::clock::Random;
use crate::error::{Code, Error};
use crate::raft::{Node, PeerHandler};
use crate::state::{Catalog, ClusterLimits};
use crate::storage::Log;
use crate::task;

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// It sees everything that was acked anywhere before it started.
    #[default]
    Strong,
    /// It sees what this member has applied.
    Eventual,
}

/// How far a member is with leaving its clients.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    Not,
    Draining,
    Closing,
}

/// What the engine is told from outside.
#[derive(Clone)]
pub struct EngineOptions {
    /// How long a request may look for a leader or wait for its outcome.
    pub request_timeout: Duration,
    /// How long a leader counts as connected to a quorum after the last answer of one.
    pub quorum_loss_after: Duration,
    /// What the cluster may hold while this member leads.
    pub limits: ClusterLimits,
    /// Watch sessions that this member holds at most; 0: any number.
    pub max_watch_sessions: usize,
    /// How long one without a stream is kept.
    pub watch_session_ttl: Duration,
    /// Streams that are open here at most; 0: any number.
    pub max_streams: usize,
    /// What tokens of mirrors are sealed with.
    pub token_keys: Arc<TokenKeys>,
}

/// The verbs of one member. Clones are cheap and share everything but their deadline.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
    /// When the time of what is asked for is over, where that was known before.
    until: Option<Instant>,
}

struct Inner {
    node: Arc<Node>,
    log: Log,
    hub: Arc<Hub>,
    /// Names this process to those who ask which topics changed here.
    feed: u64,
    random: Arc<dyn Random>,
    options: EngineOptions,
    started: Instant,
    sessions: propose::SessionKeeper,
    forwarder: forward::Forwarder,
    read_index: read_index::ReadIndex,
    timer: timer::Timer,
    recency: recency::Recency,
    cold_entries: cold_entries::ColdEntries,
    links: Links,
    watch_sessions: sessions::Sessions,
    streams: streams::Streams,
    has_caught_up: AtomicBool,
    confirmed: readiness::Confirmed,
    /// How far this member is with leaving: a [`Leaving`].
    leaving: AtomicU8,
    /// Elections that this member has seen, as terms that began while it ran.
    elections: AtomicU64,
}

impl Engine {
    pub fn new(
        node: Arc<Node>,
        log: Log,
        hub: Arc<Hub>,
        random: Arc<dyn Random>,
        options: EngineOptions,
    ) -> Engine {
        let inner = Arc::new(Inner {
            forwarder: forward::Forwarder::new(node.clone()),
            read_index: read_index::ReadIndex::new(node.clone()),
            timer: timer::Timer::default(),
            sessions: propose::SessionKeeper::default(),
            recency: recency::Recency::default(),
            cold_entries: cold_entries::ColdEntries::default(),
            links: links::Links::default(),
            watch_sessions: sessions::Sessions::new(options.max_watch_sessions, options.watch_session_ttl),
            streams: streams::Streams::new(options.max_streams),
            started: Instant::now(),
            has_caught_up: AtomicBool::new(false),
            confirmed: readiness::Confirmed::default(),
            leaving: AtomicU8::new(Leaving::Not as u8),
            elections: AtomicU64::new(0),
            node,
            log,
            hub,
            feed: random.next_u64(),
            random,
            options,
        });
        let engine = Engine { inner, until: None };
        task::spawn(engine.clone().follow_readiness());
        engine.start_keeping_limits();
        task::spawn(engine.clone().tell_cluster());
        task::spawn(engine.clone().keep_tokens_sealed());
        task::spawn(engine.clone().count_elections());
        task::spawn(engine.clone().propose_what_is_due());
        task::spawn(engine.clone().take_back_numbers());
        task::spawn(engine.clone().sweep_sessions());
        task::spawn(engine.inner.hub.clone().age_frames());
        let handler: Arc<dyn PeerHandler> = engine.inner.clone();
        engine.inner.node.set_handler(&handler);
        engine
    }

    /// The operator's name for this member.
    pub fn member(&self) -> &str {
        &self.inner.node.peers().me().member.name
    }

    /// Every topic, as applied here.
    pub fn catalog(&self) -> &Arc<Catalog> {
        self.inner.node.applied().catalog()
    }

    pub fn uptime_ms(&self) -> u64 {
        self.inner.started.elapsed().as_millis() as u64
    }

    /// This machine's clock, Unix milliseconds.
    pub fn wall_ms(&self) -> u64 {
        self.inner.node.time().clock().wall_ms()
    }

    /// From now on this member says that it is not ready, so that requests are sent elsewhere; those that come are
    /// served as before (C-OPS-05).
    pub fn drain(&self) {
        self.inner.leaving.fetch_max(Leaving::Draining as u8, Ordering::AcqRel);
    }

    pub fn is_draining(&self) -> bool {
        self.inner.leaving.load(Ordering::Acquire) >= Leaving::Draining as u8
    }

    /// From now on new requests are refused; those under way go on, streams end.
    pub fn close(&self) {
        self.inner.leaving.fetch_max(Leaving::Closing as u8, Ordering::AcqRel);
        self.inner.hub.wake_all();
    }

    pub fn is_closing(&self) -> bool {
        self.inner.leaving.load(Ordering::Acquire) >= Leaving::Closing as u8
    }

    /// The same verbs for a request whose time is over at `deadline`, however many of them it needs.
    pub fn until(&self, deadline: Instant) -> Engine {
        Engine { inner: self.inner.clone(), until: Some(deadline) }
    }

    /// When the time of a request that comes now is over.
    pub fn deadline(&self) -> Instant {
        self.until.unwrap_or_else(|| Instant::now() + self.inner.options.request_timeout)
    }

    /// Why a request is refused whose turn did not come in time: 429 `throttled`, or `no_leader` if those before it
    /// wait for one.
    pub fn out_of_turn(&self, limit: &str, max: usize) -> Error {
        match self.live_leader_name() {
            Some(_) => Error::over_limit(limit, max as u64),
            None => self.no_leader(),
        }
    }

    /// 503 with what `no_leader`, `storage_full` and `commit_unknown` tell beside it.
    fn unavailable(&self, code: Code, message: &str) -> Error {
        let mut detail = serde_json::json!({ "member": self.member() });
        if let Some(leader) = self.live_leader_name() {
            detail["leader"] = leader.into();
        }
        Error::new(code, message).with_detail(detail)
    }

    fn no_leader(&self) -> Error {
        self.unavailable(
            Code::NoLeader,
            "no leader with a quorum could be reached in time; the request had and will have no effect",
        )
    }

    fn storage_full(&self) -> Error {
        self.unavailable(
            Code::StorageFull,
            "there is no room for records at the leader or at a majority of the members; writes are taken \
             again once there is",
        )
    }

    fn unreadable_at_leader(&self) -> Error {
        self.unavailable(
            Code::NoLeader,
            "the leader runs another version, which cannot carry this request out; the request had and will have \
             no effect: run the same version everywhere",
        )
    }

    fn commit_unknown(&self) -> Error {
        self.unavailable(
            Code::CommitUnknown,
            "the leader was lost before the outcome was known; the request may or may not have taken effect",
        )
    }
}
