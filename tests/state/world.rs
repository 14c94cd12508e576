//! Clusters of one pure state each, and the links between them, moved by hand: what the tests of copies play with.

use std::collections::BTreeMap;
use std::sync::Arc;

use antiphon::record::{EntryRecords, HeaderEdit, Record};
use antiphon::state::{
    Append, Cluster, Copy, CopyItem, CopyPart, Create, DeleteRecords, Draft, Envelope, Forwarded, Instance,
    Listed, Located, Outcome, PutRouter, Ranges, Remote, RoutePart, RouterConfig, Run, Start, State,
    TopicConfig, TopicType, lost_seqs,
};
use antiphon::storage::EntryId;

use crate::member;

/// The topic that mirrors bring from cluster to cluster.
pub const SHARED: &str = "t";

/// Where a record was first written: cluster, topic, epoch, seq.
pub type Origin = (usize, String, u64, u64);

/// What a seq of the shared topic was given to.
#[derive(Debug, Clone)]
pub enum Slot {
    Record(Origin),
    Gap { cluster: usize, epoch: u64, from_seq: u64, to_seq: u64 },
}

/// A live record of a topic.
#[derive(Debug, Clone)]
pub struct Held {
    pub seq: u64,
    pub origin: Origin,
    pub instance: Arc<Instance>,
    pub origin_ts_ms: u64,
    pub stored: Vec<u8>,
}

/// What a mirror pulled and has not written yet.
#[derive(Debug, Clone)]
pub struct Pulled {
    pub to: usize,
    pub copy: Copy<'static>,
    pub records: Vec<Vec<u8>>,
}

pub struct Member {
    pub at: usize,
    pub state: State,
    log: BTreeMap<EntryId, EntryRecords>,
    checkpoint: BTreeMap<Vec<u8>, Vec<u8>>,
    index: u64,
    pub now_ms: u64,
    /// By epoch of the shared topic, in order of seq.
    pub slots: BTreeMap<u64, Vec<Slot>>,
}

pub fn cluster_id(at: usize) -> u128 {
    700 + at as u128
}

fn cluster_at(id: u128) -> usize {
    (id - 700) as usize
}

impl Member {
    pub fn new(at: usize) -> Self {
        let mut member = Member {
            at,
            state: State::default(),
            log: BTreeMap::new(),
            checkpoint: BTreeMap::new(),
            index: 0,
            now_ms: 1_000_000,
            slots: BTreeMap::new(),
        };
        member.apply(Draft::open_session());
        member.apply(Draft::set_cluster(&Cluster { id: cluster_id(at), name: format!("c{at}") }));
        member
    }

    pub fn apply(&mut self, draft: Draft) -> Outcome {
        self.index += 1;
        self.now_ms += 1;
        let (index, number) = (self.index, self.index);
        let command = draft.seal(Envelope { node_id: 1, session: 5, number, done_below: number });
        let entry = EntryId { term: 1, index };
        self.log.insert(entry, EntryRecords::parse(command.clone()).expect("own entries can be read"));
        let outcome =
            self.state.apply_command(entry, self.now_ms, &command).expect("all is in memory").outcome;
        member::check(&self.state, index);
        self.note_slots();
        outcome
    }

    /// Notes what new seqs of the shared topic were given to.
    fn note_slots(&mut self) {
        let Some(shared) = self.state.catalog().get(SHARED) else { return };
        let known = self.slots.get(&shared.epoch).map_or(0, |slots| slots.len() as u64);
        let head_seq = shared.read().head_seq;
        if head_seq == known {
            return;
        }
        let held = self.held(SHARED);
        let mut new = Vec::new();
        for seq in known + 1..=head_seq {
            let gap = shared.read().origins.gaps_in(seq..=seq).next();
            new.push(match (gap, held.iter().find(|held| held.seq == seq)) {
                (Some((_, gap)), None) => {
                    let topic = shared.read();
                    let instance = topic.origins.instance(gap.number).expect("gaps name origins");
                    let (cluster, epoch) = (cluster_at(instance.cluster_id), instance.epoch);
                    Slot::Gap { cluster, epoch, from_seq: gap.from_seq, to_seq: gap.to_seq }
                }
                (None, Some(held)) => Slot::Record(held.origin.clone()),
                other => panic!("seq {seq} holds {other:?}"),
            });
        }
        self.slots.entry(shared.epoch).or_default().extend(new);
    }

