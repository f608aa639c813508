//! `[[steer]]`: packets with some source address leave by the line that the address belongs to.

mod loops;

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    Config,
    file::FileSteer,
    interfaces::{self, default_name},
    report::{Report, on_line},
    rule::{Placed, Ports, Protocol, protocol_numbers},
    uplink::{self, Uplink},
    validate,
};
use crate::machine::{Interface, Machine};

/// A `[[steer]]`, every value of which is valid by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steer {
    /// Unique among all rules; the name of its counters. Made from `interface` where it was not given.
    pub name: Placed<String>,
    /// The sources, host bits cleared; never empty.
    pub from: Vec<Placed<IpNet>>,
    /// Only packets of these protocols; none for every protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Vec<Placed<Protocol>>>,
    /// Only packets with these source ports; none for every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Placed<Ports>>,
    /// The line: its interface, given here or by the uplink.
    pub interface: Placed<String>,
    /// The router at its other end, at most one of each family; empty where the line has but one other end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateway: Vec<Placed<IpAddr>>,
    /// The uplink that is the line; none where interface and gateway were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Placed<String>>,
    /// The uplinks that take its place while it is down: the first that works.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallback: Vec<Placed<String>>,
}

/// What a `[[steer]]` is on this machine, for one of its prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The sources.
    pub from: IpNet,
    /// The interface out: its index; 0 while the line is down, and those that would take its place.
    pub interface: u32,
    /// Its name.
    pub interface_name: String,
    /// The router; none where the destination itself is at the other end of the line.
    pub gateway: Option<IpAddr>,
    /// The uplink in use; none of a line without a name.
    pub uplink: Option<String>,
}

impl Steer {
    fn label(&self) -> String {
        format!("steer \"{}\": ", self.name.value)
    }

    /// Protocol and source port of each kind of packet it is for, host order; 0 for any.
    ///
    /// Ports without protocols are those of TCP and UDP, as in a `[[forward]]`.
    pub fn kinds(&self, v6: bool) -> Vec<(u8, u16)> {
        let numbers = |list: &Vec<Placed<Protocol>>| list.iter().map(|protocol| protocol.value.number(v6)).collect();
        let protocols: Vec<u8> = match (&self.protocol, &self.port) {
            (Some(list), _) => numbers(list),
            (None, Some(_)) => vec![protocol_numbers::TCP, protocol_numbers::UDP],
            (None, None) => vec![0],
        };
        let ports = self.port.map_or(Ports { first: 0, last: 0 }, |ports| ports.value);
        protocols.iter().flat_map(|protocol| (ports.first..=ports.last).map(|port| (*protocol, port))).collect()
    }
}

/// The most source ports that one `[[steer]]` can name: each is an entry of a table for each prefix and protocol.
const MOST_PORTS: u32 = 256;

/// Checks one by itself; none if a part that it cannot be without is missing.
pub(super) fn read(typed: &FileSteer, uplinks: &[Uplink], report: &mut Report) -> Option<Steer> {
    let label = typed.label();
    if let Some(name) = &typed.name {
        validate::check_name(name, report);
    }
    let from = typed.from.as_ref().map(|list| prefixes(list, &label, report)).unwrap_or_default();
    let protocol = typed.protocol.as_ref().map(|list| validate::parsed(Some(list), "protocol", &label, report));
    let port = typed.port.as_ref().and_then(|text| ports(text, &label, report));
    check_ports(protocol.as_deref(), port.as_ref(), &label, report);
    let mut interface = typed.interface.clone().filter(|name| interfaces::is_name(name, "interface", &label, report));
    let mut gateway = typed
        .gateway
        .as_ref()
        .map(|list| interfaces::one_of_each_family(list, "gateway", &label, "the router's address", report))
        .unwrap_or_default();
    if let Some(name) = &typed.uplink {
        let given = [
            ("interface", &typed.interface.as_ref().map(|one| one.place)),
            ("gateway", &typed.gateway.as_ref().map(|one| one.place)),
        ];
        for (key, place) in given.into_iter().filter_map(|(key, place)| Some((key, (*place)?))) {
            let what = format!("{label}`{key}` beside `uplink`, which has one");
            report.error(place, what, "one of the two");
        }
        let uplink = uplink::named(name, "uplink", &label, uplinks, report);
        interface = uplink.map(|uplink| uplink.interface.clone());
        gateway = uplink.map(|uplink| uplink.gateway.clone()).unwrap_or_default();
    }
    let fallback = typed.fallback.as_ref().map_or(&[][..], |list| &list.value);
    let fallback: Vec<_> =
        fallback.iter().filter(|name| is_other_line(name, typed, &label, uplinks, report)).cloned().collect();
    for prefix in &from {
        let family = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
        if !gateway.is_empty() && !gateway.iter().any(|gateway| gateway.is_ipv4() == prefix.addr().is_ipv4()) {
            let family = family(prefix.addr());
            let what = format!("{label}from \"{}\" is {family} and no `gateway` is", prefix.value);
            report.error(prefix.place, what, format!("the router's {family} address too: gateway = [\"…\", \"…\"]"));
        }
    }
    let interface = interface?;
    if from.is_empty() {
        return None;
    }
    let line = typed.uplink.as_ref().unwrap_or(&interface);
    let name = typed.name.clone().unwrap_or_else(|| Placed { value: default_name("steer", line), place: typed.place });
    let uplink = typed.uplink.clone();
    Some(Steer { name, from, protocol, port, interface, gateway, uplink, fallback })
}

