//! Files of a data directory whose checksums are right and whose contents are anything, for [`crate::fuzzing`]: what
//! damages a file rarely gets past its checksums, and what does must be refused all the same.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, Bytes};

use super::disk::{Disk, OpenMode};
use super::entry::{EntryId, EntryKind, LogEntry, Vote};
use super::frame::{self, FrameHead, FrameKind};
use super::index_file::{self, IndexFile, IndexName, IndexWriter};
use super::kept::KeptName;
use super::packed::{self, PackedTable};
use super::postings::{Posting, Wanted};
use super::segment::{self, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::sim_disk::SimDisk;
use super::{Log, LogOptions, Mark, aside, closing, export, stores, table};
use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::filter::TagMatch;

const SEGMENT_BYTES: u64 = 16 << 10;
/// Most of a run of one byte that stands for many.
const MAX_PAYLOAD_BYTES: u64 = 4 << 10;

fn dir() -> PathBuf {
    PathBuf::from("/data/log")
}

fn put_file(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    if disk.exists(path).expect("it works") {
        disk.remove(path).expect("it is there");
    }
    let file = disk.open(path, OpenMode::Create).expect("it is not there");
    file.write_all_at(bytes, 0).expect("there is room");
    file.sync_data().expect("it works");
}

fn at_once<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("there is nothing to wait for"),
    }
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT_BYTES,
        cache_bytes: 2 << 10,
        write_bytes: 2 << 10,
        zero_below_bytes: 700,
        zero_step_bytes: 1 << 10,
        ..LogOptions::default()
    }
}

/// What a file of the log is.
const RAW: u8 = 0;
const SEGMENT: u8 = 1;
const KEPT: u8 = 2;
const INDEX: u8 = 3;
const NOTE: u8 = 4;

/// What stands in a segment or a kept file.
const END: u8 = 0;
/// Kinds of frames are those of [`FrameKind`]; this is none.
const BYTES: u8 = 100;
/// The table that seals a segment, of all entries before it.
const SEAL: u8 = 101;
/// A frame that does not follow the one before.
const UNCHAINED: u8 = 0x80;

/// Writes frames whose checksums are right, each behind the one before.
struct Frames {
    bytes: Vec<u8>,
    chain: u32,
    lsn: u64,
    rows: Vec<(EntryId, u64)>,
}

impl Frames {
    fn put(&mut self, kind: FrameKind, chain: u32, [term, index, stamp_ms]: [u64; 3], payload: &[u8]) {
        let (lsn, synced_lsn) = (self.lsn, self.lsn.checked_sub(1));
        if kind.entry_kind().is_some() {
            self.rows.push((EntryId { term, index }, self.bytes.len() as u64));
        }
        let head = FrameHead { prev_crc: chain, kind, synced_lsn, lsn, term, index, stamp_ms };
        self.chain = frame::encode(&mut self.bytes, &head, payload);
        self.lsn = self.lsn.wrapping_add(1);
    }

    /// Reads what stands in a file.
    fn fill(&mut self, reader: &mut Reader<'_>, is_packed: bool) -> Result<(), Malformed> {
        loop {
            let what = reader.u8()?;
            let kind = match what & !UNCHAINED {
                END => return Ok(()),
                BYTES => {
                    let length = usize::from(reader.u8()?).min(reader.rest().len());
                    self.bytes.put_slice(reader.bytes(length)?);
                    self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
                    continue;
                }
                SEAL => {
                    let at = self.bytes.len() as u64;
                    let table = if is_packed { self.packed(at) } else { self.table(at) };
                    self.put(FrameKind::Table, self.chain, [0; 3], &table);
                    continue;
                }
                kind => match [
                    FrameKind::Blank,
                    FrameKind::Command,
                    FrameKind::Membership,
                    FrameKind::Vote,
                    FrameKind::Truncate,
                    FrameKind::Purge,
                    FrameKind::Table,
                    FrameKind::Witness,
                ]
                .get(usize::from(kind) - 1)
                {
                    Some(kind) => *kind,
                    None => continue,
                },
            };
            let numbers = [reader.varint()?, reader.varint()?, reader.varint()?];
            let payload_bytes = reader.varint()?.min(MAX_PAYLOAD_BYTES) as usize;
            // A payload of which only a part stands there goes on as zeroes.
            let mut payload = reader.bytes(payload_bytes.min(reader.rest().len()))?.to_vec();
            payload.resize(payload_bytes, 0);
            let chain = if what & UNCHAINED == 0 { self.chain } else { !self.chain };
            self.put(kind, chain, numbers, &payload);
        }
    }

