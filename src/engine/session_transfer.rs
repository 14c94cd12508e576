//! Taking a watch session over from the member that holds it (C-WATCH-05).
//!
//! The one that got the GET asks the maker, which is named in the id. A maker that gave the session away before says
//! to whom, and is told by the asker once that one has it: until then others are shown where it was. The session
//! moves only if its key was shown, and only to where there is room for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, BytesMut};

use super::sessions::{
    Binding, Hold, Session, SessionTopic, Subscription, Whereabouts, is_same, not_the_maker, unknown_session,
};
use super::{Engine, Inner, View};
use crate::codec::{Malformed, Reader, put_blob, put_varint};
use crate::error::{Code, Error};
use crate::filter::Filter;
use crate::raft::PeerHandler;
use crate::task;

const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// From the maker to the present holder, once more if it moved meanwhile, and once more to say that there is room.
const MAX_HOPS: usize = 4;
/// Room for a session that is made before its size is known.
const USUAL_SESSION_BYTES: usize = 4 << 10;

/// What a member is asked, or told.
pub(super) struct Ask {
    pub(super) wid: String,
    pub(super) binding: Option<Binding>,
    /// Name of the member that wants the session.
    pub(super) taker: String,
    /// What the taker has room for.
    pub(super) max_bytes: usize,
    /// The taker has the session already, with so many moves, and nothing is asked; 0 if it has not.
    pub(super) taken_moves: u64,
}

pub(super) enum Reply {
    Unknown,
    WrongKey,
    At(String),
    /// The session, and what must be applied before its topics are looked up.
    Taken {
        subscription: Subscription,
        applied_index: u64,
        moves: u64,
    },
    /// It needs so many bytes.
    TooLarge(usize),
}

impl Ask {
    pub(super) fn encode(&self) -> BytesMut {
        let mut out = BytesMut::new();
        put_blob(&mut out, self.wid.as_bytes());
        put_binding(&mut out, self.binding.as_ref());
        put_blob(&mut out, self.taker.as_bytes());
        put_varint(&mut out, self.max_bytes as u64);
        put_varint(&mut out, self.taken_moves);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "a request for a watch session");
        let ask = Ask {
            wid: reader.text()?.to_owned(),
            binding: binding(&mut reader)?,
            taker: reader.text()?.to_owned(),
            max_bytes: usize::try_from(reader.varint()?).map_err(|_| reader.malformed())?,
            taken_moves: reader.varint()?,
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

pub(super) fn encode_unknown() -> BytesMut {
    BytesMut::from(&[0u8][..])
}

pub(super) fn encode_wrong_key() -> BytesMut {
    BytesMut::from(&[1u8][..])
}

pub(super) fn encode_at(member: &str) -> BytesMut {
    let mut out = BytesMut::from(&[2u8][..]);
    put_blob(&mut out, member.as_bytes());
    out
}

pub(super) fn encode_taken(subscription: &Subscription, applied_index: u64, moves: u64) -> BytesMut {
    let mut out = BytesMut::from(&[3u8][..]);
    put_varint(&mut out, applied_index);
    put_varint(&mut out, moves);
    put_subscription(&mut out, subscription);
    out
}

pub(super) fn encode_too_large(bytes: usize) -> BytesMut {
    let mut out = BytesMut::from(&[4u8][..]);
    put_varint(&mut out, bytes as u64);
    out
}

impl Reply {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "a watch session");
        let reply = match reader.u8()? {
            0 => Reply::Unknown,
            1 => Reply::WrongKey,
            2 => Reply::At(reader.text()?.to_owned()),
            3 => {
                let (applied_index, moves) = (reader.varint()?, reader.varint()?);
                Reply::Taken { subscription: subscription(&mut reader)?, applied_index, moves }
            }
            4 => Reply::TooLarge(usize::try_from(reader.varint()?).map_err(|_| reader.malformed())?),
            _ => return Err(reader.malformed()),
        };
        reader.finish()?;
        Ok(reply)
    }
}

fn put_subscription(out: &mut BytesMut, subscription: &Subscription) {
    let Subscription { binding, topics, heartbeat_ms } = subscription;
    put_binding(out, binding.as_ref());
    put_varint(out, *heartbeat_ms);
    // All of a session's views pass over the same nodes.
    let drop_nodes = topics.first().map_or(&[][..], |topic| &topic.view.drop_nodes);
    put_varint(out, drop_nodes.len() as u64);
    drop_nodes.iter().for_each(|node| put_blob(out, node.as_bytes()));
    // Each view once, however many topics share it.
    let mut views: Vec<&Arc<View>> = Vec::new();
    let places: Vec<usize> = topics
        .iter()
        .map(|topic| {
            let known = views.iter().position(|view| Arc::ptr_eq(view, &topic.view));
            known.unwrap_or_else(|| {
                views.push(&topic.view);
                views.len() - 1
            })
        })
        .collect();
    put_varint(out, views.len() as u64);
    views.iter().for_each(|view| put_view(out, view));
    put_varint(out, topics.len() as u64);
    for (topic, place) in topics.iter().zip(places) {
        put_blob(out, topic.name.as_bytes());
        put_varint(out, topic.epoch);
        put_varint(out, place as u64);
        put_varint(out, topic.cursor.load(Ordering::Acquire));
        out.put_u8(topic.is_recreated.load(Ordering::Acquire) as u8);
    }
}

