//! How the parts of a rule are written: text to meaning, one part at a time.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

use super::rule::{Listen, ListenHost, Ports, Protocol, Source, Target, protocol_numbers};

/// What is wrong with a piece of text, and what to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// What is wrong, to stand after the text itself and a colon.
    pub what: String,
    /// What to try next; may be empty.
    pub hint: String,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for SyntaxError {}

fn error<T>(what: impl Into<String>, hint: impl Into<String>) -> Result<T, SyntaxError> {
    Err(SyntaxError { what: what.into(), hint: hint.into() })
}

/// Longest name of an interface (the kernel's IFNAMSIZ, less its terminator).
const INTERFACE_NAME_MAX: usize = 15;

/// Whether the kernel would take this as the name of an interface.
pub(super) fn is_interface_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= INTERFACE_NAME_MAX
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

fn port(text: &str) -> Result<u16, SyntaxError> {
    match text.parse::<u16>() {
        Ok(0) => error("port 0 is not a port", "a port from 1 to 65535"),
        Err(_) if text.is_empty() => error("a port is missing", "a port from 1 to 65535"),
        Ok(port) => Ok(port),
        Err(_) if text.bytes().all(|b| b.is_ascii_digit()) => {
            error(format!("port {text} is out of range"), "a port from 1 to 65535")
        }
        Err(_) => error(format!("`{text}` is not a port"), "a number from 1 to 65535, or a range such as 8000-8100"),
    }
}

impl FromStr for Ports {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        // "80" is "80-80".
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first.trim())?, port(last.trim())?);
        if first > last {
            return error(format!("the range {first}-{last} is backwards"), format!("{last}-{first}"));
        }
        Ok(Self { first, last })
    }
}

/// What stands before the port, and the port.
enum Parts<'a> {
    Address(IpAddr, Option<Ports>),
    Name(&'a str, Option<Ports>),
}

fn parts(text: &str) -> Result<Parts<'_>, SyntaxError> {
    if text.is_empty() {
        return error("empty", "an address with a port, such as 203.0.113.7:80");
    }
    if let Some(rest) = text.strip_prefix('[') {
        let Some((inside, after)) = rest.split_once(']') else {
            return error("`[` without `]`", "[2001:db8::1]:80");
        };
        let Ok(address) = inside.parse() else {
            return error(format!("`{inside}` is not an IPv6 address"), "[2001:db8::1]:80");
        };
        let address = IpAddr::V6(address);
        return match after.strip_prefix(':') {
            Some(after) => Ok(Parts::Address(address, Some(after.parse()?))),
            None if after.is_empty() => Ok(Parts::Address(address, None)),
            None => error(format!("`{after}` after the address"), format!("[{address}]:80")),
        };
    }
    if let Ok(address) = text.parse() {
        return Ok(Parts::Address(address, None));
    }
    let (host, ports) = match text.rsplit_once(':') {
        Some((host, after)) => (host, Some(after.parse().map_err(|wrong| bare_v6(host).unwrap_or(wrong))?)),
        None => (text, None),
    };
    if host.is_empty() {
        return error("no address", "an address or an interface before the port, such as eth0:80");
    }
    if let Some(wrong) = bare_v6(host) {
        return Err(wrong);
    }
    match host.parse() {
        Ok(address) => Ok(Parts::Address(address, ports)),
        Err(_) => Ok(Parts::Name(host, ports)),
    }
}

/// The usual mistake with IPv6: a port after an address without brackets.
fn bare_v6(host: &str) -> Option<SyntaxError> {
    if !host.contains(':') {
        return None;
    }
    Some(match host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => {
            SyntaxError { what: "an IPv6 address with a port needs brackets".into(), hint: format!("[{address}]:PORT") }
        }
        Err(_) => SyntaxError {
            what: format!("`{host}` is not an address"),
            hint: "ADDR:PORT or [ADDR6]:PORT, such as 203.0.113.7:80 or [2001:db8::1]:80".into(),
        },
    })
}