    fn table(&self, at: u64) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32_le(self.rows.len() as u32);
        out.put_u32_le(self.rows.len() as u32);
        for (id, _) in &self.rows {
            out.put_u64_le(id.term);
            out.put_u64_le(id.index);
            out.put_u32_le(1);
            out.put_u32_le(0);
        }
        self.rows.iter().for_each(|(_, offset)| out.put_u32_le(*offset as u32));
        out.resize(out.len().next_multiple_of(8), 0);
        out.put_u64_le(at);
        out.put_slice(&table::TRAILER_MAGIC);
        out
    }

    fn packed(&self, at: u64) -> Vec<u8> {
        let mut table = PackedTable::default();
        let mut before = None;
        for (id, offset) in &self.rows {
            if before >= Some(id.index) {
                continue;
            }
            before = Some(id.index);
            if table.push(id.index, *offset).is_err() {
                break;
            }
        }
        if self.rows.len() % 5 == 4 {
            return [&[0xff; 16][..], &at.to_le_bytes(), &packed::TRAILER_MAGIC].concat();
        }
        table.encode(at)
    }
}

fn optional_id(reader: &mut Reader<'_>) -> Result<Option<EntryId>, Malformed> {
    let term = reader.varint()?;
    Ok(match term {
        0 => None,
        _ => Some(EntryId { term, index: reader.varint()? }),
    })
}

/// Puts the files on the disk that `reader` describes.
fn put_files(disk: &SimDisk, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    let (mut chain, mut lsn) = (0, 1);
    loop {
        match reader.u8()? {
            RAW => {
                let (id, length) = (reader.varint()?, usize::from(reader.u16()?).min(reader.rest().len()));
                put_file(disk, &dir().join(segment::file_name(id)), reader.bytes(length)?);
            }
            SEGMENT => {
                let (segment_id, capacity_bytes) = (reader.varint()?, reader.varint()?);
                let first_lsn = lsn + u64::from(reader.u8()?);
                let (vote_term, committed) = (reader.varint()?, reader.bool()?);
                let header = SegmentHeader {
                    segment_id,
                    capacity_bytes,
                    first_lsn,
                    chain,
                    vote: (vote_term > 0).then_some(Vote { term: vote_term, node_id: 7, committed }),
                    purged: optional_id(reader)?,
                    last: optional_id(reader)?,
                    synced_lsn: reader.varint()?,
                };
                let mut bytes = header.encode().to_vec();
                bytes.resize(SEGMENT_HEADER_BYTES as usize, 0);
                let mut frames = Frames { bytes, chain, lsn: first_lsn, rows: Vec::new() };
                let filled = frames.fill(reader, false);
                (chain, lsn) = (frames.chain, frames.lsn);
                put_file(disk, &dir().join(segment::file_name(segment_id)), &frames.bytes);
                filled?;
            }
            KEPT => {
                let (first_segment, last_segment) = (reader.varint()?, reader.varint()?);
                let name = KeptName { first_segment, last_segment, generation: u32::from(reader.u8()?) };
                let bytes = name.header().to_vec();
                let mut frames = Frames { bytes, chain: 0, lsn: 1, rows: Vec::new() };
                let filled = frames.fill(reader, true);
                put_file(disk, &dir().join(name.file_name()), &frames.bytes);
                filled?;
            }
            INDEX => {
                let (first_index, last_index) = (reader.varint()?, reader.varint()?);
                let name = IndexName { first_index, last_index, generation: u32::from(reader.u8()?) };
                let bytes = index_bytes(name, reader)?;
                put_file(disk, &dir().join(name.file_name()), &bytes);
            }
            NOTE => {
                let length = usize::from(reader.u8()?).min(reader.rest().len());
                let text = reader.bytes(length)?;
                let crc = format!(" {:08x}\n", crc32c::crc32c(text));
                put_file(disk, &dir().join(closing::FILE), &[text, crc.as_bytes()].concat());
            }
            _ => return Ok(()),
        }
    }
}

