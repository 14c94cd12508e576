//! Links between members that take seconds for what clients may send at once.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::Cluster;

/// An entry is on its way for longer than a follower may be silent: it is waited for, sent once, and all goes on.
#[tokio::test]
async fn large_appends_are_committed_over_links_that_take_seconds_for_them() {
    const LINK_BYTES_PER_S: u32 = 2_000_000;
    const RECORD_BYTES: usize = 1_000_000;
    const RECORDS: usize = 8;
    let mut cluster = Cluster::start_linked(3, &["--request-timeout-ms", "30000"]).await;
    let leader = cluster.leader().await;
    cluster.append(leader, "t", json!("small")).await.expect("append");
    cluster.links.iter().for_each(|link| link.slow(LINK_BYTES_PER_S));
    let sent_before: u64 = cluster.links.iter().map(|link| link.sent_bytes()).sum();
    let record = json!({ "data": "x".repeat(RECORD_BYTES) });
    let records: Vec<Value> = std::iter::repeat_n(record, RECORDS).collect();
    let began = std::time::Instant::now();
    let url = cluster.topic_url(leader, "t");
    cluster.client.post(&url, &json!({ "records": records })).await.expect("a large append");
    assert!(began.elapsed() > Duration::from_secs(3), "the links are slow: {:?}", began.elapsed());
    cluster.append(leader, "t", json!("small")).await.expect("append");
    let sent_bytes = cluster.links.iter().map(|link| link.sent_bytes()).sum::<u64>() - sent_before;
    let once_bytes = (2 * RECORDS * RECORD_BYTES) as u64;
    assert!(sent_bytes < once_bytes + once_bytes / 4, "{sent_bytes} bytes for {once_bytes} to two followers");
}
