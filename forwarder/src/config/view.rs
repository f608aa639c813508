//! The rules of a configuration as the checks between rules see them, be they complete or not.

use std::{collections::HashSet, net::IpAddr};

use super::{
    diagnostics::Position,
    report::{Report, on_line},
    rule::{Forward, Listen, ListenHost, Placed, Ports, Protocol, Source, Target, protocol_numbers},
    validate::Part,
};
use crate::machine::Machine;

/// One rule; what was wrong by itself is missing.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) name: Option<&'a Placed<String>>,
    pub(super) place: Option<Position>,
    pub(super) listen: &'a [Placed<Listen>],
    pub(super) protocol: Option<&'a [Placed<Protocol>]>,
    pub(super) to: Option<&'a Placed<Target>>,
    pub(super) source: Option<&'a Placed<Source>>,
    pub(super) stateless: Option<Placed<bool>>,
}

impl<'a> From<&'a Part> for View<'a> {
    fn from(part: &'a Part) -> Self {
        Self {
            name: part.name.as_ref(),
            place: part.place,
            listen: &part.listen,
            protocol: part.protocol.as_deref(),
            to: part.to.as_ref(),
            source: part.source.as_ref(),
            stateless: part.stateless,
        }
    }
}

impl<'a> From<&'a Forward> for View<'a> {
    fn from(forward: &'a Forward) -> Self {
        Self {
            name: Some(&forward.name),
            place: forward.name.place,
            listen: &forward.listen,
            protocol: forward.protocol.as_deref(),
            to: Some(&forward.to),
            source: Some(&forward.source),
            stateless: forward.stateless,
        }
    }
}

impl View<'_> {
    /// "rule "web": ", to begin what is said about it.
    pub(super) fn label(&self) -> String {
        self.name.map_or_else(String::new, |name| format!("rule \"{}\": ", name.value))
    }

    /// "rule "web" on line 3", to name it in what is said about another.
    pub(super) fn reference(&self, place: Option<Position>) -> String {
        let name = self.name.map_or_else(|| "another rule".to_owned(), |name| format!("rule \"{}\"", name.value));
        format!("{name}{}", on_line(place.or(self.place)))
    }

    /// The protocol numbers that a listen of this rule takes; `None` stands for every protocol.
    pub(super) fn protocols(&self, ports: Option<Ports>, v6: bool) -> Vec<Option<u8>> {
        let Some(named) = self.protocol else {
            return match ports {
                Some(_) => vec![Some(protocol_numbers::TCP), Some(protocol_numbers::UDP)],
                None => vec![None],
            };
        };
        let mut numbers: Vec<Option<u8>> = named.iter().map(|protocol| Some(protocol.number(v6))).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }
}

/// A listen of a rule, its interface resolved to addresses where there is a machine.
#[derive(Clone, Debug)]
pub(super) struct Expanded<'a> {
    /// Index of its rule.
    pub(super) rule: usize,
    /// As written.
    pub(super) listen: &'a Placed<Listen>,
    /// An address, or an interface where there is no machine to ask.
    pub(super) host: ListenHost,
}

impl Expanded<'_> {
    /// As written, and what that is here.
    pub(super) fn describe(&self) -> String {
        let written = &self.listen.value;
        if self.host == written.host {
            return format!("\"{written}\"");
        }
        let here = Listen { host: self.host.clone(), ports: written.ports };
        format!("\"{written}\" (here {here})")
    }
}

/// Whether packets to or from this address are forwarded at all.
pub(crate) fn forwardable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unspecified() && !v6.is_unicast_link_local(),
    }
}

/// Resolves interface names; without a machine they stay.
pub(super) fn expand<'a>(rules: &[View<'a>], machine: Option<&Machine>, report: &mut Report) -> Vec<Expanded<'a>> {
    let mut expanded = Vec::with_capacity(rules.len());
    for (rule, view) in rules.iter().enumerate() {
        // Two names may mean one address; within a rule that is no conflict.
        let mut seen = HashSet::new();
        for listen in view.listen {
            let hosts = match (&listen.host, machine) {
                (ListenHost::Interface(name), Some(machine)) => addresses(view, listen, name, machine, report),
                (host, _) => vec![host.clone()],
            };
            for host in hosts {
                if view.listen.len() == 1 || seen.insert((host.clone(), listen.ports)) {
                    expanded.push(Expanded { rule, listen, host });
                }
            }
        }
    }
    expanded
}

fn addresses(
    view: &View<'_>,
    listen: &Placed<Listen>,
    name: &str,
    machine: &Machine,
    report: &mut Report,
) -> Vec<ListenHost> {
    let Some(interface) = machine.interface(name) else {
        let names = machine.interfaces.iter().map(|interface| interface.name.as_str());
        let hint = super::nearest::near(name, names.clone())
            .map_or_else(|| format!("one of {}", names.collect::<Vec<_>>().join(", ")), |near| format!("\"{near}\""));
        let what = format!("{}listen \"{}\": there is no interface \"{name}\"", view.label(), listen.value);
        report.missing(machine, listen.place, what, hint);
        return Vec::new();
    };
    let v6 = view.to.map(|to| to.address.is_ipv6());
    let mut hosts: Vec<ListenHost> = Vec::new();
    for address in interface.addresses.iter().map(ipnet::IpNet::addr) {
        let host = ListenHost::Address(address);
        if v6.is_none_or(|v6| v6 == address.is_ipv6()) && forwardable(address) && !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    if hosts.is_empty() {
        let kind = match v6 {
            Some(true) => "IPv6 address that is forwarded",
            Some(false) => "IPv4 address that is forwarded",
            None => "address that is forwarded",
        };
        let what = format!("{}listen \"{}\": interface {name} has no {kind}", view.label(), listen.value);
        report.missing(machine, listen.place, what, format!("`ip address show dev {name}` shows what it has"));
    }
    hosts
}
