//! `POST /v0/append`: append to several topics at once (contract section 8.3).

use axum::extract::State;
use axum::response::Response;

use super::append::{
    REPLY_ROOM_BYTES, SEQ_ROOM_BYTES, idempotency_key_of_header, is_fsync, may_create_with, put_seqs,
    put_timings, refusal_error, tell_if_made,
};
use super::append_many_body::{AppendManyBody, of_entry};
use crate::api::Api;
use crate::api::call::{Call, Write};
use crate::api::change::CHANGES;
use crate::api::problem::internal;
use crate::api::reply::{Answer, Reply, created_or_ok};
use crate::auth::Scope;
use crate::engine::Timings;
use crate::error::{Code, Error};
use crate::state::{AppendPart, Appended, Create, Draft, Outcome};

pub async fn append_many(State(api): State<Api>, mut call: Call<Write>) -> Answer {
    let prepared = prepare(&call)?;
    call.replace_body();
    let is_absent = |target: &&Target| api.engine.catalog().get(&target.topic).is_none();
    match prepared.topics.iter().find(is_absent).map(|target| target.topic.clone()) {
        None => append_to(api, call, prepared).await,
        // Maybe it makes some.
        Some(absent) => {
            let caller = call.caller.clone();
            CHANGES.carry_through(api, caller, |api| append_and_make(api, call, prepared, absent)).await
        }
    }
}

/// As [`append_to`], where `absent` and maybe others are not there.
async fn append_and_make(api: Api, call: Call<Write>, prepared: Prepared, absent: String) -> Answer {
    let (caller, count) = (call.caller.clone(), prepared.topics.len());
    let answer = append_to(api.clone(), call, prepared).await;
    let asked =
        format_args!("append to {count} topics, and to make {absent:?} and others that are not there");
    api.metrics.changes.tell_if_unknown(&caller, &answer, asked);
    answer
}

async fn append_to(api: Api, call: Call<Write>, prepared: Prepared) -> Answer {
    api.engine.admit()?;
    let (outcome, timings) = api.engine.propose(prepared.draft).await?;
    let topics = prepared.topics;
    match outcome {
        Outcome::AppendedMany(appended) if appended.len() == topics.len() => {
            for (target, appended) in topics.iter().zip(&appended) {
                tell_if_made(&api, &call.caller, &target.topic, *appended);
            }
            Ok(reply(&api, &call, &topics, &appended, timings))
        }
        Outcome::PartRefused { part, refusal } => Err(match topics.get(part as usize) {
            Some(Target { topic, is_creation_forbidden }) => {
                of_entry(refusal_error(&call.caller, topic, refusal, *is_creation_forbidden), topic)
            }
            None => internal(format_args!("part {part} of an append to {} topics", topics.len())),
        }),
        Outcome::KeysConflict { parts } => Err(keys_conflict(&topics, &parts)),
        Outcome::Refused(refusal) => Err(refusal.into_error("")),
        other => Err(internal(format_args!("an append to several topics came out as {other:?}"))),
    }
}

/// A topic of the request, and whether its caller may not make it though the request would.
struct Target {
    topic: String,
    is_creation_forbidden: bool,
}

struct Prepared {
    draft: Draft,
    topics: Vec<Target>,
}

fn prepare(call: &Call<Write>) -> Result<Prepared, Error> {
    let json = call.json()?;
    let body = AppendManyBody::parse(json)?;
    let header_key = match body.idempotency_key() {
        Some(key) => Some(key),
        None => idempotency_key_of_header(call)?,
    };
    let mut configs = Vec::with_capacity(body.entries.len());
    for (topic, write) in &body.entries {
        configs.push(write.config(topic.as_str()).map_err(|error| of_entry(error, topic.as_str()))?);
    }
    // C-AUTH-13: names in the body come after its shape.
    for (topic, _) in &body.entries {
        call.caller.check(Scope::Write, Some(topic.as_str()))?;
    }
    let mut parts = Vec::with_capacity(body.entries.len());
    let mut topics = Vec::with_capacity(body.entries.len());
    for ((topic, write), config) in body.entries.iter().zip(configs) {
        let topic = topic.as_str();
        let wants_creation = write.creates(config.as_ref());
        let may_create = config.as_ref().is_none_or(|config| may_create_with(&call.caller, topic, config));
        let create = match wants_creation && may_create {
            true => Create::With(config.unwrap_or_default()),
            false => Create::Never,
        };
        let append = write.append(topic, create, write.idempotency_key().or(header_key));
        parts.push(AppendPart { append, record_count: write.record_count() as u32 });
        let is_creation_forbidden = wants_creation && !may_create;
        topics.push(Target { topic: topic.to_owned(), is_creation_forbidden });
    }
    let records = body.entries.iter().flat_map(|(_, write)| write.records(body.node()));
    Ok(Prepared { draft: Draft::append_many(&parts, records, json.len()), topics })
}

fn keys_conflict(topics: &[Target], parts: &[u64]) -> Error {
    let known: Vec<&str> =
        parts.iter().filter_map(|part| topics.get(*part as usize)).map(|it| it.topic.as_str()).collect();
    let message = "the keys of some topics are known and those of others are not; nothing was appended";
    Error::new(Code::IdempotencyConflict, message).with_detail(serde_json::json!({ "topics": known }))
}

fn reply(
    api: &Api,
    call: &Call<Write>,
    topics: &[Target],
    appended: &[Appended],
    timings: Timings,
) -> Response {
    let shows_seqs = call.query().flag("return_seqs", true);
    let seqs: u64 = if shows_seqs { appended.iter().map(|it| it.count).sum() } else { 0 };
    let mut reply =
        Reply::new(call.arrived, REPLY_ROOM_BYTES * topics.len() + SEQ_ROOM_BYTES * seqs as usize);
    reply.json.object_field("topics", |json| {
        for (target, appended) in topics.iter().zip(appended) {
            json.object_field_named(&target.topic, |json| put_seqs(json, *appended, shows_seqs));
        }
    });
    // C-APPEND-04, C-APPEND-07.
    let created = appended.iter().any(|it| it.created);
    let is_fsync = topics.iter().any(|target| is_fsync(api, &target.topic));
    reply.finish_with(created_or_ok(created), |json| put_timings(json, timings, is_fsync))
}
