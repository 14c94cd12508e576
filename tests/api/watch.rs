//! Section 17: watch. Caps are in `limits`, what happens when members are lost in `tests/cluster`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::events::{Events, events, narrow_connection, quiet, seqs_of, stream_count};
use crate::harness::{Cluster, PATIENCE, eventually};
use crate::shared::{Api, api, client, got};

/// Makes a session and gives its `stream_url`.
pub async fn session(api: &Api, body: Value) -> String {
    let made = api.post("/v0/watch", body).await.expect(200);
    made["stream_url"].as_str().expect("a path").to_owned()
}

pub async fn watch(api: &Api, body: Value) -> Events {
    events(api, &session(api, body).await, &[]).await
}

/// The cursors in an id.
pub fn cursors(id: &str) -> BTreeMap<String, u64> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bits: Vec<bool> = Vec::new();
    for letter in id.bytes() {
        let value = LETTERS.iter().position(|it| *it == letter).expect("base64url without padding");
        bits.extend((0..6).rev().map(|bit| value >> bit & 1 == 1));
    }
    let bytes = bits.chunks_exact(8).map(|byte| byte.iter().fold(0u8, |sum, bit| sum << 1 | u8::from(*bit)));
    serde_json::from_slice(&bytes.collect::<Vec<u8>>()).expect("a map of cursors")
}

/// C-WATCH-01, C-WATCH-03, C-EPOCH-01
#[tokio::test]
async fn a_session_tells_where_each_topic_starts() {
    let api = api().await;
    api.write("watch-make", 5).await.expect(201);
    api.write("watch-tail", 3).await.expect(201);
    let topics = json!({ "watch-make": { "from_seq": 2 }, "watch-tail": { "tail": true, "from_seq": 1 } });
    let made = api.post("/v0/watch", json!({ "topics": topics })).await.expect(200);
    let wid = made["wid"].as_str().expect("an id");
    assert!(wid.starts_with("wid_") && wid.rsplit('.').next().is_some_and(|random| random.len() >= 22));
    assert!(wid.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)), "{wid}");
    assert_eq!(made["stream_url"], format!("/v0/watch/{wid}"));
    assert_eq!(made["session_ttl_ms"], 300_000);
    let epoch = &api.topic("watch-make").await.expect(200)["epoch"];
    let expected = json!({ "from_seq": 2, "head_seq": 5, "earliest_seq": 1, "epoch": epoch });
    assert_eq!(made["topics"]["watch-make"], expected);
    assert_eq!(made["topics"]["watch-tail"]["from_seq"], 3);
    let unknown = json!({ "topics": { "watch-make": {}, "watch-none": {} } });
    let detail = api.post("/v0/watch", unknown.clone()).await.refused(404, "topic_not_found");
    assert_eq!(detail["topic"], "watch-none");
    let made = api.post("/v0/watch?lenient=true", unknown).await.expect(200);
    assert_eq!(made["topics"].as_object().map(|topics| topics.len()), Some(1));
    // C-LIMIT-16: a session of nothing would only take a place.
    let none = json!({ "topics": { "watch-none": {}, "watch-none-2": {} } });
    api.post("/v0/watch?lenient=true", none).await.refused(404, "topic_not_found");
    // C-EPOCH-07
    let later = json!({ "topics": { "watch-make": { "epoch": u64::MAX } } });
    api.post("/v0/watch", later).await.refused(400, "invalid_request");
}

/// C-WATCH-02
#[tokio::test]
async fn a_watch_has_1_to_256_topics() {
    let api = api().await;
    let topics = |count: usize| -> Value {
        let topics = (0..count).map(|number| (format!("watch-many-{number}"), json!({})));
        json!({ "topics": topics.collect::<serde_json::Map<String, Value>>() })
    };
    for count in [0, 257] {
        api.post("/v0/watch", topics(count)).await.refused(400, "invalid_request");
    }
    api.post("/v0/watch", json!({})).await.refused(400, "invalid_request");
    api.write("watch-many-255", 1).await.expect(201);
    api.post("/v0/watch?lenient=1", topics(256)).await.expect(200);
    // C-LIMIT-16
    let filter = json!(["tag", "In", vec!["x".repeat(1000); 64]]);
    let filtered = |count: usize| {
        let topics =
            (0..count).map(|number| (format!("watch-many-{}", 255 - number), json!({ "filter": filter })));
        json!({ "topics": topics.collect::<serde_json::Map<String, Value>>() })
    };
    api.post("/v0/watch?lenient=1", filtered(1)).await.expect(200);
    api.post("/v0/watch?lenient=1", filtered(2)).await.refused(400, "invalid_request");
}

