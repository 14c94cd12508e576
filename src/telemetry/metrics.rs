//! The names of all metrics, and the text in which Prometheus reads them.
//!
//! Most figures are read when somebody asks for them. What is counted where it happens has a counter of the crate
//! `prometheus` there, made of a name in this table. Both become families of that crate, which writes the text.
//!
//! Labels hold nothing that a client can make up at will: routes are those of the table of routes, and topics and routers
//! are bounded by who puts them in.

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, TextEncoder};

/// What kind of figure a series is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gauge,
    Counter,
    Histogram,
}

/// One series.
#[derive(Debug, Clone, Copy)]
pub struct Series {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

/// `Content-Type` of the text.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;
/// What the names of figures of the log begin with.
pub const LOG_PREFIX: &str = "antiphon_wal_";

macro_rules! series {
    ($prefix:literal: $($constant:ident = $name:literal, $kind:ident, $help:literal;)*) => {
        $(pub const $constant: Series =
            Series { name: concat!($prefix, $name), kind: Kind::$kind, help: $help };)*
    };
}

series! { "antiphon_":
    BUILD_INFO = "build_info", Gauge, "1, for the version and the commit of this build.";
    TOPICS = "topics", Gauge, "Topics.";
    TOPICS_BY_CLASS = "topics_by_class", Gauge, "Topics by durability class.";
    ROUTERS = "routers", Gauge, "Routers.";
    RECORDS_LIVE = "records_live", Gauge, "Live records of all topics.";
    BYTES_LIVE = "bytes_live", Gauge, "Live bytes of all topics.";
    IDEMPOTENCY_KEYS = "idempotency_keys", Gauge, "Idempotency keys that the cluster remembers.";
    QUEUE_TOPICS = "queue_topics", Gauge, "Topics that are queues.";
    QUEUE_LEASES_IN_FLIGHT = "queue_leases_in_flight", Gauge, "Jobs that are leased.";
    GROUPS = "groups", Gauge, "Consumer groups.";
    REQUESTS = "http_requests_total", Counter, "Requests by route and class of the answer's status; none: the client went before the answer.";
    REQUEST_DURATION = "http_request_duration_seconds", Histogram, "Time from the head of a request to that of its answer; the upload of its body, at the client's pace, and waiting for records included.";
    KEY_REFUSALS = "key_refusals_total", Counter, "Requests and commands refused for their key: it is not known (unauthorized), or may not do that (forbidden).";
    CLIENT_CONNECTIONS = "client_connections", Gauge, "Open connections of clients.";
    MAX_CLIENT_CONNECTIONS = "client_connections_max", Gauge, "Most connections of clients that may be open.";
    REFUSED_CLIENT_CONNECTIONS = "client_connections_refused_total", Counter, "Connections of clients that were not taken.";
    SSE_CONNECTIONS = "sse_connections", Gauge, "Open event streams and WebSockets at this member.";
    WATCH_SESSIONS = "watch_sessions", Gauge, "Watch sessions at this member.";
    READY = "ready", Gauge, "1 if this member is ready, else 0.";
    RECOVERY_PROGRESS = "recovery_progress", Gauge, "Share of the log that is applied since the start.";
    UPTIME_MS = "uptime_ms", Gauge, "Time since the start in milliseconds.";
    DISK_FREE = "disk_free_bytes", Gauge, "Free space of the disk that holds the data directory.";
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
    RAFT_LOG_HELD = "raft_log_held_seconds", Gauge, "For how long log entries are kept beyond the usual, by what holds them back.";
    CHECKPOINT_LAG_ENTRIES = "checkpoint_lag_entries", Gauge, "Applied log entries that the checkpoint on disk does not cover.";
    CHECKPOINT_AGE = "checkpoint_age_seconds", Gauge, "Time since the checkpoint on disk covered all that was applied.";
    MEMBER_UP = "member_up", Gauge, "1 if a member was heard lately, else 0.";
    MEMBER_LAG = "member_lag", Gauge, "Log entries that a member is behind, as known here; of one that is down, as it said last.";
    FORWARDED_REQUESTS = "forwarded_requests_total", Counter, "Commands handed to another member that leads.";
}

// The names that every process has for these.
series! { "process_":
    PROCESS_CPU = "cpu_seconds_total", Counter, "CPU time in user and kernel mode.";
    PROCESS_RESIDENT = "resident_memory_bytes", Gauge, "Memory that is resident.";
    PROCESS_VIRTUAL = "virtual_memory_bytes", Gauge, "Memory that is mapped.";
    PROCESS_OPEN_FDS = "open_fds", Gauge, "Open file descriptors.";
    PROCESS_MAX_FDS = "max_fds", Gauge, "Most file descriptors that may be open.";
    PROCESS_START_TIME = "start_time_seconds", Gauge, "Start of the process in Unix time.";
}

impl Series {
    /// Counters of this series by the values of `label`. The names in the table are good, which is all that can be
    /// wrong with them.
    pub fn counters(self, label: &str) -> IntCounterVec {
        IntCounterVec::new(self.options(), &[label]).expect("the name of a metric")
    }

    pub fn counter(self) -> IntCounter {
        IntCounter::with_opts(self.options()).expect("the name of a metric")
    }

