//! Disk use follows what is there, not what has been there.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Cluster, eventually};

const TOPICS: usize = 1000;
const ROUNDS: usize = 20;
const WRITERS: usize = 16;
/// Bytes of data of one churning record.
const DATA_BYTES: usize = 1000;

pub fn bytes_below(dir: &Path) -> u64 {
    let Ok(items) = std::fs::read_dir(dir) else { return 0 };
    // Files come and go while they are counted.
    let sizes = items.flatten().map(|item| match item.metadata() {
        Ok(found) if found.is_dir() => bytes_below(&item.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

async fn read_all(cluster: &Cluster, topic: &str) -> Vec<Value> {
    let (mut from_seq, mut records) = (0, Vec::new());
    loop {
        let body = json!({ "from_seq": from_seq, "limit": 1000, "consistency": "strong" });
        let url = format!("{}/diff", cluster.topic_url(0, topic));
        let page = cluster.client.post(&url, &body).await.expect("a page");
        records
            .extend(page["records"].as_array().expect("records").iter().map(|record| record["data"].clone()));
        from_seq = page["next_from_seq"].as_u64().expect("a cursor");
        if page["caught_up"] == json!(true) {
            return records;
        }
    }
}

/// 1000 topics are deleted and made again 20 times beside one that stays: the one keeps every record, also
/// over a restart, and pins nothing.
#[tokio::test]
async fn churn_beside_a_topic_that_stays_leaves_the_disk_bounded() {
    let arguments = ["--segment-bytes", "256KiB", "--kept-log-entries", "200"];
    let mut cluster = Cluster::start_with(1, &arguments).await;
    let started = Instant::now();
    let data = Arc::new("x".repeat(DATA_BYTES));
    let mut largest_bytes = 0;
    for round in 0..ROUNDS {
        let writers = (0..WRITERS).map(|writer| {
            let (client, base, data) = (cluster.client.clone(), cluster.topic_url(0, "churn"), data.clone());
            tokio::spawn(async move {
                for number in (writer..TOPICS).step_by(WRITERS) {
                    let url = format!("{base}-{number}");
                    if round > 0 {
                        client.delete(&url).await.expect("delete");
                    }
                    let body = json!({ "records": [{ "data": *data }] });
                    client.post(&url, &body).await.expect("append");
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("a writer ends well");
        }
        for number in 0..10 {
            cluster.append(0, "stays", json!([round, number, "y".repeat(100)])).await.expect("append");
        }
        largest_bytes = largest_bytes.max(bytes_below(&cluster.members[0].data_dir.join("log")));
    }
    let churned = started.elapsed();
    let written_bytes = (ROUNDS * TOPICS * DATA_BYTES) as u64;
    let live_bytes = (TOPICS * DATA_BYTES) as u64;
    assert!(largest_bytes < written_bytes * 3 / 4, "{largest_bytes} while {written_bytes} were written");
    let log_dir = cluster.members[0].data_dir.join("log");
    // Half of what is kept may be dead, and the chain needs its segments.
    let allowed_bytes = 3 * live_bytes;
    let log_bytes = eventually("the log is small", Duration::from_secs(20), async || {
        let bytes = bytes_below(&log_dir);
        (bytes < allowed_bytes).then_some(bytes)
    })
    .await;
    let expected: Vec<Value> = (0..ROUNDS)
        .flat_map(|round| (0..10).map(move |number| json!([round, number, "y".repeat(100)])))
        .collect();
    assert_eq!(read_all(&cluster, "stays").await, expected);

    cluster.kill(0);
    cluster.restart(0).await;
    assert_eq!(read_all(&cluster, "stays").await, expected);
    for number in (0..TOPICS).step_by(97) {
        assert_eq!(read_all(&cluster, &format!("churn-{number}")).await, vec![json!(*data)]);
    }

    for number in 0..TOPICS {
        cluster.client.delete(&cluster.topic_url(0, &format!("churn-{number}"))).await.expect("delete");
    }
    // The chain keeps its last entries; a few more push the deleted records below them.
    let rest_bytes = eventually("what is left is small", Duration::from_secs(20), async || {
        let bytes = bytes_below(&log_dir);
        (bytes < live_bytes + (512 << 10)).then_some(bytes)
    })
    .await;
    assert_eq!(read_all(&cluster, "stays").await, expected);
    let checkpoint_bytes = bytes_below(&cluster.members[0].data_dir.join("checkpoint"));
    println!(
        "{written_bytes} bytes written in {churned:?}: log at most {largest_bytes}, then {log_bytes}, without \
         the churning topics {rest_bytes}; checkpoint {checkpoint_bytes}"
    );
}

/// C-RET-07: a topic that is written 50 times its cap holds its cap and not much more, while it is read from
/// the start all the time, and over a restart.
#[tokio::test]
async fn a_capped_topic_written_many_times_its_cap_keeps_a_bounded_disk() {
    const CAP_RECORDS: usize = 2000;
    const BATCH: usize = 20;
    // Freeing follows within seconds, whatever is written in them: so there must be many of those.
    const ROUNDS: usize = 50;
    // What the export and a delete under way hold back on top is at most twice as many, at 20 KB each.
    let arguments = ["--segment-bytes", "256KiB", "--kept-log-entries", "50"];
    let mut cluster = Cluster::start_with(1, &arguments).await;
    let url = cluster.topic_url(0, "capped");
    cluster.client.put(&url, &json!({ "cap_records": CAP_RECORDS })).await.expect("put");
    let log_dir = cluster.members[0].data_dir.join("log");
    let record = |number: usize| json!({ "data": [number, "x".repeat(DATA_BYTES)] });

    let reader = {
        let (client, url) = (cluster.client.clone(), format!("{url}/diff"));
        tokio::spawn(async move {
            let (mut gaps, mut seen) = (0, 0);
            while seen < (ROUNDS * CAP_RECORDS) as u64 {
                // From the very start or from the place where it is about to be taken away.
                for from_seq in [0, seen.saturating_sub(CAP_RECORDS as u64)] {
                    let page = client.post(&url, &json!({ "from_seq": from_seq, "limit": 50 })).await;
                    let page = page.expect("a page");
                    let records = page["records"].as_array().expect("records");
                    let mut next_seq = from_seq + 1;
                    if let Some(gap) = page["tombstone"].as_object() {
                        assert_eq!(gap["gap_from"], json!(from_seq + 1));
                        next_seq = gap["gap_to"].as_u64().expect("a seq") + 1;
                        gaps += 1;
                    }
                    for record in records {
                        assert_eq!(record["$seq"], json!(next_seq), "a hole without a tombstone");
                        assert_eq!(record["data"][0], json!(next_seq));
                        next_seq += 1;
                    }
                    seen = page["head_seq"].as_u64().expect("a head");
                }
            }
            gaps
        })
    };
    let mut largest_bytes = 0;
    for round in 0..ROUNDS {
        for batch in 0..CAP_RECORDS / BATCH {
            let first = round * CAP_RECORDS + batch * BATCH + 1;
            let records: Vec<Value> = (first..first + BATCH).map(record).collect();
            cluster.client.post(&url, &json!({ "records": records })).await.expect("append");
        }
        largest_bytes = largest_bytes.max(bytes_below(&log_dir));
    }
    assert!(reader.await.expect("the reader ends well") > 0, "the reader was never overtaken");

    let live_bytes = (CAP_RECORDS * DATA_BYTES) as u64;
    let written_bytes = ROUNDS as u64 * live_bytes;
    assert!(largest_bytes < written_bytes / 2, "{largest_bytes} while {written_bytes} were written");
    let log_bytes = eventually("the log is small", Duration::from_secs(20), async || {
        let bytes = bytes_below(&log_dir);
        (bytes < 3 * live_bytes).then_some(bytes)
    })
    .await;
    let head_seq = ROUNDS * CAP_RECORDS;
    let expected: Vec<Value> =
        (head_seq - CAP_RECORDS + 1..=head_seq).map(|number| record(number)["data"].clone()).collect();
    assert_eq!(read_all(&cluster, "capped").await, expected);
    cluster.kill(0);
    cluster.restart(0).await;
    assert_eq!(read_all(&cluster, "capped").await, expected);
    println!("{written_bytes} bytes written: log at most {largest_bytes}, then {log_bytes}");
}
