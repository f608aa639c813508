//! Every packet leaves with the checksums it must have: seen at both ends, not by their sockets, which take wrong ones on a veth.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use forwarder_lab::{
    Capture, Checksum, Frame, Host, Offloads, Ping, TcpServer, Topology, Transfer, UdpEcho, UdpSocketIn,
};

use crate::forwarder::Forwarder;
use crate::setting::{Setting, public_address};
use crate::traffic::{Case, PORT, rules};

in_every_setting!(of_every_packet);

/// What marks the end, and no other packet has in it.
const END: &[u8] = b"that was the last datagram";

fn of_every_packet(setting: Setting) {
    check(&setting.network("sums"), setting);
}

/// TC between links that leave nothing to the other side: what arrives there was verified, as by most NICs, and the programs
/// change the checksum themselves then.
#[test]
fn where_the_kernel_has_verified_them() {
    for setting in [Setting::TC_TWO_ARMED, Setting::TC_ONE_ARMED] {
        let net = Topology::new("verified", setting.shape, Offloads::Native).unwrap();
        setting.give_addresses(&net);
        let arriving = net.forwarder.capture("eth0").unwrap();
        let seen = check(&net, setting);
        // Both families, TCP, UDP, and ICMP of both.
        assert_eq!(seen.len(), 6, "{setting:?}: {seen:?}");
        let frames = arriving.until(|frame| !frame.outgoing && frame.contains(END)).unwrap();
        let udp = frames.iter().filter(|frame| {
            !frame.outgoing && frame.has_right_checksums().is_some_and(|(protocol, _)| protocol.0 == 17)
        });
        assert!(
            udp.clone().count() > 0 && udp.clone().all(|frame| frame.checksum == Checksum::Verified),
            "{setting:?}"
        );
    }
}

/// Carries something of every kind by every rule; of which address family and protocol packets with complete checksums were seen.
fn check(net: &Topology, setting: Setting) -> BTreeSet<(bool, u8)> {
    let forwarder = Forwarder::on(net);
    forwarder.load(setting, &Case::all().map(|case| rules(net, case)).collect::<String>());
    let captures = [&net.client, &net.home].map(|host: &Host| host.capture("eth0").unwrap());
    for case in Case::all() {
        let public = public_address(net, case.source, case.family);
        let target = SocketAddr::from((public, PORT));
        let backend = net.backend(case.family, case.source.home_port());
        let _server = TcpServer::start(&net.home, backend).unwrap();
        let _echo = UdpEcho::start(&net.home, backend).unwrap();
        Transfer::to(target).upload(100_000).download(100_000).run(&net.client).unwrap();
        let socket = UdpSocketIn::connect(&net.client, target, None).unwrap();
        for size in [0, 1, 18, 1000] {
            socket.exchange(&vec![0x5a; size]).unwrap();
        }
        Ping::to(public).count(2).payload(57).run(&net.client).unwrap();
    }
    let case = Case::all().next().unwrap();
    let _echo = UdpEcho::start(&net.home, net.backend(case.family, case.source.home_port())).unwrap();
    let target = SocketAddr::from((public_address(net, case.source, case.family), PORT));
    UdpSocketIn::connect(&net.client, target, None).unwrap().exchange(END).unwrap();
    captures.iter().flat_map(|capture| checked(capture, setting)).collect()
}

/// What has arrived at one end, each with the right checksums.
fn checked(capture: &Capture, setting: Setting) -> BTreeSet<(bool, u8)> {
    let has_arrived = |frame: &Frame| !frame.outgoing;
    let frames = capture.until(|frame| has_arrived(frame) && frame.contains(END)).unwrap();
    let mut seen = BTreeSet::new();
    for frame in frames.iter().filter(|frame| has_arrived(frame)) {
        let Some((protocol, are_right)) = frame.has_right_checksums() else { continue };
        assert!(are_right, "{setting:?}: {:02x?}", frame.bytes);
        seen.insert((frame.addresses().unwrap().0.is_ipv4(), protocol.0));
    }
    seen
}
