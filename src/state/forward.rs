//! Copies: what routers bring into a topic, local ones by reference and mirrors with the bytes.
//!
//! The leader looks at the source and says which seqs of it are due; what becomes of them is decided here, so
//! that a late or repeated command does no harm: it names the router's generation and the position that it
//! goes on from, and where those are not what they are here, nothing happens. Copies and the position that is
//! reached are one change (C-ROUTE-05).
//!
//! Each part is *planned* first and nothing is changed meanwhile: that tells which blocks of runs are needed,
//! and which caps are reached. The plan is a function of the state alone, so it is the same at every member.
//! A record is taken unless its origin is the destination itself, or it was taken before, by whatever way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::copy_command::{Copy, CopyItem, CopyPart, RoutePart};
use super::intake::{Item, Offer, Planner, lost_seqs};
use super::local_route::{LocalRoute, Looked};
use super::origins::{Instance, InstanceKey};
use super::outcome::{Forwarded, Outcome, Refusal};
use super::position::Reached;
use super::prospect::ClusterRoom;
use super::reported::Reported;
use super::routers::SharedRouter;
use super::run::{Overlay, Run};
use super::seq_set::SeqSet;
use super::topic_config::{TopicConfig, TopicType};
use super::{Applied, Missing, MissingBlock, SharedTopic, State};
use crate::codec::Malformed;
use crate::storage::EntryId;

/// One part of a command, planned.
pub(super) enum Planned {
    /// It has nothing to do with what is the case now.
    Stale,
    /// It cannot be carried out, not even in part. Where a mirror was to begin is noted all the same.
    Refused(Refusal, Option<Box<Begun>>),
    Copies(Box<Copies>),
}

/// Where a mirror begins in a topic that it cannot copy yet.
pub(super) struct Begun {
    router: Arc<SharedRouter>,
    source: Arc<str>,
    source_epoch: u64,
    seq: u64,
}

/// What a part brings into its destination, in order.
pub(super) struct Copies {
    router: Arc<SharedRouter>,
    source: Arc<str>,
    source_epoch: u64,
    dest: Dest,
    items: Vec<Item>,
    /// What the records of all items count for, one after the other.
    sizes_bytes: Vec<u32>,
    bytes: u64,
    /// Origins that the destination may get to know by it.
    new_origins: usize,
    /// Position after it.
    seq: u64,
    entry: Option<EntryId>,
    /// Why it ends before everything was examined.
    stopped: Option<Refusal>,
}

enum Dest {
    Existing(Arc<SharedTopic>),
    New { name: Arc<str>, topic_type: TopicType },
}

impl State {
    /// Plans the parts of a command, and says what it needs for that.
    pub(super) fn missing_to_route(
        &mut self,
        parts: &[RoutePart],
        now_ms: u64,
    ) -> Result<Missing, Malformed> {
        let mut left = self.left();
        let (mut planned, mut missing, mut dests) = (Vec::new(), Missing::default(), BTreeSet::new());
        for part in parts {
            let plan = self.plan_route(part, now_ms, left, &mut dests, &mut missing)?;
            self.note_plan(&plan, now_ms, &mut left, &mut missing);
            planned.push(plan);
        }
        self.planned_copies = planned;
        Ok(missing)
    }

    pub(super) fn missing_to_copy(&mut self, copy: &Copy<'_>, now_ms: u64) -> Missing {
        let mut left = self.left();
        let (mut planned, mut missing, mut dests) = (Vec::new(), Missing::default(), BTreeSet::new());
        let instances: Vec<Arc<Instance>> = copy.instances.iter().cloned().map(Arc::new).collect();
        let mut position = 0;
        for part in &copy.parts {
            let first_position = position;
            position += part.record_count() as usize;
            let plan = self.plan_copy(copy, part, &instances, (first_position, &mut left), &mut dests);
            self.note_plan(&plan, now_ms, &mut left, &mut missing);
            planned.push(plan);
        }
        self.planned_copies = planned;
        missing
    }

    fn note_plan(&self, plan: &Planned, now_ms: u64, left: &mut ClusterRoom, missing: &mut Missing) {
        let Planned::Copies(copies) = plan else { return };
        left.bytes -= copies.bytes;
        left.origins -= copies.new_origins;
        let Dest::Existing(shared) = &copies.dest else { return };
        let new_records = (copies.sizes_bytes.len() as u64, copies.bytes);
        if let Some(first_seq) = shared.read().missing_block(now_ms, new_records, None) {
            missing.blocks.push(MissingBlock { topic: shared.clone(), first_seq });
        }
    }

    fn left(&self) -> ClusterRoom {
        ClusterRoom::of(self.limits, &self.catalog, &self.routers.shared)
    }

