//! Section 21: metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use prometheus_parse::{Sample, Scrape, Value};
use serde_json::json;

use crate::harness::{PATIENCE, eventually};
use crate::shared::{Api, api, got};

/// All series of a member, with their types and labels. What is not here is not shown.
const SERIES: &[(&str, &str, &[&str])] = &[
    ("antiphon_build_info", "gauge", &["version", "commit"]),
    ("antiphon_topics", "gauge", &[]),
    ("antiphon_topics_by_class", "gauge", &["class"]),
    ("antiphon_routers", "gauge", &[]),
    ("antiphon_records_live", "gauge", &[]),
    ("antiphon_bytes_live", "gauge", &[]),
    ("antiphon_idempotency_keys", "gauge", &[]),
    ("antiphon_queue_topics", "gauge", &[]),
    ("antiphon_queue_leases_in_flight", "gauge", &[]),
    ("antiphon_groups", "gauge", &[]),
    ("antiphon_http_requests_total", "counter", &["method", "route", "status"]),
    ("antiphon_http_request_duration_seconds", "histogram", &["method", "route"]),
    ("antiphon_key_refusals_total", "counter", &["reason"]),
    ("antiphon_client_connections", "gauge", &[]),
    ("antiphon_client_connections_max", "gauge", &[]),
    ("antiphon_client_connections_refused_total", "counter", &[]),
    ("antiphon_sse_connections", "gauge", &[]),
    ("antiphon_watch_sessions", "gauge", &[]),
    ("antiphon_ready", "gauge", &[]),
    ("antiphon_recovery_progress", "gauge", &[]),
    ("antiphon_uptime_ms", "gauge", &[]),
    ("antiphon_disk_free_bytes", "gauge", &[]),
    ("antiphon_topic_head_seq", "gauge", &["topic"]),
    ("antiphon_topic_earliest_seq", "gauge", &["topic"]),
    ("antiphon_topic_records_live", "gauge", &["topic"]),
    ("antiphon_topic_bytes_live", "gauge", &["topic"]),
    ("antiphon_topic_queue_ready", "gauge", &["topic"]),
    ("antiphon_topic_queue_in_flight", "gauge", &["topic"]),
    ("antiphon_topic_metrics_truncated", "gauge", &[]),
    ("antiphon_router_forwarded_total", "counter", &["router"]),
    ("antiphon_router_lag", "gauge", &["router"]),
    ("antiphon_router_state", "gauge", &["router", "state"]),
    ("antiphon_wal_frames_total", "counter", &[]),
    ("antiphon_wal_batches_total", "counter", &[]),
    ("antiphon_wal_fsyncs_total", "counter", &[]),
    ("antiphon_wal_bytes_written_total", "counter", &[]),
    ("antiphon_wal_rotations_total", "counter", &[]),
    ("antiphon_wal_queue_depth", "gauge", &[]),
    ("antiphon_wal_queue_depth_peak", "gauge", &[]),
    ("antiphon_wal_submit_full_total", "counter", &[]),
    ("antiphon_wal_read_only", "gauge", &[]),
    ("antiphon_wal_fsync_latency_us", "histogram", &[]),
    ("antiphon_raft_is_leader", "gauge", &[]),
    ("antiphon_raft_term", "gauge", &[]),
    ("antiphon_raft_commit_index", "gauge", &[]),
    ("antiphon_raft_applied_index", "gauge", &[]),
    ("antiphon_raft_elections_total", "counter", &[]),
    ("antiphon_raft_log_held_entries", "gauge", &["reason"]),
    ("antiphon_raft_log_held_seconds", "gauge", &["reason"]),
    ("antiphon_checkpoint_lag_entries", "gauge", &[]),
    ("antiphon_checkpoint_age_seconds", "gauge", &[]),
    ("antiphon_member_up", "gauge", &["member"]),
    ("antiphon_member_lag", "gauge", &["member"]),
    ("antiphon_forwarded_requests_total", "counter", &[]),
    ("process_cpu_seconds_total", "counter", &[]),
    ("process_resident_memory_bytes", "gauge", &[]),
    ("process_virtual_memory_bytes", "gauge", &[]),
    ("process_open_fds", "gauge", &[]),
    ("process_max_fds", "gauge", &[]),
    ("process_start_time_seconds", "gauge", &[]),
];

/// What only the leader shows.
const OF_LEADER: [&str; 2] = ["antiphon_router_lag", "antiphon_router_state"];
/// Names of the contract, whose units are not the ones that are usual by now.
const UNUSUAL_UNITS: [&str; 2] = ["antiphon_uptime_ms", "antiphon_wal_fsync_latency_us"];

async fn text(api: &Api) -> String {
    let answer = api.get("/v0/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4"));
    String::from_utf8(answer.bytes).expect("is UTF-8")
}

