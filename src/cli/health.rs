//! `antiphon health`: whether a member answers, as an exit code.
//!
//! It is for container health checks and unit files, whose small images hold no `curl`. Inside a
//! member's own container it needs no argument: it reads the same variables as `serve` does, its keys among them, so
//! the check cannot drift away from what it checks.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use reqwest::{Response, Url};

use super::client::key_argument;
use super::fail;
use crate::config::{Given, Secret, Source, client_key, client_url, hide, variable};

/// Longest part of an answer that is looked at: what answers at the port may not be a member at all.
const MAX_ANSWER_BYTES: usize = 64 << 10;

pub(super) fn command() -> Command {
    Command::new("health")
        .about("Ask a member whether it is alive or ready; exit code 0 if so, 1 if not")
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .help("The member [default: this machine, as ANTIPHON_HOST and ANTIPHON_PORT say]"),
        )
        .arg(key_argument("API key, where probe_auth is set [default: the first of this machine's member]"))
        .arg(
            Arg::new("ready")
                .long("ready")
                .action(ArgAction::SetTrue)
                .help("Ask whether it can serve requests, not only whether it is alive"),
        )
        .arg(
            Arg::new("timeout-ms")
                .long("timeout-ms")
                .value_name("MS")
                .value_parser(value_parser!(u64).range(1..=600_000))
                .default_value("3000")
                .help("Longest time to wait for the whole answer"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    let url = matches.get_one::<String>("url");
    let member = match url {
        Some(url) => given_url(url),
        None => client_url(&given()).map_err(anyhow::Error::from),
    };
    let member = match member {
        Ok(member) => member,
        Err(error) => return fail(2, &format!("{error:#}")),
    };
    let key =
        matches.get_one::<String>("key").filter(|key| !key.is_empty()).map(|key| Secret::new(key.clone()));
    // A key of this machine's member is for that member alone.
    let key = key.or_else(|| url.is_none().then(|| client_key(&given())).flatten());
    // It has a default.
    let timeout_ms = matches.get_one::<u64>("timeout-ms").copied().unwrap_or(3000);
    let path = if matches.get_flag("ready") { "/v0/ready" } else { "/v0/health" };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime
        .context("start the runtime")
        .and_then(|runtime| runtime.block_on(ask(&member, path, key, Duration::from_millis(timeout_ms))));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &format!("{error:#}")),
    }
}

/// The base that `--url` names, without a slash at its end.
pub(super) fn given_url(text: &str) -> anyhow::Result<String> {
    let base = text.trim_end_matches('/');
    match Url::parse(base) {
        // This binary speaks no TLS: members do not either.
        Ok(url) if url.scheme() == "http" && url.query().is_none() && url.fragment().is_none() => {
            Ok(base.to_owned())
        }
        _ => bail!("--url {text:?}: allowed is http://host:port"),
    }
}

/// The member of this machine, by the variables that `serve` reads.
fn given() -> Given {
    let mut given = Given::default();
    for name in ["host", "port", "api_keys", "api_keys_file"] {
        if let Some(value) = std::env::var_os(variable(name)) {
            given.set(name, value.to_string_lossy().into_owned(), Source::Variable);
        }
    }
    given
}

/// Asks `member` at `path`; an error says why the answer was not a good one.
async fn ask(member: &str, path: &str, key: Option<Secret>, timeout: Duration) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
    // One bound around everything, as the reply may trickle.
    let asking = async {
        let request = client.get(format!("{member}{path}"));
        let request = match &key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        };
        let response = request.send().await.map_err(root_cause)?;
        let status = response.status().as_u16();
        Ok::<_, anyhow::Error>((status, beginning(response).await))
    };
    let (status, answer) = tokio::time::timeout(timeout, asking)
        .await
        .with_context(|| format!("{member} did not answer within {} ms", timeout.as_millis()))?
        .with_context(|| format!("{member} does not answer"))?;
    match status {
        200 => Ok(()),
        _ => {
            let why = explanation(&answer);
            let why = key.map_or(why.clone(), |key| hide(&why, key.expose()));
            bail!("{member}{path} answers {status}{why}")
        }
    }
}

/// reqwest says little more than the URL again; what lies below it says what happened.
pub(super) fn root_cause(error: reqwest::Error) -> anyhow::Error {
    let error = anyhow::Error::from(error);
    anyhow::anyhow!("{}", error.root_cause())
}

/// As much of the body as came and is looked at.
async fn beginning(mut response: Response) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = MAX_ANSWER_BYTES - bytes.len();
        bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() >= room {
            break;
        }
    }
    bytes
}

/// What a member's refusal says, as the end of a sentence; empty if it is not one.
pub(super) fn explanation(answer: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
    let error = &body["error"];
    let Some(code) = error["code"].as_str() else { return String::new() };
    let mut text = format!(" {code}");
    for part in [&error["message"], &error["detail"]["reason"]] {
        if let Some(part) = part.as_str() {
            text += &format!(": {part}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_plain_base() {
        assert_eq!(given_url("http://m1:4000/").expect("is allowed"), "http://m1:4000");
        assert_eq!(given_url("http://[::1]:4000").expect("is allowed"), "http://[::1]:4000");
        for url in ["", "m1:4000", "https://m1:4000", "http://", "http://m1:4000?x=1", "file:///etc"] {
            let line = given_url(url).expect_err(url).to_string();
            assert!(line.contains("http://host:port"), "{line}");
        }
    }

    #[test]
    fn a_refusal_is_put_into_one_line() {
        let answer = br#"{"error":{"code":"not_ready","message":"not now","detail":{"reason":"no_leader"}}}"#;
        assert_eq!(explanation(answer), " not_ready: not now: no_leader");
        assert_eq!(explanation(br#"{"error":{"code":"x","detail":null}}"#), " x");
        for other in [&b"<html>"[..], b"", b"[]", b"{\"error\":1}"] {
            assert_eq!(explanation(other), "");
        }
    }
}
