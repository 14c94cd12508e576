//! What the whole cluster holds, and how much of it it may.
//!
//! The bounds are settings, but a refusal must be the same at every member: so the leader writes its own
//! into the log, and what counts is what the log said last (contract section 23).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::BytesMut;

use super::State;
use super::outcome::Refusal;
use crate::codec::{Malformed, Reader, put_varint};
use crate::limits::TOPIC_SHARE_OF_KEYS;

/// Bounds of the whole cluster; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterLimits {
    pub max_topics: u64,
    /// Live bytes of all topics.
    pub max_total_bytes: u64,
    pub max_routers: u64,
    /// Idempotency keys that are remembered in all topics; one of them may have a quarter.
    pub max_idempotency_keys: u64,
}

impl Default for ClusterLimits {
    fn default() -> Self {
        ClusterLimits {
            max_topics: 100_000,
            max_total_bytes: 0,
            max_routers: 10_000,
            max_idempotency_keys: 10_000_000,
        }
    }
}

impl ClusterLimits {
    pub fn encode(&self, out: &mut BytesMut) {
        let ClusterLimits { max_topics, max_total_bytes, max_routers, max_idempotency_keys } = *self;
        for limit in [max_topics, max_total_bytes, max_routers, max_idempotency_keys] {
            put_varint(out, limit);
        }
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let first = Self::decode_without_keys(reader)?;
        Ok(ClusterLimits { max_idempotency_keys: reader.varint()?, ..first })
    }

    /// The form from before idempotency keys were counted.
    pub fn decode_without_keys(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let first = Self::decode_first(reader)?;
        Ok(ClusterLimits { max_routers: reader.varint()?, ..first })
    }

    /// The form from before there were routers.
    pub fn decode_first(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (max_topics, max_total_bytes) = (reader.varint()?, reader.varint()?);
        Ok(ClusterLimits { max_topics, max_total_bytes, ..ClusterLimits::default() })
    }
}

/// Which bound was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    MaxTopics = 0,
    MaxTotalBytes = 1,
    MaxRouters = 2,
    MaxIdempotencyKeys = 3,
    /// No setting, but a bound.
    OriginsPerTopic = 4,
    /// Of all topics; no setting either.
    Origins = 5,
    /// Topics of other clusters in which routers have a position; no setting either.
    Positions = 6,
}

impl Limit {
    pub fn from_number(number: u8) -> Option<Self> {
        let all = [
            Limit::MaxTopics,
            Limit::MaxTotalBytes,
            Limit::MaxRouters,
            Limit::MaxIdempotencyKeys,
            Limit::OriginsPerTopic,
            Limit::Origins,
            Limit::Positions,
        ];
        all.into_iter().find(|limit| *limit as u8 == number)
    }

    /// The name on the wire: that of the setting.
    pub fn name(self) -> &'static str {
        match self {
            Limit::MaxTopics => "max_topics",
            Limit::MaxTotalBytes => "max_total_bytes",
            Limit::MaxRouters => "max_routers",
            Limit::MaxIdempotencyKeys => "max_idempotency_keys",
            Limit::OriginsPerTopic => "origins_per_topic",
            Limit::Origins => "origins",
            Limit::Positions => "positions",
        }
    }
}

/// What a topic holds that is counted for the whole cluster.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    /// Live ones.
    pub records: u64,
    /// What they count for.
    pub bytes: u64,
    /// Idempotency keys that are remembered.
    pub keys: u64,
}

/// What topics know of where their copies come from, which other clusters make grow. Counted where it changes, in
/// `origins.rs`, so that an append has nothing to do with it.
#[derive(Debug, Default)]
pub struct ForeignTotals {
    origins: AtomicUsize,
    gaps: AtomicUsize,
    reported: AtomicUsize,
}

/// By how much they grow.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Foreign {
    pub origins: usize,
    pub gaps: usize,
    /// Stretches that were reported as lost.
    pub reported: usize,
}

