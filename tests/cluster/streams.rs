//! Streams through the loss of members.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, eventually};

/// One frame's `id`, name and data.
type Frame = (String, String, Value);

/// Reads frames of `response` until `is_last` says so or the stream ends.
async fn read(response: &mut reqwest::Response, buffer: &mut String) -> Option<Frame> {
    loop {
        if let Some((frame, rest)) = buffer.split_once("\n\n") {
            let (frame, rest) = (frame.to_owned(), rest.to_owned());
            *buffer = rest;
            let field = |name: &str| {
                frame.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned()
            };
            let data = serde_json::from_str(&field("data: ")).unwrap_or(Value::Null);
            return Some((field("id: "), field("event: "), data));
        }
        match tokio::time::timeout(PATIENCE, response.chunk()).await.expect("a sign of life") {
            Ok(Some(chunk)) => buffer.push_str(std::str::from_utf8(&chunk).expect("is text")),
            _ => return None,
        }
    }
}

/// C-WATCH-05, C-WATCH-09, C-WATCH-11: a client that goes on elsewhere misses nothing and gets nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_at_other_members_when_its_own_is_lost() {
    let mut cluster = Cluster::start(3).await;
    let http = reqwest::Client::builder().no_proxy().build().expect("build a client");
    cluster.append(0, "t", json!(0)).await;
    let urls = cluster.urls();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writing = {
        let (http, urls) = (http.clone(), urls.clone());
        tokio::spawn(async move {
            let mut number = 0u64;
            while !*stopped.borrow() {
                number += 1;
                let body = json!({ "records": [{ "data": number }], "idempotency_key": number.to_string() });
                // Until it is acked, by whomever.
                for turn in 0.. {
                    let url = format!("{}/v0/topics/t", urls[turn % urls.len()]);
                    let request = http.post(url).timeout(Duration::from_secs(5)).json_body(&body);
                    if request.send().await.is_ok_and(|answer| answer.status().is_success()) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            number
        })
    };
    let mut seen: Vec<u64> = Vec::new();
    let mut last_id = String::new();
    let mut cursor = 0;
    // Made by member 1, taken over by member 2, whose maker is then killed; then 2 is killed itself, and with
    // it the session, so the client makes a new one from its own cursor.
    let mut session = String::new();
    for (member, killed) in [(1, None), (2, Some(1)), (0, None)] {
        let made = async |member: usize, cursor: u64| {
            let body = json!({ "topics": { "t": { "from_seq": cursor } }, "heartbeat_ms": 1000 });
            let request = http.post(format!("{}/v0/watch", urls[member])).json_body(&body);
            let answer = request.send().await.ok().filter(|answer| answer.status().is_success())?;
            let answer: Value = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
            answer["stream_url"].as_str().map(str::to_owned)
        };
        let mut response = eventually("a stream", PATIENCE, async || {
            if session.is_empty() {
                session = made(member, cursor).await?;
            }
            let request = http.get(format!("{}{session}", urls[member])).header("last-event-id", &last_id);
            let response = request.send().await.ok()?;
            if response.status() == 404 {
                session.clear();
            }
            response.status().is_success().then_some(response)
        })
        .await;
        if let Some(killed) = killed {
            cluster.kill(killed);
        }
        let (mut buffer, goal) = (String::new(), seen.len() + 100);
        while seen.len() < goal {
            let frame = read(&mut response, &mut buffer).await.expect("the stream goes on");
            let (id, name, data) = frame;
            if name == "record" {
                assert_eq!(data["from_seq"].as_u64(), Some(cursor), "no gap and no repeat");
                cursor = data["to_seq"].as_u64().expect("a seq");
                let records = data["records"].as_array().expect("records");
                seen.extend(records.iter().filter_map(|record| record["$seq"].as_u64()));
                last_id = id;
            }
        }
        drop(response);
        if member == 2 {
            cluster.restart(1).await;
            cluster.wait_all_ready().await;
            cluster.kill(2);
            session.clear();
        }
    }
    stop.send(true).expect("the writer runs");
    writing.await.expect("no panic");
    assert_eq!(seen, (1..=cursor).collect::<Vec<u64>>());
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len());
}

/// reqwest's own needs a feature that nothing else here needs.
trait JsonBody {
    fn json_body(self, body: &Value) -> Self;
}

impl JsonBody for reqwest::RequestBuilder {
    fn json_body(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }
}
