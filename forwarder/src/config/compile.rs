//! From a configuration to what the maps shall hold.

use std::{collections::BTreeMap, sync::Arc};

use forwarder_common::{
    abi::{self, Endpoint, PortRange, RangeKey, Rule, Ticks},
    address::{V4, V6},
};

use super::diagnostics::Diagnostics;

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
    /// Everything that was noticed short of errors, reading included.
    pub warnings: Diagnostics,
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
    /// Established flows per family: `FREE_SLOTS_*` has this many entries, `ESTABLISHED_*` twice as many, and
    /// `SWEEP_KEYS_*` one more.
    pub flows: u32,
    /// New flows per family: `EMBRYONIC_*` has twice as many entries.
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
    /// Its contents; `counter` and `allow` are 0 until reconciled.
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
    pub listens: Vec<super::Listen>,
}
