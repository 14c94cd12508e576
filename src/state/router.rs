//! One router instance: its configuration, how far it has come, and what it counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::router_config::RouterConfig;
use super::{put_entry_id, read_entry_id};
use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::digest::Digest;
use crate::limits::RUN_BLOCK_BYTES;
use crate::storage::EntryId;

/// How far a router has come in one topic of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Which of the router's positions it is: its place in the checkpoint. Never used again.
    pub ordinal: u64,
    /// The topic instance that is read.
    pub source_epoch: u64,
    /// The topic instance that the copies go to.
    pub dest_epoch: u64,
    /// Every record up to this seq was examined.
    pub seq: u64,
    /// The source's log entry of the record at `seq`; only of a mirror.
    pub entry: Option<EntryId>,
}

/// A [`Position`] that is to take the place of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    pub source_epoch: u64,
    pub dest_epoch: u64,
    pub seq: u64,
    pub entry: Option<EntryId>,
}

/// One life of a router name.
#[derive(Debug, Clone)]
pub struct Router {
    pub name: Arc<str>,
    /// Tells it from earlier and later ones of the name; never repeats.
    pub generation: u64,
    pub config: Arc<RouterConfig>,
    pub is_paused: bool,
    /// Copies stored.
    pub forwarded_total: u64,
    pub last_forwarded_ts_ms: Option<u64>,
    /// The cluster that a mirror reads, once it is known.
    pub remote_cluster: Option<u128>,
    /// By source topic. A local router has exactly one; a mirror has none of a topic before its first copy.
    pub positions: BTreeMap<Arc<str>, Position>,
    next_ordinal: u64,
    /// Sum of what the positions count for, so that one of many changes cheaply.
    positions_digest: u64,
    unsaved: Unsaved,
    /// Values that the last checkpoint holds of the configuration.
    config_parts: u64,
}

/// What no checkpoint has seen.
#[derive(Debug, Clone, Default)]
struct Unsaved {
    config: bool,
    positions: BTreeSet<Arc<str>>,
    /// Ordinals of positions that are gone.
    gone: Vec<u64>,
}

/// The stored parts of one router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterKey {
    /// The part of the configuration with this number.
    Config(u64),
    Head,
    /// The position of this ordinal.
    Position(u64),
}

const HEAD_VERSION: u8 = 1;
const POSITION_VERSION: u8 = 1;

impl Router {
    pub(super) fn new(name: Arc<str>, generation: u64, config: RouterConfig) -> Self {
        Router {
            name,
            generation,
            config: Arc::new(config),
            is_paused: false,
            forwarded_total: 0,
            last_forwarded_ts_ms: None,
            remote_cluster: None,
            positions: BTreeMap::new(),
            next_ordinal: 0,
            positions_digest: 0,
            unsaved: Unsaved { config: true, ..Unsaved::default() },
            config_parts: 0,
        }
    }

    /// Takes a new configuration; `false` if it is the one it has.
    pub(super) fn reconfigure(&mut self, config: RouterConfig) -> bool {
        if *self.config == config {
            return false;
        }
        self.config = Arc::new(config);
        self.unsaved.config = true;
        true
    }

    /// The router has come to `reached` in `source`.
    pub fn set_position(&mut self, source: &str, reached: Reached) {
        let Reached { source_epoch, dest_epoch, seq, entry } = reached;
        let (source, before) = match self.positions.get_key_value(source) {
            Some((source, before)) => (source.clone(), Some(*before)),
            None => (Arc::from(source), None),
        };
        let ordinal = before.map_or(self.next_ordinal, |before| before.ordinal);
        self.next_ordinal = self.next_ordinal.max(ordinal + 1);
        let position = Position { ordinal, source_epoch, dest_epoch, seq, entry };
        self.recount(&source, before, Some(position));
        self.unsaved.positions.insert(source.clone());
        self.positions.insert(source, position);
    }

    /// Forgets how far it has come in `source`.
    pub fn remove_position(&mut self, source: &str) {
        if let Some((source, position)) = self.positions.remove_entry(source) {
            self.recount(&source, Some(position), None);
            self.unsaved.positions.remove(&source);
            self.unsaved.gone.push(position.ordinal);
        }
    }

    /// Counts copies that were stored at `ts_ms`.
    pub fn count_forwarded(&mut self, copies: u64, ts_ms: u64) {
        if copies > 0 {
            self.forwarded_total += copies;
            self.last_forwarded_ts_ms = Some(ts_ms);
        }
    }

