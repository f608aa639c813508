//! What forwarder itself says to those whose packets go by a `[[masquerade]]`, a prefix, a hairpin or a line without link
//! header. Of plain rules: `path_mtu.rs`.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use forwarder_lab::{Family, Host, TcpServer, Topology, Transfer};

use crate::config::rule;
use crate::forwarder::Forwarder;
use crate::icmp_errors::{set_hops, time_exceeded};
use crate::lines::{self, Line};
use crate::path_mtu::{ROUTE_MTU, narrow};
use crate::setting::{Setting, Source, family_name, public_address};
use crate::{hairpin, masquerade, prefixes};

const PORT: u16 = 80;
const MANY: u64 = 3_000_000;
const SETTINGS: [Setting; 2] = [Setting::NATIVE_TWO_ARMED, Setting::TC_TWO_ARMED];

/// A datagram whose last hop is forwarder: the error comes from the address that it was sent to, and holds it as it was sent.
fn hears_of_the_last_hop(host: &Host, from: SocketAddr, to: SocketAddr) {
    hears_of_the_last_hop_from(to.ip(), host, from, to);
}

fn hears_of_the_last_hop_from(answerer: IpAddr, host: &Host, from: SocketAddr, to: SocketAddr) {
    let capture = host.capture("eth0").unwrap();
    let socket = host.enter(|| UdpSocket::bind(from)).unwrap().unwrap();
    set_hops(&socket, 1);
    socket.send_to(b"how far is it?", to).unwrap();
    let error = capture.wait_for(|frame| time_exceeded(frame).is_some()).unwrap();
    assert_eq!(time_exceeded(&error).unwrap(), ((answerer, from.ip()), (from, to)));
}

/// Nothing was dropped but what senders were told of, so many.
fn told(forwarder: &Forwarder, expected: &[(&str, u64)]) {
    let stats = forwarder.stats();
    assert_eq!(stats.drops().into_iter().collect::<Vec<_>>(), expected, "{stats:#?}");
}

/// After a transfer without lowered segments: the sender has learned what the way takes.
fn knows_the_mtu(host: &Host, from: SocketAddr, to: SocketAddr) {
    let route = host.ip(&format!("route get {} from {}", to.ip(), from.ip())).unwrap();
    assert!(route.contains(&format!("mtu {ROUTE_MTU}")), "{from} to {to}: {route}");
}

#[test]
fn to_hosts_that_go_out() {
    for setting in SETTINGS {
        let config = format!("mss_clamp = false\n{}", masquerade::everybody());
        let masquerade::Net { net, forwarder } = &masquerade::start("ownout", setting, &config);
        for family in Family::ALL {
            let (host, client) = (masquerade::inside(family, 20), net.client_address(family));
            // Not from the far end: a host that traces the route would see it one hop away, and stop.
            let outer = net.public_address(family);
            hears_of_the_last_hop_from(outer, &net.home, (host, 4000).into(), (client, PORT).into());
        }
        told(forwarder, &[("answered_ttl", 2)]);
        for family in Family::ALL {
            let client = net.client_address(family);
            let lock = if family == Family::V6 { "lock " } else { "" };
            net.forwarder.route(&client.to_string(), &format!("dev eth0 mtu {lock}{ROUTE_MTU}")).unwrap();
            let server = TcpServer::start(&net.client, (client, PORT).into()).unwrap();
            let from = SocketAddr::new(masquerade::inside(family, 21), 4001);
            let moved = Transfer::to(server.address()).from(from).upload(MANY).run(&net.home);
            moved.unwrap_or_else(|error| panic!("{from}: {error:#}\n{:#?}", forwarder.stats()));
            knows_the_mtu(&net.home, from, server.address());
        }
        assert!(forwarder.stats().outcome("answered_too_big") >= 2, "{:#?}", forwarder.stats());
    }
}

#[test]
fn about_prefixes() {
    for setting in SETTINGS {
        let prefixes::Net { net, forwarder } = &prefixes::start("ownpre", setting, "");
        for family in Family::ALL {
            let client = net.client_address(family);
            let [(outer, inner), (other_outer, _)] = prefixes::hosts(family);
            hears_of_the_last_hop(&net.client, (client, 4000).into(), (outer, PORT).into());
            // It may have been the answer to a client: the address of ours is the one that it answers from.
            hears_of_the_last_hop_from(outer, &net.home, (inner, 4000).into(), (client, PORT).into());
            hears_of_the_last_hop(&net.home, (inner, 4001).into(), (other_outer, PORT).into());
        }
        told(forwarder, &[("answered_ttl", 6)]);
    }
}

#[test]
fn to_neighbours_of_the_backend() {
    for setting in SETTINGS {
        let (net, neighbour) = hairpin::network(setting);
        let forwarder = hairpin::load(&net, setting, &Source::ALL);
        let mut asked = 0;
        for family in Family::ALL {
            for source in Source::ALL {
                let to = SocketAddr::new(public_address(&net, source, family), PORT);
                let own: IpAddr = if family == Family::V4 { "10.8.0.3" } else { "fd08::3" }.parse().unwrap();
                hears_of_the_last_hop(&neighbour, (own, 4000 + asked).into(), to);
                asked += 1;
            }
        }
        told(&forwarder, &[("answered_ttl", u64::from(asked))]);
        assert_eq!(forwarder.flow_count(), 0);
    }
}

/// Without link header in front of what is said, too.
#[test]
fn on_lines_without_link_header() {
    let (net, _cables): (Topology, _) = lines::network("owntun", Line::Tun, Line::Tun);
    let forwarder = Forwarder::on(&net);
    let mut config = "mss_clamp = false\n".to_owned();
    for family in Family::ALL {
        config += &rule(family_name(family), net.public(family, PORT), net.backend(family, PORT), "");
        narrow(&net, family);
    }
    forwarder.load(Setting::TC_TWO_ARMED, &config);
    for family in Family::ALL {
        let _server = TcpServer::start(&net.home, net.backend(family, PORT)).unwrap();
        let from = SocketAddr::new(net.client_address(family), 4000);
        let moved = Transfer::to(net.public(family, PORT)).from(from).upload(MANY).run(&net.client);
        moved.unwrap_or_else(|error| panic!("{family:?}: {error:#}\n{:#?}", forwarder.stats()));
        knows_the_mtu(&net.client, from, net.public(family, PORT));
    }
    assert!(forwarder.stats().outcome("answered_too_big") >= 2, "{:#?}", forwarder.stats());
}
