//! Datagrams that do not fit one packet.

use std::net::SocketAddr;

use forwarder_lab::{Family, Ping, Topology, UdpEcho, UdpSocketIn, patience};

use crate::config::{rule, source};
use crate::forwarder::Forwarder;
use crate::setting::{Setting, Source, family_name, public_address};
use crate::snapshot::far_end;
use crate::test_packet::{Body, TestPacket, pieces};

in_every_setting!(large_datagrams, large_pings, reordered, own_datagrams, flood);

const PORT: u16 = 53;

/// One source mode and family.
fn cases() -> impl Iterator<Item = (Source, Family)> {
    Source::ALL.into_iter().flat_map(|source| Family::ALL.map(|family| (source, family)))
}

fn config(net: &Topology) -> String {
    let rules = |(kind, family): (Source, Family)| {
        let name = format!("{}-{}", kind.name(), family_name(family));
        let public = public_address(net, kind, family);
        let key = source(kind.key(net, family));
        let udp = rule(&name, SocketAddr::from((public, PORT)), net.backend(family, kind.home_port()), &key);
        let ping = format!("protocol = \"icmp\"\n{key}");
        udp + &rule(&format!("{name}-ping"), public, net.home_address(family), &ping)
    };
    cases().map(rules).collect()
}

fn start(name: &str, setting: Setting) -> (Topology, Forwarder) {
    let net = setting.network(name);
    let forwarder = Forwarder::on(&net);
    forwarder.load(setting, &config(&net));
    (net, forwarder)
}

/// Both ways, from what just does not fit one packet up to the largest there is.
fn large_datagrams(setting: Setting) {
    let (net, forwarder) = start("datagrams", setting);
    for (kind, family) in cases() {
        let echo = UdpEcho::start(&net.home, net.backend(family, kind.home_port())).unwrap();
        let target = SocketAddr::from((public_address(&net, kind, family), PORT));
        let socket = UdpSocketIn::connect(&net.client, target, None).unwrap();
        // The first packet of the flow is a fragment.
        let sizes = [1473, 1480, 2952, 4096, 9000, 65_507];
        for size in sizes {
            let datagram: Vec<u8> = (0..size).map(|n: u32| (n % 251) as u8).collect();
            let answered = socket.exchange(&datagram);
            answered.unwrap_or_else(|error| panic!("{kind:?} {family:?}, {size}: {error:#}\n{:#?}", forwarder.stats()));
        }
        let seen = kind.seen(&net, family, net.client_address(family));
        assert!(echo.peers().iter().all(|peer| peer.ip() == seen), "{kind:?} {family:?}: {:?}", echo.peers());
        let counted = forwarder.stats().rule(&format!("{}-{}", kind.name(), family_name(family)));
        let payload = if family == Family::V4 { 1480 } else { 1448 };
        let packets: u32 = sizes.iter().map(|size| (size + 8_u32).div_ceil(payload)).sum();
        let packets = u64::from(packets);
        assert_eq!((counted.forward.packets, counted.reply.packets), (packets, packets), "{kind:?} {family:?}");
        assert_eq!(counted.flows, u64::from(kind != Source::Preserve), "{kind:?} {family:?}");
    }
    finish(&forwarder);
}

/// `ping -s 4000`.
fn large_pings(setting: Setting) {
    let (net, forwarder) = start("pings", setting);
    for (kind, family) in cases() {
        let target = public_address(&net, kind, family);
        for size in [4000, 65_000] {
            let answered = Ping::to(target).count(3).payload(size).run(&net.client);
            answered.unwrap_or_else(|error| panic!("{kind:?} {family:?}, {size}: {error:#}\n{:#?}", forwarder.stats()));
        }
    }
    finish(&forwarder);
}

/// Puts the fragments of a datagram on the wire to the forwarder, in this order.
fn send(net: &Topology, packet: &TestPacket, identification: u32, order: impl Fn(&mut Vec<Vec<u8>>)) {
    let (sender, interface) = far_end(net);
    let size = if packet.src.is_ipv4() { 1480 } else { 1448 };
    let to = net.forwarder.mac("eth0").unwrap();
    let station: Vec<u8> = to.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let cut = pieces(packet.transport_length(), size);
    let mut frames: Vec<_> = cut.iter().map(|piece| packet.fragment(identification, piece)).collect();
    order(&mut frames);
    for mut frame in frames {
        frame[..6].copy_from_slice(&station);
        sender.send_frame(interface, &frame).unwrap();
    }
}

