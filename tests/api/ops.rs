//! Section 21: health and readiness.

use std::collections::BTreeSet;

use serde_json::json;

use crate::shared::api;

/// C-OPS-01, C-CONS-10
#[tokio::test]
async fn health_is_about_the_process() {
    let api = api().await;
    for path in ["/v0/health", "/healthz"] {
        let body = api.get(path).await.expect(200);
        assert_eq!(body["status"], "ok");
        assert!(body["version"].is_string() && body["uptime_ms"].is_u64(), "{body}");
    }
}

/// C-OPS-02
#[tokio::test]
async fn a_ready_member_names_itself_and_the_leader() {
    let api = api().await;
    let mut leaders = BTreeSet::new();
    for (member, name) in ["m1", "m2", "m3"].iter().enumerate() {
        for path in ["/v0/ready", "/readyz"] {
            let body = api.at(member).get(path).await.expect(200);
            assert_eq!((&body["status"], &body["member"]), (&json!("ready"), &json!(name)));
            assert_eq!(body["wal_replay_complete"], true);
            leaders.insert(body["leader"].as_str().expect("a name").to_owned());
        }
    }
    assert_eq!(leaders.len(), 1, "{leaders:?}");
}
