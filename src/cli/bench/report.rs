//! The figures of a run, as a row of a table and as one JSON object.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::options::{Options, Target, Verb};
use super::usage::Usage;

/// What one member used in the window.
#[derive(Debug)]
pub struct MemberUsage {
    /// The member's name, or its process id if the name is not known.
    pub name: String,
    pub pid: u32,
    pub usage: Usage,
}

/// What was measured; counts are of the window where nothing else is said.
pub struct Report<'a> {
    pub options: &'a Options,
    pub ops: u64,
    pub records: u64,
    pub unsent: u64,
    pub latencies_us: &'a Histogram<u64>,
    /// By kind, of the whole run.
    pub errors: Vec<(String, u64)>,
    /// Empty if no processes are known.
    pub members: Vec<MemberUsage>,
    pub client_cpu_s: f64,
    /// Records acked in the whole run, and the sum of the topics' heads at its end.
    pub acked_records: u64,
    pub head_sum: u64,
    /// Appends of unknown outcome in the whole run.
    pub unknown: u64,
}

const HEADING: &str = "\
| Load | ops/s | records/s | MB/s | p50 ms | p99 ms | p99.9 ms | max ms | errors | CPU s per M records | client CPU | MB written per member | MB in write calls |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

impl Report<'_> {
    fn seconds(&self) -> f64 {
        self.options.duration.as_secs_f64()
    }

    fn error_count(&self) -> u64 {
        self.errors.iter().map(|(_, count)| count).sum()
    }

    fn quantile_ms(&self, quantile: f64) -> f64 {
        ms(self.latencies_us.value_at_quantile(quantile))
    }

    /// CPU seconds of all members; `None` if their processes are not known.
    fn members_cpu_s(&self) -> Option<f64> {
        (!self.members.is_empty()).then(|| self.members.iter().map(|member| member.usage.cpu_s).sum())
    }

    fn cpu_s_per_million(&self) -> Option<f64> {
        let cpu_s = self.members_cpu_s().filter(|_| self.records > 0)?;
        Some(cpu_s * 1e6 / self.records as f64)
    }

    /// A heading and one row, in Markdown, with what went wrong below.
    pub fn table(&self) -> String {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let per_member = |bytes: fn(&Usage) -> Option<u64>| {
            let each: Option<Vec<String>> = self
                .members
                .iter()
                .map(|member| Some(format!("{:.1}", bytes(&member.usage)? as f64 / 1e6)))
                .collect();
            or_dash(each.filter(|each| !each.is_empty()).map(|each| each.join(" / ")))
        };
        let cells = [
            load_of(self.options),
            format!("{:.0}", self.ops as f64 / self.seconds()),
            format!("{:.0}", self.records as f64 / self.seconds()),
            format!("{:.1}", self.payload_bytes_per_s() / 1e6),
            format!("{:.2}", self.quantile_ms(0.5)),
            format!("{:.2}", self.quantile_ms(0.99)),
            format!("{:.2}", self.quantile_ms(0.999)),
            format!("{:.2}", ms(self.latencies_us.max())),
            self.error_count().to_string(),
            or_dash(self.cpu_s_per_million().map(|cpu_s| format!("{cpu_s:.2}"))),
            format!("{:.0} %", 100.0 * self.client_cpu_s / self.seconds()),
            per_member(|usage| usage.written_bytes),
            per_member(|usage| usage.wchar_bytes),
        ];
        let mut text = format!("{HEADING}\n| {} |", cells.join(" | "));
        if self.unsent > 0 {
            text += &format!("\n\n{} operations were due and never sent: the rate is too high", self.unsent);
        }
        for (kind, count) in &self.errors {
            text += &format!("\n\nerrors: {count} x {kind}");
        }
        text
    }

    fn payload_bytes_per_s(&self) -> f64 {
        self.records as f64 * self.options.payload_bytes as f64 / self.seconds()
    }

    pub fn json(&self) -> Value {
        let options = self.options;
        let (verb, page) = match options.verb {
            Verb::Append => ("append", None),
            Verb::Read { page, .. } => ("read", Some(page)),
            Verb::Watch { .. } => ("watch", None),
        };
        let members: Vec<Value> = self
            .members
            .iter()
            .map(|member| {
                json!({
                    "name": member.name, "pid": member.pid, "cpu_s": rounded(member.usage.cpu_s),
                    "written_bytes": member.usage.written_bytes, "wchar_bytes": member.usage.wchar_bytes,
                })
            })
            .collect();
        let by_kind: serde_json::Map<String, Value> =
            self.errors.iter().map(|(kind, count)| (kind.clone(), json!(count))).collect();
        json!({
            "verb": verb,
            "connections": options.connections,
            "target": match options.target {
                Target::All => "all",
                Target::Leader => "leader",
                Target::Followers => "followers",
            },
            "batch": options.batch,
            "page": page,
            "payload_bytes": options.payload_bytes,
            "durability": options.durability,
            "topics": options.topics,
            "rate": options.rate,
            "warmup_s": options.warmup.as_secs_f64(),
            "duration_s": self.seconds(),
            "ops": self.ops,
            "records": self.records,
            "ops_per_s": rounded(self.ops as f64 / self.seconds()),
            "records_per_s": rounded(self.records as f64 / self.seconds()),
            "payload_bytes_per_s": rounded(self.payload_bytes_per_s()),
            "unsent": self.unsent,
            "latency_ms": {
                "count": self.latencies_us.len(),
                "mean": rounded(self.latencies_us.mean() / 1e3),
                "p50": self.quantile_ms(0.5),
                "p99": self.quantile_ms(0.99),
                "p99_9": self.quantile_ms(0.999),
                "max": ms(self.latencies_us.max()),
            },
            "errors": { "count": self.error_count(), "unknown_outcome": self.unknown,
                        "by_kind": by_kind },
            "cpu": {
                "members_s": self.members_cpu_s().map(rounded),
                "members_s_per_million_records": self.cpu_s_per_million().map(rounded),
                "client_s": rounded(self.client_cpu_s),
            },
            "members": members,
            "verified": { "acked_records": self.acked_records, "head_sum": self.head_sum },
        })
    }
}

/// The load in words.
pub fn load_of(options: &Options) -> String {
    let what = match options.verb {
        Verb::Append => format!("append, batch {}", options.batch),
        Verb::Read { page, .. } => format!("read, pages of {page}"),
        Verb::Watch { watchers, .. } => format!("{watchers} watchers, batch {}", options.batch),
    };
    let at = match options.target {
        Target::All => "",
        Target::Leader => " at the leader",
        Target::Followers => " at followers",
    };
    let plural = if options.connections == 1 { "" } else { "s" };
    let mut load =
        format!("{what}, {} connection{plural}{at}, {} B", options.connections, options.payload_bytes);
    if options.durability != "disk" {
        load += &format!(", {}", options.durability);
    }
    if options.topics > 1 {
        load += &format!(", {} topics", options.topics);
    }
    if let Some(rate) = options.rate {
        load += &format!(", open loop {rate}/s");
    }
    load
}

pub fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

/// To three places: what lies behind them was not measured.
pub fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
