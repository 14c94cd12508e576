//! Priorities of topics (contract section 9.6).

use serde_json::json;

use crate::shared::api;
use crate::watch::watch;

/// C-PRIO-01, C-PRIO-02
#[tokio::test]
async fn reading_a_topic_raises_its_priority_at_that_member() {
    let api = api().await.at(1);
    let priority = async |topic: &str| {
        let state = api.topic(topic).await.expect(200);
        state["effective_priority"].as_i64().expect("a number")
    };
    for way in ["get", "list", "diff", "watch", "socket"] {
        let topic = format!("watch-prio-{way}");
        api.write(&topic, 1).await.expect(201);
        assert_eq!(priority(&topic).await, 0, "never consumed");
        match way {
            "get" => drop(api.get(&format!("/v0/topics/{topic}")).await.expect(200)),
            "list" => drop(api.get(&format!("/v0/topics?prefix={topic}&touch=true")).await.expect(200)),
            "diff" => drop(api.diff(&topic, json!({})).await.expect(200)),
            "watch" => {
                watch(&api, json!({ "topics": { (topic.clone()): {} } })).await.expect("record").await;
            }
            _ => {
                let mut socket = crate::events::socket(&api).await.expect("a socket");
                socket.send(json!({ "op": "subscribe", "topic": topic })).await;
                socket.expect("subscribed").await;
            }
        }
        let now = priority(&topic).await;
        assert!((400..=500).contains(&now), "{way}: {now}");
    }
}

/// C-PRIO-03
#[tokio::test]
async fn of_several_topics_the_one_with_the_higher_priority_is_served_first() {
    let api = api().await;
    for (topic, priority) in [("watch-first-a", -1000), ("watch-first-b", 1000), ("watch-first-c", 0)] {
        api.put(&format!("/v0/topics/{topic}"), json!({ "priority": priority })).await.expect(201);
        api.write(topic, 20).await.expect(200);
    }
    let topics = json!({ "watch-first-a": {}, "watch-first-b": {}, "watch-first-c": {} });
    let mut stream = watch(&api, json!({ "topics": topics, "limit": 1 })).await;
    let mut order: Vec<String> = Vec::new();
    let mut records = 0;
    while records < 60 {
        let event = stream.event().await.expect("the stream goes on");
        if event.name == "record" {
            records += 1;
            let topic = event.data["topic"].as_str().expect("a name");
            if order.last().is_none_or(|last| last != topic) {
                order.push(topic.to_owned());
            }
        }
    }
    assert_eq!(order, ["watch-first-b", "watch-first-c", "watch-first-a"]);
}
