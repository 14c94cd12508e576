//! The id of an event: how far a stream had got in each of its topics (C-WATCH-13).
//!
//! Mostly it is a map of topics to cursors, which any session can use for those that it has too. Clients send it
//! back in a header, and heads of requests are bounded; so where names make the map long, it is the cursors
//! alone, in the order of names, with a digest of these: only a session with the same topics can tell what
//! they mean.
//!
//! Of a topic whose `recreated` is still to be told there is `null` in the place of the cursor: who comes back with such
//! an id was not told, whatever was handed to its connection since.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use bytes::BytesMut;

use super::cursor::{decode_base64, encode_base64};
use super::json::JsonWriter;
use crate::codec::{Reader, put_varint};
use crate::digest::Digest;
use crate::engine::SessionTopic;

/// A longer map is written in the shorter form.
const MAX_MAP_BYTES: usize = 2 << 10;
/// First byte of the shorter form. A map begins with a brace.
const SHORT: u8 = 1;

/// What an id says of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CameWith {
    Nothing,
    Cursor(u64),
    /// It was not told yet that its cursor belonged to an earlier instance.
    Untold,
}

/// The cursor to put into an id; `None` if something comes before that.
fn told_cursor(topic: &SessionTopic) -> Option<u64> {
    let is_told = !topic.is_recreated.load(Ordering::Acquire);
    is_told.then(|| topic.cursor.load(Ordering::Acquire))
}

/// How the ids of one session are written and read.
pub struct EventIds {
    /// Bytes of the map beside its numbers.
    map_bytes: usize,
    /// The topics in the order of their names, and what these are told by.
    by_name: Vec<usize>,
    names: u64,
}

impl EventIds {
    pub fn new(topics: &[SessionTopic]) -> Self {
        let mut by_name: Vec<usize> = (0..topics.len()).collect();
        by_name.sort_by_key(|ordinal| &topics[*ordinal].name);
        let mut names = Digest::default();
        by_name.iter().for_each(|ordinal| names.add_bytes(topics[*ordinal].name.as_bytes()));
        // Quotes, colon and comma. No character of a name is escaped.
        let map_bytes = 1 + topics.iter().map(|topic| topic.name.len() + 4).sum::<usize>();
        EventIds { map_bytes, by_name, names: names.value() }
    }

    /// The line of an event that has its id: the cursors of all topics as they are now.
    pub fn line(&self, topics: &[SessionTopic]) -> BytesMut {
        let digits =
            |cursor: Option<u64>| cursor.map_or(4, |cursor| cursor.checked_ilog10().unwrap_or(0) + 1);
        let digits: usize = topics.iter().map(|topic| digits(told_cursor(topic)) as usize).sum();
        let id = if self.map_bytes + digits <= MAX_MAP_BYTES {
            let mut json = JsonWriter::with_capacity(self.map_bytes + digits);
            json.object(|json| {
                for topic in topics {
                    json.field_named(&topic.name, told_cursor(topic));
                }
            });
            encode_base64(&json.finish())
        } else {
            let mut bytes = BytesMut::with_capacity(9 + 10 * topics.len());
            bytes.extend_from_slice(&[SHORT]);
            bytes.extend_from_slice(&self.names.to_le_bytes());
            let mut untold = vec![0u8; topics.len().div_ceil(8)];
            for (place, ordinal) in self.by_name.iter().enumerate() {
                let cursor = told_cursor(&topics[*ordinal]);
                put_varint(&mut bytes, cursor.unwrap_or_default());
                untold[place / 8] |= u8::from(cursor.is_none()) << (place % 8);
            }
            bytes.extend_from_slice(&untold);
            encode_base64(&bytes)
        };
        let mut line = BytesMut::with_capacity(id.len() + 8);
        line.extend_from_slice(b"id: ");
        line.extend_from_slice(id.as_bytes());
        line.extend_from_slice(b"\n");
        line
    }

    /// What `id` says of each topic; an id that is none of ours says nothing.
    pub fn cursors(&self, id: &str, topics: &[SessionTopic]) -> Vec<CameWith> {
        let bytes = decode_base64(id).unwrap_or_default();
        if bytes.first() == Some(&SHORT) {
            return self.short_cursors(&bytes[1..]).unwrap_or_else(|| vec![CameWith::Nothing; topics.len()]);
        }
        let map: HashMap<String, Option<u64>> = serde_json::from_slice(&bytes).unwrap_or_default();
        let came_with = |topic: &SessionTopic| match map.get(&*topic.name) {
            None => CameWith::Nothing,
            Some(None) => CameWith::Untold,
            Some(Some(cursor)) => CameWith::Cursor(*cursor),
        };
        topics.iter().map(came_with).collect()
    }

