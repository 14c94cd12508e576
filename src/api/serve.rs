//! Connections of clients: accepted, served one request after another, and ended in order.
//!
//! axum has a loop of its own for this, but one without bounds on time: a client that sends its head a
//! byte a minute keeps a connection, and a thousand of them keep them all. The loop is short; owning it
//! also puts what every answer passes ([`Envelope`]) beside the router instead of in layers of it.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::HttpBody;
use axum::http::header::{CONNECTION, EXPECT, HeaderValue};
use axum::http::{Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::connections::{Connection, ConnectionPlace, Connections, Told};
use super::envelope::Envelope;
use super::exchange::{AnswerBody, RequestBody};
use super::raw_path_io::RawPathIo;
use super::refusal_io::RefusalIo;
use super::write_progress::{CountedIo, WriteProgress};
use crate::limits::{DISCARD_TIME_MS, MAX_DISCARDED_BYTES, MAX_HEAD_BYTES, MAX_PAGE_BYTES, MAX_RECORD_BYTES};
use crate::telemetry::seldom::Seldom;

/// Pause after a connection could not be taken: most often there are no file handles left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// When a connection on which nothing comes is asked for a sign of life, and how often after that.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Bounds of the connections of clients.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Most that are open at once.
    pub max_connections: usize,
    /// Time that the head of a request may take, and so an idle connection too.
    pub head_timeout: Duration,
    /// A stream whose reader takes nothing for so long ends.
    pub slow_after: Duration,
    /// Bytes that are read off a connection that ends while its client still sends.
    pub linger_bytes: usize,
}

/// Serves clients on `listener` until `stop` is done; then takes no more connections and returns once
/// those that there are have finished their requests.
pub async fn serve(
    listener: TcpListener,
    envelope: Envelope,
    limits: ConnectionLimits,
    stop: impl Future<Output = ()>,
) {
    let envelope = Arc::new(envelope);
    let metrics = envelope.metrics().clone();
    metrics.max_connections.set(i64::try_from(limits.max_connections).unwrap_or(i64::MAX));
    let connections = Connections::new(limits.max_connections, metrics.connections.clone());
    // Every connection holds a sender; the channel ends with the last of them.
    let (open, mut all_closed) = mpsc::channel::<()>(1);
    let complaints = Seldom::new(|line| tracing::warn!("{line}"));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accept(&listener, &connections, limits.slow_after) => accepted,
        };
        match accepted {
            Ok(Some((stream, connection, place))) => {
                let (envelope, open) = (envelope.clone(), open.clone());
                // Where that fails the system's defaults hold, and nothing depends on these.
                let _ = prepare(&stream, limits.slow_after);
                tokio::spawn(async move {
                    serve_connection(stream, envelope, limits, connection, place).await;
                    drop(open);
                });
            }
            Ok(None) => {
                metrics.refused_connections.inc();
                let max = limits.max_connections;
                complaints.tell(format_args!(
                    "a connection of a client was not taken: {max} are open, and none is idle"
                ));
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                complaints.tell(format_args!("a connection of a client was not taken: {error}"));
                // Its file handle is what is missing.
                connections.make_room();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop((listener, open));
    connections.stop();
    let _ = all_closed.recv().await;
}

/// The next connection with its place; `None` if there was none left for it.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Connections>,
    slow_after: Duration,
) -> io::Result<Option<(TcpStream, Arc<Connection>, ConnectionPlace)>> {
    let (stream, client) = listener.accept().await?;
    let progress = WriteProgress::new(slow_after, Some(client.ip().to_canonical()));
    let connection = Connection::new(Arc::new(progress));
    let place = connections.enter(&connection).await;
    Ok(place.map(|place| (stream, connection, place)))
}

/// The client was gone before its connection was taken.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Answers are small and somebody waits for each: they leave at once. And a client that went without a word holds its
/// place for minutes and not for hours, whether it is asked for a sign of life or has not taken what was sent.
fn prepare(stream: &TcpStream, slow_after: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    // A reader that is slow and there is told so before.
    let gone_after = slow_after + KEEPALIVE_AFTER;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(gone_after.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

pub(super) async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    envelope: Arc<Envelope>,
    limits: ConnectionLimits,
    connection: Arc<Connection>,
    place: ConnectionPlace,
) {
    let progress = connection.progress.clone();
    let io = RawPathIo::new(CountedIo::new(TokioIo::new(stream), progress.clone()));
    let refused = envelope.metrics().requests.other();
    let io = RefusalIo::new(io, progress.clone(), limits.linger_bytes, refused, place);
    let service = service_fn(move |request| {
        progress.exchange.begin();
        let (envelope, progress) = (envelope.clone(), progress.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(&envelope, request, progress).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_header_size(MAX_HEAD_BYTES)
        // Room for the largest frame of a stream. hyper asks a body nothing while its buffer is full, not even
        // whether the reader has become too slow.
        .max_buf_size(MAX_PAGE_BYTES + MAX_RECORD_BYTES)
        .serve_connection(io, service)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    loop {
        // An error here is the client's: it went away, or sent what is no HTTP and was told so.
        let told = tokio::select! {
            biased;
            _ = serving.as_mut() => return,
            told = connection.told() => told,
        };
        match told {
            Told::MakeRoom if connection.progress.exchange.is_idle() => return,
            Told::MakeRoom => {}
            Told::Stop => break,
        }
    }
    // Whoever is only read off has its answer.
    if !connection.progress.exchange.lingers() {
        serving.as_mut().graceful_shutdown();
        let _ = serving.await;
    }
}

/// Answers one request, and sees to what is left of its body.
async fn answer(
    envelope: &Envelope,
    mut request: hyper::Request<Incoming>,
    connection: Arc<WriteProgress>,
) -> Response<AnswerBody> {
    request.extensions_mut().insert(connection.clone());
    // A client that asks first sends nothing if it is refused; to read would be to tell it to send.
    let asks_first = !request.body().is_end_stream() && request.headers().contains_key(EXPECT);
    let request = request.map(|body| RequestBody::new(body, connection.clone()));
    let mut response = envelope.answer(request).await;
    let exchange = &connection.exchange;
    if let Some(unread) = exchange.take_unread()
        && (asks_first || !discard(unread, &connection).await)
    {
        exchange.linger();
    }
    if exchange.lingers() || exchange.has_peer_ended() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        exchange.upgrade();
    }
    response.map(|body| AnswerBody::new(body, connection.clone()))
}

/// Reads what is left of a body, if that is little and comes soon.
async fn discard(body: Incoming, connection: &WriteProgress) -> bool {
    if body.size_hint().lower() > MAX_DISCARDED_BYTES as u64 {
        return false;
    }
    let mut body = std::pin::pin!(body);
    let mut left_bytes = MAX_DISCARDED_BYTES;
    let discarding = async {
        loop {
            match std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                None => return true,
                Some(Err(_)) => return false,
                Some(Ok(frame)) => {
                    let bytes = frame.data_ref().map_or(0, |data| data.len());
                    match left_bytes.checked_sub(bytes) {
                        Some(left) => left_bytes = left,
                        None => return false,
                    }
                }
            }
        }
    };
    let in_time = timeout(Duration::from_millis(DISCARD_TIME_MS), discarding);
    tokio::select! {
        biased;
        is_discarded = in_time => is_discarded.unwrap_or(false),
        () = connection.exchange.peer_ended() => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_went_without_a_word_is_noticed() {
        // C-WS-07
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        prepare(&stream, Duration::from_secs(30)).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap() && stream.nodelay().unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), KEEPALIVE_AFTER);
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 90_000);
        drop(client);
    }
}
