//! `GET /v0/topics/{topic}/origins`: where a topic's records were first written, and which of them it has taken.
//! Two clusters that mirror a topic hold the same of an origin if they show the same digest.

use axum::extract::State;
use axum::http::StatusCode;

use crate::api::Api;
use crate::api::call::{Read, TopicCall};
use crate::api::json::{JsonWriter, ToJson};
use crate::api::reply::{Answer, Reply};
use crate::engine::OriginView;

/// Ranges of lost seqs that are listed for one origin.
const MAX_LISTED_RANGES: usize = 100;

pub async fn get(State(api): State<Api>, TopicCall { call, topic }: TopicCall<Read>) -> Answer {
    let consistency = call.query().consistency()?;
    api.engine.admit()?;
    let (epoch, origins) = api.engine.origins(&topic, consistency).await?;
    let mut reply = Reply::new(call.arrived, 256 + 256 * origins.len());
    reply.json.field("topic", topic.as_str());
    reply.json.field("epoch", epoch);
    reply.json.array_field("origins", origins.iter());
    call.answer_counted(reply.finish(StatusCode::OK))
}

impl ToJson for &OriginView {
    fn write(&self, json: &mut JsonWriter) {
        let lost_count: u64 = self.lost.iter().map(|lost| lost.end() - lost.start() + 1).sum();
        json.object(|json| {
            json.field("cluster", &*self.instance.cluster);
            json.field("cluster_id", format!("{:032x}", self.instance.cluster_id).as_str());
            json.field("topic", &*self.instance.topic);
            json.field("epoch", self.instance.epoch);
            json.field("own", self.is_own);
            json.field("records", self.records);
            json.field("last_seq", self.last_seq);
            json.field("digest", format!("{:032x}", u128::from_be_bytes(self.digest)).as_str());
            json.field("lost", lost_count);
            json.array_field("lost_ranges", self.lost.iter().take(MAX_LISTED_RANGES).map(Range));
        });
    }
}

struct Range<'a>(&'a std::ops::RangeInclusive<u64>);

impl ToJson for Range<'_> {
    fn write(&self, json: &mut JsonWriter) {
        json.object(|json| {
            json.field("from", *self.0.start());
            json.field("to", *self.0.end());
        });
    }
}
