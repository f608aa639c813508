//! The steps of the complete path as global functions: the kernel's verifier looks at each of them once, by itself, not
//! anew for every way that leads to it, and each has a stack frame that is given back before the next one begins.
//!
//! All that the verifier lets a global function take and give is the program's own argument and numbers. So a step gives
//! its outcome as a number and leaves the way out in this CPU's memory.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use forwarder_common::{
    abi::{Direction, Settings},
    answer::{self, Answering},
    complete, fast, fragment,
    icmp_error::{self, Embeds},
    outgoing,
    packet::Packet as _,
    parse::{Family, Ipv4, Ipv6},
    steer,
    tables::{At, Hop, Tables},
    verdict::{Kind, Outcome, Verdict},
    wire::ethernet,
};

use crate::{
    access::tc::TcPacket,
    action, cut, held,
    log::{self, Logged},
    maps::{Maps, MapsV4, MapsV6, SETTINGS, WAY_OUT},
    routing::{self, Routed},
    sockets::Sockets,
    tables::KernelTables,
};

/// What [`Steps::outgoing`] gives where it opened a flow: now the packet has one, and is to be processed as any other.
pub(crate) const AGAIN: u32 = u32::MAX;

/// What [`Steps::at_once`] gives where nothing has happened to the packet. No `TC_ACT_*`.
pub(crate) const UNDECIDED: i32 = i32::MIN;

/// The steps, for one family and kind of device. Each gives the number of an [`Outcome`], where nothing else is said.
pub(crate) trait Steps {
    /// What a table already decides is sent on: what the kernel is told (`TC_ACT_*`), or [`UNDECIDED`].
    fn at_once(context: *mut __sk_buff) -> i32;
    /// A packet that stands for itself: whole, or the first fragment of its datagram.
    fn plain(context: *mut __sk_buff) -> u32;
    /// A packet that nothing names may be of a host behind us that goes out with our address, or an answer to one: opens
    /// its flow ([`AGAIN`]).
    fn outgoing(context: *mut __sk_buff) -> u32;
    /// A fragment other than the first of its datagram.
    fn later_fragment(context: *mut __sk_buff) -> u32;
    /// ICMP that is no echo: an error may be about something forwarded.
    fn icmp(context: *mut __sk_buff) -> u32;
    /// Tells the sender of a packet that was refused for its way out, as far as it is to be told.
    fn answer(context: *mut __sk_buff, refused: u32) -> u32;
    /// Whether routers may cut packets: only senders cut what is IPv6 (RFC 8200 section 4.5).
    const CUTS: bool;
    /// A packet that is too big for the way that the step before left behind: cuts it, if it may be cut.
    fn cut(context: *mut __sk_buff) -> u32;
    /// A packet that nothing translates: it may leave by a line of its own. Takes what becomes of it otherwise.
    fn steer(context: *mut __sk_buff, passed: u32) -> u32;
    /// A packet that the machine itself sends: it may leave by another line.
    fn egress(context: *mut __sk_buff) -> u32;
    /// One that is too big for its line: tells whoever sends it here.
    fn answer_ourselves(context: *mut __sk_buff) -> u32;
    /// Counts what becomes of a packet that the machine itself sends, and gives what the kernel is told (`TC_ACT_*`).
    fn carry_away(context: *mut __sk_buff, outcome: u32) -> i32;
    /// Hands a first fragment for which others wait, or one that came at the same time as its first, in again.
    fn hand_in(context: *mut __sk_buff) -> u32;
    /// Logs and counts the outcome, and gives what the kernel is told (`TC_ACT_*`).
    fn carry_out(context: *mut __sk_buff, outcome: u32) -> i32;
}

/// What belongs together: a family, its maps, and where its header starts on a kind of device.
trait Path {
    type Family: Embeds<Address: Logged> + Answering;
    type Maps: Maps<Address = <Self::Family as Family>::Address> + Routed + Sockets;
    const NETWORK: usize;
    /// [`cut::cut`] with this network header.
    fn cut(context: *mut __sk_buff, mtu: u32) -> Outcome;
}

