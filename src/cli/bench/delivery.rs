//! What watchers got: records in their order, and how long each was on its way.
//!
//! A payload begins with the instant at which its append was sent, in nanoseconds of this process's own clock,
//! so nothing is compared between clocks. As in `answer.rs` little is parsed, and payloads are jumped over:
//! with a hundred watchers this code runs a hundred times as often as the server's.

use anyhow::Context;
use hdrhistogram::Histogram;
use tokio::time::Instant;

use super::answer::{end_of, number_after};
use super::load::Window;
use super::request::UNIQUE_DIGITS;

/// Longest delivery that is told apart; a longer one counts as this.
const MAX_LATENCY_US: u64 = 600_000_000;
const LATENCY_DIGITS: u8 = 3;
const RECORD_EVENT: &[u8] = b"event: record\ndata: ";

/// The deliveries of all watchers.
pub struct Deliveries {
    /// What payloads count from.
    base: Instant,
    /// `None` before the load: nothing is timed then.
    window: Option<Window>,
    payload_bytes: usize,
    /// In the window.
    pub records: u64,
    pub frames: u64,
    pub latencies_us: Histogram<u64>,
    /// The seq that each watcher got last, in the whole run.
    pub cursors: Vec<u64>,
}

impl Deliveries {
    pub fn new(watchers: usize, payload_bytes: usize) -> anyhow::Result<Self> {
        let latencies_us = Histogram::new_with_bounds(1, MAX_LATENCY_US, LATENCY_DIGITS);
        Ok(Deliveries {
            base: Instant::now(),
            window: None,
            payload_bytes,
            records: 0,
            frames: 0,
            latencies_us: latencies_us.context("make a histogram")?,
            cursors: vec![0; watchers],
        })
    }

    pub fn set_window(&mut self, window: Window) {
        self.window = Some(window);
    }

    /// What a payload that is sent now begins with.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Watcher `number` got these lines of its stream at `came`. What is wrong comes as words.
    pub fn take(&mut self, number: usize, lines: &[u8], came: Instant) -> Result<(), String> {
        let now_ns = u64::try_from((came - self.base).as_nanos()).unwrap_or(u64::MAX);
        let is_counted = self.window.is_some_and(|window| (window.start..window.end).contains(&came));
        let mut at = 0;
        while let Some(rest) = lines.get(at..).filter(|rest| !rest.is_empty()) {
            if !rest.starts_with(RECORD_EVENT) {
                at += pass_line(rest)?;
                continue;
            }
            let cursor = self.cursors.get(number).copied().unwrap_or_default();
            let latencies_us = &mut self.latencies_us;
            let each = |sent_ns: u64| {
                if is_counted {
                    latencies_us.saturating_record(now_ns.saturating_sub(sent_ns) / 1000);
                }
            };
            let (to_seq, length) = walk(rest, cursor, self.payload_bytes, each)?;
            if is_counted {
                self.records += to_seq - cursor;
                self.frames += 1;
            }
            self.cursors[number] = to_seq;
            at += length;
        }
        Ok(())
    }
}

/// The length of a line that carries no records, if nothing is wrong with it.
fn pass_line(rest: &[u8]) -> Result<usize, String> {
    let length = rest.iter().position(|byte| *byte == b'\n').ok_or("a line without an end")? + 1;
    let line = &rest[..length];
    let is_bad = [&b"event: tombstone"[..], b"event: error", b"event: topic-deleted"];
    if is_bad.iter().any(|bad| line.starts_with(bad)) {
        return Err(format!("a stream told {:?}", String::from_utf8_lossy(&rest[..rest.len().min(300)])));
    }
    Ok(length)
}

