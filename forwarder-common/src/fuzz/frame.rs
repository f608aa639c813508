//! What a translation may do to a frame, read byte by byte: nothing here is shared with the code under test.

use std::{net::IpAddr, net::SocketAddr, vec, vec::Vec};

use crate::test_packet::{NETWORK, internet_checksum};

/// Where things are in an IP packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    v4: bool,
    /// Where the transport header begins.
    pub(super) transport: usize,
    /// Where the packet ends, by its own header.
    length: usize,
    /// Where what there is of it ends.
    end: usize,
    pub(super) protocol: u8,
    /// Whether it is no fragment but the first.
    has_transport: bool,
}

fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// `None` where it is no IP packet, or its headers do not end.
pub(super) fn layout(ip: &[u8]) -> Option<Layout> {
    if *ip.first()? >> 4 == 4 {
        let transport = usize::from(ip[0] & 15) * 4;
        if transport < 20 || ip.len() < transport {
            return None;
        }
        let length = word(ip, 2);
        let has_transport = word(ip, 6).is_multiple_of(0x2000);
        let end = length.min(ip.len());
        return Some(Layout { v4: true, transport, length, end, protocol: ip[9], has_transport });
    }
    if ip.len() < 40 {
        return None;
    }
    let length = 40 + word(ip, 4);
    let (mut protocol, mut transport, mut has_transport) = (ip[6], 40, true);
    while matches!(protocol, 0 | 43 | 44 | 60) {
        let header = ip.get(transport..transport + 8)?;
        if protocol == 44 {
            has_transport &= word(header, 2) & 0xfff8 == 0;
            transport += 8;
        } else {
            transport += (usize::from(header[1]) + 1) * 8;
        }
        protocol = header[0];
        if !has_transport {
            break;
        }
    }
    Some(Layout { v4: false, transport, length, end: length.min(ip.len()), protocol, has_transport })
}

impl Layout {
    fn checksum(&self) -> Option<usize> {
        let field = match self.protocol {
            6 => 16,
            17 | 33 | 136 => 6,
            1 | 58 => 2,
            _ => return None,
        };
        (self.has_transport && self.transport + field + 2 <= self.end).then_some(self.transport + field)
    }

    /// Whether it is an ICMP message of this family that is neither an echo nor another query (RFC 792, RFC 950).
    fn is_other_icmp(&self, ip: &[u8]) -> bool {
        let (icmp, queries): (u8, &[u8]) =
            if self.v4 { (1, &[0, 8, 13, 14, 15, 16, 17, 18]) } else { (58, &[128, 129]) };
        self.protocol == icmp && ip.get(self.transport).is_some_and(|kind| !queries.contains(kind))
    }
}

/// How wrong a packet's checksums are: what a receiver's sum over the IPv4 header comes to, and over as much of what the
/// transport's covers as is there; `None` where there is none. In ones' complement, so modulo 65535.
pub(super) fn wrongness(ip: &[u8], layout: &Layout) -> (u16, Option<u16>) {
    let header = if layout.v4 { internet_checksum(&ip[..layout.transport]) % 0xffff } else { 0 };
    let Some(field) = layout.checksum() else { return (header, None) };
    // UDP, and UDP-Lite (RFC 3828), whose checksum may cover less: a change is the same for both.
    if matches!(layout.protocol, 17 | 136) && word(ip, field) == 0 {
        return (header, None);
    }
    let mut covered: Vec<u8> = match (layout.v4, layout.protocol) {
        (true, 1) => vec![],
        (true, _) => ip[12..20].to_vec(),
        (false, _) => ip[8..40].to_vec(),
    };
    if !covered.is_empty() {
        let length = u32::try_from(layout.length.saturating_sub(layout.transport)).unwrap();
        covered.extend([0, layout.protocol]);
        covered.extend(length.to_be_bytes());
    }
    covered.extend(&ip[layout.transport..layout.end]);
    (header, Some(internet_checksum(&covered) % 0xffff))
}

/// Source and destination with their ports; an echo has its identifier at both.
pub(super) fn ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let ip = frame.get(NETWORK..)?;
    let layout = layout(ip)?;
    ends_in(ip, &layout)
}

fn ends_in(ip: &[u8], layout: &Layout) -> Option<(SocketAddr, SocketAddr)> {
    let [src, dst] = addresses(ip, layout);
    let at = layout.transport;
    let (from, to) = match layout.protocol {
        6 | 17 | 33 | 132 | 136 if at + 4 <= layout.end => (at, at + 2),
        1 | 58 if at + 6 <= layout.end => (at + 4, at + 4),
        _ => return Some((SocketAddr::new(src, 0), SocketAddr::new(dst, 0))),
    };
    let port = |at| u16::try_from(word(ip, at)).unwrap();
    layout.has_transport.then(|| (SocketAddr::new(src, port(from)), SocketAddr::new(dst, port(to))))
}

