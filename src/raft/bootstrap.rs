//! How a cluster comes to be.
//!
//! Every founding member is started with the same static list. The first in the list founds the cluster:
//! it waits until it reaches all others and all of them are blank, mints the cluster's id, and makes
//! everybody a voter. The others learn the id from whoever first calls them by their own Raft id. A
//! member that is blank while others are not has lost its disk: it never founds anything, but asks to be
//! let in again (`membership.rs`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::acceptor::CallerCheck;
use super::handshake::{Call, HandshakeError, Hello};
use super::identity::{ClusterId, Identity};
use super::node::Node;
use super::peers::Me;
use super::types::Member;
use crate::clock::Random;
use crate::storage::Disk;

/// One entry of the static list: a member's name and its peer address.
pub type ListedMember = (String, String);

const ASK_INTERVAL: Duration = Duration::from_millis(200);

/// Keeps the identity file in step with what the member learns.
pub struct IdentityKeeper {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: Mutex<Identity>,
    me: Arc<Me>,
}

impl IdentityKeeper {
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf, identity: Identity, me: Arc<Me>) -> Arc<Self> {
        Arc::new(IdentityKeeper { disk, dir, identity: Mutex::new(identity), me })
    }

    /// Makes this directory part of the cluster with this id, for good.
    fn adopt(&self, cluster_id: ClusterId) -> Result<(), String> {
        let mut identity = self.identity.lock();
        if identity.cluster_id == Some(cluster_id) {
            return Ok(());
        }
        let adopted = Identity { cluster_id: Some(cluster_id), ..identity.clone() };
        if let Err(error) = adopted.write(&*self.disk, &self.dir) {
            let reason = format!("cannot write the identity file in {}: {error}", self.dir.display());
            // A disk that failed once is not trusted again by the process that saw it.
            self.me.end(reason.clone());
            return Err(reason);
        }
        *identity = adopted;
        self.me.set_cluster_id(cluster_id);
        tracing::info!("this member belongs to cluster {} with id {cluster_id}", self.me.cluster);
        Ok(())
    }
}

impl CallerCheck for IdentityKeeper {
    fn check(&self, call: &Call) -> Result<(), String> {
        let is_called_by_id = call.expected_node_id == self.me.node_id;
        if let (None, Some(theirs), true) = (self.me.cluster_id(), call.hello.cluster_id, is_called_by_id) {
            self.adopt(theirs)?;
        }
        Ok(())
    }
}

/// Founds a cluster of this member alone, unless it is part of one.
pub async fn found_alone(node: &Node, keeper: &IdentityKeeper, random: &dyn Random) -> Result<(), String> {
    let me = node.peers().me();
    if me.is_initialized() {
        return Ok(());
    }
    found(node, keeper, random, [(me.node_id, me.member.clone())].into(), None).await
}

