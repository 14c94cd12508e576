//! Opening the files that left the chain.
//!
//! They are not read through: header and table are checked now, every frame when it is read. What a kill in
//! the middle of a rewrite leaves is plain from the names alone (see `supersede`): a file that another one
//! supersedes is removed, an unfinished one too. Whether a file is missing cannot be said here, because only
//! the state knows which entries are live; see [`super::Log::check_live`].
use std::path::Path;

use super::disk::{Disk, OpenMode};
use super::kept::{KeptFile, KeptName, NotKept};
use super::open_error::OpenError;
use super::recovery::{corrupt, open_segment_at};
use super::runs::Runs;
use super::segment;
use super::supersede::superseded;
use super::table::{OffsetTable, TableIndex};
use super::verdict::with_second_try;

/// The kept files of a directory, by name.
pub(super) struct KeptFiles<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    names: Vec<KeptName>,
    /// File names of what is to be removed.
    pub superseded: Vec<String>,
}

impl<'a> KeptFiles<'a> {
    pub(super) fn find(
        disk: &'a dyn Disk,
        dir: &'a Path,
        files: &[String],
        first_segment: Option<u64>,
    ) -> Result<Self, OpenError> {
        let mut all: Vec<KeptName> = files.iter().filter_map(|file| KeptName::parse(file)).collect();
        all.sort_unstable();
        let is_superseded = superseded(&all.iter().map(|name| name.span()).collect::<Vec<_>>());
        let pick = |wanted: bool| {
            let picked = all.iter().zip(&is_superseded).filter(move |(_, is)| **is == wanted);
            picked.map(|(name, _)| *name).collect::<Vec<KeptName>>()
        };
        let (superseded, names) = (pick(true), pick(false));
        if let Some(pair) = names.windows(2).find(|pair| pair[0].last_segment >= pair[1].first_segment) {
            let path = dir.join(pair[1].file_name());
            return Err(corrupt(&path, 0, "another kept file holds the same segments"));
        }
        if let Some(last) = names.last() {
            let Some(first_segment) = first_segment else {
                let path = dir.join(segment::file_name(last.last_segment + 1));
                return Err(corrupt(&path, 0, "the file is missing: only kept files are there"));
            };
            if last.last_segment >= first_segment {
                let path = dir.join(segment::file_name(first_segment));
                return Err(corrupt(&path, 0, "the segment has left the chain, and is in it"));
            }
        }
        let superseded = superseded.into_iter().map(KeptName::file_name).collect();
        Ok(Self { disk, dir, names, superseded })
    }

    /// Opens all of them. `chain_start` is the first index of the chain. Entries that a later file has under
    /// the same index, with a later term, had been truncated.
    pub(super) fn open(&mut self, chain_start: Option<u64>) -> Result<Vec<KeptFile>, OpenError> {
        let mut opened: Vec<KeptFile> = Vec::with_capacity(self.names.len());
        let mut end_index = chain_start.unwrap_or(u64::MAX);
        for name in self.names.iter().rev() {
            let path = self.dir.join(name.file_name());
            let file = if name.generation == 0 {
                self.open_former_segment(*name, &path, end_index)?
            } else {
                let unread = |error| OpenError::of_read(&path, 0, error);
                let file = with_second_try(|| self.disk.open(&path, OpenMode::Read)).map_err(unread)?;
                let packed =
                    with_second_try(|| KeptFile::open_packed(*name, file.as_ref())).map_err(unread)?;
                Some(packed.map_err(|why| match why {
                    NotKept::Damaged(what) => corrupt(&path, 0, what),
                    NotKept::Newer { version, known } => {
                        OpenError::NewerFormat { file: path.clone(), version, known }
                    }
                })?)
            };
            match file {
                Some(file) => {
                    end_index = end_index.min(file.first_index);
                    opened.push(file);
                }
                // All that it holds was truncated.
                None => self.superseded.push(name.file_name()),
            }
        }
        opened.reverse();
        Ok(opened)
    }

    fn open_former_segment(
        &self,
        name: KeptName,
        path: &Path,
        end_index: u64,
    ) -> Result<Option<KeptFile>, OpenError> {
        let segment = open_segment_at(self.disk, path.to_path_buf(), name.first_segment)?;
        let file = segment.file.as_ref();
        let len_bytes =
            file.len_bytes().map_err(|source| OpenError::Io { file: path.to_path_buf(), source })?;
        let unread = |error| OpenError::of_read(path, len_bytes, error);
        let sealed = with_second_try(|| OffsetTable::load_sealed(file)).map_err(unread)?;
        let table = with_second_try(|| TableIndex::locate(file)).map_err(unread)?;
        let (Some(sealed), Some(table)) = (sealed, table) else {
            return Err(corrupt(path, 0, "no good offset table"));
        };
        let mut runs = Runs::default();
        runs.push_spans(name.first_segment, sealed.table.spans());
        runs.truncate_from(end_index);
        Ok(KeptFile::of_segment(name.first_segment, runs.into_vec(), table, len_bytes))
    }
}
