//! The maps as ordinary collections, and what packets find in them.

use ipnet::IpNet;

use super::*;
use crate::{
    config::{Draft, Family},
    machine::{Interface, Machine},
};

/// A machine with 203.0.113.7 and 2001:db8::7, and routes to every backend.
fn machine(draft: &Draft) -> Machine {
    let addresses: Vec<IpNet> = vec!["203.0.113.7/24".parse().unwrap(), "2001:db8::7/64".parse().unwrap()];
    let ours: Vec<_> = addresses.iter().map(IpNet::addr).collect();
    let source = |backend: std::net::IpAddr| ours.iter().find(|own| own.is_ipv4() == backend.is_ipv4()).copied();
    Machine {
        interfaces: vec![Interface {
            index: 2,
            name: "eth0".into(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            has_link_header: true,
            up: true,
            carrier: true,
            addresses: addresses.clone(),
        }],
        local_port_range: (32_768, 60_999),
        source_rules: false,
        sources: draft.backends().into_iter().filter_map(|backend| Some((backend, source(backend)?))).collect(),
        ..Machine::default()
    }
}

/// Compiles a file for that machine.
pub(super) fn compiled(text: &str) -> Compiled {
    let draft = Draft::read("test.toml", text);
    let machine = machine(&draft);
    draft.compile(&machine).map_err(|problems| problems.to_string()).unwrap().1
}

/// The maps, and the state file.
#[derive(Clone, Debug)]
pub(super) struct Maps {
    running: Running,
    /// Every slot ever written: what a packet that read its number some time ago would still find.
    slots4: BTreeMap<u32, Rule<V4>>,
    slots6: BTreeMap<u32, Rule<V6>>,
}

/// What a packet finds: the rule with its name instead of its counter and the clients instead of their list's id.
pub(super) type Found<A> = Option<(String, Rule<A>, BTreeSet<(A, u32)>)>;

impl Maps {
    /// Maps just created, as large as this needs.
    pub(super) fn new(desired: &Compiled) -> Self {
        let none = SettingsPart { flags: 0, ..desired.settings };
        let running = Running {
            generation: 0,
            settings: none,
            counters: BTreeMap::new(),
            sizes: desired.sizes,
            v4: RunningTables::default(),
            v6: RunningTables::default(),
        };
        Self { running, slots4: BTreeMap::new(), slots6: BTreeMap::new() }
    }

    /// What the loader reads from the maps: all slots that were ever written.
    pub(super) fn running(&self) -> Running {
        let mut running = self.running.clone();
        running.v4.rules = self.slots4.clone();
        running.v6.rules = self.slots6.clone();
        running
    }

    pub(super) fn generation(&self) -> u32 {
        self.running.generation
    }

    pub(super) fn set_counters(&mut self, counters: &BTreeMap<String, u32>) {
        self.running.counters.clone_from(counters);
    }

    /// Plans and carries out everything.
    pub(super) fn reload(&mut self, desired: &Compiled) -> Changes {
        let plan = plan(&self.running(), desired).unwrap();
        for operation in &plan.operations {
            self.apply(operation);
        }
        self.set_counters(&plan.counters);
        plan.changes
    }

    pub(super) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::V4(write) => write_table(&mut self.running.v4, &mut self.slots4, write),
            Operation::V6(write) => write_table(&mut self.running.v6, &mut self.slots6, write),
            Operation::ZeroCounter(id) => assert!(*id < self.running.sizes.counters),
            Operation::Settings { generation, part } => {
                self.running.generation = *generation;
                self.running.settings = *part;
            }
            Operation::AwaitPackets => {}
        }
        let (sizes, v4) = (&self.running.sizes, &self.running.v4);
        if let Operation::V4(TableWrite::Rule(slot, _)) = operation {
            assert!((1..sizes.rules).contains(slot));
        }
        assert!(v4.endpoints.len() <= sizes.endpoints as usize && v4.ranges.len() <= sizes.ranges as usize);
        assert!(v4.allow.len() <= sizes.allow as usize);
    }

    /// If this is the switch: the maps as a packet sees them that reads the new generation and the old flags.
    pub(super) fn half(&self, operation: &Operation) -> Option<Self> {
        let Operation::Settings { generation, .. } = operation else {
            return None;
        };
        let mut half = self.clone();
        half.running.generation = *generation;
        (*generation > self.running.generation).then_some(half)
    }

    /// What a packet finds that read this generation; IPv4, the way the programs look it up.
    pub(super) fn find(&self, endpoint: Endpoint<V4>, generation: u32) -> Found<V4> {
        let v4 = &self.running.v4;
        let exact = v4.endpoints.get(&endpoint).and_then(|reference| reference.slot(generation));
        let ranges = self.running.settings.flags & setting_flags::RANGES_V4 != 0;
        let slot = match exact {
            Some(slot) => slot,
            None if ranges => longest(&v4.ranges, endpoint)?.slot(generation)?,
            None => return None,
        };
        let rule = *self.slots4.get(&slot).expect("a reference leads to a rule that was written");
        let name = self.running.counters.iter().find(|(_, counter)| **counter == rule.counter);
        let name = name.expect("a rule's counter has a name").0.clone();
        let list = v4.allow.iter().filter(|key| rule.allow != 0 && key.list == rule.allow);
        let allow = list.map(|key| (key.address, key.prefix_len - 32)).collect();
        Some((name, Rule { counter: 0, allow: 0, ..rule }, allow))
    }

    /// Nothing is left that the desired tables do not have.
    pub(super) fn assert_holds_exactly(&self, desired: &Compiled) {
        let v4 = &self.running.v4;
        assert!(v4.endpoints.keys().eq(desired.v4.endpoints.keys()));
        assert!(v4.ranges.keys().eq(desired.v4.ranges.keys()));
        assert!(v4.endpoints.values().chain(v4.ranges.values()).all(|reference| reference.before == reference.after));
        let used: BTreeSet<u32> = v4
            .endpoints
            .values()
            .chain(v4.ranges.values())
            .map(|reference| self.slots4[&reference.after].allow)
            .filter(|list| *list != 0)
            .collect();
        assert_eq!(v4.allow.iter().map(|key| key.list).collect::<BTreeSet<_>>(), used);
    }
}

