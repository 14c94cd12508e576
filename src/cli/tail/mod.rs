//! `antiphon tail`: prints the records of a topic as they come.
//!
//! It follows by long polls, not by a stream: a poll's place is its cursor and nothing else, so going on at another
//! member is the same request sent there, and no record is lost or repeated. A page is printed only once it has
//! come whole. A stream would save one request per page, and need a second way of resuming.

mod options;
mod page;
mod show;
mod utc;

use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::ArgMatches;
use reqwest::Method;
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Call, GaveUp, Members, Patience};
use super::fail;
pub(super) use options::command;
use options::{Options, Start};
use page::{Cursor, Page, Place, Query, TopicState};
use show::{Output, page_output, write};

/// Longest wait of one poll: short enough that a member which lost its cluster meanwhile does not keep a
/// reader in silence for long, as it checks that only at the start of a poll.
const WAIT_MS: u64 = 10_000;
/// Above the longest time that a member looks for a leader.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
/// A poll with nothing to say that ends earlier was not a wait, so the next one must not follow at once.
const SHORTEST_WAIT: Duration = Duration::from_millis(50);

pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    let tail = match Options::new(matches).and_then(|options| Ok((options, Members::new(matches)?))) {
        Ok((options, members)) => Tail { options, members, shown: 0 },
        Err(line) => return fail(2, &line),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("start the runtime: {error}")),
    };
    let result = runtime.block_on(until_stopped(tail));
    // A write that a full pipe holds up must not keep this process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => fail(1, &line),
    }
}

/// Being told to stop is how following usually ends, so it is no failure.
async fn until_stopped(tail: Tail) -> Result<(), String> {
    let no_signals = |error| format!("listen for signals: {error}");
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    tokio::select! {
        biased;
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        result = tail.run() => result,
    }
}

struct Tail {
    options: Options,
    members: Members,
    /// Records so far.
    shown: u64,
}

impl Tail {
    async fn run(mut self) -> Result<(), String> {
        let mut place = self.place().await?;
        // Where the topic ended when reading began: `--no-follow` goes no further, so that it ends.
        let mut end_seq = None;
        while self.options.lines.is_none_or(|lines| self.shown < lines) {
            let asked = Instant::now();
            let wait_ms = match place {
                // The place that a time stands for is found at once, or later records could change it.
                Place::Time(_) => 0,
                Place::Cursor(_) if self.options.follow => WAIT_MS,
                Place::Cursor(_) => 0,
            };
            let body = self.ask_page(&place, wait_ms, end_seq.is_none()).await?;
            let page = Page::parse(&body).map_err(|why| self.failed(&why))?;
            let output = page_output(&page, &self.options).map_err(|why| self.failed(&why))?;
            self.shown += page.records.len() as u64;
            let said_nothing = output.is_empty();
            if !self.print(output).await? {
                return Ok(());
            }
            let was = std::mem::replace(&mut place, Place::Cursor(page.cursor()));
            let end_seq = *end_seq.get_or_insert(page.head_seq);
            if !self.options.follow && (page.caught_up || page.next_from_seq >= end_seq) {
                return Ok(());
            }
            if wait_ms > 0 && said_nothing && was == place && asked.elapsed() < SHORTEST_WAIT {
                tokio::time::sleep(SHORTEST_WAIT).await;
            }
        }
        Ok(())
    }

    /// Where to begin.
    async fn place(&mut self) -> Result<Place, String> {
        match self.options.start {
            Start::Seq(first_seq) => {
                Ok(Place::Cursor(Cursor { from_seq: first_seq.saturating_sub(1), epoch: None }))
            }
            Start::Time(ts_ms) => Ok(Place::Time(ts_ms)),
            Start::End => {
                let path = format!("/v0/topics/{}?touch=false", self.options.topic);
                let call =
                    Call { method: Method::GET, path: &path, body: Bytes::new(), deadline: ANSWER_DEADLINE };
                let patience = Patience::Bounded(self.options.timeout);
                let answer =
                    self.members.ask(&call, patience).await.map_err(|gave_up| self.gave_up(&gave_up))?;
                let state = TopicState::parse(&answer).map_err(|why| self.failed(&why))?;
                Ok(Place::Cursor(Cursor { from_seq: state.head_seq, epoch: state.epoch }))
            }
        }
    }

    async fn ask_page(&mut self, place: &Place, wait_ms: u64, is_first: bool) -> Result<Vec<u8>, String> {
        let left = self.options.lines.map(|lines| lines - self.shown);
        let query = Query::new(place, wait_ms, left, &self.options);
        let path = format!("/v0/topics/{}/diff", self.options.topic);
        let call = Call {
            method: Method::POST,
            path: &path,
            body: query.body(),
            deadline: ANSWER_DEADLINE + Duration::from_millis(wait_ms),
        };
        let timeout = self.options.timeout;
        let patience = match self.options.follow && !(is_first && self.options.start != Start::End) {
            true => Patience::Endless(timeout),
            false => Patience::Bounded(timeout),
        };
        self.members.ask(&call, patience).await.map_err(|gave_up| self.gave_up(&gave_up))
    }

    /// Prints; `false` if nobody reads any more.
    async fn print(&self, output: Output) -> Result<bool, String> {
        if output.is_empty() {
            return Ok(true);
        }
        // A reader that is slow holds up this write, and must hold up nothing else.
        match tokio::task::spawn_blocking(move || write(&output)).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Ok(Err(error)) => Err(format!("write to stdout: {error}")),
            Err(error) => Err(format!("write to stdout: {error}")),
        }
    }

    fn gave_up(&self, gave_up: &GaveUp) -> String {
        self.failed(&gave_up.line)
    }

    fn failed(&self, why: &str) -> String {
        format!("read {}: {why}", self.options.topic)
    }
}
