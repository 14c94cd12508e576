//! What clusters say to each other: the body of a pull and of its answer, which `answer.rs` reads.
//!
//! Binary, because a mirror carries as many records as the topics get, and none of them has to be taken apart
//! on the way. Versioned, as two clusters are never brought to a new version at the same moment; an answer is
//! of the version of its request, or an error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{Malformed, Reader, put_blob, put_optional_number, put_optional_text, put_varint};
use crate::engine::{Lost, PullCursor, PullQuery, Pulled, PulledItem, PulledTopic, Sources};
use crate::filter::Filter;
use crate::limits::{MAX_PULL_BYTES, MAX_PULL_WAIT_MS};
use crate::record::{HeaderEdit, put_edited};
use crate::state::{Cluster, CopyItem, Instance, Start, put_entry_id, put_items, put_ranges, read_entry_id};

/// In version 1 nothing told how long a topic's part is.
pub(super) const VERSION: u8 = 2;
pub(super) const ANSWERED_DIVERGED: u8 = 0;
pub(super) const ANSWERED_PAGE: u8 = 1;
pub(super) const ANSWERED_GONE: u8 = 2;

/// A pull, as it is asked for.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// Who asks.
    pub puller: Cluster,
    pub query: PullQuery,
}

impl PullRequest {
    pub fn encode(&self) -> Bytes {
        let PullQuery { sources, excluded, cursors, start, filter, dest, wait_ms, max_bytes, .. } =
            &self.query;
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        self.puller.encode(&mut out);
        let (is_prefix, name) = match sources {
            Sources::One(topic) => (0, topic),
            Sources::Prefix(prefix) => (1, prefix),
        };
        out.put_u8(is_prefix);
        put_blob(&mut out, name.as_bytes());
        put_varint(&mut out, excluded.len() as u64);
        excluded.iter().for_each(|topic| put_blob(&mut out, topic.as_bytes()));
        put_varint(&mut out, cursors.len() as u64);
        for (topic, PullCursor { epoch, seq, entry }) in cursors {
            put_blob(&mut out, topic.as_bytes());
            put_varint(&mut out, *epoch);
            put_varint(&mut out, *seq);
            put_entry_id(&mut out, *entry);
        }
        let (kind, number) = match start {
            None => (0, None),
            Some(Start::Latest) => (1, None),
            Some(Start::Earliest) => (2, None),
            Some(Start::Seq(seq)) => (3, Some(*seq)),
            Some(Start::Ts(ts_ms)) => (4, Some(*ts_ms)),
        };
        out.put_u8(kind);
        put_optional_number(&mut out, number);
        put_optional_text(&mut out, filter.as_ref().map(|filter| filter.to_string()).as_deref());
        put_optional_text(&mut out, dest.as_deref());
        put_varint(&mut out, *wait_ms);
        put_varint(&mut out, *max_bytes as u64);
        out.freeze()
    }

