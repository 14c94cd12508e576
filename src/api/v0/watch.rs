//! `POST /v0/watch` and `GET /v0/watch/{wid}` (contract section 17).

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};

use super::watch_body::WatchRequest;
use crate::api::Api;
use crate::api::call::{Call, Read, StreamCall};
use crate::api::event_id::{CameWith, EventIds};
use crate::api::json::JsonWriter;
use crate::api::query::Query;
use crate::api::reply::{Answer, Reply};
use crate::api::sse::EventStream;
use crate::engine::{Engine, Session, StartAt, StartPlace, Subscription, View};
use crate::error::{Code, Error};

const LAST_EVENT_ID: &str = "last-event-id";

pub async fn create(State(api): State<Api>, mut call: Call<Read>) -> Answer {
    let mut request = WatchRequest::parse_post(call.json()?)?;
    call.forget_body();
    request.check_caller(&call.caller)?;
    request.lenient = call.query().flag("lenient", false);
    api.engine.admit()?;
    let places = start_places(&api.engine, &request).await?;
    if places.is_empty() {
        // All were unknown. A session of nothing would take a place and never say anything.
        let first = request.topics.first().map_or("", |topic| &topic.name);
        return Err(Error::topic_not_found(first));
    }
    let wid = api.engine.new_wid();
    let subscription = Subscription {
        binding: call.caller.binding(&wid),
        topics: Subscription::topics_of(&places),
        heartbeat_ms: request.heartbeat_ms,
    };
    let hold = api.hold_session(&call.caller, subscription.memory_bytes())?;
    api.engine.add_session(wid.clone(), subscription, hold)?;
    places.iter().for_each(|(place, _)| api.engine.touch(&place.shared));
    let mut reply = Reply::new(call.arrived, 256 + 128 * places.len());
    reply.json.field("wid", wid.as_str());
    reply.json.field("stream_url", format!("/v0/watch/{wid}").as_str());
    reply.json.field("session_ttl_ms", api.engine.session_ttl().as_millis() as u64);
    put_places(&mut reply.json, &places, true);
    Ok(reply.finish(StatusCode::OK))
}

/// Where each topic of a watch starts, and how it is read.
pub type Places = Vec<(StartPlace, Arc<View>)>;

/// Looks up what `request` names; unknown topics are left out if it is lenient.
pub async fn start_places(engine: &Engine, request: &WatchRequest) -> Result<Places, Error> {
    let topics: Vec<(&str, StartAt)> =
        request.topics.iter().map(|topic| (topic.name.as_str(), topic.start)).collect();
    let found = engine.start_places(&topics, request.consistency).await?;
    let mut places = Vec::with_capacity(found.len());
    for (topic, place) in request.topics.iter().zip(found) {
        match place {
            Some(place) => places.push((place, topic.view.clone())),
            None if request.lenient => {}
            None => return Err(Error::topic_not_found(&topic.name)),
        }
    }
    Ok(places)
}

/// The field `topics` of an answer.
pub fn put_places(json: &mut JsonWriter, places: &Places, with_epoch: bool) {
    json.object_field("topics", |json| {
        for (place, _) in places {
            let name = place.shared.read().name.clone();
            json.object_field_named(&name, |json| {
                json.field("from_seq", place.from_seq);
                json.field("head_seq", place.head_seq);
                json.field("earliest_seq", place.earliest_seq);
                json.field_if_some("epoch", with_epoch.then_some(place.shared.epoch));
            });
        }
    });
}

pub async fn open(State(api): State<Api>, call: StreamCall) -> Answer {
    if !takes_events(&call.parts.headers) {
        return Err(Error::new(Code::NotAcceptable, "this is a stream of type `text/event-stream`"));
    }
    let wid = &call.name;
    api.engine.admit()?;
    let binding = call.caller.binding(wid);
    let hold = |bytes| api.hold_session(&call.caller, bytes);
    let session =
        api.engine.session(wid, binding.as_ref(), hold).await.map_err(|error| match error.code {
            Code::Unauthorized => call.caller.refuse(error),
            _ => error,
        })?;
    let places = (api.engine.enter_stream()?, call.caller.enter_stream(api.limits.max_streams_per_key)?);
    let rewind = rewind(&call.parts.headers, Query::new(call.parts.uri.query()), &session);
    let progress = call.parts.extensions.get().cloned();
    let room = api.frame_room(&call.caller);
    let stream = EventStream::open(&api.engine, &session, rewind, progress, room, places);
    let stream = stream.ok_or_else(|| Error::new(Code::NotFound, "this watch session is gone"))?;
    Ok(stream.into_response())
}

/// C-WATCH-07.
fn takes_events(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(ACCEPT).iter().peekable();
    if values.peek().is_none() {
        return true;
    }
    let types = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    types.map(|choice| choice.split(';').next().unwrap_or_default().trim()).any(|media_type| {
        media_type.eq_ignore_ascii_case("text/event-stream") || matches!(media_type, "*/*" | "text/*")
    })
}

/// Where the client says that it has got, per topic of its session; what is no id of ours says nothing
/// (C-WATCH-09).
fn rewind(headers: &HeaderMap, query: Query<'_>, session: &Session) -> Vec<CameWith> {
    let header = headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok());
    let cursor = query.text("cursor").ok().flatten();
    let id = header.or(cursor.as_deref()).unwrap_or_default();
    EventIds::new(&session.subscription.topics).cursors(id, &session.subscription.topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_for_who_takes_events() {
        // C-WATCH-07
        assert!(takes_events(&HeaderMap::new()));
        for (accept, expected) in [
            ("text/event-stream", true),
            ("application/json, Text/Event-Stream;q=0.5", true),
            ("*/*;q=0.1", true),
            ("application/json", false),
            ("text/html", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            assert_eq!(takes_events(&headers), expected, "{accept}");
        }
    }
}
