//! Event streams: a session's topics, written to one connection (contract sections 17.2 to 17.4).
//!
//! The stream is a body that hyper asks for more, not a task with a queue: what is not asked for is not made.
//! So a slow reader costs nothing but its place and a frame, finds larger frames when it comes back, and holds nobody up.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use tokio::time::Instant;

use super::event_id::{CameWith, EventIds};
use super::v0::frame::{Notice, encode_records, error_event};
use super::write_progress::WriteProgress;
use crate::auth::Place;
use crate::engine::{
    Engine, FrameRoom, Next, OpenStream, Session, SessionTopic, StartPlace, Step, StreamPlace, Watcher,
};
use crate::error::Error;

/// What a client is asked to wait before it connects again, in milliseconds (C-WATCH-12).
const RETRY: &str = "retry: 2000\n\n";
/// The same to one whose session another connection took over. Browsers connect again by themselves whenever a stream
/// ends, and two of them with one session would take it from each other for ever.
const LOST_RETRY: &str = "retry: 86400000\n\n";
/// The same, told when the member ends, or is out of touch with its leader.
const SHUTDOWN_RETRY_MS: u64 = 1000;
/// Frames up to this size are copied behind their id: one chunk costs less than two.
const COPY_BYTES: usize = 4 << 10;

/// An open stream.
pub struct EventStream {
    engine: Engine,
    watcher: Watcher,
    open: OpenStream,
    ids: EventIds,
    /// Which topic of the session each slot of the watcher is.
    topics: Vec<usize>,
    /// Written and not handed over yet.
    outbox: VecDeque<Bytes>,
    has_ended: bool,
    opened: Instant,
    heartbeat: Duration,
    /// When the next one is due, if nothing else is written before.
    heartbeat_at: Instant,
    progress: Option<Arc<WriteProgress>>,
    _places: (StreamPlace, Place),
}

impl EventStream {
    /// Opens the session's stream in place of an older one, from no later than the cursors that the client has come
    /// with; `None` if the session is gone.
    pub fn open(
        engine: &Engine,
        session: &Arc<Session>,
        came_with: Vec<CameWith>,
        progress: Option<Arc<WriteProgress>>,
        room: Arc<dyn FrameRoom>,
        places: (StreamPlace, Place),
    ) -> Option<Self> {
        let watcher = engine.watcher(encode_records, room);
        let mut this = EventStream {
            open: session.open(watcher.bell())?,
            ids: EventIds::new(&session.subscription.topics),
            engine: engine.clone(),
            watcher,
            topics: Vec::new(),
            outbox: VecDeque::from([Bytes::from_static(RETRY.as_bytes()), this_moment(engine)]),
            has_ended: false,
            opened: Instant::now(),
            heartbeat: Duration::from_millis(session.subscription.heartbeat_ms),
            heartbeat_at: Instant::now(),
            progress,
            _places: places,
        };
        for (ordinal, topic) in session.subscription.topics.iter().enumerate() {
            this.follow(
                session,
                ordinal,
                topic,
                came_with.get(ordinal).copied().unwrap_or(CameWith::Nothing),
            );
        }
        Some(this)
    }

    fn follow(&mut self, session: &Session, ordinal: usize, topic: &SessionTopic, came_with: CameWith) {
        let mut cursor = topic.cursor.load(Ordering::Acquire);
        match came_with {
            CameWith::Cursor(came_with) if came_with < cursor => {
                cursor = came_with;
                topic.cursor.store(cursor, Ordering::Release);
            }
            // What was handed to an earlier connection was lost with it.
            CameWith::Untold => topic.is_recreated.store(true, Ordering::Release),
            CameWith::Cursor(_) | CameWith::Nothing => {}
        }
        let found = self.engine.catalog().get(&topic.name).filter(|shared| shared.epoch == topic.epoch);
        let Some(shared) = found else {
            // Deleted while nobody was looking, whatever has its name now (C-WATCH-16).
            let frame = Notice::Deleted { head_seq: cursor }.event(&topic.name);
            self.put(self.ids.line(&session.subscription.topics), frame);
            return;
        };
        let (head_seq, earliest_seq) = {
            let topic = shared.read();
            (topic.head_seq, topic.earliest_seq)
        };
        let is_recreated = topic.is_recreated.load(Ordering::Acquire);
        let place = StartPlace { shared, from_seq: cursor, cursor, is_recreated, head_seq, earliest_seq };
        let slot = self.watcher.follow(place, &topic.view) as usize;
        // Slots are given in order as long as none was given back.
        debug_assert_eq!(slot, self.topics.len());
        self.topics.push(ordinal);
    }

