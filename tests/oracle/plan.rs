//! The addresses of both labs, and who reaches whom through the forwarder. The rules for that: `rules.rs`.

use std::net::{IpAddr, Ipv6Addr};

use forwarder_lab::Family;

use crate::flow::End;

mod rules;

pub(crate) use rules::{CONNTRACK, JUDGED, KERNEL, configuration, judgement, npt, rules, ruleset, segments};

/// What the setting is about: which source address the server sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// `[[forward]]` with `source = "masquerade"`.
    Masquerade,
    /// … with the client's own.
    Preserve,
    /// … with a certain one.
    Fixed,
    /// A prefix onto a prefix.
    Prefix,
    /// `[[masquerade]]` beside `[[forward]]`.
    Outgoing,
}

/// A side of the forwarder, and what is at the end of the wire there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Side {
    Client,
    Home,
}

/// How a flow lies to the forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the world to a host behind.
    Inward,
    /// From a host behind to what the world reaches, too.
    Hairpin,
    /// From a host behind to the world.
    Outward,
}

impl Way {
    /// Where the client is, and where the server.
    pub(crate) const fn sides(self) -> [Side; 2] {
        match self {
            Self::Inward => [Side::Client, Side::Home],
            Self::Hairpin => [Side::Home, Side::Home],
            Self::Outward => [Side::Home, Side::Client],
        }
    }
}

/// What clients reach, and where it goes: the same address where hosts behind go out.
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

impl Listen {
    /// The backend's port for one of its ports.
    pub(crate) const fn to_port(self, port: u16) -> u16 {
        match self.what {
            What::Ports { first, to, .. } => port - first + to,
            What::Echo | What::Everything => port,
        }
    }
}

/// The MTU of the link to the backend; that of the clients' is 1500.
pub(crate) const HOME_MTU: u16 = 1400;

/// The largest TCP segment that fits both links, where a setting's rules lower what ends announce. One source's do not.
pub(crate) fn largest_segment(family: Family, source: Source) -> Option<u16> {
    let headers = if family == Family::V4 { 40 } else { 60 };
    (source != Source::Fixed).then_some(HOME_MTU - headers)
}

/// The listens of a setting. Port-keeping ones too, and, where each client has a flow, two onto one backend endpoint.
pub(crate) fn listens(family: Family, source: Source) -> Vec<Listen> {
    if source == Source::Prefix {
        let mapped = |index| Listen {
            name: "mapped",
            address: outer(family, index),
            to: inner(family, index),
            what: What::Everything,
        };
        return (0..MAPPED).map(mapped).collect();
    }
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
    if source != Source::Preserve {
        listens.push(Listen { name: "twin", address, to: home, what: ports(81, 8080, 1) });
    }
    listens
}

/// Everybody in the world, as hosts behind reach them.
pub(crate) fn world(family: Family) -> Vec<Listen> {
    let host = |index| {
        let address = client(family, index);
        Listen { name: "world", address, to: address, what: What::Everything }
    };
    (0..CLIENTS).map(host).collect()
}

/// Hosts behind, as the world may reach them too: by their own addresses, through the kernel.
pub(crate) fn unhidden(family: Family) -> Vec<Listen> {
    let host = |index| {
        let address = neighbour(family, index);
        Listen { name: UNHIDDEN, address, to: address, what: What::Everything }
    };
    (0..NEIGHBOURS).map(host).collect()
}

pub(crate) const UNHIDDEN: &str = "unhidden";

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

/// The address that backends see with [`Source::Fixed`].
fn fixed(family: Family) -> IpAddr {
    parse(if family == Family::V4 { "10.8.0.9" } else { "fd08::9" })
}

pub(crate) fn backend(family: Family, index: u8) -> IpAddr {
    parse(&if family == Family::V4 { format!("10.8.0.{}", 2 + index) } else { format!("fd08::{}", 2 + index) })
}

/// Hosts in the backends' network: they go out, and they reach what the world reaches.
pub(crate) fn neighbour(family: Family, index: u8) -> IpAddr {
    parse(&if family == Family::V4 { format!("10.8.0.{}", 40 + index) } else { format!("fd08::2{index}") })
}

pub(crate) const NEIGHBOURS: u8 = 4;

/// Those of [`neighbour`].
const NEIGHBOURS_PREFIX: [&str; 2] = ["10.8.0.40/29", "fd08::20/124"];

/// Hosts of inner prefixes. Of IPv6, two in a prefix of 48 bits and two in one of 64.
pub(crate) fn inner(family: Family, index: u8) -> IpAddr {
    parse(&match (family, index < 2) {
        (Family::V4, _) => format!("10.9.0.{}", 70 + index),
        (Family::V6, true) => format!("fd0a:0:0:{}::{}", 7 * index, 21 + index),
        (Family::V6, false) => format!("fd0b:0:0:1:{}::{}", index - 2, 21 + index),
    })
}

pub(crate) const MAPPED: u8 = 4;

/// (outer, inner, length)
pub(crate) type Prefixes = (&'static str, &'static str, u8);

pub(crate) fn prefixes(family: Family) -> &'static [Prefixes] {
    match family {
        Family::V4 => &[("203.0.113.64", "10.9.0.64", 26)],
        Family::V6 => &[("2001:db8:9::", "fd0a::", 48), ("2001:db8:a:7::", "fd0b:0:0:1::", 64)],
    }
}

