//! What another cluster answers to a pull, as it is read: nothing in it is believed before it was looked at.
//!
//! A topic whose part cannot be believed is told apart from the others, and nothing of it is kept (C-MIRROR-18). Where
//! not even the parts can be told apart, the whole answer is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use bytes::Bytes;

use super::wire::{ANSWERED_DIVERGED, ANSWERED_GONE, ANSWERED_PAGE, VERSION, push_record, read_news};
use crate::codec::{Malformed, Reader, shared_slice};
use crate::engine::News;
use crate::limits::{
    MAX_MEMBER_NAME_CHARS, MAX_PULL_ITEMS, MAX_PULL_WANTED, MAX_TOLD_RANGES, MAX_TOLD_RANGES_IN_ALL,
    MIN_EMPTY_PAGE_SEQS, SEQ_LIMIT,
};
use crate::record::{BadRecord, check_foreign};
use crate::state::{
    Cluster, CopyItem, Instance, Ranges, TopicType, is_topic_name, read_entry_id, read_items,
    read_ranges_up_to,
};
use crate::storage::EntryId;

/// The answer to a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullAnswer {
    /// Who answers.
    pub cluster: Cluster,
    /// The first epoch that no topic there had.
    pub next_epoch: u64,
    /// What is told of topics that were not wanted by name.
    pub news: News,
    /// So many of the wanted topics were looked at.
    pub examined: usize,
    /// What the topics name by number.
    pub instances: Vec<Instance>,
    pub topics: Vec<AnsweredTopic>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnsweredTopic {
    pub topic: String,
    pub epoch: u64,
    pub topic_type: TopicType,
    pub head_seq: u64,
    pub answer: Answered,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// The cursor names something that the cluster does not know.
    Diverged,
    /// There is no such topic any more.
    Gone,
    Page(AnsweredPage),
    /// What is said of the topic cannot be.
    Damaged(Damage),
}

impl Answered {
    /// Whether it brings something, or comes so far towards `head_seq` that the next one may: another cluster is not
    /// trusted to come on by more than a seq at a time.
    pub fn has_come_on(&self, head_seq: u64) -> bool {
        let Answered::Page(page) = self else { return false };
        let is_far = page.to_seq >= head_seq || page.to_seq - page.start_seq >= MIN_EMPTY_PAGE_SEQS;
        is_far || !page.items.is_empty() || !page.lost.seqs.is_empty()
    }
}

/// Why what is said of a topic cannot be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// The seq at the source of the record at fault, if it is one record's.
    pub seq: Option<u64>,
    pub what: &'static str,
}

impl Damage {
    pub fn of_page(what: &'static str) -> Self {
        Damage { seq: None, what }
    }
}

