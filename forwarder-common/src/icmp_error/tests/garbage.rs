//! Errors that are about nothing forwarded, and what only looks like an error.

use super::*;

both_families!(
    errors_about_what_is_not_forwarded,
    an_error_for_somebody_else,
    a_flipped_bit_anywhere,
    an_embedded_packet_cut_short,
    nonsense_inside,
    clients_that_a_rule_does_not_allow,
    the_machines_own_connections,
);

fn errors_about_what_is_not_forwarded<F: TestFamily>() {
    for (world, connection) in connections::<F>() {
        for direction in DIRECTIONS {
            let (failed, sent, _) = connection.failing::<F>(direction);
            let about = |packet: &TestPacket| packet.error(packet.dst.ip(), unreachable::<F>(), 200);
            // The packet as it was before translation.
            if direction == Direction::Reply {
                is_left(&world, &about(&sent), Outcome::IcmpStray);
            }
            let mut others = vec![
                failed.with(|p| p.body = Body::Sctp),
                failed.with(|p| p.body = Body::Other(99)),
                failed.with(|p| p.body = Body::Icmp(3)),
                failed.with(|p| p.body = Body::Icmp(13)),
            ];
            // Without flows, every client's packets may have been forwarded.
            if world.entries() != (0, 0) {
                others.push(failed.with(|p| p.src.set_ip(F::OTHER_LISTEN)));
                others.push(failed.with(|p| p.dst.set_port(p.dst.port() ^ 1)));
                others.push(failed.with(|p| p.dst.set_ip(F::OTHER_CLIENT)));
            }
            for other in others {
                // Some belong to no flow; a stateless rule for a whole address forwards every protocol.
                if connection.request != Body::EchoRequest {
                    is_left(&world, &about(&other), Outcome::IcmpStray);
                }
            }
            let authenticated = failed.with(|p| p.body = Body::Other(51));
            is_left(&world, &about(&authenticated), Outcome::IcmpStray);
        }
    }
    let nobodys = TestPacket::new(at(F::CLIENT, 1), at(F::BACKEND, 2), Body::Udp);
    is_left(&World::<F>::new(), &nobodys.error(F::BACKEND, unreachable::<F>(), 200), Outcome::IcmpStray);
}

/// netfilter checks the same: otherwise one could send to anybody behind us.
fn an_error_for_somebody_else<F: TestFamily>() {
    for (world, connection) in connections::<F>() {
        for direction in DIRECTIONS {
            let (failed, ..) = connection.failing::<F>(direction);
            let error = failed.error(failed.dst.ip(), unreachable::<F>(), 200);
            is_left(&world, &error.with(|error| error.dst.set_ip(F::OTHER_LISTEN)), Outcome::IcmpStray);
        }
    }
}

/// One wrong bit, and the error passes as it came.
fn a_flipped_bit_anywhere<F: TestFamily>() {
    for (world, connection) in connections::<F>() {
        let (error, _) = of_backend::<F>(&connection);
        let start = 14 + network_header::<F>();
        let frame = error.frame();
        let mut bad_checksums = 0;
        for bit in start * 8..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let before = entries(&world);
            let (verdict, bytes) = world.process_bytes(Hook::Tc, flipped.clone());
            // Of another type it is no error, perhaps an echo.
            if bit / 8 == start && !matches!(verdict.outcome, Outcome::IcmpBadChecksum) {
                continue;
            }
            assert_eq!(bytes, flipped, "bit {bit} of {error:?}");
            assert_eq!(entries(&world), before);
            match verdict.outcome {
                Outcome::IcmpBadChecksum => bad_checksums += 1,
                Outcome::IcmpStray | Outcome::Malformed => {}
                other => panic!("bit {bit} of {error:?}: {other:?}"),
            }
        }
        assert!(bad_checksums > 100, "{bad_checksums}");
    }
}

fn an_embedded_packet_cut_short<F: TestFamily>() {
    for (world, connection) in connections::<F>() {
        for direction in DIRECTIONS {
            let (failed, ..) = connection.failing::<F>(direction);
            for packet in [failed.clone(), with_options(&failed)] {
                let headers = packet.ip().len() - failed.ip().len() + network_header::<F>();
                for embedded in 0..headers + 8 {
                    let error = packet.error(packet.dst.ip(), unreachable::<F>(), embedded);
                    is_left(&world, &error, Outcome::Malformed);
                    // As Ethernet pads it: what is there is no part of the message.
                    let padded = error.with(|error| error.trailer = packet.ip()[embedded..].to_vec());
                    is_left(&world, &padded, Outcome::Malformed);
                }
            }
        }
    }
}

fn nonsense_inside<F: TestFamily>() {
    let v4 = F::CLIENT.is_ipv4();
    for (world, connection) in connections::<F>() {
        let (error, _) = of_backend::<F>(&connection);
        let changed = |at: usize, byte: u8| error.with(|error| error.payload[at] = byte);
        let errors = if v4 {
            // Another version, header lengths that cannot be, the other family's ICMP.
            vec![changed(0, 0x65), changed(0, 0x44), changed(0, 0x40), changed(0, 0x4f), changed(9, 58)]
        } else {
            vec![changed(0, 0x45), changed(6, 1)]
        };
        for error in errors {
            is_left(&world, &error, Outcome::Malformed);
        }
        for length in 0..80 {
            let noise = error.with(|error| error.payload = vec![0xff; length]);
            is_left(&world, &noise, Outcome::Malformed);
        }
    }
}

fn clients_that_a_rule_does_not_allow<F: TestFamily>() {
    let (mut world, connection) = connected::<F>(Source::Preserved, BODIES[1]);
    let rule = world.tables.rules.get_mut(&1).unwrap();
    (rule.flags, rule.allow) = (rule.flags | rule_flags::ALLOW, 5);
    let error = connection.reply_at_client().error(F::CLIENT, unreachable::<F>(), 200);
    is_left(&world, &error, Outcome::IcmpStray);
    world.tables.allowed.insert((5, F::address(F::CLIENT)));
    let back = connection.reply().error(F::CLIENT, unreachable::<F>(), 200);
    becomes(&world, &error, Direction::Forward, &back.with(|error| error.hop_limit -= 1));
}

/// Of a rule for a whole address: an error about a packet that this machine itself sent stays here.
fn the_machines_own_connections<F: TestFamily>() {
    let mut world = World::<F>::new();
    world.forward_address(F::LISTEN, F::BACKEND, Source::Preserved);
    let own = TestPacket::new(at(F::LISTEN, 5000), at(F::CLIENT, 443), Body::Udp);
    let error = own.error(F::CLIENT, unreachable::<F>(), 200);
    world.tables.connected.insert(World::<F>::key(&own.answer(Body::Udp)));
    is_left(&world, &error, Outcome::ToSelf);
}
