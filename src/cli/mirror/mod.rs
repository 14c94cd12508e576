//! `antiphon mirror check`: whether two clusters hold the same of a topic that is mirrored between them.
//!
//! Each is asked once which records it has taken from where, as a count and a digest per origin: so the answer is
//! exact, and costs the same for ten records and for ten million.

mod compare;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Arg, ArgMatches, Command, value_parser};
use reqwest::Method;

use super::client::{Call, Members, Patience, topic};
use super::fail;
use compare::{Comparison, Origins, compare};

/// Above the longest time that a member looks for a leader.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
/// Exit code where nothing is known of one of the clusters: no answer is none that they differ.
const CANNOT_TELL: u8 = 3;
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

pub(super) fn command() -> Command {
    Command::new("mirror").about("Look after mirrors between clusters").subcommand_required(true).subcommand(
        Command::new("check")
            .about("Compare what two clusters hold of a topic; exit code 0 if it is the same, 1 if not, 3 if that cannot be told")
            .arg(url("url_a", "URL_A", "Members of one cluster, comma separated"))
            .arg(url("url_b", "URL_B", "Members of the other"))
            .arg(Arg::new("topic").value_name("TOPIC").required(true).help("Name of the topic in both"))
            .arg(key("key-a", "ANTIPHON_KEY_A", "API key for the first cluster"))
            .arg(key("key-b", "ANTIPHON_KEY_B", "API key for the second"))
            .arg(
                Arg::new("wait-s")
                    .long("wait-s")
                    .value_name("SECONDS")
                    .value_parser(value_parser!(u64).range(0..=86_400))
                    .default_value("0")
                    .help("Look again until they are the same, for at most this long"),
            ),
    )
}

fn url(id: &'static str, name: &'static str, help: &'static str) -> Arg {
    Arg::new(id).value_name(name).required(true).value_delimiter(',').num_args(1).help(help)
}

fn key(id: &'static str, variable: &'static str, help: &'static str) -> Arg {
    Arg::new(id)
        .long(id)
        .value_name("KEY")
        .env(variable)
        .hide_env_values(true)
        .allow_hyphen_values(true)
        .help(format!("{help}; as a variable it is not visible in the process list"))
}

pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    let Some(("check", matches)) = matches.subcommand() else {
        return fail(2, "`antiphon mirror --help` lists what there is");
    };
    let check = match Check::new(matches) {
        Ok(check) => check,
        Err(line) => return fail(2, &line),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(CANNOT_TELL, &format!("start the runtime: {error}")),
    };
    match runtime.block_on(check.run()) {
        Ok(comparison) => {
            // A reader that went away is no failure of the check.
            let _ = std::io::stdout().write_all(comparison.table().as_bytes());
            if comparison.is_same() {
                return ExitCode::SUCCESS;
            }
            fail(1, "the clusters do not hold the same; records on their way count as missing (--wait-s)")
        }
        Err(line) => fail(CANNOT_TELL, &line),
    }
}

struct Check {
    topic: String,
    one: Members,
    other: Members,
    wait: Duration,
}

impl Check {
    fn new(matches: &ArgMatches) -> Result<Self, String> {
        let members = |url: &str, key: &str| {
            let urls = matches.get_many::<String>(url).into_iter().flatten().map(String::as_str);
            let members = Members::at(urls, matches.get_one::<String>(key))?;
            members.ok_or_else(|| format!("{} names no member", url.to_uppercase()))
        };
        Ok(Check {
            topic: topic(matches)?,
            one: members("url_a", "key-a")?,
            other: members("url_b", "key-b")?,
            wait: Duration::from_secs(matches.get_one("wait-s").copied().unwrap_or(0)),
        })
    }

    async fn run(mut self) -> Result<Comparison, String> {
        let begin = Instant::now();
        loop {
            let one = origins(&mut self.one, &self.topic).await?;
            let other = origins(&mut self.other, &self.topic).await?;
            let comparison = compare(&one, &other)?;
            if comparison.is_same() || begin.elapsed() >= self.wait {
                return Ok(comparison);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

async fn origins(members: &mut Members, topic: &str) -> Result<Origins, String> {
    let path = format!("/v0/topics/{topic}/origins");
    let call = Call { method: Method::GET, path: &path, body: Bytes::new(), deadline: ANSWER_DEADLINE };
    let body =
        members.ask(&call, Patience::Bounded(ANSWER_DEADLINE)).await.map_err(|gave_up| gave_up.line)?;
    serde_json::from_slice(&body).map_err(|error| format!("an answer that is none of a member's: {error}"))
}
