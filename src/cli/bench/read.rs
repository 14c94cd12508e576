//! The read workload: every connection walks one topic in pages, from end to end and over again.
//!
//! The topics are filled before and nobody writes to them, so each page must follow on from the one before
//! without a hole, and each walk must end exactly at the head.

use anyhow::{anyhow, ensure};

use super::answer::parse_page;
use super::load::Operation;
use super::options::Url;
use super::request::{PageRequest, Topics};

/// What all connections read.
#[derive(Debug, Clone, Copy)]
pub struct Shelf {
    /// Records in each topic.
    pub records: u64,
    pub payload_bytes: usize,
    /// Records per page.
    pub page: usize,
}

/// The reads of one connection.
pub struct Read {
    request: PageRequest,
    topic: String,
    shelf: Shelf,
    from_seq: u64,
}

impl Read {
    /// The reads of connection `number` of `connections`; they start apart, so that they do not all read
    /// the same page while it is hot.
    pub fn new(url: &Url, topics: &Topics, shelf: Shelf, number: usize, connections: usize) -> Self {
        let topic = number as u32 % topics.count;
        let start = u128::from(shelf.records) * number as u128 / connections as u128;
        Read {
            request: PageRequest::new(url, topics, topic, shelf.page),
            topic: topics.name(topic),
            shelf,
            from_seq: u64::try_from(start).unwrap_or_default(),
        }
    }
}

impl Operation for Read {
    fn request(&mut self) -> &[u8] {
        self.request.fill(self.from_seq)
    }

    fn accept(&mut self, body: &[u8]) -> anyhow::Result<u64> {
        let page = parse_page(body, self.from_seq, self.shelf.payload_bytes)
            .map_err(|wrong| anyhow!("topic {}: {wrong}", self.topic))?;
        ensure!(
            page.head_seq == self.shelf.records,
            "topic {}: the head is {} after {} records",
            self.topic,
            page.head_seq,
            self.shelf.records
        );
        ensure!(
            page.records > 0 && page.records <= self.shelf.page as u64,
            "topic {}: the page behind seq {} has {} records",
            self.topic,
            self.from_seq,
            page.records
        );
        ensure!(
            page.next_from_seq <= page.head_seq,
            "topic {}: a page goes on at {}, beyond the head",
            self.topic,
            page.next_from_seq
        );
        self.from_seq = if page.next_from_seq == page.head_seq { 0 } else { page.next_from_seq };
        Ok(page.records)
    }

    /// A read that failed changed nothing: the same page is asked for again.
    fn refuse(&mut self, _is_unknown: bool) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(number: usize) -> Read {
        let url = Url::parse("http://127.0.0.1:1").unwrap();
        let shelf = Shelf { records: 10, payload_bytes: 3, page: 4 };
        Read::new(&url, &Topics::new(1), shelf, number, 2)
    }

    fn page(seqs: std::ops::RangeInclusive<u64>, head_seq: u64) -> Vec<u8> {
        let next_from_seq = *seqs.end();
        let records: Vec<_> = seqs.map(|seq| format!(r#"{{"$seq":{seq},"$ts":1,"data":"x"}}"#)).collect();
        format!(
            r#"{{"records":[{}],"next_from_seq":{next_from_seq},"head_seq":{head_seq}}}"#,
            records.join(",")
        )
        .into_bytes()
    }

    #[test]
    fn a_walk_starts_over_at_the_head() {
        let mut walk = read(1);
        for (seqs, next) in [(6..=9, 9), (10..=10, 0), (1..=4, 4), (5..=5, 5)] {
            let records = seqs.clone().count() as u64;
            assert_eq!(walk.accept(&page(seqs, 10)).unwrap(), records);
            assert_eq!(walk.from_seq, next);
        }
    }

    #[test]
    fn a_page_that_cannot_be_true_ends_the_run() {
        for (seqs, head_seq) in [(2..=4, 10), (1..=5, 10), (1..=4, 11), (1..=4, 3)] {
            assert!(read(0).accept(&page(seqs.clone(), head_seq)).is_err(), "{seqs:?}, head {head_seq}");
        }
        let nothing = std::ops::RangeInclusive::new(1, 0);
        assert!(read(0).accept(&page(nothing, 10)).is_err(), "an empty page below the head");
        assert!(read(0).accept(b"{}").is_err());
    }
}
