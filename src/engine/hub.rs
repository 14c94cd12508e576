//! Who waits for what comes next in a topic.
//!
//! Every connection that waits has one [`Bell`], however many topics it follows; a [`Listener`] is its place among
//! those who follow one topic. Applying tells the hub which topics changed; the hub notes that in each bell and
//! wakes the connection, once, however much has changed before it gets its turn. So a connection costs no task and no
//! timer per topic, and what cannot be sent yet waits in the topic. While nobody listens, a batch of
//! applied entries costs one look at a counter.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::changes::Changes;
use super::lane::{Lane, LaneReader, Shelf, View};
use crate::raft::ApplyObserver;
use crate::state::SharedTopic;

/// A frame is shared for two to three of these.
const FRAME_TICK: Duration = Duration::from_secs(1);

/// Wakes readers when topics change.
#[derive(Default)]
pub struct Hub {
    changes: Changes,
    listener_count: AtomicUsize,
    /// By epoch, which names a topic instance.
    feeds: Mutex<HashMap<u64, Feed>>,
    /// Those who follow all topics whose names start in some way.
    prefixes: Mutex<Vec<(Arc<str>, Arc<Ear>)>>,
    next_bell: AtomicU64,
    bells: Mutex<HashMap<u64, Weak<Inner>>>,
    shelf: Arc<Shelf>,
}

/// Those who follow one topic.
#[derive(Default)]
struct Feed {
    /// Each knows its place.
    ears: Vec<Arc<Ear>>,
    /// Each as long as somebody has a place in it: views may be long, and only those of open streams are counted.
    lanes: HashMap<Arc<View>, SharedLane>,
}

struct SharedLane {
    lane: Arc<Lane>,
    places: usize,
}

impl Feed {
    fn add(&mut self, ear: &Arc<Ear>) {
        ear.place.store(self.ears.len(), Ordering::Relaxed);
        self.ears.push(ear.clone());
    }

    fn remove(&mut self, ear: &Arc<Ear>) {
        let place = ear.place.load(Ordering::Relaxed);
        if self.ears.get(place).is_some_and(|known| Arc::ptr_eq(known, ear)) {
            self.ears.swap_remove(place);
            if let Some(moved) = self.ears.get(place) {
                moved.place.store(place, Ordering::Relaxed);
            }
        }
    }

    fn join(&mut self, view: &Arc<View>, shelf: &Arc<Shelf>) -> LaneReader {
        let new = || SharedLane { lane: Arc::new(Lane::new(view.clone(), shelf.clone())), places: 0 };
        let shared = self.lanes.entry(view.clone()).or_insert_with(new);
        shared.places += 1;
        shared.lane.clone().join()
    }

    fn leave(&mut self, lane: &Arc<Lane>) {
        let Some(shared) = self.lanes.get_mut(lane.view()) else { return };
        if !Arc::ptr_eq(&shared.lane, lane) {
            return;
        }
        shared.places -= 1;
        if shared.places == 0 {
            self.lanes.remove(lane.view());
        }
    }
}

/// What wakes one connection, and tells it which of its topics changed.
pub struct Bell {
    inner: Arc<Inner>,
    hub: Arc<Hub>,
    id: u64,
}

#[derive(Default)]
struct Inner {
    /// Slots that changed, each at most once.
    changed: Mutex<Vec<u32>>,
    notify: Notify,
}

/// A way to wake a connection from elsewhere; it may be gone.
#[derive(Clone, Default)]
pub struct BellHandle(Weak<Inner>);

impl BellHandle {
    pub fn ring(&self) {
        if let Some(inner) = self.0.upgrade() {
            inner.notify.notify_one();
        }
    }
}

struct Ear {
    inner: Arc<Inner>,
    slot: u32,
    is_noted: AtomicBool,
    /// Where it is in its feed; changed under the lock of that.
    place: AtomicUsize,
}

impl Ear {
    fn note(&self) {
        if !self.is_noted.swap(true, Ordering::AcqRel) {
            self.inner.changed.lock().push(self.slot);
            self.inner.notify.notify_one();
        }
    }
}