    /// An error is a sentence for the other side.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader::new(bytes, "pull");
        let version = reader.u8().map_err(|error| error.to_string())?;
        if version != VERSION {
            return Err(format!("pulls of version {version} are not known here, only of {VERSION}"));
        }
        let request = Self::decode_rest(&mut reader).map_err(|error| error.to_string())?;
        reader.finish().map_err(|error| error.to_string())?;
        let PullQuery { sources, cursors, excluded, .. } = &request.query;
        // Whether another topic is there is nobody's business who may not ask for it.
        if let Some(stray) = cursors.keys().chain(excluded).find(|topic| !sources.cover(topic)) {
            return Err(format!("the pull is not about topic {stray:?}, which it names"));
        }
        Ok(request)
    }

    fn decode_rest(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let puller = Cluster::decode(reader)?;
        let is_prefix = reader.bool()?;
        let name = reader.text()?.to_owned();
        let sources = if is_prefix { Sources::Prefix(name) } else { Sources::One(name) };
        let count = reader.count(1)?;
        let excluded: BTreeSet<String> =
            (0..count).map(|_| reader.text().map(str::to_owned)).collect::<Result<_, _>>()?;
        let count = reader.count(4)?;
        let cursor = |reader: &mut Reader<'_>| -> Result<(String, PullCursor), Malformed> {
            let topic = reader.text()?.to_owned();
            let (epoch, seq) = (reader.varint()?, reader.varint()?);
            Ok((topic, PullCursor { epoch, seq, entry: read_entry_id(reader)? }))
        };
        let cursors: BTreeMap<String, PullCursor> =
            (0..count).map(|_| cursor(reader)).collect::<Result<_, _>>()?;
        let kind = reader.u8()?;
        let start = match (kind, reader.optional_number()?) {
            (0, None) => None,
            (1, None) => Some(Start::Latest),
            (2, None) => Some(Start::Earliest),
            (3, Some(seq)) => Some(Start::Seq(seq)),
            (4, Some(ts_ms)) => Some(Start::Ts(ts_ms)),
            _ => return Err(reader.malformed()),
        };
        let filter = reader.optional_text()?.map(Filter::parse_canonical).transpose();
        let filter = filter.map_err(|_| Malformed("pull: the filter"))?.map(Arc::new);
        let dest = reader.optional_text()?.map(str::to_owned);
        let wait_ms = reader.varint()?.min(MAX_PULL_WAIT_MS);
        let max_bytes = reader.varint()?.clamp(1, MAX_PULL_BYTES as u64) as usize;
        let query = PullQuery {
            sources,
            excluded,
            cursors,
            start,
            filter,
            puller_id: puller.id,
            dest,
            wait_ms,
            max_bytes,
        };
        Ok(PullRequest { puller, query })
    }
}

/// Numbers of the instances that an answer names.
#[derive(Default)]
struct Named {
    all: Vec<Arc<Instance>>,
    /// The one that was asked for last, nearly always the next one too.
    last: usize,
}

impl Named {
    fn number(&mut self, instance: &Arc<Instance>) -> u32 {
        if self.all.get(self.last).is_none_or(|last| last != instance) {
            self.last = self.all.iter().position(|known| known == instance).unwrap_or(self.all.len());
            if self.last == self.all.len() {
                self.all.push(instance.clone());
            }
        }
        self.last as u32
    }
}

