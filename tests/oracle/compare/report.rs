//! Cases in words.

use std::fmt::Write as _;

use super::Out;
use crate::packet::{Body, ICMP, ICMPV6, Packet, TCP};
use crate::view::View;

/// What is special about a packet, in words.
pub(super) fn peculiarities(packet: &Packet) -> String {
    let mut text = format!(", protocol {}", packet.body.protocol(packet.src.is_ipv6()));
    if let Some(damage) = packet.damage {
        write!(text, ", {}", format!("{damage:?}").split('(').next().unwrap()).unwrap();
    }
    if let Some(kind) = packet.options.first() {
        write!(text, ", IP option {kind}").unwrap();
    }
    if let Some((kind, _)) = packet.extensions.first() {
        write!(text, ", extension header {kind}").unwrap();
    }
    if packet.hop_limit < 2 {
        write!(text, ", {} hops", packet.hop_limit).unwrap();
    }
    match &packet.body {
        Body::Tcp { flags, .. } => write!(text, ", flags {flags:#04x}").unwrap(),
        Body::Icmp { kind, code, .. } => write!(text, ", type {kind} code {code}").unwrap(),
        _ => {}
    }
    text
}

/// What came out, roughly.
pub(super) fn kinds(outs: &[Out]) -> String {
    let kind = |out: &Out| {
        let Some(view) = View::of(&out.frame) else { return "nonsense".to_owned() };
        let at = view.transport;
        match (view.protocol, out.frame.get(at..at + 2)) {
            (ICMP | ICMPV6, Some([kind, code])) => format!("ICMP {kind}/{code} at {:?}", out.at),
            (TCP, _) => format!("TCP with {:#04x} at {:?}", out.frame.get(at + 13).unwrap_or(&0), out.at),
            (protocol, _) => format!("protocol {protocol} at {:?}", out.at),
        }
    };
    if outs.is_empty() { "nothing".to_owned() } else { outs.iter().map(kind).collect::<Vec<_>>().join(" and ") }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    const SHOWN: usize = 120;
    let mut text = String::new();
    for byte in bytes.iter().take(SHOWN) {
        write!(text, "{byte:02x}").unwrap();
    }
    if bytes.len() > SHOWN {
        write!(text, "… ({} bytes)", bytes.len()).unwrap();
    }
    text
}

pub(super) fn show_both(forwarder: &[Out], nftables: &[Out]) -> String {
    let mut text = String::new();
    for (name, outs) in [("forwarder", forwarder), ("nftables", nftables)] {
        if outs.is_empty() {
            writeln!(text, "  {name:9} nothing").unwrap();
        }
        for out in outs {
            writeln!(text, "  {name:9} {:?} {}", out.at, hex(&out.frame)).unwrap();
        }
    }
    text
}
