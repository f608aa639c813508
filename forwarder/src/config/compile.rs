//! From a configuration to what the maps shall hold.

mod builder;
mod compiled;
mod lines;
mod neighbors;
mod settings;

use std::{net::IpAddr, sync::Arc};

use forwarder_common::{
    abi::FLOWS_PER_BUCKET,
    address::{V4, V6},
};
use ipnet::IpNet;

use super::{
    Config,
    family::Family,
    masquerade, neighbor,
    report::Report,
    rule::{Forward, Listen, ListenHost, Placed, Source},
    settings::Limits,
    stateless::Decision,
    steer,
    view::{self, Expanded, View},
};
use crate::machine::Machine;
use builder::{Builder, Entry};
pub use compiled::{
    Compiled, FamilyTables, Hairpin, LogicalRule, MasqueradeSummary, NeighborSummary, RuleSummary, SettingsPart, Sizes,
    SteerSummary,
};

/// How many listens of each family there are: what fills the rule tables.
fn count(listens: &[Expanded<'_>]) -> [(&'static str, usize); 2] {
    let is_v6 = |listen: &&Expanded<'_>| {
        matches!(listen.host, ListenHost::Address(IpAddr::V6(_)) | ListenHost::Prefix(IpNet::V6(_)))
    };
    let v6 = listens.iter().filter(is_v6).count();
    [(V4::NAME, listens.len() - v6), (V6::NAME, v6)]
}

