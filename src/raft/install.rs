//! The receiving side of a snapshot: a member that lacks more than the logs of the others still hold takes
//! over the state of its leader.
//!
//! It fetches the checkpoint, then every entry that some topic in it names, and makes a new store of them
//! beside its own (see `storage/stores.rs`). When that is whole, the member stops its part in Raft, gives the
//! new store its vote, lets it be the one that counts, and starts anew from it. Exchanging log and state
//! under a running Raft would save that moment, in which such a member has nothing to serve anyway, and cost
//! an order of steps that only this case would ever test. So it is what every start is: a log that begins
//! behind a checkpoint.
//!
//! A kill at any point leaves the old store or the new one. A connection that breaks, or a leader that goes,
//! ends the attempt; the leader's openraft will ask again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::handshake::Lane;
use super::peer::Peer;
use super::peers::Peers;
use super::rpc::{Body, Kind};
use super::transfer_rpc::{self as rpc, InstallRequest};
use super::types::{RaftVoteOf, entry_id, raft_vote};
use crate::limits::TRANSFER_INDEXES;
use crate::state::State;
use crate::storage::{EntryId, LiveEntries, Log, LogEntry, Page, Room, StagedStore, Stores};
use crate::task;

/// For one page; the leader may have to read it from a slow disk.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// How far a member has taken over the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InstallProgress {
    /// Entries that are here, and of how many. 0 while the state itself is fetched.
    pub entries: u64,
    pub entries_total: u64,
    /// Bytes of state and entries that are here.
    pub bytes: u64,
}

/// A state that was taken over and waits to be started from.
pub struct Installed {
    store: StagedStore,
    last: EntryId,
}

/// Takes over the state of a leader when asked to.
pub struct Installer {
    log: Log,
    room: Arc<Room>,
    stores: Arc<Stores>,
    /// The latest attempt; earlier ones give up when they see it.
    attempt: AtomicU64,
    /// Held by the attempt that writes.
    writing: tokio::sync::Mutex<()>,
    progress: Mutex<Option<InstallProgress>>,
    /// Why the last attempt failed, if it did.
    last_error: Mutex<Option<String>>,
    installed: Mutex<Option<Installed>>,
    is_installed: watch::Sender<bool>,
}

impl Installer {
    pub fn new(log: Log, room: Arc<Room>, stores: Arc<Stores>) -> Arc<Self> {
        Arc::new(Installer {
            log,
            room,
            stores,
            attempt: AtomicU64::new(0),
            writing: tokio::sync::Mutex::default(),
            progress: Mutex::default(),
            last_error: Mutex::default(),
            installed: Mutex::default(),
            is_installed: watch::Sender::new(false),
        })
    }

    /// How far the present attempt is, if there is one.
    pub fn progress(&self) -> Option<InstallProgress> {
        *self.progress.lock()
    }

