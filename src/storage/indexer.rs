//! Keeping the index behind the log, step by step.
//!
//! One step does the first of these that there is to do:
//! 1. a file that turned out to be damaged is removed;
//! 2. the lowest live entry that no part covers is read, with what follows it, into the part in memory, and
//!    that is written as a file when it is large enough, or when the next part begins behind it. So the tail
//!    of the log, a hole where a file is missing and a log that has no index at all are one case;
//! 3. a file without a live entry is removed, and one that is mostly dead, or four small ones side by side, are
//!    written into one without what is dead.
//!
//! It reads only what is applied: that is never taken back. An entry that is dead by then stays out, because no
//! topic can come to refer to it again. And as long as less is applied than a file covers (after a restart),
//! what is live in it is not known yet, so it is neither removed nor merged.
//!
//! One step is bounded work and says what it cost, so that its caller can hold a rate. It blocks on the disk.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::entry::{EntryKind, LogEntry};
use super::index::{Growing, Index};
use super::index_file::{IndexFile, IndexName, IndexWriter, Rows};
use super::log::Log;
use super::postings::{Posting, PostingMap, take_postings};
use super::reclaim::Reclaimed;
use super::verdict::{Verdict, is_unreadable};
use crate::record::EntryRecords;

/// What a step reads of the log, or copies, about.
const STEP_BYTES: u64 = 1 << 20;
/// Entries that a step reads one by one.
const STEP_ENTRIES: usize = 1024;
/// What a step is taken to cost at least when it writes or removes.
const FILE_BYTES: u64 = 64 << 10;
/// Files that are merged into one.
const MERGED_FILES: usize = 4;

/// Builds the index of one log.
pub struct Indexer {
    log: Log,
    index: Arc<Index>,
    merge: Option<Merge>,
    /// Files that were taken out of the index and may still be on the disk.
    doomed: Vec<IndexName>,
}

impl Indexer {
    pub(super) fn new(log: Log, index: Arc<Index>) -> Self {
        Self { log, index, merge: None, doomed: Vec::new() }
    }

    /// Does one thing, if there is one to do. `applied_index`: the last entry whose effects all show in the live
    /// entries. After an error the index is as right as before; whether to go on is the caller's question.
    pub fn step(&mut self, applied_index: u64) -> io::Result<Reclaimed> {
        let cost_bytes = self.work(applied_index)?;
        Ok(Reclaimed { cost_bytes })
    }

    fn work(&mut self, applied_index: u64) -> io::Result<u64> {
        if !self.doomed.is_empty() {
            // Before anything else gets one of their names.
            self.remove_doomed()?;
            return Ok(FILE_BYTES);
        }
        let damaged: Vec<IndexName> = std::mem::take(&mut *self.index.damaged.lock()).into_iter().collect();
        if !damaged.is_empty() {
            self.give_up_merge()?;
            self.replace(&damaged, None)?;
            return Ok(FILE_BYTES);
        }
        let read_bytes = self.catch_up(applied_index)?;
        if read_bytes > 0 {
            return Ok(read_bytes);
        }
        match self.merge.take() {
            Some(merge) => self.go_on(merge),
            None => self.tidy(applied_index),
        }
    }

