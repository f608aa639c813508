//! ICMP errors about packets of flows, from the ends and from routers on the way.

use super::{Generator, Input};
use crate::flow::{Content, End};
use crate::packet::{ACK, Body, Damage, PSH, Packet, Piece, sum};
use crate::plan;

impl Generator {
    /// An error about a packet that one end has received, or that got lost just before.
    pub(super) fn about_a_flow(&mut self, index: usize) -> Input {
        let by = self.pick(&End::BOTH);
        let v6 = self.v6();
        let (kind, mut code) = if v6 {
            self.pick(&[(1, 0), (1, 1), (1, 3), (1, 4), (2, 0), (3, 0), (4, 0), (4, 1), (100, 0), (127, 3)])
        } else {
            self.pick(&[(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0), (4, 0)])
        };
        if self.one_in(8) {
            code = self.rng.u8(..);
        }
        let mut mtu = [0, 0, self.pick(&[0, 2, 5]), self.rng.u8(..)];
        if v6 && mtu[2] == 5 {
            // The machine itself may believe it, in one of the labs: no less than the narrowest link, then.
            mtu[3] |= 0x80;
        }
        let mut rest = if (v6 && kind == 2) || (!v6 && (kind, code) == (3, 4)) { mtu } else { [0; 4] };
        let mut content = Content { flags: ACK | PSH, payload: self.payload(), ..Content::default() };
        self.begin_payload(index, &mut content.payload);
        let of_header = if v6 { 40 } else { 20 };
        let mut length = self.pick(&[28, 48, 68, 548, 1232]).max(of_header + 8);
        if self.one_in(15) {
            // Less than RFC 792 promises.
            length = self.rng.usize(of_header - 4..of_header + 8);
        }
        let is_of_end = self.one_in(3);
        let (options, extensions) = self.inner_headers();
        let piece = self.inner_fragment();
        let is_plain = options.is_empty() && extensions.is_empty();
        let extension =
            if self.one_in(5) && is_plain && length >= of_header + 20 { self.extension() } else { Vec::new() };
        let damage = if self.one_in(15) { Some(Damage::Checksum(1 << self.rng.u32(..16))) } else { None };
        let mark = self.mark();
        // Of a packet long ago: what is sent at the same time has none like it.
        let inner_mark = mark ^ 0x8000;
        let flow = &self.flows[index];
        let from = flow.side(by);
        let router = plan::router(self.family, from);
        let mut packets = [0, 1].map(|lab| {
            // As the end that complains has seen it: the packet of the other end, translated.
            let seen_port = if by == End::Client { flow.client_port } else { flow.bound_or_own(lab) };
            let mut inner = flow.packet(by.other(), seen_port, inner_mark, &content);
            inner.hop_limit = 61;
            (inner.src, inner.dst) = match by {
                End::Server => (flow.seen, flow.listen.to),
                End::Client => (flow.listen.address, flow.client),
            };
            inner.options.clone_from(&options);
            inner.extensions.clone_from(&extensions);
            inner.body = at_the_other_end(inner.body, flow.listen_port, flow.to_port(), by);
            inner.pieces = piece.into_iter().collect();
            let [mut bytes] = <[Vec<u8>; 1]>::try_from(inner.ip_packets()).unwrap();
            bytes.truncate(length);
            if !extension.is_empty() {
                // RFC 4884 section 5: after 128 bytes at least, whose number is told.
                bytes.resize(bytes.len().next_multiple_of(8).max(128), 0);
                let (at, unit) = if v6 { (0, 8) } else { (1, 4) };
                rest[at] = (bytes.len() / unit) as u8;
                bytes.extend(&extension);
            }
            let src = if is_of_end { inner.dst } else { router };
            let body = Body::Icmp { kind, code, rest, payload: bytes };
            Packet { damage, ..Packet::new(src, inner.src, mark, body) }
        });
        self.dress(&mut packets);
        Input { from, by, flow: Some(index), packets, ..Input::new(mark, "ICMP error") }
    }

    /// Options or extension headers of the packet inside.
    fn inner_headers(&mut self) -> (Vec<u8>, Vec<(u8, Vec<u8>)>) {
        match (self.one_in(8), self.v6()) {
            (false, _) => (Vec::new(), Vec::new()),
            (true, false) => (self.ip_options(), Vec::new()),
            (true, true) => (Vec::new(), self.extensions()),
        }
    }

    /// Which part of the packet inside it is, where it is one.
    fn inner_fragment(&mut self) -> Option<Piece> {
        let all = usize::MAX;
        match self.rng.u8(..30) {
            0 => Some(Piece { start: 0, end: all, more: true }),
            1 => Some(Piece { start: 8, end: all, more: false }),
            2 if self.v6() => Some(Piece { start: 0, end: all, more: false }),
            _ => None,
        }
    }

    /// RFC 4884 section 7: a header and an object, an MPLS label say.
    fn extension(&mut self) -> Vec<u8> {
        let mut extension = [&[0x20, 0, 0, 0, 0, 8, 1, 1][..], &self.bytes(4)].concat();
        let checksum = !sum(&extension);
        extension[2..4].copy_from_slice(&checksum.to_be_bytes());
        extension
    }
}

/// The ports of a packet after the forwarder: those towards the end that complains.
fn at_the_other_end(mut body: Body, listen_port: u16, to_port: u16, complains: End) -> Body {
    if let Body::Tcp { src, dst, .. } | Body::Udp { src, dst, .. } = &mut body {
        match complains {
            End::Server => *dst = to_port,
            End::Client => *src = listen_port,
        }
    }
    body
}
