//! Section 14 as readers of a topic see it. What filters mean in detail is tested where they are evaluated.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::events::{events, seqs_of, socket};
use crate::harness::{Cluster, PATIENCE, eventually};
use crate::shared::{Api, Got, api, client};
use crate::watch::{cursors, session, watch};

async fn meters(api: &Api, topic: &str) {
    let records: Vec<Value> = (1..=30)
        .map(|number| {
            json!({
                "tag": format!("m:{}", number % 3), "node": if number % 2 == 0 { "even" } else { "odd" },
                "data": { "n": number, "id": 9_007_199_254_740_990u64 + number, "list": [number, "x"] },
                "meta": { "fw": number.to_string() }
            })
        })
        .collect();
    api.post(&format!("/v0/topics/{topic}"), json!({ "records": records })).await.expect(201);
}

fn seqs(page: &Value) -> Vec<u64> {
    let records = page["records"].as_array().expect("records");
    records.iter().map(|record| record["$seq"].as_u64().expect("a seq")).collect()
}

/// C-DIFF-04, C-DIFF-08, C-FILT-04, C-FILT-05
#[tokio::test]
async fn a_diff_delivers_what_passes_and_moves_past_the_rest() {
    let api = api().await;
    meters(&api, "filt-diff").await;
    for (filter, expected) in [
        (json!("m:1"), (1..=30).filter(|n| n % 3 == 1).collect::<Vec<u64>>()),
        (json!("m:*"), (1..=30).collect()),
        (json!(["Not", "m:*"]), vec![]),
        (json!(["data.n", "Lte", 2.5]), vec![1, 2]),
        (json!(["data./list/0", "In", [7, 9.0, "x"]]), vec![7, 9]),
        (json!(["data.id", "Eq", 9_007_199_254_740_993u64]), vec![3]),
        (json!(["meta.fw", "Eq", "12"]), vec![12]),
        (json!(["And", ["m:0", ["node", "Eq", "even"], ["data.n", "Gt", 20]]]), vec![24, 30]),
        (json!(["Or", [["data.n", "Eq", 4], ["Not", ["data.n", "Exists", true]]]]), vec![4]),
    ] {
        let page = api.diff("filt-diff", json!({ "filter": filter })).await.expect(200);
        assert_eq!(seqs(&page), expected, "{filter}");
        assert_eq!((&page["next_from_seq"], &page["caught_up"]), (&json!(30), &json!(true)), "{filter}");
        assert_eq!(page["tombstone"], Value::Null);
        assert_eq!(page["performance"]["records_scanned"], 30, "{filter}");
    }
    // Together with `node`, and in pages.
    let mut cursor = 0;
    let mut delivered = Vec::new();
    while cursor < 30 {
        let body = json!({ "from_seq": cursor, "limit": 2, "node": "odd", "filter": ["data.n", "Gt", 9] });
        let page = api.diff("filt-diff", body).await.expect(200);
        assert!(seqs(&page).len() <= 2);
        delivered.extend(seqs(&page));
        let next = page["next_from_seq"].as_u64().expect("a seq");
        // C-DIFF-05
        assert!(next > cursor);
        cursor = next;
    }
    assert_eq!(delivered, (10..=30).step_by(2).collect::<Vec<u64>>());
}

fn raw_seqs(page: Got) -> Vec<u64> {
    assert_eq!(page.status, 200);
    let text = String::from_utf8(page.bytes).expect("text");
    let after = text.split("\"$seq\":").skip(1);
    after.map(|rest| rest.split(',').next().and_then(|seq| seq.parse().ok()).expect("a seq")).collect()
}

/// C-FILT-03, C-FILT-05: whatever stands in a record, a filter neither fails the read nor hides it by accident.
#[tokio::test]
async fn a_filter_is_total() {
    let api = api().await;
    let records = r#"{"records":[{"data":null},{"data":[]},{"data":"n"},{"data":1e999999},{"data":{"n":{}}},
        {"data":{"n":"\ud800"}},{"data":{"n":123456789012345678901234567890}},{"data":{"n":1,"n":2}}]}"#;
    api.raw("POST", "/v0/topics/filt-total", records).await.expect(201);
    for filter in
        [r#"["data.n","Gt",1]"#, r#"["data.n","Eq","x"]"#, r#"["data.n.0.x","Exists",true]"#, r#""x*""#]
    {
        let page = |filter: String| {
            let body = format!("{{\"filter\":{filter}}}");
            let api = &api;
            // Not everything that was written can be parsed here.
            async move { raw_seqs(api.raw("POST", "/v0/topics/filt-total/diff", body).await) }
        };
        let (passing, others) = (page(filter.to_owned()).await, page(format!("[\"Not\",{filter}]")).await);
        let mut all = [passing, others].concat();
        all.sort_unstable();
        assert_eq!(all, (1..=8).collect::<Vec<_>>(), "{filter}");
    }
}

