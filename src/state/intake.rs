//! What a destination takes of what is offered to it.
//!
//! A record is taken unless its origin is the destination itself, or it was taken before, by whatever way; as many as
//! there is room for. Nothing is changed here: what is taken is listed.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use super::delete::Ranges;
use super::origins::{Instance, InstanceKey, Origin, Turns};
use super::outcome::Refusal;
use super::prospect::ClusterRoom;
use super::quota::Limit;
use super::run::{Overlay, Run};
use super::topic::Topic;
use super::topic_config::{Discard, TopicConfig};
use crate::limits::{MAX_ORIGINS, MAX_ORIGINS_PER_TOPIC};
use crate::storage::EntryId;

pub(super) enum Item {
    Copies {
        /// But for its seq and origin.
        run: Run,
        sizes: Range<usize>,
        instance: Arc<Instance>,
        origin_seq: u64,
        origin_ts_ms: u64,
    },
    Gap {
        instance: Arc<Instance>,
        range: RangeInclusive<u64>,
    },
}

/// Records that are offered to a destination: consecutive in their source, their entry and their origin.
pub(super) struct Offer<'a> {
    pub entry: EntryId,
    pub first_position: u32,
    pub overlay: Overlay,
    pub source_seq: u64,
    pub instance: &'a Arc<Instance>,
    pub origin_seq: u64,
    pub origin_ts_ms: u64,
    pub sizes_bytes: &'a [u32],
}

/// Decides what a destination takes.
pub(super) struct Planner<'a> {
    pub own_cluster_id: u128,
    pub dest: Option<&'a Topic>,
    pub dest_name: &'a str,
    pub items: Vec<Item>,
    pub sizes_bytes: Vec<u32>,
    pub bytes: u64,
    /// What still fits, and what is said when it does not.
    pub records_left: u64,
    pub bytes_left: u64,
    pub full: Refusal,
    /// The quota of the whole cluster.
    pub quota_left: u64,
    pub over_quota: Refusal,
    /// The seq of the source up to which everything was examined, and why no further.
    pub stopped: Option<(u64, Refusal)>,
    /// The seq of the source up to which everything was examined, as far as it did not stop.
    pub examined_seq: u64,
    /// Of which the destination has nothing yet, and gets something now.
    pub new_origins: BTreeSet<InstanceKey>,
    /// How many of them there may be in the whole cluster.
    pub origins_left: usize,
    /// For finding out what was lost.
    pub turns: Turns,
}

impl<'a> Planner<'a> {
    pub fn new(
        room: &ClusterRoom,
        own_cluster_id: u128,
        dest: Option<&'a Topic>,
        dest_name: &'a str,
    ) -> Self {
        let of_none = TopicConfig::default();
        let config = dest.map_or(&of_none, |dest| &dest.config);
        let (count, bytes) = dest.map_or((0, 0), |dest| (dest.count, dest.bytes));
        let room_of = |cap: u64, held: u64| match (config.discard, cap) {
            (Discard::Old, _) | (_, 0) => u64::MAX,
            (Discard::Reject, cap) => cap.saturating_sub(held),
        };
        Planner {
            own_cluster_id,
            dest_name,
            items: Vec::new(),
            sizes_bytes: Vec::new(),
            bytes: 0,
            records_left: room_of(config.cap_records, count),
            bytes_left: room_of(config.cap_bytes, bytes),
            full: Refusal::TopicFull {
                cap_records: config.cap_records,
                cap_bytes: config.cap_bytes,
                head_seq: dest.map_or(0, |dest| dest.head_seq),
                earliest_seq: dest.map_or(1, |dest| dest.earliest_seq),
            },
            dest,
            quota_left: room.bytes,
            over_quota: Refusal::OverLimit { limit: Limit::MaxTotalBytes, max: room.limits.max_total_bytes },
            stopped: None,
            examined_seq: 0,
            new_origins: BTreeSet::new(),
            origins_left: room.origins,
            turns: Turns::default(),
        }
    }

    /// Whether what was first written there comes home (C-ROUTE-07).
    pub fn is_echo(&self, instance: &Instance) -> bool {
        instance.cluster_id == self.own_cluster_id
            && *instance.topic == *self.dest_name
            && self.dest.is_none_or(|dest| instance.epoch <= dest.epoch)
    }

