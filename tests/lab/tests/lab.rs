//! The lab tested by itself: kernel forwarding stands in for forwarder.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use forwarder_lab::etherparse::PacketBuilder;
use forwarder_lab::{
    Crowd, EchoStream, Family, Lab, LinkOptions, Offloads, Ping, Shape, Spawned, Steady, TcpServer, Topology, Transfer,
    Tun, TunKind, TunPump, UdpEcho, UdpSocketIn, WebServer,
};

const MEGABYTES: u64 = 1_000_000;

/// Every client and server, over every shape, family and kind of link.
#[test]
fn traffic_crosses_every_topology() {
    for (shape, offloads) in
        [(Shape::TwoArmed, Offloads::Default), (Shape::TwoArmed, Offloads::Native), (Shape::OneArmed, Offloads::Native)]
    {
        let net = Topology::new("labtraffic", shape, offloads).unwrap();
        net.forwarder.enable_kernel_forwarding().unwrap();
        for family in Family::ALL {
            let client = net.client_address(family);

            let tcp = TcpServer::start(&net.home, net.backend(family, 8080)).unwrap();
            let moved = Transfer::to(tcp.address()).upload(MEGABYTES).download(MEGABYTES).run(&net.client).unwrap();
            assert_eq!(moved.seen_as, moved.local);
            assert_eq!(moved.seen_as.ip(), client);
            let mut crowd = Crowd::connect(&net.client, tcp.address(), 100).unwrap();
            crowd.exchange().unwrap();
            assert_eq!(tcp.wait_for_peers(101).unwrap()[1..], crowd.locals().unwrap());
            crowd.close().unwrap();

            let udp = UdpEcho::start(&net.home, net.backend(family, 0)).unwrap();
            let socket = UdpSocketIn::connect(&net.client, udp.address(), None).unwrap();
            socket.exchange(b"hello").unwrap();
            socket.exchange(&[7; 5000]).unwrap();
            assert_eq!(udp.peers(), [SocketAddr::new(client, socket.local().unwrap().port()); 2]);

            let capture = net.home.capture("eth0").unwrap();
            let ping = Ping::to(net.home_address(family)).identifier(77).count(3).payload(1000);
            assert_eq!(ping.run(&net.client).unwrap().identifier, 77);
            let request = capture.wait_for(forwarder_lab::Frame::is_echo_request).unwrap();
            assert_eq!(request.addresses(), Some((client, net.home_address(family))));

            let web = WebServer::start(&net.home, net.backend(family, 80)).unwrap();
            let url = format!("http://{}/", web.address());
            let page = net.client.run(&["curl", "--silent", "--fail", "--max-time", "10", &url]).unwrap();
            assert_eq!(page.trim().parse::<SocketAddr>().unwrap(), web.peers()[0]);
        }
    }
}

#[test]
fn a_fixed_port_can_be_used_again_at_once() {
    let net = Topology::two_armed("labreuse", Offloads::Default).unwrap();
    net.forwarder.enable_kernel_forwarding().unwrap();
    let server = TcpServer::start(&net.home, net.backend(Family::V4, 8080)).unwrap();
    let from = SocketAddr::from(([198, 51, 100, 3], 4000));
    for _ in 0..3 {
        let mut stream = EchoStream::connect(&net.client, server.address(), Some(from)).unwrap();
        stream.exchange(b"once more").unwrap();
        stream.reset().unwrap();
    }
    assert_eq!(server.wait_for_peers(3).unwrap(), [from; 3]);
}

#[test]
fn steady_traffic_notices_an_interruption() {
    let net = Topology::two_armed("labsteady", Offloads::Default).unwrap();
    net.forwarder.enable_kernel_forwarding().unwrap();
    let tcp = TcpServer::start(&net.home, net.backend(Family::V6, 8080)).unwrap();
    let udp = UdpEcho::start(&net.home, net.backend(Family::V4, 8080)).unwrap();
    let undisturbed = Steady::tcp(&net.client, tcp.address()).unwrap();
    let broken = Steady::udp(&net.client, udp.address()).unwrap();
    undisturbed.wait_for_more(100).unwrap();
    broken.wait_for_more(100).unwrap();
    net.forwarder.ip("route add prohibit 10.8.0.2/32").unwrap();
    assert!(broken.wait_for_failure().unwrap().contains("No route to host"));
    undisturbed.wait_for_more(100).unwrap();
    assert!(undisturbed.stop().unwrap() > 200);
    broken.stop().unwrap_err();
}

