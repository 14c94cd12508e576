//! The bytes of one item of the log.
//!
//! A frame is a header of 48 bytes, little-endian, and a payload, padded with zeroes to a multiple of 8:
//!
//! | At | Field | |
//! |---|---|---|
//! | 0 | `len` u32 | payload bytes |
//! | 4 | `crc` u32 | CRC32C over `len` and all that follows `crc`, payload included |
//! | 8 | `prev_crc` u32 | the crc of the frame before: the chain |
//! | 12 | `kind` u8, `unsynced` u24 | own lsn minus the highest lsn known synced; `0xFFFFFF` names nothing |
//! | 16 | `lsn` u64 | sequence number of the frame, +1 each over the whole life of the log |
//! | 24 | `term` u64 | |
//! | 32 | `index` u64 | |
//! | 40 | `stamp_ms` u64 | |
//!
//! Why each of the less usual ones:
//! - The **chain** ties a frame to its exact predecessor. A checksum alone accepts a perfectly good frame of
//!   an earlier life of the same file that happens to lie where the next one should.
//! - The **lsn** gives a total order that terms and indexes do not (they go back when a log is truncated).
//! - The **synced** lsn is what tells a torn tail from damage: if any later frame says that a frame was
//!   synced when it was written, then that one was confirmed, and its loss is corruption. A frame is never
//!   part of what it names, so the last group of a log cannot speak for itself; the next one does.
//! - The **alignment** lets a search for frames behind damage try one position in eight.
//!
//! A header of zeroes is no frame but the end of the data: files are reserved and zeroed in advance.
//!
//! A payload that contains the bytes of a frame could in principle be taken for one by that search. The
//! search asks for an lsn in the narrow range that the position allows, and the commands that are stored are
//! text or short binary forms; so this stays a thought.
use bytes::Bytes;

use super::entry::{EntryId, EntryKind, LogEntry};

pub const FRAME_HEADER_BYTES: usize = 48;
pub const FRAME_ALIGN_BYTES: usize = 8;
/// Bound of a payload: far above every limit of the API, far below what `len` could say.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 30;

/// The distance that says "names no synced lsn".
const NAMES_NOTHING: u64 = 0xFF_FFFF;

/// What a frame holds. Votes, truncations and purges are frames among the entries, so that their order and
/// their durability are the same question as that of the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    Blank = 1,
    Command = 2,
    Membership = 3,
    /// `term`, `index` = node id, `stamp_ms` = 1 if committed.
    Vote = 4,
    /// `index` = the first index that is removed.
    Truncate = 5,
    /// `term`, `index` = the last entry that is given up.
    Purge = 6,
    /// The offset table that seals a segment.
    Table = 7,
    /// Nothing but what every frame says: that those before it are synced. Written when nothing else is.
    Witness = 8,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Blank,
            2 => Self::Command,
            3 => Self::Membership,
            4 => Self::Vote,
            5 => Self::Truncate,
            6 => Self::Purge,
            7 => Self::Table,
            8 => Self::Witness,
            _ => return None,
        })
    }

    /// The kind of the entry that this frame holds, if it holds one.
    pub fn entry_kind(self) -> Option<EntryKind> {
        match self {
            Self::Blank => Some(EntryKind::Blank),
            Self::Command => Some(EntryKind::Command),
            Self::Membership => Some(EntryKind::Membership),
            _ => None,
        }
    }
}

impl From<EntryKind> for FrameKind {
    fn from(kind: EntryKind) -> Self {
        match kind {
            EntryKind::Blank => Self::Blank,
            EntryKind::Command => Self::Command,
            EntryKind::Membership => Self::Membership,
        }
    }
}

/// Everything in a header but the two fields that are computed (`len`, `crc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    pub prev_crc: u32,
    pub kind: FrameKind,
    /// The highest lsn known synced when the frame was written; `None` when too far back to be named.
    pub synced_lsn: Option<u64>,
    pub lsn: u64,
    pub term: u64,
    pub index: u64,
    pub stamp_ms: u64,
}

/// A frame whose checksum holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub head: FrameHead,
    pub crc: u32,
    pub payload: &'a [u8],
}

