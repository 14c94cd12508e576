//! `GET /v0/routers`: the list (contract section 15.2).

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use super::router_config::guarantee_name;
use crate::api::Api;
use crate::api::call::{Call, Read};
use crate::api::cursor::{decode_cursor, encode_cursor};
use crate::api::json::{JsonWriter, ToJson};
use crate::api::reply::{Answer, Reply};
use crate::auth::Scope;
use crate::engine::RouterView;
use crate::state::{RouterQuery, Routers, SharedRouter};

pub async fn list(State(api): State<Api>, call: Call<Read>) -> Answer {
    let query = call.query();
    let (page_size, consistency) = (query.page_size()?, query.consistency()?);
    let prefix = query.text("prefix")?.unwrap_or_default();
    let (source, dest) = (query.text("source")?, query.text("dest")?);
    let after = query.text("cursor")?.map(|cursor| decode_cursor(&cursor)).transpose()?;
    let visible = call.caller.visible_prefixes(Scope::Read, &prefix);
    api.engine.admit()?;
    api.engine.fence(consistency).await?;
    let wanted =
        RouterQuery { prefix: "", source: source.as_deref(), dest: dest.as_deref(), after: after.as_deref() };
    let (routers, has_more) = page(api.engine.routers(), &visible, wanted, page_size);
    let views = api.engine.show_routers(&routers, consistency).await;
    let mut reply = Reply::new(call.arrived, 128 + 256 * views.len());
    reply.json.array_field("routers", &views);
    let last = routers.last().filter(|_| has_more);
    reply.json.field_if_some("next_cursor", last.map(|router| encode_cursor(&router.name)).as_deref());
    call.answer_counted(reply.finish(StatusCode::OK))
}

/// Up to `page_size` routers under the prefixes, which are disjoint and in order, and whether there are more.
fn page(
    routers: &Routers,
    prefixes: &[String],
    wanted: RouterQuery<'_>,
    page_size: usize,
) -> (Vec<Arc<SharedRouter>>, bool) {
    let mut found: Vec<Arc<SharedRouter>> = Vec::new();
    for prefix in prefixes {
        let missing = page_size + 1 - found.len();
        found.extend(routers.page(RouterQuery { prefix, ..wanted }, missing));
        if found.len() > page_size {
            found.truncate(page_size);
            return (found, true);
        }
    }
    (found, false)
}

impl ToJson for RouterView {
    fn write(&self, json: &mut JsonWriter) {
        json.object(|json| {
            json.field("router", &*self.name);
            json.field("source", self.config.source.as_str());
            json.field("dest", self.config.dest.as_str());
            json.field("guarantee", guarantee_name(self.config.guarantee));
            json.field("forwarded_total", self.forwarded_total);
            json.field("state", self.state.name());
            json.field("lag", self.lag);
            json.field("remote", !self.config.is_local());
        });
    }
}