    /// Plans a part of a local route. What is missing for that is added to `missing`.
    fn plan_route(
        &self,
        part: &RoutePart,
        now_ms: u64,
        left: ClusterRoom,
        dests: &mut BTreeSet<Arc<str>>,
        missing: &mut Missing,
    ) -> Result<Planned, Malformed> {
        let Some(router) = self.routers.shared.of_generation(part.generation) else {
            return Ok(Planned::Stale);
        };
        let topics = (self.catalog.get(&router.source), self.catalog.get(&router.dest), self.cluster());
        let (Some(source), Some(dest), Some(cluster)) = topics else { return Ok(Planned::Stale) };
        let overlay = {
            let router = router.read();
            let is_there = router.positions.get(&*router.config.source).is_some_and(|position| {
                (position.seq, position.source_epoch, position.dest_epoch)
                    == (part.from_seq, source.epoch, dest.epoch)
            });
            if router.is_paused || router.config.remote.is_some() || !is_there {
                return Ok(Planned::Stale);
            }
            Overlay { drops_node: !router.config.preserve_node, drops_tag: !router.config.preserve_tag }
        };
        // What two parts bring into one topic may be the same.
        if !dests.insert(router.dest.clone()) {
            return Ok(Planned::Stale);
        }
        let (source_topic, dest_topic) = (source.read(), dest.read());
        let own = Instance::of_topic(cluster, source_topic.name.clone(), source.epoch);
        let mut planner = Planner::new(&left, cluster.id, Some(&dest_topic), &router.dest);
        planner.examined_seq = part.from_seq;
        let mut looked = Looked { expired_to_seq: 0, missing: None };
        let route = LocalRoute { source: &source_topic, own: &own, overlay, part, now_ms };
        let to_seq = part.to_seq.min(source_topic.head_seq).max(part.from_seq);
        if to_seq > part.from_seq {
            route.walk(to_seq, &mut planner, &mut looked)?;
        }
        if let Some(first_seq) = looked.missing {
            missing.blocks.push(MissingBlock { topic: source.clone(), first_seq });
            return Ok(Planned::Stale);
        }
        let evicted_to_seq = (source_topic.floors.evict() - 1).max(looked.expired_to_seq);
        if evicted_to_seq > part.from_seq {
            let evicted = part.from_seq + 1..=evicted_to_seq;
            let lost = lost_seqs(&source_topic, evicted, |origin| planner.needs_nothing_of(origin));
            let copies = std::mem::take(&mut planner.items);
            let stopped = planner.stopped.take();
            if !planner.lost(&own, &lost)
                && let Some((_, refusal)) = planner.stopped
            {
                return Ok(Planned::Refused(refusal, None));
            }
            planner.stopped = stopped;
            planner.items.extend(copies);
        }
        let (seq, stopped) = match planner.stopped {
            Some((seq, refusal)) => (seq.max(part.from_seq).max(evicted_to_seq), Some(refusal)),
            None => (to_seq.max(evicted_to_seq), None),
        };
        let Planner { items, sizes_bytes, bytes, new_origins, .. } = planner;
        drop(dest_topic);
        Ok(Planned::Copies(Box::new(Copies {
            source: router.source.clone(),
            source_epoch: source.epoch,
            router,
            dest: Dest::Existing(dest),
            items,
            sizes_bytes,
            bytes,
            new_origins: new_origins.len(),
            seq,
            entry: None,
            stopped,
        })))
    }

