//! Settings: what was given, checked and resolved to one value each.
//!
//! Everything is checked here, once, before anything starts, so that no later room has to handle a
//! setting that makes no sense and an operator learns of a mistake in the first line, not in the middle
//! of a night. Flags and variables are the business of `cli`; this room sees names and texts only.

mod memory;
mod parse;
mod secret;
mod setting;
mod target;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;

pub use secret::{Secret, hide};
pub use setting::{
    BadSetting, Given, Kind, SETTINGS, Setting, Source, flag, settings_in_sections, unknown_variables,
    variable,
};
pub use target::TargetRule;

use crate::limits::{MAX_BODY_BYTES, MAX_MEMBERS, MIN_CLUSTER_SECRET_CHARS};

/// One entry of the static list of members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    /// `host:port` of its peer listener.
    pub address: String,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Every setting of one member, resolved and checked.
#[derive(Debug, Clone)]
pub struct Settings {
    pub cluster: String,
    pub member: String,
    pub data_dir: PathBuf,
    /// Without brackets, also for IPv6.
    pub host: String,
    pub port: u16,
    /// Without a slash at its end.
    pub advertise_url: String,
    /// `host:port`.
    pub peer_listen: String,
    /// `host:port`.
    pub peer_advertise: String,
    /// The static list in the order given; empty if there is none. Holds this member.
    pub members: Vec<Peer>,
    /// Peer addresses of a cluster to join; empty if there is none. Never together with `members`.
    pub join: Vec<String>,
    /// Present with `members` or `join`.
    pub cluster_secret: Option<Secret>,
    /// What it was before, while it is being changed: opens what was sealed under it.
    pub cluster_secret_previous: Option<Secret>,
    /// The list of keys as written; its entries are parsed by the room that checks them.
    pub api_keys: Option<Secret>,
    pub allow_insecure_no_auth: bool,
    pub probe_auth: bool,
    pub drain_ms: u64,
    pub request_timeout_ms: u64,
    pub max_body_bytes: usize,
    /// Bytes of bodies and messages; 0: any number.
    pub max_inflight_bytes: usize,
    /// 0: any number.
    pub max_inflight_per_key: usize,
    /// 0: as many as the limit of open files leaves.
    pub max_connections: usize,
    /// 0: any number.
    pub max_watch_sessions: usize,
    /// 0: any number.
    pub max_watch_sessions_per_key: usize,
    pub watch_session_ttl_ms: u64,
    pub slow_reader_ms: u64,
    /// 0: any number.
    pub max_sse_connections: usize,
    /// 0: any number.
    pub max_sse_connections_per_key: usize,
    /// Origins as browsers name them, or `*` alone.
    pub cors_allow_origins: Vec<String>,
    /// What routers may connect to; empty: whatever is not refused by default.
    pub connector_allow: Vec<TargetRule>,
    pub connector_deny: Vec<TargetRule>,
    /// Names in the `Host` of a request that are served without keys, in lower case, or `*` alone.
    pub allowed_hosts: Vec<String>,
    /// 0: any number.
    pub max_topics: u64,
    /// 0: any number.
    pub max_routers: u64,
    /// 0: any number.
    pub max_total_bytes: u64,
    /// 0: any number.
    pub max_idempotency_keys: u64,
    pub heartbeat_ms: u64,
    pub election_timeout_min_ms: u64,
    pub election_timeout_max_ms: u64,
    /// 0: by the number of cores.
    pub runtime_threads: usize,
    pub segment_bytes: u64,
    /// Records are refused while less is free where the data lies.
    pub min_free_bytes: u64,
    pub cache_bytes: usize,
    /// 0: all.
    pub kept_log_entries: u64,
    pub kept_log_bytes: u64,
    pub lag_patience_ms: u64,
    /// A filter of tracing, known to parse.
    pub log: String,
    pub log_format: LogFormat,
}

