//! A page in a real browser.
//!
//! What a page may do is decided by the browser: preflights, origins, how an `EventSource` ends. No client of ours
//! would notice if one of these were wrong.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::client::Client as Writer;
use crate::harness::{Cluster, PATIENCE, eventually, free_ports};

const PAGE: &str = include_str!("browser.html");
const DRIVER: &str = "chromedriver";
/// Set where there is no browser and none can be had: then this is not tested, and whoever set it knows.
const NO_BROWSER: &str = "ANTIPHON_NO_BROWSER";
const TOPIC: &str = "shown";
const PACE: Duration = Duration::from_millis(10);
/// Records that the page shows before its member dies, and after.
const ROWS: usize = 40;

/// The driver and all that it starts; dies with the test.
struct Driver {
    process: Child,
    url: String,
    /// Where the browser leaves what it likes to leave behind.
    _home: TempDir,
}

impl Driver {
    /// `None` where [`NO_BROWSER`] says so.
    fn start() -> Option<Driver> {
        if std::env::var_os(NO_BROWSER).is_some() {
            eprintln!("NOT TESTED: {NO_BROWSER} is set");
            return None;
        }
        let home = tempfile::tempdir().expect("make a directory");
        let port = free_ports(1)[0];
        let process = Command::new(DRIVER)
            .arg(format!("--port={port}"))
            .envs([("HOME", home.path()), ("TMPDIR", home.path())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        match process {
            Ok(process) => Some(Driver { process, url: format!("http://127.0.0.1:{port}"), _home: home }),
            Err(error) => panic!(
                "{DRIVER}: {error}; on Debian: apt-get install chromium chromium-driver; or set {NO_BROWSER} to leave \
                 the test out"
            ),
        }
    }

    async fn connect(&self) -> Client {
        let arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"];
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let capabilities = json!({ "goog:chromeOptions": { "args": arguments } });
        builder.capabilities(capabilities.as_object().expect("an object").clone());
        eventually("a browser", PATIENCE, async || builder.connect(&self.url).await.ok()).await
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let group = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        // Nothing can be done about what cannot be killed.
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        let _ = self.process.wait();
    }
}

/// Serves the page to whoever asks for anything.
async fn serve_page(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                if stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
                    continue;
                }
                return;
            }
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n";
            let answer = format!("{head}Content-Length: {}\r\n\r\n{PAGE}", PAGE.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        });
    }
}

/// Appends one record after the other, each until some member acks it; gives how many, once told to stop.
async fn write(urls: Vec<String>, stop: tokio::sync::watch::Receiver<bool>) -> u64 {
    let client = Writer::new();
    let mut number = 0u64;
    while !*stop.borrow() {
        number += 1;
        let body = json!({ "records": [{ "data": number }], "idempotency_key": number.to_string() });
        client.post_anywhere(&urls, &format!("/v0/topics/{TOPIC}"), &body).await;
        tokio::time::sleep(PACE).await;
    }
    number
}

/// What the page shows, row by row.
async fn rows(page: &Client) -> Vec<String> {
    let script = "return [...document.querySelectorAll('li')].map(row => row.textContent)";
    let rows = page.execute(script, Vec::new()).await.expect("ask the page");
    serde_json::from_value(rows).expect("a list of texts")
}

async fn rows_above(page: &Client, count: usize) -> Vec<String> {
    eventually("the page shows more records", PATIENCE, async || {
        let rows = rows(page).await;
        (rows.len() > count).then_some(rows)
    })
    .await
}

/// Number of the member that the page reads at.
async fn member_of(page: &Client, urls: &[String]) -> usize {
    let member = page.execute("return document.body.dataset.member", Vec::new()).await.expect("ask the page");
    urls.iter().position(|url| member == url.as_str()).expect("a member of the cluster")
}

/// C-CONV-18, C-WATCH-11: a page follows a topic, also from another origin and through the loss of its member.
#[tokio::test]
async fn a_page_shows_every_record_once_and_fails_over_to_the_next_member() {
    let Some(driver) = Driver::start() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let origin = format!("http://{}", listener.local_addr().expect("an address"));
    let serving = tokio::spawn(serve_page(listener));
    let mut cluster = Cluster::start_with(3, &["--cors-allow-origins", &origin]).await;
    let urls = cluster.urls();
    cluster.append(0, TOPIC, json!(0)).await.expect("make the topic");
    let page = driver.connect().await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writing = tokio::spawn(write(urls.clone(), stopped));

    page.goto(&format!("{origin}/?topic={TOPIC}&members={}", urls.join(","))).await.expect("open the page");
    let shown = rows_above(&page, ROWS).await;
    let first = member_of(&page, &urls).await;
    cluster.kill(first);
    rows_above(&page, shown.len() + ROWS).await;
    assert_ne!(member_of(&page, &urls).await, first);
    stop.send(true).expect("the writer runs");
    let last = writing.await.expect("the writer does not panic");
    let shown = rows_above(&page, usize::try_from(last).expect("a number of rows")).await;
    let expected: Vec<String> = (0..=last).map(|number| format!("{} {number}", number + 1)).collect();
    assert_eq!(shown, expected);
    page.close().await.expect("close the browser");
    serving.abort();
}
