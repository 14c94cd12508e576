//! `GET /v0/metrics`: figures of the answering member (contract section 21).

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;

use crate::api::Api;
use crate::api::call::{Call, Read};
use crate::api::json::{JsonWriter, Raw};
use crate::api::reply::{Answer, Reply};
use crate::engine::{Figures, HeldView, TopicFigures};
use crate::raft::Holder;
use crate::storage::SYNC_BUCKETS_US;
use crate::telemetry::metrics::{self as series, Exposition, Series};

/// Durability classes, in the order in which figures count them.
const CLASSES: [&str; 4] = ["ephemeral", "memory", "disk", "fsync"];

pub async fn get(State(api): State<Api>, call: Call<Read>) -> Answer {
    // Not admitted by readiness: C-OPS-06.
    let figures = api.engine.figures().await;
    let wants_json = call.header(&ACCEPT).is_some_and(|accepted| {
        accepted.to_ascii_lowercase().windows(16).any(|part| part == b"application/json")
    });
    if wants_json {
        let mut reply = Reply::new(call.arrived, 1024);
        put_json(&mut reply.json, &figures);
        return Ok(reply.finish(StatusCode::OK));
    }
    let mut response = Response::new(Body::from(text(&figures)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(series::CONTENT_TYPE));
    Ok(response)
}

fn text(figures: &Figures) -> String {
    let mut out = Exposition::default();
    out.value(series::TOPICS, figures.topics);
    let by_class = CLASSES.iter().zip(figures.topics_by_class);
    out.labelled(series::TOPICS_BY_CLASS, "class", by_class);
    out.value(series::RECORDS_LIVE, figures.records_live);
    out.value(series::BYTES_LIVE, figures.bytes_live);
    out.value(series::QUEUE_TOPICS, figures.queue_topics);
    // Of what is not there yet there are none.
    for none in [series::ROUTERS, series::GROUPS, series::QUEUE_LEASES_IN_FLIGHT] {
        out.value(none, 0);
    }
    out.value(series::SSE_CONNECTIONS, figures.streams);
    out.value(series::WATCH_SESSIONS, figures.watch_sessions);
    out.value(series::READY, figures.is_ready as u8);
    out.value(series::RECOVERY_PROGRESS, figures.replay_progress);
    out.value(series::UPTIME_MS, figures.uptime_ms);
    put_topics(&mut out, figures);
    put_log(&mut out, figures);
    out.value(series::RAFT_IS_LEADER, figures.is_leader as u8);
    out.value(series::RAFT_TERM, figures.term);
    out.value(series::RAFT_COMMIT_INDEX, figures.commit_index);
    out.value(series::RAFT_APPLIED_INDEX, figures.applied_index);
    out.value(series::RAFT_ELECTIONS, figures.elections);
    let held_for = |reason: &str| figures.log_held.as_ref().filter(|held| held.reason == reason);
    let by_reason = |read: fn(&HeldView) -> u64| {
        Holder::REASONS.into_iter().map(move |reason| (reason, held_for(reason).map_or(0, read)))
    };
    out.labelled(series::RAFT_LOG_HELD_ENTRIES, "reason", by_reason(|held| held.entries));
    out.labelled(series::RAFT_LOG_HELD_MS, "reason", by_reason(|held| held.for_ms));
    out.value(series::CHECKPOINT_LAG_ENTRIES, figures.checkpoint_lag);
    out.value(series::CHECKPOINT_AGE_MS, figures.checkpoint_age_ms);
    out.labelled(series::MEMBER_LAG, "member", figures.member_lag.iter().map(|(name, lag)| (name, lag)));
    out.value(series::FORWARDED_REQUESTS, figures.forwarded_requests);
    out.finish()
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
        out.labelled(series, "topic", topics().map(|topic| (&topic.name, read(topic))));
    }
    for (series, read) in of_queues {
        let queues = topics().filter(|topic| topic.is_queue);
        out.labelled(series, "topic", queues.map(|topic| (&topic.name, read(topic))));
    }
    let is_truncated = figures.topics > figures.by_topic.len() as u64;
    out.value(series::TOPIC_METRICS_TRUNCATED, is_truncated as u8);
}

fn put_log(out: &mut Exposition, figures: &Figures) {
    for (series, value) in log_figures(figures) {
        out.value(series, value);
    }
    let log = &figures.log;
    let buckets = SYNC_BUCKETS_US.iter().copied().zip(log.sync_buckets);
    out.histogram(series::WAL_FSYNC_LATENCY_US, buckets, log.sync_time_us);
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

/// C-OPS-10.
fn put_json(json: &mut JsonWriter, figures: &Figures) {
    for (name, value) in [
        ("topics", figures.topics),
        ("routers", 0),
        ("records_live", figures.records_live),
        ("bytes_live", figures.bytes_live),
        ("queue_topics", figures.queue_topics),
        ("queue_leases_in_flight", 0),
        ("sse_connections", figures.streams),
        ("watch_sessions", figures.watch_sessions),
        ("uptime_ms", figures.uptime_ms),
    ] {
        json.field(name, value);
    }
    let class_names = ["topics_ephemeral", "topics_memory", "topics_disk", "topics_fsync"];
    for (name, count) in class_names.into_iter().zip(figures.topics_by_class) {
        json.field(name, count);
    }
    json.field("ready", figures.is_ready);
    let progress = format!("{:?}", figures.replay_progress);
    json.field("recovery_progress", Raw(&progress));
    json.field("replay_progress", Raw(&progress));
    json.object_field("wal", |json| {
        for (series, value) in log_figures(figures) {
            let name = series.name.strip_prefix("wal_").unwrap_or(series.name);
            json.field(name.strip_suffix("_total").unwrap_or(name), value);
        }
    });
}
