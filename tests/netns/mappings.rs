//! What a `[[masquerade]]`'s mappings are good for, how long they last, and what else belongs to them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use forwarder_lab::etherparse::{PacketBuilder, TransportSlice};
use forwarder_lab::{EchoStream, Family, Frame, Host, Ping, TcpServer, UdpEcho, UdpSocketIn, patience};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::config::masquerade;
use crate::masquerade::{Net, everybody, inside, outside, received, seen_by, start, udp};
use crate::setting::Setting;
use crate::untouched::mac;

const PORT: u16 = 700;
const EVERYBODY: &str = "[\"10.8.0.0/24\", \"fd08::/64\"]";

/// A socket that shares its port with others of the same program, as what finds its peers by TCP needs it (RFC 5128
/// section 3.4).
fn sharing(host: &Host, address: SocketAddr) -> Socket {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SockAddr::from(address))?;
        std::io::Result::Ok(socket)
    };
    host.enter(open).unwrap().unwrap_or_else(|error| panic!("{address}: {error}"))
}

fn connected(host: &Host, from: SocketAddr, to: SocketAddr) -> TcpStream {
    let socket = sharing(host, from);
    let connected = host.enter(|| socket.connect_timeout(&to.into(), patience())).unwrap();
    connected.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
    impatient(socket.into())
}

fn impatient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(patience())).unwrap();
    stream
}

/// What one end writes, the other reads.
fn converse(one: &mut TcpStream, other: &mut TcpStream) {
    for _ in 0..2 {
        one.write_all(b"over and out").unwrap();
        let mut read = [0; 12];
        other.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"over and out");
        std::mem::swap(&mut *one, &mut *other);
    }
}

/// A connection from a host behind, and where the other end sees it: from then on its port has a mapping.
fn mapped(test: &Net, family: Family, from: SocketAddr) -> (TcpStream, TcpServer, SocketAddr) {
    let server = TcpServer::start(&test.net.client, (outside(family, 9), PORT).into()).unwrap();
    let stream = connected(&test.net.home, from, server.address());
    let outer = server.wait_for_peers(1).unwrap()[0];
    assert_eq!(outer.ip(), test.net.public_address(family));
    (stream, server, outer)
}

/// TCP comes in by a mapping, from whoever its filtering lets in.
#[test]
fn connections_come_in_by_a_mapping() {
    let config = masquerade("behind", EVERYBODY, "eth0", "filtering = \"endpoint\"");
    for setting in [Setting::NATIVE_TWO_ARMED, Setting::TC_ONE_ARMED] {
        let test = start("mapin", setting, &config);
        for family in Family::ALL {
            let from = SocketAddr::new(inside(family, 20), 4000);
            let (_stays, _server, outer) = mapped(&test, family, from);
            let listener = sharing(&test.net.home, from);
            listener.listen(1).unwrap();
            let peer = SocketAddr::new(outside(family, 3), 5000);
            let mut client = connected(&test.net.client, peer, outer);
            let (accepted, seen) = listener.accept().unwrap();
            assert_eq!(seen.as_socket(), Some(peer));
            converse(&mut client, &mut impatient(accepted.into()));
        }
        assert!(test.forwarder.stats().drops().is_empty(), "{:#?}", test.forwarder.stats());
    }
}

/// RFC 5382 REQ-2 and REQ-4: the SYN of a peer comes too early and is not answered, so that both begin at once when the
/// host's own SYN goes out; without a RST in between.
#[test]
fn peers_begin_at_once() {
    for setting in [Setting::NATIVE_TWO_ARMED, Setting::TC_ONE_ARMED] {
        let test = start("mappeer", setting, &everybody());
        for family in Family::ALL {
            let from = SocketAddr::new(inside(family, 20), 4000);
            let (_stays, _server, outer) = mapped(&test, family, from);
            let peer = SocketAddr::new(outside(family, 3), 5000);
            let capture = test.net.client.capture("eth0").unwrap();
            let early = sharing(&test.net.client, peer);
            let (mut host, early) = thread::scope(|scope| {
                let world = &test.net.client;
                let at_peer = scope.spawn(move || {
                    let connected = world.enter(|| early.connect_timeout(&outer.into(), patience())).unwrap();
                    connected.unwrap_or_else(|error| panic!("{peer} to {outer}: {error}"));
                    early
                });
                capture.wait_for(|frame| is_syn(frame, peer.port())).unwrap();
                (connected(&test.net.home, from, peer), at_peer.join().unwrap())
            });
            converse(&mut host, &mut impatient(early.into()));
            assert!(capture.next_within(Duration::ZERO, is_reset).unwrap().is_none());
        }
        let stats = test.forwarder.stats();
        let drops = stats.drops();
        assert!(drops.get("drop_filtered").is_some_and(|count| *count >= 2) && drops.len() == 1, "{stats:#?}");
    }
}

