//! A fixture: a packet, and what must become of it on each hook.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use forwarder_common::abi::{Direction, RuleCounters};
use forwarder_common::verdict::{Kind, Outcome};
use forwarder_lab::Family;

use crate::plan;
use crate::test_packet::{NETWORK, TestPacket, icmp_error, wrongness};
use crate::world::{Counts, Hook, Ran, World};

/// What a hook must do with a packet.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    /// Rewritten into this packet and sent on.
    Sent(Sent),
    /// Not a byte changed, and handed on.
    Passed(Outcome),
    /// Turned into this ICMP error, which leaves for this station.
    Told(Outcome, IpAddr, Vec<u8>),
    /// Dropped, with these counts of a rule.
    Dropped(Outcome, Option<(String, RuleCounters)>),
}

/// A packet that must leave.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    packet: TestPacket,
    rule: String,
    direction: Direction,
    by_neighbour: bool,
    begins_flow: bool,
    /// Ports left to sockets of the machine on the way.
    clashes: u64,
    unprotected: u64,
    /// [`Sent::with_port_of`].
    ports: Option<RangeInclusive<u16>>,
}

/// The packet leaves as `packet`, from a client to the backend of `rule`.
pub(crate) fn forward(rule: &str, packet: TestPacket) -> Sent {
    sent(rule, Direction::Forward, packet)
}

/// The packet leaves as `packet`, from the backend of `rule` to a client.
pub(crate) fn reply(rule: &str, packet: TestPacket) -> Sent {
    sent(rule, Direction::Reply, packet)
}

fn sent(rule: &str, direction: Direction, packet: TestPacket) -> Sent {
    let rule = plan::rule_name(family_of(&packet), rule);
    let (by_neighbour, begins_flow, clashes, unprotected, ports) = (false, false, 0, 0, None);
    Sent { packet, rule, direction, by_neighbour, begins_flow, clashes, unprotected, ports }
}

impl Sent {
    /// It begins a flow.
    pub(crate) fn begins_flow(self) -> Self {
        Self { begins_flow: true, ..self }
    }

    /// The kernel's neighbour code sends it.
    pub(crate) fn by_neighbour(self) -> Self {
        Self { by_neighbour: true, ..self }
    }

    /// Ports of this machine's sockets were in the way.
    pub(crate) fn clashes(self, clashes: u64) -> Self {
        Self { clashes, ..self }
    }

    /// Its flow should be protected, and there is no room for it.
    pub(crate) fn unprotected(self) -> Self {
        Self { unprotected: 1, ..self }
    }

    /// The source port is any of these, with the parity of the client's where there is a choice.
    pub(crate) fn with_port_of(self, ports: RangeInclusive<u16>) -> Self {
        Self { ports: Some(ports), ..self }
    }

    fn outcome(&self) -> Outcome {
        if self.by_neighbour { Outcome::ForwardedByNeighbour } else { Outcome::Forwarded }
    }
}

impl From<Sent> for Expected {
    fn from(sent: Sent) -> Self {
        Self::Sent(sent)
    }
}

impl From<Outcome> for Expected {
    fn from(outcome: Outcome) -> Self {
        match outcome.kind() {
            Kind::Pass => Self::Passed(outcome),
            Kind::Drop | Kind::Hold => Self::Dropped(outcome, None),
            Kind::Forward | Kind::Answer => panic!("it becomes another packet"),
        }
    }
}

/// The sender is told: an error (type, code, rest) from `src`, which quotes as much as it may of the packet.
pub(crate) fn told(outcome: Outcome, src: IpAddr, message: (u8, u8, u32), packet: &TestPacket) -> Expected {
    let (ip, dst) = (packet.ip(), packet.src.ip());
    let longest = if dst.is_ipv4() { 576 - 28 } else { 1280 - 48 };
    Expected::Told(outcome, dst, icmp_error(src, dst, message, &ip[..ip.len().min(longest)], 0xc0))
}

/// The client is not one that `rule` allows.
pub(crate) fn denied(family: Family, rule: &str) -> Expected {
    let counts = RuleCounters { denied: 1, ..RuleCounters::default() };
    Expected::Dropped(Outcome::DropNotAllowed, Some((plan::rule_name(family, rule), counts)))
}

