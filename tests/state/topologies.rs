//! The decision what a copy is (new, an echo, a duplicate, a gap), over all ways in which up to four clusters can be
//! connected: each record once in every cluster that can be reached, in order per origin, and nothing lost in
//! silence, in whatever order, how often and how late things happen. C-ROUTE-05 to C-ROUTE-09, C-ROUTE-15,
//! C-MIRROR-09, C-MIRROR-10, C-MIRROR-13, C-MIRROR-14.

use std::collections::{BTreeMap, BTreeSet};

use antiphon::state::{Refusal, Router};

use crate::world::{Held, Member, Origin, Pulled, SHARED, Slot};

/// A topic that some clusters have beside the shared one, connected to it by local routers both ways.
const BESIDE: &str = "u";
const LOCAL: [(&str, &str); 2] = [(SHARED, BESIDE), (BESIDE, SHARED)];

/// Links by number: bit `from * count + to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Topology {
    count: usize,
    links: u32,
}

impl Topology {
    fn has(self, from: usize, to: usize) -> bool {
        self.links >> (from * self.count + to) & 1 == 1
    }

    fn links(self) -> Vec<(usize, usize)> {
        let all = (0..self.count).flat_map(|from| (0..self.count).map(move |to| (from, to)));
        all.filter(|(from, to)| self.has(*from, *to)).collect()
    }

    /// Where records of `from` come.
    fn reached(self, from: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::from([from]);
        while let Some(next) =
            (0..self.count).find(|to| !reached.contains(to) && reached.iter().any(|at| self.has(*at, *to)))
        {
            reached.insert(next);
        }
        reached
    }

    fn is_connected(self) -> bool {
        let mut both_ways = self;
        for (from, to) in self.links() {
            both_ways.links |= 1 << (to * self.count + from);
        }
        both_ways.reached(0).len() == self.count
    }

