//! What senders learn from forwarder itself about the way, and segments that fit it without that.

use std::net::{SocketAddr, UdpSocket};

use forwarder_lab::{Family, Frame, TcpServer, Topology, Transfer, UdpEcho, UdpSocketIn};

use crate::config::{rule, source as source_key};
use crate::forwarder::Forwarder;
use crate::icmp_errors::{cases, set_hops, time_exceeded};
use crate::setting::{Setting, Source, family_name, public_address};

in_every_setting!(
    segments_fit_a_narrow_way,
    senders_hear_of_a_narrow_way,
    what_may_be_cut_is_cut,
    the_last_hop_is_forwarder,
);

const PORT: u16 = 80;
pub(crate) const ROUTE_MTU: u16 = 1300;
const MANY: u64 = 10_000_000;
const ETHERNET: usize = 14;

fn start(name: &str, setting: Setting, clamp: bool) -> (Topology, Forwarder) {
    let net = setting.network(name);
    let forwarder = Forwarder::on(&net);
    let mut config = format!("mss_clamp = {clamp}\n");
    for (source, family) in cases() {
        let name = format!("{}-{}", source.name(), family_name(family));
        let to = net.backend(family, source.home_port());
        config += &rule(&name, target(&net, source, family), to, &source_key(source.key(&net, family)));
    }
    for family in Family::ALL {
        narrow(&net, family);
    }
    forwarder.load(setting, &config);
    (net, forwarder)
}

fn target(net: &Topology, source: Source, family: Family) -> SocketAddr {
    (public_address(net, source, family), PORT).into()
}

/// From forwarder on, the way to home takes less than a frame.
pub(crate) fn narrow(net: &Topology, family: Family) {
    let home = net.home_address(family).to_string();
    let route = net.forwarder.ip(&format!("route get {home}")).unwrap();
    let words: Vec<&str> = route.split_whitespace().collect();
    let part = |key: &str| words.windows(2).find(|pair| pair[0] == key).map(|pair| format!("{key} {} ", pair[1]));
    let way = part("via").unwrap_or_default() + &part("dev").unwrap();
    // Of an IPv6 route, the kernel tells programs only an MTU that is locked.
    let lock = if family == Family::V6 { "lock " } else { "" };
    net.forwarder.route(&home, &format!("{way}mtu {lock}{ROUTE_MTU}")).unwrap();
}

fn move_much(net: &Topology, forwarder: &Forwarder) {
    for (source, family) in cases() {
        let _server = TcpServer::start(&net.home, net.backend(family, source.home_port())).unwrap();
        let moved = Transfer::to(target(net, source, family)).upload(MANY).download(MANY).run(&net.client);
        moved.unwrap_or_else(|error| panic!("{source:?} {family:?}: {error:#}\n{:#?}", forwarder.stats()));
    }
}

/// The segment size that a SYN or SYN-ACK announces, as Linux does: by its first option.
fn announced(frame: &Frame) -> Option<(u8, u16)> {
    const SYN: u8 = 0x02;
    let ip = frame.bytes.get(ETHERNET..)?;
    let (header, next) = if ip.first()? >> 4 == 4 { (20, 9) } else { (40, 6) };
    let tcp = ip.get(header..)?;
    let flags = *tcp.get(13)?;
    let &[2, 4, high, low] = tcp.get(20..24)? else { return None };
    let is_syn = *ip.get(next)? == 6 && flags & SYN != 0;
    (!frame.outgoing && is_syn).then(|| (flags, u16::from_be_bytes([high, low])))
}

/// Both ends are told segment sizes that fit, so nothing is ever too big.
fn segments_fit_a_narrow_way(setting: Setting) {
    const SYN: u8 = 0x02;
    const SYN_ACK: u8 = 0x12;
    let (net, forwarder) = start("mss", setting, true);
    for (source, family) in cases() {
        let _server = TcpServer::start(&net.home, net.backend(family, source.home_port())).unwrap();
        let (at_home, at_client) = (net.home.capture("eth0").unwrap(), net.client.capture("eth0").unwrap());
        Transfer::to(target(&net, source, family)).upload(1000).download(1000).run(&net.client).unwrap();
        let headers = if family == Family::V4 { 40 } else { 60 };
        for (capture, flags) in [(at_home, SYN), (at_client, SYN_ACK)] {
            let frame = capture.wait_for(|frame| announced(frame).is_some()).unwrap();
            // Explicit congestion notification is set up by two more flags.
            let (seen, size) = announced(&frame).unwrap();
            assert_eq!((seen & SYN_ACK, size), (flags, ROUTE_MTU - headers), "{source:?} {family:?}");
        }
    }
    move_much(&net, &forwarder);
    let stats = forwarder.stats();
    assert!(stats.drops().is_empty(), "{stats:?}");
}

