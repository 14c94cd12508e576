//! Section 8.3: one append to several topics.

use serde_json::{Value, json};

use crate::shared::{Api, Got, api};

async fn append(api: &Api, topics: Value) -> Got {
    api.post("/v0/append", json!({ "topics": topics })).await
}

fn records(count: usize) -> Value {
    json!({ "records": (0..count).map(|at| json!({ "data": at })).collect::<Vec<_>>() })
}

/// C-APPEND-01, C-APPEND-04
#[tokio::test]
async fn all_topics_get_their_records_at_once() {
    let api = api().await;
    let answer = append(&api, json!({ "many-b": records(1), "many-a": records(2) })).await.expect(201);
    let of = |first: u64, last: u64, created: bool| {
        json!({ "first_seq": first, "last_seq": last, "seqs": (first..=last).collect::<Vec<u64>>(),
                "head_seq": last, "count": last - first + 1, "created": created, "deduped": false })
    };
    assert_eq!(answer["topics"], json!({ "many-a": of(1, 2, true), "many-b": of(1, 1, true) }));
    let answer = append(&api, json!({ "many-b": records(1), "many-a": records(3) })).await.expect(200);
    assert_eq!(answer["topics"], json!({ "many-a": of(3, 5, false), "many-b": of(2, 2, false) }));
    let answer = append(&api, json!({ "many-b": records(1), "many-c": records(1) })).await.expect(201);
    assert_eq!(answer["topics"]["many-b"]["created"], false);
    let body = json!({ "topics": { "many-b": records(1) } });
    let answer = api.post("/v0/append?return_seqs=false", body).await.expect(200);
    assert!(answer["topics"]["many-b"].get("seqs").is_none());

    let mixed = json!({ "node": "top", "topics": {
        "many-x": { "records": [{ "data": {"b": 1.50, "a": 1} }, { "data": 2, "node": "own", "tag": "t" }] },
        "many-y": { "records": [{ "data": "y" }], "node": "entry" } } });
    api.post("/v0/append", mixed).await.expect(201);
    let page = async |topic: &str| {
        api.diff(topic, json!({ "include_tags": true })).await.expect(200)["records"].clone()
    };
    let (x, y) = (page("many-x").await, page("many-y").await);
    assert_eq!((&x[0]["$node"], &x[0]["data"]), (&json!("top"), &json!({ "a": 1, "b": 1.5 })));
    assert_eq!((&x[1]["$node"], &x[1]["$tag"], &x[1]["data"]), (&json!("own"), &json!("t"), &json!(2)));
    assert_eq!((&y[0]["$node"], &y[0]["data"]), (&json!("entry"), &json!("y")));
    assert!(x[0]["$ts"] == x[1]["$ts"] && x[0]["$ts"] == y[0]["$ts"], "one time for all: {x} {y}");
}

/// C-APPEND-02
#[tokio::test]
async fn who_sees_the_records_in_one_topic_sees_them_in_all() {
    let api = api().await;
    append(&api, json!({ "both-a": records(1), "both-b": records(1) })).await.expect(201);
    let writer = {
        let api = api.clone();
        tokio::spawn(async move {
            for _ in 0..60 {
                append(&api, json!({ "both-a": records(1), "both-b": records(1) })).await.expect(200);
            }
        })
    };
    let head = async |topic: &str| api.topic(topic).await.expect(200)["head_seq"].as_u64().expect("a seq");
    while !writer.is_finished() {
        let (a, b) = (head("both-a").await, head("both-b").await);
        assert!(b >= a, "both-a was at {a}, and after that both-b at {b}");
        let (b, a) = (head("both-b").await, head("both-a").await);
        assert!(a >= b, "both-b was at {b}, and after that both-a at {a}");
    }
    writer.await.expect("all appends were acked");
    assert_eq!((head("both-a").await, head("both-b").await), (61, 61));
}

/// C-APPEND-03
#[tokio::test]
async fn one_entry_that_fails_fails_all_and_is_named() {
    let api = api().await;
    api.write("fails-head", 2).await.expect(201);
    for (bad, entry, status, code) in [
        ("fails-none", json!({ "records": [{ "data": 1 }], "create": false }), 404, "topic_not_found"),
        ("fails-head", json!({ "records": [{ "data": 1 }], "expect_head_seq": 1 }), 409, "head_mismatch"),
        ("fails-shape", json!({ "records": [] }), 400, "invalid_request"),
        (
            "fails-config",
            json!({ "records": [{ "data": 1 }], "config": { "typo": 1 } }),
            400,
            "invalid_request",
        ),
        ("fails-size", json!({ "records": [{ "data": "x".repeat(1 << 20) }] }), 400, "record_too_large"),
        ("no name", records(1), 400, "invalid_request"),
    ] {
        let topics = json!({ "fails-good": records(1), bad: entry, "fails-later": records(1) });
        let detail = append(&api, topics).await.refused(status, code);
        assert_eq!(detail["topic"], bad, "{detail}");
    }
    for none in ["fails-good", "fails-later", "fails-none"] {
        api.topic(none).await.refused(404, "topic_not_found");
    }
    let detail =
        append(&api, json!({ "fails-head": { "records": [{ "data": 1 }], "expect_head_seq": 9 } })).await;
    assert_eq!(detail.refused(409, "head_mismatch"), json!({ "topic": "fails-head", "head_seq": 2 }));
}

