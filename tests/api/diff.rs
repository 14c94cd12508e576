//! Section 9: reading pages. Floors, tombstones and `from_ts` are in other files.

use serde_json::{Value, json};

use crate::shared::api;

fn seqs(page: &Value) -> Vec<u64> {
    page["records"].as_array().expect("an array").iter().filter_map(|it| it["$seq"].as_u64()).collect()
}

/// C-DIFF-01, C-DIFF-02, C-DIFF-03, C-DIFF-05, C-DIFF-11
#[tokio::test]
async fn pages_follow_one_another_without_gap_or_repeat() {
    let api = api().await;
    api.write("diff-pages", 25).await.expect(201);
    let (mut cursor, mut read) = (0, Vec::new());
    loop {
        let page = api.diff("diff-pages", json!({ "from_seq": cursor, "limit": 10 })).await.expect(200);
        let found = seqs(&page);
        assert!(found.len() <= 10);
        let next = page["next_from_seq"].as_u64().expect("a seq");
        assert_eq!((&page["head_seq"], &page["lag"]), (&json!(25), &json!(25 - next)));
        assert_eq!(page["caught_up"], next == 25);
        read.extend(found);
        if next == 25 {
            break;
        }
        assert!(next > cursor, "a call makes progress");
        cursor = next;
    }
    assert_eq!(read, (1..=25).collect::<Vec<u64>>());
    let at_head = api.diff("diff-pages", json!({ "from_seq": 25 })).await.expect(200);
    assert_eq!((&at_head["records"], &at_head["tombstone"]), (&json!([]), &json!(null)));
}

/// C-DIFF-07
#[tokio::test]
async fn a_page_has_a_budget_of_bytes_and_at_least_one_record() {
    let api = api().await;
    let records: Vec<Value> = (0..6).map(|_| json!({ "data": "x".repeat(1000) })).collect();
    api.post("/v0/topics/diff-bytes", json!({ "records": records })).await.expect(201);
    let count = async |bytes: u64| {
        seqs(&api.diff("diff-bytes", json!({ "max_batch_bytes": bytes })).await.expect(200)).len()
    };
    assert_eq!(count(1).await, 1);
    assert!((2..=3).contains(&count(3200).await));
    assert_eq!(count(0).await, 6);
}

/// C-DIFF-04, C-NODE-02, C-NODE-03, C-NODE-04, C-NODE-05
#[tokio::test]
async fn records_of_given_nodes_are_passed_over_in_silence() {
    let api = api().await;
    let records = json!([{ "data": 1, "node": "a" }, { "data": 2, "node": "b" }, { "data": 3 }, { "data": 4, "node": "A" }]);
    for (topic, dedupe) in [("diff-node", true), ("diff-all", false)] {
        api.put(&format!("/v0/topics/{topic}"), json!({ "dedupe_node": dedupe })).await.expect(201);
        api.post(&format!("/v0/topics/{topic}"), json!({ "records": records })).await.expect(200);
    }
    let read = async |topic: &str, node: Value| api.diff(topic, json!({ "node": node })).await.expect(200);
    let page = read("diff-node", json!("a")).await;
    assert_eq!(
        (seqs(&page), &page["caught_up"], &page["tombstone"]),
        (vec![2, 3, 4], &json!(true), &json!(null))
    );
    assert_eq!(seqs(&read("diff-node", json!(["a", "b", "A"])).await), [3]);
    assert_eq!(seqs(&read("diff-node", json!([])).await), [1, 2, 3, 4]);
    assert_eq!(seqs(&read("diff-all", json!("a")).await), [1, 2, 3, 4]);
    let all_dropped = json!({ "node": ["a"], "limit": 1 });
    let page = api.diff("diff-node", all_dropped).await.expect(200);
    assert_eq!(seqs(&page), [2]);
}

/// C-DIFF-09, C-CONS-07
#[tokio::test]
async fn a_long_poll_ends_with_what_it_waits_for() {
    let api = api().await;
    api.write("diff-wait", 1).await.expect(201);
    for member in 0..3 {
        let waiting = {
            let api = api.at(member);
            let from_seq = 1 + member;
            tokio::spawn(async move {
                api.diff("diff-wait", json!({ "from_seq": from_seq, "wait_ms": 30_000 })).await.expect(200)
            })
        };
        let started = std::time::Instant::now();
        api.at(member + 1).write("diff-wait", 1).await.expect(200);
        assert_eq!(seqs(&waiting.await.expect("no panic")), [2 + member as u64]);
        assert!(started.elapsed().as_secs() < 20, "it did not wait for its deadline");
    }
    let empty = api.diff("diff-wait", json!({ "from_seq": 4, "wait_ms": 50 })).await.expect(200);
    assert_eq!((seqs(&empty), &empty["caught_up"]), (vec![], &json!(true)));
}