    pub fn gauge(self) -> IntGauge {
        IntGauge::with_opts(self.options()).expect("the name of a metric")
    }

    fn options(self) -> Opts {
        Opts::new(self.name, self.help)
    }
}

/// Labels of one sample, with their values.
pub type Labels<'a> = [(&'a str, &'a str)];

/// Metrics in the making.
#[derive(Default)]
pub struct Exposition {
    families: Vec<MetricFamily>,
}

impl Exposition {
    /// A series of one value.
    pub fn value(&mut self, series: Series, value: f64) {
        self.put(series, vec![sample(series, &[], value)]);
    }

    /// A series with one value per value of `label`.
    pub fn labelled<L: AsRef<str>>(
        &mut self,
        series: Series,
        label: &str,
        values: impl Iterator<Item = (L, f64)>,
    ) {
        let samples = values.map(|(text, value)| sample(series, &[(label, text.as_ref())], value));
        self.put(series, samples.collect());
    }

    /// A series that says in which of some states each thing is: 1 for that, 0 for the others.
    pub fn states<L: AsRef<str>, S: PartialEq + Copy>(
        &mut self,
        series: Series,
        label: &str,
        states: &[(S, &str)],
        values: impl Iterator<Item = (L, S)>,
    ) {
        let mut samples = Vec::new();
        for (text, now) in values {
            samples.extend(states.iter().map(|(state, name)| {
                let is_it = (now == *state) as u8;
                sample(series, &[(label, text.as_ref()), ("state", name)], is_it.into())
            }));
        }
        self.put(series, samples);
    }

    /// A series of these samples, if there are any.
    pub fn put(&mut self, series: Series, samples: Vec<Metric>) {
        if samples.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(series.name.to_owned());
        family.set_help(series.help.to_owned());
        family.set_field_type(match series.kind {
            Kind::Gauge => MetricType::GAUGE,
            Kind::Counter => MetricType::COUNTER,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        family.set_metric(samples);
        self.families.push(family);
    }

    /// What was counted elsewhere.
    pub fn extend(&mut self, families: Vec<MetricFamily>) {
        self.families.extend(families);
    }

    pub fn finish(self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.families)
    }
}

/// A value of a series that is no histogram.
pub fn sample(series: Series, labels: &Labels<'_>, value: f64) -> Metric {
    let mut metric = labelled(labels);
    if series.kind == Kind::Counter {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

/// A histogram from its buckets, which are not cumulative: upper bound (infinite for the last one) and count.
pub fn histogram(labels: &Labels<'_>, buckets: impl Iterator<Item = (f64, u64)>, sum: f64) -> Metric {
    let mut count = 0;
    let mut finite = Vec::new();
    for (bound, in_bucket) in buckets {
        count += in_bucket;
        // That of all others is made of the count.
        if bound.is_finite() {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            finite.push(bucket);
        }
    }
    let mut histogram = Histogram::default();
    histogram.set_bucket(finite);
    histogram.set_sample_count(count);
    histogram.set_sample_sum(sum);
    let mut metric = labelled(labels);
    metric.set_histogram(histogram);
    metric
}

fn labelled(labels: &Labels<'_>) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_written_as_prometheus_reads_them() {
        let mut text = Exposition::default();
        text.value(TOPICS, 3.0);
        text.labelled(MEMBER_LAG, "member", [("m1", 0.0), ("m\"2", 7.0)].into_iter());
        let buckets = [(50.0, 2), (100.0, 0), (f64::INFINITY, 1)];
        text.put(WAL_FSYNC_LATENCY_US, vec![histogram(&[("a", "b")], buckets.into_iter(), 999.0)]);
        text.states(ROUTER_STATE, "router", &[(1, "one"), (2, "two")], [("r", 2)].into_iter());
        text.labelled::<&str>(ROUTER_LAG, "router", std::iter::empty());
        let counted = KEY_REFUSALS.counters("reason");
        counted.with_label_values(&["forbidden"]).inc();
        text.extend(prometheus::core::Collector::collect(&counted));
        let text = text.finish().unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("# HELP")).collect();
        assert_eq!(
            lines,
            [
                "# TYPE antiphon_topics gauge",
                "antiphon_topics 3",
                "# TYPE antiphon_member_lag gauge",
                "antiphon_member_lag{member=\"m1\"} 0",
                "antiphon_member_lag{member=\"m\\\"2\"} 7",
                "# TYPE antiphon_wal_fsync_latency_us histogram",
                "antiphon_wal_fsync_latency_us_bucket{a=\"b\",le=\"50\"} 2",
                "antiphon_wal_fsync_latency_us_bucket{a=\"b\",le=\"100\"} 2",
                "antiphon_wal_fsync_latency_us_bucket{a=\"b\",le=\"+Inf\"} 3",
                "antiphon_wal_fsync_latency_us_sum{a=\"b\"} 999",
                "antiphon_wal_fsync_latency_us_count{a=\"b\"} 3",
                "# TYPE antiphon_router_state gauge",
                "antiphon_router_state{router=\"r\",state=\"one\"} 0",
                "antiphon_router_state{router=\"r\",state=\"two\"} 1",
                "# TYPE antiphon_key_refusals_total counter",
                "antiphon_key_refusals_total{reason=\"forbidden\"} 1",
            ]
        );
    }
}
