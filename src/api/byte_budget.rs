//! How many bytes of bodies and messages this member holds at once (C-LIMIT-16).
//!
//! Bytes are counted as they come and not as they are announced: an announcement costs nothing, neither the client
//! nor this member. What a packed body unpacks to counts as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::auth::Caller;
use crate::engine::FrameRoom;
use crate::error::Error;

/// Name of the setting, and of the limit in a refusal.
const NAME: &str = "max_inflight_bytes";
const FRAMES_NAME: &str = "stream_frame_bytes";
/// The share of one key is the whole by this.
const SHARES: usize = 4;

/// The bytes of all clients.
#[derive(Debug)]
pub struct ByteBudget {
    /// `usize::MAX`: unlimited.
    max_bytes: usize,
    max_bytes_per_key: usize,
    held_bytes: AtomicUsize,
    /// Name of the limit in a refusal.
    name: &'static str,
    of_key: OfKey,
}

/// What counts the bytes that are held for a caller's key; `None` without keys.
type OfKey = fn(&Caller) -> Option<&AtomicUsize>;

impl ByteBudget {
    /// At most `max_bytes`, 0 for any number, and of one key a quarter of them.
    pub fn new(max_bytes: usize) -> Arc<Self> {
        let max_bytes = if max_bytes == 0 { usize::MAX } else { max_bytes };
        ByteBudget::counting(max_bytes, NAME, Caller::held_bytes)
    }

    /// The same for frames of streams, which are counted apart: a reader that is slow keeps no request out.
    pub fn of_frames(max_bytes: usize) -> Arc<Self> {
        ByteBudget::counting(max_bytes, FRAMES_NAME, Caller::frame_bytes)
    }

    fn counting(max_bytes: usize, name: &'static str, of_key: OfKey) -> Arc<Self> {
        let (max_bytes_per_key, held_bytes) = (max_bytes.div_ceil(SHARES), AtomicUsize::new(0));
        Arc::new(ByteBudget { max_bytes, max_bytes_per_key, held_bytes, name, of_key })
    }

    /// A charge for what `caller` is about to send; it holds nothing yet.
    pub fn charge(self: &Arc<Self>, caller: &Caller) -> Charge {
        Charge { share: Share::new(self, caller), bytes: 0 }
    }
}

impl ByteBudget {
    /// Counts `bytes` more for `caller`, to one thing that holds `own_bytes` already. If that is too much, gives the bound
    /// and counts none of them.
    fn take(&self, caller: &Caller, own_bytes: usize, bytes: usize) -> Result<(), usize> {
        let held = self.held_bytes.fetch_add(bytes, Ordering::AcqRel);
        // Whoever is alone may have a packed body and what it unpacks to: otherwise the largest that is allowed might
        // never pass.
        let shares = if held == own_bytes { 2 } else { 1 };
        if held.saturating_add(bytes) > self.max_bytes.saturating_mul(shares) {
            self.held_bytes.fetch_sub(bytes, Ordering::AcqRel);
            return Err(self.max_bytes);
        }
        if let Some(held_by_key) = (self.of_key)(caller) {
            let held = held_by_key.fetch_add(bytes, Ordering::AcqRel);
            let has_others = held > own_bytes;
            if has_others && held.saturating_add(bytes) > self.max_bytes_per_key {
                held_by_key.fetch_sub(bytes, Ordering::AcqRel);
                self.held_bytes.fetch_sub(bytes, Ordering::AcqRel);
                return Err(self.max_bytes_per_key);
            }
        }
        Ok(())
    }

