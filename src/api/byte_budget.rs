//! How many bytes of bodies and messages this member holds at once (C-LIMIT-16).
//!
//! Bytes are counted as they come and not as they are announced: an announcement costs nothing, neither the client
//! nor this member. What a packed body unpacks to counts as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::auth::Caller;
use crate::error::Error;

/// Name of the setting, and of the limit in a refusal.
const NAME: &str = "max_inflight_bytes";
/// The share of one key is the whole by this.
const SHARES: usize = 4;

/// The bytes of all clients.
#[derive(Debug)]
pub struct ByteBudget {
    /// `usize::MAX`: unlimited.
    max_bytes: usize,
    max_bytes_per_key: usize,
    held_bytes: AtomicUsize,
}

impl ByteBudget {
    /// At most `max_bytes`, 0 for any number, and of one key a quarter of them.
    pub fn new(max_bytes: usize) -> Arc<Self> {
        let max_bytes = if max_bytes == 0 { usize::MAX } else { max_bytes };
        let held_bytes = AtomicUsize::new(0);
        Arc::new(ByteBudget { max_bytes, max_bytes_per_key: max_bytes.div_ceil(SHARES), held_bytes })
    }

    /// A charge for what `caller` is about to send; it holds nothing yet.
    pub fn charge(self: &Arc<Self>, caller: &Caller) -> Charge {
        Charge { budget: self.clone(), caller: caller.clone(), bytes: 0 }
    }
}

/// Bytes that one body or message holds; dropping it gives them back.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<ByteBudget>,
    caller: Caller,
    bytes: usize,
}

impl Charge {
    /// Counts `bytes` more. 429 `throttled` if that is too much, and then counts none of them. A key that holds
    /// nothing else may have one body of any size: on a small machine the largest that is allowed would never pass
    /// otherwise.
    pub fn add(&mut self, bytes: usize) -> Result<(), Error> {
        let held = self.budget.held_bytes.fetch_add(bytes, Ordering::AcqRel);
        // Whoever is alone may have a packed body and what it unpacks to: otherwise the largest that is allowed might
        // never pass.
        let shares = if held == self.bytes { 2 } else { 1 };
        if held.saturating_add(bytes) > self.budget.max_bytes.saturating_mul(shares) {
            self.budget.held_bytes.fetch_sub(bytes, Ordering::AcqRel);
            return Err(Error::over_limit(NAME, self.budget.max_bytes as u64));
        }
        if let Some(held_by_key) = self.caller.held_bytes() {
            let held = held_by_key.fetch_add(bytes, Ordering::AcqRel);
            let has_others = held > self.bytes;
            if has_others && held.saturating_add(bytes) > self.budget.max_bytes_per_key {
                held_by_key.fetch_sub(bytes, Ordering::AcqRel);
                self.budget.held_bytes.fetch_sub(bytes, Ordering::AcqRel);
                return Err(Error::over_limit(NAME, self.budget.max_bytes_per_key as u64));
            }
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Gives `bytes` back, at most what is held.
    pub fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        if bytes == 0 {
            return;
        }
        self.bytes -= bytes;
        if let Some(held_by_key) = self.caller.held_bytes() {
            held_by_key.fetch_sub(bytes, Ordering::AcqRel);
        }
        self.budget.held_bytes.fetch_sub(bytes, Ordering::AcqRel);
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
