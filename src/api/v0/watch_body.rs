//! What to watch, as a client says it: the body of `POST /v0/watch` and a WebSocket's `subscribe` (contract
//! sections 17.1 and 18).

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::diff_body::{NoChannel, NodeLabels, Shown};
use super::frame::Form;
use crate::api::name::check_topic_name;
use crate::api::query::parse_consistency;
use crate::api::shape::{Object, Text, Unsigned, parse_object};
use crate::auth::{Caller, Scope};
use crate::engine::{Consistency, StartAt, View};
use crate::error::Error;
use crate::filter::Filter;
use crate::limits::{
    DEFAULT_PAGE_BYTES, DEFAULT_PAGE_RECORDS, MAX_HEARTBEAT_MS, MAX_NODE_BYTES, MAX_PAGE_BYTES,
    MAX_PAGE_RECORDS, MAX_TOPICS_PER_WATCH, MAX_WATCH_FILTER_BYTES, MAX_WATCH_VIEW_BYTES, MIN_HEARTBEAT_MS,
};

const DEFAULT_FRAME_BYTES: usize = 256 << 10;
const DEFAULT_HEARTBEAT_MS: u64 = 15_000;

#[derive(Debug, Deserialize)]
struct TopicBody<'a> {
    #[serde(default)]
    from_seq: Option<u64>,
    #[serde(default)]
    tail: Option<bool>,
    #[serde(default)]
    epoch: Option<u64>,
    #[serde(borrow, default)]
    filter: Option<&'a RawValue>,
    #[serde(default, rename = "channel")]
    _channel: Option<NoChannel>,
}

impl TopicBody<'_> {
    fn start(&self) -> StartAt {
        StartAt { from_seq: self.from_seq.unwrap_or(0), tail: self.tail.unwrap_or(false), epoch: self.epoch }
    }
}

/// One topic as it is named: where to start, and a filter of its own.
type Named<'a> = (String, StartAt, Option<&'a RawValue>);

/// The map of topics. Those above the limit are counted and not kept.
#[derive(Debug)]
struct Topics<'a> {
    kept: Vec<Named<'a>>,
    count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Topics<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TopicsVisitor;

        impl<'de> Visitor<'de> for TopicsVisitor {
            type Value = Topics<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of topics")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Topics<'de>, A::Error> {
                let mut topics = Topics { kept: Vec::new(), count: 0 };
                while let Some(name) = map.next_key::<String>()? {
                    topics.count += 1;
                    if topics.count > MAX_TOPICS_PER_WATCH {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let body = map.next_value::<Object<TopicBody<'de>>>()?.0;
                    if topics.kept.iter().any(|(other, ..)| *other == name) {
                        return Err(A::Error::custom(format!("topic {name:?} stands there twice")));
                    }
                    topics.kept.push((name, body.start(), body.filter));
                }
                Ok(topics)
            }
        }

        deserializer.deserialize_map(TopicsVisitor)
    }
}

#[derive(Debug, Deserialize)]
struct WatchBody<'a> {
    #[serde(borrow, default)]
    topics: Option<Topics<'a>>,
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
    /// For topics without one of their own.
    #[serde(borrow, default)]
    filter: Option<&'a RawValue>,
    /// Only in a `subscribe`, and refused there.
    #[serde(default, rename = "channel")]
    _channel: Option<NoChannel>,
    #[serde(default)]
    include_origin: Option<bool>,
    #[serde(default)]
    lenient: Option<bool>,
    #[serde(borrow, default)]
    consistency: Option<Text<'a>>,
}

/// One topic to watch.
#[derive(Debug, PartialEq, Eq)]
pub struct WatchedTopic {
    pub name: String,
    pub start: StartAt,
    /// Topics without a filter of their own share one.
    pub view: Arc<View>,
}

