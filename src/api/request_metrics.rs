//! Requests by route and outcome, and the time that they took.
//!
//! A handler knows its route when the table of routes is made, and counts there: nothing is looked up with a request, and
//! counting one is two additions to numbers that nobody waits for. A layer would do the same and box every request once
//! more; the histograms of the crate `prometheus` would add to three numbers and to one of them in a loop.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::response::Response;
use parking_lot::Mutex;

use crate::telemetry::metrics::{Exposition, REQUEST_DURATION, REQUESTS, histogram, sample};
use crate::telemetry::seldom::Seldom;

/// Upper bounds of the time that a request takes, in nanoseconds. Above the last one there is one more bucket.
const BOUNDS_NS: [u64; 15] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];
const NS_PER_S: f64 = 1e9;

/// Outcomes: the class of a status by its first digit. The first one is no answer: the client went before there was one.
const OUTCOMES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
const NO_ANSWER: usize = 0;

/// A request that takes so long is worth a line.
const SLOW_REQUEST: Duration = Duration::from_secs(5);
/// Routes that say by their status whether this member is ready, which has lines of its own.
const PROBES: [&str; 2] = ["/v0/ready", "/readyz"];
/// Routes that wait for records.
const WAITING: [&str; 2] = ["/v0/topics/:topic/diff", "/v0/mirror/pull"];

/// What stands for all that no route takes.
const OTHER: &str = "other";

/// The counts of all routes of a member.
#[derive(Default)]
pub struct RequestMetrics {
    routes: Mutex<Vec<Arc<RouteMetrics>>>,
    lines: Arc<Lines>,
}

/// What is said in the log of all requests together.
struct Lines {
    failed: Seldom,
    slow: Seldom,
}

impl Default for Lines {
    fn default() -> Self {
        Lines {
            failed: Seldom::new(|line| tracing::warn!("{line}")),
            slow: Seldom::new(|line| tracing::warn!("{line}")),
        }
    }
}

impl RequestMetrics {
    /// The counts of a route. Its variable parts are shown as `:name`: not everything that reads labels copes with braces.
    pub fn route(&self, method: &'static str, path: &str) -> Arc<RouteMetrics> {
        let path = path.replace('{', ":").replace('}', "");
        let mut routes = self.routes.lock();
        if let Some(known) = routes.iter().find(|route| route.method == method && route.path == path) {
            return known.clone();
        }
        let outcomes = Default::default();
        let is_probe = PROBES.contains(&path.as_str());
        let may_wait = WAITING.contains(&path.as_str());
        let lines = self.lines.clone();
        let route = Arc::new(RouteMetrics { method, path, outcomes, is_probe, may_wait, lines });
        routes.push(route.clone());
        route
    }

    /// The counts of requests that no route takes.
    pub fn other(&self) -> Arc<RouteMetrics> {
        self.route(OTHER, OTHER)
    }

    /// Shows those routes that were asked for.
    pub fn put(&self, out: &mut Exposition) {
        let (mut requests, mut durations) = (Vec::new(), Vec::new());
        for route in self.routes.lock().iter() {
            let mut all = [0; BOUNDS_NS.len() + 1];
            let mut sum_ns = 0;
            for (outcome, counts) in OUTCOMES.iter().zip(&route.outcomes) {
                let buckets = counts.buckets.each_ref().map(|bucket| bucket.load(Relaxed));
                let count: u64 = buckets.iter().sum();
                if count > 0 {
                    let labels =
                        [("method", route.method), ("route", route.path.as_str()), ("status", *outcome)];
                    requests.push(sample(REQUESTS, &labels, count as f64));
                }
                all.iter_mut().zip(buckets).for_each(|(all, bucket)| *all += bucket);
                sum_ns += counts.sum_ns.load(Relaxed);
            }
            if all.iter().any(|count| *count > 0) {
                let bounds_s = BOUNDS_NS.iter().map(|bound| *bound as f64 / NS_PER_S).chain([f64::INFINITY]);
                let labels = [("method", route.method), ("route", route.path.as_str())];
                durations.push(histogram(&labels, bounds_s.zip(all), sum_ns as f64 / NS_PER_S));
            }
        }
        out.put(REQUESTS, requests);
        out.put(REQUEST_DURATION, durations);
    }
}

/// The counts of one route.
pub struct RouteMetrics {
    method: &'static str,
    path: String,
    outcomes: [Counts; OUTCOMES.len()],
    /// A failure of it is said in other words.
    is_probe: bool,
    /// It may take long because there is nothing to answer yet.
    may_wait: bool,
    lines: Arc<Lines>,
}

#[derive(Default)]
struct Counts {
    buckets: [AtomicU64; BOUNDS_NS.len() + 1],
    sum_ns: AtomicU64,
}

impl RouteMetrics {
    /// A request was answered.
    pub fn answered(&self, status: StatusCode, took: Duration) {
        self.count(usize::from(status.as_u16() / 100), took);
        if status.is_server_error() || took >= SLOW_REQUEST {
            self.tell(status, took);
        }
    }

    #[cold]
    fn tell(&self, status: StatusCode, took: Duration) {
        let (method, path, status, took_ms) = (self.method, &self.path, status.as_u16(), took.as_millis());
        if status >= 500 {
            if !self.is_probe {
                let words =
                    format_args!("a request failed with {status} after {took_ms} ms: {method} {path}");
                self.lines.failed.tell(words);
            }
        } else if !self.may_wait {
            self.lines.slow.tell(format_args!(
                "a request took {took_ms} ms until {status}, the upload of its body included: {method} {path}"
            ));
        }
    }

