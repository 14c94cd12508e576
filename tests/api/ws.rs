//! Section 18: the WebSocket.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::events::{Socket, close_frame, narrow_connection, seqs_of, socket, socket_over, stream_count};
use crate::harness::{Cluster, PATIENCE, eventually};
use crate::shared::{Api, api, client, got};

async fn open(api: &Api) -> Socket {
    match socket(api).await {
        Ok(socket) => socket,
        Err(status) => panic!("refused with {status}"),
    }
}

/// C-WS-01, C-AUTH-17
#[tokio::test]
async fn a_socket_needs_a_key_and_each_command_its_right() {
    let api = api().await.at(0);
    for key in [None, Some("nobody")] {
        assert_eq!(socket(&api.with_key(key)).await.err(), Some(401));
    }
    got("no upgrade".into(), api.request("GET", "/v0/ws")).await.refused(400, "invalid_request");
    api.with_key(None).get("/v0/ws?token=all").await.refused(401, "unauthorized");
    api.write("ws-rights", 1).await.expect(201);
    let mut reader = open(&api.with_key("reader")).await;
    let publish = json!({ "op": "publish", "topic": "ws-rights", "records": [{ "data": 1 }] });
    reader.send(publish.clone()).await;
    assert_eq!(reader.expect("error").await["code"], "forbidden");
    let mut writer = open(&api.with_key("writer")).await;
    writer.send(json!({ "op": "subscribe", "topic": "ws-rights" })).await;
    assert_eq!(writer.expect("error").await["code"], "forbidden");
    writer.send(publish.clone()).await;
    writer.expect("ack").await;
    // C-AUTH-16
    let mut with_config = publish.clone();
    with_config["config"] = json!({});
    writer.send(with_config).await;
    assert_eq!(writer.expect("error").await["code"], "forbidden");
    let mut bound = open(&api.with_key("bound")).await;
    for command in [publish, json!({ "op": "subscribe", "topics": { "own:x": {}, "ws-rights": {} } })] {
        bound.send(command).await;
        assert_eq!(bound.expect("error").await["code"], "forbidden");
    }
}

/// C-WS-02, C-WS-03
#[tokio::test]
async fn what_is_no_command_is_told_and_the_socket_stays_open() {
    let api = api().await;
    let mut socket = open(&api).await;
    socket.raw(Message::binary(vec![1, 2, 3])).await;
    assert_eq!(socket.expect("error").await["code"], "unsupported_message");
    for bad in ["{", "7", "[]", "{}", r#"{"op":7}"#, r#"{"op":"dance","request_id":[1]}"#] {
        socket.raw(Message::text(bad)).await;
        let error = socket.expect("error").await;
        assert_eq!(error["code"], "invalid_json", "{bad}");
        assert_eq!(error.get("request_id"), bad.contains("request_id").then_some(&json!([1])));
    }
    socket.send(json!({ "op": "subscribe", "request_id": "s", "topic": "ws-none" })).await;
    let error = socket.expect("error").await;
    let fields = (&error["request_id"], &error["code"], &error["detail"]["topic"]);
    assert_eq!(fields, (&json!("s"), &json!("topic_not_found"), &json!("ws-none")));
    for bad in [json!({ "op": "subscribe" }), json!({ "op": "publish", "topic": "ws-none", "records": [] })] {
        socket.send(bad).await;
        assert_eq!(socket.expect("error").await["code"], "invalid_request");
    }
    for id in [json!(7), json!("x"), json!({ "a": [1.50] })] {
        socket.send(json!({ "op": "ping", "request_id": id })).await;
        assert_eq!(socket.next().await, Some(json!({ "op": "pong", "request_id": id })));
    }
}

