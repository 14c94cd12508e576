//! The table of settings: name, default and meaning of each, in one place.
//!
//! The command line is built from this table and the environment is read by it, so a setting has its
//! flag, its variable and its line of help by standing here, and none of the three can be forgotten. A
//! derived struct of flags would say the same three times: in the struct, in the values, in the checks.

use std::collections::BTreeMap;
use std::fmt;

use super::Secret;

/// What a setting's flag looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `--x value`.
    Value,
    /// `--x` alone stands for `--x 1`.
    Switch,
    /// `--x value`, never shown.
    Secret,
}

/// One setting `x_y`: flag `--x-y`, variable `ANTIPHON_X_Y`.
#[derive(Debug)]
pub struct Setting {
    pub name: &'static str,
    pub kind: Kind,
    /// `None`: absent unless given.
    pub default: Option<&'static str>,
    pub help: &'static str,
}

const fn value(name: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { name, kind: Kind::Value, default: Some(default), help }
}

const fn optional(name: &'static str, help: &'static str) -> Setting {
    Setting { name, kind: Kind::Value, default: None, help }
}

const fn switch(name: &'static str, help: &'static str) -> Setting {
    Setting { name, kind: Kind::Switch, default: Some("0"), help }
}

const fn secret(name: &'static str, help: &'static str) -> Setting {
    Setting { name, kind: Kind::Secret, default: None, help }
}

/// Every setting, in the order in which help shows them.
pub const SETTINGS: &[Setting] = &[
    value("cluster", "default", "Name of the cluster, the same at all members"),
    value("member", "m1", "Name of this member"),
    value("data_dir", "./antiphon-data", "Directory that holds all of this member's data"),
    value("host", "127.0.0.1", "Address to serve clients on; host:port overrides --port"),
    value("port", "4000", "Port to serve clients on"),
    optional("advertise_url", "URL under which clients reach this member (default: from host and port)"),
    value("peer_listen", "127.0.0.1:4100", "host:port to serve other members on"),
    optional(
        "peer_advertise",
        "host:port under which other members reach this one (default: its entry in --members, else --peer-listen)",
    ),
    optional(
        "members",
        "Static list of all members, m1=host:peerport,m2=host:peerport,... (none: a cluster of one)",
    ),
    optional("join", "Members of a running cluster to join, host:peerport,..."),
    secret("cluster_secret", "Secret shared by all members, at least 16 characters"),
    optional("cluster_secret_file", "File that holds the secret instead"),
    secret(
        "cluster_secret_previous",
        "What the secret was before, while it is being changed: opens what is stored",
    ),
    optional("cluster_secret_previous_file", "File that holds that instead"),
    secret("api_keys", "Keys of clients: key[:scopes[:prefixes]],... (none: only loopback is served)"),
    optional("api_keys_file", "File that holds the keys instead"),
    switch("allow_insecure_no_auth", "Serve every address without keys"),
    switch("probe_auth", "Ask for a key at health and ready too"),
    value(
        "drain_ms",
        "10000",
        "How long a member that is told to stop says that it is not ready and serves on",
    ),
    value("request_timeout_ms", "10000", "Longest time that a request may take to reach its outcome"),
    value("max_body_bytes", "64MiB", "Largest request body; 0: as large as a frame between members allows"),
    optional(
        "max_inflight_bytes",
        "Bytes of bodies and messages held at once, a quarter of them for one key (default: a quarter of the memory, 128MiB to 1GiB); 0: any number",
    ),
    value(
        "max_connections",
        "0",
        "Connections of clients; 0: what the limit of open files leaves, at most 20000",
    ),
    value("max_inflight_per_key", "1000", "Requests of one key that may be under way; 0: any number"),
    value("max_watch_sessions", "10000", "Watch sessions at this member; 0: any number"),
    value("max_watch_sessions_per_key", "1000", "The same of one key; 0: any number"),
    value("watch_session_ttl_ms", "300000", "How long a watch session without a stream is kept"),
    value("slow_reader_ms", "30000", "When a stream ends whose reader takes nothing"),
    value("max_sse_connections", "10000", "Open event streams and WebSockets at this member; 0: any number"),
    value("max_sse_connections_per_key", "1000", "The same of one key; 0: any number"),
    optional(
        "cors_allow_origins",
        "Origins of web pages that may call this member, https://a.b,... or * (none: none)",
    ),
    optional(
        "connector_allow",
        "Hosts and networks that routers may connect to, b.example,10.0.0.0/8,... (none: all that may be)",
    ),
    optional("connector_deny", "Hosts and networks that routers may not connect to"),
    optional(
        "allowed_hosts",
        "Without keys: names of hosts under which web pages may reach this member, besides localhost and those of --advertise-url and --members; * for all (default with --allow-insecure-no-auth)",
    ),
    value("max_topics", "100000", "Most topics in the cluster; 0: any number"),
    value("max_routers", "10000", "Most routers in the cluster; 0: any number"),
    value(
        "max_idempotency_keys",
        "10000000",
        "Most idempotency keys remembered in the cluster, a quarter of them in one topic; 0: any number",
    ),
    value("max_total_bytes", "0", "Most live bytes in the cluster, 512GiB and the like; 0: any number"),
    value("heartbeat_ms", "200", "Interval of the leader's heartbeats"),
    value("election_timeout_min_ms", "500", "Shortest silence of the leader that starts an election"),
    value("election_timeout_max_ms", "800", "Longest silence of the leader that starts an election"),
    value("runtime_threads", "0", "Threads that serve requests; 0: by the number of cores"),
    value("segment_bytes", "64MiB", "Size of one segment of the log"),
    value("min_free_bytes", "256MiB", "Free disk space below which records are refused; 0: never"),
    value("cache_bytes", "64MiB", "Memory for the newest entries of the log"),
    value(
        "log",
        "info,openraft=error",
        "What is logged: a tracing filter such as info or antiphon=debug,warn",
    ),
    value("log_format", "text", "Form of log lines: text or json"),
    value(
        "kept_log_entries",
        "200000",
        "Applied entries that the log keeps for members that lag, before it is freed; 0: all",
    ),
    value("kept_log_bytes", "1GiB", "The most that those entries take up; 0: any number"),
    value(
        "lag_patience_ms",
        "600000",
        "How long the log is kept for a silent member, which then takes over the state of another",
    ),
];

