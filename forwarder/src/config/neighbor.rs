//! `[[neighbor]]`: this machine answers the questions of neighbours (ARP, neighbour discovery) for hosts that live behind
//! it.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    net::IpAddr,
    str::FromStr,
};

use forwarder_common::abi::RangeKey;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    file::FileNeighbor,
    interfaces, nearest,
    report::{Report, on_line},
    rule::Placed,
    syntax::{self, SyntaxError},
    validate,
};
use crate::machine::{Interface, Machine};

/// When a question is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// Whenever the kernel's routing leads to the address by the interface where it lives.
    #[default]
    Always,
    /// Only while the host itself answers there.
    WhileAlive,
}

impl Answer {
    /// The words it is written as.
    pub const WORDS: &'static [&'static str] = &["always", "while-alive"];
}

impl FromStr for Answer {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        match text {
            "always" => Ok(Self::Always),
            "while-alive" => Ok(Self::WhileAlive),
            _ => {
                let hint = nearest::near(text, Self::WORDS.iter().copied())
                    .map_or_else(|| format!("one of {}", Self::WORDS.join(", ")), |near| format!("\"{near}\""));
                Err(SyntaxError { what: "not a kind of answer".to_owned(), hint })
            }
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Always => "always",
            Self::WhileAlive => "while-alive",
        })
    }
}
syntax::stored_as_text!(Answer);

/// A `[[neighbor]]`, every value of which is valid by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbor {
    /// Unique among all rules; the name of its counters. Made from `via` where it was not given.
    pub name: Placed<String>,
    /// The interface where the questions come in.
    pub interface: Placed<String>,
    /// The addresses, host bits cleared; never empty.
    #[serde(rename = "for")]
    pub addresses: Vec<Placed<IpNet>>,
    /// The interface where they live.
    pub via: Placed<String>,
    /// When they are answered for.
    pub answer: Placed<Answer>,
}

/// What a `[[neighbor]]` is on this machine, for one of its prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The addresses.
    pub addresses: IpNet,
    /// The interface where the questions come in: its index.
    pub interface: u32,
    /// Its name.
    pub interface_name: String,
    /// The interface where the hosts live: its index.
    pub via: u32,
    /// Our address where the questions come in: what an IPv6 answer comes from.
    pub ours: IpAddr,
    /// Our address where the hosts live, as far as there is one; else the unspecified one.
    pub prober: IpAddr,
}

impl Neighbor {
    fn label(&self) -> String {
        format!("neighbor \"{}\": ", self.name.value)
    }

    /// Addresses of which one has to know by which interface routing leads to them: one of each prefix.
    pub(super) fn samples(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(|prefix| sample(prefix.value))
    }
}

/// An address of the prefix that is likely to be a host's: not the first (its network, RFC 4291 section 2.6.1), not IPv4's
/// last (its broadcast address).
fn sample(prefix: IpNet) -> IpAddr {
    match prefix {
        IpNet::V4(v4) if v4.prefix_len() < 31 => (u32::from(v4.broadcast()) - 1).to_be_bytes().into(),
        IpNet::V4(v4) => v4.broadcast().into(),
        IpNet::V6(v6) => v6.broadcast().into(),
    }
}

/// Checks one by itself; none if a part that it cannot be without is missing.
pub(super) fn read(typed: &FileNeighbor, report: &mut Report) -> Option<Neighbor> {
    let label = typed.label();
    if let Some(name) = &typed.name {
        validate::check_name(name, report);
    }
    let addresses = addresses(typed, &label, report);
    let interface = interface_name(typed.interface.as_ref(), "interface", &label, report);
    let via = interface_name(typed.via.as_ref(), "via", &label, report);
    let answer = match &typed.answer {
        Some(text) => validate::parse_one(text, "answer", &label, report)?,
        None => Placed { value: Answer::default(), place: typed.place },
    };
    let (interface, via) = (interface?, via?);
    if interface.value == via.value {
        let what =
            format!("{label}via \"{}\" is the interface where it is asked: hosts there answer themselves", via.value);
        report.error(via.place, what, "the interface behind which the addresses live");
        return None;
    }
    if addresses.is_empty() {
        return None;
    }
    let name = typed.name.clone().unwrap_or_else(|| {
        let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '.' };
        Placed { value: format!("neighbor-{}", via.value.chars().map(allowed).collect::<String>()), place: typed.place }
    });
    Some(Neighbor { name, interface, addresses, via, answer })
}

