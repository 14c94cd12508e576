//! Layer 1: everything that touches files.
//!
//! The room is one log of frames in segment files, and the door through which it reaches a disk. It knows
//! nothing of consensus: `raft/log` turns openraft's calls into the few verbs of [`Log`].
//!
//! | File | Noun |
//! |---|---|
//! | `disk` | The only door to files, and the real disk behind it. |
//! | `sim_disk`, `sim_file` | A disk in memory that forgets what was not synced. |
//! | `entry` | What the log holds: ids, entries, votes. |
//! | `frame` | The bytes of one item of the log. |
//! | `segment` | One file: its name, its header, its birth. |
//! | `table` | Where the entries of a segment lie. |
//! | `runs` | Which entry lies in which segment. |
//! | `view` | What the log is at this moment, in memory. |
//! | `plan` | How a read is answered. |
//! | `reader` | Entries that are no longer in memory. |
//! | `queue` | What waits for the writer; its bounds. |
//! | `log` | The handle that everybody holds. |
//! | `log_writer` | The one writer. |
//! | `kept`, `kept_set` | Files below the purge point that live entries keep. |
//! | `packed`, `packed_file` | The table of a rewritten one; one that is being written. |
//! | `live` | Which entries topics still name. |
//! | `reclaim`, `rewrite` | Freeing space, step by step. |
//! | `postings` | Which records carry a value, by their place in the log. |
//! | `index`, `index_file` | The index of all of them: its parts; one of them on disk. |
//! | `indexer` | Keeping it behind the log, step by step. |
//! | `pin` | What a transfer keeps from being freed. |
//! | `kept_recovery` | Opening kept files. |
//! | `supersede` | Which files another one has taken the place of. |
//! | `incoming` | A log made of what another member sends. |
//! | `stores` | Which log and checkpoint of a data directory are the ones. |
//! | `recovery` | Opening: torn tail or corruption. |
//! | `closing` | What an orderly end leaves, for the next opening. |
//! | `next_segment` | The file that the next rotation needs, made ahead. |
//! | `checkpoint`, `frozen` | The state as of one point, in sled; the same as of an earlier one. |
//! | `export` | The same a second time, in a file of its own, for a cluster of one. |
//! | `aside` | What is done with data that is damaged. |
//! | `room`, `ballast` | Whether the disk has room for more; what is kept for a start without any. |
//! | `read_through` | Finding the file that a disk cannot read. |
//! | `verdict` | What an error says about stored data, and what follows. |
//! | `open_error`, `stats` | Reasons not to open; figures. |
mod aside;
mod ballast;
mod checkpoint;
mod closing;
pub mod disk;
mod entry;
mod export;
pub mod frame;
mod frozen;
#[doc(hidden)]
pub mod fuzzing;
mod incoming;
mod index;
mod index_file;
mod indexer;
mod kept;
mod kept_recovery;
mod kept_set;
mod live;
mod log;
mod log_writer;
mod next_segment;
mod open_error;
mod packed;
mod packed_file;
mod pin;
mod plan;
mod postings;
mod queue;
mod read_through;
mod reader;
mod reclaim;
mod recovery;
mod rewrite;
mod room;
mod runs;
mod segment;
pub mod sim_disk;
mod sim_file;
mod stats;
mod stores;
mod supersede;
mod table;
mod verdict;
mod view;

pub use aside::{Mark, is_set_aside, remove_set_aside};
pub use ballast::{lay_rest_of_ballast, release_ballast_if_full};
pub use checkpoint::{
    Change, Checkpoint, Checkpoints, MemoryCheckpoint, MemoryCheckpoints, SledCheckpoint, SledCheckpoints,
    Visit,
};
pub use disk::{
    Disk, DiskFile, OpenMode, RealDisk, create_dir_durably, read_small_file, write_file_atomically,
};
pub use entry::{EntryId, EntryKind, LogEntry, Vote};
pub use export::{read_export, remove_export, write_export};
pub use frozen::{Freezer, Frozen, Page};
pub use incoming::IncomingLog;
pub use indexer::Indexer;
pub use live::LiveEntries;
pub use log::{Log, LogOptions};
pub use log_writer::LogWriter;
pub use open_error::OpenError;
pub use pin::Pin;
pub use postings::{Found, Posting};
pub use queue::{Done, Op};
pub use reader::is_damage;
pub use reclaim::{Reclaimed, Reclaimer};
pub use room::Room;
pub use segment::{FORMAT_VERSION, SEGMENT_HEADER_BYTES};
pub use sim_disk::SimDisk;
pub use stats::{LogStats, SYNC_BUCKETS_US};
pub use stores::{StagedStore, Stores};
pub use verdict::{AtStart, Verdict, is_out_of_files};
