//! A client of event streams that reads them as they come, line by line, and a WebSocket client.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::harness::PATIENCE;
use crate::shared::Api;

/// One frame of a stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Event {
    /// Empty for a frame without one.
    pub id: String,
    /// The event's name; `:` for a comment, `retry` for that.
    pub name: String,
    pub data: Value,
    /// Comment or retry as written.
    pub text: String,
}

/// An open event stream.
pub struct Events {
    response: reqwest::Response,
    buffer: String,
}

/// Opens `path` with these headers; the answer must be a stream.
pub async fn events(api: &Api, path: &str, headers: &[(&str, &str)]) -> Events {
    let mut request = api.request("GET", path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status().as_u16(), 200, "{path}");
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    Events { response, buffer: String::new() }
}

impl Events {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name).and_then(|value| value.to_str().ok())
    }

    /// The next frame; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((frame, rest)) = self.buffer.split_once("\n\n") {
                let (frame, rest) = (frame.to_owned(), rest.to_owned());
                self.buffer = rest;
                return Some(parse(&frame));
            }
            let chunk = timeout(PATIENCE, self.response.chunk()).await.expect("no frame in time");
            match chunk {
                Ok(Some(chunk)) => self.buffer.push_str(std::str::from_utf8(&chunk).expect("is text")),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// The next frame that is no comment and no retry.
    pub async fn event(&mut self) -> Option<Event> {
        loop {
            let event = self.next().await?;
            if event.name != ":" && event.name != "retry" {
                return Some(event);
            }
        }
    }

    /// The next event, which must have this name.
    pub async fn expect(&mut self, name: &str) -> Event {
        let event = self.event().await.unwrap_or_else(|| panic!("the stream ended before {name}"));
        assert_eq!(event.name, name, "{event:?}");
        event
    }

    /// The next event with this name, which may come after any number of `other` ones.
    pub async fn expect_among(&mut self, name: &str, other: &str) -> Event {
        loop {
            let event = self.event().await.unwrap_or_else(|| panic!("the stream ended before {name}"));
            if event.name != other {
                assert_eq!(event.name, name, "{event:?}");
                return event;
            }
        }
    }

    /// Reads records of `topic` until this seq; gives their seqs.
    pub async fn seqs_up_to(&mut self, topic: &str, last: u64) -> Vec<u64> {
        let mut seqs = Vec::new();
        while seqs.last() != Some(&last) {
            let event = self.event().await.expect("the stream goes on");
            if event.name == "record" && event.data["topic"] == topic {
                seqs.extend(seqs_of(&event.data));
            } else {
                assert_eq!(event.name, "caught-up", "{event:?}");
            }
        }
        seqs
    }
}

pub fn seqs_of(frame: &Value) -> Vec<u64> {
    frame["records"].as_array().expect("records").iter().filter_map(|it| it["$seq"].as_u64()).collect()
}

fn parse(frame: &str) -> Event {
    let mut event = Event::default();
    for line in frame.lines() {
        match line.split_once(": ").expect("name and value") {
            ("", text) => (event.name, event.text) = (":".into(), text.into()),
            ("retry", text) => (event.name, event.text) = ("retry".into(), text.into()),
            ("id", id) => event.id = id.into(),
            ("event", name) => event.name = name.into(),
            ("data", data) => event.data = serde_json::from_str(data).expect("data is JSON"),
            other => panic!("a line of no kind: {other:?}"),
        }
    }
    event
}

type Stream = tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>;

/// A WebSocket.
#[derive(Debug)]
pub struct Socket(Stream);

/// Opens a socket at the first member of `api` with its key; the status if that is refused.
pub async fn socket(api: &Api) -> Result<Socket, u16> {
    socket_over(api, tokio::net::TcpStream::connect(address(api)).await.expect("connect")).await
}

/// A connection to the first member of `api` that takes little while nobody reads: the system would take tens of
/// megabytes for a reader with an ordinary buffer.
pub async fn narrow_connection(api: &Api) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(256 << 10).expect("a small buffer");
    socket.connect(address(api).parse().expect("an address")).await.expect("connect")
}

fn address(api: &Api) -> &str {
    api.urls[0].trim_start_matches("http://")
}

/// As [`socket`], over a connection that there is.
pub async fn socket_over(api: &Api, stream: tokio::net::TcpStream) -> Result<Socket, u16> {
    let url = format!("{}/v0/ws", api.urls[0].replace("http://", "ws://"));
    let mut request = url.into_client_request().expect("a request");
    if let Some(key) = api.key {
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().expect("a header"));
    }
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(Socket(socket)),
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("no socket: {error}"),
    }
}

pub fn close_frame(code: u16) -> CloseFrame {
    CloseFrame { code: code.into(), reason: "bye".into() }
}

impl Socket {
    pub async fn send(&mut self, command: Value) {
        self.raw(Message::text(command.to_string())).await;
    }

    /// Sends them all at once.
    pub async fn send_together(&mut self, commands: impl IntoIterator<Item = Value>) {
        for command in commands {
            self.0.feed(Message::text(command.to_string())).await.expect("take a message");
        }
        self.0.flush().await.expect("send messages");
    }

    pub async fn raw(&mut self, message: Message) {
        self.0.send(message).await.expect("send a message");
    }

    /// What lies below.
    pub fn connection(&mut self) -> &mut tokio::net::TcpStream {
        self.0.get_mut()
    }

    /// The code of the Close with which the member ends the socket; `None` for one without a code.
    pub async fn close_code(&mut self) -> Option<u16> {
        let mut code = None;
        while let Some(message) = timeout(PATIENCE, self.0.next()).await.expect("no end in time") {
            match message.expect("the connection ends in order") {
                Message::Close(frame) => code = Some(frame.map(|frame| u16::from(frame.code))),
                other => panic!("an unexpected message: {other:?}"),
            }
        }
        code.expect("a Close came")
    }

    /// The next message; `None` once the socket is closed.
    pub async fn next(&mut self) -> Option<Value> {
        let message = timeout(PATIENCE, self.0.next()).await.expect("no message in time")?;
        match message.ok()? {
            Message::Text(text) => Some(serde_json::from_str(&text).expect("is JSON")),
            Message::Pong(payload) => Some(serde_json::json!({ "pong of": payload.len() })),
            Message::Close(_) => None,
            other => panic!("an unexpected message: {other:?}"),
        }
    }

    /// The next message, which must have this `op`.
    pub async fn expect(&mut self, op: &str) -> Value {
        let message = self.next().await.unwrap_or_else(|| panic!("closed before {op}"));
        assert_eq!(message["op"], op, "{message}");
        message
    }
}

/// Waits a moment in which nothing is to happen.
pub async fn quiet(events: &mut Events, time: Duration) -> bool {
    timeout(time, events.event()).await.is_err()
}

/// Streams that are open at the first member of `api`, as its metrics say.
pub async fn stream_count(api: &Api) -> u64 {
    let text = String::from_utf8(api.get("/v0/metrics").await.bytes).expect("is text");
    let line = text.lines().find_map(|line| line.strip_prefix("antiphon_sse_connections "));
    line.and_then(|count| count.parse().ok()).expect("a count")
}
