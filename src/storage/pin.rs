//! What a transfer keeps from being freed.
//!
//! A member that is sent the state as of one point reads entries that topics may give up meanwhile. While a
//! pin is held, no file that was there when it was taken is removed or rewritten. Newer files hold nothing
//! that the transfer names, so their turn comes as ever: a transfer of an hour delays what it needs and no more.
//! Take the pin first, the cut of the state second.
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;

use super::log::Shared;

/// The pins of a log: the newest segment of each.
#[derive(Default)]
pub(super) struct Pins(Mutex<Vec<u64>>);

impl Pins {
    /// Files with segments up to this one must stay.
    pub(super) fn upto(&self) -> Option<u64> {
        self.0.lock().iter().max().copied()
    }

    /// Whether a file that begins with this segment must stay. Asked while the view is held for writing, the answer
    /// stays true until that is over.
    pub(super) fn hold(&self, first_segment: u64) -> bool {
        self.upto().is_some_and(|upto| first_segment <= upto)
    }
}

/// Keeps files from being freed until it is dropped.
pub struct Pin {
    shared: Arc<Shared>,
    upto: u64,
}

impl Pin {
    pub(super) fn new(shared: &Arc<Shared>, upto: u64) -> Self {
        shared.pins.0.lock().push(upto);
        Self { shared: shared.clone(), upto }
    }

    /// The segments whose entries stay, whatever file they are in.
    pub fn segments(&self) -> RangeInclusive<u64> {
        0..=self.upto
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.shared.pins.0.lock();
        if let Some(at) = pins.iter().position(|upto| *upto == self.upto) {
            pins.swap_remove(at);
        }
    }
}