/// Source and destination of a frame.
pub(super) fn hosts(frame: &[u8]) -> Option<[IpAddr; 2]> {
    let ip = frame.get(NETWORK..)?;
    Some(addresses(ip, &layout(ip)?))
}

fn addresses(ip: &[u8], layout: &Layout) -> [IpAddr; 2] {
    if layout.v4 {
        [12, 16].map(|at| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).unwrap()))
    } else {
        [8, 24].map(|at| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap()))
    }
}

/// The IP packet with everything blanked that a translation may change.
fn blanked(ip: &[u8], layout: &Layout, hop_limit: bool) -> Vec<u8> {
    let mut bytes = ip.to_vec();
    let mut blank = |from: usize, to: usize| {
        let to = to.min(bytes.len());
        bytes.get_mut(from..to).unwrap_or_default().fill(0);
    };
    if layout.v4 {
        blank(10, 20);
        blank(8, if hop_limit { 9 } else { 8 });
    } else {
        blank(8, 40);
        blank(7, if hop_limit { 8 } else { 7 });
    }
    let at = layout.transport;
    if !layout.has_transport {
        return bytes;
    }
    match layout.protocol {
        6 => {
            blank(at, at + 4);
            blank(at + 16, at + 18);
            // Of a SYN the segment size may be lowered.
            if ip.get(at + 13).is_some_and(|flags| flags & 2 != 0) && hop_limit {
                blank(at + 20, at + usize::from(ip[at + 12] >> 4) * 4);
            }
        }
        17 | 33 | 136 => {
            blank(at, at + 4);
            blank(at + 6, at + 8);
        }
        1 | 58 if layout.is_other_icmp(ip) => blank(at + 2, layout.end),
        1 | 58 => blank(at + 2, at + 6),
        _ => {}
    }
    bytes
}

/// Asserts that a frame was translated and nothing else: link header, lengths and contents are as they were, there is one
/// hop less, and every checksum is exactly as right or wrong as it was. In an ICMP error so is the packet inside.
pub(super) fn assert_translated(before: &[u8], after: &[u8]) {
    assert_eq!(before.len(), after.len(), "the length");
    assert_eq!(before[..NETWORK], after[..NETWORK], "the link header");
    let (old, new) = (&before[NETWORK..], &after[NETWORK..]);
    let layout = layout(old).unwrap();
    let hops = if layout.v4 { 8 } else { 7 };
    assert_eq!(new[hops], old[hops] - 1, "hops left");
    assert!(layout.length <= old.len(), "sent on what was not all there");
    assert_eq!(blanked(old, &layout, true), blanked(new, &layout, true), "what may not change");
    assert_eq!(wrongness(old, &layout), wrongness(new, &layout), "checksums of {old:02x?} and {new:02x?}");
    if layout.has_transport && layout.is_other_icmp(old) {
        let at = layout.transport + 8;
        let (old, new) = (&old[at..layout.end], &new[at..layout.end]);
        // What only takes a line is sent on as it is, right or wrong.
        if old != new {
            assert_eq!(wrongness(&after[NETWORK..], &layout), (0, Some(0)), "the checksums of an error");
            assert_embedded(old, new);
        }
    }
}

/// Asserts that nothing was done to a frame but that a SYN may announce a smaller segment size, checksum included.
pub(super) fn assert_passed(before: &[u8], after: &[u8]) {
    if before == after {
        return;
    }
    let (old, new) = (&before[NETWORK..], &after[NETWORK..]);
    let layout = layout(old).unwrap();
    let is_syn = layout.protocol == 6 && layout.has_transport && old[layout.transport + 13] & 2 != 0;
    assert!(is_syn && hosts(before) == hosts(after) && ends(before) == ends(after), "passed and changed: {new:02x?}");
    assert_eq!(old[..layout.transport], new[..layout.transport], "the network header of what is passed");
    assert_eq!(blanked(old, &layout, true), blanked(new, &layout, true), "what may not change in a SYN");
    assert_eq!(wrongness(old, &layout), wrongness(new, &layout), "the checksum of a SYN");
}

fn assert_embedded(old: &[u8], new: &[u8]) {
    let layout = layout(old).unwrap_or_else(|| panic!("{old:02x?} became {new:02x?}"));
    assert_eq!(blanked(old, &layout, false), blanked(new, &layout, false), "what may not change in what is quoted");
    // The checksum of an ICMP error inside of an error is never touched, but then nothing else is.
    assert_eq!(wrongness(old, &layout), wrongness(new, &layout), "quoted checksums of {old:02x?} and {new:02x?}");
}

/// The ends of the packet inside of an ICMP error.
pub(super) fn embedded_ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let ip = frame.get(NETWORK..)?;
    let inner = ip.get(layout(ip)?.transport + 8..)?;
    ends_in(inner, &layout(inner)?)
}
