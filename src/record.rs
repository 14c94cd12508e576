//! A record, and the entry that carries a batch of them.
//!
//! A record is encoded once, by the member that a client talks to; the same bytes go into the log of
//! every member and are read back for every reader. So the form serves reading: `data` and `meta` stay
//! JSON text that is copied into answers as it is, and an entry starts with a table of where its records
//! end, so that the n-th record is found without walking over the others.
//!
//! ```text
//! entry:   version u8 | kind u8 | 0 u16 | count u32 | end u32 * count | record * count | body ...
//! record:  headers_len varint | (header tag u8, length varint, bytes) * | meta_len varint | meta | data
//! ```
//!
//! A record's *position* is its ordinal in the entry. Headers with a tag that this version does not know
//! are kept and passed over, so a later version can add some. `end` counts from the first record's start.

mod foreign;
mod json;

use bytes::{BufMut, Bytes, BytesMut};

pub use foreign::{BadRecord, check_foreign};
pub use json::nests_too_deep;

use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::limits::RECORD_FRAMING_BYTES;

/// Version of the entry form.
pub const ENTRY_VERSION: u8 = 1;
const ENTRY_HEAD_BYTES: usize = 8;

const HEADER_NODE: u8 = 1;
const HEADER_TAG: u8 = 2;
const HEADER_KEY: u8 = 3;
const HEADER_CHANNEL: u8 = 4;

/// A record as it is written or read: borrowed text and raw JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Record<'a> {
    pub node: Option<&'a str>,
    pub tag: Option<&'a str>,
    pub key: Option<&'a str>,
    pub channel: Option<&'a str>,
    /// A JSON object.
    pub meta: Option<&'a str>,
    /// Any JSON value.
    pub data: &'a str,
}

impl<'a> Record<'a> {
    /// Decodes one record from exactly its bytes.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "record");
        let mut record = Record::default();
        let mut headers = Reader::new(reader.blob()?, "record header");
        while !headers.is_empty() {
            match headers.u8()? {
                HEADER_NODE => record.node = Some(headers.text()?),
                HEADER_TAG => record.tag = Some(headers.text()?),
                HEADER_KEY => record.key = Some(headers.text()?),
                HEADER_CHANNEL => record.channel = Some(headers.text()?),
                // A later version's, which need not be text.
                _ => {
                    headers.blob()?;
                }
            }
        }
        let meta = reader.text()?;
        record.meta = (!meta.is_empty()).then_some(meta);
        record.data = std::str::from_utf8(reader.rest()).map_err(|_| reader.malformed())?;
        Ok(record)
    }

    /// The `node` label alone, without looking at the rest: what reads filter by.
    pub fn decode_node(bytes: &'a [u8]) -> Result<Option<&'a str>, Malformed> {
        Self::decode_header(bytes, HEADER_NODE)
    }

    /// The `tag` alone.
    pub fn decode_tag(bytes: &'a [u8]) -> Result<Option<&'a str>, Malformed> {
        Self::decode_header(bytes, HEADER_TAG)
    }

    fn decode_header(bytes: &'a [u8], wanted: u8) -> Result<Option<&'a str>, Malformed> {
        let mut headers = Reader::new(Reader::new(bytes, "record").blob()?, "record header");
        while !headers.is_empty() {
            if headers.u8()? == wanted {
                return headers.text().map(Some);
            }
            headers.blob()?;
        }
        Ok(None)
    }

    fn encode(&self, out: &mut BytesMut) {
        let headers = [
            (HEADER_NODE, self.node),
            (HEADER_TAG, self.tag),
            (HEADER_KEY, self.key),
            (HEADER_CHANNEL, self.channel),
        ];
        let set = headers.iter().filter_map(|(tag, value)| value.map(|value| (*tag, value)));
        let headers_len: usize =
            set.clone().map(|(_, value)| 1 + varint_len(value.len() as u64) + value.len()).sum();
        put_varint(out, headers_len as u64);
        for (tag, value) in set {
            out.put_u8(tag);
            put_blob(out, value.as_bytes());
        }
        match self.meta {
            None => out.put_u8(0),
            Some(meta) => put_compact_blob(out, meta),
        }
        put_compact_json(out, self.data);
    }
}

/// The bytes that a stored record counts for: `data` and `meta` as JSON, and a fixed framing cost.
pub fn counted_bytes(record: &[u8]) -> Result<u64, Malformed> {
    let mut reader = Reader::new(record, "record");
    reader.blob()?;
    let meta_len = reader.blob()?.len();
    Ok((meta_len + reader.rest().len()) as u64 + RECORD_FRAMING_BYTES)
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends JSON text without the white space outside of strings, with its length before it.
fn put_compact_blob(out: &mut BytesMut, json: &str) {
    let mut compact = BytesMut::with_capacity(json.len());
    put_compact_json(&mut compact, json);
    put_blob(out, &compact);
}

/// Appends JSON text without the white space outside of strings; everything else stays as written.
pub fn put_compact_json(out: &mut BytesMut, json: &str) {
    let bytes = json.as_bytes();
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    if !bytes.iter().any(is_space) {
        out.put_slice(bytes);
        return;
    }
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'"' => {
                at = end_of_string(bytes, at);
                out.put_slice(&bytes[start..at]);
            }
            byte if is_space(&byte) => at += 1,
            _ => {
                while at < bytes.len() && bytes[at] != b'"' && !is_space(&bytes[at]) {
                    at += 1;
                }
                out.put_slice(&bytes[start..at]);
            }
        }
    }
}

/// Bytes of JSON text without the white space outside of strings.
pub fn compact_json_len(json: &str) -> usize {
    let bytes = json.as_bytes();
    let (mut at, mut length) = (0, 0);
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'"' => {
                at = end_of_string(bytes, at);
                length += at - start;
            }
            b' ' | b'\t' | b'\n' | b'\r' => at += 1,
            _ => {
                at += 1;
                length += 1;
            }
        }
    }
    length
}

