//! The edge as bytes on a connection: what no well-behaved client sends, and what browsers ask.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::byte_budget::ByteBudget;
use super::call::{Call, Gate, Read, RouterCall, TopicCall, Write};
use super::edge_metrics::EdgeMetrics;
use super::reply::{Answer, Reply};
use super::routes::Routes;
use super::web_guard::WebGuard;
use super::{ApiLimits, ConnectionLimits, Cors, Envelope, gzip, serve};
use crate::auth::Keys;
use crate::telemetry::metrics::Exposition;

/// Longest wait for what has no bound of its own.
pub const PATIENCE: Duration = Duration::from_secs(20);

async fn echo(TopicCall { call, topic }: TopicCall<Write>) -> Answer {
    let mut reply = Reply::new(call.arrived, 64);
    reply.json.field("topic", topic.as_str());
    reply.json.field("bytes", call.json()?.len() as u64);
    reply.json.field("padding", "x".repeat(600).as_str());
    Ok(reply.finish(StatusCode::OK))
}

async fn panics(_call: Call<Read>) -> Answer {
    panic!("as it was told to");
}

/// The name in a path.
async fn name_of(RouterCall { call, router }: RouterCall<Read>) -> Answer {
    let mut reply = Reply::new(call.arrived, 64);
    reply.json.field("router", router.as_str());
    reply.json.field("prefix", call.query().text("prefix")?.as_deref());
    Ok(reply.finish(StatusCode::OK))
}

/// Waits until the client has ended its sending side.
async fn wait(call: Call<Read>) -> Answer {
    call.peer_ended().await;
    Ok(Reply::new(call.arrived, 64).finish(StatusCode::OK))
}

/// A word, and then nothing for ever.
async fn stream() -> Response {
    let chunks = futures_util::stream::iter([Ok::<_, std::convert::Infallible>("word")]);
    Response::new(Body::from_stream(chunks.chain(futures_util::stream::pending())))
}

/// What an edge is started with.
pub struct Given {
    pub limits: ApiLimits,
    pub connections: ConnectionLimits,
    pub origins: Vec<String>,
    pub guard: WebGuard,
}

impl Default for Given {
    fn default() -> Self {
        let connections = ConnectionLimits {
            max_connections: 100,
            head_timeout: PATIENCE,
            slow_after: PATIENCE,
            linger_bytes: 64 << 20,
        };
        Given { limits: ApiLimits::default(), connections, origins: Vec::new(), guard: WebGuard::off() }
    }
}

/// More than the sockets of a connection take by themselves.
async fn large(call: Call<Read>) -> Answer {
    call.answer_counted(Response::new(Body::from(vec![b'x'; 20 << 20])))
}

/// A member's edge without a member.
pub struct Edge {
    address: std::net::SocketAddr,
    pub metrics: Arc<EdgeMetrics>,
    stop: Arc<Notify>,
    serving: tokio::task::JoinHandle<()>,
}

impl Edge {
    pub async fn start(given: Given) -> Edge {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let keys = Arc::new(Keys::default());
        let metrics = EdgeMetrics::new(&keys);
        let routes = Routes::new(&metrics.requests)
            .route("/v0/topics/{topic}", |at| at.post(echo))
            .route("/v0/routers/{router}", |at| at.get(name_of))
            .route("/v0/wait", |at| at.get(wait))
            .route("/v0/large", |at| at.get(large))
            .route("/v0/stream", |at| at.get(stream))
            .route("/v0/panics", |at| at.get(panics));
        let budget = ByteBudget::new(given.limits.max_inflight_bytes);
        let gate = Gate { keys, limits: given.limits, budget };
        let router = routes.finish().with_state(gate);
        let cors = Cors::new(given.origins, Arc::new(|url| url == "http://member:4000"));
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let stopping = async move { stopped.notified().await };
        let envelope = Envelope::new(router, cors, given.guard, metrics.clone());
        let serving = tokio::spawn(serve(listener, envelope, given.connections, stopping));
        Edge { address, metrics, stop, serving }
    }

    async fn with_origins(origins: &[&str]) -> Edge {
        let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        Edge::start(Given { origins, ..Given::default() }).await
    }

    pub async fn with_body_limit(max_body_bytes: usize) -> Edge {
        let limits = ApiLimits { max_body_bytes, ..ApiLimits::default() };
        Edge::start(Given { limits, ..Given::default() }).await
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Everything that comes back for these bytes until the server closes.
    pub async fn talk(&self, sent: &[u8]) -> Vec<u8> {
        let mut client = self.connect().await;
        client.write_all(sent).await.unwrap();
        everything_from(client).await
    }
}

pub async fn everything_from(mut client: TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut received)).await.expect("the server closes").unwrap();
    received
}

