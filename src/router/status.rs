//! Telling how a router does.

use super::Context;
use crate::engine::{LinkError, LinkState, LinkStatus};

/// What is told of a sentence.
const MAX_TOLD_CHARS: usize = 300;

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

    /// The source has another history than the one that was copied.
    pub fn diverged(message: &str) -> Self {
        Told::new("source_diverged", format!("{message}; delete the router and make it anew"))
    }
}

/// Sets the status of the router of this generation.
pub(super) fn set(context: &Context, generation: u64, state: LinkState, lag: u64, told: Option<Told>) {
    let ts_ms = context.engine.wall_ms();
    let last_error =
        told.map(|Told { code, message, topic, seq }| LinkError { code, message, topic, seq, ts_ms });
    let line = match &last_error {
        Some(error) if state >= LinkState::Retrying => describe(error),
        _ => String::new(),
    };
    if context.engine.links().set(generation, LinkStatus { state, lag, last_error }) {
        tell(context, generation, state, &line);
    }
}

/// The router of this generation does well, of which nothing is kept.
pub(super) fn goes_on(context: &Context, generation: u64) {
    if context.engine.links().goes_on(generation) {
        tell(context, generation, LinkState::Running, "");
    }
}

fn tell(context: &Context, generation: u64, state: LinkState, why: &str) {
    // One that is gone meanwhile does not matter any more.
    let Some(router) = context.engine.routers().of_generation(generation) else { return };
    let name = &router.name;
    match state {
        LinkState::Blocked | LinkState::Retrying => {
            tracing::warn!("router {name:?} is {}: {why}", state.name())
        }
        LinkState::Running => tracing::info!("router {name:?} runs again"),
        LinkState::Paused => tracing::info!("router {name:?} is paused"),
    }
}

/// What is wrong, for people. A remote's sentence may be anybody's.
fn describe(error: &LinkError) -> String {
    let topic = error.topic.as_ref().map_or(String::new(), |topic| format!(", topic {topic}"));
    let seq = error.seq.map_or(String::new(), |seq| format!(", seq {seq}"));
    let line = format!("{}{topic}{seq}: {}", error.code, error.message);
    line.chars().take(MAX_TOLD_CHARS).flat_map(char::escape_debug).collect()
}
