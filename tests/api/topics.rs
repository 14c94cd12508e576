//! Section 7: the life of a topic.

use serde_json::json;

use crate::conventions::unix_ms;
use crate::shared::api;

/// C-TOPIC-01
#[tokio::test]
async fn a_put_creates_once() {
    let api = api().await;
    let config = json!({ "cap_records": 7 });
    let first = api.put("/v0/topics/topic-put", config.clone()).await.expect(201);
    assert_eq!((&first["topic"], &first["created"]), (&json!("topic-put"), &json!(true)));
    let before = api.topic("topic-put").await.expect(200);
    let again = api.put("/v0/topics/topic-put", config).await.expect(200);
    assert_eq!((&again["created"], &again["config"]), (&json!(false), &first["config"]));
    assert_eq!(api.topic("topic-put").await.expect(200)["epoch"], before["epoch"]);
}

/// C-TOPIC-02
#[tokio::test]
async fn of_concurrent_puts_one_creates() {
    let api = api().await;
    for round in 0..10 {
        let path = format!("/v0/topics/topic-race{round}");
        let puts = (0..6).map(|_| {
            let (api, path) = (api.clone(), path.clone());
            async move { api.put(&path, json!({})).await.status }
        });
        let mut statuses = futures_util::future::join_all(puts).await;
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 200, 200, 200, 200, 201]);
    }
}

/// C-TOPIC-04, C-TOPIC-05
#[tokio::test]
async fn a_read_of_an_unknown_topic_makes_none() {
    let api = api().await;
    for _ in 0..2 {
        api.get("/v0/topics/topic-none").await.refused(404, "topic_not_found");
        api.diff("topic-none", json!({})).await.refused(404, "topic_not_found");
    }
}

/// C-TOPIC-06, C-TOPIC-07: recency is kept per member, so one member is asked.
#[tokio::test]
async fn a_touch_moves_the_time_of_the_last_read() {
    let api = api().await.at(1);
    api.put("/v0/topics/topic-touch", json!({})).await.expect(201);
    let last_read = async |query: &str| {
        let path = format!("/v0/topics/topic-touch?{query}");
        api.get(&path).await.expect(200)["last_read_ts"].clone()
    };
    assert_eq!(last_read("touch=false").await, json!(null));
    let before_ms = unix_ms();
    let touched = last_read("").await.as_u64().expect("a time");
    assert!(touched + 1 >= before_ms && touched <= unix_ms() + 1);
    assert_eq!(last_read("touch=false").await, touched);
    let next_ms = async || {
        while unix_ms() <= touched {
            tokio::task::yield_now().await
        }
    };
    next_ms().await;
    api.get("/v0/topics?prefix=topic-touch").await.expect(200);
    assert_eq!(last_read("touch=false").await, touched, "a list does not touch unless asked");
    api.get("/v0/topics?prefix=topic-touch&touch=true").await.expect(200);
    assert!(last_read("touch=false").await.as_u64() > Some(touched));
}

/// Sections 7.2 and 7.3
#[tokio::test]
async fn a_state_and_a_list_show_what_there_is() {
    let api = api().await;
    api.put("/v0/topics/topic-state", json!({ "priority": 20 })).await.expect(201);
    let empty = api.topic("topic-state").await.expect(200);
    for (field, value) in [
        ("topic", json!("topic-state")),
        ("type", json!("log")),
        ("head_seq", json!(0)),
        ("earliest_seq", json!(1)),
        ("next_seq", json!(1)),
        ("count", json!(0)),
        ("bytes", json!(0)),
        ("effective_priority", json!(20)),
        ("last_write_ts", json!(null)),
    ] {
        assert_eq!(empty[field], value, "{field}");
    }
    assert!(empty.get("queue").is_none(), "only on queues");
    api.write("topic-state", 3).await.expect(200);
    let state = api.topic("topic-state").await.expect(200);
    assert_eq!((&state["head_seq"], &state["next_seq"], &state["count"]), (&json!(3), &json!(4), &json!(3)));
    assert!(state["bytes"].as_u64() > Some(0) && state["last_write_ts"].is_u64(), "{state}");
    let list = api.get("/v0/topics?prefix=topic-state").await.expect(200);
    for field in ["topic", "head_seq", "earliest_seq", "count", "bytes", "effective_priority"] {
        assert_eq!(list["topics"][0][field], state[field], "{field}");
    }
    api.put("/v0/topics/topic-queue", json!({ "type": "queue" })).await.expect(201);
    let queue = api.topic("topic-queue").await.expect(200);
    assert_eq!(queue["queue"], json!({ "ready": 0, "in_flight": 0, "dead_lettered": 0 }));
}