/// Where help begins a new section: the setting that stands there, and what it is called.
const SECTIONS: &[(&str, &str)] = &[
    ("cluster", "The member and its cluster"),
    ("cluster_secret", "Secrets and keys"),
    ("drain_ms", "Requests and streams"),
    ("max_topics", "What the cluster may hold"),
    ("heartbeat_ms", "Leadership"),
    ("runtime_threads", "Threads, disk and memory"),
    ("log", "Logging"),
    ("kept_log_entries", "Members that lag"),
];

/// Each setting with the section of help that it belongs to.
pub fn settings_in_sections() -> impl Iterator<Item = (&'static Setting, &'static str)> {
    let mut section = "";
    SETTINGS.iter().map(move |setting| {
        if let Some((_, begun)) = SECTIONS.iter().find(|(first, _)| *first == setting.name) {
            section = begun;
        }
        (setting, section)
    })
}

impl Setting {
    /// What help calls its value.
    pub fn unit(&self) -> &'static str {
        match self.name {
            "data_dir" => "DIR",
            name if name.ends_with("_ms") => "MS",
            name if name.ends_with("_bytes") => "SIZE",
            name if name.ends_with("_file") => "FILE",
            name if name.ends_with("_url") => "URL",
            name if name.starts_with("max_") || name.ends_with("_entries") || name.ends_with("_threads") => {
                "N"
            }
            _ => "VALUE",
        }
    }
}

/// `--x-y` for `x_y`.
pub fn flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

