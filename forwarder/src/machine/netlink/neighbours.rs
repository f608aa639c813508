//! Neighbours: what the kernel knows of them, and making it ask.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    IpVersion,
    packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use super::Netlink;

/// A neighbour that has a link address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Where frames for it go.
    pub link_address: [u8; 6],
    /// Whether it has said so recently; for a permanent entry, whether somebody has.
    pub confirmed: bool,
}

impl Netlink {
    /// What the kernel knows of a neighbour; none if that has no link address.
    pub async fn neighbour(&self, index: u32, address: IpAddr) -> Result<Option<Neighbour>> {
        let version = if address.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        let mut all = self.handle.neighbours().get().set_family(version).execute();
        let mut found = None;
        while let Some(message) = all.try_next().await.context("cannot list the neighbours over netlink")? {
            let is_it = |attribute: &NeighbourAttribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(its)) => address == *its,
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(its)) => address == *its,
                _ => false,
            };
            if message.header.ifindex == index && message.attributes.iter().any(is_it) {
                found = neighbour(&message);
            }
        }
        Ok(found)
    }

    /// Makes the kernel ask a neighbour whether it is there; `known` is what is known of it.
    pub async fn ask_neighbour(&self, index: u32, address: IpAddr, known: Option<Neighbour>) -> Result<()> {
        let request = self.handle.neighbours().add(index, address).replace();
        // As `ip neighbour change … nud probe` and `ip neighbour replace … use` do it.
        let request = if known.is_some() {
            request.state(NeighbourState::Probe)
        } else {
            request.state(NeighbourState::None).flags(NeighbourFlags::Use)
        };
        request.execute().await.with_context(|| format!("cannot make the kernel ask for {address}"))
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let confirmed = match message.header.state {
        NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp => true,
        NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => false,
        _ => return None,
    };
    let link_address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(address) => address.as_slice().try_into().ok(),
        _ => None,
    });
    Some(Neighbour { link_address: link_address?, confirmed })
}
