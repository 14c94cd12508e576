//! A way to a port that can be cut and healed.

use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Passes connections on to a port of this machine, as long as it is not cut.
pub struct Link {
    pub port: u16,
    is_cut: Arc<watch::Sender<bool>>,
    task: JoinHandle<()>,
}

impl Link {
    pub async fn to(target_port: u16) -> Link {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind a port");
        let port = listener.local_addr().expect("an address").port();
        let is_cut = Arc::new(watch::Sender::new(false));
        let task = tokio::spawn(accept(listener, target_port, is_cut.clone()));
        Link { port, is_cut, task }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends all connections, and every new one at once.
    pub fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    pub fn heal(&self) {
        self.is_cut.send_replace(false);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target_port: u16, is_cut: Arc<watch::Sender<bool>>) {
    while let Ok((mut near, _)) = listener.accept().await {
        let mut cut = is_cut.subscribe();
        tokio::spawn(async move {
            let pass = async {
                // A target that is down looks like a way that ends.
                let Ok(mut far) = TcpStream::connect(("127.0.0.1", target_port)).await else { return };
                let _ = copy_bidirectional(&mut near, &mut far).await;
            };
            tokio::select! {
                biased;
                _ = cut.wait_for(|is_cut| *is_cut) => {}
                () = pass => {}
            }
        });
    }
}
