//! Where forwarder and netfilter differ on purpose: each difference by name, and when it is one. What each is good for is
//! said in `docs/netfilter-differences.md`, under the same name.

use std::net::IpAddr;

use crate::compare::{Case, Out};
use crate::packet::{Damage, ETHERNET, ICMP, ICMPV6, RST, TCP, UDP};
use crate::plan::{Side, Source};
use crate::view::View;

type Explanation = (&'static str, fn(&Case<'_>) -> bool);

const EXPLANATIONS: &[Explanation] = &[
    ("wrong checksums and lengths stay wrong", wrong_checksum),
    ("IPv4 options are carried along", options),
    ("IPv6 source routes are left to the kernel", source_route),
    ("TCP flags and states are not judged", tcp_states),
    ("replies of a stateless rule need no flow", stateless_reply),
    ("without ports, one client at a time", without_ports),
    ("link-local and reserved sources are not forwarded", unanswerable),
    ("more than six extension headers are left to the kernel", many_extensions),
    ("nobody sends to itself", to_itself),
    ("what is for all stations is left to the kernel", to_all_stations),
    ("ICMP that is neither echo nor error", other_icmp),
];

/// What is not there yet, class by class.
const NOT_YET: &[Explanation] =
    &[("not yet: the sender is told by ICMP", |case| matches!(case.input.what, "few hops" | "too big"))];

/// The name of the difference between what came out of both labs.
pub(crate) fn explain(case: &Case<'_>) -> Option<&'static str> {
    EXPLANATIONS.iter().chain(NOT_YET).find(|(_, applies)| applies(case)).map(|(name, _)| *name)
}

impl Case<'_> {
    /// forwarder did what the reference does, and nothing else.
    fn is_forwarded(&self) -> bool {
        matches!((self.forwarder, &self.reference), ([out], Some(reference)) if out == reference)
    }

    /// netfilter did not translate it.
    fn is_not_translated(&self) -> bool {
        self.is_left_to_kernel(self.nftables)
    }

    /// Not translated: nothing came of it, or the machine said what it says of what is for itself, or, what the backend
    /// sent to the client went on with the backend's address.
    fn is_left_to_kernel(&self, outs: &[Out]) -> bool {
        match outs {
            [] => true,
            [out] if self.answers(out) => true,
            [out] if self.source == Source::Preserve && self.input.from == Side::Home && out.at == Side::Client => {
                View::of(&out.frame).is_some_and(|view| view.src == self.input.packets[0].src)
            }
            _ => false,
        }
    }

    /// The machine in the middle answers the sender: RST, ICMP error, echo reply.
    fn answers(&self, out: &Out) -> bool {
        let Some(view) = View::of(&out.frame) else { return false };
        let complains = match view.protocol {
            TCP => out.frame.get(view.transport + 13).is_some_and(|flags| flags & RST != 0),
            ICMP => view.is_icmp_error(&out.frame) || out.frame.get(view.transport) == Some(&0),
            ICMPV6 => view.is_icmp_error(&out.frame) || out.frame.get(view.transport) == Some(&129),
            _ => false,
        };
        out.at == self.input.from && complains
    }

    fn packet(&self) -> &crate::packet::Packet {
        &self.input.packets[0]
    }

    fn protocol(&self) -> u8 {
        self.packet().body.protocol(self.packet().src.is_ipv6())
    }
}

fn wrong_checksum(case: &Case<'_>) -> bool {
    let wrong = matches!(
        case.packet().damage,
        Some(Damage::Checksum(_) | Damage::Length(_) | Damage::UdpLength(_) | Damage::TcpOffset(_) | Damage::Cut(_))
    );
    wrong && case.is_forwarded() && case.is_not_translated()
}

/// netfilter's stack fills in routes and times, and complains about options whose contents it does not understand.
fn options(case: &Case<'_>) -> bool {
    let options = case.packet().options.len();
    let is_error = case.input.what == "ICMP error" && case.forwarder.len() == 1;
    if options == 0 || !(is_error || case.is_forwarded()) {
        return false;
    }
    let same_but_options = |out: &Out| {
        let mut mine = case.forwarder[0].frame.clone();
        let at = ETHERNET + 20..ETHERNET + 20 + options;
        if out.frame.len() != mine.len() {
            return false;
        }
        mine[at.clone()].copy_from_slice(&out.frame[at]);
        mine[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&out.frame[ETHERNET + 10..ETHERNET + 12]);
        mine == out.frame
    };
    match case.nftables {
        // Nobody complains about an error.
        [] => is_error,
        [out] => same_but_options(out) || case.answers(out),
        _ => false,
    }
}