/// C-WATCH-09, C-WATCH-13
#[tokio::test]
async fn the_largest_watch_goes_on_from_its_last_id() {
    let api = api().await;
    let name = |number: usize| format!("{:x<255}", format!("watch-largest-{number}-"));
    for first in (0..256).step_by(64) {
        let topics = (first..first + 64).map(|number| (name(number), json!({ "records": [{ "data": 1 }] })));
        let topics = topics.collect::<serde_json::Map<String, Value>>();
        api.post("/v0/append", json!({ "topics": topics })).await.expect(201);
    }
    let topics = (0..256).map(|number| (name(number), json!({}))).collect::<serde_json::Map<String, Value>>();
    let body = json!({ "topics": topics });
    let mut stream = watch(&api, body.clone()).await;
    let mut id = String::new();
    for _ in 0..256 {
        let record = stream.expect_among("record", "caught-up").await;
        assert!(record.id.len() <= 4 << 10, "{}", record.id.len());
        id = record.id;
    }
    drop(stream);
    // Another session, at another member, that begins at the beginning: an id only rewinds, so with it nothing is
    // told a second time only if the session was told so far itself.
    api.write(&name(7), 1).await.expect(200);
    let url = session(&api, body).await;
    let mut first = events(&api, &url, &[]).await;
    for _ in 0..256 {
        first.expect_among("record", "caught-up").await;
    }
    drop(first);
    let mut again = events(&api, &url, &[("last-event-id", &id)]).await;
    let record = again.expect_among("record", "caught-up").await;
    assert_eq!((seqs_of(&record.data), &record.data["topic"]), (vec![2], &json!(name(7))));
}

/// C-CONV-20, C-WATCH-10
#[tokio::test]
async fn asking_about_a_stream_does_not_take_it_over() {
    let api = api().await;
    api.write("watch-head", 1).await.expect(201);
    let url = session(&api, json!({ "topics": { "watch-head": {} } })).await;
    let mut stream = events(&api, &url, &[]).await;
    stream.expect("record").await;
    stream.expect("caught-up").await;
    for path in [url.as_str(), "/v0/ws"] {
        let head = got(format!("HEAD {path}"), api.request("HEAD", path)).await;
        assert_eq!((head.status, head.header("allow")), (405, Some("GET")), "{path}");
    }
    api.write("watch-head", 1).await.expect(200);
    stream.expect("record").await;
}

/// C-WATCH-12, C-WATCH-13, C-WATCH-15
#[tokio::test]
async fn a_stream_brings_what_is_stored_and_then_what_comes() {
    let api = api().await;
    api.write("watch-stream", 5).await.expect(201);
    api.write("watch-other", 1).await.expect(201);
    for member in 0..3 {
        let api = api.at(member);
        let head = 5 + member as u64;
        let body =
            json!({ "topics": { "watch-stream": { "from_seq": 3 }, "watch-other": { "tail": true } } });
        let mut stream = watch(&api, body).await;
        assert_eq!(stream.header("cache-control"), Some("no-store"));
        assert_eq!(stream.header("x-accel-buffering"), Some("no"));
        let retry = stream.next().await.expect("a frame");
        assert_eq!((retry.name.as_str(), retry.text.as_str()), ("retry", "2000"));
        let heartbeat = stream.next().await.expect("a frame");
        assert!(heartbeat.name == ":" && heartbeat.text.starts_with("hb ") && heartbeat.id.is_empty());
        let (mut records, mut caught_up) = (None, Vec::new());
        while caught_up.len() < 2 {
            let event = stream.event().await.expect("the stream goes on");
            match event.name.as_str() {
                "record" => records = Some(event),
                "caught-up" => caught_up.push(event.data["topic"].as_str().expect("a name").to_owned()),
                other => panic!("{other}"),
            }
        }
        caught_up.sort();
        assert_eq!(caught_up, ["watch-other", "watch-stream"]);
        let records = records.expect("records came first");
        assert_eq!(seqs_of(&records.data), (4..=head).collect::<Vec<u64>>());
        let place = (&records.data["from_seq"], &records.data["to_seq"], &records.data["head_seq"]);
        assert_eq!(place, (&json!(3), &json!(head), &json!(head)));
        let expected = BTreeMap::from([("watch-stream".into(), head), ("watch-other".into(), 1)]);
        assert_eq!(cursors(&records.id), expected);
        // Live now; written through another member.
        api.write("watch-stream", 1).await.expect(200);
        let live = stream.expect("record").await;
        assert_eq!(live.data["records"][0]["$seq"], head + 1);
        assert_eq!(live.data["from_seq"], head);
    }
}

