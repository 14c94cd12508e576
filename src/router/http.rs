//! Other clusters over HTTP, at their client port.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderValue};
use reqwest::{Response, Url};
use serde::Deserialize;
use tokio::time::Instant;

use super::names::{Names, Unknown};
use super::pull_budget::AnswerRoom;
use super::remote::{Answering, Remote, RemoteError};
use super::targets::Targets;
use crate::config::hide;
use crate::limits::{
    MIN_ANSWER_BYTES_PER_S, REMOTE_CONNECT_TIMEOUT, REMOTE_IDLE_AFTER, REMOTE_READ_TIMEOUT,
    WHOLE_ANSWER_TIME, WHOLE_SHARED_ANSWER_TIME,
};

/// Where pulls go, below the address of a member.
pub const PULL_PATH: &str = "/v0/mirror/pull";
/// The form of pulls and their answers.
pub const PULL_CONTENT_TYPE: &str = "application/octet-stream";
/// Longest message and code of another cluster that are kept.
const MAX_MESSAGE_CHARS: usize = 300;
const MAX_CODE_CHARS: usize = 64;

/// Asks over connections that stay open.
pub struct HttpRemote {
    client: reqwest::Client,
    targets: Arc<Targets>,
    names: Arc<Names>,
}

/// What a name stands for, but for what may not be connected to: asked for each connection.
struct Permitted {
    targets: Arc<Targets>,
    names: Arc<Names>,
}

impl Resolve for Permitted {
    fn resolve(&self, name: Name) -> Resolving {
        let (targets, names, host) = (self.targets.clone(), self.names.clone(), name.as_str().to_owned());
        Box::pin(async move {
            let found = names.addresses(&host).await?;
            let permitted = found.iter().filter(|address| targets.permit(&host, **address));
            let permitted: Vec<SocketAddr> = permitted.map(|address| SocketAddr::new(*address, 0)).collect();
            if permitted.is_empty() && !found.is_empty() {
                return Err(Denied.into());
            }
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

/// There is something, and this member is not to talk to it.
#[derive(Debug)]
struct Denied;

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "members may not connect to that host: see the settings connector_allow and connector_deny",
        )
    }
}

impl std::error::Error for Denied {}

impl From<Denied> for RemoteError {
    fn from(denied: Denied) -> Self {
        RemoteError { code: "target_denied".into(), message: denied.to_string(), is_refusal: true }
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorFields,
}

#[derive(Deserialize)]
struct ErrorFields {
    code: String,
    message: String,
}

impl HttpRemote {
    /// Errors: a sentence, if the system has no room for a client.
    pub fn new(targets: Targets) -> Result<Self, String> {
        Self::with_names(targets, Names::of_system())
    }

    fn with_names(targets: Targets, names: Names) -> Result<Self, String> {
        let (targets, names) = (Arc::new(targets), Arc::new(names));
        let permitted = Permitted { targets: targets.clone(), names: names.clone() };
        let client = reqwest::Client::builder()
            .no_proxy()
            .dns_resolver(Arc::new(permitted))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(REMOTE_CONNECT_TIMEOUT)
            .read_timeout(REMOTE_READ_TIMEOUT)
            .pool_idle_timeout(REMOTE_IDLE_AFTER)
            .tcp_nodelay(true)
            .build();
        client.map(|client| HttpRemote { client, targets, names }).map_err(|error| error.to_string())
    }

    /// What the look-up of a name does not see: addresses that are written as such, and ports.
    async fn check(&self, url: &Url) -> Result<(), RemoteError> {
        let host = url.host_str().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if bare.parse::<IpAddr>().is_ok_and(|address| !self.targets.permit(bare, address)) {
            return Err(Denied.into());
        }
        let port = url.port_or_known_default().unwrap_or_default();
        let peers: Vec<&str> = self.targets.peer_hosts(port).collect();
        if peers.is_empty() {
            return Ok(());
        }
        if peers.iter().any(|peer| peer.eq_ignore_ascii_case(bare)) {
            return Err(Denied.into());
        }
        // At once, because each may take as long as a name server is silent; and the host last, so that the connection
        // goes to what was found for it just now.
        let peers = join_all(peers.iter().map(|peer| self.names.addresses(peer))).await;
        let host = self.names.addresses(bare).await;
        // What is not known may be a member.
        let unknown = |why: &Unknown| {
            let message = format!(
                "members of this cluster serve each other at port {port}, and whether that is one of them is not known: {why}"
            );
            RemoteError::unreachable(message)
        };
        let host = host.as_ref().map_err(unknown)?;
        if peers.iter().flatten().any(|peer| share_address(peer, host)) {
            return Err(Denied.into());
        }
        match peers.iter().find_map(|peer| peer.as_ref().err()) {
            Some(why) => Err(unknown(why)),
            None => Ok(()),
        }
    }

