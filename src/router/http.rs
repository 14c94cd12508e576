//! Other clusters over HTTP, at their client port.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use serde::Deserialize;

use super::remote::{Answering, Remote, RemoteError};
use crate::limits::{MAX_PULL_ANSWER_BYTES, REMOTE_CONNECT_TIMEOUT, REMOTE_READ_TIMEOUT};

/// Where pulls go, below the address of a member.
pub const PULL_PATH: &str = "/v0/mirror/pull";
/// The form of pulls and their answers.
pub const PULL_CONTENT_TYPE: &str = "application/octet-stream";
/// Longest message and code of another cluster that are kept.
const MAX_MESSAGE_CHARS: usize = 300;
const MAX_CODE_CHARS: usize = 64;

/// Asks over connections that stay open.
pub struct HttpRemote {
    client: reqwest::Client,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorFields,
}

#[derive(Deserialize)]
struct ErrorFields {
    code: String,
    message: String,
}

impl HttpRemote {
    /// Errors: a sentence, if the system has no room for a client.
    pub fn new() -> Result<Self, String> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(REMOTE_CONNECT_TIMEOUT)
            .read_timeout(REMOTE_READ_TIMEOUT)
            .tcp_nodelay(true)
            .build();
        client.map(|client| HttpRemote { client }).map_err(|error| error.to_string())
    }

    async fn ask(
        &self,
        url: &str,
        token: Option<&str>,
        request: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, RemoteError> {
        let url = format!("{}{PULL_PATH}", url.trim_end_matches('/'));
        let mut post = self.client.post(&url).header(CONTENT_TYPE, PULL_CONTENT_TYPE).body(request);
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value = value.map_err(|_| RemoteError {
                code: "unauthorized".into(),
                message: "the token cannot be sent in a header".into(),
                is_refusal: true,
            })?;
            value.set_sensitive(true);
            post = post.header(AUTHORIZATION, value);
        }
        let response = match tokio::time::timeout(timeout, post.send()).await {
            Ok(response) => response.map_err(|error| broken(&error))?,
            Err(_) => {
                let message = format!("no answer within {} ms", timeout.as_millis());
                return Err(RemoteError::unreachable(message));
            }
        };
        let status = response.status().as_u16();
        let body = whole_body(response).await?;
        match status {
            200 => Ok(body),
            _ => Err(refused(status, &body)),
        }
    }
}

impl Remote for HttpRemote {
    fn pull<'a>(
        &'a self,
        url: &'a str,
        token: Option<&'a str>,
        request: Bytes,
        timeout: Duration,
    ) -> Answering<'a> {
        Box::pin(self.ask(url, token, request, timeout))
    }
}

async fn whole_body(mut response: Response) -> Result<Bytes, RemoteError> {
    let mut body = BytesMut::new();
    // However slow the way is: it is one as long as something comes now and then.
    while let Some(chunk) = response.chunk().await.map_err(|error| broken(&error))? {
        if body.len() + chunk.len() > MAX_PULL_ANSWER_BYTES {
            let message = format!("the answer is of more than {MAX_PULL_ANSWER_BYTES} bytes");
            return Err(RemoteError { code: "internal".into(), message, is_refusal: false });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// The innermost cause says what happened; the others only repeat the address.
fn broken(error: &reqwest::Error) -> RemoteError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    RemoteError::unreachable(cause.to_string())
}

fn cut(text: &str, most_chars: usize) -> String {
    text.chars().take(most_chars).collect()
}

/// What an answer that is none of a pull says.
pub fn refused(status: u16, body: &[u8]) -> RemoteError {
    let told = serde_json::from_slice::<ErrorBody>(body);
    let (code, message) = match told {
        Ok(ErrorBody { error }) => (cut(&error.code, MAX_CODE_CHARS), cut(&error.message, MAX_MESSAGE_CHARS)),
        // Something else answers there.
        Err(_) => {
            ("unreachable".into(), format!("an answer with status {status} that is none of a member's"))
        }
    };
    // Whoever is not let in, or asks for what is not there, waits for people; all else may pass by itself.
    RemoteError { code, message, is_refusal: matches!(status, 400 | 401 | 403 | 405 | 413 | 415) }
}