    fn renamed(self, names: &[usize]) -> Topology {
        let links = self.links().into_iter();
        let links = links.map(|(from, to)| 1u32 << (names[from] * self.count + names[to])).sum();
        Topology { links, ..self }
    }
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        let longer = |begun: &Vec<usize>| {
            let begun = begun.clone();
            let rest = (0..count).filter(|at| !begun.contains(at)).collect::<Vec<_>>();
            rest.into_iter().map(|at| [begun.clone(), vec![at]].concat()).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// All topologies in which no cluster stands alone, but for those that differ by the names of clusters only.
fn connected(count: usize) -> Vec<Topology> {
    let names = permutations(count);
    let is_link = |bit: usize| bit / count != bit % count;
    let possible = (0..1u32 << (count * count))
        .filter(|links| (0..count * count).all(|bit| links >> bit & 1 == 0 || is_link(bit)));
    let all = possible.map(|links| Topology { count, links }).filter(|it| it.is_connected());
    all.filter(|it| names.iter().all(|names| it.renamed(names).links >= it.links)).collect()
}

struct World {
    topology: Topology,
    members: Vec<Member>,
    links: Vec<(usize, usize)>,
}

impl World {
    fn new(topology: Topology) -> Self {
        let mut members: Vec<Member> = (0..topology.count).map(Member::new).collect();
        let links = topology.links();
        links.iter().for_each(|(from, to)| members[*to].mirror(*from));
        World { topology, members, links }
    }

    fn pull(&self, link: usize, most: usize) -> Option<Pulled> {
        let (from, to) = self.links[link];
        self.members[to].pull(&self.members[from], most)
    }

    /// Pulls and writes; `false` if there was nothing to say.
    fn step(&mut self, link: usize, most: usize) -> bool {
        let Some(pulled) = self.pull(link, most) else { return false };
        let to_seq = pulled.copy.parts[0].to_seq;
        let moved = self.members[pulled.to].copy(&pulled);
        assert_eq!((moved.stopped, moved.seq), (None, to_seq));
        true
    }

    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 1000, "records go round and round");
            let mut moved = (0..self.links.len()).filter(|link| self.step(*link, usize::MAX)).count();
            for member in &mut self.members {
                moved += LOCAL.iter().filter(|(from, to)| member.route(&format!("{from}>{to}"), 9)).count();
            }
            if moved == 0 {
                break;
            }
        }
    }

    /// What holds at any time: nothing twice in one life of a topic, no echo, order kept.
    fn check(&self, is_ordered: bool) {
        for member in &self.members {
            for (epoch, slots) in &member.slots {
                let mut seen: BTreeSet<&Origin> = BTreeSet::new();
                let mut last: BTreeMap<(usize, &str, u64), u64> = BTreeMap::new();
                for (slot, seq) in slots.iter().zip(1..) {
                    let Slot::Record(origin) = slot else { continue };
                    let (cluster, name, origin_epoch, origin_seq) = origin;
                    assert!(seen.insert(origin), "{origin:?} stands twice at {}", member.at);
                    let is_own = (*cluster, name.as_str()) == (member.at, SHARED);
                    assert!(!is_own || (origin_epoch, *origin_seq) == (epoch, seq), "{origin:?} came home");
                    let last = last.entry((*cluster, name, *origin_epoch)).or_default();
                    assert!(!is_ordered || *origin_seq > *last, "{origin:?} came late to {}", member.at);
                    *last = *origin_seq;
                }
            }
        }
    }

    /// What holds once all links are done: whatever is anywhere is wherever it leads.
    fn check_settled(&self) {
        for (from, to) in &self.links {
            for Held { origin, .. } in self.members[*from].held(SHARED) {
                let is_there = self.members[*to].took(SHARED, &origin);
                assert!(is_there, "{origin:?} did not get from {from} to {to}");
            }
        }
        for member in &self.members {
            for (from, to) in LOCAL {
                let is_routed = member.state.routers().get(&format!("{from}>{to}")).is_some();
                for Held { origin, .. } in member.held(from).into_iter().filter(|_| is_routed) {
                    assert!(member.took(to, &origin), "{origin:?} did not get from {from} to {to}");
                }
            }
        }
    }

    /// Each record of `written`, with nothing removed anywhere.
    fn check_complete(&self, written: &[usize]) {
        for (at, member) in self.members.iter().enumerate() {
            let held: BTreeSet<Origin> = member.held(SHARED).into_iter().map(|held| held.origin).collect();
            let of = |from: &usize| held.iter().filter(|origin| origin.0 == *from).count();
            for (from, count) in written.iter().enumerate() {
                let expected = if self.topology.reached(from).contains(&at) { *count } else { 0 };
                assert_eq!(of(&from), expected, "records of {from} at {at}");
            }
            assert!(gaps(member).is_empty());
            let beside: Vec<Origin> = member.held(BESIDE).into_iter().map(|held| held.origin).collect();
            let is_there = member.state.catalog().get(BESIDE).is_some();
            assert_eq!(beside.iter().cloned().collect::<BTreeSet<_>>().len(), beside.len());
            assert!(!is_there || beside.into_iter().collect::<BTreeSet<_>>() == held);
        }
    }

    /// Everything that decides how it goes on.
    fn fingerprint(&self) -> String {
        let mut all = String::new();
        for member in &self.members {
            let held: Vec<Origin> = member.held(SHARED).into_iter().map(|held| held.origin).collect();
            let positions: Vec<_> = member
                .state
                .routers()
                .all()
                .iter()
                .map(|router| router.read().positions.get(SHARED).map(|it| it.seq))
                .collect();
            all += &format!("{held:?}{positions:?}");
        }
        all
    }
}

