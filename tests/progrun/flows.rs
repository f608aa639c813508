//! Rules that keep flows, from the first packet to the last.

use std::net::{TcpListener, UdpSocket};

use forwarder_common::verdict::Outcome;
use forwarder_lab::Family;

use crate::connection::{Connection, KEEPING_FLOWS, entries};
use crate::fixture::{arriving, check, check_at_tc, check_both, warm_up};
use crate::plan::{end, ip};
use crate::test_packet::Body::{self, EchoReply, EchoRequest, Tcp, Udp};
use crate::test_packet::flags;
use crate::world::{self, Hook};

const RULES: &str = include_str!("../fixtures/rules.toml");
/// Where ports are allocated first: [`world::LOCAL_PORTS`] left out.
const ALLOCATED: std::ops::RangeInclusive<u16> = 1024..=32_767;

#[test]
fn a_connection_from_syn_to_fin() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            for (index, rule) in KEEPING_FLOWS.into_iter().enumerate() {
                let connection = Connection::new(family, rule, 4000);
                connection.open(world);
                assert_eq!(entries(world, family), (2 * (index + 1), 0), "{connection:?}");
                connection.is_fast(world, "data", Tcp(flags::ACK), Tcp(flags::ACK));
                connection.request_at_tc(world, "the client's FIN", Tcp(flags::FIN_ACK));
                connection.answer_at_tc(world, "data while half closed", Tcp(flags::ACK), Outcome::ToTc);
                connection.answer_at_tc(world, "the backend's FIN", Tcp(flags::FIN_ACK), Outcome::ToTc);
                connection.request_at_tc(world, "the last ACK", Tcp(flags::ACK));
                // The same port again.
                connection.request_at_tc(world, "SYN of the next connection", Tcp(flags::SYN));
                connection.answer_at_tc(world, "its SYN-ACK", Tcp(flags::SYN_ACK), Outcome::ToTc);
                connection.request_at_tc(world, "its ACK", Tcp(flags::ACK));
                connection.is_fast(world, "its data", Tcp(flags::ACK), Tcp(flags::ACK));
                connection.answer_at_tc(world, "RST", Tcp(flags::RST), Outcome::ToTc);
                // Forged, or stale: both sides go on.
                connection.request_at_tc(world, "the client goes on", Tcp(flags::ACK));
                connection.answer_at_tc(world, "the backend goes on", Tcp(flags::ACK), Outcome::ToTc);
                connection.request_at_tc(world, "and the client", Tcp(flags::ACK));
                connection.is_fast(world, "both", Tcp(flags::ACK), Tcp(flags::ACK));
            }
        }
    });
}

#[test]
fn udp_and_echo_are_established_by_the_second_request_after_an_answer() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let mut connections: Vec<(Connection, Body, Body)> =
                KEEPING_FLOWS.into_iter().map(|rule| (Connection::new(family, rule, 4000), Udp, Udp)).collect();
            connections.push((Connection::new(family, KEEPING_FLOWS[0], 4002), Body::UdpUnsummed, Body::UdpUnsummed));
            connections.push((Connection::echo(family, 4000), EchoRequest, EchoReply));
            for (index, (connection, request, answer)) in connections.into_iter().enumerate() {
                let (packet, left) = connection.request(request);
                check_at_tc(world, "the first", &packet, left.begins_flow());
                connection.request_at_tc(world, "the first again", request);
                assert_eq!(entries(world, family), (2 * index, 2), "{connection:?}");
                connection.answer_at_tc(world, "the answer", answer, Outcome::NotOurs);
                assert_eq!(entries(world, family), (2 * index, 2), "{connection:?}");
                connection.request_at_tc(world, "the second", request);
                assert_eq!(entries(world, family), (2 * (index + 1), 0), "{connection:?}");
                connection.is_fast(world, "from now on", request, answer);
            }
        }
    });
}

