//! Every source mode × family × protocol, in every setting: what arrives, whom home sees, what is counted.

use std::net::{IpAddr, SocketAddr};

use forwarder_lab::{Crowd, EchoStream, Family, Frame, Ping, TcpServer, Topology, Transfer, UdpEcho, UdpSocketIn};

use crate::config::{rule, source};
use crate::forwarder::{Forwarder, RuleStats, Traffic};
use crate::setting::{Mode, Setting, Source, family_name, public_address};

const BIG: u64 = 10_000_000;
const CROWD: usize = 1000;
pub(crate) const PORT: u16 = 80;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
/// The kernel's `ip_local_port_range`, where programs of the forwarder itself have their ports.
const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 32768..=60999;

in_every_setting!(tcp, udp, ping, crowd, ports_are_used_again);

/// One source mode and family, with rules of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) source: Source,
    pub(crate) family: Family,
}

struct Test {
    net: Topology,
    forwarder: Forwarder,
    setting: Setting,
}

impl Case {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Source::ALL.into_iter().flat_map(|source| Family::ALL.map(|family| Self { source, family }))
    }

    /// TCP and UDP to one port.
    fn rule_name(self) -> String {
        format!("{}-{}", self.source.name(), family_name(self.family))
    }

    fn ping_rule_name(self) -> String {
        format!("{}-ping", self.rule_name())
    }

    fn ip_header(self) -> usize {
        if self.family == Family::V4 { 20 } else { 40 }
    }
}

impl Test {
    fn start(name: &str, setting: Setting) -> Self {
        let net = setting.network(name);
        let forwarder = Forwarder::on(&net);
        let config: String = Case::all().map(|case| rules(&net, case)).collect();
        forwarder.load(setting, &config);
        let list = forwarder.list();
        for case in Case::all() {
            assert_eq!(list.is_stateless(&case.rule_name()), case.source == Source::Preserve, "{case:?}");
        }
        Self { net, forwarder, setting }
    }

    fn target(&self, case: Case) -> SocketAddr {
        (public_address(&self.net, case.source, case.family), PORT).into()
    }

    fn home(&self, case: Case) -> SocketAddr {
        self.net.backend(case.family, case.source.home_port())
    }

    /// Checks the end of the client that home saw.
    fn check_seen(&self, case: Case, seen: SocketAddr, client: SocketAddr) {
        assert_eq!(seen.ip(), self.seen_address(case), "{case:?}: home saw {seen} for {client}");
        if case.source == Source::Preserve {
            assert_eq!(seen, client, "{case:?}");
        } else {
            assert!(!LOCAL_PORTS.contains(&seen.port()), "{case:?}: port {seen} belongs to the machine's own programs");
        }
    }

    fn seen_address(&self, case: Case) -> IpAddr {
        case.source.seen(&self.net, case.family, self.net.client_address(case.family))
    }

    fn rule(&self, name: &str) -> RuleStats {
        self.forwarder.stats().rule(name)
    }

    /// What must hold after any of the tests: no packet was dropped, and the right hook did the work.
    fn finish(&self, mostly_established: bool) {
        let stats = self.forwarder.stats();
        assert!(stats.drops().is_empty(), "{:?}", stats.drops());
        let (xdp, tc) = stats.forwarded();
        match self.setting.mode {
            Mode::Tc => assert_eq!(xdp, 0, "{stats:?}"),
            Mode::Native if mostly_established => assert!(xdp > 20 * tc, "XDP {xdp}, TC {tc}: {stats:?}"),
            Mode::Native => assert!(xdp > 0, "{stats:?}"),
        }
    }
}

pub(crate) fn rules(net: &Topology, case: Case) -> String {
    let (name, ping) = (case.rule_name(), case.ping_rule_name());
    let public = public_address(net, case.source, case.family);
    let listen = SocketAddr::from((public, PORT));
    let to = net.backend(case.family, case.source.home_port());
    let home = net.home_address(case.family);
    let key = source(case.source.key(net, case.family));
    rule(&name, listen, to, &key) + &rule(&ping, public, home, &format!("protocol = \"icmp\"\n{key}"))
}

/// 10 MB both ways with their sums, and everything that must be seen and counted.
fn tcp(setting: Setting) {
    let test = Test::start("tcp", setting);
    for case in Case::all() {
        let server = TcpServer::start(&test.net.home, test.home(case)).unwrap();
        let moved = Transfer::to(test.target(case)).upload(BIG).download(BIG).run(&test.net.client);
        let moved = moved.unwrap_or_else(|error| panic!("{case:?}: {error:#}\n{:#?}", test.forwarder.stats()));
        test.check_seen(case, moved.seen_as, moved.local);
        assert_eq!(server.peers(), [moved.seen_as], "{case:?}");

        let counted = test.rule(&case.rule_name());
        for Traffic { packets, bytes } in [counted.forward, counted.reply] {
            // Acknowledgements and headers come on top; a GSO packet counts as one.
            assert!((BIG..2 * BIG).contains(&bytes) && packets > BIG / 65_536, "{case:?}: {counted:?}");
        }
        assert_eq!(counted.flows, u64::from(case.source != Source::Preserve), "{case:?}");
        assert_eq!(counted.denied, 0, "{case:?}");
    }
    test.finish(true);
}

