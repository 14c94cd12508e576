//! Section 1: URLs, bodies, names, lists.

use std::collections::BTreeSet;
use std::io::Read;

use serde_json::{Value, json};
use tempfile::tempdir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::Cluster;
use crate::shared::{Api, ORIGIN, api, client, got};

/// C-CONV-01, C-AUTH-20: the addresses are those of plain HTTP.
#[tokio::test]
async fn all_paths_start_with_v0() {
    let api = api().await;
    assert!(api.urls.iter().all(|url| url.starts_with("http://")), "{:?}", api.urls);
    api.get("/v0/topics?prefix=none-of-these").await.expect(200);
    for path in ["/topics", "/v1/topics", "/V0/topics", "/v0", "/"] {
        api.get(path).await.refused(404, "not_found");
    }
}

/// C-CONV-02, C-CONV-03
#[tokio::test]
async fn unknown_fields_are_ignored_but_for_those_of_a_config() {
    let api = api().await;
    let topic = "conv-unknown";
    let later = json!({ "records": [{ "data": 1, "later": {} }], "later": [1] });
    api.post(&format!("/v0/topics/{topic}"), later).await.expect(201);
    api.diff(topic, json!({ "later": true })).await.expect(200);
    let detail =
        api.put("/v0/topics/conv-typo", json!({ "tll_ms": 1 })).await.refused(400, "invalid_request");
    assert_eq!(detail["field"], "tll_ms");
    let inline = json!({ "records": [{ "data": 1 }], "config": { "cap": 1 } });
    let detail = api.post("/v0/topics/conv-typo", inline).await.refused(400, "invalid_request");
    assert_eq!(detail["field"], "cap");
    api.topic("conv-typo").await.refused(404, "topic_not_found");
}