/// Why there is no frame at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoFrame {
    /// The header is all zeroes, or nothing follows: the end of the data.
    End,
    /// The bytes end before the frame does.
    Short,
    /// No kind, or a length above the bound.
    Implausible,
    /// The checksum does not hold.
    Checksum,
    /// The checksum holds, but the kind is none of this version.
    OtherKind(u8),
}

impl std::fmt::Display for NoFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::End => "no frame",
            Self::Short => "frame cut short",
            Self::Implausible => "implausible frame header",
            Self::Checksum => "wrong checksum",
            Self::OtherKind(_) => "frame of a kind that this version does not know",
        })
    }
}

/// Bytes on disk of a frame with a payload of `payload_bytes`, padding included.
pub const fn frame_bytes(payload_bytes: usize) -> usize {
    (FRAME_HEADER_BYTES + payload_bytes).next_multiple_of(FRAME_ALIGN_BYTES)
}

/// Appends a frame to `out` and returns its crc, which the next frame carries on. `out` must hold a multiple
/// of 8 bytes, and the payload at most [`MAX_PAYLOAD_BYTES`].
pub fn encode(out: &mut Vec<u8>, head: &FrameHead, payload: &[u8]) -> u32 {
    debug_assert!(out.len().is_multiple_of(FRAME_ALIGN_BYTES), "frames are aligned");
    debug_assert!(payload.len() <= MAX_PAYLOAD_BYTES, "the log bounds payloads before they get here");
    let distance = match head.synced_lsn {
        Some(synced_lsn) => head.lsn.saturating_sub(synced_lsn).min(NAMES_NOTHING),
        None => NAMES_NOTHING,
    };
    let mut header = [0u8; FRAME_HEADER_BYTES];
    header[0..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[8..12].copy_from_slice(&head.prev_crc.to_le_bytes());
    header[12..16].copy_from_slice(&(head.kind as u32 | (distance as u32) << 8).to_le_bytes());
    header[16..24].copy_from_slice(&head.lsn.to_le_bytes());
    header[24..32].copy_from_slice(&head.term.to_le_bytes());
    header[32..40].copy_from_slice(&head.index.to_le_bytes());
    header[40..48].copy_from_slice(&head.stamp_ms.to_le_bytes());
    let crc = checksum(&header, payload);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
    let end = out.len() + frame_bytes(payload.len());
    out.reserve(frame_bytes(payload.len()));
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    out.resize(end, 0);
    crc
}

/// Reads the frame at the start of `bytes`; what follows it does not matter.
pub fn decode(bytes: &[u8]) -> Result<Frame<'_>, NoFrame> {
    let Some(header) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
        return Err(if is_zero(bytes) { NoFrame::End } else { NoFrame::Short });
    };
    if *header == [0; FRAME_HEADER_BYTES] {
        return Err(NoFrame::End);
    }
    let len = u32_at(header, 0) as usize;
    if header[12] == 0 || len > MAX_PAYLOAD_BYTES {
        return Err(NoFrame::Implausible);
    }
    let payload = bytes.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + len).ok_or(NoFrame::Short)?;
    let crc = u32_at(header, 4);
    if crc != checksum(header, payload) {
        return Err(NoFrame::Checksum);
    }
    let kind = FrameKind::from_byte(header[12]).ok_or(NoFrame::OtherKind(header[12]))?;
    let lsn = u64_at(header, 16);
    let distance = u64::from(u32_at(header, 12) >> 8);
    let head = FrameHead {
        prev_crc: u32_at(header, 8),
        kind,
        synced_lsn: if distance == NAMES_NOTHING { None } else { lsn.checked_sub(distance) },
        lsn,
        term: u64_at(header, 24),
        index: u64_at(header, 32),
        stamp_ms: u64_at(header, 40),
    };
    Ok(Frame { head, crc, payload })
}

impl Frame<'_> {
    /// Bytes on disk, padding included.
    pub fn total_bytes(&self) -> usize {
        frame_bytes(self.payload.len())
    }

    pub fn id(&self) -> EntryId {
        EntryId { term: self.head.term, index: self.head.index }
    }

    /// The entry that the frame holds, with `payload` as its bytes (a shared slice of what was read).
    pub fn to_entry(self, payload: Bytes) -> Option<LogEntry> {
        let kind = self.head.kind.entry_kind()?;
        Some(LogEntry { id: self.id(), kind, stamp_ms: self.head.stamp_ms, payload })
    }
}

