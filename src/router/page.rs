//! What a pull brought of one topic, made into a part of a command.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::answer::{AnsweredPage, AnsweredTopic};
use crate::limits::MAX_RELAYS;
use crate::state::{
    CopyItem, CopyPart, Instance, Position, Ranges, RouterConfig, SharedTopic, Turns, is_topic_name,
};

/// The name here of a topic there.
pub(super) fn dest_of<'a>(config: &'a RouterConfig, source: &'a str) -> &'a str {
    if config.dest == "*" { source } else { &config.dest }
}

/// Whether `topic` is one that a mirror of `source` may bring: another cluster is not trusted with any other.
pub(super) fn is_covered(source: &str, topic: &str) -> bool {
    match source.strip_suffix('*') {
        Some(prefix) => topic.starts_with(prefix) && is_topic_name(topic),
        None => topic == source,
    }
}

/// What the command says of one topic. It goes on from the position that was asked from, wherever the router is by
/// now: that may have been moved back.
pub(super) fn part<'a>(
    asked: Option<&Position>,
    dest_name: &'a str,
    (topic, page): (&'a AnsweredTopic, &AnsweredPage),
    items: Vec<CopyItem>,
    lost: Ranges,
    dest_epoch: Option<u64>,
) -> CopyPart<'a> {
    let position = asked.filter(|position| position.goes_on(topic.epoch, dest_epoch));
    CopyPart {
        source: &topic.topic,
        source_epoch: topic.epoch,
        source_type: topic.topic_type,
        source_instance: page.instance,
        dest: dest_name,
        dest_epoch,
        from_seq: position.map(|position| position.seq),
        start_seq: Some(page.start_seq),
        to_seq: page.to_seq,
        to_entry: page.to_entry,
        lost,
        items,
    }
}

pub(super) fn is_records(item: &CopyItem) -> bool {
    matches!(item, CopyItem::Records { .. })
}

/// Which seqs of the source `dest` has lost. Copies that the source gave up are not lost if `dest` has all that the
/// source ever had from where they come.
pub(super) fn lost<'a>(
    page: &'a AnsweredPage,
    instances: &[Instance],
    dest: Option<&SharedTopic>,
) -> &'a Ranges {
    let (Some(dest), Some(others)) = (dest, &page.lost.others) else { return &page.lost.seqs };
    let (topic, turns) = (dest.read(), Turns::default());
    let has_all = |(number, taken): &(u32, Ranges)| {
        let number = instances.get(*number as usize).and_then(|instance| topic.origins.number(instance));
        taken.iter().all(|range| topic.origins.unreported_in(number, range.clone(), &turns).is_none())
    };
    if others.iter().all(has_all) { &page.lost.own } else { &page.lost.seqs }
}

/// What of a page `dest` does not have, and the records of each of those items.
pub(super) fn untaken<'a>(
    page: &'a AnsweredPage,
    instances: &[Instance],
    dest: Option<&SharedTopic>,
) -> (Vec<CopyItem>, Vec<&'a [Bytes]>) {
    let topic = dest.map(SharedTopic::read);
    let (mut items, mut kept) = (Vec::new(), Vec::new());
    let mut at = 0;
    for item in &page.items {
        let CopyItem::Records { instance, origin_seq, origin_ts_ms, source_seq, count } = item else {
            items.push(item.clone());
            continue;
        };
        let records = &page.records[at..at + *count as usize];
        at += *count as usize;
        let range = *origin_seq..=origin_seq + u64::from(*count) - 1;
        let stretches = match (&topic, instances.get(*instance as usize)) {
            (Some(topic), Some(instance)) => topic.origins.untaken_in(topic.origins.number(instance), range),
            _ => vec![range],
        };
        for stretch in stretches {
            let (skipped, more) = (stretch.start() - origin_seq, stretch.end() - stretch.start() + 1);
            items.push(CopyItem::Records {
                instance: *instance,
                origin_seq: *stretch.start(),
                origin_ts_ms: *origin_ts_ms,
                source_seq: source_seq + skipped,
                count: more as u32,
            });
            kept.push(&records[skipped as usize..(skipped + more) as usize]);
        }
    }
    (items, kept)
}

