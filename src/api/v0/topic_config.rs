//! The config object of a topic, in and out (contract section 6).
//!
//! What is stored is always whole and resolved: defaults filled in, numbers clamped, `durable` folded into
//! `durability`. So the same object can be echoed to every reader without looking at what was sent.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use crate::api::json::{JsonWriter, ToJson};
use crate::api::name::is_topic_name;
use crate::api::shape::{Signed, Text, Unsigned, parse_object};
use crate::error::Error;
use crate::limits::MAX_IDEMPOTENCY_WINDOW_MS;
use crate::state::{Compaction, Discard, Durability, TopicConfig, TopicType};

const PRIORITY_BOUND: i64 = 1000;
const LEASE_MS_BOUNDS: (u64, u64) = (100, 86_400_000);
const MAX_CLAIM_JITTER_MS: u64 = 5000;

/// An enum's values with their names on the wire, the default first.
type Choices<T> = &'static [(&'static str, T)];

const TYPES: Choices<TopicType> = &[("log", TopicType::Log), ("queue", TopicType::Queue)];
const DISCARDS: Choices<Discard> = &[("old", Discard::Old), ("reject", Discard::Reject)];
const DURABILITIES: Choices<Durability> = &[
    ("disk", Durability::Disk),
    ("ephemeral", Durability::Ephemeral),
    ("memory", Durability::Memory),
    ("fsync", Durability::Fsync),
];
const COMPACTIONS: Choices<Compaction> = &[("none", Compaction::None), ("key", Compaction::Key)];

#[derive(Deserialize)]
struct ConfigBody<'a> {
    #[serde(borrow, default, rename = "type")]
    topic_type: Option<Text<'a>>,
    #[serde(default)]
    ttl_ms: Option<u64>,
    #[serde(default)]
    cap_records: Option<u64>,
    #[serde(default)]
    cap_bytes: Option<u64>,
    #[serde(borrow, default)]
    discard: Option<Text<'a>>,
    #[serde(default)]
    durable: Option<bool>,
    #[serde(borrow, default)]
    durability: Option<Text<'a>>,
    #[serde(default)]
    priority: Option<Signed>,
    #[serde(default)]
    auto_priority: Option<bool>,
    #[serde(default)]
    auto_create: Option<bool>,
    #[serde(default)]
    idempotency_window_ms: Option<Unsigned>,
    #[serde(default)]
    dedupe_node: Option<bool>,
    #[serde(default)]
    lease_ms: Option<Unsigned>,
    #[serde(default)]
    claim_jitter_ms: Option<Unsigned>,
    #[serde(default)]
    max_deliveries: Option<u64>,
    #[serde(borrow, default)]
    dead_letter: Option<Text<'a>>,
    #[serde(default)]
    leases_durable: Option<bool>,
    #[serde(borrow, default)]
    compaction: Option<Text<'a>>,
    #[serde(default)]
    delete_marker_ttl_ms: Option<u64>,
    /// A typo must not silently lose a setting (C-CONV-03).
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

/// Reads the config object of `topic`.
pub fn parse_config(json: &[u8], topic: &str) -> Result<TopicConfig, Error> {
    let body: ConfigBody<'_> = parse_object(json)?;
    if let Some(field) = body.unknown.keys().next() {
        return Err(bad_field(field, "is no field of a topic config"));
    }
    let config = body.resolve()?;
    if let Some(dead_letter) = &config.dead_letter
        && (!is_topic_name(dead_letter) || dead_letter == topic)
    {
        return Err(bad_field("dead_letter", "is not the name of another topic"));
    }
    if config.compaction == Compaction::Key && config.topic_type == TopicType::Queue {
        return Err(bad_field("compaction", "is not possible on a queue"));
    }
    Ok(config)
}

fn bad_field(field: &str, problem: &str) -> Error {
    Error::invalid(format!("config: `{field}` {problem}")).with_detail(json!({ "field": field }))
}

