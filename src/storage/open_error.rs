//! Why a log cannot be opened.
//!
//! Each reason needs something else from the operator, so each is a variant of its own, and each prints as
//! one line that names the file: it may be the only line that is left in a terminal. What is to be done about
//! damage depends on whether there are other members, and is added by who knows that.
use std::io;
use std::path::{Path, PathBuf};

use super::verdict::{Verdict, is_unreadable};

#[derive(Debug)]
pub enum OpenError {
    /// The file system refused.
    Io { file: PathBuf, source: io::Error },
    /// Data that was confirmed is damaged or missing. Nothing was changed on the disk.
    Corrupt { file: PathBuf, offset_bytes: u64, what: String },
    /// A file with entries that are in use is not there.
    Missing { dir: PathBuf, index: u64 },
    /// Written by a newer version of this program.
    NewerFormat { file: PathBuf, version: u32, known: u32 },
    /// Holds a frame of a kind that this version does not know; it is whole.
    NewerFrame { file: PathBuf, offset_bytes: u64, version: u32 },
    /// Carries the name of a segment and is none.
    Foreign { file: PathBuf },
    /// The options contradict each other or their bounds.
    Options { what: &'static str },
}

impl OpenError {
    /// What an error of reading `file` from `offset_bytes` on means, a second try included: a place that the disk
    /// cannot read is as good as damage of that file, as for whoever reads later.
    pub(super) fn of_read(file: &Path, offset_bytes: u64, error: io::Error) -> Self {
        let file = file.to_path_buf();
        match is_unreadable(&error) {
            true => Self::Corrupt { file, offset_bytes, what: format!("the disk cannot read it: {error}") },
            false => Self::Io { file, source: error },
        }
    }

    pub fn verdict(&self) -> Verdict {
        match self {
            // The directory is a member's own, so what has a segment's name was a segment.
            Self::Corrupt { .. } | Self::Missing { .. } | Self::Foreign { .. } => Verdict::Damage,
            Self::NewerFormat { .. } | Self::NewerFrame { .. } => Verdict::Newer,
            Self::Options { .. } => Verdict::Refused,
            // A file that went while the log was opened is no damage of the log's.
            Self::Io { source, .. } => match Verdict::of(source) {
                Verdict::Damage => Verdict::Refused,
                verdict => verdict,
            },
        }
    }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io { file, source } => write!(f, "cannot open the log: {}: {source}", file.display()),
            Self::Corrupt { file, offset_bytes, what } => {
                write!(f, "log segment {} is damaged at byte {offset_bytes} ({what})", file.display())
            }
            Self::Missing { dir, index } => write!(
                f,
                "a log file in {} is missing: no file holds entry {index}, whose records are in use",
                dir.display()
            ),
            Self::NewerFormat { file, version, known } => write!(
                f,
                "{} has format version {version}, and this program knows up to {known}: \
                 start the newer program again",
                file.display()
            ),
            Self::NewerFrame { file, offset_bytes, version } => write!(
                f,
                "log segment {} holds a frame of kind {version} at byte {offset_bytes}, which this program does \
                 not know: start the newer program again",
                file.display()
            ),
            Self::Foreign { file } => {
                write!(f, "{} is not a log segment of this program, though its name says so", file.display())
            }
            Self::Options { what } => write!(f, "log options: {what}"),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
