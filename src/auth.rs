//! Layer 6: keys, what they grant, and who is calling.
//!
//! Keys come from one setting and are fixed while the process runs. They are bearer secrets, so only
//! their SHA-256 digests are kept: a dump of the memory, a log line or a `Debug` form of this type gives
//! nobody access. A presented key is compared with *every* digest in constant time. A hash map from digest
//! to grant would be quicker for thousands of keys, but its timing tells which buckets are taken; a
//! cluster has a handful of keys, and 32 bytes compare in nanoseconds.

mod refusals;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};
use tokio::sync::Semaphore;

use crate::error::{Code, Error};
use crate::limits::{MAX_CHANGES_UNDER_WAY_PER_KEY, MAX_PULLS_PER_KEY, MAX_TAG_DELETES_UNDER_WAY_PER_KEY};
use refusals::FromAddress;
pub use refusals::Refusals;

/// What a key may do, contract section 2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Read = 1,
    Write = 2,
    Delete = 4,
    Admin = 8,
}

impl Scope {
    fn bit(self) -> u8 {
        self as u8
    }

    fn name(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Write => "write",
            Scope::Delete => "delete",
            Scope::Admin => "admin",
        }
    }
}

const SCOPES: [Scope; 4] = [Scope::Read, Scope::Write, Scope::Delete, Scope::Admin];
const ALL_SCOPES: u8 = 15;
/// Of what prefixes a key has, as it is told in the log.
const MAX_TOLD_PREFIX_CHARS: usize = 200;

/// One entry of `api_keys`, without its secret.
#[derive(Debug)]
struct Grant {
    /// Bits of [`Scope`].
    scopes: u8,
    /// Empty: any name.
    prefixes: Vec<String>,
}

impl Grant {
    fn parse(scopes: Option<&str>, prefixes: Option<&str>) -> Result<Self, &'static str> {
        let prefixes = prefixes.unwrap_or_default().split('|').map(str::trim);
        Ok(Grant {
            scopes: parse_scopes(scopes.unwrap_or_default())?,
            prefixes: prefixes.filter(|prefix| !prefix.is_empty()).map(str::to_owned).collect(),
        })
    }

    fn has(&self, scope: Scope) -> bool {
        self.scopes & scope.bit() != 0
    }

    /// What it grants, for people.
    fn describe(&self) -> String {
        let scopes: Vec<&str> =
            SCOPES.into_iter().filter(|scope| self.has(*scope)).map(Scope::name).collect();
        let on = if self.prefixes.is_empty() { "" } else { " on " };
        let prefixes: String = self.prefixes.join("|").chars().take(MAX_TOLD_PREFIX_CHARS).collect();
        format!("{}{on}{prefixes}", scopes.join("+"))
    }

    fn reaches(&self, name: &str) -> bool {
        self.prefixes.is_empty() || self.prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
    }
}

fn parse_scopes(field: &str) -> Result<u8, &'static str> {
    if field.trim().is_empty() {
        return Ok(ALL_SCOPES);
    }
    field.split('+').try_fold(0, |bits, word| {
        let more = match word.trim() {
            "read" | "r" => Scope::Read.bit(),
            "write" | "w" => Scope::Write.bit(),
            "rw" => Scope::Read.bit() | Scope::Write.bit(),
            "delete" | "d" => Scope::Delete.bit(),
            "admin" | "a" => Scope::Admin.bit(),
            _ => return Err("has a scope that is none of read, write, delete, admin, r, w, d, a, rw"),
        };
        Ok(bits | more)
    })
}

/// A secret and all that its entries grant: the same secret may stand in several entries, so that one
/// key can, say, read everywhere and write under one prefix.
struct Key {
    digest: [u8; 32],
    /// Its first entry in the setting, from 1, which names it where its text must not stand.
    entry: usize,
    grants: Vec<Grant>,
    refusals: Arc<Refusals>,
    /// Requests under way.
    inflight: AtomicUsize,
    /// Streams that are open.
    streams: AtomicUsize,
    /// Pulls of mirrors, which nearly always wait.
    pulls: AtomicUsize,
    /// Bytes of bodies and messages that are held for it, and of frames of its streams.
    held_bytes: AtomicUsize,
    frame_bytes: AtomicUsize,
    /// Watch sessions, and the memory of those and of WebSockets.
    watch_sessions: AtomicUsize,
    watch_bytes: AtomicUsize,
    /// Turns of its changes, and of its deletes by tag.
    changes: Arc<Semaphore>,
    tag_deletes: Arc<Semaphore>,
}

