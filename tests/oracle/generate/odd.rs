//! What no host sends, or not there: damaged packets, packets out of the blue, from and to strange addresses, with few
//! hops left, too big; ICMP that is neither an echo nor an error.

use super::{Generator, Input};
use crate::flow::{Content, End, Stage};
use crate::packet::{ACK, Body, Damage, FIN, PSH, Packet, RST, SYN, TCP, UDP};
use crate::plan::{self, Side};

impl Generator {
    pub(super) fn broken(&mut self, index: usize) -> Input {
        let protocol = self.flows[index].protocol;
        let by = if self.flows[index].is_bound() { self.pick(&End::BOTH) } else { End::Client };
        let flags = self.pick(&[ACK, ACK | PSH]);
        let content = Content { flags, payload: self.payload(), ..Content::default() };
        let mut input = self.of_flow("broken", index, by, &content);
        let bits = 1 << self.rng.u32(..16);
        let header = if self.v6() { 40 } else { 20 };
        let damage = match self.rng.u8(..10) {
            0 if !self.v6() => Damage::HeaderChecksum(bits),
            1 => Damage::Length(self.rng.i16(1..100)),
            2 => Damage::Length(-self.rng.i16(1..20)),
            3 => Damage::FirstByte(self.pick(&[if self.v6() { 0x45 } else { 0x44 }, 0x55, 0x75, 0x35, 0x05, 0x00])),
            4 if protocol == UDP => Damage::UdpLength(self.pick(&[-9, -8, -1, 1, 20, 2000])),
            4 | 5 if protocol == TCP => Damage::TcpOffset(self.pick(&[0, 1, 4, 15])),
            6 => Damage::Cut(header + self.rng.usize(..20)),
            7 => Damage::Truncated(self.rng.usize(1..header + 20)),
            _ => Damage::Checksum(bits),
        };
        for packet in &mut input.packets {
            packet.damage = Some(damage);
            packet.trailer = 0;
        }
        // It may open a flow in one of the labs, which makes it its own business what follows.
        if !self.flows[index].is_bound() {
            self.flows[index].stage = Stage::Odd;
        }
        input
    }

    /// TCP out of the blue, odd flags, answers to nothing.
    pub(super) fn stray(&mut self) -> Input {
        let index = self.fresh_flow();
        self.flows[index].stage = Stage::Odd;
        // Where the server sees a port of ours, one out of the blue might be another flow's.
        let goes_out = self.flows[index].listen.name == plan::UNHIDDEN;
        let by = if self.flows[index].chooses_port[0] || goes_out { End::Client } else { self.pick(&End::BOTH) };
        let flags = self.pick(&[
            RST,
            RST | ACK,
            SYN | ACK,
            ACK,
            FIN | ACK,
            FIN,
            0,
            SYN | FIN,
            SYN | RST,
            FIN | RST,
            PSH,
            ACK | PSH,
            0x3f,
            0xff,
            SYN | 0xc0,
            SYN | PSH,
            SYN | 0x20,
        ]);
        let content = Content { flags, payload: self.payload(), ..Content::default() };
        self.of_flow("stray", index, by, &content)
    }

    /// From or to addresses, or stations, that nothing is forwarded from or to.
    pub(super) fn strange_addresses(&mut self) -> Input {
        let index = self.fresh_flow();
        self.flows[index].stage = Stage::Odd;
        let content = Content { flags: SYN, payload: self.payload(), ..Content::default() };
        let mut input = self.of_flow("strange", index, End::Client, &content);
        let listen = self.flows[index].listen.address;
        let v4 = ["127.0.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.5", "255.255.255.255", "240.0.0.1", "169.254.1.1"];
        let v6 = ["::1", "::", "ff02::1", "::ffff:192.0.2.1", "2001:db8:1::1", "fe80::1234"];
        let kind = self.rng.u8(..5);
        // What is for a link-local address is forwarded, and comes back seconds later as unreachable; and ours is no
        // strange one.
        let v6 = if kind == 2 { &v6[..4] } else { &v6 };
        let strange = plan::parse(if self.v6() { self.pick(v6) } else { self.pick(&v4) });
        for packet in &mut input.packets {
            packet.options.clear();
            packet.extensions.clear();
        }
        match kind {
            0 => input.to = Some([2, 0, 0, 0, 9, 9]),
            1 => input.to = Some([0xff; 6]),
            2 => input.packets.iter_mut().for_each(|packet| packet.dst = strange),
            3 => input.packets.iter_mut().for_each(|packet| packet.src = listen),
            _ => input.packets.iter_mut().for_each(|packet| packet.src = strange),
        }
        input
    }

    /// With too few hops left, or too big for the way.
    pub(super) fn will_not_get_there(&mut self, index: usize) -> Input {
        if !self.is_settled(index) {
            return self.goes_on(index);
        }
        let by = self.pick(&End::BOTH);
        let mut content = Content { flags: ACK | PSH, payload: self.payload(), ..Content::default() };
        let flow = &self.flows[index];
        let narrows = (flow.side(by), flow.side(by.other())) == (Side::Client, Side::Home);
        let too_big = narrows && self.one_in(2);
        if too_big {
            content.payload = self.bytes(1360);
        }
        let what = if too_big { "too big" } else { "few hops" };
        let mut input = self.of_flow(what, index, by, &content);
        let hop_limit = self.pick(&[0, 1, 1, 2]);
        // What may be cut is cut.
        let df = self.one_in(2);
        for packet in &mut input.packets {
            packet.options.clear();
            packet.extensions.clear();
            if too_big {
                packet.df = df;
            } else {
                packet.hop_limit = hop_limit;
            }
        }
        input
    }

    /// ICMP that is neither an echo nor an error.
    pub(super) fn other_icmp(&mut self) -> Input {
        let (way, client, listen) = self.ends();
        let (v4, v6) = ([9, 10, 14, 15, 17, 18, 42, 200, 250], [130, 138, 139, 144, 160, 200, 254, 255]);
        let kind = if self.v6() { self.pick(&v6) } else { self.pick(&v4) };
        let rest = [self.rng.u8(..), self.rng.u8(..), 0, 0];
        let payload = self.payload();
        let mark = self.mark();
        let packet = Packet::new(client, listen.address, mark, Body::Icmp { kind, code: 0, rest, payload });
        let from = way.sides()[0];
        Input { from, packets: [packet.clone(), packet], ..Input::new(mark, "other ICMP") }
    }
}