/// An index of blocks whose sums are right; each is the root, and one may name those before it.
fn index_bytes(name: IndexName, reader: &mut Reader<'_>) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::new();
    out.put_slice(&index_file::MAGIC);
    out.put_u32_le(index_file::FORMAT_VERSION);
    out.put_u32_le(name.generation);
    for number in [name.first_index, reader.varint()?, name.last_index] {
        out.put_u64_le(number);
    }
    index_file::put_sum(&mut out);
    let (mut root_at, mut root_bytes) = (0, 0);
    for _ in 0..reader.u8()? {
        let length = usize::from(reader.u16()?).min(reader.rest().len());
        let rows = reader.bytes(length)?;
        (root_at, root_bytes) = (out.len() as u64, rows.len() as u32 + 4);
        out.put_u32_le(index_file::sum_of(root_at, rows));
        out.put_slice(rows);
    }
    let mut foot = Vec::new();
    foot.put_u64_le(root_at);
    foot.put_u32_le(root_bytes);
    foot.put_u32_le(u32::from(reader.u8()?));
    foot.put_u64_le(reader.varint()?);
    foot.put_slice(&index_file::END_MAGIC);
    index_file::put_sum(&mut foot);
    out.put_slice(&foot);
    Ok(out)
}

/// Opens a log of the files that `bytes` describe, and uses what there is. A log that opens goes on, and is the same
/// when it is opened again.
pub fn open_log(bytes: &[u8]) {
    let disk = SimDisk::new(1);
    disk.create_dir_all(&dir()).expect("it works");
    // The end of the bytes is the end of the files.
    let _ = put_files(&disk, &mut Reader::new(bytes, "files"));
    let Some(before) = use_log(&disk, None) else { return };
    let next = next_entry(before.last);
    let after = use_log(&disk, next.clone()).expect("what was opened opens again");
    assert_eq!(after, before, "opening changed the log");
    let after = use_log(&disk, None).expect("what was written to opens again");
    if next.is_some() {
        assert_eq!(after.entries.last(), next.as_ref(), "what was confirmed is lost");
    }
}

/// The entry behind `last`, if there may be one.
fn next_entry(last: Option<EntryId>) -> Option<LogEntry> {
    let last = last.unwrap_or(EntryId { term: 0, index: 0 });
    let id = EntryId { term: last.term.checked_add(1)?, index: last.index.checked_add(1)? };
    Some(LogEntry { id, kind: EntryKind::Command, stamp_ms: 1, payload: Bytes::from_static(b"next") })
}

/// What a log shows.
#[derive(Debug, PartialEq)]
struct Looks {
    last: Option<EntryId>,
    purged: Option<EntryId>,
    vote: Option<Vote>,
    entries: Vec<LogEntry>,
}

