//! Finding one value in JSON text without building the others.
//!
//! The text is that of a stored record: it was checked when it was written, and nobody changed it. So this
//! walks over it and stops at nothing; where it is not JSON after all, there is simply nothing to find.

use std::borrow::Cow;

use super::number::Number;

/// A value in JSON text. Strings are bytes: JSON can name halves of a surrogate pair, which no text can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found<'a> {
    Null,
    Bool(bool),
    /// As written, and taken apart.
    Number(&'a [u8], Number<'a>),
    /// Without escapes.
    Text(Cow<'a, [u8]>),
    /// An array or an object, as written.
    Composite(&'a [u8]),
}

/// The value that fills `json`.
pub(super) fn value(json: &[u8]) -> Option<Found<'_>> {
    let json = json.trim_ascii();
    Some(match *json.first()? {
        b'n' => Found::Null,
        b't' => Found::Bool(true),
        b'f' => Found::Bool(false),
        b'"' => Found::Text(unescape(json.get(1..json.len().checked_sub(1)?)?)),
        b'[' | b'{' => Found::Composite(json),
        _ => Found::Number(json, Number::of(json)),
    })
}

/// The text of the value of `key` in the object `json`. Of several of that name it is the last one, which is
/// the one that parsers keep.
pub(super) fn member<'a>(json: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut walk = Walk::into(json, b'{')?;
    let mut found = None;
    while let Some(name) = walk.next() {
        let name = name.get(1..name.len().checked_sub(1)?)?;
        walk.expect(b':')?;
        let value = walk.value()?;
        if *unescape(name) == *key {
            found = Some(value);
        }
        walk.separator();
    }
    found
}

/// The text of the value that `steps` lead to in `json`: by members of objects, of several of one name by the last
/// one, and by places in arrays. Walks over the text once, however many steps there are; they are few, for each goes
/// one call deeper.
pub(super) fn at_path<'a>(json: &'a [u8], steps: &[String]) -> Option<&'a [u8]> {
    Walk { json, at: 0 }.at_path(steps)?
}

/// The place in an array that a step names: a number without superfluous zeros.
fn array_index(step: &str) -> Option<usize> {
    let is_number = step == "0" || (!step.starts_with('0') && step.bytes().all(|byte| byte.is_ascii_digit()));
    if is_number { step.parse().ok() } else { None }
}

/// The text of each value of the array `json`; nothing if it is no array.
pub(super) fn elements(json: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut walk = Walk::into(json, b'[');
    std::iter::from_fn(move || {
        let walk = walk.as_mut()?;
        let element = walk.next()?;
        walk.separator();
        Some(element)
    })
}

struct Walk<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    /// Behind the bracket that opens `json`.
    fn into(json: &'a [u8], bracket: u8) -> Option<Self> {
        let mut walk = Walk { json, at: 0 };
        walk.expect(bracket)?;
        Some(walk)
    }

    fn skip_space(&mut self) {
        while self.json.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.skip_space();
        (*self.json.get(self.at)? == byte).then(|| self.at += 1)
    }

    fn separator(&mut self) {
        let _ = self.expect(b',');
    }

    /// The text of the next value, `None` at the closing bracket.
    fn next(&mut self) -> Option<&'a [u8]> {
        self.skip_space();
        if matches!(self.json.get(self.at)?, b']' | b'}') { None } else { self.value() }
    }

    /// Passes one value, and gives what `steps` lead to in it, if they lead anywhere. `None` if it is no value.
    fn at_path(&mut self, steps: &[String]) -> Option<Option<&'a [u8]>> {
        let Some((step, rest)) = steps.split_first() else { return Some(Some(self.value()?)) };
        self.skip_space();
        let mut found = None;
        match *self.json.get(self.at)? {
            b'{' => {
                self.expect(b'{')?;
                while let Some(name) = self.next() {
                    let name = name.get(1..name.len().checked_sub(1)?)?;
                    self.expect(b':')?;
                    if *unescape(name) == *step.as_bytes() {
                        found = self.at_path(rest)?;
                    } else {
                        self.value()?;
                    }
                    self.separator();
                }
                self.expect(b'}')?;
            }
            b'[' => {
                self.expect(b'[')?;
                let wanted = array_index(step);
                for place in 0.. {
                    self.skip_space();
                    if *self.json.get(self.at)? == b']' {
                        break;
                    }
                    if Some(place) == wanted {
                        found = self.at_path(rest)?;
                    } else {
                        self.value()?;
                    }
                    self.separator();
                }
                self.expect(b']')?;
            }
            _ => drop(self.value()?),
        }
        Some(found)
    }

    /// Passes one value.
    fn value(&mut self) -> Option<&'a [u8]> {
        self.skip_space();
        let start = self.at;
        let mut depth = 0usize;
        loop {
            match *self.json.get(self.at)? {
                b'"' => self.string()?,
                b'[' | b'{' => {
                    depth += 1;
                    self.at += 1;
                }
                b']' | b'}' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                _ if depth > 0 => self.at += 1,
                _ => {
                    let rest = &self.json[self.at..];
                    let is_end = |byte: &u8| matches!(byte, b',' | b']' | b'}') || byte.is_ascii_whitespace();
                    self.at += rest.iter().position(is_end).unwrap_or(rest.len());
                    if self.at == start {
                        return None;
                    }
                }
            }
            if depth == 0 {
                return Some(&self.json[start..self.at]);
            }
        }
    }

    fn string(&mut self) -> Option<()> {
        self.at += 1;
        loop {
            match *self.json.get(self.at)? {
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }
}

/// The bytes of a string, given what stands between its quotes.
fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'\\') {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        at += 1;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        let escape = text.get(at).copied().unwrap_or(b'\\');
        at += 1;
        match escape {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let mut unit = code_unit(text, at);
                at += 4;
                let low =
                    if text[at.min(text.len())..].starts_with(b"\\u") { code_unit(text, at + 2) } else { 0 };
                if (0xd800..0xdc00).contains(&unit) && (0xdc00..0xe000).contains(&low) {
                    unit = 0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                    at += 6;
                }
                put_code_point(&mut out, unit);
            }
            other => out.push(other),
        }
    }
    Cow::Owned(out)
}

