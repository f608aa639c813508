//! No packet sees half of a change, whatever the change, and wherever it is cut short.

use std::sync::Arc;

use forwarder_common::abi::{PortRange, Timeouts, rule_flags};
use proptest::prelude::*;

use super::{
    model::{Found, Maps, meant},
    *,
};
use crate::config::{Diagnostics, Family, FamilyTables, LogicalRule, RuleSummary};

const ADDRESSES: [[u8; 4]; 2] = [[203, 0, 113, 7], [203, 0, 113, 8]];
const PROTOCOLS: [u8; 2] = [6, 17];
/// Ports 0 to 15 are enough for blocks inside blocks.
const PORTS: u16 = 16;

fn address(index: usize) -> V4 {
    V4::from_ne_bytes(ADDRESSES[index])
}

/// Where a rule can be entered.
#[derive(Clone, Debug)]
enum Place {
    Exact { address: usize, protocol: usize, port: u16, side: u8 },
    Block { address: usize, protocol: usize, port: u16, bits: u32, side: u8 },
    Protocol { address: usize, protocol: usize, side: u8 },
    Everything { address: usize, side: u8 },
    Prefix { address: usize, bits: u32, side: u8 },
}

fn place() -> impl Strategy<Value = Place> {
    let (a, p) = (0..ADDRESSES.len(), 0..PROTOCOLS.len());
    let (side, port) = (0..2u8, 0..PORTS);
    prop_oneof![
        4 => (a.clone(), p.clone(), port.clone(), side.clone())
            .prop_map(|(address, protocol, port, side)| Place::Exact { address, protocol, port, side }),
        4 => (a.clone(), p.clone(), port, 0..=4u32, side.clone())
            .prop_map(|(address, protocol, port, bits, side)| Place::Block { address, protocol, port, bits, side }),
        1 => (a.clone(), p, side.clone())
            .prop_map(|(address, protocol, side)| Place::Protocol { address, protocol, side }),
        1 => (a.clone(), side.clone()).prop_map(|(address, side)| Place::Everything { address, side }),
        // The two addresses share their first 28 bits.
        2 => (a, 26..32_u32, side).prop_map(|(address, bits, side)| Place::Prefix { address, bits, side }),
    ]
}

/// Rules over few names, backends and allow lists, so that configurations have much in common.
#[derive(Clone, Debug)]
struct RuleSeed {
    name: usize,
    to: u8,
    allow: usize,
    places: Vec<Place>,
}

fn rules() -> impl Strategy<Value = Vec<RuleSeed>> {
    let rule = (0..5usize, 0..3u8, 0..4usize, prop::collection::vec(place(), 1..4))
        .prop_map(|(name, to, allow, places)| RuleSeed { name, to, allow, places });
    prop::collection::vec(rule, 0..6)
}

fn tables(seeds: &[RuleSeed]) -> FamilyTables<V4> {
    let mut tables = FamilyTables { rules: Vec::new(), endpoints: BTreeMap::new(), ranges: BTreeMap::new() };
    for seed in seeds {
        let prefix = |last: u8, length: u8| (V4::from_ne_bytes([198, 51, last, 0]), length);
        let allow: Option<Arc<[(V4, u8)]>> = match seed.allow {
            0 => None,
            1 => Some(vec![prefix(100, 24)].into()),
            2 => Some(vec![prefix(0, 16), prefix(100, 24)].into()),
            _ => Some(vec![prefix(100, 24), prefix(101, 24), prefix(102, 24)].into()),
        };
        let flags = if allow.is_some() { rule_flags::ALLOW } else { 0 };
        let index = tables.rules.len();
        let mut used = false;
        for place in &seed.places {
            // Keys that an earlier rule has are taken, as the compiler would have seen to.
            used |= match *place {
                Place::Exact { address: a, protocol, port, side } => {
                    let key = Endpoint { address: address(a), port: port.to_be(), protocol: PROTOCOLS[protocol], side };
                    *tables.endpoints.entry(key).or_insert(index) == index
                }
                Place::Block { address, protocol, port, bits, side } => {
                    let tail = RangeKey::<V4>::TAIL_BITS - bits;
                    let key = range(address, Some(protocol), port >> bits << bits, tail, side);
                    *tables.ranges.entry(key).or_insert(index) == index
                }
                Place::Protocol { address, protocol, side } => {
                    let key = range(address, Some(protocol), 0, RangeKey::<V4>::PROTOCOL_BITS, side);
                    *tables.ranges.entry(key).or_insert(index) == index
                }
                Place::Prefix { address: at, bits, side } => {
                    let mask = (u32::MAX << (32 - bits)).to_be();
                    let whole = range(at, None, 0, 0, side);
                    let key = RangeKey { prefix_len: 32 + bits, address: address(at) & mask, ..whole };
                    *tables.ranges.entry(key).or_insert(index) == index
                }
                Place::Everything { address, side } => {
                    *tables.ranges.entry(range(address, None, 0, 0, side)).or_insert(index) == index
                }
            };
        }
        if used {
            let body = Rule { to: V4::from_ne_bytes([10, 8, 0, seed.to]), flags, ..Rule::default() };
            tables.rules.push(LogicalRule { name: format!("rule-{}", seed.name).into(), body, allow });
        }
    }
    tables
}

fn range(at: usize, protocol: Option<usize>, port: u16, tail: u32, side: u8) -> RangeKey<V4> {
    RangeKey {
        prefix_len: RangeKey::<V4>::SIDE_BITS + u32::from(<V4 as Family>::BITS) + tail,
        side: u32::from(side),
        address: address(at),
        protocol: protocol.map_or(0, |index| u16::from(PROTOCOLS[index]).to_be()),
        port: port.to_be(),
    }
}