#[test]
fn refusals_are_errors() {
    let net = Topology::two_armed("labrefuse", Offloads::Default).unwrap();
    let closed = SocketAddr::from(([198, 51, 100, 1], 9));
    let tcp = format!("{:#}", Transfer::to(closed).run(&net.client).unwrap_err());
    assert!(tcp.contains("refused"), "{tcp}");
    let udp = UdpSocketIn::connect(&net.client, closed, None).unwrap();
    let udp = format!("{:#}", udp.exchange(b"?").unwrap_err());
    assert!(udp.contains("refused"), "{udp}");
    let run = format!("{:#}", net.client.run(&["ls", "/no/such/place"]).unwrap_err());
    assert!(run.contains("/no/such/place") && run.contains("client"), "{run}");
}

/// Without forwarding nothing crosses, and the end mark shows it without waiting.
#[test]
fn the_forwarder_forwards_nothing_by_itself() {
    let net = Topology::two_armed("labidle", Offloads::Default).unwrap();
    let capture = net.home.capture("eth0").unwrap();
    let socket = UdpSocketIn::connect(&net.client, net.backend(Family::V4, 9), None).unwrap();
    socket.send(b"through").unwrap();
    let direct = UdpSocketIn::connect(&net.forwarder, net.backend(Family::V4, 9), None).unwrap();
    direct.send(b"end mark").unwrap();
    let before = capture.until(|frame| frame.contains(b"end mark")).unwrap();
    assert!(!before.iter().any(|frame| frame.contains(b"through")), "{before:?}");
}

#[test]
fn frames_are_captured_as_they_were_on_the_wire() {
    let lab = Lab::new("labframes").unwrap();
    let (a, b) = (lab.host("a").unwrap(), lab.host("b").unwrap());
    lab.link(&a, "eth0", &b, "eth0", LinkOptions { mtu: Some(9000), offloads: Offloads::Default }).unwrap();
    let capture = b.capture("eth0").unwrap();
    for frame in [vlan_frame(Some(100)), vlan_frame(None)] {
        a.send_frame("eth0", &frame).unwrap();
        let seen = capture.wait_for(|seen| !seen.outgoing && seen.bytes.ends_with(b"payload")).unwrap();
        assert_eq!(seen.bytes, frame);
        assert_eq!(seen.parse().unwrap().vlan_ids().len(), usize::from(frame[12] == 0x81));
    }
    let missing = capture.next_within(Duration::from_millis(1), |seen| seen.bytes.ends_with(b"payload"));
    assert!(missing.unwrap().is_none());
}

fn vlan_frame(vlan: Option<u16>) -> Vec<u8> {
    // To everybody, so that the frame needs no neighbour.
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0], [0xff; 6]);
    let builder = match vlan {
        Some(id) => ethernet.single_vlan(id.try_into().unwrap()).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
        None => ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
    };
    let mut frame = Vec::new();
    builder.udp(1, 2).write(&mut frame, b"payload").unwrap();
    frame
}

#[test]
fn macs_are_the_same_in_every_lab() {
    let macs = || {
        let net = Topology::two_armed("labmacs", Offloads::Default).unwrap();
        ["eth0", "eth1"].map(|interface| net.forwarder.mac(interface).unwrap())
    };
    assert_eq!(macs(), ["02:00:00:00:01:00", "02:00:00:00:01:01"]);
    assert_eq!(macs(), macs());
}

#[test]
fn tun_and_tap_devices_join_hosts() {
    for kind in [TunKind::Tun, TunKind::Tap] {
        let lab = Lab::new("labtun").unwrap();
        let (a, b) = (lab.host("a").unwrap(), lab.host("b").unwrap());
        let _line =
            TunPump::between(Tun::create(&a, "ppp0", kind).unwrap(), Tun::create(&b, "ppp0", kind).unwrap()).unwrap();
        a.address("ppp0", "192.0.2.1/24").unwrap();
        b.address("ppp0", "192.0.2.2/24").unwrap();
        let capture = b.capture("ppp0").unwrap();
        Ping::to("192.0.2.2".parse().unwrap()).run(&a).unwrap();
        let is_ping =
            |frame: &forwarder_lab::Frame| frame.parse().is_ok_and(|seen| seen.net.is_some_and(|net| net.is_ipv4()));
        assert!(!capture.wait_for(is_ping).unwrap().outgoing);
        let server = TcpServer::start(&b, "192.0.2.2:80".parse().unwrap()).unwrap();
        Transfer::to(server.address()).upload(MEGABYTES).download(MEGABYTES).run(&a).unwrap();
        if kind == TunKind::Tun {
            let mut packet = Vec::new();
            PacketBuilder::ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64).udp(1, 2).write(&mut packet, b"raw").unwrap();
            a.send_frame("ppp0", &packet).unwrap();
            assert_eq!(capture.wait_for(|frame| frame.bytes.ends_with(b"raw")).unwrap().bytes, packet);
        }
    }
}

