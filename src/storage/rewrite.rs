//! Writing what is live in some kept files into a new one.
//!
//! Frames are copied as they are, byte for byte, each checked on the way: its checksum is as old as the frame,
//! so damage that came in between cannot pass for what was written. The new file is made under another name,
//! synced, and only then renamed; until its sources are removed it supersedes them by its name (see `kept`), so
//! a kill at any point leaves either the one or the other.
use std::io;
use std::sync::Arc;

use super::disk::DiskFile;
use super::entry::EntryId;
use super::frame;
use super::kept::{KeptFile, KeptName};
use super::log::Shared;
use super::packed::Row;
use super::packed_file::PackedFile;
use super::reader::{FileId, is_damage};
use super::verdict::{is_unreadable, with_second_try};

/// Rows that are looked at together.
const ROWS: u64 = 1024;
/// Frames are read together up to this size.
const READ_BYTES: u64 = 256 << 10;
/// A step ends when it has copied so much.
const STEP_BYTES: u64 = 1 << 20;

/// How far a rewrite is.
pub(super) enum Progress {
    Copied {
        cost_bytes: u64,
    },
    /// A live frame of this file is not what it should be.
    Damaged {
        name: KeptName,
        error: io::Error,
    },
    /// Everything is copied; what is left is [`Rewrite::finish`].
    Done,
}

pub(super) struct Rewrite {
    sources: Vec<Arc<KeptFile>>,
    /// Where to go on: source, and row in it.
    at: (usize, u64),
    packed: PackedFile,
}

impl Rewrite {
    /// Begins a file in the place of `sources`, which lie side by side.
    pub(super) fn begin(shared: &Shared, sources: Vec<Arc<KeptFile>>) -> io::Result<Self> {
        let name = KeptName {
            first_segment: sources.first().map_or(0, |first| first.name.first_segment),
            last_segment: sources.last().map_or(0, |last| last.name.last_segment),
            generation: sources.iter().map(|source| source.name.generation).max().unwrap_or(0) + 1,
        };
        let packed = PackedFile::begin(shared.reader.disk.as_ref(), &shared.reader.dir, name)?;
        Ok(Self { sources, at: (0, 0), packed })
    }

    /// The name that the new file will have.
    pub(super) fn name(&self) -> KeptName {
        self.packed.name
    }

    pub(super) fn first_segment(&self) -> u64 {
        self.packed.name.first_segment
    }

    /// Copies about [`STEP_BYTES`].
    pub(super) fn step(&mut self, shared: &Shared) -> io::Result<Progress> {
        let mut cost_bytes = 0;
        while cost_bytes < STEP_BYTES {
            let Some(source) = self.sources.get(self.at.0).cloned() else {
                return Ok(if cost_bytes == 0 { Progress::Done } else { Progress::Copied { cost_bytes } });
            };
            let open = shared.reader.open(FileId::Kept(source.name))?;
            let mut rows = match with_second_try(|| source.rows(open.file.as_ref(), self.at.1, ROWS)) {
                Ok(rows) => rows,
                Err(error) if is_unreadable(&error) || error.kind() == io::ErrorKind::InvalidData => {
                    let id = EntryId { term: 0, index: source.first_index };
                    let what = format!("its table cannot be read ({error})");
                    let error = shared.reader.damaged(FileId::Kept(source.name), 0, id, &what);
                    return Ok(Progress::Damaged { name: source.name, error });
                }
                Err(error) => return Err(error),
            };
            let indexes: Vec<u64> = rows.iter().map(|row| row.index).collect();
            let row_count = rows.len() as u64;
            if row_count == 0 {
                self.at = (self.at.0 + 1, 0);
                continue;
            }
            shared.live.retain(&mut rows, |row| row.index);
            cost_bytes += row_count * 8;
            let mut rest = rows.as_slice();
            while !rest.is_empty() {
                let (group, behind) = rest.split_at(neighbours(rest));
                match self.copy(shared, &source, open.file.as_ref(), group)? {
                    Ok(bytes) => cost_bytes += 2 * bytes,
                    Err(error) => return Ok(Progress::Damaged { name: source.name, error }),
                }
                rest = behind;
                if cost_bytes >= STEP_BYTES {
                    break;
                }
            }
            let next = rest.first().map(|next| next.index);
            let done = indexes.iter().take_while(|index| Some(**index) != next).count();
            self.at.1 += done as u64;
        }
        Ok(Progress::Copied { cost_bytes })
    }

    /// Copies frames that lie behind each other. The inner error tells of damage.
    fn copy(
        &mut self,
        shared: &Shared,
        source: &KeptFile,
        from: &dyn DiskFile,
        rows: &[Row],
    ) -> io::Result<Result<u64, io::Error>> {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(Ok(0)) };
        let bytes = last.offset_bytes + last.len_bytes - first.offset_bytes;
        let mut buf = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        if let Err(error) = with_second_try(|| from.read_exact_at(&mut buf, first.offset_bytes)) {
            let id = EntryId { term: first.term.unwrap_or(0), index: first.index };
            let source = FileId::Kept(source.name);
            let error = shared.reader.read_error(source, first.offset_bytes, id, error);
            return if is_damage(&error) { Ok(Err(error)) } else { Err(error) };
        }
        for row in rows {
            let at = (row.offset_bytes - first.offset_bytes) as usize;
            let damaged = |what: &str| {
                let id = EntryId { term: row.term.unwrap_or(0), index: row.index };
                shared.reader.damaged(FileId::Kept(source.name), row.offset_bytes, id, what)
            };
            let frame_bytes = match frame::decode(&buf[at..at + row.len_bytes as usize]) {
                Err(error) => return Ok(Err(damaged(&error.to_string()))),
                Ok(frame) => {
                    let is_asked_for = frame.head.index == row.index
                        && row.term.is_none_or(|term| term == frame.head.term)
                        && frame.head.kind.entry_kind().is_some();
                    if !is_asked_for {
                        return Ok(Err(damaged("another frame lies there")));
                    }
                    frame.total_bytes()
                }
            };
            // What lies between two entries, a vote or a truncation, is left behind.
            self.packed.push(row.index, |out| out.extend_from_slice(&buf[at..at + frame_bytes]))?;
        }
        self.packed.flush()?;
        Ok(Ok(bytes))
    }

    /// Gives the new file its table and its name, both durable on return. No file if nothing is live.
    pub(super) fn finish(mut self, shared: &Shared) -> io::Result<(Vec<Arc<KeptFile>>, Option<KeptFile>)> {
        let (disk, dir) = (shared.reader.disk.as_ref(), &shared.reader.dir);
        let sources = std::mem::take(&mut self.sources);
        Ok((sources, self.packed.finish(disk, dir)?))
    }
}

/// How many of the first rows lie behind each other and are read together; at least one.
fn neighbours(rows: &[Row]) -> usize {
    let Some(first) = rows.first() else { return 0 };
    let mut end = first.offset_bytes + first.len_bytes;
    let together = rows[1..].iter().take_while(|row| {
        let is_next =
            row.offset_bytes == end && row.offset_bytes + row.len_bytes - first.offset_bytes <= READ_BYTES;
        end = row.offset_bytes + row.len_bytes;
        is_next
    });
    1 + together.count()
}
