//! The configuration of a router: the fields of contract section 15.1, resolved.

use std::fmt;

use bytes::{BufMut, BytesMut};
use zeroize::Zeroize;

use super::catalog::is_topic_name;
use crate::codec::{Malformed, Reader, put_blob, put_optional_text, put_varint};
use crate::filter::Filter;

/// What a client is shown in place of a token, and what it may send back to keep the one that is stored.
pub const TOKEN_PLACEHOLDER: &str = "***";

/// A key of another cluster. Neither `Debug` nor `Display` shows it, and its memory is wiped when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    pub fn new(text: String) -> Self {
        Token(text)
    }

    /// The text itself: every use of this is a place to look at when asking where tokens go.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it stands for the token that is stored already (C-MIRROR-02).
    pub fn is_placeholder(&self) -> bool {
        self.0 == TOKEN_PLACEHOLDER
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
        self.0.zeroize();
    }
}

/// What the client asked for; it is only echoed (C-ROUTE-05).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    AtLeastOnce = 0,
    ExactlyOnce = 1,
}

/// Where a new router begins in its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Latest,
    Earliest,
    /// Right after this seq.
    Seq(u64),
    /// With the first record that is not older, Unix milliseconds.
    Ts(u64),
}

/// Where the source of a mirror is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Client addresses of members there, at most [`crate::limits::MAX_REMOTE_URLS`].
    pub urls: Vec<String>,
    pub token: Option<Token>,
    /// Whose records it may bring beside its own; `None`: of those it had presented when the router was last put.
    pub relays: Option<Relays>,
}

/// Clusters whose records another one may bring (C-MIRROR-18).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relays {
    All,
    /// By their ids, at most [`crate::limits::MAX_RELAYS`].
    Of(Vec<u128>),
}

/// A router's whole configuration, every field resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterConfig {
    /// Ends in `*` only with `remote`.
    pub source: String,
    /// `*` only with a source that ends in `*`: the same name here.
    pub dest: String,
    pub preserve_node: bool,
    pub preserve_tag: bool,
    pub create_dest: bool,
    /// Stored as its canonical text.
    pub filter: Option<Filter>,
    pub allow_cycle: bool,
    pub guarantee: Guarantee,
    pub start: Start,
    pub remote: Option<Remote>,
}

const VERSION: u8 = 1;
/// With what a remote may bring.
const VERSION_RELAYS: u8 = 2;

impl RouterConfig {
    /// Of a router from `source` to `dest` with defaults for everything else.
    pub fn local(source: impl Into<String>, dest: impl Into<String>) -> Self {
        RouterConfig {
            source: source.into(),
            dest: dest.into(),
            preserve_node: true,
            preserve_tag: true,
            create_dest: true,
            filter: None,
            allow_cycle: false,
            guarantee: Guarantee::AtLeastOnce,
            start: Start::Latest,
            remote: None,
        }
    }

    pub fn is_local(&self) -> bool {
        self.remote.is_none()
    }

    /// What every source topic's name begins with, if the source is not one topic alone.
    pub fn source_prefix(&self) -> Option<&str> {
        self.source.strip_suffix('*')
    }

    /// Whether records of the topic of this name of another cluster are copied.
    pub fn mirrors(&self, topic: &str) -> bool {
        let is_covered = match self.source_prefix() {
            Some(prefix) => topic.starts_with(prefix),
            None => topic == self.source,
        };
        self.remote.is_some() && is_topic_name(topic) && is_covered
    }

    /// The one topic that copies go to; `None` if each goes where its source's name says.
    pub fn fixed_dest(&self) -> Option<&str> {
        (self.dest != "*").then_some(&*self.dest)
    }

