//! How far a router has come in one topic of its source.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::{put_entry_id, read_entry_id};
use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::digest::Digest;
use crate::storage::EntryId;

const POSITION_VERSION: u8 = 1;
/// With what is held back.
const POSITION_VERSION_HELD: u8 = 2;

/// How far a router has come in one topic of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Which of the router's positions it is: its place in the checkpoint. Never used again.
    pub ordinal: u64,
    /// The topic instance that is read.
    pub source_epoch: u64,
    /// The topic instance that the copies go to; 0 as long as a mirror may not make it: whichever comes is meant.
    pub dest_epoch: u64,
    /// Every record up to this seq was examined.
    pub seq: u64,
    /// The source's log entry of the record at `seq`; only of a mirror.
    pub entry: Option<EntryId>,
    /// Where records were first left out because the remote may not bring them: it goes back to there once it may.
    pub held_seq: Option<u64>,
}

impl Position {
    /// Whether copies from this instance into that one (`None`: it is to be made) go on from here.
    pub fn goes_on(&self, source_epoch: u64, dest_epoch: Option<u64>) -> bool {
        self.source_epoch == source_epoch && (self.dest_epoch == 0 || Some(self.dest_epoch) == dest_epoch)
    }
}

/// A [`Position`] that is to take the place of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    pub source_epoch: u64,
    pub dest_epoch: u64,
    pub seq: u64,
    pub entry: Option<EntryId>,
}

impl Position {
    /// Takes one apart that was stored, with the topic of the source that it is of.
    pub(super) fn decode(ordinal: u64, bytes: &[u8]) -> Result<(Arc<str>, Self), Malformed> {
        let mut reader = Reader::new(bytes, "position of a router");
        let version = reader.u8()?;
        if !matches!(version, POSITION_VERSION | POSITION_VERSION_HELD) {
            return Err(Malformed("position of a router: written by another version"));
        }
        let source: Arc<str> = reader.text()?.into();
        let (source_epoch, dest_epoch) = (reader.varint()?, reader.varint()?);
        let (seq, entry) = (reader.varint()?, read_entry_id(&mut reader)?);
        let held_seq = if version == POSITION_VERSION_HELD { Some(reader.varint()?) } else { None };
        reader.finish()?;
        Ok((source, Position { ordinal, source_epoch, dest_epoch, seq, entry, held_seq }))
    }

    pub(super) fn encode(&self, source: &str) -> Vec<u8> {
        let mut out = BytesMut::new();
        out.put_u8(if self.held_seq.is_some() { POSITION_VERSION_HELD } else { POSITION_VERSION });
        put_blob(&mut out, source.as_bytes());
        for value in [self.source_epoch, self.dest_epoch, self.seq] {
            put_varint(&mut out, value);
        }
        put_entry_id(&mut out, self.entry);
        if let Some(seq) = self.held_seq {
            put_varint(&mut out, seq);
        }
        out.to_vec()
    }

    pub(super) fn digest(&self, source: &str) -> u64 {
        let mut digest = Digest::default();
        digest.add_bytes(source.as_bytes());
        let (term, index) = self.entry.map_or((0, 0), |entry| (entry.term, entry.index));
        for value in [self.ordinal, self.source_epoch, self.dest_epoch, self.seq, term, index] {
            digest.add(value);
        }
        self.held_seq.into_iter().for_each(|seq| digest.add(seq));
        digest.value()
    }
}
