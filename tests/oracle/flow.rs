//! The flows that the generator knows: which packets go on with them, and how each lab translates them.

use std::net::IpAddr;

use crate::packet::{ACK, Body, FIN, ICMP, ICMPV6, Packet, RST, SYN, TCP, UDP};
use crate::plan::{Listen, Side};

/// The lower halves of TCP's numbers; the upper are the mark.
const SEQUENCE: u32 = 0x100;
const ACKNOWLEDGED: u32 = 0x200;

/// One end of a flow: who opened it, and who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    Client,
    Server,
}

impl End {
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// How far a flow has come, by what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Opening,
    /// Both ends have sent a SYN.
    Crossed,
    Answered,
    Established,
    /// That end has sent a FIN.
    Half(End),
    Closed,
    /// By that end, of what was a connection.
    Reset(End),
    /// By the server, instead of one.
    Refused,
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
    /// The source address that the server sees.
    pub(crate) seen: IpAddr,
    /// Whether the source port that the server sees is chosen, by lab. (netfilter does so wherever it sees two flows in one.)
    pub(crate) chooses_port: [bool; 2],
    /// That port, by lab.
    pub(crate) bound: [Option<u16>; 2],
    /// The one before, which packets under way have.
    pub(crate) bound_before: [Option<u16>; 2],
    /// It opens again, perhaps with another port.
    pub(crate) reopens: [bool; 2],
    /// On which side the client is, and the server.
    pub(crate) sides: [Side; 2],
    /// What acknowledges the server's latest SYN.
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
        self.bound.iter().all(Option::is_some) && self.reopens == [false; 2]
    }

    /// Whether a lab has, or had, this port for it.
    pub(crate) fn is_bound_to(&self, lab: usize, port: Option<u16>) -> bool {
        port.is_some() && (port == self.bound[lab] || port == self.bound_before[lab])
    }

    pub(crate) fn bound_or_own(&self, lab: usize) -> u16 {
        self.bound[lab].unwrap_or(self.client_port)
    }

    /// Where an end is.
    pub(crate) const fn side(&self, end: End) -> Side {
        match end {
            End::Client => self.sides[0],
            End::Server => self.sides[1],
        }
    }

    pub(crate) fn to_port(&self) -> u16 {
        if self.is_echo() { self.client_port } else { self.listen.to_port(self.listen_port) }
    }

    /// A packet of this flow from one of its ends; `port` is the client's as that end sees it.
    pub(crate) fn packet(&self, by: End, port: u16, mark: u16, content: &Content) -> Packet {
        let ((src, src_port), (dst, dst_port)) = match by {
            End::Client => ((self.client, port), (self.listen.address, self.listen_port)),
            End::Server => ((self.listen.to, self.to_port()), (self.seen, port)),
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
                Body::Echo { reply: by == End::Server, id: port, seq: mark, payload: content.payload.clone() }
            }
            protocol => Body::Other { protocol, payload: content.payload.clone() },
        };
        Packet::new(src, dst, mark, body)
    }

    /// What has become of it with this packet.
    pub(crate) fn advance(&mut self, by: End, flags: u8, mark: u16) {
        use End::{Client, Server};
        if by == Server && flags & SYN != 0 {
            self.acknowledges = (u32::from(mark) << 16 | SEQUENCE) + 1;
        }
        self.stage = match (self.stage, by) {
            (Stage::Opening, Server) if self.protocol == TCP && flags & RST != 0 => Stage::Refused,
            (_, end) if self.protocol == TCP && flags & RST != 0 => Stage::Reset(end),
            (Stage::Opening, Server) if flags & (SYN | ACK) == SYN => Stage::Crossed,
            (Stage::Crossed, Client) => Stage::Crossed,
            (Stage::Established, Client) if flags & SYN != 0 => Stage::Established,
            (_, Client) if flags & (SYN | ACK) == SYN => Stage::Opening,
            (Stage::Half(first), end) if flags & FIN != 0 && first != end => Stage::Closed,
            (Stage::Answered | Stage::Established, end) if flags & FIN != 0 => Stage::Half(end),
            (Stage::Opening | Stage::Crossed, Server) => Stage::Answered,
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
