//! How the links of routers do, as their leader knows it.
//!
//! It is in memory only: a new leader starts its links anew and finds out by itself. A member that does not lead
//! asks the leader when somebody wants to know.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Engine, Inner};
use crate::codec::{Malformed, Reader, put_blob, put_optional_number, put_optional_text, put_varint};
use crate::raft::Leader;
use crate::telemetry::seldom::SELDOM_INTERVAL;

const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// What a router is doing; a later one is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkState {
    Paused = 0,
    Running = 1,
    /// The last attempt failed, the next one is due.
    Retrying = 2,
    /// It goes on only when somebody acts.
    Blocked = 3,
}

impl LinkState {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            LinkState::Paused => "paused",
            LinkState::Running => "running",
            LinkState::Retrying => "retrying",
            LinkState::Blocked => "blocked",
        }
    }
}

/// Why a link does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkError {
    pub code: String,
    /// For people; never shows a token.
    pub message: String,
    /// The topic of the source that it is about, if it is one, and the record.
    pub topic: Option<String>,
    pub seq: Option<u64>,
    pub ts_ms: u64,
}

/// How one link does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    pub state: LinkState,
    /// Seqs of the source that were not examined yet. Only of mirrors: that of a local router is in the state.
    pub lag: u64,
    pub last_error: Option<LinkError>,
}

/// The status of every link that has one, by generation of its router: at most as many as there are routers.
#[derive(Debug, Default)]
pub struct Links(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    statuses: BTreeMap<u64, LinkStatus>,
    told: BTreeMap<u64, LastLine>,
}

/// What the log was told of a router last, and when.
#[derive(Debug, Clone, Copy)]
struct LastLine {
    state: LinkState,
    at: Instant,
}

impl LastLine {
    /// Whether a router that is in `state` now is worth a line. That it goes on is, if it was told not to; that it does
    /// not is told once in a while, however often it changes.
    fn is_news(last: Option<LastLine>, state: LinkState, now: Instant) -> bool {
        let told = last.map_or(LinkState::Running, |last| last.state);
        let is_recent = last.is_some_and(|last| now.duration_since(last.at) < SELDOM_INTERVAL);
        match (told >= LinkState::Retrying, state >= LinkState::Retrying) {
            (false, false) => false,
            (true, false) => true,
            (_, true) => state != told && !is_recent,
        }
    }
}

impl Known {
    /// Whether this is worth a line, which is taken for told then.
    fn is_news(&mut self, generation: u64, state: LinkState) -> bool {
        let now = Instant::now();
        let is_news = LastLine::is_news(self.told.get(&generation).copied(), state, now);
        if is_news {
            self.told.insert(generation, LastLine { state, at: now });
        }
        is_news
    }
}

impl Links {
    /// Sets a status; whether its state is worth a line of the log.
    pub fn set(&self, generation: u64, status: LinkStatus) -> bool {
        let mut known = self.0.lock();
        let is_news = known.is_news(generation, status.state);
        known.statuses.insert(generation, status);
        is_news
    }

    pub fn get(&self, generation: u64) -> Option<LinkStatus> {
        self.0.lock().statuses.get(&generation).cloned()
    }

    /// Forgets the status of a router that does well; whether that is worth a line of the log.
    pub fn goes_on(&self, generation: u64) -> bool {
        let mut known = self.0.lock();
        known.statuses.remove(&generation).is_some() && known.is_news(generation, LinkState::Running)
    }

    /// Forgets all of a router that is gone.
    pub fn forget(&self, generation: u64) {
        let mut known = self.0.lock();
        known.statuses.remove(&generation);
        known.told.remove(&generation);
    }

    /// Forgets those of other generations: routers that are gone, or all when this member no longer leads.
    pub fn retain(&self, mut is_wanted: impl FnMut(u64) -> bool) {
        let mut known = self.0.lock();
        known.statuses.retain(|generation, _| is_wanted(*generation));
        known.told.retain(|generation, _| is_wanted(*generation));
    }
}

pub(super) fn encode_generations(generations: &[u64]) -> BytesMut {
    let mut out = BytesMut::new();
    put_varint(&mut out, generations.len() as u64);
    generations.iter().for_each(|generation| put_varint(&mut out, *generation));
    out
}

pub(super) fn decode_generations(bytes: &[u8]) -> Result<Vec<u64>, Malformed> {
    let mut reader = Reader::new(bytes, "a request for links");
    let count = reader.count(1)?;
    let generations = (0..count).map(|_| reader.varint()).collect::<Result<_, _>>()?;
    reader.finish()?;
    Ok(generations)
}

pub(super) fn encode_statuses(statuses: &[Option<LinkStatus>]) -> BytesMut {
    let mut out = BytesMut::new();
    put_varint(&mut out, statuses.len() as u64);
    for status in statuses {
        out.put_u8(status.is_some() as u8);
        let Some(LinkStatus { state, lag, last_error }) = status else { continue };
        out.put_u8(*state as u8);
        put_varint(&mut out, *lag);
        out.put_u8(last_error.is_some() as u8);
        if let Some(LinkError { code, message, topic, seq, ts_ms }) = last_error {
            put_blob(&mut out, code.as_bytes());
            put_blob(&mut out, message.as_bytes());
            put_optional_text(&mut out, topic.as_deref());
            put_optional_number(&mut out, *seq);
            put_varint(&mut out, *ts_ms);
        }
    }
    out
}

