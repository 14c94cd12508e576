//! `GET /v0/metrics`: figures of the answering member (contract section 21).

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;

use crate::api::Api;
use crate::api::call::{Call, Read};
use crate::api::json::{JsonWriter, Raw};
use crate::api::problem::internal;
use crate::api::reply::{Answer, Reply};
use crate::auth::Scope;
use crate::engine::{Figures, HeldView, LinkState, TopicFigures};
use crate::raft::Holder;
use crate::storage::SYNC_BUCKETS_US;
use crate::task;
use crate::telemetry::metrics::{self as series, Exposition, Series, histogram, sample};
use crate::telemetry::process::ProcessFigures;
use crate::telemetry::version::{COMMIT, VERSION};

/// Durability classes, in the order in which figures count them.
const CLASSES: [&str; 4] = ["ephemeral", "memory", "disk", "fsync"];

/// States of a router, with their names.
const LINK_STATES: [(LinkState, &str); 4] = [
    (LinkState::Running, LinkState::Running.name()),
    (LinkState::Retrying, LinkState::Retrying.name()),
    (LinkState::Paused, LinkState::Paused.name()),
    (LinkState::Blocked, LinkState::Blocked.name()),
];

pub async fn get(State(api): State<Api>, call: Call<Read>) -> Answer {
    // Not admitted by readiness: C-OPS-06.
    let visible = call.caller.visible_prefixes(Scope::Read, "");
    let figures = api.engine.figures(&visible).await;
    // A key with prefixes learns nothing of other names, nor of the member: C-AUTH-19.
    let of_whole_member = visible == [""];
    if call.header(&ACCEPT).is_some_and(prefers_json) {
        let mut reply = Reply::new(call.arrived, 1024);
        put_json(&mut reply.json, &figures, of_whole_member);
        return call.answer_counted(reply.finish(StatusCode::OK));
    }
    let mut out = Exposition::default();
    put_names(&mut out, &figures);
    if of_whole_member {
        put_member(&mut out, &figures);
        api.metrics.put(&mut out);
        // Listing open files takes the longer the more there are. What the kernel does not tell is left out.
        let process = task::blocking(|| Ok(ProcessFigures::read())).await.ok().flatten();
        put_process(&mut out, process);
    }
    let text = out.finish().map_err(|error| internal(format_args!("metrics: {error}")))?;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(series::CONTENT_TYPE));
    call.answer_counted(response)
}

/// Whether JSON is accepted with a greater weight than text; what accepts both alike gets text.
fn prefers_json(accepted: &[u8]) -> bool {
    let accepted = String::from_utf8_lossy(accepted).to_ascii_lowercase();
    let weight_of = |wanted: &[&str]| {
        let ranges = accepted.split(',').filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let is_wanted = parts.next().is_some_and(|name| wanted.contains(&name));
            let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
            weight.filter(|_| is_wanted)
        });
        ranges.fold(0.0, f32::max)
    };
    weight_of(&["application/json"]) > weight_of(&["text/plain", "text/*", "*/*"])
}

fn put_names(out: &mut Exposition, figures: &Figures) {
    put_topics(out, figures);
    let routers = || figures.by_router.iter();
    let forwarded = routers().map(|router| (&router.name, router.forwarded_total as f64));
    out.labelled(series::ROUTER_FORWARDED, "router", forwarded);
    let links = || routers().filter_map(|router| Some((&router.name, router.link?)));
    out.labelled(series::ROUTER_LAG, "router", links().map(|(name, (_, lag))| (name, lag as f64)));
    out.states(series::ROUTER_STATE, "router", &LINK_STATES, links().map(|(name, (state, _))| (name, state)));
}

