//! What members tell each other of watch sessions and of links, for [`crate::fuzzing`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::links::{
    LinkError, LinkState, LinkStatus, decode_generations, decode_statuses, encode_generations,
    encode_statuses,
};
use super::session_transfer::{
    Ask, Reply, encode_at, encode_taken, encode_too_large, encode_unknown, encode_wrong_key,
};
use super::{SessionTopic, Subscription, View};
use crate::filter::Filter;

/// A question or an answer about sessions or links, as its first byte says.
pub fn read_message(bytes: &[u8]) {
    let Some((what, bytes)) = bytes.split_first() else { return };
    match what {
        0 => {
            if let Ok(ask) = Ask::decode(bytes) {
                let sent = ask.encode();
                assert_eq!(Ask::decode(&sent).expect("comes back").encode(), sent);
            }
        }
        1 => {
            if let Ok(reply) = Reply::decode(bytes) {
                let sent = encode_reply(&reply);
                assert_eq!(encode_reply(&Reply::decode(&sent).expect("comes back")), sent);
            }
        }
        2 => {
            if let Ok(generations) = decode_generations(bytes) {
                assert_eq!(decode_generations(&encode_generations(&generations)), Ok(generations));
            }
        }
        _ => {
            if let Ok(statuses) = decode_statuses(bytes) {
                assert_eq!(decode_statuses(&encode_statuses(&statuses)), Ok(statuses));
            }
        }
    }
}

fn encode_reply(reply: &Reply) -> Vec<u8> {
    let sent = match reply {
        Reply::Unknown => encode_unknown(),
        Reply::WrongKey => encode_wrong_key(),
        Reply::At(member) => encode_at(member),
        Reply::Taken { subscription, applied_index, moves } => {
            encode_taken(subscription, *applied_index, *moves)
        }
        Reply::TooLarge(bytes) => encode_too_large(*bytes),
    };
    sent.to_vec()
}

/// One of each.
pub fn messages() -> Vec<Vec<u8>> {
    let nodes: Arc<[String]> = Arc::from(["edge".to_owned()]);
    let filter = Filter::parse(r#"["Or",["m:*",["data.a","In",[1.50,null]]]]"#).expect("a filter");
    let view = View::new(5, 256, 1 << 18, nodes, Some(Arc::new(filter)));
    let topic = |name: &str| SessionTopic {
        name: name.into(),
        epoch: 41,
        view: view.clone(),
        cursor: AtomicU64::new(7),
        is_recreated: AtomicBool::new(false),
    };
    let topics = vec![topic("a"), topic("b")];
    let taken = Reply::Taken {
        subscription: Subscription { binding: Some([7; 32]), topics, heartbeat_ms: 15_000 },
        applied_index: 300,
        moves: 3,
    };
    let wid = "wid_m1.x".to_owned();
    let ask = Ask { wid, binding: None, taker: "m2".into(), max_bytes: 4096, taken_moves: 2 };
    let (code, message) = ("source_damaged".to_owned(), "it is none".to_owned());
    let error = LinkError { code, message, topic: Some("t".to_owned()), seq: Some(9), ts_ms: 7 };
    let status = LinkStatus { state: LinkState::Blocked, lag: 300, last_error: Some(error) };
    let bodies = [
        (0, ask.encode().to_vec()),
        (1, encode_reply(&taken)),
        (1, encode_reply(&Reply::Unknown)),
        (1, encode_reply(&Reply::WrongKey)),
        (1, encode_reply(&Reply::At("m3".to_owned()))),
        (1, encode_reply(&Reply::TooLarge(70_000))),
        (2, encode_generations(&[0, 300, u64::MAX]).to_vec()),
        (3, encode_statuses(&[None, Some(status)]).to_vec()),
    ];
    bodies.into_iter().map(|(what, body)| [&[what][..], &body].concat()).collect()
}