/// Why the setting `api_keys` cannot be used. Names the entry by its ordinal only: its text is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadKeys {
    /// From 1; empty entries do not count.
    pub entry: usize,
    pub problem: &'static str,
}

impl fmt::Display for BadKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "api_keys: entry {} {}", self.entry, self.problem)
    }
}

impl std::error::Error for BadKeys {}

/// All keys of this process.
#[derive(Default)]
pub struct Keys {
    keys: Vec<Arc<Key>>,
    refusals: Arc<Refusals>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({} keys)", self.keys.len())
    }
}

impl Keys {
    /// Reads the setting `api_keys` (C-AUTH-02..06).
    pub fn parse(setting: &str) -> Result<Self, BadKeys> {
        let mut keys: Vec<Key> = Vec::new();
        let refusals = Arc::new(Refusals::default());
        // Comments and empty lines of a file are no keys, and are not counted as such.
        let entries = setting.split(',').filter(|entry| !entry.trim().is_empty());
        for (ordinal, entry) in entries.enumerate() {
            let bad = |problem| BadKeys { entry: ordinal + 1, problem };
            let mut fields = entry.splitn(3, ':').map(str::trim);
            let secret = fields.next().unwrap_or_default();
            if secret.is_empty() {
                return Err(bad("has an empty key"));
            }
            if secret.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(bad("has a key with white space in it; entries are separated by commas"));
            }
            let grant = Grant::parse(fields.next(), fields.next()).map_err(bad)?;
            let digest = digest_of(secret);
            match keys.iter_mut().find(|key| key.digest == digest) {
                Some(key) => key.grants.push(grant),
                None => keys.push(Key {
                    digest,
                    entry: ordinal + 1,
                    grants: vec![grant],
                    refusals: refusals.clone(),
                    inflight: AtomicUsize::new(0),
                    streams: AtomicUsize::new(0),
                    pulls: AtomicUsize::new(0),
                    held_bytes: AtomicUsize::new(0),
                    frame_bytes: AtomicUsize::new(0),
                    watch_sessions: AtomicUsize::new(0),
                    watch_bytes: AtomicUsize::new(0),
                    changes: Arc::new(Semaphore::new(MAX_CHANGES_UNDER_WAY_PER_KEY)),
                    tag_deletes: Arc::new(Semaphore::new(MAX_TAG_DELETES_UNDER_WAY_PER_KEY)),
                }),
            }
        }
        Ok(Keys { keys: keys.into_iter().map(Arc::new).collect(), refusals })
    }

    /// What is counted of those who are refused.
    pub fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }

    /// No keys are configured: every caller has all rights.
    pub fn is_off(&self) -> bool {
        self.keys.is_empty()
    }

    /// Who presents this key. 401 `unauthorized` for a missing or unknown one.
    pub fn authenticate(&self, presented: Option<&str>) -> Result<Caller, Error> {
        self.authenticate_from(presented, None)
    }

    /// The same of a caller at this address.
    pub fn authenticate_from(&self, presented: Option<&str>, from: Option<IpAddr>) -> Result<Caller, Error> {
        if self.is_off() {
            return Ok(Caller { key: None, from });
        }
        let digest = digest_of(presented.unwrap_or_default());
        let mut found = 0u64;
        for (ordinal, key) in self.keys.iter().enumerate() {
            found.conditional_assign(&(ordinal as u64 + 1), digest.ct_eq(&key.digest));
        }
        let refused = match (presented, found.checked_sub(1)) {
            (Some(_), Some(ordinal)) => {
                return Ok(Caller { key: self.keys.get(ordinal as usize).cloned(), from });
            }
            (Some(_), None) => "the key is not known",
            (None, _) => "a key is needed, in the header `Authorization: Bearer <key>`",
        };
        let error = Error::new(Code::Unauthorized, refused);
        self.refusals.note(&error, format_args!("a request{}", FromAddress(from)));
        Err(error)
    }

    /// Whether this key may do this, to this name: 401 before 403 (C-AUTH-12).
    pub fn check(&self, presented: Option<&str>, scope: Scope, name: Option<&str>) -> Result<(), Error> {
        self.authenticate(presented)?.check(scope, name)
    }
}

