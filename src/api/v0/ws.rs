//! `GET /v0/ws`: one socket for reading and writing (contract section 18).
//!
//! Commands are carried out one after another, in the order in which they came: that is what orders publishes,
//! and answers too. Records go out meanwhile. What comes faster than it can be carried out is not read from
//! the socket, so the client waits.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRef, FromRequestParts, Request, State};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::frame::{Notice, encode_records, error_message, refusal_message};
use super::watch::Places;
use super::ws_message::{Done, carry_out};
use crate::api::Api;
use crate::api::call::{Gate, check_origin};
use crate::api::problem::internal;
use crate::api::reply::Answer;
use crate::api::write_progress::WriteProgress;
use crate::auth::{Caller, Place};
use crate::engine::{Next, Step, StreamPlace, Watcher};
use crate::error::{Code, Error};
use crate::limits::{MAX_TOPICS_PER_WATCH, MAX_WAITING_PUBLISH_BYTES, MAX_WAITING_PUBLISHES};

/// What a socket reads at once. The default would cost every idle one 128 KiB.
const READ_BUFFER_BYTES: usize = 4 << 10;
/// How long a client may take to close after it was told to.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Close code of RFC 6455 for a server that goes away.
const GOING_AWAY: u16 = 1001;
const TRY_AGAIN_LATER: u16 = 1013;

pub async fn open(State(api): State<Api>, request: Request) -> Answer {
    let gate = Gate::from_ref(&api);
    let (mut parts, _) = request.into_parts();
    check_origin(&parts)?;
    let caller = gate.authenticate(&parts.headers)?;
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    let upgrade = upgrade.map_err(|rejection| Error::invalid(rejection.body_text()))?;
    api.engine.admit()?;
    let places = (api.engine.enter_stream()?, caller.enter_stream(api.limits.max_streams_per_key)?);
    let progress = parts.extensions.get().cloned().unwrap_or_default();
    let max_bytes = api.limits.max_body_bytes();
    let upgrade = upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(max_bytes)
        .max_frame_size(max_bytes);
    Ok(upgrade.on_upgrade(move |socket| Socket::new(api, caller, socket, progress, places).run()))
}

struct Socket {
    api: Api,
    caller: Caller,
    socket: WebSocket,
    progress: Arc<WriteProgress>,
    watcher: Watcher,
    /// Slot and topic of what is followed.
    slots: HashMap<Arc<str>, u32>,
    /// Commands that wait for their turn, and their bytes.
    commands: VecDeque<String>,
    commands_bytes: usize,
    working: Option<BoxFuture<'static, Done>>,
    opened: Instant,
    _places: (StreamPlace, Place),
}

enum Event {
    Done(Done),
    Came(Option<Result<Message, axum::Error>>),
    Told(Result<Next, Error>),
}

/// The client is gone, or too slow.
struct Gone;

impl Socket {
    fn new(
        api: Api,
        caller: Caller,
        socket: WebSocket,
        progress: Arc<WriteProgress>,
        places: (StreamPlace, Place),
    ) -> Self {
        Socket {
            watcher: api.engine.watcher(encode_records),
            api,
            caller,
            socket,
            progress,
            slots: HashMap::new(),
            commands: VecDeque::new(),
            commands_bytes: 0,
            working: None,
            opened: Instant::now(),
            _places: places,
        }
    }

    async fn run(mut self) {
        loop {
            if self.api.engine.is_draining() {
                let error =
                    Error::new(Code::ShuttingDown, "this member is shutting down; connect to any other");
                return self.close_with(error, GOING_AWAY, "shutting down").await;
            }
            if self.api.engine.is_out_of_touch(self.opened) {
                let error = self.api.engine.out_of_touch();
                return self.close_with(error, TRY_AGAIN_LATER, "out of touch with the leader").await;
            }
            let event = self.next_event().await;
            if self.handle(event).await.is_err() {
                return;
            }
        }
    }

    fn takes_commands(&self) -> bool {
        self.commands.len() < MAX_WAITING_PUBLISHES && self.commands_bytes < MAX_WAITING_PUBLISH_BYTES
    }

