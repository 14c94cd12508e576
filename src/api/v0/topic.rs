//! `PUT`, `GET` and `DELETE /v0/topics/{topic}` (contract sections 7.1, 7.2, 7.4).

use axum::extract::State;
use axum::http::StatusCode;

use super::topic_config::parse_config;
use crate::api::Api;
use crate::api::call::{Admin, Delete, Read, TopicCall};
use crate::api::change::CHANGES;
use crate::api::json::JsonWriter;
use crate::api::problem::internal;
use crate::api::reply::{Answer, Reply, created_or_ok};
use crate::error::Error;
use crate::state::{Draft, Outcome, Topic, TopicConfig, TopicType};

pub async fn put(State(api): State<Api>, call: TopicCall<Admin>) -> Answer {
    CHANGES.carry_through(api, call.call.caller.clone(), |api| put_topic(api, call)).await
}

async fn put_topic(api: Api, TopicCall { mut call, topic }: TopicCall<Admin>) -> Answer {
    let config = parse_config(call.json_or_empty_object()?, &topic)?;
    call.forget_body();
    if let Some(dead_letter) = &config.dead_letter {
        call.caller.check_dest(dead_letter)?;
    }
    api.engine.admit()?;
    let before = api.engine.catalog().get(&topic).map(|shared| shared.read().config.clone());
    let proposed = api.engine.propose(Draft::put_topic(&topic, &config)).await;
    let changes = &api.metrics.changes;
    changes.tell_if_unknown(&call.caller, &proposed, format_args!("make or configure topic {topic:?}"));
    let (outcome, _) = proposed?;
    let (created, config) = match outcome {
        Outcome::TopicPut { created, config } => (created, config),
        Outcome::Refused(refusal) => return Err(refusal.into_error(&topic)),
        other => return Err(internal(format_args!("a PUT came out as {other:?}"))),
    };
    if is_change(created, before.as_ref(), &config) {
        let done = if created { "made" } else { "configured" };
        call.tell(&api.metrics.changes.topics, format_args!("{done} topic {topic:?}"));
    }
    let mut reply = Reply::new(call.arrived, 768);
    reply.json.field("topic", topic.as_str());
    reply.json.field("created", created);
    reply.json.field("config", &config);
    Ok(reply.finish(created_or_ok(created)))
}

/// Whether a PUT has changed a topic that had the config `before`, as far as this member knew.
fn is_change(created: bool, before: Option<&TopicConfig>, now: &TopicConfig) -> bool {
    created || before != Some(now)
}

pub async fn get(State(api): State<Api>, TopicCall { call, topic }: TopicCall<Read>) -> Answer {
    let consistency = call.query().consistency()?;
    api.engine.admit()?;
    let fence = api.engine.fence(consistency).await?;
    let shared = api.engine.catalog().get(&topic).ok_or_else(|| Error::topic_not_found(&topic))?;
    api.engine.settle(fence, std::slice::from_ref(&shared)).await?;
    if call.query().flag("touch", true) {
        api.engine.touch(&shared);
    }
    let last_read_ts_ms = api.engine.last_read_ts_ms(&shared);
    let mut reply = Reply::new(call.arrived, 1024);
    let topic = shared.read();
    let priority = api.engine.priority_of(&shared, &topic.config);
    put_state(&mut reply.json, &topic, priority, last_read_ts_ms);
    Ok(reply.finish(StatusCode::OK))
}

pub async fn delete(State(api): State<Api>, call: TopicCall<Delete>) -> Answer {
    CHANGES.carry_through(api, call.call.caller.clone(), |api| delete_topic(api, call)).await
}

async fn delete_topic(api: Api, TopicCall { call, topic }: TopicCall<Delete>) -> Answer {
    let if_empty = call.query().flag("if_empty", false);
    api.engine.admit()?;
    let proposed = api.engine.propose(Draft::delete_topic(&topic, if_empty)).await;
    let changes = &api.metrics.changes;
    changes.tell_if_unknown(&call.caller, &proposed, format_args!("delete topic {topic:?}"));
    let (outcome, _) = proposed?;
    let (deleted, routers_removed) = match outcome {
        Outcome::TopicDeleted { deleted, routers_removed } => (deleted, routers_removed),
        Outcome::Refused(refusal) => return Err(refusal.into_error(&topic)),
        other => return Err(internal(format_args!("a DELETE came out as {other:?}"))),
    };
    if deleted {
        let routers = routers_removed.len();
        let lines = &api.metrics.changes.topic_deletes;
        call.tell(lines, format_args!("deleted topic {topic:?}, and {routers} routers that named it"));
    }
    let mut reply = Reply::new(call.arrived, 256);
    reply.json.field("topic", topic.as_str());
    reply.json.field("deleted", deleted);
    reply.json.array_field("routers_removed", routers_removed.iter().map(String::as_str));
    reply.json.array_field::<&str>("groups_removed", []);
    Ok(reply.finish(StatusCode::OK))
}

fn put_state(json: &mut JsonWriter, topic: &Topic, effective_priority: i32, last_read_ts_ms: Option<u64>) {
    json.field("topic", &*topic.name);
    json.field("type", topic.config.topic_type.name());
    json.field("epoch", topic.epoch);
    json.field("head_seq", topic.head_seq);
    json.field("earliest_seq", topic.earliest_seq);
    json.field("next_seq", topic.head_seq + 1);
    json.field("count", topic.count);
    json.field("bytes", topic.bytes);
    json.field("config", &topic.config);
    json.field("effective_priority", effective_priority);
    json.field("last_write_ts", topic.last_write_ts_ms);
    json.field("last_read_ts", last_read_ts_ms);
    if topic.config.topic_type == TopicType::Queue {
        json.object_field("queue", |json| {
            // Nothing can be claimed yet, so everything live is ready.
            json.field("ready", topic.count);
            json.field("in_flight", 0u64);
            json.field("dead_lettered", 0u64);
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_put_of_what_is_there_is_no_change() {
        let (plain, capped) =
            (TopicConfig::default(), TopicConfig { cap_records: 7, ..TopicConfig::default() });
        assert!(!is_change(false, Some(&plain), &plain));
        assert!(is_change(false, Some(&plain), &capped) && is_change(true, None, &plain));
        assert!(is_change(false, None, &plain), "this member did not know it yet");
    }

    #[test]
    fn a_state_looks_as_in_the_contract() {
        // Section 7.2: `queue` only on queues.
        for topic_type in [TopicType::Log, TopicType::Queue] {
            let config = TopicConfig { topic_type, priority: Some(20), ..TopicConfig::default() };
            let topic = Topic::new("meter:raw".into(), 41, config);
            let mut json = JsonWriter::with_capacity(0);
            json.object(|json| put_state(json, &topic, 20, Some(7)));
            let mut state: Value = serde_json::from_slice(&json.finish()).unwrap();
            assert_eq!(state["config"].as_object().map(|config| config.len()), Some(19));
            state["config"].take();
            let mut expected = json!({
                "topic": "meter:raw", "type": topic_type.name(), "epoch": 41, "head_seq": 0,
                "earliest_seq": 1, "next_seq": 1, "count": 0, "bytes": 0, "config": null,
                "effective_priority": 20, "last_write_ts": null, "last_read_ts": 7
            });
            if topic_type == TopicType::Queue {
                expected["queue"] = json!({ "ready": 0, "in_flight": 0, "dead_lettered": 0 });
            }
            assert_eq!(state, expected);
        }
    }
}
