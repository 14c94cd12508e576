//! Freeing space, step by step.
//!
//! Three things happen, in this order of preference, one per step:
//! 1. the first segment of the chain *leaves* it once the log gave up all of it for good and a checkpoint on
//!    disk covers it: it is removed if nothing in it is live, and becomes a kept file otherwise;
//! 2. a kept file without a live entry is removed, wherever it stands;
//! 3. a kept file less than half live is rewritten, with its neighbours as far as they are like it or small,
//!    into one file of at most a segment's size.
//!
//! So at rest at least half of all kept bytes are live, and a byte that lives for ever is copied a number of
//! times that grows with the logarithm of what died around it: neighbours are joined only when they are of
//! like size, as in a binary counter.
//!
//! Nothing here decides what may go: a live entry is one that a topic names, and its release comes after the
//! checkpoint that no longer names it (see `live`). And nothing here changes a file: readers keep what
//! they have open, find the new place when they look again, and notice nothing.
//!
//! One step is bounded work and says what it cost, so that its caller can hold a rate. It blocks on the disk.
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::entry::EntryId;
use super::kept::{self, KeptFile, KeptName};
use super::log::Shared;
use super::reader::FileId;
use super::rewrite::{Progress, Rewrite};
use super::segment;
use super::stats::Counters;
use super::table::TableIndex;
use super::verdict::{Verdict, is_unreadable, with_second_try};

/// Rows that are looked at together.
const ROWS: u64 = 1024;
/// What looking at one is taken to cost: more than its bytes, as it is looked up among all that is live.
const ROW_COST_BYTES: u64 = 64;
/// What a step is taken to cost at least: it renames, removes or syncs.
const STEP_BYTES: u64 = 64 << 10;

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaimed {
    /// Bytes read and written, or what is as dear. 0: there was nothing to do.
    pub cost_bytes: u64,
}

impl Reclaimed {
    pub fn is_idle(self) -> bool {
        self.cost_bytes == 0
    }
}

/// Frees space of one log.
pub struct Reclaimer {
    shared: Arc<Shared>,
    /// A segment that has left the chain in memory and not yet on disk.
    leaving: Option<Leaving>,
    /// Files that nothing refers to any more and that may still be on the disk.
    doomed: Vec<Doomed>,
    /// What is live in a kept file, as it was counted last.
    assessed: HashMap<KeptName, Assessed>,
    rewrite: Option<Rewrite>,
    /// Where the next look at the kept files begins.
    next: usize,
}

#[derive(Clone, Copy)]
struct Leaving {
    segment_id: u64,
    len_bytes: u64,
    /// The name that it gets; none if it is removed.
    kept: Option<KeptName>,
    /// That is done; what is left is to make it durable.
    is_moved: bool,
}

struct Doomed {
    file_name: String,
    /// Of a kept file that was taken out of the view: what its removal frees.
    kept: Option<(KeptName, u64)>,
    /// That is done; what is left is to make it durable.
    is_removed: bool,
}

#[derive(Clone, Copy)]
struct Assessed {
    entries: u64,
    bytes: u64,
    /// No frame in it that was live then is longer.
    longest_bytes: u64,
    /// A live frame in it is damaged: it is left as it is.
    is_damaged: bool,
}

impl Assessed {
    /// Whether the count tells too little, now that `entries` are live. Entries only die, so it is an upper bound;
    /// what died is not more than so many of the longest, and that is a lower one.
    fn is_outdated(&self, entries: u64, frames_bytes: u64) -> bool {
        let died = self.entries.saturating_sub(entries);
        let at_least_bytes = self.bytes.saturating_sub(died.saturating_mul(self.longest_bytes));
        let may_be_mostly_dead = is_mostly_dead(at_least_bytes, frames_bytes);
        let has_shrunk = died * 8 >= self.entries;
        died > 0 && (has_shrunk || (may_be_mostly_dead && !is_mostly_dead(self.bytes, frames_bytes)))
    }
}