fn digest_of(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// A caller that has been let in, and what it may do.
#[derive(Clone)]
pub struct Caller {
    /// `None`: authentication is off.
    key: Option<Arc<Key>>,
    /// Its address, if that is known: maybe that of a proxy.
    from: Option<IpAddr>,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.key.is_some() { "Caller(with a key)" } else { "Caller(anyone)" })
    }
}

/// A place among the requests, the streams or the sessions of a key, or a part of its memory; dropping it gives
/// it back.
#[must_use]
pub struct Place {
    counted: Option<(Arc<Key>, Counter, usize)>,
}

type Counter = fn(&Key) -> &AtomicUsize;

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((key, counter, amount)) = &self.counted {
            counter(key).fetch_sub(*amount, Ordering::AcqRel);
        }
    }
}

impl Caller {
    /// Takes a place among the at most `max` requests of the caller's key (0: any number). 429 `throttled`
    /// if all are taken (C-LIMIT-09). Without keys there is nothing to count by.
    pub fn enter(&self, max: usize) -> Result<Place, Error> {
        self.count(|key| &key.inflight, 1, max, "max_inflight_per_key")
    }

    /// The same among its streams (C-LIMIT-08).
    pub fn enter_stream(&self, max: usize) -> Result<Place, Error> {
        self.count(|key| &key.streams, 1, max, "max_sse_connections_per_key")
    }

    /// The same among the pulls of mirrors, which wait for minutes and do nothing: there may be one per mirror.
    pub fn enter_pull(&self) -> Result<Place, Error> {
        self.count(|key| &key.pulls, 1, MAX_PULLS_PER_KEY, "max_pulls_per_key")
    }

    /// Counts the bytes that are held for the caller's key; `None` without keys.
    pub fn held_bytes(&self) -> Option<&AtomicUsize> {
        self.key.as_ref().map(|key| &key.held_bytes)
    }

    /// The same of frames of its streams.
    pub fn frame_bytes(&self) -> Option<&AtomicUsize> {
        self.key.as_ref().map(|key| &key.frame_bytes)
    }

    /// The same among its watch sessions (C-LIMIT-16).
    pub fn enter_watch_session(&self, max: usize) -> Result<Place, Error> {
        self.count(|key| &key.watch_sessions, 1, max, "max_watch_sessions_per_key")
    }

    /// Takes `bytes` of the at most `max` that the watch sessions and sockets of the key may hold.
    pub fn hold_watch_bytes(&self, bytes: usize, max: usize) -> Result<Place, Error> {
        self.count(|key| &key.watch_bytes, bytes, max, "watch_memory_bytes_per_key")
    }

    /// The turns of the changes of the caller's key; `None` without keys.
    pub fn changes(&self) -> Option<Arc<Semaphore>> {
        self.key.as_ref().map(|key| key.changes.clone())
    }

    /// The same of its deletes by tag.
    pub fn tag_deletes(&self) -> Option<Arc<Semaphore>> {
        self.key.as_ref().map(|key| key.tag_deletes.clone())
    }

    fn count(&self, counter: Counter, amount: usize, max: usize, limit: &str) -> Result<Place, Error> {
        let Some(key) = self.key.as_ref().filter(|_| max > 0) else { return Ok(Place { counted: None }) };
        let place = Place { counted: Some((key.clone(), counter, amount)) };
        let before = counter(key).fetch_add(amount, Ordering::AcqRel);
        if before.saturating_add(amount) <= max {
            return Ok(place);
        }
        Err(Error::over_limit(limit, max as u64))
    }

