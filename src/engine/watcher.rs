//! One connection that follows topics: which of them has its turn, and what it gets.

use std::sync::Arc;

use tokio::time::Instant;

use super::Engine;
use super::follow::{EncodeFrame, Following, StartPlace, Step};
use super::frame_room::FrameRoom;
use super::hub::{Bell, BellHandle};
use super::lane::View;
use super::priority::effective_priority;
use crate::error::Error;

/// Follows any number of topics, each in a slot. The number is bounded by who follows.
pub struct Watcher {
    engine: Engine,
    bell: Bell,
    encode: EncodeFrame,
    room: Arc<dyn FrameRoom>,
    slots: Vec<Option<Following>>,
    /// Slots in which there may be something to tell, each once.
    ready: Vec<Ready>,
    followed: usize,
    scratch: Vec<u32>,
}

struct Ready {
    slot: u32,
    since: Instant,
}

/// What [`Watcher::next`] returns with.
#[derive(Debug)]
pub enum Next {
    /// The topic in this slot has something to tell; `cursor` is where the reader stands after it.
    Step { slot: u32, topic: Arc<str>, cursor: u64, step: Step },
    /// The bell has rung for another reason.
    Rung,
}

impl Engine {
    /// A connection that follows nothing yet. Its frames have to find `room`.
    pub fn watcher(&self, encode: EncodeFrame, room: Arc<dyn FrameRoom>) -> Watcher {
        Watcher {
            bell: self.inner.hub.bell(),
            engine: self.clone(),
            encode,
            room,
            slots: Vec::new(),
            ready: Vec::new(),
            followed: 0,
            scratch: Vec::new(),
        }
    }
}

impl Watcher {
    /// Follows a topic from now on and returns its slot.
    pub fn follow(&mut self, place: StartPlace, view: &Arc<View>) -> u32 {
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let number = slot as u32;
        self.slots[slot] = Some(Following::new(&self.engine, &self.bell, number, place, view));
        self.followed += 1;
        self.make_ready(number);
        number
    }

    pub fn unfollow(&mut self, slot: u32) {
        if self.slots.get_mut(slot as usize).and_then(Option::take).is_some() {
            self.followed -= 1;
            self.ready.retain(|ready| ready.slot != slot);
        }
    }

    /// How many topics are followed.
    pub fn followed(&self) -> usize {
        self.followed
    }

    pub fn bell(&self) -> BellHandle {
        self.bell.handle()
    }

    fn make_ready(&mut self, slot: u32) {
        if self.ready.iter().all(|ready| ready.slot != slot) {
            self.ready.push(Ready { slot, since: Instant::now() });
        }
    }

    fn look_for_changes(&mut self) {
        let mut changed = std::mem::take(&mut self.scratch);
        self.bell.take_changed(&mut changed);
        for slot in changed.drain(..) {
            if let Some(Some(following)) = self.slots.get(slot as usize) {
                following.listener.rearm();
                self.make_ready(slot);
            }
        }
        self.scratch = changed;
    }

    /// Place in `ready` of the slot whose turn it is: one whose page is being read, as a connection has one at a time, or
    /// the highest effective priority (C-PRIO-03), and of equal ones the one that has waited longest.
    fn first_place(&self) -> usize {
        if self.ready.len() < 2 {
            return 0;
        }
        let is_reading = |ready: &Ready| {
            let following = self.slots.get(ready.slot as usize).and_then(Option::as_ref);
            following.is_some_and(Following::is_reading)
        };
        if let Some(place) = self.ready.iter().position(is_reading) {
            return place;
        }
        let now = Instant::now();
        let rank = |ready: &Ready| {
            let following = self.slots.get(ready.slot as usize).and_then(Option::as_ref);
            following.map_or(i32::MAX, |following| {
                let shared = following.shared();
                let idle_ms = self.engine.unread_ms(shared);
                let waited_ms = now.saturating_duration_since(ready.since).as_millis() as u64;
                effective_priority(&shared.read().config, idle_ms, Some(waited_ms))
            })
        };
        let places = self.ready.iter().enumerate();
        let first = places.max_by_key(|(_, ready)| (rank(ready), std::cmp::Reverse(ready.since)));
        first.map_or(0, |(place, _)| place)
    }

    /// Waits for what comes next. A topic that was deleted is not followed further. May be dropped before it
    /// is done: then nothing is lost. Errors: what was stored cannot be read.
    pub async fn next(&mut self) -> Result<Next, Error> {
        loop {
            self.look_for_changes();
            if self.ready.is_empty() {
                break;
            }
            let place = self.first_place();
            let slot = self.ready[place].slot;
            let Some(Some(following)) = self.slots.get_mut(slot as usize) else {
                self.ready.swap_remove(place);
                continue;
            };
            let Some(step) = following.step(&self.engine, self.encode, &self.room).await? else {
                self.ready.swap_remove(place);
                continue;
            };
            let (topic, cursor) = (following.name().clone(), following.cursor());
            self.ready[place].since = Instant::now();
            if matches!(step, Step::Deleted { .. }) {
                self.unfollow(slot);
            }
            return Ok(Next::Step { slot, topic, cursor, step });
        }
        self.bell.wait().await;
        self.look_for_changes();
        Ok(Next::Rung)
    }
}
