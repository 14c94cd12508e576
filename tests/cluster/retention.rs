//! No member's trouble fills the disks of the others: what the log is kept for has an end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::freeing::bytes_below;
use crate::harness::{Cluster, PATIENCE, eventually};
use crate::snapshot::{all_agree, took_over};

const DATA_BYTES: usize = 1000;
const RECORDS_PER_WRITE: usize = 10;
const WRITERS: usize = 4;
/// One that keeps what it should is far below: fifty entries and 200 records are half of it.
const MOST_LOG_BYTES: u64 = 2 << 20;

fn arguments(patience_ms: &'static str) -> [&'static str; 6] {
    ["--kept-log-entries", "50", "--lag-patience-ms", patience_ms, "--segment-bytes", "64KiB"]
}

fn log_bytes(cluster: &Cluster, number: usize) -> u64 {
    bytes_below(&cluster.members[number].data_dir.join("log"))
}

/// A topic that holds 200 records, whatever is written to it.
async fn make_capped(cluster: &Cluster, number: usize) {
    let url = cluster.topic_url(number, "capped");
    cluster.client.put(&url, &json!({ "cap_records": 200 })).await.expect("put");
}

/// Overwrites the topic at a member until `bytes` were written.
async fn overwrite(cluster: &Cluster, number: usize, bytes: usize) {
    let writes = bytes / (DATA_BYTES * RECORDS_PER_WRITE) / WRITERS;
    let writers = (0..WRITERS).map(|_| {
        let (client, url) = (cluster.client.clone(), cluster.topic_url(number, "capped"));
        tokio::spawn(async move {
            let record = json!({ "data": "x".repeat(DATA_BYTES) });
            let records: Vec<Value> = std::iter::repeat_n(record, RECORDS_PER_WRITE).collect();
            for _ in 0..writes {
                client.post(&url, &json!({ "records": records })).await.expect("append");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer ends well");
    }
}

/// What holds the log of a member back, by its own word.
async fn held_by(cluster: &Cluster, number: usize) -> Value {
    let url = format!("{}/v0/cluster?consistency=eventual", cluster.members[number].url());
    cluster.client.get(&url).await.expect("the cluster")["log"]["held_by"].clone()
}

async fn log_is_small(cluster: &Cluster, number: usize) {
    let what = format!("the log of {} is small", cluster.members[number].name);
    eventually(&what, PATIENCE, async || {
        // Segments leave only when the log goes on.
        overwrite(cluster, number, WRITERS * RECORDS_PER_WRITE * DATA_BYTES).await;
        (log_bytes(cluster, number) < MOST_LOG_BYTES).then_some(())
    })
    .await;
}

/// Down for longer than the patience, it is waited for no longer, neither by the log nor by a state that nobody
/// fetches; and it comes back whenever it likes.
#[tokio::test]
async fn a_member_that_is_down_for_longer_than_the_patience_holds_nothing_back() {
    let mut cluster = Cluster::start_with(3, &arguments("1000")).await;
    let leader = cluster.leader().await;
    let (other, down) = ((leader + 1) % 3, (leader + 2) % 3);
    make_capped(&cluster, leader).await;
    overwrite(&cluster, leader, 1 << 20).await;
    cluster.kill(down);
    let killed = Instant::now();
    // Several times over, so that a state would have been sent again and again.
    while killed.elapsed() < Duration::from_secs(4) {
        overwrite(&cluster, leader, 4 << 20).await;
    }
    for number in [leader, other] {
        log_is_small(&cluster, number).await;
    }
    eventually("nothing holds the log", PATIENCE, async || {
        held_by(&cluster, leader).await.is_null().then_some(())
    })
    .await;

    cluster.spawn(down);
    took_over(&cluster, down, 1).await;
    cluster.wait_all_ready().await;
    all_agree(&cluster).await;
    for number in 0..3 {
        log_is_small(&cluster, number).await;
    }
}

/// It answers whoever asks how it is, but entries do not reach it: the patience is with those who get on.
#[tokio::test]
async fn a_member_that_answers_and_gets_no_entries_holds_the_log_no_longer_than_the_patience() {
    let mut cluster = Cluster::start_linked(3, &arguments("3000")).await;
    let leader = cluster.leader().await;
    let (other, stuck) = ((leader + 1) % 3, (leader + 2) % 3);
    make_capped(&cluster, leader).await;
    overwrite(&cluster, leader, 1 << 20).await;
    cluster.links[stuck].narrow();
    overwrite(&cluster, leader, 4 << 20).await;
    for number in [leader, other] {
        let held = eventually("it is said who holds the log", PATIENCE, async || {
            let held = held_by(&cluster, number).await;
            // A checkpoint is always a moment behind.
            (held["reason"] == "member").then_some(held)
        })
        .await;
        assert_eq!(held["member"], cluster.members[stuck].name.as_str(), "{held}");
        assert!(held["entries"].as_u64().is_some_and(|entries| entries > 0), "{held}");
    }
    for number in [leader, other] {
        log_is_small(&cluster, number).await;
    }
    let url = format!("{}/v0/cluster?consistency=eventual", cluster.members[leader].url());
    let view = cluster.client.get(&url).await.expect("the cluster");
    let states = view["members"].as_array().expect("members").iter().map(|member| &member["state"]);
    assert!(states.into_iter().all(|state| state == "up"), "{view}");

    cluster.links[stuck].heal();
    all_agree(&cluster).await;
}
