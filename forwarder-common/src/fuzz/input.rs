//! What the bytes of an input mean: a machine, and packets for it.

use std::{net::IpAddr, net::SocketAddr, vec, vec::Vec};

use arbitrary::{Arbitrary, Result, Unstructured};

use super::Seen;
use crate::{
    abi::{NextHopState, rule_flags},
    tables::{Hop, memory::HOP},
    test_packet::{Body, TestPacket, internet_checksum},
    test_world::{Hook, Source, TestFamily, World, flipped, mappable, network},
};

/// The interface of the hosts behind.
const INSIDE: u32 = 8;

/// Gives what follows the first byte to a target's IPv4 or IPv6 side; what is too short for it shows nothing.
pub(super) fn of_a_family(bytes: &[u8], [v4, v6]: [fn(&mut Unstructured<'_>) -> Result<Seen>; 2]) -> Seen {
    let mut bytes = Unstructured::new(bytes);
    let side = bool::arbitrary(&mut bytes).map(|is_v6| if is_v6 { v6 } else { v4 });
    side.and_then(|side| side(&mut bytes)).unwrap_or_default()
}

/// A machine.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Machine {
    source: u8,
    filtering: u8,
    steers: bool,
    ways: u8,
    room: u8,
}

impl Machine {
    /// Which source address the backend sees.
    pub(super) fn source<F: TestFamily>(self) -> Source {
        [Source::Preserved, Source::PreservedByFlow, Source::Address(F::OURS)][usize::from(self.source % 3)]
    }

    /// Whether its tables take whatever comes.
    pub(super) fn has_room(self) -> bool {
        !self.room.is_multiple_of(5)
    }

    /// With a rule of each kind.
    pub(super) fn world<F: TestFamily>(self) -> World<F> {
        let source = self.source::<F>();
        let at = SocketAddr::new;
        let mut world = World::<F>::with_rule(source);
        world.forward_block((at(F::LISTEN, 2048), at(F::BACKEND, 4096)), (17, 4), source);
        world.forward_address(F::OTHER_LISTEN, flipped(F::BACKEND, 2), source);
        world.forward_prefix(mappable(flipped(F::LISTEN, 12)), mappable(flipped(F::BACKEND, 12)), outer::<F>());
        let filtering = [0, rule_flags::ADDRESS_FILTERING, rule_flags::ENDPOINT_FILTERING];
        if let Some(filtering) = filtering.get(usize::from(self.filtering % 4)) {
            let from = network(flipped(F::BACKEND, 4), if F::LISTEN.is_ipv4() { 29 } else { 125 });
            world.masquerade(from, if from.is_ipv4() { 29 } else { 125 }, HOP.interface, F::OURS, *filtering);
            for low in 0..8 {
                let host = F::address(host::<F>(low));
                world.tables.hops.insert(host, Hop { interface: INSIDE, ..HOP });
            }
        }
        if self.steers {
            world.steer((F::BACKEND, 24), 0, 9, Some(F::OTHER_CLIENT));
            world.connected(F::OURS, 24);
        }
        for ours in [F::LISTEN, F::OURS] {
            world.tables.hops.insert(F::address(ours), Hop { state: NextHopState::Local, ..HOP });
        }
        let other = match self.ways % 8 {
            0 => Hop { state: NextHopState::Unresolved, flags: 0, ..HOP },
            1 => Hop { state: NextHopState::Unreachable, ..Hop::NONE },
            2 => Hop { mtu: 60, ..HOP },
            3 => Hop { flags: 0, ..HOP },
            4 => Hop { state: NextHopState::Local, ..HOP },
            _ => HOP,
        };
        world.tables.hops.insert(F::address(F::BACKEND), other);
        if !self.has_room() {
            world.tables.embryonic_capacity.set(usize::from(self.room / 5) % 8);
            world.tables.established_capacity.set(usize::from(self.room / 40) % 4);
        }
        world
    }
}

/// Length of the prefixes of the one-to-one rule.
fn outer<F: TestFamily>() -> u32 {
    if F::LISTEN.is_ipv4() { 28 } else { 48 }
}

/// Whether a packet is from somebody whom no rule names to what a rule listens for, or from anybody to a client.
pub(super) fn is_plain<F: TestFamily>(src: IpAddr, dst: IpAddr) -> bool {
    let prefix = |address| network(address, outer::<F>());
    let [inside, outside] = [F::BACKEND, F::LISTEN].map(|address| prefix(mappable(flipped(address, 12))));
    let listens = |address| [F::LISTEN, F::OTHER_LISTEN].contains(&address) || prefix(address) == outside;
    let is_client = |address| [F::CLIENT, F::OTHER_CLIENT].contains(&address);
    let is_named = listens(src) || src == F::OURS || prefix(src) == inside && listens(dst);
    !is_named && (listens(dst) || is_client(dst))
}

/// One of the hosts behind the machine that go out with an address of its own.
fn host<F: TestFamily>(low: u8) -> IpAddr {
    (0..3).filter(|bit| low >> bit & 1 == 1).fold(flipped(F::BACKEND, 4), flipped)
}

/// A frame arrives by the interface that its source is at.
pub(super) fn arrives<F: TestFamily>(world: &World<F>, frame: &[u8]) {
    let behind = super::frame::hosts(frame).is_some_and(|[src, _]| (0..8).any(|low| host::<F>(low) == src));
    world.tables.ingress.set(if behind { INSIDE } else { HOP.interface });
}

/// One of the addresses that mean something to the machine, mostly.
pub(super) fn address<F: TestFamily>(number: u8) -> IpAddr {
    match number % 16 {
        0 | 1 => F::CLIENT,
        2 => F::OTHER_CLIENT,
        3..=5 => F::LISTEN,
        6 => F::OTHER_LISTEN,
        7 | 8 => F::BACKEND,
        9 => flipped(F::BACKEND, 2),
        10 => F::OURS,
        11 => mappable(flipped(F::LISTEN, 12)),
        12 => mappable(flipped(F::BACKEND, 12)),
        13 => host::<F>(number >> 5),
        14 if F::CLIENT.is_ipv4() => IpAddr::from([127, 0, 0, 1]),
        14 => IpAddr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number]),
        _ => flipped(F::CLIENT, u32::from(number >> 4)),
    }
}

