//! Records from texts: arguments, and lines of stdin.

use std::io::{BufRead, Read};

use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Longest line that is read. What is longer than a record may be is refused by the server, and better.
const MAX_LINE_BYTES: usize = 4 << 20;
/// A request is sent when its records have this many bytes, however few they are.
const BATCH_BYTES: usize = 4 << 20;

/// The data of one record: `text` as it is if it is JSON, else, unless it must be, as a JSON string.
pub fn record(text: &str, must_be_json: bool) -> Result<Box<RawValue>, String> {
    match serde_json::from_str::<Box<RawValue>>(text) {
        Ok(json) => Ok(json),
        Err(error) if must_be_json => Err(format!("no JSON: {error}")),
        Err(_) => to_raw_value(text).map_err(|error| error.to_string()),
    }
}

/// Lines of stdin as they come.
pub struct Lines {
    waiting: Receiver<Result<Box<RawValue>, String>>,
}

impl Lines {
    /// Reads ahead by at most `ahead` lines.
    pub fn of_stdin(must_be_json: bool, ahead: usize) -> std::io::Result<Self> {
        let (sender, waiting) = channel(ahead.max(1));
        // Not a thread of the runtime: it may wait for ever, and the process must be able to end meanwhile.
        let read = move || read_lines(std::io::stdin().lock(), must_be_json, &sender);
        std::thread::Builder::new().name("stdin".to_owned()).spawn(read)?;
        Ok(Lines { waiting })
    }

    /// What is there, at most `most` records, and at least one unless the input ends; and what is wrong with
    /// the line behind them, if anything is.
    pub async fn batch(&mut self, most: usize) -> (Vec<Box<RawValue>>, Option<String>) {
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut next = self.waiting.recv().await;
        loop {
            match next {
                Some(Ok(record)) => {
                    bytes += record.get().len();
                    records.push(record);
                }
                Some(Err(trouble)) => return (records, Some(trouble)),
                None => break,
            }
            if records.len() >= most || bytes >= BATCH_BYTES {
                break;
            }
            next = self.waiting.try_recv().ok();
        }
        (records, None)
    }
}

/// Sends a record per line that is not empty, until the end, or until one cannot be a record.
fn read_lines(mut input: impl BufRead, must_be_json: bool, sender: &Sender<Result<Box<RawValue>, String>>) {
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        let read = input.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line);
        let record = match read {
            Ok(0) => return,
            Ok(_) => line_record(&line, must_be_json).transpose(),
            Err(error) => Some(Err(error.to_string())),
        };
        let Some(record) = record else { continue };
        let record = record.map_err(|why| format!("line {number} of stdin: {why}"));
        let is_end = record.is_err();
        if sender.blocking_send(record).is_err() || is_end {
            return;
        }
    }
}

fn line_record(line: &[u8], must_be_json: bool) -> Result<Option<Box<RawValue>>, String> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() > MAX_LINE_BYTES {
        return Err(format!("longer than {MAX_LINE_BYTES} bytes"));
    }
    let text = std::str::from_utf8(line).map_err(|_| "not valid UTF-8".to_owned())?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    record(text, must_be_json).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_stays_as_it_is_and_other_text_becomes_a_string() {
        let data = |text| record(text, false).unwrap().get().to_owned();
        assert_eq!(data(" {\"a\": 1.50} "), "{\"a\": 1.50}");
        assert_eq!(data("-0"), "-0");
        assert_eq!(data("null"), "null");
        assert_eq!(data("two words"), "\"two words\"");
        assert_eq!(data("{\"a\":"), r#""{\"a\":""#);
        assert!(record("two words", true).unwrap_err().starts_with("no JSON"));
        assert_eq!(record("\"x\"", true).unwrap().get(), "\"x\"");
    }

    /// The batches of `input`, and the trouble it ends with.
    fn batches(input: &[u8], most: usize) -> (Vec<Vec<String>>, Option<String>) {
        let (sender, waiting) = channel(100);
        read_lines(input, false, &sender);
        drop(sender);
        let mut lines = Lines { waiting };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut all = Vec::new();
        loop {
            let (records, trouble) = runtime.block_on(lines.batch(most));
            let is_end = records.is_empty();
            if !is_end {
                all.push(records.iter().map(|record| record.get().to_owned()).collect());
            }
            if trouble.is_some() || is_end {
                return (all, trouble);
            }
        }
    }

    #[test]
    fn lines_come_in_order_in_batches_and_end_with_what_is_wrong() {
        let (all, trouble) = batches(b"1\r\n\n  \n2\nx y\n[4]", 3);
        assert_eq!(all, [vec!["1", "2", "\"x y\""], vec!["[4]"]]);
        assert_eq!(trouble, None);
        let (all, trouble) = batches(b"1\n\xff\n3\n", 3);
        assert_eq!(all, [["1"]]);
        assert_eq!(trouble.as_deref(), Some("line 2 of stdin: not valid UTF-8"));
        let long = vec![b'x'; MAX_LINE_BYTES + 9];
        assert!(batches(&long, 1).1.is_some_and(|line| line.contains("longer than")));
        // Two of these fill a request.
        let large = format!("\"{}\"\n", "x".repeat(BATCH_BYTES / 2)).repeat(3);
        let sizes: Vec<usize> = batches(large.as_bytes(), 100).0.iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1]);
    }
}
