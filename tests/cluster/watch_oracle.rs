//! What watchers must get: exactly the records of their subscriptions, in order.
//!
//! All that is written is acked under a key, so in the end every seq of every topic is known; and whatever a
//! watcher was not shown must have a reason that the contract allows: a label that it does not want, a delete
//! that was asked for, or a tombstone that says so.

use std::collections::BTreeMap;
use std::fmt;

use parking_lot::Mutex;
use serde_json::Value;

/// Most complaints that are kept: one mistake makes many.
const MAX_KEPT: usize = 20;

/// What a record is made of, which its data says too: so a watcher tells what it was written as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub number: u64,
    pub tag: String,
    pub node: String,
}

impl Written {
    pub fn data(&self) -> String {
        format!("{} {} {}", self.number, self.tag, self.node)
    }

    fn parse(data: &str) -> Option<Written> {
        let mut parts = data.split(' ');
        let (number, tag, node) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
        Some(Written { number, tag: tag.to_owned(), node: node.to_owned() })
    }
}

/// What has happened in one topic.
#[derive(Default)]
struct TopicBook {
    written: BTreeMap<u64, Written>,
    /// Tags of which all records up to a seq were, or may have been, deleted.
    deletes: Vec<(String, u64)>,
    is_capped: bool,
}

impl TopicBook {
    fn is_deleted(&self, seq: u64, written: &Written) -> bool {
        self.deletes.iter().any(|(tag, up_to_seq)| *tag == written.tag && seq <= *up_to_seq)
    }
}

/// The book of all topics.
#[derive(Default)]
pub struct Book {
    topics: Mutex<BTreeMap<String, TopicBook>>,
    complaints: Mutex<Vec<String>>,
}

/// How far a watcher is in a topic, and what it was told on the way.
#[derive(Debug, Default)]
pub struct Progress {
    pub cursor: u64,
    seen: Vec<u64>,
    /// From tombstones, ends included.
    gaps: Vec<(u64, u64)>,
}

/// What all watchers were told.
#[derive(Debug, Default, Clone, Copy)]
pub struct Totals {
    pub seen: u64,
    pub tombstones: u64,
    pub missed: u64,
    pub deleted: u64,
    pub unwanted: u64,
}

impl Totals {
    pub fn add(&mut self, other: Totals) {
        self.seen += other.seen;
        self.tombstones += other.tombstones;
        self.missed += other.missed;
        self.deleted += other.deleted;
        self.unwanted += other.unwanted;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { seen, tombstones, missed, deleted, unwanted } = self;
        write!(
            f,
            "{seen} records seen, {missed} missed by {tombstones} tombstones, {deleted} deleted before they were \
             seen, {unwanted} unwanted"
        )
    }
}

impl Book {
    pub fn add_topic(&self, topic: &str, is_capped: bool) {
        self.topics.lock().insert(topic.to_owned(), TopicBook { is_capped, ..TopicBook::default() });
    }

    pub fn complain(&self, what: String) {
        let mut complaints = self.complaints.lock();
        if complaints.len() < MAX_KEPT {
            complaints.push(what);
        }
    }

    pub fn complaints(&self) -> Vec<String> {
        self.complaints.lock().clone()
    }

    /// These records were acked from `first_seq` on.
    pub fn wrote(&self, topic: &str, first_seq: u64, records: &[Written]) {
        for (seq, written) in (first_seq..).zip(records) {
            self.is_at(topic, seq, written);
        }
    }

    /// Every record has one seq, whoever says so.
    fn is_at(&self, topic: &str, seq: u64, written: &Written) {
        let mut topics = self.topics.lock();
        let book = topics.get_mut(topic).expect("a topic of the book");
        let known = book.written.entry(seq).or_insert_with(|| written.clone()).clone();
        drop(topics);
        if known != *written {
            self.complain(format!("{topic}: seq {seq} is {written:?}, and is also {known:?}"));
        }
    }

    /// From now on records of `topic` with `tag` may be gone; gives what [`Book::end_delete`] is told.
    pub fn begin_delete(&self, topic: &str, tag: &str) -> usize {
        let mut topics = self.topics.lock();
        let book = topics.get_mut(topic).expect("a topic of the book");
        book.deletes.push((tag.to_owned(), u64::MAX));
        book.deletes.len() - 1
    }

