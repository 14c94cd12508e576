//! Taking a watch session over from the member that holds it (C-WATCH-05).
//!
//! The one that got the GET asks the maker, which is named in the id. A maker that gave the session away
//! before says to whom, and notes at once that the asker has it now. The session moves only if its key was shown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, BytesMut};

use super::sessions::{
    Binding, Session, SessionTopic, Subscription, Whereabouts, is_same, not_the_maker, unknown_session,
};
use super::{Engine, Inner, View};
use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::error::Error;
use crate::raft::PeerHandler;

const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// From the maker to the present holder, and once more if it moved meanwhile.
const MAX_HOPS: usize = 3;

/// What a member is asked.
struct Ask {
    wid: String,
    binding: Option<Binding>,
    /// Name of the member that wants the session.
    taker: String,
}

enum Reply {
    Unknown,
    WrongKey,
    At(String),
    /// The session, and what must be applied before its topics are looked up.
    Taken {
        subscription: Subscription,
        applied_index: u64,
    },
}

impl Ask {
    fn encode(&self) -> BytesMut {
        let mut out = BytesMut::new();
        put_blob(&mut out, self.wid.as_bytes());
        put_binding(&mut out, self.binding.as_ref());
        put_blob(&mut out, self.taker.as_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "a request for a watch session");
        let ask = Ask {
            wid: reader.text()?.to_owned(),
            binding: binding(&mut reader)?,
            taker: reader.text()?.to_owned(),
        };
        reader.finish()?;
        Ok(ask)
    }
}

fn put_binding(out: &mut BytesMut, binding: Option<&Binding>) {
    put_blob(out, binding.map_or(&[][..], |binding| &binding[..]));
}

fn binding(reader: &mut Reader<'_>) -> Result<Option<Binding>, Malformed> {
    let bytes = reader.blob()?;
    if bytes.is_empty() {
        return Ok(None);
    }
    bytes.try_into().map(Some).map_err(|_| reader.malformed())
}

fn encode_unknown() -> BytesMut {
    BytesMut::from(&[0u8][..])
}

fn encode_wrong_key() -> BytesMut {
    BytesMut::from(&[1u8][..])
}

fn encode_at(member: &str) -> BytesMut {
    let mut out = BytesMut::from(&[2u8][..]);
    put_blob(&mut out, member.as_bytes());
    out
}

fn encode_taken(subscription: &Subscription, applied_index: u64) -> BytesMut {
    let mut out = BytesMut::from(&[3u8][..]);
    put_varint(&mut out, applied_index);
    put_subscription(&mut out, subscription);
    out
}

impl Reply {
    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "a watch session");
        let reply = match reader.u8()? {
            0 => Reply::Unknown,
            1 => Reply::WrongKey,
            2 => Reply::At(reader.text()?.to_owned()),
            3 => {
                let applied_index = reader.varint()?;
                Reply::Taken { subscription: subscription(&mut reader)?, applied_index }
            }
            _ => return Err(reader.malformed()),
        };
        reader.finish()?;
        Ok(reply)
    }
}

fn put_subscription(out: &mut BytesMut, subscription: &Subscription) {
    let Subscription { binding, topics, view, heartbeat_ms } = subscription;
    put_binding(out, binding.as_ref());
    put_varint(out, *heartbeat_ms);
    put_varint(out, u64::from(view.form));
    put_varint(out, view.limit as u64);
    put_varint(out, view.max_bytes as u64);
    put_varint(out, view.drop_nodes.len() as u64);
    view.drop_nodes.iter().for_each(|node| put_blob(out, node.as_bytes()));
    put_varint(out, topics.len() as u64);
    for topic in topics {
        put_blob(out, topic.name.as_bytes());
        put_varint(out, topic.epoch);
        put_varint(out, topic.cursor.load(Ordering::Acquire));
        out.put_u8(topic.is_recreated.load(Ordering::Acquire) as u8);
    }
}

fn subscription(reader: &mut Reader<'_>) -> Result<Subscription, Malformed> {
    let binding = binding(reader)?;
    let heartbeat_ms = reader.varint()?;
    let form = u32::try_from(reader.varint()?).map_err(|_| reader.malformed())?;
    let (limit, max_bytes) = (reader.varint()? as usize, reader.varint()? as usize);
    let mut drop_nodes = Vec::new();
    for _ in 0..reader.count(1)? {
        drop_nodes.push(reader.text()?.to_owned());
    }
    let mut topics = Vec::new();
    for _ in 0..reader.count(4)? {
        topics.push(SessionTopic {
            name: reader.text()?.into(),
            epoch: reader.varint()?,
            cursor: AtomicU64::new(reader.varint()?),
            is_recreated: AtomicBool::new(reader.bool()?),
        });
    }
    Ok(Subscription { binding, topics, view: View { form, limit, max_bytes, drop_nodes }, heartbeat_ms })
}

/// The member that made a session, as its id says.
fn maker_of(wid: &str) -> Option<&str> {
    let (maker, _) = wid.strip_prefix("wid_")?.rsplit_once('.')?;
    Some(maker)
}

