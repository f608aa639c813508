//! Who sends to whom, and what must arrive.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use forwarder_bench_ebpf::{CLIENTS, FlowEnds};
use forwarder_lab::{Host, Topology};

use crate::row::Row;

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
            listen: if row.translates() { net.public_address(row.family) } else { destination },
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
        if self.row.translates() { LISTEN_PORT } else { BACKEND_PORT }
    }

    /// The frame of a flow as the client sends it.
    pub(crate) fn sent(&self, flow: u32) -> Ends {
        let ends = FlowEnds::of(flow);
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
            destination_port: BACKEND_PORT + FlowEnds::of(flow).listen as u16,
            ttl: sent.ttl - 1,
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