/// Status, head and body of the last answer in `received`, which must have an error's shape if it is one.
pub fn parsed(received: &[u8]) -> (u16, String, Value) {
    let split = received.windows(4).rposition(|four| four == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8_lossy(&received[..split]).to_lowercase();
    let head = head[head.rfind("http/1.").expect("a status line")..].to_owned();
    let status: u16 = head[9..12].parse().unwrap();
    let body: Value = serde_json::from_slice(&received[split..]).unwrap_or(Value::Null);
    if status >= 300 {
        assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{head}");
        assert!(body["error"]["code"].is_string() && body["error"]["message"].is_string(), "{head}{body}");
    }
    (status, head, body)
}

pub const CLOSE: &str = "Host: x\r\nConnection: close\r\n";

#[tokio::test]
async fn what_is_no_http_has_the_body_of_an_error_too() {
    // C-ERR-01
    let edge = Edge::with_body_limit(100).await;
    let long_header = format!("GET /v0/topics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let many_headers = format!("GET /v0/topics HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200));
    let long_path = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000));
    let with_head = |head: &str| format!("POST /v0/topics/a HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n");
    for (sent, status) in [
        ("no http at all\r\n\r\n".to_owned(), 400),
        ("GET  /v0/topics HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /v0/topics HTTP/9.9\r\n\r\n".to_owned(), 400),
        ("G\u{e9}T / HTTP/1.1\r\n\r\n".to_owned(), 400),
        (with_head("no colon"), 400),
        (with_head("Content-Length: -1"), 400),
        (with_head("Content-Length: 1\r\nContent-Length: 2"), 400),
        (with_head("Transfer-Encoding: gzip"), 400),
        (long_header, 431),
        (many_headers, 431),
        (long_path, 414),
    ] {
        let received = edge.talk(sent.as_bytes()).await;
        let (found, head, body) = parsed(&received);
        let shown = &sent[..sent.len().min(60)];
        assert!(found == status || (status == 414 && found == 431), "{shown:?}: {head}");
        assert_eq!(body["error"]["code"], "invalid_request", "{shown:?}");
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    }
    // What comes after a good request is refused in the same way, and the good one is answered.
    let two = format!("POST /v0/topics/a HTTP/1.1\r\nHost: x\r\n\r\n{}", "nonsense\r\n\r\n");
    let received = edge.talk(two.as_bytes()).await;
    assert!(received.starts_with(b"HTTP/1.1 200 OK"));
    assert_eq!(parsed(&received).0, 400);
}

