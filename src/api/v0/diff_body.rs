//! The body of a diff (contract section 9): clamps and defaults.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::api::query::parse_consistency;
use crate::api::shape::{Text, Unsigned, parse_object};
use crate::engine::PageQuery;
use crate::error::Error;
use crate::filter::Filter;
use crate::limits::{
    COLD_ENTRY_PATIENCE, DEFAULT_PAGE_BYTES, DEFAULT_PAGE_RECORDS, MAX_NODE_BYTES, MAX_NODE_LABELS,
    MAX_PAGE_BYTES, MAX_PAGE_RECORDS, MAX_WAIT_MS,
};

#[derive(Debug, Deserialize)]
struct DiffBody<'a> {
    #[serde(default)]
    from_seq: Option<u64>,
    #[serde(default)]
    from_ts: Option<u64>,
    #[serde(default)]
    limit: Option<Unsigned>,
    #[serde(default)]
    node: Option<NodeLabels>,
    #[serde(default)]
    include_tags: Option<bool>,
    #[serde(default)]
    include_meta: Option<bool>,
    #[serde(default)]
    wait_ms: Option<Unsigned>,
    #[serde(default)]
    max_batch_bytes: Option<Unsigned>,
    #[serde(default)]
    epoch: Option<u64>,
    #[serde(borrow, default)]
    filter: Option<&'a RawValue>,
    #[serde(default, rename = "channel")]
    _channel: Option<NoChannel>,
    #[serde(borrow, default)]
    consistency: Option<Text<'a>>,
    #[serde(default)]
    include_origin: Option<bool>,
}

/// Refused, as long as channels cannot be read: a `channel` that is ignored would deliver what was not asked for.
#[derive(Debug)]
pub struct NoChannel;

impl<'de> Deserialize<'de> for NoChannel {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("reading by `channel` is not built yet; a `filter` on the field channel is"))
    }
}

/// Which optional parts of a record a reader wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    pub tags: bool,
    pub meta: bool,
    pub data: bool,
    /// Where copies were first written.
    pub origin: bool,
}

/// What to read, and what to show of it.
pub fn parse_diff(json: &[u8]) -> Result<(PageQuery, Shown), Error> {
    let body: DiffBody<'_> = parse_object(json)?;
    let from_seq = body.from_seq.unwrap_or(0);
    if body.from_ts.is_some() && from_seq != 0 {
        return Err(Error::invalid("`from_ts` and `from_seq` cannot both say where to start"));
    }
    let query = PageQuery {
        from_seq,
        from_ts_ms: body.from_ts,
        limit: clamp(body.limit, DEFAULT_PAGE_RECORDS, MAX_PAGE_RECORDS),
        max_bytes: clamp(body.max_batch_bytes, DEFAULT_PAGE_BYTES, MAX_PAGE_BYTES),
        drop_nodes: body.node.map_or(Arc::default(), NodeLabels::known),
        filter: body.filter.map(|json| Filter::parse(json.get()).map(Arc::new)).transpose()?,
        epoch: body.epoch,
        consistency: parse_consistency(body.consistency.as_ref().map(Text::as_str))?,
        wait_ms: body.wait_ms.map_or(0, |it| it.0.min(MAX_WAIT_MS)),
        patience: COLD_ENTRY_PATIENCE,
    };
    let shown = Shown {
        tags: body.include_tags.unwrap_or(false),
        meta: body.include_meta.unwrap_or(true),
        data: true,
        origin: body.include_origin.unwrap_or(false),
    };
    Ok((query, shown))
}

/// 0 means the default, and so does nothing.
fn clamp(value: Option<Unsigned>, default: usize, most: usize) -> usize {
    match value {
        None | Some(Unsigned(0)) => default,
        Some(Unsigned(value)) => usize::try_from(value).unwrap_or(most).min(most),
    }
}

/// A string or an array of them (C-NODE-03).
#[derive(Debug)]
pub struct NodeLabels(pub Vec<String>);

impl NodeLabels {
    /// Those that a record can have: a longer one is no record's.
    pub fn known(mut self) -> Arc<[String]> {
        self.0.retain(|label| label.len() <= MAX_NODE_BYTES);
        self.0.into()
    }
}