/// Reports a configuration that needs more than it allows itself.
pub(super) fn check_limit(listens: &[Expanded<'_>], limits: Limits, report: &mut Report) {
    for (family, needed) in count(listens) {
        let allowed = limits.rules.unwrap_or(Placed::nowhere(*Limits::RULES.end()));
        if needed > allowed.value as usize {
            let what = format!("the rules have {needed} {family} listens and limit `rules` is {}", allowed.value);
            let hint = match limits.rules {
                Some(_) => format!("rules = {} under [limits]", needed.next_power_of_two()),
                None => "port ranges or whole addresses instead of single ports".to_owned(),
            };
            report.error(allowed.place, what, hint);
        }
    }
}

/// The map contents of a configuration that was checked against this machine.
pub(super) fn compile(config: &Config, machine: &Machine, decisions: Vec<Decision>) -> Compiled {
    let views: Vec<View<'_>> = config.forwards.iter().map(View::from).collect();
    // Nothing can be wrong any more.
    let listens = view::expand(&views, Some(machine), &mut Report::default());
    let mut rules: Vec<RuleSummary> = config
        .forwards
        .iter()
        .zip(decisions)
        .map(|(forward, stateless)| RuleSummary {
            name: Arc::from(forward.name.value.as_str()),
            stateless,
            listens: Vec::new(),
            hairpin: Hairpin::of(forward, machine),
        })
        .collect();
    let (mut v4, mut v6) = (Builder::<V4>::default(), Builder::<V6>::default());
    for expanded in &listens {
        let (Some(forward), Some(view), Some(summary)) =
            (config.forwards.get(expanded.rule), views.get(expanded.rule), rules.get_mut(expanded.rule))
        else {
            continue;
        };
        // Without the address that its backend is to see, a rule waits.
        if !has_source(forward, machine) {
            continue;
        }
        let listen = Listen { host: expanded.host.clone(), ports: expanded.listen.ports };
        let mss = config.mss_clamp(forward).limit();
        let entry = Entry { forward, mss, view, summary, machine, ports: listen.ports, rule: expanded.rule };
        match listen.host {
            ListenHost::Address(address) => {
                v4.add(&entry, address);
                v6.add(&entry, address);
            }
            ListenHost::Prefix(prefix) => {
                v4.add_prefix(&entry, prefix);
                v6.add_prefix(&entry, prefix);
            }
            ListenHost::Interface(_) => {}
        }
        summary.listens.push(listen);
    }
    let ways = masquerade::resolve(&config.masquerades, machine, &mut Report::default());
    let mut masquerades = Vec::with_capacity(ways.len());
    for (masquerade, ways) in config.masquerades.iter().zip(ways) {
        let summary = MasqueradeSummary { name: Arc::from(masquerade.name.value.as_str()), ways };
        for way in &summary.ways {
            v4.add_way_out(config.mss_clamp.limit(), &summary.name, masquerade.filtering.value, way);
            v6.add_way_out(config.mss_clamp.limit(), &summary.name, masquerade.filtering.value, way);
        }
        masquerades.push(summary);
    }
    let mut steers = Vec::with_capacity(config.steers.len());
    for (steer, lines) in config.steers.iter().zip(steer::resolve(config, machine, &mut Report::default())) {
        let summary = SteerSummary { name: Arc::from(steer.name.value.as_str()), lines };
        for line in &summary.lines {
            v4.add_line(config.mss_clamp.limit(), &summary.name, steer, line);
            v6.add_line(config.mss_clamp.limit(), &summary.name, steer, line);
        }
        steers.push(summary);
    }
    v4.add_connected(machine);
    v6.add_connected(machine);
    let asked = neighbor::resolve(&config.neighbors, machine, &mut Report::default());
    let mut neighbors = Vec::with_capacity(asked.len());
    for (neighbor, asked) in config.neighbors.iter().zip(asked) {
        let summary = NeighborSummary { name: Arc::from(neighbor.name.value.as_str()), asked };
        for asked in &summary.asked {
            v4.add_neighbor(&summary.name, neighbor.answer.value, asked);
            v6.add_neighbor(&summary.name, neighbor.answer.value, asked);
        }
        neighbors.push(summary);
    }
    let (v4, v6) = (v4.tables, v6.tables);
    let sizes = sizes(config.limits, &v4, &v6);
    let settings = settings::part(config, machine, &v4, &v6);
    let warnings = config.warnings.clone();
    let fallback_route = config.fallback_route.unwrap_or(true);
    Compiled { settings, sizes, v4, v6, rules, masquerades, steers, fallback_route, neighbors, warnings }
}

/// Whether the machine has the address that the backend is to see.
fn has_source(forward: &Forward, machine: &Machine) -> bool {
    match forward.source.value {
        Source::Preserve => true,
        Source::Address(address) => machine.owner(address).is_some(),
        Source::Masquerade => machine.sources.contains_key(&forward.to.address),
    }
}

fn sizes(limits: Limits, v4: &FamilyTables<V4>, v6: &FamilyTables<V6>) -> Sizes {
    fn needs<A: Family>(tables: &FamilyTables<A>) -> [u32; 4] {
        let mut lists: Vec<_> = tables.rules.iter().filter_map(|rule| rule.allow.as_ref()).collect();
        lists.dedup_by_key(|list| Arc::as_ptr(list));
        let allow = lists.iter().map(|list| list.len()).sum::<usize>();
        [tables.rules.len(), tables.endpoints.len(), tables.ranges.len(), allow]
            .map(|count| u32::try_from(count).unwrap_or(u32::MAX))
    }
    let ([rules4, endpoints4, ranges4, allow4], [rules6, endpoints6, ranges6, allow6]) = (needs(v4), needs(v6));
    let grown = Limits::DEFAULT_RULES.max(rules4.max(rules6).next_power_of_two());
    let rules = limits.rules.map_or(grown, |rules| rules.value);
    // Twice what is needed: a reload has the old and the new entries in one table. Ranges and allow lists cost
    // memory only when used, so their tables are generous.
    let twice = |a: u32, b: u32| a.max(b).saturating_mul(2);
    Sizes {
        rules: twice(rules, 0) + 1,
        endpoints: (8 * rules).max(twice(endpoints4, endpoints6)),
        ranges: (32 * rules).max(twice(ranges4, ranges6)),
        allow: (32 * rules).max(twice(allow4, allow6)),
        counters: twice(twice(rules, 0), 0),
        flows: limits.flows,
        // As many as whole buckets have room for.
        new_flows: limits.new_flows.next_multiple_of(FLOWS_PER_BUCKET),
    }
}
