//! Loading the state: from its checkpoint, or from what it can be made again of.
//!
//! A checkpoint that is certainly damaged is made again from the log, as long as all of that is there, or from the
//! state that was exported and the log behind it. What cannot be read for any other reason is left as it is. All is
//! judged first: what takes a checkpoint's place has been loaded once before it does.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};

use super::opening::Unopened;
use crate::config::Settings;
use crate::raft::Applied;
use crate::state::BlockBytes;
use crate::storage::{
    Change, Checkpoint, Disk, Log, SledCheckpoint, Stores, Verdict, read_export, write_file_atomically,
};

/// What a restore hands to the checkpoint at once.
const RESTORE_BATCH_BYTES: usize = 1 << 20;
/// Says that the state was restored from its export. Entries that topics gave up since the export may be gone
/// already, so whether all that is in use is there can be asked only when the log behind it has been applied again;
/// and that may take more than one start.
const RESTORED: &str = "restored";

/// The state, as it could be loaded.
pub(super) struct Loaded {
    pub applied: Arc<Applied>,
    /// It is that of an export, or comes from one that was restored earlier and not checked since.
    pub is_restored: bool,
}

/// Loads the state that belongs to `log`.
pub(super) fn load(
    settings: &Settings,
    disk: &dyn Disk,
    stores: &Stores,
    log: &Log,
) -> Result<Loaded, Unopened> {
    let dir = &stores.checkpoint_dir();
    let is_restored =
        disk.exists(&settings.data_dir.join(RESTORED)).context("cannot use the data directory")?;
    let error = match load_from(log, || stores.open_checkpoint()) {
        Ok(applied) => return Ok(Loaded { applied, is_restored }),
        // A checkpoint is written when the log is synced that far, so it is the log that lost something.
        Err(error) if error.is::<LogTooShort>() => {
            let line = anyhow!("the log beside the checkpoint in {} {error}", dir.display());
            return Err(Unopened::new(Verdict::Damage, line));
        }
        Err(error) => error,
    };
    let verdict = verdict_of(&error);
    if verdict != Verdict::Damage {
        let said = format!("the checkpoint in {} cannot be read", dir.display());
        return Err(Unopened::new(verdict, error.context(said)));
    }
    let why = format!("the checkpoint in {} cannot be used ({error:#})", dir.display());
    if log.purged().is_none() {
        // The whole log is still there, so the state can be made again by applying all of it.
        tracing::warn!("{why}: rebuilding it from the log");
        move_aside(dir)?;
        let loaded = load_from(log, || stores.open_checkpoint());
        let applied =
            loaded.map_err(|line| Unopened { is_changed: true, ..Unopened::new(Verdict::Refused, line) })?;
        return Ok(Loaded { applied, is_restored: false });
    }
    match restore_export(settings, disk, stores, log) {
        Ok(Some(applied)) => {
            tracing::warn!(
                "{why}: it was restored from the state that was exported at entry {}",
                applied.index()
            );
            Ok(Loaded { applied, is_restored: true })
        }
        Ok(None) => Err(Unopened::new(
            Verdict::Damage,
            anyhow!("{why} and the log alone is not enough to rebuild it"),
        )),
        Err(error) => {
            let (verdict, is_changed) = (verdict_of(&error), error.is::<Replaced>());
            let line = anyhow!("{why}, nor can the exported state ({error:#})");
            Err(Unopened { is_changed, ..Unopened::new(verdict, line) })
        }
    }
}

/// What an error says of the data: that they are damaged, if none of its causes is one of I/O.
fn verdict_of(error: &anyhow::Error) -> Verdict {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    cause.map_or(Verdict::Damage, Verdict::of)
}

