//! Runs: where a topic's records lie in the log.
//!
//! A topic does not hold records; it holds *runs*, each saying that some consecutive seqs are the records
//! of one log entry from some position on. A topic written one record at a time has as many runs as
//! records, so runs are never kept as structs: they are delta-coded against each other, some five bytes
//! each, in blocks of at most 4 KiB. A block is one value of the checkpoint. The newest block is open;
//! sealed ones do not change and may leave memory.
//!
//! ```text
//! run: flags u8 | count | ts - previous ts | term - previous term | index - previous index |
//!      first position | origin | sizes   (all varints; sizes: one for all, or a blob with one each)
//! origin, of copies: number | its seq - the one expected | its ts - ts
//! ```
//!
//! A copy of a record is a run like any other: it names the same log entry, so no byte of it is written
//! again. What the copy must not show of the record, and where that was first written, stands in the run.

use bytes::Bytes;

use super::seq_set::SeqSet;
use crate::codec::{Malformed, Reader, put_varint, unzigzag, zigzag};
use crate::limits::{RUN_BLOCK_BYTES, SEQ_LIMIT};
use crate::record::Record;
use crate::storage::EntryId;

const SAME_SIZE: u8 = 1;
const HAS_ORIGIN: u8 = 2;
const DROP_NODE: u8 = 4;
const DROP_TAG: u8 = 8;
const KNOWN_FLAGS: u8 = SAME_SIZE | HAS_ORIGIN | DROP_NODE | DROP_TAG;
/// Most records of one coded run: a batch of unlike sizes is cut into several runs, so that every run
/// fits a block.
const MAX_UNLIKE_SIZES: usize = 256;

/// Consecutive records of one topic that lie behind each other in one log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub first_seq: u64,
    pub count: u64,
    pub ts_ms: u64,
    /// The log entry that holds the records.
    pub entry: EntryId,
    /// Position of the first record in that entry.
    pub first_position: u32,
    pub overlay: Overlay,
    /// Of copies: where the records were first written.
    pub origin: Option<RunOrigin>,
}

/// What a copy does not show of the record that it is a copy of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overlay {
    pub drops_node: bool,
    pub drops_tag: bool,
}

impl Overlay {
    /// The record as the copy shows it.
    pub fn apply<'a>(self, record: Record<'a>) -> Record<'a> {
        Record {
            node: record.node.filter(|_| !self.drops_node),
            tag: record.tag.filter(|_| !self.drops_tag),
            ..record
        }
    }

    /// For digests.
    pub(super) fn bits(self) -> u8 {
        u8::from(self.drops_node) | u8::from(self.drops_tag) << 1
    }

    /// What a copy of the copy does not show.
    pub fn and(self, other: Overlay) -> Overlay {
        Overlay {
            drops_node: self.drops_node || other.drops_node,
            drops_tag: self.drops_tag || other.drops_tag,
        }
    }
}

/// Where the records of a run were first written: consecutive seqs of one topic instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunOrigin {
    /// Number of the instance among the origins of the topic that holds the run.
    pub number: u32,
    /// Seq there of the first record.
    pub first_seq: u64,
    /// Time of the first write.
    pub ts_ms: u64,
}

impl Run {
    /// Local records of one entry, shown as they are.
    pub fn of_entry(entry: EntryId, first_position: u32, first_seq: u64, count: u64, ts_ms: u64) -> Run {
        Run { first_seq, count, ts_ms, entry, first_position, overlay: Overlay::default(), origin: None }
    }

    pub fn last_seq(&self) -> u64 {
        self.first_seq + self.count - 1
    }

    /// The part of the run with seqs above `cursor`, `None` if nothing is left.
    pub fn after(mut self, cursor: u64) -> Option<Run> {
        if cursor >= self.last_seq() {
            return None;
        }
        let passed = (cursor + 1).saturating_sub(self.first_seq);
        self.first_seq += passed;
        self.first_position += passed as u32;
        self.count -= passed;
        if let Some(origin) = &mut self.origin {
            origin.first_seq = origin.first_seq.wrapping_add(passed);
        }
        Some(self)
    }

