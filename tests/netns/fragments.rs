//! Datagrams that do not fit one packet.

use std::net::SocketAddr;

use forwarder_lab::{Family, Ping, Topology, UdpEcho, UdpSocketIn};

use crate::config::{rule, source};
use crate::forwarder::Forwarder;
use crate::setting::{Setting, Source, family_name, public_address};

in_every_setting!(large_datagrams, large_pings);

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

/// Nothing was lost, and XDP left every fragment to TC.
fn finish(forwarder: &Forwarder) {
    let stats = forwarder.stats();
    assert_eq!(stats.drops(), [].into());
    let (xdp, tc) = stats.forwarded();
    assert!(xdp == 0 && tc > 0, "{stats:?}");
}
