//! The rule tables as the kernel holds them: read whole, changed by the writes of a plan, in order.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray, PerCpuValues};
use forwarder_common::{
    abi::{
        AllowKey, Endpoint, FLOWS_PER_BUCKET, FlowHash, Layout, RangeKey, Rule, RuleCounters, RuleRef, Settings, Side,
        VERSION,
    },
    address::{V4, V6},
};
use nix::libc;

use super::{Bits, Plain, load::pinned};
use crate::{
    config::{SettingsPart, Sizes},
    reconcile::{Operation, Running, RunningTables, TableWrite},
};

/// The rule tables of the running instance.
pub struct Tables {
    settings: Array<MapData, Plain<Settings>>,
    counters: PerCpuArray<MapData, Plain<RuleCounters>>,
    sizes: Sizes,
    v4: FamilyMaps<V4>,
    v6: FamilyMaps<V6>,
}

/// The tables of one address family. A longest-prefix-match map is opened as the hash map that it is to the
/// commands that read and write single entries: the layouts have the prefix length as part of the key.
struct FamilyMaps<A>
where
    Rule<A>: Layout,
    Endpoint<A>: Layout,
    RangeKey<A>: Layout,
    AllowKey<A>: Layout,
{
    rules: Array<MapData, Bits<Rule<A>>>,
    endpoints: HashMap<MapData, Bits<Endpoint<A>>, Plain<RuleRef>>,
    ranges: HashMap<MapData, Bits<RangeKey<A>>, Plain<RuleRef>>,
    allow: HashMap<MapData, Bits<AllowKey<A>>, u32>,
}

/// How many entries the tables of an address family have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries {
    /// Exact endpoints.
    pub endpoints: u64,
    /// Ranges and whole addresses.
    pub ranges: u64,
}

/// Fragmented datagrams whose fragments may be under way at the same time, however few flows there may be.
const MINIMAL_DATAGRAMS: u32 = 1024;

/// The entries of all maps whose size follows from the configuration.
pub fn map_sizes(sizes: &Sizes) -> BTreeMap<&'static str, u32> {
    let flows = [
        ("ESTABLISHED_V4", "ESTABLISHED_V6", sizes.flows.saturating_mul(2)),
        ("FLOWS_V4", "FLOWS_V6", FlowHash::slots(sizes.flows.saturating_mul(2))),
        ("EMBRYONIC_V4", "EMBRYONIC_V6", FlowHash::buckets(sizes.new_flows)),
        ("DATAGRAMS_V4", "DATAGRAMS_V6", (sizes.new_flows / 2).max(MINIMAL_DATAGRAMS)),
        ("FREE_SLOTS_V4", "FREE_SLOTS_V6", sizes.flows),
        ("SWEEP_KEYS_V4", "SWEEP_KEYS_V6", sizes.flows.saturating_add(1)),
        ("RULES_V4", "RULES_V6", sizes.rules),
        ("ENDPOINTS_V4", "ENDPOINTS_V6", sizes.endpoints),
        ("RANGES_V4", "RANGES_V6", sizes.ranges),
        ("ALLOW_V4", "ALLOW_V6", sizes.allow),
    ];
    let [meanings, next_hops] = [online_cpus(), possible_cpus()];
    let mut entries = BTreeMap::from([
        ("RULE_COUNTERS", sizes.counters),
        ("MEANINGS_V4", meanings),
        ("MEANINGS_V6", meanings),
        ("NEXT_HOPS_V4", next_hops),
        ("NEXT_HOPS_V6", next_hops),
    ]);
    for (v4, v6, size) in flows {
        entries.extend([(v4, size), (v6, size)]);
    }
    entries
}

/// How many CPUs the machine has now: one more than the highest number. What the programs keep for a CPU they find out
/// anew on one that comes later.
fn online_cpus() -> u32 {
    let cpus = aya::util::online_cpus().ok().and_then(|cpus| cpus.into_iter().max());
    cpus.unwrap_or_default().saturating_add(1)
}