/// Goes through every order of writes and of what links do. Writes are told by cluster.
fn explore(topology: Topology, written: &[usize]) -> usize {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut paths: Vec<Vec<usize>> = vec![Vec::new()];
    while let Some(path) = paths.pop() {
        let mut world = World::new(topology);
        let mut left = written.to_vec();
        for act in &path {
            match act.checked_sub(topology.count) {
                None => {
                    left[*act] -= 1;
                    world.members[*act].write(SHARED, 1);
                }
                Some(link) => assert!(world.step(link, usize::MAX)),
            }
        }
        world.check(true);
        if !seen.insert(world.fingerprint() + &format!("{left:?}")) {
            continue;
        }
        let writes = (0..topology.count).filter(|at| left[*at] > 0);
        let steps = (0..world.links.len()).filter(|link| world.pull(*link, usize::MAX).is_some());
        let acts: Vec<usize> = writes.chain(steps.map(|link| topology.count + link)).collect();
        if acts.is_empty() {
            world.check_complete(written);
            world.check_settled();
        }
        paths.extend(acts.into_iter().map(|act| [path.clone(), vec![act]].concat()));
    }
    seen.len()
}

/// All ways to share `total` writes among clusters.
fn shares(count: usize, total: usize) -> Vec<Vec<usize>> {
    if count == 1 {
        return vec![vec![total]];
    }
    let first = |first: usize| {
        shares(count - 1, total - first).into_iter().map(move |rest| [vec![first], rest].concat())
    };
    (0..=total).flat_map(first).collect()
}

#[test]
fn every_order_of_events_brings_each_record_once_to_every_cluster_in_reach() {
    let mut states = 0;
    for topology in connected(2) {
        (1..=5).for_each(|total| {
            states += shares(2, total).iter().map(|written| explore(topology, written)).sum::<usize>();
        });
    }
    for topology in connected(3) {
        // Beyond that the orders are too many; they are drawn at random below.
        let total = if topology.links().len() > 4 { 1 } else { 2 };
        states += shares(3, total).iter().map(|written| explore(topology, written)).sum::<usize>();
    }
    assert!(states > 1000, "{states} states");
}

/// Small and enough: the same numbers from the same seed everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// What is done to topics beside writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removal {
    Nothing,
    Evictions,
    Deletes,
    All,
}

/// One random history.
struct History {
    world: World,
    dice: Dice,
    written: Vec<usize>,
    /// What is pulled and not written, and what was written before.
    under_way: Vec<Pulled>,
    done: Vec<Pulled>,
    removal: Removal,
}

impl History {
    fn new(topology: Topology, removal: Removal, seed: u64) -> Self {
        let (mut world, mut dice) = (World::new(topology), Dice(seed));
        // What evictions lose is only followed in the shared topic.
        for member in world.members.iter_mut().filter(|_| removal != Removal::Evictions) {
            if dice.one_in(2) {
                LOCAL.iter().for_each(|(from, to)| member.route_locally(from, to));
            }
        }
        let written = vec![0; topology.count];
        History { world, dice, written, under_way: Vec::new(), done: Vec::new(), removal }
    }

    fn act(&mut self) {
        let (count, links) = (self.world.topology.count, self.world.links.len());
        let (at, link, most) = (self.dice.below(count), self.dice.below(links), 1 + self.dice.below(3));
        match self.dice.below(18) {
            0..=3 if self.written.iter().sum::<usize>() < 5 => {
                let batch = most.min(5 - self.written.iter().sum::<usize>());
                self.written[at] += batch;
                let has_beside = self.world.members[at].state.catalog().get(BESIDE).is_some();
                let topic = if has_beside && link % 2 == 0 { BESIDE } else { SHARED };
                self.world.members[at].write(topic, batch as u64);
            }
            4..=7 => drop(self.world.step(link, most)),
            8 | 9 => self.under_way.extend(self.world.pull(link, most)),
            10 | 11 if !self.under_way.is_empty() => {
                let pulled = self.under_way.swap_remove(self.dice.below(self.under_way.len()));
                self.write_late(pulled);
            }
            12 if !self.done.is_empty() => self.repeat(),
            13 => self.world.members[at].restart(),
            14 | 15 => self.remove(at),
            16 | 17 => {
                let (from, to) = LOCAL[self.dice.below(2)];
                self.world.members[at].route(&format!("{from}>{to}"), most as u64);
            }
            _ => {}
        }
    }

