//! What goes wrong with disks.
//!
//! One machine of a history is fragile: its disk loses bits, sectors and files. Only there, and only while all
//! members vote, because a second loss before the first is made good is more than three members can bear.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use antiphon::state::Key;
use antiphon::storage::sim_disk::Dice;
use antiphon::storage::{Checkpoints, Disk, OpenMode, SimDisk, Stores};
use tokio::time::{Instant, sleep};

use crate::faults::{kill, lose_power};
use crate::member::{DATA_DIR, Machine};
use crate::seeded::Throw;
use crate::world::{MEMBERS, MIN_FREE_BYTES, World};

/// What a member that has so much of its reserve left must get along with.
const LITTLE_BYTES: u64 = MIN_FREE_BYTES / 2;

/// Something befalls the disk of a member; `false` if nothing did.
pub async fn harm(world: &Arc<World>, number: usize, dice: &mut Dice) -> bool {
    match dice.below(10) {
        0..3 => fill(world, number, dice),
        3..5 => lack_files(world, number, dice).await,
        5 => misread(world, number, dice).await,
        6..8 => flip_bits(world, number, dice),
        8 => lose_store(world, number, dice),
        _ => write_newer(world, number, dice),
    }
}

/// Ends all of it that ends by itself.
pub fn mend(world: &World) {
    for machine in &world.machines {
        let mut machine = machine.lock();
        machine.disk.set_others(0);
        machine.disk.set_free_bytes(u64::MAX);
        machine.disk.refuse_opens(0);
        machine.is_full_up = false;
        write_back(&mut machine);
    }
}

/// The disk stops in the middle of an operation; a moment later so does the machine, or only the process.
pub async fn fail_midway(world: &Arc<World>, number: usize, dice: &mut Dice) {
    let count = dice.between(1, 12);
    let is_process = dice.chance(30);
    let disk = {
        let mut machine = world.machines[number].lock();
        machine.is_harmed = true;
        machine.disk.fail_after(count);
        machine.disk.clone()
    };
    world.trace.note(format_args!("fault: disk of m{} stops after {count} operations", number + 1));
    let (target, patience) = (disk.operations() + count, Instant::now() + Duration::from_secs(1));
    while disk.operations() < target && Instant::now() < patience {
        sleep(Duration::from_micros(500)).await;
    }
    if is_process {
        kill(world, number);
        disk.revive();
        world.machines[number].lock().is_harmed = false;
    } else {
        lose_power(world, number);
    }
}

/// A sync reports an error: the member must end, unless that was of a state that it takes over, which is thrown away
/// and fetched anew. It is started again with or without a loss of power.
pub async fn fail_sync(world: &Arc<World>, number: usize, dice: &mut Dice) {
    let (disk, life) = {
        let mut machine = world.machines[number].lock();
        machine.is_harmed = true;
        machine.disk.fail_syncs(1);
        (machine.disk.clone(), machine.life)
    };
    let before = disk.operations();
    world.trace.note(format_args!("fault: a sync of m{} fails", number + 1));
    let patience = Instant::now() + Duration::from_secs(5);
    let goes_on = || {
        let machine = world.machines[number].lock();
        machine.running.is_some() && machine.life == life
    };
    while goes_on() && Instant::now() < patience {
        sleep(Duration::from_millis(10)).await;
    }
    if goes_on() && disk.operations() > before + 40 {
        world.trace.complain(format_args!("m{} goes on after a failed sync", number + 1));
    }
    if dice.chance(50) {
        lose_power(world, number);
    } else {
        kill(world, number);
        disk.fail_syncs(0);
        world.machines[number].lock().is_harmed = false;
    }
}

/// The disk is gone, and a blank one is in its place.
pub fn lose_disk(world: &Arc<World>, number: usize) -> bool {
    if !may_lose(world, number) {
        return false;
    }
    world.trace.note(format_args!("fault: m{} loses its disk", number + 1));
    world.machines[number].lock().lose_disk(world.setup.disk_bytes);
    true
}

/// Whether what is on this disk may be lost now.
fn may_lose(world: &World, number: usize) -> bool {
    let is_it = world.setup.fragile.is_none_or(|fragile| fragile == number);
    is_it && world.machines.iter().all(|machine| machine.lock().is_voter())
}

/// The same for what only a fragile disk does.
fn may_rot(world: &World, number: usize) -> bool {
    world.setup.fragile == Some(number) && may_lose(world, number)
}

/// Others take up the disk, but for a part of the reserve, or for next to nothing.
fn fill(world: &World, number: usize, dice: &mut Dice) -> bool {
    let left_bytes = match dice.chance(60) {
        true => dice.between(LITTLE_BYTES, MIN_FREE_BYTES * 2),
        false => dice.below(MIN_FREE_BYTES / 4),
    };
    world.trace.note(format_args!("fault: m{} has {left_bytes} bytes left on its disk", number + 1));
    world.has_filled.store(true, Ordering::Relaxed);
    let mut machine = world.machines[number].lock();
    // On a disk with a size writes fail too; on the others there is only said to be so little left.
    machine.disk.leave_free(left_bytes);
    machine.is_full_up = left_bytes < LITTLE_BYTES && world.setup.disk_bytes.is_some();
    true
}

/// The process has no file descriptor for a while. It waits for one, or goes without.
async fn lack_files(world: &World, number: usize, dice: &mut Dice) -> bool {
    let (count, time) = (dice.between(1, 5) as u32, dice.time_ms(100, 3000));
    world.trace.note(format_args!("fault: m{} opens no file {count} times in {time:?}", number + 1));
    let disk = {
        let mut machine = world.machines[number].lock();
        machine.lacks_files_until = Some(Instant::now() + time);
        machine.disk.refuse_opens(count);
        machine.disk.clone()
    };
    sleep(time).await;
    disk.refuse_opens(0);
    true
}