#[tokio::test]
async fn odd_but_legal_requests_have_an_answer() {
    // C-ERR-01, C-CONV-15
    let edge = Edge::with_body_limit(100).await;
    for (line, status) in [
        ("OPTIONS * HTTP/1.1", 404),
        ("CONNECT x:80 HTTP/1.1", 404),
        ("GET http://x/v0/panics HTTP/1.1", 500),
        ("BREW /v0/panics HTTP/1.1", 405),
        ("GET /v0/topics?%zz HTTP/1.1", 404),
        ("POST /v0/topics/%F0%28%8C HTTP/1.1", 400),
        ("OPTIONS /v0/panics HTTP/1.1", 405),
        ("HEAD /v0/nothing HTTP/1.1", 404),
    ] {
        let received = edge.talk(format!("{line}\r\n{CLOSE}\r\n").as_bytes()).await;
        if line.starts_with("HEAD") {
            assert!(received.starts_with(b"HTTP/1.1 404 ") && received.ends_with(b"\r\n\r\n"), "{line}");
        } else {
            assert_eq!(parsed(&received).0, status, "{line}");
        }
    }
    let broken_chunk = format!(
        "POST /v0/topics/a HTTP/1.1\r\n{CLOSE}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    );
    let (status, _, body) = parsed(&edge.talk(broken_chunk.as_bytes()).await);
    assert_eq!((status, &body["error"]["code"]), (400, &"invalid_request".into()));
}

#[tokio::test]
async fn a_panic_is_an_error_like_any_other_and_the_connection_goes_on() {
    let edge = Edge::with_body_limit(100).await;
    let sent = format!("GET /v0/panics HTTP/1.1\r\nHost: x\r\n\r\nPOST /v0/topics/a HTTP/1.1\r\n{CLOSE}\r\n");
    let received = edge.talk(sent.as_bytes()).await;
    assert!(received.starts_with(b"HTTP/1.1 500 "), "{}", String::from_utf8_lossy(&received));
    let text = String::from_utf8_lossy(&received);
    assert!(text.contains("\"code\":\"internal\"") && !text.contains("as it was told"), "{text}");
    assert_eq!(parsed(&received).0, 200, "the next request on the connection is served");
}

#[tokio::test]
async fn a_client_that_sends_too_much_can_read_why() {
    // C-CONV-11
    let edge = Edge::with_body_limit(1 << 20).await;
    let body = vec![b'1'; (1 << 20) + 1];
    let head = format!("POST /v0/topics/a HTTP/1.1\r\n{CLOSE}Content-Length: {}\r\n\r\n", body.len());
    let (status, _, body) = parsed(&edge.talk(&[head.as_bytes(), &body].concat()).await);
    assert_eq!((status, &body["error"]["code"]), (413, &"payload_too_large".into()));
}

#[tokio::test]
async fn whatever_is_answered_is_counted_and_nothing_that_a_client_makes_up_is_shown() {
    let edge = Edge::with_origins(&["https://a.b"]).await;
    let hosts = WebGuard::new(vec!["x".to_owned()]);
    let guarded = Edge::start(Given { guard: hosts, ..Given::default() }).await;
    let asked = |line: &str, more: &str| format!("{line} HTTP/1.1\r\n{CLOSE}{more}\r\n");
    let preflight = "Origin: https://a.b\r\nAccess-Control-Request-Method: POST\r\n";
    for sent in [
        asked("POST /v0/topics/made-up", ""),
        asked("POST /v0/topics/made%20up", ""),
        asked("GET /v0/panics", ""),
        asked("GET /made/up", ""),
        asked("DELETE /v0/topics/made-up", ""),
        asked("OPTIONS /v0/topics/made-up", preflight),
        "made up\r\n\r\n".to_owned(),
    ] {
        edge.talk(sent.as_bytes()).await;
    }
    guarded.talk(b"GET /v0/large HTTP/1.1\r\nHost: made.up\r\nConnection: close\r\n\r\n").await;
    let requests = |edge: &Edge| {
        let mut out = Exposition::default();
        edge.metrics.put(&mut out);
        let text = out.finish().unwrap();
        assert!(!text.contains("made"), "{text}");
        let lines = text.lines().filter_map(|line| line.strip_prefix("antiphon_http_requests_total"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        requests(&edge),
        [
            r#"{method="POST",route="/v0/topics/:topic",status="2xx"} 1"#,
            r#"{method="POST",route="/v0/topics/:topic",status="4xx"} 1"#,
            r#"{method="GET",route="/v0/panics",status="5xx"} 1"#,
            // The preflight; no such path, a method that is not taken there, and no HTTP.
            r#"{method="other",route="other",status="2xx"} 1"#,
            r#"{method="other",route="other",status="4xx"} 3"#,
        ]
    );
    assert_eq!(requests(&guarded), [r#"{method="other",route="other",status="4xx"} 1"#]);
}

#[tokio::test]
async fn gzip_is_taken_and_given() {
    // C-CONV-10, C-CONV-11
    let edge = Edge::with_body_limit(1000).await;
    let send = async |packed: &[u8], more: &str| {
        let head = format!(
            "POST /v0/topics/a HTTP/1.1\r\n{CLOSE}Content-Type: application/json\r\n{more}Content-Length: {}\r\n\r\n",
            packed.len()
        );
        edge.talk(&[head.as_bytes(), packed].concat()).await
    };
    let packed = gzip::pack(vec![b'1'; 1000].into()).await.unwrap();
    let bomb = gzip::pack(vec![b'1'; 100_000].into()).await.unwrap();
    assert!(bomb.len() < 1000, "the limit is reached only when it is unpacked");
    let gzip_body = "Content-Encoding: gzip\r\n";
    let (status, head, body) = parsed(&send(&packed, gzip_body).await);
    assert_eq!((status, &body["bytes"]), (200, &1000.into()));
    assert!(!head.contains("content-encoding"), "nothing is packed unless asked for: {head}");
    assert_eq!(parsed(&send(&bomb, gzip_body).await).0, 413);
    assert_eq!(parsed(&send(b"{}", gzip_body).await).0, 400);
    assert_eq!(parsed(&send(&packed[..packed.len() - 3], gzip_body).await).0, 400);
    assert_eq!(parsed(&send(b"{}", "Content-Encoding: br\r\n").await).0, 415);
    assert_eq!(parsed(&send(b"{}", "Content-Encoding: identity\r\n").await).0, 200);
    assert_eq!(parsed(&send(b"", gzip_body).await).0, 200, "nothing is nothing, packed or not");

    let received = send(&packed, "Content-Encoding: gzip\r\nAccept-Encoding: gzip\r\n").await;
    let split = received.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&received[..split]).to_lowercase();
    assert!(
        head.contains("\r\ncontent-encoding: gzip\r\n") && head.contains("vary: accept-encoding"),
        "{head}"
    );
    assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", received.len() - split)), "{head}");
    let plain = gzip::unpack_freely(received[split..].to_vec().into(), 10_000).await.unwrap();
    let body: Value = serde_json::from_slice(&plain).unwrap();
    assert_eq!(body["bytes"], 1000);
}

#[tokio::test]
async fn a_body_that_trickles_in_is_not_waited_for() {
    let body_grace = Duration::from_millis(200);
    let edge =
        Edge::start(Given { limits: ApiLimits { body_grace, ..ApiLimits::default() }, ..Given::default() })
            .await;
    let client = edge.connect().await;
    let (mut reader, mut writer) = client.into_split();
    let head = format!(
        "POST /v0/topics/a HTTP/1.1\r\n{CLOSE}Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    );
    writer.write_all(head.as_bytes()).await.unwrap();
    // A byte now and then keeps no connection; the pauses are the attack itself.
    let trickle = tokio::spawn(async move {
        while writer.write_all(b"1").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut received = Vec::new();
    timeout(PATIENCE, reader.read_to_end(&mut received)).await.expect("the server closes").ok();
    let (status, _, body) = parsed(&received);
    assert_eq!((status, &body["error"]["code"]), (400, &"invalid_request".into()));
    trickle.abort();

    // One that comes slowly but steadily may take longer than the grace.
    let mut client = edge.connect().await;
    let pieces = 10;
    let head = head.replace("100000", &(pieces * 4096).to_string());
    client.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..pieces {
        client.write_all(&[b'1'; 4096]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(parsed(&everything_from(client).await).0, 200);
}

#[tokio::test]
async fn a_head_that_trickles_in_is_not_waited_for() {
    let mut given = Given::default();
    given.connections.head_timeout = Duration::from_millis(200);
    let edge = Edge::start(given).await;
    let mut idle = edge.connect().await;
    idle.write_all(b"POST /v0/topics/a HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    assert_eq!(everything_from(idle).await, b"", "it is closed without an answer");
}

#[tokio::test]
async fn pages_of_allowed_origins_may_call_and_others_may_not() {
    // C-CONV-18
    let edge = Edge::with_origins(&["https://a.b", "http://localhost:3000"]).await;
    let preflight = async |edge: &Edge, origin: &str| {
        let sent = format!(
            "OPTIONS /v0/topics/a HTTP/1.1\r\n{CLOSE}Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization, traceparent\r\n\r\n"
        );
        parsed(&edge.talk(sent.as_bytes()).await)
    };
    let (status, head, _) = preflight(&edge, "https://a.b").await;
    assert_eq!(status, 204);
    assert!(head.contains("\r\naccess-control-allow-origin: https://a.b\r\n"), "{head}");
    for part in [
        "allow-methods: get, head, post, put, delete",
        "allow-headers: authorization, traceparent\r\n",
        "vary: origin",
    ] {
        assert!(head.contains(part), "{part}: {head}");
    }
    for stranger in ["https://a.b.c", "http://a.b", "null", "https://A.B/"] {
        let (status, head, _) = preflight(&edge, stranger).await;
        assert!(status == 405 && !head.contains("access-control"), "{stranger}: {head}");
        assert!(head.contains("\r\nvary: origin\r\n"), "{head}");
    }
    let call = async |edge: &Edge, origin: &str| {
        let sent = format!("GET /v0/nothing HTTP/1.1\r\n{CLOSE}Origin: {origin}\r\n\r\n");
        parsed(&edge.talk(sent.as_bytes()).await)
    };
    let (status, head, _) = call(&edge, "http://localhost:3000").await;
    assert!(status == 404 && head.contains("access-control-allow-origin: http://localhost:3000"), "{head}");
    let (_, head, _) = call(&edge, "http://localhost").await;
    assert!(!head.contains("access-control") && head.contains("\r\nvary: origin\r\n"), "{head}");
    // Of this cluster.
    let (_, head, _) = call(&edge, "http://member:4000").await;
    assert!(head.contains("access-control-allow-origin: http://member:4000"), "{head}");
    let any = Edge::with_origins(&["*"]).await;
    assert!(call(&any, "null").await.1.contains("access-control-allow-origin: *\r\n"));
    let none = Edge::with_origins(&[]).await;
    assert_eq!(preflight(&none, "https://a.b").await.0, 405);
}

#[tokio::test]
async fn a_stopping_edge_finishes_what_is_under_way_and_ends() {
    // C-OPS-05
    let edge = Edge::with_body_limit(100).await;
    let idle = edge.connect().await;
    let mut busy = edge.connect().await;
    let head = "POST /v0/topics/a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n";
    busy.write_all(head.as_bytes()).await.unwrap();
    // A whole exchange on another connection: by then the server has read the head above.
    edge.talk(format!("GET /v0/nothing HTTP/1.1\r\n{CLOSE}\r\n").as_bytes()).await;
    edge.stop.notify_one();
    assert_eq!(everything_from(idle).await, b"");
    busy.write_all(b"{}").await.unwrap();
    assert_eq!(parsed(&everything_from(busy).await).0, 200);
    timeout(PATIENCE, edge.serving).await.expect("the edge ends").unwrap();
}
