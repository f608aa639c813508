//! Flows that XDP begins itself.

use std::net::UdpSocket;

use forwarder_common::verdict::Outcome;
use forwarder_lab::Family;

use crate::connection::{Connection, KEEPING_FLOWS, entries};
use crate::fixture::{check, check_at_tc, warm_up};
use crate::plan::{end, ip};
use crate::test_packet::Body::{EchoReply, EchoRequest, Tcp, Udp, UdpUnsummed};
use crate::test_packet::{TestPacket, flags};
use crate::world::{self, Hook, World};

const RULES: &str = include_str!("../fixtures/rules.toml");

#[test]
fn what_xdp_begins_goes_on_as_any_flow() {
    world::with(RULES, |world| {
        warm_up(world);
        world.let_xdp_begin();
        for family in Family::ALL {
            let mut established = 0;
            for rule in KEEPING_FLOWS {
                let connection = Connection::new(family, rule, 4000);
                let (syn, left) = connection.request(Tcp(flags::SYN));
                check(world, "SYN", Hook::Xdp, &syn, &left.begins_flow().into());
                assert_eq!(entries(world, family), (established, 2), "{connection:?}");
                connection.request_at_tc(world, "SYN again", Tcp(flags::SYN));
                connection.answer_at_tc(world, "SYN-ACK", Tcp(flags::SYN_ACK), Outcome::NotOurs);
                connection.request_at_tc(world, "ACK", Tcp(flags::ACK));
                connection.is_fast(world, "data", Tcp(flags::ACK), Tcp(flags::ACK));
                established += 2;
                for (request, port) in [(Udp, 4000), (UdpUnsummed, 4002)] {
                    let connection = Connection::new(family, rule, port);
                    let (packet, left) = connection.request(request);
                    check(world, "the first", Hook::Xdp, &packet, &left.begins_flow().into());
                    connection.request_at_tc(world, "the first again", request);
                    connection.answer_at_tc(world, "the answer", Udp, Outcome::NotOurs);
                    connection.request_at_tc(world, "the second", request);
                    connection.is_fast(world, "from now on", request, Udp);
                    established += 2;
                    assert_eq!(entries(world, family), (established, 0), "{connection:?}");
                }
            }
            let echo = Connection::echo(family, 4000);
            let (packet, left) = echo.request(EchoRequest);
            check_at_tc(world, "a rule for a whole address", &packet, left.begins_flow());
            check(world, "an answer", Hook::Xdp, &echo.request(EchoReply).0, &Outcome::ToTc.into());
        }
    });
}

#[test]
fn ports_that_xdp_chooses() {
    world::with(RULES, |world| {
        warm_up(world);
        world.let_xdp_begin();
        for family in Family::ALL {
            for body in [Tcp(flags::SYN), Udp] {
                let connection = Connection::new(family, KEEPING_FLOWS[0], 40_000);
                let (packet, left) = connection.request(body);
                let left = left.begins_flow().with_port_of(1024..=32_767);
                let left = check(world, "a port to allocate", Hook::Xdp, &packet, &left.into()).unwrap();
                let allocated = Connection { source: left.src, ..connection };
                allocated.request_at_tc(world, "again", body);
                let first = Connection::new(family, KEEPING_FLOWS[0], 5000);
                let (packet, left) = first.request(body);
                check(world, "a port that is kept", Hook::Xdp, &packet, &left.begins_flow().into());
                let second = Connection { client: end(family, "client_2", 5000), ..first };
                let (packet, left) = second.request(body);
                let left = left.begins_flow().with_port_of(1024..=32_767);
                let left = check(world, "taken", Hook::Xdp, &packet, &left.into());
                assert_ne!(left.unwrap().src, first.source);
            }
        }
    });
}

#[test]
fn what_xdp_leaves_without_a_trace() {
    for family in Family::ALL {
        world::with(RULES, |world| leaves_without_a_trace(world, family));
    }
}

fn leaves_without_a_trace(world: &mut World, family: Family) {
    let leaves = |world: &mut World, about: &str, packet: &TestPacket| {
        check(world, about, Hook::Xdp, packet, &Outcome::ToTc.into());
        assert_eq!(entries(world, family), (0, 0), "{about}");
    };
    let connection = Connection::new(family, KEEPING_FLOWS[0], 6000);
    let (packet, left) = connection.request(Udp);
    warm_up(world);
    leaves(world, "before the loader has put the program there", &packet);
    world.let_xdp_begin();
    for hop_limit in [0, 1] {
        leaves(world, "hop limit", &packet.with(|packet| packet.hop_limit = hop_limit));
    }
    leaves(world, "too long", &packet.with(|packet| packet.payload = vec![0; 1480]));
    for tcp in [flags::ACK, flags::SYN_ACK, flags::FIN_ACK, flags::RST] {
        leaves(world, "not a SYN", &connection.request(Tcp(tcp)).0);
    }
    let jumbo = connection.request(Tcp(flags::SYN)).0.with(|packet| packet.tcp_options = vec![2, 4, 0x23, 0]);
    leaves(world, "a segment size that does not fit", &jumbo);
    let fixed = Connection::new(family, KEEPING_FLOWS[1], 6000);
    let stranger = Connection { client: end(family, "client_2", 6000), ..fixed };
    leaves(world, "a client that is not allowed", &stranger.request(Udp).0);
    let bound = UdpSocket::bind((ip(family, "inner"), 6000)).unwrap();
    leaves(world, "a port of a socket", &packet);
    drop(bound);
    world.forget_next_hops();
    leaves(world, "a next hop that is to be asked for", &packet);
    check(world, "and then", Hook::Xdp, &packet, &left.begins_flow().into());
}
