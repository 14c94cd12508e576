//! Which seqs of a topic were first written there; the others are copies and gaps.
//!
//! Of what may still be live that is known one by one. Of the rest only what somebody still asks for: how many, which
//! was the last, and the digest of the set, by which clusters compare what they have of each other. So it costs what
//! is live, and not what ever was; a topic without copies costs nothing at all.

use std::ops::RangeInclusive;

use bytes::{BufMut, BytesMut};
use sha2::block_api::compress256;

use super::delete::{Ranges, push_range};
use super::seq_set::{CHUNK_SEQS, SeqSet};
use crate::codec::{Malformed, Reader, put_blob, put_optional_number, put_varint};

/// Chunks that are shrunk at once: some milliseconds if every second seq is a copy.
const MAX_CHUNKS_AT_ONCE: u64 = 4;

/// SHA-256 of stretches of seqs: of each its first and last seq, 64 bits big-endian each. As it can be stored and gone
/// on with, it is made of the function that takes in one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StretchDigest {
    state: [u32; 8],
    blocks: u64,
    /// Of the next block, less than it takes.
    pending: Vec<u8>,
}

const BLOCK_BYTES: usize = 64;
const STATE: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

impl Default for StretchDigest {
    fn default() -> Self {
        StretchDigest { state: STATE, blocks: 0, pending: Vec::new() }
    }
}

impl StretchDigest {
    /// Takes in the next stretch.
    pub fn add(&mut self, stretch: &RangeInclusive<u64>) {
        self.pending.extend_from_slice(&stretch.start().to_be_bytes());
        self.pending.extend_from_slice(&stretch.end().to_be_bytes());
        self.take_blocks();
    }

    fn take_blocks(&mut self) {
        while let Some(block) = self.pending.first_chunk::<BLOCK_BYTES>() {
            compress256(&mut self.state, std::slice::from_ref(block));
            self.blocks += 1;
            self.pending.drain(..BLOCK_BYTES);
        }
    }

    /// The first 16 bytes of the digest of all.
    pub fn finish(mut self) -> [u8; 16] {
        let bits = (self.blocks * BLOCK_BYTES as u64 + self.pending.len() as u64) * 8;
        self.pending.push(0x80);
        while self.pending.len() % BLOCK_BYTES != BLOCK_BYTES - 8 {
            self.pending.push(0);
        }
        self.pending.extend_from_slice(&bits.to_be_bytes());
        self.take_blocks();
        let mut first = [0; 16];
        for (bytes, word) in first.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        first
    }
}

/// What a set of seqs comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeqSum {
    pub count: u64,
    /// 0 if it is empty.
    pub last_seq: u64,
    pub digest: [u8; 16],
}

/// The sum of the own seqs up to one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Summed {
    /// Up to here.
    to_seq: u64,
    count: u64,
    last_seq: u64,
    /// Of the stretches that have ended for sure.
    digest: StretchDigest,
    /// Where the one begins that has not.
    open_from: Option<u64>,
}

impl Summed {
    /// Takes in the next stretch of own seqs, which may go on where the one before it ended.
    fn add(&mut self, stretch: &RangeInclusive<u64>) {
        match self.open_from {
            Some(_) if *stretch.start() == self.last_seq + 1 => {}
            _ => {
                self.close();
                self.open_from = Some(*stretch.start());
            }
        }
        self.count += stretch.end() - stretch.start() + 1;
        self.last_seq = *stretch.end();
    }

    fn close(&mut self) {
        if let Some(first) = self.open_from.take() {
            self.digest.add(&(first..=self.last_seq));
        }
    }
}

/// Which seqs of a topic were first written there.
#[derive(Debug, Clone, Default)]
pub struct OwnSeqs {
    /// Copies and gaps above what is summed.
    foreign: SeqSet,
    summed: Summed,
    is_dirty: bool,
}

impl OwnSeqs {
    /// These are copies, or gaps.
    pub fn take_up(&mut self, foreign: RangeInclusive<u64>) {
        self.foreign.insert(foreign);
    }

    /// Copies and gaps above what is summed.
    pub fn foreign(&self) -> &SeqSet {
        &self.foreign
    }

    /// Which of the seqs from `first` to `last` were first written here, as at most `max` stretches. If they are more
    /// they are told as one, from the first to the last; so are those that are summed, of which only the last is known.
    pub fn between(&self, first: u64, last: u64, max: usize) -> Ranges {
        let from_seq = first.max(self.summed.to_seq + 1);
        let mut own: Ranges = Vec::new();
        let summed_last = self.summed.last_seq.min(last);
        if first <= summed_last {
            own.push(first..=summed_last);
        }
        let above = self.foreign.absent_in(from_seq..=last).take(max + 1);
        above.for_each(|stretch| push_range(&mut own, stretch));
        if own.len() > max
            && let Some(first_seq) = own.first().map(|stretch| *stretch.start())
        {
            // Not one by one: they may be as many as the topic has ever had seqs.
            let last_seq = self.foreign.previous_absent_down_to(last, from_seq).unwrap_or(summed_last);
            own = vec![first_seq..=last_seq];
        }
        own
    }