fn write_table<A: Family>(tables: &mut RunningTables<A>, slots: &mut BTreeMap<u32, Rule<A>>, write: &TableWrite<A>) {
    match *write {
        TableWrite::Rule(slot, rule) => drop(slots.insert(slot, rule)),
        TableWrite::Allow(key) => assert!(tables.allow.insert(key)),
        TableWrite::RemoveAllow(key) => assert!(tables.allow.remove(&key)),
        TableWrite::Endpoint(key, reference) => drop(tables.endpoints.insert(key, reference)),
        TableWrite::RemoveEndpoint(key) => assert!(tables.endpoints.remove(&key).is_some()),
        TableWrite::Range(key, reference) => drop(tables.ranges.insert(key, reference)),
        TableWrite::RemoveRange(key) => assert!(tables.ranges.remove(&key).is_some()),
    }
}

/// The kernel's longest-prefix match, naively: bit by bit over the bytes of the key, over all entries.
pub(super) fn longest<T: Copy>(ranges: &BTreeMap<RangeKey<V4>, T>, endpoint: Endpoint<V4>) -> Option<T> {
    // The key's bytes after its length, as the kernel compares them: from the first bit on.
    let bits = |key: &RangeKey<V4>| {
        let words = [key.side, key.address, u32::from(key.protocol.to_be()) << 16 | u32::from(key.port.to_be())];
        let [side, address, tail] = [words[0].to_be(), words[1].to_be(), words[2]];
        u128::from(side) << 64 | u128::from(address) << 32 | u128::from(tail)
    };
    let packet = bits(&RangeKey::exact(endpoint));
    ranges
        .iter()
        .filter(|(key, _)| (bits(key) ^ packet) >> (96 - key.prefix_len) == 0)
        .max_by_key(|(key, _)| key.prefix_len)
        .map(|(_, entry)| *entry)
}

/// What a packet finds in tables that are not in maps yet.
pub(super) fn meant(desired: &Compiled, endpoint: Endpoint<V4>) -> Found<V4> {
    let v4 = &desired.v4;
    let index = v4.endpoints.get(&endpoint).copied().or_else(|| longest(&v4.ranges, endpoint))?;
    let logical = &v4.rules[index];
    let list = logical.allow.iter().flat_map(|list| list.iter());
    let allow = list.map(|(address, length)| (*address, u32::from(*length))).collect();
    Some((logical.name.to_string(), logical.body, allow))
}
