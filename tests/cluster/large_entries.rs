//! Entries as large as bodies may be, and filters as dear as filters may be: who reads them is bounded, gets on, and is in
//! nobody's way.

use std::time::{Duration, Instant};

use antiphon::engine::{Ask, PullCursor, PullQuery, Sources};
use antiphon::router::PullRequest;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::Cluster;

/// Three such entries are more than all readers of a member may hold at once.
const LARGE_RECORDS: usize = 46;

fn large(count: usize) -> Vec<Value> {
    vec![json!({ "data": "x".repeat(1_000_000) }); count]
}

/// Has what was written before leave the memory of a member that keeps 1 MiB.
async fn fill(cluster: &Cluster) {
    cluster
        .client
        .post(&cluster.topic_url(0, "filler"), &json!({ "records": large(4) }))
        .await
        .expect("append");
}

/// C-MIRROR-11, C-LIMIT-16: a pull ends with what it has instead of waiting for room that it holds itself.
#[tokio::test]
async fn a_mirror_gets_on_through_large_entries() {
    let cluster = Cluster::start_with(1, &["--cache-bytes", "1MiB"]).await;
    for number in 1..=3 {
        let small = json!({ "records": [{ "data": format!("small-{number}") }] });
        let body = json!({ "topics": { "small": small, "big": { "records": large(LARGE_RECORDS) } } });
        let url = format!("{}/v0/append", cluster.members[0].url());
        cluster.client.post(&url, &body).await.expect("append");
    }
    fill(&cluster).await;
    let topic = cluster.client.get(&cluster.topic_url(0, "small")).await.expect("show");
    let epoch = topic["epoch"].as_u64().expect("an epoch");
    let http = reqwest::Client::builder().no_proxy().build().expect("build a client");
    let pull = async |seq: u64| {
        let query = PullQuery {
            sources: Sources::One("small".to_owned()),
            wanted: vec![("small".to_owned(), Some(PullCursor { epoch, seq, entry: None }))],
            ask: Ask::Nothing,
            beginning: None,
            filter: None,
            puller_id: 1,
            dest: None,
            wait_ms: 0,
            max_bytes: 1 << 20,
        };
        let puller = antiphon::state::Cluster { id: 1, name: "elsewhere".to_owned() };
        let request = http
            .post(format!("{}/v0/mirror/pull", cluster.members[0].url()))
            .header("content-type", "application/octet-stream")
            .body(PullRequest { puller, query }.encode().to_vec());
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let body = answer.bytes().await.expect("a body");
        let has = |number: u64| {
            let data = format!("small-{number}");
            body.windows(data.len()).any(|part| part == data.as_bytes())
        };
        (1..=3).filter(|number| has(*number)).collect::<Vec<u64>>()
    };
    let began = Instant::now();
    assert_eq!(pull(0).await, [1, 2]);
    assert_eq!(pull(2).await, [3]);
    assert!(began.elapsed() < Duration::from_secs(5), "nothing had to be waited for");
}

/// C-LIMIT-16: deletes by tag that have to read records count what they hold.
#[tokio::test]
async fn deletes_that_read_large_entries_share_the_room_for_them() {
    const DELETES: usize = 12;
    let cluster = Cluster::start_with(1, &["--cache-bytes", "1MiB"]).await;
    let url = cluster.topic_url(0, "large");
    // Between the entries are more matching tags of another topic than a look is told.
    let tagged: Vec<Value> = (0..10_000).map(|n| json!({ "data": n, "tag": format!("a{n}") })).collect();
    cluster.client.post(&url, &json!({ "records": large(LARGE_RECORDS) })).await.expect("append");
    cluster.client.post(&cluster.topic_url(0, "other"), &json!({ "records": tagged })).await.expect("append");
    cluster.client.post(&url, &json!({ "records": large(LARGE_RECORDS) })).await.expect("append");
    fill(&cluster).await;
    let pid = cluster.members[0].pid();
    let peak_bytes = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
    };
    // The peak from here on.
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("clear the peak");
    let before = peak_bytes();
    let delete = || async {
        let body = json!({ "match": ["tag", "Glob", "a*"] });
        cluster.client.post(&format!("{url}/delete"), &body).await.expect("delete")
    };
    let deleted = join_all((0..DELETES).map(|_| delete())).await;
    assert!(deleted.iter().all(|deleted| deleted["deleted"] == 0), "{deleted:?}");
    let grown = peak_bytes() - before;
    assert!(grown < 5 * LARGE_RECORDS * 1_000_000, "{DELETES} deletes hold {grown} bytes");
}

/// C-FILT-07, C-LIMIT-15: however many leaves a filter has and however large records are, a member answers others.
#[tokio::test]
async fn dear_filters_are_in_nobody_s_way() {
    const READERS: usize = 12;
    let cluster = Cluster::start(1).await;
    let records = vec![json!({ "data": { "z": "x".repeat(1_000_000) } }); 10];
    cluster.client.post(&cluster.topic_url(0, "dear"), &json!({ "records": records })).await.expect("append");
    let leaves = (0..63).map(|n| json!(["Not", [format!("data.a{n}"), "Eq", n]]));
    let leaves: Vec<Value> = leaves.chain([json!(["data.q", "Eq", 1])]).collect();
    let body = json!({ "filter": ["And", leaves], "limit": 1 });
    let url = format!("{}/diff", cluster.topic_url(0, "dear"));
    let first = cluster.client.post(&url, &body).await.expect("read a page");
    assert_eq!(first["records"], json!([]));
    assert!(first["next_from_seq"].as_u64() > Some(0), "{first}");
    let http = reqwest::Client::builder().no_proxy().build().expect("build a client");
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let (http, url, body) = (http.clone(), url.clone(), body.to_string());
            tokio::spawn(async move {
                loop {
                    let request = http.post(&url).header("content-type", "application/json");
                    if let Ok(answer) = request.body(body.clone()).send().await {
                        let _ = answer.bytes().await;
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    for number in 0..5 {
        let began = Instant::now();
        let record = json!({ "records": [{ "data": number }] });
        cluster.client.post(&cluster.topic_url(0, "light"), &record).await.expect("append");
        let ready = cluster.client.get(&format!("{}/v0/ready", cluster.members[0].url())).await;
        assert!(ready.is(200), "{ready:?}");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(2), "an append beside dear filters took {took:?}");
    }
    readers.iter().for_each(|reader| reader.abort());
}
