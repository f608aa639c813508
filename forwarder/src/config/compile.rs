//! From a configuration to what the maps shall hold.

mod lines;
mod neighbors;
mod settings;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use forwarder_common::{
    abi::{self, Endpoint, FLOWS_PER_BUCKET, PortRange, RangeKey, Rule, Side, Ticks, rule_flags, setting_flags},
    address::{V4, V6},
    checksum::Delta,
};

use ipnet::IpNet;

use super::{
    Config,
    blocks::{self, Extent},
    diagnostics::Diagnostics,
    family::Family,
    masquerade::{self, Filtering, WayOut},
    neighbor::{self, Asked},
    one_to_one,
    report::Report,
    rule::{Forward, Listen, ListenHost, Placed, Ports, Source, protocol_numbers},
    settings::Limits,
    stateless::Decision,
    steer::{self, Line},
    view::{self, Expanded, View},
};
use crate::machine::Machine;

/// What the maps shall hold, before slots, counters and lists are assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// What goes into the settings.
    pub settings: SettingsPart,
    /// How large new maps have to be; pinned ones keep their sizes.
    pub sizes: Sizes,
    /// The IPv4 tables.
    pub v4: FamilyTables<V4>,
    /// The IPv6 tables.
    pub v6: FamilyTables<V6>,
    /// The rules, in the order of the configuration.
    pub rules: Vec<RuleSummary>,
    /// The masquerades, in the order of the configuration.
    pub masquerades: Vec<MasqueradeSummary>,
    /// The steers, in the order of the configuration.
    pub steers: Vec<SteerSummary>,
    /// Whether the daemon adds a default route where what is to be steered needs one.
    pub fallback_route: bool,
    /// The neighbours answered for, in the order of the configuration.
    pub neighbors: Vec<NeighborSummary>,
    /// Everything that was noticed short of errors, reading included.
    pub warnings: Diagnostics,
}

impl Compiled {
    /// Whether anything is steered.
    pub const fn steers(&self) -> bool {
        self.settings.flags & setting_flags::STEER != 0
    }

    /// The names of all rules, each of which has counters.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let masquerades = self.masquerades.iter().map(|masquerade| &masquerade.name);
        let neighbors = self.neighbors.iter().map(|neighbor| &neighbor.name);
        let steers = self.steers.iter().map(|steer| &steer.name);
        self.rules.iter().map(|rule| &rule.name).chain(masquerades).chain(steers).chain(neighbors)
    }
}

/// The part of [`abi::Settings`] that the configuration decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettingsPart {
    /// [`abi::setting_flags`].
    pub flags: u32,
    /// How long a next hop is kept.
    pub next_hop_lifetime: Ticks,
    /// How long flows live without packets.
    pub timeouts: abi::Timeouts,
    /// Source ports to allocate from, in order of preference.
    pub ports: [PortRange; 3],
}

/// Map sizes, in entries. Tables of rules have room for twice the limit: during a reload both configurations are in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// `RULES_V4`, `RULES_V6`; slot 0 included, which is never used.
    pub rules: u32,
    /// `ENDPOINTS_V4`, `ENDPOINTS_V6`.
    pub endpoints: u32,
    /// `RANGES_V4`, `RANGES_V6`.
    pub ranges: u32,
    /// `ALLOW_V4`, `ALLOW_V6`.
    pub allow: u32,
    /// `RULE_COUNTERS`.
    pub counters: u32,
    /// Established flows per family: `FREE_SLOTS_*` has this many entries, `ESTABLISHED_*` twice as many, `FLOWS_*` at
    /// least four times as many, and `SWEEP_KEYS_*` one more.
    pub flows: u32,
    /// New flows per family, a multiple of [`FLOWS_PER_BUCKET`]: `EMBRYONIC_*` has a bucket for so many.
    pub new_flows: u32,
}

/// What the maps of one address family shall hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyTables<A> {
    /// One per listen (address, ports), in the order of the configuration.
    pub rules: Vec<LogicalRule<A>>,
    /// Exact endpoints, with their index into `rules`.
    pub endpoints: BTreeMap<Endpoint<A>, usize>,
    /// Ranges and whole addresses, with their index into `rules`.
    pub ranges: BTreeMap<RangeKey<A>, usize>,
}

/// A rule before it has a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalRule<A> {
    /// The name of its `[[forward]]`.
    pub name: Arc<str>,
    /// Its contents; `counter`, and `allow` where there is a list, are 0 until reconciled.
    pub body: Rule<A>,
    /// With [`abi::rule_flags::ALLOW`]: the allowed clients as (prefix, length), sorted, without duplicates.
    pub allow: Option<Arc<[(A, u8)]>>,
}

/// What `check` and `list` say about a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSummary {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it works without keeping flows, or why not, in words.
    pub stateless: Result<(), String>,
    /// The listens as they are on this machine: interface names resolved.
    pub listens: Vec<Listen>,
    /// Where the client's address is preserved: for whom it cannot be.
    pub hairpin: Option<Hairpin>,
}