impl From<Malformed> for Damage {
    fn from(malformed: Malformed) -> Self {
        Damage::of_page(malformed.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnsweredPage {
    /// Number of the topic itself among the instances.
    pub instance: u32,
    /// Where it begins.
    pub start_seq: u64,
    pub to_seq: u64,
    pub to_entry: Option<EntryId>,
    pub lost: AnsweredLost,
    pub items: Vec<CopyItem>,
    /// The stored bytes of the records of all items, one after the other; each was checked.
    pub records: Vec<Bytes>,
}

/// As [`crate::engine::Lost`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnsweredLost {
    pub seqs: Ranges,
    pub own: Ranges,
    /// By number of the instance.
    pub others: Option<Vec<(u32, Ranges)>>,
}

/// Records that are passed over as gaps if they cannot be believed: seqs at the source, by topic.
pub type Skips = BTreeMap<String, BTreeSet<u64>>;

impl PullAnswer {
    pub fn decode(bytes: &Bytes, skips: &Skips) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "answer to a pull");
        if reader.u8()? != VERSION {
            return Err(Malformed("answer to a pull: of a version that is not known here"));
        }
        let cluster = Cluster::decode(&mut reader)?;
        if !is_cluster_name(&cluster.name) {
            return Err(reader.malformed());
        }
        let count = reader.count(19)?;
        let instances: Vec<Instance> =
            (0..count).map(|_| Instance::read(&mut reader)).collect::<Result<_, _>>()?;
        if !instances.iter().all(is_instance) {
            return Err(reader.malformed());
        }
        let next_epoch = number(&mut reader)?;
        let news = read_news(&mut reader)?;
        let examined = number(&mut reader)? as usize;
        let count = reader.count(5)?;
        if count > MAX_PULL_WANTED {
            return Err(reader.malformed());
        }
        let mut topics = Vec::with_capacity(count);
        let mut names_left = instances.len();
        for _ in 0..count {
            let topic = reader.text()?.to_owned();
            let length = reader.u32()? as usize;
            let mut rest = Reader::new(reader.bytes(length)?, "topic");
            let read = TopicReader { whole: bytes, cluster: &cluster, instances: &instances, skips };
            let answered = read.topic(&mut rest, topic);
            if let Answered::Page(page) = &answered.answer {
                let others = page.lost.others.as_ref().map_or(0, Vec::len);
                names_left = names_left.saturating_sub(1 + page.items.len() + others);
            }
            topics.push(answered);
        }
        reader.finish()?;
        // Each is kept for ever once it was named; nobody names more than there are places to.
        let has_damage = topics.iter().any(|topic| matches!(topic.answer, Answered::Damaged(_)));
        if names_left > 0 && !has_damage {
            return Err(Malformed("answer to a pull: it names what nothing comes from"));
        }
        Ok(PullAnswer { cluster, next_epoch, news, examined, instances, topics })
    }
}

/// Names of clusters become labels of records (C-MIRROR-07).
fn is_cluster_name(name: &str) -> bool {
    name.len() <= MAX_MEMBER_NAME_CHARS
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn is_instance(instance: &Instance) -> bool {
    is_cluster_name(&instance.cluster) && is_topic_name(&instance.topic) && instance.epoch < SEQ_LIMIT
}

struct TopicReader<'a> {
    whole: &'a Bytes,
    cluster: &'a Cluster,
    instances: &'a [Instance],
    skips: &'a Skips,
}