    pub fn encode(&self, out: &mut BytesMut) {
        let relays = self.remote.as_ref().and_then(|remote| remote.relays.as_ref());
        out.put_u8(if relays.is_some() { VERSION_RELAYS } else { VERSION });
        put_blob(out, self.source.as_bytes());
        put_blob(out, self.dest.as_bytes());
        for flag in [self.preserve_node, self.preserve_tag, self.create_dest, self.allow_cycle] {
            out.put_u8(flag as u8);
        }
        put_optional_text(out, self.filter.as_ref().map(Filter::to_string).as_deref());
        out.put_u8(self.guarantee as u8);
        self.start.encode(out);
        match &self.remote {
            None => out.put_u8(0),
            Some(Remote { urls, token, .. }) => {
                out.put_u8(1);
                put_varint(out, urls.len() as u64);
                urls.iter().for_each(|url| put_blob(out, url.as_bytes()));
                put_optional_text(out, token.as_ref().map(Token::expose));
            }
        }
        match relays {
            None => {}
            Some(Relays::All) => out.put_u8(0),
            Some(Relays::Of(ids)) => {
                out.put_u8(1);
                put_varint(out, ids.len() as u64);
                ids.iter().for_each(|id| out.put_u128_le(*id));
            }
        }
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let version = reader.u8()?;
        if !matches!(version, VERSION | VERSION_RELAYS) {
            return Err(Malformed("router config: written by a newer version"));
        }
        let mut config = RouterConfig {
            source: reader.text()?.to_owned(),
            dest: reader.text()?.to_owned(),
            preserve_node: reader.bool()?,
            preserve_tag: reader.bool()?,
            create_dest: reader.bool()?,
            allow_cycle: reader.bool()?,
            filter: match reader.optional_text()? {
                None => None,
                Some(text) => Some(Filter::parse(text).map_err(|_| reader.malformed())?),
            },
            guarantee: match reader.u8()? {
                0 => Guarantee::AtLeastOnce,
                1 => Guarantee::ExactlyOnce,
                _ => return Err(reader.malformed()),
            },
            start: Start::decode(reader)?,
            remote: if reader.bool()? { Some(Remote::decode(reader)?) } else { None },
        };
        if version == VERSION_RELAYS {
            let remote = config.remote.as_mut().ok_or(reader.malformed())?;
            remote.relays = Some(Relays::decode(reader)?);
        }
        Ok(config)
    }
}

impl Start {
    pub fn encode(self, out: &mut BytesMut) {
        let (kind, number) = match self {
            Start::Latest => (0, None),
            Start::Earliest => (1, None),
            Start::Seq(seq) => (2, Some(seq)),
            Start::Ts(ts_ms) => (3, Some(ts_ms)),
        };
        out.put_u8(kind);
        if let Some(number) = number {
            put_varint(out, number);
        }
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match reader.u8()? {
            0 => Start::Latest,
            1 => Start::Earliest,
            2 => Start::Seq(reader.varint()?),
            3 => Start::Ts(reader.varint()?),
            _ => return Err(reader.malformed()),
        })
    }
}

impl Remote {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut urls = Vec::new();
        for _ in 0..reader.count(1)? {
            urls.push(reader.text()?.to_owned());
        }
        let token = reader.optional_text()?.map(|text| Token::new(text.to_owned()));
        Ok(Remote { urls, token, relays: None })
    }
}

impl Relays {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        if !reader.bool()? {
            return Ok(Relays::All);
        }
        let count = reader.count(16)?;
        Ok(Relays::Of((0..count).map(|_| reader.u128()).collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_comes_back_as_it_was_stored() {
        let mirror = RouterConfig {
            preserve_tag: false,
            filter: Some(Filter::parse(r#"["And",[["tag","Glob","m:*"],["data.a","Gt",1.50]]]"#).unwrap()),
            guarantee: Guarantee::ExactlyOnce,
            start: Start::Ts(u64::MAX),
            remote: Some(Remote {
                urls: vec!["http://b1:4000".into(), "http://b2:4000".into()],
                token: Some(Token::new("s3cret".into())),
                relays: None,
            }),
            ..RouterConfig::local("meter:*", "*")
        };
        let relaying = |relays| {
            let remote = Remote { urls: vec!["http://b".into()], token: None, relays: Some(relays) };
            RouterConfig { remote: Some(remote), ..RouterConfig::local("a", "a") }
        };
        let (all, some) = (relaying(Relays::All), relaying(Relays::Of(vec![7, u128::MAX])));
        let late = RouterConfig { start: Start::Seq(7), allow_cycle: true, ..RouterConfig::local("a", "b") };
        for config in [mirror, late, all, some, RouterConfig::local("a", "b")] {
            let mut bytes = BytesMut::new();
            config.encode(&mut bytes);
            let mut reader = Reader::new(&bytes, "router config");
            assert_eq!(RouterConfig::decode(&mut reader), Ok(config));
            assert!(reader.finish().is_ok());
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        // C-MIRROR-02
        let remote = Remote { urls: Vec::new(), token: Some(Token::new("s3cret".into())), relays: None };
        let token = remote.token.clone().unwrap();
        for shown in [format!("{remote:?}"), format!("{token}"), format!("{token:?}"), format!("{token:#?}")]
        {
            assert!(shown.contains(TOKEN_PLACEHOLDER) && !shown.contains("s3cret"), "{shown}");
        }
    }
}
