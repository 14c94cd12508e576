//! Which web pages may call this member from a browser (C-CONV-18).
//!
//! A browser sends the page's origin along, and asks first for what a plain form could not do. What is
//! answered here is only what browsers look at; it protects no data, keys do.

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method};

const METHODS: &str = "GET, HEAD, POST, PUT, DELETE";
const HEADERS: &str = "accept, authorization, content-encoding, content-type, idempotency-key, last-event-id";
/// How long a browser may remember that it has asked, in seconds.
const MAX_AGE_S: &str = "600";

/// The setting `cors_allow_origins`.
#[derive(Debug, Clone, Default)]
pub struct Cors {
    origins: Vec<String>,
}

impl Cors {
    /// `origins` as browsers write them, or `*` alone; none: no page may call.
    pub fn new(origins: Vec<String>) -> Self {
        Cors { origins }
    }

    /// What to tell the page that a request comes from, if it may call.
    pub fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(ORIGIN).filter(|_| !self.origins.is_empty())?;
        if self.origins.iter().any(|allowed| allowed == "*") {
            return Some(HeaderValue::from_static("*"));
        }
        self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
    }

    /// Whether a browser asks if a page may send what it wants to send.
    pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
        method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// Lets the page read an answer.
    pub fn put_allowed(allowed: HeaderValue, headers: &mut HeaderMap) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
        headers.append(VARY, HeaderValue::from_static("origin"));
    }

    /// Lets the page send.
    pub fn put_preflight(headers: &mut HeaderMap) {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(HEADERS));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE_S));
    }
}