type TablesOf<P> = KernelTables<<P as Path>::Maps>;

/// Leaves the way out behind, and gives the outcome's number.
#[inline(always)]
fn leave(verdict: &Verdict) -> u32 {
    if let Some(way) = WAY_OUT.get_ptr_mut(0) {
        // SAFETY: a pointer to this CPU's own copy of an array value, valid while the program runs; TC programs of a CPU
        // run one after the other.
        unsafe { way.write(verdict.hop) };
    }
    verdict.outcome as u32
}

/// What an earlier step left behind, with the outcome that it gave.
#[inline(always)]
fn verdict(outcome: u32) -> Verdict {
    let outcome = Outcome::from_number(outcome).unwrap_or(Outcome::DropError);
    Verdict { outcome, hop: WAY_OUT.get(0).copied().unwrap_or(Hop::NONE) }
}

/// Runs a step of the core with the packet and its tables.
#[inline(always)]
fn with_tables<P: Path>(context: *mut __sk_buff, step: impl FnOnce(&TablesOf<P>) -> Verdict) -> u32 {
    let Some(settings) = SETTINGS.get(0) else { return Outcome::DropError as u32 };
    leave(&step(&tables::<P>(context, settings)))
}

#[inline(always)]
fn tables<P: Path>(context: *mut __sk_buff, settings: &'static Settings) -> TablesOf<P> {
    KernelTables::new(context.cast(), settings, At::Tc)
}

#[inline(always)]
fn at_once<P: Path>(context: *mut __sk_buff) -> i32 {
    let Some(settings) = SETTINGS.get(0) else { return UNDECIDED };
    let mut packet = TcPacket::of(context);
    let tables = tables::<P>(context, settings);
    let verdict = fast::process::<P::Family, _>(&mut packet, &tables, P::NETWORK, At::Tc).verdict;
    if verdict.outcome != Outcome::Forwarded && verdict.outcome.kind() == Kind::Pass {
        return UNDECIDED;
    }
    // Nobody is asked for a neighbour: the next hop is known.
    action::tc(&mut packet, &verdict, routing::no_neighbour(0), P::NETWORK, P::Family::ETHERTYPE)
}

#[inline(always)]
fn plain<P: Path>(context: *mut __sk_buff) -> u32 {
    let mut packet = TcPacket::of(context);
    with_tables::<P>(context, |tables| complete::process::<P::Family, _>(&mut packet, tables, P::NETWORK))
}

#[inline(always)]
fn outgoing<P: Path>(context: *mut __sk_buff) -> u32 {
    let Some(settings) = SETTINGS.get(0) else { return Outcome::DropError as u32 };
    let tables = tables::<P>(context, settings);
    let Some(parsed) = tables.kept() else { return Outcome::DropError as u32 };
    match outgoing::open::<P::Family, _>(&tables, parsed) {
        Ok(()) => AGAIN,
        Err(outcome) => leave(&Verdict::of(outcome)),
    }
}

#[inline(always)]
fn later_fragment<P: Path>(context: *mut __sk_buff) -> u32 {
    let mut packet = TcPacket::of(context);
    with_tables::<P>(context, |tables| fragment::later::<P::Family, _>(&mut packet, tables, P::NETWORK))
}

#[inline(always)]
fn icmp<P: Path>(context: *mut __sk_buff) -> u32 {
    let mut packet = TcPacket::with_embedded(context);
    with_tables::<P>(context, |tables| icmp_error::process::<P::Family, _>(&mut packet, tables, P::NETWORK))
}

#[inline(always)]
fn answer<P: Path>(context: *mut __sk_buff, refused: u32) -> u32 {
    let refused = verdict(refused);
    let mut packet = TcPacket::of(context);
    with_tables::<P>(context, |tables| answer::answer::<P::Family, _>(&mut packet, tables, P::NETWORK, &refused))
}