impl ConfigBody<'_> {
    /// Defaults, clamps and shorthands.
    fn resolve(self) -> Result<TopicConfig, Error> {
        let default = TopicConfig::default();
        let shorthand = if self.durable == Some(true) { Durability::Fsync } else { Durability::Disk };
        let (shortest_lease_ms, longest_lease_ms) = LEASE_MS_BOUNDS;
        Ok(TopicConfig {
            topic_type: choose("type", self.topic_type, TYPES)?.unwrap_or(default.topic_type),
            ttl_ms: self.ttl_ms.unwrap_or(default.ttl_ms),
            cap_records: self.cap_records.unwrap_or(default.cap_records),
            cap_bytes: self.cap_bytes.unwrap_or(default.cap_bytes),
            discard: choose("discard", self.discard, DISCARDS)?.unwrap_or(default.discard),
            durability: choose("durability", self.durability, DURABILITIES)?.unwrap_or(shorthand),
            priority: self.priority.map(|it| it.0.clamp(-PRIORITY_BOUND, PRIORITY_BOUND) as i32),
            auto_priority: self.auto_priority.unwrap_or(default.auto_priority),
            auto_create: self.auto_create.unwrap_or(default.auto_create),
            idempotency_window_ms: self
                .idempotency_window_ms
                .map_or(default.idempotency_window_ms, |it| it.0.min(MAX_IDEMPOTENCY_WINDOW_MS)),
            dedupe_node: self.dedupe_node.unwrap_or(default.dedupe_node),
            lease_ms: self
                .lease_ms
                .map_or(default.lease_ms, |it| it.0.clamp(shortest_lease_ms, longest_lease_ms)),
            claim_jitter_ms: self
                .claim_jitter_ms
                .map_or(default.claim_jitter_ms, |it| it.0.min(MAX_CLAIM_JITTER_MS)),
            max_deliveries: self.max_deliveries.unwrap_or(default.max_deliveries),
            dead_letter: self.dead_letter.map(|name| name.as_str().to_owned()),
            leases_durable: self.leases_durable.unwrap_or(default.leases_durable),
            compaction: choose("compaction", self.compaction, COMPACTIONS)?.unwrap_or(default.compaction),
            delete_marker_ttl_ms: self.delete_marker_ttl_ms.unwrap_or(default.delete_marker_ttl_ms),
        })
    }
}

/// The value with the given name, byte-exact (C-CONV-09).
fn choose<T: Copy>(field: &str, name: Option<Text<'_>>, choices: Choices<T>) -> Result<Option<T>, Error> {
    let Some(name) = name else { return Ok(None) };
    match choices.iter().find(|(choice, _)| *choice == name.as_str()) {
        Some((_, value)) => Ok(Some(*value)),
        None => {
            let names: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
            Err(bad_field(field, &format!("is not one of {}", names.join(", "))))
        }
    }
}

fn name_of<T: PartialEq>(value: &T, choices: Choices<T>) -> &'static str {
    choices.iter().find(|(_, choice)| choice == value).map_or("", |(name, _)| *name)
}

