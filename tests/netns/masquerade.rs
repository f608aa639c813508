//! `[[masquerade]]`: hosts behind forwarder reach the world with an address of it.
//!
//! The hosts behind are addresses of home, .20 to .27 of 10.8.0.0/24 and fd08::/64; the world is the client's host.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use forwarder_lab::{EchoStream, Family, Frame, Host, Ping, TcpServer, Topology, Transfer, UdpEcho, patience};

use crate::config::{masquerade, rule};
use crate::forwarder::Forwarder;
use crate::setting::{Mode, Setting};

in_every_setting!(hosts_behind_go_out);

const PORT: u16 = 700;

pub(crate) struct Net {
    pub(crate) net: Topology,
    pub(crate) forwarder: Forwarder,
}

/// All of home's network goes out by eth0, with the address that eth0 has.
pub(crate) fn everybody() -> String {
    masquerade("behind", "[\"10.8.0.0/24\", \"fd08::/64\"]", "eth0", "")
}

pub(crate) fn start(name: &str, setting: Setting, config: &str) -> Net {
    let net = setting.network(name);
    for n in 20..=27 {
        net.home.further_address("eth0", &format!("10.8.0.{n}/24")).unwrap();
        net.home.further_address("eth0", &format!("fd08::{n}/64")).unwrap();
    }
    let forwarder = Forwarder::on(&net);
    forwarder.load(setting, config);
    Net { net, forwarder }
}

/// A host behind.
pub(crate) fn inside(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => [10, 8, 0, n].into(),
        Family::V6 => format!("fd08::{n}").parse().unwrap(),
    }
}

/// A host in the world; .2 to .9.
pub(crate) fn outside(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => [198, 51, 100, n].into(),
        Family::V6 => format!("2001:db8:1::{n}").parse().unwrap(),
    }
}

pub(crate) fn udp(host: &Host, address: impl Into<SocketAddr>) -> UdpSocket {
    let address = address.into();
    let socket = host.enter(|| UdpSocket::bind(address)).unwrap().unwrap_or_else(|error| panic!("{address}: {error}"));
    socket.set_read_timeout(Some(patience())).unwrap();
    socket
}

/// The next datagram, and the address it seems to come from.
pub(crate) fn received(socket: &UdpSocket, about: &str) -> (String, SocketAddr) {
    let mut buffer = [0; 100];
    let (length, from) = socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{about}: {error}"));
    (String::from_utf8(buffer[..length].to_vec()).unwrap(), from)
}

/// Sends one datagram; whom the receiver sees.
pub(crate) fn seen_by(from: &UdpSocket, to: &UdpSocket, about: &str) -> SocketAddr {
    from.send_to(about.as_bytes(), to.local_addr().unwrap()).unwrap();
    let (text, seen) = received(to, about);
    assert_eq!(text, about);
    seen
}

