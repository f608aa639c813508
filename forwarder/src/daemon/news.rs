//! What a message of the kernel is to us: most repeat what is known, or are about what nobody asks. Pure.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    ops::{BitOr, BitOrAssign},
};

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteFlags, RouteMessage},
};

use crate::machine::netlink;

/// What has to be looked at anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stale {
    /// Next hops that the programs keep may be wrong.
    pub(super) next_hops: bool,
    /// What rules name may be other than it was, or an interface may want its programs.
    pub(super) rules: bool,
}

impl Stale {
    pub(super) const NOTHING: Self = Self { next_hops: false, rules: false };
    const NEXT_HOPS: Self = Self { next_hops: true, rules: false };
    pub(super) const EVERYTHING: Self = Self { next_hops: true, rules: true };
}

impl BitOr for Stale {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self { next_hops: self.next_hops | other.next_hops, rules: self.rules | other.rules }
    }
}

impl BitOrAssign for Stale {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

/// What is known of the machine, as far as a change of it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    links: BTreeMap<u32, LinkFacts>,
    /// By interface, address and prefix length; with what RFC 6724 prefers others for.
    addresses: BTreeMap<(u32, IpAddr, u8), (bool, bool, bool)>,
    /// The link addresses of those neighbours that have one, so no more than the kernel keeps.
    neighbours: BTreeMap<(u32, IpAddr), Vec<u8>>,
}

/// Of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LinkFacts {
    name: String,
    /// Administratively, and whether there is a carrier.
    up: (bool, bool),
    mtu: u32,
    mac: Option<[u8; 6]>,
}

impl Known {
    /// Takes a message in, and says what it makes stale.
    pub(super) fn note(&mut self, message: &RouteNetlinkMessage) -> Stale {
        match message {
            RouteNetlinkMessage::NewLink(link) => self.link(link),
            RouteNetlinkMessage::DelLink(link) if is_of_device(link) => {
                self.links.remove(&link.header.index);
                Stale::EVERYTHING
            }
            RouteNetlinkMessage::NewAddress(address) => self.address(address, true),
            RouteNetlinkMessage::DelAddress(address) => self.address(address, false),
            RouteNetlinkMessage::NewNeighbour(neighbour) => self.neighbour(neighbour, has_link_address(neighbour)),
            RouteNetlinkMessage::DelNeighbour(neighbour) => self.neighbour(neighbour, false),
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) if is_cached(route) => {
                Stale::NOTHING
            }
            // Also the address that is preferred towards a backend, and whether routing asks for sources.
            RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
            | RouteNetlinkMessage::NewRule(_)
            | RouteNetlinkMessage::DelRule(_) => Stale::EVERYTHING,
            _ => Stale::NOTHING,
        }
    }

    fn link(&mut self, message: &LinkMessage) -> Stale {
        if !is_of_device(message) {
            return Stale::NOTHING;
        }
        let interface = netlink::link(message).interface;
        let carrier = message.header.flags.contains(LinkFlags::LowerUp);
        let facts =
            LinkFacts { name: interface.name, up: (interface.up, carrier), mtu: interface.mtu, mac: interface.mac };
        match self.links.insert(message.header.index, facts) {
            Some(before) if self.links.get(&message.header.index) == Some(&before) => Stale::NOTHING,
            _ => Stale::EVERYTHING,
        }
    }

    /// The kernel also tells when a lifetime is prolonged: with every router advertisement.
    fn address(&mut self, message: &AddressMessage, there: bool) -> Stale {
        let Some(address) = netlink::local_address(&message.attributes) else { return Stale::EVERYTHING };
        let key = (message.header.index, address, message.header.prefix_len);
        let now = there.then(|| netlink::for_special_use(&message.attributes));
        let before = match now {
            Some(use_) => self.addresses.insert(key, use_),
            None => self.addresses.remove(&key),
        };
        if before == now { Stale::NOTHING } else { Stale::EVERYTHING }
    }

    /// A neighbour that had no link address is in no kept next hop; and that one is only being asked again says nothing.
    fn neighbour(&mut self, message: &NeighbourMessage, there: bool) -> Stale {
        let mut key = None;
        let mut now = None;
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => key = Some(IpAddr::from(*address)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => key = Some(IpAddr::from(*address)),
                NeighbourAttribute::LinkLayerAddress(address) => now = Some(address).filter(|_| there),
                _ => {}
            }
        }
        // Entries of a bridge's or a tunnel's forwarding table have no address of ours.
        let Some(address) = key else { return Stale::NOTHING };
        let key = (message.header.ifindex, address);
        let before = match now {
            Some(link_address) => self.neighbours.insert(key, link_address.clone()),
            None => self.neighbours.remove(&key),
        };
        if before.is_some() && before.as_ref() != now { Stale::NEXT_HOPS } else { Stale::NOTHING }
    }
}

/// A bridge tells of its ports by the same messages: "deleted" is then only "a port no more".
fn is_of_device(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec
}

/// A route that the kernel made of another by itself.
const fn is_cached(message: &RouteMessage) -> bool {
    message.header.flags.contains(RouteFlags::Cloned)
}

/// `NUD_VALID` of net/neighbour.h: what is sent to it goes to its link address.
const fn has_link_address(message: &NeighbourMessage) -> bool {
    matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Noarp
            | NeighbourState::Permanent
    )
}

#[cfg(test)]
mod tests;
