//! Section 12, and what sections 9, 10 and 11 say of records that were deleted.

use serde_json::{Value, json};

use crate::shared::{Api, Got, api};

const MEMBERS: usize = 3;

/// Records with tags in turn; `null` is none.
async fn append(api: &Api, topic: &str, count: usize, tags: &[Value]) {
    for first in (0..count).step_by(5000) {
        let records: Vec<Value> = (first..count.min(first + 5000))
            .map(|number| match &tags[number % tags.len()] {
                Value::Null => json!({ "data": number }),
                tag => json!({ "data": number, "tag": tag }),
            })
            .collect();
        let append = api.post(&format!("/v0/topics/{topic}"), json!({ "records": records })).await;
        assert!(append.status < 300, "{:?}", append.body);
    }
}

async fn delete(api: &Api, topic: &str, body: Value) -> Got {
    api.post(&format!("/v0/topics/{topic}/delete"), body).await
}

async fn deleted(api: &Api, topic: &str, body: Value) -> u64 {
    let answer = delete(api, topic, body).await.expect(200);
    let state = api.topic(topic).await.expect(200);
    for field in ["topic", "earliest_seq", "head_seq", "count", "bytes"] {
        assert_eq!(answer[field], state[field], "{field}");
    }
    answer["deleted"].as_u64().expect("a number")
}

fn seqs(page: &Value) -> Vec<u64> {
    let records = page["records"].as_array().expect("records");
    records.iter().map(|record| record["$seq"].as_u64().expect("a seq")).collect()
}

/// Everything above `cursor`, page by page, with no tombstone on the way.
async fn read(api: &Api, topic: &str, cursor: u64) -> Vec<u64> {
    let (mut cursor, mut read) = (cursor, Vec::new());
    loop {
        let page = api.diff(topic, json!({ "from_seq": cursor, "limit": 1000 })).await.expect(200);
        assert_eq!(page["tombstone"], Value::Null, "after {cursor}");
        read.extend(seqs(&page));
        if page["caught_up"] == true {
            return read;
        }
        // C-DIFF-05
        assert!(page["next_from_seq"].as_u64() > Some(cursor));
        cursor = page["next_from_seq"].as_u64().expect("a seq");
    }
}

/// C-DEL-01, C-DEL-03, C-DEL-05, C-DEL-09
#[tokio::test]
async fn what_is_selected_goes_at_once_and_at_every_member() {
    let api = api().await;
    let tags = [json!("m:1"), json!("m:2"), json!("x"), Value::Null];
    append(&api, "del-select", 40, &tags).await;
    let of = |left: &[u64]| (1..=40).filter(|seq| left.contains(&(seq % 4))).collect::<Vec<u64>>();
    assert_eq!(deleted(&api, "del-select", json!({ "match": ["tag", "Eq", "x"] })).await, 10);
    for member in 0..MEMBERS {
        assert_eq!(read(&api.at(member), "del-select", 0).await, of(&[1, 2, 0]), "member {member}");
    }
    assert_eq!(deleted(&api, "del-select", json!({ "match": "x" })).await, 0);
    assert_eq!(deleted(&api, "del-select", json!({ "match": "m:*", "before_seq": 10 })).await, 5);
    assert_eq!(deleted(&api, "del-select", json!({ "before_seq": 13 })).await, 4);
    let left: Vec<u64> = of(&[1, 2, 0]).into_iter().filter(|seq| *seq >= 13).collect();
    assert_eq!(read(&api, "del-select", 0).await, left);
    assert_eq!(deleted(&api, "del-select", json!({ "match": "*" })).await, 14);
    assert_eq!(read(&api, "del-select", 0).await, of(&[0])[3..].to_vec());
    assert_eq!(deleted(&api, "del-select", json!({ "before_seq": 1_000_000 })).await, 7);
    let state = api.topic("del-select").await.expect(200);
    assert_eq!(
        [&state["count"], &state["bytes"], &state["earliest_seq"]],
        [&json!(0), &json!(0), &json!(41)]
    );
    // C-TOPIC-11
    api.delete("/v0/topics/del-select?if_empty=true").await.expect(200);
}

