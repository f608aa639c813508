//! Any packets, one after the other, for a machine with a rule of each kind.

use std::{collections::BTreeSet, vec::Vec};

use arbitrary::{Arbitrary, Result, Unstructured};

use super::{
    Seen, frame,
    input::{self, Damage, Described, Machine, flags, hook},
};
use crate::{
    abi::{FlowKey, setting_flags},
    parse::{Ipv4, Ipv6},
    test_packet::{Body, NETWORK, TestPacket},
    test_world::{Hook, TestFamily, World},
    verdict::{Kind, Outcome},
};

/// The most packets of one input.
const MOST: usize = 32;

/// What comes next.
#[derive(Arbitrary, Clone, Debug)]
enum Step {
    /// A packet.
    Packet(Described),
    /// One that has come already.
    Again(u8),
    /// The answer to one that was sent on, with these TCP flags.
    Answer(u8, u8),
    /// From somebody else to where such an answer goes.
    Stranger(u8, Described),
    /// Time passes.
    Wait(u8),
    /// A frame that says no more than its family.
    Raw([u8; 24]),
}

/// What a packet that is not forwarded leaves no trace in, what a packet that is becomes, and that its answer becomes an
/// answer to it.
pub fn packets(bytes: &[u8]) -> Seen {
    input::of_a_family(bytes, [of::<Ipv4>, of::<Ipv6>])
}

fn of<F: TestFamily>(bytes: &mut Unstructured<'_>) -> Result<Seen> {
    let machine = Machine::arbitrary(bytes)?;
    let world = machine.world::<F>();
    let (mut seen, mut came, mut left) = (Seen::new(), Vec::<TestPacket>::new(), Vec::<Vec<u8>>::new());
    for _ in 0..MOST {
        if bytes.is_empty() {
            break;
        }
        let step = Step::arbitrary(bytes)?;
        let (hook, damage) = (hook(u8::arbitrary(bytes)?), Damage::arbitrary(bytes)?);
        let mut frame = match &step {
            Step::Packet(described) => {
                let packet = described.packet::<F>();
                came.push(packet.clone());
                packet.frame()
            }
            Step::Again(number) => match came.get(usize::from(*number) % came.len().max(1)) {
                Some(packet) => packet.frame(),
                None => continue,
            },
            Step::Answer(number, flags) => {
                let sent = left.get(usize::from(*number) % left.len().max(1));
                match sent.and_then(|frame| answer(frame, *flags)) {
                    Some(packet) => packet.frame(),
                    None => continue,
                }
            }
            Step::Stranger(number, described) => {
                let sent = left.get(usize::from(*number) % left.len().max(1));
                match sent.and_then(|frame| answer(frame, 2)) {
                    Some(answer) => {
                        let stranger = described.packet::<F>();
                        if stranger.src.is_ipv4() != answer.dst.is_ipv4() {
                            continue;
                        }
                        TestPacket { dst: answer.dst, ..stranger }.frame()
                    }
                    None => continue,
                }
            }
            Step::Wait(number) => {
                world.tables.wait([1, 70_000, 130_000, 310_000, 8_000_000][usize::from(number % 5)]);
                continue;
            }
            Step::Raw(bytes) => {
                let family = TestPacket::new((F::CLIENT, 0).into(), (F::LISTEN, 0).into(), Body::Udp).frame();
                [&family[..NETWORK], &bytes[..]].concat()
            }
        };
        damage.apply(&mut frame, NETWORK);
        let outcome = check(&world, hook, &frame, machine.has_room(), &mut left);
        *seen.entry(outcome).or_default() += 1;
    }
    Ok(seen)
}

/// The answer to a frame that left.
fn answer(frame: &[u8], number: u8) -> Option<TestPacket> {
    let layout = frame::layout(&frame[NETWORK..])?;
    let (src, dst) = frame::ends(frame)?;
    let body = match layout.protocol {
        6 => Body::Tcp(flags(number)),
        17 => Body::Udp,
        1 | 58 => Body::EchoReply,
        132 => Body::Sctp,
        other => Body::Other(other),
    };
    Some(TestPacket::new(dst, src, body))
}