/// The place after the string that starts at `at`.
fn end_of_string(bytes: &[u8], mut at: usize) -> usize {
    at += 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// What a copy of a stored record does not share with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeaderEdit<'a> {
    pub drops_node: bool,
    pub drops_tag: bool,
    /// The label of a record that has none.
    pub default_node: Option<&'a str>,
}

/// Appends a stored record as `edit` wants it.
pub fn put_edited(out: &mut BytesMut, stored: &[u8], edit: HeaderEdit<'_>) -> Result<(), Malformed> {
    let mut reader = Reader::new(stored, "record");
    let headers = reader.blob()?;
    let mut kept = BytesMut::new();
    let mut has_node = false;
    let mut left = Reader::new(headers, "record header");
    while !left.is_empty() {
        let (tag, value) = (left.u8()?, left.blob()?);
        has_node |= tag == HEADER_NODE;
        let is_dropped = (tag == HEADER_NODE && edit.drops_node) || (tag == HEADER_TAG && edit.drops_tag);
        if !is_dropped {
            kept.put_u8(tag);
            put_blob(&mut kept, value);
        }
    }
    if let Some(node) = edit.default_node.filter(|_| !has_node) {
        kept.put_u8(HEADER_NODE);
        put_blob(&mut kept, node.as_bytes());
    }
    put_blob(out, &kept);
    out.put_slice(reader.rest());
    Ok(())
}

/// Builds the front of an entry: the head, the table and the records. What a command adds behind them
/// (its body) is the command's business.
pub struct EntryBuilder {
    bytes: BytesMut,
    count: usize,
    written: usize,
}

impl EntryBuilder {
    /// Starts an entry of `kind` with exactly `count` records, for which `size_hint_bytes` are expected.
    pub fn new(kind: u8, count: usize, size_hint_bytes: usize) -> Self {
        let table_end = ENTRY_HEAD_BYTES + 4 * count;
        let mut bytes = BytesMut::with_capacity(table_end + size_hint_bytes);
        bytes.put_u8(ENTRY_VERSION);
        bytes.put_u8(kind);
        bytes.put_u16_le(0);
        bytes.put_u32_le(count as u32);
        bytes.put_bytes(0, 4 * count);
        EntryBuilder { bytes, count, written: 0 }
    }

