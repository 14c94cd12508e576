//! Who this member is, for the life of its data directory.
//!
//! A Raft id is minted once, inside the data directory, and never given to another one: a member that
//! lost its disk comes back under a new id, because the others would count what the old one had promised.
//! The file also names the cluster and the member, so that a directory cannot be used for another one by
//! mistake. It is text, one `key value` per line, for people to read.

use std::fmt;
use std::io;
use std::path::Path;

use crate::clock::Random;
use crate::storage::{Disk, create_dir_durably, read_small_file, write_file_atomically};

/// Newest layout of a data directory that this version reads and writes.
pub const FORMAT: u32 = 1;
const FILE: &str = "identity";
const FILE_BYTES_MAX: u64 = 64 << 10;

/// 128 random bits that tell clusters apart, minted when a cluster is founded.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The names of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub cluster: String,
    pub member: String,
    pub node_id: u64,
    /// `None` until the member has joined or founded a cluster.
    pub cluster_id: Option<ClusterId>,
}

impl Identity {
    /// Reads the identity of `dir`, or mints one if the directory is new. Errors are whole sentences for
    /// the operator.
    pub fn open(
        disk: &dyn Disk,
        dir: &Path,
        cluster: &str,
        member: &str,
        random: &dyn Random,
    ) -> Result<Identity, String> {
        let said = |error: io::Error| format!("cannot use the data directory {}: {error}", dir.display());
        create_dir_durably(disk, dir).map_err(said)?;
        if disk.exists(&dir.join(FILE)).map_err(said)? {
            return Identity::read(disk, dir)?.expect_names(dir, cluster, member);
        }
        let names = disk.list(dir).map_err(said)?;
        // A crash before the very first identity was written leaves no more than these.
        let is_left_over = |name: &str| name == "lock" || name.starts_with(FILE);
        // A directory that is the root of a file system of its own holds what that has put there.
        let is_left_over = |name: &str| is_left_over(name) || name == "lost+found" || name.starts_with('.');
        if let Some(found) = names.iter().find(|name| !is_left_over(name)) {
            return Err(format!(
                "the data directory {} holds {found:?} but no identity file: if it is a member's, restore \
                 that file or move the directory aside; if not, name an empty one",
                dir.display()
            ));
        }
        let identity = Identity::mint(cluster, member, random);
        identity.write(disk, dir).map_err(said)?;
        Ok(identity)
    }

    /// A new one, of no cluster yet.
    pub fn mint(cluster: &str, member: &str, random: &dyn Random) -> Identity {
        Identity {
            cluster: cluster.to_owned(),
            member: member.to_owned(),
            // 0 stands for "unknown" between members.
            node_id: random.next_u64().max(1),
            cluster_id: None,
        }
    }

    fn expect_names(self, dir: &Path, cluster: &str, member: &str) -> Result<Identity, String> {
        let dir = dir.display();
        if self.cluster != cluster {
            return Err(format!(
                "the data directory {dir} belongs to cluster {:?}, not {cluster:?}: check --cluster and \
                 --data-dir",
                self.cluster
            ));
        }
        if self.member != member {
            return Err(format!(
                "the data directory {dir} belongs to member {:?}, not {member:?}: check --member and \
                 --data-dir",
                self.member
            ));
        }
        Ok(self)
    }

    fn read(disk: &dyn Disk, dir: &Path) -> Result<Identity, String> {
        let path = dir.join(FILE);
        let damaged = |what: &str| {
            format!(
                "the identity file {} {what}: restore it, or move the data directory aside and let the \
                 member start blank",
                path.display()
            )
        };
        let text = read_text(disk, &path).map_err(|error| damaged(&format!("cannot be read ({error})")))?;
        let field = |key: &str| -> Result<&str, String> {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
                .ok_or_else(|| damaged(&format!("has no line {key:?}")))
        };
        let format: u32 = field("format")?.parse().map_err(|_| damaged("has a malformed format"))?;
        if format > FORMAT {
            return Err(format!(
                "the data directory {} has format {format}; this version reads formats up to {FORMAT}: \
                 start the version that wrote it, or a newer one",
                dir.display()
            ));
        }
        let checksum = format!("{:08x}", crc32c::crc32c(checked_part(&text).as_bytes()));
        if field("checksum")? != checksum {
            return Err(damaged("is damaged (its checksum does not match)"));
        }
        Ok(Identity {
            cluster: field("cluster")?.to_owned(),
            member: field("member")?.to_owned(),
            node_id: field("node_id")?.parse().map_err(|_| damaged("has a malformed node_id"))?,
            cluster_id: match field("cluster_id")? {
                "none" => None,
                hex => Some(ClusterId(
                    u128::from_str_radix(hex, 16).map_err(|_| damaged("has a malformed cluster_id"))?,
                )),
            },
        })
    }

    /// Writes the identity; durable when this returns.
    pub fn write(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let cluster_id = self.cluster_id.map_or("none".to_owned(), |id| id.to_string());
        let mut text = format!(
            "format {FORMAT}\ncluster {}\nmember {}\nnode_id {}\ncluster_id {cluster_id}\n",
            self.cluster, self.member, self.node_id
        );
        let checksum = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("checksum {checksum:08x}\n"));
        write_file_atomically(disk, dir, FILE, text.as_bytes())
    }
}

fn checked_part(text: &str) -> &str {
    text.split_inclusive('\n').next_back().map_or(text, |last| &text[..text.len() - last.len()])
}

fn read_text(disk: &dyn Disk, path: &Path) -> io::Result<String> {
    let bytes = read_small_file(disk, path, FILE_BYTES_MAX)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not text"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemRandom;
    use crate::storage::RealDisk;

    #[test]
    fn a_file_system_s_own_directories_are_no_data() {
        let dir = tempfile::tempdir().expect("temp dir");
        let open = || Identity::open(&RealDisk, dir.path(), "c", "m", &SystemRandom);
        for own in ["lost+found", ".snapshot"] {
            std::fs::create_dir(dir.path().join(own)).expect("create");
        }
        std::fs::create_dir(dir.path().join("log")).expect("create");
        assert!(open().expect_err("whose log is it?").contains("\"log\""));
        std::fs::remove_dir(dir.path().join("log")).expect("remove");
        let minted = open().expect("it is as good as empty");
        assert_eq!(open(), Ok(minted));
    }
}