/// What to watch, checked.
#[derive(Debug, PartialEq, Eq)]
pub struct WatchRequest {
    /// At least one.
    pub topics: Vec<WatchedTopic>,
    pub heartbeat_ms: u64,
    /// Whether unknown topics are left out; a POST says so in its query.
    pub lenient: bool,
    pub consistency: Consistency,
}

/// In what a POST and a `subscribe` differ.
struct Way {
    is_web_socket: bool,
    limit: usize,
    max_bytes: usize,
}

const POST: Way = Way { is_web_socket: false, limit: DEFAULT_PAGE_RECORDS, max_bytes: DEFAULT_FRAME_BYTES };
const SUBSCRIBE: Way = Way { is_web_socket: true, limit: MAX_PAGE_RECORDS, max_bytes: DEFAULT_PAGE_BYTES };

impl WatchRequest {
    /// The body of a POST.
    pub fn parse_post(json: &[u8]) -> Result<Self, Error> {
        let mut body: WatchBody<'_> = parse_object(json)?;
        let topics = body.topics.take().ok_or_else(|| Error::invalid("body: missing field `topics`"))?;
        Ok(WatchRequest { lenient: false, ..Self::of(body, topics, POST)? })
    }

    /// A `subscribe` of a WebSocket.
    pub fn parse_subscribe(json: &[u8]) -> Result<Self, Error> {
        let mut body: WatchBody<'_> = parse_object(json)?;
        let topics = match (body.topic.take(), body.topics.take()) {
            (Some(topic), None) => {
                let (from_seq, tail) = (body.from_seq.unwrap_or(0), body.tail.unwrap_or(false));
                let start = StartAt { from_seq, tail, epoch: body.epoch };
                Topics { kept: vec![(topic.as_str().to_owned(), start, None)], count: 1 }
            }
            (None, Some(topics)) => topics,
            _ => return Err(Error::invalid("a subscribe has either `topic` or `topics`")),
        };
        Self::of(body, topics, SUBSCRIBE)
    }

    fn of(body: WatchBody<'_>, topics: Topics<'_>, way: Way) -> Result<Self, Error> {
        let shown = Shown {
            tags: body.include_tags.unwrap_or(false),
            meta: body.include_meta.unwrap_or(true),
            data: body.include_data.unwrap_or(true),
            origin: body.include_origin.unwrap_or(false),
        };
        let form = Form { shown, is_web_socket: way.is_web_socket }.number();
        let limit = body.limit.map_or(way.limit, |limit| clamped(limit.0, 1, MAX_PAGE_RECORDS));
        let max_bytes = bytes(body.max_batch_bytes, way.max_bytes);
        let mut drop_nodes = body.node.map_or(Vec::new(), |labels| labels.0);
        // No record has a longer one, and a session would keep it.
        drop_nodes.retain(|label| label.len() <= MAX_NODE_BYTES);
        let drop_nodes: Arc<[String]> = drop_nodes.into();
        let topics = checked(topics)?;
        let own = topics.iter().filter_map(|(_, _, filter)| *filter);
        let filter_bytes: usize = own.chain(body.filter).map(|filter| filter.get().len()).sum();
        if filter_bytes > MAX_WATCH_FILTER_BYTES {
            return Err(Error::invalid(format!(
                "the filters of a watch have at most {MAX_WATCH_FILTER_BYTES} bytes, not {filter_bytes}"
            )));
        }
        let view = |filter: Option<&RawValue>| {
            let filter = filter.map(|json| Filter::parse(json.get()).map(Arc::new)).transpose()?;
            Ok::<_, Error>(View::new(form, limit, max_bytes, drop_nodes.clone(), filter))
        };
        let shared = view(body.filter)?;
        let topics = topics.into_iter().map(|(name, start, filter)| {
            let view = if filter.is_some() { view(filter)? } else { shared.clone() };
            Ok::<_, Error>(WatchedTopic { name, start, view })
        });
        let topics: Vec<WatchedTopic> = topics.collect::<Result<_, _>>()?;
        check_views(topics.iter().map(|topic| &topic.view))?;
        Ok(WatchRequest {
            topics,
            heartbeat_ms: body
                .heartbeat_ms
                .map_or(DEFAULT_HEARTBEAT_MS, |it| it.0.clamp(MIN_HEARTBEAT_MS, MAX_HEARTBEAT_MS)),
            lenient: body.lenient.unwrap_or(false),
            consistency: parse_consistency(body.consistency.as_ref().map(Text::as_str))?,
        })
    }

