//! Sessions: how a member repeats a command without applying it twice.
//!
//! When a leader is lost, a member cannot know whether the command that it had handed over took effect.
//! It sends the command again, under the same session and number; the state remembers the outcome of
//! each number, and answers a repeat from memory. A member has one session at a time, opened through the
//! log under a fresh random id; it never sends a number again once it has said that it is done with it
//! (`done_below`), and only those outcomes are dropped. What the memory cannot decide is refused, never
//! applied.
//!
//! Opening a session may be repeated too, and a copy of it may come late, after a connection that stood
//! still: so it changes nothing if the session is open, and a session that was replaced never comes back.

use std::collections::BTreeMap;

use bytes::BytesMut;

use super::command::Envelope;
use super::outcome::Outcome;
use crate::codec::{Malformed, Reader, put_varint};
use crate::digest::Digest;
use crate::limits::{REPLACED_SESSIONS, RUN_BLOCK_BYTES};

/// What a session knows about a command that arrives.
#[derive(Debug, PartialEq)]
pub enum Admission {
    /// It has not been applied: apply it.
    New,
    /// It has been applied, with this outcome.
    Repeat(Outcome),
    /// Whether it has been applied is not known any more.
    Unknown,
}

/// The session of one member.
#[derive(Debug, Default, PartialEq)]
pub struct Session {
    id: u64,
    done_below: u64,
    outcomes: BTreeMap<u64, Outcome>,
    /// Sessions of this member that others took the place of, the last one last.
    replaced: Vec<u64>,
    /// The beginning of an outcome that goes on in the next chunk, while a session is read.
    unread: Vec<u8>,
}

impl Session {
    pub fn new(id: u64) -> Self {
        Session { id, ..Session::default() }
    }

    /// Opens the session `id` in the place of this one. `false`, and no change, if it was open before this
    /// one.
    #[must_use]
    pub fn reopen(&mut self, id: u64) -> bool {
        if self.replaced.contains(&id) {
            return false;
        }
        if id != self.id {
            let mut replaced = std::mem::take(&mut self.replaced);
            replaced.push(self.id);
            if replaced.len() > REPLACED_SESSIONS {
                replaced.remove(0);
            }
            *self = Session { id, replaced, ..Session::default() };
        }
        true
    }

    pub fn admit(&mut self, envelope: &Envelope) -> Admission {
        if envelope.session != self.id || envelope.number < self.done_below {
            return Admission::Unknown;
        }
        if envelope.done_below > self.done_below {
            self.done_below = envelope.done_below;
            self.outcomes = self.outcomes.split_off(&self.done_below);
        }
        match self.outcomes.get(&envelope.number) {
            Some(outcome) => Admission::Repeat(outcome.clone()),
            None => Admission::New,
        }
    }

    pub fn remember(&mut self, number: u64, outcome: Outcome) {
        self.outcomes.insert(number, outcome);
    }

    pub fn digest(&self, digest: &mut Digest) {
        digest.add(self.id);
        digest.add(self.done_below);
        digest.add(self.replaced.len() as u64);
        self.replaced.iter().for_each(|id| digest.add(*id));
        let mut bytes = BytesMut::new();
        for (number, outcome) in &self.outcomes {
            digest.add(*number);
            bytes.clear();
            outcome.encode(&mut bytes);
            digest.add_bytes(&bytes);
        }
    }

    /// The session as values of bounded size.
    pub fn encode(&self) -> Vec<Vec<u8>> {
        let mut head = BytesMut::new();
        put_varint(&mut head, self.id);
        put_varint(&mut head, self.done_below);
        put_varint(&mut head, self.replaced.len() as u64);
        self.replaced.iter().for_each(|id| put_varint(&mut head, *id));
        let mut chunks = vec![head.to_vec()];
        let mut chunk = BytesMut::new();
        for (number, outcome) in &self.outcomes {
            put_varint(&mut chunk, *number);
            outcome.encode(&mut chunk);
            // An outcome may be larger than a value should be: then it goes on in the next one.
            while chunk.len() > RUN_BLOCK_BYTES {
                chunks.push(chunk.split_to(RUN_BLOCK_BYTES).to_vec());
            }
        }
        if !chunk.is_empty() {
            chunks.push(chunk.to_vec());
        }
        chunks
    }

