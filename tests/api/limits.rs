//! Sections 5 and 23: limits, each up to its bound and above it.

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::harness::{Cluster, PATIENCE, eventually};
use crate::shared::{Api, MAX_BODY_BYTES, api, client, other};

async fn write_one(api: &Api, record: Value) -> crate::shared::Got {
    api.post("/v0/topics/limits-records", json!({ "records": [record] })).await
}

/// Section 5, C-REC-12
#[tokio::test]
async fn records_have_their_limits() {
    let api = api().await;
    let text = |bytes: usize| "x".repeat(bytes);
    let most = 1 << 20;
    assert!(write_one(&api, json!({ "data": text(most - 2) })).await.status < 300);
    write_one(&api, json!({ "data": text(most - 1) })).await.refused(400, "record_too_large");
    assert!(write_one(&api, json!({ "data": text(most - 4), "meta": {} })).await.status < 300);
    write_one(&api, json!({ "data": text(most - 3), "meta": {} })).await.refused(400, "record_too_large");
    let meta = |bytes: usize| json!({ "data": 1, "meta": { "k": text(bytes - 8) } });
    assert!(write_one(&api, meta(16 << 10)).await.status < 300);
    write_one(&api, meta((16 << 10) + 1)).await.refused(400, "invalid_request");
    let keys = |count: usize| -> Value {
        let fields: serde_json::Map<String, Value> =
            (0..count).map(|at| (format!("k{at}"), json!(at))).collect();
        json!({ "data": 1, "meta": fields })
    };
    assert!(write_one(&api, keys(64)).await.status < 300);
    write_one(&api, keys(65)).await.refused(400, "invalid_request");
    for (field, most) in [("tag", 256), ("node", 128)] {
        assert!(write_one(&api, json!({ "data": 1, field: "é".repeat(most / 2) })).await.status < 300);
        write_one(&api, json!({ "data": 1, field: text(most + 1) })).await.refused(400, "invalid_request");
    }
    let keyed = |key: String| json!({ "records": [{ "data": 1 }], "idempotency_key": key });
    assert!(api.post("/v0/topics/limits-records", keyed("é".repeat(256))).await.status < 300);
    api.post("/v0/topics/limits-records", keyed(text(257))).await.refused(400, "invalid_request");
}

/// Section 5, C-APPEND-05
#[tokio::test]
async fn a_request_has_ten_thousand_records_at_most() {
    let api = api().await;
    assert_eq!(api.write("limits-batch", 10_000).await.expect(201)["last_seq"], 10_000);
    let detail = api.write("limits-batch", 10_001).await.refused(400, "batch_too_large");
    assert_eq!(detail["max"], 10_000);
    let records: Vec<Value> = (0..5001).map(|at| json!({ "data": at })).collect();
    let many = json!({ "topics": { "limits-batch": { "records": records }, "limits-other": { "records": records } } });
    api.post("/v0/append", many).await.refused(400, "batch_too_large");
    assert_eq!(api.topic("limits-batch").await.expect(200)["head_seq"], 10_000);
}

/// C-LIMIT-05, C-CONV-11
#[tokio::test]
async fn bodies_have_a_largest_size() {
    let api = api().await;
    let body = |bytes: usize| {
        let records = r#"{"records":[{"data":1}]}"#;
        format!("{records}{}", " ".repeat(bytes - records.len())).into_bytes()
    };
    api.raw("POST", "/v0/topics/limits-body", body(MAX_BODY_BYTES)).await.expect(201);
    let answer = api.raw("POST", "/v0/topics/limits-body", body(MAX_BODY_BYTES + 1)).await;
    answer.refused(413, "payload_too_large");
    assert_eq!(api.topic("limits-body").await.expect(200)["head_seq"], 1);
}

/// C-LIMIT-14
#[tokio::test]
async fn fixed_bounds_hold() {
    let api = api().await;
    api.write("limits-fixed", 1500).await.expect(201);
    let page = api.diff("limits-fixed", json!({ "limit": 1_000_000 })).await.expect(200);
    assert_eq!(page["records"].as_array().map(Vec::len), Some(1000));
    let topics = |count: usize| {
        let topics: serde_json::Map<String, Value> = (0..count)
            .map(|at| (format!("limits-many-{at}"), json!({ "records": [{ "data": 1 }] })))
            .collect();
        json!({ "topics": topics })
    };
    api.post("/v0/append", topics(65)).await.refused(400, "invalid_request");
    api.post("/v0/append", topics(64)).await.expect(201);
}