    fn give_back(&self, caller: &Caller, bytes: usize) {
        if let Some(held_by_key) = (self.of_key)(caller) {
            held_by_key.fetch_sub(bytes, Ordering::AcqRel);
        }
        self.held_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// What a caller may have of a budget.
#[derive(Debug)]
pub struct Share {
    budget: Arc<ByteBudget>,
    caller: Caller,
}

impl Share {
    pub fn new(budget: &Arc<ByteBudget>, caller: &Caller) -> Self {
        Share { budget: budget.clone(), caller: caller.clone() }
    }
}

impl FrameRoom for Share {
    fn take(&self, bytes: usize) -> bool {
        self.budget.take(&self.caller, 0, bytes).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.budget.give_back(&self.caller, bytes);
    }
}

/// Bytes that one body or message holds; dropping it gives them back.
#[derive(Debug)]
pub struct Charge {
    share: Share,
    bytes: usize,
}

impl Charge {
    /// Counts `bytes` more. 429 `throttled` if that is too much, and then counts none of them. A key that holds
    /// nothing else may have one body of any size: on a small machine the largest that is allowed would never pass
    /// otherwise.
    pub fn add(&mut self, bytes: usize) -> Result<(), Error> {
        let Share { budget, caller } = &self.share;
        let taken = budget.take(caller, self.bytes, bytes);
        taken.map_err(|max_bytes| Error::over_limit(budget.name, max_bytes as u64))?;
        self.bytes += bytes;
        Ok(())
    }

    /// Gives `bytes` back, at most what is held.
    pub fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        if bytes > 0 {
            self.bytes -= bytes;
            self.share.give_back(bytes);
        }
    }

    /// What is held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Keys;

    fn over(max: u64) -> Result<(), Error> {
        Err(Error::over_limit(NAME, max))
    }

    #[test]
    fn all_hold_so_much_and_one_key_a_quarter_of_it() {
        // C-LIMIT-10, C-LIMIT-12, C-LIMIT-16
        let keys = Keys::parse("a,b,c,d,e").unwrap();
        let budget = ByteBudget::new(1000);
        let charge = |key: &str| budget.charge(&keys.authenticate(Some(key)).unwrap());
        let (mut first, mut second) = (charge("a"), charge("a"));
        assert_eq!(first.add(200), Ok(()));
        assert_eq!(second.add(51), over(250));
        assert_eq!(second.add(50), Ok(()));
        assert_eq!(first.add(1), over(250));
        drop(second);
        assert_eq!((first.add(50), first.bytes()), (Ok(()), 250));
        // Nothing else of this key is held.
        let mut large = charge("b");
        assert_eq!(large.add(700), Ok(()));
        assert_eq!(charge("c").add(51), over(1000));
        assert_eq!(charge("c").add(50), Ok(()));
        large.give_back(600);
        assert_eq!(charge("b").add(151), over(250));
        assert_eq!(charge("d").add(600), Ok(()));
        drop((first, large));
        assert_eq!(budget.held_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn frames_of_slow_readers_leave_requests_their_room() {
        // C-WATCH-21, C-LIMIT-16
        let keys = Keys::parse("a,b").unwrap();
        let caller = |key: &str| keys.authenticate(Some(key)).unwrap();
        let (requests, frames) = (ByteBudget::new(1000), ByteBudget::of_frames(1000));
        let room = |key: &str| Share::new(&frames, &caller(key));
        assert!(room("a").take(250) && !room("a").take(1) && room("b").take(250));
        assert_eq!(requests.charge(&caller("a")).add(250), Ok(()));
        room("a").give_back(1);
        assert!(room("a").take(1));
    }

    #[test]
    fn without_keys_only_the_whole_is_bounded_and_zero_is_no_bound() {
        // C-LIMIT-13
        let caller = Keys::default().authenticate(None).unwrap();
        let budget = ByteBudget::new(100);
        let mut charges: Vec<Charge> = (0..4).map(|_| budget.charge(&caller)).collect();
        assert!(charges.iter_mut().take(3).all(|charge| charge.add(33) == Ok(())));
        assert_eq!(charges[3].add(2), over(100));
        let mut unlimited = ByteBudget::new(0).charge(&caller);
        assert_eq!(unlimited.add(usize::MAX / 2), Ok(()));
    }
}
