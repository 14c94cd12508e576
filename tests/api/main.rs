//! The wire contract, rule by rule, against a cluster of three real processes.
//!
//! A test is named after its rule and has its id in a comment. Requests are spread over the members:
//! whatever the rule, it must not matter who is asked.

#[allow(dead_code)]
#[path = "../cluster/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../cluster/harness.rs"]
mod harness;

mod retention;
#[allow(dead_code)]
mod shared;