    /// Takes in the values of [`Session::encode`], in order.
    pub fn restore_chunk(&mut self, ordinal: u64, bytes: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(bytes, "session");
        if ordinal == 0 {
            self.id = reader.varint()?;
            self.done_below = reader.varint()?;
            let count = reader.count(1)?;
            self.replaced = (0..count).map(|_| reader.varint()).collect::<Result<_, _>>()?;
            return reader.finish();
        }
        let unread = [std::mem::take(&mut self.unread).as_slice(), bytes].concat();
        let mut reader = Reader::new(&unread, "session");
        while !reader.is_empty() {
            let begun = reader.rest();
            let read = reader.varint().and_then(|number| Ok((number, Outcome::decode(&mut reader)?)));
            // What cannot be read ends in the next chunk.
            let Ok((number, outcome)) = read else {
                self.unread = begun.to_vec();
                break;
            };
            self.outcomes.insert(number, outcome);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deleted() -> Outcome {
        Outcome::TopicDeleted { deleted: true, routers_removed: Vec::new() }
    }

    fn envelope(session: u64, number: u64, done_below: u64) -> Envelope {
        Envelope { node_id: 1, session, number, done_below }
    }

    #[test]
    fn a_repeat_gets_the_first_outcome_and_what_is_unknown_is_refused() {
        let mut session = Session::new(5);
        assert_eq!(session.admit(&envelope(5, 1, 0)), Admission::New);
        session.remember(1, deleted());
        assert_eq!(session.admit(&envelope(5, 1, 0)), Admission::Repeat(deleted()));
        // Numbers may arrive out of order within the window.
        assert_eq!(session.admit(&envelope(5, 3, 1)), Admission::New);
        assert_eq!(session.admit(&envelope(5, 2, 1)), Admission::New);
        // Number 1 is done: a late copy of it is not applied again.
        assert_eq!(session.admit(&envelope(5, 4, 2)), Admission::New);
        assert_eq!(session.admit(&envelope(5, 1, 1)), Admission::Unknown);
        assert_eq!(session.admit(&envelope(6, 1, 0)), Admission::Unknown);
    }

    #[test]
    fn opening_again_changes_nothing_and_a_replaced_session_never_comes_back() {
        let mut session = Session::new(5);
        assert_eq!(session.admit(&envelope(5, 1, 1)), Admission::New);
        session.remember(1, deleted());
        assert!(session.reopen(5));
        let first = Admission::Repeat(deleted());
        assert_eq!(session.admit(&envelope(5, 1, 1)), first);
        assert!(session.reopen(6));
        assert_eq!(session.admit(&envelope(5, 1, 1)), Admission::Unknown);
        assert!(!session.reopen(5));
        assert_eq!(session.admit(&envelope(6, 0, 0)), Admission::New);
        // What is remembered is bounded, and the latest are.
        for id in 7..1000 {
            assert!(session.reopen(id));
        }
        assert_eq!(session.replaced.len(), REPLACED_SESSIONS);
        assert!(!session.reopen(998));
    }

    #[test]
    fn a_session_comes_back_as_it_was_stored() {
        let mut session = Session::new(6);
        assert!(session.reopen(u64::MAX) && session.reopen(7));
        assert_eq!(session.admit(&envelope(7, 0, 0)), Admission::New);
        for number in 0..3000 {
            session.remember(number, Outcome::TopicPut { created: true, config: Default::default() });
        }
        let routers_removed = vec!["r".repeat(255); 100];
        session.remember(1500, Outcome::TopicDeleted { deleted: true, routers_removed });
        let mut restored = Session::default();
        for (ordinal, chunk) in session.encode().iter().enumerate() {
            assert!(chunk.len() < 7 << 10);
            restored.restore_chunk(ordinal as u64, chunk).unwrap();
        }
        assert_eq!(restored, session);
    }
}
