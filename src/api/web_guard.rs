//! What a request must say of where it goes, and what keeps web pages of others away from a member without keys
//! (C-CONV-19, C-CONV-20).
//!
//! A browser lets any page send simple requests anywhere, and open WebSockets, and tells where the page is from in
//! `Origin`. And whoever owns a name can let it mean this machine's address, so that his page is of the same origin as
//! this member; then the name in `Host` gives him away. With keys neither matters: a page has none.

use std::net::IpAddr;

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, Request, Version};

use crate::error::{Code, Error};

/// Where probes ask, which know a member by any name.
const PROBES: [&str; 4] = ["/v0/health", "/v0/ready", "/healthz", "/readyz"];

/// Marks a request of a page that is of another origin and was not allowed to call.
#[derive(Debug, Clone, Copy)]
pub struct ForeignOrigin;

impl ForeignOrigin {
    /// What such a page hears if it would change something.
    pub fn refusal() -> Error {
        let message = "a web page of another origin may change nothing here: allow its origin with the setting \
                       cors_allow_origins, or set api_keys";
        Error::new(Code::Forbidden, message)
    }
}

/// The names under which a member without keys is reached.
#[derive(Debug, Clone, Default)]
pub struct WebGuard {
    /// In lower case; `None`: nobody is kept away.
    names: Option<Vec<String>>,
}

impl WebGuard {
    /// Lets everybody come: there are keys.
    pub fn off() -> Self {
        WebGuard::default()
    }

    /// Lets those come who call this member by one of `names`, or `*` for any.
    pub fn new(names: Vec<String>) -> Self {
        WebGuard { names: Some(names) }
    }

    /// 400 for a request that does not say once where it goes, 403 for one that goes to a name that is not ours.
    pub fn check_host<B>(&self, request: &Request<B>) -> Result<(), Error> {
        let Some(host) = host_of(request.headers(), request.version())? else { return Ok(()) };
        let Some(names) = &self.names else { return Ok(()) };
        let name = name_of(host);
        let is_ours = names.iter().any(|ours| ours == "*" || ours.eq_ignore_ascii_case(name));
        if is_ours || is_ip(name) || PROBES.contains(&request.uri().path()) {
            return Ok(());
        }
        let message = format!(
            "the host {name:?} is not served: name it in the setting allowed_hosts, or set api_keys, or ask by address"
        );
        Err(Error::new(Code::Forbidden, message))
    }

    /// Whether `origin` is neither this member itself, as the client calls it, nor `is_allowed`.
    pub fn is_foreign(&self, headers: &HeaderMap, is_allowed: bool) -> bool {
        if self.names.is_none() || is_allowed {
            return false;
        }
        let Some(origin) = headers.get(ORIGIN) else { return false };
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let own = origin.to_str().ok().zip(host).is_some_and(|(origin, host)| is_of_host(origin, host));
        !own
    }
}

/// The `Host` of a request; `None` where an old client may leave it out.
fn host_of(headers: &HeaderMap, version: Version) -> Result<Option<&str>, Error> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version < Version::HTTP_11 => Ok(None),
        (None, _) => Err(Error::invalid("a request of HTTP/1.1 has a header `Host`")),
        (Some(_), Some(_)) => Err(Error::invalid("the header `Host` stands there twice")),
        (Some(host), None) => match host.to_str() {
            Ok(host) if !host.is_empty() => Ok(Some(host)),
            _ => Err(Error::invalid("the header `Host` names no host")),
        },
    }
}

/// The name in `host`, without its port and the dot that may end it.
fn name_of(host: &str) -> &str {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.strip_suffix('.').unwrap_or(name)
}

fn is_ip(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok()
}

/// Whether a page of `origin` came from `host`. The scheme may differ: TLS may end in front of this member.
fn is_of_host(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let default_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let plain =
        |authority: &str| authority.strip_suffix(default_port).unwrap_or(authority).to_ascii_lowercase();
    plain(authority) == plain(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(guard: &WebGuard, version: Version, path: &str, hosts: &[&str]) -> Option<Code> {
        let mut request = Request::get(path).version(version);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        guard.check_host(&request.body(()).unwrap()).err().map(|error| error.code)
    }

    #[test]
    fn a_request_says_once_where_it_goes() {
        // C-CONV-20
        let bad = Some(Code::InvalidRequest);
        for guard in [WebGuard::off(), WebGuard::new(vec!["*".to_owned()])] {
            let check = |version, hosts: &[&str]| check(&guard, version, "/v0/topics", hosts);
            assert_eq!(check(Version::HTTP_11, &["a.b"]), None);
            assert_eq!(check(Version::HTTP_10, &[]), None);
            assert_eq!(check(Version::HTTP_11, &[]), bad);
            assert_eq!(check(Version::HTTP_11, &[""]), bad);
            assert_eq!(check(Version::HTTP_11, &["a.b", "a.b"]), bad);
            assert_eq!(check(Version::HTTP_10, &["a.b", "c.d"]), bad);
        }
    }

    #[test]
    fn only_known_names_and_addresses_are_served() {
        // C-CONV-19
        let guard = WebGuard::new(vec!["localhost".to_owned(), "m1.internal".to_owned()]);
        let check = |path: &str, host: &str| check(&guard, Version::HTTP_11, path, &[host]);
        for host in
            ["localhost", "LOCALHOST:4000", "m1.internal:80", "M1.internal.", "127.0.0.1:4000", "[::1]:4000"]
                .into_iter()
                .chain(["10.1.2.3", "[2001:db8::1]"])
        {
            assert_eq!(check("/v0/topics", host), None, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:4000", "x:4000", "["] {
            assert_eq!(check("/v0/topics", host), Some(Code::Forbidden), "{host}");
            assert_eq!(check("/v0/ready", host), None, "{host}");
        }
    }

    #[test]
    fn a_page_is_foreign_unless_it_came_from_here_or_is_allowed() {
        // C-CONV-19
        let guard = WebGuard::new(vec!["localhost".to_owned()]);
        let is_foreign = |origin: &str, host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ORIGIN, origin.parse().unwrap());
            headers.insert(HOST, host.parse().unwrap());
            assert!(!guard.is_foreign(&headers, true) && !WebGuard::off().is_foreign(&headers, false));
            guard.is_foreign(&headers, false)
        };
        for (origin, host) in [
            ("http://localhost:4000", "localhost:4000"),
            ("https://localhost", "LocalHost"),
            ("http://a.b:80", "a.b"),
            ("https://a.b", "a.b:443"),
        ] {
            assert!(!is_foreign(origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("https://evil.example", "localhost:4000"),
            ("http://localhost:3000", "localhost:4000"),
            ("null", "localhost"),
            ("file://localhost", "localhost"),
            ("http://localhost", "localhost:443"),
        ] {
            assert!(is_foreign(origin, host), "{origin} {host}");
        }
        assert!(!guard.is_foreign(&HeaderMap::new(), false), "no page has sent it");
    }
}
