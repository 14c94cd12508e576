//! Section 3: the shape and the order of refusals.

use serde_json::json;

use crate::shared::{MAX_BODY_BYTES, api, got};

/// C-ERR-01. Every refusal of every test passes `shared::got`, which checks the shape; here are those that
/// no handler makes.
#[tokio::test]
async fn every_refusal_has_the_shape_of_the_contract() {
    let api = api().await;
    api.get("/nowhere").await.refused(404, "not_found");
    got("TRACE".into(), api.request("TRACE", "/v0/topics")).await.refused(405, "method_not_allowed");
    let detail = api.topic("errors-none").await.refused(404, "topic_not_found");
    assert_eq!(detail, json!({ "topic": "errors-none" }));
    let long = api.get(&format!("/v0/topics?prefix={}", "x".repeat(60_000))).await;
    assert!(matches!(long.status, 414 | 431), "{}", long.status);
}

/// C-ERR-05, C-WRITE-17: each request is wrong in all that comes later, too.
#[tokio::test]
async fn checks_come_in_their_order() {
    let api = api().await;
    let too_large = vec![b'{'; MAX_BODY_BYTES + 1];
    let send = async |key: Option<&'static str>, path: &str, with_type: bool, body: Vec<u8>| {
        let request = api.with_key(key).request("POST", path);
        let request = if with_type { request.header("content-type", "application/json") } else { request };
        got(format!("POST {path}"), request.body(body)).await
    };
    let (own, other) = ("/v0/topics/own:order", "/v0/topics/order");
    let bad = || b"{".to_vec();
    send(None, other, false, too_large).await.refused(413, "payload_too_large");
    send(None, other, false, bad()).await.refused(401, "unauthorized");
    send(Some("reader"), other, false, bad()).await.refused(403, "forbidden");
    send(Some("bound"), other, false, bad()).await.refused(403, "forbidden");
    send(Some("bound"), own, false, bad()).await.refused(415, "unsupported_media_type");
    send(Some("bound"), own, true, bad()).await.refused(400, "invalid_request");
    let no_topic = json!({ "records": [{ "data": 1 }], "create": false, "expect_head_seq": 7 }).to_string();
    send(Some("bound"), own, true, no_topic.clone().into()).await.refused(404, "topic_not_found");
    api.put(own, json!({})).await.expect(201);
    send(Some("bound"), own, true, no_topic.into()).await.refused(409, "head_mismatch");
    // JSON shape comes before the prefixes of names in the body.
    let many = |records: &str| format!(r#"{{"topics":{{"other":{{"records":{records}}}}}}}"#).into_bytes();
    send(Some("bound"), "/v0/append", true, many("[]")).await.refused(400, "invalid_request");
    send(Some("bound"), "/v0/append", true, many(r#"[{"data":1}]"#)).await.refused(403, "forbidden");
}

/// C-ERR-06
#[tokio::test]
async fn what_is_refused_has_changed_nothing() {
    let api = api().await;
    api.put("/v0/topics/errors-same", json!({ "ttl_ms": 5_000_000 })).await.expect(201);
    api.write("errors-same", 3).await.expect(200);
    let before = api.topic("errors-same").await.expect(200);
    let path = "/v0/topics/errors-same";
    api.put(path, json!({ "type": "queue", "ttl_ms": 1 })).await.refused(409, "topic_exists_incompatible");
    api.put(path, json!({ "ttl_ms": 1, "typo": 1 })).await.refused(400, "invalid_request");
    let batch = json!({ "records": [{ "data": 1 }, { "tag": "no data" }] });
    api.post(path, batch).await.refused(400, "invalid_request");
    let guarded = json!({ "records": [{ "data": 1 }], "expect_head_seq": 2 });
    api.post(path, guarded).await.refused(409, "head_mismatch");
    api.delete(&format!("{path}?if_empty=true")).await.refused(409, "topic_not_empty");
    let mut after = api.topic("errors-same").await.expect(200);
    after["performance"] = before["performance"].clone();
    assert_eq!(after, before);
}