    fn recount(&mut self, source: &str, before: Option<Position>, now: Option<Position>) {
        let value = |position: Option<Position>| position.map_or(0, |position| position.digest(source));
        self.positions_digest = self.positions_digest.wrapping_sub(value(before)).wrapping_add(value(now));
    }

    pub(super) fn digest(&self) -> u64 {
        let mut digest = Digest::default();
        let mut bytes = BytesMut::new();
        self.put_head(&mut bytes);
        self.config.encode(&mut bytes);
        digest.add_bytes(&bytes);
        digest.add(self.generation);
        digest.add(self.positions_digest);
        digest.value()
    }

    fn put_head(&self, out: &mut BytesMut) {
        out.put_u8(HEAD_VERSION);
        put_blob(out, self.name.as_bytes());
        out.put_u8(self.is_paused as u8);
        put_varint(out, self.forwarded_total);
        put_varint(out, self.last_forwarded_ts_ms.map_or(0, |ts_ms| ts_ms.saturating_add(1)));
        out.put_u8(self.remote_cluster.is_some() as u8);
        if let Some(cluster) = self.remote_cluster {
            out.put_slice(&cluster.to_le_bytes());
        }
        put_varint(out, self.next_ordinal);
    }

    /// Hands everything that changed since the last call to `store`.
    pub(super) fn take_changes(&mut self, store: &mut impl FnMut(RouterKey, Option<Vec<u8>>)) {
        let unsaved = std::mem::take(&mut self.unsaved);
        if unsaved.config {
            let mut bytes = BytesMut::new();
            self.config.encode(&mut bytes);
            let parts = bytes.len().div_ceil(RUN_BLOCK_BYTES) as u64;
            for (number, part) in (0..).zip(bytes.chunks(RUN_BLOCK_BYTES)) {
                store(RouterKey::Config(number), Some(part.to_vec()));
            }
            (parts..self.config_parts).for_each(|stale| store(RouterKey::Config(stale), None));
            self.config_parts = parts;
        }
        let mut head = BytesMut::new();
        self.put_head(&mut head);
        store(RouterKey::Head, Some(head.to_vec()));
        unsaved.gone.iter().for_each(|ordinal| store(RouterKey::Position(*ordinal), None));
        for source in unsaved.positions {
            let Some(position) = self.positions.get(&source) else { continue };
            store(RouterKey::Position(position.ordinal), Some(position.encode(&source)));
        }
    }

    /// Every key under which the checkpoint may hold something of this router.
    pub(super) fn stored_keys(&self) -> impl Iterator<Item = RouterKey> {
        let positions = self.positions.values().map(|position| position.ordinal);
        let positions = positions.chain(self.unsaved.gone.iter().copied());
        std::iter::once(RouterKey::Head)
            .chain((0..self.config_parts).map(RouterKey::Config))
            .chain(positions.map(RouterKey::Position))
    }

    /// Rebuilds a router from its stored configuration, all parts of it, and its head. Positions follow.
    pub(super) fn restore(generation: u64, config: &[u8], head: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(config, "router config");
        let parts = config.len().div_ceil(RUN_BLOCK_BYTES) as u64;
        let config = RouterConfig::decode(&mut reader)?;
        reader.finish()?;
        let mut reader = Reader::new(head, "router");
        if reader.u8()? != HEAD_VERSION {
            return Err(Malformed("router: written by another version"));
        }
        let mut router = Router::new(reader.text()?.into(), generation, config);
        router.is_paused = reader.bool()?;
        router.forwarded_total = reader.varint()?;
        router.last_forwarded_ts_ms = reader.varint()?.checked_sub(1);
        if reader.bool()? {
            router.remote_cluster = Some(reader.u128()?);
        }
        router.next_ordinal = reader.varint()?;
        router.config_parts = parts;
        router.unsaved = Unsaved::default();
        reader.finish()?;
        Ok(router)
    }

    pub(super) fn restore_position(&mut self, ordinal: u64, bytes: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(bytes, "position of a router");
        if reader.u8()? != POSITION_VERSION {
            return Err(Malformed("position of a router: written by another version"));
        }
        let source: Arc<str> = reader.text()?.into();
        let (source_epoch, dest_epoch) = (reader.varint()?, reader.varint()?);
        let (seq, entry) = (reader.varint()?, read_entry_id(&mut reader)?);
        reader.finish()?;
        let position = Position { ordinal, source_epoch, dest_epoch, seq, entry };
        self.recount(&source, None, Some(position));
        self.positions.insert(source, position);
        Ok(())
    }
}

