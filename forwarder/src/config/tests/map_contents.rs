//! What the maps shall hold, for rules of every shape.

use forwarder_common::{
    abi::{Endpoint, PortRange, RangeKey, Side, rule_flags, setting_flags},
    address::{V4, V6},
    checksum::Delta,
};

use super::*;

fn v4(address: &str) -> V4 {
    V4::of(address.parse().unwrap()).unwrap()
}

/// The keys of a configuration with the index of their rule, in words: `listen 203.0.113.7 tcp 80 -> 0`.
fn keys(text: &str) -> Vec<String> {
    fn side(side: u32) -> &'static str {
        if side == Side::Listen as u32 { "listen" } else { "backend" }
    }
    fn of<A: Family>(tables: &FamilyTables<A>) -> Vec<String> {
        let endpoints = tables.endpoints.iter().map(|(key, index)| {
            let Endpoint { address, port, protocol, .. } = *key;
            let (port, protocol) = (u16::from_be(port), protocol_name(protocol));
            format!("{} {} {protocol} {port} -> {index}", side(key.side.into()), address.ip())
        });
        let named = tables.ranges.iter().filter(|(key, _)| key.side != Side::Fragment as u32);
        let ranges = named.map(|(key, index)| {
            let Some(tail) = (key.prefix_len - 32).checked_sub(A::BITS.into()) else {
                return format!("{} {}/{} -> {index}", side(key.side), key.address.ip(), key.prefix_len - 32);
            };
            let protocol = protocol_name(u16::from_be(key.protocol) as u8);
            let extent = match tail {
                0 => "everything".to_owned(),
                16 => format!("{protocol} all"),
                _ => format!("{protocol} {}/{}", u16::from_be(key.port), tail - 16),
            };
            format!("{} {} {extent} -> {index}", side(key.side), key.address.ip())
        });
        endpoints.chain(ranges).collect()
    }
    let compiled = compiled(text);
    [of(&compiled.v4), of(&compiled.v6)].concat()
}

#[test]
fn keys_of_every_kind_of_listen() {
    let preserve = ("source", "\"preserve\"");
    let table: [(&str, &[(&str, &str)], &[&str]); 11] = [
        ("a port", &[], &["listen 203.0.113.7 tcp 80 -> 0", "listen 203.0.113.7 udp 80 -> 0"]),
        (
            "a changed port, stateless",
            &[("protocol", "\"tcp\""), preserve],
            &["backend 10.8.0.2 tcp 8080 -> 0", "listen 203.0.113.7 tcp 80 -> 0"],
        ),
        (
            "a range",
            &[("listen", "\"203.0.113.7:1000-1010\""), ("protocol", "\"udp\""), ("to", "\"10.8.0.2\"")],
            &[
                "listen 203.0.113.7 udp 1008/15 -> 0",
                "listen 203.0.113.7 udp 1010/16 -> 0",
                "listen 203.0.113.7 udp 1000/13 -> 0",
            ],
        ),
        (
            "a shifted range, stateless",
            &[
                ("listen", "\"203.0.113.7:1000-1001\""),
                ("protocol", "\"udp\""),
                ("to", "\"10.8.0.2:2001-2002\""),
                preserve,
            ],
            &[
                "listen 203.0.113.7 udp 1000/15 -> 0",
                "backend 10.8.0.2 udp 2001/16 -> 0",
                "backend 10.8.0.2 udp 2002/16 -> 0",
            ],
        ),
        (
            "a whole address, stateless",
            &[("listen", "\"198.51.100.1\""), ("to", "\"10.8.0.2\""), preserve],
            &["listen 198.51.100.1 everything -> 0", "backend 10.8.0.2 everything -> 0"],
        ),
        (
            "a prefix",
            &[("listen", "\"198.51.100.0/24\""), ("to", "\"10.8.0.0/24\"")],
            &["listen 198.51.100.0/24 -> 0", "backend 10.8.0.0/24 -> 0"],
        ),
        (
            "an IPv6 prefix",
            &[("listen", "\"2001:db8:7::/48\""), ("to", "\"fd08::/48\""), preserve],
            &["listen 2001:db8:7::/48 -> 0", "backend fd08::/48 -> 0"],
        ),
        (
            "named protocols of a whole address",
            &[("listen", "\"198.51.100.1\""), ("to", "\"10.8.0.2\""), ("protocol", "[\"icmp\", \"tcp\", \"gre\"]")],
            &[
                "listen 198.51.100.1 icmp 0 -> 0",
                "listen 198.51.100.1 tcp all -> 0",
                "listen 198.51.100.1 gre all -> 0",
            ],
        ),
        (
            "ICMP over IPv6",
            &[("listen", "\"2001:db8::8\""), ("to", "\"2001:db8:1::2\""), ("protocol", "\"icmp\""), preserve],
            &["listen 2001:db8::8 icmpv6 0 -> 0", "backend 2001:db8:1::2 icmpv6 0 -> 0"],
        ),
        (
            "an interface",
            &[("listen", "\"eth0:80\""), ("protocol", "\"tcp\"")],
            &["listen 203.0.113.7 tcp 80 -> 0", "listen 203.0.113.8 tcp 80 -> 1"],
        ),
        (
            "an interface over IPv6: not its link-local address",
            &[("listen", "\"eth0:80\""), ("protocol", "\"tcp\""), ("to", "\"[2001:db8:1::2]:80\"")],
            &["listen 2001:db8::7 tcp 80 -> 0"],
        ),
    ];
    for (about, lines, expected) in table {
        let (found, mut wanted) = (keys(&rule(lines)), expected.to_vec());
        let mut found: Vec<&str> = found.iter().map(String::as_str).collect();
        found.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{about}");
    }
}

