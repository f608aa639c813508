//! Whether the parts of one rule agree: families, numbers of ports, protocols with and without ports.

use ipnet::IpNet;

use super::{
    report::Report,
    rule::{Listen, ListenHost, Placed, Ports, Protocol, Source, Target, protocol_numbers},
    syntax::protocol_name,
    validate::Part,
};

const fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

/// Whether a listen is IPv6; an interface is whatever the backend is.
fn is_v6(listen: &Listen) -> Option<bool> {
    match &listen.host {
        ListenHost::Address(address) => Some(address.is_ipv6()),
        ListenHost::Prefix(prefix) => Some(prefix.addr().is_ipv6()),
        ListenHost::Interface(_) => None,
    }
}

/// Reports what disagrees, for the parts that are there.
pub(super) fn check(part: &Part, label: &str, report: &mut Report) {
    for listen in &part.listen {
        if let Some(to) = &part.to {
            check_listen(listen, to, label, report);
        }
    }
    if let Some(listen) = part.listen.iter().find(|listen| listen.is_prefix()) {
        check_one_to_one(part, listen, label, report);
        return;
    }
    check_protocols(part, label, report);
    if let Some(to) = &part.to {
        check_source(part, to, label, report);
        check_allow(part, to, label, report);
    }
}

fn check_listen(listen: &Placed<Listen>, to: &Placed<Target>, label: &str, report: &mut Report) {
    let v6 = to.address.is_ipv6();
    if is_v6(listen).is_some_and(|listen| listen != v6) {
        let what =
            format!("{label}listen \"{}\" is {} and to \"{}\" is {}", listen.value, family(!v6), to.value, family(v6));
        report.error(listen.place, what, "a backend and a listen of the same family");
        return;
    }
    if listen.is_prefix() || to.prefix_len.is_some() {
        check_prefixes(listen, to, label, report);
        return;
    }
    let bare = Target { ports: None, ..to.value };
    match (listen.ports, to.ports) {
        (None, Some(ports)) => {
            let what =
                format!("{label}listen \"{}\" is a whole address and to \"{}\" names a port", listen.value, to.value);
            let with_port = Listen { ports: Some(ports), ..listen.value.clone() };
            report.error(listen.place, what, format!("listen = \"{with_port}\", or to = \"{bare}\""));
        }
        (Some(from), Some(ports)) if from.count() != ports.count() => {
            let what = format!(
                "{label}listen \"{}\" has {} and to \"{}\" has {}",
                listen.value,
                port_count(from),
                to.value,
                port_count(ports)
            );
            let fitting = u32::from(ports.first) + from.count() - 1;
            let hint = match u16::try_from(fitting) {
                Ok(last) => {
                    let fitting = Target { ports: Some(Ports { last, ..ports }), ..to.value };
                    format!("to = \"{fitting}\", or to = \"{bare}\" to keep the ports")
                }
                Err(_) => format!("to = \"{bare}\" to keep the ports"),
            };
            report.error(to.place, what, hint);
        }
        (_, None) | (Some(_), Some(_)) => {}
    }
}

/// One prefix onto another needs as many addresses on both sides.
fn check_prefixes(listen: &Placed<Listen>, to: &Placed<Target>, label: &str, report: &mut Report) {
    let sides = format!("{label}listen \"{}\" and to \"{}\"", listen.value, to.value);
    match (&listen.host, to.prefix()) {
        (ListenHost::Prefix(outer), Some(inner)) if outer.prefix_len() != inner.prefix_len() => {
            let fitting = IpNet::new(inner.addr(), outer.prefix_len()).map(|net| net.trunc().to_string());
            let what = format!("{sides} are prefixes of different lengths");
            report.error(to.place, what, format!("to = \"{}\"", fitting.unwrap_or_default()));
        }
        (ListenHost::Prefix(outer), Some(inner)) if *outer == inner => {
            report.error(to.place, format!("{sides} are the same prefix"), "the inner hosts' own prefix");
        }
        (ListenHost::Prefix(outer), None) => {
            let what = format!("{label}listen \"{outer}\" is a prefix and to \"{}\" is none", to.value);
            let fitting = IpNet::new(to.address, outer.prefix_len()).map(|net| net.trunc().to_string());
            report.error(to.place, what, format!("to = \"{}\"", fitting.unwrap_or_default()));
        }
        (ListenHost::Prefix(_), Some(_)) => {}
        (_, Some(inner)) => {
            let what = format!("{label}to \"{inner}\" is a prefix and listen \"{}\" is none", listen.value);
            report.error(listen.place, what, format!("a prefix of the same length (/{})", inner.prefix_len()));
        }
        _ => {}
    }
}

