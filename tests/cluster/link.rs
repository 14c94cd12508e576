//! A way to a port that can be cut, made too narrow for large packets or slow, and healed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What a narrow link lets pass at once: signs of life, and no records.
const NARROW_BYTES: usize = 1000;

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Open,
    Narrow,
    /// So many bytes per second on each connection.
    Slow(u32),
    Cut,
}

/// Passes connections on to a port of this machine, as long as it is not cut.
pub struct Link {
    pub port: u16,
    way: Arc<watch::Sender<Way>>,
    /// Bytes that came from the side that dials.
    sent_bytes: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Link {
    pub async fn to(target_port: u16) -> Link {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind a port");
        let port = listener.local_addr().expect("an address").port();
        let way = Arc::new(watch::Sender::new(Way::Open));
        let sent_bytes = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(accept(listener, target_port, way.clone(), sent_bytes.clone()));
        Link { port, way, sent_bytes, task }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Ends all connections, and every new one at once.
    pub fn cut(&self) {
        self.way.send_replace(Way::Cut);
    }

    /// From now on a connection that large packets are sent over carries nothing to the target any more, as if
    /// a router on the way swallowed them. It does not end, and carries answers.
    pub fn narrow(&self) {
        self.way.send_replace(Way::Narrow);
    }

    /// From now on each connection carries so much to the target.
    pub fn slow(&self, bytes_per_s: u32) {
        self.way.send_replace(Way::Slow(bytes_per_s));
    }

    pub fn heal(&self) {
        self.way.send_replace(Way::Open);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target_port: u16,
    way: Arc<watch::Sender<Way>>,
    sent_bytes: Arc<AtomicU64>,
) {
    while let Ok((near, _)) = listener.accept().await {
        let sent_bytes = sent_bytes.clone();
        let mut cut = way.subscribe();
        let way = way.subscribe();
        tokio::spawn(async move {
            let pass = async {
                // A target that is down looks like a way that ends.
                let Ok(far) = TcpStream::connect(("127.0.0.1", target_port)).await else { return };
                let ((near_read, mut near_write), (mut far_read, far_write)) =
                    (near.into_split(), far.into_split());
                let back = async {
                    let _ = copy(&mut far_read, &mut near_write).await;
                    let _ = near_write.shutdown().await;
                };
                tokio::join!(forward(near_read, far_write, way, &sent_bytes), back);
            };
            tokio::select! {
                biased;
                _ = cut.wait_for(|way| *way == Way::Cut) => {}
                () = pass => {}
            }
        });
    }
}

async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    way: watch::Receiver<Way>,
    sent_bytes: &AtomicU64,
) {
    let mut buf = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut buf).await
        && count > 0
    {
        sent_bytes.fetch_add(count as u64, Ordering::Relaxed);
        let now = *way.borrow();
        match now {
            Way::Narrow if count > NARROW_BYTES => {
                // Until the other end gives up.
                while from.read(&mut buf).await.is_ok_and(|count| count > 0) {}
                break;
            }
            Way::Slow(bytes_per_s) => {
                let took = Duration::from_secs_f64(count as f64 / f64::from(bytes_per_s));
                tokio::time::sleep(took).await;
            }
            _ => {}
        }
        if to.write_all(&buf[..count]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
