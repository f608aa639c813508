use super::*;
use crate::test_packet::pieces;

both_families!(every_fragment_goes_out_in_every_order, fragments_of_what_cannot_go_out_stay);

/// In order, and with the first at the end, in the middle and last but all turned round.
const ORDERS: [[usize; 4]; 4] = [[0, 1, 2, 3], [1, 2, 3, 0], [2, 0, 3, 1], [3, 2, 1, 0]];

/// What becomes of four fragments that arrive in an order, by their place in the datagram.
fn arrive<F: TestFamily>(world: &World<F>, packet: &TestPacket, order: [usize; 4]) -> Vec<(Outcome, Vec<u8>)> {
    let all = pieces(packet.transport_length(), 32);
    assert_eq!(all.len(), order.len());
    from_inside(world);
    let done = order.iter().flat_map(|piece| world.arrives(packet.fragment(1, &all[*piece])));
    done.map(|(verdict, frame)| (verdict.outcome, frame)).collect()
}

fn large<F: TestFamily>(body: Body) -> TestPacket {
    let port = if matches!(body, Body::Other(_)) { 0 } else { 40_001 };
    let packet = going_out::<F>(port, at(F::CLIENT, if port == 0 { 0 } else { 443 }), body);
    let headers = packet.transport_length();
    packet.with(|p| p.payload = (0..100 + 28 - headers as u8).collect())
}

/// The first packet of a flow is one that comes in fragments.
fn every_fragment_goes_out_in_every_order<F: TestFamily>() {
    for body in [Body::Udp, Body::UdpUnsummed, Body::EchoRequest, Body::Other(47)] {
        for order in ORDERS {
            let world = gateway::<F>(ENDPOINT);
            let packet = large::<F>(body);
            let mut left = arrive(&world, &packet, order);
            let port = world.flow(&packet).map(|flow| u16::from_be(flow.rewrite.src_port)).unwrap();
            let outer = packet.forwarded(at(F::LISTEN, port), packet.dst);
            let all = pieces(packet.transport_length(), 32);
            let mut wanted: Vec<_> = all.iter().map(|piece| (Outcome::Forwarded, outer.fragment(1, piece))).collect();
            assert_eq!(left[0], wanted[0], "{body:?} {order:?}");
            left.sort_by(|a, b| a.1.cmp(&b.1));
            wanted.sort_by(|a, b| a.1.cmp(&b.1));
            assert_eq!(left, wanted, "{body:?} {order:?}");
        }
    }
}

/// Not one of them passes with the address of the host behind.
fn fragments_of_what_cannot_go_out_stay<F: TestFamily>() {
    for order in ORDERS {
        let world = gateway::<F>(ENDPOINT);
        let packet = large::<F>(Body::Other(47));
        goes_out(&world, &packet);
        let neighbours = packet.with(|p| p.src = at(host::<F>(1), 0));
        let left: Vec<_> = arrive(&world, &neighbours, order).into_iter().map(|(outcome, _)| outcome).collect();
        assert_eq!(left.len(), order.len());
        assert_eq!(left[0], Outcome::DropNoPort, "{order:?}");
        assert!(left[1..].iter().all(|outcome| *outcome == Outcome::DropFragment), "{order:?}: {left:?}");
    }
}