/// The entries of the log, if it opens and they can be read; then `appended` is confirmed.
fn use_log(disk: &SimDisk, appended: Option<LogEntry>) -> Option<Looks> {
    let (log, mut writer) = Log::open(Arc::new(disk.clone()), &dir(), options()).ok()?;
    let entries = log.entries(0..u64::MAX, usize::MAX);
    let (last, purged, vote) = (log.last_id(), log.purged(), log.vote());
    let ids = entries.iter().flatten().map(|entry| entry.id).chain(log.last_id());
    for id in ids {
        let _ = (log.payload(id), log.payload_bytes(id), log.has(id));
    }
    let tags = TagMatch::Glob(String::new());
    log.find_tags(&tags, &(0..=u64::MAX), 1000);
    log.live().add(1, 1);
    let _ = log.check_live();
    log.stats();
    if let Some(entry) = appended {
        at_once(log.append(vec![entry], Box::new(|done| done.expect("it is written")))).expect("it follows");
        writer.step(writer.take());
    }
    log.close();
    writer.end_in_order();
    Some(Looks { last, purged, vote, entries: entries.ok()? })
}

/// Logs that open.
pub fn logs() -> Vec<Vec<u8>> {
    let command = |out: &mut Vec<u8>, term: u64, index: u64| {
        out.put_u8(FrameKind::Command as u8);
        [term, index, 1000, 7].into_iter().for_each(|number| put_varint(out, number));
        out.put_slice(b"payload");
    };
    let segment = |out: &mut Vec<u8>, id: u64, last: u64| {
        out.put_u8(SEGMENT);
        put_varint(out, id);
        put_varint(out, SEGMENT_BYTES);
        out.put_slice(&[0, 1, 1, 0]);
        out.put_u8((last > 0) as u8);
        if last > 0 {
            put_varint(out, last);
        }
        put_varint(out, last);
    };
    let mut two = Vec::new();
    segment(&mut two, 1, 0);
    (1..=4).for_each(|index| command(&mut two, 1, index));
    two.put_slice(&[FrameKind::Truncate as u8, 0, 4, 0, 0, FrameKind::Vote as u8, 2, 7, 1, 0]);
    command(&mut two, 2, 4);
    two.put_slice(&[SEAL, END]);
    segment(&mut two, 2, 4);
    (5..=6).for_each(|index| command(&mut two, 2, index));
    two.put_slice(&[FrameKind::Purge as u8, 1, 2, 0, 0, FrameKind::Witness as u8, 0, 0, 0, 0, END]);
    let mut kept = two.clone();
    kept.put_slice(&[KEPT, 0, 0, 1]);
    (1..=2).for_each(|index| command(&mut kept, 1, index));
    kept.put_slice(&[SEAL, END, NOTE, 1, b'6', INDEX, 1, 4, 1, 2, 1, 3, 0, 1, b'x', 0, 1, 4]);
    let mut torn = two.clone();
    torn.truncate(two.len() - 11);
    torn.put_slice(&[BYTES, 3, 1, 2, 3, END]);
    vec![two, kept, torn]
}

/// A file beside the log, by the first byte.
pub fn read_file(bytes: &[u8]) {
    let Some((what, rest)) = bytes.split_first() else { return };
    let (disk, data) = (SimDisk::new(1), PathBuf::from("/data"));
    disk.create_dir_all(&data).expect("it works");
    let summed = |text: &[u8]| [text, format!(" {:08x}\n", crc32c::crc32c(text)).as_bytes()].concat();
    match what {
        0 => read_export(&disk, &data, rest),
        1 => read_export(&disk, &data, &summed_export(rest)),
        2 => {
            put_file(&disk, &data.join(stores::POINTER), &summed(rest));
            let _ = stores::read_pointer(&disk, &data);
        }
        3 => {
            put_file(&disk, &data.join(aside::MARK), rest);
            let mark = Mark::read(&disk, &data).expect("it can be read").expect("it is there");
            mark.write(&disk, &data).expect("it works");
            assert_eq!(Mark::read(&disk, &data).expect("it can be read"), Some(mark));
        }
        4 => {
            put_file(&disk, &data.join(closing::FILE), &summed(rest));
            let _ = closing::read_note(&disk, &data);
        }
        _ => read_index(&disk, rest),
    }
}