    /// The part of the run with seqs from `first_seq` on, `count` of them; they are in it.
    pub fn part(self, first_seq: u64, count: u64) -> Run {
        debug_assert!(first_seq >= self.first_seq && first_seq + count <= self.first_seq + self.count);
        let rest = self.after(first_seq - 1).unwrap_or(self);
        Run { count, ..rest }
    }
}

/// What the next run is coded against.
#[derive(Debug, Clone, Copy)]
struct Base {
    next_seq: u64,
    ts_ms: u64,
    entry: EntryId,
    /// The seq that follows in the origin of the last copy.
    next_origin_seq: u64,
}

impl Base {
    fn start(first_seq: u64) -> Self {
        Base { next_seq: first_seq, ts_ms: 0, entry: EntryId { term: 0, index: 0 }, next_origin_seq: 0 }
    }

    fn past(self, run: &Run) -> Self {
        Base {
            next_seq: run.first_seq + run.count,
            ts_ms: run.ts_ms,
            entry: run.entry,
            next_origin_seq: run
                .origin
                .map_or(self.next_origin_seq, |origin| origin.first_seq.wrapping_add(run.count)),
        }
    }
}

/// How long a block grows: a run that would make it longer begins the next one, and a block of one run is as long as
/// that. Members may differ in it, as no outcome depends on where blocks end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockBytes(u16);

const _: () = assert!(RUN_BLOCK_BYTES <= u16::MAX as usize);

impl BlockBytes {
    /// Blocks of `bytes`, or of the usual length if that is less. For tests: a short history has many small ones.
    pub fn at_most(bytes: usize) -> Self {
        BlockBytes(bytes.min(RUN_BLOCK_BYTES) as u16)
    }
}

impl Default for BlockBytes {
    fn default() -> Self {
        BlockBytes(RUN_BLOCK_BYTES as u16)
    }
}

/// The newest block of a topic, which still grows.
#[derive(Debug, Clone)]
pub struct OpenBlock {
    first_seq: u64,
    base: Base,
    bytes: Vec<u8>,
}

impl OpenBlock {
    /// An empty block whose first run will start at `first_seq`.
    pub fn new(first_seq: u64) -> Self {
        OpenBlock { first_seq, base: Base::start(first_seq), bytes: Vec::new() }
    }

    /// A block that was stored while it was open.
    pub fn restore(first_seq: u64, bytes: &[u8]) -> Result<Self, Malformed> {
        let mut base = Base::start(first_seq);
        for run in runs(first_seq, bytes) {
            base = base.past(&run?);
        }
        Ok(OpenBlock { first_seq, base, bytes: bytes.to_vec() })
    }