    /// Appends the next record.
    pub fn push(&mut self, record: &Record<'_>) {
        assert!(self.written < self.count, "more records than announced");
        record.encode(&mut self.bytes);
        self.end_record();
    }

    fn end_record(&mut self) {
        let end = (self.bytes.len() - ENTRY_HEAD_BYTES - 4 * self.count) as u32;
        let slot = ENTRY_HEAD_BYTES + 4 * self.written;
        self.bytes[slot..slot + 4].copy_from_slice(&end.to_le_bytes());
        self.written += 1;
    }

    /// Appends a record from its stored bytes, but for what `edit` changes; also headers that this version does
    /// not know stay. Gives what it has become.
    pub fn push_stored(&mut self, stored: &[u8], edit: HeaderEdit<'_>) -> Result<&[u8], Malformed> {
        assert!(self.written < self.count, "more records than announced");
        let start = self.bytes.len();
        put_edited(&mut self.bytes, stored, edit)?;
        self.end_record();
        Ok(&self.bytes[start..])
    }

    /// The entry so far, to which the command's body is appended.
    pub fn finish(self) -> BytesMut {
        assert_eq!(self.written, self.count, "fewer records than announced");
        self.bytes
    }
}

/// The records of one entry, found by position.
#[derive(Debug, Clone)]
pub struct EntryRecords {
    entry: Bytes,
    count: u32,
}

impl EntryRecords {
    /// Reads the head and the table of an entry. The table is checked here once, so that every later
    /// look-up stays inside.
    pub fn parse(entry: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(&entry, "entry");
        if reader.u8()? != ENTRY_VERSION {
            return Err(Malformed("entry: written by a newer version"));
        }
        reader.u8()?;
        reader.u16()?;
        let count = reader.u32()?;
        let table = reader.bytes(count as usize * 4)?;
        let mut previous_end = 0;
        for end in table.chunks_exact(4) {
            let end = u32::from_le_bytes([end[0], end[1], end[2], end[3]]);
            if end < previous_end || end as usize > reader.rest().len() {
                return Err(reader.malformed());
            }
            previous_end = end;
        }
        Ok(EntryRecords { entry, count })
    }

