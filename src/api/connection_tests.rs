//! One connection and many: where a request begins and ends, who ends the connection and how, and who gets one.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::ApiLimits;
use super::web_guard::WebGuard;
use super::wire_tests::{CLOSE, Edge, Given, PATIENCE, everything_from, parsed};

const JSON: &str = "Host: x\r\nContent-Type: application/json\r\n";

/// Reads until `end` has come.
async fn read_until(client: &mut TcpStream, end: &str) -> String {
    let mut received = Vec::new();
    while !String::from_utf8_lossy(&received).ends_with(end) {
        let byte = timeout(PATIENCE, client.read_u8()).await.expect("comes in time");
        received
            .push(byte.unwrap_or_else(|_| panic!("{end:?} after {}", String::from_utf8_lossy(&received))));
    }
    String::from_utf8_lossy(&received).into_owned()
}

/// The status lines in what was received.
fn statuses(received: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(received).into_owned();
    text.match_indices("HTTP/1.1 ").map(|(at, _)| text[at + 9..at + 12].to_owned()).collect()
}

/// A body that would have more bytes if its `>` were escaped: enough for a request behind it.
fn smuggling_body() -> String {
    let hidden = " DELETE /v0/topics/secret HTTP/1.1\r\nx-swallow: ";
    format!("PUT /v0/routers/{}{hidden}", ">".repeat(hidden.len()))
}

#[tokio::test]
async fn no_byte_of_a_body_becomes_a_request() {
    // C-CONV-21
    let edge = Edge::with_body_limit(10_000).await;
    let body = smuggling_body();
    let head = format!("POST /v0/topics/a HTTP/1.1\r\n{JSON}Content-Length: {}\r\n", body.len());
    let last = format!("GET /v0/nothing HTTP/1.1\r\n{CLOSE}\r\n");
    let is_whole = format!("\"bytes\":{},", body.len());

    // Something is written between the head and its body: 100 Continue.
    let mut client = edge.connect().await;
    client.write_all(format!("{head}Expect: 100-continue\r\n\r\n").as_bytes()).await.unwrap();
    assert!(read_until(&mut client, "\r\n\r\n").await.contains("100 Continue"));
    client.write_all(format!("{body}{last}").as_bytes()).await.unwrap();
    let received = everything_from(client).await;
    assert_eq!(statuses(&received), ["200", "404"], "{}", String::from_utf8_lossy(&received));
    assert!(String::from_utf8_lossy(&received).contains(&is_whole));

    // Or the answer to the request before.
    let mut client = edge.connect().await;
    let before = "GET /v0/nothing HTTP/1.1\r\nHost: x\r\n\r\n";
    client.write_all(format!("{before}{head}\r\n").as_bytes()).await.unwrap();
    read_until(&mut client, "}}").await;
    client.write_all(format!("{body}{last}").as_bytes()).await.unwrap();
    let received = everything_from(client).await;
    assert_eq!(statuses(&received), ["200", "404"], "{}", String::from_utf8_lossy(&received));
    assert!(String::from_utf8_lossy(&received).contains(&is_whole));

    // A body right at the beginning of a connection, after a head that has come alone.
    let mut client = edge.connect().await;
    client.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    edge.talk(last.as_bytes()).await;
    client.write_all(format!("{body}{last}").as_bytes()).await.unwrap();
    assert_eq!(statuses(&everything_from(client).await), ["200", "404"]);
}

