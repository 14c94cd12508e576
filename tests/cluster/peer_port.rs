//! The port between members, and those who have no business there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::harness::{Cluster, PATIENCE, antiphon, eventually, free_ports};

/// Answers whoever calls at `port` with `words`, and counts them.
async fn impostor(port: u16, words: &'static [u8]) -> (Arc<AtomicUsize>, JoinHandle<()>) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("take the peer port");
    let answered = Arc::new(AtomicUsize::new(0));
    let count = answered.clone();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let mut heard = [0; 64];
                let _ = stream.read(&mut heard).await;
                if stream.write_all(words).await.is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                // Until the other end has had enough.
                while stream.read(&mut heard).await.is_ok_and(|bytes| bytes > 0) {}
            });
        }
    });
    (answered, task)
}

/// Whoever has the address of a member that is down can say that another one has taken its caller's place. It must
/// know the secret to be believed.
#[tokio::test]
async fn a_stranger_at_the_address_of_a_dead_member_ends_nobody() {
    const REPLACED: &[u8] = b"\x09\x00\x02\xff\xff\xff\xff\xff\xff\xff\xff";
    let mut cluster = Cluster::start(3).await;
    let dead = cluster.follower().await;
    cluster.kill(dead);
    let (answered, impostor) = impostor(cluster.members[dead].peer_port, REPLACED).await;
    eventually("both others have heard it several times", PATIENCE, async || {
        (answered.load(Ordering::Relaxed) >= 12).then_some(())
    })
    .await;
    for other in (0..3).filter(|number| *number != dead) {
        assert!(cluster.members[other].is_running(), "m{} ended", other + 1);
        cluster.append(other, "t", json!(other)).await.expect("the others go on");
    }
    // Nor does it keep one from starting.
    let other = (0..3).find(|number| *number != dead).expect("there are three");
    cluster.members[other].terminate().await;
    cluster.restart(other).await;
    impostor.abort();
    let _ = impostor.await;
    cluster.restart(dead).await;
}

/// Connections that say nothing take no files from the log, and no place from members.
#[tokio::test]
async fn silent_connections_to_the_peer_port_neither_end_a_member_nor_keep_others_out() {
    const FILES: usize = 256;
    let mut cluster = Cluster::start_with(3, &["--segment-bytes", "1MiB"]).await;
    let crowded = cluster.leader().await;
    cluster.kill(crowded);
    let usual = cluster.command(crowded);
    let mut command = antiphon_with_files(FILES);
    command.args(usual.get_args());
    cluster.spawn_as(crowded, command);
    cluster.wait_ready(crowded).await;

    let port = cluster.members[crowded].peer_port;
    let crowd: Vec<_> = (0..8).map(|_| tokio::spawn(keep_silent(port, FILES / 4))).collect();
    // 200 KB each: the log needs new files again and again.
    for number in 0..20 {
        let data = json!("x".repeat(200_000));
        cluster.append(crowded, "t", data).await.expect(&format!("append {number} while others are silent"));
    }
    // A member that comes back finds a way in.
    let other = (crowded + 1) % 3;
    cluster.kill(other);
    cluster.restart(other).await;
    cluster.append(other, "t", json!("last")).await.expect("append at the one that came back");
    assert!(cluster.members[crowded].is_running(), "{}", cluster.members[crowded].log());
    crowd.iter().for_each(JoinHandle::abort);
}

/// Keeps `count` connections open that never say anything.
async fn keep_silent(port: u16, count: usize) {
    let mut open = std::collections::VecDeque::new();
    loop {
        if open.len() == count {
            open.pop_front();
        }
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => open.push_back(stream),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The binary under test, which may have `files` open and no more.
pub fn antiphon_with_files(files: usize) -> std::process::Command {
    let mut command = std::process::Command::new("sh");
    let line = format!("ulimit -n {files} && exec \"$@\"");
    command.args(["-c", &line, "sh"]).arg(antiphon().get_program());
    command
}

#[tokio::test]
async fn too_few_files_are_said_at_the_start() {
    let cluster = Cluster::start(1).await;
    let dir = cluster.members[0].data_dir.with_extension("few");
    let mut command = antiphon_with_files(100);
    command.args(["serve", "--port", &free_ports(1)[0].to_string()]).arg("--data-dir").arg(dir);
    let line = crate::start::refusal(command).await;
    crate::start::names(&line, &["100 files", "128", "LimitNOFILE"]);
}
