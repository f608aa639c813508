//! What `[[masquerade]]` and `[[steer]]` have in common: interfaces by name, prefixes of hosts, an address of each family.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{nearest, report::Report, rule::Placed, syntax};
use crate::machine::{Interface, Machine};

/// Whether this can be the name of an interface; reports it if not.
pub(super) fn is_name(name: &Placed<String>, key: &str, label: &str, report: &mut Report) -> bool {
    let valid = syntax::is_interface_name(name);
    if !valid {
        let what = format!("{label}{key} \"{}\" is not the name of an interface", name.value);
        report.error(name.place, what, "a name as `ip link` shows it, such as eth0");
    }
    valid
}

/// The interface of this name; reports it if there is none.
pub(super) fn named<'m>(
    name: &Placed<String>,
    key: &str,
    label: &str,
    machine: &'m Machine,
    report: &mut Report,
) -> Option<&'m Interface> {
    let found = machine.interface(name);
    if found.is_none() {
        let names = machine.interfaces.iter().map(|interface| interface.name.as_str());
        let hint = nearest::near(name, names.clone())
            .map_or_else(|| format!("one of {}", names.collect::<Vec<_>>().join(", ")), |near| format!("\"{near}\""));
        report.missing(
            machine,
            name.place,
            format!("{label}{key} \"{}\": there is no such interface", name.value),
            hint,
        );
    }
    found
}

/// The name of a rule that was given none, by its interface or address: with the characters that names have.
pub(super) fn default_name(kind: &str, way: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '.' };
    format!("{kind}-{}", way.chars().map(allowed).collect::<String>())
}

/// Prefixes with their host bits cleared, each once.
pub(super) fn prefixes(
    list: &Placed<Vec<Placed<String>>>,
    key: &str,
    label: &str,
    report: &mut Report,
) -> Vec<Placed<IpNet>> {
    if list.value.is_empty() {
        report.error(list.place, format!("{label}`{key}` is an empty list"), "at least one prefix");
    }
    let mut prefixes: Vec<Placed<IpNet>> = Vec::new();
    for text in &list.value {
        match syntax::allow_prefix(text) {
            Ok((prefix, host_bits)) => {
                if host_bits {
                    let what = format!("{label}{key} \"{}\" has bits set beyond its prefix length", text.value);
                    report.warning(text.place, what, format!("\"{prefix}\", which it is taken as"));
                }
                let prefix = Placed { value: prefix, place: text.place };
                if prefixes.contains(&prefix) {
                    report.warning(
                        text.place,
                        format!("{label}{key} \"{}\" is there twice", text.value),
                        "name it once",
                    );
                } else {
                    prefixes.push(prefix);
                }
            }
            Err(error) => {
                report.error(text.place, format!("{label}{key} \"{}\": {}", text.value, error.what), error.hint);
            }
        }
    }
    prefixes
}

/// Unicast addresses, at most one of each family. `hint` is what to try instead of a wrong one.
pub(super) fn one_of_each_family(
    list: &Placed<Vec<Placed<String>>>,
    key: &str,
    label: &str,
    hint: &str,
    report: &mut Report,
) -> Vec<Placed<IpAddr>> {
    // What nothing is forwarded to may be what things are forwarded by.
    let is_router = |address: &IpAddr| {
        key == "gateway" && matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
    };
    let mut addresses: Vec<Placed<IpAddr>> = Vec::new();
    for text in &list.value {
        let Ok(address) = text.value.parse::<IpAddr>() else {
            report.error(text.place, format!("{label}{key} \"{}\" is not an address", text.value), hint);
            continue;
        };
        if let Some(error) = syntax::unicast(address, hint).err().filter(|_| !is_router(&address)) {
            report.error(text.place, format!("{label}{key} \"{}\": {}", text.value, error.what), error.hint);
        } else if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            let what = format!("{label}{key} \"{}\" is the second of its family", text.value);
            report.error(text.place, what, "one address of each family");
        } else {
            addresses.push(Placed { value: address, place: text.place });
        }
    }
    addresses
}