/// A place among those who follow one topic, or all with a prefix; dropping it gives it up.
pub struct Listener {
    hub: Arc<Hub>,
    /// The topic instance; `None`: all with a prefix.
    epoch: Option<u64>,
    ear: Arc<Ear>,
}

/// A place among those who share frames of one topic; dropping it gives it up.
pub struct LanePlace {
    hub: Arc<Hub>,
    epoch: u64,
    reader: LaneReader,
}

impl Deref for LanePlace {
    type Target = LaneReader;

    fn deref(&self) -> &LaneReader {
        &self.reader
    }
}

impl Drop for LanePlace {
    fn drop(&mut self) {
        if let Some(feed) = self.hub.feeds.lock().get_mut(&self.epoch) {
            feed.leave(self.reader.lane());
        }
    }
}

impl Listener {
    /// Wants to be told of the next change. Call this first and read second, and nothing is missed.
    pub fn rearm(&self) {
        self.ear.is_noted.store(false, Ordering::Release);
    }
}

impl Bell {
    /// Returns once it has rung since the last time.
    pub async fn wait(&self) {
        self.inner.notify.notified().await;
    }

    /// Moves the slots that changed to the end of `slots`. Their listeners are to be rearmed.
    pub fn take_changed(&self, slots: &mut Vec<u32>) {
        slots.append(&mut self.inner.changed.lock());
    }

    /// Forgets which slots changed, for who has only one.
    pub fn forget_changed(&self) {
        self.inner.changed.lock().clear();
    }

    pub fn handle(&self) -> BellHandle {
        BellHandle(Arc::downgrade(&self.inner))
    }

    /// Listens to the topic instance `epoch` as `slot` of this bell.
    pub fn listen(&self, epoch: u64, slot: u32) -> Listener {
        let (is_noted, place) = (AtomicBool::new(false), AtomicUsize::new(0));
        let ear = Arc::new(Ear { inner: self.inner.clone(), slot, is_noted, place });
        self.hub.feeds.lock().entry(epoch).or_default().add(&ear);
        self.hub.listener_count.fetch_add(1, Ordering::SeqCst);
        Listener { hub: self.hub.clone(), epoch: Some(epoch), ear }
    }

    /// Listens to all topics whose names start with `prefix`, also those to come, as `slot` of this bell.
    pub fn listen_to_prefix(&self, prefix: &str, slot: u32) -> Listener {
        let (is_noted, place) = (AtomicBool::new(false), AtomicUsize::new(0));
        let ear = Arc::new(Ear { inner: self.inner.clone(), slot, is_noted, place });
        self.hub.prefixes.lock().push((prefix.into(), ear.clone()));
        self.hub.listener_count.fetch_add(1, Ordering::SeqCst);
        Listener { hub: self.hub.clone(), epoch: None, ear }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.hub.bells.lock().remove(&self.id);
    }
}

impl Hub {
    pub fn bell(self: &Arc<Self>) -> Bell {
        let inner = Arc::new(Inner::default());
        let id = self.next_bell.fetch_add(1, Ordering::Relaxed);
        self.bells.lock().insert(id, Arc::downgrade(&inner));
        Bell { inner, hub: self.clone(), id }
    }

    /// Which topics changed.
    pub(super) fn changes(&self) -> &Changes {
        &self.changes
    }

    fn forget(&self, epoch: u64, ear: &Arc<Ear>) {
        let mut feeds = self.feeds.lock();
        if let Some(feed) = feeds.get_mut(&epoch) {
            feed.remove(ear);
            if feed.ears.is_empty() {
                feeds.remove(&epoch);
            }
        }
    }

    /// Rings every bell, whatever it waits for.
    pub fn wake_all(&self) {
        let bells: Vec<Weak<Inner>> = self.bells.lock().values().cloned().collect();
        bells.into_iter().for_each(|bell| BellHandle(bell).ring());
    }

    /// Lets go of shared frames that are old, again and again.
    pub async fn age_frames(self: Arc<Self>) {
        loop {
            tokio::time::sleep(FRAME_TICK).await;
            self.shelf.tick();
        }
    }

    /// The frames that those share who follow the topic instance `epoch` with the same `view`. To be called by
    /// who listens to it, and dropped before the listener.
    pub fn lane(self: &Arc<Self>, epoch: u64, view: &Arc<View>) -> LanePlace {
        let reader = self.feeds.lock().entry(epoch).or_default().join(view, &self.shelf);
        LanePlace { hub: self.clone(), epoch, reader }
    }
}