    /// None above `head_seq` is.
    pub fn end_delete(&self, topic: &str, number: usize, head_seq: u64) {
        let mut topics = self.topics.lock();
        topics.get_mut(topic).expect("a topic of the book").deletes[number].1 = head_seq;
    }

    /// Watcher `who`, which wants no records of `unwanted`, was told this. The same rules as for a reader that
    /// trusts the frames: they follow each other, and go up.
    pub fn told(&self, who: &str, unwanted: &str, progress: &mut Progress, name: &str, data: &Value) {
        let topic = data["topic"].as_str().unwrap_or_default();
        let number = |field: &str| data[field].as_u64().unwrap_or(u64::MAX);
        let odd = |what: String| self.complain(format!("{who} {topic} at seq {}: {what}", progress.cursor));
        match name {
            "record" => {
                let (from_seq, to_seq) = (number("from_seq"), number("to_seq"));
                let records = data["records"].as_array().map(Vec::as_slice).unwrap_or_default();
                if from_seq < progress.cursor || to_seq <= from_seq || records.is_empty() {
                    odd(format!("a frame of {} records from {from_seq} to {to_seq}", records.len()));
                }
                let mut last_seq = from_seq;
                for record in records {
                    let seq = record["$seq"].as_u64().unwrap_or(0);
                    if seq <= last_seq || seq > to_seq {
                        odd(format!("seq {seq} after {last_seq} in a frame up to {to_seq}"));
                    }
                    last_seq = seq;
                    let Some(written) = record["data"].as_str().and_then(Written::parse) else {
                        odd(format!("a record that nobody wrote: {record}"));
                        continue;
                    };
                    if record["$node"] != written.node.as_str() || written.node == unwanted {
                        odd(format!("not a record that it wants: {record}"));
                    }
                    self.is_at(topic, seq, &written);
                    progress.seen.push(seq);
                }
                progress.cursor = to_seq;
            }
            "tombstone" => {
                let (gap_from, gap_to) = (number("gap_from"), number("gap_to"));
                let is_capped = self.topics.lock().get(topic).is_some_and(|book| book.is_capped);
                let reason = data["reason"].as_str().unwrap_or_default();
                let is_right = is_capped
                    && gap_from > progress.cursor
                    && gap_to >= gap_from
                    && number("earliest_seq") == gap_to + 1
                    && matches!(reason, "cap" | "from_seq_too_old");
                if !is_right {
                    odd(format!("told {data}"));
                }
                progress.gaps.push((gap_from, gap_to));
                progress.cursor = gap_to;
            }
            "caught-up" | "caught_up" => {}
            _ => odd(format!("told {name} {data}")),
        }
    }

