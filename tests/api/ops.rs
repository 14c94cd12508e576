//! Section 21: health, readiness, metrics.

use std::collections::{BTreeMap, BTreeSet};

use prometheus_parse::{Scrape, Value};
use serde_json::json;

use crate::harness::{PATIENCE, eventually};
use crate::shared::{Api, api, got};

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

async fn scrape(api: &Api) -> Scrape {
    let answer = api.get("/v0/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4"));
    let text = String::from_utf8(answer.bytes).expect("is UTF-8");
    Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).expect("Prometheus can read it")
}

/// The value of a series without labels, or of that with this one label.
fn value(scrape: &Scrape, name: &str, label: Option<(&str, &str)>) -> f64 {
    let found: Vec<_> = scrape
        .samples
        .iter()
        .filter(|it| it.metric == name)
        .filter(|it| label.is_none_or(|(label, value)| it.labels.get(label) == Some(value)))
        .collect();
    assert_eq!(found.len(), 1, "{name} {label:?}");
    match found[0].value {
        Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => value,
        _ => panic!("{name} is no number"),
    }
}

/// Figures that both forms have under one name.
const WHOLE_MEMBER: [&str; 9] = [
    "topics",
    "routers",
    "records_live",
    "bytes_live",
    "queue_topics",
    "queue_leases_in_flight",
    "sse_connections",
    "watch_sessions",
    "uptime_ms",
];

/// C-OPS-06, C-OPS-07, C-OPS-08, C-OPS-09
#[tokio::test]
async fn metrics_tell_what_the_contract_lists() {
    let api = api().await;
    api.put("/v0/topics/ops-queue", json!({ "type": "queue", "durability": "fsync" })).await.expect(201);
    api.write("ops-queue", 3).await.expect(200);
    let mut leaders = 0.0;
    let mut forwarded = 0.0;
    for member in 0..3 {
        // A strong read first: then this member has applied the write.
        let state = api.at(member).topic("ops-queue").await.expect(200);
        let scrape = scrape(&api.at(member)).await;
        let topic = Some(("topic", "ops-queue"));
        for (name, expected) in [
            ("topic_head_seq", 3.0),
            ("topic_earliest_seq", 1.0),
            ("topic_records_live", 3.0),
            ("topic_bytes_live", state["bytes"].as_f64().expect("a number")),
            ("topic_queue_ready", 3.0),
            ("topic_queue_in_flight", 0.0),
        ] {
            assert_eq!(value(&scrape, &format!("antiphon_{name}"), topic), expected, "{name}");
        }
        let further = [
            "topic_metrics_truncated",
            "groups",
            "idempotency_keys",
            "wal_frames_total",
            "wal_batches_total",
            "wal_fsyncs_total",
            "wal_bytes_written_total",
            "wal_rotations_total",
            "wal_queue_depth",
            "wal_queue_depth_peak",
            "wal_submit_full_total",
            "wal_read_only",
            "raft_term",
            "raft_commit_index",
            "raft_applied_index",
            "raft_elections_total",
            "checkpoint_lag_entries",
            "checkpoint_age_ms",
        ];
        for name in WHOLE_MEMBER.into_iter().chain(further) {
            assert!(value(&scrape, &format!("antiphon_{name}"), None) >= 0.0, "{name}");
        }
        assert!(value(&scrape, "antiphon_records_live", None) >= 3.0);
        assert!(value(&scrape, "antiphon_topics_by_class", Some(("class", "fsync"))) >= 1.0);
        assert_eq!(value(&scrape, "antiphon_ready", None), 1.0);
        assert_eq!(value(&scrape, "antiphon_recovery_progress", None), 1.0);
        assert!(value(&scrape, "antiphon_member_lag", Some(("member", "m2"))) < 100_000.0);
        for name in ["raft_log_held_entries", "raft_log_held_ms"] {
            let held = value(&scrape, &format!("antiphon_{name}"), Some(("reason", "member")));
            assert!(held >= 0.0, "{name}");
        }
        leaders += value(&scrape, "antiphon_raft_is_leader", None);
        forwarded += value(&scrape, "antiphon_forwarded_requests_total", None);
        let syncs = value(&scrape, "antiphon_wal_fsyncs_total", None);
        let latency = scrape.samples.iter().find(|it| it.metric == "antiphon_wal_fsync_latency_us");
        let Some(Value::Histogram(buckets)) = latency.map(|it| &it.value) else { panic!("{latency:?}") };
        let counts: Vec<f64> = buckets.iter().map(|bucket| bucket.count).collect();
        assert!(counts.is_sorted() && counts.last().is_some_and(|last| *last >= syncs), "{counts:?} {syncs}");
    }
    assert_eq!(leaders, 1.0);
    assert!(forwarded > 0.0, "requests were spread over the members");
    let help: BTreeMap<_, _> = scrape(&api).await.docs.into_iter().collect();
    assert!(help.contains_key("antiphon_topics"), "{help:?}");
}