/// Without that, the client's kernel hears what fits, and sends less.
fn senders_hear_of_a_narrow_way(setting: Setting) {
    let (net, forwarder) = start("toobig", setting, false);
    move_much(&net, &forwarder);
    let stats = forwarder.stats();
    let drops = stats.drops();
    assert!(drops.get("answered_too_big").is_some_and(|count| *count > 0), "{stats:?}");
    for family in Family::ALL {
        let address = public_address(&net, Source::Masquerade, family);
        let route = net.client.ip(&format!("route get {address}")).unwrap();
        assert!(route.contains(&format!("mtu {ROUTE_MTU}")), "{family:?}: {route}");
    }
}

/// Datagrams that routers may cut, each to a server of its own that answers them whole.
fn cuttable(net: &Topology, check: impl Fn(Source, &UdpSocketIn)) {
    // New sockets do not forbid cutting then.
    net.client.sysctl("net.ipv4.ip_no_pmtu_disc", "1").unwrap();
    for (source, family) in cases().filter(|(_, family)| *family == Family::V4) {
        let _echo = UdpEcho::start(&net.home, net.backend(family, source.home_port())).unwrap();
        let socket = UdpSocketIn::connect(&net.client, target(net, source, family), None).unwrap();
        check(source, &socket);
    }
}

/// Whole datagrams and fragments that are too large for the way.
fn what_may_be_cut_is_cut(setting: Setting) {
    let (net, forwarder) = start("cut", setting, true);
    // As from a wire: with checksums.
    net.client.features("eth0", "tx off").unwrap();
    cuttable(&net, |source, socket| {
        for size in [1400, 1472, 1473, 5000, 20_000] {
            let answered = socket.exchange(&vec![7; size]);
            answered.unwrap_or_else(|error| panic!("{source:?} {size}: {error:#}\n{:#?}", forwarder.stats()));
        }
        socket.exchange(b"small").unwrap();
    });
    let stats = forwarder.stats();
    assert!(stats.drops().is_empty(), "{:?}", stats.drops());
    assert!(stats.outcome("held_to_cut") > 0);
}

/// A packet whose checksum is not finished, as between containers, cannot be cut: its sender is told to.
#[test]
fn what_cannot_be_cut_is_told() {
    const NEEDED: [u8; 2] = [3, 4];
    let (net, forwarder) = start("uncut", Setting::TC_TWO_ARMED, true);
    net.client.features("eth0", "tx on").unwrap();
    let at_client = net.client.capture("eth0").unwrap();
    cuttable(&net, |_, socket| socket.send(&[7; 1400]).unwrap());
    let told =
        at_client.wait_for(|frame| !frame.outgoing && frame.bytes.get(ETHERNET + 20..ETHERNET + 22) == Some(&NEEDED));
    let told = told.unwrap();
    assert_eq!(told.bytes[ETHERNET + 26..ETHERNET + 28], ROUTE_MTU.to_be_bytes());
    let stats = forwarder.stats();
    assert_eq!((stats.outcome("held_to_cut"), stats.outcome("drop_too_big")), (0, 0));
}

/// A traceroute sees forwarder, under the address that it asks for.
fn the_last_hop_is_forwarder(setting: Setting) {
    let (net, forwarder) = start("hop", setting, true);
    for (source, family) in cases() {
        let target = target(&net, source, family);
        let from = SocketAddr::new(net.client_address(family), 5000 + source.home_port() % 100);
        let at_client = net.client.capture("eth0").unwrap();
        let socket = net.client.enter(|| UdpSocket::bind(from)).unwrap().unwrap();
        set_hops(&socket, if net.router.is_some() { 2 } else { 1 });
        socket.send_to(b"how far is it?", target).unwrap();
        let error = at_client.wait_for(|frame| time_exceeded(frame).is_some()).unwrap();
        let (ends, embedded) = time_exceeded(&error).unwrap();
        assert_eq!(ends, (target.ip(), from.ip()), "{source:?} {family:?}: the error's ends");
        assert_eq!(embedded, (from, target), "{source:?} {family:?}: the embedded packet's ends");
    }
    let stats = forwarder.stats();
    assert_eq!(stats.outcome("answered_ttl"), cases().count() as u64, "{stats:?}");
}
