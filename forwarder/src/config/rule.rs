//! The parts of a rule, as meant.

use std::{fmt, net::IpAddr, ops::Deref};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{diagnostics::Position, settings::MssClamp};

/// A value and where it was written. Places are neither compared nor stored: they belong to one reading of a file.
#[derive(Clone, Copy, Debug)]
pub struct Placed<T> {
    /// The value.
    pub value: T,
    /// Where it stands; none if it came from the command line or from the state of a running instance.
    pub place: Option<Position>,
}

impl<T> Placed<T> {
    /// A value from elsewhere than a file.
    pub const fn nowhere(value: T) -> Self {
        Self { value, place: None }
    }
}

impl<T> Deref for Placed<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Placed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Placed<T> {}

impl<T: Serialize> Serialize for Placed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Placed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::nowhere)
    }
}

/// An inclusive range of ports, host order, `first <= last`; port 0 is in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// Lowest.
    pub first: u16,
    /// Highest.
    pub last: u16,
}

impl Ports {
    /// How many, at least 1.
    pub const fn count(self) -> u32 {
        (self.last - self.first) as u32 + 1
    }
}

/// Whose traffic a listen names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenHost {
    /// An address.
    Address(IpAddr),
    /// The current addresses of an interface.
    Interface(String),
    /// Every address of a prefix, without host bits and shorter than an address: one to one onto another prefix.
    Prefix(IpNet),
}

/// One entry of `listen`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listen {
    /// Whose traffic.
    pub host: ListenHost,
    /// Which ports; none is the whole address.
    pub ports: Option<Ports>,
}

impl Listen {
    /// Whether it is the outer side of a one-to-one rule.
    pub const fn is_prefix(&self) -> bool {
        matches!(self.host, ListenHost::Prefix(_))
    }
}

/// The backend of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Its address.
    pub address: IpAddr,
    /// Its ports; none keeps those of the listen.
    pub ports: Option<Ports>,
    /// One to one: the length of the prefix whose first address is [`Self::address`].
    pub prefix_len: Option<u8>,
}

impl Target {
    /// The prefix of a one-to-one rule.
    pub fn prefix(&self) -> Option<IpNet> {
        IpNet::new(self.address, self.prefix_len?).ok()
    }
}

/// Which source address the backend sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The address of ours that routing prefers towards the backend.
    #[default]
    Masquerade,
    /// The client's.
    Preserve,
    /// This address of ours.
    Address(IpAddr),
}

/// An IP protocol as rules name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// "icmp": ICMP or ICMPv6, whichever the listen's family has.
    Icmp,
    /// A protocol number.
    Number(u8),
}

impl Protocol {
    /// Its number in an IPv6 or an IPv4 packet.
    pub const fn number(self, v6: bool) -> u8 {
        match self {
            Self::Icmp if v6 => protocol_numbers::ICMPV6,
            Self::Icmp => protocol_numbers::ICMP,
            Self::Number(number) => number,
        }
    }

    /// Whether rules can name ports of it.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Number(protocol_numbers::TCP | protocol_numbers::UDP | protocol_numbers::SCTP))
    }
}

/// IANA protocol numbers that have a meaning here.
pub mod protocol_numbers {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Where a rule's name, target or other single key was not given, its place is that of the rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Unique; the name of its counters. `[A-Za-z0-9._-]{1,63}`.
    pub name: Placed<String>,
    /// What it answers for; never empty.
    pub listen: Vec<Placed<Listen>>,
    /// Which protocols; none is the default: TCP and UDP for a listen with ports, every protocol for one without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Vec<Placed<Protocol>>>,
    /// Its backend.
    pub to: Placed<Target>,
    /// Which source address the backend sees.
    pub source: Placed<Source>,
    /// The clients that may use it, host bits cleared; empty is everyone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Placed<IpNet>>,
    /// `Some(false)`: keep flows even where none are needed. `Some(true)`: it is an error if flows are needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stateless: Option<Placed<bool>>,
    /// What TCP's segment size is lowered to; none is what the configuration says for all rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss_clamp: Option<Placed<MssClamp>>,
}

/// A rule as typed on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypedForward {
    /// Its name.
    pub name: String,
    /// One or more listens.
    pub listen: Vec<String>,
    /// Protocols; empty for the default.
    pub protocol: Vec<String>,
    /// The backend.
    pub to: String,
    /// "masquerade", "preserve" or an address; none for the default.
    pub source: Option<String>,
    /// Client prefixes; empty for everyone.
    pub allow: Vec<String>,
    /// As in [`Forward::stateless`].
    pub stateless: Option<bool>,
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// `ADDR`, `ADDR:PORTS` or `[ADDR6]:PORTS`.
fn write_host(f: &mut fmt::Formatter<'_>, host: &dyn fmt::Display, v6: bool, ports: Option<Ports>) -> fmt::Result {
    match ports {
        None => write!(f, "{host}"),
        Some(ports) if v6 => write!(f, "[{host}]:{ports}"),
        Some(ports) => write!(f, "{host}:{ports}"),
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            ListenHost::Address(address) => write_host(f, address, address.is_ipv6(), self.ports),
            ListenHost::Interface(name) => write_host(f, name, false, self.ports),
            ListenHost::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix() {
            Some(prefix) => prefix.fmt(f),
            None => write_host(f, &self.address, self.address.is_ipv6(), self.ports),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Masquerade => f.write_str("masquerade"),
            Self::Preserve => f.write_str("preserve"),
            Self::Address(address) => address.fmt(f),
        }
    }
}
