//! What this process uses, as the kernel counts it.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// What this process uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessFigures {
    /// In user and kernel mode, all threads.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub open_files: u64,
    /// `None`: any number.
    pub max_open_files: Option<u64>,
    /// Unix time.
    pub start_seconds: f64,
}

impl ProcessFigures {
    /// Reads them; `None` if the kernel does not tell. Waits for the kernel, and the longer the more files are open.
    pub fn read() -> Option<Self> {
        let stat = Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)?;
        let ticks_per_second = clock_ticks_per_second() as f64;
        // The descriptor that lists them is one of them.
        let open_files = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
        Some(ProcessFigures {
            cpu_seconds: stat.cpu_ticks as f64 / ticks_per_second,
            resident_bytes: stat.resident_pages * page_size() as u64,
            virtual_bytes: stat.virtual_bytes,
            open_files: open_files as u64,
            max_open_files: getrlimit(Resource::Nofile).current,
            start_seconds: start_seconds(stat.start_ticks as f64 / ticks_per_second)?,
        })
    }
}

/// When this process was started, which was `started` seconds after its machine was. Once found it stays what it is:
/// whoever watches it takes a change for a restart, and the clock may be set.
fn start_seconds(started: f64) -> Option<f64> {
    static START_SECONDS: OnceLock<f64> = OnceLock::new();
    if let Some(known) = START_SECONDS.get() {
        return Some(*known);
    }
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime = Duration::try_from_secs_f64(uptime.split_whitespace().next()?.parse().ok()?).ok()?;
    let booted = SystemTime::now().checked_sub(uptime)?.duration_since(UNIX_EPOCH).ok()?;
    Some(*START_SECONDS.get_or_init(|| booted.as_secs_f64() + started))
}

/// A line of `/proc/PID/stat`, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// In user and kernel mode.
    pub cpu_ticks: u64,
    /// Since the machine was booted.
    pub start_ticks: u64,
    pub virtual_bytes: u64,
    pub resident_pages: u64,
}

impl Stat {
    pub fn parse(line: &str) -> Option<Self> {
        // The name of the program, in brackets, may hold anything.
        let (_, behind_name) = line.rsplit_once(')')?;
        let fields: Vec<&str> = behind_name.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Stat {
            cpu_ticks: number(11)? + number(12)?,
            start_ticks: number(19)?,
            virtual_bytes: number(20)?,
            resident_pages: number(21)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read() {
        let line = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 7 7 20 0 3 0 99 1000 10 18446744073709551615";
        let stat = Stat { cpu_ticks: 300, start_ticks: 99, virtual_bytes: 1000, resident_pages: 10 };
        assert_eq!(Stat::parse(line), Some(stat));
        assert_eq!(Stat::parse("42 (a) S 1"), None);
    }

    #[test]
    fn this_process_is_found_as_it_is() {
        let before = ProcessFigures::read().unwrap();
        let end = std::time::Instant::now() + Duration::from_millis(100);
        while std::time::Instant::now() < end {}
        let files: Vec<fs::File> = (0..10).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        let after = ProcessFigures::read().unwrap();
        assert!(after.cpu_seconds > before.cpu_seconds, "{before:?} {after:?}");
        // Other tests open and close files meanwhile, and those of 10 are far less than all of theirs.
        assert!(after.open_files >= files.len() as u64 && after.open_files < 100_000, "{after:?}");
        assert!(after.resident_bytes > 1 << 20 && after.virtual_bytes > after.resident_bytes, "{after:?}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(after.start_seconds < now && after.start_seconds > now - 86_400.0, "{after:?} at {now}");
        assert_eq!(after.start_seconds, before.start_seconds);
    }
}