type Order = fn(&mut Vec<Vec<u8>>);
const ORDERS: [(&str, Order); 3] = [
    ("backwards", |frames| frames.reverse()),
    ("the first at the end", |frames| frames.rotate_left(1)),
    ("the odd ones first", |frames| {
        let even: Vec<_> = frames.iter().step_by(2).cloned().collect();
        *frames = frames.iter().skip(1).step_by(2).cloned().chain(even).collect();
    }),
];

fn datagram(from: SocketAddr, to: SocketAddr, length: usize) -> TestPacket {
    TestPacket::new(from, to, Body::Udp).with(|packet| packet.payload = (0..length).map(|n| (n % 251) as u8).collect())
}

/// Home receives what arrives in any order, also as the first packet of a flow, and the client its answer.
fn reordered(setting: Setting) {
    let (net, forwarder) = start("reordered", setting);
    for (kind, family) in cases() {
        let echo = UdpEcho::start(&net.home, net.backend(family, kind.home_port())).unwrap();
        let target = SocketAddr::from((public_address(&net, kind, family), PORT));
        let mut identification = 0;
        for (about, order) in ORDERS {
            for length in [3000, 65_000] {
                identification += 1;
                let from = SocketAddr::new(net.client_address(family), 4000 + identification);
                let client = UdpSocketIn::connect(&net.client, target, Some(from)).unwrap();
                let packet = datagram(from, target, length);
                send(&net, &packet, identification.into(), order);
                let answer = client.receive(patience()).unwrap();
                let stats = || forwarder.stats();
                assert!(
                    answer.as_ref() == Some(&packet.payload),
                    "{kind:?} {family:?} {about} {length}: {:#?}",
                    stats()
                );
            }
        }
        assert_eq!(echo.peers().len(), usize::from(identification), "{kind:?} {family:?}");
    }
    assert!(forwarder.stats().outcome("held_for_first") > 0);
    assert_eq!(forwarder.stats().outcome("held_to_follow"), 6 * 6);
    finish(&forwarder);
}

/// The machine itself receives datagrams on an address that rules use, in order or not.
fn own_datagrams(setting: Setting) {
    let (net, forwarder) = start("own", setting);
    for (kind, family) in cases() {
        let own = SocketAddr::from((public_address(&net, kind, family), PORT + 1));
        let _echo = UdpEcho::start(&net.forwarder, own).unwrap();
        let mut identification = 0;
        for (about, order) in ORDERS {
            for length in [3000, 65_000] {
                identification += 1;
                let from = SocketAddr::new(net.client_address(family), 4000 + identification);
                let client = UdpSocketIn::connect(&net.client, own, Some(from)).unwrap();
                client.exchange(&vec![7; length]).unwrap();
                let packet = datagram(from, own, length);
                send(&net, &packet, identification.into(), order);
                let answer = client.receive(patience()).unwrap();
                assert!(
                    answer.as_ref() == Some(&packet.payload),
                    "{family:?} {about} {length}: {:#?}",
                    forwarder.stats()
                );
            }
        }
    }
    assert_eq!(forwarder.stats().drops(), [].into());
    assert_eq!(forwarder.stats().forwarded(), (0, 0));
}

/// Fragments whose first never comes do not keep others from coming through, in order or not.
fn flood(setting: Setting) {
    const FLOOD: u32 = 400;
    let (net, forwarder) = start("flood", setting);
    for family in Family::ALL {
        let kind = Source::Masquerade;
        let _echo = UdpEcho::start(&net.home, net.backend(family, kind.home_port())).unwrap();
        let target = SocketAddr::from((public_address(&net, kind, family), PORT));
        let from = SocketAddr::new(net.client_address(family), 4000);
        let client = UdpSocketIn::connect(&net.client, target, Some(from)).unwrap();
        let packet = datagram(from, target, 4000);
        for identification in 1..FLOOD {
            let strangers = packet.with(|packet| packet.src.set_port(9));
            send(&net, &strangers, 1000 + identification, |frames| drop(frames.remove(0)));
            if identification % 100 == 0 {
                client.exchange(&packet.payload).unwrap();
                send(&net, &packet, identification, |frames| frames.reverse());
                assert!(
                    client.receive(patience()).unwrap().as_ref() == Some(&packet.payload),
                    "{:#?}",
                    forwarder.stats()
                );
            }
        }
    }
    let stats = forwarder.stats();
    assert!(stats.outcome("held_for_first") >= u64::from(4 * (FLOOD - 1)), "{stats:?}");
    finish(&forwarder);
}

/// Nothing was lost, and XDP left every fragment to TC.
fn finish(forwarder: &Forwarder) {
    let stats = forwarder.stats();
    assert_eq!(stats.drops(), [].into());
    let (xdp, tc) = stats.forwarded();
    assert!(xdp == 0 && tc > 0, "{stats:?}");
}
