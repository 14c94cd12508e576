//! Requests for pages and their answers (contract section 9), with the records as the member wrote them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::options::Options;
use crate::limits::MAX_PAGE_RECORDS;

const NO_MEMBER: &str = "what answered is no member of antiphon";

/// Everything that a reader is: the same cursor gives the same records at every member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The last seq that was looked at.
    pub from_seq: u64,
    /// The life of the topic that it belongs to; `None` before the first answer.
    pub epoch: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Cursor(Cursor),
    /// Unix milliseconds.
    Time(u64),
}

#[derive(Serialize)]
pub struct Query<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    from_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_ts: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    limit: u64,
    wait_ms: u64,
    include_tags: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    node: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<&'a RawValue>,
}

impl<'a> Query<'a> {
    /// For the page at `place`, of at most `left` records.
    pub fn new(place: &Place, wait_ms: u64, left: Option<u64>, options: &'a Options) -> Self {
        let (cursor, from_ts) = match *place {
            Place::Cursor(cursor) => (Some(cursor), None),
            Place::Time(ts_ms) => (None, Some(ts_ms)),
        };
        Query {
            from_seq: cursor.map(|cursor| cursor.from_seq),
            from_ts,
            epoch: cursor.and_then(|cursor| cursor.epoch),
            limit: left.unwrap_or(u64::MAX).min(MAX_PAGE_RECORDS as u64),
            wait_ms,
            include_tags: true,
            node: &options.nodes,
            filter: options.filter.as_deref(),
        }
    }

    pub fn body(&self) -> Bytes {
        // Texts, numbers and JSON that was checked: nothing that could not be written.
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

#[derive(Deserialize)]
pub struct Page<'a> {
    pub epoch: Option<u64>,
    #[serde(borrow)]
    pub records: Vec<&'a RawValue>,
    pub next_from_seq: u64,
    pub head_seq: u64,
    pub caught_up: bool,
    #[serde(borrow, default)]
    pub tombstone: Option<&'a RawValue>,
}

impl<'a> Page<'a> {
    pub fn parse(body: &'a [u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|_| NO_MEMBER.to_owned())
    }

    /// Where the next page begins.
    pub fn cursor(&self) -> Cursor {
        Cursor { from_seq: self.next_from_seq, epoch: self.epoch }
    }
}

/// What is looked at in the state of a topic.
#[derive(Deserialize)]
pub struct TopicState {
    pub head_seq: u64,
    pub epoch: Option<u64>,
}

impl TopicState {
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|_| NO_MEMBER.to_owned())
    }
}