    /// Plans a part of a mirror's copy; its records begin at the given position of the entry.
    fn plan_copy(
        &self,
        copy: &Copy<'_>,
        part: &CopyPart<'_>,
        instances: &[Arc<Instance>],
        (first_position, left): (usize, &mut ClusterRoom),
        dests: &mut BTreeSet<Arc<str>>,
    ) -> Planned {
        let router = self.routers.shared.of_generation(copy.generation);
        let (Some(router), Some(cluster)) = (router, self.cluster()) else { return Planned::Stale };
        let dest = self.catalog.get(part.dest);
        {
            let router = router.read();
            let is_other = router.remote_cluster.is_some_and(|id| id != copy.cluster_id);
            if router.is_paused || router.config.remote.is_none() || is_other {
                return Planned::Stale;
            }
            let dest_epoch = dest.as_ref().map(|dest| dest.epoch);
            let position = router.positions.get(part.source);
            let is_older = position.is_some_and(|position| position.source_epoch > part.source_epoch);
            let known = position.filter(|position| position.goes_on(part.source_epoch, dest_epoch));
            let from_seq = known.map(|position| position.seq);
            if is_older || dest_epoch != part.dest_epoch || from_seq != part.from_seq {
                return Planned::Stale;
            }
        }
        if !dests.insert(part.dest.into()) {
            return Planned::Stale;
        }
        let (create_dest, has_position) = {
            let router = router.read();
            (router.config.create_dest, router.positions.contains_key(part.source))
        };
        let topic = dest.as_ref().map(|dest| dest.read());
        if let Some(refusal) = left.no_place(topic.as_deref(), create_dest, has_position) {
            let begun = part.start_seq.filter(|_| part.from_seq.is_none()).map(|seq| {
                let (source, source_epoch) = (part.source.into(), part.source_epoch);
                Box::new(Begun { router, source, source_epoch, seq })
            });
            return Planned::Refused(refusal, begun);
        }
        left.topics -= u64::from(dest.is_none());
        left.positions -= usize::from(!has_position);
        let mut planner = Planner::new(left, cluster.id, topic.as_deref(), part.dest);
        // Two of `instances` may be the same, and another cluster is not trusted to name anything once.
        let mut offered: BTreeMap<InstanceKey, SeqSet> = BTreeMap::new();
        let mut offered_gaps: BTreeMap<InstanceKey, Reported> = BTreeMap::new();
        let mut position = first_position;
        // Nothing is examined twice.
        let from_seq = part.from_seq.unwrap_or(0);
        planner.examined_seq = from_seq;
        if let Some(instance) = instances.get(part.source_instance as usize)
            && !planner.lost(instance, &part.lost)
            && let Some((_, refusal)) = planner.stopped
        {
            return Planned::Refused(refusal, None);
        }
        for item in &part.items {
            let is_examined = match item {
                CopyItem::Gap { instance, from_seq, to_seq } => {
                    let mut is_new = |instance: &Instance| {
                        let offered = offered_gaps.entry(instance.key()).or_default();
                        let covering = offered.range_of(*from_seq);
                        let is_new = covering.is_none_or(|covering| covering.end() < to_seq);
                        if is_new {
                            offered.insert(*from_seq..=*to_seq);
                        }
                        is_new
                    };
                    match instances.get(*instance as usize).filter(|instance| is_new(instance)) {
                        None => true,
                        Some(instance) => planner.lost(instance, &[*from_seq..=*to_seq]),
                    }
                }
                CopyItem::Records { instance, origin_seq, origin_ts_ms, source_seq, count } => {
                    let positions = position..position + *count as usize;
                    position = positions.end;
                    let seqs = *origin_seq..=origin_seq.saturating_add(u64::from(*count) - 1);
                    let mut is_new = |instance: &Instance| {
                        let offered = offered.entry(instance.key()).or_default();
                        let is_new = offered.next_present(*origin_seq).is_none_or(|seq| seq > *seqs.end());
                        offered.insert(seqs.clone());
                        is_new
                    };
                    match instances.get(*instance as usize).filter(|instance| is_new(instance)) {
                        None => true,
                        Some(instance) => {
                            planner.offer(&Offer {
                                // Named when the command is carried out.
                                entry: EntryId { term: 0, index: 0 },
                                first_position: positions.start as u32,
                                overlay: Overlay::default(),
                                source_seq: *source_seq,
                                instance,
                                origin_seq: *origin_seq,
                                origin_ts_ms: *origin_ts_ms,
                                sizes_bytes: &self.sizes_bytes[positions],
                            })
                        }
                    }
                }
            };
            if !is_examined {
                break;
            }
        }
        let (seq, entry, stopped) = match planner.stopped {
            Some((seq, refusal)) => (seq.max(from_seq), None, Some(refusal)),
            None if part.to_seq < from_seq => (from_seq, None, None),
            None => (part.to_seq, part.to_entry, None),
        };
        let Planner { items, sizes_bytes, bytes, new_origins, .. } = planner;
        drop(topic);
        Planned::Copies(Box::new(Copies {
            source: part.source.into(),
            source_epoch: part.source_epoch,
            router,
            dest: match dest {
                Some(dest) => Dest::Existing(dest),
                None => Dest::New { name: part.dest.into(), topic_type: part.source_type },
            },
            items,
            sizes_bytes,
            bytes,
            new_origins: new_origins.len(),
            seq,
            entry,
            stopped,
        }))
    }

