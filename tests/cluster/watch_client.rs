//! Watchers that lose their connections, or drop them, and go on at any member.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::PATIENCE;
use crate::watch_oracle::{Book, Progress};

/// What one connection lives for, in milliseconds, unless it breaks.
const CONNECTED_MS: std::ops::Range<u64> = 500..6_000;
/// What some stay away for between two, in milliseconds.
const AWAY_MS: std::ops::Range<u64> = 1_000..5_000;
const AWAY_PERCENT: u32 = 15;
/// Of those that could go on with their session, so many do.
const RESUME_PERCENT: u32 = 60;
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const HEARTBEAT_MS: u64 = 1000;

/// The head of each topic, once nothing more is written.
pub type Ends = Option<Arc<BTreeMap<String, u64>>>;

/// How often a watcher came to its connections in which way.
#[derive(Debug, Default, Clone, Copy)]
pub struct Connects {
    /// By a new session, or a new subscription, with its own cursors.
    pub anew: u64,
    /// By its session and `Last-Event-ID`, at any member.
    pub resumed: u64,
    /// Not because the watcher wanted another one.
    pub lost: u64,
}

/// One watcher.
pub struct Watcher {
    pub name: String,
    pub is_web_socket: bool,
    /// The label of the records that it does not want.
    pub unwanted: &'static str,
    pub topics: BTreeMap<String, Progress>,
    pub connects: Connects,
    urls: Vec<String>,
    http: reqwest::Client,
    book: Arc<Book>,
    /// Path of the session's stream, and the id of the last event in it.
    session: Option<(String, String)>,
}

/// An open stream.
enum Line {
    Events { response: reqwest::Response, buffer: String },
    Socket(Box<WebSocketStream<TcpStream>>),
}

/// What came on it: id, name and data.
struct Told {
    id: String,
    name: String,
    data: Value,
}

impl Line {
    /// The next event; `None` at the end. Nothing is lost if this is dropped before it is done.
    async fn next(&mut self) -> Option<Told> {
        match self {
            Line::Events { response, buffer } => loop {
                if let Some((frame, rest)) = buffer.split_once("\n\n") {
                    let field =
                        |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("");
                    let data = serde_json::from_str(field("data: ")).unwrap_or_default();
                    let told = Told { id: field("id: ").into(), name: field("event: ").into(), data };
                    *buffer = rest.to_owned();
                    return Some(told);
                }
                buffer.push_str(std::str::from_utf8(&response.chunk().await.ok()??).ok()?);
            },
            Line::Socket(socket) => loop {
                if let Message::Text(text) = socket.next().await?.ok()? {
                    let data: Value = serde_json::from_str(&text).ok()?;
                    let name = data["op"].as_str()?.to_owned();
                    return Some(Told { id: String::new(), name, data });
                }
            },
        }
    }
}

impl Watcher {
    pub fn new(
        name: String,
        is_web_socket: bool,
        unwanted: &'static str,
        topics: &[&str],
        urls: &[String],
        book: &Arc<Book>,
    ) -> Watcher {
        Watcher {
            name,
            is_web_socket,
            unwanted,
            topics: topics.iter().map(|topic| ((*topic).to_owned(), Progress::default())).collect(),
            connects: Connects::default(),
            urls: urls.to_vec(),
            http: reqwest::Client::builder().no_proxy().build().expect("build a client"),
            book: book.clone(),
            session: None,
        }
    }

    /// Watches until everything up to `ends` has come.
    pub async fn run(mut self, mut ends: watch::Receiver<Ends>) -> Watcher {
        let mut deadline = None;
        while !self.is_done(&ends) {
            if ends.borrow().is_some()
                && *deadline.get_or_insert(Instant::now() + 2 * PATIENCE) < Instant::now()
            {
                self.book.complain(format!("{} does not get to the end: {:?}", self.name, self.cursors()));
                break;
            }
            let Ok(Some(mut line)) = timeout(PATIENCE, self.connect()).await else {
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            };
            let until = Instant::now() + Duration::from_millis(rand::random_range(CONNECTED_MS));
            while !self.is_done(&ends) {
                tokio::select! {
                    biased;
                    _ = ends.changed() => {}
                    () = tokio::time::sleep_until(until) => break,
                    told = line.next() => match told {
                        Some(told) => self.take(told),
                        None => {
                            self.connects.lost += 1;
                            break;
                        }
                    },
                }
            }
            drop(line);
            if rand::random_ratio(AWAY_PERCENT, 100) && !self.is_done(&ends) {
                tokio::time::sleep(Duration::from_millis(rand::random_range(AWAY_MS))).await;
            }
        }
        self
    }

