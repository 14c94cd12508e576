//! `antiphon bench`: load over real HTTP, and figures that were checked.
//!
//! A benchmark that only counts answers also counts wrong ones, and fastest of all is a server that
//! forgets. So every run keeps the books: acked seqs are unique, each topic's seqs have no gap, the heads
//! are what the acks add up to, and pages follow on from each other. Figures are printed only if all of
//! that holds; else one line says what does not, and the exit code is 1.
//!
//! The members are processes of their own, as in production, and what they use is read from the kernel
//! between the same two instants as everything else.

mod alarm;
mod answer;
mod append;
mod control;
mod delivery;
mod http;
mod load;
mod options;
mod ranges;
mod read;
mod report;
mod request;
mod scratch;
mod stream;
mod tally;
mod usage;
mod watch;
mod watch_report;

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context, anyhow, bail, ensure};
use clap::ArgMatches;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until};

use super::fail;
use append::{Append, Ledger};
use control::Control;
use load::{Operation, Schedule, Window, Worker};
pub(super) use options::command;
use options::{Options, Url, Verb};
use read::{Read, Shelf};
use report::{MemberUsage, Report};
use request::Topics;
use scratch::ScratchCluster;
use tally::Tally;
use usage::Usage;

pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    let options = match Options::of(matches) {
        Ok(options) => options,
        Err(error) => return fail(2, &format!("{error:#}")),
    };
    // One thread: the client shares the cores with what it measures, and must not take both.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("start the runtime").and_then(|runtime| {
        let local = LocalSet::new();
        runtime.block_on(local.run_until(bench(&options)))
    });
    match result {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(1, &format!("{error:#}")),
    }
}

/// Runs the bench; gives what to print.
async fn bench(options: &Options) -> anyhow::Result<String> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut scratch = None;
    let result = tokio::select! {
        biased;
        _ = interrupt.recv() => Err(anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow!("interrupted")),
        result = bench_at(options, &mut scratch) => result,
    };
    if let Some(scratch) = scratch {
        scratch.stop(options.keep).await;
    }
    result
}

/// Runs the bench against the cluster of `options`, or one that it leaves in `scratch`.
async fn bench_at(options: &Options, scratch: &mut Option<ScratchCluster>) -> anyhow::Result<String> {
    let (urls, pids) = match options.urls.is_empty() {
        true => {
            let cluster = scratch.insert(ScratchCluster::start()?);
            cluster.wait_ready().await?;
            (cluster.urls()?, cluster.pids())
        }
        false => {
            (options.urls.clone(), options.pids.iter().map(|pid| (format!("pid {pid}"), *pid)).collect())
        }
    };
    let first = urls.first().context("no member to ask")?;
    let mut control = Control::connect(first).await?;
    let targets = control.targets(&urls, options.target).await?;
    let topics = Topics::new(options.topics);
    control.make(&topics, &options.durability).await?;
    let result = measure(options, &targets, &topics, &mut control, &pids).await;
    // Kept also after a failure only if asked for: they could be of any size.
    if scratch.is_none() && !options.keep {
        let removed = control.remove(&topics).await;
        if result.is_ok() {
            removed.context("remove the topics")?;
        }
    }
    result
}

