//! Frames from their ends, with every checksum worked out from scratch: what the generator starts from, and what a
//! forwarder's work is compared with.

use std::net::IpAddr;

use anyhow::{Result, bail};
use forwarder_bench_ebpf::{CLIENT_BITS, FRAME_WORDS, Frame, Generator, LENGTH_V4, LENGTH_V6};
use forwarder_lab::Family;
use forwarder_lab::etherparse::PacketBuilder;

use crate::addresses::{Addresses, Ends};
use crate::row::{Row, Size};

const ETHERNET: usize = 14;
const CHECK_SEQUENCE: usize = 4;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
const UDP_PROTOCOL: u16 = 17;

/// What is written and compared of each frame of an address family, in bytes; what follows is zero.
pub(crate) const fn head(family: Family) -> usize {
    match family {
        Family::V4 => LENGTH_V4,
        Family::V6 => LENGTH_V6,
    }
}

/// Length of a row's frames, in bytes, without the check sequence.
pub(crate) const fn length(row: Row) -> usize {
    match row.size {
        Size::Least => head(row.family),
        Size::Middle => 512 - CHECK_SEQUENCE,
        Size::Full => ETHERNET + 1500,
    }
}

/// Where the transport header of a frame starts.
pub(crate) const fn transport(family: Family) -> usize {
    match family {
        Family::V4 => ETHERNET + IPV4,
        Family::V6 => ETHERNET + IPV6,
    }
}

/// Where a frame has the number of its flow.
pub(crate) const fn number(family: Family) -> usize {
    transport(family) + UDP
}

/// The frame of a flow between these ends, of so many bytes.
pub(crate) fn build(ends: &Ends, flow: u32, length: usize) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(ends.source_mac, ends.destination_mac);
    let (ip, headers) = match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            (ethernet.ipv4(source.octets(), destination.octets(), ends.ttl), number(Family::V4))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            (ethernet.ipv6(source.octets(), destination.octets(), ends.ttl), number(Family::V6))
        }
        _ => bail!("{} and {} are of two address families", ends.source, ends.destination),
    };
    let mut payload = flow.to_ne_bytes().to_vec();
    payload.resize(length - headers, 0);
    let mut frame = Vec::with_capacity(length);
    ip.udp(ends.source_port, ends.destination_port).write(&mut frame, &payload)?;
    Ok(frame)
}

/// What the generator needs to make all of a row's frames.
pub(crate) fn generator(addresses: &Addresses, row: Row) -> Result<Generator> {
    let clients = CLIENT_BITS as u16;
    let generator = generator_between(&addresses.sent(0), row.family, length(row))?;
    Ok(Generator { client_bits: clients, listen_bits: row.listen_bits(), ..generator })
}

/// The same for frames of one sender to one port; its first flow is between these ends.
pub(crate) fn generator_between(ends: &Ends, family: Family, length: usize) -> Result<Generator> {
    let mut frame = build(ends, 0, length)?;
    let at = transport(family);
    let client_address = match family {
        Family::V4 => ETHERNET + 12 + 4 - 2,
        Family::V6 => ETHERNET + 8 + 16 - 2,
    };
    let client = match ends.source {
        IpAddr::V4(address) => address.to_bits() as u16,
        IpAddr::V6(address) => address.to_bits() as u16,
    };
    let mut varying = vec![client_address, at, at + 2, at + 6, at + 8, at + 10];
    if family == Family::V4 {
        varying.push(ETHERNET + 10);
    }
    for offset in varying {
        frame.iter_mut().skip(offset).take(2).for_each(|byte| *byte = 0);
    }
    let addresses_at = if family == Family::V4 { ETHERNET + 12 } else { ETHERNET + 8 };
    // The pseudo-header (RFC 768, RFC 8200 section 8.1): addresses, which stand before the transport header, its
    // protocol and length.
    let transport_sum = sum(frame.get(addresses_at..).unwrap_or_default())
        + u32::from(UDP_PROTOCOL.to_be())
        + u32::from(((frame.len() - at) as u16).to_be());
    let header_sum = sum(frame.get(ETHERNET..at).unwrap_or_default());
    Ok(Generator {
        frame: words(frame.get(..head(family)).unwrap_or_default()),
        next: 0,
        stride: 1,
        mask: 0,
        first: 0,
        transport_sum,
        header_sum,
        client,
        client_port: ends.source_port,
        listen_port: ends.destination_port,
        ..Generator::default()
    })
}

/// The words of a frame as they are loaded from it, added up.
fn sum(bytes: &[u8]) -> u32 {
    bytes.as_chunks().0.iter().map(|word| u32::from(u16::from_ne_bytes(*word))).sum()
}

fn words(bytes: &[u8]) -> Frame {
    let mut padded = bytes.to_vec();
    padded.resize(size_of::<Frame>(), 0);
    let mut frame = [0; FRAME_WORDS];
    for (word, bytes) in frame.iter_mut().zip(padded.as_chunks().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    frame
}
