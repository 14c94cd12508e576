//! Section 14 as readers of a topic see it. What filters mean in detail is tested where they are evaluated.

use serde_json::{Value, json};

use crate::shared::{Api, Got, api};

async fn meters(api: &Api, topic: &str) {
    let records: Vec<Value> = (1..=30)
        .map(|number| {
            json!({
                "tag": format!("m:{}", number % 3), "node": if number % 2 == 0 { "even" } else { "odd" },
                "data": { "n": number, "id": 9_007_199_254_740_990u64 + number, "list": [number, "x"] },
                "meta": { "fw": number.to_string() }
            })
        })
        .collect();
    api.post(&format!("/v0/topics/{topic}"), json!({ "records": records })).await.expect(201);
}

fn seqs(page: &Value) -> Vec<u64> {
    let records = page["records"].as_array().expect("records");
    records.iter().map(|record| record["$seq"].as_u64().expect("a seq")).collect()
}

/// C-DIFF-04, C-DIFF-08, C-FILT-04, C-FILT-05
#[tokio::test]
async fn a_diff_delivers_what_passes_and_moves_past_the_rest() {
    let api = api().await;
    meters(&api, "filt-diff").await;
    for (filter, expected) in [
        (json!("m:1"), (1..=30).filter(|n| n % 3 == 1).collect::<Vec<u64>>()),
        (json!("m:*"), (1..=30).collect()),
        (json!(["Not", "m:*"]), vec![]),
        (json!(["data.n", "Lte", 2.5]), vec![1, 2]),
        (json!(["data./list/0", "In", [7, 9.0, "x"]]), vec![7, 9]),
        (json!(["data.id", "Eq", 9_007_199_254_740_993u64]), vec![3]),
        (json!(["meta.fw", "Eq", "12"]), vec![12]),
        (json!(["And", ["m:0", ["node", "Eq", "even"], ["data.n", "Gt", 20]]]), vec![24, 30]),
        (json!(["Or", [["data.n", "Eq", 4], ["Not", ["data.n", "Exists", true]]]]), vec![4]),
    ] {
        let page = api.diff("filt-diff", json!({ "filter": filter })).await.expect(200);
        assert_eq!(seqs(&page), expected, "{filter}");
        assert_eq!((&page["next_from_seq"], &page["caught_up"]), (&json!(30), &json!(true)), "{filter}");
        assert_eq!(page["tombstone"], Value::Null);
        assert_eq!(page["performance"]["records_scanned"], 30, "{filter}");
    }
    // Together with `node`, and in pages.
    let mut cursor = 0;
    let mut delivered = Vec::new();
    while cursor < 30 {
        let body = json!({ "from_seq": cursor, "limit": 2, "node": "odd", "filter": ["data.n", "Gt", 9] });
        let page = api.diff("filt-diff", body).await.expect(200);
        assert!(seqs(&page).len() <= 2);
        delivered.extend(seqs(&page));
        let next = page["next_from_seq"].as_u64().expect("a seq");
        // C-DIFF-05
        assert!(next > cursor);
        cursor = next;
    }
    assert_eq!(delivered, (10..=30).step_by(2).collect::<Vec<u64>>());
}

fn raw_seqs(page: Got) -> Vec<u64> {
    assert_eq!(page.status, 200);
    let text = String::from_utf8(page.bytes).expect("text");
    let after = text.split("\"$seq\":").skip(1);
    after.map(|rest| rest.split(',').next().and_then(|seq| seq.parse().ok()).expect("a seq")).collect()
}

/// C-FILT-03: whatever stands in a record, a filter neither fails the read nor hides it by accident.
#[tokio::test]
async fn a_filter_is_total() {
    let api = api().await;
    let records = r#"{"records":[{"data":null},{"data":[]},{"data":"n"},{"data":1e999999},{"data":{"n":{}}},
        {"data":{"n":"\ud800"}},{"data":{"n":123456789012345678901234567890}},{"data":{"n":1,"n":2}}]}"#;
    api.raw("POST", "/v0/topics/filt-total", records).await.expect(201);
    for filter in
        [r#"["data.n","Gt",1]"#, r#"["data.n","Eq","x"]"#, r#"["data.n.0.x","Exists",true]"#, r#""x*""#]
    {
        let page = |filter: String| {
            let body = format!("{{\"filter\":{filter}}}");
            let api = &api;
            // Not everything that was written can be parsed here.
            async move { raw_seqs(api.raw("POST", "/v0/topics/filt-total/diff", body).await) }
        };
        let (passing, others) = (page(filter.to_owned()).await, page(format!("[\"Not\",{filter}]")).await);
        let mut all = [passing, others].concat();
        all.sort_unstable();
        assert_eq!(all, (1..=8).collect::<Vec<_>>(), "{filter}");
    }
}

/// C-FILT-01, C-FILT-06
#[tokio::test]
async fn a_malformed_filter_is_refused() {
    let api = api().await;
    meters(&api, "filt-bad").await;
    let leaves = |count: usize| json!(["Or", vec!["x"; count]]);
    let nested = |depth: usize| (1..depth).fold(json!("x"), |inner, _| json!(["Not", inner]));
    for bad in [
        json!(1),
        json!([]),
        json!(["tag", "eq", "x"]),
        json!(["tag", "Glob", "x"]),
        json!(["And", []]),
        json!(["seq", "Eq", 1]),
        leaves(65),
        nested(9),
    ] {
        api.diff("filt-bad", json!({ "filter": bad })).await.refused(400, "invalid_request");
    }
    for good in [leaves(64), nested(8)] {
        api.diff("filt-bad", json!({ "filter": good })).await.expect(200);
    }
}

/// C-DIFF-09
#[tokio::test]
async fn a_long_poll_waits_for_a_record_that_passes_or_tells_how_far_it_came() {
    let api = api().await;
    meters(&api, "filt-poll").await;
    let poll = tokio::spawn({
        let api = api.clone();
        async move {
            let mut cursor = 30;
            loop {
                let body = json!({ "from_seq": cursor, "wait_ms": 20_000, "filter": "wanted" });
                let page = api.diff("filt-poll", body).await.expect(200);
                if !seqs(&page).is_empty() {
                    return page;
                }
                cursor = page["next_from_seq"].as_u64().expect("a seq");
            }
        }
    });
    for tag in ["other", "other", "wanted"] {
        let record = json!({ "records": [{ "data": 1, "tag": tag }] });
        api.post("/v0/topics/filt-poll", record).await.expect(200);
    }
    let page = poll.await.expect("the poll ends");
    assert_eq!(seqs(&page), [33]);
}
