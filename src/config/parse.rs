//! The small forms that settings are written in: names, addresses, numbers, sizes.

use std::net::IpAddr;

use super::{BadSetting, Given};
use crate::limits::MAX_MEMBER_NAME_CHARS;

/// The pattern of contract section 1.2 for clusters and members, for people.
pub(super) const NAME_RULE: &str =
    "1 to 64 letters, digits, dots, underscores and hyphens, the first a letter or digit";

/// Whether `name` can be the name of a cluster or member.
pub(super) fn is_name(name: &str) -> bool {
    name.len() <= MAX_MEMBER_NAME_CHARS
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// The entries of a comma-separated list, trimmed, without empty ones.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

/// A port that can be listened on and told to others: not 0.
pub(super) fn port(text: &str) -> Option<u16> {
    // `parse` would take "+80".
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

/// A host name, an IPv4 address, or an IPv6 address with or without brackets.
pub(super) fn bare_host(text: &str) -> Option<&str> {
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().ok().map(|_| inner);
    }
    let name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let known = text.parse::<IpAddr>().is_ok() || (!text.is_empty() && text.chars().all(name));
    known.then_some(text)
}

/// Host (without brackets) and port of `host:port`.
pub(super) fn host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port_text) = text.rsplit_once(':')?;
    // A bare IPv6 address is full of colons; with a port it needs brackets.
    if host.contains(':') && !host.starts_with('[') {
        return None;
    }
    Some((bare_host(host)?, port(port_text)?))
}

/// Whether `text` is the origin of a web page: `scheme://host` or `scheme://host:port`, and no path.
pub(super) fn is_origin(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"/?#@,*".contains(&byte);
    text.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty()
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && !rest.is_empty()
            && rest.bytes().all(plain)
    })
}

/// The host of a `host:port` that was checked before.
pub(super) fn host_of(address: &str) -> &str {
    host_port(address).map_or(address, |(host, _)| host)
}

/// `host:port`, with brackets where an IPv6 address needs them.
pub(super) fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Whether only this machine reaches `host`. A name counts only if it is `localhost`: what another name
/// resolves to may change after the check.
pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether `host` stands for all addresses of the machine.
pub(super) fn is_wildcard(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
}

/// A size: a number of bytes, or of KiB, MiB or GiB.
fn size(text: &str) -> Option<u64> {
    let (number, unit_bytes) = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1u64 << 30)]
        .into_iter()
        .find_map(|(unit, bytes)| text.strip_suffix(unit).map(|number| (number.trim_end(), bytes)))
        .unwrap_or((text, 1));
    number.parse::<u64>().ok()?.checked_mul(unit_bytes)
}

impl Given {
    /// A refusal that shows `value`, which may be a default.
    pub(super) fn refuse_resolved(&self, name: &str, value: u64, allowed: String) -> BadSetting {
        BadSetting { setting: self.spell(name), value: Some(value.to_string()), remedy: allowed }
    }

    /// The name of a cluster or member.
    pub(super) fn name(&self, name: &str) -> Result<String, BadSetting> {
        match self.text(name) {
            Some(text) if is_name(text) => Ok(text.to_owned()),
            _ => Err(self.refuse(name, format!("allowed is {NAME_RULE}"))),
        }
    }

    /// A `host:port`.
    pub(super) fn address(&self, name: &str) -> Result<String, BadSetting> {
        match self.text(name) {
            Some(text) if host_port(text).is_some() => Ok(text.to_owned()),
            _ => Err(self.refuse(name, "allowed is host:port (an IPv6 address in brackets)")),
        }
    }

    /// A whole number from `min` to `max`.
    pub(super) fn number(&self, name: &str, min: u64, max: u64) -> Result<u64, BadSetting> {
        match self.text(name).and_then(|text| text.parse::<u64>().ok()) {
            Some(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(self.refuse(name, format!("allowed is a whole number from {min} to {max}"))),
        }
    }

    /// A size from `min` to `max` bytes.
    pub(super) fn bytes(&self, name: &str, min: u64, max: u64) -> Result<u64, BadSetting> {
        match self.text(name).and_then(size) {
            Some(bytes) if (min..=max).contains(&bytes) => Ok(bytes),
            _ => Err(self.refuse(
                name,
                format!("allowed is {min} to {max} bytes, as a number of bytes or with KiB, MiB or GiB"),
            )),
        }
    }

    pub(super) fn switch(&self, name: &str) -> Result<bool, BadSetting> {
        match self.text(name) {
            Some("1" | "true") => Ok(true),
            Some("0" | "false") => Ok(false),
            _ => Err(self.refuse(name, "allowed is 1, true, 0 or false")),
        }
    }
}
