//! What `antiphon tail` is told.

use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::value::RawValue;

use crate::cli::client;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The first seq to show; 0 is as 1.
    Seq(u64),
    /// Behind all that is there.
    End,
    /// The first record that is not older, Unix milliseconds.
    Time(u64),
}

pub struct Options {
    pub topic: String,
    pub start: Start,
    pub filter: Option<Box<RawValue>>,
    /// Records with one of these labels are left out.
    pub nodes: Vec<String>,
    pub is_json: bool,
    /// End after this many records.
    pub lines: Option<u64>,
    pub follow: bool,
    /// How long to look for a member that answers, where that has an end.
    pub timeout: Duration,
}

pub fn command() -> Command {
    Command::new("tail")
        .about("Print the records of a topic as they come")
        .after_help(
            "A line holds seq, time (UTC), node, tag, key and channel where there are any, and data. Records that \
             were lost before they could be read are told on stderr, with --json as a line \
             {\"tombstone\":{...}} among the records. If a member goes away the next one is asked, and nothing is \
             lost or repeated. Ctrl-C ends it with exit code 0.\n\nExamples:\n  \
             antiphon tail orders --from start --url http://m1:4000,http://m2:4000,http://m3:4000\n  \
             antiphon tail orders --from 9121 -n 10 --json\n  \
             antiphon tail orders --from start --no-follow --filter '[\"data.sum\",\"Gt\",100]'",
        )
        .args(client::arguments())
        .arg(
            Arg::new("from")
                .long("from")
                .value_name("SEQ|start|end")
                .help("First seq to print, or everything there is, or only what comes [default: end]"),
        )
        .arg(
            Arg::new("from-ts")
                .long("from-ts")
                .value_name("MS")
                .value_parser(value_parser!(u64))
                .help("Instead of --from: the first record that is not older, Unix milliseconds"),
        )
        .arg(
            Arg::new("filter")
                .long("filter")
                .value_name("JSON")
                .help("Only records that match: [\"tag\",\"Eq\",\"new\"], [\"data.sum\",\"Gt\",100], [\"And\",[...]], ..."),
        )
        .arg(
            Arg::new("node")
                .long("node")
                .value_name("LABEL")
                .action(ArgAction::Append)
                .value_delimiter(',')
                .help("Leave out records with this label of origin; several by commas or by repeating"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print each record as one line of JSON, as the API gives it, with tags and meta"),
        )
        .arg(
            Arg::new("lines")
                .short('n')
                .long("lines")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..))
                .help("End after N records"),
        )
        .arg(
            Arg::new("no-follow")
                .long("no-follow")
                .action(ArgAction::SetTrue)
                .help("End at what was the end of the topic when reading began"),
        )
        .arg(
            Arg::new("timeout-ms")
                .long("timeout-ms")
                .value_name("MS")
                .value_parser(value_parser!(u64).range(1000..=600_000))
                .default_value("30000")
                .help(
                    "Longest time to look for a member that answers, at the start and with --no-follow; 3000 \
                     where none even takes a connection. Once it follows it looks without end",
                ),
        )
}

impl Options {
    /// An error is one line.
    pub fn new(matches: &ArgMatches) -> Result<Self, String> {
        let from = matches.get_one::<String>("from").map(|text| parse_from(text)).transpose()?;
        let start = match (from, matches.get_one::<u64>("from-ts")) {
            (Some(_), Some(_)) => return Err("--from and --from-ts exclude each other".to_owned()),
            (from, None) => from.unwrap_or(Start::End),
            (None, Some(ts_ms)) => Start::Time(*ts_ms),
        };
        let filter = matches
            .get_one::<String>("filter")
            .map(|text| serde_json::from_str(text).map_err(|error| format!("--filter is no JSON ({error})")));
        let nodes = matches.get_many::<String>("node").into_iter().flatten();
        // It has a default.
        let timeout_ms = matches.get_one::<u64>("timeout-ms").copied().unwrap_or(30_000);
        Ok(Options {
            topic: client::topic(matches)?,
            start,
            filter: filter.transpose()?,
            nodes: nodes.filter(|label| !label.is_empty()).cloned().collect(),
            is_json: matches.get_flag("json"),
            lines: matches.get_one::<u64>("lines").copied(),
            follow: !matches.get_flag("no-follow"),
            timeout: Duration::from_millis(timeout_ms),
        })
    }
}

fn parse_from(text: &str) -> Result<Start, String> {
    match text {
        "start" => Ok(Start::Seq(0)),
        "end" => Ok(Start::End),
        text => match text.parse() {
            Ok(seq) => Ok(Start::Seq(seq)),
            Err(_) => Err(format!("--from {text:?}: allowed are a seq, start and end")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Result<Options, String> {
        let all = ["tail", "orders"].iter().chain(arguments);
        Options::new(&command().get_matches_from(all))
    }

    #[test]
    fn it_starts_at_the_end_unless_told() {
        let start = |arguments: &[&str]| options(arguments).map(|options| options.start);
        assert_eq!(start(&[]), Ok(Start::End));
        assert_eq!(start(&["--from", "start"]), Ok(Start::Seq(0)));
        assert_eq!(start(&["--from", "12"]), Ok(Start::Seq(12)));
        assert_eq!(start(&["--from-ts", "12"]), Ok(Start::Time(12)));
        for wrong in [&["--from", "middle"][..], &["--from", "end", "--from-ts", "1"], &["--filter", "x*"]] {
            assert!(start(wrong).is_err(), "{wrong:?}");
        }
    }
}
