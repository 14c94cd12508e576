//! The configuration of a topic: the 17 fields of contract section 6 and the two of section 27.

use bytes::{BufMut, BytesMut};

use crate::codec::{Malformed, Reader, put_optional_text, put_varint, unzigzag, zigzag};

/// What a topic is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicType {
    Log = 0,
    Queue = 1,
}

/// What a full topic does with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// The oldest live records go.
    Old = 0,
    /// The write is refused.
    Reject = 1,
}

/// What an acked write survives, contract section 6.2. Ordered: a stronger class is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    Ephemeral = 0,
    Memory = 1,
    Disk = 2,
    Fsync = 3,
}

/// Whether a later record with the same key replaces the earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compaction {
    None = 0,
    Key = 1,
}

/// A topic's whole configuration, every field resolved and clamped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig {
    pub topic_type: TopicType,
    pub ttl_ms: u64,
    pub cap_records: u64,
    pub cap_bytes: u64,
    pub discard: Discard,
    pub durability: Durability,
    pub priority: Option<i32>,
    pub auto_priority: bool,
    pub auto_create: bool,
    pub idempotency_window_ms: u64,
    pub dedupe_node: bool,
    pub lease_ms: u64,
    pub claim_jitter_ms: u64,
    pub max_deliveries: u64,
    pub dead_letter: Option<String>,
    pub leases_durable: bool,
    pub compaction: Compaction,
    pub delete_marker_ttl_ms: u64,
}

impl TopicType {
    /// Reads its number, one byte.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        match reader.u8()? {
            0 => Ok(TopicType::Log),
            1 => Ok(TopicType::Queue),
            _ => Err(reader.malformed()),
        }
    }
}

impl Default for TopicConfig {
    fn default() -> Self {
        TopicConfig {
            topic_type: TopicType::Log,
            ttl_ms: 0,
            cap_records: 0,
            cap_bytes: 0,
            discard: Discard::Old,
            durability: Durability::Disk,
            priority: None,
            auto_priority: true,
            auto_create: true,
            idempotency_window_ms: 120_000,
            dedupe_node: true,
            lease_ms: 30_000,
            claim_jitter_ms: 0,
            max_deliveries: 0,
            dead_letter: None,
            leases_durable: false,
            compaction: Compaction::None,
            delete_marker_ttl_ms: 86_400_000,
        }
    }
}

const VERSION: u8 = 1;

impl TopicConfig {
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(VERSION);
        for choice in
            [self.topic_type as u8, self.discard as u8, self.durability as u8, self.compaction as u8]
        {
            out.put_u8(choice);
        }
        for flag in [self.auto_priority, self.auto_create, self.dedupe_node, self.leases_durable] {
            out.put_u8(flag as u8);
        }
        for number in [
            self.ttl_ms,
            self.cap_records,
            self.cap_bytes,
            self.idempotency_window_ms,
            self.lease_ms,
            self.claim_jitter_ms,
            self.max_deliveries,
            self.delete_marker_ttl_ms,
        ] {
            put_varint(out, number);
        }
        // 0 is no priority; others are shifted by one.
        put_varint(out, self.priority.map_or(0, |priority| zigzag(priority as i64) + 1));
        put_optional_text(out, self.dead_letter.as_deref());
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        if reader.u8()? != VERSION {
            return Err(Malformed("topic config: written by a newer version"));
        }
        let topic_type = TopicType::decode(reader)?;
        let discard = match reader.u8()? {
            0 => Discard::Old,
            1 => Discard::Reject,
            _ => return Err(reader.malformed()),
        };
        let durability = match reader.u8()? {
            0 => Durability::Ephemeral,
            1 => Durability::Memory,
            2 => Durability::Disk,
            3 => Durability::Fsync,
            _ => return Err(reader.malformed()),
        };
        let compaction = match reader.u8()? {
            0 => Compaction::None,
            1 => Compaction::Key,
            _ => return Err(reader.malformed()),
        };
        Ok(TopicConfig {
            topic_type,
            discard,
            durability,
            compaction,
            auto_priority: reader.bool()?,
            auto_create: reader.bool()?,
            dedupe_node: reader.bool()?,
            leases_durable: reader.bool()?,
            ttl_ms: reader.varint()?,
            cap_records: reader.varint()?,
            cap_bytes: reader.varint()?,
            idempotency_window_ms: reader.varint()?,
            lease_ms: reader.varint()?,
            claim_jitter_ms: reader.varint()?,
            max_deliveries: reader.varint()?,
            delete_marker_ttl_ms: reader.varint()?,
            priority: match reader.varint()? {
                0 => None,
                shifted => Some(unzigzag(shifted - 1) as i32),
            },
            dead_letter: reader.optional_text()?.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_comes_back_as_it_was_stored() {
        let config = TopicConfig {
            topic_type: TopicType::Queue,
            discard: Discard::Reject,
            durability: Durability::Fsync,
            compaction: Compaction::Key,
            priority: Some(-1000),
            dead_letter: Some("dead".into()),
            ttl_ms: u64::MAX,
            leases_durable: true,
            ..TopicConfig::default()
        };
        for config in [config, TopicConfig::default()] {
            let mut bytes = BytesMut::new();
            config.encode(&mut bytes);
            let mut reader = Reader::new(&bytes, "topic config");
            assert_eq!(TopicConfig::decode(&mut reader), Ok(config));
            assert!(reader.finish().is_ok());
        }
    }
}
