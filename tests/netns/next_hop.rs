//! The kernel decides where packets go next, also when that changes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use forwarder_lab::{Family, Topology, UdpEcho, UdpSocketIn, patience};

use crate::config::{rule, source as source_key};
use crate::forwarder::Forwarder;
use crate::setting::{Setting, Source, family_name, public_address};

in_every_setting!(unresolved_neighbours_cost_no_packet, a_backend_with_another_mac, a_route_that_goes_and_comes);

const KINDS: [Source; 2] = [Source::Preserve, Source::Masquerade];

fn load(setting: Setting, net: &Topology) -> Forwarder {
    let forwarder = Forwarder::on(net);
    let mut config = String::new();
    for family in Family::ALL {
        for source in KINDS {
            let name = format!("{}-{}", source.name(), family_name(family));
            let to = net.backend(family, source.home_port());
            config += &rule(&name, target(net, source, family), to, &source_key(source.name()));
        }
    }
    forwarder.load(setting, &config);
    forwarder
}

fn target(net: &Topology, source: Source, family: Family) -> SocketAddr {
    SocketAddr::new(public_address(net, source, family), 53)
}

fn serve(net: &Topology, source: Source, family: Family) -> (UdpEcho, UdpSocketIn) {
    let echo = UdpEcho::start(&net.home, net.backend(family, source.home_port())).unwrap();
    (echo, UdpSocketIn::connect(&net.client, target(net, source, family), None).unwrap())
}

fn unresolved_neighbours_cost_no_packet(setting: Setting) {
    let net = setting.network("resolve");
    let forwarder = load(setting, &net);
    for family in Family::ALL {
        for source in KINDS {
            let (_echo, socket) = serve(&net, source, family);
            for _ in 0..3 {
                for interface in net.interfaces() {
                    forwarder.host.ip(&format!("neigh flush dev {interface}")).unwrap();
                }
                socket.exchange(b"the only packet").unwrap();
            }
        }
    }
    assert!(forwarder.stats().drops().is_empty());
}

/// The backend comes back with another MAC address and tells nobody. The kernel probes a neighbour that it has not heard of
/// for a while (here a second, by default half a minute) and that is still sent to; so must it be with our packets.
fn a_backend_with_another_mac(setting: Setting) {
    let net = setting.network("mac");
    let forwarder = load(setting, &net);
    // Between home and the host before it.
    let (near, interface) = match &net.router {
        Some(router) => (router, "home"),
        None => (&forwarder.host, "eth1"),
    };
    for family in ["ipv4", "ipv6"] {
        for (setting, value) in
            [("base_reachable_time_ms", "1000"), ("delay_first_probe_time", "1"), ("retrans_time_ms", "100")]
        {
            near.sysctl(&format!("net/{family}/neigh/{interface}/{setting}"), value).unwrap();
        }
    }
    for (round, family) in Family::ALL.into_iter().enumerate() {
        let (_echo, socket) = serve(&net, Source::Preserve, family);
        socket.exchange(b"before").unwrap();
        net.home.ip(&format!("link set eth0 address 02:00:00:00:77:{round:02x}")).unwrap();
        reached_again(&socket, patience());
    }
}

fn reached_again(socket: &UdpSocketIn, limit: Duration) {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        socket.send(b"are you there?").unwrap();
        // One lost while nobody knows the way is no failure; the pace is that of an impatient person.
        if matches!(socket.receive(Duration::from_millis(200)), Ok(Some(_))) {
            return;
        }
    }
    panic!("not reached again within {limit:?}");
}

fn a_route_that_goes_and_comes(setting: Setting) {
    let net = setting.network("route");
    let forwarder = load(setting, &net);
    for family in Family::ALL {
        let (_echo, socket) = serve(&net, Source::Masquerade, family);
        socket.exchange(b"before").unwrap();
        let home = net.home_address(family);
        forwarder.host.ip(&format!("route add unreachable {home}")).unwrap();
        let deadline = Instant::now() + patience();
        while matches!(socket.receive(Duration::from_millis(50)), Ok(Some(_))) || {
            socket.send(b"lost?").unwrap();
            matches!(socket.receive(Duration::from_millis(200)), Ok(Some(_)))
        } {
            assert!(Instant::now() < deadline, "still on the old way");
        }
        assert!(forwarder.stats().outcome("answered_no_route") > 0);
        forwarder.host.ip(&format!("route del unreachable {home}")).unwrap();
        reached_again(&socket, patience());
    }
}
