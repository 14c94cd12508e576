//! The command line.
//!
//! Whatever goes wrong ends as one line on stderr: `antiphon: <what, and what to do>`. clap's own errors
//! come with a usage block that hides the line that matters in a log, so they are put into words here.
//! Exit codes: 0 done, 1 failed while running, 2 the command line or a setting is wrong.

mod append;
mod bench;
mod client;
mod dev;
mod health;
mod local_cluster;
mod mirror;
mod serve;
mod tail;

use std::io::Write;
use std::process::ExitCode;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::telemetry::version::VERSION_AND_COMMIT;

/// Runs what the process's arguments ask for.
pub fn run() -> ExitCode {
    let mut command = command();
    let matches = match command.try_get_matches_from_mut(std::env::args_os()) {
        Ok(matches) => matches,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // Nothing can be done about a reader that went away.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(2, &usage_line(&error)),
    };
    match matches.subcommand() {
        Some(("serve", matches)) => serve::run(matches),
        Some(("dev", matches)) => dev::run(matches),
        Some(("append", matches)) => append::run(matches),
        Some(("tail", matches)) => tail::run(matches),
        Some(("mirror", matches)) => mirror::run(matches),
        Some(("bench", matches)) => bench::run(matches),
        Some(("health", matches)) => health::run(matches),
        _ => {
            let _ = command.print_help();
            ExitCode::SUCCESS
        }
    }
}

/// Makes everything that this process creates from now on readable by its user alone: data directories hold the
/// records, and tokens for other clusters.
fn keep_files_private() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

fn command() -> Command {
    Command::new("antiphon")
        .about("A replicated event bus")
        .version(VERSION_AND_COMMIT)
        .subcommand(serve::command())
        .subcommand(dev::command())
        .subcommand(append::command())
        .subcommand(tail::command())
        .subcommand(mirror::command())
        .subcommand(bench::command())
        .subcommand(health::command())
}

/// Says `message` in one line on stderr and gives the exit code.
fn fail(code: u8, message: &str) -> ExitCode {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    // Not `eprintln!`, which panics where nobody reads stderr; the exit code still says it.
    let _ = std::io::stderr().write_all(format!("antiphon: {line}\n").as_bytes());
    ExitCode::from(code)
}

/// One line for an error of the command line. Values are not repeated: one may be a secret.
fn usage_line(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    // clap shows `--port <PORT>`; the name is enough.
    let argument = context(ContextKind::InvalidArg).unwrap_or_default();
    let argument = argument.split([' ', '=']).next().unwrap_or_default();
    let hint = match context(ContextKind::SuggestedArg).or_else(|| context(ContextKind::SuggestedSubcommand))
    {
        Some(suggestion) => format!("; did you mean {suggestion}?"),
        None => "; `antiphon --help` and `antiphon <command> --help` list what there is".to_owned(),
    };
    match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with('-') => format!("unknown flag {argument}{hint}"),
        ErrorKind::UnknownArgument => {
            format!("a word too many on the command line: a value belongs right behind its flag{hint}")
        }
        ErrorKind::InvalidSubcommand => {
            let given = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            format!("unknown command {given:?}{hint}")
        }
        // A flag without its value comes as a value that is empty.
        ErrorKind::InvalidValue | ErrorKind::NoEquals | ErrorKind::WrongNumberOfValues => {
            format!("{argument} needs a value{hint}")
        }
        ErrorKind::MissingRequiredArgument => format!("{argument} is missing{hint}"),
        ErrorKind::ArgumentConflict => format!("{argument} is given more than once; give it once"),
        ErrorKind::InvalidUtf8 => {
            "a flag or a variable ANTIPHON_* is not valid UTF-8; write it in UTF-8".to_owned()
        }
        _ => error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arguments: &[&str]) -> String {
        let all = std::iter::once(&"antiphon").chain(arguments);
        let error = command().try_get_matches_from(all).expect_err("must be refused");
        let line = usage_line(&error);
        assert!(!line.contains('\n'), "{line}");
        line
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn mistakes_are_named_in_one_line() {
        for (arguments, part) in [
            (&["serve", "--prot", "1"][..], "did you mean --port?"),
            (&["serve", "--zzz"], "unknown flag --zzz; `antiphon --help`"),
            (&["serve", "--port"], "--port needs a value"),
            (&["serve", "--port", "1", "--port", "2"], "--port is given more than once"),
            (&["serve", "here"], "a word too many"),
            (&["append"], "<TOPIC> is missing"),
            (&["tail", "--json"], "<TOPIC> is missing"),
            (&["sevre"], "unknown command \"sevre\"; did you mean serve?"),
        ] {
            let line = line(arguments);
            assert!(line.contains(part), "{arguments:?} gives: {line}");
        }
    }

    #[test]
    fn a_stray_word_is_not_repeated_because_it_may_be_a_secret() {
        assert!(!line(&["serve", "hunter2hunter2"]).contains("hunter2"));
        assert!(!line(&["serve", "--api-keyz=hunter2"]).contains("hunter2"));
    }
}