/// `ANTIPHON_X_Y` for `x_y`.
pub fn variable(name: &str) -> String {
    format!("ANTIPHON_{}", name.to_ascii_uppercase())
}

/// Variables that the commands read which are clients.
const CLIENT_VARIABLES: [&str; 2] = ["ANTIPHON_URL", "ANTIPHON_KEY"];

/// The names among `variables` that look like ours and are not: a typo there would be silent.
pub fn unknown_variables(variables: impl Iterator<Item = String>) -> Vec<String> {
    let mut unknown: Vec<String> = variables
        .filter(|found| found.starts_with("ANTIPHON_"))
        .filter(|found| !CLIENT_VARIABLES.contains(&found.as_str()))
        .filter(|found| !SETTINGS.iter().any(|setting| *found == variable(setting.name)))
        .collect();
    unknown.sort();
    unknown
}

/// Where a value was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Flag,
    Variable,
}

impl Source {
    /// How the setting `name` is spelled there.
    pub(super) fn spell(self, name: &str) -> String {
        match self {
            Source::Flag => flag(name),
            Source::Variable => variable(name),
        }
    }
}

/// The values that were given, by name.
#[derive(Default)]
pub struct Given(BTreeMap<&'static str, (Secret, Source)>);

impl Given {
    /// Adds one value. An empty variable counts as not given: that is how compose files and unit files
    /// leave a setting out.
    pub fn set(&mut self, name: &'static str, text: String, source: Source) {
        if !(text.is_empty() && source == Source::Variable) {
            self.0.insert(name, (Secret::new(text), source));
        }
    }

    /// The text for `name`, given or by default.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some((text, _)) => Some(text.expose()),
            None => SETTINGS.iter().find(|setting| setting.name == name).and_then(|setting| setting.default),
        }
    }

    /// Whether log lines are to be JSON, as far as that can be told.
    pub fn is_log_json(&self) -> bool {
        self.text("log_format") == Some("json")
    }

    /// What was given, for the log: one line, and of secrets only that they were.
    pub fn describe(&self) -> String {
        let given =
            SETTINGS.iter().filter_map(|setting| Some((setting, self.0.get(setting.name)?.0.expose())));
        let words: Vec<String> = given
            .map(|(Setting { name, kind, .. }, text)| match kind {
                Kind::Secret => format!("{name}=(hidden)"),
                _ if text.chars().all(|char| char.is_ascii_graphic() && char != '"') => {
                    format!("{name}={text}")
                }
                _ => format!("{name}={text:?}"),
            })
            .collect();
        if words.is_empty() { "none given".to_owned() } else { words.join(" ") }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// How the setting `name` was spelled when it was given.
    pub(super) fn spell(&self, name: &str) -> String {
        self.0.get(name).map_or(Source::Flag, |(_, source)| *source).spell(name)
    }

    /// A refusal of the value of `name`, spelled as it was given.
    pub(super) fn refuse(&self, name: &str, allowed: impl Into<String>) -> BadSetting {
        let secret = SETTINGS.iter().any(|setting| setting.name == name && setting.kind == Kind::Secret);
        BadSetting {
            setting: self.spell(name),
            value: if secret { None } else { self.0.get(name).map(|(text, _)| text.expose().to_owned()) },
            remedy: allowed.into(),
        }
    }
}

/// A setting that cannot be used: one line for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadSetting {
    /// As the operator wrote it: `--port` or `ANTIPHON_PORT`.
    pub setting: String,
    /// `None` for secrets, and for settings that are missing.
    pub value: Option<String>,
    /// What is wrong or allowed, and what to do.
    pub remedy: String,
}

impl fmt::Display for BadSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            // Debug form: control characters of a bad value must not break the line.
            Some(value) => write!(f, "{} {value:?}: {}", self.setting, self.remedy),
            None => write!(f, "{}: {}", self.setting, self.remedy),
        }
    }
}

impl std::error::Error for BadSetting {}