    /// Appends records that say where they were written, all in one entry.
    pub fn write(&mut self, topic: &str, count: u64) {
        let shared = self.state.catalog().get(topic);
        // Topics and routers draw their numbers from one row; a topic that is made now gets the next one.
        let (epoch, seq) = shared.map_or((0, 1), |shared| (shared.epoch, shared.read().head_seq + 1));
        let data: Vec<String> =
            (seq..seq + count).map(|seq| format!("\"{}:{topic}:{epoch}:{seq}\"", self.at)).collect();
        let create = Create::With(TopicConfig::default());
        let append = Append { topic, create, expect_head_seq: None, idempotency_key: None };
        let records = data.iter().map(|data| Record { data, ..Record::default() });
        let outcome = self.apply(Draft::append(&append, records, 0));
        assert!(matches!(outcome, Outcome::Appended(_)), "{outcome:?}");
    }

    pub fn make_topic(&mut self, topic: &str, config: &TopicConfig) {
        assert!(matches!(self.apply(Draft::put_topic(topic, config)), Outcome::TopicPut { .. }));
    }

    /// Makes the shared topic anew, and the local routers that went with it.
    pub fn remake_topic(&mut self) {
        let outcome = self.apply(Draft::delete_topic(SHARED, false));
        let Outcome::TopicDeleted { routers_removed, .. } = outcome else { panic!("{outcome:?}") };
        self.make_topic(SHARED, &TopicConfig::default());
        for (from, to) in routers_removed.iter().filter_map(|router| router.split_once('>')) {
            self.route_locally(from, to);
        }
    }

    /// Evicts all but the newest `kept` records of the shared topic.
    pub fn evict(&mut self, kept: u64) {
        self.make_topic(SHARED, &TopicConfig { cap_records: kept, ..TopicConfig::default() });
        self.make_topic(SHARED, &TopicConfig::default());
    }

    pub fn delete(&mut self, ranges: Ranges) {
        let Some(shared) = self.state.catalog().get(SHARED) else { return };
        let listed = Some(Listed { epoch: shared.epoch, ranges, late: None });
        let outcome =
            self.apply(Draft::delete_records(&DeleteRecords { topic: SHARED, before_seq: None, listed }));
        assert!(matches!(outcome, Outcome::RecordsDeleted(_)), "{outcome:?}");
    }

    pub fn put_router(&mut self, name: &str, config: RouterConfig) {
        let outcome = self.apply(Draft::put_router(&PutRouter { name, config, is_start_given: true }));
        assert!(matches!(outcome, Outcome::RouterPut { .. }), "{outcome:?}");
    }

    /// A mirror of the shared topic of the cluster `from`.
    pub fn mirror(&mut self, from: usize) {
        let remote = Some(Remote { urls: vec!["http://there:4000".into()], token: None, relays: None });
        let start = Start::Earliest;
        self.put_router(&link_name(from), RouterConfig { remote, start, ..RouterConfig::local("t*", "*") });
    }

    /// A local router that passes everything on.
    pub fn route_locally(&mut self, from: &str, to: &str) {
        let (start, allow_cycle) = (Start::Earliest, true);
        let config = RouterConfig { start, allow_cycle, ..RouterConfig::local(from, to) };
        self.put_router(&format!("{from}>{to}"), config);
    }

    /// Lets a local router copy what is due, at most so many seqs. `false` if nothing was.
    pub fn route(&mut self, router: &str, most: u64) -> bool {
        let Some(shared) = self.state.routers().get(router) else { return false };
        let position = *shared.read().positions.get(&*shared.source).expect("a local router has its place");
        let head_seq = self.state.catalog().get(&shared.source).expect("its source is there").read().head_seq;
        if position.seq == head_seq {
            return false;
        }
        let to_seq = head_seq.min(position.seq + most);
        let (generation, from_seq) = (shared.generation, position.seq);
        let part = RoutePart { generation, from_seq, to_seq, picked: None };
        let moved = forwarded(self.apply(Draft::route(std::slice::from_ref(&part))));
        assert!(moved.stopped.is_none() && moved.seq >= to_seq, "{moved:?}");
        // The same command once more finds another position.
        let before = self.held(&shared.dest).len();
        let again = forwarded(self.apply(Draft::route(&[part])));
        assert!(again.stopped.is_some() && again.taken == 0);
        assert_eq!(self.held(&shared.dest).len(), before);
        true
    }

