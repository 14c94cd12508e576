//! An append to several topics as one command: all of it happens, or nothing (contract section 8.3).
//!
//! Two phases keep that simple: first everything that could refuse is asked of every part, in the order of
//! C-WRITE-15, and nothing is changed; then everything is done, and nothing can refuse any more. A topic
//! stands in one part only, so no part changes what another was checked against.

use std::ops::Range;
use std::sync::Arc;

use super::append::{is_keyed, key_count, over_caps};
use super::command::{AppendPart, Create};
use super::outcome::{Appended, Outcome, Refusal};
use super::{Applied, SharedTopic, State};
use crate::codec::Malformed;
use crate::storage::EntryId;

/// What the parts come out as, if not as appends.
type Stopped = Outcome;

impl State {
    /// Each part with the positions of its records: those of the first part, then those of the second, ...
    pub(super) fn positions<'a, 'b>(
        &self,
        parts: &'b [AppendPart<'a>],
    ) -> impl Iterator<Item = (&'b AppendPart<'a>, Range<usize>)> {
        parts.iter().scan(0, |start, part| {
            let positions = *start..*start + part.record_count as usize;
            *start = positions.end;
            Some((part, positions))
        })
    }

    pub(super) fn append_many(
        &mut self,
        entry: EntryId,
        parts: &[AppendPart<'_>],
    ) -> Result<Applied, Malformed> {
        let topics: Vec<Option<Arc<SharedTopic>>> =
            parts.iter().map(|part| self.catalog.get(part.append.topic)).collect();
        topics.iter().flatten().try_for_each(|shared| self.expire_topic(shared))?;
        match self.check_parts(parts, &topics) {
            Err(outcome) => Ok(Applied::of(outcome)),
            Ok(()) => self.append_parts(entry, parts, topics),
        }
    }

    fn check_parts(
        &mut self,
        parts: &[AppendPart<'_>],
        topics: &[Option<Arc<SharedTopic>>],
    ) -> Result<(), Stopped> {
        let refused = |at: usize, refusal| Outcome::PartRefused { part: at as u64, refusal };
        let is_absent = |at: &usize| topics[*at].is_none() && parts[*at].append.create == Create::Never;
        if let Some(at) = (0..parts.len()).find(is_absent) {
            return Err(refused(at, Refusal::TopicNotFound));
        }
        self.find_repeats(parts, topics)?;
        for (at, (part, topic)) in parts.iter().zip(topics).enumerate() {
            let head_seq = topic.as_ref().map_or(0, |shared| shared.read().head_seq);
            if part.append.expect_head_seq.is_some_and(|expected| expected != head_seq) {
                return Err(refused(at, Refusal::HeadMismatch { head_seq }));
            }
        }
        for (at, ((part, positions), topic)) in self.positions(parts).zip(topics).enumerate() {
            let new_records = self.records_at(positions);
            if let Some(refusal) = over_caps(&part.append, topic.as_ref(), new_records) {
                return Err(refused(at, refusal));
            }
        }
        let new_topics = topics.iter().filter(|topic| topic.is_none()).count() as u64;
        self.check_quota(new_topics, self.new_records().1).map_err(|refusal| {
            // The first part that would be the one too many alone is not worth finding out.
            let at = topics.iter().position(Option::is_none).unwrap_or(0);
            refused(at, refusal)
        })?;
        let keyed = || {
            parts
                .iter()
                .zip(topics)
                .enumerate()
                .filter(|(_, (part, topic))| is_keyed(&part.append, topic.as_ref()))
        };
        let new_keys = keyed().count() as u64;
        for (at, (_, topic)) in keyed() {
            let known = topic.as_deref().map_or(0, key_count);
            self.check_keys(known, new_keys).map_err(|refusal| refused(at, refusal))?;
        }
        Ok(())
    }

    /// C-APPEND-06: all keys known is a repeat, some of them is a conflict.
    fn find_repeats(
        &mut self,
        parts: &[AppendPart<'_>],
        topics: &[Option<Arc<SharedTopic>>],
    ) -> Result<(), Stopped> {
        let mut known = Vec::new();
        let mut known_parts = Vec::new();
        for (at, (part, topic)) in parts.iter().zip(topics).enumerate() {
            let (Some(shared), Some(key)) = (topic, part.append.idempotency_key) else { continue };
            if let Some(remembered) = self.look_up_key(shared, key) {
                known.push(Appended::repeat_of(remembered));
                known_parts.push(at as u64);
            }
        }
        match known.len() {
            0 => Ok(()),
            count if count == parts.len() => Err(Outcome::AppendedMany(known)),
            _ => Err(Outcome::KeysConflict { parts: known_parts }),
        }
    }

    fn append_parts(
        &mut self,
        entry: EntryId,
        parts: &[AppendPart<'_>],
        topics: Vec<Option<Arc<SharedTopic>>>,
    ) -> Result<Applied, Malformed> {
        let (mut appended, mut touched) = (Vec::new(), Vec::new());
        let positions: Vec<Range<usize>> = self.positions(parts).map(|(_, positions)| positions).collect();
        for ((part, topic), positions) in parts.iter().zip(topics).zip(positions) {
            let (shared, created) = match (topic, &part.append.create) {
                (Some(shared), _) => (shared, false),
                (None, Create::With(config)) => (self.create(part.append.topic, config.clone()), true),
                (None, Create::Never) => unreachable!("refused when the parts were checked"),
            };
            let one = self.append_records(&shared, entry, positions, part.append.idempotency_key)?;
            appended.push(Appended { created, ..one });
            touched.push(shared);
        }
        let last = touched.pop();
        Ok(Applied { outcome: Outcome::AppendedMany(appended), touched: last, also_touched: touched })
    }
}
