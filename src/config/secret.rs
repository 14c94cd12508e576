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
