//! The body of an append to several topics (contract section 8.3): write bodies by topic, and defaults for
//! those that lack them.
//!
//! Each entry is kept as raw text first and then read like the body of a write to that topic: it is looked
//! at twice, and in return every error of an entry can name it (C-APPEND-03).

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::json;
use serde_json::value::RawValue;

use super::append_body::{AppendBody, check_idempotency_key, check_label, check_record_count};
use crate::api::name::check_topic_name;
use crate::api::shape::{Text, parse_object};
use crate::error::Error;
use crate::limits::{MAX_NODE_BYTES, MAX_TOPICS_PER_APPEND};

#[derive(Debug, Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    topics: Entries<'a>,
    #[serde(borrow, default)]
    node: Option<Text<'a>>,
    #[serde(borrow, default)]
    idempotency_key: Option<Text<'a>>,
}

/// The entries as they came; those above the limit are counted and not kept.
#[derive(Debug)]
struct Entries<'a> {
    kept: Vec<(Text<'a>, &'a RawValue)>,
    count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of writes by topic")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut kept: Vec<(Text<'de>, &'de RawValue)> = Vec::new();
                while kept.len() < MAX_TOPICS_PER_APPEND {
                    let Some((topic, write)) = map.next_entry::<Text<'de>, &'de RawValue>()? else { break };
                    if kept.iter().any(|(other, _)| other.as_str() == topic.as_str()) {
                        return Err(A::Error::custom(format!("topic {:?} stands twice", topic.as_str())));
                    }
                    kept.push((topic, write));
                }
                let mut count = kept.len();
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Entries { kept, count })
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// An append to several topics, every limit checked.
#[derive(Debug)]
pub struct AppendManyBody<'a> {
    /// In the order of the body.
    pub entries: Vec<(Text<'a>, AppendBody<'a>)>,
    node: Option<Text<'a>>,
    idempotency_key: Option<Text<'a>>,
}

impl<'a> AppendManyBody<'a> {
    pub fn parse(json: &'a [u8]) -> Result<Self, Error> {
        let body: Body<'a> = parse_object(json)?;
        if !(1..=MAX_TOPICS_PER_APPEND).contains(&body.topics.count) {
            return Err(Error::invalid(format!("`topics` has 1 to {MAX_TOPICS_PER_APPEND} entries")));
        }
        check_label("node", body.node.as_ref(), MAX_NODE_BYTES)?;
        if let Some(key) = &body.idempotency_key {
            check_idempotency_key(key.as_str())?;
        }
        let mut entries = Vec::with_capacity(body.topics.kept.len());
        let mut record_count = 0;
        for (topic, write) in body.topics.kept {
            check_topic_name(topic.as_str()).map_err(|error| of_entry(error, topic.as_str()))?;
            let write = AppendBody::parse(write.get().as_bytes());
            let write = write.map_err(|error| of_entry(error, topic.as_str()))?;
            record_count += write.record_count();
            // C-APPEND-05; checked as they come, so that no more than that are ever held.
            check_record_count(record_count)?;
            entries.push((topic, write));
        }
        Ok(AppendManyBody { entries, node: body.node, idempotency_key: body.idempotency_key })
    }

    /// Default label of records whose entry has none.
    pub fn node(&self) -> Option<&str> {
        self.node.as_ref().map(Text::as_str)
    }

    /// Default key of entries that have none.
    pub fn idempotency_key(&self) -> Option<&str> {
        self.idempotency_key.as_ref().map(Text::as_str)
    }
}

