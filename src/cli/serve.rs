//! `antiphon serve`: one member.
//!
//! The flags are built from the table of settings, so this file knows none of them by name.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use rustix::process::{Signal, getpid, kill_process};
use tokio::runtime::{Builder, Runtime};

use super::fail;
use crate::auth::Keys;
use crate::config::{
    Given, Kind, SETTINGS, Settings, Source, flag, settings_in_sections, unknown_variables, variable,
};
use crate::server::Next;
use crate::{server, telemetry};

/// How long a member may take to stop in order once its parent is gone.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Name of the hidden flag by which `dev` ties its members to itself.
pub(super) const EXIT_WITH_STDIN: &str = "exit-with-stdin";

pub(super) fn command() -> Command {
    let flags = settings_in_sections().map(|(setting, section)| {
        let help = match (setting.kind, setting.default) {
            (Kind::Value, Some(default)) => format!("{} [default: {default}]", setting.help),
            _ => setting.help.to_owned(),
        };
        let arg = Arg::new(setting.name)
            .long(flag(setting.name).trim_start_matches('-').to_owned())
            .env(variable(setting.name))
            .hide_env_values(true)
            .value_name(setting.unit())
            .help_heading(section)
            .help(help);
        match setting.kind {
            Kind::Switch => arg.num_args(0..=1).default_missing_value("1"),
            // `--request-timeout-ms -1` is a bad value, not an unknown flag.
            Kind::Value => arg.allow_negative_numbers(true),
            // Keys and secrets may start with a hyphen.
            Kind::Secret => arg.allow_hyphen_values(true),
        }
    });
    Command::new("serve")
        .about("Run one member of a cluster")
        .after_help("A flag wins over its variable. Secrets given as flags are visible in the process list.")
        .args(flags)
        .arg(Arg::new(EXIT_WITH_STDIN).long(EXIT_WITH_STDIN).action(ArgAction::SetTrue).hide(true))
}

pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    let given = given(matches);
    // Known before the settings are known to be good: what is wrong with them goes into the log too.
    let is_json = given.is_log_json();
    let fail = |code, message: &str| match is_json {
        true => telemetry::fatal(code, message),
        false => fail(code, message),
    };
    let settings = match Settings::resolve(&given) {
        Ok(settings) => settings,
        Err(bad) => return fail(2, &bad.to_string()),
    };
    let keys = settings.api_keys.as_ref().map(|keys| Keys::parse(keys.expose())).transpose();
    if let Err(bad) = keys {
        return fail(2, &bad.to_string());
    }
    match serve(settings, &given, matches.get_flag(EXIT_WITH_STDIN)) {
        Ok(Next::Stop) => ExitCode::SUCCESS,
        Ok(Next::StartAgain) => fail(1, &start_again()),
        Err(error) => fail(1, &format!("{error:#}")),
    }
}

/// Turns this process into a new one of the same program, with the same arguments and variables: whoever
/// watches it sees one process, and nothing of the old one is left behind. Returns only if that fails, with
/// what to do.
fn start_again() -> String {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "antiphon".into());
    let failed = |error| format!("start this member again: it could not do so by itself ({error})");
    match std::env::current_exe() {
        Ok(program) => failed(std::process::Command::new(program).arg0(name).args(arguments).exec()),
        Err(error) => failed(error),
    }
}

fn given(matches: &ArgMatches) -> Given {
    let mut given = Given::default();
    for setting in SETTINGS {
        if let Some(text) = matches.get_one::<String>(setting.name) {
            let source = match matches.value_source(setting.name) {
                Some(ValueSource::EnvVariable) => Source::Variable,
                _ => Source::Flag,
            };
            given.set(setting.name, text.clone(), source);
        }
    }
    given
}

fn serve(settings: Settings, given: &Given, exit_with_stdin: bool) -> anyhow::Result<Next> {
    super::keep_files_private();
    telemetry::start(&settings.log, settings.log_format)?;
    tracing::info!("settings: {}", given.describe());
    let unknown = unknown_variables(std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()));
    if !unknown.is_empty() {
        tracing::warn!("ignored, as no setting has such a variable: {}", unknown.join(", "));
    }
    settings.warnings().iter().for_each(|line| tracing::warn!("{line}"));
    if exit_with_stdin {
        std::thread::Builder::new()
            .name("parent".to_owned())
            .spawn(stop_with_stdin)
            .context("start a thread")?;
    }
    let runtime = runtime(settings.runtime_threads).context("start the runtime")?;
    let result = runtime.block_on(server::run(settings));
    // A blocking call that hangs (a dead disk) must not keep a member alive that is done.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// With two cores or fewer one thread does everything: a second one takes the core that the log's writer
/// needs, and each hop between threads costs more than it spreads (40k against 27k appends/s).
fn runtime(threads: usize) -> std::io::Result<Runtime> {
    let threads = match threads {
        0 => std::thread::available_parallelism()
            .map_or(1, |cores| if cores.get() <= 2 { 1 } else { cores.get() }),
        threads => threads,
    };
    match threads {
        1 => Builder::new_current_thread().enable_all().build(),
        threads => Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    }
}

/// Stops this process once stdin ends, which is when the parent that holds the other end is gone,
/// however it went.
fn stop_with_stdin() {
    let mut stdin = std::io::stdin();
    let mut bytes = [0u8; 256];
    loop {
        match stdin.read(&mut bytes) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // The way that every other stop takes; a signal to oneself cannot fail in a way that helps to know.
    let _ = kill_process(getpid(), Signal::TERM);
    std::thread::sleep(STOP_DEADLINE);
    std::process::exit(1);
}