    async fn ask(
        &self,
        url: &str,
        token: Option<&str>,
        request: Bytes,
        timeout: Duration,
        room: &mut AnswerRoom,
    ) -> Result<Bytes, RemoteError> {
        let url = format!("{}{PULL_PATH}", url.trim_end_matches('/'));
        let url = Url::parse(&url).map_err(|error| RemoteError::unreachable(error.to_string()))?;
        self.check(&url).await?;
        let mut post = self.client.post(url).header(CONTENT_TYPE, PULL_CONTENT_TYPE).body(request);
        if room.is_in_demand() {
            post = post.header(CONNECTION, "close");
        }
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value = value.map_err(|_| RemoteError {
                code: "unauthorized".into(),
                message: "the token cannot be sent in a header".into(),
                is_refusal: true,
            })?;
            value.set_sensitive(true);
            post = post.header(AUTHORIZATION, value);
        }
        let response = match tokio::time::timeout(timeout, post.send()).await {
            Ok(response) => response.map_err(|error| broken(&error))?,
            Err(_) => {
                let message = format!("no answer within {} ms", timeout.as_millis());
                return Err(RemoteError::unreachable(message));
            }
        };
        let status = response.status().as_u16();
        let body = whole_body(response, room).await?;
        match status {
            200 => Ok(body),
            _ => Err(refused(status, &body)),
        }
    }
}

impl Remote for HttpRemote {
    fn pull<'a>(
        &'a self,
        url: &'a str,
        token: Option<&'a str>,
        request: Bytes,
        timeout: Duration,
        room: &'a mut AnswerRoom,
    ) -> Answering<'a> {
        Box::pin(async move {
            let answer = self.ask(url, token, request, timeout, room).await;
            answer.map_err(|error| without_token(error, token.unwrap_or_default()))
        })
    }
}

/// What answers there has been shown our token, and may say it again (C-MIRROR-02).
fn without_token(error: RemoteError, token: &str) -> RemoteError {
    RemoteError { code: hide(&error.code, token), message: hide(&error.message, token), ..error }
}

async fn whole_body(mut response: Response, room: &mut AnswerRoom) -> Result<Bytes, RemoteError> {
    let begun = Instant::now();
    // Its length is what it says: only what has come counts.
    let told_bytes =
        response.content_length().map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let mut body = BytesMut::with_capacity(told_bytes.min(room.ready_bytes()));
    while let Some(chunk) = response.chunk().await.map_err(|error| broken(&error))? {
        room.hold(body.len() + chunk.len())?;
        body.extend_from_slice(&chunk);
        // Another member may be faster. That nothing comes at all is found out sooner.
        let whole_time = if room.is_in_demand() { WHOLE_SHARED_ANSWER_TIME } else { WHOLE_ANSWER_TIME };
        let most = whole_time + Duration::from_secs((body.len() / MIN_ANSWER_BYTES_PER_S) as u64);
        if begun.elapsed() > most {
            let (bytes, seconds) = (body.len(), most.as_secs());
            let message = format!("only {bytes} bytes of the answer have come within {seconds} s");
            return Err(RemoteError::unreachable(message));
        }
    }
    Ok(body.freeze())
}

/// Whether a member that listens at `peer` is reached at `host`.
fn share_address(peer: &[IpAddr], host: &[IpAddr]) -> bool {
    // What listens on every address does so on this machine.
    let is_here = host.iter().any(|ip| ip.is_loopback() || ip.is_unspecified());
    peer.iter().any(|ip| host.contains(ip) || (ip.is_unspecified() && is_here))
}

/// The innermost cause says what happened; the others only repeat the address.
fn broken(error: &reqwest::Error) -> RemoteError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        if inner.is::<Denied>() {
            return Denied.into();
        }
        cause = inner;
    }
    RemoteError::unreachable(cause.to_string())
}

fn cut(text: &str, most_chars: usize) -> String {
    text.chars().take(most_chars).collect()
}

