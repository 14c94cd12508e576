//! What there is room for in the whole cluster, and whether a destination takes anything of what is offered to it.
//!
//! What is refused when it is applied lies in the log of every member all the same, and a mirror tries again for
//! ever. So it looks first, as far as this member has applied, by the rules that then hold (`intake.rs`). What is refused
//! for want of something not applied yet is tried again too.

use std::sync::Arc;

use super::catalog::Catalog;
use super::intake::{Offer, Planner};
use super::origins::Instance;
use super::outcome::Refusal;
use super::quota::{ClusterLimits, Limit};
use super::routers::Routers;
use super::run::Overlay;
use super::topic::Topic;
use crate::limits::{MAX_ORIGINS, MAX_POSITIONS, RECORD_FRAMING_BYTES};
use crate::storage::EntryId;

/// What there is room for in the whole cluster.
#[derive(Debug, Clone, Copy)]
pub struct ClusterRoom {
    pub(super) limits: ClusterLimits,
    /// What is left of each.
    pub(super) bytes: u64,
    pub(super) topics: u64,
    pub(super) origins: usize,
    pub(super) positions: usize,
}

/// A record that is offered to a destination, which does not have it yet.
#[derive(Debug, Clone, Copy)]
pub struct OfferedRecord<'a> {
    pub instance: &'a Instance,
    pub origin_seq: u64,
    /// What it counts for.
    pub size_bytes: u32,
}

impl ClusterRoom {
    pub fn of(limits: ClusterLimits, catalog: &Catalog, routers: &Routers) -> Self {
        let left = |max: u64, held: u64| if max == 0 { u64::MAX } else { max.saturating_sub(held) };
        ClusterRoom {
            limits,
            bytes: left(limits.max_total_bytes, catalog.totals().bytes()),
            topics: left(limits.max_topics, catalog.len() as u64),
            origins: MAX_ORIGINS.saturating_sub(catalog.totals().foreign().origins()),
            positions: MAX_POSITIONS.saturating_sub(routers.position_count()),
        }
    }

    /// Why a mirror has no place for a topic of its source, whatever is in that: `has_position` if it has one in it.
    pub fn no_place(&self, dest: Option<&Topic>, create_dest: bool, has_position: bool) -> Option<Refusal> {
        let over = |limit, max| Some(Refusal::OverLimit { limit, max });
        match dest {
            None if !create_dest => Some(Refusal::TopicNotFound),
            None if self.topics == 0 => over(Limit::MaxTopics, self.limits.max_topics),
            _ if !has_position && self.positions == 0 => over(Limit::Positions, MAX_POSITIONS as u64),
            _ => None,
        }
    }

    /// Why `dest` has no room for a record of `size_bytes`, nor for a larger one, wherever it comes from.
    pub fn no_room(&self, dest: Option<&Topic>, size_bytes: u64) -> Option<Refusal> {
        let size_bytes = size_bytes.max(RECORD_FRAMING_BYTES);
        Planner::new(self, 0, dest, "").take_room(&[u32::try_from(size_bytes).unwrap_or(u32::MAX)]).1
    }

