//! The body of a write (contract section 8.1), read once and borrowed from the bytes that came in.
//!
//! `data` and `meta` are taken as raw text: they are stored and given back as they were written
//! (C-REC-02), which a parsed value could not promise, and nothing has to be allocated for them.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::json;
use serde_json::value::RawValue;

use super::topic_config::parse_config;
use crate::api::shape::{Object, Text, parse_object};
use crate::error::{Code, Error};
use crate::limits::{
    MAX_IDEMPOTENCY_KEY_CHARS, MAX_KEY_BYTES, MAX_META_BYTES, MAX_META_KEYS, MAX_NESTING, MAX_NODE_BYTES,
    MAX_RECORD_BYTES, MAX_RECORDS_PER_WRITE, MAX_TAG_BYTES,
};
use crate::record::{Record, compact_json_len, nests_too_deep};
use crate::state::{Append, Create, Draft, TopicConfig};

/// A shorter `meta` cannot hold more than [`MAX_META_KEYS`] keys: each takes at least `"":0,`.
const META_KEYS_UNCOUNTED_BYTES: usize = 5 * MAX_META_KEYS;

/// A write, every limit of section 5 checked.
#[derive(Debug, Deserialize)]
pub struct AppendBody<'a> {
    #[serde(borrow)]
    records: Records<'a>,
    #[serde(borrow, default)]
    node: Option<Text<'a>>,
    #[serde(borrow, default)]
    idempotency_key: Option<Text<'a>>,
    #[serde(default)]
    create: Option<bool>,
    #[serde(borrow, default)]
    config: Option<&'a RawValue>,
    /// Only its type matters: there is no pressure yet to opt out of.
    #[serde(default, rename = "disable_backpressure")]
    _disable_backpressure: Option<bool>,
    #[serde(default)]
    expect_head_seq: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct RecordBody<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow, default)]
    tag: Option<Text<'a>>,
    #[serde(borrow, default)]
    node: Option<Text<'a>>,
    #[serde(borrow, default)]
    meta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    key: Option<Text<'a>>,
    #[serde(borrow, default)]
    channel: Option<Text<'a>>,
}

/// The records of a write. Those above the limit are counted and not kept, so that a body of millions of
/// tiny ones does not become millions of structs before it is refused.
#[derive(Debug)]
struct Records<'a> {
    kept: Vec<RecordBody<'a>>,
    count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Records<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RecordsVisitor;

        impl<'de> Visitor<'de> for RecordsVisitor {
            type Value = Records<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of records")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut kept = Vec::new();
                while kept.len() < MAX_RECORDS_PER_WRITE {
                    match items.next_element::<Object<RecordBody<'de>>>()? {
                        Some(record) => kept.push(record.0),
                        None => break,
                    }
                }
                let mut count = kept.len();
                while items.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Records { kept, count })
            }
        }

        deserializer.deserialize_seq(RecordsVisitor)
    }
}

impl<'a> AppendBody<'a> {
    pub fn parse(json: &'a [u8]) -> Result<Self, Error> {
        let body: AppendBody<'a> = parse_object(json)?;
        body.check()?;
        Ok(body)
    }

    fn check(&self) -> Result<(), Error> {
        check_record_count(self.records.count)?;
        if self.records.count == 0 {
            return Err(Error::invalid("`records` is empty"));
        }
        check_label("node", self.node.as_ref(), MAX_NODE_BYTES)?;
        if let Some(key) = &self.idempotency_key {
            check_idempotency_key(key.as_str())?;
        }
        for (ordinal, record) in self.records.kept.iter().enumerate() {
            record.check().map_err(|error| Error {
                message: format!("records[{ordinal}]: {}", error.message),
                ..error
            })?;
        }
        Ok(())
    }

    /// The configuration for the topic, should this write make it; `None` if the body has none.
    pub fn config(&self, topic: &str) -> Result<Option<TopicConfig>, Error> {
        self.config.map(|config| parse_config(config.get().as_bytes(), topic)).transpose()
    }

