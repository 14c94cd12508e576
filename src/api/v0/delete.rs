//! `POST /v0/topics/{topic}/delete`: remove records (contract section 12).

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::api::Api;
use crate::api::call::{Call, Delete, TopicCall};
use crate::api::change::{CHANGES, TAG_DELETES};
use crate::api::reply::{Answer, Reply};
use crate::api::shape::parse_object;
use crate::error::Error;
use crate::filter::TagMatch;

#[derive(Debug, Deserialize)]
struct DeleteBody<'a> {
    #[serde(default)]
    before_seq: Option<u64>,
    #[serde(borrow, default, rename = "match")]
    tags: Option<&'a RawValue>,
}

pub fn parse_delete(json: &[u8]) -> Result<(Option<u64>, Option<TagMatch>), Error> {
    let body: DeleteBody<'_> = parse_object(json)?;
    let tags = body.tags.map(|json| TagMatch::parse(json.get())).transpose()?;
    if body.before_seq.is_none() && tags.is_none() {
        return Err(Error::invalid("`before_seq` or `match` must say what to delete"));
    }
    Ok((body.before_seq, tags))
}

pub async fn delete(State(api): State<Api>, call: TopicCall<Delete>) -> Answer {
    let TopicCall { mut call, topic } = call;
    let (before_seq, tags) = parse_delete(call.json()?)?;
    call.forget_body();
    let turns = if tags.is_some() { &TAG_DELETES } else { &CHANGES };
    let caller = call.caller.clone();
    turns.carry_through(api, caller, |api| delete_records(api, call, topic, before_seq, tags)).await
}

async fn delete_records(
    api: Api,
    call: Call<Delete>,
    topic: String,
    before_seq: Option<u64>,
    tags: Option<TagMatch>,
) -> Answer {
    api.engine.admit()?;
    let deleted = api.engine.delete_records(&topic, before_seq, tags).await;
    let changes = &api.metrics.changes;
    changes.tell_if_unknown(&call.caller, &deleted, format_args!("delete records of topic {topic:?}"));
    let deleted = deleted?;
    if deleted.deleted > 0 {
        let records = deleted.deleted;
        call.tell(&changes.record_deletes, format_args!("deleted {records} records of topic {topic:?}"));
    }
    let mut reply = Reply::new(call.arrived, 256);
    reply.json.field("topic", topic.as_str());
    reply.json.field("deleted", deleted.deleted);
    reply.json.field("earliest_seq", deleted.earliest_seq);
    reply.json.field("head_seq", deleted.head_seq);
    reply.json.field("count", deleted.count);
    reply.json.field("bytes", deleted.bytes);
    Ok(reply.finish(StatusCode::OK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delete_says_what_it_means() {
        // C-DEL-04, C-DEL-11
        let parse = |json: &str| parse_delete(json.as_bytes());
        let glob = TagMatch::Glob("m:".to_owned());
        assert_eq!(parse(r#"{"before_seq":7}"#), Ok((Some(7), None)));
        assert_eq!(parse(r#"{"match":["tag","Glob","m:*"],"x":1}"#), Ok((None, Some(glob.clone()))));
        assert_eq!(parse(r#"{"match":"m:*","before_seq":0}"#), Ok((Some(0), Some(glob))));
        for bad in [
            "{}",
            "[]",
            "",
            r#"{"before_seq":-1}"#,
            r#"{"before_seq":1.5}"#,
            r#"{"before_seq":"1"}"#,
            r#"{"match":1}"#,
            r#"{"match":["tag","In",["x"]]}"#,
            r#"{"match":["node","Eq","x"]}"#,
            r#"{"match":null}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
