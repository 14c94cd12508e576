//! How many files this process may have open, and what they are for.
//!
//! Connections and the log take from the same limit, and a log that cannot open its next file cannot go on. So
//! connections are bounded below the limit, those of clients, of members and to other clusters apart, and the rest is
//! for storage and for what this member connects to beside that.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits::{
    MAX_CONNECTIONS, MAX_MIRROR_CONNECTIONS, MAX_PEER_CONNECTIONS, MAX_PEER_HANDSHAKES, MAX_RESERVED_FILES,
    MIN_FILES,
};
use crate::raft::PeerLimits;

/// What is asked for where the system names no highest limit.
const UNBOUNDED: u64 = 65_536;

/// Who may have how many files open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileShares {
    /// Of the whole process.
    pub limit: u64,
    /// Connections of clients.
    pub clients: usize,
    pub peers: PeerLimits,
    /// Connections of mirrors to other clusters that are in use; as many may be idle.
    pub mirrors: usize,
}

impl FileShares {
    /// Raises the limit of this process as far as it may, and shares it out. Errors are sentences for the
    /// operator.
    pub fn raise() -> Result<Self, String> {
        let limit = raise().unwrap_or_else(|error| {
            tracing::warn!("the limit of open files stays as it is: {error}");
            getrlimit(Resource::Nofile).current.unwrap_or(UNBOUNDED)
        });
        Self::of(limit)
    }

    fn of(limit: u64) -> Result<Self, String> {
        if limit < MIN_FILES {
            return Err(format!(
                "this process may open {limit} files, and needs {MIN_FILES} at least, 65536 to serve many: \
                 raise the limit (ulimit -n, LimitNOFILE)"
            ));
        }
        let reserved = (limit / 4).clamp(48, MAX_RESERVED_FILES);
        let most_peers = (MAX_PEER_CONNECTIONS + MAX_PEER_HANDSHAKES) as u64;
        let peers = (limit / 8).clamp(36, most_peers) as usize;
        let handshakes = peers / 3;
        let mirrors = ((limit - 32) / 16).clamp(6, MAX_MIRROR_CONNECTIONS);
        Ok(FileShares {
            limit,
            clients: (limit - reserved - peers as u64 - 2 * mirrors).min(MAX_CONNECTIONS) as usize,
            peers: PeerLimits { connections: peers - handshakes, handshakes },
            mirrors: mirrors as usize,
        })
    }

    /// What the operator should know of it: a sentence.
    pub fn warning(&self, max_streams: usize) -> Option<String> {
        let Self { limit, clients, .. } = self;
        let is_low = max_streams > *clients || max_streams == 0 && (*clients as u64) < MAX_CONNECTIONS;
        is_low.then(|| {
            format!(
                "this process may open {limit} files, which leaves {clients} connections to clients, and \
                 --max-sse-connections allows more streams: raise the limit (ulimit -n, LimitNOFILE) or lower \
                 the setting"
            )
        })
    }
}

/// Raises the soft limit to the hard one, and says what it is then.
fn raise() -> io::Result<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(UNBOUNDED);
    match current {
        None => Ok(UNBOUNDED),
        Some(current) if current >= wanted => Ok(current),
        Some(_) => {
            setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })?;
            Ok(wanted)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_limit_is_connections_leave_files_for_the_log() {
        for limit in (128..3000).chain([65_536, 1 << 20, 1 << 30]) {
            let FileShares { clients, peers, mirrors, .. } = FileShares::of(limit).unwrap();
            let connections = (clients + peers.connections + peers.handshakes + 2 * mirrors) as u64;
            assert!(connections + 44 <= limit, "{limit}: {clients} {peers:?}");
            assert!(clients >= 30 && peers.connections >= 24 && peers.handshakes >= 12, "{limit}");
        }
        let thousand = FileShares::of(1024).unwrap();
        assert_eq!((thousand.clients, thousand.peers.connections, thousand.peers.handshakes), (516, 86, 42));
        let many = FileShares::of(1 << 30).unwrap();
        assert_eq!((many.clients, many.peers), (20_000, PeerLimits::default()));
    }

    #[test]
    fn too_low_a_limit_is_said_at_the_start() {
        assert!(FileShares::of(127).is_err());
        assert!(FileShares::of(1024).unwrap().warning(10_000).unwrap().contains("516 connections"));
        assert_eq!(FileShares::of(1024).unwrap().warning(500), None);
        assert_eq!(FileShares::of(65_536).unwrap().warning(10_000), None);
    }
}
