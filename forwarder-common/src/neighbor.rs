//! Answers to questions of neighbours: who has this address? Of hosts that live behind this machine, in their place
//! (`[[neighbor]]`): proxy ARP (RFC 1027) and proxy neighbour discovery (RFC 4861 section 7.2.8).
//!
//! The question itself becomes the answer and goes back by the interface that it came in by. Nothing is answered unless
//! the kernel's routing leads to the address by the interface that the rule names: so not for this machine's own
//! addresses, which the kernel answers for, nor for those of the side that asks (RFC 1027 section 2.4), nor while the way
//! is gone.
//!
//! **While alive.** The kernel's own table of neighbours says whether a host is there. For an address that it does not
//! know, the question becomes a packet to that host, which the host ignores: on its way out the kernel has to ask for the
//! host, and when the question comes again a second later, the answer is known. For one that it knows, the question becomes
//! the answer and, after a copy of that has left, such a packet too: the kernel's unreachability detection (RFC 4861
//! section 7.3) goes on only where packets go, and without it a host that has gone would stay known.

mod arp;
mod discovery;

use crate::{
    abi::{Direction, NextHopState, RangeKey, Rule, rule_flags},
    address::Address,
    answer::About,
    packet::Packet,
    parse::{Ipv4, Ipv6},
    tables::{Ends, Tables, Way},
    verdict::Outcome,
};

/// A MAC address.
pub type Mac = [u8; 6];

/// A packet that can be made into an answer.
pub trait Answerable: Packet {
    /// Makes the packet so long, in bytes; what is new is zero. `None` if that is not possible.
    fn resize(&mut self, length: usize) -> Option<()>;
    /// Sends a copy of the packet, as it is now, out of an interface. `None` if the kernel refuses.
    fn send_copy(&mut self, interface: u32) -> Option<()>;
}

/// A question of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<A> {
    /// The address that is asked for; network order.
    pub target: A,
    /// Who asks; network order. All zero: somebody who is about to take that address, if nobody has it (RFC 5227
    /// section 2.1.1, RFC 4862 section 5.4).
    pub asker: A,
    /// Where the answer goes.
    pub mac: Mac,
}

/// How a family asks and answers.
pub trait Resolution {
    /// Its addresses.
    type Address: Address;

    /// What an Ethernet frame asks; `None` if it is no question, or one that must not be answered.
    fn read(packet: &impl Packet) -> Option<Question<Self::Address>>;

    /// Turns the frame into the answer that `mac` has the address; `ours` is an address of ours. `None` if the frame cannot be
    /// written, and is then only good to be dropped.
    fn answer(
        packet: &mut impl Answerable,
        question: &Question<Self::Address>,
        mac: Mac,
        ours: Self::Address,
    ) -> Option<()>;

    /// Turns the frame into a packet from `ours` to the address, which nobody answers. `None` as above.
    fn probe(packet: &mut impl Answerable, mac: Mac, ours: Self::Address, target: Self::Address) -> Option<()>;
}

/// ARP (RFC 826).
pub type Arp = Ipv4;
/// Neighbour discovery (RFC 4861).
pub type Discovery = Ipv6;

/// What became of a question.
///
/// A plain record, not an enum, for the verifier's sake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// [`Outcome::AnsweredNeighbor`], [`Outcome::HeldForNeighbor`], a drop, or [`Outcome::NotOurs`]: nothing was changed.
    pub outcome: Outcome,
    /// What the packet is now: 0, the answer, which goes out by the interface that it came in by; else a probe, which the
    /// kernel's neighbour code sends out by this interface.
    pub probes: u32,
}

impl Reply {
    const fn of(outcome: Outcome) -> Self {
        Self { outcome, probes: 0 }
    }
}

