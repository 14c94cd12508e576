//! Setting damaged data aside.
//!
//! A member that finds that something it has confirmed is damaged must not go on with what is left: it might
//! vote, or lead, having forgotten what it promised. With enough other members its data are worth less than
//! its certainty. So what is there moves into a directory `damaged-<time>` beside, the member gets a new
//! Raft id, and starts blank, to be filled again by the others.
//!
//! Between the old member and the blank one lies more than one step of the file system, and in between neither
//! may run: the old id must never speak from an empty log. So a *mark* comes first, a small file that says
//! that the move is decided. Whoever starts on a marked directory finishes the move, from wherever it got to, and
//! removes the mark last. The mark is also what a running member leaves when a read finds damage that the next
//! start would not look for.
//!
//! What moves is what a member makes, by name. Whatever else lies there, the `lost+found` of a file system or a copy
//! that somebody put beside the data, stays: it may not even be the member's to move.
//!
//! Such a directory goes when the member is a voter again; until then it may be the last copy of something, should
//! too many others be lost as well. Data that is damaged while one is there is hardly ever a voter's; but between the
//! vote and the removal there is a moment, so it is set aside too. There are at most two: the first, which certainly
//! was a voter's, and the last.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{Disk, read_small_file, write_file_atomically};
use super::verdict::is_unreadable;

pub(super) const MARK: &str = "damaged";
const PREFIX: &str = "damaged-";
const MARK_BYTES_MAX: u64 = 64 << 10;
/// Is copied, and replaced in one step.
const IDENTITY: &str = "identity";

/// Whether a name in a data directory is that of a part of a member's data: `log`, `log-1`, `checkpoint-1.damaged`,
/// `export.tmp`, and so on.
fn is_data(name: &str) -> bool {
    let is_of = |kind: &str, ends: &[&str]| {
        let Some(rest) = name.strip_prefix(kind) else { return false };
        // The number of a store.
        let behind = rest.strip_prefix('-').map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        ends.contains(&behind.filter(|behind| behind.len() + 1 < rest.len()).unwrap_or(rest))
    };
    is_of("log", &[""])
        || is_of("checkpoint", &["", ".damaged", ".restored"])
        || ["store", "export", "restored"].into_iter().any(|file| is_of(file, &["", ".tmp"]))
}

/// A decision to set data aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When it was made, in Unix milliseconds.
    pub unix_ms: u64,
    /// What was damaged: one line.
    pub why: String,
}

/// `text` as it may stand in one line, of the file and of the log.
fn line_of(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

impl Mark {
    /// Reads the mark of a data directory. A mark whose words are lost is still one.
    pub fn read(disk: &dyn Disk, data_dir: &Path) -> io::Result<Option<Mark>> {
        let path = data_dir.join(MARK);
        if !disk.exists(&path)? {
            return Ok(None);
        }
        let bytes = match read_small_file(disk, &path, MARK_BYTES_MAX) {
            Err(error) if is_unreadable(&error) => Vec::new(),
            read => read?,
        };
        let text = String::from_utf8_lossy(&bytes);
        let (unix_ms, why) = text.split_once('\n').unwrap_or(("", ""));
        let why = line_of(why.lines().next().unwrap_or("damage was found earlier"));
        Ok(Some(Mark { unix_ms: unix_ms.parse().unwrap_or(0), why }))
    }

    /// Decides it; durable on return. From now on nothing else may use the data.
    pub fn write(&self, disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
        let why = line_of(&self.why);
        write_file_atomically(disk, data_dir, MARK, format!("{}\n{why}\n", self.unix_ms).as_bytes())
    }

    /// The directory that takes the data.
    pub fn dir_name(&self) -> String {
        format!("{PREFIX}{}", self.unix_ms)
    }

    /// Carries it out: moves the data, has `mint` replace the identity, durably, and removes the mark. May be
    /// repeated after a kill at any point.
    pub fn carry_out(
        &self,
        disk: &dyn Disk,
        data_dir: &Path,
        mint: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        self.carry_out_in_steps(disk, data_dir, mint, &mut || Ok(()))
    }

    /// `step` is called before each change; an error of it is a kill.
    fn carry_out_in_steps(
        &self,
        disk: &dyn Disk,
        data_dir: &Path,
        mint: impl FnOnce() -> io::Result<()>,
        step: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let aside = data_dir.join(self.dir_name());
        let earlier: Vec<PathBuf> = find(data_dir)?.into_iter().filter(|earlier| *earlier != aside).collect();
        if !disk.exists(&aside)? || !disk.exists(&aside.join(IDENTITY))? {
            for between in earlier.iter().skip(1) {
                step()?;
                fs::remove_dir_all(between)?;
            }
            step()?;
            disk.create_dir_all(&aside)?;
            disk.sync_dir(data_dir)?;
            if !disk.exists(&aside.join(IDENTITY))? {
                step()?;
                let identity = fs::read(data_dir.join(IDENTITY))?;
                write_file_atomically(disk, &aside, IDENTITY, &identity)?;
            }
        }
        for item in fs::read_dir(data_dir)? {
            let item = item?;
            let name = item.file_name();
            if !name.to_str().is_some_and(is_data) {
                continue;
            }
            step()?;
            fs::rename(item.path(), aside.join(&name)).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot move {}: {error}", item.path().display()))
            })?;
        }
        disk.sync_dir(data_dir)?;
        disk.sync_dir(&aside)?;
        step()?;
        mint()?;
        step()?;
        disk.remove(&data_dir.join(MARK))?;
        disk.sync_dir(data_dir)
    }
}

