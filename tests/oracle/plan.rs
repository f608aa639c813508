//! The addresses and rules of both labs: once in forwarder's words, once in nftables'.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use forwarder_lab::Family;

/// Which source address the backend sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Masquerade,
    Preserve,
}

/// One end of the way through the forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Side {
    Client,
    Home,
}

/// What clients reach, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listen {
    pub(crate) name: &'static str,
    pub(crate) address: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// TCP and UDP: so many ports from the first, to as many.
    Ports {
        first: u16,
        to: u16,
        count: u16,
    },
    Echo,
    Everything,
}

/// The MTU of the link to the backend; that of the clients' is 1500.
pub(crate) const HOME_MTU: u16 = 1400;

/// The listens of a setting. Port-keeping ones too, and, where each client has a flow, two onto one backend endpoint.
pub(crate) fn listens(family: Family, source: Source) -> Vec<Listen> {
    let (address, whole) = (ours(family, Side::Client), whole_address(family));
    let (home, second) = (backend(family, 0), backend(family, 1));
    let ports = |first, to, count| What::Ports { first, to, count };
    let mut listens = vec![
        Listen { name: "web", address, to: home, what: ports(80, 8080, 1) },
        Listen { name: "same", address, to: home, what: ports(4000, 4000, 1) },
        Listen { name: "range", address, to: home, what: ports(1000, 2000, 10) },
        Listen { name: "ping", address, to: home, what: What::Echo },
        Listen { name: "all", address: whole, to: second, what: What::Everything },
    ];
    if source == Source::Masquerade {
        listens.push(Listen { name: "twin", address, to: home, what: ports(81, 8080, 1) });
    }
    listens
}

/// The forwarder's address on a side.
pub(crate) fn ours(family: Family, side: Side) -> IpAddr {
    parse(match (family, side) {
        (Family::V4, Side::Client) => "198.51.100.1",
        (Family::V4, Side::Home) => "10.8.0.1",
        (Family::V6, Side::Client) => "2001:db8:1::1",
        (Family::V6, Side::Home) => "fd08::1",
    })
}

/// The address of which everything is forwarded.
fn whole_address(family: Family) -> IpAddr {
    parse(if family == Family::V4 { "198.51.100.11" } else { "2001:db8:1::b" })
}

pub(crate) fn backend(family: Family, index: u8) -> IpAddr {
    parse(&if family == Family::V4 { format!("10.8.0.{}", 2 + index) } else { format!("fd08::{}", 2 + index) })
}

/// Clients on the link (below [`FAR`]) and behind a router.
pub(crate) fn client(family: Family, index: u8) -> IpAddr {
    parse(&match (family, index < FAR) {
        (Family::V4, true) => format!("198.51.100.{}", 20 + index),
        (Family::V4, false) => format!("192.0.2.{}", 20 + index),
        (Family::V6, true) => format!("2001:db8:1::{:x}", 32 + index),
        (Family::V6, false) => format!("2001:db8:2::{:x}", 32 + index),
    })
}

pub(crate) const CLIENTS: u8 = 8;
const FAR: u8 = 4;
/// The client that sends the end marks.
pub(crate) const MARKER: u8 = FAR - 1;

pub(crate) fn parse(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The addresses of the forwarder with their prefix lengths.
pub(crate) fn own_addresses(family: Family) -> Vec<(&'static str, String)> {
    let length = if family == Family::V4 { 24 } else { 64 };
    let own =
        [("eth0", ours(family, Side::Client)), ("eth0", whole_address(family)), ("eth1", ours(family, Side::Home))];
    own.map(|(interface, address)| (interface, format!("{address}/{length}"))).into()
}

/// What is reached through the first on-link client.
pub(crate) fn far_network(family: Family) -> &'static str {
    if family == Family::V4 { "192.0.2.0/24" } else { "2001:db8:2::/64" }
}

impl Listen {
    /// The backend's port for one of its ports.
    pub(crate) fn to_port(self, port: u16) -> u16 {
        match self.what {
            What::Ports { first, to, .. } => port - first + to,
            What::Echo | What::Everything => port,
        }
    }

    fn forward(&self, source: Source) -> String {
        let (listen, to, protocol) = match self.what {
            What::Ports { first, to, count: 1 } => (end(self.address, first), end(self.to, to), ""),
            What::Ports { first, to, count } => (
                format!("{}-{}", end(self.address, first), first + count - 1),
                format!("{}-{}", end(self.to, to), to + count - 1),
                "",
            ),
            What::Echo => (self.address.to_string(), self.to.to_string(), "protocol = \"icmp\"\n"),
            What::Everything => (self.address.to_string(), self.to.to_string(), ""),
        };
        let source = if source == Source::Preserve { "preserve" } else { "masquerade" };
        let name = self.name;
        format!(
            "[[forward]]\nname = \"{name}\"\nlisten = \"{listen}\"\nto = \"{to}\"\n{protocol}source = \"{source}\"\n\n"
        )
    }

