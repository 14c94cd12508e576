//! What to watch, as a client says it: the body of `POST /v0/watch` and a WebSocket's `subscribe` (contract
//! sections 17.1 and 18).
//!
//! Filters are refused here, until they are part of the `View` of each topic.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::diff_body::{NodeLabels, Shown};
use super::frame::Form;
use crate::api::name::check_topic_name;
use crate::api::query::parse_consistency;
use crate::api::shape::{Object, Text, Unsigned, parse_object};
use crate::auth::{Caller, Scope};
use crate::engine::{Consistency, StartAt, View};
use crate::error::Error;
use crate::limits::{DEFAULT_PAGE_BYTES, DEFAULT_PAGE_RECORDS, MAX_PAGE_BYTES, MAX_PAGE_RECORDS};
use crate::limits::{MAX_HEARTBEAT_MS, MAX_TOPICS_PER_WATCH, MIN_HEARTBEAT_MS};

const DEFAULT_FRAME_BYTES: usize = 256 << 10;
const DEFAULT_HEARTBEAT_MS: u64 = 15_000;

#[derive(Debug, Default, Deserialize)]
struct TopicBody {
    #[serde(default)]
    from_seq: Option<u64>,
    #[serde(default)]
    tail: Option<bool>,
    #[serde(default)]
    epoch: Option<u64>,
    #[serde(default, rename = "filter")]
    _filter: Option<NoFilter>,
}

/// Refused, as long as streams cannot filter: one that is ignored would deliver what it must not.
#[derive(Debug, Clone, Copy)]
struct NoFilter;

impl<'de> Deserialize<'de> for NoFilter {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("`filter` is not taken by streams yet"))
    }
}

impl TopicBody {
    fn start(&self) -> StartAt {
        StartAt { from_seq: self.from_seq.unwrap_or(0), tail: self.tail.unwrap_or(false), epoch: self.epoch }
    }
}

/// The map of topics. Those above the limit are counted and not kept.
#[derive(Debug)]
struct Topics {
    kept: Vec<(String, StartAt)>,
    count: usize,
}

impl<'de> Deserialize<'de> for Topics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TopicsVisitor;

        impl<'de> Visitor<'de> for TopicsVisitor {
            type Value = Topics;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of topics")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Topics, A::Error> {
                let mut topics = Topics { kept: Vec::new(), count: 0 };
                while let Some(name) = map.next_key::<String>()? {
                    topics.count += 1;
                    if topics.count > MAX_TOPICS_PER_WATCH {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let start = map.next_value::<Object<TopicBody>>()?.0.start();
                    if topics.kept.iter().any(|(other, _)| *other == name) {
                        return Err(A::Error::custom(format!("topic {name:?} stands there twice")));
                    }
                    topics.kept.push((name, start));
                }
                Ok(topics)
            }
        }

        deserializer.deserialize_map(TopicsVisitor)
    }
}

#[derive(Debug, Deserialize)]
struct WatchBody<'a> {
    #[serde(default)]
    topics: Option<Topics>,
    /// One topic, only in a `subscribe`.
    #[serde(borrow, default)]
    topic: Option<Text<'a>>,
    #[serde(default)]
    from_seq: Option<u64>,
    #[serde(default)]
    tail: Option<bool>,
    #[serde(default)]
    epoch: Option<u64>,
    #[serde(default)]
    node: Option<NodeLabels>,
    #[serde(default)]
    limit: Option<Unsigned>,
    #[serde(default)]
    max_batch_bytes: Option<Unsigned>,
    #[serde(default)]
    heartbeat_ms: Option<Unsigned>,
    #[serde(default)]
    include_meta: Option<bool>,
    #[serde(default)]
    include_tags: Option<bool>,
    #[serde(default)]
    include_data: Option<bool>,
    /// Only its type matters: there are no copies yet that have an origin to show.
    #[serde(default, rename = "filter")]
    _filter: Option<NoFilter>,
    #[serde(default, rename = "include_origin")]
    _include_origin: Option<bool>,
    #[serde(default)]
    lenient: Option<bool>,
    #[serde(borrow, default)]
    consistency: Option<Text<'a>>,
}

