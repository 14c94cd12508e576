//! Who waits for what comes next in a topic.
//!
//! Applying tells the hub which topics changed; the hub wakes those who wait for them. While nobody waits,
//! that costs one look at a counter per batch of entries.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::raft::ApplyObserver;
use crate::state::SharedTopic;

/// Wakes readers when topics change.
#[derive(Default)]
pub struct Hub {
    waiter_count: AtomicUsize,
    /// By epoch, which names a topic instance.
    bells: Mutex<HashMap<u64, Bell>>,
}

struct Bell {
    notify: Arc<Notify>,
    listeners: usize,
}

/// A place among those who wait for one topic.
pub(super) struct Listener {
    hub: Arc<Hub>,
    epoch: u64,
    pub notify: Arc<Notify>,
}

impl Hub {
    pub(super) fn listen(self: &Arc<Self>, epoch: u64) -> Listener {
        self.waiter_count.fetch_add(1, Ordering::SeqCst);
        let mut bells = self.bells.lock();
        let bell = bells.entry(epoch).or_insert_with(|| Bell { notify: Arc::default(), listeners: 0 });
        bell.listeners += 1;
        Listener { hub: self.clone(), epoch, notify: bell.notify.clone() }
    }

    /// Wakes everybody, whatever they wait for.
    pub fn wake_all(&self) {
        self.bells.lock().values().for_each(|bell| bell.notify.notify_waiters());
    }
}

impl ApplyObserver for Hub {
    fn topics_changed(&self, topics: &[Arc<SharedTopic>]) {
        if self.waiter_count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let bells = self.bells.lock();
        for topic in topics {
            if let Some(bell) = bells.get(&topic.epoch) {
                bell.notify.notify_waiters();
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut bells = self.hub.bells.lock();
        if let Some(bell) = bells.get_mut(&self.epoch) {
            bell.listeners -= 1;
            if bell.listeners == 0 {
                bells.remove(&self.epoch);
            }
        }
        self.hub.waiter_count.fetch_sub(1, Ordering::SeqCst);
    }
}
