//! Lines that are not a plain Ethernet cable: without link header (tun, as WireGuard and PPP are), tap, a bridge, jumbo
//! frames; in every direction, by TC.

use std::net::SocketAddr;

use forwarder_lab::{
    Family, Host, Lab, LinkOptions, Offloads, Ping, Shape, TcpServer, Topology, Transfer, Tun, TunKind, TunPump,
    UdpEcho, UdpSocketIn,
};

use crate::config::{rule, source};
use crate::forwarder::Forwarder;
use crate::setting::{Setting, family_name};

const SIZE: u64 = 2_000_000;
const PORTS: [(&str, u16); 2] = [("preserve", 80), ("masquerade", 81)];

/// What joins the forwarder with one of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A veth pair with the kernel's default offloads and this MTU.
    Ethernet(u16),
    Tun,
    Tap,
    /// A veth pair whose end at the forwarder is the port of a bridge, which has the addresses.
    Bridge,
}

/// A network whose lines are of these kinds; the cables of tun and tap devices last as long as the second value.
pub(crate) fn network(name: &str, client_line: Line, home_line: Line) -> (Topology, Vec<TunPump>) {
    let lab = Lab::new(name).unwrap();
    let (client, forwarder, home) =
        (lab.host("client").unwrap(), lab.host("forwarder").unwrap(), lab.host("home").unwrap());
    let mut cables = vec![];
    for (host, line, interface) in [(&client, client_line, "eth0"), (&home, home_line, "eth1")] {
        cables.extend(join(&lab, host, &forwarder, interface, line));
    }
    for (host, interface, addresses) in [
        (&client, "eth0", ["198.51.100.2/24", "2001:db8:1::2/64"]),
        (&forwarder, "eth0", ["198.51.100.1/24", "2001:db8:1::1/64"]),
        (&forwarder, "eth1", ["10.8.0.1/24", "fd08::1/64"]),
        (&home, "eth0", ["10.8.0.2/24", "fd08::2/64"]),
    ] {
        for address in addresses {
            host.address(interface, address).unwrap();
        }
    }
    for (host, gateways) in [(&client, ["198.51.100.1", "2001:db8:1::1"]), (&home, ["10.8.0.1", "fd08::1"])] {
        for gateway in gateways {
            host.route("default", &format!("via {gateway}")).unwrap();
        }
    }
    (Topology { client, forwarder, home, router: None, shape: Shape::TwoArmed, lab }, cables)
}

/// Joins `eth0` of `host` with `interface` of the forwarder.
fn join(lab: &Lab, host: &Host, forwarder: &Host, interface: &str, line: Line) -> Option<TunPump> {
    let cable = |kind| {
        let here = Tun::create(host, "eth0", kind).unwrap();
        TunPump::between(here, Tun::create(forwarder, interface, kind).unwrap()).unwrap()
    };
    match line {
        Line::Tun => return Some(cable(TunKind::Tun)),
        Line::Tap => return Some(cable(TunKind::Tap)),
        Line::Ethernet(mtu) => {
            let options = LinkOptions { mtu: Some(mtu), offloads: Offloads::Default };
            lab.link(host, "eth0", forwarder, interface, options).unwrap();
        }
        Line::Bridge => {
            let port = format!("{interface}-port");
            lab.link(host, "eth0", forwarder, &port, LinkOptions::default()).unwrap();
            forwarder.ip(&format!("link add {interface} type bridge")).unwrap();
            forwarder.ip(&format!("link set {port} master {interface}")).unwrap();
            forwarder.ip(&format!("link set {interface} up")).unwrap();
        }
    }
    None
}

/// Everything that crosses such a network: TCP both ways with its sums, UDP, ping, preserved and masqueraded.
fn forwards(name: &str, client_line: Line, home_line: Line) {
    let (net, _cables) = network(name, client_line, home_line);
    let forwarder = Forwarder::on(&net);
    let mut config = String::new();
    for family in Family::ALL {
        let (family_name, public) = (family_name(family), net.public_address(family));
        for (kind, port) in PORTS {
            let (listen, to) = (SocketAddr::new(public, port), net.backend(family, 8000 + port));
            config += &rule(&format!("{kind}-{family_name}"), listen, to, &source(kind));
        }
        config += &rule(&format!("ping-{family_name}"), public, net.home_address(family), "protocol = \"icmp\"");
    }
    forwarder.load(Setting::TC_TWO_ARMED, &config);
    for family in Family::ALL {
        for (kind, port) in PORTS {
            let what = format!("{client_line:?} to {home_line:?}, {kind}, {family:?}");
            let seen = if kind == "preserve" { net.client_address(family) } else { net.inner_address(family) };
            let (target, to) = (net.public(family, port), net.backend(family, 8000 + port));

            let _server = TcpServer::start(&net.home, to).unwrap();
            let moved = Transfer::to(target).upload(SIZE).download(SIZE).run(&net.client);
            let moved = moved.unwrap_or_else(|error| panic!("{what}: {error:#}\n{:#?}", forwarder.stats()));
            assert_eq!(moved.seen_as.ip(), seen, "{what}");

            let echo = UdpEcho::start(&net.home, to).unwrap();
            let socket = UdpSocketIn::connect(&net.client, target, None).unwrap();
            for size in [0, 1, 1400] {
                let answered = socket.exchange(&vec![7; size]);
                answered.unwrap_or_else(|error| panic!("{what}, {size}: {error:#}\n{:#?}", forwarder.stats()));
            }
            assert_eq!(echo.peers()[0].ip(), seen, "{what}");
        }
        let pinged = Ping::to(net.public_address(family)).identifier(7).count(3).payload(56).run(&net.client);
        pinged.unwrap_or_else(|error| panic!("{family:?}: {error:#}\n{:#?}", forwarder.stats()));
    }
    let stats = forwarder.stats();
    assert!(stats.drops().is_empty(), "{:?}", stats.drops());
    assert!(stats.forwarded().1 > 0);
}

#[test]
fn from_a_line_without_link_header() {
    forwards("l3l2", Line::Tun, Line::Ethernet(1500));
}

#[test]
fn to_a_line_without_link_header() {
    forwards("l2l3", Line::Ethernet(1500), Line::Tun);
}

#[test]
fn between_lines_without_link_header() {
    forwards("l3l3", Line::Tun, Line::Tun);
}

#[test]
fn tap_devices() {
    forwards("tap", Line::Tap, Line::Tap);
}

#[test]
fn bridges() {
    forwards("bridge", Line::Bridge, Line::Bridge);
}

#[test]
fn jumbo_frames() {
    forwards("jumbo", Line::Ethernet(9000), Line::Ethernet(9000));
}
