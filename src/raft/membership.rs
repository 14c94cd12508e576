//! Lost disks: how a member that is blank under its old name comes back into its cluster.
//!
//! Its old Raft id has promised things that nobody remembers, so it comes back as a new one: the member
//! asks to be let in (`admission.rs`), and the leader changes the membership in two steps.
//!
//! 1. Once every id of that name has been silent for [`DOWN_BEFORE_REPLACED`], the new id becomes a learner:
//!    it gets the log and counts for nothing.
//! 2. Once it has caught up, one change makes it a voter and removes the old id. Removing the old one first
//!    would gain nothing: of three voters two must be there in any case, until the third is back.
//!
//! The leader decides from the committed membership and from what it hears of the others, anew every time:
//! whichever leader comes next goes on from where the last one was. If the old id is heard again before the
//! second step, the new one is dropped, because then two processes run under one name.
//!
//! And moved members: one that says in its handshakes that it is reached elsewhere, and answers there, has its new
//! addresses written into the membership.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use tokio::time::{Instant, sleep};

use super::admission::{Application, Verdict};
use super::handshake::Lane;
use super::node::{DOWN_AFTER, Leader, Node};
use super::rpc::Kind;
use super::types::{Member, NodeId, RaftStoredMembership};
use crate::limits::DOWN_BEFORE_REPLACED;

/// Between two looks of a leader at the membership.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Between two applications of a member that is not let in yet.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// One application, also if it is passed on.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const PASS_ON_TIMEOUT: Duration = Duration::from_secs(1);
/// An answer of the old id counts as sent after an application only if it came this much later: it may have
/// been under way when its sender died.
const ANSWER_UNDER_WAY: Duration = Duration::from_secs(1);
/// Between two looks whether a member answers where it says that it is reached.
const MOVE_RETRY: Duration = Duration::from_secs(10);
/// Rounds in which a member that its own log names waits to hear from a leader before it asks: the entry that
/// names it may have been lost with its leader.
const PATIENT_ROUNDS: u32 = 5;

/// What the name of a member that is replaced is refused with: the committed membership that names another id
/// under `name`, and not `node_id`, as one more than its index. `seen` is the same of the newest committed
/// membership that is known to name `node_id`, 0 for none.
///
/// A Raft id that was removed never returns, so a membership above `seen` without it is the last word; one
/// below is only old. And who was never named by a committed membership has never been replaced: it is new.
pub fn replacement(committed: &RaftStoredMembership, node_id: NodeId, name: &str, seen: u64) -> Option<u64> {
    let place = place_of(committed);
    let is_named_otherwise =
        || committed.get_node(&node_id).is_none() && committed.nodes().any(|(_, member)| member.name == name);
    (seen > 0 && place > seen && is_named_otherwise()).then_some(place)
}

/// One more than the index of a membership; 0 if there is none.
pub fn place_of(membership: &RaftStoredMembership) -> u64 {
    membership.log_id().as_ref().map_or(0, |id| id.index() + 1)
}

/// Asks the members at `addresses` to be let in, until this one is in a committed membership.
pub async fn seek_admission(node: Arc<Node>, addresses: Vec<String>) -> io::Result<()> {
    let me = node.peers().me().clone();
    let mut last_verdict = None;
    let mut rounds = 0;
    loop {
        sleep(ASK_INTERVAL).await;
        if node.committed_membership().get_node(&me.node_id).is_some() {
            return Ok(());
        }
        rounds += 1;
        let is_in_own_log = node.membership().iter().any(|(node_id, ..)| *node_id == me.node_id);
        if is_in_own_log && rounds < PATIENT_ROUNDS {
            continue;
        }
        let Some(verdict) = ask(&node, &addresses).await else { continue };
        if last_verdict.as_ref() == Some(&verdict) {
            continue;
        }
        let (name, cluster) = (&me.member.name, &me.cluster);
        match &verdict {
            Verdict::NoCluster | Verdict::Admitted => {}
            Verdict::NoLeader => tracing::info!(
                "this member has no data, and cluster {cluster} has no leader that could let it in: asking on"
            ),
            Verdict::Waiting => tracing::warn!(
                "this member has no data: cluster {cluster} will let it in again as {name} once the old {name} \
                 has been down for {} s",
                DOWN_BEFORE_REPLACED.as_secs()
            ),
            Verdict::NotListed => tracing::warn!(
                "cluster {cluster} knows no member {name}: this one waits until it is added there"
            ),
            Verdict::Alive { peer_address } => me.end(format!(
                "member {name} of cluster {cluster} is alive at {peer_address}, and this process has another \
                 data directory: stop one of the two, or give this one another --member name"
            )),
        }
        last_verdict = Some(verdict);
    }
}