/// C-WATCH-18: from the ack to the watcher, at each member.
#[tokio::test]
async fn a_record_is_with_its_watchers_within_fifty_milliseconds_at_the_median() {
    let api = api().await;
    api.write("watch-soon", 1).await.expect(201);
    for member in 0..3 {
        let mut stream = watch(&api.at(member), json!({ "topics": { "watch-soon": {} } })).await;
        stream.expect("record").await;
        stream.expect("caught-up").await;
        let mut delays = Vec::new();
        for _ in 0..41 {
            api.write("watch-soon", 1).await.expect(200);
            let acked = Instant::now();
            stream.expect("record").await;
            delays.push(acked.elapsed());
        }
        assert!(*delays.select_nth_unstable(20).1 <= Duration::from_millis(50), "m{}", member + 1);
    }
}

/// C-WATCH-09, C-WATCH-11
#[tokio::test]
async fn an_id_rewinds_a_session_and_never_advances_it() {
    let api = api().await;
    api.write("watch-rewind", 4).await.expect(201);
    let url = session(&api, json!({ "topics": { "watch-rewind": { "from_seq": 1 } }, "limit": 1 })).await;
    let mut stream = events(&api, &url, &[]).await;
    let first = stream.expect("record").await;
    assert_eq!(stream.seqs_up_to("watch-rewind", 4).await, [3, 4]);
    drop(stream);
    // Nothing said: on from where the session was.
    let mut stream = events(&api, &url, &[]).await;
    stream.expect("caught-up").await;
    drop(stream);
    let mut stream = events(&api, &url, &[("last-event-id", &first.id)]).await;
    assert_eq!(stream.seqs_up_to("watch-rewind", 4).await, [3, 4]);
    let last = stream.expect("caught-up").await.id;
    drop(stream);
    let mut stream = events(&api, &format!("{url}?cursor={}", first.id), &[]).await;
    assert_eq!(stream.expect("record").await.data["records"][0]["$seq"], 3);
    drop(stream);
    // A session is where it is, whatever the client claims: each of these is new, and nobody has read of it.
    for claim in [last.as_str(), "", "7", "not an id"] {
        let url = session(&api, json!({ "topics": { "watch-rewind": { "from_seq": 1 } }, "limit": 1 })).await;
        let mut stream = events(&api, &url, &[("last-event-id", claim)]).await;
        assert_eq!(stream.expect("record").await.data["records"][0]["$seq"], 2, "{claim:?}");
    }
}

/// C-WATCH-11, C-GAP-10
#[tokio::test]
async fn who_lost_the_frame_that_says_recreated_is_told_again() {
    let api = api().await;
    for (topic, priority) in [("watch-told", 1000), ("watch-untold", -1000)] {
        api.put(&format!("/v0/topics/{topic}"), json!({ "priority": priority })).await.expect(201);
        api.write(topic, 2).await.expect(200);
    }
    let topics = json!({ "watch-told": {}, "watch-untold": { "from_seq": 50 } });
    let url = session(&api, json!({ "topics": topics })).await;
    let mut stream = events(&api, &url, &[]).await;
    let before = stream.expect("record").await;
    assert_eq!(before.data["topic"], "watch-told");
    let told = stream.expect_among("tombstone", "caught-up").await;
    assert_eq!(told.data["reason"], "recreated");
    drop(stream);
    let mut stream = events(&api, &url, &[("last-event-id", &before.id)]).await;
    assert_eq!(stream.expect_among("tombstone", "caught-up").await.data, told.data);
    drop(stream);
    let mut stream = events(&api, &url, &[("last-event-id", &told.id)]).await;
    while let Some(event) = stream.event().await {
        assert_ne!(event.name, "tombstone", "it was told");
        if event.name == "caught-up" && event.data["topic"] == "watch-untold" {
            break;
        }
    }
}