/// C-DIFF-10
#[tokio::test]
async fn a_topic_that_goes_ends_the_wait() {
    let api = api().await;
    api.write("diff-gone", 1).await.expect(201);
    let waiting = {
        let api = api.clone();
        tokio::spawn(async move { api.diff("diff-gone", json!({ "from_seq": 1, "wait_ms": 30_000 })).await })
    };
    // Whether the wait has begun or not, the answer is the same.
    api.delete("/v0/topics/diff-gone").await.expect(200);
    waiting.await.expect("no panic").refused(404, "topic_not_found");
}

/// C-DIFF-12: recency is kept per member.
#[tokio::test]
async fn a_diff_counts_as_a_read() {
    let api = api().await.at(2);
    api.write("diff-touch", 1).await.expect(201);
    assert_eq!(api.topic("diff-touch").await.expect(200)["last_read_ts"], json!(null));
    api.diff("diff-touch", json!({})).await.expect(200);
    assert!(api.topic("diff-touch").await.expect(200)["last_read_ts"].is_u64());
}

/// C-DIFF-13, C-DIFF-17
#[tokio::test]
async fn a_diff_of_an_unknown_topic_makes_none() {
    let api = api().await;
    api.diff("diff-none", json!({})).await.refused(404, "topic_not_found");
    api.topic("diff-none").await.refused(404, "topic_not_found");
    api.diff("diff-none", json!({ "limit": -1 })).await.refused(400, "invalid_request");
}

/// C-DIFF-14
#[tokio::test]
async fn a_diff_shows_the_jobs_of_a_queue() {
    let api = api().await;
    api.put("/v0/topics/diff-queue", json!({ "type": "queue" })).await.expect(201);
    api.write("diff-queue", 2).await.expect(200);
    assert_eq!(seqs(&api.diff("diff-queue", json!({})).await.expect(200)), [1, 2]);
}

/// C-EPOCH-02, C-EPOCH-03, C-EPOCH-04, C-EPOCH-05, C-EPOCH-07, C-GAP-10, C-GAP-11
#[tokio::test]
async fn a_cursor_of_an_earlier_life_is_told_so() {
    let api = api().await;
    api.write("diff-epoch", 5).await.expect(201);
    let old = api.topic("diff-epoch").await.expect(200)["epoch"].as_u64().expect("an epoch");
    api.delete("/v0/topics/diff-epoch").await.expect(200);
    api.write("diff-epoch", 3).await.expect(201);
    let now = api.topic("diff-epoch").await.expect(200)["epoch"].as_u64().expect("an epoch");
    let read = async |body: Value| api.diff("diff-epoch", body).await;
    for body in [
        json!({ "from_seq": 2, "epoch": old }),
        json!({ "from_seq": 2, "epoch": old, "consistency": "eventual" }),
        json!({ "from_seq": 5 }),
        json!({ "from_seq": 5, "epoch": now }),
    ] {
        let page = read(body).await.expect(200);
        let tombstone = &page["tombstone"];
        assert_eq!(tombstone["reason"], "recreated");
        assert_eq!((&tombstone["gap_from"], &tombstone["gap_to"]), (&json!(1), &json!(3)));
        assert_eq!(seqs(&page), [1, 2, 3]);
    }
    read(json!({ "epoch": now + 1 })).await.refused(400, "invalid_request");
    for body in [
        json!({ "from_seq": 5, "consistency": "eventual" }),
        json!({ "from_seq": 5, "epoch": now + 1, "consistency": "eventual" }),
    ] {
        let page = read(body).await.expect(200);
        assert_eq!((&page["records"], &page["tombstone"]), (&json!([]), &json!(null)));
        assert_eq!(page["next_from_seq"], 5);
        assert_eq!((&page["caught_up"], &page["lag"]), (&json!(false), &json!(0)));
    }
    let page = read(json!({ "from_seq": 3, "epoch": now })).await.expect(200);
    assert_eq!((&page["tombstone"], &page["caught_up"]), (&json!(null), &json!(true)));
}

/// C-DIFF-06: a filter that drops everything ends a page after a bounded number of records, and the next one goes on.
#[tokio::test]
async fn a_page_examines_a_bounded_number_of_records() {
    const COUNT: u64 = 25_000;
    let api = api().await;
    for _ in 0..COUNT / 5000 {
        assert!(api.write("diff-bounded", 5000).await.status < 300);
    }
    let (mut cursor, mut calls) = (0, 0);
    while cursor < COUNT {
        let body = json!({ "from_seq": cursor, "filter": ["tag", "Eq", "none"] });
        let page = api.diff("diff-bounded", body).await.expect(200);
        assert_eq!((&page["records"], &page["tombstone"]), (&json!([]), &json!(null)));
        let next = page["next_from_seq"].as_u64().expect("a seq");
        assert!(cursor < next && next - cursor <= 10_000, "from {cursor} to {next}");
        assert_eq!(page["caught_up"], next == COUNT);
        (cursor, calls) = (next, calls + 1);
    }
    assert_eq!(calls, 3);
}