/// The most telling answer of those who can be reached.
async fn ask(node: &Node, addresses: &[String]) -> Option<Verdict> {
    let me = node.peers().me();
    let application = Application { node_id: me.node_id, member: me.member.clone(), is_passed_on: false };
    let mut heard = None;
    for address in addresses {
        let reply = node.peers().call_once(address, Kind::Admit, application.encode(), ASK_TIMEOUT).await;
        match reply.map(|reply| Verdict::decode(&reply)) {
            Ok(Ok(Verdict::NoCluster)) => heard = heard.or(Some(Verdict::NoCluster)),
            Ok(Ok(Verdict::NoLeader)) => heard = Some(Verdict::NoLeader),
            Ok(Ok(verdict)) => return Some(verdict),
            Ok(Err(error)) => tracing::debug!("{address} answers what cannot be read: {error}"),
            Err(error) => tracing::debug!("{address} cannot be asked: {error}"),
        }
    }
    heard
}

/// Answers an application, by the leader's word if there is one.
pub async fn consider(node: &Node, application: Application) -> Verdict {
    if !node.peers().me().is_initialized() {
        return Verdict::NoCluster;
    }
    let leader = node.leadership().borrow().leader.clone();
    match leader {
        Some(Leader::Here) => decide(node, &application),
        Some(Leader::At(peer)) if !application.is_passed_on => {
            let body = Application { is_passed_on: true, ..application }.encode();
            let reply = peer.call(Lane::Control, Kind::Admit, body, PASS_ON_TIMEOUT).await;
            reply.ok().and_then(|reply| Verdict::decode(&reply).ok()).unwrap_or(Verdict::NoLeader)
        }
        _ => Verdict::NoLeader,
    }
}

fn decide(node: &Node, application: &Application) -> Verdict {
    if !node.has_quorum_now() {
        return Verdict::NoLeader;
    }
    let committed = node.committed_membership();
    if committed.get_node(&application.node_id).is_some() {
        // It asks on, so it has not been reached where it is known. Others may have passed this on.
        node.peers().heard_of(application.node_id, &application.member);
        return Verdict::Admitted;
    }
    let namesakes: Vec<_> =
        committed.nodes().filter(|(_, member)| member.name == application.member.name).collect();
    if namesakes.is_empty() {
        return Verdict::NotListed;
    }
    let asked_for = node.applicants().note(application).elapsed();
    let has_answered_since = |node_id: NodeId| {
        node.heard_ago(node_id).is_some_and(|ago| ago.saturating_add(ANSWER_UNDER_WAY) < asked_for)
    };
    match namesakes.iter().find(|(node_id, _)| **node_id == node.node_id() || has_answered_since(**node_id)) {
        Some((_, member)) => Verdict::Alive { peer_address: member.peer_address.clone() },
        None => Verdict::Waiting,
    }
}

/// Carries on, at whoever leads, what a lost disk needs, as long as the member runs.
pub async fn keep_membership(node: Arc<Node>) -> io::Result<()> {
    let mut moves = Moves::default();
    loop {
        sleep(LOOK_INTERVAL).await;
        if !matches!(node.leadership().borrow().leader, Some(Leader::Here)) || !node.has_quorum_now() {
            continue;
        }
        let committed = node.committed_membership();
        let Some(step) = next_step(&view(&node, &committed, &moves)) else { continue };
        if let Step::Move { node_id, member, .. } = &step
            && !moves.is_reached(&node, *node_id, member).await
        {
            continue;
        }
        match node.change_membership(step.change(), *committed.log_id()).await {
            Ok(()) => tracing::info!("{step}"),
            // The next look finds whatever has become of it.
            Err(reason) => tracing::debug!("not done: {step}: {reason}"),
        }
    }
}

/// Members that say that they are reached where they do not answer, and when that was tried.
#[derive(Default)]
struct Moves(BTreeMap<NodeId, (Member, Instant)>);

impl Moves {
    fn is_due(&self, node_id: NodeId, member: &Member) -> bool {
        let failed = self.0.get(&node_id);
        failed.is_none_or(|(tried, at)| tried != member || at.elapsed() >= MOVE_RETRY)
    }

