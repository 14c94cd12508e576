//! What goes wrong.

use std::sync::Arc;
use std::time::Duration;

use antiphon::storage::sim_disk::Dice;
use tokio::time::Instant;

use crate::disks;
use crate::member;
use crate::seeded::Throw;
use crate::strangers;
use crate::world::{MEMBERS, World};

/// Wall clocks are at most this wrong; topics remember idempotency keys for longer.
const MAX_JUMP_MS: i64 = 24 * 3_600_000;

/// From the loss of a disk until the blank member votes again, in a cluster that has a leader most of the time.
const REPLACING: Duration = Duration::from_secs(18);

/// Lets things go wrong for a while, or until a promise is broken.
pub async fn rage(world: &Arc<World>, dice: &mut Dice, time: Duration) {
    let mut end = Instant::now() + time;
    world.net.set_strangers(dice.chance(50));
    // Some histories have many faults, some few: rare ones need quiet around them.
    let pause_ms = dice.between(100, 1500);
    while Instant::now() < end && !world.trace.has_complaints() {
        tokio::time::sleep(dice.time_ms(10, pause_ms)).await;
        for number in 0..MEMBERS {
            let is_down = world.machines[number].lock().running.is_none();
            if is_down && dice.chance(40) {
                world.machines[number].lock().is_harmed = false;
                member::start(world, number);
            }
        }
        let (one, other) = (dice.below(MEMBERS as u64) as usize, dice.below(MEMBERS as u64) as usize);
        world.oracle.count_fault();
        match dice.below(100) {
            0..15 => kill(world, one),
            15..26 => lose_power(world, one),
            26..36 => disks::fail_midway(world, one, dice).await,
            36..42 => strangers::call(world, one, dice),
            42..44 => black_out(world),
            44..48 => {
                // Faults go on while the lost member is being replaced, which takes a while to begin.
                if disks::lose_disk(world, one) {
                    end = end.max(Instant::now() + REPLACING);
                }
            }
            48..51 => disks::fail_sync(world, one, dice).await,
            51..58 => {
                let one = world.setup.fragile.filter(|_| dice.chance(50)).unwrap_or(one);
                disks::harm(world, one, dice).await;
            }
            58..63 => isolate(world, one),
            63..68 if one != other => cut(world, one, other, dice),
            68..73 if one != other => {
                world.trace.note(format_args!("fault: m{} x m{} reset", one + 1, other + 1));
                world.net.reset(one, other);
            }
            73..78 if one != other => slow_down(world, one, other, dice),
            78..84 => {
                let offset_ms = dice.between(0, 2 * MAX_JUMP_MS as u64) as i64 - MAX_JUMP_MS;
                world.trace.note(format_args!("fault: clock of m{} at {offset_ms} ms", one + 1));
                world.machines[one].lock().clock.jump_to(offset_ms);
            }
            _ => {
                mend_network(world);
                disks::mend(world);
            }
        }
    }
}

/// Mends everything and starts whoever is down.
pub async fn heal(world: &Arc<World>) {
    world.trace.note("all is mended");
    world.net.set_strangers(false);
    mend_network(world);
    disks::mend(world);
    disks::replace_rotten(world);
    for number in 0..MEMBERS {
        {
            let mut machine = world.machines[number].lock();
            // A disk that was told to fail is one that nobody trusts: its member starts again.
            if machine.is_harmed {
                machine.disk.revive();
                machine.disk.fail_syncs(0);
                machine.kill();
                machine.is_harmed = false;
            }
        }
        member::start(world, number);
    }
}

/// Every machine loses power at the same moment.
pub fn black_out(world: &Arc<World>) {
    (0..MEMBERS).for_each(|number| lose_power(world, number));
}

pub fn kill(world: &Arc<World>, number: usize) {
    world.trace.note(format_args!("fault: m{} killed", number + 1));
    world.machines[number].lock().kill();
}

pub fn lose_power(world: &Arc<World>, number: usize) {
    world.trace.note(format_args!("fault: m{} loses power", number + 1));
    world.net.darken(number);
    world.machines[number].lock().lose_power();
}

fn isolate(world: &Arc<World>, number: usize) {
    world.trace.note(format_args!("fault: m{} is cut off", number + 1));
    for other in (0..MEMBERS).filter(|other| *other != number) {
        world.net.set_cut(number, other, true);
        world.net.set_cut(other, number, true);
    }
}

fn cut(world: &Arc<World>, from: usize, to: usize, dice: &mut Dice) {
    let is_both = dice.chance(50);
    let arrow = if is_both { "<->" } else { "->" };
    world.trace.note(format_args!("fault: m{} {arrow} m{} is cut", from + 1, to + 1));
    world.net.set_cut(from, to, true);
    if is_both {
        world.net.set_cut(to, from, true);
    }
}

fn slow_down(world: &Arc<World>, from: usize, to: usize, dice: &mut Dice) {
    let high_us = dice.between(5_000, 400_000);
    world.trace.note(format_args!("fault: m{} -> m{} takes up to {high_us} us", from + 1, to + 1));
    world.net.set_delay(from, to, (high_us / 10, high_us));
}

fn mend_network(world: &Arc<World>) {
    for from in 0..MEMBERS {
        for to in 0..MEMBERS {
            world.net.set_cut(from, to, false);
            world.net.set_delay(from, to, (100, 2000));
        }
    }
}
