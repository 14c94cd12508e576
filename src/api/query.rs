//! Query parameters.
//!
//! Decoded by hand, when asked for, instead of through a serde struct: most requests have no query at
//! all, a parameter that nobody asks for may hold anything, and a repeated one is not an error (the first
//! wins).

use std::borrow::Cow;

use crate::engine::Consistency;
use crate::error::Error;
use crate::limits::{DEFAULT_LIST_PAGE, MAX_LIST_PAGE};

/// The part of a URL after the `?`, form-encoded.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    pub fn new(query: Option<&'a str>) -> Self {
        Query(query.unwrap_or_default())
    }

    /// The value of `name`, `None` if it is not there; 400 if it is no text.
    pub fn text(self, name: &str) -> Result<Option<Cow<'a, str>>, Error> {
        let mut pairs = self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        match pairs.find(|(key, _)| form_decode(key).is_some_and(|key| key == name)) {
            None => Ok(None),
            Some((_, value)) => match form_decode(value) {
                Some(value) => Ok(Some(value)),
                None => Err(Error::invalid(format!("query parameter `{name}` is not UTF-8"))),
            },
        }
    }

    /// A boolean; what is not one is the default (C-CONV-14).
    pub fn flag(self, name: &str, default: bool) -> bool {
        match self.text(name).ok().flatten().as_deref() {
            Some("true" | "1") => true,
            Some("false" | "0") => false,
            _ => default,
        }
    }

    pub fn consistency(self) -> Result<Consistency, Error> {
        parse_consistency(self.text("consistency")?.as_deref())
    }

    /// Entries per page of a list, clamped (C-PAGE-02).
    pub fn page_size(self) -> Result<usize, Error> {
        let Some(text) = self.text("page_size")? else { return Ok(DEFAULT_LIST_PAGE) };
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Error::invalid("query parameter `page_size` is not an unsigned integer"));
        }
        // Digits that do not fit are above the bound anyway.
        Ok(text.parse().unwrap_or(usize::MAX).clamp(1, MAX_LIST_PAGE))
    }
}

/// C-CONS-01.
pub fn parse_consistency(text: Option<&str>) -> Result<Consistency, Error> {
    match text {
        None | Some("strong") => Ok(Consistency::Strong),
        Some("eventual") => Ok(Consistency::Eventual),
        Some(_) => Err(Error::invalid("`consistency` is \"strong\" or \"eventual\"")),
    }
}

/// Undoes form encoding: `+` is a space and `%XX` a byte; a `%` without two digits stands for itself.
/// `None` if the bytes are not UTF-8.
fn form_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.bytes().any(|byte| matches!(byte, b'+' | b'%')) {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match (byte, tail) {
            (b'+', _) => decoded.push(b' '),
            (b'%', [high, low, behind @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                decoded.push(hex_value(*high) << 4 | hex_value(*low));
                rest = behind;
            }
            _ => decoded.push(*byte),
        }
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_decoded_and_the_first_wins() {
        let query = Query::new(Some("prefix=a%3Ab+c%2B&x&%70age=1&prefix=z&bad=%ff&half=%4&e="));
        assert_eq!(query.text("prefix").unwrap().as_deref(), Some("a:b c+"));
        assert_eq!(query.text("page").unwrap().as_deref(), Some("1"));
        assert_eq!(query.text("x").unwrap().as_deref(), Some(""));
        assert_eq!(query.text("e").unwrap().as_deref(), Some(""));
        assert_eq!(query.text("half").unwrap().as_deref(), Some("%4"));
        assert!(query.text("bad").is_err());
        assert_eq!(query.text("missing"), Ok(None));
    }

    #[test]
    fn a_flag_that_is_none_is_the_default() {
        // C-CONV-14
        let query = Query::new(Some("a=true&b=1&c=false&d=0&e=TRUE&f=&g=yes&h=%ff"));
        for (name, value) in [("a", true), ("b", true), ("c", false), ("d", false)] {
            assert_eq!((query.flag(name, false), query.flag(name, true)), (value, value));
        }
        for name in ["e", "f", "g", "h", "missing"] {
            assert_eq!((query.flag(name, false), query.flag(name, true)), (false, true));
        }
    }

    #[test]
    fn page_sizes_are_clamped() {
        // C-PAGE-02
        let page_size = |text| Query::new(Some(text)).page_size();
        assert_eq!(page_size(""), Ok(100));
        assert_eq!(page_size("page_size=0"), Ok(1));
        assert_eq!(page_size("page_size=7"), Ok(7));
        assert_eq!(page_size("page_size=1001"), Ok(1000));
        assert_eq!(page_size("page_size=99999999999999999999999"), Ok(1000));
        for bad in ["page_size=", "page_size=-1", "page_size=1.5", "page_size=+1", "page_size=x"] {
            assert!(page_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn consistency_is_one_of_two() {
        // C-CONS-01
        let consistency = |text| Query::new(text).consistency();
        assert_eq!(consistency(None), Ok(Consistency::Strong));
        assert_eq!(consistency(Some("consistency=strong")), Ok(Consistency::Strong));
        assert_eq!(consistency(Some("consistency=eventual")), Ok(Consistency::Eventual));
        assert!(consistency(Some("consistency=Strong")).is_err());
        assert!(consistency(Some("consistency=")).is_err());
    }

    proptest! {
        #[test]
        fn any_query_is_survived(text: String, name: String) {
            let query = Query::new(Some(&text));
            let _ = (query.text(&name), query.flag(&name, true), query.page_size(), query.consistency());
        }
    }
}
