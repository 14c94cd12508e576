//! The sending side of a snapshot: the state as of one point, held ready for a member that lacks it.
//!
//! A snapshot is not made, it is read: when a member needs one, the checkpoint on disk is frozen and the log
//! pinned, both at once and for nothing (see `storage/frozen.rs`, `storage/pin.rs`), and that member fetches
//! page after page at its own speed. So memory is bounded on both sides by a page, and applying goes on.
//!
//! A transfer is a guard, [`Sending`]: what it holds is given up when it is dropped, however it ended, and it
//! ends when nobody has fetched for a minute. So it exists only while a connection to the member is open and its
//! pages flow. What it means for the log meanwhile is decided in `retention`.
//!
//! Two things outlive it, and neither pins a file. A member that has everything goes away to start from it, and
//! its *place* in the log is kept until it is heard there. And after a failure there is a pause, which grows from
//! one to the next: whoever cannot take the state over (no room, a form that it cannot read) fetches gigabytes to
//! find out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::connection::CallError;
use super::machine::Applied;
use super::retention::{Stage, Transfer, start_patience};
use super::types::NodeId;
use crate::clock::Random;
use crate::limits::{TRANSFER_IDLE_AFTER, TRANSFER_PAGE_BYTES, TRANSFER_PAGE_TIME, TRANSFER_PAUSES};
use crate::storage::{Frozen, LogEntry, Page, Pin};
use crate::task;

/// What this member holds ready for others.
pub struct Transfers {
    applied: Arc<Applied>,
    random: Arc<dyn Random>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    under_way: BTreeMap<u64, UnderWay>,
    recipients: BTreeMap<NodeId, Recipient>,
}

struct UnderWay {
    to: NodeId,
    /// The member will have everything up to here, or more.
    index: u64,
    /// `None` once all of the state was fetched.
    frozen: Option<Arc<Frozen>>,
    pin: Arc<Pin>,
    /// Whether everything was fetched that was asked for. Only the member knows whether it will ask for more.
    is_whole: bool,
    last_used: Instant,
}

/// What is remembered of a member that states were sent to.
#[derive(Default)]
struct Recipient {
    place: Option<Place>,
    /// States in a row that it did not get to have.
    failures: u32,
    paused_until: Option<Instant>,
}

/// Where a member will go on by the log.
#[derive(Clone, Copy)]
struct Place {
    index: u64,
    since: Instant,
}

impl Recipient {
    fn fails(&mut self) {
        let (first, longest) = TRANSFER_PAUSES;
        let pause = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures += 1;
        self.paused_until = Some(Instant::now() + pause);
    }
}

/// One state that is held ready. What it holds is given up with it.
pub struct Sending {
    transfers: Arc<Transfers>,
    number: u64,
    to: NodeId,
}

impl Transfers {
    pub fn new(applied: Arc<Applied>, random: Arc<dyn Random>) -> Arc<Self> {
        Arc::new(Transfers { applied, random, known: Mutex::default() })
    }

    /// Waits as long as no state should be sent to the member `to`, because it did not get to have the last ones;
    /// `false` if there was nothing to wait for.
    pub async fn pause(&self, to: NodeId) -> bool {
        let paused_until = || self.known.lock().recipients.get(&to)?.paused_until;
        let Some(until) = paused_until().filter(|until| *until > Instant::now()) else { return false };
        tokio::time::sleep_until(until).await;
        true
    }

    /// Holds the present state ready for the member `to`, which was reached a moment ago.
    pub async fn begin(self: &Arc<Self>, to: NodeId) -> Result<Sending, String> {
        let index = self.applied.saved_index();
        let applied = self.applied.clone();
        let frozen = task::blocking(move || Ok(applied.freeze())).await;
        let (pin, frozen) = frozen.map_err(|error| error.to_string())?;
        let number = self.random.next_u64();
        let (frozen, pin) = (Some(Arc::new(frozen)), Arc::new(pin));
        let started = UnderWay { to, index, frozen, pin, is_whole: false, last_used: Instant::now() };
        self.known.lock().under_way.insert(number, started);
        Ok(Sending { transfers: self.clone(), number, to })
    }

