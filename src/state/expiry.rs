//! When something expires, a record or an idempotency key: the topics in order of that time, and the command that takes it
//! away.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::catalog::SharedTopic;
use super::command::Command;
use super::outcome::Outcome;
use super::{Applied, MissingBlock, State};
use crate::codec::Malformed;
use crate::limits::{MAX_KEYS_FORGOTTEN_PER_APPEND, MAX_KEYS_FORGOTTEN_PER_EXPIRY, MAX_TOPICS_PER_EXPIRY};

/// Topics by when something in them is to be taken away. Part of the state: which topics one command expires depends
/// on the order.
#[derive(Default)]
pub(super) struct Due(BTreeMap<(u64, u64), Arc<SharedTopic>>);

impl Due {
    /// Notes when `topic` is due now; it was noted for `before`.
    pub fn update(&mut self, shared: &Arc<SharedTopic>, before: Option<u64>, now: Option<u64>) {
        if before == now {
            return;
        }
        if let Some(due_ms) = before {
            self.0.remove(&(due_ms, shared.epoch));
        }
        if let Some(due_ms) = now {
            self.0.insert((due_ms, shared.epoch), shared.clone());
        }
    }

    /// When the first topic is due.
    pub fn first_ms(&self) -> Option<u64> {
        self.0.first_key_value().map(|((due_ms, _), _)| *due_ms)
    }

    /// The first topics that are due at `now_ms`.
    pub fn at(&self, now_ms: u64, most: usize) -> Vec<Arc<SharedTopic>> {
        let due = self.0.range(..=(now_ms, u64::MAX)).take(most);
        due.map(|(_, shared)| shared.clone()).collect()
    }
}

impl State {
    /// The blocks that retention needs to apply `command`, which is for `target`, at `now_ms`.
    pub(super) fn missing_blocks(
        &self,
        command: &Command<'_>,
        target: Option<&Arc<SharedTopic>>,
        now_ms: u64,
    ) -> Vec<MissingBlock> {
        let missing = |shared: &Arc<SharedTopic>, new_records, new_config| {
            let first_seq = shared.read().missing_block(now_ms, new_records, new_config)?;
            Some(MissingBlock { topic: shared.clone(), first_seq })
        };
        let of_target = match command {
            Command::Append(_) => target.and_then(|shared| missing(shared, self.new_records(), None)),
            Command::PutTopic { config, .. } => {
                target.and_then(|shared| missing(shared, (0, 0), Some(config)))
            }
            Command::DeleteTopic { .. } | Command::DeleteRecords(_) | Command::PutRouter(_) => {
                target.and_then(|shared| missing(shared, (0, 0), None))
            }
            Command::Expire => {
                let due = self.due.at(now_ms, MAX_TOPICS_PER_EXPIRY);
                return due.iter().filter_map(|shared| missing(shared, (0, 0), None)).collect();
            }
            Command::AppendMany(parts) => {
                let parts = self.positions(parts).filter_map(|(part, positions)| {
                    let shared = self.catalog.get(part.append.topic)?;
                    missing(&shared, self.records_at(positions), None)
                });
                return parts.collect();
            }
            // Copies have theirs planned.
            Command::Route(_) | Command::Copy(_) => None,
            Command::SetLimits(_)
            | Command::OpenSession
            | Command::DeleteRouter { .. }
            | Command::PauseRouter { .. }
            | Command::SkipRecord { .. }
            | Command::SealToken(_)
            | Command::SetCluster(_) => None,
        };
        of_target.into_iter().collect()
    }

    /// Takes what is expired in the topics that have been due for longest.
    pub(super) fn expire(&mut self) -> Result<Applied, Malformed> {
        let due = self.due.at(self.time_ms, MAX_TOPICS_PER_EXPIRY);
        let mut most_keys = MAX_KEYS_FORGOTTEN_PER_EXPIRY;
        for shared in &due {
            most_keys -= self.expire_in(shared, most_keys)?;
        }
        Ok(Applied::of(Outcome::Expired { topic_count: due.len() as u64 }))
    }

    /// Takes what is expired by now.
    pub(super) fn expire_topic(&mut self, shared: &Arc<SharedTopic>) -> Result<(), Malformed> {
        self.expire_in(shared, MAX_KEYS_FORGOTTEN_PER_APPEND).map(drop)
    }

    /// Takes what is expired by now; of its keys at most so many. Says how many keys it was.
    fn expire_in(&mut self, shared: &Arc<SharedTopic>, most_keys: u64) -> Result<u64, Malformed> {
        let due_before = shared.read().due_ms();
        if due_before.is_none_or(|due_ms| due_ms > self.time_ms) {
            return Ok(0);
        }
        let mut topic = shared.write();
        topic.expire(self.time_ms, &mut self.freed)?;
        let forgotten = topic.forget_keys(self.time_ms, most_keys);
        self.due.update(shared, due_before, topic.due_ms());
        self.dirty_topics.insert(shared.epoch, shared.clone());
        Ok(forgotten)
    }
}
