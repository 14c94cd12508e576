//! What every request passes before its handler runs, in the order of C-ERR-05: size of the body,
//! authentication, scope, prefix, name in the path, and then the body itself.
//!
//! One extractor does all of it. A stack of middleware layers would do the same, but each layer boxes or
//! wraps the request once more, and the order would be spread over the place where the stack is built; an
//! append has no time for the former, and the latter is a contract. What a refused request has left unread is the
//! connection's business.

use std::future::Future;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::{FromRef, FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use super::ApiLimits;
use super::byte_budget::{ByteBudget, Charge};
use super::change;
use super::gzip::{Encoding, UnpackError, unpack};
use super::name::{check_router_name, check_topic_name};
use super::query::Query;
use super::web_guard::ForeignOrigin;
use super::write_progress::WriteProgress;
use crate::auth::{Caller, Keys, Place, Scope};
use crate::error::{Code, Error};
use crate::limits::{
    MAX_SMALL_BODY_BYTES, MIN_BODY_BYTES_PER_S, MIN_COUNTED_ANSWER_BYTES, MIN_WHOLE_BODY_BYTES_PER_S,
    WHOLE_BODY_MS,
};
use crate::telemetry::seldom::Seldom;

/// Room made at once for a body whose announced length may be a lie.
const FIRST_BODY_ROOM_BYTES: usize = 1 << 20;

/// What the checks need to know.
#[derive(Clone)]
pub struct Gate {
    pub keys: Arc<Keys>,
    pub limits: ApiLimits,
    pub budget: Arc<ByteBudget>,
}

impl Gate {
    /// Largest body for `N`.
    fn max_body_bytes<N: Needs>(&self) -> usize {
        self.limits.max_body_bytes().min(N::MAX_BODY_BYTES)
    }

    /// Who calls; the probes use this alone.
    pub fn authenticate(&self, parts: &Parts) -> Result<Caller, Error> {
        self.keys.authenticate_from(bearer(&parts.headers), client_of(parts))
    }
}

/// The scope that an endpoint needs, as a type, so that a handler's signature shows it, and the largest body that it
/// may have.
pub trait Needs: Send + Sync + 'static {
    const SCOPE: Scope;
    const MAX_BODY_BYTES: usize;
}

macro_rules! needs {
    ($($name:ident: $scope:ident, $max_body_bytes:expr;)*) => { $(
        #[derive(Debug, Clone, Copy)]
        pub struct $name;
        impl Needs for $name {
            const SCOPE: Scope = Scope::$scope;
            const MAX_BODY_BYTES: usize = $max_body_bytes;
        }
    )* };
}
// Only records need more (C-LIMIT-16).
needs! {
    Read: Read, MAX_SMALL_BODY_BYTES;
    Write: Write, usize::MAX;
    Delete: Delete, MAX_SMALL_BODY_BYTES;
    Admin: Admin, MAX_SMALL_BODY_BYTES;
}

/// A request that may go on: its caller has the scope `N`, and its body has been read.
pub struct Call<N> {
    pub arrived: Instant,
    pub caller: Caller,
    parts: Parts,
    body: Bytes,
    encoding: Encoding,
    /// What the body counts for.
    charge: Charge,
    /// Counts among the key's requests until the handler is done.
    place: Option<Place>,
    needs: PhantomData<N>,
}

