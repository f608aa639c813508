//! Hosts of home's own network, and home itself, reach what forwarder publishes for it: in every source mode.
//!
//! ```text
//!                               ┌── home
//! client ── eth0 forwarder eth1 ┤
//!                               └── neighbour
//! ```

use std::net::{IpAddr, SocketAddr};

use forwarder_lab::{Family, Host, Lab, Offloads, Ping, Shape, TcpServer, Topology, Transfer, UdpEcho, UdpSocketIn};

use crate::config::{rule, source};
use crate::forwarder::Forwarder;
use crate::setting::{Mode, Setting, Source, family_name, fixed_source, public_address};

const PORT: u16 = 80;

#[test]
fn native() {
    every_mode(Setting::NATIVE_TWO_ARMED, &Source::ALL);
}

#[test]
fn tc() {
    every_mode(Setting::TC_TWO_ARMED, &Source::ALL);
}

/// No rule keeps flows for others than hairpin clients.
#[test]
fn native_stateless() {
    every_mode(Setting::NATIVE_TWO_ARMED, &[Source::Preserve]);
}

#[test]
fn tc_stateless() {
    every_mode(Setting::TC_TWO_ARMED, &[Source::Preserve]);
}

/// Home is behind a router: the machine knows no network that it is in, only itself.
#[test]
fn home_itself_behind_a_router() {
    for setting in [Setting::NATIVE_ONE_ARMED, Setting::TC_ONE_ARMED] {
        let net = setting.network("hairpin");
        let forwarder = load(&net, setting, &Source::ALL);
        reaches_everything(&net, &forwarder, &Source::ALL, &net.home);
        assert!(forwarder.stats().drops().is_empty(), "{:?}", forwarder.stats());
    }
}

fn every_mode(setting: Setting, sources: &[Source]) {
    let (net, neighbour) = network(setting);
    let forwarder = load(&net, setting, sources);
    let described = forwarder.succeed(&["list"]);
    for (clients, seen) in [("10.8.0.0/24", "10.8.0.1"), ("fd08::/64", "fd08::1")] {
        assert!(described.contains(&format!("{clients}: {seen}")), "{described}");
    }
    let checked = forwarder.succeed(&["check", forwarder.config.to_str().unwrap()]);
    assert!(checked.contains("10.8.0.0/24: 10.8.0.1"), "{checked}");
    for client in [&neighbour, &net.home, &net.client] {
        reaches_everything(&net, &forwarder, sources, client);
    }
    let stats = forwarder.stats();
    assert!(stats.drops().is_empty(), "{stats:?}");
    let (xdp, _) = stats.forwarded();
    assert_eq!(xdp > 0, setting.mode == Mode::Native, "{stats:?}");
}

/// TCP, UDP and echoes from this host to every rule; home must see what the rule says.
fn reaches_everything(net: &Topology, forwarder: &Forwarder, sources: &[Source], client: &Host) {
    for family in Family::ALL {
        for &source in sources {
            let about = format!("{} {source:?} {family:?}", client.name());
            let target = SocketAddr::new(public_address(net, source, family), PORT);
            let home = net.backend(family, source.home_port());
            let before = forwarder.stats().rule(&name(source, family)).flows;

            let server = TcpServer::start(&net.home, home).unwrap();
            let moved = Transfer::to(target).upload(100_000).download(100_000).run(client);
            let moved = moved.unwrap_or_else(|error| panic!("{about}: {error:#}\n{:#?}", forwarder.stats()));
            let seen = seen(net, source, family, client, moved.local.ip());
            assert_eq!(moved.seen_as.ip(), seen, "{about}");
            assert_eq!(server.peers(), [moved.seen_as], "{about}");

            let echo = UdpEcho::start(&net.home, home).unwrap();
            let socket = UdpSocketIn::connect(client, target, None).unwrap();
            for size in [0, 1, 1000] {
                socket.exchange(&vec![7; size]).unwrap_or_else(|error| panic!("{about}: {error:#}"));
            }
            assert!(echo.peers().iter().all(|peer| peer.ip() == seen), "{about}: {:?}", echo.peers());

            Ping::to(target.ip()).count(3).run(client).unwrap_or_else(|error| panic!("{about}: {error:#}"));

            let flows = forwarder.stats().rule(&name(source, family)).flows - before;
            let hidden = source != Source::Preserve || client.name() != net.client.name();
            assert_eq!(flows, if hidden { 2 } else { 0 }, "{about}");
        }
    }
}