    /// Live records, in order.
    pub fn held(&self, topic: &str) -> Vec<Held> {
        let Some(shared) = self.state.catalog().get(topic) else { return Vec::new() };
        let topic = shared.read();
        let own = Arc::new(Instance {
            cluster_id: cluster_id(self.at),
            cluster: format!("c{}", self.at).into(),
            topic: topic.name.clone(),
            epoch: topic.epoch,
        });
        let (mut held, mut cursor) = (Vec::new(), topic.earliest_seq - 1);
        loop {
            let runs = match topic.locate(cursor, None).expect("own runs can be read") {
                Located::Runs(runs) => runs,
                Located::AtHead => break,
                Located::BelowEarliest | Located::Cold { .. } => panic!("small topics are in memory"),
            };
            for run in runs {
                cursor = run.last_seq();
                held.extend((run.first_seq..=run.last_seq()).map(|seq| self.held_at(run, seq, &topic, &own)));
            }
        }
        drop(topic);
        held
    }

    fn held_at(&self, run: Run, seq: u64, topic: &antiphon::state::Topic, own: &Arc<Instance>) -> Held {
        let run = run.part(seq, 1);
        let (instance, origin_seq, origin_ts_ms) = match run.origin {
            None => (own.clone(), seq, run.ts_ms),
            Some(origin) => {
                let instance = topic.origins.instance(origin.number).expect("runs name origins");
                (instance.clone(), origin.first_seq, origin.ts_ms)
            }
        };
        let stored = self.log[&run.entry].record(run.first_position).expect("runs name records").to_vec();
        let (cluster, name, epoch) =
            (cluster_at(instance.cluster_id), instance.topic.to_string(), instance.epoch);
        let data = Record::decode(&stored).expect("a record").data.trim_matches('"').to_owned();
        let known: Vec<&str> = data.split(':').collect();
        let said = (known[0].parse().ok(), known[1], known[3].parse().ok());
        assert_eq!(said, (Some(cluster), &*name, Some(origin_seq)), "content and origin belong together");
        assert!(known[2] == "0" || known[2].parse() == Ok(epoch), "{data} is not of epoch {epoch}");
        Held { seq, origin: (cluster, name, epoch, origin_seq), instance, origin_ts_ms, stored }
    }

    /// Whether the topic has ever had this record, or an earlier one of its name had it first.
    pub fn took(&self, topic: &str, origin: &Origin) -> bool {
        let Some(shared) = self.state.catalog().get(topic) else { return false };
        let (cluster, name, epoch, seq) = origin;
        if (*cluster, name.as_str()) == (self.at, topic) {
            return *epoch <= shared.epoch;
        }
        let topic = shared.read();
        let all = topic.origins.all();
        let of = all.iter().find(|known| {
            let instance = &known.instance;
            (cluster_at(instance.cluster_id), &*instance.topic, instance.epoch) == (*cluster, name, *epoch)
        });
        of.is_some_and(|known| known.taken.contains(*seq))
    }