/// Puts the load on `targets` and checks what came of it; gives what to print.
async fn measure(
    options: &Options,
    targets: &[Url],
    topics: &Topics,
    control: &mut Control,
    pids: &[(String, u32)],
) -> anyhow::Result<String> {
    let ledger = Ledger::new(topics.count, options.batch);
    let appends = |url: &Url, number: usize| Append::new(url, topics, &ledger, number, options.payload_bytes);
    let measured = match options.verb {
        Verb::Watch { watchers, is_idle: false } => {
            return watch::under_load(options, watchers, targets, topics, control, pids).await;
        }
        Verb::Watch { watchers, is_idle: true } => {
            return watch::idle(options, watchers, targets, topics, control, pids).await;
        }
        Verb::Append => put_load(options, targets, pids, appends, |_| {}).await?,
        Verb::Read { page, preload } => {
            // Whole batches for every topic, so that all have the same number of records.
            let batches_per_topic = preload.div_ceil(options.batch as u64 * u64::from(topics.count));
            control::fill(targets, batches_per_topic * u64::from(topics.count), appends).await?;
            let shelf = Shelf {
                records: batches_per_topic * options.batch as u64,
                payload_bytes: options.payload_bytes,
                page,
            };
            let reads = |url: &Url, number: usize| Read::new(url, topics, shelf, number, options.connections);
            put_load(options, targets, pids, reads, |_| {}).await?
        }
    };
    let heads = control.heads(topics).await?;
    let ledger = ledger.borrow();
    for (topic, head_seq) in (0..).zip(&heads) {
        let checked = ledger.check_head(topic, *head_seq);
        checked.map_err(|wrong| anyhow!("topic {}: {wrong}", topics.name(topic)))?;
    }
    let Measured { tally, members, client_cpu_s } = measured;
    let tally = tally.borrow();
    if tally.ops == 0 {
        let errors: Vec<String> =
            tally.errors.iter().map(|(kind, count)| format!("{count} x {kind}")).collect();
        bail!("no operation came to its end in the window; errors: {}", errors.join(", "));
    }
    let report = Report {
        options,
        ops: tally.ops,
        records: tally.records,
        unsent: tally.unsent,
        latencies_us: &tally.latencies_us,
        errors: tally.errors.iter().map(|(kind, count)| (kind.clone(), *count)).collect(),
        members,
        client_cpu_s,
        acked_records: ledger.records(),
        head_sum: heads.iter().sum(),
        unknown: ledger.unknown(),
    };
    Ok(if options.json { report.json().to_string() } else { report.table() })
}

struct Measured {
    tally: Rc<RefCell<Tally>>,
    members: Vec<MemberUsage>,
    client_cpu_s: f64,
}

/// Connects, warms up, measures. `begin` is told the window before the load starts.
async fn put_load<O: Operation + 'static>(
    options: &Options,
    targets: &[Url],
    pids: &[(String, u32)],
    mut operation: impl FnMut(&Url, usize) -> O,
    begin: impl FnOnce(Window),
) -> anyhow::Result<Measured> {
    // The clock starts once all are connected, so the window is set twice.
    let window = window_from(Instant::now(), options);
    let tally = Rc::new(RefCell::new(Tally::new(window, options.rate.is_some())?));
    let mut workers = Vec::new();
    for (number, url) in (0..options.connections).zip(targets.iter().cycle()) {
        workers.push(Worker::connect(url, operation(url, number), tally.clone()).await?);
    }
    let window = window_from(Instant::now(), options);
    tally.borrow_mut().set_window(window);
    begin(window);
    let mut running = JoinSet::new();
    for (number, worker) in workers.into_iter().enumerate() {
        let schedule = Schedule::new(options.rate, window.load_start, number, options.connections);
        running.spawn_local(worker.run(schedule, window));
    }
    // A violation ends the run at once: what would be measured afterwards is of no use.
    let all_done = async {
        while let Some(done) = running.join_next().await {
            done.context("a connection's task failed")??;
        }
        anyhow::Ok(())
    };
    let observed = async {
        sleep_until(window.start).await;
        let before = used(pids)?;
        sleep_until(window.end).await;
        anyhow::Ok((before, used(pids)?))
    };
    let ((), (before, after)) = tokio::try_join!(all_done, observed)?;
    ensure!(before.len() == after.len(), "a process was lost");
    let mut usages = after.into_iter().zip(before).map(|(after, before)| after.since(before));
    let client_cpu_s = usages.next().unwrap_or_default().cpu_s;
    let members = pids
        .iter()
        .zip(usages)
        .map(|((name, pid), usage)| MemberUsage { name: name.clone(), pid: *pid, usage })
        .collect();
    Ok(Measured { tally, members, client_cpu_s })
}

fn window_from(load_start: Instant, options: &Options) -> Window {
    let start = load_start + options.warmup;
    Window { load_start, start, end: start + options.duration }
}

/// What this process and then each of `pids` has used so far.
fn used(pids: &[(String, u32)]) -> anyhow::Result<Vec<Usage>> {
    let all = std::iter::once(std::process::id()).chain(pids.iter().map(|(_, pid)| *pid));
    all.map(Usage::of).collect()
}
