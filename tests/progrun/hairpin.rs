//! Clients in the backend's own network, and the backend itself, under rules that show the backend its clients.

use forwarder_common::verdict::Outcome;
use forwarder_lab::Family;

use crate::connection::{Connection, entries};
use crate::fixture::{check_at_tc, check_both, forward, reply, warm_up};
use crate::plan::end;
use crate::test_packet::Body::{EchoReply, EchoRequest, Tcp, Udp};
use crate::test_packet::{TestPacket, flags};
use crate::world;

/// Only rules that keep no flows for others.
const STATELESS: &str = include_str!("../fixtures/hairpin.toml");
/// Beside rules that keep flows.
const MIXED: &str = include_str!("../fixtures/rules.toml");

fn connection(family: Family, rule: &'static str, client: &str, port: u16) -> Connection {
    Connection {
        rule,
        client: end(family, client, port),
        listen: end(family, "public", 80),
        source: end(family, "inner", port),
        backend: end(family, "backend", 80),
    }
}

#[test]
fn the_backend_sees_an_address_of_ours_for_its_neighbours_and_itself() {
    // Where any rule keeps flows, XDP takes those of hairpin clients too.
    for (rules, fast) in [(STATELESS, false), (MIXED, true)] {
        world::with(rules, |world| {
            warm_up(world);
            for family in Family::ALL {
                for (index, client) in ["backend_2", "backend"].into_iter().enumerate() {
                    // The port that the backend sees is the client's while nobody else has it.
                    let port = 4000 + 2 * index as u16;
                    let tcp = connection(family, "kept", client, port);
                    let (syn, left) = tcp.request(Tcp(flags::SYN));
                    check_at_tc(world, "SYN", &syn, left.begins_flow());
                    tcp.answer_at_tc(world, "SYN-ACK", Tcp(flags::SYN_ACK), Outcome::ToTc);
                    tcp.request_at_tc(world, "ACK", Tcp(flags::ACK));
                    assert_eq!(entries(world, family), (4 * index + 2, 0));
                    if fast {
                        tcp.is_fast(world, "data", Tcp(flags::ACK), Tcp(flags::ACK));
                    } else {
                        tcp.request_at_tc(world, "data", Tcp(flags::ACK));
                        tcp.answer_at_tc(world, "data", Tcp(flags::ACK), Outcome::ToTc);
                    }
                    let datagrams = connection(family, "kept", client, port);
                    let (request, left) = datagrams.request(Udp);
                    check_at_tc(world, "UDP", &request, left.begins_flow());
                    datagrams.answer_at_tc(world, "UDP", Udp, Outcome::ToTc);
                    datagrams.request_at_tc(world, "UDP", Udp);
                }
                // Everybody else is seen as ever, on both hooks, and without a flow.
                let (client, listen, backend) =
                    (end(family, "client", 4000), end(family, "public", 80), end(family, "backend", 80));
                let request = TestPacket::new(client, listen, Tcp(flags::SYN));
                check_both(world, "a stranger", &request, forward("kept", request.forwarded(client, backend)));
                let answer = TestPacket::new(backend, client, Tcp(flags::SYN_ACK));
                check_both(world, "its answer", &answer, reply("kept", answer.forwarded(listen, client)));
                assert_eq!(entries(world, family), (8, 0));
            }
        });
    }
}

#[test]
fn a_whole_address_takes_their_echoes() {
    world::with(STATELESS, |world| {
        warm_up(world);
        for family in Family::ALL {
            let whole = |client: &str| Connection {
                rule: "whole",
                client: end(family, client, 77),
                listen: end(family, "public_2", 77),
                source: end(family, "inner", 77),
                backend: end(family, "backend_2", 77),
            };
            let connection = whole("backend");
            let (request, left) = connection.request(EchoRequest);
            check_at_tc(world, "echo", &request, left.begins_flow());
            connection.answer_at_tc(world, "its reply", EchoReply, Outcome::ToTc);
            assert_eq!(entries(world, family), (0, 2));
        }
    });
}