fn put_member(out: &mut Exposition, figures: &Figures) {
    let build = [("version", VERSION), ("commit", COMMIT)];
    out.put(series::BUILD_INFO, vec![sample(series::BUILD_INFO, &build, 1.0)]);
    let by_class = CLASSES.iter().zip(figures.topics_by_class);
    out.labelled(series::TOPICS_BY_CLASS, "class", by_class.map(|(class, count)| (class, count as f64)));
    for (series, value) in [
        (series::TOPICS, figures.topics),
        (series::ROUTERS, figures.routers),
        (series::RECORDS_LIVE, figures.records_live),
        (series::BYTES_LIVE, figures.bytes_live),
        (series::IDEMPOTENCY_KEYS, figures.idempotency_keys),
        (series::QUEUE_TOPICS, figures.queue_topics),
        // Of what is not there yet there are none.
        (series::GROUPS, 0),
        (series::QUEUE_LEASES_IN_FLIGHT, 0),
        (series::SSE_CONNECTIONS, figures.streams),
        (series::WATCH_SESSIONS, figures.watch_sessions),
        (series::READY, figures.is_ready.into()),
        (series::UPTIME_MS, figures.uptime_ms),
        (series::RAFT_IS_LEADER, figures.is_leader.into()),
        (series::RAFT_TERM, figures.term),
        (series::RAFT_COMMIT_INDEX, figures.commit_index),
        (series::RAFT_APPLIED_INDEX, figures.applied_index),
        (series::RAFT_ELECTIONS, figures.elections),
        (series::CHECKPOINT_LAG_ENTRIES, figures.checkpoint_lag),
        (series::FORWARDED_REQUESTS, figures.forwarded_requests),
    ] {
        out.value(series, value as f64);
    }
    out.value(series::RECOVERY_PROGRESS, figures.replay_progress);
    out.value(series::CHECKPOINT_AGE, seconds(figures.checkpoint_age_ms));
    if let Some(free_bytes) = figures.disk_free_bytes {
        out.value(series::DISK_FREE, free_bytes as f64);
    }
    put_log(out, figures);
    let held_for = |reason: &str| figures.log_held.as_ref().filter(|held| held.reason == reason);
    let by_reason = |read: fn(&HeldView) -> f64| {
        Holder::REASONS.into_iter().map(move |reason| (reason, held_for(reason).map_or(0.0, read)))
    };
    out.labelled(series::RAFT_LOG_HELD_ENTRIES, "reason", by_reason(|held| held.entries as f64));
    out.labelled(series::RAFT_LOG_HELD, "reason", by_reason(|held| seconds(held.for_ms)));
    let members = || figures.by_member.iter();
    out.labelled(series::MEMBER_UP, "member", members().map(|it| (&it.name, it.is_up.into())));
    let lags = members().filter_map(|it| Some((&it.name, it.lag? as f64)));
    out.labelled(series::MEMBER_LAG, "member", lags);
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn put_process(out: &mut Exposition, process: Option<ProcessFigures>) {
    let Some(process) = process else { return };
    for (series, value) in [
        (series::PROCESS_CPU, process.cpu_seconds),
        (series::PROCESS_RESIDENT, process.resident_bytes as f64),
        (series::PROCESS_VIRTUAL, process.virtual_bytes as f64),
        (series::PROCESS_OPEN_FDS, process.open_files as f64),
        (series::PROCESS_MAX_FDS, process.max_open_files.map_or(f64::INFINITY, |max| max as f64)),
        (series::PROCESS_START_TIME, process.start_seconds),
    ] {
        out.value(series, value);
    }
}

fn put_topics(out: &mut Exposition, figures: &Figures) {
    type Read = fn(&TopicFigures) -> u64;
    let of_all: [(Series, Read); 4] = [
        (series::TOPIC_HEAD_SEQ, |topic| topic.head_seq),
        (series::TOPIC_EARLIEST_SEQ, |topic| topic.earliest_seq),
        (series::TOPIC_RECORDS_LIVE, |topic| topic.records_live),
        (series::TOPIC_BYTES_LIVE, |topic| topic.bytes_live),
    ];
    // Nothing can be claimed yet, so everything live is ready.
    let of_queues: [(Series, Read); 2] =
        [(series::TOPIC_QUEUE_READY, |topic| topic.records_live), (series::TOPIC_QUEUE_IN_FLIGHT, |_| 0)];
    let topics = || figures.by_topic.iter();
    for (series, read) in of_all {
        out.labelled(series, "topic", topics().map(|topic| (&topic.name, read(topic) as f64)));
    }
    for (series, read) in of_queues {
        let queues = topics().filter(|topic| topic.is_queue);
        out.labelled(series, "topic", queues.map(|topic| (&topic.name, read(topic) as f64)));
    }
    let is_truncated = figures.topics > figures.by_topic.len() as u64;
    out.value(series::TOPIC_METRICS_TRUNCATED, is_truncated.into());
}

fn put_log(out: &mut Exposition, figures: &Figures) {
    for (series, value) in log_figures(figures) {
        out.value(series, value as f64);
    }
    let log = &figures.log;
    let bounds =
        SYNC_BUCKETS_US.iter().map(|bound| if *bound == u64::MAX { f64::INFINITY } else { *bound as f64 });
    let latency = histogram(&[], bounds.zip(log.sync_buckets), log.sync_time_us as f64);
    out.put(series::WAL_FSYNC_LATENCY_US, vec![latency]);
}

fn log_figures(figures: &Figures) -> [(Series, u64); 9] {
    let log = &figures.log;
    [
        (series::WAL_FRAMES, log.frames),
        (series::WAL_BATCHES, log.batches),
        (series::WAL_FSYNCS, log.syncs),
        (series::WAL_BYTES_WRITTEN, log.bytes_written),
        (series::WAL_ROTATIONS, log.rotations),
        (series::WAL_QUEUE_DEPTH, log.queue_depth),
        (series::WAL_QUEUE_DEPTH_PEAK, log.queue_depth_peak),
        (series::WAL_SUBMIT_FULL, 0),
        (series::WAL_READ_ONLY, figures.is_read_only as u64),
    ]
}

/// C-OPS-10. To a key with prefixes only what its own topics and routers add up to.
fn put_json(json: &mut JsonWriter, figures: &Figures, of_whole_member: bool) {
    for (name, value) in [
        ("topics", figures.topics),
        ("routers", figures.routers),
        ("records_live", figures.records_live),
        ("bytes_live", figures.bytes_live),
        ("queue_topics", figures.queue_topics),
        ("queue_leases_in_flight", 0),
    ] {
        json.field(name, value);
    }
    let class_names = ["topics_ephemeral", "topics_memory", "topics_disk", "topics_fsync"];
    for (name, count) in class_names.into_iter().zip(figures.topics_by_class) {
        json.field(name, count);
    }
    if !of_whole_member {
        return;
    }
    for (name, value) in [
        ("idempotency_keys", figures.idempotency_keys),
        ("sse_connections", figures.streams),
        ("watch_sessions", figures.watch_sessions),
        ("uptime_ms", figures.uptime_ms),
    ] {
        json.field(name, value);
    }
    json.field("ready", figures.is_ready);
    let progress = format!("{:?}", figures.replay_progress);
    json.field("recovery_progress", Raw(&progress));
    json.field("replay_progress", Raw(&progress));
    json.object_field("wal", |json| {
        for (series, value) in log_figures(figures) {
            let name = series.name.strip_prefix(series::LOG_PREFIX).unwrap_or(series.name);
            json.field(name.strip_suffix("_total").unwrap_or(name), value);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::prefers_json;

    #[test]
    fn json_is_sent_to_those_who_would_rather_have_it() {
        let rather =
            ["application/json", "text/html, Application/JSON;q=0.9", "application/json;q=0.2,*/*;q=0.1"];
        let others =
            ["", "*/*", "text/plain;version=0.0.4;q=0.5,application/json;q=0.1", "application/json,*/*"];
        assert!(rather.iter().all(|accepted| prefers_json(accepted.as_bytes())));
        assert!(!others.iter().any(|accepted| prefers_json(accepted.as_bytes())));
        assert!(!prefers_json(b"application/json;q=0"));
    }
}
