//! What clusters say to each other: the body of a pull and of its answer, which `answer.rs` reads.
//!
//! Binary, because a mirror carries as many records as the topics get, and none of them has to be taken apart
//! on the way. Versioned, as two clusters are never brought to a new version at the same moment; an answer is
//! of the version of its request, or an error.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{Malformed, Reader, put_blob, put_optional_number, put_optional_text, put_varint};
use crate::engine::{
    Ask, Beginning, ChangeCursor, Listed, Lost, News, PullCursor, PullQuery, PullReply, Pulled, PulledItem,
    PulledTopic, Sources, TopicNews,
};
use crate::filter::Filter;
use crate::limits::{
    MAX_LISTED_PER_PAGE, MAX_PULL_BYTES, MAX_PULL_WAIT_MS, MAX_PULL_WANTED, MAX_TOLD_CHANGES, SEQ_LIMIT,
};
use crate::record::{HeaderEdit, put_edited};
use crate::state::{Cluster, CopyItem, Instance, Start, put_entry_id, put_items, put_ranges, read_entry_id};

/// In version 1 nothing told how long a topic's part is, and a pull asked for all topics at once; in version 2 too.
pub(super) const VERSION: u8 = 3;
pub(super) const ANSWERED_DIVERGED: u8 = 0;
pub(super) const ANSWERED_PAGE: u8 = 1;
pub(super) const ANSWERED_GONE: u8 = 2;
const ASKED_NOTHING: u8 = 0;
const ASKED_LIST: u8 = 1;
const ASKED_CHANGED: u8 = 2;
const TOLD_NOTHING: u8 = 0;
const TOLD_LIST: u8 = 1;
const TOLD_CHANGED: u8 = 2;
const TOLD_UNKNOWN: u8 = 3;

/// A pull, as it is asked for.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// Who asks.
    pub puller: Cluster,
    pub query: PullQuery,
}