/// What to watch, checked.
#[derive(Debug, PartialEq, Eq)]
pub struct WatchRequest {
    /// At least one.
    pub topics: Vec<(String, StartAt)>,
    pub view: View,
    pub heartbeat_ms: u64,
    /// Whether unknown topics are left out; a POST says so in its query.
    pub lenient: bool,
    pub consistency: Consistency,
}

impl WatchRequest {
    /// The body of a POST.
    pub fn parse_post(json: &[u8]) -> Result<Self, Error> {
        let body: WatchBody<'_> = parse_object(json)?;
        let limit = body.limit.map_or(DEFAULT_PAGE_RECORDS, |limit| clamped(limit.0, 1, MAX_PAGE_RECORDS));
        let topics = body.topics.ok_or_else(|| Error::invalid("body: missing field `topics`"))?;
        let form = Form {
            shown: shown(&body.include_tags, &body.include_meta, &body.include_data),
            is_web_socket: false,
        };
        Ok(WatchRequest {
            topics: checked(topics)?,
            view: View {
                form: form.number(),
                limit,
                max_bytes: bytes(body.max_batch_bytes, DEFAULT_FRAME_BYTES),
                drop_nodes: labels(body.node),
            },
            heartbeat_ms: body
                .heartbeat_ms
                .map_or(DEFAULT_HEARTBEAT_MS, |it| it.0.clamp(MIN_HEARTBEAT_MS, MAX_HEARTBEAT_MS)),
            lenient: false,
            consistency: parse_consistency(body.consistency.as_ref().map(Text::as_str))?,
        })
    }

    /// A `subscribe` of a WebSocket.
    pub fn parse_subscribe(json: &[u8]) -> Result<Self, Error> {
        let body: WatchBody<'_> = parse_object(json)?;
        let topics = match (body.topic, body.topics) {
            (Some(topic), None) => {
                let start =
                    TopicBody { from_seq: body.from_seq, tail: body.tail, epoch: body.epoch, _filter: None }
                        .start();
                Topics { kept: vec![(topic.as_str().to_owned(), start)], count: 1 }
            }
            (None, Some(topics)) => topics,
            _ => return Err(Error::invalid("a subscribe has either `topic` or `topics`")),
        };
        let form = Form {
            shown: shown(&body.include_tags, &body.include_meta, &body.include_data),
            is_web_socket: true,
        };
        Ok(WatchRequest {
            topics: checked(topics)?,
            view: View {
                form: form.number(),
                limit: body.limit.map_or(MAX_PAGE_RECORDS, |limit| clamped(limit.0, 1, MAX_PAGE_RECORDS)),
                max_bytes: bytes(body.max_batch_bytes, DEFAULT_PAGE_BYTES),
                drop_nodes: labels(body.node),
            },
            heartbeat_ms: DEFAULT_HEARTBEAT_MS,
            lenient: body.lenient.unwrap_or(false),
            consistency: parse_consistency(body.consistency.as_ref().map(Text::as_str))?,
        })
    }

    /// Errors: `forbidden` if the caller may not read one of the topics (C-AUTH-13).
    pub fn check_caller(&self, caller: &Caller) -> Result<(), Error> {
        self.topics.iter().try_for_each(|(topic, _)| caller.check(Scope::Read, Some(topic)))
    }
}

fn labels(node: Option<NodeLabels>) -> Vec<String> {
    node.map_or(Vec::new(), |labels| labels.0)
}

fn shown(tags: &Option<bool>, meta: &Option<bool>, data: &Option<bool>) -> Shown {
    Shown {
        tags: tags.unwrap_or(false),
        meta: meta.unwrap_or(true),
        data: data.unwrap_or(true),
        origin: false,
    }
}

fn clamped(value: u64, least: usize, most: usize) -> usize {
    usize::try_from(value).unwrap_or(most).clamp(least, most)
}

fn bytes(value: Option<Unsigned>, default: usize) -> usize {
    match value {
        None => default,
        Some(Unsigned(0)) => DEFAULT_PAGE_BYTES,
        Some(Unsigned(value)) => clamped(value, 1, MAX_PAGE_BYTES),
    }
}