    /// Covers the lowest live entry that is not covered, and some behind it. Gives what that cost, 0 if all are.
    fn catch_up(&mut self, applied_index: u64) -> io::Result<u64> {
        let (ranges, growing) = {
            let parts = self.index.parts.read();
            (parts.ranges(), parts.growing.as_ref().map(|growing| (growing.indexes(), self.is_full(growing))))
        };
        let first = self.log.live().first_outside(ranges.iter().cloned());
        let first = first.filter(|first| *first <= applied_index);
        let behind = first.and_then(|first| ranges.iter().find(|range| *range.start() > first));
        if let Some((indexes, is_full)) = growing {
            // A file ends where the next part begins, or before a hole that lies below it.
            let goes_on = first.is_some_and(|first| {
                first > *indexes.end()
                    && !ranges.iter().any(|range| indexes.end() < range.end() && *range.end() < first)
            });
            if is_full || (first.is_some() && !goes_on) {
                return self.write_growing();
            }
        }
        let Some(first) = first else { return Ok(0) };
        let last = applied_index.min(behind.map_or(u64::MAX, |behind| behind.start() - 1));
        let (entries, is_from_disk) = self.read(first, last)?;
        // Between this and the part before nothing is live.
        let below = ranges.iter().rev().find(|range| *range.end() < first);
        let bytes = self.take(below.map_or(first, |below| below.end() + 1), &entries)?;
        // What comes from memory costs no disk time.
        Ok(if is_from_disk { bytes.max(1) } else { 1 })
    }

    fn is_full(&self, growing: &Growing) -> bool {
        let options = self.log.index_options();
        growing.postings.bytes() >= options.index_bytes || growing.looked_bytes >= options.segment_bytes
    }

