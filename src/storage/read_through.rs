//! Finding the file that a disk cannot read, where whoever was asked to read it does not say which one it was.
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::verdict::{is_unreadable, with_second_try};

/// Files are read in pieces of this size.
const READ_BYTES: usize = 1 << 20;

/// A file in `dir` that cannot be read to its end, a second try included.
pub(super) fn find_unreadable(dir: &Path) -> Option<PathBuf> {
    let mut buf = vec![0; READ_BYTES];
    let paths = fs::read_dir(dir).ok()?.flatten().map(|item| item.path());
    paths.filter(|path| path.is_file()).find(|path| is_unreadable_file(path, &mut buf))
}

fn is_unreadable_file(path: &Path, buf: &mut [u8]) -> bool {
    let mut at_bytes = 0;
    let file = match with_second_try(|| File::open(path)) {
        Ok(file) => file,
        Err(error) => return is_unreadable(&error),
    };
    loop {
        match with_second_try(|| file.read_at(buf, at_bytes)) {
            Ok(0) => return false,
            Ok(count) => at_bytes += count as u64,
            Err(error) => return is_unreadable(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_is_found_among_others() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("blobs")).unwrap();
        fs::write(dir.path().join("db"), vec![7; 3 << 20]).unwrap();
        assert_eq!(find_unreadable(dir.path()), None);
        // Reading the memory of this process from address 0 is an error of I/O.
        let bad = dir.path().join("conf");
        std::os::unix::fs::symlink("/proc/self/mem", &bad).unwrap();
        assert_eq!(find_unreadable(dir.path()), Some(bad));
    }
}