/// Takes everything out of `page` that comes from where it may not. Gives the seq behind which that begins, if there
/// is any; `from_seq` is where the page begins, if that is known.
pub(super) fn leave_out(
    page: &mut AnsweredPage,
    from_seq: Option<u64>,
    may_bring: impl Fn(u32) -> bool,
) -> Option<u64> {
    let origin = |item: &CopyItem| match item {
        CopyItem::Records { instance, .. } | CopyItem::Gap { instance, .. } => *instance,
    };
    if page.items.iter().all(|item| may_bring(origin(item))) {
        return None;
    }
    let (mut held_seq, mut seq) = (None, from_seq.unwrap_or_else(|| begin(page)));
    let mut records = std::mem::take(&mut page.records).into_iter();
    for item in std::mem::take(&mut page.items) {
        let count = match &item {
            CopyItem::Records { count, .. } => *count as usize,
            CopyItem::Gap { .. } => 0,
        };
        let of_item = records.by_ref().take(count);
        if may_bring(origin(&item)) {
            page.records.extend(of_item);
        } else {
            of_item.for_each(drop);
            held_seq.get_or_insert(match &item {
                CopyItem::Records { source_seq, .. } => source_seq - 1,
                CopyItem::Gap { .. } => seq,
            });
        }
        if let CopyItem::Records { source_seq, count, .. } = &item {
            seq = source_seq + u64::from(*count) - 1;
        }
        if may_bring(origin(&item)) {
            page.items.push(item);
        }
    }
    held_seq
}

