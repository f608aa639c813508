//! Two rules for the same listen.
//!
//! An address with a port goes before a range, a range before a whole address, and a named protocol before every
//! protocol: such pairs are no conflict. What remains is compared only with its like.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
};

use super::{
    report::Report,
    rule::ListenHost,
    syntax::protocol_name,
    view::{Expanded, View},
};

/// How precisely a listen says what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Whole,
    Range,
    Port,
}

/// The ports a listen takes, and which one it is (an index into the expanded listens).
#[derive(Clone, Copy, Debug)]
struct Taken {
    first: u16,
    last: u16,
    listen: usize,
}

/// Reports every listen that an earlier one has taken already.
pub(super) fn check(rules: &[View<'_>], listens: &[Expanded<'_>], report: &mut Report) {
    // An interface's name stands for its addresses of one family: that of the backend.
    let mut groups: HashMap<(&ListenHost, bool, Option<u8>, Kind), Vec<Taken>> = HashMap::new();
    for (index, expanded) in listens.iter().enumerate() {
        let Some(view) = rules.get(expanded.rule) else {
            continue;
        };
        let ports = expanded.listen.ports;
        let (kind, first, last) = match ports {
            None => (Kind::Whole, 0, 0),
            Some(ports) if ports.first == ports.last => (Kind::Port, ports.first, ports.last),
            Some(ports) => (Kind::Range, ports.first, ports.last),
        };
        let v6 = match &expanded.host {
            ListenHost::Address(address) => address.is_ipv6(),
            ListenHost::Prefix(prefix) => prefix.addr().is_ipv6(),
            ListenHost::Interface(_) => view.to.is_some_and(|to| to.address.is_ipv6()),
        };
        for protocol in view.protocols(ports, v6) {
            groups.entry((&expanded.host, v6, protocol, kind)).or_default().push(Taken { first, last, listen: index });
        }
    }
    let mut found: BTreeMap<(usize, usize), Vec<Option<u8>>> = BTreeMap::new();
    for ((_, _, protocol, _), mut group) in groups {
        group.sort_unstable_by_key(|taken| (taken.first, taken.listen));
        for (one, other) in overlaps(&group) {
            found.entry((one.max(other), one.min(other))).or_default().push(protocol);
        }
    }
    for ((later, earlier), protocols) in found {
        if let (Some(later), Some(earlier)) = (listens.get(later), listens.get(earlier)) {
            describe(rules, later, earlier, protocols, report);
        }
    }
}

/// Pairs that overlap, each listen with the one before it that reaches furthest. `sorted` by first port.
fn overlaps(sorted: &[Taken]) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    let mut furthest: Option<Taken> = None;
    for taken in sorted {
        match furthest {
            Some(holder) if taken.first <= holder.last => {
                pairs.push((holder.listen, taken.listen));
                if taken.last > holder.last {
                    furthest = Some(*taken);
                }
            }
            _ => furthest = Some(*taken),
        }
    }
    pairs
}

fn describe(
    rules: &[View<'_>],
    later: &Expanded<'_>,
    earlier: &Expanded<'_>,
    mut protocols: Vec<Option<u8>>,
    report: &mut Report,
) {
    let (Some(rule), Some(other)) = (rules.get(later.rule), rules.get(earlier.rule)) else {
        return;
    };
    protocols.sort_unstable();
    let names: Vec<String> = protocols.into_iter().flatten().map(protocol_name).collect();
    let on = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    let label = rule.label();
    let mine = later.describe();
    let whose = match earlier.rule.cmp(&later.rule) {
        Ordering::Equal => "of the same rule".to_owned(),
        _ => format!("of {}", other.reference(earlier.listen.place)),
    };
    if later.listen.ports == earlier.listen.ports {
        let what = format!("{label}listen {mine}{on} is taken by listen {} {whose}", earlier.describe());
        report.error(later.listen.place, what, "another port or address for one of the two");
    } else {
        let what = format!("{label}listen {mine}{on} overlaps listen {} {whose}", earlier.describe());
        report.error(later.listen.place, what, "ranges that have no port in common");
    }
}