    /// Why `dest`, of this name, takes none of `records`, and what the one counts for that decides that.
    pub fn refusal<'a>(
        &self,
        own_cluster_id: u128,
        (dest_name, dest): (&str, Option<&Topic>),
        records: impl Iterator<Item = OfferedRecord<'a>>,
    ) -> Option<(Refusal, u64)> {
        let mut planner = Planner::new(self, own_cluster_id, dest, dest_name);
        for record in records {
            let OfferedRecord { instance, origin_seq, size_bytes } = record;
            planner.offer(&Offer {
                entry: EntryId { term: 0, index: 0 },
                first_position: 0,
                overlay: Overlay::default(),
                source_seq: 1,
                instance: &Arc::new(instance.clone()),
                origin_seq,
                origin_ts_ms: 0,
                sizes_bytes: &[size_bytes],
            });
            if let Some((_, refusal)) = planner.stopped {
                return Some((refusal, u64::from(size_bytes)));
            }
            if !planner.items.is_empty() {
                return None;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_ORIGINS_PER_TOPIC;
    use crate::state::{Discard, TopicConfig};

    fn instance(cluster_id: u128, topic: &str) -> Instance {
        Instance { cluster_id, cluster: "c".into(), topic: topic.into(), epoch: 1 }
    }

    fn room() -> ClusterRoom {
        let limits = ClusterLimits { max_topics: 3, max_total_bytes: 1000, ..ClusterLimits::default() };
        ClusterRoom { limits, bytes: 100, topics: 1, origins: 1, positions: 1 }
    }

    fn over(limit: Limit, max: u64) -> Option<Refusal> {
        Some(Refusal::OverLimit { limit, max })
    }

    /// What is said of a record of 100 bytes.
    fn say(room: &ClusterRoom, dest: Option<&Topic>, instance: &Instance) -> Option<Refusal> {
        let record = OfferedRecord { instance, origin_seq: 3, size_bytes: 100 };
        room.refusal(7, ("t", dest), std::iter::once(record)).map(|(refusal, _)| refusal)
    }

    #[test]
    fn what_would_be_refused_is_known_before() {
        // C-ROUTE-14, C-MIRROR-06
        let (there, home) = (instance(9, "there"), instance(7, "t"));
        let say = |room: &ClusterRoom, dest: Option<&Topic>| {
            let refusal = say(room, dest, &there);
            assert_eq!(room.no_room(dest, 100), refusal, "nothing has to be asked for to know it");
            refusal
        };
        assert_eq!((room().no_place(None, true, false), say(&room(), None)), (None, None));
        assert_eq!(room().no_place(None, false, true), Some(Refusal::TopicNotFound));
        let no_topics = ClusterRoom { topics: 0, ..room() };
        assert_eq!(no_topics.no_place(None, true, true), over(Limit::MaxTopics, 3));
        let no_positions = ClusterRoom { positions: 0, ..room() };
        let refusal = over(Limit::Positions, MAX_POSITIONS as u64);
        assert_eq!(no_positions.no_place(None, true, false), refusal);
        assert_eq!(no_positions.no_place(None, true, true), None);
        assert_eq!(say(&ClusterRoom { bytes: 99, ..room() }, None), over(Limit::MaxTotalBytes, 1000));

        let mut dest = Topic::new("t".into(), 1, TopicConfig::default());
        assert_eq!(no_topics.no_place(Some(&dest), false, true), None);
        assert_eq!(no_positions.no_place(Some(&dest), true, false), refusal);
        dest.config = TopicConfig { cap_records: 2, cap_bytes: 300, ..TopicConfig::default() };
        (dest.count, dest.bytes) = (2, 300);
        assert_eq!(say(&room(), Some(&dest)), None, "the oldest goes");
        dest.config.discard = Discard::Reject;
        let full = Some(Refusal::TopicFull { cap_records: 2, cap_bytes: 300, head_seq: 0, earliest_seq: 1 });
        // Not full, and yet it does not fit.
        for (count, bytes, is_full) in [(1, 200, false), (2, 200, true), (1, 201, true)] {
            (dest.count, dest.bytes) = (count, bytes);
            assert_eq!(say(&room(), Some(&dest)), full.filter(|_| is_full), "{count} {bytes}");
            let is_small_refused = room().no_room(Some(&dest), 0).is_some();
            assert_eq!(is_small_refused, (count, bytes) == (2, 200), "a small one fits");
            // What comes home is left out.
            assert_eq!(super::tests::say(&room(), Some(&dest), &home), None);
            assert_eq!(room().refusal(7, ("t", Some(&dest)), std::iter::empty()), None);
        }
    }

    #[test]
    fn one_origin_too_many_is_known_before() {
        let (there, home) = (instance(9, "there"), instance(7, "t"));
        let room = ClusterRoom { origins: 0, ..room() };
        let mut dest = Topic::new("t".into(), 1, TopicConfig::default());
        let refusal = over(Limit::Origins, MAX_ORIGINS as u64);
        assert_eq!((say(&room, None, &there), say(&room, Some(&dest), &there)), (refusal, refusal));
        assert_eq!(say(&room, Some(&dest), &home), None, "what comes home has none");
        dest.origins.number_or_new(&Arc::new(there.clone()));
        assert_eq!(say(&room, Some(&dest), &there), None, "it is known");
        for number in 1..MAX_ORIGINS_PER_TOPIC {
            dest.origins.number_or_new(&Arc::new(instance(9, &format!("there{number}"))));
        }
        assert_eq!(say(&room, Some(&dest), &there), None);
        let refusal = over(Limit::OriginsPerTopic, MAX_ORIGINS_PER_TOPIC as u64);
        assert_eq!(say(&ClusterRoom { origins: 9, ..room }, Some(&dest), &instance(9, "other")), refusal);
    }
}