impl TopicReader<'_> {
    fn topic(&self, reader: &mut Reader<'_>, topic: String) -> AnsweredTopic {
        let mut answered = AnsweredTopic {
            topic,
            epoch: 0,
            topic_type: TopicType::Log,
            head_seq: 0,
            answer: Answered::Gone,
        };
        if let Err(damage) = self.fill(reader, &mut answered) {
            answered.answer = Answered::Damaged(damage);
        }
        answered
    }

    fn fill(&self, reader: &mut Reader<'_>, answered: &mut AnsweredTopic) -> Result<(), Damage> {
        let epoch = number(reader)?;
        answered.topic_type = TopicType::decode(reader)?;
        answered.epoch = epoch;
        answered.head_seq = number(reader)?;
        answered.answer = match reader.u8()? {
            ANSWERED_DIVERGED => Answered::Diverged,
            ANSWERED_GONE => Answered::Gone,
            ANSWERED_PAGE => Answered::Page(self.page(reader, answered)?),
            _ => return Err(reader.malformed().into()),
        };
        if reader.is_empty() { Ok(()) } else { Err(reader.malformed().into()) }
    }

    fn page(&self, reader: &mut Reader<'_>, topic: &AnsweredTopic) -> Result<AnsweredPage, Damage> {
        let own = self.numbered(reader.varint_u32()?)?;
        let instance = &self.instances[own as usize];
        if (instance.cluster_id, &*instance.topic, instance.epoch)
            != (self.cluster.id, topic.topic.as_str(), topic.epoch)
        {
            return Err(Damage::of_page("it is another topic's"));
        }
        let start_seq = number(reader)?;
        let (to_seq, to_entry) = (number(reader)?, read_entry_id(reader)?);
        if to_entry.is_some_and(|entry| entry.term >= SEQ_LIMIT || entry.index >= SEQ_LIMIT) {
            return Err(Damage::of_page("the number of an entry is too high"));
        }
        let lost = self.lost(reader)?;
        let sent = read_items(reader)?;
        let record_count = reader.count(2)? as u64;
        let (mut gaps, mut counted) = (0, 0);
        for item in &sent {
            match item {
                CopyItem::Records { instance, count, .. } => {
                    self.numbered(*instance)?;
                    counted += u64::from(*count);
                }
                CopyItem::Gap { instance, .. } => {
                    self.numbered(*instance)?;
                    gaps += 1;
                }
            }
        }
        if counted != record_count || gaps + counted > MAX_PULL_ITEMS as u64 {
            return Err(Damage::of_page("it does not hold what it says, or too much"));
        }
        // Each takes up a seq there.
        if gaps + counted > to_seq.saturating_sub(start_seq) {
            return Err(Damage::of_page("it holds more than the seqs that it covers"));
        }
        let (items, records) = self.records(reader, &topic.topic, own, start_seq..=to_seq, sent)?;
        Ok(AnsweredPage { instance: own, start_seq, to_seq, to_entry, lost, items, records })
    }

    /// Reads the records of all items.
    fn records(
        &self,
        reader: &mut Reader<'_>,
        topic: &str,
        own: u32,
        seqs: RangeInclusive<u64>,
        sent: Vec<CopyItem>,
    ) -> Result<(Vec<CopyItem>, Vec<Bytes>), Damage> {
        let skips = self.skips.get(topic);
        let (mut items, mut records) = (Vec::with_capacity(sent.len()), Vec::new());
        let (mut last_seq, to_seq) = seqs.into_inner();
        for item in sent {
            let CopyItem::Records { instance, origin_seq, origin_ts_ms, source_seq, count } = item else {
                items.push(item);
                continue;
            };
            for (seq, at) in (source_seq..).zip(0..u64::from(count)) {
                let bad = |what| Damage { seq: Some(seq), what };
                let record = reader.blob().map_err(|malformed| bad(malformed.0))?;
                let place = [u64::from(instance), origin_seq + at, origin_ts_ms, seq];
                let checked = check_foreign(record).and_then(|()| is_placed(own, place, last_seq..=to_seq));
                last_seq = seq;
                match checked {
                    Ok(()) => {
                        push_record(&mut items, place);
                        records.push(shared_slice(self.whole, record));
                    }
                    Err(_) if skips.is_some_and(|skips| skips.contains(&seq)) => {
                        items.push(CopyItem::Gap { instance: own, from_seq: seq, to_seq: seq });
                    }
                    Err(BadRecord(what)) => return Err(bad(what)),
                }
            }
        }
        Ok((items, records))
    }

    fn lost(&self, reader: &mut Reader<'_>) -> Result<AnsweredLost, Damage> {
        let seqs = read_ranges_up_to(reader, MAX_TOLD_RANGES)?;
        if seqs.is_empty() {
            return Ok(AnsweredLost::default());
        }
        let own = read_ranges_up_to(reader, MAX_TOLD_RANGES)?;
        let mut others = None;
        if reader.bool()? {
            let count = reader.count(2)?;
            if count > MAX_TOLD_RANGES {
                return Err(reader.malformed().into());
            }
            let mut left = MAX_TOLD_RANGES_IN_ALL;
            let each = |_| -> Result<_, Damage> {
                let number = self.numbered(reader.varint_u32()?)?;
                let ranges = read_ranges_up_to(reader, left.min(MAX_TOLD_RANGES))?;
                left -= ranges.len();
                Ok((number, ranges))
            };
            others = Some((0..count).map(each).collect::<Result<_, _>>()?);
        }
        Ok(AnsweredLost { seqs, own, others })
    }

    /// A number of an instance that is there.
    fn numbered(&self, number: u32) -> Result<u32, Damage> {
        match self.instances.get(number as usize) {
            Some(_) => Ok(number),
            None => Err(Damage::of_page("it names an origin that is not told")),
        }
    }
}