    fn dnat(&self) -> String {
        let ip = if self.address.is_ipv4() { "ip" } else { "ip6" };
        let (address, to) = (self.address, self.to);
        let bracketed = if address.is_ipv4() { to.to_string() } else { format!("[{to}]") };
        match self.what {
            What::Ports { first, to: first_to, count } => ["tcp", "udp"]
                .map(|protocol| {
                    let mut rules = String::new();
                    for index in 0..count {
                        let (port, to) = (first + index, first_to + index);
                        writeln!(rules, "{ip} daddr {address} {protocol} dport {port} dnat to {bracketed}:{to}")
                            .unwrap();
                    }
                    rules
                })
                .concat(),
            What::Echo => {
                let protocol = if address.is_ipv4() { "icmp" } else { "ipv6-icmp" };
                format!("{ip} daddr {address} meta l4proto {protocol} dnat to {to}\n")
            }
            What::Everything => format!("{ip} daddr {address} dnat to {to}\n"),
        }
    }
}

fn end(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

/// forwarder's configuration. Nothing expires while the test runs.
pub(crate) fn configuration(family: Family, source: Source) -> String {
    let mut text = String::from("[limits]\nflows = 65536\nnew_flows = 65536\n[timeouts]\n");
    for name in ["opening", "established", "closing", "reset"] {
        writeln!(text, "tcp_{name} = \"2h\"").unwrap();
    }
    for name in ["udp_opening", "udp_established", "icmp", "other"] {
        writeln!(text, "{name} = \"2h\"").unwrap();
    }
    text + &rules(family, source)
}

/// The rules alone, in forwarder's words.
pub(crate) fn rules(family: Family, source: Source) -> String {
    listens(family, source).iter().map(|listen| listen.forward(source)).collect()
}

/// The same for `nft -f`.
pub(crate) fn ruleset(family: Family, source: Source) -> String {
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    let rules: String = listens(family, source).iter().map(Listen::dnat).collect();
    let masquerade = if source == Source::Masquerade { "ct status dnat masquerade" } else { "" };
    format!(
        "table {ip} nat {{\nchain pre {{ type nat hook prerouting priority dstnat;\n{rules}}}\n\
         chain post {{ type nat hook postrouting priority srcnat;\n{masquerade}\n}}\n}}\n"
    )
}

/// What netfilter's connection tracking is told: expire nothing either, and, as forwarder, do not follow TCP windows.
pub(crate) const CONNTRACK: [(&str, &str); 19] = [
    ("nf_conntrack_tcp_be_liberal", "1"),
    ("nf_conntrack_tcp_ignore_invalid_rst", "1"),
    ("nf_conntrack_tcp_timeout_syn_sent", "7200"),
    ("nf_conntrack_tcp_timeout_syn_recv", "7200"),
    ("nf_conntrack_tcp_timeout_established", "7200"),
    ("nf_conntrack_tcp_timeout_fin_wait", "7200"),
    ("nf_conntrack_tcp_timeout_close_wait", "7200"),
    ("nf_conntrack_tcp_timeout_last_ack", "7200"),
    ("nf_conntrack_tcp_timeout_time_wait", "7200"),
    ("nf_conntrack_tcp_timeout_close", "7200"),
    ("nf_conntrack_tcp_timeout_max_retrans", "7200"),
    ("nf_conntrack_tcp_timeout_unacknowledged", "7200"),
    ("nf_conntrack_udp_timeout", "7200"),
    ("nf_conntrack_udp_timeout_stream", "7200"),
    ("nf_conntrack_icmp_timeout", "7200"),
    ("nf_conntrack_icmpv6_timeout", "7200"),
    ("nf_conntrack_generic_timeout", "7200"),
    ("nf_conntrack_gre_timeout", "7200"),
    ("nf_conntrack_gre_timeout_stream", "7200"),
];

/// Both kernels answer as often as they like, and leave the flow label alone.
pub(crate) const UNLIMITED: [(&str, &str); 5] = [
    ("net.ipv6.auto_flowlabels", "0"),
    ("net.ipv4.icmp_ratelimit", "0"),
    ("net.ipv4.icmp_ratemask", "0"),
    ("net.ipv6.icmp.ratelimit", "0"),
    ("net.ipv6.icmp.error_anycast_as_unicast", "0"),
];
