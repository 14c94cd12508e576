//! The keys under which a checkpoint holds the state.
//!
//! A key is a kind byte and big-endian numbers, so that a scan in key order delivers each topic's head
//! before what was removed from it, both before its blocks, and blocks in order; an origin before what was
//! taken from it.

use super::router::RouterKey;
use super::topic::TopicKey;
use crate::codec::{Malformed, Reader};

/// Where one value of the checkpoint belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// What the whole state has: time, counters, applied position, membership.
    Machine,
    /// Part of the session of a member: Raft id and ordinal of the part.
    Session(u64, u64),
    /// Part of the topic instance with this epoch.
    Topic(u64, TopicKey),
    /// Part of the router of this generation. Behind all topics; its configuration comes first.
    Router(u64, RouterKey),
}

impl Key {
    pub fn encode(self) -> Vec<u8> {
        let (kind, numbers): (u8, &[u64]) = match &self {
            Key::Machine => (b'A', &[]),
            Key::Session(node_id, ordinal) => (b'B', &[*node_id, *ordinal]),
            Key::Topic(epoch, TopicKey::Head) => (b'C', &[*epoch]),
            // Longer than the head's key, so right behind it, and before all runs.
            Key::Topic(epoch, TopicKey::Removed(number)) => (b'C', &[*epoch, *number]),
            Key::Topic(epoch, TopicKey::Runs(first_seq)) => (b'D', &[*epoch, *first_seq]),
            Key::Topic(epoch, TopicKey::Keys(first)) => (b'E', &[*epoch, *first]),
            Key::Topic(epoch, TopicKey::Origin(number)) => (b'F', &[*epoch, u64::from(*number)]),
            Key::Topic(epoch, TopicKey::Taken(number, chunk)) => {
                (b'G', &[*epoch, u64::from(*number), *chunk])
            }
            Key::Topic(epoch, TopicKey::Reported(number, chunk)) => {
                (b'H', &[*epoch, u64::from(*number), *chunk])
            }
            Key::Topic(epoch, TopicKey::Foreign(chunk)) => (b'I', &[*epoch, *chunk]),
            Key::Topic(epoch, TopicKey::Gap(seq)) => (b'J', &[*epoch, *seq]),
            Key::Topic(epoch, TopicKey::OwnSum) => (b'K', &[*epoch]),
            Key::Router(generation, RouterKey::Config(number)) => (b'R', &[*generation, *number]),
            Key::Router(generation, RouterKey::Head) => (b'S', &[*generation]),
            Key::Router(generation, RouterKey::Position(ordinal)) => (b'T', &[*generation, *ordinal]),
        };
        let mut bytes = vec![kind];
        numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_be_bytes()));
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Key, Malformed> {
        let mut reader = Reader::new(bytes, "checkpoint key");
        let kind = reader.u8()?;
        let is_part = reader.rest().len() > 8;
        let mut number = || -> Result<u64, Malformed> { Ok(reader.u64()?.swap_bytes()) };
        let key = match kind {
            b'A' => Key::Machine,
            b'B' => Key::Session(number()?, number()?),
            b'C' if is_part => Key::Topic(number()?, TopicKey::Removed(number()?)),
            b'C' => Key::Topic(number()?, TopicKey::Head),
            b'D' => Key::Topic(number()?, TopicKey::Runs(number()?)),
            b'E' => Key::Topic(number()?, TopicKey::Keys(number()?)),
            b'F' => Key::Topic(number()?, TopicKey::Origin(number_of_origin(number()?)?)),
            b'G' => Key::Topic(number()?, TopicKey::Taken(number_of_origin(number()?)?, number()?)),
            b'H' => Key::Topic(number()?, TopicKey::Reported(number_of_origin(number()?)?, number()?)),
            b'I' => Key::Topic(number()?, TopicKey::Foreign(number()?)),
            b'J' => Key::Topic(number()?, TopicKey::Gap(number()?)),
            b'K' => Key::Topic(number()?, TopicKey::OwnSum),
            b'R' => Key::Router(number()?, RouterKey::Config(number()?)),
            b'S' => Key::Router(number()?, RouterKey::Head),
            b'T' => Key::Router(number()?, RouterKey::Position(number()?)),
            _ => return Err(Malformed("checkpoint key: of a kind that this version does not know")),
        };
        reader.finish()?;
        Ok(key)
    }
}

fn number_of_origin(number: u64) -> Result<u32, Malformed> {
    u32::try_from(number).map_err(|_| Malformed("checkpoint key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_and_sort_heads_before_blocks_in_order() {
        let keys = [
            Key::Machine,
            Key::Session(u64::MAX, 3),
            Key::Topic(1, TopicKey::Head),
            Key::Topic(1, TopicKey::Removed(7)),
            Key::Topic(300, TopicKey::Head),
            Key::Topic(1, TopicKey::Runs(2)),
            Key::Topic(1, TopicKey::Runs(256)),
            Key::Topic(1, TopicKey::Keys(0)),
            Key::Topic(1, TopicKey::Origin(3)),
            Key::Topic(1, TopicKey::Taken(3, 9)),
            Key::Topic(1, TopicKey::Reported(3, 9)),
            Key::Topic(1, TopicKey::Foreign(9)),
            Key::Topic(1, TopicKey::Gap(1 << 40)),
            Key::Topic(1, TopicKey::OwnSum),
            Key::Router(9, RouterKey::Config(0)),
            Key::Router(9, RouterKey::Config(1)),
            Key::Router(8, RouterKey::Head),
            Key::Router(9, RouterKey::Head),
            Key::Router(8, RouterKey::Position(300)),
        ];
        let encoded: Vec<_> = keys.iter().map(|key| key.encode()).collect();
        assert!(encoded.is_sorted());
        for (key, bytes) in keys.iter().zip(&encoded) {
            assert_eq!(Key::decode(bytes), Ok(*key));
        }
    }
}
