//! The replicated state: pinned forms, equal members, exact checkpoints.

mod golden;
mod random;
