//! The commands that routers write: which seqs of a local source are due, and what a mirror has pulled.
//!
//! Both name what they go on from, so that applying one late or twice changes nothing.

use bytes::{BufMut, BytesMut};

use super::delete::Ranges;
use super::origins::Instance;
use super::seq_set::{put_ranges, read_ranges, read_ranges_up_to};
use super::topic_config::TopicType;
use super::{put_entry_id, read_entry_id};
use crate::codec::{Malformed, Reader, put_blob, put_optional_number, put_varint, unzigzag, zigzag};
use crate::limits::{MAX_TOLD_RANGES, SEQ_LIMIT};
use crate::storage::EntryId;

/// What one local router has to copy next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutePart {
    /// The router.
    pub generation: u64,
    /// Its position, and the one after it.
    pub from_seq: u64,
    pub to_seq: u64,
    /// The seqs in between that pass its filter; `None` without one.
    pub picked: Option<Ranges>,
}

/// What a mirror has pulled. The records of all parts are those of the entry, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy<'a> {
    /// The router.
    pub generation: u64,
    /// The cluster that was asked.
    pub cluster_id: u128,
    /// The first epoch that no topic there had yet.
    pub next_epoch: u64,
    /// What the parts name by number.
    pub instances: Vec<Instance>,
    pub parts: Vec<CopyPart<'a>>,
    /// Topics there that are gone: the router's positions in them are forgotten.
    pub gone: Vec<&'a str>,
    /// Sources of which records were left out that the remote may not bring, and the seqs behind which they come.
    pub held: Vec<(&'a str, u64)>,
}

/// What was pulled of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyPart<'a> {
    pub source: &'a str,
    pub source_epoch: u64,
    pub source_type: TopicType,
    /// Number of the source among the instances.
    pub source_instance: u32,
    pub dest: &'a str,
    /// The instance that the copies are for; `None` if it is to be made.
    pub dest_epoch: Option<u64>,
    /// The position that this goes on from; `None` if there is none for these two instances.
    pub from_seq: Option<u64>,
    /// Where it begins if there is none, which counts also if nothing can be copied yet; `None` in commands of before
    /// that was told.
    pub start_seq: Option<u64>,
    /// The position after it, and the log entry there of the record at it, if that is known.
    pub to_seq: u64,
    pub to_entry: Option<EntryId>,
    /// Seqs of the source that went before they could be pulled.
    pub lost: Ranges,
    pub items: Vec<CopyItem>,
}

/// Something of the source, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyItem {
    /// The next `count` records of the entry: consecutive at the source, and where they were first written.
    Records { instance: u32, origin_seq: u64, origin_ts_ms: u64, source_seq: u64, count: u32 },
    /// A gap that the source has been told of.
    Gap { instance: u32, from_seq: u64, to_seq: u64 },
}

impl RoutePart {
    fn encode(&self, out: &mut BytesMut) {
        put_varint(out, self.generation);
        put_varint(out, self.from_seq);
        put_varint(out, self.to_seq);
        put_varint(out, u64::from(self.picked.is_some()));
        if let Some(ranges) = &self.picked {
            put_ranges(out, ranges);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(RoutePart {
            generation: reader.varint()?,
            from_seq: reader.varint()?,
            to_seq: reader.varint()?,
            picked: if reader.bool()? { Some(read_ranges(reader)?) } else { None },
        })
    }
}

pub(super) fn encode_route(parts: &[RoutePart], out: &mut BytesMut) {
    put_varint(out, parts.len() as u64);
    parts.iter().for_each(|part| part.encode(out));
}

pub(super) fn decode_route(reader: &mut Reader<'_>) -> Result<Vec<RoutePart>, Malformed> {
    let count = reader.count(4)?;
    (0..count).map(|_| RoutePart::decode(reader)).collect()
}

impl<'a> Copy<'a> {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        put_varint(out, self.generation);
        out.put_u128_le(self.cluster_id);
        put_varint(out, self.next_epoch);
        put_varint(out, self.instances.len() as u64);
        self.instances.iter().for_each(|instance| instance.put(out));
        put_varint(out, self.parts.len() as u64);
        self.parts.iter().for_each(|part| part.encode(out));
        put_varint(out, self.gone.len() as u64);
        self.gone.iter().for_each(|source| put_blob(out, source.as_bytes()));
        if !self.held.is_empty() {
            put_varint(out, self.held.len() as u64);
            for (source, seq) in &self.held {
                put_blob(out, source.as_bytes());
                put_varint(out, *seq);
            }
        }
    }