#[test]
fn a_port_goes_before_a_range_before_a_whole_address_and_a_protocol_before_all() {
    let to = |name: &str, listen: &str, to: &str, protocol: &str| {
        rule(&[("name", name), ("listen", listen), ("to", to), ("protocol", protocol)])
    };
    let text = rule(&[("listen", "\"198.51.100.1\""), ("to", "\"10.8.0.1:1\"")]).replace("10.8.0.1:1", "10.8.0.9")
        + &to("\"tcp\"", "\"198.51.100.1\"", "\"10.8.0.2\"", "\"tcp\"")
        + &to("\"range\"", "\"198.51.100.1:80-90\"", "\"10.8.0.3\"", "\"tcp\"")
        + &to("\"port\"", "\"198.51.100.1:85\"", "\"10.8.0.4\"", "\"tcp\"");
    let keys = keys(&text);
    assert!(keys.contains(&"listen 198.51.100.1 everything -> 0".to_owned()), "{keys:?}");
    assert!(keys.contains(&"listen 198.51.100.1 tcp all -> 1".to_owned()), "{keys:?}");
    assert!(keys.contains(&"listen 198.51.100.1 tcp 80/13 -> 2".to_owned()), "{keys:?}");
    assert!(keys.contains(&"listen 198.51.100.1 tcp 85 -> 3".to_owned()), "{keys:?}");
}

#[test]
fn a_rules_body() {
    let masquerade =
        &compiled(&rule(&[("allow", "[\"198.51.100.7/24\", \"192.0.2.1\", \"192.0.2.1/32\"]")])).v4.rules[0];
    assert_eq!(&*masquerade.name, "web");
    let body = masquerade.body;
    assert_eq!((body.listen, body.to, body.source), (v4("203.0.113.7"), v4("10.8.0.2"), v4("10.8.0.1")));
    assert_eq!(body.to_delta, Delta::address(body.listen, body.to).0);
    assert_eq!(body.port_shift, 8000);
    assert_eq!(body.flags, rule_flags::REWRITE_SOURCE | rule_flags::ALLOW);
    assert_eq!((body.counter, body.allow), (0, 0));
    let mut allowed = [(v4("198.51.100.0"), 24), (v4("192.0.2.1"), 32)];
    allowed.sort_unstable();
    assert_eq!(masquerade.allow.as_deref(), Some(&allowed[..]));

    let fixed = compiled(&rule(&[("source", "\"203.0.113.8\""), ("to", "\"10.8.0.2:79\"")])).v4.rules[0].body;
    assert_eq!((fixed.source, fixed.port_shift), (v4("203.0.113.8"), u16::MAX));
    assert_eq!(fixed.flags, rule_flags::REWRITE_SOURCE);

    let whole = rule(&[("listen", "\"198.51.100.1\""), ("to", "\"10.8.0.2\""), ("source", "\"preserve\"")]);
    let whole = compiled(&whole).v4.rules[0].body;
    assert_eq!((whole.source, whole.mask, whole.port_shift), (v4("10.8.0.1"), v4("255.255.255.0"), 0));
    assert_eq!(whole.flags, rule_flags::STATELESS | rule_flags::SPARES_SOCKETS | rule_flags::HAIRPIN);

    let six = compiled(&rule(&[("listen", "\"[2001:db8::7]:80\""), ("to", "\"[2001:db8:1::2]:80\"")]));
    assert!(six.v4.rules.is_empty());
    let body = six.v6.rules[0].body;
    assert_eq!(body.source, <V6 as Family>::of("2001:db8::7".parse().unwrap()).unwrap());
    assert_eq!(body.listen.ip().to_string(), "2001:db8::7");
}

