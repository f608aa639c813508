//! Makes up packets: sequences that open flows, answer, close and reuse them, and everything that can be odd or broken about
//! a packet of them.

use std::collections::HashMap;
use std::net::IpAddr;

use fastrand::Rng;
use forwarder_lab::Family;

use crate::flow::{Content, Flow, Stage};
use crate::packet::{ACK, Body, Damage, FIN, GRE, ICMP, ICMPV6, PSH, Packet, RST, SYN, TCP, UDP};
use crate::plan::{self, CLIENTS, Listen, Side, Source, What};

mod error;
mod headers;

/// The first flow carries end marks.
const MARKER: usize = 0;
/// How many of the latest flows go on.
const ACTIVE: usize = 120;

/// One packet (or the fragments of one), as it is sent in each lab.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) mark: u16,
    pub(crate) from: Side,
    /// What it is, in a word or two.
    pub(crate) what: &'static str,
    /// The flow that it belongs to.
    pub(crate) flow: Option<usize>,
    /// By lab: a reply goes to the port that the lab chose.
    pub(crate) packets: [Packet; 2],
    /// To this station instead of to the forwarder.
    pub(crate) to: Option<[u8; 6]>,
}

pub(crate) struct Generator {
    pub(crate) rng: Rng,
    family: Family,
    source: Source,
    listens: Vec<Listen>,
    pub(crate) flows: Vec<Flow>,
    known: HashMap<(IpAddr, u16, IpAddr, u16, u8), usize>,
    next_mark: u16,
}

