use super::*;
use crate::parse::Ipv4;

/// Timestamp, information and address mask: queries with an identifier, as echo is (RFC 5508 section 3). IPv6 has none.
const QUERIES: [(u8, u8); 3] = [(13, 14), (15, 16), (17, 18)];

#[test]
fn icmp_queries_and_their_answers_go_as_echoes_do() {
    for source in [Source::Preserved, Source::PreservedByFlow, Source::Address(Ipv4::OURS)] {
        let mut world = World::<Ipv4>::with_rule(source);
        world.forward_address(Ipv4::OTHER_LISTEN, Ipv4::OTHER_CLIENT, source);
        for (query, answer) in QUERIES {
            let there = to::<Ipv4>(0, Body::Icmp(query)).with(|p| p.dst = at(Ipv4::OTHER_LISTEN, 0));
            let (verdict, frame) = world.process_bytes(Hook::Tc, there.frame());
            assert_eq!(verdict.outcome, Outcome::Forwarded, "{query} {source:?}");
            let seen = if source == Source::Address(Ipv4::OURS) { at(Ipv4::OURS, 0) } else { there.src };
            // What a masqueraded query has for an identifier: the four bytes of type and checksum aside.
            let plain = there.forwarded(seen, at(Ipv4::OTHER_CLIENT, 0)).frame();
            let header = NETWORK + 20;
            let mut same = frame.clone();
            same[header + 2..header + 6].copy_from_slice(&plain[header + 2..header + 6]);
            assert_eq!(same, plain, "{query} {source:?}");
            let mut back = TestPacket::new(at(Ipv4::OTHER_CLIENT, 0), seen, Body::Icmp(answer)).frame();
            back[header + 4..header + 6].copy_from_slice(&frame[header + 4..header + 6]);
            let (verdict, frame) = world.process_bytes(Hook::Tc, back);
            assert_eq!(verdict.outcome, Outcome::Forwarded, "{answer} {source:?}");
            let wanted = TestPacket::new(there.dst, there.src, Body::Icmp(answer)).with(|p| p.hop_limit -= 1).frame();
            assert_eq!(frame[NETWORK..header], wanted[NETWORK..header], "{answer} {source:?}");
            assert_eq!(frame[header + 4..header + 6], [0, 0], "{answer} {source:?}: the client's identifier");
        }
    }
}
