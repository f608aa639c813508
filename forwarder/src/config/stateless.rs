//! Which rules work without flows: those whose replies say by themselves which listen they belong to.

use std::{collections::HashMap, net::IpAddr};

use super::{
    one_to_one,
    report::Report,
    rule::{Listen, Ports, Source, Target},
    view::{Expanded, View},
};

/// Whether a rule works without flows, or why not, in words.
pub(super) type Decision = Result<(), String>;

/// Decides for every rule, and reports those that want to be stateless and cannot.
pub(super) fn decide(rules: &[View<'_>], listens: &[Expanded<'_>], report: &mut Report) -> Vec<Decision> {
    let ways: Vec<Way> = listens.iter().filter_map(|listen| Way::of(rules, listen)).collect();
    let rivals = shared_backends(&ways);
    let mut decisions: Vec<Decision> = rules.iter().map(by_itself).collect();
    one_to_one::check(rules, listens, report);
    let around = one_to_one::around(rules, listens);
    for way in &ways {
        if let (Some(decision @ Ok(())), Some((prefix, name))) = (decisions.get_mut(way.rule), around(way.to)) {
            *decision = Err(format!("replies of {} are ambiguous: rule \"{name}\" maps {prefix} one to one", way.to));
        }
    }
    for (way, rival) in ways.iter().zip(rivals) {
        let (Some(decision), Some(rival)) = (decisions.get_mut(way.rule), rival.and_then(|rival| ways.get(rival)))
        else {
            continue;
        };
        if decision.is_ok() {
            let other = rules.get(rival.rule).filter(|_| rival.rule != way.rule);
            *decision =
                Err(ambiguity(way, rival, other.map(|other| other.name.map_or("", |name| name.value.as_str()))));
        }
    }
    for (rule, decision) in rules.iter().zip(&decisions) {
        if let (Some(wanted), Err(why)) = (rule.stateless, decision)
            && wanted.value
        {
            let hint = if matches!(rule.source.map(|source| source.value), Some(Source::Preserve)) {
                "leave `stateless` out: flows are kept where they are needed"
            } else {
                "source = \"preserve\", or leave `stateless` out"
            };
            report.error(wanted.place, format!("{}cannot be stateless: {why}", rule.label()), hint);
        }
    }
    decisions
}

/// What the rule says by itself.
fn by_itself(rule: &View<'_>) -> Decision {
    match rule.source.map(|source| source.value) {
        Some(Source::Masquerade) => Err("masquerade keeps a flow per connection".into()),
        Some(Source::Address(_)) => Err("a source address of ours keeps a flow per connection".into()),
        _ if rule.stateless.is_some_and(|stateless| !stateless.value) => {
            Err("the rule says `stateless = false`".into())
        }
        _ => Ok(()),
    }
}

/// What one listen of one rule leads to.
#[derive(Clone, Debug)]
struct Way {
    /// Index of its rule.
    rule: usize,
    /// The listen, for messages.
    listen: Listen,
    /// The backend.
    to: IpAddr,
    /// The backend's ports; none is every port.
    ports: Option<Ports>,
    /// Protocols; `None` is every one.
    protocols: Vec<Option<u8>>,
}

impl Way {
    fn of(rules: &[View<'_>], expanded: &Expanded<'_>) -> Option<Self> {
        let rule = rules.get(expanded.rule)?;
        let to = rule.to.filter(|to| to.prefix_len.is_none())?;
        let ports = expanded.listen.ports;
        Some(Self {
            rule: expanded.rule,
            listen: Listen { host: expanded.host.clone(), ports },
            to: to.address,
            ports: ports.and(to.ports).or(ports),
            protocols: rule.protocols(ports, to.address.is_ipv6()),
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Span {
    first: u16,
    last: u16,
    way: usize,
}

/// For each way the other one, if any, that leads to some of the same backend endpoints.
fn shared_backends(ways: &[Way]) -> Vec<Option<usize>> {
    let mut rivals: Vec<Option<usize>> = vec![None; ways.len()];
    let mut backends: HashMap<IpAddr, Vec<usize>> = HashMap::new();
    for (index, way) in ways.iter().enumerate() {
        backends.entry(way.to).or_default().push(index);
    }
    for indices in backends.into_values().filter(|indices| indices.len() > 1) {
        rivals_at(ways, &indices, &mut rivals);
    }
    rivals
}

fn rivals_at(ways: &[Way], indices: &[usize], rivals: &mut [Option<usize>]) {
    let mut mark = |one: usize, other: usize| {
        for (one, other) in [(one, other), (other, one)] {
            if let Some(rival) = rivals.get_mut(one) {
                rival.get_or_insert(other);
            }
        }
    };
    // Every protocol: shares something with whoever else leads here.
    let everything = |index: &&usize| ways.get(**index).is_some_and(|way| way.protocols.contains(&None));
    if let Some(every) = indices.iter().find(everything) {
        indices.iter().filter(|other| *other != every).for_each(|other| mark(*every, *other));
        return;
    }
    let mut by_protocol: HashMap<u8, Vec<Span>> = HashMap::new();
    for &index in indices {
        let Some(way) = ways.get(index) else { continue };
        let Ports { first, last } = way.ports.unwrap_or(Ports { first: 0, last: u16::MAX });
        for protocol in way.protocols.iter().flatten() {
            by_protocol.entry(*protocol).or_default().push(Span { first, last, way: index });
        }
    }
    for mut spans in by_protocol.into_values() {
        spans.sort_unstable_by_key(|span| (span.first, span.way));
        let mut furthest: Option<Span> = None;
        let mut previous: Option<Span> = None;
        for span in spans {
            // The furthest before it shows that this one overlaps; the next after it shows that the previous one does.
            for before in [furthest, previous].into_iter().flatten() {
                if span.first <= before.last {
                    mark(before.way, span.way);
                }
            }
            if furthest.is_none_or(|before| span.last > before.last) {
                furthest = Some(span);
            }
            previous = Some(span);
        }
    }
}

/// Says that two ways share backend endpoints. `other_rule`: the name of the other's rule, if it is another.
fn ambiguity(way: &Way, other: &Way, other_rule: Option<&str>) -> String {
    let ports = match (way.ports, other.ports) {
        (Some(one), Some(two)) => Some(Ports { first: one.first.max(two.first), last: one.last.min(two.last) }),
        (one, two) => one.or(two),
    };
    let shared = Target { address: way.to, ports, prefix_len: None };
    let of = other_rule.map_or_else(String::new, |name| format!(" of rule \"{name}\""));
    format!("two listens lead to {shared}, so replies are ambiguous: {} and {}{of}", way.listen, other.listen)
}
