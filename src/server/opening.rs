//! Opening what lies in the data directory, whatever has become of it.
//!
//! What can be made again here is made again: a checkpoint from the log, or from its export and the rest of
//! the log. What cannot, and is certainly damaged, makes this member set its data aside and start blank, to
//! be filled again by the others, if there are enough others for that. If there are not, or if the disk
//! refuses (which may pass, and says nothing of what is on it), it ends with one line.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};

use crate::clock::{Random, SystemClock};
use crate::config::Settings;
use crate::raft::{Applied, Identity};
use crate::storage::{
    Change, Checkpoint, Disk, Log, LogOptions, Mark, OpenError, SledCheckpoint, SledCheckpoints, Stores,
    is_set_aside, read_export,
};

/// What a restore hands to the checkpoint at once.
const RESTORE_BATCH_BYTES: usize = 1 << 20;

/// What lies in the data directory: the log and the state.
pub(super) struct Storage {
    pub stores: Arc<Stores>,
    pub log: Log,
    pub applied: Arc<Applied>,
    /// The state is that of the export. Entries that topics gave up since may be gone already, until the log
    /// beyond it is applied again.
    pub is_restored: bool,
    writer: std::thread::JoinHandle<()>,
}

/// Why the data cannot be opened.
enum Unopened {
    /// What was confirmed is damaged or lost, and nothing here can replace it: one line.
    Damage(String),
    Other(anyhow::Error),
}

/// Whether the other members are enough to fill this one again when it is blank: they must be a majority.
pub(super) fn can_be_filled_again(settings: &Settings) -> bool {
    settings.members.len() > 2 || !settings.join.is_empty()
}

/// Opens everything. Blank, under a new id, if it was damaged and there are others.
pub(super) fn open(
    settings: &Settings,
    disk: &Arc<dyn Disk>,
    random: &dyn Random,
) -> anyhow::Result<(Identity, Storage)> {
    let dir = &settings.data_dir;
    let identity = Identity::open(&**disk, dir, &settings.cluster, &settings.member, random)
        .map_err(|line| anyhow!(line))?;
    let marked = Mark::read(&**disk, dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mark = match marked {
        Some(mark) => mark,
        None => match Storage::open(settings, disk) {
            Ok(storage) => return Ok((identity, storage)),
            Err(Unopened::Other(error)) => return Err(error),
            Err(Unopened::Damage(why)) => Mark { unix_ms: SystemClock::shared().wall_ms(), why },
        },
    };
    if !can_be_filled_again(settings) {
        bail!(
            "{}, and there are not enough other members to fill this one again: restore a backup of {}, or \
             name another --data-dir to begin without its records",
            mark.why,
            dir.display()
        );
    }
    let identity = set_aside(settings, &**disk, random, &mark)?;
    match Storage::open(settings, disk) {
        Ok(storage) => Ok((identity, storage)),
        Err(Unopened::Other(error)) => Err(error),
        Err(Unopened::Damage(line)) => Err(anyhow!(line)),
    }
}

fn set_aside(
    settings: &Settings,
    disk: &dyn Disk,
    random: &dyn Random,
    mark: &Mark,
) -> anyhow::Result<Identity> {
    let dir = &settings.data_dir;
    let said = || format!("{}, and the data in {} cannot be set aside", mark.why, dir.display());
    mark.write(disk, dir).with_context(said)?;
    let identity = Identity::mint(&settings.cluster, &settings.member, random);
    mark.carry_out(disk, dir, || identity.write(disk, dir)).with_context(said)?;
    tracing::error!(
        "{}: this member starts blank under a new id, to be filled again by the others; what it had is in {} \
         until then",
        mark.why,
        dir.join(mark.dir_name()).display()
    );
    Ok(identity)
}

/// Whether this member had data that are set aside now: it founds no cluster.
pub(super) fn had_data(settings: &Settings) -> anyhow::Result<bool> {
    is_set_aside(&settings.data_dir).with_context(|| format!("cannot read {}", settings.data_dir.display()))
}

impl Storage {
    fn open(settings: &Settings, disk: &Arc<dyn Disk>) -> Result<Storage, Unopened> {
        let options = LogOptions {
            segment_bytes: settings.segment_bytes,
            cache_bytes: settings.cache_bytes,
            ..LogOptions::default()
        };
        let dir = &settings.data_dir;
        let stores = Stores::open(disk.clone(), dir, settings.segment_bytes, Arc::new(SledCheckpoints));
        let stores = Arc::new(stores.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Unopened::Damage(error.to_string()),
            _ => Unopened::Other(anyhow!(error).context(format!("cannot use {}", dir.display()))),
        })?);
        let (log, writer) = Log::open(disk.clone(), &stores.log_dir(), options)?;
        let (applied, is_restored) = open_state(settings, &**disk, &stores, &log)?;
        if !is_restored {
            log.check_live()?;
        }
        let writer = writer.run_on_thread().context("cannot start the log's writer")?;
        Ok(Storage { stores, log, applied, is_restored, writer })
    }

    pub async fn save(&self) -> anyhow::Result<()> {
        self.applied
            .save_last()
            .await
            .context("the state could not be saved; it will be rebuilt from the log")
    }

    pub fn close(self) {
        self.log.close();
        if self.writer.join().is_err() {
            tracing::error!("the log's writer ended by a panic");
        }
    }
}