/// The clients in the backend's own network, itself included, as this machine knows that network. The backend would
/// answer them directly, so it sees an address of ours in place of theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hairpin {
    /// The network; the backend alone if no interface of this machine is in its network.
    pub clients: IpNet,
    /// The address of ours.
    pub source: IpAddr,
}

impl Hairpin {
    /// Of a rule that preserves the client's address; none if there is no route to its backend.
    fn of(forward: &Forward, machine: &Machine) -> Option<Self> {
        let backend = forward.to.address;
        // One to one, they are seen with their outer addresses.
        let preserved = forward.source.value == Source::Preserve && forward.to.prefix_len.is_none();
        let source = *machine.sources.get(&backend).filter(|_| preserved)?;
        let addresses = machine.interfaces.iter().flat_map(|interface| &interface.addresses);
        let network = addresses.filter(|network| network.contains(&backend)).max_by_key(|network| network.prefix_len());
        Some(Self { clients: network.map_or_else(|| backend.into(), IpNet::trunc), source })
    }
}

/// What `check` and `list` say about a masquerade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasqueradeSummary {
    /// Its name.
    pub name: Arc<str>,
    /// Its prefixes, each with what it is on this machine.
    pub ways: Vec<WayOut>,
}

/// What `check` and `list` say about a steer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteerSummary {
    /// Its name.
    pub name: Arc<str>,
    /// Its prefixes, each with what it is on this machine.
    pub lines: Vec<Line>,
}

/// What `check` and `list` say about a `[[neighbor]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighborSummary {
    /// Its name.
    pub name: Arc<str>,
    /// Its prefixes, each with what it is on this machine.
    pub asked: Vec<Asked>,
}

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

/// A listen on its way into the tables.
struct Entry<'a> {
    forward: &'a Forward,
    mss: u16,
    view: &'a View<'a>,
    summary: &'a RuleSummary,
    machine: &'a Machine,
    ports: Option<Ports>,
    rule: usize,
}

/// The allowed clients of a rule, once for all its listens; none where everyone is.
type AllowList<A> = Option<Arc<[(A, u8)]>>;

struct Builder<A> {
    tables: FamilyTables<A>,
    /// By index of the rule.
    allow: HashMap<usize, AllowList<A>>,
}

impl<A> Default for Builder<A> {
    fn default() -> Self {
        let tables = FamilyTables { rules: Vec::new(), endpoints: BTreeMap::new(), ranges: BTreeMap::new() };
        Self { tables, allow: HashMap::new() }
    }
}

impl<A: Family> Builder<A> {
    /// Adds a listen, if it is of this family.
    fn add(&mut self, entry: &Entry<'_>, listen: IpAddr) {
        let (Some(listen), Some(to)) = (A::of(listen), A::of(entry.forward.to.address)) else {
            return;
        };
        let allow = self.allow.entry(entry.rule).or_insert_with(|| allow_list(entry.forward)).clone();
        let first = entry.ports.map_or(0, |ports| ports.first);
        let to_first = entry.forward.to.ports.map_or(first, |ports| ports.first);
        let port_shift = to_first.wrapping_sub(first);
        let source = source(entry).and_then(A::of);
        let hairpin = entry.summary.hairpin;
        let mask = hairpin.and_then(|hairpin| A::of(hairpin.clients.netmask()));
        let stateless = entry.summary.stateless.is_ok();
        let flag = |condition: bool, flag: u16| if condition { flag } else { 0 };
        let body = Rule {
            listen,
            to,
            source: source.or_else(|| A::of(hairpin?.source)).unwrap_or_default(),
            mask: mask.unwrap_or_default(),
            to_delta: Delta::address(listen, to).0,
            port_shift,
            flags: flag(stateless, rule_flags::STATELESS)
                | flag(source.is_some(), rule_flags::REWRITE_SOURCE)
                | flag(mask.is_some(), rule_flags::HAIRPIN)
                | flag(allow.is_some(), rule_flags::ALLOW)
                | flag(entry.ports.is_none_or(|ports| ports.first != ports.last), rule_flags::SPARES_SOCKETS),
            mss: entry.mss,
            ..Rule::default()
        };
        let index = self.tables.rules.len();
        // Where this rule's packets go to as they arrive, or where they come from.
        let replies = source.unwrap_or(to);
        for address in [Some(listen), Some(replies), mask.map(|_| body.source)].into_iter().flatten() {
            let key = blocks::key(Side::Fragment, address, Extent::Everything);
            self.tables.ranges.entry(key).or_insert(index);
        }
        self.tables.rules.push(LogicalRule { name: Arc::clone(&entry.summary.name), body, allow });
        let protocols = entry.view.protocols(entry.ports, A::BITS == 128);
        for protocol in protocols {
            self.name(Side::Listen, listen, protocol, entry.ports, index);
            if stateless {
                let shifted = |ports: Ports| Ports {
                    first: ports.first.wrapping_add(port_shift),
                    last: ports.last.wrapping_add(port_shift),
                };
                self.name(Side::Backend, to, protocol, entry.ports.map(shifted), index);
            }
        }
    }