/// TCP, UDP and echoes of two hosts with the same ports: the server sees our address, and a port of its own for each.
fn hosts_behind_go_out(setting: Setting) {
    const BYTES: u64 = 1_000_000;
    let test = start("masqout", setting, &everybody());
    let Net { net, forwarder } = &test;
    for printed in [forwarder.succeed(&["list"]), forwarder.succeed(&["check", forwarder.config.to_str().unwrap()])] {
        assert!(
            printed.contains("behind") && printed.contains(&net.public_address(Family::V4).to_string()),
            "{printed}"
        );
    }
    for family in Family::ALL {
        let (client, public) = (net.client_address(family), net.public_address(family));
        let tcp = TcpServer::start(&net.client, (client, PORT).into()).unwrap();
        let datagrams = UdpEcho::start(&net.client, (client, PORT).into()).unwrap();
        for n in [20, 21] {
            let from = SocketAddr::new(inside(family, n), 4000);
            let moved = Transfer::to(tcp.address()).from(from).upload(BYTES).download(BYTES).run(&net.home);
            moved.unwrap_or_else(|error| panic!("{from}: {error:#}\n{:#?}", forwarder.stats()));
            let socket = udp(&net.home, from);
            for size in [0, 1, 1000] {
                socket.send_to(&vec![7; size], datagrams.address()).unwrap();
                let mut answer = [0; 2000];
                let answered = socket.recv_from(&mut answer);
                let answered =
                    answered.unwrap_or_else(|error| panic!("{from}, {size}: {error}\n{:#?}", forwarder.stats()));
                assert_eq!(answered, (size, datagrams.address()));
            }
        }
        for peers in [tcp.wait_for_peers(2).unwrap(), datagrams.wait_for_peers(6).unwrap()] {
            assert!(peers.iter().all(|peer| peer.ip() == public), "{peers:?}");
            let ports: BTreeSet<u16> = peers.iter().map(SocketAddr::port).collect();
            assert!(ports.len() == 2 && ports.contains(&4000), "{peers:?}");
        }
        let capture = net.client.capture("eth0").unwrap();
        let ping = Ping::to(client).identifier(77).count(3).run(&net.home);
        ping.unwrap_or_else(|error| panic!("{family:?}: {error:#}\n{:#?}", forwarder.stats()));
        let request = capture.wait_for(Frame::is_echo_request).unwrap();
        assert_eq!(request.addresses(), Some((public, client)));
    }
    // Two connections, two series of datagrams and one of echoes, in each family; their mappings are no flows.
    assert_eq!(forwarder.flow_count(), 10, "{:#?}", forwarder.flows());
    let shown = forwarder.succeed(&["flows"]);
    assert!(!shown.contains("0.0.0.0") && !shown.contains("[::]"), "{shown}");
    let stats = forwarder.stats();
    let counted = stats.rule("behind");
    assert_eq!((counted.flows, counted.unprotected), (10, 0), "{stats:#?}");
    assert!(counted.forward.bytes > 4 * BYTES && counted.reply.bytes > 4 * BYTES, "{counted:?}");
    assert!(stats.drops().is_empty(), "{stats:?}");
    assert_eq!(stats.forwarded().0 > 0, setting.mode == Mode::Native, "{stats:?}");
}

/// RFC 4787 REQ-1: one port for a host's port, whoever it sends to. The other host's is another.
#[test]
fn a_port_is_the_same_towards_everybody() {
    let test = start("masqeim", Setting::NATIVE_TWO_ARMED, &everybody());
    let Net { net, forwarder } = &test;
    for family in Family::ALL {
        let servers =
            [(2, PORT), (2, PORT + 1), (3, PORT)].map(|(n, port)| udp(&net.client, (outside(family, n), port)));
        // One below, one above, one within the machine's own range of ports.
        for port in [4000, 62_001, 40_000] {
            let mut of_hosts = BTreeSet::new();
            for n in [20, 21] {
                let socket = udp(&net.home, (inside(family, n), port));
                let seen = [0, 1, 2].map(|i| seen_by(&socket, &servers[i], &format!("{family:?} {n} {port} {i}")));
                assert_eq!(seen, [seen[0]; 3]);
                assert_eq!(seen[0].ip(), net.public_address(family));
                for (server, about) in servers.iter().zip(["a", "b", "c"]) {
                    server.send_to(about.as_bytes(), seen[0]).unwrap();
                    assert_eq!(received(&socket, about), (about.to_owned(), server.local_addr().unwrap()));
                }
                of_hosts.insert(seen[0]);
            }
            assert_eq!(of_hosts.len(), 2, "{of_hosts:?}");
        }
    }
    assert!(forwarder.stats().drops().is_empty(), "{:#?}", forwarder.stats());
}

/// RFC 4787 section 5: who may send to a port that is mapped.
#[test]
fn each_filtering_lets_in_whom_it_says() {
    /// The filtering, its host, and whom it lets in of: whom the host has sent to, another port there, another host.
    const FILTERINGS: [(&str, u8, [bool; 3]); 3] = [
        ("endpoint", 20, [true, true, true]),
        ("address", 21, [true, true, false]),
        ("address+port", 22, [true, false, false]),
    ];
    let config: String = FILTERINGS
        .into_iter()
        .map(|(filtering, n, _)| {
            let from = format!("[\"10.8.0.{n}\", \"fd08::{n}\"]");
            masquerade(&format!("host{n}"), from, "eth0", &format!("filtering = \"{filtering}\""))
        })
        .collect();
    let test = start("masqfilter", Setting::TC_TWO_ARMED, &config);
    let Net { net, forwarder } = &test;
    let mut kept_out = 0;
    for family in Family::ALL {
        let senders =
            [(2, PORT), (2, PORT + 1), (3, PORT)].map(|(n, port)| udp(&net.client, (outside(family, n), port)));
        for (filtering, n, lets_in) in FILTERINGS {
            let socket = udp(&net.home, (inside(family, n), 4000));
            let outer = seen_by(&socket, &senders[0], filtering);
            // The strangest first; the last one is let in by all and shows what came before it.
            let mut expected = Vec::new();
            for (sender, let_in) in senders.iter().zip(lets_in).rev() {
                let about = format!("{filtering} {}", sender.local_addr().unwrap());
                sender.send_to(about.as_bytes(), outer).unwrap();
                if let_in {
                    expected.push((about, sender.local_addr().unwrap()));
                }
                kept_out += u64::from(!let_in);
            }
            let arrived: Vec<_> = expected.iter().map(|_| received(&socket, filtering)).collect();
            assert_eq!(arrived, expected);
        }
    }
    let stats = forwarder.stats();
    assert_eq!(stats.drops().into_iter().collect::<Vec<_>>(), [("drop_filtered", kept_out)], "{stats:#?}");
}

