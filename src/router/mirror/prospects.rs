//! Whether a destination takes anything of what was pulled for it.
//!
//! What is refused when it is applied lies in the log of every member all the same, and a mirror tries again for
//! ever. So it is looked first, as far as this member has applied: by the rules of `state/intake.rs`, as they hold for
//! the first record. What is refused here for want of something not applied yet is tried again too.

use bytes::Bytes;

use crate::limits::{MAX_ORIGINS, RECORD_FRAMING_BYTES};
use crate::record::counted_bytes;
use crate::router::page::is_records;
use crate::state::{ClusterLimits, CopyItem, Discard, Instance, Limit, Refusal, Topic};

/// What decides beside the destination itself.
pub(super) struct Prospects<'a> {
    pub own_cluster_id: u128,
    pub create_dest: bool,
    pub limits: ClusterLimits,
    /// What the whole cluster has.
    pub topics: u64,
    pub bytes: u64,
    pub origins: usize,
    /// What the items name by number.
    pub instances: &'a [Instance],
}

impl Prospects<'_> {
    /// Why `dest` takes no record of `needed_bytes`, nor a larger one, whatever it is; `None` is one that is to be made.
    pub fn closed(&self, dest: Option<&Topic>, needed_bytes: u64) -> Option<Refusal> {
        self.no_place(dest).or_else(|| self.no_room(dest, needed_bytes.max(RECORD_FRAMING_BYTES)))
    }

    /// Why nothing of `items` would be taken by `dest`, `None` if that is to be made, and the bytes of the first record
    /// that is not, if it has too many; `records` are those of each item that has any.
    pub fn refusal(
        &self,
        (dest_name, dest): (&str, Option<&Topic>),
        items: &[CopyItem],
        records: &[&[Bytes]],
    ) -> Option<(Refusal, u64)> {
        if let Some(refusal) = self.no_place(dest) {
            return Some((refusal, 0));
        }
        let is_echo = |item: &CopyItem| {
            let CopyItem::Records { instance, .. } = item else { return false };
            self.instances.get(*instance as usize).is_some_and(|instance| {
                instance.cluster_id == self.own_cluster_id
                    && *instance.topic == *dest_name
                    && dest.is_none_or(|dest| instance.epoch <= dest.epoch)
            })
        };
        let mut new = items.iter().filter(|item| is_records(item)).zip(records);
        let (item, first) = new.find(|(item, _)| !is_echo(item))?;
        let is_known = |number: u32| {
            let instance = self.instances.get(number as usize);
            dest.is_some_and(|dest| instance.and_then(|it| dest.origins.number(it)).is_some())
        };
        if self.origins >= MAX_ORIGINS
            && matches!(item, CopyItem::Records { instance, .. } if !is_known(*instance))
        {
            return Some((Refusal::OverLimit { limit: Limit::Origins, max: MAX_ORIGINS as u64 }, 0));
        }
        // One that is damaged is found out elsewhere.
        let size_bytes = counted_bytes(first.first()?).ok()?;
        self.no_room(dest, size_bytes).map(|refusal| (refusal, size_bytes))
    }

    fn no_place(&self, dest: Option<&Topic>) -> Option<Refusal> {
        let max_topics = self.limits.max_topics;
        if dest.is_none() && !self.create_dest {
            return Some(Refusal::TopicNotFound);
        }
        let is_over = dest.is_none() && max_topics > 0 && self.topics >= max_topics;
        is_over.then_some(Refusal::OverLimit { limit: Limit::MaxTopics, max: max_topics })
    }

    /// Why there is no room for a record of `size_bytes`.
    fn no_room(&self, dest: Option<&Topic>, size_bytes: u64) -> Option<Refusal> {
        let max_total_bytes = self.limits.max_total_bytes;
        if let Some(dest) = dest.filter(|dest| dest.config.discard == Discard::Reject) {
            let (cap_records, cap_bytes) = (dest.config.cap_records, dest.config.cap_bytes);
            let is_over = |cap: u64, held: u64, new: u64| cap > 0 && held.saturating_add(new) > cap;
            if is_over(cap_records, dest.count, 1) || is_over(cap_bytes, dest.bytes, size_bytes) {
                let (head_seq, earliest_seq) = (dest.head_seq, dest.earliest_seq);
                return Some(Refusal::TopicFull { cap_records, cap_bytes, head_seq, earliest_seq });
            }
        }
        let is_over_quota = max_total_bytes > 0 && self.bytes.saturating_add(size_bytes) > max_total_bytes;
        is_over_quota.then_some(Refusal::OverLimit { limit: Limit::MaxTotalBytes, max: max_total_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{EntryBuilder, EntryRecords, Record};
    use crate::state::TopicConfig;

    /// A record that counts for 100 bytes.
    fn record() -> Bytes {
        let data = format!("\"{}\"", "x".repeat(98 - RECORD_FRAMING_BYTES as usize));
        let mut builder = EntryBuilder::new(0, 1, 200);
        builder.push(&Record { data: &data, ..Record::default() });
        let entry = EntryRecords::parse(builder.finish().freeze()).expect("what was built parses");
        let record = Bytes::copy_from_slice(entry.record(0).expect("the record"));
        assert_eq!(counted_bytes(&record), Ok(100));
        record
    }

    fn of(instance: u32, origin_seq: u64) -> CopyItem {
        CopyItem::Records { instance, origin_seq, origin_ts_ms: 1, source_seq: origin_seq, count: 1 }
    }

    fn instance(cluster_id: u128, topic: &str) -> Instance {
        Instance { cluster_id, cluster: "c".into(), topic: topic.into(), epoch: 1 }
    }

    #[test]
    fn what_would_be_refused_is_known_before() {
        // C-ROUTE-14, C-MIRROR-06
        let instances = [instance(9, "there"), instance(7, "t")];
        let limits = ClusterLimits { max_topics: 3, max_total_bytes: 1000, ..ClusterLimits::default() };
        let free = || Prospects {
            own_cluster_id: 7,
            create_dest: true,
            limits,
            topics: 2,
            bytes: 900,
            origins: MAX_ORIGINS - 1,
            instances: &instances,
        };
        let record = [record()];
        let say = |prospects: &Prospects<'_>, dest: Option<&Topic>, instance: u32| {
            let gap = CopyItem::Gap { instance: 0, from_seq: 1, to_seq: 2 };
            let refused = prospects.refusal(("t", dest), &[gap, of(instance, 3)], &[&record]);
            let refusal = refused.map(|(refusal, _)| refusal);
            if instance == 0 {
                assert_eq!(prospects.closed(dest, 100), refusal, "nothing has to be asked for to know it");
            }
            refusal
        };
        let over = |limit, max| Some(Refusal::OverLimit { limit, max });
        assert_eq!(say(&free(), None, 0), None);
        let refused = Prospects { create_dest: false, ..free() };
        assert_eq!(say(&refused, None, 0), Some(Refusal::TopicNotFound));
        assert_eq!(say(&Prospects { topics: 3, ..free() }, None, 0), over(Limit::MaxTopics, 3));
        assert_eq!(say(&Prospects { bytes: 901, ..free() }, None, 0), over(Limit::MaxTotalBytes, 1000));

        let mut dest = Topic::new("t".into(), 1, TopicConfig::default());
        assert_eq!(say(&Prospects { create_dest: false, topics: 3, ..free() }, Some(&dest), 0), None);
        dest.config = TopicConfig { cap_records: 2, cap_bytes: 300, ..TopicConfig::default() };
        (dest.count, dest.bytes) = (2, 300);
        assert_eq!(say(&free(), Some(&dest), 0), None, "the oldest goes");
        dest.config.discard = Discard::Reject;
        let full = Some(Refusal::TopicFull { cap_records: 2, cap_bytes: 300, head_seq: 0, earliest_seq: 1 });
        // Not full, and yet it does not fit.
        for (count, bytes, is_full) in [(1, 200, false), (2, 200, true), (1, 201, true)] {
            (dest.count, dest.bytes) = (count, bytes);
            assert_eq!(say(&free(), Some(&dest), 0), full.filter(|_| is_full), "{count} {bytes}");
            assert_eq!(
                free().closed(Some(&dest), 0),
                full.filter(|_| (count, bytes) == (2, 200)),
                "a small one fits"
            );
            // What comes home is left out, and a gap takes up no room.
            assert_eq!(say(&free(), Some(&dest), 1), None);
            assert_eq!(free().refusal(("t", Some(&dest)), &[], &[]), None);
        }
    }

    #[test]
    fn one_origin_too_many_is_known_before() {
        let instances = [instance(9, "there"), instance(7, "t")];
        let many = Prospects {
            own_cluster_id: 7,
            create_dest: true,
            limits: ClusterLimits::default(),
            topics: 2,
            bytes: 900,
            origins: MAX_ORIGINS,
            instances: &instances,
        };
        let record = [record()];
        let say = |dest: Option<&Topic>, instance| {
            many.refusal(("t", dest), &[of(instance, 3)], &[&record]).map(|(refusal, _)| refusal)
        };
        let mut dest = Topic::new("t".into(), 1, TopicConfig::default());
        let refusal = Some(Refusal::OverLimit { limit: Limit::Origins, max: MAX_ORIGINS as u64 });
        assert_eq!((say(None, 0), say(Some(&dest), 0)), (refusal, refusal));
        assert_eq!(say(Some(&dest), 1), None, "what comes home has none");
        dest.origins.number_or_new(&std::sync::Arc::new(instances[0].clone()));
        assert_eq!(say(Some(&dest), 0), None, "it is known");
    }
}
