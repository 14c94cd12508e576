//! What is counted and told of callers that are refused: somebody tries out keys, or a key was given too little.

use std::fmt;
use std::net::IpAddr;

use prometheus::{IntCounter, IntCounterVec};

use super::{Caller, Grant};
use crate::error::{Code, Error};
use crate::telemetry::metrics::KEY_REFUSALS;
use crate::telemetry::seldom::Seldom;

/// What is told of names that a client has made up.
const MAX_TOLD_CHARS: usize = 300;

/// Refusals of all keys of this process.
pub struct Refusals {
    counted: IntCounterVec,
    /// A key that is not known, or none.
    unauthorized: Counted,
    /// A key that may not do this.
    forbidden: Counted,
}

struct Counted {
    count: IntCounter,
    lines: Seldom,
}

impl Default for Refusals {
    fn default() -> Self {
        let counted = KEY_REFUSALS.counters("reason");
        let of = |code: Code| Counted {
            count: counted.with_label_values(&[code.name()]),
            lines: Seldom::new(|line| tracing::warn!("{line}")),
        };
        Refusals { unauthorized: of(Code::Unauthorized), forbidden: of(Code::Forbidden), counted }
    }
}

impl Refusals {
    /// The counters, to be shown.
    pub fn counters(&self) -> &IntCounterVec {
        &self.counted
    }

    /// `caller` is refused with `error`.
    pub(super) fn note(&self, error: &Error, caller: impl fmt::Display) {
        let counted = if error.code == Code::Unauthorized { &self.unauthorized } else { &self.forbidden };
        counted.count.inc();
        let (code, why) = (error.code.name(), error.message.as_str());
        counted.lines.tell(format_args!("refused with {code}: {caller}: {why:.MAX_TOLD_CHARS$}"));
    }
}

/// Where a caller is, for people.
pub(super) struct FromAddress(pub Option<IpAddr>);

impl fmt::Display for FromAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => write!(f, " from {address}"),
            None => Ok(()),
        }
    }
}

/// For people: a key is named by its place in the setting and by what it may do.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => {
                let grants: Vec<String> = key.grants.iter().map(Grant::describe).collect();
                write!(f, "key {} ({}){}", key.entry, grants.join(", "), FromAddress(self.from))
            }
            None => write!(f, "anyone{}", FromAddress(self.from)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Keys, Scope};

    #[test]
    fn every_refusal_of_a_key_is_counted_and_what_is_let_in_is_not() {
        let keys = Keys::parse("all,reader:r,bound:w:a").unwrap();
        let counts = || {
            ["unauthorized", "forbidden"]
                .map(|reason| keys.refusals().counters().with_label_values(&[reason]).get())
        };
        assert_eq!(counts(), [0, 0]);
        assert!(keys.check(Some("all"), Scope::Admin, Some("x")).is_ok());
        assert!(keys.check(None, Scope::Read, None).is_err());
        assert!(keys.check(Some("no"), Scope::Read, None).is_err());
        assert_eq!(counts(), [2, 0]);
        assert!(keys.check(Some("reader"), Scope::Write, None).is_err());
        assert!(keys.check(Some("bound"), Scope::Write, Some("b")).is_err());
        assert!(keys.authenticate(Some("bound")).unwrap().check_unrestricted(Scope::Write).is_err());
        assert_eq!(counts(), [2, 3]);
        // To ask is not to be refused.
        assert!(!keys.authenticate(Some("reader")).unwrap().may(Scope::Write, None));
        assert_eq!(counts(), [2, 3]);
    }

    #[test]
    fn a_caller_is_named_by_what_it_may_and_never_by_its_key() {
        // C-AUTH-09
        let keys = Keys::parse("hunter1, hunter2:r+d , , hunter4:rw:a|b, hunter2:a:c").unwrap();
        let named = |key: &str| keys.authenticate(Some(key)).unwrap().to_string();
        assert_eq!(named("hunter1"), "key 1 (read+write+delete+admin)");
        assert_eq!(named("hunter2"), "key 2 (read+delete, admin on c)");
        assert_eq!(named("hunter4"), "key 3 (read+write on a|b)");
        let here = keys.authenticate_from(Some("hunter4"), Some([127, 0, 0, 1].into())).unwrap();
        assert_eq!(here.to_string(), "key 3 (read+write on a|b) from 127.0.0.1");
        let anyone = Keys::default().authenticate_from(None, Some([10, 0, 0, 1].into())).unwrap();
        assert_eq!(anyone.to_string(), "anyone from 10.0.0.1");
    }
}
