//! Looking for the records of a topic that a delete by tag means.
//!
//! The log's index says which records of the whole log carry a matching tag, by their place in the log. What is
//! needed beside it is which seq a place has in this topic: that is in the topic's runs, and of each block of
//! them the lowest and the highest entry is known. So only blocks are read that may hold a match; and where the
//! index does not cover what a run names, the records are read themselves. An index that lags or is damaged
//! costs time and nothing else.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::blocks::Blocks;
use super::catalog::SharedTopic;
use super::delete::{Ranges, match_run, push_range};
use super::run::{Run, SealedBlock, runs};
use super::topic::Topic;
use crate::codec::Malformed;
use crate::filter::TagMatch;
use crate::limits::{MAX_DELETE_RANGES, MAX_LOOK_POSTINGS, MIN_LOOK_POSTINGS};
use crate::record::EntryRecords;
use crate::storage::{EntryId, Found, Log};

/// Blocks that one step looks at.
const STEP_BLOCKS: usize = 64;

/// A look at one topic, which may be gone on with when the topic has grown.
pub struct Look {
    topic: Arc<SharedTopic>,
    tags: TagMatch,
    /// What matches up to `seen_seq` and was not taken out yet.
    pub ranges: Ranges,
    pub seen_seq: u64,
    found: Option<Found>,
    /// Blocks that hold some of `ranges`, and how many they may be.
    found_blocks: usize,
    max_blocks: usize,
}

/// What one block has to say.
enum Glance {
    /// Nothing matches in what is up to the last seq.
    Nothing,
    /// This block is needed.
    Cold { block_first_seq: u64 },
    /// What the index knows of the block, runs that have to be read, and the seq at which the block ends.
    Block { ranges: Ranges, unindexed: Vec<Run>, end_seq: u64 },
}

impl Look {
    /// Stops, full, when what it found is in so many blocks.
    pub fn new(topic: Arc<SharedTopic>, tags: TagMatch, max_blocks: usize) -> Self {
        let ranges = Ranges::new();
        Look { topic, tags, ranges, seen_seq: 0, found: None, found_blocks: 0, max_blocks }
    }

    /// Whether what it found is as much as one command may list.
    pub fn is_full(&self) -> bool {
        self.found_blocks >= self.max_blocks || self.ranges.len() >= MAX_DELETE_RANGES
    }

    /// What it found was dealt with.
    pub fn forget_ranges(&mut self) {
        self.ranges = Ranges::new();
        self.found_blocks = 0;
    }

    /// The topic has grown since: what the index says is asked for anew.
    pub fn forget_found(&mut self) {
        self.found = None;
    }

    /// Looks on, at a bounded number of blocks, up to `last_seq`; `true` when it is there or full, or the topic was
    /// deleted. `fetch_block` gets a block from the checkpoint, `fetch_entry` the entry of a run, which is held while it
    /// is looked at and no longer; if that has no room for it, the step ends before it. An error that the topic's own
    /// changes explain is none. Blocks on the disk.
    pub fn step(
        &mut self,
        log: &Log,
        last_seq: u64,
        fetch_block: impl Fn(u64) -> io::Result<Option<SealedBlock>>,
        mut fetch_entry: impl FnMut(&Run) -> io::Result<Option<EntryRecords>>,
    ) -> io::Result<bool> {
        let mut fetched: Option<SealedBlock> = None;
        for _ in 0..STEP_BLOCKS {
            if self.topic.is_deleted() || self.is_full() {
                return Ok(true);
            }
            let found = match &self.found {
                Some(found) => found,
                None => {
                    let (indexes, max) = self.topic.read().look_bounds(self.seen_seq);
                    self.found.insert(log.find_tags(&self.tags, &indexes, max))
                }
            };
            let (glance, removal_count) = {
                let topic = self.topic.read();
                // What is below is gone.
                self.seen_seq = self.seen_seq.max(topic.earliest_seq - 1);
                (topic.glance(self.seen_seq, last_seq, fetched.as_ref(), found)?, topic.removal_count)
            };
            let outcome = match glance {
                Glance::Nothing => {
                    self.seen_seq = self.seen_seq.max(last_seq);
                    return Ok(true);
                }
                Glance::Cold { block_first_seq } => fetch_block(block_first_seq).and_then(|block| {
                    fetched = Some(block.ok_or(Malformed("topic: a block of runs is missing"))?);
                    Ok(())
                }),
                Glance::Block { mut ranges, unindexed, end_seq } => {
                    let read_to = read(&unindexed, &self.tags, &mut ranges, &mut fetch_entry);
                    match read_to.map(|read_to| (read_to, read_to.unwrap_or(end_seq))) {
                        Err(error) => Err(error),
                        Ok((read_to, end_seq)) => {
                            self.add(ranges, end_seq);
                            if read_to.is_some() {
                                return Ok(false);
                            }
                            Ok(())
                        }
                    }
                }
            };
            if let Err(error) = outcome {
                // What could not be read may have gone meanwhile.
                let topic = self.topic.read();
                let has_moved =
                    topic.earliest_seq > self.seen_seq + 1 || topic.removal_count != removal_count;
                if !has_moved && !self.topic.is_deleted() {
                    return Err(error);
                }
            }
        }
        Ok(false)
    }