fn source_route(case: &Case<'_>) -> bool {
    const ROUTING: u8 = 43;
    let routed = case.packet().extensions.iter().any(|(kind, body)| *kind == ROUTING && body[1] != 0);
    routed && case.is_left_to_kernel(case.forwarder)
}

fn many_extensions(case: &Case<'_>) -> bool {
    const MOST: usize = 6;
    case.packet().extensions.len() > MOST && case.is_left_to_kernel(case.forwarder)
}

/// The kernel translates it, and then does not forward it.
fn to_all_stations(case: &Case<'_>) -> bool {
    case.input.to == Some([0xff; 6]) && case.is_left_to_kernel(case.forwarder) && case.nftables.is_empty()
}

/// Flags that no connection begins with, or that netfilter calls nonsense; what goes on after the backend has refused, or
/// on ports that were used before.
fn tcp_states(case: &Case<'_>) -> bool {
    let used_before = |flow: &crate::flow::Flow| {
        flow.history.iter().any(|event| event.starts_with("refused") || event.starts_with("reuse"))
    };
    let is_odd = case.input.what == "stray" || case.flow.is_some_and(used_before);
    let is_error = case.input.what == "ICMP error" && case.forwarder.len() == 1;
    is_odd
        && case.flow.is_some_and(|flow| flow.protocol == TCP)
        && (is_error || case.is_forwarded())
        && case.is_not_translated()
}

fn stateless_reply(case: &Case<'_>) -> bool {
    case.source == Source::Preserve
        && case.input.from == Side::Home
        && case.is_forwarded()
        && case.is_not_translated()
        && case.flow.is_some_and(|flow| flow.stage == crate::flow::Stage::Odd)
}

/// Two clients of a protocol without ports cannot be told apart by their replies. Whose flow is there first depends on
/// which packets open one.
fn without_ports(case: &Case<'_>) -> bool {
    let nothing_or_forwarded = |outs: &[Out]| match outs {
        [] => true,
        [out] => Some(out) == case.reference.as_ref() || case.answers(out),
        _ => false,
    };
    case.source == Source::Masquerade
        && !matches!(case.protocol(), TCP | UDP | ICMP | ICMPV6)
        && nothing_or_forwarded(case.forwarder)
        && nothing_or_forwarded(case.nftables)
}

fn unanswerable(case: &Case<'_>) -> bool {
    let unanswerable = match case.packet().src {
        IpAddr::V4(src) => src.is_link_local() || matches!(src.octets()[0], 0 | 240..),
        IpAddr::V6(src) => src.is_unicast_link_local(),
    };
    unanswerable && case.forwarder.is_empty()
}

fn other_icmp(case: &Case<'_>) -> bool {
    let is_forwarded = |outs: &[Out]| matches!(outs, [out] if out.at != case.input.from);
    case.input.what == "other ICMP"
        && (is_forwarded(case.forwarder) && case.is_left_to_kernel(case.nftables)
            || is_forwarded(case.nftables) && case.is_left_to_kernel(case.forwarder)
            || is_forwarded(case.forwarder) && is_forwarded(case.nftables) && only_identifiers_differ(case))
}

/// Identifiers of queries are masqueraded as those of echoes are.
fn only_identifiers_differ(case: &Case<'_>) -> bool {
    let without = |out: &Out| {
        let at = View::of(&out.frame).map_or(0, |view| view.transport);
        let mut bytes = out.frame.clone();
        bytes.iter_mut().skip(at + 2).take(4).for_each(|byte| *byte = 0);
        bytes
    };
    without(&case.forwarder[0]) == without(&case.nftables[0])
}

/// The kernel does not mind in IPv6.
fn to_itself(case: &Case<'_>) -> bool {
    case.packet().src == case.packet().dst && case.packet().src.is_ipv6() && case.forwarder.is_empty()
}