    fn short_cursors(&self, bytes: &[u8]) -> Option<Vec<CameWith>> {
        let (names, cursors) = bytes.split_first_chunk::<8>()?;
        if u64::from_le_bytes(*names) != self.names {
            return None;
        }
        let mut reader = Reader::new(cursors, "an id of an event");
        let mut found = vec![CameWith::Untold; self.by_name.len()];
        let cursors: Vec<u64> =
            self.by_name.iter().map(|_| reader.varint()).collect::<Result<_, _>>().ok()?;
        let untold = reader.bytes(self.by_name.len().div_ceil(8)).ok()?;
        for ((place, ordinal), cursor) in self.by_name.iter().enumerate().zip(cursors) {
            if untold[place / 8] & (1 << (place % 8)) == 0 {
                found[*ordinal] = CameWith::Cursor(cursor);
            }
        }
        reader.finish().ok()?;
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use super::CameWith::{Cursor, Nothing, Untold};
    use super::*;
    use crate::engine::View;

    fn topics(names: impl IntoIterator<Item = String>, cursor: u64) -> Vec<SessionTopic> {
        let view = View::new(1, 1, 1, Default::default(), None);
        let topic = |(place, name): (usize, String)| SessionTopic {
            name: name.into(),
            epoch: 1,
            view: view.clone(),
            cursor: AtomicU64::new(cursor.saturating_sub(place as u64)),
            is_recreated: AtomicBool::new(false),
        };
        names.into_iter().enumerate().map(topic).collect()
    }

    fn id_of(topics: &[SessionTopic]) -> String {
        let line = EventIds::new(topics).line(topics);
        std::str::from_utf8(&line).unwrap().strip_prefix("id: ").unwrap().trim_end().to_owned()
    }

    fn named(topics: &[SessionTopic], id: &str) -> Vec<CameWith> {
        EventIds::new(topics).cursors(id, topics)
    }

    #[test]
    fn an_id_says_whether_recreated_was_told() {
        // C-WATCH-11, C-GAP-10: a frame that was lost with its connection was not told.
        for count in [2, 200] {
            let some = topics((0..count).map(|number| format!("topic-{number}")), 1000);
            some[1].is_recreated.store(true, Ordering::Release);
            let came_with = named(&some, &id_of(&some));
            assert_eq!(came_with[..2], [Cursor(1000), Untold]);
            assert!(came_with[2..].iter().all(|it| matches!(it, Cursor(_))));
            some[1].is_recreated.store(false, Ordering::Release);
            assert_eq!(named(&some, &id_of(&some))[1], Cursor(999));
        }
    }

    #[test]
    fn an_id_of_few_topics_is_a_map_for_any_session() {
        // C-WATCH-09, C-WATCH-13
        let two = topics(["a".into(), "b".into()], 7);
        assert_eq!(decode_base64(&id_of(&two)).unwrap(), br#"{"a":7,"b":6}"#);
        let other = topics(["c".into(), "b".into()], 0);
        assert_eq!(named(&other, &id_of(&two)), [Nothing, Cursor(6)]);
        for bad in ["", "7", "!", "AQ", &encode_base64(b"[1]"), &encode_base64(br#"{"a":-1}"#)] {
            assert_eq!(named(&two, bad), [Nothing, Nothing], "{bad}");
        }
    }

    #[test]
    fn the_largest_watch_has_ids_that_fit_a_head() {
        // C-WATCH-13
        let name = |number: usize| format!("{:x<255}", format!("t{number}-"));
        let largest = topics((0..256).map(name), u64::MAX);
        let id = id_of(&largest);
        assert!(id.len() <= 4 << 10, "{}", id.len());
        let expected: Vec<CameWith> = (0..256).map(|place| Cursor(u64::MAX - place)).collect();
        assert_eq!(named(&largest, &id), expected);
        // The same topics in another order.
        let reversed = topics((0..256).rev().map(name), 0);
        assert_eq!(named(&reversed, &id), expected.into_iter().rev().collect::<Vec<_>>());
        let others = topics((1..257).map(name), 0);
        assert_eq!(named(&others, &id), vec![Nothing; 256]);
        for cut in [1, 4, 100, id.len() - 4] {
            assert_eq!(named(&largest, &id[..cut]), vec![Nothing; 256], "{cut}");
        }
    }

    #[test]
    fn the_map_is_as_long_as_it_is_counted() {
        // C-WATCH-13
        for cursor in [0, 9, 10, 12_345] {
            let mut count = 1;
            loop {
                let some = topics((0..count).map(|number| format!("topic-{number}")), cursor);
                let bytes = decode_base64(&id_of(&some)).unwrap();
                let map: HashMap<&str, u64> =
                    some.iter().map(|topic| (&*topic.name, topic.cursor.load(Ordering::Acquire))).collect();
                let map_bytes = serde_json::to_vec(&map).unwrap().len();
                assert_eq!(bytes[0] == b'{', map_bytes <= MAX_MAP_BYTES, "{count} of {map_bytes} bytes");
                if bytes[0] != b'{' {
                    break;
                }
                count += 1;
            }
        }
    }
}
