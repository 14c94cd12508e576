//! The errors a client can see, defined once.
//!
//! Every refusal ends as one [`Error`]: a code from the contract's table, a sentence for people and an
//! optional detail for programs. Lower rooms return it directly instead of errors of their own that
//! would need a second table to translate; what never reaches a client (a damaged file, a lost
//! connection) has its own type in the room that knows it.

use std::fmt;

use serde_json::Value;

/// Declares [`Code`] with the status and the wire name of each code in one place.
macro_rules! codes {
    ($($variant:ident = $number:literal, $status:literal, $name:literal;)*) => {
        /// The error codes of contract section 26, with their HTTP status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code { $($variant),* }

        impl Code {
            /// The HTTP status that goes with this code.
            pub fn status(self) -> u16 {
                match self { $(Code::$variant => $status),* }
            }

            /// The name on the wire.
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name),* }
            }

            /// The number that stands for this code in stored outcomes and between members.
            pub fn number(self) -> u8 {
                match self { $(Code::$variant => $number),* }
            }

            /// The code for a stored number, `None` for a number this version does not know.
            pub fn from_number(number: u8) -> Option<Code> {
                match number { $($number => Some(Code::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    InvalidRequest = 1, 400, "invalid_request";
    BatchTooLarge = 2, 400, "batch_too_large";
    RecordTooLarge = 3, 400, "record_too_large";
    Unauthorized = 4, 401, "unauthorized";
    Forbidden = 5, 403, "forbidden";
    TopicNotFound = 6, 404, "topic_not_found";
    NotFound = 7, 404, "not_found";
    MethodNotAllowed = 8, 405, "method_not_allowed";
    TopicExistsIncompatible = 9, 409, "topic_exists_incompatible";
    TopicNotEmpty = 10, 409, "topic_not_empty";
    HeadMismatch = 11, 409, "head_mismatch";
    PayloadTooLarge = 12, 413, "payload_too_large";
    UnsupportedMediaType = 13, 415, "unsupported_media_type";
    Throttled = 14, 429, "throttled";
    Internal = 15, 500, "internal";
    NotReady = 16, 503, "not_ready";
    ShuttingDown = 17, 503, "shutting_down";
    NoLeader = 18, 503, "no_leader";
    StorageFull = 19, 503, "storage_full";
    CommitUnknown = 20, 503, "commit_unknown";
    TopicFull = 21, 422, "topic_full";
    IdempotencyConflict = 22, 409, "idempotency_conflict";
    NotAcceptable = 23, 406, "not_acceptable";
    RouterNotFound = 24, 404, "router_not_found";
    RouterCycle = 25, 409, "router_cycle";
}

/// One refusal, as a client will see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    pub code: Code,
    /// For people; may change between versions.
    pub message: String,
    /// For programs; the fields per code are in contract section 26.
    pub detail: Option<Value>,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error { code, message: message.into(), detail: None }
    }

    pub fn with_detail(mut self, detail: Value) -> Self {
        self.detail = Some(detail);
        self
    }

    /// 400 `invalid_request`.
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(Code::InvalidRequest, message)
    }

    /// 429 `throttled`: the cap `limit` of `max` is reached (C-LIMIT-10).
    pub fn over_limit(limit: &str, max: u64) -> Self {
        Error::new(Code::Throttled, format!("{limit} is {max}, and that many there are"))
            .with_detail(serde_json::json!({ "limit": limit, "max": max }))
    }

    /// 404 `router_not_found` for `router`.
    pub fn router_not_found(router: &str) -> Self {
        Error::new(Code::RouterNotFound, format!("no router {router:?}"))
            .with_detail(serde_json::json!({ "router": router }))
    }

    /// 404 `topic_not_found` for `topic`.
    pub fn topic_not_found(topic: &str) -> Self {
        Error::new(Code::TopicNotFound, format!("no topic {topic:?}"))
            .with_detail(serde_json::json!({ "topic": topic }))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}

impl std::error::Error for Error {}