    /// Whether the member answers where it says that it is reached. Also for this member itself: it must not
    /// give out an address of which it alone believes that it is its own.
    async fn is_reached(&mut self, node: &Node, node_id: NodeId, member: &Member) -> bool {
        let problem = match node.peers().ask(&member.peer_address).await {
            Ok(hello) if hello.node_id == node_id => {
                self.0.remove(&node_id);
                return true;
            }
            Ok(hello) => format!("member {} answers there", hello.member.name),
            Err(error) => error.to_string(),
        };
        let failed = self.0.insert(node_id, (member.clone(), Instant::now()));
        if failed.is_none_or(|(tried, _)| tried != *member) {
            tracing::warn!(
                "member {} says that other members reach it at {}, which is not so ({problem}): it stays known \
                 where it was",
                member.name,
                member.peer_address
            );
        }
        false
    }
}

/// What a leader decides by.
struct View {
    me: NodeId,
    /// More than one set while a change is half done.
    voters: Vec<BTreeSet<NodeId>>,
    seats: BTreeMap<NodeId, Seat>,
    applicants: Vec<(NodeId, Member)>,
    /// Members that say of themselves something else than the membership does.
    moved: Vec<(NodeId, Member)>,
}

/// One Raft id of the membership.
struct Seat {
    name: String,
    silence: Duration,
    /// It has answered lately. One that has only just become known has neither answered nor been silent.
    is_heard: bool,
    has_caught_up: bool,
}

fn view(node: &Node, committed: &RaftStoredMembership, moves: &Moves) -> View {
    let seat = |(node_id, member): (&NodeId, &Member)| {
        let seat = Seat {
            name: member.name.clone(),
            silence: node.silence(*node_id),
            is_heard: node.heard_ago(*node_id).is_some_and(|ago| ago < DOWN_AFTER),
            has_caught_up: node.has_caught_up(*node_id),
        };
        (*node_id, seat)
    };
    let moved = committed.nodes().filter_map(|(node_id, member)| {
        let told = node.peers().told(*node_id)?;
        let is_news = told != *member && told.name == member.name && moves.is_due(*node_id, &told);
        is_news.then_some((*node_id, told))
    });
    View {
        me: node.node_id(),
        voters: committed.membership().get_joint_config().clone(),
        seats: committed.nodes().map(seat).collect(),
        applicants: node.applicants().asking(),
        moved: moved.collect(),
    }
}

impl View {
    /// The other ids of a name.
    fn namesakes<'a>(&'a self, name: &'a str, but: NodeId) -> impl Iterator<Item = (NodeId, &'a Seat)> {
        let seats = self.seats.iter().map(|(node_id, seat)| (*node_id, seat));
        seats.filter(move |(node_id, seat)| seat.name == name && *node_id != but)
    }

    /// Whether that id may be removed: never this leader, so never the last voter.
    fn is_gone(&self, node_id: NodeId, seat: &Seat) -> bool {
        node_id != self.me && seat.silence >= DOWN_BEFORE_REPLACED
    }

    fn is_voter(&self, node_id: NodeId) -> bool {
        self.voters.iter().any(|voters| voters.contains(&node_id))
    }
}

/// One change of the membership.
#[derive(Debug, PartialEq)]
enum Step {
    /// End a change that an earlier leader began.
    Finish,
    /// The learner is the second process under the name of a voter that lives.
    Drop {
        learner: NodeId,
        name: String,
    },
    Promote {
        learner: NodeId,
        name: String,
        replaced: BTreeSet<NodeId>,
    },
    /// Learners of the same name that are gone make way.
    Admit {
        applicant: NodeId,
        member: Member,
        replaced: BTreeSet<NodeId>,
    },
    /// The member is reached elsewhere now.
    Move {
        node_id: NodeId,
        member: Member,
    },
}

