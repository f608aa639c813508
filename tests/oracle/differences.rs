//! Where forwarder and netfilter differ on purpose: each difference by name, and when it is one. What each is good for is
//! said in `docs/netfilter-differences.md`, under the same name.

use std::net::IpAddr;

use forwarder_lab::Family;

use crate::compare::reference::is_piece_of;
use crate::compare::{Case, Out};
use crate::flow::{End, Flow, Stage};
use crate::packet::{Body, Damage, ETHERNET, ICMP, ICMPV6, RST, TCP, UDP};
use crate::plan::{self, Source, Way};
use crate::view::View;

mod one_to_one;

use one_to_one::{is_npt, npt_errors, two_prefixes};

type Explanation = (&'static str, fn(&Case<'_>) -> bool);

const EXPLANATIONS: &[Explanation] = &[
    ("wrong checksums and lengths stay wrong", wrong_checksum),
    ("IPv4 options are carried along", options),
    ("IPv6 source routes are left to the kernel", source_route),
    ("TCP flags and states are not judged", tcp_states),
    ("replies of a stateless rule need no flow", stateless_reply),
    ("without ports, one client at a time", without_ports),
    ("what comes in fragments goes on in them", fragments),
    ("fragments wait for their first", without_first),
    ("what begins no connection does not get out", stray_from_behind),
    ("a listen's ports are not given away", ports_of_listens),
    ("nobody sends from an address of ours", from_ours),
    ("a tiny first fragment is dropped", tiny_fragments),
    ("what ends within its transport header is left to the kernel", too_short),
    ("an error about too little is not translated", about_too_little),
    ("an error about what is never forwarded is left to the kernel", about_what_is_not_forwarded),
    ("an error with a wrong checksum is left to the kernel", wrong_error),
    ("errors about one-to-one packets are translated whole", npt_errors),
    ("one to one towards another rule's hosts", two_prefixes),
    ("a trailer that does not fit takes its packet with it", long_trailer),
    ("the machine complains with an address of its own", own_complaint),
    ("link-local and reserved sources are not forwarded", unanswerable),
    ("more than six extension headers are left to the kernel", many_extensions),
    ("nobody sends to itself", to_itself),
    ("what is for all stations is left to the kernel", to_all_stations),
    ("ICMP that is neither echo nor error", other_icmp),
    ("a segment size at an odd place", odd_segment_size),
    ("twice the same ends", twice_the_same_ends),
    ("a host asks itself from the same port", asks_itself),
];

