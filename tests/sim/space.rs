//! How much of its disk a member's log takes up, when nothing goes wrong any more: what topics have, what is kept for
//! members that lag, and not much more.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use antiphon::raft::Applied;
use antiphon::record::Record;
use antiphon::state::{Append, Create, Draft, TopicConfig};
use antiphon::storage::{Disk, LogEntry, OpenMode};
use tokio::time::Instant;

use crate::calls::{self, Told};
use crate::clients;
use crate::disks;
use crate::member::{self, DATA_DIR, engine_of};
use crate::world::{MEMBERS, MIN_FREE_BYTES, World};

/// Longer than the place of a member is kept that starts from a state.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Header, padding and row of a table, per entry.
const ENTRY_BYTES: u64 = 80;
/// Header and table of a file.
const FILE_BYTES: u64 = 8 << 10;

/// Topic of which only the newest records are kept, and what is written to it.
const OVERWRITTEN: &str = "overwritten";
const CAP_RECORDS: u64 = 5;
const WRITES: usize = 640;
/// Records per segment.
const PER_SEGMENT: u64 = 8;

/// Waits until the disk of every member holds little more than it must.
pub async fn check(world: &Arc<World>) {
    for number in 0..MEMBERS {
        check_member(world, number).await;
    }
}

/// The same of the others while one is down, or takes nothing, for longer than they wait for it, in one of three
/// histories. In the end it must come back.
pub async fn check_without_one(world: &Arc<World>) {
    let Some((_, applied, _)) = engine_of(&world.machines[0]) else { return };
    let down = (applied.index() % (3 * MEMBERS as u64)) as usize;
    if down >= MEMBERS || world.trace.has_complaints() {
        return;
    }
    let is_stuck = (applied.index() / (3 * MEMBERS as u64)).is_multiple_of(2);
    if is_stuck {
        // It answers as ever, and has no room for a record.
        world.trace.note(format_args!("m{} has no room for long", down + 1));
        {
            let mut machine = world.machines[down].lock();
            machine.is_full_up = true;
            machine.disk.leave_free(MIN_FREE_BYTES / 8);
        }
        world.has_filled.store(true, Ordering::Relaxed);
        tokio::time::sleep(LOOK_INTERVAL).await;
    } else {
        world.trace.note(format_args!("m{} is down for long", down + 1));
        world.machines[down].lock().kill();
    }
    let others = [(down + 1) % MEMBERS, (down + 2) % MEMBERS];
    overwrite(world, others[0]).await;
    for number in others {
        check_member(world, number).await;
    }
    let Some((_, applied, _)) = engine_of(&world.machines[others[0]]) else { return };
    disks::mend(world);
    member::start(world, down);
    let deadline = Instant::now() + PATIENCE;
    let index_of_it = || engine_of(&world.machines[down]).map(|(_, applied, _)| applied.index());
    while index_of_it().is_none_or(|index| index < applied.index()) {
        if world.trace.has_complaints() {
            return;
        }
        if Instant::now() >= deadline {
            world.trace.complain(format_args!("m{} does not come back: {:?}", down + 1, index_of_it()));
            return;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Writes many times what is kept, for longer than the one that is down is waited for.
async fn overwrite(world: &World, at: usize) {
    let config = TopicConfig { cap_records: CAP_RECORDS, ..TopicConfig::default() };
    let append = Append {
        topic: OVERWRITTEN,
        create: Create::With(config),
        expect_head_seq: None,
        idempotency_key: None,
    };
    let data = format!("{:?}", "x".repeat((world.setup.log_options.segment_bytes / PER_SEGMENT) as usize));
    let until = Instant::now() + world.setup.lag_patience + Duration::from_secs(5);
    let deadline = until + PATIENCE;
    let mut written = 0;
    while written < WRITES || Instant::now() < until {
        let record = Record { data: &data, ..Record::default() };
        let draft = Draft::append(&append, std::iter::once(record), data.len());
        match calls::propose(world, at, draft).await {
            Told::Outcome(_) => written += 1,
            _ => tokio::time::sleep(LOOK_INTERVAL).await,
        }
        if Instant::now() >= deadline {
            world.trace.complain(format_args!("only {written} writes came through at m{}", at + 1));
        }
        if world.trace.has_complaints() {
            return;
        }
    }
}

async fn check_member(world: &Arc<World>, number: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if world.trace.has_complaints() {
            return;
        }
        let Some((_, applied, _)) = engine_of(&world.machines[number]) else { return };
        let disk = world.machines[number].lock().disk.clone();
        let measured = used_bytes(&disk).and_then(|used| Ok((used, allowed_bytes(world, &applied)?)));
        let (used, allowed) = match measured {
            Ok(measured) => measured,
            Err(error) => {
                let who = number + 1;
                world.trace.complain(format_args!("m{who}: its disk cannot be measured: {error}"));
                return;
            }
        };
        if used <= allowed {
            return;
        }
        if Instant::now() >= deadline {
            world.trace.complain(format_args!(
                "m{} uses {used} bytes, and {allowed} are enough; {:?}",
                number + 1,
                applied.log().stats()
            ));
            return;
        }
        // What is behind the last entries leaves as the log goes on.
        let _ = clients::append_one(world, number, "steady-0").await;
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// What the files of all stores take up, but for the index, which is made again from them.
fn used_bytes(disk: &dyn Disk) -> io::Result<u64> {
    let mut bytes = 0;
    let data_dir = Path::new(DATA_DIR);
    for dir in disk.list_dirs(data_dir)?.iter().filter(|name| name.starts_with("log")) {
        let dir = data_dir.join(dir);
        for name in disk.list(&dir)?.iter().filter(|name| !name.ends_with(".idx")) {
            bytes += disk.open(&dir.join(name), OpenMode::Read)?.len_bytes()?;
        }
    }
    Ok(bytes)
}

/// What is live, as much again that is dead, the entries that the log keeps, and the files at its end: the one that was
/// made ahead too.
fn allowed_bytes(world: &World, applied: &Applied) -> io::Result<u64> {
    let log = applied.log();
    let bytes_of = |entries: &[LogEntry]| {
        entries.iter().map(|entry| entry.payload.len() as u64 + ENTRY_BYTES).sum::<u64>()
    };
    let indexes = log.live().above(None, usize::MAX);
    let live_bytes = bytes_of(&log.committed_entries(&indexes, usize::MAX, Duration::MAX)?);
    let last = log.last_id().map_or(0, |id| id.index);
    // A stride for the purge, one for the snapshot that it rests on, and what came since the last look.
    let kept = world.setup.kept_log_entries * 5 / 4 + 100;
    let kept_bytes = bytes_of(&log.entries(last.saturating_sub(kept)..last + 1, usize::MAX)?);
    let files = log.stats().kept_files + 4;
    Ok(2 * live_bytes + kept_bytes + 5 * world.setup.log_options.segment_bytes + files * FILE_BYTES)
}