fn next_step(view: &View) -> Option<Step> {
    if view.voters.len() > 1 {
        return Some(Step::Finish);
    }
    for (node_id, seat) in view.seats.iter().filter(|(node_id, _)| !view.is_voter(**node_id)) {
        let (learner, name) = (*node_id, seat.name.clone());
        let rivals = || view.namesakes(&seat.name, learner);
        if rivals().any(|(rival, seat)| view.is_voter(rival) && seat.is_heard) {
            return Some(Step::Drop { learner, name });
        }
        let is_here = seat.has_caught_up && seat.is_heard;
        if is_here && rivals().all(|(rival, seat)| view.is_gone(rival, seat)) {
            let voters = rivals().filter(|(rival, _)| view.is_voter(*rival));
            let replaced = voters.map(|(rival, _)| rival).collect();
            return Some(Step::Promote { learner, name, replaced });
        }
    }
    let unknown = view.applicants.iter().filter(|(node_id, _)| !view.seats.contains_key(node_id));
    for (applicant, member) in unknown {
        let namesakes = || view.namesakes(&member.name, *applicant);
        if namesakes().next().is_some() && namesakes().all(|(node_id, seat)| view.is_gone(node_id, seat)) {
            let learners = namesakes().filter(|(node_id, _)| !view.is_voter(*node_id));
            let replaced = learners.map(|(node_id, _)| node_id).collect();
            return Some(Step::Admit { applicant: *applicant, member: member.clone(), replaced });
        }
    }
    let moved = view.moved.first().cloned();
    moved.map(|(node_id, member)| Step::Move { node_id, member })
}

