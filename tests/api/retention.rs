//! Sections 4.3, 6.1, 8.1, 9, 10 and 11 as far as they are about what goes by age and by caps, and how that
//! is told.
//!
//! Time is the subject here, so tests let some pass; none waits for what it could be told of.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::shared::{Api, api};

const MEMBERS: usize = 3;
/// Most that a record counts for beside `data` and `meta` (C-RET-08).
const MOST_FRAMING_BYTES: u64 = 64;

async fn put(api: &Api, topic: &str, config: Value) -> u16 {
    let put = api.put(&format!("/v0/topics/{topic}"), config).await;
    assert!(put.status < 300, "{:?}", put.body);
    put.status
}

async fn append(api: &Api, topic: &str, count: usize) -> Value {
    let append = api.write(topic, count).await;
    assert!(append.status < 300, "{:?}", append.body);
    append.body
}

fn seqs(page: &Value) -> Vec<u64> {
    let records = page["records"].as_array().expect("records");
    records.iter().map(|record| record["$seq"].as_u64().expect("a seq")).collect()
}

/// `gap_from`, `gap_to` and `reason`.
fn gap(page: &Value) -> Option<(u64, u64, String)> {
    let tombstone = page["tombstone"].as_object()?;
    let number = |field: &str| tombstone[field].as_u64().expect("a number");
    let (from, to) = (number("gap_from"), number("gap_to"));
    assert!(number("missed_estimate") <= (to + 1).saturating_sub(from));
    assert_eq!(tombstone["earliest_seq"], page["earliest_seq"]);
    assert_eq!(tombstone["head_seq"], page["head_seq"]);
    Some((from, to, tombstone["reason"].as_str().expect("a reason").to_owned()))
}

fn gap_of(from: u64, to: u64, reason: &str) -> Option<(u64, u64, String)> {
    Some((from, to, reason.to_owned()))
}

async fn read(api: &Api, topic: &str, from_seq: u64) -> Value {
    api.diff(topic, json!({ "from_seq": from_seq, "limit": 1000 })).await.expect(200)
}

/// `earliest_seq`, `head_seq`, `count`.
async fn counts(api: &Api, topic: &str) -> (u64, u64, u64) {
    let state = api.topic(topic).await.expect(200);
    let number = |field: &str| state[field].as_u64().expect("a number");
    assert_eq!(number("count") == 0, number("bytes") == 0);
    (number("earliest_seq"), number("head_seq"), number("count"))
}