/// C-CONV-04
#[tokio::test]
async fn a_body_needs_its_content_type() {
    let api = api().await;
    for (method, path, body) in [
        ("POST", "/v0/topics/conv-type", r#"{"records":[{"data":1}]}"#),
        ("PUT", "/v0/topics/conv-type", "{}"),
        ("POST", "/v0/topics/conv-type/diff", "{}"),
        ("POST", "/v0/append", r#"{"topics":{"conv-type":{"records":[{"data":1}]}}}"#),
        ("POST", "/v0/topics/conv-type/delete", r#"{"before_seq":0}"#),
        ("PUT", "/v0/routers/conv-type", r#"{"source":"conv-type","dest":"conv-type-copy"}"#),
        ("POST", "/v0/routers/conv-type/pause", "{}"),
        ("POST", "/v0/routers/conv-type/resume", "{}"),
        ("DELETE", "/v0/routers/conv-type", "{}"),
        ("POST", "/v0/watch", r#"{"topics":{"conv-type":{}}}"#),
    ] {
        let plain = api.request(method, path).body(body);
        got(method.into(), plain).await.refused(415, "unsupported_media_type");
        let text = api.request(method, path).header("content-type", "text/plain").body(body);
        got(method.into(), text).await.refused(415, "unsupported_media_type");
        let json = api.request(method, path).header("content-type", "application/json; charset=utf-8");
        assert!(got(method.into(), json.body(body)).await.status < 300);
    }
}

/// C-CONV-05
#[tokio::test]
async fn no_body_means_an_empty_object_for_put_and_diff() {
    let api = api().await;
    got("PUT".into(), api.request("PUT", "/v0/topics/conv-empty")).await.expect(201);
    got("diff".into(), api.request("POST", "/v0/topics/conv-empty/diff")).await.expect(200);
    got("write".into(), api.request("POST", "/v0/topics/conv-empty")).await.refused(400, "invalid_request");
}

/// C-CONV-06, C-CONV-17, C-PERF-01
#[tokio::test]
async fn a_success_is_bare_json_with_its_performance() {
    let api = api().await;
    let write = api.write("conv-perf", 2).await;
    for answer in [
        write.clone(),
        api.put("/v0/topics/conv-perf", json!({})).await,
        api.topic("conv-perf").await,
        api.diff("conv-perf", json!({})).await,
        api.get("/v0/topics?prefix=conv-perf").await,
        api.get("/v0/cluster").await,
        api.get("/v0/health").await,
        api.get("/v0/ready").await,
        api.delete("/v0/topics/conv-perf-none").await,
        api.post("/v0/append", json!({ "topics": { "conv-perf": { "records": [{ "data": 1 }] } } })).await,
    ] {
        assert_eq!(answer.header("content-type"), Some("application/json"), "{}", answer.what);
        let what = answer.what.clone();
        let status = answer.status;
        let body = answer.expect(status);
        assert!(
            body["performance"]["server_total_ms"].is_f64() && body.get("error").is_none(),
            "{what}: {body}"
        );
    }
    let performance = &write.body["performance"];
    assert_eq!(performance["fsync_ms"], 0.0, "class disk reports no sync: {performance}");
    assert!(performance["replicate_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{performance}");
}

/// C-CONV-07
#[tokio::test]
async fn malformed_bodies_change_nothing() {
    let api = api().await;
    let topic = "/v0/topics/conv-malformed";
    for body in [
        "{",
        "[]",
        "null",
        "7",
        "{}",
        r#"{"records":[{"data":1}],"node":7}"#,
        "{\"records\":[{\"data\":\u{1}}]}",
    ] {
        api.raw("POST", topic, body).await.refused(400, "invalid_request");
    }
    for body in
        [r#"{"ttl_ms":-1}"#, r#"{"cap_records":0.5}"#, r#"{"ttl_ms":"1"}"#, r#"{"type":"list"}"#, "[]"]
    {
        api.raw("PUT", topic, body).await.refused(400, "invalid_request");
    }
    for (path, body) in [
        (topic, r#"{"records":[{"data":"?"}]}"#),
        (topic, r#"{"records":[{"data":1}],"ignored":"?"}"#),
        ("/v0/topics/conv-malformed/diff", r#"{"ignored":{"?":[]}}"#),
        ("/v0/watch", r#"{"topics":{},"ignored":"?"}"#),
    ] {
        let mut not_text = body.as_bytes().to_vec();
        let at = not_text.iter().position(|byte| *byte == b'?').expect("is there");
        not_text[at] = 0xff;
        api.raw("POST", path, not_text).await.refused(400, "invalid_request");
    }
    api.topic("conv-malformed").await.refused(404, "topic_not_found");
}

/// C-CONV-08, C-CONV-09
#[tokio::test]
async fn numbers_are_clamped_and_enums_are_exact() {
    let api = api().await;
    let body = r#"{"priority":5000,"lease_ms":1,"claim_jitter_ms":99999999999999999999}"#;
    let config = &api.raw("PUT", "/v0/topics/conv-clamp", body).await.expect(201)["config"].clone();
    assert_eq!((&config["priority"], &config["lease_ms"]), (&json!(1000), &json!(100)));
    assert_eq!(config["claim_jitter_ms"], 5000);
    assert_eq!(&api.topic("conv-clamp").await.expect(200)["config"], config);
    for body in [r#"{"type":"LOG"}"#, r#"{"durability":"Disk"}"#, r#"{"discard":"OLD"}"#] {
        api.raw("PUT", "/v0/topics/conv-clamp", body).await.refused(400, "invalid_request");
    }
    // 0 is the default, and what is above the most that there is comes to that: 1000 records of 1001.
    api.write("conv-clamp-page", 1001).await.expect(201);
    for (limit, count) in [(0, 256), (1000, 1000), (1_000_000, 1000)] {
        let body = json!({ "limit": limit, "max_batch_bytes": 1u64 << 60 });
        let page = api.diff("conv-clamp-page", body).await.expect(200);
        assert_eq!(page["records"].as_array().map(Vec::len), Some(count), "{limit}");
    }
    // One record is there however few bytes it may have.
    let page = api.diff("conv-clamp-page", json!({ "max_batch_bytes": 1 })).await.expect(200);
    assert_eq!(page["records"].as_array().map(Vec::len), Some(1));
}

fn packed(text: &str) -> Vec<u8> {
    let mut packed = Vec::new();
    flate2::read::GzEncoder::new(text.as_bytes(), flate2::Compression::fast())
        .read_to_end(&mut packed)
        .expect("pack");
    packed
}

/// C-CONV-10
#[tokio::test]
async fn gzip_is_honoured_both_ways_and_only_if_asked_for() {
    let api = api().await;
    let body = format!(r#"{{"records":[{{"data":"{}"}}]}}"#, "x".repeat(10_000));
    let request = api.request("POST", "/v0/topics/conv-gzip").header("content-type", "application/json");
    let request = request.header("content-encoding", "gzip").body(packed(&body));
    got("gzip write".into(), request).await.expect(201);
    let request = api.request("POST", "/v0/topics/conv-gzip/diff");
    let plain = got("plain diff".into(), request).await;
    assert_eq!(plain.header("content-encoding"), None);
    let request = api.request("POST", "/v0/topics/conv-gzip/diff").header("accept-encoding", "gzip");
    let answer = got("gzip diff".into(), request).await;
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(&answer.bytes[..]).read_to_string(&mut text).expect("is gzip");
    let page: Value = serde_json::from_str(&text).expect("is JSON");
    assert_eq!(page["records"], plain.body["records"]);
}

/// C-CONV-12, C-CONV-13
#[tokio::test]
async fn times_and_seqs_are_integers() {
    let api = api().await;
    let before_ms = unix_ms();
    let write = api.write("conv-numbers", 1).await.expect(201);
    let record = api.diff("conv-numbers", json!({})).await.expect(200)["records"][0].clone();
    assert!(write["first_seq"].is_u64() && record["$seq"].is_u64(), "{record}");
    let ts_ms = record["$ts"].as_u64().expect("an integer");
    assert!(ts_ms >= before_ms - 5000 && ts_ms <= unix_ms() + 5000, "{ts_ms} is not now");
    let state = api.topic("conv-numbers").await.expect(200);
    assert_eq!(state["last_write_ts"], ts_ms);
}

pub fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    now.as_millis() as u64
}

/// C-CONV-14
#[tokio::test]
async fn a_flag_that_is_none_is_the_default() {
    let api = api().await;
    let body = json!({ "records": [{ "data": 1 }] });
    let shows = async |value: &str| {
        let path = format!("/v0/topics/conv-flags?return_seqs={value}");
        let got = api.post(&path, body.clone()).await;
        assert!(got.status < 300);
        got.body.get("seqs").is_some()
    };
    for (value, shown) in
        [("true", true), ("1", true), ("false", false), ("0", false), ("FALSE", true), ("", true)]
    {
        assert_eq!(shows(value).await, shown, "{value:?}");
    }
}

/// C-CONV-15
#[tokio::test]
async fn unknown_paths_and_wrong_methods_have_their_codes() {
    let api = api().await;
    for path in ["/v0/nothing", "/v0/topics/", "/v0/topics/a/b/c", "/v0/topic/a", "//v0/topics"] {
        api.get(path).await.refused(404, "not_found");
    }
    for (method, path) in
        [("PATCH", "/v0/topics/a"), ("DELETE", "/v0/topics"), ("GET", "/v0/append"), ("POST", "/v0/health")]
    {
        let answer = got(method.into(), api.request(method, path)).await;
        assert!(answer.header("allow").is_some_and(|allow| !allow.is_empty()), "{method} {path}");
        answer.refused(405, "method_not_allowed");
    }
}

/// C-CONV-16
#[tokio::test]
async fn path_segments_are_decoded_once() {
    let api = api().await;
    api.raw("PUT", "/v0/topics/conv%3Adecoded%2e", "{}").await.expect(201);
    assert_eq!(api.topic("conv:decoded.").await.expect(200)["topic"], "conv:decoded.");
    api.topic("Conv:decoded.").await.refused(404, "topic_not_found");
    for name in ["conv%253Adecoded.", "conv%2Fdecoded", "conv%20", "%ff", "conv+x"] {
        let answer = api.topic(name).await;
        assert!(matches!(answer.status, 400 | 404), "{name}: {}", answer.status);
    }
}

/// C-CONV-18
#[tokio::test]
async fn pages_of_the_allowed_origin_may_call() {
    let api = api().await;
    let preflight = async |origin: &str| {
        let request = api.with_key(None).request("OPTIONS", "/v0/topics/conv-cors").header("origin", origin);
        got("preflight".into(), request.header("access-control-request-method", "POST")).await
    };
    let answer = preflight(ORIGIN).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (204, Some(ORIGIN)));
    assert!(answer.header("access-control-allow-headers").is_some_and(|it| it.contains("authorization")));
    let answer = preflight(&api.urls[1]).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some(api.urls[1].as_str()), "of this cluster");
    let traced = api.with_key(None).request("OPTIONS", "/v0/topics/conv-cors").header("origin", ORIGIN);
    let traced = traced.header("access-control-request-method", "POST");
    let traced = traced.header("access-control-request-headers", "content-type,traceparent,x-b3-traceid");
    let answer = got("preflight".into(), traced).await;
    let allowed = answer.header("access-control-allow-headers");
    assert_eq!(allowed, Some("content-type,traceparent,x-b3-traceid"));
    let answer = preflight("https://other.example").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (405, None));
    let request = api.request("GET", "/v0/topics").header("origin", ORIGIN);
    let answer = got("GET".into(), request).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some(ORIGIN));
}

/// C-CONV-19
#[tokio::test]
async fn a_member_without_keys_is_no_web_pages_toy() {
    let member = Cluster::start_in(tempdir().expect("make a directory"), None, 1, &[]).await;
    let api = Api { urls: member.urls(), http: client(), key: None };
    let own = api.urls[0].clone();
    let upgrade = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for (origin, may) in [("https://evil.example", false), ("null", false), (own.as_str(), true)] {
        let from = |method: &str, path: &str| api.request(method, path).header("origin", origin);
        let put = got("PUT".into(), from("PUT", "/v0/topics/web")).await;
        let pause = got("pause".into(), from("POST", "/v0/routers/none/pause")).await;
        let mut handshake = from("GET", "/v0/ws");
        for (name, value) in upgrade {
            handshake = handshake.header(name, value);
        }
        let handshake = handshake.send().await.expect("an answer").status().as_u16();
        if may {
            assert_eq!((put.status, pause.status, handshake), (201, 404, 101));
        } else {
            put.refused(403, "forbidden");
            pause.refused(403, "forbidden");
            assert_eq!(handshake, 403);
        }
    }
    let called = |host: &str| api.request("GET", "/v0/topics").header("host", host);
    let refused = got("GET".into(), called("evil.example:4000")).await;
    assert!(refused.body["error"]["message"].as_str().is_some_and(|it| it.contains("allowed_hosts")));
    refused.refused(403, "forbidden");
    got("GET".into(), called("localhost:1")).await.expect(200);
    let probe = api.request("GET", "/v0/ready").header("host", "any.example");
    got("ready".into(), probe).await.expect(200);
}

/// C-CONV-20
#[tokio::test]
async fn head_touches_no_stream() {
    let api = api().await.at(0);
    api.write("conv-head", 1).await.expect(201);
    let head = got("HEAD".into(), api.request("HEAD", "/v0/topics/conv-head")).await;
    assert!(head.status == 200 && head.bytes.is_empty() && head.header("content-length").is_some());
    let session = api.post("/v0/watch", json!({ "topics": { "conv-head": {} } })).await.expect(200);
    let path = session["stream_url"].as_str().expect("a path").to_owned();
    let mut stream = api.request("GET", &path).send().await.expect("a stream");
    stream.chunk().await.expect("is open");
    for path in [path.as_str(), "/v0/ws"] {
        let head = got("HEAD".into(), api.request("HEAD", path)).await;
        assert_eq!((head.status, head.header("allow")), (405, Some("GET")), "{path}");
    }
    // The stream goes on, and was told nothing.
    api.write("conv-head", 1).await.expect(200);
    let mut text = String::new();
    while !text.contains("\"$seq\":2") {
        let chunk = stream.chunk().await.expect("comes").expect("the stream is open");
        text += &String::from_utf8_lossy(&chunk);
    }
    assert!(!text.contains("86400000"), "{text}");
}

/// C-CONV-20, C-DIFF-09
#[tokio::test]
async fn a_long_poll_of_a_client_that_ends_its_side_is_answered_at_once() {
    let api = api().await;
    let head_seq = api.write("conv-half", 3).await.expect(201)["head_seq"].clone();
    let body = json!({ "from_seq": head_seq, "wait_ms": 30_000 }).to_string();
    let address = api.urls[0].trim_start_matches("http://").to_owned();
    let mut socket = tokio::net::TcpStream::connect(&address).await.expect("connect");
    let request = format!(
        "POST /v0/topics/conv-half/diff HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer all\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.expect("send");
    socket.shutdown().await.expect("end this side");
    let mut answer = String::new();
    let reading = socket.read_to_string(&mut answer);
    tokio::time::timeout(std::time::Duration::from_secs(10), reading).await.expect("at once").expect("whole");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    assert!(answer.contains("\"records\":[]"), "{answer}");
}

/// C-NAME-01, C-NAME-02
#[tokio::test]
async fn names_are_checked_and_never_normalised() {
    let api = api().await;
    let longest = "n".repeat(255);
    for good in ["name.A_b:c-9", "0", longest.as_str()] {
        api.raw("PUT", &format!("/v0/topics/{good}"), "{}").await.expect(201);
        assert_eq!(api.topic(good).await.expect(200)["topic"], good);
    }
    api.topic("NAME.A_b:c-9").await.refused(404, "topic_not_found");
    let too_long = "n".repeat(256);
    for bad in [".hidden", "-x", "_x", ":x", "a%3Eb", "%C3%A4", "a%CC%81", "a%00", too_long.as_str()] {
        api.raw("PUT", &format!("/v0/topics/{bad}"), "{}").await.refused(400, "invalid_request");
        api.write(bad, 1).await.refused(400, "invalid_request");
        let other = api.topic(bad).await;
        assert!(matches!(other.status, 400 | 404), "{bad}");
    }
}

/// Every name of a list, walked in pages of `page_size` over the members in turn.
pub async fn walk(api: &Api, prefix: &str, page_size: usize) -> Vec<String> {
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let query = format!("prefix={prefix}&page_size={page_size}{cursor}");
        let page = api.get(&format!("/v0/topics?{query}")).await.expect(200);
        let found = page["topics"].as_array().expect("an array");
        assert!(found.len() <= page_size);
        names.extend(found.iter().map(|it| it["topic"].as_str().expect("a name").to_owned()));
        // C-PAGE-03
        match page.get("next_cursor") {
            Some(next) => cursor = format!("&cursor={}", next.as_str().expect("is text")),
            None => return names,
        }
    }
}

/// C-PAGE-01, C-PAGE-02, C-PAGE-03, C-PAGE-06
#[tokio::test]
async fn lists_come_in_pages_in_byte_order() {
    let api = api().await;
    let mut names: Vec<String> = ["", "-", ".a", ":a", "A", "Z", "_", "a", "b0", "b1", "b10"]
        .iter()
        .map(|end| format!("page{end}"))
        .collect();
    for name in names.iter().rev() {
        api.raw("PUT", &format!("/v0/topics/{name}"), "{}").await.expect(201);
    }
    api.raw("PUT", "/v0/topics/Page", "{}").await.expect(201);
    names.sort();
    for page_size in [1, 4, 11, 1000] {
        assert_eq!(walk(&api, "page", page_size).await, names, "{page_size}");
    }
    assert_eq!(walk(&api, "pageb1", 1).await, ["pageb1", "pageb10"]);
    for (size, found) in [("0", 1), ("2", 2), ("100000", 11), ("99999999999999999999999", 11)] {
        let page = api.get(&format!("/v0/topics?prefix=page&page_size={size}")).await.expect(200);
        assert_eq!(page["topics"].as_array().map(Vec::len), Some(found), "{size}");
    }
    api.get("/v0/topics?page_size=x").await.refused(400, "invalid_request");
}

/// C-PAGE-04
#[tokio::test]
async fn a_cursor_that_was_made_up_is_refused() {
    let api = api().await;
    for cursor in ["x", "bWV0ZXI6ZGFpbHk", "%00", "e30", "-1"] {
        api.get(&format!("/v0/topics?cursor={cursor}")).await.refused(400, "invalid_request");
    }
}

/// C-PAGE-05
#[tokio::test]
async fn a_walk_finds_what_was_there_all_the_time_exactly_once() {
    let api = api().await;
    let stays: BTreeSet<String> = (0..20).map(|number| format!("walk{number:02}")).collect();
    for name in &stays {
        api.raw("PUT", &format!("/v0/topics/{name}"), "{}").await.expect(201);
    }
    let mut cursor = String::new();
    let mut found = Vec::new();
    for step in 0.. {
        let page = api.get(&format!("/v0/topics?prefix=walk&page_size=3{cursor}")).await.expect(200);
        found.extend(page["topics"].as_array().expect("an array").iter().map(|it| it["topic"].clone()));
        // Others come and go on both sides of the cursor.
        api.raw("PUT", &format!("/v0/topics/walk{:02}x{step}", step * 3), "{}").await.expect(201);
        api.raw("PUT", &format!("/v0/topics/walk00y{step}"), "{}").await.expect(201);
        api.delete(&format!("/v0/topics/walk00y{step}")).await.expect(200);
        match page.get("next_cursor") {
            Some(next) => cursor = format!("&cursor={}", next.as_str().expect("is text")),
            None => break,
        }
    }
    let times = |name: &str| found.iter().filter(|it| **it == name).count();
    assert!(stays.iter().all(|name| times(name) == 1), "{found:?}");
}
