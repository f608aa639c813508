//! What a line takes: packets of its size, and of the kinds that it is for; and what keeps it from taking any.

use std::net::SocketAddr;
use std::time::Duration;

use forwarder_lab::{Family, TcpServer, Transfer, UdpEcho, UdpSocketIn};

use super::{Lines, in_both_modes, network, on, steer};
use crate::setting::Mode;

in_both_modes!(
    own_packets_that_do_not_fit_are_answered,
    segments_of_own_connections_fit,
    only_the_kinds_that_are_named,
    large_packets_stay_large,
    obstacles_are_named,
    the_programs_are_there_while_there_is_a_steer,
);

const MUCH: u64 = 3_000_000;
const LINE_MTU: u32 = 1400;

/// The second line takes less than the first, by which the kernel thinks that everything goes.
fn narrow(test: &Lines) {
    test.net.forwarder.ip(&format!("link set eth1 mtu {LINE_MTU}")).unwrap();
    test.routers[1].ip(&format!("link set line mtu {LINE_MTU}")).unwrap();
}

/// How many of the machine's own packets were answered to it.
fn answered(test: &Lines) -> u64 {
    test.forwarder.stats().egress("answered_too_big")
}

fn download(test: &Lines, family: Family) -> anyhow::Result<()> {
    let server = TcpServer::start(&test.net.forwarder, SocketAddr::new(on(1, family, 7), 80))?;
    Transfer::to(server.address())
        .from(SocketAddr::new(Lines::client(family), 0))
        .download(MUCH)
        .run(&test.net.client)?;
    Ok(())
}

fn own_packets_that_do_not_fit_are_answered(mode: Mode) {
    let test = network("steerbig", mode);
    narrow(&test);
    test.forwarder.load(test.setting, &format!("mss_clamp = false\n{}", steer()));
    for family in Family::ALL {
        let before = answered(&test);
        download(&test, family).unwrap_or_else(|error| panic!("{family:?}: {error:#}\n{:#?}", test.forwarder.stats()));
        assert!(answered(&test) > before, "{family:?}: {:#?}", test.forwarder.stats());
    }
    // Datagrams: the first is lost, or refused by the kernel, which knows then.
    for family in Family::ALL {
        let client = SocketAddr::new(Lines::client(family), 5353);
        let _echo = UdpEcho::start(&test.net.client, client).unwrap();
        test.net.forwarder.ip("route flush cache").unwrap();
        test.net.forwarder.ip("-6 route flush cache").unwrap();
        let socket =
            UdpSocketIn::connect(&test.net.forwarder, client, Some(SocketAddr::new(on(1, family, 7), 0))).unwrap();
        socket.exchange(&[1; 1300]).unwrap();
        let before = answered(&test);
        let _ = socket.send(&[2; 1440]);
        assert!(answered(&test) > before);
        // The error of the one before may be told to the next that sends or receives; and the client has to learn the same
        // about its answers, from the router.
        let echoed = (0..4).any(|_| {
            socket.send(&[3; 1440]).is_ok()
                && matches!(socket.receive(Duration::from_secs(1)), Ok(Some(back)) if back == [3; 1440])
        });
        assert!(echoed, "{family:?}: {:#?}", test.forwarder.stats());
    }
}

fn segments_of_own_connections_fit(mode: Mode) {
    let test = network("steermss", mode);
    narrow(&test);
    test.forwarder.load(test.setting, &steer());
    for family in Family::ALL {
        download(&test, family).unwrap();
        // And the connections that the machine opens.
        let answering = TcpServer::start(&test.net.client, SocketAddr::new(Lines::client(family), 81)).unwrap();
        let from = SocketAddr::new(on(1, family, 7), 0);
        Transfer::to(answering.address()).from(from).upload(MUCH).download(MUCH).run(&test.net.forwarder).unwrap();
    }
    assert_eq!(answered(&test), 0, "{:#?}", test.forwarder.stats());
}

