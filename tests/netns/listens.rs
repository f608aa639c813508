//! Everything that `listen`, `to` and `allow` can be.

use std::net::SocketAddr;

use forwarder_lab::{EchoStream, Family, Ping, TcpServer, Topology, Transfer, UdpEcho, UdpSocketIn};

use crate::config::{rule, source as source_key};
use crate::forwarder::Forwarder;
use crate::setting::{Setting, Source, family_name, public_address};

in_every_setting!(port_ranges, whole_addresses, lists_of_listens, interfaces_as_listens, only_allowed_clients);

/// One connection to `target` that must end at port `port` of home.
fn reaches(net: &Topology, target: SocketAddr, family: Family, port: u16) {
    let server = TcpServer::start(&net.home, net.backend(family, port)).unwrap();
    let moved = Transfer::to(target).upload(3000).download(3000).run(&net.client);
    moved.unwrap_or_else(|error| panic!("port {port}: {error:#}"));
    assert_eq!(server.peers().len(), 1);
}

/// The forwarder itself answers there, and nobody listens.
fn is_refused(net: &Topology, target: SocketAddr) {
    let refused = EchoStream::connect(&net.client, target, None).err().map(|error| format!("{error:#}"));
    assert!(refused.as_ref().is_some_and(|error| error.contains("refused")), "{target}: {refused:?}");
}

fn port_ranges(setting: Setting) {
    let net = setting.network("ranges");
    let forwarder = Forwarder::on(&net);
    let mut config = String::new();
    for family in Family::ALL {
        for source in [Source::Preserve, Source::Masquerade] {
            let public = public_address(&net, source, family);
            let home = net.home_address(family);
            let bracketed = |ip: std::net::IpAddr| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
            let (public, to) = (bracketed(public), bracketed(home));
            let name = |what: &str| format!("{what}-{}-{}", source.name(), family_name(family));
            let key = source_key(source.name());
            config += &rule(&name("kept"), format!("{public}:9000-9009"), home, &key);
            config += &rule(&name("shifted"), format!("{public}:9100-9107"), format!("{to}:9203-9210"), &key);
        }
    }
    forwarder.load(setting, &config);
    for family in Family::ALL {
        for source in [Source::Preserve, Source::Masquerade] {
            let target = |port: u16| SocketAddr::new(public_address(&net, source, family), port);
            for (listen, port) in [(9000, 9000), (9004, 9004), (9009, 9009), (9100, 9203), (9107, 9210)] {
                reaches(&net, target(listen), family, port);
            }
            for port in [8999, 9010, 9099, 9108] {
                is_refused(&net, target(port));
            }
        }
    }
    assert!(forwarder.stats().drops().is_empty());
}

fn whole_addresses(setting: Setting) {
    let net = setting.network("whole");
    let forwarder = Forwarder::on(&net);
    let mut config = String::new();
    for family in Family::ALL {
        for source in Source::ALL {
            let public = public_address(&net, source, family);
            let home = net.home_address(family);
            let name = format!("{}-{}", source.name(), family_name(family));
            config += &rule(&name, public, home, &source_key(source.key(&net, family)));
        }
    }
    forwarder.load(setting, &config);
    for family in Family::ALL {
        for source in Source::ALL {
            let public = public_address(&net, source, family);
            reaches(&net, (public, 22).into(), family, 22);
            reaches(&net, (public, 65535).into(), family, 65535);
            let echo = UdpEcho::start(&net.home, net.backend(family, 53)).unwrap();
            let socket = UdpSocketIn::connect(&net.client, (public, 53).into(), None).unwrap();
            socket.exchange(b"question").unwrap();
            let seen = source.seen(&net, family, net.client_address(family));
            assert_eq!(echo.peers()[0].ip(), seen, "{source:?} {family:?}");
            Ping::to(public).count(3).run(&net.client).unwrap();
        }
    }
    assert!(forwarder.stats().drops().is_empty());
}