fn is_mostly_dead(live_bytes: u64, frames_bytes: u64) -> bool {
    live_bytes * 2 < frames_bytes
}

impl Reclaimer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, leaving: None, doomed: Vec::new(), assessed: HashMap::new(), rewrite: None, next: 0 }
    }

    /// Does one thing, if there is one to do. `checkpointed_index`: the last entry that the checkpoint on disk
    /// covers. An error leaves a state that is right in memory and on disk; whether to go on is the caller's
    /// question.
    pub fn step(&mut self, checkpointed_index: u64) -> io::Result<Reclaimed> {
        let pinned_upto = self.shared.pins.upto();
        if let Some(leaving) = self.leaving {
            // The one behind it must not go first: a chain without a link is damage.
            self.leave_on_disk(leaving)?;
            return Ok(Reclaimed { cost_bytes: STEP_BYTES });
        }
        if !self.doomed.is_empty() {
            // The segments that they are named after go their own ways from here on, into files that overlap with
            // them.
            self.remove_doomed()?;
            return Ok(Reclaimed { cost_bytes: STEP_BYTES });
        }
        if let Some(rewrite) = self.rewrite.take() {
            return self.go_on(rewrite, pinned_upto);
        }
        let left = self.leave_chain(checkpointed_index, pinned_upto);
        if left.inspect_err(|error| self.shared.note_damage(error))? {
            return Ok(Reclaimed { cost_bytes: STEP_BYTES });
        }
        let kept = self.shared.view.read().kept().files().to_vec();
        if kept.len() < self.assessed.len() {
            let names: std::collections::HashSet<KeptName> = kept.iter().map(|file| file.name).collect();
            self.assessed.retain(|name, _| names.contains(name));
        }
        for turn in 0..kept.len() {
            let at = (self.next + turn) % kept.len();
            let cost_bytes = self.look_at(&kept, at, pinned_upto)?;
            if cost_bytes > 0 {
                // One that changes all the time must not be all that is looked at.
                self.next = at + 1;
                return Ok(Reclaimed { cost_bytes });
            }
        }
        Ok(Reclaimed { cost_bytes: 0 })
    }

    /// Takes the first segment out of the chain, if it may go.
    fn leave_chain(&mut self, checkpointed_index: u64, pinned_upto: Option<u64>) -> io::Result<bool> {
        let (first, runs, purged) = {
            let view = self.shared.view.read();
            let Some(first) = view.first_sealed() else { return Ok(false) };
            (first, view.first_sealed_runs(), view.synced_purged())
        };
        let covered_index = purged.map_or(0, |purged| purged.index).min(checkpointed_index);
        let is_covered = first.last.is_none_or(|last| purged.is_some() && last.index <= covered_index);
        if !is_covered || runs.iter().any(|run| run.end_index() > covered_index + 1) {
            return Ok(false);
        }
        let id = first.segment_id;
        let has_entries = !runs.is_empty();
        let (source, last) = (FileId::Segment(id), first.last.unwrap_or(EntryId { term: 0, index: 0 }));
        let reader = &self.shared.reader;
        let (len_bytes, table) = with_second_try(|| {
            let open = reader.open(source)?;
            let len_bytes = open.file.len_bytes()?;
            let table = TableIndex::locate(open.file.as_ref());
            Ok((len_bytes, table.map_err(|error| reader.read_error(source, len_bytes, last, error))?))
        })?;
        let is_live =
            |run: &super::runs::Run| self.shared.live.count_in(run.first_index..=run.end_index() - 1) > 0;
        let is_pinned = pinned_upto.is_some_and(|upto| id <= upto);
        let kept = match table {
            Some(table) if is_pinned || runs.iter().any(is_live) => {
                KeptFile::of_segment(id, runs, table, len_bytes)
            }
            Some(_) => None,
            None => {
                return Err(reader.damaged(source, len_bytes, last, "no offset table at the end"));
            }
        };
        let leaving =
            Leaving { segment_id: id, len_bytes, kept: kept.as_ref().map(|kept| kept.name), is_moved: false };
        // In memory first, so that nobody waits for the disk. Whoever finds that the old name leads nowhere finds
        // the new one when he looks again; whoever looks for the new one too early tries the old one.
        {
            let mut view = self.shared.view.write();
            // What died since it was looked at may be in a cut of the state that was pinned since.
            if kept.is_none() && has_entries && self.shared.pins.hold(id) {
                return Ok(false);
            }
            view.leave_chain(id, kept);
        }
        self.leaving = Some(leaving);
        self.leave_on_disk(leaving)?;
        Ok(true)
    }

    fn leave_on_disk(&mut self, leaving: Leaving) -> io::Result<()> {
        let (disk, dir) = (&self.shared.reader.disk, &self.shared.reader.dir);
        let path = dir.join(segment::file_name(leaving.segment_id));
        match leaving.kept {
            _ if leaving.is_moved => {}
            Some(kept) => disk.rename(&path, &dir.join(kept.file_name()))?,
            None => disk.remove(&path)?,
        }
        self.leaving = Some(Leaving { is_moved: true, ..leaving });
        self.shared.reader.forget(FileId::Segment(leaving.segment_id));
        disk.sync_dir(dir)?;
        self.leaving = None;
        if leaving.kept.is_none() {
            self.freed(1, leaving.len_bytes);
        }
        Ok(())
    }

    /// Removes, counts or begins to rewrite one kept file. Gives what that cost; 0 if it is well as it is.
    fn look_at(&mut self, kept: &[Arc<KeptFile>], at: usize, pinned_upto: Option<u64>) -> io::Result<u64> {
        let file = &kept[at];
        let is_pinned = |file: &KeptFile| pinned_upto.is_some_and(|upto| file.name.first_segment <= upto);
        if is_pinned(file) {
            return Ok(0);
        }
        let entries = self.shared.live.count_in(file.indexes());
        if entries == 0 {
            let is_gone = self.replace(std::slice::from_ref(file), None)?;
            return Ok(if is_gone { STEP_BYTES } else { 0 });
        }
        if self.assessed.get(&file.name).is_none_or(|known| known.is_outdated(entries, file.frames_bytes)) {
            self.assess(file, entries)?;
            Counters::add(&self.shared.counters.rows_counted, file.entry_count);
            return Ok(STEP_BYTES + file.entry_count * ROW_COST_BYTES);
        }
        let chosen = self.choose(kept, at, &is_pinned);
        if chosen.is_empty() {
            return Ok(0);
        }
        self.rewrite = Some(Rewrite::begin(&self.shared, kept[chosen].to_vec())?);
        Ok(STEP_BYTES)
    }

    /// Counts the live bytes of a file.
    fn assess(&mut self, file: &KeptFile, entries: u64) -> io::Result<()> {
        let is_damaged = self.assessed.get(&file.name).is_some_and(|known| known.is_damaged);
        if is_damaged {
            self.assessed.insert(
                file.name,
                Assessed { entries, bytes: file.frames_bytes, longest_bytes: 0, is_damaged },
            );
            return Ok(());
        }
        let open = self.shared.reader.open(FileId::Kept(file.name))?;
        let (mut from, mut bytes, mut longest_bytes) = (0, 0, 0);
        loop {
            let mut rows = match with_second_try(|| file.rows(open.file.as_ref(), from, ROWS)) {
                Ok(rows) => rows,
                Err(error) if is_unreadable(&error) || Verdict::of(&error) == Verdict::Damage => {
                    let source = FileId::Kept(file.name);
                    let first = EntryId { term: 0, index: file.first_index };
                    let what = format!("its table cannot be read ({error})");
                    self.leave_alone(file.name, self.shared.reader.damaged(source, 0, first, &what));
                    let bytes = file.frames_bytes;
                    let known = Assessed { entries, bytes, longest_bytes: 0, is_damaged: true };
                    self.assessed.insert(file.name, known);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            if rows.is_empty() {
                break;
            }
            from += rows.len() as u64;
            self.shared.live.retain(&mut rows, |row| row.index);
            bytes += rows.iter().map(|row| row.len_bytes).sum::<u64>();
            longest_bytes = rows.iter().map(|row| row.len_bytes).max().unwrap_or(0).max(longest_bytes);
        }
        self.assessed.insert(file.name, Assessed { entries, bytes, longest_bytes, is_damaged });
        Ok(())
    }

    /// Notes that a file is damaged; it stays as it is.
    fn leave_alone(&mut self, name: KeptName, error: io::Error) {
        self.shared.note_damage(&error);
        tracing::error!(%error, "a damaged file is not rewritten");
        if let Some(known) = self.assessed.get_mut(&name) {
            known.is_damaged = true;
        }
    }

    /// Which files, side by side, to rewrite into one, given that it is the turn of the one `at`.
    fn choose(
        &self,
        kept: &[Arc<KeptFile>],
        at: usize,
        is_pinned: &impl Fn(&KeptFile) -> bool,
    ) -> std::ops::Range<usize> {
        let none = at..at;
        let limit_bytes = self.shared.segment_bytes;
        // Live bytes, and whether it is mostly dead. `None` for what cannot be part of it now.
        let look = |at: usize| -> Option<(u64, bool)> {
            let file = kept.get(at).filter(|file| !is_pinned(file))?;
            let known = self.assessed.get(&file.name).filter(|known| !known.is_damaged)?;
            Some((known.bytes, is_mostly_dead(known.bytes, file.frames_bytes)))
        };
        let Some((mut bytes, is_mostly_dead)) = look(at) else { return none };
        let mut chosen = at..at + 1;
        if !is_mostly_dead {
            // Not for its own sake; but small ones are joined.
            match look(at + 1) {
                Some((next, _)) if bytes + next <= limit_bytes / 2 && bytes <= 2 * next => {
                    (bytes, chosen.end) = (bytes + next, at + 2);
                }
                _ => return none,
            }
        }
        while let Some((next, true)) = look(chosen.end)
            && bytes + next <= limit_bytes
        {
            (bytes, chosen.end) = (bytes + next, chosen.end + 1);
        }
        while let Some((before, is_mostly_dead)) = chosen.start.checked_sub(1).and_then(look)
            && (is_mostly_dead || before <= 2 * bytes)
            && bytes + before <= limit_bytes
        {
            (bytes, chosen.start) = (bytes + before, chosen.start - 1);
        }
        // An offset and an index relative to the first are 32 bits wide.
        let is_narrow =
            kept[chosen.end - 1].last_index - kept[chosen.start].first_index < u64::from(u32::MAX);
        if is_narrow { chosen } else { none }
    }

    fn go_on(&mut self, mut rewrite: Rewrite, pinned_upto: Option<u64>) -> io::Result<Reclaimed> {
        if pinned_upto.is_some_and(|upto| rewrite.first_segment() <= upto) {
            self.give_up(rewrite.name())?;
            return Ok(Reclaimed { cost_bytes: STEP_BYTES });
        }
        match rewrite.step(&self.shared) {
            Ok(Progress::Copied { cost_bytes }) => {
                self.rewrite = Some(rewrite);
                Ok(Reclaimed { cost_bytes: cost_bytes.max(STEP_BYTES) })
            }
            Ok(Progress::Damaged { name, error }) => {
                self.leave_alone(name, error);
                self.give_up(rewrite.name())?;
                Ok(Reclaimed { cost_bytes: STEP_BYTES })
            }
            Ok(Progress::Done) => {
                let name = rewrite.name();
                let finished = rewrite.finish(&self.shared);
                let (sources, new) = finished.inspect_err(|_| self.doom(name))?;
                if let Some(new) = &new {
                    // What it holds was live a moment ago; a first count is not needed to know that. How long its
                    // frames are nobody knows.
                    let (entries, bytes) = (new.entry_count, new.frames_bytes);
                    let known = Assessed { entries, bytes, longest_bytes: bytes, is_damaged: false };
                    self.assessed.insert(new.name, known);
                    Counters::add(&self.shared.counters.bytes_rewritten, new.frames_bytes);
                }
                let has_name = new.is_some();
                if !self.replace(&sources, new)? && has_name {
                    self.doom(name);
                }
                Ok(Reclaimed { cost_bytes: STEP_BYTES })
            }
            Err(error) => {
                self.doom(rewrite.name());
                Err(error)
            }
        }
    }

    /// Notes that a rewritten file is not wanted, whether it has its name already or not.
    fn doom(&mut self, name: KeptName) {
        for file_name in [name.file_name(), kept::unborn_name(name)] {
            self.doomed.push(Doomed { file_name, kept: None, is_removed: false });
        }
    }

    fn give_up(&mut self, name: KeptName) -> io::Result<()> {
        self.doom(name);
        self.remove_doomed()
    }

    /// Removes what is doomed, durably. After an error the rest stays so, and the next step goes on.
    fn remove_doomed(&mut self) -> io::Result<()> {
        let mut doomed = std::mem::take(&mut self.doomed);
        let removed = doomed.iter_mut().try_for_each(|doomed| self.remove(doomed));
        let outcome = removed.and_then(|()| self.shared.reader.disk.sync_dir(&self.shared.reader.dir));
        if outcome.is_err() {
            self.doomed = doomed;
        }
        outcome
    }

    fn remove(&self, doomed: &mut Doomed) -> io::Result<()> {
        if doomed.is_removed {
            return Ok(());
        }
        let disk = &self.shared.reader.disk;
        let path = self.shared.reader.dir.join(&doomed.file_name);
        if disk.exists(&path)? {
            disk.remove(&path)?;
        }
        doomed.is_removed = true;
        if let Some((name, len_bytes)) = doomed.kept {
            self.shared.reader.forget(FileId::Kept(name));
            self.freed(1, len_bytes);
        }
        Ok(())
    }

    /// Puts `new`, which is durable, in the place of `gone`, which may go; `false` if a pin came in between, and
    /// nothing was done.
    fn replace(&mut self, gone: &[Arc<KeptFile>], new: Option<KeptFile>) -> io::Result<bool> {
        let names: Vec<KeptName> = gone.iter().map(|file| file.name).collect();
        {
            let mut view = self.shared.view.write();
            if names.iter().any(|name| self.shared.pins.hold(name.first_segment)) {
                return Ok(false);
            }
            view.kept_mut().swap(&names, new);
        }
        self.doomed.extend(gone.iter().map(|file| Doomed {
            file_name: file.name.file_name(),
            kept: Some((file.name, file.len_bytes)),
            is_removed: false,
        }));
        self.remove_doomed()?;
        Ok(true)
    }

    fn freed(&self, files: u64, bytes: u64) {
        Counters::add(&self.shared.counters.files_freed, files);
        Counters::add(&self.shared.counters.bytes_freed, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(entries: u64, bytes: u64, longest_bytes: u64) -> Assessed {
        Assessed { entries, bytes, longest_bytes, is_damaged: false }
    }

    #[test]
    fn a_count_holds_until_it_may_be_wrong_about_what_matters() {
        // A hundred of ten bytes each, and all of them live.
        let whole = counted(100, 1000, 10);
        assert!(!whole.is_outdated(100, 1000));
        assert!(!whole.is_outdated(88, 1000), "the file is far from mostly dead");
        assert!(whole.is_outdated(87, 1000), "an eighth of it has gone");
        // Just above half.
        let half = counted(51, 510, 10);
        assert!(!half.is_outdated(50, 1000));
        assert!(half.is_outdated(49, 1000), "it is mostly dead by now");
        // One of them may be all of it.
        let uneven = counted(100, 1000, 900);
        assert!(uneven.is_outdated(99, 1000));
        // It is to be rewritten already, and one less changes nothing about that.
        let dead = counted(40, 400, 10);
        assert!(!dead.is_outdated(39, 1000));
        assert!(dead.is_outdated(35, 1000));
    }
}
