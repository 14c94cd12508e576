//! The config object of a router, in and out (contract sections 15.1 and 16).

use std::collections::{BTreeMap, BTreeSet};

use axum::http::Uri;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use serde_json::value::RawValue;

use crate::api::json::{JsonWriter, Raw, ToJson};
use crate::api::name::is_topic_name;
use crate::api::shape::{Text, parse_object};
use crate::error::Error;
use crate::filter::Filter;
use crate::limits::{
    MAX_RELAYS, MAX_REMOTE_TOKEN_BYTES, MAX_REMOTE_URL_BYTES, MAX_REMOTE_URLS, MAX_ROUTER_FILTER_BYTES,
};
use crate::state::{Guarantee, Relays, Remote, RouterConfig, Start, TOKEN_PLACEHOLDER, Token};

#[derive(Deserialize)]
struct ConfigBody<'a> {
    #[serde(borrow)]
    source: Text<'a>,
    #[serde(borrow)]
    dest: Text<'a>,
    #[serde(default)]
    preserve_node: Option<bool>,
    #[serde(default)]
    preserve_tag: Option<bool>,
    #[serde(default)]
    create_dest: Option<bool>,
    #[serde(borrow, default)]
    filter: Option<&'a RawValue>,
    #[serde(default)]
    allow_cycle: Option<bool>,
    #[serde(borrow, default)]
    guarantee: Option<Text<'a>>,
    #[serde(borrow, default)]
    start: Option<&'a RawValue>,
    #[serde(borrow, default)]
    remote: Option<&'a RawValue>,
    /// A typo must not silently lose a setting (C-CONV-03).
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct RemoteBody<'a> {
    #[serde(borrow)]
    urls: Vec<Text<'a>>,
    #[serde(borrow, default)]
    token: Option<Text<'a>>,
    #[serde(borrow, default)]
    relays: Option<Vec<Text<'a>>>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct StartBody {
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    ts: Option<u64>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

fn bad_field(field: &str, problem: &str) -> Error {
    Error::invalid(format!("config: `{field}` {problem}")).with_detail(json!({ "field": field }))
}

fn no_unknown(unknown: &BTreeMap<String, IgnoredAny>, within: &str) -> Result<(), Error> {
    match unknown.keys().next() {
        None => Ok(()),
        Some(field) => Err(bad_field(&format!("{within}{field}"), "is no field of a router config")),
    }
}

/// Reads the config of a router, and whether it says where the router starts.
pub fn parse_config(json: &[u8]) -> Result<(RouterConfig, bool), Error> {
    let body: ConfigBody<'_> = parse_object(json)?;
    no_unknown(&body.unknown, "")?;
    let remote = body.remote.map(|remote| parse_remote(remote.get())).transpose()?;
    let start = body.start.map(|start| parse_start(start.get())).transpose()?;
    let default_start = if remote.is_some() { Start::Earliest } else { Start::Latest };
    let config = RouterConfig {
        source: body.source.as_str().to_owned(),
        dest: body.dest.as_str().to_owned(),
        preserve_node: body.preserve_node.unwrap_or(true),
        preserve_tag: body.preserve_tag.unwrap_or(true),
        create_dest: body.create_dest.unwrap_or(true),
        filter: body.filter.map(|filter| parse_filter(filter.get())).transpose()?,
        allow_cycle: body.allow_cycle.unwrap_or(false),
        guarantee: match body.guarantee.as_ref().map(Text::as_str) {
            None | Some("at_least_once") => Guarantee::AtLeastOnce,
            Some("exactly_once") => Guarantee::ExactlyOnce,
            Some(_) => return Err(bad_field("guarantee", "is not one of at_least_once, exactly_once")),
        },
        start: start.unwrap_or(default_start),
        remote,
    };
    check_names(&config)?;
    Ok((config, start.is_some()))
}