    fn count(&self, outcome: usize, took: Duration) {
        let Some(counts) = self.outcomes.get(outcome) else { return };
        // Five centuries fit.
        let took_ns = took.as_nanos() as u64;
        let bucket = BOUNDS_NS.iter().position(|bound| took_ns <= *bound).unwrap_or(BOUNDS_NS.len());
        counts.buckets[bucket].fetch_add(1, Relaxed);
        counts.sum_ns.fetch_add(took_ns, Relaxed);
    }
}

/// A handler whose requests are counted.
#[derive(Clone)]
pub struct Counted<H> {
    pub handler: H,
    pub route: Arc<RouteMetrics>,
}

impl<H, T, S> Handler<T, S> for Counted<H>
where
    H: Handler<T, S>,
    H::Future: Unpin,
{
    type Future = CountedFuture<H::Future>;

    fn call(self, request: Request, state: S) -> Self::Future {
        let under_way = UnderWay { route: self.route, started: Instant::now(), is_answered: false };
        CountedFuture { answering: self.handler.call(request, state), under_way }
    }
}

/// The answer of such a handler.
pub struct CountedFuture<F> {
    answering: F,
    under_way: UnderWay,
}

impl<F: Future<Output = Response> + Unpin> Future for CountedFuture<F> {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response> {
        let answered = Pin::new(&mut self.answering).poll(cx);
        if let Poll::Ready(response) = &answered {
            let under_way = &mut self.under_way;
            under_way.is_answered = true;
            under_way.route.answered(response.status(), under_way.started.elapsed());
        }
        answered
    }
}

struct UnderWay {
    route: Arc<RouteMetrics>,
    started: Instant,
    is_answered: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        match self.is_answered {
            true => {}
            // Which is answered above.
            false if std::thread::panicking() => {
                self.route.answered(StatusCode::INTERNAL_SERVER_ERROR, self.started.elapsed());
            }
            false => self.route.count(NO_ANSWER, self.started.elapsed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(metrics: &RequestMetrics) -> Vec<String> {
        let mut out = Exposition::default();
        metrics.put(&mut out);
        let text = out.finish().unwrap();
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn requests_are_counted_by_outcome_and_timed_by_route() {
        let metrics = RequestMetrics::default();
        let route = metrics.route("GET", "/a/{b}");
        assert!(shown(&metrics).is_empty(), "nobody has asked for it");
        route.answered(StatusCode::OK, Duration::from_micros(500));
        route.answered(StatusCode::CREATED, Duration::from_micros(501));
        route.answered(StatusCode::IM_A_TEAPOT, Duration::from_secs(31));
        route.count(NO_ANSWER, Duration::from_secs(30));
        let lines = shown(&metrics);
        for line in [
            r#"antiphon_http_requests_total{method="GET",route="/a/:b",status="none"} 1"#,
            r#"antiphon_http_requests_total{method="GET",route="/a/:b",status="2xx"} 2"#,
            r#"antiphon_http_requests_total{method="GET",route="/a/:b",status="4xx"} 1"#,
            r#"antiphon_http_request_duration_seconds_bucket{method="GET",route="/a/:b",le="0.0005"} 1"#,
            r#"antiphon_http_request_duration_seconds_bucket{method="GET",route="/a/:b",le="0.001"} 2"#,
            r#"antiphon_http_request_duration_seconds_bucket{method="GET",route="/a/:b",le="10"} 2"#,
            r#"antiphon_http_request_duration_seconds_bucket{method="GET",route="/a/:b",le="30"} 3"#,
            r#"antiphon_http_request_duration_seconds_bucket{method="GET",route="/a/:b",le="+Inf"} 4"#,
            r#"antiphon_http_request_duration_seconds_sum{method="GET",route="/a/:b"} 61.001001"#,
            r#"antiphon_http_request_duration_seconds_count{method="GET",route="/a/:b"} 4"#,
        ] {
            assert!(lines.iter().any(|found| found == line), "{line} is not in {lines:#?}");
        }
        // Three outcomes, and a histogram.
        assert_eq!(lines.len(), 3 + BOUNDS_NS.len() + 1 + 2);
    }

    #[test]
    fn a_route_that_is_named_twice_is_one() {
        let metrics = RequestMetrics::default();
        let (first, second) = (metrics.other(), metrics.other());
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &metrics.route("GET", "/a")));
    }

    #[tokio::test]
    async fn answers_panics_and_clients_that_went_are_told_apart() {
        use axum::body::Body;
        use futures_util::FutureExt;

        let metrics = RequestMetrics::default();
        let request = || Request::new(Body::empty());
        let answers = async || StatusCode::NO_CONTENT;
        Counted { handler: answers, route: metrics.route("GET", "/answers") }.call(request(), ()).await;
        let panics = async || -> StatusCode { panic!("as it was told to") };
        let handler = Counted { handler: panics, route: metrics.route("GET", "/panics") };
        let called = std::panic::AssertUnwindSafe(async { handler.call(request(), ()).await });
        assert!(called.catch_unwind().await.is_err());
        let waits = async || std::future::pending::<StatusCode>().await;
        let handler = Counted { handler: waits, route: metrics.route("GET", "/waits") };
        assert!(handler.call(request(), ()).now_or_never().is_none());
        let lines = shown(&metrics);
        for (route, status) in [("/answers", "2xx"), ("/panics", "5xx"), ("/waits", "none")] {
            let line = format!(
                r#"antiphon_http_requests_total{{method="GET",route="{route}",status="{status}"}} 1"#
            );
            assert!(lines.contains(&line), "{line} is not in {lines:#?}");
        }
        assert_eq!(lines.iter().filter(|line| line.contains("requests_total")).count(), 3);
    }
}