    /// The kind of command that the entry holds.
    pub fn kind(&self) -> u8 {
        self.entry[1]
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    fn end(&self, position: u32) -> usize {
        let slot = ENTRY_HEAD_BYTES + 4 * position as usize;
        let bytes = &self.entry[slot..slot + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
    }

    fn records_start(&self) -> usize {
        ENTRY_HEAD_BYTES + 4 * self.count as usize
    }

    /// The bytes of the record at `position`, `None` if there is none.
    pub fn record(&self, position: u32) -> Option<&[u8]> {
        if position >= self.count {
            return None;
        }
        let start = if position == 0 { 0 } else { self.end(position - 1) };
        let base = self.records_start();
        Some(&self.entry[base + start..base + self.end(position)])
    }

    /// What follows the records.
    pub fn body(&self) -> &[u8] {
        let end = if self.count == 0 { 0 } else { self.end(self.count - 1) };
        &self.entry[self.records_start() + end..]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry_of(records: &[Record<'_>]) -> EntryRecords {
        let mut builder = EntryBuilder::new(7, records.len(), 0);
        records.iter().for_each(|record| builder.push(record));
        let mut bytes = builder.finish();
        bytes.put_slice(b"body");
        EntryRecords::parse(bytes.freeze()).expect("what was built parses")
    }

    #[test]
    fn white_space_outside_of_strings_is_all_that_changes() {
        let json = "{ \"a b\" : [ 1.250 , 1e5,\n\t\"x \\\" y\" ],\r\"z\":null }";
        let mut out = BytesMut::new();
        put_compact_json(&mut out, json);
        assert_eq!(&out[..], br#"{"a b":[1.250,1e5,"x \" y"],"z":null}"#);
        assert_eq!(compact_json_len(json), out.len());
    }

    #[test]
    fn the_bytes_counted_are_data_meta_and_framing() {
        let record = Record { node: Some("edge"), meta: Some("{}"), data: "12345", ..Default::default() };
        let entry = entry_of(&[record]);
        assert_eq!(counted_bytes(entry.record(0).unwrap()), Ok(7 + RECORD_FRAMING_BYTES));
    }

    #[test]
    fn an_edited_copy_differs_in_what_was_edited_only() {
        let record = Record {
            node: Some("edge"),
            tag: Some("t"),
            key: Some("k"),
            meta: Some("{}"),
            data: "[1]",
            ..Default::default()
        };
        let stored = entry_of(&[record, Record { data: "2", ..Default::default() }]);
        let edited = |position, edit| {
            let mut builder = EntryBuilder::new(7, 1, 0);
            builder.push_stored(stored.record(position).unwrap(), edit).unwrap();
            EntryRecords::parse(builder.finish().freeze()).unwrap()
        };
        let of = |entry: &EntryRecords, expected: Record<'_>| {
            assert_eq!(Record::decode(entry.record(0).unwrap()), Ok(expected));
        };
        of(&edited(0, HeaderEdit::default()), record);
        let default_node = Some("east");
        of(&edited(0, HeaderEdit { default_node, ..Default::default() }), record);
        of(
            &edited(0, HeaderEdit { drops_node: true, drops_tag: true, default_node: None }),
            Record { node: None, tag: None, ..record },
        );
        of(
            &edited(1, HeaderEdit { default_node, ..Default::default() }),
            Record { node: Some("east"), data: "2", ..Default::default() },
        );
    }

    #[test]
    fn a_header_of_a_later_version_is_passed_over() {
        let mut bytes = BytesMut::new();
        let mut headers = BytesMut::new();
        headers.put_u8(200);
        put_blob(&mut headers, b"later");
        headers.put_u8(HEADER_TAG);
        put_blob(&mut headers, b"t");
        put_blob(&mut bytes, &headers);
        bytes.put_u8(0);
        bytes.put_slice(b"1");
        let record = Record::decode(&bytes).unwrap();
        assert_eq!((record.tag, record.data, record.meta), (Some("t"), "1", None));
    }

    fn text() -> impl Strategy<Value = Option<String>> {
        proptest::option::of("\\PC{0,300}")
    }

    proptest! {
        #[test]
        fn records_come_back_by_position(
            fields in proptest::collection::vec((text(), text(), text(), "[0-9]{1,9}"), 1..8)
        ) {
            let records: Vec<Record<'_>> = fields.iter().map(|(node, tag, key, data)| Record {
                node: node.as_deref(), tag: tag.as_deref(), key: key.as_deref(), data,
                meta: tag.as_ref().map(|_| "{\"k\":1}"), ..Default::default()
            }).collect();
            let entry = entry_of(&records);
            prop_assert_eq!(entry.count() as usize, records.len());
            prop_assert_eq!(entry.body(), b"body");
            prop_assert!(entry.record(entry.count()).is_none());
            for (position, record) in records.iter().enumerate() {
                let bytes = entry.record(position as u32).unwrap();
                prop_assert_eq!(&Record::decode(bytes).unwrap(), record);
                prop_assert_eq!(Record::decode_node(bytes).unwrap(), record.node);
                prop_assert_eq!(Record::decode_tag(bytes).unwrap(), record.tag);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Record::decode(&bytes);
            let _ = Record::decode_node(&bytes);
            let _ = counted_bytes(&bytes);
            if let Ok(entry) = EntryRecords::parse(bytes.into()) {
                (0..entry.count().min(100)).for_each(|position| { entry.record(position); });
                entry.body();
            }
        }
    }
}