    pub fn first_seq(&self) -> u64 {
        self.first_seq
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends the start of `run`, as much of it as one coded run may hold, and says how many records
    /// that was; 0 means that the block is full. `sizes_bytes` has the size of each record.
    pub fn push(&mut self, run: &Run, sizes_bytes: &[u32], block_bytes: BlockBytes) -> usize {
        debug_assert_eq!(run.first_seq, self.base.next_seq);
        debug_assert_eq!(run.count as usize, sizes_bytes.len());
        let same = sizes_bytes.iter().all(|size| *size == sizes_bytes[0]);
        let taken = if same { sizes_bytes.len() } else { sizes_bytes.len().min(MAX_UNLIKE_SIZES) };
        let mut coded = Vec::with_capacity(32);
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        coded.push(
            flag(same, SAME_SIZE)
                | flag(run.origin.is_some(), HAS_ORIGIN)
                | flag(run.overlay.drops_node, DROP_NODE)
                | flag(run.overlay.drops_tag, DROP_TAG),
        );
        put_varint(&mut coded, taken as u64);
        put_varint(&mut coded, zigzag(run.ts_ms.wrapping_sub(self.base.ts_ms) as i64));
        put_varint(&mut coded, zigzag(run.entry.term.wrapping_sub(self.base.entry.term) as i64));
        put_varint(&mut coded, zigzag(run.entry.index.wrapping_sub(self.base.entry.index) as i64));
        put_varint(&mut coded, run.first_position as u64);
        if let Some(origin) = run.origin {
            put_varint(&mut coded, u64::from(origin.number));
            put_varint(&mut coded, zigzag(origin.first_seq.wrapping_sub(self.base.next_origin_seq) as i64));
            put_varint(&mut coded, zigzag(origin.ts_ms.wrapping_sub(run.ts_ms) as i64));
        }
        if same {
            put_varint(&mut coded, sizes_bytes[0] as u64);
        } else {
            let mut sizes = Vec::with_capacity(2 * taken);
            sizes_bytes[..taken].iter().for_each(|size| put_varint(&mut sizes, *size as u64));
            put_varint(&mut coded, sizes.len() as u64);
            coded.extend_from_slice(&sizes);
        }
        if !self.bytes.is_empty() && self.bytes.len() + coded.len() > usize::from(block_bytes.0) {
            return 0;
        }
        self.bytes.extend_from_slice(&coded);
        self.base = self.base.past(&Run { count: taken as u64, ..*run });
        taken
    }
}

/// The runs of a block, in order of seq.
pub fn runs(first_seq: u64, block: &[u8]) -> RunIter<'_> {
    RunIter { reader: Reader::new(block, "block of runs"), base: Base::start(first_seq) }
}

/// Decodes the runs of one block; ends after the first error.
#[derive(Clone)]
pub struct RunIter<'a> {
    reader: Reader<'a>,
    base: Base,
}

/// What each record of a coded run counts for.
#[derive(Clone)]
pub enum Sizes<'a> {
    Same(u64),
    /// One varint each.
    Each(Reader<'a>),
}

/// [`Sizes`], ready to be added up.
pub enum SizeTable {
    Same(u64),
    Each(Vec<u64>),
}

impl Sizes<'_> {
    /// The sizes of the `count` records of a run.
    pub fn table(self, count: u64) -> Result<SizeTable, Malformed> {
        Ok(match self {
            Sizes::Same(size) => SizeTable::Same(size),
            Sizes::Each(mut reader) => SizeTable::Each(
                (0..count).map(|_| reader.varint_u32().map(u64::from)).collect::<Result<_, _>>()?,
            ),
        })
    }
}

impl SizeTable {
    /// What each of `count` records counts for, from the one at `offset` in the run on.
    pub fn list(&self, offset: u64, count: u64) -> Vec<u32> {
        match self {
            SizeTable::Same(size) => vec![*size as u32; count as usize],
            SizeTable::Each(sizes) => {
                let sizes = sizes.iter().skip(offset as usize).take(count as usize);
                sizes.map(|size| *size as u32).collect()
            }
        }
    }

    /// What `count` records count for from the one at `offset` in the run on.
    pub fn sum(&self, offset: u64, count: u64) -> u64 {
        match self {
            SizeTable::Same(size) => size * count,
            SizeTable::Each(sizes) => sizes.iter().skip(offset as usize).take(count as usize).sum(),
        }
    }
}

impl<'a> RunIter<'a> {
    /// The next run and the sizes of its records; `None` at the end of the block.
    pub fn next_sized(&mut self) -> Result<Option<(Run, Sizes<'a>)>, Malformed> {
        if self.reader.is_empty() { Ok(None) } else { self.decode().map(Some) }
    }