/// How many CPUs the machine may ever have, those that it has now included.
fn possible_cpus() -> u32 {
    let possible = aya::util::nr_cpus().ok().and_then(|cpus| cpus.try_into().ok()).unwrap_or(1);
    online_cpus().max(possible)
}

impl Tables {
    /// Opens the tables pinned in `pins`; the caller has compared their layouts.
    pub fn open(pins: &Path) -> Result<Self> {
        let entries = |name: &str| -> Result<u32> {
            let info =
                MapInfo::from_pin(pins.join(name)).with_context(|| format!("cannot open the pinned map {name}"))?;
            Ok(info.max_entries())
        };
        Ok(Self {
            settings: pinned(pins, "SETTINGS", Map::Array)?,
            counters: pinned(pins, "RULE_COUNTERS", Map::PerCpuArray)?,
            sizes: Sizes {
                rules: entries("RULES_V4")?,
                endpoints: entries("ENDPOINTS_V4")?,
                ranges: entries("RANGES_V4")?,
                allow: entries("ALLOW_V4")?,
                counters: entries("RULE_COUNTERS")?,
                flows: entries("FREE_SLOTS_V4")?,
                new_flows: entries("EMBRYONIC_V4")?.saturating_mul(FLOWS_PER_BUCKET),
            },
            v4: FamilyMaps::open(pins, "V4")?,
            v6: FamilyMaps::open(pins, "V6")?,
        })
    }

    /// The settings in force.
    pub fn settings(&self) -> Result<Settings> {
        Ok(self.settings.get(&0, 0).context("cannot read map SETTINGS")?.0)
    }

    /// The sizes of the maps, in entries.
    pub const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Writes the settings of an instance that has no rules yet.
    pub fn initialise(&mut self, part: &SettingsPart) -> Result<()> {
        self.write_settings(&Settings {
            version: VERSION,
            generation: 0,
            epoch: 0,
            flags: part.flags,
            next_hop_lifetime: part.next_hop_lifetime,
            timeouts: part.timeouts,
            ports: part.ports,
        })
    }

    /// Everything the tables hold; `counters` says which counter each rule has.
    pub fn running(&self, counters: BTreeMap<String, u32>) -> Result<Running> {
        let settings = self.settings()?;
        Ok(Running {
            generation: settings.generation,
            settings: SettingsPart {
                flags: settings.flags,
                next_hop_lifetime: settings.next_hop_lifetime,
                timeouts: settings.timeouts,
                ports: settings.ports,
            },
            counters,
            sizes: self.sizes,
            v4: self.v4.running().context("cannot read the IPv4 rules")?,
            v6: self.v6.running().context("cannot read the IPv6 rules")?,
        })
    }

    /// How many entries the tables have, IPv4 and IPv6.
    pub fn count(&self) -> [Entries; 2] {
        [self.v4.count(), self.v6.count()]
    }

    /// Does the writes of a plan in their order. An error leaves the writes before it done; each state on the way
    /// is one that packets may see.
    pub fn execute(&mut self, operations: &[Operation]) -> Result<()> {
        for operation in operations {
            match operation {
                Operation::V4(write) => self.v4.write(write).context("cannot change an IPv4 rule")?,
                Operation::V6(write) => self.v6.write(write).context("cannot change an IPv6 rule")?,
                Operation::ZeroCounter(counter) => self.zero_counter(*counter)?,
                Operation::Settings { generation, part } => {
                    let old = self.settings()?;
                    // Kept next hops say which rule's line they are by: of another generation, they are asked anew.
                    let switches = u32::from(*generation != old.generation);
                    self.write_settings(&Settings {
                        version: old.version,
                        generation: *generation,
                        epoch: old.epoch.wrapping_add(switches),
                        flags: part.flags,
                        next_hop_lifetime: part.next_hop_lifetime,
                        timeouts: part.timeouts,
                        ports: part.ports,
                    })?;
                }
                Operation::AwaitPackets => {
                    await_packets();
                    // So are those that the last packets of the old generation kept.
                    self.raise_epoch()?;
                }
            }
        }
        Ok(())
    }

