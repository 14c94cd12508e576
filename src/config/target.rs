//! Entries of the settings that say what members may connect to for routers.

use std::net::IpAddr;

use super::parse::bare_host;

/// A host by its name, or addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetRule {
    /// In lower case.
    Host(String),
    /// Those that share so many leading bits.
    Net(IpAddr, u8),
}

impl TargetRule {
    /// Reads a host name, an address, or a network like `10.0.0.0/8`.
    pub fn parse(entry: &str) -> Option<Self> {
        let (address, bits) = match entry.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (entry, None),
        };
        let address = bare_host(address)?;
        let Ok(ip) = address.parse::<IpAddr>() else {
            return bits.is_none().then(|| TargetRule::Host(address.to_ascii_lowercase()));
        };
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(most), |bits| bits.parse().ok().filter(|bits| *bits <= most))?;
        Some(TargetRule::Net(ip, bits))
    }

    /// Whether it is meant by this, as it stands in a URL or as the address that that leads to.
    pub fn names(&self, host: &str, ip: IpAddr) -> bool {
        match (self, ip) {
            (TargetRule::Host(name), _) => name.eq_ignore_ascii_case(host),
            (TargetRule::Net(IpAddr::V4(net), bits), IpAddr::V4(ip)) => {
                let differs = u32::from(*net) ^ u32::from(ip);
                differs.checked_shr(32 - u32::from(*bits)).unwrap_or(0) == 0
            }
            (TargetRule::Net(IpAddr::V6(net), bits), IpAddr::V6(ip)) => {
                let differs = u128::from(*net) ^ u128::from(ip);
                differs.checked_shr(128 - u32::from(*bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_addresses_and_networks_are_told_apart() {
        let names =
            |rule: &str, ip: &str| TargetRule::parse(rule).unwrap().names("h.example", ip.parse().unwrap());
        assert!(names("H.example", "1.1.1.1") && !names("example", "1.1.1.1"));
        assert!(names("10.0.0.0/8", "10.255.0.1") && !names("10.0.0.0/8", "11.0.0.1"));
        assert!(names("0.0.0.0/0", "1.1.1.1") && !names("0.0.0.0/0", "::1"));
        assert!(names("10.0.0.1", "10.0.0.1") && !names("10.0.0.1", "10.0.0.2"));
        assert!(
            names("[fd00::]/8", "fdff::1") && names("fd00::/8", "fdff::1") && !names("fd00::/8", "fc00::1")
        );
        assert!(names("::/0", "::1"));
        for bad in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/x", "h.example/8", "a b", "http://h", "::/129"]
        {
            assert_eq!(TargetRule::parse(bad), None, "{bad}");
        }
    }
}
