//! What members may connect to on behalf of a router, and what not.
//!
//! Whoever may make a router chooses an address that a member then connects to from inside its network. So what
//! answers there must be meant to be reached that way, and the addresses count that a name stands for at that moment,
//! in whatever form they are written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::TargetRule;

/// Where the clouds tell a machine who it is, with its keys: those that are not link-local.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// What may be connected to.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    /// If there are any, nothing else.
    pub allow: Vec<TargetRule>,
    pub deny: Vec<TargetRule>,
    /// Hosts and ports at which members of this cluster serve each other.
    pub peers: Vec<(String, u16)>,
    /// With keys, whoever reaches this member need not be somebody who may reach this machine.
    pub has_keys: bool,
}

impl Targets {
    /// Whether what stands as `host` in a URL may be connected to at `address`.
    pub fn permit(&self, host: &str, address: IpAddr) -> bool {
        let ip = unwrapped(address);
        let name = |rules: &[TargetRule]| rules.iter().any(|rule| rule.names(host, ip));
        if name(&self.deny) {
            return false;
        }
        let is_named = name(&self.allow);
        if !self.allow.is_empty() && !is_named {
            return false;
        }
        // By its name anything may turn out to be one of these.
        let is_address_named =
            || self.allow.iter().any(|rule| matches!(rule, TargetRule::Net(..)) && rule.names(host, ip));
        match ip.is_loopback() {
            true => !self.has_keys || is_named,
            false => !is_never_meant(ip) || is_address_named(),
        }
    }

    /// Whether members of this cluster serve each other at `port` of something.
    pub fn peer_hosts(&self, port: u16) -> impl Iterator<Item = &str> {
        self.peers.iter().filter(move |peer| peer.1 == port).map(|peer| peer.0.as_str())
    }
}

/// Nobody means these as an address of another cluster.
fn is_never_meant(ip: IpAddr) -> bool {
    let is_special = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified(),
    };
    is_special || METADATA.contains(&ip)
}

/// The IPv4 address that an IPv6 address stands for, if it does: mapped, compatible, NAT64, 6to4.
fn unwrapped(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low).into(),
        [0x2002, high, low, ..] => v4(high, low).into(),
        // Not `::` and `::1`.
        [0, 0, 0, 0, 0, 0, high, low] if high > 0 => v4(high, low).into(),
        _ => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(allow: &str, deny: &str, has_keys: bool) -> Targets {
        let rules = |text: &str| {
            let entries = text.split(',').filter(|entry| !entry.is_empty());
            entries.map(|entry| TargetRule::parse(entry).unwrap()).collect()
        };
        Targets { allow: rules(allow), deny: rules(deny), peers: Vec::new(), has_keys }
    }

    fn permits(targets: &Targets, address: &str) -> bool {
        targets.permit("some.example", address.parse().unwrap())
    }

    #[test]
    fn what_nobody_means_is_refused_in_every_form() {
        let default = targets("", "", true);
        for address in ["10.1.2.3", "192.168.0.1", "8.8.8.8", "fd12::1", "2001:db8::1", "::ffff:10.0.0.1"] {
            assert!(permits(&default, address), "{address}");
        }
        for address in [
            "127.0.0.1",
            "127.8.9.1",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "fd00:ec2::254",
        ] {
            assert!(!permits(&default, address), "{address}");
        }
        // Without keys whoever can make a router is on this machine.
        assert!(permits(&targets("", "", false), "127.0.0.1"));
        assert!(!permits(&targets("", "", false), "169.254.169.254"));
    }

    #[test]
    fn settings_decide_beyond_that() {
        let local = targets("127.0.0.0/8,10.0.0.0/8,b.example,169.254.7.7", "10.9.0.0/16,c.example", true);
        for (address, is_permitted) in [
            ("127.0.0.1", true),
            ("10.1.1.1", true),
            ("10.9.1.1", false),
            ("::1", false),
            ("11.0.0.1", false),
        ] {
            assert_eq!(permits(&local, address), is_permitted, "{address}");
        }
        let at = |host: &str, address: &str| local.permit(host, address.parse().unwrap());
        assert!(at("B.Example", "11.0.0.1") && !at("c.example", "127.0.0.1"));
        // A name is no leave to go wherever it leads to.
        assert!(!at("b.example", "169.254.169.254") && at("x", "169.254.7.7"));
        assert!(at("b.example", "::1"));
    }
}