/// What the world knows [`inner`] by.
pub(crate) fn outer(family: Family, index: u8) -> IpAddr {
    match inner(family, index) {
        IpAddr::V4(inner) => [203, 0, 113, inner.octets()[3]].into(),
        IpAddr::V6(inner) => {
            let (outer, own, length) = prefixes(family)[usize::from(index / 2)];
            nptv6(inner, outer.parse().unwrap(), own.parse().unwrap(), length).into()
        }
    }
}

/// RFC 6296, for prefixes of 48 and of 64 bits: the word after the prefix makes up for the change of the sum.
fn nptv6(address: Ipv6Addr, to: Ipv6Addr, from: Ipv6Addr, length: u8) -> Ipv6Addr {
    let sum = |address: Ipv6Addr| address.segments()[..4].iter().map(|word| i64::from(*word)).sum::<i64>();
    let (mut words, kept) = (address.segments(), usize::from(length / 16));
    words[..kept].copy_from_slice(&to.segments()[..kept]);
    let word = (i64::from(words[kept]) + sum(from) - sum(to)).rem_euclid(0xffff);
    words[kept] = u16::try_from(word).unwrap_or_default();
    words.into()
}

/// The inner address of an IPv6 address of an outer prefix, if it is of this one.
pub(crate) fn to_inner(address: IpAddr, (outer, inner, length): &Prefixes) -> Option<IpAddr> {
    between(address, outer, inner, *length)
}

/// The outer address of one of an inner prefix, if it is of this one.
pub(crate) fn to_outer(address: IpAddr, (outer, inner, length): &Prefixes) -> Option<IpAddr> {
    between(address, inner, outer, *length)
}

fn between(address: IpAddr, from: &str, to: &str, length: u8) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else { return None };
    let (from, to): (Ipv6Addr, Ipv6Addr) = (from.parse().unwrap(), to.parse().unwrap());
    let is_of = (address.to_bits() ^ from.to_bits()).leading_zeros() >= u32::from(length);
    is_of.then(|| nptv6(address, to, from, length).into())
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

/// A router on the way to a side's hosts.
pub(crate) fn router(family: Family, side: Side) -> IpAddr {
    parse(match (family, side) {
        (Family::V4, Side::Client) => "192.0.2.254",
        (Family::V4, Side::Home) => "10.8.0.77",
        (Family::V6, Side::Client) => "2001:db8:2::fe",
        (Family::V6, Side::Home) => "fd08::77",
    })
}

/// The source address that the server of a flow sees of this client, and by which lab with a port of its
/// choice.
pub(crate) fn seen(family: Family, source: Source, way: Way, listen: &Listen, client: IpAddr) -> (IpAddr, [bool; 2]) {
    let mapped = || (0..MAPPED).find(|index| inner(family, *index) == client).map(|index| outer(family, index));
    let kept = [false, true];
    match (source, way) {
        _ if listen.name == UNHIDDEN => (client, kept),
        (Source::Prefix, _) => (mapped().unwrap_or(client), kept),
        (Source::Preserve, Way::Inward | Way::Outward) => (client, kept),
        (Source::Fixed, _) => (fixed(family), [true; 2]),
        (Source::Outgoing, Way::Outward) => (ours(family, Side::Client), [true; 2]),
        (Source::Outgoing | Source::Masquerade | Source::Preserve, _) => (ours(family, Side::Home), [true; 2]),
    }
}

pub(crate) fn parse(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The addresses of the forwarder with their prefix lengths, in the order in which they are added: of an interface's
/// IPv4 addresses the kernel prefers the first as a source, of IPv6 the last.
pub(crate) fn own_addresses(family: Family) -> Vec<(&'static str, String)> {
    let length = if family == Family::V4 { 24 } else { 64 };
    let mut own = [
        ("eth0", ours(family, Side::Client)),
        ("eth0", whole_address(family)),
        ("eth1", ours(family, Side::Home)),
        ("eth1", fixed(family)),
    ];
    if family == Family::V6 {
        own.reverse();
    }
    own.map(|(interface, address)| (interface, format!("{address}/{length}"))).into()
}

/// Who answers to whom asks for the MAC address of theirs.
pub(crate) fn stations(family: Family) -> Vec<(&'static str, Side, IpAddr)> {
    let clients = (0..CLIENTS).map(|index| ("eth0", Side::Client, client(family, index)));
    let home = (0..2).map(|index| backend(family, index));
    let home = home.chain((0..NEIGHBOURS).map(|index| neighbour(family, index)));
    let home = home.chain((0..MAPPED).map(|index| inner(family, index)));
    clients.chain(home.map(|address| ("eth1", Side::Home, address))).collect()
}

/// Routes of the forwarder: the far clients are reached through the first on-link client, inner prefixes are on the link.
pub(crate) fn routes(family: Family) -> Vec<(String, String)> {
    let far = if family == Family::V4 { "192.0.2.0/24" } else { "2001:db8:2::/64" };
    let inner = prefixes(family).iter().map(|(_, inner, length)| (format!("{inner}/{length}"), "dev eth1".to_owned()));
    inner.chain([(far.to_owned(), format!("via {}", client(family, 0)))]).collect()
}

impl End {
    /// Both.
    pub(crate) const BOTH: [Self; 2] = [Self::Client, Self::Server];
}