async fn pass_ms(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// C-RET-01, C-RET-02, C-TOPIC-08, C-GAP-06
#[tokio::test]
async fn what_is_older_than_the_ttl_is_gone_for_every_strong_read_at_every_member() {
    let api = api().await;
    put(&api, "ret-ttl", json!({ "ttl_ms": 1500 })).await;
    append(&api, "ret-ttl", 3).await;
    let written = Instant::now();
    let page = read(&api, "ret-ttl", 0).await;
    // A machine that is too slow to look in time proves nothing.
    if written.elapsed() < Duration::from_millis(1000) {
        assert_eq!((seqs(&page), gap(&page)), (vec![1, 2, 3], None));
    }
    pass_ms(1600).await;
    for member in 0..MEMBERS {
        let page = read(&api.at(member), "ret-ttl", 0).await;
        assert_eq!((seqs(&page), gap(&page)), (vec![], gap_of(1, 3, "ttl")), "member {member}");
        assert_eq!((&page["next_from_seq"], &page["caught_up"]), (&json!(3), &json!(true)));
        assert_eq!(counts(&api.at(member), "ret-ttl").await, (4, 3, 0));
    }
    append(&api, "ret-ttl", 1).await;
    let page = read(&api, "ret-ttl", 1).await;
    assert_eq!((seqs(&page), gap(&page)), (vec![4], gap_of(2, 3, "ttl")));
}

/// C-RET-02: also what only the state and the list of topics tell, each asked first of one member.
#[tokio::test]
async fn counts_are_exact_the_moment_something_expires() {
    let api = api().await;
    for round in 0..4 {
        let topic = format!("ret-exact-{round}");
        put(&api, &topic, json!({ "ttl_ms": 300 })).await;
        append(&api, &topic, 5).await;
        pass_ms(320).await;
        match round {
            0 | 1 => assert_eq!(counts(&api.at(round), &topic).await, (6, 5, 0)),
            2 => {
                let list = api.get(&format!("/v0/topics?prefix={topic}")).await.expect(200);
                assert_eq!(list["topics"][0]["count"], 0);
                assert_eq!(list["topics"][0]["earliest_seq"], 6);
            }
            // C-TOPIC-11
            _ => {
                let deleted = api.delete(&format!("/v0/topics/{topic}?if_empty=true")).await.expect(200);
                assert_eq!(deleted["deleted"], true);
            }
        }
    }
}

/// C-RET-03, C-GAP-13
#[tokio::test]
async fn an_eventual_read_loses_it_within_a_second_of_its_time() {
    let api = api().await;
    put(&api, "ret-eventual", json!({ "ttl_ms": 700 })).await;
    append(&api, "ret-eventual", 4).await;
    let due = Instant::now() + Duration::from_millis(700);
    for member in 0..MEMBERS {
        loop {
            let body = json!({ "from_seq": 1, "consistency": "eventual" });
            let page = api.at(member).diff("ret-eventual", body).await.expect(200);
            if gap(&page) == gap_of(2, 4, "ttl") {
                break;
            }
            assert!(Instant::now() < due + Duration::from_secs(1), "member {member}: {page}");
            pass_ms(20).await;
        }
    }
}

/// C-RET-05, C-WRITE-08, C-ERR-03, C-GAP-02, C-GAP-03, C-GAP-05, C-GAP-11
#[tokio::test]
async fn above_its_cap_a_topic_gives_up_its_oldest_records_and_says_so() {
    let api = api().await;
    put(&api, "ret-cap", json!({ "cap_records": 10 })).await;
    for count in [4, 4, 4] {
        append(&api, "ret-cap", count).await;
    }
    assert_eq!(counts(&api, "ret-cap").await, (3, 12, 10));
    for cursor in 0..=12u64 {
        let page = read(&api, "ret-cap", cursor).await;
        let expected = if cursor + 1 < 3 { gap_of(cursor + 1, 2, "cap") } else { None };
        assert_eq!(gap(&page), expected, "after {cursor}");
        assert_eq!(seqs(&page), (3.max(cursor + 1)..=12).collect::<Vec<_>>(), "after {cursor}");
    }
    // A batch that is larger than the topic may be loses its own oldest.
    let last = append(&api, "ret-cap", 25).await;
    assert_eq!((&last["first_seq"], &last["last_seq"]), (&json!(13), &json!(37)));
    assert_eq!(counts(&api, "ret-cap").await, (28, 37, 10));
    let page = read(&api, "ret-cap", 12).await;
    assert_eq!((seqs(&page), gap(&page)), ((28..=37).collect(), gap_of(13, 27, "cap")));
}

/// C-RET-04, C-RET-08
#[tokio::test]
async fn of_two_caps_the_one_that_is_hit_first_counts() {
    let api = api().await;
    // One digit of data, and no more than 64 bytes for the rest.
    append(&api, "ret-size", 1).await;
    let bytes = api.topic("ret-size").await.expect(200)["bytes"].as_u64().expect("bytes");
    assert!((1..=1 + MOST_FRAMING_BYTES).contains(&bytes), "{bytes}");
    let record = json!({ "data": "x".repeat(998), "meta": { "a": 1 } });
    api.post("/v0/topics/ret-size", json!({ "records": [record] })).await.expect(200);
    let both = api.topic("ret-size").await.expect(200)["bytes"].as_u64().expect("bytes");
    assert_eq!(both - bytes, 1000 + 7 + (bytes - 1), "the framing of all records is the same");

    put(&api, "ret-two", json!({ "cap_records": 100, "cap_bytes": 5 * bytes })).await;
    append(&api, "ret-two", 8).await;
    assert_eq!(counts(&api, "ret-two").await, (4, 8, 5));
    put(&api, "ret-two", json!({ "cap_records": 2, "cap_bytes": 5 * bytes })).await;
    append(&api, "ret-two", 1).await;
    assert_eq!(counts(&api, "ret-two").await, (8, 9, 2));
}

/// C-CFG-07
#[tokio::test]
async fn a_smaller_cap_or_ttl_acts_at_once() {
    let api = api().await;
    append(&api, "ret-smaller", 50).await;
    put(&api, "ret-smaller", json!({ "cap_records": 20 })).await;
    assert_eq!(counts(&api, "ret-smaller").await, (31, 50, 20));
    assert_eq!(gap(&read(&api, "ret-smaller", 0).await), gap_of(1, 30, "cap"));
    // A larger one brings nothing back.
    put(&api, "ret-smaller", json!({})).await;
    assert_eq!(counts(&api, "ret-smaller").await, (31, 50, 20));
    pass_ms(60).await;
    append(&api, "ret-smaller", 1).await;
    put(&api, "ret-smaller", json!({ "ttl_ms": 50 })).await;
    // At some time between the two writes, so the last record may be gone too.
    let page = read(&api, "ret-smaller", 30).await;
    let (from, to, reason) = gap(&page).expect("a tombstone");
    assert_eq!((from, reason.as_str()), (31, "ttl"));
    assert!(to >= 50, "{page}");
}

/// C-GAP-05, and the reason `mixed` of section 10.2
#[tokio::test]
async fn a_gap_says_whether_caps_or_age_or_both_made_it() {
    let api = api().await;
    put(&api, "ret-mixed", json!({ "cap_records": 5 })).await;
    append(&api, "ret-mixed", 8).await;
    put(&api, "ret-mixed", json!({ "cap_records": 5, "ttl_ms": 200 })).await;
    pass_ms(250).await;
    append(&api, "ret-mixed", 1).await;
    // 1..3 went by the cap and 4..8 by age.
    for (cursor, reason) in [(0, "mixed"), (2, "mixed"), (3, "ttl"), (7, "ttl")] {
        let (from, to, told) = gap(&read(&api, "ret-mixed", cursor).await).expect("a tombstone");
        // The last record may be gone too by now.
        assert_eq!((from, told.as_str()), (cursor + 1, reason));
        assert!(to >= 8);
    }
}

/// C-WRITE-09, C-RET-06
#[tokio::test]
async fn a_full_topic_that_rejects_takes_nothing_until_something_is_gone() {
    let api = api().await;
    put(&api, "ret-reject", json!({ "cap_records": 4, "discard": "reject", "ttl_ms": 700 })).await;
    append(&api, "ret-reject", 3).await;
    let full = api.write("ret-reject", 2).await.refused(422, "topic_full");
    let expected = json!({
        "topic": "ret-reject", "cap_records": 4, "cap_bytes": 0, "head_seq": 3, "earliest_seq": 1
    });
    assert_eq!(full, expected);
    append(&api, "ret-reject", 1).await;
    assert_eq!(counts(&api, "ret-reject").await, (1, 4, 4));
    api.write("ret-reject", 1).await.refused(422, "topic_full");
    pass_ms(750).await;
    let appended = append(&api, "ret-reject", 4).await;
    assert_eq!(appended["first_seq"], 5, "no seq is used by what is refused");
}

/// C-WRITE-10
#[tokio::test]
async fn a_write_that_is_larger_than_a_rejecting_topic_may_be_is_too_large() {
    let api = api().await;
    for config in
        [json!({ "cap_records": 3, "discard": "reject" }), json!({ "cap_bytes": 150, "discard": "reject" })]
    {
        let topic = format!("ret-large-{}", config["cap_bytes"]);
        let records: Vec<Value> = (0..5).map(|number| json!({ "data": number })).collect();
        // C-WRITE-05
        let body = json!({ "records": records, "config": config });
        api.post(&format!("/v0/topics/{topic}"), body).await.refused(400, "record_too_large");
        api.topic(&topic).await.refused(404, "topic_not_found");
        put(&api, &topic, config).await;
        append(&api, &topic, 2).await;
        api.write(&topic, 5).await.refused(400, "record_too_large");
        assert_eq!(counts(&api, &topic).await, (1, 2, 2));
    }
}

/// C-WRITE-15, C-IDEM-05, C-IDEM-08
#[tokio::test]
async fn caps_are_checked_after_keys_and_heads() {
    let api = api().await;
    put(&api, "ret-order", json!({ "cap_records": 1, "discard": "reject" })).await;
    let write = async |key: &str, expect_head_seq: u64| {
        let body = json!({
            "records": [{ "data": 1 }], "idempotency_key": key, "expect_head_seq": expect_head_seq
        });
        api.post("/v0/topics/ret-order", body).await
    };
    write("a", 0).await.expect(200);
    assert_eq!(write("a", 0).await.expect(200)["deduped"], true);
    write("b", 0).await.refused(409, "head_mismatch");
    write("b", 1).await.refused(422, "topic_full");
    put(&api, "ret-order", json!({ "cap_records": 2, "discard": "reject" })).await;
    assert_eq!(write("b", 1).await.expect(200)["deduped"], false);
}

/// C-DIFF-09
#[tokio::test]
async fn a_long_poll_tells_of_a_gap_that_opens_while_it_waits() {
    let api = api().await;
    put(&api, "ret-wait", json!({ "cap_records": 2 })).await;
    append(&api, "ret-wait", 1).await;
    for member in 0..MEMBERS {
        let head = counts(&api, "ret-wait").await.1;
        let waiting = api.at(member);
        let body = json!({ "from_seq": head, "wait_ms": 20_000 });
        let waiting = tokio::spawn(async move { waiting.diff("ret-wait", body).await.expect(200) });
        pass_ms(100).await;
        append(&api, "ret-wait", 5).await;
        let page = waiting.await.expect("no panic");
        assert_eq!(gap(&page), gap_of(head + 1, head + 3, "cap"), "member {member}");
        assert_eq!(seqs(&page), [head + 4, head + 5]);
    }
}

/// C-DIFF-15
#[tokio::test]
async fn from_ts_starts_at_the_first_live_record_that_is_not_older() {
    let api = api().await;
    for _ in 0..6 {
        append(&api, "ret-ts", 2).await;
        pass_ms(15).await;
    }
    let all = read(&api, "ret-ts", 0).await;
    let times: Vec<u64> = all["records"]
        .as_array()
        .expect("records")
        .iter()
        .map(|it| it["$ts"].as_u64().expect("a time"))
        .collect();
    for from_ts in times.iter().flat_map(|ts| [ts - 1, *ts, ts + 1]).chain([0, times[11] + 100_000]) {
        let page = api.diff("ret-ts", json!({ "from_ts": from_ts })).await.expect(200);
        let expected: Vec<u64> =
            (1..).zip(&times).filter(|(_, ts)| **ts >= from_ts).map(|(seq, _)| seq).collect();
        assert_eq!((seqs(&page), gap(&page)), (expected, None), "from {from_ts} in {times:?}");
        assert_eq!((&page["next_from_seq"], &page["caught_up"]), (&json!(12), &json!(true)));
    }
    api.diff("ret-ts", json!({ "from_ts": 1, "from_seq": 1 })).await.refused(400, "invalid_request");
    api.diff("ret-ts", json!({ "from_ts": 1, "from_seq": 0 })).await.expect(200);
}

/// C-DIFF-16
#[tokio::test]
async fn from_ts_tells_of_records_that_went_although_they_are_young_enough() {
    let api = api().await;
    append(&api, "ret-ts-gone", 2).await;
    pass_ms(20).await;
    append(&api, "ret-ts-gone", 2).await;
    pass_ms(20).await;
    append(&api, "ret-ts-gone", 2).await;
    let all = read(&api, "ret-ts-gone", 0).await;
    let ts = |at: usize| all["records"][at]["$ts"].as_u64().expect("a time");
    put(&api, "ret-ts-gone", json!({ "cap_records": 3 })).await;
    for (from_ts, expected) in [
        (0, gap_of(1, 3, "cap")),
        (ts(2), gap_of(1, 3, "cap")),
        (ts(2) + 1, None),
        (ts(5), None),
        (ts(5) + 1, None),
    ] {
        let page = api.diff("ret-ts-gone", json!({ "from_ts": from_ts })).await.expect(200);
        assert_eq!(gap(&page), expected, "from {from_ts}");
        let first = if from_ts <= ts(2) {
            4
        } else if from_ts <= ts(5) {
            5
        } else {
            7
        };
        assert_eq!(seqs(&page), (first..=6).collect::<Vec<_>>(), "from {from_ts}");
    }
}

/// C-EPOCH-01 to C-EPOCH-05, C-EPOCH-07, C-GAP-10, C-TOPIC-12
#[tokio::test]
async fn a_cursor_of_an_earlier_life_of_the_name_is_told_so() {
    let api = api().await;
    append(&api, "ret-again", 9).await;
    let first = read(&api, "ret-again", 0).await["epoch"].as_u64().expect("an epoch");
    api.delete("/v0/topics/ret-again").await.expect(200);
    put(&api, "ret-again", json!({ "cap_records": 2 })).await;
    append(&api, "ret-again", 4).await;
    let second = read(&api, "ret-again", 4).await["epoch"].as_u64().expect("an epoch");
    assert!(second > first);
    assert_eq!(api.topic("ret-again").await.expect(200)["epoch"], second);
    let diff = async |member: usize, body: Value| api.at(member).diff("ret-again", body).await;

    for member in 0..MEMBERS {
        // The earlier life: whatever the cursor and the consistency.
        for (cursor, consistency) in [(0, "strong"), (3, "strong"), (9, "strong"), (4, "eventual")] {
            let body = json!({ "from_seq": cursor, "epoch": first, "consistency": consistency });
            let page = diff(member, body).await.expect(200);
            assert_eq!(gap(&page), gap_of(1, 4, "recreated"), "{cursor} {consistency}");
            assert_eq!(seqs(&page), [3, 4]);
        }
        // Above the head, with and without the right epoch.
        for body in [json!({ "from_seq": 9 }), json!({ "from_seq": 5, "epoch": second })] {
            assert_eq!(gap(&diff(member, body).await.expect(200)), gap_of(1, 4, "recreated"));
        }
        // A life to come.
        let to_come = json!({ "from_seq": 1, "epoch": second + 1_000_000 });
        diff(member, to_come).await.refused(400, "invalid_request");
        for body in [
            json!({ "from_seq": 9, "consistency": "eventual" }),
            json!({ "from_seq": 9, "epoch": second + 1_000_000, "consistency": "eventual" }),
        ] {
            let page = diff(member, body).await.expect(200);
            assert_eq!((seqs(&page), gap(&page)), (vec![], None));
            assert_eq!(
                (&page["next_from_seq"], &page["caught_up"], &page["lag"]),
                (&json!(9), &json!(false), &json!(0))
            );
        }
        // The right one: an ordinary gap.
        let page = diff(member, json!({ "from_seq": 1, "epoch": second })).await.expect(200);
        assert_eq!(gap(&page), gap_of(2, 2, "cap"));
    }
    api.delete("/v0/topics/ret-again").await.expect(200);
    put(&api, "ret-again", json!({})).await;
    // Of an empty topic the range is empty.
    assert_eq!(gap(&read(&api, "ret-again", 4).await), gap_of(1, 0, "recreated"));
}