async fn scrape(api: &Api) -> Scrape {
    let text = text(api).await;
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

/// What is above 0 at a member that took part in a write.
const MOVED: [&str; 11] = [
    "topics",
    "records_live",
    "bytes_live",
    "queue_topics",
    "uptime_ms",
    "wal_frames_total",
    "wal_batches_total",
    "wal_fsyncs_total",
    "wal_bytes_written_total",
    "raft_term",
    "raft_applied_index",
];
/// What is 0 at a member that has room and no consumers.
const AT_REST: [&str; 3] = ["queue_leases_in_flight", "groups", "wal_read_only"];

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
            "checkpoint_age_seconds",
        ];
        for name in WHOLE_MEMBER.into_iter().chain(further) {
            let value = value(&scrape, &format!("antiphon_{name}"), None);
            // What happened here before it was asked.
            let least = if MOVED.contains(&name) { 1.0 } else { 0.0 };
            let most = if AT_REST.contains(&name) { 0.0 } else { f64::MAX };
            assert!((least..=most).contains(&value), "{name}: {value}");
        }
        let [applied, committed, frames, syncs] =
            ["raft_applied_index", "raft_commit_index", "wal_frames_total", "wal_fsyncs_total"]
                .map(|name| value(&scrape, &format!("antiphon_{name}"), None));
        assert!(applied <= committed && syncs <= frames, "{applied} {committed}, {syncs} {frames}");
        assert!(value(&scrape, "antiphon_records_live", None) >= 3.0);
        assert!(value(&scrape, "antiphon_topics_by_class", Some(("class", "fsync"))) >= 1.0);
        assert_eq!(value(&scrape, "antiphon_ready", None), 1.0);
        assert_eq!(value(&scrape, "antiphon_recovery_progress", None), 1.0);
        assert!(value(&scrape, "antiphon_member_lag", Some(("member", "m2"))) <= committed);
        for name in ["m1", "m2", "m3"] {
            assert_eq!(value(&scrape, "antiphon_member_up", Some(("member", name))), 1.0, "{name}");
        }
        for name in ["raft_log_held_entries", "raft_log_held_seconds"] {
            let held = value(&scrape, &format!("antiphon_{name}"), Some(("reason", "member")));
            assert!((0.0..=committed).contains(&held), "{name}: {held}");
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
            let of_it = |it: &&Sample| {
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

/// A member with a queue, a router that has copied something, and requests of all kinds behind it.
async fn used(api: &Api, name: &str) {
    let (queue, copies) = (format!("{name}-queue"), format!("{name}-copies"));
    api.put(&format!("/v0/topics/{queue}"), json!({ "type": "queue" })).await.expect(201);
    let config = json!({ "source": queue, "dest": copies, "start": "earliest" });
    api.put(&format!("/v0/routers/{name}-router"), config).await.expect(201);
    api.write(&queue, 1).await.expect(200);
}

#[tokio::test]
async fn every_series_is_known_with_its_type_and_its_labels() {
    let api = api().await;
    used(&api, "ops-known").await;
    let mut of_leader: BTreeSet<&str> = BTreeSet::new();
    for member in 0..3 {
        // A strong read first: then this member has applied the writes.
        api.at(member).topic("ops-known-queue").await.expect(200);
        let text = text(&api.at(member)).await;
        let mut types = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').expect("a name and a type");
            assert!(types.insert(name, kind).is_none(), "{name} is there twice");
        }
        let helped = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
        let helped: BTreeSet<&str> =
            helped.filter(|(_, help)| help.ends_with('.')).map(|(name, _)| name).collect();
        assert_eq!(helped, types.keys().copied().collect());
        for (name, kind, _) in SERIES {
            match types.remove(name) {
                Some(found) => assert_eq!(found, *kind, "{name}"),
                None => assert!(OF_LEADER.contains(name), "{name} is missing at member {}", member + 1),
            }
            of_leader.extend(text.contains(name).then_some(*name));
        }
        assert_eq!(types, BTreeMap::new(), "not in the list");

        let mut seen = BTreeSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let series = line.rsplit_once(' ').expect("a value").0;
            assert!(seen.insert(series), "{series} is there twice");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
            let labels: Vec<&str> = labels.map(|label| label.split('=').next().expect("a name")).collect();
            let known = SERIES.iter().find(|(known, kind, _)| {
                let rest = name.strip_prefix(known);
                rest == Some("")
                    || (*kind == "histogram" && ["_bucket", "_sum", "_count"].map(Some).contains(&rest))
            });
            let (_, _, expected) = known.unwrap_or_else(|| panic!("{name} has no type"));
            let expected: Vec<&str> =
                expected.iter().copied().chain(name.ends_with("_bucket").then_some("le")).collect();
            assert_eq!(labels, expected, "{line}");
        }
    }
    assert_eq!(of_leader.len(), SERIES.len(), "{of_leader:?}");
}