    /// What was pulled before others wrote may still be right; if not, it changes nothing.
    fn write_late(&mut self, pulled: Pulled) {
        let member = &mut self.world.members[pulled.to];
        let before = (member.held(SHARED).len(), positions(member));
        let moved = member.copy(&pulled);
        match moved.stopped {
            None => assert_eq!(moved.seq, pulled.copy.parts[0].to_seq),
            Some(refusal) => {
                assert_eq!((refusal, moved.taken), (Refusal::RouterMoved, 0));
                assert_eq!((member.held(SHARED).len(), positions(member)), before);
            }
        }
        self.done.push(pulled);
    }

    /// What is written once more, or was made for something else, changes nothing.
    fn repeat(&mut self) {
        let mut pulled = self.done[self.dice.below(self.done.len())].clone();
        let is_empty = pulled.copy.parts[0].to_seq == pulled.copy.parts[0].from_seq.unwrap_or(u64::MAX);
        match self.dice.below(5) {
            0 => pulled.copy.generation += 100,
            1 => pulled.copy.cluster_id += 1,
            2 => pulled.copy.parts[0].dest_epoch = Some(1000),
            3 if pulled.copy.parts[0].from_seq.is_some() => pulled.copy.parts[0].from_seq = None,
            _ => {}
        }
        let member = &mut self.world.members[pulled.to];
        let before = (member.held(SHARED).len(), positions(member), member.slots.clone().len());
        let moved = member.copy(&pulled);
        assert!(is_empty || moved.stopped == Some(Refusal::RouterMoved), "{moved:?} {pulled:?}");
        assert_eq!(moved.taken, 0);
        assert_eq!((member.held(SHARED).len(), positions(member), member.slots.clone().len()), before);
    }

    fn remove(&mut self, at: usize) {
        let evicts = matches!(self.removal, Removal::Evictions | Removal::All);
        let deletes = matches!(self.removal, Removal::Deletes | Removal::All);
        let member = &mut self.world.members[at];
        if member.state.catalog().get(SHARED).is_none() {
            return;
        }
        let head = member.slots.values().last().map_or(0, Vec::len);
        match self.dice.below(4) {
            0 | 1 if evicts => member.evict(1 + self.dice.below(3) as u64),
            2 if deletes && head > 0 => {
                let from = 1 + self.dice.below(head) as u64;
                member.delete(vec![from..=from + self.dice.below(2) as u64]);
            }
            3 if self.removal == Removal::All && self.dice.one_in(2) => member.remake_topic(),
            _ => {}
        }
    }

    fn run(&mut self, acts: usize) {
        for _ in 0..acts {
            self.act();
            self.world.check(matches!(self.removal, Removal::Nothing));
        }
        self.world.settle();
        while let Some(late) = self.under_way.pop() {
            self.write_late(late);
        }
        self.world.settle();
        self.world.check(matches!(self.removal, Removal::Nothing));
        self.world.check_settled();
        self.world.members.iter_mut().for_each(Member::restart);
        match self.removal {
            Removal::Nothing => self.world.check_complete(&self.written),
            Removal::Evictions => self.check_told(),
            Removal::Deletes => self.check_no_gaps(),
            Removal::All => {}
        }
    }

    /// Nobody is told of a loss where all that went was asked for (C-GAP-12).
    fn check_no_gaps(&self) {
        assert!(self.world.members.iter().all(|member| gaps(member).is_empty()));
    }

