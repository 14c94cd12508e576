//! The opaque cursor of lists: the last name of a page, in base64url.
//!
//! It holds the name and not a place in some member's memory, so that every member can go on from it,
//! whatever was added or removed meanwhile (C-PAGE-05). A checksum tells a cursor that was made up or
//! damaged from one of ours; without it, a made-up one would quietly start the list somewhere else.

use super::name::is_router_name;
use crate::error::Error;

const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The cursor that goes on after `name`.
pub fn encode_cursor(name: &str) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    encode_base64(&bytes)
}

/// The name that a list goes on after; 400 for a cursor that is not ours (C-PAGE-04).
pub fn decode_cursor(cursor: &str) -> Result<String, Error> {
    parse(cursor).ok_or_else(|| Error::invalid("`cursor` is not one that this server made"))
}

fn parse(cursor: &str) -> Option<String> {
    let bytes = decode_base64(cursor)?;
    let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_BYTES)?)?;
    let name = match content {
        [VERSION, name @ ..] if checksum == crc32c::crc32c(content).to_le_bytes() => name,
        _ => return None,
    };
    let name = std::str::from_utf8(name).ok()?;
    // What can be the name of a topic can be that of a router too.
    is_router_name(name).then(|| name.to_owned())
}

pub fn encode_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(ALPHABET[(word >> (18 - 6 * place)) as usize & 63] as char);
        }
    }
    text
}

/// Strict: no padding, no other characters, no stray bits at the end.
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.as_bytes().chunks(4) {
        let mut word = 0u32;
        for (place, letter) in chunk.iter().enumerate() {
            let value = ALPHABET.iter().position(|candidate| candidate == letter)? as u32;
            word |= value << (18 - 6 * place);
        }
        let kept = chunk.len() - 1;
        let stray_bits = word & ((1 << (8 * (3 - kept))) - 1);
        if kept == 0 || stray_bits != 0 {
            return None;
        }
        bytes.extend_from_slice(&word.to_be_bytes()[1..=kept]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_server_did_not_make_is_refused() {
        // C-PAGE-04
        let good = encode_cursor("meter:daily");
        let mut bad =
            vec![String::new(), "x".into(), "bWV0ZXI6ZGFpbHk".into(), format!("{good}="), format!("{good}A")];
        bad.extend((0..good.len()).map(|cut| good[..cut].to_owned()));
        bad.push(encode_base64(b"\x01\0\0\0\0"));
        bad.push(encode_cursor("no/name"));
        for cursor in bad {
            assert!(decode_cursor(&cursor).is_err(), "{cursor:?}");
        }
    }

    proptest! {
        #[test]
        fn a_cursor_comes_back(name in "[A-Za-z0-9][A-Za-z0-9._:>-]{0,254}") {
            prop_assert_eq!(decode_cursor(&encode_cursor(&name)), Ok(name));
        }

        #[test]
        fn a_changed_letter_is_noticed(name in "[a-z]{1,40}", at: prop::sample::Index, letter in "[A-Za-z0-9_-]") {
            let cursor = encode_cursor(&name);
            let at = at.index(cursor.len());
            let changed = format!("{}{letter}{}", &cursor[..at], &cursor[at + 1..]);
            prop_assert_eq!(decode_cursor(&changed).is_ok(), changed == cursor);
        }

        #[test]
        fn any_text_is_survived(text: String) {
            let _ = decode_cursor(&text);
        }
    }
}