    fn decode(&mut self) -> Result<(Run, Sizes<'a>), Malformed> {
        let reader = &mut self.reader;
        let flags = reader.u8()?;
        let count = reader.varint()?;
        if count == 0 || flags & !KNOWN_FLAGS != 0 {
            return Err(reader.malformed());
        }
        let ts_ms = self.base.ts_ms.wrapping_add(unzigzag(reader.varint()?) as u64);
        let mut run = Run {
            first_seq: self.base.next_seq,
            count,
            ts_ms,
            entry: EntryId {
                term: self.base.entry.term.wrapping_add(unzigzag(reader.varint()?) as u64),
                index: self.base.entry.index.wrapping_add(unzigzag(reader.varint()?) as u64),
            },
            first_position: reader.varint_u32()?,
            overlay: Overlay { drops_node: flags & DROP_NODE != 0, drops_tag: flags & DROP_TAG != 0 },
            origin: None,
        };
        // Seqs and times are counted on from; where a checkpoint has others, that is not found out by overflowing.
        if self.base.next_seq.saturating_add(count) >= SEQ_LIMIT || ts_ms >= SEQ_LIMIT {
            return Err(reader.malformed());
        }
        if flags & HAS_ORIGIN != 0 {
            run.origin = Some(RunOrigin {
                number: reader.varint_u32()?,
                first_seq: self.base.next_origin_seq.wrapping_add(unzigzag(reader.varint()?) as u64),
                ts_ms: ts_ms.wrapping_add(unzigzag(reader.varint()?) as u64),
            });
        }
        let sizes = match flags & SAME_SIZE {
            0 => Sizes::Each(Reader::new(reader.blob()?, "block of runs")),
            _ => Sizes::Same(u64::from(reader.varint_u32()?)),
        };
        self.base = self.base.past(&run);
        Ok((run, sizes))
    }
}

impl Iterator for RunIter<'_> {
    type Item = Result<Run, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.is_empty() {
            return None;
        }
        let run = self.decode().map(|(run, _)| run);
        if run.is_err() {
            self.reader = Reader::new(&[], "block of runs");
        }
        Some(run)
    }
}

/// A place in a block from which records are given up, oldest first. It keeps what it has decoded, so that
/// giving up one record costs the same wherever in the block it lies. The block itself is handed in with
/// every call; it may grow in between.
#[derive(Debug, Clone)]
pub struct FrontCursor {
    /// Offset of the next coded run, and what that is coded against.
    offset: usize,
    base: Base,
    run: Option<FrontRun>,
}

/// What is left of the run at the cursor.
#[derive(Debug, Clone)]
struct FrontRun {
    left: Run,
    sizes: FrontSizes,
}

#[derive(Debug, Clone, Copy)]
enum FrontSizes {
    Same(u64),
    /// Offset of the next record's size.
    Each(usize),
}

/// Records of one run that a cursor has passed.
#[derive(Debug, Clone, Copy)]
pub struct Passed {
    pub count: u64,
    pub bytes: u64,
    pub last_seq: u64,
    pub ts_ms: u64,
}

impl FrontCursor {
    /// The place of the record `from_seq` in the block that starts at `first_seq`.
    pub fn at(first_seq: u64, block: &[u8], from_seq: u64) -> Result<Self, Malformed> {
        let mut cursor = FrontCursor { offset: 0, base: Base::start(first_seq), run: None };
        while let Some(run) = cursor.run(block)? {
            if run.first_seq >= from_seq {
                break;
            }
            cursor.pass(block, from_seq - run.first_seq, 0, u64::MAX)?;
        }
        Ok(cursor)
    }

    /// What is left of the oldest run; `None` at the end of the block.
    pub fn run(&mut self, block: &[u8]) -> Result<Option<Run>, Malformed> {
        if self.run.is_none() {
            let rest = block.get(self.offset..).unwrap_or_default();
            let mut iter = RunIter { reader: Reader::new(rest, "block of runs"), base: self.base };
            let Some((left, sizes)) = iter.next_sized()? else { return Ok(None) };
            self.offset = block.len() - iter.reader.rest().len();
            self.base = iter.base;
            let sizes = match sizes {
                Sizes::Same(size) => FrontSizes::Same(size),
                // They are the last part of a coded run.
                Sizes::Each(reader) => FrontSizes::Each(self.offset - reader.rest().len()),
            };
            self.run = Some(FrontRun { left, sizes });
        }
        Ok(self.run.as_ref().map(|run| run.left))
    }