/// C-DEL-02
#[tokio::test]
async fn what_is_written_later_is_not_touched() {
    let api = api().await;
    append(&api, "del-later", 3, &[json!("t")]).await;
    assert_eq!(deleted(&api, "del-later", json!({ "match": "t" })).await, 3);
    append(&api, "del-later", 2, &[json!("t")]).await;
    assert_eq!(read(&api, "del-later", 0).await, [4, 5]);
}

/// C-DEL-01, C-DEL-02: whatever is written meanwhile either goes or stays, and what was acked before goes.
#[tokio::test]
async fn a_delete_under_writes_takes_everything_acked_before_and_nothing_written_after() {
    let api = api().await;
    append(&api, "del-race", 1, &[json!("t")]).await;
    for round in 0..20 {
        let writers = (0..4).map(|writer| {
            let api = api.at(writer + round);
            tokio::spawn(async move {
                for _ in 0..10 {
                    append(&api, "del-race", 1, &[json!("t")]).await;
                }
            })
        });
        let writers: Vec<_> = writers.collect();
        let acked_seq = api.topic("del-race").await.expect(200)["head_seq"].as_u64().expect("a seq");
        let answer = delete(&api.at(round), "del-race", json!({ "match": "t" })).await.expect(200);
        let ordered_seq = answer["head_seq"].as_u64().expect("a seq");
        assert!(ordered_seq >= acked_seq);
        assert_eq!(answer["count"], 0, "round {round}: {answer}");
        for writer in writers {
            writer.await.expect("a writer ends");
        }
        let head_seq = api.topic("del-race").await.expect(200)["head_seq"].as_u64().expect("a seq");
        assert_eq!(read(&api, "del-race", 0).await, (ordered_seq + 1..=head_seq).collect::<Vec<_>>());
    }
}

/// C-DEL-06, C-GAP-04, C-GAP-02
#[tokio::test]
async fn a_deleted_part_gives_no_tombstone_and_an_evicted_one_still_does() {
    let api = api().await;
    append(&api, "del-gap", 10, &[json!("a"), json!("b")]).await;
    deleted(&api, "del-gap", json!({ "before_seq": 4 })).await;
    let page = api.diff("del-gap", json!({})).await.expect(200);
    assert_eq!((&page["tombstone"], &page["earliest_seq"]), (&Value::Null, &json!(4)));
    // 4, 6, 8 and 10 go; a cap then takes 5, and moves past 6 without having taken it.
    deleted(&api, "del-gap", json!({ "match": "b" })).await;
    api.put("/v0/topics/del-gap", json!({ "cap_records": 2 })).await.expect(200);
    let gap = |page: &Value| {
        let tombstone = &page["tombstone"];
        [&tombstone["gap_from"], &tombstone["gap_to"], &page["earliest_seq"]].map(Value::as_u64)
    };
    let page = api.diff("del-gap", json!({})).await.expect(200);
    assert_eq!((gap(&page), seqs(&page)), ([Some(1), Some(6), Some(7)], vec![7, 9]));
    let page = api.diff("del-gap", json!({ "from_seq": 4 })).await.expect(200);
    assert_eq!(gap(&page), [Some(5), Some(6), Some(7)]);
    assert_eq!(read(&api, "del-gap", 5).await, [7, 9]);
    // C-RET-06: what was deleted does not count.
    append(&api, "del-gap", 1, &[Value::Null]).await;
    assert_eq!(read(&api, "del-gap", 7).await, [9, 11]);
}

