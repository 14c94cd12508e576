//! The side of a mirror that is read: a pull from another cluster, answered.

use bytes::Bytes;

use super::wire::{PullRequest, encode_answer};
use crate::engine::{Engine, PulledTopic};
use crate::error::{Code, Error};
use crate::state::Instance;

/// Waits for what the pull is about, and writes it down. Errors: `topic_not_found`, `no_leader`, `internal` on
/// damage.
pub async fn answer_pull(engine: &Engine, request: &PullRequest) -> Result<Bytes, Error> {
    let unknown = || Error::new(Code::NoLeader, "the cluster has not been led since it was founded");
    let cluster = engine.own_cluster().ok_or_else(unknown)?;
    let topics = match request.puller.id == cluster.id {
        // It finds out who it has asked.
        true => Vec::new(),
        false => engine.pull(&request.query).await?,
    };
    let own = |topic: &PulledTopic| Instance::of_topic(&cluster, topic.topic.clone(), topic.epoch);
    encode_answer(&cluster, &topics, own).map_err(|malformed| {
        tracing::error!("a pull failed: {malformed}");
        Error::new(Code::Internal, format!("this member cannot read what it stored: {malformed}"))
    })
}
