//! `[[steer]]`: a machine with two lines, each of which only lets its own sources through (RFC 2827). The default route is by
//! the first; what belongs to the second is lost without a steer.
//!
//! ```text
//!            ┌── eth0 ─ ra ─ eth0 ┐
//!     client ┤                    ├ forwarder ─ eth2 ── home
//!            └── eth1 ─ rb ─ eth1 ┘
//! ```

mod default_route;
mod line;

use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};

use forwarder_lab::{
    EchoStream, Family, Host, Lab, LinkOptions, Offloads, Ping, Shape, TcpServer, Topology, Transfer, UdpEcho,
    UdpSocketIn,
};

use socket2::SockRef;

use crate::config::{rule, source};
use crate::forwarder::Forwarder;
use crate::setting::{Mode, Setting};

const SIZE: u64 = 1_000_000;

/// Both lines, as prefixes of addresses: the router is .1, the forwarder .7, hosts behind it .128 and up.
const LINES: [[&str; 2]; 2] = [["203.0.113.", "2001:db8:3::"], ["192.0.2.", "2001:db8:4::"]];

pub(crate) struct Lines {
    pub(crate) net: Topology,
    pub(crate) forwarder: Forwarder,
    pub(crate) setting: Setting,
    /// The routers of the lines.
    pub(crate) routers: [Host; 2],
}

/// An address of a line.
pub(crate) fn on(line: usize, family: Family, host: u8) -> IpAddr {
    let prefix = LINES[line][usize::from(family == Family::V6)];
    match family {
        Family::V4 => format!("{prefix}{host}"),
        Family::V6 => format!("{prefix}{host:x}"),
    }
    .parse()
    .unwrap()
}

fn both(host: &Host, interface: &str, addresses: [&str; 2]) {
    for address in addresses {
        host.address(interface, address).unwrap();
    }
}

pub(crate) fn network(name: &str, mode: Mode) -> Lines {
    let setting = Setting { mode, shape: Shape::TwoArmed };
    let options = LinkOptions::from(if mode == Mode::Native { Offloads::Native } else { Offloads::Default });
    let lab = Lab::new(name).unwrap();
    let [client, forwarder, home] = ["client", "forwarder", "home"].map(|name| lab.host(name).unwrap());
    let routers = [0, 1].map(|number| lab.host(&format!("r{number}")).unwrap());
    for (number, interface) in ["eth0", "eth1"].into_iter().enumerate() {
        let router = &routers[number];
        lab.link(&client, interface, router, "world", options).unwrap();
        lab.link(&forwarder, interface, router, "line", options).unwrap();
        router.enable_kernel_forwarding().unwrap();
        let [v4, v6] = LINES[number];
        both(router, "line", [&format!("{v4}1/24"), &format!("{v6}1/64")]);
        both(&forwarder, interface, [&format!("{v4}7/24"), &format!("{v6}7/64")]);
        // Hosts behind the forwarder that have addresses of the line.
        router.route(&format!("{v4}128/25"), &format!("via {v4}7")).unwrap();
        router.route(&format!("{v6}8000/113"), &format!("via {v6}7")).unwrap();
        both(router, "world", [&format!("198.51.10{number}.1/24"), &format!("2001:db8:1{number}::1/64")]);
        both(&client, interface, [&format!("198.51.10{number}.2/24"), &format!("2001:db8:1{number}::2/64")]);
        client.route(&format!("{v4}0/24"), &format!("via 198.51.10{number}.1")).unwrap();
        client.route(&format!("{v6}/64"), &format!("via 2001:db8:1{number}::1")).unwrap();
        // The client is one: its first address is known everywhere.
        if number == 1 {
            router.route("198.51.100.2/32", "via 198.51.101.2").unwrap();
            router.route("2001:db8:10::2/128", "via 2001:db8:11::2").unwrap();
        }
        refuse_foreign_sources(router, v4, v6);
    }
    lab.link(&home, "eth0", &forwarder, "eth2", options).unwrap();
    both(&forwarder, "eth2", ["10.8.0.1/24", "fd08::1/64"]);
    both(&home, "eth0", ["10.8.0.2/24", "fd08::2/64"]);
    for (host, gateways) in [(&forwarder, ["203.0.113.1", "2001:db8:3::1"]), (&home, ["10.8.0.1", "fd08::1"])] {
        for gateway in gateways {
            host.route("default", &format!("via {gateway}")).unwrap();
        }
    }
    let net = Topology { client, forwarder, home, router: None, shape: Shape::TwoArmed, lab };
    let forwarder = Forwarder::on(&net).serving(&["eth0", "eth1", "eth2"]);
    Lines { net, forwarder, setting, routers }
}

/// As providers do.
fn refuse_foreign_sources(router: &Host, v4: &str, v6: &str) {
    let rules = format!(
        "table inet bcp38 {{ chain forward {{ type filter hook forward priority 0; \
         iifname \"line\" ip saddr != {v4}0/24 drop; iifname \"line\" ip6 saddr != {v6}/64 drop; }}; }}"
    );
    router.run(&["nft", &rules]).unwrap();
}

