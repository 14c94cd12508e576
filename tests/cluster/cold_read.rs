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

/// What is left of a topic is read to its head though a delete has left holes in it everywhere, also where one block of
/// its index ends and the next one is on disk only.
#[tokio::test]
async fn a_read_over_what_deletes_have_left_comes_to_the_head_after_a_restart() {
    const COUNT: u64 = 4000;
    let mut cluster = Cluster::start(1).await;
    let url = cluster.topic_url(0, "holes");
    for number in 1..=COUNT {
        let body = json!({ "records": [{ "data": number, "tag": format!("t{number}") }] });
        cluster.client.post(&url, &body).await.expect("append");
    }
    let body = json!({ "match": ["tag", "Glob", "t1*"] });
    let deleted = cluster.client.post(&format!("{url}/delete"), &body).await.expect("delete");
    assert_eq!(deleted["deleted"], 1111);
    let status = cluster.members[0].terminate().await;
    assert!(status.success(), "SIGTERM ended with {status}");
    cluster.restart(0).await;

    let (mut from_seq, mut seqs) = (0, Vec::new());
    while from_seq < COUNT {
        let body = json!({ "from_seq": from_seq, "limit": 50 });
        let page = cluster.client.post(&format!("{url}/diff"), &body).await.expect("read a page");
        let records = page["records"].as_array().expect("records").iter();
        seqs.extend(records.filter_map(|record| record["$seq"].as_u64()));
        let next_from_seq = page["next_from_seq"].as_u64().expect("a cursor");
        assert!(next_from_seq > from_seq, "a page leads on from {from_seq}");
        from_seq = next_from_seq;
    }
    let kept: Vec<u64> = (1..=COUNT).filter(|number| !number.to_string().starts_with('1')).collect();
    assert_eq!(seqs, kept);
}