/// A sector cannot be read, once or again and again; that is damage if it happens twice.
async fn misread(world: &World, number: usize, dice: &mut Dice) -> bool {
    let may_last = may_rot(world, number);
    let (count, time) = (if may_last { dice.between(1, 4) } else { 1 } as u32, dice.time_ms(100, 3000));
    let disk = world.machines[number].lock().disk.clone();
    let Some(path) = some_file(&disk, dice, 0) else { return false };
    world.trace.note(format_args!("fault: m{} cannot read {} {count} times", number + 1, path.display()));
    {
        let mut machine = world.machines[number].lock();
        machine.is_rotten |= count > 1;
        machine.lacks_files_until = Some(Instant::now() + time);
    }
    let _ = disk.fail_reads(&path, count);
    sleep(time).await;
    let _ = disk.fail_reads(&path, 0);
    true
}

/// Bits of what was written long ago turn around.
fn flip_bits(world: &World, number: usize, dice: &mut Dice) -> bool {
    if !may_rot(world, number) {
        return false;
    }
    let disk = world.machines[number].lock().disk.clone();
    let Some(path) = some_file(&disk, dice, 2) else { return false };
    world.machines[number].lock().is_rotten = true;
    world.trace.note(format_args!("fault: bits of {} of m{} turn", path.display(), number + 1));
    let len_bytes = disk.open(&path, OpenMode::Read).and_then(|file| file.len_bytes()).unwrap_or_default();
    for _ in 0..dice.between(1, 4) {
        let _ = disk.flip_bit(&path, dice.below(len_bytes), dice.below(8) as u8);
    }
    true
}

/// Log and checkpoint are gone, and the file that says who this is stays. It must never speak as that again.
fn lose_store(world: &Arc<World>, number: usize, dice: &mut Dice) -> bool {
    if !may_rot(world, number) {
        return false;
    }
    kill(world, number);
    world.trace.note(format_args!("fault: m{} loses its store", number + 1));
    let mut machine = world.machines[number].lock();
    let dir = Path::new(DATA_DIR);
    for name in machine.disk.list_dirs(dir).unwrap_or_default() {
        let _ = machine.disk.remove_dir_all(&dir.join(name));
    }
    if dice.chance(50) {
        let _ = machine.disk.lose(&dir.join("store"));
    }
    machine.lose_checkpoints();
    machine.is_rotten = true;
    machine.has_lost_store = true;
    true
}

/// A newer version has run here: its checkpoint is whole, and of a form that this one does not know.
fn write_newer(world: &Arc<World>, number: usize, dice: &mut Dice) -> bool {
    kill(world, number);
    let mut machine = world.machines[number].lock();
    if machine.life == 0 || machine.was_before.is_some() {
        return false;
    }
    let Some(checkpoint) = checkpoint(&machine) else { return false };
    let key = Key::Machine.encode();
    let Ok(Some(before)) = checkpoint.get(&key) else { return false };
    let mut newer = before.clone();
    newer[0] += dice.between(1, 9) as u8;
    world.trace.note(format_args!("fault: a newer version has run at m{}", number + 1));
    let _ = checkpoint.write(vec![(key, Some(newer))]);
    machine.was_before = Some(before);
    true
}

/// The version that wrote the checkpoint is there again.
fn write_back(machine: &mut Machine) {
    let Some(before) = machine.was_before.take() else { return };
    machine.kill();
    if let Some(checkpoint) = checkpoint(machine) {
        let _ = checkpoint.write(vec![(Key::Machine.encode(), Some(before))]);
    }
}

fn checkpoint(machine: &Machine) -> Option<Arc<dyn antiphon::storage::Checkpoint>> {
    let disk: Arc<dyn Disk> = Arc::new(machine.disk.clone());
    let checkpoints: Arc<dyn Checkpoints> = machine.checkpoints.clone();
    Stores::open(disk, Path::new(DATA_DIR), 0, checkpoints).ok()?.open_checkpoint().ok()
}

/// Some file of the log, but for its `newest` segments: what was written last, and is lost, cannot be told from what
/// was never there.
fn some_file(disk: &SimDisk, dice: &mut Dice, newest: usize) -> Option<PathBuf> {
    let dir = Path::new(DATA_DIR);
    let mut files = Vec::new();
    for log in disk.list_dirs(dir).ok()?.iter().filter(|name| name.starts_with("log")) {
        let log = dir.join(log);
        let names = disk.list(&log).ok()?;
        let segments = names.iter().filter(|name| name.ends_with(".seg"));
        let older = segments.clone().count().saturating_sub(newest);
        let others = names.iter().filter(|name| name.ends_with(".kept") || name.ends_with(".idx"));
        files.extend(segments.take(older).chain(others).map(|name| log.join(name)));
    }
    let at = dice.below(files.len() as u64) as usize;
    files.into_iter().nth(at)
}

/// Replaces what an operator would replace: a disk that is known to lose bits.
pub fn replace_rotten(world: &Arc<World>) {
    for number in 0..MEMBERS {
        let mut machine = world.machines[number].lock();
        if machine.is_rotten {
            world.trace.note(format_args!("m{} gets a new disk", number + 1));
            machine.lose_disk(world.setup.disk_bytes);
        }
    }
}
