//! From bytes to what a packet is: its addresses, ports, and where its headers stand.
//!
//! Two ways to the same [`Parsed`]: [`Family::plain`] knows only the common shape (no options, no extension
//! headers), with every offset a constant; [`Family::walk`] steps over options and extension headers, bounded.
//! XDP takes the first and leaves the rest to TC.

pub mod fragment;
mod ipv4;
mod ipv6;
mod options;
mod transport;

use crate::{
    abi::{DatagramKey, FlowKey, Rewrite},
    address::Address,
    packet::Packet,
    steer::Addressed,
    verdict::Outcome,
    wire::protocol,
};
use fragment::Fragment;
pub(crate) use ipv6::{MOST_EXTENSION_HEADERS, is_extension, words};
pub use transport::{TcpFields, Transport};

/// A well-formed packet with a transport header: whole, or the first fragment of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed<A> {
    /// Addresses, ports and protocol.
    pub key: FlowKey<A>,
    /// What is inside.
    pub transport: Transport,
    /// More of a TCP header.
    pub tcp: TcpFields,
    /// Where the transport header starts. Use [`Self::transport_at`].
    pub transport_offset: usize,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Length of the IP packet by its own header, in bytes.
    pub length: u32,
    /// Whether more fragments of its datagram follow.
    pub is_first_fragment: bool,
    /// With `is_first_fragment`: which datagram of its sender it is, as loaded from the wire. Else 0.
    pub identification: u32,
}

/// No header of a packet that is forwarded starts further in: a power of two less one.
pub const LAST_OFFSET: usize = 0x1fff;

impl<A> Parsed<A> {
    /// Where the transport header starts. The verifier does not remember what the parser made sure of: it sees it here.
    #[inline(always)]
    pub const fn transport_at(&self) -> usize {
        self.transport_offset & LAST_OFFSET
    }

    /// Whether the source port (or echo identifier) may be changed.
    #[inline(always)]
    pub const fn source_port_is_ours_to_choose(&self) -> bool {
        matches!(self.transport, Transport::Tcp | Transport::Udp | Transport::EchoRequest)
    }

    /// Whether a checksum field of 0 is none (RFC 768; UDP-Lite's is never 0, RFC 3828 section 3.1). DCCP's is a sum like
    /// any other (RFC 4340 section 9.1).
    #[inline(always)]
    pub const fn zero_is_no_checksum(&self) -> bool {
        matches!(self.transport, Transport::Udp) && self.protocol() != protocol::DCCP
    }

    /// The protocol number.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.key.protocol as u8
    }
}

/// One of the two IP versions: how its packets are read and how its header is rewritten.
pub trait Family {
    /// Its addresses.
    type Address: Address;
    /// Its ethertype, as loaded from the wire.
    const ETHERTYPE: u16;
    /// The length of its header, without options and extension headers.
    const HEADER: usize;

    /// Reads a packet of the common shape: no IP options, no extension headers, no fragment, no ICMP but echo.
    ///
    /// # Errors
    /// [`Outcome::ToTc`] when only [`Self::walk`] can tell; otherwise why the packet is not forwarded.
    fn plain(packet: &impl Packet, network: usize) -> Result<Parsed<Self::Address>, Outcome>;

    /// Reads any packet, stepping over options and a bounded number of extension headers.
    ///
    /// # Errors
    /// Why the packet is not forwarded.
    fn walk(packet: &impl Packet, network: usize) -> Result<Parsed<Self::Address>, Outcome>;

    /// Reads a fragment: what [`Self::walk`] calls [`Outcome::Fragment`].
    ///
    /// # Errors
    /// Why it is not looked at any further.
    fn fragment(packet: &impl Packet, network: usize) -> Result<Fragment<Self::Address>, Outcome>;

    /// The datagram that a first fragment begins.
    fn datagram(first: &Parsed<Self::Address>) -> DatagramKey<Self::Address>;

    /// Reads what the way of a packet depends on, caring for nothing beyond it; `None` where that is not there.
    fn addressed(packet: &impl Packet, network: usize) -> Option<Addressed<Self::Address>>;

    /// Rewrites the network header: addresses, one hop less, and the header checksum where there is one.
    /// `None` and nothing written when the header is not there.
    fn rewrite(packet: &mut impl Packet, network: usize, rewrite: &Rewrite<Self::Address>) -> Option<()>;

    /// Whether echo messages of this family are covered by a pseudo-header (ICMPv6: RFC 4443 section 2.3).
    const ECHO_HAS_PSEUDO_HEADER: bool;
}

/// IPv4.
pub struct Ipv4;
/// IPv6.
pub struct Ipv6;

#[cfg(test)]
mod tests;