fn interface_name(
    typed: Option<&Placed<String>>,
    key: &str,
    label: &str,
    report: &mut Report,
) -> Option<Placed<String>> {
    let name = typed?;
    if !syntax::is_interface_name(name) {
        let what = format!("{label}{key} \"{}\" is not the name of an interface", name.value);
        report.error(name.place, what, "a name as `ip link` shows it, such as eth0");
        return None;
    }
    Some(name.clone())
}

const EXAMPLE: &str = "addresses that live behind this machine, such as 203.0.113.9 or 2001:db8:0:0:8::/78";

fn addresses(typed: &FileNeighbor, label: &str, report: &mut Report) -> Vec<Placed<IpNet>> {
    let Some(list) = &typed.addresses else { return Vec::new() };
    if list.value.is_empty() {
        report.error(list.place, format!("{label}`for` is an empty list"), "at least one address or prefix");
    }
    let mut prefixes: Vec<Placed<IpNet>> = Vec::new();
    for text in &list.value {
        let parsed = syntax::allow_prefix(text).and_then(|(prefix, host_bits)| {
            if prefix.prefix_len() == 0 {
                let what = "every address there is".to_owned();
                return Err(SyntaxError { what, hint: EXAMPLE.to_owned() });
            }
            syntax::unicast(prefix.addr(), EXAMPLE).map(|_| (prefix, host_bits))
        });
        match parsed {
            Ok((prefix, host_bits)) => {
                if host_bits {
                    let what = format!("{label}for \"{}\" has bits set beyond its prefix length", text.value);
                    report.warning(text.place, what, format!("\"{prefix}\", which it is taken as"));
                }
                let prefix = Placed { value: prefix, place: text.place };
                if prefixes.contains(&prefix) {
                    report.warning(text.place, format!("{label}for \"{}\" is there twice", text.value), "name it once");
                } else {
                    prefixes.push(prefix);
                }
            }
            Err(error) => {
                report.error(text.place, format!("{label}for \"{}\": {}", text.value, error.what), error.hint);
            }
        }
    }
    prefixes
}

/// Reports what two of them would answer for on one interface.
pub(super) fn check_conflicts(neighbors: &[Neighbor], report: &mut Report) {
    let mut first: HashMap<_, (&Neighbor, &Placed<IpNet>)> = HashMap::new();
    for neighbor in neighbors {
        for prefix in &neighbor.addresses {
            match first.entry((prefix.value, neighbor.interface.value.as_str())) {
                Entry::Vacant(entry) => {
                    entry.insert((neighbor, prefix));
                }
                Entry::Occupied(entry) => {
                    let (other, place) = *entry.get();
                    let what = format!(
                        "{}for \"{}\" is answered for on {} by neighbor \"{}\"{} already",
                        neighbor.label(),
                        prefix.value,
                        neighbor.interface.value,
                        other.name.value,
                        on_line(place.place)
                    );
                    report.error(
                        prefix.place,
                        what,
                        "another prefix for one of the two; the longer of two prefixes counts",
                    );
                }
            }
        }
    }
}

/// What each of them is on this machine; what does not fit the machine is reported, and missing.
pub(super) fn resolve(neighbors: &[Neighbor], machine: &Machine, report: &mut Report) -> Vec<Vec<Asked>> {
    neighbors.iter().map(|neighbor| resolve_one(neighbor, machine, report)).collect()
}

fn resolve_one(neighbor: &Neighbor, machine: &Machine, report: &mut Report) -> Vec<Asked> {
    let interface = interfaces::named(&neighbor.interface, "interface", &neighbor.label(), machine, report);
    let via = interfaces::named(&neighbor.via, "via", &neighbor.label(), machine, report);
    let (Some(interface), Some(via)) = (interface, via) else { return Vec::new() };
    let label = neighbor.label();
    if !interface.has_link_header {
        let what =
            format!("{label}interface \"{}\" has no link header: nobody asks for addresses there", interface.name);
        report.error(neighbor.interface.place, what, "the Ethernet interface where the addresses are asked for");
        return Vec::new();
    }
    if neighbor.answer.value == Answer::WhileAlive && !via.has_link_header {
        let what = format!(
            "{label}answer \"while-alive\" asks the hosts behind {}, which has no link header and so no neighbours to ask",
            via.name
        );
        report.error(neighbor.answer.place, what, "answer = \"always\"");
        return Vec::new();
    }
    check_forwarding(neighbor, machine, report);
    let prefixes = neighbor.addresses.iter();
    prefixes.filter_map(|prefix| asked(neighbor, prefix, (interface, via), machine, report)).collect()
}

