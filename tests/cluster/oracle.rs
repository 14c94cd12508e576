//! What must be in a topic, by what its writers were told.
//!
//! Every attempt is noted before it is sent, as one whose outcome is unknown, and settled by its answer:
//! so an attempt that is cut off in whatever way is judged as what it is.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::client::{Client, Reply};
use crate::harness::{Cluster, PATIENCE, eventually};

/// Most complaints that are shown: one mistake makes many.
const MAX_SHOWN: usize = 20;

/// What an attempt's writer knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The records are there, from this seq on.
    Acked { first_seq: u64 },
    /// None of the records is there, now or later.
    Refused,
    /// All of the records are there once, or none is.
    Unknown,
}

#[derive(Debug)]
struct Attempt {
    writer: String,
    ids: Vec<String>,
    fate: Fate,
}

/// The book of one topic.
pub struct Oracle {
    pub topic: String,
    attempts: Mutex<Vec<Attempt>>,
    /// Attempts that were acked so far.
    acked: AtomicUsize,
    /// Answers that no promise allows.
    surprises: Mutex<Vec<String>>,
}

/// Totals of a checked topic, for the test's output.
pub struct Tally {
    acked: usize,
    refused: usize,
    unknown: usize,
    records: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { acked, refused, unknown, records } = self;
        write!(
            f,
            "{acked} writes acked, {refused} refused, {unknown} unknown, {records} records, all as they must be"
        )
    }
}

impl Oracle {
    pub fn new(topic: &str) -> Oracle {
        Oracle {
            topic: topic.to_owned(),
            attempts: Mutex::default(),
            acked: AtomicUsize::new(0),
            surprises: Mutex::default(),
        }
    }

    pub fn acked(&self) -> usize {
        self.acked.load(Ordering::Relaxed)
    }

    /// Appends a batch of `count` records at each of `urls` in turn until one acks it: once, unless a
    /// `key` makes it safe to repeat. Attempts of one writer must follow each other.
    pub async fn append(
        &self,
        client: &Client,
        urls: &[&str],
        writer: &str,
        count: usize,
        key: bool,
    ) -> Fate {
        let (at, ids) = self.begin(writer, count);
        let records: Vec<Value> = ids.iter().map(|id| json!({ "data": { "id": id } })).collect();
        let mut body = json!({ "records": records });
        if key {
            body["idempotency_key"] = json!(ids[0]);
        }
        // What the tries so far allow to be said: one unknown try leaves it unknown.
        let mut sum = Fate::Refused;
        for url in urls {
            let reply = client.post(&format!("{url}/v0/topics/{}", self.topic), &body).await;
            let fate = self.judge(&reply, count);
            if matches!(fate, Fate::Acked { .. }) {
                self.settle(at, fate);
                return fate;
            }
            if fate == Fate::Unknown {
                sum = Fate::Unknown;
            }
            // Without a key only a refusal may be repeated.
            if fate == Fate::Unknown && !key {
                break;
            }
        }
        self.settle(at, sum);
        sum
    }

    fn begin(&self, writer: &str, count: usize) -> (usize, Vec<String>) {
        let mut attempts = self.attempts.lock();
        let at = attempts.len();
        let ids: Vec<String> = (0..count).map(|part| format!("{at}.{part}")).collect();
        attempts.push(Attempt { writer: writer.to_owned(), ids: ids.clone(), fate: Fate::Unknown });
        (at, ids)
    }

