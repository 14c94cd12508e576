//! One cluster for all tests of this binary, and a client that shows all of an answer.
//!
//! The cluster is started by the first test that asks, and ends with this process: its members watch their
//! stdin. What they leave on the disk lies under cargo's target directory, and the next run removes it.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::harness::Cluster;

/// Keys of the shared cluster; `all` may do everything.
pub const KEYS: &str = "all, reader:r, writer:w, deleter:d, admin:a, rw:rw, \
                        bound:r+w+d+a:own:|mine., half::own:, half:r:other:, \
                        split:a:split-a|split-b, split:r+w:split-a";
/// Mirrors between clusters of one machine, which with keys is not self-evident.
pub const LOOPBACK: [&str; 2] = ["--connector-allow", "127.0.0.0/8"];
pub const MAX_BODY_BYTES: usize = 12 << 20;
/// The one web page that may call.
pub const ORIGIN: &str = "https://page.example";

static SHARED: OnceCell<Vec<String>> = OnceCell::const_new();
static OTHER: OnceCell<Vec<String>> = OnceCell::const_new();
static TURN: AtomicUsize = AtomicUsize::new(0);

/// Where this process keeps its cluster's data, after what earlier ones left is gone.
fn clean_dir() -> tempfile::TempDir {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(root).expect("make a directory");
    for entry in std::fs::read_dir(root).expect("list a directory").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("api-").and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("api-{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(root).expect("make a directory")
}

async fn start_shared() -> Vec<String> {
    let max_body_bytes = MAX_BODY_BYTES.to_string();
    let mut arguments =
        vec!["--api-keys", KEYS, "--max-body-bytes", &max_body_bytes, "--cors-allow-origins", ORIGIN];
    arguments.extend(LOOPBACK);
    let cluster = Cluster::start_in(clean_dir(), None, 3, &arguments).await;
    let urls = cluster.urls();
    // It ends with this process.
    std::mem::forget(cluster);
    urls
}

async fn start_other() -> Vec<String> {
    let cluster =
        Cluster::start_named("other", clean_dir(), None, 1, &["--api-keys", KEYS, LOOPBACK[0], LOOPBACK[1]])
            .await;
    let urls = cluster.urls();
    std::mem::forget(cluster);
    urls
}

/// Another cluster, of one member, for mirrors.
pub async fn other() -> Api {
    let urls = OTHER.get_or_init(start_other).await.clone();
    Api { urls, http: client(), key: Some("all") }
}

/// The shared cluster, through a client of this test's own: connections belong to a test's runtime.
pub async fn api() -> Api {
    let urls = SHARED.get_or_init(start_shared).await.clone();
    Api { urls, http: client(), key: Some("all") }
}

pub fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(std::time::Duration::from_secs(60))
        .retry(reqwest::retry::never())
        .build()
        .expect("build a client")
}

/// A way to a cluster's members, with a key.
#[derive(Clone)]
pub struct Api {
    pub urls: Vec<String>,
    pub http: reqwest::Client,
    pub key: Option<&'static str>,
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Got {
    pub what: String,
    pub status: u16,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
    /// `null` if the body is not JSON.
    pub body: Value,
}

impl Api {
    /// The same cluster with another key.
    pub fn with_key(&self, key: impl Into<Option<&'static str>>) -> Api {
        Api { key: key.into(), ..self.clone() }
    }

    /// One member alone.
    pub fn at(&self, member: usize) -> Api {
        Api { urls: vec![self.urls[member % self.urls.len()].clone()], ..self.clone() }
    }

    fn url(&self, path: &str) -> String {
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        format!("{}{path}", self.urls[turn % self.urls.len()])
    }

    /// A request with nothing but what is said here; `path` may hold a query.
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let request = self.http.request(method, self.url(path));
        match self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// With a JSON body of these bytes.
    pub async fn raw(&self, method: &str, path: &str, body: impl Into<Vec<u8>>) -> Got {
        let request = self.request(method, path).header("content-type", "application/json");
        got(format!("{method} {path}"), request.body(body.into())).await
    }

    pub async fn get(&self, path: &str) -> Got {
        got(format!("GET {path}"), self.request("GET", path)).await
    }

    pub async fn delete(&self, path: &str) -> Got {
        got(format!("DELETE {path}"), self.request("DELETE", path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Got {
        self.raw("POST", path, body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Got {
        self.raw("PUT", path, body.to_string()).await
    }

    /// Writes `count` records to `topic`.
    pub async fn write(&self, topic: &str, count: usize) -> Got {
        let records: Vec<Value> = (0..count).map(|number| json!({ "data": number })).collect();
        self.post(&format!("/v0/topics/{topic}"), json!({ "records": records })).await
    }

    pub async fn diff(&self, topic: &str, body: Value) -> Got {
        self.post(&format!("/v0/topics/{topic}/diff"), body).await
    }

    pub async fn topic(&self, topic: &str) -> Got {
        self.get(&format!("/v0/topics/{topic}?touch=false")).await
    }
}

/// Sends `request`; a failure must have the shape of C-ERR-01, whatever it is.
pub async fn got(what: String, request: reqwest::RequestBuilder) -> Got {
    let response = request.send().await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = response.bytes().await.unwrap_or_else(|error| panic!("{what}: {error:?}")).to_vec();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let got = Got { what, status, headers, bytes, body };
    if status >= 300 && !got.what.starts_with("HEAD") {
        let error = &got.body["error"];
        let fields = got.body.as_object().map_or(0, |body| body.len());
        assert!(
            fields == 1 && error["code"].is_string() && error["message"].is_string(),
            "{}: {status} without the shape of an error: {}",
            got.what,
            String::from_utf8_lossy(&got.bytes)
        );
        let retry_after = got.header("retry-after").map(str::to_owned);
        let must_wait = matches!(status, 429 | 503);
        // C-ERR-02
        assert_eq!(retry_after.is_some_and(|it| it.parse::<u64>().is_ok_and(|it| it >= 1)), must_wait);
    }
    got
}

impl Got {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("is text"))
    }

    /// The body of an answer that must have this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}: {}", self.what, String::from_utf8_lossy(&self.bytes));
        self.body
    }

    /// The detail of a failure that must be this one.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Value {
        let body = self.expect(status);
        assert_eq!(body["error"]["code"], code, "{body}");
        body["error"]["detail"].clone()
    }
}