impl<N: Needs> Call<N> {
    pub fn query(&self) -> Query<'_> {
        Query::new(self.parts.uri.query())
    }

    /// Lets go of the body: all that it says is known.
    pub fn forget_body(&mut self) {
        self.replace_body();
        self.charge.give_back(self.charge.bytes());
    }

    /// As [`Call::forget_body`], where a command that was made of it takes its place: it counts until that is done.
    pub fn replace_body(&mut self) {
        self.body = Bytes::new();
    }

    /// Waits until nothing more can come from the client (C-CONV-20).
    pub fn peer_ended(&self) -> impl Future<Output = ()> + Send + use<N> {
        let connection: Option<Arc<WriteProgress>> = self.parts.extensions.get().cloned();
        async move {
            match connection {
                Some(connection) => connection.exchange.peer_ended().await,
                None => std::future::pending().await,
            }
        }
    }

    /// Tells the log that the caller has changed something that outlives its records.
    pub fn tell(&self, lines: &Seldom, done: std::fmt::Arguments<'_>) {
        change::tell(lines, &self.caller, done);
    }

    /// The bytes of a header; the first one if it is repeated.
    pub fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        self.parts.headers.get(name).map(|value| value.as_bytes())
    }

    /// The body, once it is known to be meant as JSON (C-CONV-04).
    pub fn json(&self) -> Result<&Bytes, Error> {
        // Where something is changed, that was looked at before.
        if N::SCOPE == Scope::Read {
            self.check_json()?;
        }
        Ok(&self.body)
    }

    fn check_json(&self) -> Result<(), Error> {
        if self.body.is_empty() {
            return Ok(());
        }
        if self.encoding == Encoding::Unknown {
            let message = "a body has no `Content-Encoding`, or `gzip`";
            return Err(Error::new(Code::UnsupportedMediaType, message));
        }
        if is_json(&self.parts.headers) {
            return Ok(());
        }
        Err(Error::new(Code::UnsupportedMediaType, "a body needs `Content-Type: application/json`"))
    }

    /// The body, if it is of this other type.
    pub fn body_of_type(&self, content_type: &str) -> Result<&Bytes, Error> {
        let given = self.parts.headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
        if self.encoding != Encoding::Unknown && given == Some(content_type.as_bytes()) {
            return Ok(&self.body);
        }
        let message = format!("a body needs `Content-Type: {content_type}`");
        Err(Error::new(Code::UnsupportedMediaType, message))
    }

    /// From now on it counts here, and not among the requests of its key.
    pub fn count_as(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// Counts an answer of `bytes` before it is made. 429 `throttled` if that is too much. Small ones are what any
    /// connection may have.
    pub fn count_answer(&mut self, bytes: usize) -> Result<(), Error> {
        if bytes < MIN_COUNTED_ANSWER_BYTES { Ok(()) } else { self.charge.add(bytes) }
    }

    /// What was counted counts until the answer is written (C-LIMIT-16): a client need not read it.
    pub fn answer(self, response: Response) -> Response {
        let connection: Option<&Arc<WriteProgress>> = self.parts.extensions.get();
        if let Some(connection) = connection.filter(|_| self.charge.bytes() > 0) {
            connection.exchange.hold((self.charge, self.place));
        }
        response
    }

    /// The same of an answer that was made without waiting for anything.
    pub fn answer_counted(mut self, response: Response) -> Result<Response, Error> {
        self.forget_body();
        self.count_answer(response.body().size_hint().lower() as usize)?;
        Ok(self.answer(response))
    }

    /// As [`Call::json`], for the endpoints where no body means `{}` (C-CONV-05).
    pub fn json_or_empty_object(&self) -> Result<&[u8], Error> {
        let body = self.json()?;
        Ok(if body.is_empty() { b"{}" } else { body })
    }
}

/// A request about one topic, on which its caller has the scope `N`.
pub struct TopicCall<N> {
    pub call: Call<N>,
    /// A valid name; whether there is such a topic is another question.
    pub topic: String,
}

/// The same about one router.
pub struct RouterCall<N> {
    pub call: Call<N>,
    /// A valid name; whether there is such a router is another question.
    pub router: String,
}

impl<S, N> FromRequest<S> for Call<N>
where
    S: Send + Sync,
    N: Needs,
    Gate: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let gate = Gate::from_ref(state);
        let arrival = Arrival::new(request);
        let caller = arrival.admit::<N>(&gate, None)?;
        arrival.receive(&gate, caller).await
    }
}

impl<S, N> FromRequest<S> for TopicCall<N>
where
    S: Send + Sync,
    N: Needs,
    Gate: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let (call, topic) = receive_named(request, &Gate::from_ref(state), check_topic_name).await?;
        Ok(TopicCall { call, topic })
    }
}

impl<S, N> FromRequest<S> for RouterCall<N>
where
    S: Send + Sync,
    N: Needs,
    Gate: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let (call, router) = receive_named(request, &Gate::from_ref(state), check_router_name).await?;
        Ok(RouterCall { call, router })
    }
}