#[test]
fn the_body_of_a_one_to_one_rule() {
    let prefix = |listen: &str, to: &str| rule(&[("listen", &format!("{listen:?}")), ("to", &format!("{to:?}"))]);
    let four = compiled(&prefix("198.51.100.0/24", "10.1.0.0/24")).v4.rules[0].body;
    assert_eq!((four.listen, four.to, four.mask), (v4("198.51.100.0"), v4("10.1.0.0"), v4("255.255.255.0")));
    assert_eq!((four.source, four.to_delta), (0, Delta::address(four.listen, four.to).0));
    assert_eq!(four.flags, rule_flags::STATELESS | rule_flags::PREFIX);
    let six = compiled(&prefix("2001:db8:7::/48", "fd08::/48")).v6.rules[0].body;
    assert_eq!(
        [six.listen, six.to, six.mask].map(|a| a.ip().to_string()),
        ["2001:db8:7::", "fd08::", "ffff:ffff:ffff::"]
    );
    // What belongs to the machine's own connections is spared where it has an address in the prefix, unless that is mapped
    // onto another of its own: such packets stay here anyway.
    let text = prefix("203.0.113.0/28", "10.8.0.0/28");
    for (more, spares) in [(&[][..], true), (&["10.8.0.7/24"], true), (&["10.8.0.7/24", "10.8.0.8/24"], false)] {
        let (config, _) = read(&text).unwrap();
        let mut machine = machine();
        machine.interfaces[2].addresses.extend(more.iter().map(|net| net.parse::<ipnet::IpNet>().unwrap()));
        let body = compile(&config, &machine).unwrap().v4.rules[0].body;
        assert_eq!(body.flags & rule_flags::SPARES_SOCKETS != 0, spares, "{more:?}");
    }
}

#[test]
fn a_rule_onto_a_host_of_a_one_to_one_rule_keeps_flows() {
    let net = rule(&[("name", "\"net\""), ("listen", "\"198.51.100.0/24\""), ("to", "\"10.8.0.0/24\"")]);
    let text = net
        + &rule(&[("source", "\"preserve\"")])
        + &rule(&[
            ("name", "\"far\""),
            ("listen", "\"203.0.113.7:81\""),
            ("to", "\"10.9.0.2\""),
            ("source", "\"preserve\""),
        ]);
    let stateless: Vec<_> = compiled(&text).rules.into_iter().map(|rule| rule.stateless).collect();
    let why = "replies of 10.8.0.2 are ambiguous: rule \"net\" maps 10.8.0.0/24 one to one";
    assert_eq!(stateless, [Ok(()), Err(why.to_owned()), Ok(())]);
}

