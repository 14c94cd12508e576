//! What streams tell, in the two forms in which they tell it: SSE events and WebSocket messages (contract
//! sections 17.3 and 18).
//!
//! The frames with records are written once and shared by all that want the same, see `engine/lane.rs`; so they
//! hold nothing of a single connection.

use bytes::Bytes;

use super::diff::{Shape, decoded, put_tombstone, records_bytes};
use super::diff_body::Shown;
use crate::api::json::{JsonWriter, Raw};
use crate::api::problem::internal;
use crate::engine::{Page, Tombstone};
use crate::error::Error;

const TAGS: u32 = 1;
const META: u32 = 2;
const DATA: u32 = 4;
const WEB_SOCKET: u32 = 8;
const ORIGIN: u32 = 16;

const FRAME_ROOM_BYTES: usize = 192;

/// How a stream's records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    pub shown: Shown,
    pub is_web_socket: bool,
}

impl Form {
    /// The number that stands for it in a `View`.
    pub fn number(self) -> u32 {
        let Shown { tags, meta, data, origin } = self.shown;
        [(tags, TAGS), (meta, META), (data, DATA), (origin, ORIGIN), (self.is_web_socket, WEB_SOCKET)]
            .into_iter()
            .map(|(is_set, bit)| if is_set { bit } else { 0 })
            .sum()
    }

    fn of(number: u32) -> Self {
        let has = |bit| number & bit != 0;
        Form {
            shown: Shown { tags: has(TAGS), meta: has(META), data: has(DATA), origin: has(ORIGIN) },
            is_web_socket: has(WEB_SOCKET),
        }
    }
}

/// The records of a page, for [`crate::engine::Watcher`].
pub fn encode_records(form: u32, topic: &str, from_seq: u64, page: &Page) -> Result<Bytes, Error> {
    let Form { shown, is_web_socket } = Form::of(form);
    let mut json = JsonWriter::with_capacity(FRAME_ROOM_BYTES + topic.len() + records_bytes(page));
    let mut damage = None;
    let mut put_records = |json: &mut JsonWriter| {
        let records = page.records.iter().map(|record| {
            let content = decoded(record, &mut damage);
            Shape { record, content, shown }
        });
        json.array_field("records", records);
    };
    let put_place = |json: &mut JsonWriter| {
        json.field("from_seq", from_seq);
        json.field("to_seq", page.next_from_seq);
        json.field("head_seq", page.head_seq);
    };
    if is_web_socket {
        json.object(|json| {
            json.field("op", "record");
            json.field("topic", topic);
            put_place(json);
            put_records(json);
        });
    } else {
        json.text_as_is("event: record\ndata: ");
        json.object(|json| {
            json.field("topic", topic);
            put_records(json);
            put_place(json);
        });
        json.text_as_is("\n\n");
    }
    match damage {
        None => Ok(json.finish()),
        Some((seq, malformed)) => Err(internal(format_args!("record {seq} of topic {topic}: {malformed}"))),
    }
}

/// An event of an event stream, but for its id.
fn event(name: &str, fill: impl FnOnce(&mut JsonWriter)) -> Bytes {
    let mut json = JsonWriter::with_capacity(FRAME_ROOM_BYTES);
    json.text_as_is("event: ");
    json.text_as_is(name);
    json.text_as_is("\ndata: ");
    json.object(fill);
    json.text_as_is("\n\n");
    json.finish()
}

/// A message of a WebSocket.
pub fn message(op: &'static str, fill: impl FnOnce(&mut JsonWriter)) -> Bytes {
    let mut json = JsonWriter::with_capacity(FRAME_ROOM_BYTES);
    json.object(|json| {
        json.field("op", op);
        fill(json);
    });
    json.finish()
}

fn put_gap(json: &mut JsonWriter, topic: &str, tombstone: &Tombstone) {
    json.field("topic", topic);
    put_tombstone(json, tombstone);
}

fn put_head(json: &mut JsonWriter, topic: &str, head_seq: u64) {
    json.field("topic", topic);
    json.field("head_seq", head_seq);
}

