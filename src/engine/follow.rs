//! Following one topic: from a cursor through what is stored, and then along with what comes.
//!
//! There is one way to read, by cursor, and no second one for records that are live: a step looks at where the
//! topic stands, and says what the reader has to be told next. Steps are only as large as a frame, so who
//! is slow takes few large ones instead of many small ones, and nothing queues up for it anywhere.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;

use super::frame_room::{FrameHold, FrameRoom};
use super::hub::{Bell, LanePlace, Listener};
use super::lane::{Frame, Lane, View};
use super::page::{Page, PageQuery, Standing, Start, Tombstone};
use super::{Consistency, Engine};
use crate::error::Error;
use crate::limits::SMALL_FRAME_BYTES;
use crate::state::SharedTopic;
use crate::task::{self, Begun};

/// How long a delivery counts as consumption without being noted again, in milliseconds.
const TOUCH_INTERVAL_MS: u128 = 1000;

/// Pause before it is looked again for room for a record that is no small frame.
const ROOM_PAUSE: Duration = Duration::from_millis(100);

/// Writes the records of a page down: form, topic, cursor before it, page.
pub type EncodeFrame = fn(u32, &str, u64, &Page) -> Result<Bytes, Error>;

/// Where a reader wants to start in a topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StartAt {
    /// Only records with a higher seq.
    pub from_seq: u64,
    /// At the head; wins over `from_seq`.
    pub tail: bool,
    /// The topic instance that `from_seq` belongs to.
    pub epoch: Option<u64>,
}

/// Where it does start: decided once (C-EPOCH-06).
#[derive(Debug, Clone)]
pub struct StartPlace {
    pub shared: Arc<SharedTopic>,
    /// What the reader asked for, resolved.
    pub from_seq: u64,
    pub cursor: u64,
    /// The reader's cursor belongs to an earlier instance, which it is still to be told.
    pub is_recreated: bool,
    pub head_seq: u64,
    pub earliest_seq: u64,
}

/// What a reader is to be told next.
#[derive(Debug)]
pub enum Step {
    Records(Frame),
    /// Nothing: what came was passed over. The cursor has moved.
    Passed,
    Tombstone(Tombstone),
    /// Nothing is left to be told, after there was.
    CaughtUp {
        head_seq: u64,
    },
    /// The topic is gone, and so is the place in it.
    Deleted {
        head_seq: u64,
    },
}

impl Engine {
    /// Decides where reading `topics` starts, in their order; `None` stands for an unknown topic. Errors:
    /// `no_leader`, `invalid_request` for an epoch to come.
    pub async fn start_places(
        &self,
        topics: &[(&str, StartAt)],
        consistency: Consistency,
    ) -> Result<Vec<Option<StartPlace>>, Error> {
        let fence = self.fence(consistency).await?;
        let found: Vec<_> = topics.iter().map(|(name, _)| self.catalog().get(name)).collect();
        let known: Vec<_> = found.iter().flatten().cloned().collect();
        self.settle(fence, &known).await?;
        let places = topics.iter().zip(found).map(|((_, start), shared)| {
            shared.map(|shared| start_place(shared, *start, consistency)).transpose()
        });
        places.collect()
    }
}

fn start_place(
    shared: Arc<SharedTopic>,
    start: StartAt,
    consistency: Consistency,
) -> Result<StartPlace, Error> {
    let standing = Standing::of(&shared.read());
    let is_strong = consistency == Consistency::Strong;
    let place = |from_seq: u64, cursor: u64, is_recreated: bool| StartPlace {
        from_seq,
        cursor,
        is_recreated,
        head_seq: standing.head_seq,
        earliest_seq: standing.earliest_seq,
        shared: shared.clone(),
    };
    if start.tail {
        return Ok(place(standing.head_seq, standing.head_seq, false));
    }
    let recreated = || place(start.from_seq, standing.earliest_seq - 1, true);
    match start.epoch {
        Some(epoch) if epoch < shared.epoch => Ok(recreated()),
        Some(epoch) if epoch > shared.epoch && is_strong => {
            Err(Error::invalid(format!("epoch {epoch} is above the topic's, {}", shared.epoch)))
        }
        // This member lags behind the deletion of the instance that it knows, and is silent until then.
        Some(epoch) if epoch > shared.epoch => Ok(place(start.from_seq, u64::MAX, false)),
        _ if start.from_seq > standing.head_seq && is_strong => Ok(recreated()),
        _ => Ok(place(start.from_seq, start.from_seq, false)),
    }
}

