//! Outcomes: what `apply` answers.
//!
//! A refusal is an outcome like any other, never an `Err`: every member reaches the same one, it is
//! remembered for repeats like the others, and it travels back to the member that asked.

use bytes::{BufMut, BytesMut};
use serde_json::json;

use super::dedupe::Remembered;
use super::quota::Limit;
use super::router_config::Start;
use super::topic_config::{TopicConfig, TopicType};
use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::error::{Code, Error};
use crate::limits::MAX_SKIPS;

/// Where an append landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub first_seq: u64,
    /// Records of the request; their seqs are `first_seq .. first_seq + count`.
    pub count: u64,
    /// The head right after this append.
    pub head_seq: u64,
    /// The topic was made by this request.
    pub created: bool,
    /// The request repeats one that is remembered; nothing was appended.
    pub deduped: bool,
}

impl Appended {
    /// What a write is answered with that repeats a remembered one.
    pub(super) fn repeat_of(known: Remembered) -> Self {
        Appended {
            first_seq: known.first_seq,
            count: known.count,
            head_seq: known.head_seq(),
            created: false,
            deduped: true,
        }
    }

    fn encode(&self, out: &mut BytesMut) {
        put_varint(out, self.first_seq);
        put_varint(out, self.count);
        put_varint(out, self.head_seq);
        out.put_u8(self.created as u8);
        out.put_u8(self.deduped as u8);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Appended {
            first_seq: reader.varint()?,
            count: reader.varint()?,
            head_seq: reader.varint()?,
            created: reader.bool()?,
            deduped: reader.bool()?,
        })
    }
}

/// What a delete of records came to, and where the topic stands after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordsDeleted {
    pub deleted: u64,
    pub earliest_seq: u64,
    pub head_seq: u64,
    /// Live records and the bytes that they count for.
    pub count: u64,
    pub bytes: u64,
}

/// What became of one part of what a router wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarded {
    /// Copies that were stored.
    pub taken: u64,
    /// Seq of the source up to which everything was examined; 0 if nothing was.
    pub seq: u64,
    /// Why that is not all.
    pub stopped: Option<Refusal>,
}

impl Forwarded {
    pub(super) fn stopped(refusal: Refusal) -> Self {
        Forwarded { taken: 0, seq: 0, stopped: Some(refusal) }
    }
}

/// Why a command was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    TopicNotFound,
    TypeDiffers {
        existing: TopicType,
        requested: TopicType,
    },
    NotEmpty {
        count: u64,
    },
    HeadMismatch {
        head_seq: u64,
    },
    /// The topic refuses what is too much, and holds too much for this write.
    TopicFull {
        cap_records: u64,
        cap_bytes: u64,
        head_seq: u64,
        earliest_seq: u64,
    },
    /// The write alone is more than such a topic may hold.
    AboveCaps {
        cap_records: u64,
        cap_bytes: u64,
    },
    SessionUnknown,
    OverLimit {
        limit: Limit,
        max: u64,
    },
    /// Too much was written, or the topic was made anew, since the member that asks looked for what to delete.
    LookAgain,
    /// The router or its position is not what the command was made for.
    RouterMoved,
    RouterNotFound,
    /// What a router reads and writes, and where it started, never changes.
    RepointForbidden,
    /// The placeholder of a token for a router that has none stored.
    NoStoredToken,
    /// The router copies no such topic from another cluster.
    NotMirrored,
    /// So many records are to be passed over already that were not reached yet.
    TooManySkips,
    /// The placeholder of a token beside a URL that the stored token was not meant for.
    TokenOfOtherUrls,
    /// The leader has not told yet who the cluster is.
    NoCluster,
    /// The command carries bytes that are no record.
    BadRecord,
}

/// The result of one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Appended(Appended),
    /// One per part, in order.
    AppendedMany(Vec<Appended>),
    /// A part of an append to several topics was refused, and with it the whole.
    PartRefused {
        part: u64,
        refusal: Refusal,
    },
    /// The keys of these parts are known, those of the others are not: nothing was appended.
    KeysConflict {
        parts: Vec<u64>,
    },
    LimitsSet,
    TopicPut {
        created: bool,
        config: TopicConfig,
    },
    TopicDeleted {
        deleted: bool,
        /// Names of the routers that went with it, in byte order.
        routers_removed: Vec<String>,
    },
    RouterPut {
        created: bool,
        /// What it has, also if the command gave none.
        start: Start,
        has_token: bool,
        /// It is another one than before.
        is_changed: bool,
    },
    RouterDeleted {
        deleted: bool,
    },
    RouterPaused {
        is_paused: bool,
    },
    /// Or there was nothing to seal any more.
    TokenSealed,
    RecordSkipped {
        /// It was still to come.
        skipped: bool,
    },
    /// The router would close a cycle: its source, the topics on the way, and its source again.
    RouterCycle {
        cycle: Vec<String>,
    },
    ClusterSet,
    SessionOpened,
    /// How many topics had something expired.
    Expired {
        topic_count: u64,
    },
    RecordsDeleted(RecordsDeleted),
    /// One per part, in order.
    Forwarded(Vec<Forwarded>),
    Refused(Refusal),
    /// For entries without a command.
    Nothing,
}

