//! How two members make sure of each other.
//!
//! Each side shows that it knows the cluster's secret, by an HMAC over what was said before, in which there is a
//! fresh nonce of either; the secret itself is never sent. The words also say which Raft id is meant: a member
//! that lost its disk has a new id, and must not be taken for its old self.
//!
//! ```text
//! dialer   -> hello
//! acceptor -> CHALLENGE u8 | nonce, or REFUSED u8 | reason
//! dialer   -> mac over the hello and the challenge
//! acceptor -> verdict u8 | what belongs to it | mac over the hello, the challenge and this answer
//! ```
//!
//! - Who listens tells a stranger nothing: not its name, and no HMAC that a weak secret could be guessed by.
//! - The dialer acts on nothing that it cannot verify. An early refusal is a text for people, and marked as such:
//!   anybody may answer at the address of a member that is down.
//! - One verdict is not for people only: a member whose place in the cluster has been given to another data
//!   directory is told by which membership, and ends (`membership.rs: replacement`).

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
pub const PROTOCOL: u16 = 6;
const MAGIC: &[u8; 4] = b"anti";
const MAX_WORDS_BYTES: usize = 4096;
/// Longest text of another process that is repeated in a log line.
const MAX_REASON_CHARS: usize = 300;
/// What the acceptor's words begin with.
const REFUSED: u8 = 0;
const ACCEPTED: u8 = 1;
const REPLACED: u8 = 2;
const CHALLENGE: u8 = 3;
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