/// A cluster of one with bounds of its own, and the way to it.
async fn bounded(arguments: &[&str]) -> (Cluster, Api) {
    let cluster = Cluster::start_in(tempdir().expect("make a directory"), None, 1, arguments).await;
    let api = Api { urls: cluster.urls(), http: client(), key: Some("all") };
    (cluster, api)
}

/// C-LIMIT-01, C-LIMIT-04, C-LIMIT-10, C-LIMIT-11, C-LIMIT-12, C-ERR-02, C-ERR-04
#[tokio::test]
async fn the_cluster_holds_so_much_and_no_more() {
    let (_cluster, api) = bounded(&["--max-topics", "3", "--max-total-bytes", "400"]).await;
    // The leader's settings are in the log soon after it leads; until then the defaults hold.
    eventually("the bounds hold", PATIENCE, async || {
        let probe = json!({ "records": [{ "data": "x".repeat(400) }] });
        let answer = api.post("/v0/topics/probe", probe).await;
        api.delete("/v0/topics/probe").await.expect(200);
        (answer.status == 429).then_some(())
    })
    .await;
    let made = futures_util::future::join_all((0..8).map(|at| {
        let api = api.clone();
        async move { api.put(&format!("/v0/topics/t{at}"), json!({})).await }
    }))
    .await;
    let (good, refused): (Vec<_>, Vec<_>) = made.into_iter().partition(|answer| answer.status == 201);
    assert_eq!(good.len(), 3, "exactly, under concurrency");
    for answer in refused {
        let detail = answer.refused(429, "throttled");
        assert_eq!(detail, json!({ "limit": "max_topics", "max": 3 }));
    }
    let first = good[0].body["topic"].as_str().expect("a name").to_owned();
    api.write("one-more", 1).await.refused(429, "throttled");
    api.put(&format!("/v0/topics/{first}"), json!({ "ttl_ms": 0, "priority": 1 })).await.expect(200);

    let mut stored = 0;
    let detail = loop {
        let answer = api.write(&first, 1).await;
        if answer.status != 200 {
            break answer.refused(429, "throttled");
        }
        stored += 1;
        assert!(stored < 100, "no bound was reached");
    };
    assert_eq!(detail, json!({ "limit": "max_total_bytes", "max": 400 }));
    let state = api.topic(&first).await.expect(200);
    assert_eq!(state["count"], stored);
    assert!(state["bytes"].as_u64().is_some_and(|bytes| bytes <= 400), "{state}");
    api.delete(&format!("/v0/topics/{first}")).await.expect(200);
    api.write("after-all", stored).await.expect(201);
}

/// C-LIMIT-11: all members are asked at once.
#[tokio::test]
async fn caps_hold_at_all_members_at_once() {
    const MAX_BYTES: u64 = 4000;
    let arguments = ["--max-topics", "3", "--max-total-bytes", "4000"];
    let cluster = Cluster::start_in(tempdir().expect("make a directory"), None, 3, &arguments).await;
    let api = Api { urls: cluster.urls(), http: client(), key: Some("all") };
    eventually("the bounds hold", PATIENCE, async || {
        let probe = json!({ "records": [{ "data": "x".repeat(4000) }] });
        let answer = api.post("/v0/topics/probe", probe).await;
        api.delete("/v0/topics/probe").await.expect(200);
        (answer.status == 429).then_some(())
    })
    .await;
    let made = (0..24).map(|at| {
        let api = api.at(at % 3);
        async move { api.put(&format!("/v0/topics/t{at}"), json!({})).await }
    });
    let made = futures_util::future::join_all(made).await;
    let good: Vec<_> = made.iter().filter(|answer| answer.status == 201).collect();
    assert_eq!(good.len(), 3, "{made:?}");
    assert!(made.iter().all(|answer| answer.status == 201 || answer.status == 429), "{made:?}");
    let names: Vec<String> =
        good.iter().map(|answer| answer.body["topic"].as_str().expect("a name").to_owned()).collect();
    let body = json!({ "records": [{ "data": "x".repeat(100) }] });
    let written = (0..120).map(|at: usize| {
        let (api, path, body) = (api.at(at % 3), format!("/v0/topics/{}", names[at % 2]), body.clone());
        async move { api.post(&path, body).await }
    });
    let written = futures_util::future::join_all(written).await;
    let acked = written.iter().filter(|answer| answer.status == 200).count() as u64;
    assert!(written.iter().all(|answer| answer.status == 200 || answer.status == 429), "{written:?}");
    let (mut count, mut bytes) = (0, 0);
    for name in &names {
        let state = api.topic(name).await.expect(200);
        count += state["count"].as_u64().expect("a number");
        bytes += state["bytes"].as_u64().expect("a number");
    }
    assert_eq!(count, acked);
    // No room for one more, and none was given that there is not.
    assert!(bytes <= MAX_BYTES && bytes + bytes / count > MAX_BYTES, "{count} records of {bytes} bytes");
    // What exists is changed at any time.
    api.put(&format!("/v0/topics/{}", names[2]), json!({ "priority": 1 })).await.expect(200);
}

