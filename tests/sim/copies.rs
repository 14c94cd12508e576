//! The book of mirrored topics: which record was seen where, in any cluster.
//!
//! A record is known by where it was first written: that is what must be the same wherever it comes to, and there
//! only once.

use std::collections::{BTreeMap, HashMap};

use antiphon::engine::{Page, RecordOrigin};
use parking_lot::Mutex;

use crate::oracle::{Fate, RecordId, parse_id};
use crate::trace::Trace;

/// A topic instance: cluster, topic, epoch.
pub type Place = (String, String, u64);
/// The first write of a record: its instance, and its seq there.
pub type Key = (Place, u64);

/// What may become of a mirrored topic and its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Steady,
    Fleeting,
    Losing,
    Pruned,
}

pub fn kind(topic: &str) -> Kind {
    match topic {
        "far-fleeting" => Kind::Fleeting,
        "far-losing" => Kind::Losing,
        "far-pruned" => Kind::Pruned,
        _ => Kind::Steady,
    }
}

struct Attempt {
    cluster: String,
    topic: String,
    count: u32,
    fate: Fate,
}

#[derive(Default)]
struct Story {
    attempts: Vec<Attempt>,
    seen: BTreeMap<Place, BTreeMap<u64, Key>>,
    /// Where in an instance a record is.
    seqs: HashMap<(Place, Key), u64>,
    ids: BTreeMap<Key, RecordId>,
    keys: HashMap<RecordId, Key>,
}

/// The book of one history.
pub struct Book {
    trace: Trace,
    story: Mutex<Story>,
}

impl Book {
    pub fn new(trace: Trace) -> Self {
        Book { trace, story: Mutex::default() }
    }

    pub fn begin(&self, cluster: &str, topic: &str, count: u32) -> usize {
        let mut story = self.story.lock();
        let (cluster, topic) = (cluster.to_owned(), topic.to_owned());
        story.attempts.push(Attempt { cluster, topic, count, fate: Fate::Unknown });
        story.attempts.len() - 1
    }

    pub fn end(&self, number: usize, fate: Fate) {
        self.story.lock().attempts[number].fate = fate;
    }

    /// A page of `topic` that was read in `cluster` from `from_seq` on.
    pub fn page(&self, cluster: &str, topic: &str, from_seq: u64, page: &Page) {
        let place: Place = (cluster.to_owned(), topic.to_owned(), page.epoch);
        let mut complaints = Vec::new();
        if let Some(tombstone) = &page.tombstone {
            let is_right = match tombstone.reason {
                "cap" | "ttl" | "mixed" | "source_trim" => kind(topic) == Kind::Losing,
                "recreated" => kind(topic) == Kind::Fleeting,
                _ => false,
            };
            if !is_right {
                complaints.push(format!("{tombstone:?}"));
            }
        }
        let mut story = self.story.lock();
        let mut before = match &page.tombstone {
            None => from_seq,
            Some(tombstone) if tombstone.reason == "recreated" => tombstone.earliest_seq - 1,
            Some(tombstone) => tombstone.gap_to,
        };
        for record in &page.records {
            let has_hole = record.seq != before + 1 && kind(topic) == Kind::Steady;
            if record.seq <= before || has_hole {
                complaints.push(format!("seq {} after {before}", record.seq));
            }
            before = record.seq;
            let data = record.content().ok().and_then(|content| parse_id(content.data));
            let Some(id) = data else {
                complaints.push(format!("seq {} cannot be read", record.seq));
                continue;
            };
            let key = match &record.origin {
                None => (place.clone(), record.seq),
                Some(origin) => key_of(origin),
            };
            complaints.extend(story.note(&place, record.seq, key, id, record.origin.is_some()));
        }
        drop(story);
        for complaint in complaints {
            self.trace.complain(format_args!("{cluster} {topic} epoch {}: {complaint}", page.epoch));
        }
    }

    /// The record that was first written there, as far as anybody knows.
    pub fn id(&self, key: &Key) -> Option<RecordId> {
        let story = self.story.lock();
        let ((cluster, topic, _), seq) = key;
        let is_acked = |attempt: &&Attempt| attempt.cluster == *cluster && attempt.topic == *topic;
        story.ids.get(key).copied().or_else(|| {
            story.attempts.iter().enumerate().filter(|(_, attempt)| is_acked(attempt)).find_map(
                |(number, attempt)| match attempt.fate {
                    Fate::Acked { first_seq } if *seq >= first_seq => {
                        let part = seq - first_seq;
                        (part < u64::from(attempt.count)).then_some((number, part as u32))
                    }
                    _ => None,
                },
            )
        })
    }