    /// Makes every kept next hop stale at once. The caller holds the instance's lock: this writes all settings anew.
    pub fn raise_epoch(&mut self) -> Result<()> {
        let old = self.settings()?;
        self.write_settings(&Settings { epoch: old.epoch.wrapping_add(1), ..old })
    }

    fn write_settings(&mut self, settings: &Settings) -> Result<()> {
        self.settings.set(0, Plain(*settings), 0).context("cannot write map SETTINGS")
    }

    fn zero_counter(&mut self, counter: u32) -> Result<()> {
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, error)| anyhow::Error::new(error).context(format!("cannot read {path}")))?;
        let zeros = PerCpuValues::try_from(vec![Plain(RuleCounters::default()); cpus])
            .context("cannot make a value for each CPU")?;
        self.counters.set(counter, zeros, 0).with_context(|| format!("cannot zero rule counter {counter}"))
    }
}

impl<A: Copy + Ord> FamilyMaps<A>
where
    Rule<A>: Layout,
    Endpoint<A>: Layout,
    RangeKey<A>: Layout,
    AllowKey<A>: Layout,
{
    fn open(pins: &Path, family: &str) -> Result<Self> {
        Ok(Self {
            rules: pinned(pins, &format!("RULES_{family}"), Map::Array)?,
            endpoints: pinned(pins, &format!("ENDPOINTS_{family}"), Map::HashMap)?,
            ranges: pinned(pins, &format!("RANGES_{family}"), Map::HashMap)?,
            allow: pinned(pins, &format!("ALLOW_{family}"), Map::HashMap)?,
        })
    }

    fn count(&self) -> Entries {
        let ranges = self.ranges.keys().flatten().filter(|Bits(key)| key.side != Side::Fragment as u32);
        Entries { endpoints: self.endpoints.keys().count() as u64, ranges: ranges.count() as u64 }
    }

    fn running(&self) -> Result<RunningTables<A>, MapError> {
        let endpoints: BTreeMap<_, _> = self
            .endpoints
            .iter()
            .map(|entry| entry.map(|(Bits(key), Plain(reference))| (key, reference)))
            .collect::<Result<_, _>>()?;
        let ranges: BTreeMap<_, _> = self
            .ranges
            .iter()
            .map(|entry| entry.map(|(Bits(key), Plain(reference))| (key, reference)))
            .collect::<Result<_, _>>()?;
        let allow = self.allow.keys().map(|key| key.map(|Bits(key)| key)).collect::<Result<_, _>>()?;
        let mut rules = BTreeMap::new();
        for reference in endpoints.values().chain(ranges.values()) {
            for slot in [reference.before, reference.after] {
                if slot != 0 && !rules.contains_key(&slot) {
                    rules.insert(slot, self.rules.get(&slot, 0)?.0);
                }
            }
        }
        Ok(RunningTables { rules, endpoints, ranges, allow })
    }

    fn write(&mut self, write: &TableWrite<A>) -> Result<(), MapError> {
        match write {
            TableWrite::Rule(slot, rule) => self.rules.set(*slot, Bits(*rule), 0),
            TableWrite::Allow(key) => self.allow.insert(Bits(*key), 1, 0),
            TableWrite::RemoveAllow(key) => self.allow.remove(&Bits(*key)),
            TableWrite::Endpoint(key, reference) => self.endpoints.insert(Bits(*key), Plain(*reference), 0),
            TableWrite::RemoveEndpoint(key) => self.endpoints.remove(&Bits(*key)),
            TableWrite::Range(key, reference) => self.ranges.insert(Bits(*key), Plain(*reference), 0),
            TableWrite::RemoveRange(key) => self.ranges.remove(&Bits(*key)),
        }
    }
}

/// Returns when every packet that was under way at the call is through.
pub(super) fn await_packets() {
    /// `MEMBARRIER_CMD_GLOBAL` of linux/membarrier.h: an RCU grace period, which every BPF program run ends before.
    const GLOBAL: libc::c_int = 1;
    // SAFETY: this command takes two zeros and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result != 0 {
        // Kernels with nohz_full refuse. No packet takes this long through a program.
        std::thread::sleep(Duration::from_millis(100));
    }
}
