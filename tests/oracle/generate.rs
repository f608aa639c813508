//! Makes up packets: sequences that open flows, answer, close and reuse them, and everything that can be odd or broken about
//! a packet of them.

use std::collections::HashMap;
use std::net::IpAddr;

use fastrand::Rng;
use forwarder_lab::Family;

use crate::flow::{Content, End, Flow, Stage};
use crate::packet::{Body, GRE, ICMP, ICMPV6, Packet, TCP, UDP};
use crate::plan::{self, CLIENTS, Listen, MAPPED, NEIGHBOURS, Side, Source, Way, What};

mod error;
mod fragments;
mod headers;
mod odd;
mod sequences;

/// The first flow carries end marks.
const MARKER: usize = 0;
/// How many of the latest flows go on.
const ACTIVE: usize = 120;

/// One packet (or the fragments of one), as it is sent in each lab.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) mark: u16,
    /// Where it is sent.
    pub(crate) from: Side,
    /// By which end of its flow.
    pub(crate) by: End,
    /// What it is, in a word or two.
    pub(crate) what: &'static str,
    /// The flow that it belongs to.
    pub(crate) flow: Option<usize>,
    /// By lab: a reply goes to the port that the lab chose.
    pub(crate) packets: [Packet; 2],
    /// To this station instead of to the forwarder.
    pub(crate) to: Option<[u8; 6]>,
    /// How many inputs later each of the fragments is sent.
    pub(crate) delays: Vec<usize>,
}

pub(crate) struct Generator {
    pub(crate) rng: Rng,
    family: Family,
    pub(crate) source: Source,
    listens: Vec<Listen>,
    world: Vec<Listen>,
    pub(crate) flows: Vec<Flow>,
    known: HashMap<(IpAddr, u16, IpAddr, u16, u8), usize>,
    next_mark: u16,
}

impl Input {
    /// Of the client's side, without a flow, and without a packet.
    fn new(mark: u16, what: &'static str) -> Self {
        let nowhere = plan::parse("0.0.0.0");
        let packet = Packet::new(nowhere, nowhere, mark, Body::Other { protocol: 0, payload: Vec::new() });
        Self {
            mark,
            from: Side::Client,
            by: End::Client,
            what,
            flow: None,
            packets: [packet.clone(), packet],
            to: None,
            delays: Vec::new(),
        }
    }
}