fn port(number: u8) -> u16 {
    match number % 12 {
        0..=3 => 80,
        4 | 5 => 8080,
        6 => 2048 + u16::from(number >> 4),
        7 => 4096 + u16::from(number >> 4),
        8 => 61_001,
        9 => 61_001 + u16::from(number),
        10 => 0,
        _ => 0xff00 | u16::from(number),
    }
}

/// A packet by its meaning, as random bytes say it.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Described {
    src: u8,
    dst: u8,
    ports: [u8; 2],
    body: u8,
    flags: u8,
    hop_limit: u8,
    payload: u8,
    more: u8,
}

/// TCP flags as they come, mostly.
pub(super) fn flags(number: u8) -> u8 {
    [2, 16, 16, 18, 17, 4, 24, number][usize::from(number % 8)]
}

impl Described {
    pub(super) fn packet<F: TestFamily>(self) -> TestPacket {
        let at = SocketAddr::new;
        let body = match self.body % 16 {
            0..=4 => Body::Tcp(flags(self.flags)),
            5..=8 => Body::Udp,
            9 => Body::UdpUnsummed,
            10 | 11 => Body::EchoRequest,
            12 => Body::EchoReply,
            13 => Body::Sctp,
            14 => Body::Icmp(self.flags),
            _ => Body::Other([47, 50, 51, 41, 136, 33, 0, self.flags][usize::from(self.body >> 5)]),
        };
        let ends = [(self.src, self.ports[0]), (self.dst, self.ports[1])];
        let [src, dst] = ends.map(|(address_of, port_of)| at(address::<F>(address_of), port(port_of)));
        TestPacket::new(src, dst, body).with(|packet| {
            packet.hop_limit = if self.hop_limit < 32 { self.hop_limit % 4 } else { 64 };
            packet.payload = (0..self.payload).collect();
            match self.more % 16 {
                0 if packet.src.is_ipv4() => packet.options = vec![1; 4 * usize::from(self.more >> 6)],
                0 => packet.extensions = vec![(60, vec![0; 6]), (0, vec![1; 14])],
                1 => packet.trailer = vec![0xee; usize::from(self.more >> 4)],
                2 => packet.tcp_options = vec![2, 4, 0xff, self.more, 1, 1, 1, 0],
                3 => packet.tcp_options = vec![1, 1, 2, 4, 5, 0xb4, 1, 1],
                4 if packet.src.is_ipv4() => packet.fragment = 0x4000,
                _ => {}
            }
        })
    }
}

/// Bytes that are written over others, and where a frame ends sooner.
#[derive(Clone, Debug, Default)]
pub(super) struct Damage {
    patches: Vec<(u16, u8)>,
    keep: Option<u16>,
    /// Makes the checksum of an IPv4 header right again.
    sums: bool,
}

impl Arbitrary<'_> for Damage {
    /// Mostly none: what is damaged seldom gets far.
    fn arbitrary(bytes: &mut Unstructured<'_>) -> Result<Self> {
        let kind = u8::arbitrary(bytes)?;
        let patches: Vec<(u16, u8)> = (0..match kind % 8 {
            0 => 1,
            1 => 2,
            2 => usize::from(kind >> 5),
            _ => 0,
        })
            .map(|_| Arbitrary::arbitrary(bytes))
            .collect::<Result<_>>()?;
        let keep = if kind % 32 == 7 { Some(u16::arbitrary(bytes)?) } else { None };
        let sums = !patches.is_empty() && kind & 8 == 0;
        Ok(Self { patches, keep, sums })
    }
}

impl Damage {
    pub(super) fn is_none(&self) -> bool {
        self.patches.is_empty() && self.keep.is_none()
    }

    /// Damages what follows the first `from` bytes.
    pub(super) fn apply(&self, frame: &mut Vec<u8>, from: usize) {
        let length = frame.len().saturating_sub(from).max(1);
        for (at, byte) in &self.patches {
            // Headers are what matters.
            let at = usize::from(*at) % length.min(if at & 1 == 0 { 64 } else { length });
            if let Some(old) = frame.get_mut(from + at) {
                *old = *byte;
            }
        }
        if self.sums && frame.get(from).is_some_and(|first| first >> 4 == 4) && frame.len() >= from + 20 {
            frame[from + 10..from + 12].fill(0);
            let end = frame.len().min(from + usize::from(frame[from] & 15) * 4);
            let sum = internet_checksum(&frame[from..end]);
            frame[from + 10..from + 12].copy_from_slice(&sum.to_be_bytes());
        }
        if let Some(keep) = self.keep {
            frame.truncate(from + usize::from(keep) % length);
        }
    }
}

/// Which hook a packet comes to: mostly TC.
pub(super) fn hook(number: u8) -> Hook {
    if number.is_multiple_of(4) { Hook::Xdp } else { Hook::Tc }
}
