//! Health and readiness of the answering member (contract section 21).
//!
//! Neither asks another member or waits for anything: a probe that hangs says less than one that fails.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde_json::json;
use tokio::time::Instant;

use crate::api::Api;
use crate::api::call::Gate;
use crate::api::reply::{Answer, Reply};
use crate::error::{Code, Error};
use crate::telemetry::version::VERSION;

pub async fn health(State(gate): State<Gate>, State(api): State<Api>, parts: Parts) -> Answer {
    let arrived = Instant::now();
    admit(&gate, &parts)?;
    let mut reply = Reply::new(arrived, 128);
    reply.json.field("status", "ok");
    reply.json.field("version", VERSION);
    reply.json.field("uptime_ms", api.engine.uptime_ms());
    Ok(reply.finish(StatusCode::OK))
}

pub async fn ready(State(gate): State<Gate>, State(api): State<Api>, parts: Parts) -> Answer {
    let arrived = Instant::now();
    admit(&gate, &parts)?;
    let readiness = api.engine.readiness();
    if readiness.is_draining {
        return Err(Error::new(Code::ShuttingDown, "this member is shutting down"));
    }
    if !readiness.is_ready {
        let detail = json!({
            "member": api.engine.member(),
            "leader": readiness.leader,
            "reason": readiness.reason,
            "replay_progress": readiness.replay_progress,
            "checkpoint_age_ms": readiness.checkpoint_age_ms,
        });
        return Err(Error::new(Code::NotReady, "this member is not ready to serve").with_detail(detail));
    }
    let mut reply = Reply::new(arrived, 192);
    reply.json.field("status", "ready");
    reply.json.field("wal_replay_complete", true);
    reply.json.field("topics", api.engine.catalog().len() as u64);
    reply.json.field("member", api.engine.member());
    reply.json.field("leader", readiness.leader.as_deref());
    reply.json.field("checkpoint_age_ms", readiness.checkpoint_age_ms);
    Ok(reply.finish(StatusCode::OK))
}

/// C-AUTH-19.
fn admit(gate: &Gate, parts: &Parts) -> Result<(), Error> {
    if gate.limits.probe_auth {
        gate.authenticate(parts)?;
    }
    Ok(())
}
