//! One file of the index: the postings of a range of the log, sorted by key.
//!
//! It is a tree of blocks of some 8 KiB, written from the leaves up in one pass, so neither writing nor reading
//! holds more of it in memory than one block per level. A key is found with one small read per level; what has
//! the same beginning lies side by side.
//!
//! ```text
//! file:   header | block ... | footer
//! header: magic | version u32 | generation u32 | first index u64 | last term u64 | last index u64 | crc u32
//! block:  crc u32 (of its offset and its rows) | row ...
//! row:    key blob | postings blob              in a leaf; a long list has several rows
//!         key blob | offset varint | len varint in others: a block and its first key
//! footer: root offset u64 | root len u32 (0: no rows) | levels u32 | live entries u64 | magic | crc u32
//! ```
//!
//! The name says the range, and a generation: like a kept file, it supersedes those whose range it spans (see
//! `supersede`). Nothing in it is the only copy of anything: a file that is missing or damaged is made
//! again from the log.
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, DiskFile, OpenMode};
use super::entry::EntryId;
use super::postings::{Posting, Wanted, put_postings, take_postings};
use super::supersede::Span;
use crate::codec::{Malformed, Reader, put_blob, put_varint};

const SUFFIX: &str = ".idx";
pub(super) const MAGIC: [u8; 8] = *b"ANTPHIDX";
pub(super) const END_MAGIC: [u8; 8] = *b"ANTPHIXE";
pub(super) const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 44;
const FOOTER_BYTES: usize = 36;
/// A block is closed when its rows reach this size.
const BLOCK_BYTES: usize = 8 << 10;
/// No block is larger: one row more than [`BLOCK_BYTES`], of a key and [`ROW_POSTINGS`].
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// Most postings of one row.
const ROW_POSTINGS: usize = 512;
/// Most levels: with one row per block at the worst, far more than 4 GiB need.
const LEVELS_MAX: u32 = 16;
/// Blocks are gathered up to this size before they are written.
const WRITE_BYTES: usize = 256 << 10;

/// Which entries a file covers, and which attempt at that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct IndexName {
    pub first_index: u64,
    pub last_index: u64,
    pub generation: u32,
}

impl IndexName {
    pub(super) fn file_name(self) -> String {
        let Self { first_index, last_index, generation } = self;
        format!("{first_index:016x}-{last_index:016x}-{generation:08x}{SUFFIX}")
    }

    /// The inverse of [`IndexName::file_name`]; `None` for any other file.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut numbers = name.strip_suffix(SUFFIX)?.split('-');
        let mut next = || u64::from_str_radix(numbers.next()?, 16).ok();
        let (first_index, last_index) = (next()?, next()?);
        let found = Self { first_index, last_index, generation: u32::try_from(next()?).ok()? };
        (found.file_name() == name && first_index <= last_index).then_some(found)
    }

    pub(super) fn span(self) -> Span {
        Span { first: self.first_index, last: self.last_index, generation: self.generation }
    }
}

/// Whether a name is that of a file that was not finished.
pub(super) fn is_unborn(name: &str) -> bool {
    name.strip_suffix(".new").is_some_and(|name| IndexName::parse(name).is_some())
}

/// A file of the index, known by its ends. It is opened for each use.
#[derive(Clone, Debug)]
pub(super) struct IndexFile {
    pub name: IndexName,
    /// The last entry that it covers.
    pub last: EntryId,
    pub len_bytes: u64,
    /// Live entries in its range when it was made, with postings or without.
    pub live_entries: u64,
    root: Block,
    levels: u32,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    offset_bytes: u64,
    len_bytes: u32,
}

