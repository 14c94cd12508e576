//! Whole clusters in one thread, from one seed.
//!
//! Three members run as they do in production, but for what `server.rs` hands in: time is tokio's paused
//! clock, which jumps to the next timer when nobody has anything to do; the network and the disks are in
//! memory and follow dice; so do election time-outs, clients and faults. A seed decides everything, so a
//! history that breaks a promise can be run again, as often as it takes to understand it.
//!
//! ```text
//! cargo sim --seeds 200             seeds 0 to 199
//! cargo sim --from 17 --seeds 1 --trace     one history, told in full
//! cargo sim --seeds 50 --clusters 3         only histories of three clusters with mirrors between them
//! ```
//!
//! Why not only the tests with real processes: those meet a few crashes a minute, at moments that nobody
//! chose, on a disk that forgets nothing. Here a minute of a cluster's life takes a fraction of a second,
//! and the disk loses whatever it may.

mod calls;
mod clients;
mod copies;
mod disks;
mod faults;
mod hostile;
mod member;
mod memory;
mod mirrors;
mod network;
mod oracle;
mod reads;
mod rest;
mod seeded;
mod space;
mod strangers;
mod trace;
mod watchers;
mod wide;
mod world;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use world::Verdict;

/// Seeds of a plain `cargo test`: enough to notice that something is badly wrong.
const DEFAULT_SEEDS: u64 = 20;
/// Every so many seeds one is run twice, and must go the same way.
const TWICE_EVERY: u64 = 10;
/// Without `cargo sim`'s flag tokio draws numbers that no seed decides: good enough to look for failures,
/// not to run one again.
const IS_EXACT: bool = cfg!(tokio_unstable);
/// Threads that run histories, each its own.
const THREADS: usize = 2;

struct Args {
    from: u64,
    seeds: u64,
    is_traced: bool,
    twice_every: u64,
    /// How many clusters each history has; the seed decides if `None`.
    clusters: Option<usize>,
}

impl Args {
    fn parse() -> Result<Args, String> {
        let mut args = Args {
            from: 0,
            seeds: DEFAULT_SEEDS,
            is_traced: false,
            twice_every: TWICE_EVERY,
            clusters: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut number = || {
                let value = words.next().ok_or(format!("{word} needs a number"))?;
                value.parse::<u64>().map_err(|_| format!("{word} {value}: not a number"))
            };
            match word.as_str() {
                "--from" => args.from = number()?,
                "--seeds" => args.seeds = number()?,
                "--clusters" => args.clusters = Some(number()?.clamp(1, 3) as usize),
                "--trace" => args.is_traced = true,
                "--twice" => args.twice_every = 1,
                // What `cargo test` hands to every test program.
                _ => {}
            }
        }
        Ok(args)
    }
}

/// Runs one history on a thread of its own: what a thread remembers (random states) starts afresh.
fn run(seed: u64, args: &Args) -> Verdict {
    let (is_traced, clusters) = (args.is_traced, args.clusters);
    let run = std::thread::Builder::new().name(format!("seed {seed}")).spawn(move || {
        if is_traced {
            trace::tell_all();
        }
        let watched = memory::Watched::begin(seed);
        let mut verdict = world::run(seed, is_traced, clusters);
        verdict.peak_bytes = watched.peak_bytes();
        verdict
    });
    match run.map(std::thread::JoinHandle::join) {
        Ok(Ok(verdict)) => verdict,
        _ => Verdict::broken(seed, "the simulation itself panicked".to_owned()),
    }
}

fn main() -> ExitCode {
    let args = match Args::parse() {
        Ok(args) => args,
        Err(line) => {
            eprintln!("{line}\nusage: cargo sim [--from S] [--seeds N] [--trace] [--twice] [--clusters C]");
            return ExitCode::FAILURE;
        }
    };
    trace::collect_panics();
    std::thread::spawn(memory::watch_time);
    let started = Instant::now();
    let threads = if args.is_traced { 1 } else { THREADS };
    let (next, end) = (AtomicU64::new(args.from), args.from + args.seeds);
    let verdicts = std::thread::scope(|scope| {
        let work = || {
            let mut verdicts = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return verdicts;
                }
                let mut verdict = run(seed, &args);
                if IS_EXACT
                    && seed % args.twice_every == 0
                    && !args.is_traced
                    && verdict.complaints.is_empty()
                {
                    verdict.compare(&run(seed, &args));
                }
                if !verdict.complaints.is_empty() {
                    println!("{verdict}");
                }
                verdicts.push(verdict);
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect::<Vec<_>>()
    });
    report(&args, &verdicts, started.elapsed())
}

fn report(args: &Args, verdicts: &[Verdict], took: Duration) -> ExitCode {
    let failed = verdicts.iter().filter(|verdict| !verdict.complaints.is_empty()).count();
    let sum = |of: fn(&Verdict) -> u64| verdicts.iter().map(of).sum::<u64>();
    println!(
        "sim: seeds {} to {}: {failed} failed; {} acked, {} refused, {} unknown, {} reads, {} watched, {} mirrored, \
         {} faults, {} digests agreed, at most {} MiB, {} s simulated in {:.1} s",
        args.from,
        (args.from + args.seeds).saturating_sub(1),
        sum(|verdict| verdict.tally.acked),
        sum(|verdict| verdict.tally.refused),
        sum(|verdict| verdict.tally.unknown),
        sum(|verdict| verdict.tally.reads),
        sum(|verdict| verdict.tally.watched),
        sum(|verdict| verdict.tally.mirrored),
        sum(|verdict| verdict.tally.faults),
        sum(|verdict| verdict.tally.digests),
        verdicts.iter().map(|verdict| verdict.peak_bytes).max().unwrap_or_default() >> 20,
        sum(|verdict| verdict.simulated_ms) / 1000,
        took.as_secs_f64()
    );
    let is_complete = verdicts.len() as u64 == args.seeds;
    if failed == 0 && is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
