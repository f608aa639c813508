//! What applications and kernels at either end learn from ICMP errors, of end hosts and of routers on the way.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use forwarder_lab::{
    EchoStream, Family, Frame, Host, Offloads, TcpServer, Topology, Transfer, UdpEcho, UdpSocketIn, patience,
};

use crate::config::{rule, source as source_key};
use crate::forwarder::Forwarder;
use crate::setting::{Mode, Setting, Source, family_name, public_address};

in_every_setting!(closed_ports, the_clients_closed_port, path_mtu, no_way_to_the_backend, traceroute);

/// To home itself.
const HOME: u16 = 53;
/// To the host behind home.
const FAR: u16 = 80;
const ETHERNET: usize = 14;
const ROUTE_MTU: u16 = 1300;

/// A network, and behind home, which is a router here, one more host.
struct Test {
    net: Topology,
    forwarder: Forwarder,
    far: Host,
}

impl Test {
    fn start(name: &str, setting: Setting) -> Self {
        let net = setting.network(name);
        let far = net.lab.host("far").unwrap();
        let offloads = if setting.mode == Mode::Native { Offloads::Native } else { Offloads::Default };
        net.lab.link(&net.home, "far", &far, "eth0", offloads.into()).unwrap();
        net.home.enable_kernel_forwarding().unwrap();
        for family in Family::ALL {
            let (network, router) = far_network(family);
            let length = if family == Family::V4 { 24 } else { 64 };
            net.home.address("far", &format!("{router}/{length}")).unwrap();
            far.address("eth0", &format!("{}/{length}", far_address(family))).unwrap();
            far.route("default", &format!("via {router}")).unwrap();
            let before_home = net.router.as_ref().unwrap_or(&net.forwarder);
            before_home.route(network, &format!("via {}", net.home_address(family))).unwrap();
        }
        let forwarder = Forwarder::on(&net);
        let mut config = String::new();
        for (source, family) in cases() {
            let key = source_key(source.key(&net, family));
            let name = format!("{}-{}", source.name(), family_name(family));
            let public = public_address(&net, source, family);
            let home = net.backend(family, source.home_port());
            config += &rule(&name, SocketAddr::new(public, HOME), home, &key);
            let far = SocketAddr::new(far_address(family), source.home_port());
            config += &rule(&format!("{name}-far"), SocketAddr::new(public, FAR), far, &key);
        }
        forwarder.load(setting, &config);
        Self { net, forwarder, far }
    }

    fn target(&self, source: Source, family: Family, port: u16) -> SocketAddr {
        (public_address(&self.net, source, family), port).into()
    }

    /// Nothing was dropped, and every error was about something.
    fn finish(&self) {
        let stats = self.forwarder.stats();
        assert!(stats.drops().is_empty(), "{stats:?}");
        for outcome in ["icmp_stray", "icmp_bad_checksum"] {
            assert_eq!(stats.outcome(outcome), 0, "{outcome}: {stats:?}");
        }
    }
}

pub(crate) fn cases() -> impl Iterator<Item = (Source, Family)> {
    Source::ALL.into_iter().flat_map(|source| Family::ALL.map(|family| (source, family)))
}

/// The network behind home, and home's address in it.
fn far_network(family: Family) -> (&'static str, IpAddr) {
    match family {
        Family::V4 => ("10.9.0.0/24", [10, 9, 0, 1].into()),
        Family::V6 => ("fd09::/64", [0xfd09, 0, 0, 0, 0, 0, 0, 1].into()),
    }
}

fn far_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 9, 0, 2].into(),
        Family::V6 => [0xfd09, 0, 0, 0, 0, 0, 0, 2].into(),
    }
}