impl IndexFile {
    /// Reads the ends of the file `name` in `dir`. `InvalidData` if it is not what its name says.
    pub(super) fn open(disk: &dyn Disk, dir: &Path, name: IndexName) -> io::Result<Self> {
        let file = disk.open(&dir.join(name.file_name()), OpenMode::Read)?;
        let len_bytes = file.len_bytes()?;
        if len_bytes < (HEADER_BYTES + FOOTER_BYTES) as u64 {
            return Err(Malformed("index file").into());
        }
        let (mut head, mut foot) = ([0; HEADER_BYTES], [0; FOOTER_BYTES]);
        file.read_exact_at(&mut head, 0)?;
        file.read_exact_at(&mut foot, len_bytes - FOOTER_BYTES as u64)?;
        Ok(Self::parse(name, len_bytes, &head, &foot)?)
    }

    fn parse(name: IndexName, len_bytes: u64, head: &[u8], foot: &[u8]) -> Result<Self, Malformed> {
        let mut foot = Reader::new(summed(foot)?, "index file");
        let root = Block { offset_bytes: foot.u64()?, len_bytes: foot.u32()? };
        let (levels, live_entries) = (foot.u32()?, foot.u64()?);
        let mut header = Reader::new(summed(head)?, "index file");
        let is_right = foot.rest() == END_MAGIC.as_slice()
            && header.bytes(8)? == MAGIC.as_slice()
            && header.u32()? == FORMAT_VERSION
            && header.u32()? == name.generation
            && header.u64()? == name.first_index
            && levels <= LEVELS_MAX;
        let last = EntryId { term: header.u64()?, index: header.u64()? };
        if !is_right || last.index != name.last_index {
            return Err(Malformed("index file"));
        }
        Ok(Self { name, last, len_bytes, live_entries, root, levels })
    }

    pub(super) fn indexes(&self) -> RangeInclusive<u64> {
        self.name.first_index..=self.name.last_index
    }

    /// The rows from the first one on whose key is not below `from`.
    pub(super) fn rows(&self, disk: &dyn Disk, dir: &Path, from: &[u8]) -> io::Result<Rows> {
        let file = disk.open(&dir.join(self.name.file_name()), OpenMode::Read)?;
        let mut rows = Rows { file, stack: Vec::new(), levels: self.levels as usize };
        if self.root.len_bytes > 0 {
            rows.descend(self.root, from)?;
        }
        Ok(rows)
    }

    /// Adds the postings of all wanted keys to `postings`; `false` if they would be more than `max` then.
    pub(super) fn find(
        &self,
        disk: &dyn Disk,
        dir: &Path,
        wanted: &Wanted,
        postings: &mut Vec<Posting>,
        max: usize,
    ) -> io::Result<bool> {
        let mut rows = self.rows(disk, dir, &wanted.start)?;
        while let Some(row) = rows.next()?.filter(|row| wanted.takes(row.key)) {
            take_postings(row.postings, postings)?;
            if postings.len() > max {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// One key and some of its postings, coded.
pub(super) struct Row<'a> {
    pub key: &'a [u8],
    pub postings: &'a [u8],
}

/// A walk over the rows of a file, in order of key.
pub(super) struct Rows {
    file: Arc<dyn DiskFile>,
    /// The blocks from the root to a leaf, each with the offset of its next row.
    stack: Vec<(Vec<u8>, usize)>,
    levels: usize,
}

impl Rows {
    /// Reads `block` and what is below it, down to the first row that is not below `from`.
    fn descend(&mut self, block: Block, from: &[u8]) -> io::Result<()> {
        let mut block = Some(block);
        while let Some(next) = block.take() {
            let bytes = self.read(next)?;
            self.stack.push((bytes, 0));
            let is_leaf = self.stack.len() == self.levels;
            let Some((bytes, at)) = self.stack.last_mut() else { break };
            // A key that goes on over several blocks begins in the one before those that begin with it.
            let mut reader = Reader::new(bytes, "index block");
            while !reader.is_empty() {
                let before = reader.rest().len();
                let key = reader.blob()?;
                let child = if is_leaf { reader.blob().map(|_| None)? } else { Some(child(&mut reader)?) };
                if (is_leaf || block.is_some()) && key >= from {
                    *at = bytes.len() - before;
                    break;
                }
                *at = bytes.len() - reader.rest().len();
                block = child;
            }
        }
        Ok(())
    }

    fn read(&self, block: Block) -> io::Result<Vec<u8>> {
        let len = block.len_bytes as usize;
        if !(4..=BLOCK_BYTES_MAX).contains(&len) || self.stack.len() >= self.levels {
            return Err(Malformed("index block").into());
        }
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, block.offset_bytes)?;
        let rows = bytes.split_off(4);
        if bytes != sum_of(block.offset_bytes, &rows).to_le_bytes() {
            return Err(Malformed("index block").into());
        }
        Ok(rows)
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Row<'_>>> {
        loop {
            let is_leaf = self.stack.len() == self.levels;
            let Some((bytes, at)) = self.stack.last_mut() else { return Ok(None) };
            if *at >= bytes.len() {
                self.stack.pop();
                continue;
            }
            if is_leaf {
                break;
            }
            let mut reader = Reader::new(&bytes[*at..], "index block");
            reader.blob()?;
            let child = child(&mut reader)?;
            *at = bytes.len() - reader.rest().len();
            self.descend(child, &[])?;
        }
        let Some((bytes, at)) = self.stack.last_mut() else { return Ok(None) };
        let mut reader = Reader::new(&bytes[*at..], "index block");
        let row = Row { key: reader.blob()?, postings: reader.blob()? };
        *at = bytes.len() - reader.rest().len();
        Ok(Some(row))
    }
}

fn child(reader: &mut Reader<'_>) -> Result<Block, Malformed> {
    let offset_bytes = reader.varint()?;
    let len_bytes = u32::try_from(reader.varint()?).map_err(|_| reader.malformed())?;
    Ok(Block { offset_bytes, len_bytes })
}

pub(super) fn sum_of(offset_bytes: u64, rows: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&offset_bytes.to_le_bytes()), rows)
}