/// Of `instances` those that `parts` name, which are numbered anew, and one of each cluster of those that are left out
/// now and are to be written down. Another cluster may name more than anything comes from.
pub(super) fn numbered_anew(
    instances: &[Instance],
    parts: &mut [CopyPart<'_>],
    is_new: impl Fn(&Instance) -> bool,
) -> Vec<Instance> {
    let mut kept = Vec::new();
    let mut numbers: BTreeMap<u32, u32> = BTreeMap::new();
    let mut number_of = |number: &mut u32| {
        // What it names was looked at when it was read.
        let Some(instance) = instances.get(*number as usize) else { return };
        *number = *numbers.entry(*number).or_insert_with(|| {
            kept.push(instance.clone());
            kept.len() as u32 - 1
        });
    };
    for part in parts {
        number_of(&mut part.source_instance);
        for item in &mut part.items {
            let (CopyItem::Records { instance, .. } | CopyItem::Gap { instance, .. }) = item;
            number_of(instance);
        }
    }
    let mut clusters: BTreeSet<u128> = kept.iter().map(|instance| instance.cluster_id).collect();
    let new = instances.iter().filter(|instance| is_new(instance) && clusters.insert(instance.cluster_id));
    kept.extend(new.take(MAX_RELAYS).cloned());
    kept
}

/// At the latest here a page begins: each gap takes up a seq before the first record.
fn begin(page: &AnsweredPage) -> u64 {
    let gaps = page.items.iter().take_while(|item| !is_records(item)).count();
    let first_seq = page.items.iter().find_map(|item| match item {
        CopyItem::Records { source_seq, .. } => Some(*source_seq),
        CopyItem::Gap { .. } => None,
    });
    first_seq.unwrap_or(page.to_seq + 1).saturating_sub(1 + gaps as u64)
}

#[cfg(test)]
mod tests {
    use super::super::answer::AnsweredLost;
    use super::*;
    use crate::state::{Catalog, Gap, Topic, TopicConfig};

    /// C-ROUTE-15, C-MIRROR-13: along a line, where nobody else has what went.
    #[test]
    fn copies_that_the_source_gave_up_are_lost_to_a_dest_that_lacks_any() {
        let instances = [("c2", 2), ("c1", 1)].map(|(cluster, cluster_id)| Instance {
            cluster_id,
            cluster: cluster.into(),
            topic: "t".into(),
            epoch: 4,
        });
        let page = |others| AnsweredPage {
            instance: 0,
            start_seq: 0,
            to_seq: 9,
            to_entry: None,
            lost: AnsweredLost { seqs: vec![1..=9], own: vec![4..=4], others },
            items: Vec::new(),
            records: Vec::new(),
        };
        // The source has taken seqs 1 to 8 of the other, by its seqs 1 to 3 and 5 to 9.
        let told = page(Some(vec![(1, vec![1..=8])]));
        let lost_at = |last_seq: u64, reported: Option<u64>| {
            let mut topic = Topic::new("t".into(), 1, TopicConfig::default());
            let number = topic.origins.number_or_new(&instances[1].clone().into());
            topic.origins.take(number, 1..=last_seq);
            if let Some(seq) = reported {
                topic.origins.report(1, Gap { number, from_seq: seq, to_seq: seq });
            }
            let dest = Catalog::default().insert_for_test(topic);
            lost(&told, &instances, Some(&dest)).clone()
        };
        assert_eq!(lost_at(8, None), [4..=4]);
        assert_eq!(lost_at(7, None), [1..=9]);
        // It knows already.
        assert_eq!(lost_at(7, Some(8)), [4..=4]);
        assert_eq!(lost_at(3, Some(8)), [1..=9]);
        assert_eq!(*lost(&told, &instances, None), [1..=9]);
        // What is too much to tell may be anything.
        let dest = Catalog::default().insert_for_test(Topic::new("t".into(), 1, TopicConfig::default()));
        assert_eq!(*lost(&told, &instances, Some(&dest)), [1..=9]);
        assert_eq!(*lost(&page(None), &instances, Some(&dest)), [1..=9]);
        assert_eq!(*lost(&page(Some(Vec::new())), &instances, Some(&dest)), [4..=4]);
    }

    #[test]
    fn what_nothing_comes_from_is_not_written_down() {
        // C-MIRROR-18
        let instance = |cluster_id: u32| Instance {
            cluster_id: u128::from(cluster_id % 5000),
            cluster: "c".into(),
            topic: "t".into(),
            epoch: u64::from(cluster_id),
        };
        let instances: Vec<Instance> = (0..100_000).map(instance).collect();
        let of = |instance| CopyItem::Records {
            instance,
            origin_seq: 1,
            origin_ts_ms: 1,
            source_seq: 1,
            count: 1,
        };
        let gap = CopyItem::Gap { instance: 800, from_seq: 1, to_seq: 2 };
        let mut parts = [CopyPart {
            source: "t",
            source_epoch: 1,
            source_type: crate::state::TopicType::Log,
            source_instance: 7,
            dest: "t",
            dest_epoch: None,
            from_seq: None,
            start_seq: None,
            to_seq: 9,
            to_entry: None,
            lost: Vec::new(),
            items: vec![of(99_999), gap, of(7), of(99_999)],
        }];
        let epochs = |instances: &[Instance]| instances.iter().map(|it| it.epoch).collect::<Vec<_>>();
        let kept = numbered_anew(&instances, &mut parts, |_| false);
        assert_eq!(epochs(&kept), [7, 99_999, 800]);
        let gap = CopyItem::Gap { instance: 2, from_seq: 1, to_seq: 2 };
        assert_eq!((parts[0].source_instance, &parts[0].items[..]), (0, &[of(1), gap, of(0), of(1)][..]));
        // Of which clusters there was something is told, by one of each.
        let kept = numbered_anew(&instances, &mut [], |instance| instance.cluster_id < 3);
        assert_eq!(epochs(&kept), [0, 1, 2]);
        assert_eq!(numbered_anew(&instances, &mut parts, |_| true).len(), 3 + MAX_RELAYS);
    }

    #[test]
    fn a_remote_brings_only_what_it_was_asked_for() {
        // C-MIRROR-04
        for (source, topic) in [("a:*", "a:"), ("a:*", "a:b"), ("*", "x"), ("a", "a")] {
            assert!(is_covered(source, topic), "{source} {topic}");
        }
        for (source, topic) in
            [("a:*", "b:a:"), ("a:*", "a"), ("a:*", "a:/"), ("*", ""), ("a", "ab"), ("a", "*")]
        {
            assert!(!is_covered(source, topic), "{source} {topic}");
        }
    }

    #[test]
    fn what_may_not_come_is_left_out_and_where_that_begins_is_known() {
        // C-MIRROR-18
        let of = |instance, source_seq, count| CopyItem::Records {
            instance,
            origin_seq: source_seq,
            origin_ts_ms: 1,
            source_seq,
            count,
        };
        let gap = |instance| CopyItem::Gap { instance, from_seq: 1, to_seq: 2 };
        let page = |items: &[CopyItem]| AnsweredPage {
            instance: 0,
            start_seq: 9,
            to_seq: 50,
            to_entry: None,
            lost: AnsweredLost::default(),
            records: (0..items
                .iter()
                .map(|item| if let CopyItem::Records { count, .. } = item { *count } else { 0 })
                .sum())
                .map(|number: u32| Bytes::from(number.to_string()))
                .collect(),
            items: items.to_vec(),
        };
        let left = |items: &[CopyItem], from_seq| {
            let mut page = page(items);
            let held_seq = leave_out(&mut page, from_seq, |instance| instance < 2);
            let records: Vec<String> =
                page.records.iter().map(|record| String::from_utf8_lossy(record).into_owned()).collect();
            (held_seq, page.items, records.join(" "))
        };
        let all = [of(0, 10, 2), gap(1), of(1, 14, 1)];
        assert_eq!(left(&all, Some(9)), (None, all.to_vec(), "0 1 2".into()));
        let some = [of(0, 10, 2), of(2, 13, 3), of(1, 17, 1), gap(3), of(3, 18, 1), of(0, 20, 1)];
        let kept = vec![of(0, 10, 2), of(1, 17, 1), of(0, 20, 1)];
        assert_eq!(left(&some, Some(9)), (Some(12), kept, "0 1 5 7".into()));
        // A page that begins where a mirror starts: not with what was before that.
        for (from_seq, held_seq) in [(Some(9), 9), (None, 10)] {
            assert_eq!(
                left(&[gap(2), of(0, 12, 1)], from_seq),
                (Some(held_seq), vec![of(0, 12, 1)], "0".into())
            );
        }
        assert_eq!(left(&[of(2, 12, 1)], None), (Some(11), Vec::new(), String::new()));
        assert_eq!(left(&[gap(2)], None), (Some(49), Vec::new(), String::new()));
    }
}
