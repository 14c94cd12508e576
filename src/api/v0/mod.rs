//! The `/v0` endpoints, one file per resource.

pub mod append;
pub mod append_body;
pub mod append_many;
pub mod append_many_body;
pub mod cluster;
pub mod delete;
pub mod diff;
pub mod diff_body;
pub mod frame;
pub mod metrics;
pub mod mirror;
pub mod origins;
pub mod probe;
pub mod router;
pub mod router_config;
pub mod router_list;
pub mod topic;
pub mod topic_config;
pub mod topic_list;
pub mod watch;
pub mod watch_body;
pub mod ws;
pub mod ws_message;