#[test]
fn what_cannot_begin_a_flow_is_left_to_the_kernel() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            for rule in KEEPING_FLOWS {
                let connection = Connection::new(family, rule, 4000);
                for tcp in [flags::RST, flags::RST | flags::ACK, flags::SYN_ACK] {
                    check_at_tc(world, "no flow", &connection.request(Tcp(tcp)).0, Outcome::Stray);
                }
                // An answer to nothing is nobody's.
                check_both(world, "no flow", &connection.answer(Tcp(flags::ACK)).0, Outcome::NotOurs);
            }
            assert_eq!(entries(world, family), (0, 0));
            // In the middle of a connection, after a restart say: as with netfilter it begins one.
            let (packet, left) = Connection::new(family, KEEPING_FLOWS[2], 4000).request(Tcp(flags::ACK));
            check_at_tc(world, "a connection of before", &packet, left.begins_flow());
        }
    });
}

#[test]
fn source_ports_are_allocated_where_local_sockets_are_not() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            for body in [Tcp(flags::SYN), Udp] {
                for port in [40_000, 40_001, 80] {
                    let connection = Connection::new(family, KEEPING_FLOWS[0], port);
                    let (packet, left) = connection.request(body);
                    let left =
                        check_at_tc(world, "a port to allocate", &packet, left.begins_flow().with_port_of(ALLOCATED))
                            .unwrap();
                    // The flow keeps it, and the answer finds its way back.
                    let allocated = Connection { source: left.src, ..connection };
                    allocated.request_at_tc(world, "again", body);
                    let answer = if body == Udp { Udp } else { Tcp(flags::SYN_ACK) };
                    allocated.answer_at_tc(world, "the answer", answer, Outcome::NotOurs);
                }
                // The same port of another client is taken.
                let first = Connection::new(family, KEEPING_FLOWS[0], 5000);
                let (packet, left) = first.request(body);
                check_at_tc(world, "a port that is kept", &packet, left.begins_flow());
                let second = Connection { client: end(family, "client_2", 5000), ..first };
                let (packet, left) = second.request(body);
                let left = check_at_tc(world, "taken", &packet, left.begins_flow().with_port_of(ALLOCATED));
                assert_ne!(left.unwrap().src, first.source);
            }
        }
    });
}

#[test]
fn a_port_of_a_local_socket_is_left_alone() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let bound = (ip(family, "inner"), 4000);
            let _sockets = (TcpListener::bind(bound).unwrap(), UdpSocket::bind(bound).unwrap());
            for body in [Tcp(flags::SYN), Udp] {
                let (packet, left) = Connection::new(family, KEEPING_FLOWS[0], 4000).request(body);
                let left = left.begins_flow().clashes(1).with_port_of(ALLOCATED);
                assert_ne!(check_at_tc(world, "a socket has it", &packet, left).unwrap().src.port(), 4000);
                // The address of another rule's source has no such socket.
                let (packet, left) = Connection::new(family, KEEPING_FLOWS[1], 4000).request(body);
                check_at_tc(world, "no socket has it", &packet, left.begins_flow());
            }
        }
    });
}

#[test]
fn when_every_port_is_taken_the_packet_is_dropped() {
    use forwarder_common::abi::PortRange;
    const NONE: PortRange = PortRange { first: 1, last: 0 };
    let two_ports = |compiled: &mut forwarder::config::Compiled| {
        compiled.settings.ports = [PortRange { first: 5000, last: 5001 }, NONE, NONE];
    };
    world::with_changed(RULES, two_ports, |world| {
        warm_up(world);
        for family in Family::ALL {
            let masquerade = |client, port| {
                let connection = Connection::new(family, KEEPING_FLOWS[0], port);
                Connection { client: end(family, client, port), ..connection }.request(Udp)
            };
            for port in [40_000, 40_001] {
                let (packet, left) = masquerade("client", port);
                check_at_tc(world, "a port of its parity", &packet, left.begins_flow().with_port_of(5000..=5001));
            }
            for port in [40_000, 40_001] {
                check_at_tc(world, "no port left", &masquerade("client_2", port).0, Outcome::DropNoPort);
            }
            // Towards another backend they are free. Where its parity has none left, it takes the other.
            for (port, allocated) in [(40_000, 5000), (40_002, 5001)] {
                let (packet, left) = Connection::new(family, KEEPING_FLOWS[1], port).request(Udp);
                check_at_tc(world, "another backend", &packet, left.begins_flow().with_port_of(allocated..=allocated));
            }
        }
    });
}