fn compiled(seeds: &[RuleSeed]) -> Compiled {
    let v4 = tables(seeds);
    let v6 = FamilyTables { rules: Vec::new(), endpoints: BTreeMap::new(), ranges: BTreeMap::new() };
    let names: BTreeSet<_> = v4.rules.iter().map(|rule| Arc::clone(&rule.name)).collect();
    let summary = |name| RuleSummary { name, stateless: Ok(()), listens: Vec::new(), hairpin: None };
    let timeouts: Timeouts = bytemuck::Zeroable::zeroed();
    let part = SettingsPart {
        flags: if v4.ranges.is_empty() { 0 } else { setting_flags::RANGES_V4 },
        next_hop_lifetime: 1,
        timeouts,
        ports: [PortRange { first: 1, last: 0 }; 3],
    };
    Compiled {
        settings: part,
        // No more than three configurations of at most five rules need: slots have to be used again.
        sizes: Sizes { rules: 13, endpoints: 60, ranges: 60, allow: 20, counters: 16, flows: 64, new_flows: 64 },
        v4,
        v6,
        rules: names.into_iter().map(summary).collect(),
        masquerades: Vec::new(),
        fallback_route: true,
        steers: Vec::new(),
        neighbors: Vec::new(),
        warnings: Diagnostics::default(),
    }
}

fn endpoints() -> Vec<Endpoint<V4>> {
    let mut all = Vec::new();
    for index in 0..ADDRESSES.len() {
        for protocol in [PROTOCOLS[0], PROTOCOLS[1], 47] {
            for port in 0..PORTS {
                for side in 0..2 {
                    all.push(Endpoint { address: address(index), port: port.to_be(), protocol, side });
                }
            }
        }
    }
    all
}

fn found(maps: &Maps, generation: u32) -> Vec<Found<V4>> {
    endpoints().into_iter().map(|endpoint| maps.find(endpoint, generation)).collect()
}

fn wanted(desired: &Compiled) -> Vec<Found<V4>> {
    endpoints().into_iter().map(|endpoint| meant(desired, endpoint)).collect()
}

/// Carries a plan out, at most `steps` of it, and checks after every step what packets find.
fn carry_out(maps: &mut Maps, desired: &Compiled, steps: usize) {
    let old = maps.generation();
    let (before, after) = (found(maps, old), wanted(desired));
    let plan = plan(&maps.running(), desired).unwrap();
    maps.set_counters(&plan.counters_meanwhile);
    // Packets that read the old generation are around until they have been waited for after the switch.
    let mut old_packets = true;
    for operation in plan.operations.iter().take(steps) {
        if let Some(half) = maps.half(operation) {
            assert_eq!(found(&half, half.generation()), after, "with half of the settings written: {operation:?}");
        }
        maps.apply(operation);
        old_packets &= !(*operation == Operation::AwaitPackets && maps.generation() > old);
        if old_packets {
            assert_eq!(found(maps, old), before, "of the old generation, after {operation:?}");
        }
        if maps.generation() > old {
            assert_eq!(found(maps, maps.generation()), after, "of the new generation, after {operation:?}");
        }
    }
    if steps >= plan.operations.len() {
        maps.set_counters(&plan.counters);
        assert_eq!(found(maps, maps.generation()), after);
        maps.assert_holds_exactly(desired);
        assert_eq!(super::plan(&maps.running(), desired).unwrap().operations, [], "done twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_packet_sees_the_rules_before_or_after_and_never_a_mixture(a in rules(), b in rules()) {
        let (a, b) = (compiled(&a), compiled(&b));
        let mut maps = Maps::new(&a);
        carry_out(&mut maps, &a, usize::MAX);
        carry_out(&mut maps, &b, usize::MAX);
        carry_out(&mut maps, &a, usize::MAX);
    }

    #[test]
    fn a_plan_cut_short_anywhere_is_led_on_by_the_next(
        a in rules(), b in rules(), c in rules(), first in 0..40usize, second in 0..40usize,
    ) {
        let (a, b, c) = (compiled(&a), compiled(&b), compiled(&c));
        let mut maps = Maps::new(&a);
        carry_out(&mut maps, &a, usize::MAX);
        carry_out(&mut maps, &b, first);
        carry_out(&mut maps, &c, second);
        carry_out(&mut maps, &b, usize::MAX);
    }

    #[test]
    fn unchanged_rules_keep_their_slots_and_counters(a in rules(), b in rules()) {
        let (a, b) = (compiled(&a), compiled(&b));
        let mut maps = Maps::new(&a);
        maps.reload(&a);
        let before = maps.running();
        let changes = maps.reload(&b);
        let after = maps.running();
        for name in &changes.unchanged {
            prop_assert_eq!(before.counters[name], after.counters[name]);
            let counter = before.counters[name];
            let slots = |running: &Running| -> BTreeMap<_, _> {
                let of_rule = |slot: &u32| running.v4.rules[slot].counter == counter;
                let endpoints = running.v4.endpoints.iter().map(|(key, to)| (RangeKey::exact(*key), to.after));
                let ranges = running.v4.ranges.iter().map(|(key, to)| (*key, to.after));
                endpoints.chain(ranges).filter(|(_, slot)| of_rule(slot)).collect()
            };
            prop_assert_eq!(slots(&before), slots(&after), "{}", name);
        }
    }
}
