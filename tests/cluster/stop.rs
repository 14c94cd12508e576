//! SIGTERM: a member leaves in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::Client;
use crate::harness::{Cluster, PATIENCE, eventually};
use crate::oracle::{Oracle, more_acks};
use crate::writers::Writers;

/// Without a hand-over the others wait for a lease (800 ms) and an election timeout (at least 500 ms).
const WITHOUT_HAND_OVER: Duration = Duration::from_millis(1300);

/// C-CLU-07, C-MEMB-09, C-OPS-05: a leader that is asked to stop hands over, finishes what runs, and
/// exits with 0; nothing that it acked is lost.
#[tokio::test]
async fn a_leader_asked_to_stop_hands_over_and_loses_nothing() {
    let mut cluster = Cluster::start(3).await;
    let oracle = Arc::new(Oracle::new("stop"));
    let writers = Writers::start(&oracle, &cluster.urls());
    more_acks(&oracle, 100, PATIENCE).await;
    let leader = cluster.leader().await;
    let survivor = (leader + 1) % 3;
    let asked = Instant::now();
    cluster.members[leader].signal_term();
    eventually("a survivor names another leader", PATIENCE, async || {
        cluster.leader_seen_by(survivor).await.filter(|seen| *seen != leader)
    })
    .await;
    let gap = asked.elapsed();
    let status = eventually("the old leader ends", PATIENCE, async || cluster.members[leader].ended()).await;
    println!("leadership moved {gap:?} after SIGTERM, the process ended after {:?}", asked.elapsed());
    assert!(status.success(), "SIGTERM ended with {status}");
    assert!(gap < WITHOUT_HAND_OVER, "{gap:?} is no hand-over but an election");
    more_acks(&oracle, 100, PATIENCE).await;
    cluster.restart(leader).await;
    writers.finish().await;
    println!("{}", oracle.check(&mut cluster).await);
}

/// C-OPS-03, C-OPS-05, section 17.4: first nobody is sent to it any more, and only then nobody is served.
#[tokio::test]
async fn a_member_that_is_told_to_stop_serves_on_while_it_drains() {
    let mut cluster = Cluster::start_with(1, &["--drain-ms", "600000"]).await;
    assert!(cluster.append(0, "t", json!(1)).await.is(201));
    let (ready, watch) = (format!("{}/v0/ready", cluster.members[0].url()), cluster.members[0].url());
    cluster.members[0].signal_term();
    eventually("it is not ready any more", PATIENCE, async || {
        let reply = cluster.client.get(&ready).await;
        (reply.is(503) && reply.code() == "shutting_down").then_some(())
    })
    .await;
    // New connections, requests and streams.
    let client = Client::new();
    assert!(client.post(&cluster.topic_url(0, "t"), &json!({ "records": [{ "data": 2 }] })).await.is(200));
    assert!(client.get(&format!("{watch}/v0/health")).await.is(200));
    let made = client.post(&format!("{watch}/v0/watch"), &json!({ "topics": { "t": {} } })).await;
    let made = made.ok().expect("a session");
    let url = format!("{watch}{}", made["stream_url"].as_str().expect("a path"));
    let mut stream = reqwest::Client::builder().no_proxy().build().expect("a client").get(url).send().await;
    let stream = stream.as_mut().expect("a stream");
    let mut text = String::new();
    while !text.contains("caught-up") {
        let chunk = stream.chunk().await.expect("the stream goes on").expect("the stream goes on");
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(text.contains(r#""to_seq":2"#), "{text}");
    // Told again.
    cluster.members[0].signal_term();
    while let Some(chunk) = stream.chunk().await.expect("the stream ends in order") {
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(text.contains(r#""error":"shutting_down","retry_after_ms""#), "{text}");
    let status = eventually("it ends", PATIENCE, async || cluster.members[0].ended()).await;
    assert!(status.success(), "{status}");
}
