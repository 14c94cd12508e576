//! Commands: what the log carries and `apply` understands.
//!
//! A command is an entry (see `record.rs`) whose kind byte says what it is, whose records are what it
//! appends, and whose body holds everything else. The body ends in a trailer of fixed size, the
//! *envelope*: the session and number under which the sending member may safely repeat the command.
//! Forms are versioned by the entry head and pinned by the golden file `tests/golden/commands.txt`.

use bytes::{BufMut, Bytes, BytesMut};

use super::copy_command::{Copy, RoutePart, decode_route, encode_route};
use super::delete::Ranges;
use super::quota::ClusterLimits;
use super::router_config::RouterConfig;
use super::seq_set::{put_ranges, read_ranges};
use super::token::Token;
use super::topic_config::TopicConfig;
use crate::codec::{Malformed, Reader, put_blob, put_optional_number, put_optional_text, put_varint};
use crate::filter::TagMatch;
use crate::limits::MAX_TOPICS_PER_APPEND;
use crate::record::{EntryBuilder, EntryRecords, HeaderEdit, Record};

const KIND_APPEND: u8 = 1;
const KIND_PUT_TOPIC: u8 = 2;
const KIND_DELETE_TOPIC: u8 = 3;
const KIND_OPEN_SESSION: u8 = 4;
const KIND_EXPIRE: u8 = 5;
const KIND_APPEND_MANY: u8 = 6;
const KIND_SET_LIMITS: u8 = 7;
const KIND_DELETE_RECORDS: u8 = 8;
const KIND_PUT_ROUTER: u8 = 9;
const KIND_DELETE_ROUTER: u8 = 10;
const KIND_PAUSE_ROUTER: u8 = 11;
const KIND_SET_CLUSTER: u8 = 12;
const KIND_ROUTE: u8 = 13;
const KIND_COPY: u8 = 14;
const KIND_SKIP_RECORD: u8 = 16;
const KIND_SEAL_TOKEN: u8 = 17;
/// Without the bound of routers it is [`KIND_SET_LIMITS`].
const KIND_SET_LIMITS_WITHOUT_KEYS: u8 = 15;
/// Without where each part begins it is [`KIND_COPY`].
const KIND_COPY_FROM_STARTS: u8 = 18;
/// Without the bound of idempotency keys it is [`KIND_SET_LIMITS_WITHOUT_KEYS`].
const KIND_SET_ALL_LIMITS: u8 = 19;

const ENVELOPE_BYTES: usize = 32;

/// Which attempt of whom a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Envelope {
    /// Raft id of the member whose session it is.
    pub node_id: u64,
    /// The session, chosen at random by the member.
    pub session: u64,
    /// Number of the command in its session; attempts of one command share it.
    pub number: u64,
    /// Every number below this one has its outcome and will not be sent again.
    pub done_below: u64,
}

impl Envelope {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        for value in [self.node_id, self.session, self.number, self.done_below] {
            out.put_u64_le(value);
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "envelope");
        Ok(Envelope {
            node_id: reader.u64()?,
            session: reader.u64()?,
            number: reader.u64()?,
            done_below: reader.u64()?,
        })
    }
}

/// What a write does when its topic is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Create {
    /// It is refused with `topic_not_found`.
    Never,
    /// The topic is made with this configuration.
    With(TopicConfig),
}

/// Append of the entry's records to one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append<'a> {
    pub topic: &'a str,
    pub create: Create,
    pub expect_head_seq: Option<u64>,
    pub idempotency_key: Option<&'a str>,
}

impl<'a> Append<'a> {
    fn encode(&self, out: &mut BytesMut) {
        put_blob(out, self.topic.as_bytes());
        match &self.create {
            Create::Never => out.put_u8(0),
            // By far the most common configuration is the default one; it costs one byte.
            Create::With(config) if *config == TopicConfig::default() => out.put_u8(1),
            Create::With(config) => {
                out.put_u8(2);
                config.encode(out);
            }
        }
        put_optional_number(out, self.expect_head_seq);
        put_optional_text(out, self.idempotency_key);
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Append {
            topic: reader.text()?,
            create: match reader.u8()? {
                0 => Create::Never,
                1 => Create::With(TopicConfig::default()),
                2 => Create::With(TopicConfig::decode(reader)?),
                _ => return Err(reader.malformed()),
            },
            expect_head_seq: reader.optional_number()?,
            idempotency_key: reader.optional_text()?,
        })
    }
}

