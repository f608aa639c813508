//! Rules for everything that forwards, in each one's own words.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use forwarder_lab::Family;

/// What a rule says about the source of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Masquerade,
    Preserve,
    /// Preserve, but keep flows.
    PreserveFlows,
}

/// Listens and where they lead; one rule each.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) protocol: &'static str,
    pub(crate) ways: Vec<(SocketAddr, SocketAddr)>,
}

/// Ports of an address that rules without traffic are for, and the first of them.
const FILLING_PORTS: usize = 50_000;
const FIRST_FILLING_PORT: usize = 10_000;

impl Rules {
    /// `used` rules from ports of `listen` to ports of `backend`, and others among them, evenly, so that there are `count`.
    pub(crate) fn new(
        protocol: &'static str,
        listen: SocketAddr,
        backend: SocketAddr,
        used: usize,
        count: usize,
    ) -> Self {
        let port = |first: SocketAddr, number: usize| SocketAddr::new(first.ip(), first.port() + number as u16);
        let (mut ways, mut filling) = (Vec::with_capacity(count), 0);
        for number in 0..used {
            ways.push((port(listen, number), port(backend, number)));
            let due = (count - used) * (number + 1) / used;
            ways.extend((filling..due).map(|number| filler(listen.is_ipv4(), number)));
            filling = due;
        }
        Self { protocol, ways }
    }

    /// The addresses they listen on.
    pub(crate) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.ways.iter().map(|(listen, _)| listen.ip()).collect()
    }

    /// As tables of a configuration of forwarder.
    pub(crate) fn toml(&self, source: Source) -> String {
        let source = match source {
            Source::Masquerade => "source = \"masquerade\"",
            Source::Preserve => "source = \"preserve\"",
            Source::PreserveFlows => "source = \"preserve\"\nstateless = false",
        };
        self.ways.iter().enumerate().fold(String::new(), |mut text, (number, (listen, to))| {
            let protocol = self.protocol;
            let _ = write!(
                text,
                "\n[[forward]]\nname = \"bench-{number}\"\nlisten = \"{listen}\"\nprotocol = \"{protocol}\"\n\
                 to = \"{to}\"\n{source}\n"
            );
            text
        })
    }

    /// As a table of nftables: one look-up in a map, however many there are, and masquerade towards the backends.
    pub(crate) fn nft(&self) -> String {
        let Some((listen, _)) = self.ways.first() else { return String::new() };
        let (table, kind) = if listen.is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
        let mut text = format!(
            "table {table} bench\ndelete table {table} bench\ntable {table} bench {{\nmap ways {{\n\
             type {kind} . inet_service : {kind} . inet_service\nelements = {{\n"
        );
        for (listen, to) in &self.ways {
            let _ = writeln!(text, "{} . {} : {} . {},", listen.ip(), listen.port(), to.ip(), to.port());
        }
        let protocol = self.protocol;
        let _ = write!(
            text,
            "}}\n}}\nchain in {{\ntype nat hook prerouting priority dstnat;\n\
             dnat {table} to {table} daddr . {protocol} dport map @ways\n}}\n\
             chain out {{\ntype nat hook postrouting priority srcnat;\noifname eth1 masquerade\n}}\n}}\n"
        );
        text
    }

    /// As `iptables-restore` reads it, or `ip6tables-restore`: rule after rule, since it has nothing else.
    pub(crate) fn iptables(&self) -> String {
        let mut text = "*nat\n:PREROUTING ACCEPT\n:POSTROUTING ACCEPT\n".to_owned();
        for (listen, to) in &self.ways {
            let _ = writeln!(
                text,
                "-A PREROUTING -d {} -p {protocol} -m {protocol} --dport {} -j DNAT --to-destination {to}",
                listen.ip(),
                listen.port(),
                protocol = self.protocol,
            );
        }
        text + "-A POSTROUTING -o eth1 -j MASQUERADE\nCOMMIT\n"
    }
}

/// A rule that no packet is for.
fn filler(v4: bool, number: usize) -> (SocketAddr, SocketAddr) {
    let host = 1 + (number / FILLING_PORTS) as u8;
    let port = (FIRST_FILLING_PORT + number % FILLING_PORTS) as u16;
    let (listen, to): (IpAddr, IpAddr) = if v4 {
        (Ipv4Addr::new(198, 18, 0, host).into(), Ipv4Addr::new(10, 8, 0, 100 + host).into())
    } else {
        let to = Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 1, host.into());
        (Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, host.into()).into(), to.into())
    };
    ((listen, port).into(), (to, port).into())
}

/// The command that reads what [`Rules::iptables`] writes.
pub(crate) const fn iptables_restore(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::collections::HashSet;

    use super::*;

    #[test]
    fn as_many_as_asked_for_and_all_different() {
        for (used, count) in [(1, 1), (16, 16), (1024, 1024), (1024, 100_000), (1, 3)] {
            let rules =
                Rules::new("udp", "198.51.100.1:8000".parse().unwrap(), "10.8.0.2:9000".parse().unwrap(), used, count);
            assert_eq!(rules.ways.len(), count);
            let listens: HashSet<_> = rules.ways.iter().map(|(listen, _)| listen).collect();
            let backends: HashSet<_> = rules.ways.iter().map(|(_, to)| to).collect();
            assert_eq!((listens.len(), backends.len()), (count, count));
            let in_use = rules
                .ways
                .iter()
                .filter(|(listen, _)| listen.ip() == "198.51.100.1".parse::<IpAddr>().unwrap())
                .count();
            assert_eq!(in_use, used);
        }
    }
}