impl Engine {
    /// Finds a session, wherever it is, and holds it from then on. Errors: `not_found`; `unauthorized` for who
    /// did not make it.
    pub async fn session(&self, wid: &str, binding: Option<&Binding>) -> Result<Arc<Session>, Error> {
        let mut ask_whom = match self.inner.watch_sessions.find(wid) {
            Whereabouts::Here(session) if session.is_bound_to(binding) => return Ok(session),
            Whereabouts::Here(_) => return Err(not_the_maker()),
            Whereabouts::At(member, _) => member,
            Whereabouts::Unknown => maker_of(wid).ok_or_else(unknown_session)?.to_owned(),
        };
        let ask = Ask { wid: wid.to_owned(), binding: binding.copied(), taker: self.member().to_owned() };
        for _ in 0..MAX_HOPS {
            if ask_whom == self.member() {
                break;
            }
            let reply = self.inner.node.ask_handler(&ask_whom, &ask.encode(), ASK_TIMEOUT).await;
            let reply = reply.and_then(|reply| Reply::decode(&reply).map_err(|error| error.to_string()));
            match reply {
                Ok(Reply::Taken { subscription, applied_index }) => {
                    // What the maker looked up may not be applied here yet.
                    self.wait_applied(applied_index, self.deadline()).await;
                    let session = Session::new(wid.to_owned(), subscription);
                    self.inner.watch_sessions.adopt(session.clone());
                    return Ok(session);
                }
                Ok(Reply::At(member)) => ask_whom = member,
                Ok(Reply::WrongKey) => return Err(not_the_maker()),
                Ok(Reply::Unknown) => break,
                Err(error) => {
                    tracing::debug!("member {ask_whom} was asked for a watch session: {error}");
                    break;
                }
            }
        }
        // Two requests for one session may come at once; then the other one has brought it.
        match self.inner.watch_sessions.find(wid) {
            Whereabouts::Here(session) if session.is_bound_to(binding) => Ok(session),
            _ => Err(unknown_session()),
        }
    }
}

impl Inner {
    fn give_session(&self, ask: &Ask) -> BytesMut {
        let sessions = &self.watch_sessions;
        match sessions.find(&ask.wid) {
            Whereabouts::Here(session) if !session.is_bound_to(ask.binding.as_ref()) => encode_wrong_key(),
            Whereabouts::Here(session) => {
                sessions.give_to(&session, &ask.taker);
                // Written after its stream was told to end: what that still hands out on its way may come again.
                encode_taken(&session.subscription, self.node.applied().index())
            }
            Whereabouts::At(_, binding) if !is_same(binding.as_ref(), ask.binding.as_ref()) => {
                encode_wrong_key()
            }
            Whereabouts::At(member, _) if member == ask.taker => encode_unknown(),
            Whereabouts::At(member, binding) => {
                sessions.moved(&ask.wid, &ask.taker, binding);
                encode_at(&member)
            }
            Whereabouts::Unknown => encode_unknown(),
        }
    }
}

impl PeerHandler for Inner {
    fn links(&self, request: &[u8]) -> Result<BytesMut, String> {
        self.answer_links(request)
    }

    fn handle(&self, request: &[u8]) -> Result<BytesMut, String> {
        let ask = Ask::decode(request).map_err(|error| error.to_string())?;
        Ok(self.give_session(&ask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_crosses_the_wire_unchanged() {
        let topic = |name: &str, cursor, is_recreated| SessionTopic {
            name: name.into(),
            epoch: 41,
            cursor: AtomicU64::new(cursor),
            is_recreated: AtomicBool::new(is_recreated),
        };
        let view = View { form: 5, limit: 256, max_bytes: 1 << 18, drop_nodes: vec!["edge".into()] };
        let sent = Subscription {
            binding: Some([7; 32]),
            topics: vec![topic("a", 9, false), topic("b", u64::MAX, true)],
            view,
            heartbeat_ms: 15_000,
        };
        let reply = encode_taken(&sent, 88);
        let Ok(Reply::Taken { subscription, applied_index }) = Reply::decode(&reply) else {
            panic!("it is a session");
        };
        assert_eq!(encode_taken(&subscription, applied_index), reply);
        assert!(matches!(Reply::decode(&encode_at("m3")), Ok(Reply::At(member)) if member == "m3"));
        assert!(matches!(Reply::decode(&encode_unknown()), Ok(Reply::Unknown)));
        assert!(matches!(Reply::decode(&encode_wrong_key()), Ok(Reply::WrongKey)));
        (0..reply.len()).for_each(|cut| assert!(Reply::decode(&reply[..cut]).is_err()));
        let ask = Ask { wid: "wid_m1.x".into(), binding: None, taker: "m2".into() };
        let decoded = Ask::decode(&ask.encode()).unwrap();
        assert_eq!((decoded.wid.as_str(), decoded.binding, decoded.taker.as_str()), ("wid_m1.x", None, "m2"));
    }

    #[test]
    fn an_id_names_its_maker_whatever_that_is_called() {
        assert_eq!(maker_of("wid_m1.Zk3nq0f8T1y5rWc2Vb7JdA"), Some("m1"));
        assert_eq!(maker_of("wid_a.b_c-1.Zk3n-_"), Some("a.b_c-1"));
        assert_eq!(maker_of("m1.x"), None);
        assert_eq!(maker_of("wid_m1"), None);
    }
}