    /// What the mirror of the shared topic of `from` has to write next: at most so many records and gaps.
    pub fn pull(&self, from: &Member, most: usize) -> Option<Pulled> {
        let router = self.state.routers().get(&link_name(from.at))?;
        let dest_epoch = self.state.catalog().get(SHARED).map(|dest| dest.epoch);
        let position = router.read().positions.get(SHARED).copied();
        let position = position.filter(|position| Some(position.dest_epoch) == dest_epoch);
        let source = from.state.catalog().get(SHARED)?;
        let position = position.filter(|position| position.source_epoch == source.epoch);
        let cursor = position.map_or(0, |position| position.seq);
        let held = from.held(SHARED);
        let topic = source.read();
        let is_echo =
            |instance: &Instance| instance.cluster_id == cluster_id(self.at) && *instance.topic == *SHARED;
        let mut instances = vec![Instance {
            cluster_id: cluster_id(from.at),
            cluster: format!("c{}", from.at).into(),
            topic: SHARED.into(),
            epoch: source.epoch,
        }];
        let mut number = |instance: &Instance| match instances.iter().position(|known| known == instance) {
            Some(number) => number as u32,
            None => {
                instances.push(instance.clone());
                instances.len() as u32 - 1
            }
        };
        let (mut to_seq, mut lost) = (cursor, Vec::new());
        let evicted_to_seq = topic.floors.evict() - 1;
        if evicted_to_seq > cursor {
            lost = lost_seqs(&topic, cursor + 1..=evicted_to_seq, |origin| is_echo(&origin.instance));
            to_seq = evicted_to_seq;
        }
        let (mut items, mut records): (Vec<CopyItem>, Vec<Vec<u8>>) = (Vec::new(), Vec::new());
        while to_seq < topic.head_seq && items.len().max(records.len()) < most {
            let seq = to_seq + 1;
            to_seq = seq;
            if let Some((_, gap)) = topic.origins.gaps_in(seq..=seq).next() {
                let instance = topic.origins.instance(gap.number).expect("gaps name origins");
                if !is_echo(instance) {
                    let (from_seq, to_seq) = (gap.from_seq, gap.to_seq);
                    items.push(CopyItem::Gap { instance: number(instance), from_seq, to_seq });
                }
            }
            let Some(held) = held.iter().find(|held| held.seq == seq) else { continue };
            if is_echo(&held.instance) {
                continue;
            }
            let (instance, seq_there, ts_there) = (number(&held.instance), held.origin.3, held.origin_ts_ms);
            records.push(held.stored.clone());
            if let Some(CopyItem::Records { instance: known, origin_seq, origin_ts_ms, source_seq, count }) =
                items.last_mut()
                && (*known, *origin_ts_ms) == (instance, ts_there)
                && (*origin_seq + u64::from(*count), *source_seq + u64::from(*count)) == (seq_there, seq)
            {
                *count += 1;
                continue;
            }
            items.push(CopyItem::Records {
                instance,
                origin_seq: seq_there,
                origin_ts_ms: ts_there,
                source_seq: seq,
                count: 1,
            });
        }
        if position.is_some() && to_seq == cursor {
            return None;
        }
        let part = CopyPart {
            source: SHARED,
            source_epoch: source.epoch,
            source_type: TopicType::Log,
            source_instance: 0,
            dest: SHARED,
            dest_epoch,
            from_seq: position.map(|position| position.seq),
            start_seq: Some(0),
            to_seq,
            to_entry: None,
            lost,
            items,
        };
        let (generation, cluster_id) = (router.generation, cluster_id(from.at));
        let (parts, gone, held) = (vec![part], Vec::new(), Vec::new());
        let copy = Copy { generation, cluster_id, next_epoch: 1, instances, parts, gone, held };
        Some(Pulled { to: self.at, copy, records })
    }

    /// Writes what was pulled.
    pub fn copy(&mut self, pulled: &Pulled) -> Forwarded {
        let records = pulled.records.iter().map(|stored| (&stored[..], HeaderEdit::default()));
        forwarded(self.apply(Draft::copy(&pulled.copy, records).expect("own records can be read")))
    }

    /// Ends, and begins again from its checkpoint.
    pub fn restart(&mut self) {
        let digest = self.state.digest();
        for (key, value) in self.state.take_changes().values {
            match value {
                Some(value) => self.checkpoint.insert(key, value),
                None => self.checkpoint.remove(&key),
            };
        }
        self.state = State::default();
        for (key, value) in &self.checkpoint {
            self.state.restore(key, value).expect("own checkpoint can be read");
        }
        // What deleted topics left behind would be cleared away in the background.
        for key in self.state.restored() {
            self.checkpoint.remove(&key.encode());
        }
        assert_eq!(self.state.digest(), digest);
    }
}

pub fn link_name(from: usize) -> String {
    format!("from-{from}")
}

pub fn forwarded(outcome: Outcome) -> Forwarded {
    match outcome {
        Outcome::Forwarded(parts) if parts.len() == 1 => parts[0],
        other => panic!("{other:?}"),
    }
}