pub(super) fn put_sum(bytes: &mut Vec<u8>) {
    let crc = crc32c::crc32c(bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
}

/// What stands before a checksum that is right.
fn summed(bytes: &[u8]) -> Result<&[u8], Malformed> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or(Malformed("index file"))?;
    if crc32c::crc32c(body).to_le_bytes() == *crc { Ok(body) } else { Err(Malformed("index file")) }
}

/// A file that is being written, under another name until it is whole.
pub(super) struct IndexWriter {
    name: IndexName,
    last: EntryId,
    unborn: PathBuf,
    file: Arc<dyn DiskFile>,
    written_bytes: u64,
    waiting: Vec<u8>,
    /// The open block of each level, leaves first.
    levels: Vec<Level>,
}

#[derive(Default)]
struct Level {
    first_key: Vec<u8>,
    rows: Vec<u8>,
}

impl IndexWriter {
    /// Begins the file `name`, which covers everything up to `last`.
    pub(super) fn begin(disk: &dyn Disk, dir: &Path, name: IndexName, last: EntryId) -> io::Result<Self> {
        let unborn = dir.join(format!("{}.new", name.file_name()));
        if disk.exists(&unborn)? {
            // Left by an attempt that failed.
            disk.remove(&unborn)?;
        }
        let file = disk.open(&unborn, OpenMode::Create)?;
        let mut head = Vec::with_capacity(HEADER_BYTES);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        head.extend_from_slice(&name.generation.to_le_bytes());
        for number in [name.first_index, last.term, last.index] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        put_sum(&mut head);
        let levels = vec![Level::default()];
        Ok(Self { name, last, unborn, file, written_bytes: 0, waiting: head, levels })
    }

    /// Adds postings of `key`, in order of key, then of the log. Gives the bytes that it took.
    pub(super) fn push(&mut self, key: &[u8], postings: &[Posting]) -> io::Result<u64> {
        let mut coded = Vec::new();
        let mut bytes = 0;
        for part in postings.chunks(ROW_POSTINGS) {
            coded.clear();
            put_postings(&mut coded, part);
            bytes += (key.len() + coded.len()) as u64;
            self.put_row(0, key, |rows| put_blob(rows, &coded))?;
        }
        Ok(bytes)
    }

