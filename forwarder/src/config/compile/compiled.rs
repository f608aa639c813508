//! What a configuration comes to: the contents of the maps, and what is said about it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use forwarder_common::{
    abi::{self, Endpoint, PortRange, RangeKey, Rule, Ticks, setting_flags},
    address::{V4, V6},
};
use ipnet::IpNet;

use crate::{
    config::{
        diagnostics::Diagnostics,
        masquerade::WayOut,
        neighbor::Asked,
        rule::{Forward, Listen, Source},
        steer::Line,
    },
    machine::Machine,
};

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
    /// New flows per family, a multiple of [`abi::FLOWS_PER_BUCKET`]: `EMBRYONIC_*` has a bucket for so many.
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
    pub(super) fn of(forward: &Forward, machine: &Machine) -> Option<Self> {
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