impl Position {
    fn encode(&self, source: &str) -> Vec<u8> {
        let mut out = BytesMut::new();
        out.put_u8(POSITION_VERSION);
        put_blob(&mut out, source.as_bytes());
        for value in [self.source_epoch, self.dest_epoch, self.seq] {
            put_varint(&mut out, value);
        }
        put_entry_id(&mut out, self.entry);
        out.to_vec()
    }

    fn digest(&self, source: &str) -> u64 {
        let mut digest = Digest::default();
        digest.add_bytes(source.as_bytes());
        let (term, index) = self.entry.map_or((0, 0), |entry| (entry.term, entry.index));
        for value in [self.ordinal, self.source_epoch, self.dest_epoch, self.seq, term, index] {
            digest.add(value);
        }
        digest.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Filter;
    use crate::state::{Key, Remote, Token};

    type Stored = BTreeMap<Vec<u8>, Vec<u8>>;

    fn save(router: &mut Router, stored: &mut Stored) {
        let generation = router.generation;
        router.take_changes(&mut |key, value| {
            let key = Key::Router(generation, key).encode();
            match value {
                // What the store of checkpoints holds inline.
                Some(value) => {
                    assert!(value.len() < 7 << 10);
                    drop(stored.insert(key, value));
                }
                None => assert!(stored.remove(&key).is_some()),
            }
        });
    }

    fn restored(generation: u64, stored: &Stored) -> Router {
        let (mut config, mut router) = (Vec::new(), None);
        for (key, value) in stored {
            match Key::decode(key) {
                Ok(Key::Router(_, RouterKey::Config(_))) => config.extend_from_slice(value),
                Ok(Key::Router(_, RouterKey::Head)) => {
                    router = Some(Router::restore(generation, &config, value).unwrap());
                }
                Ok(Key::Router(_, RouterKey::Position(ordinal))) => {
                    router.as_mut().unwrap().restore_position(ordinal, value).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        router.unwrap()
    }

    /// As large as it may be.
    fn large_config() -> RouterConfig {
        let leaves = vec![format!(r#"["tag","Eq","{}"]"#, "x".repeat(230)); 60].join(",");
        RouterConfig {
            filter: Some(Filter::parse(&format!(r#"["Or",[{leaves}]]"#)).unwrap()),
            remote: Some(Remote {
                urls: vec![format!("http://{}", "h".repeat(2000)); 16],
                token: Some(Token::new("t".repeat(4096))),
            }),
            ..RouterConfig::local("s".repeat(255), "d".repeat(255))
        }
    }

    fn reached(seq: u64) -> Reached {
        Reached { source_epoch: 7, dest_epoch: 9, seq, entry: Some(EntryId { term: 2, index: seq * 3 }) }
    }

    #[test]
    fn a_router_comes_back_as_it_was_stored() {
        let mut router = Router::new("r>1".into(), 41, large_config());
        let mut stored = Stored::new();
        let mut check = |router: &mut Router| {
            save(router, &mut stored);
            let restored = restored(41, &stored);
            assert_eq!((&restored.config, &restored.positions), (&router.config, &router.positions));
            assert_eq!(restored.digest(), router.digest());
            assert_eq!(router.stored_keys().count(), stored.len());
        };
        check(&mut router);
        for seq in 1..50 {
            router.set_position(&format!("topic{}", seq % 7), reached(seq));
        }
        router.is_paused = true;
        router.count_forwarded(5, 1000);
        router.count_forwarded(0, 2000);
        router.remote_cluster = Some(u128::MAX - 1);
        check(&mut router);
        assert_eq!((router.forwarded_total, router.last_forwarded_ts_ms), (5, Some(1000)));
        // Less of everything; an ordinal is never used again.
        router.remove_position("topic6");
        router.set_position("topic6", reached(60));
        router.remove_position("topic0");
        router.remove_position("topic0");
        assert!(router.reconfigure(RouterConfig::local("a", "b")));
        check(&mut router);
        assert_eq!(router.positions["topic6"].ordinal, 7);
        check(&mut router);
    }

    #[test]
    fn everything_counts_in_the_digest_and_the_way_there_does_not() {
        let router = || Router::new("r".into(), 41, RouterConfig::local("a", "b"));
        let (mut one, mut other) = (router(), router());
        assert_eq!(one.digest(), other.digest());
        one.set_position("x", reached(1));
        other.set_position("x", reached(8));
        assert_ne!(one.digest(), other.digest());
        one.set_position("x", reached(8));
        assert_eq!(one.digest(), other.digest());
        other.is_paused = true;
        assert_ne!(one.digest(), other.digest());
        other = Router::new("r".into(), 42, RouterConfig::local("a", "b"));
        other.set_position("x", reached(8));
        assert_ne!(one.digest(), other.digest());
    }
}
