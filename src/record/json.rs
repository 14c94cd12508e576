//! JSON text, looked at without being made into anything.
//!
//! What clients write is parsed by serde, which knows no bound of nesting where it only passes over a value. What
//! another cluster sends as stored bytes is parsed by nobody; it is checked here. Nothing recurses.

use crate::limits::MAX_NESTING;

/// Whether arrays and objects in `json`, a valid value, are nested deeper than [`MAX_NESTING`] (C-REC-03).
pub fn nests_too_deep(json: &str) -> bool {
    let bytes = json.as_bytes();
    // A level takes two bytes. The count is a fraction of an instruction per byte, the walk is several.
    if bytes.len() <= 2 * MAX_NESTING
        || bytes.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() <= MAX_NESTING
    {
        return false;
    }
    let (mut depth, mut at) = (0usize, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = super::end_of_string(bytes, at) - 1,
            b'[' | b'{' if depth == MAX_NESTING => return true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    false
}

/// Checks that `json` is exactly one value without white space outside of strings, nested no deeper than
/// [`MAX_NESTING`]. Gives the number of keys if it is an object. The error is a sentence.
pub(super) fn check_compact(json: &str) -> Result<Option<usize>, &'static str> {
    let mut scan = Scan { bytes: json.as_bytes(), at: 0 };
    let is_object = scan.peek() == Some(b'{');
    let (mut keys, mut open) = (0, Vec::new());
    loop {
        // Here a value begins.
        let begun = scan.next();
        match begun {
            Some(b'{' | b'[') => {
                if open.len() == MAX_NESTING {
                    return Err("nested too deep");
                }
                let end = if begun == Some(b'{') { b'}' } else { b']' };
                open.push(end);
                if scan.peek() != Some(end) {
                    if end == b'}' {
                        scan.key()?;
                        keys += usize::from(open.len() == 1);
                    }
                    continue;
                }
                scan.at += 1;
                open.pop();
            }
            Some(b'"') => scan.string()?,
            Some(b't') => scan.word(b"rue")?,
            Some(b'f') => scan.word(b"alse")?,
            Some(b'n') => scan.word(b"ull")?,
            Some(first @ (b'-' | b'0'..=b'9')) => scan.number(first)?,
            _ => return Err(NO_JSON),
        }
        // Here one has ended, and with it perhaps those around it.
        loop {
            let Some(end) = open.last().copied() else {
                return if scan.peek().is_none() { Ok(is_object.then_some(keys)) } else { Err(NO_JSON) };
            };
            match scan.next() {
                Some(b',') if end == b'}' => {
                    scan.key()?;
                    keys += usize::from(open.len() == 1);
                    break;
                }
                Some(b',') => break,
                Some(byte) if byte == end => {
                    open.pop();
                }
                _ => return Err(NO_JSON),
            }
        }
    }
}

const NO_JSON: &str = "not one JSON value without white space";

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    /// A string and the colon behind it.
    fn key(&mut self) -> Result<(), &'static str> {
        if self.next() != Some(b'"') {
            return Err(NO_JSON);
        }
        self.string()?;
        if self.next() == Some(b':') { Ok(()) } else { Err(NO_JSON) }
    }

    /// The rest of a string.
    fn string(&mut self) -> Result<(), &'static str> {
        loop {
            match self.next() {
                Some(b'"') => return Ok(()),
                Some(b'\\') => match self.next() {
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {}
                    Some(b'u') => {
                        let digits = self.bytes.get(self.at..self.at + 4).ok_or(NO_JSON)?;
                        if !digits.iter().all(u8::is_ascii_hexdigit) {
                            return Err(NO_JSON);
                        }
                        self.at += 4;
                    }
                    _ => return Err(NO_JSON),
                },
                Some(0..0x20) | None => return Err(NO_JSON),
                Some(_) => {}
            }
        }
    }

    fn word(&mut self, rest: &[u8]) -> Result<(), &'static str> {
        if !self.bytes[self.at..].starts_with(rest) {
            return Err(NO_JSON);
        }
        self.at += rest.len();
        Ok(())
    }

    /// The rest of a number.
    fn number(&mut self, first: u8) -> Result<(), &'static str> {
        let first = if first == b'-' { self.next().ok_or(NO_JSON)? } else { first };
        match first {
            b'0' => {}
            b'1'..=b'9' => {
                self.digits();
            }
            _ => return Err(NO_JSON),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Ok(())
    }

    fn some_digits(&mut self) -> Result<(), &'static str> {
        if self.digits() == 0 { Err(NO_JSON) } else { Ok(()) }
    }

    fn digits(&mut self) -> usize {
        let count = self.bytes[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;
    use crate::record::compact_json_len;

    fn nested(levels: usize) -> String {
        let half = levels / 2;
        let objects = levels - half;
        format!(
            "{}{}1{}{}",
            r#"{"a":"#.repeat(objects),
            "[".repeat(half),
            "]".repeat(half),
            "}".repeat(objects)
        )
    }

    #[test]
    fn nesting_is_bounded() {
        // C-REC-03
        for (levels, is_too_deep) in [(0, false), (1, false), (MAX_NESTING, false), (MAX_NESTING + 1, true)] {
            let json = nested(levels);
            assert_eq!(nests_too_deep(&json), is_too_deep, "{levels}");
            assert_eq!(check_compact(&json).is_err(), is_too_deep, "{levels}");
        }
        assert!(nests_too_deep(&"[".repeat(500_000)));
        // Brackets in strings, and many beside each other.
        let flat = format!("[{}\"{}\\\"[[\"]", "[{}],".repeat(600), "[".repeat(600));
        assert!(!nests_too_deep(&flat));
        assert_eq!(check_compact(&flat), Ok(None));
    }

    #[test]
    fn keys_of_the_object_itself_are_counted() {
        for (json, keys) in [
            ("{}", Some(0)),
            (r#"{"a":{"b":1,"c":2},"d":[{"e":1}]}"#, Some(2)),
            ("[]", None),
            ("\"{\"", None),
        ] {
            assert_eq!(check_compact(json), Ok(keys), "{json}");
        }
    }

    fn is_json(text: &str) -> bool {
        serde_json::from_str::<IgnoredAny>(text).is_ok()
    }

    proptest! {
        #[test]
        fn what_passes_is_the_json_that_serde_reads(
            pieces in proptest::collection::vec(
                prop_oneof![
                    Just("{"), Just("}"), Just("["), Just("]"), Just(","), Just(":"), Just("\"a\""), Just("\""),
                    Just("\\u00e4"), Just("\\"), Just("0"), Just("12"), Just("-"), Just("."), Just("e"), Just("+"),
                    Just("true"), Just("nul"), Just("l"), Just(" "), Just("\n"), Just("ä"), Just("1"), Just("\u{1}"),
                ],
                0..12,
            ),
        ) {
            let text = pieces.concat();
            let is_compact = compact_json_len(&text) == text.len();
            prop_assert_eq!(check_compact(&text).is_ok(), is_json(&text) && is_compact, "{}", text);
        }

        #[test]
        fn any_value_passes_once_it_is_compact(text in "\\PC{0,20}", number: f64, whole: i64) {
            let value = serde_json::json!({ "a": [text, number, whole, null, true], (text.clone()): {} });
            prop_assert!(check_compact(&value.to_string()).is_ok());
        }
    }
}