fn only_the_kinds_that_are_named(mode: Mode) {
    let test = network("steerkind", mode);
    let kinds = "protocol = \"tcp\"\nport = \"80-81\"\n";
    test.forwarder.load(test.setting, &steer().replace("interface =", &format!("{kinds}interface =")));
    for family in Family::ALL {
        let own = |port| SocketAddr::new(on(1, family, 7), port);
        for (port, steered) in [(80, true), (81, true), (82, false)] {
            let _server = TcpServer::start(&test.net.forwarder, own(port)).unwrap();
            let from = SocketAddr::new(Lines::client(family), 0);
            let moved = Transfer::to(own(port)).from(from).upload(1000).download(1000).run(&test.net.client);
            assert_eq!(moved.is_ok(), steered, "{family:?} port {port}: {moved:?}");
        }
        let _echo = UdpEcho::start(&test.net.forwarder, own(80)).unwrap();
        let socket = UdpSocketIn::connect(&test.net.client, own(80), Some(SocketAddr::new(Lines::client(family), 0)));
        let socket = socket.unwrap();
        socket.send(b"by the default route").unwrap();
        assert_eq!(socket.receive(Duration::from_secs(1)).unwrap(), None);
    }
}

/// Where the links leave large packets whole, so does the way by the line.
fn large_packets_stay_large(mode: Mode) {
    if mode == Mode::Native {
        return;
    }
    let test = network("steergso", mode);
    test.forwarder.load(test.setting, &steer());
    for family in Family::ALL {
        let before = test.forwarder.stats().rule("second").reply;
        download(&test, family).unwrap();
        let after = test.forwarder.stats().rule("second").reply;
        let (packets, bytes) = (after.packets - before.packets, after.bytes - before.bytes);
        assert!(bytes > MUCH && bytes / packets > 5000, "{bytes} bytes in {packets} packets");
    }
}

fn obstacles_are_named(mode: Mode) {
    let test = network("steerobst", mode);
    let host = &test.net.forwarder;
    host.sysctl("net.ipv4.conf.eth1.rp_filter", "1").unwrap();
    let said = test.forwarder.load(test.setting, &steer());
    assert!(said.contains("sysctl -w net.ipv4.conf.eth1.rp_filter=2"), "{said}");
    host.sysctl("net.ipv4.conf.eth1.rp_filter", "2").unwrap();
    for family in ["-4", "-6"] {
        host.ip(&format!("{family} route del default")).unwrap();
    }
    let reloaded = test.forwarder.run(&["reload"]);
    for family in ["IPv4", "IPv6"] {
        assert!(reloaded.stderr.contains(&format!("no default route for {family}")), "{reloaded}");
    }
    assert!(!reloaded.stderr.contains("rp_filter"), "{reloaded}");
    let end = SocketAddr::new(on(1, Family::V4, 7), 80);
    let _server = TcpServer::start(host, end).unwrap();
    let attempt = Transfer::to(end).from(SocketAddr::new(Lines::client(Family::V4), 0)).upload(1);
    attempt.must_fail(&test.net.client).unwrap();
    // As it says.
    let hint = "ip route add default via 192.0.2.1 dev eth1 metric 4000000";
    assert!(reloaded.stderr.contains(hint), "{reloaded}");
    host.ip(hint.strip_prefix("ip ").unwrap()).unwrap();
    attempt.run(&test.net.client).unwrap();
    // What cannot be a line.
    for (interface, what) in [("eth0", "is not in a network of eth0"), ("eth9", "there is no such interface")] {
        let changed = steer().replace("\"eth1\"", &format!("\"{interface}\""));
        test.forwarder.configure(&changed);
        let ended = test.forwarder.run(&["reload"]);
        assert_eq!(ended.code, Some(2), "{ended}");
        assert!(ended.stderr.contains(what), "{ended}");
    }
}

/// By tcx, and as filters on `clsact`, which kernels before 6.6 have.
fn the_programs_are_there_while_there_is_a_steer(mode: Mode) {
    let test = network("steerhang", mode);
    let host = &test.net.forwarder;
    // Debian's bpftool shows filters, but no tcx links; those are pinned.
    let on_egress = || -> bool {
        let shown = host.run(&["bpftool", "net", "show"]).unwrap();
        shown.contains("clsact/egress") || test.forwarder.pins.join("links/egress_0").exists()
    };
    for more in [&[][..], &["--no-tcx"]] {
        test.forwarder.configure(&steer());
        test.forwarder.succeed(&[&test.forwarder.load_arguments(test.setting)[..], more].concat());
        assert!(on_egress(), "{more:?}");
        download(&test, Family::V4).unwrap();
        test.forwarder.succeed(&["remove", "second"]);
        assert!(!on_egress(), "{more:?}");
        test.forwarder.succeed(&["reload"]);
        assert!(on_egress(), "{more:?}");
        download(&test, Family::V6).unwrap();
        test.forwarder.succeed(&["unload"]);
        assert!(!on_egress(), "{more:?}");
        assert!(!host.run(&["tc", "qdisc", "show"]).unwrap().contains("clsact"), "{more:?}");
    }
}
