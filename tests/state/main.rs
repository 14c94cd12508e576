//! The replicated state: pinned forms, equal members, exact checkpoints.

mod garbage;
mod golden;
mod random;
mod sessions;