/// Answers a frame for `mac`, the address of the interface that it came in by, if it is a question about a host behind us.
#[inline(always)]
pub fn process<R: Resolution, T: Tables<R::Address>>(packet: &mut impl Answerable, tables: &T, mac: Mac) -> Reply {
    let mut question = Question { target: R::Address::default(), asker: R::Address::default(), mac: [0; 6] };
    if !read::<R>(packet, &mut question) {
        return Reply::of(Outcome::NotOurs);
    }
    let Some(rule) = rule(tables, question.target) else { return Reply::of(Outcome::NotOurs) };
    let way = Way::unpack(way(tables, &question.target));
    let via = rule.via();
    if !matches!(way.state, NextHopState::Resolved | NextHopState::Unresolved) || way.interface != via {
        return Reply::of(Outcome::NotOurs);
    }
    let length = packet.length() as u32;
    tables.count_forwarded(rule.counter, Direction::Forward, length);
    let while_alive = rule.flags & rule_flags::WHILE_ALIVE != 0;
    let answers = !while_alive || way.state == NextHopState::Resolved;
    let probes = while_alive && tables.may_answer(About::Probe);
    if !answers && !probes {
        return Reply::of(Outcome::NotOurs);
    }
    if answers {
        if !answer::<R>(packet, &question, &mac, &rule.source) {
            return Reply::of(Outcome::DropError);
        }
        tables.count_forwarded(rule.counter, Direction::Reply, length);
    }
    if !probes {
        return Reply::of(Outcome::AnsweredNeighbor);
    }
    // Without its copy the answer is lost, as one on the wire may be.
    let sent = !answers || packet.send_copy(tables.ingress()).is_some();
    if !sent || !probe::<R>(packet, &mac, &rule.to, &question.target) {
        return Reply::of(Outcome::DropError);
    }
    Reply { outcome: if answers { Outcome::AnsweredNeighbor } else { Outcome::HeldForNeighbor }, probes: via }
}

/// [`Resolution::read`]; whether it is a question. Not inlined: a stack frame of its own.
#[inline(never)]
fn read<R: Resolution>(packet: &impl Packet, question: &mut Question<R::Address>) -> bool {
    let Some(found) = R::read(packet) else { return false };
    *question = found;
    true
}

/// The way to an address, whoever sends there, packed ([`Way::pack`]). Not inlined: a stack frame of its own.
#[inline(never)]
#[allow(clippy::trivially_copy_pass_by_ref, reason = "by value, BPF would have no room for the longer address")]
fn way<A: Address, T: Tables<A>>(tables: &T, target: &A) -> u64 {
    tables.way(&Ends { src: A::default(), dst: *target, kind: 0 }).pack()
}

/// [`Resolution::answer`]; whether it was written. Not inlined: a stack frame of its own.
#[inline(never)]
#[allow(clippy::trivially_copy_pass_by_ref, reason = "by value it would be more arguments than BPF has room for")]
fn answer<R: Resolution>(
    packet: &mut impl Answerable,
    question: &Question<R::Address>,
    mac: &Mac,
    ours: &R::Address,
) -> bool {
    R::answer(packet, question, *mac, *ours).is_some()
}

/// [`Resolution::probe`]; whether it was written. Not inlined: a stack frame of its own.
#[inline(never)]
#[allow(clippy::trivially_copy_pass_by_ref, reason = "by value it would be more arguments than BPF has room for")]
fn probe<R: Resolution>(packet: &mut impl Answerable, mac: &Mac, ours: &R::Address, target: &R::Address) -> bool {
    R::probe(packet, *mac, *ours, *target).is_some()
}

/// The rule for an address, where the packet came in. Not inlined: a stack frame of its own.
#[inline(never)]
pub fn rule<A: Copy, T: Tables<A>>(tables: &T, target: A) -> Option<&Rule<A>> {
    let ingress = tables.ingress();
    if ingress >= RangeKey::<A>::INTERFACES {
        return None;
    }
    let slot = tables.range(&RangeKey::neighbor(ingress, target))?.slot(tables.generation())?;
    tables.rule(slot)
}

/// Whether a MAC address is that of a single station.
#[inline(always)]
const fn is_station(mac: Mac) -> bool {
    let [first, second, third, fourth, fifth, sixth] = mac;
    first & 1 == 0 && first | second | third | fourth | fifth | sixth != 0
}

/// An Ethernet header.
#[inline(always)]
const fn link_header(to: Mac, from: Mac, ethertype: u16) -> [u8; 14] {
    let [d0, d1, d2, d3, d4, d5] = to;
    let [s0, s1, s2, s3, s4, s5] = from;
    let [t0, t1] = ethertype.to_ne_bytes();
    [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]
}

#[cfg(test)]
mod tests;
