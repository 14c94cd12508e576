//! How much of its disk a member's log takes up, when nothing goes wrong any more: what topics have, what is kept for
//! members that lag, and not much more.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use antiphon::raft::Applied;
use antiphon::storage::{Disk, LogEntry, OpenMode};
use tokio::time::Instant;

use crate::clients;
use crate::member::{DATA_DIR, engine_of};
use crate::world::{MEMBERS, World};

/// Longer than the place of a member is kept that starts from a state.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Header, padding and row of a table, per entry.
const ENTRY_BYTES: u64 = 80;
/// Header and table of a file.
const FILE_BYTES: u64 = 8 << 10;

/// Waits until the disk of every member holds little more than it must.
pub async fn check(world: &Arc<World>) {
    let deadline = Instant::now() + PATIENCE;
    for number in 0..MEMBERS {
        loop {
            if world.trace.has_complaints() {
                return;
            }
            let Some((_, applied, _)) = engine_of(&world.machines[number]) else { return };
            let disk = world.machines[number].lock().disk.clone();
            let (used, allowed) =
                match used_bytes(&disk).and_then(|used| Ok((used, allowed_bytes(world, &applied)?))) {
                    Ok(both) => both,
                    Err(error) => {
                        world
                            .trace
                            .complain(format_args!("m{}: its disk cannot be measured: {error}", number + 1));
                        return;
                    }
                };
            if used <= allowed {
                break;
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

/// What is live, as much again that is dead, the entries that the log keeps, and the files at its end.
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
    Ok(2 * live_bytes + kept_bytes + 4 * world.setup.log_options.segment_bytes + files * FILE_BYTES)
}
