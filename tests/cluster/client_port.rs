//! What strangers do at the port of clients, and what a member lives through.

use serde_json::json;
use tokio::net::TcpStream;

use crate::harness::Cluster;
use crate::peer_port::antiphon_with_files;

/// C-LIMIT-16: connections that say nothing take no files from the log, and no place from those who say something.
#[tokio::test]
async fn silent_connections_of_clients_neither_end_a_member_nor_keep_others_out() {
    let mut cluster = Cluster::start_with(1, &["--segment-bytes", "1MiB"]).await;
    cluster.kill(0);
    let usual = cluster.command(0);
    let mut command = antiphon_with_files(1024);
    command.args(usual.get_args());
    cluster.spawn_as(0, command);
    cluster.wait_ready(0).await;
    let mut silent = Vec::new();
    for _ in 0..1100 {
        silent
            .push(TcpStream::connect(("127.0.0.1", cluster.members[0].client_port)).await.expect("connect"));
    }
    // 200 KB each: the log needs new files again and again.
    for number in 0..20 {
        let data = json!("x".repeat(200_000));
        cluster.append(0, "t", data).await.expect(&format!("append {number} while others are silent"));
    }
    assert!(cluster.members[0].is_running(), "{}", cluster.members[0].log());
    let pid = cluster.members[0].pid();
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("list its files").count();
    assert!(files < 900, "{files} files are open");
    drop(silent);
}