    /// Passes records of the oldest run until they are at least `count` and count for at least `bytes`, or they
    /// are `most`, or the run ends. There must be a run.
    pub fn pass(&mut self, block: &[u8], count: u64, bytes: u64, most: u64) -> Result<Passed, Malformed> {
        let run = self.run.as_mut().ok_or(Malformed("block of runs"))?;
        let most = most.min(run.left.count);
        let (mut passed_count, mut passed_bytes) = (0, 0);
        match &mut run.sizes {
            FrontSizes::Same(size) => {
                passed_count = count.max(bytes.div_ceil((*size).max(1))).min(most);
                passed_bytes = passed_count * *size;
            }
            FrontSizes::Each(at) => {
                let rest = block.get(*at..self.offset).ok_or(Malformed("block of runs"))?;
                let mut reader = Reader::new(rest, "block of runs");
                while passed_count < most && (passed_count < count || passed_bytes < bytes) {
                    passed_bytes += reader.varint()?;
                    passed_count += 1;
                }
                *at = self.offset - reader.rest().len();
            }
        }
        let last_seq = run.left.first_seq + passed_count - 1;
        let ts_ms = run.left.ts_ms;
        self.run = match run.left.after(last_seq) {
            Some(left) => Some(FrontRun { left, sizes: run.sizes }),
            None => None,
        };
        Ok(Passed { count: passed_count, bytes: passed_bytes, last_seq, ts_ms })
    }
}

/// A sealed block: immutable, shared with readers.
#[derive(Debug, Clone)]
pub struct SealedBlock {
    pub first_seq: u64,
    pub bytes: Bytes,
}

