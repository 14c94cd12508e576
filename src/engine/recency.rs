//! When each topic was last read here. Kept per member, not replicated.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::Engine;
use crate::state::SharedTopic;

/// Times of the last read, by epoch.
#[derive(Default)]
pub(super) struct Recency {
    last_read_ts_ms: Mutex<HashMap<u64, u64>>,
}

impl Engine {
    /// Notes that `topic` was read now.
    pub fn touch(&self, topic: &SharedTopic) {
        let now_ms = self.inner.node.time().clock().wall_ms();
        let mut times = self.inner.recency.last_read_ts_ms.lock();
        times.insert(topic.epoch, now_ms);
        // Deleted topics leave their times behind; they are swept out once they are the majority.
        if times.len() > 1024 && times.len() > 2 * self.catalog().len() {
            let mut by_age: Vec<(u64, u64)> = times.iter().map(|(epoch, ts)| (*ts, *epoch)).collect();
            by_age.sort_unstable();
            for (_, epoch) in &by_age[..by_age.len() / 2] {
                times.remove(epoch);
            }
        }
    }

    /// When `topic` was last read at this member, Unix milliseconds.
    pub fn last_read_ts_ms(&self, topic: &SharedTopic) -> Option<u64> {
        self.inner.recency.last_read_ts_ms.lock().get(&topic.epoch).copied()
    }
}