    /// Errors: `forbidden` if the caller may not read one of the topics (C-AUTH-13).
    pub fn check_caller(&self, caller: &Caller) -> Result<(), Error> {
        self.topics.iter().try_for_each(|topic| caller.check(Scope::Read, Some(&topic.name)))
    }
}

/// Errors: `invalid_request` if what decides which records are shown takes too much memory.
pub fn check_views<'a>(views: impl Iterator<Item = &'a Arc<View>>) -> Result<usize, Error> {
    let bytes = View::memory_bytes(views);
    if bytes > MAX_WATCH_VIEW_BYTES {
        return Err(Error::invalid(format!(
            "the filters of a watch take at most {MAX_WATCH_VIEW_BYTES} bytes of memory, not {bytes}"
        )));
    }
    Ok(bytes)
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

fn checked(topics: Topics<'_>) -> Result<Vec<Named<'_>>, Error> {
    if topics.count == 0 || topics.count > MAX_TOPICS_PER_WATCH {
        let count = topics.count;
        return Err(Error::invalid(format!("a watch has 1 to {MAX_TOPICS_PER_WATCH} topics, not {count}")));
    }
    topics.kept.iter().try_for_each(|(name, ..)| check_topic_name(name))?;
    Ok(topics.kept)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::MAX_FILTER_STEPS;

    fn post(json: &str) -> Result<WatchRequest, Error> {
        WatchRequest::parse_post(json.as_bytes())
    }

    fn subscribe(json: &str) -> Result<WatchRequest, Error> {
        WatchRequest::parse_subscribe(json.as_bytes())
    }

    fn filters(request: &WatchRequest) -> Vec<Option<String>> {
        let filters = request.topics.iter().map(|topic| topic.view.filter.as_ref());
        filters.map(|filter| filter.map(|filter| filter.to_string())).collect()
    }

    #[test]
    fn nothing_means_the_defaults_of_the_tables() {
        let shown = Shown { tags: false, meta: true, data: true, origin: false };
        let request = post(r#"{"topics":{"t":{}}}"#).unwrap();
        let WatchedTopic { name, start, view } = &request.topics[0];
        assert_eq!((name.as_str(), start), ("t", &StartAt::default()));
        assert_eq!((view.limit, view.max_bytes, &view.filter), (256, 256 << 10, &None));
        assert_eq!(view.form, Form { shown, is_web_socket: false }.number());
        assert_eq!((request.heartbeat_ms, request.consistency), (15_000, Consistency::Strong));
        let request = subscribe(r#"{"op":"subscribe","topic":"t","from_seq":7}"#).unwrap();
        let WatchedTopic { name, start, view } = &request.topics[0];
        assert_eq!((name.as_str(), start), ("t", &StartAt { from_seq: 7, tail: false, epoch: None }));
        assert_eq!((view.limit, view.max_bytes, &view.filter), (1000, 1 << 20, &None));
        assert_eq!(view.form, Form { shown, is_web_socket: true }.number());
    }

    #[test]
    fn a_topic_has_its_own_filter_or_that_of_all() {
        // Section 17.1
        let request = post(
            r#"{"topics":{"a":{"filter":"x"},"b":{},"c":{"filter":null}},"filter":["data.n", "Gt", 1.0]}"#,
        )
        .unwrap();
        let (own, shared) = (r#"["tag","Eq","x"]"#.to_owned(), r#"["data.n","Gt",1.0]"#.to_owned());
        assert_eq!(filters(&request), [Some(own.clone()), Some(shared.clone()), Some(shared)]);
        assert!(Arc::ptr_eq(&request.topics[1].view, &request.topics[2].view));
        let request = subscribe(r#"{"topic":"t","filter":"x"}"#).unwrap();
        assert_eq!(filters(&request), [Some(own.clone())]);
        let request = subscribe(r#"{"topics":{"a":{"filter":"x"},"b":{}}}"#).unwrap();
        assert_eq!(filters(&request), [Some(own), None]);
    }

    #[test]
    fn filters_are_bounded_together() {
        let with = |bytes: usize| {
            let topics = (0..8)
                .map(|number| format!("\"t{number}\":{{\"filter\":\"{}\"}}", "x".repeat(bytes / 8 - 2)));
            post(&format!("{{\"topics\":{{{}}}}}", topics.collect::<Vec<_>>().join(",")))
        };
        assert!(with(MAX_WATCH_FILTER_BYTES).is_ok());
        assert!(with(MAX_WATCH_FILTER_BYTES + 8).is_err());
    }

    #[test]
    fn what_filters_take_in_memory_is_bounded() {
        // C-LIMIT-16: the shortest texts that make the most memory.
        let memory = |filters: &[String]| {
            let topics = filters.iter().enumerate();
            let topics: Vec<String> =
                topics.map(|(number, filter)| format!("\"t{number}\":{{\"filter\":{filter}}}")).collect();
            let request = post(&format!("{{\"topics\":{{{}}}}}", topics.join(","))).unwrap();
            View::memory_bytes(request.topics.iter().map(|topic| &topic.view))
        };
        let numbers = vec!["1"; 64].join(",");
        let steps = vec!["a"; MAX_FILTER_STEPS].join(".");
        let paths = vec![format!("[\"data.{steps}\",\"Exists\",true]"); 64].join(",");
        for one in [format!("[\"tag\",\"In\",[{numbers}]]"), format!("[\"And\",[{paths}]]")] {
            let filters = vec![one.clone(); (MAX_WATCH_FILTER_BYTES / one.len()).min(MAX_TOPICS_PER_WATCH)];
            let bytes = memory(&filters);
            assert!(bytes > 10 * MAX_WATCH_FILTER_BYTES && bytes <= MAX_WATCH_VIEW_BYTES, "{bytes}");
        }
        // Nodes are kept once, whatever filters there are.
        let nodes = vec![format!("\"{}\"", "n".repeat(128)); 64].join(",");
        let topics: Vec<String> =
            (0..256).map(|number| format!("\"t{number}\":{{\"filter\":\"x\"}}")).collect();
        let request = post(&format!("{{\"topics\":{{{}}},\"node\":[{nodes}]}}", topics.join(","))).unwrap();
        assert!(check_views(request.topics.iter().map(|topic| &topic.view)).unwrap() < 256 << 10);
    }

    #[test]
    fn numbers_are_clamped() {
        // C-CONV-08 and the table of section 17.1
        let request = |limit, bytes, heartbeat| {
            let json = format!(
                r#"{{"topics":{{"t":{{}}}},"limit":{limit},"max_batch_bytes":{bytes},"heartbeat_ms":{heartbeat}}}"#
            );
            let request = post(&json).unwrap();
            let view = &request.topics[0].view;
            (view.limit, view.max_bytes, request.heartbeat_ms)
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
            r#"{"topics":{"t":{}},"filter":["tag","eq","x"]}"#,
            r#"{"topics":{"t":{"filter":["tag","Eq"]}}}"#,
            r#"{"topics":{"t":{"channel":"c"}}}"#,
        ] {
            assert!(post(bad).is_err(), "{bad}");
        }
        for bad in [
            r#"{}"#,
            r#"{"topic":"t","topics":{"t":{}}}"#,
            r#"{"topic":"-"}"#,
            r#"{"topic":7}"#,
            r#"{"topic":"t","channel":["c"]}"#,
            r#"{"topic":"t","filter":1}"#,
        ] {
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
