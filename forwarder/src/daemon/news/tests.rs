#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rtnetlink::packet_route::{
    address::{AddressAttribute, AddressFlags, CacheInfo},
    link::{LinkAttribute, LinkLayerType},
    rule::RuleMessage,
};

use super::*;

const NEXT_HOPS: Stale = Stale { next_hops: true, rules: false };

fn link(index: u32, change: impl FnOnce(&mut LinkMessage)) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    message.attributes = vec![
        LinkAttribute::IfName(format!("eth{index}")),
        LinkAttribute::Mtu(1500),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
    ];
    change(&mut message);
    RouteNetlinkMessage::NewLink(message)
}

fn address(text: &str, change: impl FnOnce(&mut AddressMessage)) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = 2;
    message.header.prefix_len = 24;
    message.attributes = vec![
        AddressAttribute::Address(text.parse().unwrap()),
        AddressAttribute::Flags(AddressFlags::empty()),
        AddressAttribute::CacheInfo(CacheInfo::default()),
    ];
    change(&mut message);
    message
}

fn neighbour(text: &str, state: NeighbourState, link_address: &[u8]) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = 2;
    message.header.state = state;
    message.attributes = vec![NeighbourAttribute::Destination(match text.parse().unwrap() {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    })];
    if !link_address.is_empty() {
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(link_address.to_vec()));
    }
    message
}

/// What each message makes stale, one after the other on one machine.
fn check(table: Vec<(&str, RouteNetlinkMessage, Stale)>) {
    let mut known = Known::default();
    for (about, message, expected) in table {
        assert_eq!(known.note(&message), expected, "{about}");
    }
}

#[test]
fn interfaces() {
    let deleted = |message: RouteNetlinkMessage| match message {
        RouteNetlinkMessage::NewLink(message) => RouteNetlinkMessage::DelLink(message),
        other => other,
    };
    let bridge = |message: &mut LinkMessage| message.header.interface_family = AddressFamily::Bridge;
    check(vec![
        ("a new one", link(2, |_| {}), Stale::EVERYTHING),
        ("the same again", link(2, |_| {}), Stale::NOTHING),
        ("promiscuous", link(2, |message| message.header.flags |= LinkFlags::Promisc), Stale::NOTHING),
        ("no carrier", link(2, |message| message.header.flags = LinkFlags::Up), Stale::EVERYTHING),
        ("carrier", link(2, |_| {}), Stale::EVERYTHING),
        ("down", link(2, |message| message.header.flags = LinkFlags::empty()), Stale::EVERYTHING),
        ("up", link(2, |_| {}), Stale::EVERYTHING),
        ("another MTU", link(2, |message| message.attributes.push(LinkAttribute::Mtu(1400))), Stale::EVERYTHING),
        ("its MTU again", link(2, |_| {}), Stale::EVERYTHING),
        (
            "another MAC",
            link(2, |message| message.attributes.push(LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]))),
            Stale::EVERYTHING,
        ),
        (
            "another name",
            link(2, |message| message.attributes.push(LinkAttribute::IfName("lan".to_owned()))),
            Stale::EVERYTHING,
        ),
        ("as it was", link(2, |_| {}), Stale::EVERYTHING),
        ("a bridge tells of its port", link(2, bridge), Stale::NOTHING),
        ("a bridge tells of a port no more", deleted(link(2, bridge)), Stale::NOTHING),
        ("the same yet again", link(2, |_| {}), Stale::NOTHING),
        ("deleted", deleted(link(2, |_| {})), Stale::EVERYTHING),
        ("made anew", link(2, |_| {}), Stale::EVERYTHING),
    ]);
}

#[test]
fn addresses() {
    use RouteNetlinkMessage::{DelAddress, NewAddress};
    let prolonged = |message: &mut AddressMessage| {
        message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::CacheInfo(_)));
        let mut lifetimes = CacheInfo::default();
        lifetimes.ifa_valid = 3600;
        message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
    };
    let deprecated = |message: &mut AddressMessage| {
        *message.attributes.get_mut(1).unwrap() = AddressAttribute::Flags(AddressFlags::Deprecated);
    };
    let same = |_: &mut AddressMessage| {};
    for text in ["203.0.113.7", "2001:db8::7"] {
        check(vec![
            ("a new one", NewAddress(address(text, same)), Stale::EVERYTHING),
            ("its lifetime is prolonged", NewAddress(address(text, prolonged)), Stale::NOTHING),
            ("deprecated", NewAddress(address(text, deprecated)), Stale::EVERYTHING),
            ("preferred again", NewAddress(address(text, same)), Stale::EVERYTHING),
            ("on another interface", NewAddress(address(text, |message| message.header.index = 3)), Stale::EVERYTHING),
            ("gone from there", DelAddress(address(text, |message| message.header.index = 3)), Stale::EVERYTHING),
            ("gone", DelAddress(address(text, same)), Stale::EVERYTHING),
            ("what was not known goes", DelAddress(address(text, same)), Stale::NOTHING),
        ]);
    }
}

#[test]
fn neighbours() {
    use NeighbourState::{Delay, Failed, Incomplete, Probe, Reachable, Stale as Old};
    use RouteNetlinkMessage::{DelNeighbour, NewNeighbour};
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    for text in ["10.8.0.2", "fd08::2"] {
        let new = |state, mac: &[u8]| NewNeighbour(neighbour(text, state, mac));
        check(vec![
            ("it is asked for", new(Incomplete, &[]), Stale::NOTHING),
            ("it answers", new(Reachable, &MAC), Stale::NOTHING),
            // Each of our own probes does this; were it news, probing would lead to probing.
            ("not heard of for a while", new(Old, &MAC), Stale::NOTHING),
            ("sent to again", new(Delay, &MAC), Stale::NOTHING),
            ("probed", new(Probe, &MAC), Stale::NOTHING),
            ("it answers again", new(Reachable, &MAC), Stale::NOTHING),
            ("another MAC", new(Reachable, &OTHER), NEXT_HOPS),
            ("it does not answer", new(Failed, &OTHER), NEXT_HOPS),
            ("still not", new(Failed, &[]), Stale::NOTHING),
            ("it answers at last", new(Reachable, &OTHER), Stale::NOTHING),
            ("forgotten", DelNeighbour(neighbour(text, Old, &OTHER)), NEXT_HOPS),
            ("forgotten twice", DelNeighbour(neighbour(text, Failed, &[])), Stale::NOTHING),
        ]);
    }
    let mut of_a_bridge = NeighbourMessage::default();
    of_a_bridge.attributes = vec![NeighbourAttribute::LinkLayerAddress(MAC.to_vec())];
    check(vec![("a bridge has learnt a MAC", NewNeighbour(of_a_bridge), Stale::NOTHING)]);
}

#[test]
fn routes_and_rules() {
    use RouteNetlinkMessage::{DelRoute, DelRule, NewRoute, NewRule};
    let cached = || {
        let mut message = RouteMessage::default();
        message.header.flags = RouteFlags::Cloned;
        message
    };
    check(vec![
        ("a route", NewRoute(RouteMessage::default()), Stale::EVERYTHING),
        ("one less", DelRoute(RouteMessage::default()), Stale::EVERYTHING),
        ("what the kernel learnt of a path", NewRoute(cached()), Stale::NOTHING),
        ("and forgot", DelRoute(cached()), Stale::NOTHING),
        ("a rule", NewRule(RuleMessage::default()), Stale::EVERYTHING),
        ("one less", DelRule(RuleMessage::default()), Stale::EVERYTHING),
    ]);
}