impl Step {
    /// The same for openraft, which removes a voter's address with the voter.
    fn change(&self) -> ChangeMembers<NodeId, Member> {
        match self {
            Step::Finish => ChangeMembers::AddVoterIds(BTreeSet::new()),
            Step::Drop { learner, .. } => ChangeMembers::RemoveNodes([*learner].into()),
            Step::Promote { learner, replaced, .. } => ChangeMembers::Batch(vec![
                ChangeMembers::RemoveVoters(replaced.clone()),
                ChangeMembers::AddVoterIds([*learner].into()),
            ]),
            Step::Admit { applicant, member, replaced } => ChangeMembers::Batch(vec![
                ChangeMembers::RemoveNodes(replaced.clone()),
                ChangeMembers::AddNodes([(*applicant, member.clone())].into()),
            ]),
            // Safe, because an address proves nothing: who answers must have the Raft id.
            Step::Move { node_id, member } => ChangeMembers::SetNodes([(*node_id, member.clone())].into()),
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Finish => write!(f, "ended a change of the membership that was half done"),
            Step::Drop { learner, name } => {
                write!(f, "member {name} lives: dropped {learner:016x}, which had come in its place")
            }
            Step::Promote { learner, name, replaced } if replaced.is_empty() => {
                write!(f, "member {name} ({learner:016x}) has caught up and is a voter")
            }
            Step::Promote { learner, name, replaced } => {
                write!(f, "member {name} ({learner:016x}) has caught up and is a voter in the place of")?;
                replaced.iter().try_for_each(|old| write!(f, " {old:016x}"))
            }
            Step::Admit { applicant, member, .. } => write!(
                f,
                "member {} has been down for {} s, and a new one of that name ({applicant:016x}) asks to be \
                 let in: it is a learner now",
                member.name,
                DOWN_BEFORE_REPLACED.as_secs()
            ),
            Step::Move { member, .. } => write!(
                f,
                "member {} is reached by members at {} and by clients at {} from now on",
                member.name, member.peer_address, member.client_url
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::{RaftMembership, raft_log_id};
    use crate::storage::EntryId;

    const LONG: Duration = Duration::from_secs(11);

    fn member(name: &str) -> Member {
        Member { name: name.into(), ..Member::default() }
    }

    /// A cluster of `a` (1, which looks), `b` (2) and `c` (3), all heard; tests change it.
    fn healthy() -> View {
        let seats = [(1, "a"), (2, "b"), (3, "c")];
        View {
            me: 1,
            voters: vec![BTreeSet::from([1, 2, 3])],
            seats: seats.into_iter().map(|(node_id, name)| (node_id, seat(name, Duration::ZERO))).collect(),
            applicants: Vec::new(),
            moved: Vec::new(),
        }
    }

    fn seat(name: &str, silence: Duration) -> Seat {
        Seat { name: name.into(), silence, is_heard: silence < DOWN_AFTER, has_caught_up: silence.is_zero() }
    }

    #[test]
    fn a_blank_member_gets_the_place_of_its_old_self_only_when_that_is_long_silent() {
        let mut view = healthy();
        assert_eq!(next_step(&view), None);
        view.applicants = vec![(9, member("c"))];
        assert_eq!(next_step(&view), None, "c is alive");
        view.seats.insert(3, seat("c", Duration::from_secs(9)));
        assert_eq!(next_step(&view), None, "c may come back");
        view.seats.insert(3, seat("c", LONG));
        let admit = Step::Admit { applicant: 9, member: member("c"), replaced: BTreeSet::new() };
        assert_eq!(next_step(&view), Some(admit));
        view.seats.insert(9, Seat { has_caught_up: false, ..seat("c", Duration::ZERO) });
        assert_eq!(next_step(&view), None, "it has not caught up");
        view.seats.insert(9, seat("c", Duration::ZERO));
        let promote = Step::Promote { learner: 9, name: "c".into(), replaced: [3].into() };
        assert_eq!(next_step(&view), Some(promote));
    }

    #[test]
    fn nobody_comes_in_under_the_name_of_a_stranger_or_of_the_leader() {
        let mut view = healthy();
        view.applicants = vec![(9, member("d")), (10, member("a"))];
        // Even if the leader had not heard itself: it never removes itself, so never the last voter.
        view.seats.insert(1, seat("a", LONG));
        assert_eq!(next_step(&view), None);
    }

    #[test]
    fn a_learner_whose_old_self_is_heard_again_is_dropped_and_one_that_died_makes_way() {
        let mut view = healthy();
        view.seats.insert(9, seat("c", Duration::ZERO));
        assert_eq!(next_step(&view), Some(Step::Drop { learner: 9, name: "c".into() }));
        // After a change of leaders the old self is neither heard nor long silent.
        view.seats.insert(3, Seat { is_heard: false, ..seat("c", Duration::ZERO) });
        assert_eq!(next_step(&view), None);
        view.seats.insert(3, seat("c", LONG));
        view.seats.insert(9, seat("c", LONG));
        view.applicants = vec![(10, member("c"))];
        let admit = Step::Admit { applicant: 10, member: member("c"), replaced: [9].into() };
        assert_eq!(next_step(&view), Some(admit));
    }

    #[test]
    fn a_member_that_is_reached_elsewhere_is_moved_when_nothing_else_is_to_be_done() {
        let mut view = healthy();
        let moved = Member { peer_address: "new:1".into(), ..member("b") };
        view.moved = vec![(2, moved.clone())];
        assert_eq!(next_step(&view), Some(Step::Move { node_id: 2, member: moved.clone() }));
        view.seats.insert(3, seat("c", LONG));
        view.applicants = vec![(9, member("c"))];
        assert!(matches!(next_step(&view), Some(Step::Admit { .. })));
        view.voters.push([1, 2, 9].into());
        assert_eq!(next_step(&view), Some(Step::Finish));

        let step = Step::Move { node_id: 2, member: moved.clone() };
        assert!(matches!(step.change(), ChangeMembers::SetNodes(nodes) if nodes == [(2, moved)].into()));
    }

    #[test]
    fn what_an_earlier_leader_left_half_done_is_ended_first() {
        let mut view = healthy();
        view.voters.push([1, 2, 9].into());
        view.seats.insert(9, seat("c", Duration::ZERO));
        assert_eq!(next_step(&view), Some(Step::Finish));
    }

    fn committed(index: u64, seats: &[(u64, &str)]) -> RaftStoredMembership {
        let voters = seats.iter().map(|(node_id, _)| *node_id).collect();
        let nodes: BTreeMap<_, _> = seats.iter().map(|(node_id, name)| (*node_id, member(name))).collect();
        let membership = RaftMembership::new(vec![voters], nodes).unwrap();
        RaftStoredMembership::new(Some(raft_log_id(EntryId { term: 1, index })), membership)
    }

    #[test]
    fn only_a_newer_membership_with_another_id_of_the_name_speaks_of_replacement() {
        let before = committed(0, &[(1, "a"), (3, "c")]);
        let after = committed(20, &[(1, "a"), (9, "c")]);
        assert_eq!(replacement(&after, 3, "c", place_of(&before)), Some(21));
        assert_eq!(replacement(&before, 9, "c", place_of(&after)), None, "this peer is behind");
        assert_eq!(replacement(&before, 9, "c", 0), None, "a blank member is new, not replaced");
        assert_eq!(replacement(&after, 9, "c", 1), None, "it is named");
        assert_eq!(replacement(&committed(20, &[(1, "a")]), 3, "c", 1), None, "removed, not replaced");
        assert_eq!(replacement(&RaftStoredMembership::default(), 3, "c", 1), None);
    }
}
