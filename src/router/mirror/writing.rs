//! What a mirror makes of an answer: one command, with what is new in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{Asked, Halt, Mirror, diverged};
use crate::engine::{Consistency, PullCursor};
use crate::limits::MAX_RELAYS;
use crate::record::{HeaderEdit, counted_bytes};
use crate::router::answer::{Answered, AnsweredPage, AnsweredTopic, Damage, PullAnswer};
use crate::router::page::{dest_of, is_records, leave_out, lost, numbered_anew, part, untaken};
use crate::router::why::Why;
use crate::state::{
    Cluster, ClusterRoom, Copy, CopyItem, CopyPart, Draft, Forwarded, Instance, OfferedRecord, Outcome,
    Ranges, Refusal, SharedTopic,
};

/// How far a topic is examined without writing that down; a new leader examines it again.
const MAX_AHEAD_SEQS: u64 = 10_000;

impl Mirror {
    /// Has written what is new in `answer`. Gives the topics of which the destination went away meanwhile.
    pub(super) async fn write(&mut self, answer: PullAnswer, asked: &Asked) -> Result<Vec<Arc<str>>, Halt> {
        let PullAnswer { cluster, next_epoch, instances, mut topics, .. } = answer;
        let config = self.config.clone();
        let (held, presents_new) = self.leave_out(&cluster, &instances, &mut topics);
        let mut moved: Vec<Arc<str>> = Vec::new();
        let (mut has_diverged, mut has_refused) = (false, false);
        let (mut parts, mut records, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        let mut refused: BTreeMap<&str, (Refusal, u64)> = BTreeMap::new();
        for topic in &topics {
            let page = match &topic.answer {
                Answered::Page(page) => page,
                Answered::Gone => {
                    let is_known = self.router.read().positions.contains_key(topic.topic.as_str());
                    if is_known {
                        gone.push(topic.topic.as_str());
                    } else {
                        // There is nothing to write down.
                        self.topics.forget(topic.topic.as_str());
                        self.ahead.remove(topic.topic.as_str());
                    }
                    continue;
                }
                Answered::Damaged(damage) => {
                    self.leave(&topic.topic, Why::Damaged(*damage), 0);
                    continue;
                }
                Answered::Diverged => {
                    has_diverged = true;
                    self.leave(&topic.topic, Why::Diverged, 0);
                    continue;
                }
            };
            // One that was made anew gets everything, and not what follows the end of the one before.
            if self.has_moved(asked, &topic.topic) {
                moved.push(topic.topic.as_str().into());
                continue;
            }
            let goes_on = asked.get(&topic.topic).filter(|asked| asked.source_epoch == topic.epoch);
            if goes_on.is_some_and(|asked| page.start_seq < asked.seq) {
                let damage = Damage::of_page("it begins before what was asked for");
                self.leave(&topic.topic, Why::Damaged(damage), 0);
                continue;
            }
            let dest_name = dest_of(&config, &topic.topic);
            let dest = self.context.engine.catalog().get(dest_name);
            if !self.is_plausible(page, &instances).await {
                let damage = Damage::of_page("it names records of this cluster that are none");
                self.leave(&topic.topic, Why::Damaged(damage), 0);
                continue;
            }
            let (items, kept) = untaken(page, &instances, dest.as_deref());
            let has_nothing = items.is_empty() && page.lost.seqs.is_empty() && !presents_new;
            let is_held = held.contains_key(topic.topic.as_str());
            if has_nothing && self.may_wait(topic, page, dest.as_deref(), is_held) {
                continue;
            }
            let has_position = self.router.read().positions.contains_key(topic.topic.as_str());
            let refusal = {
                let (room, dest) = (self.cluster_room(), dest.as_ref().map(|dest| dest.read()));
                let no_place = room.no_place(dest.as_deref(), config.create_dest, has_position);
                let offered = offered(&items, &kept, &instances);
                no_place
                    .map(|refusal| (refusal, 0))
                    .or_else(|| room.refusal(self.own.id, (dest_name, dest.as_deref()), offered))
            };
            // By now it may be another one again; then the command changes nothing.
            let asked = asked.get(&topic.topic);
            let asked_epoch = asked.map(|asked| asked.dest_epoch).filter(|epoch| *epoch > 0);
            let dest_epoch = asked_epoch.or(dest.as_ref().map(|dest| dest.epoch));
            let lost = lost(page, &instances, dest.as_deref()).clone();
            let mut part = part(asked, dest_name, (topic, page), items, lost, dest_epoch);
            if let Some((refusal, needed_bytes)) = refusal {
                if part.from_seq.is_some() || !self.may_note_begun(&topic.topic) {
                    self.topics.note_lag(&topic.topic, topic.head_seq.saturating_sub(page.start_seq));
                    self.leave(&topic.topic, Why::Refused(refusal), needed_bytes);
                    has_refused = true;
                    continue;
                }
                // Where it begins is written down all the same (C-ROUTE-02).
                part = CopyPart {
                    to_seq: page.start_seq,
                    to_entry: None,
                    lost: Ranges::new(),
                    items: Vec::new(),
                    ..part
                };
                refused.insert(&topic.topic, (refusal, needed_bytes));
            }
            for (item, records_of_item) in part.items.iter().filter(|item| is_records(item)).zip(kept) {
                let CopyItem::Records { instance, .. } = item else { continue };
                let origin = &instances[*instance as usize];
                records.extend(records_of_item.iter().map(|record| (record.clone(), origin)));
            }
            parts.push(part);
        }
        // Of which clusters there were records is written down even if none of them can be.
        let has_to_present = presents_new && has_refused;
        if parts.is_empty() && gone.is_empty() && !self.is_first_contact() && !has_to_present {
            // With one source there is nothing else to do.
            let is_all = has_diverged && !self.config.source.ends_with('*');
            return if is_all { Err(diverged("its history there is another one")) } else { Ok(moved) };
        }
        let known = match presents_new {
            true => self.router.read().presented.clone(),
            false => BTreeMap::new(),
        };
        let copied_instances = numbered_anew(&instances, &mut parts, |instance| {
            let id = instance.cluster_id;
            presents_new && ![cluster.id, self.own.id].contains(&id) && !known.contains_key(&id)
        });
        let copy = Copy {
            generation: self.router.generation,
            cluster_id: cluster.id,
            next_epoch,
            instances: copied_instances,
            parts,
            gone,
            held: held.iter().map(|(source, seq)| (source.as_str(), *seq)).collect(),
        };
        let draft = Draft::copy(
            &copy,
            records.iter().map(|(record, origin)| (&record[..], self.edit(&cluster, origin))),
        );
        let draft = draft.map_err(|malformed| {
            Halt::retrying("source_damaged", format!("what the remote sent cannot be stored: {malformed}"))
        })?;
        let forwarded = match self.context.engine.propose(draft).await {
            Ok((Outcome::Forwarded(forwarded), _)) => forwarded,
            Ok((Outcome::Refused(Refusal::BadRecord), _)) => {
                return Err(Halt::retrying("source_damaged", "what the remote sent is no record".into()));
            }
            Ok((_, _)) => return Err(Halt::retrying("no_leader", "the copies were refused".into())),
            Err(error) => return Err(Halt::retrying(error.code.name(), error.message)),
        };
        self.note(&copy, &topics, &forwarded, &refused).map(|()| moved)
    }

    /// What there is room for here, as far as this member has applied.
    pub(super) fn cluster_room(&self) -> ClusterRoom {
        let engine = &self.context.engine;
        ClusterRoom::of(engine.cluster_limits(), engine.catalog(), engine.routers())
    }

    /// Leaves `source` alone; its next record has so many counted bytes, 0 if that is not known.
    pub(super) fn leave(&mut self, source: &str, why: Why, needed_bytes: u64) {
        self.topics.leave(source, why, needed_bytes, &*self.context.random);
    }

    /// Takes out of the pages what the remote may not bring. Gives the seqs behind which something was, by topic, and
    /// whether it is the first time that the remote brings records of some cluster.
    fn leave_out(
        &self,
        remote: &Cluster,
        instances: &[Instance],
        topics: &mut [AnsweredTopic],
    ) -> (BTreeMap<String, u64>, bool) {
        let router = self.router.read();
        let may_bring = |instance: u32| {
            let cluster = instances[instance as usize].cluster_id;
            // Of its own records this cluster knows which can be.
            cluster == remote.id || cluster == self.own.id || router.may_bring(cluster)
        };
        let mut held = BTreeMap::new();
        for topic in topics {
            let Answered::Page(page) = &mut topic.answer else { continue };
            let position = router.positions.get(topic.topic.as_str());
            let from_seq = position.filter(|it| it.source_epoch == topic.epoch).map(|it| it.seq);
            if let Some(seq) = leave_out(page, from_seq, may_bring) {
                held.insert(topic.topic.clone(), seq);
            }
        }
        let is_new = |instance: &Instance| {
            let cluster = instance.cluster_id;
            cluster != remote.id && cluster != self.own.id && !router.presented.contains_key(&cluster)
        };
        (held, router.presented.len() < MAX_RELAYS && instances.iter().any(is_new))
    }

    /// Whether all that the page says was first written in this cluster can have been.
    pub(super) async fn is_plausible(&self, page: &AnsweredPage, instances: &[Instance]) -> bool {
        let engine = &self.context.engine;
        let is_own = |instance: u32| {
            let own = instances.get(instance as usize).filter(|it| it.cluster_id == self.own.id);
            own.map(|own| (&*own.topic, own.epoch))
        };
        let own = |item: &CopyItem| match item {
            CopyItem::Records { instance, origin_seq, count, .. } => {
                is_own(*instance).map(|own| (own, origin_seq + u64::from(*count) - 1))
            }
            CopyItem::Gap { instance, to_seq, .. } => is_own(*instance).map(|own| (own, *to_seq)),
        };
        let may_be = |((topic, epoch), seq): ((&str, u64), u64)| engine.may_have_written(topic, epoch, seq);
        if page.items.iter().filter_map(own).all(may_be) {
            return true;
        }
        // What another member has applied already may not have been here.
        engine.fence(Consistency::Strong).await.is_ok() && page.items.iter().filter_map(own).all(may_be)
    }

    /// Whether it is enough to remember that this page had nothing to copy; then it is remembered.
    pub(super) fn may_wait(
        &mut self,
        topic: &AnsweredTopic,
        page: &AnsweredPage,
        dest: Option<&SharedTopic>,
        is_held: bool,
    ) -> bool {
        let Some(dest) = dest else { return false };
        let stored_seq = {
            let router = self.router.read();
            let position = router
                .positions
                .get(topic.topic.as_str())
                .filter(|position| position.source_epoch == topic.epoch && dest.epoch == position.dest_epoch);
            // Where something was first left out is written down before anything behind it is passed.
            position.filter(|position| !is_held || position.held_seq.is_some()).map(|position| position.seq)
        };
        if stored_seq.is_none_or(|seq| page.to_seq - seq.min(page.to_seq) > MAX_AHEAD_SEQS) {
            return false;
        }
        let cursor = PullCursor { epoch: topic.epoch, seq: page.to_seq, entry: page.to_entry };
        self.ahead.insert(self.kept_name(&topic.topic), (dest.epoch, cursor));
        self.topics.goes_on(&topic.topic);
        self.topics.note_lag(&topic.topic, topic.head_seq.saturating_sub(page.to_seq));
        true
    }

    /// How a record that comes from `remote` is labelled here (C-MIRROR-07).
    pub(super) fn edit<'a>(&self, remote: &Cluster, origin: &'a Instance) -> HeaderEdit<'a> {
        let is_first_hop = origin.cluster_id == remote.id;
        HeaderEdit {
            drops_node: !self.config.preserve_node,
            drops_tag: !self.config.preserve_tag,
            default_node: (is_first_hop && self.config.preserve_node).then_some(&*origin.cluster),
        }
    }

    /// Notes what became of each part. Of those in `refused` only the beginning was written.
    pub(super) fn note(
        &mut self,
        copy: &Copy<'_>,
        topics: &[AnsweredTopic],
        forwarded: &[Forwarded],
        refused: &BTreeMap<&str, (Refusal, u64)>,
    ) -> Result<(), Halt> {
        let heads: BTreeMap<&str, u64> =
            topics.iter().map(|topic| (topic.topic.as_str(), topic.head_seq)).collect();
        let mut has_moved = false;
        for (part, outcome) in copy.parts.iter().zip(forwarded) {
            let left = heads.get(part.source).map_or(0, |head_seq| head_seq.saturating_sub(outcome.seq));
            match outcome.stopped.or_else(|| refused.get(part.source).map(|refused| refused.0)) {
                Some(Refusal::RouterMoved) => has_moved = true,
                None => {
                    self.topics.note_lag(part.source, left);
                    self.topics.goes_on(part.source);
                }
                Some(refusal) => {
                    self.topics.note_lag(part.source, left);
                    if outcome.taken > 0 {
                        // It comes along, if slowly.
                        self.topics.goes_on(part.source);
                    }
                    let needed_bytes = refused.get(part.source).map_or(0, |refused| refused.1);
                    self.leave(part.source, Why::Refused(refusal), needed_bytes);
                }
            }
            self.ahead.remove(part.source);
        }
        for source in &copy.gone {
            self.topics.forget(source);
            self.ahead.remove(*source);
        }
        if !has_moved {
            return Ok(());
        }
        // Positions are not what they were when the pull began; the next one begins with them.
        Err(Halt::retrying("no_leader", "the router was changed meanwhile".into()))
    }
}

/// The first record of each of `items`, whose records are `kept`. One that is damaged is found out elsewhere.
fn offered<'a>(
    items: &'a [CopyItem],
    kept: &'a [&[Bytes]],
    instances: &'a [Instance],
) -> impl Iterator<Item = OfferedRecord<'a>> {
    items.iter().filter(|item| is_records(item)).zip(kept).filter_map(|(item, records)| {
        let CopyItem::Records { instance, origin_seq, .. } = item else { return None };
        let size_bytes = counted_bytes(records.first()?).ok()?;
        let instance = instances.get(*instance as usize)?;
        Some(OfferedRecord { instance, origin_seq: *origin_seq, size_bytes: u32::try_from(size_bytes).ok()? })
    })
}
