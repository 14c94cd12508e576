//! Requests that are built once per connection; a call changes a few bytes of them in place.
//!
//! So every varying part has a fixed width: topics are numbered with leading zeroes, a cursor is padded
//! with blanks (which JSON allows between tokens), and each payload starts with its number in hex.

use super::options::Url;

/// Digits of a topic's number in its name.
const TOPIC_DIGITS: usize = 5;
/// Most topics that these digits can tell apart.
pub const MAX_TOPICS: u32 = 100_000;
/// A payload is a JSON string of one character at least.
pub const MIN_PAYLOAD_BYTES: usize = 3;
/// Hex digits at the start of a payload that make it unlike all others, as far as there is room.
pub const UNIQUE_DIGITS: usize = 16;
/// A payload with room for all of them.
pub const MIN_TIMED_PAYLOAD_BYTES: usize = UNIQUE_DIGITS + 2;
/// Characters of the largest seq.
const CURSOR_WIDTH: usize = 20;

/// The names of the topics of one run.
#[derive(Debug, Clone)]
pub struct Topics {
    prefix: String,
    pub count: u32,
}

impl Topics {
    /// `count` names that no other run has.
    pub fn new(count: u32) -> Self {
        Topics { prefix: format!("bench-{:016x}-", rand::random::<u64>()), count }
    }

    pub fn name(&self, number: u32) -> String {
        format!("{}{number:0TOPIC_DIGITS$}", self.prefix)
    }
}

/// A request without a varying part. `path` begins with `/`.
pub fn request(method: &str, url: &Url, path: &str, body: &str) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", url.authority);
    if let Some(key) = &url.key {
        head += &format!("Authorization: Bearer {}\r\n", key.expose());
    }
    if !body.is_empty() {
        head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    (head + "\r\n" + body).into_bytes()
}

/// An append of a fixed number of records.
pub struct AppendRequest {
    bytes: Vec<u8>,
    topic_at: usize,
    /// Where the numbers of the payloads start.
    numbers_at: Vec<usize>,
    number_digits: usize,
}

impl AppendRequest {
    pub fn new(url: &Url, topics: &Topics, batch: usize, payload_bytes: usize) -> Self {
        let text_bytes = payload_bytes.max(MIN_PAYLOAD_BYTES) - 2;
        let record = format!("{{\"data\":\"{}\"}}", "x".repeat(text_bytes));
        let body = format!("{{\"records\":[{}]}}", vec![record.as_str(); batch].join(","));
        // The seqs in between say nothing that first and last do not.
        let path = format!("/v0/topics/{}?return_seqs=false", topics.name(0));
        let bytes = request("POST", url, &path, &body);
        let first_at = bytes.len() - body.len() + "{\"records\":[{\"data\":\"".len();
        AppendRequest {
            topic_at: topic_at("POST", topics),
            numbers_at: (0..batch).map(|record_at| first_at + record_at * (record.len() + 1)).collect(),
            number_digits: text_bytes.min(UNIQUE_DIGITS),
            bytes,
        }
    }

    /// The request for topic `topic`, whose payloads are numbered from `first_number` on.
    pub fn fill(&mut self, topic: u32, first_number: u64) -> &[u8] {
        put_topic(&mut self.bytes, self.topic_at, topic);
        for (number, at) in (first_number..).zip(&self.numbers_at) {
            put_hex(&mut self.bytes[*at..*at + self.number_digits], number);
        }
        &self.bytes
    }
}

/// A page of one topic.
pub struct PageRequest {
    bytes: Vec<u8>,
    cursor_at: usize,
}

impl PageRequest {
    pub fn new(url: &Url, topics: &Topics, topic: u32, page: usize) -> Self {
        let blank = " ".repeat(CURSOR_WIDTH);
        let body = format!(
            "{{\"from_seq\":{blank},\"limit\":{page},\"max_batch_bytes\":{}}}",
            crate::limits::MAX_PAGE_BYTES
        );
        let bytes = request("POST", url, &format!("/v0/topics/{}/diff", topics.name(topic)), &body);
        let cursor_at = bytes.len() - body.len() + "{\"from_seq\":".len();
        PageRequest { bytes, cursor_at }
    }