/// Reports where the kernel would not forward what the answers attract.
fn check_forwarding(neighbor: &Neighbor, machine: &Machine, report: &mut Report) {
    let (v4, v6) = (
        neighbor.addresses.iter().any(|prefix| prefix.addr().is_ipv4()),
        neighbor.addresses.iter().any(|prefix| prefix.addr().is_ipv6()),
    );
    let mut needed = Vec::new();
    if v4 {
        for name in [&neighbor.interface.value, &neighbor.via.value] {
            needed.push(format!("net.ipv4.conf.{name}.forwarding"));
        }
    }
    if v6 {
        needed.push("net.ipv6.conf.all.forwarding".to_owned());
    }
    for name in needed.into_iter().filter(|name| machine.forwarding_off.contains(name)) {
        let what = format!("{}{name} is 0: the kernel will not forward what the answers attract", neighbor.label());
        let family = if name.starts_with("net.ipv4") { "net.ipv4.ip_forward" } else { "net.ipv6.conf.all.forwarding" };
        report.warning(neighbor.interface.place, what, format!("`sysctl {family}=1`"));
    }
}

fn asked(
    neighbor: &Neighbor,
    prefix: &Placed<IpNet>,
    (interface, via): (&Interface, &Interface),
    machine: &Machine,
    report: &mut Report,
) -> Option<Asked> {
    let what = format!("{}for \"{}\"", neighbor.label(), prefix.value);
    let whole = prefix.prefix_len() == prefix.max_prefix_len();
    for own in machine.addresses().into_iter().filter(|own| prefix.contains(own)) {
        if whole {
            let what = format!("{what} is an address of this machine, which answers for it itself");
            report.error(prefix.place, what, EXAMPLE);
            return None;
        }
        let is_whole = interface.addresses.iter().any(|net| prefix.contains(net));
        if is_whole {
            let what = format!("{what} is all of the network of {}, with {own} of this machine", interface.name);
            report.error(prefix.place, what, "only the part of it that lives behind this machine");
            return None;
        }
    }
    let same_family = |net: &&IpNet| net.addr().is_ipv4() == prefix.addr().is_ipv4();
    if !interface.addresses.iter().filter(same_family).any(|net| net.contains(&prefix.value)) {
        let what =
            format!("{what} is in no network that {} has an address of: nobody may ask for it there", interface.name);
        report.warning(prefix.place, what, format!("`ip address show dev {}` shows its networks", interface.name));
    }
    check_way(&what, prefix, via, machine, report);
    let Some(ours) = own_address(interface, prefix.value) else {
        let what = format!("{what}: {} has no IPv6 address to answer from", interface.name);
        report.missing(
            machine,
            prefix.place,
            what,
            format!("`sysctl net.ipv6.conf.{}.disable_ipv6=0`", interface.name),
        );
        return None;
    };
    if interface.index.max(via.index) >= RangeKey::<u32>::INTERFACES {
        let what = format!("{what}: {} or {} has too high an index", interface.name, via.name);
        report.error(prefix.place, what, "interfaces with an index below 16777216");
        return None;
    }
    let unspecified = if prefix.addr().is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    Some(Asked {
        addresses: prefix.value,
        interface: interface.index,
        interface_name: interface.name.clone(),
        via: via.index,
        ours,
        prober: own_address(via, prefix.value).unwrap_or(unspecified),
    })
}

/// Reports a prefix that routing does not lead to by `via`.
fn check_way(what: &str, prefix: &Placed<IpNet>, via: &Interface, machine: &Machine, report: &mut Report) {
    let way = machine.ways.get(&sample(prefix.value));
    if way == Some(&via.index) {
        return;
    }
    let leads = way.and_then(|index| machine.interfaces.iter().find(|one| one.index == *index)).map_or_else(
        || "there is no route".to_owned(),
        |other| format!("the route leads out by {}, not by {}", other.name, via.name),
    );
    let what = format!("{what}: {leads}, and nothing is answered before it leads by {}", via.name);
    report.warning(prefix.place, what, format!("`ip route add {} dev {}`", prefix.value, via.name));
}

/// The address of ours on an interface that goes with a prefix: for IPv6 the link-local one, if there is one; for IPv4
/// any, and the unspecified one if there is none, for nothing but probes comes from it.
fn own_address(interface: &Interface, prefix: IpNet) -> Option<IpAddr> {
    let own = || interface.addresses.iter().map(IpNet::addr);
    match prefix {
        IpNet::V4(_) => own().find(IpAddr::is_ipv4).or(Some([0; 4].into())),
        IpNet::V6(_) => {
            let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            own().find(link_local).or_else(|| own().find(IpAddr::is_ipv6))
        }
    }
}