    pub fn has_config(&self) -> bool {
        self.config.is_some()
    }

    /// Whether an absent topic is to be made, given the configuration in the body (C-WRITE-03).
    pub fn creates(&self, config: Option<&TopicConfig>) -> bool {
        self.create.unwrap_or_else(|| config.is_none_or(|config| config.auto_create))
    }

    /// The key in the body, which wins over one in the header.
    pub fn idempotency_key(&self) -> Option<&str> {
        self.idempotency_key.as_ref().map(Text::as_str)
    }

    /// The command. `size_hint_bytes` is the size of the body.
    pub fn draft(
        &self,
        topic: &str,
        create: Create,
        idempotency_key: Option<&str>,
        size_hint_bytes: usize,
    ) -> Draft {
        let append = self.append(topic, create, idempotency_key);
        Draft::append(&append, self.records(None), size_hint_bytes)
    }

    /// The command without its records.
    pub fn append<'b>(&self, topic: &'b str, create: Create, idempotency_key: Option<&'b str>) -> Append<'b> {
        Append { topic, create, expect_head_seq: self.expect_head_seq, idempotency_key }
    }

    /// The records; `default_node` is for those that have no label and whose batch has none.
    pub fn records<'b>(&'b self, default_node: Option<&'b str>) -> impl ExactSizeIterator<Item = Record<'b>> {
        let default_node = self.node.as_ref().map(Text::as_str).or(default_node);
        self.records.kept.iter().map(move |record| record.to_record(default_node))
    }

    /// How many records there are, also if that is too many.
    pub fn record_count(&self) -> usize {
        self.records.count
    }
}

impl RecordBody<'_> {
    fn check(&self) -> Result<(), Error> {
        check_label("tag", self.tag.as_ref(), MAX_TAG_BYTES)?;
        check_label("node", self.node.as_ref(), MAX_NODE_BYTES)?;
        check_label("key", self.key.as_ref(), MAX_KEY_BYTES)?;
        check_label("channel", self.channel.as_ref(), MAX_KEY_BYTES)?;
        let meta_bytes = self.meta.map_or(Ok(0), |meta| check_meta(meta.get()))?;
        let data = self.data.get();
        if nests_too_deep(data) || self.meta.is_some_and(|meta| nests_too_deep(meta.get())) {
            return Err(Error::invalid(format!("`data` or `meta` is nested deeper than {MAX_NESTING}")));
        }
        // White space does not count; it is looked for only if it could make the difference.
        if data.len() + meta_bytes > MAX_RECORD_BYTES
            && compact_json_len(data) + meta_bytes > MAX_RECORD_BYTES
        {
            let message = format!("`data` and `meta` are larger than {MAX_RECORD_BYTES} bytes");
            return Err(Error::new(Code::RecordTooLarge, message));
        }
        Ok(())
    }

    fn to_record<'a>(&'a self, default_node: Option<&'a str>) -> Record<'a> {
        let key = self.key.as_ref().map(Text::as_str);
        Record {
            node: self.node.as_ref().map(Text::as_str).or(default_node),
            tag: self.tag.as_ref().map(Text::as_str),
            key,
            channel: self.channel.as_ref().map(Text::as_str).or(key),
            meta: self.meta.map(RawValue::get),
            data: self.data.get(),
        }
    }
}

/// 400 `batch_too_large` for more records than one request may write.
pub fn check_record_count(count: usize) -> Result<(), Error> {
    if count <= MAX_RECORDS_PER_WRITE {
        return Ok(());
    }
    let message = format!("{count} records are more than {MAX_RECORDS_PER_WRITE}");
    Err(Error::new(Code::BatchTooLarge, message).with_detail(json!({ "max": MAX_RECORDS_PER_WRITE })))
}

