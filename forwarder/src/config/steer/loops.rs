//! Lines that lead into each other or into themselves, as far as the configuration and the machine's addresses show it.

use std::net::IpAddr;

use super::Steer;
use crate::{
    config::{
        Config, Probe,
        report::{Report, on_line},
        rule::Placed,
    },
    machine::{Interface, Machine},
};
use ipnet::IpNet;

/// Reports them.
pub(super) fn check(config: &Config, machine: &Machine, report: &mut Report) {
    for uplink in &config.uplinks {
        for probe in &uplink.probe {
            let Probe::Ping(target) = probe.value else { continue };
            if let Some(owner) = machine.owner(target) {
                let what = format!(
                    "uplink \"{}\": probe \"ping {target}\" is this machine itself ({}), whatever becomes of the line",
                    uplink.name.value, owner.name
                );
                report.error(probe.place, what, "somebody beyond the line");
            }
        }
    }
    for steer in &config.steers {
        for from in &steer.from {
            // A gateway that is this machine itself has been said to be.
            if machine.owner(from.addr()).is_none() {
                router_as_source(config, steer, from, report);
            }
        }
        tunnel_in_itself(steer, machine, report);
    }
    crossed(config, machine, report);
}

/// What a router sends comes in by its line, and would go back to it.
fn router_as_source(config: &Config, steer: &Steer, from: &Placed<IpNet>, report: &mut Report) {
    if from.prefix_len() != from.max_prefix_len() {
        return;
    }
    let gateways = config.steers.iter().flat_map(|steer| &steer.gateway);
    let mut gateways = gateways.chain(config.uplinks.iter().flat_map(|uplink| &uplink.gateway));
    if let Some(gateway) = gateways.find(|gateway| gateway.value == from.addr()) {
        let what = format!(
            "{}from \"{}\" is the gateway{} itself: what it sends comes in by that line",
            steer.label(),
            from.addr(),
            on_line(gateway.place)
        );
        report.error(from.place, what, "addresses of this machine, or of hosts behind it");
    }
}

/// A tunnel's own packets have an address of the line that carries them: steered into the tunnel, they go round in it.
fn tunnel_in_itself(steer: &Steer, machine: &Machine, report: &mut Report) {
    let Some(tunnel) = machine.interface(&steer.interface.value).filter(|one| !one.has_link_header) else { return };
    if steer.protocol.is_some() || steer.port.is_some() {
        return;
    }
    let Some(kernel) = &machine.kernel else { return };
    let carries = |one: &&Interface| kernel.default_by.iter().any(|by| by.contains(&one.index));
    for carrier in
        machine.interfaces.iter().filter(|one| one.has_link_header && one.name != tunnel.name).filter(carries)
    {
        for from in &steer.from {
            let Some(address) = carrier.addresses.iter().find(|own| from.contains(&own.addr())) else { continue };
            let what = format!(
                "{}from \"{}\" has the address of {}, {}: if {} is a tunnel that is carried by it, the tunnel's own packets go \
                 into it again",
                steer.label(),
                from.value,
                carrier.name,
                address.addr(),
                tunnel.name
            );
            let hint = format!("the addresses that {} has, or `protocol` and `port` of what is meant", tunnel.name);
            report.warning(from.place, what, hint);
        }
    }
}

/// An own address of one line that leaves by another.
struct Stray<'a> {
    steer: &'a Steer,
    from: &'a Placed<IpNet>,
    address: IpAddr,
    interface: &'a Interface,
}

/// Two lines that are given each other's addresses: an answer leaves by the one, and what that answers to by the other.
fn crossed(config: &Config, machine: &Machine, report: &mut Report) {
    let strays: Vec<Stray<'_>> = machine
        .interfaces
        .iter()
        .filter(|interface| interface.name != "lo")
        .flat_map(|interface| interface.addresses.iter().map(move |own| (interface, own.addr())))
        .filter_map(|(interface, address)| {
            let (steer, from) = decides(config, address)?;
            (steer.interface.value != interface.name).then_some(Stray { steer, from, address, interface })
        })
        .collect();
    for (n, one) in strays.iter().enumerate() {
        let is_other = |other: &&Stray<'_>| {
            other.steer.interface.value == one.interface.name
                && one.steer.interface.value == other.interface.name
                && other.address.is_ipv4() == one.address.is_ipv4()
        };
        let Some(other) = strays.iter().take(n).find(is_other) else { continue };
        let what = format!(
            "{}{} of {} leaves by {}, and by \"{}\" {} of {} leaves by {}: each line has what belongs to the other",
            one.steer.label(),
            one.address,
            one.interface.name,
            one.steer.interface.value,
            other.steer.name.value,
            other.address,
            other.interface.name,
            other.steer.interface.value
        );
        report.error(one.from.place, what, "the lines of the two the other way round");
    }
}

/// The steer of a source, whatever it sends, and its prefix.
fn decides(config: &Config, address: IpAddr) -> Option<(&Steer, &Placed<IpNet>)> {
    let for_all = config.steers.iter().filter(|steer| steer.protocol.is_none() && steer.port.is_none());
    for_all
        .flat_map(|steer| steer.from.iter().map(move |from| (steer, from)))
        .filter(|(_, from)| from.contains(&address))
        .max_by_key(|(_, from)| from.prefix_len())
}