    /// What all own seqs come to in a topic with this head. May take a while.
    pub fn sum(&self, head_seq: u64) -> SeqSum {
        let mut summed = self.summed.clone();
        if head_seq > summed.to_seq {
            for stretch in self.foreign.absent_in(summed.to_seq + 1..=head_seq) {
                summed.add(&stretch);
            }
        }
        summed.close();
        SeqSum { count: summed.count, last_seq: summed.last_seq, digest: summed.digest.finish() }
    }

    /// Nothing below `seq` is live any more. Whole chunks are shrunk, some at a time: the next call goes on. Gives up to
    /// where all is summed now, if that changed; members must agree on it, as [`OwnSeqs::between`] depends on it.
    pub fn forget_below(&mut self, seq: u64) -> Option<u64> {
        let first_seq = self.foreign.first()?;
        let first_number = first_seq / CHUNK_SEQS;
        let end_number = (seq / CHUNK_SEQS).min(first_number + MAX_CHUNKS_AT_ONCE);
        if end_number <= first_number {
            return None;
        }
        let end_seq = end_number * CHUNK_SEQS;
        for stretch in self.foreign.absent_in(self.summed.to_seq + 1..=end_seq - 1) {
            self.summed.add(&stretch);
        }
        self.summed.to_seq = end_seq - 1;
        self.foreign.forget_below(end_seq);
        self.is_dirty = true;
        Some(self.summed.to_seq)
    }

    /// Numbers of the chunks that a checkpoint may hold, and whether it may hold a sum.
    pub fn stored(&self) -> (impl Iterator<Item = u64>, bool) {
        (self.foreign.numbers(), self.summed.to_seq > 0)
    }

    /// Hands every chunk that changed since the last call to `store_chunk`, nothing for one that is gone; gives the sum
    /// if that did.
    pub fn take_changes(&mut self, store_chunk: impl FnMut(u64, Option<Vec<u8>>)) -> Option<Vec<u8>> {
        self.foreign.take_changes(store_chunk);
        std::mem::take(&mut self.is_dirty).then(|| self.encode_summed())
    }

    fn encode_summed(&self) -> Vec<u8> {
        let Summed { to_seq, count, last_seq, digest, open_from } = &self.summed;
        let mut out = BytesMut::new();
        for value in [*to_seq, *count, *last_seq, digest.blocks] {
            put_varint(&mut out, value);
        }
        put_optional_number(&mut out, *open_from);
        digest.state.iter().for_each(|word| out.put_u32(*word));
        put_blob(&mut out, &digest.pending);
        out.to_vec()
    }

    pub fn restore_chunk(&mut self, number: u64, bytes: &[u8]) -> Result<(), Malformed> {
        self.foreign.restore(number, bytes)
    }