impl Outcome {
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Outcome::Nothing => out.put_u8(0),
            Outcome::Appended(appended) => {
                out.put_u8(1);
                appended.encode(out);
            }
            Outcome::AppendedMany(parts) => {
                out.put_u8(10);
                put_varint(out, parts.len() as u64);
                parts.iter().for_each(|appended| appended.encode(out));
            }
            Outcome::PartRefused { part, refusal } => {
                out.put_u8(7);
                put_varint(out, *part);
                refusal.encode(out);
            }
            Outcome::KeysConflict { parts } => {
                out.put_u8(8);
                put_varint(out, parts.len() as u64);
                parts.iter().for_each(|part| put_varint(out, *part));
            }
            Outcome::LimitsSet => out.put_u8(9),
            Outcome::TopicPut { created, config } => {
                out.put_u8(2);
                out.put_u8(*created as u8);
                config.encode(out);
            }
            Outcome::TopicDeleted { deleted, routers_removed } if routers_removed.is_empty() => {
                out.put_u8(3);
                out.put_u8(*deleted as u8);
            }
            Outcome::TopicDeleted { deleted, routers_removed } => {
                out.put_u8(20);
                out.put_u8(*deleted as u8);
                put_names(out, routers_removed);
            }
            Outcome::RouterPut { created, start, has_token, is_changed } => {
                out.put_u8(21);
                out.put_u8(*created as u8);
                start.encode(out);
                out.put_u8(*has_token as u8);
                out.put_u8(*is_changed as u8);
            }
            Outcome::RouterDeleted { deleted } => {
                out.put_u8(22);
                out.put_u8(*deleted as u8);
            }
            Outcome::RouterPaused { is_paused } => {
                out.put_u8(23);
                out.put_u8(*is_paused as u8);
            }
            Outcome::TokenSealed => out.put_u8(27),
            Outcome::RecordSkipped { skipped } => {
                out.put_u8(26);
                out.put_u8(u8::from(*skipped));
            }
            Outcome::RouterCycle { cycle } => {
                out.put_u8(24);
                put_names(out, cycle);
            }
            Outcome::ClusterSet => out.put_u8(25),
            Outcome::SessionOpened => out.put_u8(4),
            Outcome::Refused(refusal) => {
                out.put_u8(5);
                refusal.encode(out);
            }
            Outcome::Expired { topic_count } => {
                out.put_u8(6);
                put_varint(out, *topic_count);
            }
            Outcome::RecordsDeleted(RecordsDeleted { deleted, earliest_seq, head_seq, count, bytes }) => {
                out.put_u8(11);
                for value in [*deleted, *earliest_seq, *head_seq, *count, *bytes] {
                    put_varint(out, value);
                }
            }
            Outcome::Forwarded(parts) => {
                out.put_u8(12);
                put_varint(out, parts.len() as u64);
                for Forwarded { taken, seq, stopped } in parts {
                    put_varint(out, *taken);
                    put_varint(out, *seq);
                    out.put_u8(stopped.is_some() as u8);
                    if let Some(refusal) = stopped {
                        refusal.encode(out);
                    }
                }
            }
        }
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match reader.u8()? {
            0 => Outcome::Nothing,
            1 => Outcome::Appended(Appended::decode(reader)?),
            2 => Outcome::TopicPut { created: reader.bool()?, config: TopicConfig::decode(reader)? },
            3 => Outcome::TopicDeleted { deleted: reader.bool()?, routers_removed: Vec::new() },
            20 => Outcome::TopicDeleted { deleted: reader.bool()?, routers_removed: names(reader)? },
            21 => Outcome::RouterPut {
                created: reader.bool()?,
                start: Start::decode(reader)?,
                has_token: reader.bool()?,
                is_changed: reader.bool()?,
            },
            22 => Outcome::RouterDeleted { deleted: reader.bool()? },
            23 => Outcome::RouterPaused { is_paused: reader.bool()? },
            24 => Outcome::RouterCycle { cycle: names(reader)? },
            25 => Outcome::ClusterSet,
            27 => Outcome::TokenSealed,
            26 => Outcome::RecordSkipped { skipped: reader.bool()? },
            4 => Outcome::SessionOpened,
            5 => Outcome::Refused(Refusal::decode(reader)?),
            6 => Outcome::Expired { topic_count: reader.varint()? },
            7 => Outcome::PartRefused { part: reader.varint()?, refusal: Refusal::decode(reader)? },
            8 => {
                let count = reader.count(1)?;
                Outcome::KeysConflict {
                    parts: (0..count).map(|_| reader.varint()).collect::<Result<_, _>>()?,
                }
            }
            9 => Outcome::LimitsSet,
            10 => {
                let count = reader.count(5)?;
                Outcome::AppendedMany((0..count).map(|_| Appended::decode(reader)).collect::<Result<_, _>>()?)
            }
            11 => Outcome::RecordsDeleted(RecordsDeleted {
                deleted: reader.varint()?,
                earliest_seq: reader.varint()?,
                head_seq: reader.varint()?,
                count: reader.varint()?,
                bytes: reader.varint()?,
            }),
            12 => {
                let count = reader.count(3)?;
                let part = |_| -> Result<Forwarded, Malformed> {
                    let (taken, seq) = (reader.varint()?, reader.varint()?);
                    let stopped = if reader.bool()? { Some(Refusal::decode(reader)?) } else { None };
                    Ok(Forwarded { taken, seq, stopped })
                };
                Outcome::Forwarded((0..count).map(part).collect::<Result<_, _>>()?)
            }
            _ => return Err(reader.malformed()),
        })
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Outcome::Refused(refusal)
    }
}