/// C-WATCH-06, C-AUTH-17
#[tokio::test]
async fn the_key_that_made_a_session_opens_it() {
    let api = api().await;
    api.write("watch-key", 1).await.expect(201);
    let url = session(&api.with_key("reader"), json!({ "topics": { "watch-key": {} } })).await;
    for key in [None, Some("nobody"), Some("all")] {
        api.with_key(key).get(&url).await.refused(401, "unauthorized");
    }
    let with_token = |token: &str| format!("{url}?x=1&token={token}&token=all");
    for unknown in ["all", "%ff", ""] {
        api.with_key(None).get(&with_token(unknown)).await.refused(401, "unauthorized");
    }
    // A header wins.
    api.with_key("all").get(&with_token("reader")).await.refused(401, "unauthorized");
    let mut stream = events(&api.with_key(None), &with_token("r%65ader"), &[]).await;
    stream.expect("record").await;
    let mut stream = events(&api.with_key("reader"), &with_token("all"), &[]).await;
    stream.event().await.expect("the header wins");
    api.with_key(None).get("/v0/topics?token=all").await.refused(401, "unauthorized");
    // C-AUTH-13
    api.with_key("writer")
        .post("/v0/watch", json!({ "topics": { "watch-key": {} } }))
        .await
        .refused(403, "forbidden");
    api.with_key("bound")
        .post("/v0/watch", json!({ "topics": { "watch-key": {} } }))
        .await
        .refused(403, "forbidden");
}

/// C-WATCH-07, C-WATCH-08
#[tokio::test]
async fn a_stream_is_for_who_takes_events_and_knows_a_session() {
    let api = api().await;
    api.write("watch-accept", 1).await.expect(201);
    let url = session(&api, json!({ "topics": { "watch-accept": {} } })).await;
    let json_only = api.request("GET", &url).header("accept", "application/json");
    got("json".into(), json_only).await.refused(406, "not_acceptable");
    for accept in ["text/event-stream", "application/json, */*;q=0.1"] {
        events(&api, &url, &[("accept", accept)]).await.event().await.expect("an event");
    }
    for wid in ["wid_m1.AAAAAAAAAAAAAAAAAAAAAA", "wid_m9.AAAAAAAAAAAAAAAAAAAAAA", "wid_m1", "x"] {
        api.get(&format!("/v0/watch/{wid}")).await.refused(404, "not_found");
    }
}

/// An older stream is told that another one has its session, and to stay away: what connects again by itself
/// would take the session back, and so would the other one.
async fn has_lost_its_session(stream: &mut Events) {
    let retry = stream.next().await.expect("a frame");
    assert_eq!(retry.name, "retry", "{retry:?}");
    assert!(retry.text.parse::<u64>().is_ok_and(|retry_ms| retry_ms >= 3_600_000), "{retry:?}");
    // Section 17.4
    let error = stream.expect("error").await;
    assert_eq!((&error.data["code"], error.id.as_str()), (&json!(410), ""));
    assert_eq!(stream.event().await, None, "the older stream is closed");
}

/// C-WATCH-10
#[tokio::test]
async fn a_second_stream_of_a_session_closes_the_first() {
    let api = api().await;
    api.write("watch-two", 1).await.expect(201);
    let url = session(&api, json!({ "topics": { "watch-two": {} } })).await;
    let mut first = events(&api.at(0), &url, &[]).await;
    first.expect("record").await;
    first.expect("caught-up").await;
    let mut second = events(&api.at(0), &url, &[]).await;
    has_lost_its_session(&mut first).await;
    // Who takes over is told to come back soon, as ever.
    assert_eq!(second.next().await.map(|retry| retry.text).as_deref(), Some("2000"));
    second.expect("caught-up").await;
    api.write("watch-two", 1).await.expect(200);
    assert_eq!(seqs_of(&second.expect("record").await.data), [2]);
}