/// C-ROUTE-11, C-MIRROR-05.
fn check_names(config: &RouterConfig) -> Result<(), Error> {
    let prefix = config.source_prefix().filter(|_| !config.is_local());
    match prefix {
        Some(prefix) if prefix.is_empty() || is_topic_name(prefix) => {}
        None if is_topic_name(&config.source) => {}
        _ => return Err(bad_field("source", "is not the name of a topic")),
    }
    match (prefix, config.fixed_dest()) {
        (Some(_), None) => Ok(()),
        (Some(_), Some(_)) => Err(bad_field("dest", "is `*` if `source` ends in `*`")),
        (None, Some(dest)) if is_topic_name(dest) => match config.is_local() && dest == config.source {
            true => Err(bad_field("dest", "is the source")),
            false => Ok(()),
        },
        (None, _) => Err(bad_field("dest", "is not the name of a topic")),
    }
}

fn parse_filter(json: &str) -> Result<Filter, Error> {
    let filter = Filter::parse(json)?;
    // What is stored is the canonical text, and it must be possible to read that again.
    let canonical = filter.to_string();
    if canonical.len() > MAX_ROUTER_FILTER_BYTES {
        return Err(bad_field("filter", &format!("has more than {MAX_ROUTER_FILTER_BYTES} bytes")));
    }
    match Filter::parse(&canonical) {
        Ok(again) if again == filter => Ok(filter),
        _ => Err(bad_field("filter", "has no canonical form")),
    }
}