/// C-FILT-01, C-FILT-06
#[tokio::test]
async fn a_malformed_filter_is_refused() {
    let api = api().await;
    meters(&api, "filt-bad").await;
    let leaves = |count: usize| json!(["Or", vec!["x"; count]]);
    let nested = |depth: usize| (1..depth).fold(json!("x"), |inner, _| json!(["Not", inner]));
    for bad in [
        json!(1),
        json!([]),
        json!(["tag", "eq", "x"]),
        json!(["tag", "Glob", "x"]),
        json!(["And", []]),
        json!(["seq", "Eq", 1]),
        leaves(65),
        nested(9),
    ] {
        api.diff("filt-bad", json!({ "filter": bad })).await.refused(400, "invalid_request");
    }
    for good in [leaves(64), nested(8)] {
        api.diff("filt-bad", json!({ "filter": good })).await.expect(200);
    }
    let mut socket = socket(&api).await.expect("a socket");
    for bad in [json!(1), json!(["tag", "eq", "x"]), leaves(65)] {
        for body in [
            json!({ "topics": { "filt-bad": {} }, "filter": bad }),
            json!({ "topics": { "filt-bad": { "filter": bad } } }),
        ] {
            api.post("/v0/watch", body.clone()).await.refused(400, "invalid_request");
            let mut subscribe = body;
            subscribe["op"] = json!("subscribe");
            socket.send(subscribe).await;
            assert_eq!(socket.expect("error").await["code"], "invalid_request");
        }
    }
    // Not ignored, as long as it is not built: C-CHAN-01 to come.
    api.diff("filt-bad", json!({ "channel": "c" })).await.refused(400, "invalid_request");
    let body = json!({ "topics": { "filt-bad": { "channel": ["c"] } } });
    api.post("/v0/watch", body).await.refused(400, "invalid_request");
}

/// C-DIFF-09
#[tokio::test]
async fn a_long_poll_waits_for_a_record_that_passes_or_tells_how_far_it_came() {
    let api = api().await;
    meters(&api, "filt-poll").await;
    let poll = tokio::spawn({
        let api = api.clone();
        async move {
            let mut cursor = 30;
            loop {
                let body = json!({ "from_seq": cursor, "wait_ms": 20_000, "filter": "wanted" });
                let page = api.diff("filt-poll", body).await.expect(200);
                if !seqs(&page).is_empty() {
                    return page;
                }
                cursor = page["next_from_seq"].as_u64().expect("a seq");
            }
        }
    });
    for tag in ["other", "other", "wanted"] {
        let record = json!({ "records": [{ "data": 1, "tag": tag }] });
        api.post("/v0/topics/filt-poll", record).await.expect(200);
    }
    let page = poll.await.expect("the poll ends");
    assert_eq!(seqs(&page), [33]);
}

/// C-FILT-03, C-FILT-05, C-WATCH-05, and `filter` in section 17.1
#[tokio::test]
async fn a_stream_brings_what_passes_the_filter_of_its_topic_at_any_member() {
    let api = api().await;
    for topic in ["filt-own", "filt-not", "filt-all"] {
        meters(&api, topic).await;
    }
    let filter = json!(["And", ["m:1", ["data.n", "Gt", 9]]]);
    let topics = json!({
        "filt-own": { "filter": filter }, "filt-not": { "filter": ["Not", filter] }, "filt-all": {}
    });
    let passing: Vec<u64> = (10..=30).filter(|n| n % 3 == 1).collect();
    let others: Vec<u64> = (1..=30).filter(|n| !passing.contains(n)).collect();
    let all: Vec<u64> = (1..=30).filter(|n| n % 2 == 0).collect();
    let body = json!({ "topics": topics, "filter": ["node", "Eq", "even"], "limit": 4 });
    for member in 0..3 {
        let url = session(&api.at(0), body.clone()).await;
        // The session moves, and its filters with it.
        let mut stream = events(&api.at(member), &url, &[]).await;
        let mut read = std::collections::BTreeMap::<String, Vec<u64>>::new();
        let mut caught_up = 0;
        while caught_up < 3 {
            let event = stream.event().await.expect("the stream goes on");
            match event.name.as_str() {
                "record" => {
                    let topic = event.data["topic"].as_str().expect("a name").to_owned();
                    read.entry(topic).or_default().extend(seqs_of(&event.data));
                }
                "caught-up" => caught_up += 1,
                other => panic!("{other}"),
            }
        }
        let expected = [("filt-all", &all), ("filt-not", &others), ("filt-own", &passing)];
        assert_eq!(read.iter().map(|(topic, seqs)| (topic.as_str(), seqs)).collect::<Vec<_>>(), expected);
    }
    // The same over a socket, and live.
    let mut socket = socket(&api).await.expect("a socket");
    socket.send(json!({ "op": "subscribe", "topic": "filt-own", "filter": filter })).await;
    socket.expect("subscribed").await;
    let frame = socket.expect("record").await;
    assert_eq!((seqs_of(&frame), &frame["to_seq"]), (passing, &json!(30)));
    socket.expect("caught_up").await;
    for (tag, n) in [("m:2", 31), ("m:1", 3), ("m:1", 33)] {
        let record = json!({ "tag": tag, "data": { "n": n } });
        api.post("/v0/topics/filt-own", json!({ "records": [record] })).await.expect(200);
    }
    let frame = socket.expect("record").await;
    assert_eq!((seqs_of(&frame), &frame["to_seq"]), (vec![33], &json!(33)));
}