/// C-WS-04, C-CONS-08
#[tokio::test]
async fn publishes_are_ordered_as_sent_and_read_back() {
    let api = api().await;
    for member in 0..3 {
        let topic = format!("ws-order-{member}");
        let mut socket = open(&api.at(member)).await;
        for number in 0..50 {
            let records = json!([{ "node": "p4", "data": number }]);
            let publish = json!({ "op": "publish", "request_id": number, "topic": topic,
                "return_seqs": number == 0, "records": records });
            socket.send(publish).await;
        }
        for number in 0..50u64 {
            let ack = socket.expect("ack").await;
            let seq = number + 1;
            assert_eq!((&ack["request_id"], &ack["first_seq"]), (&json!(number), &json!(seq)));
            assert_eq!(
                (&ack["last_seq"], &ack["head_seq"], &ack["count"]),
                (&json!(seq), &json!(seq), &json!(1))
            );
            assert_eq!((&ack["created"], &ack["deduped"]), (&json!(number == 0), &json!(false)));
            assert_eq!(ack.get("seqs"), (number == 0).then_some(&json!([1])));
            assert!(ack["performance"].is_object());
        }
        socket
            .send(json!({ "op": "subscribe", "request_id": 1, "topic": topic, "from_seq": 10, "limit": 7 }))
            .await;
        let subscribed = socket.expect("subscribed").await;
        let place = &subscribed["topics"][&topic];
        assert_eq!(
            (&place["from_seq"], &place["head_seq"], &place["earliest_seq"]),
            (&json!(10), &json!(50), &json!(1))
        );
        let mut read = Vec::new();
        while read.last() != Some(&50) {
            let frame = socket.expect("record").await;
            assert!(seqs_of(&frame).len() <= 7);
            for record in frame["records"].as_array().expect("records") {
                assert_eq!(record["data"].as_u64().map(|data| data + 1), record["$seq"].as_u64());
            }
            read.extend(seqs_of(&frame));
        }
        assert_eq!(read, (11..=50).collect::<Vec<u64>>());
        let caught_up = json!({ "op": "caught_up", "topic": topic, "head_seq": 50 });
        assert_eq!(socket.next().await, Some(caught_up));
        // C-CLU-05: as over HTTP.
        for deduped in [false, true] {
            let records = json!([{ "data": "once" }]);
            socket
                .send(json!({ "op": "publish", "topic": topic, "records": records, "idempotency_key": "k" }))
                .await;
            loop {
                let message = socket.next().await.expect("an answer");
                if message["op"] == "ack" {
                    assert_eq!((&message["deduped"], &message["first_seq"]), (&json!(deduped), &json!(51)));
                    break;
                }
                assert_eq!(message["op"], "record", "{message}");
            }
        }
    }
}

/// C-WS-05
#[tokio::test]
async fn a_second_subscribe_replaces_the_first() {
    let api = api().await;
    api.write("ws-twice", 3).await.expect(201);
    let mut socket = open(&api).await;
    let subscribe = json!({ "op": "subscribe", "topics": { "ws-twice": { "from_seq": 1 } } });
    for _ in 0..2 {
        socket.send(subscribe.clone()).await;
        socket.expect("subscribed").await;
        assert_eq!(seqs_of(&socket.expect("record").await), [2, 3]);
        socket.expect("caught_up").await;
    }
    api.write("ws-twice", 1).await.expect(200);
    assert_eq!(seqs_of(&socket.expect("record").await), [4]);
    for topics in [json!({ "topic": "ws-twice" }), json!({ "topics": ["ws-twice", "ws-none"] })] {
        let mut unsubscribe = topics.clone();
        unsubscribe["op"] = json!("unsubscribe");
        unsubscribe["request_id"] = json!(3);
        socket.send(unsubscribe).await;
        let answer = socket.expect("unsubscribed").await;
        assert_eq!((&answer["request_id"], &answer["topics"][0]), (&json!(3), &json!("ws-twice")));
    }
    // Written once, delivered neither twice nor after the unsubscribe.
    api.write("ws-twice", 1).await.expect(200);
    socket.send(json!({ "op": "subscribe", "topic": "ws-twice", "tail": true })).await;
    assert_eq!(socket.expect("subscribed").await["topics"]["ws-twice"]["from_seq"], 5);
    socket.expect("caught_up").await;
    let many = (0..257).map(|number| (format!("ws-many-{number}"), json!({})));
    let many: serde_json::Map<String, Value> = many.collect();
    socket.send(json!({ "op": "subscribe", "topics": many, "lenient": true })).await;
    assert_eq!(socket.expect("error").await["code"], "invalid_request");
}