impl ApplyObserver for Hub {
    fn topics_changed(&self, topics: &[Arc<SharedTopic>]) {
        // Before anybody is woken who asks for them.
        self.changes.note(topics);
        if self.listener_count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let feeds = self.feeds.lock();
        for topic in topics {
            if let Some(feed) = feeds.get(&topic.epoch) {
                feed.ears.iter().for_each(|ear| ear.note());
            }
        }
        drop(feeds);
        for (prefix, ear) in &*self.prefixes.lock() {
            // One that was told, and has not looked since, need not be found again.
            if !ear.is_noted.load(Ordering::Acquire)
                && topics.iter().any(|topic| topic.name.starts_with(&**prefix))
            {
                ear.note();
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        match self.epoch {
            Some(epoch) => self.hub.forget(epoch, &self.ear),
            None => self.hub.prefixes.lock().retain(|(_, ear)| !Arc::ptr_eq(ear, &self.ear)),
        }
        self.hub.listener_count.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(bell: &Bell) -> Vec<u32> {
        let mut slots = Vec::new();
        bell.take_changed(&mut slots);
        slots
    }

    #[tokio::test]
    async fn a_bell_tells_each_changed_slot_once_until_it_is_rearmed() {
        let hub = Arc::new(Hub::default());
        let bell = hub.bell();
        let listeners = [bell.listen(7, 0), bell.listen(8, 1), bell.listen(7, 2)];
        let note =
            |epoch| hub.feeds.lock().get(&epoch).map(|feed| feed.ears.iter().for_each(|ear| ear.note()));
        note(7);
        note(7);
        bell.wait().await;
        assert_eq!(changed(&bell), [0, 2]);
        note(7);
        assert_eq!(changed(&bell), Vec::<u32>::new());
        listeners[2].rearm();
        note(7);
        note(8);
        bell.wait().await;
        assert_eq!(changed(&bell), [2, 1]);
        drop(listeners);
        assert!(hub.feeds.lock().is_empty());
        assert_eq!(hub.listener_count.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn each_follower_and_each_view_is_found_however_many_there_are() {
        let hub = Arc::new(Hub::default());
        let bell = hub.bell();
        let mut listeners: Vec<Listener> = (0..1000).map(|slot| bell.listen(7, slot)).collect();
        let views: Vec<Arc<View>> =
            (0..1000).map(|form| View::new(form, 1, 1, Arc::default(), None)).collect();
        let mut lanes: Vec<LanePlace> = views.iter().map(|view| hub.lane(7, view)).collect();
        let same = View::new(500, 1, 1, Arc::default(), None);
        assert!(Arc::ptr_eq(hub.lane(7, &same).lane(), lanes[500].lane()));
        let known = || hub.feeds.lock().get(&7).map_or(0, |feed| feed.lanes.len());
        assert_eq!(known(), 1000);
        lanes.truncate(10);
        assert_eq!(known(), 10, "views of streams that ended are forgotten");
        drop(lanes);
        assert_eq!(known(), 0);
        // In an order in which others are moved.
        for at in [999, 0, 500, 3, 2, 1] {
            drop(listeners.swap_remove(at.min(listeners.len() - 1)));
        }
        let mut kept: Vec<u32> = listeners.iter().map(|listener| listener.ear.slot).collect();
        hub.feeds.lock()[&7].ears.iter().for_each(|ear| ear.note());
        let mut told = changed(&bell);
        told.sort_unstable();
        kept.sort_unstable();
        assert_eq!(told, kept);
        drop(listeners);
        assert!(hub.feeds.lock().is_empty());
    }

    #[tokio::test]
    async fn all_bells_ring_at_the_end_and_are_forgotten_when_dropped() {
        let hub = Arc::new(Hub::default());
        let (one, other) = (hub.bell(), hub.bell());
        hub.wake_all();
        one.wait().await;
        other.wait().await;
        let handle = other.handle();
        drop((one, other));
        handle.ring();
        assert!(hub.bells.lock().is_empty());
    }
}