impl<'de> Deserialize<'de> for NodeLabels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LabelVisitor;

        impl<'de> Visitor<'de> for LabelVisitor {
            type Value = NodeLabels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E>(self, label: &str) -> Result<NodeLabels, E> {
                Ok(NodeLabels(vec![label.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<NodeLabels, A::Error> {
                let mut labels = Vec::new();
                while let Some(label) = items.next_element::<String>()? {
                    if labels.len() == MAX_NODE_LABELS {
                        return Err(A::Error::custom(format!(
                            "`node` has more than {MAX_NODE_LABELS} labels"
                        )));
                    }
                    labels.push(label);
                }
                Ok(NodeLabels(labels))
            }
        }

        deserializer.deserialize_any(LabelVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::Consistency;

    fn parse(json: &str) -> Result<(PageQuery, Shown), Error> {
        parse_diff(json.as_bytes())
    }

    #[test]
    fn nothing_means_the_defaults() {
        let (query, shown) = parse("{}").unwrap();
        assert_eq!((query.from_seq, query.limit, query.max_bytes, query.wait_ms), (0, 256, 1 << 20, 0));
        assert_eq!((query.epoch, query.consistency), (None, Consistency::Strong));
        assert!(query.drop_nodes.is_empty());
        assert_eq!(shown, Shown { tags: false, meta: true, data: true, origin: false });
    }

    #[test]
    fn numbers_are_clamped() {
        // C-CONV-08 and the table of section 9
        let (query, _) = parse(r#"{"limit":0,"max_batch_bytes":0,"wait_ms":0}"#).unwrap();
        assert_eq!((query.limit, query.max_bytes, query.wait_ms), (256, 1 << 20, 0));
        let (query, _) = parse(r#"{"limit":1,"max_batch_bytes":1,"wait_ms":1}"#).unwrap();
        assert_eq!((query.limit, query.max_bytes, query.wait_ms), (1, 1, 1));
        for large in ["1000000000", "18446744073709551615", "99999999999999999999999"] {
            let json = format!(r#"{{"limit":{large},"max_batch_bytes":{large},"wait_ms":{large}}}"#);
            let (query, _) = parse(&json).unwrap();
            assert_eq!((query.limit, query.max_bytes, query.wait_ms), (1000, 8 << 20, 30_000));
        }
    }

    #[test]
    fn node_is_a_label_or_several() {
        // C-NODE-03
        let nodes = |json: &str| parse(json).map(|(query, _)| query.drop_nodes);
        assert_eq!(nodes(r#"{"node":"a"}"#), Ok(["a".to_owned()].into()));
        assert_eq!(nodes(r#"{"node":["a","b"]}"#), Ok(["a".to_owned(), "b".to_owned()].into()));
        assert_eq!(nodes(r#"{"node":[]}"#), Ok([].into()));
        for bad in [r#"{"node":1}"#, r#"{"node":["a",1]}"#, r#"{"node":{"a":1}}"#] {
            assert!(nodes(bad).is_err(), "{bad}");
        }
        let long = "n".repeat(MAX_NODE_BYTES + 1);
        assert_eq!(
            nodes(&format!("{{\"node\":[\"a\",{long:?}]}}")),
            Ok(["a".to_owned()].into()),
            "no record has it"
        );
        let many = |count: usize| nodes(&format!("{{\"node\":[{}]}}", vec!["\"n\""; count].join(",")));
        assert!(many(64).is_ok() && many(65).is_err());
    }

    #[test]
    fn bad_shapes_are_refused_and_unknown_fields_are_not() {
        // C-CONV-03, C-CONV-07, C-CONS-01
        for bad in [
            "",
            "[]",
            "[1]",
            r#"{"from_seq":-1}"#,
            r#"{"from_seq":"1"}"#,
            r#"{"from_ts":-1}"#,
            r#"{"from_ts":1,"from_seq":1}"#,
            r#"{"limit":1.5}"#,
            r#"{"limit":-1}"#,
            r#"{"wait_ms":true}"#,
            r#"{"include_tags":1}"#,
            r#"{"include_meta":"true"}"#,
            r#"{"epoch":-1}"#,
            r#"{"filter":1}"#,
            r#"{"filter":["tag","Eq"]}"#,
            r#"{"channel":"c"}"#,
            r#"{"channel":["c"]}"#,
            r#"{"consistency":"STRONG"}"#,
            r#"{"consistency":1}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(r#"{"from_seq":3,"later":{"x":[null]}}"#).is_ok());
        let (query, _) = parse(r#"{"from_seq":0,"from_ts":17}"#).unwrap();
        assert_eq!((query.from_seq, query.from_ts_ms), (0, Some(17)));
    }

    #[test]
    fn a_filter_is_a_tuple_or_a_tag() {
        let filter = |json: &str| parse(json).unwrap().0.filter.map(|filter| filter.to_string());
        assert_eq!(filter(r#"{"filter": ["data.n", "Gt", 1.0]}"#).as_deref(), Some(r#"["data.n","Gt",1.0]"#));
        assert_eq!(filter(r#"{"filter":"m:*"}"#).as_deref(), Some(r#"["tag","Glob","m:*"]"#));
        assert_eq!(filter(r#"{"filter":null}"#), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse_diff(&bytes);
        }
    }
}
