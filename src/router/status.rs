//! Telling how a router does.

use super::Context;
use crate::engine::{LinkError, LinkState, LinkStatus};

/// Sets the status of the router of this generation; `told` is a code and a sentence.
pub(super) fn set(
    context: &Context,
    generation: u64,
    state: LinkState,
    lag: u64,
    told: Option<(String, String)>,
) {
    let ts_ms = context.engine.wall_ms();
    let last_error = told.map(|(code, message)| LinkError { code, message, ts_ms });
    context.engine.links().set(generation, LinkStatus { state, lag, last_error });
}