/// Whether this was meant as an IPv4 address: nothing but digits and dots.
fn looks_like_v4(host: &str) -> bool {
    host.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// Refuses addresses that packets for others never carry.
pub(super) fn unicast(address: IpAddr, instead: &str) -> Result<IpAddr, SyntaxError> {
    let kind = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4 address written as IPv6",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address, which is never forwarded",
        _ => return Ok(address),
    };
    error(format!("{address} is {kind}"), instead)
}

/// The longest IPv6 prefix that can be mapped onto another without changing a checksum (RFC 6296 section 3.1): what makes
/// up for the change stands behind it.
const LONGEST_V6_PREFIX: u8 = 64;

/// The prefix that a text names, if it has the shape of one; a port behind it is a mistake worth its own words.
fn one_to_one(text: &str) -> Result<Option<IpNet>, SyntaxError> {
    let bare = text.trim_start_matches('[').replace(']', "");
    if let Some((prefix, _)) = bare.rsplit_once(':').filter(|(prefix, _)| prefix.contains('/'))
        && prefix.parse::<IpNet>().is_ok()
    {
        return error("a prefix takes every port and protocol", prefix);
    }
    let Some((address, length)) = text.split_once('/') else { return Ok(None) };
    let Ok(address) = address.parse::<IpAddr>() else { return Ok(None) };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = length.parse().ok().and_then(|length| IpNet::new(address, length).ok());
    let Some(prefix) = prefix.filter(|prefix| prefix.prefix_len() > 0) else {
        return error(format!("`{length}` is not a prefix length"), format!("a number from 1 to {longest}"));
    };
    if prefix.prefix_len() == longest {
        return error("one address needs no prefix length", address.to_string());
    }
    if address.is_ipv6() && prefix.prefix_len() > LONGEST_V6_PREFIX {
        return error(
            format!("an IPv6 prefix is mapped one to one up to /{LONGEST_V6_PREFIX} (RFC 6296)"),
            "a shorter prefix, or single addresses",
        );
    }
    if prefix.trunc() != prefix {
        return error("bits are set beyond the prefix length", prefix.trunc().to_string());
    }
    unicast(address, "a prefix of unicast addresses")?;
    Ok(Some(prefix))
}

/// A sentence for what the contract has and this version has not.
pub(super) fn not_yet<T>(what: &str, hint: &str) -> Result<T, SyntaxError> {
    error(format!("{what}: not supported by this version yet"), hint)
}

impl FromStr for Listen {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        if let Some(prefix) = one_to_one(text)? {
            return Ok(Self { host: ListenHost::Prefix(prefix), ports: None });
        }
        match parts(text)? {
            Parts::Address(address, ports) => {
                let address =
                    unicast(address, "an address of this machine, or the name of an interface such as eth0:80")?;
                Ok(Self { host: ListenHost::Address(address), ports })
            }
            Parts::Name(name, _) if looks_like_v4(name) => {
                error(format!("`{name}` is not an IPv4 address"), "four numbers from 0 to 255, such as 203.0.113.7:80")
            }
            Parts::Name(name, ports) if is_interface_name(name) => {
                Ok(Self { host: ListenHost::Interface(name.to_owned()), ports })
            }
            Parts::Name(name, _) => error(
                format!("`{name}` is neither an address nor the name of an interface"),
                "ADDR:PORT, [ADDR6]:PORT or INTERFACE:PORT",
            ),
        }
    }
}

impl FromStr for Target {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        if let Some(prefix) = one_to_one(text)? {
            return Ok(Self { address: prefix.addr(), ports: None, prefix_len: Some(prefix.prefix_len()) });
        }
        match parts(text)? {
            Parts::Address(address, ports) => {
                let address = unicast(address, "the address of the backend in its own network")?;
                Ok(Self { address, ports, prefix_len: None })
            }
            Parts::Name(name, _) if looks_like_v4(name) => {
                error(format!("`{name}` is not an IPv4 address"), "four numbers from 0 to 255, such as 10.8.0.2:8080")
            }
            Parts::Name(name, _) => {
                not_yet(&format!("a host name as backend (`{name}`)"), "its address, such as 10.8.0.2:8080")
            }
        }
    }
}

