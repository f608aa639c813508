//! What a translator that does nothing but replace addresses and ports makes of a packet.

use super::Out;
use crate::flow::{End, Flow};
use crate::generate::Input;
use crate::packet::{ETHERNET, Packet};
use crate::twin::{middle, station};
use crate::view::{View, octets, update};

/// The naive translation: everything stays but what must change.
pub(super) fn reference(input: &Input, flow: &Flow) -> Option<Out> {
    if input.what == "strange" {
        return None;
    }
    let whole = Packet { pieces: Vec::new(), ..input.packets[0].clone() };
    let [mut frame] = <[Vec<u8>; 1]>::try_from(whole.frames([0; 6], [0; 6])).ok()?;
    let view = View::of(&frame)?;
    if view.is_icmp_error(&frame) || view.transport > view.end {
        return None;
    }
    frame.truncate(view.end);
    let at = flow.side(input.by.other());
    frame[..6].copy_from_slice(&station(at));
    frame[6..12].copy_from_slice(&middle(at));
    let (src, dst) = match input.by {
        End::Client => (flow.seen, flow.listen.to),
        End::Server => (flow.listen.address, flow.client),
    };
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
