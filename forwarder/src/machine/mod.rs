//! The machine as the rules see it: plain data, so that everything decided from it can be tested without one.

pub mod ethtool;
pub mod extack;
pub mod netlink;
pub mod sockets;
pub mod sysctl;
pub mod xdp_features;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use netlink::FallbackRoute;

/// Whether the interface that had this name and index still exists: one that is gone took everything on it along.
pub fn is_there(name: &str, index: u32) -> bool {
    nix::net::if_::if_nametoindex(name) == Ok(index)
}

/// The interfaces, addresses and routes that rules depend on, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Every interface, in the kernel's order.
    pub interfaces: Vec<Interface>,
    /// `net.ipv4.ip_local_port_range`, which IPv6 uses too: where local sockets get their ports; inclusive, host order.
    pub local_port_range: (u16, u16),
    /// Whether routing rules (`ip rule`) exist that look at more than the destination, in either family.
    pub source_rules: bool,
    /// The source address the kernel's routing prefers towards each backend of
    /// [`Config::backends`](crate::config::Config::backends); a backend without a route has no entry.
    pub sources: BTreeMap<IpAddr, IpAddr>,
    /// The uplinks that do not work by their probes, by name, each with the reason.
    pub down: BTreeMap<String, String>,
    /// The interface that the kernel's routing leads to each of [`Config::backends`](crate::config::Config::backends) by;
    /// one without a route has no entry.
    pub ways: BTreeMap<IpAddr, u32>,
    /// The names of the sysctls for forwarding that are off, as `sysctl` shows them.
    pub forwarding_off: BTreeSet<String>,
    /// What the kernel does with packets that it is to steer; none where that was not looked at.
    pub kernel: Option<Kernel>,
    /// Whether `forwarder run` follows its changes: what rules name and is not there yet is waited for.
    pub followed: bool,
}

/// What the kernel does before and after programs see a packet, as far as it stands in the way of a steer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// The interfaces of the default routes of the main table, IPv4 and IPv6.
    pub default_by: [BTreeSet<u32>; 2],
    /// The interfaces of all routes, of any table, that lead elsewhere: default routes, and those with a router.
    pub leads_by: BTreeSet<u32>,
    /// The default routes that `forwarder run` has added, which are not among those.
    pub fallback_routes: BTreeSet<FallbackRoute>,
    /// The interfaces with strict reverse-path filtering (`rp_filter` 1, of the interface or of all).
    pub strict: BTreeSet<u32>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's index.
    pub index: u32,
    /// At most 15 bytes.
    pub name: String,
    /// Its Ethernet address; none where there is no link header.
    pub mac: Option<[u8; 6]>,
    /// In bytes of IP packet.
    pub mtu: u32,
    /// False for tun, WireGuard, PPP and the like.
    pub has_link_header: bool,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether there is something at its other end, as far as its driver can tell.
    pub carrier: bool,
    /// Its addresses with their prefix lengths, of both families; those to show to others first, else the
    /// kernel's order.
    pub addresses: Vec<IpNet>,
}

impl Machine {
    /// The interface with this name.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// The addresses that it has, as far as packets to them are forwarded.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let all = self.interfaces.iter().flat_map(|interface| &interface.addresses).map(IpNet::addr);
        all.filter(|address| crate::config::forwardable(*address)).collect()
    }

    /// The interface that has this address.
    pub fn owner(&self, address: IpAddr) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.addresses.iter().any(|own| own.addr() == address))
    }
}
