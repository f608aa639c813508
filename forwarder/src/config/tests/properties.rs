//! Random rules: what packets find is what the file says, and no reply of a stateless rule is ambiguous.

use std::net::Ipv4Addr;

use forwarder_common::abi::{Endpoint, RangeKey, Side, rule_flags};
use proptest::prelude::*;

use super::*;

/// A rule over few addresses, ports and protocols.
#[derive(Clone, Debug)]
struct Seed {
    listen: u8,
    ports: Option<(u16, u16)>,
    to: u8,
    to_first: Option<u16>,
    protocol: Option<u8>,
    preserve: bool,
}

fn seed() -> impl Strategy<Value = Seed> {
    let ports = prop::option::weighted(0.8, (1..12u16, 0..5u16).prop_map(|(first, more)| (first, first + more)));
    let protocol = prop::option::of(prop::sample::select(vec![6u8, 17]));
    (1..3u8, ports, 2..4u8, prop::option::of(1..12u16), protocol, any::<bool>()).prop_map(
        |(listen, ports, to, to_first, protocol, preserve)| {
            let to_first = to_first.filter(|_| ports.is_some());
            Seed { listen, ports, to, to_first, protocol, preserve }
        },
    )
}

impl Seed {
    fn text(&self, index: usize) -> String {
        let range = |first: u16, last: u16| format!(":{first}-{last}");
        let ports = self.ports.map_or_else(String::new, |(first, last)| range(first, last));
        let to_ports = self.ports.zip(self.to_first);
        let to_ports = to_ports.map_or_else(String::new, |((first, last), to)| range(to, to + last - first));
        let protocol = self.protocol.map_or_else(String::new, |protocol| format!("protocol = {protocol}\n"));
        let source = if self.preserve { "source = \"preserve\"\n" } else { "" };
        let Self { listen, to, .. } = self;
        format!(
            "[[forward]]\nname = \"r{index}\"\nlisten = \"198.51.100.{listen}{ports}\"\nto = \"10.8.0.{to}{to_ports}\"\n{protocol}{source}"
        )
    }

    /// How precisely this rule names a packet's destination; none if it does not.
    fn names(&self, address: u8, protocol: u8, port: u16) -> Option<u8> {
        let (protocols, named): (&[u8], bool) = match (&self.protocol, self.ports) {
            (Some(protocol), _) => (std::slice::from_ref(protocol), true),
            (None, Some(_)) => (&[6, 17], true),
            (None, None) => (&[6, 17, 47], false),
        };
        let hit = self.listen == address && protocols.contains(&protocol);
        match self.ports {
            Some((first, last)) => (hit && (first..=last).contains(&port)).then_some(if first == last { 3 } else { 2 }),
            None => hit.then_some(u8::from(named)),
        }
    }

    fn backend_port(&self, port: u16) -> u16 {
        self.ports.zip(self.to_first).map_or(port, |((first, _), to)| port - first + to)
    }
}

fn find(compiled: &Compiled, side: Side, address: Ipv4Addr, protocol: u8, port: u16) -> Option<usize> {
    let address = u32::from_ne_bytes(address.octets());
    let endpoint = Endpoint { address, port: port.to_be(), protocol, side: side as u8 };
    let exact = compiled.v4.endpoints.get(&endpoint).copied();
    exact.or_else(|| {
        let packet = RangeKey::exact(endpoint);
        let tail =
            |key: &RangeKey<u32>| u32::from(u16::from_be(key.protocol)) << 16 | u32::from(u16::from_be(key.port));
        let around = |key: &&RangeKey<u32>| {
            let differing = u64::from(tail(key) ^ tail(&packet)) >> (32 - (key.prefix_len - 64));
            key.side == packet.side && key.address == packet.address && differing == 0
        };
        let longest = compiled.v4.ranges.keys().filter(around).max_by_key(|key| key.prefix_len)?;
        compiled.v4.ranges.get(longest).copied()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn packets_find_the_most_precise_rule_and_replies_the_only_one(seeds in prop::collection::vec(seed(), 1..5)) {
        let text: String = seeds.iter().enumerate().map(|(index, seed)| seed.text(index)).collect();
        // Seeds that take each other's listens are refused; then there is nothing to see.
        let Ok((_, compiled)) = read(&text) else { return Ok(()) };
        for protocol in [6, 17, 47] {
            for address in 1..3 {
                for port in 1..20 {
                    let best = (0..seeds.len())
                        .filter_map(|index| Some((seeds[index].names(address, protocol, port)?, index)))
                        .max();
                    let found = find(&compiled, Side::Listen, Ipv4Addr::new(198, 51, 100, address), protocol, port);
                    prop_assert_eq!(found, best.map(|(_, index)| index), "{} {} {}", address, protocol, port);
                    let Some((seed, rule)) = found.map(|index| (&seeds[index], &compiled.v4.rules[index])) else {
                        continue;
                    };
                    let shifted = port.wrapping_add(rule.body.port_shift);
                    prop_assert_eq!(shifted, seed.backend_port(port));
                    // Where a stateless rule sends a packet to, the reply leads back to the same rule, and nothing else
                    // sends anything there.
                    let backend = Ipv4Addr::new(10, 8, 0, seed.to);
                    let back = find(&compiled, Side::Backend, backend, protocol, shifted);
                    let stateless = rule.body.flags & rule_flags::STATELESS != 0;
                    prop_assert_eq!(back, stateless.then_some(found).flatten());
                }
            }
        }
    }

    #[test]
    fn rules_are_refused_exactly_when_they_name_the_same_thing(a in seed(), b in seed()) {
        let mut clash = false;
        for protocol in [6, 17, 47] {
            for address in 1..3 {
                for port in 1..20 {
                    let (one, two) = (a.names(address, protocol, port), b.names(address, protocol, port));
                    clash |= one.is_some() && one == two;
                }
            }
        }
        let refused = read(&(a.text(0) + &b.text(1))).is_err();
        prop_assert_eq!(refused, clash, "{}", a.text(0) + &b.text(1));
    }
}
