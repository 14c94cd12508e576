//! What `append` and `tail` share: the members they know, and a request that goes from one to the next
//! until one of them answers it.

mod attempt;
mod patience;

use std::io::Write;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches};
use reqwest::header::HeaderValue;

use super::health::given_url;
use crate::api::is_topic_name;
use crate::config::{Secret, hide};
pub(super) use attempt::Call;
use attempt::Failure;
pub(super) use patience::Patience;

const DEFAULT_URL: &str = "http://127.0.0.1:4000";
/// What stands before a key in its header.
const BEARER: &str = "Bearer ";
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// `TOPIC`, `--url` and `--key`.
pub(super) fn arguments() -> [Arg; 3] {
    [
        Arg::new("topic").value_name("TOPIC").required(true).help("Name of the topic"),
        Arg::new("url")
            .long("url")
            .value_name("URL")
            .env("ANTIPHON_URL")
            .hide_env_values(true)
            .action(ArgAction::Append)
            .value_delimiter(',')
            .default_value(DEFAULT_URL)
            .help("Members, comma separated or given more than once; the first that answers is used"),
        key_argument("API key; as a flag it is visible in the process list, as a variable it is not"),
    ]
}

/// `--key`, as every subcommand takes it.
pub(super) fn key_argument(help: &'static str) -> Arg {
    Arg::new("key")
        .long("key")
        .value_name("KEY")
        .env("ANTIPHON_KEY")
        .hide_env_values(true)
        .allow_hyphen_values(true)
        .help(help)
}

/// The topic that was named; an error is one line.
pub(super) fn topic(matches: &ArgMatches) -> Result<String, String> {
    let topic = matches.get_one::<String>("topic").map(String::as_str).unwrap_or_default();
    if !is_topic_name(topic) {
        return Err(format!(
            "TOPIC {topic:?}: allowed are 1 to 255 characters of A-Z a-z 0-9 . _ : - that start with a letter or digit"
        ));
    }
    Ok(topic.to_owned())
}

/// The members that were named, and which of them is asked now.
pub(super) struct Members {
    http: reqwest::Client,
    /// Never empty; without slashes at their ends.
    bases: Vec<String>,
    at: usize,
    /// The value of the header `Authorization`.
    authorization: Option<HeaderValue>,
}

/// No member gave a good answer.
#[derive(Debug)]
pub(super) struct GaveUp {
    /// What the last one said, without the end of a sentence.
    pub line: String,
    /// One of them may have done what was asked, or may yet do it.
    pub is_unknown: bool,
}

impl Members {
    /// Those that the command line names; an error is one line, and holds no secret.
    pub fn new(matches: &ArgMatches) -> Result<Self, String> {
        let urls = matches.get_many::<String>("url").into_iter().flatten();
        let members = Members::at(urls.map(String::as_str), matches.get_one::<String>("key"))?;
        match members {
            Some(members) => Ok(members),
            None => Err(format!("--url names no member; {DEFAULT_URL} is the default")),
        }
    }

    /// Those at `urls`, asked with `key`; `None` if there are none. An error is one line, and holds no secret.
    pub fn at<'a>(urls: impl Iterator<Item = &'a str>, key: Option<&String>) -> Result<Option<Self>, String> {
        let mut bases = Vec::new();
        for url in urls.map(str::trim).filter(|url| !url.is_empty()) {
            if url.contains('@') {
                // It may hold a password, so it is not repeated.
                return Err("a URL with a user in it; give the key by ANTIPHON_KEY".to_owned());
            }
            bases.push(given_url(url).map_err(|error| error.to_string())?);
        }
        if bases.is_empty() {
            return Ok(None);
        }
        let key = key.filter(|key| !key.is_empty());
        let authorization = key.map(|key| authorization(&Secret::new(key.clone()))).transpose()?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_DEADLINE)
            .build()
            .map_err(|error| format!("start the HTTP client: {error}"))?;
        Ok(Some(Members { http, bases, at: 0, authorization }))
    }

    /// The body of the answer to `call`, of the first member that gives a good one. Whoever refuses in a way
    /// that holds at all members is believed; otherwise the next member is asked, with growing pauses, as
    /// long as `patience` says.
    pub async fn ask(&mut self, call: &Call<'_>, patience: Patience) -> Result<Vec<u8>, GaveUp> {
        let begin = Instant::now();
        let mut is_unknown = false;
        let mut was_reached = false;
        let mut failures = 0u32;
        loop {
            let left = patience.left(begin.elapsed());
            let failure = match self.attempt(call, left).await {
                Ok(body) => return Ok(body),
                Err(failure) => failure,
            };
            failures = failures.saturating_add(1);
            is_unknown |= failure.is_unknown;
            was_reached |= failure.was_reached;
            // Machines that are gone, and cost the whole deadline of a connection, must not hide one that is there.
            let is_first_round = (failures as usize) < self.bases.len();
            let pause = patience.pause(failures, self.bases.len());
            let goes_on = !failure.is_final()
                && (is_first_round && !was_reached
                    || patience.goes_on(begin.elapsed() + pause, was_reached, failure.is_internal()));
            if !goes_on {
                return Err(GaveUp { line: failure.line, is_unknown });
            }
            if patience.tells(failures, self.bases.len()) {
                // `eprintln!` would panic where nobody reads stderr.
                let note = format!("antiphon: {}; going on as soon as a member answers\n", failure.line);
                let _ = std::io::stderr().write_all(note.as_bytes());
            }
            self.at = (self.at + 1) % self.bases.len();
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, call: &Call<'_>, left: Duration) -> Result<Vec<u8>, Failure> {
        let authorization = self.authorization.as_ref();
        let answer = attempt::attempt(&self.http, &self.bases[self.at], authorization, call, left).await;
        // What answers there has been shown the key.
        let shown = authorization.and_then(|value| value.to_str().ok()?.strip_prefix(BEARER));
        answer.map_err(|failure| match shown {
            Some(key) => Failure { line: hide(&failure.line, key), ..failure },
            None => failure,
        })
    }
}

fn authorization(key: &Secret) -> Result<HeaderValue, String> {
    let text = format!("{BEARER}{}", key.expose());
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| "--key holds a character that no HTTP header can hold".to_owned())?;
    // So that no `Debug` of a request shows it.
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    fn members(arguments: &[&str]) -> Result<Members, String> {
        let all = ["x", "topic"].iter().chain(arguments);
        // Not from the variables of whoever runs the tests.
        let arguments = super::arguments().map(|argument| argument.env(None::<&str>));
        Members::new(&Command::new("x").args(arguments).get_matches_from(all))
    }

    #[test]
    fn members_are_named_by_commas_and_by_repeating() {
        let bases = |arguments: &[&str]| members(arguments).expect("is allowed").bases;
        assert_eq!(bases(&[]), [DEFAULT_URL]);
        assert_eq!(
            bases(&["--url", "http://a:1/, http://b:1,", "--url", "http://c:1"]),
            ["http://a:1", "http://b:1", "http://c:1"]
        );
        for wrong in ["a:1", ",", "https://a:1", "http://a:1,nothing"] {
            assert!(members(&["--url", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_may_be_a_secret_is_not_repeated() {
        for arguments in [["--url", "http://me:hunter2@a:1"], ["--key", "hunter2\n"]] {
            let line = members(&arguments).err().expect("is refused");
            assert!(!line.contains("hunter2"), "{line}");
        }
        let given = members(&["--key", "-hunter2"]).expect("is allowed").authorization;
        assert!(!format!("{given:?}").contains("hunter2"));
    }
}
