//! What every request passes, tried on a small table: no engine is needed for it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt;

use super::ApiLimits;
use super::byte_budget::ByteBudget;
use super::call::{Admin, Call, Gate, TopicCall, Write};
use super::reply::{Answer, Reply};
use super::request_metrics::RequestMetrics;
use super::routes::Routes;
use crate::auth::Keys;

/// Answers with the topic and the length of the body.
async fn echo(TopicCall { call, topic }: TopicCall<Write>) -> Answer {
    let mut reply = Reply::new(call.arrived, 64);
    reply.json.field("topic", topic.as_str());
    reply.json.field("bytes", call.json()?.len() as u64);
    Ok(reply.finish_with(StatusCode::OK, |json| json.field("records_scanned", 1u64)))
}

async fn admin_only(call: Call<Admin>) -> Answer {
    Ok(Reply::new(call.arrived, 64).finish(StatusCode::OK))
}

async fn pause(TopicCall { call, .. }: TopicCall<Admin>) -> Answer {
    Ok(Reply::new(call.arrived, 64).finish(StatusCode::OK))
}

fn table(api_keys: &str, max_body_bytes: usize) -> Router {
    table_of(api_keys, ApiLimits { max_body_bytes, ..ApiLimits::default() })
}

fn table_of(api_keys: &str, limits: ApiLimits) -> Router {
    let keys = Arc::new(Keys::parse(api_keys).unwrap());
    let requests = RequestMetrics::default();
    let routes = Routes::new(&requests)
        .route("/v0/topics/{topic}", |at| at.post(echo))
        .route("/v0/topics/{topic}/pause", |at| at.post(pause))
        .route("/v0/admin", |at| at.get(admin_only));
    let budget = ByteBudget::new(limits.max_inflight_bytes);
    routes.finish().with_state(Gate { keys, limits, budget })
}

/// The answer's head, and its body; a failure must have the shape of C-ERR-01.
async fn answer(table: Router, request: Request<Body>) -> (Response<()>, Value) {
    let (parts, body) = table.oneshot(request).await.unwrap().into_parts();
    assert_eq!(parts.headers["content-type"], "application/json");
    let body: Value = serde_json::from_slice(&to_bytes(body, usize::MAX).await.unwrap()).unwrap();
    if !parts.status.is_success() {
        assert!(body["error"]["code"].is_string() && body["error"]["message"].is_string(), "{body}");
        assert_eq!(body.as_object().map(|body| body.len()), Some(1));
    }
    (Response::from_parts(parts, ()), body)
}

