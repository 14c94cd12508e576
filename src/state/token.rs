//! A key of another cluster, as a mirror has it.

use std::fmt;

use zeroize::Zeroize;

/// What a client is shown in place of a token, and what it may send back to keep the one that is stored.
pub const TOKEN_PLACEHOLDER: &str = "***";

/// A key of another cluster. Neither `Debug` nor `Display` shows it, and its memory is wiped when it goes. Sealed, it is
/// bytes that only members with the cluster's secret can open (`engine/tokens.rs`).
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Form);

#[derive(Clone, PartialEq, Eq)]
enum Form {
    Plain(String),
    Sealed(Vec<u8>),
}

impl Token {
    pub fn new(text: String) -> Self {
        Token(Form::Plain(text))
    }

    pub fn sealed(bytes: Vec<u8>) -> Self {
        Token(Form::Sealed(bytes))
    }

    /// The text itself, unless it is sealed: every use of this is a place to look at when asking where tokens go.
    pub fn plain(&self) -> Option<&str> {
        match &self.0 {
            Form::Plain(text) => Some(text),
            Form::Sealed(_) => None,
        }
    }

    pub fn sealed_bytes(&self) -> Option<&[u8]> {
        match &self.0 {
            Form::Plain(_) => None,
            Form::Sealed(bytes) => Some(bytes),
        }
    }

    /// Whether it stands for the token that is stored already (C-MIRROR-02).
    pub fn is_placeholder(&self) -> bool {
        self.plain() == Some(TOKEN_PLACEHOLDER)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TOKEN_PLACEHOLDER)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TOKEN_PLACEHOLDER)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        match &mut self.0 {
            Form::Plain(text) => text.zeroize(),
            Form::Sealed(bytes) => bytes.zeroize(),
        }
    }
}
