//! `POST /v0/mirror/pull`: what mirrors of other clusters ask (contract section 16). Its form is between clusters
//! of antiphon, and no part of the contract (C-MIRROR-17).

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::response::{IntoResponse, Response};

use crate::api::Api;
use crate::api::call::{Call, Read};
use crate::api::name::check_topic_name;
use crate::auth::Scope;
use crate::engine::{Ask, Sources};
use crate::error::Error;
use crate::router::{PULL_CONTENT_TYPE, PullRequest, answer_pull};

pub async fn pull(State(api): State<Api>, mut call: Call<Read>) -> Result<Response, Error> {
    let body = call.body_of_type(PULL_CONTENT_TYPE)?;
    let mut request = PullRequest::decode(body).map_err(Error::invalid)?;
    // The beginning of all names that are asked for must be one that the key may read.
    match &request.query.sources {
        Sources::One(topic) => {
            call.caller.check(Scope::Read, Some(topic))?;
            check_topic_name(topic)?;
        }
        Sources::Prefix(prefix) => {
            call.caller.check(Scope::Read, Some(prefix))?;
            check_beginning(prefix)?;
        }
    }
    let query = &request.query;
    if let Ask::List { after } = &query.ask {
        check_beginning(after)?;
    }
    query
        .wanted
        .iter()
        .map(|(name, _)| name)
        .chain(&query.dest)
        .try_for_each(|name| check_topic_name(name))?;
    call.forget_body();
    api.engine.admit()?;
    // For as long as it waits.
    let _held = api.hold_watch_bytes(&call.caller, query.memory_bytes())?;
    call.count_as(call.caller.enter_pull()?);
    let peer_ended = call.peer_ended();
    let answer = tokio::select! {
        biased;
        answer = answer_pull(&api.engine, &request, |bytes| call.count_answer(bytes)) => answer?,
        () = peer_ended => {
            request.query.wait_ms = 0;
            answer_pull(&api.engine, &request, |bytes| call.count_answer(bytes)).await?
        }
    };
    let content_type = (CONTENT_TYPE, HeaderValue::from_static(PULL_CONTENT_TYPE));
    Ok(call.answer((StatusCode::OK, [content_type], answer).into_response()))
}

/// 400 unless names of topics can begin with this; nothing is the beginning of all.
fn check_beginning(beginning: &str) -> Result<(), Error> {
    if beginning.is_empty() { Ok(()) } else { check_topic_name(beginning) }
}
