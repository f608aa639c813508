//! `[[neighbor]]`: hosts that live behind forwarder have addresses of the network in front of it.
//!
//! The world's host is a router on 198.51.100.0/24 and 2001:db8:1::/64, which is all that it knows: it asks for every
//! address of those on the link. 198.51.100.32/30 and 2001:db8:1:0:8::/78 are used behind forwarder.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use forwarder_lab::{
    EchoStream, Family, Host, Lab, LinkOptions, Ping, Shape, TcpServer, Topology, Transfer, Tun, TunKind, TunPump,
    patience,
};

use crate::forwarder::Forwarder;
use crate::setting::Setting;
use crate::test_packet::{Body, TestPacket};

const PORT: u16 = 700;
const SETTINGS: [Setting; 2] = [Setting::NATIVE_TWO_ARMED, Setting::TC_TWO_ARMED];
const BEHIND: &str = "[\"198.51.100.32/30\", \"2001:db8:1:0:8::/78\"]";

/// A `[[neighbor]]` that answers on eth0 for all that live behind eth1.
fn neighbor(more: &str) -> String {
    format!("[[neighbor]]\nname = \"behind\"\ninterface = \"eth0\"\nfor = {BEHIND}\nvia = \"eth1\"\n{more}\n")
}

/// The world, forwarder and a host behind, with the routes and addresses of each, and nobody's help.
fn network(name: &str, setting: Setting) -> Topology {
    let offloads = match setting.mode {
        crate::setting::Mode::Native => forwarder_lab::Offloads::Native,
        crate::setting::Mode::Tc => forwarder_lab::Offloads::Default,
    };
    let lab = Lab::new(name).unwrap();
    let [client, forwarder, home] = ["client", "forwarder", "home"].map(|name| lab.host(name).unwrap());
    lab.link(&client, "eth0", &forwarder, "eth0", offloads.into()).unwrap();
    lab.link(&forwarder, "eth1", &home, "eth0", offloads.into()).unwrap();
    for (host, interface, addresses) in [
        (&client, "eth0", ["198.51.100.1/24", "2001:db8:1::1/64"]),
        (&forwarder, "eth0", ["198.51.100.2/24", "2001:db8:1::2/64"]),
        (&forwarder, "eth1", ["10.8.0.1/24", "2001:db8:1:0:8::1/78"]),
        (&home, "eth0", ["198.51.100.33/32", "2001:db8:1:0:8::2/78"]),
    ] {
        for address in addresses {
            host.address(interface, address).unwrap();
        }
    }
    forwarder.route("198.51.100.32/30", "dev eth1").unwrap();
    home.route("default", "via 10.8.0.1 dev eth0 onlink").unwrap();
    home.route("default", "via 2001:db8:1:0:8::1").unwrap();
    forwarder.enable_kernel_forwarding().unwrap();
    Topology { client, forwarder, home, router: None, shape: Shape::TwoArmed, lab }
}

fn world(family: Family) -> IpAddr {
    match family {
        Family::V4 => [198, 51, 100, 1].into(),
        Family::V6 => "2001:db8:1::1".parse().unwrap(),
    }
}

fn inside(family: Family) -> IpAddr {
    match family {
        Family::V4 => [198, 51, 100, 33].into(),
        Family::V6 => "2001:db8:1:0:8::2".parse().unwrap(),
    }
}

/// What a host's kernel knows of a neighbour.
fn known(host: &Host, address: IpAddr) -> String {
    host.ip(&format!("neigh show {address} dev eth0")).unwrap()
}

fn forget(host: &Host) {
    host.ip("-4 neigh flush dev eth0").unwrap();
    host.ip("-6 neigh flush dev eth0").unwrap();
}