impl Generator {
    pub(crate) fn new(seed: u64, family: Family, source: Source) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            family,
            source,
            listens: plan::listens(family, source),
            world: plan::world(family),
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
        assert_eq!(self.flow(Way::Inward, listen, UDP, client, 7777, 80), MARKER);
        self.flows[MARKER].stage = Stage::Established;
        MARKER
    }

    fn flow(&mut self, way: Way, listen: Listen, protocol: u8, client: IpAddr, client_port: u16, port: u16) -> usize {
        let key = (client, client_port, listen.address, port, protocol);
        let (seen, chooses_port) = plan::seen(self.family, self.source, way, &listen, client);
        *self.known.entry(key).or_insert_with(|| {
            self.flows.push(Flow {
                listen,
                protocol,
                client,
                client_port,
                listen_port: port,
                stage: Stage::Closed,
                seen,
                chooses_port,
                bound: [None; 2],
                bound_before: [None; 2],
                reopens: [false; 2],
                sides: way.sides(),
                acknowledges: 0,
                history: Vec::new(),
            });
            self.flows.len() - 1
        })
    }

    /// Who opens a flow, and to where.
    fn ends(&mut self) -> (Way, IpAddr, Listen) {
        let dice = self.rng.u8(..100);
        let way = match self.source {
            _ if dice < 10 => Way::Hairpin,
            Source::Prefix if dice < 45 => Way::Outward,
            Source::Outgoing if dice < 65 => Way::Outward,
            _ => Way::Inward,
        };
        let behind = if self.source == Source::Prefix {
            plan::inner(self.family, self.rng.u8(..MAPPED))
        } else {
            plan::neighbour(self.family, self.rng.u8(..NEIGHBOURS))
        };
        let client = if way == Way::Inward { plan::client(self.family, self.rng.u8(..CLIENTS)) } else { behind };
        let listen = if self.source == Source::Outgoing && dice >= 95 {
            let unhidden = plan::unhidden(self.family);
            unhidden[self.rng.usize(..unhidden.len())]
        } else if way == Way::Outward {
            self.world[self.rng.usize(..self.world.len())]
        } else {
            self.listens[self.rng.usize(..self.listens.len())]
        };
        (way, client, listen)
    }

    /// A flow of which nothing is known yet, or, sometimes, one of before.
    fn some_flow(&mut self) -> usize {
        let (way, client, listen) = self.ends();
        let icmp = if self.v6() { ICMPV6 } else { ICMP };
        let (protocol, listen_port) = match listen.what {
            What::Ports { first, count, .. } => (self.pick(&[TCP, TCP, UDP]), first + self.rng.u16(..count)),
            What::Echo => (icmp, 0),
            What::Everything => {
                let protocol = self.pick(&[TCP, TCP, UDP, UDP, icmp, icmp, GRE, 50, 89, 253]);
                let port = self.pick(&[22, 53, 443, 5060, 9000, 60_000]);
                (protocol, if matches!(protocol, TCP | UDP) { port } else { 0 })
            }
        };
        let client_port = match self.rng.u8(..10) {
            _ if !matches!(protocol, TCP | UDP | ICMP | ICMPV6) => 0,
            0 => self.pick(&[53, 123, 500, 1023]),
            // Few enough that clients have the same one.
            1..4 => 5000 + self.rng.u16(..20),
            4..8 => self.rng.u16(1024..32_768),
            _ => self.rng.u16(32_768..),
        };
        self.flow(way, listen, protocol, client, client_port, listen_port)
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
        let mut inputs: Vec<Input> = Vec::new();
        while inputs.len() < count {
            let kind = self.rng.u32(..100);
            let input = match kind {
                0..22 => {
                    let flow = self.some_flow();
                    let is_over = matches!(self.flows[flow].stage, Stage::Closed | Stage::Reset(_) | Stage::Refused);
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
                97 | 98 => {
                    let Some(flow) = self.active() else { continue };
                    self.fragments(flow)
                }
                _ => self.other_icmp(),
            };
            inputs.push(input);
        }
        inputs
    }

    /// Whether data can go both ways.
    fn is_settled(&self, index: usize) -> bool {
        self.flows[index].protocol != TCP || self.flows[index].stage == Stage::Established
    }

    /// A packet of a flow with random unimportant headers.
    fn of_flow(&mut self, what: &'static str, flow: usize, by: End, content: &Content) -> Input {
        let mark = self.mark();
        self.of_flow_marked(what, flow, by, content, mark)
    }

    fn of_flow_marked(&mut self, what: &'static str, flow: usize, by: End, content: &Content, mark: u16) -> Input {
        let mut content = content.clone();
        self.begin_payload(flow, &mut content.payload);
        if self.flows[flow].protocol == UDP && !content.unsummed && content.payload.len() >= 2 && self.one_in(20) {
            self.sum_to_zero(flow, by, mark, &mut content);
        }
        let mut packets = [0, 1].map(|lab| {
            let flow = &self.flows[flow];
            let port = if by == End::Client { flow.client_port } else { flow.bound_or_own(lab) };
            flow.packet(by, port, mark, &content)
        });
        self.dress(&mut packets);
        let flow_entry = &mut self.flows[flow];
        flow_entry.history.push(format!("{what} by {by:?} {mark:#06x}"));
        Input { from: flow_entry.side(by), by, flow: Some(flow), packets, ..Input::new(mark, what) }
    }

    /// Gives a datagram a payload so that its checksum computes to zero, before or after the translation.
    fn sum_to_zero(&mut self, flow: usize, by: End, mark: u16, content: &mut Content) {
        content.payload[..2].copy_from_slice(&[0, 0]);
        let lab = self.rng.usize(..2);
        let after = self.rng.bool();
        let flow = &self.flows[flow];
        let port = if after == (by == End::Client) { flow.bound_or_own(lab) } else { flow.client_port };
        let mut packet = flow.packet(by, port, mark, content);
        if after {
            (packet.src, packet.dst) = match by {
                End::Client => (flow.seen, flow.listen.to),
                End::Server => (flow.listen.address, flow.client),
            };
            if let Body::Udp { src, dst, .. } = &mut packet.body {
                match by {
                    End::Client => *dst = flow.to_port(),
                    End::Server => *src = flow.listen_port,
                }
            }
        }
        content.payload[..2].copy_from_slice(&packet.right_checksum().to_be_bytes());
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
}
