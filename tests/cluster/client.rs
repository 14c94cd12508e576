//! The HTTP client of the tests: says exactly what came back, and never retries on its own.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::PATIENCE;

/// Above the server's own deadline of 10 s: a request that ends by this one was left hanging.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Between two members of [`Client::post_anywhere`].
const POST_PAUSE: Duration = Duration::from_millis(20);

/// What came back for one request.
#[derive(Debug, Clone)]
pub enum Reply {
    Answer {
        status: u16,
        body: Value,
        has_retry_after: bool,
    },
    /// No connection was made, so the server has not seen the request.
    NotSent(String),
    /// The connection broke, or time ran out: the server may have seen it.
    Broken(String),
}

impl Reply {
    pub fn is(&self, wanted: u16) -> bool {
        matches!(self, Reply::Answer { status, .. } if *status == wanted)
    }

    pub fn status(&self) -> Option<u16> {
        match self {
            Reply::Answer { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The body of a success.
    pub fn ok(self) -> Option<Value> {
        match self {
            Reply::Answer { status: 200 | 201, body, .. } => Some(body),
            _ => None,
        }
    }

    /// The body of a success that must be one.
    #[track_caller]
    pub fn expect(self, what: &str) -> Value {
        match self {
            Reply::Answer { status: 200 | 201, body, .. } => body,
            Reply::Answer { status, body, .. } => panic!("{what}: {status} {body}"),
            Reply::NotSent(why) | Reply::Broken(why) => panic!("{what}: {why}"),
        }
    }

    /// The error's code, empty for anything that is no error answer.
    pub fn code(&self) -> &str {
        match self {
            Reply::Answer { body, .. } => body["error"]["code"].as_str().unwrap_or_default(),
            _ => "",
        }
    }
}

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
}

impl Client {
    pub fn new() -> Client {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(TIMEOUT)
            // A retry that the oracle does not know of could hide, or make, a record that is there twice.
            .retry(reqwest::retry::never())
            .build()
            .expect("build a client");
        Client { http }
    }

    pub async fn get(&self, url: &str) -> Reply {
        reply(self.http.get(url)).await
    }

    pub async fn post(&self, url: &str, body: &Value) -> Reply {
        reply(with_json(self.http.post(url), body)).await
    }

    /// Posts to one of `urls` after the other until one of them takes it, which must be safe to repeat.
    pub async fn post_anywhere(&self, urls: &[String], path: &str, body: &Value) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let start = rand::random_range(0..urls.len());
        for url in urls.iter().cycle().skip(start) {
            if let Some(answer) = self.post(&format!("{url}{path}"), body).await.ok() {
                return answer;
            }
            assert!(Instant::now() < deadline, "nobody takes a POST to {path}");
            tokio::time::sleep(POST_PAUSE).await;
        }
        panic!("no member was named");
    }

    pub async fn delete(&self, url: &str) -> Reply {
        reply(self.http.delete(url)).await
    }

    pub async fn put(&self, url: &str, body: &Value) -> Reply {
        reply(with_json(self.http.put(url), body)).await
    }
}

fn with_json(request: reqwest::RequestBuilder, body: &Value) -> reqwest::RequestBuilder {
    request.header("content-type", "application/json").body(body.to_string())
}

async fn reply(request: reqwest::RequestBuilder) -> Reply {
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) if error.is_connect() => return Reply::NotSent(in_full(error)),
        Err(error) => return Reply::Broken(in_full(error)),
    };
    let status = response.status().as_u16();
    let has_retry_after = response.headers().contains_key("retry-after");
    match response.bytes().await {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(body) => Reply::Answer { status, body, has_retry_after },
            Err(_) => {
                panic!("status {status} with a body that is not JSON: {:?}", String::from_utf8_lossy(&bytes))
            }
        },
        Err(error) => Reply::Broken(in_full(error)),
    }
}

/// An error with its causes: the last one says what happened.
fn in_full(error: reqwest::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
