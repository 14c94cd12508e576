//! Reading what has left memory.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

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

/// C-WATCH-21: sockets that are not read hold no room that others need to read from the disk.
#[tokio::test]
async fn readers_that_stand_still_keep_nobody_from_reading_from_disk() {
    let cluster = Cluster::start_with(1, &["--cache-bytes", "1MiB"]).await;
    let address = format!("127.0.0.1:{}", cluster.members[0].client_port);
    // Three such entries are more than all readers may hold at once.
    let small = vec![json!({ "data": 1 }); 500];
    let large = vec![json!({ "data": "x".repeat(1_000_000) }); 46];
    let records = [small, large].concat();
    let body = json!({ "records": records });
    for topic in ["c1", "c2", "c3"] {
        cluster.client.post(&cluster.topic_url(0, topic), &body).await.expect("append");
    }
    let mut sockets = Vec::new();
    for topic in ["c1", "c2"] {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let stream = socket.connect(address.parse().expect("an address")).await.expect("connect");
        let url = format!("ws://{address}/v0/ws");
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a socket");
        let subscribe = json!({ "op": "subscribe", "topic": topic, "from_seq": 0, "limit": 1 });
        socket.send(Message::text(subscribe.to_string())).await.expect("subscribe");
        socket.next().await.expect("an answer").expect("an answer");
        // Its answers fill up the connection while records are read for it.
        let ping = json!({ "op": "ping", "request_id": "x".repeat(4000) }).to_string();
        let flooding = async { while socket.send(Message::text(ping.clone())).await.is_ok() {} };
        timeout(Duration::from_secs(3), flooding).await.expect_err("the member takes no more");
        sockets.push(socket);
    }
    let start = Instant::now();
    let url = format!("{}/diff", cluster.topic_url(0, "c3"));
    let page: Value = cluster.client.post(&url, &json!({ "limit": 1 })).await.expect("read a page");
    assert_eq!(page["next_from_seq"], 1);
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
}
