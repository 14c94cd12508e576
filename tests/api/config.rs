//! Section 6: the config of a topic, field by field.

use serde_json::{Value, json};

use crate::shared::api;

/// Section 6.1: field, default, another value.
fn fields() -> Vec<(&'static str, Value, Value)> {
    vec![
        ("ttl_ms", json!(0), json!(86_400_000)),
        ("cap_records", json!(0), json!(1000)),
        ("cap_bytes", json!(0), json!(1_000_000)),
        ("discard", json!("old"), json!("reject")),
        ("durability", json!("disk"), json!("memory")),
        ("priority", json!(null), json!(-7)),
        ("auto_priority", json!(true), json!(false)),
        ("auto_create", json!(true), json!(false)),
        ("idempotency_window_ms", json!(120_000), json!(0)),
        ("dedupe_node", json!(true), json!(false)),
        ("lease_ms", json!(30_000), json!(100)),
        ("claim_jitter_ms", json!(0), json!(5000)),
        ("max_deliveries", json!(0), json!(3)),
        ("dead_letter", json!(null), json!("config-dead")),
        ("leases_durable", json!(false), json!(true)),
        ("compaction", json!("none"), json!("key")),
        ("delete_marker_ttl_ms", json!(86_400_000), json!(0)),
    ]
}

/// C-CFG-01, C-CFG-05
#[tokio::test]
async fn every_field_has_its_default_and_can_be_changed_and_a_put_replaces_all() {
    let api = api().await;
    let default = api.put("/v0/topics/config-fields", json!({})).await.expect(201)["config"].clone();
    assert_eq!(default.as_object().map(|it| it.len()), Some(19));
    for (field, value, other) in fields() {
        assert_eq!(default[field], value, "{field}");
        let changed = api.put("/v0/topics/config-fields", json!({ field: other })).await.expect(200);
        assert_eq!(changed["created"], false);
        let mut expected = default.clone();
        expected[field] = other;
        assert_eq!(changed["config"], expected, "{field}: the others are back at their defaults");
        assert_eq!(api.topic("config-fields").await.expect(200)["config"], expected);
    }
    for (field, low, lowest, high, highest) in [
        ("priority", json!(-1001), json!(-1000), json!(1001), json!(1000)),
        ("lease_ms", json!(0), json!(100), json!(86_400_001), json!(86_400_000)),
        ("claim_jitter_ms", json!(0), json!(0), json!(5001), json!(5000)),
        ("idempotency_window_ms", json!(0), json!(0), json!(604_800_001), json!(604_800_000)),
    ] {
        for (given, stored) in [(low, lowest), (high, highest)] {
            let config = api.put("/v0/topics/config-fields", json!({ field: given })).await.expect(200);
            assert_eq!(config["config"][field], stored);
        }
    }
}

/// C-CFG-02
#[tokio::test]
async fn a_dead_letter_is_the_name_of_another_topic() {
    let api = api().await;
    for bad in [json!("config-dl"), json!("no/name"), json!(""), json!(7)] {
        let answer = api.put("/v0/topics/config-dl", json!({ "dead_letter": bad })).await;
        answer.refused(400, "invalid_request");
    }
    api.put("/v0/topics/config-dl", json!({ "dead_letter": "config-dl2" })).await.expect(201);
}

/// C-CFG-03, C-CFG-04
#[tokio::test]
async fn durability_wins_over_its_shorthand() {
    let api = api().await;
    for (config, durability, durable) in [
        (json!({}), "disk", false),
        (json!({ "durable": true }), "fsync", true),
        (json!({ "durable": false }), "disk", false),
        (json!({ "durable": true, "durability": "memory" }), "memory", false),
        (json!({ "durable": false, "durability": "fsync" }), "fsync", true),
    ] {
        let answer = api.put("/v0/topics/config-class", config).await;
        let config = &answer.body["config"];
        assert_eq!((&config["durability"], &config["durable"]), (&json!(durability), &json!(durable)));
        let list = api.get("/v0/topics?prefix=config-class").await.expect(200);
        assert_eq!(list["topics"][0]["durable"], durable);
    }
}

/// C-CFG-06, C-TOPIC-03
#[tokio::test]
async fn the_type_never_changes() {
    let api = api().await;
    api.put("/v0/topics/config-type", json!({ "type": "queue", "ttl_ms": 5 })).await.expect(201);
    for config in [json!({ "type": "log", "ttl_ms": 6 }), json!({ "ttl_ms": 6 })] {
        let detail =
            api.put("/v0/topics/config-type", config).await.refused(409, "topic_exists_incompatible");
        let expected = json!({ "topic": "config-type", "existing_type": "queue", "requested_type": "log" });
        assert_eq!(detail, expected);
    }
    assert_eq!(api.topic("config-type").await.expect(200)["config"]["ttl_ms"], 5);
}

/// C-CFG-08, C-DUR-09
#[tokio::test]
async fn a_changed_class_leaves_what_is_stored() {
    let api = api().await;
    for (at, durability) in ["memory", "disk", "fsync"].iter().enumerate() {
        api.put("/v0/topics/config-move", json!({ "durability": durability })).await;
        let write = api.write("config-move", 1).await.expect(200);
        assert_eq!(write["head_seq"], at + 1);
        let fsync_ms = write["performance"]["fsync_ms"].as_f64().expect("a number");
        assert_eq!(fsync_ms > 0.0, *durability == "fsync", "{durability}: {fsync_ms}");
    }
    assert_eq!(
        api.diff("config-move", json!({})).await.expect(200)["records"].as_array().map(Vec::len),
        Some(3)
    );
}
