//! Entries that are read from the disk for readers: what all of them hold together is bounded (C-LIMIT-16).
//!
//! A page of one small record has to read the whole entry that it lies in, which may be as large as the largest
//! body. Such an entry counts from before it is read until nobody holds anything of it any more. A page that holds none
//! waits for its turn; one that holds some ends with what it has, so that no two wait for each other. Whoever is to hold some
//! must get on without being waited for: see `task::Begun`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Code, Error};
use crate::limits::MAX_COLD_ENTRY_BYTES;
use crate::record::EntryRecords;
use crate::state::Run;
use crate::storage::{EntryId, Log};

/// What is counted in.
const UNIT_BYTES: u64 = 1 << 10;

/// The room that all of them have.
pub(super) struct ColdEntries {
    units: Arc<Semaphore>,
    max_units: u32,
}

/// What could be read at once.
pub(super) enum Read {
    Entries(Vec<(Run, EntryRecords)>),
    /// There is no room for the first one, which needs so many units.
    NoRoom(u32),
}

/// An entry that counts as long as it is there.
struct Counted {
    payload: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

impl Default for ColdEntries {
    fn default() -> Self {
        ColdEntries::new(MAX_COLD_ENTRY_BYTES)
    }
}

impl ColdEntries {
    fn new(max_bytes: u64) -> Self {
        let max_units = (max_bytes / UNIT_BYTES) as u32;
        ColdEntries { units: Arc::new(Semaphore::new(max_units as usize)), max_units }
    }

    /// Waits for room, in the order of those who ask. Errors: `throttled` if there is none in time.
    pub async fn wait(&self, units: u32, patience: Duration) -> Result<OwnedSemaphorePermit, Error> {
        let waiting = self.units.clone().acquire_many_owned(units);
        let room = tokio::time::timeout(patience, waiting).await.ok();
        room.and_then(Result::ok).ok_or_else(no_room)
    }

    /// A way to read from `log`, which may wait for the disk, but for no room.
    pub fn reader(&self, log: Log) -> Reader {
        Reader { log, units: self.units.clone(), max_units: self.max_units }
    }
}

/// There is no room for what has to be read.
pub(super) fn no_room() -> Error {
    Error::over_limit("cold_entry_bytes", MAX_COLD_ENTRY_BYTES)
}

pub(super) fn is_no_room(error: &Error) -> bool {
    error.code == Code::Throttled && *error == no_room()
}

pub(super) struct Reader {
    log: Log,
    units: Arc<Semaphore>,
    max_units: u32,
}

impl Reader {
    /// The entries of `runs`, until they are more than `budget_bytes` or there is no room. `room` is for the first.
    pub fn read(
        &self,
        runs: &[Run],
        budget_bytes: usize,
        mut room: Option<OwnedSemaphorePermit>,
    ) -> io::Result<Read> {
        let (mut read, mut bytes): (Vec<(Run, EntryRecords)>, usize) = (Vec::with_capacity(runs.len()), 0);
        for run in runs {
            let known = read.last().filter(|(last, _)| last.entry == run.entry);
            let entry = match known {
                Some((_, entry)) => entry.clone(),
                None => {
                    let units = self.units_of(run.entry);
                    let room = match room.take().filter(|room| room.num_permits() >= units as usize) {
                        Some(room) => room,
                        None => match self.units.clone().try_acquire_many_owned(units) {
                            Ok(room) => room,
                            Err(_) if read.is_empty() => return Ok(Read::NoRoom(units)),
                            Err(_) => break,
                        },
                    };
                    let payload = self.log.payload(run.entry)?;
                    bytes += payload.len();
                    EntryRecords::parse(Bytes::from_owner(Counted { payload, _room: room }))?
                }
            };
            read.push((*run, entry));
            if bytes > budget_bytes {
                break;
            }
        }
        Ok(Read::Entries(read))
    }

    /// One entry, from memory or from the disk; otherwise how many units of room it needs that there are not.
    pub fn read_one(
        &self,
        run: &Run,
        room: Option<OwnedSemaphorePermit>,
    ) -> io::Result<Result<EntryRecords, u32>> {
        if let Some(entry) = self.log.cached(run.entry) {
            return Ok(Ok(EntryRecords::parse(entry.payload)?));
        }
        match self.read(std::slice::from_ref(run), 0, room)? {
            Read::Entries(entries) => {
                let entry = entries.into_iter().next().map(|(_, entry)| Ok(entry));
                entry.ok_or_else(|| io::Error::other("nothing was read"))
            }
            Read::NoRoom(units) => Ok(Err(units)),
        }
    }

    /// All of them for one that is larger than all: it is read alone.
    fn units_of(&self, entry: EntryId) -> u32 {
        let units = self.log.payload_bytes(entry).unwrap_or(0).div_ceil(UNIT_BYTES);
        u32::try_from(units).unwrap_or(self.max_units).min(self.max_units)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::record::{EntryBuilder, Record};
    use crate::storage::{EntryKind, LogEntry, LogOptions, SimDisk};

    fn id(index: u64) -> EntryId {
        EntryId { term: 1, index }
    }

    fn runs(indexes: &[u64]) -> Vec<Run> {
        indexes.iter().map(|index| Run::of_entry(id(*index), 0, *index, 1, 0)).collect()
    }

    #[tokio::test]
    async fn what_is_read_counts_until_nobody_holds_it() {
        // C-LIMIT-16
        let options = LogOptions { cache_bytes: 0, ..LogOptions::default() };
        let (log, writer) = Log::open(Arc::new(SimDisk::new(1)), Path::new("/log"), options).unwrap();
        let writer = writer.run_on_thread().unwrap();
        for (index, kib) in [(1, 60), (2, 60), (3, 300)] {
            let data = format!("\"{}\"", "x".repeat(kib << 10));
            let mut builder = EntryBuilder::new(1, 1, 0);
            builder.push(&Record { data: &data, ..Record::default() });
            let payload = builder.finish().freeze();
            let entry = LogEntry { id: id(index), kind: EntryKind::Command, stamp_ms: 0, payload };
            log.append(vec![entry], Box::new(|_| ())).await.unwrap();
            log.wait_synced(index).await.unwrap();
        }
        assert!(log.cached(id(1)).is_none());
        let cold = ColdEntries::new(100 << 10);
        let read = |wanted: &[u64], room| match cold.reader(log.clone()).read(&runs(wanted), usize::MAX, room)
        {
            Ok(Read::Entries(entries)) => Ok(entries),
            Ok(Read::NoRoom(units)) => Err(units),
            Err(error) => panic!("{error}"),
        };
        // The second has no room any more: a page ends before it.
        let first = read(&[1, 2], None).unwrap();
        assert_eq!(first.len(), 1);
        let held = first[0].1.clone();
        drop(first);
        let units = read(&[2], None).unwrap_err();
        assert!((60..70).contains(&units), "{units}");
        assert_eq!(read(&[3], None).unwrap_err(), 100, "all of it for one that is larger");
        assert_eq!(cold.wait(units, Duration::from_millis(1)).await.err(), Some(no_room()));
        drop(held);
        let room = cold.wait(units, Duration::MAX).await.unwrap();
        assert_eq!(read(&[2], Some(room)).unwrap().len(), 1);
        assert_eq!(read(&[3], None).unwrap().len(), 1);
        assert_eq!(cold.units.available_permits(), 100);
        log.close();
        writer.join().unwrap();
    }
}
