//! How much memory this process may use: what its control group allows, else what the machine has.

use std::fs;
use std::path::Path;

use crate::limits::{MAX_DEFAULT_INFLIGHT_BYTES, MIN_DEFAULT_INFLIGHT_BYTES};

/// The share of it that bodies and messages may take is the whole by this.
const SHARES: u64 = 4;

/// `max_inflight_bytes` where nothing is given.
pub(super) fn default_inflight_bytes() -> u64 {
    share(limit_bytes(Path::new("/")))
}

fn share(limit_bytes: Option<u64>) -> u64 {
    (limit_bytes.unwrap_or(0) / SHARES).clamp(MIN_DEFAULT_INFLIGHT_BYTES, MAX_DEFAULT_INFLIGHT_BYTES)
}

/// The lowest of all that bounds it, with the file system at `root`; `None` if nothing says so.
fn limit_bytes(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    groups.lines().filter_map(|line| group_limit_bytes(root, line)).chain(machine_bytes(root)).min()
}

/// What one line of `/proc/self/cgroup` stands for: `ordinal:controllers:path`.
fn group_limit_bytes(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
    let (mount, file) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"),
        "memory" => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return None,
    };
    let mount = root.join(mount);
    // A group is bound by those above it too. Inside of a container the path may be that of the outside, and is
    // not there; its own group is at the root then.
    let groups = Path::new(path).ancestors().map(|group| mount.join(group).join(file));
    groups.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min()
}

fn machine_bytes(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_files(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        limit_bytes(root.path())
    }

    #[test]
    fn the_lowest_limit_counts() {
        let machine = ("proc/meminfo", "MemTotal:       1000 kB\nMemFree: 1 kB\n");
        assert_eq!(with_files(&[]), None);
        assert_eq!(with_files(&[machine]), Some(1_024_000));
        let group = ("proc/self/cgroup", "0::/a/b\n");
        assert_eq!(with_files(&[machine, group, ("sys/fs/cgroup/a/b/memory.max", "max\n")]), Some(1_024_000));
        let above = ("sys/fs/cgroup/a/memory.max", "70000\n");
        assert_eq!(with_files(&[machine, group, above]), Some(70_000));
        assert_eq!(with_files(&[machine, group, ("sys/fs/cgroup/memory.max", "5\n")]), Some(5));
        let earlier = ("proc/self/cgroup", "3:cpu:/x\n4:memory:/x\n");
        let limit = ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9\n");
        assert_eq!(with_files(&[earlier, limit]), Some(9));
    }

    #[test]
    fn bodies_have_a_quarter_within_bounds() {
        // C-LIMIT-16
        assert_eq!(share(None), 128 << 20);
        assert_eq!(share(Some(256 << 20)), 128 << 20);
        assert_eq!(share(Some(2 << 30)), 512 << 20);
        assert_eq!(share(Some(64 << 30)), 1 << 30);
    }
}
