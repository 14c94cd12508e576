//! The cluster as this member sees it.

use super::{Consistency, Engine};
use crate::error::Error;
use crate::raft::InstallProgress;

/// One member, contract section 22.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberView {
    pub id: String,
    /// Its client URL.
    pub address: String,
    /// `leader`, `voter` or `learner`.
    pub role: &'static str,
    /// `up`, or `down` if it was not heard for 3 s.
    pub state: &'static str,
    pub applied: u64,
    pub lag: u64,
    pub version: String,
    /// How far it is with taking over the state of another member, if it does.
    pub installing: Option<InstallProgress>,
}

/// The whole cluster, and what distinguishes the member that answers.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterView {
    pub cluster: String,
    pub leader: Option<String>,
    pub term: u64,
    pub commit: u64,
    pub members: Vec<MemberView>,
    /// The answering member, the last entry that it has applied, and the digest of its state there.
    pub member: String,
    pub applied: u64,
    pub digest: u64,
}

impl Engine {
    /// The cluster; with `Strong`, after a leader has been confirmed. Errors: `no_leader`.
    pub async fn cluster(&self, consistency: Consistency) -> Result<ClusterView, Error> {
        self.fence(consistency).await?;
        let node = &self.inner.node;
        let leader = self.live_leader_name();
        let (term, commit) = node.term_and_commit();
        let (applied, digest) = node.applied().digest();
        let commit = commit.max(applied);
        let mut members: Vec<MemberView> = node
            .member_statuses()
            .into_iter()
            .map(|member| {
                let status = member.status.as_ref();
                let applied = status.map_or(0, |status| status.applied_index);
                MemberView {
                    role: match member.is_voter {
                        true if leader.as_ref() == Some(&member.member.name) => "leader",
                        true => "voter",
                        false => "learner",
                    },
                    state: if status.is_some() { "up" } else { "down" },
                    applied,
                    lag: commit.saturating_sub(applied),
                    installing: status.and_then(|status| status.installing),
                    version: status.map_or(String::new(), |status| status.version.clone()),
                    id: member.member.name,
                    address: member.member.client_url,
                }
            })
            .collect();
        members.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(ClusterView {
            cluster: node.peers().me().cluster.clone(),
            leader,
            term,
            commit,
            members,
            member: self.member().to_owned(),
            applied,
            digest,
        })
    }
}