#[inline(always)]
fn cut<P: Path>(context: *mut __sk_buff) -> u32 {
    let way = verdict(Outcome::DropTooBig as u32).hop;
    P::cut(context, way.mtu) as u32
}

#[inline(always)]
fn steer<P: Path>(context: *mut __sk_buff, passed: u32) -> u32 {
    let mut packet = TcPacket::of(context);
    let passed = Outcome::from_number(passed).unwrap_or(Outcome::DropError);
    with_tables::<P>(context, |tables| steer::forward::<P::Family, _>(&mut packet, tables, P::NETWORK, passed))
}

#[inline(always)]
fn egress<P: Path>(context: *mut __sk_buff) -> u32 {
    let mut packet = TcPacket::of(context);
    with_tables::<P>(context, |tables| steer::leave::<P::Family, _>(&mut packet, tables, P::NETWORK, tables.ingress()))
}

#[inline(always)]
fn answer_ourselves<P: Path>(context: *mut __sk_buff) -> u32 {
    let refused = verdict(Outcome::DropTooBig as u32);
    let mut packet = TcPacket::of(context);
    with_tables::<P>(context, |tables| {
        answer::answer_ourselves::<P::Family, _>(&mut packet, tables, P::NETWORK, &refused)
    })
}

#[inline(always)]
fn carry_away<P: Path>(context: *mut __sk_buff, outcome: u32) -> i32 {
    let Some(settings) = SETTINGS.get(0) else { return TC_ACT_UNSPEC };
    let verdict = verdict(outcome);
    let mut packet = TcPacket::of(context);
    let tables = tables::<P>(context, settings);
    let router = routing::router(&tables, &verdict.hop);
    action::leave(&mut packet, &verdict, router, tables.ingress(), P::NETWORK, P::Family::ETHERTYPE)
}

#[inline(always)]
fn carry_out<P: Path>(context: *mut __sk_buff, outcome: u32) -> i32 {
    let Some(settings) = SETTINGS.get(0) else { return TC_ACT_UNSPEC };
    let verdict = verdict(outcome);
    let mut packet = TcPacket::of(context);
    let tables = tables::<P>(context, settings);
    log::verdict(context, verdict.outcome, || tables.kept().map(|parsed| &parsed.key));
    let router = routing::router(&tables, &verdict.hop);
    if verdict.hop.line != 0 && verdict.outcome.kind() == Kind::Forward {
        steer::count(&tables, &verdict.hop, Direction::Forward, (packet.length() - P::NETWORK) as u32);
    }
    action::tc(&mut packet, &verdict, router, P::NETWORK, P::Family::ETHERTYPE)
}