    /// Whether all that another topic had or missed of `origin` is an echo here, or was taken or reported.
    pub fn needs_nothing_of(&self, origin: &Origin) -> bool {
        self.is_echo(&origin.instance)
            || self.dest.is_some_and(|dest| dest.origins.has_all_of(origin, &self.turns))
    }

    /// `false` if not all of it was examined.
    pub fn offer(&mut self, offer: &Offer<'_>) -> bool {
        let Offer { instance, origin_seq, .. } = *offer;
        if self.stopped.is_some() {
            return false;
        }
        let count = offer.sizes_bytes.len() as u64;
        if self.is_echo(instance) {
            self.examined_seq = offer.source_seq + count - 1;
            return true;
        }
        let last = origin_seq + count - 1;
        let number = self.dest.and_then(|dest| dest.origins.number(instance));
        let untaken = match self.dest {
            None => vec![origin_seq..=last],
            Some(dest) => dest.origins.untaken_in(number, origin_seq..=last),
        };
        self.examined_seq = offer.source_seq - 1;
        if number.is_none() && !self.has_place_for(instance) {
            return false;
        }
        for stretch in untaken {
            let at = (stretch.start() - origin_seq) as usize;
            let count = (stretch.end() - stretch.start() + 1) as usize;
            let (fitting, refusal) = self.take_room(&offer.sizes_bytes[at..at + count]);
            if fitting > 0 {
                let start = self.sizes_bytes.len();
                self.sizes_bytes.extend_from_slice(&offer.sizes_bytes[at..at + fitting]);
                let position = offer.first_position + at as u32;
                let run = Run::of_entry(offer.entry, position, 0, fitting as u64, 0);
                self.items.push(Item::Copies {
                    run: Run { overlay: offer.overlay, ..run },
                    sizes: start..start + fitting,
                    instance: instance.clone(),
                    origin_seq: *stretch.start(),
                    origin_ts_ms: offer.origin_ts_ms,
                });
            }
            if let Some(refusal) = refusal {
                self.stopped = Some((offer.source_seq + (at + fitting) as u64 - 1, refusal));
                return false;
            }
        }
        self.examined_seq = offer.source_seq + count - 1;
        true
    }

    /// Whether the destination may have something of `instance`, of which it has nothing yet: what it knows of each
    /// stays for ever, and another cluster may name any number. If not, it stops.
    fn has_place_for(&mut self, instance: &Instance) -> bool {
        let known = self.dest.map_or(0, |dest| dest.origins.all().len());
        let (key, new) = (instance.key(), self.new_origins.len());
        if self.new_origins.contains(&key) {
            return true;
        }
        let (limit, max) = if known + new >= MAX_ORIGINS_PER_TOPIC {
            (Limit::OriginsPerTopic, MAX_ORIGINS_PER_TOPIC as u64)
        } else if new >= self.origins_left {
            (Limit::Origins, MAX_ORIGINS as u64)
        } else {
            self.new_origins.insert(key);
            return true;
        };
        self.stopped = Some((self.examined_seq, Refusal::OverLimit { limit, max }));
        false
    }

    /// How many of these fit, one after the other, and what is said of the first that does not.
    pub fn take_room(&mut self, sizes_bytes: &[u32]) -> (usize, Option<Refusal>) {
        for (at, size) in sizes_bytes.iter().enumerate() {
            let size = u64::from(*size);
            if self.records_left == 0 || self.bytes_left < size {
                return (at, Some(self.full));
            }
            if self.quota_left < size {
                return (at, Some(self.over_quota));
            }
            self.records_left -= 1;
            self.bytes_left -= size;
            self.quota_left -= size;
            self.bytes += size;
        }
        (sizes_bytes.len(), None)
    }