impl Settings {
    /// Checks what was given and fills in what was not.
    pub fn resolve(given: &Given) -> Result<Settings, BadSetting> {
        let cluster = given.name("cluster")?;
        let member = given.name("member")?;
        let (host, port) = given.client_address()?;
        let peer_listen = given.address("peer_listen")?;
        let members = given.members(&member)?;
        let join = given.join()?;
        let peer_advertise = given.peer_advertise(&peer_listen, &members, &member, &join)?;
        let advertise_url = given.advertise_url(&host, port, &peer_advertise)?;
        let api_keys = given.api_keys()?;
        let allow_insecure_no_auth = given.switch("allow_insecure_no_auth")?;
        if api_keys.is_none() && !allow_insecure_no_auth && !parse::is_loopback(&host) {
            // Contract C-AUTH-08.
            return Err(BadSetting {
                setting: given.spell("host"),
                value: Some(host),
                remedy: "without keys only a loopback address is served: set api_keys, or \
                         allow_insecure_no_auth=1 to let everyone who reaches it do everything"
                    .to_owned(),
            });
        }
        let (heartbeat_ms, election_timeout_min_ms, election_timeout_max_ms) = given.election()?;
        let max_body_bytes = match given.bytes("max_body_bytes", 0, MAX_BODY_BYTES as u64)? {
            0 => MAX_BODY_BYTES,
            bytes => bytes as usize,
        };
        let allowed_hosts = given.allowed_hosts(&advertise_url, &members, allow_insecure_no_auth)?;
        Ok(Settings {
            cluster,
            member,
            data_dir: given.data_dir()?,
            host,
            port,
            advertise_url,
            peer_listen,
            peer_advertise,
            cluster_secret: given.cluster_secret(!members.is_empty() || !join.is_empty())?,
            cluster_secret_previous: given
                .secret("cluster_secret_previous", "cluster_secret_previous_file")?,
            members,
            join,
            api_keys,
            allow_insecure_no_auth,
            probe_auth: given.switch("probe_auth")?,
            drain_ms: given.number("drain_ms", 0, 600_000)?,
            request_timeout_ms: given.number("request_timeout_ms", 100, 600_000)?,
            max_body_bytes,
            max_inflight_bytes: given.max_inflight_bytes(max_body_bytes)?,
            max_inflight_per_key: given.number("max_inflight_per_key", 0, 1 << 32)? as usize,
            max_connections: given.number("max_connections", 0, 1 << 32)? as usize,
            max_watch_sessions: given.number("max_watch_sessions", 0, 1 << 32)? as usize,
            max_watch_sessions_per_key: given.number("max_watch_sessions_per_key", 0, 1 << 32)? as usize,
            watch_session_ttl_ms: given.number("watch_session_ttl_ms", 100, 86_400_000)?,
            slow_reader_ms: given.number("slow_reader_ms", 100, 3_600_000)?,
            max_sse_connections: given.number("max_sse_connections", 0, 1 << 32)? as usize,
            max_sse_connections_per_key: given.number("max_sse_connections_per_key", 0, 1 << 32)? as usize,
            cors_allow_origins: given.origins()?,
            connector_allow: given.targets("connector_allow")?,
            connector_deny: given.targets("connector_deny")?,
            allowed_hosts,
            max_topics: given.number("max_topics", 0, u64::MAX)?,
            max_routers: given.number("max_routers", 0, u64::MAX)?,
            max_total_bytes: given.bytes("max_total_bytes", 0, u64::MAX)?,
            max_idempotency_keys: given.number("max_idempotency_keys", 0, u64::MAX)?,
            heartbeat_ms,
            election_timeout_min_ms,
            election_timeout_max_ms,
            runtime_threads: given.number("runtime_threads", 0, 256)? as usize,
            segment_bytes: given.bytes("segment_bytes", 64 << 10, 1 << 30)?,
            min_free_bytes: given.bytes("min_free_bytes", 0, u64::MAX)?,
            cache_bytes: given.bytes("cache_bytes", 1 << 20, 1 << 40)? as usize,
            kept_log_entries: given.number("kept_log_entries", 0, u64::MAX)?,
            kept_log_bytes: given.bytes("kept_log_bytes", 0, u64::MAX)?,
            lag_patience_ms: given.number("lag_patience_ms", 0, u64::MAX)?,
            log: given.log_filter()?,
            log_format: match given.text("log_format") {
                Some("text") => LogFormat::Text,
                Some("json") => LogFormat::Json,
                _ => return Err(given.refuse("log_format", "allowed is text or json")),
            },
        })
    }

    /// Where clients are served, as `host:port` to bind to.
    pub fn listen(&self) -> String {
        parse::join_host_port(&self.host, self.port)
    }

    /// Hosts and ports at which this member and those that it was told of serve each other.
    pub fn peer_addresses(&self) -> Vec<(String, u16)> {
        let members = self.members.iter().map(|peer| peer.address.as_str());
        let own = [self.peer_listen.as_str(), self.peer_advertise.as_str()];
        let all = members.chain(own).chain(self.join.iter().map(String::as_str));
        all.filter_map(parse::host_port).map(|(host, port)| (host.to_owned(), port)).collect()
    }