fn put_view(out: &mut BytesMut, view: &View) {
    put_varint(out, u64::from(view.form));
    put_varint(out, view.limit as u64);
    put_varint(out, view.max_bytes as u64);
    let filter = view.filter.as_ref().map_or(String::new(), |filter| filter.to_string());
    put_blob(out, filter.as_bytes());
}

fn view(reader: &mut Reader<'_>, drop_nodes: Arc<[String]>) -> Result<Arc<View>, Malformed> {
    let form = u32::try_from(reader.varint()?).map_err(|_| reader.malformed())?;
    let (limit, max_bytes) = (reader.varint()? as usize, reader.varint()? as usize);
    let filter = match reader.text()? {
        "" => None,
        text => Some(Arc::new(Filter::parse_canonical(text).map_err(|_| reader.malformed())?)),
    };
    Ok(View::new(form, limit, max_bytes, drop_nodes, filter))
}

fn subscription(reader: &mut Reader<'_>) -> Result<Subscription, Malformed> {
    let binding = binding(reader)?;
    let heartbeat_ms = reader.varint()?;
    let mut drop_nodes = Vec::new();
    for _ in 0..reader.count(1)? {
        drop_nodes.push(reader.text()?.to_owned());
    }
    let drop_nodes: Arc<[String]> = drop_nodes.into();
    let mut views = Vec::new();
    for _ in 0..reader.count(4)? {
        views.push(view(reader, drop_nodes.clone())?);
    }
    let mut topics = Vec::new();
    for _ in 0..reader.count(5)? {
        topics.push(SessionTopic {
            name: reader.text()?.into(),
            epoch: reader.varint()?,
            view: views.get(reader.varint()? as usize).ok_or_else(|| reader.malformed())?.clone(),
            cursor: AtomicU64::new(reader.varint()?),
            is_recreated: AtomicBool::new(reader.bool()?),
        });
    }
    Ok(Subscription { binding, topics, heartbeat_ms })
}

/// The member that made a session, as its id says.
fn maker_of(wid: &str) -> Option<&str> {
    let (maker, _) = wid.strip_prefix("wid_")?.rsplit_once('.')?;
    Some(maker)
}

impl Engine {
    /// Finds a session, wherever it is, and holds it from then on. Errors: `not_found`; `unauthorized` for who
    /// did not make it; `throttled` where `hold` gives nothing for so many bytes, or too many are held here;
    /// `not_ready` while this member has not applied what the session was made of.
    pub async fn session(
        &self,
        wid: &str,
        binding: Option<&Binding>,
        hold: impl Fn(usize) -> Result<Hold, Error>,
    ) -> Result<Arc<Session>, Error> {
        let session = self.find_session(wid, binding, hold).await?;
        if !self.wait_applied(session.applied_index, self.deadline()).await {
            let message = "this member has not caught up with the one that held this watch session";
            return Err(Error::new(Code::NotReady, message)
                .with_detail(serde_json::json!({ "member": self.member(), "reason": "catching_up" })));
        }
        Ok(session)
    }