/// C-APPEND-06
#[tokio::test]
async fn keys_are_known_all_or_none() {
    let api = api().await;
    let send = async |body: Value| api.post("/v0/append", body).await;
    let both = || json!({ "idempotency_key": "k", "topics": { "keys-a": records(1), "keys-b": records(2) } });
    let first = send(both()).await.expect(201);
    api.write("keys-a", 3).await.expect(200);
    let again = send(both()).await.expect(200);
    for topic in ["keys-a", "keys-b"] {
        assert_eq!(again["topics"][topic]["seqs"], first["topics"][topic]["seqs"]);
        assert_eq!(
            (&again["topics"][topic]["deduped"], &again["topics"][topic]["created"]),
            (&json!(true), &json!(false))
        );
    }
    let partly = json!({ "idempotency_key": "k",
        "topics": { "keys-b": records(1), "keys-c": records(1), "keys-a": records(1) } });
    let detail = send(partly).await.refused(409, "idempotency_conflict");
    let mut known: Vec<&str> =
        detail["topics"].as_array().expect("an array").iter().filter_map(Value::as_str).collect();
    known.sort_unstable();
    assert_eq!(known, ["keys-a", "keys-b"]);
    api.topic("keys-c").await.refused(404, "topic_not_found");
    // A key of an entry wins; an entry without one is not known.
    let mut own = json!({ "idempotency_key": "k", "topics": { "keys-a": records(1), "keys-b": records(1) } });
    own["topics"]["keys-a"]["idempotency_key"] = json!("own-a");
    send(own.clone()).await.refused(409, "idempotency_conflict");
    own["topics"]["keys-b"]["idempotency_key"] = json!("own-b");
    assert_eq!(send(own.clone()).await.expect(200)["topics"]["keys-a"]["deduped"], false);
    assert_eq!(send(own).await.expect(200)["topics"]["keys-b"]["deduped"], true);
    // What one append remembers, a write to one topic knows too.
    let single = json!({ "records": [{ "data": 1 }], "idempotency_key": "own-a" });
    assert_eq!(api.post("/v0/topics/keys-a", single).await.expect(200)["deduped"], true);
}

/// C-APPEND-07
#[tokio::test]
async fn the_strongest_class_says_what_is_waited_for() {
    let api = api().await;
    api.put("/v0/topics/class-fsync", json!({ "durability": "fsync" })).await.expect(201);
    let fsync_ms = async |topics: Value| {
        append(&api, topics).await.body["performance"]["fsync_ms"].as_f64().expect("a number")
    };
    assert_eq!(fsync_ms(json!({ "class-disk": records(1) })).await, 0.0);
    assert!(fsync_ms(json!({ "class-disk": records(1), "class-fsync": records(1) })).await > 0.0);
}

/// C-APPEND-03 with the caps of section 11: each topic keeps its own, and one that rejects refuses all.
#[tokio::test]
async fn each_topic_keeps_its_caps() {
    let api = api().await;
    api.put("/v0/topics/capped-old", json!({ "cap_records": 2 })).await.expect(201);
    api.put("/v0/topics/capped-reject", json!({ "cap_records": 3, "discard": "reject" })).await.expect(201);
    let both = || json!({ "capped-old": records(2), "capped-reject": records(2) });
    append(&api, both()).await.expect(200);
    let detail = append(&api, both()).await.refused(422, "topic_full");
    assert_eq!((&detail["topic"], &detail["head_seq"]), (&json!("capped-reject"), &json!(2)));
    let too_many = json!({ "capped-old": records(1), "capped-reject": records(4) });
    let detail = append(&api, too_many).await.refused(400, "record_too_large");
    assert_eq!(detail["topic"], "capped-reject");
    assert_eq!(api.topic("capped-old").await.expect(200)["head_seq"], 2);
    append(&api, json!({ "capped-old": records(3), "capped-reject": records(1) })).await.expect(200);
    let state = api.topic("capped-old").await.expect(200);
    assert_eq!(
        (&state["head_seq"], &state["earliest_seq"], &state["count"]),
        (&json!(5), &json!(4), &json!(2))
    );
    assert_eq!(api.topic("capped-reject").await.expect(200)["count"], 3);
}
