//! The command line of `bench`.

use std::time::Duration;

use anyhow::{bail, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::request::{MAX_TOPICS, MIN_PAYLOAD_BYTES, MIN_TIMED_PAYLOAD_BYTES};
use crate::cli::client::key_argument;
use crate::config::Secret;
use crate::limits::{MAX_PAGE_BYTES, MAX_PAGE_RECORDS, MAX_RECORD_BYTES, MAX_RECORDS_PER_WRITE};

const MAX_CONNECTIONS: u64 = 4096;
/// Watchers have a port each towards one address.
const MAX_WATCHERS: u64 = 20_000;
const MAX_SECONDS: f64 = 86_400.0;
/// Largest body of a request, half of what members accept by default.
const MAX_REQUEST_BYTES: usize = 32 << 20;
/// Most memory for the prebuilt requests of all connections.
const MAX_PREBUILT_BYTES: usize = 1 << 30;
/// What JSON adds to a record in a page, at most.
const PAGE_RECORD_BYTES: usize = 96;

/// What is done over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Append,
    /// Pages of that many records, of topics that hold `preload` records together.
    Read {
        page: usize,
        preload: u64,
    },
    /// That many event streams of one topic at one member, to which is published.
    Watch {
        watchers: usize,
        /// Nothing is published meanwhile; what counts is the memory that they cost.
        is_idle: bool,
    },
}

/// Which members get the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    All,
    Leader,
    Followers,
}

/// Where a member is found, `http://` and its authority, and with which key it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// `host:port`.
    pub authority: String,
    pub key: Option<Secret>,
}

impl Url {
    pub fn parse(text: &str) -> Result<Self, String> {
        let authority =
            text.strip_prefix("http://").ok_or("a URL begins with http:// (there is no TLS here)")?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) =
            authority.rsplit_once(':').ok_or("a URL names a port, as in http://127.0.0.1:4000")?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        let is_host = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
        match is_host && is_port {
            true => Ok(Url { authority: authority.to_owned(), key: None }),
            false => Err("a URL is http://host:port and nothing behind it".to_owned()),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Options {
    pub verb: Verb,
    /// Empty: start an own cluster.
    pub urls: Vec<Url>,
    pub target: Target,
    pub connections: usize,
    /// Records per append.
    pub batch: usize,
    /// Bytes of each record's `data`, as JSON.
    pub payload_bytes: usize,
    pub durability: String,
    pub topics: u32,
    pub warmup: Duration,
    pub duration: Duration,
    /// Operations per second of open loop; `None` is closed loop.
    pub rate: Option<f64>,
    pub pids: Vec<u32>,
    pub json: bool,
    pub keep: bool,
}

pub fn command() -> Command {
    Command::new("bench")
        .about("Measure a cluster under load, and check what it answers")
        .long_about(
            "Measure a cluster under load, and check what it answers.\n\n\
             Without --url it starts three members of its own in a directory below $TMPDIR (which decides \
             the disk that is measured) and removes them afterwards.",
        )
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommand(shared(Command::new("append").about("Append batches of records")).arg(batch("1")))
        .subcommand(
            shared(Command::new("read").about("Read topics from end to end in pages"))
                .arg(batch("1000").help("Records per append while the topics are filled"))
                .arg(
                    Arg::new("page")
                        .long("page")
                        .value_name("RECORDS")
                        .value_parser(value_parser!(u64).range(1..=MAX_PAGE_RECORDS as u64))
                        .default_value("1000")
                        .help("Records per page"),
                )
                .arg(
                    Arg::new("preload")
                        .long("preload")
                        .value_name("RECORDS")
                        .value_parser(value_parser!(u64).range(1..=1_000_000_000))
                        .default_value("100000")
                        .help("Records to fill the topics with before; rounded up to whole batches"),
                ),
        )
        .subcommand(
            shared(Command::new("watch").about("Follow a topic with many event streams while records come"))
                .mut_arg("connections", |arg| arg.default_value("4").help("Connections that publish"))
                .mut_arg("topics", |arg| arg.value_parser(value_parser!(u64).range(1..=1)).hide(true))
                .arg(batch("1"))
                .arg(
                    Arg::new("watchers")
                        .long("watchers")
                        .value_name("N")
                        .value_parser(value_parser!(u64).range(1..=MAX_WATCHERS))
                        .default_value("100")
                        .help("Event streams, all at the first member that gets load"),
                )
                .arg(
                    Arg::new("idle").long("idle").action(ArgAction::SetTrue).help(
                        "Publish nothing but a last record, and tell the memory that each stream costs",
                    ),
                ),
        )
}

fn batch(default: &'static str) -> Arg {
    Arg::new("batch")
        .long("batch")
        .value_name("RECORDS")
        .value_parser(value_parser!(u64).range(1..=MAX_RECORDS_PER_WRITE as u64))
        .default_value(default)
        .help("Records per append")
}

fn shared(command: Command) -> Command {
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    let number = |name: &'static str, unit: &'static str, lowest: u64, highest: u64| {
        Arg::new(name).long(name).value_name(unit).value_parser(value_parser!(u64).range(lowest..=highest))
    };
    let seconds = |name: &'static str| Arg::new(name).long(name).value_name("S").value_parser(parse_positive);
    command
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .action(ArgAction::Append)
                .value_parser(Url::parse)
                .help("A member of a running cluster; repeat it to spread the load over members"),
        )
        .arg(key_argument("API key for --url, with all rights; as a flag it is visible in the process list"))
        .arg(switch("local", "Start three members for this run, which is what happens without --url"))
        .arg(switch("leader", "Put the load on the leader only"))
        .arg(switch("follower", "Put the load on members that do not lead"))
        .arg(
            number("connections", "N", 1, MAX_CONNECTIONS)
                .default_value("64")
                .help("Connections, each with one request under way at a time"),
        )
        .arg(
            number("payload-bytes", "BYTES", MIN_PAYLOAD_BYTES as u64, MAX_RECORD_BYTES as u64)
                .default_value("256")
                .help("Bytes of each record's data, as JSON"),
        )
        .arg(
            Arg::new("durability")
                .long("durability")
                .value_name("CLASS")
                .value_parser(["fsync", "disk", "memory", "ephemeral"])
                .default_value("disk")
                .help("Durability class of the topics"),
        )
        .arg(number("topics", "N", 1, MAX_TOPICS.into()).default_value("1").help("Topics that take turns"))
        .arg(seconds("duration-s").default_value("10").help("Seconds that are measured"))
        .arg(seconds("warmup-s").default_value("2").help("Seconds of the same load before; may be 0"))
        .arg(
            Arg::new("rate")
                .long("rate")
                .value_name("OPS")
                .value_parser(parse_positive)
                .help("Open loop: operations per second; without it the loop is closed"),
        )
        .arg(
            number("pid", "PID", 1, i32::MAX as u64)
                .action(ArgAction::Append)
                .help("With --url: process of a member on this machine, to count what it uses"),
        )
        .arg(switch("json", "Print one JSON object instead of a table"))
        .arg(switch("keep", "Keep the topics, or the directory of the members started for this run"))
}

fn parse_positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("not a number that is 0 or more".to_owned()),
    }
}

