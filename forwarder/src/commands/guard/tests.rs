#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use forwarder_common::abi::{PortRange, Rule, Timeouts};

use super::*;
use crate::config::{Diagnostics, LogicalRule, SettingsPart, Sizes};

fn nothing() -> Compiled {
    let none = PortRange { first: 1, last: 0 };
    let timeouts = Timeouts {
        tcp_opening: 0,
        tcp_established: 0,
        tcp_closing: 0,
        tcp_reset: 0,
        udp_opening: 0,
        udp_established: 0,
        icmp: 0,
        other: 0,
    };
    Compiled {
        settings: SettingsPart { flags: 0, next_hop_lifetime: 0, timeouts, ports: [none; 3] },
        sizes: Sizes { rules: 0, endpoints: 0, ranges: 0, allow: 0, counters: 0, flows: 0, new_flows: 0 },
        v4: FamilyTables { rules: Vec::new(), endpoints: BTreeMap::new(), ranges: BTreeMap::new() },
        v6: FamilyTables { rules: Vec::new(), endpoints: BTreeMap::new(), ranges: BTreeMap::new() },
        rules: Vec::new(),
        masquerades: Vec::new(),
        fallback_route: true,
        steers: Vec::new(),
        neighbors: Vec::new(),
        warnings: Diagnostics::default(),
    }
}

fn rule<A: Default>(name: &str) -> LogicalRule<A>
where
    Rule<A>: Default,
{
    LogicalRule { name: Arc::from(name), body: Rule::default(), allow: None }
}

/// "web" listens on 192.0.2.7:80/tcp, "range" on ports 16-31/tcp of 192.0.2.8, "all" is 192.0.2.9 as a whole,
/// "six" listens on [2001:db8::7]:22/tcp.
fn rules() -> Compiled {
    let mut compiled = nothing();
    let v4 = |text: &str| V4::of(text.parse().unwrap()).unwrap();
    let v6 = |text: &str| V6::of(text.parse().unwrap()).unwrap();
    compiled.v4.rules = vec![rule("web"), rule("range"), rule("all")];
    compiled.v6.rules = vec![rule("six")];
    let listen = Side::Listen as u8;
    compiled
        .v4
        .endpoints
        .insert(Endpoint { address: v4("192.0.2.7"), port: 80_u16.to_be(), protocol: TCP, side: listen }, 0);
    let mut range = |address: &str, bits: u32, protocol: u8, port: u16, rule: usize| {
        let key = RangeKey {
            prefix_len: 64 + bits,
            side: listen.into(),
            address: v4(address),
            protocol: u16::from(protocol).to_be(),
            port: port.to_be(),
        };
        compiled.v4.ranges.insert(key, rule);
    };
    range("192.0.2.8", 32 - 4, TCP, 16, 1);
    range("192.0.2.9", 0, 0, 0, 2);
    compiled
        .v6
        .endpoints
        .insert(Endpoint { address: v6("2001:db8::7"), port: 22_u16.to_be(), protocol: TCP, side: listen }, 0);
    compiled
}

#[test]
fn which_rule_takes_a_connection() {
    let compiled = rules();
    for (address, protocol, port, rule) in [
        ("192.0.2.7", TCP, 80, Some("web")),
        ("192.0.2.7", TCP, 22, None),
        ("192.0.2.7", UDP, 80, None),
        ("192.0.2.8", TCP, 15, None),
        ("192.0.2.8", TCP, 16, Some("range")),
        ("192.0.2.8", TCP, 22, Some("range")),
        ("192.0.2.8", TCP, 31, Some("range")),
        ("192.0.2.8", TCP, 32, None),
        ("192.0.2.8", UDP, 22, None),
        ("192.0.2.9", TCP, 22, Some("all")),
        ("192.0.2.9", UDP, 53, Some("all")),
        ("192.0.2.10", TCP, 22, None),
        ("2001:db8::7", TCP, 22, Some("six")),
        ("2001:db8::8", TCP, 22, None),
        ("::ffff:192.0.2.9", TCP, 22, Some("all")),
    ] {
        let found = capturing_rule(&compiled, address.parse().unwrap(), protocol, port);
        assert_eq!(found, rule, "{address} {protocol} {port}");
    }
}

#[test]
fn a_prefix_takes_connections_only_where_the_machine_has_an_address_in_it() {
    let v4 = |text: &str| V4::of(text.parse().unwrap()).unwrap();
    for (flags, taken) in [(rule_flags::PREFIX, None), (rule_flags::PREFIX | rule_flags::SPARES_SOCKETS, Some("net"))] {
        let mut compiled = nothing();
        let body = Rule { flags, ..Rule::default() };
        compiled.v4.rules = vec![LogicalRule { name: Arc::from("net"), body, allow: None }];
        let key = RangeKey {
            prefix_len: 32 + 29,
            side: (Side::Listen as u8).into(),
            address: v4("192.0.2.8"),
            protocol: 0,
            port: 0,
        };
        compiled.v4.ranges.insert(key, 0);
        for (address, inside) in
            [("192.0.2.7", false), ("192.0.2.8", true), ("192.0.2.15", true), ("192.0.2.16", false)]
        {
            let found = capturing_rule(&compiled, address.parse().unwrap(), TCP, 22);
            assert_eq!(found, taken.filter(|_| inside), "{address}");
        }
        let ssh = Listener { protocol: TCP, address: "0.0.0.0".parse().unwrap(), port: 22 };
        assert_eq!(shadowed_services(&compiled, &[ssh]).len(), usize::from(taken.is_some()));
    }
}

#[test]
fn the_servers_end_of_an_ssh_connection() {
    for (value, server) in [
        ("198.51.100.4 50522 192.0.2.7 22", Some("192.0.2.7:22")),
        ("2001:db8::1 50522 2001:db8::7 2222", Some("[2001:db8::7]:2222")),
        ("fe80::1%eth0 50522 fe80::2%eth0 22", Some("[fe80::2]:22")),
        ("::ffff:198.51.100.4 50522 ::ffff:192.0.2.7 22", Some("192.0.2.7:22")),
        ("", None),
        ("198.51.100.4 50522", None),
        ("a b c d", None),
    ] {
        let wanted = server.map(|text| text.parse().unwrap());
        assert_eq!(parse_ssh_connection(value), wanted, "{value}");
    }
}

#[test]
fn services_that_lose_their_clients_are_named() {
    let compiled = rules();
    let listener = |protocol, address: &str, port| Listener { protocol, address: address.parse().unwrap(), port };
    let sentences = shadowed_services(
        &compiled,
        &[
            listener(TCP, "192.0.2.7", 80),
            listener(TCP, "127.0.0.1", 80),
            listener(TCP, "0.0.0.0", 20),
            listener(TCP, "::", 22),
            listener(UDP, "192.0.2.7", 80),
        ],
    );
    assert_eq!(sentences.len(), 3, "{sentences:?}");
    for (rule, service) in [("web", "192.0.2.7:80"), ("range", "0.0.0.0:20"), ("six", "[::]:22")] {
        let found = sentences.iter().any(|text| text.contains(rule) && text.contains(service));
        assert!(found, "{rule} {service} in {sentences:?}");
    }
}

#[test]
fn a_long_list_is_cut() {
    let compiled = rules();
    let listeners: Vec<_> =
        (1..=20).map(|port| Listener { protocol: UDP, address: "192.0.2.9".parse().unwrap(), port }).collect();
    let sentences = shadowed_services(&compiled, &listeners);
    assert_eq!(sentences.len(), 9);
    assert!(sentences.last().unwrap().contains("12 more"));
}
