//! One pull of a mirror: the request out, and what came back checked before anything believes it.

use std::io;
use std::time::Duration;

use bytes::Bytes;

use super::super::answer::{PullAnswer, Skips};
use super::super::page::is_covered;
use super::super::pull_budget::AnswerRoom;
use super::super::wire::PullRequest;
use super::{ANSWER_TIMEOUT, Halt, Mirror, QUICK_ANSWER_BYTES, diverged};
use crate::config::Secret;
use crate::engine::{News, SecretMissing};
use crate::state::Cluster;
use crate::task;

impl Mirror {
    /// Another cluster is not trusted with topics that it was not asked for.
    pub(super) fn check_names(&self, answer: &PullAnswer) -> Result<(), Halt> {
        let told = match &answer.news {
            News::Listed(listed) => &listed.topics[..],
            News::Changed { topics, .. } => topics,
            News::Nothing | News::Unknown => &[],
        };
        let names = answer.topics.iter().map(|topic| &topic.topic[..]);
        let mut names = names.chain(told.iter().map(|news| &*news.topic));
        match names.find(|name| !is_covered(&self.config.source, name)) {
            None => Ok(()),
            Some(stray) => {
                let message = format!("the remote names {stray:?}, for which it was not asked");
                Err(Halt::retrying("internal", message))
            }
        }
    }

    pub(super) async fn pull(
        &self,
        request: &PullRequest,
        wait: Duration,
        room: &mut AnswerRoom,
        bytes: &mut usize,
    ) -> Result<PullAnswer, Halt> {
        let Some(remote) = &self.config.remote else {
            return Err(Halt::blocked("internal", "the router is no mirror".into()));
        };
        let url = &remote.urls[self.next_url % remote.urls.len()];
        let token = self.context.engine.open_token(&self.router.name, &self.config).map_err(|SecretMissing| {
            let message = "the token is sealed under a secret that this member does not have: set cluster_secret_previous, \
                           or put the router with its token";
            Halt::blocked("secret_missing", message.into())
        })?;
        let token = token.as_ref().map(Secret::expose);
        let answer =
            self.context.remote.pull(url, token, request.encode(), wait + ANSWER_TIMEOUT, room).await?;
        *bytes = answer.len();
        let skips = {
            let router = self.router.read();
            router.skips.iter().map(|(source, skips)| (source.to_string(), skips.clone())).collect()
        };
        let answer = read_answer(answer, skips).await.map_err(|malformed| {
            Halt::retrying("source_damaged", format!("what answers at {url} makes no sense: {malformed}"))
        })?;
        self.check_cluster(&answer.cluster)?;
        Ok(answer)
    }

    /// C-MIRROR-15
    fn check_cluster(&self, remote: &Cluster) -> Result<(), Halt> {
        if remote.id == self.own.id {
            let message = "the remote is this very cluster".into();
            return Err(Halt::blocked("same_cluster", message));
        }
        if remote.name == self.own.name {
            let message = format!("the remote is another cluster of the same name, {:?}", remote.name);
            return Err(Halt::blocked("same_name", message));
        }
        if self.router.read().remote_cluster.is_some_and(|known| known != remote.id) {
            return Err(diverged("the remote is another cluster than before"));
        }
        Ok(())
    }
}

/// Away from the threads that serve requests, if it is much.
async fn read_answer(answer: Bytes, skips: Skips) -> Result<PullAnswer, String> {
    let is_quick = answer.len() < QUICK_ANSWER_BYTES;
    let read = move || PullAnswer::decode(&answer, &skips).map_err(io::Error::from);
    let read = if is_quick { read() } else { task::blocking(read).await };
    read.map_err(|error| error.to_string())
}