/// One topic as one connection follows it.
pub(super) struct Following {
    shared: Arc<SharedTopic>,
    name: Arc<str>,
    cursor: u64,
    is_recreated: bool,
    /// Nothing was read yet.
    is_first: bool,
    has_caught_up: bool,
    lane: LanePlace,
    /// Goes on where it was if the step that began it was dropped: who is interrupted often gets on too.
    reading: Option<Reading>,
    /// There was no room for what comes next, which needs so many bytes; 0: it is not known what it needs.
    needed_bytes: usize,
    touched: Instant,
    pub listener: Listener,
}

/// A page on its way, and what had been removed when it was begun. It holds entries and places that all readers share, so
/// it gets on whether this connection does or not, and ends with a frame, which holds none of them.
struct Reading {
    made: Begun<Result<Made, Error>>,
    /// Records.
    removed: u64,
    removal_count: u64,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.made.abort();
    }
}

/// What became of a page.
enum Made {
    Frame(Frame),
    /// There is no page there any more.
    Nothing,
    /// There is no room for its frame, of so many bytes.
    NoRoom(usize),
}

/// How a page becomes a frame.
struct Making {
    engine: Engine,
    shared: Arc<SharedTopic>,
    name: Arc<str>,
    lane: Arc<Lane>,
    room: Arc<dyn FrameRoom>,
    hold: Option<FrameHold>,
    is_small: bool,
    encode: EncodeFrame,
}

impl Making {
    async fn make(mut self, start: Start) -> Result<Made, Error> {
        let from_seq = start.cursor;
        let page = self.engine.read_page(&self.shared, self.lane.query(self.is_small), start).await?;
        let Some(page) = page else { return Ok(Made::Nothing) };
        // One record always fits a page.
        let has_room = self.hold.as_ref().is_some_and(|hold| hold.bytes() >= page.stored_bytes);
        if page.stored_bytes > SMALL_FRAME_BYTES && !has_room {
            self.hold = None;
            self.hold = FrameHold::take(&self.room, page.stored_bytes);
            if self.hold.is_none() {
                return Ok(Made::NoRoom(page.stored_bytes));
            }
        }
        let mut bytes = Bytes::new();
        if !page.records.is_empty() {
            bytes = (self.encode)(self.lane.view().form, &self.name, from_seq, &page)?;
        }
        if bytes.len() > SMALL_FRAME_BYTES {
            match self.hold.or_else(|| FrameHold::take(&self.room, bytes.len())) {
                Some(hold) => bytes = hold.keep_for(bytes),
                None => return Ok(Made::NoRoom(bytes.len())),
            }
        }
        let (to_seq, is_to_head) = (page.next_from_seq, page.caught_up);
        Ok(Made::Frame(Frame { from_seq, to_seq, is_to_head, bytes }))
    }
}

impl Following {
    pub fn new(engine: &Engine, bell: &Bell, slot: u32, place: StartPlace, view: &Arc<View>) -> Self {
        let StartPlace { shared, cursor, is_recreated, .. } = place;
        engine.touch(&shared);
        let name = shared.read().name.clone();
        // In this order: the lane belongs to those who listen.
        let listener = bell.listen(shared.epoch, slot);
        let lane = engine.inner.hub.lane(shared.epoch, view);
        Following {
            shared,
            name,
            cursor,
            is_recreated,
            is_first: true,
            has_caught_up: false,
            lane,
            reading: None,
            needed_bytes: 0,
            touched: Instant::now(),
            listener,
        }
    }