    /// What an operator should know though it can be served: one line each.
    pub fn warnings(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.api_keys.is_none() {
            // Contract C-AUTH-07: said loudly.
            lines.push(format!(
                "NO API KEYS: everyone who reaches {} may read, write and delete everything; set api_keys",
                self.listen()
            ));
        }
        let outside = |address: &str| !parse::is_loopback(parse::host_of(address));
        if outside(&self.peer_advertise) && !outside(&self.peer_listen) {
            lines.push(format!(
                "other members are told {} but only {} is listened on: set peer_listen to an address \
                 that they reach",
                self.peer_advertise, self.peer_listen
            ));
        }
        lines
    }
}

/// The URL at which this machine itself reaches the member that `given` describes. A wildcard address
/// includes loopback, and loopback is what a container's own check can rely on.
pub fn client_url(given: &Given) -> Result<String, BadSetting> {
    let (host, port) = given.client_address()?;
    let host = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        Ok(IpAddr::V6(ip)) if ip.is_unspecified() => "::1".to_owned(),
        _ => host,
    };
    Ok(format!("http://{}", parse::join_host_port(&host, port)))
}

/// The first key of the member that `given` describes, if there are any that can be read.
pub fn client_key(given: &Given) -> Option<Secret> {
    let keys = given.api_keys().ok().flatten()?;
    let first = keys.expose().split(',').map(str::trim).find(|entry| !entry.is_empty())?;
    let (key, _) = first.split_once(':').unwrap_or((first, ""));
    Some(Secret::new(key.trim().to_owned()))
}

impl Given {
    fn data_dir(&self) -> Result<PathBuf, BadSetting> {
        match self.text("data_dir") {
            Some(path) if !path.is_empty() => Ok(PathBuf::from(path)),
            _ => Err(self.refuse("data_dir", "a directory must be named")),
        }
    }

    /// Host and port of the client address.
    fn client_address(&self) -> Result<(String, u16), BadSetting> {
        let host = self.text("host").unwrap_or_default();
        if let Some((host, port)) = parse::host_port(host) {
            // Contract C-CONV-01: `port` is ignored then, so it is not even checked.
            return Ok((host.to_owned(), port));
        }
        let Some(host) = parse::bare_host(host) else {
            return Err(
                self.refuse("host", "allowed is a host name or an IP address, or one of them with :port")
            );
        };
        let port = self.text("port").unwrap_or_default();
        match parse::port(port) {
            Some(port) => Ok((host.to_owned(), port)),
            None if port.contains("://") => Err(self.refuse(
                "port",
                "allowed is 1 to 65535; container platforms inject the address of a service named \
                 antiphon under this name: switch that off (Kubernetes: enableServiceLinks: false), or \
                 give --port, which wins",
            )),
            None => Err(self.refuse("port", "allowed is 1 to 65535")),
        }
    }

    fn members(&self, member: &str) -> Result<Vec<Peer>, BadSetting> {
        let refuse =
            |why: String| self.refuse("members", format!("{why}; allowed is m1=host:port,m2=host:port,..."));
        let mut members: Vec<Peer> = Vec::new();
        let Some(text) = self.text("members") else { return Ok(members) };
        if self.has("join") {
            return Err(self.refuse("members", "members and join exclude each other: a member of the first start gets members, one that comes later gets join"));
        }
        for entry in parse::list(text) {
            let Some((name, address)) = entry.split_once('=') else {
                return Err(refuse(format!("entry {entry:?} has no name=")));
            };
            if !parse::is_name(name) {
                return Err(refuse(format!("{name:?} is not a name of a member ({})", parse::NAME_RULE)));
            }
            if parse::host_port(address).is_none() {
                return Err(refuse(format!("{address:?} is not host:port")));
            }
            if members.iter().any(|peer| peer.name == name || peer.address == address) {
                return Err(refuse(format!("entry {entry:?} repeats a name or an address")));
            }
            members.push(Peer { name: name.to_owned(), address: address.to_owned() });
        }
        if members.len() > MAX_MEMBERS {
            return Err(refuse(format!("{} members are more than {MAX_MEMBERS}", members.len())));
        }
        if !members.iter().any(|peer| peer.name == member) {
            return Err(refuse(format!("the list does not hold this member, {member:?}")));
        }
        Ok(members)
    }

    fn join(&self) -> Result<Vec<String>, BadSetting> {
        let Some(text) = self.text("join") else { return Ok(Vec::new()) };
        let addresses: Vec<String> = parse::list(text).map(str::to_owned).collect();
        if addresses.is_empty() || addresses.iter().any(|address| parse::host_port(address).is_none()) {
            return Err(self.refuse("join", "allowed is host:port,... of members' peer listeners"));
        }
        Ok(addresses)
    }

