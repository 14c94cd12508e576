//! How two members make sure of each other.
//!
//! Each side says who it is and shows that it knows the cluster's secret, by an HMAC over both sides'
//! words, each of which holds a fresh nonce; the secret itself is never sent. The words also say which
//! Raft id is meant: a member that lost its disk has a new id, and must not be taken for its old self.
//!
//! ```text
//! dialer   -> hello
//! acceptor -> verdict u8 | hello + mac, or the reason for a refusal
//! dialer   -> mac
//! acceptor -> verdict u8 | nothing, or the reason for a refusal
//! ```
//!
//! One refusal is not for people only: a member whose place in the cluster has been given to another data
//! directory is told by which membership, and ends (`membership.rs: replacement`).

use std::io;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::identity::ClusterId;
use super::transport::PeerStream;
use super::types::Member;
use crate::codec::{Malformed, Reader, put_blob};

/// Version of the protocol between members.
pub const PROTOCOL: u16 = 2;
const MAGIC: &[u8; 4] = b"anti";
const MAX_WORDS_BYTES: usize = 4096;
/// Verdicts.
const REFUSED: u8 = 0;
const ACCEPTED: u8 = 1;
const REPLACED: u8 = 2;
/// Time for the whole handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a connection is for. Two of them keep a large entry from delaying a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Votes, heartbeats, read indexes: small and urgent.
    Control = 0,
    /// Entries and forwarded commands.
    Bulk = 1,
    /// The state, page by page, for a member that takes it over.
    Transfer = 2,
}

impl Lane {
    pub const COUNT: usize = 3;

    fn from_u8(lane: u8) -> Option<Lane> {
        [Lane::Control, Lane::Bulk, Lane::Transfer].into_iter().find(|known| *known as u8 == lane)
    }
}

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub cluster: String,
    pub cluster_id: Option<ClusterId>,
    pub node_id: u64,
    pub member: Member,
    /// It has taken part in the cluster's log.
    pub is_initialized: bool,
}

/// The dialer's first words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub hello: Hello,
    pub lane: Lane,
    /// The Raft id that is expected to answer; 0 if any will do.
    pub expected_node_id: u64,
    /// One more than the index of the newest committed membership that is known to name the dialer; 0 if it
    /// knows none.
    pub seen_membership: u64,
}

/// Why no connection came about.
#[derive(Debug)]
pub enum HandshakeError {
    /// The other side cannot be reached, or went away.
    Io(io::Error),
    /// One side refused the other: a sentence for the operator.
    Refused(String),
    /// The dialer's name belongs to another Raft id, by the committed membership with this index plus one.
    Replaced(u64),
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        HandshakeError::Io(error)
    }
}

impl From<Malformed> for HandshakeError {
    fn from(malformed: Malformed) -> Self {
        HandshakeError::Io(malformed.into())
    }
}

impl std::fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HandshakeError::Io(error) => error.fmt(f),
            HandshakeError::Refused(reason) => f.write_str(reason),
            HandshakeError::Replaced(_) => {
                f.write_str("another data directory has taken that member's place")
            }
        }
    }
}

type Nonce = [u8; 16];
type Tag = [u8; 32];

fn mac(secret: &[u8], role: &str, call: &[u8], answer: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length will do");
    for part in [role.as_bytes(), call, answer] {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part);
    }
    mac
}

fn put_hello(out: &mut BytesMut, hello: &Hello, nonce: &Nonce) {
    out.put_slice(MAGIC);
    out.put_u16_le(PROTOCOL);
    out.put_slice(nonce);
    put_blob(out, hello.cluster.as_bytes());
    out.put_slice(&hello.cluster_id.map_or(0, |id| id.0).to_le_bytes());
    out.put_u64_le(hello.node_id);
    hello.member.put(out);
    out.put_u8(hello.is_initialized as u8);
}