    pub fn restore_summed(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(bytes, "sum of seqs");
        let (to_seq, count, last_seq, blocks) =
            (reader.varint()?, reader.varint()?, reader.varint()?, reader.varint()?);
        let open_from = reader.optional_number()?;
        let mut state = STATE;
        for word in &mut state {
            let bytes = reader.bytes(4)?.try_into().map_err(|_| Malformed("sum of seqs"))?;
            *word = u32::from_be_bytes(bytes);
        }
        let pending = reader.blob()?.to_vec();
        reader.finish()?;
        if pending.len() >= BLOCK_BYTES {
            return Err(Malformed("sum of seqs"));
        }
        self.summed =
            Summed { to_seq, count, last_seq, digest: StretchDigest { state, blocks, pending }, open_from };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    /// By the library, of maximal stretches.
    fn naive(own: &[u64]) -> SeqSum {
        let (mut sha, mut at) = (Sha256::new(), 0);
        while at < own.len() {
            let first = at;
            while at + 1 < own.len() && own[at + 1] == own[at] + 1 {
                at += 1;
            }
            sha.update(own[first].to_be_bytes());
            sha.update(own[at].to_be_bytes());
            at += 1;
        }
        let digest = sha.finalize()[..16].try_into().unwrap();
        SeqSum { count: own.len() as u64, last_seq: own.last().copied().unwrap_or(0), digest }
    }

    #[test]
    fn the_digest_is_that_of_the_library() {
        let mut digest = StretchDigest::default();
        let mut sha = Sha256::new();
        for number in 0..40u64 {
            assert_eq!(digest.clone().finish(), sha.clone().finalize()[..16], "after {number}");
            digest.add(&(number * 5..=number * 5 + number));
            sha.update((number * 5).to_be_bytes());
            sha.update((number * 6).to_be_bytes());
        }
    }

    fn save(own: &mut OwnSeqs, stored: &mut BTreeMap<Option<u64>, Vec<u8>>) {
        let sum = own.take_changes(|number, bytes| {
            match bytes {
                Some(bytes) => stored.insert(Some(number), bytes),
                None => stored.remove(&Some(number)),
            };
        });
        stored.extend(sum.map(|sum| (None, sum)));
    }

    fn restored(stored: &BTreeMap<Option<u64>, Vec<u8>>) -> OwnSeqs {
        let mut own = OwnSeqs::default();
        for (number, bytes) in stored {
            match number {
                Some(number) => own.restore_chunk(*number, bytes).unwrap(),
                None => own.restore_summed(bytes).unwrap(),
            }
        }
        own
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_is_shrunk_comes_to_the_same(
            lengths in proptest::collection::vec((prop_oneof![0u64..3, 0u64..40_000], prop_oneof![1u64..3, 1u64..40_000]), 1..12),
            floors in proptest::collection::vec((0.0f64..1.0, any::<bool>()), 0..8),
        ) {
            let (mut own, mut naive_own, mut head_seq) = (OwnSeqs::default(), Vec::new(), 0);
            let mut stored = BTreeMap::new();
            let (mut floors, mut floor) = (floors.into_iter(), 0);
            for (own_count, foreign_count) in lengths {
                naive_own.extend(head_seq + 1..=head_seq + own_count);
                head_seq += own_count;
                own.take_up(head_seq + 1..=head_seq + foreign_count);
                head_seq += foreign_count;
                if let Some((share, is_saved)) = floors.next() {
                    // Floors only rise.
                    floor = floor.max((head_seq as f64 * share) as u64);
                    own.forget_below(floor);
                    prop_assert!(own.summed.to_seq <= floor);
                    if is_saved { save(&mut own, &mut stored); }
                }
            }
            prop_assert_eq!(own.sum(head_seq), naive(&naive_own));
            for first in [1, head_seq / 3 + 1, own.summed.to_seq + 1, head_seq] {
                let expected: Vec<u64> = naive_own.iter().copied().filter(|seq| *seq >= first).collect();
                let told = own.between(first, head_seq, 3);
                prop_assert!(told.len() <= 3);
                prop_assert_eq!(told.last().map(|last| *last.end()), expected.last().copied());
                prop_assert!(expected.iter().all(|seq| told.iter().any(|range| range.contains(seq))));
                if first > own.summed.to_seq {
                    prop_assert_eq!(told.first().map(|first| *first.start()), expected.first().copied());
                }
            }
            save(&mut own, &mut stored);
            let mut back = restored(&stored);
            prop_assert_eq!(back.sum(head_seq), naive(&naive_own));
            prop_assert_eq!(back.sum(head_seq + 1).last_seq, head_seq + 1);
            prop_assert_eq!(back.summed.to_seq, own.summed.to_seq);
            for _ in 0..head_seq / CHUNK_SEQS + 1 {
                back.forget_below(head_seq + 1);
            }
            prop_assert_eq!(back.sum(head_seq), naive(&naive_own));
            prop_assert!(back.stored().0.count() <= 1 + lengths_of_dirty(&back));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = OwnSeqs::default().restore_summed(&bytes);
        }
    }

    /// Chunks that are gone and that the checkpoint still holds.
    fn lengths_of_dirty(own: &OwnSeqs) -> usize {
        let mut own = own.clone();
        let mut gone = 0;
        own.take_changes(|_, bytes| gone += usize::from(bytes.is_none()));
        gone
    }

    #[test]
    fn it_costs_what_is_live_and_not_what_ever_was() {
        // Two clusters that mirror a topic both ways: every second seq is a copy.
        let mut own = OwnSeqs::default();
        let mut stored = BTreeMap::new();
        for seq in 1..=20 * CHUNK_SEQS {
            if seq % 2 == 0 {
                own.take_up(seq..=seq);
            }
            own.forget_below(seq.saturating_sub(1000));
        }
        save(&mut own, &mut stored);
        assert!(own.stored().0.count() <= 2);
        let sum = own.sum(20 * CHUNK_SEQS);
        assert_eq!((sum.count, sum.last_seq), (10 * CHUNK_SEQS, 20 * CHUNK_SEQS - 1));
        assert_eq!(restored(&stored).sum(20 * CHUNK_SEQS), sum);
        // One without copies has nothing to keep.
        let mut alone = OwnSeqs::default();
        alone.forget_below(1 << 50);
        assert_eq!((alone.stored().0.count(), alone.stored().1), (0, false));
        assert_eq!(alone.sum(7), naive(&[1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(alone.sum(0), naive(&[]));
    }
}
