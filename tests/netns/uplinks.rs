//! `[[uplink]]`: a line that fails is noticed, whatever fails of it, and what belongs to it goes by another line or nowhere.
//!
//! The network of [`steer`](crate::steer): the first line has the default route, the second is probed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use forwarder_lab::{Capture, Family, Frame, UdpSocketIn, patience};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::setting::Mode;
use crate::steer::{Lines, in_both_modes, network, on};

in_both_modes!(
    without_a_carrier,
    without_its_router,
    without_the_world,
    nothing_takes_its_place,
    it_is_remembered_over_the_daemon,
);

const INTERFACES: [&str; 3] = ["eth0", "eth1", "eth2"];
const FALLBACK: &str = "fallback = \"first\"\n";

/// Two lines with names, the second probed like this; `rest` belongs to the steer by the second.
fn rules(probe: &str, rest: &str) -> String {
    format!(
        "[[uplink]]\nname = \"first\"\ninterface = \"eth0\"\ngateway = [\"203.0.113.1\", \"2001:db8:3::1\"]\n\n\
         [[uplink]]\nname = \"second\"\ninterface = \"eth1\"\ngateway = [\"192.0.2.1\", \"2001:db8:4::1\"]\n\
         probe = {probe}\ninterval = \"100ms\"\nfall = 3\nrise = 2\n\n\
         [[steer]]\nname = \"by-second\"\nfrom = [\"192.0.2.0/24\", \"2001:db8:4::/64\"]\nuplink = \"second\"\n{rest}\n"
    )
}

struct Test {
    lines: Lines,
    daemon: Daemon,
    /// What the forwarder sends to each router.
    captures: [Capture; 2],
}

fn start(name: &str, mode: Mode, config: &str) -> Test {
    let lines = network(name, mode);
    lines.forwarder.configure(config);
    let daemon = Daemon::start(&lines.forwarder, lines.setting, &INTERFACES);
    let captures = [0, 1].map(|line: usize| lines.routers[line].capture("line").unwrap());
    Test { lines, daemon, captures }
}

impl Test {
    /// Of the second line: whether it is up, and how often that changed.
    fn second(&self) -> (bool, u64, String) {
        let status: Value =
            serde_json::from_str(&self.lines.forwarder.succeed(&["status", "--format", "json"])).unwrap();
        let uplinks = status["uplinks"].as_array().unwrap().clone();
        let second = uplinks.iter().find(|uplink| uplink["name"] == "second").unwrap();
        let why = second["why"].as_str().unwrap_or_default().to_owned();
        (second["up"].as_bool().unwrap(), second["changes"].as_u64().unwrap(), why)
    }

