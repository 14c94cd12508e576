//! antiphon: a replicated event bus.
//!
//! The crate is one library and one binary. Modules are rooms in layers, and a room imports only rooms
//! of lower layers (`tests/layers` fails on an upward import); `ARCHITECTURE.md` draws the map.
#![forbid(unsafe_code)]

pub mod api;
pub mod auth;
pub mod budget;
pub mod cli;
pub mod clock;
pub mod codec;
pub mod config;
pub mod digest;
pub mod engine;
pub mod error;
pub mod filter;
#[doc(hidden)]
pub mod fuzzing;
pub mod limits;
pub mod raft;
pub mod record;
pub mod router;
pub mod server;
pub mod state;
pub mod storage;
pub mod task;
pub mod telemetry;