/// The second line for what belongs to it.
fn steer() -> String {
    "[[steer]]\nname = \"second\"\nfrom = [\"192.0.2.0/24\", \"2001:db8:4::/64\"]\ninterface = \"eth1\"\n\
     gateway = [\"192.0.2.1\", \"2001:db8:4::1\"]\n\n"
        .to_owned()
}

impl Lines {
    /// The client, with the address that everyone knows.
    pub(crate) fn client(family: Family) -> IpAddr {
        match family {
            Family::V4 => [198, 51, 100, 2].into(),
            Family::V6 => "2001:db8:10::2".parse().unwrap(),
        }
    }

    fn transfer(to: SocketAddr) -> Transfer {
        let from = SocketAddr::new(Self::client(if to.is_ipv4() { Family::V4 } else { Family::V6 }), 0);
        Transfer::to(to).from(from).upload(SIZE).download(SIZE)
    }

    #[track_caller]
    fn fails(&self, to: SocketAddr) {
        Self::transfer(to).must_fail(&self.net.client).unwrap();
    }

    #[track_caller]
    fn works(&self, to: SocketAddr, about: &str) -> SocketAddr {
        let moved = Self::transfer(to).run(&self.net.client);
        moved.unwrap_or_else(|error| panic!("{about}, {to}: {error:#}\n{:#?}", self.forwarder.stats())).seen_as
    }

    /// Bytes that left by a line, as its router counted them.
    fn steered(&self) -> (u64, u64) {
        let rule = self.forwarder.stats().rule("second");
        (rule.forward.packets, rule.reply.packets)
    }
}

macro_rules! in_both_modes {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            use crate::setting::Mode;
            #[test]
            fn native() {
                super::$name(Mode::Native);
            }
            #[test]
            fn tc() {
                super::$name(Mode::Tc);
            }
        }
    )* };
}
pub(crate) use in_both_modes;

in_both_modes!(
    own_services_answer_by_both_lines,
    rules_answer_by_both_lines,
    hosts_with_addresses_of_a_line_use_it,
    what_is_connected_is_not_steered,
);

/// A server of the machine itself listens on both addresses.
fn own_services_answer_by_both_lines(mode: Mode) {
    let test = network("steerown", mode);
    for family in Family::ALL {
        let ends = [0, 1].map(|line| SocketAddr::new(on(line, family, 7), 80));
        let _servers = ends.map(|end| TcpServer::start(&test.net.forwarder, end).unwrap());
        test.works(ends[0], "without forwarder");
        test.fails(ends[1]);
    }
    test.forwarder.load(test.setting, &steer());
    for family in Family::ALL {
        let ends = [0, 1].map(|line| SocketAddr::new(on(line, family, 7), 80));
        let _servers = ends.map(|end| TcpServer::start(&test.net.forwarder, end).unwrap());
        let before = test.steered();
        test.works(ends[0], "the default line");
        assert_eq!(test.steered(), before, "the default line is left alone");
        let seen = test.works(ends[1], "the second line");
        assert_eq!(seen.ip(), Lines::client(family));
        assert!(test.steered().1 > before.1);
        // Both at once, and the machine's own connections by the source that they are bound to.
        let mut both = ends.map(|end| {
            EchoStream::connect(&test.net.client, end, Some(SocketAddr::new(Lines::client(family), 0))).unwrap()
        });
        for _ in 0..5 {
            for stream in &mut both {
                stream.exchange(b"both lines").unwrap();
            }
        }
        let answering = TcpServer::start(&test.net.client, SocketAddr::new(Lines::client(family), 81)).unwrap();
        for line in [0, 1] {
            let from = SocketAddr::new(on(line, family, 7), 0);
            let moved =
                Transfer::to(answering.address()).from(from).upload(SIZE).download(SIZE).run(&test.net.forwarder);
            assert_eq!(moved.unwrap().seen_as.ip(), from.ip());
        }
        // Datagrams, whole and in fragments; echoes.
        let _echo = UdpEcho::start(&test.net.forwarder, SocketAddr::new(on(1, family, 7), 53)).unwrap();
        let socket = UdpSocketIn::connect(
            &test.net.client,
            SocketAddr::new(on(1, family, 7), 53),
            Some(SocketAddr::new(Lines::client(family), 0)),
        )
        .unwrap();
        for size in [1, 1400, 8000] {
            socket.exchange(&vec![7; size]).unwrap_or_else(|error| panic!("{family:?} {size}: {error:#}"));
        }
    }
    test.forwarder.succeed(&["unload"]);
    for family in Family::ALL {
        let end = SocketAddr::new(on(1, family, 7), 80);
        let _server = TcpServer::start(&test.net.forwarder, end).unwrap();
        test.fails(end);
    }
}

