//! What comes in at the client port, for [`crate::fuzzing`].

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use bytes::BytesMut;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::byte_budget::ByteBudget;
use super::call::{Call, Delete, Gate, RouterCall, TopicCall, Write as Writes};
use super::connections::{Connection, Connections};
use super::cursor::{decode_cursor, encode_cursor};
use super::edge_metrics::EdgeMetrics;
use super::event_id::EventIds;
use super::gzip::unpack_now;
use super::query::Query;
use super::routes::Routes;
use super::serve::serve_connection;
use super::v0::append_body::AppendBody;
use super::v0::append_many_body::AppendManyBody;
use super::v0::delete::parse_delete;
use super::v0::diff_body::parse_diff;
use super::v0::watch_body::WatchRequest;
use super::v0::{router_config, topic_config};
use super::web_guard::WebGuard;
use super::web_socket::frame::{Decoder, Received, Violation};
use super::write_progress::WriteProgress;
use super::{ApiLimits, ConnectionLimits, Cors, Envelope};
use crate::auth::Keys;
use crate::codec::Reader;
use crate::error::Error;
use crate::filter::Filter;
use crate::limits::{MAX_RECORDS_PER_WRITE, MAX_TOPICS_PER_APPEND, MAX_TOPICS_PER_WATCH};
use crate::record::{EntryRecords, Record, check_foreign};
use crate::state::{Command, Create, Decoded, Envelope as Sealed, RouterConfig, TopicConfig};

/// Whatever is asked, an answer or the end of the connection comes before this.
const PATIENCE: Duration = Duration::from_secs(10);
const LONG_POLL: Duration = Duration::from_millis(20);
const MAX_UNPACKED_BYTES: usize = 256 << 10;

fn at_once<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(future)
}

/// A body, of the endpoint that the first byte says.
pub fn read_body(bytes: &[u8]) {
    let Some((what, body)) = bytes.split_first() else { return };
    match what {
        0 => append(body),
        1 => {
            if let Ok(body) = AppendManyBody::parse(body) {
                let records: usize = body.entries.iter().map(|(_, append)| append.record_count()).sum();
                assert!(records <= MAX_RECORDS_PER_WRITE && body.entries.len() <= MAX_TOPICS_PER_APPEND);
            }
        }
        2 => drop(parse_diff(body).map(|(query, _)| query.filter.map(|filter| check_filter(&filter)))),
        3 => filter(body),
        4 => {
            if let Ok(config) = topic_config::parse_config(body, "t") {
                let mut stored = BytesMut::new();
                config.encode(&mut stored);
                assert_eq!(TopicConfig::decode(&mut Reader::new(&stored, "config")), Ok(config));
            }
        }
        5 => {
            if let Ok((config, _)) = router_config::parse_config(body) {
                let mut stored = BytesMut::new();
                config.encode(&mut stored);
                assert_eq!(RouterConfig::decode(&mut Reader::new(&stored, "config")), Ok(config));
            }
        }
        6 => drop(WatchRequest::parse_post(body).map(|request| check_watch(&request))),
        7 => drop(WatchRequest::parse_subscribe(body).map(|request| check_watch(&request))),
        8 => drop(parse_delete(body)),
        9 => {
            let charge = ByteBudget::new(0).charge(&Keys::default().authenticate(None).expect("no keys"));
            if let Ok((unpacked, charge)) = unpack_now(body, MAX_UNPACKED_BYTES, charge) {
                assert!(unpacked.len() <= MAX_UNPACKED_BYTES && charge.bytes() == unpacked.len());
            }
        }
        10 => {
            let Ok(text) = std::str::from_utf8(body) else { return };
            if let Ok(name) = decode_cursor(text) {
                assert_eq!(decode_cursor(&encode_cursor(&name)), Ok(name));
            }
            let query = Query::new(Some(text));
            let _ = (query.text("prefix"), query.flag("x", true), query.page_size(), query.consistency());
            assert_eq!(EventIds::new(&[]).cursors(text, &[]), []);
        }
        _ => {
            let Ok(text) = std::str::from_utf8(body) else { return };
            let _ = Keys::parse(text);
        }
    }
}

