//! A full disk: writes are refused, reads go on, and it heals by itself.

use std::fs::File;
use std::path::Path;

use futures_util::future::{join, join_all};
use serde_json::json;

use crate::harness::{Cluster, PATIENCE, eventually};

const GIB: u64 = 1 << 30;

pub fn free_bytes(dir: &Path) -> u64 {
    let figures = rustix::fs::statvfs(dir).expect("measure the free space");
    figures.f_bavail * figures.f_frsize
}

/// 503 `storage_full` of contract section 26. The disk is not really filled: the members are told to keep
/// almost all of it free, and a file takes the rest.
#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room_and_reads_go_on() {
    let ballast = tempfile::tempdir().expect("make a directory");
    let min_free_bytes = free_bytes(ballast.path()) - 2 * GIB;
    let mut cluster = Cluster::start_with(3, &["--min-free-bytes", &min_free_bytes.to_string()]).await;
    cluster.append(0, "t", json!("before")).await.expect("a write before the disk is full");

    let file = File::create(ballast.path().join("ballast")).expect("make a file");
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 4 * GIB).expect("fill the disk");
    for number in 0..3 {
        eventually("a write is refused", PATIENCE, async || {
            let reply = cluster.append(number, "t", json!("while full")).await;
            (reply.is(503) && reply.code() == "storage_full").then_some(())
        })
        .await;
    }
    // Deletes make room. A follower sends what comes together in one frame.
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let url = cluster.topic_url(follower, "gone");
    let both = |_| join(cluster.append(follower, "t", json!("while full")), cluster.client.delete(&url));
    for (written, deleted) in join_all((0..100).map(both)).await {
        assert_eq!((written.status(), deleted.status()), (Some(503), Some(200)));
    }
    let head = cluster.diff(1, "t", "strong").await.expect("a strong read goes on")["head_seq"].clone();
    assert!(cluster.members.iter_mut().all(|member| member.is_running()), "nobody stops");

    drop(file);
    drop(ballast);
    for number in 0..3 {
        eventually("a write is taken again", PATIENCE, async || {
            cluster.append(number, "t", json!("after")).await.is(200).then_some(())
        })
        .await;
    }
    let after = cluster.diff(2, "t", "strong").await.expect("read everything");
    assert_eq!(after["head_seq"].as_u64(), head.as_u64().map(|head| head + 3), "the refused left no trace");
}
