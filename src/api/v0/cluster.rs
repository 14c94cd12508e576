//! `GET /v0/cluster`: who is in it and how far along (contract section 22).

use axum::extract::State;
use axum::http::StatusCode;

use crate::api::Api;
use crate::api::call::{Admin, Call};
use crate::api::json::{JsonWriter, ToJson};
use crate::api::reply::{Answer, Reply};
use crate::auth::Scope;
use crate::engine::{HeldView, MemberView};

pub async fn get(State(api): State<Api>, call: Call<Admin>) -> Answer {
    call.caller.check_unrestricted(Scope::Admin)?;
    let view = api.engine.cluster(call.query().consistency()?).await?;
    let mut reply = Reply::new(call.arrived, 1024);
    let json = &mut reply.json;
    json.field("cluster", view.cluster.as_str());
    json.field("leader", view.leader.as_deref());
    json.field("term", view.term);
    json.field("commit", view.commit);
    json.array_field("members", &view.members);
    // About the answering member: with these, comparing states is asking each member once.
    json.field("member", view.member.as_str());
    json.field("applied", view.applied);
    json.field("digest", format!("{:016x}", view.digest).as_str());
    json.object_field("log", |json| {
        json.field("purged", view.log.purged);
        json.field("saved", view.log.saved);
        match &view.log.held {
            Some(held) => json.object_field("held_by", |json| held_by(json, held)),
            None => json.field("held_by", None::<&str>),
        }
    });
    Ok(reply.finish(StatusCode::OK))
}

fn held_by(json: &mut JsonWriter, held: &HeldView) {
    json.field("reason", held.reason);
    json.field("member", held.member.as_deref());
    json.field("index", held.index);
    json.field("entries", held.entries);
    json.field("for_ms", held.for_ms);
}

impl ToJson for MemberView {
    fn write(&self, json: &mut JsonWriter) {
        json.object(|json| {
            json.field("id", self.id.as_str());
            json.field("address", self.address.as_str());
            json.field("role", self.role);
            json.field("state", self.state);
            json.field("applied", self.applied);
            json.field("lag", self.lag);
            json.field("version", self.version.as_str());
            if let Some(progress) = &self.installing {
                json.object_field("snapshot", |json| {
                    json.field("entries", progress.entries);
                    json.field("entries_total", progress.entries_total);
                    json.field("bytes", progress.bytes);
                });
            }
            json.field_if_some("snapshot_error", self.install_error.as_deref());
        });
    }
}