/// Something beside records that a topic's reader is told.
pub enum Notice<'a> {
    Tombstone(&'a Tombstone),
    CaughtUp { head_seq: u64 },
    Deleted { head_seq: u64 },
}

impl Notice<'_> {
    pub fn event(&self, topic: &str) -> Bytes {
        event(self.name("-"), |json| self.put(json, topic))
    }

    pub fn message(&self, topic: &str) -> Bytes {
        message(self.name("_"), |json| self.put(json, topic))
    }

    fn name(&self, joint: &str) -> &'static str {
        match (self, joint) {
            (Notice::Tombstone(_), _) => "tombstone",
            (Notice::CaughtUp { .. }, "-") => "caught-up",
            (Notice::CaughtUp { .. }, _) => "caught_up",
            (Notice::Deleted { .. }, "-") => "topic-deleted",
            (Notice::Deleted { .. }, _) => "topic_deleted",
        }
    }

    fn put(&self, json: &mut JsonWriter, topic: &str) {
        match self {
            Notice::Tombstone(tombstone) => put_gap(json, topic, tombstone),
            Notice::CaughtUp { head_seq } => put_head(json, topic, *head_seq),
            Notice::Deleted { head_seq } => {
                put_head(json, topic, *head_seq);
                json.field("reason", "deleted");
            }
        }
    }
}

/// The last event of a stream that the server ends.
pub fn error_event(code: u64, error: &str, retry_after_ms: Option<u64>) -> Bytes {
    event("error", |json| {
        json.field("code", code);
        json.field("error", error);
        json.field_if_some("retry_after_ms", retry_after_ms);
    })
}

/// A refusal as a WebSocket tells it; `request_id` is JSON.
pub fn error_message(error: &Error, request_id: Option<&str>) -> Bytes {
    let detail = error.detail.as_ref().and_then(|detail| serde_json::to_string(detail).ok());
    refusal_message(error.code.name(), &error.message, detail.as_deref(), request_id)
}

/// As [`error_message`], also for the codes that only WebSockets have.
pub fn refusal_message(code: &str, message_: &str, detail: Option<&str>, request_id: Option<&str>) -> Bytes {
    message("error", |json| {
        json.field_if_some("request_id", request_id.map(Raw));
        json.field("code", code);
        json.field("message", message_);
        json.field_if_some("detail", detail.map(Raw));
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Bytes) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn a_form_is_told_by_its_number() {
        for number in 0..16 {
            assert_eq!(Form::of(number).number(), number);
        }
    }

    #[test]
    fn notices_look_as_in_the_contract() {
        // Section 17.3, section 18
        let tombstone =
            Tombstone { gap_from: 1, gap_to: 9, reason: "cap", earliest_seq: 10, head_seq: 12, origin: None };
        let gap = concat!(
            r#""topic":"t","gap_from":1,"gap_to":9,"reason":"cap","missed_estimate":9,"#,
            r#""earliest_seq":10,"head_seq":12}"#
        );
        let notice = Notice::Tombstone(&tombstone);
        assert_eq!(text(notice.event("t")), format!("event: tombstone\ndata: {{{gap}\n\n"));
        assert_eq!(text(notice.message("t")), format!("{{\"op\":\"tombstone\",{gap}"));
        let notice = Notice::CaughtUp { head_seq: 3 };
        assert_eq!(text(notice.event("t")), "event: caught-up\ndata: {\"topic\":\"t\",\"head_seq\":3}\n\n");
        assert_eq!(text(notice.message("t")), r#"{"op":"caught_up","topic":"t","head_seq":3}"#);
        let notice = Notice::Deleted { head_seq: 3 };
        assert_eq!(
            text(notice.event("t")),
            "event: topic-deleted\ndata: {\"topic\":\"t\",\"head_seq\":3,\"reason\":\"deleted\"}\n\n"
        );
        assert!(text(notice.message("t")).starts_with(r#"{"op":"topic_deleted","#));
        assert_eq!(
            text(error_event(503, "shutting_down", Some(1000))),
            "event: error\ndata: {\"code\":503,\"error\":\"shutting_down\",\"retry_after_ms\":1000}\n\n"
        );
    }
}