    pub fn shared(&self) -> &Arc<SharedTopic> {
        &self.shared
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Whether a page is on its way.
    pub fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// What comes next; `None` if that is nothing, for now. Looks at a page's worth of records at most. May be
    /// dropped before it is done: then nothing has happened.
    pub async fn step(
        &mut self,
        engine: &Engine,
        encode: EncodeFrame,
        room: &Arc<dyn FrameRoom>,
    ) -> Result<Option<Step>, Error> {
        loop {
            if self.shared.is_deleted() {
                return Ok(Some(Step::Deleted { head_seq: self.shared.read().head_seq }));
            }
            if let Some(step) = self.finish_reading(engine).await? {
                return Ok(Some(step));
            }
            let (mut start, removed, removal_count) = {
                let topic = self.shared.read();
                let start = match self.is_recreated {
                    true => Start::recreated(&topic),
                    false => Start::after(&topic, self.cursor),
                };
                // `removed` grows with every record that is removed, for whatever reason.
                (start, topic.head_seq - topic.count, topic.removal_count)
            };
            if std::mem::take(&mut self.is_recreated) {
                self.is_first = false;
                return Ok(self.tell_gap(start));
            }
            let standing = start.standing;
            if self.cursor > standing.head_seq {
                // This member lags behind the reader (C-EPOCH-06).
                return Ok(None);
            }
            let is_first = std::mem::take(&mut self.is_first);
            if let Some(tombstone) = &mut start.tombstone {
                if is_first && tombstone.origin.is_none() {
                    // C-WATCH-14
                    tombstone.reason = "from_seq_too_old";
                }
                return Ok(self.tell_gap(start));
            }
            self.cursor = start.cursor;
            if self.cursor == standing.head_seq {
                let is_news = !std::mem::replace(&mut self.has_caught_up, true);
                return Ok(is_news.then_some(Step::CaughtUp { head_seq: standing.head_seq }));
            }
            if let Some(frame) = self.lane.frame_after(self.cursor, removed) {
                return Ok(Some(self.deliver(engine, frame)));
            }
            let due = standing.head_seq - self.cursor;
            let Some((hold, is_small)) = self.find_room(room, due) else {
                tokio::time::sleep(ROOM_PAUSE).await;
                continue;
            };
            let making = Making {
                engine: engine.clone(),
                shared: self.shared.clone(),
                name: self.name.clone(),
                lane: self.lane.lane().clone(),
                room: room.clone(),
                hold,
                is_small,
                encode,
            };
            // What is in memory is read at once, and costs no task.
            let made = task::begin(making.make(start).boxed());
            self.reading = Some(Reading { made, removed, removal_count });
        }
    }

    /// Room for the next frame of `due` records, and whether it is to be a small one; `None` if it has to wait.
    fn find_room(&self, room: &Arc<dyn FrameRoom>, due: u64) -> Option<(Option<FrameHold>, bool)> {
        if self.needed_bytes > 0 {
            return FrameHold::take(room, self.needed_bytes).map(|hold| (Some(hold), true));
        }
        let max_bytes = self.lane.view().max_bytes;
        // A single record is as large as it is.
        let may_be_large = due > 1 && max_bytes > SMALL_FRAME_BYTES;
        let hold = may_be_large.then(|| FrameHold::take(room, max_bytes)).flatten();
        let is_small = hold.is_none();
        Some((hold, is_small))
    }

    /// Waits for the page that is on its way; `None` if there is none, or none that still holds.
    async fn finish_reading(&mut self, engine: &Engine) -> Result<Option<Step>, Error> {
        let Some(reading) = &mut self.reading else { return Ok(None) };
        let still_holds = {
            let topic = self.shared.read();
            topic.removal_count == reading.removal_count && topic.earliest_seq <= self.cursor + 1
        };
        if !still_holds {
            self.reading = None;
            return Ok(None);
        }
        let (made, removed) = ((&mut reading.made).await, reading.removed);
        self.reading = None;
        let frame = match made {
            Ok(Made::Frame(frame)) => frame,
            Ok(Made::NoRoom(bytes)) => {
                self.needed_bytes = bytes;
                return Ok(None);
            }
            // The floors have moved.
            Ok(Made::Nothing) => return Ok(None),
            Err(_) if self.shared.is_deleted() => return Ok(None),
            Err(error) => return Err(error),
        };
        self.needed_bytes = 0;
        self.lane.share(&frame, removed);
        Ok(Some(self.deliver(engine, frame)))
    }

    fn tell_gap(&mut self, start: Start) -> Option<Step> {
        self.cursor = start.cursor;
        self.has_caught_up = false;
        start.tombstone.map(Step::Tombstone)
    }

    fn deliver(&mut self, engine: &Engine, frame: Frame) -> Step {
        self.cursor = frame.to_seq;
        if frame.bytes.is_empty() {
            return Step::Passed;
        }
        // Frames that others made may end before the present head, and mean no backlog.
        self.has_caught_up &= frame.is_to_head;
        if self.touched.elapsed().as_millis() >= TOUCH_INTERVAL_MS {
            self.touched = Instant::now();
            engine.touch(&self.shared);
        }
        Step::Records(frame)
    }
}

/// What a page must be like to become a frame of `view`.
pub(super) fn query_of(view: &View) -> PageQuery {
    PageQuery {
        drop_nodes: view.drop_nodes.clone(),
        filter: view.filter.clone(),
        ..PageQuery::here(view.limit, view.max_bytes)
    }
}