/// A request about the one thing that its path names, and that name.
async fn receive_named<N: Needs>(
    request: Request,
    gate: &Gate,
    check_name: fn(&str) -> Result<(), Error>,
) -> Result<(Call<N>, String), Error> {
    let mut arrival = Arrival::new(request);
    let name = arrival.path_name().await;
    // A name that is not even text is under no prefix and fails the check of names after that.
    let caller = arrival.admit::<N>(gate, Some(name.as_deref().unwrap_or_default()))?;
    let name = name?;
    check_name(&name)?;
    Ok((arrival.receive(gate, caller).await?, name))
}

/// A request for an event stream; its caller is known, and has the scope to read. It has no body that matters.
pub struct StreamCall {
    pub caller: Caller,
    pub parts: Parts,
    /// The variable part of the path.
    pub name: String,
}

impl<S> FromRequest<S> for StreamCall
where
    S: Send + Sync,
    Gate: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let gate = Gate::from_ref(state);
        let mut arrival = Arrival::new(request);
        let name = arrival.path_name().await;
        let parts = arrival.parts;
        // A browser's event source cannot send headers (C-AUTH-17).
        let token = match parts.headers.contains_key(AUTHORIZATION) {
            true => None,
            false => Query::new(parts.uri.query()).text("token").transpose(),
        };
        let caller = match token {
            // What is no text is no key of anybody.
            Some(token) => {
                gate.keys.authenticate_from(Some(&token.unwrap_or_default()), client_of(&parts))?
            }
            None => gate.authenticate(&parts)?,
        };
        caller.check(Scope::Read, None)?;
        Ok(StreamCall { caller, parts, name: name? })
    }
}

/// A request of which nothing is known yet.
struct Arrival {
    at: Instant,
    parts: Parts,
    body: Body,
}

impl Arrival {
    fn new(request: Request) -> Self {
        let at = Instant::now();
        let (parts, body) = request.into_parts();
        Arrival { at, parts, body }
    }

    /// The one variable part of the path, percent-decoded once (C-CONV-16).
    async fn path_name(&mut self) -> Result<String, Error> {
        let params = RawPathParams::from_request_parts(&mut self.parts, &()).await;
        let params = params.map_err(|_| Error::invalid("the path is not UTF-8"))?;
        Ok(params.iter().next().map(|(_, value)| value.to_owned()).unwrap_or_default())
    }

    fn admit<N: Needs>(&self, gate: &Gate, name: Option<&str>) -> Result<Caller, Error> {
        let max_bytes = gate.max_body_bytes::<N>();
        if self.announced_bytes().is_some_and(|bytes| bytes > max_bytes as u64) {
            return Err(too_large(max_bytes));
        }
        if N::SCOPE != Scope::Read {
            check_origin(&self.parts)?;
        }
        let caller = gate.authenticate(&self.parts)?;
        caller.check(N::SCOPE, name)?;
        Ok(caller)
    }

    /// `Content-Length`, as far as there is one that makes sense; the HTTP layer refuses others.
    fn announced_bytes(&self) -> Option<u64> {
        self.parts.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// The body, unpacked, and a place among the requests of the key.
    async fn receive<N: Needs>(self, gate: &Gate, caller: Caller) -> Result<Call<N>, Error> {
        let place = caller.enter(gate.limits.max_inflight_per_key)?;
        let max_bytes = gate.max_body_bytes::<N>();
        let mut incoming = IncomingBody {
            announced_bytes: self.announced_bytes(),
            max_bytes,
            grace: gate.limits.body_grace,
            charge: gate.budget.charge(&caller),
        };
        let mut body = incoming.read(self.body).await?;
        let mut charge = incoming.charge;
        let encoding = Encoding::of(&self.parts.headers);
        if !body.is_empty() && encoding == Encoding::Gzip {
            let packed_bytes = body.len();
            (body, charge) = unpack(body, max_bytes, charge).await.map_err(|error| match error {
                UnpackError::TooLarge => too_large(max_bytes),
                UnpackError::Malformed => Error::invalid("the body is not gzip, as it says it is"),
                UnpackError::Refused(error) => error,
            })?;
            charge.give_back(packed_bytes);
        }
        let call = Call {
            arrived: self.at,
            caller,
            encoding,
            parts: self.parts,
            body,
            charge,
            place: Some(place),
            needs: PhantomData,
        };
        if N::SCOPE != Scope::Read {
            // Also where nothing is read of it: a page of another origin can send some types without asking.
            call.check_json()?;
        }
        Ok(call)
    }
}

/// 403 for what a web page of another origin may not do (C-CONV-19).
pub fn check_origin(parts: &Parts) -> Result<(), Error> {
    match parts.extensions.get() {
        Some(ForeignOrigin) => Err(ForeignOrigin::refusal()),
        None => Ok(()),
    }
}

/// Where a request comes from, maybe by way of a proxy.
fn client_of(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<Arc<WriteProgress>>()?.client
}

/// The key in `Authorization: Bearer <key>`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = std::str::from_utf8(headers.get(AUTHORIZATION)?.as_bytes()).ok()?;
    let (scheme, key) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/json")
}

