//! What a process has used, as the kernel counts it.
//!
//! Read from `/proc`, not asked of the members: it must also hold for what they do not know of themselves,
//! such as time in the kernel and pages written again.

use anyhow::Context;
use rustix::param::clock_ticks_per_second;

use crate::telemetry::process::Stat;

/// What one process has used since it started, or between two points.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// In user and kernel mode, all threads.
    pub cpu_s: f64,
    /// What was sent to storage, in whole pages: those dirtied in the cache, and those written around it.
    /// `None` if the kernel does not say.
    pub written_bytes: Option<u64>,
    /// What was handed to write calls, the ones on sockets that gather included.
    pub wchar_bytes: Option<u64>,
}

impl Usage {
    /// What the process `pid` has used so far.
    pub fn of(pid: u32) -> anyhow::Result<Usage> {
        let path = format!("/proc/{pid}/stat");
        let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let stat = Stat::parse(&stat).with_context(|| format!("read the CPU time in {path}"))?;
        // Readable only by the process's owner, unlike the CPU time.
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        Ok(Usage {
            cpu_s: stat.cpu_ticks as f64 / clock_ticks_per_second() as f64,
            written_bytes: parse_io(&io, "write_bytes"),
            wchar_bytes: parse_io(&io, "wchar"),
        })
    }

    /// What was used since `earlier`.
    pub fn since(self, earlier: Usage) -> Usage {
        let less = |now: Option<u64>, then: Option<u64>| Some(now?.saturating_sub(then?));
        Usage {
            cpu_s: self.cpu_s - earlier.cpu_s,
            written_bytes: less(self.written_bytes, earlier.written_bytes),
            wchar_bytes: less(self.wchar_bytes, earlier.wchar_bytes),
        }
    }
}

/// Memory that the process `pid` has now, in bytes.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    parse_resident(&status).with_context(|| format!("read VmRSS in {path}"))
}

fn parse_resident(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

fn parse_io(io: &str, name: &str) -> Option<u64> {
    let value = io.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let io = "rchar: 1\nwchar: 22\nsyscw: 3\nwrite_bytes: 4096\ncancelled_write_bytes: 5\n";
        assert_eq!(parse_io(io, "wchar"), Some(22));
        assert_eq!(parse_io(io, "write_bytes"), Some(4096));
        assert_eq!(parse_io(io, "bytes"), None);
        assert_eq!(parse_resident("VmHWM:\t    9 kB\nVmRSS:\t    5 kB\n"), Some(5 << 10));
    }

    #[test]
    fn this_process_has_used_something() {
        let before = Usage::of(std::process::id()).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_millis(100);
        while std::time::Instant::now() < end {}
        let used = Usage::of(std::process::id()).unwrap().since(before);
        assert!(used.cpu_s > 0.0 && used.cpu_s < 10.0, "{used:?}");
    }
}