/// RFC 4787 section 6: two hosts behind reach each other by the addresses that the world knows them by, once both have
/// sent, and are seen with those.
#[test]
fn hosts_behind_reach_each_other_by_their_mappings() {
    let test = start("masqpin", Setting::TC_ONE_ARMED, &everybody());
    let Net { net, forwarder } = &test;
    for family in Family::ALL {
        let server = udp(&net.client, (outside(family, 2), PORT));
        let [a, b] = [20, 21].map(|n| udp(&net.home, (inside(family, n), 4000)));
        let (outer_a, outer_b) = (seen_by(&a, &server, "a"), seen_by(&b, &server, "b"));
        // `b` has not sent to our address yet: not let in, but now `b` may.
        a.send_to(b"too early", outer_b).unwrap();
        for round in ["first", "second"] {
            b.send_to(round.as_bytes(), outer_a).unwrap();
            let about = format!("{family:?}: {round}, {:#?}", forwarder.stats());
            assert_eq!(received(&a, &about), (round.to_owned(), outer_b));
            a.send_to(b"and back", outer_b).unwrap();
            assert_eq!(received(&b, &about), ("and back".to_owned(), outer_a));
        }
    }
    let stats = forwarder.stats();
    assert_eq!(stats.drops().into_iter().collect::<Vec<_>>(), [("drop_filtered", 2)], "{stats:#?}");
}

/// A port that a rule publishes is never a mapping's, nor one that a program of ours has open.
#[test]
fn mappings_keep_clear_of_listens_and_of_own_sockets() {
    let probe = Setting::NATIVE_TWO_ARMED.network("probe");
    let mut config = everybody();
    for family in Family::ALL {
        config += &rule(&format!("{family:?}"), probe.public(family, PORT), probe.backend(family, PORT), "");
    }
    drop(probe);
    let test = start("masqclear", Setting::NATIVE_TWO_ARMED, &config);
    let Net { net, forwarder } = &test;
    for family in Family::ALL {
        let public = net.public_address(family);
        let own = UdpEcho::start(&net.forwarder, (public, PORT + 1).into()).unwrap();
        let published = UdpEcho::start(&net.home, net.backend(family, PORT)).unwrap();
        let client = udp(&net.client, (outside(family, 2), PORT));
        for port in [PORT, PORT + 1, PORT + 2] {
            let socket = udp(&net.home, (inside(family, 20), port));
            let seen = seen_by(&socket, &client, "out");
            assert_eq!(seen.ip(), public);
            assert_eq!(seen.port() == port, port == PORT + 2, "{seen} for {port}");
            client.send_to(b"back", seen).unwrap();
            assert_eq!(received(&socket, "back").0, "back");
        }
        for to in [SocketAddr::new(public, PORT), own.address()] {
            client.send_to(b"question", to).unwrap();
            assert_eq!(received(&client, "answer"), ("question".to_owned(), to));
        }
        assert_eq!((published.peers().len(), own.peers().len()), (1, 1));
    }
    let stats = forwarder.stats();
    assert!(stats.rule("behind").port_clashes >= 4, "{stats:#?}");
    assert!(stats.drops().is_empty(), "{stats:#?}");
}