/// C-WS-04, C-NODE-02, C-GAP-05, C-GAP-10
#[tokio::test]
async fn gaps_nodes_and_deletion_are_as_over_http() {
    let api = api().await;
    api.put("/v0/topics/ws-gap", json!({ "cap_records": 2 })).await.expect(201);
    let records =
        json!([{ "data": 1 }, { "data": 2 }, { "data": 3, "node": "me" }, { "data": 4, "tag": "t" }]);
    api.post("/v0/topics/ws-gap", json!({ "records": records })).await.expect(200);
    let mut socket = open(&api).await;
    socket.send(json!({ "op": "subscribe", "topic": "ws-gap", "node": "me", "include_tags": true })).await;
    socket.expect("subscribed").await;
    let gap = socket.expect("tombstone").await;
    assert_eq!((&gap["topic"], &gap["reason"]), (&json!("ws-gap"), &json!("from_seq_too_old")));
    assert_eq!(
        (&gap["gap_from"], &gap["gap_to"], &gap["missed_estimate"]),
        (&json!(1), &json!(2), &json!(2))
    );
    let frame = socket.expect("record").await;
    assert_eq!((seqs_of(&frame), &frame["records"][0]["$tag"]), (vec![4], &json!("t")));
    assert_eq!((&frame["from_seq"], &frame["to_seq"], &frame["head_seq"]), (&json!(2), &json!(4), &json!(4)));
    socket.expect("caught_up").await;
    api.delete("/v0/topics/ws-gap").await.expect(200);
    let gone = socket.expect("topic_deleted").await;
    assert_eq!(gone, json!({ "op": "topic_deleted", "topic": "ws-gap", "head_seq": 4, "reason": "deleted" }));
    // Unlike an event stream the socket stays.
    socket.send(json!({ "op": "ping" })).await;
    socket.expect("pong").await;
}

/// C-WS-07
#[tokio::test]
async fn the_end_of_a_socket_is_told_to_both_sides() {
    let api = api().await.at(0);
    let mut socket = open(&api).await;
    socket.raw(Message::Close(Some(close_frame(4001)))).await;
    assert_eq!(socket.close_code().await, Some(4001));
    let mut socket = open(&api).await;
    socket.raw(Message::Close(None)).await;
    assert_eq!(socket.close_code().await, None);
    // All of it is sent before the answer is read.
    let mut socket = open(&api).await;
    socket.raw(Message::text("x".repeat((8 << 20) + 1))).await;
    assert_eq!(socket.close_code().await, Some(1009));
    let mut socket = open(&api).await;
    socket.connection().write_all(b"\x81\x82\0\0\0\0\xff\xfe").await.expect("send a frame");
    assert_eq!(socket.close_code().await, Some(1007));
    let mut socket = open(&api).await;
    socket.connection().write_all(b"\x81\x02xx").await.expect("send a frame");
    assert_eq!(socket.close_code().await, Some(1002));
}

/// C-LIMIT-16
#[tokio::test]
async fn the_filters_of_a_socket_are_bounded_together() {
    let api = api().await;
    let name = |number: usize| format!("ws-filters-{number}");
    let topics = (0..40).map(|number| (name(number), json!({ "records": [{ "data": 1 }] })));
    api.post("/v0/append", json!({ "topics": topics.collect::<serde_json::Map<_, _>>() })).await.expect(201);
    let mut socket = open(&api).await;
    // Each is small enough alone.
    let filter = json!(["tag", "In", (0..64).map(|number| format!("{number:01000}")).collect::<Vec<_>>()]);
    let mut followed = 0;
    for number in 0..40 {
        socket.send(json!({ "op": "subscribe", "topic": name(number), "filter": filter })).await;
        let answer = loop {
            let message = socket.next().await.expect("the socket goes on");
            if matches!(message["op"].as_str(), Some("subscribed" | "error")) {
                break message;
            }
        };
        followed += (answer["op"] == "subscribed") as usize;
        if answer["op"] == "error" {
            assert_eq!(answer["code"], "invalid_request", "{answer}");
        }
    }
    assert!((10..35).contains(&followed), "{followed}");
    socket.send(json!({ "op": "unsubscribe", "topic": name(0) })).await;
    socket.send(json!({ "op": "subscribe", "topic": name(39), "filter": filter })).await;
    while socket.next().await.expect("the socket goes on")["op"] != "subscribed" {}
}

