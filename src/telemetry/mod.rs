//! Logging and metrics.
//!
//! Metrics are in [`metrics`]; the rest of this room starts logging.
//!
//! Log lines go to stderr and nowhere else: files, rotation and shipping are what the service manager or
//! the container platform does already, and a second place would have to be bounded and cleaned here.

pub mod metrics;

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts logging for this process: what passes `filter`, in the form of `format`. Once per process.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log filter {filter:?}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        // Escape codes belong on a terminal, not in a file.
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging was started before: {error}"))
}