impl ForeignTotals {
    pub(super) fn add(&self, more: Foreign) {
        self.origins.fetch_add(more.origins, Ordering::Relaxed);
        self.gaps.fetch_add(more.gaps, Ordering::Relaxed);
        self.reported.fetch_add(more.reported, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, fewer: Foreign) {
        self.origins.fetch_sub(fewer.origins, Ordering::Relaxed);
        self.gaps.fetch_sub(fewer.gaps, Ordering::Relaxed);
        self.reported.fetch_sub(fewer.reported, Ordering::Relaxed);
    }

    fn clear(&self) {
        for total in [&self.origins, &self.gaps, &self.reported] {
            total.store(0, Ordering::Relaxed);
        }
    }

    pub fn origins(&self) -> usize {
        self.origins.load(Ordering::Relaxed)
    }

    pub fn gaps(&self) -> usize {
        self.gaps.load(Ordering::Relaxed)
    }

    pub fn reported(&self) -> usize {
        self.reported.load(Ordering::Relaxed)
    }
}

/// What all topics hold together. Kept by [`super::SharedTopic`], whatever it is that changes a topic.
#[derive(Debug, Default)]
pub struct Totals {
    records: AtomicU64,
    bytes: AtomicU64,
    keys: AtomicU64,
    foreign: Arc<ForeignTotals>,
}

impl Totals {
    pub fn foreign(&self) -> &Arc<ForeignTotals> {
        &self.foreign
    }

    /// What a topic held before is now this.
    pub(super) fn replace(&self, before: Held, now: Held) {
        // Wrapping, as a difference may be negative; one task changes topics, so the sum never is.
        let add = |total: &AtomicU64, before: u64, now: u64| {
            if before != now {
                total.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
            }
        };
        add(&self.records, before.records, now.records);
        add(&self.bytes, before.bytes, now.bytes);
        add(&self.keys, before.keys, now.keys);
    }

    pub(super) fn clear(&self) {
        for total in [&self.records, &self.bytes, &self.keys] {
            total.store(0, Ordering::Relaxed);
        }
        self.foreign.clear();
    }

    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Idempotency keys that are remembered.
    pub fn keys(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }
}

impl State {
    /// Whether so many topics and bytes may be added (C-LIMIT-01, C-LIMIT-04).
    pub(super) fn check_quota(&self, new_topics: u64, new_bytes: u64) -> Result<(), Refusal> {
        let ClusterLimits { max_topics, max_total_bytes, .. } = self.limits;
        let is_over = |now: u64, new: u64, max: u64| new > 0 && max > 0 && now.saturating_add(new) > max;
        if is_over(self.catalog.len() as u64, new_topics, max_topics) {
            return Err(Refusal::OverLimit { limit: Limit::MaxTopics, max: max_topics });
        }
        if is_over(self.catalog.totals().bytes(), new_bytes, max_total_bytes) {
            return Err(Refusal::OverLimit { limit: Limit::MaxTotalBytes, max: max_total_bytes });
        }
        Ok(())
    }

    /// Whether so many idempotency keys may be remembered besides, one of them in a topic that has
    /// `known_in_topic` (C-IDEM-10).
    pub(super) fn check_keys(&self, known_in_topic: u64, new: u64) -> Result<(), Refusal> {
        let max = self.limits.max_idempotency_keys;
        if max == 0 || new == 0 {
            return Ok(());
        }
        let max_in_topic = max.div_ceil(TOPIC_SHARE_OF_KEYS);
        let is_over = |known: u64, new: u64, max: u64| known.saturating_add(new) > max;
        let over = if is_over(self.catalog.totals().keys(), new, max) {
            max
        } else if is_over(known_in_topic, 1, max_in_topic) {
            max_in_topic
        } else {
            return Ok(());
        };
        Err(Refusal::OverLimit { limit: Limit::MaxIdempotencyKeys, max: over })
    }

    /// Whether another router may be made (C-LIMIT-02).
    pub(super) fn check_max_routers(&self) -> Result<(), Refusal> {
        let max = self.limits.max_routers;
        if max > 0 && self.routers.shared.len() as u64 >= max {
            return Err(Refusal::OverLimit { limit: Limit::MaxRouters, max });
        }
        Ok(())
    }
}