/// One topic's part of an append to several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppendPart<'a> {
    pub append: Append<'a>,
    /// How many of the entry's records are its: those after the ones of the parts before it.
    pub record_count: u32,
}

/// Removal of records of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteRecords<'a> {
    pub topic: &'a str,
    /// Only records with a lower seq; `None` is no bound.
    pub before_seq: Option<u64>,
    /// Only records of these; `None` is all.
    pub listed: Option<Listed>,
}

/// Records that a member found by looking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The topic instance that was looked at.
    pub epoch: u64,
    pub ranges: Ranges,
    /// Those that match among what was written after the look; `None` if only `ranges` are meant.
    pub late: Option<LateMatch>,
}

/// What else is removed: records above the highest seq that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateMatch {
    pub seen_seq: u64,
    pub tags: TagMatch,
}

/// A router to be made or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutRouter<'a> {
    pub name: &'a str,
    /// Its `start` is the default one if none was given.
    pub config: RouterConfig,
    /// Without it, a router that exists keeps the start that it has.
    pub is_start_given: bool,
}

/// The token of a router, sealed in the place of the one that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealToken {
    /// The router.
    pub generation: u64,
    /// Of the configuration in which the token was found.
    pub config_digest: u64,
    pub token: Token,
}

/// Who the cluster is, for other clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    pub id: u128,
    pub name: String,
}