fn refused(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A client is told at once that nobody listens, at the address it knows; and the flow goes on when somebody does.
fn closed_ports(setting: Setting) {
    let test = Test::start("closed", setting);
    for (source, family) in cases() {
        let client = UdpSocketIn::connect(&test.net.client, test.target(source, family, HOME), None).unwrap();
        client.send(b"is anybody there?").unwrap();
        let error = client.receive(patience()).unwrap_err();
        assert!(refused(&error), "{source:?} {family:?}: {error:#}");
        let _echo = UdpEcho::start(&test.net.home, test.net.backend(family, source.home_port())).unwrap();
        client.exchange(b"now there is").unwrap();
    }
    test.finish();
}

/// A server that answers too late is told so, at the address under which it knows the client.
fn the_clients_closed_port(setting: Setting) {
    let test = Test::start("late", setting);
    for (source, family) in cases() {
        let home = test.net.backend(family, source.home_port());
        let server = test.net.home.enter(|| UdpSocket::bind(home)).unwrap().unwrap();
        server.set_read_timeout(Some(patience())).unwrap();
        let client = UdpSocketIn::connect(&test.net.client, test.target(source, family, HOME), None).unwrap();
        client.send(b"a question").unwrap();
        let (_, seen) = server.recv_from(&mut [0; 100]).unwrap();
        drop(client);
        server.connect(seen).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let deadline = Instant::now() + patience();
        // A program that another test is just starting may hold a copy of the client's socket for a moment.
        let error = loop {
            server.send(b"an answer, too late").unwrap();
            let error = server.recv(&mut [0; 100]).unwrap_err();
            if error.kind() != io::ErrorKind::WouldBlock || Instant::now() > deadline {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{source:?} {family:?}: {error}");
    }
    test.finish();
}

/// The way from home on takes less than a frame: the client's kernel hears of it and sends less.
fn path_mtu(setting: Setting) {
    let test = Test::start("pmtu", setting);
    for family in Family::ALL {
        test.net.home.route(&far_address(family).to_string(), &format!("dev far mtu {ROUTE_MTU}")).unwrap();
    }
    for (source, family) in cases() {
        let target = test.target(source, family, FAR);
        let server = TcpServer::start(&test.far, (far_address(family), source.home_port()).into()).unwrap();
        let moved = Transfer::to(target).upload(300_000).download(1000).run(&test.net.client);
        moved.unwrap_or_else(|error| panic!("{source:?} {family:?}: {error:#}\n{:#?}", test.forwarder.stats()));
        assert_eq!(server.peers().len(), 1);
        let route = test.net.client.ip(&format!("route get {}", target.ip())).unwrap();
        assert!(route.contains(&format!("mtu {ROUTE_MTU}")), "{source:?} {family:?}: {route}");
    }
    test.finish();
}

/// A router says that there is no way: the client need not wait until it gives up.
fn no_way_to_the_backend(setting: Setting) {
    let test = Test::start("noway", setting);
    for family in Family::ALL {
        test.net.home.ip(&format!("route add unreachable {}", far_address(family))).unwrap();
    }
    for (source, family) in cases() {
        let error = EchoStream::connect(&test.net.client, test.target(source, family, FAR), None).err().unwrap();
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        let told = matches!(kind, Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable));
        assert!(told, "{source:?} {family:?}: {error:#}");
    }
    test.finish();
}

/// Packets with little time to live: what a router says when it is over names the packet that the client sent.
fn traceroute(setting: Setting) {
    let test = Test::start("trace", setting);
    for (source, family) in cases() {
        let target = test.target(source, family, FAR);
        let from = SocketAddr::new(test.net.client_address(family), 5000 + source.home_port() % 100);
        let at_client = test.net.client.capture("eth0").unwrap();
        let socket = test.net.client.enter(|| UdpSocket::bind(from)).unwrap().unwrap();
        // The last hop before home: forwarder, or the second time the router.
        let hops = if test.net.router.is_some() { 4 } else { 2 };
        set_hops(&socket, hops);
        socket.send_to(b"how far is it?", target).unwrap();
        let error = at_client.wait_for(|frame| time_exceeded(frame).is_some()).unwrap();
        let (ends, embedded) = time_exceeded(&error).unwrap();
        assert_eq!(ends, (target.ip(), from.ip()), "{source:?} {family:?}: the error's ends");
        assert_eq!(embedded, (from, target), "{source:?} {family:?}: the embedded packet's ends");
    }
    test.finish();
}

pub(crate) fn set_hops(socket: &UdpSocket, hops: u32) {
    let socket = socket2::SockRef::from(socket);
    if socket.local_addr().unwrap().is_ipv4() {
        socket.set_ttl_v4(hops).unwrap();
    } else {
        socket.set_unicast_hops_v6(hops).unwrap();
    }
}

/// The ends of an arriving "time exceeded" with a right checksum, and those of the UDP packet inside.
pub(crate) fn time_exceeded(frame: &Frame) -> Option<((IpAddr, IpAddr), (SocketAddr, SocketAddr))> {
    let ends = frame.addresses()?;
    let (header, kind, protocol) = if ends.0.is_ipv4() { (20, 11, 1) } else { (40, 3, 58) };
    let ip = frame.bytes.get(ETHERNET..)?;
    let next = *ip.get(if header == 20 { 9 } else { 6 })?;
    let message = ip.get(header..)?;
    if frame.outgoing || next != protocol || *message.first()? != kind {
        return None;
    }
    assert!(frame.has_right_checksums()?.1, "{:02x?}", frame.bytes);
    let inside = message.get(8..)?;
    let ports = inside.get(header..)?;
    let port = |at: usize| Some(u16::from_be_bytes([*ports.get(at)?, *ports.get(at + 1)?]));
    let address = |n: usize| -> Option<IpAddr> {
        Some(if header == 20 {
            let octets: [u8; 4] = inside.get(12 + 4 * n..16 + 4 * n)?.try_into().ok()?;
            Ipv4Addr::from(octets).into()
        } else {
            let octets: [u8; 16] = inside.get(8 + 16 * n..24 + 16 * n)?.try_into().ok()?;
            Ipv6Addr::from(octets).into()
        })
    };
    Some((ends, ((address(0)?, port(0)?).into(), (address(1)?, port(2)?).into())))
}
