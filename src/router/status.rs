//! Telling how a router does.

use super::Context;
use crate::engine::{LinkError, LinkState, LinkStatus};

/// What there is to say of a router that does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    /// A code of the contract.
    pub code: String,
    /// A sentence.
    pub message: String,
    /// The topic of the source that it is about, and the record.
    pub topic: Option<String>,
    pub seq: Option<u64>,
}

impl Told {
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Told { code: code.into(), message: message.into(), topic: None, seq: None }
    }
}

/// Sets the status of the router of this generation.
pub(super) fn set(context: &Context, generation: u64, state: LinkState, lag: u64, told: Option<Told>) {
    let ts_ms = context.engine.wall_ms();
    let last_error =
        told.map(|Told { code, message, topic, seq }| LinkError { code, message, topic, seq, ts_ms });
    context.engine.links().set(generation, LinkStatus { state, lag, last_error });
}
