//! A disk in memory that forgets what was not synced.
//!
//! A test cannot pull the plug of a real machine ten thousand times, and killing a process does not lose the
//! page cache. This disk keeps what is durable apart from what is merely visible, and [`SimDisk::crash`]
//! gives the disk as a power loss would leave it: every unsynced sector old or new, every unsynced name
//! there or not, everything that was synced in place. It is deterministic: the same operations and the same
//! seed leave the same bytes, so that a failing history can be run again.
//!
//! It is part of the library, and not of one test, because later simulations run whole clusters on it.
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile, OpenMode};
pub use super::sim_file::Dice;
use super::sim_file::SimContent;

/// Shared by all its clones and open files.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

struct State {
    dirs: BTreeMap<PathBuf, Dir>,
    contents: BTreeMap<u64, SimContent>,
    next_file: u64,
    /// Mutating operations so far.
    operations: u64,
    /// This operation and all later ones fail.
    fail_at: Option<u64>,
    syncs_to_fail: u32,
    /// What [`Disk::free_bytes`] says; writes do not change it.
    free_bytes: u64,
    /// How much all files may take up, and how much of that is taken by others.
    size_bytes: Option<u64>,
    others_bytes: u64,
    /// What files may still grow by.
    space_bytes: Option<u64>,
    /// So many opens find no file descriptor.
    opens_to_refuse: u32,
    /// Behind so many reads of this file, so many find a sector that cannot be read.
    reads_to_fail: Option<(u64, u32, u32)>,
    removals_to_fail: u32,
    dice: Dice,
}

#[derive(Clone, Default)]
struct Dir {
    /// Whether the directory itself survives a power loss.
    is_durable: bool,
    files: BTreeMap<String, u64>,
    durable_files: BTreeMap<String, u64>,
    unsynced: Vec<NameChange>,
}

#[derive(Clone)]
enum NameChange {
    Put(String, u64),
    Remove(String),
    /// Atomic: after a power loss a file has one of its names, not both and not none.
    Rename {
        from: String,
        to: String,
        file: u64,
    },
}

struct SimFile {
    disk: SimDisk,
    file: u64,
    may_write: bool,
}

