//! The wire contract, rule by rule, against a cluster of three real processes.
//!
//! A test is named after its rule and has its id in a comment; `COVERAGE.md` says which test has which
//! rule, and `coverage` checks that. Requests are spread over the members: whatever the rule, it must not
//! matter who is asked.

#[allow(dead_code)]
#[path = "../cluster/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../cluster/harness.rs"]
mod harness;
#[allow(dead_code)]
#[path = "../cluster/link.rs"]
mod link;

mod append;
mod auth;
mod config;
mod conventions;
mod coverage;
mod deletes;
mod diff;
mod errors;
mod events;
mod filters;
mod foreign;
mod idempotency;
mod limits;
mod memory;
mod metrics;
mod mirroring;
mod openapi;
mod ops;
mod priority;
mod records;
mod retention;
mod routers;
mod routing;
mod shared;
mod topics;
mod watch;
mod write;
mod ws;