/// A path and its steps; each name is a symbol of the object.
macro_rules! steps {
    ($path:ident: $family:ty, $maps:ty, $network:expr;
     $at_once:ident $plain:ident $outgoing:ident $later_fragment:ident $icmp:ident $answer:ident $cut:ident $steer:ident $egress:ident
     $answer_ourselves:ident $carry_away:ident $hand_in:ident $carry_out:ident) => {
        pub(crate) struct $path;

        impl Path for $path {
            type Family = $family;
            type Maps = $maps;
            const NETWORK: usize = $network;
            #[inline(always)]
            fn cut(context: *mut __sk_buff, mtu: u32) -> Outcome {
                cut::cut::<{ $network }>(context, mtu)
            }
        }

        impl Steps for $path {
            const CUTS: bool = <$family as Family>::ETHERTYPE == ethernet::IPV4;
            #[inline(always)]
            fn at_once(context: *mut __sk_buff) -> i32 {
                $at_once(context)
            }
            #[inline(always)]
            fn plain(context: *mut __sk_buff) -> u32 {
                $plain(context)
            }
            #[inline(always)]
            fn outgoing(context: *mut __sk_buff) -> u32 {
                $outgoing(context)
            }
            #[inline(always)]
            fn later_fragment(context: *mut __sk_buff) -> u32 {
                $later_fragment(context)
            }
            #[inline(always)]
            fn icmp(context: *mut __sk_buff) -> u32 {
                $icmp(context)
            }
            #[inline(always)]
            fn answer(context: *mut __sk_buff, refused: u32) -> u32 {
                $answer(context, refused)
            }
            #[inline(always)]
            fn cut(context: *mut __sk_buff) -> u32 {
                $cut(context)
            }
            #[inline(always)]
            fn steer(context: *mut __sk_buff, passed: u32) -> u32 {
                $steer(context, passed)
            }
            #[inline(always)]
            fn egress(context: *mut __sk_buff) -> u32 {
                $egress(context)
            }
            #[inline(always)]
            fn answer_ourselves(context: *mut __sk_buff) -> u32 {
                $answer_ourselves(context)
            }
            #[inline(always)]
            fn carry_away(context: *mut __sk_buff, outcome: u32) -> i32 {
                $carry_away(context, outcome)
            }
            #[inline(always)]
            fn hand_in(context: *mut __sk_buff) -> u32 {
                $hand_in(context)
            }
            #[inline(always)]
            fn carry_out(context: *mut __sk_buff, outcome: u32) -> i32 {
                $carry_out(context, outcome)
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $at_once(context: *mut __sk_buff) -> i32 {
            at_once::<$path>(context)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $plain(context: *mut __sk_buff) -> u32 {
            plain::<$path>(context)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $outgoing(context: *mut __sk_buff) -> u32 {
            outgoing::<$path>(context)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $later_fragment(context: *mut __sk_buff) -> u32 {
            later_fragment::<$path>(context)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $icmp(context: *mut __sk_buff) -> u32 {
            icmp::<$path>(context)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $answer(context: *mut __sk_buff, refused: u32) -> u32 {
            answer::<$path>(context, refused)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $cut(context: *mut __sk_buff) -> u32 {
            cut::<$path>(context)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $steer(context: *mut __sk_buff, passed: u32) -> u32 {
            steer::<$path>(context, passed)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $egress(context: *mut __sk_buff) -> u32 {
            egress::<$path>(context)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $answer_ourselves(context: *mut __sk_buff) -> u32 {
            answer_ourselves::<$path>(context)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $carry_away(context: *mut __sk_buff, outcome: u32) -> i32 {
            carry_away::<$path>(context, outcome)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $hand_in(context: *mut __sk_buff) -> u32 {
            held::hand_in::<$family, $maps, { $network }>(context).into()
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $carry_out(context: *mut __sk_buff, outcome: u32) -> i32 {
            carry_out::<$path>(context, outcome)
        }
    };
}

steps!(EthernetIpv4: Ipv4, MapsV4, ethernet::LEN;
    at_once_v4 plain_v4 outgoing_v4 later_fragment_v4 icmp_v4 answer_v4 cut_v4 steer_v4 egress_v4
    answer_ourselves_v4 carry_away_v4 hand_in_v4 carry_out_v4);
steps!(EthernetIpv6: Ipv6, MapsV6, ethernet::LEN;
    at_once_v6 plain_v6 outgoing_v6 later_fragment_v6 icmp_v6 answer_v6 cut_v6 steer_v6 egress_v6
    answer_ourselves_v6 carry_away_v6 hand_in_v6 carry_out_v6);
steps!(BareIpv4: Ipv4, MapsV4, 0;
    at_once_bare_v4 plain_bare_v4 outgoing_bare_v4 later_fragment_bare_v4 icmp_bare_v4 answer_bare_v4 cut_bare_v4 steer_bare_v4
    egress_bare_v4
    answer_ourselves_bare_v4 carry_away_bare_v4 hand_in_bare_v4 carry_out_bare_v4);
steps!(BareIpv6: Ipv6, MapsV6, 0;
    at_once_bare_v6 plain_bare_v6 outgoing_bare_v6 later_fragment_bare_v6 icmp_bare_v6 answer_bare_v6 cut_bare_v6 steer_bare_v6
    egress_bare_v6
    answer_ourselves_bare_v6 carry_away_bare_v6 hand_in_bare_v6 carry_out_bare_v6);