    pub fn into_response(self) -> Response {
        let chunks = stream::unfold(self, |mut this| async move {
            let chunk = this.next_chunk().await?;
            Some((Ok::<_, Infallible>(chunk), this))
        });
        let mut response = Response::new(Body::from_stream(chunks));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        response
    }

    /// Waits for what is to be written next; `None` at the end.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.outbox.pop_front() {
                if let Some(progress) = &self.progress {
                    progress.handed(chunk.len());
                }
                self.heartbeat_at = Instant::now() + self.heartbeat;
                return Some(chunk);
            }
            if self.has_ended {
                return None;
            }
            if !self.open.is_current() {
                self.outbox.push_back(Bytes::from_static(LOST_RETRY.as_bytes()));
                self.end(error_event(410, "session_taken_over", None));
                continue;
            }
            if self.engine.is_closing() {
                self.end(error_event(503, "shutting_down", Some(SHUTDOWN_RETRY_MS)));
                continue;
            }
            if self.engine.is_out_of_touch(self.opened) {
                self.end(error_event(503, "no_leader", Some(SHUTDOWN_RETRY_MS)));
                continue;
            }
            if self.watcher.followed() == 0 {
                // C-WATCH-17
                return None;
            }
            if let Some(progress) = &self.progress
                && !progress.wait_for_room().await
            {
                self.end(error_event(408, "too_slow", None));
                continue;
            }
            if Instant::now() >= self.heartbeat_at {
                // Also while much is passed over in silence.
                self.outbox.push_back(this_moment(&self.engine));
                continue;
            }
            let next = tokio::time::timeout_at(self.heartbeat_at, self.watcher.next()).await;
            match next {
                Ok(Ok(Next::Step { slot, topic, cursor, step })) => self.tell(slot, &topic, cursor, step),
                Ok(Ok(Next::Rung)) => {}
                Ok(Err(error)) => self.end(failure_event(&error)),
                // A heartbeat is due.
                Err(_) => {}
            }
        }
    }

    fn end(&mut self, last: Bytes) {
        self.outbox.push_back(last);
        self.has_ended = true;
    }

    fn tell(&mut self, slot: u32, name: &str, cursor: u64, step: Step) {
        if !self.open.is_current() {
            // The session's cursors are the later stream's now.
            return;
        }
        let session = self.open.session.clone();
        let topics = &session.subscription.topics;
        if let Some(topic) = self.topics.get(slot as usize).and_then(|ordinal| topics.get(*ordinal)) {
            topic.cursor.store(cursor, Ordering::Release);
            topic.is_recreated.store(false, Ordering::Release);
        }
        let frame = match step {
            Step::Records(frame) => frame.bytes,
            Step::Passed => return,
            Step::Tombstone(tombstone) => Notice::Tombstone(&tombstone).event(name),
            Step::CaughtUp { head_seq } => Notice::CaughtUp { head_seq }.event(name),
            Step::Deleted { head_seq } => Notice::Deleted { head_seq }.event(name),
        };
        self.put(self.ids.line(topics), frame);
    }

    fn put(&mut self, mut id: BytesMut, frame: Bytes) {
        if frame.len() <= COPY_BYTES {
            id.extend_from_slice(&frame);
            self.outbox.push_back(id.freeze());
        } else {
            self.outbox.extend([id.freeze(), frame]);
        }
    }
}

/// A heartbeat.
fn this_moment(engine: &Engine) -> Bytes {
    Bytes::from(format!(": hb {}\n\n", engine.wall_ms()))
}

fn failure_event(error: &Error) -> Bytes {
    error_event(u64::from(error.code.status()), error.code.name(), None)
}
