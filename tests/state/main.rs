//! The replicated state: pinned forms, equal members, exact checkpoints.

mod append_many;
mod bad_records;
mod beginnings;
mod cold;
mod deletes;
mod foreign;
mod garbage;
mod golden;
mod index;
mod keys;
mod member;
mod model;
mod model_route;
mod random;
mod saved_otherwise;
mod sessions;
mod steps;
mod topologies;
mod world;