#[test]
fn a_flow_without_room_among_the_protected_goes_on_and_is_counted() {
    world::with_changed(
        RULES,
        |compiled| compiled.sizes.flows = 1,
        |world| {
            warm_up(world);
            for family in Family::ALL {
                let (first, second) =
                    (Connection::new(family, KEEPING_FLOWS[0], 4000), Connection::new(family, KEEPING_FLOWS[0], 4002));
                first.open(world);
                let (syn, left) = second.request(Tcp(flags::SYN));
                check_at_tc(world, "SYN", &syn, left.begins_flow());
                second.answer_at_tc(world, "SYN-ACK", Tcp(flags::SYN_ACK), Outcome::NotOurs);
                let (ack, left) = second.request(Tcp(flags::ACK));
                check_at_tc(world, "no room", &ack, left.unprotected());
                assert_eq!(entries(world, family), (2, 2));
                second.answer_at_tc(world, "it goes on", Tcp(flags::ACK), Outcome::NotOurs);
                first.is_fast(world, "the protected one is still fast", Tcp(flags::ACK), Tcp(flags::ACK));
            }
        },
    );
}

#[test]
fn a_flood_of_new_flows_leaves_established_ones_alone() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let established = Connection::new(family, KEEPING_FLOWS[0], 4000);
            established.open(world);
            // The table of new flows has room for 64.
            for port in 10_000..11_000 {
                let syn = Connection::new(family, KEEPING_FLOWS[0], port).request(Tcp(flags::SYN)).0;
                let frame = arriving(world, &syn);
                assert_eq!(world.run(Hook::Tc, &frame).outcome, Outcome::Forwarded);
            }
            established.is_fast(world, "after the flood", Tcp(flags::ACK), Tcp(flags::ACK));
            // A newcomer still gets in.
            Connection::new(family, KEEPING_FLOWS[0], 4002).open(world);
        }
    });
}

#[test]
fn a_newcomer_does_not_push_itself_out_of_a_full_table() {
    // One bucket: both directions of each flow stand in it, all of them from the same moment.
    world::with_changed(
        RULES,
        |compiled| compiled.sizes.new_flows = 1,
        |world| {
            warm_up(world);
            for family in Family::ALL {
                for port in (10_000..11_600).step_by(100) {
                    for port in port..port + 16 {
                        let syn = Connection::new(family, KEEPING_FLOWS[0], port).request(Tcp(flags::SYN)).0;
                        let frame = arriving(world, &syn);
                        assert_eq!(world.run(Hook::Tc, &frame).outcome, Outcome::Forwarded);
                    }
                    Connection::new(family, KEEPING_FLOWS[0], port + 50).open(world);
                }
            }
        },
    );
}

#[test]
fn an_expired_flow_is_not_honoured_even_if_nobody_swept_it() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let connection = Connection::new(family, KEEPING_FLOWS[0], 4000);
            connection.open(world);
            connection.is_fast(world, "it lives", Tcp(flags::ACK), Tcp(flags::ACK));
            world.make_flows_older(family);
            let (data, _) = connection.answer(Tcp(flags::ACK));
            check(world, "expired", Hook::Xdp, &data, &Outcome::ToTc.into());
            check(world, "expired", Hook::Tc, &data, &Outcome::NotOurs.into());
            assert_eq!(entries(world, family), (0, 0), "TC removes what it finds expired");
            let (data, left) = connection.request(Tcp(flags::ACK));
            check_at_tc(world, "begins anew", &data, left.begins_flow());
        }
    });
}
