//! The configuration of a router: the fields of contract section 15.1, resolved.

use bytes::{BufMut, BytesMut};

use super::catalog::is_topic_name;
use super::token::Token;
use crate::codec::{Malformed, Reader, put_blob, put_optional_text, put_varint};
use crate::digest::Digest;
use crate::filter::Filter;

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
/// With fields behind the first ones, each with its tag and length.
const VERSION_TAGGED: u8 = 2;
const FIELD_RELAYS: u8 = 1;
const FIELD_SEALED_TOKEN: u8 = 2;

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
        let fields = self.tagged_fields();
        out.put_u8(if fields.is_empty() { VERSION } else { VERSION_TAGGED });
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
                put_optional_text(out, token.as_ref().and_then(Token::plain));
            }
        }
        if !fields.is_empty() {
            put_varint(out, fields.len() as u64);
            for (tag, value) in fields {
                out.put_u8(tag);
                put_blob(out, &value);
            }
        }
    }

    fn tagged_fields(&self) -> Vec<(u8, BytesMut)> {
        let mut fields = Vec::new();
        let Some(remote) = &self.remote else { return fields };
        if let Some(relays) = &remote.relays {
            let mut value = BytesMut::new();
            match relays {
                Relays::All => value.put_u8(0),
                Relays::Of(ids) => {
                    value.put_u8(1);
                    put_varint(&mut value, ids.len() as u64);
                    ids.iter().for_each(|id| value.put_u128_le(*id));
                }
            }
            fields.push((FIELD_RELAYS, value));
        }
        if let Some(sealed) = remote.token.as_ref().and_then(Token::sealed_bytes) {
            fields.push((FIELD_SEALED_TOKEN, BytesMut::from(sealed)));
        }
        fields
    }

    /// Tells configurations apart.
    pub fn digest(&self) -> u64 {
        let (mut bytes, mut digest) = (BytesMut::new(), Digest::default());
        self.encode(&mut bytes);
        digest.add_bytes(&bytes);
        digest.value()
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let version = reader.u8()?;
        if !matches!(version, VERSION | VERSION_TAGGED) {
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
        let count = if version == VERSION_TAGGED { reader.count(2)? } else { 0 };
        for _ in 0..count {
            let (tag, value) = (reader.u8()?, reader.blob()?);
            let remote = config.remote.as_mut().ok_or(reader.malformed())?;
            match tag {
                FIELD_RELAYS => {
                    let mut value = Reader::new(value, "router config");
                    remote.relays = Some(Relays::decode(&mut value)?);
                    value.finish()?;
                }
                FIELD_SEALED_TOKEN => remote.token = Some(Token::sealed(value.to_vec())),
                _ => return Err(Malformed("router config: written by a newer version")),
            }
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
    use crate::state::TOKEN_PLACEHOLDER;

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
            let token = Some(Token::sealed(vec![1, 2, 3]));
            let remote = Remote { urls: vec!["http://b".into()], token, relays: Some(relays) };
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