    /// `record_count` is that of the entry: the parts take up all of its records.
    pub(super) fn decode(reader: &mut Reader<'a>, record_count: u32) -> Result<Self, Malformed> {
        Self::decode_form(reader, record_count, true)
    }

    /// Reads the form that told nothing of where parts begin.
    pub(super) fn decode_first(reader: &mut Reader<'a>, record_count: u32) -> Result<Self, Malformed> {
        Self::decode_form(reader, record_count, false)
    }

    fn decode_form(reader: &mut Reader<'a>, record_count: u32, has_starts: bool) -> Result<Self, Malformed> {
        let (generation, cluster_id) = (reader.varint()?, reader.u128()?);
        let next_epoch = if has_starts { reader.varint()? } else { 0 };
        let count = reader.count(19)?;
        let instances = (0..count).map(|_| Instance::read(reader)).collect::<Result<_, _>>()?;
        let count = reader.count(9)?;
        let parts: Vec<CopyPart<'a>> =
            (0..count).map(|_| CopyPart::decode(reader, has_starts)).collect::<Result<_, _>>()?;
        if parts.iter().map(CopyPart::record_count).sum::<u64>() != u64::from(record_count) {
            return Err(reader.malformed());
        }
        let count = reader.count(1)?;
        let gone = (0..count).map(|_| reader.text()).collect::<Result<_, _>>()?;
        let count = if reader.is_empty() { 0 } else { reader.count(2)? };
        let held = |_| -> Result<_, Malformed> { Ok((reader.text()?, reader.varint()?)) };
        let held = (0..count).map(held).collect::<Result<_, _>>()?;
        Ok(Copy { generation, cluster_id, next_epoch, instances, parts, gone, held })
    }
}

impl<'a> CopyPart<'a> {
    /// Records of the entry that are this part's.
    pub fn record_count(&self) -> u64 {
        let counts = self.items.iter().map(|item| match item {
            CopyItem::Records { count, .. } => u64::from(*count),
            CopyItem::Gap { .. } => 0,
        });
        counts.sum()
    }

    fn encode(&self, out: &mut BytesMut) {
        put_blob(out, self.source.as_bytes());
        put_varint(out, self.source_epoch);
        put_varint(out, self.source_type as u64);
        put_varint(out, u64::from(self.source_instance));
        put_blob(out, self.dest.as_bytes());
        put_optional_number(out, self.dest_epoch);
        put_optional_number(out, self.from_seq);
        put_optional_number(out, self.start_seq);
        put_varint(out, self.to_seq);
        put_entry_id(out, self.to_entry);
        put_ranges(out, &self.lost);
        put_items(out, &self.items);
    }

    fn decode(reader: &mut Reader<'a>, has_starts: bool) -> Result<Self, Malformed> {
        let source = reader.text()?;
        let source_epoch = reader.varint()?;
        let source_type = TopicType::decode(reader)?;
        let source_instance = reader.varint_u32()?;
        let dest = reader.text()?;
        let (dest_epoch, from_seq) = (reader.optional_number()?, reader.optional_number()?);
        let start_seq = if has_starts { reader.optional_number()? } else { None };
        let (to_seq, to_entry) = (reader.varint()?, read_entry_id(reader)?);
        if source_epoch >= SEQ_LIMIT || to_seq >= SEQ_LIMIT {
            return Err(reader.malformed());
        }
        let lost = read_ranges_up_to(reader, MAX_TOLD_RANGES)?;
        let items = read_items(reader)?;
        Ok(CopyPart {
            source,
            source_epoch,
            source_type,
            source_instance,
            dest,
            dest_epoch,
            from_seq,
            start_seq,
            to_seq,
            to_entry,
            lost,
            items,
        })
    }
}

/// Appends items, each as what differs from what is expected behind the one before it.
pub fn put_items(out: &mut BytesMut, items: &[CopyItem]) {
    put_varint(out, items.len() as u64);
    let mut expected = [0; 3];
    for item in items {
        match item {
            CopyItem::Gap { instance, from_seq, to_seq } => {
                for value in [0, u64::from(*instance), *from_seq, to_seq - from_seq] {
                    put_varint(out, value);
                }
            }
            CopyItem::Records { instance, origin_seq, origin_ts_ms, source_seq, count } => {
                put_varint(out, u64::from(*count));
                put_varint(out, u64::from(*instance));
                for (value, expected) in [origin_seq, origin_ts_ms, source_seq].into_iter().zip(expected) {
                    put_varint(out, zigzag(value.wrapping_sub(expected) as i64));
                }
                let count = u64::from(*count);
                expected = [origin_seq + count, *origin_ts_ms, source_seq + count];
            }
        }
    }
}

