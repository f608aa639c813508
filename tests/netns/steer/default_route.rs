//! What the machine itself sends can be steered only if the kernel sends it at all. Where the default route is gone,
//! `forwarder run` adds one that the kernel takes last.

use std::net::SocketAddr;
use std::time::Instant;

use forwarder_lab::{Family, Host, TcpServer, Transfer, patience};

use super::{Lines, in_both_modes, network, on, steer};
use crate::daemon::Daemon;
use crate::setting::Mode;

in_both_modes!(
    a_default_route_that_is_gone_is_replaced_until_it_is_back,
    nobody_replaces_it_who_is_not_to,
    it_need_not_be_by_an_interface_that_is_served,
    it_may_lead_to_an_interface_that_appears_later,
);

const INTERFACES: [&str; 3] = ["eth0", "eth1", "eth2"];
const METRIC: &str = "metric 4294967294";

/// A line for each source, so that what the kernel sends by the one has to be steered to the other.
fn both_lines() -> String {
    let first = steer().replace("second", "first").replace("192.0.2.", "203.0.113.");
    first.replace("2001:db8:4::", "2001:db8:3::").replace("eth1", "eth0") + &steer()
}

/// Takes the default route of either family away, or gives it back.
fn default_routes(host: &Host, how: &str) {
    for gateway in ["203.0.113.1", "2001:db8:3::1"] {
        let family = if gateway.contains(':') { "-6" } else { "-4" };
        host.ip(&format!("{family} route {how} default via {gateway}")).unwrap();
    }
}

/// How many routes of ours there are.
fn added(host: &Host) -> usize {
    let shown = ["-4", "-6"].map(|family| host.ip(&format!("{family} route show default")).unwrap());
    shown.iter().flat_map(|text| text.lines()).filter(|line| line.contains(METRIC)).count()
}