/// Status and code of a failure, or status and an empty code.
async fn verdict(table: Router, request: Request<Body>) -> (u16, String) {
    let (head, body) = answer(table, request).await;
    (head.status().as_u16(), body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

fn request(path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn what_is_not_in_the_table_has_the_body_of_an_error() {
    // C-CONV-15
    for path in ["/", "/v0", "/v0/topics/", "/v0/topics/a/", "/v0/topics/a/b", "/V0/topics/a", "//v0/admin"] {
        assert_eq!(verdict(table("", 10), request(path, &[], "")).await, (404, "not_found".into()), "{path}");
    }
    let wrong = Request::delete("/v0/topics/a").body(Body::empty()).unwrap();
    let (head, body) = answer(table("", 10), wrong).await;
    assert_eq!((head.status().as_u16(), &head.headers()["allow"]), (405, &"POST".parse().unwrap()));
    assert_eq!(body["error"]["code"], "method_not_allowed");
}

#[tokio::test]
async fn a_success_ends_in_its_performance() {
    // C-PERF-01, C-CONV-17
    let (head, body) = answer(table("", 10), request("/v0/topics/a", &[JSON], "{}")).await;
    assert_eq!((head.status().as_u16(), &body["topic"], &body["bytes"]), (200, &"a".into(), &2.into()));
    assert!(body["performance"]["server_total_ms"].is_number());
    assert_eq!(body["performance"]["records_scanned"], 1);
}

#[tokio::test]
async fn checks_come_in_their_order() {
    // C-ERR-05, C-AUTH-12: each request is wrong in all that comes later, too.
    let check = async |headers: &[(&str, &str)], path: &str, body: &'static str| {
        let (status, code) = verdict(table("w:w:a,r:r,all", 4), request(path, headers, body)).await;
        format!("{status} {code}")
    };
    let bearer = |key| ("authorization", key);
    assert_eq!(check(&[("content-length", "5")], "/v0/topics/-", "12345").await, "413 payload_too_large");
    assert_eq!(check(&[], "/v0/topics/-", "1234").await, "401 unauthorized");
    assert_eq!(check(&[bearer("Bearer no")], "/v0/topics/-", "1234").await, "401 unauthorized");
    assert_eq!(check(&[bearer("Bearer r")], "/v0/topics/-", "1234").await, "403 forbidden");
    assert_eq!(check(&[bearer("Bearer w")], "/v0/topics/b", "1234").await, "403 forbidden");
    assert_eq!(check(&[bearer("Bearer all")], "/v0/topics/-", "1234").await, "400 invalid_request");
    assert_eq!(check(&[bearer("Bearer w")], "/v0/topics/a", "1234").await, "415 unsupported_media_type");
    assert_eq!(check(&[bearer("Bearer w"), JSON], "/v0/topics/a", "1234").await, "200 ");
    let admin = Request::get("/v0/admin").header("authorization", "Bearer w").body(Body::empty()).unwrap();
    assert_eq!(verdict(table("w:w", 4), admin).await, (403, "forbidden".into()));
}

#[tokio::test]
async fn the_header_has_a_scheme_and_a_key() {
    // C-AUTH-01
    for (value, status) in [
        ("Bearer k", 200),
        ("bearer  k ", 200),
        ("k", 401),
        ("Basic k", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearerk", 401),
        ("Bearer K", 401),
    ] {
        let request = request("/v0/topics/a", &[("authorization", value)], "");
        assert_eq!(verdict(table("k", 10), request).await.0, status, "{value:?}");
    }
    let not_text = Request::post("/v0/topics/a").header("authorization", &b"Bearer \xff"[..]);
    let not_text = not_text.body(Body::empty()).unwrap();
    assert_eq!(verdict(table("k", 10), not_text).await.0, 401);
}

#[tokio::test]
async fn a_name_is_decoded_once() {
    // C-CONV-16, C-NAME-01
    let (_, body) = answer(table("", 10), request("/v0/topics/a%3Ab%2d", &[], "")).await;
    assert_eq!(body["topic"], "a:b-");
    for path in ["a%253Ab", "a%2Fb", "%2e", "%ff", "%00", "%zz", "a%20b", "a+b", "a%C3%A9"] {
        let request = request(&format!("/v0/topics/{path}"), &[], "");
        assert_eq!(verdict(table("", 10), request).await, (400, "invalid_request".into()), "{path}");
    }
    // A name that is not text is under no prefix.
    let request = request("/v0/topics/%ff", &[("authorization", "Bearer k")], "");
    assert_eq!(verdict(table("k:w:a", 10), request).await.0, 403);
}

#[tokio::test]
async fn a_body_needs_its_type_and_no_body_needs_none() {
    // C-CONV-04, C-CONV-05
    for (value, status) in [
        ("application/json", 200),
        ("Application/JSON ; charset=utf-8", 200),
        ("text/json", 415),
        ("application/jsonp", 415),
        ("", 415),
    ] {
        let with_type = request("/v0/topics/a", &[("content-type", value)], "{}");
        assert_eq!(verdict(table("", 10), with_type).await.0, status, "{value:?}");
    }
    assert_eq!(verdict(table("", 10), request("/v0/topics/a", &[], "{}")).await.0, 415);
    assert_eq!(verdict(table("", 10), request("/v0/topics/a", &[], "")).await.0, 200);
}

/// A body that comes in pieces, without its length, and counts what is taken of it.
fn pieces(pieces: &[usize], taken: &Arc<AtomicUsize>) -> Body {
    let (pieces, taken) = (pieces.to_vec(), taken.clone());
    Body::from_stream(futures_util::stream::iter(pieces.into_iter().map(move |bytes| {
        taken.fetch_add(bytes, Ordering::Relaxed);
        Ok::<_, Infallible>(vec![b'1'; bytes])
    })))
}

#[tokio::test]
async fn the_limit_of_a_body_holds_while_it_is_read() {
    // C-CONV-11
    for (sizes, status) in [
        (&[10][..], 200),
        (&[4, 0, 3, 3], 200),
        (&[11], 413),
        (&[4, 3, 4], 413),
        (&[10, 0], 200),
        (&[10, 1], 413),
        (&[], 200),
    ] {
        let body = pieces(sizes, &Arc::default());
        let (head, body) = answer(table("", 10), request("/v0/topics/a", &[JSON], body)).await;
        assert_eq!(head.status().as_u16(), status, "{sizes:?}");
        if status == 200 {
            assert_eq!(body["bytes"], sizes.iter().sum::<usize>());
        }
    }
    let body = pieces(&[1 << 20, 1 << 20], &Arc::default());
    assert_eq!(verdict(table("", 0), request("/v0/topics/a", &[JSON], body)).await.0, 200);
}

/// Pieces that come after these pauses, in seconds, and then no more for ever.
fn slow(pieces: impl Iterator<Item = (usize, u64)> + Send + 'static) -> Body {
    let pieces = futures_util::stream::iter(pieces).then(|(bytes, pause_s)| async move {
        if pause_s > 0 {
            tokio::time::sleep(Duration::from_secs(pause_s)).await;
        }
        Ok::<_, Infallible>(vec![b'1'; bytes])
    });
    Body::from_stream(pieces.chain(futures_util::stream::pending()))
}

#[tokio::test(start_paused = true)]
async fn what_has_come_of_a_body_buys_it_no_time_to_say_nothing() {
    // C-LIMIT-16
    let ends_after = async |body: Body| {
        let start = Instant::now();
        let verdict = verdict(table("", 0), request("/v0/topics/a", &[JSON], body)).await;
        assert_eq!(verdict, (400, "invalid_request".into()));
        start.elapsed().as_secs()
    };
    assert_eq!(
        ends_after(slow([(50 << 20, 0)].into_iter())).await,
        20,
        "the rest of one stretch, and another"
    );
    // As slowly as a stretch allows: not for an hour.
    let steady = (0..10_000).map(|_| (20 << 10, 1));
    let ended_after = ends_after(slow(steady)).await;
    assert!((60..70).contains(&ended_after), "{ended_after}");
    // Quick enough, and large: it may take its time.
    let large = (0..300).map(|_| (512 << 10, 1));
    let ended_after = ends_after(slow(large)).await;
    assert!((300..340).contains(&ended_after), "{ended_after}");
}

#[tokio::test]
async fn only_records_may_be_large() {
    // C-LIMIT-05, C-LIMIT-16
    let large = |path| request(path, &[JSON], vec![b' '; (1 << 20) + 1]);
    assert_eq!(verdict(table("", 0), large("/v0/topics/a")).await.0, 200);
    assert_eq!(verdict(table("", 0), large("/v0/topics/a/pause")).await, (413, "payload_too_large".into()));
    let largest = request("/v0/topics/a/pause", &[JSON], vec![b' '; 1 << 20]);
    assert_eq!(verdict(table("", 0), largest).await.0, 200);
}

#[tokio::test]
async fn a_body_that_is_not_read_needs_its_type_too() {
    // C-CONV-04
    let path = "/v0/topics/a/pause";
    let plain = request(path, &[("content-type", "text/plain")], "{}");
    assert_eq!(verdict(table("", 0), plain).await, (415, "unsupported_media_type".into()));
    assert_eq!(verdict(table("", 0), request(path, &[], "")).await.0, 200);
}

#[tokio::test]
async fn bodies_of_all_take_so_many_bytes_and_no_more() {
    // C-LIMIT-10, C-LIMIT-12, C-LIMIT-16
    let table = table_of("a,b", ApiLimits { max_inflight_bytes: 1000, ..ApiLimits::default() });
    let write = |key: &str, body: Body| {
        request("/v0/topics/a", &[JSON, ("authorization", &format!("Bearer {key}"))], body)
    };
    let mut held = table.clone().oneshot(write("a", slow([(800, 0)].into_iter())));
    // Until it waits for more.
    assert!(futures_util::poll!(&mut held).is_pending());
    let (head, body) = answer(table.clone(), write("b", vec![b'1'; 201].into())).await;
    assert_eq!((head.status().as_u16(), &head.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    assert_eq!(body["error"]["detail"], json!({ "limit": "max_inflight_bytes", "max": 1000 }));
    assert_eq!(verdict(table.clone(), write("b", vec![b'1'; 200].into())).await.0, 200);
    let (_, body) = answer(table.clone(), write("a", "1".into())).await;
    assert_eq!(body["error"]["detail"], json!({ "limit": "max_inflight_bytes", "max": 250 }));
    drop(held);
    assert_eq!(verdict(table, write("b", vec![b'1'; 1000].into())).await.0, 200);
}
