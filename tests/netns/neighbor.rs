//! `[[neighbor]]`: hosts that live behind forwarder have addresses of the network in front of it.
//!
//! The world's host is a router on 198.51.100.0/24 and 2001:db8:1::/64, which is all that it knows: it asks for every
//! address of those on the link. 198.51.100.32/30 and 2001:db8:1:0:8::/78 are used behind forwarder.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use forwarder_lab::{EchoStream, Family, Host, Lab, Ping, Shape, TcpServer, Topology, patience};

use crate::forwarder::Forwarder;
use crate::setting::Setting;

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
