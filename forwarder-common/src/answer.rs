//! ICMP errors to the sender of a packet that cannot be forwarded, as a router sends them: Time Exceeded, Destination
//! Unreachable, Fragmentation Needed or Packet Too Big (RFC 792, RFC 1812 section 4.3, RFC 1191, RFC 4443).
//!
//! The packet itself becomes the answer: it is cut to what an error quotes, and gets new headers in front. It is quoted
//! as it came, before any translation, and the answer comes from an address that its sender knows, so that the sender
//! finds the connection that it is about.
//!
//! No answer is about an ICMP error, about a fragment that is not the first, or about a packet from or to what is no
//! single station (RFC 1122 section 3.2.2, RFC 4443 section 2.4): such packets never get as far as
//! [`Verdict::refused`].

use crate::{
    abi::{NextHopState, Ticks, elapsed},
    address::{Address, V4, V6, wire_bytes},
    checksum::Delta,
    complete,
    packet::Packet,
    parse::{Family, Ipv4, Ipv6, Parsed, Transport},
    tables::{Ends, Hop, Tables},
    verdict::{Outcome, Verdict},
    wire::{icmp, ipv4, ipv6, protocol, tcp, udp},
};

/// A packet that can be made into an error about itself.
pub trait Quotable: Packet {
    /// Whether the transport checksum is not finished: whoever sends the packet will sum everything from the transport
    /// header to the packet's end, what the checksum's field holds included, and write the complement into the field.
    /// `probe` is the offset of two bytes that are there; they stay as they are. `None` if that cannot be told.
    fn is_unfinished(&mut self, probe: usize) -> Option<bool>;

    /// Shortens the packet to `length` bytes, all of which can then be read; it will not be cut into segments any more.
    /// `None` if that is not possible.
    fn shorten(&mut self, length: usize) -> Option<()>;

    /// Makes room for `length` bytes in front of the network header, behind the link header. `None` if there is none.
    fn make_room(&mut self, length: usize) -> Option<()>;
}

/// What an answer is about, as far as their rate goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// The path MTU: connections wait for it, so no flood of the others may use its share up.
    Mtu = 0,
    /// Anything else.
    Other = 1,
    /// None of these, but what makes the kernel ask for a host ([`crate::neighbor`]): each takes an entry of its table of
    /// neighbours, of which there are 1024 by default, for three seconds.
    Probe = 2,
}

impl About {
    /// How many there are.
    pub const COUNT: usize = 3;

    /// How many ticks one more takes.
    #[inline(always)]
    pub const fn interval(self) -> Ticks {
        match self {
            Self::Mtu | Self::Other => 1,
            // About 60 a second.
            Self::Probe => 16,
        }
    }
}

/// How many answers may be sent at once.
pub const BURST: u32 = 50;

/// A token bucket: [`BURST`] at once and one per [`About::interval`] on average, which for ICMP errors is about 950 per
/// second. The same as Linux allows all together (`icmp_msgs_burst`, `icmp_msgs_per_sec`), here for each CPU and [`About`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Budget {
    tokens: u32,
    filled: Ticks,
}

impl Budget {
    /// Takes a token, if there is one.
    #[inline(always)]
    pub const fn take(&mut self, now: Ticks, about: About) -> bool {
        let interval = about.interval();
        let waited = elapsed(now, self.filled);
        let new = waited / interval;
        // Nothing has been waited for also where it was filled in the future: in the clock's other half.
        self.filled = if new >= BURST || waited == 0 { now } else { self.filled.wrapping_add(new * interval) };
        let tokens = if new >= BURST { BURST } else { self.tokens + new };
        let tokens = if tokens > BURST { BURST } else { tokens };
        self.tokens = tokens.saturating_sub(1);
        tokens > 0
    }
}

/// The start of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// What follows the checksum: an MTU, or 0; host order.
    pub rest: u32,
}

impl Message {
    /// The ICMP header of an error, when all else that its checksum covers has this sum.
    #[inline(always)]
    const fn header(self, other: Delta) -> [u8; icmp::LEN] {
        let [r0, r1, r2, r3] = self.rest.to_be_bytes();
        let sum = other
            .and(Delta(u16::from_ne_bytes([self.kind, self.code])))
            .and(Delta(u16::from_ne_bytes([r0, r1])))
            .and(Delta(u16::from_ne_bytes([r2, r3])));
        let [c0, c1] = sum.checksum().to_ne_bytes();
        [self.kind, self.code, c0, c1, r0, r1, r2, r3]
    }
}