type Keys<A> = BTreeSet<FlowKey<A>>;

/// The keys that stand for packets.
fn keys<F: TestFamily>(world: &World<F>) -> Keys<F::Address> {
    let tables = &world.tables;
    let (established, embryonic) = (tables.established.borrow(), tables.embryonic.borrow());
    established.keys().chain(embryonic.keys()).filter(|key| !key.is_of_no_packet()).copied().collect()
}

/// Runs a frame and checks everything about it; what left is added to `left`.
fn check<F: TestFamily>(
    world: &World<F>,
    hook: Hook,
    frame: &[u8],
    has_room: bool,
    left: &mut Vec<Vec<u8>>,
) -> Outcome {
    input::arrives::<F>(world, frame);
    let before = keys(world);
    let (verdict, bytes) = world.process_bytes(hook, frame.to_vec());
    let after = keys(world);
    if verdict.outcome.kind() != Kind::Forward {
        if verdict.outcome.kind() == Kind::Pass && world.tables.settings.flags & setting_flags::STEER != 0 {
            // What a line will answer announces what fits it.
            frame::assert_passed(frame, &bytes);
        } else {
            assert_eq!(frame, bytes, "{:?} and changed", verdict.outcome);
        }
        // A host that goes out has its flow and mapping before it is known whether this packet can take its way.
        let refused = matches!(verdict.outcome, Outcome::DropTtl | Outcome::DropTooBig | Outcome::DropNoRoute);
        let goes_out = world.tables.settings.flags & setting_flags::MASQUERADE != 0;
        assert!(
            after.is_subset(&before) || refused && goes_out,
            "{:?}, and leaves a flow behind: {:?}",
            verdict.outcome,
            &after - &before
        );
        return verdict.outcome;
    }
    frame::assert_translated(frame, &bytes);
    assert!(after.len() <= before.len() + 2, "one packet, more than one flow");
    for key in after.difference(&before).filter(|_| has_room) {
        let flow = world.tables.flow(key).unwrap();
        let peer = world.tables.flow(&flow.peer_key(key.protocol)).expect("half a flow was entered");
        assert!(peer.undoes(key), "the halves of a new flow do not undo each other");
    }
    reverse(world, frame, &bytes);
    left.push(bytes);
    verdict.outcome
}

/// What answers a packet that left becomes what answers the packet that came.
fn reverse<F: TestFamily>(world: &World<F>, came: &[u8], left: &[u8]) {
    let (Some((src, dst)), Some(answer)) = (frame::ends(came), answer(left, 1)) else { return };
    let answers = matches!(answer.body, Body::Udp | Body::Tcp(_) | Body::EchoReply);
    // What left is no echo request, or the packet was no whole one.
    let asks =
        answer.body != Body::EchoReply || left[NETWORK..].get(transport(left)).is_some_and(|k| [8, 128].contains(k));
    // What a line takes keeps its addresses, and its answer may be for a rule.
    // Without state, ends that are themselves named by rules, or that name hosts behind by their inner addresses, may mean
    // something else on the way back.
    if !input::is_plain::<F>(src.ip(), dst.ip()) {
        return;
    }
    if !answers || !asks || frame::ends(left) == Some((src, dst)) {
        return;
    }
    let frame = answer.frame();
    input::arrives::<F>(world, &frame);
    let (verdict, bytes) = world.process_bytes(Hook::Tc, frame);
    if verdict.outcome.kind() == Kind::Forward {
        assert_eq!(
            frame::ends(&bytes),
            Some((dst, src)),
            "there and back is not where it came from: {verdict:?} of {answer:?}, when {came:02x?} had become {left:02x?}"
        );
    }
}

fn transport(frame: &[u8]) -> usize {
    if frame[NETWORK] >> 4 == 4 { usize::from(frame[NETWORK] & 15) * 4 } else { 40 }
}