/// What a client may append is stored as it was sent, and may go to other clusters.
fn append(body: &[u8]) {
    let Ok(parsed) = AppendBody::parse(body) else { return };
    assert!(parsed.record_count() <= MAX_RECORDS_PER_WRITE);
    let config = parsed.config("t");
    let create = config.ok().flatten().map_or(Create::Never, Create::With);
    let sealed = parsed.draft("t", create, parsed.idempotency_key(), body.len()).seal(Sealed::default());
    let decoded = Decoded::parse(sealed.clone()).expect("what is sent is read");
    let Ok(Command::Append(append)) = decoded.command() else { panic!("it is no append") };
    assert_eq!(append.idempotency_key, parsed.idempotency_key());
    let stored = EntryRecords::parse(sealed).expect("what is sent is read");
    assert_eq!(stored.count() as usize, parsed.record_count());
    for (record, position) in parsed.records(None).zip(0..) {
        let bytes = stored.record(position).expect("there are as many");
        let found = Record::decode(bytes).expect("what is stored is read");
        let compact = |json: &str| serde_json::from_str::<serde_json::Value>(json).ok();
        assert_eq!(
            (found.tag, found.node, found.key, found.channel),
            (record.tag, record.node, record.key, record.channel)
        );
        assert_eq!(compact(found.data), compact(record.data));
        check_foreign(bytes).unwrap_or_else(|error| panic!("another cluster refuses it: {error:?}"));
    }
}

fn check_watch(request: &WatchRequest) {
    assert!((1..=MAX_TOPICS_PER_WATCH).contains(&request.topics.len()));
    request
        .topics
        .iter()
        .filter_map(|topic| topic.view.filter.as_ref())
        .for_each(|filter| check_filter(filter));
}

fn check_filter(filter: &Filter) {
    let canonical = filter.to_string();
    if let Ok(again) = Filter::parse_canonical(&canonical) {
        assert_eq!(again.to_string(), canonical);
    }
    assert!(filter.memory_bytes() > 0 && filter.walks() > 0);
}

/// A filter, and behind a line break a record that it is asked about.
fn filter(body: &[u8]) {
    let mut parts = body.splitn(2, |byte| *byte == b'\n');
    let json = |part: Option<&'_ [u8]>| -> Option<String> {
        let text = std::str::from_utf8(part?).ok()?;
        Some(serde_json::from_str::<&RawValue>(text).ok()?.get().to_owned())
    };
    let Some(filter) = json(parts.next()).and_then(|json| Filter::parse(&json).ok()) else { return };
    check_filter(&filter);
    let Some(data) = json(parts.next()) else { return };
    let meta = data.starts_with('{').then_some(&*data);
    let record = Record { tag: Some("x"), node: Some("n"), meta, data: &data, ..Record::default() };
    let found = filter.matches(&record);
    if let Ok(again) = Filter::parse_canonical(&filter.to_string()) {
        assert_eq!(again.matches(&record), found, "its canonical form is another filter");
    }
}

