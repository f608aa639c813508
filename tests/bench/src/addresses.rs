//! Who sends to whom, and what must arrive.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use forwarder_bench_ebpf::{CLIENT_BITS, CLIENTS, FlowEnds};
use forwarder_lab::{Host, Topology};

use crate::row::{Mode, Row, Way};

/// Port of the first listen; the others follow.
pub(crate) const LISTEN_PORT: u16 = 8000;
/// Port of the backend for the first listen; the others follow.
pub(crate) const BACKEND_PORT: u16 = 9000;
/// The lowest port of clients.
pub(crate) const CLIENT_PORT: u16 = 1024;
/// Hop limit of what clients send.
const TTL: u8 = 64;
/// The lowest client is this host of the client's network; the lab uses those below.
const FIRST_CLIENT: u16 = 16;

pub(crate) type Mac = [u8; 6];

/// Link, network and transport addresses of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) source_mac: Mac,
    pub(crate) destination_mac: Mac,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) ttl: u8,
}

/// All addresses of a row's frames.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    row: Row,
    client: Mac,
    outer: Mac,
    inner: Mac,
    backend: Mac,
    clients: IpAddr,
    /// What clients send to.
    pub(crate) listen: IpAddr,
    masquerade: IpAddr,
    /// What the backend is reached by.
    pub(crate) destination: IpAddr,
}

impl Addresses {
    pub(crate) fn of(row: Row, net: &Topology) -> Result<Self> {
        let destination = net.home_address(row.family);
        Ok(Self {
            row,
            client: mac(&net.client, "eth0")?,
            outer: mac(&net.forwarder, "eth0")?,
            inner: mac(&net.forwarder, "eth1")?,
            backend: mac(&net.home, "eth0")?,
            clients: client_address(net.client_address(row.family), 0),
            listen: match row.way {
                Way::Forwarder { mode: Mode::Prefix, .. } => outer_counterpart(destination),
                _ if row.translates() => net.public_address(row.family),
                _ => destination,
            },
            masquerade: net.inner_address(row.family),
            destination,
        })
    }

    /// Every client's address.
    pub(crate) fn clients(&self) -> impl Iterator<Item = IpAddr> {
        let first = self.clients;
        (0..CLIENTS as u16).map(move |number| client_address(first, number))
    }

    /// The client's MAC address, and the backend's.
    pub(crate) const fn macs(&self) -> (Mac, Mac) {
        (self.client, self.backend)
    }

    /// Port of the first listen as clients send to it.
    pub(crate) const fn listen_port(&self) -> u16 {
        if self.row.translates_ports() { LISTEN_PORT } else { BACKEND_PORT }
    }

    /// The frame of a flow as the client sends it.
    pub(crate) fn sent(&self, flow: u32) -> Ends {
        let ends = FlowEnds::of(flow, self.row.listen_bits(), CLIENT_BITS);
        Ends {
            source_mac: self.client,
            destination_mac: self.outer,
            source: client_address(self.clients, ends.client as u16),
            destination: self.listen,
            source_port: CLIENT_PORT + ends.port as u16,
            destination_port: self.listen_port() + ends.listen as u16,
            ttl: TTL,
        }
    }

    /// The frame of a flow as it must arrive. With masquerade the source port is whatever it is.
    pub(crate) fn arriving(&self, flow: u32, source_port: u16) -> Ends {
        let sent = self.sent(flow);
        if self.row.is_bare() {
            return sent;
        }
        let (source, source_port) =
            if self.row.masquerades() { (self.masquerade, source_port) } else { (sent.source, sent.source_port) };
        Ends {
            source_mac: self.inner,
            destination_mac: self.backend,
            source,
            destination: self.destination,
            source_port,
            destination_port: BACKEND_PORT + FlowEnds::of(flow, self.row.listen_bits(), CLIENT_BITS).listen as u16,
            ttl: sent.ttl - 1,
        }
    }
}

/// Outer prefixes of one to one rules. Inside, they are the network of [`OUTER_BITS`] around the backend.
pub(crate) const OUTER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 0);
pub(crate) const OUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0);

/// Lengths of those prefixes, for IPv4 and IPv6.
pub(crate) const OUTER_BITS: (u8, u8) = (24, 48);

/// The outer address of a backend under a one to one rule: IPv4 keeps the host's bits (netfilter's NETMAP); of IPv6 the
/// fourth word changes as well, so that the sum of all words stays (RFC 6296 section 3.4).
fn outer_counterpart(inner: IpAddr) -> IpAddr {
    match inner {
        IpAddr::V4(address) => {
            let [.., host] = address.octets();
            let [a, b, c, _] = OUTER_V4.octets();
            Ipv4Addr::new(a, b, c, host).into()
        }
        IpAddr::V6(address) => {
            let [i0, i1, i2, i3, e, f, g, h] = address.segments();
            let [a, b, c, ..] = OUTER_V6.segments();
            let inner: u32 = [i0, i1, i2, i3].into_iter().map(u32::from).sum();
            let outer: u32 = [a, b, c].into_iter().map(u32::from).sum();
            // Ones' complement: everything modulo 0xffff.
            let word = (inner % 0xffff + 0xffff - outer % 0xffff) % 0xffff;
            Ipv6Addr::new(a, b, c, word as u16, e, f, g, h).into()
        }
    }
}

/// Client `number`, in the network of `neighbour`.
fn client_address(neighbour: IpAddr, number: u16) -> IpAddr {
    match neighbour {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            Ipv4Addr::new(a, b, c, (FIRST_CLIENT + number) as u8).into()
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, g, _] = address.segments();
            Ipv6Addr::new(a, b, c, d, e, f, g, FIRST_CLIENT + number).into()
        }
    }
}

fn mac(host: &Host, interface: &str) -> Result<Mac> {
    let text = host.mac(interface)?;
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let mut mac = Mac::default();
    for byte in &mut mac {
        *byte = bytes.next().and_then(Result::ok).with_context(|| format!("{text} is no MAC address"))?;
    }
    Ok(mac)
}
