//! The watch workload: many event streams of one topic at one member, and what reaches them.
//!
//! Every stream must get every record once and in order, up to the head that a strong read finds at the end.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::append::{Append, Ledger};
use super::control::{self, Control};
use super::delivery::Deliveries;
use super::load::Operation;
use super::options::{Options, Url};
use super::request::Topics;
use super::stream::Stream;
use super::usage::resident_bytes;
use super::watch_report::{IdleReport, MemberMemory, WatchReport};
use super::{Measured, put_load};

/// Streams that are opened at the same time.
const OPENERS: usize = 8;
/// How long the last records may take to all watchers once nothing more is sent.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);
const DRAIN_POLL: Duration = Duration::from_millis(5);
/// Nothing happens for so long before memory is looked at.
const QUIET: Duration = Duration::from_secs(2);

/// Appends whose payloads say when they were sent.
struct Publish {
    append: Append,
    ledger: Rc<RefCell<Ledger>>,
    deliveries: Rc<RefCell<Deliveries>>,
}

impl Operation for Publish {
    fn request(&mut self) -> &[u8] {
        self.ledger.borrow_mut().number_from(self.deliveries.borrow().now_ns());
        self.append.request()
    }

    fn accept(&mut self, body: &[u8]) -> anyhow::Result<u64> {
        self.append.accept(body)
    }

    fn refuse(&mut self, is_unknown: bool) {
        self.append.refuse(is_unknown);
    }
}

/// Opens `watchers` streams at `url` and reads them from now on, each in a task.
async fn watch(
    watchers: usize,
    url: &Url,
    topic: &str,
    deliveries: &Rc<RefCell<Deliveries>>,
) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let next = std::cell::Cell::new(0);
    let reading = RefCell::new(JoinSet::new());
    let openers = (0..OPENERS.min(watchers)).map(|_| async {
        let mut control = Control::connect(url).await?;
        loop {
            let number = next.get();
            if number == watchers {
                return anyhow::Ok(());
            }
            next.set(number + 1);
            let mut stream = Stream::open(&mut control, url, topic).await?;
            let deliveries = deliveries.clone();
            reading.borrow_mut().spawn_local(async move {
                loop {
                    let mut came = None;
                    let taken = stream.read(|lines| {
                        let came = *came.get_or_insert_with(Instant::now);
                        let taken = deliveries.borrow_mut().take(number, lines, came);
                        taken.map_err(|wrong| anyhow!("watcher {number}: {wrong}"))
                    });
                    taken.await?;
                }
            });
        }
    });
    futures_util::future::try_join_all(openers).await.context("open the streams")?;
    Ok(reading.into_inner())
}

/// Why a watcher has ended, as it never should.
async fn first_end(reading: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Error {
    match reading.join_next().await {
        Some(Ok(Err(error))) => error,
        _ => anyhow!("a watcher's task failed"),
    }
}

/// Waits until every watcher has got everything up to `head_seq`.
async fn drain(deliveries: &RefCell<Deliveries>, head_seq: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + DRAIN_DEADLINE;
    loop {
        let behind = {
            let cursors = &deliveries.borrow().cursors;
            cursors
                .iter()
                .enumerate()
                .find(|(_, cursor)| **cursor < head_seq)
                .map(|(at, cursor)| (at, *cursor))
        };
        let Some((number, cursor)) = behind else { return Ok(()) };
        ensure!(
            Instant::now() < deadline,
            "watcher {number} is at seq {cursor} of {head_seq}, {} s after the last append",
            DRAIN_DEADLINE.as_secs()
        );
        sleep(DRAIN_POLL).await;
    }
}

/// Publishes and measures what reaches the watchers; gives what to print.
pub async fn under_load(
    options: &Options,
    watchers: usize,
    targets: &[Url],
    topics: &Topics,
    control: &mut Control,
    pids: &[(String, u32)],
) -> anyhow::Result<String> {
    let url = targets.first().context("no member to watch at")?;
    let ledger = Ledger::new(topics.count, options.batch);
    let deliveries = Rc::new(RefCell::new(Deliveries::new(watchers, options.payload_bytes)?));
    let mut reading = watch(watchers, url, &topics.name(0), &deliveries).await?;
    let publishes = |url: &Url, number: usize| Publish {
        append: Append::new(url, topics, &ledger, number, options.payload_bytes),
        ledger: ledger.clone(),
        deliveries: deliveries.clone(),
    };
    let begin = |window| deliveries.borrow_mut().set_window(window);
    let load = async {
        let measured = put_load(options, targets, pids, publishes, begin).await?;
        let head_seq = control.heads(topics).await?.first().copied().unwrap_or_default();
        let checked = ledger.borrow().check_head(0, head_seq);
        checked.map_err(|wrong| anyhow!("topic {}: {wrong}", topics.name(0)))?;
        drain(&deliveries, head_seq).await?;
        anyhow::Ok((measured, head_seq))
    };
    let (measured, head_seq) = tokio::select! {
        biased;
        error = first_end(&mut reading) => return Err(error),
        done = load => done?,
    };
    let Measured { tally, members, client_cpu_s } = measured;
    let (tally, deliveries) = (tally.borrow(), deliveries.borrow());
    if deliveries.records == 0 {
        bail!("nothing was delivered in the window; errors: {:?}", tally.errors);
    }
    let report = WatchReport {
        options,
        watchers,
        deliveries: &deliveries,
        tally: &tally,
        members: &members,
        client_cpu_s,
        head_seq,
    };
    Ok(if options.json { report.json().to_string() } else { report.table() })
}

/// Opens streams of a topic in which nothing happens, and looks at what they cost; gives what to print.
pub async fn idle(
    options: &Options,
    watchers: usize,
    targets: &[Url],
    topics: &Topics,
    control: &mut Control,
    pids: &[(String, u32)],
) -> anyhow::Result<String> {
    let url = targets.first().context("no member to watch at")?;
    let resident =
        || -> anyhow::Result<Vec<u64>> { pids.iter().map(|(_, pid)| resident_bytes(*pid)).collect() };
    let before = resident()?;
    let started = Instant::now();
    let deliveries = Rc::new(RefCell::new(Deliveries::new(watchers, options.payload_bytes)?));
    let mut reading = watch(watchers, url, &topics.name(0), &deliveries).await?;
    let opened_in = started.elapsed();
    sleep(QUIET).await;
    let after = resident()?;
    // Streams that are no longer there cost nothing: all must get what comes now.
    let ledger = Ledger::new(topics.count, 1);
    let last = async {
        let sent = Instant::now();
        let append =
            |url: &Url, number: usize| Append::new(url, topics, &ledger, number, options.payload_bytes);
        control::fill(std::slice::from_ref(url), 1, append).await?;
        let head_seq = control.heads(topics).await?.first().copied().unwrap_or_default();
        drain(&deliveries, head_seq).await?;
        anyhow::Ok(sent.elapsed())
    };
    let reached_in = tokio::select! {
        biased;
        error = first_end(&mut reading) => return Err(error),
        done = last => done?,
    };
    let memory = pids.iter().zip(before).zip(after).map(|(((name, _), before_bytes), after_bytes)| {
        MemberMemory { name: name.clone(), before_bytes, after_bytes }
    });
    let report = IdleReport { watchers, members: memory.collect(), opened_in, reached_in };
    Ok(if options.json { report.json().to_string() } else { report.table() })
}