fn is_syn(frame: &Frame, src_port: u16) -> bool {
    let Ok(packet) = frame.parse() else { return false };
    matches!(packet.transport, Some(TransportSlice::Tcp(tcp)) if tcp.syn() && tcp.source_port() == src_port)
}

fn is_reset(frame: &Frame) -> bool {
    let Ok(packet) = frame.parse() else { return false };
    matches!(packet.transport, Some(TransportSlice::Tcp(tcp)) if tcp.rst())
}

/// What says that it is from behind, but comes from the world, is nobody's: no mapping is made or used.
#[test]
fn forged_sources_use_no_mapping() {
    let test = start("mapforge", Setting::TC_TWO_ARMED, &everybody());
    let Net { net, forwarder } = &test;
    let server = udp(&net.client, (outside(Family::V4, 2), PORT));
    let host = udp(&net.home, (inside(Family::V4, 20), 4000));
    let outer = seen_by(&host, &server, "mine");
    let to_us = mac(&net.forwarder.mac("eth0").unwrap());
    for (n, port) in [(20, 4001), (21, 4000)] {
        let mut frame = Vec::new();
        let ip = PacketBuilder::ethernet2([2, 0, 0, 0, 0x99, 0], to_us).ipv4([10, 8, 0, n], [198, 51, 100, 2], 64);
        ip.udp(port, PORT).write(&mut frame, b"forged").unwrap();
        net.client.send_frame("eth0", &frame).unwrap();
    }
    // What comes behind them shows that they were dealt with.
    assert_eq!(seen_by(&host, &server, "and on"), outer);
    server.set_nonblocking(true).unwrap();
    assert!(server.recv_from(&mut [0; 10]).is_err(), "a forged datagram went out");
    assert_eq!(forwarder.mappings().len(), 1, "{:#?}", forwarder.mappings());
}

/// Mappings end with what uses them, and a port of the same host is another then; meanwhile they are what they were
/// when they began, whatever a reload says.
#[test]
fn mappings_last_as_long_as_their_flows() {
    let timeouts = "[timeouts]\nudp_opening = \"2s\"\nudp_established = \"2s\"\n";
    let with = |filtering: &str| {
        let key = format!("filtering = \"{filtering}\"");
        format!("{timeouts}{}", masquerade("behind", EVERYBODY, "eth0", &key))
    };
    let test = start("maplast", Setting::NATIVE_TWO_ARMED, &with("endpoint"));
    let Net { net, forwarder } = &test;
    for family in Family::ALL {
        forwarder.configure(&with("endpoint"));
        forwarder.succeed(&["reload"]);
        let [server, stranger] = [2, 3].map(|n| udp(&net.client, (outside(family, n), PORT)));
        let host = udp(&net.home, (inside(family, 20), 40_001));
        let outer = seen_by(&host, &server, "first");
        let shown = forwarder.mappings();
        assert_eq!(shown.len(), 1, "{shown:#?}");
        let expected = [
            ("protocol", "udp".to_owned()),
            ("host", SocketAddr::new(inside(family, 20), 40_001).to_string()),
            ("outside", outer.to_string()),
            ("filtering", "endpoint".to_owned()),
            ("rule", "behind".to_owned()),
        ];
        for (key, value) in expected {
            assert_eq!(shown[0][key], value, "{shown:#?}");
        }
        let table = forwarder.succeed(&["flows"]);
        assert!(table.contains(&outer.to_string()) && table.contains("OUTSIDE"), "{table}");
        forwarder.configure(&with("address+port"));
        forwarder.succeed(&["reload"]);
        // As it was: everybody may still use it, and the host keeps its port.
        stranger.send_to(b"hello", outer).unwrap();
        assert_eq!(received(&host, "hello").1, stranger.local_addr().unwrap());
        assert_eq!(seen_by(&host, &stranger, "answer"), outer);
        forwarder.wait_for_flows(|count| count == 0);
        while !forwarder.mappings().is_empty() {
            thread::sleep(Duration::from_millis(50));
        }
        // Anew, by the new rule.
        let outer = seen_by(&host, &server, "anew");
        stranger.send_to(b"kept out", outer).unwrap();
        server.send_to(b"let in", outer).unwrap();
        assert_eq!(received(&host, "let in").0, "let in");
        assert_eq!(forwarder.mappings()[0]["filtering"], "address+port");
        forwarder.wait_for_flows(|count| count == 0);
    }
    // Without the rule its mappings are gone at once.
    let server = udp(&net.client, (outside(Family::V4, 2), PORT));
    let host = udp(&net.home, (inside(Family::V4, 20), 40_001));
    seen_by(&host, &server, "last");
    forwarder.configure("");
    forwarder.succeed(&["reload"]);
    assert_eq!((forwarder.flow_count(), forwarder.mappings().len()), (0, 0));
}

