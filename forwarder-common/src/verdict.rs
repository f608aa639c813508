//! What becomes of a packet. Every packet leaves each hook with exactly one [`Outcome`], which is a counter's index.

use crate::tables::Hop;

/// Declares [`Outcome`] together with its names, so that a new one cannot be forgotten anywhere.
macro_rules! outcomes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal $kind:ident),* $(,)?) => {
        /// Why a packet was forwarded, passed to the kernel untouched, or dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Outcome { $($(#[$doc])* $variant),* }

        impl Outcome {
            /// Every outcome, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The outcome with this number; none has every other.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $(n if n == Self::$variant as u32 => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The name in tables, JSON and Prometheus labels: stable.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What happens to the packet.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind),* }
            }
        }
    };
}

/// What can happen to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Rewritten and sent on.
    Forward,
    /// Handed on as it came: to the TC program after XDP, to the kernel after TC.
    Pass,
    /// Discarded.
    Drop,
    /// Taken in: it comes by this hook again, or what was made of it.
    Hold,
    /// Not forwarded, and turned into what its sender is told: an ICMP error, or who has an address.
    Answer,
}

outcomes! {
    /// Rewritten and sent out with a next hop already known.
    Forwarded = "forwarded" Forward,
    /// Rewritten and given to the kernel's neighbour code, which resolves or confirms the next hop.
    ForwardedByNeighbour = "forwarded_by_neighbour" Forward,
    /// No rule names it.
    NotOurs = "not_ours" Pass,
    /// A protocol that no address can be changed under: AH.
    Untranslatable = "untranslatable" Pass,
    /// Not IPv4 or IPv6 in a plain Ethernet frame: ARP, VLAN-tagged, 802.3.
    NotIp = "not_ip" Pass,
    /// For another station, or broadcast or multicast.
    NotForUs = "not_for_us" Pass,
    /// Malformed or truncated: the kernel judges it.
    Malformed = "malformed" Pass,
    /// A fragment of a datagram that is not forwarded: its first fragment, which alone has ports, was passed or never came.
    Fragment = "fragment" Pass,
    /// ICMP that is neither an echo nor an error: neighbour discovery, say. At XDP errors too, which it leaves to TC.
    IcmpOther = "icmp_other" Pass,
    /// An ICMP error about a packet of no flow and no rule, or one whose embedded packet does not tell.
    IcmpStray = "icmp_stray" Pass,
    /// An ICMP error about a flow or rule, but with a wrong checksum.
    IcmpBadChecksum = "icmp_bad_checksum" Pass,
    /// XDP leaves it to the TC program: a new flow, the start or end of a connection, options, an unknown next hop.
    ToTc = "to_tc" Pass,
    /// Its way leads to this machine itself.
    ToSelf = "to_self" Pass,
    /// For a rule that keeps flows, but of no flow, and not what begins one: a RST, a SYN-ACK, an echo reply. The kernel
    /// judges it, as netfilter lets it with what it calls invalid.
    Stray = "stray" Pass,
    /// Its source cannot be answered: loopback, multicast, "this network", link-local, this machine (RFC 1812 section 5.3.7, RFC 4291
    /// section 2.5.6).
    Martian = "martian" Pass,
    /// The rule does not allow this client.
    DropNotAllowed = "drop_not_allowed" Drop,
    /// For a host behind us that goes out with our address, from where that host has sent nothing to (RFC 4787 section 5).
    DropFiltered = "drop_filtered" Drop,
    /// From such a host, of no flow and not what begins one: it would go out with an address that nobody can answer.
    DropStray = "drop_stray" Drop,
    /// Its TTL or hop limit would reach 0 (RFC 1812 section 5.3.1).
    DropTtl = "drop_ttl" Drop,
    /// The kernel has no route to the next hop.
    DropNoRoute = "drop_no_route" Drop,
    /// Its source belongs to a line that is down, and nothing takes that line's place.
    DropLineDown = "drop_line_down" Drop,
    /// Larger than the way out takes.
    DropTooBig = "drop_too_big" Drop,
    /// Every source port that may be allocated is taken.
    DropNoPort = "drop_no_port" Drop,
    /// The table of new flows refused an entry.
    DropNoFlow = "drop_no_flow" Drop,
    /// A fragment of a datagram whose first fragment was dropped, or one that would lie over the transport header.
    DropFragment = "drop_fragment" Drop,
    /// A one-to-one rule has no address for it: the bits that would balance the checksum are all ones (RFC 6296).
    DropNoMapping = "drop_no_mapping" Drop,
    /// An ICMP redirect about a packet of a flow or rule: it would teach the sender another way round this machine.
    DropRedirect = "drop_redirect" Drop,
    /// A fragment that came before its first, and could not be kept.
    DropNotHeld = "drop_not_held" Drop,
    /// A packet that should have been writable was not, or the kernel refused to send it on.
    DropError = "drop_error" Drop,
    /// A fragment that came before the first of its datagram: kept for a moment.
    HeldForFirst = "held_for_first" Hold,
    /// A first fragment for which others waited: it arrives again, and they after it.
    HeldToFollow = "held_to_follow" Hold,
    /// Too large for its way, and allowed to be cut: the pieces arrive again in its place.
    HeldToCut = "held_to_cut" Hold,
    /// A question for a host behind us that the kernel does not know: it became what makes the kernel ask that host, and
    /// whoever asked will ask again.
    HeldForNeighbor = "held_for_neighbor" Hold,
    /// A question of neighbours (ARP, Neighbor Solicitation) for a host behind us: answered in its place.
    AnsweredNeighbor = "answered_neighbor" Answer,
    /// Its TTL or hop limit would reach 0: Time Exceeded to its sender.
    AnsweredTtl = "answered_ttl" Answer,
    /// There is no route to the next hop: Destination Unreachable to its sender.
    AnsweredNoRoute = "answered_no_route" Answer,
    /// Larger than the way out takes: Fragmentation Needed or Packet Too Big to its sender.
    AnsweredTooBig = "answered_too_big" Answer,
}