/// C-WATCH-05, C-WATCH-10
#[tokio::test]
async fn any_member_takes_a_session_over() {
    let api = api().await;
    api.write("watch-move", 1).await.expect(201);
    let url = session(&api.at(0), json!({ "topics": { "watch-move": {} } })).await;
    let mut stream = events(&api.at(0), &url, &[]).await;
    assert_eq!(seqs_of(&stream.expect("record").await.data), [1]);
    stream.expect("caught-up").await;
    // From the maker to others and back; the later ways go over what the maker remembers.
    for (member, seq) in [1, 2, 0, 2, 1].into_iter().zip(2..) {
        api.at(member).with_key("reader").get(&url).await.refused(401, "unauthorized");
        let mut next = events(&api.at(member), &url, &[]).await;
        has_lost_its_session(&mut stream).await;
        // The cursor has come along.
        next.expect("caught-up").await;
        api.write("watch-move", 1).await.expect(200);
        assert_eq!(seqs_of(&next.expect("record").await.data), [seq]);
        stream = next;
    }
}

/// C-WATCH-14, C-GAP-03, C-GAP-05, C-GAP-06
#[tokio::test]
async fn a_gap_is_told_once_with_its_range() {
    let api = api().await;
    api.put("/v0/topics/watch-gap", json!({ "cap_records": 3 })).await.expect(201);
    api.write("watch-gap", 10).await.expect(200);
    let mut stream = watch(&api, json!({ "topics": { "watch-gap": { "from_seq": 2 } } })).await;
    let gap = stream.expect("tombstone").await;
    let expected = json!({
        "topic": "watch-gap", "reason": "from_seq_too_old", "gap_from": 3, "gap_to": 7,
        "missed_estimate": 5, "earliest_seq": 8, "head_seq": 10
    });
    assert_eq!(gap.data, expected);
    assert_eq!(cursors(&gap.id)["watch-gap"], 7);
    assert_eq!(stream.seqs_up_to("watch-gap", 10).await, [8, 9, 10]);
}

/// C-GAP-10, C-EPOCH-02, C-EPOCH-03, C-EPOCH-04, C-EPOCH-06
#[tokio::test]
async fn a_cursor_of_an_earlier_instance_is_told_so() {
    let api = api().await;
    api.write("watch-again", 9).await.expect(201);
    let epoch = api.topic("watch-again").await.expect(200)["epoch"].clone();
    api.delete("/v0/topics/watch-again").await.expect(200);
    api.write("watch-again", 2).await.expect(201);
    for start in [json!({ "from_seq": 9 }), json!({ "from_seq": 1, "epoch": epoch })] {
        let mut stream = watch(&api, json!({ "topics": { "watch-again": start } })).await;
        let gap = stream.expect("tombstone").await;
        let range = (&gap.data["reason"], &gap.data["gap_from"], &gap.data["gap_to"]);
        assert_eq!(range, (&json!("recreated"), &json!(1), &json!(2)));
        assert_eq!(stream.seqs_up_to("watch-again", 2).await, [1, 2]);
    }
}

/// C-WATCH-16, C-WATCH-17
#[tokio::test]
async fn a_deleted_topic_ends_and_with_the_last_one_the_stream() {
    let api = api().await;
    api.write("watch-gone-a", 2).await.expect(201);
    api.write("watch-gone-b", 1).await.expect(201);
    let topics = json!({ "watch-gone-a": { "tail": true }, "watch-gone-b": { "tail": true } });
    let url = session(&api, json!({ "topics": topics })).await;
    let mut stream = events(&api, &url, &[]).await;
    stream.expect("caught-up").await;
    stream.expect("caught-up").await;
    api.delete("/v0/topics/watch-gone-a").await.expect(200);
    let gone = stream.expect("topic-deleted").await;
    assert_eq!(gone.data, json!({ "topic": "watch-gone-a", "head_seq": 2, "reason": "deleted" }));
    // Not followed further, also under the same name.
    api.write("watch-gone-a", 1).await.expect(201);
    api.write("watch-gone-b", 1).await.expect(200);
    assert_eq!(stream.expect("record").await.data["topic"], "watch-gone-b");
    api.delete("/v0/topics/watch-gone-b").await.expect(200);
    assert_eq!(stream.expect("topic-deleted").await.data["topic"], "watch-gone-b");
    assert_eq!(stream.event().await, None);
    // Whoever comes back is told again.
    let mut stream = events(&api, &url, &[]).await;
    stream.expect("topic-deleted").await;
    stream.expect("topic-deleted").await;
    assert_eq!(stream.event().await, None);
}

