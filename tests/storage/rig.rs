//! A log on a simulated disk, beside a model of it.
//!
//! The model is the list of everything that was handed to the log, one step per frame, and the number of
//! steps that are known to be confirmed. A log that comes back from a crash is right if it looks exactly as
//! if the first k steps had been done, for some k that is not below the confirmed ones. That one rule covers
//! lost entries, invented entries, holes, forgotten votes, and truncations that came undone on their own.
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use antiphon::storage::sim_disk::Dice;
use antiphon::storage::*;
use bytes::Bytes;

#[derive(Clone, Debug)]
pub enum Step {
    Entry(LogEntry),
    Vote(Vote),
    Truncate { first_removed: u64 },
    Purge(EntryId),
}

/// What a log looks like from outside.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Looks {
    pub vote: Option<Vote>,
    pub last: Option<EntryId>,
    pub purged: Option<EntryId>,
    pub entries: Vec<LogEntry>,
}

impl Looks {
    pub fn of(log: &Log) -> Self {
        let entries = log.entries(0..u64::MAX, usize::MAX).expect("entries are readable");
        Self { vote: log.vote(), last: log.last_id(), purged: log.purged(), entries }
    }

    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Entry(entry) => {
                self.last = Some(entry.id);
                self.entries.push(entry.clone());
            }
            Step::Vote(vote) => self.vote = Some(*vote),
            Step::Truncate { first_removed } => {
                self.entries.retain(|entry| entry.id.index < *first_removed);
                self.last = self.entries.last().map(|entry| entry.id).or(self.purged);
            }
            Step::Purge(upto) => {
                self.entries.retain(|entry| entry.id.index > upto.index);
                self.purged = Some(*upto);
                self.last = self.last.filter(|last| last.index > upto.index).or(Some(*upto));
            }
        }
    }
}

type VoteFuture = Pin<Box<dyn Future<Output = io::Result<()>>>>;

pub struct Rig {
    pub disk: SimDisk,
    pub options: LogOptions,
    pub log: Log,
    pub writer: LogWriter,
    pub steps: Vec<Step>,
    confirmed: Arc<AtomicUsize>,
    votes: Vec<(usize, VoteFuture)>,
    pub term: u64,
}

pub fn small_options() -> LogOptions {
    LogOptions {
        segment_bytes: 8 << 10,
        cache_bytes: 2 << 10,
        write_bytes: 2 << 10,
        zero_below_bytes: 700,
        zero_step_bytes: 1 << 10,
        ..LogOptions::default()
    }
}

pub fn dir() -> PathBuf {
    PathBuf::from("/data/log")
}

/// Bytes that are different for each entry and never all zero.
pub fn payload(id: EntryId, len: usize) -> Bytes {
    let mut dice = Dice::new(id.term << 32 ^ id.index);
    (0..len).map(|_| dice.roll() as u8 | 1).collect::<Vec<u8>>().into()
}

pub fn entry(term: u64, index: u64, len: usize) -> LogEntry {
    let id = EntryId { term, index };
    LogEntry { id, kind: EntryKind::Command, stamp_ms: 1_000 + index, payload: payload(id, len) }
}

pub fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// The value of a future that has nothing to wait for.
pub fn at_once<F: Future>(future: F) -> F::Output {
    match poll_once(std::pin::pin!(future)) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("this should not have to wait"),
    }
}

impl Rig {
    pub fn new(disk: &SimDisk, options: &LogOptions) -> Result<Self, OpenError> {
        Self::reopen(disk, options, Vec::new(), 0)
    }

    fn reopen(
        disk: &SimDisk,
        options: &LogOptions,
        steps: Vec<Step>,
        confirmed: usize,
    ) -> Result<Self, OpenError> {
        let (log, writer) = Log::open(Arc::new(disk.clone()), &dir(), options.clone())?;
        let looks = Looks::of(&log);
        let kept = match matching_prefix(&steps, confirmed, &looks) {
            Some(kept) => kept,
            None => panic!(
                "no prefix of {} steps ({confirmed} confirmed) looks like the log: vote {:?} last {:?} purged {:?}, {} entries\n{}",
                steps.len(),
                looks.vote,
                looks.last,
                looks.purged,
                looks.entries.len(),
                describe(&steps),
            ),
        };
        assert_eq!(log.synced_id(), looks.last, "all that a log shows after opening is synced");
        let steps = steps[..kept].to_vec();
        let term = steps.iter().map(|step| match step {
            Step::Entry(entry) => entry.id.term,
            Step::Vote(vote) => vote.term,
            Step::Truncate { .. } => 0,
            Step::Purge(upto) => upto.term,
        });
        let term = term.max().unwrap_or(1);
        let (disk, options, confirmed) = (disk.clone(), options.clone(), Arc::new(AtomicUsize::new(kept)));
        Ok(Self { disk, options, log, writer, steps, confirmed, votes: Vec::new(), term })
    }

    /// Ends this log as if its process had died, and opens what is left on `disk`.
    pub fn after_crash(self, disk: &SimDisk) -> Result<Self, OpenError> {
        let confirmed = self.confirmed();
        Self::reopen(disk, &self.options, self.steps, confirmed)
    }

    /// Like [`Rig::after_crash`], but a failure to open gives back what has to be found later.
    pub fn into_past(self) -> Past {
        self.past()
    }

