//! Datagrams in pieces, of any sizes and in any order, some lost, some twice, some damaged.

use std::{collections::BTreeMap, vec, vec::Vec};

use arbitrary::{Arbitrary, Result, Unstructured};

use super::{
    Seen, frame,
    input::{self, Damage, Described, Machine},
};
use crate::{
    parse::{Ipv4, Ipv6},
    tables::Tables as _,
    test_packet::{NETWORK, Piece, TestPacket},
    test_world::{TestFamily, World},
    verdict::{Kind, Outcome, Verdict},
};

/// The most datagrams of one input.
const MOST: usize = 4;

/// A datagram that comes in pieces.
#[derive(Arbitrary, Debug)]
struct Datagram {
    packet: Described,
    longer: u8,
    /// In eight bytes, minus one.
    size: u8,
    order: u64,
    /// Loses or doubles pieces.
    fate: u8,
    identification: u8,
    damage: Damage,
}

/// What comes of pieces, put together again, is what comes of the whole; nothing waits for a first piece that has come; and
/// what is not forwarded is not changed.
pub fn fragments(bytes: &[u8]) -> Seen {
    input::of_a_family(bytes, [of::<Ipv4>, of::<Ipv6>])
}

fn of<F: TestFamily>(bytes: &mut Unstructured<'_>) -> Result<Seen> {
    let machine = Machine::arbitrary(bytes)?;
    let mut seen = Seen::new();
    let world = machine.world::<F>();
    // Rooms for those that wait differ too.
    world.tables.held_capacity.set([64, 1, 3, 64][usize::from(u8::arbitrary(bytes)? % 4)]);
    for number in 0..MOST {
        if bytes.is_empty() {
            break;
        }
        let datagram = Datagram::arbitrary(bytes)?;
        check(machine, &world, &datagram, u32::try_from(number).unwrap(), &mut seen);
    }
    Ok(seen)
}

/// The pieces of a packet, in the order in which they come.
fn pieces(packet: &TestPacket, datagram: &Datagram) -> (Vec<Piece>, bool) {
    let length = packet.transport_length();
    let size = 8 * (usize::from(datagram.size % 16) + 1);
    let mut pieces = crate::test_packet::pieces(length, size);
    let mut order = super::Random::new(datagram.order);
    if datagram.order & 3 != 0 {
        for last in (1..pieces.len()).rev() {
            pieces.swap(last, usize::try_from(order.below(last as u64 + 1)).unwrap());
        }
    }
    let at = usize::from(datagram.fate >> 4) % pieces.len().max(1);
    match datagram.fate % 8 {
        0 => drop(pieces.remove(at)),
        1 => pieces.push(pieces[at].clone()),
        _ => return (pieces, true),
    }
    (pieces, false)
}

fn check<F: TestFamily>(machine: Machine, world: &World<F>, datagram: &Datagram, number: u32, seen: &mut Seen) {
    let packet = datagram.packet.packet::<F>().with(|packet| {
        packet.extensions = vec![];
        packet.options = vec![];
        packet.trailer = vec![];
        packet.fragment = 0;
        packet.payload = (0..=u8::MAX).cycle().take(packet.payload.len() + usize::from(datagram.longer)).collect();
    });
    if packet.transport_length() == 0 {
        return;
    }
    let (pieces, all) = pieces(&packet, datagram);
    // Pieces of different datagrams may have the same identification, but not while one is under way.
    let identification = number << 8 | u32::from(datagram.identification);
    let (mut done, mut datagram_key) = (Vec::new(), None);
    for piece in &pieces {
        let mut fragment = packet.fragment(identification, piece);
        datagram_key = F::fragment(&fragment.as_mut_slice(), NETWORK).map(|fragment| fragment.datagram).ok();
        if !datagram.damage.is_none() && piece.bytes.start == 0 {
            datagram.damage.apply(&mut fragment, NETWORK);
        }
        done.extend(world.arrives(fragment));
    }
    for (verdict, bytes) in &done {
        *seen.entry(verdict.outcome).or_default() += 1;
        assert!(bytes.len() >= NETWORK, "{verdict:?}");
    }
    let came = pieces.iter().any(|piece| piece.bytes.start == 0);
    if !came || !datagram.damage.is_none() {
        return;
    }
    // Of a first that makes no sense nothing is noted.
    let makes_sense = done.iter().all(|(verdict, _)| verdict.outcome != Outcome::Malformed);
    let waits = datagram_key.is_some_and(|key| world.tables.holds(&key));
    assert!(!(makes_sense && waits), "waits for a first that has come: {packet:?} as {pieces:?}");
    check_headers(&done);
    if !all {
        return;
    }
    // A machine to which the whole comes.
    let whole = machine.world::<F>();
    let mut results = whole.arrives(packet.frame());
    let (Some((verdict, bytes)), true) = (results.pop(), results.is_empty()) else { return };
    if verdict.outcome.kind() != Kind::Forward
        || !done.iter().all(|(verdict, _)| verdict.outcome.kind() == Kind::Forward)
    {
        return;
    }
    frame::assert_translated(&packet.frame(), &bytes);
    // If one had to go for want of room, or the MTU cut them anew, they are not those that came.
    if done.len() != pieces.len() {
        return;
    }
    let (offset, ip) = put_together(&done);
    let transport = bytes.len() - packet.transport_length();
    let same_ports = ip.len() >= 4 && ip[..4] == bytes[transport..][..4];
    // The machine of the pieces has seen others before, and may have had to take another port, or have known the flow.
    let same_hosts = frame::hosts(&done[0].1) == frame::hosts(&bytes);
    // A segment size that is not in the first piece is not lowered.
    if same_ports && same_hosts && offset == 0 && packet.tcp_options.is_empty() {
        assert_eq!(ip, bytes[transport..], "put together again");
    }
}

/// All that is sent on of a datagram is between the same hosts, and has the right header checksum.
fn check_headers(done: &[(Verdict, Vec<u8>)]) {
    let sent = done.iter().filter(|(verdict, _)| verdict.outcome.kind() == Kind::Forward).map(|(_, bytes)| bytes);
    let mut ends = None;
    for bytes in sent {
        let ip = &bytes[NETWORK..];
        let layout = frame::layout(ip).expect("headers");
        assert_eq!(frame::wrongness(ip, &layout).0, 0, "the header checksum of a piece: {ip:02x?}");
        let hosts = frame::hosts(bytes);
        assert_eq!(*ends.get_or_insert(hosts), hosts, "pieces of one datagram go different ways");
    }
}

/// Where the first piece begins, and everything from there on behind the IP headers.
fn put_together(done: &[(Verdict, Vec<u8>)]) -> (usize, Vec<u8>) {
    let mut pieces = BTreeMap::new();
    for (_, frame) in done {
        let ip = &frame[NETWORK..];
        let (offset, header) = if ip[0] >> 4 == 4 {
            (usize::from(u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff) * 8, 20)
        } else {
            (usize::from(u16::from_be_bytes([ip[42], ip[43]]) & 0xfff8), 48)
        };
        pieces.insert(offset, ip[header..].to_vec());
    }
    let first = pieces.keys().next().copied().unwrap_or_default();
    (first, pieces.into_values().flatten().collect())
}