    /// Some of the entries from `first` on, up to `last`, all live ones among them; and whether from the disk.
    fn read(&self, first: u64, last: u64) -> io::Result<(Vec<LogEntry>, bool)> {
        let max_bytes = STEP_BYTES as usize;
        if self.log.purged().is_none_or(|purged| purged.index < first) {
            let end = last.saturating_add(1).min(first.saturating_add(STEP_ENTRIES as u64 * 16));
            let cached = self.log.cached_entries(first..end, max_bytes);
            let is_cached = cached.is_some();
            let entries = match cached {
                Some(entries) => entries,
                None => self.log.entries(first..end, max_bytes)?,
            };
            if entries.first().is_some_and(|entry| entry.id.index == first) {
                return Ok((entries, !is_cached));
            }
        }
        // Of what the log gave up only live entries are there.
        let live = self.log.live();
        let mut indexes = live.above(first.checked_sub(1), STEP_ENTRIES);
        indexes.retain(|index| *index <= last);
        loop {
            match self.log.committed_entries(&indexes, max_bytes, Duration::MAX) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let before = indexes.len();
                    live.retain(&mut indexes, |index| *index);
                    if indexes.len() == before {
                        return Err(error);
                    }
                }
                entries => return Ok((entries?, true)),
            }
        }
    }

    /// Takes entries into the part in memory, which begins at `first_index` if there is none yet and covers all
    /// up to the last of them then. Gives their bytes.
    fn take(&self, first_index: u64, entries: &[LogEntry]) -> io::Result<u64> {
        let mut parts = self.index.parts.write();
        let mut bytes = 0;
        for LogEntry { id, kind, payload, .. } in entries {
            let growing = parts.growing.get_or_insert_with(|| Growing {
                first_index,
                last: *id,
                postings: PostingMap::default(),
                looked_bytes: 0,
            });
            if *kind == EntryKind::Command && self.log.live().contains(id.index) {
                growing.postings.add(id.index, &EntryRecords::parse(payload.clone())?)?;
            }
            growing.last = *id;
            growing.looked_bytes += payload.len() as u64;
            bytes += payload.len() as u64;
        }
        Ok(bytes)
    }

    /// Writes the part in memory as a file, once the log is on the disk that far.
    fn write_growing(&mut self) -> io::Result<u64> {
        let parts = self.index.parts.read();
        let Some(growing) = &parts.growing else { return Ok(0) };
        if self.log.synced_id().is_none_or(|synced| synced.index < growing.last.index) {
            return Ok(0);
        }
        let indexes = growing.indexes();
        let name = IndexName { first_index: *indexes.start(), last_index: *indexes.end(), generation: 0 };
        let (disk, dir) = (self.index.disk.as_ref(), &self.index.dir);
        let mut writer = IndexWriter::begin(disk, dir, name, growing.last)?;
        let mut put = || growing.postings.iter().try_for_each(|(key, all)| writer.push(key, all).map(drop));
        if let Err(error) = put() {
            let _ = writer.give_up(disk);
            return Err(error);
        }
        let file = writer.finish(disk, dir, self.log.live().count_in(indexes))?;
        drop(parts);
        let cost_bytes = file.len_bytes.max(FILE_BYTES);
        let mut parts = self.index.parts.write();
        parts.growing = None;
        parts.swap(&[], Some(file));
        Ok(cost_bytes)
    }

    /// Removes a dead file, or begins to merge some.
    fn tidy(&mut self, applied_index: u64) -> io::Result<u64> {
        let mut files = self.index.parts.read().files.clone();
        files.retain(|file| file.name.last_index <= applied_index);
        let live = self.log.live();
        let dead = files.iter().find(|file| live.count_in(file.indexes()) == 0);
        if let Some(dead) = dead {
            self.replace(&[dead.name], None)?;
            return Ok(FILE_BYTES);
        }
        let is_mostly_dead = |file: &IndexFile| live.count_in(file.indexes()) * 2 <= file.live_entries;
        // Of like size, as in a counter: so a posting is copied a few times and not for each file.
        let are_alike = |files: &[Arc<IndexFile>]| {
            let total: u64 = files.iter().map(|file| file.len_bytes).sum();
            let is_each_small = files.iter().all(|file| file.len_bytes * 2 <= total);
            is_each_small && total <= self.log.index_options().segment_bytes
        };
        // A file covers all of its range: what lies between two must be another's concern never again.
        let growing = self.index.parts.read().growing.as_ref().map(Growing::indexes);
        let are_neighbours = |pair: &[Arc<IndexFile>]| {
            let (end, start) = (pair[0].name.last_index, pair[1].name.first_index);
            let is_empty = end + 1 == start || live.count_in(end + 1..=start - 1) == 0;
            is_empty
                && growing.as_ref().is_none_or(|growing| *growing.start() < end || start < *growing.start())
        };
        let can_be_merged =
            |files: &&[Arc<IndexFile>]| are_alike(files) && files.windows(2).all(are_neighbours);
        let chosen = match files.iter().position(|file| is_mostly_dead(file)) {
            Some(at) => files[at..=at].to_vec(),
            None => match files.windows(MERGED_FILES).find(can_be_merged) {
                Some(files) => files.to_vec(),
                None => return Ok(0),
            },
        };
        match Merge::begin(&self.index, chosen) {
            Ok(merge) => {
                self.merge = Some(merge);
                Ok(FILE_BYTES)
            }
            Err((error, name)) => self.note_damage(error, name),
        }
    }

    /// A file that cannot be read is made again; an error of the disk is passed on.
    fn note_damage(&self, error: io::Error, name: IndexName) -> io::Result<u64> {
        if Verdict::of(&error) != Verdict::Damage && !is_unreadable(&error) {
            return Err(error);
        }
        tracing::warn!("{} is made again: {error}", name.file_name());
        self.index.damaged.lock().insert(name);
        Ok(FILE_BYTES)
    }

    fn go_on(&mut self, mut merge: Merge) -> io::Result<u64> {
        let (disk, dir) = (self.index.disk.as_ref(), &self.index.dir);
        match merge.step(&self.log) {
            Ok((cost_bytes, false)) => {
                self.merge = Some(merge);
                Ok(cost_bytes.max(FILE_BYTES))
            }
            Ok((cost_bytes, true)) => {
                let names: Vec<IndexName> = merge.sources.iter().map(|file| file.name).collect();
                let live_entries = self.log.live().count_in(merge.indexes());
                let new = merge.writer.finish(disk, dir, live_entries)?;
                self.replace(&names, Some(new))?;
                Ok(cost_bytes.max(FILE_BYTES))
            }
            Err((error, name)) => {
                merge.writer.give_up(disk)?;
                self.note_damage(error, name)
            }
        }
    }

    fn give_up_merge(&mut self) -> io::Result<()> {
        self.merge.take().map_or(Ok(()), |merge| merge.writer.give_up(self.index.disk.as_ref()))
    }

    /// Puts `new`, which is durable, in the place of `gone`.
    fn replace(&mut self, gone: &[IndexName], new: Option<IndexFile>) -> io::Result<()> {
        self.index.parts.write().swap(gone, new);
        self.doomed.extend_from_slice(gone);
        self.remove_doomed()
    }

    /// Removes what is doomed; after an error the next step begins anew.
    fn remove_doomed(&mut self) -> io::Result<()> {
        let (disk, dir) = (&self.index.disk, &self.index.dir);
        for name in &self.doomed {
            let path = dir.join(name.file_name());
            if disk.exists(&path)? {
                disk.remove(&path)?;
            }
        }
        disk.sync_dir(dir)?;
        self.doomed.clear();
        Ok(())
    }
}

