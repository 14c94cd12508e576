//! Sections 1.3 and 1.4: what a record looks like, and that it comes back as it was written.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::json;

use crate::shared::{Api, api};

/// C-REC-01, C-REC-05
#[tokio::test]
async fn absent_parts_are_left_out_and_data_never_is() {
    let api = api().await;
    let records = json!([{ "data": null }, { "data": 1, "tag": "t", "node": "n", "meta": { "a": null } }]);
    api.post("/v0/topics/rec-absent", json!({ "records": records })).await.expect(201);
    let page = api.diff("rec-absent", json!({ "include_tags": true })).await.expect(200);
    let keys = |at: usize| -> Vec<String> {
        page["records"][at].as_object().expect("an object").keys().cloned().collect()
    };
    assert_eq!(keys(0), ["$seq", "$ts", "data"]);
    assert_eq!(keys(1), ["$node", "$seq", "$tag", "$ts", "data", "meta"]);
}

/// Writes these texts as `data` and as a value in `meta`, and gives the whole page as it came.
async fn written_back(api: &Api, topic: &str, texts: &[String]) -> String {
    let records: Vec<String> =
        texts.iter().map(|text| format!(r#"{{"data":{text},"meta":{{"m":{text}}}}}"#)).collect();
    let body = format!(r#"{{"records":[{}]}}"#, records.join(","));
    let write = api.raw("POST", &format!("/v0/topics/{topic}"), body).await;
    assert!(write.status < 300, "{}", String::from_utf8_lossy(&write.bytes));
    let from_seq = write.body["first_seq"].as_u64().expect("a seq") - 1;
    let page =
        api.diff(topic, json!({ "from_seq": from_seq, "limit": 1000, "max_batch_bytes": 8 << 20 })).await;
    String::from_utf8(page.bytes).expect("is UTF-8")
}

/// C-REC-02, C-REC-03
#[tokio::test]
async fn data_and_meta_come_back_as_they_were_written() {
    let api = api().await;
    let texts: Vec<String> = [
        "123456789012345678901234567890",
        "-0",
        "-0.0",
        "1.250",
        "1e5",
        "1E+05",
        "0.10000000000000000000000000000001",
        "1e999999",
        r#"{"b":1,"a":2,"b":3}"#,
        r#"{"":{"":[]}}"#,
        r#""\u00e9 é \/ \" \\ \b\f\n\r\t \u0000""#,
        r#""\ud83d\ude00 😀""#,
        r#""\ud83d alone \ude00""#,
        r#""  kept  ""#,
        "[[],[[]],{}]",
        "true",
    ]
    .map(str::to_owned)
    .to_vec();
    let page = written_back(&api, "rec-literal", &texts).await;
    for text in &texts {
        let expected = format!(r#""data":{text},"meta":{{"m":{text}}}}}"#);
        assert!(page.contains(&expected), "{expected} is not in {page}");
    }
    let spaced = " { \"a\" : [ 1 ,\t2 ] ,\r\n \"b c\" : \" x \" } ".to_owned();
    let page = written_back(&api, "rec-literal", &[spaced]).await;
    assert!(page.contains(r#""data":{"a":[1,2],"b c":" x "}"#), "{page}");
}

/// JSON texts without insignificant white space, of every kind that the grammar knows.
fn json_text() -> impl Strategy<Value = String> {
    let number = "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?";
    let string = proptest::collection::vec(
        prop_oneof![
            4 => "[ -!#-\\[\\]-~]{1,6}",
            1 => "[^\\x00-\\x1f\"\\\\]{1,3}",
            1 => "\\\\[\"\\\\/bfnrt]",
            1 => "\\\\u[0-9a-fA-F]{4}",
        ],
        0..5,
    )
    .prop_map(|parts| format!("\"{}\"", parts.concat()));
    let leaf = prop_oneof![3 => number, 3 => string.clone(), 1 => "(true|false|null)"];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        let array =
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|it| format!("[{}]", it.join(",")));
        let field = (string.clone(), inner).prop_map(|(key, value)| format!("{key}:{value}"));
        let object = proptest::collection::vec(field, 0..4).prop_map(|it| format!("{{{}}}", it.join(",")));
        prop_oneof![array, object]
    })
}

/// C-REC-02, with texts that nobody thought of.
#[tokio::test]
async fn any_json_comes_back_as_it_was_written() {
    let api = api().await;
    let mut runner = TestRunner::deterministic();
    for round in 0..20 {
        let texts: Vec<String> =
            (0..100).map(|_| json_text().new_tree(&mut runner).expect("a text").current()).collect();
        let page = written_back(&api, "rec-any", &texts).await;
        for text in &texts {
            let expected = format!(r#""data":{text},"meta":{{"m":{text}}}}}"#);
            assert!(page.contains(&expected), "round {round}: {expected} is not in the page");
        }
    }
}

/// C-REC-06, C-REC-08, C-REC-10, C-WRITE-16
#[tokio::test]
async fn seqs_have_no_gap_whoever_is_asked() {
    let api = api().await;
    let mut expected = 1;
    for count in [1usize, 3, 1, 7, 2, 5] {
        let write = api.write("rec-seqs", count).await;
        let seqs: Vec<u64> = (expected..expected + count as u64).collect();
        assert_eq!(write.body["seqs"], json!(seqs), "{}", write.what);
        expected += count as u64;
    }
    let page = api.diff("rec-seqs", json!({})).await.expect(200);
    let records = page["records"].as_array().expect("an array");
    let seqs: Vec<u64> = records.iter().filter_map(|it| it["$seq"].as_u64()).collect();
    assert_eq!(seqs, (1..expected).collect::<Vec<u64>>());
    let times: Vec<u64> = records.iter().filter_map(|it| it["$ts"].as_u64()).collect();
    // C-REC-07: they never decrease.
    assert!(times.is_sorted(), "{times:?}");
    assert!(times[1] == times[2] && times[2] == times[3], "one request, one time: {times:?}");
}

/// C-REC-04, C-REC-09
#[tokio::test]
async fn a_stored_record_stays_as_it_is() {
    let api = api().await;
    api.write("rec-same", 5).await.expect(201);
    let before = api.diff("rec-same", json!({})).await.expect(200);
    api.put("/v0/topics/rec-same", json!({ "durability": "fsync", "priority": 3 })).await.expect(200);
    api.write("rec-same", 5).await.expect(200);
    let after = api.diff("rec-same", json!({ "limit": 5 })).await.expect(200);
    assert_eq!(after["records"], before["records"]);
}

/// C-REC-11, C-REC-12, C-REC-13
#[tokio::test]
async fn one_bad_record_rejects_the_batch() {
    let api = api().await;
    for bad in [
        json!({ "data": 1, "meta": [] }),
        json!({ "data": 1, "meta": "x" }),
        json!({ "meta": {} }),
        json!({ "data": 1, "tag": 7 }),
    ] {
        let body = json!({ "records": [{ "data": 1 }, bad, { "data": 2 }] });
        api.post("/v0/topics/rec-bad", body).await.refused(400, "invalid_request");
    }
    api.topic("rec-bad").await.refused(404, "topic_not_found");
    let any_meta = json!({ "records": [{ "data": 1, "meta": { "a": [1, { "b": null }], "c": 1.5 } }] });
    api.post("/v0/topics/rec-bad", any_meta).await.expect(201);
}