    async fn find_session(
        &self,
        wid: &str,
        binding: Option<&Binding>,
        hold: impl Fn(usize) -> Result<Hold, Error>,
    ) -> Result<Arc<Session>, Error> {
        let mut ask_whom = match self.inner.watch_sessions.find(wid) {
            Whereabouts::Here(session) if session.is_bound_to(binding) => return Ok(session),
            Whereabouts::Here(_) => return Err(not_the_maker()),
            Whereabouts::At(member, _) => member,
            Whereabouts::Unknown => maker_of(wid).ok_or_else(unknown_session)?.to_owned(),
        };
        let mut ask = Ask {
            wid: wid.to_owned(),
            binding: binding.copied(),
            taker: self.member().to_owned(),
            max_bytes: USUAL_SESSION_BYTES,
            taken_moves: 0,
        };
        let asked_first = ask_whom.clone();
        let mut held = None;
        for _ in 0..MAX_HOPS {
            if ask_whom == self.member() {
                break;
            }
            // Before it is let go over there.
            self.inner.watch_sessions.make_room()?;
            let taken = match held.take() {
                Some(taken) => taken,
                None => hold(ask.max_bytes)?,
            };
            let reply = self.inner.node.ask_handler(&ask_whom, &ask.encode(), ASK_TIMEOUT).await;
            let reply = reply.and_then(|reply| Reply::decode(&reply).map_err(|error| error.to_string()));
            match reply {
                Ok(Reply::Taken { subscription, applied_index, moves }) => {
                    let session = Session::new(wid.to_owned(), subscription, (applied_index, moves), taken);
                    self.inner.watch_sessions.adopt(session.clone());
                    if ask_whom != asked_first {
                        self.tell_taken(asked_first, Ask { taken_moves: moves, ..ask });
                    }
                    return Ok(session);
                }
                Ok(Reply::At(member)) => (ask_whom, held) = (member, Some(taken)),
                Ok(Reply::TooLarge(bytes)) => ask.max_bytes = bytes,
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

impl Engine {
    /// Tells the member that knew where a session was that it is here now. If that gets lost, the way to it is longer.
    fn tell_taken(&self, member: String, ask: Ask) {
        let told = ask.encode();
        let inner = self.inner.clone();
        task::spawn(async move {
            if let Err(error) = inner.node.ask_handler(&member, &told, ASK_TIMEOUT).await {
                tracing::debug!("member {member} was not told where a watch session is: {error}");
            }
        });
    }
}

impl Inner {
    fn give_session(&self, ask: &Ask) -> BytesMut {
        let sessions = &self.watch_sessions;
        match sessions.find(&ask.wid) {
            Whereabouts::Here(session) if !session.is_bound_to(ask.binding.as_ref()) => encode_wrong_key(),
            // What is told comes late: it came back meanwhile.
            Whereabouts::Here(_) if ask.taken_moves > 0 => encode_unknown(),
            Whereabouts::Here(session) => {
                let bytes = session.subscription.memory_bytes();
                if bytes > ask.max_bytes {
                    return encode_too_large(bytes);
                }
                sessions.give_to(&session, &ask.taker);
                // Written after its stream was told to end: what that still hands out on its way may come again.
                let applied_index = self.node.applied().index().max(session.applied_index);
                encode_taken(&session.subscription, applied_index, session.moves + 1)
            }
            Whereabouts::At(_, binding) if !is_same(binding.as_ref(), ask.binding.as_ref()) => {
                encode_wrong_key()
            }
            Whereabouts::At(_, binding) if ask.taken_moves > 0 => {
                sessions.moved(&ask.wid, &ask.taker, binding, ask.taken_moves);
                encode_unknown()
            }
            Whereabouts::At(member, _) if member == ask.taker => encode_unknown(),
            Whereabouts::At(member, _) => encode_at(&member),
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
        let topic = |name: &str, view: &Arc<View>, cursor, is_recreated| SessionTopic {
            name: name.into(),
            epoch: 41,
            view: view.clone(),
            cursor: AtomicU64::new(cursor),
            is_recreated: AtomicBool::new(is_recreated),
        };
        let nodes: Arc<[String]> = Arc::from(["edge".to_owned()]);
        let shared = View::new(5, 256, 1 << 18, nodes.clone(), None);
        let filter = Filter::parse(r#"["Or",["m:*",["data.a\"\u0001","In",[1.50,null,"\u00e9"]]]]"#).unwrap();
        let own = View::new(5, 256, 1 << 18, nodes, Some(Arc::new(filter)));
        let sent = Subscription {
            binding: Some([7; 32]),
            topics: vec![
                topic("a", &shared, 9, false),
                topic("b", &own, u64::MAX, true),
                topic("c", &shared, 0, false),
            ],
            heartbeat_ms: 15_000,
        };
        let reply = encode_taken(&sent, 88, 3);
        let Ok(Reply::Taken { subscription, applied_index, moves }) = Reply::decode(&reply) else {
            panic!("it is a session");
        };
        assert_eq!(encode_taken(&subscription, applied_index, moves), reply);
        assert_eq!(subscription.memory_bytes(), sent.memory_bytes());
        // C-FILT-02
        let views: Vec<&Arc<View>> = subscription.topics.iter().map(|topic| &topic.view).collect();
        assert_eq!(views, [&shared, &own, &shared]);
        assert!(Arc::ptr_eq(views[0], views[2]), "still one");
        assert!(matches!(Reply::decode(&encode_at("m3")), Ok(Reply::At(member)) if member == "m3"));
        assert!(matches!(Reply::decode(&encode_too_large(70_000)), Ok(Reply::TooLarge(70_000))));
        assert!(matches!(Reply::decode(&encode_unknown()), Ok(Reply::Unknown)));
        assert!(matches!(Reply::decode(&encode_wrong_key()), Ok(Reply::WrongKey)));
        (0..reply.len()).for_each(|cut| assert!(Reply::decode(&reply[..cut]).is_err()));
        let ask = Ask {
            wid: "wid_m1.x".into(),
            binding: None,
            taker: "m2".into(),
            max_bytes: 4096,
            taken_moves: 7,
        };
        let decoded = Ask::decode(&ask.encode()).unwrap();
        assert_eq!((decoded.wid.as_str(), decoded.binding, decoded.taker.as_str()), ("wid_m1.x", None, "m2"));
        assert_eq!((decoded.max_bytes, decoded.taken_moves), (4096, 7));
    }

    #[test]
    fn an_id_names_its_maker_whatever_that_is_called() {
        assert_eq!(maker_of("wid_m1.Zk3nq0f8T1y5rWc2Vb7JdA"), Some("m1"));
        assert_eq!(maker_of("wid_a.b_c-1.Zk3n-_"), Some("a.b_c-1"));
        assert_eq!(maker_of("m1.x"), None);
        assert_eq!(maker_of("wid_m1"), None);
    }
}