/// C-NODE-02, C-NODE-03, C-NODE-07, C-WATCH-15, and the options of section 17.1
#[tokio::test]
async fn what_is_shown_and_passed_over_is_as_asked() {
    let api = api().await;
    let records = json!([
        { "data": 1, "node": "a", "tag": "x", "meta": { "k": "v" } },
        { "data": 2, "node": "b" },
        { "data": 3, "node": "c", "tag": "y" }
    ]);
    api.post("/v0/topics/watch-shape", json!({ "records": records })).await.expect(201);
    let topics = json!({ "watch-shape": {} });
    let mut stream = watch(&api, json!({ "topics": topics, "node": ["b", "c"] })).await;
    let frame = stream.expect("record").await.data;
    assert_eq!((seqs_of(&frame), &frame["to_seq"]), (vec![1], &json!(3)));
    assert_eq!(frame["records"][0]["meta"], json!({ "k": "v" }));
    assert_eq!(frame["records"][0].get("$tag"), None);
    stream.expect("caught-up").await;
    // Passed over in silence.
    api.post("/v0/topics/watch-shape", json!({ "records": [{ "data": 4, "node": "b" }] })).await.expect(200);
    assert!(quiet(&mut stream, Duration::from_millis(300)).await);
    let shown = json!({ "topics": topics, "include_tags": true, "include_meta": false, "include_data": false, "limit": 1 });
    let mut stream = watch(&api, shown).await;
    let frame = stream.expect("record").await.data;
    let record = frame["records"][0].as_object().expect("a record");
    assert_eq!(record.keys().collect::<Vec<_>>(), ["$node", "$seq", "$tag", "$ts"]);
    assert_eq!(seqs_of(&frame), [1]);
}

/// Heartbeats of section 17.3
#[tokio::test]
async fn an_idle_stream_shows_signs_of_life() {
    let api = api().await;
    api.write("watch-idle", 1).await.expect(201);
    let mut stream =
        watch(&api, json!({ "topics": { "watch-idle": { "tail": true } }, "heartbeat_ms": 1 })).await;
    stream.expect("caught-up").await;
    let start = Instant::now();
    let heartbeat = stream.next().await.expect("a frame");
    assert!(heartbeat.name == ":" && heartbeat.text.starts_with("hb "), "{heartbeat:?}");
    assert!(start.elapsed() >= Duration::from_millis(900), "clamped to a second");
}

/// C-WATCH-19, C-WATCH-20, C-WATCH-21
#[tokio::test]
async fn a_slow_reader_holds_nobody_up_and_misses_nothing() {
    let api = api().await;
    api.put("/v0/topics/watch-slow", json!({})).await.expect(201);
    let body = json!({ "topics": { "watch-slow": {} } });
    let mut slow = watch(&api, body.clone()).await;
    let mut quick = watch(&api, body).await;
    slow.expect("caught-up").await;
    quick.expect("caught-up").await;
    let records: Vec<Value> = (0..8).map(|_| json!({ "data": "x".repeat((1 << 20) - 2) })).collect();
    let last = 8 * 6;
    let write = async |topic: &str| {
        let start = Instant::now();
        assert!(api.post(&format!("/v0/topics/{topic}"), json!({ "records": records })).await.status < 300);
        start.elapsed()
    };
    // Far more than sockets and buffers hold, each beside as much to a topic that nobody follows.
    let (mut followed, mut alone) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..6 {
        followed += write("watch-slow").await;
        alone += write("watch-slow-alone").await;
    }
    assert!(followed <= 3 * alone + Duration::from_secs(1), "{followed:?} and {alone:?}");
    assert_eq!(quick.seqs_up_to("watch-slow", last).await, (1..=last).collect::<Vec<u64>>());
    assert_eq!(slow.seqs_up_to("watch-slow", last).await, (1..=last).collect::<Vec<u64>>());
}