/// Searches `bytes` for a frame that says that `lsn` had been synced when it was written. Gives its position.
pub fn find_witness(bytes: &[u8], lsn: u64) -> Option<usize> {
    const BLOCK_BYTES: usize = 4096;
    let lowest_lsn = lsn.saturating_add(1);
    let highest_lsn = lowest_lsn.saturating_add((bytes.len() / FRAME_HEADER_BYTES) as u64);
    for (block_number, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
        if is_zero(block) {
            continue;
        }
        for in_block in (0..block.len()).step_by(FRAME_ALIGN_BYTES) {
            let position = block_number * BLOCK_BYTES + in_block;
            let rest = &bytes[position..];
            // Looking at the lsn first makes a search over 64 MiB a matter of milliseconds.
            if rest.len() < FRAME_HEADER_BYTES || !(lowest_lsn..=highest_lsn).contains(&u64_at(rest, 16)) {
                continue;
            }
            if decode(rest).is_ok_and(|frame| frame.head.synced_lsn.is_some_and(|synced| synced >= lsn)) {
                return Some(position);
            }
        }
    }
    None
}

/// Whether `bytes` are all zero; compares blocks, which is quick even without optimisation.
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROES: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROES.len()).all(|chunk| chunk == &ZEROES[..chunk.len()])
}

fn checksum(header: &[u8; FRAME_HEADER_BYTES], payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&header[0..4]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &header[8..]), payload)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(lsn: u64, synced_lsn: Option<u64>) -> FrameHead {
        let kind = FrameKind::Command;
        FrameHead { prev_crc: 7, kind, synced_lsn, lsn, term: 3, index: 9, stamp_ms: 1234 }
    }

    proptest! {
        #[test]
        fn a_frame_comes_back_as_it_was_written(
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            prev_crc: u32, kind in 1u8..=8, lsn in 1u64.., distance in 1u64..0xFF_FFFF,
            term: u64, index: u64, stamp_ms: u64,
        ) {
            let kind = FrameKind::from_byte(kind).expect("a kind");
            let head = FrameHead {
                prev_crc, kind, synced_lsn: lsn.checked_sub(distance), lsn, term, index, stamp_ms,
            };
            let mut bytes = Vec::new();
            let crc = encode(&mut bytes, &head, &payload);
            prop_assert_eq!(bytes.len(), frame_bytes(payload.len()));
            let frame = decode(&bytes).expect("a frame");
            prop_assert_eq!(frame, Frame { head, crc, payload: &payload });
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), lsn: u64) {
            let _ = decode(&bytes);
            let _ = find_witness(&bytes, lsn);
        }

        #[test]
        fn any_flipped_bit_is_noticed(
            payload in proptest::collection::vec(any::<u8>(), 0..64), at: prop::sample::Index, bit in 0u8..8,
        ) {
            let mut bytes = Vec::new();
            encode(&mut bytes, &head(5, Some(4)), &payload);
            // Padding carries nothing and is not covered.
            let at = at.index(FRAME_HEADER_BYTES + payload.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes).is_err());
        }
    }

    #[test]
    fn a_distance_too_great_names_nothing() {
        let mut bytes = Vec::new();
        encode(&mut bytes, &head(0x200_0000, Some(1)), b"x");
        assert_eq!(decode(&bytes).expect("a frame").head.synced_lsn, None);
    }

    #[test]
    fn a_witness_is_found_at_any_aligned_position_and_only_if_it_names_the_lsn() {
        let mut bytes = vec![0xAB; 5000];
        encode(&mut bytes, &head(12, Some(11)), b"later");
        assert_eq!(find_witness(&bytes, 11), Some(5000));
        assert_eq!(find_witness(&bytes, 10), Some(5000));
        assert_eq!(find_witness(&bytes, 12), None, "a frame does not speak for itself");
        let mut unaware = vec![0; 64];
        encode(&mut unaware, &head(13, Some(10)), b"same group");
        assert_eq!(find_witness(&unaware, 11), None);
    }

    #[test]
    fn zeroes_are_the_end() {
        assert_eq!(decode(&[0; 64]), Err(NoFrame::End));
        assert_eq!(decode(&[]), Err(NoFrame::End));
        assert_eq!(decode(&[0, 1]), Err(NoFrame::Short));
    }
}