/// Whether a record may stand where it stands: in order, and what was first written in the topic itself under its own
/// seq.
fn is_placed(
    own: u32,
    [instance, origin_seq, origin_ts_ms, seq]: [u64; 4],
    seqs: RangeInclusive<u64>,
) -> Result<(), BadRecord> {
    if seq <= *seqs.start() || seq > *seqs.end() {
        return Err(BadRecord("out of order"));
    }
    if instance == u64::from(own) && origin_seq != seq {
        return Err(BadRecord("another seq than its own"));
    }
    if origin_ts_ms >= SEQ_LIMIT { Err(BadRecord("a time that is too late")) } else { Ok(()) }
}

/// A seq or an epoch.
fn number(reader: &mut Reader<'_>) -> Result<u64, Malformed> {
    let number = reader.varint()?;
    if number < SEQ_LIMIT { Ok(number) } else { Err(Malformed("a number that is too high")) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::PullReply;
    use crate::engine::{Lost, PageRecord, Pulled, PulledItem, PulledPage, PulledTopic, RecordOrigin};
    use crate::record::{EntryBuilder, EntryRecords, HeaderEdit, Record};
    use crate::router::wire;
    use crate::state::Overlay;

    fn remote() -> Cluster {
        Cluster { id: 9, name: "east".into() }
    }

    fn instance(cluster_id: u128, topic: &str) -> Arc<Instance> {
        Arc::new(Instance { cluster_id, cluster: "east".into(), topic: topic.into(), epoch: 3 })
    }

    fn stored(data: &str) -> Vec<u8> {
        let mut builder = EntryBuilder::new(1, 1, 0);
        builder.push(&Record { tag: Some("x"), data, ..Record::default() });
        EntryRecords::parse(builder.finish().freeze()).unwrap().record(0).unwrap().to_vec()
    }

    /// A record at `seq` with these bytes.
    fn record(seq: u64, stored: &[u8]) -> PageRecord {
        let mut builder = EntryBuilder::new(1, 1, 0);
        builder.push_stored(stored, HeaderEdit::default()).unwrap();
        PageRecord {
            seq,
            ts_ms: 77,
            entry: EntryRecords::parse(builder.finish().freeze()).unwrap(),
            position: 0,
            entry_id: EntryId { term: 1, index: seq },
            overlay: Overlay::default(),
            origin: None,
        }
    }

    fn page(records: Vec<PageRecord>) -> PulledPage {
        PulledPage {
            start_seq: 0,
            to_seq: 20,
            to_entry: None,
            lost: Lost::default(),
            items: records.into_iter().map(PulledItem::Record).collect(),
        }
    }

    fn topic(name: &str, page: PulledPage) -> PulledTopic {
        let content = Pulled::Page(page);
        PulledTopic { topic: name.into(), epoch: 3, topic_type: TopicType::Log, head_seq: 20, content }
    }

    fn encoded(topics: &[PulledTopic]) -> Bytes {
        encoded_as(topics, |topic| instance(9, &topic.topic))
    }

    fn encoded_as(topics: &[PulledTopic], own: impl Fn(&PulledTopic) -> Arc<Instance>) -> Bytes {
        let reply = PullReply { next_epoch: 4, news: News::Nothing, examined: 1, topics: topics.to_vec() };
        wire::encoded(&remote(), &reply, own)
    }

    #[test]
    fn who_brings_nothing_seq_by_seq_does_not_come_on() {
        // C-MIRROR-11
        let empty = |to_seq| PulledPage { start_seq: 5, to_seq, ..page(Vec::new()) };
        let has_come_on = |page: PulledPage, head_seq| {
            let answer = PullAnswer::decode(&encoded(&[topic("t", page)]), &Skips::new()).unwrap();
            answer.topics[0].answer.has_come_on(head_seq)
        };
        assert!(!has_come_on(empty(6), 1 << 50) && has_come_on(empty(6), 6));
        assert!(has_come_on(empty(5 + MIN_EMPTY_PAGE_SEQS), 1 << 50));
        assert!(has_come_on(
            PulledPage { start_seq: 5, to_seq: 8, ..page(vec![record(8, &stored("1"))]) },
            1 << 50
        ));
        assert!(!Answered::Gone.has_come_on(0));
    }

    fn damage(page: PulledPage) -> Option<Damage> {
        let answer = PullAnswer::decode(&encoded(&[topic("t", page)]), &Skips::new()).unwrap();
        match answer.topics[0].answer {
            Answered::Damaged(damage) => Some(damage),
            _ => None,
        }
    }

    #[test]
    fn one_bad_record_damages_its_topic_only() {
        // C-MIRROR-18
        let good = || page(vec![record(8, &stored("1"))]);
        for bad in [&[0][..], &[0, 0], &[0, 0, b'1', b' '], &[3, 2, 1, 0xff, 0, b'1']] {
            let bad = page(vec![record(8, &stored("1")), record(9, bad)]);
            let topics = [topic("a", good()), topic("b", bad), topic("c", good())];
            let answer = PullAnswer::decode(&encoded(&topics), &Skips::new()).unwrap();
            let seqs: Vec<_> = answer
                .topics
                .iter()
                .map(|topic| match &topic.answer {
                    Answered::Damaged(damage) => Err(damage.seq),
                    Answered::Page(page) => Ok(page.records.len()),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(seqs, [Ok(1), Err(Some(9)), Ok(1)]);
        }
    }

    #[test]
    fn a_record_that_is_skipped_is_a_gap() {
        let records =
            |bad: &[u8]| [7, 8, 9].map(|seq| record(seq, if seq == 8 { bad } else { &[0, 0, b'1'] }));
        let skips = Skips::from([("t".to_owned(), BTreeSet::from([8, 9]))]);
        let items = |bad: &[u8]| {
            let answer =
                PullAnswer::decode(&encoded(&[topic("t", page(records(bad).into()))]), &skips).unwrap();
            let Answered::Page(page) = &answer.topics[0].answer else { panic!("no page") };
            (page.items.clone(), page.records.len())
        };
        let of = |seq, count| CopyItem::Records {
            instance: 0,
            origin_seq: seq,
            origin_ts_ms: 77,
            source_seq: seq,
            count,
        };
        let gap = CopyItem::Gap { instance: 0, from_seq: 8, to_seq: 8 };
        assert_eq!(items(&[0]), (vec![of(7, 1), gap, of(9, 1)], 2));
        // One that is well after all is taken.
        assert_eq!(items(&[0, 0, b'2']), (vec![of(7, 3)], 3));
    }

    #[test]
    fn what_no_cluster_can_say_is_not_believed() {
        let well = || page(vec![record(8, &stored("1"))]);
        assert_eq!(damage(well()), None);
        assert!(damage(PulledPage { to_seq: SEQ_LIMIT, ..well() }).is_some());
        assert!(damage(PulledPage { to_seq: 7, ..well() }).is_some(), "beyond its own end");
        let far = Some(EntryId { term: 1, index: SEQ_LIMIT });
        assert!(damage(PulledPage { to_entry: far, ..well() }).is_some());
        let lost = |seqs: Ranges| Lost { seqs, own: Vec::new(), others: None };
        assert!(damage(PulledPage { lost: lost(vec![1..=1 << 62]), ..well() }).is_some());
        let many = (1..=MAX_TOLD_RANGES as u64 + 1).map(|seq| seq * 2..=seq * 2).collect();
        assert!(damage(PulledPage { lost: lost(many), ..well() }).is_some());
        for seqs in [[8, 8], [9, 8]] {
            let twice = page(seqs.map(|seq| record(seq, &stored("1"))).into());
            assert_eq!(damage(twice).and_then(|damage| damage.seq), Some(8), "{seqs:?}");
        }
        let origin = |instance, seq, ts_ms| Some(RecordOrigin { instance, seq, ts_ms });
        let of = |origin| damage(page(vec![PageRecord { origin, ..record(8, &stored("1")) }]));
        assert_eq!(of(origin(instance(7, "t"), 5, 1)), None);
        assert!(of(origin(instance(9, "t"), 5, 1)).is_some(), "another seq of its own");
        assert!(of(origin(instance(7, "t"), 5, SEQ_LIMIT)).is_some());
        // The part of another topic.
        let wrong = |cluster_id, name: &'static str| {
            let bytes = encoded_as(&[topic("t", well())], |_| instance(cluster_id, name));
            let answer = PullAnswer::decode(&bytes, &Skips::new()).unwrap();
            matches!(answer.topics[0].answer, Answered::Damaged(_))
        };
        assert!(!wrong(9, "t") && wrong(9, "u") && wrong(8, "t"));
    }

    #[test]
    fn an_answer_is_bounded_in_all_that_stays() {
        let gap = |from| {
            PulledItem::Gap(crate::engine::LostAtSource {
                instance: instance(7, "t"),
                gap_from: from,
                gap_to: from,
            })
        };
        let gaps = |count: u64, to_seq| {
            let page = PulledPage { start_seq: 5, to_seq, ..page(Vec::new()) };
            damage(PulledPage { items: (1..=count).map(gap).collect(), ..page })
        };
        let most = MAX_PULL_ITEMS as u64;
        assert_eq!(gaps(most, 5 + most), None);
        assert!(gaps(most + 1, 5 + 2 * most).is_some());
        assert!(gaps(most, 4 + most).is_some() && gaps(1, 5).is_some(), "each takes up a seq");
        let before = PulledPage { start_seq: 8, ..page(vec![record(8, &stored("1"))]) };
        assert!(damage(before).is_some(), "before where it begins");
        let told = |ranges: u64| {
            let ranges: Ranges = (1..=ranges).map(|at| 2 * at..=2 * at).collect();
            let others = (0..5).map(|_| (instance(7, "t"), ranges.clone())).collect();
            let lost = Lost { seqs: vec![1..=2], own: Vec::new(), others: Some(others) };
            damage(PulledPage { lost, ..page(Vec::new()) })
        };
        let most = MAX_TOLD_RANGES_IN_ALL as u64 / 5;
        assert!(told(most).is_none() && told(most + 1).is_some());
        // Names that become labels, and more of them than anything comes from.
        let named = |cluster: &str, count: u64| {
            let mut bytes = bytes::BytesMut::new();
            bytes::BufMut::put_u8(&mut bytes, VERSION);
            remote().encode(&mut bytes);
            crate::codec::put_varint(&mut bytes, count);
            for epoch in 0..count {
                let (cluster, topic) = (cluster.into(), "t".into());
                Instance { cluster_id: 9, cluster, topic, epoch }.put(&mut bytes);
            }
            // The next epoch, no news, none examined, no topics.
            bytes::BufMut::put_slice(&mut bytes, &[0; 4]);
            PullAnswer::decode(&bytes.freeze(), &Skips::new()).is_ok()
        };
        assert!(named("east", 0) && !named("east", 1));
        let long = "x".repeat(65);
        for cluster in ["", "a b", "ä", long.as_str()] {
            let instance = Instance { cluster: cluster.into(), ..(*instance(7, "t")).clone() };
            let origin = Some(RecordOrigin { instance: Arc::new(instance), seq: 5, ts_ms: 1 });
            let page = page(vec![PageRecord { origin, ..record(8, &stored("1")) }]);
            assert!(PullAnswer::decode(&encoded(&[topic("t", page)]), &Skips::new()).is_err(), "{cluster:?}");
        }
    }

    proptest! {
        #[test]
        fn damage_never_gets_through(at: prop::sample::Index, byte: u8) {
            let topics = [topic("a", page(vec![record(8, &stored("[1,2]")), record(9, &stored("{}"))]))];
            let mut bytes = encoded(&topics).to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let Ok(answer) = PullAnswer::decode(&bytes.into(), &Skips::new()) else { return Ok(()) };
            for topic in answer.topics {
                let Answered::Page(page) = topic.answer else { continue };
                for record in page.records {
                    prop_assert_eq!(check_foreign(&record), Ok(()));
                }
            }
        }
    }
}
