//! `GET /v0/topics`: the list (contract section 7.3).

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use crate::api::Api;
use crate::api::call::{Call, Read};
use crate::api::cursor::{decode_cursor, encode_cursor};
use crate::api::json::{JsonWriter, ToJson};
use crate::api::reply::{Answer, Reply};
use crate::auth::Scope;
use crate::state::{Catalog, Durability, SharedTopic, Topic};

pub async fn list(State(api): State<Api>, call: Call<Read>) -> Answer {
    let query = call.query();
    let (page_size, consistency) = (query.page_size()?, query.consistency()?);
    let prefix = query.text("prefix")?.unwrap_or_default();
    let after = query.text("cursor")?.map(|cursor| decode_cursor(&cursor)).transpose()?;
    let visible = call.caller.visible_prefixes(Scope::Read, &prefix);
    api.engine.admit()?;
    let fence = api.engine.fence(consistency).await?;
    let (topics, has_more) = page(api.engine.catalog(), &visible, after.as_deref(), page_size);
    api.engine.settle(fence, &topics).await?;
    if query.flag("touch", false) {
        topics.iter().for_each(|topic| api.engine.touch(topic));
    }
    let mut reply = Reply::new(call.arrived, 128 + 192 * topics.len());
    let entries = topics.iter().map(|topic| {
        let effective_priority = api.engine.priority_of(topic, &topic.read().config);
        Entry { topic, effective_priority }
    });
    reply.json.array_field("topics", entries);
    let last = topics.last().filter(|_| has_more);
    reply.json.field_if_some("next_cursor", last.map(|topic| encode_cursor(&topic.read().name)).as_deref());
    call.answer_counted(reply.finish(StatusCode::OK))
}

/// Up to `page_size` topics under the prefixes, which are disjoint and in order, and whether there are
/// more.
fn page(
    catalog: &Catalog,
    prefixes: &[String],
    after: Option<&str>,
    page_size: usize,
) -> (Vec<Arc<SharedTopic>>, bool) {
    let mut topics: Vec<Arc<SharedTopic>> = Vec::new();
    for prefix in prefixes {
        let missing = page_size + 1 - topics.len();
        topics.extend(catalog.page(prefix, after, missing));
        if topics.len() > page_size {
            topics.truncate(page_size);
            return (topics, true);
        }
    }
    (topics, false)
}

struct Entry<'a> {
    topic: &'a SharedTopic,
    effective_priority: i32,
}

impl ToJson for Entry<'_> {
    fn write(&self, json: &mut JsonWriter) {
        let topic: &Topic = &self.topic.read();
        json.object(|json| {
            json.field("topic", &*topic.name);
            json.field("head_seq", topic.head_seq);
            json.field("earliest_seq", topic.earliest_seq);
            json.field("count", topic.count);
            json.field("bytes", topic.bytes);
            json.field("durable", topic.config.durability == Durability::Fsync);
            json.field("effective_priority", self.effective_priority);
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::{Draft, Envelope, State, TopicConfig};
    use crate::storage::EntryId;

    fn state_with(names: &[String]) -> State {
        let mut state = State::default();
        let configs = names.iter().map(|name| Draft::put_topic(name, &TopicConfig::default()));
        for (index, draft) in (1..).zip(std::iter::once(Draft::open_session()).chain(configs)) {
            let envelope = Envelope { node_id: 1, session: 1, number: index, done_below: 0 };
            let entry = EntryId { term: 1, index };
            state.apply_command(entry, 1, &draft.seal(envelope)).unwrap();
        }
        state
    }

    fn names_of(topics: &[Arc<SharedTopic>]) -> Vec<String> {
        topics.iter().map(|topic| topic.read().name.to_string()).collect()
    }

    #[test]
    fn an_entry_looks_as_in_the_contract() {
        // Section 7.3
        let state = state_with(&["meter:daily".to_owned()]);
        let mut json = JsonWriter::with_capacity(0);
        let topic = state.catalog().get("meter:daily").unwrap();
        json.value(Entry { topic: &topic, effective_priority: 0 });
        assert_eq!(
            json.finish(),
            concat!(
                r#"{"topic":"meter:daily","head_seq":0,"earliest_seq":1,"count":0,"bytes":0,"#,
                r#""durable":false,"effective_priority":0}"#
            )
        );
    }

    proptest! {
        #[test]
        fn a_walk_gives_every_visible_name_once_and_in_order(
            names in prop::collection::btree_set("[ab][ab:]{0,3}", 0..20),
            allowed in prop::collection::btree_set("[ab][ab:]{0,1}", 1..4),
            prefix in "[ab]{0,2}",
            page_size in 1usize..5,
        ) {
            // C-PAGE-02, C-PAGE-03, C-PAGE-06, C-AUTH-15
            let allowed: Vec<String> = allowed.into_iter().collect();
            let keys = crate::auth::Keys::parse(&format!("k:r:{}", allowed.join("|"))).unwrap();
            let prefixes = keys.authenticate(Some("k")).unwrap().visible_prefixes(Scope::Read, &prefix);
            let names: Vec<String> = names.into_iter().collect();
            let state = state_with(&names);

            let (mut walked, mut after) = (Vec::new(), None);
            loop {
                let (topics, has_more) = page(state.catalog(), &prefixes, after.as_deref(), page_size);
                prop_assert!(topics.len() == page_size || !has_more);
                walked.extend(names_of(&topics));
                if !has_more {
                    break;
                }
                after = Some(decode_cursor(&encode_cursor(walked.last().unwrap())).unwrap());
            }
            let is_visible = |name: &&String| {
                name.starts_with(&prefix) && allowed.iter().any(|allowed| name.starts_with(allowed.as_str()))
            };
            prop_assert_eq!(walked, names.iter().filter(is_visible).cloned().collect::<Vec<_>>());
        }
    }
}