/// What is live in some files, on its way into one.
struct Merge {
    sources: Vec<Arc<IndexFile>>,
    heads: Vec<Head>,
    writer: IndexWriter,
}

/// The next row of one source.
struct Head {
    rows: Rows,
    key: Vec<u8>,
    postings: Vec<Posting>,
    is_at_end: bool,
}

impl Head {
    fn advance(&mut self) -> io::Result<()> {
        self.postings.clear();
        match self.rows.next()? {
            None => self.is_at_end = true,
            Some(row) => {
                self.key.clear();
                self.key.extend_from_slice(row.key);
                take_postings(row.postings, &mut self.postings)?;
            }
        }
        Ok(())
    }
}

impl Merge {
    /// An error names the source that it came from.
    fn begin(index: &Index, sources: Vec<Arc<IndexFile>>) -> Result<Self, (io::Error, IndexName)> {
        let (disk, dir) = (index.disk.as_ref(), &index.dir);
        let (first, last) = (&sources[0], &sources[sources.len() - 1]);
        let name = IndexName {
            first_index: first.name.first_index,
            last_index: last.name.last_index,
            generation: sources.iter().map(|source| source.name.generation).max().unwrap_or(0) + 1,
        };
        let mut heads = Vec::new();
        for source in &sources {
            let head = source.rows(disk, dir, &[]).and_then(|rows| {
                let mut head = Head { rows, key: Vec::new(), postings: Vec::new(), is_at_end: false };
                head.advance().map(|()| head)
            });
            heads.push(head.map_err(|error| (error, source.name))?);
        }
        let writer = IndexWriter::begin(disk, dir, name, last.last).map_err(|error| (error, last.name))?;
        Ok(Self { sources, heads, writer })
    }

    fn indexes(&self) -> std::ops::RangeInclusive<u64> {
        let (first, last) = (&self.sources[0], &self.sources[self.sources.len() - 1]);
        first.name.first_index..=last.name.last_index
    }

    /// Copies about [`STEP_BYTES`]; `true` when all is copied. An error names the source that it came from.
    fn step(&mut self, log: &Log) -> Result<(u64, bool), (io::Error, IndexName)> {
        let mut cost_bytes = 0;
        while cost_bytes < STEP_BYTES {
            let open = self.heads.iter().enumerate().filter(|(_, head)| !head.is_at_end);
            // The first source of those with the lowest key: what it has is below what the others have.
            let Some((at, _)) = open.min_by(|(_, one), (_, other)| one.key.cmp(&other.key)) else {
                return Ok((cost_bytes, true));
            };
            let (head, name) = (&mut self.heads[at], self.sources[at].name);
            cost_bytes += (head.key.len() + head.postings.len()) as u64;
            log.live().retain(&mut head.postings, |posting| posting.index);
            cost_bytes += self.writer.push(&head.key, &head.postings).map_err(|error| (error, name))?;
            head.advance().map_err(|error| (error, name))?;
        }
        Ok((cost_bytes, false))
    }
}