    fn peer_advertise(
        &self,
        listen: &str,
        members: &[Peer],
        member: &str,
        join: &[String],
    ) -> Result<String, BadSetting> {
        let alone = members.is_empty() && join.is_empty();
        let address = if self.has("peer_advertise") {
            self.address("peer_advertise")?
        } else {
            // The static list says under which address the others know this member.
            members.iter().find(|peer| peer.name == member).map_or(listen, |peer| &peer.address).to_owned()
        };
        if !alone && parse::is_wildcard(parse::host_of(&address)) {
            return Err(BadSetting {
                setting: flag("peer_advertise"),
                value: Some(address),
                remedy: "other members cannot reach this address: name the host:port that they should use"
                    .to_owned(),
            });
        }
        Ok(address)
    }

    fn advertise_url(&self, host: &str, port: u16, peer_advertise: &str) -> Result<String, BadSetting> {
        let Some(url) = self.text("advertise_url") else {
            // A wildcard is no address to give away; the host by which members find each other is.
            let host = if parse::is_wildcard(host) { parse::host_of(peer_advertise) } else { host };
            return Ok(format!("http://{}", parse::join_host_port(host, port)));
        };
        let url = url.strip_suffix('/').unwrap_or(url);
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let plain = |rest: &str| {
            !rest.is_empty()
                && !rest.contains(|c: char| c.is_whitespace() || c.is_control() || "/?#@".contains(c))
        };
        match rest {
            Some(rest) if plain(rest) => Ok(url.to_owned()),
            _ => Err(self
                .refuse("advertise_url", "allowed is http://host:port or https://host:port, without a path")),
        }
    }

    fn targets(&self, name: &str) -> Result<Vec<TargetRule>, BadSetting> {
        let rule = |entry: &str| {
            TargetRule::parse(entry).ok_or_else(|| {
                self.refuse(name, format!("{entry:?} is no host name, address or network like 10.0.0.0/8"))
            })
        };
        parse::list(self.text(name).unwrap_or_default()).map(rule).collect()
    }

    /// The origins of web pages, or `*` for all.
    fn origins(&self) -> Result<Vec<String>, BadSetting> {
        let text = self.text("cors_allow_origins").unwrap_or_default();
        let origins: Vec<String> = parse::list(text).map(str::to_owned).collect();
        if origins.iter().any(|origin| origin == "*") && origins.len() > 1 {
            return Err(self.refuse("cors_allow_origins", "* stands for all origins: give it alone"));
        }
        if !origins.iter().all(|origin| origin == "*" || parse::is_origin(origin)) {
            return Err(self.refuse(
                "cors_allow_origins",
                "allowed is *, or origins as browsers name them: scheme://host or scheme://host:port, \
                 separated by commas",
            ));
        }
        Ok(origins)
    }