    /// What binds the thing of this name to the caller's key, and tells nobody the key or its digest; `None` if
    /// authentication is off. The same at every member.
    pub fn binding(&self, name: &str) -> Option<[u8; 32]> {
        let key = self.key.as_ref()?;
        Some(Sha256::new().chain_update(key.digest).chain_update(name.as_bytes()).finalize().into())
    }

    /// Whether the caller has `scope`, on `name` if there is one.
    pub fn may(&self, scope: Scope, name: Option<&str>) -> bool {
        let Some(key) = &self.key else { return true };
        key.grants.iter().any(|grant| grant.has(scope) && name.is_none_or(|name| grant.reaches(name)))
    }

    /// 403 `forbidden` unless the caller has `scope`, on `name` if there is one.
    pub fn check(&self, scope: Scope, name: Option<&str>) -> Result<(), Error> {
        if self.may(scope, name) {
            return Ok(());
        }
        Err(self.refuse(Error::new(
            Code::Forbidden,
            match name {
                Some(name) => format!("the key has no {} right on {name:?}", scope.name()),
                None => format!("the key has no {} right", scope.name()),
            },
        )))
    }

    /// Counts and tells that the caller's key is refused with `error`, which is given back.
    pub fn refuse(&self, error: Error) -> Error {
        if let Some(key) = &self.key {
            key.refusals.note(&error, self);
        }
        error
    }

    /// Whether the caller has `scope` on all names.
    pub fn is_unrestricted(&self, scope: Scope) -> bool {
        let Some(key) = &self.key else { return true };
        key.grants.iter().any(|grant| grant.has(scope) && grant.prefixes.is_empty())
    }

    /// 403 `forbidden` unless the caller may have records moved to `dest` by what it configures: else to configure would
    /// be to write (C-AUTH-13).
    pub fn check_dest(&self, dest: &str) -> Result<(), Error> {
        self.check(Scope::Admin, Some(dest))?;
        if self.is_unrestricted(Scope::Admin) { Ok(()) } else { self.check(Scope::Write, Some(dest)) }
    }

    /// As [`Caller::check`], for what concerns no single name but everything (C-AUTH-18).
    pub fn check_unrestricted(&self, scope: Scope) -> Result<(), Error> {
        if self.is_unrestricted(scope) {
            return Ok(());
        }
        let message = format!("this needs a key with the {} right on all names", scope.name());
        Err(self.refuse(Error::new(Code::Forbidden, message)))
    }

    /// The names with `prefix` that a list may show (C-AUTH-15), as prefixes in byte order of which none
    /// covers another: walking them one by one gives every visible name once, in order.
    pub fn visible_prefixes(&self, scope: Scope, prefix: &str) -> Vec<String> {
        let Some(key) = &self.key else { return vec![prefix.to_owned()] };
        let mut visible: Vec<String> = Vec::new();
        for grant in key.grants.iter().filter(|grant| grant.has(scope)) {
            if grant.prefixes.is_empty() {
                return vec![prefix.to_owned()];
            }
            for allowed in &grant.prefixes {
                if allowed.starts_with(prefix) {
                    visible.push(allowed.clone());
                } else if prefix.starts_with(allowed.as_str()) {
                    visible.push(prefix.to_owned());
                }
            }
        }
        visible.sort();
        // A prefix sorts right before everything that it covers.
        visible.dedup_by(|later, earlier| later.starts_with(earlier.as_str()));
        visible
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: Result<(), Error>) -> Option<Code> {
        result.err().map(|error| error.code)
    }

    #[test]
    fn without_keys_everybody_may_do_everything() {
        // C-AUTH-07
        for setting in ["", " , ,"] {
            let keys = Keys::parse(setting).unwrap();
            assert!(keys.is_off());
            assert_eq!(keys.check(Some("whatever"), Scope::Admin, Some("t")), Ok(()));
            assert_eq!(keys.check(None, Scope::Delete, None), Ok(()));
        }
    }

