//! Names, as contract section 1.2 has them: checked by hand, byte by byte, and never normalised.

use crate::error::Error;
use crate::limits::MAX_ROUTER_NAME_CHARS;
pub use crate::state::is_topic_name;

/// As a topic, and `>` is allowed too after the first character.
pub fn is_router_name(name: &str) -> bool {
    let allowed =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-' | b'>');
    let bytes = name.as_bytes();
    bytes.len() <= MAX_ROUTER_NAME_CHARS
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(allowed)
}

/// 400 `invalid_request` unless `name` can be the name of a router.
pub fn check_router_name(name: &str) -> Result<(), Error> {
    if is_router_name(name) {
        return Ok(());
    }
    Err(Error::invalid(
        "a router name has 1 to 255 characters of A-Z a-z 0-9 . _ : - > and starts with a letter or digit",
    ))
}

/// 400 `invalid_request` unless `name` can be the name of a topic.
pub fn check_topic_name(name: &str) -> Result<(), Error> {
    if is_topic_name(name) {
        return Ok(());
    }
    Err(Error::invalid(
        "a topic name has 1 to 255 characters of A-Z a-z 0-9 . _ : - and starts with a letter or digit",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_contract_says() {
        // C-NAME-01, C-NAME-02
        let longest = "a".repeat(255);
        for good in ["a", "0", "meter:raw", "A.b_c-d:", "9..", longest.as_str()] {
            assert!(is_topic_name(good) && is_router_name(good), "{good}");
        }
        let too_long = "a".repeat(256);
        for bad in [
            "", ".a", "_a", ":a", "-a", "a b", "a/b", "a>b", "ä", "a\u{301}", "a\n", "\0", "..", "a%3A",
            &too_long,
        ] {
            assert!(!is_topic_name(bad), "{bad:?}");
            assert_eq!(is_router_name(bad), bad == "a>b", "{bad:?}");
        }
        assert!(is_router_name("meter:raw->meter:audit") && !is_router_name(">a"));
    }
}
