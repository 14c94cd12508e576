//! Digests of the state at fixed points of the log, so that members can be compared while they move on.
//!
//! All members take one at the same entries. Each tells the others its newest, and whoever leads compares it with
//! its own of that entry. What it finds cannot be mended by it, since it does not know who is right; but a
//! difference that nobody hears of grows into every answer.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::limits::{DIGEST_STRIDE_ENTRIES, KEPT_DIGESTS};

/// The digest of the state behind one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestMark {
    pub index: u64,
    pub digest: u64,
}

/// The newest marks of this member.
#[derive(Default)]
pub struct DigestMarks(Mutex<VecDeque<DigestMark>>);

impl DigestMarks {
    /// Whether all members take one at this entry.
    pub fn is_due(index: u64) -> bool {
        index.is_multiple_of(DIGEST_STRIDE_ENTRIES)
    }

    pub fn note(&self, mark: DigestMark) {
        let mut marks = self.0.lock();
        if marks.len() == KEPT_DIGESTS {
            marks.pop_front();
        }
        marks.push_back(mark);
    }

    pub fn newest(&self) -> Option<DigestMark> {
        self.0.lock().back().copied()
    }

    /// Whether another member's mark says that its state is not this one's.
    pub fn differs(&self, theirs: DigestMark) -> bool {
        self.0.lock().iter().any(|ours| ours.index == theirs.index && ours.digest != theirs.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_the_same_entry_are_compared_and_only_a_few_are_kept() {
        let marks = DigestMarks::default();
        assert_eq!(marks.newest(), None);
        for index in 1..=2 * KEPT_DIGESTS as u64 {
            marks.note(DigestMark { index, digest: 7 * index });
        }
        let last = 2 * KEPT_DIGESTS as u64;
        assert_eq!(marks.newest(), Some(DigestMark { index: last, digest: 7 * last }));
        assert!(!marks.differs(DigestMark { index: last - 1, digest: 7 * (last - 1) }));
        assert!(marks.differs(DigestMark { index: last - 1, digest: 1 }));
        assert!(!marks.differs(DigestMark { index: 1, digest: 1 }), "too long ago to say");
        assert!(!marks.differs(DigestMark { index: last + 1, digest: 1 }), "not there yet");
    }
}
