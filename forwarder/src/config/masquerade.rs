//! `[[masquerade]]`: hosts behind this machine go out with an address of it.

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
    file::FileMasquerade,
    interfaces, nearest,
    report::{Report, on_line},
    rule::Placed,
    syntax::{self, SyntaxError},
    validate, view,
};
use crate::machine::{Interface, Machine};

/// Who may send to a host behind us at the port that it has at our address (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Filtering {
    /// Everybody, as long as the port is in use.
    Endpoint,
    /// The addresses that the host sends to from that port.
    ///
    /// The default: RFC 4787 REQ-8 recommends it where strangers are to be kept out, and the firewall of this machine
    /// does not see these packets; peers that both send, as all hole punching does, get through all the same.
    #[default]
    Address,
    /// The addresses and ports that the host sends to from that port, as with netfilter.
    AddressAndPort,
}

impl Filtering {
    /// The words it is written as.
    pub const WORDS: &'static [&'static str] = &["endpoint", "address", "address+port"];
}

impl FromStr for Filtering {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        match text {
            "endpoint" => Ok(Self::Endpoint),
            "address" => Ok(Self::Address),
            "address+port" => Ok(Self::AddressAndPort),
            _ => {
                let hint = nearest::near(text, Self::WORDS.iter().copied())
                    .map_or_else(|| format!("one of {}", Self::WORDS.join(", ")), |near| format!("\"{near}\""));
                Err(SyntaxError { what: "not a kind of filtering".to_owned(), hint })
            }
        }
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Endpoint => "endpoint",
            Self::Address => "address",
            Self::AddressAndPort => "address+port",
        })
    }
}
syntax::stored_as_text!(Filtering);

/// A `[[masquerade]]`, every value of which is valid by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masquerade {
    /// Unique among all rules; the name of its counters. Made from `out` or `address` where it was not given.
    pub name: Placed<String>,
    /// The hosts, host bits cleared; never empty.
    pub from: Vec<Placed<IpNet>>,
    /// The interface that they go out by; none is the one that has `address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<Placed<String>>,
    /// The addresses they go out with, at most one of each family; empty for those that `out` has now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub address: Vec<Placed<IpAddr>>,
    /// What is let in.
    pub filtering: Placed<Filtering>,
}

/// What a `[[masquerade]]` is on this machine, for one of its prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayOut {
    /// The hosts.
    pub from: IpNet,
    /// The interface out: its index.
    pub interface: u32,
    /// Its name.
    pub interface_name: String,
    /// The address that they have outside.
    pub address: IpAddr,
}

impl Masquerade {
    fn label(&self) -> String {
        format!("masquerade \"{}\": ", self.name.value)
    }
}

/// Checks one by itself; none if a part that it cannot be without is missing.
pub(super) fn read(typed: &FileMasquerade, report: &mut Report) -> Option<Masquerade> {
    let label = typed.label();
    if let Some(name) = &typed.name {
        validate::check_name(name, report);
    }
    let from = typed.from.as_ref().map(|list| prefixes(list, &label, report)).unwrap_or_default();
    let out = typed.out.clone().filter(|out| interfaces::is_name(out, "out", &label, report));
    let address = typed
        .address
        .as_ref()
        .map(|list| {
            let hint = "an address of this machine, such as 203.0.113.7";
            interfaces::one_of_each_family(list, "address", &label, hint, report)
        })
        .unwrap_or_default();
    let filtering = match &typed.filtering {
        Some(text) => validate::parse_one(text, "filtering", &label, report)?,
        None => Placed { value: Filtering::default(), place: typed.place },
    };
    for prefix in &from {
        let same_family = |address: &&Placed<IpAddr>| address.is_ipv4() == prefix.addr().is_ipv4();
        if !address.is_empty() && !address.iter().any(|address| same_family(&address)) {
            let family = if prefix.addr().is_ipv4() { "IPv4" } else { "IPv6" };
            let what = format!("{label}from \"{}\" is {family} and no `address` is", prefix.value);
            report.error(prefix.place, what, format!("an {family} address of this machine too"));
        }
    }
    if from.is_empty() || (out.is_none() && address.is_empty()) {
        return None;
    }
    let name = typed.name.clone().unwrap_or_else(|| {
        let way = out.as_ref().map(|out| out.value.clone());
        let way = way.or_else(|| address.first().map(|address| address.value.to_string())).unwrap_or_default();
        Placed { value: interfaces::default_name("masquerade", &way), place: typed.place }
    });
    Some(Masquerade { name, from, out, address, filtering })
}

fn prefixes(list: &Placed<Vec<Placed<String>>>, label: &str, report: &mut Report) -> Vec<Placed<IpNet>> {
    let prefixes = interfaces::prefixes(list, "from", label, report);
    let (good, all): (Vec<_>, Vec<_>) = prefixes.into_iter().partition(|prefix| prefix.prefix_len() > 0);
    for prefix in all {
        let what = format!("{label}from \"{}\" is everybody, those outside too", prefix.value);
        report.error(prefix.place, what, "the prefix of the network behind this machine, such as 10.8.0.0/24");
    }
    good
}

