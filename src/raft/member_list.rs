//! What the operator's list says beside what the cluster goes by.
//!
//! The list founds a cluster. After that the membership counts, in which members are added and removed by a leader
//! and moved when they answer elsewhere. A list that says otherwise is followed only as far as members are looked
//! for at its addresses too, and an operator who believes that it does more must be told.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::bootstrap::ListedMember;
use super::node::Node;
use super::types::Member;

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A member that has moved is known at its new address well before.
const DIFFERS_FOR: Duration = Duration::from_secs(10);
/// Between two lines.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// Tells, in one line, where the list differs from the membership for long, as long as the member runs.
pub async fn compare_list(node: Arc<Node>) -> io::Result<()> {
    let listed = node.peers().listed().to_vec();
    let mut told = None;
    let mut differs: Option<(String, Instant)> = None;
    loop {
        sleep(LOOK_INTERVAL).await;
        let committed = node.committed_membership();
        let members: Vec<Member> = committed.nodes().map(|(_, member)| member.clone()).collect();
        let Some(difference) = difference(&listed, &members) else {
            differs = None;
            continue;
        };
        let since = match &differs {
            Some((same, since)) if *same == difference => *since,
            _ => differs.insert((difference.clone(), Instant::now())).1,
        };
        if since.elapsed() >= DIFFERS_FOR && told.as_ref() != Some(&difference) {
            tracing::warn!(
                "--members is not followed: {difference}. The list founds a cluster; later a member is known \
                 where it answers, and only a leader adds and removes members"
            );
            told = Some(difference);
            sleep(TELL_INTERVAL).await;
        }
    }
}

/// Where they differ, if there are both.
fn difference(listed: &[ListedMember], members: &[Member]) -> Option<String> {
    if listed.is_empty() || members.is_empty() {
        return None;
    }
    let mut parts = Vec::new();
    for (name, address) in listed {
        // While a lost disk is replaced there are two of a name.
        let namesakes: Vec<&Member> = members.iter().filter(|member| member.name == *name).collect();
        match namesakes.first() {
            None => parts.push(format!("{name} is no member of the cluster")),
            Some(known) if namesakes.iter().all(|member| member.peer_address != *address) => {
                parts.push(format!(
                    "the cluster knows {name} at {}, and the list has it at {address}",
                    known.peer_address
                ))
            }
            Some(_) => {}
        }
    }
    let is_listed = |member: &&Member| listed.iter().any(|(name, _)| *name == member.name);
    let unlisted = members.iter().filter(|member| !is_listed(member));
    parts.extend(unlisted.map(|member| format!("{} is a member and not in the list", member.name)));
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(entries: &[(&str, &str)]) -> Vec<ListedMember> {
        entries.iter().map(|(name, address)| ((*name).to_owned(), (*address).to_owned())).collect()
    }

    fn members(entries: &[(&str, &str)]) -> Vec<Member> {
        let member = |(name, address): &(&str, &str)| Member {
            name: (*name).to_owned(),
            peer_address: (*address).to_owned(),
            ..Member::default()
        };
        entries.iter().map(member).collect()
    }

    #[test]
    fn every_way_in_which_the_list_is_not_what_the_cluster_goes_by_is_named() {
        let cluster = members(&[("m1", "a:1"), ("m2", "b:1"), ("m3", "c:1"), ("m3", "c:2")]);
        assert_eq!(difference(&listed(&[("m1", "a:1"), ("m2", "b:1"), ("m3", "c:2")]), &cluster), None);
        assert_eq!(difference(&[], &cluster), None);
        assert_eq!(difference(&listed(&[("m1", "a:1")]), &[]), None);
        let differs = difference(&listed(&[("m1", "a:9"), ("m2", "b:1"), ("m4", "d:1")]), &cluster).unwrap();
        for part in ["knows m1 at a:1", "list has it at a:9", "m4 is no member", "m3 is a member and not"] {
            assert!(differs.contains(part), "{differs}");
        }
    }
}
