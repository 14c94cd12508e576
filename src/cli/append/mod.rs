//! `antiphon append`: records from the command line or from stdin.
//!
//! Each request has an idempotency key of its own. So a request whose outcome is not known, as its member died or
//! its leader lost its office, is sent again to the next member and takes effect once, as long as the topic
//! remembers keys (`idempotency_window_ms`, two minutes unless changed: above the time for which it is tried).
//! Requests go one after the other: the order of the lines is the order of the seqs.

mod input;
mod request;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{self, Call, GaveUp, Members, Patience};
use super::fail;
use crate::limits::MAX_RECORDS_PER_WRITE;
use input::{Lines, record};
use request::Request;

/// Above the longest time that a member looks for a leader or waits for an outcome.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(15);

pub(super) fn command() -> Command {
    Command::new("append")
        .about("Append records to a topic and print their seqs")
        .after_help(
            "All arguments go in one request: all are appended, or none. Lines go in requests of what is there, in \
             their order; empty ones are passed over. A request is sent again, to the next member, until one \
             answers, and takes effect once (as far as the topic's idempotency_window_ms reaches).\n\nExamples:\n  \
             antiphon append orders '{\"id\":1,\"sum\":\"19.90\"}' --tag new\n  \
             antiphon append notes 'plain text becomes a JSON string'\n  \
             my-program | antiphon append events --url http://m1:4000,http://m2:4000,http://m3:4000",
        )
        .args(client::arguments())
        .arg(
            Arg::new("records")
                .value_name("JSON")
                .num_args(0..)
                .allow_negative_numbers(true)
                .help("One record each; what is no JSON becomes a JSON string [default: the lines of stdin]"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Refuse what is no JSON, and print each request's answer as one line of JSON"),
        )
        .arg(Arg::new("tag").long("tag").value_name("TAG").help("Tag of all records"))
        .arg(Arg::new("node").long("node").value_name("LABEL").help("Label of origin of all records"))
        .arg(
            Arg::new("batch")
                .long("batch")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..=MAX_RECORDS_PER_WRITE as u64))
                .default_value("100")
                .help("Most lines of stdin in one request"),
        )
        .arg(
            Arg::new("create")
                .long("create")
                .action(ArgAction::SetTrue)
                .help("Make the topic if it is not there [default: as --create]"),
        )
        .arg(
            Arg::new("no-create")
                .long("no-create")
                .action(ArgAction::SetTrue)
                .help("Fail if the topic is not there"),
        )
        .arg(
            Arg::new("timeout-ms")
                .long("timeout-ms")
                .value_name("MS")
                .value_parser(value_parser!(u64).range(1000..=100_000))
                .default_value("30000")
                .help("Longest time to try one request; 3000 where no member even takes a connection"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    let append = match Append::new(matches) {
        Ok(append) => append,
        Err(line) => return fail(2, &line),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(append.run()),
        Err(error) => Err(format!("start the runtime: {error}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => fail(1, &line),
    }
}

struct Append {
    members: Members,
    topic: String,
    path: String,
    patience: Patience,
    /// Without records.
    request: Request,
    /// Empty if they come from stdin.
    arguments: Vec<Box<RawValue>>,
    batch: usize,
    is_json: bool,
    appended: u64,
}

/// What is looked at in an answer.
#[derive(Deserialize)]
struct Answer {
    seqs: Vec<u64>,
}

impl Append {
    fn new(matches: &ArgMatches) -> Result<Self, String> {
        let topic = client::topic(matches)?;
        let is_json = matches.get_flag("json");
        let create = match (matches.get_flag("create"), matches.get_flag("no-create")) {
            (true, true) => return Err("--create and --no-create exclude each other".to_owned()),
            (true, false) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        };
        let texts = matches.get_many::<String>("records").into_iter().flatten();
        let arguments = (1..)
            .zip(texts)
            .map(|(number, text)| record(text, is_json).map_err(|why| format!("record {number}: {why}")))
            .collect::<Result<Vec<_>, _>>()?;
        if arguments.len() > MAX_RECORDS_PER_WRITE {
            return Err(format!(
                "at most {MAX_RECORDS_PER_WRITE} records as arguments; stdin takes any number"
            ));
        }
        let text = |name| matches.get_one::<String>(name).cloned();
        let number = |name| matches.get_one::<u64>(name).copied().unwrap_or(1);
        Ok(Append {
            members: Members::new(matches)?,
            path: format!("/v0/topics/{topic}"),
            topic,
            patience: Patience::Bounded(Duration::from_millis(number("timeout-ms"))),
            request: Request::new(text("tag"), text("node"), create),
            arguments,
            batch: number("batch") as usize,
            is_json,
            appended: 0,
        })
    }

    async fn run(mut self) -> Result<(), String> {
        if !self.arguments.is_empty() {
            let records = std::mem::take(&mut self.arguments);
            return self.append(records).await;
        }
        let mut lines =
            Lines::of_stdin(self.is_json, self.batch).map_err(|error| format!("read stdin: {error}"))?;
        loop {
            let (records, trouble) = lines.batch(self.batch).await;
            let is_end = records.is_empty();
            if !is_end {
                self.append(records).await?;
            }
            match trouble {
                Some(why) => return Err(format!("{why} ({} appended before)", records_word(self.appended))),
                None if is_end => return Ok(()),
                None => {}
            }
        }
    }

    /// Appends `records` with one request and prints what came of it.
    async fn append(&mut self, records: Vec<Box<RawValue>>) -> Result<(), String> {
        let count = records.len() as u64;
        let call = Call {
            method: reqwest::Method::POST,
            path: &self.path,
            body: self.request.body(records),
            deadline: ATTEMPT_DEADLINE,
        };
        let answer = match self.members.ask(&call, self.patience).await {
            Ok(answer) => answer,
            Err(gave_up) => return Err(self.failure(count, &gave_up)),
        };
        let Ok(Answer { seqs }) = serde_json::from_slice(&answer) else {
            return Err(format!("append to {}: what answered is no member of antiphon", self.topic));
        };
        self.appended += count;
        let mut text = String::new();
        if self.is_json {
            text = String::from_utf8_lossy(&answer).trim_end().to_owned() + "\n";
        } else {
            seqs.iter().for_each(|seq| text += &format!("{seq}\n"));
        }
        // Whoever stops reading the seqs still wants the records appended.
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(())
    }

    fn failure(&self, count: u64, gave_up: &GaveUp) -> String {
        let mut line = format!("append to {}: {}", self.topic, gave_up.line);
        if gave_up.is_unknown {
            line += &format!("; it is not known whether {} appended", records_were(count));
        }
        if self.appended > 0 {
            line += &format!(" ({} appended before)", records_word(self.appended));
        }
        line
    }
}

fn records_word(count: u64) -> String {
    format!("{count} record{}", if count == 1 { "" } else { "s" })
}

fn records_were(count: u64) -> String {
    if count == 1 { "the record was".to_owned() } else { format!("the {count} records were") }
}
