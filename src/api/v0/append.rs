//! `POST /v0/topics/{topic}`: append a batch (contract section 8.1).

use axum::extract::State;
use axum::http::HeaderName;
use axum::response::Response;

use super::append_body::{AppendBody, check_idempotency_key};
use crate::api::Api;
use crate::api::call::{Call, TopicCall, Write};
use crate::api::change::{self, CHANGES};
use crate::api::json::{JsonWriter, Millis};
use crate::api::problem::internal;
use crate::api::reply::{Answer, Reply, created_or_ok};
use crate::auth::{Caller, Scope};
use crate::engine::Timings;
use crate::error::{Code, Error};
use crate::state::{Appended, Create, Draft, Durability, Outcome, Refusal, TopicConfig};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Room for the answer without its seqs, and for one seq.
pub const REPLY_ROOM_BYTES: usize = 320;
pub const SEQ_ROOM_BYTES: usize = 12;

pub async fn append(State(api): State<Api>, call: TopicCall<Write>) -> Answer {
    match api.engine.catalog().get(&call.topic) {
        Some(_) => append_to(api, call).await,
        // Maybe it makes the topic.
        None => CHANGES.carry_through(api, call.call.caller.clone(), |api| append_and_make(api, call)).await,
    }
}

async fn append_and_make(api: Api, call: TopicCall<Write>) -> Answer {
    let (caller, topic) = (call.call.caller.clone(), call.topic.clone());
    let answer = append_to(api.clone(), call).await;
    let asked = format_args!("append to topic {topic:?}, and to make it");
    api.metrics.changes.tell_if_unknown(&caller, &answer, asked);
    answer
}

async fn append_to(api: Api, TopicCall { mut call, topic }: TopicCall<Write>) -> Answer {
    let Prepared { draft, is_creation_forbidden } = prepare_call(&call, &topic)?;
    call.replace_body();
    api.engine.admit()?;
    let (outcome, timings) = api.engine.propose(draft).await?;
    match outcome {
        Outcome::Appended(appended) => {
            tell_if_made(&api, &call.caller, &topic, appended);
            Ok(reply(&api, &call, &topic, appended, timings))
        }
        Outcome::Refused(refusal) => Err(refusal_error(&call.caller, &topic, refusal, is_creation_forbidden)),
        other => Err(internal(format_args!("an append came out as {other:?}"))),
    }
}

/// Tells the log of a topic that an append has made.
pub fn tell_if_made(api: &Api, caller: &Caller, topic: &str, appended: Appended) {
    if appended.created {
        let lines = &api.metrics.changes.made_by_appends;
        change::tell(lines, caller, format_args!("made topic {topic:?} by an append"));
    }
}

fn prepare_call(call: &Call<Write>, topic: &str) -> Result<Prepared, Error> {
    let json = call.json()?;
    let body = AppendBody::parse(json)?;
    let header_key = match body.idempotency_key() {
        Some(_) => None,
        None => idempotency_key_of_header(call)?,
    };
    prepare(&call.caller, topic, &body, header_key, json.len())
}

/// 403 for who would have made a topic with a config and may not.
fn creation_forbidden(caller: &Caller, topic: &str) -> Error {
    let message = format!("there is no topic {topic:?}, and making one with a config needs the admin right");
    caller.refuse(Error::new(Code::Forbidden, message))
}

/// Why nothing was appended.
pub fn refusal_error(caller: &Caller, topic: &str, refusal: Refusal, is_creation_forbidden: bool) -> Error {
    match refusal {
        Refusal::TopicNotFound if is_creation_forbidden => creation_forbidden(caller, topic),
        refusal => refusal.into_error(topic),
    }
}

/// The command of an append.
pub struct Prepared {
    pub draft: Draft,
    pub is_creation_forbidden: bool,
}

/// `header_key` is an idempotency key for a body that has none; `size_hint_bytes` is the size of the body.
pub fn prepare(
    caller: &Caller,
    topic: &str,
    body: &AppendBody<'_>,
    header_key: Option<&str>,
    size_hint_bytes: usize,
) -> Result<Prepared, Error> {
    let config = body.config(topic)?;
    let idempotency_key = body.idempotency_key().or(header_key);
    let wants_creation = body.creates(config.as_ref());
    let may_create = config.as_ref().is_none_or(|config| may_create_with(caller, topic, config));
    let create = match wants_creation && may_create {
        true => Create::With(config.unwrap_or_default()),
        false => Create::Never,
    };
    Ok(Prepared {
        draft: body.draft(topic, create, idempotency_key, size_hint_bytes),
        is_creation_forbidden: wants_creation && !may_create,
    })
}

/// C-AUTH-13, C-AUTH-16. The right is needed only if the topic turns out to be absent, which is known for
/// sure only where commands are ordered. So without it the command is sent as one that never creates, and
/// a refusal for want of the topic is then the caller's want of the right.
pub fn may_create_with(caller: &Caller, topic: &str, config: &TopicConfig) -> bool {
    let reaches_dead_letter =
        config.dead_letter.as_deref().is_none_or(|dead_letter| caller.check_dest(dead_letter).is_ok());
    caller.may(Scope::Admin, Some(topic)) && reaches_dead_letter
}