fn family_of(packet: &TestPacket) -> Family {
    if packet.src.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// The frame of a packet as it arrives: for the forwarder, from a station that does not matter.
pub(crate) fn arriving(world: &World, packet: &TestPacket) -> Vec<u8> {
    let mut frame = packet.frame();
    frame[..6].copy_from_slice(&world.mac());
    frame
}

/// Runs a packet on a hook and compares everything; the packet as it left, if it did.
pub(crate) fn check(
    world: &mut World,
    about: &str,
    hook: Hook,
    packet: &TestPacket,
    expected: &Expected,
) -> Option<TestPacket> {
    let frame = arriving(world, packet);
    check_frame(
        world,
        &format!("{about}: {:?} to {} of {:?}", packet.src, packet.dst, packet.body),
        hook,
        &frame,
        expected,
    )
}

/// A packet that either hook treats alike.
pub(crate) fn check_both(world: &mut World, about: &str, packet: &TestPacket, expected: impl Into<Expected>) {
    let expected = expected.into();
    for hook in Hook::BOTH {
        check(world, about, hook, packet, &expected);
    }
}

/// A packet that XDP leaves to TC; as it left TC, if it did.
pub(crate) fn check_at_tc(
    world: &mut World,
    about: &str,
    packet: &TestPacket,
    expected: impl Into<Expected>,
) -> Option<TestPacket> {
    check(world, about, Hook::Xdp, packet, &Expected::Passed(Outcome::ToTc));
    check(world, about, Hook::Tc, packet, &expected.into())
}

/// As [`check`], with a frame as it is. Returns the packet that left, if it was to leave.
pub(crate) fn check_frame(
    world: &mut World,
    about: &str,
    hook: Hook,
    frame: &[u8],
    expected: &Expected,
) -> Option<TestPacket> {
    let before = world.counts();
    let ran = world.run(hook, frame);
    let counted = difference(&before, &world.counts());
    let about = format!("{about} (at {hook:?}, it did {:?})", ran.outcome);
    compare(world, &about, hook, frame, &ran, &counted, expected)
}

/// Compares what a program did and counted with what it had to do.
pub(crate) fn compare(
    world: &World,
    about: &str,
    hook: Hook,
    frame: &[u8],
    ran: &Ran,
    counted: &Counts,
    expected: &Expected,
) -> Option<TestPacket> {
    let (outcome, rule) = match expected {
        Expected::Sent(sent) => (sent.outcome(), Some((sent.rule.clone(), counts_of(sent, frame)))),
        Expected::Passed(outcome) | Expected::Told(outcome, ..) => (*outcome, None),
        Expected::Dropped(outcome, rule) => (*outcome, rule.clone()),
    };
    assert_eq!(ran.outcome, outcome, "{about}");
    assert_eq!(ran.returned, returned(hook, outcome), "{about}: returned");
    let packet = match expected {
        Expected::Sent(sent) => Some(compare_sent(world, about, sent, ran)),
        Expected::Told(_, station, wanted) => {
            let mut wanted = wanted.clone();
            // If the kernel's neighbour code sends it, it writes over whatever is there.
            wanted[..12].copy_from_slice(&ran.frame[..12]);
            assert_eq!(hex(&ran.frame), hex(&wanted), "{about}: the error");
            assert_eq!(ran.interface, world.index(plan::side_of(*station)), "{about}: the interface out");
            None
        }
        Expected::Passed(_) | Expected::Dropped(..) => {
            assert_eq!(hex(&ran.frame), hex(frame), "{about}: changed");
            assert_eq!(ran.interface, 0, "{about}: a way out");
            None
        }
    };
    compare_counts(about, hook, outcome, rule.as_ref(), counted);
    packet
}

fn compare_sent(world: &World, about: &str, sent: &Sent, ran: &Ran) -> TestPacket {
    let mut packet = sent.packet.clone();
    if let Some(ports) = &sent.ports {
        let port = source_port(&ran.frame, &packet);
        assert!(ports.contains(&port), "{about}: port {port} is not in {ports:?}");
        if ports.start() != ports.end() {
            assert_eq!(port % 2, packet.src.port() % 2, "{about}: the parity of port {port}");
        }
        packet.src.set_port(port);
    }
    let dst: IpAddr = packet.dst.ip();
    let side = plan::side_of(dst);
    assert_eq!(ran.interface, world.index(side), "{about}: the interface out");
    let mut wanted = packet.frame();
    let link = if sent.by_neighbour {
        // Whatever is there, the kernel writes over it.
        ran.frame[..12].to_vec()
    } else {
        [plan::station(dst), world.mac_of(side)].concat()
    };
    wanted[..12].copy_from_slice(&link);
    assert_eq!(hex(&ran.frame), hex(&wanted), "{about}: the frame");
    if packet.options.is_empty() && packet.extensions.is_empty() && packet.body != crate::test_packet::Body::UdpUnsummed
    {
        assert_eq!(wrongness(&ran.frame), (0, 0), "{about}: checksums");
    }
    packet
}

/// Where TCP and UDP have their source port, and an echo request its identifier.
fn source_port(frame: &[u8], packet: &TestPacket) -> u16 {
    let transport = NETWORK + if packet.src.is_ipv4() { 20 } else { 40 };
    let at = transport + if matches!(packet.body, crate::test_packet::Body::EchoRequest) { 4 } else { 0 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// What the program must return; from linux/bpf.h and linux/pkt_cls.h.
fn returned(hook: Hook, outcome: Outcome) -> u32 {
    const XDP_DROP: u32 = 1;
    const XDP_PASS: u32 = 2;
    const XDP_REDIRECT: u32 = 4;
    const TC_ACT_UNSPEC: u32 = u32::MAX;
    const TC_ACT_SHOT: u32 = 2;
    const TC_ACT_REDIRECT: u32 = 7;
    match (hook, outcome.kind()) {
        (Hook::Xdp, Kind::Drop | Kind::Hold | Kind::Answer) => XDP_DROP,
        (Hook::Xdp, Kind::Pass) => XDP_PASS,
        (Hook::Xdp, Kind::Forward) => XDP_REDIRECT,
        (Hook::Tc, Kind::Pass) => TC_ACT_UNSPEC,
        (Hook::Tc, Kind::Drop | Kind::Hold) => TC_ACT_SHOT,
        (Hook::Tc, Kind::Forward | Kind::Answer) => TC_ACT_REDIRECT,
    }
}

fn counts_of(sent: &Sent, frame: &[u8]) -> RuleCounters {
    let mut counts = RuleCounters::default();
    let traffic = if sent.direction == Direction::Forward { &mut counts.forward } else { &mut counts.reply };
    traffic.packets = 1;
    let trailer = sent.packet.trailer.len();
    traffic.bytes = (frame.len() - NETWORK - trailer) as u64;
    counts.flows = sent.begins_flow.into();
    counts.port_clashes = sent.clashes;
    counts.unprotected = sent.unprotected;
    counts
}

/// Exactly one outcome of the interface, and exactly these counts of exactly this rule.
fn compare_counts(about: &str, hook: Hook, outcome: Outcome, rule: Option<&(String, RuleCounters)>, counted: &Counts) {
    let mut one = [0; Outcome::COUNT];
    one[outcome as usize] = 1;
    let wanted = if hook == Hook::Xdp { (one, [0; Outcome::COUNT]) } else { ([0; Outcome::COUNT], one) };
    assert_eq!((counted.interface.xdp, counted.interface.tc), wanted, "{about}: outcomes counted");
    let changed: BTreeMap<_, _> =
        counted.rules.iter().filter(|(_, counts)| **counts != RuleCounters::default()).collect();
    let wanted: BTreeMap<_, _> = rule.into_iter().map(|(name, counts)| (name, counts)).collect();
    assert_eq!(changed, wanted, "{about}: counters of rules");
}

/// What was counted between two readings.
pub(crate) fn difference(before: &Counts, after: &Counts) -> Counts {
    let less =
        |after: &[u64; Outcome::COUNT], before: &[u64; Outcome::COUNT]| std::array::from_fn(|i| after[i] - before[i]);
    let mut counted = after.clone();
    counted.interface.xdp = less(&after.interface.xdp, &before.interface.xdp);
    counted.interface.tc = less(&after.interface.tc, &before.interface.tc);
    for (name, counts) in &mut counted.rules {
        let Some(before) = before.rules.get(name) else { continue };
        counts.forward.packets -= before.forward.packets;
        counts.forward.bytes -= before.forward.bytes;
        counts.reply.packets -= before.reply.packets;
        counts.reply.bytes -= before.reply.bytes;
        counts.flows -= before.flows;
        counts.denied -= before.denied;
        counts.unprotected -= before.unprotected;
        counts.port_clashes -= before.port_clashes;
    }
    counted
}

/// Bytes as a message shows them.
fn hex(bytes: &[u8]) -> String {
    let words: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    words.join(" ")
}

/// Has the kernel asked once about the way to every station, so that next hops are known on both hooks.
pub(crate) fn warm_up(world: &mut World) {
    use crate::test_packet::Body::Udp;
    for family in Family::ALL {
        let packets = [
            TestPacket::new(plan::end(family, "client", 9), plan::end(family, "public", 9), Udp),
            TestPacket::new(plan::end(family, "client", 9), plan::end(family, "public_2", 9), Udp),
            TestPacket::new(plan::end(family, "client", 9), plan::end(family, "public", 95), Udp),
            TestPacket::new(plan::end(family, "backend", 9), plan::end(family, "client", 9), Udp),
            TestPacket::new(plan::end(family, "backend", 9), plan::end(family, "client_2", 9), Udp),
        ];
        for packet in packets {
            let frame = arriving(world, &packet);
            let ran = world.run(Hook::Tc, &frame);
            assert_eq!(ran.outcome, Outcome::ForwardedByNeighbour, "{packet:?}");
        }
    }
}