#[track_caller]
fn wait_until_added(host: &Host, number: usize) {
    let deadline = Instant::now() + patience();
    while added(host) != number {
        assert!(Instant::now() < deadline, "{} of {number}", added(host));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

impl Lines {
    /// A service of the machine's own answers by each line.
    #[track_caller]
    fn answers_by_both_lines(&self, about: &str) {
        for family in Family::ALL {
            for line in [0, 1] {
                let server = TcpServer::start(&self.net.forwarder, SocketAddr::new(on(line, family, 7), 80)).unwrap();
                self.works(server.address(), about);
                // And opens connections from it.
                let there = TcpServer::start(&self.net.client, SocketAddr::new(Self::client(family), 81)).unwrap();
                let from = SocketAddr::new(on(line, family, 7), 0);
                let seen = Transfer::to(there.address()).from(from).upload(1).run(&self.net.forwarder).unwrap().seen_as;
                assert_eq!(seen.ip(), from.ip(), "{about}");
            }
        }
    }
}

fn a_default_route_that_is_gone_is_replaced_until_it_is_back(mode: Mode) {
    let test = network("steergone", mode);
    let host = &test.net.forwarder;
    test.forwarder.configure(&both_lines());
    let daemon = Daemon::start(&test.forwarder, test.setting, &INTERFACES);
    assert_eq!(added(host), 0);
    test.answers_by_both_lines("with a default route");
    for _ in 0..2 {
        default_routes(host, "del");
        wait_until_added(host, 2);
        for family in ["IPv4", "IPv6"] {
            daemon.says(&format!("there is no default route for {family}: added one of the lowest preference by eth0"));
        }
        test.answers_by_both_lines("without a default route");
        default_routes(host, "add");
        wait_until_added(host, 0);
        test.answers_by_both_lines("with a default route again");
    }
    // By the next line, if the first is gone; and as long as there is anything to steer.
    default_routes(host, "del");
    wait_until_added(host, 2);
    host.ip("link set eth0 down").unwrap();
    daemon.says("by eth1");
    wait_until_added(host, 2);
    assert!(host.ip("route show default").unwrap().contains("via 192.0.2.1 dev eth1"));
    test.forwarder.configure("");
    test.forwarder.succeed(&["reload"]);
    wait_until_added(host, 0);
    test.forwarder.configure(&steer());
    test.forwarder.succeed(&["reload"]);
    wait_until_added(host, 2);
    // It stays when the daemon ends, as everything does, and goes with the rest.
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(daemon.end(), Some(0));
    assert_eq!(added(host), 2);
    test.forwarder.succeed(&["unload"]);
    assert_eq!(added(host), 0);
}

fn nobody_replaces_it_who_is_not_to(mode: Mode) {
    let test = network("steernever", mode);
    let host = &test.net.forwarder;
    test.forwarder.configure(&format!("fallback_route = false\n{}", both_lines()));
    let daemon = Daemon::start(&test.forwarder, test.setting, &INTERFACES);
    default_routes(host, "del");
    daemon.says("no default route for IPv6");
    assert_eq!(added(host), 0);
    let server = TcpServer::start(host, SocketAddr::new(on(1, Family::V4, 7), 80)).unwrap();
    test.fails(server.address());
}

/// The kernel sends everything by `eth0`, which has the program for what leaves and nothing else.
fn it_need_not_be_by_an_interface_that_is_served(mode: Mode) {
    let test = network("steerelse", mode);
    let host = &test.net.forwarder;
    let config = test.forwarder.config.to_str().unwrap();
    test.forwarder.configure(&steer());
    let ends = Family::ALL.map(|family| SocketAddr::new(on(1, family, 7), 80));
    let _servers = ends.map(|end| TcpServer::start(host, end).unwrap());
    for more in [&[][..], &["--no-tcx"]] {
        let load = ["load", "--mode", test.setting.mode_word(), "--config", config, "--iface", "eth1"];
        let said = test.forwarder.succeed(&[&load[..], more].concat());
        assert!(said.contains("eth0: not served") && !said.contains("Warning: steer"), "{said}");
        let work = |about: &str| {
            for end in ends {
                test.works(end, about);
            }
        };
        work("by an interface that is not served");
        test.forwarder.succeed(&["remove", "second"]);
        test.forwarder.succeed(&["reload"]);
        work("after a reload");
        test.forwarder.succeed(&["unload"]);
        assert!(!host.run(&["tc", "qdisc", "show"]).unwrap().contains("clsact"), "{more:?}");
    }
    let [v4, _] = ends;
    test.fails(v4);
}

fn it_may_lead_to_an_interface_that_appears_later(mode: Mode) {
    let test = network("steerlater", mode);
    let host = &test.net.forwarder;
    test.forwarder.configure(&format!("fallback_route = false\n{}", steer()));
    let daemon = Daemon::start(&test.forwarder, test.setting, &["eth1"]);
    daemon.says("eth0: not served");
    default_routes(host, "del");
    for n in [1, 2] {
        // Another device each time.
        host.ip(&format!("link add gap{n} type veth peer name gape{n}")).unwrap();
        let (name, end) = (format!("late{n}"), format!("end{n}"));
        test.net.lab.link(host, &name, &test.routers[0], &end, forwarder_lab::LinkOptions::default()).unwrap();
        for (host, interface, number) in [(host, &name, 1), (&test.routers[0], &end, 2)] {
            host.address(interface, &format!("10.99.{n}.{number}/24")).unwrap();
            host.address(interface, &format!("fd99:{n}::{number}/64")).unwrap();
        }
        host.route("default", &format!("via 10.99.{n}.2")).unwrap();
        host.route("default", &format!("via fd99:{n}::2")).unwrap();
        daemon.says(&format!("{name}: not served; what this machine itself sends by it is steered"));
        for family in Family::ALL {
            let server = TcpServer::start(host, SocketAddr::new(on(1, family, 7), 80)).unwrap();
            test.works(server.address(), "by an interface that came later");
        }
        host.ip(&format!("link del {name}")).unwrap();
    }
}
