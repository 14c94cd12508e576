//! No member's trouble fills the disks of the others: what the log is kept for has an end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::freeing::bytes_below;
use crate::harness::{Cluster, PATIENCE, eventually};
use crate::snapshot::{all_agree, took_over};
use crate::storage_full::free_bytes;

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

/// Contract section 26, writes work again once there is room: few entries may be many bytes.
#[tokio::test]
async fn large_entries_are_kept_to_a_bound_in_bytes() {
    let arguments = ["--kept-log-bytes", "512KiB", "--segment-bytes", "64KiB"];
    let mut cluster = Cluster::start_with(3, &arguments).await;
    let leader = cluster.leader().await;
    make_capped(&cluster, leader).await;
    overwrite(&cluster, leader, 8 << 20).await;
    for number in 0..3 {
        log_is_small(&cluster, number).await;
    }
}

/// It answers whoever asks how it is, but entries do not reach it: the patience is with those who get on.
#[tokio::test]
async fn a_member_that_answers_and_gets_no_entries_holds_the_log_no_longer_than_the_patience() {
    let mut cluster = Cluster::start_linked(3, &arguments("4000")).await;
    let leader = cluster.leader().await;
    let (other, stuck) = ((leader + 1) % 3, (leader + 2) % 3);
    make_capped(&cluster, leader).await;
    overwrite(&cluster, leader, 1 << 20).await;
    cluster.links[stuck].narrow();
    let mut unsaid = vec![leader, other];
    eventually("it is said who holds the log", PATIENCE, async || {
        overwrite(&cluster, leader, 200_000).await;
        for number in unsaid.clone() {
            let held = held_by(&cluster, number).await;
            // A checkpoint, and a member that gets on, are always a moment behind.
            if held["reason"] == "member" && held["member"] == cluster.members[stuck].name.as_str() {
                assert!(held["entries"].as_u64().is_some_and(|entries| entries > 0), "{held}");
                unsaid.retain(|other| *other != number);
            }
        }
        unsaid.is_empty().then_some(())
    })
    .await;
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

/// The command of a member that finds so much less room on its disk than it wants: the disk is not really filled.
fn with_free_share(cluster: &Cluster, number: usize, reserve_of_free: u64) -> std::process::Command {
    let free_bytes = free_bytes(cluster.members[number].data_dir.parent().expect("a directory"));
    let mut command = cluster.command(number);
    command.args(["--min-free-bytes", &(free_bytes * reserve_of_free).to_string()]);
    command
}

/// A full member is not sent the same over and over again at every commit of the others.
#[tokio::test]
async fn a_member_that_has_no_room_for_entries_is_sent_them_with_pauses() {
    // Nothing is purged, so that it is entries that it lacks.
    let mut cluster = Cluster::start_linked(3, &["--kept-log-entries", "0"]).await;
    let leader = cluster.leader().await;
    let full = (leader + 2) % 3;
    make_capped(&cluster, leader).await;
    cluster.kill(full);
    // It counts as exhausted.
    let command = with_free_share(&cluster, full, 8);
    cluster.spawn_as(full, command);
    eventually("the full member answers", PATIENCE, async || {
        let url = format!("{}/v0/health", cluster.members[full].url());
        cluster.client.get(&url).await.is(200).then_some(())
    })
    .await;
    let (began, before_bytes) = (Instant::now(), cluster.links[full].sent_bytes());
    let mut written_bytes = 0;
    while began.elapsed() < Duration::from_secs(4) {
        overwrite(&cluster, leader, 200_000).await;
        written_bytes += 200_000;
    }
    let passed_bytes = cluster.links[full].sent_bytes() - before_bytes;
    println!("{passed_bytes} bytes were sent of {written_bytes}");
    // A try a second, each with what may be under way.
    assert!(passed_bytes < 40 << 20, "{passed_bytes} bytes were sent of {written_bytes}");

    cluster.kill(full);
    cluster.restart(full).await;
    all_agree(&cluster).await;
}

/// A state that does not fit is not fetched to find that out; what is missing is said, and nothing stays behind.
#[tokio::test]
async fn a_state_that_does_not_fit_is_refused_before_it_is_fetched() {
    let mut cluster = Cluster::start_with(3, &arguments("500")).await;
    let leader = cluster.leader().await;
    let full = (leader + 2) % 3;
    make_capped(&cluster, leader).await;
    cluster.kill(full);
    let killed = Instant::now();
    while killed.elapsed() < Duration::from_secs(3) {
        overwrite(&cluster, leader, 1 << 20).await;
    }
    let command = with_free_share(&cluster, full, 2);
    cluster.spawn_as(full, command);
    let url = format!("{}/v0/cluster?consistency=eventual", cluster.members[leader].url());
    let error = eventually("it is said why the state is not taken over", PATIENCE, async || {
        let view = cluster.client.get(&url).await.expect("the cluster");
        let name = &cluster.members[full].name;
        let member = view["members"].as_array()?.iter().find(|member| member["id"] == name.as_str())?.clone();
        member["snapshot_error"].as_str().map(str::to_owned)
    })
    .await;
    assert!(error.contains("MiB are needed"), "{error}");
    assert!(!cluster.members[full].data_dir.join("log-1").exists());
    log_is_small(&cluster, leader).await;

    cluster.kill(full);
    cluster.spawn(full);
    took_over(&cluster, full, 1).await;
    cluster.wait_all_ready().await;
    all_agree(&cluster).await;
}

/// It gets on, but so slowly that the log is kept for it no longer: it is not sent entries for ever, which nobody could
/// give up meanwhile, but a state.
#[tokio::test]
async fn a_member_that_is_too_slow_to_be_waited_for_holds_nothing_back() {
    let mut cluster = Cluster::start_linked(3, &arguments("500")).await;
    let leader = cluster.leader().await;
    let slow = (leader + 2) % 3;
    make_capped(&cluster, leader).await;
    overwrite(&cluster, leader, 1 << 20).await;
    // A message of entries takes it much longer than the patience.
    cluster.links[slow].slow(50_000);
    overwrite(&cluster, leader, 8 << 20).await;
    log_is_small(&cluster, leader).await;
    cluster.links[slow].heal();
    cluster.wait_all_ready().await;
    all_agree(&cluster).await;
}