/// Bodies that are taken.
pub fn bodies() -> Vec<Vec<u8>> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&b"{\"records\":[]}".repeat(50)).expect("there is memory");
    let packed = packed.finish().expect("there is memory");
    let record = r#"{"data":{"a":[1.50,"\u00e9",null]},"tag":"t","node":"n","key":"k","meta":{"m":1}}"#;
    let append = format!(
        r#"{{"records":[{record},{{"data": 1e5}}],"node":"n","idempotency_key":"i","expect_head_seq":3,"create":true,"config":{{"type":"log","cap_count":9}}}}"#
    );
    let many = format!(r#"{{"topics":{{"a":{append},"b":{{"records":[{record}]}}}},"node":"x"}}"#);
    let tuple = r#"["Or",[["And",["m:*",["data.a.0","Gt",1.50]]],["Not",["meta.m","In",[1,"x",null]]],["data./a~1b/0","Exists",true],["node","NotEq","n"]]]"#;
    let filter = format!("{tuple}\n{{\"a\":[1.500,2],\"m\":1,\"a/b\":[0]}}");
    let diff = format!(
        r#"{{"from_seq":3,"limit":9,"max_batch_bytes":1e9,"node":["a","b"],"filter":{tuple},"epoch":7,"consistency":"eventual","wait_ms":5,"include_origin":true}}"#
    );
    let watch = format!(
        r#"{{"topics":{{"a":5,"b":{{"tail":true,"filter":{tuple}}},"c":{{"from_seq":1,"epoch":2}}}},"filter":"m:*","heartbeat_ms":1000,"node":"x"}}"#
    );
    let subscribe = r#"{"op":"subscribe","request_id":7,"topic":"a","from_seq":9,"epoch":3,"limit":5}"#;
    let topic = r#"{"type":"queue","cap_count":5,"ttl_ms":100000,"priority":-3,"durability":"fsync","dead_letter":"d","max_deliveries":3}"#;
    let router = r#"{"source":"a*","dest":"*","filter":["tag","Glob","x*"],"guarantee":"exactly_once","start":{"from_seq":4},"remote":{"urls":["http://b:4000"],"token":"secret"},"create_dest":false}"#;
    let texts: [(u8, &[u8]); 13] = [
        (0, append.as_bytes()),
        (1, many.as_bytes()),
        (2, diff.as_bytes()),
        (3, filter.as_bytes()),
        (4, topic.as_bytes()),
        (5, router.as_bytes()),
        (6, watch.as_bytes()),
        (7, subscribe.as_bytes()),
        (8, br#"{"before_seq":7,"match":["tag","Glob","m:*"]}"#),
        (9, &packed),
        (10, b"bWV0ZXI6cmF3"),
        (10, b"prefix=a%3Ab+c&page_size=7&consistency=strong"),
        (11, b"secret:r+w:a|b, other:admin, third\n# none"),
    ];
    texts.iter().map(|(what, text)| [&[*what][..], text].concat()).collect()
}

/// The first byte says where what a client sends is cut in two.
pub fn read_frames(bytes: &[u8]) {
    const MAX_MESSAGE_BYTES: usize = 1000;
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let decode = |pieces: &[&[u8]]| -> (Vec<Received>, Option<Violation>) {
        let (mut decoder, mut whole) = (Decoder::new(MAX_MESSAGE_BYTES), VecDeque::new());
        for piece in pieces {
            let fed = decoder.feed(&mut piece.to_vec(), &mut whole);
            assert!(decoder.held_bytes() <= MAX_MESSAGE_BYTES);
            if let Err(violation) = fed {
                return (whole.into(), Some(violation));
            }
        }
        (whole.into(), None)
    };
    let cut = usize::from(*cut).min(bytes.len());
    let (whole, violation) = decode(&[bytes]);
    assert_eq!(decode(&[&bytes[..cut], &bytes[cut..]]), (whole, violation));
}

/// What browsers send.
pub fn frames() -> Vec<Vec<u8>> {
    let frame = |first: u8, payload: &[u8]| {
        let mask = [7, 0, 255, 130];
        let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        let length = match payload.len() {
            0..126 => vec![payload.len() as u8 | 0x80],
            length => [&[126 | 0x80][..], &(length as u16).to_be_bytes()].concat(),
        };
        [&[first][..], &length, &mask].concat().into_iter().chain(masked).collect::<Vec<u8>>()
    };
    let text = br#"{"op":"subscribe","topic":"a"}"#;
    let long = frame(0x81, &[b'x'; 300]);
    let parts = [frame(0x01, text), frame(0x89, b"ping"), frame(0x80, text)].concat();
    let ends = [frame(0x82, &[0xff; 9]), frame(0x8a, b""), frame(0x88, b"\x03\xe8bye")].concat();
    [long, parts, ends].map(|bytes| [&[9][..], &bytes].concat()).into()
}

/// How a handler of this edge answers: with all that it was given.
fn told(what: String) -> Response {
    let mut response = Response::new(what.into());
    // It would say what time it is.
    response.headers_mut().insert("date", axum::http::HeaderValue::from_static("now"));
    response
}

fn edge() -> Envelope {
    let keys = Arc::new(Keys::default());
    let metrics = EdgeMetrics::new(&keys);
    let echo = async |TopicCall { call, topic }: TopicCall<Writes>| {
        let body = call.json()?;
        Ok::<_, Error>(told(format!("{topic} {}", String::from_utf8_lossy(body))))
    };
    let delete = async |TopicCall { topic, .. }: TopicCall<Delete>| told(topic);
    let name = async |RouterCall { call, router }: RouterCall<super::call::Read>| {
        let prefix = call.query().text("prefix")?.unwrap_or_default().into_owned();
        Ok::<_, Error>(told(format!("{router} {prefix}")))
    };
    let wait = async |call: Call<super::call::Read>| {
        // Behind it there may be more that was sent ahead, and then nobody sees the end: as the contract has it, a
        // long poll has a time.
        let _ = timeout(LONG_POLL, call.peer_ended()).await;
        told("ended".to_owned())
    };
    let routes = Routes::new(&metrics.requests)
        .route("/v0/topics/{topic}", |at| at.post(echo).delete(delete))
        .route("/v0/routers/{router}", |at| at.get(name))
        .route("/v0/wait", |at| at.get(wait));
    let limits = ApiLimits { max_body_bytes: 4 << 10, ..ApiLimits::default() };
    let budget = ByteBudget::new(limits.max_inflight_bytes);
    let router = routes.finish().with_state(Gate { keys, limits, budget });
    let origins = vec!["https://a.b".to_owned()];
    let cors = Cors::new(origins, Arc::new(|_| false));
    Envelope::new(router, cors, WebGuard::off(), metrics)
}

/// A connection on which the pieces come one after the other, and then nothing. Gives what was answered.
async fn answered(pieces: &[&[u8]]) -> Vec<u8> {
    let envelope = Arc::new(edge());
    let limits = ConnectionLimits {
        max_connections: 1,
        head_timeout: PATIENCE,
        slow_after: PATIENCE,
        linger_bytes: 1 << 20,
    };
    let connections = Connections::new(1, envelope.metrics().connections.clone());
    let connection = Connection::new(Arc::new(WriteProgress::new(PATIENCE, None)));
    let place = connections.enter(&connection).await.expect("there is one");
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let serving = serve_connection(near, envelope, limits, connection, place);
    let mut received = Vec::new();
    let talking = async {
        for piece in pieces {
            // It may have been closed.
            let _ = far.write_all(piece).await;
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
        let _ = far.shutdown().await;
        let _ = far.read_to_end(&mut received).await;
    };
    let both = async { tokio::join!(serving, talking) };
    timeout(PATIENCE, both).await.expect("a connection at whose other end nobody is left ends");
    received
}

/// How all requests were answered. What is no request is refused at its end only if that comes: the last refusal does
/// not count.
fn served(received: &[u8]) -> Vec<String> {
    let mut statuses = statuses(received);
    statuses.pop_if(|last| ["400", "414", "431"].contains(&last.as_str()));
    statuses
}

/// The status lines in what was received.
fn statuses(received: &[u8]) -> Vec<String> {
    let lines = received.windows(12).filter(|line| line.starts_with(b"HTTP/1."));
    lines.map(|line| String::from_utf8_lossy(&line[9..12]).into_owned()).collect()
}

/// A connection of a client. The first two bytes say where what it sends is cut in two: that changes no answer.
pub fn serve_requests(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first_chunk::<2>() else { return };
    let cut = usize::from(u16::from_le_bytes(*cut)).min(bytes.len());
    at_once(async {
        let whole = answered(&[bytes]).await;
        assert!(whole.is_empty() || whole.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(&whole));
        let pieces = answered(&[&bytes[..cut], &bytes[cut..]]).await;
        let shown = String::from_utf8_lossy(bytes);
        assert_eq!(served(&whole), served(&pieces), "cut at {cut}: {shown:?}");
    });
}

/// Connections with requests.
pub fn requests() -> Vec<Vec<u8>> {
    let json = "Host: x\r\nContent-Type: application/json\r\n";
    let post = |body: &str| {
        let length = body.len();
        format!("POST /v0/topics/a HTTP/1.1\r\n{json}Content-Length: {length}\r\n\r\n{body}")
    };
    let get = "GET /v0/routers/a->b?prefix=c%3E HTTP/1.1\r\nHost: x\r\nOrigin: https://a.b\r\n\r\n";
    let smuggled = format!("PUT /v0/routers/{} DELETE /v0/topics/secret HTTP/1.1\r\nx: ", ">".repeat(40));
    let chunked = format!(
        "POST /v0/topics/a HTTP/1.1\r\n{json}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
    );
    let last = "DELETE /v0/topics/a HTTP/1.0\r\nConnection: close\r\n\r\n";
    let asks = "POST /v0/topics/a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}";
    let wait = "GET /v0/wait HTTP/1.1\r\nHost: x\r\n\r\n";
    let upgrade = "GET /v0/wait HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    [
        post("{\"a\":1}") + get,
        post(&smuggled) + last,
        chunked.clone() + &chunked,
        asks.to_owned() + last,
        get.to_owned() + wait,
        post(&"1".repeat(5000)) + upgrade,
    ]
    .iter()
    .map(|text| [&[30, 0][..], text.as_bytes()].concat())
    .collect()
}
