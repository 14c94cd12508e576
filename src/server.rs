//! Builds the services of one member and runs them.

use crate::config::Settings;

/// Runs one member until it is told to stop.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    anyhow::bail!("member {} cannot be served by this build yet", settings.member)
}
