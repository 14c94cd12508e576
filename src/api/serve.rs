//! Connections of clients: accepted, served one request after another, and ended in order.
//!
//! axum has a loop of its own for this, but one without bounds on time: a client that sends its head a
//! byte a minute keeps a connection, and a thousand of them keep them all. The loop is short; owning it
//! also puts what every answer passes ([`Envelope`]) beside the router instead of in layers of it.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::envelope::Envelope;
use super::raw_path_io::RawPathIo;
use super::refusal_io::RefusalIo;
use super::write_progress::{CountedIo, WriteProgress};
use crate::limits::{MAX_HEAD_BYTES, MAX_PAGE_BYTES, MAX_RECORD_BYTES};

/// Pause after a connection could not be taken: most often there are no file handles left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves clients on `listener` until `stop` is done; then takes no more connections and returns once
/// those that there are have finished their requests. The head of a request, and so an idle connection
/// too, may take `head_timeout`; a stream whose reader takes nothing for `slow_after` ends.
pub async fn serve(
    listener: TcpListener,
    envelope: Envelope,
    head_timeout: Duration,
    slow_after: Duration,
    stop: impl Future<Output = ()>,
) {
    let envelope = Arc::new(envelope);
    let (stopping, is_stopping) = watch::channel(false);
    // Every connection holds a sender; the channel ends with the last of them.
    let (open, mut all_closed) = mpsc::channel::<()>(1);
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                // Answers are small and somebody waits for each: they leave at once.
                let _ = stream.set_nodelay(true);
                let (envelope, is_stopping, open) = (envelope.clone(), is_stopping.clone(), open.clone());
                tokio::spawn(async move {
                    connection(stream, envelope, head_timeout, slow_after, is_stopping).await;
                    drop(open);
                });
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be taken from clients now");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop((listener, open));
    let _ = stopping.send(true);
    let _ = all_closed.recv().await;
}

/// The client was gone before its connection was taken.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn connection(
    stream: TcpStream,
    envelope: Arc<Envelope>,
    head_timeout: Duration,
    slow_after: Duration,
    mut is_stopping: watch::Receiver<bool>,
) {
    let progress = Arc::new(WriteProgress::new(slow_after));
    let io = CountedIo::new(TokioIo::new(stream), progress.clone());
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        let envelope = envelope.clone();
        request.extensions_mut().insert(progress.clone());
        async move { Ok::<_, std::convert::Infallible>(envelope.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_header_size(MAX_HEAD_BYTES)
        // Room for the largest frame of a stream. hyper asks a body nothing while its buffer is full, not even
        // whether the reader has become too slow.
        .max_buf_size(MAX_PAGE_BYTES + MAX_RECORD_BYTES)
        .serve_connection(RefusalIo::new(RawPathIo::new(io)), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    // An error here is the client's: it went away, or sent what is no HTTP and was told so.
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        _ = is_stopping.wait_for(|is_stopping| *is_stopping) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
