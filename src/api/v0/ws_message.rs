//! What a client says on a WebSocket, and what comes of each command (contract section 18).

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::append::{
    Prepared, REPLY_ROOM_BYTES, is_fsync, prepare, put_seqs, put_timings, refusal_error, tell_if_made,
};
use super::append_body::AppendBody;
use super::frame::{error_message, message, refusal_message};
use super::watch::{Places, put_places, start_places};
use super::watch_body::WatchRequest;
use crate::api::Api;
use crate::api::json::{JsonWriter, Raw};
use crate::api::name::check_topic_name;
use crate::api::problem::internal;
use crate::api::shape::{Object, Text, parse_object};
use crate::auth::{Caller, Scope};
use crate::error::Error;
use crate::state::Outcome;

/// What every command has.
#[derive(Debug, Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    op: Option<Text<'a>>,
    #[serde(borrow, default)]
    request_id: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Unsubscribe<'a> {
    #[serde(borrow, default)]
    topic: Option<Text<'a>>,
    #[serde(default)]
    topics: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Publish<'a> {
    #[serde(borrow)]
    topic: Text<'a>,
    #[serde(default)]
    return_seqs: Option<bool>,
}

/// What is to be done about a command.
pub enum Done {
    Answer(Bytes),
    /// These topics are followed from now on, instead of how they were before; then the answer is sent, or a
    /// refusal.
    Subscribe {
        places: Places,
        answer: Bytes,
        request_id: Option<String>,
    },
    /// These are not followed any more.
    Unsubscribe {
        topics: Vec<String>,
        answer: Bytes,
    },
}

/// Carries one command out, but for what concerns the socket itself. Never fails: refusals are answers.
pub async fn carry_out(api: Api, caller: Caller, text: String) -> Done {
    let head: Head<'_> = match serde_json::from_str::<Object<Head<'_>>>(&text) {
        Ok(head) => head.0,
        Err(error) => return refused("invalid_json", &format!("this is no command: {error}"), None),
    };
    let request_id = head.request_id.map(RawValue::get);
    let done = match head.op.as_ref().map(Text::as_str) {
        Some("publish") => publish(&api, &caller, text.as_bytes(), request_id).await,
        Some("subscribe") => subscribe(&api, &caller, text.as_bytes(), request_id).await,
        Some("unsubscribe") => unsubscribe(text.as_bytes(), request_id),
        Some("ping") => Ok(Done::Answer(answer("pong", request_id, |_| {}))),
        Some(op) => return refused("invalid_json", &format!("there is no op {op:?}"), request_id),
        None => return refused("invalid_json", "a command has an `op`", request_id),
    };
    done.unwrap_or_else(|error| Done::Answer(error_message(&error, request_id)))
}

fn refused(code: &str, words: &str, request_id: Option<&str>) -> Done {
    Done::Answer(refusal_message(code, words, None, request_id))
}

fn answer(op: &'static str, request_id: Option<&str>, fill: impl FnOnce(&mut JsonWriter)) -> Bytes {
    message(op, |json| {
        json.field_if_some("request_id", request_id.map(Raw));
        fill(json);
    })
}

async fn subscribe(api: &Api, caller: &Caller, json: &[u8], request_id: Option<&str>) -> Result<Done, Error> {
    let request = WatchRequest::parse_subscribe(json)?;
    // Also if no topic is named that the caller may not read (C-WS-01).
    caller.check(Scope::Read, None)?;
    request.check_caller(caller)?;
    api.engine.admit()?;
    let places = start_places(&api.engine, &request).await?;
    let answer = answer("subscribed", request_id, |json| put_places(json, &places, true));
    Ok(Done::Subscribe { places, answer, request_id: request_id.map(str::to_owned) })
}

fn unsubscribe(json: &[u8], request_id: Option<&str>) -> Result<Done, Error> {
    let body: Unsubscribe<'_> = parse_object(json)?;
    let topics = match (body.topic, body.topics) {
        (Some(topic), None) => vec![topic.as_str().to_owned()],
        (None, Some(topics)) => topics,
        _ => return Err(Error::invalid("an unsubscribe has either `topic` or `topics`")),
    };
    let answer = answer("unsubscribed", request_id, |json| {
        json.array_field("topics", topics.iter().map(String::as_str))
    });
    Ok(Done::Unsubscribe { topics, answer })
}

async fn publish(api: &Api, caller: &Caller, json: &[u8], request_id: Option<&str>) -> Result<Done, Error> {
    let Publish { topic, return_seqs } = parse_object(json)?;
    let topic = topic.as_str();
    caller.check(Scope::Write, Some(topic))?;
    check_topic_name(topic)?;
    let body = AppendBody::parse(json)?;
    if body.has_config() {
        // C-AUTH-16: here it is needed always.
        caller.check(Scope::Admin, Some(topic))?;
    }
    let Prepared { draft, is_creation_forbidden } = prepare(caller, topic, &body, None, json.len())?;
    api.engine.admit()?;
    let (outcome, timings) = api.engine.propose(draft).await?;
    match outcome {
        Outcome::Appended(appended) => {
            tell_if_made(api, caller, topic, appended);
            let is_fsync = is_fsync(api, topic);
            let mut json = JsonWriter::with_capacity(REPLY_ROOM_BYTES + topic.len());
            json.object(|json| {
                json.field("op", "ack");
                json.field_if_some("request_id", request_id.map(Raw));
                json.field("topic", topic);
                put_seqs(json, appended, return_seqs.unwrap_or(true));
                json.object_field("performance", |json| put_timings(json, timings, is_fsync));
            });
            Ok(Done::Answer(json.finish()))
        }
        Outcome::Refused(refusal) => Err(refusal_error(caller, topic, refusal, is_creation_forbidden)),
        other => Err(internal(format_args!("a publish came out as {other:?}"))),
    }
}