fn load_from(
    log: &Log,
    open: impl FnOnce() -> io::Result<Arc<dyn Checkpoint>>,
) -> anyhow::Result<Arc<Applied>> {
    let load = || -> anyhow::Result<Arc<Applied>> {
        Ok(Applied::load(log.clone(), open()?, BlockBytes::default())?)
    };
    // sled takes some of what it reads for granted, and what is damaged may be anything: of 180 damaged databases
    // 143 failed to open or load, and 4 ended in a panic. That is one reason among others, and no noise. A panic of
    // our own is told from it inside.
    let usual = take_hook();
    set_hook(Box::new(|panic| tracing::debug!("the checkpoint: {panic}")));
    let loaded = catch_unwind(AssertUnwindSafe(load));
    set_hook(usual);
    let applied = loaded.unwrap_or_else(|_| Err(anyhow!("it is damaged")))?;
    let last_index = log.last_id().map_or(0, |id| id.index);
    if applied.index() > last_index {
        return Err(LogTooShort { last_index, applied_index: applied.index() }.into());
    }
    let purged_index = log.purged().map_or(0, |id| id.index);
    if applied.index() < purged_index {
        bail!("it is at entry {}, but the log begins after {purged_index}", applied.index());
    }
    Ok(applied)
}

/// The log has lost entries that it had confirmed.
#[derive(Debug)]
struct LogTooShort {
    last_index: u64,
    applied_index: u64,
}

impl std::fmt::Display for LogTooShort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { last_index, applied_index } = self;
        write!(
            f,
            "has lost its end: it ends at entry {last_index}, and the checkpoint has seen {applied_index}"
        )
    }
}

impl std::error::Error for LogTooShort {}

/// Puts what was exported in the place of the checkpoint. `None` if there is no export. An error, and a kill, leave
/// the checkpoint as it is or the export in its place.
fn restore_export(
    settings: &Settings,
    disk: &dyn Disk,
    stores: &Stores,
    log: &Log,
) -> anyhow::Result<Option<Arc<Applied>>> {
    let dir = &stores.checkpoint_dir();
    let fresh = dir.with_extension("restored");
    remove(&fresh)?;
    let judged = fill_from_export(settings, disk, &fresh).and_then(|is_filled| {
        if is_filled {
            load_from(log, || Ok(Arc::new(SledCheckpoint::open(&fresh)?)))?;
        }
        Ok(is_filled)
    });
    if !matches!(judged, Ok(true)) {
        remove(&fresh)?;
        return judged.map(|_| None);
    }
    write_file_atomically(disk, &settings.data_dir, RESTORED, b"").context("cannot note the restore")?;
    // A kill between the two leaves no checkpoint, and the same again.
    move_aside(dir)?;
    let replace = || {
        std::fs::rename(&fresh, dir).with_context(|| format!("cannot rename {}", fresh.display()))?;
        disk.sync_dir(&settings.data_dir)?;
        load_from(log, || stores.open_checkpoint()).map(Some)
    };
    replace().context(Replaced)
}

/// Of an error behind the point at which the damaged checkpoint was moved aside.
#[derive(Debug)]
struct Replaced;

impl std::fmt::Display for Replaced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("it was whole, and put in the place of the checkpoint")
    }
}

/// Makes a checkpoint of the export in `fresh`; `false` if there is no export.
fn fill_from_export(settings: &Settings, disk: &dyn Disk, fresh: &Path) -> anyhow::Result<bool> {
    let checkpoint = SledCheckpoint::open(fresh)?;
    let (mut batch, mut batch_bytes) = (Vec::<Change>::new(), 0);
    let read = read_export(disk, &settings.data_dir, &mut |key, value| {
        batch_bytes += key.len() + value.len();
        batch.push((key.to_vec(), Some(value.to_vec())));
        if batch_bytes < RESTORE_BATCH_BYTES {
            return Ok(());
        }
        batch_bytes = 0;
        checkpoint.write(std::mem::take(&mut batch))
    })?;
    checkpoint.write(batch)?;
    Ok(read.is_some())
}

/// All that is in use was found to be there: the next start asks at once, as ever.
pub(super) fn forget_restore(disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    let path = data_dir.join(RESTORED);
    if disk.exists(&path)? {
        disk.remove(&path)?;
        disk.sync_dir(data_dir)?;
    }
    Ok(())
}

/// Where a checkpoint is moved that another one took the place of.
pub(super) fn aside_of(checkpoint_dir: &Path) -> PathBuf {
    checkpoint_dir.with_extension("damaged")
}

fn move_aside(dir: &Path) -> anyhow::Result<()> {
    let aside = aside_of(dir);
    remove(&aside)?;
    if dir.exists() {
        std::fs::rename(dir, &aside).with_context(|| format!("cannot move {} aside", dir.display()))?;
    }
    Ok(())
}

fn remove(dir: &Path) -> anyhow::Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}
