//! Promises of a cluster, checked against real processes that are really killed.
//!
//! A simulation finds more, and finds it again from its seed; but it trusts the same code to be put
//! together in the same way as the binary does it. Here nothing is trusted: processes, sockets, files,
//! SIGKILL, and only the HTTP API to look through.

mod agreement;
mod append_tail;
mod bench;
mod browser;
mod client;
mod client_port;
mod cold_read;
mod damage;
mod dev;
mod freeing;
mod harness;
mod health;
mod kill_loop;
mod large_entries;
mod link;
mod log_lines;
mod lost_disk;
mod memory;
mod minority;
mod mirrors;
mod moved;
mod network;
mod oracle;
mod peer_port;
mod recipes;
mod restart;
mod retention;
mod settings;
mod slow_link;
mod snapshot;
mod start;
mod stop;
mod storage_full;
mod streams;
mod unopened;
mod watch_client;
mod watch_oracle;
mod watch_soak;
mod writers;
