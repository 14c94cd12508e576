//! What the clients were told, and whether what they see agrees with it.
//!
//! Everything happens in one thread, so a counter that moves with each begin and end orders all calls:
//! what ended before another began happened before it. Records carry the number of their attempt, and
//! whoever reads reports what it saw, so that a record that is somewhere else at another member, or later,
//! is found at once. What needs the whole story is checked at the end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::trace::Trace;

/// What an attempt's client knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The records are there, from this seq on.
    Acked { first_seq: u64 },
    /// None of the records is there, now or later.
    Refused,
    /// All of the records are there once, or none is.
    Unknown,
}

/// One batch, and all tries to append it.
#[derive(Debug)]
struct Attempt {
    topic: String,
    count: u32,
    began: u64,
    ended: u64,
    fate: Fate,
    /// Some try failed before the last: it may have been placed long before it was acked.
    is_repeated: bool,
}

struct Delete {
    topic: String,
    began: u64,
    /// `u64::MAX` if it may still take effect.
    ended: u64,
}

/// What a strong read told.
struct StrongRead {
    ended: u64,
    epoch: u64,
    head_seq: u64,
}

/// Number of an attempt, and place in its batch.
pub type RecordId = (usize, u32);
/// Epoch and seq.
type Place = (u64, u64);
/// Topic, epoch, and the tag that was asked for.
type Asked = (String, u64, Option<String>);

#[derive(Default)]
struct Story {
    now: u64,
    attempts: Vec<Attempt>,
    deletes: Vec<Option<Delete>>,
    prunes: Vec<Prune>,
    seen: BTreeMap<(String, Place), (RecordId, u64)>,
    places: HashMap<RecordId, Place>,
    /// What was not shown to who asked for what is there, or for what of that has a tag: seqs.
    passed: BTreeMap<Asked, BTreeSet<u64>>,
    strong_reads: BTreeMap<String, Vec<StrongRead>>,
    digests: BTreeMap<u64, (u64, usize)>,
    tally: Tally,
}

/// Totals of a history.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub acked: u64,
    pub refused: u64,
    pub unknown: u64,
    pub reads: u64,
    /// Records that watchers were shown.
    pub watched: u64,
    /// Copies that the clusters hold in the end.
    pub mirrored: u64,
    pub faults: u64,
    /// Times that a member came by an entry that another one, or itself, had applied before.
    pub digests: u64,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.acked += other.acked;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.reads += other.reads;
        self.watched += other.watched;
        self.mirrored += other.mirrored;
        self.faults += other.faults;
        self.digests += other.digests;
    }
}

/// The book of one history.
pub struct Oracle {
    trace: Arc<Trace>,
    story: Mutex<Story>,
}

/// What a page told, as the oracle needs it.
pub struct Seen<'a> {
    pub member: usize,
    pub topic: &'a str,
    pub epoch: u64,
    pub from_seq: u64,
    pub next_from_seq: u64,
    pub head_seq: u64,
    /// Only records of this tag were asked for.
    pub tag: Option<&'a str>,
    /// Seq, time and data of each record.
    pub records: Vec<(u64, u64, String)>,
}

/// The data of a record, with `pad_bytes` to make it larger.
pub fn data(id: RecordId, pad_bytes: usize) -> String {
    format!("\"{}.{}:{}\"", id.0, id.1, "x".repeat(pad_bytes))
}

/// Whether records of a topic may be gone without having been deleted.
fn loses_records(topic: &str) -> bool {
    topic.starts_with("losing-")
}

/// Whether they may be gone from anywhere in it, in silence.
fn is_pruned(topic: &str) -> bool {
    topic.starts_with("pruned-")
}

/// The tag of a record.
pub fn tag(id: RecordId) -> String {
    format!("t{}", (id.0 as u32).wrapping_add(id.1) % 4)
}

/// A delete of records.
struct Prune {
    topic: String,
    tag: Option<String>,
    before_seq: Option<u64>,
    /// The head when it was ordered, and when that was known.
    ordered: Option<(u64, u64)>,
}

