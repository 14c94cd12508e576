//! Which stream is served first (contract section 24).

use super::Engine;
use crate::state::{SharedTopic, TopicConfig};

const MANUAL_MOST: i32 = 1000;
const AUTO_MOST: f64 = 500.0;
const AUTO_HALF_LIFE_MS: f64 = 30_000.0;
const AUTO_ENDS_AFTER_MS: u64 = 300_000;
const AGE_PER_MS: f64 = 0.1;
const AGE_COUNTS_TO_MS: u64 = 10_000;

/// The priority of a topic that was consumed `idle_ms` ago (`None`: never), a delivery of which has waited for
/// `waited_ms` (`None`: none waits).
pub fn effective_priority(config: &TopicConfig, idle_ms: Option<u64>, waited_ms: Option<u64>) -> i32 {
    let manual = config.priority.unwrap_or(0).clamp(-MANUAL_MOST, MANUAL_MOST);
    let is_automatic = config.priority.is_none() && config.auto_priority;
    let auto = match idle_ms {
        Some(idle_ms) if is_automatic && idle_ms < AUTO_ENDS_AFTER_MS => {
            AUTO_MOST * (-(idle_ms as f64) / AUTO_HALF_LIFE_MS).exp2()
        }
        _ => 0.0,
    };
    let age = AGE_PER_MS * waited_ms.unwrap_or(0).min(AGE_COUNTS_TO_MS) as f64;
    (f64::from(manual) + auto + age).round() as i32
}

impl Engine {
    /// Time since `topic` was last consumed at this member.
    pub(super) fn unread_ms(&self, topic: &SharedTopic) -> Option<u64> {
        let now_ms = self.inner.node.time().clock().wall_ms();
        self.last_read_ts_ms(topic).map(|read_ms| now_ms.saturating_sub(read_ms))
    }

    /// The effective priority of a topic with this configuration, now.
    pub fn priority_of(&self, topic: &SharedTopic, config: &TopicConfig) -> i32 {
        effective_priority(config, self.unread_ms(topic), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(priority: Option<i32>, auto_priority: bool) -> TopicConfig {
        TopicConfig { priority, auto_priority, ..TopicConfig::default() }
    }

    #[test]
    fn recency_fades_as_in_the_contract() {
        // C-PRIO-01
        let auto = |idle_ms| effective_priority(&config(None, true), idle_ms, None);
        let table = [(0, 500), (15_000, 354), (30_000, 250), (60_000, 125), (120_000, 31), (300_000, 0)];
        table.into_iter().for_each(|(idle_ms, expected)| assert_eq!(auto(Some(idle_ms)), expected));
        assert_eq!(auto(None), 0);
    }

    #[test]
    fn a_manual_priority_stands_alone_but_for_waiting() {
        for (priority, auto, waited_ms, expected) in [
            (Some(20), true, None, 20),
            (Some(-1000), true, Some(0), -1000),
            (None, false, None, 0),
            (Some(20), true, Some(100), 30),
            (Some(20), true, Some(1_000_000), 1020),
        ] {
            assert_eq!(effective_priority(&config(priority, auto), Some(0), waited_ms), expected);
        }
    }
}