impl Options {
    /// What the matches of [`command`] ask for.
    pub fn of(matches: &ArgMatches) -> anyhow::Result<Self> {
        let Some((verb, matches)) = matches.subcommand() else { bail!("bench append, read or watch?") };
        // All that is asked for here has a default, but for those that are lists or absent.
        let number = |name: &str| matches.get_one::<u64>(name).copied().unwrap_or_default();
        let size = |name: &str| usize::try_from(number(name)).unwrap_or(usize::MAX);
        let float = |name: &str| matches.get_one::<f64>(name).copied();
        let verb = match verb {
            "append" => Verb::Append,
            "watch" => Verb::Watch { watchers: size("watchers"), is_idle: matches.get_flag("idle") },
            _ => Verb::Read { page: size("page"), preload: number("preload") },
        };
        let target = match (matches.get_flag("leader"), matches.get_flag("follower")) {
            (false, false) => Target::All,
            (true, false) => Target::Leader,
            (false, true) => Target::Followers,
            (true, true) => bail!("--leader and --follower exclude each other; without both all get load"),
        };
        let seconds = |name: &str, lowest: f64| {
            let value = float(name).unwrap_or_default();
            ensure!(
                (lowest..=MAX_SECONDS).contains(&value),
                "--{name} is between {lowest} and {MAX_SECONDS}"
            );
            Ok(Duration::from_secs_f64(value))
        };
        let key = matches.get_one::<String>("key").filter(|key| !key.is_empty());
        // It goes into a head as it is.
        let is_plain = |key: &String| key.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(key.is_none_or(is_plain), "--key has characters that no key has");
        let key = key.map(|key| Secret::new(key.clone()));
        let urls = matches.get_many::<Url>("url").unwrap_or_default();
        let options = Options {
            verb,
            urls: urls.map(|url| Url { key: key.clone(), ..url.clone() }).collect(),
            target,
            connections: size("connections"),
            batch: size("batch"),
            payload_bytes: size("payload-bytes"),
            durability: matches.get_one::<String>("durability").cloned().unwrap_or_default(),
            topics: u32::try_from(number("topics")).unwrap_or(MAX_TOPICS),
            warmup: seconds("warmup-s", 0.0)?,
            duration: seconds("duration-s", 0.1)?,
            rate: float("rate"),
            pids: matches
                .get_many::<u64>("pid")
                .unwrap_or_default()
                .filter_map(|pid| u32::try_from(*pid).ok())
                .collect(),
            json: matches.get_flag("json"),
            keep: matches.get_flag("keep"),
        };
        options.check(matches.get_flag("local"))?;
        Ok(options)
    }