/// What a hook does with a packet: why, and where to if it goes on.
///
/// A plain record, not an enum: the compiler leaves the fields of a variant that is not there undefined, and the
/// verifier refuses a program that as much as copies them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is forwarded, passed, dropped or answered ([`Outcome::kind`]), and why.
    pub outcome: Outcome,
    /// The way out of a packet that is forwarded, and of an answer. Of a dropped packet whose sender is to be told: the
    /// way it could not take. [`Hop::NONE`] for every other.
    pub hop: Hop,
}

impl Verdict {
    /// The packet is passed as it came, or dropped.
    #[inline(always)]
    pub const fn of(outcome: Outcome) -> Self {
        Self { outcome, hop: Hop::NONE }
    }

    /// The packet is rewritten: it leaves by this next hop.
    #[inline(always)]
    pub fn forward(hop: Hop) -> Self {
        if hop.is_known() { Self::transmit(hop) } else { Self::neighbour(hop) }
    }

    /// The packet is rewritten: it leaves by `hop.interface` with `hop.link_addresses`.
    #[inline(always)]
    pub const fn transmit(hop: Hop) -> Self {
        Self { outcome: Outcome::Forwarded, hop }
    }

    /// The packet is not forwarded, because of the way out that it would have: its sender may be told.
    #[inline(always)]
    pub const fn refused(outcome: Outcome, hop: Hop) -> Self {
        Self { outcome, hop }
    }

    /// The packet is rewritten: the kernel's neighbour code sends it out of `hop.interface`.
    #[inline(always)]
    pub const fn neighbour(hop: Hop) -> Self {
        Self { outcome: Outcome::ForwardedByNeighbour, hop }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_verdict_has_a_way_out_exactly_when_the_packet_goes_on() {
        let hop = Hop { interface: 3, ..Hop::NONE };
        for verdict in [Verdict::transmit(hop), Verdict::neighbour(hop)] {
            assert_eq!((verdict.outcome.kind(), verdict.hop), (Kind::Forward, hop));
        }
        assert_ne!(Verdict::transmit(hop), Verdict::neighbour(hop));
        assert_eq!(Verdict::of(Outcome::DropTtl), Verdict { outcome: Outcome::DropTtl, hop: Hop::NONE });
    }

    #[test]
    fn names_are_unique_and_say_what_happens() {
        let names: HashSet<_> = Outcome::ALL.iter().map(|o| o.name()).collect();
        assert_eq!(names.len(), Outcome::COUNT);
        for outcome in Outcome::ALL {
            assert_eq!(outcome.name().starts_with("drop_"), outcome.kind() == Kind::Drop);
            assert_eq!(outcome.name().starts_with("forwarded"), outcome.kind() == Kind::Forward);
            assert_eq!(outcome.name().starts_with("held_"), outcome.kind() == Kind::Hold);
            assert_eq!(outcome.name().starts_with("answered_"), outcome.kind() == Kind::Answer);
        }
    }
}
