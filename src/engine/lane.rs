//! Frames that many readers of one topic share.
//!
//! A hundred watchers of a topic want the same records in the same form. The first one that gets its turn reads and
//! writes them down, the others find the bytes here: a frame that begins at their cursor and that was made
//! for the same [`View`]. Who is behind finds none, and reads pages of the topic like anybody else, until
//! its cursor meets a frame; so there is no hand-over in which a record could be lost or repeated.
//!
//! A frame is only used while no record of the topic was removed since: what is deleted is gone for every
//! reader.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::follow::query_of;
use super::page::PageQuery;
use crate::filter::Filter;

/// Frames that one lane keeps, and their bytes.
const MAX_FRAMES: usize = 32;
const MAX_FRAMES_BYTES: usize = 1 << 20;

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
    pub drop_nodes: Vec<String>,
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
        drop_nodes: Vec<String>,
        filter: Option<Arc<Filter>>,
    ) -> Arc<View> {
        let mut hasher = DefaultHasher::new();
        (form, limit, max_bytes, &drop_nodes, &filter).hash(&mut hasher);
        Arc::new(View { digest: hasher.finish(), form, limit, max_bytes, drop_nodes, filter })
    }
}

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
    /// How its frames are read.
    query: PageQuery,
    readers: AtomicUsize,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// Records that the topic had lost when they were made.
    removed: u64,
}

/// A reader's hold of a lane.
pub struct LaneReader(Arc<Lane>);

impl Lane {
    pub fn new(view: Arc<View>) -> Self {
        Lane { query: query_of(&view), view, readers: AtomicUsize::new(0), recent: Mutex::default() }
    }

    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    pub fn query(&self) -> &PageQuery {
        &self.query
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
        recent.frames.iter().rev().find(|frame| frame.from_seq == cursor).cloned()
    }

    /// Lets others find `frame`, which was made when `removed` records of the topic had been removed.
    pub fn share(&self, frame: &Frame, removed: u64) {
        // A reader that is alone has nobody to share with.
        if self.0.readers.load(Ordering::Relaxed) < 2 || frame.bytes.len() > MAX_FRAMES_BYTES {
            return;
        }
        let mut recent = self.0.recent.lock();
        if recent.removed > removed {
            return;
        }
        if recent.removed < removed {
            *recent = Recent { removed, ..Recent::default() };
        }
        if recent.frames.iter().any(|other| other.from_seq == frame.from_seq) {
            return;
        }
        recent.bytes += frame.bytes.len();
        recent.frames.push_back(frame.clone());
        while recent.frames.len() > MAX_FRAMES || recent.bytes > MAX_FRAMES_BYTES {
            match recent.frames.pop_front() {
                Some(oldest) => recent.bytes -= oldest.bytes.len(),
                None => break,
            }
        }
    }
}

impl Drop for LaneReader {
    fn drop(&mut self) {
        if self.0.readers.fetch_sub(1, Ordering::Relaxed) == 2 {
            *self.0.recent.lock() = Recent::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(form: u32) -> Arc<View> {
        View::new(form, 10, 100, Vec::new(), None)
    }

    #[test]
    fn views_differ_in_whatever_decides_about_a_frame() {
        let filter = |json: &str| Some(Arc::new(Filter::parse(json).unwrap()));
        let nodes = || vec!["n".to_owned()];
        let views = || {
            [
                View::new(1, 10, 100, nodes(), filter("\"a\"")),
                View::new(2, 10, 100, nodes(), filter("\"a\"")),
                View::new(1, 11, 100, nodes(), filter("\"a\"")),
                View::new(1, 10, 101, nodes(), filter("\"a\"")),
                View::new(1, 10, 100, Vec::new(), filter("\"a\"")),
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
            View::new(1, 1, 1, Vec::new(), filter(r#" [ "tag", "Eq", "a" ] "#)),
            View::new(1, 1, 1, Vec::new(), filter(r#""a""#)),
            "however it is written"
        );
    }

    fn frame(from_seq: u64, to_seq: u64, bytes: usize) -> Frame {
        Frame { from_seq, to_seq, is_to_head: true, bytes: Bytes::from(vec![b'x'; bytes]) }
    }

    #[test]
    fn a_frame_is_found_by_those_whose_cursor_is_where_it_begins() {
        let lane = Arc::new(Lane::new(view(1)));
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
        let lane = Arc::new(Lane::new(view(1)));
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
        let lane = Arc::new(Lane::new(view(1)));
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
    }
}
