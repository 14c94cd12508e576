//! How another cluster is asked, as a seam: over HTTP in production, by a call in a simulation.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use super::pull_budget::AnswerRoom;

/// Why another cluster gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteError {
    /// An error code of the API, or `unreachable`.
    pub code: String,
    pub message: String,
    /// Trying again does not help until somebody does something.
    pub is_refusal: bool,
}

impl RemoteError {
    pub fn unreachable(message: impl Into<String>) -> Self {
        RemoteError { code: "unreachable".into(), message: message.into(), is_refusal: false }
    }
}

pub type Answering<'a> = Pin<Box<dyn Future<Output = Result<Bytes, RemoteError>> + Send + 'a>>;

/// Asks members of other clusters.
pub trait Remote: Send + Sync + 'static {
    /// Sends the body of a pull to the member at `url` and gives the body of its answer, which must begin within
    /// `timeout`, and for which there must be `room`.
    fn pull<'a>(
        &'a self,
        url: &'a str,
        token: Option<&'a str>,
        request: Bytes,
        timeout: Duration,
        room: &'a mut AnswerRoom,
    ) -> Answering<'a>;
}