    /// Why the last attempt failed; `None` if there was none since one that did not.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// Waits until a state was taken over. Whoever runs the member then ends it, calls [`Installer::adopt`]
    /// and starts it again.
    pub async fn installed(&self) {
        let mut is_installed = self.is_installed.subscribe();
        if is_installed.wait_for(|is_installed| *is_installed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Lets the state that was taken over be the one to start from. Raft and the log must have ended.
    pub fn adopt(&self) -> io::Result<()> {
        let Some(Installed { store, last }) = self.installed.lock().take() else { return Ok(()) };
        if self.log.has(last) {
            // Another leader brought it here by the log meanwhile, and may count on what came after.
            tracing::info!("the log has caught up by itself: the state that was taken over is not needed");
            return Ok(());
        }
        // What the log has beyond is either part of that state or was never committed: an entry that is not
        // the one at `last` cannot be below any committed one.
        self.stores.publish(store, last, self.log.vote())
    }

    /// Takes over the state that `request` names, unless everything in it is here. Gives this member's vote;
    /// when the state was taken over instead, this never returns, as the member is about to start anew.
    pub async fn install(&self, peers: &Arc<Peers>, request: InstallRequest) -> Result<RaftVoteOf, String> {
        let last = entry_id(&request.last);
        if self.log.has(last) {
            self.log.wait_synced(last.index).await.map_err(|error| error.to_string())?;
            *self.last_error.lock() = None;
            return Ok(self.log.vote().map_or(request.vote, raft_vote));
        }
        let attempt = self.attempt.fetch_add(1, Ordering::AcqRel) + 1;
        let _writing = self.writing.lock().await;
        let name = &request.member.name;
        tracing::info!("taking over the state of member {name}: its log no longer has what is missing here");
        let peer = peers.peer(request.node_id, &request.member);
        let fetching = Fetching { installer: self, attempt, peer: &peer, transfer: request.transfer };
        let outcome = match self.find_room(request.needed_bytes).await {
            Ok(()) => fetching.run(last).await,
            Err(error) => Err(error),
        };
        *self.progress.lock() = None;
        *self.last_error.lock() = outcome.as_ref().err().cloned();
        match outcome {
            Ok(installed) => {
                let EntryId { index, .. } = installed.last;
                tracing::info!("took over the state of member {name} as of entry {index}: starting from it");
                *self.installed.lock() = Some(installed);
                self.is_installed.send_replace(true);
                std::future::pending().await
            }
            Err(error) => {
                tracing::warn!("could not take over the state of member {name}: {error}");
                // It may be the very room that is missing.
                let stores = self.stores.clone();
                if let Err(error) = task::blocking(move || stores.discard_staged()).await {
                    tracing::warn!("what came of it cannot be removed: {error}");
                }
                Err(error)
            }
        }
    }
}

impl Installer {
    /// Whether the disk has room for so much, beside what is there. Found out first, it is not found out after
    /// hours.
    async fn find_room(&self, needed_bytes: u64) -> Result<(), String> {
        let room = self.room.clone();
        let spare_bytes = task::blocking(move || room.spare_bytes()).await;
        let spare_bytes = spare_bytes.map_err(|error| error.to_string())?;
        if needed_bytes <= spare_bytes {
            return Ok(());
        }
        Err(format!(
            "about {} MiB are needed beside the data that are here, and {} MiB are free above \
             --min-free-bytes",
            needed_bytes.div_ceil(1 << 20),
            spare_bytes >> 20
        ))
    }
}

/// One attempt.
struct Fetching<'a> {
    installer: &'a Installer,
    attempt: u64,
    peer: &'a Peer,
    transfer: u64,
}

impl Fetching<'_> {
    async fn run(&self, wanted: EntryId) -> Result<Installed, String> {
        let stores = self.installer.stores.clone();
        let store = task::blocking(move || stores.stage()).await.map_err(|error| error.to_string())?;
        let mut draft = Draft { store, state: State::new(Arc::default()), progress: Default::default() };
        // The next page is on its way while the last one is written.
        let (mut page, sum) = self.state(None).await?;
        while let Some(after) = page.last().map(|(key, _)| key.clone()) {
            let (taken, next) = tokio::join!(draft.take_page(page), self.state(Some(&after)));
            draft = taken?;
            self.tell(&draft)?;
            page = next?.0;
        }
        if !draft.adds_up_to(sum) {
            return Err(
                "the state did not come as it was sent: it does not add up to its checksum".to_owned()
            );
        }
        let (mut draft, last, live) = draft.restored()?;
        if last.index < wanted.index {
            return Err(format!("it is as of entry {}, not {}", last.index, wanted.index));
        }
        draft.progress.entries_total = live.count();
        let mut entries = self.entries(&live, None).await?;
        while let Some(at) = entries.last().map(|entry| entry.id.index) {
            let (taken, next) = tokio::join!(draft.take_entries(entries), self.entries(&live, Some(at)));
            draft = taken?;
            self.tell(&draft)?;
            entries = next?;
        }
        if draft.progress.entries != draft.progress.entries_total {
            return Err("not every entry that the state names came".to_owned());
        }
        Ok(Installed { store: draft.sealed().await?, last })
    }

