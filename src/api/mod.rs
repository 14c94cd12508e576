//! Layer 6: the edge, where HTTP becomes verbs of the engine and outcomes become JSON.
//!
//! A handler is short because everything that all requests share lies beside it: `call` checks and reads
//! a request, `shape` and `query` say what bodies and parameters may look like, `reply` and `problem`
//! write the two kinds of answers. What a request *means* is decided below, in the engine.

mod byte_budget;
mod call;
mod connections;
mod cors;
mod cursor;
mod envelope;
mod event_id;
mod exchange;
mod gzip;
mod json;
mod name;
mod openapi;
mod openapi_schemas;
mod problem;
mod query;
mod raw_path_io;
mod refusal_io;
mod reply;
mod serve;
mod shape;
mod sse;
mod v0;
mod web_guard;
mod web_socket;
mod write_progress;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::FromRef;
use axum::http::header::ALLOW;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::auth::{Caller, Keys, Place};
use crate::budget::{Budget, Charge};
use crate::engine::{Engine, Hold};
use crate::error::{Code, Error};
use crate::limits::{BODY_GRACE_MS, MAX_WATCH_MEMORY_BYTES, MAX_WATCH_MEMORY_BYTES_PER_KEY};
use byte_budget::ByteBudget;
use call::Gate;
pub use cors::Cors;
pub use envelope::Envelope;
pub use name::is_topic_name;
pub use serve::{ConnectionLimits, serve};
pub use web_guard::WebGuard;

/// Settings of the edge.
#[derive(Debug, Clone, Copy)]
pub struct ApiLimits {
    /// Largest body; 0 means unlimited.
    pub max_body_bytes: usize,
    /// Bytes of all bodies and messages that are held at once; 0 means unlimited.
    pub max_inflight_bytes: usize,
    /// Whether health and readiness need a key too (C-AUTH-19).
    pub probe_auth: bool,
    /// Requests of one key that may be under way; 0 means unlimited.
    pub max_inflight_per_key: usize,
    /// Streams of one key that may be open; 0 means unlimited.
    pub max_streams_per_key: usize,
    /// Watch sessions of one key; 0 means unlimited.
    pub max_watch_sessions_per_key: usize,
    /// Time that any body may take to come.
    pub body_grace: Duration,
}

impl Default for ApiLimits {
    fn default() -> Self {
        ApiLimits {
            max_body_bytes: 0,
            max_inflight_bytes: 0,
            probe_auth: false,
            max_inflight_per_key: 0,
            max_streams_per_key: 0,
            max_watch_sessions_per_key: 0,
            body_grace: Duration::from_millis(BODY_GRACE_MS),
        }
    }
}

impl ApiLimits {
    /// Largest body in bytes.
    pub fn max_body_bytes(&self) -> usize {
        if self.max_body_bytes == 0 { usize::MAX } else { self.max_body_bytes }
    }
}

/// What the handlers work with.
#[derive(Clone)]
pub struct Api {
    pub engine: Engine,
    pub keys: Arc<Keys>,
    pub limits: ApiLimits,
    budget: Arc<ByteBudget>,
    /// What watch sessions and WebSockets hold.
    watch_memory: Arc<Budget>,
}

impl Api {
    pub fn new(engine: Engine, keys: Arc<Keys>, limits: ApiLimits) -> Self {
        let budget = ByteBudget::new(limits.max_inflight_bytes);
        Api { engine, keys, limits, budget, watch_memory: Budget::new(MAX_WATCH_MEMORY_BYTES) }
    }

    /// What a watch session of `bytes` takes up. Errors: `throttled`.
    fn hold_session(&self, caller: &Caller, bytes: usize) -> Result<Hold, Error> {
        let place = caller.enter_watch_session(self.limits.max_watch_sessions_per_key)?;
        Ok(Box::new((place, self.hold_watch_bytes(caller, bytes)?)))
    }

    /// Memory that `caller` has kept here between requests. Errors: `throttled`.
    fn hold_watch_bytes(&self, caller: &Caller, bytes: usize) -> Result<(Place, Charge), Error> {
        let place = caller.hold_watch_bytes(bytes, MAX_WATCH_MEMORY_BYTES_PER_KEY)?;
        let charge = self.watch_memory.charge(bytes);
        let max_bytes = self.watch_memory.max_bytes() as u64;
        Ok((place, charge.ok_or_else(|| Error::over_limit("watch_memory_bytes", max_bytes))?))
    }
}

impl FromRef<Api> for Gate {
    fn from_ref(api: &Api) -> Self {
        Gate { keys: api.keys.clone(), limits: api.limits, budget: api.budget.clone() }
    }
}

/// The whole HTTP surface of a member.
pub fn router(api: Api) -> Router {
    with_refusals(v0_routes().merge(cluster_routes())).with_state(api)
}

/// What clusters ask each other, which is in no document (C-MIRROR-17).
fn cluster_routes() -> Router<Api> {
    Router::new().route("/v0/mirror/pull", post(v0::mirror::pull))
}

fn v0_routes() -> Router<Api> {
    Router::new()
        .route("/v0/topics", get(v0::topic_list::list))
        .route(
            "/v0/topics/{topic}",
            post(v0::append::append).put(v0::topic::put).get(v0::topic::get).delete(v0::topic::delete),
        )
        .route("/v0/routers", get(v0::router_list::list))
        .route("/v0/routers/{router}", get(v0::router::get).put(v0::router::put).delete(v0::router::delete))
        .route("/v0/routers/{router}/pause", post(v0::router::pause))
        .route("/v0/routers/{router}/resume", post(v0::router::resume))
        .route("/v0/routers/{router}/skip", post(v0::router::skip))
        .route("/v0/append", post(v0::append_many::append_many))
        .route("/v0/topics/{topic}/origins", get(v0::origins::get))
        .route("/v0/topics/{topic}/diff", post(v0::diff::diff))
        .route("/v0/watch", post(v0::watch::create))
        .route("/v0/watch/{wid}", get(v0::watch::open).head(not_by_head))
        .route("/v0/ws", get(v0::ws::open).head(not_by_head))
        .route("/v0/topics/{topic}/delete", post(v0::delete::delete))
        .route("/v0/cluster", get(v0::cluster::get))
        .route("/v0/openapi.json", get(openapi::get))
        .route("/v0/metrics", get(v0::metrics::get))
        .route("/v0/health", get(v0::probe::health))
        .route("/healthz", get(v0::probe::health))
        .route("/v0/ready", get(v0::probe::ready))
        .route("/readyz", get(v0::probe::ready))
}

/// Without a route of its own HEAD would open a stream in order to leave its body out (C-CONV-20).
async fn not_by_head() -> Response {
    let refused = Error::new(Code::MethodNotAllowed, "a stream has no HEAD").into_response();
    ([(ALLOW, "GET")], refused).into_response()
}

/// Adds the answers to what is not in the table (C-CONV-15). axum adds the `Allow` header itself.
fn with_refusals<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes
        .fallback(async || Error::new(Code::NotFound, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            Error::new(Code::MethodNotAllowed, "this path does not take this method")
        })
}

#[cfg(test)]
mod connection_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire_tests;
