//! Layer 6: the edge, where HTTP becomes verbs of the engine and outcomes become JSON.
//!
//! A handler is short because everything that all requests share lies beside it: `call` checks and reads
//! a request, `shape` and `query` say what bodies and parameters may look like, `reply` and `problem`
//! write the two kinds of answers. What a request *means* is decided below, in the engine.

mod byte_budget;
mod call;
mod change;
mod connections;
mod cors;
mod cursor;
mod edge_metrics;
mod envelope;
mod event_id;
mod exchange;
#[doc(hidden)]
pub mod fuzzing;
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
mod request_metrics;
mod routes;
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

use crate::auth::{Caller, Keys, Place};
use crate::budget::{Budget, Charge};
use crate::engine::{Engine, FrameRoom, Hold};
use crate::error::{Code, Error};
use crate::limits::{
    BODY_GRACE_MS, MAX_STREAM_FRAMES_BYTES, MAX_WATCH_MEMORY_BYTES, MAX_WATCH_MEMORY_BYTES_PER_KEY,
};
use byte_budget::{ByteBudget, Share};
use call::Gate;
pub use cors::Cors;
use edge_metrics::EdgeMetrics;
pub use envelope::Envelope;
pub use name::is_topic_name;
use routes::Routes;
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
    /// Frames of streams that are not written yet.
    frames: Arc<ByteBudget>,
    metrics: Arc<EdgeMetrics>,
}

impl Api {
    pub fn new(engine: Engine, keys: Arc<Keys>, limits: ApiLimits) -> Self {
        let budget = ByteBudget::new(limits.max_inflight_bytes);
        let metrics = EdgeMetrics::new(&keys);
        let watch_memory = Budget::new(MAX_WATCH_MEMORY_BYTES);
        let frames = ByteBudget::of_frames(MAX_STREAM_FRAMES_BYTES);
        Api { engine, keys, limits, budget, watch_memory, frames, metrics }
    }

    /// What frames of the streams of `caller` may hold.
    fn frame_room(&self, caller: &Caller) -> Arc<dyn FrameRoom> {
        Arc::new(Share::new(&self.frames, caller))
    }

    /// What is counted of its requests and connections.
    pub fn metrics(&self) -> Arc<EdgeMetrics> {
        self.metrics.clone()
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
    let metrics = api.metrics();
    let routes = v0_routes(Routes::new(&metrics.requests));
    cluster_routes(routes).finish().with_state(api)
}

/// What clusters ask each other, which is in no document (C-MIRROR-17).
fn cluster_routes(routes: Routes<'_, Api>) -> Routes<'_, Api> {
    routes.route("/v0/mirror/pull", |at| at.post(v0::mirror::pull))
}

fn v0_routes(routes: Routes<'_, Api>) -> Routes<'_, Api> {
    routes
        .route("/v0/topics", |at| at.get(v0::topic_list::list))
        .route("/v0/topics/{topic}", |at| {
            at.post(v0::append::append).put(v0::topic::put).get(v0::topic::get).delete(v0::topic::delete)
        })
        .route("/v0/routers", |at| at.get(v0::router_list::list))
        .route("/v0/routers/{router}", |at| {
            at.get(v0::router::get).put(v0::router::put).delete(v0::router::delete)
        })
        .route("/v0/routers/{router}/pause", |at| at.post(v0::router::pause))
        .route("/v0/routers/{router}/resume", |at| at.post(v0::router::resume))
        .route("/v0/routers/{router}/skip", |at| at.post(v0::router::skip))
        .route("/v0/append", |at| at.post(v0::append_many::append_many))
        .route("/v0/topics/{topic}/origins", |at| at.get(v0::origins::get))
        .route("/v0/topics/{topic}/diff", |at| at.post(v0::diff::diff))
        .route("/v0/watch", |at| at.post(v0::watch::create))
        .route("/v0/watch/{wid}", |at| at.get(v0::watch::open).head(not_by_head))
        .route("/v0/ws", |at| at.get(v0::ws::open).head(not_by_head))
        .route("/v0/topics/{topic}/delete", |at| at.post(v0::delete::delete))
        .route("/v0/cluster", |at| at.get(v0::cluster::get))
        .route("/v0/openapi.json", |at| at.get(openapi::get))
        .route("/v0/metrics", |at| at.get(v0::metrics::get))
        .route("/v0/health", |at| at.get(v0::probe::health))
        .route("/healthz", |at| at.get(v0::probe::health))
        .route("/v0/ready", |at| at.get(v0::probe::ready))
        .route("/readyz", |at| at.get(v0::probe::ready))
}

/// Without a route of its own HEAD would open a stream in order to leave its body out (C-CONV-20).
async fn not_by_head() -> Response {
    let refused = Error::new(Code::MethodNotAllowed, "a stream has no HEAD").into_response();
    ([(ALLOW, "GET")], refused).into_response()
}

#[cfg(test)]
mod connection_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire_tests;