/// Writes the answer to a pull down. `own` tells the instance that a topic's own records come from; an error is
/// damage.
pub fn encode_answer(
    cluster: &Cluster,
    topics: &[PulledTopic],
    own: impl Fn(&PulledTopic) -> Arc<Instance>,
) -> Result<Bytes, Malformed> {
    let mut named = Named::default();
    let mut body = BytesMut::new();
    put_varint(&mut body, topics.len() as u64);
    for topic in topics {
        put_blob(&mut body, topic.topic.as_bytes());
        // Whoever cannot read this topic's part can go on behind it.
        let length_at = body.len();
        body.put_u32_le(0);
        put_topic(&mut body, &mut named, topic, &own)?;
        let length = (body.len() - length_at - 4) as u32;
        body[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }
    let mut out = BytesMut::with_capacity(body.len() + 256);
    out.put_u8(VERSION);
    cluster.encode(&mut out);
    put_varint(&mut out, named.all.len() as u64);
    named.all.iter().for_each(|instance| instance.put(&mut out));
    out.unsplit(body);
    Ok(out.freeze())
}

fn put_topic(
    body: &mut BytesMut,
    named: &mut Named,
    topic: &PulledTopic,
    own: impl Fn(&PulledTopic) -> Arc<Instance>,
) -> Result<(), Malformed> {
    for value in [topic.epoch, topic.topic_type as u64, topic.head_seq] {
        put_varint(body, value);
    }
    let page = match &topic.content {
        Pulled::Diverged => {
            body.put_u8(ANSWERED_DIVERGED);
            return Ok(());
        }
        Pulled::Gone => {
            body.put_u8(ANSWERED_GONE);
            return Ok(());
        }
        Pulled::Page(page) => page,
    };
    body.put_u8(ANSWERED_PAGE);
    let own = own(topic);
    put_varint(body, u64::from(named.number(&own)));
    put_varint(body, page.to_seq);
    put_entry_id(body, page.to_entry);
    put_lost(body, &page.lost, named);
    let (mut items, mut records) = (Vec::new(), BytesMut::new());
    let mut record_count = 0u64;
    for item in &page.items {
        let record = match item {
            PulledItem::Gap(gap) => {
                let instance = named.number(&gap.instance);
                items.push(CopyItem::Gap { instance, from_seq: gap.gap_from, to_seq: gap.gap_to });
                continue;
            }
            PulledItem::Record(record) => record,
        };
        let (instance, origin_seq, origin_ts_ms) = match &record.origin {
            Some(origin) => (named.number(&origin.instance), origin.seq, origin.ts_ms),
            None => (named.number(&own), record.seq, record.ts_ms),
        };
        push_record(&mut items, [u64::from(instance), origin_seq, origin_ts_ms, record.seq]);
        let edit = HeaderEdit {
            drops_node: record.overlay.drops_node,
            drops_tag: record.overlay.drops_tag,
            default_node: None,
        };
        let mut stored = BytesMut::with_capacity(record.stored().len() + 2);
        put_edited(&mut stored, record.stored(), edit)?;
        put_blob(&mut records, &stored);
        record_count += 1;
    }
    put_items(body, &items);
    put_varint(body, record_count);
    body.unsplit(records);
    Ok(())
}

/// Adds a record to the items, to the last one if it follows that.
pub(super) fn push_record(items: &mut Vec<CopyItem>, [number, seq, ts_ms, at_source]: [u64; 4]) {
    if let Some(CopyItem::Records { instance, origin_seq, origin_ts_ms, source_seq, count }) =
        items.last_mut()
    {
        let more = u64::from(*count);
        let expected = [u64::from(*instance), *origin_seq + more, *origin_ts_ms, *source_seq + more];
        if expected == [number, seq, ts_ms, at_source] {
            *count += 1;
            return;
        }
    }
    items.push(CopyItem::Records {
        instance: number as u32,
        origin_seq: seq,
        origin_ts_ms: ts_ms,
        source_seq: at_source,
        count: 1,
    });
}

fn put_lost(out: &mut BytesMut, lost: &Lost, named: &mut Named) {
    put_ranges(out, &lost.seqs);
    if lost.seqs.is_empty() {
        return;
    }
    put_ranges(out, &lost.own);
    out.put_u8(lost.others.is_some() as u8);
    if let Some(others) = &lost.others {
        put_varint(out, others.len() as u64);
        for (instance, taken) in others {
            put_varint(out, u64::from(named.number(instance)));
            put_ranges(out, taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::{LostAtSource, PageRecord, PulledPage, RecordOrigin};
    use crate::record::{EntryBuilder, EntryRecords, Record};
    use crate::router::answer::{Answered, PullAnswer, Skips};
    use crate::state::{Overlay, TopicType};
    use crate::storage::EntryId;

    fn cluster(name: &str, id: u128) -> Cluster {
        Cluster { id, name: name.into() }
    }

    fn instance(cluster: &str, id: u128) -> Arc<Instance> {
        Arc::new(Instance { cluster_id: id, cluster: cluster.into(), topic: "t".into(), epoch: 3 })
    }

    #[test]
    fn a_pull_comes_back() {
        let cursor = PullCursor { epoch: 2, seq: 9, entry: Some(EntryId { term: 1, index: 7 }) };
        let query = PullQuery {
            sources: Sources::Prefix("m:".into()),
            excluded: BTreeSet::from(["m:x".into()]),
            cursors: BTreeMap::from([("m:a".into(), cursor)]),
            start: Some(Start::Ts(7)),
            filter: Some(Arc::new(Filter::parse(r#"["tag","Eq","x"]"#).unwrap())),
            puller_id: 5,
            dest: Some("d".into()),
            wait_ms: 100,
            max_bytes: 1000,
        };
        let request = PullRequest { puller: cluster("west", 5), query };
        let bytes = request.encode();
        let read = PullRequest::decode(&bytes).unwrap();
        assert_eq!(format!("{read:?}"), format!("{request:?}"));
        let stray = PullCursor { epoch: 2, seq: 9, entry: None };
        let mut query = request.query.clone();
        query.cursors.insert("other".into(), stray);
        let other = PullRequest { query, ..request.clone() };
        assert!(PullRequest::decode(&other.encode()).unwrap_err().contains("\"other\""));
        let mut later = bytes.to_vec();
        later[0] += 1;
        assert!(PullRequest::decode(&later).unwrap_err().contains("version"));
    }

    #[test]
    fn an_answer_says_what_was_pulled() {
        let records = [
            Record { node: Some("n"), tag: Some("x"), data: "1", ..Record::default() },
            Record { data: "2", ..Record::default() },
        ];
        let mut builder = EntryBuilder::new(1, 2, 0);
        records.iter().for_each(|record| builder.push(record));
        let entry = EntryRecords::parse(builder.finish().freeze()).unwrap();
        let north = instance("north", 8);
        let record = |position: u32, overlay, origin| PageRecord {
            seq: 10 + u64::from(position),
            ts_ms: 77,
            entry: entry.clone(),
            position,
            entry_id: EntryId { term: 1, index: 4 },
            overlay,
            origin,
        };
        let copied = Some(RecordOrigin { instance: north.clone(), seq: 5, ts_ms: 60 });
        let hidden = Overlay { drops_node: true, drops_tag: true };
        let gap = LostAtSource { instance: north.clone(), gap_from: 1, gap_to: 3 };
        let page = PulledPage {
            to_seq: 11,
            to_entry: Some(EntryId { term: 1, index: 4 }),
            lost: Lost {
                seqs: vec![2..=4],
                own: vec![2..=2],
                others: Some(vec![(north.clone(), vec![1..=9])]),
            },
            items: vec![
                PulledItem::Gap(gap),
                PulledItem::Record(record(0, hidden, copied)),
                PulledItem::Record(record(1, Overlay::default(), None)),
            ],
        };
        let topic = |content| PulledTopic {
            topic: "t".into(),
            epoch: 3,
            topic_type: TopicType::Queue,
            head_seq: 12,
            content,
        };
        let topics = [topic(Pulled::Page(page)), topic(Pulled::Diverged), topic(Pulled::Gone)];
        let east = instance("east", 9);
        let bytes = encode_answer(&cluster("east", 9), &topics, |_| east.clone()).unwrap();
        let answer = PullAnswer::decode(&bytes, &Skips::new()).unwrap();
        assert_eq!(answer.cluster, cluster("east", 9));
        assert_eq!(answer.instances, [(*east).clone(), (*north).clone()]);
        assert_eq!(answer.topics[1].answer, Answered::Diverged);
        assert_eq!(answer.topics[2].answer, Answered::Gone);
        let Answered::Page(page) = &answer.topics[0].answer else { panic!("no page") };
        assert_eq!((page.instance, page.to_seq), (0, 11));
        assert_eq!((&page.lost.seqs[..], &page.lost.own[..]), (&[2..=4][..], &[2..=2][..]));
        assert_eq!(page.lost.others, Some(vec![(1, vec![1..=9])]));
        let of = |instance, origin_seq, origin_ts_ms, source_seq| CopyItem::Records {
            instance,
            origin_seq,
            origin_ts_ms,
            source_seq,
            count: 1,
        };
        let gap = CopyItem::Gap { instance: 1, from_seq: 1, to_seq: 3 };
        assert_eq!(page.items, [gap, of(1, 5, 60, 10), of(0, 11, 77, 11)]);
        let shown = Record { node: None, tag: None, ..records[0] };
        assert_eq!(Record::decode(&page.records[0]), Ok(shown));
        assert_eq!(Record::decode(&page.records[1]), Ok(records[1]));
        for cut in 0..bytes.len() {
            assert!(PullAnswer::decode(&bytes.slice(..cut), &Skips::new()).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = PullRequest::decode(&bytes);
            let _ = PullAnswer::decode(&Bytes::from(bytes), &Skips::new());
        }
    }
}