impl Generator {
    pub(crate) fn new(seed: u64, family: Family, source: Source) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            family,
            source,
            listens: plan::listens(family, source),
            flows: Vec::new(),
            known: HashMap::new(),
            next_mark: 0,
        }
    }

    pub(crate) const fn v6(&self) -> bool {
        matches!(self.family, Family::V6)
    }

    pub(crate) fn mark(&mut self) -> u16 {
        self.next_mark = if self.next_mark == u16::MAX { 1 } else { self.next_mark + 1 };
        self.next_mark
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(..of.len())]
    }

    pub(crate) fn one_in(&mut self, of: u32) -> bool {
        self.rng.u32(..of) == 0
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.rng.u8(..)).take(length).collect()
    }

    /// The flow that carries end marks.
    pub(crate) fn marker(&mut self) -> usize {
        let listen = self.listens[0];
        let client = plan::client(self.family, plan::MARKER);
        assert_eq!(self.flow(listen, UDP, client, 7777, 80), MARKER);
        self.flows[MARKER].stage = Stage::Established;
        MARKER
    }

    fn flow(&mut self, listen: Listen, protocol: u8, client: IpAddr, client_port: u16, listen_port: u16) -> usize {
        let key = (client, client_port, listen.address, listen_port, protocol);
        let source = self.source;
        *self.known.entry(key).or_insert_with(|| {
            self.flows.push(Flow {
                listen,
                protocol,
                client,
                client_port,
                listen_port,
                stage: Stage::Closed,
                bound: [None; 2],
                source,
                acknowledges: 0,
                history: Vec::new(),
            });
            self.flows.len() - 1
        })
    }

    /// A flow of which nothing is known yet, or, sometimes, one of before.
    fn some_flow(&mut self) -> usize {
        let listen = self.listens[self.rng.usize(..self.listens.len())];
        let icmp = if self.v6() { ICMPV6 } else { ICMP };
        let (protocol, listen_port) = match listen.what {
            What::Ports { first, count, .. } => (self.pick(&[TCP, TCP, UDP]), first + self.rng.u16(..count)),
            What::Echo => (icmp, 0),
            What::Everything => {
                let protocol = self.pick(&[TCP, UDP, icmp, GRE, 50, 89, 253]);
                let port = self.pick(&[22, 53, 443, 5060, 9000, 60_000]);
                (protocol, if matches!(protocol, TCP | UDP) { port } else { 0 })
            }
        };
        let client = plan::client(self.family, self.rng.u8(..CLIENTS));
        let client_port = match self.rng.u8(..10) {
            _ if !matches!(protocol, TCP | UDP | ICMP | ICMPV6) => 0,
            0 => self.pick(&[53, 123, 500, 1023]),
            // Few enough that clients have the same one.
            1..4 => 5000 + self.rng.u16(..20),
            4..8 => self.rng.u16(1024..32_768),
            _ => self.rng.u16(32_768..),
        };
        self.flow(listen, protocol, client, client_port, listen_port)
    }

    /// A flow of which no packet was ever sent.
    fn fresh_flow(&mut self) -> usize {
        loop {
            let (before, index) = (self.flows.len(), self.some_flow());
            if index == before {
                return index;
            }
        }
    }

    /// One of the latest flows, if there is one that both labs have opened.
    fn active(&mut self) -> Option<usize> {
        let first = self.flows.len().saturating_sub(ACTIVE);
        (0..8)
            .map(|_| self.rng.usize(first..self.flows.len().max(first + 1)))
            .find(|index| self.flows.get(*index).is_some_and(|flow| flow.is_bound() && flow.stage != Stage::Odd))
    }

    /// The next so many packets.
    pub(crate) fn batch(&mut self, count: usize) -> Vec<Input> {
        // A reply can only be made when the packet before it has come out.
        let mut opened = Vec::new();
        let mut inputs = Vec::new();
        while inputs.len() < count {
            let kind = self.rng.u32(..100);
            let input = match kind {
                0..22 => {
                    let flow = self.some_flow();
                    let is_over = matches!(self.flows[flow].stage, Stage::Closed | Stage::Reset(_));
                    if !is_over || opened.contains(&flow) || flow == MARKER {
                        continue;
                    }
                    opened.push(flow);
                    self.opens(flow)
                }
                22..76 => {
                    let Some(flow) = self.active() else { continue };
                    self.goes_on(flow)
                }
                76..84 => {
                    let flow = match self.active() {
                        Some(flow) if !self.one_in(4) && self.is_settled(flow) => flow,
                        _ => self.fresh_flow(),
                    };
                    self.broken(flow)
                }
                84..88 => self.stray(),
                88..91 => self.strange_addresses(),
                91..95 => {
                    let Some(flow) = self.active() else { continue };
                    self.will_not_get_there(flow)
                }
                95..97 => {
                    let Some(flow) = self.active() else { continue };
                    self.about_a_flow(flow)
                }
                97 => {
                    let Some(flow) = self.active() else { continue };
                    self.fragments(flow)
                }
                _ => self.other_icmp(),
            };
            inputs.push(input);
        }
        inputs
    }

    /// A packet of a flow with random unimportant headers.
    fn of_flow(&mut self, what: &'static str, flow: usize, from: Side, content: &Content) -> Input {
        let mark = self.mark();
        self.of_flow_marked(what, flow, from, content, mark)
    }

    fn of_flow_marked(&mut self, what: &'static str, flow: usize, from: Side, content: &Content, mark: u16) -> Input {
        let mut content = content.clone();
        self.begin_payload(flow, &mut content.payload);
        let mut packets = [0, 1].map(|lab| {
            let flow = &self.flows[flow];
            let port = if from == Side::Client { flow.client_port } else { flow.bound_or_own(lab) };
            flow.packet(from, port, mark, &content)
        });
        self.dress(&mut packets);
        self.flows[flow].history.push(format!("{what} from {from:?} {mark:#06x}"));
        Input { mark, from, what, flow: Some(flow), packets, to: None }
    }

    fn payload(&mut self) -> Vec<u8> {
        let length = match self.rng.u8(..20) {
            0..3 => 0,
            3..6 => self.rng.usize(1..=3),
            6..17 => self.rng.usize(4..120),
            // With all headers it still fits.
            _ => self.rng.usize(120..1200),
        };
        self.bytes(length)
    }

    /// The first bytes of GRE (RFC 2784) without options, where the flow is one. (netfilter drops what is shorter than eight.)
    fn begin_payload(&self, flow: usize, payload: &mut Vec<u8>) {
        if self.flows[flow].protocol == GRE {
            payload.splice(0..0, [0, 0, 8, 0, 0x45, 0, 0, 0]);
        }
    }

    fn opens(&mut self, flow: usize) -> Input {
        let is_tcp = self.flows[flow].protocol == TCP;
        let content = Content {
            flags: if is_tcp { SYN } else { 0 },
            ack: None,
            options: if is_tcp { self.syn_options() } else { Vec::new() },
            unsummed: !self.v6() && self.one_in(5),
            payload: if is_tcp { Vec::new() } else { self.payload() },
        };
        let mark = self.mark();
        self.flows[flow].advance(Side::Client, content.flags, mark);
        self.flows[flow].bound = [None; 2];
        self.of_flow_marked("opens", flow, Side::Client, &content, mark)
    }

    fn goes_on(&mut self, index: usize) -> Input {
        use Side::{Client, Home};
        let stage = self.flows[index].stage;
        let either = self.pick(&[Client, Home]);
        let dice = self.rng.u32(..100);
        let (what, from, flags) = if self.flows[index].protocol == TCP {
            match (stage, dice) {
                (Stage::Opening, 0..70) => ("SYN-ACK", Home, SYN | ACK),
                (Stage::Opening, 70..92) => ("SYN again", Client, SYN),
                (Stage::Opening, _) => ("refused", Home, RST | ACK),
                (Stage::Answered, 0..80) => ("ACK", Client, ACK),
                (Stage::Answered, _) => ("SYN-ACK again", Home, SYN | ACK),
                (Stage::Established, 0..84) => ("data", either, ACK | PSH),
                (Stage::Established, 84..94) => ("FIN", either, FIN | ACK),
                (Stage::Established, _) => ("RST", either, RST | ACK),
                (Stage::Half(Client), 0..60) => ("data after FIN", Home, ACK | PSH),
                (Stage::Half(Home), 0..60) => ("data after FIN", Client, ACK | PSH),
                (Stage::Half(Client), _) => ("second FIN", Home, FIN | ACK),
                (Stage::Half(Home), _) => ("second FIN", Client, FIN | ACK),
                (Stage::Closed, 0..60) => ("last ACK", either, ACK),
                (Stage::Closed | Stage::Reset(_), _) => ("reuse", Client, SYN),
                (Stage::Odd, _) => unreachable!("odd flows do not go on"),
            }
        } else if matches!(stage, Stage::Opening) {
            if dice < 70 { ("answer", Home, 0) } else { ("again", Client, 0) }
        } else {
            ("datagram", either, 0)
        };
        let content = Content {
            flags,
            // The first has to be right; by the others, what comes back is recognised.
            ack: (what == "ACK").then_some(self.flows[index].acknowledges),
            options: if flags & SYN != 0 { self.syn_options() } else { self.tcp_options() },
            unsummed: !self.v6() && self.one_in(5),
            payload: if flags & (SYN | RST) != 0 || what == "last ACK" { Vec::new() } else { self.payload() },
        };
        let mark = self.mark();
        self.flows[index].advance(from, flags, mark);
        if what == "reuse" {
            // It may get another port.
            self.flows[index].bound = [None; 2];
        }
        self.of_flow_marked(what, index, from, &content, mark)
    }

    fn broken(&mut self, index: usize) -> Input {
        let protocol = self.flows[index].protocol;
        let from = if self.flows[index].is_bound() { self.pick(&[Side::Client, Side::Home]) } else { Side::Client };
        let flags = self.pick(&[ACK, ACK | PSH]);
        let content = Content { flags, payload: self.payload(), ..Content::default() };
        let mut input = self.of_flow("broken", index, from, &content);
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
    fn stray(&mut self) -> Input {
        let index = self.fresh_flow();
        self.flows[index].stage = Stage::Odd;
        // Where the backend sees our address, a port out of the blue might be another flow's.
        let from =
            if self.source == Source::Masquerade { Side::Client } else { self.pick(&[Side::Client, Side::Home]) };
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
        self.of_flow("stray", index, from, &content)
    }

    /// From or to addresses, or stations, that nothing is forwarded from or to.
    fn strange_addresses(&mut self) -> Input {
        let index = self.fresh_flow();
        self.flows[index].stage = Stage::Odd;
        let content = Content { flags: SYN, payload: self.payload(), ..Content::default() };
        let mut input = self.of_flow("strange", index, Side::Client, &content);
        let listen = self.flows[index].listen.address;
        let v4 = ["127.0.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.5", "255.255.255.255", "240.0.0.1", "169.254.1.1"];
        let v6 = ["::1", "::", "ff02::1", "::ffff:192.0.2.1", "2001:db8:1::1", "fe80::1234"];
        let kind = self.rng.u8(..5);
        // What is for a link-local address is forwarded, and comes back seconds later as unreachable.
        let v6 = if kind == 2 { &v6[..5] } else { &v6 };
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

    /// Whether data can go both ways.
    fn is_settled(&self, index: usize) -> bool {
        self.flows[index].protocol != TCP || self.flows[index].stage == Stage::Established
    }

    /// With too few hops left, or too big for the way.
    fn will_not_get_there(&mut self, index: usize) -> Input {
        if !self.is_settled(index) {
            return self.goes_on(index);
        }
        let from = self.pick(&[Side::Client, Side::Home]);
        let mut content = Content { flags: ACK | PSH, payload: self.payload(), ..Content::default() };
        let too_big = from == Side::Client && self.one_in(2);
        if too_big {
            content.payload = self.bytes(1360);
        }
        let what = if too_big { "too big" } else { "few hops" };
        let mut input = self.of_flow(what, index, from, &content);
        let hop_limit = self.pick(&[0, 1, 1, 2]);
        for packet in &mut input.packets {
            packet.options.clear();
            packet.extensions.clear();
            if too_big {
                packet.df = true;
            } else {
                packet.hop_limit = hop_limit;
            }
        }
        input
    }

    /// A datagram in fragments, in their order.
    fn fragments(&mut self, index: usize) -> Input {
        if !self.is_settled(index) {
            return self.goes_on(index);
        }
        let from = self.pick(&[Side::Client, Side::Home]);
        let length = self.pick(&[200, 1500, 4000]) + self.rng.usize(..1000);
        let unsummed = !self.v6() && self.one_in(5);
        let content = Content { flags: ACK | PSH, unsummed, payload: self.bytes(length), ..Content::default() };
        let mut input = self.of_flow("fragments", index, from, &content);
        let mut cuts = vec![self.rng.usize(8..150) * 8];
        while let Some(last) = cuts.last().filter(|last| **last < length) {
            cuts.push(last + self.rng.usize(20..150) * 8);
        }
        for packet in &mut input.packets {
            packet.df = false;
            packet.options.clear();
            packet.extensions.clear();
            packet.cuts.clone_from(&cuts);
        }
        input
    }

    /// ICMP that is neither an echo nor an error.
    fn other_icmp(&mut self) -> Input {
        let listen = self.listens[self.rng.usize(..self.listens.len())];
        let client = plan::client(self.family, self.rng.u8(..CLIENTS));
        let (v4, v6) = ([9, 10, 14, 15, 17, 18, 42, 200, 250], [100, 130, 138, 139, 144, 160, 200, 254, 255]);
        let kind = if self.v6() { self.pick(&v6) } else { self.pick(&v4) };
        let rest = [self.rng.u8(..), self.rng.u8(..), 0, 0];
        let payload = self.payload();
        let mark = self.mark();
        let packet = Packet::new(client, listen.address, mark, Body::Icmp { kind, code: 0, rest, payload });
        Input { mark, from: Side::Client, what: "other ICMP", flow: None, packets: [packet.clone(), packet], to: None }
    }
}