    /// About how much a member takes over. Records that several topics have are sent once.
    pub fn needed_bytes(&self) -> u64 {
        let log = self.applied.log().stats();
        self.applied.catalog().totals().bytes().min(log.chain_bytes + log.kept_bytes)
    }

    /// A member said up to where it has everything.
    pub fn heard(&self, node_id: NodeId, durable_index: u64) {
        if let Some(recipient) = self.known.lock().recipients.get_mut(&node_id)
            && recipient.place.is_some_and(|place| durable_index >= place.index)
        {
            recipient.place = None;
        }
    }

    /// Forgets those who are no members any more, and places that were kept long enough.
    pub fn forget(&self, patience: Duration, is_member: impl Fn(NodeId) -> bool) {
        self.known.lock().recipients.retain(|node_id, recipient| {
            if recipient.place.is_some_and(|place| place.since.elapsed() >= start_patience(patience)) {
                // It has not come back from it.
                recipient.place = None;
                recipient.fails();
            }
            is_member(*node_id)
        });
    }

    /// Ends all that are under way.
    pub fn end_all(&self) {
        self.known.lock().under_way.clear();
    }

    /// All of which the log is needed for.
    pub fn standing(&self) -> Vec<Transfer> {
        let known = self.known.lock();
        let fetching = known.under_way.values().map(|under_way| Transfer {
            to: under_way.to,
            index: under_way.index,
            stage: Stage::Fetching,
            idle_for: under_way.last_used.elapsed(),
        });
        let starting = known.recipients.iter().filter_map(|(to, recipient)| {
            let Place { index, since } = recipient.place?;
            Some(Transfer { to: *to, index, stage: Stage::Starting, idle_for: since.elapsed() })
        });
        fetching.chain(starting).collect()
    }

    /// Keys above `after` and their values, empty at the end, and what all of them add up to.
    pub async fn state(&self, number: u64, after: Option<Vec<u8>>) -> Result<(Page, u64), String> {
        let frozen = self.used(number, |under_way| under_way.frozen.clone())?;
        let sum = frozen.sum();
        let page = task::blocking(move || frozen.page(after.as_deref(), TRANSFER_PAGE_BYTES)).await;
        let page = page.map_err(|error| error.to_string())?;
        if page.is_empty() {
            self.used(number, |under_way| {
                (under_way.frozen, under_way.is_whole) = (None, true);
                Some(())
            })?;
        }
        Ok((page, sum))
    }

    /// The entries at some of the first `indexes`, at least one.
    pub async fn entries(&self, number: u64, indexes: Vec<u64>) -> Result<Vec<LogEntry>, String> {
        let pin = self.used(number, |under_way| {
            under_way.is_whole = false;
            Some(under_way.pin.clone())
        })?;
        let log = self.applied.log().clone();
        let asked_for = indexes.len();
        let entries = task::blocking(move || {
            let entries = log.committed_entries(&indexes, TRANSFER_PAGE_BYTES, TRANSFER_PAGE_TIME);
            drop(pin);
            entries
        });
        let entries = entries.await.map_err(|error| error.to_string())?;
        self.used(number, |under_way| {
            under_way.is_whole = entries.len() == asked_for;
            Some(())
        })?;
        Ok(entries)
    }

    fn used<T>(&self, number: u64, part: impl FnOnce(&mut UnderWay) -> Option<T>) -> Result<T, String> {
        let mut known = self.known.lock();
        let used = known.under_way.get_mut(&number).and_then(|under_way| {
            under_way.last_used = Instant::now();
            part(under_way)
        });
        used.ok_or_else(|| "this transfer of the state is over".to_owned())
    }
}