    /// Adds a one-to-one rule, if it is of this family.
    fn add_prefix(&mut self, entry: &Entry<'_>, prefix: IpNet) {
        let (Some(listen), Some(to), Some(mask)) =
            (A::of(prefix.addr()), A::of(entry.forward.to.address), A::of(prefix.netmask()))
        else {
            return;
        };
        let allow = self.allow.entry(entry.rule).or_insert_with(|| allow_list(entry.forward)).clone();
        let flag = |condition: bool, flag: u16| if condition { flag } else { 0 };
        let own = one_to_one::own_addresses(prefix, &entry.forward.to, entry.machine);
        let body = Rule {
            listen,
            to,
            mask,
            to_delta: Delta::address(listen, to).0,
            flags: rule_flags::STATELESS
                | rule_flags::PREFIX
                | flag(allow.is_some(), rule_flags::ALLOW)
                | flag(!own.is_empty(), rule_flags::SPARES_SOCKETS),
            mss: entry.mss,
            ..Rule::default()
        };
        let index = self.tables.rules.len();
        self.tables.rules.push(LogicalRule { name: Arc::clone(&entry.summary.name), body, allow });
        let extent = Extent::Prefix(prefix.prefix_len());
        for (side, address) in [(Side::Listen, listen), (Side::Backend, to)] {
            self.tables.ranges.insert(blocks::key(side, address, extent), index);
            self.tables.ranges.entry(blocks::key(Side::Fragment, address, extent)).or_insert(index);
        }
    }

    /// Adds a prefix of a masquerade, if it is of this family.
    fn add_way_out(&mut self, mss: u16, name: &Arc<str>, filtering: Filtering, way: &WayOut) {
        let (Some(from), Some(source)) = (A::of(way.from.addr()), A::of(way.address)) else {
            return;
        };
        let flags = match filtering {
            Filtering::Endpoint => rule_flags::ENDPOINT_FILTERING,
            Filtering::Address => rule_flags::ADDRESS_FILTERING,
            Filtering::AddressAndPort => 0,
        };
        let index = self.tables.rules.len();
        let body = Rule { source, flags, mss, ..Rule::default() };
        self.tables.rules.push(LogicalRule { name: Arc::clone(name), body, allow: None });
        let prefix_len = RangeKey::<A>::SIDE_BITS + u32::from(way.from.prefix_len());
        let key = |interface: u32| RangeKey { prefix_len, ..RangeKey::inside(interface, from) };
        self.tables.ranges.insert(key(way.interface), index);
        // Whoever goes out by some interface is behind us on the way to every other, too.
        self.tables.ranges.entry(key(0)).or_insert(index);
        for (address, extent) in [(from, Extent::Prefix(way.from.prefix_len())), (source, Extent::Everything)] {
            self.tables.ranges.entry(blocks::key(Side::Fragment, address, extent)).or_insert(index);
        }
    }

    /// Enters the keys under which packets find a rule.
    fn name(&mut self, side: Side, address: A, protocol: Option<u8>, ports: Option<Ports>, index: usize) {
        let endpoint = |protocol: u8, port: u16| Endpoint { address, port: port.to_be(), protocol, side: side as u8 };
        match (protocol, ports) {
            (Some(protocol), Some(Ports { first, last })) if first == last => {
                self.tables.endpoints.insert(endpoint(protocol, first), index);
            }
            (Some(protocol), Some(ports)) => {
                for (first, bits) in blocks::aligned(ports) {
                    let key = blocks::key(side, address, Extent::Block { protocol, first, bits });
                    self.tables.ranges.insert(key, index);
                }
            }
            // The echo has no ports, so this is all of it, and found without a second look-up.
            (Some(protocol @ (protocol_numbers::ICMP | protocol_numbers::ICMPV6)), None) => {
                self.tables.endpoints.insert(endpoint(protocol, 0), index);
            }
            (Some(protocol), None) => {
                self.tables.ranges.insert(blocks::key(side, address, Extent::Protocol(protocol)), index);
            }
            (None, _) => {
                self.tables.ranges.insert(blocks::key(side, address, Extent::Everything), index);
            }
        }
    }
}

/// Whether the machine has the address that the backend is to see.
fn has_source(forward: &Forward, machine: &Machine) -> bool {
    match forward.source.value {
        Source::Preserve => true,
        Source::Address(address) => machine.owner(address).is_some(),
        Source::Masquerade => machine.sources.contains_key(&forward.to.address),
    }
}

/// The address of ours that the backend sees; none where it sees the client's.
fn source(entry: &Entry<'_>) -> Option<IpAddr> {
    match entry.forward.source.value {
        Source::Preserve => None,
        Source::Address(address) => Some(address),
        Source::Masquerade => entry.machine.sources.get(&entry.forward.to.address).copied(),
    }
}

fn allow_list<A: Family>(forward: &Forward) -> AllowList<A> {
    if forward.allow.is_empty() {
        return None;
    }
    let prefix = |net: &Placed<IpNet>| Some((A::of(net.addr())?, net.prefix_len()));
    let mut list: Vec<(A, u8)> = forward.allow.iter().filter_map(prefix).collect();
    list.sort_unstable();
    list.dedup();
    Some(list.into())
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
