//! Section 8.1: writing to one topic.

use serde_json::{Value, json};

use crate::shared::api;

fn one() -> Value {
    json!({ "records": [{ "data": 1 }] })
}

/// C-WRITE-01, C-WRITE-06, C-WRITE-07
#[tokio::test]
async fn a_write_gets_contiguous_seqs() {
    let api = api().await;
    let answer = api.write("write-seqs", 3).await.expect(201);
    let expected = json!({ "topic": "write-seqs", "first_seq": 1, "last_seq": 3, "seqs": [1, 2, 3],
        "head_seq": 3, "count": 3, "created": true, "deduped": false });
    let mut shown = answer.clone();
    shown.as_object_mut().expect("an object").remove("performance");
    assert_eq!(shown, expected);
    let body = json!({ "records": [{ "data": 1 }, { "data": 2 }] });
    let answer = api.post("/v0/topics/write-seqs?return_seqs=false", body).await.expect(200);
    assert_eq!((&answer["first_seq"], &answer["last_seq"], answer.get("seqs")), (&json!(4), &json!(5), None));
}

/// C-WRITE-02, C-WRITE-03, C-WRITE-04
#[tokio::test]
async fn whether_a_write_makes_its_topic() {
    let api = api().await;
    for (at, (fields, status)) in [
        (json!({}), 201),
        (json!({ "create": true }), 201),
        (json!({ "create": false }), 404),
        (json!({ "config": { "cap_records": 9 } }), 201),
        (json!({ "config": { "auto_create": false } }), 404),
        (json!({ "create": true, "config": { "auto_create": false } }), 201),
        (json!({ "create": false, "config": {} }), 404),
    ]
    .into_iter()
    .enumerate()
    {
        let topic = format!("write-create{at}");
        let mut body = one();
        body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let answer = api.post(&format!("/v0/topics/{topic}"), body.clone()).await;
        assert_eq!(answer.status, status, "{fields}");
        if status == 404 {
            answer.refused(404, "topic_not_found");
            api.topic(&topic).await.refused(404, "topic_not_found");
            continue;
        }
        assert_eq!(answer.body["created"], true);
        let config = api.topic(&topic).await.expect(200)["config"].clone();
        // Now it exists, and neither field has an effect.
        body["config"] = json!({ "cap_records": 1 });
        body["create"] = json!(false);
        assert_eq!(api.post(&format!("/v0/topics/{topic}"), body).await.expect(200)["created"], false);
        assert_eq!(api.topic(&topic).await.expect(200)["config"], config);
    }
}

/// C-WRITE-05
#[tokio::test]
async fn a_write_that_fails_leaves_no_topic() {
    let api = api().await;
    let mut body = one();
    body["expect_head_seq"] = json!(3);
    api.post("/v0/topics/write-fails", body).await.refused(409, "head_mismatch");
    api.topic("write-fails").await.refused(404, "topic_not_found");
}

/// C-WRITE-13, C-WRITE-15
#[tokio::test]
async fn a_write_may_expect_a_head() {
    let api = api().await;
    let expecting = |head: u64| {
        let mut body = one();
        body["expect_head_seq"] = json!(head);
        body
    };
    api.post("/v0/topics/write-expect", expecting(0)).await.expect(201);
    api.post("/v0/topics/write-expect", expecting(1)).await.expect(200);
    for wrong in [0, 1, 3, u64::MAX] {
        let detail =
            api.post("/v0/topics/write-expect", expecting(wrong)).await.refused(409, "head_mismatch");
        assert_eq!(detail, json!({ "topic": "write-expect", "head_seq": 2 }));
    }
    assert_eq!(api.topic("write-expect").await.expect(200)["head_seq"], 2);
}

/// C-WRITE-14
#[tokio::test]
async fn of_concurrent_writes_that_expect_the_same_head_one_succeeds() {
    let api = api().await;
    for head in 0..15u64 {
        let writes = (0..6).map(|_| {
            let api = api.clone();
            let body = json!({ "records": [{ "data": 1 }], "expect_head_seq": head });
            async move { api.post("/v0/topics/write-race", body).await.status }
        });
        let statuses = futures_util::future::join_all(writes).await;
        assert_eq!(statuses.iter().filter(|status| **status < 300).count(), 1, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 409).count(), 5, "{statuses:?}");
    }
}

/// C-WRITE-12
#[tokio::test]
async fn opting_out_of_back_pressure_is_accepted() {
    let api = api().await;
    let mut body = one();
    body["disable_backpressure"] = json!(true);
    api.post("/v0/topics/write-pressure", body.clone()).await.expect(201);
    body["disable_backpressure"] = json!("yes");
    api.post("/v0/topics/write-pressure", body).await.refused(400, "invalid_request");
}

/// C-NODE-01
#[tokio::test]
async fn a_label_of_a_record_wins_over_that_of_its_batch() {
    let api = api().await;
    let body = json!({ "node": "batch", "records": [{ "data": 1 }, { "data": 2, "node": "own" }] });
    api.post("/v0/topics/write-node", body).await.expect(201);
    let page = api.diff("write-node", json!({})).await.expect(200);
    let nodes: Vec<&Value> =
        page["records"].as_array().expect("an array").iter().map(|it| &it["$node"]).collect();
    assert_eq!(nodes, ["batch", "own"]);
}
