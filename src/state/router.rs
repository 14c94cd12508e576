//! One router instance: its configuration, how far it has come, and what it counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::position::{Position, Reached};
use super::router_config::{Relays, RouterConfig};
use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::digest::Digest;
use crate::limits::{MAX_BEGUN_PER_ROUTER, MAX_POSITIONS, MAX_RELAYS, MAX_SKIPS, RUN_BLOCK_BYTES};

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
    /// Topic instances there from this epoch on were made after the two had met: they begin with their first
    /// record, and earlier ones where the configuration says. 0 until then.
    pub first_new_epoch: u64,
    /// Clusters whose records the remote has brought, and whether it may (C-MIRROR-18); at most [`MAX_RELAYS`].
    pub presented: BTreeMap<u128, bool>,
    /// Seqs of records to be passed over, by source topic; at most [`MAX_SKIPS`].
    pub skips: BTreeMap<Arc<str>, BTreeSet<u64>>,
    /// By source topic. A local router has exactly one; a mirror has none of a topic before its first copy.
    pub positions: BTreeMap<Arc<str>, Position>,
    /// How many of the positions hold something back.
    held_count: usize,
    /// How many of them have no destination; at most [`MAX_BEGUN_PER_ROUTER`].
    begun_count: usize,
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
/// With what the remote has presented, and what is to be passed over.
const HEAD_VERSION_REMOTE: u8 = 2;
/// With which topics of the remote are new, too.
const HEAD_VERSION_MET: u8 = 3;

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
            first_new_epoch: 0,
            presented: BTreeMap::new(),
            skips: BTreeMap::new(),
            held_count: 0,
            begun_count: 0,
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
        let is_same =
            |before: &Position| (before.source_epoch, before.dest_epoch) == (source_epoch, dest_epoch);
        let held_seq = before.filter(is_same).and_then(|before| before.held_seq);
        let position = Position { ordinal, source_epoch, dest_epoch, seq, entry, held_seq };
        self.recount(&source, before, Some(position));
        self.unsaved.positions.insert(source.clone());
        self.positions.insert(source, position);
    }

    /// Whether it may be noted where it begins in `source`, for which there is no destination yet, when all routers
    /// have so many positions.
    pub fn may_note_begun(&self, source: &str, in_all: usize) -> bool {
        in_all < MAX_POSITIONS && self.begun_count < MAX_BEGUN_PER_ROUTER
            || self.positions.contains_key(source)
    }

    /// Forgets what is passed over of `source` where it will not be asked for again: up to its position, or to where
    /// something was first left out, to which it may go back.
    pub(super) fn forget_skips(&mut self, source: &str) {
        let (Some(position), Some(skips)) = (self.positions.get(source), self.skips.get_mut(source)) else {
            return;
        };
        let done_seq = position.held_seq.map_or(position.seq, |held_seq| held_seq.min(position.seq));
        *skips = skips.split_off(&(done_seq + 1));
        if skips.is_empty() {
            self.skips.remove(source);
        }
    }

    /// Forgets how far it has come in `source`.
    pub fn remove_position(&mut self, source: &str) {
        self.skips.remove(source);
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

    /// Records behind `seq` of `source` were left out, because the remote may not bring them.
    pub(super) fn hold(&mut self, source: &str, seq: u64) {
        let Some((source, before)) = self.positions.get_key_value(source) else { return };
        let (source, before) = (source.clone(), *before);
        let held_seq = Some(before.held_seq.map_or(seq, |held| held.min(seq)));
        self.replace(source, before, Position { held_seq, ..before });
    }

    /// Notes whose records the remote has brought. `false` if that was known.
    pub(super) fn present(&mut self, clusters: impl Iterator<Item = u128>) -> bool {
        let mut is_new = false;
        for cluster in clusters {
            if self.presented.len() < MAX_RELAYS && !self.presented.contains_key(&cluster) {
                self.presented.insert(cluster, false);
                is_new = true;
            }
        }
        is_new
    }

    /// Lets the remote bring what it has presented until now, and looks again at what was left out. `false` if there
    /// is nothing to do.
    pub(super) fn trust_presented(&mut self) -> bool {
        let is_new = self.presented.values().any(|is_trusted| !is_trusted);
        self.presented.values_mut().for_each(|is_trusted| *is_trusted = true);
        self.look_again() || is_new
    }

    /// Goes back to where something was first left out. `false` if nothing was.
    pub(super) fn look_again(&mut self) -> bool {
        let held: Vec<(Arc<str>, Position)> = self
            .positions
            .iter()
            .filter(|(_, position)| position.held_seq.is_some())
            .map(|(source, position)| (source.clone(), *position))
            .collect();
        let has_held = !held.is_empty();
        for (source, before) in held {
            let Some(seq) = before.held_seq else { continue };
            // What was taken meanwhile is not taken again.
            let entry = before.entry.filter(|_| seq == before.seq);
            self.replace(source, before, Position { seq, entry, held_seq: None, ..before });
        }
        has_held
    }

    /// Whether records of the remote were left out.
    pub fn holds_back(&self) -> bool {
        self.held_count > 0
    }

    /// Whether the remote may bring records of this cluster.
    pub fn may_bring(&self, cluster: u128) -> bool {
        let Some(remote) = &self.config.remote else { return true };
        self.remote_cluster == Some(cluster)
            || match &remote.relays {
                Some(Relays::All) => true,
                Some(Relays::Of(ids)) => ids.contains(&cluster),
                None => self.presented.get(&cluster).copied().unwrap_or(false),
            }
    }

    /// Has the record at `seq` of `source` passed over as a gap, if it cannot be stored. `None` if too many are
    /// noted; otherwise whether it is still to come.
    pub(super) fn skip(&mut self, source: &str, seq: u64) -> Option<bool> {
        if self.positions.get(source).is_some_and(|position| position.seq >= seq) {
            return Some(false);
        }
        let is_known = self.skips.get(source).is_some_and(|skips| skips.contains(&seq));
        if !is_known && self.skips.values().map(BTreeSet::len).sum::<usize>() >= MAX_SKIPS {
            return None;
        }
        self.skips.entry(source.into()).or_default().insert(seq);
        Some(true)
    }

    /// Has whoever runs the router begin anew with it: it knows a configuration by its place in memory.
    pub(super) fn renew_config(&mut self) {
        self.config = Arc::new((*self.config).clone());
    }

    fn replace(&mut self, source: Arc<str>, before: Position, now: Position) {
        self.recount(&source, Some(before), Some(now));
        self.unsaved.positions.insert(source.clone());
        self.positions.insert(source, now);
    }

    fn recount(&mut self, source: &str, before: Option<Position>, now: Option<Position>) {
        let held = |position: Option<Position>| usize::from(position.is_some_and(|it| it.held_seq.is_some()));
        self.held_count = self.held_count + held(now) - held(before);
        let begun = |position: Option<Position>| usize::from(position.is_some_and(|it| it.dest_epoch == 0));
        self.begun_count = self.begun_count + begun(now) - begun(before);
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
        let has_more = self.remote_cluster.is_some() || !self.presented.is_empty() || !self.skips.is_empty();
        out.put_u8(if has_more { HEAD_VERSION_MET } else { HEAD_VERSION });
        put_blob(out, self.name.as_bytes());
        out.put_u8(self.is_paused as u8);
        put_varint(out, self.forwarded_total);
        put_varint(out, self.last_forwarded_ts_ms.map_or(0, |ts_ms| ts_ms.saturating_add(1)));
        out.put_u8(self.remote_cluster.is_some() as u8);
        if let Some(cluster) = self.remote_cluster {
            out.put_slice(&cluster.to_le_bytes());
        }
        put_varint(out, self.next_ordinal);
        if !has_more {
            return;
        }
        put_varint(out, self.first_new_epoch);
        put_varint(out, self.presented.len() as u64);
        for (cluster, is_trusted) in &self.presented {
            out.put_u128_le(*cluster);
            out.put_u8(u8::from(*is_trusted));
        }
        put_varint(out, self.skips.len() as u64);
        for (source, skips) in &self.skips {
            put_blob(out, source.as_bytes());
            put_varint(out, skips.len() as u64);
            skips.iter().for_each(|seq| put_varint(out, *seq));
        }
    }

    fn read_more(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        for _ in 0..reader.count(17)? {
            self.presented.insert(reader.u128()?, reader.bool()?);
        }
        for _ in 0..reader.count(2)? {
            let source: Arc<str> = reader.text()?.into();
            let count = reader.count(1)?;
            let skips = (0..count).map(|_| reader.varint()).collect::<Result<_, _>>()?;
            self.skips.insert(source, skips);
        }
        Ok(())
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
        let version = reader.u8()?;
        if !matches!(version, HEAD_VERSION | HEAD_VERSION_REMOTE | HEAD_VERSION_MET) {
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
        if version == HEAD_VERSION_MET {
            router.first_new_epoch = reader.varint()?;
        }
        if version != HEAD_VERSION {
            router.read_more(&mut reader)?;
        }
        router.config_parts = parts;
        router.unsaved = Unsaved::default();
        reader.finish()?;
        Ok(router)
    }

    pub(super) fn restore_position(&mut self, ordinal: u64, bytes: &[u8]) -> Result<(), Malformed> {
        let (source, position) = Position::decode(ordinal, bytes)?;
        self.recount(&source, None, Some(position));
        self.positions.insert(source, position);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Filter;
    use crate::state::{Key, Remote, Token};
    use crate::storage::EntryId;

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
                relays: None,
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
            assert_eq!(restored.first_new_epoch, router.first_new_epoch);
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
        router.first_new_epoch = 300;
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
    fn what_a_remote_may_not_bring_is_looked_at_again_once_it_may() {
        // C-MIRROR-18
        let config = |relays| {
            let remote = Remote { urls: vec!["http://b".into()], token: None, relays };
            RouterConfig { remote: Some(remote), ..RouterConfig::local("a*", "*") }
        };
        let mut router = Router::new("n".repeat(255).as_str().into(), 41, config(None));
        router.remote_cluster = Some(9);
        assert!(router.may_bring(9) && !router.may_bring(7));
        assert!(router.present([7, 9].into_iter()) && !router.present([9, 7].into_iter()));
        router.set_position("a1", reached(5));
        router.hold("a1", 5);
        router.set_position("a1", reached(60));
        router.hold("a1", 40);
        router.set_position("a2", reached(9));
        assert_eq!((router.positions["a1"].held_seq, router.holds_back()), (Some(5), true));
        // As much as there can be of everything.
        router.present(100u128..1000);
        assert_eq!(router.presented.len(), MAX_RELAYS);
        for number in 0..MAX_SKIPS as u64 {
            assert_eq!(router.skip(&format!("{}{number:02}", "a".repeat(253)), u64::MAX >> 4), Some(true));
        }
        assert_eq!((router.skip("a3", 9), router.skip("a1", 60)), (None, Some(false)));
        let mut stored = Stored::new();
        save(&mut router, &mut stored);
        let mut restored = restored(41, &stored);
        assert_eq!(restored.digest(), router.digest());
        assert_eq!((&restored.presented, &restored.skips), (&router.presented, &router.skips));
        assert!(restored.holds_back());
        assert!(restored.trust_presented() && restored.may_bring(7) && !restored.holds_back());
        assert_eq!((restored.positions["a1"].seq, restored.positions["a1"].entry), (5, None));
        assert_eq!(restored.positions["a2"].seq, 9);
        assert!(!restored.trust_presented());
        // One that was passed is forgotten, and one in another life of the topics holds nothing back.
        let name = format!("{}00", "a".repeat(253));
        restored.set_position(&name, Reached { seq: u64::MAX >> 4, ..reached(1) });
        restored.forget_skips(&name);
        assert_eq!(restored.skips.len(), MAX_SKIPS - 1);
        // Not one that it may have to pass again.
        restored.skips.clear();
        assert_eq!((restored.skip("a2", 20), restored.skip("a2", 30)), (Some(true), Some(true)));
        restored.set_position("a2", reached(40));
        restored.hold("a2", 25);
        restored.forget_skips("a2");
        assert_eq!(restored.skips["a2"], BTreeSet::from([30]));
        restored.hold("a2", 3);
        restored.set_position("a2", Reached { source_epoch: 8, ..reached(2) });
        assert!(!restored.holds_back());
        restored.reconfigure(config(Some(Relays::Of(vec![5]))));
        assert!(restored.may_bring(9) && restored.may_bring(5) && !restored.may_bring(7));
        restored.reconfigure(config(Some(Relays::All)));
        assert!(restored.may_bring(7));
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
