//! What another cluster, or a connector, says is a record.
//!
//! Bytes that were not encoded here are checked whole, once, before anything is made of them: what is in the log is
//! spliced into answers as it is, and must decode at every member for ever.

use std::fmt;

use super::json::check_compact;
use super::{HEADER_CHANNEL, HEADER_KEY, HEADER_NODE, HEADER_TAG, Record};
use crate::codec::Reader;
use crate::limits::{
    MAX_KEY_BYTES, MAX_META_BYTES, MAX_META_KEYS, MAX_NODE_BYTES, MAX_RECORD_BYTES, MAX_RECORD_HEADERS_BYTES,
    MAX_TAG_BYTES,
};

/// Why bytes are no record that may be stored. It says nothing of what they hold. Not a
/// [`Malformed`](crate::codec::Malformed), which ends the member that meets it: these bytes are somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadRecord(pub &'static str);

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a record that is none: {}", self.0)
    }
}

impl std::error::Error for BadRecord {}

/// Checks the stored bytes of a record that was not encoded here: form, texts, the limits of contract section 5, and
/// that `meta` and `data` are JSON as it is stored here. Headers that this version does not know are kept unread.
pub fn check_foreign(stored: &[u8]) -> Result<(), BadRecord> {
    let (headers, _) = split(stored)?;
    if headers.len() > MAX_RECORD_HEADERS_BYTES {
        return Err(BadRecord("headers that are too long"));
    }
    let mut seen = 0u8;
    let mut reader = Reader::new(headers, "record header");
    while !reader.is_empty() {
        let (Ok(tag), Ok(value)) = (reader.u8(), reader.blob()) else { return Err(NO_HEADERS) };
        let max_bytes = match tag {
            HEADER_NODE => MAX_NODE_BYTES,
            HEADER_TAG => MAX_TAG_BYTES,
            HEADER_KEY | HEADER_CHANNEL => MAX_KEY_BYTES,
            _ => continue,
        };
        if seen & 1 << tag != 0 {
            return Err(BadRecord("a header that stands twice"));
        }
        seen |= 1 << tag;
        if value.is_empty() || value.len() > max_bytes {
            return Err(BadRecord("a label that is empty or too long"));
        }
    }
    let record = Record::decode(stored).map_err(|_| BadRecord("a text that is not UTF-8"))?;
    if let Some(meta) = record.meta {
        if meta.len() > MAX_META_BYTES {
            return Err(BadRecord("`meta` is too long"));
        }
        match check_compact(meta).map_err(BadRecord)? {
            None => return Err(BadRecord("`meta` is not an object")),
            Some(keys) if keys > MAX_META_KEYS => return Err(BadRecord("`meta` has too many keys")),
            Some(_) => {}
        }
    }
    if record.data.len() + record.meta.map_or(0, str::len) > MAX_RECORD_BYTES {
        return Err(BadRecord("too large"));
    }
    check_compact(record.data).map(drop).map_err(BadRecord)
}

const NO_HEADERS: BadRecord = BadRecord("headers that cannot be read");