impl Prune {
    fn is_about(&self, topic: &str, id: RecordId, seq: u64) -> bool {
        self.topic == topic
            && self.tag.as_ref().is_none_or(|wanted| *wanted == tag(id))
            && self.before_seq.is_none_or(|before_seq| seq < before_seq)
            && self.ordered.is_none_or(|(head_seq, _)| seq <= head_seq)
    }
}

/// The record that has this data.
pub fn parse_id(data: &str) -> Option<RecordId> {
    let (attempt, part) = data.strip_prefix('"')?.split_once(':')?.0.split_once('.')?;
    Some((attempt.parse().ok()?, part.parse().ok()?))
}

impl Story {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn pass(&mut self, seen: &Seen<'_>, seqs: RangeInclusive<u64>) {
        let key = (seen.topic.to_owned(), seen.epoch, seen.tag.map(str::to_owned));
        self.passed.entry(key).or_default().extend(seqs);
    }

    /// Whether some delete may have removed what was appended by an attempt that began at `began`, before
    /// a read that ended at `until`.
    fn may_be_deleted(&self, topic: &str, began: u64, until: u64) -> bool {
        let mut deletes = self.deletes.iter().flatten();
        deletes.any(|delete| delete.topic == topic && delete.ended > began && delete.began < until)
    }
}

impl Oracle {
    pub fn new(trace: Arc<Trace>) -> Self {
        Oracle { trace, story: Mutex::default() }
    }

    pub fn tally(&self) -> Tally {
        self.story.lock().tally
    }

    pub fn count_fault(&self) {
        self.story.lock().tally.faults += 1;
    }

    pub fn begin_append(&self, topic: &str, count: u32) -> usize {
        let mut story = self.story.lock();
        let began = story.tick();
        story.attempts.push(Attempt {
            topic: topic.to_owned(),
            count,
            began,
            ended: u64::MAX,
            fate: Fate::Unknown,
            is_repeated: false,
        });
        story.attempts.len() - 1
    }

    pub fn end_append(&self, number: usize, fate: Fate, is_repeated: bool) {
        let mut story = self.story.lock();
        let ended = story.tick();
        match fate {
            Fate::Acked { .. } => story.tally.acked += 1,
            Fate::Refused => story.tally.refused += 1,
            Fate::Unknown => story.tally.unknown += 1,
        }
        let attempt = &mut story.attempts[number];
        (attempt.ended, attempt.fate, attempt.is_repeated) = (ended, fate, is_repeated);
    }

    pub fn begin_delete(&self, topic: &str) -> usize {
        let mut story = self.story.lock();
        let began = story.tick();
        story.deletes.push(Some(Delete { topic: topic.to_owned(), began, ended: u64::MAX }));
        story.deletes.len() - 1
    }

    /// `is_known` says that it took effect or not by now; `is_refused` that it never will.
    pub fn end_delete(&self, number: usize, is_known: bool, is_refused: bool) {
        let mut story = self.story.lock();
        let now = story.tick();
        if is_refused {
            story.deletes[number] = None;
        } else if is_known && let Some(delete) = &mut story.deletes[number] {
            delete.ended = now;
        }
    }

    pub fn begin_prune(&self, topic: &str, tag: Option<String>, before_seq: Option<u64>) -> usize {
        let mut story = self.story.lock();
        story.prunes.push(Prune { topic: topic.to_owned(), tag, before_seq, ordered: None });
        story.prunes.len() - 1
    }

    /// It took effect when `head_seq` was the head. One that never ends may have, at any time.
    pub fn end_prune(&self, number: usize, head_seq: Option<u64>) {
        let mut story = self.story.lock();
        let now = story.tick();
        story.prunes[number].ordered = head_seq.map(|head_seq| (head_seq, now));
    }

    /// C-DEL-05: what a strong read that began at `began` showed had not been deleted before.
    pub fn check_pruned(&self, member: usize, topic: &str, began: u64, seqs: impl Iterator<Item = u64>) {
        let story = self.story.lock();
        let prunes =
            || story.prunes.iter().filter(|prune| prune.ordered.is_some_and(|(_, ended)| ended < began));
        let by_seq = |seq: u64| {
            story
                .seen
                .range((topic.to_owned(), (0, 0))..)
                .find(|((of, (_, at)), _)| of == topic && *at == seq)
        };
        let shown = if is_pruned(topic) { seqs.collect() } else { Vec::new() };
        let back = shown.into_iter().find(|seq| {
            by_seq(*seq).is_some_and(|(_, (id, _))| prunes().any(|prune| prune.is_about(topic, *id, *seq)))
        });
        drop(story);
        if let Some(seq) = back {
            self.trace.complain(format_args!("m{} {topic}: seq {seq} is there, and was deleted", member + 1));
        }
    }

