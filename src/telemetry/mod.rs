//! Logging and metrics.
//!
//! Metrics are in [`metrics`]; the rest of this room starts logging.
//!
//! Log lines go to stderr and nowhere else: files, rotation and shipping are what the service manager or
//! the container platform does already, and a second place would have to be bounded and cleaned here.

pub mod metrics;

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use tracing::Metadata;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt;

use crate::config::LogFormat;

/// Set once this process ends on purpose.
static IS_STOPPING: AtomicBool = AtomicBool::new(false);

/// From now on parts of this member find that others are gone, as they should be: openraft takes that for an error
/// and is not repeated.
pub fn stopping() {
    IS_STOPPING.store(true, Ordering::Relaxed);
}

fn is_worth_a_line(line: &Metadata<'_>) -> bool {
    !line.target().starts_with("openraft") || !IS_STOPPING.load(Ordering::Relaxed)
}

/// Starts logging for this process: what passes `filter`, in the form of `format`. Once per process.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log filter {filter:?}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr.with_filter(is_worth_a_line));
    let started = match format {
        // Escape codes belong on a terminal, not in a file.
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging was started before: {error}"))
}
