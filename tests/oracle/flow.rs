//! The flows that the generator knows: which packets go on with them, and how each lab translates them.

use std::net::IpAddr;

use crate::packet::{ACK, Body, FIN, ICMP, ICMPV6, Packet, RST, SYN, TCP, UDP};
use crate::plan::{self, Listen, Side, Source};
use forwarder_lab::Family;

/// The lower halves of TCP's numbers; the upper are the mark.
const SEQUENCE: u32 = 0x100;
const ACKNOWLEDGED: u32 = 0x200;

/// How far a flow has come, by what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Opening,
    Answered,
    Established,
    /// That side has sent a FIN.
    Half(Side),
    Closed,
    /// By that side.
    Reset(Side),
    /// Only packets went by that no connection has: what netfilter makes of the next is its own business.
    Odd,
}

#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) listen: Listen,
    pub(crate) protocol: u8,
    pub(crate) client: IpAddr,
    /// Or echo identifier; 0 for other protocols.
    pub(crate) client_port: u16,
    pub(crate) listen_port: u16,
    pub(crate) stage: Stage,
    /// The source port that the backend sees, by lab.
    pub(crate) bound: [Option<u16>; 2],
    pub(crate) source: Source,
    /// What acknowledges the backend's latest SYN-ACK.
    pub(crate) acknowledges: u32,
    /// What was sent.
    pub(crate) history: Vec<String>,
}

impl Flow {
    pub(crate) fn is_echo(&self) -> bool {
        matches!(self.protocol, ICMP | ICMPV6)
    }

    /// Whether replies can be made in both labs.
    pub(crate) fn is_bound(&self) -> bool {
        self.bound.iter().all(Option::is_some)
    }

    pub(crate) fn bound_or_own(&self, lab: usize) -> u16 {
        self.bound[lab].unwrap_or(self.client_port)
    }

    pub(crate) fn family(&self) -> Family {
        if self.client.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The address that the backend sees.
    pub(crate) fn seen(&self) -> IpAddr {
        match self.source {
            Source::Masquerade => plan::ours(self.family(), Side::Home),
            Source::Preserve => self.client,
        }
    }

    pub(crate) fn to_port(&self) -> u16 {
        if self.is_echo() { self.client_port } else { self.listen.to_port(self.listen_port) }
    }

    /// A packet of this flow from one of its ends; `port` is the client's as that end sees it.
    pub(crate) fn packet(&self, from: Side, port: u16, mark: u16, content: &Content) -> Packet {
        let ((src, src_port), (dst, dst_port)) = match from {
            Side::Client => ((self.client, port), (self.listen.address, self.listen_port)),
            Side::Home => ((self.listen.to, self.to_port()), (self.seen(), port)),
        };
        let high = u32::from(mark) << 16;
        let body = match self.protocol {
            TCP => Body::Tcp {
                src: src_port,
                dst: dst_port,
                seq: high | SEQUENCE,
                ack: match content.flags & ACK {
                    0 => 0,
                    _ => content.ack.unwrap_or(high | ACKNOWLEDGED),
                },
                flags: content.flags,
                options: content.options.clone(),
                payload: content.payload.clone(),
            },
            UDP => {
                Body::Udp { src: src_port, dst: dst_port, unsummed: content.unsummed, payload: content.payload.clone() }
            }
            ICMP | ICMPV6 => {
                Body::Echo { reply: from == Side::Home, id: port, seq: mark, payload: content.payload.clone() }
            }
            protocol => Body::Other { protocol, payload: content.payload.clone() },
        };
        Packet::new(src, dst, mark, body)
    }

    /// What has become of it with this packet.
    pub(crate) fn advance(&mut self, from: Side, flags: u8, mark: u16) {
        use Side::{Client, Home};
        if from == Home && flags & SYN != 0 {
            self.acknowledges = (u32::from(mark) << 16 | SEQUENCE) + 1;
        }
        self.stage = match (self.stage, from) {
            (_, side) if self.protocol == TCP && flags & RST != 0 => Stage::Reset(side),
            (_, Client) if flags & SYN != 0 && flags & ACK == 0 => Stage::Opening,
            (Stage::Half(first), side) if flags & FIN != 0 && first != side => Stage::Closed,
            (Stage::Answered | Stage::Established, side) if flags & FIN != 0 => Stage::Half(side),
            (Stage::Opening, Home) => Stage::Answered,
            (Stage::Answered, Client) => Stage::Established,
            (stage, _) => stage,
        };
    }
}

/// What varies in the packets of a flow.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    pub(crate) flags: u8,
    /// Where it is not the mark's.
    pub(crate) ack: Option<u32>,
    pub(crate) options: Vec<u8>,
    pub(crate) unsummed: bool,
    pub(crate) payload: Vec<u8>,
}
