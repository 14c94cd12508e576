//! Layer 3: consensus.
//!
//! openraft and everything that knows it: the types it is used with, the adapters to the log and to the
//! state, the protocol between members, and the way a cluster comes to be. Other rooms see a [`Node`]: it
//! puts commands into the log, says who leads, and confirms reads.

mod acceptor;
mod admission;
mod bootstrap;
mod checkpoint_clock;
mod cluster_time;
mod connection;
mod digest_marks;
mod export;
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod identity;
mod install;
mod log;
mod machine;
mod member_list;
mod membership;
mod network;
mod node;
mod peer;
mod peer_service;
mod peers;
mod retention;
mod rpc;
mod runtime;
mod state_image;
#[cfg(test)]
mod testing;
mod transfer;
mod transfer_rpc;
mod transport;
mod types;
mod upkeep;

pub use acceptor::{PeerLimits, accept_peers};
pub use bootstrap::{IdentityKeeper, ListedMember, found_alone, found_listed};
pub use checkpoint_clock::{CheckpointClock, watch_checkpoint};
pub use cluster_time::ClusterTime;
pub use connection::CallError;
pub use export::{Export, export_state};
pub use identity::{FORMAT as DATA_FORMAT, Identity};
pub use install::{InstallProgress, Installer};
pub use log::{LogReader, LogStore};
pub use machine::{Applied, ApplyObserver, Machine};
pub use member_list::compare_list;
pub use membership::{keep_membership, seek_admission};
pub use node::{HeldBack, Leader, Leadership, MemberStatus, Node, Parts, Timers};
pub use peer::Peer;
pub use peer_service::PeerHandler;
pub use peers::{Me, Peers};
pub use retention::{Hold, Holder, LogTail};
pub use rpc::{Proposal, ReadPoint, Status};
pub use runtime::{Runtime, seed_thread};
pub use transport::{PeerListener, PeerStream, PeerTransport, TcpTransport};
pub use types::{Member, NodeId, Types};
pub use upkeep::{clear_garbage, free_space, index_log, purge_log};