#[test]
fn programs_run_inside() {
    let lab = Lab::new("labrun").unwrap();
    let host = lab.host("a").unwrap();
    assert!(host.run(&["ip", "-o", "link"]).unwrap().lines().all(|line| line.contains(" lo:")));
    host.sysctl("net.ipv4.conf.lo.forwarding", "1").unwrap();
    assert_eq!(host.read_sysctl("net/ipv4/conf/lo/forwarding").unwrap(), "1");
    let mut spawned = host.spawn(&["sh", "-c", "echo ready; echo late >&2; exit 3"]).unwrap();
    assert_eq!(spawned.wait_for_line(|line| line.starts_with("read")).unwrap(), "ready");
    assert_eq!(spawned.wait().unwrap().code(), Some(3));
    assert!(spawned.output().contains("late"));
    let complaint = format!("{:#}", spawned.wait_for_line(|line| line == "never").unwrap_err());
    assert!(complaint.contains("ready"), "{complaint}");
    let sleeper = host.spawn(&["sleep", "1000"]).unwrap();
    let proc = format!("/proc/{}", sleeper.id());
    assert!(Path::new(&proc).exists());
    drop(sleeper);
    assert!(!Path::new(&proc).exists());
}

#[test]
fn nothing_remains_after_drop_or_panic() {
    let names = |panics: bool| {
        let lab = Lab::new("labdrop").unwrap();
        let host = lab.host("a").unwrap();
        let extra = env::temp_dir().join(lab.id());
        fs::create_dir(&extra).unwrap();
        lab.delete_at_end(&extra).unwrap();
        // A daemon that nobody holds on to.
        let daemon = host.command("sleep").arg("1000").spawn().unwrap();
        let made = [host.netns_path(), extra, format!("/run/forwarder-lab/{}", lab.id()).into()];
        assert!(made.iter().all(|path| path.exists()), "{made:?}");
        // Shows what the caller must see, also from a panicking thread.
        thread::spawn(move || {
            let _lab = lab;
            assert!(!panics, "on purpose");
        })
        .join()
        .ok();
        (made, daemon)
    };
    for panics in [false, true] {
        let (made, mut daemon) = names(panics);
        assert!(!made.iter().any(|path| path.exists()), "{made:?}");
        assert!(!daemon.wait().unwrap().success(), "it was killed");
    }
}

const HOLD: &str = "FORWARDER_LAB_TEST_HOLD";

/// Not a test: what the two tests below run in a process of its own.
#[test]
fn hold_a_lab() {
    if env::var_os(HOLD).is_some() {
        let lab = Lab::new("labhold").unwrap();
        let host = lab.host("a").unwrap();
        println!("\nholding {} {}", lab.id(), host.netns());
        thread::sleep(Duration::from_secs(60));
    }
}

fn holder() -> (Spawned, String, String) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "hold_a_lab", "--nocapture"]).env(HOLD, "1").stdin(Stdio::null());
    let process = Spawned::start(command).unwrap();
    let line = process.wait_for_line(|line| line.starts_with("holding ")).unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    (process, words[1].to_owned(), words[2].to_owned())
}

fn is_there(netns: &str) -> bool {
    Path::new("/run/netns").join(netns).exists()
}

#[test]
fn an_interrupted_process_cleans_up() {
    for signal in ["INT", "TERM"] {
        let (mut process, _, netns) = holder();
        assert!(is_there(&netns));
        Command::new("kill").args(["-s", signal, &process.id().to_string()]).status().unwrap();
        let status = process.wait().unwrap();
        assert!(!status.success(), "{status}: {}", process.output());
        assert!(!is_there(&netns));
    }
}

#[test]
fn the_lab_of_a_killed_process_is_removed_by_the_next() {
    let (process, id, netns) = holder();
    // The holder lives: its lab stays.
    drop(Lab::new("labsweep").unwrap());
    assert!(is_there(&netns));
    drop(process);
    assert!(is_there(&netns), "{id} cannot have been removed yet");
    drop(Lab::new("labsweep").unwrap());
    assert!(!is_there(&netns));
}

#[test]
fn a_kept_lab_stays_until_it_is_removed() {
    let lab = Lab::new("labkeep").unwrap();
    let host = lab.host("a").unwrap();
    let id = lab.keep().unwrap();
    drop(Lab::new("labsweep").unwrap());
    assert!(is_there(host.netns()));
    assert!(Lab::kept().unwrap().contains(&id));
    Lab::remove(&id).unwrap();
    assert!(!is_there(host.netns()));
    let again = format!("{:#}", Lab::remove(&id).unwrap_err());
    assert!(again.contains(&id), "{again}");
}
