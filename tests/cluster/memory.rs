//! What clients can make a member keep in memory.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::client::Reply;
use crate::harness::Cluster;

const MIB: usize = 1 << 20;
/// All watch sessions and sockets of a member, as README says.
const MAX_WATCH_MEMORY: usize = 256 * MIB;

fn resident_bytes(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

/// C-LIMIT-16: sessions of the filters that take the most memory for their text.
#[tokio::test]
async fn watch_sessions_hold_so_much_memory_and_no_more() {
    let cluster = Cluster::start(1).await;
    let topics: Vec<String> = (0..256).map(|number| format!("t{number}")).collect();
    for names in topics.chunks(64) {
        let topics = names.iter().map(|name| (name.clone(), json!({ "records": [{ "data": 1 }] })));
        let body = json!({ "topics": topics.collect::<serde_json::Map<String, Value>>() });
        cluster.client.post(&format!("{}/v0/append", cluster.members[0].url()), &body).await.expect("topics");
    }
    let filter = json!(["tag", "In", vec![1; 64]]);
    let topics = topics.iter().map(|name| (name.clone(), json!({ "filter": filter })));
    let body = json!({ "topics": topics.collect::<serde_json::Map<String, Value>>() });
    let url = format!("{}/v0/watch", cluster.members[0].url());
    let pid = cluster.members[0].pid();
    let before = resident_bytes(pid);
    let mut sessions = 0;
    let refusal = loop {
        match cluster.client.post(&url, &body).await {
            Reply::Answer { status: 200, .. } => sessions += 1,
            Reply::Answer { status: 429, body, .. } => break body,
            other => panic!("{other:?}"),
        }
        assert!(sessions < 1000, "no end");
    };
    assert_eq!(refusal["error"]["detail"], json!({ "limit": "watch_memory_bytes", "max": MAX_WATCH_MEMORY }));
    let grown = resident_bytes(pid) - before;
    println!("{sessions} sessions, {} MiB", grown / MIB);
    // What is counted is what there is, about.
    assert!((MAX_WATCH_MEMORY / 2..MAX_WATCH_MEMORY / 4 * 5).contains(&grown), "{sessions}: {grown}");
}

/// C-LIMIT-16, C-WS-07: a socket that once had a large message, or sent one, keeps nothing of it.
#[tokio::test]
async fn idle_sockets_hold_no_buffers() {
    const SOCKETS: usize = 12;
    let cluster = Cluster::start(1).await;
    let address = format!("127.0.0.1:{}", cluster.members[0].client_port);
    let pid = cluster.members[0].pid();
    let command = json!({ "op": "ping", "request_id": "x".repeat(7 * MIB) }).to_string();
    let mut sockets = Vec::new();
    let mut before = 0;
    for number in 0..=SOCKETS {
        let stream = tokio::net::TcpStream::connect(&address).await.expect("connect");
        let url = format!("ws://{address}/v0/ws");
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a socket");
        socket.send(Message::text(command.clone())).await.expect("send a message");
        let answer = socket.next().await.expect("an answer").expect("an answer");
        assert!(answer.len() > 7 * MIB);
        sockets.push(socket);
        if number == 0 {
            // What the allocator keeps for the next one is no socket's.
            before = resident_bytes(pid);
        }
    }
    let grown = resident_bytes(pid).saturating_sub(before);
    assert!(grown < 2 * 7 * MIB, "{SOCKETS} idle sockets hold {grown} bytes");
}

/// C-WATCH-05: a session that finds no room where it is to move stays where it is, and is found there.
#[tokio::test]
async fn a_session_that_finds_no_room_where_it_should_move_is_not_lost() {
    let cluster = Cluster::start(3).await;
    let urls = cluster.urls();
    let topics: Vec<String> = (0..64).map(|number| format!("t{number}")).collect();
    let appends = topics.iter().map(|name| (name.clone(), json!({ "records": [{ "data": 1 }] })));
    let body = json!({ "topics": appends.collect::<serde_json::Map<String, Value>>() });
    cluster.client.post(&format!("{}/v0/append", urls[0]), &body).await.expect("topics");
    let filter = json!(["tag", "In", vec![1; 64]]);
    let watched = topics.iter().map(|name| (name.clone(), json!({ "filter": filter })));
    let body = json!({ "topics": watched.collect::<serde_json::Map<String, Value>>() });
    // The one that is full.
    loop {
        match cluster.client.post(&format!("{}/v0/watch", urls[2]), &body).await {
            Reply::Answer { status: 200, .. } => {}
            Reply::Answer { status: 429, .. } => break,
            other => panic!("{other:?}"),
        }
    }
    let made = cluster.client.post(&format!("{}/v0/watch", urls[0]), &body).await.expect("make a watch");
    let session = made["stream_url"].as_str().expect("a path");
    let http = reqwest::Client::builder().no_proxy().build().expect("build a client");
    for (member, status) in [(1, 200), (2, 429), (0, 200), (2, 429), (1, 200)] {
        let opened = http.get(format!("{}{session}", urls[member])).send().await.expect("an answer");
        assert_eq!(opened.status(), status, "at member {member}");
    }
}