/// Everything that changes replicated state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<'a> {
    Append(Append<'a>),
    /// Appends to several topics, which differ: all of them or none.
    AppendMany(Vec<AppendPart<'a>>),
    PutTopic {
        topic: &'a str,
        config: TopicConfig,
    },
    DeleteTopic {
        topic: &'a str,
        if_empty: bool,
    },
    DeleteRecords(DeleteRecords<'a>),
    /// Copies of local records, by reference.
    Route(Vec<RoutePart>),
    /// Copies of records of another cluster.
    Copy(Copy<'a>),
    /// Takes what is expired in the topics that are due, the longest overdue first.
    Expire,
    /// What the whole cluster may hold from now on.
    SetLimits(ClusterLimits),
    PutRouter(PutRouter<'a>),
    DeleteRouter {
        router: &'a str,
    },
    /// Pauses a router, or has it go on.
    PauseRouter {
        router: &'a str,
        pause: bool,
    },
    /// Has a mirror pass over a record of its source that cannot be stored.
    SkipRecord {
        router: &'a str,
        source: &'a str,
        seq: u64,
    },
    /// Changes nothing if the router is configured otherwise by now.
    SealToken(SealToken),
    /// Changes nothing if the cluster has an identity.
    SetCluster(Cluster),
    /// Opens the session that the envelope names, in place of the member's earlier one. Changes nothing if it is
    /// open; refused if another one has taken its place.
    OpenSession,
}

impl Cluster {
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u128_le(self.id);
        put_blob(out, self.name.as_bytes());
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Cluster { id: reader.u128()?, name: reader.text()?.to_owned() })
    }
}

/// An encoded command that still lacks its envelope: what a handler hands to the engine.
pub struct Draft {
    bytes: BytesMut,
}

impl Draft {
    /// An append of `records`.
    pub fn append<'a>(
        append: &Append<'_>,
        records: impl ExactSizeIterator<Item = Record<'a>>,
        size_hint_bytes: usize,
    ) -> Self {
        let mut builder = EntryBuilder::new(KIND_APPEND, records.len(), size_hint_bytes + 128);
        records.for_each(|record| builder.push(&record));
        let mut bytes = builder.finish();
        append.encode(&mut bytes);
        Draft { bytes }
    }

    /// Appends to several topics; `records` are those of all parts, in order.
    pub fn append_many<'a>(
        parts: &[AppendPart<'_>],
        records: impl Iterator<Item = Record<'a>>,
        size_hint_bytes: usize,
    ) -> Self {
        let count: usize = parts.iter().map(|part| part.record_count as usize).sum();
        let mut builder = EntryBuilder::new(KIND_APPEND_MANY, count, size_hint_bytes + 128);
        records.for_each(|record| builder.push(&record));
        let mut bytes = builder.finish();
        put_varint(&mut bytes, parts.len() as u64);
        for part in parts {
            put_varint(&mut bytes, u64::from(part.record_count));
            part.append.encode(&mut bytes);
        }
        Draft { bytes }
    }

    pub fn set_limits(limits: &ClusterLimits) -> Self {
        let mut bytes = EntryBuilder::new(KIND_SET_ALL_LIMITS, 0, 64).finish();
        limits.encode(&mut bytes);
        Draft { bytes }
    }

    pub fn put_topic(topic: &str, config: &TopicConfig) -> Self {
        let mut bytes = EntryBuilder::new(KIND_PUT_TOPIC, 0, 128).finish();
        put_blob(&mut bytes, topic.as_bytes());
        config.encode(&mut bytes);
        Draft { bytes }
    }

    pub fn delete_topic(topic: &str, if_empty: bool) -> Self {
        let mut bytes = EntryBuilder::new(KIND_DELETE_TOPIC, 0, 128).finish();
        put_blob(&mut bytes, topic.as_bytes());
        bytes.put_u8(if_empty as u8);
        Draft { bytes }
    }

    pub fn delete_records(delete: &DeleteRecords<'_>) -> Self {
        let mut bytes = EntryBuilder::new(KIND_DELETE_RECORDS, 0, 256).finish();
        put_blob(&mut bytes, delete.topic.as_bytes());
        put_optional_number(&mut bytes, delete.before_seq);
        bytes.put_u8(delete.listed.is_some() as u8);
        if let Some(listed) = &delete.listed {
            put_varint(&mut bytes, listed.epoch);
            put_ranges(&mut bytes, &listed.ranges);
            match &listed.late {
                None => bytes.put_u8(0),
                Some(LateMatch { seen_seq, tags }) => {
                    let (kind, text) = match tags {
                        TagMatch::Eq(tag) => (1, tag),
                        TagMatch::Glob(prefix) => (2, prefix),
                    };
                    bytes.put_u8(kind);
                    put_blob(&mut bytes, text.as_bytes());
                    put_varint(&mut bytes, *seen_seq);
                }
            }
        }
        Draft { bytes }
    }

    pub fn route(parts: &[RoutePart]) -> Self {
        let mut bytes = EntryBuilder::new(KIND_ROUTE, 0, 64 + 24 * parts.len()).finish();
        encode_route(parts, &mut bytes);
        Draft { bytes }
    }

    /// `records` are the stored bytes of those of all parts, in order, and what is changed in them. An error: what
    /// came of it cannot be read back, and must not get into the log.
    pub fn copy<'a>(
        copy: &Copy<'_>,
        records: impl ExactSizeIterator<Item = (&'a [u8], HeaderEdit<'a>)> + Clone,
    ) -> Result<Self, Malformed> {
        let size_bytes: usize = records.clone().map(|(stored, _)| stored.len() + 16).sum();
        let count = records.len();
        let mut builder = EntryBuilder::new(KIND_COPY_FROM_STARTS, count, size_bytes + 1024);
        for (stored, edit) in records {
            Record::decode(builder.push_stored(stored, edit)?)?;
        }
        let mut bytes = builder.finish();
        let body_at = bytes.len();
        copy.encode(&mut bytes);
        let mut reader = Reader::new(&bytes[body_at..], "copy");
        Copy::decode(&mut reader, count as u32)?;
        reader.finish()?;
        Ok(Draft { bytes })
    }

    pub fn put_router(put: &PutRouter<'_>) -> Self {
        let mut bytes = EntryBuilder::new(KIND_PUT_ROUTER, 0, 512).finish();
        put_blob(&mut bytes, put.name.as_bytes());
        put.config.encode(&mut bytes);
        bytes.put_u8(put.is_start_given as u8);
        Draft { bytes }
    }

    pub fn delete_router(router: &str) -> Self {
        let mut bytes = EntryBuilder::new(KIND_DELETE_ROUTER, 0, 128).finish();
        put_blob(&mut bytes, router.as_bytes());
        Draft { bytes }
    }

    pub fn pause_router(router: &str, pause: bool) -> Self {
        let mut bytes = EntryBuilder::new(KIND_PAUSE_ROUTER, 0, 128).finish();
        put_blob(&mut bytes, router.as_bytes());
        bytes.put_u8(pause as u8);
        Draft { bytes }
    }

    pub fn skip_record(router: &str, source: &str, seq: u64) -> Self {
        let mut bytes = EntryBuilder::new(KIND_SKIP_RECORD, 0, 256).finish();
        put_blob(&mut bytes, router.as_bytes());
        put_blob(&mut bytes, source.as_bytes());
        put_varint(&mut bytes, seq);
        Draft { bytes }
    }

    pub fn seal_token(seal: &SealToken) -> Self {
        let mut bytes = EntryBuilder::new(KIND_SEAL_TOKEN, 0, 256).finish();
        put_varint(&mut bytes, seal.generation);
        bytes.put_u64_le(seal.config_digest);
        put_blob(&mut bytes, seal.token.sealed_bytes().unwrap_or_default());
        Draft { bytes }
    }

    pub fn set_cluster(cluster: &Cluster) -> Self {
        let mut bytes = EntryBuilder::new(KIND_SET_CLUSTER, 0, 128).finish();
        cluster.encode(&mut bytes);
        Draft { bytes }
    }

    pub fn expire() -> Self {
        Draft { bytes: EntryBuilder::new(KIND_EXPIRE, 0, 64).finish() }
    }

    pub fn open_session() -> Self {
        Draft { bytes: EntryBuilder::new(KIND_OPEN_SESSION, 0, 64).finish() }
    }

    /// The finished command.
    pub fn seal(mut self, envelope: Envelope) -> Bytes {
        envelope.encode(&mut self.bytes);
        self.bytes.freeze()
    }
}

