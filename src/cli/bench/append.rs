//! The append workload: batches to topics that take turns, and a ledger of what was acked.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Context, anyhow, ensure};

use super::answer::parse_ack;
use super::load::Operation;
use super::options::Url;
use super::ranges::Ranges;
use super::request::{AppendRequest, Topics};

/// What one topic was promised by its acks.
#[derive(Debug, Default)]
pub struct Account {
    acked: Ranges,
    /// Appends that may have taken effect without an ack.
    unknown: u64,
}

/// What all topics were promised; shared by all connections.
pub struct Ledger {
    batch: u64,
    accounts: Vec<Account>,
    /// Numbers for payloads.
    next_number: u64,
}

impl Ledger {
    pub fn new(topics: u32, batch: usize) -> Rc<RefCell<Self>> {
        let accounts = (0..topics).map(|_| Account::default()).collect();
        Rc::new(RefCell::new(Ledger { batch: batch as u64, accounts, next_number: 0 }))
    }

    /// Records acked over all topics.
    pub fn records(&self) -> u64 {
        self.accounts.iter().map(|account| account.acked.records()).sum()
    }

    /// The next payload is numbered `number` or higher.
    pub fn number_from(&mut self, number: u64) {
        self.next_number = self.next_number.max(number);
    }

    /// Appends of unknown outcome over all topics.
    pub fn unknown(&self) -> u64 {
        self.accounts.iter().map(|account| account.unknown).sum()
    }

    /// Whether topic `topic`, which nobody else writes to, may have this head.
    pub fn check_head(&self, topic: u32, head_seq: u64) -> Result<(), String> {
        let Some(account) = self.accounts.get(topic as usize) else { return Err("no such topic".to_owned()) };
        account.acked.check(head_seq, account.unknown, self.batch)
    }

    fn ack(&mut self, topic: u32, body: &[u8]) -> anyhow::Result<()> {
        let ack = parse_ack(body)
            .with_context(|| format!("an ack without its seqs: {}", String::from_utf8_lossy(body)))?;
        let end_seq = ack.first_seq.checked_add(self.batch);
        ensure!(
            end_seq == ack.last_seq.checked_add(1),
            "{} records were acked with the seqs {} to {}",
            self.batch,
            ack.first_seq,
            ack.last_seq
        );
        ensure!(
            ack.head_seq == ack.last_seq,
            "the ack of seq {} says that the head is {} right behind it",
            ack.last_seq,
            ack.head_seq
        );
        let account = self.accounts.get_mut(topic as usize).context("no such topic")?;
        account.acked.add(ack.first_seq, ack.last_seq).map_err(|wrong| anyhow!(wrong))
    }
}

/// The appends of one connection.
pub struct Append {
    request: AppendRequest,
    ledger: Rc<RefCell<Ledger>>,
    topics: Topics,
    /// The topic of the request under way.
    topic: u32,
}

impl Append {
    /// The appends of connection `number`; each connection starts at another topic.
    pub fn new(
        url: &Url,
        topics: &Topics,
        ledger: &Rc<RefCell<Ledger>>,
        number: usize,
        payload_bytes: usize,
    ) -> Self {
        let batch = usize::try_from(ledger.borrow().batch).unwrap_or(1);
        Append {
            request: AppendRequest::new(url, topics, batch, payload_bytes),
            ledger: ledger.clone(),
            topics: topics.clone(),
            topic: number as u32 % topics.count,
        }
    }
}

impl Operation for Append {
    fn request(&mut self) -> &[u8] {
        self.topic = (self.topic + 1) % self.topics.count;
        let mut ledger = self.ledger.borrow_mut();
        let number = ledger.next_number;
        ledger.next_number += ledger.batch;
        self.request.fill(self.topic, number)
    }

    fn accept(&mut self, body: &[u8]) -> anyhow::Result<u64> {
        let mut ledger = self.ledger.borrow_mut();
        ledger.ack(self.topic, body).with_context(|| format!("topic {}", self.topics.name(self.topic)))?;
        Ok(ledger.batch)
    }

    fn refuse(&mut self, is_unknown: bool) {
        let mut ledger = self.ledger.borrow_mut();
        if let Some(account) = ledger.accounts.get_mut(self.topic as usize).filter(|_| is_unknown) {
            account.unknown += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(ledger: &Rc<RefCell<Ledger>>) -> Append {
        let url = Url::parse("http://127.0.0.1:1").unwrap();
        Append::new(&url, &Topics::new(1), ledger, 0, 16)
    }

    fn body(first_seq: u64, last_seq: u64, head_seq: u64) -> Vec<u8> {
        format!(r#"{{"first_seq":{first_seq},"last_seq":{last_seq},"head_seq":{head_seq}}}"#).into_bytes()
    }

    #[test]
    fn acks_that_cannot_be_true_end_the_run() {
        let ledger = Ledger::new(1, 10);
        let mut append = append(&ledger);
        assert_eq!(append.accept(&body(1, 10, 10)).unwrap(), 10);
        for lie in [body(1, 10, 10), body(11, 19, 19), body(11, 20, 21), body(11, 20, 19), body(6, 15, 15)] {
            assert!(append.accept(&lie).is_err(), "{}", String::from_utf8_lossy(&lie));
        }
        assert!(append.accept(b"{}").is_err());
        append.accept(&body(11, 20, 20)).unwrap();
        assert_eq!(ledger.borrow().records(), 20);
        ledger.borrow().check_head(0, 20).unwrap();
        assert!(ledger.borrow().check_head(0, 30).is_err());
        assert!(ledger.borrow().check_head(0, 10).is_err());
    }

    #[test]
    fn only_an_unknown_outcome_excuses_records_without_an_ack() {
        let ledger = Ledger::new(1, 10);
        let mut append = append(&ledger);
        append.refuse(false);
        assert!(ledger.borrow().check_head(0, 10).is_err());
        append.refuse(true);
        ledger.borrow().check_head(0, 10).unwrap();
        assert_eq!(ledger.borrow().unknown(), 1);
    }

    #[test]
    fn every_payload_has_a_number_of_its_own() {
        let ledger = Ledger::new(1, 2);
        let (mut one, mut other) = (append(&ledger), append(&ledger));
        let texts: Vec<_> = (0..3).flat_map(|_| [one.request().to_vec(), other.request().to_vec()]).collect();
        for (at, text) in texts.iter().enumerate() {
            let text = String::from_utf8_lossy(text);
            assert!(text.contains(&format!("\"{:014x}\"", 2 * at)), "{text}");
            assert!(text.contains(&format!("\"{:014x}\"", 2 * at + 1)), "{text}");
        }
    }
}
