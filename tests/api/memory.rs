//! Section 23, C-LIMIT-16: what clients send does not fill a member's memory.

use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use std::io::Write;
use tempfile::tempdir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

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