/// The headers, and `meta` and `data` after them.
fn split(stored: &[u8]) -> Result<(&[u8], &[u8]), BadRecord> {
    let mut reader = Reader::new(stored, "record");
    let headers = reader.blob().map_err(|_| NO_HEADERS)?;
    Ok((headers, reader.rest()))
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};
    use proptest::prelude::*;

    use super::*;
    use crate::codec::put_blob;
    use crate::limits::MAX_NESTING;
    use crate::record::{EntryBuilder, EntryRecords, HeaderEdit, put_edited};

    fn stored(headers: &[(u8, &[u8])], meta: &str, data: &str) -> Vec<u8> {
        let (mut all, mut out) = (BytesMut::new(), BytesMut::new());
        for (tag, value) in headers {
            all.put_u8(*tag);
            put_blob(&mut all, value);
        }
        put_blob(&mut out, &all);
        put_blob(&mut out, meta.as_bytes());
        out.put_slice(data.as_bytes());
        out.to_vec()
    }

    fn is_good(headers: &[(u8, &[u8])], meta: &str, data: &str) -> bool {
        check_foreign(&stored(headers, meta, data)).is_ok()
    }

    #[test]
    fn only_what_could_have_been_written_here_passes() {
        // C-MIRROR-18
        assert!(is_good(&[], "", "1"));
        assert!(is_good(&[(HEADER_NODE, b"n"), (HEADER_TAG, b"t"), (200, b"\xff")], r#"{"a":1}"#, "[1]"));
        let long = |bytes: usize| vec![b'x'; bytes];
        for (tag, max_bytes) in
            [(HEADER_NODE, 128), (HEADER_TAG, 256), (HEADER_KEY, 256), (HEADER_CHANNEL, 256)]
        {
            assert!(is_good(&[(tag, &long(max_bytes))], "", "1"));
            assert!(!is_good(&[(tag, &long(max_bytes + 1))], "", "1"));
            assert!(!is_good(&[(tag, b"")], "", "1"));
            assert!(!is_good(&[(tag, b"\xff")], "", "1"));
            assert!(!is_good(&[(tag, b"x"), (tag, b"x")], "", "1"));
        }
        assert!(!is_good(&[(200, &long(MAX_RECORD_HEADERS_BYTES))], "", "1"));
        let object = |keys: usize| {
            let keys: Vec<String> = (0..keys).map(|key| format!("\"{key}\":0")).collect();
            format!("{{{}}}", keys.join(","))
        };
        assert!(is_good(&[], &object(64), "1") && !is_good(&[], &object(65), "1"));
        let wide = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
        assert!(is_good(&[], &wide(16 << 10), "1") && !is_good(&[], &wide((16 << 10) + 1), "1"));
        for meta in ["[]", "1", "{", "{} ", "{\"a\":1}{}", "\n{}"] {
            assert!(!is_good(&[], meta, "1"), "{meta}");
        }
        let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
        assert!(is_good(&[], "", &text(1 << 20)) && !is_good(&[], "{}", &text(1 << 20)));
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(is_good(&[], "", &deep(MAX_NESTING)) && !is_good(&[], "", &deep(MAX_NESTING + 1)));
        for data in [
            "",
            "1 ",
            "{\"a\": 1}",
            r#"1}],"x":[{"$seq":99"#,
            "1\n\nevent: topic-deleted\ndata: 1",
            "nul",
            "1,2",
            "\"\u{1}\"",
        ] {
            assert!(!is_good(&[], "", data), "{data}");
        }
        for bytes in [&[][..], &[0], &[1], &[0, 5, b'1'], &[2, HEADER_TAG, 9, 0, b'1'], &[0, 0, 0xff]] {
            assert!(check_foreign(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_decodes_and_can_be_copied(bytes: Vec<u8>, data in "[\\[\\]{}:,\"a1]{0,6}") {
            for stored in [bytes.clone(), stored(&[(HEADER_TAG, &bytes)], "", &data)] {
                if check_foreign(&stored).is_ok() {
                    prop_assert!(Record::decode(&stored).is_ok());
                    let edit = HeaderEdit { drops_tag: true, default_node: Some("east"), drops_node: false };
                    let mut copy = BytesMut::new();
                    prop_assert!(put_edited(&mut copy, &stored, edit).is_ok());
                    prop_assert_eq!(check_foreign(&copy), Ok(()));
                }
            }
        }

        #[test]
        fn what_was_encoded_here_passes(
            node in "\\PC{1,30}", key in "\\PC{1,60}", text in "\\PC{0,50}", number: f64,
        ) {
            let (meta, data) = (serde_json::json!({ (key.clone()): text }), serde_json::json!([number, text]));
            let (meta, data) = (format!("{meta:#}"), format!("{data:#}"));
            let record =
                Record { node: Some(&node), key: Some(&key), meta: Some(&meta), data: &data, ..Record::default() };
            let mut builder = EntryBuilder::new(0, 1, 0);
            builder.push(&record);
            let entry = EntryRecords::parse(builder.finish().freeze()).unwrap();
            prop_assert_eq!(check_foreign(entry.record(0).unwrap()), Ok(()));
        }
    }
}