/// ICMP errors come back to who sent, and datagrams of many fragments go both ways.
#[test]
fn errors_and_fragments_find_their_way() {
    for setting in [Setting::NATIVE_TWO_ARMED, Setting::TC_ONE_ARMED] {
        let test = start("maperror", setting, &everybody());
        let Net { net, forwarder } = &test;
        for family in Family::ALL {
            for n in [20, 21] {
                let from = SocketAddr::new(inside(family, n), 4000);
                let nobody = SocketAddr::new(outside(family, 2), PORT + 1);
                let socket = UdpSocketIn::connect(&net.home, nobody, Some(from)).unwrap();
                socket.send(b"anybody?").unwrap();
                let error = socket.receive(patience()).unwrap_err();
                assert!(format!("{error:#}").contains("refused"), "{error:#}");
                drop(socket);
                assert!(
                    EchoStream::connect(&net.home, nobody, Some(from))
                        .is_err_and(|error| { format!("{error:#}").contains("refused") })
                );
                let echo = UdpEcho::start(&net.client, (outside(family, 2), PORT).into()).unwrap();
                let socket = UdpSocketIn::connect(&net.home, echo.address(), Some(from)).unwrap();
                for size in [1473, 4000, 20_000] {
                    let exchanged = socket.exchange(&vec![7; size]);
                    exchanged.unwrap_or_else(|error| panic!("{from} {size}: {error:#}\n{:#?}", forwarder.stats()));
                }
            }
            Ping::to(outside(family, 2)).payload(4000).run(&net.home).unwrap();
        }
        assert!(forwarder.stats().drops().is_empty(), "{:#?}", forwarder.stats());
    }
}

/// RFC 4787 section 6, RFC 5382 REQ-8: by TCP too.
#[test]
fn hosts_behind_connect_by_their_mappings() {
    let config = masquerade("behind", EVERYBODY, "eth0", "filtering = \"endpoint\"");
    let test = start("mappintcp", Setting::TC_TWO_ARMED, &config);
    for family in Family::ALL {
        let [one, two] = [20, 21].map(|n| SocketAddr::new(inside(family, n), 4000));
        let (_stays, _server, outer) = mapped(&test, family, one);
        let listener = sharing(&test.net.home, one);
        listener.listen(1).unwrap();
        // The kernel of the hosts' namespace has both addresses, and would not send anything out to reach them.
        let mut stream = connected(&test.net.home, two, outer);
        let (accepted, seen) = listener.accept().unwrap();
        let seen = seen.as_socket().unwrap();
        assert_eq!(seen.ip(), test.net.public_address(family));
        converse(&mut stream, &mut impatient(accepted.into()));
    }
    assert!(test.forwarder.stats().drops().is_empty(), "{:#?}", test.forwarder.stats());
}

/// Rules of this kind are listed, and removed, as all others; what they lead to ends with them.
#[test]
fn masquerades_are_listed_and_removed() {
    let config = format!("# Written by hand.\n\n{}", everybody());
    let test = start("mapremove", Setting::TC_TWO_ARMED, &config);
    let Net { net, forwarder } = &test;
    let listed = forwarder.run(&["list", "--format", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(listed["masquerades"][0]["name"], "behind", "{listed:#}");
    let server = udp(&net.client, (outside(Family::V4, 2), PORT));
    let host = udp(&net.home, (inside(Family::V4, 20), 4000));
    seen_by(&host, &server, "out");
    assert_eq!((forwarder.flow_count(), forwarder.mappings().len()), (1, 1));
    let status: serde_json::Value =
        serde_json::from_str(&forwarder.run(&["status", "--format", "json"]).stdout).unwrap();
    let table = status["tables"].as_array().unwrap().iter().find(|table| table["table"] == "IPv4 new flows").unwrap();
    assert_eq!([&table["used"], &table["mappings"], &table["permissions"]], [1, 1, 1], "{status:#}");
    // A name is taken, whatever it is of.
    let [public, backend] = [net.public(Family::V4, PORT), net.backend(Family::V4, PORT)].map(|end| end.to_string());
    let taken = forwarder.run(&["add", "behind", &public, &backend, "--save"]);
    assert!(taken.code != Some(0) && taken.stderr.contains("behind"), "{taken}");
    forwarder.succeed(&["remove", "behind", "--save"]);
    assert_eq!((forwarder.flow_count(), forwarder.mappings().len()), (0, 0));
    assert_eq!(std::fs::read_to_string(&forwarder.config).unwrap().trim(), "# Written by hand.");
    forwarder.succeed(&["reload"]);
    assert!(!forwarder.succeed(&["list"]).contains("behind"));
}
