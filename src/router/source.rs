//! The side of a mirror that is read: a pull from another cluster, answered.

use std::sync::LazyLock;

use bytes::Bytes;

use super::wire::{AnswerWriter, PullRequest};
use crate::engine::{Engine, News, PullReply};
use crate::error::{Code, Error};
use crate::state::Instance;
use crate::telemetry::seldom::Seldom;

/// Bytes that are written before others get the thread.
const BYTES_PER_TURN: usize = 256 << 10;

/// Waits for what the pull is about, and writes it down. Errors: `topic_not_found`, `no_leader`, `internal` on
/// damage.
///
/// `count` is told about how long the answer will be before it is made, and may refuse it.
pub async fn answer_pull(
    engine: &Engine,
    request: &PullRequest,
    count: impl FnOnce(usize) -> Result<(), Error>,
) -> Result<Bytes, Error> {
    let unknown = || Error::new(Code::NoLeader, "the cluster has not been led since it was founded");
    let cluster = engine.own_cluster().ok_or_else(unknown)?;
    let reply = match request.puller.id == cluster.id {
        // It finds out who it has asked.
        true => PullReply { next_epoch: 0, news: News::Nothing, examined: 0, topics: Vec::new() },
        false => engine.pull(&request.query).await?,
    };
    count(reply.bytes())?;
    let mut writer = AnswerWriter::new(&reply);
    let mut yielded_at = 0;
    for topic in &reply.topics {
        let own = Instance::of_topic(&cluster, topic.topic.clone(), topic.epoch);
        writer.push(topic, &own).map_err(|malformed| {
            static LINES: LazyLock<Seldom> = LazyLock::new(|| Seldom::new(|line| tracing::error!("{line}")));
            LINES.tell(format_args!("a pull failed: {malformed}"));
            Error::new(Code::Internal, format!("this member cannot read what it stored: {malformed}"))
        })?;
        if writer.len() - yielded_at > BYTES_PER_TURN {
            yielded_at = writer.len();
            tokio::task::yield_now().await;
        }
    }
    Ok(writer.finish(&cluster))
}