/// The name of the difference between what came out of both labs, if it has another than `without`.
pub(crate) fn explain(case: &Case<'_>, without: Option<&str>) -> Option<&'static str> {
    let name = EXPLANATIONS.iter().find(|(_, applies)| applies(case)).map(|(name, _)| *name);
    name.filter(|name| without != Some(*name))
}

impl Case<'_> {
    /// forwarder did what the reference does, and nothing else.
    fn is_forwarded(&self) -> bool {
        matches!((self.forwarder, &self.reference), ([out], Some(reference)) if out == reference)
    }

    /// forwarder would forward it, but tells the sender with an ICMP error that it is too big or came too far.
    fn is_refused(&self) -> bool {
        let is_error = |out: &Out| View::of(&out.frame).is_some_and(|view| view.is_icmp_error(&out.frame));
        self.reference.is_some() && matches!(self.forwarder, [out] if self.answers(out) && is_error(out))
    }

    /// netfilter did not translate it.
    fn is_not_translated(&self) -> bool {
        self.is_left_to_kernel(self.nftables)
    }

    /// Not translated: nothing came of it, or the machine said what it says of what is for itself, or it went on as it
    /// was, in as many fragments.
    fn is_left_to_kernel(&self, outs: &[Out]) -> bool {
        match outs {
            [] => true,
            outs if outs.iter().all(|out| self.answers(out)) => true,
            outs => {
                let ends = (self.packet().src, self.packet().dst);
                let goes_on = |out: &Out| View::of(&out.frame).is_some_and(|view| (view.src, view.dst) == ends);
                outs.len() <= self.packet().pieces.len().max(1) && outs.iter().all(goes_on)
            }
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

    fn family(&self) -> Family {
        if self.packet().src.is_ipv4() { Family::V4 } else { Family::V6 }
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
    // Where both leave it to their kernels, these may fill in different times.
    let is_unhidden = case.flow.is_some_and(|flow| flow.listen.name == plan::UNHIDDEN);
    let is_untouched = case.is_left_to_kernel(case.forwarder) && case.is_not_translated();
    let is_of_kernel = (is_unhidden || is_untouched) && case.forwarder.len() == 1;
    if options == 0 || !(is_of_kernel || case.is_forwarded()) {
        return false;
    }
    let same_but_options = |out: &Out| without_options(case, out) == without_options(case, &case.forwarder[0]);
    match case.nftables {
        // Nobody complains about an error.
        [] => case.input.what == "ICMP error",
        [out] => same_but_options(out) || case.answers(out),
        _ => false,
    }
}

/// A frame without what stands in its IPv4 options, and without the header's checksum.
fn without_options(case: &Case<'_>, out: &Out) -> Vec<u8> {
    let mut frame = out.frame.clone();
    let options = case.packet().options.len();
    if options > 0 && frame.len() >= ETHERNET + 20 + options {
        frame[ETHERNET + 10..ETHERNET + 12].fill(0);
        frame[ETHERNET + 20..ETHERNET + 20 + options].fill(0);
    }
    frame
}

fn source_route(case: &Case<'_>) -> bool {
    const ROUTING: u8 = 43;
    let routed = case.packet().extensions.iter().any(|(kind, body)| *kind == ROUTING && body[1] != 0);
    routed && case.is_left_to_kernel(case.forwarder)
}

/// The place of its lab where there is one thing for each.
const NFTABLES: usize = 1;

/// netfilter changes the checksum as if the segment size stood at an even place. The rest is the same.
fn odd_segment_size(case: &Case<'_>) -> bool {
    let Body::Tcp { options, .. } = &case.packet().body else { return false };
    let at_odd_place = options.windows(2).position(|option| option == [2, 4]).is_some_and(|at| at % 2 == 1);
    let without_checksum = |out: &Out| {
        let at = View::of(&out.frame).and_then(|view| view.checksum_at());
        let mut bytes = without_options(case, out);
        at.and_then(|at| bytes.get_mut(at..at + 2)).into_iter().for_each(|checksum| checksum.fill(0));
        bytes
    };
    at_odd_place
        && plan::largest_segment(case.family(), case.source).is_some()
        && case.is_forwarded()
        && matches!(case.nftables, [out] if without_checksum(out) == without_checksum(&case.forwarder[0]))
}

/// How many extension headers forwarder reads.
const MOST: usize = 6;

fn many_extensions(case: &Case<'_>) -> bool {
    case.packet().extensions.len() > MOST && case.is_left_to_kernel(case.forwarder)
}

/// The kernel translates it, and then does not forward it.
fn to_all_stations(case: &Case<'_>) -> bool {
    case.input.to == Some([0xff; 6]) && case.is_left_to_kernel(case.forwarder) && case.nftables.is_empty()
}

/// Connection tracking calls it invalid: flags that no connection begins with, or that make no sense; what goes on after
/// it has forgotten the connection, or that it did not expect in the state that it has seen. So it calls errors about those, too.
fn tcp_states(case: &Case<'_>) -> bool {
    case.flow.is_some_and(|flow| flow.protocol == TCP)
        && case.packet().damage.is_none()
        && (case.is_forwarded() || case.is_refused())
        && case.is_not_translated()
        && (case.is_invalid)()
}

fn stateless_reply(case: &Case<'_>) -> bool {
    // Or netfilter has it begin a connection, from another port where it has one with this port.
    let without_port = |out: &Out| {
        let mut bytes = out.frame.clone();
        if let Some(view) = View::of(&bytes) {
            [Some(view.src_port_at()), view.checksum_at()]
                .into_iter()
                .flatten()
                .for_each(|at| bytes[at..at + 2].fill(0));
        }
        bytes
    };
    let has_other_port = || match (case.forwarder, case.nftables) {
        ([forwarder], [nftables]) => without_port(forwarder) == without_port(nftables),
        _ => false,
    };
    case.flow.is_some_and(|flow| !flow.chooses_port[0])
        && case.input.by == End::Server
        && case.is_forwarded()
        && (case.is_not_translated() || case.source == Source::Prefix && has_other_port())
        && case.flow.is_some_and(|flow| flow.stage == Stage::Odd)
}

/// Two clients of a protocol without ports cannot be told apart by their replies. Whose flow is there first depends on
/// which packets open one. So it is with a host behind that is reached by its own address, and has talked there already.
fn without_ports(case: &Case<'_>) -> bool {
    let nothing_or_forwarded = |outs: &[Out]| match outs {
        [out] if Some(out) == case.reference.as_ref() => true,
        outs => case.is_left_to_kernel(outs),
    };
    let may_collide = |flow: &Flow| {
        let is_backwards = |other: &Flow| {
            (other.protocol, other.client, other.listen.to) == (flow.protocol, flow.listen.to, flow.client)
        };
        let is_unhidden = flow.listen.name == plan::UNHIDDEN;
        flow.chooses_port[0] || flow.sides[0] == flow.sides[1] || is_unhidden && case.flows.iter().any(is_backwards)
    };
    case.flow.is_some_and(may_collide)
        && !matches!(case.protocol(), TCP | UDP | ICMP | ICMPV6)
        && nothing_or_forwarded(case.forwarder)
        && nothing_or_forwarded(case.nftables)
}

fn unanswerable(case: &Case<'_>) -> bool {
    let unanswerable = match case.packet().src {
        IpAddr::V4(src) => src.is_link_local() || matches!(src.octets()[0], 0 | 240..),
        IpAddr::V6(src) => src.is_unicast_link_local() || src.is_unspecified() || src.to_ipv4_mapped().is_some(),
    };
    unanswerable && case.is_left_to_kernel(case.forwarder)
}

fn other_icmp(case: &Case<'_>) -> bool {
    let is_forwarded = |outs: &[Out]| matches!(outs, [out] if !case.answers(out));
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

/// The kernel does not mind, unless the address is its own IPv4 one.
fn to_itself(case: &Case<'_>) -> bool {
    case.packet().src == case.packet().dst && case.is_left_to_kernel(case.forwarder)
}

/// Connection tracking puts them together first, and keeps what it cannot.
fn fragments(case: &Case<'_>) -> bool {
    let Some(whole) = &case.reference else { return false };
    let is_piece = |out: &Out| is_piece_of(out, whole);
    let are_pieces = case.is_forwarded() || case.forwarder.iter().all(is_piece);
    // What would lie over a transport header is dropped, where netfilter does not look (NPTv6).
    let may_come_out = case.nftables.is_empty() || case.input.what == "fragments that overlap";
    !case.packet().pieces.is_empty() && may_come_out && are_pieces
}

/// Where netfilter does not follow connections, it does not mind either.
fn without_first(case: &Case<'_>) -> bool {
    let pieces = &case.packet().pieces;
    is_npt(case) && !pieces.is_empty() && pieces.iter().all(|piece| piece.start != 0) && case.forwarder.is_empty()
}

fn tiny_fragments(case: &Case<'_>) -> bool {
    case.packet().pieces.first().is_some_and(|first| first.end < TCP_HEADER)
        && case.protocol() == TCP
        && case.forwarder.is_empty()
}

const TCP_HEADER: usize = 20;

/// Where netfilter does not follow connections it does not look at the transport either.
fn too_short(case: &Case<'_>) -> bool {
    let is_damaged = matches!(
        case.packet().damage,
        Some(Damage::Cut(_) | Damage::Length(_) | Damage::TcpOffset(_) | Damage::UdpLength(_))
    );
    // Or it says that there is nothing after the IPv6 header.
    let is_empty = || View::of(&case.packet().frames([0; 6], [0; 6])[0]).is_some_and(|view| view.end == ETHERNET + 40);
    is_damaged && case.is_left_to_kernel(case.forwarder) && (is_npt(case) || !case.packet().src.is_ipv4() && is_empty())
}

impl Case<'_> {
    /// The packet inside an error, and how much there is of its transport header.
    fn embedded(&self) -> Option<(View, usize)> {
        let whole = self.packet().frames([0; 6], [0; 6]).swap_remove(0);
        let end = View::of(&whole)?.end;
        let inner = View::of(&whole)?.inner(&whole[..end])?;
        let length = inner.end.saturating_sub(inner.transport);
        Some((inner, length))
    }
}

/// RFC 792 promises eight bytes. Without connections fewer are enough; of some protocols, so they are for forwarder.
fn about_too_little(case: &Case<'_>) -> bool {
    case.input.what == "ICMP error"
        && case.embedded().is_none_or(|(_, length)| length < 8)
        && (case.is_forwarded() && case.is_not_translated() || case.is_left_to_kernel(case.forwarder))
}

/// Source routes, many extension headers, later fragments: nothing like it is forwarded as a packet of a flow.
fn about_what_is_not_forwarded(case: &Case<'_>) -> bool {
    let is_odd = |(inner, _): (View, usize)| {
        inner.is_routed || inner.extensions > MOST || inner.fragment.is_some_and(|(offset, _)| offset != 0)
    };
    case.input.what == "ICMP error" && case.embedded().is_some_and(is_odd) && case.is_left_to_kernel(case.forwarder)
}

fn wrong_error(case: &Case<'_>) -> bool {
    is_npt(case)
        && case.input.what == "ICMP error"
        && matches!(case.packet().damage, Some(Damage::Checksum(_)))
        && case.is_left_to_kernel(case.forwarder)
}

/// Both say the same, but from another address; forwarder's IPv4 errors may not be cut. What NPT has translated the kernel
/// quotes so, forwarder as it came.
fn own_complaint(case: &Case<'_>) -> bool {
    let v6 = case.packet().src.is_ipv6();
    let same = |out: &Out| {
        let mut bytes = out.frame.clone();
        if v6 {
            bytes[ETHERNET + 8..ETHERNET + 24].fill(0);
            // Its checksum covers the address.
            bytes[ETHERNET + 42..ETHERNET + 44].fill(0);
            if case.source == Source::Prefix {
                bytes.truncate(ETHERNET + 48);
            }
        } else {
            // The kernel repeats a part of the type of service.
            bytes[ETHERNET + 1] = 0;
            bytes[ETHERNET + 6..ETHERNET + 8].fill(0);
            bytes[ETHERNET + 10..ETHERNET + 16].fill(0);
        }
        bytes
    };
    matches!((case.forwarder, case.nftables), ([forwarder], [nftables])
        if case.answers(forwarder) && case.answers(nftables) && same(forwarder) == same(nftables))
}

/// With its trailer the frame is longer than the link takes.
fn long_trailer(case: &Case<'_>) -> bool {
    let length = case.packet().frames([0; 6], [0; 6])[0].len();
    case.packet().trailer > 0 && length > ETHERNET + usize::from(plan::HOME_MTU) && case.forwarder.is_empty()
}

/// netfilter calls it invalid, does not translate it, and the kernel forwards it with the address of the host behind.
fn stray_from_behind(case: &Case<'_>) -> bool {
    let goes_out = case.flow.is_some_and(|flow| flow.sides == Way::Outward.sides() && flow.chooses_port[0]);
    goes_out
        && case.input.by == End::Client
        && case.protocol() == TCP
        && case.forwarder.is_empty()
        && case.is_not_translated()
}

/// netfilter lets a host behind have a port of ours that a rule listens on: what its remote end sends to the listen from
/// the same port is an answer then.
fn ports_of_listens(case: &Case<'_>) -> bool {
    let Some(flow) = case.flow.filter(|flow| flow.sides == Way::Inward.sides()) else { return false };
    let took_its_port = |other: &Flow| {
        other.sides == Way::Outward.sides()
            && other.protocol == flow.protocol
            && other.is_bound_to(NFTABLES, Some(flow.listen_port))
            && (other.listen.address, other.listen_port) == (flow.client, flow.client_port)
    };
    case.source == Source::Outgoing
        && case.is_forwarded()
        && case.flows.iter().filter(|other| took_its_port(other)).any(|other| {
            let to_host_behind = |out: &Out| View::of(&out.frame).is_some_and(|view| view.dst == other.client);
            case.is_not_translated() || matches!(case.nftables, [out] if to_host_behind(out))
        })
}

/// A host behind has begun with these very ends, and is begun with by its own address: netfilter gives the latter another port.
fn twice_the_same_ends(case: &Case<'_>) -> bool {
    let Some(flow) = case.flow.filter(|flow| flow.listen.name == plan::UNHIDDEN) else { return false };
    let is_backwards = |other: &&Flow| {
        (other.protocol, other.client, other.client_port) == (flow.protocol, flow.listen.to, flow.listen_port)
            && (other.listen.address, other.listen_port) == (flow.client, flow.client_port)
    };
    let goes_out = |out: &Out, other: &Flow| {
        View::of(&out.frame).is_some_and(|view| (view.src, view.dst) == (other.seen, other.listen.to))
    };
    case.input.by == End::Server
        && case.flows.iter().filter(is_backwards).any(|other| matches!(case.forwarder, [out] if goes_out(out, other)))
}

/// To netfilter, the question looks like its own answer.
fn asks_itself(case: &Case<'_>) -> bool {
    let is_itself = |flow: &Flow| (flow.client, flow.client_port) == (flow.listen.to, flow.to_port());
    case.source == Source::Prefix && case.flow.is_some_and(is_itself) && case.is_forwarded() && case.nftables.is_empty()
}

/// The kernel forwards it if it is IPv6; where a flow of ours looks the same, connection tracking drops it.
fn from_ours(case: &Case<'_>) -> bool {
    let is_own = plan::own_addresses(case.family())
        .iter()
        .any(|(_, address)| address.split('/').next().unwrap() == case.packet().src.to_string());
    is_own && case.is_left_to_kernel(case.forwarder) && case.is_left_to_kernel(case.nftables)
}