fn code_unit(text: &[u8], at: usize) -> u32 {
    let digits = text.get(at..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0xfffd)
}

/// Appends a code point as UTF-8 does, also half of a surrogate pair.
fn put_code_point(out: &mut Vec<u8>, point: u32) {
    match char::from_u32(point) {
        Some(char) => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        None => out.extend([
            0xe0 | (point >> 12) as u8,
            0x80 | (point >> 6 & 63) as u8,
            0x80 | (point & 63) as u8,
        ]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn text(bytes: &[u8]) -> Option<Found<'_>> {
        Some(Found::Text(Cow::Borrowed(bytes)))
    }

    #[test]
    fn a_member_is_found_between_whatever_else_there_is() {
        let json =
            br#" { "a" : {"b":"]}\"","c":[1,{"c":2}]} , "c":"x\u0041\ud83d\ude00\n", "d":-1.5e3 ,"n":null} "#;
        assert_eq!(member(json, b"c").and_then(value), text("xA\u{1f600}\n".as_bytes()));
        assert_eq!(member(json, b"d").and_then(value), Some(Found::Number(b"-1.5e3", Number::of(b"-1.5e3"))));
        assert_eq!(member(json, b"n").and_then(value), Some(Found::Null));
        let inner = member(json, b"a").unwrap();
        assert_eq!(elements(member(inner, b"c").unwrap()).collect::<Vec<_>>(), [&b"1"[..], b"{\"c\":2}"]);
        assert_eq!(member(json, b"b"), None);
        assert_eq!(member(br#"{"a":1,"\u0061":2}"#, b"a"), Some(&b"2"[..]));
        assert_eq!(member(b"[1]", b"a"), None);
        assert_eq!(elements(b"{}").count() + elements(b"[]").count() + elements(b"1").count(), 0);
        // Half of a pair is its own string, and no text.
        assert_eq!(value(br#""\ud800""#), text(&[0xed, 0xa0, 0x80]));
    }

    proptest! {
        #[test]
        fn strings_come_out_as_a_parser_reads_them(string: String) {
            let json = serde_json::to_string(&string).unwrap();
            let found = value(json.as_bytes());
            prop_assert_eq!(found, text(string.as_bytes()));
            let object = format!("{{\"x\":[{json}],{json}:{json}}}");
            let parsed: Value = serde_json::from_str(&object).unwrap();
            prop_assert!(parsed[&string] == string);
            prop_assert_eq!(member(object.as_bytes(), string.as_bytes()), Some(json.as_bytes()));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, picks in proptest::collection::vec(0usize..12, 0..40)) {
            let pieces = ["{", "}", "[", "]", "\"", "\\", "\\u12", ":", ",", "a", "1", " "];
            let jsonish: Vec<u8> = picks.into_iter().flat_map(|pick| pieces[pick].bytes()).collect();
            for json in [&bytes, &jsonish] {
                value(json);
                member(json, b"a");
                elements(json).take(100).for_each(|element| { value(element); });
            }
        }
    }
}