/// An empty label is refused: on reading it could not be told from none.
pub fn check_label(field: &str, label: Option<&Text<'_>>, max_bytes: usize) -> Result<(), Error> {
    match label.map(|label| label.as_str().len()) {
        None => Ok(()),
        Some(bytes) if (1..=max_bytes).contains(&bytes) => Ok(()),
        Some(_) => Err(Error::invalid(format!("`{field}` has 1 to {max_bytes} bytes"))),
    }
}

/// 400 unless the key can be remembered: 1 to 256 characters.
pub fn check_idempotency_key(key: &str) -> Result<(), Error> {
    if !key.is_empty()
        && (key.len() <= MAX_IDEMPOTENCY_KEY_CHARS || key.chars().count() <= MAX_IDEMPOTENCY_KEY_CHARS)
    {
        return Ok(());
    }
    Err(Error::invalid(format!("an idempotency key has 1 to {MAX_IDEMPOTENCY_KEY_CHARS} characters")))
}

/// The bytes of a `meta` without white space, if it is one (C-REC-11 and section 5).
fn check_meta(meta: &str) -> Result<usize, Error> {
    if !meta.starts_with('{') {
        return Err(Error::invalid("`meta` is not an object"));
    }
    let bytes = compact_json_len(meta);
    if bytes > MAX_META_BYTES {
        return Err(Error::invalid(format!("`meta` is larger than {MAX_META_BYTES} bytes")));
    }
    if bytes > META_KEYS_UNCOUNTED_BYTES {
        let keys: KeyCount =
            serde_json::from_str(meta).map_err(|error| Error::invalid(format!("`meta`: {error}")))?;
        if keys.0 > MAX_META_KEYS {
            return Err(Error::invalid(format!("`meta` has more than {MAX_META_KEYS} keys")));
        }
    }
    Ok(bytes)
}

/// Counts the keys of an object and keeps nothing of it.
struct KeyCount(usize);

