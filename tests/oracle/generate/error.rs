//! ICMP errors about packets of flows, from the ends and from routers on the way.

use super::{Generator, Input};
use crate::flow::Content;
use crate::packet::{ACK, Body, PSH, Packet};
use crate::plan::{self, Side};

impl Generator {
    /// An error about a packet that one end has received, or that got lost just before.
    pub(super) fn about_a_flow(&mut self, index: usize) -> Input {
        let from = self.pick(&[Side::Client, Side::Home]);
        let v6 = self.v6();
        let (kind, code) = if v6 {
            self.pick(&[(1, 0), (1, 1), (1, 3), (1, 4), (2, 0), (3, 0), (4, 0), (4, 1)])
        } else {
            self.pick(&[(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0), (4, 0)])
        };
        let rest = if (v6 && kind == 2) || (!v6 && (kind, code) == (3, 4)) { [0, 0, 5, 20] } else { [0; 4] };
        let mut content = Content { flags: ACK | PSH, payload: self.payload(), ..Content::default() };
        self.begin_payload(index, &mut content.payload);
        let length = self.pick(&[28, 48, 68, 548, 1232]);
        let ends_at = self.one_in(3);
        let router = plan::parse(match (v6, from) {
            (false, Side::Client) => "192.0.2.254",
            (false, Side::Home) => "10.8.0.77",
            (true, Side::Client) => "2001:db8:2::fe",
            (true, Side::Home) => "fd08::77",
        });
        let mark = self.mark();
        let inner_mark = self.rng.u16(..);
        let flow = &self.flows[index];
        let other = if from == Side::Client { Side::Home } else { Side::Client };
        let mut packets = [0, 1].map(|lab| {
            // As the end that complains has seen it: the packet of the other end, translated.
            let seen_port = if from == Side::Client { flow.client_port } else { flow.bound_or_own(lab) };
            let mut inner = flow.packet(other, seen_port, inner_mark, &content);
            inner.hop_limit = 61;
            (inner.src, inner.dst) = match from {
                Side::Home => (flow.seen(), flow.listen.to),
                Side::Client => (flow.listen.address, flow.client),
            };
            inner.body = at_the_other_end(inner.body, flow.listen_port, flow.to_port(), from);
            let [mut bytes] = <[Vec<u8>; 1]>::try_from(inner.ip_packets()).unwrap();
            bytes.truncate(length.max(if v6 { 48 } else { 28 }));
            let src = if ends_at { inner.dst } else { router };
            Packet::new(src, inner.src, mark, Body::Icmp { kind, code, rest, payload: bytes })
        });
        self.dress(&mut packets);
        Input { mark, from, what: "ICMP error", flow: Some(index), packets, to: None }
    }
}

/// The ports of a packet after the forwarder: those towards the end that complains.
fn at_the_other_end(mut body: Body, listen_port: u16, to_port: u16, complains: Side) -> Body {
    if let Body::Tcp { src, dst, .. } | Body::Udp { src, dst, .. } = &mut body {
        match complains {
            Side::Home => *dst = to_port,
            Side::Client => *src = listen_port,
        }
    }
    body
}
