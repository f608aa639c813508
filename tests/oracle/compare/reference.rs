//! What a translator that does nothing but replace addresses and ports makes of a packet.

use std::net::IpAddr;

use forwarder_lab::Family;

use super::Out;
use crate::flow::{End, Flow};
use crate::generate::Input;
use crate::packet::{ETHERNET, Packet, SYN, TCP};
use crate::plan::{self, Side, Source};
use crate::twin::{middle, station};
use crate::view::{View, octets, update};

/// Of an ICMP message about a packet, which follows.
const ICMP_HEADER: usize = 8;

/// The naive translation: everything stays but what must change.
pub(crate) fn reference(input: &Input, flow: &Flow, source: Source) -> Option<Out> {
    if input.what == "strange" {
        return None;
    }
    let whole = Packet { pieces: Vec::new(), ..input.packets[0].clone() };
    let [mut frame] = <[Vec<u8>; 1]>::try_from(whole.frames([0; 6], [0; 6])).ok()?;
    let view = View::of(&frame)?;
    if view.transport > view.end {
        return None;
    }
    frame.truncate(view.end);
    let at = flow.side(input.by.other());
    let (src, dst) = match input.by {
        End::Client => (flow.seen, flow.listen.to),
        End::Server => (flow.listen.address, flow.client),
    };
    if view.is_icmp_error(&frame) {
        // A router's own address stays where that of the end does.
        let from = match input.by {
            End::Client => flow.client,
            End::Server => flow.listen.to,
        };
        restore_embedded(&mut frame, &view, flow, input.by.other(), src)?;
        return readdress(frame, &view, at, if src == from { view.src } else { src }, dst);
    }
    let (port_at, port) = match input.by {
        End::Client => (view.dst_port_at(), flow.to_port()),
        End::Server => (view.src_port_at(), if flow.is_echo() { flow.client_port } else { flow.listen_port }),
    };
    if view.port(&frame, port_at).is_some() {
        view.replace(&mut frame, port_at, &port.to_be_bytes(), false, None);
    }
    if input.by == End::Server && view.port(&frame, view.dst_port_at()).is_some() {
        view.replace(&mut frame, view.dst_port_at(), &flow.client_port.to_be_bytes(), false, None);
    }
    let family = if src.is_ipv4() { Family::V4 } else { Family::V6 };
    if let Some(largest) = plan::largest_segment(family, source) {
        lower_segment_size(&mut frame, &view, largest);
    }
    readdress(frame, &view, at, src, dst)
}

/// What a SYN says its sender takes (RFC 9293 section 3.7.1).
fn lower_segment_size(frame: &mut [u8], view: &View, largest: u16) -> Option<()> {
    let header = frame.get(view.transport..view.end).filter(|_| view.protocol == TCP)?;
    let length = usize::from(header.get(12)? >> 4) * 4;
    let header = header.get(..length.max(20)).filter(|header| header[13] & SYN != 0)?.to_vec();
    let mut at = 20;
    while at + 4 <= length {
        match <[u8; 4]>::try_from(&header[at..at + 4]).ok()? {
            [1, ..] => at += 1,
            [2, 4, high, low] if u16::from_be_bytes([high, low]) > largest => {
                // From an even offset, as sums are.
                let value = at + 2;
                let start = value & !1;
                let mut words = header[start..(value + 2).next_multiple_of(2)].to_vec();
                words[value - start..][..2].copy_from_slice(&largest.to_be_bytes());
                view.replace(frame, view.transport + start, &words, false, None);
                return Some(());
            }
            [0 | 2, ..] | [_, 0 | 1, ..] => return None,
            [_, size, ..] => at += usize::from(size),
        }
    }
    None
}

/// Makes the packet inside an error the one that its sender sent, to an end that it knows as `peer`.
fn restore_embedded(frame: &mut [u8], view: &View, flow: &Flow, sender: End, peer: IpAddr) -> Option<()> {
    let (inner, checksum) = (view.inner(frame)?, view.checksum_at());
    let (src, src_port, dst_port) = match sender {
        End::Client => (flow.client, flow.client_port, flow.listen_port),
        End::Server => (flow.listen.to, flow.to_port(), flow.client_port),
    };
    if flow.is_echo() {
        if inner.port(frame, inner.src_port_at()).is_some() {
            inner.replace(frame, inner.src_port_at(), &flow.client_port.to_be_bytes(), false, checksum);
        }
    } else {
        for (at, port) in [(inner.src_port_at(), src_port), (inner.dst_port_at(), dst_port)] {
            if inner.port(frame, at).is_some() {
                inner.replace(frame, at, &port.to_be_bytes(), false, checksum);
            }
        }
    }
    let network = view.transport + ICMP_HEADER;
    let addresses = [octets(src), octets(peer)].concat();
    let before = [octets(inner.src), octets(inner.dst)].concat();
    let at = network + if src.is_ipv4() { 12 } else { 8 };
    inner.replace(frame, at, &addresses, true, checksum);
    if src.is_ipv4() {
        let header = network + 10..network + 12;
        let old = frame[header.clone()].to_vec();
        update(frame, header.start, &before, &addresses);
        let new = frame[header].to_vec();
        update(frame, checksum?, &old, &new);
    }
    Some(())
}

/// To this side, between these addresses, with a hop less.
fn readdress(mut frame: Vec<u8>, view: &View, at: Side, src: IpAddr, dst: IpAddr) -> Option<Out> {
    frame[..6].copy_from_slice(&station(at));
    frame[6..12].copy_from_slice(&middle(at));
    let (src_at, ttl_at, header_checksum) =
        if view.src.is_ipv4() { (12, 8, Some(ETHERNET + 10)) } else { (8, 7, None) };
    let addresses = [octets(src), octets(dst)].concat();
    view.replace(&mut frame, ETHERNET + src_at, &addresses, true, header_checksum.filter(|_| false));
    let hops = frame[ETHERNET + ttl_at].checked_sub(1)?;
    if let Some(checksum) = header_checksum {
        let before = [octets(view.src), octets(view.dst)].concat();
        update(&mut frame, checksum, &before, &addresses);
        let protocol = frame[ETHERNET + 9];
        update(&mut frame, checksum, &[hops + 1, protocol], &[hops, protocol]);
    }
    frame[ETHERNET + ttl_at] = hops;
    Some(Out { at, frame })
}

/// Whether this is a fragment of the packet that would have come out whole.
pub(crate) fn is_piece_of(out: &Out, whole: &Out) -> bool {
    let (Some(view), Some(of)) = (View::of(&out.frame), View::of(&whole.frame)) else { return false };
    let (Some((offset, _)), is_v4) = (view.fragment, view.src.is_ipv4()) else { return false };
    let start = if is_v4 { view.transport } else { view.fragment_header.unwrap().0 + 8 };
    let hops = ETHERNET + if is_v4 { 8 } else { 7 };
    let Some(bytes) = out.frame.get(start..view.end) else { return false };
    out.at == whole.at
        && (view.src, view.dst, view.mark) == (of.src, of.dst, of.mark)
        && out.frame[..ETHERNET] == whole.frame[..ETHERNET]
        && out.frame[hops] == whole.frame[hops]
        && whole.frame.get(of.transport + offset..of.transport + offset + bytes.len()) == Some(bytes)
}