/// What an answer that is none of a pull says.
pub fn refused(status: u16, body: &[u8]) -> RemoteError {
    let told = serde_json::from_slice::<ErrorBody>(body);
    let (code, message) = match told {
        Ok(ErrorBody { error }) => (cut(&error.code, MAX_CODE_CHARS), cut(&error.message, MAX_MESSAGE_CHARS)),
        // Something else answers there.
        Err(_) => {
            ("unreachable".into(), format!("an answer with status {status} that is none of a member's"))
        }
    };
    // Whoever is not let in, or asks for what is not there, waits for people; all else may pass by itself.
    RemoteError { code, message, is_refusal: matches!(status, 400 | 401 | 403 | 405 | 413 | 415) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::limits::NAME_TIMEOUT;
    use crate::router::pull_budget::PullBudget;

    async fn code(targets: Targets, url: &str) -> String {
        let remote = HttpRemote::new(targets).unwrap();
        let mut room = PullBudget::new(1).turn(false).await.small_room();
        let asked = remote.pull(url, None, Bytes::new(), Duration::from_secs(5), &mut room).await;
        asked.expect_err("nothing is there").code
    }

    #[tokio::test]
    async fn what_members_may_not_connect_to_is_not_connected_to() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let with_keys = || Targets { has_keys: true, ..Targets::default() };
        for host in ["127.0.0.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]", "[::1]", "localhost", "0"] {
            assert_eq!(code(with_keys(), &format!("http://{host}:{port}")).await, "target_denied", "{host}");
        }
        let peers = vec![("localhost".to_owned(), port)];
        let peers = Targets { peers, ..Targets::default() };
        assert_eq!(code(peers, &format!("http://127.0.0.1:{port}")).await, "target_denied");
        assert!(listener.accept().is_err(), "nobody came");
        // Otherwise somebody would have.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert_eq!(code(Targets::default(), &format!("http://127.0.0.1:{closed}")).await, "unreachable");
        assert_eq!(code(Targets::default(), &format!("http://localhost:{closed}")).await, "unreachable");
    }

    #[tokio::test]
    async fn a_token_that_is_told_again_is_hidden() {
        // C-MIRROR-02
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut request, mut bytes) = (Vec::new(), [0; 4096]);
            while !String::from_utf8_lossy(&request).contains("Bearer") {
                let read = stream.read(&mut bytes).await.unwrap();
                request.extend_from_slice(&bytes[..read]);
            }
            let body = r#"{"error":{"code":"s3cret-token-abc","message":"bad: Bearer s3cret-token-abc"}}"#;
            let head = format!("HTTP/1.1 401 Unauthorized\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        });
        let remote = HttpRemote::new(Targets::default()).unwrap();
        let mut room = PullBudget::new(1).turn(false).await.small_room();
        let (token, timeout) = (Some("s3cret-token-abc"), Duration::from_secs(5));
        let asked = remote.pull(&url, token, Bytes::new(), timeout, &mut room).await;
        let (code, message) = ("***".to_owned(), "bad: Bearer ***".to_owned());
        assert_eq!(asked, Err(RemoteError { code, message, is_refusal: true }));
    }

    #[tokio::test]
    async fn where_a_name_leads_that_is_not_known_in_time_is_no_peer_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        for (silent, peer) in [("other.example", "127.0.0.1"), ("peer.example", "peer.example")] {
            // The name server of one of them answers when nobody waits for it any more.
            let names = Names::new(move |host| {
                if host == silent {
                    std::thread::sleep(NAME_TIMEOUT + Duration::from_millis(300));
                }
                Ok(vec![IpAddr::from([127, 0, 0, 1])])
            });
            let targets = Targets { peers: vec![(peer.to_owned(), port)], ..Targets::default() };
            let remote = HttpRemote::with_names(targets, names).unwrap();
            let mut room = PullBudget::new(1).turn(false).await.small_room();
            let url = format!("http://other.example:{port}");
            let asked = remote.pull(&url, None, Bytes::new(), Duration::from_secs(2), &mut room).await;
            assert!(listener.accept().is_err(), "it came to the peer port: {asked:?}");
            let error = asked.expect_err("nothing was asked");
            assert_eq!(error.code, "unreachable");
            assert!(
                error.message.contains("serve each other") && error.message.contains(silent),
                "{error:?}"
            );
            // By now it is known.
            let asked = remote.pull(&url, None, Bytes::new(), Duration::from_secs(2), &mut room).await;
            assert!(listener.accept().is_err() && asked.is_err(), "{asked:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_trickles_in_is_given_up() {
        // C-MIRROR-11: then another URL has its turn, and sooner while other mirrors wait for theirs.
        for (waiting, least) in [(0, WHOLE_ANSWER_TIME), (1, WHOLE_SHARED_ANSWER_TIME)] {
            let took = trickled(waiting).await;
            assert!(took >= least && took < least + 2 * REMOTE_READ_TIMEOUT, "{took:?}");
        }
    }

    /// How long it takes until that is given up, while so many others wait.
    async fn trickled(waiting: usize) -> Duration {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n";
            let mut sent = stream.write_all(head.as_bytes()).await;
            while sent.is_ok() {
                tokio::time::sleep(REMOTE_READ_TIMEOUT - Duration::from_secs(1)).await;
                sent = stream.write_all(b"x").await;
            }
        });
        let budget = PullBudget::new(1);
        let mut room = budget.turn(false).await.small_room();
        let turn = budget.turn(false).await;
        let others = (0..waiting).map(|_| tokio::spawn(budget.clone().next_turn(false, || {})));
        let others: Vec<_> = others.collect();
        tokio::task::yield_now().await;
        tokio::time::pause();
        let (begun, remote) = (Instant::now(), HttpRemote::new(Targets::default()).unwrap());
        let asked = remote.pull(&url, None, Bytes::new(), Duration::from_secs(5), &mut room);
        let asked = tokio::time::timeout(3 * WHOLE_ANSWER_TIME, asked).await.expect("it is given up");
        assert_eq!(asked.expect_err("it does not end").code, "unreachable");
        let took = begun.elapsed();
        tokio::time::resume();
        drop(turn);
        others.iter().for_each(|other| other.abort());
        took
    }
}
