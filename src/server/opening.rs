//! Opening what lies in the data directory, whatever has become of it.
//!
//! What can be made again here is made again (see `loading`). What cannot, and is certainly damaged, makes this
//! member set its data aside and start blank, to be filled again by the others, if there are enough others for that.
//! If there are not, or for any other reason (`storage/verdict.rs` has the table), it ends with one line and has
//! changed nothing.

use std::sync::Arc;

use anyhow::{Context, anyhow, bail};

use super::loading::{self, Loaded};
use crate::clock::{Random, SystemClock};
use crate::config::Settings;
use crate::raft::{Applied, Identity};
use crate::storage::{
    AtStart, Disk, Log, LogOptions, LogWriter, Mark, OpenError, Room, SledCheckpoints, Stores, Verdict,
    is_set_aside, lay_rest_of_ballast, release_ballast_if_full,
};

/// What lies in the data directory: the log and the state.
pub(super) struct Storage {
    pub stores: Arc<Stores>,
    pub log: Log,
    pub applied: Arc<Applied>,
    /// The state was restored from its export. Entries that topics gave up since may be gone already, until the log
    /// beyond it is applied again.
    pub is_restored: bool,
    writer: std::thread::JoinHandle<()>,
}

/// Why the data cannot be opened, in one line, and what that says of them.
pub struct Unopened {
    pub verdict: Verdict,
    pub line: anyhow::Error,
    /// The checkpoint that could not be used is not in its place any more.
    pub is_changed: bool,
}

impl Unopened {
    pub(super) fn new(verdict: Verdict, line: anyhow::Error) -> Self {
        Unopened { verdict, line, is_changed: false }
    }
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
    release_ballast_if_full(&**disk, dir).with_context(|| format!("cannot use {}", dir.display()))?;
    let identity = Identity::open(&**disk, dir, &settings.cluster, &settings.member, random)
        .map_err(|line| anyhow!(line))?;
    let marked = Mark::read(&**disk, dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mark = match marked {
        Some(mark) => mark,
        None => match Storage::open(settings, disk, &identity) {
            Ok(storage) => return Ok((identity, storage)),
            Err(Unopened { verdict, line, is_changed }) => {
                match verdict.at_start(can_be_filled_again(settings)) {
                    AtStart::End if verdict != Verdict::Damage => {
                        return Err(line.context(said_of(verdict, is_changed)));
                    }
                    AtStart::End | AtStart::SetAside => {}
                }
                Mark { unix_ms: SystemClock::shared().wall_ms(), why: format!("{line:#}") }
            }
        },
    };
    if Verdict::Damage.at_start(can_be_filled_again(settings)) == AtStart::End {
        bail!(
            "{}, and there are not enough other members to fill this one again: restore a backup of {}, or \
             name another --data-dir to begin without its records",
            mark.why,
            dir.display()
        );
    }
    let identity = set_aside(settings, &**disk, random, &mark)?;
    let storage = Storage::open(settings, disk, &identity).map_err(|unopened| unopened.line)?;
    Ok((identity, storage))
}

/// What the operator is to make of it, before the line that says what it is.
fn said_of(verdict: Verdict, is_changed: bool) -> String {
    let (what, advice) = match verdict {
        Verdict::Damage => ("data are damaged", ""),
        Verdict::Newer => ("data of another version", ": start the version that wrote them"),
        Verdict::Refused => ("data cannot be reached", ""),
        Verdict::Busy => ("data cannot be opened for the moment", ""),
        Verdict::Bug => ("data are whole, but this version has a fault in loading them", ""),
    };
    let changed = match is_changed {
        true => "the damaged checkpoint was moved aside before that",
        false => "nothing was changed",
    };
    format!("{what}, and {changed}{advice}")
}

/// Opens the log of the member that `identity` says this is.
pub fn open_log(
    disk: &Arc<dyn Disk>,
    stores: &Stores,
    identity: &Identity,
    options: LogOptions,
) -> Result<(Log, LogWriter), Unopened> {
    let dir = stores.log_dir();
    // Whoever is part of a cluster had a log before it spoke for the first time. A blank one must not vote under the
    // old id, having forgotten what that promised.
    let had_log = identity.cluster_id.is_some();
    if had_log && !stores.has_log().with_context(|| format!("cannot use {}", dir.display()))? {
        let line = anyhow!("the log in {} is missing", dir.display());
        return Err(Unopened::new(Verdict::Damage, line));
    }
    Ok(Log::open(disk.clone(), &dir, options)?)
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
    fn open(settings: &Settings, disk: &Arc<dyn Disk>, identity: &Identity) -> Result<Storage, Unopened> {
        let options = LogOptions {
            segment_bytes: settings.segment_bytes,
            cache_bytes: settings.cache_bytes,
            ..LogOptions::default()
        };
        let dir = &settings.data_dir;
        let stores = Stores::open(disk.clone(), dir, settings.segment_bytes, Arc::new(SledCheckpoints));
        let stores = Arc::new(stores.map_err(|error| match Verdict::of(&error) {
            // Without a word of the system's: it is about what was read.
            verdict @ (Verdict::Damage | Verdict::Newer) if error.raw_os_error().is_none() => {
                Unopened::new(verdict, anyhow!("{error}"))
            }
            _ => anyhow!(error).context(format!("cannot use {}", dir.display())).into(),
        })?);
        let (log, writer) = open_log(disk, &stores, identity, options)?;
        let Loaded { applied, is_restored } = loading::load(settings, &**disk, &stores, &log)?;
        if !is_restored {
            log.check_live()?;
        }
        if let Err(error) = lay_rest_of_ballast(&**disk, dir) {
            tracing::warn!("no space can be kept for the next start: {error}");
        }
        let writer = writer.run_on_thread().context("cannot start the log's writer")?;
        Ok(Storage { stores, log, applied, is_restored, writer })
    }

    /// Saves the state once more, if there is room for that.
    pub async fn save(&self, room: &Room) -> anyhow::Result<()> {
        if !room.has_room_to_save() {
            tracing::warn!("there is no room to save the state: the next start applies the log again");
            return Ok(());
        }
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
        Unopened::new(error.verdict(), error.into())
    }
}

/// What is not known to be about the data is not.
impl From<anyhow::Error> for Unopened {
    fn from(line: anyhow::Error) -> Self {
        Unopened::new(Verdict::Refused, line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_that_nothing_was_changed_only_if_that_is_so() {
        for verdict in [Verdict::Newer, Verdict::Refused, Verdict::Busy, Verdict::Bug] {
            assert!(said_of(verdict, false).contains("nothing was changed"), "{verdict:?}");
            let changed = said_of(verdict, true);
            assert!(changed.contains("moved aside") && !changed.contains("nothing"), "{changed}");
        }
    }
}