    async fn next_event(&mut self) -> Event {
        if self.working.is_none()
            && let Some(command) = self.commands.pop_front()
        {
            self.commands_bytes -= command.len();
            self.working = Some(carry_out(self.api.clone(), self.caller.clone(), command).boxed());
        }
        let takes_commands = self.takes_commands();
        let working = async {
            match &mut self.working {
                Some(working) => working.await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            done = working => {
                self.working = None;
                Event::Done(done)
            }
            told = self.watcher.next() => Event::Told(told),
            came = self.socket.recv(), if takes_commands => Event::Came(came),
        }
    }

    async fn handle(&mut self, event: Event) -> Result<(), Gone> {
        match event {
            Event::Done(done) => self.finish(done).await,
            Event::Came(came) => self.take(came).await,
            Event::Told(Ok(Next::Rung)) => Ok(()),
            Event::Told(Ok(Next::Step { topic, step, .. })) => {
                self.tell(topic, step).await?;
                // Records without end do not keep commands out.
                match self.takes_commands().then(|| self.socket.recv().now_or_never()).flatten() {
                    Some(came) => self.take(came).await,
                    None => Ok(()),
                }
            }
            Event::Told(Err(error)) => {
                self.send(error_message(&error, None)).await?;
                Err(Gone)
            }
        }
    }

    async fn take(&mut self, came: Option<Result<Message, axum::Error>>) -> Result<(), Gone> {
        match came {
            Some(Ok(Message::Text(text))) => {
                self.commands_bytes += text.len();
                self.commands.push_back(text.as_str().to_owned());
                Ok(())
            }
            Some(Ok(Message::Binary(_))) => {
                let words = "commands are text messages";
                self.send(refusal_message("unsupported_message", words, None, None)).await
            }
            // Pings are answered by the library, with the next write or read.
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
            Some(Ok(Message::Close(_)) | Err(_)) | None => Err(Gone),
        }
    }

    async fn finish(&mut self, done: Done) -> Result<(), Gone> {
        match done {
            Done::Answer(answer) => self.send(answer).await,
            Done::Subscribe { places, answer, too_many } => {
                let follows = self.subscribe(places);
                self.send(if follows { answer } else { too_many }).await
            }
            Done::Unsubscribe { topics, answer } => {
                for topic in topics {
                    if let Some(slot) = self.slots.remove(topic.as_str()) {
                        self.watcher.unfollow(slot);
                    }
                }
                self.send(answer).await
            }
        }
    }

    /// A second subscribe of a topic replaces the first (C-WS-05). `false` if there would be too many.
    fn subscribe(&mut self, places: Places) -> bool {
        let names: Vec<Arc<str>> = places.iter().map(|(place, _)| place.shared.read().name.clone()).collect();
        let added = names.iter().filter(|name| !self.slots.contains_key(*name)).count();
        if self.slots.len() + added > MAX_TOPICS_PER_WATCH {
            return false;
        }
        for (name, (place, view)) in names.into_iter().zip(places) {
            if let Some(slot) = self.slots.remove(&name) {
                self.watcher.unfollow(slot);
            }
            self.slots.insert(name, self.watcher.follow(place, &view));
        }
        true
    }

    async fn tell(&mut self, topic: Arc<str>, step: Step) -> Result<(), Gone> {
        let message = match step {
            Step::Records(frame) => frame.bytes,
            Step::Passed => return Ok(()),
            Step::Tombstone(tombstone) => Notice::Tombstone(&tombstone).message(&topic),
            Step::CaughtUp { head_seq } => Notice::CaughtUp { head_seq }.message(&topic),
            Step::Deleted { head_seq } => {
                self.slots.remove(&topic);
                Notice::Deleted { head_seq }.message(&topic)
            }
        };
        self.send(message).await
    }

    async fn send(&mut self, message: Bytes) -> Result<(), Gone> {
        let message = match Utf8Bytes::try_from(message) {
            Ok(text) => Message::Text(text),
            Err(error) => {
                internal(format_args!("a message is no text: {error}"));
                return Err(Gone);
            }
        };
        let mut sending = std::pin::pin!(self.socket.send(message));
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => return sent.map_err(|_| Gone),
                has_moved = self.progress.moves() => if !has_moved {
                    return Err(Gone);
                }
            }
        }
    }

    /// C-WS-06. What is under way is finished first.
    async fn close_with(mut self, error: Error, code: u16, reason: &'static str) {
        if let Some(working) = self.working.take()
            && let Done::Answer(answer) = working.await
            && self.send(answer).await.is_err()
        {
            return;
        }
        if self.send(error_message(&error, None)).await.is_err() {
            return;
        }
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        let closing = async {
            if self.socket.send(Message::Close(Some(frame))).await.is_ok() {
                // Until the client has closed too.
                while let Some(Ok(_)) = self.socket.recv().await {}
            }
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
    }
}