/// Two ways to one backend, and one client port on both: the replies must not be mixed up.
fn lists_of_listens(setting: Setting) {
    let net = setting.network("lists");
    let forwarder = Forwarder::on(&net);
    let mut config = String::new();
    for family in Family::ALL {
        let [a, b] = [Source::Preserve, Source::Masquerade]
            .map(|source| SocketAddr::new(public_address(&net, source, family), 443).to_string());
        let to = net.backend(family, 8443);
        config += &rule(family_name(family), format!("[{a:?}, {b:?}]"), to, &source_key("preserve"));
    }
    forwarder.load(setting, &config);
    for (family, client) in [(Family::V4, "198.51.100.4"), (Family::V6, "2001:db8:1::4")] {
        let server = TcpServer::start(&net.home, net.backend(family, 8443)).unwrap();
        let from = SocketAddr::new(client.parse().unwrap(), 5000);
        let mut streams = [Source::Preserve, Source::Masquerade].map(|source| {
            let target = SocketAddr::new(public_address(&net, source, family), 443);
            EchoStream::connect(&net.client, target, Some(from)).unwrap()
        });
        for _ in 0..3 {
            for (stream, message) in streams.iter_mut().zip([b"one", b"two"]) {
                stream.exchange(message).unwrap();
            }
        }
        let peers = server.wait_for_peers(2).unwrap();
        assert!(peers.iter().all(|peer| peer.ip() == from.ip()), "the address is preserved: {peers:?}");
        assert_ne!(peers[0], peers[1], "the same port twice would be one connection");
    }
}

fn interfaces_as_listens(setting: Setting) {
    let net = setting.network("ifaces");
    let forwarder = Forwarder::on(&net);
    let config: String =
        Family::ALL.map(|family| rule(family_name(family), "eth0:8088", net.backend(family, 88), "")).concat();
    forwarder.load(setting, &config);
    for family in Family::ALL {
        for address in [net.public_address(family), public_address(&net, Source::Fixed, family)] {
            reaches(&net, (address, 8088).into(), family, 88);
        }
    }
}

/// The longest prefix counts for nothing but itself: whoever is in one of them may, all others may not.
fn only_allowed_clients(setting: Setting) {
    let net = setting.network("allow");
    let forwarder = Forwarder::on(&net);
    let plan = [
        (Family::V4, ["198.51.100.3", "198.51.100.8"], ["198.51.100.2", "198.51.100.4"]),
        (Family::V6, ["2001:db8:1::3", "2001:db8:1::8"], ["2001:db8:1::2", "2001:db8:1::4"]),
    ];
    let mut config = String::new();
    for (family, more) in [
        (Family::V4, "allow = [\"198.51.100.3\", \"198.51.100.8/30\", \"10.0.0.0/8\"]"),
        (Family::V6, "allow = [\"2001:db8:1::3\", \"2001:db8:1::8/125\", \"fd00::/8\"]"),
    ] {
        for source in [Source::Preserve, Source::Masquerade] {
            let name = format!("{}-{}", source.name(), family_name(family));
            let listen = SocketAddr::new(public_address(&net, source, family), 53);
            let to = net.backend(family, source.home_port());
            let more = format!("{}\n{more}", source_key(source.name()));
            config += &rule(&name, listen, to, &more);
        }
    }
    forwarder.load(setting, &config);
    for (family, allowed, denied) in plan {
        for source in [Source::Preserve, Source::Masquerade] {
            let echo = UdpEcho::start(&net.home, net.backend(family, source.home_port())).unwrap();
            let target = SocketAddr::new(public_address(&net, source, family), 53);
            let from = |client: &str| {
                let from = SocketAddr::new(client.parse().unwrap(), 6000);
                UdpSocketIn::connect(&net.client, target, Some(from)).unwrap()
            };
            for client in denied {
                from(client).send(b"denied").unwrap();
            }
            for client in allowed {
                from(client).exchange(b"allowed").unwrap();
            }
            assert_eq!(echo.peers().len(), allowed.len(), "{family:?} {source:?}");
            let counted = forwarder.stats().rule(&format!("{}-{}", source.name(), family_name(family)));
            assert_eq!(counted.denied, denied.len() as u64, "{counted:?}");
            assert_eq!(counted.forward.packets, allowed.len() as u64, "{counted:?}");
        }
    }
    let stats = forwarder.stats();
    assert_eq!(stats.drops(), [("drop_not_allowed", 8)].into(), "{stats:?}");
}
