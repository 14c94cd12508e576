//! A second copy of the state, for a member that has nobody to fetch it from.
//!
//! A checkpoint that is damaged can be made again from the log, as long as the log is whole. Once the log was
//! purged, a member of a larger cluster fetches the state from another one; a cluster of one has only itself.
//! So it keeps its checkpoint a second time, as of one point, in one file of a plain form that shares no code
//! and no pages with the first, and its log is never purged beyond that point.
//!
//! The file is a header with the last entry that it covers; chunks of at most 256 KiB, each behind its length
//! and a checksum that carries on the one before; and an empty chunk at the end. So a flipped bit, a lost, swapped
//! or repeated piece and a missing end all show, and neither writing nor reading holds more than a chunk in
//! memory. It is made under another name and renamed: there is always a whole one, or none yet.
use std::io;
use std::path::Path;

use bytes::BufMut;

use super::checkpoint::Visit;
use super::disk::{Disk, DiskFile, OpenMode};
use super::entry::EntryId;
use super::verdict::{Verdict, is_unreadable, with_second_try};
use crate::codec::{Reader, put_blob};

pub(super) const FILE: &str = "export";
pub(super) const MAGIC: [u8; 8] = *b"ANTPHEXP";
pub(super) const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
/// Before a chunk: its length and its checksum.
const CHUNK_HEAD_BYTES: usize = 8;
/// A chunk is written when it has grown to this; the item that goes beyond it belongs to it.
const CHUNK_BYTES: usize = 256 << 10;
/// Above every chunk that is written: a checkpoint's values are small.
const CHUNK_BYTES_MAX: usize = 2 * CHUNK_BYTES;

/// Writes everything that `source` hands out as the state as of `last`, in the place of an earlier export in
/// `dir`. Durable on return. Gives its length in bytes. An error leaves the earlier one; `StorageFull` if it would be
/// longer than `max_bytes`.
pub fn write_export(
    disk: &dyn Disk,
    dir: &Path,
    last: EntryId,
    max_bytes: u64,
    source: impl FnOnce(Visit<'_>) -> io::Result<()>,
) -> io::Result<u64> {
    let staged = dir.join(format!("{FILE}.tmp"));
    if disk.exists(&staged)? {
        disk.remove(&staged)?;
    }
    let file = disk.open(&staged, OpenMode::Create)?;
    let len_bytes = match fill(file.as_ref(), last, max_bytes, source) {
        Ok(len_bytes) => len_bytes,
        Err(error) => {
            // Half of it is of no use, and a full disk needs the room.
            let _ = disk.remove(&staged);
            return Err(error);
        }
    };
    disk.rename(&staged, &dir.join(FILE))?;
    disk.sync_dir(dir)?;
    Ok(len_bytes)
}

fn fill(
    file: &dyn DiskFile,
    last: EntryId,
    max_bytes: u64,
    source: impl FnOnce(Visit<'_>) -> io::Result<()>,
) -> io::Result<u64> {
    let mut out = Out { file, max_bytes, end_bytes: 0, chain: 0, chunk: Vec::new() };
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.put_slice(&MAGIC);
    header.put_u32_le(FORMAT_VERSION);
    header.put_u64_le(last.term);
    header.put_u64_le(last.index);
    out.chain = crc32c::crc32c(&header);
    header.put_u32_le(out.chain);
    out.put(&header)?;
    source(&mut |key, value| {
        put_blob(&mut out.chunk, key);
        put_blob(&mut out.chunk, value);
        if out.chunk.len() >= CHUNK_BYTES { out.put_chunk() } else { Ok(()) }
    })?;
    if !out.chunk.is_empty() {
        out.put_chunk()?;
    }
    out.put_chunk()?;
    file.sync_data()?;
    Ok(out.end_bytes)
}

struct Out<'a> {
    file: &'a dyn DiskFile,
    max_bytes: u64,
    end_bytes: u64,
    /// Checksum of what was written last.
    chain: u32,
    chunk: Vec<u8>,
}

impl Out<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end_bytes = self.end_bytes + bytes.len() as u64;
        if end_bytes > self.max_bytes {
            let what = format!("it needs more than the {} bytes that there is room for", self.max_bytes);
            return Err(io::Error::new(io::ErrorKind::StorageFull, what));
        }
        self.file.write_all_at(bytes, self.end_bytes)?;
        self.end_bytes = end_bytes;
        Ok(())
    }

    fn put_chunk(&mut self) -> io::Result<()> {
        let chunk = std::mem::take(&mut self.chunk);
        self.chain = chunk_checksum(self.chain, &chunk);
        let mut head = Vec::with_capacity(CHUNK_HEAD_BYTES);
        head.put_u32_le(chunk.len() as u32);
        head.put_u32_le(self.chain);
        self.put(&head)?;
        self.put(&chunk)?;
        self.chunk = chunk;
        self.chunk.clear();
        Ok(())
    }
}