impl PullRequest {
    pub fn encode(&self) -> Bytes {
        let PullQuery { sources, wanted, ask, beginning, filter, dest, wait_ms, max_bytes, .. } = &self.query;
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        self.puller.encode(&mut out);
        let (is_prefix, name) = match sources {
            Sources::One(topic) => (0, topic),
            Sources::Prefix(prefix) => (1, prefix),
        };
        out.put_u8(is_prefix);
        put_blob(&mut out, name.as_bytes());
        put_varint(&mut out, wanted.len() as u64);
        for (topic, cursor) in wanted {
            put_blob(&mut out, topic.as_bytes());
            out.put_u8(cursor.is_some() as u8);
            if let Some(PullCursor { epoch, seq, entry }) = cursor {
                put_varint(&mut out, *epoch);
                put_varint(&mut out, *seq);
                put_entry_id(&mut out, *entry);
            }
        }
        match ask {
            Ask::Nothing => out.put_u8(ASKED_NOTHING),
            Ask::List { after } => {
                out.put_u8(ASKED_LIST);
                put_blob(&mut out, after.as_bytes());
            }
            Ask::ChangedBehind(cursor) => {
                out.put_u8(ASKED_CHANGED);
                put_change_cursor(&mut out, *cursor);
            }
        }
        put_varint(&mut out, beginning.map_or(0, |beginning| beginning.before_epoch));
        let (kind, number) = match beginning.map(|beginning| beginning.start) {
            None => (0, None),
            Some(Start::Latest) => (1, None),
            Some(Start::Earliest) => (2, None),
            Some(Start::Seq(seq)) => (3, Some(seq)),
            Some(Start::Ts(ts_ms)) => (4, Some(ts_ms)),
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
        Ok(request)
    }

    fn decode_rest(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let puller = Cluster::decode(reader)?;
        let is_prefix = reader.bool()?;
        let name = reader.text()?.to_owned();
        let sources = if is_prefix { Sources::Prefix(name) } else { Sources::One(name) };
        let count = reader.count(2)?;
        if count > MAX_PULL_WANTED {
            return Err(Malformed("pull: more topics than one may ask for"));
        }
        let mut wanted = Vec::with_capacity(count);
        for _ in 0..count {
            let topic = reader.text()?.to_owned();
            // Whether another topic is there is nobody's business who may not ask for it.
            if !sources.cover(&topic) {
                return Err(Malformed("pull: a topic that is not among its sources"));
            }
            let mut cursor = None;
            if reader.bool()? {
                let (epoch, seq) = (reader.varint()?, reader.varint()?);
                cursor = Some(PullCursor { epoch, seq, entry: read_entry_id(reader)? });
            }
            wanted.push((topic, cursor));
        }
        let ask = match reader.u8()? {
            ASKED_NOTHING => Ask::Nothing,
            ASKED_LIST => Ask::List { after: reader.text()?.to_owned() },
            ASKED_CHANGED => Ask::ChangedBehind(read_change_cursor(reader)?),
            _ => return Err(reader.malformed()),
        };
        let before_epoch = reader.varint()?;
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
        let beginning = start.map(|start| Beginning { start, before_epoch });
        let query = PullQuery {
            sources,
            wanted,
            ask,
            beginning,
            filter,
            puller_id: puller.id,
            dest,
            wait_ms,
            max_bytes,
        };
        Ok(PullRequest { puller, query })
    }
}

fn put_change_cursor(out: &mut BytesMut, cursor: ChangeCursor) {
    out.put_u64_le(cursor.feed);
    put_varint(out, cursor.number);
}

fn read_change_cursor(reader: &mut Reader<'_>) -> Result<ChangeCursor, Malformed> {
    Ok(ChangeCursor { feed: reader.u64()?, number: reader.varint()? })
}

fn put_news(out: &mut BytesMut, news: &News) {
    let (kind, told) = match news {
        News::Nothing => (TOLD_NOTHING, None),
        News::Unknown => (TOLD_UNKNOWN, None),
        News::Listed(Listed { topics, cursor, .. }) => (TOLD_LIST, Some((topics, cursor))),
        News::Changed { topics, cursor } => (TOLD_CHANGED, Some((topics, cursor))),
    };
    out.put_u8(kind);
    let Some((topics, cursor)) = told else { return };
    put_change_cursor(out, *cursor);
    put_varint(out, topics.len() as u64);
    for TopicNews { topic, epoch, head_seq } in topics {
        put_blob(out, topic.as_bytes());
        put_varint(out, *epoch);
        put_varint(out, *head_seq);
    }
    if let News::Listed(Listed { more_after, .. }) = news {
        put_optional_text(out, more_after.as_deref());
    }
}

pub(super) fn read_news(reader: &mut Reader<'_>) -> Result<News, Malformed> {
    let kind = reader.u8()?;
    match kind {
        TOLD_NOTHING => return Ok(News::Nothing),
        TOLD_UNKNOWN => return Ok(News::Unknown),
        TOLD_LIST | TOLD_CHANGED => {}
        _ => return Err(reader.malformed()),
    }
    let cursor = read_change_cursor(reader)?;
    let count = reader.count(3)?;
    let most = if kind == TOLD_LIST { MAX_LISTED_PER_PAGE } else { MAX_TOLD_CHANGES };
    if count > most {
        return Err(Malformed("news: of more topics than are told at once"));
    }
    let mut topics = Vec::with_capacity(count);
    for _ in 0..count {
        let (topic, epoch, head_seq) = (reader.text()?.into(), reader.varint()?, reader.varint()?);
        if epoch >= SEQ_LIMIT || head_seq >= SEQ_LIMIT {
            return Err(reader.malformed());
        }
        topics.push(TopicNews { topic, epoch, head_seq });
    }
    if kind == TOLD_CHANGED {
        return Ok(News::Changed { topics, cursor });
    }
    // Whoever lists goes on behind each name: they have to rise, or it would never end.
    if topics.windows(2).any(|pair| pair[0].topic >= pair[1].topic) {
        return Err(reader.malformed());
    }
    let more_after: Option<Arc<str>> = reader.optional_text()?.map(Into::into);
    let is_last = |name: &Arc<str>| topics.last().is_some_and(|last| last.topic == *name);
    if more_after.as_ref().is_some_and(|name| !is_last(name)) {
        return Err(reader.malformed());
    }
    Ok(News::Listed(Listed { topics, more_after, cursor }))
}

/// Numbers of the instances that an answer names.
#[derive(Default)]
struct Named {
    all: Vec<Arc<Instance>>,
    numbers: HashMap<Arc<Instance>, u32>,
    /// The one that was asked for last, nearly always the next one too.
    last: Option<(Arc<Instance>, u32)>,
}

impl Named {
    fn number(&mut self, instance: &Arc<Instance>) -> u32 {
        if let Some((_, number)) = self.last.as_ref().filter(|(last, _)| last == instance) {
            return *number;
        }
        let next = self.all.len() as u32;
        let number = *self.numbers.entry(instance.clone()).or_insert(next);
        if number == next {
            self.all.push(instance.clone());
        }
        self.last = Some((instance.clone(), number));
        number
    }
}

/// An answer to a pull, written down topic by topic: so others get the thread in between.
pub struct AnswerWriter {
    named: Named,
    body: BytesMut,
}

impl AnswerWriter {
    pub fn new(reply: &PullReply) -> Self {
        let mut body = BytesMut::new();
        put_varint(&mut body, reply.next_epoch);
        put_news(&mut body, &reply.news);
        put_varint(&mut body, reply.examined as u64);
        put_varint(&mut body, reply.topics.len() as u64);
        AnswerWriter { named: Named::default(), body }
    }

    /// Adds the next topic of the reply. `own` is the instance that its own records come from; an error is damage.
    pub fn push(&mut self, topic: &PulledTopic, own: &Arc<Instance>) -> Result<(), Malformed> {
        let AnswerWriter { body, .. } = self;
        put_blob(body, topic.topic.as_bytes());
        // Whoever cannot read this topic's part can go on behind it.
        let length_at = body.len();
        body.put_u32_le(0);
        self.put_topic(topic, own)?;
        let length = (self.body.len() - length_at - 4) as u32;
        self.body[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    fn put_topic(&mut self, topic: &PulledTopic, own: &Arc<Instance>) -> Result<(), Malformed> {
        let AnswerWriter { named, body } = self;
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
        put_varint(body, u64::from(named.number(own)));
        put_varint(body, page.start_seq);
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
                None => (named.number(own), record.seq, record.ts_ms),
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
        body.extend_from_slice(&records);
        Ok(())
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.body.len()
    }

    pub fn finish(self, cluster: &Cluster) -> Bytes {
        let AnswerWriter { named, body } = self;
        let mut out = BytesMut::with_capacity(body.len() + 256);
        out.put_u8(VERSION);
        cluster.encode(&mut out);
        put_varint(&mut out, named.all.len() as u64);
        named.all.iter().for_each(|instance| instance.put(&mut out));
        out.unsplit(body);
        out.freeze()
    }
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

/// A whole answer at once.
#[cfg(test)]
pub(super) fn encoded(
    cluster: &Cluster,
    reply: &PullReply,
    own: impl Fn(&PulledTopic) -> Arc<Instance>,
) -> Bytes {
    let mut writer = AnswerWriter::new(reply);
    reply.topics.iter().for_each(|topic| writer.push(topic, &own(topic)).unwrap());
    writer.finish(cluster)
}

#[cfg(test)]
mod tests;