/// Whether an uplink may take the place of a steer's line; reports it if not.
fn is_other_line(
    name: &Placed<String>,
    typed: &FileSteer,
    label: &str,
    uplinks: &[Uplink],
    report: &mut Report,
) -> bool {
    let Some(line) = &typed.uplink else {
        let what = format!("{label}`fallback` without `uplink`: nobody would know when the line is down");
        report.error(name.place, what, "an [[uplink]] for the line, and its name here: uplink = \"…\"");
        return false;
    };
    if line.value == name.value {
        let what = format!("{label}fallback \"{}\" is the line itself", name.value);
        report.error(name.place, what, "another uplink");
        return false;
    }
    let Some(fallback) = uplink::named(name, "fallback", label, uplinks, report) else { return false };
    let same = |other: &&Uplink| {
        other.name.value == line.value && other.interface == fallback.interface && other.gateway == fallback.gateway
    };
    if uplinks.iter().any(|other| same(&other)) {
        let what = format!("{label}fallback \"{}\" is the same line as \"{}\"", name.value, line.value);
        report.error(name.place, what, "an uplink by another interface or gateway");
        return false;
    }
    true
}

fn prefixes(list: &Placed<Vec<Placed<String>>>, label: &str, report: &mut Report) -> Vec<Placed<IpNet>> {
    let prefixes = interfaces::prefixes(list, "from", label, report);
    let (good, all): (Vec<_>, Vec<_>) = prefixes.into_iter().partition(|prefix| prefix.prefix_len() > 0);
    for prefix in all {
        let what = format!("{label}from \"{}\" is everybody: that is what the default route is for", prefix.value);
        report.error(prefix.place, what, "the addresses that belong to the line, such as 192.0.2.123");
    }
    good
}

fn ports(text: &Placed<String>, label: &str, report: &mut Report) -> Option<Placed<Ports>> {
    let ports: Placed<Ports> = validate::parse_one(text, "port", label, report)?;
    if ports.count() > MOST_PORTS {
        let what = format!("{label}port \"{}\" is more than {MOST_PORTS} ports", text.value);
        report.error(text.place, what, "fewer ports, or an address of their own for those services");
        return None;
    }
    Some(ports)
}

/// Reports ports of protocols that have none.
fn check_ports(
    protocols: Option<&[Placed<Protocol>]>,
    ports: Option<&Placed<Ports>>,
    label: &str,
    report: &mut Report,
) {
    let Some(ports) = ports else { return };
    for protocol in protocols.unwrap_or_default() {
        if !protocol.has_ports() {
            let what = format!("{label}port \"{}\" with protocol {}, which has no ports", ports.value, protocol.value);
            report.error(protocol.place, what, "a [[steer]] of its own for that protocol, without `port`");
        }
    }
}

/// Reports sources that two of them send by different lines, as far as that can be said without the machine.
pub(super) fn check_conflicts(steers: &[Steer], report: &mut Report) {
    let mut first: HashMap<(IpNet, u8, u16), (&Steer, &Placed<IpNet>)> = HashMap::new();
    for steer in steers {
        for from in &steer.from {
            for (protocol, port) in steer.kinds(!from.addr().is_ipv4()) {
                match first.entry((from.value, protocol, port)) {
                    Entry::Vacant(entry) => {
                        entry.insert((steer, from));
                    }
                    Entry::Occupied(entry) => {
                        let (other, place) = *entry.get();
                        let what = format!(
                            "{}from \"{}\" is steered by \"{}\" already{}",
                            steer.label(),
                            from.value,
                            other.name.value,
                            on_line(place.place)
                        );
                        report.error(from.place, what, "one line for each source, or a longer prefix for a part of it");
                        break;
                    }
                }
            }
        }
    }
}

/// What each of them is on this machine; what does not fit the machine is reported, and missing.
pub(super) fn resolve(config: &Config, machine: &Machine, report: &mut Report) -> Vec<Vec<Line>> {
    for uplink in &config.uplinks {
        usable(&Candidate::of(uplink), &format!("uplink \"{}\": ", uplink.name.value), machine, report);
        if uplink.asks() && !machine.followed {
            let what = format!(
                "uplink \"{}\" is probed by `forwarder run` only; without it, it counts as up",
                uplink.name.value
            );
            report.warning(uplink.name.place, what, "`forwarder run` in place of `forwarder load`");
        }
    }
    loops::check(config, machine, report);
    config.steers.iter().map(|steer| lines(steer, &config.uplinks, machine, report)).collect()
}

/// A line, or what takes its place.
struct Candidate<'a> {
    uplink: Option<&'a Uplink>,
    interface: &'a Placed<String>,
    gateway: &'a [Placed<IpAddr>],
}

