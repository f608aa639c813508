//! The diff of one address family's tables.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use forwarder_common::abi::{AllowKey, Rule, RuleRef, Side};

use super::{DoesNotFit, RunningTables, TableWrite, meaning};
use crate::config::{Family, FamilyTables, Sizes};

/// The writes of one family, by when they are done.
#[derive(Clone, Debug)]
pub(super) struct TablePlan<A> {
    /// Rules and allow lists that nothing refers to yet.
    pub(super) prepare: Vec<TableWrite<A>>,
    /// References that mean the old until the generation changes and the new from then on.
    pub(super) announce: Vec<TableWrite<A>>,
    /// What is done once no packet sees the old any more.
    pub(super) settle: Vec<TableWrite<A>>,
    /// Counters of the rules whose endpoints change.
    pub(super) touched: BTreeSet<u32>,
}

/// The fields of a rule, to look it up by.
type Content<A> = ([A; 4], [u16; 4], [u32; 2]);

const fn content<A: Copy>(rule: &Rule<A>) -> Content<A> {
    (
        [rule.listen, rule.to, rule.source, rule.mask],
        [rule.to_delta, rule.port_shift, rule.flags, rule.mss],
        [rule.counter, rule.allow],
    )
}

/// The slots that packets may read now, each with its rule.
pub(super) fn live<A: Family>(running: &RunningTables<A>, generation: u32) -> BTreeMap<u32, Rule<A>> {
    let references = running.endpoints.values().chain(running.ranges.values());
    references
        .filter_map(|reference| reference.slot(generation))
        .filter_map(|slot| Some((slot, *running.rules.get(&slot)?)))
        .collect()
}

/// A family's diff while it is made.
struct Diff<'a, A: Family> {
    running: &'a RunningTables<A>,
    desired: &'a FamilyTables<A>,
    generation: u32,
    /// The slot of each desired rule, by its index.
    slots: Vec<u32>,
    /// Every rule that has a slot, old or new.
    rules: BTreeMap<u32, Rule<A>>,
    plan: TablePlan<A>,
}

/// The writes that turn `running` into `desired` at the generation after `generation`.
pub(super) fn diff<A: Family>(
    running: &RunningTables<A>,
    desired: &FamilyTables<A>,
    generation: u32,
    counters: &BTreeMap<String, u32>,
    sizes: &Sizes,
) -> Result<TablePlan<A>, DoesNotFit> {
    let plan = TablePlan { prepare: Vec::new(), announce: Vec::new(), settle: Vec::new(), touched: BTreeSet::new() };
    let rules = live(running, generation);
    let mut diff = Diff { running, desired, generation, slots: Vec::new(), rules, plan };
    let lists = diff.allow_lists(sizes)?;
    diff.assign_slots(&lists, counters, sizes)?;
    diff.check_tables(sizes)?;
    diff.endpoints();
    diff.ranges();
    diff.drop_lists(&lists);
    Ok(diff.plan)
}

/// The ids of allow lists by what they contain.
type Lists<A> = HashMap<Arc<[(A, u8)]>, u32>;