    /// Shows how far it is, and whether it makes sense to go on.
    fn tell(&self, draft: &Draft) -> Result<(), String> {
        *self.installer.progress.lock() = Some(draft.progress);
        if self.installer.attempt.load(Ordering::Acquire) != self.attempt {
            return Err("a newer attempt has begun".to_owned());
        }
        if self.installer.room.is_full() {
            return Err("the disk has no room for it".to_owned());
        }
        Ok(())
    }

    async fn ask(&self, kind: Kind, body: Body) -> Result<Bytes, String> {
        let reply = self.peer.call(Lane::Transfer, kind, body, PAGE_TIMEOUT).await;
        reply.map_err(|error| error.to_string())
    }

    async fn state(&self, after: Option<&[u8]>) -> Result<(Page, u64), String> {
        let body = rpc::encode_state_request(self.transfer, after);
        let reply = self.ask(Kind::TransferState, body).await?;
        rpc::decode_page(&reply).map_err(|error| error.to_string())
    }

    /// The next live entries behind the one at `after`; none at the end.
    async fn entries(&self, live: &LiveEntries, after: Option<u64>) -> Result<Vec<LogEntry>, String> {
        let indexes = live.above(after, TRANSFER_INDEXES);
        if indexes.is_empty() {
            return Ok(Vec::new());
        }
        let body = rpc::encode_entries_request(self.transfer, &indexes);
        let reply = self.ask(Kind::TransferEntries, body).await?;
        let entries = rpc::decode_entries(&reply).map_err(|error| error.to_string())?;
        let are_asked_for = entries.iter().zip(&indexes).all(|(entry, index)| entry.id.index == *index);
        if entries.is_empty() || entries.len() > indexes.len() || !are_asked_for {
            return Err("other entries came than were asked for".to_owned());
        }
        Ok(entries)
    }
}

/// The store that is being made, and what is known of it.
struct Draft {
    store: StagedStore,
    /// Restored as its parts come, to learn which entries it names.
    state: State,
    progress: InstallProgress,
}

impl Draft {
    async fn take_page(mut self, page: Page) -> Result<Self, String> {
        let writing = task::blocking(move || {
            for (key, value) in &page {
                self.state.restore(key, value)?;
                self.progress.bytes += (key.len() + value.len()) as u64;
            }
            if let Some(checkpoint) = &self.store.checkpoint {
                checkpoint.write(page.into_iter().map(|(key, value)| (key, Some(value))).collect())?;
            }
            Ok(self)
        });
        writing.await.map_err(|error| error.to_string())
    }

    /// Whether what was written is what was sent.
    fn adds_up_to(&self, sum: u64) -> bool {
        self.store.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.sum() == sum)
    }

    /// The state is whole: as of which entry, and what it names.
    fn restored(mut self) -> Result<(Self, EntryId, Arc<LiveEntries>), String> {
        self.state.restored();
        let last = self.state.applied().ok_or("it has no state")?;
        let live = self.state.live().clone();
        // Only the names are needed from here on.
        self.state = State::new(Arc::default());
        Ok((self, last, live))
    }

    async fn take_entries(mut self, entries: Vec<LogEntry>) -> Result<Self, String> {
        let writing = task::blocking(move || {
            for entry in &entries {
                self.store.log.push(entry)?;
                self.progress.entries += 1;
                self.progress.bytes += entry.payload.len() as u64;
            }
            Ok(self)
        });
        writing.await.map_err(|error| error.to_string())
    }

    async fn sealed(mut self) -> Result<StagedStore, String> {
        let sealing = task::blocking(move || {
            self.store.log.seal()?;
            // The member starts anew and opens it again.
            self.store.checkpoint = None;
            Ok(self.store)
        });
        sealing.await.map_err(|error| error.to_string())
    }
}