    fn put_row(&mut self, level: usize, key: &[u8], put: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        if self.levels.len() == level {
            self.levels.push(Level::default());
        }
        let open = &mut self.levels[level];
        if open.rows.is_empty() {
            open.first_key = key.to_vec();
        }
        put_blob(&mut open.rows, key);
        put(&mut open.rows);
        if open.rows.len() >= BLOCK_BYTES { self.close_block(level) } else { Ok(()) }
    }

    fn close_block(&mut self, level: usize) -> io::Result<()> {
        let Level { first_key, rows } = std::mem::take(&mut self.levels[level]);
        let block = self.write_block(&rows)?;
        self.put_row(level + 1, &first_key, |rows| {
            put_varint(rows, block.offset_bytes);
            put_varint(rows, u64::from(block.len_bytes));
        })
    }

    fn write_block(&mut self, rows: &[u8]) -> io::Result<Block> {
        let offset_bytes = self.written_bytes + self.waiting.len() as u64;
        self.waiting.extend_from_slice(&sum_of(offset_bytes, rows).to_le_bytes());
        self.waiting.extend_from_slice(rows);
        if self.waiting.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(Block { offset_bytes, len_bytes: rows.len() as u32 + 4 })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.waiting, self.written_bytes)?;
        self.written_bytes += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    /// Gives the file its root and its name, both durable on return.
    pub(super) fn finish(mut self, disk: &dyn Disk, dir: &Path, live_entries: u64) -> io::Result<IndexFile> {
        let mut root = Block { offset_bytes: 0, len_bytes: 0 };
        let mut level = 0;
        // Closing a block may add a level; the last one is the root.
        while level < self.levels.len() {
            let is_last = level + 1 == self.levels.len();
            match self.levels[level].rows.is_empty() {
                true => {}
                false if is_last => {
                    let rows = std::mem::take(&mut self.levels[level].rows);
                    root = self.write_block(&rows)?;
                }
                false => self.close_block(level)?,
            }
            level += 1;
        }
        let levels = self.levels.len() as u32;
        let mut foot = Vec::with_capacity(FOOTER_BYTES);
        foot.extend_from_slice(&root.offset_bytes.to_le_bytes());
        foot.extend_from_slice(&root.len_bytes.to_le_bytes());
        foot.extend_from_slice(&levels.to_le_bytes());
        foot.extend_from_slice(&live_entries.to_le_bytes());
        foot.extend_from_slice(&END_MAGIC);
        put_sum(&mut foot);
        self.waiting.extend_from_slice(&foot);
        self.flush()?;
        self.file.sync_data()?;
        disk.rename(&self.unborn, &dir.join(self.name.file_name()))?;
        disk.sync_dir(dir)?;
        let Self { name, last, written_bytes: len_bytes, .. } = self;
        Ok(IndexFile { name, last, len_bytes, live_entries, root, levels })
    }