impl SimDisk {
    /// An empty disk. `seed` decides only how much of a write is done when [`SimDisk::fail_after`] hits it.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            dirs: BTreeMap::new(),
            contents: BTreeMap::new(),
            next_file: 1,
            operations: 0,
            fail_at: None,
            syncs_to_fail: 0,
            free_bytes: u64::MAX,
            size_bytes: None,
            others_bytes: 0,
            space_bytes: None,
            opens_to_refuse: 0,
            reads_to_fail: None,
            removals_to_fail: 0,
            dice: Dice::new(seed),
        })))
    }

    /// A new disk, as a power loss at this moment would leave this one. This one is not changed.
    pub fn crash(&self, seed: u64) -> Self {
        let state = self.0.lock();
        let mut dice = Dice::new(seed);
        let mut dirs: BTreeMap<PathBuf, Dir> = BTreeMap::new();
        let mut kept = BTreeSet::new();
        for (path, dir) in &state.dirs {
            // A child sorts after its parent, so the parent's fate is known.
            let parent_is_there =
                path.parent().is_none_or(|up| !state.dirs.contains_key(up) || dirs.contains_key(up));
            if !parent_is_there || (!dir.is_durable && dice.below(2) == 0) {
                continue;
            }
            let files = dir.after_power_loss(&mut dice);
            kept.extend(files.values().copied());
            let left = Dir { is_durable: true, files: files.clone(), durable_files: files, unsynced: vec![] };
            dirs.insert(path.clone(), left);
        }
        let contents = state
            .contents
            .iter()
            .filter(|(file, _)| kept.contains(file))
            .map(|(file, content)| (*file, content.after_power_loss(&mut dice)))
            .collect();
        Self(Arc::new(Mutex::new(State {
            dirs,
            contents,
            next_file: state.next_file,
            operations: 0,
            fail_at: None,
            syncs_to_fail: 0,
            free_bytes: u64::MAX,
            size_bytes: state.size_bytes,
            others_bytes: state.others_bytes,
            space_bytes: None,
            opens_to_refuse: 0,
            reads_to_fail: None,
            removals_to_fail: 0,
            dice,
        })))
    }

    /// The `count`-th mutating operation from now (1 is the next) and all after it fail, as if the process
    /// had been killed there. If that operation is a write, a random part of it is done.
    pub fn fail_after(&self, count: u64) {
        let mut state = self.0.lock();
        state.fail_at = Some(state.operations + count);
    }

    /// Ends the effect of [`SimDisk::fail_after`]: the process was killed, and the machine kept its memory.
    pub fn revive(&self) {
        self.0.lock().fail_at = None;
    }

    /// The next `count` syncs (of a file or a directory) report an error, and what they should have written
    /// never becomes durable.
    pub fn fail_syncs(&self, count: u32) {
        self.0.lock().syncs_to_fail = count;
    }

    /// From now on files may grow by so many bytes altogether; nothing is given back. `None`: without end.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.0.lock().space_bytes = bytes;
    }

    /// The disk has so many bytes from now on, and removed files give theirs back. A file takes up its length. `None`:
    /// without end.
    pub fn set_size(&self, bytes: Option<u64>) {
        self.0.lock().size_bytes = bytes;
    }

    /// So many bytes of the disk are taken by others.
    pub fn set_others(&self, bytes: u64) {
        self.0.lock().others_bytes = bytes;
    }

    /// Others take what is left but so many bytes. A disk without a size only says so.
    pub fn leave_free(&self, bytes: u64) {
        let mut state = self.0.lock();
        state.others_bytes = 0;
        match state.size_bytes {
            Some(_) => state.others_bytes = state.free().saturating_sub(bytes),
            None => state.free_bytes = bytes,
        }
    }

    /// The next `count` attempts to open or to make a file find no file descriptor.
    pub fn refuse_opens(&self, count: u32) {
        self.0.lock().opens_to_refuse = count;
    }

    /// The next `count` reads of a file fail as on a bad sector.
    pub fn fail_reads(&self, path: &Path, count: u32) -> io::Result<()> {
        self.fail_reads_after(path, 0, count)
    }

    /// The same for those behind the next `after` reads.
    pub fn fail_reads_after(&self, path: &Path, after: u32, count: u32) -> io::Result<()> {
        let mut state = self.0.lock();
        state.reads_to_fail = Some((state.find(path)?, after, count));
        Ok(())
    }

    /// The next `count` removals of a file find that the disk is full, as some file systems need room for that.
    pub fn fail_removals(&self, count: u32) {
        self.0.lock().removals_to_fail = count;
    }

    /// What the file system says it has left.
    pub fn set_free_bytes(&self, free_bytes: u64) {
        self.0.lock().free_bytes = free_bytes;
    }

    /// Mutating operations so far, the failed ones too.
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Damage: turns one bit of a file, durably.
    pub fn flip_bit(&self, path: &Path, offset_bytes: u64, bit: u8) -> io::Result<()> {
        self.damage(path, |content| {
            let mut byte = [0u8];
            content.read(&mut byte, offset_bytes)?;
            content.write(&[byte[0] ^ (1 << (bit % 8))], offset_bytes);
            Ok(())
        })
    }

    /// Damage: cuts a file short (or makes it longer), durably.
    pub fn truncate(&self, path: &Path, len_bytes: u64) -> io::Result<()> {
        self.damage(path, |content| {
            content.set_len(len_bytes);
            Ok(())
        })
    }

    /// Damage: loses a file, durably.
    pub fn lose(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = split(path)?;
        let mut state = self.0.lock();
        let dir = state.dirs.get_mut(dir).ok_or_else(not_found)?;
        dir.files.remove(&name).ok_or_else(not_found)?;
        dir.durable_files.remove(&name);
        dir.unsynced.retain(|change| !matches!(change, NameChange::Put(put, _) if *put == name));
        Ok(())
    }

    fn damage(&self, path: &Path, change: impl FnOnce(&mut SimContent) -> io::Result<()>) -> io::Result<()> {
        let mut state = self.0.lock();
        let file = state.find(path)?;
        let content = state.contents.get_mut(&file).ok_or_else(not_found)?;
        change(content)?;
        content.settle();
        Ok(())
    }
}

