//! The sending side of a snapshot: the state as of one point, held ready for a member that lacks it.
//!
//! A snapshot is not made, it is read: when a member needs one, the checkpoint on disk is frozen and the log
//! pinned, both at once and for nothing (see `storage/frozen.rs`, `storage/pin.rs`), and that member fetches
//! page after page at its own speed. So memory is bounded on both sides by a page, applying goes on, and a
//! member that stops fetching costs nothing but a pin, for a minute.
//!
//! While a transfer is under way the log keeps what comes after it, and no newer snapshot is named: the
//! member could otherwise arrive and find that it needs the next one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::machine::Applied;
use super::types::NodeId;
use crate::clock::Random;
use crate::limits::TRANSFER_PAGE_BYTES;
use crate::storage::{Frozen, LogEntry, Page, Pin};
use crate::task;

/// A transfer that nobody fetched from for so long is over.
const IDLE_AFTER: Duration = Duration::from_secs(60);

/// What this member holds ready for others.
pub struct Transfers {
    applied: Arc<Applied>,
    random: Arc<dyn Random>,
    by_number: Mutex<BTreeMap<u64, Transfer>>,
}

struct Transfer {
    to: NodeId,
    /// The member will have everything up to here, or more.
    index: u64,
    /// `None` once all of the state was fetched.
    frozen: Option<Arc<Frozen>>,
    /// `None` once the member has everything.
    pin: Option<Arc<Pin>>,
    last_used: Instant,
}

impl Transfers {
    pub fn new(applied: Arc<Applied>, random: Arc<dyn Random>) -> Arc<Self> {
        Arc::new(Transfers { applied, random, by_number: Mutex::default() })
    }

    /// Holds the present state ready for the member `to`, in the place of an earlier one. Gives its number.
    pub fn begin(&self, to: NodeId) -> u64 {
        let index = self.applied.saved_index();
        let (pin, frozen) = self.applied.freeze();
        let number = self.random.next_u64();
        let mut transfers = self.by_number.lock();
        transfers.retain(|_, other| other.to != to);
        let (frozen, pin) = (Some(Arc::new(frozen)), Some(Arc::new(pin)));
        transfers.insert(number, Transfer { to, index, frozen, pin, last_used: Instant::now() });
        number
    }

    /// The member has everything. It will need the log from there on, so its place is kept for a while.
    pub fn finish(&self, number: u64) {
        if let Some(transfer) = self.by_number.lock().get_mut(&number) {
            (transfer.frozen, transfer.pin) = (None, None);
            transfer.last_used = Instant::now();
        }
    }

    /// Waits until nobody fetches any more.
    pub async fn stalled(&self, number: u64) {
        let last_used = || self.by_number.lock().get(&number).map(|transfer| transfer.last_used);
        while let Some(last_used) = last_used()
            && last_used.elapsed() < IDLE_AFTER
        {
            tokio::time::sleep_until(last_used + IDLE_AFTER).await;
        }
    }

    /// Whether somebody is fetching.
    pub fn is_active(&self) -> bool {
        self.forget_idle();
        self.by_number.lock().values().any(|transfer| transfer.pin.is_some())
    }

    /// The lowest index behind which a member will go on by the log.
    pub fn lowest_index(&self) -> Option<u64> {
        self.forget_idle();
        self.by_number.lock().values().map(|transfer| transfer.index).min()
    }

    fn forget_idle(&self) {
        self.by_number.lock().retain(|_, transfer| transfer.last_used.elapsed() < IDLE_AFTER);
    }

    /// Keys above `after` and their values; empty at the end.
    pub async fn state(&self, number: u64, after: Option<Vec<u8>>) -> Result<Page, String> {
        let frozen = self.used(number, |transfer| transfer.frozen.clone())?;
        let page = task::blocking(move || frozen.page(after.as_deref(), TRANSFER_PAGE_BYTES)).await;
        let page = page.map_err(|error| error.to_string())?;
        if page.is_empty()
            && let Some(transfer) = self.by_number.lock().get_mut(&number)
        {
            transfer.frozen = None;
        }
        Ok(page)
    }

    /// The entries at some of the first `indexes`, at least one.
    pub async fn entries(&self, number: u64, indexes: Vec<u64>) -> Result<Vec<LogEntry>, String> {
        let pin = self.used(number, |transfer| transfer.pin.clone())?;
        let log = self.applied.log().clone();
        let entries = task::blocking(move || {
            let entries = log.committed_entries(&indexes, TRANSFER_PAGE_BYTES);
            drop(pin);
            entries
        });
        entries.await.map_err(|error| error.to_string())
    }

    fn used<T>(&self, number: u64, part: impl FnOnce(&Transfer) -> Option<T>) -> Result<T, String> {
        let mut transfers = self.by_number.lock();
        let transfer = transfers.get_mut(&number);
        let used = transfer.and_then(|transfer| {
            transfer.last_used = Instant::now();
            part(transfer)
        });
        used.ok_or_else(|| "this transfer of the state is over".to_owned())
    }
}