/// Each address is forwarded to home, preserving and masquerading.
fn rules_answer_by_both_lines(mode: Mode) {
    let test = network("steerrule", mode);
    let mut rules = String::new();
    for family in Family::ALL {
        for line in [0, 1] {
            for (kind, port) in [("preserve", 80), ("masquerade", 81)] {
                let to_port = 8000 + port + 100 * u16::try_from(line).unwrap();
                let (listen, to) = (SocketAddr::new(on(line, family, 7), port), test.net.backend(family, to_port));
                rules += &rule(&format!("{kind}-{line}-{family:?}"), listen, to, &source(kind));
            }
        }
    }
    let all = |rules: &str, steer: &str| format!("{rules}{steer}");
    test.forwarder.load(test.setting, &all(&rules, ""));
    let check = |steered: bool| {
        for family in Family::ALL {
            for line in [0, 1] {
                for (kind, port) in [("preserve", 80), ("masquerade", 81)] {
                    let to_port = 8000 + port + 100 * u16::try_from(line).unwrap();
                    let _server = TcpServer::start(&test.net.home, test.net.backend(family, to_port)).unwrap();
                    let end = SocketAddr::new(on(line, family, 7), port);
                    if line == 0 || steered {
                        let seen = test.works(end, kind);
                        assert_eq!(seen.ip() == Lines::client(family), kind == "preserve");
                    } else {
                        test.fails(end);
                    }
                }
            }
        }
    };
    check(false);
    test.forwarder.configure(&all(&rules, &steer()));
    test.forwarder.succeed(&["reload"]);
    check(true);
    test.forwarder.configure(&all(&rules, ""));
    test.forwarder.succeed(&["reload"]);
    check(false);
}

/// Hosts behind the machine that have addresses of the second line of their own, without translation.
fn hosts_with_addresses_of_a_line_use_it(mode: Mode) {
    let test = network("steerpass", mode);
    test.net.forwarder.enable_kernel_forwarding().unwrap();
    let host = |family| match family {
        Family::V4 => on(1, family, 200),
        Family::V6 => "2001:db8:4::8001".parse().unwrap(),
    };
    for (family, length) in [(Family::V4, 32), (Family::V6, 128)] {
        test.net.home.further_address("eth0", &format!("{}/{length}", host(family))).unwrap();
        test.net
            .forwarder
            .route(&format!("{}/{length}", host(family)), &format!("via {}", test.net.home_address(family)))
            .unwrap();
    }
    for steered in [false, true] {
        if steered {
            test.forwarder.load(test.setting, &steer());
        }
        for family in Family::ALL {
            let end = SocketAddr::new(host(family), 80);
            let _server = TcpServer::start(&test.net.home, end).unwrap();
            if steered {
                assert_eq!(test.works(end, "a host behind").ip(), Lines::client(family));
                assert!(test.steered().0 > 0);
            } else {
                test.fails(end);
            }
        }
    }
    let pinged = Ping::to(host(Family::V4)).identifier(9).count(2).payload(4000).run(&test.net.client);
    // The client's own choice of a source is that of the line.
    pinged.unwrap();
}

/// Home reaches the second address by the network that both are connected to.
fn what_is_connected_is_not_steered(mode: Mode) {
    let test = network("steerlink", mode);
    test.forwarder.load(test.setting, &steer());
    for family in Family::ALL {
        let end = SocketAddr::new(on(1, family, 7), 80);
        let _server = TcpServer::start(&test.net.forwarder, end).unwrap();
        let moved = Transfer::to(end).upload(SIZE).download(SIZE).run(&test.net.home).unwrap();
        assert_eq!(moved.seen_as.ip(), test.net.home_address(family));
        assert_eq!(test.steered(), (0, 0));
        // Nor what is for everybody on a link.
        let everybody = match family {
            Family::V4 => vec!["224.1.1.1", "255.255.255.255", "203.0.113.255", "169.254.1.1"],
            Family::V6 => vec!["ff05::1", "fe80::99"],
        };
        let from = SocketAddr::new(on(1, family, 7), 0);
        let index = test.net.forwarder.ifindex("eth0").unwrap();
        test.net
            .forwarder
            .enter(|| {
                for to in &everybody {
                    // Bound to an interface that routing alone would take.
                    let socket = UdpSocket::bind(from).unwrap();
                    SockRef::from(&socket).bind_device(Some(b"eth0")).unwrap();
                    socket.set_broadcast(true).unwrap();
                    let to = match to.parse().unwrap() {
                        IpAddr::V4(to) => SocketAddr::new(to.into(), 68),
                        IpAddr::V6(to) => SocketAddrV6::new(to, 546, 0, index).into(),
                    };
                    socket.send_to(b"everybody", to).unwrap_or_else(|error| panic!("{to}: {error}"));
                }
            })
            .unwrap();
        assert_eq!(test.steered(), (0, 0));
        // The router of the line, which is in its network.
        Ping::to(on(1, family, 1)).identifier(5).count(1).payload(56).run(&test.net.forwarder).unwrap();
    }
}
