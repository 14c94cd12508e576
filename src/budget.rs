//! Memory that many things share and that all of them together may hold so much of.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that may be held at once.
#[derive(Debug)]
pub struct Budget {
    max_bytes: usize,
    held_bytes: AtomicUsize,
}

/// A part of a [`Budget`]; dropping it gives it back.
#[must_use]
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Budget { max_bytes, held_bytes: AtomicUsize::new(0) })
    }

    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Takes `bytes` of it; `None` if there are not so many left.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        self.take(bytes).then(|| Charge { budget: self.clone(), bytes })
    }

    fn take(&self, bytes: usize) -> bool {
        let after = |held: usize| held.checked_add(bytes).filter(|held| *held <= self.max_bytes);
        self.held_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Charge {
    /// Makes it `bytes` from now on; `false`, and nothing has changed, if the budget has not so many left.
    #[must_use]
    pub fn resize(&mut self, bytes: usize) -> bool {
        if let Some(more) = bytes.checked_sub(self.bytes) {
            if !self.budget.take(more) {
                return false;
            }
        } else {
            self.budget.give_back(self.bytes - bytes);
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_held_than_there_is() {
        // C-LIMIT-16
        let budget = Budget::new(100);
        let mut first = budget.charge(60).unwrap();
        assert!(budget.charge(41).is_none() && budget.charge(usize::MAX).is_none());
        let second = budget.charge(40).unwrap();
        assert_eq!(budget.held_bytes(), 100);
        assert!(!first.resize(61));
        drop(second);
        assert!(first.resize(100) && first.resize(10));
        assert_eq!(budget.held_bytes(), 10);
        drop(first);
        assert_eq!(budget.held_bytes(), 0);
    }
}