impl State {
    /// Counts one mutating operation; an error if it is the one to fail at, or later.
    fn begin(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.fail_at {
            Some(fail_at) if self.operations >= fail_at => Err(killed()),
            _ => Ok(()),
        }
    }

    /// An error if a file has no room to grow by so many bytes.
    fn grow(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > 0 && self.size_bytes.is_some() && self.free() < bytes {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        match &mut self.space_bytes {
            Some(left) if *left < bytes => Err(rustix::io::Errno::NOSPC.into()),
            Some(left) => {
                *left -= bytes;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What is left of a disk that has a size.
    fn free(&self) -> u64 {
        let Some(size_bytes) = self.size_bytes else { return self.free_bytes };
        let files = self.dirs.values().flat_map(|dir| dir.files.values());
        let lengths = files.filter_map(|file| self.contents.get(file)).map(SimContent::len_bytes);
        size_bytes.saturating_sub(self.others_bytes).saturating_sub(lengths.sum())
    }

    fn begin_sync(&mut self) -> io::Result<bool> {
        self.begin()?;
        let fails = self.syncs_to_fail > 0;
        self.syncs_to_fail = self.syncs_to_fail.saturating_sub(1);
        Ok(fails)
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        let (dir, name) = split(path)?;
        self.dirs.get(dir).and_then(|dir| dir.files.get(&name)).copied().ok_or_else(not_found)
    }
}

impl Dir {
    /// Each unsynced change is there or not; half of the time, as a journal would have it, only a prefix is.
    fn after_power_loss(&self, dice: &mut Dice) -> BTreeMap<String, u64> {
        let mut files = self.durable_files.clone();
        let is_prefix = dice.below(2) == 0;
        let prefix = dice.below(self.unsynced.len() as u64 + 1) as usize;
        for (position, change) in self.unsynced.iter().enumerate() {
            let is_kept = if is_prefix { position < prefix } else { dice.below(2) == 0 };
            if !is_kept {
                continue;
            }
            match change {
                NameChange::Put(name, file) => {
                    files.insert(name.clone(), *file);
                }
                NameChange::Remove(name) => {
                    files.remove(name);
                }
                NameChange::Rename { from, to, file } => {
                    files.remove(from);
                    files.insert(to.clone(), *file);
                }
            }
        }
        files
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.begin()?;
        for part in dir.ancestors().filter(|part| !part.as_os_str().is_empty()) {
            // The root of a path needs no parent to hold its name.
            let is_durable = part.parent().is_none();
            state.dirs.entry(part.to_path_buf()).or_insert_with(|| Dir { is_durable, ..Dir::default() });
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        Ok(state.dirs.get(dir).ok_or_else(not_found)?.files.keys().cloned().collect())
    }

    fn list_dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        let children = state.dirs.keys().filter(|child| child.parent() == Some(dir));
        let name = |child: &PathBuf| child.file_name()?.to_str().map(str::to_string);
        Ok(children.filter_map(name).collect())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        if state.opens_to_refuse > 0 {
            state.opens_to_refuse -= 1;
            return Err(rustix::io::Errno::MFILE.into());
        }
        let file = if mode == OpenMode::Create {
            state.begin()?;
            let (dir, name) = split(path)?;
            let file = state.next_file;
            let dir = state.dirs.get_mut(dir).ok_or_else(not_found)?;
            if dir.files.contains_key(&name) {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file exists"));
            }
            dir.files.insert(name.clone(), file);
            dir.unsynced.push(NameChange::Put(name, file));
            state.next_file += 1;
            state.contents.insert(file, SimContent::default());
            file
        } else {
            state.find(path)?
        };
        Ok(Arc::new(SimFile { disk: self.clone(), file, may_write: mode != OpenMode::Read }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_dir, from), (to_dir, to)) = (split(from)?, split(to)?);
        if from_dir != to_dir {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "rename between directories"));
        }
        let mut state = self.0.lock();
        state.begin()?;
        let dir = state.dirs.get_mut(from_dir).ok_or_else(not_found)?;
        let file = dir.files.remove(&from).ok_or_else(not_found)?;
        dir.files.insert(to.clone(), file);
        dir.unsynced.push(NameChange::Rename { from, to, file });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = split(path)?;
        let mut state = self.0.lock();
        state.begin()?;
        if state.removals_to_fail > 0 {
            state.removals_to_fail -= 1;
            return Err(rustix::io::Errno::NOSPC.into());
        }
        let dir = state.dirs.get_mut(dir).ok_or_else(not_found)?;
        dir.files.remove(&name).ok_or_else(not_found)?;
        dir.unsynced.push(NameChange::Remove(name));
        Ok(())
    }

    /// At once and durably, which no program may rely on: what is removed whole is of no use to anybody.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.begin()?;
        state.dirs.retain(|path, _| !path.starts_with(dir));
        Ok(())
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(self.0.lock().free())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.0.lock();
        Ok(state.dirs.contains_key(path) || state.find(path).is_ok())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let fails = state.begin_sync()?;
        if fails {
            return Err(sync_failed());
        }
        for (child, dir) in &mut state.dirs {
            if child.parent() == Some(path) {
                dir.is_durable = true;
            }
        }
        if let Some(dir) = state.dirs.get_mut(path) {
            dir.durable_files = dir.files.clone();
            dir.unsynced.clear();
        }
        Ok(())
    }
}

impl SimFile {
    fn change(&self, change: impl FnOnce(&mut SimContent)) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.begin()?;
        if !self.may_write {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "opened to read"));
        }
        change(state.contents.get_mut(&self.file).ok_or_else(not_found)?);
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        match &mut state.reads_to_fail {
            Some((file, after, _)) if *file == self.file && *after > 0 => *after -= 1,
            Some((file, _, count)) if *file == self.file && *count > 0 => {
                *count -= 1;
                return Err(rustix::io::Errno::IO.into());
            }
            _ => {}
        }
        state.contents.get(&self.file).ok_or_else(not_found)?.read(buf, offset_bytes)
    }

    fn write_all_at(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let begun = state.begin();
        // Only the very operation at which the process dies is done in part; none after it is.
        let part = match (&begun, state.fail_at) {
            (Ok(()), _) => buf.len(),
            (Err(_), Some(fail_at)) if fail_at == state.operations => {
                state.dice.below(buf.len() as u64 + 1) as usize
            }
            (Err(_), _) => return begun,
        };
        if !self.may_write {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "opened to read"));
        }
        let len_bytes = state.contents.get(&self.file).ok_or_else(not_found)?.len_bytes();
        state.grow((offset_bytes + part as u64).saturating_sub(len_bytes))?;
        state.contents.get_mut(&self.file).ok_or_else(not_found)?.write(&buf[..part], offset_bytes);
        begun
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let fails = state.begin_sync()?;
        let content = state.contents.get_mut(&self.file).ok_or_else(not_found)?;
        if fails {
            content.fail_sync();
            return Err(sync_failed());
        }
        content.sync();
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        let state = self.disk.0.lock();
        Ok(state.contents.get(&self.file).ok_or_else(not_found)?.len_bytes())
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        let more_bytes = len_bytes.saturating_sub(self.len_bytes()?);
        self.disk.0.lock().grow(more_bytes)?;
        self.change(|content| content.set_len(len_bytes.max(content.len_bytes())))
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.change(|content| content.set_len(len_bytes))
    }
}

fn split(path: &Path) -> io::Result<(&Path, String)> {
    let name = path.file_name().and_then(|name| name.to_str());
    match (path.parent(), name) {
        (Some(dir), Some(name)) => Ok((dir, name.to_string())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path of a file")),
    }
}

fn not_found() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "no such file or directory")
}

fn killed() -> io::Error {
    io::Error::other("simulated kill")
}

fn sync_failed() -> io::Error {
    io::Error::other("simulated failure of a sync")
}
