//! Text that must not be seen.
//!
//! A plain `String` would end in a log line sooner or later, by way of some struct's derived `Debug`.

use std::fmt;

use zeroize::Zeroize;

/// A secret: `Debug` does not show it, there is no `Display`, and its memory is wiped when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Secret(text)
    }

    /// The text itself. Every use of this is a place to look at when asking where secrets go.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Fewest bytes by which a part of a secret is known: fewer tell little of it, and stand in any text.
const MIN_PART_BYTES: usize = 8;

/// What somebody else has written, with `***` in place of `secret` and of parts of it: whoever is shown a secret may
/// tell it again, and what he says is logged.
pub fn hide(text: &str, secret: &str) -> String {
    let least_bytes = secret.len().clamp(1, MIN_PART_BYTES);
    let mut shown = String::with_capacity(text.len());
    let mut left = text;
    while let Some(next) = left.chars().next() {
        let part_bytes = part_bytes(left, secret);
        if part_bytes >= least_bytes {
            shown.push_str("***");
            left = &left[part_bytes..];
        } else {
            shown.push(next);
            left = &left[next.len_utf8()..];
        }
    }
    shown
}

/// How much of the front of `text` stands in `secret`.
fn part_bytes(text: &str, secret: &str) -> usize {
    let ends = text.char_indices().map(|(start, char)| start + char.len_utf8());
    ends.take_while(|end| secret.contains(&text[..*end])).last().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_is_hidden_in_what_others_write() {
        // C-MIRROR-02
        let hidden = |text: &str| hide(text, "s3cret-token-abc");
        for (text, shown) in [
            ("invalid credentials: Bearer s3cret-token-abc", "invalid credentials: Bearer ***"),
            ("s3cret-token-abcs3cret-token-abc!", "******!"),
            ("cut off: s3cret-token-", "cut off: ***"),
            ("its end: ret-token-abc is wrong", "its end: *** is wrong"),
            ("a secret token", "a secret token"),
            ("\u{2192} s3cret-token-abc \u{2190}", "\u{2192} *** \u{2190}"),
            ("", ""),
        ] {
            assert_eq!(hidden(text), shown);
        }
        assert_eq!(hide("key k1 is not known", "k1"), "key *** is not known");
        assert_eq!(hide("nothing", ""), "nothing");
    }
}
