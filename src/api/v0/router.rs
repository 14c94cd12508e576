//! `PUT`, `GET`, `DELETE /v0/routers/{router}`, and pausing (contract sections 15 and 16).

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;

use super::router_config::{parse_config, put_config};
use crate::api::Api;
use crate::api::call::{Admin, Delete, Read, RouterCall};
use crate::api::change::CHANGES;
use crate::api::json::{JsonWriter, ToJson};
use crate::api::name::check_topic_name;
use crate::api::problem::internal;
use crate::api::reply::{Answer, Reply, created_or_ok};
use crate::api::shape::{Text, parse_object};
use crate::auth::{Caller, Scope};
use crate::engine::{LinkError, LinkState, RouterView};
use crate::error::{Code, Error};
use crate::limits::SEQ_LIMIT;
use crate::state::{Draft, Outcome, PutRouter, Refusal, RouterConfig};

pub async fn put(State(api): State<Api>, call: RouterCall<Admin>) -> Answer {
    CHANGES.carry_through(api, call.call.caller.clone(), |api| put_router(api, call)).await
}

async fn put_router(api: Api, RouterCall { mut call, router }: RouterCall<Admin>) -> Answer {
    let (mut config, is_start_given) = parse_config(call.json()?)?;
    call.forget_body();
    check_names(&call.caller, &config)?;
    api.engine.admit()?;
    let put = PutRouter { name: &router, config: config.clone(), is_start_given };
    let proposed = api.engine.put_router(&put).await;
    let changes = &api.metrics.changes;
    changes.tell_if_unknown(&call.caller, &proposed, format_args!("make or configure router {router:?}"));
    let (created, start, has_token, is_changed) = match proposed? {
        Outcome::RouterPut { created, start, has_token, is_changed } => {
            (created, start, has_token, is_changed)
        }
        Outcome::RouterCycle { cycle } => return Err(cycle_error(&router, &cycle)),
        Outcome::Refused(Refusal::TopicNotFound) => return Err(Error::topic_not_found(&config.dest)),
        Outcome::Refused(refusal) => return Err(refusal.into_error(&router)),
        other => return Err(internal(format_args!("a PUT of a router came out as {other:?}"))),
    };
    config.start = start;
    if let Some(remote) = config.remote.as_mut().filter(|_| !has_token) {
        remote.token = None;
    }
    if is_changed {
        let (done, source, dest) =
            (if created { "made" } else { "configured" }, &config.source, &config.dest);
        let from = if config.is_local() { "" } else { " of another cluster" };
        let lines = &api.metrics.changes.routers;
        call.tell(lines, format_args!("{done} router {router:?} from {source:?}{from} to {dest:?}"));
    }
    let mut reply = Reply::new(call.arrived, 768);
    reply.json.field("router", router.as_str());
    reply.json.field("created", created);
    put_config(&mut reply.json, &config);
    Ok(reply.finish(created_or_ok(created)))
}

/// C-AUTH-13, C-AUTH-14.
fn check_names(caller: &Caller, config: &RouterConfig) -> Result<(), Error> {
    let source = config.source_prefix().unwrap_or(&config.source);
    // Otherwise it is the source's name that every copy goes to.
    let dest = config.fixed_dest().unwrap_or(source);
    caller.check(Scope::Admin, Some(source))?;
    caller.check_dest(dest)?;
    if caller.is_unrestricted(Scope::Admin) {
        return Ok(());
    }
    // A router reads and writes, and so must be let whoever makes it: else to configure would be to read.
    if config.is_local() { caller.check(Scope::Read, Some(source)) } else { Ok(()) }
}

/// What a caller is told of a link's error. What exactly answered, or did not, tells what there is in the network of
/// the members; whoever administers all of it may know.
fn told_to(caller: &Caller, error: LinkError, is_local: bool) -> LinkError {
    if is_local || caller.is_unrestricted(Scope::Admin) || FOUND_HERE.contains(&error.code.as_str()) {
        return error;
    }
    match TOLD_BY_MEMBERS.contains(&error.code.as_str()) {
        true => LinkError { message: "the remote, or what answers there, refuses".into(), ..error },
        false => {
            let message = "the remote gives no answer, or not that of a member".into();
            LinkError { code: "unreachable".into(), message, ..error }
        }
    }
}

/// Codes of errors that are found here.
const FOUND_HERE: [&str; 7] = [
    "same_cluster",
    "same_name",
    "secret_missing",
    "source_damaged",
    "source_diverged",
    "topic_full",
    "unknown_origin",
];
/// Codes with which a member of another cluster refuses; the sentence beside it may be anybody's.
const TOLD_BY_MEMBERS: [&str; 5] = ["forbidden", "no_leader", "throttled", "topic_not_found", "unauthorized"];