#[tokio::test]
async fn an_arrow_is_understood_in_the_first_line_only() {
    // C-CONV-21
    let edge = Edge::with_body_limit(100).await;
    let get = |target: &str| format!("GET /v0/routers/{target} HTTP/1.1\r\n{CLOSE}\r\n");
    let name = async |sent: &[u8]| parsed(&edge.talk(sent).await).2["router"].clone();
    assert_eq!(name(get("a->b->c").as_bytes()).await, "a->b->c");
    assert_eq!(name(get("a-%3Eb").as_bytes()).await, "a->b");
    assert_eq!(parsed(&edge.talk(get("a?prefix=b->").as_bytes()).await).2["prefix"], "b->");
    let head = get("a->b").replacen("GET", "HEAD", 1);
    assert!(edge.talk(head.as_bytes()).await.starts_with(b"HTTP/1.1 200 "));

    // In pieces, each of which the server has read before the next one comes.
    let mut client = edge.connect().await;
    for piece in get("a->b").as_bytes().chunks(7) {
        client.write_all(piece).await.unwrap();
        edge.talk(get("x").as_bytes()).await;
    }
    assert_eq!(parsed(&everything_from(client).await).2["router"], "a->b");

    let two = get("a-%3Eb").replace("Connection: close\r\n", "") + &get("a->b");
    let received = edge.talk(two.as_bytes()).await;
    assert_eq!(statuses(&received), ["200", "400"]);
    let message = parsed(&received).2["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("%3E"), "{message}");
}

#[tokio::test]
async fn a_client_that_ends_its_side_gets_its_answers() {
    // C-CONV-20
    let edge = Edge::with_body_limit(1 << 20).await;
    let answers = async |sent: String| {
        let mut client = edge.connect().await;
        client.write_all(sent.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        everything_from(client).await
    };
    let post = |body: &str| {
        format!("POST /v0/topics/a HTTP/1.1\r\n{JSON}Content-Length: {}\r\n\r\n{body}", body.len())
    };
    let received = answers(post("{}")).await;
    assert_eq!(parsed(&received).0, 200);
    let received = answers(post("{}") + &post(&"1".repeat(100_000)) + &post("")).await;
    assert_eq!(statuses(&received), ["200", "200", "200"]);
    let chunked = format!(
        "POST /v0/topics/a HTTP/1.1\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
    );
    assert_eq!(parsed(&answers(chunked).await).0, 200);

    // A long poll has nothing to wait for any more.
    let (status, head, _) = parsed(&answers("GET /v0/wait HTTP/1.1\r\nHost: x\r\n\r\n".into()).await);
    assert_eq!(status, 200);
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");

    // A body that is not whole is none.
    for cut in [
        post("{}").replace("h: 2", "h: 3"),
        post("{}").replace("Content-Length: 2", "Transfer-Encoding: chunked"),
    ] {
        let (status, _, body) = parsed(&answers(cut).await);
        assert_eq!((status, &body["error"]["code"]), (400, &"invalid_request".into()));
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_client() {
    // C-CONV-20
    let edge = Edge::with_body_limit(100).await;
    let mut client = edge.connect().await;
    client.write_all(b"GET /v0/stream HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    read_until(&mut client, "word\r\n").await;
    client.shutdown().await.unwrap();
    assert_eq!(everything_from(client).await, b"0\r\n\r\n");
}

#[tokio::test]
async fn a_body_that_nobody_reads_does_not_break_the_connection() {
    // C-CONV-20
    let edge = Edge::with_body_limit(100).await;
    for (method, path, status) in [
        ("POST", "/v0/nothing", 404),
        ("PUT", "/v0/topics/a", 405),
        ("POST", "/v0/topics/-", 400),
        ("GET", "/v0/panics", 413),
    ] {
        for bytes in [3 << 20, 30 << 20] {
            let head = format!("{method} {path} HTTP/1.1\r\n{JSON}Content-Length: {bytes}\r\n\r\n");
            let mut client = edge.connect().await;
            client.write_all(head.as_bytes()).await.unwrap();
            client.write_all(&vec![b' '; bytes]).await.expect("all of it is taken");
            let (found, head, _) = parsed(&everything_from(client).await);
            assert!(found == status || found == 413, "{method} {path} {bytes}: {head}");
            assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        }
    }
    // Also if it asks first; then it sends nothing.
    let head =
        format!("POST /v0/nothing HTTP/1.1\r\n{JSON}Content-Length: 10\r\nExpect: 100-continue\r\n\r\n");
    let mut client = edge.connect().await;
    client.write_all(head.as_bytes()).await.unwrap();
    let answer = read_until(&mut client, "}}").await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("connection: close"), "{answer}");
    client.shutdown().await.unwrap();
    assert_eq!(everything_from(client).await, b"");
}

#[tokio::test]
async fn a_small_body_that_nobody_reads_costs_no_connection() {
    let edge = Edge::with_body_limit(1 << 20).await;
    let body = " ".repeat(5000);
    let refused = format!("POST /v0/nothing HTTP/1.1\r\n{JSON}Content-Length: 5000\r\n\r\n{body}");
    let last = format!("GET /v0/panics HTTP/1.1\r\n{CLOSE}\r\n");
    let received = edge.talk(format!("{refused}{refused}{last}").as_bytes()).await;
    assert_eq!(statuses(&received), ["404", "404", "500"]);
}

#[tokio::test]
async fn a_request_says_once_where_it_goes() {
    // C-CONV-20
    let edge = Edge::with_body_limit(100).await;
    for (hosts, status) in
        [("", 400), ("Host: x\r\nHost: x\r\n", 400), ("Host: x\r\nhost: y\r\n", 400), ("Host: x\r\n", 404)]
    {
        let sent = format!("GET /v0/nothing HTTP/1.1\r\nConnection: close\r\n{hosts}\r\n");
        assert_eq!(parsed(&edge.talk(sent.as_bytes()).await).0, status, "{hosts:?}");
    }
    let received = edge.talk(b"GET /v0/nothing HTTP/1.0\r\n\r\n").await;
    assert!(received.starts_with(b"HTTP/1.0 404 "));
}

#[tokio::test]
async fn a_page_of_another_origin_changes_nothing() {
    // C-CONV-19
    let guard = WebGuard::new(vec!["localhost".into()]);
    let edge = Edge::start(Given { guard, origins: vec!["https://a.b".into()], ..Given::default() }).await;
    let call = async |method: &str, path: &str, host: &str, origin: &str| {
        let sent = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\nConnection: close\r\n\r\n"
        );
        parsed(&edge.talk(sent.as_bytes()).await)
    };
    for (origin, status) in [
        ("https://evil.example", 403),
        ("null", 403),
        ("http://localhost:4000", 200),
        ("https://a.b", 200),
        ("http://member:4000", 200),
    ] {
        let (found, _, body) = call("POST", "/v0/topics/a", "localhost:4000", origin).await;
        assert_eq!(found, status, "{origin}: {body}");
        assert_eq!(
            call("GET", "/v0/routers/a", "localhost:4000", origin).await.0,
            200,
            "reading is not changing"
        );
    }
    // A name that means this machine's address, as far as the page's owner is concerned.
    let (status, _, body) = call("POST", "/v0/topics/a", "evil.example", "http://evil.example").await;
    assert_eq!((status, &body["error"]["code"]), (403, &"forbidden".into()));
    assert!(body["error"]["message"].as_str().unwrap_or_default().contains("allowed_hosts"), "{body}");
}

#[tokio::test]
async fn idle_connections_make_room_for_new_ones() {
    // C-LIMIT-16
    let mut given = Given::default();
    given.connections.max_connections = 3;
    let edge = Edge::start(given).await;
    // One of them is busy.
    let mut stream = edge.connect().await;
    stream.write_all(b"GET /v0/stream HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    read_until(&mut stream, "word\r\n").await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(edge.connect().await);
    }
    for _ in 0..5 {
        let answer = edge.talk(format!("GET /v0/nothing HTTP/1.1\r\n{CLOSE}\r\n").as_bytes()).await;
        assert_eq!(parsed(&answer).0, 404);
    }
    // Who was closed finds that out, and the one that is not idle goes on.
    let first = idle.remove(0);
    assert_eq!(everything_from(first).await, b"");
    assert!(timeout(Duration::from_millis(100), stream.read_u8()).await.is_err(), "the stream is still open");

    // All are busy: a new one is refused at once.
    drop(idle);
    let mut streams = vec![stream];
    for _ in 0..2 {
        let mut stream = edge.connect().await;
        stream.write_all(b"GET /v0/stream HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        read_until(&mut stream, "word\r\n").await;
        streams.push(stream);
    }
    assert_eq!(everything_from(edge.connect().await).await, b"");
    drop(streams.pop());
    // Its place is free as soon as the server has seen it go.
    let mut answer = Vec::new();
    for _ in 0..100 {
        let mut client = edge.connect().await;
        let _ = client.write_all(format!("GET /v0/nothing HTTP/1.1\r\n{CLOSE}\r\n").as_bytes()).await;
        answer.clear();
        if client.read_to_end(&mut answer).await.is_ok() && !answer.is_empty() {
            break;
        }
    }
    assert_eq!(parsed(&answer).0, 404);
}

#[tokio::test]
async fn what_a_body_holds_is_given_back_when_its_client_goes() {
    // C-LIMIT-12, C-LIMIT-16
    let limits = ApiLimits { max_inflight_bytes: 1000, ..ApiLimits::default() };
    let edge = Edge::start(Given { limits, ..Given::default() }).await;
    let head = format!("POST /v0/topics/a HTTP/1.1\r\n{CLOSE}Content-Type: application/json\r\n");
    let mut client = edge.connect().await;
    let part = "1".repeat(900);
    client.write_all(format!("{head}Content-Length: 1000\r\n\r\n{part}").as_bytes()).await.unwrap();
    let whole = format!("{head}Content-Length: 900\r\n\r\n{part}");
    let status = async || parsed(&edge.talk(whole.as_bytes()).await).0;
    while status().await != 429 {}
    drop(client);
    while status().await != 200 {}
}

#[tokio::test]
async fn what_an_answer_holds_is_given_back_when_it_is_written_or_its_client_goes() {
    // C-LIMIT-16
    let limits = ApiLimits { max_inflight_bytes: 30 << 20, ..ApiLimits::default() };
    let edge = Edge::start(Given { limits, ..Given::default() }).await;
    let asked = format!("GET /v0/large HTTP/1.1\r\n{CLOSE}\r\n");
    let status = async || parsed(&edge.talk(asked.as_bytes()).await).0;
    // What is read leaves nothing.
    for _ in 0..3 {
        assert_eq!(status().await, 200);
    }
    let mut client = edge.connect().await;
    client.write_all(b"GET /v0/large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    assert_eq!(status().await, 429);
    drop(client);
    while status().await != 200 {}
}
