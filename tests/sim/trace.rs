//! What happened in a history, as a hash of all of it and the last lines.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Lines that a failing seed shows.
const KEPT_LINES: usize = 80;

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A panic in a task is caught by tokio and seen by nobody: it is kept here for the verdict.
pub fn collect_panics() {
    std::panic::set_hook(Box::new(|info| {
        let told = format!("panic: {info}\n{}", std::backtrace::Backtrace::capture());
        PANICS.with(|panics| panics.borrow_mut().push(told));
    }));
}

/// The panics of this thread since the last call.
pub fn take_panics() -> Vec<String> {
    PANICS.with(|panics| std::mem::take(&mut *panics.borrow_mut()))
}

/// Shows what the members log, in between of what the simulation tells.
pub fn tell_all() {
    let filter = std::env::var("RUST_LOG").unwrap_or("antiphon=debug,openraft=warn".to_owned());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stdout)
        .without_time()
        .with_ansi(false)
        .try_init();
}

/// The story of one history, as one of its clusters tells it.
pub struct Trace {
    start: Instant,
    is_loud: bool,
    /// Before every line; empty if there is one cluster.
    prefix: String,
    told: Arc<Mutex<Told>>,
}

#[derive(Default)]
struct Told {
    hash: u64,
    lines: VecDeque<String>,
    complaints: Vec<String>,
}

impl Trace {
    pub fn new(is_loud: bool) -> Self {
        Trace { start: Instant::now(), is_loud, prefix: String::new(), told: Arc::default() }
    }

    /// The same story, told by `who`.
    pub fn of(&self, who: &str) -> Self {
        let Trace { start, is_loud, .. } = *self;
        let prefix = if who.is_empty() { String::new() } else { format!("{who} ") };
        Trace { start, is_loud, prefix, told: self.told.clone() }
    }

    /// Notes one event.
    pub fn note(&self, what: impl std::fmt::Display) {
        let line = format!("{:>10.6} {}{what}", self.start.elapsed().as_secs_f64(), self.prefix);
        if self.is_loud {
            println!("{line}");
        }
        let mut told = self.told.lock();
        for byte in line.bytes() {
            told.hash = (told.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        if told.lines.len() == KEPT_LINES {
            told.lines.pop_front();
        }
        told.lines.push_back(line);
    }

    /// Notes that a promise was broken.
    pub fn complain(&self, what: impl std::fmt::Display) {
        self.note(format_args!("BROKEN: {what}"));
        let line = format!("at {:.6} s: {}{what}", self.start.elapsed().as_secs_f64(), self.prefix);
        self.told.lock().complaints.push(line);
    }

    pub fn has_complaints(&self) -> bool {
        !self.told.lock().complaints.is_empty()
    }

    /// Hash of everything told, the complaints, the last lines.
    pub fn end(&self) -> (u64, Vec<String>, Vec<String>) {
        let mut told = self.told.lock();
        (told.hash, std::mem::take(&mut told.complaints), std::mem::take(&mut told.lines).into())
    }
}