/// C-IDEM-10, C-LIMIT-10
#[tokio::test]
async fn the_cluster_remembers_so_many_idempotency_keys_and_no_more() {
    let (_cluster, api) = bounded(&["--max-idempotency-keys", "8"]).await;
    let keyed = |key: usize| json!({ "records": [{ "data": key }], "idempotency_key": key.to_string() });
    let mut next_key = 0;
    // The leader's settings are in the log soon after it leads; until then the defaults hold.
    let (key, detail) = eventually("the bound holds", PATIENCE, async || {
        next_key += 1;
        let answer = api.post("/v0/topics/keyed", keyed(next_key)).await;
        (answer.status == 429).then(|| (next_key, answer.refused(429, "throttled")))
    })
    .await;
    assert_eq!(detail, json!({ "limit": "max_idempotency_keys", "max": 2 }), "a quarter for one topic");
    assert_eq!(api.post("/v0/topics/keyed", keyed(key - 1)).await.expect(200)["deduped"], true);
    api.write("keyed", 1).await.expect(200);
}

/// C-LIMIT-09, C-LIMIT-12, C-LIMIT-13
#[tokio::test]
async fn a_key_has_so_many_requests_under_way() {
    let (_cluster, api) = bounded(&["--api-keys", "all,other", "--max-inflight-per-key", "2"]).await;
    api.write("t", 1).await.expect(201);
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let api = api.clone();
            tokio::spawn(async move {
                loop {
                    // The probe below may stand in the place that this one needs.
                    let answer = api.diff("t", json!({ "from_seq": 1, "wait_ms": 30_000 })).await;
                    if answer.status != 429 {
                        return answer;
                    }
                }
            })
        })
        .collect();
    let detail = eventually("both places are taken", PATIENCE, async || {
        let answer = api.topic("t").await;
        (answer.status != 200).then(|| answer.refused(429, "throttled"))
    })
    .await;
    assert_eq!(detail, json!({ "limit": "max_inflight_per_key", "max": 2 }));
    // Another key has places of its own; its write ends both waits.
    api.with_key("other").write("t", 1).await.expect(200);
    for one in waiting {
        assert_eq!(one.await.expect("no panic").expect(200)["records"][0]["$seq"], 2);
    }
    api.topic("t").await.expect(200);
}

/// C-LIMIT-09: the pull of a mirror waits nearly always, and keeps no request of its key from its place.
#[tokio::test]
async fn a_waiting_pull_is_no_request_under_way() {
    let (_cluster, bounded) = bounded(&["--api-keys", "all", "--max-inflight-per-key", "1"]).await;
    bounded.write("pulled", 1).await.expect(201);
    let here = other().await;
    let remote = json!({ "urls": bounded.urls, "token": "all" });
    let config = json!({ "source": "pulled", "dest": "limits-pulled", "remote": remote });
    here.put("/v0/routers/limits-pulled", config).await.expect(201);
    eventually("the mirror has it", PATIENCE, async || {
        (here.topic("limits-pulled").await.status == 200).then_some(())
    })
    .await;
    // The next pull is one for the moment in which it begins.
    let mut refused = 0;
    for _ in 0..50 {
        refused += usize::from(bounded.topic("pulled").await.status == 429);
    }
    assert!(refused < 10, "{refused} of 50 requests found no place");
    here.delete("/v0/routers/limits-pulled").await.expect(200);
}