impl<'a> Candidate<'a> {
    fn of(uplink: &'a Uplink) -> Self {
        Self { uplink: Some(uplink), interface: &uplink.interface, gateway: &uplink.gateway }
    }
}

fn candidates<'a>(steer: &'a Steer, uplinks: &'a [Uplink]) -> impl Iterator<Item = Candidate<'a>> {
    let by_name = |name: &Placed<String>| uplinks.iter().find(|uplink| uplink.name.value == name.value);
    let own = Candidate {
        uplink: steer.uplink.as_ref().and_then(by_name),
        interface: &steer.interface,
        gateway: &steer.gateway,
    };
    let others = steer.fallback.iter().filter_map(by_name).map(Candidate::of);
    std::iter::once(own).chain(others)
}

fn lines(steer: &Steer, uplinks: &[Uplink], machine: &Machine, report: &mut Report) -> Vec<Line> {
    let label = steer.label();
    // All of them are checked, also those that are not needed now.
    let usable: Vec<(Candidate<'_>, &Interface, Vec<IpAddr>)> = candidates(steer, uplinks)
        .filter_map(|candidate| {
            // What is wrong with an uplink has been said, once for all that use it.
            let report = if candidate.uplink.is_some() { &mut Report::default() } else { &mut *report };
            let (interface, gateways) = usable(&candidate, &label, machine, report)?;
            Some((candidate, interface, gateways))
        })
        .collect();
    if usable.is_empty() && !machine.followed {
        return Vec::new();
    }
    let works = |candidate: &Candidate<'_>| candidate.uplink.is_none_or(|uplink| uplink.trouble(machine).is_none());
    let line = |from: &Placed<IpNet>| {
        let v4 = from.addr().is_ipv4();
        let of_family = |gateways: &[IpAddr]| gateways.iter().find(|gateway| gateway.is_ipv4() == v4).copied();
        // A line without a router has no families; one with a router has those of its routers.
        let in_use = usable.iter().find(|(candidate, _, gateways)| {
            works(candidate) && (candidate.gateway.is_empty() || of_family(gateways).is_some())
        });
        let (interface, interface_name) = in_use
            .map_or((0, steer.interface.value.clone()), |(_, interface, _)| (interface.index, interface.name.clone()));
        let uplink = in_use.and_then(|(candidate, ..)| Some(candidate.uplink?.name.value.clone()));
        let gateway = in_use.and_then(|(.., gateways)| of_family(gateways));
        Line { from: from.value, interface, interface_name, gateway, uplink }
    };
    steer.from.iter().map(line).collect()
}

/// The interface of a line and those of its routers that can be reached by it, if it can be one on this machine; reports what
/// keeps it from that.
fn usable<'m>(
    candidate: &Candidate<'_>,
    label: &str,
    machine: &'m Machine,
    report: &mut Report,
) -> Option<(&'m Interface, Vec<IpAddr>)> {
    let interface = interfaces::named(candidate.interface, "interface", label, machine, report)?;
    if interface.name == "lo" {
        let what = format!("{label}interface \"lo\" leads nowhere");
        report.error(candidate.interface.place, what, "the interface of the line, such as ppp0");
        return None;
    }
    if candidate.gateway.is_empty() && interface.has_link_header {
        let what = format!("{label}{} has more than one other end, and `gateway` is missing", interface.name);
        let hint = "the router at the other end: gateway = \"192.0.2.1\"; `ip route` shows the one in use";
        report.error(candidate.interface.place, what, hint);
        return None;
    }
    let reached = |gateway: &&Placed<IpAddr>| check_gateway(label, gateway, interface, machine, &mut *report);
    let gateways = candidate.gateway.iter().filter(reached).map(|gateway| gateway.value).collect();
    Some((interface, gateways))
}

/// Whether a gateway is one: somebody else, on the line itself.
fn check_gateway(
    label: &str,
    gateway: &Placed<IpAddr>,
    interface: &Interface,
    machine: &Machine,
    report: &mut Report,
) -> bool {
    if let Some(owner) = machine.owner(gateway.value) {
        let what = format!("{label}gateway \"{}\" is this machine itself ({})", gateway.value, owner.name);
        report.error(gateway.place, what, "the router at the other end of the line");
        return false;
    }
    let link_local = matches!(gateway.value, IpAddr::V6(address) if address.is_unicast_link_local());
    let on_link = link_local
        || !interface.has_link_header
        || interface.addresses.iter().any(|network| network.contains(&gateway.value));
    if !on_link {
        let mut networks: Vec<String> = interface
            .addresses
            .iter()
            .filter(|network| network.addr().is_ipv4() == gateway.is_ipv4())
            .map(|network| network.trunc().to_string())
            .collect();
        networks.dedup();
        let what = format!("{label}gateway \"{}\" is not in a network of {}", gateway.value, interface.name);
        if networks.is_empty() {
            let hint = format!("`ip address show dev {}`: it has no address of that family", interface.name);
            report.missing(machine, gateway.place, what, hint);
        } else {
            report.error(gateway.place, what, format!("an address in {}", networks.join(" or ")));
        }
    }
    on_link
}
