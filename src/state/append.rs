//! Appending to one topic, which is also what each part of an append to several ends in.

use std::ops::Range;
use std::sync::Arc;

use super::command::{Append, Create};
use super::dedupe::Remembered;
use super::outcome::{Appended, Outcome, Refusal};
use super::retention::fits;
use super::topic_config::TopicConfig;
use super::{Applied, SharedTopic, State};
use crate::codec::Malformed;
use crate::storage::EntryId;

impl State {
    /// Order of checks: contract C-WRITE-15.
    pub(super) fn append(
        &mut self,
        entry: EntryId,
        append: &Append<'_>,
        existing: Option<Arc<SharedTopic>>,
    ) -> Result<Applied, Malformed> {
        let refused = |refusal| Ok(Applied::of(Outcome::Refused(refusal)));
        let mut repeated = None;
        if let (Some(shared), Some(key)) = (&existing, append.idempotency_key) {
            repeated = self.look_up_key(shared, key);
        }
        if let Some(known) = repeated {
            return Ok(Applied::of(Outcome::Appended(Appended::repeat_of(known))));
        }
        let head_seq = existing.as_ref().map_or(0, |shared| shared.read().head_seq);
        if existing.is_none() && append.create == Create::Never {
            return refused(Refusal::TopicNotFound);
        }
        if append.expect_head_seq.is_some_and(|expected| expected != head_seq) {
            return refused(Refusal::HeadMismatch { head_seq });
        }
        let new_records = self.new_records();
        let over_caps = over_caps(append, existing.as_ref(), new_records);
        let over_quota = || self.check_quota(existing.is_none() as u64, new_records.1).err();
        let over_keys = || {
            self.check_keys(
                existing.as_deref().map_or(0, key_count),
                is_keyed(append, existing.as_ref()) as u64,
            )
            .err()
        };
        if let Some(refusal) = over_caps.or_else(over_quota).or_else(over_keys) {
            return refused(refusal);
        }
        let (shared, created) = match (existing, &append.create) {
            (Some(shared), _) => (shared, false),
            (None, Create::With(config)) => (self.create(append.topic, config.clone()), true),
            (None, Create::Never) => return refused(Refusal::TopicNotFound),
        };
        let all = 0..self.sizes_bytes.len();
        let appended = self.append_records(&shared, entry, all, append.idempotency_key)?;
        Ok(Applied::touching(Outcome::Appended(Appended { created, ..appended }), shared))
    }

    /// The append that `key` stands for in a topic, if it is remembered.
    pub(super) fn look_up_key(&mut self, shared: &Arc<SharedTopic>, key: &str) -> Option<Remembered> {
        // Looking a key up forgets old ones, which is a change whatever becomes of the write.
        let mut topic = shared.write();
        let due_before = topic.due_ms();
        let remembered = topic.remembered(key, self.time_ms);
        self.due.update(shared, due_before, topic.due_ms());
        self.dirty_topics.insert(shared.epoch, shared.clone());
        remembered
    }

    /// Appends those of the entry's records to a topic that are at `positions`; the oldest ones then go.
    pub(super) fn append_records(
        &mut self,
        shared: &Arc<SharedTopic>,
        entry: EntryId,
        positions: Range<usize>,
        key: Option<&str>,
    ) -> Result<Appended, Malformed> {
        let mut topic = shared.write();
        let due_before = topic.due_ms();
        let (first_position, sizes_bytes) = (positions.start as u32, &self.sizes_bytes[positions]);
        let (appended, run_count) =
            topic.append(entry, first_position, self.time_ms, sizes_bytes, key, &mut self.freed);
        self.live.add(entry.index, run_count);
        topic.keep_within_caps(&mut self.freed)?;
        self.due.update(shared, due_before, topic.due_ms());
        self.dirty_topics.insert(shared.epoch, shared.clone());
        Ok(appended)
    }
}

/// Idempotency keys that a topic remembers.
pub(super) fn key_count(shared: &SharedTopic) -> u64 {
    shared.read().key_count()
}

/// Whether a write leaves a key behind that has to be remembered.
pub(super) fn is_keyed(append: &Append<'_>, existing: Option<&Arc<SharedTopic>>) -> bool {
    let window_ms = match (existing, &append.create) {
        (Some(shared), _) => shared.read().config.idempotency_window_ms,
        (None, Create::With(config)) => config.idempotency_window_ms,
        (None, Create::Never) => 0,
    };
    append.idempotency_key.is_some() && window_ms > 0
}

/// What a topic that refuses what is too much says to a write (C-WRITE-09, C-WRITE-10).
pub(super) fn over_caps(
    append: &Append<'_>,
    existing: Option<&Arc<SharedTopic>>,
    (count, bytes): (u64, u64),
) -> Option<Refusal> {
    let above_caps = |config: &TopicConfig| {
        let TopicConfig { cap_records, cap_bytes, .. } = *config;
        (!fits(config, count, bytes)).then_some(Refusal::AboveCaps { cap_records, cap_bytes })
    };
    let topic = match (existing, &append.create) {
        (Some(shared), _) => shared.read(),
        (None, Create::With(config)) => return above_caps(config),
        (None, Create::Never) => return None,
    };
    let TopicConfig { cap_records, cap_bytes, .. } = topic.config;
    let (head_seq, earliest_seq) = (topic.head_seq, topic.earliest_seq);
    let is_full = !fits(&topic.config, topic.count + count, topic.bytes + bytes);
    let full = || is_full.then_some(Refusal::TopicFull { cap_records, cap_bytes, head_seq, earliest_seq });
    above_caps(&topic.config).or_else(full)
}
