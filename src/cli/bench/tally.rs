//! What happened in the window: operations, records, latencies, errors.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use tokio::time::Instant;

use super::load::Window;

/// Longest latency that is told apart; a longer one counts as this.
const MAX_LATENCY_US: u64 = 600_000_000;
/// Decimal digits to which latencies are kept.
const LATENCY_DIGITS: u8 = 3;
/// Most kinds of errors that are told apart; codes come from outside.
const MAX_ERROR_KINDS: usize = 32;

pub struct Tally {
    window: Window,
    /// In open loop latency is that of all operations due in the window, whenever they end.
    is_open: bool,
    /// Operations that ended well in the window, and their records.
    pub ops: u64,
    pub records: u64,
    pub latencies_us: Histogram<u64>,
    /// Operations that were due in the window and never sent, for want of a free connection.
    pub unsent: u64,
    /// Of the whole run, the warm-up included, by kind.
    pub errors: BTreeMap<String, u64>,
}

impl Tally {
    pub fn new(window: Window, is_open: bool) -> anyhow::Result<Self> {
        let latencies_us = Histogram::new_with_bounds(1, MAX_LATENCY_US, LATENCY_DIGITS);
        Ok(Tally {
            window,
            is_open,
            ops: 0,
            records: 0,
            latencies_us: latencies_us.context("make a histogram")?,
            unsent: 0,
            errors: BTreeMap::new(),
        })
    }

    /// Moves the window, before anything has happened.
    pub fn set_window(&mut self, window: Window) {
        self.window = window;
    }

    /// An operation that was due at `due` ended well at `ended`.
    pub fn success(&mut self, due: Instant, ended: Instant, records: u64) {
        let Window { start, end, .. } = self.window;
        let ended_inside = (start..end).contains(&ended);
        if ended_inside {
            self.ops += 1;
            self.records += records;
        }
        if ended_inside || (self.is_open && (start..end).contains(&due)) {
            self.latency(ended - due);
        }
    }

    /// An operation that was due at `due` was not sent until the window ended: it took at least that long.
    pub fn unsent(&mut self, due: Instant) {
        if due >= self.window.start {
            self.unsent += 1;
            self.latency(self.window.end.saturating_duration_since(due));
        }
    }

    pub fn error(&mut self, kind: &str) {
        let kind = if self.errors.len() < MAX_ERROR_KINDS { kind } else { "other" };
        match self.errors.get_mut(kind) {
            Some(count) => *count += 1,
            None => _ = self.errors.insert(kind.to_owned(), 1),
        }
    }

    fn latency(&mut self, latency: Duration) {
        self.latencies_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(MAX_LATENCY_US));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A window from 1000 to 2000 ms, and the start that this counts from.
    fn tally(is_open: bool) -> (Tally, Instant) {
        let load_start = Instant::now();
        let window = Window { load_start, start: load_start + 1000 * MS, end: load_start + 2000 * MS };
        (Tally::new(window, is_open).unwrap(), load_start)
    }

    #[test]
    fn only_what_ends_in_the_window_counts_in_closed_loop() {
        let (mut tally, zero) = tally(false);
        for (due_ms, ended_ms) in [(998, 999), (999, 1000), (1500, 1501), (1998, 1999), (1999, 2000)] {
            tally.success(zero + due_ms * MS, zero + ended_ms * MS, 10);
        }
        assert_eq!((tally.ops, tally.records, tally.latencies_us.len()), (3, 30, 3));
        assert_eq!(tally.latencies_us.max(), 1000);
    }

    #[test]
    fn a_stall_shows_in_every_operation_that_it_held_up() {
        // 1000/s over one connection that answers at once, but for a stall from 1500 to 1600 ms.
        let (mut open, zero) = tally(true);
        let (mut closed, _) = tally(false);
        for due_ms in 1000..2000 {
            let ended_ms = if (1500..1600).contains(&due_ms) { 1600 } else { due_ms };
            open.success(zero + due_ms * MS, zero + ended_ms * MS, 1);
            // Closed loop would have sent only one of those 100, and measured from when it sent it.
            if ended_ms == due_ms || due_ms == 1500 {
                closed.success(zero + due_ms * MS, zero + ended_ms * MS, 1);
            }
        }
        assert_eq!(open.latencies_us.len(), 1000);
        let percentile_ms = |tally: &Tally, p| tally.latencies_us.value_at_quantile(p) / 1000;
        assert!((49..=51).contains(&percentile_ms(&open, 0.95)), "{}", percentile_ms(&open, 0.95));
        assert!((98..=100).contains(&percentile_ms(&open, 0.999)));
        assert_eq!(percentile_ms(&closed, 0.99), 0);
    }

    #[test]
    fn overload_shows_although_the_window_ends() {
        // Due at 1000/s, done at 500/s: what was never sent waited until the end at least.
        let (mut tally, zero) = tally(true);
        for number in 0..500 {
            tally.success(zero + (1000 + number) * MS, zero + (1001 + 2 * number) * MS, 1);
        }
        (500..1000).for_each(|number| tally.unsent(zero + (1000 + number) * MS));
        assert_eq!((tally.ops, tally.unsent, tally.latencies_us.len()), (500, 500, 1000));
        assert!(tally.latencies_us.value_at_quantile(0.99) >= 480_000);
        tally.unsent(zero + 999 * MS);
        assert_eq!(tally.unsent, 500, "what was due in the warm-up does not count");
        // One in flight at the end counts with its whole time, but not as done in the window.
        tally.success(zero + 1999 * MS, zero + 2999 * MS, 1);
        assert_eq!((tally.ops, tally.latencies_us.len()), (500, 1001));
        assert!(tally.latencies_us.max() >= 999_000);
    }

    #[test]
    fn kinds_of_errors_are_bounded() {
        let (mut tally, _) = tally(false);
        (0..100).for_each(|number| tally.error(&format!("kind {number}")));
        assert_eq!(tally.errors.len(), MAX_ERROR_KINDS + 1);
        assert_eq!(tally.errors.values().sum::<u64>(), 100);
    }
}
