//! What no rule names passes as it came.

use std::net::{IpAddr, SocketAddr};

use forwarder_lab::etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header,
    PacketBuilder, PacketBuilderStep, VlanId, ip_number,
};
use forwarder_lab::{Family, Frame, Ping, Steady, TcpServer, Topology, UdpEcho, UdpSocketIn};

use crate::config::{rule, source as source_key};
use crate::forwarder::Forwarder;
use crate::setting::{Setting, Source, public_address};
use crate::snapshot::{Snapshot, assert_unchanged, far_end};

in_every_setting!(own_services, settings_of_the_machine, odd_frames);

const PORT: u16 = 53;
const NOT_OURS: u16 = 9;

fn config(net: &Topology) -> String {
    let mut text = String::new();
    for family in Family::ALL {
        for source in [Source::Preserve, Source::Masquerade] {
            let to = net.backend(family, source.home_port());
            let name = format!("{}-{family:?}", source.name());
            text += &rule(&name, target(net, source, family), to, &source_key(source.name()));
        }
    }
    text
}

fn target(net: &Topology, source: Source, family: Family) -> SocketAddr {
    (public_address(net, source, family), PORT).into()
}

/// A connection to the machine itself, on the very address that a rule uses, lives through everything.
fn own_services(setting: Setting) {
    let net = setting.network("own");
    let forwarder = Forwarder::on(&net);
    let mut running = Vec::new();
    let mut servers = Vec::new();
    for family in Family::ALL {
        let address = public_address(&net, Source::Preserve, family);
        let ssh = TcpServer::start(&net.forwarder, (address, 22).into()).unwrap();
        running.push(Steady::tcp(&net.client, ssh.address()).unwrap());
        servers.push(ssh);
    }
    let goes_on = || {
        for steady in &running {
            steady.wait_for_more(200).unwrap();
        }
        for family in Family::ALL {
            Ping::to(public_address(&net, Source::Preserve, family)).run(&net.client).unwrap();
        }
    };
    goes_on();
    forwarder.load(setting, &config(&net));
    goes_on();
    forwarder.succeed(&["reload"]);
    goes_on();
    assert_eq!(forwarder.stats().drops(), [].into());
    forwarder.succeed(&["unload"]);
    goes_on();
    for steady in running {
        steady.stop().unwrap();
    }
}

/// A VPS that switches IPv6 forwarding on ignores router advertisements from then on: only `lo` may change.
fn settings_of_the_machine(setting: Setting) {
    let net = setting.network("sysctls");
    let forwarder = Forwarder::on(&net);
    let before = Snapshot::of(&forwarder);
    forwarder.load(setting, &config(&net));
    for family in ["ipv4", "ipv6"] {
        for interface in ["all", "default"].iter().chain(net.interfaces()) {
            let key = format!("net/{family}/conf/{interface}/forwarding");
            assert_eq!(net.forwarder.read_sysctl(&key).unwrap(), "0", "{key}");
        }
    }
    forwarder.succeed(&["unload"]);
    assert_unchanged(&before, &forwarder, "after unload");
}

/// Something about a frame that makes it none of our business, or one not to be forwarded.
struct Odd {
    what: String,
    frame: Vec<u8>,
    /// The counter; none when the frame must be seen by the forwarder's kernel byte for byte.
    dropped_as: Option<&'static str>,
}

fn odd_frames(setting: Setting) {
    let net = setting.network("odd");
    let forwarder = Forwarder::on(&net);
    forwarder.load(setting, &config(&net));
    let (sender, interface) = far_end(&net);
    let _servers: Vec<UdpEcho> = [Source::Preserve, Source::Masquerade]
        .into_iter()
        .flat_map(|source| Family::ALL.map(|family| net.backend(family, source.home_port())))
        .map(|address| UdpEcho::start(&net.home, address).unwrap())
        .collect();
    let at_home = net.home.capture("eth0").unwrap();
    let at_forwarder = net.forwarder.capture("eth0").unwrap();

    let odd: Vec<Odd> = [Source::Preserve, Source::Masquerade]
        .into_iter()
        .flat_map(|source| Family::ALL.map(|family| odd_frames_for(&net, source, family)))
        .flatten()
        .collect();
    for one in &odd {
        sender.send_frame(interface, &one.frame).unwrap();
    }
    // Two end marks: one that goes home, one that stays here.
    let end_mark = UdpSocketIn::connect(&net.client, target(&net, Source::Preserve, Family::V4), None).unwrap();
    end_mark.exchange(b"end mark at home").unwrap();
    let address = public_address(&net, Source::Preserve, Family::V4);
    let not_ours = UdpSocketIn::connect(&net.client, (address, NOT_OURS).into(), None).unwrap();
    not_ours.send(b"end mark here").unwrap();

    let home_saw = at_home.until(|frame| frame.contains(b"end mark at home")).unwrap();
    let forwarder_saw = at_forwarder.until(|frame| frame.contains(b"end mark here")).unwrap();
    for one in &odd {
        let marker = one.what.as_bytes();
        assert!(!home_saw.iter().any(|frame| frame.contains(marker)), "{} was forwarded", one.what);
        if one.dropped_as.is_none() {
            let passed = |frame: &Frame| !frame.outgoing && frame.bytes == one.frame;
            assert!(forwarder_saw.iter().any(passed), "{} did not pass as it was", one.what);
        }
    }
    let stats = forwarder.stats();
    let mut expected = std::collections::BTreeMap::new();
    for reason in odd.iter().filter_map(|one| one.dropped_as) {
        *expected.entry(reason).or_default() += 1;
    }
    assert_eq!(stats.drops(), expected, "{stats:?}");
}

