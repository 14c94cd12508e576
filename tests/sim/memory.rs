//! How much memory a history takes, and how long it may.
//!
//! Each history runs on a thread of its own, so what is allocated on that thread and not given back there is its
//! own. Nothing that comes from outside may make members take more than this, and nothing may keep a thread busy for
//! ever without the simulated time moving on: neither can be told by whoever is caught in it, so the program ends.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Three clusters of three members with all their disks and caches stay well below.
const MAX_BYTES: isize = 400 << 20;
/// A tenth of a second of a history takes milliseconds, and some more in a debug build on a busy machine.
const MAX_STILL: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<isize> = const { Cell::new(0) };
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Histories, and when their time moved on last.
static RUNNING: Mutex<BTreeMap<u64, Instant>> = Mutex::new(BTreeMap::new());

struct Counting;

fn count(bytes: isize) {
    // A thread that ends has no such values any more.
    let _ = LIVE_BYTES.try_with(|live| {
        let now = live.get() + bytes;
        live.set(now);
        let is_new = PEAK_BYTES.try_with(|peak| now > peak.get() && (peak.set(now), true).1);
        if now > MAX_BYTES && is_new == Ok(true) {
            too_much(now);
        }
    });
}

#[cold]
fn too_much(bytes: isize) {
    let Ok(Some(seed)) = SEED.try_with(|seed| seed.replace(None)) else { return };
    println!("seed {seed}: FAILED: it takes more than {} MiB of memory", bytes >> 20);
    println!("replay: cargo sim --from {seed} --seeds 1 --trace");
    std::process::exit(1);
}

// SAFETY: everything is the system's allocator's; what is counted beside it allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// A history, as long as it runs on this thread.
pub struct Watched(u64);

impl Watched {
    pub fn begin(seed: u64) -> Self {
        RUNNING.lock().insert(seed, Instant::now());
        SEED.set(Some(seed));
        LIVE_BYTES.set(0);
        PEAK_BYTES.set(0);
        Watched(seed)
    }

    /// The most that it took at once.
    pub fn peak_bytes(&self) -> u64 {
        PEAK_BYTES.get().max(0) as u64
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        SEED.set(None);
        RUNNING.lock().remove(&self.0);
    }
}

/// The time of the history on this thread has moved on.
pub fn beat() {
    if let Some(seed) = SEED.get() {
        RUNNING.lock().insert(seed, Instant::now());
    }
}

/// Ends the program when a history stands still.
pub fn watch_time() {
    loop {
        std::thread::sleep(LOOK_INTERVAL);
        let still =
            RUNNING.lock().iter().find(|(_, since)| since.elapsed() > MAX_STILL).map(|(seed, _)| *seed);
        if let Some(seed) = still {
            println!("seed {seed}: FAILED: something in it does not end, and takes no time");
            println!("replay: cargo sim --from {seed} --seeds 1 --trace");
            std::process::exit(1);
        }
    }
}