fn checked(topics: Topics) -> Result<Vec<(String, StartAt)>, Error> {
    if topics.count == 0 || topics.count > MAX_TOPICS_PER_WATCH {
        let count = topics.count;
        return Err(Error::invalid(format!("a watch has 1 to {MAX_TOPICS_PER_WATCH} topics, not {count}")));
    }
    topics.kept.iter().try_for_each(|(name, _)| check_topic_name(name))?;
    Ok(topics.kept)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn post(json: &str) -> Result<WatchRequest, Error> {
        WatchRequest::parse_post(json.as_bytes())
    }

    fn subscribe(json: &str) -> Result<WatchRequest, Error> {
        WatchRequest::parse_subscribe(json.as_bytes())
    }

    #[test]
    fn nothing_means_the_defaults_of_the_tables() {
        let shown = Shown { tags: false, meta: true, data: true, origin: false };
        let request = post(r#"{"topics":{"t":{}}}"#).unwrap();
        assert_eq!(request.topics, [("t".to_owned(), StartAt::default())]);
        assert_eq!((request.view.limit, request.view.max_bytes), (256, 256 << 10));
        assert_eq!(request.view.form, Form { shown, is_web_socket: false }.number());
        assert_eq!((request.heartbeat_ms, request.consistency), (15_000, Consistency::Strong));
        let request = subscribe(r#"{"op":"subscribe","topic":"t","from_seq":7}"#).unwrap();
        assert_eq!(request.topics, [("t".to_owned(), StartAt { from_seq: 7, tail: false, epoch: None })]);
        assert_eq!((request.view.limit, request.view.max_bytes), (1000, 1 << 20));
        assert_eq!(request.view.form, Form { shown, is_web_socket: true }.number());
    }

    #[test]
    fn numbers_are_clamped() {
        // C-CONV-08 and the table of section 17.1
        let request = |limit, bytes, heartbeat| {
            let json = format!(
                r#"{{"topics":{{"t":{{}}}},"limit":{limit},"max_batch_bytes":{bytes},"heartbeat_ms":{heartbeat}}}"#
            );
            let request = post(&json).unwrap();
            (request.view.limit, request.view.max_bytes, request.heartbeat_ms)
        };
        assert_eq!(request("0", "0", "0"), (1, 1 << 20, 1000));
        assert_eq!(request("7", "7", "7000"), (7, 7, 7000));
        let most = (1000, 8 << 20, 60_000);
        assert_eq!(request("99999999999999999999999", "1e30", "60001"), most);
    }

    #[test]
    fn there_are_one_to_256_topics_with_good_names() {
        // C-WATCH-02
        let topics = |count: usize| {
            let topics: Vec<String> = (0..count).map(|number| format!("\"t{number}\":{{}}")).collect();
            post(&format!("{{\"topics\":{{{}}}}}", topics.join(",")))
        };
        assert_eq!(topics(256).unwrap().topics.len(), 256);
        for bad in [topics(0), topics(257), topics(2000)] {
            assert!(bad.is_err());
        }
        for bad in [
            "{}",
            r#"{"topics":[]}"#,
            r#"{"topics":{"t":[]}}"#,
            r#"{"topics":{"t":null}}"#,
            r#"{"topics":{"t":{},"t":{}}}"#,
            r#"{"topics":{"-":{}}}"#,
            r#"{"topics":{"t":{"from_seq":-1}}}"#,
            r#"{"topics":{"t":{"tail":1}}}"#,
            r#"{"topics":{"t":{}},"consistency":"Strong"}"#,
            r#"{"topics":{"t":{}},"limit":-1}"#,
            r#"{"topics":{"t":{}},"filter":"x"}"#,
            r#"{"topics":{"t":{"filter":["tag","Eq","x"]}}}"#,
        ] {
            assert!(post(bad).is_err(), "{bad}");
        }
        for bad in [r#"{}"#, r#"{"topic":"t","topics":{"t":{}}}"#, r#"{"topic":"-"}"#, r#"{"topic":7}"#] {
            assert!(subscribe(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = (WatchRequest::parse_post(&bytes), WatchRequest::parse_subscribe(&bytes));
        }
    }
}