/// C-GAP-12: the same records, passed over by `node`, by a filter, by a delete, and lost to a cap.
#[tokio::test]
async fn removal_that_was_asked_for_gives_no_tombstone_and_other_loss_does() {
    let api = api().await;
    let records: Vec<Value> = (0..6).map(|data| json!({ "data": data, "tag": "t", "node": "n" })).collect();
    api.post("/v0/topics/del-asked", json!({ "records": records })).await.expect(201);
    for asked in [json!({ "node": "n" }), json!({ "filter": ["tag", "NotEq", "t"] })] {
        let page = api.diff("del-asked", asked).await.expect(200);
        assert_eq!(
            (&page["tombstone"], &page["records"], &page["caught_up"]),
            (&Value::Null, &json!([]), &json!(true))
        );
    }
    deleted(&api, "del-asked", json!({ "before_seq": 3 })).await;
    let page = api.diff("del-asked", json!({})).await.expect(200);
    assert_eq!((&page["tombstone"], seqs(&page)), (&Value::Null, vec![3, 4, 5, 6]));
    api.put("/v0/topics/del-asked", json!({ "cap_records": 1 })).await.expect(200);
    let page = api.diff("del-asked", json!({})).await.expect(200);
    let tombstone = &page["tombstone"];
    assert_eq!((&tombstone["gap_from"], &tombstone["gap_to"], seqs(&page)), (&json!(1), &json!(5), vec![6]));
    assert!(tombstone["reason"].is_string(), "{tombstone}");
}

/// C-DEL-04, C-DEL-11
#[tokio::test]
async fn what_is_not_a_delete_is_refused() {
    let api = api().await;
    append(&api, "del-bad", 3, &[json!("a*b")]).await;
    for bad in [
        json!({}),
        json!({ "match": ["tag", "In", ["a"]] }),
        json!({ "match": ["node", "Eq", "a"] }),
        json!({ "match": ["tag", "Glob", "a"] }),
        json!({ "match": ["Not", "a"] }),
        json!({ "match": 1 }),
        json!({ "before_seq": -1 }),
        json!({ "before_seq": "1" }),
    ] {
        delete(&api, "del-bad", bad).await.refused(400, "invalid_request");
    }
    for body in [json!({ "before_seq": 1 }), json!({ "match": "a" })] {
        delete(&api, "del-none", body).await.refused(404, "topic_not_found");
    }
    api.get("/v0/topics/del-none").await.refused(404, "topic_not_found");
    delete(&api.with_key("writer"), "del-bad", json!({ "before_seq": 9 })).await.refused(403, "forbidden");
    assert_eq!(read(&api, "del-bad", 0).await, [1, 2, 3]);
    // Only the last star is a wildcard.
    assert_eq!(deleted(&api, "del-bad", json!({ "match": "a*b*" })).await, 3);
}

/// C-DIFF-01 to C-DIFF-05 where most of large batches and of many small ones is gone.
#[tokio::test]
async fn reads_walk_over_holes() {
    let api = api().await;
    let tags: Vec<Value> =
        (0..7).map(|tag| if tag == 3 { Value::Null } else { json!(format!("t{tag}")) }).collect();
    append(&api, "del-holes", 20_000, &tags).await;
    for _ in 0..300 {
        append(&api, "del-holes", 1, &[json!("t0")]).await;
    }
    append(&api, "del-holes", 1, &[Value::Null]).await;
    let tagged = deleted(&api, "del-holes", json!({ "match": "t*" })).await;
    assert!(tagged > 17_000);
    // The tags start anew with each batch of 5000.
    let expected: Vec<u64> =
        (0..20_000u64).filter(|number| number % 7 == 3).map(|number| number + 1).chain([20_301]).collect();
    assert_eq!(read(&api, "del-holes", 0).await, expected);
    let page = api.diff("del-holes", json!({ "from_seq": 19_999 })).await.expect(200);
    assert_eq!((seqs(&page), &page["caught_up"]), (vec![20_301], &json!(true)));
    let ts = page["records"][0]["$ts"].as_u64().expect("a time");
    let page = api.diff("del-holes", json!({ "from_ts": ts })).await.expect(200);
    assert_eq!(seqs(&page).last(), Some(&20_301));
}