    pub fn begin_read(&self) -> u64 {
        let mut story = self.story.lock();
        story.tally.reads += 1;
        story.tick()
    }

    /// A member stands at `index` with `digest`.
    pub fn digest(&self, member: usize, index: u64, digest: u64) {
        let mut story = self.story.lock();
        let (known, of) = *story.digests.entry(index).or_insert((digest, member));
        story.tally.digests += 1;
        if known != digest {
            self.trace.complain(format_args!(
                "digests differ at entry {index}: m{} had {known:016x}, m{} has {digest:016x}",
                of + 1,
                member + 1
            ));
        }
    }

    /// What a member holds was checked at `index` or later.
    pub fn state(&self, member: usize, index: u64, checked: Result<(), String>) {
        if let Err(broken) = checked {
            self.trace.complain(format_args!("m{} at entry {index}: {broken}", member + 1));
        }
    }

    /// Any page, strong or not: its records follow each other, and are what everybody else saw there.
    pub fn page(&self, seen: &Seen<'_>) {
        let mut story = self.story.lock();
        let mut complaints = Vec::new();
        let Seen { topic, epoch, .. } = *seen;
        let has_holes = is_pruned(topic) || seen.tag.is_some();
        let mut expected = seen.from_seq;
        let mut last_ts_ms = 0;
        for (seq, ts_ms, data) in &seen.records {
            expected += 1;
            if has_holes && *seq > expected {
                story.pass(seen, expected..=*seq - 1);
                expected = *seq;
            }
            if *seq != expected {
                complaints.push(format!("seq {seq} where {expected} should be"));
                expected = *seq;
            }
            if *ts_ms < last_ts_ms {
                complaints.push(format!("time goes back at seq {seq}"));
            }
            last_ts_ms = *ts_ms;
            let Some(id) = parse_id(data) else {
                complaints.push(format!("a record that nobody wrote: {data}"));
                continue;
            };
            if seen.tag.is_some_and(|asked| tag(id) != asked) {
                complaints.push(format!("seq {seq} holds {id:?}, which has no tag {:?}", seen.tag));
            }
            let place = (epoch, *seq);
            let known = *story.seen.entry((topic.to_owned(), place)).or_insert((id, *ts_ms));
            if known != (id, *ts_ms) {
                complaints.push(format!("seq {seq} holds {id:?} at {ts_ms}, once it held {known:?}"));
            }
            let first_place = *story.places.entry(id).or_insert(place);
            if first_place != place {
                complaints.push(format!("{id:?} is at seq {seq}, and also at {first_place:?}"));
            }
            match story.attempts.get(id.0) {
                None => complaints.push(format!("{id:?} was never sent")),
                Some(attempt) if attempt.topic != topic || id.1 >= attempt.count => {
                    complaints.push(format!("{id:?} was not sent to this topic: {attempt:?}"));
                }
                Some(attempt) if attempt.fate == Fate::Refused => {
                    complaints.push(format!("{id:?} was refused, and is at seq {seq}"));
                }
                Some(_) => {}
            }
        }
        let is_passed = has_holes && expected < seen.next_from_seq;
        if is_passed {
            story.pass(seen, expected + 1..=seen.next_from_seq);
        }
        if expected != seen.next_from_seq && !is_passed {
            complaints.push(format!("next_from_seq is {} after seq {expected}", seen.next_from_seq));
        }
        if seen.next_from_seq > seen.head_seq && seen.records.is_empty().eq(&false) {
            complaints.push(format!("records above the head {}", seen.head_seq));
        }
        drop(story);
        for complaint in complaints {
            self.trace.complain(format_args!("m{} {topic} epoch {epoch}: {complaint}", seen.member + 1));
        }
    }

