//! From what the maps hold to what they shall hold: a pure diff, as an ordered list of writes.
//!
//! At every step a packet sees the rules before the change or after it, never half of each.

mod meaning;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use forwarder_common::{
    abi::{AllowKey, Endpoint, RangeKey, Rule, RuleRef, setting_flags},
    address::{V4, V6},
};

use crate::config::{Compiled, SettingsPart, Sizes};
use tables::TablePlan;

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
    /// Write the settings; the version stays, another generation raises the epoch.
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
    /// The writes, in order; empty when nothing changes. Cut short anywhere, a new plan from what the maps hold then
    /// leads on.
    ///
    /// 1. Rules, allow lists and counters that nothing refers to yet.
    /// 2. Every endpoint that changes, as "this until now, that from the next generation on".
    /// 3. The settings with the next generation, which makes all of them true at once.
    /// 4. After the last packet of the old generation: the endpoints as they now are, and what nothing refers to any more.
    pub operations: Vec<Operation>,
    /// Which counter each rule has while the writes are done, those to be removed included: to be stored before the
    /// first.
    pub counters_meanwhile: BTreeMap<String, u32>,
    /// Which counter each rule has after the last write.
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

impl DoesNotFit {
    /// `per_rule`: how many entries of this table one unit of limit `rules` makes ([`Sizes`]).
    fn check(what: &str, needed: usize, available: u32, per_rule: u32) -> Result<(), Self> {
        let (needed, available) = (needed as u64, u64::from(available));
        if needed <= available {
            return Ok(());
        }
        let rules = needed.div_ceil(u64::from(per_rule)).next_power_of_two();
        let hint = format!("rules = {rules} under [limits], then `forwarder unload` and `forwarder load`");
        Err(Self { what: what.to_owned(), needed, available, hint })
    }
}

/// The writes that turn `running` into `desired`.
pub fn plan(running: &Running, desired: &Compiled) -> Result<Plan, DoesNotFit> {
    let generation = running.generation;
    let live: BTreeSet<u32> = counters_in_use(running);
    let assigned = assign_counters(running, desired, &live)?;
    let v4 = tables::diff(&running.v4, &desired.v4, generation, &assigned.counters, &running.sizes)?;
    let v6 = tables::diff(&running.v6, &desired.v6, generation, &assigned.counters, &running.sizes)?;
    let touched = v4.touched.union(&v6.touched).copied().collect();
    let changes = changes(running, &assigned.counters, &live, &touched);
    let operations = operations(running, desired, v4, v6, &assigned.new);
    Ok(Plan { operations, counters_meanwhile: assigned.meanwhile, counters: assigned.counters, changes })
}

/// The counters of the rules that packets may find now.
fn counters_in_use(running: &Running) -> BTreeSet<u32> {
    let v4 = tables::live(&running.v4, running.generation).into_values().map(|rule| rule.counter);
    let v6 = tables::live(&running.v6, running.generation).into_values().map(|rule| rule.counter);
    v4.chain(v6).collect()
}

struct Assigned {
    /// Of the desired rules.
    counters: BTreeMap<String, u32>,
    /// Of the running and of the desired rules.
    meanwhile: BTreeMap<String, u32>,
    /// Taken into use now.
    new: Vec<u32>,
}

/// Gives every desired rule the counter its name has, or a free one.
fn assign_counters(running: &Running, desired: &Compiled, live: &BTreeSet<u32>) -> Result<Assigned, DoesNotFit> {
    let mut used: BTreeSet<u32> = running.counters.values().copied().collect();
    used.extend(live);
    // Flows of removed rules still carry their numbers: take those that were out of use the longest.
    let start = used.last().map_or(0, |last| last + 1);
    let mut free = (start..running.sizes.counters).chain(0..start).filter(|id| !used.contains(id));
    let (mut counters, mut meanwhile, mut new) = (BTreeMap::new(), running.counters.clone(), Vec::new());
    let mut missing = 0;
    for name in desired.names() {
        let name = name.to_string();
        let known = running.counters.get(&name).copied();
        let Some(id) = known.or_else(|| free.next()) else {
            missing += 1;
            continue;
        };
        if known.is_none() {
            new.push(id);
            meanwhile.insert(name.clone(), id);
        }
        counters.insert(name, id);
    }
    let needed = used.len() + new.len() + missing;
    DoesNotFit::check("rule counters", needed, running.sizes.counters, 4)?;
    Ok(Assigned { counters, meanwhile, new })
}

fn changes(
    running: &Running,
    counters: &BTreeMap<String, u32>,
    live: &BTreeSet<u32>,
    touched: &BTreeSet<u32>,
) -> Changes {
    let mut changes = Changes::default();
    for (name, counter) in &running.counters {
        if live.contains(counter) && !counters.contains_key(name) {
            changes.removed.push((name.clone(), *counter));
        }
    }
    for (name, counter) in counters {
        let was_there = running.counters.contains_key(name) && live.contains(counter);
        let list = match (was_there, touched.contains(counter)) {
            (false, _) => &mut changes.added,
            (true, true) => &mut changes.changed,
            (true, false) => &mut changes.unchanged,
        };
        list.push(name.clone());
    }
    changes
}

/// Puts the writes in order: see [`Plan::operations`].
fn operations(
    running: &Running,
    desired: &Compiled,
    v4: TablePlan<V4>,
    v6: TablePlan<V6>,
    new_counters: &[u32],
) -> Vec<Operation> {
    let mut operations = Vec::new();
    let generation = running.generation;
    // Flows of rules that are gone live on, and are looked up only with these flags.
    let last = desired.settings.flags | (running.settings.flags & (setting_flags::FLOWS | setting_flags::HAIRPIN));
    let both = running.settings.flags | last;
    let with_flags = |part: SettingsPart, flags: u32| SettingsPart { flags, ..part };
    let no_switch = v4.announce.is_empty() && v6.announce.is_empty() && generation > 0;

    // A plan cut short after its switch may have left packets behind that still see what was before.
    if running.v4.unsettled() || running.v6.unsettled() {
        operations.push(Operation::AwaitPackets);
    }
    operations.extend(new_counters.iter().copied().map(Operation::ZeroCounter));
    operations.extend(v4.prepare.into_iter().map(Operation::V4));
    operations.extend(v6.prepare.into_iter().map(Operation::V6));
    // A flag only says where to look, so that of a rule to come may be set before the rule is in force.
    if !no_switch && both != running.settings.flags {
        operations.push(Operation::Settings { generation, part: with_flags(running.settings, both) });
    }
    operations.extend(v4.announce.into_iter().map(Operation::V4));
    operations.extend(v6.announce.into_iter().map(Operation::V6));
    if no_switch {
        let part = with_flags(desired.settings, last);
        if part != running.settings {
            operations.push(Operation::Settings { generation, part });
        }
    } else {
        let generation = generation + 1;
        operations.push(Operation::Settings { generation, part: with_flags(desired.settings, both) });
        operations.push(Operation::AwaitPackets);
    }
    operations.extend(v4.settle.into_iter().map(Operation::V4));
    operations.extend(v6.settle.into_iter().map(Operation::V6));
    if !no_switch && both != last {
        operations.push(Operation::Settings { generation: generation + 1, part: with_flags(desired.settings, last) });
    }
    operations
}

impl<A> RunningTables<A> {
    /// Whether any entry means different things before and after some generation.
    fn unsettled(&self) -> bool {
        let mut references = self.endpoints.values().chain(self.ranges.values());
        references.any(|reference| reference.before != reference.after)
    }
}

#[cfg(test)]
mod tests;