fn parse_start(json: &str) -> Result<Start, Error> {
    match json {
        "\"latest\"" => return Ok(Start::Latest),
        "\"earliest\"" => return Ok(Start::Earliest),
        _ => {}
    }
    let wrong = || bad_field("start", r#"is "latest", "earliest", {"seq":n} or {"ts":ms}"#);
    let body: StartBody = parse_object(json.as_bytes()).map_err(|_| wrong())?;
    no_unknown(&body.unknown, "start.")?;
    match (body.seq, body.ts) {
        (Some(seq), None) => Ok(Start::Seq(seq)),
        (None, Some(ts_ms)) => Ok(Start::Ts(ts_ms)),
        _ => Err(wrong()),
    }
}

fn parse_remote(json: &str) -> Result<Remote, Error> {
    let body: RemoteBody<'_> = parse_object(json.as_bytes())?;
    no_unknown(&body.unknown, "remote.")?;
    if body.urls.is_empty() || body.urls.len() > MAX_REMOTE_URLS {
        return Err(bad_field("remote.urls", &format!("has 1 to {MAX_REMOTE_URLS} URLs")));
    }
    let urls = body.urls.iter().map(|url| parse_url(url.as_str())).collect::<Result<_, _>>()?;
    let token = body.token.map(|token| token.as_str().to_owned());
    // It becomes a header.
    let is_token = |token: &String| {
        (1..=MAX_REMOTE_TOKEN_BYTES).contains(&token.len())
            && token.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if token.as_ref().is_some_and(|token| !is_token(token)) {
        return Err(bad_field("remote.token", "is not a key"));
    }
    let relays = body.relays.map(|relays| parse_relays(&relays)).transpose()?;
    Ok(Remote { urls, token: token.map(Token::new), relays })
}

/// Ids of clusters as `GET /v0/cluster` shows them, or `*` alone (C-MIRROR-18).
fn parse_relays(relays: &[Text<'_>]) -> Result<Relays, Error> {
    if let [all] = relays
        && all.as_str() == "*"
    {
        return Ok(Relays::All);
    }
    let id = |text: &str| {
        let is_id = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u128::from_str_radix(text, 16).ok().filter(|_| is_id)
    };
    let ids: Option<BTreeSet<u128>> = relays.iter().map(|relay| id(relay.as_str())).collect();
    match ids.filter(|ids| ids.len() <= MAX_RELAYS) {
        Some(ids) => Ok(Relays::Of(ids.into_iter().collect())),
        None => {
            Err(bad_field("remote.relays", &format!("has up to {MAX_RELAYS} ids of clusters, or is [\"*\"]")))
        }
    }
}

/// `http://host[:port]` and nothing behind it (C-MIRROR-01).
fn parse_url(text: &str) -> Result<String, Error> {
    let is_good = text.len() <= MAX_REMOTE_URL_BYTES
        && text.parse::<Uri>().is_ok_and(|uri| {
            let authority = uri.authority().map_or("", |authority| authority.as_str());
            let is_address = !authority.is_empty() && !authority.contains('@') && !authority.starts_with(':');
            uri.scheme_str() == Some("http") && is_address && uri.path() == "/" && uri.query().is_none()
        });
    match is_good {
        true => Ok(text.trim_end_matches('/').to_owned()),
        false if text.starts_with("https://") => {
            Err(bad_field("remote.urls", "holds an `https://` URL; so far members ask over `http://` alone"))
        }
        false => Err(bad_field("remote.urls", "holds what is not the `http://` URL of a member")),
    }
}

/// Writes the fields of a config, `start` among them; the token is not shown (C-MIRROR-02).
pub fn put_config(json: &mut JsonWriter, config: &RouterConfig) {
    json.field("source", config.source.as_str());
    json.field("dest", config.dest.as_str());
    json.field("preserve_node", config.preserve_node);
    json.field("preserve_tag", config.preserve_tag);
    json.field("create_dest", config.create_dest);
    let filter = config.filter.as_ref().map(Filter::to_string);
    json.field("filter", filter.as_deref().map(Raw));
    json.field("allow_cycle", config.allow_cycle);
    json.field("guarantee", guarantee_name(config.guarantee));
    json.field("start", config.start);
    json.field("remote", config.remote.as_ref());
}

pub fn guarantee_name(guarantee: Guarantee) -> &'static str {
    match guarantee {
        Guarantee::AtLeastOnce => "at_least_once",
        Guarantee::ExactlyOnce => "exactly_once",
    }
}

impl ToJson for Start {
    fn write(&self, json: &mut JsonWriter) {
        match self {
            Start::Latest => "latest".write(json),
            Start::Earliest => "earliest".write(json),
            Start::Seq(seq) => json.object(|json| json.field("seq", *seq)),
            Start::Ts(ts_ms) => json.object(|json| json.field("ts", *ts_ms)),
        }
    }
}

impl ToJson for Remote {
    fn write(&self, json: &mut JsonWriter) {
        json.object(|json| {
            json.array_field("urls", self.urls.iter().map(String::as_str));
            json.field("token", self.token.as_ref().map(|_| TOKEN_PLACEHOLDER));
            match &self.relays {
                None => {}
                Some(Relays::All) => json.array_field("relays", ["*"]),
                Some(Relays::Of(ids)) => {
                    let ids: Vec<String> = ids.iter().map(|id| format!("{id:032x}")).collect();
                    json.array_field("relays", ids.iter().map(String::as_str));
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn parse(json: &str) -> Result<(RouterConfig, bool), Error> {
        parse_config(json.as_bytes())
    }

    fn echo(config: &RouterConfig) -> Value {
        let mut json = JsonWriter::with_capacity(0);
        json.object(|json| put_config(json, config));
        serde_json::from_slice(&json.finish()).unwrap()
    }

    #[test]
    fn defaults_are_filled_in_and_echoed() {
        // Sections 15.1 and 16, C-ROUTE-02
        let (config, is_start_given) = parse(r#"{"source":"a","dest":"b"}"#).unwrap();
        assert_eq!((&config, is_start_given), (&RouterConfig::local("a", "b"), false));
        let expected = json!({
            "source": "a", "dest": "b", "preserve_node": true, "preserve_tag": true, "create_dest": true,
            "filter": null, "allow_cycle": false, "guarantee": "at_least_once", "start": "latest", "remote": null
        });
        assert_eq!(echo(&config), expected);
        let mirror = r#"{"source":"m:*","dest":"*","remote":{"urls":["http://b1:4000/","http://[::1]:4"],"token":"s"}}"#;
        let (config, _) = parse(mirror).unwrap();
        assert_eq!(
            (config.start, config.source_prefix(), config.fixed_dest()),
            (Start::Earliest, Some("m:"), None)
        );
        assert_eq!(
            echo(&config)["remote"],
            json!({ "urls": ["http://b1:4000", "http://[::1]:4"], "token": "***" })
        );
        assert_eq!(config.remote.unwrap().token, Some(Token::new("s".into())));
    }

    #[test]
    fn what_is_echoed_can_be_put_again() {
        let json = r#"{"source":"a","dest":"a","preserve_node":false,"preserve_tag":false,"create_dest":false,
            "filter":"m:*","allow_cycle":true,"guarantee":"exactly_once","start":{"ts":7},
            "remote":{"urls":["http://b"],"token":null,"relays":["0123456789abcdef0123456789abcdef"]}}"#;
        let (config, is_start_given) = parse(json).unwrap();
        assert!(is_start_given);
        assert_eq!(echo(&config)["filter"], json!(["tag", "Glob", "m:*"]));
        assert_eq!(parse(&echo(&config).to_string()), Ok((config, true)));
    }

    #[test]
    fn a_field_that_does_not_exist_is_named() {
        // C-CONV-03
        for (json, field) in [
            (r#"{"source":"a","dest":"b","filtre":1}"#, "filtre"),
            (r#"{"source":"a","dest":"b","remote":{"urls":["http://b"],"key":"x"}}"#, "remote.key"),
            (r#"{"source":"a","dest":"b","start":{"seq":1,"sec":1}}"#, "start.sec"),
        ] {
            assert_eq!(parse(json).unwrap_err().detail, Some(json!({ "field": field })), "{json}");
        }
    }

    #[test]
    fn bad_values_are_refused() {
        // C-ROUTE-11, C-MIRROR-01, C-MIRROR-05
        let mut bad: Vec<String> = [
            r#"{"source":"a"}"#,
            r#"{"dest":"a"}"#,
            r#"{"source":"a","dest":null}"#,
            r#"{"source":"a","dest":"a"}"#,
            r#"{"source":"a*","dest":"b"}"#,
            r#"{"source":"a*","dest":"*"}"#,
            r#"{"source":"a","dest":"*"}"#,
            r#"{"source":"a>b","dest":"b"}"#,
            r#"{"source":"a","dest":"b","filter":["tag"]}"#,
            r#"{"source":"a","dest":"b","filter":1}"#,
            r#"{"source":"a","dest":"b","guarantee":"Exactly_once"}"#,
            r#"{"source":"a","dest":"b","start":"now"}"#,
            r#"{"source":"a","dest":"b","start":{}}"#,
            r#"{"source":"a","dest":"b","start":{"seq":1,"ts":1}}"#,
            r#"{"source":"a","dest":"b","start":{"seq":-1}}"#,
            r#"{"source":"a","dest":"b","start":7}"#,
            r#"{"source":"a","dest":"b","preserve_node":"true"}"#,
            r#"{"source":"a","dest":"b","source":"c"}"#,
            r#"{"source":"a*","dest":"b","remote":{"urls":["http://b"]}}"#,
            r#"{"source":"a","dest":"*","remote":{"urls":["http://b"]}}"#,
            r#"{"source":"a**","dest":"*","remote":{"urls":["http://b"]}}"#,
            r#"{"source":".*","dest":"*","remote":{"urls":["http://b"]}}"#,
            r#"{"source":"a","dest":"b","remote":{}}"#,
            r#"{"source":"a","dest":"b","remote":{"urls":[]}}"#,
            r#"{"source":"a","dest":"b","remote":["http://b"]}"#,
            r#"{"source":"a","dest":"b","remote":{"urls":["http://b"],"relays":"*"}}"#,
            r#"{"source":"a","dest":"b","remote":{"urls":["http://b"],"relays":["*","*"]}}"#,
            r#"{"source":"a","dest":"b","remote":{"urls":["http://b"],"relays":["abc"]}}"#,
            r#"{"source":"a","dest":"b","remote":{"urls":["http://b"],"relays":["+123456789abcdef0123456789abcdef"]}}"#,
            "[]",
            "",
        ]
        .map(str::to_owned)
        .to_vec();
        let remote = |urls: &Value, token: &str| {
            json!({ "source": "a", "dest": "b", "remote": { "urls": urls, "token": token } }).to_string()
        };
        for url in [
            "https://b",
            "b:4000",
            "http://",
            "http://b/v0",
            "http://b?x",
            "http://u@b",
            "http://b c",
            "http://:1",
        ] {
            bad.push(remote(&json!([url]), "t"));
        }
        bad.push(remote(&json!(vec!["http://b"; 17]), "t"));
        for token in ["", "a b", "ä", "a\nb"] {
            bad.push(remote(&json!(["http://b"]), token));
        }
        let long = vec![json!(["tag", "Eq", "x".repeat(255)]); 64];
        bad.push(json!({ "source": "a", "dest": "b", "filter": ["Or", long] }).to_string());
        for json in bad {
            assert!(parse(&json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse_config(&bytes);
        }
    }
}
