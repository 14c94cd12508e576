//! All kept files of a log, in memory.
//!
//! Their order by segment is their order by index, and no index is in two of them, so a list and a binary
//! search are all it takes: a log of a terabyte has some ten thousand.
use std::sync::Arc;

use super::kept::{KeptFile, KeptName};

#[derive(Default)]
pub(super) struct KeptSet(Vec<Arc<KeptFile>>);

impl KeptSet {
    /// `files` in order.
    pub(super) fn new(files: Vec<KeptFile>) -> Self {
        Self(files.into_iter().map(Arc::new).collect())
    }

    pub(super) fn files(&self) -> &[Arc<KeptFile>] {
        &self.0
    }

    /// The file that holds the entry at `index`, if one does.
    pub(super) fn find(&self, index: u64) -> Option<Arc<KeptFile>> {
        let after = self.0.partition_point(|kept| kept.first_index <= index);
        self.0.get(after.checked_sub(1)?).filter(|kept| index <= kept.last_index).cloned()
    }

    /// Adds the file of a segment that has just left the chain: the newest.
    pub(super) fn push(&mut self, file: KeptFile) {
        debug_assert!(self.0.last().is_none_or(|last| last.last_index < file.first_index));
        self.0.push(Arc::new(file));
    }

    /// Puts one file, or none, in the place of some that lie side by side.
    pub(super) fn swap(&mut self, gone: &[KeptName], new: Option<KeptFile>) {
        let at = self.0.partition_point(|kept| gone.first().is_some_and(|first| kept.name < *first));
        self.0.retain(|kept| !gone.contains(&kept.name));
        if let Some(new) = new {
            self.0.insert(at.min(self.0.len()), Arc::new(new));
        }
    }

    /// How many there are, and their bytes.
    pub(super) fn size(&self) -> (u64, u64) {
        (self.0.len() as u64, self.0.iter().map(|kept| kept.len_bytes).sum())
    }
}