/// C-TOPIC-09, C-TOPIC-10, C-TOPIC-11, C-IDEM-09
#[tokio::test]
async fn a_delete_takes_all_and_can_be_repeated() {
    let api = api().await;
    let keyed = json!({ "records": [{ "data": 1 }], "idempotency_key": "k" });
    api.post("/v0/topics/topic-delete", keyed.clone()).await.expect(201);
    let path = "/v0/topics/topic-delete";
    let detail = api.delete(&format!("{path}?if_empty=true")).await.refused(409, "topic_not_empty");
    assert_eq!(detail, json!({ "topic": "topic-delete", "count": 1 }));
    for deleted in [true, false] {
        let answer = api.delete(path).await.expect(200);
        assert_eq!((&answer["topic"], &answer["deleted"]), (&json!("topic-delete"), &json!(deleted)));
        assert_eq!((&answer["routers_removed"], &answer["groups_removed"]), (&json!([]), &json!([])));
    }
    let again = api.post(path, keyed).await.expect(201);
    assert_eq!((&again["deduped"], &again["first_seq"]), (&json!(false), &json!(1)), "its keys went with it");
    api.put("/v0/topics/topic-empty", json!({})).await.expect(201);
    assert_eq!(api.delete("/v0/topics/topic-empty?if_empty=true").await.expect(200)["deleted"], true);
}

/// C-TOPIC-12, C-EPOCH-01
#[tokio::test]
async fn a_name_lives_again_as_another_instance() {
    let api = api().await;
    let mut epoch = 0;
    for _ in 0..3 {
        api.put("/v0/topics/topic-again", json!({ "cap_records": 5 })).await.expect(201);
        api.delete("/v0/topics/topic-again").await.expect(200);
        assert_eq!(api.write("topic-again", 1).await.expect(201)["first_seq"], 1);
        let state = api.topic("topic-again").await.expect(200);
        assert!(state["epoch"].as_u64() > Some(epoch));
        assert_eq!(state["config"]["cap_records"], 0);
        epoch = state["epoch"].as_u64().expect("a number");
        api.delete("/v0/topics/topic-again").await.expect(200);
    }
}

/// C-CONS-01, C-CONS-02
#[tokio::test]
async fn a_strong_read_at_any_member_sees_what_was_acked_at_any_other() {
    let api = api().await;
    for round in 1..=30u64 {
        let (writer, reader) = (round as usize, round as usize + 1 + round as usize % 2);
        api.at(writer).write("topic-strong", 1).await;
        let state = api.at(reader).topic("topic-strong").await.expect(200);
        assert_eq!(state["head_seq"], round);
    }
    for (path, status) in [
        ("/v0/topics/topic-strong?consistency=strong", 200),
        ("/v0/topics/topic-strong?consistency=eventual", 200),
        ("/v0/topics?consistency=eventual", 200),
        ("/v0/cluster?consistency=eventual", 200),
        ("/v0/topics/topic-strong?consistency=weak", 400),
        ("/v0/topics?consistency=", 400),
        ("/v0/cluster?consistency=x", 400),
    ] {
        assert_eq!(api.get(path).await.status, status, "{path}");
    }
    api.diff("topic-strong", json!({ "consistency": "eventual" })).await.expect(200);
    api.diff("topic-strong", json!({ "consistency": 1 })).await.refused(400, "invalid_request");
}

/// C-CONS-05
#[tokio::test]
async fn eventual_reads_of_one_member_never_go_back() {
    let api = api().await;
    api.write("topic-eventual", 1).await.expect(201);
    let member = api.at(1);
    let writer = {
        let api = api.at(2);
        tokio::spawn(async move {
            for _ in 0..50 {
                api.write("topic-eventual", 1).await.expect(200);
            }
        })
    };
    member.topic("topic-eventual").await.expect(200);
    let mut last = 0;
    while !writer.is_finished() || last < 51 {
        let state = member.get("/v0/topics/topic-eventual?consistency=eventual").await.expect(200);
        let head = state["head_seq"].as_u64().expect("a seq");
        assert!(head >= last, "{head} after {last}");
        last = head;
    }
    writer.await.expect("all writes were acked");
}