    #[test]
    fn a_missing_or_unknown_key_is_unauthorized_before_it_is_forbidden() {
        // C-AUTH-01, C-AUTH-12
        let keys = Keys::parse("secret:r:a").unwrap();
        for presented in [None, Some(""), Some("Secret"), Some("secret "), Some("secret:r:a")] {
            assert_eq!(code(keys.check(presented, Scope::Write, Some("b"))), Some(Code::Unauthorized));
        }
        assert_eq!(code(keys.check(Some("secret"), Scope::Write, Some("a"))), Some(Code::Forbidden));
        assert_eq!(code(keys.check(Some("secret"), Scope::Read, Some("b"))), Some(Code::Forbidden));
        assert_eq!(keys.check(Some("secret"), Scope::Read, Some("abc")), Ok(()));
    }

    #[test]
    fn entries_grant_what_they_say() {
        // C-AUTH-02..05
        let keys = Keys::parse("all, some : r + delete , rw:rw:m:|x:y , any::p:q:,, last:a").unwrap();
        let may = |key: &str, scope, name| keys.check(Some(key), scope, name).is_ok();
        assert!(may("all", Scope::Admin, Some("t")) && may("all", Scope::Read, None));
        assert!(may("some", Scope::Read, Some("t")) && may("some", Scope::Delete, None));
        assert!(!may("some", Scope::Write, None) && !may("some", Scope::Admin, None));
        assert!(may("rw", Scope::Write, Some("m:1")) && may("rw", Scope::Read, Some("x:yz")));
        assert!(!may("rw", Scope::Read, Some("m")) && !may("rw", Scope::Delete, Some("m:1")));
        assert!(may("any", Scope::Admin, Some("p:q:r")) && !may("any", Scope::Admin, Some("p:")));
        assert!(may("last", Scope::Admin, Some("t")) && !may("last", Scope::Read, Some("t")));
    }

    #[test]
    fn a_key_in_two_entries_has_the_rights_of_both() {
        let keys = Keys::parse("k:r,k:w:logs.").unwrap();
        assert!(keys.check(Some("k"), Scope::Read, Some("other")).is_ok());
        assert!(keys.check(Some("k"), Scope::Write, Some("logs.1")).is_ok());
        assert_eq!(code(keys.check(Some("k"), Scope::Write, Some("other"))), Some(Code::Forbidden));
    }

    #[test]
    fn a_bad_entry_is_named_by_its_ordinal_and_not_by_its_text() {
        // C-AUTH-06, C-AUTH-09
        for setting in [
            "good,topsecret:topsecret",
            "good,topsecret:r+",
            "good,topsecret:R",
            "good,:r",
            "good,topsecret\ntopsecret",
            "good,top secret:r",
        ] {
            let bad = Keys::parse(setting).unwrap_err();
            assert_eq!(bad.entry, 2);
            assert!(!bad.to_string().contains("topsecret") && !bad.to_string().contains("good"));
        }
    }

    #[test]
    fn debug_forms_show_no_key() {
        // C-AUTH-09
        let keys = Keys::parse("topsecret").unwrap();
        let caller = keys.authenticate(Some("topsecret")).unwrap();
        let shown = format!("{keys:?} {caller:?}");
        assert!(!shown.contains("topsecret") && !shown.contains('['), "{shown}");
    }

    #[test]
    fn only_a_key_without_prefixes_reaches_everything() {
        // C-AUTH-18
        let keys = Keys::parse("free:a,bound:a:t,reader:r").unwrap();
        let check = |key| code(keys.authenticate(Some(key)).unwrap().check_unrestricted(Scope::Admin));
        assert_eq!(check("free"), None);
        assert_eq!(check("bound"), Some(Code::Forbidden));
        assert_eq!(check("reader"), Some(Code::Forbidden));
    }

    #[test]
    fn a_key_has_so_many_requests_under_way_and_no_more() {
        // C-LIMIT-09, C-LIMIT-12, C-LIMIT-13
        let keys = Keys::parse("a,b").unwrap();
        let caller = |key| keys.authenticate(Some(key)).unwrap();
        let first = caller("a").enter(2).unwrap();
        let _second = caller("a").enter(2).unwrap();
        for _ in 0..3 {
            let error = caller("a").enter(2).err().expect("all places are taken");
            assert_eq!(error.code, Code::Throttled);
            assert_eq!(error.detail, Some(serde_json::json!({ "limit": "max_inflight_per_key", "max": 2 })));
        }
        let _other_key = caller("b").enter(2).unwrap();
        let _unlimited = caller("a").enter(0).unwrap();
        drop(first);
        let _again = caller("a").enter(2).unwrap();
        let off = Keys::default().authenticate(None).unwrap();
        let _places: Vec<Place> = (0..10).map(|_| off.enter(1).unwrap()).collect();
    }

