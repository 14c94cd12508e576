//! What the whole cluster holds, and how much of it it may.
//!
//! The bounds are settings, but a refusal must be the same at every member: so the leader writes its own
//! into the log, and what counts is what the log said last (contract section 23).

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;

use super::State;
use super::outcome::Refusal;
use crate::codec::{Malformed, Reader, put_varint};

/// Bounds of the whole cluster; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterLimits {
    pub max_topics: u64,
    /// Live bytes of all topics.
    pub max_total_bytes: u64,
    pub max_routers: u64,
}

impl Default for ClusterLimits {
    fn default() -> Self {
        ClusterLimits { max_topics: 100_000, max_total_bytes: 0, max_routers: 10_000 }
    }
}

impl ClusterLimits {
    pub fn encode(&self, out: &mut BytesMut) {
        put_varint(out, self.max_topics);
        put_varint(out, self.max_total_bytes);
        put_varint(out, self.max_routers);
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
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
}

impl Limit {
    pub fn from_number(number: u8) -> Option<Self> {
        let all = [Limit::MaxTopics, Limit::MaxTotalBytes, Limit::MaxRouters];
        all.into_iter().find(|limit| *limit as u8 == number)
    }

    /// The name on the wire: that of the setting.
    pub fn name(self) -> &'static str {
        match self {
            Limit::MaxTopics => "max_topics",
            Limit::MaxTotalBytes => "max_total_bytes",
            Limit::MaxRouters => "max_routers",
        }
    }
}

/// Live records of all topics and the bytes that they count for. Kept by [`super::SharedTopic`], whatever
/// it is that changes a topic.
#[derive(Debug, Default)]
pub struct Totals {
    records: AtomicU64,
    bytes: AtomicU64,
}

impl Totals {
    /// What was there before is now this; both are (records, bytes).
    pub(super) fn replace(&self, before: (u64, u64), now: (u64, u64)) {
        // Wrapping, as a difference may be negative; one task changes topics, so the sum never is.
        if before != now {
            self.records.fetch_add(now.0.wrapping_sub(before.0), Ordering::Relaxed);
            self.bytes.fetch_add(now.1.wrapping_sub(before.1), Ordering::Relaxed);
        }
    }

    pub(super) fn clear(&self) {
        self.records.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }

    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
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

    /// Whether another router may be made (C-LIMIT-02).
    pub(super) fn check_max_routers(&self) -> Result<(), Refusal> {
        let max = self.limits.max_routers;
        if max > 0 && self.routers.shared.len() as u64 >= max {
            return Err(Refusal::OverLimit { limit: Limit::MaxRouters, max });
        }
        Ok(())
    }
}
