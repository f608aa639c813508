//! Flows end without any process, and never share a port.

use std::net::SocketAddr;

use forwarder_lab::{Crowd, EchoStream, Family, Ping, TcpServer, UdpEcho, UdpSocketIn};

use crate::config::rule;
use crate::forwarder::Forwarder;
use crate::setting::Setting;

in_every_setting!(flows_expire, two_clients_with_the_same_port, local_sockets_keep_their_ports);

const PORT: u16 = 700;

fn config(net: &forwarder_lab::Topology, more: &str) -> String {
    let rules = Family::ALL.map(|family| {
        let (listen, to) = (net.public(family, PORT), net.backend(family, PORT));
        let ping = rule(&format!("{family:?}-ping"), listen.ip(), to.ip(), "protocol = \"icmp\"");
        rule(&format!("{family:?}"), listen, to, "") + &ping
    });
    format!("{more}\n{}", rules.concat())
}

fn flows_expire(setting: Setting) {
    let net = setting.network("expire");
    let forwarder = Forwarder::on(&net);
    let timeouts = "[timeouts]\ntcp_established = \"1h\"\ntcp_closing = \"1s\"\ntcp_reset = \"1s\"\n\
                    udp_opening = \"1s\"\nudp_established = \"1s\"\nicmp = \"1s\"\n";
    forwarder.load(setting, &config(&net, timeouts));
    assert_eq!(forwarder.flow_count(), 0);
    for family in Family::ALL {
        let target = net.public(family, PORT);
        let _tcp = TcpServer::start(&net.home, net.backend(family, PORT)).unwrap();
        let _udp = UdpEcho::start(&net.home, net.backend(family, PORT)).unwrap();
        let mut stays = EchoStream::connect(&net.client, target, None).unwrap();
        stays.exchange(b"established").unwrap();
        // A closed connection, a reset one, a datagram with its answer, an echo.
        let mut closed = EchoStream::connect(&net.client, target, None).unwrap();
        closed.exchange(b"closed").unwrap();
        closed.close().unwrap();
        let mut reset = EchoStream::connect(&net.client, target, None).unwrap();
        reset.exchange(b"reset").unwrap();
        reset.reset().unwrap();
        UdpSocketIn::connect(&net.client, target, None).unwrap().exchange(b"datagram").unwrap();
        Ping::to(target.ip()).run(&net.client).unwrap();
        assert!(forwarder.flow_count() > 1);
        forwarder.wait_for_flows(|count| count == 1);
        stays.exchange(b"still there").unwrap();
        stays.close().unwrap();
        forwarder.wait_for_flows(|count| count == 0);
    }
}

fn two_clients_with_the_same_port(setting: Setting) {
    let net = setting.network("ports");
    let forwarder = Forwarder::on(&net);
    forwarder.load(setting, &config(&net, ""));
    for (family, clients) in [
        (Family::V4, ["198.51.100.2", "198.51.100.3", "198.51.100.4"]),
        (Family::V6, ["2001:db8:1::2", "2001:db8:1::3", "2001:db8:1::4"]),
    ] {
        let target = net.public(family, PORT);
        let tcp = TcpServer::start(&net.home, net.backend(family, PORT)).unwrap();
        let udp = UdpEcho::start(&net.home, net.backend(family, PORT)).unwrap();
        let from = |client: &str| Some(SocketAddr::new(client.parse().unwrap(), 4444));
        let mut streams = clients.map(|client| EchoStream::connect(&net.client, target, from(client)).unwrap());
        let sockets = clients.map(|client| UdpSocketIn::connect(&net.client, target, from(client)).unwrap());
        for _ in 0..3 {
            for ((stream, socket), client) in streams.iter_mut().zip(&sockets).zip(clients) {
                stream.exchange(client.as_bytes()).unwrap();
                socket.exchange(client.as_bytes()).unwrap();
            }
        }
        for mut peers in [tcp.wait_for_peers(3).unwrap(), udp.wait_for_peers(9).unwrap()] {
            peers.sort();
            peers.dedup();
            assert_eq!(peers.len(), clients.len(), "{peers:?}");
        }
        // The same ports once more beside many others.
        let mut crowd = Crowd::connect(&net.client, target, 100).unwrap();
        crowd.exchange().unwrap();
        streams[0].exchange(b"not disturbed").unwrap();
    }
    assert!(forwarder.stats().drops().is_empty());
}

/// A client's port that a program of the forwarder uses itself is not taken from it.
fn local_sockets_keep_their_ports(setting: Setting) {
    const TAKEN: u16 = 4445;
    let net = setting.network("local");
    let forwarder = Forwarder::on(&net);
    forwarder.load(setting, &config(&net, ""));
    for family in Family::ALL {
        let (target, home) = (net.public(family, PORT), net.backend(family, PORT));
        let local = SocketAddr::new(net.inner_address(family), TAKEN);
        let (_tcp, _udp) =
            (TcpServer::start(&net.forwarder, local).unwrap(), UdpEcho::start(&net.forwarder, local).unwrap());
        let from = Some(SocketAddr::new(net.client_address(family), TAKEN));
        {
            let (tcp, udp) = (TcpServer::start(&net.home, home).unwrap(), UdpEcho::start(&net.home, home).unwrap());
            let mut stream = EchoStream::connect(&net.client, target, from).unwrap();
            stream.exchange(b"stream").unwrap();
            UdpSocketIn::connect(&net.client, target, from).unwrap().exchange(b"datagram").unwrap();
            for seen in [tcp.peers()[0], udp.peers()[0]] {
                assert_eq!(seen.ip(), local.ip());
                assert_ne!(seen.port(), TAKEN, "{family:?}");
            }
            stream.reset().unwrap();
        }
        assert!(forwarder.stats().rule(&format!("{family:?}")).port_clashes >= 2);
        // From the very port of the backend to the very port of the local program.
        UdpSocketIn::connect(&net.home, local, Some(home)).unwrap().exchange(b"for the forwarder itself").unwrap();
        let mut stream = EchoStream::connect(&net.home, local, Some(home)).unwrap();
        stream.exchange(b"for the forwarder itself").unwrap();
        stream.reset().unwrap();
    }
}
