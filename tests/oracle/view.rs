//! Reads and edits frames without asking whether they are well-formed.

use std::net::IpAddr;

use crate::packet::{ETHERNET, ICMP, ICMPV6, SCTP, TCP, UDP, UDP_LITE};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const AH: u8 = 51;

/// Where things stand in an IP packet; offsets are from the begin of the bytes that it was read from.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) transport: usize,
    pub(crate) end: usize,
    pub(crate) protocol: u8,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// IPv4 identification or the lower half of the flow label.
    pub(crate) mark: u16,
    /// IPv6 extension headers, and whether one names a next waypoint.
    pub(crate) extensions: usize,
    pub(crate) is_routed: bool,
    /// Offset in bytes, and whether more follow.
    pub(crate) fragment: Option<(usize, bool)>,
    /// Where an IPv6 Fragment header and the byte that announces it are.
    pub(crate) fragment_header: Option<(usize, usize)>,
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

impl View {
    /// Of the packet in an Ethernet frame.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        match word(frame, 12)? {
            0x0800 | 0x86dd => Self::at(frame, ETHERNET),
            _ => None,
        }
    }

    /// Of an IP packet that starts at `network`.
    pub(crate) fn at(bytes: &[u8], network: usize) -> Option<Self> {
        match bytes.get(network)? >> 4 {
            4 => Self::v4(bytes, network),
            6 => Self::v6(bytes, network),
            _ => None,
        }
    }

    fn v4(bytes: &[u8], network: usize) -> Option<Self> {
        let header: &[u8; 20] = bytes.get(network..network + 20)?.try_into().ok()?;
        let fragment = word(header, 6)? & 0x3fff;
        let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(header.get(at..at + 4)?).ok()?));
        Some(Self {
            transport: network + usize::from(header[0] & 0xf) * 4,
            end: (network + usize::from(word(header, 2)?)).min(bytes.len()),
            protocol: header[9],
            src: address(12)?,
            dst: address(16)?,
            mark: word(header, 4)?,
            extensions: 0,
            is_routed: false,
            fragment: (fragment != 0).then_some((usize::from(fragment & 0x1fff) * 8, fragment & 0x2000 != 0)),
            fragment_header: None,
        })
    }

    fn v6(bytes: &[u8], network: usize) -> Option<Self> {
        let header: &[u8; 40] = bytes.get(network..network + 40)?.try_into().ok()?;
        let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?));
        let mut view = Self {
            transport: network + 40,
            end: (network + 40 + usize::from(word(header, 4)?)).min(bytes.len()),
            protocol: header[6],
            src: address(8)?,
            dst: address(24)?,
            mark: word(header, 2)?,
            extensions: 0,
            is_routed: false,
            fragment: None,
            fragment_header: None,
        };
        let mut announced_at = network + 6;
        while let Some([next, length]) = bytes.get(view.transport..view.transport + 2).map(|two| [two[0], two[1]]) {
            let length = match view.protocol {
                HOP_BY_HOP | ROUTING | DESTINATION => (usize::from(length) + 1) * 8,
                AH => (usize::from(length) + 2) * 4,
                FRAGMENT => 8,
                _ => break,
            };
            if view.protocol == FRAGMENT {
                let field = word(bytes, view.transport + 2)?;
                view.fragment = Some((usize::from(field & !7), field & 1 != 0));
                view.fragment_header = Some((view.transport, announced_at));
            }
            view.extensions += 1;
            view.is_routed |= view.protocol == ROUTING && bytes.get(view.transport + 3) != Some(&0);
            announced_at = view.transport;
            view.protocol = next;
            view.transport += length;
            if view.fragment.is_some_and(|(offset, _)| offset != 0) {
                break;
            }
        }
        Some(view)
    }

    /// Whether it is an ICMP message about another packet.
    pub(crate) fn is_icmp_error(&self, bytes: &[u8]) -> bool {
        if self.fragment.is_some_and(|(offset, _)| offset != 0) {
            return false;
        }
        let kind = bytes.get(self.transport).copied();
        match self.protocol {
            ICMP => matches!(kind, Some(3 | 4 | 5 | 11 | 12)),
            ICMPV6 => kind.is_some_and(|kind| kind < 128),
            _ => false,
        }
    }

    /// The packet inside an ICMP error.
    pub(crate) fn inner(&self, bytes: &[u8]) -> Option<Self> {
        if self.is_icmp_error(bytes) { Self::at(bytes, self.transport + 8) } else { None }
    }

    fn has_ports(&self) -> bool {
        matches!(self.protocol, TCP | UDP | SCTP | UDP_LITE)
    }

    /// Where the source port or echo identifier stands.
    pub(crate) fn src_port_at(&self) -> usize {
        self.transport + if self.has_ports() { 0 } else { 4 }
    }

    /// Where the destination port or echo identifier stands.
    pub(crate) fn dst_port_at(&self) -> usize {
        self.transport + if self.has_ports() { 2 } else { 4 }
    }

    /// A checksum that covers the ports.
    pub(crate) fn checksum_at(&self) -> Option<usize> {
        Some(
            self.transport
                + match self.protocol {
                    TCP => 16,
                    UDP | UDP_LITE => 6,
                    ICMP | ICMPV6 => 2,
                    _ => return None,
                },
        )
    }

    /// The port or identifier at a place.
    pub(crate) fn port(&self, bytes: &[u8], at: usize) -> Option<u16> {
        let has_one = self.has_ports() || matches!(self.protocol, ICMP | ICMPV6);
        let is_first = self.fragment.is_none_or(|(offset, _)| offset == 0);
        if has_one && is_first && at + 2 <= self.end { word(bytes, at) } else { None }
    }

    /// Replaces words, and updates the transport checksum (`pseudo`: addresses, which ICMP's does not cover).
    /// The change of the checksum goes on into `outer`, one that covers it in turn.
    pub(crate) fn replace(&self, bytes: &mut [u8], at: usize, new: &[u8], pseudo: bool, outer: Option<usize>) {
        let old = bytes[at..at + new.len()].to_vec();
        bytes[at..at + new.len()].copy_from_slice(new);
        let mut changes: Vec<(Vec<u8>, Vec<u8>)> = vec![(old.clone(), new.to_vec())];
        if let Some(checksum) = self.checksum_at().filter(|at| at + 2 <= self.end)
            && self.fragment.is_none_or(|(offset, _)| offset == 0)
            && !(pseudo && self.protocol == ICMP)
        {
            let before = bytes[checksum..checksum + 2].to_vec();
            if self.protocol != UDP || before != [0, 0] {
                update(bytes, checksum, &old, new);
                if self.protocol == UDP && bytes[checksum..checksum + 2] == [0, 0] {
                    bytes[checksum..checksum + 2].copy_from_slice(&[0xff, 0xff]);
                }
            }
            changes.push((before, bytes[checksum..checksum + 2].to_vec()));
        }
        if let Some(outer) = outer {
            for (old, new) in changes {
                update(bytes, outer, &old, &new);
            }
        }
    }
}

