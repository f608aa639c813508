//! One prefix onto another: what of it concerns this machine, and whether it is unambiguous.

use std::net::IpAddr;

use forwarder_common::{
    abi::Rule,
    address::{V4, V6},
    checksum::Delta,
    prefix,
};
use ipnet::IpNet;

use super::{
    family::Family,
    report::Report,
    rule::{Listen, ListenHost, Target},
    view::{Expanded, View},
};
use crate::machine::Machine;

/// A listen and where it leads.
struct Mapping<'a> {
    rule: usize,
    listen: &'a Expanded<'a>,
    to: IpNet,
}

fn mappings<'a>(rules: &[View<'_>], listens: &'a [Expanded<'_>]) -> Vec<Mapping<'a>> {
    let mapping = |listen: &'a Expanded<'_>| {
        let to = rules.get(listen.rule)?.to?.prefix().filter(|_| matches!(listen.host, ListenHost::Prefix(_)))?;
        Some(Mapping { rule: listen.rule, listen, to })
    };
    listens.iter().filter_map(mapping).collect()
}

/// Reports inner prefixes that more than one listen leads to: which address would their hosts go out with?
pub(super) fn check(rules: &[View<'_>], listens: &[Expanded<'_>], report: &mut Report) {
    let mappings = mappings(rules, listens);
    for (index, mapping) in mappings.iter().enumerate() {
        let overlaps = |other: &&Mapping<'_>| other.to.contains(&mapping.to) || mapping.to.contains(&other.to);
        let Some(other) = mappings.iter().take(index).find(overlaps) else { continue };
        let (Some(rule), Some(other_rule)) = (rules.get(mapping.rule), rules.get(other.rule)) else { continue };
        let whose = if mapping.rule == other.rule {
            "of the same rule".to_owned()
        } else {
            format!("of {}", other_rule.reference(other.listen.listen.place))
        };
        let what = format!(
            "{}hosts of {} would go out with addresses of listen {} and of listen {} {whose}",
            rule.label(),
            if mapping.to.prefix_len() >= other.to.prefix_len() { mapping.to } else { other.to },
            mapping.listen.describe(),
            other.listen.describe(),
        );
        report.error(mapping.listen.listen.place, what, "one listen for each inner prefix");
    }
}

/// The one-to-one rule, if any, that has this backend among its inner hosts; by name, with its inner prefix.
pub(super) fn around(rules: &[View<'_>], listens: &[Expanded<'_>]) -> impl Fn(IpAddr) -> Option<(IpNet, String)> {
    let inner: Vec<(IpNet, String)> = mappings(rules, listens)
        .into_iter()
        .map(|mapping| {
            let name = rules.get(mapping.rule).and_then(|rule| rule.name).map_or("", |name| name.value.as_str());
            (mapping.to, name.to_owned())
        })
        .collect();
    move |backend| inner.iter().find(|(prefix, _)| prefix.contains(&backend)).cloned()
}

/// The addresses of this machine that the outer prefix takes: those that are not mapped onto an address of this machine.
pub(super) fn own_addresses(listen: IpNet, to: &Target, machine: &Machine) -> Vec<IpAddr> {
    let own: Vec<IpAddr> =
        machine.interfaces.iter().flat_map(|interface| interface.addresses.iter().map(IpNet::addr)).collect();
    let taken = |address: &&IpAddr| {
        listen.contains(*address)
            && to.prefix().and_then(|to| inside(listen, to, **address)).is_some_and(|inner| !own.contains(&inner))
    };
    own.iter().filter(taken).copied().collect()
}

/// The inner counterpart of an address.
fn inside(listen: IpNet, to: IpNet, address: IpAddr) -> Option<IpAddr> {
    fn of<A: Family>(listen: IpNet, to: IpNet, address: IpAddr) -> Option<IpAddr> {
        let (outer, inner) = (A::of(listen.addr())?, A::of(to.addr())?);
        let rule = Rule {
            listen: outer,
            to: inner,
            mask: A::of(listen.netmask())?,
            to_delta: Delta::address(outer, inner).0,
            ..Rule::default()
        };
        prefix::inside(&rule, A::of(address)?).map(A::ip)
    }
    of::<V4>(listen, to, address).or_else(|| of::<V6>(listen, to, address))
}

/// What a listen says of itself here, for messages.
pub(super) fn is_on_link(listen: &Listen, machine: &Machine) -> Option<String> {
    let ListenHost::Prefix(prefix) = &listen.host else { return None };
    let on_link = |net: &IpNet| net.prefix_len() < net.max_prefix_len() && net.contains(prefix);
    machine
        .interfaces
        .iter()
        .find(|interface| interface.addresses.iter().any(on_link))
        .map(|interface| interface.name.clone())
}
