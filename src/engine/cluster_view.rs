//! The cluster as this member sees it.

use std::collections::BTreeMap;

use super::{Consistency, Engine};
use crate::error::Error;
use crate::raft::{InstallProgress, MemberStatus};

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
    /// Why it could not the last time.
    pub install_error: Option<String>,
}

/// How long the answering member's log is, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct LogView {
    /// The last entry that was given up, and the last that the checkpoint on disk covers.
    pub purged: u64,
    pub saved: u64,
    pub held: Option<HeldView>,
}

/// What keeps the log longer than it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldView {
    /// See [`Holder::REASONS`](crate::raft::Holder).
    pub reason: &'static str,
    /// The member that it is about.
    pub member: Option<String>,
    /// The entries behind this one are kept; how many that are too many.
    pub index: u64,
    pub entries: u64,
    pub for_ms: u64,
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
    pub log: LogView,
}

/// While a member that lost its disk comes back, the membership has two of its name: the one that is gone and
/// the one that comes. Whoever asks means the member, so the living one is shown.
pub(super) fn one_per_name(members: Vec<MemberStatus>) -> Vec<MemberStatus> {
    let mut shown: BTreeMap<String, MemberStatus> = BTreeMap::new();
    let rank = |member: &MemberStatus| (member.status.is_some(), member.is_voter);
    for member in members {
        match shown.get(&member.member.name) {
            Some(other) if rank(other) >= rank(&member) => {}
            _ => {
                shown.insert(member.member.name.clone(), member);
            }
        }
    }
    shown.into_values().collect()
}

impl Engine {
    /// What of the log is kept here, and why.
    pub(super) fn log_view(&self) -> LogView {
        let node = &self.inner.node;
        let held = node.held_back().map(|held| {
            let about = held.hold.by.member();
            let members = node.membership().into_iter();
            let mut names = members.filter(|(node_id, ..)| Some(*node_id) == about);
            HeldView {
                reason: held.hold.by.reason(),
                member: names.next().map(|(_, member, _)| member.name),
                index: held.hold.index,
                entries: held.hold.entries,
                for_ms: held.since.elapsed().as_millis() as u64,
            }
        });
        let purged = self.inner.log.purged().map_or(0, |id| id.index);
        LogView { purged, saved: node.applied().saved_index(), held }
    }

    /// Whether clients are told to reach a member of this cluster under `url`, as far as this member knows.
    pub fn has_member_at(&self, url: &str) -> bool {
        let members = self.inner.node.membership();
        members.iter().any(|(_, member, _)| member.client_url.eq_ignore_ascii_case(url))
    }

    /// The cluster; with `Strong`, after a leader has been confirmed. Errors: `no_leader`.
    pub async fn cluster(&self, consistency: Consistency) -> Result<ClusterView, Error> {
        self.fence(consistency).await?;
        let node = &self.inner.node;
        let leader = self.live_leader_name();
        let (term, commit) = node.term_and_commit();
        let (applied, digest) = node.applied().digest();
        let commit = commit.max(applied);
        let members: Vec<MemberView> = one_per_name(node.member_statuses())
            .into_iter()
            .map(|member| {
                let status = member.status.as_ref();
                // Of one that is down, what it said last.
                let last = member.last_status.as_ref();
                let applied = last.map_or(0, |status| status.applied_index);
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
                    install_error: status
                        .map(|status| status.install_error.clone())
                        .filter(|error| !error.is_empty()),
                    version: last.map_or(String::new(), |status| status.version.clone()),
                    id: member.member.name,
                    address: member.member.client_url,
                }
            })
            .collect();
        Ok(ClusterView {
            cluster: node.peers().me().cluster.clone(),
            leader,
            term,
            commit,
            members,
            member: self.member().to_owned(),
            applied,
            digest,
            log: self.log_view(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Member;

    fn member(node_id: u64, name: &str, is_voter: bool, is_up: bool) -> MemberStatus {
        let status = is_up.then(crate::raft::Status::default);
        let member = Member { name: name.to_owned(), ..Member::default() };
        MemberStatus { node_id, member, is_voter, last_status: status.clone(), status }
    }

    #[test]
    fn a_member_that_comes_back_blank_is_shown_once_and_as_what_it_is_now() {
        let shown = one_per_name(vec![
            member(1, "m2", true, false),
            member(2, "m1", true, true),
            member(3, "m2", false, true),
            member(4, "m3", true, false),
            member(5, "m3", false, false),
        ]);
        let ids: Vec<u64> = shown.iter().map(|member| member.node_id).collect();
        assert_eq!(ids, [2, 3, 4]);
    }
}