#[test]
fn clients_of_the_backends_network_are_hidden_where_it_sees_clients() {
    // source, backend; the clients it does not see, and what it sees instead
    let table = [
        ("preserve", "10.8.0.2:80", Some(("10.8.0.0/24", "10.8.0.1"))),
        ("preserve", "203.0.113.129:80", Some(("203.0.113.0/24", "10.8.0.1"))),
        // Behind a router: only the backend itself.
        ("preserve", "10.9.0.2:80", Some(("10.9.0.2/32", "10.8.0.1"))),
        ("preserve", "[2001:db8::9]:80", Some(("2001:db8::/64", "2001:db8::7"))),
        ("preserve", "[2001:db8:1::2]:80", Some(("2001:db8:1::2/128", "2001:db8::7"))),
        // No route there.
        ("preserve", "10.99.0.1:80", None),
        // It sees none of the clients anyway.
        ("masquerade", "10.8.0.2:80", None),
        ("203.0.113.8", "10.8.0.2:80", None),
    ];
    for (source, to, expected) in table {
        let v6 = to.starts_with('[');
        let (source, to) = (format!("{source:?}"), format!("{to:?}"));
        let listen = if v6 { "\"[2001:db8::7]:80\"" } else { "\"203.0.113.7:80\"" };
        for more in [&[][..], &[("stateless", "false")]] {
            let text = rule(&[&[("source", &*source), ("to", &*to), ("listen", listen)], more].concat());
            let compiled = compiled(&text);
            let expected = expected.map(|(clients, source)| Hairpin {
                clients: clients.parse().unwrap(),
                source: source.parse().unwrap(),
            });
            assert_eq!(compiled.rules[0].hairpin, expected, "{text}");
            let (flags, mask, source) = if v6 {
                let body = compiled.v6.rules[0].body;
                (body.flags, body.mask.ip(), body.source.ip())
            } else {
                let body = compiled.v4.rules[0].body;
                (body.flags, body.mask.ip(), body.source.ip())
            };
            assert_eq!(flags & rule_flags::HAIRPIN != 0, expected.is_some(), "{text}");
            if let Some(hairpin) = expected {
                assert_eq!((mask, source), (hairpin.clients.netmask(), hairpin.source), "{text}");
            } else {
                assert!(mask.is_unspecified(), "{text}");
            }
        }
    }
}

/// Fragments without ports are only known by where they go to and come from.
#[test]
fn the_addresses_whose_fragments_wait() {
    let addresses = |text: &str| -> Vec<String> {
        let compiled = compiled(text);
        let keys = compiled.v4.ranges.keys().filter(|key| key.side == Side::Fragment as u32);
        keys.inspect(|key| assert_eq!((key.prefix_len, key.protocol, key.port), (64, 0, 0)))
            .map(|key| key.address.ip().to_string())
            .collect()
    };
    let backend_far_away = ("to", "\"10.99.0.1\"");
    let table: [(&[(&str, &str)], &[&str]); 4] = [
        // The listen, and what replies go to.
        (&[], &["10.8.0.1", "203.0.113.7"]),
        (&[("source", "\"10.8.0.1\"")], &["10.8.0.1", "203.0.113.7"]),
        // The listen, and where replies come from; hosts beside the backend are masqueraded.
        (&[("source", "\"preserve\"")], &["10.8.0.1", "10.8.0.2", "203.0.113.7"]),
        (&[("source", "\"preserve\""), backend_far_away], &["10.99.0.1", "203.0.113.7"]),
    ];
    for (changes, expected) in table {
        let mut expected: Vec<_> = expected.iter().map(|address| (*address).to_owned()).collect();
        let mut found = addresses(&rule(changes));
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{changes:?}");
    }
}

#[test]
fn segment_sizes_by_the_file_and_by_the_rule() {
    use forwarder_common::mss::{BY_MTU, UNCHANGED};
    let table = [
        ("", None, BY_MTU, "by MTU"),
        ("mss_clamp = true\n", None, BY_MTU, "by MTU"),
        ("mss_clamp = false\n", None, UNCHANGED, "unchanged"),
        ("mss_clamp = 1380\n", None, 1380, "at most 1380, by MTU"),
        ("", Some("false"), UNCHANGED, "unchanged"),
        ("mss_clamp = false\n", Some("true"), BY_MTU, "by MTU"),
        ("mss_clamp = 1380\n", Some("88"), 88, "at most 88, by MTU"),
        ("mss_clamp = 1380\n", Some("0xffd7"), 65_495, "at most 65495, by MTU"),
    ];
    for (file, of_rule, expected, words) in table {
        let lines: Vec<_> = of_rule.map(|value| ("mss_clamp", value)).into_iter().collect();
        let text = file.to_owned() + &rule(&lines);
        let (config, compiled) = read(&text).unwrap();
        assert_eq!(compiled.v4.rules[0].body.mss, expected, "{text}");
        assert_eq!(config.mss_clamp(&config.forwards[0]).to_string(), words);
        let stored: Config = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(stored.mss_clamp(&stored.forwards[0]), config.mss_clamp(&config.forwards[0]));
    }
}

