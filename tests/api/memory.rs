//! Section 23, C-LIMIT-16: what clients send does not fill a member's memory.

use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use std::io::Write;
use tempfile::tempdir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::events::{events, narrow_connection, seqs_of};
use crate::harness::{Cluster, PATIENCE, eventually};
use crate::shared::{Api, client, got};

const MIB: u64 = 1 << 20;

/// What the process has in memory now.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}

/// Starts one member whose clients may hold 128 MiB, one key 32 of them or one body.
async fn start() -> (Cluster, Api) {
    let arguments = ["--api-keys", "w:w,r:r,all", "--max-inflight-bytes", "128MiB", "--cache-bytes", "1MiB"];
    let cluster = Cluster::start_in(tempdir().expect("make a directory"), None, 1, &arguments).await;
    let api = Api { urls: cluster.urls(), http: client(), key: Some("all") };
    api.put("/v0/topics/memory", json!({})).await.expect(201);
    (cluster, api)
}

/// Sends the head of a write, and `bytes` of the 64 MiB that it announces.
async fn begin_write(address: &str, bytes: usize) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.expect("connect");
    let head = format!(
        "POST /v0/topics/memory HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer w\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        64 * MIB
    );
    socket.write_all(head.as_bytes()).await.expect("send");
    // A server that refuses it reads on for a while.
    let _ = socket.write_all(&vec![b' '; bytes]).await;
    socket
}

/// C-LIMIT-16
#[tokio::test]
async fn whatever_clients_send_a_member_stays_small() {
    let (cluster, api) = start().await;
    let pid = cluster.members[0].pid();
    let before = resident_bytes(pid);

    // Long polls whose bodies are small as long as they are packed.
    let head_seq = api.topic("memory").await.expect(200)["head_seq"].clone();
    let plain = format!("{{\"wait_ms\":30000,\"from_seq\":{head_seq}{}}}", " ".repeat(60 << 20));
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain.as_bytes()).expect("pack");
    let packed = encoder.finish().expect("pack");
    assert!(packed.len() < 1 << 20);
    let reader = api.with_key("r");
    let polls = (0..10).map(|_| {
        let request = reader.request("POST", "/v0/topics/memory/diff");
        let request = request.header("content-type", "application/json").header("content-encoding", "gzip");
        got("diff".into(), request.body(packed.clone()))
    });
    for poll in futures_util::future::join_all(polls).await {
        poll.refused(413, "payload_too_large");
    }
    let grown = resident_bytes(pid).saturating_sub(before);
    assert!(grown < 48 * MIB, "{} MiB more after packed bodies", grown / MIB);

    // Bodies that are announced, begun and never ended, all with one key that may only write.
    let address = api.urls[0].trim_start_matches("http://").to_owned();
    let mut begun = Vec::new();
    for _ in 0..12 {
        begun.push(begin_write(&address, 60 << 20).await);
    }
    let grown = resident_bytes(pid).saturating_sub(before);
    assert!(grown < 160 * MIB, "{} MiB more for bodies that do not end", grown / MIB);

    // Others are served meanwhile, and a place is free again as soon as its client is gone.
    api.write("memory", 1).await.expect(200);
    drop(begun);
    let writer = api.with_key("w");
    let body = format!("{}{{\"records\":[{{\"data\":1}}]}}", " ".repeat(20 << 20)).into_bytes();
    eventually("a large write passes again", PATIENCE, async || {
        (writer.raw("POST", "/v0/topics/memory", body.clone()).await.status == 200).then_some(())
    })
    .await;
    tokio::time::timeout(Duration::from_secs(5), api.topic("memory")).await.expect("is served").expect(200);
}

/// Opens a stream of 16 MB from the beginning of `big`, in a form that no other shares, and reads nothing of it.
async fn open_stream(api: &Api, number: usize) -> TcpStream {
    let body = json!({ "topics": { "big": { "from_seq": 0 } }, "max_batch_bytes": (8 << 20) - number, "limit": 1000 });
    let made = api.post("/v0/watch", body).await.expect(200);
    let mut stream = narrow_connection(api).await;
    let head = format!(
        "GET {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
        made["stream_url"].as_str().expect("a path"),
        api.key.expect("a key"),
    );
    stream.write_all(head.as_bytes()).await.expect("send");
    stream
}

/// C-LIMIT-16, C-WATCH-21: frames that wait for their readers.
#[tokio::test]
async fn streams_that_nobody_reads_hold_so_much_and_no_more() {
    const STREAMS: usize = 60;
    let (cluster, api) = start().await;
    api.put("/v0/topics/big", json!({})).await.expect(201);
    for _ in 0..16 {
        api.post("/v0/topics/big", json!({ "records": [{ "data": "x".repeat(1_000_000) }] }))
            .await
            .expect(200);
    }
    let pid = cluster.members[0].pid();
    let before = resident_bytes(pid);
    let reader = api.with_key("r");
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        streams.push(open_stream(&reader, number).await);
    }
    // Nothing says when they have what they get. They would have had 8 MiB each after a second.
    let mut most = 0;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = resident_bytes(pid).saturating_sub(before).max(most);
    }
    assert!(most < 200 * MIB, "{} MiB more for {STREAMS} streams", most / MIB);

    // Another key's reader gets all of it, and so does one of the same key once there is room.
    read_all(&api).await;
    drop(streams);
    read_all(&reader).await;
}

/// Reads the 16 records of `big` from a stream.
async fn read_all(api: &Api) {
    let made = api.post("/v0/watch", json!({ "topics": { "big": { "from_seq": 0 } } })).await.expect(200);
    let mut stream = events(api, made["stream_url"].as_str().expect("a path"), &[]).await;
    let mut seqs = Vec::new();
    while seqs.len() < 16 {
        let event = stream.next().await.expect("the stream goes on");
        if event.name == "record" {
            seqs.extend(seqs_of(&event.data));
        }
    }
    assert_eq!(seqs, (1..=16).collect::<Vec<u64>>());
}