    fn cursors(&self) -> BTreeMap<&str, u64> {
        self.topics.iter().map(|(topic, progress)| (topic.as_str(), progress.cursor)).collect()
    }

    fn is_done(&self, ends: &watch::Receiver<Ends>) -> bool {
        let ends = ends.borrow();
        let Some(ends) = ends.as_ref() else { return false };
        self.topics.iter().all(|(topic, progress)| ends.get(topic).is_some_and(|end| progress.cursor >= *end))
    }

    fn take(&mut self, told: Told) {
        let Told { id, name, data } = told;
        // Heartbeats and the like, the answer to `subscribe`, and what a member says that ends.
        if data.is_null() || matches!(name.as_str(), "subscribed" | "error") {
            return;
        }
        let topic = data["topic"].as_str().unwrap_or_default();
        match self.topics.get_mut(topic) {
            Some(progress) => self.book.told(&self.name, self.unwanted, progress, &name, &data),
            None => self.book.complain(format!("{} did not ask for {name} {data}", self.name)),
        }
        if let Some((_, last_id)) = &mut self.session
            && !id.is_empty()
        {
            *last_id = id;
        }
    }

    /// Opens a stream at some member; `None` if that did not work.
    async fn connect(&mut self) -> Option<Line> {
        let url = self.urls[rand::random_range(0..self.urls.len())].clone();
        if self.is_web_socket {
            return self.subscribe(&url).await;
        }
        // Without an id nobody but the member knows what has come.
        let resumable = self.session.as_ref().filter(|(_, last_id)| !last_id.is_empty());
        let (path, last_id) = match resumable {
            Some((path, last_id)) if rand::random_ratio(RESUME_PERCENT, 100) => {
                (path.clone(), last_id.clone())
            }
            _ => {
                let path = self.create(&url).await?;
                self.session = Some((path.clone(), String::new()));
                (path, String::new())
            }
        };
        let mut request = self.http.get(format!("{url}{path}"));
        if !last_id.is_empty() {
            request = request.header("last-event-id", &last_id);
        }
        let response = request.send().await.ok()?;
        if !response.status().is_success() {
            if response.status() == 404 {
                self.session = None;
            }
            return None;
        }
        match last_id.is_empty() {
            true => self.connects.anew += 1,
            false => self.connects.resumed += 1,
        }
        Some(Line::Events { response, buffer: String::new() })
    }

    fn wanted_topics(&self) -> Value {
        self.topics
            .iter()
            .map(|(topic, progress)| (topic.clone(), json!({ "from_seq": progress.cursor })))
            .collect()
    }

    /// Makes a session from the watcher's own cursors; gives the path of its stream.
    async fn create(&mut self, url: &str) -> Option<String> {
        let body =
            json!({ "topics": self.wanted_topics(), "node": self.unwanted, "heartbeat_ms": HEARTBEAT_MS })
                .to_string();
        let request =
            self.http.post(format!("{url}/v0/watch")).header("content-type", "application/json").body(body);
        let answer = request.send().await.ok().filter(|answer| answer.status().is_success())?;
        let answer: Value = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
        answer["stream_url"].as_str().map(str::to_owned)
    }

    async fn subscribe(&mut self, url: &str) -> Option<Line> {
        let stream = TcpStream::connect(url.trim_start_matches("http://")).await.ok()?;
        let address = format!("{}/v0/ws", url.replace("http://", "ws://"));
        let (mut socket, _) = tokio_tungstenite::client_async(address, stream).await.ok()?;
        let command = json!({ "op": "subscribe", "topics": self.wanted_topics(), "node": self.unwanted });
        socket.send(Message::text(command.to_string())).await.ok()?;
        let mut line = Line::Socket(Box::new(socket));
        // A member that looks for a leader refuses, which is no reason to wait for records.
        let answer = line.next().await.filter(|answer| answer.name == "subscribed");
        answer?;
        self.connects.anew += 1;
        Some(line)
    }
}
