//! Success answers: an object of the handler's fields that ends in the `performance` block.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use tokio::time::Instant;

use super::json::{JsonWriter, Millis};
use crate::error::Error;

/// What handlers return.
pub type Answer = Result<Response, Error>;

/// An answer in the making; the handler writes its fields into `json`.
pub struct Reply {
    pub json: JsonWriter,
    arrived: Instant,
}

impl Reply {
    /// Starts an answer of some `capacity_bytes` to a request that came in at `arrived`.
    pub fn new(arrived: Instant, capacity_bytes: usize) -> Self {
        let mut json = JsonWriter::with_capacity(capacity_bytes);
        json.open_object();
        Reply { json, arrived }
    }

    /// Ends the answer.
    pub fn finish(self, status: StatusCode) -> Response {
        self.finish_with(status, |_| {})
    }

    /// Ends the answer; `performance` adds fields to the block of that name.
    pub fn finish_with(mut self, status: StatusCode, performance: impl FnOnce(&mut JsonWriter)) -> Response {
        let server_total_ms = self.arrived.elapsed().as_secs_f64() * 1000.0;
        self.json.object_field("performance", |json| {
            json.field("server_total_ms", Millis(server_total_ms));
            performance(json);
        });
        self.json.close_object();
        let mut response = Response::new(Body::from(self.json.finish()));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// 201 if something was made, else 200.
pub fn created_or_ok(created: bool) -> StatusCode {
    if created { StatusCode::CREATED } else { StatusCode::OK }
}
