//! The figures of a watch, as a row of a table and as one JSON object.

use std::time::Duration;

use serde_json::{Value, json};

use super::delivery::Deliveries;
use super::options::Options;
use super::report::{MemberUsage, load_of, ms, rounded};
use super::tally::Tally;

/// What was measured in the window.
pub struct WatchReport<'a> {
    pub options: &'a Options,
    pub watchers: usize,
    pub deliveries: &'a Deliveries,
    /// Of the appends.
    pub tally: &'a Tally,
    /// Empty if no processes are known.
    pub members: &'a [MemberUsage],
    pub client_cpu_s: f64,
    /// What every watcher has got up to.
    pub head_seq: u64,
}

const HEADING: &str = "\
| Load | published/s | deliveries/s | frames/s | MB/s | delivery p50 ms | p99 ms | p99.9 ms | max ms | append p50 ms | errors | CPU s of each member | client CPU |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

impl WatchReport<'_> {
    fn per_s(&self, count: u64) -> f64 {
        count as f64 / self.options.duration.as_secs_f64()
    }

    fn payload_bytes_per_s(&self) -> f64 {
        self.per_s(self.deliveries.records) * self.options.payload_bytes as f64
    }

    fn quantile_ms(&self, quantile: f64) -> f64 {
        ms(self.deliveries.latencies_us.value_at_quantile(quantile))
    }

    fn error_count(&self) -> u64 {
        self.tally.errors.values().sum()
    }

    pub fn table(&self) -> String {
        let cpu: Vec<String> =
            self.members.iter().map(|member| format!("{:.1}", member.usage.cpu_s)).collect();
        let cells = [
            load_of(self.options),
            format!("{:.0}", self.per_s(self.tally.records)),
            format!("{:.0}", self.per_s(self.deliveries.records)),
            format!("{:.0}", self.per_s(self.deliveries.frames)),
            format!("{:.1}", self.payload_bytes_per_s() / 1e6),
            format!("{:.2}", self.quantile_ms(0.5)),
            format!("{:.2}", self.quantile_ms(0.99)),
            format!("{:.2}", self.quantile_ms(0.999)),
            format!("{:.2}", ms(self.deliveries.latencies_us.max())),
            format!("{:.2}", ms(self.tally.latencies_us.value_at_quantile(0.5))),
            self.error_count().to_string(),
            if cpu.is_empty() { "-".to_owned() } else { cpu.join(" / ") },
            format!("{:.0} %", 100.0 * self.client_cpu_s / self.options.duration.as_secs_f64()),
        ];
        let mut text = format!("{HEADING}\n| {} |", cells.join(" | "));
        if self.tally.unsent > 0 {
            text +=
                &format!("\n\n{} appends were due and never sent: the rate is too high", self.tally.unsent);
        }
        for (kind, count) in &self.tally.errors {
            text += &format!("\n\nerrors: {count} x {kind}");
        }
        text
    }

    pub fn json(&self) -> Value {
        let members: Vec<Value> = self
            .members
            .iter()
            .map(|member| json!({ "name": member.name, "cpu_s": rounded(member.usage.cpu_s) }))
            .collect();
        json!({
            "verb": "watch",
            "watchers": self.watchers,
            "connections": self.options.connections,
            "batch": self.options.batch,
            "payload_bytes": self.options.payload_bytes,
            "rate": self.options.rate,
            "duration_s": self.options.duration.as_secs_f64(),
            "published": self.tally.records,
            "deliveries": self.deliveries.records,
            "frames": self.deliveries.frames,
            "deliveries_per_s": rounded(self.per_s(self.deliveries.records)),
            "unsent": self.tally.unsent,
            "delivery_ms": {
                "p50": self.quantile_ms(0.5),
                "p99": self.quantile_ms(0.99),
                "p99_9": self.quantile_ms(0.999),
                "max": ms(self.deliveries.latencies_us.max()),
            },
            "append_p50_ms": ms(self.tally.latencies_us.value_at_quantile(0.5)),
            "errors": self.error_count(),
            "cpu": { "client_s": rounded(self.client_cpu_s) },
            "members": members,
            "verified": { "head_seq": self.head_seq },
        })
    }
}

/// The memory of one member without and with the streams.
pub struct MemberMemory {
    pub name: String,
    pub before_bytes: u64,
    pub after_bytes: u64,
}

/// What idle streams cost.
pub struct IdleReport {
    pub watchers: usize,
    /// Empty if no processes are known.
    pub members: Vec<MemberMemory>,
    pub opened_in: Duration,
    /// From sending one record until all streams had got it.
    pub reached_in: Duration,
}

impl IdleReport {
    /// The member that holds the streams: the one that has grown most.
    fn holder(&self) -> Option<&MemberMemory> {
        self.members.iter().max_by_key(|member| member.after_bytes.saturating_sub(member.before_bytes))
    }

    fn bytes_each(&self) -> Option<u64> {
        let MemberMemory { before_bytes, after_bytes, .. } = self.holder()?;
        Some(after_bytes.saturating_sub(*before_bytes) / self.watchers as u64)
    }

    pub fn table(&self) -> String {
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        let figures = self.holder().map(|holder| [mib(holder.before_bytes), mib(holder.after_bytes)]);
        let [before, after] = figures.unwrap_or_else(|| ["-".to_owned(), "-".to_owned()]);
        let each = self.bytes_each().map_or("-".to_owned(), |bytes| bytes.to_string());
        format!(
            "| Idle streams | RSS before MiB | RSS with them MiB | bytes each | opened in s | a record reached all in ms |\n\
             |--:|--:|--:|--:|--:|--:|\n| {} | {before} | {after} | {each} | {:.1} | {:.1} |",
            self.watchers,
            self.opened_in.as_secs_f64(),
            self.reached_in.as_secs_f64() * 1e3
        )
    }

    pub fn json(&self) -> Value {
        let members: Vec<Value> = self
            .members
            .iter()
            .map(|member| {
                json!({ "name": member.name, "before_bytes": member.before_bytes,
                        "after_bytes": member.after_bytes })
            })
            .collect();
        json!({
            "verb": "watch", "watchers": self.watchers, "idle": true, "members": members,
            "bytes_each": self.bytes_each(), "opened_in_s": rounded(self.opened_in.as_secs_f64()),
            "reached_in_ms": rounded(self.reached_in.as_secs_f64() * 1e3),
        })
    }
}