#[tokio::test]
async fn requests_are_counted_by_route_and_nothing_that_a_client_makes_up_is_a_label() {
    let api = api().await;
    let member = api.at(0);
    let counted = async |method: &str, route: &str, status: &str| {
        let scrape = scrape(&member).await;
        let is_it = |it: &&Sample| {
            let label = |name| it.labels.get(name).unwrap_or_default().to_owned();
            it.metric == "antiphon_http_requests_total"
                && [label("method"), label("route"), label("status")] == [method, route, status]
        };
        scrape.samples.iter().find(is_it).map_or(0.0, |it| match it.value {
            Value::Counter(count) => count,
            _ => panic!("{it:?} is no counter"),
        })
    };
    let topic = "/v0/topics/ops-made-up-by-a-client";
    let (route, ok, refused) = ("/v0/topics/:topic", "2xx", "4xx");
    let before = (
        counted("POST", route, ok).await,
        counted("GET", route, refused).await,
        counted("other", "other", refused).await,
    );
    member.post(topic, json!({ "records": [{ "data": 1 }] })).await.expect(201);
    member.get("/v0/topics/ops-made-up-and-not-there").await.refused(404, "topic_not_found");
    member.get("/v0/ops-made-up-path").await.refused(404, "not_found");
    member.raw("PATCH", topic, "").await.refused(405, "method_not_allowed");
    assert!(counted("POST", route, ok).await > before.0);
    assert!(counted("GET", route, refused).await > before.1);
    assert!(counted("other", "other", refused).await >= before.2 + 2.0);

    let document = api.get("/v0/openapi.json").await.expect(200);
    let paths = document["paths"].as_object().expect("paths").keys();
    let mut routes: BTreeSet<String> = paths.map(|path| path.replace('{', ":").replace('}', "")).collect();
    routes.extend(["/v0/mirror/pull", "other"].map(str::to_owned));
    let allowed = |label: &str, value: &str| match label {
        "route" => routes.contains(value),
        "method" => ["GET", "HEAD", "POST", "PUT", "DELETE", "other"].contains(&value),
        "status" => ["none", "1xx", "2xx", "3xx", "4xx", "5xx"].contains(&value),
        "reason" => ["unauthorized", "forbidden"].contains(&value),
        _ => false,
    };
    let scrape = scrape(&member).await;
    let counted_here = [
        "antiphon_http_requests_total",
        "antiphon_http_request_duration_seconds",
        "antiphon_key_refusals_total",
    ];
    let mut seen = 0;
    for sample in scrape.samples.iter().filter(|it| counted_here.contains(&it.metric.as_str())) {
        for (label, value) in sample.labels.iter() {
            assert!(allowed(label, value), "{sample:?}");
        }
        if let Value::Histogram(buckets) = &sample.value {
            let counts: Vec<f64> = buckets.iter().map(|bucket| bucket.count).collect();
            assert!(counts.is_sorted() && counts.last() > Some(&0.0), "{sample:?}");
        }
        seen += 1;
    }
    assert!(seen > 4, "{scrape:?}");
}

#[tokio::test]
async fn metrics_tell_of_the_process_its_connections_and_its_disk() {
    let api = api().await;
    let scrape = scrape(&api.at(1)).await;
    let value = |name: &str| value(&scrape, name, None);
    assert!(value("process_cpu_seconds_total") > 0.0);
    assert!(value("process_resident_memory_bytes") > (1 << 20) as f64);
    assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
    let (open, max) = (value("process_open_fds"), value("process_max_fds"));
    assert!(open > 3.0 && open < max, "{open} of {max}");
    assert!(value("process_start_time_seconds") > 1.7e9);
    let (open, max) = (value("antiphon_client_connections"), value("antiphon_client_connections_max"));
    assert!(open >= 1.0 && open <= max, "{open} of {max}");
    assert_eq!(value("antiphon_client_connections_refused_total"), 0.0);
    assert!(value("antiphon_disk_free_bytes") > (1 << 20) as f64);
    let build = scrape.samples.iter().find(|it| it.metric == "antiphon_build_info").expect("the build");
    assert_eq!(build.labels.get("version"), Some(env!("CARGO_PKG_VERSION")));
    assert!(build.labels.get("commit").is_some_and(|commit| !commit.is_empty()), "{build:?}");
}

/// Set where there is no `promtool` and none can be had: then this is not tested, and whoever set it knows.
const NO_PROMTOOL: &str = "ANTIPHON_NO_PROMTOOL";

/// Prometheus' own tool has nothing to say, but of the names that are as the contract has them.
#[tokio::test]
async fn the_tool_of_prometheus_finds_nothing_new() {
    if std::env::var_os(NO_PROMTOOL).is_some() {
        eprintln!("NOT TESTED: {NO_PROMTOOL} is set");
        return;
    }
    let api = api().await;
    used(&api, "ops-tool").await;
    let text = text(&api).await;
    let mut tool = Command::new("promtool");
    tool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tool = tool.spawn().unwrap_or_else(|error| {
        panic!(
            "promtool: {error}; on Debian: apt-get install prometheus; or set {NO_PROMTOOL} to leave the test out"
        )
    });
    let output = tokio::task::spawn_blocking(move || {
        // It reads all before it says anything.
        tool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
        tool.wait_with_output().expect("it ends")
    });
    let output = output.await.expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let new: Vec<&str> = said
        .lines()
        .filter(|line| !UNUSUAL_UNITS.contains(&line.split(' ').next().unwrap_or_default()))
        .collect();
    assert!(new.is_empty(), "{said}");
    assert!(matches!(output.status.code(), Some(0 | 3)), "it could not read them: {said}");
}