fn read_hello(reader: &mut Reader<'_>) -> Result<Hello, HandshakeError> {
    if reader.bytes(4)? != MAGIC {
        return Err(HandshakeError::Refused("it does not speak the protocol between members".into()));
    }
    let protocol = reader.u16()?;
    if protocol != PROTOCOL {
        return Err(HandshakeError::Refused(format!(
            "it speaks version {protocol} of the protocol between members, this member version {PROTOCOL}: \
             run the same release everywhere"
        )));
    }
    reader.bytes(16)?;
    let cluster = reader.text()?.to_owned();
    let cluster_id = reader.bytes(16)?.try_into().map_or(0, u128::from_le_bytes);
    let node_id = reader.u64()?;
    let member = Member::read(reader)?;
    Ok(Hello {
        cluster,
        cluster_id: (cluster_id != 0).then_some(ClusterId(cluster_id)),
        node_id,
        member,
        is_initialized: reader.bool()?,
    })
}

async fn send(stream: &mut dyn PeerStream, words: &[u8]) -> io::Result<()> {
    let mut out = BytesMut::with_capacity(words.len() + 2);
    out.put_u16_le(words.len() as u16);
    out.put_slice(words);
    stream.write_all(&out).await?;
    stream.flush().await
}

async fn receive(stream: &mut dyn PeerStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16_le().await? as usize;
    if length > MAX_WORDS_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "handshake: too long"));
    }
    let mut words = vec![0; length];
    stream.read_exact(&mut words).await?;
    Ok(words)
}

/// Receives words behind a verdict.
async fn receive_accepted(stream: &mut dyn PeerStream) -> Result<Vec<u8>, HandshakeError> {
    let words = receive(stream).await?;
    match words.split_first() {
        Some((&ACCEPTED, words)) => Ok(words.to_vec()),
        Some((&REPLACED, membership)) => {
            let membership = membership.try_into().map_err(|_| Malformed("handshake"))?;
            Err(HandshakeError::Replaced(u64::from_le_bytes(membership)))
        }
        Some((_, reason)) => Err(HandshakeError::Refused(format!(
            "it refused this member: {}",
            String::from_utf8_lossy(reason)
        ))),
        None => Err(Malformed("handshake").into()),
    }
}

async fn refuse(stream: &mut dyn PeerStream, reason: &str) {
    let mut words = vec![REFUSED];
    words.extend_from_slice(reason.as_bytes());
    // The refusal stands whether or not it can be told.
    let _ = send(stream, &words).await;
}

async fn tell_replaced(stream: &mut dyn PeerStream, membership: u64) {
    let mut words = vec![REPLACED];
    words.extend_from_slice(&membership.to_le_bytes());
    // As above.
    let _ = send(stream, &words).await;
}

const WRONG_SECRET: &str = "its --cluster-secret differs from this member's";

/// The dialer's side.
pub async fn dial(
    stream: &mut dyn PeerStream,
    secret: &[u8],
    call: &Call,
    nonce: Nonce,
) -> Result<Hello, HandshakeError> {
    let mut words = BytesMut::new();
    put_hello(&mut words, &call.hello, &nonce);
    words.put_u8(call.lane as u8);
    words.put_u64_le(call.expected_node_id);
    words.put_u64_le(call.seen_membership);
    send(stream, &words).await?;
    let answer = receive_accepted(stream).await?;
    let (answer, tag) = answer.split_last_chunk::<32>().ok_or(Malformed("handshake"))?;
    let hello = read_hello(&mut Reader::new(answer, "handshake"))?;
    let tag: &Tag = tag;
    if mac(secret, "acceptor", &words, answer).verify_slice(tag).is_err() {
        return Err(HandshakeError::Refused(WRONG_SECRET.into()));
    }
    let own: Tag = mac(secret, "dialer", &words, answer).finalize().into_bytes().into();
    send(stream, &own).await?;
    receive_accepted(stream).await?;
    Ok(hello)
}