/// The part of a packet that an error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// In bytes.
    pub length: u16,
    /// As [`Packet::sum`].
    pub sum: Delta,
}

/// TTL and hop limit of answers.
const HOP_LIMIT: u8 = 64;

/// What each family writes.
pub trait Answering: Family {
    /// Length of the new headers in bytes: network and ICMP.
    const HEADERS: usize;
    /// No answer is longer, in bytes of IP packet.
    const LONGEST: usize;

    /// What the sender is told; `None` if nothing.
    fn message(refused: &Verdict) -> Option<Message>;

    /// Writes the headers at `network`, from the first of `ends` to the second; the quoted packet follows. `None` if the
    /// bytes are not there.
    fn write_headers(
        packet: &mut impl Packet,
        network: usize,
        message: Message,
        ends: (Self::Address, Self::Address),
        quoted: Quoted,
    ) -> Option<()>;
}

/// Turns a packet that was refused into an error about it, if its sender is to be told and can be.
///
/// The outcome stays what it was if not; then the packet may have been changed, and is only good to be dropped.
#[inline(always)]
pub fn answer<F: Answering, T: Tables<F::Address>>(
    packet: &mut impl Quotable,
    tables: &T,
    network: usize,
    refused: &Verdict,
) -> Verdict {
    let (Some(parsed), Some(answerer)) = (tables.kept(), tables.answerer()) else {
        return Verdict::of(refused.outcome);
    };
    let hop = way_back(tables, answerer, parsed.key.src);
    if !matches!(hop.state, NextHopState::Resolved | NextHopState::Unresolved) {
        return Verdict::of(refused.outcome);
    }
    tell::<F, T>(packet, tables, network, refused, &(answerer, hop))
}

/// As [`answer`], for a packet that the machine itself sends and that is too big for its line: whoever sends it here is told
/// as if by where it was to go, for an error from an address of ours would be a martian.
#[inline(always)]
pub fn answer_ourselves<F: Answering, T: Tables<F::Address>>(
    packet: &mut impl Quotable,
    tables: &T,
    network: usize,
    refused: &Verdict,
) -> Verdict {
    if complete::parse::<F, T>(packet, tables, network).is_err() {
        return Verdict::of(refused.outcome);
    }
    let Some(parsed) = tables.kept() else { return Verdict::of(refused.outcome) };
    let hop = Hop { mtu: u32::MAX, ..refused.hop };
    tell::<F, T>(packet, tables, network, refused, &(parsed.key.dst, hop))
}

/// Turns the packet into the error that an address sends by a way.
#[inline(always)]
fn tell<F: Answering, T: Tables<F::Address>>(
    packet: &mut impl Quotable,
    tables: &T,
    network: usize,
    refused: &Verdict,
    &(answerer, hop): &(F::Address, Hop),
) -> Verdict {
    let unanswered = Verdict::of(refused.outcome);
    let Some(parsed) = tables.kept() else { return unanswered };
    let Some(message) = F::message(refused) else { return unanswered };
    let most = if (hop.mtu as usize) < F::LONGEST { hop.mtu as usize } else { F::LONGEST };
    let most = most.saturating_sub(F::HEADERS);
    let length = if (parsed.length as usize) < most { parsed.length as usize } else { most };
    // RFC 792: at least 8 bytes of what the packet carries.
    if length < parsed.length as usize && network + length < parsed.transport_at() + LEAST_QUOTED {
        return unanswered;
    }
    let about = if refused.outcome == Outcome::DropTooBig { About::Mtu } else { About::Other };
    if !tables.may_answer(about) {
        return unanswered;
    }
    let mut quoted = Quoted { length: length as u16, sum: Delta::NONE };
    if !quote(packet, network, parsed, &mut quoted) || packet.make_room(F::HEADERS).is_none() {
        return unanswered;
    }
    if !write::<F>(packet, network, message, &(answerer, parsed.key.src), &quoted) {
        return unanswered;
    }
    Verdict { outcome: answered(refused.outcome), hop }
}