impl<A: Family> Diff<'_, A> {
    /// Finds or makes the allow lists. A list is known by its contents, so rules that allow the same clients share one.
    fn allow_lists(&mut self, sizes: &Sizes) -> Result<Lists<A>, DoesNotFit> {
        let mut present: BTreeMap<u32, Vec<(A, u8)>> = BTreeMap::new();
        for key in &self.running.allow {
            let length = key.prefix_len.saturating_sub(u32::BITS) as u8;
            present.entry(key.list).or_default().push((key.address, length));
        }
        // An id that a rule uses, even with nothing in its list, is not free.
        let mut used: BTreeSet<u32> = present.keys().copied().collect();
        used.extend(self.rules.values().map(|rule| rule.allow));
        let mut known: HashMap<Vec<(A, u8)>, u32> = HashMap::new();
        for (id, mut list) in present {
            list.sort_unstable();
            known.entry(list).or_insert(id);
        }
        let mut lists: Lists<A> = HashMap::new();
        let mut entries = self.running.allow.len();
        let mut next = 1..=u32::MAX;
        for list in self.desired.rules.iter().filter_map(|rule| rule.allow.as_ref()) {
            if lists.contains_key(list) {
                continue;
            }
            let id = match known.get(&list[..]) {
                Some(id) => *id,
                None => next.find(|id| !used.contains(id)).unwrap_or(u32::MAX),
            };
            if !known.contains_key(&list[..]) {
                entries += list.len();
                self.plan.prepare.extend(list.iter().map(|(address, length)| {
                    let prefix_len = u32::BITS + u32::from(*length);
                    TableWrite::Allow(AllowKey { prefix_len, list: id, address: *address })
                }));
            }
            lists.insert(Arc::clone(list), id);
        }
        DoesNotFit::check(&format!("{} entries of allow lists", A::NAME), entries, sizes.allow, 32)?;
        Ok(lists)
    }

    /// Gives every desired rule a slot: one that holds exactly it already, or a free one.
    fn assign_slots(
        &mut self,
        lists: &Lists<A>,
        counters: &BTreeMap<String, u32>,
        sizes: &Sizes,
    ) -> Result<(), DoesNotFit> {
        let mut holding: HashMap<Content<A>, u32> = HashMap::new();
        for (slot, rule) in &self.rules {
            holding.entry(content(rule)).or_insert(*slot);
        }
        let old: BTreeSet<u32> = self.rules.keys().copied().collect();
        let mut free = (1..=u32::MAX).filter(|slot| !old.contains(slot));
        for logical in &self.desired.rules {
            let counter = counters.get(&*logical.name).copied().unwrap_or_default();
            // Where there is no list, the field may have another meaning (a line's interface).
            let allow = logical.allow.as_ref().and_then(|list| lists.get(list)).copied().unwrap_or(logical.body.allow);
            let rule = Rule { counter, allow, ..logical.body };
            let slot = *holding.entry(content(&rule)).or_insert_with(|| {
                let slot = free.next().unwrap_or(u32::MAX);
                self.rules.insert(slot, rule);
                self.plan.prepare.push(TableWrite::Rule(slot, rule));
                slot
            });
            self.slots.push(slot);
        }
        // Slot 0 is never used.
        let room = sizes.rules.saturating_sub(1);
        DoesNotFit::check(&format!("{} rule slots", A::NAME), self.rules.len(), room, 2)
    }

    fn check_tables(&self, sizes: &Sizes) -> Result<(), DoesNotFit> {
        let endpoints = union(&self.running.endpoints, &self.desired.endpoints);
        DoesNotFit::check(&format!("{} endpoints", A::NAME), endpoints, sizes.endpoints, 8)?;
        let ranges = union(&self.running.ranges, &self.desired.ranges);
        DoesNotFit::check(&format!("{} entries of port ranges", A::NAME), ranges, sizes.ranges, 32)
    }

    fn slot(&self, index: usize) -> u32 {
        self.slots.get(index).copied().unwrap_or_default()
    }

    fn endpoints(&mut self) {
        let (running, desired, generation) = (self.running, self.desired, self.generation);
        for key in keys(&running.endpoints, &desired.endpoints) {
            let present = running.endpoints.get(key).copied();
            let wanted = desired.endpoints.get(key).map(|index| self.slot(*index));
            // An entry that means nothing in a generation leaves the word to the ranges.
            let before = present.and_then(|reference| reference.slot(generation)).unwrap_or_default();
            let after = wanted.unwrap_or_default();
            let write = |reference| TableWrite::Endpoint(*key, reference);
            if self.reference(present, wanted, before, after, write, TableWrite::RemoveEndpoint(*key)) {
                self.touch([present.map(|_| before), wanted]);
            }
        }
    }

    fn ranges(&mut self) {
        let (running, desired, generation) = (self.running, self.desired, self.generation);
        let [old_lengths, new_lengths] = [meaning::lengths(&running.ranges), meaning::lengths(&desired.ranges)];
        for key in keys(&running.ranges, &desired.ranges) {
            let present = running.ranges.get(key).copied();
            let wanted = desired.ranges.get(key).map(|index| self.slot(*index));
            // The longest match alone decides, so an entry has to say what the ranges around it mean
            // while it does not mean anything itself.
            let before = present
                .or_else(|| meaning::around(&running.ranges, &old_lengths, key))
                .and_then(|reference| reference.slot(generation))
                .unwrap_or_default();
            let after = wanted.unwrap_or_else(|| {
                meaning::around(&desired.ranges, &new_lengths, key).map(|index| self.slot(index)).unwrap_or_default()
            });
            let write = |reference| TableWrite::Range(*key, reference);
            let changes = self.reference(present, wanted, before, after, write, TableWrite::RemoveRange(*key));
            // An address of several rules stands for one of them, whichever.
            if changes && key.side != Side::Fragment as u32 && key.side != Side::OnLink as u32 {
                self.touch([present.map(|_| before), wanted]);
            }
        }
    }

    /// Brings one reference from `present` to `wanted`, by way of meaning `before` now and `after` from the next generation
    /// on. Returns whether its meaning changes.
    fn reference(
        &mut self,
        present: Option<RuleRef>,
        wanted: Option<u32>,
        before: u32,
        after: u32,
        write: impl Fn(RuleRef) -> TableWrite<A>,
        remove: TableWrite<A>,
    ) -> bool {
        let settled = present.filter(|reference| reference.before == reference.after);
        if wanted.is_some() && settled.map(|reference| reference.after) == wanted {
            return false;
        }
        if before == after && wanted.is_some() {
            // Means the same in both generations: an entry that a plan cut short left half done.
            self.plan.announce.push(write(RuleRef::settled(after)));
            return false;
        }
        self.plan.announce.push(write(RuleRef { before, after, at: self.generation + 1 }));
        self.plan.settle.push(wanted.map_or(remove, |slot| write(RuleRef::settled(slot))));
        true
    }

    /// The rules in these slots change: an entry's own before and after, not what it merely stood in front of.
    fn touch(&mut self, slots: [Option<u32>; 2]) {
        let counters = slots.into_iter().flatten().filter_map(|slot| self.rules.get(&slot)).map(|rule| rule.counter);
        self.plan.touched.extend(counters);
    }

    /// Removes the lists, whole or half written, that no rule uses any more.
    fn drop_lists(&mut self, lists: &Lists<A>) {
        let kept: BTreeSet<u32> = lists.values().copied().collect();
        let gone = self.running.allow.iter().filter(|key| !kept.contains(&key.list));
        self.plan.settle.extend(gone.map(|key| TableWrite::RemoveAllow(*key)));
    }
}

fn keys<'a, K: Ord, V, W>(one: &'a BTreeMap<K, V>, two: &'a BTreeMap<K, W>) -> impl Iterator<Item = &'a K> {
    one.keys().chain(two.keys().filter(|key| !one.contains_key(key)))
}

fn union<K: Ord, V, W>(one: &BTreeMap<K, V>, two: &BTreeMap<K, W>) -> usize {
    keys(one, two).count()
}