fn read_export(disk: &SimDisk, data: &Path, bytes: &[u8]) {
    put_file(disk, &data.join(export::FILE), bytes);
    let mut pairs = Vec::new();
    let read = export::read_export(disk, data, &mut |key, value| {
        pairs.push((key.to_vec(), value.to_vec()));
        Ok(())
    });
    let Ok(Some(last)) = read else { return };
    let all = |each: super::checkpoint::Visit<'_>| -> io::Result<()> {
        pairs.iter().try_for_each(|(key, value)| each(key, value))
    };
    export::write_export(disk, data, last, u64::MAX, all).expect("there is room");
    let mut again = Vec::new();
    let read = export::read_export(disk, data, &mut |key, value| {
        again.push((key.to_vec(), value.to_vec()));
        Ok(())
    });
    assert_eq!(read.expect("it is whole"), Some(last));
    assert_eq!(again, pairs);
}

/// An export of chunks whose sums are right: each a length of two bytes and what stands in it.
fn summed_export(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_slice(&export::MAGIC);
    out.put_u32_le(export::FORMAT_VERSION);
    out.put_u64_le(1);
    out.put_u64_le(5);
    let mut chain = crc32c::crc32c(&out);
    out.put_u32_le(chain);
    let mut reader = Reader::new(bytes, "chunks");
    while let Ok(length) = reader.u16() {
        let chunk = reader.bytes(usize::from(length).min(reader.rest().len())).unwrap_or_default();
        chain = export::chunk_checksum(chain, chunk);
        out.put_u32_le(chunk.len() as u32);
        out.put_u32_le(chain);
        out.put_slice(chunk);
    }
    out
}

fn read_index(disk: &SimDisk, bytes: &[u8]) {
    disk.create_dir_all(&dir()).expect("it works");
    let name = IndexName { first_index: 1, last_index: 90, generation: 2 };
    let Ok(file) = index_bytes(name, &mut Reader::new(bytes, "index")) else { return };
    put_file(disk, &dir().join(name.file_name()), &file);
    let Ok(index) = IndexFile::open(disk, &dir(), name) else { return };
    for tags in [TagMatch::Glob(String::new()), TagMatch::Eq("x".to_owned())] {
        let mut found: Vec<Posting> = Vec::new();
        let _ = index.find(disk, &dir(), &Wanted::tags(&tags), &mut found, 10_000);
    }
}

/// Files that are read.
pub fn files() -> Vec<Vec<u8>> {
    let mut chunk = Vec::new();
    [&b"key"[..], b"value", b"other", b""].iter().for_each(|part| put_blob(&mut chunk, part));
    let chunks = [&(chunk.len() as u16).to_le_bytes()[..], &chunk, &[0, 0]].concat();
    let whole = summed_export(&chunks);
    let disk = SimDisk::new(1);
    disk.create_dir_all(&dir()).expect("it works");
    let name = IndexName { first_index: 1, last_index: 90, generation: 2 };
    let mut writer =
        IndexWriter::begin(&disk, &dir(), name, EntryId { term: 1, index: 90 }).expect("it works");
    for tag in ["a", "x", "xy"] {
        let key = Wanted::tags(&TagMatch::Eq(tag.to_owned())).start;
        let posting = |index| Posting { index, first_position: 0, count: 1 };
        writer.push(&key, &[posting(3), posting(70)]).expect("it works");
    }
    let index = writer.finish(&disk, &dir(), 7).expect("it works");
    let file = disk.open(&dir().join(name.file_name()), OpenMode::Read).expect("it is there");
    let mut rows = vec![0; index.len_bytes as usize - 44 - 36];
    file.read_exact_at(&mut rows, 44).expect("it is there");
    let rows = &rows[4..];
    let index = [&[1, 1][..], &(rows.len() as u16).to_le_bytes(), rows, &[1, 7]].concat();
    let bodies: [(u8, &[u8]); 6] =
        [(0, &whole), (1, &chunks), (2, b"3"), (3, b"1790000000000\nwhy\n"), (4, b"17"), (5, &index)];
    bodies.iter().map(|(what, body)| [&[*what][..], body].concat()).collect()
}
