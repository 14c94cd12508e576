//! Frames that many readers of one topic share.
//!
//! A hundred watchers of a topic want the same records in the same form. The first one that gets its turn reads and
//! writes them down, the others find the bytes here: a frame that begins at their cursor and that was made
//! for the same [`View`]. Who is behind finds none, and reads pages of the topic like anybody else, until
//! its cursor meets a frame; so there is no hand-over in which a record could be lost or repeated.
//!
//! A frame is only used while no record of the topic was removed since: what is deleted is gone for every
//! reader. Frames are for those who are a moment late, not for those who are behind: they go when they are a few
//! seconds old, and all lanes together keep so many bytes of them.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use super::follow::query_of;
use super::page::PageQuery;
use crate::filter::Filter;
use crate::limits::{MAX_LANE_BYTES, SMALL_FRAME_BYTES};

/// Frames that one lane keeps, and their bytes.
const MAX_FRAMES: usize = 32;
const MAX_FRAMES_BYTES: usize = 1 << 20;
/// What a frame takes beside its bytes.
const FRAME_BYTES: usize = size_of::<(u64, Frame)>();

/// What two readers of a topic must have in common to share frames: whatever decides which records a frame has,
/// and how they are written.
#[derive(Debug, PartialEq, Eq)]
pub struct View {
    /// Of all the rest. It is compared first: filters may be long, and the same for long.
    digest: u64,
    /// How records are written; its meaning is the edge's.
    pub form: u32,
    /// Most records of a frame.
    pub limit: usize,
    /// Budget for the records' bytes; the first record is delivered whatever its size.
    pub max_bytes: usize,
    /// Records with one of these `node` labels are passed over.
    pub drop_nodes: Arc<[String]>,
    /// Records that do not pass it are passed over.
    pub filter: Option<Arc<Filter>>,
}

impl Hash for View {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.digest);
    }
}

impl View {
    pub fn new(
        form: u32,
        limit: usize,
        max_bytes: usize,
        drop_nodes: Arc<[String]>,
        filter: Option<Arc<Filter>>,
    ) -> Arc<View> {
        let mut hasher = DefaultHasher::new();
        (form, limit, max_bytes, &drop_nodes, &filter).hash(&mut hasher);
        Arc::new(View { digest: hasher.finish(), form, limit, max_bytes, drop_nodes, filter })
    }

    /// What views take in memory; what some of them share counts once.
    pub fn memory_bytes<'a>(views: impl IntoIterator<Item = &'a Arc<View>>) -> usize {
        let mut counted = HashSet::new();
        let mut bytes = 0;
        for view in views {
            if !counted.insert(Arc::as_ptr(view).cast::<()>()) {
                continue;
            }
            bytes += size_of::<View>() + view.filter.as_ref().map_or(0, |filter| filter.memory_bytes());
            if counted.insert(Arc::as_ptr(&view.drop_nodes).cast()) {
                let of_one = |node: &String| size_of::<String>() + 2 * ALLOCATION_BYTES + node.len();
                bytes += view.drop_nodes.iter().map(of_one).sum::<usize>();
            }
        }
        bytes
    }
}

/// What an allocation takes beside what was asked for.
const ALLOCATION_BYTES: usize = 16;

/// Records of one topic, written down once; or none, where all that were examined are passed over: finding that
/// out is shared too.
#[derive(Debug, Clone)]
pub struct Frame {
    pub from_seq: u64,
    /// Cursor after it.
    pub to_seq: u64,
    /// Whether it goes up to what was the head when it was made.
    pub is_to_head: bool,
    /// Empty if it has no records.
    pub bytes: Bytes,
}

/// The newest frames of one view of one topic.
pub struct Lane {
    view: Arc<View>,
    /// How its frames are read, and small ones.
    query: PageQuery,
    small_query: PageQuery,
    readers: AtomicUsize,
    shelf: Arc<Shelf>,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    /// With the tick in which they were made.
    frames: VecDeque<(u64, Frame)>,
    bytes: usize,
    /// Records that the topic had lost when they were made.
    removed: u64,
    /// The shelf knows of this lane.
    is_listed: bool,
}

/// What the lanes of one member keep together.
pub struct Shelf {
    max_bytes: usize,
    bytes: AtomicUsize,
    /// Goes up with every [`Shelf::tick`].
    now: AtomicU64,
    /// Lanes that have frames, those that got their first one earliest first. Some may have none any more.
    filled: Mutex<VecDeque<Weak<Lane>>>,
}

impl Default for Shelf {
    fn default() -> Self {
        Shelf::new(MAX_LANE_BYTES)
    }
}

impl Shelf {
    pub fn new(max_bytes: usize) -> Self {
        Shelf { max_bytes, bytes: AtomicUsize::new(0), now: AtomicU64::new(0), filled: Mutex::default() }
    }

    /// Lets go of the frames that were there two ticks ago.
    pub fn tick(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        let filled = std::mem::take(&mut *self.filled.lock());
        let kept: Vec<_> = filled
            .into_iter()
            .filter(|lane| lane.upgrade().is_some_and(|lane| lane.drop_older_than(now.saturating_sub(1))))
            .collect();
        self.filled.lock().extend(kept);
    }