/// RFC 6888 REQ-11: who finds no port is dropped, and counted by that reason; who has one keeps it, and once it is free again
/// the next one has it. All ports but two are those of a rule.
#[test]
fn who_finds_no_port_is_counted() {
    const LEFT: [u16; 2] = [1024, 1025];
    let probe = Setting::TC_TWO_ARMED.network("probe");
    let mut config = format!("[timeouts]\nudp_opening = \"3s\"\nudp_established = \"3s\"\n{}", everybody());
    for family in Family::ALL {
        let all = |first: SocketAddr| format!("{first}-65535");
        let (listen, to) = (all(probe.public(family, 1026)), all(probe.backend(family, 1026)));
        config += &rule(&format!("{family:?}"), listen, to, "");
    }
    drop(probe);
    let test = start("masqfull", Setting::TC_TWO_ARMED, &config);
    let Net { net, forwarder } = &test;
    let mut dropped = 0;
    for family in Family::ALL {
        let server = udp(&net.client, (outside(family, 2), PORT));
        let sockets = |n: u8, ports: &[u16]| -> Vec<UdpSocket> {
            ports.iter().map(|port| udp(&net.home, (inside(family, n), *port))).collect()
        };
        let first = sockets(20, &LEFT);
        let late = sockets(21, &[LEFT[0], LEFT[1], 2000, 40_000]);
        let go_on = || {
            for (socket, port) in first.iter().zip(LEFT) {
                assert_eq!(seen_by(socket, &server, "first"), SocketAddr::new(net.public_address(family), port));
            }
        };
        go_on();
        for socket in late.iter().cycle().take(20) {
            socket.send_to(b"late", server.local_addr().unwrap()).unwrap();
            dropped += 1;
        }
        // What comes behind them shows that they were dealt with.
        go_on();
        let stats = forwarder.stats();
        assert_eq!(stats.drops().into_iter().collect::<Vec<_>>(), [("drop_no_port", dropped)], "{stats:#?}");
        assert!(stats.rule("behind").port_clashes > dropped, "{stats:#?}");
        assert_eq!(forwarder.mappings().len(), LEFT.len(), "{:#?}", forwarder.mappings());
        let shown = forwarder.succeed(&["stats"]);
        assert!(shown.lines().any(|line| line.contains("dropped: no port") && line.contains(&dropped.to_string())));
        forwarder.wait_for_flows(|count| count == 0);
        while !forwarder.mappings().is_empty() {
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(seen_by(&late[1], &server, "late").port(), LEFT[1]);
        forwarder.wait_for_flows(|count| count == 0);
    }
}

/// Whatever is not from behind, or goes elsewhere, takes its usual way: through this machine's kernel, or to it.
#[test]
fn what_is_not_to_be_masqueraded_passes() {
    let config = masquerade("some", "[\"10.8.0.20/31\", \"fd08::20/127\"]", "eth0", "")
        + &masquerade("elsewhere", "[\"10.8.0.24\", \"fd08::24\"]", "eth1", "");
    let test = start("masqpass", Setting::NATIVE_TWO_ARMED, &config);
    let Net { net, forwarder } = &test;
    net.forwarder.enable_kernel_forwarding().unwrap();
    for family in Family::ALL {
        let (client, public) = (net.client_address(family), net.public_address(family));
        let in_world = TcpServer::start(&net.client, (client, PORT).into()).unwrap();
        let ours = TcpServer::start(&net.forwarder, (public, PORT).into()).unwrap();
        // From no host behind, from one that goes out by another interface, to us, from the world, from us.
        for (host, from, to, seen) in [
            (&net.home, inside(family, 22), in_world.address(), inside(family, 22)),
            (&net.home, inside(family, 24), in_world.address(), inside(family, 24)),
            (&net.home, inside(family, 20), ours.address(), inside(family, 20)),
            (&net.client, client, ours.address(), client),
            (&net.forwarder, public, in_world.address(), public),
            // And this one is to be.
            (&net.home, inside(family, 20), in_world.address(), public),
        ] {
            let from = SocketAddr::new(from, 4000);
            let mut stream = EchoStream::connect(host, to, Some(from))
                .unwrap_or_else(|error| panic!("{from} to {to}: {error:#}\n{:#?}", forwarder.stats()));
            stream.exchange(b"as it came").unwrap();
            stream.reset().unwrap();
            let server = [&in_world, &ours].into_iter().find(|server| server.address() == to).unwrap();
            assert_eq!(server.peers().last().unwrap().ip(), seen, "{from} to {to}");
        }
    }
    let stats = forwarder.stats();
    assert_eq!((stats.rule("some").flows, stats.rule("elsewhere").flows), (2, 0), "{stats:#?}");
    assert!(stats.drops().is_empty(), "{stats:#?}");
}
