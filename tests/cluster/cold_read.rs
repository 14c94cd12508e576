//! Reading what has left memory.

use serde_json::json;

use crate::harness::Cluster;

/// C-DIFF-05: a page that ends where a batch ends is answered also if the next batch lies on disk only.
#[tokio::test]
async fn pages_that_end_with_a_batch_are_answered_from_disk() {
    const BATCH: u64 = 10;
    const BATCHES: u64 = 24;
    let cluster = Cluster::start_with(1, &["--cache-bytes", "1MiB", "--segment-bytes", "1MiB"]).await;
    let url = cluster.topic_url(0, "cold");
    // 4.8 MB in all, of which at most the last quarter stays in memory.
    let batch = vec![json!({ "data": "x".repeat(20_000) }); BATCH as usize];
    for _ in 0..BATCHES {
        cluster.client.post(&url, &json!({ "records": batch })).await.expect("append");
    }
    for page in 0..BATCHES {
        let body = json!({ "from_seq": page * BATCH, "limit": BATCH });
        let page_body = cluster.client.post(&format!("{url}/diff"), &body).await.expect("read a page");
        assert_eq!(page_body["records"].as_array().map(Vec::len), Some(BATCH as usize));
        assert_eq!(page_body["next_from_seq"], (page + 1) * BATCH);
        assert_eq!(page_body["records"][0]["$seq"], page * BATCH + 1);
    }
}