    /// A watcher was shown so many records.
    pub fn watched(&self, count: usize) {
        self.story.lock().tally.watched += count as u64;
    }

    /// A watcher, who asked for records of `tag` or for all, was shown nothing of `seqs`.
    pub fn passed(&self, topic: &str, epoch: u64, tag: Option<&str>, seqs: RangeInclusive<u64>) {
        let key = (topic.to_owned(), epoch, tag.map(str::to_owned));
        self.story.lock().passed.entry(key).or_default().extend(seqs);
    }

    /// A time at which a record of the topic was written, if one was seen.
    pub fn some_time(&self, topic: &str, roll: u64) -> Option<u64> {
        let story = self.story.lock();
        let all = || story.seen.range((topic.to_owned(), (0, 0))..).take_while(|((of, _), _)| of == topic);
        let count = all().count() as u64;
        if count == 0 { None } else { all().nth((roll % count) as usize).map(|(_, (_, ts_ms))| *ts_ms) }
    }

    /// A page from a time on, which begins behind `from_seq`: nothing that is younger lies before it.
    pub fn page_of_time(
        &self,
        member: usize,
        topic: &str,
        epoch: u64,
        from_ts_ms: u64,
        from_seq: u64,
        records: &[(u64, u64, String)],
    ) {
        let story = self.story.lock();
        let place = |seq| (topic.to_owned(), (epoch, seq));
        let may_be_gone = |id, seq| story.prunes.iter().any(|prune| prune.is_about(topic, id, seq));
        let left_out = story
            .seen
            .range(place(0)..place(from_seq + 1))
            .rev()
            .take_while(|(_, (_, ts_ms))| *ts_ms >= from_ts_ms)
            .find(|((_, (_, seq)), (id, _))| !may_be_gone(*id, *seq))
            .map(|(place, _)| place.clone());
        drop(story);
        let early = records.iter().find(|(_, ts_ms, _)| *ts_ms < from_ts_ms);
        if early.is_some() || left_out.is_some() {
            self.trace.complain(format_args!(
                "m{} {topic}: from {from_ts_ms} ms it shows {early:?}, and not {left_out:?}",
                member + 1
            ));
        }
    }

    /// A strong read that began at `began` ended now: with epoch and head of the topic, or with its absence.
    pub fn strong_read(&self, member: usize, topic: &str, began: u64, told: Option<(u64, u64)>) {
        let mut story = self.story.lock();
        let now = story.tick();
        let mut complaints = Vec::new();
        for (number, attempt) in story.attempts.iter().enumerate() {
            let Fate::Acked { first_seq } = attempt.fate else { continue };
            let is_due = attempt.topic == topic && attempt.ended < began;
            if !is_due || story.may_be_deleted(topic, attempt.began, now) {
                continue;
            }
            let last_seq = first_seq + u64::from(attempt.count) - 1;
            if told.is_none_or(|(_, head_seq)| head_seq < last_seq) {
                complaints.push(format!("does not see append {number}, acked before up to {last_seq}"));
            }
        }
        if let Some((epoch, head_seq)) = told {
            let reads = story.strong_reads.entry(topic.to_owned()).or_default();
            for before in reads.iter().filter(|before| before.ended < began) {
                if before.epoch > epoch || (before.epoch == epoch && before.head_seq > head_seq) {
                    let earlier = (before.epoch, before.head_seq);
                    complaints.push(format!("went back: {earlier:?} was read before"));
                }
            }
            reads.push(StrongRead { ended: now, epoch, head_seq });
        }
        drop(story);
        for complaint in complaints {
            self.trace.complain(format_args!(
                "strong read of {topic} at m{} told {told:?}: it {complaint}",
                member + 1
            ));
        }
    }