impl SealedBlock {
    /// The index of the log entry that each of its runs names, but for runs of which nothing is live: it ends
    /// before `from_seq`, or what does not was removed.
    pub fn entry_indexes_from(
        &self,
        from_seq: u64,
        removed: &SeqSet,
    ) -> impl Iterator<Item = Result<u64, Malformed>> {
        let is_live = move |run: &Run| removed.has_absent_in(run.first_seq.max(from_seq)..=run.last_seq());
        let runs = runs(self.first_seq, &self.bytes);
        runs.filter(move |run| run.as_ref().map_or(true, is_live)).map(|run| Ok(run?.entry.index))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_topic_written_one_by_one_costs_few_bytes_per_record() {
        let mut block = OpenBlock::new(1);
        let mut count = 0;
        loop {
            let entry = EntryId { term: 3, index: 1_000_000 + count * 3 };
            let run = Run::of_entry(entry, 0, 1 + count, 1, 1_790_000_000_000 + count);
            if block.push(&run, &[300], BlockBytes::default()) == 0 {
                break;
            }
            count += 1;
        }
        assert!(block.bytes().len() <= RUN_BLOCK_BYTES);
        assert!(count >= 450, "only {count} runs fit a block");
    }

    fn any_shown() -> impl Strategy<Value = (Overlay, Option<RunOrigin>)> {
        let origin = (0u32..4, 1u64..1000, 0u64..1 << 41).prop_map(|(number, first_seq, ts_ms)| RunOrigin {
            number,
            first_seq,
            ts_ms,
        });
        (any::<bool>(), any::<bool>(), proptest::option::of(origin))
            .prop_map(|(drops_node, drops_tag, origin)| (Overlay { drops_node, drops_tag }, origin))
    }

    proptest! {
        #[test]
        fn runs_come_back_from_their_block(
            batches in proptest::collection::vec(
                (proptest::collection::vec(1u32..2000, 1..600), 0u64..50, 0u64..9, any::<bool>(), any_shown()), 1..20),
            block_bytes in prop_oneof![Just(usize::MAX), 0usize..400],
        ) {
            let mut blocks = vec![OpenBlock::new(1)];
            let (mut next_seq, mut ts_ms, mut index) = (1, 1_000_000, 10);
            let mut expected = Vec::new();
            for (mut sizes, later_ms, gap, same, (overlay, origin)) in batches {
                if same { let first = sizes[0]; sizes.iter_mut().for_each(|size| *size = first); }
                ts_ms += later_ms;
                index += 1 + gap;
                let mut done = 0;
                while done < sizes.len() {
                    let run = Run {
                        first_seq: next_seq, count: (sizes.len() - done) as u64, ts_ms,
                        entry: EntryId { term: 2, index }, first_position: done as u32, overlay,
                        origin: origin.map(|it| RunOrigin { first_seq: it.first_seq + done as u64, ..it }),
                    };
                    let taken = blocks.last_mut().unwrap().push(&run, &sizes[done..], BlockBytes::at_most(block_bytes));
                    if taken == 0 { blocks.push(OpenBlock::new(next_seq)); continue; }
                    expected.push(Run { count: taken as u64, ..run });
                    next_seq += taken as u64;
                    done += taken;
                }
            }
            let decoded: Vec<Run> =
                blocks.iter().flat_map(|block| runs(block.first_seq(), block.bytes())).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(decoded, expected);
            let last = blocks.last().unwrap();
            let restored = OpenBlock::restore(last.first_seq(), last.bytes()).unwrap();
            prop_assert_eq!(restored.base.next_seq, next_seq);
        }

        #[test]
        fn records_are_passed_one_by_one_as_all_at_once(
            batches in proptest::collection::vec(proptest::collection::vec(1u32..9, 1..60), 1..30),
            steps in proptest::collection::vec((0u64..40, 0u64..90), 1..200),
        ) {
            let mut block = OpenBlock::new(7);
            let mut sizes: Vec<(u64, u64)> = Vec::new();
            for (batch, index) in batches.iter().zip(10..) {
                let (first_seq, count) = (7 + sizes.len() as u64, batch.len() as u64);
                let run = Run::of_entry(EntryId { term: 2, index }, 0, first_seq, count, index * 3);
                prop_assert_eq!(block.push(&run, batch, BlockBytes::default()), batch.len());
                sizes.extend(batch.iter().map(|size| (u64::from(*size), index)));
            }
            let mut passed_records = 0;
            let mut cursor = FrontCursor::at(7, block.bytes(), 7).unwrap();
            for (count, bytes) in steps {
                let Some(run) = cursor.run(block.bytes()).unwrap() else { break };
                prop_assert_eq!(run.first_seq, 7 + passed_records as u64);
                let passed = cursor.pass(block.bytes(), count, bytes, u64::MAX).unwrap();
                let these = &sizes[passed_records..passed_records + passed.count as usize];
                let sum = |sizes: &[(u64, u64)]| sizes.iter().map(|(size, _)| size).sum::<u64>();
                prop_assert_eq!(passed.bytes, sum(these));
                passed_records += these.len();
                let is_end = sizes.get(passed_records).is_none_or(|(_, index)| *index != run.entry.index);
                prop_assert!(is_end || (passed.count >= count && passed.bytes >= bytes));
                let but_last = &these[..these.len().saturating_sub(1)];
                prop_assert!(these.len() as u64 <= count || sum(but_last) < bytes, "more than was asked for");
                let mut again = FrontCursor::at(7, block.bytes(), 7 + passed_records as u64).unwrap();
                prop_assert_eq!(again.run(block.bytes()), cursor.run(block.bytes()));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            for run in runs(1, &bytes) { if run.is_err() { break; } }
        }
    }
}