    /// Notes what is live of `ranges`, in which all that matches up to `end_seq` is.
    fn add(&mut self, mut ranges: Ranges, end_seq: u64) {
        ranges.sort_unstable_by_key(|range| *range.start());
        let topic = self.topic.read();
        let known = ranges.iter().filter(|range| *range.start() <= end_seq);
        let known = known.map(|range| *range.start()..=end_seq.min(*range.end()));
        let ranges_before = self.ranges.len();
        let live = known.flat_map(|range| topic.blocks.removed().absent_in(range));
        live.for_each(|range| push_range(&mut self.ranges, range));
        self.found_blocks += usize::from(self.ranges.len() > ranges_before);
        self.seen_seq = self.seen_seq.max(end_seq);
    }
}

/// Which records of `runs` match; gives the seq before the first one whose entry cannot be had now. Blocks on the disk.
fn read(
    runs: &[Run],
    tags: &TagMatch,
    ranges: &mut Ranges,
    mut fetch_entry: impl FnMut(&Run) -> io::Result<Option<EntryRecords>>,
) -> io::Result<Option<u64>> {
    let mut known: Option<(EntryId, EntryRecords)> = None;
    for run in runs {
        // The last one is let go before another one is fetched.
        let entry = match known.take().filter(|(id, _)| *id == run.entry) {
            Some((_, entry)) => entry,
            None => match fetch_entry(run)? {
                Some(entry) => entry,
                None => return Ok(Some(run.first_seq - 1)),
            },
        };
        match_run(run, &entry, tags, ranges)?;
        known = Some((run.entry, entry));
    }
    Ok(None)
}

impl Topic {
    /// The entries that runs above `seen_seq` name, and how many postings of them are worth having: with more
    /// than there are records it is no dearer to read those.
    fn look_bounds(&self, seen_seq: u64) -> (RangeInclusive<u64>, usize) {
        let places = self.blocks.place_of(seen_seq + 1)..;
        let blocks = self.blocks.summaries().range(places).filter(|block| block.count > 0);
        let (first, last) = blocks.fold((u64::MAX, 0), |(first, last), block| {
            (first.min(block.first_index), last.max(block.last_index))
        });
        let max = self.count.clamp(MIN_LOOK_POSTINGS, MAX_LOOK_POSTINGS);
        (first.min(last)..=last, max as usize)
    }

    /// Looks at the first block above `seen_seq` in which something may match.
    fn glance(
        &self,
        seen_seq: u64,
        last_seq: u64,
        fetched: Option<&SealedBlock>,
        found: &Found,
    ) -> Result<Glance, Malformed> {
        let mut place = self.blocks.place_of(seen_seq + 1);
        while let Some(block) = self.blocks.summaries().get(place) {
            let first_seq = block.first_seq;
            if seen_seq >= last_seq || first_seq > last_seq {
                break;
            }
            let end_seq = self.blocks.last_seq(place, self.head_seq).min(last_seq);
            let indexes = block.first_index..=block.last_index;
            let is_needed = block.count > 0
                && end_seq > seen_seq
                && (!found.covers(&indexes) || !found.within(&indexes).is_empty());
            if !is_needed {
                place += 1;
                continue;
            }
            let bytes = match (self.blocks.in_memory(first_seq), fetched) {
                (Some(bytes), _) => bytes,
                (None, Some(block)) if block.first_seq == first_seq => &block.bytes[..],
                _ => return Ok(Glance::Cold { block_first_seq: first_seq }),
            };
            let (ranges, unindexed) =
                self.blocks.glance((first_seq, bytes), seen_seq + 1..=end_seq, &indexes, found)?;
            return Ok(Glance::Block { ranges, unindexed, end_seq });
        }
        Ok(Glance::Nothing)
    }
}

impl Blocks {
    /// What matches of a block within `seqs` according to `found`, and the runs that it does not cover.
    fn glance(
        &self,
        (first_seq, block): (u64, &[u8]),
        seqs: RangeInclusive<u64>,
        indexes: &RangeInclusive<u64>,
        found: &Found,
    ) -> Result<(Ranges, Vec<Run>), Malformed> {
        let (mut ranges, mut unindexed) = (Ranges::new(), Vec::new());
        let is_covered = found.covers(indexes);
        let matching = found.within(indexes);
        for run in runs(first_seq, block) {
            let run = run?;
            if run.first_seq > *seqs.end() {
                break;
            }
            let Some(run) = run.after(seqs.start() - 1).filter(|run| !run.overlay.drops_tag) else {
                continue;
            };
            let run = Run { count: run.count.min(seqs.end() + 1 - run.first_seq), ..run };
            let index = run.entry.index;
            if !is_covered && !found.covers(&(index..=index)) {
                if self.removed().has_absent_in(run.first_seq..=run.last_seq()) {
                    unindexed.push(run);
                }
                continue;
            }
            let from = matching.partition_point(|posting| posting.index < index);
            for posting in matching[from..].iter().take_while(|posting| posting.index == index) {
                // Positions in the entry, exclusive at the end.
                let (run_start, run_end) =
                    (u64::from(run.first_position), u64::from(run.first_position) + run.count);
                let start = u64::from(posting.first_position).max(run_start);
                let end = (u64::from(posting.first_position) + u64::from(posting.count)).min(run_end);
                if start < end {
                    let seq = run.first_seq + (start - run_start);
                    push_range(&mut ranges, seq..=seq + (end - start) - 1);
                }
            }
        }
        Ok((ranges, unindexed))
    }
}
