//! What every request passes before its handler runs, in the order of C-ERR-05: size of the body,
//! authentication, scope, prefix, name in the path, and then the body itself.
//!
//! One extractor does all of it. A stack of middleware layers would do the same, but each layer boxes or
//! wraps the request once more, and the order would be spread over the place where the stack is built; an
//! append has no time for the former, and the latter is a contract.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRef, FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::ApiLimits;
use super::gzip::{Encoding, UnpackError, unpack};
use super::name::{check_router_name, check_topic_name};
use super::query::Query;
use crate::auth::{Caller, Keys, Place, Scope};
use crate::error::{Code, Error};
use crate::limits::MIN_BODY_BYTES_PER_S;

/// Bytes that are read off a refused request before it is answered, beyond the limit that it may have
/// run into.
const DISCARD_SLACK_BYTES: usize = 1 << 20;
/// Longest time spent on that.
const DISCARD_TIME: Duration = Duration::from_secs(2);
/// Room made at once for a body whose announced length may be a lie.
const FIRST_BODY_ROOM_BYTES: usize = 1 << 20;

/// What the checks need to know.
#[derive(Clone)]
pub struct Gate {
    pub keys: Arc<Keys>,
    pub limits: ApiLimits,
}

impl Gate {
    /// `max_body_bytes`, where 0 means unlimited.
    pub fn max_body_bytes(&self) -> usize {
        if self.limits.max_body_bytes == 0 { usize::MAX } else { self.limits.max_body_bytes }
    }

    /// Who calls; the probes use this alone.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, Error> {
        self.keys.authenticate(bearer(headers))
    }
}

/// The scope that an endpoint needs, as a type, so that a handler's signature shows it.
pub trait Needs: Send + Sync + 'static {
    const SCOPE: Scope;
}

macro_rules! needs {
    ($($name:ident)*) => { $(
        #[derive(Debug, Clone, Copy)]
        pub struct $name;
        impl Needs for $name { const SCOPE: Scope = Scope::$name; }
    )* };
}
needs! { Read Write Delete Admin }

/// A request that may go on: its caller has the scope `N`, and its body has been read.
pub struct Call<N> {
    pub arrived: Instant,
    pub caller: Caller,
    parts: Parts,
    body: Bytes,
    encoding: Encoding,
    /// Counts among the key's requests until the handler is done.
    place: Option<Place>,
    needs: PhantomData<N>,
}

