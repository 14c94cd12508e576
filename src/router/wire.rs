//! What clusters say to each other: the body of a pull and of its answer.
//!
//! Binary, because a mirror carries as many records as the topics get, and none of them has to be looked at
//! on the way. Versioned, as two clusters are never brought to a new version at the same moment; an answer is
//! of the version of its request, or an error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{
    Malformed, Reader, put_blob, put_optional_number, put_optional_text, put_varint, shared_slice,
};
use crate::engine::{PullCursor, PullQuery, Pulled, PulledItem, PulledTopic, Sources};
use crate::filter::Filter;
use crate::limits::{MAX_PULL_BYTES, MAX_PULL_WAIT_MS};
use crate::record::{HeaderEdit, put_edited};
use crate::state::{Cluster, CopyItem, Instance, Ranges, Start, TopicType, put_items, put_ranges};
use crate::state::{read_items, read_ranges};
use crate::storage::EntryId;

const VERSION: u8 = 1;
const ANSWERED_DIVERGED: u8 = 0;
const ANSWERED_PAGE: u8 = 1;
const ANSWERED_GONE: u8 = 2;

/// A pull, as it is asked for.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// Who asks.
    pub puller: Cluster,
    pub query: PullQuery,
}

/// The answer to a pull, as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullAnswer {
    /// Who answers.
    pub cluster: Cluster,
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
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnsweredPage {
    /// Number of the topic itself among the instances.
    pub instance: u32,
    pub to_seq: u64,
    pub to_entry: Option<EntryId>,
    pub lost: Ranges,
    pub items: Vec<CopyItem>,
    /// The stored bytes of the records of all items, one after the other.
    pub records: Vec<Bytes>,
}

impl PullRequest {
    pub fn encode(&self) -> Bytes {
        let PullQuery { sources, excluded, cursors, start, filter, dest, wait_ms, max_bytes, .. } =
            &self.query;
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        put_cluster(&mut out, &self.puller);
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
            put_entry(&mut out, *entry);
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
        put_optional_text(&mut out, filter.as_ref().map(Filter::to_string).as_deref());
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
        Ok(request)
    }

    fn decode_rest(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let puller = read_cluster(reader)?;
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
            Ok((topic, PullCursor { epoch, seq, entry: read_entry(reader)? }))
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
        let filter = filter.map_err(|_| Malformed("pull: the filter"))?;
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
        for value in [topic.epoch, topic.topic_type as u64, topic.head_seq] {
            put_varint(&mut body, value);
        }
        let page = match &topic.content {
            Pulled::Diverged => {
                body.put_u8(ANSWERED_DIVERGED);
                continue;
            }
            Pulled::Gone => {
                body.put_u8(ANSWERED_GONE);
                continue;
            }
            Pulled::Page(page) => page,
        };
        body.put_u8(ANSWERED_PAGE);
        let own = own(topic);
        put_varint(&mut body, u64::from(named.number(&own)));
        put_varint(&mut body, page.to_seq);
        put_entry(&mut body, page.to_entry);
        put_ranges(&mut body, &page.lost);
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
        put_items(&mut body, &items);
        put_varint(&mut body, record_count);
        body.unsplit(records);
    }
    let mut out = BytesMut::with_capacity(body.len() + 256);
    out.put_u8(VERSION);
    put_cluster(&mut out, cluster);
    put_varint(&mut out, named.all.len() as u64);
    named.all.iter().for_each(|instance| instance.put(&mut out));
    out.unsplit(body);
    Ok(out.freeze())
}

/// Adds a record to the items, to the last one if it follows that.
fn push_record(items: &mut Vec<CopyItem>, [number, seq, ts_ms, at_source]: [u64; 4]) {
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

impl PullAnswer {
    pub fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "answer to a pull");
        if reader.u8()? != VERSION {
            return Err(Malformed("answer to a pull: of a version that is not known here"));
        }
        let cluster = read_cluster(&mut reader)?;
        let count = reader.count(19)?;
        let instances: Vec<Instance> =
            (0..count).map(|_| Instance::read(&mut reader)).collect::<Result<_, _>>()?;
        let count = reader.count(5)?;
        let mut topics = Vec::with_capacity(count);
        for _ in 0..count {
            let topic = reader.text()?.to_owned();
            let epoch = reader.varint()?;
            let topic_type = match reader.varint()? {
                0 => TopicType::Log,
                1 => TopicType::Queue,
                _ => return Err(reader.malformed()),
            };
            let head_seq = reader.varint()?;
            let answer = match reader.u8()? {
                ANSWERED_DIVERGED => Answered::Diverged,
                ANSWERED_PAGE => Answered::Page(read_page(&mut reader, bytes, instances.len())?),
                ANSWERED_GONE => Answered::Gone,
                _ => return Err(reader.malformed()),
            };
            topics.push(AnsweredTopic { topic, epoch, topic_type, head_seq, answer });
        }
        reader.finish()?;
        Ok(PullAnswer { cluster, instances, topics })
    }
}

fn read_page(
    reader: &mut Reader<'_>,
    whole: &Bytes,
    instance_count: usize,
) -> Result<AnsweredPage, Malformed> {
    let instance = reader.varint_u32()?;
    let (to_seq, to_entry) = (reader.varint()?, read_entry(reader)?);
    let lost = read_ranges(reader)?;
    let items = read_items(reader)?;
    let record_count = reader.count(2)?;
    let records: Vec<Bytes> = (0..record_count)
        .map(|_| reader.blob().map(|record| shared_slice(whole, record)))
        .collect::<Result<_, _>>()?;
    let mut expected = 0;
    let mut numbers = vec![instance];
    for item in &items {
        match item {
            CopyItem::Records { instance, count, .. } => {
                expected += *count as usize;
                numbers.push(*instance);
            }
            CopyItem::Gap { instance, .. } => numbers.push(*instance),
        }
    }
    if expected != records.len() || numbers.iter().any(|number| *number as usize >= instance_count) {
        return Err(reader.malformed());
    }
    Ok(AnsweredPage { instance, to_seq, to_entry, lost, items, records })
}

fn put_cluster(out: &mut BytesMut, cluster: &Cluster) {
    out.put_u128_le(cluster.id);
    put_blob(out, cluster.name.as_bytes());
}

fn read_cluster(reader: &mut Reader<'_>) -> Result<Cluster, Malformed> {
    Ok(Cluster { id: reader.u128()?, name: reader.text()?.to_owned() })
}

fn put_entry(out: &mut BytesMut, entry: Option<EntryId>) {
    put_optional_number(out, entry.map(|entry| entry.term));
    if let Some(entry) = entry {
        put_varint(out, entry.index);
    }
}

fn read_entry(reader: &mut Reader<'_>) -> Result<Option<EntryId>, Malformed> {
    let Some(term) = reader.optional_number()? else { return Ok(None) };
    Ok(Some(EntryId { term, index: reader.varint()? }))
}