/// C-WS-06
#[tokio::test]
async fn pings_are_answered_and_a_shutdown_is_told() {
    let mut cluster = Cluster::start_with(1, &[]).await;
    let api = Api { urls: cluster.urls(), http: client(), key: None };
    api.write("t", 1).await.expect(201);
    let mut socket = open(&api).await;
    socket.raw(Message::Ping(vec![1; 5].into())).await;
    assert_eq!(socket.next().await, Some(json!({ "pong of": 5 })));
    let made = api.post("/v0/watch", json!({ "topics": { "t": { "tail": true } } })).await.expect(200);
    let mut stream = crate::events::events(&api, made["stream_url"].as_str().expect("a path"), &[]).await;
    stream.expect("caught-up").await;
    let ending = cluster.members[0].terminate();
    let told = async {
        // Section 17.4
        let error = stream.expect("error").await;
        assert_eq!((&error.data["code"], error.id.as_str()), (&json!(503), ""));
        assert!(error.data["retry_after_ms"].is_u64());
        assert_eq!(stream.event().await, None);
        assert_eq!(socket.expect("error").await["code"], "shutting_down");
        assert_eq!(socket.next().await, None);
    };
    let (status, ()) = tokio::join!(ending, told);
    assert!(status.success());
}

/// C-WATCH-19, C-WATCH-21 and section 17.4 for sockets
#[tokio::test]
async fn a_socket_that_takes_nothing_is_closed_and_holds_nobody_up() {
    let cluster = Cluster::start_with(1, &["--slow-reader-ms", "1000"]).await;
    let api = Api { urls: cluster.urls(), http: client(), key: None };
    api.put("/v0/topics/t", json!({})).await.expect(201);
    let mut stuck = socket_over(&api, narrow_connection(&api).await).await.expect("a socket");
    let mut quick = open(&api).await;
    for socket in [&mut stuck, &mut quick] {
        socket.send(json!({ "op": "subscribe", "topic": "t" })).await;
        socket.expect("subscribed").await;
        socket.expect("caught_up").await;
    }
    let records: Vec<Value> = (0..8).map(|_| json!({ "data": "x".repeat((1 << 20) - 2) })).collect();
    let mut read = Vec::new();
    for round in 1..=3u64 {
        let start = Instant::now();
        api.post("/v0/topics/t", json!({ "records": records })).await.expect(200);
        while read.len() < 8 * round as usize {
            let message = quick.next().await.expect("the quick one goes on");
            if message["op"] == "record" {
                read.extend(seqs_of(&message));
            }
        }
        assert!(start.elapsed() < PATIENCE / 3, "{:?}", start.elapsed());
    }
    assert_eq!(read, (1..=24).collect::<Vec<u64>>());
    // Before its connection would be cut, 10 s later.
    let limit = Duration::from_secs(8);
    eventually("the stuck one is closed", limit, async || (stream_count(&api).await == 1).then_some(()))
        .await;
    let mut before_the_end = Vec::new();
    while let Some(message) = stuck.next().await {
        before_the_end.extend(seqs_of(&message));
    }
    assert!(before_the_end.len() < 24, "not everything fits into sockets and buffers");
    // The quick one is there still.
    quick.send(json!({ "op": "ping" })).await;
    while quick.next().await.expect("the quick one goes on")["op"] != "pong" {}
}

/// C-WATCH-21: what a socket proposes is brought to its end, and gives back what all commands of the member need, while the
/// socket waits for its reader.
#[tokio::test]
async fn a_publish_does_not_wait_for_the_reader_of_its_socket() {
    let cluster = Cluster::start(1).await;
    let api = Api { urls: cluster.urls(), http: client(), key: None };
    let records: Vec<Value> = (0..8).map(|_| json!({ "data": "x".repeat((1 << 20) - 2) })).collect();
    api.post("/v0/topics/t", json!({ "records": records })).await.expect(201);
    let mut stuck = socket_over(&api, narrow_connection(&api).await).await.expect("a socket");
    let subscribe = json!({ "op": "subscribe", "topic": "t", "from_seq": 0, "max_batch_bytes": 8 << 20 });
    let publish = json!({ "op": "publish", "topic": "made", "records": [{ "data": 1 }] });
    stuck.send_together([subscribe, publish]).await;
    // That is told once its outcome is known. The socket would be closed after 30 s.
    eventually("the publish has come to its end", PATIENCE / 3, async || {
        cluster.members[0].log().contains("made topic \"made\" by an append").then_some(())
    })
    .await;
    let mut is_acked = false;
    let mut seqs = Vec::new();
    while !is_acked || seqs.len() < 8 {
        let message = stuck.next().await.expect("the socket is open still");
        is_acked |= message["op"] == "ack";
        if message["op"] == "record" {
            seqs.extend(seqs_of(&message));
        }
    }
    assert_eq!(seqs, (1..=8).collect::<Vec<u64>>());
}