/// [`Answering::write_headers`]; whether the bytes were there. Not inlined: a stack frame of its own.
#[inline(never)]
#[allow(clippy::trivially_copy_pass_by_ref, reason = "by value it would be two arguments, and BPF has room for five")]
fn write<F: Answering>(
    packet: &mut impl Packet,
    network: usize,
    message: Message,
    ends: &(F::Address, F::Address),
    quoted: &Quoted,
) -> bool {
    F::write_headers(packet, network, message, *ends, *quoted).is_some()
}

/// How much of what a packet carries an error must quote, in bytes.
const LEAST_QUOTED: usize = 8;

/// Where an answer goes. Not inlined: a stack frame of its own.
#[inline(never)]
fn way_back<A: Address, T: Tables<A>>(tables: &T, src: A, dst: A) -> Hop {
    tables.next_hop(&Ends { src, dst, kind: 0 })
}

/// The outcome of a refused packet whose sender was told.
#[inline(always)]
const fn answered(refused: Outcome) -> Outcome {
    match refused {
        Outcome::DropTtl => Outcome::AnsweredTtl,
        Outcome::DropTooBig => Outcome::AnsweredTooBig,
        _ => Outcome::AnsweredNoRoute,
    }
}

/// Cuts the packet to what is quoted, and sums that. Not inlined: a stack frame of its own.
#[inline(never)]
fn quote<A>(packet: &mut impl Quotable, network: usize, parsed: &Parsed<A>, quoted: &mut Quoted) -> bool {
    match cut(packet, network, parsed, quoted.length as usize) {
        Some(sum) => quoted.sum = sum,
        None => return false,
    }
    true
}

/// Cuts the packet to its first `length` bytes; their sum.
///
/// If its checksum is unfinished, it will be finished on the way out, over what is left of the packet, and that changes
/// what the error's own checksum covers. So the field gets the one number that comes out again when it is finished: the
/// half of what makes the sum zero. The error is right before and after, and nobody can check the checksum of a packet
/// that was cut.
#[inline(always)]
fn cut<A>(packet: &mut impl Quotable, network: usize, parsed: &Parsed<A>, length: usize) -> Option<Delta> {
    let unfinished = packet.is_unfinished(network)?;
    // The kernel cuts nothing off in front of where it takes the transport header to be, and looking for that it looks into
    // tunnels, and there takes a trailer for a packet. What is quoted whole can keep its trailer.
    if packet.shorten(network + length).is_none() && (unfinished || length < parsed.length as usize) {
        return None;
    }
    if !unfinished {
        return packet.sum(network, length);
    }
    let transport = parsed.transport_at();
    let field = transport
        + match parsed.transport {
            Transport::Tcp => tcp::CHECKSUM,
            Transport::Udp => udp::CHECKSUM,
            // SCTP's is no Internet checksum; in the others it belongs to something inside.
            _ => return None,
        };
    let before = packet.sum(network, transport - network)?;
    let unfinished = Delta(u16::from_ne_bytes(packet.read(field)?));
    let rest = packet.sum(transport, (network + length).checked_sub(transport)?)?.and(unfinished.undone());
    let fixed = rest.undone().halved();
    packet.write(field, fixed.0.to_ne_bytes())?;
    Some(before.and(rest).and(fixed))
}

impl Answering for Ipv4 {
    const HEADERS: usize = ipv4::LEN + icmp::LEN;
    /// RFC 1812 section 4.3.2.3.
    const LONGEST: usize = 576;

    /// The codes are those of Linux (`ip_error`).
    #[inline(always)]
    fn message(refused: &Verdict) -> Option<Message> {
        let message = |kind, code, rest| Some(Message { kind, code, rest });
        let Hop { state, mtu, .. } = refused.hop;
        match (refused.outcome, state) {
            (_, NextHopState::Unknown | NextHopState::Blackhole) => None,
            (Outcome::DropTtl, _) => message(icmp::TIME_EXCEEDED, 0, 0),
            // RFC 1191 section 4: the lower half of the word. Also about the few that could be cut by their header and are not
            // ([`crate::cut`]): then their sender has to.
            (Outcome::DropTooBig, _) => message(icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED, mtu & 0xffff),
            (Outcome::DropNoRoute, NextHopState::Unreachable) => message(icmp::UNREACHABLE, icmp::HOST, 0),
            (Outcome::DropNoRoute, NextHopState::Prohibited) => message(icmp::UNREACHABLE, icmp::PROHIBITED, 0),
            (Outcome::DropNoRoute, _) => message(icmp::UNREACHABLE, icmp::NET, 0),
            _ => None,
        }
    }

