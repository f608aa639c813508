//! Kinds of lines between the forwarder and the others, and what has to cross all of them.

use std::net::SocketAddr;

use forwarder_lab::{
    Family, Host, Lab, LinkOptions, Offloads, Ping, TcpServer, Topology, Transfer, Tun, TunKind, TunPump, UdpEcho,
    UdpSocketIn,
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
    /// A veth pair with tags of these protocols in its frames, the outer first: `802.1Q`, `802.1ad`.
    Vlan(&'static [&'static str]),
    /// Two veth pairs, bonded at both ends in this mode.
    Bond(&'static str),
    /// A VXLAN tunnel over a veth pair, with checksums: by them the kernel knows the sum of what is inside, and goes by that
    /// (`CHECKSUM_COMPLETE`).
    Vxlan,
}

/// The id of each VLAN of a line.
const VLAN: u16 = 100;

impl Line {
    /// The forwarder's interface that has the addresses, if the line's own is `interface`.
    pub(crate) fn served(self, interface: &'static str) -> &'static str {
        match (self, interface) {
            (Self::Vlan(_), "eth0") => "eth0.100",
            (Self::Vlan(_), _) => "eth1.100",
            _ => interface,
        }
    }
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
    let interfaces = [client_line.served("eth0"), home_line.served("eth1")];
    (Topology::joined(lab, [client, forwarder, home], interfaces).unwrap(), cables)
}

/// Joins `eth0` of `host` with `interface` of the forwarder.
fn join(lab: &Lab, host: &Host, forwarder: &Host, interface: &'static str, line: Line) -> Option<TunPump> {
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
        Line::Vlan(tags) => {
            lab.link(host, "wire", forwarder, interface, LinkOptions::default()).unwrap();
            tagged(host, "wire", "eth0", tags);
            tagged(forwarder, interface, line.served(interface), tags);
        }
        Line::Bond(mode) => {
            let ports = ["a", "b"].map(|port| (format!("port-{port}"), format!("{interface}-{port}")));
            for (here, there) in &ports {
                lab.link(host, here, forwarder, there, LinkOptions::default()).unwrap();
            }
            bond(host, "eth0", mode, ports.each_ref().map(|(here, _)| here.as_str()));
            bond(forwarder, interface, mode, ports.each_ref().map(|(_, there)| there.as_str()));
        }
        Line::Vxlan => {
            let below = format!("{interface}-below");
            lab.link(host, "below", forwarder, &below, LinkOptions::default()).unwrap();
            let network = if interface == "eth0" { "192.168.1" } else { "192.168.2" };
            for (here, parent, name, [local, remote]) in
                [(host, "below", "eth0", [2, 1]), (forwarder, below.as_str(), interface, [1, 2])]
            {
                // GRO would look at the checksums before, and then nobody needs the sum.
                here.features(parent, "tx off gro off").unwrap();
                here.address(parent, &format!("{network}.{local}/24")).unwrap();
                let ends = format!("local {network}.{local} remote {network}.{remote} dev {parent}");
                here.ip(&format!("link add {name} type vxlan id {VLAN} {ends} dstport 4789 udpcsum")).unwrap();
                here.ip(&format!("link set {name} up")).unwrap();
            }
        }
    }
    None
}

/// Makes `name`, whose frames go by `parent` with these tags.
pub(crate) fn tagged(host: &Host, parent: &str, name: &str, tags: &[&str]) {
    let mut below = parent.to_owned();
    for (depth, protocol) in tags.iter().enumerate() {
        let above = if depth + 1 == tags.len() { name.to_owned() } else { format!("{parent}.s{depth}") };
        host.ip(&format!("link add link {below} name {above} type vlan protocol {protocol} id {VLAN}")).unwrap();
        host.ip(&format!("link set {above} up")).unwrap();
        below = above;
    }
}

/// Makes a bond of these ports; of two that stand by for each other, the first is the better.
fn bond(host: &Host, name: &str, mode: &str, ports: [&str; 2]) {
    host.ip(&format!("link add {name} type bond mode {mode} miimon 100")).unwrap();
    for port in ports {
        host.ip(&format!("link set {port} down")).unwrap();
        host.ip(&format!("link set {port} master {name}")).unwrap();
    }
    if mode == "active-backup" {
        host.ip(&format!("link set {name} type bond primary {}", ports[0])).unwrap();
    }
    host.ip(&format!("link set {name} up")).unwrap();
}

/// Everything crosses a network of such lines, by TC.
pub(crate) fn forwards(name: &str, client_line: Line, home_line: Line) {
    let (net, _cables) = network(name, client_line, home_line);
    let served = [client_line.served("eth0"), home_line.served("eth1")];
    let forwarder = Forwarder::named(&net.lab, &net.forwarder, "pins").serving(&served);
    forwarder.load(Setting::TC_TWO_ARMED, &rules(&net));
    everything_crosses(&net, &forwarder, &format!("{client_line:?} to {home_line:?}"));
    assert!(forwarder.stats().forwarded().1 > 0);
}

/// Rules for [`everything_crosses`].
pub(crate) fn rules(net: &Topology) -> String {
    let mut config = String::new();
    for family in Family::ALL {
        let (family_name, public) = (family_name(family), net.public_address(family));
        for (kind, port) in PORTS {
            let (listen, to) = (SocketAddr::new(public, port), net.backend(family, 8000 + port));
            config += &rule(&format!("{kind}-{family_name}"), listen, to, &source(kind));
        }
        config += &rule(&format!("ping-{family_name}"), public, net.home_address(family), "protocol = \"icmp\"");
    }
    config
}

/// TCP both ways with its sums, UDP, ping, preserved and masqueraded; and nothing is dropped.
pub(crate) fn everything_crosses(net: &Topology, forwarder: &Forwarder, what: &str) {
    for family in Family::ALL {
        for (kind, port) in PORTS {
            let what = format!("{what}, {kind}, {family:?}");
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
        pinged.unwrap_or_else(|error| panic!("{what}, {family:?}: {error:#}\n{:#?}", forwarder.stats()));
    }
    let drops = forwarder.stats();
    assert!(drops.drops().is_empty(), "{what}: {:?}", drops.drops());
}