/// C-OPS-09
#[tokio::test]
async fn metrics_tell_how_routers_do() {
    let api = api().await;
    let config = json!({ "source": "ops-routed", "dest": "ops-copies", "start": "earliest" });
    api.put("/v0/routers/ops-router", config).await.expect(201);
    api.write("ops-routed", 3).await.expect(200);
    let named = Some(("router", "ops-router"));
    // Only the member that leads runs it, and knows its state.
    let state_at_leader = async |state: &str| {
        let mut found = Vec::new();
        for member in 0..3 {
            let scrape = scrape(&api.at(member)).await;
            assert!(value(&scrape, "antiphon_routers", None) >= 1.0);
            let of_it = |it: &&prometheus_parse::Sample| {
                it.metric == "antiphon_router_state" && it.labels.get("router") == Some("ops-router")
            };
            let states = scrape.samples.iter().filter(of_it);
            found.extend(states.filter(|it| matches!(it.value, Value::Gauge(1.0))).cloned());
        }
        found.len() == 1 && found[0].labels.get("state") == Some(state)
    };
    for member in 0..3 {
        eventually("all copies are counted at each member", PATIENCE, async || {
            let scrape = scrape(&api.at(member)).await;
            (value(&scrape, "antiphon_router_forwarded_total", named) == 3.0).then_some(())
        })
        .await;
    }
    eventually("it runs", PATIENCE, async || state_at_leader("running").await.then_some(())).await;
    api.post("/v0/routers/ops-router/pause", json!({})).await.expect(200);
    api.write("ops-routed", 2).await.expect(200);
    eventually("it is paused", PATIENCE, async || state_at_leader("paused").await.then_some(())).await;
    let mut lag = 0.0;
    for member in 0..3 {
        let scrape = scrape(&api.at(member)).await;
        let of_it = scrape
            .samples
            .iter()
            .find(|it| it.metric == "antiphon_router_lag" && it.labels.get("router") == Some("ops-router"));
        if let Some(Value::Gauge(value)) = of_it.map(|it| &it.value) {
            lag += value;
        }
    }
    assert_eq!(lag, 2.0);
}

/// C-OPS-10
#[tokio::test]
async fn metrics_have_a_form_in_json() {
    let api = api().await;
    let request = api.request("GET", "/v0/metrics").header("accept", "application/json");
    let body = got("metrics".into(), request).await.expect(200);
    let by_class = ["topics_ephemeral", "topics_memory", "topics_disk", "topics_fsync"];
    for name in WHOLE_MEMBER.into_iter().chain(by_class) {
        assert!(body[name].is_u64(), "{name}: {body}");
    }
    assert_eq!((&body["ready"], &body["replay_progress"]), (&json!(true), &json!(1.0)));
    for name in ["frames", "batches", "fsyncs", "bytes_written", "rotations", "queue_depth", "read_only"] {
        assert!(body["wal"][name].is_u64(), "{name}: {body}");
    }
}
