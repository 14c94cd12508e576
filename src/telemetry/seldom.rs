//! Lines of the log that anybody could cause as often as he likes: few of them at once, and one that stands for the others
//! when their time is over, also if nothing follows.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Time in which few lines are written.
pub const SELDOM_INTERVAL: Duration = Duration::from_secs(10);
/// How often somebody looks for what was held back.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Those that hold something back.
static HOLDING: Mutex<Vec<Weak<Kind>>> = Mutex::new(Vec::new());

/// Lines of one kind that are written seldom.
#[derive(Debug)]
pub struct Seldom(Arc<Kind>);

#[derive(Debug)]
struct Kind {
    max_lines: u32,
    write: fn(&str),
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// When the interval began, if there is one.
    began: Option<Instant>,
    /// Lines that were written in it.
    lines: u32,
    /// What was not written in it, when the last of that came, and its words.
    count: u64,
    last_at: Option<Instant>,
    last: String,
    /// Somebody will look at it.
    is_listed: bool,
}

impl Seldom {
    /// One line in an interval, by way of `write`, whose place in the program is the line's.
    pub fn new(write: fn(&str)) -> Self {
        Self::of_lines(1, write)
    }

    /// At most `max_lines`, and one for the rest.
    pub fn of_lines(max_lines: u32, write: fn(&str)) -> Self {
        Seldom(Arc::new(Kind { max_lines, write, held: Mutex::default() }))
    }

    /// It happened: writes `words`, or keeps them until the interval ends or another one takes their place.
    pub fn tell(&self, words: fmt::Arguments<'_>) {
        self.tell_at(Instant::now(), words);
    }

    fn tell_at(&self, now: Instant, words: fmt::Arguments<'_>) {
        let mut held = self.0.held.lock();
        let overdue = held.take_due(now);
        held.began.get_or_insert(now);
        // What was held is of others: the new one is not mixed up with that.
        let is_told = held.lines < self.0.max_lines || overdue.is_some();
        if is_told {
            held.lines += 1;
        } else {
            held.count += 1;
            held.last_at = Some(now);
            held.last.clear();
            // Nothing but the words themselves could fail.
            let _ = fmt::write(&mut held.last, words);
            if !std::mem::replace(&mut held.is_listed, true) {
                HOLDING.lock().push(Arc::downgrade(&self.0));
            }
        }
        drop(held);
        if let Some(line) = overdue {
            (self.0.write)(&line);
        }
        if is_told {
            (self.0.write)(&words.to_string());
        }
    }
}

impl Held {
    /// Ends an interval that is over, and gives the line for what was held in it.
    fn take_due(&mut self, now: Instant) -> Option<String> {
        if now.saturating_duration_since(self.began?) < SELDOM_INTERVAL {
            return None;
        }
        let line = self.take();
        // That line is the first one of the next interval.
        self.began = line.as_ref().map(|_| now);
        self.lines = u32::from(line.is_some());
        line
    }

    fn take(&mut self) -> Option<String> {
        let count = std::mem::take(&mut self.count);
        let (began, last_at) = (self.began?, self.last_at.take()?);
        let span_s = last_at.saturating_duration_since(began).as_secs() + 1;
        let last = std::mem::take(&mut self.last);
        Some(format!("{count} more within {span_s} s, the last one: {last}"))
    }
}

impl Drop for Kind {
    fn drop(&mut self) {
        if let Some(line) = self.held.get_mut().take() {
            (self.write)(&line);
        }
    }
}

/// Writes what was held back until its interval ended.
pub fn tell_due() {
    let now = Instant::now();
    tell_held(|held| held.take_due(now));
}

/// Writes all that was held back: the process ends.
pub fn tell_all() {
    tell_held(Held::take);
}

fn tell_held(take: impl Fn(&mut Held) -> Option<String>) {
    let holding = std::mem::take(&mut *HOLDING.lock());
    let mut still = Vec::new();
    for kind in holding {
        // What is gone has told it when it went.
        let Some(strong) = kind.upgrade() else { continue };
        let line = {
            let mut held = strong.held.lock();
            let line = take(&mut held);
            held.is_listed = held.count > 0;
            if held.is_listed {
                still.push(kind);
            }
            line
        };
        if let Some(line) = line {
            (strong.write)(&line);
        }
    }
    HOLDING.lock().append(&mut still);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of these tests at a time: who looks, looks at all.
    static TURN: Mutex<()> = Mutex::new(());

    /// What a test has written.
    macro_rules! written {
        () => {{
            static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
            let write: fn(&str) = |line| LINES.lock().push(line.to_owned());
            (write, || std::mem::take(&mut *LINES.lock()))
        }};
    }

    #[test]
    fn the_first_is_told_at_once_and_the_others_when_the_interval_ends() {
        let _turn = TURN.lock();
        let (write, written) = written!();
        let seldom = Seldom::new(write);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let tell = |ms: u64, who: &str| seldom.tell_at(at(ms), format_args!("refused {who}"));
        tell(0, "A");
        assert_eq!(written(), ["refused A"]);
        (1..=3000).for_each(|ms| tell(ms, "A"));
        assert_eq!(written(), [""; 0]);
        // Nothing follows.
        assert_eq!(seldom.0.held.lock().take_due(at(9_999)), None);
        let told = seldom.0.held.lock().take_due(at(10_000));
        assert_eq!(told.as_deref(), Some("3000 more within 4 s, the last one: refused A"));
        assert_eq!(seldom.0.held.lock().take_due(at(20_000)), None);
        // Hours later: nobody stands for somebody else.
        tell(9_000_000, "B");
        assert_eq!(written(), ["refused B"]);
    }

    #[test]
    fn what_comes_before_somebody_looked_is_told_apart_from_what_was_held() {
        let _turn = TURN.lock();
        let (write, written) = written!();
        let seldom = Seldom::of_lines(2, write);
        let start = Instant::now();
        let tell =
            |ms: u64, who: &str| seldom.tell_at(start + Duration::from_millis(ms), format_args!("{who}"));
        ["A", "B", "C", "D"].into_iter().for_each(|who| tell(0, who));
        assert_eq!(written(), ["A", "B"]);
        tell(10_000, "E");
        assert_eq!(written(), ["2 more within 1 s, the last one: D", "E"]);
        tell(10_001, "F");
        assert_eq!(written(), [""; 0], "two lines were written in this interval");
        drop(seldom);
        assert_eq!(written(), ["1 more within 1 s, the last one: F"]);
    }

    #[test]
    fn what_is_held_is_told_by_who_looks_for_it() {
        let _turn = TURN.lock();
        let (write, written) = written!();
        let seldom = Seldom::new(write);
        let began = Instant::now().checked_sub(SELDOM_INTERVAL).expect("a clock that went for so long");
        seldom.tell_at(began, format_args!("A"));
        seldom.tell_at(began, format_args!("B"));
        assert_eq!(written(), ["A"]);
        tell_due();
        tell_due();
        assert_eq!(written(), ["1 more within 1 s, the last one: B"]);
        seldom.tell(format_args!("C"));
        tell_due();
        assert_eq!(written(), [""; 0], "its time is not over");
        tell_all();
        assert_eq!(written(), ["1 more within 1 s, the last one: C"]);
    }
}