    /// Removes what was written.
    pub(super) fn give_up(self, disk: &dyn Disk) -> io::Result<()> {
        disk.remove(&self.unborn)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::filter::TagMatch;
    use crate::storage::sim_disk::SimDisk;

    fn dir() -> PathBuf {
        PathBuf::from("/index")
    }

    const NAME: IndexName = IndexName { first_index: 3, last_index: 90_000, generation: 2 };

    /// Each tag with entries; many postings make several rows, many tags several levels.
    fn write(disk: &SimDisk, tags: &BTreeMap<String, Vec<u64>>) -> IndexFile {
        disk.create_dir_all(&dir()).expect("dir");
        let mut writer =
            IndexWriter::begin(disk, &dir(), NAME, EntryId { term: 4, index: 90_000 }).expect("begin");
        for (tag, indexes) in tags {
            let key = Wanted::tags(&TagMatch::Eq(tag.clone())).start;
            writer.push(&key, &postings(indexes)).expect("push");
        }
        writer.finish(disk, &dir(), 77).expect("finish");
        IndexFile::open(disk, &dir(), NAME).expect("open")
    }

    fn postings(indexes: &[u64]) -> Vec<Posting> {
        indexes.iter().map(|index| Posting { index: *index, first_position: 0, count: 1 }).collect()
    }

    fn find(disk: &SimDisk, file: &IndexFile, tags: &TagMatch) -> io::Result<Vec<Posting>> {
        let mut found = Vec::new();
        assert!(file.find(disk, &dir(), &Wanted::tags(tags), &mut found, usize::MAX)?);
        Ok(found)
    }

    fn tags(count: usize, most_bytes: usize) -> BTreeMap<String, Vec<u64>> {
        let long = (3..9000).map(|index| index * 7).collect::<Vec<u64>>();
        let tag = |number: usize| format!("m/{number:04}-{}", "x".repeat(number % most_bytes));
        let many = (0..count).map(|number| (tag(number), vec![number as u64 + 3]));
        many.chain([("long".to_owned(), long), ("z".to_owned(), vec![5])]).collect()
    }

    #[test]
    fn what_was_written_is_found_by_key_and_by_beginning() {
        let (disk, tags) = (SimDisk::new(1), tags(9999, 240));
        let file = write(&disk, &tags);
        assert!(file.levels > 2 && file.live_entries == 77 && file.last.term == 4);
        for (tag, indexes) in tags.iter().step_by(7).chain(tags.iter().filter(|(tag, _)| *tag == "long")) {
            assert_eq!(
                find(&disk, &file, &TagMatch::Eq(tag.clone())).expect("find"),
                postings(indexes),
                "{tag}"
            );
        }
        for prefix in ["", "m/", "m/00", "m/3999", "long", "lz", "zz", "a"] {
            let expected = tags.iter().filter(|(tag, _)| tag.starts_with(prefix));
            let expected: Vec<u64> = expected.flat_map(|(_, indexes)| indexes.clone()).collect();
            let found = find(&disk, &file, &TagMatch::Glob(prefix.to_owned())).expect("find");
            assert_eq!(found, postings(&expected), "{prefix}");
        }
        assert!(find(&disk, &file, &TagMatch::Eq("m/".to_owned())).expect("find").is_empty());
        let mut few = Vec::new();
        let long = Wanted::tags(&TagMatch::Eq("long".to_owned()));
        assert!(!file.find(&disk, &dir(), &long, &mut few, 1000).expect("find"), "more than was allowed");
    }

    #[test]
    fn a_file_without_rows_finds_nothing() {
        let disk = SimDisk::new(1);
        let file = write(&disk, &BTreeMap::new());
        assert!(find(&disk, &file, &TagMatch::Glob(String::new())).expect("find").is_empty());
    }

    proptest! {
        /// A turned bit is noticed, or lies where this look did not come by.
        #[test]
        fn damage_is_noticed_and_never_a_wrong_answer(at: prop::sample::Index, bit in 0u8..8, cut: bool) {
            let (disk, tags) = (SimDisk::new(1), tags(4000, 60));
            let file = write(&disk, &tags);
            let path = dir().join(NAME.file_name());
            let at = at.index(file.len_bytes as usize) as u64;
            if cut { disk.truncate(&path, at).unwrap() } else { disk.flip_bit(&path, at, bit).unwrap() }
            for tag in ["long", "m/2000-xxxxxxxxxxxxxxxxxxxx", "z"] {
                let opened = IndexFile::open(&disk, &dir(), NAME);
                if let Ok(found) = opened.and_then(|file| find(&disk, &file, &TagMatch::Eq(tag.to_owned()))) {
                    prop_assert_eq!(found, postings(&tags[tag]));
                }
            }
            let all = IndexFile::open(&disk, &dir(), NAME)
                .and_then(|file| find(&disk, &file, &TagMatch::Glob(String::new())));
            prop_assert!(all.is_err());
        }

        #[test]
        fn arbitrary_ends_never_panic(head: Vec<u8>, foot: Vec<u8>) {
            let (mut head, mut foot) = (head, foot);
            put_sum(&mut head);
            put_sum(&mut foot);
            let _ = IndexFile::parse(NAME, 100, &head, &foot);
        }
    }
}