    fn settle(&self, at: usize, fate: Fate) {
        self.attempts.lock()[at].fate = fate;
        if matches!(fate, Fate::Acked { .. }) {
            self.acked.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What an answer to an append of `count` records says.
    fn judge(&self, reply: &Reply, count: usize) -> Fate {
        match reply {
            Reply::NotSent(_) => Fate::Refused,
            Reply::Broken(_) => Fate::Unknown,
            Reply::Answer { status: 200 | 201, body, .. } => {
                let first = body["first_seq"].as_u64();
                let seqs: Option<Vec<u64>> =
                    first.map(|first| (0..count as u64).map(|part| first + part).collect());
                if first.is_none_or(|first| first == 0)
                    || json!(seqs) != body["seqs"]
                    || body["count"] != json!(count)
                {
                    self.surprise(format!("an ack without contiguous seqs: {body}"));
                }
                first.map_or(Fate::Unknown, |first_seq| Fate::Acked { first_seq })
            }
            Reply::Answer { status, body, has_retry_after } => {
                if (*status == 503 || *status == 429) && !has_retry_after {
                    self.surprise(format!("{status} without Retry-After (C-ERR-02): {body}"));
                }
                match (status, reply.code()) {
                    (400..=499, _) => Fate::Refused,
                    (503, "no_leader" | "not_ready" | "shutting_down" | "storage_full") => Fate::Refused,
                    (503, "commit_unknown") => Fate::Unknown,
                    _ => {
                        self.surprise(format!("{status}: {body}"));
                        Fate::Unknown
                    }
                }
            }
        }
    }

    fn surprise(&self, what: String) {
        self.surprises.lock().push(what);
    }

    /// Checks every running member against the book. The members must have a quorum.
    pub async fn check(&self, cluster: &mut Cluster) -> Tally {
        let running: Vec<usize> =
            (0..cluster.members.len()).filter(|number| cluster.members[*number].is_running()).collect();
        let mut complaints = self.surprises.lock().clone();
        let mut first_read: Option<Vec<Value>> = None;
        for number in &running {
            let name = &cluster.members[*number].name;
            let records = read_all(cluster, *number, &self.topic, &mut complaints).await;
            match &first_read {
                None => first_read = Some(records),
                Some(first) if *first != records => {
                    let at = first.iter().zip(&records).take_while(|(one, other)| one == other).count();
                    complaints.push(format!(
                        "{name} and m{} differ at position {at}: {:?} and {:?}",
                        running[0] + 1,
                        records.get(at),
                        first.get(at)
                    ));
                }
                Some(_) => {}
            }
        }
        let records = first_read.expect("at least one member runs");
        self.compare(&records, &mut complaints);
        complaints.extend(digests_differ(cluster, &running).await);
        let shown = complaints.iter().take(MAX_SHOWN).map(String::as_str).collect::<Vec<_>>().join("\n");
        assert!(complaints.is_empty(), "topic {}, {} complaints:\n{shown}", self.topic, complaints.len());
        self.tally(records.len())
    }

    fn tally(&self, records: usize) -> Tally {
        let attempts = self.attempts.lock();
        let of = |wanted: fn(&Fate) -> bool| attempts.iter().filter(|attempt| wanted(&attempt.fate)).count();
        Tally {
            acked: of(|fate| matches!(fate, Fate::Acked { .. })),
            refused: of(|fate| *fate == Fate::Refused),
            unknown: of(|fate| *fate == Fate::Unknown),
            records,
        }
    }

    /// Compares what is there with what the writers were told.
    fn compare(&self, records: &[Value], complaints: &mut Vec<String>) {
        let mut place: HashMap<&str, u64> = HashMap::new();
        for record in records {
            let (Some(id), Some(seq)) = (record["data"]["id"].as_str(), record["$seq"].as_u64()) else {
                complaints.push(format!("a record that nobody wrote: {record}"));
                continue;
            };
            if let Some(before) = place.insert(id, seq) {
                complaints.push(format!("{id} is there twice, at {before} and {seq}"));
            }
        }
        let attempts = self.attempts.lock();
        let mut last_of_writer: BTreeMap<&str, u64> = BTreeMap::new();
        let mut known = 0;
        for attempt in attempts.iter() {
            let found: Vec<Option<u64>> =
                attempt.ids.iter().map(|id| place.get(id.as_str()).copied()).collect();
            known += found.iter().flatten().count();
            let from = |first: u64| (first..).map(Some).take(found.len()).collect::<Vec<_>>();
            match attempt.fate {
                Fate::Acked { first_seq } => {
                    if found != from(first_seq) {
                        complaints
                            .push(format!("{:?} acked from {first_seq} on, found at {found:?}", attempt.ids));
                    }
                    // C-WRITE-16: each was sent after the ack of the one before.
                    if let Some(before) = last_of_writer.insert(&attempt.writer, first_seq)
                        && before >= first_seq
                    {
                        complaints.push(format!("{} got {first_seq} after {before}", attempt.writer));
                    }
                }
                Fate::Refused if found.iter().any(Option::is_some) => {
                    complaints.push(format!("{:?} refused, but found at {found:?}", attempt.ids));
                }
                // C-WRITE-01: a batch is there as a whole, in order, or not at all.
                Fate::Unknown
                    if found.iter().any(Option::is_some) && found != from(found[0].unwrap_or(0)) =>
                {
                    complaints.push(format!("{:?} is there in part: {found:?}", attempt.ids));
                }
                _ => {}
            }
        }
        if known != place.len() {
            complaints.push(format!("{} records are in the topic, {known} of them were sent", place.len()));
        }
    }
}

/// The whole topic by strong reads at member `number`. Its seqs must be 1, 2, 3, ... up to the head, its
/// times must not go back.
async fn read_all(cluster: &Cluster, number: usize, topic: &str, complaints: &mut Vec<String>) -> Vec<Value> {
    let name = &cluster.members[number].name;
    let url = format!("{}/diff", cluster.topic_url(number, topic));
    let mut records: Vec<Value> = Vec::new();
    let mut last_ts = 0;
    let mut from_seq = 0;
    loop {
        let body = json!({ "from_seq": from_seq, "limit": 1000 });
        let page = cluster.client.post(&url, &body).await;
        if page.code() == "topic_not_found" {
            return records;
        }
        let page = page.expect("a strong diff");
        if !page["tombstone"].is_null() {
            complaints.push(format!("{name} tells of a gap: {}", page["tombstone"]));
        }
        for record in page["records"].as_array().expect("records are an array") {
            let (seq, ts) = (record["$seq"].as_u64(), record["$ts"].as_i64().unwrap_or(-1));
            if seq != Some(records.len() as u64 + 1) {
                complaints.push(format!("{name} has {seq:?} where {} should be", records.len() + 1));
            }
            if ts < last_ts {
                complaints.push(format!("{name} has time {ts} after {last_ts} at {seq:?}"));
            }
            last_ts = ts;
            records.push(record.clone());
        }
        let next = page["next_from_seq"].as_u64().expect("a cursor");
        if page["caught_up"] == json!(true) {
            if page["head_seq"].as_u64() != Some(records.len() as u64) {
                complaints.push(format!(
                    "{name} has head {} and {} records",
                    page["head_seq"],
                    records.len()
                ));
            }
            return records;
        }
        assert!(next > from_seq, "{name} makes no progress at {from_seq} (C-DIFF-05)");
        from_seq = next;
    }
}

/// Compares the digests of the members `numbers` once they have applied the same entries.
async fn digests_differ(cluster: &Cluster, numbers: &[usize]) -> Option<String> {
    let states = eventually("all members have applied the same entries", PATIENCE, async || {
        let mut states = Vec::new();
        for number in numbers {
            let url = format!("{}/v0/cluster?consistency=eventual", cluster.members[*number].url());
            let body = cluster.client.get(&url).await.ok()?;
            assert!(body["digest"].is_string() || body["digest"].is_number(), "no digest in {body}");
            states.push((body["member"].clone(), body["applied"].as_u64()?, body["digest"].clone()));
        }
        states.windows(2).all(|two| two[0].1 == two[1].1).then_some(states)
    })
    .await;
    let differ = states.windows(2).any(|two| two[0].2 != two[1].2);
    differ.then(|| format!("digests differ at the same applied index: {states:?}"))
}

/// Waits until `count` more attempts are acked than now.
pub async fn more_acks(oracle: &Oracle, count: usize, limit: Duration) {
    let wanted = oracle.acked() + count;
    eventually(&format!("{count} more acks"), limit, async || (oracle.acked() >= wanted).then_some(())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: u64, id: &str) -> Value {
        json!({ "$seq": seq, "$ts": 1, "data": { "id": id } })
    }

    fn complaints(fates: &[(usize, Fate)], records: &[Value]) -> Vec<String> {
        let oracle = Oracle::new("t");
        for (count, fate) in fates {
            let (at, _) = oracle.begin("w", *count);
            oracle.settle(at, *fate);
        }
        let mut complaints = Vec::new();
        oracle.compare(records, &mut complaints);
        complaints
    }

    #[test]
    fn the_oracle_finds_what_it_is_for() {
        let acked = |first_seq| Fate::Acked { first_seq };
        let both = [record(1, "0.0"), record(2, "0.1"), record(3, "1.0")];
        assert_eq!(complaints(&[(2, acked(1)), (1, acked(3))], &both), Vec::<String>::new());
        assert_eq!(
            complaints(&[(2, Fate::Unknown), (1, acked(3)), (5, Fate::Unknown)], &both),
            Vec::<String>::new()
        );
        let found = |fates: &[(usize, Fate)], records: &[Value], part: &str| {
            let all = complaints(fates, records);
            assert!(all.iter().any(|complaint| complaint.contains(part)), "{part:?} is not in {all:?}");
        };
        found(&[(1, acked(1))], &[], "acked from 1 on");
        found(&[(1, acked(2))], &[record(1, "0.0")], "acked from 2 on");
        found(&[(2, acked(1))], &[record(1, "0.0"), record(3, "0.1")], "acked from 1 on");
        found(&[(1, Fate::Refused)], &[record(1, "0.0")], "refused, but found");
        found(&[(2, Fate::Unknown)], &[record(1, "0.1")], "in part");
        found(&[(1, acked(1))], &[record(1, "0.0"), record(2, "0.0")], "there twice");
        found(&[], &[record(1, "7.0")], "of them were sent");
        found(&[(1, acked(2)), (1, acked(1))], &[record(1, "1.0"), record(2, "0.0")], "after");
    }
}
