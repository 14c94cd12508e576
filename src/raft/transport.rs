//! How bytes get from member to member: TCP in production, memory in a simulation.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A connection in both directions.
pub trait PeerStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> PeerStream for T {}

/// Accepts connections of peers.
pub trait PeerListener: Send {
    /// The next connection, and where it comes from.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn PeerStream>, String)>>;
}

/// Opens and accepts connections between members.
pub trait PeerTransport: Send + Sync + 'static {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn PeerStream>>>;
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn PeerListener>>>;
}

/// How long TCP tries to get bytes to the other end, and waits for a sign of life on an idle connection. The
/// default is a quarter of an hour, and two hours. Longer than a busy member may take to read.
const GONE_AFTER: Duration = Duration::from_secs(10);

/// TCP.
pub struct TcpTransport;

/// Neither end waits for one that is gone, nor to fill a packet.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, GONE_AFTER / 2)?;
    sockopt::set_tcp_keepintvl(stream, GONE_AFTER / 5)?;
    sockopt::set_tcp_user_timeout(stream, GONE_AFTER.as_millis() as u32)?;
    Ok(())
}

impl TcpTransport {
    pub fn shared() -> Arc<dyn PeerTransport> {
        Arc::new(TcpTransport)
    }
}

impl PeerTransport for TcpTransport {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn PeerStream>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            prepare(&stream)?;
            Ok(Box::new(stream) as Box<dyn PeerStream>)
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn PeerListener>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(address).await?;
            Ok(Box::new(TcpAcceptor(listener)) as Box<dyn PeerListener>)
        })
    }
}

struct TcpAcceptor(TcpListener);

impl PeerListener for TcpAcceptor {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn PeerStream>, String)>> {
        Box::pin(async move {
            let (stream, from) = self.0.accept().await?;
            prepare(&stream)?;
            Ok((Box::new(stream) as Box<dyn PeerStream>, from.to_string()))
        })
    }
}