    /// Carries out what was planned. `entry` holds the records of a mirror's copy.
    pub(super) fn forward(&mut self, entry: EntryId, copy: Option<&Copy<'_>>) -> Result<Applied, Malformed> {
        let (mut forwarded, mut touched) = (Vec::new(), Vec::new());
        for plan in std::mem::take(&mut self.planned_copies) {
            let copies = match plan {
                Planned::Stale => {
                    forwarded.push(Forwarded::stopped(Refusal::RouterMoved));
                    continue;
                }
                Planned::Refused(refusal, begun) => {
                    begun.into_iter().for_each(|begun| self.note_begun(*begun));
                    forwarded.push(Forwarded::stopped(refusal));
                    continue;
                }
                Planned::Copies(copies) => copies,
            };
            let (shared, is_new) = match &copies.dest {
                Dest::Existing(shared) => (shared.clone(), false),
                Dest::New { name, topic_type } => {
                    let config = TopicConfig { topic_type: *topic_type, ..TopicConfig::default() };
                    (self.create(name, config), true)
                }
            };
            self.expire_topic(&shared)?;
            self.append_items(&shared, entry, &copies)?;
            let taken = copies.sizes_bytes.len() as u64;
            {
                let mut router = copies.router.write();
                let (source_epoch, dest_epoch) = (copies.source_epoch, shared.epoch);
                let (seq, entry) = (copies.seq, copies.entry);
                router.set_position(&copies.source, Reached { source_epoch, dest_epoch, seq, entry });
                let held =
                    copy.and_then(|copy| copy.held.iter().find(|(source, _)| **source == *copies.source));
                if let Some((source, held_seq)) = held.filter(|(_, held_seq)| *held_seq < seq) {
                    router.hold(source, *held_seq);
                }
                router.forget_skips(&copies.source);
                router.count_forwarded(taken, self.time_ms);
            }
            self.routers.changed(&copies.router);
            forwarded.push(Forwarded { taken, seq: copies.seq, stopped: copies.stopped });
            if is_new || !copies.items.is_empty() {
                touched.push(shared);
            }
        }
        // Where to begin is asked until something was written of it.
        let is_carried_out = |part: &Forwarded| part.stopped != Some(Refusal::RouterMoved);
        if let Some(copy) = copy.filter(|_| forwarded.is_empty() || forwarded.iter().any(is_carried_out)) {
            self.note_remote(copy);
        }
        let last = touched.pop();
        Ok(Applied { outcome: Outcome::Forwarded(forwarded), touched: last, also_touched: touched })
    }

    /// Notes where a mirror begins in a topic, for whichever destination there will be.
    fn note_begun(&mut self, begun: Begun) {
        let Begun { router, source, source_epoch, seq } = begun;
        if !router.read().may_note_begun(&source, self.routers.shared.position_count()) {
            return;
        }
        let reached = Reached { source_epoch, dest_epoch: 0, seq, entry: None };
        let mut begun = router.write();
        begun.set_position(&source, reached);
        begun.forget_skips(&source);
        drop(begun);
        self.routers.changed(&router);
    }

    /// Notes which cluster a mirror reads, and forgets what is gone there.
    fn note_remote(&mut self, copy: &Copy<'_>) {
        let Some(shared) = self.routers.shared.of_generation(copy.generation) else { return };
        let own = self.cluster.as_ref().map(|cluster| cluster.id);
        let mut router = shared.write();
        let is_other = router.remote_cluster.is_some_and(|id| id != copy.cluster_id);
        if router.is_paused || router.config.remote.is_none() || is_other {
            return;
        }
        if router.remote_cluster.replace(copy.cluster_id).is_none() {
            router.first_new_epoch = copy.next_epoch;
        }
        let clusters = copy.instances.iter().map(|instance| instance.cluster_id);
        router.present(clusters.filter(|cluster| *cluster != copy.cluster_id && Some(*cluster) != own));
        copy.gone.iter().for_each(|source| router.remove_position(source));
        drop(router);
        self.routers.changed(&shared);
    }

    fn append_items(
        &mut self,
        shared: &Arc<SharedTopic>,
        entry: EntryId,
        copies: &Copies,
    ) -> Result<(), Malformed> {
        if copies.items.is_empty() {
            return Ok(());
        }
        let mut topic = shared.write();
        let due_before = topic.due_ms();
        for item in &copies.items {
            match item {
                Item::Gap { instance, range } => {
                    let gap = (instance, *range.start(), *range.end());
                    topic.append_gap(gap, self.time_ms, entry, &mut self.freed);
                }
                Item::Copies { run, sizes, instance, origin_seq, origin_ts_ms } => {
                    let is_here = run.entry.index == 0;
                    let entry = if is_here { entry } else { run.entry };
                    let run = Run { entry, ts_ms: self.time_ms, ..*run };
                    let origin = (instance, *origin_seq, *origin_ts_ms);
                    let sizes_bytes = &copies.sizes_bytes[sizes.clone()];
                    let run_count = topic.append_copies(run, origin, sizes_bytes, &mut self.freed);
                    self.live.add(entry.index, run_count);
                }
            }
        }
        topic.keep_within_caps(&mut self.freed)?;
        self.due.update(shared, due_before, topic.due_ms());
        self.dirty_topics.insert(shared.epoch, shared.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
