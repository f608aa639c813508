//! The sockets of this machine that wait for clients, as `/proc/net` lists them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::config::rule::protocol_numbers::{TCP, UDP};

/// A socket that waits for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listener {
    /// IP protocol number: TCP or UDP.
    pub protocol: u8,
    /// Its address; unspecified for all of the machine's.
    pub address: IpAddr,
    /// Its port, host order.
    pub port: u16,
}

/// Every waiting socket of our network namespace. What cannot be read is left out: this is for advice only.
pub fn listeners() -> Vec<Listener> {
    let mut listeners = Vec::new();
    for (file, protocol) in [("tcp", TCP), ("tcp6", TCP), ("udp", UDP), ("udp6", UDP)] {
        if let Ok(text) = fs::read_to_string(format!("/proc/self/net/{file}")) {
            listeners.extend(parse(&text, protocol));
        }
    }
    listeners.sort();
    listeners.dedup();
    listeners
}

/// Reads the lines of one file; the first is its heading.
fn parse(text: &str, protocol: u8) -> impl Iterator<Item = Listener> {
    /// `TCP_LISTEN`, and `TCP_CLOSE`, which is what an unconnected UDP socket says.
    const WAITING: [(u8, &str); 2] = [(TCP, "0A"), (UDP, "07")];
    text.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next()?;
        let state = words.nth(1)?;
        if !WAITING.contains(&(protocol, state)) {
            return None;
        }
        let (address, port) = local.split_once(':')?;
        Some(Listener { protocol, address: self::address(address)?, port: u16::from_str_radix(port, 16).ok()? })
    })
}

/// Addresses stand as 32-bit words in the machine's byte order.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |index: usize| -> Option<[u8; 4]> {
        let digits = hex.get(8 * index..8 * index + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (index, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waiting_sockets_are_listed() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
             1: 0200000A:0016 0300000A:C350 01 00000000:00000000 00:00000000 00000000     0\n";
        let found: Vec<_> = parse(text, TCP).collect();
        let wanted = Listener { protocol: TCP, address: Ipv4Addr::LOCALHOST.into(), port: 8080 };
        // The kernel writes the word in the machine's order: this line is from a little-endian one.
        if cfg!(target_endian = "little") {
            assert_eq!(found, [wanted]);
        }
    }

    #[test]
    fn a_wildcard_of_ipv6_and_an_unconnected_udp_socket() {
        let text = "heading\n 7: 00000000000000000000000000000000:0035 \
                    00000000000000000000000000000000:0000 07 00000000:00000000\n";
        let found: Vec<_> = parse(text, UDP).collect();
        assert_eq!(found, [Listener { protocol: UDP, address: Ipv6Addr::UNSPECIFIED.into(), port: 53 }]);
    }

    #[test]
    fn garbage_is_no_socket() {
        assert_eq!(parse("heading\n1: zz:1 0:0 0A\n2: 0100007F\n\n", TCP).count(), 0);
    }
}