fn odd_frames_for(net: &Topology, source: Source, family: Family) -> Vec<Odd> {
    let ours: [u8; 6] = mac(&net.forwarder.mac("eth0").unwrap());
    let from: [u8; 6] = [2, 0, 0, 0, 0x99, 0];
    let to = public_address(net, source, family);
    let ends = (net.client_address(family), to);
    let name = |what: &str| format!("{what}, {source:?} {family:?}");
    let ethernet = |destination: [u8; 6]| PacketBuilder::ethernet2(from, destination);
    let plain = |what: &str, to: [u8; 6]| Odd {
        frame: udp(ethernet(to).ip(ip(ends, 64)), what),
        what: what.into(),
        dropped_as: None,
    };
    let vlan = |id: u16| VlanId::try_new(id).unwrap();

    let mut odd = vec![
        plain(&name("another station's frame"), [2, 0, 0, 0, 0x99, 1]),
        plain(&name("a broadcast"), [0xff; 6]),
        plain(&name("a multicast"), [1, 0, 0x5e, 0, 0, 1]),
    ];
    let mut add = |what: &str, dropped_as, make: &dyn Fn(&str) -> Vec<u8>| {
        let what = name(what);
        odd.push(Odd { frame: make(&what), what, dropped_as });
    };
    add("a VLAN tag", None, &|what| udp(ethernet(ours).single_vlan(vlan(100)).ip(ip(ends, 64)), what));
    add("two VLAN tags", None, &|what| udp(ethernet(ours).double_vlan(vlan(100), vlan(7)).ip(ip(ends, 64)), what));
    add("a VLAN tag of number 0", None, &|what| udp(ethernet(ours).single_vlan(vlan(0)).ip(ip(ends, 64)), what));
    add("the end of its time to live", Some("answered_ttl"), &|what| udp(ethernet(ours).ip(ip(ends, 1)), what));
    add("a fragment without its first", None, &|what| udp(ethernet(ours).ip(fragment(ends, 185, false)), what));
    add("a length beyond the frame", None, &|what| {
        let mut frame = udp(ethernet(ours).ip(ip(ends, 64)), what);
        frame.truncate(frame.len() - 1);
        frame
    });
    add("another version in the header", None, &|what| {
        let mut frame = udp(ethernet(ours).ip(ip(ends, 64)), what);
        frame[14] = 0x50 | frame[14] & 0x0f;
        frame
    });
    add("a header without ports", None, &|what| {
        let mut frame = Vec::new();
        let payload = &what.as_bytes()[..3];
        ethernet(ours).ip(ip(ends, 64)).write(&mut frame, ip_number::UDP, payload).unwrap();
        frame
    });
    add("an error about an unknown flow", None, &|what| {
        let about = udp_packet((ends.1, ends.0), what);
        let mut frame = Vec::new();
        let step = ethernet(ours).ip(ip(ends, 64));
        match family {
            // Destination unreachable, port unreachable.
            Family::V4 => step.icmpv4_raw(3, 3, [0; 4]).write(&mut frame, &about).unwrap(),
            Family::V6 => step.icmpv6_raw(1, 4, [0; 4]).write(&mut frame, &about).unwrap(),
        }
        frame
    });
    odd
}

fn udp(step: PacketBuilderStep<IpHeaders>, marker: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    step.udp(5353, PORT).write(&mut frame, marker.as_bytes()).unwrap();
    frame
}

fn udp_packet(ends: (IpAddr, IpAddr), marker: &str) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ip(ip(ends, 64)).udp(5353, PORT).write(&mut packet, marker.as_bytes()).unwrap();
    packet
}

fn ip(ends: (IpAddr, IpAddr), hops: u8) -> IpHeaders {
    match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = Ipv4Header::new(0, hops, IpNumber::UDP, from.octets(), to.octets()).unwrap();
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header =
                Ipv6Header { hop_limit: hops, source: from.octets(), destination: to.octets(), ..Default::default() };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        }
        _ => panic!("{ends:?} are of two families"),
    }
}

fn fragment(ends: (IpAddr, IpAddr), offset: u16, more: bool) -> IpHeaders {
    let offset = IpFragOffset::try_new(offset).unwrap();
    match ip(ends, 64) {
        IpHeaders::Ipv4(mut header, extensions) => {
            header.identification = 4711;
            header.dont_fragment = false;
            header.fragment_offset = offset;
            header.more_fragments = more;
            IpHeaders::Ipv4(header, extensions)
        }
        IpHeaders::Ipv6(header, _) => {
            let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, offset, more, 4711);
            IpHeaders::Ipv6(header, Ipv6Extensions { fragment: Some(fragment), ..Default::default() })
        }
    }
}

pub(crate) fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}