pub(super) fn mac(secret: &[u8], role: &str, call: &[u8], challenge: &[u8], answer: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length will do");
    for part in [role.as_bytes(), call, challenge, answer] {
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

/// What another process says, fit for a log line.
fn quoted(reason: &[u8]) -> String {
    let text = String::from_utf8_lossy(reason);
    text.chars().filter(|char| !char.is_control()).take(MAX_REASON_CHARS).collect()
}

pub(super) fn challenge(nonce: &[u8; 16]) -> Vec<u8> {
    [&[CHALLENGE][..], nonce].concat()
}

/// The acceptor's challenge. A refusal in its place cannot be verified.
async fn receive_challenge(stream: &mut dyn PeerStream) -> Result<Nonce, HandshakeError> {
    let words = receive(stream).await?;
    match words.split_first() {
        Some((&CHALLENGE, nonce)) => Ok(nonce.try_into().map_err(|_| Malformed("handshake"))?),
        Some((&REFUSED, reason)) => Err(HandshakeError::Refused(format!(
            "whoever answers there refused this member (not verified): {}",
            quoted(reason)
        ))),
        _ => Err(Malformed("handshake").into()),
    }
}

/// The acceptor's verdict, from its own words once they are verified.
fn read_verdict(words: &[u8]) -> Result<Hello, HandshakeError> {
    match words.split_first() {
        Some((&ACCEPTED, hello)) => {
            let mut reader = Reader::new(hello, "handshake");
            let hello = read_hello(&mut reader)?;
            reader.finish()?;
            Ok(hello)
        }
        Some((&REPLACED, membership)) => {
            let membership = membership.try_into().map_err(|_| Malformed("handshake"))?;
            Err(HandshakeError::Replaced(u64::from_le_bytes(membership)))
        }
        Some((&REFUSED, reason)) => {
            Err(HandshakeError::Refused(format!("it refused this member: {}", quoted(reason))))
        }
        _ => Err(Malformed("handshake").into()),
    }
}

const WRONG_SECRET: &str = "its --cluster-secret differs from this member's";

/// What the dialer says first.
pub(super) fn first_words(call: &Call, nonce: &[u8; 16]) -> BytesMut {
    let mut words = BytesMut::new();
    put_hello(&mut words, &call.hello, nonce);
    words.put_u8(call.lane as u8);
    words.put_u64_le(call.expected_node_id);
    words.put_u64_le(call.seen_membership);
    words
}

/// What the acceptor says of itself when it accepts, without the HMAC.
pub(super) fn accepting_words(hello: &Hello, nonce: &[u8; 16]) -> BytesMut {
    let mut words = BytesMut::new();
    words.put_u8(ACCEPTED);
    put_hello(&mut words, hello, nonce);
    words
}

/// The dialer's side.
pub async fn dial(
    stream: &mut dyn PeerStream,
    secret: &[u8],
    call: &Call,
    nonce: Nonce,
) -> Result<Hello, HandshakeError> {
    let words = first_words(call, &nonce);
    send(stream, &words).await?;
    let theirs = receive_challenge(stream).await?;
    let own: Tag = mac(secret, "dialer", &words, &theirs, &[]).finalize().into_bytes().into();
    send(stream, &own).await?;
    let answer = receive(stream).await?;
    let (answer, tag) = answer.split_last_chunk::<32>().ok_or(Malformed("handshake"))?;
    let tag: &Tag = tag;
    if mac(secret, "acceptor", &words, &theirs, answer).verify_slice(tag).is_err() {
        return Err(HandshakeError::Refused(WRONG_SECRET.into()));
    }
    read_verdict(answer)
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
            let mut refusal = vec![REFUSED];
            refusal.extend_from_slice(b"it speaks another version of the protocol between members");
            // The refusal stands whether or not it can be told.
            let _ = send(stream, &refusal).await;
            return Err(error);
        }
    };
    send(stream, &challenge(&nonce)).await?;
    let theirs = receive(stream).await?;
    let knows_secret = mac(secret, "dialer", &words, &nonce, &[]).verify_slice(&theirs).is_ok();
    // Only who knows the secret learns whether it is welcome.
    let checked = match knows_secret {
        true => check(&call),
        false => Err(HandshakeError::Refused(WRONG_SECRET.into())),
    };
    let mut answer = BytesMut::new();
    match &checked {
        Ok(()) => answer = accepting_words(hello, &nonce),
        Err(HandshakeError::Replaced(membership)) => {
            answer.put_u8(REPLACED);
            answer.put_u64_le(*membership);
        }
        Err(error) => {
            answer.put_u8(REFUSED);
            answer.put_slice(error.to_string().as_bytes());
        }
    }
    // A caller with another secret gets no HMAC under this one.
    let tag: Tag = match knows_secret {
        true => mac(secret, "acceptor", &words, &nonce, &answer).finalize().into_bytes().into(),
        false => [0; 32],
    };
    answer.put_slice(&tag);
    let told = send(stream, &answer).await;
    checked?;
    told?;
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
    async fn who_speaks_another_version_is_refused() {
        let (mut left, mut right) = tokio::io::duplex(4096);
        let caller = async {
            let mut words = BytesMut::new();
            put_hello(&mut words, &hello("m1"), &[1; 16]);
            words.put_slice(&[0; 17]);
            // The version of the builds whose questions about watch sessions have another form.
            words[MAGIC.len()..MAGIC.len() + 2].copy_from_slice(&3u16.to_le_bytes());
            send(&mut left, &words).await.unwrap();
            receive(&mut left).await.unwrap()
        };
        let (me, check) = (hello("m2"), |_: &Call| -> Result<(), HandshakeError> { panic!("it is let in") });
        let accepting = accept(&mut right, b"secret", &me, [2; 16], check);
        let (heard, accepted) = tokio::join!(caller, accepting);
        let Err(HandshakeError::Refused(why)) = accepted else { panic!("it is let in") };
        assert!(why.contains("version 3") && why.contains(&format!("version {PROTOCOL}")), "{why}");
        assert!(String::from_utf8_lossy(&heard).contains("another version"));
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

    /// Dials a peer that says `answers`, one after each of the dialer's words.
    async fn dial_scripted(answers: &[&[u8]]) -> Result<Hello, HandshakeError> {
        let (mut left, mut right) = tokio::io::duplex(4096);
        let call = Call { hello: hello("m1"), lane: Lane::Bulk, expected_node_id: 9, seen_membership: 5 };
        let answering = async {
            for answer in answers {
                receive(&mut right).await?;
                send(&mut right, answer).await?;
            }
            io::Result::Ok(())
        };
        let (dialed, _) = tokio::join!(dial(&mut left, b"secret", &call, [1; 16]), answering);
        dialed
    }

    #[tokio::test]
    async fn nobody_without_the_secret_is_believed_to_have_replaced_a_member() {
        let replaced = [&[REPLACED][..], &[0xff; 8]].concat();
        let challenge = [&[CHALLENGE][..], &[7; 16]].concat();
        let dialed = dial_scripted(&[&replaced]).await;
        assert!(matches!(dialed, Err(HandshakeError::Io(_))), "{dialed:?}");
        for tag in [&[][..], &[0; 32]] {
            let dialed = dial_scripted(&[&challenge, &[&replaced[..], tag].concat()]).await;
            assert!(!matches!(dialed, Err(HandshakeError::Replaced(_))), "{dialed:?}");
        }
    }

    #[tokio::test]
    async fn what_a_stranger_says_is_marked_as_such_and_fits_a_line() {
        let refusal = [&[REFUSED][..], b"no\nERROR forged\x1b[31m", &[b'x'; 3000]].concat();
        let Err(HandshakeError::Refused(reason)) = dial_scripted(&[&refusal]).await else {
            panic!("accepted")
        };
        assert!(reason.contains("not verified") && reason.contains("noERROR forged"), "{reason}");
        assert!(reason.len() < 400 && !reason.contains(char::is_control), "{reason}");
    }

    #[tokio::test]
    async fn a_stranger_that_calls_is_told_nothing() {
        let (mut left, mut right) = tokio::io::duplex(4096);
        let stranger = async {
            let mut words = BytesMut::new();
            put_hello(&mut words, &hello("m1"), &[1; 16]);
            words.put_slice(&[0; 17]);
            send(&mut left, &words).await.unwrap();
            let mut heard = receive(&mut left).await.unwrap();
            send(&mut left, &[0; 32]).await.unwrap();
            heard.extend(receive(&mut left).await.unwrap());
            heard
        };
        let mut answer = hello("a-name");
        answer.member.client_url = "http://an-address".into();
        let accepting = accept(&mut right, b"secret", &answer, [2; 16], |_| Ok(()));
        let (heard, accepted) = tokio::join!(stranger, accepting);
        assert!(accepted.is_err());
        let heard = String::from_utf8_lossy(&heard).into_owned();
        assert!(!heard.contains("a-name") && !heard.contains("an-address"), "{heard}");
        assert!(heard.contains("cluster-secret"), "{heard}");
    }
}