/// C-WATCH-15, C-WATCH-11
#[tokio::test]
async fn a_filter_that_passes_nothing_moves_the_cursor_in_silence() {
    let api = api().await;
    api.write("filt-other", 1).await.expect(201);
    api.write("filt-none", 10_000).await.expect(201);
    api.write("filt-none", 2_500).await.expect(200);
    let topics = json!({ "filt-none": { "filter": "none" }, "filt-other": { "tail": true } });
    let mut stream = watch(&api, json!({ "topics": topics })).await;
    let mut last = stream.expect("caught-up").await;
    if last.data["topic"] != "filt-none" {
        last = stream.expect("caught-up").await;
    }
    assert_eq!((last.data["head_seq"].as_u64(), cursors(&last.id)["filt-none"]), (Some(12_500), 12_500));
    // Live too: what another topic's frame says of this one goes up, and nothing is said of it itself.
    api.write("filt-none", 11).await.expect(200);
    eventually("the cursor has moved", PATIENCE, async || {
        api.write("filt-other", 1).await.expect(200);
        let frame = stream.expect("record").await;
        assert_eq!(frame.data["topic"], "filt-other");
        (cursors(&frame.id)["filt-none"] == 12_511).then_some(())
    })
    .await;
}

/// Heartbeats of section 17.3: what is passed over is no sign of life.
#[tokio::test]
async fn a_stream_that_passes_everything_over_shows_signs_of_life() {
    let api = api().await;
    api.write("filt-life", 1).await.expect(201);
    let writing = tokio::spawn({
        let api = api.clone();
        async move {
            loop {
                api.write("filt-life", 1).await.expect(200);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let body = json!({ "topics": { "filt-life": {} }, "filter": "none", "heartbeat_ms": 1000 });
    let mut stream = watch(&api, body).await;
    stream.expect("caught-up").await;
    for _ in 0..2 {
        let start = Instant::now();
        let heartbeat = stream.next().await.expect("a frame");
        assert!(heartbeat.name == ":" && heartbeat.text.starts_with("hb "), "{heartbeat:?}");
        assert!(start.elapsed() >= Duration::from_millis(900));
    }
    writing.abort();
}

/// A filter that has much to look at holds up neither the thread it runs on nor the commands of its own socket,
/// and they do not hold it up.
#[tokio::test]
async fn a_long_search_and_what_comes_meanwhile_both_get_on() {
    let cluster = Cluster::start_with(1, &["--runtime-threads", "1"]).await;
    let api = Api { urls: cluster.urls(), http: client(), key: None };
    let data: serde_json::Map<String, Value> =
        (0..64).map(|at| (format!("k{at}"), json!("x".repeat(1000)))).collect();
    let records: Vec<Value> = (0..150).map(|_| json!({ "data": data })).collect();
    api.post("/v0/topics/t", json!({ "records": records })).await.expect(201);
    let leaves: Vec<Value> = (0..8).map(|at| json!([format!("data.k{at}"), "Eq", "y"])).collect();
    let filter = json!(["Or", leaves]);
    let mut socket = socket(&api).await.expect("a socket");
    socket.send(json!({ "op": "subscribe", "topic": "t", "filter": filter })).await;
    socket.expect("subscribed").await;
    let (mut pongs, start) = (0, Instant::now());
    loop {
        assert!(start.elapsed() < PATIENCE, "the search does not end; {pongs} commands were carried out");
        socket.send(json!({ "op": "ping" })).await;
        match socket.next().await.expect("the socket stays")["op"].as_str() {
            Some("pong") => pongs += 1,
            Some("caught_up") => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(pongs >= 5, "only {pongs} commands were carried out meanwhile");
}