    /// Checks the whole story, in which machines lost power: what was acked is there, once (C-WRITE-11, C-DUR-07,
    /// C-DUR-08). `contents` has for each topic its epoch and how many records it holds; all
    /// of them have been read.
    pub fn finish(&self, contents: &BTreeMap<String, (u64, u64)>) {
        let story = self.story.lock();
        let mut complaints = Vec::new();
        for (number, attempt) in story.attempts.iter().enumerate() {
            let found: Vec<Option<Place>> =
                (0..attempt.count).map(|part| story.places.get(&(number, part)).copied()).collect();
            let final_epoch = contents.get(&attempt.topic).map(|(epoch, _)| *epoch);
            // Of a topic that is pruned each record that is not there must have been deleted.
            if let Fate::Acked { first_seq } = attempt.fate
                && is_pruned(&attempt.topic)
            {
                let parts = (0..attempt.count).zip(first_seq..).zip(&found);
                let may_be_gone = |part, seq| {
                    story.prunes.iter().any(|prune| prune.is_about(&attempt.topic, (number, part), seq))
                };
                for ((part, seq), place) in parts {
                    if place.is_none() && !may_be_gone(part, seq) {
                        complaints.push(format!(
                            "append {number} {attempt:?} lacks seq {seq}, which nobody deleted"
                        ));
                    }
                }
            }
            let is_deletable = loses_records(&attempt.topic)
                || is_pruned(&attempt.topic)
                || story.may_be_deleted(&attempt.topic, attempt.began, u64::MAX);
            let is_in = |first: u64| {
                found.iter().zip(first..).all(|(place, seq)| {
                    place
                        .is_some_and(|place| place.1 == seq && (is_deletable || Some(place.0) == final_epoch))
                })
            };
            // A topic that may have been deleted may not have been read in time.
            let may_be_in = |first: u64| {
                found.iter().zip(first..).all(|(place, seq)| place.is_none_or(|place| place.1 == seq))
            };
            let is_right = match attempt.fate {
                Fate::Acked { first_seq } if is_deletable => may_be_in(first_seq),
                Fate::Acked { first_seq } => is_in(first_seq),
                Fate::Refused => found.iter().all(Option::is_none),
                Fate::Unknown if found.iter().all(Option::is_none) => true,
                Fate::Unknown if is_deletable => {
                    let at = found.iter().position(Option::is_some).unwrap_or(0);
                    may_be_in(found[at].map_or(0, |place| place.1.saturating_sub(at as u64)))
                }
                Fate::Unknown => is_in(found[0].map_or(0, |place| place.1)),
            };
            if !is_right {
                complaints.push(format!("append {number} {attempt:?} is found at {found:?}"));
            }
        }
        // What anybody else saw there must have been deleted, or have another tag.
        for ((topic, epoch, asked), seqs) in &story.passed {
            for seq in seqs {
                let is_deleted = |id| story.prunes.iter().any(|prune| prune.is_about(topic, id, *seq));
                let is_asked_for = |id| asked.as_ref().is_none_or(|asked| tag(id) == *asked);
                let seen = story.seen.get(&(topic.clone(), (*epoch, *seq)));
                if let Some((id, _)) = seen.filter(|(id, _)| is_asked_for(*id) && !is_deleted(*id)) {
                    complaints.push(format!("who read {topic} was not shown {id:?} at seq {seq}"));
                }
            }
        }
        complaints.extend(out_of_order(&story.attempts, |attempt| {
            story.may_be_deleted(&attempt.topic, 0, u64::MAX)
        }));
        drop(story);
        complaints.into_iter().take(10).for_each(|complaint| self.trace.complain(complaint));
    }
}

/// C-WRITE-16: what was sent after the ack of another has a higher seq.
fn out_of_order(attempts: &[Attempt], is_excused: impl Fn(&Attempt) -> bool) -> Vec<String> {
    let mut complaints = Vec::new();
    let acked: Vec<(&Attempt, u64)> = attempts
        .iter()
        .filter(|attempt| !is_excused(attempt))
        .filter_map(|attempt| match attempt.fate {
            Fate::Acked { first_seq } => Some((attempt, first_seq)),
            _ => None,
        })
        .collect();
    for (later, later_seq) in acked.iter().filter(|(later, _)| !later.is_repeated) {
        for (earlier, earlier_seq) in &acked {
            let is_before = earlier.topic == later.topic && earlier.ended < later.began;
            if is_before && earlier_seq >= later_seq {
                complaints
                    .push(format!("{later:?} was sent after {earlier:?} was acked, and lies before it"));
            }
        }
    }
    complaints
}