    /// What the log was told until now.
    pub fn past(&self) -> Past {
        Past { options: self.options.clone(), steps: self.steps.clone(), confirmed: self.confirmed() }
    }

    pub fn confirmed(&self) -> usize {
        self.confirmed.load(Relaxed)
    }

    pub fn looks(&self) -> Looks {
        let mut looks = Looks::default();
        for step in &self.steps {
            looks.take(step);
        }
        looks
    }

    fn last_index(&self) -> Option<u64> {
        self.log.last_id().map(|last| last.index)
    }

    /// Appends entries of these sizes as one operation.
    pub fn append(&mut self, sizes: &[usize]) -> io::Result<()> {
        let first = self.last_index().map_or(0, |last| last + 1);
        let entries: Vec<_> =
            sizes.iter().zip(first..).map(|(len, index)| entry(self.term, index, *len)).collect();
        let (confirmed, position) = (self.confirmed.clone(), self.steps.len() + entries.len());
        let done: Done = Box::new(move |outcome| {
            if outcome.is_ok() {
                let before = confirmed.swap(position, Relaxed);
                assert!(before <= position, "callbacks come in log order");
            }
        });
        at_once(self.log.append(entries.clone(), done))?;
        self.steps.extend(entries.into_iter().map(Step::Entry));
        Ok(())
    }

    pub fn vote(&mut self, node_id: u64, committed: bool) -> io::Result<()> {
        self.term += u64::from(!committed);
        let vote = Vote { term: self.term, node_id, committed };
        let log = self.log.clone();
        let mut saving: VoteFuture = Box::pin(async move { log.save_vote(vote).await });
        match poll_once(saving.as_mut()) {
            Poll::Ready(outcome) => outcome.map(|()| panic!("a vote was saved before anything was written")),
            Poll::Pending => {
                self.steps.push(Step::Vote(vote));
                self.votes.push((self.steps.len(), saving));
                Ok(())
            }
        }
    }

    pub fn truncate(&mut self, last_kept: Option<u64>) -> io::Result<()> {
        let floor = self.log.purged().map_or(0, |purged| purged.index + 1);
        let first_removed = last_kept.map_or(floor, |index| index + 1);
        let is_needed = self.last_index().is_some_and(|last| last >= first_removed);
        at_once(self.log.truncate_after(last_kept))?;
        if is_needed {
            self.steps.push(Step::Truncate { first_removed });
        }
        Ok(())
    }

    pub fn purge(&mut self, upto: EntryId) -> io::Result<()> {
        let is_needed = self.log.purged().is_none_or(|purged| purged.index < upto.index);
        at_once(self.log.purge(upto))?;
        if is_needed {
            self.steps.push(Step::Purge(upto));
        }
        Ok(())
    }

    /// Lets the writer do all that waits; an error if it could not.
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            let ops = self.writer.take();
            if ops.is_empty() {
                break;
            }
            self.writer.step(ops);
        }
        let mut outcome = Ok(());
        for (position, mut saving) in std::mem::take(&mut self.votes) {
            match poll_once(saving.as_mut()) {
                Poll::Ready(Ok(())) => {
                    self.confirmed.fetch_max(position, Relaxed);
                }
                Poll::Ready(Err(error)) => outcome = Err(error),
                Poll::Pending => panic!("the writer is done, and the vote still waits"),
            }
        }
        outcome
    }

    /// Writes a little more, to see that a reopened log works.
    pub fn carry_on(&mut self) -> io::Result<()> {
        self.vote(77, false)?;
        self.append(&[10, 0, 300])?;
        self.run()?;
        self.append(&[2000, 5])?;
        self.run()?;
        assert_eq!(self.confirmed(), self.steps.len());
        assert_eq!(Looks::of(&self.log), self.looks());
        Ok(())
    }
}

/// What a crashed log was told, for the next attempt to open it.
pub struct Past {
    options: LogOptions,
    steps: Vec<Step>,
    confirmed: usize,
}

impl Past {
    pub fn open(&self, disk: &SimDisk) -> Result<Rig, OpenError> {
        Rig::reopen(disk, &self.options, self.steps.clone(), self.confirmed)
    }
}

fn matching_prefix(steps: &[Step], confirmed: usize, looks: &Looks) -> Option<usize> {
    let mut model = Looks::default();
    let mut found = None;
    for kept in 0..=steps.len() {
        if kept > 0 {
            model.take(&steps[kept - 1]);
        }
        if kept >= confirmed && model == *looks {
            found = Some(kept);
        }
    }
    found
}

fn describe(steps: &[Step]) -> String {
    let lines = steps.iter().enumerate().map(|(number, step)| match step {
        Step::Entry(entry) => format!("{}: entry {} of {}", number + 1, entry.id, entry.payload.len()),
        other => format!("{}: {other:?}", number + 1),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// All segment files of a disk.
pub fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let names = disk.list(&dir()).expect("list");
    let holds_frames = |name: &&String| name.ends_with(".seg") || name.ends_with(".kept");
    names.iter().filter(holds_frames).map(|name| dir().join(name)).collect()
}

pub fn read_file(disk: &SimDisk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, OpenMode::Read).expect("open");
    let mut bytes = vec![0; file.len_bytes().expect("len") as usize];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}