/// The directories with data that were set aside, the first one first.
fn find(data_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for item in fs::read_dir(data_dir)? {
        let item = item?;
        let name = item.file_name();
        let Some(time) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        // Whatever else has such a name is a stranger's.
        let Ok(time) = time.parse::<u64>() else { continue };
        if item.file_type()?.is_dir() {
            found.push((time, item.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Whether data of this member was set aside, and it has not been a voter since.
pub fn is_set_aside(data_dir: &Path) -> io::Result<bool> {
    Ok(!find(data_dir)?.is_empty())
}

/// Removes what was set aside.
pub fn remove_set_aside(data_dir: &Path) -> io::Result<()> {
    find(data_dir)?.into_iter().try_for_each(fs::remove_dir_all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{RealDisk, SimDisk};

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn fill(dir: &Path, what: &str) {
        for store in ["log", "checkpoint"] {
            fs::create_dir(dir.join(store)).unwrap();
            fs::write(dir.join(store).join("file"), what).unwrap();
        }
        for file in ["identity", "export", "lock"] {
            fs::write(dir.join(file), what).unwrap();
        }
    }

    fn mark(unix_ms: u64) -> Mark {
        Mark { unix_ms, why: "segment 7 is damaged".to_owned() }
    }

    /// Marks `dir` and carries it out, killed before step `kill_at`. Gives whether that was before its end.
    fn set_aside(dir: &Path, unix_ms: u64, kill_at: usize) -> bool {
        mark(unix_ms).write(&RealDisk, dir).unwrap();
        let mut steps = 0;
        let mint = || fs::write(dir.join("identity"), "new");
        let outcome = mark(unix_ms).carry_out_in_steps(&RealDisk, dir, mint, &mut || {
            steps += 1;
            if steps == kill_at { Err(io::Error::other("killed")) } else { Ok(()) }
        });
        outcome.is_err()
    }

    fn expect_blank(dir: &Path, asides: &[&str], hold: &[&str]) {
        assert_eq!(names(dir), [asides, &["identity", "lock"]].concat());
        assert_eq!(fs::read_to_string(dir.join("identity")).unwrap(), "new");
        for (aside, holds) in asides.iter().zip(hold) {
            assert_eq!(names(&dir.join(aside)), ["checkpoint", "export", "identity", "log"]);
            for file in ["identity", "export", "log/file", "checkpoint/file"] {
                assert_eq!(fs::read_to_string(dir.join(aside).join(file)).unwrap(), *holds, "{file}");
            }
        }
    }

    #[test]
    fn a_kill_at_any_point_leaves_a_mark_until_the_directory_is_blank() {
        let mut kills = 0;
        for kill_at in 1.. {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path();
            fill(dir, "old");
            if !set_aside(dir, 5, kill_at) {
                break;
            }
            kills += 1;
            let found = Mark::read(&RealDisk, dir).unwrap().expect("the mark is still there");
            assert_eq!(found, mark(5));
            found.carry_out(&RealDisk, dir, || fs::write(dir.join("identity"), "new")).unwrap();
            assert_eq!(Mark::read(&RealDisk, dir).unwrap(), None);
            expect_blank(dir, &["damaged-5"], &["old"]);
        }
        assert!(kills >= 6, "{kills}");
    }

    #[test]
    fn what_is_not_the_member_s_stays_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fill(dir, "old");
        let others =
            ["lost+found", ".snapshot", "backup", "log-old", "logs", "damaged-by-me", "checkpoint.copy"];
        for other in others {
            fs::create_dir(dir.join(other)).unwrap();
        }
        fs::write(dir.join("ballast"), "").unwrap();
        for file in ["store", "store.tmp", "restored", "export.tmp"] {
            fs::write(dir.join(file), "old").unwrap();
        }
        for ours in ["log-3", "checkpoint-3", "checkpoint-3.damaged", "checkpoint.restored"] {
            fs::create_dir(dir.join(ours)).unwrap();
        }
        assert!(!set_aside(dir, 5, 0));
        let mut left = [&others[..], &["ballast", "damaged-5", "identity", "lock"]].concat();
        left.sort_unstable();
        assert_eq!(names(dir), left);
        assert_eq!(names(&dir.join("damaged-5")).len(), 5 + 4 + 3);
        remove_set_aside(dir).unwrap();
        left.retain(|name| *name != "damaged-5");
        assert_eq!(names(dir), left);
        assert!(!is_set_aside(dir).unwrap(), "a stranger's directory is no data that were set aside");
    }

    #[test]
    fn what_cannot_be_moved_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fill(dir, "old");
        // A directory that is not empty is in the way.
        fs::create_dir_all(dir.join("damaged-5/log/file")).unwrap();
        mark(5).write(&RealDisk, dir).unwrap();
        let error = mark(5).carry_out(&RealDisk, dir, || Ok(())).unwrap_err();
        assert!(error.to_string().contains(&format!("cannot move {}", dir.join("log").display())), "{error}");
    }

    #[test]
    fn a_mark_that_cannot_be_read_is_a_mark() {
        let (disk, dir) = (SimDisk::new(1), Path::new("/data"));
        disk.create_dir_all(dir).unwrap();
        mark(5).write(&disk, dir).unwrap();
        disk.fail_reads(&dir.join(MARK), 1).unwrap();
        assert_eq!(Mark::read(&disk, dir).unwrap(), Some(mark(5)));
        disk.fail_reads(&dir.join(MARK), u32::MAX).unwrap();
        assert!(Mark::read(&disk, dir).unwrap().is_some());
    }

    #[test]
    fn what_a_voter_had_first_and_last_stays_until_it_is_one_again() {
        for kill_at in 1..20 {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path();
            fill(dir, "a voter's");
            assert!(!set_aside(dir, 5, 0));
            assert!(is_set_aside(dir).unwrap());
            for (unix_ms, what) in [(6, "half a copy"), (7, "a voter's again, for a moment")] {
                fs::remove_file(dir.join("identity")).unwrap();
                fs::remove_file(dir.join("lock")).unwrap();
                fill(dir, what);
                set_aside(dir, unix_ms, kill_at);
                if let Some(found) = Mark::read(&RealDisk, dir).unwrap() {
                    found.carry_out(&RealDisk, dir, || fs::write(dir.join("identity"), "new")).unwrap();
                }
                let last = format!("damaged-{unix_ms}");
                expect_blank(dir, &["damaged-5", &last], &["a voter's", what]);
            }
            remove_set_aside(dir).unwrap();
            assert_eq!(names(dir), ["identity", "lock"]);
            assert!(!is_set_aside(dir).unwrap());
        }
    }
}