fn cycle_error(router: &str, cycle: &[String]) -> Error {
    Error::new(Code::RouterCycle, format!("router {router:?} would close a cycle"))
        .with_detail(serde_json::json!({ "cycle": cycle }))
}

pub async fn get(State(api): State<Api>, RouterCall { call, router }: RouterCall<Read>) -> Answer {
    let consistency = call.query().consistency()?;
    api.engine.admit()?;
    api.engine.fence(consistency).await?;
    let shared = api.engine.routers().get(&router).ok_or_else(|| Error::router_not_found(&router))?;
    let views = api.engine.show_routers(&[shared], consistency).await;
    let mut view = views.into_iter().next().ok_or_else(|| internal(format_args!("a router is not shown")))?;
    let is_local = view.config.is_local();
    view.last_error = view.last_error.map(|error| told_to(&call.caller, error, is_local));
    let mut reply = Reply::new(call.arrived, 1024);
    put_state(&mut reply.json, &view);
    Ok(reply.finish(StatusCode::OK))
}

pub async fn delete(State(api): State<Api>, call: RouterCall<Delete>) -> Answer {
    CHANGES.carry_through(api, call.call.caller.clone(), |api| delete_router(api, call)).await
}

async fn delete_router(api: Api, RouterCall { call, router }: RouterCall<Delete>) -> Answer {
    api.engine.admit()?;
    let proposed = api.engine.propose(Draft::delete_router(&router)).await;
    let changes = &api.metrics.changes;
    changes.tell_if_unknown(&call.caller, &proposed, format_args!("delete router {router:?}"));
    let (outcome, _) = proposed?;
    let deleted = match outcome {
        Outcome::RouterDeleted { deleted } => deleted,
        other => return Err(internal(format_args!("a DELETE of a router came out as {other:?}"))),
    };
    if deleted {
        call.tell(&api.metrics.changes.router_deletes, format_args!("deleted router {router:?}"));
    }
    let mut reply = Reply::new(call.arrived, 256);
    reply.json.field("router", router.as_str());
    reply.json.field("deleted", deleted);
    Ok(reply.finish(StatusCode::OK))
}

pub async fn pause(State(api): State<Api>, call: RouterCall<Admin>) -> Answer {
    CHANGES.carry_through(api, call.call.caller.clone(), |api| set_paused(api, call, true)).await
}

pub async fn resume(State(api): State<Api>, call: RouterCall<Admin>) -> Answer {
    CHANGES.carry_through(api, call.call.caller.clone(), |api| set_paused(api, call, false)).await
}

async fn set_paused(api: Api, RouterCall { call, router }: RouterCall<Admin>, pause: bool) -> Answer {
    api.engine.admit()?;
    // As far as this member knows.
    let was_paused = api.engine.routers().get(&router).map(|shared| shared.read().is_paused);
    let proposed = api.engine.propose(Draft::pause_router(&router, pause)).await;
    let what = if pause { "pause" } else { "resume" };
    let changes = &api.metrics.changes;
    changes.tell_if_unknown(&call.caller, &proposed, format_args!("{what} router {router:?}"));
    let (outcome, _) = proposed?;
    let is_paused = match outcome {
        Outcome::RouterPaused { is_paused } => is_paused,
        Outcome::Refused(refusal) => return Err(refusal.into_error(&router)),
        other => return Err(internal(format_args!("a pause came out as {other:?}"))),
    };
    if was_paused != Some(is_paused) {
        let done = if is_paused { "paused" } else { "resumed" };
        call.tell(&api.metrics.changes.pauses, format_args!("{done} router {router:?}"));
    }
    let state = if is_paused { LinkState::Paused } else { LinkState::Running };
    let mut reply = Reply::new(call.arrived, 256);
    reply.json.field("router", router.as_str());
    reply.json.field("state", state.name());
    Ok(reply.finish(StatusCode::OK))
}

#[derive(Deserialize)]
struct SkipBody<'a> {
    #[serde(borrow)]
    topic: Text<'a>,
    seq: u64,
}

/// Has a mirror pass over a record that cannot be stored (C-MIRROR-18).
pub async fn skip(State(api): State<Api>, call: RouterCall<Admin>) -> Answer {
    CHANGES.carry_through(api, call.call.caller.clone(), |api| skip_record(api, call)).await
}

