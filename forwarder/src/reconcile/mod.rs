//! From what the maps hold to what they shall hold: a pure diff, as an ordered list of writes.
//!
//! At every step a packet sees the rules before the change or after it, never half of each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use forwarder_common::{
    abi::{AllowKey, Endpoint, RangeKey, Rule, RuleRef},
    address::{V4, V6},
};

use crate::config::{Compiled, SettingsPart, Sizes};

/// What the maps hold now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// [`forwarder_common::abi::Settings::generation`]; 0 for maps just created.
    pub generation: u32,
    /// The other settings.
    pub settings: SettingsPart,
    /// Which counter each rule has; from the state file.
    pub counters: BTreeMap<String, u32>,
    /// The sizes of the maps.
    pub sizes: Sizes,
    /// The IPv4 tables.
    pub v4: RunningTables<V4>,
    /// The IPv6 tables.
    pub v6: RunningTables<V6>,
}

/// What the maps of one address family hold now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunningTables<A> {
    /// Rules by slot: at least every slot that a reference names.
    pub rules: BTreeMap<u32, Rule<A>>,
    /// All entries of `ENDPOINTS_*`.
    pub endpoints: BTreeMap<Endpoint<A>, RuleRef>,
    /// All entries of `RANGES_*`.
    pub ranges: BTreeMap<RangeKey<A>, RuleRef>,
    /// All keys of `ALLOW_*`.
    pub allow: BTreeSet<AllowKey<A>>,
}

/// One write. They have to be done in order; after any of them the maps are consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A write to an IPv4 table.
    V4(TableWrite<V4>),
    /// A write to an IPv6 table.
    V6(TableWrite<V6>),
    /// Set this entry of `RULE_COUNTERS` to zero, on every CPU.
    ZeroCounter(u32),
    /// Write the settings; the version and the epoch stay.
    Settings {
        /// [`forwarder_common::abi::Settings::generation`].
        generation: u32,
        /// The rest.
        part: SettingsPart,
    },
    /// Wait until every packet that may have read the generation before is through (an RCU grace period:
    /// `membarrier(MEMBARRIER_CMD_GLOBAL)`).
    AwaitPackets,
}

/// One write to a table of one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableWrite<A> {
    /// Fill a slot of `RULES_*`.
    Rule(u32, Rule<A>),
    /// Add an entry to `ALLOW_*`; its value is 1.
    Allow(AllowKey<A>),
    /// Remove it.
    RemoveAllow(AllowKey<A>),
    /// Write an entry of `ENDPOINTS_*`.
    Endpoint(Endpoint<A>, RuleRef),
    /// Remove it.
    RemoveEndpoint(Endpoint<A>),
    /// Write an entry of `RANGES_*`.
    Range(RangeKey<A>, RuleRef),
    /// Remove it.
    RemoveRange(RangeKey<A>),
}

/// How to get from what runs to what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The writes, in order; empty when nothing changes.
    pub operations: Vec<Operation>,
    /// Which counter each rule has afterwards: to be stored *before* the first write.
    pub counters: BTreeMap<String, u32>,
    /// What changes, by rule.
    pub changes: Changes,
}

/// What a plan changes, by rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// New.
    pub added: Vec<String>,
    /// Gone, with the counter that its flows still carry.
    pub removed: Vec<(String, u32)>,
    /// Other than before; flows that it has keep their old way.
    pub changed: Vec<String>,
    /// As before: flows and counters are kept.
    pub unchanged: Vec<String>,
}

/// The maps are too small. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoesNotFit {
    /// What there is too little room for, in words.
    pub what: String,
    /// How many entries the change needs, the old ones that have to stay meanwhile included.
    pub needed: u64,
    /// How many there are.
    pub available: u64,
    /// What to try next.
    pub hint: String,
}

impl fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, needed, available, hint } = self;
        write!(f, "the running maps are too small: {needed} {what} needed, room for {available}\n  try: {hint}")
    }
}

impl std::error::Error for DoesNotFit {}

/// The writes that turn `running` into `desired`.
pub fn plan(_running: &Running, _desired: &Compiled) -> Result<Plan, DoesNotFit> {
    todo!()
}
