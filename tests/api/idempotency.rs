//! Section 8.2: a retry of a success is a success, and has no effect.

use serde_json::{Value, json};

use crate::harness::{PATIENCE, eventually};
use crate::shared::{api, got};

fn keyed(key: &str, count: usize) -> Value {
    json!({ "records": vec![json!({ "data": key }); count], "idempotency_key": key })
}

/// C-IDEM-01, C-IDEM-02
#[tokio::test]
async fn a_repeat_gets_the_first_answer() {
    let api = api().await;
    let path = "/v0/topics/idem-repeat";
    let first = api.post(path, keyed("k", 3)).await.expect(201);
    api.write("idem-repeat", 5).await.expect(200);
    for body in [keyed("k", 3), keyed("k", 1)] {
        let again = api.post(path, body).await.expect(200);
        for field in ["first_seq", "last_seq", "seqs", "count", "head_seq"] {
            assert_eq!(again[field], first[field], "{field}");
        }
        assert_eq!((&again["created"], &again["deduped"]), (&json!(false), &json!(true)));
    }
    assert_eq!(api.topic("idem-repeat").await.expect(200)["head_seq"], 8);
    // Another topic knows nothing of it.
    assert_eq!(api.post("/v0/topics/idem-other", keyed("k", 1)).await.expect(201)["deduped"], false);
}

/// Section 8.1: the header, and that the body wins.
#[tokio::test]
async fn the_key_may_be_in_a_header() {
    let api = api().await;
    let send = async |body: Value, header: &str| {
        let request = api.request("POST", "/v0/topics/idem-header").header("idempotency-key", header);
        let request = request.header("content-type", "application/json").body(body.to_string());
        got("POST".into(), request).await
    };
    let plain = || json!({ "records": [{ "data": 1 }] });
    send(plain(), "h1").await.expect(201);
    assert_eq!(send(plain(), "h1").await.expect(200)["deduped"], true);
    assert_eq!(send(keyed("b1", 1), "h1").await.expect(200)["deduped"], false);
    assert_eq!(api.post("/v0/topics/idem-header", keyed("b1", 1)).await.expect(200)["deduped"], true);
    send(plain(), &"x".repeat(257)).await.refused(400, "invalid_request");
}

/// C-IDEM-03, C-IDEM-07
#[tokio::test]
async fn a_key_is_new_again_after_its_window() {
    let api = api().await;
    api.put("/v0/topics/idem-window", json!({ "idempotency_window_ms": 300 })).await.expect(201);
    let path = "/v0/topics/idem-window";
    let first = api.post(path, keyed("k", 1)).await.expect(200);
    let last = eventually("the window is over", PATIENCE, async || {
        let again = api.post(path, keyed("k", 1)).await.expect(200);
        (again["deduped"] == false).then_some(again)
    })
    .await;
    assert_eq!((&first["first_seq"], &last["first_seq"]), (&json!(1), &json!(2)));
    let page = api.diff("idem-window", json!({})).await.expect(200);
    let ts = |at: usize| page["records"][at]["$ts"].as_u64().expect("a time");
    assert!(ts(1) - ts(0) > 300, "strictly more than the window lies between them");
    api.put("/v0/topics/idem-off", json!({ "idempotency_window_ms": 0 })).await.expect(201);
    for _ in 0..2 {
        assert_eq!(api.post("/v0/topics/idem-off", keyed("k", 1)).await.expect(200)["deduped"], false);
    }
}

/// C-IDEM-04
#[tokio::test]
async fn of_concurrent_writes_with_one_key_one_appends() {
    let api = api().await;
    for round in 0..10 {
        let key = format!("k{round}");
        let writes = (0..6).map(|_| {
            let (api, body) = (api.clone(), keyed(&key, 2));
            async move { api.post("/v0/topics/idem-race", body).await }
        });
        let answers = futures_util::future::join_all(writes).await;
        let deduped = answers.iter().filter(|it| it.body["deduped"] == true).count();
        assert_eq!(deduped, 5);
        assert!(answers.iter().all(|it| it.body["seqs"] == answers[0].body["seqs"]));
    }
    assert_eq!(api.topic("idem-race").await.expect(200)["head_seq"], 20);
}

/// C-IDEM-05, C-IDEM-08
#[tokio::test]
async fn a_refused_write_keeps_its_key_and_a_repeat_passes_all_later_checks() {
    let api = api().await;
    let path = "/v0/topics/idem-refused";
    let mut body = keyed("k", 1);
    body["expect_head_seq"] = json!(1);
    api.write("idem-refused", 2).await.expect(201);
    api.post(path, body.clone()).await.refused(409, "head_mismatch");
    body["expect_head_seq"] = json!(2);
    assert_eq!(api.post(path, body.clone()).await.expect(200)["deduped"], false);
    assert_eq!(api.post(path, body).await.expect(200)["deduped"], true, "the head has moved on since");
}

/// C-IDEM-06
#[tokio::test]
async fn every_member_knows_the_keys_of_every_class() {
    let api = api().await;
    for durability in ["memory", "disk", "fsync"] {
        let topic = format!("/v0/topics/idem-{durability}");
        api.put(&topic, json!({ "durability": durability })).await.expect(201);
        api.at(0).post(&topic, keyed("k", 1)).await.expect(200);
        for member in 0..3 {
            assert_eq!(api.at(member).post(&topic, keyed("k", 1)).await.expect(200)["deduped"], true);
        }
    }
}