impl FromStr for Source {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        const HINT: &str = "\"masquerade\", \"preserve\" or an address of this machine";
        match text {
            "masquerade" => Ok(Self::Masquerade),
            "preserve" => Ok(Self::Preserve),
            _ => match text.parse() {
                Ok(address) => Ok(Self::Address(unicast(address, HINT)?)),
                Err(_) => match super::nearest::near(text, ["masquerade", "preserve"]) {
                    Some(word) => error("not a kind of source", format!("\"{word}\"")),
                    None => error("not a kind of source", HINT),
                },
            },
        }
    }
}

/// Names of protocols besides "icmp", which depends on the family.
const PROTOCOLS: [(&str, u8); 8] = [
    ("tcp", protocol_numbers::TCP),
    ("udp", protocol_numbers::UDP),
    ("sctp", protocol_numbers::SCTP),
    ("icmpv6", protocol_numbers::ICMPV6),
    ("ipip", 4),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
];

/// The name of a protocol number, or the number.
pub fn protocol_name(number: u8) -> String {
    if number == protocol_numbers::ICMP {
        return "icmp".into();
    }
    let name = PROTOCOLS.iter().find(|(_, other)| *other == number);
    name.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

impl FromStr for Protocol {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        if text == "icmp" {
            return Ok(Self::Icmp);
        }
        if let Some((_, number)) = PROTOCOLS.iter().find(|(name, _)| *name == text) {
            return Ok(Self::Number(*number));
        }
        if let Ok(number) = text.parse() {
            return Ok(Self::Number(number));
        }
        let numeric = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let hint = match super::nearest::near(text, PROTOCOLS.iter().map(|(name, _)| *name).chain(["icmp"])) {
            Some(name) if !numeric => format!("\"{name}\""),
            _ => "tcp, udp, sctp, icmp, or a protocol number from 0 to 255".into(),
        };
        error("not a protocol", hint)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Icmp => f.write_str("icmp"),
            // Distinct from "icmp", which means ICMPv6 on an IPv6 listen.
            Self::Number(protocol_numbers::ICMP) => f.write_str("1"),
            Self::Number(number) => f.write_str(&protocol_name(*number)),
        }
    }
}

/// A client prefix, and whether host bits had to be cleared.
pub(super) fn allow_prefix(text: &str) -> Result<(IpNet, bool), SyntaxError> {
    const HINT: &str = "an address or a prefix, such as 198.51.100.0/24 or 2001:db8::/32";
    if text.is_empty() {
        return error("empty", HINT);
    }
    let net = match text.split_once('/') {
        None => text.parse::<IpAddr>().ok().map(IpNet::from),
        Some((address, length)) => {
            let Ok(address) = address.parse::<IpAddr>() else {
                return error(format!("`{address}` is not an address"), HINT);
            };
            let max = if address.is_ipv4() { 32 } else { 128 };
            match length.parse().map(|length| IpNet::new(address, length)) {
                Ok(Ok(net)) => Some(net),
                _ => {
                    return error(format!("`{length}` is not a prefix length"), format!("a number from 0 to {max}"));
                }
            }
        }
    };
    match net {
        Some(net) => Ok((net.trunc(), net.trunc() != net)),
        None => error("not an address or a prefix", HINT),
    }
}

/// Lets a type be stored as the text it is written as.
macro_rules! stored_as_text {
    ($($type:ty),*) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(super) use stored_as_text;
stored_as_text!(Listen, Target, Source, Protocol, Ports);

#[cfg(test)]
mod tests;