impl From<OpenError> for Unopened {
    fn from(error: OpenError) -> Self {
        if error.is_damage() { Unopened::Damage(error.to_string()) } else { Unopened::Other(error.into()) }
    }
}

impl From<anyhow::Error> for Unopened {
    fn from(error: anyhow::Error) -> Self {
        Unopened::Other(error)
    }
}

/// The state, and whether it is that of the export.
fn open_state(
    settings: &Settings,
    disk: &dyn Disk,
    stores: &Stores,
    log: &Log,
) -> Result<(Arc<Applied>, bool), Unopened> {
    let dir = &stores.checkpoint_dir();
    let error = match load_state(stores, log) {
        Ok(applied) => return Ok((applied, false)),
        Err(error) if is_refusal(&error) => {
            let said = format!("the checkpoint in {} cannot be read", dir.display());
            return Err(Unopened::Other(error.context(said)));
        }
        // A checkpoint is written when the log is synced that far, so it is the log that lost something.
        Err(error) if error.is::<LogTooShort>() => {
            return Err(Unopened::Damage(format!(
                "the log beside the checkpoint in {} {error}",
                dir.display()
            )));
        }
        Err(error) => error,
    };
    let why = format!("the checkpoint in {} cannot be used ({error:#})", dir.display());
    if log.purged().is_none() {
        // The whole log is still there, so the state can be made again by applying all of it.
        tracing::warn!("{why}: rebuilding it from the log");
        move_aside(dir)?;
        return Ok((load_state(stores, log)?, false));
    }
    match restore_export(settings, disk, stores, log) {
        Ok(Some(applied)) => {
            tracing::warn!(
                "{why}: it was restored from the state that was exported at entry {}",
                applied.index()
            );
            Ok((applied, true))
        }
        Ok(None) => Err(Unopened::Damage(format!("{why} and the log alone is not enough to rebuild it"))),
        Err(error) if is_refusal(&error) => {
            Err(Unopened::Other(error.context(format!("{why}, nor the exported state"))))
        }
        Err(error) => Err(Unopened::Damage(format!("{why}, nor can the exported state ({error:#})"))),
    }
}

fn load_state(stores: &Stores, log: &Log) -> anyhow::Result<Arc<Applied>> {
    let load =
        || -> anyhow::Result<Arc<Applied>> { Ok(Applied::load(log.clone(), stores.open_checkpoint()?)?) };
    // sled takes some of what it reads for granted, and what is damaged may be anything: of 180 damaged databases
    // 143 failed to open or load, and 4 ended in a panic. That is one reason among others, and no noise.
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

/// Whether the system refused something, which says nothing of what is on the disk.
fn is_refusal(error: &anyhow::Error) -> bool {
    let code = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    // Files that are not there or not what they were: that is damage.
    let is_missing = |code| {
        use rustix::io::Errno;
        [Errno::NOENT, Errno::NOTDIR, Errno::ISDIR, Errno::INVAL].iter().any(|no| no.raw_os_error() == code)
    };
    code.is_some_and(|code| !is_missing(code))
}

/// Puts what was exported in the place of the checkpoint. `None` if there is no export.
fn restore_export(
    settings: &Settings,
    disk: &dyn Disk,
    stores: &Stores,
    log: &Log,
) -> anyhow::Result<Option<Arc<Applied>>> {
    let dir = &stores.checkpoint_dir();
    let fresh = dir.with_extension("restored");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
    }
    let checkpoint = SledCheckpoint::open(&fresh)?;
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
    if read.is_none() {
        return Ok(None);
    }
    checkpoint.write(batch)?;
    drop(checkpoint);
    // A kill between the two leaves no checkpoint, and the same again.
    move_aside(dir)?;
    std::fs::rename(&fresh, dir).with_context(|| format!("cannot rename {}", fresh.display()))?;
    disk.sync_dir(&settings.data_dir)?;
    load_state(stores, log).map(Some)
}

fn move_aside(dir: &Path) -> anyhow::Result<()> {
    let aside = dir.with_extension("damaged");
    if aside.exists() {
        std::fs::remove_dir_all(&aside).with_context(|| format!("cannot remove {}", aside.display()))?;
    }
    if dir.exists() {
        std::fs::rename(dir, &aside).with_context(|| format!("cannot move {} aside", dir.display()))?;
    }
    Ok(())
}