    /// Where in an instance a record was seen.
    pub fn seq_in(&self, place: &Place, key: &Key) -> Option<u64> {
        self.story.lock().seqs.get(&(place.clone(), key.clone())).copied()
    }

    /// Whether a record was seen in an instance.
    pub fn is_seen(&self, place: &Place, key: &Key) -> bool {
        self.seq_in(place, key).is_some()
    }

    /// Checks what needs the whole story: nothing acked is gone, and what comes from one instance is in its order.
    /// How many copies there are.
    pub fn finish(&self, is_ordered: bool) -> u64 {
        let story = self.story.lock();
        let mut complaints = Vec::new();
        for (number, attempt) in story.attempts.iter().enumerate() {
            let found: Vec<Option<&Key>> =
                (0..attempt.count).map(|part| story.keys.get(&(number, part))).collect();
            let is_whole = |first_seq: u64| {
                let mut seqs = found.iter().zip(first_seq..);
                seqs.all(|(key, seq)| key.is_some_and(|(_, at)| *at == seq))
            };
            let is_right = match attempt.fate {
                Fate::Acked { first_seq } => kind(&attempt.topic) != Kind::Steady || is_whole(first_seq),
                Fate::Refused => found.iter().all(Option::is_none),
                Fate::Unknown => true,
            };
            if !is_right {
                let Attempt { cluster, topic, fate, .. } = attempt;
                complaints
                    .push(format!("append {number} to {topic} of {cluster}, {fate:?}, is at {found:?}"));
            }
        }
        for (place, records) in &story.seen {
            let mut last: BTreeMap<&Place, u64> = BTreeMap::new();
            for (seq, (from, origin_seq)) in records {
                let is_checked = is_ordered && matches!(kind(&place.1), Kind::Steady | Kind::Fleeting);
                if last.insert(from, *origin_seq).is_some_and(|last| last > *origin_seq) && is_checked {
                    complaints.push(format!("{place:?} has seq {origin_seq} of {from:?} late, at {seq}"));
                }
            }
        }
        let copies =
            story.seen.iter().flat_map(|(place, all)| all.values().filter(move |key| key.0 != *place));
        let copies = copies.count() as u64;
        drop(story);
        complaints.into_iter().take(10).for_each(|complaint| self.trace.complain(complaint));
        copies
    }
}

impl Story {
    fn note(&mut self, place: &Place, seq: u64, key: Key, id: RecordId, is_copy: bool) -> Vec<String> {
        let mut complaints = Vec::new();
        let is_home = (&key.0.0, &key.0.1) == (&place.0, &place.1);
        if is_copy && is_home {
            complaints.push(format!("{key:?} has come home, to seq {seq}"));
        }
        let known = self.seen.entry(place.clone()).or_default().entry(seq).or_insert_with(|| key.clone());
        if *known != key {
            complaints.push(format!("seq {seq} is {key:?}, and was {known:?}"));
        }
        let first = *self.seqs.entry((place.clone(), key.clone())).or_insert(seq);
        if first != seq {
            complaints.push(format!("{key:?} is at {first} and at {seq}"));
        }
        let known = *self.ids.entry(key.clone()).or_insert(id);
        if known != id {
            complaints.push(format!("{key:?} is {id:?}, and was {known:?}"));
        }
        let known = self.keys.entry(id).or_insert_with(|| key.clone());
        if *known != key {
            complaints.push(format!("{id:?} is of {key:?} and of {known:?}"));
        }
        let is_written = self.attempts.get(id.0).is_some_and(|attempt| {
            attempt.cluster == key.0.0 && attempt.topic == key.0.1 && id.1 < attempt.count
        });
        if !is_written {
            complaints.push(format!("{id:?} was not written to {key:?}"));
        }
        complaints
    }
}

fn key_of(origin: &RecordOrigin) -> Key {
    let instance = &origin.instance;
    ((instance.cluster.to_string(), instance.topic.to_string(), instance.epoch), origin.seq)
}