impl<N> Call<N> {
    pub fn query(&self) -> Query<'_> {
        Query::new(self.parts.uri.query())
    }

    /// The bytes of a header; the first one if it is repeated.
    pub fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        self.parts.headers.get(name).map(|value| value.as_bytes())
    }

    /// The body, once it is known to be meant as JSON (C-CONV-04).
    pub fn json(&self) -> Result<&Bytes, Error> {
        if self.body.is_empty() {
            return Ok(&self.body);
        }
        if self.encoding == Encoding::Unknown {
            let message = "a body has no `Content-Encoding`, or `gzip`";
            return Err(Error::new(Code::UnsupportedMediaType, message));
        }
        if is_json(&self.parts.headers) {
            return Ok(&self.body);
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

    /// From now on it does not count among the requests of its key: it counts elsewhere.
    pub fn count_no_more(&mut self) {
        self.place = None;
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
        match arrival.admit(&gate, N::SCOPE, None) {
            Ok(caller) => arrival.receive(&gate, caller).await,
            Err(error) => Err(arrival.refuse(&gate, error).await),
        }
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
    let admitted = arrival.admit(gate, N::SCOPE, Some(name.as_deref().unwrap_or_default()));
    let checked = admitted.and_then(|caller| {
        let name = name?;
        check_name(&name)?;
        Ok((caller, name))
    });
    match checked {
        Ok((caller, name)) => Ok((arrival.receive(gate, caller).await?, name)),
        Err(error) => Err(arrival.refuse(gate, error).await),
    }
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
            false => Query::new(parts.uri.query()).text("token")?.map(|token| token.into_owned()),
        };
        let caller = match &token {
            Some(token) => gate.keys.authenticate(Some(token))?,
            None => gate.authenticate(&parts.headers)?,
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

    fn admit(&self, gate: &Gate, scope: Scope, name: Option<&str>) -> Result<Caller, Error> {
        let announced = self.announced_bytes();
        if announced.is_some_and(|bytes| bytes > gate.max_body_bytes() as u64) {
            return Err(too_large(gate.max_body_bytes()));
        }
        let caller = gate.authenticate(&self.parts.headers)?;
        caller.check(scope, name)?;
        Ok(caller)
    }

    /// `Content-Length`, as far as there is one that makes sense; the HTTP layer refuses others.
    fn announced_bytes(&self) -> Option<u64> {
        self.parts.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    async fn receive<N>(mut self, gate: &Gate, caller: Caller) -> Result<Call<N>, Error> {
        match self.take_in(gate, &caller).await {
            Ok((body, place)) => Ok(Call {
                arrived: self.at,
                caller,
                encoding: Encoding::of(&self.parts.headers),
                parts: self.parts,
                body,
                place: Some(place),
                needs: PhantomData,
            }),
            Err(error) => Err(self.refuse(gate, error).await),
        }
    }

    /// The body, unpacked, and the place among the requests of its key.
    async fn take_in(&mut self, gate: &Gate, caller: &Caller) -> Result<(Bytes, Place), Error> {
        let place = caller.enter(gate.limits.max_inflight_per_key)?;
        let max_bytes = gate.max_body_bytes();
        let announced = self.announced_bytes();
        let body = read_body(&mut self.body, max_bytes, announced, gate.limits.body_grace).await?;
        if body.is_empty() || Encoding::of(&self.parts.headers) != Encoding::Gzip {
            return Ok((body, place));
        }
        match unpack(body, max_bytes).await {
            Ok(body) => Ok((body, place)),
            Err(UnpackError::TooLarge) => Err(too_large(max_bytes)),
            Err(UnpackError::Malformed) => Err(Error::invalid("the body is not gzip, as it says it is")),
        }
    }

    /// Gives `error` back once the body is out of the way. Most clients look for an answer only after
    /// they have sent everything; closing on them makes it a broken connection. A client that asks first
    /// (`Expect: 100-continue`) is told before it sends anything.
    async fn refuse(self, gate: &Gate, error: Error) -> Error {
        if !self.parts.headers.contains_key(EXPECT) {
            let most_bytes = gate.max_body_bytes().saturating_add(DISCARD_SLACK_BYTES);
            let _ = timeout(DISCARD_TIME, discard(self.body, most_bytes)).await;
        }
        error
    }
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

/// Reads a body of at most `max_bytes`. One that comes in one piece, as most do, is not copied. It may take
/// `grace`, and longer as long as enough of it comes: one that trickles in holds its connection, its place
/// and its memory.
async fn read_body(
    body: &mut Body,
    max_bytes: usize,
    announced: Option<u64>,
    grace: Duration,
) -> Result<Bytes, Error> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let mut chunks = std::mem::take(body).into_data_stream();
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    let started = Instant::now();
    loop {
        let received = (first.len() + all.len()) as u64;
        let deadline = started + grace + Duration::from_millis(received * 1000 / MIN_BODY_BYTES_PER_S);
        let chunk = match timeout_at(deadline, chunks.next()).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(_) => return Err(Error::invalid("the body took too long to come")),
        };
        let chunk = chunk.map_err(|_| Error::invalid("the body broke off"))?;
        if chunk.len() > max_bytes - first.len() - all.len() {
            *body = Body::from_stream(chunks);
            return Err(too_large(max_bytes));
        }
        if first.is_empty() && all.is_empty() {
            first = chunk;
            continue;
        }
        if all.is_empty() {
            let announced = announced.map_or(0, |bytes| bytes.min(FIRST_BODY_ROOM_BYTES as u64) as usize);
            all.reserve(announced.max(first.len() + chunk.len()));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// Reads up to `most_bytes` and forgets them.
async fn discard(body: Body, most_bytes: usize) {
    let mut left_bytes = most_bytes;
    let mut chunks = body.into_data_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        match left_bytes.checked_sub(chunk.len()) {
            Some(left) => left_bytes = left,
            None => return,
        }
    }
}