impl Sending {
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Waits until nobody fetches any more.
    pub async fn stalled(&self) {
        let last_used = || Some(self.transfers.known.lock().under_way.get(&self.number)?.last_used);
        while let Some(last_used) = last_used()
            && last_used.elapsed() < TRANSFER_IDLE_AFTER
        {
            let look_again = (last_used + TRANSFER_IDLE_AFTER).min(Instant::now() + Duration::from_secs(1));
            tokio::time::sleep_until(look_again).await;
        }
    }

    /// The member has everything up to `index`. It will need the log from there on.
    pub fn finish(self, index: u64) {
        let place = Some(Place { index, since: Instant::now() });
        let recipient = Recipient { place, ..Recipient::default() };
        self.transfers.known.lock().recipients.insert(self.to, recipient);
    }

    /// The member does not have it, or is away to start from it.
    pub fn fail(self, error: &CallError) {
        let mut known = self.transfers.known.lock();
        let Known { under_way, recipients } = &mut *known;
        let recipient = recipients.entry(self.to).or_default();
        let whole = under_way.get(&self.number).filter(|under_way| under_way.is_whole);
        match (whole, error) {
            (Some(whole), CallError::Lost(_)) => {
                if recipient.place.is_some() {
                    // It had everything once before, and came back without it.
                    recipient.fails();
                }
                recipient.place = Some(Place { index: whole.index, since: Instant::now() });
            }
            _ => recipient.fails(),
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.transfers.known.lock().under_way.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Rig;
    use super::*;
    use crate::clock::SystemRandom;

    const TO: NodeId = 7;
    const PATIENCE: Duration = Duration::from_secs(600);
    const SECOND: Duration = Duration::from_secs(1);

    /// A member with a checkpoint as of entry 1.
    async fn saved() -> (Rig, Arc<Transfers>) {
        let mut rig = Rig::new();
        rig.let_go = None;
        rig.apply(1).await;
        rig.applied.save().await.unwrap();
        let transfers = Transfers::new(rig.applied.clone(), Arc::new(SystemRandom));
        (rig, transfers)
    }

    fn stages(transfers: &Transfers) -> Vec<Stage> {
        transfers.standing().into_iter().map(|transfer| transfer.stage).collect()
    }

    /// How long the next one waits.
    async fn pause(transfers: &Transfers) -> Duration {
        let began = Instant::now();
        transfers.pause(TO).await;
        began.elapsed()
    }

    async fn fetch_all(transfers: &Transfers, number: u64) {
        let mut after = None;
        while let Some((last, _)) = transfers.state(number, after).await.unwrap().0.last() {
            after = Some(last.clone());
        }
    }

    fn lost() -> CallError {
        CallError::Lost("the connection broke".into())
    }

    #[tokio::test]
    async fn what_a_transfer_holds_goes_with_it() {
        let (_rig, transfers) = saved().await;
        let sending = transfers.begin(TO).await.unwrap();
        let number = sending.number();
        let [held] = transfers.standing()[..] else { panic!("one is under way") };
        assert_eq!((held.to, held.index, held.stage), (TO, 1, Stage::Fetching));
        assert!(transfers.state(number, None).await.is_ok());
        // Its call was cancelled.
        drop(sending);
        assert!(transfers.standing().is_empty());
        assert!(transfers.state(number, None).await.is_err());
        assert!(!transfers.pause(TO).await, "that is no failure");
    }

    #[tokio::test]
    async fn a_transfer_that_nobody_fetches_from_ends() {
        let (_rig, transfers) = saved().await;
        tokio::time::pause();
        let sending = transfers.begin(TO).await.unwrap();
        tokio::time::advance(TRANSFER_IDLE_AFTER - SECOND).await;
        transfers.state(sending.number(), None).await.unwrap();
        let began = Instant::now();
        sending.stalled().await;
        assert!(began.elapsed() >= TRANSFER_IDLE_AFTER, "{:?}", began.elapsed());
        // And when the room is needed.
        let sending = transfers.begin(TO).await.unwrap();
        transfers.end_all();
        let began = Instant::now();
        sending.stalled().await;
        assert!(began.elapsed() <= SECOND);
    }

    #[tokio::test]
    async fn a_member_that_does_not_get_to_have_states_is_sent_them_ever_more_rarely() {
        let (_rig, transfers) = saved().await;
        tokio::time::pause();
        let mut pauses = Vec::new();
        for _ in 0..20 {
            let sending = transfers.begin(TO).await.unwrap();
            sending.fail(&CallError::Failed("no room".into()));
            pauses.push(pause(&transfers).await);
            assert!(transfers.standing().is_empty(), "nothing is held meanwhile");
        }
        assert!(pauses[0] >= SECOND && pauses[0] < 2 * SECOND, "{pauses:?}");
        assert!(pauses[1] >= 2 * SECOND && pauses[1] < 3 * SECOND, "{pauses:?}");
        assert!(pauses[19] >= TRANSFER_PAUSES.1 && pauses[19] < TRANSFER_PAUSES.1 + SECOND, "{pauses:?}");

        transfers.begin(TO).await.unwrap().finish(1);
        assert_eq!(pause(&transfers).await, Duration::ZERO);
    }

    #[tokio::test]
    async fn the_place_of_a_member_that_went_to_start_is_kept_until_it_is_heard_there() {
        let (_rig, transfers) = saved().await;
        tokio::time::pause();
        // It broke in the middle.
        transfers.begin(TO).await.unwrap().fail(&lost());
        assert!(transfers.standing().is_empty());
        assert!(pause(&transfers).await >= SECOND);

        let sending = transfers.begin(TO).await.unwrap();
        fetch_all(&transfers, sending.number()).await;
        sending.fail(&lost());
        assert_eq!(stages(&transfers), [Stage::Starting]);
        assert_eq!(pause(&transfers).await, Duration::ZERO);
        transfers.heard(TO, 0);
        transfers.forget(PATIENCE, |_| true);
        assert_eq!(stages(&transfers), [Stage::Starting]);
        transfers.heard(TO, 1);
        assert!(transfers.standing().is_empty());
    }

    #[tokio::test]
    async fn a_member_that_does_not_come_back_from_its_start_has_failed() {
        let (_rig, transfers) = saved().await;
        tokio::time::pause();
        for round in 0..2 {
            let sending = transfers.begin(TO).await.unwrap();
            fetch_all(&transfers, sending.number()).await;
            sending.fail(&lost());
            assert_eq!(stages(&transfers), [Stage::Starting], "round {round}");
        }
        assert!(pause(&transfers).await >= SECOND, "it came back without what it had fetched");
        tokio::time::advance(PATIENCE).await;
        transfers.forget(PATIENCE, |_| true);
        assert!(transfers.standing().is_empty());
        assert!(pause(&transfers).await >= 2 * SECOND);
        transfers.forget(PATIENCE, |_| false);
        assert!(transfers.known.lock().recipients.is_empty(), "it is no member any more");
    }

    /// A checkpoint that is being written may take its time; who wants a view of it waits, and nobody else.
    #[tokio::test]
    async fn a_checkpoint_that_is_being_written_keeps_nobody_from_running() {
        let mut rig = Rig::new();
        rig.apply(1).await;
        let transfers = Transfers::new(rig.applied.clone(), Arc::new(SystemRandom));
        let applied = rig.applied.clone();
        let saving = tokio::spawn(async move { applied.save().await });
        while rig.applied.checkpoint_clock().age() < Duration::from_millis(50) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let beginning = tokio::spawn(async move { transfers.begin(TO).await.map(|_| ()) });
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!beginning.is_finished(), "it waits for the write");
        rig.let_go = None;
        beginning.await.unwrap().unwrap();
        saving.await.unwrap().unwrap();
    }
}