async fn skip_record(api: Api, RouterCall { call, router }: RouterCall<Admin>) -> Answer {
    let body: SkipBody<'_> = parse_object(call.json()?)?;
    let (topic, seq) = (body.topic.as_str(), body.seq);
    if !(1..SEQ_LIMIT).contains(&seq) {
        return Err(Error::invalid("`seq` is none that a record has"));
    }
    check_topic_name(topic)?;
    call.caller.check(Scope::Admin, Some(topic))?;
    api.engine.admit()?;
    let proposed = api.engine.propose(Draft::skip_record(&router, topic, seq)).await;
    let changes = &api.metrics.changes;
    changes.tell_if_unknown(
        &call.caller,
        &proposed,
        format_args!("have router {router:?} pass over record {seq} of topic {topic:?}"),
    );
    let (outcome, _) = proposed?;
    let skipped = match outcome {
        Outcome::RecordSkipped { skipped } => skipped,
        Outcome::Refused(refusal) => return Err(refusal.into_error(&router)),
        other => return Err(internal(format_args!("a skip came out as {other:?}"))),
    };
    if skipped {
        let lines = &api.metrics.changes.skips;
        call.tell(lines, format_args!("had router {router:?} pass over record {seq} of topic {topic:?}"));
    }
    let mut reply = Reply::new(call.arrived, 512);
    reply.json.field("router", router.as_str());
    reply.json.field("topic", topic);
    reply.json.field("seq", seq);
    reply.json.field("skipped", u64::from(skipped));
    Ok(reply.finish(StatusCode::OK))
}

fn put_state(json: &mut JsonWriter, view: &RouterView) {
    json.field("router", &*view.name);
    put_config(json, &view.config);
    json.field("forwarded_total", view.forwarded_total);
    json.field("state", view.state.name());
    json.field("lag", view.lag);
    json.field("last_error", view.last_error.as_ref());
    json.field("last_forwarded_ts", view.last_forwarded_ts_ms);
}

impl ToJson for LinkError {
    fn write(&self, json: &mut JsonWriter) {
        json.object(|json| {
            json.field("code", self.code.as_str());
            json.field("message", self.message.as_str());
            json.field_if_some("topic", self.topic.as_deref());
            json.field_if_some("seq", self.seq);
            json.field("ts", self.ts_ms);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::auth::Keys;
    use crate::filter::Filter;

    #[test]
    fn a_state_looks_as_in_the_contract() {
        // Section 15.2, with `start`
        let filter = Some(Filter::parse(r#"["tag","Glob","m:10*"]"#).unwrap());
        let config = RouterConfig { filter, ..RouterConfig::local("meter:raw", "meter:audit") };
        let (code, message) = ("topic_full".into(), "full".into());
        let error = LinkError { code, message, topic: None, seq: None, ts_ms: 9 };
        let view = RouterView {
            name: "meter:raw->meter:audit".into(),
            config: Arc::new(config),
            forwarded_total: 311,
            last_forwarded_ts_ms: Some(1_790_000_001_260),
            state: LinkState::Blocked,
            lag: 4,
            last_error: Some(error),
        };
        let mut json = JsonWriter::with_capacity(0);
        json.object(|json| put_state(json, &view));
        let state: Value = serde_json::from_slice(&json.finish()).unwrap();
        let expected = json!({
            "router": "meter:raw->meter:audit", "source": "meter:raw", "dest": "meter:audit",
            "preserve_node": true, "preserve_tag": true, "create_dest": true,
            "filter": ["tag", "Glob", "m:10*"], "allow_cycle": false, "guarantee": "at_least_once",
            "start": "latest", "remote": null, "forwarded_total": 311, "state": "blocked", "lag": 4,
            "last_error": { "code": "topic_full", "message": "full", "ts": 9 },
            "last_forwarded_ts": 1_790_000_001_260u64
        });
        assert_eq!(state, expected);
    }

    #[test]
    fn only_who_administers_everything_is_told_what_answered() {
        let keys = Keys::parse("all, admin:a, bound:a:own:").unwrap();
        let error = |code: &str| {
            let message = "Connection refused".into();
            LinkError { code: code.into(), message, topic: None, seq: None, ts_ms: 9 }
        };
        let told = |key, code, is_local| {
            let told = told_to(&keys.authenticate(Some(key)).unwrap(), error(code), is_local);
            (told.code, told.message == "Connection refused")
        };
        for key in ["all", "admin"] {
            assert_eq!(told(key, "whatever", false), ("whatever".to_owned(), true));
        }
        for (code, is_local, shown, is_whole) in [
            ("whatever", false, "unreachable", false),
            ("target_denied", false, "unreachable", false),
            ("unauthorized", false, "unauthorized", false),
            ("source_damaged", false, "source_damaged", true),
            ("topic_not_found", true, "topic_not_found", true),
        ] {
            assert_eq!(told("bound", code, is_local), (shown.to_owned(), is_whole), "{code}");
        }
    }
}