/// Founds the cluster of the static list if this member is the first of it and nobody has done so.
/// Returns once that is settled.
pub async fn found_listed(
    node: &Node,
    keeper: &IdentityKeeper,
    random: &dyn Random,
    list: &[ListedMember],
) -> Result<(), String> {
    let me = node.peers().me();
    if list.first().is_none_or(|(name, _)| *name != me.member.name) {
        return Ok(());
    }
    let mut last_problem = None;
    while !me.is_initialized() {
        match ask_all(node, list).await {
            Ok(Blank { members, cluster_id }) => {
                return found(node, keeper, random, members, cluster_id).await;
            }
            Err(Waiting::For(problem)) => {
                if last_problem.as_ref() != Some(&problem) {
                    tracing::warn!("the cluster is not founded yet: {problem}");
                    last_problem = Some(problem);
                }
            }
            Err(Waiting::InVain(reason)) => {
                tracing::warn!("{reason}");
                return Ok(());
            }
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
    Ok(())
}

enum Waiting {
    For(String),
    InVain(String),
}

async fn ask_all(node: &Node, list: &[ListedMember]) -> Result<Blank, Waiting> {
    let me = node.peers().me();
    let mut members = BTreeMap::from([(me.node_id, me.member.clone())]);
    let mut problem = None;
    let mut hellos = Vec::new();
    // All are asked, also when one is missing: another one may know of a cluster.
    for (name, address) in list.iter().filter(|(name, _)| *name != me.member.name) {
        match node.peers().ask(address).await {
            Err(HandshakeError::Io(error)) => {
                problem.get_or_insert(format!("member {name} at {address} cannot be reached ({error})"));
            }
            Err(refusal) => {
                problem.get_or_insert(format!("member {name} at {address}: {refusal}"));
            }
            Ok(hello) if hello.is_initialized => {
                return Err(Waiting::InVain(format!(
                    "this member's data directory is blank, but member {name} is part of a cluster: this one \
                     founds no other, and asks to be let in again"
                )));
            }
            Ok(hello) if hello.member.name != *name => {
                problem.get_or_insert(format!(
                    "the member at {address} is called {:?}, but the list says {name:?}",
                    hello.member.name
                ));
            }
            Ok(hello) => {
                members.insert(hello.node_id, hello.member.clone());
                hellos.push(hello);
            }
        }
    }
    match (problem, begun_cluster(me.cluster_id(), &hellos)) {
        (Some(problem), _) => Err(Waiting::For(problem)),
        (None, Ok(cluster_id)) => Ok(Blank { members, cluster_id }),
        (None, Err(name)) => Err(Waiting::InVain(format!(
            "this member's data directory is blank, but member {name} is part of a cluster: this one founds no \
             other, and asks to be let in again"
        ))),
    }
}

/// All members of the list, when none of them has an entry.
struct Blank {
    members: BTreeMap<u64, Member>,
    /// The id that they know already.
    cluster_id: Option<ClusterId>,
}

/// A member learns the id of its cluster before it has any entry of it. If nobody has one, a founder that lost its
/// disk in that moment has founded nothing, and the next one goes on with its id. Gives that, or the name of a
/// member that knows of another.
fn begun_cluster(mine: Option<ClusterId>, others: &[Hello]) -> Result<Option<ClusterId>, &str> {
    let mut known = mine;
    for hello in others {
        if let Some(theirs) = hello.cluster_id
            && *known.get_or_insert(theirs) != theirs
        {
            return Err(&hello.member.name);
        }
    }
    Ok(known)
}

async fn found(
    node: &Node,
    keeper: &IdentityKeeper,
    random: &dyn Random,
    members: BTreeMap<u64, Member>,
    begun: Option<ClusterId>,
) -> Result<(), String> {
    let cluster_id = match node.peers().me().cluster_id().or(begun) {
        Some(minted_before) => minted_before,
        None => ClusterId(((random.next_u64() as u128) << 64 | random.next_u64() as u128).max(1)),
    };
    keeper.adopt(cluster_id)?;
    // A member that lost its disk and knows no other cannot know of its loss: this line is the trace of it.
    tracing::info!("founding cluster {} of {} blank member(s)", node.peers().me().cluster, members.len());
    node.found(members).await.map_err(|error| format!("cannot found the cluster: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(name: &str, cluster_id: Option<u128>) -> Hello {
        Hello {
            cluster: "c".into(),
            cluster_id: cluster_id.map(ClusterId),
            node_id: 1,
            member: Member { name: name.into(), peer_address: "p".into(), client_url: "u".into() },
            is_initialized: false,
        }
    }

    #[test]
    fn a_founding_that_reached_nobody_but_by_its_name_goes_on_under_it() {
        let id = ClusterId;
        assert_eq!(begun_cluster(None, &[hello("b", None), hello("c", None)]), Ok(None));
        assert_eq!(begun_cluster(None, &[hello("b", None), hello("c", Some(7))]), Ok(Some(id(7))));
        assert_eq!(begun_cluster(Some(id(7)), &[hello("b", Some(7)), hello("c", None)]), Ok(Some(id(7))));
        assert_eq!(begun_cluster(Some(id(8)), &[hello("b", None), hello("c", Some(7))]), Err("c"));
        assert_eq!(begun_cluster(None, &[hello("b", Some(6)), hello("c", Some(7))]), Err("c"));
    }
}
