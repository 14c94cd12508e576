//! What the bench must know of an answer, found without parsing the rest of it.
//!
//! A JSON parser would cost the client more than the request did. The fields that matter are unsigned
//! numbers under keys that cannot occur earlier in the answer: topics are named by the bench itself, and
//! inside of a JSON string every quote is escaped, so no payload can hold a key in quotes.

/// What an append is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    pub first_seq: u64,
    pub last_seq: u64,
    pub head_seq: u64,
}

/// A page whose seqs follow on from the cursor without a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    pub records: u64,
    pub next_from_seq: u64,
    pub head_seq: u64,
}

/// The acknowledgment in the body of an append's answer.
pub fn parse_ack(body: &[u8]) -> Option<Ack> {
    let (first_seq, at) = number_after(body, 0, b"\"first_seq\":")?;
    let (last_seq, at) = number_after(body, at, b"\"last_seq\":")?;
    let (head_seq, _) = number_after(body, at, b"\"head_seq\":")?;
    Some(Ack { first_seq, last_seq, head_seq })
}

/// The head that the state of a topic names.
pub fn parse_head_seq(body: &[u8]) -> Option<u64> {
    number_after(body, 0, b"\"head_seq\":").map(|(head_seq, _)| head_seq)
}

/// The code of an error answer.
pub fn error_code(body: &[u8]) -> Option<&str> {
    let at = end_of(body, 0, b"\"code\":\"")?;
    let length = body[at..].iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(&body[at..at + length]).ok()
}

/// Walks the records of a page that was asked for behind `from_seq`, each of which has at least
/// `payload_bytes` behind its seq (which is how the walk stays cheap: payloads are jumped over). What is
/// wrong comes as words.
pub fn parse_page(body: &[u8], from_seq: u64, payload_bytes: usize) -> Result<Page, String> {
    let mut records = 0;
    let mut at = 0;
    while let Some((seq, end)) = number_after(body, at, b"\"$seq\":") {
        records += 1;
        if seq != from_seq + records {
            return Err(format!("record {records} of the page behind seq {from_seq} has seq {seq}"));
        }
        at = (end + payload_bytes).min(body.len());
    }
    let tail = number_after(body, at, b"\"next_from_seq\":");
    let Some((next_from_seq, at)) = tail else {
        return Err(format!("the page behind seq {from_seq} has no next_from_seq"));
    };
    let Some((head_seq, _)) = number_after(body, at, b"\"head_seq\":") else {
        return Err(format!("the page behind seq {from_seq} has no head_seq"));
    };
    if next_from_seq != from_seq + records {
        return Err(format!(
            "the page behind seq {from_seq} holds {records} records and goes on at {next_from_seq}"
        ));
    }
    Ok(Page { records, next_from_seq, head_seq })
}

/// Where `key` ends at or behind `from`.
pub fn end_of(body: &[u8], from: usize, key: &[u8]) -> Option<usize> {
    let found = body.get(from..)?.windows(key.len()).position(|window| window == key)?;
    Some(from + found + key.len())
}

/// The number behind `key`, and where it ends.
pub fn number_after(body: &[u8], from: usize, key: &[u8]) -> Option<(u64, usize)> {
    let start = end_of(body, from, key)?;
    let digits = body[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let text = std::str::from_utf8(&body[start..start + digits]).ok()?;
    Some((text.parse().ok()?, start + digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_is_found_with_and_without_seqs() {
        let expected = Some(Ack { first_seq: 9121, last_seq: 9122, head_seq: 9122 });
        for seqs in ["", r#""seqs":[9121,9122],"#] {
            let body = format!(
                r#"{{"topic":"t","first_seq":9121,"last_seq":9122,{seqs}"head_seq":9122,"count":2}}"#
            );
            assert_eq!(parse_ack(body.as_bytes()), expected);
        }
        let longest = format!(r#"{{"first_seq":1,"last_seq":{0},"head_seq":{0}}}"#, u64::MAX);
        assert_eq!(parse_ack(longest.as_bytes()).unwrap().last_seq, u64::MAX);
    }

    #[test]
    fn what_is_no_ack_is_none() {
        for body in [
            "",
            r#"{"first_seq":1,"last_seq":2}"#,
            r#"{"first_seq":,"last_seq":2,"head_seq":2}"#,
            r#"{"first_seq":null,"last_seq":2,"head_seq":2}"#,
            r#"{"first_seq":1,"last_seq":99999999999999999999,"head_seq":2}"#,
        ] {
            assert_eq!(parse_ack(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn the_code_of_an_error_is_found() {
        assert_eq!(error_code(br#"{"error":{"code":"no_leader","message":"m"}}"#), Some("no_leader"));
        assert_eq!(error_code(br#"{"error":{"code":"no_l"#), None);
    }

    fn page_of(seqs: &[u64], payload: &str, next_from_seq: u64) -> String {
        let records: Vec<String> =
            seqs.iter().map(|seq| format!(r#"{{"$seq":{seq},"$ts":1,"data":"{payload}"}}"#)).collect();
        let records = records.join(",");
        format!(r#"{{"records":[{records}],"next_from_seq":{next_from_seq},"head_seq":50,"lag":1}}"#)
    }

    #[test]
    fn a_page_without_holes_is_counted() {
        // Also with a payload that looks like what is searched for, and with the jump at its widest.
        for payload in ["", "0123456789", r#"\"$seq\":7,\"next_from_seq\":1"#] {
            let page = page_of(&[8, 9, 10], payload, 10);
            for jump in [0, payload.len() + 2] {
                let parsed = parse_page(page.as_bytes(), 7, jump).unwrap();
                assert_eq!(parsed, Page { records: 3, next_from_seq: 10, head_seq: 50 });
            }
        }
        let empty = parse_page(page_of(&[], "", 50).as_bytes(), 50, 256).unwrap();
        assert_eq!(empty, Page { records: 0, next_from_seq: 50, head_seq: 50 });
    }

    #[test]
    fn a_hole_a_repeat_and_a_wrong_end_are_found() {
        for (seqs, next_from_seq) in
            [(&[8, 10][..], 10), (&[8, 8], 9), (&[9], 9), (&[7, 8], 8), (&[8, 9], 10), (&[8, 9], 8), (&[], 8)]
        {
            let page = page_of(seqs, "x", next_from_seq);
            assert!(parse_page(page.as_bytes(), 7, 3).is_err(), "{page}");
        }
        assert!(parse_page(b"{}", 0, 0).is_err());
    }
}