pub(super) fn chunk_checksum(before: u32, chunk: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&before.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &(chunk.len() as u32).to_le_bytes()), chunk)
}

/// Hands everything in the export in `dir` to `each`, in order, and gives the last entry that it covers;
/// `None` if there is no export. `InvalidData` if it is damaged, or cannot be read by the disk: what was handed out is
/// worth nothing then.
pub fn read_export(disk: &dyn Disk, dir: &Path, each: Visit<'_>) -> io::Result<Option<EntryId>> {
    let path = dir.join(FILE);
    if !disk.exists(&path)? {
        return Ok(None);
    }
    let damaged = |at_bytes: u64| {
        let what = format!("the exported state {} is damaged at byte {at_bytes}", path.display());
        io::Error::new(io::ErrorKind::InvalidData, what)
    };
    // As good as damaged.
    let unread = |error: io::Error| match is_unreadable(&error) {
        true => {
            let what = format!("the disk cannot read the exported state {}: {error}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        }
        false => error,
    };
    let file = with_second_try(|| disk.open(&path, OpenMode::Read)).map_err(unread)?;
    let len_bytes = file.len_bytes()?;
    let mut at_bytes = 0;
    let mut take = |count: usize| -> io::Result<(u64, Vec<u8>)> {
        if count as u64 > len_bytes - at_bytes {
            return Err(damaged(len_bytes));
        }
        let mut bytes = vec![0; count];
        with_second_try(|| file.read_exact_at(&mut bytes, at_bytes)).map_err(unread)?;
        let from = at_bytes;
        at_bytes += count as u64;
        Ok((from, bytes))
    };
    let (_, header) = take(HEADER_BYTES)?;
    let malformed = |_| damaged(0);
    let mut reader = Reader::new(&header, "export");
    let magic = reader.bytes(MAGIC.len()).map_err(malformed)? == MAGIC;
    let version = reader.u32().map_err(malformed)?;
    let (term, index) = (reader.u64().map_err(malformed)?, reader.u64().map_err(malformed)?);
    let mut chain = reader.u32().map_err(malformed)?;
    if !magic || chain != crc32c::crc32c(&header[..HEADER_BYTES - 4]) {
        return Err(damaged(0));
    }
    if version > FORMAT_VERSION {
        let known = format!("has format version {version}, and this program knows up to {FORMAT_VERSION}");
        return Err(Verdict::Newer.error(format!("the exported state {} {known}", path.display())));
    }
    loop {
        let (from, head) = take(CHUNK_HEAD_BYTES)?;
        let mut reader = Reader::new(&head, "export");
        let len = reader.u32().map_err(|_| damaged(from))? as usize;
        let checksum = reader.u32().map_err(|_| damaged(from))?;
        if len > CHUNK_BYTES_MAX {
            return Err(damaged(from));
        }
        let (_, chunk) = take(len)?;
        chain = chunk_checksum(chain, &chunk);
        if chain != checksum {
            return Err(damaged(from));
        }
        if chunk.is_empty() {
            let (end, rest) = take(0)?;
            debug_assert!(rest.is_empty());
            return if end == len_bytes { Ok(Some(EntryId { term, index })) } else { Err(damaged(end)) };
        }
        let mut items = Reader::new(&chunk, "export");
        while !items.is_empty() {
            let key = items.blob().map_err(|_| damaged(from))?;
            each(key, items.blob().map_err(|_| damaged(from))?)?;
        }
    }
}

/// Removes the export in `dir`, if there is one.
pub fn remove_export(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let path = dir.join(FILE);
    if disk.exists(&path)? {
        disk.remove(&path)?;
        disk.sync_dir(dir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::storage::{SimDisk, create_dir_durably};

    fn dir() -> PathBuf {
        PathBuf::from("/data")
    }

    fn items(count: u32, salt: u8) -> Vec<(Vec<u8>, Vec<u8>)> {
        (0..count).map(|n| (n.to_be_bytes().to_vec(), vec![salt; 1 + (n as usize * 37) % 6000])).collect()
    }

    fn write(disk: &SimDisk, index: u64, items: &[(Vec<u8>, Vec<u8>)]) -> io::Result<u64> {
        write_up_to(disk, index, items, u64::MAX)
    }

    fn write_up_to(
        disk: &SimDisk,
        index: u64,
        items: &[(Vec<u8>, Vec<u8>)],
        max_bytes: u64,
    ) -> io::Result<u64> {
        create_dir_durably(disk, &dir())?;
        write_export(disk, &dir(), EntryId { term: 3, index }, max_bytes, |each| {
            items.iter().try_for_each(|(key, value)| each(key, value))
        })
    }

    type Read = Option<(EntryId, Vec<(Vec<u8>, Vec<u8>)>)>;

    fn read(disk: &SimDisk) -> io::Result<Read> {
        let mut found = Vec::new();
        let last = read_export(disk, &dir(), &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            Ok(())
        })?;
        Ok(last.map(|last| (last, found)))
    }

    #[test]
    fn an_export_comes_back_as_it_was_written() {
        let disk = SimDisk::new(1);
        for count in [0, 1, 300] {
            let items = items(count, 7);
            write(&disk, u64::from(count), &items).unwrap();
            assert_eq!(read(&disk).unwrap(), Some((EntryId { term: 3, index: u64::from(count) }, items)));
        }
        remove_export(&disk, &dir()).unwrap();
        assert_eq!(read(&disk).unwrap(), None);
    }

    #[test]
    fn one_for_which_there_is_no_room_leaves_the_one_before_and_nothing_else() {
        let disk = SimDisk::new(1);
        let (before, items) = (items(3, 7), items(300, 8));
        write(&disk, 1, &before).unwrap();
        let len_bytes = write(&SimDisk::new(2), 2, &items).unwrap();
        let error = write_up_to(&disk, 2, &items, len_bytes - 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(read(&disk).unwrap(), Some((EntryId { term: 3, index: 1 }, before)));
        assert!(!disk.exists(&dir().join(format!("{FILE}.tmp"))).unwrap());
        assert_eq!(write_up_to(&disk, 2, &items, len_bytes).unwrap(), len_bytes);
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let disk = SimDisk::new(1);
        let len_bytes = write(&disk, 9, &items(300, 7)).unwrap();
        assert!(len_bytes > 2 * CHUNK_BYTES as u64, "several chunks");
        let path = dir().join(FILE);
        for at in (0..64).chain((64..len_bytes).step_by(4099)).chain(len_bytes - 8..len_bytes) {
            disk.flip_bit(&path, at, (at % 8) as u8).unwrap();
            assert_eq!(read(&disk).unwrap_err().kind(), io::ErrorKind::InvalidData, "bit at {at}");
            disk.flip_bit(&path, at, (at % 8) as u8).unwrap();
        }
        assert!(read(&disk).unwrap().is_some());
        for len in (0..len_bytes).rev().step_by(7919) {
            disk.truncate(&path, len).unwrap();
            assert_eq!(read(&disk).unwrap_err().kind(), io::ErrorKind::InvalidData, "cut to {len}");
        }
    }

    #[test]
    fn one_that_the_disk_cannot_read_is_damaged_and_named_if_it_cannot_twice() {
        let disk = SimDisk::new(1);
        write(&disk, 9, &items(300, 7)).unwrap();
        let path = dir().join(FILE);
        for after in 0..8 {
            disk.fail_reads_after(&path, after, 1).unwrap();
            assert!(read(&disk).expect("the second try reads it").is_some());
            disk.fail_reads_after(&path, after, u32::MAX).unwrap();
            let error = read(&disk).expect_err("it cannot be read");
            assert_eq!(Verdict::of(&error), Verdict::Damage, "{error}");
            assert!(error.to_string().contains("/data/export"), "{error}");
        }
    }

    #[test]
    fn an_export_of_a_newer_format_is_no_damage() {
        let disk = SimDisk::new(1);
        write(&disk, 9, &items(3, 7)).unwrap();
        let file = disk.open(&dir().join(FILE), OpenMode::Write).unwrap();
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).unwrap();
        header[8..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
        let crc = crc32c::crc32c(&header[..HEADER_BYTES - 4]);
        header[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&header, 0).unwrap();
        assert_eq!(Verdict::of(&read(&disk).unwrap_err()), Verdict::Newer);
    }

    #[test]
    fn a_kill_at_any_point_leaves_the_old_one_or_the_new_one() {
        let (old, new) = (items(100, 1), items(120, 2));
        let (mut olds, mut news) = (0, 0);
        for kill_at in 1..40 {
            let disk = SimDisk::new(kill_at);
            write(&disk, 1, &old).unwrap();
            disk.fail_after(kill_at);
            let is_done = write(&disk, 2, &new).is_ok();
            let left = disk.crash(kill_at);
            match read(&left).unwrap() {
                Some((last, items)) if last.index == 2 && items == new => news += 1,
                Some((last, items)) if last.index == 1 && items == old && !is_done => olds += 1,
                other => panic!("killed at {kill_at}: {:?}", other.map(|(last, _)| last)),
            }
            // What it left is in nobody's way.
            write(&left, 3, &old).unwrap();
        }
        assert!(olds > 2 && news > 2, "{olds} {news}");
    }
}