/// One to one everything goes, as it is.
fn check_one_to_one(part: &Part, listen: &Placed<Listen>, label: &str, report: &mut Report) {
    let prefix = format!("{label}listen \"{}\" is a prefix, which", listen.value);
    if let Some(protocol) = part.protocol.iter().flatten().next() {
        report.error(protocol.place, format!("{prefix} takes every protocol"), "leave `protocol` out");
    }
    if let Some(source) = part.source.as_ref().filter(|source| source.value != Source::Preserve) {
        let what =
            format!("{prefix} goes one to one with the clients' addresses, not with source \"{}\"", source.value);
        report.error(source.place, what, "source = \"preserve\", or leave `source` out");
    }
    if let Some(stateless) = part.stateless.filter(|stateless| !stateless.value) {
        report.error(stateless.place, format!("{prefix} never keeps flows"), "leave `stateless` out");
    }
    if let Some(to) = &part.to {
        check_allow(part, to, label, report);
    }
}

fn port_count(ports: Ports) -> String {
    match ports.count() {
        1 => "1 port".into(),
        count => format!("{count} ports"),
    }
}

fn check_protocols(part: &Part, label: &str, report: &mut Report) {
    for protocol in part.protocol.iter().flatten() {
        let number = match protocol.value {
            Protocol::Icmp => protocol_numbers::ICMP,
            Protocol::Number(number) => number,
        };
        // One message for a protocol is enough, whichever listen shows it.
        if let Some(listen) = part.listen.iter().find(|listen| listen.ports.is_some() && !protocol.has_ports()) {
            let bare = Listen { ports: None, ..listen.value.clone() };
            let what =
                format!("{label}protocol {} has no ports and listen \"{}\" names one", protocol.value, listen.value);
            report.error(protocol.place, what, format!("a rule of its own for it, with listen = \"{bare}\""));
        }
        if number == protocol_numbers::SCTP {
            check_sctp(part, protocol, label, report);
        }
        let v6 = part.to.as_ref().map(|to| to.address.is_ipv6());
        let only = match protocol.value {
            Protocol::Number(protocol_numbers::ICMPV6) => Some(true),
            Protocol::Number(protocol_numbers::ICMP) => Some(false),
            _ => None,
        };
        if let (Some(v6), Some(only)) = (v6, only)
            && v6 != only
        {
            let name = if only { "icmpv6" } else { "1 (ICMP)" };
            let what = format!("{label}protocol {name} is {} and the rule is {}", family(only), family(v6));
            report.error(protocol.place, what, "\"icmp\", which means the one of the rule's family");
        }
    }
}

fn check_sctp(part: &Part, protocol: &Placed<Protocol>, label: &str, report: &mut Report) {
    let Some((to, ports)) = part.to.as_ref().and_then(|to| Some((to, to.ports?))) else {
        return;
    };
    let moved = |listen: &&Placed<Listen>| listen.ports.is_some_and(|from| from.first != ports.first);
    if part.listen.iter().any(|listen| moved(&listen)) {
        let name = protocol_name(protocol_numbers::SCTP);
        let bare = Target { ports: None, ..to.value };
        let what = format!("{label}{name} cannot change its port: its checksum (CRC32c) covers the whole packet");
        report.error(protocol.place, what, format!("to = \"{bare}\" to keep the port"));
    }
}

fn check_source(part: &Part, to: &Placed<Target>, label: &str, report: &mut Report) {
    if let Some(source) = &part.source
        && let Source::Address(address) = source.value
        && address.is_ipv6() != to.address.is_ipv6()
    {
        let v6 = to.address.is_ipv6();
        let what = format!("{label}source \"{address}\" is {} and to \"{}\" is {}", family(!v6), to.value, family(v6));
        report.error(source.place, what, format!("an {} address of this machine", family(v6)));
    }
}

fn check_allow(part: &Part, to: &Placed<Target>, label: &str, report: &mut Report) {
    let v6 = to.address.is_ipv6();
    let foreign = |prefix: &&Placed<IpNet>| prefix.addr().is_ipv6() != v6;
    let all = !part.allow.is_empty() && part.allow.iter().all(|prefix| foreign(&prefix));
    for prefix in part.allow.iter().filter(foreign) {
        let what = format!(
            "{label}allow \"{}\" is {} and the rule is {}: it never matches",
            prefix.value,
            family(!v6),
            family(v6)
        );
        if all {
            report.error(
                prefix.place,
                format!("{what}, so nobody could use the rule"),
                format!("an {} prefix", family(v6)),
            );
        } else {
            report.warning(prefix.place, what, "leave it out");
        }
    }
}