/// Walks a frame with records behind `cursor`; gives the seq of the last one, and the bytes up to the end of the
/// frame's data.
fn walk(
    frame: &[u8],
    cursor: u64,
    payload_bytes: usize,
    mut each: impl FnMut(u64),
) -> Result<(u64, usize), String> {
    let odd = |what: &str| format!("a frame behind seq {cursor} {what}");
    let mut at = end_of(frame, RECORD_EVENT.len(), b"\"records\":[").ok_or_else(|| odd("has no records"))?;
    let mut last_seq = cursor;
    loop {
        // Short slices: what is not there must not be looked for in all of the frame.
        let record = frame.get(at..).map(|rest| &rest[..rest.len().min(160)]).unwrap_or_default();
        let (seq, end) =
            number_after(record, 0, b"\"$seq\":").ok_or_else(|| odd("has a record without seq"))?;
        if seq != last_seq + 1 {
            return Err(odd(&format!("goes from seq {last_seq} to {seq}")));
        }
        last_seq = seq;
        let data = end_of(record, end, b"\"data\":").ok_or_else(|| odd("has a record without data"))?;
        let digits = record.get(data + 1..data + 1 + UNIQUE_DIGITS).and_then(parse_hex);
        each(digits.ok_or_else(|| odd("has a record of somebody else"))?);
        at += data + payload_bytes;
        match frame.get(at..at + 2) {
            Some(b"},") => at += 2,
            Some(b"}]") => break,
            _ => return Err(odd("has a record of another length")),
        }
    }
    let (from_seq, end) = number_after(frame, at, b"\"from_seq\":").ok_or_else(|| odd("has no from_seq"))?;
    let (to_seq, end) = number_after(frame, end, b"\"to_seq\":").ok_or_else(|| odd("has no to_seq"))?;
    if (from_seq, to_seq) != (cursor, last_seq) {
        return Err(odd(&format!("says that it goes from {from_seq} to {to_seq} and ends at {last_seq}")));
    }
    let length = end_of(frame, end, b"\n").ok_or_else(|| odd("has no end"))?;
    Ok((to_seq, length))
}

fn parse_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PAYLOAD_BYTES: usize = 20;

    fn frame(from_seq: u64, seqs: &[u64], sent_ns: u64) -> Vec<u8> {
        let record = |seq: &u64| format!(r#"{{"$seq":{seq},"$ts":1790000001200,"data":"{sent_ns:016x}xx"}}"#);
        let records: Vec<String> = seqs.iter().map(record).collect();
        let to_seq = seqs.last().unwrap();
        format!(
            "id: eyJ\nevent: record\ndata: {{\"topic\":\"t\",\"records\":[{}],\"from_seq\":{from_seq},\
             \"to_seq\":{to_seq},\"head_seq\":99}}\n\n: hb 1\n\n",
            records.join(",")
        )
        .into_bytes()
    }

    #[test]
    fn records_are_counted_and_timed_in_the_window_only() {
        let mut deliveries = Deliveries::new(2, PAYLOAD_BYTES).unwrap();
        let base = deliveries.base;
        let at = |ms: u64| base + Duration::from_millis(ms);
        deliveries.take(1, &frame(0, &[1, 2], 0), at(5)).unwrap();
        assert_eq!((deliveries.records, deliveries.cursors[1]), (0, 2));
        deliveries.set_window(Window { load_start: at(0), start: at(10), end: at(20) });
        deliveries.take(1, &frame(2, &[3, 4, 5], 10_000_000), at(12)).unwrap();
        deliveries.take(1, &frame(5, &[6], 10_000_000), at(20)).unwrap();
        assert_eq!((deliveries.records, deliveries.frames, &deliveries.cursors[..]), (3, 1, &[0, 6][..]));
        assert_eq!(deliveries.latencies_us.len(), 3);
        assert!((1990..=2010).contains(&deliveries.latencies_us.max()));
    }

    #[test]
    fn a_gap_a_repeat_and_bad_news_are_found() {
        let mut deliveries = Deliveries::new(1, PAYLOAD_BYTES).unwrap();
        let now = Instant::now();
        deliveries.take(0, &frame(0, &[1], 0), now).unwrap();
        for wrong in [
            frame(1, &[3], 0),
            frame(0, &[1], 0),
            frame(1, &[2, 2], 0),
            frame(0, &[2], 0),
            b"event: tombstone\ndata: {}\n\n".to_vec(),
            b"event: record\ndata: {\"records\":[]}\n\n".to_vec(),
            b": half a line".to_vec(),
        ] {
            assert!(deliveries.take(0, &wrong, now).is_err(), "{}", String::from_utf8_lossy(&wrong));
        }
        deliveries.take(0, b"retry: 2000\n\n: hb 5\n\nid: x\nevent: caught-up\ndata: {}\n\n", now).unwrap();
        deliveries.take(0, &frame(1, &[2], 0), now).unwrap();
    }
}