pub fn idempotency_key_of_header(call: &Call<Write>) -> Result<Option<&str>, Error> {
    let Some(value) = call.header(&IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = std::str::from_utf8(value)
        .map_err(|_| Error::invalid("the header `Idempotency-Key` is not UTF-8"))?;
    check_idempotency_key(key)?;
    Ok(Some(key))
}

fn reply(api: &Api, call: &Call<Write>, topic: &str, appended: Appended, timings: Timings) -> Response {
    let shows_seqs = call.query().flag("return_seqs", true);
    let seqs_bytes = if shows_seqs { SEQ_ROOM_BYTES * appended.count as usize } else { 0 };
    let mut reply = Reply::new(call.arrived, REPLY_ROOM_BYTES + topic.len() + seqs_bytes);
    reply.json.field("topic", topic);
    put_seqs(&mut reply.json, appended, shows_seqs);
    let is_fsync = is_fsync(api, topic);
    reply.finish_with(created_or_ok(appended.created), |json| put_timings(json, timings, is_fsync))
}

/// Where the records went.
pub fn put_seqs(json: &mut JsonWriter, appended: Appended, shows_seqs: bool) {
    let end_seq = appended.first_seq + appended.count;
    json.field("first_seq", appended.first_seq);
    json.field("last_seq", end_seq.saturating_sub(1));
    if shows_seqs {
        json.array_field("seqs", appended.first_seq..end_seq);
    }
    json.field("head_seq", appended.head_seq);
    json.field("count", appended.count);
    json.field("created", appended.created);
    json.field("deduped", appended.deduped);
}

/// Whether the topic, as far as this member knows it, promises what `fsync_ms` reports.
pub fn is_fsync(api: &Api, topic: &str) -> bool {
    let known = api.engine.catalog().get(topic);
    known.is_some_and(|shared| shared.read().config.durability == Durability::Fsync)
}

/// The fields of section 1.6 for writes. The wait for a quorum contains the wait for its disks, and for
/// class `fsync` that is what the client asked for.
pub fn put_timings(json: &mut JsonWriter, timings: Timings, is_fsync: bool) {
    json.field("fsync_ms", Millis(if is_fsync { timings.replicate_ms } else { 0.0 }));
    json.field("replicate_ms", Millis(timings.replicate_ms));
    json.field_if_some("forward_ms", timings.forward_ms.map(Millis));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Keys;

    fn written(fill: impl FnOnce(&mut JsonWriter)) -> String {
        let mut json = JsonWriter::with_capacity(0);
        json.object(fill);
        String::from_utf8(json.finish().to_vec()).unwrap()
    }

    #[test]
    fn the_answer_looks_as_in_the_contract() {
        // Section 8.1, C-WRITE-06, C-WRITE-07
        let appended = Appended { first_seq: 9121, count: 2, head_seq: 9122, created: false, deduped: true };
        assert_eq!(
            written(|json| put_seqs(json, appended, true)),
            concat!(
                r#"{"first_seq":9121,"last_seq":9122,"seqs":[9121,9122],"#,
                r#""head_seq":9122,"count":2,"created":false,"deduped":true}"#
            )
        );
        assert!(!written(|json| put_seqs(json, appended, false)).contains("seqs"));
    }

    #[test]
    fn only_the_class_fsync_reports_waiting_for_disks() {
        // C-PERF-01
        let timings = Timings { replicate_ms: 1.5, forward_ms: None };
        let class_disk = written(|json| put_timings(json, timings, false));
        assert_eq!(class_disk, r#"{"fsync_ms":0.000,"replicate_ms":1.500}"#);
        let timings = Timings { forward_ms: Some(0.25), ..timings };
        let class_fsync = written(|json| put_timings(json, timings, true));
        assert_eq!(class_fsync, r#"{"fsync_ms":1.500,"replicate_ms":1.500,"forward_ms":0.250}"#);
    }

    #[test]
    fn making_a_topic_with_a_config_needs_admin_on_all_that_it_names() {
        // C-AUTH-13, C-AUTH-16
        let keys = Keys::parse("all,writer:w,bound:a:t,both:a+w:t").unwrap();
        let may = |key, dead_letter: Option<&str>| {
            let config =
                TopicConfig { dead_letter: dead_letter.map(str::to_owned), ..TopicConfig::default() };
            may_create_with(&keys.authenticate(Some(key)).unwrap(), "topic", &config)
        };
        assert!(may("all", Some("dead")) && may("bound", None) && may("both", Some("t-dead")));
        assert!(!may("writer", None) && !may("both", Some("dead")));
        assert!(!may("bound", Some("t-dead")), "records would be moved where it may not write");
    }
}
