//! What every request passes on its way in, and every answer on its way out, whatever its handler did: a panic
//! becomes an error like any other, a web page learns that it may read it, and it is packed if the client asks for that.
//!
//! The same could be layers around the router. They would box every request and every body once more
//! each, for things that most requests do not ask for; here that costs a look at the headers.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::Body as RawBody;
use tower_service::Service;

use super::cors::Cors;
use super::edge_metrics::EdgeMetrics;
use super::gzip;
use super::problem::internal;
use super::request_metrics::RouteMetrics;
use super::web_guard::{ForeignOrigin, WebGuard};
use crate::limits::MIN_GZIP_BYTES;

/// The router and what goes around it.
pub struct Envelope {
    router: Router,
    cors: Cors,
    guard: WebGuard,
    metrics: Arc<EdgeMetrics>,
    /// Counts what comes to no handler.
    unrouted: Arc<RouteMetrics>,
}

impl Envelope {
    pub fn new(router: Router, cors: Cors, guard: WebGuard, metrics: Arc<EdgeMetrics>) -> Self {
        let unrouted = metrics.requests.other();
        Envelope { router, cors, guard, metrics, unrouted }
    }

    pub fn metrics(&self) -> &Arc<EdgeMetrics> {
        &self.metrics
    }

    /// Answers one request. Never fails and never panics.
    pub async fn answer<B>(&self, mut request: axum::http::Request<B>) -> Response
    where
        B: RawBody<Data = Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        if let Err(error) = self.guard.check_host(&request) {
            return self.unrouted(error.into_response());
        }
        let headers = request.headers();
        let allowed_origin = self.cors.allowed(headers);
        let wants_gzip = gzip::is_accepted(headers);
        let is_preflight = allowed_origin.is_some() && Cors::is_preflight(request.method(), headers);
        let varies = allowed_origin.is_some() || request.method().is_safe();
        let mut response = if is_preflight {
            let mut response = StatusCode::NO_CONTENT.into_response();
            Cors::put_preflight(headers, response.headers_mut());
            self.unrouted(response)
        } else {
            if self.guard.is_foreign(headers, allowed_origin.is_some()) {
                request.extensions_mut().insert(ForeignOrigin);
            }
            self.routed(request.map(Body::new)).await
        };
        if varies {
            Cors::put_vary(response.headers_mut());
        }
        if let Some(allowed) = allowed_origin {
            Cors::put_allowed(allowed, response.headers_mut());
        }
        if wants_gzip { packed(response).await } else { response }
    }

    /// Counts an answer that is made here at once.
    fn unrouted(&self, response: Response) -> Response {
        self.unrouted.answered(response.status(), Duration::ZERO);
        response
    }

    async fn routed(&self, request: Request) -> Response {
        let mut router = self.router.clone();
        // Nothing of the request is looked at again, so nothing half done can be seen.
        match AssertUnwindSafe(async { router.call(request).await }).catch_unwind().await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(panic) => internal(format_args!("a handler panicked: {}", words_of(&*panic))).into_response(),
        }
    }
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(words), _) => words,
        (_, Some(words)) => words,
        _ => "without words",
    }
}

/// The response with its body packed, if that is whole, and large enough to be worth it.
async fn packed(response: Response) -> Response {
    let is_whole = response.body().size_hint().exact().is_some_and(|bytes| bytes >= MIN_GZIP_BYTES as u64);
    if !is_whole || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let packed = match to_bytes(body, usize::MAX).await {
        Ok(plain) => gzip::pack(plain).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match packed {
        Ok(packed) => {
            parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts.headers.append(VARY, HeaderValue::from_static("accept-encoding"));
            parts.headers.remove(CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(packed))
        }
        Err(error) => internal(format_args!("an answer could not be packed: {error}")).into_response(),
    }
}