/// Reads what [`put_items`] wrote. Every seq in it is above 0 and below [`SEQ_LIMIT`].
pub fn read_items(reader: &mut Reader<'_>) -> Result<Vec<CopyItem>, Malformed> {
    let item_count = reader.count(4)?;
    let mut items = Vec::with_capacity(item_count);
    let mut expected = [0u64; 3];
    for _ in 0..item_count {
        let (count, instance) = (reader.varint_u32()?, reader.varint_u32()?);
        let end = |first: u64, more: u64| first.checked_add(more).filter(|end| first > 0 && *end < SEQ_LIMIT);
        if count == 0 {
            let (from_seq, more) = (reader.varint()?, reader.varint()?);
            let to_seq = end(from_seq, more).ok_or(reader.malformed())?;
            items.push(CopyItem::Gap { instance, from_seq, to_seq });
            continue;
        }
        let mut values = expected;
        for value in &mut values {
            *value = value.wrapping_add(unzigzag(reader.varint()?) as u64);
        }
        let [origin_seq, origin_ts_ms, source_seq] = values;
        let ends = (end(origin_seq, u64::from(count)), end(source_seq, u64::from(count)));
        let (Some(origin_end), Some(source_end)) = ends else { return Err(reader.malformed()) };
        expected = [origin_end, origin_ts_ms, source_end];
        items.push(CopyItem::Records { instance, origin_seq, origin_ts_ms, source_seq, count });
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_item() -> impl Strategy<Value = CopyItem> {
        let records = (0u32..3, 1u64..1 << 50, 0u64..1 << 45, 1u64..1 << 50, 1u32..1 << 20).prop_map(
            |(instance, origin_seq, origin_ts_ms, source_seq, count)| CopyItem::Records {
                instance,
                origin_seq,
                origin_ts_ms,
                source_seq,
                count,
            },
        );
        let gap = (0u32..3, 1u64..1 << 50, 0u64..1 << 30).prop_map(|(instance, from_seq, more)| {
            CopyItem::Gap { instance, from_seq, to_seq: from_seq + more }
        });
        prop_oneof![records, gap]
    }

    proptest! {
        #[test]
        fn items_come_back_and_arbitrary_bytes_never_panic(
            items in proptest::collection::vec(any_item(), 0..20), bytes: Vec<u8>,
        ) {
            let mut out = BytesMut::new();
            put_items(&mut out, &items);
            let mut reader = Reader::new(&out, "items");
            prop_assert_eq!(read_items(&mut reader).unwrap(), items);
            prop_assert!(reader.finish().is_ok());
            let _ = read_items(&mut Reader::new(&bytes, "items"));
            let _ = Copy::decode(&mut Reader::new(&bytes, "copy"), 0);
            let _ = decode_route(&mut Reader::new(&bytes, "route"));
        }
    }

    #[test]
    fn what_no_topic_can_say_is_not_read() {
        let read = |item: CopyItem| {
            let mut out = BytesMut::new();
            put_items(&mut out, &[item]);
            read_items(&mut Reader::new(&out, "items"))
        };
        let records = |origin_seq, source_seq| CopyItem::Records {
            instance: 0,
            origin_seq,
            origin_ts_ms: 1,
            source_seq,
            count: 2,
        };
        let gap = |from_seq, to_seq| CopyItem::Gap { instance: 0, from_seq, to_seq };
        let last = SEQ_LIMIT - 1;
        for item in [records(1, 1), records(last - 2, last - 2), gap(1, last)] {
            assert_eq!(read(item.clone()), Ok(vec![item]));
        }
        let beyond =
            [records(0, 1), records(1, 0), records(last, 1), records(1, last), records(u64::MAX - 9, 1)];
        for item in beyond.into_iter().chain([gap(0, 1), gap(1, SEQ_LIMIT), gap(2, u64::MAX - 1)]) {
            assert!(read(item.clone()).is_err(), "{item:?}");
        }
    }

    #[test]
    fn an_instance_with_an_endless_name_is_not_read() {
        for (length, is_read) in [(1024, true), (1025, false)] {
            let topic = "t".repeat(length).into();
            let instance = Instance { cluster_id: 7, cluster: "east".into(), topic, epoch: 1 };
            let mut out = BytesMut::new();
            instance.put(&mut out);
            assert_eq!(Instance::read(&mut Reader::new(&out, "instance")).is_ok(), is_read);
        }
    }
}