/// Whether an encoded command appends records: what a full disk has no room for.
pub fn carries_records(command: &[u8]) -> bool {
    // The count in the entry's head.
    command.get(4..8).is_some_and(|count| count != [0; 4])
}

/// Whether an encoded command is one that this version can apply.
pub fn check_command(command: &Bytes) -> Result<(), Malformed> {
    Decoded::parse(command.clone())?.command().map(drop)
}

/// A command and its records, as `apply` takes them. The command borrows from the entry's bytes.
pub struct Decoded {
    pub envelope: Envelope,
    pub records: EntryRecords,
}

impl Decoded {
    /// Reads the parts that every command has.
    pub fn parse(entry: Bytes) -> Result<Self, Malformed> {
        let records = EntryRecords::parse(entry)?;
        let body = records.body();
        let at = body.len().checked_sub(ENVELOPE_BYTES).ok_or(Malformed("command"))?;
        let envelope = Envelope::decode(&body[at..])?;
        Ok(Decoded { envelope, records })
    }

    /// Reads the command itself.
    pub fn command(&self) -> Result<Command<'_>, Malformed> {
        let body = self.records.body();
        let mut reader = Reader::new(&body[..body.len() - ENVELOPE_BYTES], "command");
        let command = match self.records.kind() {
            KIND_APPEND => Command::Append(Append::decode(&mut reader)?),
            KIND_APPEND_MANY => Command::AppendMany(self.parts(&mut reader)?),
            KIND_PUT_TOPIC => {
                Command::PutTopic { topic: reader.text()?, config: TopicConfig::decode(&mut reader)? }
            }
            KIND_DELETE_TOPIC => Command::DeleteTopic { topic: reader.text()?, if_empty: reader.bool()? },
            KIND_DELETE_RECORDS => Command::DeleteRecords(DeleteRecords {
                topic: reader.text()?,
                before_seq: reader.optional_number()?,
                listed: if reader.bool()? { Some(listed(&mut reader)?) } else { None },
            }),
            KIND_ROUTE => Command::Route(decode_route(&mut reader)?),
            KIND_COPY => Command::Copy(Copy::decode_first(&mut reader, self.records.count())?),
            KIND_COPY_FROM_STARTS => Command::Copy(Copy::decode(&mut reader, self.records.count())?),
            KIND_EXPIRE => Command::Expire,
            KIND_SET_LIMITS => Command::SetLimits(ClusterLimits::decode_first(&mut reader)?),
            KIND_SET_LIMITS_WITHOUT_KEYS => {
                Command::SetLimits(ClusterLimits::decode_without_keys(&mut reader)?)
            }
            KIND_SET_ALL_LIMITS => Command::SetLimits(ClusterLimits::decode(&mut reader)?),
            KIND_PUT_ROUTER => Command::PutRouter(PutRouter {
                name: reader.text()?,
                config: RouterConfig::decode(&mut reader)?,
                is_start_given: reader.bool()?,
            }),
            KIND_DELETE_ROUTER => Command::DeleteRouter { router: reader.text()? },
            KIND_PAUSE_ROUTER => Command::PauseRouter { router: reader.text()?, pause: reader.bool()? },
            KIND_SKIP_RECORD => {
                Command::SkipRecord { router: reader.text()?, source: reader.text()?, seq: reader.varint()? }
            }
            KIND_SEAL_TOKEN => Command::SealToken(SealToken {
                generation: reader.varint()?,
                config_digest: reader.u64()?,
                token: Token::sealed(reader.blob()?.to_vec()),
            }),
            KIND_SET_CLUSTER => Command::SetCluster(Cluster::decode(&mut reader)?),
            KIND_OPEN_SESSION => Command::OpenSession,
            _ => return Err(Malformed("command: of a kind that this version does not know")),
        };
        reader.finish()?;
        Ok(command)
    }

    /// The parts of an append to several topics, which take up the entry's records to the last.
    fn parts<'a>(&self, reader: &mut Reader<'a>) -> Result<Vec<AppendPart<'a>>, Malformed> {
        let count = reader.count(4)?;
        let mut parts = Vec::with_capacity(count.min(MAX_TOPICS_PER_APPEND));
        let mut left = u64::from(self.records.count());
        for _ in 0..count {
            let record_count = reader.varint()?;
            left = left.checked_sub(record_count).ok_or(reader.malformed())?;
            let record_count = u32::try_from(record_count).map_err(|_| reader.malformed())?;
            parts.push(AppendPart { append: Append::decode(reader)?, record_count });
        }
        if left == 0 { Ok(parts) } else { Err(reader.malformed()) }
    }
}