fn put_names(out: &mut BytesMut, names: &[String]) {
    put_varint(out, names.len() as u64);
    names.iter().for_each(|name| put_blob(out, name.as_bytes()));
}

fn names(reader: &mut Reader<'_>) -> Result<Vec<String>, Malformed> {
    let count = reader.count(1)?;
    (0..count).map(|_| reader.text().map(str::to_owned)).collect()
}

impl TopicType {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            TopicType::Log => "log",
            TopicType::Queue => "queue",
        }
    }
}

impl Refusal {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Refusal::TopicNotFound => out.put_u8(0),
            Refusal::TypeDiffers { existing, requested } => {
                out.put_u8(1);
                out.put_u8(*existing as u8);
                out.put_u8(*requested as u8);
            }
            Refusal::NotEmpty { count } => {
                out.put_u8(2);
                put_varint(out, *count);
            }
            Refusal::HeadMismatch { head_seq } => {
                out.put_u8(3);
                put_varint(out, *head_seq);
            }
            Refusal::SessionUnknown => out.put_u8(4),
            Refusal::TopicFull { cap_records, cap_bytes, head_seq, earliest_seq } => {
                out.put_u8(5);
                for value in [*cap_records, *cap_bytes, *head_seq, *earliest_seq] {
                    put_varint(out, value);
                }
            }
            Refusal::AboveCaps { cap_records, cap_bytes } => {
                out.put_u8(6);
                put_varint(out, *cap_records);
                put_varint(out, *cap_bytes);
            }
            Refusal::LookAgain => out.put_u8(9),
            Refusal::RouterMoved => out.put_u8(10),
            Refusal::RouterNotFound => out.put_u8(20),
            Refusal::RepointForbidden => out.put_u8(21),
            Refusal::NoStoredToken => out.put_u8(22),
            Refusal::NoCluster => out.put_u8(23),
            Refusal::BadRecord => out.put_u8(24),
            Refusal::TokenOfOtherUrls => out.put_u8(25),
            Refusal::NotMirrored => out.put_u8(26),
            Refusal::TooManySkips => out.put_u8(27),
            Refusal::OverLimit { limit, max } => {
                out.put_u8(8);
                out.put_u8(*limit as u8);
                put_varint(out, *max);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match reader.u8()? {
            0 => Refusal::TopicNotFound,
            1 => Refusal::TypeDiffers {
                existing: TopicType::decode(reader)?,
                requested: TopicType::decode(reader)?,
            },
            2 => Refusal::NotEmpty { count: reader.varint()? },
            3 => Refusal::HeadMismatch { head_seq: reader.varint()? },
            4 => Refusal::SessionUnknown,
            5 => Refusal::TopicFull {
                cap_records: reader.varint()?,
                cap_bytes: reader.varint()?,
                head_seq: reader.varint()?,
                earliest_seq: reader.varint()?,
            },
            6 => Refusal::AboveCaps { cap_records: reader.varint()?, cap_bytes: reader.varint()? },
            9 => Refusal::LookAgain,
            10 => Refusal::RouterMoved,
            20 => Refusal::RouterNotFound,
            21 => Refusal::RepointForbidden,
            22 => Refusal::NoStoredToken,
            23 => Refusal::NoCluster,
            24 => Refusal::BadRecord,
            25 => Refusal::TokenOfOtherUrls,
            26 => Refusal::NotMirrored,
            27 => Refusal::TooManySkips,
            8 => Refusal::OverLimit {
                limit: Limit::from_number(reader.u8()?).ok_or(reader.malformed())?,
                max: reader.varint()?,
            },
            _ => return Err(reader.malformed()),
        })
    }

    /// The error that a client sees, for a command on `topic`; for one on a router that is its name.
    pub fn into_error(self, topic: &str) -> Error {
        match self {
            Refusal::RouterNotFound => Error::router_not_found(topic),
            Refusal::RepointForbidden => Error::new(
                Code::TopicExistsIncompatible,
                format!("what router {topic:?} reads and writes, and where it started, cannot change"),
            )
            .with_detail(json!({ "router": topic, "reason": "router_repoint_forbidden" })),
            Refusal::NoStoredToken => {
                Error::invalid(format!("router {topic:?} has no stored token for \"***\" to stand for"))
            }
            Refusal::NotMirrored => {
                Error::invalid(format!("router {topic:?} mirrors no such topic of another cluster"))
            }
            Refusal::TooManySkips => Error::over_limit("skips_per_router", MAX_SKIPS as u64),
            Refusal::TokenOfOtherUrls => Error::invalid(
                "`remote.token`: \"***\" stands for the stored token only if every URL was there before",
            )
            .with_detail(json!({ "field": "remote.token" })),
            Refusal::NoCluster => {
                Error::new(Code::NoLeader, "the leader has not told yet who the cluster is; nothing was done")
            }
            Refusal::BadRecord => {
                Error::new(Code::Internal, "what was to be written is no record; nothing was stored")
            }
            Refusal::TopicNotFound => Error::topic_not_found(topic),
            Refusal::TypeDiffers { existing, requested } => Error::new(
                Code::TopicExistsIncompatible,
                format!("topic {topic:?} is a {} and cannot become a {}", existing.name(), requested.name()),
            )
            .with_detail(json!({
                "topic": topic, "existing_type": existing.name(), "requested_type": requested.name()
            })),
            Refusal::NotEmpty { count } => {
                Error::new(Code::TopicNotEmpty, format!("topic {topic:?} still holds {count} records"))
                    .with_detail(json!({ "topic": topic, "count": count }))
            }
            Refusal::HeadMismatch { head_seq } => {
                Error::new(Code::HeadMismatch, format!("the head of topic {topic:?} is {head_seq}"))
                    .with_detail(json!({ "topic": topic, "head_seq": head_seq }))
            }
            Refusal::OverLimit { limit, max } => Error::over_limit(limit.name(), max),
            Refusal::TopicFull { cap_records, cap_bytes, head_seq, earliest_seq } => Error::new(
                Code::TopicFull,
                format!("topic {topic:?} is full and refuses what does not fit"),
            )
            .with_detail(json!({
                "topic": topic, "cap_records": cap_records, "cap_bytes": cap_bytes, "head_seq": head_seq,
                "earliest_seq": earliest_seq
            })),
            Refusal::AboveCaps { cap_records, cap_bytes } => Error::new(
                Code::RecordTooLarge,
                format!("the write alone is more than topic {topic:?} may hold"),
            )
            .with_detail(json!({ "topic": topic, "cap_records": cap_records, "cap_bytes": cap_bytes })),
            Refusal::LookAgain => Error::new(
                Code::NoLeader,
                "so much was written meanwhile that what to delete could not be told; nothing was deleted",
            ),
            Refusal::RouterMoved => Error::new(Code::NoLeader, "the router was changed meanwhile"),
            Refusal::SessionUnknown => Error::new(
                Code::CommitUnknown,
                "the cluster no longer remembers this member's session; the write may or may not have taken \
                 effect",
            ),
        }
    }
}

#[cfg(test)]
mod tests;