    /// These seqs of `instance` were lost before they could be copied. `false` if that cannot be told.
    pub fn lost(&mut self, instance: &Arc<Instance>, ranges: &[RangeInclusive<u64>]) -> bool {
        if self.is_echo(instance) {
            return true;
        }
        let number = self.dest.and_then(|dest| dest.origins.number(instance));
        let unreported = |range: &RangeInclusive<u64>| match self.dest {
            None => Some(range.clone()),
            Some(dest) => dest.origins.unreported_in(number, range.clone(), &self.turns),
        };
        let mut ranges = ranges.iter().filter_map(unreported);
        let Some(first) = ranges.next() else { return true };
        let last = ranges.next_back().unwrap_or(first.clone());
        let range = *first.start()..=*last.end();
        if self.stopped.is_some() || (number.is_none() && !self.has_place_for(instance)) {
            return false;
        }
        self.items.push(Item::Gap { instance: instance.clone(), range });
        true
    }
}

/// Which of the seqs in `evicted` a destination may have lost: those first written in `source`, and those copied
/// there from elsewhere, unless it needs nothing of all that `source` ever had from there.
pub fn lost_seqs(
    source: &Topic,
    evicted: RangeInclusive<u64>,
    needs_nothing_of: impl Fn(&Origin) -> bool,
) -> Ranges {
    let has_foreign = source.origins.all().iter().any(|origin| !needs_nothing_of(origin));
    if has_foreign || source.origins.all().is_empty() {
        return vec![evicted];
    }
    source.origins.own.between(*evicted.start(), *evicted.end(), MAX_LOST_RANGES)
}

const MAX_LOST_RANGES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::retention::Freed;

    fn instance(epoch: u64) -> Arc<Instance> {
        Arc::new(Instance { cluster_id: 9, cluster: "there".into(), topic: "t".into(), epoch })
    }

    /// A topic in which every second seq is a copy.
    fn mixed(pairs: u64) -> Topic {
        let mut topic = Topic::new("t".into(), 1, TopicConfig::default());
        let (there, mut freed) = (instance(1), Freed::default());
        for number in 1..=pairs {
            let entry = EntryId { term: 1, index: number };
            topic.append(entry, 0, 1000, &[40], None, &mut freed);
            topic.append_copies(
                Run::of_entry(entry, 0, 0, 1, 1000),
                (&there, number, 900),
                &[40],
                &mut freed,
            );
        }
        topic
    }

    #[test]
    fn what_is_long_gone_is_a_sum_that_tells_the_same() {
        let mut topic = mixed(60_000);
        let (all, head_seq) = (topic.origins.own.sum(120_000), topic.head_seq);
        topic.config.cap_records = 1000;
        let mut freed = Freed::default();
        // Some at a time, as applying goes on.
        for _ in 0..3 {
            topic.keep_within_caps(&mut freed).unwrap();
            topic.append(EntryId { term: 1, index: 1 << 20 }, 0, 1000, &[40], None, &mut freed);
        }
        topic.keep_within_caps(&mut freed).unwrap();
        assert!(topic.origins.own.foreign().numbers().count() > 0);
        assert_eq!(topic.origins.own.foreign().stretches().next(), Some(98_304..=98_304));
        assert_eq!(topic.origins.own.sum(head_seq), all);
        let own = |range| lost_seqs(&topic, range, |_| true);
        // Of what is summed something was lost if its last own seq was.
        assert_eq!(own(5..=98_303), [5..=98_303]);
        assert_eq!(own(98_301..=98_306), [98_301..=98_303, 98_305..=98_305]);
        assert_eq!(own(98_304..=98_304), Vec::<RangeInclusive<u64>>::new());
        // And it comes back.
        let mut stored = std::collections::BTreeMap::new();
        topic.take_changes(&mut |key, value| drop(stored.insert(format!("{key:?}"), value)));
        assert!(stored.contains_key("OwnSum"));
    }

    #[test]
    fn lost_seqs_are_told_one_by_one_while_they_are_few_and_as_one_range_else() {
        let topic = mixed(5000);
        let own = |range| lost_seqs(&topic, range, |_| true);
        assert_eq!(own(2..=6), [3..=3, 5..=5]);
        assert_eq!(own(1..=2 * MAX_LOST_RANGES as u64).len(), MAX_LOST_RANGES);
        // First and last are exact, and what lies between was not gone through.
        assert_eq!(own(2..=10_000), vec![3..=9999]);
        assert_eq!(own(4..=4), Vec::<RangeInclusive<u64>>::new());
        assert_eq!(lost_seqs(&topic, 2..=6, |_| false), vec![2..=6]);
    }
}
