//! The names of all metrics, and the text in which Prometheus reads them.
//!
//! Figures are read when somebody asks for them, so there is no registry to keep: a series is a name, a
//! kind and a line of help here, and the endpoint gives it values. Libraries for this write OpenMetrics,
//! where the contract has the older text format (version 0.0.4), which is a few lines.
//!
//! Labels are `topic`, `class`, `member` and `le`, and nothing that a client can make up at will: topics
//! are bounded by the caller.

use std::fmt::{Display, Write};

/// What kind of figure a series is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gauge,
    Counter,
    Histogram,
}

/// One series; `name` has no prefix.
#[derive(Debug, Clone, Copy)]
pub struct Series {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

/// What every name starts with.
pub const PREFIX: &str = "antiphon_";
/// `Content-Type` of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

macro_rules! series {
    ($($constant:ident = $name:literal, $kind:ident, $help:literal;)*) => {
        $(pub const $constant: Series = Series { name: $name, kind: Kind::$kind, help: $help };)*
    };
}

series! {
    TOPICS = "topics", Gauge, "Topics.";
    TOPICS_BY_CLASS = "topics_by_class", Gauge, "Topics by durability class.";
    ROUTERS = "routers", Gauge, "Routers.";
    RECORDS_LIVE = "records_live", Gauge, "Live records of all topics.";
    BYTES_LIVE = "bytes_live", Gauge, "Live bytes of all topics.";
    IDEMPOTENCY_KEYS = "idempotency_keys", Gauge, "Idempotency keys that the cluster remembers.";
    QUEUE_TOPICS = "queue_topics", Gauge, "Topics that are queues.";
    QUEUE_LEASES_IN_FLIGHT = "queue_leases_in_flight", Gauge, "Jobs that are leased.";
    GROUPS = "groups", Gauge, "Consumer groups.";
    SSE_CONNECTIONS = "sse_connections", Gauge, "Open event streams and WebSockets at this member.";
    WATCH_SESSIONS = "watch_sessions", Gauge, "Watch sessions at this member.";
    READY = "ready", Gauge, "1 if this member is ready, else 0.";
    RECOVERY_PROGRESS = "recovery_progress", Gauge, "Share of the log that is applied since the start.";
    UPTIME_MS = "uptime_ms", Gauge, "Time since the start in milliseconds.";
    TOPIC_HEAD_SEQ = "topic_head_seq", Gauge, "Highest seq of a topic.";
    TOPIC_EARLIEST_SEQ = "topic_earliest_seq", Gauge, "First live seq of a topic.";
    TOPIC_RECORDS_LIVE = "topic_records_live", Gauge, "Live records of a topic.";
    TOPIC_BYTES_LIVE = "topic_bytes_live", Gauge, "Live bytes of a topic.";
    TOPIC_QUEUE_READY = "topic_queue_ready", Gauge, "Jobs of a queue that can be claimed.";
    TOPIC_QUEUE_IN_FLIGHT = "topic_queue_in_flight", Gauge, "Jobs of a queue that are leased.";
    TOPIC_METRICS_TRUNCATED = "topic_metrics_truncated", Gauge, "1 if there are topics without series, else 0.";
    ROUTER_FORWARDED = "router_forwarded_total", Counter, "Copies that a router has stored.";
    ROUTER_LAG = "router_lag", Gauge, "Seqs of its source that a router has not examined; only at the leader.";
    ROUTER_STATE = "router_state", Gauge, "1 for the state that a router is in, else 0; only at the leader.";
    WAL_FRAMES = "wal_frames_total", Counter, "Frames written to the log.";
    WAL_BATCHES = "wal_batches_total", Counter, "Groups of frames written and synced together.";
    WAL_FSYNCS = "wal_fsyncs_total", Counter, "Syncs of the log.";
    WAL_BYTES_WRITTEN = "wal_bytes_written_total", Counter, "Bytes written to the log.";
    WAL_ROTATIONS = "wal_rotations_total", Counter, "Segments begun.";
    WAL_QUEUE_DEPTH = "wal_queue_depth", Gauge, "Operations that wait for the log's writer.";
    WAL_QUEUE_DEPTH_PEAK = "wal_queue_depth_peak", Gauge, "Most operations that have waited.";
    WAL_SUBMIT_FULL = "wal_submit_full_total", Counter, "Operations refused because the queue was full; it is waited for, so none.";
    WAL_READ_ONLY = "wal_read_only", Gauge, "1 while records are refused for want of room, else 0.";
    WAL_FSYNC_LATENCY_US = "wal_fsync_latency_us", Histogram, "Time of a sync in microseconds.";
    RAFT_IS_LEADER = "raft_is_leader", Gauge, "1 at the leader, else 0.";
    RAFT_TERM = "raft_term", Gauge, "Raft term.";
    RAFT_COMMIT_INDEX = "raft_commit_index", Gauge, "Last committed log index that is known here.";
    RAFT_APPLIED_INDEX = "raft_applied_index", Gauge, "Last applied log index.";
    RAFT_ELECTIONS = "raft_elections_total", Counter, "Elections won by anybody since the start.";
    RAFT_LOG_HELD_ENTRIES = "raft_log_held_entries", Gauge, "Log entries that are kept beyond the usual, by what holds them back.";
    RAFT_LOG_HELD_MS = "raft_log_held_ms", Gauge, "For how long, in milliseconds.";
    CHECKPOINT_LAG_ENTRIES = "checkpoint_lag_entries", Gauge, "Applied log entries that the checkpoint on disk does not cover.";
    CHECKPOINT_AGE_MS = "checkpoint_age_ms", Gauge, "Time since the checkpoint on disk covered all that was applied, in milliseconds.";
    MEMBER_LAG = "member_lag", Gauge, "Log entries that a member is behind, as known here.";
    FORWARDED_REQUESTS = "forwarded_requests_total", Counter, "Commands handed to another member that leads.";
}

/// Metrics in the making.
#[derive(Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// A series of one value.
    pub fn value(&mut self, series: Series, value: impl Display) {
        self.labelled(series, "", std::iter::once(("", value)));
    }

