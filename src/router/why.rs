//! Why a topic of a mirror is left alone for a while.

use super::answer::Damage;
use super::status::Told;
use crate::engine::LinkState;
use crate::limits::MAX_ORIGINS_PER_TOPIC;
use crate::state::{Limit, Refusal};

/// Without the topic's name: there may be many of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Its destination takes nothing of it.
    Refused(Refusal),
    /// What the remote says of it cannot be (C-MIRROR-18).
    Damaged(Damage),
    /// Its history there is another one.
    Diverged,
}

impl Why {
    pub fn state(&self) -> LinkState {
        if self.is_of_remote() { LinkState::Retrying } else { LinkState::Blocked }
    }

    /// Whether the remote says what this cluster does not take from anybody.
    pub fn is_of_remote(&self) -> bool {
        matches!(
            self,
            Why::Damaged(_) | Why::Refused(Refusal::OverLimit { limit: Limit::OriginsPerTopic, .. })
        )
    }

    /// Whether it is the destination that takes nothing now, which is known without the remote.
    pub fn is_here(&self) -> bool {
        matches!(self, Why::Refused(_)) && !self.is_of_remote()
    }

    /// What is told of `source`, which goes to `dest`.
    pub fn told(&self, source: &str, dest: &str) -> Told {
        match *self {
            Why::Refused(_) if self.is_of_remote() => {
                let message = format!(
                    "the records of topic {source:?} of the remote come from more topics than are kept apart, {MAX_ORIGINS_PER_TOPIC}"
                );
                Told { topic: Some(source.to_owned()), ..Told::new("source_damaged", message) }
            }
            Why::Refused(refusal) => {
                let error = refusal.into_error(dest);
                Told::new(error.code.name(), error.message)
            }
            Why::Damaged(Damage { seq, what }) => {
                let message = match seq {
                    Some(seq) => {
                        format!("record {seq} of topic {source:?} of the remote cannot be stored: {what}")
                    }
                    None => format!("what the remote says of topic {source:?} cannot be: {what}"),
                };
                Told { topic: Some(source.to_owned()), seq, ..Told::new("source_damaged", message) }
            }
            Why::Diverged => Told::diverged("its history there is another one"),
        }
    }
}