    /// Judges all that watcher `who` was told of `topic`, whose head is `head_seq`, and of which everything before
    /// `earliest_seq` is gone in the end.
    pub fn judge(
        &self,
        who: &str,
        unwanted: &str,
        topic: &str,
        progress: &Progress,
        (head_seq, earliest_seq): (u64, u64),
    ) -> Totals {
        let topics = self.topics.lock();
        let book = topics.get(topic).expect("a topic of the book");
        let mut totals = Totals { tombstones: progress.gaps.len() as u64, ..Totals::default() };
        let mut seen = progress.seen.iter().peekable();
        let mut complaints = Vec::new();
        for seq in 1..=head_seq {
            let written = book.written.get(&seq);
            let is_in_gap = progress.gaps.iter().any(|(from, to)| (*from..=*to).contains(&seq));
            let is_seen = seen.next_if(|next| **next == seq).is_some();
            match written {
                _ if is_seen && is_in_gap => complaints.push(format!("seq {seq} was seen, and missed")),
                _ if is_seen => totals.seen += 1,
                _ if is_in_gap && seq < earliest_seq => totals.missed += 1,
                _ if is_in_gap => complaints.push(format!("seq {seq} was said to be gone, and is there")),
                Some(written) if written.node == unwanted => totals.unwanted += 1,
                Some(written) if book.is_deleted(seq, written) => totals.deleted += 1,
                Some(written) => complaints.push(format!("seq {seq}, {written:?}, was never shown")),
                None => complaints.push(format!("seq {seq} was never shown, and nobody wrote it")),
            }
        }
        if let Some(seq) = seen.next() {
            complaints.push(format!("seq {seq} came out of order"));
        }
        drop(topics);
        complaints
            .into_iter()
            .take(3)
            .for_each(|complaint| self.complain(format!("{who} {topic}: {complaint}")));
        totals
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn book() -> Book {
        let book = Book::default();
        book.add_topic("plain", false);
        book.add_topic("capped", true);
        for topic in ["plain", "capped"] {
            let written: Vec<Written> = (1..=4).map(written).collect();
            book.wrote(topic, 1, &written);
        }
        book
    }

    fn written(number: u64) -> Written {
        Written { number, tag: format!("t{}", number % 2), node: format!("n{}", number % 2) }
    }

    fn frame(topic: &str, from_seq: u64, seqs: &[u64]) -> Value {
        let record = |seq: &u64| {
            let written = written(*seq);
            json!({ "$seq": seq, "$node": written.node, "data": written.data() })
        };
        let records: Vec<Value> = seqs.iter().map(record).collect();
        json!({ "topic": topic, "from_seq": from_seq, "to_seq": seqs.last(), "records": records })
    }

    fn gap(topic: &str, gap_from: u64, gap_to: u64) -> Value {
        json!({ "topic": topic, "gap_from": gap_from, "gap_to": gap_to, "earliest_seq": gap_to + 1, "reason": "cap" })
    }

    /// How many complaints come of these events in `topic`, of which `earliest_seq` is what is left.
    fn complaints(book: &Book, topic: &str, unwanted: &str, earliest_seq: u64, events: &[Value]) -> usize {
        let mut progress = Progress::default();
        for event in events {
            let name = if event["gap_from"].is_null() { "record" } else { "tombstone" };
            book.told("w", unwanted, &mut progress, name, event);
        }
        book.judge("w", unwanted, topic, &progress, (4, earliest_seq));
        book.complaints().len()
    }

    #[test]
    fn what_may_be_is_no_complaint() {
        assert_eq!(
            complaints(&book(), "plain", "", 1, &[frame("plain", 0, &[1, 2]), frame("plain", 2, &[3, 4])]),
            0
        );
        assert_eq!(
            complaints(&book(), "plain", "n0", 1, &[frame("plain", 0, &[1]), frame("plain", 2, &[3])]),
            0
        );
        assert_eq!(
            complaints(&book(), "capped", "", 3, &[gap("capped", 1, 2), frame("capped", 2, &[3, 4])]),
            0
        );
        let deleted = book();
        let number = deleted.begin_delete("plain", "t0");
        deleted.end_delete("plain", number, 2);
        assert_eq!(complaints(&deleted, "plain", "", 1, &[frame("plain", 0, &[1, 3, 4])]), 0);
    }

    #[test]
    fn what_may_not_be_is_one() {
        let all = frame("plain", 0, &[1, 2, 3, 4]);
        for (topic, unwanted, earliest_seq, events) in [
            // A hole, a repeat, the wrong order, an end too early, what is not wanted.
            ("plain", "", 1, vec![frame("plain", 0, &[1, 2, 4])]),
            ("plain", "", 1, vec![all.clone(), frame("plain", 2, &[3, 4])]),
            ("plain", "", 1, vec![frame("plain", 0, &[2, 1, 3, 4])]),
            ("plain", "", 1, vec![frame("plain", 0, &[1, 2, 3])]),
            ("plain", "n1", 1, vec![all]),
            // A tombstone where nothing goes, one of what is there, one of what was seen.
            ("plain", "", 3, vec![gap("plain", 1, 2), frame("plain", 2, &[3, 4])]),
            ("capped", "", 2, vec![gap("capped", 1, 2), frame("capped", 2, &[3, 4])]),
            (
                "capped",
                "",
                3,
                vec![frame("capped", 0, &[1, 2]), gap("capped", 1, 2), frame("capped", 2, &[3, 4])],
            ),
        ] {
            assert!(complaints(&book(), topic, unwanted, earliest_seq, &events) > 0, "{events:?}");
        }
        let deleted = book();
        let number = deleted.begin_delete("plain", "t0");
        deleted.end_delete("plain", number, 2);
        assert!(
            complaints(&deleted, "plain", "", 1, &[frame("plain", 0, &[1, 3])]) > 0,
            "4 was written later"
        );
        let twice = book();
        twice.wrote("plain", 9, &[written(1)]);
        twice.wrote("plain", 9, &[written(2)]);
        assert_eq!(twice.complaints().len(), 1);
    }
}