    #[test]
    fn streams_of_a_key_are_counted_beside_its_requests() {
        // C-LIMIT-08, C-LIMIT-09
        let keys = Keys::parse("a").unwrap();
        let caller = keys.authenticate(Some("a")).unwrap();
        let stream = caller.enter_stream(1).unwrap();
        let _request = caller.enter(1).unwrap();
        let error = caller.enter_stream(1).err().expect("all places are taken");
        assert_eq!(error, Error::over_limit("max_sse_connections_per_key", 1));
        drop(stream);
        let _again = caller.enter_stream(1).unwrap();
    }

    #[test]
    fn pulls_of_a_key_are_counted_beside_its_requests() {
        let keys = Keys::parse("a").unwrap();
        let caller = keys.authenticate(Some("a")).unwrap();
        let mut pulls: Vec<Place> = (0..MAX_PULLS_PER_KEY).map(|_| caller.enter_pull().unwrap()).collect();
        let _request = caller.enter(1).unwrap();
        assert_eq!(caller.enter_pull().err().expect("all places are taken").code, Code::Throttled);
        drop(pulls.pop());
        let _again = caller.enter_pull().unwrap();
    }

    #[test]
    fn the_sessions_of_a_key_are_counted_and_their_memory() {
        // C-LIMIT-12, C-LIMIT-13, C-LIMIT-16
        let keys = Keys::parse("a,b").unwrap();
        let caller = |key| keys.authenticate(Some(key)).unwrap();
        let session = caller("a").enter_watch_session(1).unwrap();
        let error = caller("a").enter_watch_session(1).err().expect("all places are taken");
        assert_eq!(error, Error::over_limit("max_watch_sessions_per_key", 1));
        drop(session);
        let _session = caller("a").enter_watch_session(1).unwrap();
        let held = caller("a").hold_watch_bytes(60, 100).unwrap();
        assert!(caller("a").hold_watch_bytes(41, 100).is_err());
        let _rest = caller("a").hold_watch_bytes(40, 100).unwrap();
        let _other_key = caller("b").hold_watch_bytes(100, 100).unwrap();
        drop(held);
        let _again = caller("a").hold_watch_bytes(60, 100).unwrap();
        let off = Keys::default().authenticate(None).unwrap();
        let _any = (off.enter_watch_session(1).unwrap(), off.enter_watch_session(1).unwrap());
    }

    #[test]
    fn a_binding_is_of_one_key_and_one_name() {
        // C-WATCH-06
        let keys = Keys::parse("a,b").unwrap();
        let binding = |key, name| keys.authenticate(Some(key)).unwrap().binding(name);
        assert!(binding("a", "w").is_some());
        assert_eq!(binding("a", "w"), binding("a", "w"));
        assert!(binding("a", "w") != binding("b", "w") && binding("a", "w") != binding("a", "v"));
        assert_eq!(Keys::default().authenticate(None).unwrap().binding("w"), None);
    }

    #[test]
    fn visible_prefixes_are_disjoint_and_in_order() {
        // C-AUTH-15
        let keys = Keys::parse("k:r:m:|b|m:x|a1,w:w:b,free:r").unwrap();
        let visible =
            |key, prefix| keys.authenticate(Some(key)).unwrap().visible_prefixes(Scope::Read, prefix);
        assert_eq!(visible("k", ""), ["a1", "b", "m:"]);
        assert_eq!(visible("k", "m"), ["m:"]);
        assert_eq!(visible("k", "m:x"), ["m:x"]);
        assert_eq!(visible("k", "z"), Vec::<String>::new());
        assert_eq!(visible("w", ""), Vec::<String>::new());
        assert_eq!(visible("free", "z"), ["z"]);
    }
}
