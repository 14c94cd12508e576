//! Errors as answers: the one place where an [`Error`] becomes HTTP (C-ERR-01).
//!
//! Handlers and extractors fail with [`Error`] itself, so nothing in between can answer with a body of
//! another shape; axum's own rejections are turned into one where they arise.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use parking_lot::Mutex;

use super::json::{JsonWriter, Raw};
use crate::error::{Code, Error};
use crate::telemetry::seldom::Seldom;

/// The body of C-ERR-01.
pub fn error_body(error: &Error) -> Bytes {
    let mut json = JsonWriter::with_capacity(160);
    // Written back from a parsed value, so it cannot fail; were it to, an error without its detail still
    // is a good answer.
    let detail = error.detail.as_ref().and_then(|detail| serde_json::to_string(detail).ok());
    json.object(|json| {
        json.object_field("error", |json| {
            json.field("code", error.code.name());
            json.field("message", error.message.as_str());
            json.field_if_some("detail", detail.as_deref().map(Raw));
        });
    });
    json.finish()
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(error_body(&self)));
        *response.status_mut() =
            StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self.code.status(), 429 | 503) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.code == Code::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// For what cannot happen unless there is a bug in a lower room; the log has the words, the client a 500.
#[track_caller]
pub fn internal(what: impl std::fmt::Display) -> Error {
    /// By where in this program it is found, so that no fault hides another one.
    static LINES: Mutex<BTreeMap<(&str, u32), Arc<Seldom>>> = Mutex::new(BTreeMap::new());
    let place = Location::caller();
    let lines = {
        let mut all = LINES.lock();
        let seldom = || Arc::new(Seldom::new(|line| tracing::error!("{line}")));
        all.entry((place.file(), place.line())).or_insert_with(seldom).clone()
    };
    lines.tell(format_args!("a request failed for a reason that is a bug: {what}"));
    Error::new(Code::Internal, "something went wrong inside the server; its log says what")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    async fn answer(error: Error) -> (Response<()>, Value) {
        let (parts, body) = error.into_response().into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (Response::from_parts(parts, ()), serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn an_error_has_the_shape_of_the_contract() {
        // C-ERR-01
        let (head, body) = answer(Error::topic_not_found("a\"b")).await;
        assert_eq!(head.status(), 404);
        assert_eq!(head.headers()["content-type"], "application/json");
        assert_eq!(
            body,
            json!({ "error": {
                "code": "topic_not_found", "message": "no topic \"a\\\"b\"", "detail": { "topic": "a\"b" }
            } })
        );
        let (_, body) = answer(Error::invalid("x")).await;
        assert_eq!(body["error"].get("detail"), None);
    }

    #[tokio::test]
    async fn what_may_pass_says_when_to_come_back() {
        // C-ERR-02
        for code in (1..=u8::MAX).filter_map(Code::from_number) {
            let (head, _) = answer(Error::new(code, "x")).await;
            assert_eq!(head.status().as_u16(), code.status());
            let expected = matches!(code.status(), 429 | 503).then_some("1");
            let found = head.headers().get("retry-after").map(|value| value.to_str().unwrap());
            assert_eq!(found, expected);
        }
    }
}