/// The acceptor's side. `check` decides whether the caller is welcome; its error is told to it: one of
/// [`HandshakeError::Refused`] and [`HandshakeError::Replaced`].
pub async fn accept(
    stream: &mut dyn PeerStream,
    secret: &[u8],
    hello: &Hello,
    nonce: Nonce,
    check: impl FnOnce(&Call) -> Result<(), HandshakeError>,
) -> Result<Call, HandshakeError> {
    let words = receive(stream).await?;
    let mut reader = Reader::new(&words, "handshake");
    let call = match read_hello(&mut reader) {
        Ok(hello) => Call {
            hello,
            lane: Lane::from_u8(reader.u8()?).ok_or(reader.malformed())?,
            expected_node_id: reader.u64()?,
            seen_membership: reader.u64()?,
        },
        Err(error) => {
            refuse(stream, "it speaks another version of the protocol between members").await;
            return Err(error);
        }
    };
    let mut answer = BytesMut::new();
    put_hello(&mut answer, hello, &nonce);
    let tag = mac(secret, "acceptor", &words, &answer).finalize().into_bytes();
    let mut accepted = vec![ACCEPTED];
    accepted.extend_from_slice(&answer);
    accepted.extend_from_slice(&tag);
    send(stream, &accepted).await?;
    let theirs = receive(stream).await?;
    if mac(secret, "dialer", &words, &answer).verify_slice(&theirs).is_err() {
        refuse(stream, WRONG_SECRET).await;
        return Err(HandshakeError::Refused(WRONG_SECRET.into()));
    }
    // Only who knows the secret learns whether it is welcome.
    if let Err(error) = check(&call) {
        match &error {
            HandshakeError::Replaced(membership) => tell_replaced(stream, *membership).await,
            error => refuse(stream, &error.to_string()).await,
        }
        return Err(error);
    }
    send(stream, &[ACCEPTED]).await?;
    Ok(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(name: &str) -> Hello {
        Hello {
            cluster: "site-a".into(),
            cluster_id: Some(ClusterId(7)),
            node_id: 42,
            member: Member { name: name.into(), peer_address: "p".into(), client_url: "c".into() },
            is_initialized: true,
        }
    }

    async fn meet(
        dialer_secret: &[u8],
        acceptor_secret: &[u8],
        verdict: Result<(), HandshakeError>,
    ) -> (Result<Hello, HandshakeError>, Result<Call, HandshakeError>) {
        let (mut left, mut right) = tokio::io::duplex(4096);
        let call = Call { hello: hello("m1"), lane: Lane::Bulk, expected_node_id: 9, seen_membership: 5 };
        let answer = hello("m2");
        let dialing = async {
            let met = dial(&mut left, dialer_secret, &call, [1; 16]).await;
            drop(left);
            met
        };
        tokio::join!(dialing, async {
            let met = accept(&mut right, acceptor_secret, &answer, [2; 16], |_| verdict).await;
            drop(right);
            met
        })
    }

    #[tokio::test]
    async fn members_with_one_secret_learn_each_others_names() {
        let (dialed, accepted) = meet(b"secret", b"secret", Ok(())).await;
        assert_eq!(dialed.unwrap(), hello("m2"));
        let call = accepted.unwrap();
        assert_eq!((call.hello, call.lane, call.expected_node_id), (hello("m1"), Lane::Bulk, 9));
    }

    #[tokio::test]
    async fn another_secret_is_refused_by_both_sides() {
        let (dialed, accepted) = meet(b"secret", b"other", Ok(())).await;
        assert!(matches!(dialed, Err(HandshakeError::Refused(reason)) if reason.contains("cluster-secret")));
        assert!(accepted.is_err());
    }

    #[tokio::test]
    async fn a_refusal_tells_its_reason() {
        let refusal = HandshakeError::Refused("not welcome".into());
        let (dialed, accepted) = meet(b"secret", b"secret", Err(refusal)).await;
        assert!(matches!(dialed, Err(HandshakeError::Refused(reason)) if reason.contains("not welcome")));
        assert!(matches!(accepted, Err(HandshakeError::Refused(_))));
    }

    #[tokio::test]
    async fn a_replaced_member_is_told_by_which_membership_and_only_by_who_knows_the_secret() {
        let (dialed, _) = meet(b"secret", b"secret", Err(HandshakeError::Replaced(17))).await;
        assert!(matches!(dialed, Err(HandshakeError::Replaced(17))));
        let (dialed, _) = meet(b"secret", b"other", Err(HandshakeError::Replaced(17))).await;
        assert!(matches!(dialed, Err(HandshakeError::Refused(_))));
    }
}