    /// The request for the page behind `from_seq`.
    pub fn fill(&mut self, from_seq: u64) -> &[u8] {
        let cursor = &mut self.bytes[self.cursor_at..self.cursor_at + CURSOR_WIDTH];
        cursor.fill(b' ');
        let mut rest = from_seq;
        for digit in cursor.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        &self.bytes
    }
}

/// Where the number of the topic starts in a request by `method`.
fn topic_at(method: &str, topics: &Topics) -> usize {
    method.len() + " /v0/topics/".len() + topics.prefix.len()
}

fn put_topic(bytes: &mut [u8], at: usize, topic: u32) {
    let mut rest = topic;
    for digit in bytes[at..at + TOPIC_DIGITS].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// The lowest digits of `number` that have room.
fn put_hex(digits: &mut [u8], number: u64) {
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Secret;

    fn url() -> Url {
        Url::parse("http://127.0.0.1:4001").unwrap()
    }

    /// The first line and the body; the length of the body is as announced.
    fn parts(request: &[u8]) -> (String, Value) {
        let text = std::str::from_utf8(request).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head}");
        assert!(head.contains("\r\nHost: 127.0.0.1:4001\r\n"), "{head}");
        (head.lines().next().unwrap().to_owned(), serde_json::from_str(body).unwrap())
    }

    #[test]
    fn an_append_names_its_topic_and_has_unlike_payloads_of_the_wanted_size() {
        let topics = Topics::new(20);
        let mut append = AppendRequest::new(&url(), &topics, 3, 30);
        for (topic, number) in [(0, 0), (19, 0xab), (7, u64::MAX - 9)] {
            let (line, body) = parts(append.fill(topic, number));
            assert_eq!(line, format!("POST /v0/topics/{}?return_seqs=false HTTP/1.1", topics.name(topic)));
            let records = body["records"].as_array().unwrap();
            assert_eq!(records.len(), 3);
            for (record, number) in records.iter().zip(number..=u64::MAX) {
                assert_eq!(*record, json!({ "data": format!("{number:016x}xxxxxxxxxxxx") }));
                assert_eq!(record["data"].to_string().len(), 30);
            }
        }
        let mut smallest = AppendRequest::new(&url(), &topics, 1, MIN_PAYLOAD_BYTES);
        assert_eq!(parts(smallest.fill(0, 0x1c)).1, json!({ "records": [{ "data": "c" }] }));
    }

    #[test]
    fn a_key_goes_along() {
        let with_key = Url { key: Some(Secret::new("k-1".into())), ..url() };
        let topics = Topics::new(1);
        for bytes in [
            request("GET", &with_key, "/v0/cluster", ""),
            AppendRequest::new(&with_key, &topics, 1, 30).fill(0, 1).to_vec(),
            PageRequest::new(&with_key, &topics, 0, 1).fill(1).to_vec(),
        ] {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains("\r\nAuthorization: Bearer k-1\r\n"), "{text}");
        }
        assert_eq!(
            parts(AppendRequest::new(&with_key, &topics, 1, 30).fill(0, 1)).1["records"][0]["data"],
            "0000000000000001xxxxxxxxxxxx"
        );
    }

    #[test]
    fn a_page_is_asked_for_behind_any_cursor() {
        let topics = Topics::new(4);
        let mut page = PageRequest::new(&url(), &topics, 3, 1000);
        for from_seq in [0, u64::MAX, 7, 1_000_000] {
            let (line, body) = parts(page.fill(from_seq));
            assert_eq!(line, format!("POST /v0/topics/{}/diff HTTP/1.1", topics.name(3)));
            assert_eq!(body, json!({ "from_seq": from_seq, "limit": 1000, "max_batch_bytes": 8 << 20 }));
        }
    }

    #[test]
    fn the_most_topics_have_names_of_one_width() {
        let topics = Topics::new(MAX_TOPICS);
        assert_eq!(topics.name(MAX_TOPICS - 1).len(), topics.name(0).len());
    }
}
