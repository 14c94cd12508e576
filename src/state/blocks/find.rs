//! Finding what is live, by seq and by time.
//!
//! Which block holds a record is known from memory alone, however many blocks around it were emptied: what was
//! removed says which seq is live next, and the summaries in which block that is. So one look needs one block at
//! most, and who fetches that gets on.

use std::ops::RangeInclusive;

use super::{Blocks, Located, TimePlace};
use crate::codec::Malformed;
use crate::state::run::{Run, SealedBlock, runs};

/// Most live parts of runs that one look gives.
const MAX_LIVE_PARTS: usize = 4096;

impl Blocks {
    /// Ordinal of the block that holds `seq`, or of the one before it if that was dropped.
    pub fn place_of(&self, seq: u64) -> usize {
        self.summaries.partition_point(|summary| summary.first_seq <= seq).saturating_sub(1)
    }

    /// The last seq of the block at `place`, or of what was dropped behind it.
    pub fn last_seq(&self, place: usize, head_seq: u64) -> u64 {
        self.summaries.get(place + 1).map_or(head_seq, |next| next.first_seq - 1)
    }

    /// First seqs of the blocks in which something of `seqs` is live; they are between the earliest and the head.
    pub fn live_blocks(&self, seqs: RangeInclusive<u64>) -> impl Iterator<Item = u64> {
        let (mut at, last) = seqs.into_inner();
        std::iter::from_fn(move || {
            let place = self.place_of(self.removed.next_absent_up_to(at, last)?);
            at = self.last_seq(place, last).saturating_add(1);
            Some(self.summaries.get(place)?.first_seq)
        })
    }

    /// The bytes of a block that is in memory, or is the one that the caller has fetched.
    fn readable<'a>(&'a self, first_seq: u64, fetched: Option<&'a SealedBlock>) -> Option<&'a [u8]> {
        let fetched = || fetched.filter(|block| block.first_seq == first_seq).map(|block| &block.bytes[..]);
        self.in_memory(first_seq).or_else(fetched)
    }

    /// Live parts of runs above `cursor`, which is not below the earliest. `fetched` is a block that an earlier call
    /// said was missing.
    pub fn locate(
        &self,
        cursor: u64,
        head_seq: u64,
        fetched: Option<&SealedBlock>,
    ) -> Result<Located, Malformed> {
        let Some(wanted) = self.removed.next_absent_up_to(cursor.saturating_add(1), head_seq) else {
            return Ok(Located::AtHead);
        };
        let Some(block) = self.summaries.get(self.place_of(wanted)) else { return Err(Malformed("topic")) };
        let first_seq = block.first_seq;
        let Some(bytes) = self.readable(first_seq, fetched) else {
            return Ok(Located::Cold { block_first_seq: first_seq });
        };
        let live = self.live_runs(first_seq, bytes, wanted - 1)?;
        // Never without getting on: whoever asks again would get the same answer.
        if live.is_empty() { Err(Malformed("block of runs")) } else { Ok(Located::Runs(live)) }
    }

    /// Live parts of the runs of a block above `cursor`; not all of them if they are many.
    fn live_runs(&self, first_seq: u64, block: &[u8], cursor: u64) -> Result<Vec<Run>, Malformed> {
        let mut live = Vec::new();
        for run in runs(first_seq, block) {
            let Some(run) = run?.after(cursor) else { continue };
            if self.removed.is_empty() {
                live.push(run);
                continue;
            }
            for part in self.removed.absent_in(run.first_seq..=run.last_seq()) {
                if live.len() >= MAX_LIVE_PARTS {
                    return Ok(live);
                }
                live.push(run.part(*part.start(), part.end() - part.start() + 1));
            }
        }
        Ok(live)
    }

    /// Where the live records begin that are not older than `ts_ms`. `fetched` is a block that an earlier call
    /// said was missing.
    pub fn place_of_time(&self, ts_ms: u64, fetched: Option<&SealedBlock>) -> Result<TimePlace, Malformed> {
        let at = self.summaries.partition_point(|summary| summary.count > 0 && summary.last_ts_ms < ts_ms);
        let block = self.summaries.get(at).filter(|block| block.count > 0);
        let Some(block) = block else { return Ok(TimePlace::AtHead) };
        let first_seq = block.first_seq;
        if block.first_ts_ms >= ts_ms {
            return Ok(TimePlace::After(self.removed.next_absent(first_seq).saturating_sub(1)));
        }
        let Some(bytes) = self.readable(first_seq, fetched) else {
            return Ok(TimePlace::Cold { block_first_seq: first_seq });
        };
        for run in runs(first_seq, bytes) {
            let run = run?;
            if run.ts_ms >= ts_ms
                && let Some(live_seq) = self.removed.next_absent_up_to(run.first_seq, run.last_seq())
            {
                return Ok(TimePlace::After(live_seq - 1));
            }
        }
        Err(Malformed("block of runs"))
    }
}