/// Reports hosts that two of them send out by the same way, as far as that can be said without the machine.
pub(super) fn check_conflicts(masquerades: &[Masquerade], report: &mut Report) {
    let mut first: HashMap<_, (&Masquerade, &Placed<IpNet>)> = HashMap::new();
    for masquerade in masquerades {
        for from in &masquerade.from {
            let out = masquerade.out.as_ref().map(|out| out.value.as_str());
            let same_family = |address: &&Placed<IpAddr>| address.is_ipv4() == from.addr().is_ipv4();
            let address = masquerade.address.iter().find(same_family).map(|address| address.value);
            let key = (from.value, out, if out.is_some() { None } else { address });
            match first.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert((masquerade, from));
                }
                Entry::Occupied(entry) => {
                    let (other, place) = *entry.get();
                    taken(masquerade, from, other, place, report);
                }
            }
        }
    }
}

fn taken(
    masquerade: &Masquerade,
    from: &Placed<IpNet>,
    other: &Masquerade,
    place: &Placed<IpNet>,
    report: &mut Report,
) {
    let what = format!(
        "{}from \"{}\" goes out the same way by masquerade \"{}\"{}",
        masquerade.label(),
        from.value,
        other.name.value,
        on_line(place.place)
    );
    report.error(from.place, what, "another prefix, or another way out, for one of the two");
}

/// What each of them is on this machine; what does not fit the machine is reported, and missing.
pub(super) fn resolve(masquerades: &[Masquerade], machine: &Machine, report: &mut Report) -> Vec<Vec<WayOut>> {
    let mut taken_by: HashMap<(IpNet, u32), (&Masquerade, &Placed<IpNet>)> = HashMap::new();
    let mut all = Vec::with_capacity(masquerades.len());
    for masquerade in masquerades {
        let mut ways = Vec::new();
        for from in &masquerade.from {
            let Some(way) = way_out(masquerade, from, machine, report) else { continue };
            if let Some((other, place)) = taken_by.get(&(way.from, way.interface)) {
                // Those written alike are found without the machine.
                if other.out != masquerade.out || (other.out.is_none() && other.address != masquerade.address) {
                    taken(masquerade, from, other, place, report);
                }
                continue;
            }
            taken_by.insert((way.from, way.interface), (masquerade, from));
            ways.push(way);
        }
        all.push(ways);
    }
    all
}

fn way_out(masquerade: &Masquerade, from: &Placed<IpNet>, machine: &Machine, report: &mut Report) -> Option<WayOut> {
    let v4 = from.addr().is_ipv4();
    let given = masquerade.address.iter().find(|address| address.is_ipv4() == v4);
    if let Some(address) = given
        && machine.owner(address.value).is_none()
    {
        let what = format!("{}address \"{}\" is not an address of this machine", masquerade.label(), address.value);
        report.missing(machine, address.place, what, "one that `ip address` shows, or the interface: out = \"eth0\"");
        return None;
    }
    let interface = match (&masquerade.out, given) {
        (Some(name), _) => interfaces::named(name, "out", &masquerade.label(), machine, report)?,
        (None, Some(address)) => owner(masquerade, address, machine, report)?,
        (None, None) => return None,
    };
    let current = || interface.addresses.iter().map(IpNet::addr).find(|a| a.is_ipv4() == v4 && view::forwardable(*a));
    let Some(address) = given.map(|address| address.value).or_else(current) else {
        let family = if v4 { "IPv4" } else { "IPv6" };
        let what = format!(
            "{}interface {} has no {family} address for \"{}\" to go out with",
            masquerade.label(),
            interface.name,
            from.value
        );
        let place = masquerade.out.as_ref().map_or(from.place, |out| out.place);
        report.missing(machine, place, what, format!("`ip address show dev {}` shows what it has", interface.name));
        return None;
    };
    if interface.index >= RangeKey::<u32>::INTERFACES {
        let what = format!("{}interface {} has too high an index", masquerade.label(), interface.name);
        report.error(from.place, what, "an interface with an index below 16777216");
        return None;
    }
    Some(WayOut { from: from.value, interface: interface.index, interface_name: interface.name.clone(), address })
}

/// The interface that has the address, unless nothing goes out by it.
fn owner<'m>(
    masquerade: &Masquerade,
    address: &Placed<IpAddr>,
    machine: &'m Machine,
    report: &mut Report,
) -> Option<&'m Interface> {
    let owner = machine.owner(address.value)?;
    if owner.name == "lo" {
        let what = format!(
            "{}address \"{}\" is on lo, which says nothing about the way out",
            masquerade.label(),
            address.value
        );
        report.error(address.place, what, "the interface too: out = \"eth0\"");
        return None;
    }
    Some(owner)
}