/// RFC 1624, equation 3.
pub(crate) fn update(bytes: &mut [u8], checksum: usize, old: &[u8], new: &[u8]) {
    let mut sum = u64::from(!u16::from_be_bytes([bytes[checksum], bytes[checksum + 1]]));
    // A last byte without another counts as if a zero followed (RFC 1071 section 4.1).
    let word = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes.get(1).copied().unwrap_or_default()]);
    for (old, new) in old.chunks(2).zip(new.chunks(2)) {
        sum += u64::from(!word(old)) + u64::from(word(new));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[checksum..checksum + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// The bytes of an address.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Puts the fragments of one packet together, in whatever order they came; the frames as they are when some are missing.
/// The kernel, which follows connections, reassembles and cuts anew: how is not compared.
pub(crate) fn reassemble(frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let (mut parts, mut whole) = (Vec::new(), Vec::new());
    for frame in frames {
        match View::of(&frame).and_then(|view| view.fragment.map(|fragment| (fragment, view))) {
            Some((fragment, view)) => parts.push((fragment.0, fragment.1, view, frame)),
            None => whole.push(frame),
        }
    }
    if parts.is_empty() {
        return whole;
    }
    parts.sort_by_key(|(offset, more, ..)| (*offset, !more));
    let mut payload: Vec<u8> = Vec::new();
    let mut complete = false;
    for (offset, more, view, frame) in &parts {
        let start = if frame[12] == 0x08 { view.transport } else { view.fragment_header.unwrap().0 + 8 };
        let bytes = &frame[start.min(view.end)..view.end];
        if *offset > payload.len() {
            break;
        }
        // What is there twice is the same.
        let known = payload.len() - offset;
        payload.extend(bytes.get(known..).unwrap_or_default());
        complete |= !more;
    }
    let (first_offset, _, first, frame) = &parts[0];
    if !complete || *first_offset != 0 {
        whole.extend(parts.into_iter().map(|(.., frame)| frame));
        return whole;
    }
    let mut packet;
    if frame[12] == 0x08 {
        packet = frame[..first.transport].to_vec();
        packet.extend(&payload);
        let before = packet[ETHERNET..ETHERNET + 20].to_vec();
        let length = (packet.len() - ETHERNET) as u16;
        packet[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
        packet[ETHERNET + 6] &= 0xc0;
        packet[ETHERNET + 7] = 0;
        let after = packet[ETHERNET..ETHERNET + 20].to_vec();
        update(&mut packet, ETHERNET + 10, &before, &after);
    } else {
        let (header, announced) = first.fragment_header.unwrap();
        packet = frame[..header].to_vec();
        packet[announced] = frame[header];
        packet.extend(&payload);
        let length = (packet.len() - ETHERNET - 40) as u16;
        packet[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
    }
    whole.push(packet);
    whole
}