impl ToJson for TopicConfig {
    fn write(&self, json: &mut JsonWriter) {
        json.object(|json| {
            json.field("type", name_of(&self.topic_type, TYPES));
            json.field("ttl_ms", self.ttl_ms);
            json.field("cap_records", self.cap_records);
            json.field("cap_bytes", self.cap_bytes);
            json.field("discard", name_of(&self.discard, DISCARDS));
            json.field("durable", self.durability == Durability::Fsync);
            json.field("durability", name_of(&self.durability, DURABILITIES));
            json.field("priority", self.priority);
            json.field("auto_priority", self.auto_priority);
            json.field("auto_create", self.auto_create);
            json.field("idempotency_window_ms", self.idempotency_window_ms);
            json.field("dedupe_node", self.dedupe_node);
            json.field("lease_ms", self.lease_ms);
            json.field("claim_jitter_ms", self.claim_jitter_ms);
            json.field("max_deliveries", self.max_deliveries);
            json.field("dead_letter", self.dead_letter.as_deref());
            json.field("leases_durable", self.leases_durable);
            json.field("compaction", name_of(&self.compaction, COMPACTIONS));
            json.field("delete_marker_ttl_ms", self.delete_marker_ttl_ms);
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn parse(json: &str) -> Result<TopicConfig, Error> {
        parse_config(json.as_bytes(), "t")
    }

    fn echo(config: &TopicConfig) -> Value {
        let mut json = JsonWriter::with_capacity(0);
        json.value(config);
        serde_json::from_slice(&json.finish()).unwrap()
    }

    #[test]
    fn an_empty_object_is_the_default_and_is_echoed_whole() {
        let config = parse("{}").unwrap();
        assert_eq!(config, TopicConfig::default());
        let expected = json!({
            "type": "log", "ttl_ms": 0, "cap_records": 0, "cap_bytes": 0, "discard": "old",
            "durable": false, "durability": "disk", "priority": null, "auto_priority": true,
            "auto_create": true, "idempotency_window_ms": 120000, "dedupe_node": true,
            "lease_ms": 30000, "claim_jitter_ms": 0, "max_deliveries": 0, "dead_letter": null,
            "leases_durable": false, "compaction": "none", "delete_marker_ttl_ms": 86400000
        });
        assert_eq!(echo(&config), expected);
    }

    #[test]
    fn what_is_echoed_can_be_put_again() {
        let json = r#"{"type":"queue","ttl_ms":1,"cap_records":2,"cap_bytes":3,"discard":"reject",
            "durability":"memory","priority":-5,"auto_priority":false,"auto_create":false,
            "idempotency_window_ms":0,"dedupe_node":false,"lease_ms":500,"claim_jitter_ms":6,
            "max_deliveries":7,"dead_letter":"dead","leases_durable":true,"delete_marker_ttl_ms":8}"#;
        let config = parse(json).unwrap();
        assert_eq!(parse(&echo(&config).to_string()), Ok(config));
    }

    #[test]
    fn numbers_are_clamped() {
        // C-CONV-08
        let config = parse(r#"{"priority":99999999999,"lease_ms":1,"claim_jitter_ms":1e30}"#).unwrap();
        assert_eq!((config.priority, config.lease_ms, config.claim_jitter_ms), (Some(1000), 100, 5000));
        let config = parse(r#"{"priority":-1001,"lease_ms":18446744073709551616}"#).unwrap();
        assert_eq!((config.priority, config.lease_ms), (Some(-1000), 86_400_000));
    }

    #[test]
    fn durability_wins_over_durable() {
        // C-CFG-03, C-CFG-04
        for (json, durability, durable) in [
            ("{}", "disk", false),
            (r#"{"durable":true}"#, "fsync", true),
            (r#"{"durable":false}"#, "disk", false),
            (r#"{"durable":true,"durability":"memory"}"#, "memory", false),
            (r#"{"durable":false,"durability":"fsync"}"#, "fsync", true),
            (r#"{"durability":"ephemeral"}"#, "ephemeral", false),
        ] {
            let echoed = echo(&parse(json).unwrap());
            assert_eq!((&echoed["durability"], &echoed["durable"]), (&json!(durability), &json!(durable)));
        }
    }

    #[test]
    fn a_field_that_does_not_exist_is_named() {
        // C-CONV-03
        let error = parse(r#"{"ttl_ms":1,"tll_ms":{"a":[1]}}"#).unwrap_err();
        assert_eq!(error.detail, Some(json!({ "field": "tll_ms" })));
    }

    #[test]
    fn bad_values_are_refused() {
        // C-CONV-07, C-CONV-09, C-CFG-02, C-KEY-09
        for json in [
            r#"{"type":"LOG"}"#,
            r#"{"type":1}"#,
            r#"{"discard":""}"#,
            r#"{"durability":"Fsync"}"#,
            r#"{"durable":"true"}"#,
            r#"{"ttl_ms":-1}"#,
            r#"{"cap_records":1.5}"#,
            r#"{"cap_bytes":"1"}"#,
            r#"{"lease_ms":-1}"#,
            r#"{"priority":0.5}"#,
            r#"{"dead_letter":"t"}"#,
            r#"{"dead_letter":"no/name"}"#,
            r#"{"compaction":"keys"}"#,
            r#"{"type":"queue","compaction":"key"}"#,
            r#"{"ttl_ms":1,"ttl_ms":2}"#,
            "[]",
            "null",
            "",
        ] {
            assert!(parse(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse_config(&bytes, "t");
        }
    }
}
