//! One to one: a prefix of ours onto a prefix behind, in both directions, for every protocol.
//!
//! The hosts behind are addresses of home: .20 and .21 of 10.8.0.0/24, and two in fd08::/48 and its subnet 7. Theirs, for
//! the world, are in 192.0.2.0/24 and 2001:db8:9::/48, which the client's host routes to the forwarder.

use std::net::{IpAddr, SocketAddr};

use forwarder_lab::etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder, PacketBuilderStep,
};
use forwarder_lab::{EchoStream, Family, Frame, Host, Ping, TcpServer, Topology, Transfer, UdpEcho, UdpSocketIn};

use crate::config::{rule, source as source_key};
use crate::forwarder::Forwarder;
use crate::setting::{Setting, Source, family_name, public_address};

in_every_setting!(
    from_outside,
    from_inside,
    between_hosts_behind,
    protocols_without_ports,
    protocols_of_a_whole_address,
    more_specific_rules
);

/// What hosts behind have, and what the world knows them by (IPv6: worked out by hand after RFC 6296 section 3.6, and
/// as netfilter's SNPT has it).
const HOSTS: [(&str, &str); 4] = [
    ("192.0.2.20", "10.8.0.20"),
    ("192.0.2.21", "10.8.0.21"),
    ("2001:db8:9:cf46::20", "fd08::20"),
    ("2001:db8:9:cf4d::21", "fd08:0:0:7::21"),
];
const PREFIXES: [(&str, &str); 2] = [("192.0.2.0/24", "10.8.0.0/24"), ("2001:db8:9::/48", "fd08::/48")];

pub(crate) struct Net {
    pub(crate) net: Topology,
    pub(crate) forwarder: Forwarder,
}

/// (outer, inner) of the two hosts of a family.
pub(crate) fn hosts(family: Family) -> [(IpAddr, IpAddr); 2] {
    let at = |index: usize| (HOSTS[index].0.parse().unwrap(), HOSTS[index].1.parse().unwrap());
    if family == Family::V4 { [at(0), at(1)] } else { [at(2), at(3)] }
}

pub(crate) fn start(name: &str, setting: Setting, more: &str) -> Net {
    let net = setting.network(name);
    for (outer, inner) in PREFIXES {
        let v6 = inner.contains(':');
        let via = net.public_address(if v6 { Family::V6 } else { Family::V4 });
        // Who forwards to the world: the client itself, or the router.
        let outside = net.router.as_ref().unwrap_or(&net.client);
        outside.route(outer, &format!("via {via}")).unwrap();
    }
    for (_, inner) in HOSTS {
        let length = if inner.contains(':') { 64 } else { 24 };
        net.home.further_address("eth0", &format!("{inner}/{length}")).unwrap();
    }
    // Subnet 7 is behind home.
    let v6 = net.home_address(Family::V6);
    net.router.as_ref().unwrap_or(&net.forwarder).route("fd08:0:0:7::/64", &format!("via {v6}")).unwrap();
    if net.router.is_some() {
        net.forwarder.route("fd08:0:0:7::/64", "via 2001:db8:3::1").unwrap();
    }
    let config: String = PREFIXES
        .iter()
        .map(|(outer, inner)| rule(if inner.contains(':') { "net6" } else { "net4" }, outer, inner, ""))
        .collect();
    let forwarder = Forwarder::on(&net);
    forwarder.load(setting, &(config + more));
    Net { net, forwarder }
}

impl Net {
    fn finish(&self) {
        let stats = self.forwarder.stats();
        assert!(stats.drops().is_empty(), "{stats:?}");
    }
}

/// TCP, UDP and echoes from the world reach each host, which sees the client.
fn from_outside(setting: Setting) {
    let test = start("prefixes", setting, "");
    let list = test.forwarder.list();
    assert!(list.is_stateless("net4") && list.is_stateless("net6"));
    let checked = test.forwarder.succeed(&["check", test.forwarder.config.to_str().unwrap()]);
    assert!(checked.contains("192.0.2.0/24") && checked.contains("fd08::/48"), "{checked}");
    let net = &test.net;
    for family in Family::ALL {
        for (outer, inner) in hosts(family) {
            let server = TcpServer::start(&net.home, (inner, 80).into()).unwrap();
            let moved = Transfer::to((outer, 80).into()).upload(1_000_000).download(1_000_000).run(&net.client);
            let moved = moved.unwrap_or_else(|error| panic!("{outer}: {error:#}\n{:#?}", test.forwarder.stats()));
            assert_eq!(server.peers(), [moved.local], "{outer}");
            let echo = UdpEcho::start(&net.home, (inner, 53).into()).unwrap();
            let socket = UdpSocketIn::connect(&net.client, (outer, 53).into(), None).unwrap();
            for size in [0, 1, 17, 1000] {
                socket.exchange(&vec![7; size]).unwrap_or_else(|error| panic!("{outer}: {error:#}"));
            }
            assert_eq!(echo.peers()[0].ip(), net.client_address(family));
            Ping::to(outer).count(3).run(&net.client).unwrap_or_else(|error| panic!("{outer}: {error:#}"));
        }
    }
    assert_eq!(test.forwarder.flow_count(), 0);
    test.finish();
}

