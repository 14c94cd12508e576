//! The side of a mirror that is read: a pull from another cluster, answered.

use std::sync::Arc;

use bytes::Bytes;

use super::wire::{PullRequest, encode_answer};
use crate::engine::{Engine, PulledTopic};
use crate::error::{Code, Error};
use crate::state::{Cluster, Instance};

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
    encode_answer(&cluster, &topics, |topic| own_instance(&cluster, topic)).map_err(|malformed| {
        tracing::error!("a pull failed: {malformed}");
        Error::new(Code::Internal, format!("this member cannot read what it stored: {malformed}"))
    })
}

fn own_instance(cluster: &Cluster, topic: &PulledTopic) -> Arc<Instance> {
    Arc::new(Instance {
        cluster_id: cluster.id,
        cluster: cluster.name.as_str().into(),
        topic: topic.topic.clone(),
        epoch: topic.epoch,
    })
}
