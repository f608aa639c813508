//! The addresses of the test's network, and the interface and station that each is reached by.
//!
//! ```text
//! clients ── eth0  forwarder  eth1 ── backends, and a gateway to a network with a smaller MTU
//! ```

use std::net::{IpAddr, SocketAddr};

use forwarder_lab::Family;

/// An interface of the forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// `eth0`.
    Clients,
    /// `eth1`.
    Backends,
}

impl Side {
    pub(crate) const ALL: [Self; 2] = [Self::Clients, Self::Backends];

    pub(crate) fn interface(self) -> &'static str {
        match self {
            Self::Clients => "eth0",
            Self::Backends => "eth1",
        }
    }
}

/// Names in configurations, and the address of each in both families.
const PLAN: [(&str, &str, &str); 12] = [
    ("public", "203.0.113.7", "2001:db8::7"),
    // Routed to the forwarder, but not its own.
    ("public_2", "203.0.113.8", "2001:db8::8"),
    ("client", "203.0.113.100", "2001:db8::100"),
    ("client_2", "203.0.113.101", "2001:db8::101"),
    // What the kernel prefers towards the backends.
    ("inner", "10.8.0.1", "fd08::1"),
    ("inner_2", "10.8.0.9", "fd08::9"),
    ("backend", "10.8.0.2", "fd08::2"),
    ("backend_2", "10.8.0.3", "fd08::3"),
    // No neighbour entry.
    ("silent", "10.8.0.77", "fd08::77"),
    // A route that forbids.
    ("prohibited", "10.66.0.2", "fd66::2"),
    // Behind `backend_2`, with an MTU of `NARROW_MTU`.
    ("narrow", "10.9.0.2", "fd09::2"),
    // In no rule and without a route.
    ("stranger", "192.0.2.1", "2001:db8:ffff::1"),
];

/// What the backends' network is outside under a one-to-one rule, and what it is.
const PREFIXES: [(&str, &str); 2] = [("192.0.2.0/24", "10.8.0.0/24"), ("2001:db8:9::/48", "fd08::/48")];

/// Of the route to `narrow`, in bytes of IP packet.
pub(crate) const NARROW_MTU: usize = 1300;
/// Addresses that are the forwarder's, with the interface they are on.
pub(crate) const OWN: [(Side, &str); 3] =
    [(Side::Clients, "public"), (Side::Backends, "inner"), (Side::Backends, "inner_2")];
/// Addresses whose neighbour entries are permanent.
pub(crate) const STATIONS: [&str; 4] = ["client", "client_2", "backend", "backend_2"];

/// The address with this name.
pub(crate) fn ip(family: Family, name: &str) -> IpAddr {
    let (_, v4, v6) = PLAN.iter().find(|(known, ..)| *known == name).unwrap_or_else(|| panic!("no address {name}"));
    if family == Family::V4 { v4 } else { v6 }.parse().unwrap()
}

/// A port (or echo identifier) at the address with this name.
pub(crate) fn end(family: Family, name: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(family, name), port)
}

/// A configuration for both families: the template once with the addresses of each.
pub(crate) fn fill_in(template: &str) -> String {
    // On an emulated machine a test may take minutes: no flow may expire meanwhile by itself.
    let timeouts: String =
        ["tcp_opening", "tcp_closing", "tcp_reset", "udp_opening", "udp_established", "icmp", "other"]
            .map(|name| format!("{name} = \"2h\"\n"))
            .concat();
    format!("[timeouts]\n{timeouts}\n{}", Family::ALL.map(|family| fill_in_for(family, template)).concat())
}

fn fill_in_for(family: Family, template: &str) -> String {
    // In front of a port, an IPv6 address has brackets.
    let (open, close) = if family == Family::V4 { ("", "") } else { ("[", "]") };
    let (outer, inner) = if family == Family::V4 { PREFIXES[0] } else { PREFIXES[1] };
    let text = template.replace("{outer_prefix}", outer).replace("{inner_prefix}", inner);
    let mut text = text.replace("{v}", suffix(family));
    for (name, ..) in PLAN {
        let address = ip(family, name);
        text = text.replace(&format!("{{{name}}}:"), &format!("{open}{address}{close}:"));
        text = text.replace(&format!("{{{name}}}"), &address.to_string());
    }
    text
}

/// The name of a rule of [`fill_in`] in this family.
pub(crate) fn rule_name(family: Family, rule: &str) -> String {
    format!("{rule}-{}", suffix(family))
}

fn suffix(family: Family) -> &'static str {
    if family == Family::V4 { "v4" } else { "v6" }
}

/// Where the kernel's routing sends packets for an address.
pub(crate) fn side_of(address: IpAddr) -> Side {
    let outside = match address {
        IpAddr::V4(v4) => v4.octets()[0] == 203,
        IpAddr::V6(v6) => v6.segments()[0] == 0x2001,
    };
    if outside { Side::Clients } else { Side::Backends }
}

/// The MAC address of the station that packets for an address are sent to.
pub(crate) fn station(address: IpAddr) -> [u8; 6] {
    let narrow = Family::ALL.into_iter().find(|family| ip(*family, "narrow") == address);
    let next = narrow.map_or(address, |family| ip(family, "backend_2"));
    let (family, last) = match next {
        IpAddr::V4(v4) => (4, u16::from(v4.octets()[3])),
        IpAddr::V6(v6) => (6, v6.segments()[7]),
    };
    let [high, low] = last.to_be_bytes();
    [2, 0, 0x5e, family, high, low]
}