#[test]
fn the_range_key_of_a_block_matches_what_packets_look_up() {
    let text = rule(&[("listen", "\"203.0.113.7:1024-2047\""), ("to", "\"10.8.0.2\""), ("protocol", "\"tcp\"")]);
    let compiled = compiled(&text);
    let packet = Endpoint { address: v4("203.0.113.7"), port: 1500u16.to_be(), protocol: 6, side: Side::Listen as u8 };
    let exact = RangeKey::exact(packet);
    let key = compiled.v4.ranges.keys().find(|key| key.side == exact.side).unwrap();
    assert_eq!(key.prefix_len, exact.prefix_len - 10);
    assert_eq!((key.side, key.address, key.protocol), (exact.side, exact.address, exact.protocol));
    assert_eq!(u16::from_be(key.port), 1024);
}

#[test]
fn flags_say_what_has_to_be_looked_up() {
    use setting_flags::{FLOWS, HAIRPIN, RANGES_V4, RANGES_V6, ROUTE_BY_SOURCE, STATELESS};
    let range = |source, listen, to| rule(&[("listen", listen), ("to", to), ("source", source)]);
    let table = [
        (String::new(), 0),
        (rule(&[]), FLOWS),
        (rule(&[("source", "\"preserve\"")]), STATELESS | HAIRPIN),
        (rule(&[("source", "\"preserve\""), ("to", "\"10.99.0.1\"")]), STATELESS),
        (range("\"preserve\"", "\"203.0.113.7:80-90\"", "\"10.8.0.2\""), STATELESS | HAIRPIN | RANGES_V4),
        (range("\"masquerade\"", "\"[2001:db8::7]:80-90\"", "\"2001:db8:1::2\""), FLOWS | RANGES_V6),
    ];
    for (text, expected) in table {
        assert_eq!(compiled(&text).settings.flags, expected, "{text}");
    }
    let (config, _) = read(&rule(&[])).unwrap();
    let machine = Machine { source_rules: true, ..routed(&config.backends()) };
    assert_eq!(compile(&config, &machine).unwrap().settings.flags, FLOWS | ROUTE_BY_SOURCE);
}

#[test]
fn source_ports_come_from_outside_the_range_of_local_sockets_first() {
    let (config, _) = read("").unwrap();
    let ports = |low, high| {
        let machine = Machine { local_port_range: (low, high), ..machine() };
        let ranges = compile(&config, &machine).unwrap().settings.ports;
        ranges.map(|PortRange { first, last }| (first, last))
    };
    let none = (1, 0);
    assert_eq!(ports(32_768, 60_999), [(1024, 32_767), (61_000, 65_535), (32_768, 60_999)]);
    assert_eq!(ports(1024, 20_000), [(20_001, 65_535), none, (1024, 20_000)]);
    assert_eq!(ports(1024, 65_535), [none, none, (1024, 65_535)]);
    assert_eq!(ports(1, 65_535), [none, none, (1, 65_535)]);
    assert_eq!(ports(40_000, 65_535), [(1024, 39_999), none, (40_000, 65_535)]);
}

#[test]
fn sizes_follow_the_limits_and_what_is_needed() {
    let sizes = compiled(&rule(&[])).sizes;
    let expected = Sizes {
        rules: 8193,
        endpoints: 32_768,
        ranges: 131_072,
        allow: 131_072,
        counters: 16_384,
        flows: 32_768,
        new_flows: 8_192,
    };
    assert_eq!(sizes, expected);
    let small = compiled(&format!("{}[limits]\nrules = 16\nflows = 1000\nnew_flows = 64\n", rule(&[]))).sizes;
    assert_eq!((small.rules, small.endpoints, small.flows, small.new_flows), (33, 128, 1000, 64));
    let many: Vec<String> = (1..=5000).map(|port| format!("203.0.113.7:{port}")).collect();
    let many = compiled(&rule(&[("listen", &format!("{many:?}")), ("to", "\"10.8.0.2\"")])).sizes;
    assert_eq!((many.rules, many.endpoints), (2 * 8192 + 1, 8 * 8192));
}