    /// Every record is there or its loss was told, and only losses are told.
    fn check_told(&self) {
        for (from, count) in self.written.iter().enumerate() {
            let Some(shared) = self.world.members[from].state.catalog().get(SHARED) else { continue };
            let slots = &self.world.members[from].slots[&shared.epoch];
            let own = slots.iter().filter_map(|slot| match slot {
                Slot::Record(origin) if origin.0 == from => Some(origin),
                _ => None,
            });
            let own: Vec<&Origin> = own.collect();
            assert_eq!(own.len(), *count);
            for at in self.world.topology.reached(from) {
                for origin in &own {
                    let is_there = self.world.members[at].took(SHARED, origin);
                    assert!(is_there || self.is_told(at, origin), "{origin:?} is lost to {at} in silence");
                }
            }
        }
        let count = self.world.topology.count;
        for member in &self.world.members {
            for slot in member.slots.values().flatten() {
                let Slot::Gap { cluster, epoch, from_seq, to_seq } = slot else { continue };
                let source = &self.world.members[*cluster];
                let held: BTreeSet<u64> = source.held(SHARED).into_iter().map(|held| held.seq).collect();
                let slots = &source.slots[epoch];
                assert!(*to_seq <= slots.len() as u64);
                for seq in [*from_seq, *to_seq] {
                    assert!(!held.contains(&seq), "{seq} of {cluster} was not evicted");
                    // With two clusters nobody else can have delivered it.
                    let Slot::Record(origin) = &slots[seq as usize - 1] else { continue };
                    assert!(
                        count > 2 || !member.took(SHARED, origin),
                        "{origin:?} was not lost to {}",
                        member.at
                    );
                }
            }
        }
    }

    /// Whether a gap at `at` is about `origin`: names it, or a copy of it, or another gap that is about it.
    fn is_told(&self, at: usize, origin: &Origin) -> bool {
        let mut open: Vec<(usize, u64, u64, u64)> = gaps(&self.world.members[at]);
        let mut seen = BTreeSet::new();
        while let Some(gap) = open.pop() {
            if !seen.insert(gap) {
                continue;
            }
            let (cluster, epoch, from_seq, to_seq) = gap;
            let slots = &self.world.members[cluster].slots[&epoch];
            for slot in &slots[from_seq as usize - 1..to_seq as usize] {
                match slot {
                    Slot::Record(held) if held == origin => return true,
                    Slot::Record(_) => {}
                    Slot::Gap { cluster, epoch, from_seq, to_seq } => {
                        open.push((*cluster, *epoch, *from_seq, *to_seq));
                    }
                }
            }
        }
        false
    }
}

fn gaps(member: &Member) -> Vec<(usize, u64, u64, u64)> {
    let slots = member.slots.values().flatten();
    let gaps = slots.filter_map(|slot| match slot {
        Slot::Record(_) => None,
        Slot::Gap { cluster, epoch, from_seq, to_seq } => Some((*cluster, *epoch, *from_seq, *to_seq)),
    });
    gaps.collect()
}

fn positions(member: &Member) -> Vec<Option<(u64, u64, u64)>> {
    let position =
        |router: &Router| router.positions.get(SHARED).map(|it| (it.source_epoch, it.dest_epoch, it.seq));
    member.state.routers().all().iter().map(|router| position(&router.read())).collect()
}

fn histories(removal: Removal, per_topology: u64, acts: usize) {
    for count in 2..=4 {
        for topology in connected(count) {
            for seed in 0..per_topology {
                History::new(topology, removal, seed * 7919 + u64::from(topology.links)).run(acts);
            }
        }
    }
}

#[test]
fn no_route_loses_or_repeats_anything_however_late_and_often_things_happen() {
    assert_eq!(connected(4).len(), 199);
    histories(Removal::Nothing, 4, 90);
}

#[test]
fn what_a_source_evicted_before_it_was_pulled_is_told_and_nothing_else() {
    histories(Removal::Evictions, 5, 80);
}

#[test]
fn what_was_deleted_on_purpose_is_no_gap() {
    histories(Removal::Deletes, 3, 90);
}

#[test]
fn topics_that_are_deleted_and_made_anew_get_everything_that_is_still_anywhere() {
    histories(Removal::All, 5, 110);
}