pub(super) fn decode_statuses(bytes: &[u8]) -> Result<Vec<Option<LinkStatus>>, Malformed> {
    let mut reader = Reader::new(bytes, "statuses of links");
    let count = reader.count(1)?;
    let statuses = (0..count).map(|_| optional_status(&mut reader)).collect::<Result<_, _>>()?;
    reader.finish()?;
    Ok(statuses)
}

fn optional_status(reader: &mut Reader<'_>) -> Result<Option<LinkStatus>, Malformed> {
    if !reader.bool()? {
        return Ok(None);
    }
    let state = match reader.u8()? {
        0 => LinkState::Paused,
        1 => LinkState::Running,
        2 => LinkState::Retrying,
        3 => LinkState::Blocked,
        _ => return Err(reader.malformed()),
    };
    let lag = reader.varint()?;
    let last_error = match reader.bool()? {
        false => None,
        true => Some(LinkError {
            code: reader.text()?.to_owned(),
            message: reader.text()?.to_owned(),
            topic: reader.optional_text()?.map(str::to_owned),
            seq: reader.optional_number()?,
            ts_ms: reader.varint()?,
        }),
    };
    Ok(Some(LinkStatus { state, lag, last_error }))
}

impl Engine {
    /// How the links of this member do, while it leads.
    pub fn links(&self) -> &Links {
        &self.inner.links
    }

    /// How the links of these routers do, each `None` if it is not known: asked of the leader, wherever it is.
    pub(super) async fn link_statuses(&self, generations: &[u64]) -> Vec<Option<LinkStatus>> {
        let unknown = || vec![None; generations.len()];
        let leader = self.inner.node.leadership().borrow().leader.clone();
        match leader {
            Some(Leader::Here) => self.inner.links_of(generations),
            None => unknown(),
            Some(Leader::At(peer)) => {
                let request = encode_generations(generations);
                let reply = self.inner.node.ask_links(&peer, &request, ASK_TIMEOUT).await;
                let reply =
                    reply.and_then(|reply| decode_statuses(&reply).map_err(|error| error.to_string()));
                match reply {
                    Ok(statuses) if statuses.len() == generations.len() => statuses,
                    Ok(_) => unknown(),
                    Err(error) => {
                        tracing::debug!("the leader was asked for its links: {error}");
                        unknown()
                    }
                }
            }
        }
    }
}

impl Inner {
    pub(super) fn links_of(&self, generations: &[u64]) -> Vec<Option<LinkStatus>> {
        generations.iter().map(|generation| self.links.get(*generation)).collect()
    }

    /// Answers a member that asks as [`Engine::link_statuses`] does.
    pub(super) fn answer_links(&self, request: &[u8]) -> Result<BytesMut, String> {
        let generations = decode_generations(request).map_err(|error| error.to_string())?;
        Ok(encode_statuses(&self.links_of(&generations)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_router_that_does_not_go_on_is_told_and_one_that_flaps_is_told_seldom() {
        let links = Links::default();
        let set = |state| links.set(1, LinkStatus { state, lag: 0, last_error: None });
        assert!(
            !set(LinkState::Running) && !set(LinkState::Paused) && !links.goes_on(1),
            "as is to be expected"
        );
        assert!(set(LinkState::Retrying) && !set(LinkState::Retrying));
        assert!(!set(LinkState::Blocked), "that is told later, if it is still so");
        assert!(links.goes_on(1) && !links.goes_on(1), "who was told the bad is told the good");
        assert!(!set(LinkState::Blocked) && !links.goes_on(1));
        tokio::time::advance(SELDOM_INTERVAL).await;
        assert!(set(LinkState::Blocked) && !set(LinkState::Blocked));
        tokio::time::advance(SELDOM_INTERVAL).await;
        assert!(set(LinkState::Retrying) && set(LinkState::Running));
        links.retain(|_| false);
        assert!(set(LinkState::Retrying), "a new leader tells what it finds");
        links.forget(1);
        assert!(set(LinkState::Blocked));
    }

    #[test]
    fn statuses_cross_the_wire_unchanged() {
        let (code, message) = ("source_damaged".into(), "it is none".into());
        let error = LinkError { code, message, topic: Some("t".into()), seq: Some(9), ts_ms: 7 };
        let status = |state, last_error| Some(LinkStatus { state, lag: 1 << 40, last_error });
        let sent = vec![
            None,
            status(LinkState::Running, None),
            status(LinkState::Blocked, Some(error.clone())),
            status(LinkState::Retrying, Some(LinkError { topic: None, seq: None, ..error })),
            status(LinkState::Paused, None),
        ];
        let reply = encode_statuses(&sent);
        assert_eq!(decode_statuses(&reply), Ok(sent));
        (0..reply.len()).for_each(|cut| assert!(decode_statuses(&reply[..cut]).is_err()));
        let generations = vec![0, 300, u64::MAX];
        assert_eq!(decode_generations(&encode_generations(&generations)), Ok(generations));
    }
}