impl<'de> Deserialize<'de> for KeyCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;

        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = KeyCount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KeyCount, A::Error> {
                let mut count = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(KeyCount(count))
            }
        }

        deserializer.deserialize_map(KeyVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::{Command, Decoded, Envelope};

    fn parse(json: &str) -> Result<AppendBody<'_>, Error> {
        AppendBody::parse(json.as_bytes())
    }

    /// The code that a body with this one record gets, `None` if it is taken.
    fn code_of_record(fields: &str) -> Option<Code> {
        parse(&format!("{{\"records\":[{{{fields}}}]}}")).err().map(|error| error.code)
    }

    #[test]
    fn a_write_becomes_a_command_with_its_bytes_as_they_were() {
        // C-REC-02, C-WRITE-01, section 27
        let json = r#" { "node": "edge", "idempotency_key": "k1", "expect_head_seq": 7, "later": [1],
            "records": [ { "data": { "b" : 1.250, "a": 12345678901234567890123 }, "tag": "t", "x": 1 },
                         { "data": null, "node": "own", "meta": { "fw": "2.1" }, "key": "k" },
                         { "data": "", "key": "k", "channel": "c" } ] } "#;
        let body = parse(json).unwrap();
        let draft = body.draft("topic", Create::Never, body.idempotency_key(), json.len());
        let decoded = Decoded::parse(draft.seal(Envelope::default())).unwrap();
        let record = |position| Record::decode(decoded.records.record(position).unwrap()).unwrap();
        assert_eq!(
            record(0),
            Record {
                node: Some("edge"),
                tag: Some("t"),
                data: r#"{"b":1.250,"a":12345678901234567890123}"#,
                ..Record::default()
            }
        );
        assert_eq!(
            record(1),
            Record {
                node: Some("own"),
                key: Some("k"),
                channel: Some("k"),
                meta: Some(r#"{"fw":"2.1"}"#),
                data: "null",
                ..Record::default()
            }
        );
        assert_eq!((record(2).key, record(2).channel, record(2).data), (Some("k"), Some("c"), "\"\""));
        let append = Append {
            topic: "topic",
            create: Create::Never,
            expect_head_seq: Some(7),
            idempotency_key: Some("k1"),
        };
        assert_eq!(decoded.command(), Ok(Command::Append(append)));
    }

    #[test]
    fn whether_an_absent_topic_is_made() {
        // C-WRITE-03
        let creates = |fields: &str| {
            let json = format!("{{\"records\":[{{\"data\":1}}]{fields}}}");
            let body = parse(&json).unwrap();
            body.creates(body.config("t").unwrap().as_ref())
        };
        assert!(creates(""));
        assert!(creates(r#","create":null"#));
        assert!(creates(r#","create":true,"config":{"auto_create":false}"#));
        assert!(creates(r#","config":{}"#));
        assert!(!creates(r#","create":false"#));
        assert!(!creates(r#","create":false,"config":{}"#));
        assert!(!creates(r#","config":{"auto_create":false}"#));
    }

    #[test]
    fn the_config_in_a_write_is_checked_like_any_other() {
        // C-CONV-03, C-CFG-02
        for config in [r#"{"tll_ms":1}"#, "[]", "7", r#"{"dead_letter":"t"}"#] {
            let json = format!("{{\"records\":[{{\"data\":1}}],\"config\":{config}}}");
            assert_eq!(parse(&json).unwrap().config("t").unwrap_err().code, Code::InvalidRequest);
        }
    }

    #[test]
    fn bad_shapes_are_refused() {
        // C-CONV-07
        for json in [
            "",
            "{}",
            "[]",
            "[[{\"data\":1}]]",
            r#"{"records":[]}"#,
            r#"{"records":null}"#,
            r#"{"records":{"data":1}}"#,
            r#"{"records":[{}]}"#,
            r#"{"records":[[1]]}"#,
            r#"{"records":[1]}"#,
            r#"{"records":[null]}"#,
            r#"{"records":[{"data":1}]"#,
            r#"{"records":[{"data":1}]}x"#,
            r#"{"records":[{"data":nul}]}"#,
            r#"{"records":[{"data":01}]}"#,
            r#"{"records":[{"data":1}],"node":1}"#,
            r#"{"records":[{"data":1}],"node":""}"#,
            r#"{"records":[{"data":1}],"create":"true"}"#,
            r#"{"records":[{"data":1}],"idempotency_key":7}"#,
            r#"{"records":[{"data":1}],"idempotency_key":""}"#,
            r#"{"records":[{"data":1}],"disable_backpressure":1}"#,
            r#"{"records":[{"data":1}],"expect_head_seq":-1}"#,
            r#"{"records":[{"data":1}],"expect_head_seq":1.0}"#,
            r#"{"records":[{"data":1},{"data":1,"tag":2}]}"#,
        ] {
            assert_eq!(parse(json).err().map(|error| error.code), Some(Code::InvalidRequest), "{json}");
        }
        let not_utf8 = b"{\"records\":[{\"data\":\"\xff\"}]}";
        assert!(AppendBody::parse(not_utf8).is_err());
    }

    #[test]
    fn batches_have_a_most() {
        let of = |count: usize| format!("{{\"records\":[{}]}}", vec!["{\"data\":1}"; count].join(","));
        assert!(parse(&of(10_000)).is_ok());
        let error = parse(&of(10_001)).unwrap_err();
        assert_eq!((error.code, error.detail), (Code::BatchTooLarge, Some(json!({ "max": 10_000 }))));
    }

    #[test]
    fn a_record_has_a_largest_size_without_its_white_space() {
        // Section 5: `data` and `meta` together.
        let text = |bytes: usize| format!("\"data\" : [ \"{}\" ]", "x".repeat(bytes - 4));
        assert_eq!(code_of_record(&text(1 << 20)), None);
        assert_eq!(code_of_record(&text((1 << 20) + 1)), Some(Code::RecordTooLarge));
        assert_eq!(code_of_record(&format!("{}, \"meta\" : {{ }}", text((1 << 20) - 2))), None);
        assert_eq!(
            code_of_record(&format!("{},\"meta\":{{}}", text((1 << 20) - 1))),
            Some(Code::RecordTooLarge)
        );
    }

    #[test]
    fn a_meta_is_an_object_of_bounded_size() {
        // C-REC-11 and section 5
        // C-REC-03
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let deep = |levels| code_of_record(&format!("\"data\":{}", nested(levels)));
        assert_eq!((deep(512), deep(513), deep(500_000)), (None, Some(Code::InvalidRequest), deep(513)));
        let deep = |levels| code_of_record(&format!("\"data\":1,\"meta\":{{\"a\":{}}}", nested(levels)));
        assert_eq!((deep(511), deep(512)), (None, Some(Code::InvalidRequest)));
        let with_meta = |meta: &str| code_of_record(&format!("\"data\":1,\"meta\":{meta}"));
        let keys = |count: usize| {
            let keys: Vec<String> = (0..count).map(|key| format!("\"k{key}\" : {{\"x\":[1,2]}}")).collect();
            format!("{{ {} }}", keys.join(" , "))
        };
        let shortest = |count: usize| {
            let keys: Vec<String> =
                (0..count).map(|key| format!("\"{}\":0", (key as u8 + 48) as char)).collect();
            format!("{{{}}}", keys.join(","))
        };
        let sized = |bytes: usize| format!("{{ \"k\" : \"{}\" }}", "x".repeat(bytes - 8));
        for good in ["{}", "null", "{\"a\":null}", &keys(64), &sized(16 << 10)] {
            assert_eq!(with_meta(good), None, "{good}");
        }
        for bad in
            ["[]", "1", "\"x\"", "true", &keys(65), &shortest(65).replace('\\', "z"), &sized((16 << 10) + 1)]
        {
            assert_eq!(with_meta(bad), Some(Code::InvalidRequest), "{bad}");
        }
    }

    #[test]
    fn labels_have_their_lengths_in_bytes() {
        // Section 5, C-CHAN-03
        for (field, most) in [("tag", 256), ("node", 128), ("key", 256), ("channel", 256)] {
            let with = |value: &str| code_of_record(&format!("\"data\":1,\"{field}\":\"{value}\""));
            assert_eq!(with(&"é".repeat(most / 2)), None);
            assert_eq!(with(&format!("{}x", "é".repeat(most / 2))), Some(Code::InvalidRequest));
            assert_eq!(with(""), Some(Code::InvalidRequest));
            assert_eq!(code_of_record(&format!("\"data\":1,\"{field}\":1")), Some(Code::InvalidRequest));
        }
    }

    #[test]
    fn an_idempotency_key_has_its_length_in_characters() {
        assert!(check_idempotency_key(&"é".repeat(256)).is_ok());
        assert!(check_idempotency_key(&"é".repeat(257)).is_err());
        assert!(check_idempotency_key("").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = AppendBody::parse(&bytes);
        }

        #[test]
        fn arbitrary_damage_never_panics(at: prop::sample::Index, byte: u8) {
            let mut json = br#"{"node":"n","records":[{"data":{"a":[1,"\u00e9"]},"tag":"t","meta":{"a":1}}],
                "create":true,"config":{"type":"queue","priority":3},"expect_head_seq":1}"#.to_vec();
            let at = at.index(json.len());
            json[at] = byte;
            if let Ok(body) = AppendBody::parse(&json) {
                let config = body.config("t").ok().flatten();
                let create = config.map_or(Create::Never, Create::With);
                let draft = body.draft("t", create, body.idempotency_key(), json.len());
                prop_assert!(Decoded::parse(draft.seal(Envelope::default())).unwrap().command().is_ok());
            }
        }
    }
}