/// What the hosts themselves begin leaves with their outer addresses.
fn from_inside(setting: Setting) {
    let test = start("prefixout", setting, "");
    let net = &test.net;
    for family in Family::ALL {
        let client = net.client_address(family);
        for (outer, inner) in hosts(family) {
            let server = TcpServer::start(&net.client, (client, 80).into()).unwrap();
            let from = SocketAddr::new(inner, 4000);
            let moved = Transfer::to(server.address()).from(from).upload(100_000).download(100_000).run(&net.home);
            moved.unwrap_or_else(|error| panic!("{inner}: {error:#}\n{:#?}", test.forwarder.stats()));
            assert_eq!(server.peers(), [SocketAddr::new(outer, 4000)]);
            let echo = UdpEcho::start(&net.client, (client, 53).into()).unwrap();
            let socket = UdpSocketIn::connect(&net.home, echo.address(), Some(SocketAddr::new(inner, 4001))).unwrap();
            socket.exchange(b"question").unwrap();
            assert_eq!(echo.peers(), [SocketAddr::new(outer, 4001)]);
        }
    }
    assert_eq!(test.forwarder.flow_count(), 0);
    test.finish();
}

/// A host behind reaches another, and itself, by the outer address, and is seen with its own outer address.
fn between_hosts_behind(setting: Setting) {
    let test = start("prefixpin", setting, "");
    let net = &test.net;
    for family in Family::ALL {
        let [(outer, inner), (other_outer, other_inner)] = hosts(family);
        for (to, at) in [(other_outer, other_inner), (outer, inner)] {
            let server = TcpServer::start(&net.home, (at, 80).into()).unwrap();
            let mut stream = EchoStream::connect(&net.home, (to, 80).into(), Some(SocketAddr::new(inner, 4000)))
                .unwrap_or_else(|error| panic!("{to}: {error:#}\n{:#?}", test.forwarder.stats()));
            stream.exchange(b"neighbour").unwrap();
            assert_eq!(server.wait_for_peers(1).unwrap(), [SocketAddr::new(outer, 4000)]);
            stream.reset().unwrap();
        }
    }
    test.finish();
}

/// An IP packet that carries these bytes under a protocol number.
fn packet(protocol: u8, src: IpAddr, dst: IpAddr) -> PacketBuilderStep<IpHeaders> {
    let step = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = Ipv4Header::new(0, 64, IpNumber(protocol), src.octets(), dst.octets()).unwrap();
            step.ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => step.ip(IpHeaders::Ipv6(
            Ipv6Header {
                hop_limit: 64,
                source: src.octets(),
                destination: dst.octets(),
                next_header: IpNumber(protocol),
                ..Ipv6Header::default()
            },
            Ipv6Extensions::default(),
        )),
        _ => panic!("one family"),
    }
}

/// Sends a bare packet from `sender` and waits for it to arrive at `receiver` between other addresses.
fn crosses(
    about: &str,
    (sender, gateway): (&Host, &str),
    receiver: &Host,
    protocol: u8,
    (src, dst): (IpAddr, IpAddr),
    becomes: (IpAddr, IpAddr),
) {
    // For SCTP that begins with its ports, the same in both directions.
    let payload = [&[0x13, 0x88, 0x13, 0x88][..], format!("{about} {protocol} {src}").as_bytes()].concat();
    let mut frame = Vec::new();
    packet(protocol, src, dst).write(&mut frame, IpNumber(protocol), &payload).unwrap();
    let mac = |text: &str| text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect::<Vec<_>>();
    frame[..6].copy_from_slice(&mac(gateway));
    frame[6..12].copy_from_slice(&mac(&sender.mac("eth0").unwrap()));
    let capture = receiver.capture("eth0").unwrap();
    sender.send_frame("eth0", &frame).unwrap();
    let arrived = capture.wait_for(|frame: &Frame| frame.contains(&payload));
    let arrived = arrived.unwrap_or_else(|error| panic!("{about}: protocol {protocol} {src} to {dst}: {error:#}"));
    assert_eq!(arrived.addresses(), Some(becomes), "{about}: protocol {protocol}");
}