    fn check(&self, local: bool) -> anyhow::Result<()> {
        ensure!(!local || self.urls.is_empty(), "--local starts a cluster and --url names one; choose one");
        ensure!(
            !self.urls.is_empty() || self.pids.is_empty(),
            "--pid goes with --url; own members are known"
        );
        ensure!(self.rate.is_none_or(|rate| rate >= 0.1), "--rate is 0.1 or more");
        let request_bytes = self.batch.saturating_mul(self.payload_bytes);
        ensure!(
            request_bytes <= MAX_REQUEST_BYTES,
            "--batch times --payload-bytes is {request_bytes} bytes; at most {MAX_REQUEST_BYTES} fit a request"
        );
        ensure!(
            request_bytes.saturating_mul(self.connections) <= MAX_PREBUILT_BYTES,
            "--connections times --batch times --payload-bytes is above {MAX_PREBUILT_BYTES} bytes"
        );
        if let Verb::Read { page, .. } = self.verb {
            let page_bytes = page.saturating_mul(self.payload_bytes + PAGE_RECORD_BYTES);
            ensure!(
                page_bytes <= MAX_PAGE_BYTES,
                "--page times --payload-bytes is more than the {MAX_PAGE_BYTES} bytes that one page may have"
            );
        }
        if let Verb::Watch { .. } = self.verb {
            ensure!(
                self.payload_bytes >= MIN_TIMED_PAYLOAD_BYTES,
                "--payload-bytes is {MIN_TIMED_PAYLOAD_BYTES} or more: records tell when they were sent"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &str) -> anyhow::Result<Options> {
        let words = std::iter::once("bench").chain(words.split_whitespace());
        Options::of(&command().try_get_matches_from(words)?)
    }

    #[test]
    fn the_defaults_are_a_closed_loop_against_an_own_cluster() {
        let append = options("append").unwrap();
        assert_eq!((append.verb, append.target, append.rate), (Verb::Append, Target::All, None));
        assert!(append.urls.is_empty() && append.duration == Duration::from_secs(10));
        assert_eq!((append.connections, append.batch, append.payload_bytes), (64, 1, 256));
        let read = options("read --warmup-s 0 --duration-s 0.5").unwrap();
        assert_eq!((read.verb, read.batch), (Verb::Read { page: 1000, preload: 100_000 }, 1000));
        assert_eq!((read.warmup, read.duration), (Duration::ZERO, Duration::from_millis(500)));
        let watch = options("watch --watchers 7").unwrap();
        assert_eq!((watch.verb, watch.connections), (Verb::Watch { watchers: 7, is_idle: false }, 4));
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        for words in [
            "",
            "append --page 5",
            "append --local --url http://127.0.0.1:1",
            "append --leader --follower",
            "append --pid 1",
            "append --rate 0",
            "append --rate nan",
            "append --duration-s 0",
            "append --duration-s 1e9",
            "append --durability none",
            "append --payload-bytes 2",
            "append --batch 10000 --payload-bytes 5000",
            "append --batch 1000 --payload-bytes 30000 --connections 64",
            "read --page 1000 --payload-bytes 8300",
            "append --topics 100001",
            "watch --payload-bytes 17",
            "watch --topics 2",
        ] {
            assert!(options(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn a_url_is_a_host_and_a_port() {
        for (text, authority) in [
            ("http://h:1", "h:1"),
            ("http://[::1]:4000/", "[::1]:4000"),
            ("http://10.0.0.1:65535", "10.0.0.1:65535"),
        ] {
            assert_eq!(Url::parse(text).unwrap().authority, authority);
        }
        for text in
            ["https://h:1", "h:1", "http://h", "http://h:0", "http://h:65536", "http://h/x:1", "http://:1"]
        {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }
}