/// An error of one entry, which it names (C-APPEND-03).
pub fn of_entry(error: Error, topic: &str) -> Error {
    let mut detail = error.detail.unwrap_or_else(|| json!({}));
    detail["topic"] = topic.into();
    Error { message: format!("topic {topic:?}: {}", error.message), detail: Some(detail), ..error }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Code;

    fn refused(json: &str) -> Error {
        AppendManyBody::parse(json.as_bytes()).map(|_| json.to_owned()).expect_err("it is refused")
    }

    #[test]
    fn entries_come_in_their_order_with_their_defaults() {
        // Section 8.3
        let json = r#"{"node":"n","idempotency_key":"k","later":1,"topics":{
            "b":{"records":[{"data":1}],"node":"own"},"a\u002dx":{"records":[{"data":2},{"data":3}]}}}"#;
        let body = AppendManyBody::parse(json.as_bytes()).unwrap();
        let names: Vec<&str> = body.entries.iter().map(|(topic, _)| topic.as_str()).collect();
        assert_eq!((names, body.node(), body.idempotency_key()), (vec!["b", "a-x"], Some("n"), Some("k")));
        let nodes = |at: usize| -> Vec<_> {
            body.entries[at].1.records(body.node()).map(|record| record.node).collect()
        };
        assert_eq!((nodes(0), nodes(1)), (vec![Some("own")], vec![Some("n"), Some("n")]));
    }

    #[test]
    fn an_error_of_an_entry_names_it() {
        // C-APPEND-03
        let of = |entry: &str| {
            refused(&format!(r#"{{"topics":{{"good":{{"records":[{{"data":1}}]}},{entry}}}}}"#))
        };
        for (entry, topic, code) in [
            (r#""bad":{}"#, "bad", Code::InvalidRequest),
            (r#""bad":[]"#, "bad", Code::InvalidRequest),
            (r#""bad":{"records":[]}"#, "bad", Code::InvalidRequest),
            (r#""bad":{"records":[{}]}"#, "bad", Code::InvalidRequest),
            (r#""no/name":{"records":[{"data":1}]}"#, "no/name", Code::InvalidRequest),
        ] {
            let error = of(entry);
            assert_eq!((error.code, &error.detail.unwrap()["topic"]), (code, &topic.into()), "{entry}");
        }
        let large = format!(r#""bad":{{"records":[{{"data":"{}"}}]}}"#, "x".repeat(1 << 20));
        let error = of(&large);
        assert_eq!((error.code, error.detail), (Code::RecordTooLarge, Some(json!({ "topic": "bad" }))));
    }

    #[test]
    fn bad_shapes_are_refused() {
        // C-CONV-07
        for json in [
            "",
            "{}",
            r#"{"topics":{}}"#,
            r#"{"topics":null}"#,
            r#"{"topics":[]}"#,
            r#"{"topics":{"a":{"records":[{"data":1}]},"a":{"records":[{"data":1}]}}}"#,
            r#"{"topics":{"a":{"records":[{"data":1}]}},"node":""}"#,
            r#"{"topics":{"a":{"records":[{"data":1}]}},"idempotency_key":""}"#,
        ] {
            assert_eq!(refused(json).code, Code::InvalidRequest, "{json}");
        }
    }

    #[test]
    fn topics_and_the_sum_of_records_have_a_most() {
        // C-LIMIT-14, C-APPEND-05
        let topics = |count: usize, records: usize| {
            let records = vec![r#"{"data":1}"#; records].join(",");
            let entries: Vec<String> =
                (0..count).map(|at| format!(r#""t{at}":{{"records":[{records}]}}"#)).collect();
            format!(r#"{{"topics":{{{}}}}}"#, entries.join(","))
        };
        assert!(AppendManyBody::parse(topics(64, 1).as_bytes()).is_ok());
        assert_eq!(refused(&topics(65, 1)).code, Code::InvalidRequest);
        assert!(AppendManyBody::parse(topics(10, 1000).as_bytes()).is_ok());
        let error = refused(&topics(11, 1000));
        assert_eq!((error.code, error.detail), (Code::BatchTooLarge, Some(json!({ "max": 10_000 }))));
    }

    proptest! {
        #[test]
        fn arbitrary_damage_never_panics(at: prop::sample::Index, byte: u8) {
            let mut json =
                br#"{"node":"n","topics":{"a":{"records":[{"data":[1]}]},"b":{"records":[{"data":2}]}}}"#.to_vec();
            let at = at.index(json.len());
            json[at] = byte;
            let _ = AppendManyBody::parse(&json);
        }
    }
}
