//! Which web pages may call this member from a browser (C-CONV-18).
//!
//! A browser sends the page's origin along, and asks first for what a plain form could not do. What is
//! answered here is only what browsers look at; it protects no data, keys do.

use std::sync::Arc;

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method};

const METHODS: &str = "GET, HEAD, POST, PUT, DELETE";
/// What a page may send that does not say what it wants to.
const HEADERS: &str = "accept, authorization, content-encoding, content-type, idempotency-key, last-event-id";
/// How long a browser may remember that it has asked, in seconds.
const MAX_AGE_S: &str = "600";

/// Whether a URL is the advertised one of a member of this cluster.
pub type IsMember = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The setting `cors_allow_origins`, and the cluster's own members.
#[derive(Clone)]
pub struct Cors {
    origins: Vec<String>,
    is_member: IsMember,
}

impl Cors {
    /// `origins` as browsers write them, or `*` alone; none: only pages of this cluster's members may call.
    pub fn new(origins: Vec<String>, is_member: IsMember) -> Self {
        Cors { origins, is_member }
    }

    /// What to tell the page that a request comes from, if it may call.
    pub fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        if self.origins.iter().any(|allowed| allowed == "*") {
            return Some(HeaderValue::from_static("*"));
        }
        let is_allowed = self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes())
            || origin.to_str().is_ok_and(|origin| (self.is_member)(origin));
        is_allowed.then(|| origin.clone())
    }

    /// Whether a browser asks if a page may send what it wants to send.
    pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
        method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// Says that another origin has another answer. Answers to anything but safe methods are not kept by caches.
    pub fn put_vary(headers: &mut HeaderMap) {
        headers.append(VARY, HeaderValue::from_static("origin"));
    }

    /// Lets the page read an answer.
    pub fn put_allowed(allowed: HeaderValue, headers: &mut HeaderMap) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
    }

    /// Lets the page send, also whatever headers it asks for: tools for tracing add theirs.
    pub fn put_preflight(asked: &HeaderMap, headers: &mut HeaderMap) {
        let wanted = asked.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        headers.insert(
            ACCESS_CONTROL_ALLOW_HEADERS,
            wanted.unwrap_or_else(|| HeaderValue::from_static(HEADERS)),
        );
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE_S));
        headers.append(VARY, HeaderValue::from_static("access-control-request-headers"));
    }
}
