//! Logging and metrics.
//!
//! Metrics are in [`metrics`], what the kernel knows of this process in [`process`], which build this is in [`version`].
//! The rest of this room starts logging.
//!
//! Log lines go to stderr and nowhere else: files, rotation and shipping are what the service manager or
//! the container platform does already, and a second place would have to be bounded and cleaned here.

pub mod metrics;
pub mod process;
pub mod seldom;
pub mod version;

use std::io::{IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use tracing::Metadata;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
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
    started.map_err(|error| anyhow::anyhow!("logging was started before: {error}"))?;
    if format == LogFormat::Json {
        // As lines of text they would break what reads the log.
        std::panic::set_hook(Box::new(|panic| write_json_line(&panic_line(panic))));
    }
    Ok(())
}

/// Says in a log of JSON why this process ends, whatever passes the filter, and gives its exit code.
pub fn fatal(code: u8, message: &str) -> ExitCode {
    write_json_line(message);
    ExitCode::from(code)
}

fn panic_line(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let what =
        text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("with no message");
    let place = panic.location().map_or(String::new(), |place| place.to_string());
    format!("thread {:?} panicked at {place}: {what}", thread.name().unwrap_or("without a name"))
}

/// Not by way of the log: there a filter decides, and here it must come out.
fn write_json_line(message: &str) {
    // Nothing can be done about a reader that went away.
    let _ = std::io::stderr().write_all(json_line(message).as_bytes());
}

fn json_line(message: &str) -> String {
    let mut timestamp = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = serde_json::json!({ "timestamp": timestamp, "level": "ERROR", "message": message, "target": "antiphon" });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_one_line_of_json() {
        let line = json_line("cannot listen:\n\"address in use\"");
        assert_eq!(line.matches('\n').count(), 1);
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["message"], "cannot listen: \"address in use\"");
        assert_eq!(line["level"], "ERROR");
        assert!(
            line["timestamp"].as_str().is_some_and(|time| time.len() > 20 && time.ends_with('Z')),
            "{line}"
        );
    }
}