/// Whom home must see.
fn seen(net: &Topology, source: Source, family: Family, client: &Host, own: IpAddr) -> IpAddr {
    match source {
        Source::Preserve if client.name() == net.client.name() => own,
        Source::Preserve | Source::Masquerade => net.inner_address(family),
        Source::Fixed => fixed_source(net, family),
    }
}

fn name(source: Source, family: Family) -> String {
    format!("{}-{}", source.name(), family_name(family))
}

/// For each source mode a public address: its port 80 and its echoes go to home.
pub(crate) fn load(net: &Topology, setting: Setting, sources: &[Source]) -> Forwarder {
    let mut config = String::new();
    for &mode in sources {
        for family in Family::ALL {
            let public = public_address(net, mode, family);
            let key = source(mode.key(net, family));
            let to = net.backend(family, mode.home_port());
            config += &rule(&name(mode, family), SocketAddr::new(public, PORT), to, &key);
            let ping = format!("protocol = \"icmp\"\n{key}");
            config += &rule(&format!("{}-ping", name(mode, family)), public, net.home_address(family), &ping);
        }
    }
    let forwarder = Forwarder::on(net);
    forwarder.load(setting, &config);
    forwarder
}

/// Two-armed, with a switch between forwarder and home, and a neighbour of home on it: .3 in its network.
pub(crate) fn network(setting: Setting) -> (Topology, Host) {
    let offloads = if setting.mode == Mode::Native { Offloads::Native } else { Offloads::Default };
    let lab = Lab::new("hairpin").unwrap();
    let [client, forwarder, home, neighbour, switch] =
        ["client", "forwarder", "home", "neighbour", "switch"].map(|name| lab.host(name).unwrap());
    lab.link(&client, "eth0", &forwarder, "eth0", offloads.into()).unwrap();
    switch.ip("link add bridge type bridge").unwrap();
    switch.ip("link set bridge up").unwrap();
    for (host, interface, port) in
        [(&forwarder, "eth1", "port1"), (&home, "eth0", "port2"), (&neighbour, "eth0", "port3")]
    {
        lab.link(host, interface, &switch, port, offloads.into()).unwrap();
        switch.ip(&format!("link set {port} master bridge")).unwrap();
    }
    for (host, interface, v4, v6) in [
        (&client, "eth0", "198.51.100.2/24", "2001:db8:1::2/64"),
        (&forwarder, "eth0", "198.51.100.1/24", "2001:db8:1::1/64"),
        (&forwarder, "eth1", "10.8.0.1/24", "fd08::1/64"),
        (&home, "eth0", "10.8.0.2/24", "fd08::2/64"),
        (&neighbour, "eth0", "10.8.0.3/24", "fd08::3/64"),
    ] {
        host.address(interface, v4).unwrap();
        host.address(interface, v6).unwrap();
    }
    for (host, v4, v6) in [
        (&client, "198.51.100.1", "2001:db8:1::1"),
        (&home, "10.8.0.1", "fd08::1"),
        (&neighbour, "10.8.0.1", "fd08::1"),
    ] {
        host.route("default", &format!("via {v4}")).unwrap();
        host.route("default", &format!("via {v6}")).unwrap();
    }
    let net = Topology { client, forwarder, home, router: None, shape: Shape::TwoArmed, lab };
    setting.give_addresses(&net);
    (net, neighbour)
}
