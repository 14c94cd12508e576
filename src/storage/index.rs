//! The index: which records of the log carry a value, without reading the log.
//!
//! It is a list of *parts*, each about a range of the log: sorted files, and one part in memory that grows with
//! the log. What lies in no part is *not covered*; whoever asks is told, and reads that himself. So the index
//! may lag, lose a file, or be away altogether: answers stay right, and only what they cost changes.
//!
//! Parts know entries by their index and nothing of files, topics or seqs. An index is given once to what is
//! committed, frames keep it when segments are renamed or rewritten, and any number of topics may refer to one
//! entry: none of that touches a part.
use std::collections::BTreeSet;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::disk::Disk;
use super::entry::EntryId;
use super::index_file::{IndexFile, IndexName, is_unborn};
use super::live::LiveEntries;
use super::postings::{Found, Posting, PostingMap, Wanted};
use super::supersede::superseded;
use super::verdict::Verdict;
use crate::filter::TagMatch;

/// A look whose file is gone looks again so often: others took its place.
const ATTEMPTS: usize = 4;

/// The part in memory.
pub(super) struct Growing {
    pub first_index: u64,
    /// The last entry that it covers.
    pub last: EntryId,
    pub postings: PostingMap,
    /// Bytes of the entries that it covers.
    pub looked_bytes: u64,
}

impl Growing {
    pub(super) fn indexes(&self) -> RangeInclusive<u64> {
        self.first_index..=self.last.index
    }
}

#[derive(Default)]
pub(super) struct Parts {
    /// In order, apart.
    pub files: Vec<Arc<IndexFile>>,
    pub growing: Option<Growing>,
}

impl Parts {
    /// The ranges of all parts, rising.
    pub(super) fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        let growing = self.growing.as_ref().map(Growing::indexes);
        let mut ranges: Vec<_> = self.files.iter().map(|file| file.indexes()).chain(growing).collect();
        ranges.sort_unstable_by_key(|range| *range.start());
        ranges
    }

    /// Puts one file, or none, in the place of some.
    pub(super) fn swap(&mut self, gone: &[IndexName], new: Option<IndexFile>) {
        self.files.retain(|file| !gone.contains(&file.name));
        if let Some(new) = new {
            let at = self.files.partition_point(|file| file.name < new.name);
            self.files.insert(at, Arc::new(new));
        }
    }
}

/// How a search ended.
enum Sought {
    All,
    TooMany,
    /// Another took its place, most likely.
    FileGone,
}

/// The index of one log.
pub(super) struct Index {
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    /// Only the indexer changes them.
    pub parts: RwLock<Parts>,
    /// Files that turned out to be damaged, for the indexer to remove.
    pub damaged: Mutex<BTreeSet<IndexName>>,
}

impl Index {
    /// Takes in the files in `dir` that are good and belong to the log, whose entries `has` knows; removes all
    /// others. An error is one of the disk, which says nothing of a file.
    pub(super) fn open(disk: Arc<dyn Disk>, dir: &Path, has: impl Fn(EntryId) -> bool) -> io::Result<Self> {
        let names = disk.list(dir)?;
        let mut all: Vec<IndexName> = names.iter().filter_map(|name| IndexName::parse(name)).collect();
        all.sort_unstable();
        let mut files: Vec<Arc<IndexFile>> = Vec::new();
        let mut unwanted: Vec<String> = names.iter().filter(|name| is_unborn(name)).cloned().collect();
        let spans: Vec<_> = all.iter().map(|name| name.span()).collect();
        for (name, is_superseded) in all.iter().zip(superseded(&spans)) {
            let overlaps = files.last().is_some_and(|last| last.name.last_index >= name.first_index);
            match IndexFile::open(disk.as_ref(), dir, *name) {
                Ok(file) if !is_superseded && !overlaps && has(file.last) => files.push(Arc::new(file)),
                Err(error) if Verdict::of(&error) == Verdict::Busy => return Err(error),
                _ => unwanted.push(name.file_name()),
            }
        }
        for name in unwanted {
            disk.remove(&dir.join(name))?;
        }
        let parts = RwLock::new(Parts { files, growing: None });
        Ok(Self { disk, dir: dir.to_path_buf(), parts, damaged: Mutex::default() })
    }

    /// Where in `indexes` records with a tag that matches lie. Nothing is covered if they are more than `max`: then
    /// reading all is not dearer. Blocks on the disk.
    pub(super) fn find_tags(
        &self,
        tags: &TagMatch,
        indexes: &RangeInclusive<u64>,
        max: usize,
        live: &LiveEntries,
    ) -> Found {
        let wanted = Wanted::tags(tags);
        for attempt in 1..=ATTEMPTS {
            let (mut covered, mut postings) = (Vec::new(), Vec::new());
            let places = (&mut covered, &mut postings);
            match self.try_find(&wanted, indexes, max, attempt == ATTEMPTS, places) {
                Sought::All => {
                    live.retain(&mut postings, |posting| posting.index);
                    return Found::new(covered, postings);
                }
                Sought::TooMany => break,
                Sought::FileGone => {}
            }
        }
        Found::default()
    }

    fn try_find(
        &self,
        wanted: &Wanted,
        indexes: &RangeInclusive<u64>,
        max: usize,
        is_last: bool,
        (covered, postings): (&mut Vec<RangeInclusive<u64>>, &mut Vec<Posting>),
    ) -> Sought {
        let is_asked_for =
            |range: &RangeInclusive<u64>| range.start() <= indexes.end() && indexes.start() <= range.end();
        let files = {
            let parts = self.parts.read();
            if let Some(growing) = parts.growing.as_ref().filter(|growing| is_asked_for(&growing.indexes())) {
                for found in growing.postings.find(wanted) {
                    postings.extend_from_slice(found);
                    if postings.len() > max {
                        return Sought::TooMany;
                    }
                }
                covered.push(growing.indexes());
            }
            parts.files.clone()
        };
        for file in files.iter().filter(|file| is_asked_for(&file.indexes())) {
            let before = postings.len();
            match file.find(self.disk.as_ref(), &self.dir, wanted, postings, max) {
                Ok(true) => covered.push(file.indexes()),
                Ok(false) => return Sought::TooMany,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !is_last => return Sought::FileGone,
                Err(error) => {
                    postings.truncate(before);
                    // What has no descriptor or no memory now has nothing to do with the file.
                    if Verdict::of(&error) != Verdict::Busy && self.damaged.lock().insert(file.name) {
                        tracing::warn!("{} is read around: {error}", file.name.file_name());
                    }
                }
            }
        }
        Sought::All
    }
}