    #[inline(always)]
    fn write_headers(
        packet: &mut impl Packet,
        network: usize,
        message: Message,
        (src, dst): (V4, V4),
        quoted: Quoted,
    ) -> Option<()> {
        let [tos] = packet.read(network + Self::HEADERS + ipv4::TYPE_OF_SERVICE)?;
        // RFC 1812 section 4.3.2.5: the TOS of the packet, precedence "internetwork control". Not its ECN (RFC 3168).
        let tos = (tos & 0x1c) | 0xc0;
        let [l0, l1] = (quoted.length + Self::HEADERS as u16).to_be_bytes();
        let [f0, f1] = ipv4::DONT_FRAGMENT.to_be_bytes();
        let word = |high, low| Delta(u16::from_ne_bytes([high, low]));
        let header = word(0x45, tos)
            .and(word(l0, l1))
            .and(word(f0, f1))
            .and(word(HOP_LIMIT, protocol::ICMP))
            .and(Delta::sum(src))
            .and(Delta::sum(dst));
        let [c0, c1] = header.checksum().to_ne_bytes();
        let [s0, s1, s2, s3] = src.to_ne_bytes();
        let [d0, d1, d2, d3] = dst.to_ne_bytes();
        let [i0, i1, i2, i3, i4, i5, i6, i7] = message.header(quoted.sum);
        packet.write(
            network,
            [
                0x45,
                tos,
                l0,
                l1,
                0,
                0,
                f0,
                f1,
                HOP_LIMIT,
                protocol::ICMP,
                c0,
                c1,
                s0,
                s1,
                s2,
                s3,
                d0,
                d1,
                d2,
                d3,
                i0,
                i1,
                i2,
                i3,
                i4,
                i5,
                i6,
                i7,
            ],
        )
    }
}

impl Answering for Ipv6 {
    const HEADERS: usize = ipv6::LEN + icmp::LEN;
    /// RFC 4443 section 2.4 (c).
    const LONGEST: usize = ipv6::LEAST_MTU as usize;

    /// The codes are those of Linux (`ip6_pkt_discard`, `ip6_pkt_prohibit`).
    #[inline(always)]
    fn message(refused: &Verdict) -> Option<Message> {
        let message = |kind, code, rest| Some(Message { kind, code, rest });
        let Hop { state, mtu, .. } = refused.hop;
        match (refused.outcome, state) {
            (_, NextHopState::Unknown | NextHopState::Blackhole) => None,
            (Outcome::DropTtl, _) => message(icmp::V6_TIME_EXCEEDED, 0, 0),
            // RFC 8200 section 5: no sender goes below this.
            (Outcome::DropTooBig, _) => {
                message(icmp::V6_TOO_BIG, 0, if mtu < ipv6::LEAST_MTU { ipv6::LEAST_MTU } else { mtu })
            }
            (Outcome::DropNoRoute, NextHopState::Prohibited) => message(icmp::V6_UNREACHABLE, icmp::V6_PROHIBITED, 0),
            (Outcome::DropNoRoute, _) => message(icmp::V6_UNREACHABLE, icmp::V6_NO_ROUTE, 0),
            _ => None,
        }
    }

    #[inline(always)]
    fn write_headers(
        packet: &mut impl Packet,
        network: usize,
        message: Message,
        (src, dst): (V6, V6),
        quoted: Quoted,
    ) -> Option<()> {
        let length = quoted.length + icmp::LEN as u16;
        let [l0, l1] = length.to_be_bytes();
        packet.write(network, [0x60, 0, 0, 0, l0, l1, protocol::ICMPV6, HOP_LIMIT])?;
        packet.write(network + ipv6::SOURCE, wire_bytes(src))?;
        packet.write(network + ipv6::SOURCE + 16, wire_bytes(dst))?;
        // RFC 8200 section 8.1.
        let pseudo_header = Delta::sum(src)
            .and(Delta::sum(dst))
            .and(Delta(length.to_be()))
            .and(Delta(u16::from(protocol::ICMPV6).to_be()));
        packet.write(network + ipv6::LEN, message.header(quoted.sum.and(pseudo_header)))
    }
}

#[cfg(test)]
mod tests;
