//! Rules that keep no flow: both hooks do the same.

use aya::maps::{Array, Map, MapData};
use forwarder::bpf::load;
use forwarder_common::verdict::Outcome;
use forwarder_lab::Family;

use crate::fixture::{check, check_both, forward, reply, warm_up};
use crate::plan::{Side, end};
use crate::test_packet::Body::{Sctp, Tcp, Udp};
use crate::test_packet::{Body, TestPacket, flags};
use crate::world::{self, Hook};

const RULES: &str = include_str!("../fixtures/rules.toml");

#[test]
fn a_packet_to_a_listen_goes_to_the_backend_and_its_answer_back() {
    // description, rule, listen, backend, its ports
    let table = [
        ("a port that is kept", "kept", ("public", 80), ("backend", 80)),
        ("a port that changes", "changed", ("public", 8443), ("backend", 443)),
        ("the first of a range", "range", ("public", 2000), ("backend", 2000)),
        ("the last of a range", "range", ("public", 2099), ("backend", 2099)),
        ("the first of a shifted range", "shifted", ("public", 3000), ("backend", 13_000)),
        ("the last of a shifted range", "shifted", ("public", 3009), ("backend", 13_009)),
        ("any port of a whole address", "whole", ("public_2", 4711), ("backend_2", 4711)),
    ];
    let bodies = [Tcp(flags::SYN), Tcp(flags::ACK), Tcp(flags::FIN_ACK), Tcp(flags::RST), Udp, Body::UdpUnsummed];
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let client = end(family, "client", 40_000);
            for (about, rule, listen, backend) in &table {
                let (listen, backend) = (end(family, listen.0, listen.1), end(family, backend.0, backend.1));
                for body in bodies {
                    let request = TestPacket::new(client, listen, body);
                    check_both(world, about, &request, forward(rule, request.forwarded(client, backend)));
                    let answer = TestPacket::new(backend, client, body);
                    check_both(world, about, &answer, reply(rule, answer.forwarded(listen, client)));
                }
            }
        }
    });
}

/// One that was brought up after the maps were made has no part of what each keeps of rules.
#[test]
fn a_cpu_that_keeps_nothing_leaves_all_to_the_complete_path() {
    const SECOND: usize = 1;
    let keep_on_the_first = |sizes: &mut load::Sizes| {
        for map in ["MEANINGS_V4", "MEANINGS_V6"] {
            sizes.insert(map, 1).unwrap();
        }
    };
    world::with_sizes(RULES, keep_on_the_first, |world| {
        if world::stay_on_cpu(SECOND).is_err() {
            eprintln!("skipped: there is no second CPU");
            return;
        }
        warm_up(world);
        for family in Family::ALL {
            let (client, listen) = (end(family, "client", 40_000), end(family, "public", 80));
            let backend = end(family, "backend", 80);
            for body in [Tcp(flags::SYN), Tcp(flags::ACK), Udp] {
                let request = TestPacket::new(client, listen, body);
                check(world, "request", Hook::Xdp, &request, &Outcome::NotOurs.into());
                let expected = forward("kept", request.forwarded(client, backend));
                check(world, "request", Hook::Tc, &request, &expected.into());
                let answer = TestPacket::new(backend, client, body);
                check(world, "answer", Hook::Xdp, &answer, &Outcome::NotOurs.into());
                let expected = reply("kept", answer.forwarded(listen, client));
                check(world, "answer", Hook::Tc, &answer, &expected.into());
            }
        }
    });
}

#[test]
fn a_whole_address_takes_every_protocol() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let at = |name, port| end(family, name, port);
            for (body, port) in [(Sctp, 5), (Body::Other(47), 0), (Body::Other(50), 0)] {
                let request = TestPacket::new(at("client", port), at("public_2", port), body);
                let forwarded = request.forwarded(at("client", port), at("backend_2", port));
                check_both(world, "every protocol", &request, forward("whole", forwarded));
                let answer = TestPacket::new(at("backend_2", port), at("client", port), body);
                check_both(
                    world,
                    "every protocol",
                    &answer,
                    reply("whole", answer.forwarded(at("public_2", port), at("client", port))),
                );
            }
            // Echoes from inside and outside: either end asks.
            let request = TestPacket::new(at("client", 7), at("public_2", 0), Body::EchoRequest);
            let forwarded = request.forwarded(at("client", 7), at("backend_2", 0));
            check_both(world, "an echo request", &request, forward("whole", forwarded.clone()));
            let answer = forwarded.answer(Body::EchoReply);
            check_both(
                world,
                "an echo reply",
                &answer,
                reply("whole", answer.forwarded(at("public_2", 0), at("client", 7))),
            );
        }
    });
}

#[test]
fn an_interface_with_a_large_index_is_counted_in_its_slot() {
    world::with(RULES, |world| {
        warm_up(world);
        // As if the array that is looked at first did not reach to the index.
        let slots = Map::Array(MapData::from_pin(world.pins.join("SLOTS_BY_INDEX")).unwrap());
        let mut slots: Array<_, u32> = slots.try_into().unwrap();
        let index = world.index(Side::Clients);
        assert_eq!(slots.get(&index, 0).unwrap(), 1, "slot 0, plus 1");
        slots.set(index, 0, 0).unwrap();
        for family in Family::ALL {
            let (client, backend) = (end(family, "client", 40_000), end(family, "backend", 80));
            let request = TestPacket::new(client, end(family, "public", 80), Udp);
            check_both(world, "a large index", &request, forward("kept", request.forwarded(client, backend)));
        }
    });
}
