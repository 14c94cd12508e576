//! `GET /v0/ws`: one socket for reading and writing (contract section 18).
//!
//! Commands are carried out one after another, in the order in which they came: that is what orders publishes,
//! and answers too. Records go out meanwhile. What comes faster than it can be carried out is not read from
//! the socket, so the client waits.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::sync::Arc;

use axum::extract::{FromRef, Request, State};
use bytes::Bytes;
use futures_util::FutureExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::frame::{Notice, encode_records, error_message, refusal_message};
use super::watch::Places;
use super::watch_body::check_views;
use super::ws_message::{Done, carry_out};
use crate::api::Api;
use crate::api::call::{Gate, check_origin};
use crate::api::problem::internal;
use crate::api::reply::Answer;
use crate::api::web_socket::{Bounds, Ending, GOING_AWAY, Message, TRY_AGAIN_LATER, WebSocket, upgrade};
use crate::api::write_progress::WriteProgress;
use crate::auth::{Caller, Place};
use crate::engine::{Hold, Next, Step, StreamPlace, View, Watcher};
use crate::error::{Code, Error};
use crate::limits::{
    MAX_SOCKET_MESSAGE_BYTES, MAX_TOPICS_PER_WATCH, MAX_WAITING_PUBLISH_BYTES, MAX_WAITING_PUBLISHES,
};
use crate::task::{self, Begun};

pub async fn open(State(api): State<Api>, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    check_origin(&parts)?;
    let caller = Gate::from_ref(&api).authenticate(&parts)?;
    let mut request = Request::from_parts(parts, body);
    let (response, on_upgrade) = match upgrade(&mut request) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return Ok(*refusal),
    };
    api.engine.admit()?;
    let places = (api.engine.enter_stream()?, caller.enter_stream(api.limits.max_streams_per_key)?);
    let progress = request.extensions().get().cloned().unwrap_or_default();
    let mut charge = api.budget.charge(&caller);
    let admit = move |bytes: usize| match bytes.checked_sub(charge.bytes()) {
        Some(more) => charge.add(more).is_ok(),
        None => {
            charge.give_back(charge.bytes() - bytes);
            true
        }
    };
    let max_message_bytes = MAX_SOCKET_MESSAGE_BYTES.min(api.limits.max_body_bytes());
    tokio::spawn(async move {
        // An error is a client that has gone before it got the answer.
        if let Ok(connection) = on_upgrade.await {
            let bounds = Bounds { max_message_bytes, ..Bounds::default() };
            let socket = WebSocket::new(TokioIo::new(connection), bounds, Box::new(admit));
            Socket::new(api, caller, socket, progress, places).run().await;
        }
    });
    Ok(response)
}

type ClientSocket = WebSocket<TokioIo<Upgraded>>;

/// A topic that is followed.
struct Followed {
    slot: u32,
    view: Arc<View>,
}

struct Socket {
    api: Api,
    caller: Caller,
    socket: ClientSocket,
    progress: Arc<WriteProgress>,
    watcher: Watcher,
    followed: HashMap<Arc<str>, Followed>,
    /// What the views of these hold.
    hold: Option<Hold>,
    /// Commands that wait for their turn, and their bytes.
    commands: VecDeque<String>,
    commands_bytes: usize,
    /// Gets on while the socket waits for its reader.
    working: Option<Begun<Done>>,
    /// Memory of the command that is carried out, and then of its answer, which may repeat much of it.
    working_bytes: usize,
    /// What comes is not read, as enough waits.
    is_deaf: bool,
    opened: Instant,
    _places: (StreamPlace, Place),
}

enum Event {
    Done(Done),
    Came(Result<Message, Ending>),
    Told(Result<Next, Error>),
}

impl Socket {
    fn new(
        api: Api,
        caller: Caller,
        socket: ClientSocket,
        progress: Arc<WriteProgress>,
        places: (StreamPlace, Place),
    ) -> Self {
        Socket {
            watcher: api.engine.watcher(encode_records, api.frame_room(&caller)),
            api,
            caller,
            socket,
            progress,
            followed: HashMap::new(),
            hold: None,
            commands: VecDeque::new(),
            commands_bytes: 0,
            working: None,
            working_bytes: 0,
            is_deaf: false,
            opened: Instant::now(),
            _places: places,
        }
    }

