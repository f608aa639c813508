//! What only the machine shows: addresses that are not ours, or that are and should not be; missing routes.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    one_to_one,
    report::Report,
    rule::{ListenHost, Placed, Source, Target, protocol_numbers},
    view::{self, Expanded, View},
};
use crate::machine::Machine;

/// Reports what does not fit the machine.
pub(super) fn check(rules: &[View<'_>], listens: &[Expanded<'_>], machine: &Machine, report: &mut Report) {
    let own: HashMap<IpAddr, &str> = machine
        .interfaces
        .iter()
        .flat_map(|interface| interface.addresses.iter().map(|net| (net.addr(), interface.name.as_str())))
        .collect();
    for rule in rules {
        if let Some(to) = rule.to {
            check_backend(rule, to, &own, report);
        }
        if let Some(source) = rule.source {
            check_source(rule, source, machine, &own, report);
        }
    }
    for listen in listens {
        match (rules.get(listen.rule), &listen.host) {
            (Some(rule), ListenHost::Address(address)) => {
                check_listen(rule, listen, *address, machine, own.contains_key(address), report);
            }
            (Some(rule), ListenHost::Prefix(prefix)) => check_prefix(rule, listen, *prefix, machine, report),
            _ => {}
        }
    }
}

fn check_backend(rule: &View<'_>, to: &Placed<Target>, own: &HashMap<IpAddr, &str>, report: &mut Report) {
    // Of a prefix, what leads to this machine stays here.
    if let Some(interface) = own.get(&to.address).filter(|_| to.prefix_len.is_none()) {
        let what = format!(
            "{}to \"{}\" is an address of this machine ({interface}), where forwarding cannot lead",
            rule.label(),
            to.value
        );
        report.error(to.place, what, "the address of another machine, or let the service here listen itself");
    }
}

fn check_source(
    rule: &View<'_>,
    source: &Placed<Source>,
    machine: &Machine,
    own: &HashMap<IpAddr, &str>,
    report: &mut Report,
) {
    let label = rule.label();
    match (source.value, rule.to) {
        (Source::Address(address), _) if !own.contains_key(&address) => {
            let mut ours: Vec<String> = own
                .keys()
                .filter(|other| other.is_ipv6() == address.is_ipv6() && view::forwardable(**other))
                .map(ToString::to_string)
                .collect();
            ours.sort_unstable();
            ours.truncate(4);
            let hint = if ours.is_empty() {
                "give this machine the address first (`ip address add`)".to_owned()
            } else {
                format!("one of this machine's, such as {}", ours.join(", "))
            };
            let what = format!("{label}source \"{address}\" is not an address of this machine");
            report.missing(machine, source.place, what, hint);
        }
        (Source::Masquerade, Some(to))
            if to.prefix_len.is_none()
                && !machine.sources.contains_key(&to.address)
                && !own.contains_key(&to.address) =>
        {
            let what =
                format!("{label}there is no route to \"{}\", so no address of ours to masquerade with", to.value);
            report.missing(
                machine,
                to.place,
                what,
                format!("`ip route get {}` shows what the kernel thinks", to.address),
            );
        }
        _ => {}
    }
}

fn check_prefix(rule: &View<'_>, listen: &Expanded<'_>, prefix: IpNet, machine: &Machine, report: &mut Report) {
    let place = listen.listen.place;
    let what = format!("{}listen {}", rule.label(), listen.describe());
    if let Some(to) = rule.to {
        for address in one_to_one::own_addresses(prefix, to, machine) {
            report.warning(
                place,
                format!("{what} takes every port of {address}, an address of this machine: SSH to it too"),
                "a rule of its own for what that address serves, or a prefix without it",
            );
        }
    }
    if let Some(interface) = one_to_one::is_on_link(listen.listen, machine) {
        report.warning(
            place,
            format!("{what} is in the network of {interface}: nobody there finds this machine by those addresses"),
            "route the prefix to this machine, or let it answer for them: `ip neigh add proxy ADDR dev IFACE`",
        );
    }
}

/// The port of SSH, which nobody wants to lose by accident.
const SSH: u16 = 22;

fn check_listen(
    rule: &View<'_>,
    listen: &Expanded<'_>,
    address: IpAddr,
    machine: &Machine,
    ours: bool,
    report: &mut Report,
) {
    let place = listen.listen.place;
    let what = format!("{}listen {}", rule.label(), listen.describe());
    if !ours {
        report.warning(
            place,
            format!("{what} is not an address of this machine: its packets have to be routed here"),
            "an address that `ip address` shows; behind a cloud's NAT that is the private one, or name the interface",
        );
        return;
    }
    let ports = listen.listen.ports;
    let protocols = rule.protocols(ports, address.is_ipv6());
    let tcp = protocols.contains(&None) || protocols.contains(&Some(protocol_numbers::TCP));
    let udp = protocols.contains(&None) || protocols.contains(&Some(protocol_numbers::UDP));
    let (low, high) = machine.local_port_range;
    match ports {
        None if tcp => report.warning(
            place,
            format!("{what} takes every port of an address of this machine: SSH to it and its own connections too"),
            "ports, or an address that this machine does not use itself",
        ),
        Some(ports) if ports.count() > 1 && tcp && (ports.first..=ports.last).contains(&SSH) => {
            report.warning(place, format!("{what} takes port 22 of this machine: SSH to it too"), "a range without 22");
        }
        Some(ports) if ports.count() > 1 && (tcp || udp) && ports.first <= high && low <= ports.last => report.warning(
            place,
            format!("{what} takes ports that this machine's own connections use ({low}-{high})"),
            "a range outside, or another `net.ipv4.ip_local_port_range`",
        ),
        _ => {}
    }
}