    /// Lets go of whole lanes' frames until there is room for what is kept now.
    fn make_room(&self) {
        while self.bytes.load(Ordering::Relaxed) > self.max_bytes {
            let Some(first) = self.filled.lock().pop_front() else { return };
            if let Some(lane) = first.upgrade() {
                lane.drop_older_than(u64::MAX);
            }
        }
    }
}

/// A reader's hold of a lane.
pub struct LaneReader(Arc<Lane>);

impl Lane {
    pub fn new(view: Arc<View>, shelf: Arc<Shelf>) -> Self {
        let query = query_of(&view);
        let small_query = PageQuery { max_bytes: query.max_bytes.min(SMALL_FRAME_BYTES), ..query.clone() };
        Lane { query, small_query, view, readers: AtomicUsize::new(0), shelf, recent: Mutex::default() }
    }

    /// Whether any frames are left, and the lane stays listed.
    fn drop_older_than(&self, tick: u64) -> bool {
        let mut recent = self.recent.lock();
        while recent.frames.front().is_some_and(|(made, _)| *made < tick) {
            self.drop_oldest(&mut recent);
        }
        recent.is_listed = !recent.frames.is_empty();
        recent.is_listed
    }

    fn drop_oldest(&self, recent: &mut Recent) {
        if let Some((_, oldest)) = recent.frames.pop_front() {
            let bytes = FRAME_BYTES + oldest.bytes.len();
            recent.bytes -= bytes;
            self.shelf.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn drop_all(&self, recent: &mut Recent) {
        while !recent.frames.is_empty() {
            self.drop_oldest(recent);
        }
    }

    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    pub fn query(&self, is_small: bool) -> &PageQuery {
        if is_small { &self.small_query } else { &self.query }
    }

    pub fn join(self: Arc<Self>) -> LaneReader {
        self.readers.fetch_add(1, Ordering::Relaxed);
        LaneReader(self)
    }
}

impl LaneReader {
    pub fn view(&self) -> &View {
        &self.0.view
    }

    pub fn lane(&self) -> &Arc<Lane> {
        &self.0
    }

    /// The frame that begins at `cursor`, if nothing was removed from the topic since it was made: `removed`
    /// counts what has been.
    pub fn frame_after(&self, cursor: u64, removed: u64) -> Option<Frame> {
        let recent = self.0.recent.lock();
        if recent.removed != removed {
            return None;
        }
        recent.frames.iter().rev().map(|(_, frame)| frame).find(|frame| frame.from_seq == cursor).cloned()
    }

    /// Lets others find `frame`, which was made when `removed` records of the topic had been removed.
    pub fn share(&self, frame: &Frame, removed: u64) {
        // A reader that is alone has nobody to share with.
        if self.0.readers.load(Ordering::Relaxed) < 2 || frame.bytes.len() + FRAME_BYTES > MAX_FRAMES_BYTES {
            return;
        }
        let (lane, shelf) = (&self.0, &self.0.shelf);
        let mut recent = lane.recent.lock();
        if recent.removed > removed {
            return;
        }
        if recent.removed < removed {
            lane.drop_all(&mut recent);
            recent.removed = removed;
        }
        if recent.frames.iter().any(|(_, other)| other.from_seq == frame.from_seq) {
            return;
        }
        let bytes = FRAME_BYTES + frame.bytes.len();
        recent.bytes += bytes;
        let all_bytes = shelf.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        recent.frames.push_back((shelf.now.load(Ordering::Relaxed), frame.clone()));
        let was_listed = std::mem::replace(&mut recent.is_listed, true);
        while recent.frames.len() > MAX_FRAMES || recent.bytes > MAX_FRAMES_BYTES {
            lane.drop_oldest(&mut recent);
        }
        drop(recent);
        if !was_listed {
            shelf.filled.lock().push_back(Arc::downgrade(lane));
        }
        if all_bytes > shelf.max_bytes {
            shelf.make_room();
        }
    }
}

impl Drop for LaneReader {
    fn drop(&mut self) {
        if self.0.readers.fetch_sub(1, Ordering::Relaxed) == 2 {
            self.0.drop_all(&mut self.0.recent.lock());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(form: u32) -> Arc<View> {
        View::new(form, 10, 100, Arc::default(), None)
    }

    #[test]
    fn views_differ_in_whatever_decides_about_a_frame() {
        let filter = |json: &str| Some(Arc::new(Filter::parse(json).unwrap()));
        let nodes = || Arc::from(["n".to_owned()]);
        let views = || {
            [
                View::new(1, 10, 100, nodes(), filter("\"a\"")),
                View::new(2, 10, 100, nodes(), filter("\"a\"")),
                View::new(1, 11, 100, nodes(), filter("\"a\"")),
                View::new(1, 10, 101, nodes(), filter("\"a\"")),
                View::new(1, 10, 100, Arc::default(), filter("\"a\"")),
                View::new(1, 10, 100, nodes(), filter("\"b\"")),
                View::new(1, 10, 100, nodes(), None),
            ]
        };
        for (at, one) in views().iter().enumerate() {
            for (other_at, other) in views().iter().enumerate() {
                assert_eq!(one == other, at == other_at, "{one:?} {other:?}");
            }
        }
        assert_eq!(
            View::new(1, 1, 1, Arc::default(), filter(r#" [ "tag", "Eq", "a" ] "#)),
            View::new(1, 1, 1, Arc::default(), filter(r#""a""#)),
            "however it is written"
        );
    }

    fn frame(from_seq: u64, to_seq: u64, bytes: usize) -> Frame {
        Frame { from_seq, to_seq, is_to_head: true, bytes: Bytes::from(vec![b'x'; bytes]) }
    }

    #[test]
    fn a_frame_is_found_by_those_whose_cursor_is_where_it_begins() {
        let lane = Arc::new(Lane::new(view(1), Arc::default()));
        let (one, other) = (lane.clone().join(), lane.join());
        one.share(&frame(0, 3, 10), 0);
        one.share(&frame(3, 4, 10), 0);
        let found = other.frame_after(3, 0).unwrap();
        assert_eq!((found.from_seq, found.to_seq), (3, 4));
        assert!(other.frame_after(1, 0).is_none() && other.frame_after(4, 0).is_none());
    }

    #[test]
    fn no_frame_outlives_a_removal() {
        // C-DEL-05
        let lane = Arc::new(Lane::new(view(1), Arc::default()));
        let (one, other) = (lane.clone().join(), lane.join());
        one.share(&frame(0, 3, 10), 0);
        assert!(other.frame_after(0, 1).is_none());
        one.share(&frame(0, 2, 10), 1);
        assert_eq!(other.frame_after(0, 1).unwrap().to_seq, 2);
        // Made before the removal, and late.
        one.share(&frame(2, 9, 10), 0);
        assert!(other.frame_after(2, 1).is_none() && other.frame_after(0, 0).is_none());
    }

    #[test]
    fn what_is_kept_is_bounded_and_kept_for_others_only() {
        let lane = Arc::new(Lane::new(view(1), Arc::default()));
        let one = lane.clone().join();
        one.share(&frame(0, 1, 10), 0);
        assert!(one.frame_after(0, 0).is_none(), "nobody else is there");
        let other = lane.clone().join();
        (0..100).for_each(|seq| one.share(&frame(seq, seq + 1, 10), 0));
        assert_eq!(lane.recent.lock().frames.len(), MAX_FRAMES);
        (100..120).for_each(|seq| one.share(&frame(seq, seq + 1, MAX_FRAMES_BYTES / 4), 0));
        assert!(lane.recent.lock().bytes <= MAX_FRAMES_BYTES);
        assert!(other.frame_after(119, 0).is_some());
        drop(other);
        assert!(lane.recent.lock().frames.is_empty());
        assert_eq!(lane.shelf.bytes.load(Ordering::Relaxed), 0);
    }

    fn two_readers(shelf: &Arc<Shelf>) -> (LaneReader, LaneReader) {
        let lane = Arc::new(Lane::new(view(1), shelf.clone()));
        (lane.clone().join(), lane.join())
    }

    #[test]
    fn all_lanes_together_keep_so_much() {
        // C-LIMIT-16
        let shelf = Arc::new(Shelf::new(10_000));
        let lanes: Vec<_> = (0..100).map(|_| two_readers(&shelf)).collect();
        for seq in 0..3 {
            for (one, _) in &lanes {
                one.share(&frame(seq, seq + 1, 500), 0);
                assert!(shelf.bytes.load(Ordering::Relaxed) <= 10_000);
            }
        }
        let having = lanes.iter().filter(|(_, other)| other.frame_after(2, 0).is_some()).count();
        assert!((5..20).contains(&having), "the newest are kept: {having}");
        assert!(lanes.last().unwrap().1.frame_after(2, 0).is_some());
        drop(lanes);
        assert_eq!(shelf.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn frames_go_by_age() {
        let shelf = Arc::new(Shelf::default());
        let (one, other) = two_readers(&shelf);
        one.share(&frame(0, 1, 10), 0);
        shelf.tick();
        one.share(&frame(1, 2, 10), 0);
        assert!(other.frame_after(0, 0).is_some());
        shelf.tick();
        assert!(other.frame_after(0, 0).is_none() && other.frame_after(1, 0).is_some());
        shelf.tick();
        assert!(other.frame_after(1, 0).is_none());
        assert_eq!(shelf.bytes.load(Ordering::Relaxed), 0);
        assert!(shelf.filled.lock().is_empty());
        // A topic with a cap loses a record with each that comes.
        for removed in 0..10 {
            one.share(&frame(removed, removed + 1, 10), removed);
        }
        assert_eq!(shelf.filled.lock().len(), 1, "listed once");
        shelf.tick();
        shelf.tick();
        assert!(shelf.filled.lock().is_empty());
        // And again, from the beginning.
        one.share(&frame(20, 21, 10), 9);
        assert!(other.frame_after(20, 9).is_some());
        assert_eq!(shelf.filled.lock().len(), 1);
        shelf.tick();
        shelf.tick();
        assert!(other.frame_after(20, 9).is_none());
    }
}