fn listed(reader: &mut Reader<'_>) -> Result<Listed, Malformed> {
    let (epoch, ranges) = (reader.varint()?, read_ranges(reader)?);
    let kind = reader.u8()?;
    if kind == 0 {
        return Ok(Listed { epoch, ranges, late: None });
    }
    let text = reader.text()?.to_owned();
    let tags = match kind {
        1 => TagMatch::Eq(text),
        2 => TagMatch::Glob(text),
        _ => return Err(reader.malformed()),
    };
    Ok(Listed { epoch, ranges, late: Some(LateMatch { seen_seq: reader.varint()?, tags }) })
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;
    use crate::record::ENTRY_VERSION;

    fn decode(entry: Bytes) {
        if let Ok(decoded) = Decoded::parse(entry) {
            let _ = decoded.command();
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            kind in 0u8..20, body in proptest::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..200), raw: Vec<u8>,
        ) {
            decode(raw.into());
            let mut entry = BytesMut::new();
            entry.put_slice(&[ENTRY_VERSION, kind, 0, 0, 0, 0, 0, 0]);
            entry.put_slice(&body);
            decode(entry.freeze());
        }

        #[test]
        fn arbitrary_damage_never_panics(which in 0usize..3, at: prop::sample::Index, byte: u8) {
            let create = Create::With(TopicConfig::default());
            let append = Append { topic: "t", create, expect_head_seq: Some(3), idempotency_key: Some("key") };
            let records = [Record { tag: Some("tag"), data: "[1]", ..Record::default() }; 2];
            let late = Some(LateMatch { seen_seq: 9, tags: TagMatch::Glob("a".to_owned()) });
            let listed = Some(Listed { epoch: 7, ranges: vec![1..=3, 9..=1000], late });
            let draft = match which {
                0 => Draft::append(&append, records.into_iter(), 0),
                1 => Draft::put_topic("t", &TopicConfig::default()),
                _ => Draft::delete_records(&DeleteRecords { topic: "t", before_seq: None, listed }),
            };
            let command = draft.seal(Envelope { node_id: 1, session: 2, number: 3, done_below: 3 });
            decode(command.clone());
            let mut bytes = command.to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            decode(bytes.into());
        }
    }
}