/// GRE, ESP, SCTP and a protocol that nobody knows, in both directions.
fn protocols_without_ports(setting: Setting) {
    let test = start("prefixgre", setting, "");
    for family in Family::ALL {
        every_protocol(&test.net, family, &hosts(family));
    }
    assert_eq!(test.forwarder.flow_count(), 0);
    test.finish();
}

/// The same under a rule for a whole address, without flows; with flows, the client begins.
fn protocols_of_a_whole_address(setting: Setting) {
    let net = setting.network("whole");
    let mut config = String::new();
    let pairs = |family| {
        [Source::Preserve, Source::Fixed].map(|source| (public_address(&net, source, family), net.home_address(family)))
    };
    for family in Family::ALL {
        let [(stateless, home), _] = pairs(family);
        config += &rule(&format!("whole-{}", family_name(family)), stateless, home, &source_key("preserve"));
    }
    let forwarder = Forwarder::on(&net);
    forwarder.load(setting, &config);
    for family in Family::ALL {
        every_protocol(&net, family, &pairs(family)[..1]);
    }
    assert_eq!(forwarder.flow_count(), 0);
    let flows: String = config.replace("\n\n", "\nstateless = false\n\n");
    forwarder.configure(&flows);
    forwarder.succeed(&["reload"]);
    for family in Family::ALL {
        every_protocol(&net, family, &pairs(family)[..1]);
    }
    // One for each of the four protocols and the echo.
    assert_eq!(forwarder.flow_count(), 10);
    assert!(forwarder.stats().drops().is_empty());
}

/// From the client to each outer address, and from its inner one to the client.
fn every_protocol(net: &Topology, family: Family, pairs: &[(IpAddr, IpAddr)]) {
    let (to_client, to_home) = match &net.router {
        Some(router) => (router.mac("client").unwrap(), router.mac("home").unwrap()),
        None => (net.forwarder.mac("eth0").unwrap(), net.forwarder.mac("eth1").unwrap()),
    };
    let client = net.client_address(family);
    for &(outer, inner) in pairs {
        // The frames are not answered, so nobody would have asked for the neighbours yet.
        Ping::to(outer).run(&net.client).unwrap();
        for protocol in [47, 50, 132, 253] {
            let about = format!("{outer}");
            crosses(&about, (&net.client, &to_client), &net.home, protocol, (client, outer), (client, inner));
            crosses(&about, (&net.home, &to_home), &net.client, protocol, (inner, client), (outer, client));
        }
    }
}

/// A port of one outer address goes elsewhere, and a port of ours to a host behind; everything else one to one.
fn more_specific_rules(setting: Setting) {
    let mut more = String::new();
    let probe = setting.network("probe");
    for family in Family::ALL {
        let [(outer, inner), (_, other)] = hosts(family);
        let name = |what: &str| format!("{what}-{}", family_name(family));
        more +=
            &rule(&name("port"), SocketAddr::new(outer, 81), SocketAddr::new(other, 8081), &source_key("masquerade"));
        let ours = SocketAddr::new(public_address(&probe, Source::Preserve, family), 80);
        more += &rule(&name("ours"), ours, SocketAddr::new(inner, 80), &source_key("preserve"));
    }
    let publics = Family::ALL.map(|family| public_address(&probe, Source::Preserve, family));
    drop(probe);
    let test = start("prefixmore", setting, &more);
    let net = &test.net;
    let list = test.forwarder.list();
    for family in Family::ALL {
        assert!(!list.is_stateless(&format!("ours-{}", family_name(family))));
        let [(outer, inner), (_, other)] = hosts(family);
        let public = publics[usize::from(family == Family::V6)];
        for (target, port, at) in [
            (SocketAddr::new(outer, 80), 80, inner),
            (SocketAddr::new(outer, 81), 8081, other),
            (SocketAddr::new(public, 80), 80, inner),
            (SocketAddr::new(outer, 80), 80, inner),
        ] {
            let server = TcpServer::start(&net.home, (at, port).into()).unwrap();
            let moved = Transfer::to(target).upload(50_000).download(50_000).run(&net.client);
            let moved = moved.unwrap_or_else(|error| panic!("{target}: {error:#}\n{:#?}", test.forwarder.stats()));
            let masqueraded = port == 8081;
            let seen = if masqueraded { net.inner_address(family) } else { net.client_address(family) };
            assert_eq!(moved.seen_as.ip(), seen, "{target}");
            assert_eq!(server.peers(), [moved.seen_as]);
        }
    }
    test.finish();
}