    /// Waits for the n-th change of the second line; why it is down.
    #[track_caller]
    fn changed(&self, up: bool, n: u64) -> String {
        let deadline = Instant::now() + 2 * patience();
        loop {
            let (is_up, changes, why) = self.second();
            if (is_up, changes) == (up, n) {
                return why;
            }
            assert!(Instant::now() < deadline, "up {is_up}, {changes} changes ({why}), not {up} and {n}");
            assert!(changes <= n, "it went up and down: {changes} changes, not {n}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a datagram of each family from the second line's address, which leaves by this line and no other.
    #[track_caller]
    fn leaves_by_line(&self, about: &str, line: Option<usize>) {
        for family in Family::ALL {
            let text = format!("{about} {family:?}");
            let mark = format!("{text}, that was all");
            let send = |line: usize, text: &str| {
                let from = SocketAddr::new(on(line, family, 7), 4000);
                let to = SocketAddr::new(Lines::client(family), 4001);
                UdpSocketIn::connect(&self.lines.net.forwarder, to, Some(from)).unwrap().send(text.as_bytes())
            };
            // That it is refused at once is one way of going nowhere.
            let first = send(1, &text);
            assert!(first.is_ok() || line.is_none(), "{text}: {first:?}");
            send(0, &mark).unwrap();
            let came = |line: usize, limit: Duration| {
                let wanted = |frame: &Frame| !frame.outgoing && frame.contains(text.as_bytes());
                self.captures[line]
                    .next_within(limit, wanted)
                    .unwrap()
                    .is_some_and(|frame| !frame.contains(mark.as_bytes()))
            };
            // The mark has the text in it: it ends the wait on the first line.
            assert_eq!(came(0, patience()), line == Some(0), "{text}: by the first line");
            if line == Some(0) {
                assert!(!came(0, patience()), "{text}: twice by the first line");
            }
            // An IPv6 router that was down says nothing for a second.
            let limit = if line == Some(1) { patience() } else { Duration::from_millis(100) };
            assert_eq!(came(1, limit), line == Some(1), "{text}: by the second line");
        }
    }

    fn router(&self, arguments: &str) {
        self.lines.routers[1].ip(arguments).unwrap();
    }

    /// The second line's router has a carrier and hears nothing.
    fn deafen(&self) {
        let rules = "table netdev deaf { chain everything { type filter hook ingress device \"line\" priority 0; policy drop; }; }";
        self.lines.routers[1].run(&["nft", rules]).unwrap();
    }

    fn hear_again(&self) {
        self.lines.routers[1].run(&["nft", "delete table netdev deaf"]).unwrap();
    }
}

/// The cable is pulled, and comes back.
fn without_a_carrier(mode: Mode) {
    let test = start("upcarrier", mode, &rules("\"carrier\"", FALLBACK));
    // Its addresses outlive that, and are good at once.
    for (key, value) in [("keep_addr_on_down", "1"), ("dad_transmits", "0")] {
        test.lines.routers[1].sysctl(&format!("net/ipv6/conf/line/{key}"), value).unwrap();
    }
    test.leaves_by_line("at first", Some(1));
    for n in [0, 2] {
        test.router("link set line down");
        assert_eq!(test.changed(false, n + 1), "eth1 has no carrier");
        test.leaves_by_line("without a carrier", Some(0));
        test.router("link set line up");
        test.changed(true, n + 2);
        test.leaves_by_line("with one again", Some(1));
    }
    test.daemon.says("uplink second is down: eth1 has no carrier");
    test.daemon.says("uplink second is up");
    let prometheus = test.lines.forwarder.succeed(&["stats", "--format", "prometheus"]);
    for line in ["forwarder_uplink_up{uplink=\"second\"} 1", "forwarder_uplink_changes_total{uplink=\"second\"} 4"] {
        assert!(prometheus.lines().any(|found| found == line), "{prometheus}");
    }
    assert!(test.lines.forwarder.succeed(&["list"]).contains("by-second"));
}

/// The router is gone, the switch before it is not.
fn without_its_router(mode: Mode) {
    let test = start("uprouter", mode, &rules("\"gateway\"", FALLBACK));
    test.leaves_by_line("at first", Some(1));
    test.deafen();
    assert!(test.changed(false, 1).contains("does not answer"));
    test.leaves_by_line("without its router", Some(0));
    test.hear_again();
    test.changed(true, 2);
    test.leaves_by_line("with its router again", Some(1));
}

/// Router and line are well, what is beyond is not.
fn without_the_world(mode: Mode) {
    let probe = "[\"ping 198.51.101.2\", \"ping 2001:db8:11::2\"]";
    let test = start("upworld", mode, &rules(probe, FALLBACK));
    test.leaves_by_line("at first", Some(1));
    let router = &test.lines.routers[1];
    let filter = |what: &str| {
        let rule = format!(
            "add table inet outage; add chain inet outage forward {{ type filter hook forward priority -5; }}; \
             add rule inet outage forward {what} drop"
        );
        router.run(&["nft", &rule]).unwrap();
    };
    // One of two answers still.
    filter("ip protocol icmp");
    test.leaves_by_line("by the other family", Some(1));
    filter("ip6 nexthdr icmpv6");
    assert!(test.changed(false, 1).contains("does not answer pings"));
    test.leaves_by_line("without the world", Some(0));
    router.run(&["nft", "delete table inet outage"]).unwrap();
    test.changed(true, 2);
    test.leaves_by_line("with the world again", Some(1));
}

/// Without a fallback: counted, and nowhere else. Nor is anything else of the machine concerned.
fn nothing_takes_its_place(mode: Mode) {
    let test = start("upnothing", mode, &rules("\"gateway\"", ""));
    test.leaves_by_line("at first", Some(1));
    let dropped = |test: &Test| -> u64 {
        let stats: Value = serde_json::from_str(&test.lines.forwarder.succeed(&["stats", "--format", "json"])).unwrap();
        let rules = stats["rules"].as_array().unwrap();
        rules.iter().find(|rule| rule["name"] == "by-second").unwrap()["denied"].as_u64().unwrap()
    };
    assert_eq!(dropped(&test), 0);
    test.deafen();
    test.changed(false, 1);
    test.leaves_by_line("without its router", None);
    assert_eq!(dropped(&test), 2, "one of each family");
    test.hear_again();
    test.changed(true, 2);
    test.leaves_by_line("with its router again", Some(1));
    assert_eq!(dropped(&test), 2);
}

/// What was found out stays when the daemon ends, holds for commands meanwhile, and is where the next one begins.
fn it_is_remembered_over_the_daemon(mode: Mode) {
    let test = start("upremember", mode, &rules("\"gateway\"", FALLBACK));
    test.deafen();
    test.changed(false, 1);
    test.lines.forwarder.succeed(&["reload"]);
    assert!(!test.second().0, "a command knows it too");
    test.leaves_by_line("after a reload", Some(0));
    let Test { lines, daemon, captures } = test;
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end(), Some(0));
    let daemon = Daemon::start(&lines.forwarder, lines.setting, &[]);
    let test = Test { lines, daemon, captures };
    test.leaves_by_line("after the daemon", Some(0));
    assert_eq!((test.second().0, test.second().1), (false, 1));
    test.hear_again();
    test.changed(true, 2);
    test.leaves_by_line("with its router again", Some(1));
    // A command that takes the uplinks away is heard of.
    test.lines.forwarder.configure("");
    test.lines.forwarder.succeed(&["reload"]);
    test.leaves_by_line("without rules", Some(0));
}
