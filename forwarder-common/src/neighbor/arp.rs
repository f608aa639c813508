//! ARP over Ethernet (RFC 826), with what RFC 5227 says of probes and announcements.

use super::{Answerable, Arp, Mac, Question, Resolution, is_station, link_header};
use crate::{
    address::{Address, V4},
    checksum::Delta,
    packet::Packet,
    wire::{arp, ethernet, icmp, ipv4, protocol},
};

impl Resolution for Arp {
    type Address = V4;

    #[inline(always)]
    fn read(packet: &impl Packet) -> Option<Question<V4>> {
        let header = packet.read::<{ arp::SENDER_MAC }>(ethernet::LEN)?;
        if header != arp::REQUEST {
            return None;
        }
        let mac: Mac = packet.read(ethernet::LEN + arp::SENDER_MAC)?;
        let asker = u32::from_ne_bytes(packet.read(ethernet::LEN + arp::SENDER)?);
        let target = u32::from_ne_bytes(packet.read(ethernet::LEN + arp::TARGET)?);
        // RFC 5227 section 2.1.1: a probe has no sender. Section 2.3: who asks for its own address tells of it, and asks
        // nothing.
        let may_ask = asker == 0 || !asker.is_martian_source();
        (may_ask && asker != target && !target.is_martian_source() && is_station(mac)).then_some(Question {
            target,
            asker,
            mac,
        })
    }

    /// RFC 826: the same frame, with its ends swapped and the missing address filled in.
    #[inline(always)]
    fn answer(packet: &mut impl Answerable, question: &Question<V4>, mac: Mac, _ours: V4) -> Option<()> {
        let [h0, h1, p0, p1, hardware, protocol, ..] = arp::REQUEST;
        let [o0, o1] = arp::REPLY_OPERATION.to_be_bytes();
        packet.write(0, link_header(question.mac, mac, ethernet::ARP))?;
        packet.write(ethernet::LEN, [h0, h1, p0, p1, hardware, protocol, o0, o1])?;
        packet.write(ethernet::LEN + arp::SENDER_MAC, mac)?;
        packet.write(ethernet::LEN + arp::SENDER, question.target.to_ne_bytes())?;
        packet.write(ethernet::LEN + arp::TARGET_MAC, question.mac)?;
        packet.write(ethernet::LEN + arp::TARGET, question.asker.to_ne_bytes())
    }

    /// An echo reply that nobody has asked for (RFC 792: whose identifier matches nothing is ignored), as long as the
    /// question was. To ourselves as far as the link goes: the kernel's neighbour code writes another link header.
    #[inline(always)]
    fn probe(packet: &mut impl Answerable, mac: Mac, ours: V4, target: V4) -> Option<()> {
        const LENGTH: u16 = (ipv4::LEN + icmp::LEN) as u16;
        let [l0, l1] = LENGTH.to_be_bytes();
        let [f0, f1] = ipv4::DONT_FRAGMENT.to_be_bytes();
        let word = |high, low| Delta(u16::from_ne_bytes([high, low]));
        let sum = word(0x45, 0)
            .and(word(l0, l1))
            .and(word(f0, f1))
            .and(word(ONE_HOP, protocol::ICMP))
            .and(Delta::sum(ours))
            .and(Delta::sum(target));
        let [c0, c1] = sum.checksum().to_ne_bytes();
        packet.write(0, link_header(mac, mac, ethernet::IPV4))?;
        packet.write(ethernet::LEN, [0x45, 0, l0, l1, 0, 0, f0, f1, ONE_HOP, protocol::ICMP, c0, c1])?;
        packet.write(ethernet::LEN + ipv4::SOURCE, ours.to_ne_bytes())?;
        packet.write(ethernet::LEN + ipv4::SOURCE + 4, target.to_ne_bytes())?;
        packet.write(ethernet::LEN + ipv4::LEN, [icmp::ECHO_REPLY, 0, 0xff, 0xff, 0, 0, 0, 0])
    }
}

/// It is for the next station and for nobody beyond.
const ONE_HOP: u8 = 1;
