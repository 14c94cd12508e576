//! One request to one member, and what its failure means.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Response};

use crate::cli::health::{explanation, root_cause};

/// Longest answer that is read: above what a page of the largest byte budget becomes with its fields.
const MAX_ANSWER_BYTES: usize = 32 << 20;

/// A request as every member takes it.
pub(in crate::cli) struct Call<'a> {
    pub method: Method,
    /// With its query.
    pub path: &'a str,
    /// JSON; nothing is sent if it is empty.
    pub body: Bytes,
    /// Longest time for one member to give the whole answer.
    pub deadline: Duration,
}

/// What came instead of a good answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub line: String,
    /// `None` if there was no whole answer.
    pub status: Option<u16>,
    /// Somebody took the connection.
    pub was_reached: bool,
    /// It may have been done, or may yet be.
    pub is_unknown: bool,
}

impl Failure {
    /// Whether every member would say the same, now and later.
    pub fn is_final(&self) -> bool {
        self.status.is_some_and(|status| status < 500 && status != 429)
    }

    /// A member's own failure, which others need not share.
    pub fn is_internal(&self) -> bool {
        self.status == Some(500)
    }
}

/// Sends `call` to the member at `base`; waits for at most `left`.
pub(super) async fn attempt(
    http: &reqwest::Client,
    base: &str,
    authorization: Option<&HeaderValue>,
    call: &Call<'_>,
    left: Duration,
) -> Result<Vec<u8>, Failure> {
    let mut request = http.request(call.method.clone(), format!("{base}{}", call.path));
    if let Some(value) = authorization {
        request = request.header(AUTHORIZATION, value);
    }
    if !call.body.is_empty() {
        request = request.header(CONTENT_TYPE, "application/json").body(call.body.clone());
    }
    let asking = async {
        let response = request.send().await.map_err(|error| broken(base, error))?;
        let status = response.status().as_u16();
        let body = body(response).await.map_err(|error| broken(base, error))?;
        Ok((status, body))
    };
    let deadline = call.deadline.min(left);
    let (status, body) = match tokio::time::timeout(deadline, asking).await {
        Ok(answer) => answer?,
        Err(_) => {
            let line = format!("{base} did not answer within {} ms", deadline.as_millis());
            return Err(Failure { line, status: None, was_reached: true, is_unknown: true });
        }
    };
    match (status, body) {
        (200 | 201, Some(body)) => Ok(body),
        (status, body) => Err(refused(base, status, &body.unwrap_or_default())),
    }
}

fn broken(base: &str, error: reqwest::Error) -> Failure {
    let is_sent = !error.is_connect();
    let line = format!("{base} does not answer: {}", root_cause(error));
    Failure { line, status: None, was_reached: is_sent, is_unknown: is_sent }
}

fn refused(base: &str, status: u16, body: &[u8]) -> Failure {
    let why = explanation(body);
    // Contract sections 4.1 and 26: these say that nothing was done, and will not be.
    let none = ["no_leader", "not_ready", "shutting_down", "storage_full"];
    let code = why.trim_start().split(':').next().unwrap_or_default();
    let is_unknown = status >= 500 && !none.contains(&code);
    Failure {
        line: format!("{base} answers {status}{why}"),
        status: Some(status),
        was_reached: true,
        is_unknown,
    }
}

/// The whole body; `None` if it is longer than any answer can be.
async fn body(mut response: Response) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_whether_it_holds_everywhere_and_whether_it_had_effect() {
        for (status, code, is_final, is_unknown) in [
            (400, "invalid_request", true, false),
            (404, "topic_not_found", true, false),
            (429, "throttled", false, false),
            (500, "internal", false, true),
            (503, "no_leader", false, false),
            (503, "storage_full", false, false),
            (503, "commit_unknown", false, true),
        ] {
            let body = format!(r#"{{"error":{{"code":"{code}","message":"m: n"}}}}"#);
            let failure = refused("http://a:1", status, body.as_bytes());
            assert_eq!((failure.is_final(), failure.is_unknown), (is_final, is_unknown), "{code}");
            assert_eq!(failure.line, format!("http://a:1 answers {status} {code}: m: n"));
        }
        // A proxy's, which knows nothing of codes.
        assert!(refused("http://a:1", 503, b"<html>").is_unknown);
    }
}