    async fn run(mut self) {
        loop {
            if self.api.engine.is_closing() {
                let error =
                    Error::new(Code::ShuttingDown, "this member is shutting down; connect to any other");
                return self.close_with(error, GOING_AWAY, "shutting down").await;
            }
            if self.api.engine.is_out_of_touch(self.opened) {
                let error = self.api.engine.out_of_touch();
                return self.close_with(error, TRY_AGAIN_LATER, "out of touch with the leader").await;
            }
            let event = self.next_event().await;
            if let Err(ending) = self.handle(event).await {
                self.socket.end(ending).await;
                // Its place is free once all that it has begun is done.
                if let Some(working) = self.working {
                    working.await;
                }
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
            self.working_bytes = command.capacity();
            let work = carry_out(self.api.clone(), self.caller.clone(), command).boxed();
            self.working = Some(task::begin(work));
        }
        let takes_commands = self.takes_commands();
        if std::mem::replace(&mut self.is_deaf, !takes_commands) && takes_commands {
            self.socket.restart_deadline();
        }
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

    async fn handle(&mut self, event: Event) -> Result<(), Ending> {
        match event {
            Event::Done(done) => {
                self.finish(done).await?;
                self.socket.release(std::mem::take(&mut self.working_bytes));
                Ok(())
            }
            Event::Came(came) => self.take(came?).await,
            Event::Told(Ok(Next::Rung)) => Ok(()),
            Event::Told(Ok(Next::Step { topic, step, .. })) => {
                self.tell(topic, step).await?;
                // Records without end do not keep commands out.
                match self.takes_commands().then(|| self.socket.recv().now_or_never()).flatten() {
                    Some(came) => self.take(came?).await,
                    None => Ok(()),
                }
            }
            Event::Told(Err(error)) => {
                self.send(error_message(&error, None)).await?;
                Err(Ending::Gone)
            }
        }
    }

    async fn take(&mut self, came: Message) -> Result<(), Ending> {
        match came {
            Message::Text(text) => {
                self.commands_bytes += text.len();
                self.commands.push_back(text);
                Ok(())
            }
            Message::Binary => {
                let words = "commands are text messages";
                self.send(refusal_message("unsupported_message", words, None, None)).await
            }
        }
    }

    async fn finish(&mut self, done: Done) -> Result<(), Ending> {
        match done {
            Done::Answer(answer) => self.send(answer).await,
            Done::Subscribe { places, answer, request_id } => {
                let answer = match self.subscribe(places) {
                    Ok(()) => answer,
                    Err(error) => error_message(&error, request_id.as_deref()),
                };
                self.send(answer).await
            }
            Done::Unsubscribe { topics, answer } => {
                for topic in topics {
                    self.unfollow(topic.as_str());
                }
                self.hold_less();
                self.send(answer).await
            }
        }
    }

    /// Gives back what the views of topics held that are not followed any more.
    fn hold_less(&mut self) {
        let bytes = View::memory_bytes(self.followed.values().map(|followed| &followed.view));
        self.hold = None;
        // It was all there a moment ago. If others have taken it since, this holds less than it should.
        self.hold = self.api.hold_watch_bytes(&self.caller, bytes).ok().map(|hold| Box::new(hold) as Hold);
    }

    fn unfollow(&mut self, topic: &str) {
        if let Some(followed) = self.followed.remove(topic) {
            self.watcher.unfollow(followed.slot);
        }
    }

    /// A second subscribe of a topic replaces the first (C-WS-05). Errors, and nothing has changed: there would be too
    /// many, or what decides which of their records are shown would be too much.
    fn subscribe(&mut self, places: Places) -> Result<(), Error> {
        let names: Vec<Arc<str>> = places.iter().map(|(place, _)| place.shared.read().name.clone()).collect();
        let kept = self.followed.iter().filter(|(name, _)| !names.contains(name));
        let kept: Vec<&Arc<View>> = kept.map(|(_, followed)| &followed.view).collect();
        if kept.len() + names.len() > MAX_TOPICS_PER_WATCH {
            return Err(Error::invalid(format!("a socket follows at most {MAX_TOPICS_PER_WATCH} topics")));
        }
        let bytes = check_views(kept.into_iter().chain(places.iter().map(|(_, view)| view)))?;
        // What was held before is given back after that.
        self.hold = Some(Box::new(self.api.hold_watch_bytes(&self.caller, bytes)?));
        for (name, (place, view)) in names.into_iter().zip(places) {
            self.unfollow(&name);
            let slot = self.watcher.follow(place, &view);
            self.followed.insert(name, Followed { slot, view });
        }
        Ok(())
    }

    async fn tell(&mut self, topic: Arc<str>, step: Step) -> Result<(), Ending> {
        let message = match step {
            Step::Records(frame) => frame.bytes,
            Step::Passed => return Ok(()),
            Step::Tombstone(tombstone) => Notice::Tombstone(&tombstone).message(&topic),
            Step::CaughtUp { head_seq } => Notice::CaughtUp { head_seq }.message(&topic),
            Step::Deleted { head_seq } => {
                self.followed.remove(&topic);
                self.hold_less();
                Notice::Deleted { head_seq }.message(&topic)
            }
        };
        self.send(message).await
    }

    async fn send(&mut self, message: Bytes) -> Result<(), Ending> {
        if let Err(error) = std::str::from_utf8(&message) {
            internal(format_args!("a message is no text: {error}"));
            return Err(Ending::Gone);
        }
        self.socket.push(message);
        let mut sending = std::pin::pin!(self.socket.flush());
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => return sent.map_err(|_| Ending::Gone),
                has_moved = self.progress.moves() => if !has_moved {
                    return Err(Ending::Gone);
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
        if self.send(error_message(&error, None)).await.is_ok() {
            self.socket.close(code, reason).await;
        }
    }
}