/// Waits until something is so. (The kernel tells nobody.)
fn eventually(about: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + 2 * patience();
    while !is_so() {
        assert!(Instant::now() < deadline, "{about}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Both ways, with global addresses and nothing translated.
fn reaches(net: &Topology, forwarder: &Forwarder) {
    for family in Family::ALL {
        for (from, source, to, target) in [
            (&net.client, world(family), &net.home, inside(family)),
            (&net.home, inside(family), &net.client, world(family)),
        ] {
            Ping::to(target).count(3).run(from).unwrap_or_else(|error| panic!("{error:#}\n{:#?}", forwarder.stats()));
            let server = TcpServer::start(to, (target, PORT).into()).unwrap();
            let mut stream = EchoStream::connect(from, server.address(), Some(SocketAddr::new(source, 0))).unwrap();
            stream.exchange(b"natively").unwrap();
            assert_eq!(server.peers().last().unwrap().ip(), source);
        }
    }
}

/// The world finds the hosts behind by their addresses, and no more once the rule is gone.
#[test]
fn hosts_behind_are_found() {
    for setting in SETTINGS {
        let net = network("nbalways", setting);
        let forwarder = Forwarder::on(&net);
        let loaded = forwarder.load(setting, &neighbor(""));
        assert!(loaded.contains("answers on eth0 for 2001:db8:1:0:8::/78 behind eth1 (always)"), "{loaded}");
        reaches(&net, &forwarder);
        let mac = net.forwarder.mac("eth0").unwrap();
        for family in Family::ALL {
            assert!(known(&net.client, inside(family)).contains(&mac), "{}", known(&net.client, inside(family)));
        }
        let stats = forwarder.stats();
        let counted = stats.rule("behind");
        assert_eq!((counted.forward.packets, counted.reply.packets), (2, 2), "{stats:#?}");
        assert_eq!(stats.outcome("answered_neighbor"), 2, "{stats:#?}");
        for printed in [forwarder.succeed(&["list"]), forwarder.succeed(&["check", forwarder.config.to_str().unwrap()])]
        {
            assert!(printed.contains("198.51.100.32/30") && printed.contains("behind"), "{printed}");
        }

        forwarder.succeed(&["remove", "behind"]);
        forget(&net.client);
        for family in Family::ALL {
            let before = forwarder.stats().outcome("answered_neighbor");
            let ping = ["ping", "-c", "1", "-W", "1", &inside(family).to_string()].map(str::to_owned);
            let ping: Vec<&str> = ping.iter().map(String::as_str).collect();
            net.client.run(&ping).unwrap_err();
            assert_eq!(forwarder.stats().outcome("answered_neighbor"), before);
        }
    }
}

/// `while-alive`: nobody is answered for who is not there, somebody who comes is found, and who goes is given up.
#[test]
fn only_hosts_that_are_there_are_answered_for() {
    for setting in SETTINGS {
        let net = network("nbalive", setting);
        // The kernel gives a neighbour up 8 seconds after it was last heard of; here it is faster.
        for family in ["ipv4", "ipv6"] {
            net.forwarder.sysctl(&format!("net.{family}.neigh.eth1.delay_first_probe_time"), "1").unwrap();
            net.forwarder.sysctl(&format!("net.{family}.neigh.eth1.retrans_time_ms"), "200").unwrap();
            net.forwarder.sysctl(&format!("net.{family}.neigh.eth1.base_reachable_time_ms"), "1000").unwrap();
        }
        let forwarder = Forwarder::on(&net);
        forwarder.load(setting, &neighbor("answer = \"while-alive\""));
        reaches(&net, &forwarder);
        let held = forwarder.stats().outcome("held_for_neighbor");
        assert!(held > 0, "{:#?}", forwarder.stats());

        net.home.ip("link set eth0 down").unwrap();
        for family in Family::ALL {
            let target = inside(family);
            eventually("a host that is gone is answered for", || {
                net.client.ip(&format!("neigh flush to {target} dev eth0")).unwrap();
                let answered = forwarder.stats().rule("behind").reply.packets;
                let _ = net.client.run(&["ping", "-c", "1", "-W", "1", &target.to_string()]);
                forwarder.stats().rule("behind").reply.packets == answered
            });
        }
        net.home.ip("link set eth0 up").unwrap();
        net.home.address("eth0", "2001:db8:1:0:8::2/78").unwrap();
        net.home.route("default", "via 10.8.0.1 dev eth0 onlink").unwrap();
        net.home.route("default", "via 2001:db8:1:0:8::1").unwrap();
        forget(&net.client);
        eventually("a host that is back is not answered for", || {
            Family::ALL.into_iter().all(|family| Ping::to(inside(family)).run(&net.client).is_ok())
        });
        reaches(&net, &forwarder);
    }
}

/// What `ip` shows of an address of the world's host once duplicate address detection has come to an end.
fn detected(net: &Topology, address: &str) -> String {
    net.client.ip(&format!("addr add {address}/128 dev eth0")).unwrap();
    let mut shown = String::new();
    eventually("duplicate address detection goes on and on", || {
        shown = net.client.ip(&format!("-6 addr show dev eth0 to {address}")).unwrap();
        !shown.contains("tentative") || shown.contains("dadfailed")
    });
    net.client.ip(&format!("addr del {address}/128 dev eth0")).unwrap();
    shown
}

/// RFC 4862 section 5.4: who is about to take an address of a host behind hears that it is taken; and the host behind,
/// when it takes it, does not.
#[test]
fn addresses_of_hosts_behind_are_defended() {
    for setting in SETTINGS {
        for while_alive in [false, true] {
            let net = network("nbdad", setting);
            for host in [&net.client, &net.home] {
                for key in ["dad_transmits", "accept_dad"] {
                    host.sysctl(&format!("net.ipv6.conf.eth0.{key}"), "1").unwrap();
                }
            }
            let forwarder = Forwarder::on(&net);
            forwarder.load(setting, &neighbor(if while_alive { "answer = \"while-alive\"" } else { "" }));
            reaches(&net, &forwarder);
            let taken = detected(&net, "2001:db8:1:0:8::2");
            assert!(taken.contains("dadfailed"), "{taken}\n{:#?}", forwarder.stats());
            // Nobody has this one: always, the whole prefix is taken.
            let free = detected(&net, "2001:db8:1:0:8::77");
            assert_eq!(free.contains("dadfailed"), !while_alive, "{free}\n{:#?}", forwarder.stats());
            // Beside the prefix.
            let elsewhere = detected(&net, "2001:db8:1:0:7::77");
            assert!(!elsewhere.contains("dadfailed"), "{elsewhere}");
            net.home.ip("addr add 2001:db8:1:0:8::3/78 dev eth0").unwrap();
            eventually("a host behind does not get its address", || {
                let shown = net.home.ip("-6 addr show dev eth0 to 2001:db8:1:0:8::3").unwrap();
                assert!(!shown.contains("dadfailed"), "{shown}");
                !shown.contains("tentative")
            });
        }
    }
}

/// The tools that people look for a neighbour with; and the kernel, when it wants to know whether one is still there
/// (RFC 4861 section 7.3.3: it asks that one station).
#[test]
fn neighbours_are_asked_and_confirmed() {
    for setting in SETTINGS {
        let net = network("nbask", setting);
        let forwarder = Forwarder::on(&net);
        forwarder.load(setting, &neighbor(""));
        let mac = net.forwarder.mac("eth0").unwrap();
        let seen = net.client.run(&["arping", "-i", "eth0", "-c", "1", "198.51.100.33"]).unwrap();
        assert!(seen.contains(&mac) && seen.contains("198.51.100.33"), "{seen}");
        // RFC 5227 section 2.1.1: a probe.
        let seen = net.client.run(&["arping", "-0", "-i", "eth0", "-c", "1", "198.51.100.33"]).unwrap();
        assert!(seen.contains(&mac), "{seen}");
        for family in Family::ALL {
            let target = inside(family);
            let before = forwarder.stats().outcome("answered_neighbor");
            net.client.ip(&format!("neigh replace {target} lladdr {mac} dev eth0 nud probe")).unwrap();
            eventually("a neighbour that is there is not confirmed", || {
                known(&net.client, target).contains("REACHABLE")
            });
            assert!(forwarder.stats().outcome("answered_neighbor") > before);
        }
    }
}

/// Frames of the world's host, and whether they are answered.
#[test]
fn other_questions_are_left_alone() {
    for setting in SETTINGS {
        let net = network("nbnot", setting);
        let forwarder = Forwarder::on(&net);
        forwarder.load(setting, &neighbor(""));
        let request = |sender: [u8; 4], target: [u8; 4], tag: &[u8]| {
            let mut frame = vec![0xff; 6];
            frame.extend([2, 0, 0, 0, 0, 0x99]);
            frame.extend(tag);
            frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0x99]);
            frame.extend(sender);
            frame.extend([0; 6]);
            frame.extend(target);
            frame
        };
        let (asker, inside) = ([198, 51, 100, 1], [198, 51, 100, 33]);
        let capture = net.client.capture("eth0").unwrap();
        for (frame, answered) in [
            // Announced, for another VLAN, beside the prefix, of nobody.
            (request(inside, inside, &[]), false),
            (request(asker, inside, &[0x81, 0, 0, 100]), false),
            (request(asker, [198, 51, 100, 36], &[]), false),
            (request(asker, [0, 0, 0, 0], &[]), false),
            // And this one shows that those before have been seen.
            (request(asker, inside, &[]), true),
        ] {
            net.client.send_frame("eth0", &frame).unwrap();
            if answered {
                let answer = capture.wait_for(|seen| !seen.outgoing && seen.bytes[12..14] == [8, 6]).unwrap();
                assert_eq!((&answer.bytes[..6], &answer.bytes[28..32]), (&frame[6..12], &inside[..]));
            }
        }
        assert_eq!(forwarder.stats().outcome("answered_neighbor"), 1, "{:#?}", forwarder.stats());
        // Our own address is the kernel's affair, and those of the side that asks nobody's.
        net.client.run(&["arping", "-i", "eth0", "-c", "1", "198.51.100.2"]).unwrap();
        net.client.run(&["ping", "-c", "1", "-W", "1", "2001:db8:1::77"]).unwrap_err();
        assert_eq!(forwarder.stats().rule("behind").forward.packets, 1, "{:#?}", forwarder.stats());
    }
}

/// The files of `examples/neighbor`, as they are: a tap tunnel to a bridge at home, and radvd, which tells the hosts there
/// their prefix and their way out.
#[test]
fn the_example() {
    let example = |name: &str| format!("{}/../examples/neighbor/{name}", env!("CARGO_MANIFEST_DIR"));
    for setting in SETTINGS {
        let lab = Lab::new("nbexample").unwrap();
        let [client, forwarder, home] = ["client", "forwarder", "home"].map(|name| lab.host(name).unwrap());
        let box_at_home = lab.host("box").unwrap();
        lab.link(&client, "eth0", &forwarder, "eth0", LinkOptions::default()).unwrap();
        lab.link(&box_at_home, "lan", &home, "eth0", LinkOptions::default()).unwrap();
        let tap = |host| Tun::create(host, "tap0", TunKind::Tap).unwrap();
        let _tunnel = TunPump::between(tap(&forwarder), tap(&box_at_home)).unwrap();
        box_at_home.ip("link add br0 type bridge").unwrap();
        for port in ["tap0", "lan"] {
            box_at_home.ip(&format!("link set {port} master br0")).unwrap();
        }
        box_at_home.ip("link set br0 up").unwrap();
        client.address("eth0", "2001:db8:1::1/64").unwrap();
        forwarder.address("eth0", "2001:db8:1::2/64").unwrap();
        forwarder.address("tap0", "2001:db8:1:0:8::1/78").unwrap();
        forwarder.ip("link set tap0 mtu 1400").unwrap();
        forwarder.sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
        home.sysctl("net.ipv6.conf.eth0.accept_ra", "1").unwrap();
        home.address("eth0", "2001:db8:1:0:8::2/128").unwrap();
        let pid = format!("/run/{}.radvd", lab.id());
        lab.delete_at_end(std::path::Path::new(&pid)).unwrap();
        let config = example("radvd.conf");
        let _radvd = forwarder.spawn(&["radvd", "-n", "-m", "stderr", "-C", &config, "-p", &pid]).unwrap();
        eventually("radvd tells nobody of the prefix", || {
            let routes = home.ip("-6 route show dev eth0").unwrap();
            routes.contains("2001:db8:1:0:8::/78 proto kernel") && routes.contains("default via fe80::")
        });
        let net = Topology { client, forwarder, home, router: None, shape: Shape::TwoArmed, lab };
        let instance = Forwarder::on(&net);
        let config = example("forwarder.toml");
        instance.succeed(&["load", "--mode", setting.mode_word(), "--config", &config]);
        let (outside, inside) = (world(Family::V6), inside(Family::V6));
        for (from, to, target) in [(&net.client, &net.home, inside), (&net.home, &net.client, outside)] {
            Ping::to(target).count(3).run(from).unwrap_or_else(|error| panic!("{error:#}\n{:#?}", instance.stats()));
            let server = TcpServer::start(to, (target, PORT).into()).unwrap();
            Transfer::to(server.address()).upload(1_000_000).download(1_000_000).run(from).unwrap();
        }
        // Nobody has this one.
        let _ = net.client.run(&["ping", "-c", "2", "-W", "1", "2001:db8:1:0:8::99"]).unwrap_err();
        let stats = instance.stats();
        assert!(stats.rule("home").forward.packets > stats.rule("home").reply.packets, "{stats:#?}");
        // A NIC would filter the groups that solicitations are sent to.
        let allmulti = || net.forwarder.ip("link show dev eth0").unwrap().contains("ALLMULTI");
        assert!(allmulti());
        instance.succeed(&["remove", "home"]);
        assert!(!allmulti());
    }
}

/// A tunnel without Ethernet: "always" answers, "while-alive" is refused with the reason.
#[test]
fn behind_a_line_without_neighbours() {
    for setting in SETTINGS {
        let lab = Lab::new("nbtun").unwrap();
        let [client, forwarder, home] = ["client", "forwarder", "home"].map(|name| lab.host(name).unwrap());
        lab.link(&client, "eth0", &forwarder, "eth0", LinkOptions::default()).unwrap();
        let tun = |host, name| Tun::create(host, name, TunKind::Tun).unwrap();
        let _tunnel = TunPump::between(tun(&forwarder, "eth1"), tun(&home, "eth0")).unwrap();
        for (host, interface, addresses) in [
            (&client, "eth0", ["198.51.100.1/24", "2001:db8:1::1/64"]),
            (&forwarder, "eth0", ["198.51.100.2/24", "2001:db8:1::2/64"]),
            (&home, "eth0", ["198.51.100.33/32", "2001:db8:1:0:8::2/128"]),
        ] {
            for address in addresses {
                host.address(interface, address).unwrap();
            }
        }
        for prefix in ["198.51.100.32/30", "2001:db8:1:0:8::/78"] {
            forwarder.route(prefix, "dev eth1").unwrap();
        }
        home.route("default", "dev eth0").unwrap();
        home.ip("-6 route add default dev eth0").unwrap();
        forwarder.enable_kernel_forwarding().unwrap();
        let net = Topology { client, forwarder, home, router: None, shape: Shape::TwoArmed, lab };
        let instance = Forwarder::on(&net);
        instance.configure(&neighbor("answer = \"while-alive\""));
        let refused = instance.run(&["check", instance.config.to_str().unwrap()]);
        assert!(refused.code == Some(2) && refused.stderr.contains("answer = \"always\""), "{refused}");
        instance.configure(&neighbor(""));
        let config = instance.config.to_str().unwrap();
        instance.succeed(&["load", "--mode", setting.mode_word(), "--iface", "eth0", "--config", config]);
        reaches(&net, &instance);
    }
}

/// What the kernel answers itself as a proxy (`ip neigh add proxy`), byte by byte, but for the address it comes from.
#[test]
fn answers_are_those_of_the_kernels_proxy() {
    let net = network("nboracle", Setting::TC_TWO_ARMED);
    let mac = |host: &Host| -> Vec<u8> {
        host.mac("eth0").unwrap().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
    };
    let (asker, proxy) = (mac(&net.client), mac(&net.forwarder));
    let arp = |to: &[u8], sender: [u8; 4]| {
        let mut frame = [to, &asker, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &asker].concat();
        frame.extend(sender);
        frame.extend([0; 6]);
        frame.extend([198, 51, 100, 33]);
        frame
    };
    let solicitation = |to_mac: &[u8], from: &str, to: &str, options: &[u8]| {
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let mut packet = TestPacket::new(at(from), at(to), Body::IcmpError(135, 0, [0; 4]));
        let IpAddr::V6(target) = inside(Family::V6) else { panic!() };
        packet.payload = [&target.octets()[..], options].concat();
        packet.hop_limit = 255;
        let mut frame = packet.frame();
        frame.splice(..12, [to_mac, &asker].concat());
        frame
    };
    let source = [&[1, 1], &asker[..]].concat();
    let group = [0x33, 0x33, 0xff, 0, 0, 2];
    let questions = [
        arp(&[0xff; 6], [198, 51, 100, 1]),
        arp(&proxy, [198, 51, 100, 1]),
        solicitation(&group, "2001:db8:1::1", "ff02::1:ff00:2", &source),
        solicitation(&proxy, "2001:db8:1::1", "2001:db8:1:0:8::2", &source),
        solicitation(&group, "::", "ff02::1:ff00:2", &[]),
    ];
    let answers = |about: &str| -> Vec<Vec<u8>> {
        let ask = |question: &Vec<u8>| {
            let capture = net.client.capture("eth0").unwrap();
            net.client.send_frame("eth0", question).unwrap();
            let is_answer = |seen: &forwarder_lab::Frame| {
                !seen.outgoing
                    && (seen.bytes[12..14] == [8, 6] && seen.bytes[21] == 2 || seen.bytes.get(54) == Some(&136))
            };
            let answer = capture.wait_for(is_answer);
            answer.unwrap_or_else(|error| panic!("{about}, {question:02x?}: {error:#}")).bytes
        };
        questions.iter().map(ask).collect()
    };
    for family in ["ipv4", "ipv6"] {
        net.forwarder.sysctl(&format!("net.{family}.neigh.eth0.proxy_delay"), "0").unwrap();
    }
    for scope in ["all", "eth0"] {
        net.forwarder.sysctl(&format!("net.ipv6.conf.{scope}.proxy_ndp"), "1").unwrap();
    }
    for family in Family::ALL {
        net.forwarder.ip(&format!("neigh add proxy {} dev eth0", inside(family))).unwrap();
    }
    let expected = answers("the kernel");
    for family in Family::ALL {
        net.forwarder.ip(&format!("neigh del proxy {} dev eth0", inside(family))).unwrap();
    }
    let forwarder = Forwarder::on(&net);
    forwarder.load(Setting::TC_TWO_ARMED, &neighbor(""));
    let seen = answers("forwarder");
    for ((question, mut expected), seen) in questions.iter().zip(expected).zip(seen) {
        // The kernel answers a global address from one, and others from the link-local one, as forwarder always does (RFC
        // 4861 section 4.4: an address of the interface). The checksum changes with it.
        if seen[12..14] == [0x86, 0xdd] && expected[22..38] != seen[22..38] {
            assert_eq!((&expected[22..24], &seen[22..24]), (&[0x20, 1][..], &[0xfe, 0x80][..]));
            for changed in [22..38, 56..58] {
                expected.splice(changed.clone(), seen[changed].to_vec());
            }
        }
        // The kernel leaves the MAC address out for who asks that address alone, and so must know it (section 7.2.4: it may).
        if expected.len() + 8 == seen.len() {
            expected[19] += 8;
            expected.extend([&[2, 1], &proxy[..]].concat());
        }
        assert_eq!(seen, expected, "for {question:02x?}");
    }
    assert_eq!(forwarder.stats().outcome("answered_neighbor"), 5, "{:#?}", forwarder.stats());
}