/// Datagrams of several sizes, counted to the byte.
fn udp(setting: Setting) {
    let test = Test::start("udp", setting);
    for case in Case::all() {
        let echo = UdpEcho::start(&test.net.home, test.home(case)).unwrap();
        let socket = UdpSocketIn::connect(&test.net.client, test.target(case), None).unwrap();
        let largest = 1500 - case.ip_header() - UDP_HEADER;
        let sizes = [0, 1, 2, 17, 1000, 1001, largest];
        for size in sizes {
            let datagram: Vec<u8> = (0..size).map(|n| n as u8).collect();
            let answered = socket.exchange(&datagram);
            answered.unwrap_or_else(|error| panic!("{case:?}, {size}: {error:#}\n{:#?}", test.forwarder.stats()));
        }
        let peers = echo.peers();
        assert_eq!(peers.len(), sizes.len(), "{case:?}");
        assert!(peers.iter().all(|peer| *peer == peers[0]), "{case:?}: {peers:?}");
        let local = SocketAddr::new(test.net.client_address(case.family), socket.local().unwrap().port());
        test.check_seen(case, peers[0], local);

        let bytes: usize = sizes.iter().map(|size| case.ip_header() + UDP_HEADER + size).sum();
        let expected = Traffic { packets: sizes.len() as u64, bytes: bytes as u64 };
        let counted = test.rule(&case.rule_name());
        assert_eq!((counted.forward, counted.reply), (expected, expected), "{case:?}");
        assert_eq!(counted.flows, u64::from(case.source != Source::Preserve), "{case:?}");
    }
    test.finish(false);
}

/// Echo requests and replies, counted to the byte, seen with the right source.
fn ping(setting: Setting) {
    const COUNT: u16 = 5;
    let test = Test::start("ping", setting);
    for case in Case::all() {
        for (identifier, payload) in [(1, 0), (77, 56), (65535, 1001)] {
            let before = test.rule(&case.ping_rule_name());
            let capture = test.net.home.capture("eth0").unwrap();
            let target = test.target(case).ip();
            let ping = Ping::to(target).identifier(identifier).count(COUNT).payload(payload);
            let answered = ping.run(&test.net.client);
            answered.unwrap_or_else(|error| panic!("{case:?}: {error:#}\n{:#?}", test.forwarder.stats()));
            let request = capture.wait_for(Frame::is_echo_request).unwrap();
            let ends = (test.seen_address(case), test.net.home_address(case.family));
            assert_eq!(request.addresses(), Some(ends), "{case:?}");

            let bytes = usize::from(COUNT) * (case.ip_header() + ICMP_HEADER + payload);
            let after = test.rule(&case.ping_rule_name());
            for (before, after) in [(before.forward, after.forward), (before.reply, after.reply)] {
                assert_eq!(after.packets - before.packets, u64::from(COUNT), "{case:?}");
                assert_eq!(after.bytes - before.bytes, bytes as u64, "{case:?}");
            }
        }
    }
    test.finish(false);
}

/// A thousand connections at the same time; no two are mixed up.
fn crowd(setting: Setting) {
    let test = Test::start("crowd", setting);
    for case in Case::all() {
        let server = TcpServer::start(&test.net.home, test.home(case)).unwrap();
        let mut crowd = Crowd::connect(&test.net.client, test.target(case), CROWD).unwrap();
        crowd.exchange().unwrap();
        crowd.exchange().unwrap();
        let mut seen = server.wait_for_peers(CROWD).unwrap();
        if case.source == Source::Preserve {
            assert_eq!(seen, crowd.locals().unwrap(), "{case:?}");
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), CROWD, "{case:?}: two connections shared a port");
        crowd.close().unwrap();
        let flows = test.rule(&case.rule_name()).flows;
        assert_eq!(flows, if case.source == Source::Preserve { 0 } else { CROWD as u64 }, "{case:?}");
    }
    test.finish(false);
}

/// A client that uses its port again at once, after an orderly end and after a reset.
fn ports_are_used_again(setting: Setting) {
    let test = Test::start("reuse", setting);
    for case in Case::all() {
        let server = TcpServer::start(&test.net.home, test.home(case)).unwrap();
        let from = SocketAddr::new(test.net.client_address(case.family), 4000);
        for round in 0..3 {
            // Here the server closes first, so that the client's port is free at once.
            let moved = Transfer::to(test.target(case)).from(from).upload(1000).download(1000).run(&test.net.client);
            let moved = moved.unwrap_or_else(|error| panic!("{case:?} {round}: {error:#}"));
            test.check_seen(case, moved.seen_as, from);
        }
        for round in 0..3 {
            let stream = EchoStream::connect(&test.net.client, test.target(case), Some(from));
            let mut stream = stream.unwrap_or_else(|error| panic!("{case:?} {round}: {error:#}"));
            stream.exchange(b"again").unwrap();
            stream.reset().unwrap();
        }
        assert_eq!(server.wait_for_peers(6).unwrap().len(), 6);
    }
    test.finish(false);
}