fn too_large(max_bytes: usize) -> Error {
    Error::new(Code::PayloadTooLarge, format!("the body is larger than {max_bytes} bytes"))
}

/// How the body of a request is taken in.
struct IncomingBody {
    announced_bytes: Option<u64>,
    max_bytes: usize,
    grace: Duration,
    /// Grows with what has come.
    charge: Charge,
}

impl IncomingBody {
    /// All of the body. One that comes in one piece, as most do, is not copied. One that trickles in holds its
    /// connection, its place and its memory: in each stretch of the grace enough of it must come, and all of it in a
    /// time that its size allows.
    async fn read(&mut self, body: Body) -> Result<Bytes, Error> {
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        let mut chunks = body.into_data_stream();
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        let mut pace = Pace::new(self.grace);
        loop {
            let received = first.len() + all.len();
            let Some(chunk) = pace.next(&mut chunks, received).await? else { break };
            if chunk.len() > self.max_bytes - received {
                return Err(too_large(self.max_bytes));
            }
            self.charge.add(chunk.len())?;
            if received == 0 {
                first = chunk;
                continue;
            }
            if all.is_empty() {
                let announced = self.announced_bytes.unwrap_or(0).min(FIRST_BODY_ROOM_BYTES as u64) as usize;
                all.reserve(announced.max(first.len() + chunk.len()));
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&chunk);
        }
        Ok(if all.is_empty() { first } else { all.freeze() })
    }
}

/// How slowly a body may come.
struct Pace {
    started: Instant,
    grace: Duration,
    /// The end of the present stretch, and what had come at its start.
    stretch_end: Instant,
    stretch_start_bytes: usize,
}

impl Pace {
    fn new(grace: Duration) -> Self {
        let started = Instant::now();
        Pace { started, grace, stretch_end: started + grace, stretch_start_bytes: 0 }
    }

    /// The next piece of a body of which `received` bytes have come; `None` at its end.
    async fn next(&mut self, chunks: &mut BodyDataStream, received: usize) -> Result<Option<Bytes>, Error> {
        loop {
            let size_ms = received as u64 * 1000 / MIN_WHOLE_BODY_BYTES_PER_S;
            let whole_by = self.started + Duration::from_millis(WHOLE_BODY_MS + size_ms);
            match timeout_at(self.stretch_end.min(whole_by), chunks.next()).await {
                Ok(chunk) => {
                    return chunk.transpose().map_err(|_| Error::invalid("the body broke off"));
                }
                Err(_) => self.next_stretch(received, whole_by)?,
            }
        }
    }

    /// 400 if too little has come.
    fn next_stretch(&mut self, received: usize, whole_by: Instant) -> Result<(), Error> {
        let came = (received - self.stretch_start_bytes) as u64;
        let least = self.grace.as_millis() as u64 * MIN_BODY_BYTES_PER_S / 1000;
        let now = Instant::now();
        if came < least || now >= whole_by {
            return Err(Error::invalid("the body took too long to come"));
        }
        (self.stretch_start_bytes, self.stretch_end) = (received, now + self.grace);
        Ok(())
    }
}