/// C-WATCH-04, C-WATCH-08, C-LIMIT-06, C-LIMIT-07, C-LIMIT-08
#[tokio::test]
async fn sessions_and_streams_have_caps_and_end() {
    let arguments = [
        "--api-keys",
        "all,other",
        "--max-watch-sessions",
        "2",
        "--watch-session-ttl-ms",
        "1500",
        "--max-sse-connections",
        "3",
        "--max-sse-connections-per-key",
        "2",
    ];
    let cluster = Cluster::start_with(1, &arguments).await;
    let api = Api { urls: cluster.urls(), http: client(), key: Some("all") };
    api.write("t", 1).await.expect(201);
    let body = json!({ "topics": { "t": {} }, "heartbeat_ms": 1000 });
    let url = session(&api, body.clone()).await;
    let mut held = events(&api, &url, &[]).await;
    held.expect("record").await;
    let idle = session(&api, body.clone()).await;
    let detail = api.post("/v0/watch", body.clone()).await.refused(429, "throttled");
    assert_eq!(detail, json!({ "limit": "max_watch_sessions", "max": 2 }));
    // The idle one is reclaimed, the open one is not.
    let other = api.with_key("other");
    let made = eventually("a place", Duration::from_secs(10), async || {
        let answer = other.post("/v0/watch", body.clone()).await;
        (answer.status == 200).then(|| answer.body["stream_url"].as_str().map(str::to_owned)).flatten()
    })
    .await;
    api.get(&idle).await.refused(404, "not_found");
    api.write("t", 1).await.expect(200);
    assert_eq!(held.seqs_up_to("t", 2).await, [2]);
    // Two streams of one key at most: an older stream keeps its place until it has ended.
    let socket = crate::events::socket(&api).await.expect("the second stream");
    let detail = api.get(&url).await.refused(429, "throttled");
    assert_eq!(detail, json!({ "limit": "max_sse_connections_per_key", "max": 2 }));
    let third = events(&other, &made, &[]).await;
    let detail = other.get(&made).await.refused(429, "throttled");
    assert_eq!(detail, json!({ "limit": "max_sse_connections", "max": 3 }));
    let text = String::from_utf8(api.get("/v0/metrics").await.bytes).expect("text");
    assert!(
        text.contains("antiphon_sse_connections 3") && text.contains("antiphon_watch_sessions 2"),
        "{text}"
    );
    drop((socket, third));
    eventually("places are given back", Duration::from_secs(10), async || {
        let text = String::from_utf8(api.get("/v0/metrics").await.bytes).expect("text");
        text.contains("antiphon_sse_connections 1").then_some(())
    })
    .await;
}

/// Section 17.4: 408
#[tokio::test]
async fn a_reader_that_takes_nothing_is_told_so_and_its_session_stays() {
    let cluster = Cluster::start_with(1, &["--slow-reader-ms", "1000"]).await;
    let api = Api { urls: cluster.urls(), http: client(), key: None };
    api.put("/v0/topics/t", json!({})).await.expect(201);
    let url = session(&api, json!({ "topics": { "t": {} } })).await;
    let mut stuck = narrow_connection(&api).await;
    let head = format!("GET {url} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stuck.write_all(head.as_bytes()).await.expect("send a request");
    let records: Vec<Value> = (0..8).map(|_| json!({ "data": "x".repeat((1 << 20) - 2) })).collect();
    for _ in 0..2 {
        api.post("/v0/topics/t", json!({ "records": records })).await.expect(200);
    }
    eventually("the stream ends", PATIENCE, async || (stream_count(&api).await == 0).then_some(())).await;
    let mut told = Vec::new();
    let reading = tokio::time::timeout(PATIENCE, stuck.read_to_end(&mut told));
    reading.await.expect("the stream ends").expect("it ends in order");
    let told = String::from_utf8(told).expect("is text");
    let (_, error) = told.split_once("event: error\ndata: ").expect("it is told");
    assert!(error.starts_with("{\"code\":408,"), "{error}");
    let last_seq = told.rsplit("\"to_seq\":").next().and_then(|rest| rest.split(',').next());
    let last_seq: u64 = last_seq.and_then(|seq| seq.parse().ok()).expect("some records came");
    assert!(last_seq < 16, "not everything fits into sockets and buffers");
    let rest = events(&api, &url, &[]).await.seqs_up_to("t", 16).await;
    assert_eq!(rest, (last_seq + 1..=16).collect::<Vec<u64>>());
}