    /// Names of hosts that are served without keys, or `*` for all.
    fn allowed_hosts(
        &self,
        advertise_url: &str,
        members: &[Peer],
        allow_insecure_no_auth: bool,
    ) -> Result<Vec<String>, BadSetting> {
        if !self.has("allowed_hosts") && allow_insecure_no_auth {
            return Ok(vec!["*".to_owned()]);
        }
        let given: Vec<&str> = parse::list(self.text("allowed_hosts").unwrap_or_default()).collect();
        if given.contains(&"*") && given.len() > 1 {
            return Err(self.refuse("allowed_hosts", "* stands for all names: give it alone"));
        }
        if !given.iter().all(|name| *name == "*" || parse::bare_host(name).is_some()) {
            let allowed = "allowed is *, or names of hosts without a port, separated by commas";
            return Err(self.refuse("allowed_hosts", allowed));
        }
        if given == ["*"] {
            return Ok(vec!["*".to_owned()]);
        }
        let authority = advertise_url.split_once("://").map_or(advertise_url, |(_, authority)| authority);
        let own = members.iter().map(|peer| peer.address.as_str()).chain([authority]).map(parse::host_of);
        let mut names: Vec<String> =
            given.into_iter().chain(own).chain(["localhost"]).map(str::to_ascii_lowercase).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// At least one body of the largest size must fit.
    fn max_inflight_bytes(&self, max_body_bytes: usize) -> Result<usize, BadSetting> {
        if !self.has("max_inflight_bytes") {
            return Ok((memory::default_inflight_bytes() as usize).max(max_body_bytes));
        }
        match self.bytes("max_inflight_bytes", 0, 1 << 40)? as usize {
            bytes if bytes > 0 && bytes < max_body_bytes => {
                let allowed = format!("must be at least max_body_bytes, which is {max_body_bytes}");
                Err(self.refuse_resolved("max_inflight_bytes", bytes as u64, allowed))
            }
            bytes => Ok(bytes),
        }
    }

    /// The secret `name`, or what the file that `file` names holds.
    fn secret(&self, name: &str, file: &str) -> Result<Option<Secret>, BadSetting> {
        let Some(path) = self.text(file) else {
            return Ok(self.text(name).map(|text| Secret::new(text.to_owned())));
        };
        if self.has(name) {
            return Err(self.refuse(name, format!("{} is given too: keep one of the two", self.spell(file))));
        }
        match std::fs::read_to_string(path) {
            Ok(mut text) => {
                // Editors and `echo` end a file with a newline that is not part of the secret.
                if text.ends_with('\n') {
                    text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
                }
                Ok(Some(Secret::new(text)))
            }
            Err(error) => Err(self.refuse(file, format!("cannot be read: {error}"))),
        }
    }

    /// The list of keys, `None` if there are none. In a file an entry may have a line of its own, and comments.
    fn api_keys(&self) -> Result<Option<Secret>, BadSetting> {
        let Some(keys) = self.secret("api_keys", "api_keys_file")? else { return Ok(None) };
        let is_file = self.has("api_keys_file");
        let lines = keys.expose().lines().map(without_comment);
        let keys = if is_file { Secret::new(lines.collect::<Vec<_>>().join(",")) } else { keys };
        if keys.expose().split(',').any(|key| !key.trim().is_empty()) {
            return Ok(Some(keys));
        }
        match is_file {
            // Whoever names a file does not mean that everybody may do everything.
            true => Err(self.refuse("api_keys_file", "holds no key")),
            false => Ok(None),
        }
    }

    fn cluster_secret(&self, needed: bool) -> Result<Option<Secret>, BadSetting> {
        let file = "cluster_secret_file";
        match self.secret("cluster_secret", file)? {
            Some(secret) if secret.expose().chars().count() < MIN_CLUSTER_SECRET_CHARS => {
                let given = if self.has(file) { file } else { "cluster_secret" };
                Err(self.refuse(
                    given,
                    format!("the secret must have at least {MIN_CLUSTER_SECRET_CHARS} characters"),
                ))
            }
            None if needed => Err(self.refuse(
                "cluster_secret",
                format!(
                    "needed with members or join: the same at all members, at least \
                     {MIN_CLUSTER_SECRET_CHARS} characters"
                ),
            )),
            secret => Ok(secret),
        }
    }

    /// Heartbeat, shortest and longest election timeout, in milliseconds.
    fn election(&self) -> Result<(u64, u64, u64), BadSetting> {
        let heartbeat_ms = self.number("heartbeat_ms", 10, 60_000)?;
        let min_ms = self.number("election_timeout_min_ms", 20, 600_000)?;
        let max_ms = self.number("election_timeout_max_ms", 20, 600_000)?;
        // One late heartbeat must not start an election.
        if min_ms < 2 * heartbeat_ms {
            let allowed = format!("must be at least twice heartbeat_ms, which is {heartbeat_ms}");
            return Err(self.refuse_resolved("election_timeout_min_ms", min_ms, allowed));
        }
        // Members that time out at the same moment split the vote.
        if max_ms <= min_ms {
            let allowed = format!("must be above election_timeout_min_ms, which is {min_ms}");
            return Err(self.refuse_resolved("election_timeout_max_ms", max_ms, allowed));
        }
        Ok((heartbeat_ms, min_ms, max_ms))
    }

    fn log_filter(&self) -> Result<String, BadSetting> {
        let filter = self.text("log").unwrap_or_default();
        match tracing_subscriber::EnvFilter::try_new(filter) {
            Ok(_) if !filter.is_empty() => Ok(filter.to_owned()),
            _ => Err(self.refuse(
                "log",
                "allowed is error, warn, info, debug, trace or off, or module=level, separated by commas",
            )),
        }
    }
}

/// A line without its comment, which begins with a `#` at its start or behind a space.
fn without_comment(line: &str) -> &str {
    let is_comment = |at: usize| line[..at].chars().next_back().is_none_or(char::is_whitespace);
    let comment = line.match_indices('#').find(|(at, _)| is_comment(*at));
    comment.map_or(line, |(at, _)| &line[..at])
}