    /// A series with one value per value of `label`.
    pub fn labelled<L: Display, V: Display>(
        &mut self,
        series: Series,
        label: &str,
        values: impl Iterator<Item = (L, V)>,
    ) {
        self.head(series);
        for (text, value) in values {
            self.sample(series.name, "", label, text, value);
        }
    }

    /// A series that says in which of some states each thing is: 1 for that, 0 for the others.
    pub fn states<L: Display, S: PartialEq + Copy>(
        &mut self,
        series: Series,
        label: &str,
        states: &[(S, &str)],
        values: impl Iterator<Item = (L, S)>,
    ) {
        self.head(series);
        for (text, now) in values {
            for (state, name) in states {
                let is_it = (now == *state) as u8;
                let _ = writeln!(
                    self.text,
                    "{PREFIX}{}{{{label}=\"{text}\",state=\"{name}\"}} {is_it}",
                    series.name
                );
            }
        }
    }

    /// A histogram from its buckets, which are not cumulative: upper bound (`u64::MAX`: none) and count.
    pub fn histogram(&mut self, series: Series, buckets: impl Iterator<Item = (u64, u64)>, sum: u64) {
        self.head(series);
        let mut count = 0;
        for (bound, in_bucket) in buckets {
            count += in_bucket;
            if bound < u64::MAX {
                self.sample(series.name, "_bucket", "le", bound, count);
            }
        }
        self.sample(series.name, "_bucket", "le", "+Inf", count);
        self.sample(series.name, "_sum", "", "", sum);
        self.sample(series.name, "_count", "", "", count);
    }

    pub fn finish(self) -> String {
        self.text
    }

    fn head(&mut self, series: Series) {
        let kind = match series.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {PREFIX}{} {}", series.name, series.help);
        let _ = writeln!(self.text, "# TYPE {PREFIX}{} {kind}", series.name);
    }

    /// Label values are names and numbers, which need no escaping.
    fn sample(&mut self, name: &str, end: &str, label: &str, text: impl Display, value: impl Display) {
        let _ = match label {
            "" => writeln!(self.text, "{PREFIX}{name}{end} {value}"),
            label => writeln!(self.text, "{PREFIX}{name}{end}{{{label}=\"{text}\"}} {value}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_written_as_prometheus_reads_them() {
        let mut text = Exposition::default();
        text.value(TOPICS, 3);
        text.labelled(MEMBER_LAG, "member", [("m1", 0), ("m2", 7)].into_iter());
        text.histogram(WAL_FSYNC_LATENCY_US, [(50, 2), (100, 0), (u64::MAX, 1)].into_iter(), 999);
        let lines: Vec<String> =
            text.finish().lines().filter(|line| !line.starts_with("# HELP")).map(str::to_owned).collect();
        assert_eq!(
            lines,
            [
                "# TYPE antiphon_topics gauge",
                "antiphon_topics 3",
                "# TYPE antiphon_member_lag gauge",
                "antiphon_member_lag{member=\"m1\"} 0",
                "antiphon_member_lag{member=\"m2\"} 7",
                "# TYPE antiphon_wal_fsync_latency_us histogram",
                "antiphon_wal_fsync_latency_us_bucket{le=\"50\"} 2",
                "antiphon_wal_fsync_latency_us_bucket{le=\"100\"} 2",
                "antiphon_wal_fsync_latency_us_bucket{le=\"+Inf\"} 3",
                "antiphon_wal_fsync_latency_us_sum 999",
                "antiphon_wal_fsync_latency_us_count 3",
            ]
        );
    }
}
